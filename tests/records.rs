//! A record of every version that was released is read by this one, and loses nothing: a GPU may be out while the package
//! is upgraded. Each folder of `tests/records` has what that version could write, its acts among them; a release adds a
//! folder with its number, and none is ever changed.

#![allow(clippy::unwrap_used)] // a test that cannot set itself up should stop there

use std::fs;
use std::path::PathBuf;

use gpu_handoff::model::record::{Record, State};
use gpu_handoff::state::store::Store;
use serde_json::Value;

fn versions() -> Vec<(String, PathBuf)> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/records");
    let entries = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    entries
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), path))
        .collect()
}

/// What is in `before` and not, or not so, in `after`, by its path.
fn lost(path: &str, before: &Value, after: &Value, found: &mut Vec<String>) {
    match (before, after) {
        (Value::Object(b), Value::Object(a)) => {
            for (key, value) in b {
                lost(
                    &format!("{path}.{key}"),
                    value,
                    a.get(key).unwrap_or(&Value::Null),
                    found,
                );
            }
        }
        (Value::Array(b), Value::Array(a)) if a.len() == b.len() => {
            for (n, (b, a)) in b.iter().zip(a).enumerate() {
                lost(&format!("{path}.{n}"), b, a, found);
            }
        }
        _ if before == after => {}
        _ => found.push(format!("{path}: {before} became {after}")),
    }
}

#[test]
fn records_of_every_released_version_are_read_and_written_again_without_loss() {
    for (version, dir) in versions() {
        let (records, problems) = Store::at(&dir).load().unwrap();
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(problems, [""; 0], "{version}");
        assert_eq!(records.len(), fs::read_dir(&dir).unwrap().count(), "{version}");
        for state in [State::Leaving, State::Away, State::Returning, State::Stranded] {
            assert!(records.iter().any(|r| r.state == state), "{version}: none is {state:?}");
        }
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let text = fs::read(&path).unwrap();
            let record: Record = serde_json::from_slice(&text).unwrap();
            let mut found = Vec::new();
            let before = serde_json::from_slice(&text).unwrap();
            lost("", &before, &serde_json::to_value(&record).unwrap(), &mut found);
            assert_eq!(found, [""; 0], "{}", path.display());
        }
    }
}

#[test]
fn this_version_has_its_records_kept_and_all_that_it_writes_is_among_them() {
    let ours = env!("CARGO_PKG_VERSION");
    let all = versions();
    let (_, dir) = all
        .iter()
        .find(|(version, _)| version == ours)
        .unwrap_or_else(|| panic!("no tests/records/{ours}: a release keeps what it writes"));
    let texts = fs::read_dir(dir).unwrap().map(|e| fs::read(e.unwrap().path()).unwrap());
    let kept: Vec<Value> = texts.map(|t| serde_json::from_slice(&t).unwrap()).collect();
    for text in &kept {
        let record: Record = serde_json::from_value(text.clone()).unwrap();
        let written = serde_json::to_value(&record).unwrap();
        for key in written.as_object().unwrap().keys() {
            assert!(kept.iter().any(|k| k.get(key).is_some()), "no kept record has '{key}'");
        }
        for key in written["budgets"].as_object().unwrap().keys() {
            assert!(
                kept[0]["budgets"].get(key).is_some(),
                "no kept record has the budget '{key}'"
            );
        }
    }
}
