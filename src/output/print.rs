//! Results to stdout, as text or JSON.

use std::io::{self, Write};

use serde::Serialize;

use crate::model::error::Error;

/// Prints a result as it was asked for.
///
/// # Errors
/// Those of writing.
pub fn print<T: Serialize>(json: bool, value: &T, text: impl Fn() -> String) -> Result<(), Error> {
    print_text(&shown(json, value, text)?)
}

/// A result as it was asked for.
///
/// # Errors
/// Those of making JSON.
pub fn shown<T: Serialize>(json: bool, value: &T, text: impl Fn() -> String) -> Result<String, Error> {
    if !json {
        return Ok(text());
    }
    json_text(value)
}

/// Prints a result.
///
/// # Errors
/// Those of writing.
pub fn print_text(text: &str) -> Result<(), Error> {
    out(text).map_err(|e| Error::io("writing to stdout", e))
}

/// A value as JSON, as it is printed.
///
/// # Errors
/// Those of making it.
pub fn json_text<T: Serialize>(value: &T) -> Result<String, Error> {
    let json = serde_json::to_string_pretty(value).map_err(io::Error::from);
    Ok(json.map_err(|e| Error::io("writing JSON", e))? + "\n")
}

/// A value as JSON on one line, for who reads one after the other.
///
/// # Errors
/// Those of making it.
pub fn json_line<T: Serialize>(value: &T) -> Result<String, Error> {
    let json = serde_json::to_string(value).map_err(io::Error::from);
    Ok(json.map_err(|e| Error::io("writing JSON", e))? + "\n")
}

/// Writes a result to stdout, for who goes on after it: whether anybody reads on.
///
/// # Errors
/// As [`out`].
pub fn out_to_reader(text: &str) -> io::Result<bool> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        result => result.map(|()| true),
    }
}

/// Writes a result to stdout. A closed pipe is the reader's decision, not an error.
///
/// # Errors
/// Any other error of writing.
pub fn out(text: &str) -> io::Result<()> {
    out_to_reader(text).map(|_| ())
}
