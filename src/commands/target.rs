//! Which GPU a command by hand means.

use crate::base::pci::PciAddr;
use crate::base::sets::IntoSet as _;
use crate::base::text::join;
use crate::commands::cli::Target;
use crate::host::snapshot::{Snapshot, card};
use crate::model::error::Error;
use crate::model::record::{Owner, Record, Taken};
use crate::model::refusal::{Reason, Refusal};
use crate::plan::owners::{self, Part};
use crate::plan::selection::{self, Given};
use crate::run::session::Session;

/// What a target means on this host. Without any, GPU_PCI and GPU_AUDIO_PCI count, the variables of the shell script that
/// came before this program.
pub(crate) fn given(host: &mut Session, target: &Target, snapshot: &Snapshot) -> Result<Given, Error> {
    let gpu = match (&target.vm, &target.gpu, named_by_variable()) {
        (Some(vmid), ..) => {
            let read = host.vm_config(*vmid)?;
            return host.devices_of(*vmid, &read, snapshot);
        }
        (None, Some(name), _) => selection::named(name, snapshot),
        (None, None, Some(name)) => selection::named(&name, snapshot)
            .and_then(|gpu| selection::has_audio(gpu, variable("GPU_AUDIO_PCI").as_deref(), snapshot)),
        (None, None, None) => selection::only(snapshot),
    };
    Ok(Given {
        gpus: vec![gpu.map_err(Refusal::from)?],
        ..Given::default()
    })
}

pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
}

pub(crate) fn named_by_variable() -> Option<String> {
    variable("GPU_PCI")
}

/// Whether a target says which GPUs it means.
pub(crate) fn is_named(target: &Target) -> bool {
    target.vm.is_some() || target.gpu.is_some() || named_by_variable().is_some()
}

/// The GPUs of a target that has to have some.
pub(crate) fn some_gpus(target: &Target, given: &Given) -> Result<(), Error> {
    if let Some(reason) = &given.refused {
        return Err(Refusal::from(reason.clone()).into());
    }
    match (&target.vm, given.gpus.is_empty()) {
        (Some(vmid), true) => {
            let why = format!("VM {vmid} has no NVIDIA GPU to hand over. Hint: see 'gpu-handoff plan --vm {vmid}'");
            Err(Refusal::from(Reason::Other(why)).into())
        }
        _ => Ok(()),
    }
}

/// The functions of the cards of these GPUs.
pub(crate) fn moving(snapshot: &Snapshot, gpus: &[PciAddr]) -> Vec<PciAddr> {
    let cards = gpus.iter().flat_map(|gpu| card(snapshot, *gpu));
    cards.into_set().into_iter().collect()
}

/// Whose a handoff of this GPU by hand is: the one's that has it by hand already, or its own.
pub(crate) fn by_whom(records: &[Record], gpu: PciAddr) -> Owner {
    let by_hand = records.iter().filter(|r| matches!(r.owner, Owner::ByHand(_)));
    let earlier = by_hand.into_iter().find(|r| r.has(gpu));
    earlier.map_or(Owner::ByHand(gpu), |r| r.owner)
}

/// A record with those of its GPUs that were named; or the GPUs, where no record has one of them.
type Recorded<'a> = Result<(&'a Record, Vec<PciAddr>), Vec<PciAddr>>;

/// The record that a target's GPUs are in, or the GPUs where there is none. With a VM its
/// own record comes first: its config may have changed since. Where nothing says which of several GPUs is meant, it is the one
/// that is lent. What a run has left without its driver beside others is on that run's record.
pub(crate) fn recorded<'a>(
    host: &mut Session,
    target: &Target,
    records: &'a [Record],
    snapshot: &Snapshot,
) -> Result<Recorded<'a>, Error> {
    let of_vm = |r: &&Record| target.vm.is_some_and(|vmid| r.owner == Owner::Vm(vmid));
    if let Some(record) = records.iter().find(of_vm) {
        return Ok(Ok((record, Vec::new())));
    }
    if !is_named(target)
        && let Some(record) = lent(records, snapshot).map_err(Refusal::from)?
    {
        return Ok(Ok((record, Vec::new())));
    }
    let name = target
        .gpu
        .clone()
        .or_else(named_by_variable)
        .filter(|_| target.vm.is_none());
    if let Some(record) = name.and_then(|name| vanished(records, snapshot, &name)) {
        return Ok(Ok((record, Vec::new())));
    }
    // What is not understood of a config keeps nothing from coming home.
    let mut given = given(host, target, snapshot)?;
    if let Some(Reason::NotUnderstood { .. }) = given.refused {
        given.refused = None;
    }
    some_gpus(target, &given)?;
    let found = record_of(records, snapshot, &given.gpus);
    let named = target.vm.is_none();
    Ok(match found {
        Some(record) if named => Ok((record, given.gpus)),
        Some(record) => Ok((record, Vec::new())),
        None => Err(given.gpus),
    })
}

/// The record that has one of these GPUs, or that of the run which has left one without its driver.
fn record_of<'a>(records: &'a [Record], snapshot: &Snapshot, gpus: &[PciAddr]) -> Option<&'a Record> {
    let slots = owners::slots_of(gpus);
    let has = records.iter().find(|r| gpus.iter().any(|g| r.has(*g)));
    has.or_else(|| {
        records
            .iter()
            .find(|r| !owners::concerned(snapshot, r, &slots).is_empty())
    })
}

/// What of a record comes home by hand: all of it, or without what a VM runs with, where that is not what was named.
pub(crate) fn part_of(record: &Record, named: &[PciAddr], snapshot: &Snapshot) -> Part {
    let part = Part::beside(record, &owners::in_use(snapshot, record));
    let stays = |part: &Part, gpu: &PciAddr| part.stays.as_ref().is_some_and(|s| s.has(*gpu));
    let part = part.filter(|p| !named.is_empty() && !named.iter().any(|gpu| stays(p, gpu)));
    part.unwrap_or_else(|| Part::whole(record))
}

/// The record of a function of this name that was taken and is not on the bus any more: no GPU that is there is meant.
pub(crate) fn vanished<'a>(records: &'a [Record], snapshot: &Snapshot, name: &str) -> Option<&'a Record> {
    let is_meant = |t: &Taken| snapshot.function(t.addr).is_none() && selection::is_name_of(name, t.addr);
    records.iter().find(|r| r.taken.iter().any(is_meant))
}

/// Of several GPUs the lent one, by its record; None where nothing is on record, or the host has one GPU, which is meant
/// whatever is. One that was taken and is not on the bus any more counts. What is on vfio-pci without a record may be meant to stay there by the host's own settings.
///
/// # Errors
/// A sentence that lists what is lent and to whom, where that is more than one handoff.
fn lent<'a>(records: &'a [Record], snapshot: &Snapshot) -> Result<Option<&'a Record>, Reason> {
    let has_gone = |t: &Taken| t.driver.as_deref() == Some("nvidia") && snapshot.function(t.addr).is_none();
    let none_has_gone = !records.iter().flat_map(|r| &r.taken).any(has_gone);
    if snapshot.gpus().count() < 2 && none_has_gone {
        return Ok(None);
    }
    let what = |record: &Record| {
        let gpus: Vec<PciAddr> = snapshot.gpus().map(|f| f.addr).filter(|a| record.has(*a)).collect();
        let what = match gpus.as_slice() {
            [] => join(record.taken.iter().map(|t| t.addr)),
            gpus => join(gpus),
        };
        format!("{what} ({})", record.owner)
    };
    match records {
        [] => Ok(None),
        [record] => Ok(Some(record)),
        several => Err(Reason::Other(format!(
            "{} handoffs are on record and no GPU was named. Hint: add --gpu with one of those that are lent: {}",
            several.len(),
            join(several.iter().map(what))
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::base::deadlines::Budgets;
    use crate::base::pci::{PciClass, VENDOR_NVIDIA};
    use crate::base::process::Process;
    use crate::base::vmid::VmId;
    use crate::host::belongs::Belongs;
    use crate::host::functions::Function;
    use crate::host::holders::Holder;
    use crate::host::nodes::Node;
    use crate::host::vms::RunningVm;
    use crate::model::record::{Beside, State};

    fn addr(text: &str) -> PciAddr {
        text.parse().unwrap()
    }

    fn record(owner: Owner, gpus: &[&str]) -> Record {
        let mut record = Record::new(owner, "boot".to_owned(), Budgets::default());
        record.taken = gpus.iter().map(|gpu| Taken::on_nvidia(addr(gpu))).collect();
        record
    }

    #[test]
    fn of_several_gpus_the_lent_one_is_meant_and_of_several_lent_ones_they_are_listed() {
        let vm = || Owner::Vm("111".parse().unwrap());
        let (first, second) = ("0000:01:00.0", "0000:02:00.0");
        let one = || vec![record(vm(), &[second])];
        let both_of_a_vm = || vec![record(vm(), &[first, second])];
        let two = || {
            vec![
                record(vm(), &[second]),
                record(Owner::ByHand(addr(first)), &[first, "0000:03:00.0"]),
            ]
        };
        let listed = "2 handoffs are on record and no GPU was named. Hint: add --gpu with one of those that are lent: \
                      0000:02:00.0 (VM 111), 0000:01:00.0, 0000:03:00.0 (by hand)";
        for (gpus, records, meant) in [
            (1, vec![record(vm(), &[first])], Ok(None)),
            // It is not on the bus any more.
            (0, one(), Ok(Some(vm()))),
            (1, one(), Ok(Some(vm()))),
            (3, Vec::new(), Ok(None)),
            (2, one(), Ok(Some(vm()))),
            (3, both_of_a_vm(), Ok(Some(vm()))),
            (3, two(), Err(listed.to_owned())),
        ] {
            let gpus = [first, second, "0000:03:00.0"].into_iter().take(gpus);
            let snapshot = Snapshot {
                functions: gpus
                    .map(|gpu| Function::new(addr(gpu), VENDOR_NVIDIA, 0x2204, PciClass(0x03_0000)))
                    .collect(),
                ..Snapshot::default()
            };
            let found = lent(&records, &snapshot);
            let found = found.map(|r| r.map(|r| r.owner)).map_err(|why| why.to_string());
            assert_eq!(found, meant, "{} GPUs", snapshot.functions.len());
        }
    }

    fn on_nvidia(gpu: &str, group: u32) -> Function {
        let mut function = Function::new(addr(gpu), VENDOR_NVIDIA, 0x2204, PciClass(0x03_0000));
        (function.driver, function.group) = (Some("nvidia".to_owned()), Some(group));
        function
    }

    #[test]
    fn a_gpu_that_a_run_has_left_without_its_driver_is_on_the_record_of_that_run() {
        let (first, second) = ("0000:01:00.0", "0000:02:00.0");
        let mut record = record(Owner::ByHand(addr(first)), &[first]);
        record.beside.push(Beside {
            addr: addr(second),
            driver: "nvidia".to_owned(),
            driver_override: None,
        });
        let records = [record];
        let mut snapshot = Snapshot {
            functions: vec![on_nvidia(first, 1), on_nvidia(second, 2)],
            ..Snapshot::default()
        };
        let found = |snapshot: &Snapshot, gpu| record_of(&records, snapshot, &[addr(gpu)]).is_some();
        assert!(found(&snapshot, first));
        assert!(!found(&snapshot, second), "it has its driver");
        snapshot.functions[1].driver = None;
        assert!(found(&snapshot, second));
    }

    #[test]
    fn what_a_vm_runs_with_does_not_keep_another_card_away_that_was_named() {
        let (first, second) = ("0000:01:00.0", "0000:02:00.0");
        let [ours, other]: [VmId; 2] = ["111", "112"].map(|vm| vm.parse().unwrap());
        let mut record = record(Owner::Vm(ours), &[first, second]);
        record.state = State::Away;
        let mut snapshot = Snapshot {
            functions: vec![on_nvidia(first, 1), on_nvidia(second, 2)],
            ..Snapshot::default()
        };
        for vmid in [ours, other] {
            let process = Process { pid: 900, started: 1 };
            snapshot.vms = vec![RunningVm { vmid, process }];
            snapshot.holders = vec![Holder {
                pid: 900,
                comm: "kvm".to_owned(),
                belongs_to: Belongs::Vm(vmid),
                nodes: vec![Node::VfioGroup(1)],
            }];
            for (named, comes) in [
                (&[][..], &[first, second][..]),
                (&[second], &[second]),
                // Who asks for it is told who runs with it.
                (&[first], &[first, second]),
            ] {
                let named: Vec<PciAddr> = named.iter().map(|gpu| addr(gpu)).collect();
                let comes: Vec<PciAddr> = comes.iter().map(|gpu| addr(gpu)).collect();
                assert_eq!(
                    part_of(&record, &named, &snapshot).addrs(),
                    comes,
                    "VM {vmid}, {named:?}"
                );
            }
        }
    }

    #[test]
    fn a_lent_gpu_that_is_not_on_the_bus_any_more_is_known_by_its_address() {
        let records = [record(Owner::ByHand(addr("0000:02:00.0")), &["0000:02:00.0"])];
        let with = |functions: &[&str]| Snapshot {
            functions: functions
                .iter()
                .map(|gpu| Function::new(addr(gpu), VENDOR_NVIDIA, 0x2204, PciClass(0x03_0000)))
                .collect(),
            ..Snapshot::default()
        };
        for (name, there, found) in [
            ("0000:02:00.0", &["0000:01:00.0"][..], true),
            ("02:00.0", &[], true),
            ("0000:02:00", &[], true),
            ("02:00", &[], true),
            ("0000:01:00.0", &[], false),
            ("2", &[], false),
            // It is there, and found as any other.
            ("0000:02:00.0", &["0000:02:00.0"], false),
        ] {
            assert_eq!(
                vanished(&records, &with(there), name).is_some(),
                found,
                "{name} {there:?}"
            );
        }
    }
}
