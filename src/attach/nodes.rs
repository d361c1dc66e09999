//! The devN lines that give a container a GPU, and those that are of this form. Pure.

use crate::attach::guest::{Guest, because};
use crate::attach::lines::{Line, Unwanted, Wanted, stays};
use crate::base::pci::PciAddr;
use crate::base::text::{foreign, join};
use crate::check::facts::Facts;
use crate::check::guests::line_of;
use crate::model::refusal::Reason;
use crate::proxmox::container_config::{GpuReference, MAX_ENTRIES, parse};

/// What every program needs of NVIDIA's driver beside the GPU's own node (nvidia-container-toolkit's list for "compute"). The hook
/// makes those that are not there when the container starts.
const OF_ALL: [&str; 3] = ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"];

/// The node of a GPU.
fn node_of(facts: &Facts, gpu: PciAddr) -> Option<String> {
    let minor = facts.snapshot.nvidia_gpu(gpu)?.minor?;
    Some(format!("/dev/nvidia{minor}"))
}

/// Whether a node is of one GPU alone.
fn is_of_gpu(path: &str) -> bool {
    path.strip_prefix("/dev/nvidia")
        .is_some_and(|n| n.parse::<u32>().is_ok())
}

/// The lines that give a container these GPUs and what all of them need, without those that it has. Nodes of MIG instances are
/// not among them: which one a container may use is for a person to say.
///
/// # Errors
/// Every reason why not.
pub(crate) fn wanted(facts: &Facts, guest: &Guest<'_>, gpus: &[PciAddr]) -> Result<Wanted, Vec<Reason>> {
    let (mut nodes, mut reasons) = (Vec::new(), Vec::new());
    for gpu in gpus {
        match node_of(facts, *gpu) {
            Some(node) => nodes.push((node, Some(*gpu))),
            None => reasons.push(because(format!(
                "NVIDIA's driver does not list {gpu} now, so that its node is not known. Hint: 'gpu-handoff status' tells who has \
                 it; attach again when it is home"
            ))),
        }
    }
    nodes.extend(OF_ALL.map(|node| (node.to_owned(), None)));
    let references = parse(guest.text.as_bytes());
    let is_missing = |(node, _): &(String, Option<PciAddr>)| {
        let mut there = references.iter().filter_map(GpuReference::nvidia_node);
        // A folder that is bound has its nodes with it.
        !there.any(|path| node == path || node.strip_prefix(path).is_some_and(|rest| rest.starts_with('/')))
    };
    let mut free = (0..MAX_ENTRIES)
        .map(|n| format!("dev{n}"))
        .filter(|key| line_of(guest.text, key).is_none());
    let mut wanted = Wanted::default();
    for (value, gpu) in nodes.into_iter().filter(is_missing) {
        let Some(key) = free.next() else {
            reasons.push(because(format!(
                "{} has no dev line free: there are {MAX_ENTRIES}. Hint: 'pct config {}'",
                guest.name, guest.name.id
            )));
            break;
        };
        wanted.lines.push(Line { key, value, gpu });
    }
    if wanted.lines.is_empty() {
        wanted
            .notes
            .push(format!("{} is given the GPU's nodes already.", guest.name));
    }
    if reasons.is_empty() { Ok(wanted) } else { Err(reasons) }
}

/// The keys of the lines that attach has set, of these GPUs, or of all; and which others stay. What every GPU needs stays where
/// the container has another one.
pub(crate) fn unwanted(facts: &Facts, guest: &Guest<'_>, gpus: Option<&[PciAddr]>, set: &[Line]) -> Unwanted {
    let mut unwanted = Unwanted::default();
    let meant: Vec<String> = gpus
        .into_iter()
        .flatten()
        .filter_map(|gpu| node_of(facts, *gpu))
        .collect();
    let (mut of_all, mut another_stays) = (Vec::new(), false);
    for reference in parse(guest.text.as_bytes()) {
        let Some(path) = reference.nvidia_node() else { continue };
        let key = match &reference {
            GpuReference::Device { key, .. } => Some(key),
            _ => None,
        };
        let value = key.and_then(|key| guest.get(key)).unwrap_or_default();
        let as_set = |line: &&Line| Some(&line.key) == key && line.value == value;
        let is_meant = |line: &Line| gpus.is_none_or(|gpus| line.gpu.is_some_and(|gpu| gpus.contains(&gpu)));
        match (set.iter().find(as_set), key) {
            (Some(line), _) if line.gpu.is_none() => of_all.push(line.key.clone()),
            (Some(line), _) if is_meant(line) => unwanted.keys.push(line.key.clone()),
            (Some(_), _) => another_stays = true,
            (None, key) => {
                another_stays |= is_of_gpu(path);
                if gpus.is_some() && !meant.iter().any(|node| node == path) {
                    continue;
                }
                unwanted.notes.push(match key {
                    Some(key) => stays(guest.name, key, &value),
                    None => format!(
                        "{} has '{}' in {} still, which attach does not set.",
                        guest.name,
                        foreign(&reference.to_string()),
                        guest.name.path()
                    ),
                });
            }
        }
    }
    if !another_stays {
        unwanted.keys.extend(of_all);
    } else if gpus.is_none() && !of_all.is_empty() {
        unwanted.notes.push(format!(
            "{} has {} still, which the GPU that stays needs.",
            guest.name,
            join(&of_all)
        ));
    }
    unwanted
}
