//! The records on disk, and the lock that whoever acts on the host holds.
//!
//! What a record says is [`crate::model::record`]'s.

use std::cell::Cell;
use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::base::files::{exchange, replace, write};
use crate::base::json;
use crate::base::sets::in_order;
use crate::base::threads;
use crate::base::wait::poll_readable;
use crate::model::record::{Owner, Record, VERSION};
use crate::model::refusal::{Reason, Refusal};

/// Where records and the lock live.
pub const DIR: &str = "/run/gpu-handoff";

/// A file among the records that is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnreadableRecord {
    /// The file.
    file: PathBuf,
    /// What is wrong with it.
    why: String,
}

impl fmt::Display for UnreadableRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the record {} is not used: {}. Hint: bring its GPU home with 'gpu-handoff to_nvidia', which infers the \
             drivers, and remove the file",
            self.file.display(),
            self.why
        )
    }
}

impl UnreadableRecord {
    /// What it is to who may not go on without knowing what it says.
    pub fn refusal(&self) -> Refusal {
        Refusal::from(Reason::Other(self.to_string()))
    }

    /// Whether it is in the place of this owner's record.
    pub fn is_of(&self, owner: Owner) -> bool {
        self.file.file_name().is_some_and(|name| *name == *file_name(owner))
    }
}

/// The directory of records.
#[derive(Clone, Debug)]
pub struct Store {
    pub(crate) dir: PathBuf,
}

/// The host-wide lock, held. Dropping it lets the next run in.
#[derive(Debug)]
pub struct Guard {
    store: Store,
    lock: File,
    /// Programs of ours have it as well, and keep it.
    is_passed_on: Cell<bool>,
}

impl Drop for Guard {
    /// A worker that hangs may have a copy of the descriptor, which alone would keep the lock (flock(2)).
    fn drop(&mut self) {
        if !self.is_passed_on.get() {
            let _ = self.lock.unlock();
        }
    }
}

/// Why the lock was not had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another run held it all the time; the text is what that run wrote of itself.
    #[error("held by {0}")]
    Held(String),
    /// Nobody can write there: on a file system that is read-only, in a directory that is not ours.
    #[error(transparent)]
    NotWritable(io::Error),
    /// The directory or a file in it could not be made or opened.
    #[error(transparent)]
    Io(io::Error),
}

impl From<io::Error> for LockError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => LockError::NotWritable(error),
            _ => LockError::Io(error),
        }
    }
}

impl Store {
    /// Records in this directory; [`DIR`] in a real run.
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        Store { dir: dir.into() }
    }

    /// Waits for the host-wide lock. `who` is what others are told of us.
    ///
    /// # Errors
    /// [`LockError::Held`] after `within`.
    pub fn lock(&self, who: &str, within: Duration) -> Result<Guard, LockError> {
        self.lock_with(who, within, |fd, within| poll_readable(&[fd], within) == [true])
    }

    /// As [`Store::lock`], with a wait of the caller's: it is given a descriptor that becomes readable when the lock is
    /// had, and says whether it has.
    ///
    /// # Errors
    /// [`LockError::Held`] where the wait ends without the lock; the others where the lock's file cannot be made or opened.
    pub fn lock_with(
        &self,
        who: &str,
        within: Duration,
        wait: impl FnOnce(BorrowedFd<'_>, Duration) -> bool,
    ) -> Result<Guard, LockError> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let path = self.dir.join("lock");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path);
        // Where nothing can be written there is still a way home: a lock needs no more than a descriptor (flock(2)).
        let file = file.or_else(|e| match e.kind() {
            io::ErrorKind::ReadOnlyFilesystem => File::open(&path).map_err(|_| e),
            _ => Err(e),
        })?;
        let mut lock = match file.try_lock() {
            Ok(()) => file,
            Err(TryLockError::Error(e)) => return Err(e.into()),
            Err(TryLockError::WouldBlock) => match await_lock(file, within, wait)? {
                Some(lock) => lock,
                None => {
                    let who = fs::read_to_string(&path).unwrap_or_default();
                    return Err(LockError::Held(named(&who)));
                }
            },
        };
        let name = format!("{who} (pid {})\n", std::process::id());
        // Over the old name, whose page it keeps; a name that cannot be written keeps nobody from the lock.
        let _ = lock
            .write_all(name.as_bytes())
            .and_then(|()| lock.set_len(name.len() as u64));
        Ok(Guard {
            store: self.clone(),
            lock,
            is_passed_on: Cell::new(false),
        })
    }

    /// Who holds the lock at this moment, in the words of that run; None: nobody does.
    ///
    /// # Errors
    /// Where the file is there and cannot be read.
    pub fn holder(&self) -> io::Result<Option<String>> {
        let mut file = match File::open(self.dir.join("lock")) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(None), // ours goes with the file
            Err(TryLockError::Error(e)) => Err(e),
            Err(TryLockError::WouldBlock) => {
                let mut who = String::new();
                file.read_to_string(&mut who)?;
                Ok(Some(named(&who)))
            }
        }
    }

    /// All records, and each file that is none.
    ///
    /// # Errors
    /// Where the directory is there and cannot be listed.
    pub fn load(&self) -> io::Result<(Vec<Record>, Vec<UnreadableRecord>)> {
        let (mut records, mut problems) = (Vec::new(), Vec::new());
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((records, problems)),
            Err(e) => return Err(e),
        };
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            match read_record(&path) {
                Ok(record) => records.push(record),
                Err(why) => problems.push(UnreadableRecord { file: path, why }),
            }
        }
        let records = in_order(records.into_iter(), |r: &Record| match r.owner {
            Owner::Vm(vmid) => format!("{:09}", vmid.get()),
            Owner::ByHand(gpu) => gpu.to_string(),
        });
        Ok((records, problems))
    }

    fn file(&self, owner: Owner) -> PathBuf {
        self.dir.join(file_name(owner))
    }
}

/// Waits for a lock that somebody else has; None where it is not had in that time.
///
/// flock(2) has no deadline of its own. A thread that is still waiting when we give up ends with the process; if it gets the lock
/// after all, nobody receives the file and dropping it lets go.
fn await_lock(
    file: File,
    within: Duration,
    wait: impl FnOnce(BorrowedFd<'_>, Duration) -> bool,
) -> io::Result<Option<File>> {
    let (sender, receiver) = threads::channel();
    let (had, tell) = io::pipe()?;
    let is_there = threads::start(move || {
        let locked = file.lock().map(|()| file);
        sender.send(locked);
        drop(tell);
    });
    if !is_there {
        return Ok(None);
    }
    wait(had.as_fd(), within);
    receiver.receive(Duration::ZERO).transpose()
}

/// What the lock's file says of who holds it; nothing yet, for a moment, of a run that has just got it.
fn named(who: &str) -> String {
    match who.trim() {
        "" => "another run".to_owned(),
        who => who.to_owned(),
    }
}

fn file_name(owner: Owner) -> String {
    match owner {
        Owner::Vm(vmid) => format!("vm-{vmid}.json"),
        Owner::ByHand(gpu) => format!("by-hand-{gpu}.json"),
    }
}

/// What is read of a file before it is known to be a record of ours.
#[derive(serde::Deserialize)]
struct Form {
    version: Option<serde_json::Value>,
}

fn read_record(path: &Path) -> Result<Record, String> {
    let bytes = fs::read(path).map_err(|e| e.to_string())?;
    // Twice from the text, not by way of a value: each source that a record is read from has code of its own.
    let form: Form = json::from_slice(&bytes).map_err(|e| e.to_string())?;
    match form.version.as_ref().and_then(serde_json::Value::as_u64) {
        Some(version) if version == u64::from(VERSION) => {}
        Some(version) => return Err(format!("it has version {version}, this program writes {VERSION}")),
        None => return Err("it has no version".to_owned()),
    }
    json::from_slice(&bytes).map_err(|e| e.to_string())
}

/// Room that is kept for records, bytes, in each of two files: a record of sixteen cards has some 30 kB. The first one changes
/// places with a record that had no more room than it needed, the second one from then on with one of its own size.
const RESERVE: usize = 64 << 10;

/// Those files.
const RESERVES: [&str; 2] = ["reserve", "reserve-2"];

/// Where an executor keeps its record.
pub trait Ledger {
    /// Writes a record in the place of the owner's earlier one; readers see the old one or the new one.
    ///
    /// # Errors
    /// Any error of writing; the earlier record is then still there.
    fn save(&self, record: &Record) -> io::Result<()>;

    /// Removes the owner's record: everything is home.
    ///
    /// # Errors
    /// Any error but "not there".
    fn remove(&self, owner: Owner) -> io::Result<()>;
}

impl Guard {
    /// From now on programs that are started have the lock as well, until the last of them has ended (flock(2): it is the open
    /// file's): for what goes on without us, and must not be begun a second time meanwhile.
    ///
    /// # Errors
    /// fcntl's.
    pub fn pass_on(&self) -> io::Result<()> {
        rustix::io::fcntl_setfd(&self.lock, rustix::io::FdFlags::empty())?;
        self.is_passed_on.set(true);
        Ok(())
    }

    /// Keeps room for the records of a handoff, whatever else fills the file system meanwhile.
    ///
    /// # Errors
    /// Where there is not as much room, or nothing can be written.
    pub fn reserve(&self) -> io::Result<()> {
        for path in self.reserves() {
            if fs::metadata(&path).is_ok_and(|meta| meta.len() == RESERVE as u64) {
                continue;
            }
            if let Err(e) = write(&path, &vec![0; RESERVE]) {
                self.give_up_reserves();
                return Err(e);
            }
        }
        Ok(())
    }

    fn reserves(&self) -> [PathBuf; 2] {
        RESERVES.map(|name| self.store.dir.join(name))
    }

    fn give_up_reserves(&self) {
        for path in self.reserves() {
            let _ = fs::remove_file(path);
        }
    }
}

impl Ledger for Guard {
    fn save(&self, record: &Record) -> io::Result<()> {
        let mut text = serde_json::to_vec_pretty(record)?;
        text.push(b'\n');
        let file = self.store.file(record.owner);
        match replace(&file, &text) {
            Err(e) if e.kind() == io::ErrorKind::StorageFull => {
                // What was kept for this moment is used, and is still kept for the next one.
                let mut reserves = self.reserves().into_iter();
                if reserves.any(|reserve| exchange(&reserve, &file, &text).is_ok()) {
                    return Ok(());
                }
                // Too little for this one: it is given up.
                self.give_up_reserves();
                replace(&file, &text).map_err(|_| e)
            }
            result => result,
        }
    }

    fn remove(&self, owner: Owner) -> io::Result<()> {
        match fs::remove_file(self.store.file(owner)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        // Room for nobody's record.
        if self
            .store
            .load()
            .is_ok_and(|(records, problems)| records.is_empty() && problems.is_empty())
        {
            self.give_up_reserves();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::deadlines::Budgets;
    use crate::model::record::Taken;

    use std::fs;
    use std::time::Duration;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(dir.path().join("run"));
        (dir, store)
    }

    fn record() -> Record {
        let mut record = Record::new(Owner::Vm("111".parse().unwrap()), "boot".to_owned(), Budgets::default());
        record.taken.push(Taken::on_nvidia("0000:01:00.0".parse().unwrap()));
        record
    }

    #[test]
    fn a_lock_that_is_passed_on_is_held_until_the_last_program_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(dir.path());
        for passes in [false, true] {
            let guard = store.lock("the first", Duration::from_secs(60)).unwrap();
            if passes {
                guard.pass_on().unwrap();
            }
            let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
            drop(guard);
            let second = store.lock("the second", Duration::from_millis(100));
            assert_eq!(second.is_err(), passes);
            drop(second);
            child.kill().unwrap();
            child.wait().unwrap();
            drop(store.lock("the third", Duration::from_secs(60)).unwrap());
        }
    }

    #[test]
    fn what_is_saved_is_loaded_and_what_is_removed_is_gone() {
        let (_dir, store) = store();
        let guard = store.lock("test", Duration::from_secs(5)).unwrap();
        guard.save(&record()).unwrap();
        assert_eq!(store.load().unwrap().0, [record()]);
        guard.remove(record().owner).unwrap();
        guard.remove(record().owner).unwrap();
        assert!(store.load().unwrap().0.is_empty());
    }

    #[test]
    fn a_second_run_is_told_who_has_the_lock() {
        let (_dir, store) = store();
        let guard = store.lock("VM 111 pre-start", Duration::from_secs(5)).unwrap();
        let error = store.lock("VM 112", Duration::from_millis(50)).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("held by VM 111 pre-start (pid {})", std::process::id())
        );
        drop(guard);
        store.lock("VM 112", Duration::from_secs(5)).unwrap();
    }

    #[test]
    fn where_no_record_can_be_written_there_is_no_lock() {
        // The kernel makes no directory in sysfs, whoever asks.
        if Path::new("/sys/kernel").exists() {
            let error = Store::at("/sys/gpu-handoff").lock("test", Duration::from_secs(5));
            assert!(matches!(error, Err(LockError::NotWritable(_))), "{error:?}");
        }
    }

    #[test]
    fn who_only_reads_is_told_who_has_the_lock_and_does_not_have_it_himself() {
        let (_dir, store) = store();
        assert_eq!(store.holder().unwrap(), None);
        let guard = store.lock("VM 111 pre-start", Duration::from_secs(5)).unwrap();
        let who = format!("VM 111 pre-start (pid {})", std::process::id());
        assert_eq!(store.holder().unwrap(), Some(who));
        fs::write(store.dir.join("lock"), "").unwrap();
        assert_eq!(store.holder().unwrap(), Some("another run".to_owned()));
        drop(guard);
        fs::write(store.dir.join("lock"), "VM 111 pre-start (pid 4711)\n").unwrap();
        assert_eq!(store.holder().unwrap(), None);
        store.lock("VM 112", Duration::from_secs(5)).unwrap();
    }

    #[test]
    fn half_a_record_and_a_later_version_are_named_and_not_used() {
        let (_dir, store) = store();
        let guard = store.lock("test", Duration::from_secs(5)).unwrap();
        fs::write(store.dir.join("vm-100.json"), "{\"version\": 1, ").unwrap();
        fs::write(store.dir.join("vm-1000.json"), "{\"version\": 2}").unwrap();
        guard.save(&record()).unwrap();
        let (records, problems) = store.load().unwrap();
        assert_eq!(records.len(), 1);
        assert_eq!(problems.len(), 2);
        assert!(
            problems
                .iter()
                .any(|p| p.to_string().contains("it has version 2, this program writes 1"))
        );
        let of = |vmid: &str| {
            problems
                .iter()
                .filter(|p| p.is_of(Owner::Vm(vmid.parse().unwrap())))
                .count()
        };
        assert_eq!((of("100"), problems.len()), (1, 2));
    }

    #[test]
    fn no_directory_is_no_record() {
        let (_dir, store) = store();
        assert_eq!(store.load().unwrap(), (Vec::new(), Vec::new()));
    }

    #[test]
    fn room_is_kept_for_records_and_given_up_when_it_is_needed() {
        let (_dir, store) = store();
        let guard = store.lock("test", Duration::from_secs(5)).unwrap();
        guard.reserve().unwrap();
        guard.reserve().unwrap();
        let reserves = RESERVES.map(|name| store.dir.join(name));
        let lengths = || {
            reserves
                .clone()
                .map(|path| fs::metadata(path).map_or(0, |meta| meta.len()))
        };
        assert_eq!(lengths(), [RESERVE as u64; 2]);
        assert_eq!(store.load().unwrap().0, []);
        // Half of one, of a run that was killed, is made whole.
        fs::write(&reserves[1], "0").unwrap();
        guard.reserve().unwrap();
        assert_eq!(lengths(), [RESERVE as u64; 2]);
        // It goes with the last record.
        let mut other = record();
        other.owner = Owner::Vm("112".parse().unwrap());
        guard.save(&record()).unwrap();
        guard.save(&other).unwrap();
        guard.remove(other.owner).unwrap();
        assert_eq!(lengths(), [RESERVE as u64; 2]);
        guard.remove(record().owner).unwrap();
        assert_eq!(lengths(), [0; 2]);
    }

    /// The test itself, on a file system of its own that is full: a call that hangs on a way home is on record, and so is all
    /// that is done after it.
    #[test]
    fn on_a_full_file_system_every_record_is_written_for_which_room_was_kept() {
        const DIR: &str = "GPU_HANDOFF_TEST_FULL";
        if let Some(dir) = std::env::var_os(DIR) {
            return write_records_where_all_is_full(&Store::at(dir));
        }
        let dir = tempfile::tempdir().unwrap();
        let mount = "mount -t tmpfs -o size=256k none \"$1\" && exec \"$2\" --exact \"$3\"";
        let name = "state::store::tests::on_a_full_file_system_every_record_is_written_for_which_room_was_kept";
        let mut words = std::process::Command::new("unshare");
        words.args(["--mount", "sh", "-c", mount, "sh"]).arg(dir.path());
        let said = words
            .arg(std::env::current_exe().unwrap())
            .arg(name)
            .env(DIR, dir.path());
        if !nix::unistd::geteuid().is_root() {
            // Not eprintln!, which a test that passes keeps to itself.
            writeln!(
                io::stderr(),
                "left out, since only root can mount a file system: {name}"
            )
            .unwrap();
            return;
        }
        let said = said.output().unwrap();
        let text = String::from_utf8_lossy(&said.stdout);
        assert!(said.status.success() && text.contains("1 passed"), "{said:?}");
    }

    fn write_records_where_all_is_full(store: &Store) {
        let guard = store.lock("test", Duration::from_secs(5)).unwrap();
        guard.save(&record()).unwrap();
        guard.reserve().unwrap();
        let mut filler = File::create(store.dir.join("filler")).unwrap();
        let mut record = record();
        for n in 0..8 {
            while filler.write_all(&[1; 512]).is_ok() {}
            // Whatever was given up is somebody else's from here on.
            record.wedges.push(crate::model::record::Wedge {
                group: crate::base::process::Group::default(),
                addrs: vec![record.taken[0].addr],
                act: "unbind".to_owned(),
                stack: "a frame of the kernel\n".repeat(200),
                holders: Vec::new(),
            });
            guard.save(&record).map_err(|e| format!("record {n}: {e}")).unwrap();
            assert_eq!(store.load().unwrap(), (vec![record.clone()], Vec::new()), "record {n}");
        }
        guard.remove(record.owner).unwrap();
        assert_eq!(RESERVES.map(|name| store.dir.join(name).exists()), [false; 2]);
    }
}
