//! Resource mappings, /etc/pve/mapping/pci.cfg, in Proxmox's own grammar.
//!
//! Which functions of this node a mapping means is [`crate::proxmox::resolve`]'s.

use std::collections::BTreeMap;

use crate::proxmox::grammar::propstring::{self, ANY, Check, Format, Prop, is_space, parse_bool};
use crate::proxmox::grammar::value::Value;
use crate::proxmox::grammar::values::{is_config_id, is_hex, is_node_name};

/// The resource mappings of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mappings {
    known: BTreeMap<String, Mapping>,
    /// Lines of a section that this grammar has no place for, by the section's name.
    ignored: BTreeMap<String, Vec<Value>>,
}

/// One resource mapping: the same kind of device on any number of nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mapping {
    /// The devices are split into mediated devices or vGPUs.
    pub mdev: bool,
    /// A VM with it can be migrated live.
    pub live_migration_capable: bool,
    /// One entry per valid `map` line, in the order of the file.
    pub entries: Vec<MapEntry>,
}

/// One `map` line: an alternative on one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapEntry {
    /// The node's name.
    pub node: String,
    /// Vendor and device id the function must have, `vvvv:dddd`, as spelled.
    pub id: String,
    /// Subsystem ids it must have.
    pub subsystem_id: Option<String>,
    /// The IOMMU group it must be in, as spelled.
    pub iommugroup: Option<String>,
    /// One or more paths, joined by `;`.
    pub path: Value,
}

/// PVE/Mapping/PCI.pm, `$map_fmt`.
const MAP: Format = &[&[
    Prop::new("node", Check::Like(is_node_name)).required(),
    Prop::new("id", Check::Like(is_id_pair)).required(),
    Prop::new("subsystem-id", Check::Like(is_id_pair)),
    Prop::new("path", Check::Like(is_map_path)).required(),
    Prop::new("iommugroup", Check::Integer(ANY.0, ANY.1)),
    Prop::new("description", Check::Short(4096)),
]];

impl Mappings {
    /// Parses pci.cfg. Lines and sections that Proxmox skips are skipped.
    ///
    /// A section begins with a bare name and ends at an empty line (not at one of blanks, and not at the
    /// next name). One without a single valid `map` line counts as absent.
    pub fn parse(raw: &[u8]) -> Mappings {
        let mut mappings = Mappings::default();
        let mut lines = raw
            .split(|b| *b == b'\n')
            .filter(|l| l.iter().find(|b| !is_space(**b)) != Some(&b'#'));
        while let Some(line) = lines.next() {
            let Some(name) = section_name(line) else {
                continue;
            };
            // "0" is false to Perl, and ends a section too.
            let body = lines.by_ref().take_while(|l| !l.is_empty() && *l != b"0");
            if !is_config_id(name) {
                body.for_each(drop);
                continue;
            }
            let mut section = MappingLines::parse(body);
            let name = String::from_utf8_lossy(name).into_owned();
            mappings
                .ignored
                .insert(name.clone(), std::mem::take(&mut section.ignored));
            match section.mapping() {
                Some(mapping) => mappings.known.insert(name, mapping),
                None => mappings.known.remove(&name),
            };
        }
        mappings
    }

    /// A mapping by its name.
    pub fn get(&self, name: &str) -> Option<&Mapping> {
        self.known.get(name)
    }

    /// Their names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.known.keys().map(String::as_str)
    }

    /// The lines of a mapping's section that Proxmox skips, as far as this grammar goes: a later version may know what
    /// they say.
    pub fn ignored(&self, name: &str) -> &[Value] {
        self.ignored.get(name).map_or(&[], Vec::as_slice)
    }
}

#[derive(Default)]
struct MappingLines {
    mdev: Option<bool>,
    live: Option<bool>,
    entries: Vec<MapEntry>,
    ignored: Vec<Value>,
}

impl MappingLines {
    fn parse<'a>(lines: impl Iterator<Item = &'a [u8]>) -> MappingLines {
        let mut section = MappingLines::default();
        for line in lines.filter(|l| l.first().copied().is_some_and(is_space)) {
            let line = trim(line);
            let end = line.iter().position(|b| is_space(*b)).unwrap_or(line.len());
            let (key, value) = (&line[..end], trim(&line[end..]));
            match key {
                b"map" => match MapEntry::parse(value) {
                    Some(entry) => section.entries.push(entry),
                    None => section.ignored.push(Value::from(line)),
                },
                b"mdev" => section.mdev = section.mdev.or(flag(value)),
                b"live-migration-capable" => section.live = section.live.or(flag(value)),
                b"description" => {}
                _ => section.ignored.push(Value::from(line)),
            }
        }
        section
    }

    fn mapping(self) -> Option<Mapping> {
        let mapping = Mapping {
            mdev: self.mdev.unwrap_or(false),
            live_migration_capable: self.live.unwrap_or(false),
            entries: self.entries,
        };
        (!mapping.entries.is_empty()).then_some(mapping)
    }
}

impl MapEntry {
    fn parse(value: &[u8]) -> Option<MapEntry> {
        if value.contains(&b'\r') {
            return None;
        }
        let fields = propstring::parse(MAP, value).ok()?;
        let text = |name: &str| fields.get(name).map(|v| String::from_utf8_lossy(v).into_owned());
        Some(MapEntry {
            node: text("node")?,
            id: text("id")?,
            subsystem_id: text("subsystem-id"),
            iommugroup: text("iommugroup"),
            path: Value::from(fields.get("path")?),
        })
    }

    pub(crate) fn paths(&self) -> impl Iterator<Item = &[u8]> {
        self.path.as_bytes().split(|b| *b == b';')
    }
}

/// A boolean of a section: the words count in property strings only. Without a value it is on.
fn flag(value: &[u8]) -> Option<bool> {
    match value {
        b"" => Some(true),
        b"0" | b"1" => parse_bool(value),
        _ => None,
    }
}

/// A section's name: a word alone on its line, at its beginning.
fn section_name(line: &[u8]) -> Option<&[u8]> {
    let name = trim(line);
    (!name.is_empty() && line.starts_with(name) && line != b"0" && !name.iter().any(|b| is_space(*b))).then_some(name)
}

fn trim(text: &[u8]) -> &[u8] {
    let start = text.iter().position(|b| !is_space(*b)).unwrap_or(text.len());
    let end = text.iter().rposition(|b| !is_space(*b)).map_or(start, |at| at + 1);
    &text[start..end]
}

fn is_id_pair(value: &[u8]) -> bool {
    value.len() == 9 && value[4] == b':' && [&value[..4], &value[5..]].concat().iter().all(u8::is_ascii_hexdigit)
}

/// Paths joined by `;`: domain, bus, slot, and optionally a function. The pattern's dot before the
/// function is not escaped, so it stands for any byte.
fn is_map_path(value: &[u8]) -> bool {
    let mut rest = value;
    loop {
        let domain = rest.iter().take_while(|b| is_hex(&[**b])).count();
        let Some([b':', b1, b2, b':', s1, s2, tail @ ..]) = (domain >= 4).then(|| &rest[domain..]) else {
            return false;
        };
        if !is_hex(&[*b1, *b2, *s1, *s2]) {
            return false;
        }
        rest = match tail {
            [_, f, after @ ..] if is_hex(&[*f]) && matches!(after, [] | [b';', ..]) => after,
            _ => tail,
        };
        match rest {
            [] => return true,
            [b';', next @ ..] => rest = next,
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_a_section_are_digits_or_nothing() {
        for (line, on) in [
            ("mdev", true),
            ("mdev 1", true),
            ("mdev 0", false),
            ("mdev yes", false),
            ("mdev 0\n\tmdev 1", false),
            ("mdev x\n\tmdev 1", true),
        ] {
            let cfg = format!(
                "gpu\n\t{line}\n\tmap id=10de:2684,iommugroup=14,node=pve1,path=0000:01:00,subsystem-id=1458:40bf\n\tlive-migration-capable 1\n"
            );
            let mappings = Mappings::parse(cfg.as_bytes());
            let mapping = mappings.get("gpu").unwrap();
            assert_eq!((mapping.mdev, mapping.live_migration_capable), (on, true), "{line:?}");
        }
    }

    #[test]
    fn paths_have_a_domain_and_any_sign_before_the_function() {
        for text in [
            "0000:01:00",
            "0000:01:00.0",
            "10000:e1:00.f;0000:01:00",
            "0000:01:00:0",
            "0000:01:00;0",
        ] {
            assert!(is_map_path(text.as_bytes()), "{text:?}");
        }
        for text in [
            "",
            "01:00",
            "000:01:00",
            "0000:01:00.",
            "0000:01:00.0;",
            "0000:01:00.00",
            "0000:0A:00",
            "\u{e4}",
        ] {
            assert!(!is_map_path(text.as_bytes()), "{text:?}");
        }
    }
}
