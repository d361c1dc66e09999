//! The error of this wing: a file of Proxmox's that is there and cannot be read.

use std::borrow::Cow;
use std::io;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A file or folder that cannot be read. The text is a sentence and has its source in it, since that says what is wrong.
#[derive(Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{what}: {source}{}", .hint.as_ref().map(|hint| format!(". Hint: {hint}")).unwrap_or_default())]
pub struct Unreadable {
    /// What cannot be read, on which path, as the beginning of a sentence.
    pub what: String,
    /// Why.
    #[serde(serialize_with = "number_and_text", deserialize_with = "of_number_or_text")]
    pub source: io::Error,
    /// What the user can do, where that is known.
    pub hint: Option<Cow<'static, str>>,
}

/// An error of the system is its number; any other its text.
fn number_and_text<S: Serializer>(error: &io::Error, serializer: S) -> Result<S::Ok, S::Error> {
    (error.raw_os_error(), error.to_string()).serialize(serializer)
}

fn of_number_or_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<io::Error, D::Error> {
    let (number, text): (Option<i32>, String) = Deserialize::deserialize(deserializer)?;
    Ok(number.map_or_else(|| io::Error::other(text), io::Error::from_raw_os_error))
}
