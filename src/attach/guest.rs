//! Which guest is meant, and what of its config speaks against a change. Pure.

use std::fmt;

use crate::attach::pending;
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
        mounted(facts)?;
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

    /// Why nothing can be set for it now: `keys` are the beginnings of what would be, `own` what of it waits by our own doing.
    pub fn in_the_way(&self, keys: &[&str], own: &[String]) -> Vec<Reason> {
        let (name, tool, id) = (self.name, self.name.kind.tool(), self.name.id);
        let mut reasons = Vec::new();
        if let Some(lock) = self.get("lock") {
            reasons.push(because(format!(
                "{name} is locked ({}): Proxmox is at work on it. Hint: wait for that to end, see its tasks; what a task that \
                 was killed has left, '{tool} unlock {id}' takes away",
                foreign(&lock)
            )));
        }
        let pending = pending::keys(self.text);
        let of_ours = |key: &&String| keys.iter().any(|ours| key.starts_with(ours)) && !own.contains(key);
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

    /// Whether it runs, as far as is known.
    pub fn runs(&self, facts: &Facts) -> bool {
        match self.name.kind {
            Kind::Vm => facts.snapshot.vms.iter().any(|vm| vm.vmid == self.name.id),
            Kind::Container => facts.texts.inside.contains_key(&self.name.id),
        }
    }
}

/// That Proxmox's files are there at all: where its daemon does not run, their folder is empty (pve-cluster, pmxcfs(8)).
///
/// # Errors
/// Where they are not.
pub(crate) fn mounted(facts: &Facts) -> Result<(), Reason> {
    let folder = "/etc/pve/qemu-server";
    match facts.texts.has(folder).map_err(|why| not_seen(&why))? {
        true => Ok(()),
        false => Err(not_seen(&NotSeen(format!("there is no {folder}")))),
    }
}

/// The other node that a guest is on, and what it is there.
///
/// # Errors
/// Where that could not be looked at.
pub fn on_another_node(facts: &Facts, id: VmId) -> Result<Option<(Name, String)>, Reason> {
    let names = |path: &str| facts.texts.names(path).map_err(|why| not_seen(&why));
    for node in names("/etc/pve/nodes")?
        .iter()
        .filter(|node| **node != facts.cluster.node)
    {
        for kind in [Kind::Vm, Kind::Container] {
            let configs = names(&format!("/etc/pve/nodes/{node}/{}", kind.folder()))?;
            if configs.iter().any(|name| *name == format!("{id}.conf")) {
                return Ok(Some((Name { kind, id }, node.clone())));
            }
        }
    }
    Ok(None)
}

/// Where a guest is that is not on this node, as a sentence.
fn elsewhere(facts: &Facts, id: VmId) -> String {
    match on_another_node(facts, id) {
        Ok(Some((name, node))) => format!(
            "{name} is on the node {}, and this is {}. Hint: run it there",
            foreign(&node),
            foreign(&facts.cluster.node)
        ),
        _ => format!(
            "there is no VM or container {id} on this host. Hint: 'qm list' and 'pct list' show those of this node"
        ),
    }
}
