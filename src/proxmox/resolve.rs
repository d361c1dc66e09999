//! Which of the host's PCI functions a hostpci entry means: addresses, and resource mappings
//! (/etc/pve/mapping/pci.cfg) with their validation.
//!
//! Pure: the host is a list of functions, the file is bytes. Which alternative of several is taken, and
//! whether another VM has it, is decided in [`crate::proxmox::choice`].
//!
//! Sources: qemu-server 9.2.6, PVE/QemuServer/PCI.pm, `parse_hostpci`; pve-guest-common 6.0.2,
//! PVE/Mapping/PCI.pm; pve-common 9.2.1, PVE/SysFSTools.pm, `lspci`, and PVE/SectionConfig.pm,
//! `parse_config`.

use std::collections::BTreeMap;

use crate::base::pci::{PciAddr, PciClass};
use crate::base::sets::IntoSet as _;
use crate::proxmox::grammar::propstring;
use crate::proxmox::grammar::value::Value;
use crate::proxmox::hostpci::HostPci;
use crate::proxmox::mappings::{MapEntry, Mapping, Mappings};
use crate::proxmox::start_error::ResolveError;
use crate::proxmox::vm_config::VmConfig;

/// One PCI function of the host, as sysfs shows it. `None` where the file or directory is absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFunction {
    /// Its sysfs name.
    pub addr: PciAddr,
    /// `vendor`
    pub vendor: Option<u16>,
    /// `device`
    pub device: Option<u16>,
    /// `class`
    pub class: Option<PciClass>,
    /// `subsystem_vendor`
    pub subsystem_vendor: Option<u16>,
    /// `subsystem_device`
    pub subsystem_device: Option<u16>,
    /// The number of its IOMMU group.
    pub iommu_group: Option<u32>,
    /// The types in `mdev_supported_types`: it can be split into mediated devices.
    pub mdev_types: Option<Vec<String>>,
    /// The types that can be created through the `nvidia` directory (vGPU from kernel 6.8 on).
    pub nvidia_vgpu: Option<Vec<u32>>,
    /// The physical function, if this is a virtual one.
    pub physfn: Option<PciAddr>,
}

impl HostFunction {
    /// Whether Proxmox deals with vGPUs of this function through the `nvidia` directory.
    fn is_nvidia_vgpu(&self) -> bool {
        self.mdev_types.is_none() && self.nvidia_vgpu.is_some()
    }

    fn has_mdev(&self) -> bool {
        self.mdev_types.is_some() || self.nvidia_vgpu.is_some()
    }
}

/// How the guest gets the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Share {
    /// The whole function: it leaves its driver for vfio-pci.
    Whole,
    /// A mediated device of this type; the function stays on its driver and is not reserved.
    Mdev(Value),
    /// An NVIDIA vGPU of this type number; the function stays on its driver.
    NvidiaVgpu(String),
}

/// The devices that an entry may mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Alternatives in order, each with its functions in the order the guest sees them. `host=` has
    /// always one.
    pub alternatives: Vec<Vec<PciAddr>>,
    /// How the guest gets it.
    pub share: Share,
    /// The mapping says that it can be migrated live.
    pub live_migration_capable: bool,
}

/// Resolves every hostpci entry of the current section, by index.
pub fn resolve(
    config: &VmConfig,
    mappings: &Mappings,
    functions: &[HostFunction],
    node: &str,
) -> BTreeMap<u8, Result<Resolved, ResolveError>> {
    config
        .hostpci()
        .map(|entry| (entry.index, resolve_entry(entry, mappings, functions, node)))
        .into_map()
}

/// Resolves one entry. Of a mapping every entry of this node has to be valid, also those that would not
/// be chosen.
pub fn resolve_entry(
    entry: &HostPci,
    mappings: &Mappings,
    functions: &[HostFunction],
    node: &str,
) -> Result<Resolved, ResolveError> {
    let mut names: Vec<(String, &HostFunction)> = functions.iter().map(|f| (f.addr.to_string(), f)).collect();
    names.sort_unstable_by(|a, b| a.0.cmp(&b.0));

    let mut live_migration_capable = false;
    let wanted: Vec<Vec<&[u8]>> = match (&entry.mapping, entry.host.is_empty()) {
        (Some(_), false) => return Err(ResolveError::BothHostAndMapping),
        (None, true) => return Err(ResolveError::NeitherHostNorMapping),
        (None, false) => vec![entry.host.iter().map(String::as_bytes).collect()],
        (Some(name), true) => {
            let absent = || ResolveError::MappingNotFound { mapping: name.clone() };
            let mapping = mappings.get(name).ok_or_else(absent)?;
            let here: Vec<&MapEntry> = mapping.entries.iter().filter(|e| e.node == node).collect();
            if here.is_empty() {
                return Err(absent());
            }
            for entry in &here {
                assert_valid(mapping, entry, functions)?;
            }
            live_migration_capable = mapping.live_migration_capable;
            here.iter().map(|e| e.paths().collect()).collect()
        }
    };

    let mut share = entry.mediated().cloned().map_or(Share::Whole, Share::Mdev);
    let mut alternatives = Vec::new();
    for ids in wanted {
        let mut found: Vec<&HostFunction> = Vec::new();
        for id in ids {
            let before = found.len();
            found.extend(names.iter().filter(|(name, _)| is_prefix(id, name)).map(|(_, f)| *f));
            if found.len() == before {
                return Err(ResolveError::DeviceNotFound {
                    device: Value::from(id),
                });
            }
        }
        if found.len() > 1 && share != Share::Whole {
            return Err(ResolveError::MdevWithMultifunction);
        }
        if let (Share::Mdev(model), true) = (&share, found[0].is_nvidia_vgpu()) {
            let number = model
                .as_bytes()
                .strip_prefix(b"nvidia-")
                .filter(|n| propstring::is_digits(n));
            if let Some(number) = number {
                // The number alone counts from here on, and 0 is as false as no number.
                share = match number {
                    b"0" => Share::Whole,
                    number => Share::NvidiaVgpu(String::from_utf8_lossy(number).into_owned()),
                };
            }
        }
        alternatives.push(found.iter().map(|f| f.addr).collect());
    }
    Ok(Resolved {
        alternatives,
        share,
        live_migration_capable,
    })
}

/// An element matches the sysfs names that it begins, with or without their `0000:`.
pub(crate) fn is_prefix(id: &[u8], name: &str) -> bool {
    let name = name.as_bytes();
    name.starts_with(id) || name.strip_prefix(b"0000:").is_some_and(|rest| rest.starts_with(id))
}

/// Whether the hardware is still what a map line says (PVE/Mapping/PCI.pm, `assert_valid`).
fn assert_valid(mapping: &Mapping, entry: &MapEntry, functions: &[HostFunction]) -> Result<(), ResolveError> {
    for (at, path) in entry.paths().enumerate() {
        let names_function = path.windows(2).any(|w| w[0] == b'.' && w[1].is_ascii_hexdigit());
        let path = if names_function {
            path.to_vec()
        } else {
            [path, b".0"].concat()
        };
        let missing = || ResolveError::MappingDeviceMissing {
            device: Value::from(&path[..]),
        };
        let function = functions
            .iter()
            .find(|f| f.addr.to_string().as_bytes() == path)
            .ok_or_else(missing)?;
        let (Some(vendor), Some(device)) = (function.vendor, function.device) else {
            return Err(missing());
        };

        let subsystem = function.subsystem_vendor.zip(function.subsystem_device);
        let number = |on: bool| Some(u8::from(on).to_string());
        // In this order; the group is that of the first path only.
        let properties = [
            ("id", Some(pair(vendor, device)), Some(entry.id.clone())),
            (
                "iommugroup",
                function.iommu_group.map(|g| g.to_string()),
                entry.iommugroup.clone(),
            ),
            ("mdev", number(function.has_mdev()), number(mapping.mdev)),
            (
                "subsystem-id",
                subsystem.map(|(v, d)| pair(v, d)),
                entry.subsystem_id.clone(),
            ),
        ];
        for (property, host_has, mapping_has) in properties {
            if property == "iommugroup" && at > 0 {
                continue;
            }
            let device = function.addr;
            match (host_has, mapping_has) {
                (Some(_), None) => {
                    return Err(ResolveError::MappingPropertyMissing { property, device });
                }
                (None, Some(_)) => {
                    return Err(ResolveError::MappingPropertyUnexpected { property, device });
                }
                (Some(host_has), Some(mapping_has)) if host_has != mapping_has => {
                    return Err(ResolveError::MappingPropertyMismatch {
                        property,
                        host_has,
                        mapping_has,
                    });
                }
                _ => {}
            }
        }
    }
    Ok(())
}

fn pair(vendor: u16, device: u16) -> String {
    format!("{vendor:04x}:{device:04x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::proxmox::grammar::generation::Generation;
    fn function(addr: &str, device: u16, group: u32) -> HostFunction {
        HostFunction {
            addr: addr.parse().unwrap(),
            vendor: Some(0x10de),
            device: Some(device),
            class: Some(PciClass(0x030000)),
            subsystem_vendor: Some(0x1458),
            subsystem_device: Some(0x40bf),
            iommu_group: Some(group),
            mdev_types: None,
            nvidia_vgpu: None,
            physfn: None,
        }
    }

    fn host() -> Vec<HostFunction> {
        vec![
            function("0000:01:00.0", 0x2684, 14),
            function("0000:01:00.1", 0x22ba, 14),
            function("0000:02:00.0", 0x2684, 15),
            function("0001:01:00.0", 0x2684, 16),
            function("10000:e1:00.0", 0x2684, 17),
            HostFunction {
                mdev_types: Some(vec!["nvidia-222".into()]),
                ..function("0000:42:00.0", 0x1eb8, 70)
            },
            HostFunction {
                nvidia_vgpu: Some(vec![557]),
                ..function("0000:41:00.4", 0x2236, 61)
            },
        ]
    }

    fn resolved(entry: &str, cfg: &str) -> Result<String, String> {
        let entry = HostPci::parse(0, entry.as_bytes(), Generation::Pve9).unwrap();
        let found = resolve_entry(&entry, &Mappings::parse(cfg.as_bytes()), &host(), "pve1");
        let found = found.map_err(|e| e.code().to_owned())?;
        let list = |a: &Vec<PciAddr>| a.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let alternatives = found.alternatives.iter().map(list).collect::<Vec<_>>().join(" | ");
        Ok(match found.share {
            Share::Whole => alternatives,
            Share::Mdev(model) => format!("{alternatives} as mdev {model}"),
            Share::NvidiaVgpu(number) => format!("{alternatives} as vgpu {number}"),
        })
    }

    #[test]
    fn addresses_match_by_their_beginning() {
        for (entry, expected) in [
            ("01:00", Ok("0000:01:00.0 0000:01:00.1")),
            ("0000:01:00", Ok("0000:01:00.0 0000:01:00.1")),
            ("01:00.1", Ok("0000:01:00.1")),
            ("0001:01:00", Ok("0001:01:00.0")),
            ("10000:e1:00", Ok("10000:e1:00.0")),
            ("02:00;01:00.0", Ok("0000:02:00.0 0000:01:00.0")),
            ("e1:00", Err("device-not-found")),
            ("00000:01:00", Err("device-not-found")),
            ("01:00;77:00", Err("device-not-found")),
            ("42:00.0,mdev=nvidia-222", Ok("0000:42:00.0 as mdev nvidia-222")),
            ("41:00.4,mdev=nvidia-557", Ok("0000:41:00.4 as vgpu 557")),
            ("41:00.4,mdev=other", Ok("0000:41:00.4 as mdev other")),
            ("01:00,mdev=x", Err("mdev-with-multifunction")),
            // False in Perl: the whole card.
            ("01:00,mdev=0", Ok("0000:01:00.0 0000:01:00.1")),
            ("41:00.4,mdev=nvidia-0", Ok("0000:41:00.4")),
            ("42:00.0,mdev=00", Ok("0000:42:00.0 as mdev 00")),
            ("pcie=1", Err("neither-host-nor-mapping")),
            ("01:00,mapping=gpu", Err("both-host-and-mapping")),
        ] {
            let expected = expected.map(str::to_owned).map_err(str::to_owned);
            assert_eq!(resolved(entry, ""), expected, "{entry}");
        }
    }

    /// A map line that is right for 0000:01:00.
    const GOOD: &str = "map id=10de:2684,iommugroup=14,node=pve1,path=0000:01:00,subsystem-id=1458:40bf";

    #[test]
    fn map_lines_have_to_fit_the_hardware() {
        let two = "0000:01:00.0 0000:01:00.1";
        for (from, to, expected) in [
            ("", "", Ok(two)),
            ("id=10de:2684", "id=10DE:2684", Err("mapping-property-mismatch")),
            ("iommugroup=14", "iommugroup=014", Err("mapping-property-mismatch")),
            ("iommugroup=14,", "", Err("mapping-property-missing")),
            (",subsystem-id=1458:40bf", "", Err("mapping-property-missing")),
            ("path=0000:01:00", "path=0000:77:00", Err("mapping-device-missing")),
            (
                "path=0000:01:00",
                "path=0000:01:00.0;0000:02:00.0",
                Ok("0000:01:00.0 0000:02:00.0"),
            ),
            (
                "path=0000:01:00",
                "path=0000:01:00.0;0000:01:00.1",
                Err("mapping-property-mismatch"),
            ),
            ("path=0000:01:00", "path=0000:01:00x0", Err("mapping-device-missing")), // the pattern's dot
            ("path=0000:01:00", "path=0000:01:00;0", Err("mapping-device-missing")),
            ("path=0000:01:00", "path=01:00", Err("mapping-not-found")),
            ("node=pve1", "node=pve2", Err("mapping-not-found")),
            ("node=pve1", "node=PVE1", Err("mapping-not-found")),
            ("node=pve1", "node=pve1,color=red", Err("mapping-not-found")),
            ("40bf", "40bf\n\tmdev 1", Err("mapping-property-mismatch")),
        ] {
            let cfg = format!("gpu\n\t{}\n", GOOD.replace(from, to));
            let expected = expected.map(str::to_owned).map_err(str::to_owned);
            assert_eq!(resolved("mapping=gpu", &cfg), expected, "{cfg}");
        }
    }

    #[test]
    fn sections_begin_and_end_as_proxmox_reads_them() {
        let count = |cfg: &str| {
            let cfg = cfg.replace("GOOD", GOOD);
            Mappings::parse(cfg.as_bytes())
                .get("gpu")
                .map_or(0, |m| m.entries.len())
        };
        for (cfg, entries) in [
            ("gpu\n\tGOOD\n\tGOOD", 2),
            ("gpu \r\n GOOD\r\n", 1),
            ("# x\ngpu\n # y\n\tGOOD\n", 1),
            ("gpu\n\tGOOD\n\n\tGOOD\n", 1),  // an empty line ends it,
            ("gpu\n\tGOOD\n0\n\tGOOD\n", 1), // and so does a 0,
            ("gpu\n\tGOOD\n \n\tGOOD\n", 2), // but not a blank
            ("gpu\n\tGOOD\nother\n\tGOOD\n", 2),
            ("9gpu\n\tGOOD\ngpu\n\tGOOD\n", 0), // a bad name swallows all to the next empty line
            ("gpu\nGOOD\n", 0),
            ("gpu\n\tGOOD\n\ngpu\n\tdescription x\n", 0), // a later section replaces, even if it is broken
            (" gpu\n\tGOOD\n", 0),
            ("gpu\n\tmap\n\tmap x\n", 0),
        ] {
            assert_eq!(count(cfg), entries, "{cfg:?}");
        }
    }
}
