//! Who uses a GPU, judged: which of the holders of a snapshot speak against taking it.

use std::collections::BTreeSet;

use crate::base::pci::PciAddr;
use crate::base::text::{foreign, join};
use crate::host::belongs::Belongs;
use crate::host::functions::Function;
use crate::host::holders::Holder;
use crate::host::nodes::Node;
use crate::host::snapshot::Snapshot;
use crate::model::plan::Way;
use crate::model::record::{Beside, Owner};
use crate::model::refusal::Reason;
use crate::plan::moving::Ground;
use crate::plan::unseen::unseen;
use crate::plan::vendor::nvidia::{drm_holds_gpus, is_one_shot, is_own_service, module_of};
use crate::settings::values::{Doubt, Services, Settings};

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
fn usb_below(snapshot: &Snapshot, addrs: &[PciAddr]) -> impl Iterator<Item = Reason> {
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

/// What becomes of the holders.
#[derive(Default)]
pub(crate) struct Judged {
    /// Units that are stopped for the handoff, in that order.
    pub(crate) units: Vec<String>,
    /// Doubtful ones that the settings accept.
    pub(crate) accepted: Vec<i32>,
    /// The settings accept that there may be others, who were not seen.
    pub(crate) accepts_unseen: bool,
    /// What is said of these.
    pub(crate) notes: Vec<String>,
}

impl Judged {
    /// A service is stopped: NVIDIA's own last, since others may talk to them.
    fn stops(&mut self, unit: &str, is_own: bool, nodes: &[Node]) {
        if self.units.iter().any(|u| u == unit) {
            return;
        }
        if is_own {
            self.units.push(unit.to_owned());
            return;
        }
        self.units.insert(0, unit.to_owned());
        self.notes.push(format!(
            "{} has {} open and is stopped, as 'services' says; it is started again when the GPU is home",
            foreign(unit),
            join(nodes)
        ));
    }
}

/// The service that a holder belongs to, where the settings have it stopped, and whether it is NVIDIA's own.
fn stopped<'h>(holder: &'h Holder, ground: &Ground<'_>, settings: &Settings) -> Option<(&'h str, bool)> {
    let Belongs::Unit(unit) = &holder.belongs_to else {
        return None;
    };
    let is_own = is_own_service(unit, ground.staying().is_empty());
    let may = match &settings.services {
        Services::Refuse => false,
        services => is_own || services.names(unit),
    };
    may.then_some((unit.as_str(), is_own))
}

/// Sorts the holders; the rest are reasons. `way`: where the driver is unloaded, the kernel refuses if anybody unseen has it
/// open, and nobody's word counts against that; and who uses what stays on it counts, too.
pub(crate) fn judge_holders(
    ground: &Ground<'_>,
    beside: &[Beside],
    way: Way,
    settings: &Settings,
    reasons: &mut Vec<Reason>,
) -> Judged {
    let mut judged = Judged::default();
    let snapshot = ground.snapshot;
    let addrs = &ground.addrs();
    let mut let_go = addrs.clone();
    // What is without its driver since an earlier run is not taken off one.
    if way == Way::Unload {
        let_go.extend(beside.iter().map(|b| b.addr));
    }
    let accepts_doubt = settings.doubt == Doubt::GoOn && !is_one_shot(snapshot);
    let is_unbound = |a: &&PciAddr| way != Way::Unload || !snapshot.function(**a).is_some_and(Function::is_on_nvidia);
    let unbound: Vec<PciAddr> = addrs.iter().filter(is_unbound).copied().collect();
    let all = held(snapshot, &let_go).into_iter().chain(unseen(snapshot, &unbound));
    for reason in all.chain(usb_below(snapshot, addrs)) {
        match &reason {
            Reason::Held { holder, nodes } | Reason::Doubtful { holder, nodes }
                if let Some((unit, is_own)) = stopped(holder, ground, settings) =>
            {
                judged.stops(unit, is_own, nodes);
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
