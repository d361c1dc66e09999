//! Which guest is meant, and what of its config speaks against a change. Pure.

use std::fmt;

use crate::base::text::{foreign, join};
use crate::base::vmid::VmId;
use crate::check::facts::Facts;
use crate::check::finding::NotSeen;
use crate::check::guests::{Vm, line_of};
use crate::model::refusal::Reason;

/// What kind of guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A virtual machine.
    Vm,
    /// A container of Proxmox's.
    Container,
}

impl Kind {
    /// The program that sets what it has.
    pub fn tool(self) -> &'static str {
        match self {
            Kind::Vm => "qm",
            Kind::Container => "pct",
        }
    }

    /// The folder of its configs.
    fn folder(self) -> &'static str {
        match self {
            Kind::Vm => "qemu-server",
            Kind::Container => "lxc",
        }
    }

    /// What HA calls it, and `check`.
    pub(crate) fn in_ha(self) -> &'static str {
        match self {
            Kind::Vm => "vm",
            Kind::Container => "ct",
        }
    }
}

/// A guest, named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name {
    /// What it is.
    pub kind: Kind,
    /// Its number.
    pub id: VmId,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Vm => write!(f, "VM {}", self.id),
            Kind::Container => write!(f, "container {}", self.id),
        }
    }
}

impl Name {
    /// Where its config is.
    pub fn path(self) -> String {
        format!("/etc/pve/{}/{}.conf", self.kind.folder(), self.id)
    }
}

/// A guest of this node.
#[derive(Clone, Debug)]
pub struct Guest<'a> {
    /// Which.
    pub name: Name,
    /// Its config.
    pub text: &'a str,
    /// The same, understood, of a VM.
    pub vm: Option<&'a Vm>,
}

/// A sentence as a reason.
pub(crate) fn because(why: impl Into<String>) -> Reason {
    Reason::Other(why.into())
}

/// A file of Proxmox's that could not be looked at, as a reason.
pub(crate) fn not_seen(why: &NotSeen) -> Reason {
    because(format!("{}. Hint: see 'systemctl status pve-cluster'", why.0))
}

impl<'a> Guest<'a> {
    /// The one of this number.
    ///
    /// # Errors
    /// Where it is on another node, or nowhere.
    pub fn of(facts: &'a Facts, id: VmId) -> Result<Guest<'a>, Reason> {
        for kind in [Kind::Vm, Kind::Container] {
            let name = Name { kind, id };
            if let Some(text) = facts.texts.text(&name.path()).map_err(|why| not_seen(&why))? {
                let vm = facts.vms.iter().find(|vm| kind == Kind::Vm && vm.vmid == id);
                return Ok(Guest { name, text, vm });
            }
        }
        Err(because(elsewhere(facts, id)))
    }

    /// A setting of its current section.
    pub fn get(&self, key: &str) -> Option<String> {
        if let Some(vm) = self.vm {
            return vm.get(key);
        }
        let line = self.text.lines().nth(line_of(self.text, key)? - 1)?;
        line.split_once(':').map(|(_, value)| value.trim().to_owned())
    }

    /// Why nothing can be set for it now: `keys` are the beginnings of what would be.
    pub fn in_the_way(&self, keys: &[&str]) -> Vec<Reason> {
        let (name, tool, id) = (self.name, self.name.kind.tool(), self.name.id);
        let mut reasons = Vec::new();
        if let Some(lock) = self.get("lock") {
            reasons.push(because(format!(
                "{name} is locked ({}): Proxmox is at work on it. Hint: wait for that to end, see its tasks; what a task that \
                 was killed has left, '{tool} unlock {id}' takes away",
                foreign(&lock)
            )));
        }
        let pending = pending(self.text);
        let of_ours = |key: &&String| keys.iter().any(|ours| key.starts_with(ours));
        let waiting: Vec<String> = pending.iter().filter(of_ours).map(|key| foreign(key)).collect();
        if !waiting.is_empty() {
            reasons.push(because(format!(
                "{name} has changes of {} that wait for its next start. Hint: '{tool} pending {id}' shows them; stop it and start \
                 it, or take them back by '{tool} set {id} --revert {}'",
                join(&waiting),
                waiting.join(",")
            )));
        }
        reasons
    }
}

/// The settings that a section of pending changes sets or deletes (qemu-server, PVE/QemuServer.pm, parse_vm_config; pve-container,
/// PVE/LXC/Config.pm, parse_pct_config).
fn pending(text: &str) -> Vec<String> {
    let is_header = |line: &str| {
        let line = line.trim_end();
        line.eq_ignore_ascii_case("[pending]") || line.eq_ignore_ascii_case("[pve:pending]")
    };
    let mut lines = text.lines().skip_while(|line| !is_header(line)).skip(1);
    let section = lines.by_ref().take_while(|line| !line.starts_with('['));
    let mut keys = Vec::new();
    for (key, value) in section.filter_map(|line| line.split_once(':')) {
        match key {
            "delete" => {
                let words = value
                    .split([' ', ',', ';'])
                    .map(|word| word.trim_start_matches('!').trim());
                keys.extend(words.filter(|word| !word.is_empty()).map(str::to_owned));
            }
            key => keys.push(key.to_owned()),
        }
    }
    keys
}

/// Where a guest is that is not on this node, as a sentence.
fn elsewhere(facts: &Facts, id: VmId) -> String {
    let nodes = facts.texts.names("/etc/pve/nodes").unwrap_or_default();
    let has = |node: &str, kind: Kind| {
        let folder = format!("/etc/pve/nodes/{node}/{}", kind.folder());
        let names = facts.texts.names(&folder).unwrap_or_default();
        names.iter().any(|name| *name == format!("{id}.conf"))
    };
    for node in nodes {
        for kind in [Kind::Vm, Kind::Container] {
            if *node != facts.cluster.node && has(node, kind) {
                let (name, node) = (Name { kind, id }, foreign(node));
                return format!(
                    "{name} is on the node {node}, and this is {}. Hint: run it there",
                    foreign(&facts.cluster.node)
                );
            }
        }
    }
    format!("there is no VM or container {id} on this host. Hint: 'qm list' and 'pct list' show those of this node")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_for_the_next_start_is_in_its_own_section() {
        for (text, keys) in [
            ("hostpci0: 01:00\n[before]\nhookscript: x\n", &[][..]),
            (
                "cores: 2\n\n[PENDING]\nhostpci0: 01:00\ndelete: hookscript,!balloon\n\n[old]\nhostpci1: x\n",
                &["hostpci0", "hookscript", "balloon"],
            ),
            ("[pve:pending]\ndev3: /dev/x\n", &["dev3"]),
        ] {
            assert_eq!(pending(text), keys, "{text:?}");
        }
    }
}
