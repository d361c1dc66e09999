//! The model behind the interface that a run has to the host: acts with deadlines, several at once, and scripted failures
//! at the Nth.

use std::panic::resume_unwind;
use std::time::Duration;

use gpu_handoff::base::pci::PciAddr;
use gpu_handoff::base::process::{Group, Process as Told};
use gpu_handoff::execute::kernel::{AFTER_SIGNAL, ActError, Acted, Kernel};
use gpu_handoff::host::functions::{Details, VFIO_PCI};
use gpu_handoff::host::modules::{Loadable, Problem};
use gpu_handoff::host::snapshot::Snapshot;
use gpu_handoff::host::units::{Facts, Unit};
use gpu_handoff::model::act::{Act, Expect};
use gpu_handoff::model::record::Run;

use super::calls::{Answer, Errno, Lock, Move, Twist};
use super::state::{Generation, Model};

/// How an act goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The kernel says no, and nothing has happened.
    Fails,
    /// It fails where a part of it is done ([`Model::do_half`]).
    FailsHalfway,
    /// The call returns an error after it has had its effect.
    FailsAfterwards,
    /// The call does not answer as it should.
    Twisted(Twist),
    /// The run is killed before the act, while the call is in the kernel, after it.
    KilledBefore,
    KilledIn,
    KilledAfter,
    /// The run is asked to end as the act begins.
    Signal,
    /// The card is pulled out just before.
    Vanishes,
    /// The card falls off the bus just before.
    Dies,
}

/// Which acts go wrong, by their number counted from 0.
#[derive(Clone, Debug, Default)]
pub struct Faults(pub Vec<(usize, Fault)>);

/// The process of the run.
pub const US: Told = Told { pid: 4711, started: 1 };

/// What a run that is killed unwinds with: state and record stay as they are.
#[derive(Debug)]
pub struct Killed;

/// How long the kernel works on an act of each kind when nothing is wrong: of the order of what was measured.
fn takes(act: &Act) -> Duration {
    Duration::from_millis(match act {
        Act::SetOverride { .. }
        | Act::SetAttribute { .. }
        | Act::SetPlatform { .. }
        | Act::SetConsole { .. }
        | Act::ShutGate { .. }
        | Act::OpenGate { .. } => 1,
        Act::ProveFree { .. } => 5,
        Act::Unbind { .. } | Act::Probe { .. } => 10,
        Act::LoadModule { .. } | Act::UnloadModule { .. } => 40,
        _ => 100,
    })
}

/// How long a worker is waited for after it was killed (gpu_handoff::execute::worker).
const AFTER_KILL: Duration = Duration::from_millis(1000);

/// How long a call takes whose run is killed meanwhile: a worker's one act outlives the run by that.
const OUTLIVES: Duration = Duration::from_millis(500);

/// An act of a round.
enum Started {
    Ended(Result<(), ActError>),
    /// A call, and until when it is waited for.
    Call(u32, Duration),
}

impl Kernel for Model {
    fn now(&self) -> Duration {
        self.time
    }

    fn prepare(&mut self, acts: usize) {
        while self.workers.len() < acts {
            self.workers.push(self.next_worker);
            self.next_worker += 1;
        }
    }

    fn workers(&self) -> Vec<Group> {
        self.workers.iter().map(|number| told(*number)).collect()
    }

    fn run(&self) -> Option<Run> {
        Some(Run {
            process: US,
            since_ms: u64::try_from(self.time.as_millis()).ok()?,
        })
    }

    fn interrupted(&mut self) -> Option<Duration> {
        self.signal
    }

    fn look(&mut self, stuck: &[PciAddr], _: Duration) -> Result<Snapshot, ActError> {
        self.spend(Duration::from_millis(5));
        // What others may be in is found before anything is read.
        let mut stuck = stuck.to_vec();
        stuck.extend(self.calls_of_others().into_iter().flat_map(|c| c.at));
        let stuck = &stuck[..];
        let wedged = self.wedged();
        if let Some(addr) = wedged.iter().find(|a| !stuck.contains(a) && self.is_known_to_hang(**a)) {
            self.laws.broken.push(format!("wedged: attributes of {addr} were read"));
        }
        Ok(self.snapshot(stuck))
    }

    fn details(&mut self, cards: &[Vec<PciAddr>], within: Duration) -> Vec<Result<Vec<Details>, ActError>> {
        self.spend(Duration::from_millis(1));
        let end = self.time + within;
        self.prepare(cards.len());
        let groups = self.workers.clone();
        // All are asked before the first is waited for.
        let mut asked = Vec::new();
        for (addrs, group) in cards.iter().zip(groups) {
            self.judge_details(addrs);
            let locked = addrs.iter().find(|a| self.is_locked(**a));
            let blocking = locked.filter(|_| self.generation == Generation::K6_1);
            asked.push(blocking.map(|addr| {
                let lock = Lock::Device(*addr);
                self.begin(group, vec![Move::Lock(lock), Move::Unlock(lock)])
            }));
        }
        let mut answers = Vec::new();
        for (addrs, call) in cards.iter().zip(asked) {
            let waited = call.map_or(Ok(Ok(())), |id| self.answer_of(id, end, within));
            answers.push(waited.map(|_| self.details_of(addrs)));
        }
        answers
    }

    fn loadable(&mut self, names: &[String], _: Duration) -> Result<Vec<Loadable>, ActError> {
        self.spend(Duration::from_millis(10));
        Ok(self.what_modprobe_says(names))
    }

    fn units(&mut self, units: &[Unit], _: Duration) -> Result<Vec<Facts>, ActError> {
        self.spend(Duration::from_millis(10));
        Ok(self.what_systemd_says(units))
    }

    fn act(&mut self, act: &Act, within: Duration) -> Result<(), ActError> {
        let mut results = self.act_all(&[(act.clone(), within)]);
        match results.pop() {
            Some(acted) => acted.result,
            None => Ok(()),
        }
    }

    fn act_all(&mut self, acts: &[(Act, Duration)]) -> Vec<Acted> {
        self.prepare(acts.len());
        let first = self.acts.len();
        let faults: Vec<Option<Fault>> = (first..first + acts.len()).map(|n| self.fault(n)).collect();
        if faults.contains(&Some(Fault::KilledBefore)) {
            // The next run's first act has the same number.
            self.faults.0.retain(|(_, fault)| *fault != Fault::KilledBefore);
            resume_unwind(Box::new(Killed));
        }
        let groups: Vec<u32> = self.workers.iter().copied().take(acts.len()).collect();
        let start = self.time;
        let mut started = Vec::new();
        for (((act, within), fault), group) in acts.iter().zip(&faults).zip(groups) {
            let n = self.acts.len();
            self.acts.push(act.clone());
            self.tick += 1;
            self.happen_before(n);
            self.judge(act);
            let began = self.time;
            let begun = self.start(act, start + *within, *fault, group);
            let moment = match act {
                Act::ProveFree { .. } => Some(self.time),
                Act::Unbind { .. } | Act::Remove { .. } => Some(began),
                _ => None,
            };
            started.push((begun, moment));
        }
        if faults.contains(&Some(Fault::KilledIn)) {
            self.abandon_all(&started);
        }
        let mut results = Vec::new();
        for (((act, within), fault), (started, moment)) in acts.iter().zip(&faults).zip(started) {
            let mut result = match started {
                Started::Ended(result) => result,
                Started::Call(id, end) => match self.answer_of(id, end, *within) {
                    Ok(Ok(())) => self.reached(&act.expect()),
                    Ok(Err(errno)) => Err(failed(act, errno)),
                    Err(error) => Err(error),
                },
            };
            if *fault == Some(Fault::FailsAfterwards) && result.is_ok() {
                result = Err(ActError::Failed("scripted, afterwards".to_owned()));
            }
            results.push(Acted {
                moment: moment.filter(|_| result.is_ok()),
                result,
                took: self.time.saturating_sub(start),
                ended: std::mem::take(&mut self.ended),
            });
        }
        if faults.contains(&Some(Fault::KilledAfter)) {
            resume_unwind(Box::new(Killed));
        }
        results
    }

    fn gives_back(&mut self, does: bool) {
        self.gives_back = does;
    }

    fn let_gate_go(&mut self) {
        self.gate = None;
    }

    fn gate_holds(&mut self) -> bool {
        self.gate.is_some()
    }

    fn await_exit(&mut self, pids: &[i32], within: Duration) -> bool {
        let end = self.time + within;
        let gone = |m: &Model| pids.iter().any(|pid| m.processes.iter().all(|p| p.pid != *pid));
        self.wait_until(end, |m| m.signal.is_some() || gone(m));
        gone(self)
    }
}

impl Model {
    /// Whether a signal is the end of what only waits.
    pub(super) fn is_broken_off(&self) -> bool {
        self.signal.is_some() && !self.gives_back
    }

    fn fault(&self, n: usize) -> Option<Fault> {
        self.faults.0.iter().find(|(at, _)| *at == n).map(|(_, f)| *f)
    }

    /// Begins an act: what needs no call into a driver is done at once.
    fn start(&mut self, act: &Act, end: Duration, fault: Option<Fault>, group: u32) -> Started {
        if let Act::OpenGate { .. } = act {
            self.gate = None; // who does not answer is ended, which opens it
        }
        match fault {
            Some(how @ (Fault::Fails | Fault::FailsHalfway)) => {
                self.spend(takes(act));
                if how == Fault::FailsHalfway {
                    self.do_half(act);
                }
                return Started::Ended(Err(ActError::Failed("scripted".to_owned())));
            }
            Some(Fault::Vanishes | Fault::Dies) => {
                let asked_for = self.laws.may_touch.as_ref().and_then(|s| s.last().copied());
                let is_card = |a: &PciAddr| self.device(*a).is_some_and(|d| !d.bridge);
                match act.function().filter(is_card).or(asked_for) {
                    Some(addr) if fault == Some(Fault::Dies) => self.die(addr),
                    Some(addr) => self.vanish(addr),
                    None => {}
                }
            }
            Some(Fault::Signal) => self.signal = self.signal.or(Some(self.time)),
            _ => {}
        }
        if act.only_waits() && self.is_broken_off() {
            // Who was asked to end goes on with that, whoever has asked.
            if !matches!(act, Act::ProveFree { .. }) {
                let _ = self.do_at_once(act, end);
            }
            return Started::Ended(Err(broken_off()));
        }
        let twist = match fault {
            Some(Fault::Twisted(twist)) => Some(twist),
            Some(Fault::KilledIn) => Some(Twist::Takes(OUTLIVES)),
            _ => None,
        };
        // Every act may be done twice (gpu_handoff::execute::perform).
        let expect = act.expect();
        let is_default = matches!(&expect, Expect::Attribute(_, _, value) if value == "default");
        let is_anew = matches!(act, Act::RestartUnit { .. });
        if twist.is_none() && expect != Expect::Nothing && !is_default && !is_anew && self.reached(&expect).is_ok() {
            self.spend(Duration::from_millis(1));
            return Started::Ended(Ok(()));
        }
        let killed = fault == Some(Fault::KilledIn);
        let begun = match self.begin_act(act, group, end) {
            Some(begun) => begun,
            None if killed => {
                self.do_half(act); // the rest dies with us
                return Started::Ended(Ok(()));
            }
            None => {
                let done = self.without_a_call(act, end, twist, group);
                let done = done.and_then(|()| self.do_at_once(act, end));
                return Started::Ended(done.and_then(|()| self.reached(&expect)));
            }
        };
        let id = match begun {
            Ok(Some(id)) => id,
            Ok(None) => return Started::Ended(Ok(())),
            Err(error) => {
                self.spend(takes(act));
                return Started::Ended(Err(error));
            }
        };
        if let Some(call) = self.call_mut(id) {
            call.twist = twist;
            // No driver or module in it that could have its say: it waits at once.
            let no_driver = matches!(act, Act::SetOverride { .. } | Act::Reset { .. } | Act::ResetBus { .. });
            if no_driver || matches!(act, Act::Rescan { .. }) {
                match twist {
                    Some(Twist::Hangs) => call.todo.push(Move::Hang),
                    Some(Twist::Takes(time)) => call.todo.push(Move::Sleep(time)),
                    _ => {}
                }
                call.twist = twist.filter(|t| *t == Twist::HangsAtTheEnd);
            }
            call.todo.push(Move::Sleep(takes(act)));
        }
        Started::Call(id, end)
    }

    /// The call an act is: None where it is none; Ok(None) where there is nothing to do.
    fn begin_act(&mut self, act: &Act, group: u32, end: Duration) -> Option<Result<Option<u32>, ActError>> {
        if let Act::Unbind { addr, .. } | Act::Probe { addr, .. } | Act::Reset { addr } | Act::Remove { addr } = act
            && self.device(*addr).is_some_and(|d| d.dead)
        {
            return Some(Err(ActError::Failed("it does not answer any more".to_owned())));
        }
        if let Act::Reset { addr } = act
            && let Some(driver) = self.driver_of(*addr)
        {
            return Some(Err(ActError::Failed(format!("it is on {driver} by now"))));
        }
        if let Act::ResetBus { bridge, .. } = act
            && let Some(bound) = self.below(*bridge).find(|d| d.bound().is_some())
        {
            let why = format!("{} is on {:?} by now", bound.addr, bound.driver);
            return Some(Err(ActError::Failed(why)));
        }
        if let Act::Probe { addr, driver } = act
            && driver.as_deref() == Some(VFIO_PCI)
            && let Some(gpu) = self.device(PciAddr { function: 0, ..*addr })
            && *addr == gpu.addr.sound()
            && gpu.driver_override.as_deref() == Some(VFIO_PCI)
            && gpu.link
            && gpu.driver == Some("nvidia")
        {
            return Some(Err(ActError::Failed(format!("{} is on nvidia by now", gpu.addr))));
        }
        let begun = match act {
            Act::LoadModule { name } => self.modprobe(group, name),
            Act::UnloadModule { name } => {
                self.await_last_user(name, end);
                match self.delete_module(group, name) {
                    Err(Errno::NoEnt) => return Some(Ok(None)), // gone already is what was wanted
                    begun => begun,
                }
            }
            Act::SetOverride { addr, driver } => {
                let text = format!("{}\n", driver.as_deref().unwrap_or_default());
                self.write_override(group, *addr, &text)
            }
            Act::Unbind { addr, driver } => self.unbind(group, driver, *addr),
            Act::Probe { addr, .. } => self.drivers_probe(group, *addr),
            Act::Reset { addr } => self.reset(group, *addr),
            Act::ResetBus { bridge, .. } => self.reset_below(group, *bridge),
            Act::Remove { addr } => self.remove(group, *addr),
            Act::Rescan { bridge, .. } => self.rescan(group, *bridge),
            _ => return None,
        };
        Some(begun.map(Some).map_err(|errno| failed(act, errno)))
    }

    /// Acts that are no call into the drivers: the twist is all there is to wait for.
    fn without_a_call(&mut self, act: &Act, end: Duration, twist: Option<Twist>, group: u32) -> Result<(), ActError> {
        let within = end.saturating_sub(self.time);
        let signal_end = self.signal.map(|at| at + AFTER_SIGNAL);
        let left = signal_end.map_or(within, |at| within.min(at.saturating_sub(self.time)));
        match twist {
            Some(Twist::Takes(time)) if time < left => self.spend(time),
            // It is left to its worker, in no call on a device.
            Some(_) if left < within && matches!(act, Act::StopUnit { .. } | Act::StartUnit { .. }) => {
                self.spend(left);
                self.workers.retain(|worker| *worker != group);
                return Err(ActError::Interrupted { group: told(group) });
            }
            Some(_) => {
                self.spend(within);
                // systemctl waits in user space and can be ended; the job goes on.
                // The gatekeeper is in no call on a device.
                let stays = !matches!(
                    act,
                    Act::StopUnit { .. }
                        | Act::StartUnit { .. }
                        | Act::RestartUnit { .. }
                        | Act::RenewNodes { .. }
                        | Act::EndProcesses { .. }
                        | Act::AwaitDesktops { .. }
                        | Act::ShutGate { .. }
                        | Act::OpenGate { .. }
                );
                if stays {
                    let id = self.begin(group, vec![Move::Hang]);
                    self.leave_behind(id);
                }
                let stuck = stays.then_some(group);
                return Err(ActError::Overdue {
                    within,
                    stuck: stuck.map(told),
                });
            }
            None => {}
        }
        self.spend(takes(act));
        Ok(())
    }

    /// A call that nobody waits for any more, and its worker with it.
    fn leave_behind(&mut self, id: u32) -> u32 {
        let Some(call) = self.call_mut(id) else { return 0 };
        call.left_behind = true;
        let group = call.group;
        self.workers.retain(|w| *w != group);
        group
    }

    /// The run is killed while a round is in the kernel.
    fn abandon_all(&mut self, started: &[(Started, Option<Duration>)]) -> ! {
        self.spend(Duration::from_millis(50));
        for (one, _) in started {
            if let Started::Call(id, _) = one {
                self.leave_behind(*id);
            }
        }
        resume_unwind(Box::new(Killed));
    }

    /// A call's answer, or that it did not come in time.
    fn answer_of(&mut self, id: u32, end: Duration, within: Duration) -> Result<Answer, ActError> {
        // A signal may come while it is waited for.
        loop {
            let signal = self.signal.map(|at| at + AFTER_SIGNAL);
            let until = signal.map_or(end, |s| s.min(end));
            match self.wait_for(id, until) {
                Some(answer) => return Ok(answer),
                None if self.signal.map(|at| at + AFTER_SIGNAL) != signal => {}
                None if signal.is_some_and(|s| s <= end) => {
                    let group = self.leave_behind(id);
                    return Err(ActError::Interrupted { group: told(group) });
                }
                None => break,
            }
        }
        let group = self.leave_behind(id);
        let stuck = match self.wait_for(id, end + AFTER_KILL) {
            Some(_) => None,
            None => Some(told(group)),
        };
        Err(ActError::Overdue { within, stuck })
    }
}

/// A process group as it is told of. Of ours no number is given out twice.
pub fn told(number: u32) -> Group {
    Group {
        number,
        started: Some(1),
    }
}

/// What only waits, and a signal came.
pub(super) fn broken_off() -> ActError {
    ActError::Failed("a signal asked us to end meanwhile".to_owned())
}

fn failed(act: &Act, errno: Errno) -> ActError {
    match (act, errno) {
        (Act::UnloadModule { name }, Errno::Again | Errno::Busy) => {
            ActError::Failed(format!("the kernel says that {name} is in use"))
        }
        (Act::LoadModule { .. }, errno) if !matches!(errno, Errno::NoDev | Errno::Io) => {
            ActError::CannotLoad(Problem::Refused(errno.to_string()))
        }
        _ => ActError::Failed(format!("{act}: {errno}")),
    }
}
