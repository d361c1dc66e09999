//! The narrow interface to the files and programs of the host. The tests have another implementation of it, which fails or
//! is killed where they say.

use std::fmt::Debug;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;
use std::{fs, io};

use serde::{Deserialize, Serialize};
use tracing::info;

use crate::base::files::{forget_leftover, replace_as};
use crate::base::program::{PATH, run};
use crate::base::root::Root;
use crate::base::text::harmless;

/// How long a program gets: it makes an initramfs for each kernel that is installed, which takes a minute each on a slow
/// disk, and copies them to each boot partition.
pub const PROGRAM: Duration = Duration::from_secs(20 * 60);

/// Longest line of a program's that is passed on, bytes.
const LINE: usize = 400;

/// Who may do what with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// Permissions, with the bits above them.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

impl Attributes {
    /// A file of root's that all may read.
    pub const PUBLIC: Attributes = Attributes {
        mode: 0o644,
        uid: 0,
        gid: 0,
    };

    /// A file of root's alone.
    pub const PRIVATE: Attributes = Attributes {
        mode: 0o600,
        uid: 0,
        gid: 0,
    };
}

/// A file that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its attributes.
    pub attributes: Attributes,
    /// How many names it has: one, but for hard links.
    pub names: u64,
}

/// Files and programs. Paths are absolute, as on the host.
pub trait Effects: Debug {
    /// Where the host's files are read.
    fn root(&self) -> &Root;

    /// Where a file is, links followed, though it need not be there yet.
    ///
    /// # Errors
    /// Where a link leads out of the host, or nowhere.
    fn resolve(&self, file: &str) -> io::Result<String> {
        let root = fs::canonicalize(self.root().path("/"))?;
        let path = self.root().path(file);
        let path = match fs::symlink_metadata(&path) {
            Ok(_) => {
                let real = fs::canonicalize(&path)?;
                // What is masked leads to /dev/null, and a rename would put a file in its place.
                if !fs::metadata(&real)?.is_file() {
                    return Err(io::Error::other("it leads to no regular file"));
                }
                real
            }
            Err(_) => {
                let (dir, name) = (path.parent(), path.file_name());
                let (Some(dir), Some(name)) = (dir, name) else {
                    return Err(io::ErrorKind::InvalidInput.into());
                };
                // A folder that is not there yet is made with the file.
                fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned()).join(name)
            }
        };
        let below = path.strip_prefix(&root).map_err(|_| io::ErrorKind::NotFound)?;
        Ok(Path::new("/").join(below).to_string_lossy().into_owned())
    }

    /// A file; None: it is not there.
    ///
    /// # Errors
    /// Those of [`Root::config`].
    fn read(&self, file: &str) -> io::Result<Option<Found>> {
        let bytes = match self.root().config(file) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let metadata = fs::metadata(self.root().path(file))?;
        Ok(Some(Found {
            bytes,
            attributes: Attributes {
                mode: metadata.permissions().mode() & 0o7777,
                uid: metadata.uid(),
                gid: metadata.gid(),
            },
            names: metadata.nlink(),
        }))
    }

    /// Puts a file in the place of what is there, whole or not at all, on the disk when it returns.
    ///
    /// # Errors
    /// Those of writing; what was there is then still there.
    fn write(&mut self, file: &str, bytes: &[u8], attributes: Attributes) -> io::Result<()>;

    /// Takes a file away; one that is not there is no error.
    ///
    /// # Errors
    /// Those of unlink(2).
    fn remove(&mut self, file: &str) -> io::Result<()>;

    /// Removes what a [`Effects::write`] that was killed has left beside a file.
    ///
    /// # Errors
    /// Those of unlink(2).
    fn forget_leftover(&mut self, file: &str) -> io::Result<()>;

    /// Takes a folder away that is empty; one that is not stays.
    fn remove_dir(&mut self, dir: &str);

    /// Whether a program is there.
    fn has(&self, program: &str) -> bool {
        PATH.split(':')
            .any(|dir| self.root().exists(format!("{dir}/{program}")))
    }

    /// Runs a program to its end, or to that of the time it has.
    ///
    /// # Errors
    /// Why it has not ended well, as the rest of a sentence, with the last that it said.
    fn run(&mut self, words: &[&str], within: Duration) -> Result<(), String>;
}

/// This host.
#[derive(Debug)]
pub struct Host {
    root: Root,
}

impl Host {
    /// Files below this root, and programs of the running host.
    pub fn at(root: Root) -> Self {
        Host { root }
    }
}

impl Effects for Host {
    fn root(&self) -> &Root {
        &self.root
    }

    fn write(&mut self, file: &str, bytes: &[u8], attributes: Attributes) -> io::Result<()> {
        let Attributes { mode, uid, gid } = attributes;
        replace_as(&self.root.path(file), bytes, mode, (uid, gid))
    }

    fn remove(&mut self, file: &str) -> io::Result<()> {
        let path = self.root.path(file);
        forget_leftover(&path)?;
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    fn forget_leftover(&mut self, file: &str) -> io::Result<()> {
        forget_leftover(&self.root.path(file))
    }

    fn remove_dir(&mut self, dir: &str) {
        let _ = fs::remove_dir(self.root.path(dir));
    }

    fn run(&mut self, words: &[&str], within: Duration) -> Result<(), String> {
        let mut last = String::new();
        let ended = run(words, within, |line| {
            last = harmless(line, LINE);
            info!("{}: {last}", words[0]);
        });
        ended.map_err(|why| match last.is_empty() {
            true => why,
            false => format!("{why}: {last}"),
        })
    }
}
