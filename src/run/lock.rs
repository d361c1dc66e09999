//! The host-wide lock: waited for, by some only as long as they need it.
//!
//! Not here: the file that is locked ([`crate::state::store`]), and what is done with what killed runs have left
//! ([`crate::run::leftovers`]).

use std::os::fd::BorrowedFd;
use std::time::Duration;

use tracing::info;

use crate::execute::kernel::Kernel;
use crate::model::error::Error;
use crate::model::record::{Owner, Record};
use crate::model::refusal::{Reason, Refusal};
use crate::run::leftovers::await_leftovers;
use crate::run::session::Session;
use crate::state::store::{DIR, Guard, Ledger, LockError};

/// How often who waits for the lock reads the records again, where these may spare it: what is written there is short, and a second
/// of somebody's start is, too.
const LOOKS_EVERY: Duration = Duration::from_secs(1);

impl Session {
    /// The host-wide lock. `who` is what others are told of us while we have it.
    ///
    /// # Errors
    /// [`Error::Overdue`] with who has it.
    pub fn lock(&mut self, who: &str, end: Duration) -> Result<Guard, Error> {
        let left = end.saturating_sub(self.kernel.now()).min(self.budgets.lock);
        let kernel = &mut self.kernel;
        let wait = |fd: BorrowedFd<'_>, within| kernel.wait(&[fd], within) == [true];
        let locked = self.store.lock_with(who, left, wait);
        self.had(locked, left, end)
    }

    /// The same, but for the owner of a record of which this is so, now or while we wait: then there is nothing to do with it.
    ///
    /// # Errors
    /// As [`Session::lock`], and where the records cannot be read.
    pub(crate) fn lock_unless(
        &mut self,
        who: &str,
        end: Duration,
        is_so: impl Fn(&Record) -> bool,
    ) -> Result<Result<Guard, Owner>, Error> {
        let found = |session: &Session| -> Result<Option<Owner>, Error> {
            let (records, _) = session.load(None)?;
            Ok(records.iter().find(|record| is_so(record)).map(|record| record.owner))
        };
        let mut owner = found(self)?;
        if let Some(owner) = owner {
            return Ok(Err(owner));
        }
        let left = end.saturating_sub(self.kernel.now()).min(self.budgets.lock);
        let until = self.kernel.now() + left;
        let locked = self.store.clone().lock_with(who, left, |fd, _| {
            loop {
                let left = until.saturating_sub(self.kernel.now());
                let is_had = self.kernel.wait(&[fd], left.min(LOOKS_EVERY)) == [true];
                if is_had || left <= LOOKS_EVERY || self.kernel.interrupted().is_some() {
                    return is_had;
                }
                owner = found(self).unwrap_or_default();
                if owner.is_some() {
                    return false;
                }
            }
        });
        match (locked, owner) {
            (Err(LockError::Held(_)), Some(owner)) => Ok(Err(owner)),
            (locked, _) => self.had(locked, left, end).map(Ok),
        }
    }

    /// The lock, when what runs that were killed have left is over. `left`: how long it was waited for.
    fn had(&mut self, locked: Result<Guard, LockError>, left: Duration, end: Duration) -> Result<Guard, Error> {
        self.not_interrupted()?;
        let guard = locked.map_err(|e| not_locked(e, left))?;
        self.forget_other_boots(&guard)?;
        let records = self.store.load().map_err(|e| Error::io("reading the records", e))?.0;
        for record in &records {
            let end = end.min(self.kernel.now() + self.budgets.lock);
            await_leftovers(&mut self.kernel, &self.root, &guard, record, end)?;
        }
        Ok(guard)
    }

    /// A reboot gives every device back to its own driver: what was written before one is not true any more.
    fn forget_other_boots(&self, guard: &Guard) -> Result<(), Error> {
        let now = self.boot()?;
        let records = self.store.load().map_err(|e| Error::io("reading the records", e))?.0;
        for record in records.iter().filter(|r| r.boot_id != now) {
            info!("{}: the record of an earlier boot is forgotten", record.owner);
            guard
                .remove(record.owner)
                .map_err(|e| Error::io("removing a record of an earlier boot", e))?;
        }
        Ok(())
    }
}

/// What a run that did not get the lock says. `within` is how long it waited.
pub(crate) fn not_locked(error: LockError, within: Duration) -> Error {
    match error {
        LockError::Held(by) => Error::Overdue {
            what: format!("another run did not finish ({by})"),
            within,
            hint: "wait for it, or see what holds it up with 'gpu-handoff status'".to_owned(),
        },
        LockError::NotWritable(e) => Refusal::from(Reason::Other(format!(
            "nothing can be written to {DIR} ({e}), and without a record there is no way home. Hint: 'findmnt -T {DIR}' \
             shows what is mounted there: make it writable, as by 'mount -o remount,rw /run', or see 'ls -ld {DIR}' for \
             whose it is"
        )))
        .into(),
        LockError::Io(e) => Error::io(format!("locking {DIR}"), e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::io;

    use crate::base::deadlines::Budgets;
    use crate::base::process::{Group, Process, boot_id};
    use crate::base::root::Root;
    use crate::base::threads;
    use crate::model::act::Act;
    use crate::model::error::Exit;
    use crate::model::record::Run;
    use crate::state::store::Store;

    /// As the run that has the lock comes to an act that waits for who waits for that lock.
    #[test]
    fn who_waits_for_the_lock_is_spared_that_as_soon_as_the_records_say_so() {
        let is_so = |record: &Record| record.at_work.is_some() && record.under_way == [Act::load("nvidia_uvm")];
        for (comes_to, lets_go, expected) in [
            (Some("nvidia_uvm"), false, "spared"),
            (Some("nvidia_drm"), true, "had"),
            (None, true, "had"),
            (None, false, "late"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let us = Process {
                pid: std::process::id(),
                started: 4700,
            };
            let proc = dir.path().join(format!("proc/{}", us.pid));
            std::fs::create_dir_all(&proc).unwrap();
            let (pid, started) = (us.pid, us.started);
            let stat = format!("{pid} (gpu-handoff) S 1 {pid} {pid} 0 -1 0 1 2 3 4 5 6 7 8 20 0 1 0 {started} 1000 10");
            std::fs::write(proc.join("stat"), stat).unwrap();
            let mut session = Session {
                root: Root::at(dir.path()),
                store: Store::at(dir.path().join("run")),
                ..Session::real()
            };
            session.budgets.lock = LOOKS_EVERY * if expected == "late" { 2 } else { 30 };
            let owner = Owner::Vm("111".parse().unwrap());
            let mut record = Record::new(owner, boot_id().unwrap(), Budgets::default());
            record.run = Some(Run {
                process: us,
                since_ms: 0,
            });
            record.workers = vec![Group {
                number: 4_000_001,
                started: Some(4701),
            }];
            record.under_way = vec![Act::load("nvidia")];
            let guard = session.store.lock("VM 111 post-stop", Duration::from_secs(5)).unwrap();
            guard.save(&record).unwrap();
            let (done, is_done) = threads::channel::<()>();
            let run = std::thread::spawn(move || {
                std::thread::sleep(LOOKS_EVERY / 4);
                if let Some(module) = comes_to {
                    record.under_way = vec![Act::load(module)];
                    guard.save(&record).unwrap();
                }
                if !lets_go {
                    is_done.receive(Duration::from_secs(60));
                }
            });
            let (start, end) = (session.kernel.now(), session.kernel.now() + Duration::from_secs(600));
            let came = match session.lock_unless("container 104 pre-start", end, is_so) {
                Ok(Ok(_)) => "had",
                Ok(Err(of)) if of == owner => "spared",
                Err(Error::Overdue { .. }) => "late",
                other => panic!("{other:?}"),
            };
            let took = session.kernel.now() - start;
            assert_eq!(came, expected, "{comes_to:?} {lets_go}");
            assert!(took < LOOKS_EVERY * 10, "{expected}: {took:?}");
            done.send(());
            run.join().unwrap();
            // Where it is so already nobody waits, whoever has the lock.
            drop(session.lock("test", end).unwrap());
        }
    }

    #[test]
    fn who_cannot_write_a_record_is_refused_with_a_remedy_and_who_waited_in_vain_is_late() {
        let os = |number| LockError::from(io::Error::from_raw_os_error(number));
        let (erofs, eacces, enospc) = (30, 13, 28);
        for (error, exit, said) in [
            (
                os(erofs),
                Exit::Refused,
                "nothing can be written to /run/gpu-handoff (Read-only file system (os error 30)), and without a record \
                 there is no way home. Hint: 'findmnt -T /run/gpu-handoff' shows",
            ),
            (
                os(eacces),
                Exit::Refused,
                "nothing can be written to /run/gpu-handoff (Permission denied (os error 13)), and",
            ),
            (os(enospc), Exit::Failed, "locking /run/gpu-handoff"),
            (
                LockError::Held("VM 111 pre-start (pid 7)".to_owned()),
                Exit::Overdue,
                "another run did not finish (VM 111 pre-start (pid 7)) within 5 s; nothing was changed. Hint: wait",
            ),
        ] {
            let error = not_locked(error, Duration::from_secs(5));
            assert_eq!(error.exit(), exit, "{error}");
            assert!(error.to_string().starts_with(said), "{error}");
        }
    }
}
