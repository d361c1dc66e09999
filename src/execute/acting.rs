//! Acting: a round of a plan, each act of it written down before it happens, said after it, and tried in other ways where it
//! fails.
//!
//! Not here: what is written down ([`crate::execute::recording`]), and what becomes of a plan of which an act has failed
//! ([`crate::execute::executor`]).

use std::collections::BTreeSet;
use std::time::Duration;

use tracing::warn;

use crate::base::pci::PciAddr;
use crate::base::sets::IntoSet as _;
use crate::base::text::join;
use crate::execute::executor::Executor;
use crate::execute::kernel::{ActError, Acted};
use crate::execute::lines::{Count, Gap, say};
use crate::execute::schedule::one_proof;
use crate::host::functions::VFIO_PCI;
use crate::host::units::Unit;
use crate::model::act::Act;
use crate::model::error::chain;
use crate::model::named::Named;
use crate::model::plan::{Step, deadline};

impl Executor<'_> {
    /// One round: written down, done, read back, said. Returns what failed in spite of its rungs.
    pub(super) fn round<'s>(&mut self, steps: &[&'s Step], count: &mut Count) -> Vec<(&'s Step, ActError)> {
        if let [step] = steps
            && let Some(error) = self.needed_by_now(&step.act)
        {
            count.skip();
            return vec![(*step, error)];
        }
        let mut acts: Vec<(Act, Duration)> = steps.iter().map(|s| (s.act.clone(), s.deadline)).collect();
        let mut prefixes: Vec<String> = steps.iter().map(|_| count.next()).collect();
        // One look through all processes serves all cards.
        if let Some((together, within)) = one_proof(&acts) {
            acts = vec![(together, within)];
            prefixes.drain(..prefixes.len() - 1);
        }
        if self.is_free_already(&acts, &prefixes) {
            return Vec::new();
        }
        self.look_at_all_behind(&mut acts);
        let mut results = self.act_in_time(&acts, &prefixes);
        self.note_free(&acts, &results);
        if let [one] = results.as_slice() {
            results = vec![one.clone(); steps.len()];
        }
        let mut failed = Vec::new();
        for (step, result) in steps.iter().zip(results) {
            let Err(error) = result else { continue };
            let climbs = !matches!(
                error,
                ActError::Overdue { stuck: Some(_), .. } | ActError::Interrupted { .. } | ActError::NotBegun(_)
            );
            let ended = if climbs { self.climb(step, error) } else { Err(error) };
            failed.extend(ended.err().map(|error| (*step, error)));
        }
        failed
    }

    /// Why a unit is not stopped after all: systemd would stop another one along that nobody was asked about when this was planned, since
    /// it did not run then, and that nobody would start again. Containers go down before, and take their time. Without an answer that of
    /// the plan counts.
    fn needed_by_now(&mut self, act: &Act) -> Option<ActError> {
        let Act::StopUnit { name: unit, .. } = act else {
            return None;
        };
        if self.gives_back || !(unit.is_of_systemd() || matches!(unit, Unit::Inside { .. })) {
            return None;
        }
        let left = self.end.saturating_sub(self.kernel.now());
        let within = self.record.budgets.unit.min(left);
        let facts = self.kernel.units(std::slice::from_ref(unit), within).ok()?;
        let said = facts.into_iter().next()?.said.ok()?;
        let mut along = said.takes_along.iter().map(|name| unit.beside(name));
        let new = along.find(|other| !self.record.units.contains(other))?;
        Some(ActError::NotBegun(format!(
            "{new} needs {unit} by now, and would be stopped as well"
        )))
    }

    /// Whether this is a look at what was seen to be free since others are kept from opening it: it is still, and that is said.
    fn is_free_already(&mut self, acts: &[(Act, Duration)], prefixes: &[String]) -> bool {
        let [(act @ Act::ProveFree { addrs, .. }, _)] = acts else {
            return false;
        };
        if !addrs.iter().all(|addr| self.free.contains(addr)) || !self.kernel.gate_holds() {
            return false;
        }
        let acted = Acted {
            result: Ok(()),
            took: Duration::ZERO,
            moment: None,
            ended: Vec::new(),
        };
        say(act, &prefixes[0], &acted, None);
        true
    }

    /// One look is for all that is still to be looked at and that nobody can open any more, by whichever node. By those of the
    /// whole driver a GPU can be used as well.
    fn look_at_all_behind(&self, acts: &mut [(Act, Duration)]) {
        let [(Act::ProveFree { addrs, .. }, _)] = acts else {
            return;
        };
        if !addrs.iter().all(|addr| self.is_behind_all(*addr)) {
            return;
        }
        let behind = addrs.iter().filter_map(|addr| self.one_look.get(addr)).flatten();
        let more = behind.filter(|addr| self.gate.contains(addr) && !addrs.contains(addr));
        let more: BTreeSet<PciAddr> = more.copied().into_set();
        addrs.extend(more);
    }

    /// Whether nobody can come to use it: the gate is shut to it, and, where it is on NVIDIA's driver, to that as a whole.
    fn is_behind_all(&self, addr: PciAddr) -> bool {
        self.gate.contains(&addr) && (self.is_whole || self.gives_back)
    }

    /// What a look has seen to be free stays so for as long as nobody can open it.
    fn note_free(&mut self, acts: &[(Act, Duration)], results: &[Result<(), ActError>]) {
        if let ([(Act::ProveFree { addrs, .. }, _)], [Ok(())]) = (acts, results) {
            let kept: Vec<PciAddr> = addrs.iter().copied().filter(|addr| self.is_behind_all(*addr)).collect();
            self.free.extend(kept);
        }
    }

    /// Tries the rungs of a step that failed, until one leads to what it should have led to. Where it was a module that could
    /// not be loaded, no rung that resets or removes a device: that is no fault of it. What failed is the step, unless a rung goes on
    /// after a signal.
    fn climb(&mut self, step: &Step, error: ActError) -> Result<(), ActError> {
        let mut why = error.clone();
        for rung in &step.rungs {
            let is_rough = |act: &Act| matches!(act, Act::Reset { .. } | Act::ResetBus { .. } | Act::Remove { .. });
            if matches!(why, ActError::CannotLoad(_)) && rung.iter().any(is_rough) {
                continue;
            }
            match self.climb_one(rung) {
                Ok(()) => return Ok(()),
                Err(Some(error @ ActError::Interrupted { .. })) => return Err(error),
                Err(Some(error)) => why = error,
                Err(None) => {} // an earlier rung is stuck
            }
        }
        Err(error)
    }

    /// The acts of a rung, until one fails. No error: it was not begun.
    fn climb_one(&mut self, rung: &[Act]) -> Result<(), Option<ActError>> {
        for act in rung {
            // An earlier rung is stuck, or the card is held back.
            if self.barred(act) || self.held_back(act).is_some() {
                return Err(None);
            }
            if let Act::Remove { .. } = act {
                self.owe(rung);
            }
            let within = deadline(act, &self.record.budgets, 1);
            for result in self.act_in_time(&[(act.clone(), within)], &["instead: ".to_owned()]) {
                result.map_err(Some)?;
            }
        }
        Ok(())
    }

    /// Acts for different cards, at once; none where the run is to end, and none that goes on after its end.
    fn act_in_time(&mut self, acts: &[(Act, Duration)], prefixes: &[String]) -> Vec<Result<(), ActError>> {
        let refuse = |why: &str| vec![Err(ActError::NotBegun(why.to_owned())); acts.len()];
        if self.kernel.interrupted().is_some() {
            return refuse("a signal asked us to end");
        }
        let left = self.end.saturating_sub(self.kernel.now());
        if left.is_zero() {
            return refuse("the time for the whole run is over");
        }
        let acts: Vec<(Act, Duration)> = acts.iter().map(|(a, d)| (a.clone(), (*d).min(left))).collect();
        self.record_and_act(&acts, prefixes)
    }

    /// Acts for different cards, at once, written down before; each has its line in the log.
    pub(super) fn record_and_act(
        &mut self,
        acts: &[(Act, Duration)],
        prefixes: &[String],
    ) -> Vec<Result<(), ActError>> {
        if let Err(error) = self.write_down(acts) {
            let why = chain(error);
            // What is removed from the bus, and nobody knows of, is not found again.
            let is_lost = acts.iter().any(|(act, _)| matches!(act, Act::Remove { .. }));
            if !self.gives_back || is_lost {
                return vec![Err(ActError::NotBegun(why)); acts.len()];
            }
            if !std::mem::replace(&mut self.unwritten_said, true) {
                warn!("{why}: what was taken is given back without it");
            }
        }
        if let Some(why) = self.gate_has_fallen(acts) {
            return vec![Err(ActError::NotBegun(why)); acts.len()];
        }
        let results = self.kernel.act_all(acts);
        let mut plain = Vec::new();
        for (((act, _), prefix), acted) in acts.iter().zip(prefixes).zip(results) {
            say(act, prefix, &acted, self.gap(act, acted.moment));
            self.note_gate(act, acted.result.is_ok());
            self.note_wedge(act, &acted.result);
            self.note_ended(act, &acted.ended);
            if acted.result.is_ok() {
                self.owe_no_more(act);
            }
            plain.push(acted.result);
        }
        plain
    }

    /// How long after the last look for its holders a function was acted on: who came in between was not seen. (Nor was who
    /// came while the scan went on, after it had passed; how long that took is on the look's own line.)
    fn gap(&mut self, act: &Act, moment: Option<Duration>) -> Option<Gap> {
        let moment = moment?;
        if let Act::ProveFree { addrs, .. } = act {
            self.looked.extend(addrs.iter().map(|addr| (*addr, moment)));
            return None;
        }
        let function = act.function()?;
        let looked = self.looked.get(&function)?;
        match self.gate.contains(&function) {
            true => Some(Gap::Shut),
            false => Some(Gap::Open(moment.saturating_sub(*looked))),
        }
    }

    /// Whether the gate has opened before its time, and why acts must not be begun for that: what was seen to be free behind
    /// it is not any more, and a driver that waits for its users does so for ever.
    fn gate_has_fallen(&mut self, acts: &[(Act, Duration)]) -> Option<String> {
        if self.gate.is_empty() || self.kernel.gate_holds() {
            return None;
        }
        let behind = std::mem::take(&mut self.gate);
        self.free.clear();
        self.looked.retain(|addr, _| !behind.contains(addr));
        let takes_off = |act: &Act| matches!(act, Act::Unbind { .. } | Act::Remove { .. });
        let is_behind = |act: &Act| act.function().is_some_and(|addr| behind.contains(&addr));
        if acts.iter().any(|(act, _)| takes_off(act) && is_behind(act)) {
            return Some(format!(
                "the process that kept others from opening {} has ended, and somebody may have opened it",
                join(&behind)
            ));
        }
        warn!(
            "{}: the process that kept others from opening it has ended",
            join(&behind)
        );
        None
    }

    /// Who has ended for it.
    fn note_ended(&mut self, act: &Act, ended: &[i32]) {
        let has = |one: &&Named| ended.contains(&one.pid);
        match act {
            Act::EndProcesses { processes, .. } => self.ended.extend(processes.iter().filter(has).cloned()),
            Act::AwaitDesktops { processes, .. } => self.of_desktops.extend(processes.iter().filter(has).cloned()),
            _ => {}
        }
    }

    /// Which functions nobody can open now.
    fn note_gate(&mut self, act: &Act, done: bool) {
        match act {
            Act::ShutGate { addrs, whole } if done => {
                self.gate.extend(addrs);
                self.is_whole = *whole;
            }
            // Shut or not, nobody is to meet it.
            Act::ShutGate { .. } => self.kernel.let_gate_go(),
            Act::OpenGate { .. } => {
                self.gate.clear();
                self.free.clear();
            }
            _ => {}
        }
    }

    /// Whether an act would run into a call that is stuck: on the same function, or through a module, whose drivers
    /// try every device and wait for its lock (linux, drivers/base/dd.c, __driver_attach).
    pub(super) fn barred(&self, act: &Act) -> bool {
        match act {
            Act::LoadModule { .. } | Act::UnloadModule { .. } | Act::Remove { .. } | Act::Rescan { .. } => {
                !self.record.wedges.is_empty()
            }
            // It waits for the lock of each function below the bridge (linux, drivers/pci/pci.c, pci_bus_lock).
            Act::ResetBus { .. } => {
                let touched = self.record.touched_by(act);
                self.record.stuck().any(|s| touched.contains(&s))
            }
            act => act.function().is_some_and(|a| self.record.stuck().any(|s| s == a)),
        }
    }

    /// Why an act is not done that would have NVIDIA's driver take function 0 of a card whose function 1 has not left
    /// vfio-pci: the kernel may oops then (`src/plan/home_steps.rs`). An override that is cleared would let whoever loads the
    /// driver do the same.
    pub(super) fn held_back(&self, act: &Act) -> Option<String> {
        let takes = match act {
            Act::SetOverride { driver, .. } => driver.as_deref() != Some(VFIO_PCI),
            act => matches!(act, Act::ProveFree { .. } | Act::Unbind { .. } | Act::Probe { .. }),
        };
        let addr = act.function().filter(|a| takes && a.function == 0)?;
        let sound = addr.sound();
        self.away.contains(&sound).then(|| {
            format!("left out: NVIDIA's driver would take {sound}, which is still on {VFIO_PCI}, for a sound card")
        })
    }

    /// An act was not done, or not with success.
    pub(super) fn left_out(&mut self, act: &Act) {
        if let Act::Unbind { driver, .. } = act
            && driver == VFIO_PCI
        {
            self.away.extend(act.function());
        }
    }
}
