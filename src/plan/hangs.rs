//! Calls of somebody else's that hold a function: what they wait for, whether that can be freed, and whether what they leave
//! behind comes home. Pure.
//!
//! Nothing is reset, probed or removed that such a call may be at: it would wait behind it. The one thing that lets a stuck
//! unbind end and harms nobody is to unload nvidia_drm, by a driver that counts it as a user (measured with 580.95.05).

use crate::base::pci::{PciAddr, slots};
use crate::host::belongs::Belongs;
use crate::host::displays::Framebuffer;
use crate::host::functions::Function;
use crate::host::holders::Holder;
use crate::host::nodes::Node;
use crate::host::nvidia::Numbers;
use crate::host::snapshot::Snapshot;
use crate::host::stuck_calls::StuckCall;
use crate::model::hang::Hang;
use crate::model::plan::{Direction, Plan, Way};
use crate::model::record::{Record, State, Taken};
use crate::model::refusal::{Reason, Refusal};
use crate::plan::steps::{Steps, both};
use crate::plan::vendor::nvidia::{PERSISTENCED, drm_holds_gpus, is_one_shot, natural_driver};
use crate::plan::{unseen, users};

const DRM: &str = "nvidia_drm";

/// The calls that may be at one of these functions.
pub fn at(snapshot: &Snapshot, addrs: &[PciAddr]) -> Vec<Reason> {
    let is_at = |c: &&StuckCall| c.at.iter().any(|a| addrs.contains(a));
    snapshot
        .calls
        .iter()
        .filter(is_at)
        .map(|c| reason(snapshot, c))
        .collect()
}

/// The calls that may be at one of these functions, or in which the driver that is unloaded lets another one go: the unload
/// would wait for that.
pub(crate) fn on_the_way_out(snapshot: &Snapshot, addrs: &[PciAddr], unloaded: Option<&str>) -> Vec<Reason> {
    let counts = |c: &&StuckCall| {
        let is_at = c.at.iter().any(|a| addrs.contains(a));
        is_at || unloaded.is_some_and(|driver| c.driver.as_deref().is_none_or(|d| d == driver))
    };
    snapshot
        .calls
        .iter()
        .filter(counts)
        .map(|c| reason(snapshot, c))
        .collect()
}

fn reason(snapshot: &Snapshot, call: &StuckCall) -> Reason {
    Reason::Hangs(Box::new(hang(snapshot, call)))
}

/// A call, with what it waits for.
fn hang(snapshot: &Snapshot, call: &StuckCall) -> Hang {
    let on_nvidia = is_of_nvidia(snapshot, call);
    let version = || snapshot.nvidia_version().to_owned();
    let holders = match call.what.lets_go() {
        true => holders(snapshot, call, on_nvidia),
        false => Vec::new(),
    };
    Hang {
        call: call.clone(),
        holders,
        drm: on_nvidia && drm_holds_gpus(snapshot),
        never_ends: (on_nvidia && is_one_shot(snapshot)).then(version),
    }
}

/// Whether it can be NVIDIA's driver that does not let go of a GPU.
fn is_of_nvidia(snapshot: &Snapshot, call: &StuckCall) -> bool {
    let is_gpu = |a: &PciAddr| snapshot.function(*a).is_some_and(Function::is_nvidia_gpu);
    let may_be_its = call.driver.as_deref().is_none_or(|driver| driver == "nvidia");
    call.what.lets_go() && may_be_its && call.at.iter().any(is_gpu)
}

/// Who uses what the call is at: by its own nodes, or, where nobody does, by those of the whole driver.
fn holders(snapshot: &Snapshot, call: &StuckCall, on_nvidia: bool) -> Vec<(Holder, Vec<Node>)> {
    let groups: Vec<u32> = call.at.iter().filter_map(|a| snapshot.function(*a)?.group).collect();
    let own = |node: &Node| match node {
        Node::VfioGroup(group) => groups.contains(group),
        node => node.function().is_some_and(|addr| call.at.contains(&addr)),
    };
    let of_driver = |node: &Node| match node {
        Node::Control | Node::Uvm | Node::Modeset | Node::Caps | Node::Switch | Node::UnknownGpu(_) => on_nvidia,
        _ => false,
    };
    let with = |counts: &dyn Fn(&Node) -> bool| {
        let holders = snapshot.holders.iter().map(|h| {
            let nodes: Vec<Node> = h.nodes.iter().copied().filter(|n| counts(n)).collect();
            (h.clone(), nodes)
        });
        holders.filter(|(_, nodes)| !nodes.is_empty()).collect::<Vec<_>>()
    };
    let sure = with(&own);
    if sure.is_empty() { with(&of_driver) } else { sure }
}

/// Whether unloading nvidia_drm lets a call end, and harms nobody.
///
/// # Errors
/// [`Refusal`] with every reason why not; the first one names the call.
pub fn may_be_freed(snapshot: &Snapshot, call: &StuckCall) -> Result<(), Refusal> {
    let hang = hang(snapshot, call);
    let waits_for_drm_alone = call.lasts && hang.drm && hang.holders.is_empty();
    let set = call.at.iter().copied().collect();
    let mut reasons = Vec::new();
    if waits_for_drm_alone {
        reasons.extend(users::drm_needed(snapshot, &set));
        let refs = snapshot.module(DRM).map_or(0, |m| m.refs.unwrap_or(1));
        if refs > 0 && reasons.is_empty() && consoles(snapshot, call).is_empty() {
            reasons.push(Reason::ModuleInUse {
                name: DRM.to_owned(),
                refs,
            });
        }
        let draws = |a: &PciAddr| !set.contains(a) && snapshot.function(*a).is_some_and(Function::is_on_nvidia);
        let shown = snapshot.framebuffers.iter().filter_map(|fb| fb.of).find(draws);
        reasons.extend(shown.map(|other| {
            Reason::Other(format!(
                "nvidia_drm also draws the display of {other}, which would go dark. Hint: 'rmmod nvidia_drm' all the \
                 same, if that may be, then 'gpu-handoff recover', then 'modprobe nvidia_drm'"
            ))
        }));
    }
    if waits_for_drm_alone && reasons.is_empty() {
        return Ok(());
    }
    reasons.insert(0, Reason::Hangs(Box::new(hang)));
    Err(Refusal(reasons))
}

/// Consoles that go off the framebuffer of what a call is at: those keep nvidia_drm loaded, if that is in use at all.
fn consoles(snapshot: &Snapshot, call: &StuckCall) -> Vec<String> {
    let is_daemon = |h: &Holder| matches!(&h.belongs_to, Belongs::Unit(name) if name == PERSISTENCED);
    let in_use = !unseen::unaccounted(snapshot, &[DRM.to_owned()], is_daemon).is_empty();
    let is_shown = |fb: &Framebuffer| fb.name.starts_with("nvidia") && fb.of.is_some_and(|of| call.at.contains(&of));
    if !in_use || !snapshot.framebuffers.iter().any(is_shown) {
        return Vec::new();
    }
    let bound = snapshot.consoles.iter().filter(|c| c.is_framebuffer() && c.bound);
    bound.map(|c| c.name.clone()).collect()
}

/// The GPUs that a call may be at.
fn gpus(snapshot: &Snapshot, call: &StuckCall) -> Vec<PciAddr> {
    let is_gpu = |a: &PciAddr| snapshot.function(*a).is_some_and(Function::is_nvidia_gpu);
    call.at.iter().copied().filter(is_gpu).collect()
}

/// Puts on record what a call is at, where nothing is yet, and what is unloaded to free it: a run that is killed in between
/// leaves something to be brought home.
pub fn put_on_record(snapshot: &Snapshot, call: &StuckCall, mut record: Record) -> Record {
    if record.taken.is_empty() {
        record.state = State::Stranded;
        let taken = |addr| Taken {
            addr,
            parent: snapshot.function(addr).and_then(|f| f.parent),
            driver: Some("nvidia".to_owned()),
            module: Some("nvidia".to_owned()),
            driver_override: None,
            width: None,
            attributes: Vec::new(),
        };
        record.taken = gpus(snapshot, call).into_iter().map(taken).collect();
    }
    record.consoles = both(Some(&record.consoles), &consoles(snapshot, call));
    if !record.modules.iter().any(|m| m == DRM) {
        record.modules.insert(0, DRM.to_owned());
    }
    record
}

/// What frees a call ([`may_be_freed`]).
pub fn freeing(snapshot: &Snapshot, call: &StuckCall, record: &Record) -> Plan {
    let gpus = gpus(snapshot, call);
    let mut steps = Steps::home(&record.budgets, gpus.len(), &gpus);
    let consoles = consoles(snapshot, call);
    for console in &consoles {
        steps.console(console, false);
    }
    steps.unload(DRM);
    Plan {
        direction: Direction::Home,
        owner: record.owner,
        cards: slots(&gpus),
        way: Way::Unbind,
        taken: record.taken.clone(),
        modules: record.modules.clone(),
        units: Vec::new(),
        again: Vec::new(),
        consoles,
        platforms: Vec::new(),
        numbers: Numbers::default(),
        beside: Vec::new(),
        awake: Vec::new(),
        missing: Vec::new(),
        steps: steps.into_list(),
        notes: Vec::new(),
    }
}

/// Whether a function that is on no driver belongs on its own, as far as the host says: nobody means it for another, and
/// that one is loaded. `reserved`: the VM that Proxmox has reserved it for.
fn belongs_home(snapshot: &Snapshot, addr: PciAddr, reserved: Option<u64>) -> Result<Taken, String> {
    let Some(function) = snapshot.function(addr) else {
        return Err(format!("{addr} is not there any more"));
    };
    if let Some(driver) = &function.driver {
        return Err(format!("{addr} is on {driver} by now"));
    }
    if function.stuck || function.gone || !function.asked {
        return Err(format!("{addr} does not answer, or a call on it is not over"));
    }
    if let Some(vmid) = reserved {
        return Err(format!("Proxmox has reserved {addr} for VM {vmid}"));
    }
    let (Some(driver), Some(module)) = natural_driver(function) else {
        return Err(format!("{addr} has no driver of its own"));
    };
    match function.driver_override.as_deref() {
        Some(other) if other != driver => {
            return Err(format!("the driver_override of {addr} means it for {other}"));
        }
        _ => {}
    }
    if snapshot.module(module).is_none() {
        return Err(format!("{module}, the module of the driver of {addr}, is not loaded"));
    }
    Ok(Taken {
        addr,
        parent: function.parent,
        driver: Some(driver.to_owned()),
        module: Some(module.to_owned()),
        driver_override: None,
        width: None,
        attributes: Vec::new(),
    })
}

/// Of a GPU's card, the functions that are on no driver and belong on their own. Those that do not are left, and why the
/// GPU is no part of it is said.
///
/// # Errors
/// Why the GPU is left as it is, in words.
pub fn comes_home(
    snapshot: &Snapshot,
    gpu: PciAddr,
    reserved: impl Fn(PciAddr) -> Option<u64>,
) -> Result<Vec<Taken>, String> {
    let home = belongs_home(snapshot, gpu, reserved(gpu))?;
    let others = snapshot
        .slot(gpu.slot())
        .filter(|f| f.addr != gpu && f.physfn.is_none());
    let others = others.filter_map(|f| belongs_home(snapshot, f.addr, reserved(f.addr)).ok());
    Ok(std::iter::once(home).chain(others).collect())
}

/// A record of what nobody has written down, of this GPU's card: nothing of it is reset.
pub fn unrecorded(taken: Vec<Taken>, mut record: Record) -> Record {
    record.taken = taken;
    record.sort_taken();
    record.may_reset = false;
    record.rest(State::Stranded);
    record
}
