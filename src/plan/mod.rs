//! What is done, decided: a pure function of what is wanted, the snapshot, the records and the settings.
//!
//! ```text
//! selection            which devices are meant
//! users, obstacles     who and what speaks against it        -> a refusal, with every reason
//! moving, consoles     what moves with them
//! taken                what is noted for the way back
//! out -> out_steps     the way out, and its acts in their order
//! home, inferred       the way home, from the record or without one
//! ```
//!
//! Nothing here reads the host, acts or says anything.

pub(crate) mod consoles; // consoles and framebuffers that go along
pub mod home; // record and snapshot -> steps to the host
pub mod inferred; // a record for what has none
pub(crate) mod moving; // what leaves, and whether the driver does
pub(crate) mod obstacles; // what speaks against a way out
pub mod out; // snapshot -> a plan to vfio-pci, or a refusal
pub(crate) mod out_steps; // its acts, in their order
pub mod selection; // which devices are meant
pub(crate) mod steps; // how a plan is written down
pub(crate) mod taken; // what is noted before it leaves
pub mod users; // who speaks against taking a GPU
pub mod vendor;
