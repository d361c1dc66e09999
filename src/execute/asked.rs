//! A worker that was asked something: what it answers, or that it is waited for no longer.
//!
//! Not here: who asks, and how long ([`crate::execute::linux`]).

use std::io;
use std::time::{Duration, Instant};

use crate::base::process::Group;
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

/// A worker that has a request, and what came of it.
pub(crate) struct Asked {
    pub(crate) worker: Option<Worker>,
    /// It waits for others and is in no call of the kernel's: it can be broken off at any moment.
    pub(crate) only_waits: bool,
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
            Ok(Some(reply)) => self.end(Ok(reply)),
            Err(e) => {
                let stuck = self.worker.take().and_then(Worker::abandon);
                let stuck = stuck.map_or(String::new(), |group| format!(", process group {group} is stuck"));
                self.end(Err(ActError::Failed(format!("the worker ended: {e}{stuck}"))));
            }
        }
    }

    /// The deadline has passed.
    pub(crate) fn give_up(&mut self) {
        let within = self.within;
        let stuck = self.worker.take().and_then(Worker::abandon);
        self.end(Err(ActError::Overdue { within, stuck }));
    }

    /// We have to go, and nothing is left half done by that.
    pub(crate) fn break_off(&mut self) {
        let _ = self.worker.take().and_then(Worker::abandon);
        self.end(Err(ActError::Failed("a signal asked us to end meanwhile".to_owned())));
    }

    /// We have to go. What is under way is better finished than broken off: a modprobe that is killed in the middle
    /// leaves more to put right than one that is not waited for.
    pub(crate) fn leave(&mut self) {
        let group = self.worker.take().map_or_else(Group::default, |worker| worker.group());
        self.end(Err(ActError::Interrupted { group }));
    }
}
