//! The settings, and what is known of some models of GPU.
//!
//! ```text
//! table        one row for each setting: what there is to set
//! file         /etc/gpu-handoff is read by it
//! commented    debian/config.toml is written from it
//! ```
//!
//! The way home never depends on them: the record of a handoff keeps what was in force. Pure but for `file.rs`.

#[cfg(test)]
mod commented; // the commented file, for people: a test holds debian/config.toml against it, and writes it
pub mod file; // where they are read
mod kinds; // what kinds of values there are
pub mod known_gpus; // what is known of some models
pub mod messages; // what is said to people and to monitoring
pub mod reset; // by which methods a GPU may be reset
pub mod table; // what there is to set
pub mod values; // the values in force
