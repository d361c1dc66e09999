//! What in a line opens something: passwords, tokens and keys, by the words before them or by their form. Each is a look for the
//! first of them. Pure.

use std::ops::Range;

use crate::report::runs::{is_word, runs};

/// Words in the names of what is secret.
const SECRETS: [&str; 14] = [
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "apikey",
    "api_key",
    "api-key",
    "cookie",
    "credential",
    "private_key",
    "private-key",
    "sshkey",
    "luks.key",
];

/// Names of what is secret that are parts of other words too: each counts as a whole part of a name.
const SHORT: [&str; 6] = ["pass", "passcode", "psk", "pw", "pwd", "wpa"];

/// Options of programs that have a name and a password behind them (curl(1)).
const OPTIONS: [&str; 3] = ["-u", "--user", "--proxy-user"];

/// How tokens of well-known services, keys of SSH and hashes of passwords begin (crypt(5)).
const TOKENS: [&str; 20] = [
    "$1$",
    "$2a$",
    "$2b$",
    "$2y$",
    "$5$",
    "$6$",
    "$y$",
    "$argon2",
    "AAAAB3Nza",
    "AAAAC3Nza",
    "AAAAE2Vj",
    "AKIA",
    "eyJ",
    "ghp_",
    "gho_",
    "github_pat_",
    "glpat-",
    "hf_",
    "sk-",
    "xox",
];

/// As long as a token is at least.
const TOKEN: usize = 12;

/// As long as a word is at least that no person has thought of.
const RANDOM: usize = 40;

/// What is in the addresses of services that take a message from whoever knows the address.
const HOOKS: [&str; 9] = [
    "hook",
    "ntfy",
    "/bot",
    "/services/",
    "hc-ping",
    "gotify",
    "pushover",
    "notify",
    "push.",
];

/// Its placeholder is there already.
fn is_done(value: &str) -> bool {
    value.starts_with("SECRET-")
}

/// Whether what is called so is secret: by a word in the name, or by a part of it.
fn is_secret(name: &str, with_short: bool) -> bool {
    let parts = || name.split(|c: char| !c.is_ascii_alphanumeric());
    SECRETS.iter().any(|word| name.contains(word)) || (with_short && parts().any(|part| SHORT.contains(&part)))
}

/// `password=word`, `"token": "words"`, `secret: the rest of the line`, `--password word`, in JSON within JSON, too.
pub(super) fn assigned(line: &str) -> Option<Range<usize>> {
    let bytes = line.as_bytes();
    let is_in = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    for name in runs(line, is_in) {
        let key = line[name.clone()].to_ascii_lowercase();
        if !is_secret(&key, true) {
            continue;
        }
        let skip = |mut at: usize, of: &[u8]| {
            while bytes.get(at).is_some_and(|b| of.contains(b)) {
                at += 1;
            }
            at
        };
        let behind = skip(name.end, b"\"'\\ \t}]");
        let is_quoted = bytes[name.end..behind].iter().any(|b| b"\"'".contains(b));
        let is_option = key.starts_with("--") && bytes.get(name.end).is_some_and(|b| b" \t".contains(b));
        let (at, ends) = match bytes.get(behind) {
            Some(b'=') => (skip(behind, b"="), Ends::Word),
            Some(b'+') if bytes.get(behind + 1) == Some(&b'=') => (behind + 2, Ends::Word),
            Some(b':') if is_quoted => (skip(behind, b":="), Ends::Member),
            // Of a short name this is how a sentence begins, too.
            Some(b':') if is_secret(&key, false) => (skip(behind, b":="), Ends::Line),
            _ if is_option => (name.end, Ends::Word),
            _ => continue,
        };
        let value = value(line, skip(at, b" \t"), ends);
        let text = &line[value.clone()];
        let is_nothing = ends == Ends::Member && ["null", "true", "false"].contains(&text);
        if !text.is_empty() && !is_done(text) && !is_nothing {
            return Some(value);
        }
    }
    None
}

/// Where a value ends that is in no quotes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ends {
    Word,
    /// A value of JSON's.
    Member,
    Line,
}

/// What is assigned there: in quotes what is between them.
fn value(line: &str, at: usize, ends: Ends) -> Range<usize> {
    let bytes = line.as_bytes();
    let escapes = |at: usize| bytes[..at].iter().rev().take_while(|b| **b == b'\\').count();
    let depth = escapes_from(&bytes[at..]);
    let quote = bytes.get(at + depth).filter(|b| b"\"'".contains(b)).copied();
    let end = |start: usize, is_end: &dyn Fn(usize) -> bool| (start..bytes.len()).find(|at| is_end(*at));
    let is_blank = |at: usize| bytes[at].is_ascii_whitespace();
    let (start, end) = match quote {
        // A quote within has more backslashes before it; an even number of them is no more than these themselves.
        Some(quote) => {
            let start = at + depth + 1;
            let closes = |at: usize| {
                let before = escapes(at).min(at - start);
                bytes[at] == quote && (before <= depth || (depth == 0 && before % 2 == 0))
            };
            (start, end(start, &closes))
        }
        None => (
            at,
            end(at, &|at: usize| match ends {
                Ends::Word => is_blank(at) || b"\"'".contains(&bytes[at]),
                Ends::Member => is_blank(at) || b"\"'\\,}]".contains(&bytes[at]),
                Ends::Line => bytes[at] == b'"',
            }),
        ),
    };
    let value = line[start..end.unwrap_or(bytes.len())].trim_end_matches(|c: char| c.is_whitespace() || c == '\\');
    start..start + value.len()
}

fn escapes_from(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|b| **b == b'\\').count()
}

/// `Authorization: SCHEME value`, `Bearer value`.
pub(super) fn authorization(line: &str) -> Option<Range<usize>> {
    let lower = line.to_ascii_lowercase();
    let word = |from: usize| {
        let rest = line.get(from..)?;
        let start = from + rest.len()
            - rest
                .trim_start_matches(|c: char| c.is_whitespace() || ":=\"'\\".contains(c))
                .len();
        let end = line[start..].find(|c: char| c.is_whitespace() || "\"'\\,".contains(c));
        let end = end.map_or(line.len(), |end| start + end);
        (start < end).then_some(start..end)
    };
    let named = lower.match_indices("authorization").filter_map(|(at, name)| {
        let from = at + name.len();
        let is_named = |first: &Range<usize>| line[from..first.start].contains([':', '=']);
        let first = word(from).filter(is_named)?;
        let is_scheme = line[first.clone()].bytes().all(|b| b.is_ascii_alphabetic());
        Some(if is_scheme {
            word(first.end).unwrap_or(first)
        } else {
            first
        })
    });
    let bearers = lower
        .match_indices("bearer ")
        .filter_map(|(at, name)| word(at + name.len()));
    let values = named.chain(bearers.filter(|value| value.len() >= 8));
    let is_open = |value: &Range<usize>| !is_done(&line[value.clone()]);
    values.filter(is_open).min_by_key(|value| value.start)
}

/// `-u name:word`.
pub(super) fn option(line: &str) -> Option<Range<usize>> {
    let words: Vec<Range<usize>> = runs(line, |b| !b.is_ascii_whitespace()).collect();
    words.windows(2).find_map(|pair| {
        let [option, value] = pair else { return None };
        let text = line[value.clone()].trim_matches(|c: char| "\"'\\".contains(c));
        let start = value.start + line[value.clone()].find(text)?;
        let is_one = OPTIONS.contains(&&line[option.clone()]) && text.contains(':') && !is_done(text);
        is_one.then(|| start..start + text.len())
    })
}

/// `scheme://name:word@`, what stands behind a question mark, and the rest of an address that alone opens something.
pub(super) fn in_an_address(line: &str) -> Option<Range<usize>> {
    let mut from = 0;
    while let Some(at) = line[from..].find("://") {
        let start = from + at + 3;
        let rest = &line[start..];
        let len = rest
            .find(|c: char| c.is_whitespace() || "\"'\\".contains(c))
            .unwrap_or(rest.len());
        let address = &rest[..len];
        let host = address.find('/').unwrap_or(len);
        if let Some(sign) = address[..host].rfind('@')
            && !is_done(address)
            && sign > 0
        {
            return Some(start..start + sign);
        }
        let lower = address.to_ascii_lowercase();
        let is_hook = HOOKS.iter().any(|word| lower.contains(word));
        let secret = if is_hook { Some(host) } else { address.find('?') };
        if let Some(secret) = secret.filter(|secret| secret + 1 < len && !is_done(&address[secret + 1..])) {
            return Some(start + secret + 1..start + len);
        }
        from = start;
    }
    None
}

/// What begins as tokens do, and long words of mixed letters and digits.
pub(super) fn token(line: &str) -> Option<Range<usize>> {
    let is_in = |b: u8| b.is_ascii_alphanumeric() || b"_-+=.$/".contains(&b);
    for run in runs(line, is_in) {
        let text = &line[run.clone()];
        let begin = TOKENS.iter().filter_map(|token| text.find(token)).min();
        if let Some(at) = begin
            && text.len() - at >= TOKEN
            && (at == 0 || !is_word(text.as_bytes()[at - 1]))
        {
            return Some(run.start + at..run.end);
        }
    }
    // Parameters of modules are as long, and have other signs in them.
    let is_in = |b: u8| b.is_ascii_alphanumeric();
    let is_random = |run: &Range<usize>| {
        let text = &line[run.clone()];
        let has = |is: fn(&u8) -> bool| text.as_bytes().iter().any(is);
        let is_mixed = has(u8::is_ascii_uppercase) && has(u8::is_ascii_lowercase) && has(u8::is_ascii_digit);
        text.len() >= RANDOM && is_mixed
    };
    runs(line, is_in).find(is_random)
}
