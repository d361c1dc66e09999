//! What in a line has the form of something that identifies a machine or a person, or opens something: each a look for the
//! next place from some byte on. Pure.
//!
//! Not here: names, which have no form ([`crate::report::redact`]).

use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Range;

/// What it is; its placeholder's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Secret,
    Serial,
    Uuid,
    Mac,
    Ip,
    Email,
    User,
    Host,
}

impl Kind {
    pub(super) fn word(self) -> &'static str {
        match self {
            Kind::Secret => "SECRET",
            Kind::Serial => "SERIAL",
            Kind::Uuid => "UUID",
            Kind::Mac => "MAC",
            Kind::Ip => "IP",
            Kind::Email => "EMAIL",
            Kind::User => "USER",
            Kind::Host => "HOST",
        }
    }
}

/// A look for the first such thing in a line.
pub(super) type Finder = fn(&str) -> Option<Range<usize>>;

/// In this order: what is told by its name or its place first, then what has a form.
pub(super) const FINDERS: [(Kind, Finder); 9] = [
    (Kind::Secret, assigned_secret),
    (Kind::Secret, in_an_address),
    (Kind::Serial, serial),
    (Kind::Uuid, uuid),
    (Kind::Mac, mac),
    (Kind::Secret, token),
    (Kind::Ip, ip),
    (Kind::Email, email),
    (Kind::User, home),
];

/// Words in the names of what is secret.
const SECRETS: [&str; 13] = [
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "apikey",
    "api_key",
    "api-key",
    "credential",
    "private_key",
    "private-key",
    "sshkey",
    "luks.key",
];

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

/// GUIDs that are the same everywhere: EFI's global variables (UEFI, EFI_GLOBAL_VARIABLE), and none.
const KNOWN_GUIDS: [&str; 2] = [
    "8be4df61-93ca-11d2-aa0d-00e098032b8c",
    "00000000-0000-0000-0000-000000000000",
];

/// What has an @ and is a unit of systemd's ends so.
const UNITS: [&str; 9] = [
    "service", "socket", "slice", "scope", "target", "timer", "mount", "device", "path",
];

/// The words of a line: runs of characters that are in such a word, each with its place.
fn runs(line: &str, is_in: impl Fn(u8) -> bool) -> impl Iterator<Item = Range<usize>> {
    let bytes = line.as_bytes();
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < bytes.len() && !is_in(bytes[at]) {
            at += 1;
        }
        let start = at;
        while at < bytes.len() && is_in(bytes[at]) {
            at += 1;
        }
        (start < at).then_some(start..at)
    })
}

fn is_word(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'_'
}

/// Whether a range stands by itself: no letter or digit before or behind it.
fn stands_alone(line: &str, range: &Range<usize>) -> bool {
    let bytes = line.as_bytes();
    let is_end = |at: Option<usize>| at.and_then(|at| bytes.get(at)).is_none_or(|b| !is_word(*b));
    is_end(range.start.checked_sub(1)) && is_end(Some(range.end))
}

/// `password=word`, `"token": "words"`, `secret: the rest of the line`.
fn assigned_secret(line: &str) -> Option<Range<usize>> {
    let bytes = line.as_bytes();
    let is_in = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    for name in runs(line, is_in) {
        let key = line[name.clone()].to_ascii_lowercase();
        if !SECRETS.iter().any(|word| key.contains(word)) {
            continue;
        }
        let mut at = name.end;
        while bytes.get(at).is_some_and(|b| b"\"'\\ \t".contains(b)) {
            at += 1;
        }
        let Some(sign @ (b':' | b'=')) = bytes.get(at) else {
            continue;
        };
        at += 1;
        while bytes.get(at).is_some_and(|b| b" \t".contains(b)) {
            at += 1;
        }
        let quote = bytes.get(at).filter(|b| b"\"'".contains(b)).copied();
        at += usize::from(quote.is_some());
        let rest = &line[at..];
        let end = match (quote, sign) {
            (Some(quote), _) => rest.find(char::from(quote)),
            (None, b'=') => rest.find(|c: char| c.is_whitespace() || "\"'".contains(c)),
            (None, _) => rest.find('"'),
        };
        let value = rest[..end.unwrap_or(rest.len())].trim_end();
        if !value.is_empty() && !value.starts_with("SECRET-") {
            return Some(at..at + value.len());
        }
    }
    None
}

/// `scheme://name:word@`.
fn in_an_address(line: &str) -> Option<Range<usize>> {
    let mut from = 0;
    while let Some(at) = line[from..].find("://") {
        let start = from + at + 3;
        let rest = &line[start..];
        let end = rest
            .find(|c: char| c.is_whitespace() || "/\"'".contains(c))
            .unwrap_or(rest.len());
        if let Some(sign) = rest[..end].rfind('@')
            && !rest.starts_with("SECRET-")
            && sign > 0
        {
            return Some(start..start + sign);
        }
        from = start;
    }
    None
}

/// `Serial Number: X`, `SerialNumber=X`, `serial: X`, `S/N X`: with a digit in it.
fn serial(line: &str) -> Option<Range<usize>> {
    let lower = line.to_ascii_lowercase();
    for name in [
        "serial number",
        "serialnumber",
        "serial_number",
        "serial no",
        "serial:",
        "serial=",
        "s/n",
    ] {
        for (at, _) in lower.match_indices(name) {
            let start = at + name.len();
            let rest = line[start..].trim_start_matches(|c: char| c.is_whitespace() || ":=#.\"'".contains(c));
            let start = line.len() - rest.len();
            let end = rest
                .find(|c: char| c.is_whitespace() || ",;\"'".contains(c))
                .unwrap_or(rest.len());
            let value = &rest[..end];
            let is_one = value.len() >= 4 && value.bytes().any(|b| b.is_ascii_digit()) && !value.starts_with("SERIAL-");
            if lower.len() == line.len() && is_one {
                return Some(start..start + end);
            }
        }
    }
    None
}

/// What begins as tokens do, and long words of mixed letters and digits.
fn token(line: &str) -> Option<Range<usize>> {
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

fn groups_of(text: &str, sign: char, lengths: &[usize]) -> bool {
    let groups: Vec<&str> = text.split(sign).collect();
    let is_hex =
        |(group, length): (&&str, &usize)| group.len() == *length && group.bytes().all(|b| b.is_ascii_hexdigit());
    groups.len() == lengths.len() && groups.iter().zip(lengths).all(is_hex)
}

/// A UUID, a machine's id, or the short number of a FAT file system, as the boot loader's configuration has it.
fn uuid(line: &str) -> Option<Range<usize>> {
    let is_in = |b: u8| b.is_ascii_hexdigit() || b == b'-';
    for run in runs(line, is_in) {
        let text = &line[run.clone()];
        let whole = stands_alone(line, &run);
        let is_machine_id = text.len() == 32 && !text.contains('-') && text.bytes().any(|b| !b.is_ascii_digit());
        let is_short = groups_of(text, '-', &[4, 4]) && !text.bytes().any(|b| b.is_ascii_lowercase());
        if whole && (is_machine_id || is_short) {
            return Some(run);
        }
        // Other words may be joined to it by a dash.
        for at in 0..text.len().saturating_sub(35) {
            let part = run.start + at..run.start + at + 36;
            let is_uuid = groups_of(&line[part.clone()], '-', &[8, 4, 4, 4, 12]);
            let known = KNOWN_GUIDS.contains(&line[part.clone()].to_ascii_lowercase().as_str());
            if is_uuid && !known && stands_alone(line, &part) {
                return Some(part);
            }
        }
    }
    None
}

fn mac(line: &str) -> Option<Range<usize>> {
    let is_one = |run: &Range<usize>| {
        let text = &line[run.clone()];
        let is_mac = [':', '-'].iter().any(|sign| groups_of(text, *sign, &[2; 6]));
        let is_nobodys = text.bytes().all(|b| b"0:-".contains(&b)) || text.bytes().all(|b| b"fF:-".contains(&b));
        is_mac && !is_nobodys && stands_alone(line, run)
    };
    runs(line, |b| b.is_ascii_hexdigit() || b":-".contains(&b)).find(is_one)
}

fn ip(line: &str) -> Option<Range<usize>> {
    for run in runs(line, |b| b.is_ascii_hexdigit() || b".:".contains(&b)) {
        let text = &line[run.clone()];
        // The end of a sentence, or a port, is no part of it.
        let before_port = text.split_once(':').map_or(text, |(before, _)| before);
        let trimmed = text.trim_end_matches(['.', ':']);
        for part in [text, trimmed, before_port, before_port.trim_end_matches('.')] {
            let range = run.start..run.start + part.len();
            let before = run.start.checked_sub(1).map(|at| line.as_bytes()[at]);
            let is_ours = before.is_none_or(|b| !is_word(b));
            let is_nobodys = |ip: Ipv4Addr| ip.is_loopback() || ip == Ipv4Addr::UNSPECIFIED || ip.is_broadcast();
            let is_v4 = part.parse::<Ipv4Addr>().is_ok_and(|ip| !is_nobodys(ip));
            let is_v6 = part
                .parse::<Ipv6Addr>()
                .is_ok_and(|ip| part.len() > 4 && ip != Ipv6Addr::LOCALHOST);
            let is_address = is_v4 || is_v6;
            if is_address && is_ours {
                return Some(range);
            }
        }
    }
    None
}

/// An address of mail, or a user of Proxmox's with the realm.
fn email(line: &str) -> Option<Range<usize>> {
    let is_in = |b: u8| b.is_ascii_alphanumeric() || b"._%+-@".contains(&b);
    let is_one = |run: &Range<usize>| {
        let text = line[run.clone()].trim_end_matches(['.', '-']);
        let Some((user, domain)) = text.split_once('@') else {
            return false;
        };
        let last = domain.rsplit('.').next().unwrap_or_default();
        let is_domain = domain.contains('.') && last.len() > 1 && last.bytes().all(|b| b.is_ascii_alphabetic());
        let is_realm = matches!(domain, "pam" | "pve") && user != "root";
        !user.is_empty() && (is_realm || (is_domain && !UNITS.contains(&last)))
    };
    runs(line, is_in).find(is_one)
}

/// The name in `/home/NAME`.
fn home(line: &str) -> Option<Range<usize>> {
    for (at, _) in line.match_indices("/home/") {
        let start = at + "/home/".len();
        let rest = &line[start..];
        let end = rest
            .find(|c: char| c.is_whitespace() || "/\"':;,)".contains(c))
            .unwrap_or(rest.len());
        if end > 0 && !rest.starts_with("USER-") {
            return Some(start..start + end);
        }
    }
    None
}
