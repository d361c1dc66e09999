//! What reaches people who are not at the screen: a message for each event that needs a person, and metrics.
//!
//! ```text
//! records, history ──> events ──> what was told already ──> journal ──> Proxmox's notifications, or mail to root
//!                 └──> metrics ──> a file for node_exporter
//! ```
//!
//! It happens after the acts, outside every lock of a handoff, in a unit of its own (`gpu-handoff-tell@.service`): whoever
//! moves a GPU only asks for that. What is told is read from what is on disk, so that nothing is lost with a process.
//!
//! Not here: what the last line of a run says ([`crate::model::error`]).

pub mod events; // what a person has to hear of
pub mod mail; // a message as text
pub mod metrics; // the table of metrics, and their text
pub mod send; // to people
pub mod told; // what was told already
