//! What was done so far: one JSON line for each way out and each way home, below /var/lib/gpu-handoff.
//!
//! It is for people and for bug reports; nothing is ever decided from it. It is written in a worker, since a disk can be as
//! stuck as a device, and a history that cannot be written is said and stops nothing.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::files::replace;
use crate::base::json;
use crate::base::root::Root;
use crate::model::act::Act;
use crate::model::plan::Direction;

/// Where it is kept; 0700, for it names processes of containers.
pub const DIR: &str = "/var/lib/gpu-handoff";

/// Its file.
const FILE: &str = "history.jsonl";

/// How long it gets, bytes: some hundred handoffs. Then the older half goes.
const LONGEST: usize = 512 << 10;

/// One way out or home.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handoff {
    /// When it began, seconds since 1970 (UTC).
    pub time: u64,
    /// In which boot (/proc/sys/kernel/random/boot_id).
    pub boot_id: String,
    /// Whose it was, as the log has it.
    pub owner: String,
    /// Where it led.
    pub direction: Direction,
    /// The cards.
    pub cards: Vec<String>,
    /// How it ended: "done", or the sentence that was its error.
    pub outcome: String,
    /// How long it took, milliseconds.
    pub took_ms: u64,
    /// The acts, those of the undo among them.
    pub acts: Vec<Past>,
    /// What was forgotten before this one, so that the file does not grow for ever; None: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")] // since a later version
    pub forgotten: Option<Counts>,
}

impl Handoff {
    /// Whether it ended well.
    pub fn is_done(&self) -> bool {
        self.outcome == "done"
    }
}

/// How many handoffs there were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Ways out that were done.
    pub out_done: u64,
    /// Ways out that failed.
    pub out_failed: u64,
    /// Ways home that were done.
    pub home_done: u64,
    /// Ways home that failed.
    pub home_failed: u64,
}

impl Counts {
    /// Of these, and of what was forgotten before them.
    pub fn of<'a>(past: impl IntoIterator<Item = &'a Handoff>) -> Self {
        let mut counts = Counts::default();
        for (at, handoff) in past.into_iter().enumerate() {
            if let Some(before) = handoff.forgotten.filter(|_| at == 0) {
                counts = before;
            }
            *match (handoff.direction, handoff.is_done()) {
                (Direction::Out, true) => &mut counts.out_done,
                (Direction::Out, false) => &mut counts.out_failed,
                (Direction::Home, true) => &mut counts.home_done,
                (Direction::Home, false) => &mut counts.home_failed,
            } += 1;
        }
        counts
    }
}

/// What an act did to somebody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Did {
    /// A unit was stopped.
    Stopped,
    /// One that was stopped was started again.
    Started,
    /// A unit was restarted.
    Restarted,
    /// Processes were asked to end.
    Ended,
}

impl Did {
    /// What an act does; None: nothing to anybody else.
    pub fn of(act: &Act) -> Option<Did> {
        Some(match act {
            Act::StopUnit { .. } => Did::Stopped,
            Act::StartUnit { .. } => Did::Started,
            Act::RestartUnit { .. } => Did::Restarted,
            Act::EndProcesses { .. } => Did::Ended,
            _ => return None,
        })
    }
}

/// An act in a few words: on disk one text, "subject: verb", which is written and read here alone. A subject that has such a
/// colon in it, in a name that a process has chosen, is read as one that ends there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", from = "String")]
pub struct Deed {
    /// What it was done to; None: a text of another form.
    pub subject: Option<String>,
    /// What was done.
    pub verb: String,
}

impl fmt::Display for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.subject {
            Some(subject) => write!(f, "{subject}: {}", self.verb),
            None => write!(f, "{}", self.verb),
        }
    }
}

impl From<Deed> for String {
    fn from(deed: Deed) -> Self {
        deed.to_string()
    }
}

impl From<String> for Deed {
    fn from(text: String) -> Self {
        Deed::from(text.as_str())
    }
}

impl From<&str> for Deed {
    fn from(text: &str) -> Self {
        let (subject, verb) = match text.split_once(": ") {
            Some((subject, verb)) => (Some(subject.to_owned()), verb),
            None => (None, text),
        };
        let verb = verb.to_owned();
        Deed { subject, verb }
    }
}

impl From<&Act> for Deed {
    fn from(act: &Act) -> Self {
        Deed {
            subject: Some(act.subject()),
            verb: act.verb(),
        }
    }
}

/// One act that was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    /// What it was, to which device.
    pub text: Deed,
    /// How long it took, milliseconds.
    pub took_ms: u64,
    /// Why it failed; None: it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What it did to somebody else.
    #[serde(default, skip_serializing_if = "Option::is_none")] // since a later version
    pub did: Option<Did>,
    /// What a person does about a service that has not started.
    #[serde(default, skip_serializing_if = "Option::is_none")] // since a later version
    pub remedy: Option<String>,
}

impl Past {
    /// An act that took so long, and why it failed.
    pub fn of(act: &Act, took: Duration, error: Option<&impl ToString>) -> Self {
        let remedy = match act {
            Act::StartUnit { name, .. } | Act::RestartUnit { name } => error.map(|_| name.start_by_hand()),
            _ => None,
        };
        Past {
            text: act.into(),
            took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            error: error.map(ToString::to_string),
            did: Did::of(act),
            remedy,
        }
    }

    /// What it was done to.
    pub fn subject(&self) -> &str {
        self.text.subject.as_ref().unwrap_or(&self.text.verb)
    }
}

/// Adds an entry. Called under the host-wide lock, so nobody else writes.
///
/// # Errors
/// Those of writing.
pub fn add(root: &Root, entry: &Handoff) -> io::Result<()> {
    let dir = root.path(DIR);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
    let path = dir.join(FILE);
    let mut line = serde_json::to_string(entry)?;
    line.push('\n');
    if let Some(counts) = shorten(&path, LONGEST.saturating_sub(line.len()))? {
        let forgotten = Some(counts);
        line = serde_json::to_string(&Handoff {
            forgotten,
            ..entry.clone()
        })? + "\n";
    }
    let mut options = OpenOptions::new();
    let mut file = options.read(true).append(true).create(true).mode(0o600).open(path)?;
    let length = file.metadata()?.len();
    // A line that was torn is one of its own: it does not swallow this one.
    let mut last = [b'\n'];
    if let Some(at) = length.checked_sub(1) {
        file.read_exact_at(&mut last, at)?;
    }
    if last != [b'\n'] {
        line.insert(0, '\n');
    }
    file.write_all(line.as_bytes()).inspect_err(|_| {
        let _ = file.set_len(length);
    })
}

/// Keeps the newer half of a file that is longer than so many bytes, and counts the rest. The counts, where there is no entry
/// any more that has them.
fn shorten(path: &Path, longest: usize) -> io::Result<Option<Counts>> {
    let is_long = |file: &fs::Metadata| usize::try_from(file.len()).is_ok_and(|length| length > longest);
    let text = match fs::metadata(path) {
        Ok(file) if is_long(&file) => fs::read(path)?,
        Ok(_) => return Ok(None),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        // Not ours to read: what is in the way is moved aside by nobody.
        Err(e) => return Err(e),
    };
    let newer = text.iter().enumerate().skip(text.len() - longest / 2);
    let from = newer.filter(|(_, b)| **b == b'\n').map(|(at, _)| at + 1).next();
    let (older, newer) = text.split_at(from.unwrap_or(text.len()));
    let mut counts = Some(Counts::of(&entries(older)));
    let mut bytes = Vec::new();
    for line in newer.split_inclusive(|b| *b == b'\n') {
        match json::from_slice::<Handoff>(line) {
            Ok(mut entry) if counts.is_some() => {
                entry.forgotten = counts.take();
                bytes.extend(serde_json::to_vec(&entry)?);
                bytes.push(b'\n');
            }
            _ => bytes.extend(line),
        }
    }
    replace(path, &bytes)?;
    Ok(counts)
}

/// The entries in some lines; a line that is none is left out.
fn entries(text: &[u8]) -> Vec<Handoff> {
    let lines = text.split(|b| *b == b'\n');
    lines.filter_map(|line| json::from_slice(line).ok()).collect()
}

/// All entries, the oldest first; a line that is none is left out.
///
/// # Errors
/// Those of reading, but "not there" is no entry.
pub fn read(root: &Root) -> io::Result<Vec<Handoff>> {
    let text = match root.text(format!("{DIR}/{FILE}")) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    Ok(entries(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(time: u64) -> Handoff {
        Handoff {
            time,
            boot_id: "boot".to_owned(),
            owner: "VM 111".to_owned(),
            direction: Direction::Out,
            cards: vec!["0000:01:00".to_owned()],
            outcome: "done".to_owned(),
            took_ms: 1234,
            acts: vec![Past {
                text: "0000:01:00.0 unbind from nvidia".into(),
                took_ms: 12,
                error: None,
                did: None,
                remedy: None,
            }],
            forgotten: None,
        }
    }

    #[test]
    fn what_is_added_is_read_and_the_files_are_for_root_alone() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path());
        assert_eq!(read(&root).unwrap(), []);
        add(&root, &entry(1)).unwrap();
        add(&root, &entry(2)).unwrap();
        assert_eq!(read(&root).unwrap(), [entry(1), entry(2)]);
        let mode = |path: &str| fs::metadata(root.path(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(DIR), mode("/var/lib/gpu-handoff/history.jsonl")), (0o700, 0o600));
    }

    #[test]
    fn it_is_bounded_and_keeps_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path());
        let mut big = entry(0);
        big.outcome = "x".repeat(10_000);
        for time in 0..120 {
            big.time = time;
            add(&root, &big).unwrap();
        }
        let kept = read(&root).unwrap();
        let size = fs::metadata(root.path("/var/lib/gpu-handoff/history.jsonl"))
            .unwrap()
            .len();
        assert!(usize::try_from(size).unwrap() <= LONGEST, "{size}");
        assert!(kept.len() >= 20, "{}", kept.len());
        let times: Vec<u64> = kept.iter().map(|e| e.time).collect();
        assert_eq!(
            times,
            (120 - u64::try_from(kept.len()).unwrap()..120).collect::<Vec<u64>>()
        );
    }

    #[test]
    fn what_is_forgotten_is_counted_still() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path());
        let mut counts = Counts::default();
        for time in 0..200 {
            let mut big = entry(time);
            big.acts[0].text = "x".repeat(10_000).into();
            match time % 3 {
                0 => counts.out_done += 1,
                1 => {
                    big.direction = Direction::Home;
                    counts.home_done += 1;
                }
                _ => {
                    (big.direction, big.outcome) = (Direction::Home, "no".to_owned());
                    counts.home_failed += 1;
                }
            }
            add(&root, &big).unwrap();
            assert_eq!(Counts::of(&read(&root).unwrap()), counts, "{time}");
        }
        let kept = read(&root).unwrap();
        assert!(kept.len() < 100 && kept[0].forgotten.is_some(), "{}", kept.len());
    }

    #[test]
    fn entries_of_earlier_versions_are_read_and_new_ones_look_like_them() {
        for (direction, word) in [(Direction::Out, "out"), (Direction::Home, "home")] {
            let entry = Handoff { direction, ..entry(1) };
            let line = format!(
                "{{\"time\":1,\"boot_id\":\"boot\",\"owner\":\"VM 111\",\"direction\":\"{word}\",\"cards\":\
                 [\"0000:01:00\"],\"outcome\":\"done\",\"took_ms\":1234,\"acts\":[{{\"text\":\"0000:01:00.0 unbind \
                 from nvidia\",\"took_ms\":12}}]}}"
            );
            assert_eq!(serde_json::to_string(&entry).unwrap(), line);
            assert_eq!(serde_json::from_str::<Handoff>(&line).unwrap(), entry);
        }
    }

    #[test]
    fn an_act_is_kept_as_its_text_and_read_as_its_parts() {
        let act = Act::UnloadModule {
            name: "nvidia".to_owned(),
        };
        let deed = Deed::from(&act);
        assert_eq!(deed.to_string(), act.to_string());
        let kept = serde_json::to_string(&deed).unwrap();
        assert_eq!(kept, format!("\"{act}\""));
        assert_eq!(serde_json::from_str::<Deed>(&kept).unwrap(), deed);
        for (text, subject) in [("a: b: c", Some("a")), ("a b", None), ("", None), (": b", Some(""))] {
            let deed = Deed::from(text);
            assert_eq!((deed.to_string().as_str(), deed.subject.as_deref()), (text, subject));
        }
    }

    #[test]
    fn a_line_that_is_no_entry_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path());
        add(&root, &entry(1)).unwrap();
        let path = root.path("/var/lib/gpu-handoff/history.jsonl");
        let text = fs::read_to_string(&path).unwrap() + "{\"time\": 2, \"own\n";
        fs::write(path, text).unwrap();
        add(&root, &entry(3)).unwrap();
        assert_eq!(read(&root).unwrap(), [entry(1), entry(3)]);
    }

    #[test]
    fn neither_a_torn_line_nor_bytes_that_are_no_text_keep_an_entry_out() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path());
        let path = root.path("/var/lib/gpu-handoff/history.jsonl");
        let append = |bytes: &[u8]| {
            let mut file = OpenOptions::new().append(true).open(&path).unwrap();
            file.write_all(bytes).unwrap();
        };
        add(&root, &entry(1)).unwrap();
        append(b"{\"time\":2,\"boot_id\":\"b");
        add(&root, &entry(3)).unwrap();
        append(b"\xc3\n");
        add(&root, &entry(4)).unwrap();
        assert_eq!(read(&root).unwrap(), [entry(1), entry(3), entry(4)]);
        // Too long by them, too.
        append(&vec![0xff; LONGEST]);
        add(&root, &entry(5)).unwrap();
        add(&root, &entry(6)).unwrap();
        assert_eq!(read(&root).unwrap().last(), Some(&entry(6)));
        assert!(fs::metadata(&path).unwrap().len() <= LONGEST as u64);
    }
}
