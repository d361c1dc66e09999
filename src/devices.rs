//! Which devices are meant: from a VM's hostpci entries, or from what a person names.
//!
//! Pure over the snapshot. What the entries mean is Proxmox's business and decided in [`crate::mapping`]; here it
//! is sorted out which of the functions are ours.

use std::collections::BTreeSet;

use crate::choice::{self, Moment, Site};
use crate::inventory::{Function, Snapshot};
use crate::mapping::{self, HostFunction, Share};
use crate::pci::{PciAddr, PciSlot};
use crate::plan::Reason;
use crate::pve::{Cluster, Config};
use crate::report::{foreign, join};
use crate::vmconf::{Driver, VmId};

/// What a VM is given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Given {
    /// The NVIDIA GPUs among it, each by its display function, sorted.
    pub gpus: Vec<PciAddr>,
    /// All functions.
    pub functions: BTreeSet<PciAddr>,
    /// One line for each entry that is left to Proxmox.
    pub left: Vec<String>,
}

/// Sorts the devices of a VM's entries into those that are ours and those left to Proxmox. Which devices they are is
/// what Proxmox will choose itself, a moment after us.
///
/// # Errors
/// Where Proxmox will not start the VM with its entries, and one of them could be a GPU of ours: taking the GPU off
/// the host for that start would help nobody.
pub fn of_vm(vmid: VmId, read: &Config, snapshot: &Snapshot, cluster: &Cluster) -> Result<Given, Reason> {
    let config = &read.config;
    let mut given = Given::default();
    if config.template() {
        given
            .left
            .push("it is a template, which Proxmox starts without its PCI devices".to_owned());
        return Ok(given);
    }
    let functions: Vec<HostFunction> = snapshot.functions.iter().map(as_proxmox_sees).collect();
    let site = Site {
        node: &cluster.node,
        generation: read.generation,
        mappings: &cluster.mappings,
        functions: &functions,
        reservations: &cluster.reservations,
    };
    let running = |vm: VmId| snapshot.vms.iter().find(|v| v.vmid == vm).map(|v| v.pid);
    let start = choice::start(
        config,
        site,
        Moment {
            vmid,
            now: cluster.now,
            running: &running,
        },
    );
    let mut possible = false;
    for entry in config.hostpci() {
        let key = entry.key();
        let resolved = mapping::resolve_entry(entry, &cluster.mappings, &functions, &cluster.node);
        let share = resolved.as_ref().map(|r| &r.share);
        if entry.mdev.is_some() || share.is_ok_and(|s| *s != Share::Whole) {
            let why = "is a mediated device or vGPU: the GPU stays on its host driver";
            given.left.push(format!("{key} {why}"));
        } else if entry.driver == Some(Driver::Keep) {
            given
                .left
                .push(format!("{key} says driver=keep: its driver is left as it is"));
        } else if let Err(error) = &resolved {
            given.left.push(format!("{key}: {error}"));
        } else if let (Some(chosen), None) = (start.chosen.get(&entry.index), &start.error) {
            sort_entry(&key, &chosen.functions, snapshot, &mut given);
        } else {
            let alternatives = resolved.iter().flat_map(|r| r.alternatives.iter().flatten());
            possible |= alternatives.into_iter().any(|a| has_gpu(snapshot, *a));
        }
    }
    given.gpus.sort_unstable();
    given.gpus.dedup();
    match &start.error {
        Some(error) if possible => Err(Reason::ProxmoxRefuses(error.to_string())),
        _ => Ok(given),
    }
}

fn as_proxmox_sees(function: &Function) -> HostFunction {
    HostFunction {
        addr: function.addr,
        vendor: Some(function.vendor),
        device: Some(function.device),
        class: Some(function.class),
        subsystem_vendor: function.subsystem.map(|s| s.0),
        subsystem_device: function.subsystem.map(|s| s.1),
        iommu_group: function.group,
        mdev_types: function.mdev_types.clone(),
        nvidia_vgpu: function.nvidia_vgpu.clone(),
        physfn: function.physfn,
    }
}

fn has_gpu(snapshot: &Snapshot, addr: PciAddr) -> bool {
    snapshot.slot(addr.slot()).any(Function::is_nvidia_gpu)
}

fn sort_entry(key: &str, functions: &[PciAddr], snapshot: &Snapshot, given: &mut Given) {
    given.functions.extend(functions);
    // One function of a card is enough: Proxmox binds the whole group, and the card moves as a whole.
    let slots: BTreeSet<PciSlot> = functions.iter().map(|a| a.slot()).collect();
    let gpus: Vec<PciAddr> = snapshot
        .gpus()
        .filter(|f| slots.contains(&f.addr.slot()))
        .map(|f| f.addr)
        .collect();
    if gpus.is_empty() {
        given.left.push(format!("{key} ({}) is no NVIDIA GPU", join(functions)));
    }
    given.gpus.extend(gpus);
}

/// The GPU a person names: an address with or without domain and function, an index in bus order (as nvidia-smi
/// counts), or a UUID.
///
/// # Errors
/// A sentence that lists the GPUs there are.
pub fn named(name: &str, snapshot: &Snapshot) -> Result<PciAddr, Reason> {
    let gpus: Vec<&Function> = snapshot.gpus().collect();
    let by_index = name.parse::<usize>().ok().and_then(|n| gpus.get(n).copied());
    let found = by_index.or_else(|| {
        gpus.iter().copied().find(|f| {
            let addr = f.addr.to_string();
            let uuid = snapshot.nvidia_gpu(f.addr).map(|g| g.uuid.as_str());
            let slot = f.addr.slot().to_string();
            [
                Some(addr.as_str()),
                Some(slot.as_str()),
                addr.strip_prefix("0000:"),
                slot.strip_prefix("0000:"),
                uuid,
            ]
            .contains(&Some(name))
        })
    });
    found.map(|f| f.addr).ok_or_else(|| {
        Reason::Other(format!(
            "there is no NVIDIA GPU '{}'. Hint: {}",
            foreign(name),
            list(&gpus)
        ))
    })
}

/// The only GPU of the host.
///
/// # Errors
/// A sentence that lists them where there are several, or says that there is none.
pub fn only(snapshot: &Snapshot) -> Result<PciAddr, Reason> {
    let gpus: Vec<&Function> = snapshot.gpus().collect();
    match gpus.as_slice() {
        [gpu] => Ok(gpu.addr),
        [] => Err(Reason::Other(
            "there is no NVIDIA GPU on this host. Hint: see 'lspci -nn -d 10de:'".to_owned(),
        )),
        _ => Err(Reason::Other(format!(
            "there are {} GPUs and none was named. Hint: add --gpu with one of them; {}",
            gpus.len(),
            list(&gpus)
        ))),
    }
}

fn list(gpus: &[&Function]) -> String {
    if gpus.is_empty() {
        return "this host has none; see 'lspci -nn -d 10de:'".to_owned();
    }
    format!("the GPUs are {}", join(gpus.iter().map(|f| f.addr)))
}
