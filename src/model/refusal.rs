//! Why there is no plan: the reasons, each a sentence with its remedy.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::base::pci::PciAddr;
use crate::base::text::{foreign, join};
use crate::host::belongs::Belongs;
use crate::host::holders::Holder;
use crate::host::nodes::Node;
use crate::host::usb::{How, InUse};
use crate::model::record::Owner;
use crate::proxmox::unreadable::Unreadable;

/// Why there is no plan: all reasons found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal(pub Vec<Reason>);

impl Refusal {
    /// The processes in the way, if they are all that is: they may let go in a moment.
    pub fn only_holders(&self) -> Option<Vec<i32>> {
        let pid = |reason: &Reason| match reason {
            Reason::Held { holder, .. } | Reason::Doubtful { holder, .. } | Reason::Ending(holder) => Some(holder.pid),
            _ => None,
        };
        self.0.iter().map(pid).collect()
    }

    /// The processes in the way, if all that is in the way is processes that are ending anyway.
    pub fn only_ending(&self) -> Option<Vec<i32>> {
        let pid = |reason: &Reason| match reason {
            Reason::Ending(holder) => Some(holder.pid),
            _ => None,
        };
        self.0.iter().map(pid).collect()
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [reason] => write!(f, "{reason}"),
            reasons => {
                write!(f, "{} reasons:", reasons.len())?;
                for (n, reason) in (1..).zip(reasons) {
                    write!(f, " ({n}) {reason}")?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for Refusal {}

impl From<Unreadable> for Reason {
    fn from(unreadable: Unreadable) -> Self {
        Reason::Other(unreadable.to_string())
    }
}

impl From<Unreadable> for Refusal {
    fn from(unreadable: Unreadable) -> Self {
        Reason::from(unreadable).into()
    }
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Refusal(vec![reason])
    }
}

/// One reason for a refusal. The text is a sentence with the remedy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// Refused before the host was looked at; the text says why.
    Other(String),
    /// Proxmox will not start the VM; its reason.
    ProxmoxRefuses(String),
    /// No IOMMU.
    IommuOff,
    /// The function has no IOMMU group.
    NoGroup(PciAddr),
    /// The function is not there (any more).
    Absent(PciAddr),
    /// The function does not answer.
    Gone(PciAddr),
    /// A call on this function is stuck in the kernel.
    Stuck(PciAddr),
    /// The function is split, or is a part of a split one: SR-IOV, MIG.
    Split {
        /// The function.
        addr: PciAddr,
        /// How it is split, and the remedy.
        how: String,
    },
    /// The group is one of VFIO's unsafe mode.
    NoIommuGroup(PciAddr),
    /// The start is for a backup of the stopped VM, and something speaks against it.
    Backup(String),
    /// The group has a member that is not of the card and was not given to the VM.
    Stranger {
        /// The card's function.
        of: PciAddr,
        /// The member.
        stranger: PciAddr,
        /// Its driver.
        driver: Option<String>,
        /// The group.
        group: u32,
    },
    /// A process uses the device.
    Held {
        /// The process.
        holder: Box<Holder>,
        /// Which of its nodes are in the way.
        nodes: Vec<Node>,
    },
    /// A process has a node open from which it cannot be told which GPU it uses.
    Doubtful {
        /// The process.
        holder: Box<Holder>,
        /// Which nodes.
        nodes: Vec<Node>,
    },
    /// A process that is ending, and what it still closes cannot be seen.
    Ending(Box<Holder>),
    /// The host uses what hangs below the card's USB controller.
    UsbInUse(InUse),
    /// Processes that could not be looked into.
    Unreadable(Vec<i32>),
    /// A module is in use and no process accounts for it.
    ModuleInUse {
        /// The module.
        name: String,
        /// References that no module and no process accounts for.
        refs: u32,
    },
    /// The GPU would leave by an unbind, of a driver whose unbind must not meet a user.
    OneShot {
        /// The driver's version.
        version: String,
        /// The functions that stay on it; none where the settings ask for the unbind.
        staying: Vec<PciAddr>,
    },
    /// The settings ask for an unload, and some GPUs stay on the driver.
    UnloadAsked {
        /// The GPUs that stay.
        staying: Vec<PciAddr>,
    },
    /// A module that is needed, on the way home or for the guest, cannot be loaded.
    CannotLoad {
        /// The modules.
        modules: Vec<String>,
        /// Why.
        why: String,
    },
    /// A device of the VM shares its group with a GPU that the VM was not given.
    GpuInGroup {
        /// The VM's device.
        of: PciAddr,
        /// The GPU.
        gpu: PciAddr,
        /// The group.
        group: u32,
    },
    /// Another handoff has the device.
    Taken {
        /// The function.
        addr: PciAddr,
        /// Whose it is.
        owner: Owner,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Other(text) => f.write_str(text),
            Reason::ProxmoxRefuses(why) => write!(
                f,
                "Proxmox will not start this VM: {why}. Hint: see its hostpci lines with 'qm config', and \
                 'gpu-handoff status' for who has what"
            ),
            Reason::IommuOff => write!(
                f,
                "the IOMMU is off, so that no device can be given to a guest. Hint: turn on VT-d (Intel) or AMD-Vi, \
                 also called IOMMU (AMD), in the firmware setup; on Intel add intel_iommu=on to the kernel command \
                 line as well, on AMD see that amd_iommu=off is not there; then reboot"
            ),
            Reason::NoGroup(addr) => write!(
                f,
                "{addr} has no IOMMU group and cannot be given to a guest. Hint: see 'dmesg | grep -i -e DMAR -e \
                 AMD-Vi' for what the kernel made of the IOMMU"
            ),
            Reason::Absent(addr) => write!(
                f,
                "{addr} is not there. Hint: compare 'lspci' with the VM's hostpci lines"
            ),
            Reason::Gone(addr) => write!(
                f,
                "{addr} does not answer any more (its config space reads all ones): it has fallen off the bus or has no \
                 power. Hint: see 'journalctl -k' for when that happened; a power cycle brings it back, a reboot may not"
            ),
            Reason::Stuck(addr) => write!(
                f,
                "a call on {addr} is stuck in the kernel, and every other one would be too. Hint: end the process \
                 that 'gpu-handoff status' names; if that does not help, sync and power-cycle (a reboot will hang)"
            ),
            Reason::Split { addr, how } => write!(f, "{addr} {how}"),
            Reason::NoIommuGroup(addr) => write!(
                f,
                "{addr} is in a group of VFIO's unsafe no-IOMMU mode, which gives a guest the host's memory. Hint: turn \
                 the IOMMU on instead of vfio's enable_unsafe_noiommu_mode"
            ),
            Reason::Backup(why) => write!(
                f,
                "this start is for a backup of the stopped VM, which fails with it ({why}). Hint: 'on-backup' in \
                 /etc/gpu-handoff/config.toml decides, also for one VM; a backup of the running VM starts nothing"
            ),
            Reason::Stranger {
                of,
                stranger,
                driver,
                group,
            } => write!(
                f,
                "IOMMU group {group} of {of} also has {stranger} ({}), which is not of this card and would leave the \
                 host with it. Hint: put the card into a slot with a group of its own, or give {stranger} to the VM \
                 as well",
                driver.as_deref().unwrap_or("no driver")
            ),
            Reason::Held { holder, nodes } => write!(
                f,
                "{} is in use by {}. Hint: {}",
                join(nodes),
                describe(holder),
                remedy(holder)
            ),
            Reason::Doubtful { holder, nodes } => write!(
                f,
                "{} is open in {}, and nothing shows that it uses another GPU. Hint: {}",
                join(nodes),
                describe(holder),
                remedy(holder)
            ),
            Reason::Ending(holder) => write!(
                f,
                "{} is ending and may not have let go of the device yet. Hint: try again when it has gone; if it stays, \
                 see 'journalctl -k' for what holds it up",
                describe(holder)
            ),
            Reason::UsbInUse(below) => {
                let (how, hint) = usb_use(below);
                write!(
                    f,
                    "{} hangs below the card's USB controller {} and {how}: it would be torn away. Hint: {hint}, or plug it \
                     in elsewhere",
                    foreign(&below.name),
                    below.of
                )
            }
            Reason::Unreadable(pids) => write!(
                f,
                "what process {} has open could not be read, so nobody knows whether the GPU is free. Hint: run as \
                 root, outside a container",
                join(pids)
            ),
            Reason::ModuleInUse { name, refs } => write!(
                f,
                "module {name} is in use ({refs} more than its other modules and processes account for), most likely \
                 by the console. Hint: find the 'frame buffer device' among /sys/class/vtconsole/*/name and write 0 \
                 to its 'bind'"
            ),
            Reason::OneShot { version, staying } if staying.is_empty() => write!(
                f,
                "'way' is \"unbind\", and an unbind by driver {version} never ends if anybody turns out to use the GPU. \
                 Hint: set 'way' to \"auto\" in /etc/gpu-handoff/config.toml"
            ),
            Reason::OneShot { version, staying } => write!(
                f,
                "an unbind by driver {version} never ends if anybody turns out to use the GPU, and the driver cannot be \
                 unloaded while {} stays on it. Hint: give the VM all GPUs of the driver, or use a driver before 595",
                join(staying)
            ),
            Reason::UnloadAsked { staying } => write!(
                f,
                "'way' is \"unload\", and {} stays on the driver. Hint: set 'way' to \"auto\" in \
                 /etc/gpu-handoff/config.toml, or give the VM that GPU as well",
                join(staying)
            ),
            Reason::CannotLoad { modules, why } => {
                let (then, hint) = if modules.iter().any(|m| m == "vfio_pci") {
                    ("no guest can have the GPU", "see 'modprobe --show-depends vfio_pci'")
                } else if why.contains("modprobe.d forbids") {
                    ("the GPU would not come back", "remove that line from /etc/modprobe.d")
                } else if why.contains("signature") {
                    (
                        "the GPU would not come back",
                        "sign them (for dkms: enrol its key with mokutil), or turn Secure Boot off",
                    )
                } else {
                    (
                        "the GPU would not come back",
                        "build them for the running kernel ('dkms autoinstall'), or boot the kernel they were built for",
                    )
                };
                let word = if modules.len() == 1 { "module" } else { "modules" };
                write!(
                    f,
                    "{word} {} cannot be loaded: {why}; without it {then}. Hint: {hint}",
                    join(modules)
                )
            }
            Reason::GpuInGroup { of, gpu, group } => write!(
                f,
                "IOMMU group {group} of {of}, which the VM is given, also has the GPU {gpu}: Proxmox would take it off \
                 its driver without looking who uses it. Hint: give the GPU to the VM as well, or put one of them \
                 into another slot"
            ),
            Reason::Taken { addr, owner } => write!(
                f,
                "{addr} is taken already ({owner}). Hint: 'gpu-handoff status' shows who has what, 'gpu-handoff \
                 to_nvidia' brings it home"
            ),
        }
    }
}

/// A process, for a sentence.
pub fn describe(holder: &Holder) -> String {
    let belongs = match &holder.belongs_to {
        Belongs::Unknown => String::new(),
        belongs => format!(", {}", foreign(&belongs.to_string())),
    };
    format!("process {} ({}{belongs})", holder.pid, foreign(&holder.comm))
}

/// How something below a USB controller is used, and what ends that.
fn usb_use(below: &InUse) -> (String, String) {
    let name = foreign(&below.name);
    match &below.how {
        // A label that somebody gave the disk may have become a part of the place: no command repeats it.
        How::Mounted(target) => (
            format!("is mounted on {}", foreign(target)),
            format!("umount /dev/{name}"),
        ),
        How::Swap => ("is swapped to".to_owned(), format!("swapoff /dev/{name}")),
        How::PartOf(others) => {
            let others = foreign(&join(others));
            (format!("is a part of {others}"), format!("see 'lsblk /dev/{name}'"))
        }
        How::Btrfs => (
            "is a part of a btrfs file system that is mounted".to_owned(),
            "see 'btrfs filesystem show' and unmount it".to_owned(),
        ),
        How::Zfs(pool) => {
            let pool = foreign(pool);
            (
                format!("is a part of the ZFS pool {pool}"),
                format!("zpool export {pool}"),
            )
        }
        How::Up => (
            "is a network interface that is up".to_owned(),
            format!("ip link set {name} down"),
        ),
    }
}

/// What a person does about a holder.
fn remedy(holder: &Holder) -> String {
    let untouchable = ["pvedaemon.service", "systemd-logind.service", "dbus.service"];
    match &holder.belongs_to {
        Belongs::Container { ctid, .. } => format!("pct shutdown {ctid}"),
        Belongs::Vm(vmid) => format!("qm shutdown {vmid}"),
        Belongs::UserUnit { name, .. } => format!("systemctl --user stop {} as that user", foreign(name)),
        Belongs::Unit(name) if !untouchable.contains(&name.as_str()) => format!("systemctl stop {}", foreign(name)),
        _ => "end that process, then start again".to_owned(),
    }
}
