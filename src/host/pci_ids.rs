//! What a device is called: the system's list of PCI ids, Debian's package pci.ids.
//!
//! A name is for people; nothing is decided by it. Where the list is not there, or has not heard of a device yet, whoever
//! shows it has its ids.

use serde::{Deserialize, Serialize};

use crate::base::root::Root;
use crate::base::text::harmless;

/// Where it is (Debian's pci.ids; update-pciids(8) writes the same file).
const FILE: &str = "/usr/share/misc/pci.ids";

/// As much of it is read, bytes; in 2026 it has some 1.5 MB.
const LONGEST: usize = 8 << 20;

/// Longest name, bytes: `Device 0000 [Model / Model / Model]` are longer here and there, and say no more.
const NAME: usize = 120;

/// Vendor and device id.
pub type Ids = (u16, u16);

/// What the list has for a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// Vendor and device id.
    pub ids: Ids,
    /// The vendor's name.
    pub vendor: String,
    /// The device's, such as "GA102 [GeForce RTX 3090]"; None: it is not in the list.
    pub device: Option<String>,
}

/// The names of some devices, as far as the list has them; a list that cannot be read has none.
pub fn read(root: &Root, wanted: &[Ids]) -> Vec<Named> {
    let bytes = root.bytes_up_to(FILE, LONGEST).unwrap_or_default();
    // A megabyte and a half of text, nearly always: the quick look at it comes first.
    match str::from_utf8(&bytes) {
        Ok(text) => parse(text, wanted),
        Err(_) => parse(&String::from_utf8_lossy(&bytes), wanted),
    }
}

/// Parses the list: a vendor's line begins with its id, its devices' lines follow, indented by a tab, those of subsystems by
/// two; classes come last and begin with `C` (the head of the file itself). It has some forty thousand lines: those of a
/// vendor that nobody asks for are not looked at but for their first byte.
fn parse(text: &str, wanted: &[Ids]) -> Vec<Named> {
    let mut names: Vec<Named> = Vec::new();
    // Of the vendor that the lines are of, those that are asked for.
    let mut of_it = 0..0;
    for line in text.lines() {
        match line.as_bytes().first() {
            None | Some(b'#') => {}
            Some(b'\t') if of_it.is_empty() => {}
            Some(b'\t') => {
                if let Some((id, name)) = id_and_name(&line[1..])
                    && let Some(named) = names[of_it.clone()].iter_mut().find(|n| n.ids.1 == id)
                {
                    named.device = Some(harmless(name, NAME));
                }
            }
            // A list of classes, or what is no list: whatever is below it is no device of the vendor above.
            Some(_) => {
                let first = names.len();
                if let Some((id, name)) = id_and_name(line) {
                    for ids in wanted.iter().filter(|(vendor, _)| *vendor == id) {
                        // Of several alike.
                        if names[first..].iter().all(|named| named.ids != *ids) {
                            names.push(Named {
                                ids: *ids,
                                vendor: harmless(name, NAME),
                                device: None,
                            });
                        }
                    }
                }
                of_it = first..names.len();
            }
        }
    }
    names
}

/// `10de  NVIDIA Corporation`. Nothing is made of a line that nobody wants.
fn id_and_name(line: &str) -> Option<(u16, &str)> {
    let (id, name) = line.split_at_checked(4)?;
    let id = u16::from_str_radix(id, 16).ok().filter(|_| !id.starts_with('+'))?;
    let name = name.strip_prefix("  ")?.trim();
    (!name.is_empty()).then_some((id, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "# a comment\n\
                        10dd  Evans & Sutherland\n\
                        \t2204  Not NVIDIA's\n\
                        10de  NVIDIA Corporation\n\
                        \t1aef  GA102 High Definition Audio Controller\n\
                        \t2204  GA102 [GeForce RTX 3090]\n\
                        \t\t10de 147d  A board's name\n\
                        8086  Intel Corporation\n\
                        \t15f3  Ethernet Controller I225-V\n\
                        C 03  Display controller\n\
                        \t00  VGA compatible controller\n\
                        \t2204  no device\n";

    fn named(ids: Ids, vendor: &str, device: Option<&str>) -> Named {
        Named {
            ids,
            vendor: vendor.to_owned(),
            device: device.map(str::to_owned),
        }
    }

    #[test]
    fn a_device_is_named_by_its_vendor_and_itself() {
        let nvidia = "NVIDIA Corporation";
        for (ids, expected) in [
            (
                (0x10de, 0x2204),
                Some(named((0x10de, 0x2204), nvidia, Some("GA102 [GeForce RTX 3090]"))),
            ),
            ((0x10de, 0x147d), Some(named((0x10de, 0x147d), nvidia, None))),
            (
                (0x10dd, 0x2204),
                Some(named((0x10dd, 0x2204), "Evans & Sutherland", Some("Not NVIDIA's"))),
            ),
            ((0x1234, 0x2204), None),
        ] {
            assert_eq!(parse(LIST, &[ids]).pop(), expected, "{ids:04x?}");
        }
        assert_eq!(parse(LIST, &[(0x8086, 0x15f3), (0x10de, 0x1aef)]).len(), 2);
    }

    #[test]
    fn what_is_no_list_names_nothing_and_what_is_in_one_is_harmless() {
        for text in [
            "",
            "\t2204  a device of nobody\n",
            "10de\n",
            "10d\u{e9}  x\n",
            "+0de  x\n\t2204  y\n",
        ] {
            assert_eq!(parse(text, &[(0x10de, 0x2204)]), [], "{text:?}");
        }
        let text = "10de  NVIDIA\n\t2204  a\u{1b}[2Jb\n";
        let device = parse(text, &[(0x10de, 0x2204)]).pop().and_then(|n| n.device);
        assert_eq!(device.as_deref(), Some("a\\u{1b}[2Jb"));
    }

    #[test]
    fn a_list_that_is_not_there_is_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(&Root::at(dir.path()), &[(0x10de, 0x2204)]), []);
    }
}
