//! What somebody else has wedged: an unbind that hangs is let out where that is safe, and a GPU that it has left without a
//! driver comes home, though nobody has it on record.
//!
//! What is freed, and what comes home, is decided in [`crate::plan::hangs`].

use std::time::Duration;

use tracing::{info, warn};

use crate::base::pci::PciAddr;
use crate::base::text::{join, millis};
use crate::commands::cli::Recover;
use crate::execute::executor::Executor;
use crate::execute::kernel::Kernel;
use crate::host::snapshot::{Snapshot, card};
use crate::host::stuck_calls::StuckCall;
use crate::model::act::Act;
use crate::model::error::{Error, chain};
use crate::model::record::{Owner, Record};
use crate::plan::hangs;
use crate::proxmox::files::{self, Cluster};
use crate::run::session::Session;
use crate::state::store::{Guard, Ledger};

/// How long a call is waited for that nothing holds any more, at most: the driver looks twice a second whether its GPU is
/// free (kernel-open/nvidia/nv-pci.c, nv_pci_remove_helper), and what follows takes some seconds at worst.
const ENDS_WITHIN: Duration = Duration::from_secs(20);

/// How long whoever made it gets to say by an override what the function is meant for, or to bind it: a script's next line.
const NEXT_LINE: Duration = Duration::from_secs(1);

/// How often it is looked meanwhile whether the call is over.
const POLL: Duration = Duration::from_millis(500);

/// What became of functions that were on nobody's record.
#[derive(Debug)]
pub(crate) struct Freed {
    pub(crate) functions: Vec<PciAddr>,
    /// Why they are left as they are; None: they are home.
    pub(crate) left: Option<String>,
    /// It is an error that they are left.
    pub(crate) error: Option<Error>,
}

impl Freed {
    fn left(functions: &[PciAddr], why: String) -> Self {
        Freed {
            functions: functions.to_vec(),
            left: Some(why),
            error: None,
        }
    }

    fn failed(functions: &[PciAddr], error: Error) -> Self {
        Freed {
            functions: functions.to_vec(),
            left: None,
            error: Some(error),
        }
    }
}

/// Lets out what hangs, where that is safe. What it was at is on record afterwards, if it belongs home.
///
/// # Errors
/// Where the host or the records could not be read.
pub(crate) fn free(
    host: &mut Session,
    guard: Option<&Guard>,
    records: &[Record],
    how: &Recover,
) -> Result<Vec<Freed>, Error> {
    let snapshot = host.look(records)?;
    let mut all = Vec::new();
    let is_asked_for = |call: &&StuckCall| {
        let of_vm = |vmid| records.iter().find(|r| r.owner == Owner::Vm(vmid));
        how.vm
            .is_none_or(|vmid| of_vm(vmid).is_some_and(|r| call.at.iter().any(|a| r.has(*a))))
    };
    // What waits behind one that lets go, such as a bind, ends with it.
    let is_behind = |call: &&StuckCall| {
        let is_before = |other: &StuckCall| other.what.lets_go() && other.at.iter().any(|a| call.at.contains(a));
        !call.what.lets_go() && snapshot.calls.iter().any(is_before)
    };
    for call in snapshot.calls.iter().filter(is_asked_for).filter(|c| !is_behind(c)) {
        all.push(match (hangs::may_be_freed(&snapshot, call), guard) {
            (Err(refusal), _) => Freed::failed(&call.at, refusal.into()),
            (Ok(()), None) => Freed::left(
                &call.at,
                format!(
                    "process {} hangs in a call that would be let out by unloading nvidia_drm",
                    call.pid
                ),
            ),
            (Ok(()), Some(guard)) => match free_one(host, guard, records, &snapshot, call) {
                Ok(None) => continue, // it comes home with what is on record
                Ok(Some(why)) => Freed::left(&call.at, why),
                Err(error) => Freed::failed(&call.at, error),
            },
        });
    }
    Ok(all)
}

/// Unloads nvidia_drm, and waits for the call to end. Returns why nothing of it comes home, if that is so.
fn free_one(
    host: &mut Session,
    guard: &Guard,
    records: &[Record],
    snapshot: &Snapshot,
    call: &StuckCall,
) -> Result<Option<String>, Error> {
    let before = records.iter().find(|r| call.at.iter().any(|a| r.has(*a)));
    let base = match before {
        Some(record) => record.clone(),
        None => host.unrecorded(call.at[0], records)?,
    };
    let mut record = hangs::put_on_record(snapshot, call, base);
    let plan = hangs::freeing(snapshot, call, &record);
    let card = plan.cards.join(", ");
    info!(
        "{card}: process {} hangs in a call, which ends when nvidia_drm is unloaded",
        call.pid
    );
    let end = host.kernel.now() + record.budgets.way_home;
    let run = Executor::new(&mut host.kernel, guard, record.clone(), Some(record.clone()), end);
    if let Err(error) = run.execute(&plan) {
        forget_if_unharmed(host, guard, &record, before);
        return Err(error);
    }
    let began = host.kernel.now();
    let mut pause = NEXT_LINE;
    let mut snapshot = loop {
        let snapshot = host.look(std::slice::from_ref(&record))?;
        let left = (began + ENDS_WITHIN).saturating_sub(host.kernel.now());
        match snapshot.calls.iter().find(|c| c.is(call)) {
            Some(still) if left.is_zero() => return Err(refused(&snapshot, still)),
            // It is out of it before its process ends, and there is no event for that.
            Some(_) => _ = host.kernel.await_exit(&[call.pid], left.min(POLL)),
            None if pause.is_zero() => break snapshot,
            None => {
                let took = millis(host.kernel.now().saturating_sub(began));
                info!("{card}: what process {} hung in has ended, {took} later", call.pid);
                let until = host.kernel.now() + pause;
                while host.kernel.now() < until && host.kernel.interrupted().is_none() {
                    // Of a process that has ended there is no next line.
                    if host
                        .kernel
                        .await_exit(&[call.pid], until.saturating_sub(host.kernel.now()))
                    {
                        break;
                    }
                }
                pause = Duration::ZERO;
            }
        }
        host.not_interrupted()?;
    };
    if before.is_some() {
        return Ok(None);
    }
    let cluster = host.cluster().unwrap_or_else(|_| files::reservations_alone(&host.root));
    let gpus: Vec<PciAddr> = record.taken.iter().map(|t| t.addr).collect();
    ask_cards(host, &mut snapshot, &gpus)?;
    let (mut taken, mut left) = (Vec::new(), Vec::new());
    for gpu in gpus {
        match hangs::comes_home(&snapshot, gpu, |addr| reserved(&cluster, &snapshot, addr)) {
            Ok(home) => taken.extend(home),
            Err(why) => left.push(why),
        }
    }
    record = hangs::unrecorded(taken, record);
    if snapshot.module("nvidia").is_none() {
        record.modules.clear(); // somebody has unloaded all of it
    }
    guard.save(&record).map_err(|e| Error::io("writing the record", e))?;
    if !record.taken.is_empty() {
        info!(
            "{}: nothing else is meant for it, so it comes home",
            join(record.taken.iter().map(|t| t.addr))
        );
        return Ok(None);
    }
    // What was unloaded comes back all the same.
    let plan = host.plan_home(&record, std::slice::from_ref(&record), None, end)?;
    Executor::new(&mut host.kernel, guard, record, None, end).execute(&plan)?;
    Ok(Some(left.join("; ")))
}

/// What it is refused with that a call does not end.
fn refused(snapshot: &Snapshot, call: &StuckCall) -> Error {
    match hangs::may_be_freed(snapshot, call) {
        Err(refusal) => refusal.into(),
        Ok(()) => Error::Overdue {
            what: format!("process {} did not get out of its call", call.pid),
            within: ENDS_WITHIN,
            hint: "run 'gpu-handoff recover' once more".to_owned(),
        },
    }
}

/// The record as it was, where the unload was refused and nothing is stuck in it.
fn forget_if_unharmed(host: &mut Session, guard: &Guard, record: &Record, before: Option<&Record>) {
    let on_file = host.load(Some(guard)).map(|(records, _)| records).unwrap_or_default();
    let is_unharmed = |r: &Record| r.owner == record.owner && r.wedges.is_empty() && r.workers.is_empty();
    if !on_file.iter().any(is_unharmed) {
        return;
    }
    for console in &record.consoles {
        // It was taken off for the unload.
        let back = Act::set_console(console, true);
        if let Err(e) = host.kernel.act(&back, record.budgets.attribute) {
            warn!("{console}: {e}");
        }
    }
    let result = match before {
        Some(before) => guard.save(before),
        None => guard.remove(record.owner),
    };
    if let Err(e) = result {
        warn!("writing the record: {e}");
    }
}

/// The VM that Proxmox has reserved a function for: one that runs with it, or is just being started.
fn reserved(cluster: &Cluster, snapshot: &Snapshot, addr: PciAddr) -> Option<u64> {
    let running = |vmid| snapshot.vms.iter().find(|v| v.vmid == vmid).map(|v| v.process.pid);
    cluster.reservations.holder(addr, cluster.now, &running).map(|r| r.vmid)
}

/// GPUs that are on no driver and on nobody's record, as a freed unbind leaves them: bound to their own driver where nothing
/// on the host means them for another. Of those in `said` it is said already what becomes of them.
///
/// # Errors
/// Where the host could not be read.
pub(crate) fn bring_back(
    host: &mut Session,
    guard: Option<&Guard>,
    records: &[Record],
    said: &[PciAddr],
) -> Result<Vec<Freed>, Error> {
    let mut snapshot = host.look(records)?;
    let mut all = Vec::new();
    if snapshot.module("nvidia").is_none() {
        return Ok(all); // a host that has no use for them
    }
    let cluster = host.cluster().unwrap_or_else(|_| files::reservations_alone(&host.root));
    let is_left = |a: &PciAddr| {
        let on_record = records.iter().any(|r| r.functions().contains(a));
        !on_record && !said.contains(a) && snapshot.calls_at(*a).next().is_none()
    };
    let gpus = snapshot.gpus().filter(|f| f.driver.is_none()).map(|f| f.addr);
    let gpus: Vec<PciAddr> = gpus.filter(is_left).collect();
    ask_cards(host, &mut snapshot, &gpus)?;
    for gpu in gpus {
        let taken = match hangs::comes_home(&snapshot, gpu, |addr| reserved(&cluster, &snapshot, addr)) {
            Ok(taken) => taken,
            Err(why) => {
                all.push(Freed::left(&[gpu], why));
                continue;
            }
        };
        let functions: Vec<PciAddr> = taken.iter().map(|t| t.addr).collect();
        let Some(guard) = guard else {
            let why = "it is on no driver and on nobody's record; it would be bound to its own".to_owned();
            all.push(Freed::left(&functions, why));
            continue;
        };
        info!(
            "{}: on no driver, on nobody's record, and meant for no other: it is bound to its own",
            join(&functions)
        );
        let record = hangs::unrecorded(taken, host.unrecorded(gpu, records)?);
        let end = host.kernel.now() + record.budgets.way_home;
        let result = bind(host, guard, &record, end);
        all.push(match result {
            Ok(()) => Freed {
                functions,
                left: None,
                error: None,
            },
            Err(error) => {
                // It was on no driver before, and nobody is to try again by itself.
                forget_if_unharmed(host, guard, &record, None);
                Freed::left(&functions, chain(error))
            }
        });
    }
    Ok(all)
}

/// What the decision needs of these GPUs' cards.
fn ask_cards(host: &mut Session, snapshot: &mut Snapshot, gpus: &[PciAddr]) -> Result<(), Error> {
    let cards = gpus.iter().flat_map(|gpu| card(snapshot, *gpu));
    let cards: Vec<PciAddr> = cards.collect();
    host.ask(snapshot, &cards, host.budgets.look)
}

/// Binds it as a way home does, without what that does where a bind fails: nobody has had it.
fn bind(host: &mut Session, guard: &Guard, record: &Record, end: Duration) -> Result<(), Error> {
    let mut plan = host.plan_home(record, std::slice::from_ref(record), None, end)?;
    for step in &mut plan.steps {
        step.rungs.truncate(1);
    }
    host.execute(guard, record.clone(), None, &plan, end)
}
