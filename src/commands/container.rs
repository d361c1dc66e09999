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
use crate::model::error::{Error, chain};
use crate::model::record::{Owner, Record};
use crate::model::refusal::{Reason, Refusal};
use crate::run::session::{Session, must_be_root};
use crate::settings::values::ContainerStart;

/// Brings home what is stranded, makes the nodes that the container is given, and refuses where a VM has the GPU.
pub(crate) fn pre_start(host: &mut Session, ctid: VmId) -> Result<(), Error> {
    let given = host.gpu_containers()?.into_iter().find(|c| c.ctid == ctid);
    let nodes = given.map_or_else(Vec::new, |given| given.nodes);
    if nodes.is_empty() {
        info!("container {ctid} pre-start: it is given no node of NVIDIA's, nothing to do");
        return Ok(());
    }
    must_be_root()?;
    // What is not understood of them keeps no GPU from coming home.
    if let Err(why) = host.read_settings(None) {
        warn!("container {ctid} pre-start: {}", chain(why));
    }
    let policy = host.settings.container_start;
    let end = host.kernel.now() + host.budgets.way_home;
    let guard = host.lock(&format!("container {ctid} pre-start"), end)?;
    let mut records = host.records(Some(&guard))?;
    if !records.is_empty() && !systemd::is_shutting_down() {
        recover::stranded_home(host, &guard, &records);
        records = host.records(Some(&guard))?;
    }
    let snapshot = host.look(&records)?;
    // Where all are with guests the driver does not load, and takes its time over it.
    let has_one = |f: &Function| f.driver.is_none() || f.is_on_nvidia();
    let missing = host
        .kernel
        .make_nodes(&nodes, snapshot.gpus().any(has_one), host.budgets.load);
    let missing = missing.map_err(|e| Error::io("making NVIDIA's nodes", std::io::Error::other(e)))?;
    if missing.is_empty() {
        info!(
            "container {ctid} pre-start: {} {} there",
            join(&nodes),
            are(nodes.len())
        );
        return Ok(());
    }
    let why = format!(
        "container {ctid} is given {}, which {} not there: {}",
        join(&missing),
        are(missing.len()),
        who_has(&records, &snapshot)
    );
    if records.is_empty() || policy == ContainerStart::GoOn {
        warn!("{why}; nothing is done about it");
        return Ok(());
    }
    Err(Refusal::from(Reason::Other(format!(
        "{why}. Hint: start it again when that has come home; or, where its lines for them are optional, container-start = \
         \"go-on\" in /etc/gpu-handoff/config.toml"
    )))
    .into())
}

/// Who has the GPUs that are not home.
fn who_has(records: &[Record], snapshot: &Snapshot) -> String {
    let with = records.iter().map(|record| {
        let is_gpu = |a: &PciAddr| snapshot.function(*a).is_some_and(Function::is_nvidia_gpu);
        let gpus: Vec<PciAddr> = record.taken.iter().map(|t| t.addr).filter(is_gpu).collect();
        match record.owner {
            Owner::Vm(vmid) => format!("{} {} with VM {vmid}", join(&gpus), are(gpus.len())),
            Owner::ByHand(_) => format!("{} {} lent by hand", join(&gpus), are(gpus.len())),
        }
    });
    let with: Vec<String> = with.collect();
    if with.is_empty() {
        return "NVIDIA's driver does not list the GPU".to_owned();
    }
    with.join(", ")
}
