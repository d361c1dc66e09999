//! What was done so far: one JSON line for each way out and each way home, below /var/lib/gpu-handoff.
//!
//! It is for people and for bug reports; nothing is ever decided from it. It is written in a worker, since a disk can be as
//! stuck as a device, and a history that cannot be written is said and stops nothing.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::base::files::replace;
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

/// One act that was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    /// What it was, to which device.
    pub text: String,
    /// How long it took, milliseconds.
    pub took_ms: u64,
    /// Why it failed; None: it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What it did to somebody else.
    #[serde(default, skip_serializing_if = "Option::is_none")] // since a later version
    pub did: Option<Did>,
}

impl Past {
    /// What it was done to: what its text begins with.
    pub fn subject(&self) -> &str {
        self.text.split_once(": ").map_or(&self.text, |(subject, _)| subject)
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
    shorten(&path, LONGEST.saturating_sub(line.len()))?;
    let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    file.write_all(line.as_bytes())
}

/// Keeps the newer half of a file that is longer than so many bytes.
fn shorten(path: &Path, longest: usize) -> io::Result<()> {
    let text = match fs::read_to_string(path) {
        Ok(text) if text.len() > longest => text,
        Ok(_) => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        // Not ours to read: what is in the way is moved aside by nobody.
        Err(e) => return Err(e),
    };
    let newer = text.as_bytes().iter().enumerate().skip(text.len() - longest / 2);
    let from = newer.filter(|(_, b)| **b == b'\n').map(|(at, _)| at + 1).next();
    replace(path, &text.as_bytes()[from.unwrap_or(text.len())..])
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
    Ok(text
        .lines()
        .filter_map(|line| serde_json::from_slice(line.as_bytes()).ok())
        .collect())
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
                text: "0000:01:00.0 unbind from nvidia".to_owned(),
                took_ms: 12,
                error: None,
                did: None,
            }],
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
}
