//! PCI addresses, ids and classes as the kernel spells them in sysfs.
//!
//! Pure: text in, values out. What Proxmox accepts as an address in a VM config is another, wider
//! grammar and lives in [`crate::proxmox::vm_config`]; nothing here reads a file.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::base::sets::IntoSet as _;

/// NVIDIA's PCI vendor id, `PCI_VENDOR_ID_NVIDIA` in the kernel's include/linux/pci_ids.h.
pub const VENDOR_NVIDIA: u16 = 0x10de;

/// A PCI function: the name of its directory below /sys/bus/pci/devices, `DDDD:BB:SS.F`.
///
/// Ordered by domain, bus, slot, function, which is the order of the sysfs names. A domain may need
/// more than four digits (Intel VMD numbers its domains from 0x10000), the rest is of fixed width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddr {
    /// PCI domain (segment).
    pub domain: u32,
    /// Bus number.
    pub bus: u8,
    /// Slot ("device") number, 0 to 31.
    pub slot: u8,
    /// Function number, 0 to 7.
    pub function: u8,
}

/// A slot: what the functions of one card share, `DDDD:BB:SS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciSlot {
    /// PCI domain (segment).
    pub domain: u32,
    /// Bus number.
    pub bus: u8,
    /// Slot ("device") number, 0 to 31.
    pub slot: u8,
}

impl PciAddr {
    /// The slot this function sits in.
    pub fn slot(self) -> PciSlot {
        PciSlot {
            domain: self.domain,
            bus: self.bus,
            slot: self.slot,
        }
    }

    /// This one, and the other functions that its slot has room for.
    pub fn of_slot(self) -> impl Iterator<Item = PciAddr> {
        let all = 0..8; // three bits (linux, include/uapi/linux/pci.h, PCI_FUNC)
        all.map(move |n| PciAddr {
            function: self.function ^ n,
            ..self
        })
    }

    /// Function 1 of its card: where NVIDIA's cards have their sound.
    pub fn sound(self) -> PciAddr {
        PciAddr { function: 1, ..self }
    }
}

impl fmt::Display for PciAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:x}", self.slot(), self.function)
    }
}

impl fmt::Display for PciSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}", self.domain, self.bus, self.slot)
    }
}

/// The text is not the sysfs name of a PCI function.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a PCI address of the form 0000:01:00.0")]
pub struct BadAddress(pub String);

impl FromStr for PciAddr {
    type Err = BadAddress;

    /// Parses the full sysfs name. The domain may be left out by people (`01:00.0`), never by the kernel.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_addr(text).ok_or_else(|| BadAddress(text.to_owned()))
    }
}

fn parse_addr(text: &str) -> Option<PciAddr> {
    let (rest, function) = text.rsplit_once('.')?;
    let (rest, slot) = rest.rsplit_once(':')?;
    let (domain, bus) = match rest.split_once(':') {
        Some((domain, bus)) => (hex(domain, 4, 8)?, bus),
        None => (0, rest),
    };
    let slot = u8::try_from(hex(slot, 2, 2)?).ok().filter(|s| *s < 32)?;
    let function = u8::try_from(hex(function, 1, 1)?).ok().filter(|f| *f < 8)?;
    let bus = u8::try_from(hex(bus, 2, 2)?).ok()?;
    Some(PciAddr {
        domain,
        bus,
        slot,
        function,
    })
}

/// Hex digits only (`from_str_radix` alone would take a sign), between `min` and `max` of them.
fn hex(text: &str, min: usize, max: usize) -> Option<u32> {
    if !(min..=max).contains(&text.len()) || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u32::from_str_radix(text, 16).ok()
}

impl Serialize for PciAddr {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PciAddr {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A class code, the 24 bits of sysfs `class`: base class, subclass, programming interface.
///
/// Numbers from the PCI Code and ID Assignment Specification, as in include/linux/pci_ids.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciClass(pub u32);

impl PciClass {
    /// A host bridge (0600).
    pub fn is_host_bridge(self) -> bool {
        self.0 >> 8 == 0x0600
    }

    /// VGA compatible (0300) or 3D controller (0302): what a GPU's function 0 says it is.
    pub fn is_gpu(self) -> bool {
        matches!(self.0 >> 8, 0x0300 | 0x0302)
    }

    /// A USB host controller (0c03).
    pub fn is_usb(self) -> bool {
        self.0 >> 8 == 0x0c03
    }

    /// Any bridge (06xx): Proxmox leaves those of an IOMMU group alone, and so do we.
    pub fn is_bridge(self) -> bool {
        self.0 >> 16 == 0x06
    }

    /// A word for people, from the base class and subclass.
    pub fn name(self) -> &'static str {
        match self.0 >> 8 {
            0x0300 => "VGA",
            0x0302 => "3D",
            0x0403 | 0x0401 => "audio",
            0x0c03 => "USB",
            0x0c80 => "UCSI",
            0x0680 => "NVSwitch or bridge",
            n if n >> 8 == 0x01 => "storage",
            n if n >> 8 == 0x02 => "network",
            n if n >> 8 == 0x06 => "bridge",
            _ => "device",
        }
    }
}

/// Parses sysfs `vendor` and `device` ("0x10de") and the wider `class` ("0x030000").
pub fn parse_sysfs_hex(text: &str) -> Option<u32> {
    hex(text.trim_end().strip_prefix("0x")?, 1, 8)
}

/// A number of up to 64 bits as sysfs prints it in `resource`: `0x00000000c0000000`.
pub fn parse_sysfs_hex64(text: &str) -> Option<u64> {
    let digits = text.strip_prefix("0x")?;
    u64::from_str_radix(digits, 16).ok()
}

/// The cards of some functions, each once.
pub fn slots(addrs: &[PciAddr]) -> Vec<String> {
    let slots: BTreeSet<PciSlot> = addrs.iter().map(|a| a.slot()).into_set();
    slots.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_print_as_they_are_parsed() {
        for text in ["0000:01:00.0", "0000:ff:1f.7", "10000:e1:00.0", "abcd:00:0a.3"] {
            assert_eq!(text.parse::<PciAddr>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_missing_domain_is_0000() {
        let addr: PciAddr = "01:00.1".parse().unwrap();
        assert_eq!(addr.to_string(), "0000:01:00.1");
        assert_eq!(addr.slot().to_string(), "0000:01:00");
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "1",
            "01:00",
            "0000:01:00",
            "0000:01:20.0",
            "0000:01:00.8",
            "0000:1:00.0",
            "000:01:00.0",
            "+000:01:00.0",
            "0000:01:00.0 ",
            "0000:01:00.00",
            "0000:0g:00.0",
        ] {
            assert!(text.parse::<PciAddr>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn order_is_that_of_the_names() {
        let addr = |t: &str| t.parse::<PciAddr>().unwrap();
        assert!(addr("0000:01:00.1") < addr("0000:01:01.0"));
        assert!(addr("0000:0f:00.0") < addr("0001:00:00.0"));
    }

    #[test]
    fn classes_are_told_apart() {
        assert!(PciClass(0x030000).is_gpu());
        assert!(PciClass(0x030200).is_gpu());
        assert!(!PciClass(0x040300).is_gpu());
        assert!(PciClass(0x060400).is_bridge());
        assert_eq!(parse_sysfs_hex("0x030000\n"), Some(0x030000));
        assert_eq!(parse_sysfs_hex("10de"), None);
    }
}
