//! The errors that a run ends with which leaves something to be done, and what they advise.

use tracing::warn;

use crate::base::text::join;
use crate::execute::executor::{Executor, First};
use crate::model::error::{Error, chain};
use crate::model::particulars::loading_remedy;
use crate::model::record::State;

/// What is to be done where an act goes on that a signal has left no time to wait for.
pub(super) const THEN_RECOVER: &str = "'gpu-handoff recover' finishes the way home once that act is over";

impl Executor<'_> {
    /// Not everything could be put where it belongs: that is written down. `what` went wrong, what is `left`, and what
    /// helps where nothing is stuck.
    pub(super) fn stranded(&mut self, what: String, left: String, first: &First) -> Error {
        self.rest(State::Stranded);
        if let Err(error) = self.save() {
            warn!("{}", chain(error));
        }
        Error::NotRestored {
            what,
            left,
            hint: self.hint(first),
        }
    }

    /// A signal came while an act was under way, and the act goes on: the record, as it was written before it, has all
    /// that the next run needs.
    pub(super) fn interrupted(&self, act: &impl std::fmt::Display) -> Error {
        Error::NotRestored {
            what: format!("a signal asked us to end during '{act}'"),
            left: join(self.record.functions()),
            hint: THEN_RECOVER.to_owned(),
        }
    }

    /// What still helps.
    fn hint(&self, first: &First) -> String {
        let Some(wedge) = self.record.wedges.first() else {
            let hint = match first {
                First::See => "see 'journalctl -k' for what the driver says, then".to_owned(),
                First::PowerCycle => "a power cycle brings back what does not answer; then".to_owned(),
                First::Modules(why) => format!("{}; then", loading_remedy(why)),
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
