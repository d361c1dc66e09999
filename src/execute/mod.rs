//! Steps become acts: round by round, each act written down before and read back after, undone in reverse where one fails.
//!
//! ```text
//! executor             a plan, and what a failure means
//!   schedule             what is done at once
//!   acting               a round, and the other ways to what it should have led to
//!   recording            what is written down before and after
//!   undo                 the way back
//!   lines, ending        what is said of each act, and what at the end
//! kernel               the narrow interface to the host: the tests' model is another implementation of it
//! linux ── worker      this host, asked through children of ours, with deadlines
//! perform              the worker's side: the calls themselves    verify, health  reading back    gate  openers kept out
//! ```
//!
//! Not here: which steps, and why ([`crate::plan`]).

mod acting; // a round: its acts, and their rungs
mod asked; // a worker that was asked something
mod made_nodes; // NVIDIA's nodes for who is about to be given them
mod end_process; // a process of somebody else's that uses what leaves
mod ending; // errors, and what they advise
pub mod executor; // steps -> acts
mod fault_points; // where the tests have a run killed; not in the package
mod gate; // nobody opens the nodes meanwhile
mod health; // whether a GPU that is home works
pub mod kernel; // the interface to the host
mod lines; // what is said of each act
pub(crate) mod linux; // the running kernel
mod looks; // what is looked at, and changes nothing
pub mod perform; // the calls themselves
mod of_ha; // containers that the cluster's manager looks after
mod programs; // programs that are run for an act
mod prove_free; // nobody uses what is about to go
mod questions; // what else workers are asked
pub mod inside; // in a container: its nodes made anew
mod recording; // the record, kept meanwhile
mod renew_nodes; // nodes of GPUs in containers, when the driver is back
mod runs_already; // what somebody has started meanwhile
mod schedule; // what is done at once
pub(crate) mod stale_nodes; // nodes in containers that are of no use now
mod undo; // taking back what was done
mod verify; // reading back what an act led to
pub mod worker; // deadlines on calls that the kernel can hold up
