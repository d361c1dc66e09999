//! The settings, and what is known of some models of GPU.
//!
//! The way home never depends on them: the record of a handoff keeps what was in force. Pure but for `file.rs`.

pub mod file; // where they are read
pub mod known_gpus; // what is known of some models
pub mod values; // what there is to set
