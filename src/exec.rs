//! The executor: carries a plan out step by step, writes each act down before it happens, undoes on failure.
//!
//! On the way out a failure undoes everything in reverse and goes on undoing past errors. On the way home there
//! is nothing to go back to: what cannot be brought home is left, everything else still is.

use std::collections::BTreeSet;
use std::time::Duration;

use tracing::{info, warn};

use crate::exit::Error;
use crate::kernel::{ActError, Kernel};
use crate::pci::PciAddr;
use crate::plan::{Direction, Plan, deadline};
use crate::record::{Ledger, Record, State};
use crate::report::millis;
use crate::step::{Act, Step};

/// What is needed to carry out a plan.
pub struct Run<'a> {
    /// The host.
    pub kernel: &'a mut dyn Kernel,
    /// Where the record is kept.
    pub ledger: &'a dyn Ledger,
    /// The record of this handoff.
    pub record: Record,
    /// The record that is to be on file when this run leaves nothing to say: after a way home, and after a failed
    /// way out that was undone. None: no record.
    pub rest: Option<Record>,
    /// When the whole run must be over, on the kernel's clock.
    pub end: Duration,
}

impl std::fmt::Debug for Run<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Run")
            .field("record", &self.record)
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

impl Run<'_> {
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
        for (at, step) in plan.steps.iter().enumerate() {
            if let Err(error) = self.step(at, plan.steps.len(), step) {
                return Err(self.undo(&plan.steps[..=at], &step.act.to_string(), &error));
            }
        }
        self.record.state = State::Away;
        self.record.under_way = None;
        self.record.worker = None;
        let Err(error) = self.save() else {
            return Ok(());
        };
        // A card that is away without a record would not come home by itself.
        let why = ActError::Failed(format!("{error:#}"));
        let what = "writing the record of the finished handoff";
        Err(self.undo(&plan.steps, what, &why))
    }

    fn way_home(&mut self, plan: &Plan) -> Result<(), Error> {
        self.record.state = State::Returning;
        let mut failed = BTreeSet::new();
        let mut errors: Vec<String> = plan
            .missing
            .iter()
            .map(|a| format!("{a} is not there any more"))
            .collect();
        failed.extend(&plan.missing);
        for (at, step) in plan.steps.iter().enumerate() {
            let addr = step.act.function();
            let hopeless = matches!(step.act, Act::Unbind { .. } | Act::Probe { .. });
            if hopeless && addr.is_some_and(|a| failed.contains(&a)) {
                continue;
            }
            if self.barred(&step.act) {
                errors.push(format!("{}: left out, the kernel is stuck", step.act));
                continue;
            }
            if let Err(error) = self.step(at, plan.steps.len(), step) {
                errors.push(format!("{}: {error}", step.act));
                failed.extend(addr);
            }
        }
        if errors.is_empty() {
            return self.close().map_err(|e| Error::io("removing the record", e));
        }
        self.record.state = State::Stranded;
        self.record.under_way = None;
        self.record.worker = None;
        let what = format!("the way home failed ({})", errors.join("; "));
        let left = names(&failed).unwrap_or_else(|| "modules".to_owned());
        if let Err(error) = self.save() {
            warn!("{error:#}");
        }
        Err(Error::NotRestored {
            what,
            left,
            hint: self.hint(),
        })
    }

    /// One step: written down, done, read back, said.
    fn step(&mut self, at: usize, of: usize, step: &Step) -> Result<(), ActError> {
        let left = self.end.saturating_sub(self.kernel.now());
        if left.is_zero() {
            return Err(ActError::Failed("the time for the whole run is over".to_owned()));
        }
        self.record.under_way = Some(step.act.clone());
        self.record.worker = self.kernel.worker();
        self.save().map_err(|e| ActError::Failed(format!("{e:#}")))?;
        let width = of.to_string().len();
        self.act(
            &step.act,
            step.deadline.min(left),
            &format!("[{:width$}/{of}] ", at + 1),
        )
    }

    /// An act with its line in the log.
    fn act(&mut self, act: &Act, within: Duration, prefix: &str) -> Result<(), ActError> {
        let start = self.kernel.now();
        let result = self.kernel.act(act, within);
        let took = self.kernel.now().saturating_sub(start);
        let line = format!("{prefix}{:<14} {}", act.subject(), act.verb());
        let duration_usec = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        match &result {
            Ok(()) => info!(device = act.subject(), duration_usec, "{line:<59} {:>7}", millis(took)),
            Err(error) => warn!(
                device = act.subject(),
                duration_usec,
                "{line}: failed after {}: {error}",
                millis(took)
            ),
        }
        if let Err(ActError::Overdue { stuck: Some(group), .. }) = &result {
            let stuck = self.record.touched_by(act);
            if !stuck.is_empty() {
                self.record.stuck.extend(stuck);
                self.record.stuck_group = Some(*group);
            }
        }
        result
    }

    /// Whether an act would run into a call that is stuck: on the same function, or through a module, whose drivers
    /// try every device and wait for its lock (linux, drivers/base/dd.c, __driver_attach).
    fn barred(&self, act: &Act) -> bool {
        match act {
            Act::LoadModule { .. } | Act::UnloadModule { .. } => !self.record.stuck.is_empty(),
            act => act.function().is_some_and(|a| self.record.stuck.contains(&a)),
        }
    }

    /// Takes back the steps in reverse, the failed one included: it may have had half its effect.
    fn undo(&mut self, done: &[Step], failed: &str, why: &ActError) -> Error {
        let what = format!("{failed}: {why}");
        if done.len() > 1 {
            let within = self.record.budgets.way_out.as_secs();
            info!("undoing {} steps, at most {within} s", done.len() - 1);
        }
        let mut left = Vec::new();
        let until = self.kernel.now() + self.record.budgets.way_out;
        for step in done.iter().rev() {
            for act in &step.inverse {
                let remaining = until.saturating_sub(self.kernel.now());
                if self.barred(act) {
                    left.push(format!("{act}: left alone, the kernel is stuck there"));
                    continue;
                }
                if remaining.is_zero() {
                    left.push(format!("{act}: no time was left"));
                    continue;
                }
                let within = deadline(act, &self.record.budgets, 1).min(remaining);
                if let Err(error) = self.act(act, within, "undo: ") {
                    left.push(format!("{act}: {error}"));
                }
            }
        }
        if left.is_empty() && self.record.stuck.is_empty() {
            if let Err(e) = self.close() {
                warn!("the record could not be put back: {e}");
            }
            return Error::Restored { what };
        }
        self.record.state = State::Stranded;
        self.record.under_way = None;
        self.record.worker = None;
        if let Err(error) = self.save() {
            warn!("{error:#}");
        }
        Error::NotRestored {
            what,
            left: left.join("; "),
            hint: self.hint(),
        }
    }

    fn hint(&self) -> String {
        match self.record.stuck_group {
            Some(group) => format!(
                "end whoever uses the device ('gpu-handoff status' names them); process group {group} of ours waits \
                 in the kernel until then, and 'gpu-handoff to_nvidia' works when it has gone. A reboot would hang: \
                 sync and power-cycle if nothing helps"
            ),
            None => "see 'journalctl -k' for what the driver says, then run 'gpu-handoff to_nvidia' again".to_owned(),
        }
    }

    /// Nothing of this run is left to be written down.
    fn close(&self) -> std::io::Result<()> {
        match &self.rest {
            Some(record) => self.ledger.save(record),
            None => self.ledger.remove(self.record.owner),
        }
    }

    fn save(&self) -> Result<(), Error> {
        self.ledger
            .save(&self.record)
            .map_err(|e| Error::io("writing the record", e))
    }
}

fn names(addrs: &BTreeSet<PciAddr>) -> Option<String> {
    (!addrs.is_empty()).then(|| crate::report::join(addrs))
}
