//! Replacing a file whole or not at all.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Puts a file for root alone in the place of what is there; readers see the old one or the new one, after a power cut too.
///
/// # Errors
/// Any error of writing; what was there is then still there.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let written = write(&new, bytes).and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        // Half a file has no use, and takes room.
        let _ = fs::remove_file(new);
    }
    written
}

/// Writes a file for root alone.
///
/// # Errors
/// Any error of writing; a part of it is there then.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    // Nothing to do on tmpfs, where the records are.
    file.sync_data()
}
