//! Which GPU a command by hand means.

use std::collections::BTreeSet;

use crate::base::pci::PciAddr;
use crate::base::text::join;
use crate::commands::cli::Target;
use crate::host::snapshot::{Snapshot, card};
use crate::model::error::Error;
use crate::model::record::{Owner, Record, Taken};
use crate::model::refusal::{Reason, Refusal};
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

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
}

fn named_by_variable() -> Option<String> {
    variable("GPU_PCI")
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
    cards.collect::<BTreeSet<PciAddr>>().into_iter().collect()
}

/// The record that a target's GPUs are in, or the GPUs where there is none. With a VM its own record comes first: its
/// config may have changed since. Where nothing says which of several GPUs is meant, it is the one that is lent.
pub(crate) fn recorded<'a>(
    host: &mut Session,
    target: &Target,
    records: &'a [Record],
    snapshot: &Snapshot,
) -> Result<Result<&'a Record, Vec<PciAddr>>, Error> {
    let of_vm = |r: &&Record| target.vm.is_some_and(|vmid| r.owner == Owner::Vm(vmid));
    if let Some(record) = records.iter().find(of_vm) {
        return Ok(Ok(record));
    }
    let says_which = target.vm.is_some() || target.gpu.is_some() || named_by_variable().is_some();
    if !says_which && let Some(record) = lent(records, snapshot).map_err(Refusal::from)? {
        return Ok(Ok(record));
    }
    let name = target
        .gpu
        .clone()
        .or_else(named_by_variable)
        .filter(|_| target.vm.is_none());
    if let Some(record) = name.and_then(|name| vanished(records, snapshot, &name)) {
        return Ok(Ok(record));
    }
    // What is not understood of a config keeps nothing from coming home.
    let mut given = given(host, target, snapshot)?;
    if let Some(Reason::NotUnderstood { .. }) = given.refused {
        given.refused = None;
    }
    some_gpus(target, &given)?;
    let found = records.iter().find(|r| given.gpus.iter().any(|g| r.has(*g)));
    Ok(found.ok_or(given.gpus))
}

/// The record of a function of this name that was taken and is not on the bus any more: no GPU that is there is meant.
fn vanished<'a>(records: &'a [Record], snapshot: &Snapshot, name: &str) -> Option<&'a Record> {
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
    use crate::host::functions::Function;

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
