//! The error of this wing: a file of Proxmox's that is there and cannot be read.

use std::io;

/// A file or folder that cannot be read. The text is a sentence and has its source in it, since that says what is wrong.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}{}", .hint.map(|hint| format!(". Hint: {hint}")).unwrap_or_default())]
pub struct Unreadable {
    /// What cannot be read, on which path, as the beginning of a sentence.
    pub what: String,
    /// Why.
    pub source: io::Error,
    /// What the user can do, where that is known.
    pub hint: Option<&'static str>,
}
