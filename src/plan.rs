//! The plan: which acts, in which order, or every reason why not. Pure, from a snapshot and a record.
//!
//! ```text
//! out   vfio-pci there -> overrides set -> .3 .2 .1 unbound -> .0 let go -> all bound to vfio-pci
//!       .0 is let go by unloading the driver's modules (all its GPUs leave; the kernel itself refuses if
//!       anybody is left) or by unbind (some GPUs stay)
//! home  .0 first: override := original driver -> unbound from vfio-pci -> module loaded -> probed ->
//!       override as it was; then .1 .2 .3; then the modules that were loaded beside it
//! ```
//!
//! The override is set before anything is let go: whatever loads a module meanwhile cannot take the card.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::Budgets;
use crate::holders::{Holder, Node};
use crate::inventory::{Function, Snapshot};
use crate::pci::{PciAddr, PciSlot};
use crate::record::{Owner, Record, Taken};
use crate::report::{foreign, join};
use crate::step::{Act, Step};

/// The driver that a guest's device is bound to.
pub const VFIO_PCI: &str = "vfio-pci";

/// The first driver that lets NVKMS and nvidia_drm drop a GPU when it is unbound (nvidia_modeset_remove in
/// open-gpu-kernel-modules 590.44, kernel-open/nvidia/nv-pci.c). Before it, a GPU that nvidia_drm drives is in
/// use for as long as that module is loaded.
const DRM_LETS_GO: [u32; 2] = [590, 44];

/// From this driver on an unbind that meets a user never ends, even when the user does: the GPU is taken off the
/// driver's list before the wait (open-gpu-kernel-modules 595.45.04, kernel-open/nvidia/nv-pci.c; issue 1119).
const ONE_SHOT: [u32; 1] = [595];

/// How the GPUs leave their host driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// The driver's modules are unloaded: all its GPUs leave.
    Unload,
    /// Each GPU is unbound: others stay.
    Unbind,
    /// Nothing has to leave a driver.
    AlreadyThere,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Way::Unload => "unload",
            Way::Unbind => "unbind",
            Way::AlreadyThere => "already there",
        })
    }
}

/// Where a plan leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// From the host to vfio-pci.
    Out,
    /// From vfio-pci to the host.
    Home,
}

/// What will be done.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// Where it leads.
    pub direction: Direction,
    /// Whose handoff it is.
    pub owner: Owner,
    /// The cards, by slot.
    pub cards: Vec<String>,
    /// How the GPUs leave.
    pub way: Way,
    /// What is taken (out) or given back (home).
    pub taken: Vec<Taken>,
    /// Modules that are loaded again at home, in the order of unloading.
    pub modules: Vec<String>,
    /// Taken functions that are not there any more (home).
    pub missing: Vec<PciAddr>,
    /// The acts, in order.
    pub steps: Vec<Step>,
    /// What else the reader should know.
    pub notes: Vec<String>,
}

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
}

impl Refusal {
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
        holder: Holder,
        /// Which of its nodes are in the way.
        nodes: Vec<Node>,
    },
    /// A process has a node open from which it cannot be told which GPU it uses.
    Doubtful {
        /// The process.
        holder: Holder,
        /// Which nodes.
        nodes: Vec<Node>,
    },
    /// A process that is ending, and what it still closes cannot be seen.
    Ending(Holder),
    /// Processes that could not be looked into.
    Unreadable(Vec<i32>),
    /// A module is in use and no process accounts for it.
    ModuleInUse {
        /// The module.
        name: String,
        /// References that no module and no process accounts for.
        refs: u32,
    },
    /// Some GPUs stay on a driver whose unbind must not meet a user.
    OneShot {
        /// The driver's version.
        version: String,
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
            Reason::OneShot { version } => write!(
                f,
                "other GPUs stay on the driver, and an unbind by driver {version} never ends if anybody turns out to \
                 use the GPU. Hint: give the VM all GPUs of the driver, so that it can be unloaded, or use a driver \
                 before 595"
            ),
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

fn describe(holder: &Holder) -> String {
    let belongs = if holder.belongs_to.is_empty() {
        String::new()
    } else {
        format!(", {}", foreign(&holder.belongs_to))
    };
    format!("process {} ({}{belongs})", holder.pid, foreign(&holder.comm))
}

/// What a person does about a holder.
fn remedy(holder: &Holder) -> String {
    let name = &holder.belongs_to;
    if let Some(ctid) = name.strip_prefix("container ") {
        return format!("pct shutdown {ctid}");
    }
    if let Some(vmid) = name.strip_prefix("VM ") {
        return format!("qm shutdown {vmid}");
    }
    let untouchable = ["pvedaemon.service", "systemd-logind.service", "dbus.service"].contains(&name.as_str());
    if let Some(unit) = name.strip_prefix("user service ") {
        return format!("systemctl --user stop {} as that user", foreign(unit));
    }
    if name.ends_with(".service") && !untouchable {
        return format!("systemctl stop {}", foreign(name));
    }
    "end that process, then start again".to_owned()
}

/// The functions that move with a GPU: its slot, what the kernel links to it, and no bridge.
pub fn card(snapshot: &Snapshot, gpu: PciAddr) -> BTreeSet<PciAddr> {
    let mut card: BTreeSet<PciAddr> = snapshot
        .slot(gpu.slot())
        .filter(|f| !f.bridge)
        .map(|f| f.addr)
        .collect();
    let linked = snapshot.function(gpu).into_iter().flat_map(|f| &f.linked);
    card.extend(linked.filter(|a| snapshot.function(**a).is_some_and(|f| !f.bridge)));
    card
}

/// The plan from the host to vfio-pci.
///
/// `gpus` are the GPUs' functions, `given` all functions that the same VM was given (a group may hold more than
/// GPUs), `records` all handoffs there are.
///
/// # Errors
/// [`Refusal`] with every reason found.
pub fn out(
    snapshot: &Snapshot,
    owner: Owner,
    gpus: &[PciAddr],
    given: &[PciAddr],
    records: &[Record],
    budgets: &Budgets,
) -> Result<Plan, Refusal> {
    let mut reasons = Vec::new();
    let mut set = BTreeSet::new();
    for gpu in gpus {
        if snapshot.function(*gpu).is_none() {
            reasons.push(Reason::Absent(*gpu));
        }
        set.extend(card(snapshot, *gpu));
    }
    if !snapshot.iommu {
        reasons.push(Reason::IommuOff);
    }
    let functions: Vec<&Function> = set.iter().filter_map(|a| snapshot.function(*a)).collect();
    for function in &functions {
        reasons.extend(group_reasons(snapshot, function, &set, given));
        if function.stuck {
            reasons.push(Reason::Stuck(function.addr));
        }
        reasons.extend(split(snapshot, function));
        if function.noiommu {
            reasons.push(Reason::NoIommuGroup(function.addr));
        }
        let other = records.iter().find(|r| r.owner != owner && r.has(function.addr));
        if let Some(other) = other {
            reasons.push(Reason::Taken {
                addr: function.addr,
                owner: other.owner,
            });
        }
    }
    reasons.dedup();
    let leaving: Vec<&Function> = functions
        .iter()
        .copied()
        .filter(|f| f.driver.as_deref() != Some(VFIO_PCI))
        .collect();
    let addrs: Vec<PciAddr> = set.iter().copied().collect();
    reasons.extend(use_of(snapshot, &addrs));

    let earlier = records.iter().find(|r| r.owner == owner);
    let taken = functions
        .iter()
        .map(|f| {
            let known = earlier.and_then(|r| r.taken.iter().find(|t| t.addr == f.addr));
            known.cloned().unwrap_or_else(|| taken_from(f))
        })
        .collect();
    let mut plan = Plan {
        direction: Direction::Out,
        owner,
        cards: slots(&addrs),
        way: way(snapshot, &leaving),
        taken,
        modules: earlier.map(|r| r.modules.clone()).unwrap_or_default(),
        missing: Vec::new(),
        steps: Vec::new(),
        notes: Vec::new(),
    };
    let on_nvidia = leaving.iter().any(|f| is_on_nvidia(f));
    if plan.way == Way::Unbind && on_nvidia && version(snapshot).as_slice() >= ONE_SHOT.as_slice() {
        reasons.push(Reason::OneShot {
            version: snapshot.nvidia.as_ref().map(|n| n.version.clone()).unwrap_or_default(),
        });
    }
    let mut modules = Vec::new();
    match plan.way {
        Way::Unload => modules = users_first(snapshot, "nvidia"),
        Way::Unbind if drm_holds_gpus(snapshot) && on_nvidia => {
            modules = users_first(snapshot, "nvidia_drm");
            reasons.extend(drm_needed(snapshot, &set));
            plan.notes.push(format!(
                "nvidia_drm is reloaded: driver {} lets no GPU go while it is loaded; displays of the GPUs that stay \
                 are dark meanwhile",
                snapshot.nvidia.as_ref().map_or("?", |n| n.version.as_str())
            ));
        }
        _ => {}
    }
    reasons.extend(unaccounted(snapshot, &modules));
    if !reasons.is_empty() {
        return Err(Refusal(reasons));
    }
    plan.steps = out_steps(snapshot, &leaving, plan.way, &modules, budgets);
    for name in modules {
        if !plan.modules.contains(&name) {
            plan.modules.push(name);
        }
    }
    Ok(plan)
}

/// Whether a function is shared in a way that taking it would destroy.
fn split(snapshot: &Snapshot, function: &Function) -> Option<Reason> {
    let addr = function.addr;
    let how = if function.vfs > 0 {
        format!(
            "has {} virtual functions, which would vanish under whoever uses them. Hint: write 0 to its sriov_numvfs \
             once they are free",
            function.vfs
        )
    } else if let Some(physfn) = function.physfn {
        format!("is a virtual function of {physfn}, not a card. Hint: give vGPUs to a VM with mdev=")
    } else if snapshot.nvidia_gpu(addr).is_some_and(|g| g.mig) {
        "is split into MIG instances. Hint: destroy them with 'nvidia-smi mig -dci' and '-dgi', then 'nvidia-smi -mig \
         0'"
        .to_owned()
    } else {
        return None;
    };
    Some(Reason::Split { addr, how })
}

/// What speaks against the group of a function.
fn group_reasons(snapshot: &Snapshot, function: &Function, set: &BTreeSet<PciAddr>, given: &[PciAddr]) -> Vec<Reason> {
    let Some(group) = function.group else {
        // Without an IOMMU no function has a group; that is said once.
        return if snapshot.iommu {
            vec![Reason::NoGroup(function.addr)]
        } else {
            Vec::new()
        };
    };
    snapshot
        .group(group)
        .filter(|member| !set.contains(&member.addr) && !given.contains(&member.addr))
        .map(|member| Reason::Stranger {
            of: function.addr,
            stranger: member.addr,
            driver: member.driver.clone(),
            group,
        })
        .collect()
}

fn taken_from(function: &Function) -> Taken {
    Taken {
        addr: function.addr,
        driver: function.driver.clone(),
        module: function.module.clone(),
        driver_override: function.driver_override.clone(),
    }
}

fn slots(addrs: &[PciAddr]) -> Vec<String> {
    let slots: BTreeSet<PciSlot> = addrs.iter().map(|a| a.slot()).collect();
    slots.iter().map(ToString::to_string).collect()
}

fn is_on_nvidia(function: &Function) -> bool {
    function.driver.as_deref() == Some("nvidia")
}

/// Unload if NVIDIA's driver has no GPU that stays, unbind otherwise.
fn way(snapshot: &Snapshot, leaving: &[&Function]) -> Way {
    if leaving.is_empty() {
        return Way::AlreadyThere;
    }
    let stays = snapshot
        .functions
        .iter()
        .any(|f| is_on_nvidia(f) && !leaving.iter().any(|l| l.addr == f.addr));
    if leaving.iter().any(|f| is_on_nvidia(f)) && !stays {
        Way::Unload
    } else {
        Way::Unbind
    }
}

/// Whether a GPU counts as in use for as long as nvidia_drm is loaded. An unknown version is an old one.
fn drm_holds_gpus(snapshot: &Snapshot) -> bool {
    let Some(driver) = &snapshot.nvidia else {
        return false;
    };
    driver.modeset && snapshot.module("nvidia_drm").is_some() && version(snapshot).as_slice() < DRM_LETS_GO.as_slice()
}

/// The numbers of the driver's version; none where it is not known, which is less than any.
fn version(snapshot: &Snapshot) -> Vec<u32> {
    let version = snapshot.nvidia.as_ref().map_or("", |n| n.version.as_str());
    version.split('.').filter_map(|p| p.parse().ok()).collect()
}

/// Processes that use nvidia_drm for a GPU that stays, where it would have to be unloaded.
fn drm_needed(snapshot: &Snapshot, set: &BTreeSet<PciAddr>) -> Vec<Reason> {
    let mut reasons = Vec::new();
    for holder in &snapshot.holders {
        let on_others = |n: &&Node| match n {
            Node::Drm(addr) => !set.contains(addr) && snapshot.function(*addr).is_some_and(Function::is_nvidia_gpu),
            _ => false,
        };
        let nodes: Vec<Node> = holder.nodes.iter().filter(on_others).copied().collect();
        if !nodes.is_empty() {
            reasons.push(Reason::Held {
                holder: holder.clone(),
                nodes,
            });
        }
    }
    reasons
}

/// A module and everything that uses it, users first: the order in which the kernel lets them be unloaded.
fn users_first(snapshot: &Snapshot, name: &str) -> Vec<String> {
    fn visit(snapshot: &Snapshot, name: &str, order: &mut Vec<String>) {
        let Some(module) = snapshot.module(name) else {
            return;
        };
        for user in &module.users {
            visit(snapshot, user, order);
        }
        if !order.iter().any(|n| n == name) {
            order.push(name.to_owned());
        }
    }
    let mut order = Vec::new();
    visit(snapshot, name, &mut order);
    order
}

/// Modules that no other module uses and that still have references, where no process was found to have any.
///
/// Only the top of the chain is judged: references that the upper modules take on the lower ones go with them.
fn unaccounted(snapshot: &Snapshot, modules: &[String]) -> Vec<Reason> {
    let of_the_driver = |n: &Node| !matches!(n, Node::Sound(_) | Node::VfioGroup(_) | Node::VfioDevice(_));
    if snapshot.holders.iter().flat_map(|h| &h.nodes).any(of_the_driver) {
        return Vec::new(); // somebody is named already
    }
    modules
        .iter()
        .filter_map(|name| snapshot.module(name))
        .filter(|m| m.users.is_empty())
        .filter_map(|m| {
            let refs = m.refs.unwrap_or(1);
            (refs > 0).then(|| Reason::ModuleInUse {
                name: m.name.clone(),
                refs,
            })
        })
        .collect()
}

/// Who uses these functions, as far as a scan can see: the reasons not to take them from their drivers.
///
/// Nodes of the whole driver (nvidiactl, uvm, modeset, caps) count where one of the functions is on that driver:
/// a GPU can be attached through them without its own node being open.
pub fn use_of(snapshot: &Snapshot, addrs: &[PciAddr]) -> Vec<Reason> {
    let functions: Vec<&Function> = addrs.iter().filter_map(|a| snapshot.function(*a)).collect();
    let on_nvidia = functions.iter().any(|f| is_on_nvidia(f));
    let groups: BTreeSet<u32> = functions.iter().filter_map(|f| f.group).collect();
    let stays = snapshot
        .functions
        .iter()
        .any(|f| is_on_nvidia(f) && !addrs.contains(&f.addr));
    let mut reasons = Vec::new();
    for holder in &snapshot.holders {
        let (mut sure, mut doubtful) = (Vec::new(), Vec::new());
        for node in &holder.nodes {
            match node {
                Node::Gpu(a) | Node::Drm(a) | Node::Sound(a) | Node::VfioDevice(a) if addrs.contains(a) => {
                    sure.push(*node);
                }
                Node::VfioGroup(group) if groups.contains(group) => sure.push(*node),
                Node::Control | Node::Uvm | Node::Modeset | Node::Caps | Node::UnknownGpu(_) if on_nvidia => {
                    if stays {
                        doubtful.push(*node);
                    } else {
                        sure.push(*node);
                    }
                }
                _ => {}
            }
        }
        let holder = holder.clone();
        if !sure.is_empty() {
            reasons.push(Reason::Held { holder, nodes: sure });
        } else if !doubtful.is_empty() {
            let nodes = doubtful;
            reasons.push(Reason::Doubtful { holder, nodes });
        }
    }
    // What a guest held is on vfio-pci; what the host's programs held is not.
    let (on_vfio, on_host): (Vec<&Function>, Vec<&Function>) =
        functions.iter().partition(|f| f.driver.as_deref() == Some(VFIO_PCI));
    let counts = |h: &&Holder| {
        if is_guest(h) {
            !on_vfio.is_empty()
        } else {
            !on_host.is_empty()
        }
    };
    reasons.extend(snapshot.ending.iter().filter(counts).cloned().map(Reason::Ending));
    if !snapshot.unreadable.is_empty() {
        reasons.push(Reason::Unreadable(snapshot.unreadable.clone()));
    }
    reasons
}

/// Whether a process is a QEMU: by its cgroup, or, started by hand, by its name.
fn is_guest(holder: &Holder) -> bool {
    holder.belongs_to.starts_with("VM ") || holder.comm.starts_with("qemu") || holder.comm == "kvm"
}

/// Collects steps with the deadline that belongs to each kind of act.
struct Steps<'a> {
    budgets: &'a Budgets,
    gpus: u32,
    steps: Vec<Step>,
}

impl<'a> Steps<'a> {
    fn new(budgets: &'a Budgets, gpus: usize) -> Self {
        Steps {
            budgets,
            gpus: u32::try_from(gpus).unwrap_or(u32::MAX),
            steps: Vec::new(),
        }
    }

    fn push(&mut self, act: Act, inverse: Vec<Act>) {
        let deadline = deadline(&act, self.budgets, self.gpus);
        self.steps.push(Step { act, deadline, inverse });
    }
}

/// How long an act may take.
pub fn deadline(act: &Act, budgets: &Budgets, gpus: u32) -> Duration {
    match act {
        Act::LoadModule { .. } => budgets.load,
        Act::UnloadModule { .. } => budgets.unload + budgets.unload_per_gpu * gpus,
        Act::SetOverride { .. } => budgets.attribute,
        Act::ProveFree { .. } => budgets.look,
        Act::Unbind { .. } | Act::Probe { .. } => budgets.bind,
    }
}

fn set_override(addr: PciAddr, driver: Option<&str>) -> Act {
    Act::SetOverride {
        addr,
        driver: driver.map(str::to_owned),
    }
}

fn probe(addr: PciAddr, driver: &str) -> Act {
    Act::Probe {
        addr,
        driver: Some(driver.to_owned()),
    }
}

fn unbind(addr: PciAddr, driver: &str) -> Act {
    Act::Unbind {
        addr,
        driver: driver.to_owned(),
    }
}

fn load(name: &str) -> Act {
    Act::LoadModule { name: name.to_owned() }
}

fn unload(name: &str) -> Act {
    Act::UnloadModule { name: name.to_owned() }
}

fn out_steps(snapshot: &Snapshot, leaving: &[&Function], way: Way, modules: &[String], budgets: &Budgets) -> Vec<Step> {
    let on_nvidia: Vec<PciAddr> = leaving.iter().filter(|f| is_on_nvidia(f)).map(|f| f.addr).collect();
    let mut steps = Steps::new(budgets, on_nvidia.len());
    if !leaving.is_empty() && !snapshot.vfio_pci {
        // Never unloaded again: other VMs may come to depend on it.
        steps.push(load("vfio_pci"), Vec::new());
    }
    for function in leaving {
        let before = function.driver_override.as_deref();
        steps.push(
            set_override(function.addr, Some(VFIO_PCI)),
            vec![set_override(function.addr, before)],
        );
    }
    // Functions 1 to 3 of Turing and later cards work only while function 0 is awake, so it goes last
    // (linux commit 6d2e369f0d, "PCI: Add NVIDIA GPU multi-function power dependencies").
    let descending = || leaving.iter().rev().copied();
    for function in descending() {
        let Some(driver) = &function.driver else { continue };
        if is_on_nvidia(function) {
            continue;
        }
        push_unbind(&mut steps, function.addr, driver);
    }
    for name in modules {
        let mut inverse = Vec::new();
        if name == "nvidia" {
            // First, because nvidia does not load where no GPU lets itself be bound.
            inverse.extend(on_nvidia.iter().map(|a| set_override(*a, Some("nvidia"))));
            inverse.push(load(name));
            inverse.extend(on_nvidia.iter().map(|a| probe(*a, "nvidia")));
        } else {
            inverse.push(load(name));
        }
        steps.push(unload(name), inverse);
    }
    if way == Way::Unbind {
        for function in descending().filter(|f| is_on_nvidia(f)) {
            push_unbind(&mut steps, function.addr, "nvidia");
        }
    }
    for function in descending() {
        steps.push(probe(function.addr, VFIO_PCI), vec![unbind(function.addr, VFIO_PCI)]);
    }
    for function in leaving {
        steps.push(
            set_override(
                function.addr,
                function.driver_override.as_deref().filter(|d| *d != VFIO_PCI),
            ),
            Vec::new(),
        );
    }
    if way == Way::Unbind {
        for name in modules.iter().rev() {
            steps.push(load(name), vec![unload(name)]);
        }
    }
    steps.steps
}

fn push_unbind(steps: &mut Steps<'_>, addr: PciAddr, driver: &str) {
    steps.push(Act::ProveFree { addrs: vec![addr] }, Vec::new());
    steps.push(
        unbind(addr, driver),
        vec![set_override(addr, Some(driver)), probe(addr, driver)],
    );
}

/// The plan from vfio-pci to the host, from the record alone and how things are now.
///
/// # Errors
/// [`Refusal`] where somebody still uses a function.
pub fn home(snapshot: &Snapshot, record: &Record) -> Result<Plan, Refusal> {
    let addrs: Vec<PciAddr> = record.taken.iter().map(|t| t.addr).collect();
    let on_vfio: Vec<PciAddr> = addrs
        .iter()
        .copied()
        .filter(|a| driver_of(snapshot, *a).as_deref() == Some(VFIO_PCI))
        .collect();
    let mut reasons = use_of(snapshot, &on_vfio);
    reasons.extend(record.stuck.iter().map(|a| Reason::Stuck(*a)));
    if !reasons.is_empty() {
        return Err(Refusal(reasons));
    }
    let mut plan = Plan {
        direction: Direction::Home,
        owner: record.owner,
        cards: slots(&addrs),
        way: Way::AlreadyThere,
        taken: record.taken.clone(),
        modules: record.modules.clone(),
        missing: Vec::new(),
        steps: Vec::new(),
        notes: Vec::new(),
    };
    let gpus = snapshot.gpus().filter(|f| addrs.contains(&f.addr)).count();
    let mut steps = Steps::new(&record.budgets, gpus);
    for taken in &record.taken {
        match snapshot.function(taken.addr) {
            Some(function) => home_steps(snapshot, taken, function, &mut steps),
            None => plan.missing.push(taken.addr),
        }
    }
    // nvidia itself was loaded for its GPU; the others come after it, because nvidia_drm before 590 takes only the
    // GPUs that are there when it is loaded.
    for name in record.modules.iter().rev() {
        let loaded = snapshot.module(name);
        let reload = name == "nvidia_drm" && !steps.steps.is_empty() && loaded.is_some();
        if reload && loaded.and_then(|m| m.refs) == Some(0) {
            steps.push(unload(name), Vec::new());
            steps.push(load(name), Vec::new());
        } else if reload {
            plan.notes.push(format!(
                "{name} is in use by another GPU and stays loaded: the returning GPU drives no display until it is \
                 reloaded"
            ));
        } else if loaded.is_none() && name != "nvidia" {
            steps.push(load(name), Vec::new());
        }
    }
    plan.steps = steps.steps;
    if !plan.steps.is_empty() {
        plan.way = Way::Unbind;
    }
    Ok(plan)
}

fn driver_of(snapshot: &Snapshot, addr: PciAddr) -> Option<String> {
    snapshot.function(addr)?.driver.clone()
}

fn home_steps(snapshot: &Snapshot, taken: &Taken, function: &Function, steps: &mut Steps<'_>) {
    let addr = taken.addr;
    let was = taken.driver_override.as_deref();
    let current = function.driver.as_deref();
    if current == taken.driver.as_deref() {
        if function.driver_override.as_deref() != was {
            steps.push(set_override(addr, was), Vec::new());
        }
        return;
    }
    let driver = taken.driver.as_deref();
    steps.push(set_override(addr, driver.or(was)), Vec::new());
    if let Some(current) = current {
        steps.push(Act::ProveFree { addrs: vec![addr] }, Vec::new());
        steps.push(unbind(addr, current), Vec::new());
    }
    if let Some(driver) = driver {
        // Loaded only now: what modprobe loads along with nvidia (softdeps) finds the GPU bound.
        let module = taken.module.as_ref().filter(|m| snapshot.module(m).is_none());
        let module = module.filter(|m| !steps.steps.iter().any(|s| s.act == load(m)));
        if let Some(module) = module {
            steps.push(load(module), Vec::new());
        }
        steps.push(probe(addr, driver), Vec::new());
    }
    if driver.is_some() && driver != was {
        steps.push(set_override(addr, was), Vec::new());
    }
}

/// A record for functions that nobody wrote down: what their own drivers would be, by what they are.
///
/// GPUs go to `nvidia`; for the others the kernel chooses when they are probed. The caller says that it was
/// inferred.
pub fn inferred(snapshot: &Snapshot, gpus: &[PciAddr], mut record: Record) -> Record {
    let mut set = BTreeSet::new();
    for gpu in gpus {
        set.extend(card(snapshot, *gpu));
    }
    for function in set.iter().filter_map(|a| snapshot.function(*a)) {
        let (driver, module) = natural_driver(function);
        let on_vfio = function.driver.as_deref() == Some(VFIO_PCI);
        record.taken.retain(|t| t.addr != function.addr);
        record.taken.push(Taken {
            addr: function.addr,
            driver: if on_vfio || function.driver.is_none() {
                driver.map(str::to_owned)
            } else {
                function.driver.clone()
            },
            module: module.map(str::to_owned),
            driver_override: None,
        });
    }
    record.taken.sort_by_key(|t| t.addr);
    if record.modules.is_empty() && snapshot.gpus().any(|f| set.contains(&f.addr)) {
        record.modules = ["nvidia_uvm", "nvidia_drm", "nvidia_modeset", "nvidia"]
            .map(str::to_owned)
            .to_vec();
    }
    record
}

/// Driver and module of a card's functions by class, where the kernel has one for them: the aliases of
/// nvidia (VGA and 3D of vendor 10de), snd_hda_intel, xhci_pci (driver xhci_hcd) and i2c_nvidia_gpu (driver
/// nvidia-gpu) in modules.alias.
fn natural_driver(function: &Function) -> (Option<&'static str>, Option<&'static str>) {
    match function.class.0 >> 8 {
        0x0300 | 0x0302 => (Some("nvidia"), Some("nvidia")),
        0x0403 => (Some("snd_hda_intel"), Some("snd_hda_intel")),
        0x0c03 => (Some("xhci_hcd"), Some("xhci_pci")),
        0x0c80 => (Some("nvidia-gpu"), Some("i2c_nvidia_gpu")),
        _ => (None, None),
    }
}
