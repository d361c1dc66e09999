//! A model of the kernel for tests: PCI functions, drivers, modules, IOMMU groups, processes and systemd's units, with
//! calls that wait, fail and hang as the real ones do. No I/O, and a clock of its own.
//!
//! ```text
//! state, tables   what there is
//! before          what must be found again
//! calls           calls that wait in the middle, and the clock
//! driver_core     match, bind, unbind, ids, remove, rescan
//! modules         loading and unloading; opening nodes
//! look            state -> Snapshot
//! effects, acts   acts with deadlines and scripted failures: the trait Kernel
//! laws, ledger    what every act is held against; records in memory
//! hosts, session  hosts to begin with; what a run does
//! ```
//!
//! What it models is what is measured of the real kernel (tests/model_vs_kernel.rs holds one against the other); it is no
//! model of a GPU.

#![allow(dead_code, unused_imports)] // each test binary uses its part
#![allow(missing_docs, missing_debug_implementations)] // a part of the tests, not of the program

pub mod acts;
pub mod before;
pub mod calls;
pub mod driver_core;
pub mod effects;
pub mod hosts;
pub mod laws;
pub mod ledger;
pub mod look;
pub mod modules;
pub mod session;
pub mod state;
pub mod tables;

pub use before::{FunctionState, State};
pub use calls::Twist;
pub use effects::{Fault, Killed};
pub use hosts::{addr, host};
pub use ledger::MemLedger;
pub use session::{Beside, End, Session};
pub use state::{Device, Event, Generation, Model, ProbeFault, Process, When};
