//! The narrow interface through which a run touches the host: look, act, check, wait.
//!
//! One implementation is Linux ([`crate::execute::linux::Linux`]); tests bring a kernel of their own. Everything here
//! has a deadline and returns by then, whether the kernel has answered or not.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::pci::PciAddr;
use crate::base::process::Group;
use crate::host::functions::Details;
use crate::host::modules::{Loadable, Problem};
use crate::host::snapshot::Snapshot;
use crate::host::units::{Facts, Unit};
use crate::model::act::Act;
use crate::model::record::Run;

/// How long what is under way may still take after a signal asked us to end. pvedaemon's tasks get five seconds between
/// TERM and KILL (pve-common, PVE/RESTEnvironment.pm), and the record has to be written too.
pub const AFTER_SIGNAL: Duration = Duration::from_secs(4);

/// Why an act did not lead to what it should have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ActError {
    /// The kernel or a program said no.
    #[error("{0}")]
    Failed(String),
    /// A module could not be loaded, and not for want of a device that lets itself be bound: no reset of one would help.
    #[error("it cannot be loaded: {0}")]
    CannotLoad(Problem),
    /// The act returned, but its post-condition does not hold.
    #[error("no error, and yet {observed} (expected: {expected})")]
    NotReached {
        /// What should be true.
        expected: String,
        /// What was read back.
        observed: String,
    },
    /// It was not begun.
    #[error("{0}")]
    NotBegun(String),
    /// No answer within the deadline. `stuck` is the process group left behind in the kernel; None if all of it
    /// could be ended, so that nothing goes on.
    #[error("no answer within {} ms", .within.as_millis())]
    Overdue {
        /// How long was waited for it.
        within: Duration,
        /// The process group that is still in the kernel.
        stuck: Option<Group>,
    },
    /// A signal asked us to end, and the act did not answer in the time that was left. It goes on in the process group,
    /// which ends after it.
    #[error("a signal asked us to end before it answered; it is left to process group {group}")]
    Interrupted {
        /// What the next run has to wait for.
        group: Group,
    },
}

/// How an act went, with what is said and kept of it.
#[derive(Clone, Debug)]
pub struct Acted {
    /// Whether it led to what it should have.
    pub result: Result<(), ActError>,
    /// As seen by the run, to which the worker's part counts too.
    pub took: Duration,
    /// Of a look for holders, when its scan was over; of a call that a holder would hold up, when it was about to be made.
    /// On one clock for all acts; only differences mean anything. None where there was no such moment.
    pub moment: Option<Duration>,
    /// Processes that have ended for it.
    pub ended: Vec<i32>,
}

/// The host, as far as a run may touch it: to look, to act and to wait, never longer than asked for.
pub trait Kernel {
    /// Time since some fixed moment; only differences mean anything.
    fn now(&self) -> Duration;

    /// Gets ready for so many acts at once, so that [`Kernel::workers`] knows who will do them.
    fn prepare(&mut self, _acts: usize) {}

    /// The process groups that carry out acts, each of which may outlive this process by one act.
    fn workers(&self) -> Vec<Group> {
        Vec::new()
    }

    /// This run, as of now: what others who read the record know it by.
    fn run(&self) -> Option<Run> {
        None
    }

    /// When a signal asked us to end, on our clock.
    fn interrupted(&mut self) -> Option<Duration> {
        None
    }

    /// What can be said of a process group that is stuck: where in the kernel, and who uses these functions.
    fn autopsy(&mut self, _group: Group, _addrs: &[PciAddr]) -> (String, Vec<String>) {
        (String::new(), Vec::new())
    }

    /// Reads a snapshot without details, leaving the attributes of `stuck` functions alone.
    ///
    /// # Errors
    /// [`ActError`] where the host could not be read, or not in time.
    fn look(&mut self, stuck: &[PciAddr], within: Duration) -> Result<Snapshot, ActError>;

    /// Reads the details of functions, those of each card by themselves and all at once: what holds up one holds up no
    /// other. Returns for each card, in their order, what came of it; a function that has gone meanwhile has no details.
    fn details(&mut self, cards: &[Vec<PciAddr>], within: Duration) -> Vec<Result<Vec<Details>, ActError>>;

    /// Asks whether modules can be loaded.
    ///
    /// # Errors
    /// [`ActError`] where there was no answer, or not in time.
    fn loadable(&mut self, names: &[String], within: Duration) -> Result<Vec<Loadable>, ActError>;

    /// Asks systemd for units, those inside containers through Proxmox's own means.
    ///
    /// # Errors
    /// [`ActError`] where there was no answer, or not in time.
    fn units(&mut self, _units: &[Unit], _within: Duration) -> Result<Vec<Facts>, ActError> {
        Ok(Vec::new())
    }

    /// The same of units of several systemds and programs, those of each by themselves and all at once: a container whose systemd
    /// does not answer holds up no other. Returns what came of each place, in their order.
    fn units_of(&mut self, places: &[&[Unit]], within: Duration) -> Vec<Result<Vec<Facts>, ActError>> {
        places.iter().map(|units| self.units(units, within)).collect()
    }

    /// Whether acts from now on give back what was taken: these are finished as far as a signal leaves time for it, and others that
    /// only wait are broken off by one.
    fn gives_back(&mut self, _does: bool) {}

    /// Carries out an act and reads its post-condition back.
    ///
    /// # Errors
    /// [`ActError`]: it was refused, led to something else, or has not answered in time.
    fn act(&mut self, act: &Act, within: Duration) -> Result<(), ActError>;

    /// Carries out acts that do not depend on each other, at once where it can. Returns for each, in their order, how it
    /// went.
    fn act_all(&mut self, acts: &[(Act, Duration)]) -> Vec<Acted> {
        let mut results = Vec::new();
        for (act, within) in acts {
            let start = self.now();
            let result = self.act(act, *within);
            results.push(Acted {
                result,
                took: self.now().saturating_sub(start),
                moment: None,
                ended: Vec::new(),
            });
        }
        results
    }

    /// Has the gate open, if it is shut still ([`crate::execute::gate`]), without waiting for anything.
    fn let_gate_go(&mut self) {}

    /// Whether a gate that was shut is so still: who has it shut may have been killed, or had it for too long.
    fn gate_holds(&mut self) -> bool {
        true
    }

    /// Waits until one of these processes has ended. Returns whether one has.
    fn await_exit(&mut self, pids: &[i32], within: Duration) -> bool;
}
