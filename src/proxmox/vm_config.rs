//! A VM's config file, /etc/pve/qemu-server/VMID.conf, in Proxmox's own grammar.
//!
//! Pure: bytes in, values out, in time linear in the file. A line that Proxmox ignores is ignored here
//! and told with its reason; the VM then starts without that entry. Which of the host's devices an
//! entry means is decided in [`crate::proxmox::resolve`].
//!
//! Source: qemu-server 9.2.6 and 8.4.10, PVE/QemuServer.pm, `parse_vm_config` (not strict) and
//! `check_type`.

use std::collections::{BTreeMap, BTreeSet};

use crate::proxmox::grammar::generation::Generation;
use crate::proxmox::grammar::propstring::{self, Invalid, is_space};
use crate::proxmox::grammar::schema::{self, Rules};
use crate::proxmox::grammar::value::Value;
use crate::proxmox::grammar::values::is_config_id;
use crate::proxmox::hostpci::HostPci;

/// How many hostpci entries a VM may have (PVE/QemuServer/PCI.pm, `$MAX_HOSTPCI_DEVICES`).
pub const MAX_HOSTPCI: u8 = 16;

/// A line of the current section that Proxmox complains about and then ignores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IgnoredLine {
    /// Its number, from 1.
    pub line: usize,
    /// Its key, if one was recognised.
    pub key: Option<String>,
    /// What stands behind the key.
    pub value: Value,
    /// Why.
    pub reason: Invalid,
}

/// The settings of one section, as far as they are valid.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Section {
    values: BTreeMap<String, Value>,
    hostpci: BTreeMap<u8, HostPci>,
}

impl Section {
    /// The value of a setting; of a repeated one the last valid value. Booleans are `1` or `0`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// Whether a boolean setting is on.
    pub fn flag(&self, key: &str) -> bool {
        self.get(key).is_some_and(|v| *v == "1")
    }

    /// The hostpci entries, in the order of their index.
    pub fn hostpci(&self) -> impl Iterator<Item = &HostPci> {
        self.hostpci.values()
    }

    /// The `delete:` of `[PENDING]`, as it is spelled; see [`VmConfig::pending_deletes`].
    pub fn delete(&self) -> Option<&Value> {
        self.get("delete")
    }
}

/// A parsed VM config.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VmConfig {
    /// What the VM has: the lines before the first section header.
    pub current: Section,
    /// `[PENDING]`: what is to change at the next start. Proxmox has merged it when a hookscript runs
    /// for a normal start.
    pub pending: Section,
    /// The names of the snapshots.
    pub snapshots: BTreeSet<String>,
    /// The lines of the current section that were ignored, in the order of the file.
    pub ignored_lines: Vec<IgnoredLine>,
    /// Keys of the form hostpciN of the current section of which no line was taken, with the reason of
    /// the last one. The N need not be valid.
    pub ignored_hostpci: BTreeMap<String, Invalid>,
}

impl VmConfig {
    /// The hostpci entries the VM has now, in the order of their index.
    pub fn hostpci(&self) -> impl Iterator<Item = &HostPci> {
        self.current.hostpci()
    }

    /// The hostpci lines that are ignored and for which no other line of that key stands: the last one of each. A later
    /// version of Proxmox may know what this grammar does not.
    pub fn ignored_hostpci_lines(&self) -> impl Iterator<Item = &IgnoredLine> {
        let last = |key: &String| self.ignored_lines.iter().rfind(|line| line.key.as_ref() == Some(key));
        self.ignored_hostpci.keys().filter_map(last)
    }

    /// Whether the VM is a template. It is then only started for a backup, without hostpci.
    pub fn template(&self) -> bool {
        self.current.flag("template")
    }

    /// `lock:`, the operation that has the VM; any word, the parser does not check it.
    pub fn lock(&self) -> Option<&Value> {
        self.current.get("lock")
    }

    /// `hookscript:`, a volume id.
    pub fn hookscript(&self) -> Option<&Value> {
        self.current.get("hookscript")
    }

    /// Whether the machine type is a q35 (PVE/QemuServer/Machine.pm, `machine_type_is_q35`). Where the line has a property
    /// that we do not know, a later Proxmox may: its type counts all the same.
    pub fn is_q35(&self, generation: Generation) -> bool {
        let says_q35 = |kind: &[u8]| kind.windows(3).any(|w| w == b"q35");
        let is_later = |line: &&IgnoredLine| {
            line.reason == Invalid::UnknownProperty && line.key.as_deref().is_some_and(|key| key == "machine")
        };
        let machine = self.current.get("machine").map(Value::as_bytes);
        if let Some(later) = self.ignored_lines.iter().rfind(is_later).filter(|_| machine.is_none()) {
            let mut parts = later.value.as_bytes().split(|c| *c == b',');
            return parts.any(|part| {
                let kind = part.strip_prefix(b"type=").unwrap_or(part);
                !kind.contains(&b'=') && says_q35(kind)
            });
        }
        let fields = propstring::parse(schema::machine_format(generation), machine.unwrap_or_default());
        fields.unwrap_or_default().get("type").is_some_and(says_q35)
    }

    /// The keys that `[PENDING]` deletes, and whether by force (a leading `!`).
    pub fn pending_deletes(&self) -> Vec<(String, bool)> {
        let text = self.pending.delete().map(Value::to_str).unwrap_or_default();
        text.split(|c: char| c.is_ascii_whitespace() || matches!(c, ',' | ';' | '\u{b}'))
            .filter_map(|word| match word.strip_prefix('!') {
                Some(key) => (!key.is_empty()).then(|| (key.to_owned(), true)),
                None => (!word.is_empty()).then(|| (word.to_owned(), false)),
            })
            .collect()
    }
}

/// Parses a VM config. Takes every input; what Proxmox would not take is told in the result.
pub fn parse(raw: &[u8], generation: Generation) -> VmConfig {
    parse_with(
        raw,
        Rules {
            generation,
            cpu_models: &[],
        },
    )
}

/// Parses a VM config on a node that has CPU models of its own.
pub fn parse_with(raw: &[u8], rules: Rules<'_>) -> VmConfig {
    let mut parser = Parser {
        rules,
        config: VmConfig::default(),
        place: Place::Current,
        description: None,
    };
    for (number, line) in raw.split(|b| *b == b'\n').enumerate() {
        parser.line(number + 1, line);
    }
    parser.finish_description();
    parser.config
}

/// Where the parser is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Current,
    Pending,
    /// A snapshot, a special section or an unknown one: nothing in them counts.
    Other,
}

struct Parser<'a> {
    rules: Rules<'a>,
    config: VmConfig,
    place: Place,
    description: Option<Vec<u8>>,
}

/// The description is comments (or a `description:`), put together at the end of the section.
const DESCRIPTION: &str = "description";

impl Parser<'_> {
    fn line(&mut self, number: usize, line: &[u8]) {
        let line_end = trim_end(line);
        if line_end.is_empty() || self.header(line_end) || self.place == Place::Other {
            return;
        }
        if let Some(text) = line.strip_prefix(b"#") {
            let description = self.description.get_or_insert_default();
            decode_text(text, description);
            description.push(b'\n');
            return;
        }
        // In this order: a line may have several of these forms.
        if let Some(text) = keyed(line, DESCRIPTION) {
            decode_text(text, self.description.get_or_insert_default());
            return;
        }
        if is_snapstate(line_end) {
            if let Some((key, _)) = setting(line) {
                self.ignore_hostpci(key, Invalid::TakenAsSnapstate);
            }
            return;
        }
        if let Some(value) = keyed(line, "args") {
            self.set("args", Value::from(value));
            return;
        }
        if let Some(value) = keyed(line, "delete") {
            match self.place {
                Place::Pending => self.set("delete", Value::from(value)),
                _ => self.ignore(number, Some("delete"), value, Invalid::DeleteOutsidePending),
            }
            return;
        }
        let Some((key, value)) = setting(line) else {
            return self.ignore(number, None, line, Invalid::UnparsableLine);
        };
        match schema::check(key, value, self.rules) {
            Ok(kept) => self.set(key, Value::from(kept)),
            Err(reason) => {
                self.ignore(number, Some(key), value, reason);
                self.ignore_hostpci(key, reason);
            }
        }
    }

    /// Whether the line is a section header; if so the section begins.
    fn header(&mut self, line: &[u8]) -> bool {
        let Some(name) = line.strip_prefix(b"[").and_then(|l| l.strip_suffix(b"]")) else {
            return false;
        };
        if name.contains(&b']') {
            return false;
        }
        self.finish_description();
        self.place = Place::Other;
        if name.eq_ignore_ascii_case(b"PENDING") {
            self.place = Place::Pending;
            self.config.pending = Section::default(); // a second one starts over
        } else if is_config_id(name) {
            self.config.snapshots.insert(String::from_utf8_lossy(name).into_owned());
        }
        true
    }

    fn section(&mut self) -> &mut Section {
        match self.place {
            Place::Pending => &mut self.config.pending,
            _ => &mut self.config.current,
        }
    }

    fn set(&mut self, key: &str, value: Value) {
        if let Some(index) = hostpci_index(key) {
            // The schema has taken it, so this does too.
            if let Ok(entry) = HostPci::parse(index, value.as_bytes(), self.rules.generation) {
                self.section().hostpci.insert(index, entry);
                if self.place == Place::Current {
                    self.config.ignored_hostpci.remove(key);
                }
            }
        }
        let key = if key == "cdrom" { "ide2" } else { key };
        self.section().values.insert(key.to_owned(), value);
    }

    fn ignore(&mut self, line: usize, key: Option<&str>, value: &[u8], reason: Invalid) {
        if self.place == Place::Current {
            let key = key.map(str::to_owned);
            let value = Value::from(value);
            self.config.ignored_lines.push(IgnoredLine {
                line,
                key,
                value,
                reason,
            });
        }
    }

    fn ignore_hostpci(&mut self, key: &str, reason: Invalid) {
        let digits = key.strip_prefix("hostpci");
        let is_hostpci = digits.is_some_and(|d| d.bytes().all(|b| b.is_ascii_digit()));
        let taken = hostpci_index(key).is_some_and(|i| self.config.current.hostpci.contains_key(&i));
        if self.place == Place::Current && is_hostpci && !taken {
            self.config.ignored_hostpci.insert(key.to_owned(), reason);
        }
    }

    fn finish_description(&mut self) {
        if let Some(text) = self.description.take() {
            let text = String::from_utf8_lossy(&text);
            self.set(DESCRIPTION, Value::from(text.trim_end_matches(is_text_space)));
        }
    }
}

/// Perl's `\s` in decoded text: Unicode's white space.
fn is_text_space(c: char) -> bool {
    c.is_whitespace()
}

/// The index of a hostpci key that exists.
fn hostpci_index(key: &str) -> Option<u8> {
    let digits = key.strip_prefix("hostpci")?;
    let index = digits.parse::<u8>().ok().filter(|i| *i < MAX_HOSTPCI)?;
    (index.to_string() == digits).then_some(index)
}

/// `key:`, optional blanks, and a value that is more than blanks.
fn keyed<'a>(line: &'a [u8], key: &str) -> Option<&'a [u8]> {
    let rest = line.strip_prefix(key.as_bytes())?.strip_prefix(b":")?;
    let value = trim(rest);
    (!value.is_empty()).then_some(value)
}

/// A key of lower-case letters, `_` and `-`, then digits; at once a colon; then a value, which is a
/// single blank where there are only blanks.
fn setting(line: &[u8]) -> Option<(&str, &[u8])> {
    if !line.first()?.is_ascii_lowercase() {
        return None;
    }
    let run = |from: usize, is: fn(&u8) -> bool| line[from..].iter().take_while(|b| is(b)).count();
    let letters = run(0, |b| b.is_ascii_lowercase() || matches!(b, b'_' | b'-'));
    let end = letters + run(letters, u8::is_ascii_digit);
    let rest = line[end..].strip_prefix(b":")?;
    let value = trim(rest);
    let value = if value.is_empty() {
        &rest[rest.len().checked_sub(1)?..]
    } else {
        value
    };
    Some((std::str::from_utf8(&line[..end]).ok()?, value))
}

/// Whether a line (its trailing blanks removed) ends in `snapstate: prepare` or `snapstate: delete`.
pub fn is_snapstate(line: &[u8]) -> bool {
    [&b"prepare"[..], b"delete"]
        .iter()
        .filter_map(|word| line.strip_suffix(*word))
        .any(|rest| trim_end(rest).ends_with(b"snapstate:"))
}

fn trim_end(text: &[u8]) -> &[u8] {
    &text[..text.iter().rposition(|b| !is_space(*b)).map_or(0, |at| at + 1)]
}

fn trim(text: &[u8]) -> &[u8] {
    let text = trim_end(text);
    &text[text.iter().position(|b| !is_space(*b)).unwrap_or(text.len())..]
}

/// Undoes the URL encoding of descriptions (pve-common, PVE/Tools.pm, `decode_text`): `%` and two hex
/// digits are a byte, everything else stays.
fn decode_text(text: &[u8], to: &mut Vec<u8>) {
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail
            .get(..2)
            .filter(|d| *first == b'%' && d.iter().all(u8::is_ascii_hexdigit));
        let byte = digits.and_then(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 16).ok());
        to.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &tail[2..] } else { tail };
    }
}

/// What every line begins with that gives a VM a device.
const HOSTPCI: &[u8] = b"hostpci";

/// Whether a config may have a line that gives the VM a device, as a device or as one that is ignored.
pub(crate) fn names_a_device(config: &[u8]) -> bool {
    let mut rest = config;
    while let Some(at) = rest.iter().position(|byte| *byte == HOSTPCI[0]) {
        if rest[at..].starts_with(HOSTPCI) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> VmConfig {
        parse(text.as_bytes(), Generation::Pve9)
    }

    fn hosts(config: &VmConfig) -> Vec<String> {
        config.hostpci().map(|e| format!("{}={e}", e.index)).collect()
    }

    #[test]
    fn a_config_names_a_device_wherever_the_word_stands() {
        for (text, expected) in [
            ("", false),
            ("cores: 4\nname: h\nhost: hostpc\n", false),
            ("hostpci0: 01:00\n", true),
            ("cores: 4\r\nhostpci0: 01:00", true),
            ("hhostpci", true),
            ("name: web\n[before]\nhostpci3: mapping=gpu\n", true),
            ("#hostpci is spoken of", true),
        ] {
            assert_eq!(names_a_device(text.as_bytes()), expected, "{text:?}");
        }
        // What makes no difference to what a config says of devices.
        let read = parse(b"cores: 4\nhostpc0: 01:00\n", Generation::Pve9);
        assert!(read.hostpci().next().is_none() && read.ignored_hostpci_lines().next().is_none());
    }

    #[test]
    fn the_last_valid_line_of_a_key_counts() {
        let config = config("hostpci1: 02:00\nhostpci0: 01:00\nhostpci0: 03:00,pcie=1\nhostpci0: 04:ZZ\n");
        assert_eq!(hosts(&config), ["0=03:00,pcie=1", "1=02:00"]);
        let reason = Invalid::InvalidPropertyValue;
        assert_eq!(
            config.ignored_lines,
            [IgnoredLine {
                line: 4,
                key: Some("hostpci0".into()),
                value: "04:ZZ".into(),
                reason
            }]
        );
        assert!(config.ignored_hostpci.is_empty());
    }

    #[test]
    fn an_ignored_entry_is_told_with_the_reason_of_its_last_line() {
        let config = config("hostpci0: x\nhostpci0: 01:00,a=1\nhostpci16: 01:00\nhostpci2: 01:00 snapstate: delete\n");
        let ignored: Vec<(&str, Invalid)> = config.ignored_hostpci.iter().map(|(k, r)| (k.as_str(), *r)).collect();
        let expected = [
            ("hostpci0", Invalid::UnknownProperty),
            ("hostpci16", Invalid::UnknownSetting),
            ("hostpci2", Invalid::TakenAsSnapstate),
        ];
        assert_eq!(ignored, expected);
    }

    #[test]
    fn lines_are_cut_as_perl_cuts_them() {
        for (line, key_and_value) in [
            ("a:b", Some(("a", "b"))),
            ("a: \t b c \u{b}\r", Some(("a", "b c"))),
            ("a:  \t", Some(("a", "\t"))), // only blanks: the last one is the value
            ("a-_b09: x", Some(("a-_b09", "x"))),
            ("a:", None),
            ("a :b", None),
            ("A:b", None),
            ("a0b:c", None),
            ("9:c", None),
            (":", None),
        ] {
            let expected = key_and_value.map(|(k, v): (&str, &str)| (k, v.as_bytes()));
            assert_eq!(setting(line.as_bytes()), expected, "{line:?}");
        }
    }

    #[test]
    fn only_what_is_before_the_first_header_is_current() {
        let text = "hostpci0: 01:00\r\n[PENDING] \r\nhostpci0: 02:00\ndelete: hostpci1,!memory\n[snap-1]\nhostpci2: 03:00\n\
                    [x]\nhostpci3: 03:00\n[special:cloudinit]\nhostpci4: 03:00\n[snap2] x\n";
        let config = config(text);
        assert_eq!(hosts(&config), ["0=01:00"]);
        assert_eq!(
            config.pending.hostpci().map(ToString::to_string).collect::<Vec<_>>(),
            ["02:00"]
        );
        assert_eq!(
            config.pending_deletes(),
            [("hostpci1".to_owned(), false), ("memory".to_owned(), true)]
        );
        assert_eq!(config.snapshots.iter().collect::<Vec<_>>(), ["snap-1"]);
        assert!(config.ignored_lines.is_empty());
    }

    #[test]
    fn a_second_pending_section_starts_over() {
        let config = config("[PENDING]\nhostpci0: 01:00\n[pending]\nhostpci1: 02:00\n");
        assert_eq!(config.pending.hostpci().map(|e| e.index).collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn descriptions_are_decoded_and_trimmed() {
        for (text, expected) in [
            ("#a%3A b\n# c\n", "a: b\n c"),
            ("#a\ndescription: b%0a\n", "a\nb"),
            ("#%zz%4\n", "%zz%4"),
            ("#caf%c3%a9%C2%A0\n", "caf\u{e9}"), // the blank that does not break is white space
            ("#%ff\n", "\u{fffd}"),
            ("#\n", ""),
        ] {
            let config = config(text);
            assert_eq!(
                config.current.get("description").map(Value::to_str).as_deref(),
                Some(expected),
                "{text:?}"
            );
        }
        assert_eq!(config("memory: 512\n").current.get("description"), None);
    }

    #[test]
    fn facts_are_at_hand() {
        let config = config("template: yes\nlock: backup\nhookscript: local:snippets/x\nmachine: type=pc-q35-9.0\n");
        assert!(config.template());
        assert_eq!(config.lock().unwrap(), &"backup");
        assert_eq!(config.hookscript().unwrap(), &"local:snippets/x");
        assert!(config.is_q35(Generation::Pve9));
        assert!(!parse(b"machine: viommu=virtio", Generation::Pve9).is_q35(Generation::Pve9));
        for (later, q35) in [
            ("machine: q35,of-tomorrow=1", true),
            ("machine: of-tomorrow=q35,type=pc-q35-9.2", true),
            ("machine: pc,of-tomorrow=q35", false),
            ("machine: q35,viommu=nonsense", false),
        ] {
            assert_eq!(
                parse(later.as_bytes(), Generation::Pve9).is_q35(Generation::Pve9),
                q35,
                "{later}"
            );
        }
    }

    #[test]
    fn delete_belongs_to_pending() {
        let config = config("delete: hostpci0\n");
        let reason = Invalid::DeleteOutsidePending;
        assert_eq!(
            config.ignored_lines,
            [IgnoredLine {
                line: 1,
                key: Some("delete".into()),
                value: "hostpci0".into(),
                reason
            }]
        );
    }
}
