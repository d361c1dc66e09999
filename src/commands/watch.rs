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
//! [`Watch::next`] decides, [`run`] waits. It runs in `gpu-handoff-watch@VMID.service`, writes nothing but our lock, and
//! has the way home run by `gpu-handoff-home@VMID.service`. It leaves only while it holds the host-wide lock and no record of
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
use crate::host::vms;
use crate::model::error::Error;
use crate::model::plan::{containers_time, deadline};
use crate::model::record::{Owner, Record, State};
use crate::proxmox::files;
use crate::run::afterwards::tell;
use crate::run::session::{must_be_root, this_boot};
use crate::state::store::{DIR, Store, UnreadableRecord};

/// How long is waited after each attempt, seconds, and for ever after the last of these, unless something happens before:
/// what was in the way then (a process, a module that is not there) has no event. Three quick attempts, then rarer ones.
const PAUSES: [u64; 9] = [20, 20, 30, 60, 120, 300, 600, 1800, 3600];

/// From this attempt on a person is asked to look.
const QUICK: u32 = 3;

/// The attempt whose pause is the longest where another VM has, or is about to have, what is away.
const CLAIMED: u32 = 5;

/// How long is waited where there was nothing to do.
const BETWEEN: Duration = Duration::from_secs(20);

/// How long starting the unit may take beyond what the way home itself may.
const UNIT_START: Duration = Duration::from_secs(60);

/// What the watcher sees at one moment.
#[derive(Clone, Debug, Default)]
pub struct Sight {
    /// The VM's record, of this boot.
    pub record: Option<Record>,
    /// Somebody holds the VM's lock.
    pub busy: bool,
    /// The process that called a phase by hand is alive.
    pub caller: bool,
    /// The VM's QEMU, if it runs.
    pub qemu: Option<Process>,
    /// The run that is at work on it, if that lives.
    pub run: Option<Process>,
    /// Processes of ours that are at an act on a function still; those of a run that lives are its own.
    pub at_work: Vec<i32>,
    /// A record of whomever has been removed since the last look: something has come home, or was taken over.
    pub removed: bool,
}

/// What it waits for, or does, next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// The release of the VM's lock.
    Lock,
    /// The end of the process that called a phase by hand.
    Caller(Process),
    /// The end of a run that is at work: whatever it does, and however long, it says so itself.
    Run(Process),
    /// The end of QEMU.
    Qemu(Process),
    /// The end of one of these, which are at an act.
    AtWork(Vec<i32>),
    /// A change of the records, at most so long: post-stop may come.
    PostStop(Duration),
    /// The same, before the way home is tried again.
    Again(Duration),
    /// The way home.
    Home,
    /// Nothing is away, as far as can be read.
    Leave,
}

/// What the watcher remembers.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    /// Of which handoff, by its number.
    generation: Option<u64>,
    /// The QEMU that was seen last.
    ran: Option<Process>,
    /// The way home was tried beside this QEMU, which is not the one that the handoff was for.
    beside: Option<Process>,
    /// When post-stop's time is over.
    grace: Option<Duration>,
    /// Ways home so far.
    attempts: u32,
    /// When the next one may be.
    again: Option<Duration>,
    /// The record as the last one has left it.
    left: Option<Record>,
}

impl Watch {
    /// Nothing seen yet.
    pub fn new() -> Self {
        Watch::default()
    }

    /// What is next. Pure: `now` is the time on any clock.
    pub fn next(&mut self, seen: &Sight, now: Duration) -> Next {
        let Some(record) = &seen.record else {
            return Next::Leave;
        };
        if self.generation != Some(record.generation) {
            *self = Watch {
                generation: Some(record.generation),
                ..Watch::default()
            };
        }
        if seen.busy {
            return self.after(Next::Lock);
        }
        if let Some(caller) = record.caller.filter(|_| seen.caller) {
            return self.after(Next::Caller(caller));
        }
        if let Some(qemu) = seen.qemu {
            // Started anew without a pre-start, it may not have the GPU: by a config that names neither it nor us.
            let is_another = self.ran.or(record.qemu).is_some_and(|first| first != qemu);
            let is_left = self.beside == Some(qemu);
            *self = Watch {
                generation: self.generation,
                ran: self.ran.or(record.qemu).or(Some(qemu)),
                beside: is_another.then_some(qemu),
                ..Watch::default()
            };
            return match is_another && !is_left {
                true => Next::Home,
                false => Next::Qemu(qemu),
            };
        }
        if let Some(run) = seen.run {
            return self.after(Next::Run(run));
        }
        if !seen.at_work.is_empty() {
            // What comes after it is another attempt.
            (self.attempts, self.again) = (0, None);
            return Next::AtWork(seen.at_work.clone());
        }
        // A way home that was begun does not wait for another post-stop.
        if self.after_qemu(seen) && record.state == State::Away && self.attempts == 0 {
            let until = *self.grace.get_or_insert(now + record.budgets.grace);
            if now < until {
                return Next::PostStop(until.saturating_sub(now));
            }
        }
        // Another run may have done what it could, and have left it at that.
        let left = self.left.get_or_insert_with(|| record.clone());
        let happened = seen.removed || left != record;
        if let Some(again) = self.again.filter(|again| now < *again && !happened) {
            return Next::Again(again.saturating_sub(now));
        }
        self.attempts = self.attempts.saturating_add(1);
        self.again = Some(now + self.pause());
        self.left = None;
        Next::Home
    }

    /// What is waited for is an event: the next attempt comes right after it.
    fn after(&mut self, next: Next) -> Next {
        self.again = None;
        next
    }

    /// How long is waited after the last attempt, if nothing happens.
    pub fn pause(&self) -> Duration {
        let at = PAUSES.len().min(self.attempts.max(1) as usize) - 1;
        Duration::from_secs(PAUSES[at])
    }

    /// The last attempt has left it for another VM. When that is over there may be no event (a task that lets go of its lock),
    /// so that the pauses stay short.
    pub fn is_claimed(&mut self) {
        self.attempts = self.attempts.min(CLAIMED - 1);
    }

    /// Whether a person is to look what is in the way.
    pub fn asks_for_help(&self) -> bool {
        self.attempts >= QUICK
    }

    /// Whether the VM's QEMU was there since the handoff: seen by us, or by post-start.
    pub fn after_qemu(&self, seen: &Sight) -> bool {
        self.ran.is_some() || seen.record.as_ref().is_some_and(|r| r.qemu.is_some())
    }
}

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
                watcher.await_end_or_change(*process);
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
            Next::Again(within) => watcher.await_change(*within),
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

    /// Until this very process has ended, or a record changes.
    fn await_end_or_change(&self, process: Process) {
        let Some(fds) = i32::try_from(process.pid).ok().and_then(|pid| pidfds(&[pid])) else {
            return;
        };
        if process::process(&self.root, process.pid) == Some(process) {
            poll_readable(&[fds[0].as_fd(), self.changes.as_fd()], Duration::MAX);
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
    const S: fn(u64) -> Duration = Duration::from_secs;

    fn process(pid: u32) -> Process {
        Process { pid, started: 1 }
    }

    fn away() -> Sight {
        let owner = Owner::Vm("111".parse().unwrap());
        let mut record = Record::new(owner, "boot".to_owned(), Budgets::default());
        record.state = State::Away;
        Sight {
            record: Some(record),
            ..Sight::default()
        }
    }

    /// What is next at each of these moments, for one watcher.
    fn follow(steps: &[(u64, Sight)]) -> Vec<Next> {
        let mut watch = Watch::new();
        steps.iter().map(|(at, seen)| watch.next(seen, S(*at))).collect()
    }

    #[test]
    fn a_start_that_failed_comes_home_as_soon_as_the_lock_is_released() {
        let busy = Sight { busy: true, ..away() };
        let home = Sight::default();
        assert_eq!(
            follow(&[(0, busy), (40, away()), (45, home)]),
            [Next::Lock, Next::Home, Next::Leave]
        );
    }

    #[test]
    fn after_qemu_post_stop_has_its_time_counted_from_the_release_of_the_lock() {
        let runs = Sight {
            qemu: Some(process(7)),
            ..away()
        };
        let busy = Sight { busy: true, ..away() };
        let steps = [(0, runs), (100, busy), (130, away()), (150, away()), (205, away())];
        assert_eq!(
            follow(&steps),
            [
                Next::Qemu(process(7)),
                Next::Lock,
                Next::PostStop(S(75)),
                Next::PostStop(S(55)),
                Next::Home
            ]
        );
    }

    #[test]
    fn a_watcher_that_came_after_qemu_has_ended_learns_of_it_from_the_record() {
        let mut ran = away();
        ran.record.as_mut().unwrap().qemu = Some(process(7));
        assert_eq!(follow(&[(0, ran.clone())]), [Next::PostStop(S(75))]);
        ran.record.as_mut().unwrap().state = State::Returning;
        assert_eq!(follow(&[(0, ran)]), [Next::Home]);
    }

    #[test]
    fn a_phase_by_hand_lasts_as_long_as_its_caller() {
        let mut by_hand = away();
        by_hand.record.as_mut().unwrap().caller = Some(process(5));
        by_hand.caller = true;
        let ended = Sight {
            caller: false,
            ..by_hand.clone()
        };
        assert_eq!(
            follow(&[(0, by_hand), (9, ended)]),
            [Next::Caller(process(5)), Next::Home]
        );
    }

    /// After a rollback to a config that names neither the GPU nor us.
    #[test]
    fn beside_a_qemu_that_was_started_anew_without_a_handoff_the_way_home_is_tried_once() {
        let runs = |pid, by_post_start: Option<u32>| {
            let mut seen = Sight {
                qemu: Some(process(pid)),
                ..away()
            };
            seen.record.as_mut().unwrap().qemu = by_post_start.map(process);
            seen
        };
        let seen_by = |post_start| {
            [
                runs(7, post_start),
                runs(8, post_start),
                runs(8, post_start),
                runs(9, post_start),
            ]
        };
        let (first, second, third) = (Next::Qemu(process(7)), Next::Qemu(process(8)), Next::Home);
        for post_start in [None, Some(7)] {
            let steps = seen_by(post_start).map(|seen| (0, seen));
            assert_eq!(
                follow(&steps),
                [first.clone(), Next::Home, second.clone(), third.clone()],
                "{post_start:?}"
            );
        }
        // Not seen by us, but by post-start.
        assert_eq!(follow(&[(0, runs(8, Some(7)))]), [Next::Home]);
        assert_eq!(follow(&[(0, runs(8, None))]), [second]);
    }

    #[test]
    fn what_is_left_for_another_vm_is_looked_at_again_every_two_minutes() {
        let mut watch = Watch::new();
        let mut tried = Vec::new();
        for at in 0..7200 {
            if watch.next(&away(), S(at)) == Next::Home {
                watch.is_claimed();
                tried.push(at);
            }
        }
        let longest = tried.windows(2).map(|two| two[1] - two[0]).max();
        assert_eq!(longest, Some(120), "{tried:?}");
    }

    /// By hand, its caller gone, for longer than an act may take: it is at work and not stuck.
    #[test]
    fn a_run_that_lives_is_followed_however_long_it_takes() {
        let run = Sight {
            run: Some(process(6)),
            at_work: vec![9],
            ..away()
        };
        let killed = Sight {
            run: None,
            ..run.clone()
        };
        assert_eq!(
            follow(&[(0, run.clone()), (40, run), (41, killed), (42, away())]),
            [
                Next::Run(process(6)),
                Next::Run(process(6)),
                Next::AtWork(vec![9]),
                Next::Home
            ]
        );
    }

    #[test]
    fn what_a_killed_run_has_left_has_the_time_of_its_act_before_it_is_called_stuck() {
        let mut record = away().record.unwrap();
        assert_eq!(patience(&record), S(20));
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
            assert_eq!(patience(&record), S(within), "{:?}", record.under_way);
        }
    }

    #[test]
    fn what_is_stuck_is_followed_and_then_the_way_home_is_run() {
        let stuck = Sight {
            at_work: vec![9],
            ..away()
        };
        assert_eq!(
            follow(&[(0, stuck), (600, away())]),
            [Next::AtWork(vec![9]), Next::Home]
        );
    }

    /// When an attempt is made, with a watcher that looks every second for two days.
    #[test]
    fn a_way_home_that_fails_is_tried_again_for_ever_after_pauses_that_grow_to_an_hour() {
        let mut watch = Watch::new();
        let mut tried = Vec::new();
        let mut asks = Vec::new();
        for at in 0..2 * 86_400 {
            match watch.next(&away(), S(at)) {
                Next::Home => {
                    tried.push(at);
                    asks.push(watch.asks_for_help());
                }
                Next::Again(within) => assert_eq!(within, watch.pause() - (S(at) - S(*tried.last().unwrap()))),
                next => panic!("{next:?} at {at}"),
            }
        }
        let pauses: Vec<u64> = tried.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(pauses[..10], [20, 20, 30, 60, 120, 300, 600, 1800, 3600, 3600]);
        assert!(pauses[8..].iter().all(|pause| *pause == 3600), "{pauses:?}");
        assert!(
            tried.len() > 50 && asks.iter().position(|asks| *asks) == Some(2),
            "{tried:?} {asks:?}"
        );
    }

    /// Between two attempts: nothing, another VM's record written, a record removed, the own record changed by another run, a
    /// task that had the VM's lock, a run that was followed.
    #[test]
    fn what_happens_between_two_attempts_has_the_next_one_come_at_once() {
        let changed = || {
            let mut changed = away();
            changed.record.as_mut().unwrap().state = State::Stranded;
            changed
        };
        let removed = Sight {
            removed: true,
            ..away()
        };
        let busy = Sight { busy: true, ..away() };
        let run = Sight {
            run: Some(process(6)),
            ..away()
        };
        // Attempts at 0, 20, 40 and 70 s; the next one after 60 s more.
        let tried = || [0, 20, 40, 70].map(|at| (at, away())).to_vec();
        for (case, then, next) in [
            ("nothing", vec![(80, away())], vec![Next::Again(S(50))]),
            (
                "a record removed",
                vec![(71, away()), (80, removed)],
                vec![Next::Again(S(59)), Next::Home],
            ),
            (
                "its own changed",
                vec![(71, away()), (80, changed()), (81, changed()), (82, changed())],
                vec![Next::Again(S(59)), Next::Home, Next::Again(S(119)), Next::Again(S(118))],
            ),
            ("a task", vec![(71, busy), (80, away())], vec![Next::Lock, Next::Home]),
            (
                "a run",
                vec![(71, run), (80, away())],
                vec![Next::Run(process(6)), Next::Home],
            ),
        ] {
            let mut steps = tried();
            steps.extend(then);
            let found = follow(&steps);
            assert_eq!(found[..4], [Next::Home, Next::Home, Next::Home, Next::Home], "{case}");
            assert_eq!(found[4..], next, "{case}");
        }
    }

    #[test]
    fn another_handoff_of_the_vm_begins_anew() {
        let mut again = away();
        again.record.as_mut().unwrap().generation = 2;
        let steps = [(0, away()), (21, away()), (42, away()), (43, away()), (44, again)];
        let tried = || [Next::Home, Next::Home, Next::Home];
        let [one, two, three] = tried();
        assert_eq!(follow(&steps), [one, two, three, Next::Again(S(29)), Next::Home]);
    }
}
