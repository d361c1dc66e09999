//! The executor: a plan, round by round, and what a failure means on its way.
//!
//! ```text
//! round: the next act of every card ──> written down ──> done, all at once ──> read back
//!        failed: its rungs, one after the other; none helps: out  -> everything is taken back in reverse
//!                                                            home -> said, and the rest goes on
//! ```
//!
//! On the way out a failure undoes everything and goes on undoing past errors. On the way home there is nothing to go
//! back to: what cannot be brought home is left, everything else still is.
//!
//! Not here: which steps make a round ([`crate::execute::schedule`]), and, as further methods of [`Executor`], a round
//! itself (acting.rs), the record (recording.rs), taking back (undo.rs) and the errors a run ends with (ending.rs).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::base::pci::PciAddr;
use crate::base::text::join;
use crate::execute::kernel::{ActError, Kernel};
use crate::execute::lines::{Count, say_of_service};
use crate::execute::schedule::rounds;
use crate::host::functions::VFIO_PCI;
use crate::host::modules::Problem;
use crate::host::units::Unit;
use crate::model::act::Act;
use crate::model::error::{Error, chain};
use crate::model::named::Named;
use crate::model::plan::{Direction, Plan, Step};
use crate::model::record::{Record, State};
use crate::state::store::Ledger;

/// A run that carries out one plan. It is over when the plan is, so it is used up by that.
pub struct Executor<'a> {
    pub(super) kernel: &'a mut dyn Kernel,
    pub(super) ledger: &'a dyn Ledger,
    /// As it is written down before the next act.
    pub(super) record: Record,
    /// What is on file when this run leaves nothing to say; None: no record.
    pub(super) rest: Option<Record>,
    /// When the whole run must be over, on the kernel's clock.
    pub(super) end: Duration,
    /// When it was last seen that nobody uses a function.
    pub(super) looked: BTreeMap<PciAddr, Duration>,
    /// The functions whose nodes others are kept from opening.
    pub(super) gate: BTreeSet<PciAddr>,
    /// It is shut to every node of NVIDIA's driver.
    pub(super) is_whole: bool,
    /// Functions that one look is enough for, where nobody can open any of them: from the first to those behind it.
    pub(super) one_look: BTreeMap<PciAddr, Vec<PciAddr>>,
    /// Those of which was seen that nobody uses them, since others are kept from opening them.
    pub(super) free: BTreeSet<PciAddr>,
    /// It gives back what was taken: the record serves that and never forbids it.
    pub(super) gives_back: bool,
    /// Functions that were to leave vfio-pci and have not.
    pub(super) away: BTreeSet<PciAddr>,
    /// Processes that have ended for it.
    pub(super) ended: Vec<Named>,
    /// Those that have ended with their desktop.
    pub(super) of_desktops: Vec<Named>,
    /// That the record cannot be written is said already.
    pub(super) unwritten_said: bool,
}

/// The functions that are looked at one after the other, with nothing in between that a look is to see: only these are taken off
/// their drivers. Those that leave vfio-pci are not beside others.
fn one_look(plan: &Plan) -> BTreeMap<PciAddr, Vec<PciAddr>> {
    let leaves_vfio = |addr: PciAddr| plan.steps.iter().any(|step| step.act == Act::unbind(addr, VFIO_PCI));
    let mut behind: BTreeMap<PciAddr, Vec<PciAddr>> = BTreeMap::new();
    let mut before: Vec<PciAddr> = Vec::new();
    for step in &plan.steps {
        match &step.act {
            Act::ProveFree { addrs, .. } => {
                for addr in addrs {
                    let same = before.iter().filter(|one| leaves_vfio(**one) == leaves_vfio(*addr));
                    for one in same {
                        behind.entry(*one).or_default().push(*addr);
                    }
                }
                before.extend(addrs);
            }
            Act::Unbind { .. } | Act::SetOverride { .. } | Act::SetAttribute { .. } => {}
            _ => before.clear(),
        }
    }
    behind
}

impl std::fmt::Debug for Executor<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Executor")
            .field("record", &self.record)
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

impl<'a> Executor<'a> {
    /// On this host, with the record of this handoff, which is kept in the ledger.
    ///
    /// `rest` is the record that is to be on file when this run leaves nothing to say: after a way home, and after a
    /// failed way out that was undone. None: no record. `end` is when the whole run must be over, on the kernel's clock.
    pub fn new(
        kernel: &'a mut dyn Kernel,
        ledger: &'a dyn Ledger,
        record: Record,
        rest: Option<Record>,
        end: Duration,
    ) -> Self {
        Executor {
            kernel,
            ledger,
            record,
            rest,
            end,
            looked: BTreeMap::new(),
            gate: BTreeSet::new(),
            is_whole: false,
            one_look: BTreeMap::new(),
            free: BTreeSet::new(),
            gives_back: false,
            away: BTreeSet::new(),
            ended: Vec::new(),
            of_desktops: Vec::new(),
            unwritten_said: false,
        }
    }

    /// Carries the plan out.
    ///
    /// # Errors
    /// [`Error::Restored`] or [`Error::NotRestored`]; a record of what is left is then on file.
    pub fn execute(mut self, plan: &Plan) -> Result<(), Error> {
        self.record.awake.clone_from(&plan.awake);
        self.one_look = one_look(plan);
        self.kernel.gives_back(plan.direction == Direction::Home);
        let result = match plan.direction {
            Direction::Out => self.way_out(plan),
            Direction::Home => self.way_home(plan),
        };
        // Where the plan did not come to it.
        self.kernel.let_gate_go();
        result
    }

    fn way_out(&mut self, plan: &Plan) -> Result<(), Error> {
        self.record.state = State::Leaving;
        let mut done: Vec<&Step> = Vec::new();
        let mut all_well = true;
        let mut unbound: BTreeSet<PciAddr> = BTreeSet::new();
        let mut count = Count::of(plan);
        for round in rounds(&plan.steps) {
            let steps: Vec<&Step> = round.iter().map(|at| &plan.steps[*at]).collect();
            let failed = self.round(&steps, &mut count);
            // What was not begun has had no effect: to take it back would stop what runs, or wait for its end.
            let not_begun = |step: &Step| {
                let mut its = failed.iter().filter(|(one, _)| std::ptr::eq(*one, step));
                its.any(|(_, error)| matches!(error, ActError::NotBegun(_)))
            };
            done.extend(steps.iter().filter(|step| !not_begun(step)));
            // What uses only what stays is on its own again.
            let is_on_its_own = |unit: &Unit| {
                let is_its = |step: &Step| step.act.starts() == Some(unit);
                let has_started = steps.iter().any(|step| is_its(step));
                plan.again.contains(unit) && has_started && !failed.iter().any(|(step, _)| is_its(step))
            };
            self.record.units.retain(|unit| !is_on_its_own(unit));
            all_well &= failed.is_empty();
            unbound.extend(failed.iter().filter_map(|(step, _)| step.act.function()));
            // What goes on is the next run's to wait for, whatever else has failed: no record is written after it.
            let goes_on = failed
                .iter()
                .find(|(_, error)| matches!(error, ActError::Interrupted { .. }));
            let first = goes_on.or_else(|| failed.iter().find(|(step, error)| counts(step, error)));
            if let Some((step, error)) = first {
                return Err(self.undo(&done, &step.act.to_string(), error));
            }
        }
        self.rest(State::Away);
        self.record.beside.retain(|b| unbound.contains(&b.addr));
        if all_well {
            self.record.awake.clear();
        }
        let Err(error) = self.save() else {
            return Ok(());
        };
        self.record.awake.clone_from(&plan.awake);
        self.record.beside.clone_from(&plan.beside);
        // A card that is away without a record would not come home by itself.
        let why = ActError::Failed(chain(error));
        let what = "the end of the handoff";
        Err(self.undo(&done, what, &why))
    }

    /// A service that was started is on its own again: the next try does not start it once more. One that is to be started anew
    /// for a GPU that has come home waits for that.
    fn started(&mut self, plan: &Plan, steps: &[&Step], failed: &[(&Step, ActError)]) {
        let has_failed = |act: &Act| failed.iter().any(|(step, _)| step.act == *act);
        for step in steps.iter().filter(|step| !has_failed(&step.act)) {
            if let Some(name) = step.act.starts()
                && !plan.steps.iter().any(|step| is_restart(step, name))
            {
                self.record.units.retain(|unit| unit != name);
            }
        }
    }

    fn way_home(&mut self, plan: &Plan) -> Result<(), Error> {
        self.record.state = State::Returning;
        self.gives_back = true;
        let mut trouble = Trouble::of(plan);
        let mut undone: BTreeSet<PciAddr> = trouble.failed.clone();
        let mut in_vain: Vec<Unit> = Vec::new();
        let mut count = Count::of(plan);
        for round in rounds(&plan.steps) {
            let mut steps: Vec<&Step> = Vec::new();
            let planned: Vec<Step> = round
                .iter()
                .map(|at| as_needed(&plan.steps[*at], plan, &undone))
                .collect();
            for step in &planned {
                if trouble.rules_out(&step.act, &self.record) {
                    self.left_out(&step.act);
                    count.skip();
                } else if let Some(why) = self.held_back(&step.act) {
                    if !step.act.function().is_some_and(|a| trouble.failed.contains(&a)) {
                        trouble.note(&step.act, &ActError::NotBegun(why), &self.record);
                    }
                    count.skip();
                } else if self.barred(&step.act) {
                    trouble
                        .errors
                        .push(format!("{}: left out, the kernel is stuck", step.act));
                    trouble.is_of_others = false;
                    self.left_out(&step.act);
                    count.skip();
                } else {
                    steps.push(step);
                    continue;
                }
                undone.extend(step.act.function());
            }
            let failed = self.round(&steps, &mut count);
            self.started(plan, &steps, &failed);
            for (step, error) in failed {
                if let ActError::Interrupted { .. } = error {
                    return Err(self.interrupted(&step.act));
                }
                self.left_out(&step.act);
                undone.extend(step.act.function());
                if counts(step, &error) {
                    trouble.note(&step.act, &error, &self.record);
                } else {
                    say_of_service(&step.act, &error);
                    in_vain.extend(unit_started_by(&step.act));
                }
            }
        }
        if trouble.errors.is_empty() {
            return self.close().map_err(|e| Error::io("removing the record", e));
        }
        // What was tried and said is not tried again where the GPU is home, as after a run that ends well: it would take the time of
        // the rest each time.
        if trouble.is_of_others {
            self.record.units.retain(|unit| !in_vain.contains(unit));
        }
        // What has its driver again is nobody's business any more.
        self.record.beside.retain(|b| undone.contains(&b.addr));
        let what = format!("the way home failed ({})", trouble.errors.join("; "));
        Err(self.stranded(what, trouble.left(), &trouble.first()))
    }
}

fn is_restart(step: &Step, unit: &Unit) -> bool {
    matches!(&step.act, Act::RestartUnit { name } if name == unit)
}

/// A step as it is to be done: where no GPU has come home there is nothing to learn for a service of NVIDIA's that runs for
/// others, and it is started only where it does not run. Each try anew would end whoever needs it.
fn as_needed(step: &Step, plan: &Plan, undone: &BTreeSet<PciAddr>) -> Step {
    let is_home = |step: &Step| matches!(step.act, Act::Verify { addr, .. } if !undone.contains(&addr));
    let mut step = step.clone();
    if let Act::RestartUnit { name } = &step.act
        && !plan.steps.iter().any(is_home)
    {
        step.act = Act::start(name, Duration::ZERO); // no container
    }
    step
}

/// The unit that an act starts.
fn unit_started_by(act: &Act) -> Option<Unit> {
    match act {
        Act::StartUnit { name, .. } | Act::RestartUnit { name } => Some(name.clone()),
        _ => None,
    }
}

/// Whether a failure changes how a run ends. That a soft act was not even begun does: nobody would try it again.
fn counts(step: &Step, error: &ActError) -> bool {
    !step.soft || matches!(error, ActError::NotBegun(_))
}

/// What has to be done before another try.
#[derive(Debug)]
pub(super) enum First {
    /// Look at what the driver says.
    See,
    /// Something has fallen off the bus.
    PowerCycle,
    /// Modules cannot be loaded.
    Modules(Problem),
}

/// What has gone wrong so far on a way home.
struct Trouble {
    /// All of it, in words.
    errors: Vec<String>,
    /// Functions that cannot come home.
    failed: BTreeSet<PciAddr>,
    /// Those of them that were removed from the bus and not found again.
    lost: BTreeSet<PciAddr>,
    /// Something has fallen off the bus, before or meanwhile.
    fell_off: bool,
    /// Modules that could not be loaded, and why, where no device was at fault.
    not_loaded: Vec<(String, Problem)>,
    /// All of it is about who uses the GPU.
    is_of_others: bool,
}

impl Trouble {
    /// What is missing before anything is done.
    fn of(plan: &Plan) -> Self {
        Trouble {
            errors: plan.missing.iter().map(|(a, why)| format!("{a} {why}")).collect(),
            failed: plan.missing.iter().map(|(a, _)| *a).collect(),
            lost: BTreeSet::new(),
            fell_off: !plan.missing.is_empty(),
            not_loaded: Vec::new(),
            is_of_others: plan.missing.is_empty(),
        }
    }

    /// Whether an act is about what is lost, or needs that an earlier one led to what it should have.
    fn rules_out(&self, act: &Act, record: &Record) -> bool {
        // An override that is given back before the function is on its driver lets another one take it.
        let needs_the_last = matches!(
            act,
            Act::Unbind { .. } | Act::Probe { .. } | Act::Verify { .. } | Act::SetOverride { .. }
        );
        if let Act::LoadModule { name } = act {
            // The others of NVIDIA's need it, and all of them a GPU.
            let needed = |(missing, _): &(String, Problem)| missing == "nvidia" && name.starts_with("nvidia");
            let of = record.touched_by(act);
            return self.not_loaded.iter().any(needed) || !of.is_empty() && of.iter().all(|a| self.lost.contains(a));
        }
        let is_in = |set: &BTreeSet<PciAddr>| act.function().is_some_and(|a| set.contains(&a));
        (needs_the_last && is_in(&self.failed)) || is_in(&self.lost)
    }

    fn note(&mut self, act: &Act, error: &ActError, record: &Record) {
        self.is_of_others &= unit_started_by(act).is_some();
        self.errors.push(match (act, error) {
            (Act::Rescan { addr, .. }, ActError::NotReached { .. }) => {
                format!("{addr} is not there any more, and a rescan does not find it")
            }
            _ => format!("{act}: {error}"),
        });
        self.failed.extend(act.function());
        if let (Act::LoadModule { name }, ActError::CannotLoad(why)) = (act, error) {
            // Nothing that this module drives can be bound, and what is not off its driver yet is left there.
            let driven = record.taken.iter().filter(|t| t.module.as_ref() == Some(name));
            self.failed.extend(driven.map(|t| t.addr));
            self.not_loaded.push((name.clone(), why.clone()));
        }
        if let Act::Rescan { .. } = act {
            self.lost.extend(act.function());
            self.fell_off = true;
        }
    }

    /// What has to be done before another try.
    fn first(&self) -> First {
        match self.not_loaded.first() {
            _ if self.fell_off => First::PowerCycle,
            Some((_, why)) => First::Modules(why.clone()),
            None => First::See,
        }
    }

    /// What is not home, in words.
    fn left(&self) -> String {
        if self.failed.is_empty() {
            "modules".to_owned()
        } else {
            join(&self.failed)
        }
    }
}
