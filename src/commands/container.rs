//! What the hook does for a container that is given a GPU: at pre-start the GPU is home, with its nodes, or it is said who has it.
//!
//! Proxmox calls the hook of a container with the same words as a VM's (pve-container, PVE/LXC.pm, vm_start), and a device that is
//! not there keeps the container from starting (PVE/LXC/Tools.pm, get_passthrough_device). Nothing is done in other phases.

use tracing::{info, warn};

use crate::base::pci::PciAddr;
use crate::base::systemd;
use crate::base::text::{are, join};
use crate::base::vmid::VmId;
use crate::commands::recover;
use crate::execute::kernel::Kernel;
use crate::host::functions::Function;
use crate::host::snapshot::Snapshot;
use crate::host::units::Unit;
use crate::model::error::{Error, chain};
use crate::model::record::{Owner, Record};
use crate::model::refusal::{Reason, Refusal};
use crate::plan::owners;
use crate::run::session::{Session, must_be_root};
use crate::settings::values::ContainerStart;

/// Brings home what is stranded, makes the nodes that the container is given, and refuses where a VM has the GPU, or where that
/// cannot be told; with `container-start = "go-on"` nothing keeps the container from starting.
pub(crate) fn pre_start(host: &mut Session, ctid: VmId) -> Result<(), Error> {
    // What is not understood of them keeps no GPU from coming home.
    if let Err(why) = host.read_settings(Some(ctid)) {
        warn!("container {ctid} pre-start: {}", chain(why.into()));
    }
    match have_nodes(host, ctid) {
        Err(why) if host.settings.container_start == ContainerStart::GoOn => {
            warn!("container {ctid} pre-start: {}; nothing is done", chain(why));
            Ok(())
        }
        result => result,
    }
}

fn have_nodes(host: &mut Session, ctid: VmId) -> Result<(), Error> {
    let given = match host.gpu_containers() {
        Ok(all) => all.into_iter().find(|c| c.ctid == ctid),
        // Perhaps another container's: what Proxmox itself needs of this one it will say.
        Err(why) => {
            warn!("container {ctid} pre-start: {}; nothing is done", chain(why));
            return Ok(());
        }
    };
    let nodes = given.map_or_else(Vec::new, |given| given.nodes);
    if nodes.is_empty() {
        info!("container {ctid} pre-start: it is given no node of NVIDIA's, nothing to do");
        return Ok(());
    }
    must_be_root()?;
    // Whoever else is at work on another GPU is not waited for.
    if make_nodes(host, &nodes, false)?.is_empty() {
        say_there(ctid, &nodes);
        return Ok(());
    }
    // A run that has shut it down starts it again at this moment, and has the lock meanwhile. Or somebody else starts it, and the run
    // comes to that while we wait for the lock: it waits in turn for the container's own, which is held until we have ended
    // (pve-container, PVE/API2/LXC/Status.pm, vm_start: lock_config).
    let end = host.kernel.now() + host.budgets.way_home;
    let who = format!("container {ctid} pre-start");
    let guard = match host.lock_unless(&who, end, |record| is_started(record, ctid))? {
        Ok(guard) => guard,
        Err(owner) => {
            // The driver may be back by now.
            make_nodes(host, &nodes, false)?;
            warn!(
                "container {ctid} pre-start: it is started by the handoff for {owner}, which goes on; nothing is done"
            );
            return Ok(());
        }
    };
    let mut records = host.records(Some(&guard))?;
    let mut owed_to_ha = false;
    if !records.is_empty() && !systemd::is_shutting_down() {
        // It is starting by now, and holds its own lock: nothing of it is started by the way home.
        recover::stranded_home(host, &guard, &records, ctid);
        let before = std::mem::take(&mut records);
        records = host.records(Some(&guard))?;
        let is_home = |record: &&Record| records.iter().all(|r| r.owner != record.owner);
        let owes_ha = |record: &Record| record.units.iter().any(|u| u.is_of_ha() && u.container() == Some(ctid));
        owed_to_ha = before.iter().filter(is_home).any(owes_ha);
    }
    let result = see_nodes(host, ctid, &nodes, &records);
    if owed_to_ha {
        let starts = result.is_ok() || host.settings.container_start == ContainerStart::GoOn;
        have_ha_look_after(host, ctid, starts);
    }
    result
}

/// Its nodes are made where that can be done; whether it may start.
fn see_nodes(host: &mut Session, ctid: VmId, nodes: &[String], records: &[Record]) -> Result<(), Error> {
    let policy = host.settings.container_start;
    let snapshot = host.look(records)?;
    let missing = make_nodes(host, nodes, may_load(records, &snapshot))?;
    if missing.is_empty() {
        say_there(ctid, nodes);
        return Ok(());
    }
    let away = away(records, &snapshot);
    let who = match away.as_slice() {
        [] => "NVIDIA's driver does not list a GPU for it".to_owned(),
        away => join(away),
    };
    let (missing, is) = (join(&missing), are(missing.len()));
    let why = format!("container {ctid} is given {missing}, which {is} not there: {who}");
    if away.is_empty() || policy == ContainerStart::GoOn {
        warn!("{why}; nothing is done about it");
        return Ok(());
    }
    Err(Refusal::from(Reason::Other(format!(
        "{why}. Hint: start it again when that has come home; or, where its lines for them are optional, container-start = \
         \"go-on\" in /etc/gpu-handoff/config.toml"
    )))
    .into())
}

/// It was stopped for a handoff that is over now, and HA ignores it: what starts it here is not the way home. HA has it back where it
/// can start; it would carry it off otherwise.
fn have_ha_look_after(host: &mut Session, ctid: VmId, can_start: bool) {
    let within = host.budgets.unit;
    let given = match can_start {
        true => host.kernel.give_to_ha(ctid, within),
        false => Err("it cannot start here by now".to_owned()),
    };
    if let Err(why) = given {
        let by_hand = Unit::OfHa { ha_container: ctid }.by_hand("start");
        warn!("container {ctid}: HA ignores it still: {why}. Hint: {by_hand}");
    }
}

/// Whether somebody starts this container: of a record that was read without the lock.
fn is_started(record: &Record, ctid: VmId) -> bool {
    let is_it = |unit: &Unit| unit.is_whole_of(ctid);
    record.at_work.is_some() && record.under_way.iter().any(|act| act.starts().is_some_and(is_it))
}

fn say_there(ctid: VmId, nodes: &[String]) {
    info!("container {ctid} pre-start: {} {} there", join(nodes), are(nodes.len()));
}

fn make_nodes(host: &mut Session, nodes: &[String], load: bool) -> Result<Vec<String>, Error> {
    let missing = host.kernel.make_nodes(nodes, load, host.budgets.load);
    missing.map_err(|e| Error::io("making NVIDIA's nodes", std::io::Error::other(e)))
}

/// Whether the driver may be loaded for a GPU that is there for it. It would wait for a call that is stuck on any device (linux,
/// drivers/base/dd.c, __driver_attach); and where all GPUs are with guests it does not load.
fn may_load(records: &[Record], snapshot: &Snapshot) -> bool {
    // With none stuck, as below.
    let is_free = |f: &Function| f.driver.is_none() || f.is_on_nvidia();
    let is_quiet = |r: &Record| r.wedges.is_empty() && r.at_work.is_none();
    snapshot.gpus().any(is_free)
        && !snapshot.functions.iter().any(|f| f.stuck)
        && snapshot.calls.is_empty()
        && records.iter().all(is_quiet)
}

/// The GPUs that are on vfio-pci, and who has each: the VM that runs with it, or else whose it is on record.
fn away(records: &[Record], snapshot: &Snapshot) -> Vec<String> {
    let of = |addr: PciAddr| {
        let runs = snapshot
            .vms
            .iter()
            .find(|vm| !owners::held_by(snapshot, vm.vmid, &[addr]).is_empty());
        let on_record = records.iter().find(|r| r.has(addr)).map(|r| r.owner);
        match (runs, on_record) {
            (Some(vm), _) => format!("{addr} is with VM {}", vm.vmid),
            (None, Some(Owner::Vm(vmid))) => format!("{addr} is with VM {vmid}"),
            (None, Some(Owner::ByHand(_))) => format!("{addr} is lent by hand"),
            (None, None) => format!("{addr} is on vfio-pci"),
        }
    };
    let on_vfio = snapshot.gpus().filter(|f| f.is_on_vfio());
    on_vfio.map(|f| of(f.addr)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::time::Duration;

    use crate::base::deadlines::Budgets;
    use crate::model::act::Act;
    use crate::model::record::AtWork;

    /// On the way out it was shut down, and whoever starts it then does so by hand.
    #[test]
    fn it_is_started_by_a_run_only_while_that_starts_it() {
        let container = "104".parse().unwrap();
        let whole = Unit::Whole { container };
        let ends = Duration::from_secs(30);
        let (start, stop) = (Act::start(&whole, ends), Act::stop(&whole, ends));
        let other = Unit::Whole {
            container: "105".parse().unwrap(),
        };
        let other = Act::start(&other, ends);
        let run = Some(AtWork { run: None, time: None });
        for (under_way, at_work, is) in [
            (vec![other.clone(), start.clone()], run.clone(), true),
            (vec![start.clone()], None, false),
            (vec![stop], run.clone(), false),
            (vec![other], run, false),
        ] {
            let mut record = Record::new(Owner::Vm("111".parse().unwrap()), "boot".to_owned(), Budgets::default());
            record.units = vec![whole.clone()];
            (record.under_way, record.at_work) = (under_way, at_work);
            assert_eq!(is_started(&record, container), is, "{:?}", record.under_way);
        }
    }
}
