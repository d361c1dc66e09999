//! Steps become acts: one after the other, each written down before and read back after, undone in reverse where one fails.
//!
//! ```text
//! schedule             what is done at once
//! executor             a plan, carried out      acting  one act      undo  back      lines  what is said
//! kernel               the narrow interface to the host: the tests' model has another implementation of it
//! linux ── worker      this host, asked through children of ours, with deadlines
//! perform              the worker's side: the calls themselves    verify, health  reading back
//! ```
//!
//! Not here: which steps, and why ([`crate::plan`]).

mod acting; // an act, written down before it happens
pub mod executor; // steps -> acts
mod fault_points; // where the tests have a run killed; not in the package
pub(crate) mod health; // whether a GPU that is home works
pub mod kernel; // the interface to the host
mod lines; // what is said of each step
pub mod linux; // the running kernel
pub mod perform; // the calls themselves
pub mod schedule; // what is done at once
mod undo; // taking back what was done
mod verify; // reading back what an act led to
pub mod worker; // deadlines on calls that the kernel can hold up
