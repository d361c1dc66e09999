//! Every message of the program has its row in docs/messages.md, and every row there is a message of the program.
//!
//! What counts as a message is read from the code by its tokens, tests left out: the texts of error types, the sentences of
//! refusals, what is said by `warn!` and `error!`, what an error is made of at the place where it is made, and every text
//! with a hint. A value in it is "…" in a row.

#![allow(clippy::unwrap_used)] // a test that cannot set itself up should stop there

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// Files whose every sentence is one of a refusal.
const SENTENCES: [&str; 7] = [
    "host/modules.rs",
    "host/unit_states.rs",
    "model/refusal.rs",
    "model/particulars.rs",
    "model/hang.rs",
    "model/claim.rs",
    "model/remedy.rs",
];

/// What these say is no message but what was asked for: findings, which docs/checks.md has, and what is printed.
const RESULTS: [&str; 2] = ["check/", "output/"];

/// Macros that say something.
const SAYS: [&str; 2] = ["warn", "error"];

/// What makes an error of a text: `Reason::Other(...)`, `Error::io(...)`, `Error::NotRestored { .. }`.
const MAKES: [&str; 12] = [
    "Other",
    "Usage",
    "io",
    "Backup",
    "NoRoom",
    "Failed",
    "NotBegun",
    "NotRestored",
    "Overdue",
    "Restored",
    "Unreadable",
    "NotUnderstood",
];

/// Names of what becomes a part of an error: `hint: "...".to_owned()`, `let why = format!(...)`.
const NAMES: [&str; 7] = ["why", "hint", "what", "left", "fact", "remedy", "never"];

/// A text that has fewer fixed words is a part of another one.
const FEWEST_WORDS: usize = 3;

/// A value, in a row.
const VALUE: char = '…';

fn top() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// What a literal of Rust's means, with "…" for each value that is put into it. None for what is no text.
fn text_of(literal: &str) -> Option<String> {
    let inner = literal.strip_prefix('"')?.strip_suffix('"')?;
    let mut text = String::new();
    let mut rest = inner.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\\' => match rest.next()? {
                'n' => text.push('\n'),
                '\n' => while rest.next_if(|c| c.is_whitespace()).is_some() {},
                'u' | 'x' => return None, // of a terminal's own language
                c => text.push(c),
            },
            '{' if rest.next_if_eq(&'{').is_some() => text.push('{'),
            '}' if rest.next_if_eq(&'}').is_some() => text.push('}'),
            '{' => {
                while rest.next().is_some_and(|c| c != '}') {}
                text.push(VALUE);
            }
            c => text.push(c),
        }
    }
    Some(text.trim().to_owned())
}

fn is_sentence(text: &str) -> bool {
    let fixed = |word: &&str| word.chars().any(char::is_alphanumeric);
    // What has lines is a screen or a form, no sentence.
    !text.contains('\n') && text.split_whitespace().filter(fixed).count() >= FEWEST_WORDS
}

/// The texts of a piece of code that are messages. `counts`: all that is in it is.
fn messages(tokens: TokenStream, counts: bool, found: &mut BTreeSet<String>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut at = 0;
    let mut named = false;
    while at < tokens.len() {
        let name = |n: usize| match tokens.get(n) {
            Some(TokenTree::Ident(word)) => word.to_string(),
            Some(TokenTree::Punct(mark)) => mark.as_char().to_string(),
            _ => String::new(),
        };
        match &tokens[at] {
            // #[cfg(test)] and what it is for.
            TokenTree::Group(group) if is_for_tests(&group.stream()) => {
                let is_end = |token: &TokenTree| match token {
                    TokenTree::Group(body) => body.delimiter() == Delimiter::Brace,
                    TokenTree::Punct(mark) => mark.as_char() == ';',
                    _ => false,
                };
                at += 1;
                while at < tokens.len() && !is_end(&tokens[at]) {
                    at += 1;
                }
            }
            // Comments for the documentation: #[doc = "..."].
            TokenTree::Group(group) if first_word(&group.stream()) == "doc" => {}
            TokenTree::Group(group) => {
                let of = [at.wrapping_sub(1), at.wrapping_sub(2)].map(name);
                let said = (of[0] == "!" && SAYS.contains(&of[1].as_str()))
                    || MAKES.contains(&of[0].as_str())
                    || (of[0] == "error" && first_is_text(&group.stream()));
                // What is only formatted is a part of the whole; what is written down for -v is no message.
                let quiet = of[0] == "!" && ["debug", "info"].contains(&of[1].as_str());
                messages(group.stream(), (counts || said || named) && !quiet, found);
            }
            TokenTree::Literal(literal) => {
                if let Some(text) = text_of(&literal.to_string())
                    && is_sentence(&text)
                    && (counts || named || text.contains("Hint: "))
                {
                    found.insert(text);
                }
            }
            // From a name to the end of its value.
            TokenTree::Ident(word) if NAMES.contains(&word.to_string().as_str()) => {
                let is = |n: usize, mark: &str| name(at + n) == mark;
                named |= (is(1, "=") || is(1, ":")) && !is(2, ":") && !is(2, "=") && !is(2, ">");
            }
            TokenTree::Punct(mark) if [';', ','].contains(&mark.as_char()) => named = false,
            _ => {}
        }
        at += 1;
    }
}

fn first_word(tokens: &TokenStream) -> String {
    tokens
        .clone()
        .into_iter()
        .next()
        .map_or(String::new(), |t| t.to_string())
}

fn first_is_text(tokens: &TokenStream) -> bool {
    matches!(tokens.clone().into_iter().next(), Some(TokenTree::Literal(_)))
}

fn is_for_tests(tokens: &TokenStream) -> bool {
    tokens.to_string().replace(' ', "") == "cfg(test)"
}

/// Each message with the file that has it.
fn of_the_program() -> BTreeMap<String, String> {
    fn read(dir: &Path, all: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                read(&path, all);
                continue;
            }
            let name = path
                .strip_prefix(top().join("src"))
                .unwrap()
                .to_string_lossy()
                .into_owned();
            if RESULTS.iter().any(|wing| name.starts_with(wing)) {
                continue;
            }
            let mut found = BTreeSet::new();
            let code = fs::read_to_string(&path).unwrap();
            messages(code.parse().unwrap(), SENTENCES.contains(&name.as_str()), &mut found);
            all.extend(found.into_iter().map(|text| (text, name.clone())));
        }
    }
    let mut all = BTreeMap::new();
    read(&top().join("src"), &mut all);
    all
}

/// The rows of a document: for each its cells, and in them what stands between backquotes.
fn rows(document: &str) -> Vec<Vec<Vec<String>>> {
    let spans = |cell: &str| {
        cell.split('`')
            .skip(1)
            .step_by(2)
            .map(|s| s.replace('\u{0}', "|"))
            .collect()
    };
    let lines = document
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    lines
        .map(|line| line.replace("\\|", "\u{0}").split(" | ").map(spans).collect())
        .collect()
}

/// What is wrong with a document for these messages.
fn faults(messages: &BTreeMap<String, String>, document: &str) -> Vec<String> {
    let rows = rows(document);
    let mentioned: BTreeSet<&String> = rows.iter().flatten().flatten().collect();
    let mut found: Vec<String> = messages
        .iter()
        .filter(|(text, _)| !mentioned.contains(text))
        .map(|(text, file)| format!("no row for '{text}' of src/{file}"))
        .collect();
    let empty = document
        .lines()
        .filter(|l| l.starts_with("| `") && (l.matches(" | ").count() < 2 || l.contains("|  |")));
    found.extend(empty.map(|line| format!("no reason, or nothing to do: {line}")));
    let mut seen = BTreeSet::new();
    for said in rows.iter().filter_map(|cells| cells.first()?.first()) {
        if !messages.contains_key(said) {
            found.push(format!("nothing says '{said}'"));
        }
        if !seen.insert(said) {
            found.push(format!("two rows for '{said}'"));
        }
    }
    found
}

#[test]
fn every_message_has_its_row_and_every_row_its_message() {
    let messages = of_the_program();
    assert!(messages.len() > 300, "only {} are found", messages.len());
    let found = faults(&messages, &fs::read_to_string(top().join("docs/messages.md")).unwrap());
    assert!(
        found.is_empty(),
        "{} in docs/messages.md:\n{}",
        found.len(),
        found.join("\n")
    );
}

#[test]
fn what_has_no_row_and_what_nothing_says_is_named() {
    let of = |code: &str| {
        let mut found = BTreeSet::new();
        messages(code.parse().unwrap(), false, &mut found);
        found.into_iter().collect::<Vec<_>>().join("; ")
    };
    for (code, expected) in [
        (
            "#[error(\"{a} is taken {{by}} {}\", b())] struct E;",
            "… is taken {by} …",
        ),
        (
            "fn f() { warn!(\"VM {vmid}: no way home\"); info!(\"VM {vmid} is at home\"); }",
            "VM …: no way home",
        ),
        ("fn f() { Reason::Other(format!(\"a b c {}\", d)) }", "a b c …"),
        (
            "fn f() { let why = match x { A => \"first of two\", B => \"second of two\" }; g(\"none of these\"); }",
            "first of two; second of two",
        ),
        (
            "fn f() { E { hint: \"do it again\".to_owned(), name: \"one two three\" } }",
            "do it again",
        ),
        (
            "const A: &str = \"It failed. Hint: start \\\n   again\";",
            "It failed. Hint: start again",
        ),
        (
            "/// warn!(\"one two three\")\n#[cfg(test)] mod tests { fn f() { warn!(\"one two three\"); } }",
            "",
        ),
    ] {
        assert_eq!(of(code), expected, "{code}");
    }
    let said = BTreeMap::from([
        ("a b c".to_owned(), "base/pci.rs".to_owned()),
        ("x | y z".to_owned(), "base/text.rs".to_owned()),
    ]);
    let row = |text: &str| format!("| `{text}` | why | what |\n");
    for (document, expected) in [
        (row("a b c") + &row("x \\| y z"), ""),
        (row("a b c"), "no row for 'x | y z' of src/base/text.rs"),
        ("| `a b c` | it is | `x \\| y z` |\n".to_owned(), ""),
        (
            row("a b c") + &row("x \\| y z") + &row("old words here"),
            "nothing says 'old words here'",
        ),
        (row("a b c") + &row("x \\| y z") + &row("a b c"), "two rows for 'a b c'"),
    ] {
        assert_eq!(faults(&said, &document).join("; "), expected, "{document}");
    }
}
