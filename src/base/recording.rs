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

/// Longest name of a file, bytes (linux, include/uapi/linux/limits.h, NAME_MAX).
const LONGEST_NAME: usize = 255;

/// What the name of a file begins with that has the words of a program in its first line, since they are no name of a file.
const LONG: &str = "long-";

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

/// The name of the file that has what a program said: its words, with `!` for each `/`; or, where that is longer than a name
/// may be, a number made of them, and the words are the first line of the file.
pub(crate) fn program_file(words: &str) -> String {
    let name = words.replace('/', "!");
    if name.len() <= LONGEST_NAME {
        return name;
    }
    // FNV-1a, 64 bits (RFC 9923): the same in every version of this program. The words tell whether it is the one.
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    format!(
        "{LONG}{:016x}",
        name.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, step)
    )
}

/// What the program said, of a file's text; None: it is another program's.
pub(crate) fn said_in<'a>(name: &str, words: &str, text: &'a str) -> Option<&'a str> {
    match name.starts_with(LONG) {
        true => text.strip_prefix(words)?.strip_prefix('\n'),
        false => Some(text),
    }
}

/// The words of a program whose answer is in this file, and the answer.
pub(crate) fn words_of(name: &str, text: &str) -> (String, String) {
    let long = name.starts_with(LONG).then(|| text.split_once('\n')).flatten();
    match long {
        Some((words, said)) => (words.to_owned(), said.to_owned()),
        None => (name.replace('!', "/"), text.to_owned()),
    }
}

/// A file's name and text for what a program said.
pub(crate) fn file_of(words: &str, said: String) -> (String, String) {
    let name = program_file(words);
    match name.starts_with(LONG) {
        true => (name, format!("{words}\n{said}")),
        false => (name, said),
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
        if let Ok(mut all) = self.0.lock() {
            let noted = all.entry(path.to_owned()).or_default();
            (noted.bytes, noted.told) = (Some(bytes), true);
        }
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
        (true, _) => What::Link(relative(at, path, &fs::read_link(&full).ok()?.to_string_lossy())?),
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
fn relative(at: &Path, path: &str, target: &str) -> Option<String> {
    let depth = path.matches('/').count() - 1;
    let up = "../".repeat(depth);
    let is_plain = !target.split('/').any(|name| name == "..");
    match target.strip_prefix('/') {
        Some(target) if is_plain => return Some(up + target),
        None if leads_inside(path, target) => return Some(target.to_owned()),
        _ => {}
    }
    // Up from a folder that is a link is another way than the words say: then it is known by neither.
    let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
    let meant = match target.starts_with('/') {
        true => target.to_owned(),
        false => format!("{parent}/{target}"),
    };
    let folded = folded(&meant);
    let file = |path: &str| {
        let meta = fs::metadata(at.join(path.trim_start_matches('/'))).ok()?;
        Some((meta.dev(), meta.ino()))
    };
    (file(&meant) == file(&folded)).then(|| up + folded.trim_start_matches('/'))
}

/// An absolute path without `..`: what would lead out of the root stays in it.
pub(crate) fn folded(path: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." => {
                names.pop();
            }
            name => names.push(name),
        }
    }
    format!("/{}", names.join("/"))
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

    #[test]
    fn a_target_with_dots_in_it_is_one_without_where_both_lead_to_the_same() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::create_dir_all(dir.path().join("c/d")).unwrap();
        std::os::unix::fs::symlink("../c/d", dir.path().join("a/l")).unwrap();
        for (path, target, expected) in [
            ("/x/hook.pl", "/root/scripts/../hook.pl", Some("../root/hook.pl")),
            ("/a/x", "b/../../c", Some("../c")),
            ("/a/x", "l/../d", None),
            ("/a/x", "/../../nowhere", Some("../nowhere")),
        ] {
            assert_eq!(
                relative(dir.path(), path, target).as_deref(),
                expected,
                "{path} -> {target}"
            );
        }
    }

    #[test]
    fn words_that_are_no_name_of_a_file_are_in_the_file() {
        let long = format!("systemctl show {}", "a.service ".repeat(40));
        for words in ["modinfo -F version nvidia", "cat /x/y", &long] {
            let (name, text) = file_of(words, "said\n".to_owned());
            assert!(name.len() <= LONGEST_NAME && !name.contains('/'), "{name}");
            assert_eq!(name, program_file(words));
            assert_eq!(said_in(&name, words, &text), Some("said\n"));
            assert_eq!(words_of(&name, &text), (words.to_owned(), "said\n".to_owned()));
        }
        let (name, text) = file_of(&long, "said\n".to_owned());
        assert_eq!(said_in(&name, "another", &text), None);
    }
}
