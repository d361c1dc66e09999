//! One line of the host's configuration, as the checks look at it. What it means is [`crate::check::fights`]'s.

use serde::{Deserialize, Serialize};

/// A line of the host's configuration, by its words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Its file.
    pub file: String,
    /// Its number, from 1; None: of the running kernel alone.
    pub line: Option<usize>,
    /// What kind of line it is.
    pub kind: Kind,
    /// Its words.
    pub words: Vec<String>,
}

/// What kind of line it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Of modprobe.d.
    Modprobe,
    /// A module's name, of /etc/modules or modules-load.d.
    Module,
    /// A word of the kernel's command line.
    Argument,
}
