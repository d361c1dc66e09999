//! What is in a report, as the bytes of a compressed tar archive. Pure: whoever has the bytes writes them.
//!
//! The one place through which every name and every text goes to be redacted.

use std::io::{self, Write};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Serialize;
use tar::{Builder, EntryType, Header};

use crate::base::clock;
use crate::base::recording::{Entries, Entry, What, file_of, words_of};
use crate::report::names;
use crate::report::redact::Redactor;

/// The folder of an archive that has the host as a tree of files.
pub const HOST: &str = "host";

/// The file in it that has what is missing of it, a line each.
pub const MISSING: &str = "missing";

/// What is in it.
const CONTENTS: &str = "contents.txt";

/// Longest text of one file, bytes: more is nothing that a person reads, and no program here looks for.
pub const LONGEST: usize = 1 << 20;

/// Most bytes of all files, and most of these. A host with sixteen GPUs has some three thousand files of some bytes each.
pub const MOST_BYTES: usize = 48 << 20;
/// See there.
pub const MOST_FILES: usize = 50_000;

/// What there is to say.
#[derive(Debug, Default)]
pub struct Report {
    /// Files by name: their text, or why there is none.
    pub files: Vec<(String, Result<String, String>)>,
    /// The host as it was looked at.
    pub host: Entries,
    /// What of the host could not be had.
    pub missing: Vec<String>,
}

/// A line of the list of what is inside.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// A file or folder of the archive.
    pub name: String,
    /// How long it is, bytes; of a folder, how many files, folders and links are in it.
    pub size: usize,
    /// What is missing, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}

/// An archive.
#[derive(Debug)]
pub struct Packed {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// What is inside.
    pub list: Vec<Listed>,
}

/// Packs a report into a folder of this name.
///
/// # Errors
/// Where a name is longer than a tar archive can have it.
pub fn pack(mut report: Report, redactor: &mut Redactor, folder: &str, time: u64) -> io::Result<Packed> {
    let (mut parts, mut list, mut total) = (Vec::new(), Vec::new(), 0);
    redactor.leave(&names::of_the_host(&report.host));
    for (name, text) in std::mem::take(&mut report.files) {
        let name = redactor.text(&name);
        match text {
            Err(why) => list.push(Listed {
                name,
                size: 0,
                missing: Some(redactor.text(&why)),
            }),
            Ok(text) => {
                let (text, missing) = bounded(redactor.text(&text), LONGEST.min(MOST_BYTES - total));
                total += text.len();
                list.push(Listed {
                    name: name.clone(),
                    size: text.len(),
                    missing,
                });
                parts.push((
                    name,
                    Entry {
                        mode: 0o644,
                        changed: time,
                        what: What::Text(text),
                    },
                ));
            }
        }
    }
    let (mut files, mut left_out) = (0, None);
    let missing: String = report.missing.iter().map(|why| format!("{why}\n")).collect();
    if !missing.is_empty() {
        let what = What::Text(missing);
        let (mode, changed) = (0o644, time);
        report.host.insert(format!("/{MISSING}"), Entry { mode, changed, what });
    }
    for (path, entry) in report.host {
        let (path, entry) = redacted(&path, entry, redactor);
        let length = length(&entry.what);
        if length > LONGEST || total + length > MOST_BYTES || files >= MOST_FILES {
            left_out = Some(format!("{path} and what is as long: it has {length} bytes"));
            continue;
        }
        (total, files) = (total + length, files + 1);
        parts.push((format!("{HOST}{path}"), entry));
    }
    list.push(Listed {
        name: format!("{HOST}/"),
        size: files,
        missing: left_out,
    });
    for why in &report.missing {
        list.push(Listed {
            name: format!("{HOST}/"),
            size: 0,
            missing: Some(redactor.text(why)),
        });
    }
    let left: Vec<String> = redactor.left.iter().cloned().collect();
    let contents = contents(&list, &left, time);
    let mut archive = Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
    append(
        &mut archive,
        &format!("{folder}/{CONTENTS}"),
        &Entry {
            mode: 0o644,
            changed: time,
            what: What::Text(contents),
        },
    )?;
    for (name, entry) in parts {
        append(&mut archive, &format!("{folder}/{name}"), &entry)?;
    }
    let bytes = archive.into_inner()?.finish()?;
    Ok(Packed { bytes, list })
}

/// Something of the host's as it leaves it. What a program said is called by the program's words, which are a text.
fn redacted(path: &str, mut entry: Entry, redactor: &mut Redactor) -> (String, Entry) {
    let program = path
        .strip_prefix("/programs/")
        .map(|name| match name.strip_prefix("failed/") {
            Some(name) => ("/programs/failed/", name),
            None => ("/programs/", name),
        });
    let mut redacted_path = None;
    entry.what = match (entry.what, program) {
        (What::Text(text), Some((folder, name))) => {
            let (words, said) = words_of(name, &text);
            let (name, text) = file_of(&redactor.text(&words), redactor.text(&said));
            redacted_path = Some(format!("{folder}{name}"));
            What::Text(text)
        }
        (What::Text(text), None) => What::Text(redactor.text(&text)),
        (What::Link(target), _) => What::Link(redactor.target(path, &target)),
        (what, _) => what,
    };
    (redacted_path.unwrap_or_else(|| redactor.path(path)), entry)
}

fn length(what: &What) -> usize {
    match what {
        What::Text(text) | What::Link(text) => text.len(),
        What::Bytes(bytes) => bytes.len(),
        What::Dir => 0,
    }
}

/// A text of at most so many bytes, and that it was cut.
fn bounded(mut text: String, most: usize) -> (String, Option<String>) {
    let length = text.len();
    if length <= most {
        return (text, None);
    }
    let end = (0..=most).rev().find(|at| text.is_char_boundary(*at));
    text.truncate(end.unwrap_or(0));
    (text, Some(format!("it is cut: it had {length} bytes")))
}

fn append(archive: &mut Builder<impl Write>, name: &str, entry: &Entry) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_mode(entry.mode & 0o777);
    header.set_mtime(entry.changed);
    header.set_size(0);
    let mut file = |bytes: &[u8]| {
        header.set_size(bytes.len() as u64);
        archive.append_data(&mut header, name, bytes)
    };
    match &entry.what {
        What::Text(text) => file(text.as_bytes()),
        What::Bytes(bytes) => file(bytes),
        What::Dir => {
            header.set_entry_type(EntryType::Directory);
            archive.append_data(&mut header, format!("{name}/"), io::empty())
        }
        What::Link(target) => {
            header.set_entry_type(EntryType::Symlink);
            archive.append_link(&mut header, name, target)
        }
    }
}

/// The list for people.
pub fn list_text(list: &[Listed]) -> String {
    let line = |one: &Listed| {
        let size = match (one.name.ends_with('/'), one.size) {
            (true, files) => format!("{files} files"),
            (false, bytes) => format!("{bytes} bytes"),
        };
        let text = match &one.missing {
            Some(why) if one.size == 0 => format!("not there: {why}"),
            Some(why) => format!("{size}; {why}"),
            None => size,
        };
        format!("  {:<24} {text}\n", one.name)
    };
    list.iter().map(line).collect()
}

fn contents(list: &[Listed], left: &[String], time: u64) -> String {
    let left = match left {
        [] => String::new(),
        names => format!("Common names are left as they are: {}.\n", names.join(", ")),
    };
    format!(
        "A report of gpu-handoff {}, {}.\n\n{}\n\
         {HOST}/ is the host as a tree of files, as far as 'plan' and 'check' look at it:\n\
         'gpu-handoff report --replay FILE' runs both on it.\n\n\
         Names of hosts and people, numbers of devices and machines, addresses of networks\n\
         and what opens something are replaced (HOST, USER-1, UUID-1, MAC-1, IP-1, SERIAL-1,\n\
         EMAIL-1, SECRET-1): the same by the same throughout.\n{left}",
        env!("CARGO_PKG_VERSION"),
        clock::utc(time),
        list_text(list),
    )
}
