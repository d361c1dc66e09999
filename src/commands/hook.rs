//! The phases of a VM, as Proxmox calls them.
//!
//! | phase | what is done | what a failure means to Proxmox |
//! |---|---|---|
//! | pre-start | the VM's GPUs go to vfio-pci | the start is aborted |
//! | post-start | what Proxmox chose is compared with what was handed over | a warning |
//! | pre-stop | nothing | |
//! | post-stop | what the record says goes home | a warning |
//! | any other | nothing | |
//!
//! Of a container, which is called with the same words, only pre-start does something ([`crate::commands::container`]).
//!
//! Any of them may come twice, out of order, or never (qemu-server, QemuServer.pm, the callers of
//! exec_hookscript).

use std::time::Duration;

use tracing::{info, warn};

use crate::base::pci::PciAddr;
use crate::base::text::join;
use crate::base::vmid::VmId;
use crate::base::{process, systemd};
use crate::commands::cli::Phase;
use crate::commands::container;
use crate::execute::kernel::Kernel;
use crate::host::snapshot::{Snapshot, is_on_vfio};
use crate::model::error::{Error, chain};
use crate::model::record::{Owner, Record, State, Taken};
use crate::model::refusal::{Reason, Refusal};
use crate::plan::owners::{Part, slots_of};
use crate::plan::selection::lent_by_hand;
use crate::plan::{home, inferred};
use crate::proxmox::files::Config;
use crate::run::afterwards::have_it_told;
use crate::run::owners::{Locked, settle};
use crate::run::session::{Session, must_be_root};
use crate::run::waits::await_vfio;
use crate::settings::values::OnBackup;
use crate::state::store::{Guard, Ledger};

/// Runs a phase.
///
/// # Errors
/// Those of pre-start and post-stop; the others only say what they find.
pub fn run(vmid: VmId, phase: &Phase) -> Result<(), Error> {
    let mut host = Session::real();
    for name in ["GPU_PCI", "GPU_AUDIO_PCI", "LXC_RESTART_IDS"] {
        if std::env::var_os(name).is_some() {
            warn!("{name} is set and not used: the VM's own hostpci lines, and the settings, say what is meant");
        }
    }
    let result = match phase {
        Phase::PreStart => pre_start(&mut host, vmid),
        Phase::PostStop => post_stop(&mut host, vmid),
        Phase::PostStart => post_start(&mut host, vmid),
        Phase::PreStop | Phase::Other(_) => {
            // A container's phases are called with the same words.
            info!("guest {vmid} {phase}: nothing to do");
            Ok(())
        }
    };
    have_it_told(&host, &result);
    host.says_what_stays(result)
}

fn pre_start(host: &mut Session, vmid: VmId) -> Result<(), Error> {
    let owner = Owner::Vm(vmid);
    let Some(text) = host.guest_text(vmid)? else {
        return container::pre_start(host, vmid);
    };
    // A config that cannot name any device has to be understood for what is on record alone.
    let may_name_one = text.names_a_device();
    let read = (may_name_one || has_record(host, owner)).then(|| host.understood(text));
    let entry_in =
        |read: &Config| read.config.hostpci().next().is_some() || read.config.ignored_hostpci_lines().next().is_some();
    // What an earlier handoff has taken comes home although the config does not name it any more.
    let is_asked_for = |read: &Config| !may_name_one || entry_in(read) || has_record(host, owner);
    let Some(read) = read.filter(is_asked_for) else {
        info!("VM {vmid} pre-start: it has no hostpci entry, nothing to hand over");
        return Ok(());
    };
    let has_entry = entry_in(&read);
    must_be_root()?;
    // The way home does not depend on the settings.
    if has_entry {
        host.read_settings(Some(vmid))?;
    }
    // Proxmox holds the VM's lock through the whole start; who tries the phase by hand does not.
    if !host.vm_is_busy(vmid) {
        let parent = u32::try_from(nix::unistd::getppid().as_raw()).unwrap_or_default();
        host.caller = process::caller(&host.root, parent);
    }
    let end = host.kernel.now() + host.budgets.way_out;
    let guard = host.lock(&format!("VM {vmid} pre-start"), end)?;
    let records = host.readable_records(&guard)?;
    let snapshot = host.look(&records)?;
    let mut given = host.devices_of(vmid, &read, &snapshot)?;
    for line in given.left() {
        info!("VM {vmid}: {line}; left to Proxmox");
    }
    let backup = read.config.lock().is_some_and(|l| *l == "backup");
    if let Some(reason) = &given.refused {
        return Err(refused(backup, reason.clone().into()));
    }
    if backup && !given.gpus.is_empty() {
        match host.settings.on_backup {
            OnBackup::Refuse => return Err(Refusal::from(Reason::Backup("on-backup is \"refuse\"".to_owned())).into()),
            OnBackup::IfFree => host.settings.only_if_free(),
            OnBackup::Handoff => {}
        }
    }
    let begun = host.kernel.now();
    let functions: Vec<PciAddr> = given.functions.iter().copied().collect();
    let mut locked = Locked { host, guard: &guard };
    let settled = settle(&mut locked, owner, &given.gpus, &functions, records, snapshot);
    let settled = settled.map_err(|e| also_a_backup(backup, e))?;
    if settled.moved {
        given = host.devices_of(vmid, &read, &settled.snapshot)?;
        if let Some(reason) = &given.refused {
            return Err(refused(backup, reason.clone().into()));
        }
    }
    // What came home first had its own time.
    let end = end + host.kernel.now().saturating_sub(begun);
    if given.gpus.is_empty() {
        info!("VM {vmid} pre-start: no NVIDIA GPU to hand over");
        return Ok(());
    }
    if let Some(by_hand) = lent_by_hand(&settled.records, &settled.snapshot, &given.gpus) {
        info!("VM {vmid} pre-start: {by_hand} was handed over by hand already, and stays so when the VM stops");
        return Ok(());
    }
    let out = host.way_out(&guard, settled, owner, &given, end);
    out.map_err(|e| also_a_backup(backup, e))
}

/// Whether a VM that is given no device has something on record all the same. What cannot be read keeps it from nothing.
fn has_record(host: &Session, owner: Owner) -> bool {
    match host.load(None) {
        Ok((records, _)) => records.iter().any(|r| r.owner == owner),
        Err(error) => {
            warn!(
                "{owner} pre-start: whether it has something on record is not known: {}",
                chain(error)
            );
            false
        }
    }
}

/// An error that says what else it fails, if it is a refusal and a backup's.
fn also_a_backup(backup: bool, error: Error) -> Error {
    match error {
        Error::Refused(refusal) => refused(backup, refusal),
        Error::NoSecondPlan { what, why } => Error::NoSecondPlan {
            what,
            why: Box::new(also_a_backup(backup, *why)),
        },
        error => error,
    }
}

/// A refusal that says what else it fails, if it is a backup's.
fn refused(backup: bool, mut refusal: Refusal) -> Error {
    if backup {
        refusal.0.push(Reason::Backup("see the reason before".to_owned()));
    }
    refusal.into()
}

/// Compares what Proxmox chose with what pre-start handed over. It never fails the start: QEMU runs already.
fn post_start(host: &mut Session, vmid: VmId) -> Result<(), Error> {
    let owner = Owner::Vm(vmid);
    if !host.records(None)?.iter().any(|r| r.owner == owner) {
        info!("VM {vmid} post-start: nothing was handed over, nothing to verify");
        return Ok(());
    }
    let end = host.kernel.now() + host.budgets.way_home;
    let guard = host.lock(&format!("VM {vmid} post-start"), end)?;
    let records = host.records(Some(&guard))?;
    let Some(record) = records.iter().find(|r| r.owner == owner) else {
        return Ok(());
    };
    let snapshot = host.look(&records)?;
    let mut record = record.clone();
    let qemu = snapshot.vms.iter().find(|v| v.vmid == vmid);
    record.qemu = qemu.map(|vm| vm.process);
    let cluster = host.cluster()?;
    let reserved = cluster.reservations.of(vmid);
    let others = || records.iter().filter(|r| r.owner != owner);
    let free: Vec<PciAddr> = reserved
        .iter()
        .copied()
        .filter(|a| !others().any(|r| r.has(*a)))
        .collect();
    adopt(vmid, &snapshot, &free, &mut record);
    // Without a reservation of this VM there is nothing to compare with: Proxmox may have changed how it keeps them.
    let unused = if reserved.is_empty() {
        Vec::new()
    } else {
        unused_gpus(&snapshot, &record, &reserved)
    };
    host_is_as_expected(vmid, &snapshot, &record);
    guard.save(&record).map_err(|e| Error::io("writing the record", e))?;
    if unused.is_empty() || systemd::is_shutting_down() {
        return Ok(());
    }
    let goes = |t: &&Taken| unused.iter().any(|gpu| gpu.slot() == t.addr.slot());
    let addrs: Vec<PciAddr> = record.taken.iter().filter(goes).map(|t| t.addr).collect();
    if let Some(Reason::Claimed { claim, .. }) = host.needed_at_home(&addrs, &snapshot, &[owner])?.first() {
        info!(
            "VM {vmid} post-start: Proxmox chose another card than {}, which stays away: {claim}",
            join(&unused)
        );
        return Ok(());
    }
    info!(
        "VM {vmid} post-start: Proxmox chose another card than {}, which goes home",
        join(&unused)
    );
    partly_home(host, &guard, &snapshot, &record, &unused, end)
}

/// Cards that Proxmox took off the host itself, because its choice was another one than ours by then: they come home
/// with the rest.
fn adopt(vmid: VmId, snapshot: &Snapshot, reserved: &[PciAddr], record: &mut Record) {
    let strangers: Vec<PciAddr> = snapshot
        .gpus()
        .map(|f| f.addr)
        .filter(|gpu| reserved.iter().any(|r| r.slot() == gpu.slot()) && !record.has(*gpu))
        .filter(|gpu| is_on_vfio(snapshot, *gpu))
        .collect();
    if !strangers.is_empty() {
        warn!(
            "VM {vmid} post-start: Proxmox took {} off the host itself; its drivers are inferred from what it is",
            join(&strangers)
        );
        *record = inferred::inferred(snapshot, &strangers, record.clone());
    }
}

/// The GPUs of the record that the VM did not get.
fn unused_gpus(snapshot: &Snapshot, record: &Record, reserved: &[PciAddr]) -> Vec<PciAddr> {
    snapshot
        .gpus()
        .map(|f| f.addr)
        .filter(|gpu| record.has(*gpu) && !reserved.iter().any(|r| r.slot() == gpu.slot()))
        .collect()
}

fn host_is_as_expected(vmid: VmId, snapshot: &Snapshot, record: &Record) {
    let addrs = || record.taken.iter().map(|t| t.addr);
    let elsewhere: Vec<PciAddr> = addrs().filter(|a| !is_on_vfio(snapshot, *a)).collect();
    if !elsewhere.is_empty() {
        warn!("VM {vmid} post-start: not on vfio-pci: {}", join(elsewhere));
    } else if let Some(qemu) = record.qemu {
        let n = record.taken.len();
        info!(
            "VM {vmid} post-start: {n} functions are on vfio-pci, QEMU is process {}",
            qemu.pid
        );
    } else {
        warn!("VM {vmid} post-start: no QEMU of this VM is running");
    }
}

/// Brings some cards of a record home. The whole record stays on file until they are.
fn partly_home(
    host: &mut Session,
    guard: &Guard,
    snapshot: &Snapshot,
    record: &Record,
    gpus: &[PciAddr],
    end: Duration,
) -> Result<(), Error> {
    let goes = |addr: PciAddr| gpus.iter().any(|g| g.slot() == addr.slot());
    let mut part = record.clone();
    part.taken.retain(|t| goes(t.addr));
    let mut rest = record.clone();
    rest.taken.retain(|t| !goes(t.addr));
    rest.state = State::Away;
    let mut snapshot = snapshot.clone();
    let taken: Vec<PciAddr> = part.taken.iter().map(|t| t.addr).collect();
    host.ask(&mut snapshot, &taken, host.budgets.look)?;
    let plan = home::plan(&snapshot, &part)?;
    host.execute(guard, record.clone(), Some(rest), &plan, end)
}

fn post_stop(host: &mut Session, vmid: VmId) -> Result<(), Error> {
    let owner = Owner::Vm(vmid);
    let (records, problems) = host.load(None)?;
    let Some(record) = records.iter().find(|r| r.owner == owner) else {
        // What cannot be read may speak of a GPU that is away.
        if let Some(problem) = problems.iter().find(|p| p.is_of(owner)) {
            return Err(problem.refusal().into());
        }
        info!("VM {vmid} post-stop: nothing was handed over, nothing to bring home");
        return Ok(());
    };
    if systemd::is_shutting_down() {
        info!("VM {vmid} post-stop: the host is shutting down, nothing is brought home");
        return Ok(());
    }
    let generation = record.generation;
    must_be_root()?;
    if let Some(pid) = host.stranger_at_work(vmid) {
        let why = format!(
            "process {pid} has Proxmox's lock of VM {vmid}, which is starting or stopping. Hint: wait until that is over; it \
             has a post-stop of its own"
        );
        return Err(Refusal::from(Reason::Other(why)).into());
    }
    // What was in force when the devices left, whatever the settings say by now.
    host.budgets = record.budgets.clone();
    let end = host.kernel.now() + host.budgets.way_home;
    let elsewhere = await_vfio(host, owner, end)?;
    let guard = host.lock(&format!("VM {vmid} post-stop"), end)?;
    let records = host.records(Some(&guard))?;
    let Some(record) = records.iter().find(|r| r.owner == owner) else {
        info!("VM {vmid} post-stop: another run has brought everything home meanwhile");
        return Ok(());
    };
    if record.generation != generation {
        info!("VM {vmid} post-stop: the VM has been started again meanwhile, its GPU stays");
        return Ok(());
    }
    // A VM without this hook takes it from vfio-pci as it is.
    let snapshot = host.look(&records)?;
    let addrs: Vec<PciAddr> = record.taken.iter().map(|t| t.addr).collect();
    let reserved = host.reserved(&addrs, &snapshot, owner);
    let mut stay = elsewhere;
    for reason in &reserved {
        if let Reason::Claimed { addrs, .. } = reason {
            stay.extend(slots_of(addrs));
        }
    }
    let part = match Part::beside(record, &stay) {
        Some(part) => part,
        None if !reserved.is_empty() => return Err(Refusal(reserved).into()),
        None => Part::whole(record),
    };
    if let Some(stays) = &part.stays {
        let addrs = join(stays.taken.iter().map(|t| t.addr));
        info!("VM {vmid} post-stop: {addrs} stays away, another VM runs or is starting with it");
    }
    let plan = host.plan_home(&part.comes, &records, Some(snapshot), end)?;
    host.execute(&guard, record.clone(), part.stays, &plan, end)
}
