//! What is done, decided: a pure function of what is wanted, the snapshot, the records and the settings.
//!
//! ```text
//! selection            which devices are meant
//! users, unseen        who speaks against it, seen or only counted
//! clients, stopping    who of them is stopped or ended for it, and by which unit
//! obstacles            what speaks against it                -> a refusal, with every reason
//! hangs                calls of others that hold a function   -> the same, or how it is freed
//! moving, consoles     what moves with them
//! taken                what is noted for the way back
//! out -> out_steps     the way out, and its acts in their order
//! home -> home_steps   the way home from the record, and its acts in their order
//! owners               whose is what is on record, what comes home first, what is taken over
//! inferred             a record for what has none
//! steps, awake         how the acts of either way are written down, and what is kept awake for them
//! vendor               what NVIDIA's driver can do, by version
//! ```
//!
//! Nothing here reads the host, acts or says anything.

mod awake; // what may not sleep meanwhile
pub mod clients; // who is stopped or ended for a handoff
mod consoles; // consoles and framebuffers that go along
pub mod hangs; // calls of others: what they wait for, and what frees them
pub mod home; // record and snapshot -> a plan to the host, or a refusal
mod home_steps; // its acts, in their order
pub mod inferred; // a record for what has none
pub(crate) mod moving; // what leaves, and whether the driver does
pub(crate) mod obstacles; // what speaks against a way out
pub mod out; // snapshot -> a plan to vfio-pci, or a refusal
mod out_steps; // its acts, in their order
pub mod owners; // whose is what is on record
pub mod renumbered; // containers whose lines name another GPU than before
pub mod selection; // which devices are meant
mod stopping; // which unit is stopped for a user of a GPU
mod steps; // an act to a line, with its inverse
mod taken; // what is noted before it leaves
pub(crate) mod unseen; // who may use a GPU and was not seen
pub mod users; // who speaks against taking a GPU
pub(crate) mod vendor; // what is particular to a driver
