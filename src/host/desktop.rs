//! The desktop: the display manager, and who is logged in by it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::base::root::Root;
use crate::host::belongs::{Belongs, display_manager, is_graphical, is_of_manager};
use crate::host::unit_names::can_be_stopped;

/// The display manager of a host that has one, and whose desktops end with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Desktop {
    /// Its unit, by the name that systemd has it under.
    pub unit: String,
    /// Users with a desktop and no other session, by number: what their own systemd runs ends soon after it (logind.conf(5),
    /// UserStopDelaySec).
    pub users: Vec<u32>,
}

impl Desktop {
    /// Its desktops are those of logind's sessions that it has opened (systemd, src/login/logind-session.c, session_save).
    pub fn read(root: &Root) -> Option<Desktop> {
        let unit = display_manager(root)?;
        let sessions = root.names("/run/systemd/sessions").unwrap_or_default();
        // By user, whether each of his sessions is such a desktop. One that lingers goes on without any (loginctl(1)).
        let mut users: BTreeMap<u32, bool> = BTreeMap::new();
        // Beside the file of each session there is a pipe that its login has open as long as it lasts.
        let sessions = sessions
            .iter()
            .filter(|id| id.bytes().all(|b| b.is_ascii_alphanumeric()));
        for text in sessions.filter_map(|id| root.text(format!("/run/systemd/sessions/{id}")).ok()) {
            let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key));
            // The user's own systemd is a session by itself from systemd 256 on, which ends when the others have ended.
            if value("CLASS=").is_some_and(|class| matches!(class, "manager" | "manager-early" | "none")) {
                continue;
            }
            let lingers = value("USER=").is_some_and(|user| root.exists(format!("/var/lib/systemd/linger/{user}")));
            let is_its =
                value("CLASS=") == Some("greeter") || is_of_manager(&unit, value("SERVICE=").unwrap_or_default());
            let is_desktop = is_its && value("TYPE=").is_some_and(is_graphical) && !lingers;
            if let Some(uid) = value("UID=").and_then(|uid| uid.parse().ok()) {
                *users.entry(uid).or_insert(true) &= is_desktop;
            }
        }
        let users: Vec<u32> = users
            .into_iter()
            .filter_map(|(uid, ends)| ends.then_some(uid))
            .collect();
        can_be_stopped(&unit).then_some(Desktop { unit, users })
    }

    /// Whether a process ends with the display manager. Whether it has let go the look before a GPU leaves says.
    pub fn has(&self, belongs_to: &Belongs) -> bool {
        match belongs_to {
            Belongs::Unit(name) => *name == self.unit,
            Belongs::OtherSession { .. } => belongs_to.is_desktop(),
            Belongs::UserUnit { uid: Some(uid), .. } => self.users.contains(uid),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::fs::OpenOptions;
    use std::os::unix::fs::symlink;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    /// A pipe of logind's that was read for good has once kept every run from its end.
    #[test]
    fn what_is_of_a_desktop_ends_with_the_display_manager() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path());
        assert_eq!(Desktop::read(&root), None);
        let sessions = dir.path().join("run/systemd/sessions");
        std::fs::create_dir_all(&sessions).unwrap();
        // What its login has open: nothing ever comes.
        mkfifo(&sessions.join("2.ref"), Mode::S_IRWXU).unwrap();
        mkfifo(&sessions.join("10"), Mode::S_IRWXU).unwrap();
        let mut open = OpenOptions::new();
        let open = open.read(true).write(true);
        let _login = (
            open.open(sessions.join("2.ref")).unwrap(),
            open.open(sessions.join("10")).unwrap(),
        );
        for (file, text) in [
            ("2", "UID=1000\nCLASS=user\nTYPE=wayland\nSERVICE=gdm-password\n"),
            ("3", "UID=1001\nCLASS=user\nTYPE=tty\nSERVICE=sshd\n"),
            ("5", "UID=1002\nCLASS=user\nTYPE=x11\nSERVICE=gdm-password\n"),
            ("6", "UID=1002\nCLASS=user\nTYPE=tty\nSERVICE=login\n"),
            (
                "7",
                "UID=1003\nUSER=lingers\nCLASS=user\nTYPE=x11\nSERVICE=gdm-password\n",
            ),
            // His own systemd, which is a session as well from systemd 256 on.
            ("8", "UID=1000\nCLASS=manager\nTYPE=unspecified\nSERVICE=systemd-user\n"),
            ("9", "UID=1004\nCLASS=user\nTYPE=x11\nSERVICE=xrdp-sesman\n"),
            (
                "c1",
                "UID=120\nCLASS=greeter\nTYPE=wayland\nSERVICE=gdm-launch-environment\n",
            ),
        ] {
            std::fs::write(sessions.join(file), text).unwrap();
        }
        let link = dir.path().join("etc/systemd/system/display-manager.service");
        for (dir_of, name) in [
            ("etc/systemd/system", None),
            ("lib/systemd/system", Some("gdm3.service")),
            ("var/lib/systemd/linger", None),
        ] {
            std::fs::create_dir_all(dir.path().join(dir_of)).unwrap();
            if let Some(name) = name {
                symlink("gdm.service", dir.path().join(dir_of).join(name)).unwrap();
            }
        }
        std::fs::write(dir.path().join("var/lib/systemd/linger/lingers"), "").unwrap();
        symlink("/lib/systemd/system/gdm3.service", &link).unwrap();
        let desktop = Desktop::read(&root).unwrap();
        assert_eq!(
            (desktop.unit.as_str(), desktop.users.as_slice()),
            ("gdm.service", [120, 1000].as_slice())
        );
        let session = |what: &str| Belongs::OtherSession {
            id: "2".to_owned(),
            what: what.to_owned(),
        };
        let of_user = |uid| Belongs::UserUnit {
            uid: Some(uid),
            name: "org.gnome.Shell@wayland.service".to_owned(),
        };
        for (belongs_to, is_of_it) in [
            (Belongs::Unit("gdm.service".to_owned()), true),
            (Belongs::Unit("ollama.service".to_owned()), false),
            (session("desktop"), true),
            (session("background"), false),
            (of_user(1000), true),
            (of_user(1001), false),
            (Belongs::Session { id: "3".to_owned() }, false),
            (Belongs::Unknown, false),
        ] {
            assert_eq!(desktop.has(&belongs_to), is_of_it, "{belongs_to:?}");
        }
        std::fs::remove_file(&link).unwrap();
        symlink("/lib/systemd/system/sshd.service", &link).unwrap();
        assert_eq!(Desktop::read(&root), None, "none that the host needs");
    }
}
