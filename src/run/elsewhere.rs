//! A session whose host is looked at for somebody elsewhere, and one on such a host, which is a tree of files then.

use crate::base::recording::{self, Entries};
use crate::base::root::Root;
use crate::execute::linux::Linux;
use crate::report::keep;
use crate::run::session::Session;
use crate::state::store::{DIR, Store};

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

    /// What was looked at since this was asked the last time, as far as it may leave the host.
    pub fn recorded(&mut self) -> Entries {
        let mut entries = self.kernel.recorded();
        recording::add(&mut entries, keep::kept(self.root.recorded()));
        entries
    }
}
