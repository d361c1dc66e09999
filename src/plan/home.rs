//! The plan from vfio-pci to the host. Pure: from the record, not from any config, and from how things are now.
//!
//! Decided here: whether somebody still uses what comes home, what of it can, and what is missing. The acts are put in
//! order in [`crate::plan::home_steps`].

use crate::base::pci::{PciAddr, PciClass, VENDOR_NVIDIA, slots};
use crate::host::functions::Function;
use crate::host::snapshot::Snapshot;
use crate::model::act::Act;
use crate::model::plan::{Direction, Plan, Way};
use crate::model::record::{Record, Taken, found_again};
use crate::model::refusal::{Reason, Refusal};
use crate::plan::hangs;
use crate::plan::home_steps::{Acts, WayHome};
use crate::plan::obstacles::{at_work, silent};
use crate::plan::users;

/// The plan from vfio-pci to the host, from the record alone and how things are now. It needs the details of all functions
/// of the record ([`Record::functions`]).
///
/// # Errors
/// [`Refusal`] where somebody still uses a function.
pub fn plan(snapshot: &Snapshot, record: &Record) -> Result<Plan, Refusal> {
    let reasons = reasons(snapshot, record);
    if !reasons.is_empty() {
        return Err(Refusal(reasons));
    }
    let removed = removed(snapshot, record);
    let (present, missing) = present_and_missing(snapshot, record, &removed);
    let way = WayHome {
        snapshot,
        record,
        removed: &removed,
        present,
        all_are_there: missing.is_empty(),
    };
    let Acts { steps, awake, notes } = way.acts();
    // To look whether a GPU works moves nothing, nor does it to see what containers have of it.
    let only_looks = |act: &Act| matches!(act, Act::Verify { .. } | Act::RenewNodes { .. });
    let moves = steps.iter().any(|s| !only_looks(&s.act));
    Ok(Plan {
        direction: Direction::Home,
        owner: record.owner,
        cards: slots(&cards(snapshot, record)),
        way: if moves { Way::Unbind } else { Way::AlreadyThere },
        taken: record.taken.clone(),
        beside: Vec::new(),
        modules: record.modules.clone(),
        units: record.units.clone(),
        again: Vec::new(),
        consoles: record.consoles.clone(),
        platforms: record.platforms.clone(),
        numbers: record.numbers.clone(),
        awake,
        missing,
        steps,
        notes,
    })
}

fn reasons(snapshot: &Snapshot, record: &Record) -> Vec<Reason> {
    if let Some(reason) = at_work(record) {
        return vec![reason];
    }
    let addrs = record.taken.iter().map(|t| t.addr);
    let is_on_vfio = |a: &PciAddr| snapshot.function(*a).is_some_and(Function::is_on_vfio);
    let on_vfio: Vec<PciAddr> = addrs.filter(is_on_vfio).collect();
    let mut reasons = users::keeps_away(snapshot, &on_vfio, record.owner);
    reasons.extend(record.stuck().map(Reason::Stuck));
    let taken: Vec<PciAddr> = record.taken.iter().map(|t| t.addr).collect();
    reasons.extend(hangs::at(snapshot, &taken));
    // Stuck in another handoff.
    let there = || record.taken.iter().filter_map(|t| snapshot.function(t.addr));
    let is_said = |a: PciAddr| record.stuck().any(|r| r == a) || snapshot.calls_at(a).next().is_some();
    let other = there().filter(|f| f.stuck && !is_said(f.addr));
    reasons.extend(other.map(|f| Reason::Stuck(f.addr)));
    // What stayed beside it as well: the load of its driver would wait for its lock.
    let stayed = record.stayed().filter_map(|b| snapshot.function(b.addr));
    reasons.extend(silent(there().chain(stayed)));
    reasons
}

/// What was taken, without a host bridge that went along, which is no card.
fn cards(snapshot: &Snapshot, record: &Record) -> Vec<PciAddr> {
    let is_card = |a: &PciAddr| snapshot.function(*a).is_none_or(|f| f.vendor == VENDOR_NVIDIA);
    record.taken.iter().map(|t| t.addr).filter(is_card).collect()
}

/// What is not on the bus, as it is when it is found again: without an override, on no driver where none is quicker. An
/// interrupted run has removed it, or somebody else has; that only a power cycle helps is said when a rescan has not.
fn removed(snapshot: &Snapshot, record: &Record) -> Vec<Function> {
    let as_found = |taken: &Taken| {
        let addr = taken.addr;
        if snapshot.function(addr).is_some() {
            return None;
        }
        let bridge = match found_again(record, addr) {
            Some(Act::Rescan { bridge, .. }) => bridge,
            _ => taken.parent,
        };
        // A bridge that has gone too is found where all buses are searched.
        let bridge = bridge.filter(|b| snapshot.function(*b).is_some());
        // VGA, as far as it matters here: what a GPU does when it is home is looked at.
        let is_gpu = taken.driver.as_deref() == Some("nvidia");
        let class = PciClass(if is_gpu { 0x03_0000 } else { 0 });
        Some(Function {
            parent: bridge,
            asked: true,
            ..Function::new(addr, VENDOR_NVIDIA, 0, class)
        })
    };
    record.taken.iter().filter_map(as_found).collect()
}

/// What is said of a function that has fallen off the bus.
const GONE: &str = "does not answer any more (it reads all ones) and needs a power cycle";

/// A function as it was and as it is.
type Present<'a> = (&'a Taken, &'a Function);

/// What was taken and can come home, NVSwitches last; and what cannot, with why.
fn present_and_missing<'a>(
    snapshot: &'a Snapshot,
    record: &'a Record,
    removed: &'a [Function],
) -> (Vec<Present<'a>>, Vec<(PciAddr, String)>) {
    let (mut present, mut missing) = (Vec::new(), Vec::new());
    for taken in &record.taken {
        let known = removed.iter().find(|f| f.addr == taken.addr);
        match snapshot.function(taken.addr).or(known) {
            None => {} // what is not there is among what is to be found
            // Every access to it would take the minute that the kernel waits for a device after a reset.
            Some(function) if function.gone => missing.push((taken.addr, GONE.to_owned())),
            Some(function) => present.push((taken, function)),
        }
    }
    // Of what stayed nothing is known by which it could be found again.
    for beside in record.stayed() {
        match snapshot.function(beside.addr) {
            None => missing.push((beside.addr, "is not on the bus any more".to_owned())),
            Some(function) if function.gone => missing.push((beside.addr, GONE.to_owned())),
            Some(_) => {}
        }
    }
    // An NVSwitch, whose driver is in the same module, does not keep that loaded: without a GPU it gives up.
    let is_switch = |t: &Taken| t.module.as_deref() == Some("nvidia") && t.driver.as_deref() != Some("nvidia");
    let (switches, mut ordered): (Vec<_>, Vec<_>) = present.into_iter().partition(|(taken, _)| is_switch(taken));
    ordered.extend(switches);
    (ordered, missing)
}
