//! Who uses a GPU, judged: which of the holders of a snapshot speak against taking it.

use std::collections::BTreeSet;

use crate::base::pci::PciAddr;
use crate::base::sets::IntoSet as _;
use crate::host::belongs::Belongs;
use crate::host::functions::Function;
use crate::host::holders::Holder;
use crate::host::nodes::Node;
use crate::host::snapshot::Snapshot;
use crate::model::doubt::Risk;
use crate::model::record::Owner;
use crate::model::refusal::Reason;
use crate::plan::unseen::unseen;
use crate::plan::vendor::nvidia::{drm_holds_gpus, is_one_shot, module_of};

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

/// Who is seen to have a module of NVIDIA's driver open.
pub(crate) fn of_module<'a>(snapshot: &'a Snapshot, name: &str) -> Vec<&'a Holder> {
    let has_it = |h: &&Holder| h.nodes.iter().any(|n| module_of(snapshot, n) == Some(name));
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
    reasons.extend(usb_below(snapshot, addrs));
    reasons
}

/// What is plugged into these functions, where they are USB controllers.
pub(crate) fn usb_below(snapshot: &Snapshot, addrs: &[PciAddr]) -> impl Iterator<Item = Reason> {
    let below = snapshot.usb.iter().filter(|u| addrs.contains(&u.of));
    below.cloned().map(Reason::UsbInUse)
}

/// Who is seen to use these functions.
///
/// Nodes of the whole driver (nvidiactl, uvm, modeset, caps) count where one of the functions is on that driver:
/// a GPU can be attached through them without its own node being open.
pub fn held(snapshot: &Snapshot, addrs: &[PciAddr]) -> Vec<Reason> {
    let functions: Vec<&Function> = addrs.iter().filter_map(|a| snapshot.function(*a)).collect();
    let on_nvidia = functions.iter().any(|f| f.is_on_nvidia());
    let groups: BTreeSet<u32> = functions.iter().filter_map(|f| f.group).into_set();
    let stays = snapshot
        .functions
        .iter()
        .any(|f| f.is_on_nvidia() && !addrs.contains(&f.addr));
    let mut reasons = Vec::new();
    for holder in &snapshot.holders {
        let (mut sure, mut doubtful) = (Vec::new(), Vec::new());
        for node in &holder.nodes {
            match node {
                node if node.function().is_some_and(|addr| addrs.contains(&addr)) => sure.push(*node),
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
            let (nodes, risk) = (doubtful, risk(snapshot));
            reasons.push(Reason::Doubtful { holder, nodes, risk });
        }
    }
    reasons
}

/// What comes of it if who may use a GPU does use it.
fn risk(snapshot: &Snapshot) -> Risk {
    match is_one_shot(snapshot) {
        true => Risk::NeverEnds,
        false => Risk::Waits,
    }
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
