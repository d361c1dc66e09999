//! Who uses a GPU, judged: which of the holders of a snapshot speak against taking it.

use std::collections::BTreeSet;

use crate::base::pci::PciAddr;
use crate::base::text::join;
use crate::host::belongs::Belongs;
use crate::host::functions::Function;
use crate::host::holders::Holder;
use crate::host::nodes::Node;
use crate::host::snapshot::Snapshot;
use crate::model::refusal::Reason;
use crate::plan::moving::Ground;
use crate::plan::vendor::nvidia::{PERSISTENCED, drm_holds_gpus, is_one_shot};
use crate::settings::values::{Doubt, Settings};

/// Processes that use nvidia_drm for a GPU that stays, where it would have to be unloaded.
pub fn drm_needed(snapshot: &Snapshot, set: &BTreeSet<PciAddr>) -> Vec<Reason> {
    let mut reasons = Vec::new();
    for holder in &snapshot.holders {
        let on_others = |n: &&Node| match n {
            Node::Drm(addr) => !set.contains(addr) && snapshot.function(*addr).is_some_and(Function::is_nvidia_gpu),
            _ => false,
        };
        let nodes: Vec<Node> = holder.nodes.iter().filter(on_others).copied().collect();
        if !nodes.is_empty() {
            reasons.push(Reason::Held {
                holder: Box::new(holder.clone()),
                nodes,
            });
        }
    }
    reasons
}

/// Modules that no other module uses and that still have references, where no process was found to have any.
///
/// Only the top of the chain is judged: references that the upper modules take on the lower ones go with them, and those
/// of the persistence daemon with the daemon, which is stopped first.
pub fn unaccounted(snapshot: &Snapshot, modules: &[String]) -> Vec<Reason> {
    let (daemons, others): (Vec<&Holder>, Vec<&Holder>) = snapshot.holders.iter().partition(|h| is_persistenced(h));
    if others.iter().flat_map(|h| &h.nodes).any(|n| module_of(n).is_some()) {
        return Vec::new(); // somebody is named already
    }
    let has_one = |name: &str| {
        daemons
            .iter()
            .flat_map(|h| &h.nodes)
            .any(|n| module_of(n) == Some(name))
    };
    modules
        .iter()
        .filter_map(|name| snapshot.module(name))
        .filter(|m| m.users.is_empty() && !has_one(&m.name))
        .filter_map(|m| {
            let refs = m.refs.unwrap_or(1);
            (refs > 0).then(|| Reason::ModuleInUse {
                name: m.name.clone(),
                refs,
            })
        })
        .collect()
}

/// The module of NVIDIA's driver that an open node is a reference of: the owner of its file operations
/// (open-gpu-kernel-modules, kernel-open: nv.c, nv-caps.c, linux_nvswitch.c; nvidia-modeset, nvidia-uvm and nvidia-drm).
fn module_of(node: &Node) -> Option<&'static str> {
    match node {
        Node::Gpu(_) | Node::UnknownGpu(_) | Node::Control | Node::Caps | Node::Switch | Node::I2c(_) => Some("nvidia"),
        Node::Modeset => Some("nvidia_modeset"),
        Node::Uvm => Some("nvidia_uvm"),
        Node::Drm(_) => Some("nvidia_drm"),
        Node::Sound(_) | Node::Disk(_) | Node::VfioGroup(_) | Node::VfioDevice(_) => None,
    }
}

/// nvidia_drm, where it has been loaded (again) meanwhile and holds what is about to be unbound: udev and nvidia-modprobe
/// load it unasked.
pub fn drm_holds(snapshot: &Snapshot, addrs: &[PciAddr]) -> Option<Reason> {
    let on_nvidia = |a: &&PciAddr| snapshot.function(**a).is_some_and(Function::is_on_nvidia);
    let addr = addrs.iter().find(on_nvidia).filter(|_| drm_holds_gpus(snapshot))?;
    Some(Reason::Other(format!(
        "nvidia_drm was loaded meanwhile and holds {addr}, so that an unbind would not end. Hint: see 'journalctl -k' for \
         when, keep udev from loading it (its rule for nvidia), and try again"
    )))
}

/// Who uses these functions, as far as a scan can see: the reasons not to take them from their drivers.
///
/// Nodes of the whole driver (nvidiactl, uvm, modeset, caps) count where one of the functions is on that driver:
/// a GPU can be attached through them without its own node being open.
pub fn use_of(snapshot: &Snapshot, addrs: &[PciAddr]) -> Vec<Reason> {
    let functions: Vec<&Function> = addrs.iter().filter_map(|a| snapshot.function(*a)).collect();
    let on_nvidia = functions.iter().any(|f| f.is_on_nvidia());
    let groups: BTreeSet<u32> = functions.iter().filter_map(|f| f.group).collect();
    let stays = snapshot
        .functions
        .iter()
        .any(|f| f.is_on_nvidia() && !addrs.contains(&f.addr));
    let mut reasons = Vec::new();
    for holder in &snapshot.holders {
        let (mut sure, mut doubtful) = (Vec::new(), Vec::new());
        for node in &holder.nodes {
            match node {
                Node::Gpu(a) | Node::Drm(a) | Node::Sound(a) | Node::VfioDevice(a) | Node::I2c(a) | Node::Disk(a)
                    if addrs.contains(a) =>
                {
                    sure.push(*node);
                }
                Node::VfioGroup(group) if groups.contains(group) => sure.push(*node),
                Node::Control | Node::Uvm | Node::Modeset | Node::Caps | Node::Switch | Node::UnknownGpu(_)
                    if on_nvidia =>
                {
                    if stays {
                        doubtful.push(*node);
                    } else {
                        sure.push(*node);
                    }
                }
                _ => {}
            }
        }
        let holder = Box::new(holder.clone());
        if !sure.is_empty() {
            reasons.push(Reason::Held { holder, nodes: sure });
        } else if !doubtful.is_empty() {
            let nodes = doubtful;
            reasons.push(Reason::Doubtful { holder, nodes });
        }
    }
    // What a guest held is on vfio-pci; what the host's programs held is not.
    let (on_vfio, on_host): (Vec<&Function>, Vec<&Function>) = functions.iter().partition(|f| f.is_on_vfio());
    let counts = |h: &&Holder| {
        if is_guest(h) {
            !on_vfio.is_empty()
        } else {
            !on_host.is_empty()
        }
    };
    let ending = snapshot.ending.iter().filter(counts);
    reasons.extend(ending.map(|h| Reason::Ending(Box::new(h.clone()))));
    let below = snapshot.usb.iter().filter(|u| addrs.contains(&u.of));
    reasons.extend(below.cloned().map(Reason::UsbInUse));
    if !snapshot.unreadable.is_empty() {
        reasons.push(Reason::Unreadable(snapshot.unreadable.clone()));
    }
    reasons
}

/// Whether a process is NVIDIA's persistence daemon: it keeps GPUs initialised and nothing else, so that it may be stopped
/// and started again (nvidia-persistenced(1)).
pub fn is_persistenced(holder: &Holder) -> bool {
    matches!(&holder.belongs_to, Belongs::Unit(name) if name == PERSISTENCED)
}

/// Whether a process is a QEMU: by its cgroup, or, started by hand, by its name.
fn is_guest(holder: &Holder) -> bool {
    matches!(holder.belongs_to, Belongs::Vm(_)) || holder.comm.starts_with("qemu") || holder.comm == "kvm"
}

/// What becomes of the holders.
#[derive(Default)]
pub(crate) struct Judged {
    /// Units that are stopped for the handoff: the persistence daemon's.
    pub(crate) units: Vec<String>,
    /// Doubtful ones that the settings accept.
    pub(crate) accepted: Vec<i32>,
    /// What is said of these.
    pub(crate) notes: Vec<String>,
}

/// Sorts the holders; the rest are reasons.
pub(crate) fn judge_holders(
    ground: &Ground<'_>,
    addrs: &[PciAddr],
    settings: &Settings,
    reasons: &mut Vec<Reason>,
) -> Judged {
    let mut judged = Judged::default();
    for reason in use_of(ground.snapshot, addrs) {
        match &reason {
            Reason::Held { holder, .. } | Reason::Doubtful { holder, .. } if is_persistenced(holder) => {
                judged.units = vec![PERSISTENCED.to_owned()];
            }
            Reason::Doubtful { holder, nodes } if settings.doubt == Doubt::GoOn && !is_one_shot(ground.snapshot) => {
                judged.accepted.push(holder.pid);
                judged.notes.push(format!(
                    "process {} has {} open and may use the GPU; 'doubt' is \"go-on\"",
                    holder.pid,
                    join(nodes)
                ));
            }
            _ => reasons.push(reason),
        }
    }
    judged
}
