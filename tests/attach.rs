//! `attach` and `detach` on hosts that are trees of files, word for word: what is shown, asked, run, refused, and what the
//! configs are then.
//!
//! UPDATE_ATTACH=1 writes tests/attach/screens.txt instead of comparing it; it is read before it is committed.

#![allow(clippy::unwrap_used)] // a test that cannot set itself up should stop there

#[allow(dead_code)] // what plans need
#[path = "hosts/asked.rs"]
mod asked;
#[path = "attach/cases.rs"]
mod cases;
#[allow(dead_code)] // what the checks need
#[path = "check/hosts.rs"]
mod hosts;
#[path = "hosts/tree.rs"]
mod tree;
#[path = "attach/world.rs"]
mod world;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// What may give no answer.
mod check_part {
    pub use gpu_handoff::check::read::Part;
}

use cases::CASES;
use gpu_handoff::settings::file;
use world::World;

/// What of files differs, a line each.
fn differences(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> String {
    let mut text = String::new();
    let paths: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    for path in paths {
        let lines = |files: &BTreeMap<String, String>| -> Vec<String> {
            files
                .get(path)
                .map(|t| t.lines().map(str::to_owned).collect())
                .unwrap_or_default()
        };
        let (was, is) = (lines(before), lines(after));
        for line in was.iter().filter(|l| !is.contains(l)) {
            writeln!(text, "{path}: -{line}").unwrap();
        }
        for line in is.iter().filter(|l| !was.contains(l)) {
            writeln!(text, "{path}: +{line}").unwrap();
        }
    }
    text
}

#[test]
fn each_case_reads_as_its_text_says() {
    let mut golden = String::new();
    for case in CASES {
        let mut world = World::of(case.ask, case.beside);
        writeln!(golden, "== {}", case.name).unwrap();
        for (words, answers) in case.lines {
            let before = world.changed();
            let ended = world.run(words, answers);
            let told = std::mem::take(&mut world.told);
            // What somebody else changes meanwhile is not ours.
            let has_acted = ["(runs ", "(writes ", "(removes "].iter().any(|act| told.contains(act));
            assert!(
                !matches!(ended, Err(2 | 3)) || !has_acted,
                "{words}: refused, and something was changed: {told}"
            );
            golden += &told;
            let after = world.changed();
            golden += &differences(&before, &after);
            let is_shown = words.ends_with("--dry-run");
            assert!(
                !is_shown || before == after,
                "{words}: shown, and something was changed"
            );
        }
        golden.push('\n');
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/attach/screens.txt");
    if std::env::var_os("UPDATE_ATTACH").is_some_and(|v| v == "1") {
        fs::write(&path, &golden).unwrap();
        return;
    }
    let expected = fs::read_to_string(&path).unwrap();
    for (at, (was, is)) in expected.lines().zip(golden.lines()).enumerate() {
        assert_eq!(was, is, "screens.txt:{}: UPDATE_ATTACH=1 writes it anew", at + 1);
    }
    assert_eq!(expected.len(), golden.len());
}

#[test]
fn what_attach_writes_is_in_force_for_that_vm_alone() {
    let case = CASES.iter().find(|c| c.name.starts_with("all that can be")).unwrap();
    let mut world = World::of(case.ask, case.beside);
    world.run("attach 111 --accept-policies --yes", &[]).unwrap();
    let of = |vm: &str| file::load(world.root(), Some(vm.parse().unwrap())).unwrap();
    assert!(of("111").services.names("ollama.service"));
    assert_eq!(of("111").origins["containers"], "/etc/gpu-handoff/conf.d/111.toml:7");
    assert_eq!(of("112"), gpu_handoff::settings::values::Settings::default());
}

#[test]
fn what_is_printed_for_programs_is_as_its_schema_says() {
    let schema = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/schemas/attach.json")).unwrap();
    let schema: serde_json::Value = serde_json::from_str(&schema).unwrap();
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    let mut told = 0;
    for case in CASES {
        for (words, _) in case.lines {
            let mut world = World::of(case.ask, case.beside);
            let words = words
                .replace(" --yes", "")
                .replace(" --dry-run", "")
                .replace(" --json", "");
            for way in ["--dry-run", "--yes", "--yes"] {
                world.shown.clear();
                if world.run(&format!("{words} --json {way}"), &[]).is_err() {
                    assert_eq!(world.shown, "", "{words} {way}");
                    continue;
                }
                let value: serde_json::Value = serde_json::from_str(&world.shown).unwrap();
                told += 1;
                let wrong: Vec<String> = validator.iter_errors(&value).map(|e| e.to_string()).collect();
                assert_eq!(wrong, Vec::<String>::new(), "{words} {way}: {value}");
            }
        }
    }
    assert!(told > 60, "{told}");
}
