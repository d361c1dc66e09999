//! The walls of the house: which file of src may import which.
//!
//! 1. An import goes down the list of wings or stays in its wing, and files do not import each other in a circle.
//! 2. The pure wings know neither files nor processes nor the screen, but for the one file of each that reads.
//! 3. Every file says what it is for, and has at most 500 lines without its tests.
//!
//! What counts is every path that begins with `crate`, `self` or `super`, in `use` lines and in the code, in macros too.
//! Each offence names file, line and rule. What the rules are for is in ARCHITECTURE.md.

#![allow(clippy::unwrap_used)] // a test that cannot set itself up should stop there
#![allow(clippy::print_stdout)] // what was counted is a result

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::Path;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// The wings, from the top to the ground.
const WINGS: [&str; 16] = [
    "commands", "run", "execute", "tell", "output", "attach", "prepare", "check", "plan", "report", "state", "model",
    "settings", "proxmox", "host", "base",
];

/// Wings that take values and give values.
const PURE: [&str; 7] = ["attach", "check", "plan", "report", "model", "settings", "proxmox"];

/// Their files that read, through a root that is a parameter.
const READERS: [&str; 4] = [
    "check/read.rs",
    "report/unpack.rs",
    "settings/file.rs",
    "proxmox/files.rs",
];

/// What reaches beyond values.
const IMPURE: [&str; 13] = [
    "std::fs",
    "std::env",
    "std::net",
    "std::os",
    "std::process",
    "nix",
    "rustix",
    "tracing",
    "crate::base::root",
    "crate::base::files",
    "crate::base::program",
    "crate::base::systemd",
    "crate::base::wait",
];

/// What begins like that and is a value.
const VALUES: [&str; 3] = ["std::process::ExitCode", "std::net::Ipv4Addr", "std::net::Ipv6Addr"];

/// Most lines of a file without its tests.
const MOST_LINES: usize = 500;

/// What the median of the files stays under, lines without tests.
const MEDIAN: usize = 200;

/// A file of src: its path below src and its text.
type Source = (String, String);

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Offence {
    file: String,
    line: usize,
    rule: &'static str,
    what: String,
}

impl fmt::Display for Offence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "src/{}:{}: {}: {}", self.file, self.line, self.rule, self.what)
    }
}

/// A path in the code: its segments and its line.
type Found = (Vec<String>, usize);

/// Every path of a file that begins with a crate, `self` or `super`, made to begin with `crate` where it is ours.
fn paths(module: &[String], text: &str) -> Vec<Found> {
    let tokens: TokenStream = text.parse().expect("the file is Rust");
    let mut found = Vec::new();
    walk(tokens, module, &mut found);
    found
}

fn walk(tokens: TokenStream, module: &[String], found: &mut Vec<Found>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut at = 0;
    while at < tokens.len() {
        match &tokens[at] {
            TokenTree::Ident(word) => {
                let inline = word == "mod"
                    && matches!(tokens.get(at + 2), Some(TokenTree::Group(g)) if g.delimiter() == Delimiter::Brace);
                if inline && let (Some(name), Some(TokenTree::Group(body))) = (tokens.get(at + 1), tokens.get(at + 2)) {
                    let mut inner = module.to_vec();
                    inner.push(name.to_string());
                    walk(body.stream(), &inner, found);
                    at += 3;
                } else {
                    at = tree(&tokens, at, &[], module, found);
                }
            }
            TokenTree::Group(group) => {
                walk(group.stream(), module, found);
                at += 1;
            }
            _ => at += 1,
        }
    }
}

/// Reads a path, or a tree of a `use`, from its first word on; returns where it ends.
fn tree(tokens: &[TokenTree], start: usize, before: &[String], module: &[String], found: &mut Vec<Found>) -> usize {
    let mut path = before.to_vec();
    let mut at = start;
    let mut line = 0;
    loop {
        match tokens.get(at) {
            Some(TokenTree::Ident(word)) => {
                line = word.span().start().line;
                path.push(word.to_string());
                at += 1;
            }
            Some(TokenTree::Group(group)) if at > start && group.delimiter() == Delimiter::Brace => {
                let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                let mut next = 0;
                while next < inner.len() {
                    next = match &inner[next] {
                        TokenTree::Ident(_) => tree(&inner, next, &path, module, found),
                        _ => next + 1,
                    };
                }
                return at + 1;
            }
            _ => break,
        }
        let colon = |n: usize| matches!(tokens.get(n), Some(TokenTree::Punct(p)) if p.as_char() == ':');
        if !(colon(at) && colon(at + 1)) {
            break;
        }
        at += 2;
    }
    if path.len() > 1 {
        found.push((absolute(path, module), line));
    }
    at.max(start + 1)
}

fn absolute(path: Vec<String>, module: &[String]) -> Vec<String> {
    let mut base = module.to_vec();
    let mut rest = path.as_slice();
    match rest[0].as_str() {
        "self" => rest = &rest[1..],
        "super" => {
            while rest.first().is_some_and(|word| word == "super") {
                base.pop();
                rest = &rest[1..];
            }
        }
        _ => return path,
    }
    base.extend(rest.iter().cloned());
    base
}

fn module_of(file: &str) -> Vec<String> {
    let names = file.trim_end_matches(".rs").trim_end_matches("/mod").split('/');
    std::iter::once("crate").chain(names).map(str::to_owned).collect()
}

fn wing_of(file: &str) -> Option<usize> {
    let (wing, _) = file.split_once('/')?;
    WINGS.iter().position(|w| *w == wing)
}

/// Lines before the unit tests, which come last.
fn own_lines(text: &str) -> usize {
    let tests = text.lines().position(|l| l == "#[cfg(test)]");
    tests.unwrap_or_else(|| text.lines().count())
}

/// Which files each file imports, with the line of the first such import.
type Imports = BTreeMap<String, BTreeMap<String, usize>>;

fn offences(sources: &[Source]) -> (Vec<Offence>, Imports) {
    let modules: BTreeMap<Vec<String>, &str> = sources.iter().map(|(f, _)| (module_of(f), f.as_str())).collect();
    let mut all = BTreeSet::new();
    let mut imports = Imports::new();
    for (file, text) in sources {
        let mut offence = |line, rule, what: String| {
            all.insert(Offence {
                file: file.clone(),
                line,
                rule,
                what,
            });
        };
        if !text.starts_with("//! ") {
            offence(
                1,
                "a file says what it is for",
                "it begins without a line of '//!'".to_owned(),
            );
        }
        if own_lines(text) > MOST_LINES {
            offence(
                1,
                "a file has at most 500 lines",
                format!("{} lines without its tests", own_lines(text)),
            );
        }
        let Some(wing) = wing_of(file) else {
            if !["lib.rs", "main.rs"].contains(&file.as_str()) {
                offence(
                    1,
                    "every file is in a wing",
                    format!("the wings are {}", WINGS.join(", ")),
                );
            }
            continue;
        };
        for (path, line) in paths(&module_of(file), text) {
            let name = path.join("::");
            let is = |what: &&str| name == **what || name.starts_with(&format!("{what}::"));
            let reads = READERS.contains(&file.as_str()) && !name.starts_with("tracing");
            if PURE.contains(&WINGS[wing]) && !reads && IMPURE.iter().any(is) && !VALUES.iter().any(is) {
                // A unit test may write the files that it reads.
                if line <= own_lines(text) {
                    offence(
                        line,
                        "a pure wing knows values only",
                        format!("{} uses {name}", WINGS[wing]),
                    );
                }
            }
            let target = (1..=path.len()).rev().find_map(|n| modules.get(&path[..n]));
            let Some(target) = target.filter(|t| **t != file.as_str()) else {
                continue;
            };
            if wing_of(target).is_some_and(|t| t < wing) {
                let above = &target[..target.find('/').unwrap_or(0)];
                offence(
                    line,
                    "an import goes down",
                    format!("{name} is of {above}, which lies above {}", WINGS[wing]),
                );
            }
            imports
                .entry(file.clone())
                .or_default()
                .entry((*target).to_owned())
                .or_insert(line);
        }
    }
    all.extend(circles(&imports));
    (all.into_iter().collect(), imports)
}

/// An offence for every import that is part of a circle.
fn circles(imports: &Imports) -> Vec<Offence> {
    let reaches = |from: &str, to: &str| {
        let (mut seen, mut todo) = (BTreeSet::new(), vec![from]);
        while let Some(file) = todo.pop() {
            for next in imports.get(file).into_iter().flat_map(BTreeMap::keys) {
                if next == to {
                    return true;
                }
                if seen.insert(next.as_str()) {
                    todo.push(next);
                }
            }
        }
        false
    };
    let mut found = Vec::new();
    for (file, targets) in imports {
        for (target, line) in targets {
            if reaches(target, file) {
                found.push(Offence {
                    file: file.clone(),
                    line: *line,
                    rule: "no circles",
                    what: format!("it imports src/{target}, which imports it"),
                });
            }
        }
    }
    found
}

fn sources() -> Vec<Source> {
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
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut all);
    all.sort();
    all
}

fn texts(found: &[Offence]) -> String {
    let lines: Vec<String> = found.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

#[test]
fn the_walls_stand() {
    let sources = sources();
    let (found, imports) = offences(&sources);
    let count = |rule: &str| found.iter().filter(|o| o.rule == rule).count();
    let mut lines: Vec<usize> = sources.iter().map(|(_, text)| own_lines(text)).collect();
    lines.sort_unstable();
    println!(
        "{} files, {} imports between them, {} that go up, {} in circles, {} offences; at most {} lines, median {}",
        sources.len(),
        imports.values().map(BTreeMap::len).sum::<usize>(),
        count("an import goes down"),
        count("no circles"),
        found.len(),
        lines[lines.len() - 1],
        lines[lines.len() / 2],
    );
    assert!(found.is_empty(), "{} offences:\n{}", found.len(), texts(&found));
    assert!(
        lines[lines.len() / 2] < MEDIAN,
        "the median of the files is {}",
        lines[lines.len() / 2]
    );
}

#[test]
fn every_wing_is_on_the_list() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let dirs = fs::read_dir(src)
        .unwrap()
        .map(|e| e.unwrap())
        .filter(|e| e.path().is_dir());
    let names: BTreeSet<String> = dirs.map(|d| d.file_name().to_string_lossy().into_owned()).collect();
    let unknown: Vec<&String> = names.iter().filter(|n| !WINGS.contains(&n.as_str())).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    let lib = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let listed: Vec<&str> = lib
        .lines()
        .filter_map(|l| l.strip_prefix("pub mod ")?.split(';').next())
        .collect();
    let expected: Vec<&str> = WINGS.into_iter().filter(|w| names.contains(*w)).collect();
    assert_eq!(listed, expected, "lib.rs lists the wings in their order");
}

#[test]
fn planted_offences_are_named() {
    let plant = |files: &[(&str, &str)]| {
        let files: Vec<Source> = files
            .iter()
            .map(|(file, text)| ((*file).to_owned(), format!("//! For a test.\n{text}\n")))
            .collect();
        texts(&offences(&files).0)
    };
    let out = ("plan/out.rs", "pub fn plan() {}");
    let root = ("base/root.rs", "pub struct Root;");
    for (files, expected) in [
        (
            vec![out, ("host/nodes.rs", "use std::io;\nuse crate::plan::out::plan;")],
            "src/host/nodes.rs:3: an import goes down: crate::plan::out::plan is of plan, which lies above host",
        ),
        // In a group, by super, by a full path, in a macro.
        (
            vec![out, ("host/nodes.rs", "use crate::{base, plan::{self, out}};")],
            "src/host/nodes.rs:2: an import goes down: crate::plan::out is of plan, which lies above host",
        ),
        (
            vec![
                out,
                ("host/nodes.rs", "mod deep { use super::super::super::plan::out; }"),
            ],
            "src/host/nodes.rs:2: an import goes down: crate::plan::out is of plan, which lies above host",
        ),
        (
            vec![
                out,
                (
                    "host/nodes.rs",
                    "fn f() {\n    println!(\"{:?}\", crate::plan::out::plan());\n}",
                ),
            ],
            "src/host/nodes.rs:3: an import goes down: crate::plan::out::plan is of plan, which lies above host",
        ),
        (
            vec![
                ("host/nodes.rs", "use crate::host::usb::below;\npub struct Node;"),
                ("host/usb.rs", "pub fn below() -> super::nodes::Node { todo() }"),
            ],
            "src/host/nodes.rs:2: no circles: it imports src/host/usb.rs, which imports it\n\
             src/host/usb.rs:2: no circles: it imports src/host/nodes.rs, which imports it",
        ),
        (
            vec![root, ("plan/out.rs", "use crate::base::root::Root;")],
            "src/plan/out.rs:2: a pure wing knows values only: plan uses crate::base::root::Root",
        ),
        (
            vec![("model/act.rs", "fn f() { let _ = std::fs::read(\"x\"); }")],
            "src/model/act.rs:2: a pure wing knows values only: model uses std::fs::read",
        ),
        (vec![root, ("settings/file.rs", "use crate::base::root::Root;")], ""),
        (
            vec![("corner.rs", "")],
            "src/corner.rs:1: every file is in a wing: the wings are commands, run, execute, \
             tell, output, attach, prepare, check, plan, report, state, model, settings, proxmox, host, base",
        ),
        // Going down, and words in comments and strings, are no offences.
        (
            vec![
                out,
                root,
                ("execute/linux.rs", "use crate::plan::out;\nuse crate::base::root;"),
            ],
            "",
        ),
        (
            vec![
                out,
                (
                    "host/nodes.rs",
                    "/// As [`crate::plan::out`].\nconst A: &str = \"crate::plan::out\";",
                ),
            ],
            "",
        ),
    ] {
        assert_eq!(plant(&files), expected, "{files:?}");
    }
    let long = format!(
        "//! Long.\n{}#[cfg(test)]\nmod tests {{}}\n",
        "const A: u8 = 0;\n".repeat(500)
    );
    let found = texts(&offences(&[("base/a.rs".to_owned(), long)]).0);
    assert_eq!(
        found,
        "src/base/a.rs:1: a file has at most 500 lines: 501 lines without its tests"
    );
    let silent = texts(&offences(&[("base/a.rs".to_owned(), "use std::io;\n".to_owned())]).0);
    assert_eq!(
        silent,
        "src/base/a.rs:1: a file says what it is for: it begins without a line of '//!'"
    );
}

/// The way in for whoever comes after us has a line for each file, under its wing.
#[test]
fn the_map_of_the_house_has_every_file() {
    let map = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md")).unwrap();
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
