//! The hostpciN lines that give a VM a whole card, and those that are of this form. Pure.

use crate::attach::guest::{Kind, Name, because};
use crate::attach::lines::{Line, Unwanted, Wanted, stays};
use crate::base::pci::PciAddr;
use crate::base::text::{foreign, join};
use crate::check::facts::Facts;
use crate::check::guests::Vm;
use crate::host::functions::Function;
use crate::model::refusal::Reason;
use crate::plan::selection::{self, HostpciEntry};
use crate::proxmox::files::Config;
use crate::proxmox::hostpci::HostPci;
use crate::proxmox::resolve;
use crate::proxmox::vm_config::{self, MAX_HOSTPCI};

/// A line as it is understood, and as it is written.
type Of<'a> = (&'a HostpciEntry, &'a HostPci);

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

/// Whether a VM has this card by these lines, as it is asked for; a sentence that says so.
fn has(facts: &Facts, vm: &Vm, gpu: PciAddr, of_card: &[Of<'_>], how: How) -> Result<String, Reason> {
    let id = vm.vmid;
    let (first, line) = of_card[0];
    let keys = join(of_card.iter().map(|(entry, _)| &entry.key));
    let ours = |(entry, _): &&Of<'_>| entry.ours.contains(&gpu);
    let Some((theirs, _)) = of_card.iter().find(|one| !ours(one)) else {
        let given: Vec<PciAddr> = of_card.iter().flat_map(|(entry, _)| entry.chosen.clone()).collect();
        let is_part = |f: &&Function| f.physfn.is_none();
        let card = facts.snapshot.slot(gpu.slot()).filter(is_part).map(|f| f.addr);
        let missing: Vec<PciAddr> = card.filter(|addr| !given.contains(addr)).collect();
        if !missing.is_empty() {
            return Err(because(format!(
                "VM {id} has only a part of the card of {gpu}, by its {keys}: without {}. Hint: qm set {id} --delete {}, and attach \
                 again",
                join(&missing),
                keys.replace(", ", ",")
            )));
        }
        if how.primary && !of_card.iter().any(|(_, line)| line.x_vga == Some(true)) {
            return Err(because(format!(
                "VM {id} has {gpu} already, by its {}, and not as its primary display. Hint: qm set {id} --{} {},x-vga=1, or leave \
                 --primary-gpu out",
                first.key,
                first.key,
                foreign(&first.value)
            )));
        }
        if how.mapping && line.mapping.is_none() {
            return Err(because(format!(
                "VM {id} has {gpu} already, by its {}, and by its address. Hint: qm set {id} --delete {}, and attach again, or leave \
                 --mapping out",
                first.key, first.key
            )));
        }
        return Ok(format!("VM {id} has {gpu} already, by its {keys}."));
    };
    // With another line that Proxmox stops at nobody has anything: that one is named.
    Err(match (&vm.given.refused, &theirs.left) {
        (Some(why @ Reason::ProxmoxRefuses(_)), None) => why.clone(),
        _ => because(format!(
            "VM {id}: {} may be {gpu} already ({}: {}). Hint: qm set {id} --delete {}, and attach again",
            theirs.key,
            foreign(&theirs.value),
            theirs
                .left
                .as_deref()
                .unwrap_or("it is not the one that Proxmox would choose now"),
            theirs.key
        )),
    })
}

/// The lines that give a VM these GPUs, and what is to be known of them.
///
/// # Errors
/// Every reason why not.
pub(crate) fn wanted(facts: &Facts, vm: &Vm, gpus: &[PciAddr], how: How) -> Result<Wanted, Vec<Reason>> {
    let (mut wanted, mut reasons) = (Wanted::default(), Vec::new());
    let config = &vm.config.config;
    let of_card = |gpu: &PciAddr| -> Vec<Of<'_>> {
        let entries = vm.given.entries.iter().zip(config.hostpci());
        let is_of = |(entry, line): &Of<'_>| {
            let named = |host: &String| resolve::is_prefix(host.as_bytes(), &gpu.to_string());
            entry.alternatives.iter().flatten().any(|a| a.slot() == gpu.slot()) || line.host.iter().any(named)
        };
        entries.filter(is_of).collect()
    };
    // The first of them is the one that is asked for.
    let primary: Vec<String> = gpus
        .first()
        .map(of_card)
        .into_iter()
        .flatten()
        .map(|(e, _)| e.key.clone())
        .collect();
    let is_another = |h: &&HostPci| how.primary && h.x_vga == Some(true) && !primary.contains(&h.key());
    if let Some(entry) = config.hostpci().find(is_another) {
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
    for (at, gpu) in gpus.iter().enumerate() {
        let is_first = at == 0;
        let there = of_card(gpu);
        if !there.is_empty() {
            let how = How {
                primary: how.primary && is_first,
                ..how
            };
            match has(facts, vm, *gpu, &there, how) {
                Ok(said) => wanted.notes.push(said),
                Err(why) if reasons.contains(&why) => {}
                Err(why) => reasons.push(why),
            }
            continue;
        }
        let nodes = facts.texts.names("/etc/pve/nodes").unwrap_or_default();
        let mapping = if nodes.len() < 2 && !how.mapping {
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
        let x_vga = if how.primary && is_first { ",x-vga=1" } else { "" };
        wanted.lines.push(Line {
            key: format!("hostpci{n}"),
            value: format!("{device}{pcie}{x_vga}"),
            gpu: Some(*gpu),
        });
    }
    if reasons.is_empty() { Ok(wanted) } else { Err(reasons) }
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

/// The keys of the lines that attach has set, of these GPUs, or of all; and which others stay.
pub(crate) fn unwanted(facts: &Facts, vm: &Vm, gpus: Option<&[PciAddr]>, set: &[Line]) -> Unwanted {
    let mut unwanted = Unwanted::default();
    let name = Name {
        kind: Kind::Vm,
        id: vm.vmid,
    };
    let is_meant = |gpu: &PciAddr| gpus.is_none_or(|gpus| gpus.contains(gpu));
    for (entry, line) in vm.given.entries.iter().zip(vm.config.config.hostpci()) {
        // Whatever order Proxmox has written its properties in.
        let as_set = |one: &&Line| {
            let parsed = HostPci::parse(line.index, one.value.as_bytes(), vm.config.generation);
            one.key == entry.key && parsed.as_ref() == Ok(line)
        };
        if let Some(ours) = set.iter().find(as_set) {
            if ours.gpu.as_ref().is_none_or(is_meant) {
                unwanted.keys.push(entry.key.clone());
            }
            continue;
        }
        let means = |addr: &PciAddr| {
            let mut functions = facts.snapshot.slot(addr.slot());
            functions.any(|f| f.is_nvidia_gpu() && is_meant(&f.addr))
        };
        // What means nothing here may be a card that was taken out.
        let may_be = gpus.is_none() && entry.alternatives.is_empty();
        if may_be || entry.alternatives.iter().flatten().any(means) {
            unwanted.notes.push(stays(name, &entry.key, &entry.value));
        }
    }
    if gpus.is_none() {
        for line in vm.config.config.ignored_hostpci_lines() {
            let key = foreign(line.key.as_deref().unwrap_or("hostpci"));
            unwanted.notes.push(stays(name, &key, &line.value.to_str()));
        }
    }
    unwanted
}
