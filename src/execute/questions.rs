//! What else workers are asked, beyond what every kernel of [`crate::execute::kernel`] is.

use std::time::Duration;

use tracing::debug;

use crate::base::recording::{self, Entries};
use crate::base::vmid::VmId;
use crate::check::read::Part;
use crate::check::texts::Texts;
use crate::execute::kernel::ActError;
use crate::execute::linux::{Linux, REMEMBER_WITHIN, another_question};
use crate::execute::stale_nodes::{self, StaleNode};
use crate::execute::worker::{Answer, Question};
use crate::host::pci_ids::{Ids, Named};
use crate::proxmox::files::{Found, Wanted};
use crate::state::history::Handoff;
use crate::state::stopped::Stopped;

impl Linux {
    /// What was looked at since this was asked the last time, as far as it may leave the host; and what of it is lost with the
    /// workers that have given no answer, a sentence each.
    pub fn recorded(&mut self) -> (Entries, Vec<String>) {
        let asked = if self.tree.is_some() { 1 } else { self.idle.len() };
        let requests = (0..asked).map(|_| (Question::Recorded, REMEMBER_WITHIN)).collect();
        let mut entries = Entries::new();
        for (answer, _) in self.ask_all(requests) {
            if let Ok(Answer::Recorded(more)) = answer {
                recording::add(&mut entries, more);
            }
        }
        (entries, std::mem::take(&mut self.lost))
    }

    /// Reads files of Proxmox's.
    ///
    /// # Errors
    /// [`ActError`] where there was no answer, or not in time.
    pub fn find(&mut self, wanted: Wanted, within: Duration) -> Result<Found, ActError> {
        match self.ask(Question::Find(wanted), within)? {
            Answer::Found(found) => Ok(found),
            _ => Err(another_question()),
        }
    }

    /// Reads files that the checks look at.
    ///
    /// # Errors
    /// [`ActError`] where there was no answer, or not in time.
    pub fn texts(&mut self, part: Part, within: Duration) -> Result<Texts, ActError> {
        match self.ask(Question::Check(part), within)? {
            Answer::Texts(texts) => Ok(*texts),
            _ => Err(another_question()),
        }
    }

    /// Adds an entry to the history.
    ///
    /// # Errors
    /// Why it has not got it.
    pub fn remember(&mut self, entry: Handoff) -> Result<(), String> {
        self.have_kept(Question::Remember(entry))
    }

    /// Keeps this of what is stopped in a boot.
    ///
    /// # Errors
    /// Why it is not kept.
    pub fn keep_stopped(&mut self, boot: String, text: String) -> Result<(), String> {
        self.have_kept(Question::KeepStopped(boot, text))
    }

    /// What was stopped in each boot.
    ///
    /// # Errors
    /// Why that is not known.
    pub fn stopped(&mut self) -> Result<Stopped, String> {
        match self.ask(Question::Stopped, REMEMBER_WITHIN) {
            Ok(Answer::Stopped(stopped)) => Ok(stopped),
            Ok(_) => Err(another_question().to_string()),
            Err(e) => Err(e.to_string()),
        }
    }

    /// Forgets what was stopped in the boots before this one.
    ///
    /// # Errors
    /// Why it is remembered still.
    pub fn forget_stopped(&mut self, boot: String) -> Result<(), String> {
        self.have_kept(Question::ForgetStopped(boot))
    }

    /// Has the cluster's manager look after a container again, if it ignores it.
    ///
    /// # Errors
    /// Why it does not.
    pub fn give_to_ha(&mut self, ctid: VmId, within: Duration) -> Result<(), String> {
        self.have_done(Question::GiveToHa(ctid), within)
    }

    fn have_kept(&mut self, what: Question) -> Result<(), String> {
        self.have_done(what, REMEMBER_WITHIN)
    }

    fn have_done(&mut self, what: Question, within: Duration) -> Result<(), String> {
        match self.ask(what, within) {
            Ok(Answer::Remembered(result)) => result,
            Ok(_) => Err(another_question().to_string()),
            Err(e) => Err(e.to_string()),
        }
    }

    /// Past handoffs, the oldest first.
    ///
    /// # Errors
    /// Why they cannot be read.
    pub fn past(&mut self) -> Result<Vec<Handoff>, String> {
        match self.ask(Question::Past, REMEMBER_WITHIN) {
            Ok(Answer::Past(past)) => past,
            Ok(_) => Err(another_question().to_string()),
            Err(e) => Err(format!("the history: {e}")),
        }
    }

    /// What devices are called; nothing, where the list of names is not there or does not let itself be read.
    pub fn names(&mut self, ids: &[Ids]) -> Vec<Named> {
        match self.ask(Question::Names(ids.to_vec()), REMEMBER_WITHIN) {
            Ok(Answer::Names(names)) => names,
            Ok(_) => Vec::new(),
            Err(why) => {
                debug!("the list of PCI ids: {why}");
                Vec::new()
            }
        }
    }

    /// Has the host's nodes of NVIDIA's made; which of them cannot be had. `load`: the driver may be loaded for that.
    ///
    /// # Errors
    /// [`ActError`] where there was no answer, or not in time.
    pub fn make_nodes(&mut self, paths: &[String], load: bool, within: Duration) -> Result<Vec<String>, ActError> {
        let paths = paths.to_vec();
        match self.ask(Question::MakeNodes { paths, load }, within)? {
            Answer::NotMade(paths) => Ok(paths),
            _ => Err(another_question()),
        }
    }

    /// Nodes inside containers that are another device's now; none where they cannot be looked into in that time.
    pub fn stale_nodes(&mut self, wanted: stale_nodes::Wanted, within: Duration) -> Vec<StaleNode> {
        match self.ask(Question::StaleNodes(wanted), within) {
            Ok(Answer::StaleNodes(nodes)) => nodes,
            Ok(_) => Vec::new(),
            Err(why) => {
                debug!("containers could not be looked into: {why}");
                Vec::new()
            }
        }
    }
}
