//! Taking back what was done, in reverse and past errors; and the words for what could not be.

use std::collections::BTreeSet;

use tracing::{info, warn};

use crate::base::pci::PciAddr;
use crate::base::text::{join, millis};
use crate::execute::executor::Executor;
use crate::execute::kernel::{AFTER_SIGNAL, ActError};
use crate::host::functions::VFIO_PCI;
use crate::model::act::Act;
use crate::model::error::Error;
use crate::model::plan::{Step, deadline};
use crate::model::record::State;

impl Executor<'_> {
    /// Takes back the steps in reverse, the failed ones included: each may have had half its effect.
    pub(super) fn undo(&mut self, done: &[&Step], failed: &str, why: &ActError) -> Error {
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
    pub(super) fn elsewhere(&mut self) -> BTreeSet<PciAddr> {
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
    pub(super) fn interrupted(&self, act: &impl std::fmt::Display) -> Error {
        Error::NotRestored {
            what: format!("a signal asked us to end during '{act}'"),
            left: join(self.record.taken.iter().map(|t| t.addr)),
            hint: "'gpu-handoff recover' finishes the way home once that act is over".to_owned(),
        }
    }

    /// What still helps. `lost`: something has fallen off the bus.
    pub(super) fn hint(&self, lost: bool) -> String {
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
}
