//! A worker that was asked something: what it answers, or that it is waited for no longer.
//!
//! Not here: who asks, and how long ([`crate::execute::linux`]).

use std::io;
use std::time::{Duration, Instant};

use tracing::warn;

use crate::base::process::Group;
use crate::base::root::Root;
use crate::base::systemd;
use crate::base::wait::LONGEST_WAIT;
use crate::execute::kernel::ActError;
use crate::execute::worker::{Answer, Question, Worker};
use crate::model::act::Act;

/// Whether a request is one that only waits for others, and leaves nothing half done where it is broken off.
pub(crate) fn only_waits(request: &Question) -> bool {
    match request {
        Question::Act(act) => act.only_waits(),
        question => matches!(
            question,
            Question::Units(_) | Question::StaleNodes(_) | Question::Check(_)
        ),
    }
}

/// Whether the host is another one after an act: who looks or asks leaves it as it is, and a gate is gone with the run.
pub(crate) fn changes(act: &Act) -> bool {
    !matches!(
        act,
        Act::ProveFree { .. } | Act::Verify { .. } | Act::ShutGate { .. } | Act::OpenGate { .. }
    )
}

/// Whether an act had its effect, or may have had some of it.
pub(crate) fn may_have_effect(result: &Result<(), ActError>) -> bool {
    !matches!(
        result,
        Err(ActError::Failed(_) | ActError::CannotLoad(_) | ActError::NotBegun(_))
    )
}

/// Those that an act has asked to end, where that was broken off without an answer: they go on to end, and nobody sees it.
pub(crate) fn asked_to_end(act: &Act, is_interrupted: bool) -> Vec<i32> {
    match act {
        Act::EndProcesses { processes, .. } | Act::AwaitDesktops { processes, .. } if is_interrupted => {
            processes.iter().map(|one| one.pid).collect()
        }
        _ => Vec::new(),
    }
}

/// Groups that were killed, and of which something may be in the kernel still. Whose daemon has started this run is not to wait for
/// them when it is stopped.
#[derive(Debug, Default)]
pub(crate) struct LeftBehind(pub(crate) Vec<Group>);

impl Drop for LeftBehind {
    fn drop(&mut self) {
        for group in &self.0 {
            systemd::take_over(group.number, &group.alive(&Root::real()));
        }
    }
}

/// How long a worker has for what it answers at once: which processes have ended by then, for whose end it waits, too; or, after all
/// the time that a signal has left, whatever is no act, as that the history is written down.
const TO_TELL: Duration = Duration::from_millis(300);

/// How long one has that looks through all processes before it asks any of them to end, which takes a second and a half where there
/// are a million descriptors (BENCHMARKS.md). Of one that does not tell it is said that it has asked them all.
const TO_LOOK_AND_TELL: Duration = Duration::from_millis(1500);

/// How long the worker of an act has to tell who has ended for it; None: there is nothing to tell.
pub(crate) fn to_tell(act: &Act) -> Option<Duration> {
    match act {
        Act::EndProcesses { .. } => Some(TO_LOOK_AND_TELL),
        act => act.tells_who_ended().then_some(TO_TELL),
    }
}

fn broken_off() -> ActError {
    ActError::Failed("a signal asked us to end meanwhile".to_owned())
}

/// A worker that has a request, and what came of it.
pub(crate) struct Asked {
    pub(crate) worker: Option<Worker>,
    /// It waits for others and is in no call of the kernel's: it can be broken off at any moment.
    pub(crate) only_waits: bool,
    /// Which processes have ended for it is known only by its answer, for which it has so long ([`to_tell`]).
    pub(crate) tells: Option<Duration>,
    /// It is an act, which a signal leaves to its worker; what only looks is left at its deadline as well.
    pub(crate) is_act: bool,
    /// It was told that nobody waits for it any more, and has until then to say so much.
    told: Option<Instant>,
    /// When it was asked.
    start: Instant,
    within: Duration,
    /// What it was asked, in words.
    pub(crate) what: String,
    pub(crate) until: Instant,
    pub(crate) result: Option<Result<Answer, ActError>>,
    pub(crate) ended: Option<Instant>,
}

impl Asked {
    pub(crate) fn new(worker: io::Result<Worker>, start: Instant, within: Duration, only_waits: bool) -> Self {
        let mut asked = Asked {
            worker: None,
            only_waits,
            tells: None,
            is_act: false,
            told: None,
            start,
            within,
            what: String::new(),
            until: start + within.min(LONGEST_WAIT),
            result: None,
            ended: None,
        };
        match worker {
            Ok(worker) => asked.worker = Some(worker),
            Err(e) => asked.end(Err(ActError::Failed(format!("cannot start a worker: {e}")))),
        }
        asked
    }

    /// One that has its answer already, and needed no worker.
    pub(crate) fn answered(answer: Answer, start: Instant) -> Self {
        Asked {
            worker: None,
            only_waits: true,
            tells: None,
            is_act: false,
            told: None,
            start,
            within: Duration::ZERO,
            what: String::new(),
            until: start,
            result: Some(Ok(answer)),
            ended: Some(Instant::now()),
        }
    }

    fn end(&mut self, result: Result<Answer, ActError>) {
        self.ended = Some(Instant::now());
        self.result = Some(result);
    }

    pub(crate) fn receive(&mut self) {
        let Some(worker) = &mut self.worker else { return };
        match worker.receive() {
            Ok(None) => {}
            Ok(Some(mut reply)) => {
                if self.told.is_some() {
                    self.worker = None; // it takes no request any more, and ends
                    if let Answer::Acted { result, .. } = &mut reply
                        && result.is_err()
                    {
                        *result = Err(broken_off());
                    }
                }
                self.end(Ok(reply));
            }
            Err(e) => {
                let stuck = self.worker.take().and_then(Worker::abandon);
                self.end(Err(without_worker(&e, stuck, self.start.elapsed())));
            }
        }
    }

    /// The deadline has passed.
    pub(crate) fn give_up(&mut self) {
        let within = self.within;
        let stuck = self.worker.take().and_then(Worker::abandon);
        self.end(Err(ActError::Overdue { within, stuck }));
    }

    /// We have to go. Whether what it has to tell by now is waited for: it is told to.
    pub(crate) fn is_telling(&mut self, now: Instant) -> bool {
        if let Some(until) = self.told {
            return now < until;
        }
        let tells = self.tells.filter(|_| self.worker.as_mut().is_some_and(Worker::hang_up));
        let Some(within) = tells else { return false };
        self.told = Some(now + within);
        self.until = self.until.min(now + within);
        true
    }

    /// When it is left to itself, where a signal leaves time until `end`: what is no act has a moment in any case.
    pub(crate) fn left_at(&self, end: Instant) -> Instant {
        match self.is_act {
            true => end,
            false => end.max(self.start + TO_TELL),
        }
    }

    /// Its worker is ended, which takes a moment.
    pub(crate) fn kill(&self) {
        self.worker.iter().for_each(Worker::kill);
    }

    /// We have to go, and nothing is left half done by that. Its worker has until then to end; of its group, which is returned,
    /// something may be in the kernel still.
    pub(crate) fn break_off(&mut self, until: Instant) -> Option<Group> {
        self.end(Err(broken_off()));
        let mut worker = self.worker.take()?;
        worker.is_gone_by(until);
        Some(worker.group())
    }

    /// We have to go. What is under way is better finished than broken off: a modprobe that is killed in the middle
    /// leaves more to put right than one that is not waited for.
    pub(crate) fn leave(&mut self) {
        let group = self.worker.take().map_or_else(Group::default, |worker| worker.group());
        self.end(Err(ActError::Interrupted { group }));
    }
}

/// What comes of an act whose worker has ended before its answer, after so long. What that had started may be stuck, and will give none.
fn without_worker(why: &io::Error, stuck: Option<Group>, within: Duration) -> ActError {
    match stuck {
        None => ActError::Failed(format!("the worker ended: {why}")),
        Some(group) => {
            warn!(
                "a worker has ended ({why}), and what it has started is stuck in the kernel, as process group {group}"
            );
            ActError::Overdue { within, stuck }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::execute::kernel::AFTER_SIGNAL;

    /// Who looks for them first has asked nobody for longer than a wait takes to answer; and what was done is to be undone still.
    #[test]
    fn who_ends_processes_has_time_for_its_look_and_leaves_some_to_the_undo() {
        let (addrs, processes) = (Vec::new(), Vec::new());
        let ends = to_tell(&Act::EndProcesses {
            processes: processes.clone(),
            addrs: addrs.clone(),
            within_ms: 5_000,
            kill: true,
        });
        let waits = to_tell(&Act::AwaitDesktops { processes, addrs });
        assert_eq!((ends, waits), (Some(TO_LOOK_AND_TELL), Some(TO_TELL)));
        assert!(TO_LOOK_AND_TELL * 2 < AFTER_SIGNAL);
        assert_eq!(to_tell(&Act::prove_free(Vec::new())), None);
    }

    #[test]
    fn what_a_worker_leaves_stuck_when_it_ends_counts_as_any_other_stuck_call() {
        let why = io::Error::from(io::ErrorKind::UnexpectedEof);
        let group = Group {
            number: 7,
            started: Some(1),
        };
        let ended = |stuck| without_worker(&why, stuck, Duration::from_secs(2));
        assert!(matches!(ended(Some(group)), ActError::Overdue { stuck: Some(stuck), .. } if stuck == group));
        assert!(matches!(ended(None), ActError::Failed(_)));
    }
}
