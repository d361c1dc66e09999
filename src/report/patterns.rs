//! What in a line has the form of something that identifies a machine or a person: each a look for the next place from some byte
//! on. Pure.
//!
//! Not here: what opens something ([`crate::report::secrets`]); names, which have no form ([`crate::report::redact`]).

use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use crate::report::runs::{is_word, runs, stands_alone, value_at};
use crate::report::secrets;

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

    /// The thing as it is known by: one is one however it is spelled.
    pub(super) fn normal(self, thing: &str) -> String {
        let lower = thing.to_ascii_lowercase();
        match self {
            Kind::Uuid => lower.replace("\\x2d", "").replace(['-', '\\'], ""),
            Kind::Mac => lower.replace([':', '-', '.'], ""),
            _ => lower,
        }
    }
}

/// A look for the first such thing in a line.
pub(super) type Finder = fn(&str) -> Option<Range<usize>>;

/// In this order: what is told by its name or its place first, then what has a form.
pub(super) const FINDERS: [(Kind, Finder); 14] = [
    (Kind::Secret, secrets::assigned),
    (Kind::Secret, secrets::authorization),
    (Kind::Secret, secrets::option),
    (Kind::Secret, secrets::in_an_address),
    (Kind::Serial, by_id),
    (Kind::Serial, serial),
    (Kind::Serial, disk),
    (Kind::Uuid, uuid),
    (Kind::Mac, mac),
    (Kind::Mac, bare_mac),
    (Kind::Secret, secrets::token),
    (Kind::Ip, ip),
    (Kind::Email, email),
    (Kind::User, home),
];

/// GUIDs that are the same everywhere: EFI's global variables (UEFI, EFI_GLOBAL_VARIABLE), and none.
const KNOWN_GUIDS: [&str; 2] = [
    "8be4df61-93ca-11d2-aa0d-00e098032b8c",
    "00000000-0000-0000-0000-000000000000",
];

/// What has an @ and is a unit of systemd's ends so.
const UNITS: [&str; 9] = [
    "service", "socket", "slice", "scope", "target", "timer", "mount", "device", "path",
];

/// Folders of links that are called by what is unique about a device, or by what somebody has called it (udev,
/// rules.d/60-persistent-storage.rules, 60-serial.rules), and the same in the name of a unit (systemd-escape(1)).
const BY: [&str; 9] = [
    "/by-id/",
    "/by-uuid/",
    "/by-partuuid/",
    "/by-label/",
    "/by-partlabel/",
    "by\\x2did-",
    "by\\\\x2did-",
    "by\\x2duuid-",
    "by\\\\x2duuid-",
];

/// The name of a link in such a folder.
fn by_id(line: &str) -> Option<Range<usize>> {
    let starts = BY
        .iter()
        .flat_map(|by| line.match_indices(by).map(|(at, by)| at + by.len()));
    let values = starts.map(|start| value_at(line, start));
    values
        .filter(|value| !value.is_empty() && !line[value.clone()].starts_with("SERIAL-"))
        .min_by_key(|value| value.start)
}

/// Names of what is told of one device alone.
const SERIALS: [&str; 8] = ["serial", "s/n", "wwid", "wwn", "nguid", "eui", "asset tag", "asset_tag"];

/// What such a name goes on with.
const TAILS: [&str; 8] = ["_short", "_number", " number", "number", " no", "_no", "_id", "}"];

/// `Serial Number: X`, `SerialNumber=X`, `serial: X`, `S/N X`, `ATTRS{serial}=="X"`: with a digit in it.
fn serial(line: &str) -> Option<Range<usize>> {
    let lower = line.to_ascii_lowercase();
    let places = SERIALS.iter().flat_map(|name| lower.match_indices(name));
    let values = places.filter_map(|(at, name)| {
        let mut start = at + name.len();
        let mut is_named = name == "s/n";
        while let Some(tail) = TAILS.iter().find(|tail| lower[start..].starts_with(**tail)) {
            start += tail.len();
            is_named |= *tail != "}";
        }
        let rest = line.get(start..)?;
        let value = rest.trim_start_matches(|c: char| c.is_whitespace() || ":=#.\"'\\".contains(c));
        let between = &rest[..rest.len() - value.len()];
        let range = value_at(line, line.len() - value.len());
        let value = &line[range.clone()];
        let digits = value.bytes().filter(u8::is_ascii_digit).count();
        // "a serial console" has a word behind it, and no number.
        let is_said =
            between.contains([':', '=']) || (is_named && !between.is_empty()) || (digits > 4 && between == " ");
        let is_one = is_said && value.len() >= 4 && digits > 0 && !value.starts_with("SERIAL-");
        is_one.then_some(range)
    });
    values.min_by_key(|value| value.start)
}

/// How the names begin that udev gives disks and sticks, and those that they have of their makers.
const DISKS: [&str; 5] = ["wwn-", "eui.", "naa.", "nvme.", "t10."];
/// See there; what has a model in it with underscores.
const MODELS: [&str; 5] = ["ata-", "nvme-", "scsi-", "usb-", "mmc-"];

fn disk(line: &str) -> Option<Range<usize>> {
    let is_in = |b: u8| is_word(b) || b"-.:+".contains(&b);
    let digits = |text: &str| text.bytes().filter(u8::is_ascii_digit).count();
    runs(line, is_in).find_map(|run| {
        let text = &line[run.clone()];
        let begins = |names: &[&'static str]| names.iter().find(|name| text.starts_with(**name)).copied();
        let number = |name: &&'static str| text.len() >= name.len() + 8 && digits(text) > 3;
        let model = |name: &&'static str| text.len() >= 20 && text.contains('_') && digits(&text[name.len()..]) > 2;
        let name = begins(&DISKS)
            .filter(number)
            .or_else(|| begins(&MODELS).filter(model))?;
        Some(run.start + name.len()..run.end)
    })
}

fn groups_of(text: &str, sign: char, lengths: &[usize]) -> bool {
    let groups: Vec<&str> = text.split(sign).collect();
    let is_hex =
        |(group, length): (&&str, &usize)| group.len() == *length && group.bytes().all(|b| b.is_ascii_hexdigit());
    groups.len() == lengths.len() && groups.iter().zip(lengths).all(is_hex)
}

/// How a dash may be spelled: systemd-escape(1), and that in JSON.
const DASHES: [&str; 3] = ["-", "\\x2d", "\\\\x2d"];

/// How long the UUID is that begins there.
fn uuid_at(line: &str, at: usize) -> Option<usize> {
    DASHES.iter().find_map(|dash| {
        let mut end = at;
        for (group, length) in [8, 4, 4, 4, 12].into_iter().enumerate() {
            let rest = line.get(end..)?;
            let rest = if group == 0 { rest } else { rest.strip_prefix(dash)? };
            let digits = rest.get(..length)?;
            digits.bytes().all(|b| b.is_ascii_hexdigit()).then_some(())?;
            end = line.len() - rest.len() + length;
        }
        Some(end - at)
    })
}

/// A UUID, a machine's id, or the short number of a FAT file system, as the boot loader's configuration has it.
fn uuid(line: &str) -> Option<Range<usize>> {
    for run in runs(line, |b| b.is_ascii_hexdigit() || b == b'-') {
        let text = &line[run.clone()];
        let is_machine_id = text.len() == 32 && !text.contains('-') && text.bytes().any(|b| !b.is_ascii_digit());
        let is_short = groups_of(text, '-', &[4, 4]) && !text.bytes().any(|b| b.is_ascii_lowercase());
        if stands_alone(line, &run) && (is_machine_id || is_short) {
            return Some(run);
        }
        // Other words may be joined to it by a dash.
        for at in run.clone() {
            let Some(length) = uuid_at(line, at) else { continue };
            let part = at..at + length;
            let known = KNOWN_GUIDS.contains(&line[part.clone()].to_ascii_lowercase().as_str());
            let is_alone = stands_alone(line, &part)
                || (line[..at].ends_with("x2d") && stands_alone(line, &(at - 3..part.end)))
                || line[..at].ends_with("\\x2d");
            if !known && is_alone {
                return Some(part);
            }
        }
    }
    None
}

/// Six bytes with a sign between them, other bytes of the same number with them; behind the type of hardware, as PXE has it, the
/// six (syslinux, core/fs/pxe/pxe.c, bootif).
fn mac(line: &str) -> Option<Range<usize>> {
    let bytes = line.as_bytes();
    let is_end = |at: Option<usize>| {
        at.and_then(|at| bytes.get(at))
            .is_none_or(|b| !b.is_ascii_alphanumeric())
    };
    for run in runs(line, |b| b.is_ascii_hexdigit() || b":-".contains(&b)) {
        for sign in [':', '-'] {
            let mut at = run.start;
            let mut row: Vec<Range<usize>> = Vec::new();
            let mut rows = Vec::new();
            for group in line[run.clone()].split(sign) {
                let range = at..at + group.len();
                at = range.end + 1;
                let is_hex = group.len() == 2 && group.bytes().all(|b| b.is_ascii_hexdigit());
                let is_whole = is_end(range.start.checked_sub(1)) && is_end(Some(range.end));
                match is_hex && is_whole {
                    true => row.push(range),
                    false => rows.push(std::mem::take(&mut row)),
                }
            }
            rows.push(row);
            for row in rows.into_iter().filter(|row| row.len() >= 6) {
                let from = usize::from(row.len() == 7);
                let range = row[from].start..row[row.len() - 1].end;
                let of = |nobodys: &[u8]| line[range.clone()].bytes().all(|b| nobodys.contains(&b));
                if !of(b"0:-") && !of(b"fF:-") {
                    return Some(range);
                }
            }
        }
    }
    None
}

/// What stands before a MAC address without signs: in the names of interfaces (systemd.net-naming-scheme(7)), and of settings.
const BEFORE_A_MAC: [&str; 8] = ["enx", "wlx", "wwx", "mac=", "mac:", "mac ", "hwaddr=", "ether "];

/// `enxbc2411aa0001`, `hwaddr=bc24.11aa.0001`.
fn bare_mac(line: &str) -> Option<Range<usize>> {
    let lower = line.to_ascii_lowercase();
    let is_one = |range: &Range<usize>| {
        let text = &line[range.clone()];
        let is_bare = text.len() == 12 && text.bytes().all(|b| b.is_ascii_hexdigit());
        is_bare || groups_of(text, '.', &[4; 3])
    };
    let starts = BEFORE_A_MAC.iter().flat_map(|before| lower.match_indices(before));
    let named = starts.filter_map(|(at, before)| {
        let start = at + before.len();
        let run = runs(line.get(start..)?, |b| b.is_ascii_hexdigit() || b == b'.').next()?;
        let range = start + run.start..start + run.end;
        let is_next = run.start == 0
            && line
                .as_bytes()
                .get(range.end)
                .is_none_or(|b| !b.is_ascii_alphanumeric());
        (is_next && is_one(&range)).then_some(range)
    });
    let dotted = runs(line, |b| b.is_ascii_hexdigit() || b == b'.').filter(|run| {
        let text = &line[run.clone()];
        let has_letter = text.bytes().any(|b| b.is_ascii_alphabetic());
        has_letter && stands_alone(line, run) && groups_of(text, '.', &[4; 3])
    });
    named.chain(dotted).min_by_key(|range| range.start)
}

fn ip(line: &str) -> Option<Range<usize>> {
    let (four, six) = (ip4(line), ip6(line));
    // `a::b` of two of the first kind is no address of the second.
    let is_none = |six: &Range<usize>| four.as_ref().is_some_and(|four| four.start == six.start + 2);
    let six = six.filter(|six| !is_none(six));
    [four, six].into_iter().flatten().min_by_key(|range| range.start)
}

fn ip4(line: &str) -> Option<Range<usize>> {
    runs(line, |b| b.is_ascii_digit() || b == b'.').find_map(|run| {
        let text = &line[run.clone()];
        // The end of a sentence is no part of it.
        let start = run.start + text.len() - text.trim_start_matches('.').len();
        let range = start..start + text.trim_matches('.').len();
        let ip = line[range.clone()].parse::<Ipv4Addr>().ok()?;
        let is_nobodys = ip.is_loopback() || ip == Ipv4Addr::UNSPECIFIED || ip.is_broadcast();
        (!is_nobodys && stands_alone(line, &range)).then_some(range)
    })
}

/// Longest address, bytes (netinet/in.h, INET6_ADDRSTRLEN).
const LONGEST_IP: usize = 46;

/// In a row of groups, of which the first and the last may be something else (`peer:fd00::1:`, a port).
fn ip6(line: &str) -> Option<Range<usize>> {
    let bytes = line.as_bytes();
    for run in runs(line, |b| b.is_ascii_hexdigit() || b".:".contains(&b)) {
        if line[run.clone()].matches(':').count() < 2 {
            continue;
        }
        let is_sign = |at: usize| bytes.get(at) == Some(&b':');
        let before = run.start.checked_sub(1).and_then(|at| bytes.get(at));
        let whole = before.is_none_or(|b| !is_word(*b));
        // Behind a single colon a new word begins; two of them are a part of an address, or of a name in some language.
        let single = |at: usize| is_sign(at) && !is_sign(at + 1) && (at == 0 || !is_sign(at - 1));
        let starts = run
            .clone()
            .filter(|at| (*at == run.start && whole) || (*at > 0 && single(*at - 1)));
        for start in starts {
            let ends = (start + 1..=run.end.min(start + LONGEST_IP)).rev();
            let is_end = |end: &usize| match *end == run.end {
                true => bytes.get(*end).is_none_or(|b| !is_word(*b)),
                false => single(*end) || (bytes[*end] == b'.' && *end + 1 == run.end),
            };
            for end in ends.filter(is_end) {
                let text = &line[start..end];
                let is_one = text.len() > 4
                    && text.parse::<Ipv6Addr>().is_ok_and(|ip| ip != Ipv6Addr::LOCALHOST)
                    && (start == run.start || text.bytes().any(|b| b.is_ascii_digit()));
                if is_one {
                    return Some(start..end);
                }
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
