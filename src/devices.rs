//! Which devices are meant: from a VM's hostpci entries, or from what a person names.
//!
//! Pure over the snapshot. What the entries mean is Proxmox's business and decided in [`crate::mapping`]; here it
//! is sorted out which of the functions are ours.

use std::collections::BTreeSet;

use crate::inventory::{Function, Snapshot};
use crate::pci::{PciAddr, PciSlot};
use crate::plan::Reason;
use crate::report::{foreign, join};
use crate::vmconf::{Driver, HostPci, VmConfig};

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

/// Sorts the devices of a VM's entries into those that are ours and those left to Proxmox.
///
/// # Errors
/// Every entry that cannot be resolved to devices, as [`Reason::Other`].
pub fn of_vm(config: &VmConfig, snapshot: &Snapshot) -> Result<Given, Vec<Reason>> {
    let mut given = Given::default();
    let mut reasons = Vec::new();
    if config.template() {
        given
            .left
            .push("it is a template, which Proxmox starts without its PCI devices".to_owned());
        return Ok(given);
    }
    for entry in config.hostpci() {
        let key = entry.key();
        if entry.mdev.is_some() {
            given.left.push(format!(
                "{key} is a mediated device or vGPU: the GPU stays on its host driver"
            ));
            continue;
        }
        if entry.driver == Some(Driver::Keep) {
            given
                .left
                .push(format!("{key} says driver=keep: its driver is left as it is"));
            continue;
        }
        match functions_of(entry, snapshot) {
            Ok(functions) => sort_entry(&key, &functions, snapshot, &mut given),
            Err(reason) => reasons.push(reason),
        }
    }
    given.gpus.sort_unstable();
    given.gpus.dedup();
    if reasons.is_empty() { Ok(given) } else { Err(reasons) }
}

/// The functions of one entry. An element of host= matches sysfs names by prefix, with the domain 0000 implied
/// (pve-common, SysFSTools.pm, lspci).
fn functions_of(entry: &HostPci, snapshot: &Snapshot) -> Result<Vec<PciAddr>, Reason> {
    if let Some(mapping) = &entry.mapping {
        return Err(Reason::Other(format!(
            "{}: the resource mapping '{mapping}' cannot be followed yet. Hint: name the card with host= instead",
            entry.key()
        )));
    }
    let mut functions = Vec::new();
    for text in &entry.host {
        let matching = snapshot.functions.iter().map(|f| f.addr).filter(|a| {
            let name = a.to_string();
            name.starts_with(text.as_str()) || name.strip_prefix("0000:").is_some_and(|n| n.starts_with(text.as_str()))
        });
        functions.extend(matching);
    }
    Ok(functions)
}

fn sort_entry(key: &str, functions: &[PciAddr], snapshot: &Snapshot, given: &mut Given) {
    if functions.is_empty() {
        given
            .left
            .push(format!("{key} names a device that is not there; Proxmox will say so"));
        return;
    }
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
