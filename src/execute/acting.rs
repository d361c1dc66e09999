//! Acting, and writing down before each act what will be done: whoever comes after a run that was killed knows what it was at.

use std::time::Duration;

use crate::execute::executor::Executor;
use crate::execute::kernel::ActError;
use crate::execute::lines::say;
use crate::model::act::Act;
use crate::model::error::Error;
use crate::model::record::{State, Wedge};

impl Executor<'_> {
    pub(super) fn record_and_act(
        &mut self,
        acts: &[(Act, Duration)],
        prefixes: &[String],
    ) -> Vec<Result<(), ActError>> {
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
    pub(super) fn gap(&mut self, act: &Act, moment: Option<Duration>) -> Option<Duration> {
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
    pub(super) fn owe(&mut self, rung: &[Act]) {
        let rescans = rung.iter().filter(|act| matches!(act, Act::Rescan { .. }));
        for rescan in rescans {
            if !self.record.under_way.contains(rescan) {
                self.record.under_way.push(rescan.clone());
            }
        }
    }

    pub(super) fn owed(&self) -> Vec<Act> {
        let under_way = self.record.under_way.iter();
        under_way
            .filter(|act| matches!(act, Act::Rescan { .. }))
            .cloned()
            .collect()
    }

    /// Nothing is under way any more, and what is owed stays.
    pub(super) fn rest(&mut self, state: State) {
        let owed = self.owed();
        self.record.rest(state);
        self.record.under_way = owed;
    }

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

    /// Whether an act would run into a call that is stuck: on the same function, or through a module, whose drivers
    /// try every device and wait for its lock (linux, drivers/base/dd.c, __driver_attach).
    pub(super) fn barred(&self, act: &Act) -> bool {
        match act {
            Act::LoadModule { .. } | Act::UnloadModule { .. } | Act::Remove { .. } | Act::Rescan { .. } => {
                !self.record.wedges.is_empty()
            }
            act => act.function().is_some_and(|a| self.record.stuck().any(|s| s == a)),
        }
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
