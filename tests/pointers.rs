//! Whatever the documents point to is there: every `crate::path` in comments of the code, every file of this tree that a
//! comment or a document names.

#![allow(clippy::unwrap_used)] // a test that cannot set itself up should stop there

use std::fs;
use std::path::{Path, PathBuf};

/// The top level's folders, as documents write them.
const FOLDERS: [&str; 8] = [
    "src/",
    "tests/",
    "debian/",
    "snippets/",
    "benches/",
    "docs/",
    "contrib/",
    "completions/",
];

/// What other projects have at such places (systemd's src/core/manager.c) is told from ours by its kind.
const FOREIGN: [&str; 4] = [".c", ".h", ".pm", ".rst"];

/// What is there only after a run, or on another host.
const ELSEWHERE: [&str; 3] = ["tests/lab/out", "snippets/gpu-handoff", "debian/preinst"];

fn top() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every text of the tree that people read: sources, documents, scripts.
fn texts() -> Vec<(String, String)> {
    fn read(dir: &Path, all: &mut Vec<(String, String)>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(top()).unwrap().to_string_lossy().into_owned();
            let made = ["target", ".git", "tests/lab/out", "tests/pve-conformance/cases"].contains(&name.as_str());
            if made || path.is_symlink() {
                continue;
            }
            if path.is_dir() {
                read(&path, all);
            } else if let Ok(text) = fs::read_to_string(&path) {
                all.push((name, text));
            }
        }
    }
    let mut all = Vec::new();
    read(&top(), &mut all);
    let names_none = |name: &str| name == "tests/pointers.rs" || name.starts_with("tests/walls/");
    all.retain(|(name, _)| !names_none(name));
    all.sort();
    all
}

/// The words of a text that begin with this, in the characters that such a word may have, with their lines.
fn words<'t>(text: &'t str, start: &'t str, allowed: fn(char) -> bool) -> impl Iterator<Item = (usize, &'t str)> {
    text.match_indices(start).filter_map(move |(at, _)| {
        let before = text[..at].chars().next_back();
        let inside = before.is_some_and(|c| c.is_alphanumeric() || "_/-.:@".contains(c));
        let rest = &text[at..];
        let end = rest.find(|c: char| !allowed(c)).unwrap_or(rest.len());
        let line = 1 + text[..at].matches('\n').count();
        (!inside).then_some((line, rest[..end].trim_end_matches(['.', ':', '-'])))
    })
}

/// What a name in the code stands behind where it is declared.
const DECLARES: [&str; 9] = [
    "fn",
    "struct",
    "enum",
    "trait",
    "const",
    "static",
    "type",
    "mod",
    "macro_rules!",
];

/// Whether a file declares a name, or has it from elsewhere under that name.
fn declares(code: &str, name: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let is_here = DECLARES.iter().any(|word| {
        let start = format!("{word} ");
        let declared = code
            .split(&start)
            .skip(1)
            .map(|rest| rest.split(|c| !is_part(c)).next());
        declared.into_iter().any(|declared| declared == Some(name))
    });
    // The last word of each part: `use crate::base::{pci::PciAddr, text as t};`.
    let imports = code.split("use ").skip(1).filter_map(|rest| rest.split(';').next());
    let mut parts = imports.flat_map(|import| import.split(['{', '}', ',']));
    is_here || parts.any(|part| part.trim().rsplit([':', ' ']).next() == Some(name))
}

/// A file without its comments.
fn without_comments(text: &str) -> String {
    let code = |line: &str| line.split("//").next().unwrap_or_default().to_owned() + "\n";
    text.lines().map(code).collect()
}

/// Whether a path of the code leads somewhere: to a module, or to what its file declares, and what that has.
fn is_code(path: &str) -> bool {
    let names: Vec<&str> = path.split("::").skip(1).collect();
    (0..=names.len()).rev().any(|n| {
        let module = names[..n].join("/");
        let files = match n {
            0 => vec!["src/lib.rs".to_owned()],
            _ => vec![format!("src/{module}.rs"), format!("src/{module}/mod.rs")],
        };
        let text = files.iter().find_map(|file| fs::read_to_string(top().join(file)).ok());
        text.is_some_and(|text| {
            let code = without_comments(&text);
            let has = |word: &str| words(&code, word, |c| c.is_alphanumeric() || c == '_').any(|(_, w)| w == word);
            names.get(n).is_none_or(|first| declares(&code, first)) && names[n..].iter().all(|name| has(name))
        })
    })
}

/// Whether a path below the top level is there; a `*` stands for the rest of a name.
fn is_file(path: &str) -> bool {
    match path.split_once('*') {
        None => top().join(path).exists(),
        Some((start, _)) => {
            let (dir, prefix) = start.rsplit_once('/').unwrap_or(("", start));
            let mut names = fs::read_dir(top().join(dir)).into_iter().flatten();
            names.any(|name| name.unwrap().file_name().to_string_lossy().starts_with(prefix))
        }
    }
}

fn dangling(name: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let code = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    // The compiler follows those in the code.
    let comments = |line: &str| line.find("//").map_or(String::new(), |at| line[at..].to_owned());
    let root = if name.starts_with("src/") {
        "crate::"
    } else {
        "gpu_handoff::"
    };
    for (n, line) in (1..).zip(text.lines()) {
        let comment = if name.ends_with(".rs") {
            comments(line)
        } else {
            line.to_owned()
        };
        for (_, path) in words(&comment, root, code) {
            if !is_code(path) {
                found.push(format!("{name}:{n}: there is no {path}"));
            }
        }
    }
    let file = |c: char| c.is_alphanumeric() || "_-./*@".contains(c);
    for (line, path) in FOLDERS.iter().flat_map(|folder| words(text, folder, file)) {
        let foreign = FOREIGN.iter().any(|kind| path.ends_with(kind));
        // A folder's name alone, as in "src/, tests/", and the beginning of a path that is put together are none.
        let whole = !ELSEWHERE.contains(&path)
            && !FOLDERS.contains(&path)
            && !text.contains(&format!("{path}$"))
            && !text.contains(&format!("{path}{{"));
        if whole && !foreign && !is_file(path) {
            found.push(format!("{name}:{line}: there is no {path}"));
        }
    }
    found
}

#[test]
fn what_documents_point_to_is_there() {
    let found: Vec<String> = texts().iter().flat_map(|(name, text)| dangling(name, text)).collect();
    assert!(found.is_empty(), "{} dangling:\n{}", found.len(), found.join("\n"));
}

#[test]
fn pointers_to_nothing_are_named() {
    for (text, expected) in [
        ("//! As [`crate::plan::out`] has it, see src/plan/out.rs.", ""),
        (
            "//! [`crate::plan::out::plan`] and [`crate::plan::outside`]",
            "src/a.rs:1: there is no crate::plan::outside",
        ),
        // Words of the file that it does not declare: in a comment, and in its code.
        (
            "//! [`crate::plan::out::reason`] and [`crate::plan::out::snapshot`]",
            "src/a.rs:1: there is no crate::plan::out::reason\nsrc/a.rs:1: there is no crate::plan::out::snapshot",
        ),
        ("//! [`crate::model::act::Act::Unbind`]", ""),
        (
            "//! [`crate::gone`] and [`crate::a::gone`]",
            "src/a.rs:1: there is no crate::gone\nsrc/a.rs:1: there is no crate::a::gone",
        ),
        (
            "//! x\n// see src/way_out.rs for it",
            "src/a.rs:2: there is no src/way_out.rs",
        ),
        (
            "// tests/hosts/* and tests/house/*",
            "src/a.rs:1: there is no tests/house/*",
        ),
        ("// systemd, src/core/manager.c, manager_state", ""),
        ("// the target's own /usr/src/linux", ""),
    ] {
        assert_eq!(dangling("src/a.rs", text).join("\n"), expected, "{text:?}");
    }
}
