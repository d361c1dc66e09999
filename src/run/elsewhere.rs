//! A session whose host is looked at for somebody elsewhere, and one on such a host, which is a tree of files then.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use crate::base::process;
use crate::base::recording::{self, Entries};
use crate::base::root::Root;
use crate::base::sets::IntoSet as _;
use crate::base::threads;
use crate::execute::linux::Linux;
use crate::proxmox::files::{self, Locks};
use crate::report::keep;
use crate::run::session::Session;
use crate::state::store::{DIR, Store};

/// How long files of the host are waited for that this process reads itself. They are in memory, but for some on the disk that
/// our own settings are on.
const WITHIN: Duration = Duration::from_secs(10);

/// What comes of a look at files, if it comes in time: on a file system that hangs it never does. Who looks in vain ends with
/// us.
pub(crate) fn in_time<T: Send + 'static>(look: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    let (sender, receiver) = threads::channel();
    if !threads::start(move || _ = sender.send(look())) {
        return Err("no thread could be started".to_owned());
    }
    let late = || format!("it could not be read within {} s", WITHIN.as_secs());
    receiver.receive(WITHIN).ok_or_else(late)
}

impl Session {
    /// The running host; what is looked at is kept.
    pub fn recording() -> Self {
        Session {
            root: Root::real().recording(),
            ..Session::with(Linux::recording())
        }
    }

    /// A host that is a tree of files: it can be looked at, and nothing is done to it.
    pub fn on(tree: Root) -> Self {
        Session {
            store: Store::at(tree.path(DIR)),
            root: tree.clone(),
            ..Session::with(Linux::on(tree))
        }
    }

    /// What was looked at since this was asked the last time, as far as it may leave the host. What could not be had is said.
    pub fn recorded(&mut self, missing: &mut Vec<String>) -> Entries {
        let (mut entries, lost) = self.kernel.recorded();
        missing.extend(lost);
        let root = self.root.clone();
        match in_time(move || root.recorded()) {
            Ok(more) => recording::add(&mut entries, keep::kept(more)),
            Err(why) => missing.push(format!("what the report itself has looked at: {why}")),
        }
        entries
    }

    /// Who has the host-wide lock, in words; of a tree what it says.
    pub(super) fn lock_holder(&self) -> io::Result<Option<String>> {
        let told = Locks::told(&self.root).map(|locks| locks.run);
        told.map_or_else(|| self.store.holder(), Ok)
    }

    /// Tells a tree that is made of this host what no file of it says: which moment it is of, who lives of the processes that
    /// are on record, and who has which lock.
    pub(crate) fn tell_who_lives(&mut self) {
        let (records, _) = self.store.load().unwrap_or_default();
        let mut locks = Locks {
            run: self.store.holder().ok().flatten(),
            ..Locks::told(&self.root).unwrap_or_default()
        };
        for vmid in self.vms().unwrap_or_default() {
            if let Ok(Some(holders)) = files::vm_lock(&self.root, vmid) {
                locks.vms.insert(vmid, holders);
            }
        }
        let mut pids: BTreeSet<u32> = locks.vms.values().flatten().copied().into_set();
        for record in &records {
            let groups = record.groups().into_iter();
            let alive = groups.flat_map(|group| group.alive(&self.root));
            pids.extend(alive.filter_map(|pid| u32::try_from(pid).ok()));
            let known = [record.run.map(|run| run.process), record.caller, record.qemu];
            pids.extend(known.into_iter().flatten().map(|process| process.pid));
        }
        process::tell(&self.root, pids);
        locks.tell(&self.root);
    }
}
