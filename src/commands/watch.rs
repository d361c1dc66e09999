//! The watcher: waits until nobody needs a VM's GPU any more, and has it brought home then. Proxmox calls post-stop in
//! most cases and not in all (never after a failed start); nobody but us would notice.
//!
//! ```text
//!  VM's lock ──> caller ──> QEMU ──> VM's lock ──> grace for post-stop ──> home ──> nothing on record: leave
//!  released      (a phase   ended    released           │                   │ ^
//!                by hand)                               │        a call is  v │ the kernel has let go
//!                   └── no QEMU was seen: the start has failed ──────────> stuck
//! ```
//!
//! Each of these is an event: a lock, the end of a process, a change of the record. Proxmox holds the VM's lock through a
//! whole start or stop (pve-guest-common, AbstractConfig.pm, lock_config); that a task has ended would say less, since a
//! backup job outlives a start that failed in it. A run that is at work on the record is followed to its end, too, whoever
//! asked for it: its workers are stuck when it says so. What a run that was killed has left is given the time of its act.
//!
//! What keeps a GPU away may have no event (a process, a module that is not there): a way home that has failed is tried again
//! after pauses that grow to an hour, and at once when something has happened.
//!
//! [`Watch::next`] decides, [`run`] waits. It runs in `gpu-handoff-watch@VMID.service`, writes nothing but our lock, and has the
//! way home run by `gpu-handoff-home@VMID.service`. It leaves only while it holds the host-wide lock and no record of
//! this VM can be acted on: a run that comes after it has asked for a watcher of its own.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent};
use tracing::{info, warn};

use crate::base::process::{self, Process};
use crate::base::root::Root;
use crate::base::systemd;
use crate::base::text::{join, millis};
use crate::base::vmid::VmId;
use crate::base::wait::{pidfds, poll_readable};
use crate::commands::watch_next::{Next, Sight, Watch};
use crate::host::vms;
use crate::model::error::Error;
use crate::model::plan::{containers_time, deadline};
use crate::model::record::{Owner, Record, State};
use crate::proxmox::files;
use crate::run::afterwards::tell;
use crate::run::session::{must_be_root, this_boot};
use crate::state::store::{DIR, Store, UnreadableRecord};

/// How long is waited where there was nothing to do.
const BETWEEN: Duration = Duration::from_secs(20);

/// How long starting the unit may take beyond what the way home itself may.
const UNIT_START: Duration = Duration::from_secs(60);

/// Watches until nothing of this VM is away.
///
/// # Errors
/// Where the records cannot be read or watched.
pub fn run(vmid: VmId) -> Result<(), Error> {
    must_be_root()?;
    let watcher = Watcher {
        vmid,
        root: Root::real(),
        store: Store::at(DIR),
        changes: changes()?,
    };
    let start = Instant::now();
    let mut watch = Watch::new();
    let mut following = None;
    loop {
        let removed = watcher.drain();
        let seen = Sight {
            removed,
            ..watcher.see()?
        };
        let next = watch.next(&seen, start.elapsed());
        let record = seen.record.as_ref();
        match &next {
            Next::Lock => watcher.await_lock()?,
            Next::Caller(process) => {
                if following.replace(*process) != Some(*process) {
                    info!(
                        "VM {vmid}: no task of Proxmox has the VM's lock: following process {}",
                        process.pid
                    );
                }
                // A shell may live for long after its GPU is home.
                watcher.await_end_or_change(*process, Duration::MAX);
            }
            Next::Run(process) => {
                info!("VM {vmid}: process {} is at work on its GPU, following it", process.pid);
                watcher.await_end(*process);
            }
            Next::Qemu(process) => {
                info!("VM {vmid}: QEMU runs as process {}, following it", process.pid);
                watcher.await_end(*process);
                info!("VM {vmid}: QEMU has ended");
            }
            Next::AtWork(pids) => watcher.await_work(pids, record),
            Next::PostStop(within) => {
                info!("VM {vmid}: post-stop has {} to come", millis(*within));
                watcher.await_change(*within);
            }
            Next::Again(within) => match seen.qemu {
                Some(qemu) => watcher.await_end_or_change(qemu, *within),
                None => watcher.await_change(*within),
            },
            Next::Home => {
                if watcher.home(&seen, &watch) {
                    watch.is_claimed();
                }
            }
            Next::Leave => {
                if watcher.may_leave() {
                    return Ok(());
                }
                // Not at once again: the lock may be had by nobody.
                watcher.await_change(BETWEEN);
            }
        }
    }
}

/// Tells of every change of a record from now on.
fn changes() -> Result<Inotify, Error> {
    let watch = || {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let flags = AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_DELETE;
        inotify.add_watch(DIR, flags)?;
        Ok(inotify)
    };
    watch().map_err(|e: nix::Error| Error::io(format!("watching {DIR}"), e.into()))
}

struct Watcher {
    vmid: VmId,
    root: Root,
    store: Store,
    changes: Inotify,
}

impl Watcher {
    /// Forgets what has changed so far. Whether a record was removed.
    fn drain(&self) -> bool {
        let mut removed = false;
        while let Ok(events) = self.changes.read_events() {
            if events.is_empty() {
                break;
            }
            removed |= events
                .iter()
                .any(|e| e.mask.contains(AddWatchFlags::IN_DELETE) && is_record(e));
        }
        removed
    }

    fn load(&self) -> Result<(Vec<Record>, Vec<UnreadableRecord>), Error> {
        let loaded = self.store.load();
        loaded.map_err(|e| Error::io(format!("reading the records in {DIR}"), e))
    }

    fn see(&self) -> Result<Sight, Error> {
        let (records, _) = self.load()?;
        let boot = this_boot()?;
        let ours = |r: &Record| r.owner == Owner::Vm(self.vmid) && r.boot_id == boot;
        let record = records.into_iter().find(ours);
        let groups = record.iter().flat_map(Record::awaited);
        let at_work = groups.flat_map(|group| group.alive(&self.root)).collect();
        let caller = record.as_ref().and_then(|r| r.caller);
        let run = record.as_ref().and_then(|r| r.run).map(|run| run.process);
        Ok(Sight {
            busy: self.lock_file()?.is_some_and(|file| files::is_held(&file)),
            caller: caller.is_some_and(|p| process::process(&self.root, p.pid) == Some(p)),
            run: run.filter(|p| process::process(&self.root, p.pid) == Some(*p)),
            qemu: vms::running_vm(&self.root, self.vmid).map(|vm| vm.process),
            at_work,
            record,
            removed: false,
        })
    }

    /// The VM's lock, where there is one.
    fn lock_file(&self) -> Result<Option<File>, Error> {
        let file = files::lock_file(&self.root, self.vmid);
        file.map_err(|e| Error::io(format!("opening {}", files::lock_path(self.vmid)), e))
    }

    /// Until the VM's lock is released, however long that takes: a start may be slow. It is dropped at once, which no task
    /// of Proxmox notices.
    fn await_lock(&self) -> Result<(), Error> {
        if let Some(file) = self.lock_file()? {
            let wait = || loop {
                match file.lock_shared() {
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    result => return result,
                }
            };
            wait().map_err(|e| Error::io("waiting for the VM's lock", e))?;
        }
        Ok(())
    }

    /// Until this very process has ended.
    fn await_end(&self, process: Process) {
        let Some(fds) = i32::try_from(process.pid).ok().and_then(|pid| pidfds(&[pid])) else {
            return;
        };
        // The descriptor is of whoever has the number now.
        while process::process(&self.root, process.pid) == Some(process) {
            poll_readable(&[fds[0].as_fd()], Duration::MAX);
        }
    }

    /// Until this very process has ended, or a record changes, at most so long.
    fn await_end_or_change(&self, process: Process, within: Duration) {
        let Some(fds) = i32::try_from(process.pid).ok().and_then(|pid| pidfds(&[pid])) else {
            return;
        };
        if process::process(&self.root, process.pid) == Some(process) {
            poll_readable(&[fds[0].as_fd(), self.changes.as_fd()], within);
        }
    }

    fn await_work(&self, pids: &[i32], record: Option<&Record>) {
        let patience = record.map_or(Duration::ZERO, patience);
        let Some(fds) = pidfds(pids) else { return };
        if end_of(&fds, patience) {
            return;
        }
        let mut groups = record.map_or_else(Vec::new, Record::awaited);
        groups.retain(|group| {
            let alive = group.alive(&self.root);
            systemd::take_over(group.number, &alive);
            !alive.is_empty()
        });
        warn!(
            "VM {}: process group {} is stuck in the kernel; the GPU is brought home as soon as it has gone",
            self.vmid,
            join(&groups)
        );
        while !end_of(&fds, Duration::MAX) {}
        let vmid = self.vmid;
        info!("VM {vmid}: what was stuck in the kernel has ended, late: the way home begins");
    }

    fn await_change(&self, within: Duration) {
        poll_readable(&[self.changes.as_fd()], within);
    }

    /// Has it brought home. Whether it was left away for another VM.
    fn home(&self, seen: &Sight, watch: &Watch) -> bool {
        let vmid = self.vmid;
        if systemd::is_shutting_down() {
            info!("VM {vmid}: the host is shutting down, nothing is brought home");
            // Who shuts the host down ends us, too.
            self.await_change(BETWEEN);
            return false;
        }
        let Some(record) = &seen.record else { return false };
        let devices = join(record.taken.iter().map(|t| t.addr));
        let why = match (watch.after_qemu(seen), record.state) {
            _ if seen.qemu.is_some() => "the VM's QEMU was started anew without a handoff",
            (true, State::Away) => "QEMU has ended and post-stop did not come",
            (true, _) => "QEMU has ended and the way home was broken off",
            (false, _) => "the start is over and no QEMU runs",
        };
        info!(device = devices, "VM {vmid}: {why}: bringing {devices} home");
        let starts = containers_time(&record.units, &record.budgets);
        let within = record.budgets.way_home + starts + record.budgets.lock + UNIT_START;
        let again = format!(
            "it is tried again in {} s, or when a record changes",
            watch.pause().as_secs()
        );
        match systemd::home(vmid, within) {
            Ok(true) => {
                let is_left = self.see().is_ok_and(|now| now.record.is_some());
                if is_left && seen.qemu.is_none() {
                    info!("VM {vmid}: {devices} stays away, gpu-handoff-home@{vmid}.service said why; {again}");
                }
                return is_left;
            }
            Ok(false) if watch.asks_for_help() => {
                warn!(
                    "VM {vmid}: {devices} could not be brought home so far; {again}. Hint: see 'journalctl -u \
                     gpu-handoff-home@{vmid}.service' for why, then run 'gpu-handoff recover'"
                );
                tell(Some(vmid));
            }
            Ok(false) => {
                warn!("VM {vmid}: the way home did not end well, gpu-handoff-home@{vmid}.service said why; {again}");
            }
            Err(why) => warn!("VM {vmid}: the way home could not be asked for: {why}; {again}"),
        }
        false
    }

    /// Whether nothing of the VM is away. The host-wide lock is kept until
    /// this process has ended: whoever gets it then asks for a watcher that is not this one.
    fn may_leave(&self) -> bool {
        let vmid = self.vmid;
        let Ok(guard) = self.store.lock(&format!("VM {vmid} watcher"), UNIT_START) else {
            return false;
        };
        let Ok(now) = self.see() else { return false };
        if now.record.is_some() {
            return false;
        }
        let problems = self.load().map_or_else(|_| Vec::new(), |(_, problems)| problems);
        let unreadable = problems.iter().find(|p| p.is_of(Owner::Vm(vmid)));
        match unreadable {
            Some(problem) => warn!("VM {vmid}: the watch is over, though nobody knows what is away: {problem}"),
            None => info!("VM {vmid}: nothing of it is away, the watch is over"),
        }
        std::mem::forget(guard);
        true
    }
}

/// Whether an event is of a record, and not of the lock or what is kept beside the records.
fn is_record(event: &InotifyEvent) -> bool {
    let name = event.name.as_deref().map(Path::new);
    name.and_then(Path::extension).is_some_and(|e| e == "json")
}

/// How long what a run that was killed has left may take before it counts as stuck: what the acts it was at may.
fn patience(record: &Record) -> Duration {
    let of_nvidia = record.taken.iter().filter(|t| t.driver.as_deref() == Some("nvidia"));
    let gpus = u32::try_from(of_nvidia.count()).unwrap_or(u32::MAX);
    let acts = record.under_way.iter();
    let longest = acts.map(|act| deadline(act, &record.budgets, gpus)).max();
    longest.unwrap_or_default().max(record.budgets.bind)
}

/// Whether one of these has ended within a time.
fn end_of(fds: &[OwnedFd], within: Duration) -> bool {
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    poll_readable(&fds, within).contains(&true)
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::base::deadlines::Budgets;
    use crate::model::act::Act;

    #[test]
    fn what_a_killed_run_has_left_has_the_time_of_its_act_before_it_is_called_stuck() {
        let owner = Owner::Vm("111".parse().unwrap());
        let mut record = Record::new(owner, "boot".to_owned(), Budgets::default());
        assert_eq!(patience(&record), Duration::from_secs(20));
        for (act, within) in [
            (
                Act::Unbind {
                    addr: "0000:01:00.0".parse().unwrap(),
                    driver: "nvidia".to_owned(),
                },
                20,
            ),
            (
                Act::LoadModule {
                    name: "nvidia".to_owned(),
                },
                45,
            ),
            (
                Act::Reset {
                    addr: "0000:01:00.0".parse().unwrap(),
                },
                75,
            ),
        ] {
            record.under_way = vec![act];
            assert_eq!(patience(&record), Duration::from_secs(within), "{:?}", record.under_way);
        }
    }
}
