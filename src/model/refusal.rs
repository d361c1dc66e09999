//! Why there is no plan: the reasons, each a sentence with its remedy.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::base::pci::PciAddr;
use crate::base::text::{are, foreign, join};
use crate::host::belongs::Belongs;
use crate::host::holders::{Holder, Unseen};
use crate::host::modules::Problem;
use crate::host::nodes::Node;
use crate::host::unit_states::Kept;
use crate::host::units::Unit;
use crate::host::usb::InUse;
use crate::model::claim::Claim;
use crate::model::doubt::{self, Risk};
use crate::model::hang::{self, Hang};
use crate::model::particulars::{cannot_load, kept, never_ends, not_seen, not_understood, usb_use};
use crate::model::record::Owner;
use crate::model::remedy::Remedy;
use crate::proxmox::unreadable::Unreadable;

/// Why there is no plan: all reasons found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal(pub Vec<Reason>);

impl Refusal {
    /// The processes in the way, if they are all that is, but for why: they may let go in a moment. Without a number: one that
    /// opened something between the look through all processes and the reading of the driver's counts.
    pub fn only_holders(&self) -> Option<Vec<i32>> {
        let mut pids = Vec::new();
        for reason in &self.0 {
            match (reason.holder(), reason) {
                (Some(holder), _) => pids.push(holder.pid),
                (None, Reason::Uncounted { .. } | Reason::ModuleInUse { .. } | Reason::Reloaded { .. }) => {}
                (None, Reason::Kept { why, .. }) if why.may_pass() => {}
                (None, _) => return None,
            }
        }
        Some(pids)
    }

    /// Whether a VM's own QEMU is in the way.
    pub fn is_by(&self, owner: Owner) -> bool {
        let is_its = |h: &Holder| matches!(h.belongs_to, Belongs::Vm(vmid) if Owner::Vm(vmid) == owner);
        self.0.iter().filter_map(Reason::holder).any(is_its)
    }

    /// The processes in the way, if all that is in the way is processes that are ending anyway.
    pub fn only_ending(&self) -> Option<Vec<i32>> {
        let is_ending = |r: &&Reason| matches!(r, Reason::Ending(_));
        let pid = |r: &Reason| Some(r).filter(is_ending)?.holder().map(|h| h.pid);
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

/// How a function is split, or of which one it is a part: taking it would destroy what others use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Split {
    /// It has so many virtual functions (SR-IOV).
    IntoVirtualFunctions(u32),
    /// It is a virtual function of this one.
    VirtualFunctionOf(PciAddr),
    /// It has so many mediated devices.
    IntoMediatedDevices(usize),
    /// Into instances of NVIDIA's MIG.
    Mig,
}

/// One reason for a refusal. The text is a sentence with the remedy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// What is said in one place of the code alone; the text has its remedy in it.
    Other(String),
    /// A line of Proxmox's that is not understood and may give the VM a GPU.
    NotUnderstood {
        /// Where it stands: file and line, or the mapping.
        at: String,
        /// What it is about: `hostpciN`, or a line of a mapping.
        what: String,
        /// Why.
        why: String,
    },
    /// There is no room for the record of a handoff; why.
    NoRoom(String),
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
    /// A call of somebody else's holds a function, or may do so.
    Hangs(Box<Hang>),
    /// The kernel gave no answer about these functions.
    Silent(Vec<PciAddr>),
    /// Another run is at work on these functions at this moment.
    AtWork {
        /// The functions.
        addrs: Vec<PciAddr>,
        /// Who, at what, for how long.
        run: String,
    },
    /// A run that was killed has left an act to be finished, and it is not over.
    LeftAtWork {
        /// The functions.
        addrs: Vec<PciAddr>,
        /// The act, for how long, and which process groups are at it.
        what: String,
    },
    /// The function is split, or is a part of a split one: SR-IOV, MIG.
    Split {
        /// The function.
        addr: PciAddr,
        /// How it is split.
        how: Split,
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
        /// What comes of it if it uses the one that leaves.
        risk: Risk,
    },
    /// A unit that the settings would have stopped, and that cannot be.
    Kept {
        /// Which.
        unit: Unit,
        /// Why not.
        why: Kept,
    },
    /// A process that is ending, and what it still closes cannot be seen.
    Ending(Box<Holder>),
    /// The host uses what hangs below the card's USB controller.
    UsbInUse(InUse),
    /// Processes that could not be looked into, or not wholly.
    Unseen(Vec<Unseen>),
    /// A module of NVIDIA's or of the sound cards is in use beyond what its other modules and the processes that were seen account for.
    Uncounted {
        /// The module.
        name: String,
        /// References that are left.
        refs: u32,
    },
    /// The kernel says that a VFIO group is held, and no process is seen to.
    GroupHeld(u32),
    /// A module is in use and no process accounts for it.
    ModuleInUse {
        /// The module.
        name: String,
        /// References that no module and no process accounts for.
        refs: u32,
    },
    /// The settings ask for an unbind, of a driver whose unbind must not meet a user.
    OneShot {
        /// The driver's version; empty where it is not known, which counts as such a driver.
        version: String,
    },
    /// Such a driver is unloaded and loaded again, and somebody uses it.
    Reloaded {
        /// As before.
        version: String,
        /// The functions that stay on it.
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
        why: Problem,
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
    /// Somebody who is not gone has the functions, or is about to get them.
    Claimed {
        /// The functions.
        addrs: Vec<PciAddr>,
        /// Who, and how.
        claim: Claim,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.said() {
            (fact, Some(remedy)) => write!(f, "{fact}. Hint: {remedy}"),
            (fact, None) => f.write_str(&fact),
        }
    }
}

impl Reason {
    /// The process in the way, where that is what it says.
    fn holder(&self) -> Option<&Holder> {
        match self {
            Reason::Held { holder, .. } | Reason::Doubtful { holder, .. } | Reason::Ending(holder) => Some(holder),
            _ => None,
        }
    }

    /// What is the matter, without what can be done about it.
    pub fn fact(&self) -> String {
        self.said().0
    }

    /// What can be done about it; None where the text has it in it already.
    pub fn remedy(&self) -> Option<Remedy> {
        self.said().1
    }

    /// Both halves of the sentence.
    fn said(&self) -> (String, Option<Remedy>) {
        let (fact, remedy) = match self {
            Reason::Other(text) => return (text.clone(), None),
            Reason::NotUnderstood { at, what, why } => not_understood(at, what, why),
            Reason::NoRoom(why) => (
                format!("the record of what leaves cannot be kept in /run/gpu-handoff: {why}"),
                "see 'df /run' for how full it is and 'du -x /run' for what fills it, or 'findmnt -T /run/gpu-handoff' \
                 for whether it can be written"
                    .into(),
            ),
            Reason::ProxmoxRefuses(why) => (
                format!("Proxmox will not start this VM: {why}"),
                "see its hostpci lines with 'qm config', and 'gpu-handoff status' for who has what".into(),
            ),
            Reason::IommuOff => (
                "the IOMMU is off, so that no device can be given to a guest".to_owned(),
                "turn on VT-d (Intel) or AMD-Vi, also called IOMMU (AMD), in the firmware setup; on Intel add \
                 intel_iommu=on to the kernel command line as well, on AMD see that amd_iommu=off is not there; then \
                 reboot"
                    .into(),
            ),
            Reason::NoGroup(addr) => (
                format!("{addr} has no IOMMU group and cannot be given to a guest"),
                "see 'dmesg | grep -i -e DMAR -e AMD-Vi' for what the kernel made of the IOMMU".into(),
            ),
            Reason::Absent(addr) => (
                format!("{addr} is not there"),
                "compare 'lspci' with the VM's hostpci lines".into(),
            ),
            Reason::Gone(addr) => (
                format!(
                    "{addr} does not answer any more (its config space reads all ones): it has fallen off the bus or has \
                     no power"
                ),
                "see 'journalctl -k' for when that happened; a power cycle brings it back, a reboot may not".into(),
            ),
            Reason::Stuck(addr) => (
                format!("a call on {addr} is stuck in the kernel, and every other one would be too"),
                "end the process that 'gpu-handoff status' names; if that does not help, sync and power-cycle (a reboot \
                 will hang)"
                    .into(),
            ),
            Reason::Hangs(hang) => hang.said(),
            Reason::Silent(addrs) => (
                format!(
                    "the kernel gives no answer about {}: it waits for the device, as it does for up to a minute after a \
                     reset",
                    join(addrs)
                ),
                "try again in a minute; if it stays so, see 'journalctl -k' for what holds it up".into(),
            ),
            Reason::AtWork { addrs, run } => (
                format!("another run is at work on {}: {run}", join(addrs)),
                "wait until it has ended; 'gpu-handoff status' shows how far it is".into(),
            ),
            Reason::LeftAtWork { addrs, what } => (
                format!("what a run that was killed was at is not over yet on {}: {what}", join(addrs)),
                "wait until it is over; 'gpu-handoff recover' does so, and brings the GPU home".into(),
            ),
            Reason::Split { addr, how } => split(*addr, how),
            Reason::NoIommuGroup(addr) => (
                format!(
                    "{addr} is in a group of VFIO's unsafe no-IOMMU mode, which gives a guest the host's memory"
                ),
                "turn the IOMMU on instead of vfio's enable_unsafe_noiommu_mode".into(),
            ),
            Reason::Backup(why) => (
                format!("this start is for a backup of the stopped VM, which fails with it ({why})"),
                "'on-backup' in /etc/gpu-handoff/config.toml decides, also for one VM; a backup of the running VM starts \
                 nothing"
                    .into(),
            ),
            Reason::Stranger {
                of,
                stranger,
                driver,
                group,
            } => (
                format!(
                    "IOMMU group {group} of {of} also has {stranger} ({}), which is not of this card and would leave \
                     the host with it",
                    driver.as_deref().unwrap_or("no driver")
                ),
                format!("put the card into a slot with a group of its own, or give {stranger} to the VM as well").into(),
            ),
            Reason::Held { holder, nodes } => (
                format!("{} is in use by {}", join(nodes), describe(holder)),
                Remedy::of_user(holder, nodes),
            ),
            Reason::Doubtful { holder, nodes, risk } => doubt::said(&describe(holder), holder, nodes, *risk),
            Reason::Kept { unit, why } => kept(unit, why),
            Reason::Ending(holder) => (
                format!(
                    "{} is ending and may not have let go of the device yet",
                    describe(holder)
                ),
                Remedy::AwaitEnd(holder.pid),
            ),
            Reason::UsbInUse(below) => (
                format!(
                    "{} hangs below the card's USB controller {} and {}: it would be torn away",
                    foreign(&below.name),
                    below.of,
                    usb_use(&below.how)
                ),
                Remedy::FreeUsb(below.clone()),
            ),
            Reason::Unseen(unseen) => not_seen(unseen),
            Reason::Uncounted { name, refs } => (
                format!(
                    "module {name} is in use beyond what can be seen ({refs} more than its other modules and all processes \
                     account for): a descriptor on its way between processes, in an io_uring, or behind a shared buffer"
                ),
                "end what uses NVIDIA's driver in other ways than by an open file (GPUDirect, NCCL, a compositor), or set \
                 'doubt' to \"go-on\" in /etc/gpu-handoff/config.toml"
                    .into(),
            ),
            Reason::GroupHeld(group) => (
                format!("/dev/vfio/{group} is held, and no process is seen to hold it: one that is ending, most likely"),
                "see 'ps ax | grep \" D\"' for who does not end, and try again when it has".into(),
            ),
            Reason::ModuleInUse { name, refs } => (
                format!(
                    "module {name} is in use ({refs} more than its other modules and processes account for), most \
                     likely by the console"
                ),
                "find the 'frame buffer device' among /sys/class/vtconsole/*/name and write 0 to its 'bind'".into(),
            ),
            Reason::OneShot { version } => (
                format!("'way' is \"unbind\", and {}", never_ends(version)),
                "set 'way' to \"auto\" in /etc/gpu-handoff/config.toml".into(),
            ),
            Reason::Reloaded { version, staying } => (
                format!(
                    "{}, so that the driver is unloaded and loaded again; for that moment nobody may use {} either",
                    never_ends(version),
                    join(staying)
                ),
                "end what uses them, give the VM all GPUs of the driver, or use a driver before 595".into(),
            ),
            Reason::UnloadAsked { staying } => (
                format!("'way' is \"unload\", and {} stays on the driver", join(staying)),
                "set 'way' to \"auto\" in /etc/gpu-handoff/config.toml, or give the VM that GPU as well".into(),
            ),
            Reason::CannotLoad { modules, why } => cannot_load(modules, why),
            Reason::GpuInGroup { of, gpu, group } => (
                format!(
                    "IOMMU group {group} of {of}, which the VM is given, also has the GPU {gpu}: Proxmox would take it \
                     off its driver without looking who uses it"
                ),
                "give the GPU to the VM as well, or put one of them into another slot".into(),
            ),
            Reason::Claimed { addrs, claim } => (
                format!("{} {} not free: {claim}", join(addrs), are(addrs.len())),
                claim.remedy(),
            ),
            Reason::Taken { addr, owner } => (
                format!("{addr} is taken already ({owner})"),
                "'gpu-handoff status' shows who has what, 'gpu-handoff to_nvidia' brings it home".into(),
            ),
        };
        (fact, Some(remedy))
    }
}

/// How a function is split, and what undoes that.
fn split(addr: PciAddr, how: &Split) -> (String, Remedy) {
    match how {
        Split::IntoVirtualFunctions(count) => (
            format!("{addr} has virtual functions ({count}), which would vanish under whoever uses them"),
            format!("'/usr/lib/nvidia/sriov-manage -d {addr}' once they are free").into(),
        ),
        Split::VirtualFunctionOf(physfn) => (
            format!("{addr} is a virtual function of {physfn}, not a card"),
            "give vGPUs to a VM with mdev=".into(),
        ),
        Split::IntoMediatedDevices(count) => (
            format!("{addr} has mediated devices, that is vGPUs ({count}), which would vanish under whoever uses them"),
            "stop their VMs first".into(),
        ),
        Split::Mig => (
            format!("{addr} is split into MIG instances"),
            format!(
                "destroy them with 'nvidia-smi mig -i {addr} -dci', then '-dgi', then 'nvidia-smi -i {addr} -mig 0'"
            )
            .into(),
        ),
    }
}

/// A process, for a sentence.
pub fn describe(holder: &Holder) -> String {
    hang::process(holder.pid, &holder.comm, &holder.belongs_to)
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::host::belongs::Belongs;

    fn addr(text: &str) -> PciAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_module_that_cannot_be_loaded_has_the_remedy_for_why() {
        let signed = "sign them (for dkms: enrol its key with mokutil), or turn Secure Boot off";
        let built = "build them for the running kernel ('dkms autoinstall'), or boot the kernel they were built for";
        for (modules, why, text, hint) in [
            (
                vec!["nvidia"],
                Problem::Forbidden {
                    command: "/bin/false".to_owned(),
                },
                "module nvidia cannot be loaded: a line of modprobe.d forbids it, or what it needs ('install ... \
                 /bin/false'); without it the GPU would not come back",
                "remove that line from /etc/modprobe.d",
            ),
            (
                vec!["nvidia", "nvidia_uvm"],
                Problem::Unsigned {
                    file: "/lib/nvidia.ko".to_owned(),
                    asked_by: "module.sig_enforce".to_owned(),
                },
                "modules nvidia, nvidia_uvm cannot be loaded: /lib/nvidia.ko has no signature, and the kernel asks for \
                 one (module.sig_enforce); without it the GPU would not come back",
                signed,
            ),
            (
                vec!["nvidia"],
                Problem::Missing {
                    file: "/lib/signature/nvidia.ko".to_owned(),
                },
                "module nvidia cannot be loaded: its file /lib/signature/nvidia.ko is not there; without it the GPU \
                 would not come back",
                built,
            ),
            (
                vec!["nvidia"],
                Problem::Refused("not found in directory /lib/modules/6.12.0".to_owned()),
                "module nvidia cannot be loaded: not found in directory /lib/modules/6.12.0; without it the GPU would \
                 not come back",
                built,
            ),
            (
                vec!["nvidia"],
                Problem::NoAnswer("no such program".to_owned()),
                "module nvidia cannot be loaded: modprobe cannot be asked for it: no such program; without it the GPU \
                 would not come back",
                built,
            ),
            (
                vec!["vfio_pci"],
                Problem::NotAsked,
                "module vfio_pci cannot be loaded: nobody has asked modprobe; without it no guest can have the GPU",
                "see 'modprobe --show-depends vfio_pci'",
            ),
        ] {
            let modules = modules.into_iter().map(str::to_owned).collect();
            let reason = Reason::CannotLoad { modules, why };
            assert_eq!(reason.fact(), text);
            assert_eq!(reason.remedy(), Some(hint.into()));
            assert_eq!(reason.to_string(), format!("{text}. Hint: {hint}"));
        }
    }

    #[test]
    fn a_split_function_has_the_remedy_for_how() {
        for (how, text) in [
            (
                Split::IntoVirtualFunctions(4),
                "0000:01:00.0 has virtual functions (4), which would vanish under whoever uses them. Hint: \
                 '/usr/lib/nvidia/sriov-manage -d 0000:01:00.0' once they are free",
            ),
            (
                Split::VirtualFunctionOf(addr("0000:09:00.0")),
                "0000:01:00.0 is a virtual function of 0000:09:00.0, not a card. Hint: give vGPUs to a VM with mdev=",
            ),
            (
                Split::IntoMediatedDevices(2),
                "0000:01:00.0 has mediated devices, that is vGPUs (2), which would vanish under whoever uses them. \
                 Hint: stop their VMs first",
            ),
            (
                Split::Mig,
                "0000:01:00.0 is split into MIG instances. Hint: destroy them with 'nvidia-smi mig -i 0000:01:00.0 \
                 -dci', then '-dgi', then 'nvidia-smi -i 0000:01:00.0 -mig 0'",
            ),
        ] {
            let addr = addr("0000:01:00.0");
            assert_eq!(Reason::Split { addr, how }.to_string(), text);
        }
    }

    #[test]
    fn who_may_let_go_in_a_moment_is_waited_for() {
        let holder = Box::new(Holder {
            pid: 7,
            comm: "x".to_owned(),
            belongs_to: Belongs::Unit("ollama.service".to_owned()),
            nodes: vec![Node::Control],
        });
        for (state, waits) in [("activating", true), ("deactivating", true), ("failed", false)] {
            let refusal = Refusal(vec![
                Reason::Held {
                    holder: holder.clone(),
                    nodes: vec![Node::Control],
                },
                Reason::Kept {
                    unit: Unit::host("ollama.service"),
                    why: Kept::State(state.to_owned()),
                },
            ]);
            assert_eq!(refusal.only_holders(), waits.then(|| vec![7]), "{state}");
        }
    }

    #[test]
    fn a_holder_is_named_with_what_it_belongs_to_where_that_is_known() {
        for (comm, belongs_to, text) in [
            (
                "python3",
                Belongs::Container {
                    ctid: "104".to_owned(),
                    unit: None,
                },
                "/dev/nvidiactl is in use by process 7 (python3, container 104). Hint: pct shutdown 104, or containers = \
                 \"shutdown\" in /etc/gpu-handoff/config.toml: then that is done for you, and it is started again when the \
                 GPU is home",
            ),
            (
                "a\nb",
                Belongs::Unknown,
                "/dev/nvidiactl is in use by process 7 (a\\nb). Hint: end that process, then start again",
            ),
            (
                "x",
                Belongs::Unit("a\u{1b}.service".to_owned()),
                "/dev/nvidiactl is in use by process 7 (x, a\\u{1b}.service). Hint: systemctl stop 'a\\u{1b}.service'",
            ),
        ] {
            let holder = Box::new(Holder {
                pid: 7,
                comm: comm.to_owned(),
                belongs_to,
                nodes: vec![Node::Control],
            });
            let nodes = vec![Node::Control];
            assert_eq!(Reason::Held { holder, nodes }.to_string(), text);
        }
    }
}
