//! A run from request to end: config, snapshot, plan, executor, report. What the other modules decide and do is
//! put in order here.

use std::fs;
use std::io;
use std::time::Duration;

use tracing::{debug, info, warn};

use crate::cli::{Cli, Command, Phase, Side, Target};
use crate::config::Budgets;
use crate::devices::{self, Given};
use crate::exec::Run;
use crate::exit::Error;
use crate::host::Root;
use crate::inventory::Snapshot;
use crate::journal::{MESSAGE_HOME, MESSAGE_OUT};
use crate::kernel::{ActError, Kernel};
use crate::pci::PciAddr;
use crate::plan::{self, Direction, Plan, Reason, Refusal};
use crate::pve;
use crate::record::{DIR, Guard, LockError, Owner, Record, Store};
use crate::report::{self, join, millis, out};
use crate::vmconf::VmId;
use crate::worker::Linux;

/// Everything a run needs besides its request.
struct Host {
    kernel: Linux,
    store: Store,
    budgets: Budgets,
}

impl Host {
    fn real() -> Self {
        Host {
            kernel: Linux::new(),
            store: Store::at(DIR),
            budgets: Budgets::default(),
        }
    }

    fn records(&self) -> Result<Vec<Record>, Error> {
        let (records, problems) = self
            .store
            .load()
            .map_err(|e| Error::io(format!("reading the records in {DIR}"), e))?;
        for problem in problems {
            warn!("{problem}");
        }
        Ok(records)
    }

    fn look(&mut self, records: &[Record]) -> Result<Snapshot, Error> {
        let stuck: Vec<PciAddr> = records.iter().flat_map(|r| r.stuck.iter().copied()).collect();
        let within = self.budgets.look;
        self.kernel.look(&stuck, within).map_err(|e| match e {
            ActError::Overdue { within, .. } => Error::Overdue {
                what: "the host could not be read".to_owned(),
                within,
                hint: "some call is stuck in the kernel; see 'ps ax | grep \" D\"' and 'journalctl -k'".to_owned(),
            },
            e => Error::Io {
                what: "the host could not be read".to_owned(),
                source: io::Error::other(e),
            },
        })
    }

    fn lock(&self, who: &str, end: Duration) -> Result<Guard, Error> {
        let left = end.saturating_sub(self.kernel.now()).min(self.budgets.lock);
        self.store.lock(who, left).map_err(|e| match e {
            LockError::Held(by) => Error::Overdue {
                what: format!("another run did not finish ({by})"),
                within: left,
                hint: "wait for it, or see what holds it up with 'gpu-handoff status'".to_owned(),
            },
            LockError::Io(e) => Error::io(format!("locking {DIR}"), e),
        })
    }
}

/// A phase of a VM.
///
/// # Errors
/// Only pre-start and post-stop can fail; what an error means to Proxmox depends on the phase.
pub fn hook(vmid: VmId, phase: &Phase) -> Result<(), Error> {
    let mut host = Host::real();
    match phase {
        Phase::PreStart => pre_start(&mut host, vmid),
        Phase::PostStop => post_stop(&mut host, vmid),
        Phase::PostStart => post_start(&mut host, vmid),
        Phase::PreStop | Phase::Other(_) => {
            info!("VM {vmid} {phase}: nothing to do");
            Ok(())
        }
    }
}

fn pre_start(host: &mut Host, vmid: VmId) -> Result<(), Error> {
    let end = host.kernel.now() + host.budgets.way_out;
    let read = read_config(vmid)?;
    if read.config.hostpci().next().is_none() {
        info!("VM {vmid} pre-start: it has no hostpci entry, nothing to hand over");
        return Ok(());
    }
    must_be_root()?;
    let guard = host.lock(&format!("VM {vmid} pre-start"), end)?;
    let records = host.records()?;
    let snapshot = host.look(&records)?;
    let given = of_vm(vmid, &read, &snapshot)?;
    for line in &given.left {
        info!("VM {vmid}: {line}; left to Proxmox");
    }
    if given.gpus.is_empty() {
        info!("VM {vmid} pre-start: no NVIDIA GPU to hand over");
        return Ok(());
    }
    if let Some(by_hand) = lent_by_hand(&records, &snapshot, &given.gpus) {
        info!("VM {vmid} pre-start: {by_hand} was handed over by hand already, and stays so when the VM stops");
        return Ok(());
    }
    way_out(host, &guard, &snapshot, &records, Owner::Vm(vmid), &given, end)
}

/// The GPUs, if all of them were taken by hand and are on vfio-pci: a VM that starts on them leaves them so.
fn lent_by_hand(records: &[Record], snapshot: &Snapshot, gpus: &[PciAddr]) -> Option<String> {
    let lent = gpus.iter().all(|gpu| {
        let on_vfio = snapshot
            .function(*gpu)
            .is_some_and(|f| f.driver.as_deref() == Some(plan::VFIO_PCI));
        on_vfio
            && records
                .iter()
                .any(|r| matches!(r.owner, Owner::ByHand(_)) && r.has(*gpu))
    });
    lent.then(|| join(gpus))
}

fn way_out(
    host: &mut Host,
    guard: &Guard,
    snapshot: &Snapshot,
    records: &[Record],
    owner: Owner,
    given: &Given,
    end: Duration,
) -> Result<(), Error> {
    let functions: Vec<PciAddr> = given.functions.iter().copied().collect();
    let plan = plan::out(snapshot, owner, &given.gpus, &functions, records, &host.budgets)?;
    let before = records.iter().find(|r| r.owner == owner).cloned();
    let mut record = before
        .clone()
        .unwrap_or_else(|| Record::new(owner, boot_id(), host.budgets.clone()));
    record.generation += u64::from(before.is_some());
    record.taken.clone_from(&plan.taken);
    record.modules.clone_from(&plan.modules);
    execute(host, guard, record, before, &plan, end)
}

fn execute(
    host: &mut Host,
    guard: &Guard,
    record: Record,
    rest: Option<Record>,
    plan: &Plan,
    end: Duration,
) -> Result<(), Error> {
    let start = host.kernel.now();
    let cards = plan.cards.join(", ");
    let (to, message_id) = match plan.direction {
        Direction::Out => ("on vfio-pci", MESSAGE_OUT),
        Direction::Home => ("home", MESSAGE_HOME),
    };
    if plan.steps.is_empty() {
        info!("{}: {cards} is {to} already", plan.owner);
    } else {
        let left = end.saturating_sub(start).as_secs();
        info!(
            "{}: {cards}: {} steps, way: {}, at most {left} s",
            plan.owner,
            plan.steps.len(),
            plan.way
        );
    }
    for note in &plan.notes {
        info!("note: {note}");
    }
    let run = Run {
        kernel: &mut host.kernel,
        guard,
        record,
        rest,
        end,
    };
    run.execute(plan)?;
    let took = host.kernel.now().saturating_sub(start);
    info!(
        message_id,
        device = cards,
        "{}: {cards} is {to} after {}",
        plan.owner,
        millis(took)
    );
    Ok(())
}

/// Verifies what pre-start did; touches nothing and never fails the start.
fn post_start(host: &mut Host, vmid: VmId) -> Result<(), Error> {
    let records = host.records()?;
    let Some(record) = records.iter().find(|r| r.owner == Owner::Vm(vmid)) else {
        info!("VM {vmid} post-start: nothing was handed over, nothing to verify");
        return Ok(());
    };
    let snapshot = host.look(&records)?;
    let elsewhere: Vec<String> = record
        .taken
        .iter()
        .filter_map(|t| snapshot.function(t.addr))
        .filter(|f| f.driver.as_deref() != Some(plan::VFIO_PCI))
        .map(|f| format!("{} ({})", f.addr, f.driver.as_deref().unwrap_or("no driver")))
        .collect();
    if elsewhere.is_empty() {
        info!("VM {vmid} post-start: {} functions are on vfio-pci", record.taken.len());
    } else {
        warn!("VM {vmid} post-start: not on vfio-pci: {}", join(elsewhere));
    }
    Ok(())
}

fn post_stop(host: &mut Host, vmid: VmId) -> Result<(), Error> {
    let owner = Owner::Vm(vmid);
    if !host.records()?.iter().any(|r| r.owner == owner) {
        info!("VM {vmid} post-stop: nothing was handed over, nothing to bring home");
        return Ok(());
    }
    must_be_root()?;
    let end = host.kernel.now() + host.budgets.way_home;
    await_vfio(host, owner, end)?;
    let guard = host.lock(&format!("VM {vmid} post-stop"), end)?;
    let records = host.records()?;
    let Some(record) = records.iter().find(|r| r.owner == owner) else {
        info!("VM {vmid} post-stop: another run has brought everything home meanwhile");
        return Ok(());
    };
    let snapshot = host.look(&records)?;
    let plan = plan::home(&snapshot, record)?;
    execute(host, &guard, record.clone(), None, &plan, end)
}

/// Waits, without the lock, for the VM's own QEMU to let go of the VFIO nodes: post-stop may come while it is
/// still unpinning memory (qemu-server removes its pidfile first).
fn await_vfio(host: &mut Host, owner: Owner, end: Duration) -> Result<(), Error> {
    loop {
        let records = host.records()?;
        let Some(record) = records.iter().find(|r| r.owner == owner) else {
            return Ok(());
        };
        let snapshot = host.look(&records)?;
        let addrs: Vec<PciAddr> = record.taken.iter().map(|t| t.addr).collect();
        let on_vfio: Vec<PciAddr> = addrs
            .into_iter()
            .filter(|a| {
                snapshot
                    .function(*a)
                    .is_some_and(|f| f.driver.as_deref() == Some(plan::VFIO_PCI))
            })
            .collect();
        let mut pids = Vec::new();
        for reason in plan::use_of(&snapshot, &on_vfio) {
            match &reason {
                Reason::Held { holder, .. } if !is_another_vm(&holder.belongs_to, owner) => pids.push(holder.pid),
                _ => return Err(Refusal::from(reason).into()),
            }
        }
        if pids.is_empty() {
            return Ok(());
        }
        let left = end.saturating_sub(host.kernel.now());
        info!(
            "{owner}: waiting for process {} to let go of the VFIO group, {} s left",
            join(&pids),
            left.as_secs()
        );
        if !host.kernel.await_exit(&pids, left) {
            return Err(Error::Overdue {
                what: format!("process {} did not let go of the VFIO group", join(&pids)),
                within: host.budgets.way_home,
                hint: "end it, then run 'gpu-handoff to_nvidia'".to_owned(),
            });
        }
    }
}

fn is_another_vm(belongs_to: &str, owner: Owner) -> bool {
    match owner {
        Owner::Vm(vmid) => belongs_to.starts_with("VM ") && belongs_to != format!("VM {vmid}"),
        Owner::ByHand(_) => belongs_to.starts_with("VM "),
    }
}

/// A command.
///
/// # Errors
/// As each command has it.
pub fn command(cli: &Cli) -> Result<(), Error> {
    let mut host = Host::real();
    match &cli.command {
        Command::ToVfio(target) | Command::Handoff { to: Side::Vfio, target } => to_vfio(&mut host, cli, target),
        Command::ToNvidia(target)
        | Command::Handoff {
            to: Side::Nvidia,
            target,
        } => to_nvidia(&mut host, cli, target),
        Command::Plan(target) => show_plan(&mut host, cli, target),
        Command::Status => {
            let records = host.records()?;
            let cards = report::status(&host.look(&records)?, &records);
            print(cli, &cards, || report::status_text(&cards))
        }
    }
}

fn print<T: serde::Serialize>(cli: &Cli, value: &T, text: impl Fn() -> String) -> Result<(), Error> {
    let text = if cli.json {
        let json = serde_json::to_string_pretty(value).map_err(io::Error::from);
        json.map_err(|e| Error::io("writing JSON", e))? + "\n"
    } else {
        text()
    };
    out(&text).map_err(|e| Error::io("writing to stdout", e))
}

/// What a target means on this host.
fn given(target: &Target, snapshot: &Snapshot) -> Result<Given, Error> {
    let gpu = match (&target.vm, &target.gpu) {
        (Some(vmid), _) => {
            let given = of_vm(*vmid, &read_config(*vmid)?, snapshot)?;
            if given.gpus.is_empty() {
                let why = format!("VM {vmid} has no NVIDIA GPU to hand over ({})", given.left.join("; "));
                return Err(Refusal::from(Reason::Other(why)).into());
            }
            return Ok(given);
        }
        (None, Some(name)) => devices::named(name, snapshot),
        (None, None) => devices::only(snapshot),
    };
    Ok(Given {
        gpus: vec![gpu.map_err(Refusal::from)?],
        ..Given::default()
    })
}

fn show_plan(host: &mut Host, cli: &Cli, target: &Target) -> Result<(), Error> {
    let records = host.records()?;
    let snapshot = host.look(&records)?;
    let given = given(target, &snapshot)?;
    let owner = match target.vm {
        Some(vmid) => Owner::Vm(vmid),
        None => Owner::ByHand(given.gpus[0]),
    };
    let functions: Vec<PciAddr> = given.functions.iter().copied().collect();
    let plan = plan::out(&snapshot, owner, &given.gpus, &functions, &records, &host.budgets)?;
    print(cli, &plan, || report::plan_text(&plan))
}

fn to_vfio(host: &mut Host, cli: &Cli, target: &Target) -> Result<(), Error> {
    if cli.dry_run {
        return show_plan(host, cli, target);
    }
    must_be_root()?;
    let end = host.kernel.now() + host.budgets.way_out;
    let guard = host.lock("to_vfio by hand", end)?;
    let records = host.records()?;
    let snapshot = host.look(&records)?;
    let given = given(target, &snapshot)?;
    let earlier = records
        .iter()
        .find(|r| matches!(r.owner, Owner::ByHand(_)) && r.has(given.gpus[0]));
    let owner = earlier.map_or(Owner::ByHand(given.gpus[0]), |r| r.owner);
    way_out(host, &guard, &snapshot, &records, owner, &given, end)
}

fn to_nvidia(host: &mut Host, cli: &Cli, target: &Target) -> Result<(), Error> {
    let end = host.kernel.now() + host.budgets.way_home;
    let guard = if cli.dry_run {
        None
    } else {
        must_be_root()?;
        Some(host.lock("to_nvidia by hand", end)?)
    };
    let records = host.records()?;
    let snapshot = host.look(&records)?;
    let gpus = given(target, &snapshot)?.gpus;
    let found = records.iter().find(|r| gpus.iter().any(|g| r.has(*g)));
    let record = found.cloned().unwrap_or_else(|| {
        info!(
            "no record says where {} came from: its drivers are inferred from what it is",
            join(&gpus)
        );
        let empty = Record::new(Owner::ByHand(gpus[0]), boot_id(), host.budgets.clone());
        plan::inferred(&snapshot, &gpus, empty)
    });
    let plan = plan::home(&snapshot, &record)?;
    match guard {
        Some(guard) => execute(host, &guard, record, None, &plan, end),
        None => print(cli, &plan, || report::plan_text(&plan)),
    }
}

fn must_be_root() -> Result<(), Error> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let why = "only root can move a device between drivers. Hint: run it as root";
    Err(Refusal::from(Reason::Other(why.to_owned())).into())
}

fn of_vm(vmid: VmId, read: &pve::Config, snapshot: &Snapshot) -> Result<Given, Error> {
    let cluster = pve::cluster(&Root::real()).map_err(Refusal::from)?;
    Ok(devices::of_vm(vmid, read, snapshot, &cluster).map_err(Refusal::from)?)
}

fn read_config(vmid: VmId) -> Result<pve::Config, Error> {
    let from = std::env::var("PVE_MIGRATED_FROM").unwrap_or_default();
    let read = pve::vm_config(&Root::real(), vmid, &from).map_err(Refusal::from)?;
    for line in pve::ignored(&read) {
        warn!("{line}");
    }
    debug!("{} read by the rules of {:?}", read.path, read.generation);
    Ok(read)
}

fn boot_id() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}
