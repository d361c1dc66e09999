//! What every run does and has at hand: the lock, the records, the settings, a snapshot; then plan, carry out, say.

pub mod afterwards; // people and monitoring hear of it
pub(crate) mod elsewhere; // a host that is looked at for somebody elsewhere, or is a tree of files
mod handoff; // plan, carry out, say
pub mod owners; // whose is what is wanted
mod leftovers; // what a run that was killed has left
pub(crate) mod lock; // waited for, or not needed any more
pub mod look; // a snapshot, and whether calls of others last
pub mod session; // what every run has at hand
pub(crate) mod waits; // that QEMU lets go
