//! Which devices a VM gets at its start: the rules between options, the reservations of other VMs, and
//! the choice among a mapping's alternatives.
//!
//! Pure. It tells what Proxmox will do after the pre-start hook, from the same inputs; it reserves
//! nothing. It can be wrong only if another VM reserves or frees a device in between; the reservation
//! file shows the real choice at post-start ([`Reservations::of`]).
//!
//! Source: qemu-server 9.2.6, PVE/QemuServer/PCI.pm, `parse_hostpci_devices`, `choose_hostpci_devices`
//! and `reserve_pci_usage`.

use std::collections::{BTreeMap, BTreeSet};

use crate::base::pci::PciAddr;
use crate::proxmox::grammar::generation::Generation;
use crate::proxmox::hostpci::HostPci;
use crate::proxmox::mappings::Mappings;
use crate::proxmox::reservations::{Moment, Reservations};
use crate::proxmox::resolve::{HostFunction, Resolved, Share, resolve};
use crate::proxmox::start_error::{IgdRule, StartError};
use crate::proxmox::vm_config::VmConfig;

/// How far a start gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Resolving, and the rules between options.
    Check,
    /// Selection.
    Choose,
    /// Reservation of what was selected.
    Reserve,
    /// Everything is there.
    Ok,
}

impl Stage {
    /// A stable word for programs.
    pub fn code(self) -> &'static str {
        match self {
            Stage::Check => "check",
            Stage::Choose => "choose",
            Stage::Reserve => "reserve",
            Stage::Ok => "ok",
        }
    }
}

/// What one entry gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The functions in the order the guest sees them. For a mediated device the first function of
    /// every alternative: which one it is Proxmox decides later.
    pub functions: Vec<PciAddr>,
    /// How the guest gets it.
    pub share: Share,
}

/// What Proxmox will do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// How far it gets.
    pub stage: Stage,
    /// What each entry gets, by index; empty if it does not get past the choice.
    pub chosen: BTreeMap<u8, Chosen>,
    /// Why it stops, unless the stage is `Ok`.
    pub error: Option<StartError>,
}

impl Start {
    fn failed(stage: Stage, error: StartError) -> Start {
        Start {
            stage,
            chosen: BTreeMap::new(),
            error: Some(error),
        }
    }
}

/// The host, as far as the choice of devices goes.
#[derive(Clone, Copy, Debug)]
pub struct Site<'a> {
    /// The local node's name, without domain.
    pub node: &'a str,
    /// Which Proxmox.
    pub generation: Generation,
    /// The resource mappings of the cluster.
    pub mappings: &'a Mappings,
    /// The PCI functions of the host.
    pub functions: &'a [HostFunction],
    /// The reservations of all VMs.
    pub reservations: &'a Reservations,
}

/// Computes what Proxmox will do with the hostpci entries of a VM that starts now.
///
/// `[PENDING]` is not merged in and `template` is not considered: at a normal start Proxmox has merged the
/// pending changes before any hookscript runs, and a template is started without hostpci.
pub fn start(config: &VmConfig, site: Site<'_>, moment: Moment<'_>) -> Start {
    let entries = match check(config, site) {
        Ok(entries) => entries,
        Err(error) => return Start::failed(Stage::Check, error),
    };
    let chosen = match choose(&entries, site, moment) {
        Ok(chosen) => chosen,
        Err(error) => return Start::failed(Stage::Choose, error),
    };
    let reserved = chosen
        .values()
        .filter(|c| !matches!(c.share, Share::Mdev(_)))
        .flat_map(|c| &c.functions);
    let error = reserved.copied().find_map(|f| site.reservations.conflict(f, moment));
    let stage = if error.is_some() { Stage::Reserve } else { Stage::Ok };
    Start { stage, chosen, error }
}

/// Resolves the entries and checks the rules between options, in index order.
fn check(config: &VmConfig, site: Site<'_>) -> Result<BTreeMap<u8, Resolved>, StartError> {
    let q35 = config.is_q35(site.generation);
    let vga_none = config.current.get("vga").is_some_and(|v| *v == "none");
    let mut resolved = resolve(config, site.mappings, site.functions, site.node);
    let mut checked = BTreeMap::new();
    let mut igd_seen = false;
    for entry in config.hostpci() {
        let index = entry.index;
        let Some(found) = resolved.remove(&index) else {
            continue;
        };
        let found = found.map_err(|error| StartError::Resolve { index, error })?;
        if entry.pcie == Some(true) && !q35 {
            return Err(StartError::PcieWithoutQ35 { index });
        }
        if entry.legacy_igd == Some(true) {
            let first_broken = if std::mem::replace(&mut igd_seen, true) {
                Some(IgdRule::OnlyOne)
            } else {
                igd_rule(entry, &found, q35, vga_none)
            };
            if let Some(rule) = first_broken {
                return Err(StartError::LegacyIgd { index, rule });
            }
        }
        checked.insert(index, found);
    }
    Ok(checked)
}

/// The first rule of legacy-igd that an entry breaks.
fn igd_rule(entry: &HostPci, found: &Resolved, q35: bool, vga_none: bool) -> Option<IgdRule> {
    let first = found.alternatives.first().and_then(|a| a.first());
    [
        (!vga_none, IgdRule::NeedsVgaNone),
        (entry.rombar == Some(false), IgdRule::NeedsRombar),
        (entry.x_vga == Some(true), IgdRule::NotWithXVga),
        (found.share != Share::Whole, IgdRule::NotWithMdev),
        (q35, IgdRule::NotWithQ35),
        (
            found.alternatives.iter().any(|a| a.len() > 1),
            IgdRule::NotWithMultifunction,
        ),
        (found.alternatives.len() > 1, IgdRule::NotWithAlternatives),
        (
            !first.is_some_and(|a| a.slot == 2 && a.function == 0),
            IgdRule::Not00020,
        ),
    ]
    .into_iter()
    .find_map(|(broken, rule)| broken.then_some(rule))
}

/// Takes one alternative for each entry, lower indices first.
fn choose(
    entries: &BTreeMap<u8, Resolved>,
    site: Site<'_>,
    moment: Moment<'_>,
) -> Result<BTreeMap<u8, Chosen>, StartError> {
    let mut used = BTreeSet::new();
    let mut chosen = BTreeMap::new();
    for (&index, entry) in entries {
        let functions = match (&entry.share, &entry.alternatives[..]) {
            (Share::Mdev(_), alternatives) => alternatives.iter().filter_map(|a| a.first().copied()).collect(),
            (share, [only]) => {
                take(&mut used, only)?;
                if let (Share::NvidiaVgpu(model), Some(&device)) = (share, only.first()) {
                    site.reservations.conflict(device, moment).map_or(Ok(()), Err)?;
                    if !has_vgpu_type(site.functions, device, model) {
                        return Err(StartError::VgpuTypeUnavailable {
                            device,
                            model: model.clone(),
                        });
                    }
                }
                only.clone()
            }
            (share, alternatives) => {
                let is_free = |alternative: &&Vec<PciAddr>| {
                    let taken = |f: &PciAddr| used.contains(f) || site.reservations.conflict(*f, moment).is_some();
                    let vgpu_ok = match (share, alternative.first()) {
                        (Share::NvidiaVgpu(model), Some(f)) => has_vgpu_type(site.functions, *f, model),
                        _ => true,
                    };
                    !alternative.iter().any(taken) && vgpu_ok
                };
                let free = alternatives
                    .iter()
                    .find(is_free)
                    .ok_or(StartError::NoFreeDevice { index })?;
                take(&mut used, free)?;
                free.clone()
            }
        };
        chosen.insert(
            index,
            Chosen {
                functions,
                share: entry.share.clone(),
            },
        );
    }
    Ok(chosen)
}

fn take(used: &mut BTreeSet<PciAddr>, functions: &[PciAddr]) -> Result<(), StartError> {
    match functions.iter().find(|f| !used.insert(**f)) {
        Some(&device) => Err(StartError::AssignedTwice { device }),
        None => Ok(()),
    }
}

fn has_vgpu_type(functions: &[HostFunction], device: PciAddr, model: &str) -> bool {
    let types = functions
        .iter()
        .find(|f| f.addr == device)
        .and_then(|f| f.nvidia_vgpu.as_ref());
    types.is_some_and(|types| types.iter().any(|t| t.to_string() == model))
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::base::pci::PciClass;
    use crate::base::vmid::VmId;
    fn function(addr: &str, group: u32) -> HostFunction {
        HostFunction {
            addr: addr.parse().unwrap(),
            vendor: Some(0x10de),
            device: Some(0x2204),
            class: Some(PciClass(0x030000)),
            subsystem_vendor: None,
            subsystem_device: None,
            iommu_group: Some(group),
            mdev_types: None,
            nvidia_vgpu: None,
            physfn: None,
        }
    }

    /// Three cards in a pool, the IGD, and a pool of two virtual functions with a vGPU type each.
    fn host() -> Vec<HostFunction> {
        vec![
            function("0000:00:02.0", 1),
            function("0000:81:00.0", 30),
            function("0000:82:00.0", 31),
            function("0000:c1:00.0", 32),
            HostFunction {
                nvidia_vgpu: Some(vec![557]),
                ..function("0000:41:00.4", 61)
            },
            HostFunction {
                nvidia_vgpu: Some(vec![558]),
                ..function("0000:41:00.5", 62)
            },
            HostFunction {
                mdev_types: Some(vec!["a".into()]),
                ..function("0000:42:00.0", 70)
            },
        ]
    }

    const MAPPINGS: &str = "pool
\tmap id=10de:2204,iommugroup=30,node=pve1,path=0000:81:00
\tmap id=10de:2204,iommugroup=31,node=pve1,path=0000:82:00
\tmap id=10de:2204,iommugroup=32,node=pve1,path=0000:c1:00

vgpu
\tmdev 1
\tmap id=10de:2204,iommugroup=61,node=pve1,path=0000:41:00.4
\tmap id=10de:2204,iommugroup=62,node=pve1,path=0000:41:00.5
";

    /// VM 100 starts at 1000; VM 201 runs as 4711.
    fn outcome(conf: &str, reservations: &str) -> String {
        let config = crate::proxmox::vm_config::parse(conf.as_bytes(), Generation::Pve9);
        let functions = host();
        let mappings = Mappings::parse(MAPPINGS.as_bytes());
        let reservations = Reservations::parse(reservations.as_bytes());
        let site = Site {
            node: "pve1",
            generation: Generation::Pve9,
            mappings: &mappings,
            functions: &functions,
            reservations: &reservations,
        };
        let vmid = VmId::try_from(100).unwrap();
        let running = |id: VmId| (id.get() == 201).then_some(4711);
        let start = start(
            &config,
            site,
            Moment {
                vmid,
                now: 1000,
                running: &running,
            },
        );
        match &start.error {
            Some(error) => format!("{}: {error}", start.stage.code()),
            None => {
                let one = |(index, chosen): (&u8, &Chosen)| {
                    let list: Vec<String> = chosen.functions.iter().map(ToString::to_string).collect();
                    format!("{index}={}", list.join("+"))
                };
                start.chosen.iter().map(one).collect::<Vec<_>>().join(" ")
            }
        }
    }

    #[test]
    fn the_first_free_alternative_is_taken_in_index_order() {
        for (conf, reservations, expected) in [
            ("hostpci0: mapping=pool", "", "0=0000:81:00.0"),
            (
                "hostpci9: mapping=pool\nhostpci1: mapping=pool",
                "",
                "1=0000:81:00.0 9=0000:82:00.0",
            ),
            (
                "hostpci0: 81:00\nhostpci1: mapping=pool",
                "",
                "0=0000:81:00.0 1=0000:82:00.0",
            ),
            ("hostpci0: mapping=pool", "0000:81:00.0 201 pid:4711", "0=0000:82:00.0"),
            (
                "hostpci0: mapping=pool",
                "0000:81:00.0 202 time:1001\n0000:82:00.0 202 time:1000\n",
                "0=0000:82:00.0",
            ),
            ("hostpci0: mapping=vgpu,mdev=nvidia-558", "", "0=0000:41:00.5"),
            (
                "hostpci0: 42:00.0,mdev=a\nhostpci1: 42:00.0,mdev=a",
                "0000:42:00.0 201 pid:4711",
                "0=0000:42:00.0 1=0000:42:00.0",
            ),
        ] {
            assert_eq!(outcome(conf, reservations), expected, "{conf:?} {reservations:?}");
        }
    }

    #[test]
    fn reservations_that_do_not_hold_are_no_obstacle() {
        for line in [
            "0000:81:00.0 201 pid:4712",
            "0000:81:00.0 202 pid:4711",
            "0000:81:00.0 100 pid:4711",
            "0000:81:00.0 0201 pid:4711", // no process is found under that name
            "0000:81:00.0 202 time:1000",
            "0000:81:00.0  201 pid:4711",
            "0000:81:00.0 201 pid:4711 ",
            "0000:81:00.0 201 pid:4711\r",
            "0000:81:00 201 pid:4711",
            "81:00.0 201 pid:4711",
            "0000:81:00.0 201 until:9999",
            "0000:81:00.0 201 time:",
            "0000:81:00.0 201 pid:4711\n0000:81:00.0 203 pid:1", // the last line counts
            "0000:81:00.0 20",
        ] {
            assert_eq!(outcome("hostpci0: mapping=pool", line), "0=0000:81:00.0", "{line:?}");
        }
    }

    #[test]
    fn what_stops_a_start_is_told_in_a_sentence() {
        for (conf, reservations, expected) in [
            (
                "hostpci0: 77:00",
                "",
                "check: hostpci0: the host has no PCI device '77:00'",
            ),
            (
                "hostpci3: mapping=xy",
                "",
                "check: hostpci3: the resource mapping 'xy' has no device on this node",
            ),
            (
                "hostpci0: 81:00,pcie=1",
                "",
                "check: hostpci0: 'pcie' needs a q35 machine",
            ),
            (
                "hostpci0: 81:00\nhostpci1: 81:00.0",
                "",
                "choose: 0000:81:00.0 is assigned twice",
            ),
            (
                "hostpci0: 81:00;82:00;81:00",
                "",
                "choose: 0000:81:00.0 is assigned twice",
            ),
            (
                "hostpci0: 82:00",
                "0000:82:00.0 201 pid:4711",
                "reserve: 0000:82:00.0 is in use by VM 201",
            ),
            (
                "hostpci0: 82:00",
                "0000:82:00.0 202 time:1001",
                "reserve: 0000:82:00.0 is reserved by VM 202, which is starting",
            ),
            (
                "hostpci0: mapping=vgpu,mdev=nvidia-9",
                "",
                "choose: hostpci0: none of its devices is free",
            ),
            (
                "hostpci0: 41:00.4,mdev=nvidia-9",
                "",
                "choose: 0000:41:00.4 cannot become a vGPU of type 9",
            ),
            (
                "hostpci0: 41:00.4,mdev=nvidia-557",
                "0000:41:00.4 201 pid:4711",
                "choose: 0000:41:00.4 is in use by VM 201",
            ),
        ] {
            assert_eq!(outcome(conf, reservations), expected, "{conf:?} {reservations:?}");
        }
    }

    #[test]
    fn legacy_igd_has_rules() {
        for (conf, expected) in [
            ("vga: none\nhostpci0: 00:02.0,legacy-igd=1", "0=0000:00:02.0"),
            (
                "hostpci0: 00:02.0,legacy-igd=1",
                "check: hostpci0: legacy-igd needs 'vga: none'",
            ),
            (
                "vga: type=none\nhostpci0: 00:02.0,legacy-igd=1",
                "check: hostpci0: legacy-igd needs 'vga: none'",
            ),
            (
                "vga: none\nhostpci0: 00:02,legacy-igd=1,rombar=0",
                "check: hostpci0: legacy-igd needs rombar",
            ),
            (
                "vga: none\nhostpci0: 00:02,legacy-igd=1,x-vga=1",
                "check: hostpci0: legacy-igd does not go with x-vga",
            ),
            (
                "vga: none\nmachine: q35\nhostpci0: 00:02,legacy-igd=1",
                "check: hostpci0: legacy-igd does not go with a q35 machine",
            ),
            (
                "vga: none\nhostpci0: 00:02.0;81:00.0,legacy-igd=1",
                "check: hostpci0: legacy-igd does not go with several functions",
            ),
            (
                "vga: none\nhostpci0: mapping=pool,legacy-igd=1",
                "check: hostpci0: legacy-igd does not go with several alternatives",
            ),
            (
                "vga: none\nhostpci0: 81:00.0,legacy-igd=1",
                "check: hostpci0: legacy-igd is for the device 00:02.0",
            ),
            (
                "vga: none\nhostpci0: 00:02,legacy-igd=1\nhostpci1: 81:00,legacy-igd=1",
                "check: hostpci1: only one entry may use legacy-igd",
            ),
        ] {
            assert_eq!(outcome(conf, ""), expected, "{conf:?}");
        }
    }
}
