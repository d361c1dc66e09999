//! The record, kept while a plan is carried out: whoever comes after a run that was killed knows from it what that was at.
//!
//! Not here: its form ([`crate::model::record`]) and its file ([`crate::state::store`]).

use std::time::Duration;

use crate::execute::executor::Executor;
use crate::execute::kernel::ActError;
use crate::model::act::Act;
use crate::model::error::Error;
use crate::model::record::{State, Wedge};

impl Executor<'_> {
    /// Writes down what is about to be done and who does it.
    pub(super) fn write_down(&mut self, acts: &[(Act, Duration)]) -> Result<(), Error> {
        let owed = self.owed().into_iter().filter(|o| acts.iter().all(|(act, _)| act != o));
        self.record.under_way = acts.iter().map(|(act, _)| act.clone()).chain(owed).collect();
        self.kernel.prepare(acts.len());
        self.record.workers = self.kernel.workers();
        self.record.run = self.kernel.run();
        self.save()
    }

    /// Notes how what is about to be removed is found again, until that is done: nothing else would know that it was
    /// ever there.
    pub(super) fn owe(&mut self, rung: &[Act]) {
        let rescans = rung.iter().filter(|act| matches!(act, Act::Rescan { .. }));
        for rescan in rescans {
            if !self.record.under_way.contains(rescan) {
                self.record.under_way.push(rescan.clone());
            }
        }
    }

    /// What was removed is found again, if that is what this act was for.
    pub(super) fn owe_no_more(&mut self, act: &Act) {
        if matches!(act, Act::Rescan { .. }) {
            // Below another bridge, or on all buses, it is the same function.
            let is_it = |owed: &Act| matches!(owed, Act::Rescan { .. }) && owed.function() == act.function();
            self.record.under_way.retain(|owed| !is_it(owed));
        }
    }

    /// The acts that find again what was removed.
    fn owed(&self) -> Vec<Act> {
        let under_way = self.record.under_way.iter();
        under_way
            .filter(|act| matches!(act, Act::Rescan { .. }))
            .cloned()
            .collect()
    }

    /// Notes that an act is stuck in the kernel: what it touches is left alone from now on.
    pub(super) fn note_wedge(&mut self, act: &Act, result: &Result<(), ActError>) {
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

    /// Nothing is under way any more, and what is owed stays.
    pub(super) fn rest(&mut self, state: State) {
        let owed = self.owed();
        self.record.rest(state);
        self.record.under_way = owed;
    }

    pub(super) fn save(&self) -> Result<(), Error> {
        self.ledger
            .save(&self.record)
            .map_err(|e| Error::io("writing the record", e))
    }

    /// Nothing of this run is left to be written down.
    pub(super) fn close(&self) -> std::io::Result<()> {
        match &self.rest {
            Some(record) => self.ledger.save(record),
            None => self.ledger.remove(self.record.owner),
        }
    }
}
