//! From an archive to a tree of files, in a folder that nobody else reads and that goes with its value.
//!
//! Whoever made the archive may mean us ill: what is no file, folder or link inside the tree is refused, so is a name or a
//! link that leads out of it, a file in the place of another one, and more than a report has.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use flate2::read::GzDecoder;
use nix::unistd::mkdtemp;
use tar::{Archive, Entry, EntryType};

use crate::base::recording::leads_inside;
use crate::base::text::foreign;
use crate::report::archive::{HOST, LONGEST, MOST_BYTES, MOST_FILES};

/// A tree, for as long as this is there.
#[derive(Debug)]
pub struct Tree(PathBuf);

impl Tree {
    /// The folder that is the host's root.
    pub fn root(&self) -> PathBuf {
        self.0.join(HOST)
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Unpacks the host of an archive.
///
/// # Errors
/// Why it is no report, or none that is read: the end of a sentence.
pub fn unpack(archive: impl Read) -> Result<Tree, String> {
    let made = mkdtemp(&std::env::temp_dir().join("gpu-handoff-replay.XXXXXX"));
    let tree = Tree(made.map_err(|e| format!("there is no room for it: {e}"))?);
    let damaged = |e: io::Error| format!("it is no whole archive of a report ({})", foreign(&e.to_string()));
    // Each file has a head of 512 bytes and ends at a multiple of that.
    let most = MOST_BYTES + MOST_FILES * 4 * 512;
    let mut archive = Archive::new(GzDecoder::new(archive).take(most as u64));
    // What is only to be read is so at the end: there is something to be made in it before.
    let mut folders = Vec::new();
    for (count, entry) in archive.entries().map_err(damaged)?.enumerate() {
        if count > MOST_FILES {
            return Err(format!("it has more than {MOST_FILES} files"));
        }
        let mut entry = entry.map_err(damaged)?;
        let path = entry.path().map_err(damaged)?.into_owned();
        let name = || foreign(&path.to_string_lossy());
        let Some(inside) = inside(&path).ok_or_else(|| format!("'{}' in it leads out of it", name()))? else {
            continue;
        };
        let made = make(&tree.0, &inside, &mut entry).map_err(|why| format!("'{}' in it {why}", name()))?;
        folders.extend(made);
    }
    for (path, mode) in folders.iter().rev() {
        let _ = fs::set_permissions(path, Permissions::from_mode(mode | 0o500));
    }
    match tree.root().is_dir() {
        true => Ok(tree),
        false => Err("it has no host in it".to_owned()),
    }
}

/// The path without the folder that everything is in, if it is the host's. None: it is none that stays where it should.
fn inside(path: &Path) -> Option<Option<PathBuf>> {
    let names: Option<Vec<&str>> = path
        .components()
        .map(|component| match component {
            Component::Normal(name) => name.to_str(),
            _ => None,
        })
        .collect();
    let names = names?;
    let of_host = names.get(1).is_some_and(|name| *name == HOST);
    Some(of_host.then(|| names[1..].iter().collect()))
}

/// Makes what an entry is; of a folder, which mode it has in the end.
fn make(tree: &Path, path: &Path, entry: &mut Entry<'_, impl Read>) -> Result<Option<(PathBuf, u32)>, String> {
    let failed = |e: io::Error| format!("cannot be made: {e}");
    let full = tree.join(path);
    let parent = path.parent().unwrap_or(Path::new(""));
    folder(tree, parent)?;
    let header = entry.header();
    let mode = header.mode().unwrap_or(0) & 0o777;
    let changed = UNIX_EPOCH + Duration::from_secs(header.mtime().unwrap_or(0).min(u64::from(u32::MAX)));
    match header.entry_type() {
        EntryType::Directory => {
            folder(tree, path)?;
            Ok(Some((full, mode)))
        }
        EntryType::Regular => {
            if entry.size() > LONGEST as u64 {
                return Err("is longer than a file of a report".to_owned());
            }
            let mut options = OpenOptions::new();
            let mut file: File = options
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(full)
                .map_err(failed)?;
            io::copy(entry, &mut file).map_err(failed)?;
            file.set_modified(changed).map_err(failed)?;
            file.set_permissions(Permissions::from_mode(mode | 0o400))
                .map_err(failed)?;
            Ok(None)
        }
        EntryType::Symlink => {
            let target = entry.link_name().ok().flatten().unwrap_or_default().into_owned();
            let place: PathBuf = path.components().skip(1).collect();
            if !leads_inside(&place.to_string_lossy(), &target.to_string_lossy()) {
                return Err("is a link that leads out of it".to_owned());
            }
            symlink(target, full).map_err(failed)?;
            Ok(None)
        }
        _ => Err("is neither file, folder nor link".to_owned()),
    }
}

/// Makes a folder and those above it. None of them is a link.
fn folder(tree: &Path, path: &Path) -> Result<(), String> {
    let mut full = tree.to_owned();
    for name in path.components() {
        full.push(name);
        let made = DirBuilder::new().mode(0o700).create(&full);
        let is_dir = || fs::symlink_metadata(&full).is_ok_and(|meta| meta.is_dir());
        if let Err(e) = made
            && !is_dir()
        {
            return Err(format!("is in a folder that is none: {e}"));
        }
    }
    Ok(())
}
