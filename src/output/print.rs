//! Results to stdout, as text or JSON.

use std::io::{self, Write};

use serde::Serialize;

use crate::model::error::Error;

/// Prints a result as it was asked for.
///
/// # Errors
/// Those of writing.
pub fn print<T: Serialize>(json: bool, value: &T, text: impl Fn() -> String) -> Result<(), Error> {
    let text = if json {
        let json = serde_json::to_string_pretty(value).map_err(io::Error::from);
        json.map_err(|e| Error::io("writing JSON", e))? + "\n"
    } else {
        text()
    };
    out(&text).map_err(|e| Error::io("writing to stdout", e))
}

/// Writes a result to stdout. A closed pipe is the reader's decision, not an error.
///
/// # Errors
/// Any other error of writing.
pub fn out(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}
