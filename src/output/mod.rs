//! What is shown: results on stdout as text or JSON, messages on stderr and in the journal.
//!
//! Texts are made from values; nothing here looks anything up.

pub mod attach; // what attach and detach would do
pub mod check; // whether the host is ready
pub mod card_state; // whose a card is, in a word
pub mod groups; // IOMMU groups
pub mod holders; // who uses GPUs
pub mod history; // past handoffs
pub mod journal; // the log
pub mod plan; // plans and entries
pub mod prepare; // what prepare would change
pub mod print; // results, to a pipe that may be closed
pub mod status; // what is
pub mod status_table; // the same as a table
pub mod style; // colours, and the width of a line
pub(crate) mod stderr; // a line, if somebody takes it
