//! The hostpciN lines that give a VM a whole card, and those that are of this form. Pure.

use crate::attach::guest::because;
use crate::base::pci::PciAddr;
use crate::base::text::{foreign, join};
use crate::check::facts::Facts;
use crate::check::guests::Vm;
use crate::host::functions::Function;
use crate::model::refusal::Reason;
use crate::plan::selection;
use crate::proxmox::files::Config;
use crate::proxmox::hostpci::HostPci;
use crate::proxmox::resolve;
use crate::proxmox::vm_config::{self, MAX_HOSTPCI};

/// How a card is given.
#[derive(Clone, Copy, Debug, Default)]
pub struct How {
    /// As the guest's primary display: `x-vga=1`, of the first card.
    pub primary: bool,
    /// By a resource mapping, also where this node is alone.
    pub mapping: bool,
}

/// The GPUs of these names, each once.
///
/// # Errors
/// A sentence for each that is none of NVIDIA's, or not there.
pub(crate) fn named(facts: &Facts, names: &[String]) -> Result<Vec<PciAddr>, Vec<Reason>> {
    let (mut gpus, mut reasons) = (Vec::new(), Vec::new());
    for name in names {
        let snapshot = &facts.snapshot;
        match selection::named(name, snapshot) {
            Ok(gpu) if snapshot.function(gpu).is_some_and(|f| f.physfn.is_some()) => reasons.push(because(format!(
                "{gpu} is a virtual function, and no card. Hint: vGPUs are given by a hostpci line with mdev=, see qm(1)"
            ))),
            Ok(gpu) if gpus.contains(&gpu) => {}
            Ok(gpu) => gpus.push(gpu),
            Err(why) => {
                let is_named = |f: &&Function| selection::is_name_of(name, f.addr);
                let other = snapshot.functions.iter().find(|f| is_named(f) && !f.is_nvidia_gpu());
                reasons.push(other.map_or(why, |f| {
                    because(format!(
                        "{} is no GPU of NVIDIA's ({:04x}:{:04x}). Hint: 'gpu-handoff status' shows those that there are",
                        f.addr, f.vendor, f.device
                    ))
                }));
            }
        }
    }
    if reasons.is_empty() { Ok(gpus) } else { Err(reasons) }
}

/// Each hostpci line that Proxmox ignores: with it nobody knows what the VM has.
pub(crate) fn ignored(vm: &Vm) -> Vec<Reason> {
    let lines = vm.config.config.ignored_hostpci_lines();
    let why = |line: &vm_config::IgnoredLine| {
        let key = foreign(line.key.as_deref().unwrap_or("hostpci"));
        because(format!(
            "{}:{}: Proxmox ignores '{key}: {}' ({}), and starts VM {} without it. Hint: qm set {} --{key} VALUE, in the form of \
             qm(1), or --delete {key}",
            vm.config.path,
            line.line,
            foreign(&line.value.to_str()),
            line.reason,
            vm.vmid,
            vm.vmid
        ))
    };
    lines.map(why).collect()
}

/// The lines that give a VM these GPUs, and what is to be known of them.
///
/// # Errors
/// Every reason why not.
pub(crate) fn wanted(facts: &Facts, vm: &Vm, gpus: &[PciAddr], how: How) -> Result<Wanted, Vec<Reason>> {
    let (mut wanted, mut reasons) = (Wanted::default(), Vec::new());
    let config = &vm.config.config;
    if let Some(entry) = config.hostpci().find(|h| how.primary && h.x_vga == Some(true)) {
        reasons.push(because(format!(
            "VM {} has a primary display by its {} already. Hint: leave --primary-gpu out",
            vm.vmid,
            entry.key()
        )));
    }
    let is_free = |n: &u8| config.hostpci().all(|h| h.index != *n);
    let mut free = (0..MAX_HOSTPCI).filter(is_free);
    let pcie = if config.is_q35(vm.config.generation) {
        ",pcie=1"
    } else {
        ""
    };
    for gpu in gpus {
        let entries = vm.given.entries.iter().zip(config.hostpci());
        let mut of_card = entries.filter(|(entry, line)| {
            let named = |host: &String| resolve::is_prefix(host.as_bytes(), &gpu.to_string());
            entry.alternatives.iter().flatten().any(|a| a.slot() == gpu.slot()) || line.host.iter().any(named)
        });
        if let Some((entry, _)) = of_card.next() {
            match entry.ours.contains(gpu) {
                true => wanted
                    .notes
                    .push(format!("VM {} has {gpu} already, by its {}.", vm.vmid, entry.key)),
                false => reasons.push(because(format!(
                    "VM {}: {} may be {gpu} already ({}: {}). Hint: qm set {} --delete {}, and attach again",
                    vm.vmid,
                    entry.key,
                    foreign(&entry.value),
                    entry
                        .left
                        .as_deref()
                        .unwrap_or("it is not the one that Proxmox would choose now"),
                    vm.vmid,
                    entry.key
                ))),
            }
            continue;
        }
        let is_alone = facts.texts.names("/etc/pve/nodes").unwrap_or_default().len() < 2;
        let mapping = if is_alone && !how.mapping {
            None
        } else {
            mapping_of(facts, vm, *gpu)
        };
        if how.mapping && mapping.is_none() {
            reasons.push(because(format!(
                "no resource mapping of this node is exactly the card of {gpu}. Hint: make one (Datacenter, Resource Mappings) with \
                 its whole card, or leave --mapping out"
            )));
        }
        let Some(n) = free.next() else {
            reasons.push(because(format!(
                "VM {} has no hostpci line free for {gpu}: there are {MAX_HOSTPCI}. Hint: 'qm config {}' shows them",
                vm.vmid, vm.vmid
            )));
            continue;
        };
        let device = mapping.map_or_else(|| gpu.slot().to_string(), |name| format!("mapping={name}"));
        let x_vga = if how.primary && wanted.lines.is_empty() {
            ",x-vga=1"
        } else {
            ""
        };
        wanted
            .lines
            .push((format!("hostpci{n}"), format!("{device}{pcie}{x_vga}")));
    }
    let runs = facts.snapshot.vms.iter().any(|v| v.vmid == vm.vmid);
    if runs && !wanted.lines.is_empty() {
        let keys = join(wanted.lines.iter().map(|(key, _)| key));
        wanted
            .notes
            .push(format!("VM {} runs: {keys} waits for its next start.", vm.vmid));
    }
    if reasons.is_empty() { Ok(wanted) } else { Err(reasons) }
}

/// Lines to set, and sentences about them.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) lines: Vec<(String, String)>,
    pub(crate) notes: Vec<String>,
}

/// The first mapping, by name, that means exactly this card on this node.
fn mapping_of(facts: &Facts, vm: &Vm, gpu: PciAddr) -> Option<String> {
    let mut names = facts.cluster.mappings.names();
    names
        .find(|name| is_mapping_of(facts, vm, name, gpu))
        .map(str::to_owned)
}

fn is_mapping_of(facts: &Facts, vm: &Vm, name: &str, gpu: PciAddr) -> bool {
    let line = format!("hostpci0: mapping={name}\n");
    let alone = Config {
        path: String::new(),
        config: vm_config::parse(line.as_bytes(), vm.config.generation),
        generation: vm.config.generation,
    };
    let given = selection::of_vm(vm.vmid, &alone, &facts.snapshot, &facts.cluster);
    let card: Vec<PciAddr> = facts.snapshot.slot(gpu.slot()).map(|f| f.addr).collect();
    let means = |entry: &selection::HostpciEntry| entry.left.is_none() && entry.alternatives == [card.clone()];
    given.refused.is_none() && given.entries.first().is_some_and(means)
}

/// The keys of the lines that [`wanted`] would have set, of these GPUs, or of all; and why others stay.
pub(crate) fn set_by_us(facts: &Facts, vm: &Vm, gpus: Option<&[PciAddr]>) -> (Vec<String>, Vec<String>) {
    let (mut keys, mut notes) = (Vec::new(), Vec::new());
    for (entry, line) in vm.given.entries.iter().zip(vm.config.config.hostpci()) {
        let is_meant = |gpu: &PciAddr| gpus.is_none_or(|gpus| gpus.contains(gpu));
        let Some(gpu) = entry.ours.iter().find(|gpu| is_meant(gpu)) else {
            continue;
        };
        let slot = gpu.slot().to_string();
        let is_card = match (&line.mapping, line.host.as_slice()) {
            (Some(name), []) => is_mapping_of(facts, vm, name, *gpu),
            (None, [host]) => *host == slot || slot.strip_prefix("0000:") == Some(host),
            _ => false,
        };
        let plain = HostPci {
            index: line.index,
            host: line.host.clone(),
            mapping: line.mapping.clone(),
            pcie: line.pcie,
            x_vga: line.x_vga,
            ..HostPci::default()
        };
        if is_card && plain == *line {
            keys.push(entry.key.clone());
        } else {
            notes.push(format!(
                "{} of VM {} is not as attach sets it ({}), and stays: 'qm set {} --delete {}' takes it out.",
                entry.key,
                vm.vmid,
                foreign(&entry.value),
                vm.vmid,
                entry.key
            ));
        }
    }
    (keys, notes)
}
