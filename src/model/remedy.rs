//! What can be done about a reason to refuse: the same value that the text after "Hint:" is made from.

use std::borrow::Cow;
use std::fmt;

use crate::base::text::{foreign, in_toml, typed};
use crate::base::vmid::VmId;
use crate::host::belongs::Belongs;
use crate::host::holders::Holder;
use crate::host::nodes::Node;
use crate::host::unit_names::can_be_stopped;
use crate::host::units::Unit;
use crate::host::usb::{How, InUse};
use crate::settings::values::Processes;

/// The unit that no Proxmox host should be without: what is of it is ended by itself.
const NEVER_STOPPED: &str = "pvedaemon.service";

/// Units that hold a display device for a login session: logind opens it, keeps a descriptor (sd_pid_notify_with_fds, its
/// store), and hands the session's program another one over the bus (systemd, src/login/logind-session-device.c;
/// org.freedesktop.login1, TakeDevice). It is closed when the session ends; to stop one of these ends every session, and
/// no host should be without it.
const FOR_A_SESSION: [&str; 3] = ["systemd-logind.service", "dbus.service", "dbus-broker.service"];

/// What can be done. The names in it are foreign text as found; they are made harmless where they are shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Shut a container down, by its number in digits.
    StopContainer(String),
    /// Stop a unit inside a container, or a container of Docker's or Podman's, or allow it to be stopped for a handoff.
    StopInside(Unit),
    /// Shut a container of Proxmox's down, or allow it to be shut down for a handoff.
    StopWhole(Unit),
    /// Stop the display manager, or allow it to be stopped for a handoff.
    StopDesktop,
    /// Shut a VM down.
    StopVm(VmId),
    /// Stop a unit of the system's systemd.
    StopUnit(String),
    /// Stop such a unit, or allow it to be stopped for a handoff.
    StopService(String),
    /// Stop such a unit of a user's systemd, or allow it to be stopped for a handoff.
    StopUserService(Unit),
    /// Have NVIDIA's MPS end, which computes for others; by this word in 'services' it is stopped, where it is a service.
    QuitMps(Option<String>),
    /// Stop a unit of a user's systemd.
    StopUserUnit {
        /// The user, where that is known.
        uid: Option<u32>,
        /// The unit.
        name: String,
    },
    /// End the login session that a device is held for: of this user, where that is known.
    EndLogin(Option<u32>),
    /// End a process that nothing looks after, or that belongs to what must go on.
    EndProcess(i32),
    /// The same, or allow it to be ended for a handoff.
    EndUser(i32),
    /// Let a setting take the risk that a process uses the GPU, or do this.
    AcceptDoubt(Option<Box<Remedy>>),
    /// Wait for a process that is ending.
    AwaitEnd(i32),
    /// End the host's use of what hangs below a card's USB controller, or plug it in elsewhere.
    FreeUsb(InUse),
    /// Only a person can do it, or has to look first.
    Person(Cow<'static, str>),
}

impl Remedy {
    /// What makes a holder let go.
    pub fn of_holder(holder: &Holder) -> Remedy {
        match &holder.belongs_to {
            Belongs::Container { ctid, .. } => Remedy::StopContainer(ctid.clone()),
            Belongs::Vm(vmid) => Remedy::StopVm(*vmid),
            Belongs::UserUnit { uid, name } if FOR_A_SESSION.contains(&name.as_str()) => Remedy::EndLogin(*uid),
            Belongs::Unit(name) if FOR_A_SESSION.contains(&name.as_str()) => Remedy::EndLogin(None),
            Belongs::UserUnit { uid, name } => Remedy::StopUserUnit {
                uid: *uid,
                name: name.clone(),
            },
            Belongs::Unit(name) if name != NEVER_STOPPED => Remedy::StopUnit(name.clone()),
            Belongs::Unit(_)
            | Belongs::Session { .. }
            | Belongs::OtherSession { .. }
            | Belongs::Docker(_)
            | Belongs::Podman(_)
            | Belongs::Unknown => Remedy::EndProcess(holder.pid),
        }
    }

    /// What makes the user of a GPU let go that is to leave, by these nodes: a setting may have that done. One that only draws
    /// may draw on a GPU that stays, and is nobody's to end.
    pub fn of_user(holder: &Holder, nodes: &[Node]) -> Remedy {
        let draws = nodes.iter().all(|node| matches!(node, Node::Drm(_)));
        match Remedy::of_suspect(holder) {
            Remedy::EndProcess(pid) if Processes::can_end(holder) && !draws => Remedy::EndUser(pid),
            remedy => remedy,
        }
    }

    /// What makes one let go that may use the GPU or another one: its service may be stopped for that.
    pub fn of_suspect(holder: &Holder) -> Remedy {
        if is_mps(holder) {
            let unit = Unit::of(holder).filter(|unit| can_be_stopped(&unit.name()));
            return Remedy::QuitMps(unit.and_then(|unit| unit.word()));
        }
        match Remedy::of_holder(holder) {
            Remedy::StopUnit(name) if can_be_stopped(&name) => Remedy::StopService(name),
            Remedy::EndProcess(_) if holder.belongs_to.is_desktop() => Remedy::StopDesktop,
            remedy => match Unit::of(holder) {
                Some(unit @ (Unit::Inside { .. } | Unit::Run { .. })) => Remedy::StopInside(unit),
                Some(unit @ Unit::Whole { .. }) => Remedy::StopWhole(unit),
                Some(unit @ Unit::OfUser { .. }) if matches!(remedy, Remedy::StopUserUnit { .. }) => {
                    Remedy::StopUserService(unit)
                }
                _ => remedy,
            },
        }
    }
}

/// Whether it is of NVIDIA's MPS, of the host: its server has the GPUs for those that compute through it, and its control daemon
/// is called the same, in the length that the kernel keeps of a name (docs.nvidia.com/deploy/mps, nvidia-cuda-mps-server).
fn is_mps(holder: &Holder) -> bool {
    let is_of_host = matches!(
        holder.belongs_to,
        Belongs::Unit(_)
            | Belongs::UserUnit { .. }
            | Belongs::Session { .. }
            | Belongs::OtherSession { .. }
            | Belongs::Unknown
    );
    is_of_host && holder.comm == "nvidia-cuda-mps"
}

impl From<&'static str> for Remedy {
    fn from(text: &'static str) -> Self {
        Remedy::Person(Cow::Borrowed(text))
    }
}

impl From<String> for Remedy {
    fn from(text: String) -> Self {
        Remedy::Person(Cow::Owned(text))
    }
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Remedy::StopContainer(ctid) => write!(f, "pct shutdown {ctid}"),
            Remedy::StopInside(unit) => write!(
                f,
                "{}, or containers = \"release\" in /etc/gpu-handoff/config.toml: then that is done for you, and it is \
                 started again when the GPU is home{}",
                unit.by_hand("stop"),
                if unit.is_container() { "" } else { ", while the container goes on" }
            ),
            Remedy::StopWhole(unit) => write!(
                f,
                "{}, or containers = \"shutdown\" in /etc/gpu-handoff/config.toml: then that is done for you, and it is \
                 started again when the GPU is home",
                unit.by_hand("stop")
            ),
            Remedy::StopDesktop => f.write_str(
                "systemctl stop display-manager, or display-manager = \"stop\" in /etc/gpu-handoff/config.toml: then that is \
                 done for you, and it is started again when the GPU is home",
            ),
            Remedy::StopVm(vmid) => write!(f, "qm shutdown {vmid}"),
            Remedy::StopUnit(name) => write!(f, "systemctl stop {}", typed(name)),
            Remedy::StopService(name) => write!(
                f,
                "systemctl stop {}, or services = {} in /etc/gpu-handoff/config.toml: then that is done for you, and it \
                 is started again when the GPU is home",
                typed(name),
                in_toml(name)
            ),
            Remedy::StopUserService(unit) => write!(
                f,
                "systemctl --user stop {} as that user, or services = {} in /etc/gpu-handoff/config.toml: then that is \
                 done for you, and it is started again when the GPU is home",
                typed(&unit.name()),
                in_toml(&unit.word().unwrap_or_default())
            ),
            Remedy::QuitMps(word) => {
                f.write_str(
                    "it is NVIDIA's MPS, which computes for others: when it has no clients, 'echo quit | \
                     nvidia-cuda-mps-control' as the user who has started it, then start again",
                )?;
                let Some(word) = word else { return Ok(()) };
                write!(
                    f,
                    "; or services = {} in /etc/gpu-handoff/config.toml: then it is stopped for you, whoever computes \
                     through it, and is started again when the GPU is home",
                    in_toml(word)
                )
            }
            Remedy::StopUserUnit { name, .. } => write!(f, "systemctl --user stop {} as that user", typed(name)),
            Remedy::EndLogin(Some(uid)) => write!(
                f,
                "it is held for a login session of user {uid}: loginctl terminate-user {uid}, then start again"
            ),
            Remedy::EndLogin(None) => write!(
                f,
                "it is held for a login session: find that in 'loginctl list-sessions' (the one with a seat) and end it by \
                 'loginctl terminate-session' with its number, then start again"
            ),
            // The process is named right before it.
            Remedy::EndProcess(_) => write!(f, "end that process, then start again"),
            Remedy::EndUser(_) => write!(
                f,
                "end that process, then start again, or processes = \"terminate\" in /etc/gpu-handoff/config.toml: then it is \
                 asked to end for you"
            ),
            Remedy::AcceptDoubt(ends) => {
                if let Some(ends) = ends {
                    write!(f, "{ends}; or ")?;
                }
                f.write_str(
                    "take the risk with doubt = \"go-on\" in /etc/gpu-handoff/config.toml: it is left alone, and if it does use \
                     the GPU, the unbind waits until it lets go",
                )
            }
            Remedy::AwaitEnd(_) => write!(
                f,
                "try again when it has gone; if it stays, see 'journalctl -k' for what holds it up"
            ),
            Remedy::FreeUsb(below) => {
                let name = foreign(&below.name);
                match &below.how {
                    // A label that somebody gave the disk may have become a part of the place: no command repeats it.
                    How::Mounted(_) => write!(f, "umount /dev/{name}")?,
                    How::Swap => write!(f, "swapoff /dev/{name}")?,
                    How::PartOf(_) => write!(f, "see 'lsblk /dev/{name}'")?,
                    How::Btrfs => write!(f, "see 'btrfs filesystem show' and unmount it")?,
                    How::Zfs(pool) => write!(f, "zpool export {}", typed(pool))?,
                    How::Up => write!(f, "ip link set {name} down")?,
                }
                write!(f, ", or plug it in elsewhere")
            }
            Remedy::Person(text) => f.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_is_stopped_by_what_looks_after_it_or_ended_itself() {
        let unit = |name: &str| Belongs::Unit(name.to_owned());
        let end = || Remedy::EndProcess(7);
        let ended = "end that process, then start again";
        let login = "it is held for a login session: find that in 'loginctl list-sessions' (the one with a seat) and end it \
                     by 'loginctl terminate-session' with its number, then start again";
        let vmid: VmId = "111".parse().unwrap();
        let long = format!("{}.service", "x".repeat(70));
        for (belongs_to, remedy, text) in [
            (
                Belongs::Container {
                    ctid: "104".to_owned(),
                    unit: Some("ollama.service".to_owned()),
                },
                Remedy::StopContainer("104".to_owned()),
                "pct shutdown 104".to_owned(),
            ),
            (Belongs::Vm(vmid), Remedy::StopVm(vmid), "qm shutdown 111".to_owned()),
            (
                unit("ollama.service"),
                Remedy::StopUnit("ollama.service".to_owned()),
                "systemctl stop ollama.service".to_owned(),
            ),
            (
                unit("VM 111.service"),
                Remedy::StopUnit("VM 111.service".to_owned()),
                "systemctl stop 'VM 111.service'".to_owned(),
            ),
            (
                unit("a\u{202e}b.service"),
                Remedy::StopUnit("a\u{202e}b.service".to_owned()),
                "systemctl stop 'a\\u{202e}b.service'".to_owned(),
            ),
            (
                unit(&long),
                Remedy::StopUnit(long.clone()),
                format!("systemctl stop {long}"),
            ),
            (unit("pvedaemon.service"), end(), ended.to_owned()),
            (unit("systemd-logind.service"), Remedy::EndLogin(None), login.to_owned()),
            (unit("dbus.service"), Remedy::EndLogin(None), login.to_owned()),
            (unit("dbus-broker.service"), Remedy::EndLogin(None), login.to_owned()),
            (
                Belongs::UserUnit {
                    uid: Some(1000),
                    name: "dbus-broker.service".to_owned(),
                },
                Remedy::EndLogin(Some(1000)),
                "it is held for a login session of user 1000: loginctl terminate-user 1000, then start again"
                    .to_owned(),
            ),
            (
                Belongs::UserUnit {
                    uid: Some(1000),
                    name: "pipewire.service".to_owned(),
                },
                Remedy::StopUserUnit {
                    uid: Some(1000),
                    name: "pipewire.service".to_owned(),
                },
                "systemctl --user stop pipewire.service as that user".to_owned(),
            ),
            (
                // A user may call a group below his systemd's as he likes, and root is told this.
                Belongs::UserUnit {
                    uid: Some(1000),
                    name: "x;reboot 'now';.service".to_owned(),
                },
                Remedy::StopUserUnit {
                    uid: Some(1000),
                    name: "x;reboot 'now';.service".to_owned(),
                },
                r"systemctl --user stop 'x;reboot '\''now'\'';.service' as that user".to_owned(),
            ),
            (Belongs::Session { id: "3".to_owned() }, end(), ended.to_owned()),
            (Belongs::Docker("abc".to_owned()), end(), ended.to_owned()),
            (Belongs::Podman("abc".to_owned()), end(), ended.to_owned()),
            (Belongs::Unknown, end(), ended.to_owned()),
        ] {
            let holder = Holder {
                pid: 7,
                comm: "python3".to_owned(),
                belongs_to,
                nodes: Vec::new(),
            };
            let found = Remedy::of_holder(&holder);
            assert_eq!(found, remedy, "{holder:?}");
            assert_eq!(found.to_string(), text, "{holder:?}");
        }
    }

    #[test]
    fn what_hangs_below_usb_is_let_go_by_the_command_for_its_use() {
        for (name, how, text) in [
            ("sdb1", How::Mounted("/mnt/$(label)".to_owned()), "umount /dev/sdb1"),
            ("sdb1", How::Swap, "swapoff /dev/sdb1"),
            ("sdb", How::PartOf(vec!["dm-0".to_owned()]), "see 'lsblk /dev/sdb'"),
            ("sdb", How::Btrfs, "see 'btrfs filesystem show' and unmount it"),
            ("sdb", How::Zfs("tank".to_owned()), "zpool export tank"),
            ("enx0", How::Up, "ip link set enx0 down"),
        ] {
            let below = InUse {
                of: "0000:01:00.2".parse().unwrap(),
                name: name.to_owned(),
                how,
            };
            assert_eq!(
                Remedy::FreeUsb(below).to_string(),
                format!("{text}, or plug it in elsewhere")
            );
        }
    }
}
