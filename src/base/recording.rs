//! What was looked at below a root, kept so that it can be looked at again elsewhere: files as they were read, folders with
//! their names, links, what programs have said.
//!
//! Not here: what of it may leave the host ([`crate::report`]).

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

/// More links in a row than the kernel follows (path_resolution(7)).
const MOST_LINKS: usize = 40;

/// Folders with hundreds of names that nobody asks for, and what the names that count have in them.
const LONG_FOLDERS: [&str; 2] = ["/dev", "/usr/lib/x86_64-linux-gnu"];
const COUNTS_IN_THEM: [&str; 6] = ["nvidia", "cuda", "dri", "kvm", "vfio", "fb"];

/// Something that was looked at, as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its permission bits.
    pub mode: u32,
    /// When it was changed, seconds of Unix time.
    pub changed: u64,
    /// What it is.
    pub what: What,
}

/// What it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    /// A folder.
    Dir,
    /// A file with this text; empty, too, where it was not read.
    Text(String),
    /// A file of bytes that are none.
    Bytes(Vec<u8>),
    /// A link, relative to its folder.
    Link(String),
}

impl What {
    fn of(bytes: Vec<u8>) -> What {
        String::from_utf8(bytes).map_or_else(|e| What::Bytes(e.into_bytes()), What::Text)
    }
}

/// What was looked at, by absolute path without links.
pub type Entries = BTreeMap<String, Entry>;

/// Adds what was looked at by somebody else, or later: a file whose text is not known loses none by it.
pub fn add(entries: &mut Entries, more: Entries) {
    for (path, entry) in more {
        let is_unread = matches!(&entry.what, What::Text(text) if text.is_empty());
        if !(is_unread && entries.contains_key(&path)) {
            entries.insert(path, entry);
        }
    }
}

#[derive(Debug, Default)]
struct Noted {
    bytes: Option<Vec<u8>>,
    names: Vec<String>,
    /// It is in no folder of the host's, but told in a file of its own.
    told: bool,
}

/// Keeps what is looked at.
#[derive(Debug, Default)]
pub(crate) struct Recorder(Mutex<BTreeMap<String, Noted>>);

impl Recorder {
    fn note(&self, path: &Path, add: impl FnOnce(&mut Noted)) {
        let path = format!("/{}", path.to_string_lossy().trim_start_matches('/'));
        if is_of_a_process(&path) {
            return;
        }
        if let Ok(mut all) = self.0.lock() {
            add(all.entry(path).or_default());
        }
    }

    /// Somebody asks for what is there.
    pub(crate) fn seen(&self, path: &Path) {
        self.note(path, |_| {});
    }

    /// A file was read, or its beginning.
    pub(crate) fn read(&self, path: &Path, bytes: &[u8]) {
        self.note(path, |noted| {
            if noted.bytes.as_ref().is_none_or(|b| b.len() <= bytes.len()) {
                noted.bytes = Some(bytes.to_vec());
            }
        });
    }

    /// A folder was listed.
    pub(crate) fn listed(&self, path: &Path, names: &[String]) {
        self.note(path, |noted| noted.names = names.to_vec());
    }

    /// What no file of the host's says is told by one of the tree's.
    pub(crate) fn tell(&self, path: &str, bytes: Vec<u8>) {
        self.note(Path::new(path), |noted| {
            (noted.bytes, noted.told) = (Some(bytes), true);
        });
    }

    /// Everything so far, and from here on anew.
    pub(crate) fn take(&self, at: &Path) -> Entries {
        let noted = self
            .0
            .lock()
            .map(|mut all| std::mem::take(&mut *all))
            .unwrap_or_default();
        let mut entries = Entries::new();
        for (path, noted) in noted {
            entries_of(at, &path, noted, &mut entries);
        }
        entries
    }
}

/// A process is not the host: what it had open is told by who has looked.
fn is_of_a_process(path: &str) -> bool {
    let Some(rest) = path.strip_prefix("/proc") else {
        return false;
    };
    let first = rest.trim_start_matches('/').split('/').next().unwrap_or_default();
    first.is_empty() || first == "self" || first == "thread-self" || first.bytes().all(|b| b.is_ascii_digit())
}

fn entries_of(at: &Path, path: &str, noted: Noted, entries: &mut Entries) {
    if noted.told {
        let what = What::of(noted.bytes.unwrap_or_default());
        entries.insert(
            path.to_owned(),
            Entry {
                mode: 0o644,
                changed: 0,
                what,
            },
        );
        return;
    }
    let Some(found) = follow(at, path, entries) else {
        return;
    };
    if let Some(bytes) = noted.bytes
        && let Some(entry) = entries.get_mut(&found)
    {
        entry.what = What::of(bytes);
    }
    let is_long = LONG_FOLDERS.contains(&found.as_str());
    for name in noted.names {
        if !is_long || COUNTS_IN_THEM.iter().any(|c| name.contains(c)) {
            note(at, &format!("{found}/{name}"), entries);
        }
    }
}

/// Goes to a path from the root on, each folder and link on the way noted: where it ends. None: it is not there.
fn follow(at: &Path, path: &str, entries: &mut Entries) -> Option<String> {
    let mut left: Vec<String> = path.rsplit('/').map(str::to_owned).collect();
    let (mut here, mut links) = (String::new(), 0);
    while let Some(name) = left.pop() {
        match name.as_str() {
            "" | "." => continue,
            ".." => {
                here.truncate(here.rfind('/').unwrap_or(0));
                continue;
            }
            _ => {}
        }
        let next = format!("{here}/{name}");
        note(at, &next, entries)?;
        match &entries.get(&next)?.what {
            What::Link(target) => {
                links += 1;
                if links > MOST_LINKS {
                    return None;
                }
                left.extend(target.rsplit('/').map(str::to_owned));
            }
            _ => here = next,
        }
    }
    Some(here)
}

/// Notes what is at a path whose folders are none but folders. A file has no text by that.
fn note(at: &Path, path: &str, entries: &mut Entries) -> Option<()> {
    let full = at.join(path.trim_start_matches('/'));
    let meta = fs::symlink_metadata(&full).ok()?;
    // What is a link there leads to the process that asks.
    let is_link = meta.is_symlink() && Path::new(path).parent() != Some(Path::new("/proc"));
    let what = match (is_link, meta.is_dir()) {
        (true, _) => What::Link(relative(path, &fs::read_link(&full).ok()?.to_string_lossy())?),
        (_, true) => What::Dir,
        // A device, too: there is one.
        _ => What::Text(String::new()),
    };
    let changed = u64::try_from(meta.mtime()).unwrap_or(0);
    let mode = meta.permissions().mode() & 0o7777;
    entries.entry(path.to_owned()).or_insert(Entry { mode, changed, what });
    Some(())
}

/// A link's target from its folder on: first up, then down, and never out of the root. None: it is none of these.
fn relative(path: &str, target: &str) -> Option<String> {
    let depth = path.matches('/').count() - 1;
    if let Some(target) = target.strip_prefix('/') {
        return Some("../".repeat(depth) + target);
    }
    leads_inside(path, target).then(|| target.to_owned())
}

/// Whether a link at this path, whose folders are none but folders, leads to a place below the root whatever else is a link:
/// it goes up first, and then only down.
pub(crate) fn leads_inside(path: &str, target: &str) -> bool {
    let depth = path.trim_matches('/').matches('/').count();
    let names: Vec<&str> = target.split('/').collect();
    let ups = names.iter().take_while(|name| **name == "..").count();
    !target.is_empty() && !target.starts_with('/') && ups <= depth && !names[ups..].contains(&"..")
}

/// Where a link leads as it was written on the host, if it was made relative for the tree: one that goes up to the root.
pub(crate) fn as_on_host(path: &str, target: &str) -> String {
    let up = "../".repeat(path.trim_matches('/').matches('/').count());
    match target.strip_prefix(&up) {
        Some(rest) if !up.is_empty() && !rest.starts_with("..") => format!("/{rest}"),
        _ => target.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_of_a_tree_never_leads_out_of_it() {
        for (path, target, leads) in [
            ("/a/b", "c", true),
            ("/a/b", "../c/d", true),
            ("/a/b", "../../c", false),
            ("/b", "..", false),
            ("/a/b", "c/../d", false),
            ("/a/b", "/etc/shadow", false),
            ("/a/b", "", false),
        ] {
            assert_eq!(leads_inside(path, target), leads, "{path} -> {target}");
        }
        assert_eq!(as_on_host("/a/b/c", "../../usr/sbin/x"), "/usr/sbin/x");
        assert_eq!(as_on_host("/a/b/c", "../x"), "../x");
        assert_eq!(as_on_host("/c", "x"), "x");
    }
}
