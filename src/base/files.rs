//! Replacing a file whole or not at all.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

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

/// Puts bytes in the place of what a file has, with the room of another one that is at least as long: the two change names,
/// so that as much room is kept as before and none is needed. Spaces fill it up.
///
/// # Errors
/// Those of writing, and of a file that is shorter; what was there is then still there.
pub(crate) fn exchange(spare: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(spare)?;
    let room = usize::try_from(file.metadata()?.len()).unwrap_or_default();
    if room < bytes.len() {
        return Err(io::ErrorKind::StorageFull.into());
    }
    let mut filled = bytes.to_vec();
    filled.resize(room, b' ');
    // Over what is in it, page by page: on tmpfs each is there already (linux, mm/shmem.c, shmem_get_folio).
    file.write_all(&filled)?;
    file.sync_data()?;
    match renameat_with(CWD, spare, CWD, path, RenameFlags::EXCHANGE) {
        Err(Errno::NOENT) => fs::rename(spare, path),
        renamed => renamed.map_err(io::Error::from),
    }
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
