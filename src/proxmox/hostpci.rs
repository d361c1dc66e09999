//! One hostpci entry of a VM config, parsed and printed.
//!
//! Pure. Which lines of a file count is decided in [`crate::proxmox::vm_config`], which devices an entry means in
//! [`crate::proxmox::resolve`].
//!
//! Source: qemu-server 9.2.6, PVE/QemuServer/PCI.pm, `$hostpci_fmt`.

use std::fmt;

use crate::proxmox::grammar::generation::Generation;
use crate::proxmox::grammar::propstring::{self, Invalid, is_space};
use crate::proxmox::grammar::schema;
use crate::proxmox::grammar::value::Value;

/// Who binds the device (`driver=`, qemu-server 9.0.25 and later).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// Proxmox binds it to vfio-pci; the default.
    Vfio,
    /// The device stays on the driver it has; neither bound nor reset by Proxmox.
    Keep,
}

/// A hostpci entry that Proxmox takes.
///
/// It may have both a host and a mapping, or neither: that is found at the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostPci {
    /// The N of hostpciN, 0 to 15.
    pub index: u8,
    /// `host=`: functions or whole slots that make up one guest device, as they are spelled.
    pub host: Vec<String>,
    /// `mapping=`: the name of a resource mapping.
    pub mapping: Option<String>,
    /// `rombar=`
    pub rombar: Option<bool>,
    /// `pcie=`
    pub pcie: Option<bool>,
    /// `x-vga=`
    pub x_vga: Option<bool>,
    /// `legacy-igd=`
    pub legacy_igd: Option<bool>,
    /// `romfile=`
    pub romfile: Option<Value>,
    /// `mdev=`: the type of a mediated device or vGPU.
    pub mdev: Option<Value>,
    /// `vendor-id=`
    pub vendor_id: Option<String>,
    /// `device-id=`
    pub device_id: Option<String>,
    /// `sub-vendor-id=`
    pub sub_vendor_id: Option<String>,
    /// `sub-device-id=`
    pub sub_device_id: Option<String>,
    /// `driver=`
    pub driver: Option<Driver>,
}

impl HostPci {
    /// Parses the value of hostpciN.
    pub fn parse(index: u8, value: &[u8], generation: Generation) -> Result<HostPci, Invalid> {
        if value.contains(&b'\r') || value.contains(&b'\n') {
            return Err(Invalid::LineBreakInValue);
        }
        let fields = propstring::parse(schema::hostpci_format(generation), value)?;
        // The format lets only ASCII through for these.
        let text = |name: &str| fields.get(name).map(|v| String::from_utf8_lossy(v).into_owned());
        let value = |name: &str| fields.get(name).map(Value::from);
        Ok(HostPci {
            index,
            host: text("host")
                .map(|h| h.split(';').map(str::to_owned).collect())
                .unwrap_or_default(),
            mapping: text("mapping"),
            rombar: fields.flag("rombar"),
            pcie: fields.flag("pcie"),
            x_vga: fields.flag("x-vga"),
            legacy_igd: fields.flag("legacy-igd"),
            romfile: value("romfile"),
            mdev: value("mdev"),
            vendor_id: text("vendor-id"),
            device_id: text("device-id"),
            sub_vendor_id: text("sub-vendor-id"),
            sub_device_id: text("sub-device-id"),
            driver: fields
                .get("driver")
                .map(|d| if d == b"keep" { Driver::Keep } else { Driver::Vfio }),
        })
    }

    /// The type of the mediated device or vGPU that the entry asks for. The pattern of `mdev=` takes `0`, too, and whoever
    /// reads it asks whether the type is true, which for Perl it is not (qemu-server, PVE/QemuServer/PCI.pm): the whole card
    /// is passed then.
    pub fn mediated(&self) -> Option<&Value> {
        let is_false = |value: &&Value| matches!(value.as_bytes(), b"" | b"0");
        self.mdev.as_ref().filter(|value| !is_false(value))
    }

    /// The key, `hostpciN`.
    pub fn key(&self) -> String {
        format!("hostpci{}", self.index)
    }

    /// The value as a property string that parses to the same entry, byte for byte.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut parts: Vec<Vec<u8>> = Vec::new();
        if !self.host.is_empty() {
            parts.push(self.host.join(";").into_bytes());
        }
        let mut push = |name: &str, value: Option<&[u8]>| {
            if let Some(value) = value {
                parts.push([name.as_bytes(), b"=", value].concat());
            }
        };
        let text = |value: &'_ Option<String>| value.as_ref().map(|v| v.as_bytes().to_vec());
        push("mapping", text(&self.mapping).as_deref());
        push("mdev", self.mdev.as_ref().map(Value::as_bytes));
        push("romfile", self.romfile.as_ref().map(Value::as_bytes));
        for (name, flag) in [
            ("rombar", self.rombar),
            ("pcie", self.pcie),
            ("x-vga", self.x_vga),
            ("legacy-igd", self.legacy_igd),
        ] {
            push(name, flag.map(|on| if on { &b"1"[..] } else { b"0" }));
        }
        push("vendor-id", text(&self.vendor_id).as_deref());
        push("device-id", text(&self.device_id).as_deref());
        push("sub-vendor-id", text(&self.sub_vendor_id).as_deref());
        push("sub-device-id", text(&self.sub_device_id).as_deref());
        push(
            "driver",
            self.driver
                .map(|d| if d == Driver::Keep { &b"keep"[..] } else { b"vfio" }),
        );
        let mut line = parts.join(&b',');
        if line.last().copied().is_some_and(is_space) {
            line.push(b','); // as the value of a line it would lose the blank
        }
        line
    }
}

impl fmt::Display for HostPci {
    /// The value as a property string; [`HostPci::to_bytes`] where a ROM's name is no UTF-8.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.to_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_taken_apart() {
        let text = "host=01:00;0000:02:00.1,pcie=on,rombar=0,romfile=a b.rom,sub-device-id=0xDEF0,driver=keep";
        let entry = HostPci::parse(3, text.as_bytes(), Generation::Pve9).unwrap();
        let expected = HostPci {
            index: 3,
            host: vec!["01:00".into(), "0000:02:00.1".into()],
            pcie: Some(true),
            rombar: Some(false),
            romfile: Some("a b.rom".into()),
            sub_device_id: Some("0xDEF0".into()),
            driver: Some(Driver::Keep),
            ..HostPci::default()
        };
        assert_eq!(entry, expected);
        assert_eq!(entry.key(), "hostpci3");
    }

    #[test]
    fn the_printed_form_is_stable() {
        for (text, printed) in [
            ("pcie=1,01:00", "01:00,pcie=1"),
            ("mapping=gpu,x-vga=yes", "mapping=gpu,x-vga=1"),
            ("01:00,romfile=a ", "01:00,romfile=a ,"), // the comma keeps the blank
            (" ", ""),
            ("01:00,driver=vfio,mdev=x", "01:00,mdev=x,driver=vfio"),
        ] {
            let entry = HostPci::parse(0, text.as_bytes(), Generation::Pve9).unwrap();
            assert_eq!(entry.to_string(), printed, "{text:?}");
            assert_eq!(
                HostPci::parse(0, printed.as_bytes(), Generation::Pve9),
                Ok(entry),
                "{text:?}"
            );
        }
    }

    #[test]
    fn bad_entries_are_refused_with_the_reason() {
        for (text, reason) in [
            ("01:00,02:00", Invalid::DuplicateProperty),
            ("01:00.0 ,pcie=1", Invalid::InvalidPropertyValue),
            ("01:00.0\r,pcie=1", Invalid::LineBreakInValue),
            ("01:00,driver=vfio-pci", Invalid::InvalidPropertyValue),
            ("01:00,mdev=a/b", Invalid::InvalidPropertyValue),
            ("\"01:00\"", Invalid::InvalidPropertyValue),
            ("mapping=g", Invalid::InvalidPropertyValue),
            ("01:00;pcie=1", Invalid::UnknownProperty),
        ] {
            assert_eq!(
                HostPci::parse(0, text.as_bytes(), Generation::Pve9),
                Err(reason),
                "{text:?}"
            );
        }
    }
}
