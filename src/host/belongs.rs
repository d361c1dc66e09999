//! What a process belongs to, as its cgroup tells: a unit, a container, a VM, a session.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::base::root::Root;
use crate::base::vmid::VmId;

/// What a process belongs to. The names in it are a cgroup's, and so foreign text: [`crate::base::text::foreign`] before
/// they are shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Belongs {
    /// A VM: its QEMU.
    Vm(VmId),
    /// A container of LXC's.
    Container {
        /// Its number in digits, which may be none that Proxmox gives.
        ctid: String,
        /// The unit of the systemd inside. For decisions, not for the text: it says nothing without the container.
        unit: Option<String>,
    },
    /// A unit of the system's systemd.
    Unit(String),
    /// A unit of a user's systemd.
    UserUnit {
        /// The user, where the cgroup tells.
        uid: Option<u32>,
        /// Its name.
        name: String,
    },
    /// A login session at a prompt.
    Session {
        /// Its id, as loginctl(1) takes it.
        id: String,
    },
    /// Another session: a desktop, a job of cron's, a container that somebody runs in one.
    OtherSession {
        /// Its id.
        id: String,
        /// What it is, in a word; empty where that is not known.
        what: String,
    },
    /// A container of Docker's, by its whole id.
    Docker(String),
    /// A container of Podman's, by its whole id.
    Podman(String),
    /// Nothing of these, or the cgroup could not be read.
    Unknown,
}

/// What a session of the display manager's is, with a desktop in it, in a word.
const DESKTOP: &str = "desktop";

impl Belongs {
    /// From the text of /proc/PID/cgroup.
    ///
    /// Names as made by pve-container (`lxc/CTID`), qemu-server (`qemu.slice/VMID.scope`), systemd, Docker
    /// (`docker-ID.scope`) and Podman (`libpod-ID.scope`). They are believed from the root down to the first of these: what
    /// is below belongs to whoever that is, who may call it as they like.
    pub fn of_cgroup(text: &str) -> Belongs {
        let path = text
            .lines()
            .find_map(|l| l.strip_prefix("0::"))
            .or_else(|| text.lines().find_map(|l| l.splitn(3, ':').nth(2)))
            .unwrap_or_default();
        let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
        Belongs::of_path(&parts)
    }

    /// What a process belongs to.
    pub fn of(root: &Root, pid: i32) -> Belongs {
        let cgroup = root.text(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        match Belongs::of_cgroup(&cgroup) {
            Belongs::OtherSession { id, .. } => Belongs::of_session(root, pid, id),
            other => other,
        }
    }

    /// Which kind of session it is: logind's own file of it (systemd, src/login/logind-session.c, session_save; what
    /// sd_session_get_class(3) and sd_session_get_type(3) read).
    fn of_session(root: &Root, pid: i32, id: String) -> Belongs {
        let text = root.text(format!("/run/systemd/sessions/{id}")).unwrap_or_default();
        let value = |key: &str| {
            let mut lines = text.lines();
            lines.find_map(|line| line.strip_prefix(key)).unwrap_or_default()
        };
        // A container that somebody runs in a session counts its processes by itself.
        let of_pids = |pid: &str| root.link_name(format!("/proc/{pid}/ns/pid"));
        let what = match (value("CLASS="), value("TYPE=")) {
            _ if of_pids(&pid.to_string()) != of_pids("self") => "container in",
            ("user" | "user-early", "tty" | "unspecified") => return Belongs::Session { id },
            ("user" | "user-early", kind) if is_graphical(kind) => {
                let manager = display_manager(root);
                match manager.is_some_and(|unit| is_of_manager(&unit, value("SERVICE="))) {
                    true => DESKTOP,
                    false => "graphical",
                }
            }
            ("greeter" | "lock-screen", _) => DESKTOP,
            ("background" | "background-light", _) => "background",
            _ => "",
        };
        let what = what.to_owned();
        Belongs::OtherSession { id, what }
    }

    /// Whether it is a session of the display manager's, with a desktop in it, or the screen where one logs in to it.
    pub fn is_desktop(&self) -> bool {
        matches!(self, Belongs::OtherSession { what, .. } if what == DESKTOP)
    }

    /// The container of LXC's that it is, by its number in digits.
    pub fn ctid(&self) -> Option<&str> {
        match self {
            Belongs::Container { ctid, .. } => Some(ctid),
            _ => None,
        }
    }

    fn of_path(parts: &[&str]) -> Belongs {
        match parts {
            ["lxc", ctid, inside @ ..] if ctid.bytes().all(|b| b.is_ascii_digit()) => {
                let unit = match Belongs::of_path(inside.strip_prefix(&["ns"]).unwrap_or(inside)) {
                    Belongs::Unit(name) => Some(name),
                    _ => None,
                };
                let ctid = (*ctid).to_owned();
                return Belongs::Container { ctid, unit };
            }
            // A container that is none of Proxmox's.
            ["lxc", ..] => return Belongs::Unknown,
            // Docker without systemd's help.
            ["docker", id, ..] => return Belongs::Docker((*id).to_owned()),
            ["qemu.slice", scope] => {
                let vmid = scope.strip_suffix(".scope").and_then(|name| name.parse().ok());
                return vmid.map_or(Belongs::Unknown, Belongs::Vm);
            }
            _ => {}
        }
        if let ["user.slice", user, scope, ..] = parts
            && user.starts_with("user-")
            && let Some(id) = scope
                .strip_prefix("session-")
                .and_then(|name| name.strip_suffix(".scope"))
        {
            let (id, what) = (id.to_owned(), String::new());
            return Belongs::OtherSession { id, what };
        }
        let mut manager: Option<String> = None;
        for part in parts {
            // What is below a user's systemd is called as he likes.
            if let Some(name) = part.strip_suffix(".scope").filter(|_| manager.is_none()) {
                if let Some(id) = name.strip_prefix("docker-") {
                    return Belongs::Docker(id.to_owned());
                }
                if let Some(id) = name.strip_prefix("libpod-") {
                    return Belongs::Podman(id.to_owned());
                }
            }
            if part.ends_with(".slice") {
                continue;
            }
            // A scope of a user's systemd is a unit as any other, but for its own: what a desktop starts, or tmux. Another scope,
            // or a group that systemd has not made: what is below it is somebody else's, who names it as he likes.
            let is_users = manager.is_some() && part.ends_with(".scope") && *part != "init.scope";
            if !part.ends_with(".service") && !is_users {
                break;
            }
            let name = (*part).to_owned();
            match &manager {
                // A user's systemd is a unit itself, user@UID.service.
                Some(manager) => {
                    let uid = uid_of(manager);
                    return Belongs::UserUnit { uid, name };
                }
                None if name.starts_with("user@") => manager = Some(name),
                None => return Belongs::Unit(name),
            }
        }
        manager.map_or(Belongs::Unknown, Belongs::Unit)
    }
}

/// The unit of the display manager: what the alias display-manager.service is a link to (systemd.special(7)).
pub(crate) fn display_manager(root: &Root) -> Option<String> {
    let mut unit = root.link_name("/etc/systemd/system/display-manager.service")?;
    // One alias may lead to another: Debian's gdm3.service to gdm.service.
    for _ in 0..4 {
        let dirs = ["/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];
        match dirs.iter().find_map(|dir| root.link_name(format!("{dir}/{unit}"))) {
            Some(next) if next.ends_with(".service") => unit = next,
            _ => break,
        }
    }
    Some(unit)
}

/// Whether a session was opened by the display manager of this unit, by the name that it has given PAM: its own, or one that
/// begins with it (gdm-password, sddm-autologin, lightdm-greeter). What xrdp, a VNC server or a prompt has opened does not end
/// with it.
pub(crate) fn is_of_manager(unit: &str, service: &str) -> bool {
    let stem = unit.strip_suffix(".service").unwrap_or(unit);
    let stem = stem.trim_end_matches(|c: char| c.is_ascii_digit());
    !stem.is_empty() && service.starts_with(stem)
}

/// Whether a session of this TYPE, as logind has it, is one with a desktop.
pub(crate) fn is_graphical(kind: &str) -> bool {
    matches!(kind, "x11" | "wayland" | "mir")
}

/// The UID of user@UID.service.
fn uid_of(manager: &str) -> Option<u32> {
    let instance = manager.strip_prefix("user@")?.strip_suffix(".service")?;
    instance.parse().ok()
}

impl fmt::Display for Belongs {
    /// Nothing, where it is not known. Of a long id as much as Docker and Podman show.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Belongs::Vm(vmid) => write!(f, "VM {vmid}"),
            Belongs::Container { ctid, .. } => write!(f, "container {ctid}"),
            Belongs::Unit(name) => f.write_str(name),
            Belongs::UserUnit { name, .. } => write!(f, "user service {name}"),
            Belongs::Session { id } => write!(f, "login session {id}"),
            Belongs::OtherSession { id, what } if what.is_empty() => write!(f, "login session {id}"),
            Belongs::OtherSession { id, what } => write!(f, "{what} session {id}"),
            Belongs::Docker(id) => write!(f, "Docker container {id:.12}"),
            Belongs::Podman(id) => write!(f, "Podman container {id:.12}"),
            Belongs::Unknown => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(ctid: &str, unit: Option<&str>) -> Belongs {
        Belongs::Container {
            ctid: ctid.to_owned(),
            unit: unit.map(str::to_owned),
        }
    }

    fn unit(name: &str) -> Belongs {
        Belongs::Unit(name.to_owned())
    }

    fn user_unit(uid: Option<u32>, name: &str) -> Belongs {
        Belongs::UserUnit {
            uid,
            name: name.to_owned(),
        }
    }

    #[test]
    fn cgroups_name_what_a_process_belongs_to() {
        let vm = |vmid: u32| Belongs::Vm(vmid.try_into().unwrap());
        let session = |id: &str| Belongs::OtherSession {
            id: id.to_owned(),
            what: String::new(),
        };
        for (cgroup, belongs, text) in [
            (
                "0::/lxc/104/ns/system.slice/ollama.service\n",
                container("104", Some("ollama.service")),
                "container 104",
            ),
            ("0::/lxc/104/ns/init.scope\n", container("104", None), "container 104"),
            ("0::/lxc/104\n", container("104", None), "container 104"),
            (
                "0::/lxc/104/ns/system.slice/docker-0123456789abcdef.scope\n",
                container("104", None),
                "container 104",
            ),
            (
                "0::/lxc/104/ns/user.slice/user-0.slice/user@0.service/app.slice/x.service\n",
                container("104", None),
                "container 104",
            ),
            (
                "0::/lxc/104/ns/lxc/200/ns/system.slice/x.service\n",
                container("104", None),
                "container 104",
            ),
            ("12:pids:/lxc/7\n", container("7", None), "container 7"),
            ("0::/lxc/web/system.slice/nginx.service\n", Belongs::Unknown, ""),
            // What somebody has made below their own says nothing.
            (
                "0::/user.slice/user-1000.slice/user@1000.service/qemu.slice/111.scope\n",
                user_unit(Some(1000), "111.scope"),
                "user service 111.scope",
            ),
            (
                "0::/system.slice/x.service/lxc/104/ns/init.scope\n",
                unit("x.service"),
                "x.service",
            ),
            (
                "0::/system.slice/x.service/nvidia-persistenced.service\n",
                unit("x.service"),
                "x.service",
            ),
            // Below a group that systemd has not made, or has given away, whoever is in it chooses the names.
            (
                "0::/docker/0123456789abcdef/system.slice/nvidia-persistenced.service\n",
                Belongs::Docker("0123456789abcdef".to_owned()),
                "Docker container 0123456789ab",
            ),
            (
                "0::/lxc.payload.web/system.slice/nvidia-persistenced.service\n",
                Belongs::Unknown,
                "",
            ),
            (
                "0::/machine.slice/machine-web.scope/payload/system.slice/nvidia-persistenced.service\n",
                Belongs::Unknown,
                "",
            ),
            (
                "0::/system.slice/run-u1.scope/nvidia-persistenced.service\n",
                Belongs::Unknown,
                "",
            ),
            ("0::/qemu.slice/111.scope\n", vm(111), "VM 111"),
            ("0::/qemu.slice/11.scope\n", Belongs::Unknown, ""),
            ("0::/qemu.slice/VM 111.scope\n", Belongs::Unknown, ""),
            ("0::/qemu.slice\n", Belongs::Unknown, ""),
            (
                "0::/system.slice/nvidia-persistenced.service\n",
                unit("nvidia-persistenced.service"),
                "nvidia-persistenced.service",
            ),
            // What a unit is called says nothing of VMs and containers.
            (
                "0::/system.slice/VM 111.service\n",
                unit("VM 111.service"),
                "VM 111.service",
            ),
            (
                "0::/system.slice/container 104.service\n",
                unit("container 104.service"),
                "container 104.service",
            ),
            (
                "0::/system.slice/docker-0123456789abcdef0123.scope\n",
                Belongs::Docker("0123456789abcdef0123".to_owned()),
                "Docker container 0123456789ab",
            ),
            (
                "0::/machine.slice/libpod-abc.scope/container\n",
                Belongs::Podman("abc".to_owned()),
                "Podman container abc",
            ),
            (
                "0::/user.slice/user-0.slice/session-3.scope\n",
                session("3"),
                "login session 3",
            ),
            (
                "0::/user.slice/user-1000.slice/user@1000.service/app.slice/session-3.scope\n",
                user_unit(Some(1000), "session-3.scope"),
                "user service session-3.scope",
            ),
            (
                "0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-abc.scope/container\n",
                user_unit(Some(1000), "libpod-abc.scope"),
                "user service libpod-abc.scope",
            ),
            ("0::/system.slice/session-3.scope\n", Belongs::Unknown, ""),
            (
                "0::/user.slice/user-1000.slice/user@1000.service/app.slice/pipewire.service\n",
                user_unit(Some(1000), "pipewire.service"),
                "user service pipewire.service",
            ),
            (
                "0::/user.slice/user-1000.slice/user@1000.service/tmux-spawn-1.scope\n",
                user_unit(Some(1000), "tmux-spawn-1.scope"),
                "user service tmux-spawn-1.scope",
            ),
            (
                "0::/user.slice/user-1000.slice/user@1000.service/a.service/b.service\n",
                user_unit(Some(1000), "a.service"),
                "user service a.service",
            ),
            (
                "0::/user.slice/user-1000.slice/user@1000.service/init.scope\n",
                unit("user@1000.service"),
                "user@1000.service",
            ),
            (
                "0::/user.slice/user@x.service/a.service\n",
                user_unit(None, "a.service"),
                "user service a.service",
            ),
            ("0::/\n", Belongs::Unknown, ""),
            ("", Belongs::Unknown, ""),
        ] {
            let found = Belongs::of_cgroup(cgroup);
            assert_eq!(found, belongs, "{cgroup:?}");
            assert_eq!(found.to_string(), text, "{cgroup:?}");
            // As between a worker and its parent.
            let json = serde_json::to_string(&found).unwrap();
            assert_eq!(serde_json::from_str::<Belongs>(&json).unwrap(), belongs, "{json}");
        }
    }

    #[test]
    fn a_session_is_at_a_prompt_where_logind_says_so() {
        for (file, namespace, belongs) in [
            (Some("CLASS=user\nTYPE=tty\n"), "pid:[1]", "login session 3"),
            (Some("CLASS=user\nTYPE=unspecified\n"), "pid:[1]", "login session 3"),
            (Some("CLASS=user\nTYPE=tty\n"), "pid:[2]", "container in session 3"),
            (
                Some("CLASS=user\nTYPE=wayland\nSERVICE=gdm-password\n"),
                "pid:[1]",
                "desktop session 3",
            ),
            (
                Some("CLASS=user\nTYPE=x11\nSERVICE=xrdp-sesman\n"),
                "pid:[1]",
                "graphical session 3",
            ),
            (Some("CLASS=user\nTYPE=x11\n"), "pid:[1]", "graphical session 3"),
            (Some("CLASS=greeter\nTYPE=x11\n"), "pid:[1]", "desktop session 3"),
            (
                Some("CLASS=background\nTYPE=unspecified\n"),
                "pid:[1]",
                "background session 3",
            ),
            (Some("CLASS=manager\nTYPE=unspecified\n"), "pid:[1]", "login session 3"),
            (None, "pid:[1]", "login session 3"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let put = |path: &str| {
                let path = dir.path().join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                path
            };
            std::fs::write(put("proc/900/cgroup"), "0::/user.slice/user-0.slice/session-3.scope\n").unwrap();
            std::os::unix::fs::symlink(namespace, put("proc/900/ns/pid")).unwrap();
            std::os::unix::fs::symlink("pid:[1]", put("proc/self/ns/pid")).unwrap();
            let manager = put("etc/systemd/system/display-manager.service");
            std::os::unix::fs::symlink("/lib/systemd/system/gdm3.service", manager).unwrap();
            if let Some(text) = file {
                std::fs::write(put("run/systemd/sessions/3"), text).unwrap();
            }
            let found = Belongs::of(&Root::at(dir.path()), 900);
            assert_eq!(found.to_string(), belongs, "{file:?}");
            let is_prompt = matches!(found, Belongs::Session { .. });
            let is_users =
                file.is_some_and(|text| text.starts_with("CLASS=user\nTYPE=tty") || text.contains("user\nTYPE=unsp"));
            assert_eq!(is_prompt, is_users && namespace == "pid:[1]", "{file:?}");
        }
    }
}
