//! Records in memory: what is on file at any moment, and writing that fails, or in which a run is killed, when a script says
//! so.

use std::io;
use std::panic::resume_unwind;
use std::sync::Mutex;

use gpu_handoff::model::record::{Owner, Record};
use gpu_handoff::state::store::Ledger;

use super::effects::Killed;

/// The records.
#[derive(Debug, Default)]
pub struct MemLedger {
    inner: Mutex<Inner>,
}

#[derive(Clone, Debug, Default)]
struct Inner {
    records: Vec<Record>,
    saves: usize,
    fails_at: Option<usize>,
    /// It does not end.
    lasts: bool,
    /// It has failed the last time.
    behind: bool,
    /// What was written or removed so far, and where a run is killed: before that one is done, or after it.
    writes: usize,
    kill: Option<(usize, bool)>,
}

impl Inner {
    fn killed(&mut self, after: bool) {
        if self.kill == Some((self.writes, after)) {
            self.kill = None;
            resume_unwind(Box::new(Killed));
        }
        self.writes += usize::from(after);
    }
}

impl MemLedger {
    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        // A run that is killed in a test unwinds, and leaves the lock as it would leave the file.
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The same records again, which from here on are others, on a file system that is as full.
    pub fn copy(&self) -> Self {
        MemLedger {
            inner: Mutex::new(self.inner().clone()),
        }
    }

    /// What is on file.
    pub fn records(&self) -> Vec<Record> {
        self.inner().records.clone()
    }

    /// Puts a record on file, as if another run had.
    pub fn put(&self, record: Record) {
        let mut inner = self.inner();
        inner.records.retain(|r| r.owner != record.owner);
        inner.records.push(record);
    }

    /// Looks at an owner's record, if it is on file.
    pub fn with<T>(&self, owner: Owner, look: impl FnOnce(&Record) -> T) -> Option<T> {
        let inner = self.inner();
        inner.records.iter().find(|r| r.owner == owner).map(look)
    }

    /// The Nth time from now on, counted from 0, a record cannot be written.
    pub fn fails_at(&self, n: usize) {
        let mut inner = self.inner();
        inner.fails_at = Some(inner.saves + n);
    }

    /// From the Nth time on, counted from 0, no record can be written: the file system is full.
    pub fn fails_from(&self, n: usize) {
        self.fails_at(n);
        self.inner().lasts = true;
    }

    /// A run is killed at the Nth time from now on, counted from 0, that a record is written or removed.
    pub fn killed_at(&self, n: usize, after: bool) {
        let mut inner = self.inner();
        inner.kill = Some((inner.writes + n, after));
    }

    /// Whether the last record could not be written: what is on file is older.
    pub fn is_behind(&self) -> bool {
        self.inner().behind
    }

    /// Forgets what a script had in mind.
    pub fn well(&self) {
        let mut inner = self.inner();
        inner.fails_at = None;
        inner.lasts = false;
        inner.kill = None;
    }
}

impl Ledger for MemLedger {
    fn save(&self, record: &Record) -> io::Result<()> {
        let mut inner = self.inner();
        inner.killed(false);
        inner.saves += 1;
        let lasts = inner.lasts;
        inner.behind = inner
            .fails_at
            .is_some_and(|n| inner.saves == n + 1 || (lasts && inner.saves > n));
        if inner.behind {
            return Err(io::ErrorKind::StorageFull.into());
        }
        match inner.records.iter_mut().find(|r| r.owner == record.owner) {
            Some(place) => place.clone_from(record),
            None => inner.records.push(record.clone()),
        }
        inner.killed(true);
        Ok(())
    }

    fn remove(&self, owner: Owner) -> io::Result<()> {
        let mut inner = self.inner();
        inner.killed(false);
        inner.records.retain(|r| r.owner != owner);
        inner.killed(true);
        Ok(())
    }
}
