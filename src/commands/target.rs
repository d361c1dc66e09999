//! Which GPU a command by hand means.

use crate::base::pci::PciAddr;
use crate::commands::cli::Target;
use crate::host::snapshot::Snapshot;
use crate::model::error::Error;
use crate::model::record::{Owner, Record};
use crate::model::refusal::{Reason, Refusal};
use crate::plan::selection::{self, Given};
use crate::run::session::Session;

/// What a target means on this host. Without any, GPU_PCI and GPU_AUDIO_PCI count, the variables of the shell script that
/// came before this program.
pub(crate) fn given(host: &Session, target: &Target, snapshot: &Snapshot) -> Result<Given, Error> {
    let variable = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    let gpu = match (&target.vm, &target.gpu, variable("GPU_PCI")) {
        (Some(vmid), ..) => return host.devices_of(*vmid, &host.vm_config(*vmid)?, snapshot),
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

/// The record that a target's GPUs are in, or the GPUs where there is none. With a VM its own record comes first: its
/// config may have changed since.
pub(crate) fn recorded<'a>(
    host: &Session,
    target: &Target,
    records: &'a [Record],
    snapshot: &Snapshot,
) -> Result<Result<&'a Record, Vec<PciAddr>>, Error> {
    let of_vm = |r: &&Record| target.vm.is_some_and(|vmid| r.owner == Owner::Vm(vmid));
    if let Some(record) = records.iter().find(of_vm) {
        return Ok(Ok(record));
    }
    let given = given(host, target, snapshot)?;
    some_gpus(target, &given)?;
    let found = records.iter().find(|r| given.gpus.iter().any(|g| r.has(*g)));
    Ok(found.ok_or(given.gpus))
}
