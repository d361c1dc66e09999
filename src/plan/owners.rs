//! Whose is what is on record: who has a claim on it still, what of it comes home before a VM takes what it wants, and what
//! that VM takes over. Pure.
//!
//! An owner whose VM neither runs with a function nor is starting has no claim on it. That a VM runs with a function means
//! that its QEMU has the VFIO group, or the device itself, open: a VM that was started anew without its GPU, since the
//! config was changed or rolled back, does not.

use std::collections::BTreeSet;

use crate::base::pci::{PciAddr, PciSlot};
use crate::base::sets::IntoSet as _;
use crate::base::vmid::VmId;
use crate::host::belongs::Belongs;
use crate::host::holders::Holder;
use crate::host::nodes::Node;
use crate::host::snapshot::Snapshot;
use crate::model::claim::Claim;
use crate::model::record::{Beside, Owner, Record, State, found_again};
use crate::model::refusal::Reason;
use crate::plan::moving::Ground;
use crate::plan::steps::{both, both_units};

/// What a snapshot does not show of an owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signs {
    /// A task of Proxmox holds the VM's lock.
    pub busy: bool,
    /// Who called its pre-start by hand is alive.
    pub caller: bool,
}

/// The claim that a record's owner has on some of its functions; None: nobody has one. What was taken by hand is a person's
/// and not judged here.
pub fn claim(snapshot: &Snapshot, record: &Record, addrs: &[PciAddr], signs: Signs) -> Option<Claim> {
    let Owner::Vm(vmid) = record.owner else { return None };
    if signs.busy {
        return Some(Claim::Busy(vmid));
    }
    if let Some(caller) = record.caller.filter(|_| signs.caller) {
        return Some(Claim::Caller { vmid, pid: caller.pid });
    }
    let held = held(snapshot, record);
    addrs.iter().any(|a| held.contains(a)).then_some(Claim::Runs(vmid))
}

/// The functions of a record that a QEMU of its owner has.
pub fn held(snapshot: &Snapshot, record: &Record) -> Vec<PciAddr> {
    let addrs: Vec<PciAddr> = record.taken.iter().map(|t| t.addr).collect();
    match record.owner {
        Owner::Vm(vmid) => held_by(snapshot, vmid, &addrs),
        Owner::ByHand(_) => Vec::new(),
    }
}

/// Those of some functions that the QEMU of a VM has.
pub fn held_by(snapshot: &Snapshot, vmid: VmId, addrs: &[PciAddr]) -> Vec<PciAddr> {
    let is_its = |holder: &&Holder| {
        let pid = u32::try_from(holder.pid).ok();
        let runs_as = snapshot.vms.iter().find(|vm| vm.vmid == vmid);
        holder.belongs_to == Belongs::Vm(vmid) || runs_as.is_some_and(|vm| Some(vm.process.pid) == pid)
    };
    let nodes = || snapshot.holders.iter().filter(is_its).flat_map(|h| &h.nodes);
    let has = |addr: PciAddr| {
        let group = snapshot.function(addr).and_then(|f| f.group);
        nodes().any(|node| match node {
            Node::VfioDevice(a) => *a == addr,
            Node::VfioGroup(g) => Some(*g) == group,
            _ => false,
        })
    };
    addrs.iter().copied().filter(|a| has(*a)).collect()
}

/// The cards among these functions that the QEMU of another VM has.
pub fn elsewhere(snapshot: &Snapshot, owner: Owner, addrs: &[PciAddr]) -> BTreeSet<PciSlot> {
    let others = snapshot
        .vms
        .iter()
        .map(|vm| vm.vmid)
        .filter(|vmid| Owner::Vm(*vmid) != owner);
    others
        .flat_map(|vmid| slots_of(&held_by(snapshot, vmid, addrs)))
        .into_set()
}

/// What a VM wants, as slots: the cards of its GPUs, which may have been removed from the bus, and whatever has to leave with
/// them.
pub fn wanted(snapshot: &Snapshot, gpus: &[PciAddr], given: &[PciAddr], own: Option<&Record>) -> BTreeSet<PciSlot> {
    let ground = Ground::of(snapshot, gpus, given, own);
    ground.set.iter().chain(gpus).map(|a| a.slot()).into_set()
}

/// The cards of some functions.
pub fn slots_of(addrs: &[PciAddr]) -> BTreeSet<PciSlot> {
    addrs.iter().map(|a| a.slot()).into_set()
}

/// The functions of a record that are among these slots.
pub fn among(record: &Record, slots: &BTreeSet<PciSlot>) -> Vec<PciAddr> {
    let addrs = record.taken.iter().map(|t| t.addr);
    addrs.filter(|a| slots.contains(&a.slot())).collect()
}

/// The functions that a record is about, among these slots: those that were taken, and those that a run on it has left
/// without their driver, or may do so while it is at work.
pub fn concerned(snapshot: &Snapshot, record: &Record, slots: &BTreeSet<PciSlot>) -> Vec<PciAddr> {
    let is_without = |b: &&Beside| {
        let function = snapshot.function(b.addr);
        function.is_none_or(|f| f.driver.as_ref() != Some(&b.driver))
    };
    let stayed = record.stayed().filter(|b| record.at_work.is_some() || is_without(b));
    let stayed = stayed.map(|b| b.addr).filter(|a| slots.contains(&a.slot()));
    among(record, slots).into_iter().chain(stayed).collect()
}

/// What of a record some VM runs with: its owner's, or another one that has it from vfio-pci.
pub fn in_use(snapshot: &Snapshot, record: &Record) -> BTreeSet<PciSlot> {
    let addrs: Vec<PciAddr> = record.taken.iter().map(|t| t.addr).collect();
    let mut slots = elsewhere(snapshot, record.owner, &addrs);
    slots.extend(slots_of(&held(snapshot, record)));
    slots
}

/// A record without what stayed beside its run and another handoff has taken since: that one brings it home.
pub fn without_what_others_have(record: &Record, records: &[Record]) -> Record {
    let is_anothers = |addr: PciAddr| records.iter().any(|r| r.owner != record.owner && r.has(addr));
    let mut record = record.clone();
    record.beside.retain(|b| !is_anothers(b.addr));
    record
}

/// A part of a handoff that comes home.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The record with what comes home.
    pub comes: Record,
    /// The record of what stays away; None: nothing does.
    pub stays: Option<Record>,
}

impl Part {
    /// What of a record comes home; None: nothing. All of it, where a run on it was broken off or has failed: what it has
    /// stopped and unloaded is then not the business of single cards.
    pub fn of(record: &Record, comes: impl Fn(PciAddr) -> bool) -> Option<Part> {
        let (mut part, mut rest) = (record.clone(), record.clone());
        part.taken.retain(|t| comes(t.addr));
        rest.taken.retain(|t| !comes(t.addr));
        if part.taken.is_empty() {
            return None;
        }
        if rest.taken.is_empty() || record.state != State::Away {
            return Some(Part::whole(record));
        }
        Some(Part {
            comes: part,
            stays: Some(rest),
        })
    }

    /// All of a record.
    pub fn whole(record: &Record) -> Part {
        Part {
            comes: record.clone(),
            stays: None,
        }
    }

    /// The same where its owner's QEMU, or another one, has the functions of these slots: they never come along, whatever has
    /// become of a run on the others.
    pub fn beside(record: &Record, held: &BTreeSet<PciSlot>) -> Option<Part> {
        let away = Record {
            state: State::Away,
            ..record.clone()
        };
        let mut part = Part::of(&away, |a| !held.contains(&a.slot()))?;
        part.comes.state = record.state;
        if let Some(stays) = part.stays.as_mut().filter(|_| record.state != State::Away) {
            stays.rest(State::Away); // what was under way was not theirs
            stays.beside.clear();
        }
        Some(part)
    }

    /// Its functions.
    pub fn addrs(&self) -> Vec<PciAddr> {
        self.comes.taken.iter().map(|t| t.addr).collect()
    }
}

/// What comes home before a VM takes what it wants, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct First {
    /// The record as it is on file.
    pub record: Record,
    /// What of it comes home.
    pub part: Part,
}

/// The next thing to come home before `owner` takes what it wants; None: nothing has to. First its own, what it has on
/// record and no longer wants; then what others have on record of what it wants, who are gone. `tried`: whose way home was
/// gone already, well or not.
///
/// # Errors
/// The claims of others who are not gone.
pub fn first(
    snapshot: &Snapshot,
    records: &[Record],
    owner: Owner,
    wanted: &BTreeSet<PciSlot>,
    tried: &[Owner],
    signs: impl Fn(&Record) -> Signs,
) -> Result<Option<First>, Vec<Reason>> {
    let first = |record: &Record, part: Option<Part>| {
        let record = record.clone();
        part.map(|part| First { record, part })
    };
    let left = || records.iter().filter(|r| !tried.contains(&r.owner));
    if let Some(own) = left().find(|r| r.owner == owner) {
        // What a way home has removed from the bus is found again by a way home.
        let lost = |a: PciAddr| snapshot.function(a).is_none() && found_again(own, a).is_some();
        let part = Part::of(own, |a| lost(a) || !wanted.contains(&a.slot()));
        if part.is_some() {
            return Ok(first(own, part));
        }
    }
    let of_vm = |r: &&Record| r.owner != owner && matches!(r.owner, Owner::Vm(_));
    let is_concerned = |r: &&Record| !concerned(snapshot, r, wanted).is_empty();
    let others: Vec<&Record> = left().filter(of_vm).filter(is_concerned).collect();
    let claimed = others.iter().filter_map(|record| {
        let addrs = concerned(snapshot, record, wanted);
        let claim = claim(snapshot, record, &addrs, signs(record))?;
        Some(Reason::Claimed { addrs, claim })
    });
    let claimed: Vec<Reason> = claimed.collect();
    if !claimed.is_empty() {
        return Err(claimed);
    }
    let Some(record) = others.first() else { return Ok(None) };
    Ok(first(record, Part::beside(record, &in_use(snapshot, record))))
}

/// What another record is to be once a VM has taken over what it wants of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Over {
    /// Whose it was.
    pub from: Owner,
    /// What is taken over.
    pub addrs: Vec<PciAddr>,
    /// What stays on record for that owner; None: nothing.
    pub rest: Option<Record>,
}

/// Takes over what another handoff has on record among these slots, with all that its way home needs to know: `own` is
/// what the VM has on record itself, or its first record. What of it is in both is the same in both, so that nothing is
/// lost where a run is killed between the writing of the one and of the other.
pub fn take_over(own: Record, from: &Record, slots: &BTreeSet<PciSlot>) -> (Record, Over) {
    let mut own = own;
    let is_wanted = |a: PciAddr| slots.contains(&a.slot());
    for taken in from.taken.iter().filter(|t| is_wanted(t.addr)) {
        if !own.has(taken.addr) {
            own.taken.push(taken.clone());
        }
        if let Some(owed) = found_again(from, taken.addr).filter(|owed| !own.under_way.contains(owed)) {
            own.under_way.push(owed);
        }
    }
    own.sort_taken();
    own.beside = both(Some(&own.beside), &from.beside);
    own.modules = both(Some(&own.modules), &from.modules);
    own.units = both_units(Some(&own.units), &from.units);
    own.consoles = both(Some(&own.consoles), &from.consoles);
    own.platforms = both(Some(&own.platforms), &from.platforms);
    own.numbers = from.numbers.clone().noted_before(&own.numbers);
    own.awake = both(Some(&own.awake), &from.awake);
    own.wedges = both(Some(&own.wedges), &from.wedges);
    own.may_reset &= from.may_reset;
    own.state = State::Stranded;
    let mut rest = from.clone();
    rest.taken.retain(|t| !is_wanted(t.addr));
    let over = Over {
        from: from.owner,
        addrs: among(from, slots),
        rest: Some(rest).filter(|r| !r.taken.is_empty()),
    };
    (own, over)
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::base::deadlines::Budgets;
    use crate::base::pci::{PciClass, VENDOR_NVIDIA};
    use crate::base::process::Process;
    use crate::host::functions::Function;
    use crate::host::vms::RunningVm;
    use crate::model::record::Taken;

    #[test]
    fn what_another_vm_runs_with_stays_and_the_rest_comes_home() {
        let [first, second] = ["0000:01:00.0", "0000:02:00.0"].map(|a| a.parse::<PciAddr>().unwrap());
        let vm = |vmid: u32| VmId::try_from(vmid).unwrap();
        let mut snapshot = Snapshot::default();
        for (addr, group) in [(first, 21), (second, 22)] {
            let mut function = Function::new(addr, VENDOR_NVIDIA, 0x2204, PciClass(0x03_0000));
            function.group = Some(group);
            snapshot.functions.push(function);
        }
        let mut record = Record::new(Owner::Vm(vm(111)), "boot".to_owned(), Budgets::default());
        record.taken = vec![Taken::on_nvidia(first), Taken::on_nvidia(second)];
        record.state = State::Stranded;
        for (by, stays) in [(111, vec![]), (112, vec![second])] {
            let process = Process { pid: 900, started: 1 };
            snapshot.vms = vec![RunningVm { vmid: vm(by), process }];
            snapshot.holders = vec![Holder {
                pid: 900,
                comm: "kvm".to_owned(),
                belongs_to: Belongs::Vm(vm(by)),
                nodes: vec![Node::VfioGroup(22)],
            }];
            let held = elsewhere(&snapshot, record.owner, &[first, second]);
            assert_eq!(held, slots_of(&stays), "VM {by}");
            let part = Part::beside(&record, &held).unwrap();
            let left = part.stays.iter().flat_map(|r| &r.taken).map(|t| t.addr);
            assert_eq!(left.collect::<Vec<_>>(), stays, "VM {by}");
            assert_eq!(part.comes.state, State::Stranded);
            assert!(part.stays.is_none_or(|r| r.state == State::Away));
        }
        assert_eq!(Part::beside(&record, &slots_of(&[first, second])), None);
    }
}
