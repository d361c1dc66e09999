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

use tracing::{info, warn};

use crate::base::pci::PciAddr;
use crate::base::text::{join, millis};
use crate::host::functions::VFIO_PCI;
use crate::kernel::{AFTER_SIGNAL, ActError, Acted, Kernel};
use crate::model::act::Act;
use crate::model::error::Error;
use crate::model::plan::{Direction, Plan, Step, deadline};
use crate::model::record::{Record, State, Wedge};
use crate::rounds::{one_proof, rounds};
use crate::state::store::Ledger;

/// What is needed to carry out a plan.
pub struct Run<'a> {
    kernel: &'a mut dyn Kernel,
    ledger: &'a dyn Ledger,
    record: Record,
    rest: Option<Record>,
    end: Duration,
    /// When it was last seen that nobody uses a function.
    looked: BTreeMap<PciAddr, Duration>,
}

impl std::fmt::Debug for Run<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Run")
            .field("record", &self.record)
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

impl<'a> Run<'a> {
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
        Run {
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

    fn record_and_act(&mut self, acts: &[(Act, Duration)], prefixes: &[String]) -> Vec<Result<(), ActError>> {
        let owed = self.owed().into_iter().filter(|o| acts.iter().all(|(act, _)| act != o));
        self.record.under_way = acts.iter().map(|(act, _)| act.clone()).chain(owed).collect();
        self.kernel.prepare(acts.len());
        self.record.workers = self.kernel.workers();
        if let Err(error) = self.save() {
            return vec![Err(ActError::NotBegun(format!("{error:#}"))); acts.len()];
        }
        let results = self.kernel.act_all(acts);
        let mut plain = Vec::new();
        for (((act, _), prefix), acted) in acts.iter().zip(prefixes).zip(results) {
            say(act, prefix, &acted, self.gap(act, acted.moment));
            self.note_wedge(act, &acted.result);
            if acted.result.is_ok() && matches!(act, Act::Rescan { .. }) {
                self.record.under_way.retain(|owed| owed != act);
            }
            plain.push(acted.result);
        }
        plain
    }

    /// How long after the last look for its holders a function was acted on: who came in between was not seen. (Nor was who
    /// came while the scan went on, after it had passed; how long that took is on the look's own line.)
    fn gap(&mut self, act: &Act, moment: Option<Duration>) -> Option<Duration> {
        let moment = moment?;
        if let Act::ProveFree { addrs, .. } = act {
            self.looked.extend(addrs.iter().map(|addr| (*addr, moment)));
            return None;
        }
        let looked = self.looked.get(&act.function()?)?;
        Some(moment.saturating_sub(*looked))
    }

    /// Writes down how what is about to be removed is found again, until that is done: nothing else would know that it was
    /// ever there.
    fn owe(&mut self, rung: &[Act]) {
        let rescans = rung.iter().filter(|act| matches!(act, Act::Rescan { .. }));
        for rescan in rescans {
            if !self.record.under_way.contains(rescan) {
                self.record.under_way.push(rescan.clone());
            }
        }
    }

    fn owed(&self) -> Vec<Act> {
        let under_way = self.record.under_way.iter();
        under_way
            .filter(|act| matches!(act, Act::Rescan { .. }))
            .cloned()
            .collect()
    }

    /// Nothing is under way any more, and what is owed stays.
    fn rest(&mut self, state: State) {
        let owed = self.owed();
        self.record.rest(state);
        self.record.under_way = owed;
    }

    fn note_wedge(&mut self, act: &Act, result: &Result<(), ActError>) {
        let Err(ActError::Overdue { stuck: Some(group), .. }) = result else {
            return;
        };
        let addrs = self.record.touched_by(act);
        if addrs.is_empty() {
            return;
        }
        let (stack, holders) = self.kernel.autopsy(*group, &addrs);
        self.record.wedges.push(Wedge {
            group: *group,
            addrs,
            act: act.to_string(),
            stack,
            holders,
        });
    }

    /// Whether an act would run into a call that is stuck: on the same function, or through a module, whose drivers
    /// try every device and wait for its lock (linux, drivers/base/dd.c, __driver_attach).
    fn barred(&self, act: &Act) -> bool {
        match act {
            Act::LoadModule { .. } | Act::UnloadModule { .. } | Act::Remove { .. } | Act::Rescan { .. } => {
                !self.record.wedges.is_empty()
            }
            act => act.function().is_some_and(|a| self.record.stuck().any(|s| s == a)),
        }
    }

    /// Takes back the steps in reverse, the failed ones included: each may have had half its effect.
    fn undo(&mut self, done: &[&Step], failed: &str, why: &ActError) -> Error {
        if let ActError::Interrupted { .. } = why {
            return self.interrupted(&failed);
        }
        let what = match why {
            ActError::NotBegun(why) => format!("{why}, before '{failed}'"),
            why => format!("{failed}: {why}"),
        };
        let now = self.kernel.now();
        let mut until = now + self.record.budgets.way_out;
        if let Some(at) = self.kernel.interrupted() {
            until = until.min(at + AFTER_SIGNAL);
        }
        if done.len() > 1 {
            info!(
                "undoing {} steps, at most {}",
                done.len() - 1,
                millis(until.saturating_sub(now))
            );
        }
        let elsewhere = self.elsewhere();
        let mut left = Vec::new();
        let mut in_use = BTreeSet::new();
        for act in done.iter().rev().flat_map(|step| &step.inverse) {
            let remaining = until.saturating_sub(self.kernel.now());
            if self.barred(act) {
                left.push(format!("{act}: left alone, the kernel is stuck there"));
                continue;
            }
            if remaining.is_zero() {
                left.push(format!("{act}: no time was left"));
                continue;
            }
            let lets_go = matches!(act, Act::ProveFree { .. } | Act::Unbind { .. });
            if lets_go && act.function().is_some_and(|a| elsewhere.contains(&a)) {
                continue; // its users are its driver's, and it is not taken off it
            }
            let unbinds = matches!(act, Act::Unbind { .. });
            if unbinds && act.function().is_some_and(|a| in_use.contains(&a)) {
                continue; // that it is in use is said already
            }
            let within = deadline(act, &self.record.budgets, 1).min(remaining);
            for result in self.record_and_act(&[(act.clone(), within)], &["undo: ".to_owned()]) {
                match result {
                    Ok(()) => {}
                    Err(ActError::Interrupted { .. }) => return self.interrupted(act),
                    Err(error) => {
                        if let Act::ProveFree { addrs, .. } = act {
                            in_use.extend(addrs.iter().copied());
                        }
                        left.push(format!("{act}: {error}"));
                    }
                }
            }
        }
        if left.is_empty() && self.record.wedges.is_empty() {
            if let Err(e) = self.close() {
                warn!("the record could not be put back: {e}");
            }
            return Error::Restored { what };
        }
        self.rest(State::Stranded);
        if let Err(error) = self.save() {
            warn!("{error:#}");
        }
        Error::NotRestored {
            what,
            left: left.join("; "),
            hint: self.hint(false),
        }
    }

    /// Functions of the record that are on another driver than vfio-pci: they never left theirs, or somebody else has bound
    /// them.
    fn elsewhere(&mut self) -> BTreeSet<PciAddr> {
        let stuck: Vec<PciAddr> = self.record.stuck().collect();
        let Ok(snapshot) = self.kernel.look(&stuck, self.record.budgets.look) else {
            return BTreeSet::new();
        };
        let addrs = self.record.taken.iter().map(|t| t.addr);
        let is_elsewhere = |addr: &PciAddr| {
            let driver = snapshot.function(*addr).and_then(|f| f.driver.as_deref());
            driver.is_some_and(|driver| driver != VFIO_PCI)
        };
        addrs.filter(is_elsewhere).collect()
    }

    /// A signal came while an act was under way, and the act goes on: the record, as it was written before it, has all
    /// that the next run needs.
    fn interrupted(&self, act: &impl std::fmt::Display) -> Error {
        Error::NotRestored {
            what: format!("a signal asked us to end during '{act}'"),
            left: join(self.record.taken.iter().map(|t| t.addr)),
            hint: "'gpu-handoff recover' finishes the way home once that act is over".to_owned(),
        }
    }

    /// What still helps. `lost`: something has fallen off the bus.
    fn hint(&self, lost: bool) -> String {
        let Some(wedge) = self.record.wedges.first() else {
            let hint = if lost {
                "a power cycle brings back what does not answer; then"
            } else {
                "see 'journalctl -k' for what the driver says, then"
            };
            return format!("{hint} run 'gpu-handoff recover'");
        };
        let who = match wedge.holders.first() {
            Some(holder) => format!("end {holder}"),
            None => "nobody is seen to use the device, so only the kernel can let go".to_owned(),
        };
        format!(
            "{who}; process group {} of ours waits in the kernel until then, and 'gpu-handoff recover' works when it has \
             gone. A plain reboot would hang: sync and power-cycle if nothing helps",
            wedge.group
        )
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

/// Whether a failure changes how a run ends. That a soft act was not even begun does: nobody would try it again.
fn counts(step: &Step, error: &ActError) -> bool {
    !step.soft || matches!(error, ActError::NotBegun(_))
}

/// The number in front of a line.
struct Count {
    at: usize,
    of: usize,
}

impl Count {
    fn of(plan: &Plan) -> Self {
        Count {
            at: 0,
            of: plan.steps.len(),
        }
    }

    fn skip(&mut self) {
        self.at += 1;
    }

    fn next(&mut self) -> String {
        self.at += 1;
        let width = self.of.to_string().len();
        format!("[{:width$}/{}] ", self.at, self.of)
    }
}

/// The line of an act. `gap`: how long after the last look for holders it was done.
fn say(act: &Act, prefix: &str, acted: &Acted, gap: Option<Duration>) {
    let usec = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let duration_usec = usec(acted.took);
    let gap_usec = gap.map(usec);
    let device = act.subject();
    match &acted.result {
        Ok(()) => info!(
            device,
            duration_usec,
            gap_usec,
            "{}",
            line(act, prefix, acted.took, gap)
        ),
        Err(error) => {
            let line = format!("{prefix}{device:<14} {}", act.verb());
            warn!(
                device,
                duration_usec,
                "{line}: failed after {}: {error}",
                millis(acted.took)
            );
        }
    }
}

/// What was done, and how long it took: with the program's name before it 80 columns.
fn line(act: &Act, prefix: &str, took: Duration, gap: Option<Duration>) -> String {
    const WIDTH: usize = 67;
    // Read after the line of the look. Whole milliseconds, rounded up: it is the most that it can have been.
    let later = gap.map_or(String::new(), |gap| {
        format!(" {} ms later", gap.as_micros().div_ceil(1000))
    });
    let line = format!("{prefix}{:<14} {}{later} ", act.subject(), act.verb());
    let room = WIDTH.saturating_sub(line.chars().count());
    format!("{line}{:>room$}", millis(took))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_how_old_the_proof_is_in_eighty_columns() {
        let us = Duration::from_micros;
        let unbind = |driver: &str| Act::Unbind {
            addr: "0000:65:00.1".parse().unwrap(),
            driver: driver.to_owned(),
        };
        for (driver, took, gap, expected) in [
            (
                "nvidia",
                us(54_800),
                None,
                "[12/27] 0000:65:00.1   unbind from nvidia                     55 ms",
            ),
            (
                "nvidia",
                us(54_800),
                Some(us(2_100)),
                "[12/27] 0000:65:00.1   unbind from nvidia 3 ms later          55 ms",
            ),
            (
                "snd_hda_intel",
                us(123_400),
                Some(us(12_000)),
                "[12/27] 0000:65:00.1   unbind from snd_hda_intel 12 ms later 123 ms",
            ),
        ] {
            let line = line(&unbind(driver), "[12/27] ", took, gap);
            assert_eq!(line, expected);
            assert_eq!("gpu-handoff: ".len() + line.len(), 80);
        }
    }
}
