//! Checks of what goes beyond this node: HA, resource mappings, addresses that mean another card elsewhere.

use crate::base::text::{foreign, join};
use crate::base::vmid::VmId;
use crate::check::facts::Facts;
use crate::check::finding::{Finding, Looked, notice, skip, warn};
use crate::check::vm;

/// Whether HA has a guest (pve-ha-manager, PVE/HA/Config.pm: sections `vm: VMID` and `ct: CTID`).
pub fn line_in_ha(text: &str, kind: &str, id: VmId) -> Option<usize> {
    let header = format!("{kind}: {id}");
    text.lines().position(|l| l.trim_end() == header).map(|at| at + 1)
}

pub(super) fn ha(facts: &Facts) -> Looked {
    let resources = facts.texts.text("/etc/pve/ha/resources.cfg")?.unwrap_or_default();
    if resources.is_empty() {
        return skip("HA has no resources").into();
    }
    vm::each(
        facts,
        "no VM with a GPU is moved by HA to where its address means another device",
        |vm| {
            let Some(line) = line_in_ha(resources, "vm", vm.vmid) else {
                return Vec::new();
            };
            let by_address = vm.config.config.hostpci().find(|h| h.mapping.is_none());
            let Some(entry) = by_address else { return Vec::new() };
            let text = format!(
                "VM {} is HA's, and its {} is an address: on another node that is another device, or none",
                vm.vmid,
                entry.key()
            );
            let hint = format!(
                "make a resource mapping for the GPUs of all nodes, then 'qm set {} --{} mapping=NAME,pcie=1'",
                vm.vmid,
                entry.key()
            );
            vec![warn(text).at("/etc/pve/ha/resources.cfg", Some(line)).hint(hint)]
        },
    )
}

pub(super) fn mappings(facts: &Facts) -> Looked {
    let nodes = facts.texts.names("/etc/pve/nodes")?;
    vm::each(
        facts,
        "every mapping of a VM with a GPU has the nodes that it needs",
        |vm| {
            let mut found: Vec<Finding> = Vec::new();
            for entry in vm.config.config.hostpci() {
                let Some(name) = &entry.mapping else { continue };
                let Some(mapping) = facts.cluster.mappings.get(name) else {
                    continue; // that it is not there is why Proxmox does not start the VM
                };
                let without: Vec<&str> = nodes
                    .iter()
                    .map(String::as_str)
                    .filter(|node| mapping.entries.iter().all(|e| e.node != *node))
                    .collect();
                if !without.is_empty() {
                    let text = format!(
                        "VM {}: the mapping {} has no device on {}: there it does not start",
                        vm.vmid,
                        foreign(name),
                        join(&without)
                    );
                    found.push(
                        vm.at(
                            notice(text).hint(
                                "Datacenter, Resource Mappings: add the card of that node, or keep the VM off it",
                            ),
                            &entry.key(),
                        ),
                    );
                }
            }
            found
        },
    )
}
