//! Replacing a file whole or not at all.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::buffer::spare_capacity;
use rustix::fs::{CWD, OFlags, RenameFlags, XattrFlags, fsetxattr, getxattr, listxattr, renameat_with};
use rustix::io::Errno;

/// Puts a file for root alone in the place of what is there; readers see the old one or the new one.
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

/// The names in a folder are on the disk when this returns.
///
/// # Errors
/// Those of opening it, and of fsync(2).
pub(crate) fn sync_folder(dir: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    // Of a pipe of that name it would wait for a writer.
    let folder = options.read(true).custom_flags(OFlags::DIRECTORY.bits().cast_signed());
    folder.open(dir)?.sync_all()
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

/// Puts a file with these permissions and this owner in the place of what is there, whose extended attributes it gets, an
/// access list among them; it is on the disk when this returns. Folders that are not there are made.
///
/// # Errors
/// Any error of writing. What was there is then still there; or the new file is, and may not be on the disk.
pub(crate) fn replace_as(path: &Path, bytes: &[u8], mode: u32, (uid, gid): (u32, u32)) -> io::Result<()> {
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    if !dir.exists() {
        // What is only root's to read has a folder that is only root's.
        let mode = if mode & 0o077 == 0 { 0o700 } else { 0o755 };
        fs::DirBuilder::new().recursive(true).mode(mode).create(dir)?;
    }
    put(path, bytes, mode, (uid, gid), |new| keep_xattrs(path, new))
}

/// Puts a file of root's that all may read in the place of what is there, in a folder that may be somebody else's: nothing of
/// theirs is followed, nor taken over, and a folder that is not there is not made. It is on the disk when this returns.
///
/// # Errors
/// As [`replace_as`].
pub(crate) fn publish(path: &Path, bytes: &[u8]) -> io::Result<()> {
    put(path, bytes, 0o644, (0, 0), |_| Ok(()))
}

/// Writes a new file beside a path, finishes it, and gives it that name.
fn put(
    path: &Path,
    bytes: &[u8],
    mode: u32,
    owner: (u32, u32),
    finish: impl FnOnce(&fs::File) -> io::Result<()>,
) -> io::Result<()> {
    let new = beside(path)?;
    forget_leftover(path)?;
    let written = write_new(&new, bytes, mode, owner)
        .and_then(|file| finish(&file))
        .and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        let _ = fs::remove_file(new);
    }
    written?;
    sync_folder(path.parent().ok_or(io::ErrorKind::InvalidInput)?)
}

fn write_new(new: &Path, bytes: &[u8], mode: u32, (uid, gid): (u32, u32)) -> io::Result<fs::File> {
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(new)?;
    file.write_all(bytes)?;
    fchown(&file, Some(uid), Some(gid))?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.sync_all()?;
    Ok(file)
}

/// Longest list of extended attributes, and longest value of one, bytes (linux, include/uapi/linux/limits.h, XATTR_LIST_MAX
/// and XATTR_SIZE_MAX).
const XATTR_MAX: usize = 65536;

/// Gives a new file the extended attributes of the one that it replaces.
fn keep_xattrs(old: &Path, new: &fs::File) -> io::Result<()> {
    let mut names = Vec::with_capacity(XATTR_MAX);
    match listxattr(old, spare_capacity(&mut names)) {
        Err(Errno::NOENT | Errno::NOTSUP) | Ok(0) => return Ok(()),
        listed => listed?,
    };
    for name in names.split(|b| *b == 0).filter(|name| !name.is_empty()) {
        let mut value = Vec::with_capacity(XATTR_MAX);
        getxattr(old, name, spare_capacity(&mut value))?;
        fsetxattr(new, name, &value, XattrFlags::empty())?;
    }
    new.sync_all()
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Who may write to a folder of another program's owns what is in it, and gives it whatever attributes.
    #[test]
    fn what_is_published_takes_nothing_over_and_makes_no_folder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gpu-handoff.prom");
        fs::write(&path, "old").unwrap();
        let file = fs::File::open(&path).unwrap();
        let is_set = fsetxattr(&file, "user.why", b"theirs", XattrFlags::empty()).is_ok();
        let elsewhere = dir.path().join("elsewhere");
        fs::write(&elsewhere, "not ours").unwrap();
        std::os::unix::fs::symlink(&elsewhere, dir.path().join(".gpu-handoff.prom.gpu-handoff")).unwrap();
        let ours = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        put(&path, b"new", 0o644, ours, |_| Ok(())).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read(&elsewhere).unwrap(), b"not ours");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        let mut names = Vec::with_capacity(XATTR_MAX);
        let _ = listxattr(&path, spare_capacity(&mut names)); // a file system may have none
        assert!(
            !is_set || !names.windows(8).any(|name| name == b"user.why"),
            "{names:?}"
        );
        let none = put(&dir.path().join("none/gpu-handoff.prom"), b"new", 0o644, ours, |_| {
            Ok(())
        });
        assert_eq!(none.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    /// A folder that was replaced by a pipe keeps nobody waiting.
    #[test]
    fn a_folder_that_is_none_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(sync_folder(&pipe).unwrap_err().kind(), io::ErrorKind::NotADirectory);
        sync_folder(dir.path()).unwrap();
    }

    #[test]
    fn who_may_do_what_with_a_file_stays_when_it_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("grub");
        fs::write(&path, "old").unwrap();
        let file = fs::File::open(&path).unwrap();
        // setfacl -m user:65534:r-- (linux, include/uapi/linux/posix_acl_xattr.h): version 2; owner, that user, group, mask, others.
        let mut access = vec![2, 0, 0, 0];
        for (tag, rights, id) in [
            (1u16, 6u16, u32::MAX),
            (2, 4, 65534),
            (4, 4, u32::MAX),
            (16, 4, u32::MAX),
            (32, 4, u32::MAX),
        ] {
            access.extend(
                tag.to_le_bytes()
                    .into_iter()
                    .chain(rights.to_le_bytes())
                    .chain(id.to_le_bytes()),
            );
        }
        let mut set = Vec::new();
        for (name, value) in [("user.why", &b"by hand"[..]), ("system.posix_acl_access", &access)] {
            // A file system may have neither.
            if fsetxattr(&file, name, value, XattrFlags::empty()).is_ok() {
                set.push((name, value.to_vec()));
            }
        }
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        replace_as(&path, b"new", 0o644, (uid, gid)).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        for (name, value) in set {
            let mut now = Vec::with_capacity(XATTR_MAX);
            getxattr(&path, name, spare_capacity(&mut now)).unwrap();
            assert_eq!(now, value, "{name}");
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o644);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
