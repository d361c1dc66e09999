//! Which devices are meant: from a VM's hostpci entries, or from what a person names.
//!
//! Pure over the snapshot. What the entries mean is Proxmox's business and decided in [`crate::proxmox::resolve`]; here it
//! is sorted out which of the functions are ours.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::base::pci::{PciAddr, PciSlot};
use crate::base::sets::{IntoSet as _, in_order};
use crate::base::text::{foreign, join};
use crate::base::vmid::VmId;
use crate::host::functions::Function;
use crate::host::snapshot::{Snapshot, card, is_on_vfio};
use crate::model::record::{Owner, Record, State};
use crate::model::refusal::Reason;
use crate::proxmox::choice::{self, Site};
use crate::proxmox::files::{Cluster, Config};
use crate::proxmox::grammar::value::Value;
use crate::proxmox::hostpci::Driver;
use crate::proxmox::reservations::Moment;
use crate::proxmox::resolve::{self, HostFunction, Share};
use crate::settings::values::UnknownKeys;

/// What a VM's config gives it, sorted: which GPUs are handed over, and what is left to Proxmox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Given {
    /// The NVIDIA GPUs among it, each by its display function, sorted.
    pub gpus: Vec<PciAddr>,
    /// All functions that Proxmox will bind to vfio-pci, of GPUs or not.
    pub functions: BTreeSet<PciAddr>,
    /// The entries, in the order of their numbers.
    pub entries: Vec<HostpciEntry>,
    /// Why nothing of the VM is ours at all, whatever its entries.
    pub template: bool,
    /// Why Proxmox will not start the VM, where an entry could be a GPU of ours.
    pub refused: Option<Reason>,
    /// A line that is not understood and may mean a GPU.
    pub not_understood: Option<Reason>,
}

/// One hostpci entry and what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HostpciEntry {
    /// `hostpciN`, as the config has it.
    pub key: String,
    /// Its value, as Proxmox would write it.
    pub value: String,
    /// The functions that each of its alternatives means.
    pub alternatives: Vec<Vec<PciAddr>>,
    /// Those of the alternative that Proxmox will choose.
    pub chosen: Vec<PciAddr>,
    /// The GPUs among them that are handed over.
    pub ours: Vec<PciAddr>,
    /// Why it is left to Proxmox, in words that follow its key.
    pub left: Option<String>,
}

impl Given {
    /// Has what is not understood count as the settings want it.
    #[must_use]
    pub fn judged(mut self, unknown: UnknownKeys) -> Self {
        if unknown == UnknownKeys::Refuse && self.refused.is_none() {
            self.refused = self.not_understood.take();
        }
        self
    }

    /// One line for each entry that is left to Proxmox, and one for a template.
    pub fn left(&self) -> Vec<String> {
        if self.template {
            return vec!["it is a template, which Proxmox starts without its PCI devices".to_owned()];
        }
        let entries = self.entries.iter();
        entries
            .filter_map(|e| Some(format!("{} {}", e.key, e.left.as_ref()?)))
            .collect()
    }
}

/// Sorts the devices of a VM's entries into those that are ours and those left to Proxmox. Which devices they are is
/// what Proxmox will choose itself, a moment after us.
///
/// Where Proxmox will not start the VM with its entries, and one of them could be a GPU of ours, the result says so:
/// taking the GPU off the host for that start would help nobody.
pub fn of_vm(vmid: VmId, read: &Config, snapshot: &Snapshot, cluster: &Cluster) -> Given {
    let config = &read.config;
    let mut given = Given {
        template: config.template(),
        ..Given::default()
    };
    let functions: Vec<HostFunction> = snapshot.functions.iter().map(as_proxmox_sees).collect();
    let site = Site {
        node: &cluster.node,
        generation: read.generation,
        mappings: &cluster.mappings,
        functions: &functions,
        reservations: &cluster.reservations,
    };
    let running = |vm: VmId| snapshot.vms.iter().find(|v| v.vmid == vm).map(|v| v.process.pid);
    let moment = Moment {
        vmid,
        now: cluster.now,
        running: &running,
    };
    let start = choice::start(config, site, moment);
    let mut kept = Vec::new();
    for hostpci in config.hostpci() {
        let resolved = resolve::resolve_entry(hostpci, &cluster.mappings, &functions, &cluster.node);
        let mut entry = HostpciEntry {
            key: hostpci.key(),
            value: hostpci.to_string(),
            alternatives: resolved.as_ref().map(|r| r.alternatives.clone()).unwrap_or_default(),
            chosen: start
                .chosen
                .get(&hostpci.index)
                .map(|c| c.functions.clone())
                .unwrap_or_default(),
            ours: Vec::new(),
            left: None,
        };
        let share = resolved.as_ref().map(|r| &r.share);
        let could_be_ours = entry.alternatives.iter().flatten().any(|a| has_gpu(snapshot, *a));
        let mediated = match share {
            Ok(share) => *share != Share::Whole,
            Err(_) => hostpci.mediated().is_some(),
        };
        if mediated {
            entry.left = Some("is a mediated device or vGPU: the GPU stays on its host driver".to_owned());
        } else if hostpci.driver == Some(Driver::Keep) {
            entry.left = Some("says driver=keep: its driver is left as it is".to_owned());
        } else if let Err(error) = &resolved {
            entry.left = Some(format!("cannot be resolved: {error}"));
        } else if !could_be_ours {
            entry.left = Some(format!(
                "is no NVIDIA GPU ({})",
                join(entry.alternatives.iter().flatten())
            ));
        } else if let Some(error) = start.error.as_ref().filter(|_| !given.template) {
            given.refused = Some(Reason::ProxmoxRefuses(error.to_string()));
        } else if !given.template {
            entry.ours = gpus_of(snapshot, &entry.chosen);
        }
        if mediated || hostpci.driver == Some(Driver::Keep) {
            kept.push(entry.key.clone());
        }
        // What Proxmox will bind to vfio-pci: the groups of these functions, whatever else is in them.
        let keeps = hostpci.driver == Some(Driver::Keep) || share.is_ok_and(|s| *s != Share::Whole);
        if !keeps && !given.template {
            given.functions.extend(&entry.chosen);
        }
        given.gpus.extend(&entry.ours);
        given.entries.push(entry);
    }
    given.gpus = in_order(given.gpus.into_iter(), |gpu| *gpu);
    given.gpus.dedup();
    if !given.template {
        given.not_understood = not_understood(read, snapshot, cluster, &given, &kept);
    }
    if given.refused.is_none() {
        given.refused = gpu_in_group(snapshot, &given);
    }
    given
}

/// A GPU that Proxmox would take along, because it is in the group of a device of the VM, and that is not handed over.
fn gpu_in_group(snapshot: &Snapshot, given: &Given) -> Option<Reason> {
    let ours = |gpu: PciAddr| given.gpus.iter().any(|g| g.slot() == gpu.slot());
    given.functions.iter().find_map(|of| {
        let group = snapshot.function(*of)?.group?;
        let mut members = snapshot.group(group);
        let gpu = members.find(|f| f.is_nvidia_gpu() && !ours(f.addr))?.addr;
        Some(Reason::GpuInGroup { of: *of, gpu, group })
    })
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

/// The first line of a VM's config, or of a mapping that it uses, which this grammar has no place for and which may mean a
/// GPU of this host.
fn not_understood(
    read: &Config,
    snapshot: &Snapshot,
    cluster: &Cluster,
    given: &Given,
    kept: &[String],
) -> Option<Reason> {
    // What is handed over anyway is not taken by anybody else.
    let at_stake = |text: &str| names_gpu(text, snapshot, &given.gpus);
    let is_here = |line: &Value| {
        let line = line.to_string();
        let mut nodes = line
            .split([',', ' ', '\t'])
            .filter_map(|part| part.strip_prefix("node="));
        nodes.all(|node| node == cluster.node)
    };
    let odd = |name: &str| {
        let mut lines = cluster.mappings.ignored(name).iter().filter(|line| is_here(line));
        lines.find(|line| at_stake(&line.to_string())).cloned()
    };
    let may_be = |text: &str| {
        let mapping = text.split(',').find_map(|part| part.trim().strip_prefix("mapping="));
        let known = mapping.and_then(|name| cluster.mappings.get(name));
        let here = known.iter().flat_map(|m| &m.entries).filter(|e| e.node == cluster.node);
        let mut paths = here.map(|e| e.path.to_string());
        at_stake(text) || paths.any(|path| at_stake(&path)) || mapping.is_some_and(|name| odd(name).is_some())
    };
    let mut lines = read.config.ignored_hostpci_lines();
    if let Some(line) = lines.find(|line| may_be(&line.value.to_string())) {
        return Some(Reason::NotUnderstood {
            at: format!("{}:{}", read.path, line.line),
            what: line.key.clone().unwrap_or_default(),
            why: line.reason.to_string(),
        });
    }
    // What cannot be resolved by the lines that are understood may well be by one that is not.
    let used = read.config.hostpci().filter(|entry| !kept.contains(&entry.key()));
    let mut names = used.filter_map(|entry| entry.mapping.as_deref());
    names.find_map(|name| {
        Some(Reason::NotUnderstood {
            at: format!("mapping '{}'", foreign(name)),
            what: odd(name)?.to_string(),
            why: "the line has no form that Proxmox knows".to_owned(),
        })
    })
}

/// Whether a text has the address of an NVIDIA GPU, of another function of its card, or the beginning of one. `but`: GPUs that
/// do not count.
fn names_gpu(text: &str, snapshot: &Snapshot, but: &[PciAddr]) -> bool {
    let words = text.split(|c: char| !(c.is_ascii_hexdigit() || c == ':' || c == '.'));
    let mut addresses = words.filter(|word| word.contains(':')).map(str::to_ascii_lowercase);
    addresses.any(|word| {
        let counts = |addr: PciAddr| has_gpu(snapshot, addr) && !but.iter().any(|b| b.slot() == addr.slot());
        let of_gpu = snapshot.functions.iter().filter(|f| counts(f.addr));
        let mut names = of_gpu.map(|f| f.addr.to_string());
        names.any(|name| resolve::is_prefix(word.as_bytes(), &name))
    })
}

fn has_gpu(snapshot: &Snapshot, addr: PciAddr) -> bool {
    snapshot.slot(addr.slot()).any(Function::is_nvidia_gpu)
}

/// The GPUs whose cards these functions belong to. One function of a card is enough: Proxmox binds the whole group,
/// and the card moves as a whole.
fn gpus_of(snapshot: &Snapshot, functions: &[PciAddr]) -> Vec<PciAddr> {
    let (parts, whole): (Vec<PciAddr>, Vec<PciAddr>) = functions.iter().partition(|a| {
        snapshot
            .function(**a)
            .is_some_and(|f| f.physfn.is_some() && f.is_nvidia_gpu())
    });
    let slots: BTreeSet<PciSlot> = whole.iter().map(|a| a.slot()).into_set();
    let gpus = snapshot.gpus().filter(|f| slots.contains(&f.addr.slot()));
    // A virtual function is named as it is, and refused.
    gpus.map(|f| f.addr).chain(parts).collect()
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
            let uuid = snapshot.nvidia_gpu(f.addr).map(|g| g.uuid.as_str());
            is_name_of(name, f.addr) || uuid == Some(name)
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

/// Whether a person's name for a GPU is this address: with or without domain and function.
pub fn is_name_of(name: &str, addr: PciAddr) -> bool {
    let (addr, slot) = (addr.to_string(), addr.slot().to_string());
    [
        Some(addr.as_str()),
        Some(slot.as_str()),
        addr.strip_prefix("0000:"),
        slot.strip_prefix("0000:"),
    ]
    .contains(&Some(name))
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

/// The GPU, if the audio function that was named moves with it; it does so unasked.
///
/// # Errors
/// A sentence, where it is of another card.
pub fn has_audio(gpu: PciAddr, audio: Option<&str>, snapshot: &Snapshot) -> Result<PciAddr, Reason> {
    let Some(audio) = audio else { return Ok(gpu) };
    let card = card(snapshot, gpu);
    if audio.parse().is_ok_and(|a| card.contains(&a)) {
        return Ok(gpu);
    }
    Err(Reason::Other(format!(
        "GPU_AUDIO_PCI is '{}', which is no function of the card of {gpu}. Hint: leave it out, all functions of a card move \
         together",
        foreign(audio)
    )))
}

fn list(gpus: &[&Function]) -> String {
    if gpus.is_empty() {
        return "this host has none; see 'lspci -nn -d 10de:'".to_owned();
    }
    format!("the GPUs are {}", join(gpus.iter().map(|f| f.addr)))
}

/// The GPUs, if all of them were taken by hand and are on vfio-pci with all that left with them: a VM that starts on them
/// leaves them so. A way home that was broken off has left some of that halfway.
pub fn lent_by_hand(records: &[Record], snapshot: &Snapshot, gpus: &[PciAddr]) -> Option<String> {
    let is_away = |record: &&Record| {
        let mut addrs = record.taken.iter().map(|t| t.addr);
        record.state == State::Away && addrs.all(|a| is_on_vfio(snapshot, a))
    };
    let by_hand = records.iter().filter(|r| matches!(r.owner, Owner::ByHand(_)));
    let away: Vec<&Record> = by_hand.filter(is_away).collect();
    let lent = !gpus.is_empty() && gpus.iter().all(|gpu| away.iter().any(|r| r.has(*gpu)));
    lent.then(|| join(gpus))
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::base::deadlines::Budgets;
    use crate::base::pci::{PciClass, VENDOR_NVIDIA};
    use crate::host::functions::VFIO_PCI;
    use crate::model::record::Taken;

    #[test]
    fn what_was_taken_by_hand_is_left_to_a_vm_only_where_all_of_it_is_away() {
        let [gpu, audio] = ["0000:01:00.0", "0000:01:00.1"].map(|a| a.parse::<PciAddr>().unwrap());
        for (owner, state, on, lent) in [
            (Owner::ByHand(gpu), State::Away, VFIO_PCI, true),
            (Owner::ByHand(gpu), State::Away, "snd_hda_intel", false),
            (Owner::ByHand(gpu), State::Returning, VFIO_PCI, false),
            (Owner::ByHand(gpu), State::Stranded, VFIO_PCI, false),
            (Owner::Vm(111.try_into().unwrap()), State::Away, VFIO_PCI, false),
        ] {
            let mut snapshot = Snapshot::default();
            for (addr, driver) in [(gpu, VFIO_PCI), (audio, on)] {
                let mut function = Function::new(addr, VENDOR_NVIDIA, 0x2204, PciClass(0x03_0000));
                function.driver = Some(driver.to_owned());
                snapshot.functions.push(function);
            }
            let mut record = Record::new(owner, "boot".to_owned(), Budgets::default());
            record.taken = vec![Taken::on_nvidia(gpu), Taken::on_nvidia(audio)];
            record.state = state;
            let left = lent_by_hand(&[record], &snapshot, &[gpu]);
            assert_eq!(left.is_some(), lent, "{owner} {state:?} {on}");
        }
    }
}
