//! Whether this host is ready for handoffs: a static table of checks, each a pure look at facts that were read before.
//!
//! ```text
//! read  -> Facts -> every row of the table -> Report
//! ```
//!
//! Not here: what keeps one handoff from happening now (a refusal, [`crate::plan`]), how a report is shown
//! ([`crate::output`]), and any change to the host. What is found is told with file and line and with what mends it; what
//! could not be looked at is another answer than "nothing found".

pub mod fights; // which lines of the configuration fight a handoff; prepare asks the same
pub mod finding; // what a check says
