//! The narrow interface through which a run touches the host: look, act, check, wait.
//!
//! One implementation is Linux ([`crate::worker::Linux`]); tests bring a kernel of their own. Everything here
//! has a deadline and returns by then, whether the kernel has answered or not.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::inventory::Snapshot;
use crate::loadable::Loadable;
use crate::pci::PciAddr;
use crate::step::Act;

/// Why an act did not lead to what it should have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ActError {
    /// The kernel or a program said no.
    #[error("{0}")]
    Failed(String),
    /// The act returned, but its post-condition does not hold.
    #[error("it returned without an error, but {observed} where {expected} was expected")]
    NotReached {
        /// What should be true.
        expected: String,
        /// What was read back.
        observed: String,
    },
    /// No answer within the deadline. `stuck` is the process group left behind in the kernel; None if all of it
    /// could be ended, so that nothing goes on.
    #[error("no answer within {} ms", .within.as_millis())]
    Overdue {
        /// The deadline.
        within: Duration,
        /// The process group that is still in the kernel.
        stuck: Option<u32>,
    },
}

/// The host, as far as a run may touch it.
pub trait Kernel {
    /// Time since some fixed moment; only differences mean anything.
    fn now(&self) -> Duration;

    /// The process group that carries out acts now, which may outlive this process by one act.
    fn worker(&self) -> Option<u32> {
        None
    }

    /// Reads a snapshot, leaving the attributes of `stuck` functions alone.
    ///
    /// # Errors
    /// [`ActError`] where the host could not be read, or not in time.
    fn look(&mut self, stuck: &[PciAddr], within: Duration) -> Result<Snapshot, ActError>;

    /// Asks whether modules can be loaded.
    ///
    /// # Errors
    /// [`ActError`] where there was no answer, or not in time.
    fn loadable(&mut self, names: &[String], within: Duration) -> Result<Vec<Loadable>, ActError>;

    /// Carries out an act and reads its post-condition back.
    ///
    /// # Errors
    /// [`ActError`], one of three ways in which an act can go wrong.
    fn act(&mut self, act: &Act, within: Duration) -> Result<(), ActError>;

    /// Waits until one of these processes has ended. Returns whether one has.
    fn await_exit(&mut self, pids: &[i32], within: Duration) -> bool;
}
