//! The host's configuration made ready for handoffs, and given back as it was.
//!
//! ```text
//! files -> Facts -> Wanted -> Change (before, after) -> journal -> files, commands
//!          read     rules     edit, each read once more             and back, from the journal alone
//! ```
//!
//! Only files that count at the next boot are touched; no device is. What fights a handoff is decided in
//! [`crate::check::fights`]. What is not understood is refused before anything is written, and what is done is in the
//! journal before it is.

pub mod apply; // changes written down, made, and their commands run
pub mod changes; // what is wanted, as each file before and after
mod diff; // two texts, shown as what differs
mod edit; // a text with some of its lines or words changed
pub mod effects; // the narrow interface to files and programs
pub mod facts; // what is read for it
pub mod journal; // what was changed, kept on disk
pub mod revert; // the way back
mod take_out; // only what is ours out of what somebody has edited since
pub mod wanted; // the rules
