//! Replacing a file whole or not at all.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

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

/// Puts a file with these permissions and this owner in the place of what is there; it is on the disk when this returns.
/// Folders that are not there are made.
///
/// # Errors
/// Any error of writing; what was there is then still there.
pub(crate) fn replace_as(path: &Path, bytes: &[u8], mode: u32, (uid, gid): (u32, u32)) -> io::Result<()> {
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    if !dir.exists() {
        // What is only root's to read has a folder that is only root's.
        let mode = if mode & 0o077 == 0 { 0o700 } else { 0o755 };
        fs::DirBuilder::new().recursive(true).mode(mode).create(dir)?;
    }
    let new = beside(path)?;
    forget_leftover(path)?;
    let written = write_new(&new, bytes, mode, (uid, gid)).and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        let _ = fs::remove_file(new);
    }
    written?;
    fs::File::open(dir)?.sync_all()
}

fn write_new(new: &Path, bytes: &[u8], mode: u32, (uid, gid): (u32, u32)) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(new)?;
    file.write_all(bytes)?;
    fchown(&file, Some(uid), Some(gid))?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.sync_all()
}

/// Removes what a [`replace_as`] that was killed has left beside a file.
///
/// # Errors
/// Those of unlink(2).
pub(crate) fn forget_leftover(path: &Path) -> io::Result<()> {
    match fs::remove_file(beside(path)?) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Where a file is written before it takes the place of another. It is hidden: nobody who reads a folder of configuration
/// takes it for a part of that.
fn beside(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    Ok(path.with_file_name(format!(".{}.gpu-handoff", name.to_string_lossy())))
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
