//! What the watcher waits for next, and when it has the way home run: decided from what is seen, by nothing else.
//!
//! Not here: seeing, waiting, running it ([`crate::commands::watch`]).

use std::time::Duration;

use crate::base::process::Process;
use crate::model::record::{Record, State};

/// How long is waited after each attempt, seconds, and for ever after the last of these, unless something happens before:
/// what was in the way then (a process, a module that is not there) has no event. Three quick attempts, then rarer ones.
const PAUSES: [u64; 9] = [20, 20, 30, 60, 120, 300, 600, 1800, 3600];

/// From this attempt on a person is asked to look.
const QUICK: u32 = 3;

/// The attempt whose pause is the longest where another VM has, or is about to have, what is away.
const CLAIMED: u32 = 5;

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
    /// The same, or the end of QEMU, before the way home is tried again.
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
    /// The QEMU that runs and is not the one that the handoff was for: ways home are counted from when it came.
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
        // Started anew without a pre-start, it may not have the GPU: by a config that names neither it nor us.
        let first = self.ran.or(record.qemu);
        let beside = seen.qemu.filter(|qemu| first.is_some_and(|first| first != *qemu));
        if seen.qemu.is_some() && beside.is_none() || self.beside != beside {
            *self = Watch {
                generation: self.generation,
                ran: first.or(seen.qemu),
                beside,
                ..Watch::default()
            };
        }
        if let Some(qemu) = seen.qemu.filter(|_| beside.is_none()) {
            return Next::Qemu(qemu);
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
        if beside.is_none() && self.after_qemu(seen) && record.state == State::Away && self.attempts == 0 {
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
    /// so that the pauses stay short; not beside a QEMU that may have it for months.
    pub fn is_claimed(&mut self) {
        if self.beside.is_none() {
            self.attempts = self.attempts.min(CLAIMED - 1);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    use crate::base::deadlines::Budgets;
    use crate::model::record::Owner;

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

    /// The same beside a QEMU; `first` is the one that post-start has seen.
    fn runs(pid: u32, first: Option<u32>) -> Sight {
        let mut seen = Sight {
            qemu: Some(process(pid)),
            ..away()
        };
        seen.record.as_mut().unwrap().qemu = first.map(process);
        seen
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
    fn beside_a_qemu_that_was_started_anew_without_a_handoff_the_way_home_is_run() {
        for post_start in [None, Some(7)] {
            let steps = [7, 8, 9].map(|pid| (0, runs(pid, post_start)));
            let tried = [Next::Qemu(process(7)), Next::Home, Next::Home];
            assert_eq!(follow(&steps), tried, "{post_start:?}");
        }
        // Not seen by us, but by post-start.
        assert_eq!(follow(&[(0, runs(8, Some(7)))]), [Next::Home]);
        assert_eq!(follow(&[(0, runs(8, None))]), [Next::Qemu(process(8))]);
    }

    /// The host-wide lock was another run's, or the card was still in its reset.
    #[test]
    fn beside_such_a_qemu_a_way_home_that_fails_is_tried_again_like_any_other() {
        let steps = [0, 5, 20, 25, 40, 45].map(|at| (at, runs(8, Some(7))));
        let again = |left| Next::Again(S(left));
        let tried = [Next::Home, again(15), Next::Home, again(15), Next::Home, again(25)];
        assert_eq!(follow(&steps), tried);
        let mut watch = Watch::new();
        let tried = (0..7200).filter(|at| watch.next(&runs(8, Some(7)), S(*at)) == Next::Home);
        assert!(tried.count() > 5);
        assert!(watch.asks_for_help());
    }

    /// It has the GPU: its config names that still, and the hook no more. Or a task had the VM's lock just then.
    #[test]
    fn what_is_left_beside_such_a_qemu_is_tried_ever_more_rarely_and_at_its_end() {
        let mut watch = Watch::new();
        let mut tried = Vec::new();
        for at in 0..86_400 {
            if watch.next(&runs(8, Some(7)), S(at)) == Next::Home {
                watch.is_claimed();
                tried.push(at);
            }
        }
        let pauses: Vec<u64> = tried.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!((pauses.first(), pauses.last()), (Some(&20), Some(&3600)));
        let removed = Sight {
            removed: true,
            ..runs(8, Some(7))
        };
        assert_eq!(watch.next(&removed, S(86_401)), Next::Home);
        let mut ended = away();
        ended.record.as_mut().unwrap().qemu = Some(process(7));
        assert_eq!(watch.next(&ended, S(86_402)), Next::PostStop(S(75)));
        assert_eq!(watch.next(&ended, S(86_477)), Next::Home);
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
