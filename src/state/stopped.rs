//! What is stopped for a handoff at this moment, kept below /var/lib/gpu-handoff: a record is gone with the host's next start, and
//! what nothing starts at a boot would stay down without a word.
//!
//! It is for people, as the history is: no handoff is ever decided from it, and one that cannot be written stops nothing. Each boot
//! has a file of its own, so that who looks at those of the boots before and who writes this one's do not meet.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;

use serde::{Deserialize, Serialize};

use crate::base::files::{replace, sync_folder};
use crate::base::json;
use crate::base::root::Root;
use crate::host::units::Unit;
use crate::model::record::Record;
use crate::state::history::DIR;

/// The longest file that is read, bytes: sixteen handoffs that stop as much as they may.
const LONGEST: usize = 512 << 10;

/// What a record owes others. What runs on is no less there after a boot.
pub fn owed(record: &Record) -> impl Iterator<Item = &Unit> {
    record.units.iter().filter(|unit| unit.runs_on().is_none())
}

/// Those of the records that have stopped something, as a file has them: each as it is written itself, with a line between.
pub fn text<'a>(records: impl Iterator<Item = &'a Record>) -> String {
    let owes = records.filter(|record| owed(record).next().is_some());
    let texts: Vec<String> = owes
        .filter_map(|record| serde_json::to_vec_pretty(record).ok())
        .filter_map(|text| String::from_utf8(text).ok())
        .collect();
    texts.join(BETWEEN)
}

/// No record has an empty line.
const BETWEEN: &str = "\n\n";

fn file_name(boot_id: &str) -> String {
    format!("stopped-{boot_id}.json")
}

/// Keeps this of all that is stopped in this boot, in the place of what was. Called under the host-wide lock, so nobody else
/// writes.
///
/// # Errors
/// Those of writing.
pub fn keep(root: &Root, boot_id: &str, text: &str) -> io::Result<()> {
    let dir = root.path(DIR);
    let path = dir.join(file_name(boot_id));
    if text.is_empty() {
        return match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        };
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
    replace(&path, text.as_bytes()).inspect_err(|_| {
        // What was true before is not said after the boot: to remove it needs no room.
        let _ = fs::remove_file(&path);
    })?;
    // Its name, too: a host that goes down in the next seconds is what it is for.
    sync_folder(&dir)
}

/// The files, of all boots.
fn files(root: &Root) -> Vec<String> {
    let mut names = root.names(DIR).unwrap_or_default();
    names.retain(|name| name.starts_with("stopped-") && name.ends_with(".json"));
    names
}

/// What the files have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    /// The records of each boot that have stopped something, this one's among them.
    pub records: Vec<Record>,
    /// Files that have something else as well, or more.
    pub unreadable: Vec<String>,
}

/// What was stopped in each boot.
pub fn read(root: &Root) -> Stopped {
    let mut stopped = Stopped::default();
    for name in files(root) {
        let path = format!("{DIR}/{name}");
        let text = root.bytes_up_to(&path, LONGEST).unwrap_or_default();
        let mut is_whole = text.len() < LONGEST;
        for text in String::from_utf8_lossy(&text).split(BETWEEN) {
            let record = json::from_slice(text.as_bytes());
            is_whole &= record.is_ok();
            stopped.records.extend(record.ok());
        }
        if !is_whole {
            stopped.unreadable.push(path);
        }
    }
    stopped
}

/// Forgets the boots before this one.
///
/// # Errors
/// Those of removing.
pub fn forget_before(root: &Root, boot_id: &str) -> io::Result<()> {
    let own = file_name(boot_id);
    let mut old = files(root).into_iter().filter(|name| *name != own);
    old.try_for_each(|name| fs::remove_file(root.path(DIR).join(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::os::unix::fs::PermissionsExt;

    use crate::base::deadlines::Budgets;
    use crate::model::record::Owner;

    fn record(boot: &str, vmid: &str, units: &[&str]) -> Record {
        let mut record = Record::new(Owner::Vm(vmid.parse().unwrap()), boot.to_owned(), Budgets::default());
        record.units = units.iter().map(|name| Unit::host(name)).collect();
        record
    }

    #[test]
    fn a_record_is_kept_that_has_stopped_something_which_does_not_run_on() {
        let mut record = record("a", "111", &[]);
        assert_eq!(text([&record].into_iter()), "");
        record.units.push(Unit::DriverUse {
            driver_use_of: "nvidia-dcgm.service".to_owned(),
        });
        assert_eq!(text([&record].into_iter()), "");
        record.units.push(Unit::host("ollama.service"));
        assert!(text([&record].into_iter()).contains("ollama.service"));
        assert_eq!(owed(&record).collect::<Vec<_>>(), [&Unit::host("ollama.service")]);
    }

    #[test]
    fn each_boot_has_its_own_which_is_shortened_and_goes_and_the_files_are_for_root_alone() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path());
        let keep = |boot: &str, records: &[&Record]| keep(&root, boot, &text(records.iter().copied())).unwrap();
        assert_eq!(read(&root), Stopped::default());
        keep("a", &[]);
        let records = || read(&root).records;
        let before = record("a", "111", &["ollama.service", "jellyfin.service"]);
        let other = record("a", "112", &["x.service"]);
        keep("a", &[&before, &other]);
        assert_eq!(records(), [before.clone(), other]);
        keep("a", &[&before]);
        let now = record("b", "112", &["y.service"]);
        keep("b", &[&now]);
        let mut all = records();
        all.sort_by_key(|one| one.boot_id.clone());
        assert_eq!(all, [before, now.clone()]);
        let mode = |path: &str| fs::metadata(root.path(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(DIR), mode("/var/lib/gpu-handoff/stopped-a.json")), (0o700, 0o600));
        // What is none of them stays.
        fs::write(root.path("/var/lib/gpu-handoff/history.jsonl"), "").unwrap();
        fs::write(root.path("/var/lib/gpu-handoff/stopped-c.json"), "{\"boot").unwrap();
        let unreadable = read(&root).unreadable;
        assert_eq!(unreadable, ["/var/lib/gpu-handoff/stopped-c.json"]);
        forget_before(&root, "b").unwrap();
        assert_eq!((records(), read(&root).unreadable), (vec![now], Vec::new()));
        keep("b", &[]);
        assert_eq!(read(&root), Stopped::default());
        assert_eq!(root.names(DIR).unwrap(), ["history.jsonl"]);
    }

    #[test]
    fn where_nothing_can_be_written_that_is_an_error_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path());
        fs::create_dir_all(root.path("/var/lib")).unwrap();
        fs::write(root.path(DIR), "no folder").unwrap();
        let text = text([&record("a", "111", &["ollama.service"])].into_iter());
        assert!(keep(&root, "a", &text).is_err());
        assert_eq!(read(&root), Stopped::default());
        forget_before(&root, "b").unwrap();
    }
}
