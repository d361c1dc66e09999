//! Who uses a GPU, judged: which of the holders of a snapshot speak against taking it.

use std::collections::BTreeSet;

use crate::base::pci::PciAddr;
use crate::base::text::join;
use crate::host::belongs::Belongs;
use crate::host::functions::Function;
use crate::host::holders::Holder;
use crate::host::nodes::Node;
use crate::host::snapshot::Snapshot;
use crate::model::plan::Way;
use crate::model::record::Owner;
use crate::model::refusal::Reason;
use crate::plan::moving::Ground;
use crate::plan::vendor::nvidia::{PERSISTENCED, drm_holds_gpus, is_one_shot, references_per_open};
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
    let mut others = snapshot.holders.iter().filter(|h| !is_persistenced(h));
    if others.any(|h| h.nodes.iter().any(|n| module_of(n).is_some())) {
        return Vec::new(); // somebody is named already
    }
    let top = modules.iter().filter_map(|name| snapshot.module(name));
    top.filter(|m| m.users.is_empty())
        .filter_map(|m| {
            let refs = uncounted(snapshot, &m.name, true);
            (refs > 0).then(|| Reason::ModuleInUse {
                name: m.name.clone(),
                refs,
            })
        })
        .collect()
}

/// The driver of a card's sound function, and its module: it counts who has a sound node of any of its cards open (linux,
/// sound/core/pcm_native.c, snd_pcm_open; control.c, snd_ctl_open; hwdep.c and rawmidi.c alike: the card's module).
const SOUND: &str = "snd_hda_intel";

/// References of a module that neither its other modules nor the descriptors that were found account for: one of NVIDIA's
/// driver's, or the sound cards'.
/// A descriptor that was handed on counts as often as it is seen, so that there may be more than this says, and not less.
///
/// `at_least`: what may be counted twice is taken for what is; otherwise there may be less than this says, and not more.
fn uncounted(snapshot: &Snapshot, name: &str, at_least: bool) -> u32 {
    let Some(module) = snapshot.module(name) else { return 0 };
    // Drivers that open /dev/nvidia-modeset through nvidia's own character device count it there as well
    // (nvidia_register_module, in kernel-open/nvidia/nv-frontend.c of the branches that have that file).
    let by_way_of = |node: &Node| at_least && name == "nvidia" && *node == Node::Modeset;
    let is_on = |addr: PciAddr| {
        snapshot
            .function(addr)
            .is_some_and(|f| f.driver.as_deref() == Some(SOUND))
    };
    let of_sound = |node: &Node| name == SOUND && matches!(node, Node::Sound(addr) if is_on(*addr));
    let of_module = |(node, _): &&(Node, u32)| module_of(node) == Some(name) || by_way_of(node) || of_sound(node);
    let open: u32 = snapshot.open.iter().filter(of_module).map(|(_, count)| count).sum();
    let users = u32::try_from(module.users.len()).unwrap_or(u32::MAX);
    let accounted = open.saturating_mul(references_per_open(name)).saturating_add(users);
    module.refs.unwrap_or(0).saturating_sub(accounted)
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

/// Who is seen to have a module of NVIDIA's driver open.
pub(crate) fn of_module<'a>(snapshot: &'a Snapshot, name: &str) -> Vec<&'a Holder> {
    let has_it = |h: &&Holder| h.nodes.iter().any(|n| module_of(n) == Some(name));
    snapshot.holders.iter().filter(has_it).collect()
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

/// Who uses these functions, and what was not seen of it: the reasons not to take them from their drivers by an unbind.
pub fn use_of(snapshot: &Snapshot, addrs: &[PciAddr]) -> Vec<Reason> {
    let mut reasons = held(snapshot, addrs);
    reasons.extend(unseen(snapshot, addrs));
    let below = snapshot.usb.iter().filter(|u| addrs.contains(&u.of));
    reasons.extend(below.cloned().map(Reason::UsbInUse));
    reasons
}

/// Who is seen to use these functions.
///
/// Nodes of the whole driver (nvidiactl, uvm, modeset, caps) count where one of the functions is on that driver:
/// a GPU can be attached through them without its own node being open.
pub fn held(snapshot: &Snapshot, addrs: &[PciAddr]) -> Vec<Reason> {
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
    reasons
}

/// What was not seen and speaks against an unbind of these functions.
///
/// Where the kernel itself knows, it is asked: NVIDIA's modules and the sound cards' count who has their nodes open, and where
/// all of that is accounted for, nobody unseen has any. A VFIO group tells by itself whether it is held ([`crate::execute::perform`]). For
/// all other drivers who could not be looked into may be a user.
fn unseen(snapshot: &Snapshot, addrs: &[PciAddr]) -> Vec<Reason> {
    let functions = || addrs.iter().filter_map(|a| snapshot.function(*a));
    let is_on_sound = |f: &Function| f.driver.as_deref() == Some(SOUND);
    let on_nvidia = functions().any(Function::is_on_nvidia);
    let counted = [
        ("nvidia", on_nvidia),
        ("nvidia_uvm", on_nvidia),
        (SOUND, functions().any(is_on_sound)),
    ];
    let asked = counted.into_iter().filter(|(_, is_asked)| *is_asked);
    let asked: Vec<&str> = asked.map(|(name, _)| name).collect();
    let may_hide = asked.iter().any(|name| uncounted(snapshot, name, false) > 0);
    let tells = |f: &Function| f.is_on_nvidia() || f.is_on_vfio() || is_on_sound(f);
    let on_others = functions().any(|f| f.driver.is_some() && !tells(f));
    if !may_hide && !on_others {
        return Vec::new();
    }
    // What a guest is given is on vfio-pci; of the host's devices it can only have one that it draws with.
    let counts = |h: &&Holder| may_hide || !matches!(h.belongs_to, Belongs::Vm(_));
    let ending = snapshot.ending.iter().filter(counts);
    let mut reasons: Vec<Reason> = ending.map(|h| Reason::Ending(Box::new(h.clone()))).collect();
    if !snapshot.unseen.is_empty() {
        reasons.push(Reason::Unseen(snapshot.unseen.clone()));
    }
    if reasons.is_empty() {
        let beyond = asked.iter().map(|name| (*name, uncounted(snapshot, name, true)));
        let beyond = beyond.filter(|(_, refs)| *refs > 0);
        reasons.extend(beyond.map(|(name, refs)| Reason::Uncounted {
            name: name.to_owned(),
            refs,
        }));
    }
    reasons
}

/// What is in the way of bringing home what is on vfio-pci: who is seen to hold it, and the owner's own QEMU while it is
/// ending. Whether anybody else holds the group the kernel says when it is asked ([`crate::execute::perform`]).
pub fn keeps_away(snapshot: &Snapshot, on_vfio: &[PciAddr], owner: Owner) -> Vec<Reason> {
    let mut reasons = held(snapshot, on_vfio);
    if on_vfio.is_empty() {
        return reasons;
    }
    let is_its = |h: &&Holder| matches!(h.belongs_to, Belongs::Vm(vmid) if Owner::Vm(vmid) == owner);
    let ending = snapshot.ending.iter().filter(is_its);
    reasons.extend(ending.map(|h| Reason::Ending(Box::new(h.clone()))));
    reasons
}

/// Whether a process is NVIDIA's persistence daemon: it keeps GPUs initialised and nothing else, so that it may be stopped
/// and started again (nvidia-persistenced(1)).
pub fn is_persistenced(holder: &Holder) -> bool {
    matches!(&holder.belongs_to, Belongs::Unit(name) if name == PERSISTENCED)
}

/// What becomes of the holders.
#[derive(Default)]
pub(crate) struct Judged {
    /// Units that are stopped for the handoff: the persistence daemon's.
    pub(crate) units: Vec<String>,
    /// Doubtful ones that the settings accept.
    pub(crate) accepted: Vec<i32>,
    /// The settings accept that there may be others, who were not seen.
    pub(crate) accepts_unseen: bool,
    /// What is said of these.
    pub(crate) notes: Vec<String>,
}

/// Sorts the holders; the rest are reasons. `way`: where the driver is unloaded, the kernel refuses if anybody unseen has it
/// open, and nobody's word counts against that.
pub(crate) fn judge_holders(
    ground: &Ground<'_>,
    addrs: &[PciAddr],
    way: Way,
    settings: &Settings,
    reasons: &mut Vec<Reason>,
) -> Judged {
    let mut judged = Judged::default();
    let snapshot = ground.snapshot;
    let accepts_doubt = settings.doubt == Doubt::GoOn && !is_one_shot(snapshot);
    let is_unbound = |a: &&PciAddr| way != Way::Unload || !snapshot.function(**a).is_some_and(Function::is_on_nvidia);
    let unbound: Vec<PciAddr> = addrs.iter().filter(is_unbound).copied().collect();
    let all = held(snapshot, addrs).into_iter().chain(unseen(snapshot, &unbound));
    let below = snapshot.usb.iter().filter(|u| addrs.contains(&u.of));
    for reason in all.chain(below.cloned().map(Reason::UsbInUse)) {
        match &reason {
            Reason::Held { holder, .. } | Reason::Doubtful { holder, .. } if is_persistenced(holder) => {
                judged.units = vec![PERSISTENCED.to_owned()];
            }
            Reason::Doubtful { holder, nodes } if accepts_doubt => {
                judged.accepted.push(holder.pid);
                judged.notes.push(format!(
                    "process {} has {} open and may use the GPU; 'doubt' is \"go-on\"",
                    holder.pid,
                    join(nodes)
                ));
            }
            Reason::Unseen(_) | Reason::Uncounted { .. } if accepts_doubt => {
                judged.accepts_unseen = true;
                judged.notes.push(format!("{}; 'doubt' is \"go-on\"", reason.fact()));
            }
            _ => reasons.push(reason),
        }
    }
    judged
}
