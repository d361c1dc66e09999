//! The walls of the house: which file of src may import which, and what stands in one place alone.
//!
//! 1. An import goes down the list of wings or stays in its wing, and files do not import each other in a circle. It names
//!    what it needs of a wing, not the whole of it; a wing's door shows what others use, and no more.
//! 2. The pure wings know neither files nor processes, clocks nor the screen, but for the one file of each that reads.
//! 3. Every file says what it is for, and has at most 500 lines without its tests.
//! 4. What is read, known or said in one place is so nowhere else: `tests/walls/watches.rs`.
//!
//! What counts is every path, in `use` lines and in the code, in macros and in strings of attributes: `tests/walls/paths.rs`.
//! Each offence names file, line and rule. What the rules are for is in ARCHITECTURE.md.

#![allow(clippy::unwrap_used)] // a test that cannot set itself up should stop there
#![allow(clippy::expect_used)] // likewise
#![allow(clippy::print_stdout)] // what was counted is a result

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use proc_macro2::{TokenStream, TokenTree};

use crate::code::{Code, Source};
use crate::rules::{WINGS, offences, texts};

#[path = "walls/code.rs"]
mod code;
#[path = "walls/paths.rs"]
mod paths;
#[path = "walls/planted.rs"]
mod planted;
#[path = "walls/rules.rs"]
mod rules;
#[path = "walls/watches.rs"]
mod watches;

/// What the median of the files stays under, lines without tests.
const MEDIAN: usize = 200;

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file of Rust below a folder.
fn below(folder: &str) -> Vec<Source> {
    fn read(dir: &Path, prefix: &str, all: &mut Vec<Source>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = format!("{prefix}{}", path.file_name().unwrap().to_string_lossy());
            if path.is_dir() {
                read(&path, &format!("{name}/"), all);
            } else if name.ends_with(".rs") {
                all.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let mut all = Vec::new();
    read(&top().join(folder), "", &mut all);
    all.sort();
    all
}

fn sources() -> Vec<Source> {
    below("src")
}

#[test]
fn the_walls_stand() {
    let sources = sources();
    let (mut found, imports) = offences(&sources);
    let count = |rule: &str| found.iter().filter(|o| o.rule == rule).count();
    let mut lines: Vec<usize> = sources.iter().map(|(_, text)| Code::read(text).own_lines).collect();
    lines.sort_unstable();
    println!(
        "{} files, {} imports between them, {} that go up, {} in circles, {} offences; at most {} lines, median {}",
        sources.len(),
        imports.values().map(std::collections::BTreeMap::len).sum::<usize>(),
        count("an import goes down"),
        count("no circles"),
        found.len(),
        lines[lines.len() - 1],
        lines[lines.len() / 2],
    );
    found.extend(watches::offences(&sources));
    let outside = ["tests", "benches", "fuzz"].map(below).concat();
    found.extend(watches::doors(&sources, &outside));
    assert!(found.is_empty(), "{} offences:\n{}", found.len(), texts(&found));
    assert!(
        lines[lines.len() / 2] < MEDIAN,
        "the median of the files is {}",
        lines[lines.len() / 2]
    );
}

/// Whoever trusts the program is told which variables of the environment it reads and which programs it runs.
#[test]
fn the_variables_that_are_read_and_the_programs_that_are_run_are_in_the_document() {
    let document = fs::read_to_string(top().join("SECURITY.md")).unwrap();
    let mut programs = BTreeSet::new();
    for (_, text) in sources() {
        programs.extend(watches::programs(&Code::read(&text).own()));
    }
    assert!(
        programs.contains("lxc-cgroup") && programs.contains("pct"),
        "{programs:?}"
    );
    for name in watches::VARIABLES
        .into_iter()
        .chain(programs.iter().map(String::as_str))
    {
        assert!(
            document.contains(&format!("`{name}`")),
            "`{name}` is not in SECURITY.md"
        );
    }
}

#[test]
fn every_wing_is_on_the_list() {
    let src = top().join("src");
    let dirs = fs::read_dir(src)
        .unwrap()
        .map(|e| e.unwrap())
        .filter(|e| e.path().is_dir());
    let names: BTreeSet<String> = dirs.map(|d| d.file_name().to_string_lossy().into_owned()).collect();
    let unknown: Vec<&String> = names.iter().filter(|n| !WINGS.contains(&n.as_str())).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    let lib = fs::read_to_string(top().join("src/lib.rs")).unwrap();
    let listed: Vec<&str> = lib
        .lines()
        .filter_map(|l| l.strip_prefix("pub mod ")?.split(';').next())
        .collect();
    let expected: Vec<&str> = WINGS.into_iter().filter(|w| names.contains(*w)).collect();
    assert_eq!(listed, expected, "lib.rs lists the wings in their order");
}

/// The way in for whoever comes after us has a line for each file, under its wing.
#[test]
fn the_map_of_the_house_has_every_file() {
    let map = fs::read_to_string(top().join("ARCHITECTURE.md")).unwrap();
    let mut wing = String::new();
    let mut listed = BTreeSet::new();
    for cell in map
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(" |").next())
    {
        let name = cell.trim_matches(['*', '`']);
        if let Some(dir) = name.strip_prefix("src/").filter(|n| n.ends_with('/')) {
            wing = dir.to_owned();
        } else if name.ends_with(".rs") && !name.contains(' ') {
            listed.insert(name.strip_prefix("src/").map_or(format!("{wing}{name}"), str::to_owned));
        }
    }
    let is_door = |file: &str| file.ends_with("/mod.rs");
    let files: BTreeSet<String> = sources().into_iter().map(|(file, _)| file).collect();
    let missing: Vec<&String> = files.iter().filter(|f| !is_door(f) && !listed.contains(*f)).collect();
    let gone: Vec<&String> = listed.iter().filter(|f| !files.contains(*f)).collect();
    assert!(
        missing.is_empty() && gone.is_empty(),
        "not on the map: {missing:?}; not in src: {gone:?}"
    );
}

/// The files in which the word `unsafe` is code, that is no part of a comment or of another word.
fn unsafe_in(tokens: TokenStream) -> bool {
    tokens.into_iter().any(|token| match token {
        TokenTree::Ident(ident) => ident == "unsafe",
        TokenTree::Group(group) => unsafe_in(group.stream()),
        _ => false,
    })
}

#[test]
fn all_that_is_unsafe_is_in_one_file() {
    let has_some = |text: &str| unsafe_in(text.parse().unwrap());
    assert!(has_some("fn f() { unsafe { g() } }") && !has_some("// unsafe\nfn unsafe_in() { \"unsafe\"; }"));
    let sources = sources();
    let found: Vec<&str> = sources
        .iter()
        .filter(|s| has_some(&s.1))
        .map(|s| s.0.as_str())
        .collect();
    assert_eq!(found, ["base/unsafe_calls.rs"]);
}
