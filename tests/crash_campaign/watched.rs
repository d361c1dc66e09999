//! The watcher after a run was killed: what it decides (`gpu_handoff::commands::watch_next`), on the model's clock, and the way home that
//! it has run.

use std::time::Duration;

use gpu_handoff::base::process::Process as Told;
use gpu_handoff::commands::watch_next::{Next, Sight, Watch};
use gpu_handoff::host::vms::RunningVm;
use gpu_handoff::model::record::{Owner, Record};

use crate::after::{Recovered, record, recover};
use crate::common::{Event, Model, Process, When};
use crate::hosts::Trip;

/// So often the watcher may look before it has to leave.
const ROUNDS: usize = 40;

/// The VM's QEMU, or who called a phase by hand.
const SOMEBODY: Told = Told { pid: 900, started: 1 };

/// What goes on beside the watcher, and until when on the model's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct Beside {
    /// Proxmox holds the VM's lock.
    lock: Duration,
    /// A phase was called by hand.
    caller: Duration,
    /// QEMU runs.
    qemu: Duration,
    /// The run was not killed at all: it is at work still.
    run: Duration,
}

/// Nobody; the run itself, which lives and takes its time; the task of a start that fails a while later; the same, by hand; a VM that runs for a while, and is stopped by
/// a task that calls no post-stop.
pub fn beside(now: Duration) -> [Beside; 5] {
    let (soon, later) = (now + Duration::from_secs(3), now + Duration::from_secs(20));
    let nobody = Beside::default();
    [
        nobody,
        Beside { run: later, ..nobody },
        Beside { lock: soon, ..nobody },
        Beside { caller: soon, ..nobody },
        Beside {
            lock: soon,
            qemu: later,
            ..nobody
        },
    ]
}

/// Lets the watcher watch until it leaves. An error is what was wrong with that.
pub fn watch(trip: &Trip, model: &mut Model, beside: Beside) -> Result<(), String> {
    let Owner::Vm(vmid) = trip.session.owner else {
        return Ok(());
    };
    if let Some(mut record) = record(model).filter(|_| beside.caller > model.time) {
        record.caller = Some(SOMEBODY);
        model.ledger.as_ref().ok_or("no records")?.put(record);
    }
    if beside.qemu > model.time {
        model.vms.push(RunningVm {
            vmid,
            process: SOMEBODY,
        });
        let pid = i32::try_from(SOMEBODY.pid).map_err(|e| e.to_string())?;
        let group = model.device(trip.session.gpus[0]).and_then(|d| d.group);
        // Where the card is not whole it runs without it.
        let guest = Process::guest(pid, vmid.get(), group.unwrap_or_default());
        let _ = model.open(guest);
        model.events.push((When::At(beside.qemu), Event::Goes(pid)));
    }
    let mut watch = Watch::new();
    for _ in 0..ROUNDS {
        let now = model.time;
        let qemu = beside.qemu > now;
        if !qemu {
            model.vms.retain(|vm| vm.vmid != vmid);
        }
        let record = record(model);
        let run = record.as_ref().and_then(|r| r.run).filter(|_| beside.run > now);
        let groups = record.iter().flat_map(Record::groups).map(|group| group.number);
        let groups: Vec<u32> = groups.filter(|group| model.is_alive(*group)).collect();
        let seen = Sight {
            record,
            busy: beside.lock > now,
            caller: beside.caller > now,
            run: run.map(|run| run.process),
            qemu: qemu.then_some(SOMEBODY),
            at_work: groups.iter().filter_map(|g| i32::try_from(*g).ok()).collect(),
            removed: false,
        };
        let until = match watch.next(&seen, now) {
            Next::Lock => beside.lock,
            Next::Caller(_) => beside.caller,
            Next::Run(_) => beside.run,
            Next::Qemu(_) => beside.qemu,
            Next::PostStop(within) | Next::Again(within) => now + within,
            Next::AtWork(_) => {
                model.wait_until(now + Duration::from_secs(60), |m| {
                    !groups.iter().any(|g| m.is_alive(*g))
                });
                continue;
            }
            Next::Home if seen.busy || seen.caller || qemu || seen.run.is_some() => {
                return Err(format!("home beside {seen:?}"));
            }
            Next::Home => {
                if let Recovered::Left(why) = recover(trip, model, false, false) {
                    return Err(format!("not brought home: {why}"));
                }
                continue;
            }
            Next::Leave => return Ok(()),
        };
        if until <= now {
            return Err(format!("it waits for what has been, {seen:?}"));
        }
        model.spend(until - now);
    }
    Err("it never leaves".to_owned())
}
