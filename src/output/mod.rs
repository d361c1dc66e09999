//! What is shown: results on stdout as text or JSON, messages on stderr and in the journal.
//!
//! Texts are made from values; nothing here looks anything up.

pub mod check; // whether the host is ready
pub(crate) mod holders; // who uses GPUs
pub(crate) mod history; // past handoffs
pub mod journal; // the log
pub mod plan; // plans and entries
pub mod prepare; // what prepare would change
pub mod print; // results, to a pipe that may be closed
pub mod status; // what is
pub(crate) mod stderr; // a line, if somebody takes it
