//! From an archive to a tree of files, in a folder that nobody else reads and that goes with its value.
//!
//! Whoever made the archive may mean us ill: what is no file, folder or link inside the tree is left out and said, so is a name
//! or a link that leads out of it, and a file in the place of another one; more than a report has is refused.

use std::cmp::Ordering;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use flate2::read::GzDecoder;
use nix::unistd::mkdtemp;
use tar::{Archive, Entry, EntryType};

use crate::base::recording::leads_inside;
use crate::base::text::foreign;
use crate::report::archive::{HOST, LONGEST, MOST_BYTES, MOST_FILES};

/// Most entries that are named of those that were left out.
const MOST_NAMED: usize = 20;

/// A tree, for as long as this is there.
#[derive(Debug)]
pub struct Tree {
    path: PathBuf,
    /// Held while something is made in it; held for good, nothing is made any more.
    making: Arc<Mutex<()>>,
    /// What of the archive is not in it, and why: each the end of a sentence.
    pub left_out: Vec<String>,
}

/// The folder of a tree, for who removes it while another one may be making it.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    making: Arc<Mutex<()>>,
}

impl Tree {
    /// An empty one.
    ///
    /// # Errors
    /// Why there is none: the end of a sentence.
    pub fn make() -> Result<Tree, String> {
        let made = mkdtemp(&std::env::temp_dir().join("gpu-handoff-replay.XXXXXX"));
        Ok(Tree {
            path: made.map_err(|e| format!("there is no room for it: {e}"))?,
            making: Arc::default(),
            left_out: Vec::new(),
        })
    }

    /// The folder that is the host's root.
    pub fn root(&self) -> PathBuf {
        self.path.join(HOST)
    }

    /// Its own folder.
    pub fn folder(&self) -> Folder {
        Folder {
            path: self.path.clone(),
            making: Arc::clone(&self.making),
        }
    }

    fn leave_out(&mut self, why: String) {
        match self.left_out.len().cmp(&MOST_NAMED) {
            Ordering::Less => self.left_out.push(why),
            Ordering::Equal => self.left_out.push("and more in it is none of a report's".to_owned()),
            Ordering::Greater => {}
        }
    }
}

impl Folder {
    /// Removes it. Nobody makes anything in it from here on.
    pub fn remove(self) {
        std::mem::forget(self.making.lock());
        remove(&self.path);
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Removes a folder with all that is in it. Folders in it are as they are on the host, where root alone may write; none is
/// deeper than a path of an archive is long.
fn remove(path: &Path) {
    let mut folders = vec![path.to_owned()];
    while let Some(folder) = folders.pop() {
        let _ = fs::set_permissions(&folder, Permissions::from_mode(0o700));
        let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
        let is_dir = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
        folders.extend(entries.filter(is_dir).map(|entry| entry.path()));
    }
    let _ = fs::remove_dir_all(path);
}

/// Unpacks the host of an archive.
///
/// # Errors
/// Why it is no report, or none that is read: the end of a sentence.
pub fn unpack(archive: impl Read) -> Result<Tree, String> {
    let mut tree = Tree::make()?;
    fill(&mut tree, archive)?;
    Ok(tree)
}

/// The same into a tree that is there already.
///
/// # Errors
/// As [`unpack`].
pub fn fill(tree: &mut Tree, archive: impl Read) -> Result<(), String> {
    let making = Arc::clone(&tree.making);
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
        let made = match inside(&path) {
            None => Err("leads out of it".to_owned()),
            Some(None) => continue,
            Some(Some(inside)) => {
                let _making = making.lock();
                make(&tree.path, &inside, &mut entry)
            }
        };
        match made {
            Ok(made) => folders.extend(made),
            Err(why) => tree.leave_out(format!("'{}' in it {why}", foreign(&path.to_string_lossy()))),
        }
    }
    let _making = making.lock();
    for (path, mode) in folders.iter().rev() {
        let _ = fs::set_permissions(path, Permissions::from_mode(mode | 0o500));
    }
    match tree.root().is_dir() {
        true => Ok(()),
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
