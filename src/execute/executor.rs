//! The executor: carries a plan out, writes each act down before it happens, undoes on failure.
//!
//! ```text
//! round: the next act of every card ──> written down ──> done, all at once ──> read back
//!        failed: its rungs, one after the other; none helps: out  -> everything is taken back in reverse
//!                                                            home -> said, and the rest goes on
//! ```
//!
//! On the way out a failure undoes everything and goes on undoing past errors. On the way home there is nothing to go
//! back to: what cannot be brought home is left, everything else still is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tracing::warn;

use crate::base::pci::PciAddr;
use crate::base::text::join;
use crate::execute::kernel::{ActError, Kernel};
use crate::execute::lines::{Count, counts};
use crate::execute::schedule::{one_proof, rounds};
use crate::model::act::Act;
use crate::model::error::Error;
use crate::model::plan::{Direction, Plan, Step, deadline};
use crate::model::record::{Record, State};
use crate::state::store::Ledger;

/// What is needed to carry out a plan.
pub struct Executor<'a> {
    pub(super) kernel: &'a mut dyn Kernel,
    pub(super) ledger: &'a dyn Ledger,
    pub(super) record: Record,
    pub(super) rest: Option<Record>,
    pub(super) end: Duration,
    /// When it was last seen that nobody uses a function.
    pub(super) looked: BTreeMap<PciAddr, Duration>,
}

impl std::fmt::Debug for Executor<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Run")
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
        }
    }

    /// Carries the plan out.
    ///
    /// # Errors
    /// [`Error::Restored`] or [`Error::NotRestored`]; a record of what is left is then on file.
    pub fn execute(mut self, plan: &Plan) -> Result<(), Error> {
        match plan.direction {
            Direction::Out => self.way_out(plan),
            Direction::Home => self.way_home(plan),
        }
    }

    fn way_out(&mut self, plan: &Plan) -> Result<(), Error> {
        self.record.state = State::Leaving;
        self.record.awake.clone_from(&plan.awake);
        let mut done: Vec<&Step> = Vec::new();
        let mut all_well = true;
        let mut count = Count::of(plan);
        for round in rounds(&plan.steps) {
            let steps: Vec<&Step> = round.iter().map(|at| &plan.steps[*at]).collect();
            done.extend(&steps);
            let failed = self.round(&steps, &mut count);
            all_well &= failed.is_empty();
            if let Some((step, error)) = failed.into_iter().find(|(step, error)| counts(step, error)) {
                return Err(self.undo(&done, &step.act.to_string(), &error));
            }
        }
        self.rest(State::Away);
        if all_well {
            self.record.awake.clear();
        }
        let Err(error) = self.save() else {
            return Ok(());
        };
        self.record.awake.clone_from(&plan.awake);
        // A card that is away without a record would not come home by itself.
        let why = ActError::Failed(format!("{error:#}"));
        let what = "writing the record of the finished handoff";
        Err(self.undo(&done, what, &why))
    }

    fn way_home(&mut self, plan: &Plan) -> Result<(), Error> {
        self.record.state = State::Returning;
        self.record.awake.clone_from(&plan.awake);
        let mut errors: Vec<String> = plan.missing.iter().map(|(a, why)| format!("{a} {why}")).collect();
        let mut failed: BTreeSet<PciAddr> = plan.missing.iter().map(|(a, _)| *a).collect();
        let mut lost: BTreeSet<PciAddr> = BTreeSet::new();
        let mut count = Count::of(plan);
        for round in rounds(&plan.steps) {
            let mut steps: Vec<&Step> = Vec::new();
            for step in round.iter().map(|at| &plan.steps[*at]) {
                let needs_the_last = matches!(step.act, Act::Unbind { .. } | Act::Probe { .. } | Act::Verify { .. });
                let is_in = |set: &BTreeSet<PciAddr>| step.act.function().is_some_and(|a| set.contains(&a));
                if (needs_the_last && is_in(&failed)) || is_in(&lost) {
                    count.skip();
                } else if self.barred(&step.act) {
                    errors.push(format!("{}: left out, the kernel is stuck", step.act));
                    count.skip();
                } else {
                    steps.push(step);
                }
            }
            for (step, error) in self.round(&steps, &mut count) {
                if let ActError::Interrupted { .. } = error {
                    return Err(self.interrupted(&step.act));
                }
                if counts(step, &error) {
                    errors.push(format!("{}: {error}", step.act));
                    failed.extend(step.act.function());
                    if let Act::Rescan { .. } = step.act {
                        lost.extend(step.act.function());
                    }
                }
            }
        }
        if errors.is_empty() {
            return self.close().map_err(|e| Error::io("removing the record", e));
        }
        self.rest(State::Stranded);
        if let Err(error) = self.save() {
            warn!("{error:#}");
        }
        Err(Error::NotRestored {
            what: format!("the way home failed ({})", errors.join("; ")),
            left: if failed.is_empty() {
                "modules".to_owned()
            } else {
                join(&failed)
            },
            hint: self.hint(!plan.missing.is_empty() || !lost.is_empty()),
        })
    }

    /// One round: written down, done, read back, said. Returns what failed in spite of its rungs.
    fn round<'s>(&mut self, steps: &[&'s Step], count: &mut Count) -> Vec<(&'s Step, ActError)> {
        let mut acts: Vec<(Act, Duration)> = steps.iter().map(|s| (s.act.clone(), s.deadline)).collect();
        let mut prefixes: Vec<String> = steps.iter().map(|_| count.next()).collect();
        // One look through all processes serves all cards.
        if let Some((together, within)) = one_proof(&acts) {
            acts = vec![(together, within)];
            prefixes.drain(..prefixes.len() - 1);
        }
        let mut results = self.acts(&acts, &prefixes);
        if let [one] = results.as_slice() {
            results = vec![one.clone(); steps.len()];
        }
        let mut failed = Vec::new();
        for (step, result) in steps.iter().zip(results) {
            let Err(error) = result else { continue };
            let climbs = !matches!(
                error,
                ActError::Overdue { stuck: Some(_), .. } | ActError::Interrupted { .. }
            );
            if !(climbs && self.climb(step)) {
                failed.push((*step, error));
            }
        }
        failed
    }

    /// Tries the rungs of a step that failed, until one leads to what it should have led to.
    fn climb(&mut self, step: &Step) -> bool {
        step.rungs.iter().any(|rung| {
            rung.iter().all(|act| {
                if self.barred(act) {
                    return false; // an earlier rung is stuck
                }
                if let Act::Remove { .. } = act {
                    self.owe(rung);
                }
                let within = deadline(act, &self.record.budgets, 1);
                let results = self.acts(&[(act.clone(), within)], &["instead: ".to_owned()]);
                results.iter().all(Result::is_ok)
            })
        })
    }

    /// Acts for different cards, at once, with their lines in the log.
    fn acts(&mut self, acts: &[(Act, Duration)], prefixes: &[String]) -> Vec<Result<(), ActError>> {
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
}
