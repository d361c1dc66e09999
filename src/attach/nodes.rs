//! The devN lines that give a container a GPU, and those that are of this form. Pure.

use crate::attach::guest::{Guest, because};
use crate::base::pci::PciAddr;
use crate::check::facts::Facts;
use crate::check::guests::line_of;
use crate::model::refusal::Reason;
use crate::proxmox::container_config::{GpuReference, MAX_ENTRIES, parse};

/// What every program needs of NVIDIA's driver beside the GPU's own node (nvidia-container-toolkit's list for "compute"). The hook
/// makes those that are not there when the container starts.
const OF_ALL: [&str; 3] = ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"];

/// Nodes of the driver's capabilities, which MIG needs.
const CAPS: &str = "/dev/nvidia-caps";

/// The nodes of these GPUs, each once, and those of the driver.
fn nodes(facts: &Facts, gpus: &[PciAddr]) -> Result<Vec<String>, Vec<Reason>> {
    let (mut nodes, mut reasons) = (Vec::new(), Vec::new());
    for gpu in gpus {
        match facts.snapshot.nvidia_gpu(*gpu).and_then(|of| of.minor) {
            Some(minor) => nodes.push(format!("/dev/nvidia{minor}")),
            None => reasons.push(because(format!(
                "NVIDIA's driver does not list {gpu} now, so that its node is not known. Hint: 'gpu-handoff status' tells who has \
                 it; attach again when it is home"
            ))),
        }
    }
    nodes.extend(OF_ALL.map(str::to_owned));
    let caps = facts.texts.names(CAPS).unwrap_or_default();
    nodes.extend(caps.iter().map(|name| format!("{CAPS}/{name}")));
    if reasons.is_empty() { Ok(nodes) } else { Err(reasons) }
}

/// The lines that give a container these GPUs, without those that it has.
///
/// # Errors
/// Every reason why not.
pub(crate) fn wanted(facts: &Facts, guest: &Guest<'_>, gpus: &[PciAddr]) -> Result<Vec<(String, String)>, Vec<Reason>> {
    let references = parse(guest.text.as_bytes());
    let has = |node: &String| {
        let mut there = references.iter().filter_map(GpuReference::nvidia_node);
        // A folder that is bound has its nodes with it.
        there.any(|path| node == path || node.strip_prefix(path).is_some_and(|rest| rest.starts_with('/')))
    };
    let missing: Vec<String> = nodes(facts, gpus)?.into_iter().filter(|node| !has(node)).collect();
    let mut free = (0..MAX_ENTRIES)
        .map(|n| format!("dev{n}"))
        .filter(|key| line_of(guest.text, key).is_none());
    let mut lines = Vec::new();
    for node in missing {
        let Some(key) = free.next() else {
            let why = format!(
                "{} has no dev line free: there are {MAX_ENTRIES}. Hint: 'pct config {}'",
                guest.name, guest.name.id
            );
            return Err(vec![because(why)]);
        };
        lines.push((key, node));
    }
    Ok(lines)
}

/// The keys of the lines that [`wanted`] would have set, of these GPUs, or of all. What every GPU needs stays where another one
/// does.
///
/// # Errors
/// Where the node of a GPU is not known.
pub(crate) fn set_by_us(
    facts: &Facts,
    guest: &Guest<'_>,
    gpus: Option<&[PciAddr]>,
) -> Result<Vec<String>, Vec<Reason>> {
    let ours: Vec<(String, String)> = (0..MAX_ENTRIES)
        .filter_map(|n| {
            let key = format!("dev{n}");
            let path = guest.get(&key)?;
            (path.starts_with("/dev/nvidia") && !path.contains(',')).then_some((key, path))
        })
        .collect();
    let meant = gpus.map(|gpus| nodes(facts, gpus)).transpose()?;
    let is_meant = |path: &String| meant.as_ref().is_none_or(|meant| meant.contains(path));
    let of_gpu = |path: &str| {
        path.strip_prefix("/dev/nvidia")
            .is_some_and(|n| n.parse::<u32>().is_ok())
    };
    let another_stays = ours.iter().any(|(_, path)| of_gpu(path) && !is_meant(path));
    let goes = |(_, path): &&(String, String)| is_meant(path) && (of_gpu(path) || !another_stays);
    Ok(ours.iter().filter(goes).map(|(key, _)| key.clone()).collect())
}
