//! What of a host leaves it in a bug report, and how it is read again elsewhere.
//!
//! ```text
//! what was looked at -> keep: what may go along -> redact: names, numbers, secrets out -> archive
//! archive -> unpack: a tree of files, that everything can be asked of as of a host
//! ```
//!
//! Not here: what is looked at, and what programs are asked ([`crate::commands`]).

pub mod archive; // what is in it, as bytes
pub mod keep; // which files go along, and which of their lines
mod names; // names that are words of the host's own, and stay
mod patterns; // what in a text has the form of something that identifies
pub mod redact; // the same thing, the same placeholder
mod runs; // the words of a line
mod secrets; // what in a text opens something
pub mod unpack; // from an archive to a tree of files
