//! The running kernel: every call that it can hold up is made by a worker ([`crate::execute::worker`]), several for
//! different cards at once, and is waited for no longer than its deadline, and no longer than a signal allows.
//!
//! Not here: what to do and in which order ([`crate::plan`]), and what a failure means ([`crate::execute::executor`]).

use std::cell::OnceCell;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use tracing::warn;

use crate::base::pci::PciAddr;
use crate::base::process::{Group, Process, process, since_boot};
use crate::base::root::Root;
use crate::base::wait::{pidfds, poll_readable};
use crate::execute::asked::{Asked, LeftBehind, asked_to_end, changes, may_have_effect, only_waits, to_tell};
use crate::execute::fault_points::{FaultPoints, Point};
use crate::execute::kernel::{AFTER_SIGNAL, ActError, Acted, Kernel};
use crate::execute::worker::{Answer, Question, Worker};
use crate::execute::{looks, perform};
use crate::host::functions::Details;
use crate::host::modules::Loadable;
use crate::host::snapshot::Snapshot;
use crate::host::units::{Facts, Unit};
use crate::model::act::Act;
use crate::model::record::Run;
use crate::model::refusal::{Reason, describe};
use crate::plan::users;
use crate::state::history::Past;

/// How long looking at what is stuck may take.
const AUTOPSY_WITHIN: Duration = Duration::from_secs(3);

/// How long a card may take that holds up the question to the next one. One that answers takes less than a millisecond.
const AT_ONCE: Duration = Duration::from_millis(50);

/// How long workers that are broken off, and killed, have to be gone before what is to be undone begins.
const BROKEN_OFF_WITHIN: Duration = Duration::from_millis(300);

/// How long whoever has the gate shut has for his end, which opens it.
const GATE_OPENS_WITHIN: Duration = Duration::from_millis(100);

/// How long the disk is waited for that has the history, and the names of devices.
pub(super) const REMEMBER_WITHIN: Duration = Duration::from_secs(3);

/// The running kernel, reached through workers, and what is kept from one call to the next.
#[derive(Debug)]
pub struct Linux {
    started: Instant,
    /// This process.
    us: OnceCell<Option<Process>>,
    /// Those that wait for a request.
    pub(super) idle: Vec<Worker>,
    /// The one that has the gate shut: it does nothing else, so that nothing can hold up its end, which opens the gate.
    gatekeeper: Option<Worker>,
    /// TERM, INT and HUP, which are blocked and come here instead.
    signals: Option<SignalFd>,
    /// When the first of them came.
    interrupted: Option<Instant>,
    /// Acts give back what was taken.
    gives_back: bool,
    /// The acts so far.
    past: Vec<Past>,
    /// Something was done that changes the host.
    has_acted: bool,
    /// Where a test wants us to be killed.
    fault_points: FaultPoints,
    /// Workers keep what they look at.
    records: bool,
    /// What workers were asked that have not given what they kept.
    pub(super) lost: Vec<String>,
    /// Those that were broken off.
    left_behind: LeftBehind,
    /// A host that is a tree of files: it answers at once, and nothing is done to it.
    pub(super) tree: Option<Root>,
}

impl Linux {
    /// Starts no worker yet; the first call does. From now on the signals that ask a process to end do not end this one:
    /// they are noticed wherever it waits, and it ends in order.
    pub fn new() -> Self {
        let mut signals = SigSet::empty();
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            signals.add(signal);
        }
        // A run that is stopped keeps the lock, and a GPU that nobody may open: Ctrl-Z waits, and a terminal that is
        // somebody else's is written to (tty_ioctl(4), TOSTOP).
        let mut stops = SigSet::empty();
        for signal in [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU] {
            stops.add(signal);
        }
        let _ = stops.thread_block(); // it fails for no set of signals
        // Threads and workers that are started later inherit the mask; other programs do not (base::program).
        let blocked = signals.thread_block();
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        Linux {
            signals: blocked.and_then(|()| SignalFd::with_flags(&signals, flags)).ok(),
            ..Linux::for_looking()
        }
    }

    /// For who only looks, for as long as somebody reads it: signals end it as they end any program, since nothing is left
    /// half done.
    pub fn for_looking() -> Self {
        Linux {
            started: Instant::now(),
            us: OnceCell::new(),
            idle: Vec::new(),
            gatekeeper: None,
            signals: None,
            interrupted: None,
            gives_back: false,
            past: Vec::new(),
            has_acted: false,
            fault_points: FaultPoints::from_env(),
            records: false,
            lost: Vec::new(),
            left_behind: LeftBehind::default(),
            tree: None,
        }
    }

    /// For who looks and keeps what was looked at ([`Linux::recorded`]).
    pub fn recording() -> Self {
        Linux {
            records: true,
            ..Linux::for_looking()
        }
    }

    /// A host that is a tree of files. It has no processes: what they do is in the tree.
    pub fn on(tree: Root) -> Self {
        Linux {
            tree: Some(tree),
            ..Linux::for_looking()
        }
    }

    /// The acts since this was asked the last time.
    pub fn take_past(&mut self) -> Vec<Past> {
        std::mem::take(&mut self.past)
    }

    /// Whether something was done that changes the host.
    pub fn has_acted(&self) -> bool {
        self.has_acted
    }

    /// Waits until one of the descriptors is readable or hung up: which ones; none if the time is over or a signal came.
    pub fn wait(&mut self, fds: &[BorrowedFd<'_>], within: Duration) -> Vec<bool> {
        let mut all = fds.to_vec();
        let signals = self.signals.as_ref().filter(|_| self.interrupted.is_none());
        all.extend(signals.map(AsFd::as_fd));
        let ready = poll_readable(&all, within);
        if ready.get(fds.len()) == Some(&true) {
            self.note_signal();
        }
        ready.into_iter().take(fds.len()).collect()
    }

    fn note_signal(&mut self) {
        let read = self.signals.as_ref().and_then(|s| s.read_signal().ok().flatten());
        if let Some(info) = read
            && self.interrupted.is_none()
        {
            let number = i32::try_from(info.ssi_signo).unwrap_or_default();
            let name = Signal::try_from(number).map_or("a signal", Signal::as_str);
            warn!("{name}: nothing new is begun");
            self.interrupted = Some(Instant::now());
        }
    }

    /// Asks as many workers as there are requests, at once.
    pub(super) fn ask_all(&mut self, requests: Vec<(Question, Duration)>) -> Vec<(Result<Answer, ActError>, Duration)> {
        let start = Instant::now();
        let acts = requests.iter().any(|(request, _)| matches!(request, Question::Act(_)));
        let mut asked: Vec<Asked> = Vec::new();
        for (request, within) in requests {
            asked.push(self.begin(request, start, within));
        }
        if acts {
            self.fault_points.reached(Point::In);
        }
        let answers = self.answers(asked).into_iter();
        answers.map(|(result, at)| (result, at.duration_since(start))).collect()
    }

    /// Gives a request to a worker that is idle, or to a new one.
    fn begin(&mut self, request: Question, start: Instant, within: Duration) -> Asked {
        if let Some(tree) = &self.tree {
            return Asked::answered(looks::answer(tree, request), start);
        }
        let worker = match self.idle.pop() {
            Some(worker) => Ok(worker),
            None => Worker::start(self.records, perform::serve),
        };
        let sent = worker.and_then(|mut worker| worker.send(&request).map(|()| worker));
        let mut asked = Asked::new(sent, start, within, self.may_be_broken_off(&request));
        asked.what = request.what();
        if let Question::Act(act) = &request {
            (asked.is_act, asked.tells) = (true, to_tell(act));
        }
        asked
    }

    /// Whether a signal is the end of it at once.
    fn may_be_broken_off(&self, request: &Question) -> bool {
        only_waits(request) && !(self.gives_back && matches!(request, Question::Act(_)))
    }

    /// The answers of all of them, and when each had come.
    fn answers(&mut self, mut asked: Vec<Asked>) -> Vec<(Result<Answer, ActError>, Instant)> {
        while asked.iter().any(|a| a.result.is_none()) {
            self.gather(&mut asked, None);
        }
        let answer = |asked: Asked| {
            if let (true, None, Some(Err(why))) = (self.records, &asked.worker, &asked.result) {
                self.lost.push(format!("{}: {why}", asked.what));
            }
            self.idle.extend(asked.worker);
            let none = || Err(ActError::Failed("no answer".to_owned()));
            (
                asked.result.unwrap_or_else(none),
                asked.ended.unwrap_or_else(Instant::now),
            )
        };
        asked.into_iter().map(answer).collect()
    }

    /// Waits for the next thing to happen to those that were asked, no longer than that moment.
    fn gather(&mut self, asked: &mut [Asked], at_most: Option<Instant>) {
        let now = Instant::now();
        let signal_end = self.interrupted.map(|at| at + AFTER_SIGNAL);
        let mut broken_off: Vec<&mut Asked> = Vec::new();
        for one in asked.iter_mut().filter(|a| a.result.is_none()) {
            if one.only_waits && signal_end.is_some() {
                if !one.is_telling(now) {
                    broken_off.push(one);
                }
            } else if signal_end.is_some_and(|end| now >= one.left_at(end)) {
                one.leave();
            } else if now >= one.until && signal_end.is_some() && !one.is_act {
                broken_off.push(one); // to wait for the end of one that hangs takes more time than there is
            } else if now >= one.until {
                one.give_up();
            }
        }
        // All end at once, and not one after the other: what is left of the time is the undo's.
        broken_off.iter().for_each(|one| one.kill());
        let groups = broken_off.iter_mut();
        let groups = groups.filter_map(|one| one.break_off(now + BROKEN_OFF_WITHIN));
        self.left_behind.0.extend(groups);
        let open = || asked.iter().filter(|a| a.result.is_none());
        // Where all have their answer by now, nothing is waited for.
        let waited_for = |a: &Asked| signal_end.map_or(a.until, |end| a.until.min(a.left_at(end)));
        let Some(last) = open().map(waited_for).min() else {
            return;
        };
        let until = at_most.map_or(last, |most| most.min(last));
        let fds: Vec<BorrowedFd<'_>> = open().filter_map(|a| Some(a.worker.as_ref()?.replies())).collect();
        let ready = self.wait(&fds, until.saturating_duration_since(now));
        let waiting = asked.iter_mut().filter(|a| a.result.is_none());
        for (one, ready) in waiting.zip(ready) {
            if ready {
                one.receive();
            }
        }
    }

    /// The gate is shut and opened by a worker that is never among the idle ones. One that does not answer is ended and, if
    /// that takes time, waited for no longer: it is stuck in no call on a device.
    fn ask_gatekeeper(&mut self, act: &Act, within: Duration) -> (Result<Answer, ActError>, Duration) {
        self.gate_holds(); // one that has ended takes no request
        let others = std::mem::take(&mut self.idle);
        self.idle.extend(self.gatekeeper.take());
        let mut answers = self.ask_all(vec![(Question::Act(act.clone()), within)]);
        let keeper = std::mem::replace(&mut self.idle, others).pop();
        let (answer, took) = answers.pop().unwrap_or((Err(another_question()), Duration::ZERO));
        let is_shut = matches!(
            (act, &answer),
            (Act::ShutGate { .. }, Ok(Answer::Acted { result: Ok(()), .. }))
        );
        // Dropped, it ends, and so does what it may have shut.
        self.gatekeeper = keeper.filter(|_| is_shut);
        let answer = answer.map_err(|e| match e {
            ActError::Overdue { within, .. } => ActError::Overdue { within, stuck: None },
            e => e,
        });
        (answer, took)
    }

    pub(super) fn ask(&mut self, request: Question, within: Duration) -> Result<Answer, ActError> {
        let mut answers = self.ask_all(vec![(request, within)]);
        answers
            .pop()
            .map_or_else(|| Err(another_question()), |(answer, _)| answer)
    }
}

impl Default for Linux {
    fn default() -> Self {
        Linux::new()
    }
}

impl Kernel for Linux {
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn prepare(&mut self, acts: usize) {
        while self.idle.len() < acts {
            match Worker::start(self.records, perform::serve) {
                Ok(worker) => self.idle.push(worker),
                Err(_) => return, // said where the worker is needed
            }
        }
    }

    fn workers(&self) -> Vec<Group> {
        self.idle.iter().map(|w| w.group()).collect()
    }

    fn run(&self) -> Option<Run> {
        Some(Run {
            process: (*self.us.get_or_init(|| process(&Root::real(), std::process::id())))?,
            since_ms: u64::try_from(since_boot().as_millis()).ok()?,
        })
    }

    fn interrupted(&mut self) -> Option<Duration> {
        self.wait(&[], Duration::ZERO);
        self.interrupted.map(|at| at.duration_since(self.started))
    }

    fn look(&mut self, stuck: &[PciAddr], within: Duration) -> Result<Snapshot, ActError> {
        let request = Question::Look { stuck: stuck.to_vec() };
        match self.ask(request, within)? {
            Answer::Snapshot(snapshot) => Ok(*snapshot),
            Answer::Acted { result: Err(error), .. } => Err(error),
            _ => Err(another_question()),
        }
    }

    fn details(&mut self, cards: &[Vec<PciAddr>], within: Duration) -> Vec<Result<Vec<Details>, ActError>> {
        let mut asked: Vec<Asked> = Vec::new();
        for addrs in cards {
            let request = Question::Details { addrs: addrs.clone() };
            // One worker asks card after card, for as long as they answer at once; one that does not has it for itself, and
            // all others are asked beside it.
            let is_slow = asked.iter().any(|a| a.result.is_none());
            let start = Instant::now();
            asked.push(self.begin(request, start, within));
            while !is_slow && asked.last().is_some_and(|a| a.result.is_none()) && start.elapsed() < AT_ONCE {
                self.gather(&mut asked, Some(start + AT_ONCE));
            }
            let answered = asked.last_mut().filter(|a| a.result.is_some());
            let worker = answered.and_then(|a| a.worker.take());
            self.idle.extend(worker);
        }
        let answers = self.answers(asked).into_iter();
        let details = |answer: Result<Answer, ActError>| match answer? {
            Answer::Details(details) => Ok(details),
            _ => Err(another_question()),
        };
        answers.map(|(answer, _)| details(answer)).collect()
    }

    fn loadable(&mut self, names: &[String], within: Duration) -> Result<Vec<Loadable>, ActError> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let request = Question::Loadable { names: names.to_vec() };
        match self.ask(request, within)? {
            Answer::Loadable(answers) => Ok(answers),
            _ => Err(another_question()),
        }
    }

    fn units(&mut self, units: &[Unit], within: Duration) -> Result<Vec<Facts>, ActError> {
        match self.ask(Question::Units(units.to_vec()), within)? {
            Answer::Units(facts) => Ok(facts),
            _ => Err(another_question()),
        }
    }

    fn units_of(&mut self, places: &[&[Unit]], within: Duration) -> Vec<Result<Vec<Facts>, ActError>> {
        let question = |units: &&[Unit]| (Question::Units(units.to_vec()), within);
        let answers = self.ask_all(places.iter().map(question).collect());
        let facts = |answer: Result<Answer, ActError>| match answer? {
            Answer::Units(facts) => Ok(facts),
            _ => Err(another_question()),
        };
        answers.into_iter().map(|(answer, _)| facts(answer)).collect()
    }

    fn act(&mut self, act: &Act, within: Duration) -> Result<(), ActError> {
        let mut results = self.act_all(&[(act.clone(), within)]);
        results
            .pop()
            .map_or_else(|| Err(another_question()), |acted| acted.result)
    }

    fn gives_back(&mut self, does: bool) {
        self.gives_back = does;
    }

    fn act_all(&mut self, acts: &[(Act, Duration)]) -> Vec<Acted> {
        let requests = acts.iter().map(|(act, within)| (Question::Act(act.clone()), *within));
        self.fault_points.reached(Point::Before);
        let answers = match acts {
            [(act @ (Act::ShutGate { .. } | Act::OpenGate { .. }), within)] => vec![self.ask_gatekeeper(act, *within)],
            _ => self.ask_all(requests.collect()),
        };
        self.fault_points.reached(Point::After);
        let mut results = Vec::new();
        for ((act, _), (answer, took)) in acts.iter().zip(answers) {
            let (result, moment, ended) = match answer {
                Ok(Answer::Acted {
                    result,
                    notes,
                    moment,
                    ended,
                }) => {
                    for note in notes {
                        warn!("{}: {note}", act.subject());
                    }
                    (result, moment, ended)
                }
                Ok(_) => (Err(another_question()), None, Vec::new()),
                // Who was asked to end goes on with that, and nobody sees it.
                Err(error) => (Err(error), None, asked_to_end(act, self.interrupted.is_some())),
            };
            // What was refused, or has not begun, has changed nothing; what was broken off may have.
            let broken_off = act.only_waits() && self.interrupted.is_some();
            self.has_acted |= changes(act) && (broken_off || may_have_effect(&result));
            self.past.push(Past::of(act, took, result.as_ref().err()));
            results.push(Acted {
                result,
                took,
                moment,
                ended,
            });
        }
        results
    }

    fn let_gate_go(&mut self) {
        // Its end opens it; who comes next is not to meet it shut.
        if let Some(mut keeper) = self.gatekeeper.take() {
            keeper.hang_up();
            poll_readable(&[keeper.replies()], GATE_OPENS_WITHIN);
        }
    }

    fn gate_holds(&mut self) -> bool {
        // It says nothing unasked: what can be read is its end.
        let has_ended = |keeper: &Worker| poll_readable(&[keeper.replies()], Duration::ZERO) == [true];
        self.gatekeeper = self.gatekeeper.take().filter(|keeper| !has_ended(keeper));
        self.gatekeeper.is_some()
    }

    fn await_exit(&mut self, pids: &[i32], within: Duration) -> bool {
        // Nobody's process here is one of the tree's.
        let pids = if self.tree.is_none() { pids } else { &[] };
        let Some(fds) = pidfds(pids) else { return true };
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        self.wait(&fds, within).contains(&true)
    }

    fn autopsy(&mut self, group: Group, addrs: &[PciAddr]) -> (String, Vec<String>) {
        let root = Root::real();
        let alive = group.alive(&root);
        let stacks = alive
            .iter()
            .filter_map(|pid| root.text(format!("/proc/{pid}/stack")).ok());
        let stack: String = stacks.collect();
        let mut holders = Vec::new();
        if let Ok(snapshot) = self.look(addrs, AUTOPSY_WITHIN) {
            for reason in users::held(&snapshot, addrs) {
                match &reason {
                    Reason::Held { holder, .. } | Reason::Doubtful { holder, .. } => holders.push(describe(holder)),
                    _ => {}
                }
            }
        }
        (stack, holders)
    }
}

pub(super) fn another_question() -> ActError {
    ActError::Failed("the worker answered another question".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_worker_has_looked_at_that_gives_no_answer_is_missing_and_said() {
        let mut linux = Linux::recording();
        let asked = |question: &Question| {
            let none = Err(std::io::Error::other("no more processes"));
            let mut asked = Asked::new(none, Instant::now(), Duration::ZERO, false);
            asked.what = question.what();
            asked
        };
        let addrs = vec!["0000:01:00.0".parse().unwrap()];
        linux.answers(vec![asked(&Question::Past), asked(&Question::Details { addrs })]);
        let (entries, lost) = linux.recorded();
        assert!(entries.is_empty());
        let why = "cannot start a worker: no more processes";
        assert_eq!(
            lost,
            [
                format!("the history: {why}"),
                format!("the attributes of 0000:01:00.0: {why}")
            ]
        );
        assert_eq!(linux.recorded().1, [""; 0]);
    }

    /// The few seconds that there are then are for taking back what was done.
    #[test]
    fn what_only_waits_is_broken_off_by_a_signal_and_nothing_is_waited_for() {
        let mut linux = Linux::for_looking();
        let mut asked = Asked::new(Err(std::io::Error::other("")), Instant::now(), AFTER_SIGNAL * 9, true);
        (asked.result, asked.ended) = (None, None);
        linux.interrupted = Some(Instant::now());
        let answers = linux.answers(vec![asked]);
        assert!(matches!(&answers[..], [(Err(ActError::Failed(_)), _)]), "{answers:?}");
        let took = linux.interrupted.unwrap().elapsed();
        assert!(took < AFTER_SIGNAL / 2, "{took:?}");
    }

    /// The history, and what is stopped, are written down after an act that a signal has left no time for.
    #[test]
    fn what_is_no_act_has_a_moment_to_answer_where_the_time_after_a_signal_is_over() {
        for (is_act, waits) in [(false, true), (true, false)] {
            let mut linux = Linux::for_looking();
            let mut asked = Asked::new(Err(std::io::Error::other("")), Instant::now(), AFTER_SIGNAL, false);
            (asked.result, asked.ended, asked.is_act) = (None, None, is_act);
            linux.interrupted = Instant::now().checked_sub(AFTER_SIGNAL * 2);
            let begun = Instant::now();
            let answers = linux.answers(vec![asked]);
            let took = begun.elapsed();
            assert!(
                matches!(&answers[..], [(Err(ActError::Interrupted { .. }), _)]),
                "{answers:?}"
            );
            assert!(took < AFTER_SIGNAL / 2, "{is_act}: {took:?}");
            assert!(!waits || took >= Duration::from_millis(250), "{took:?}");
        }
    }

    /// What is stopped then is stopped to be as it was.
    #[test]
    fn what_gives_back_is_not_broken_off_and_has_what_time_there_is() {
        let stop = || Question::Act(Act::stop(&Unit::host("x.service"), Duration::ZERO));
        let look = || Question::Act(Act::prove_free(Vec::new()));
        let mut linux = Linux::for_looking();
        for (gives_back, question, is_broken_off) in [
            (false, stop(), true),
            (true, stop(), false),
            (false, look(), true),
            (true, look(), false),
            // Who asks has nothing to give back.
            (true, Question::Units(Vec::new()), true),
        ] {
            linux.gives_back(gives_back);
            let what = format!("{gives_back} {question:?}");
            assert_eq!(linux.may_be_broken_off(&question), is_broken_off, "{what}");
        }
    }
}
