//! Which hookscript a guest has, and which one it is given. Pure.

use crate::attach::guest::{Guest, Kind, because, not_seen};
use crate::base::text::{foreign, join};
use crate::base::vmid::VmId;
use crate::check::cluster::line_in_ha;
use crate::check::facts::Facts;
use crate::check::hook::{BINARY, LINK, is_ours};
use crate::check::texts::Seen;
use crate::model::refusal::Reason;
use crate::proxmox::storages::{self, STORAGES, Storage};

/// Where the package has the script that calls several.
const CHAIN: &str = "/usr/share/gpu-handoff/snippets/chain";

/// What a guest has as its hookscript; the volume of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Nothing.
    None,
    /// This program.
    Ours(String),
    /// A script that calls this program, and others.
    Calls(String),
    /// Something else.
    Another(String),
}

impl Hook {
    /// What this guest has.
    pub fn of(facts: &Facts, guest: &Guest<'_>) -> Hook {
        let Some(volume) = guest.get("hookscript") else {
            return Hook::None;
        };
        let path = storages::path_of(&storages(facts), &volume);
        match path.and_then(|path| facts.texts.get(&path).ok().flatten()) {
            Some(Seen::Link(target)) if target == BINARY => Hook::Ours(volume),
            Some(Seen::Text(text)) if calls_us(text) => Hook::Calls(volume),
            // By its name, where the storage gives no answer or the link is gone.
            _ if is_ours(&volume) => Hook::Ours(volume),
            _ => Hook::Another(volume),
        }
    }
}

/// Whether a script has a line that calls this program: by itself, or as the script that calls several has it.
fn calls_us(script: &str) -> bool {
    let mut lines = script.lines().map(str::trim_start);
    let call = |line: &str| {
        ["hook ", "exec "]
            .iter()
            .find_map(|word| line.strip_prefix(word))
            .unwrap_or(line)
            .starts_with(BINARY)
    };
    script.starts_with("#!") && lines.any(call)
}

fn storages(facts: &Facts) -> Vec<Storage> {
    storages::parse(facts.texts.text(STORAGES).ok().flatten().unwrap_or_default())
}

/// The volume by which a guest is given this program: of a storage that has a link to it, `local` first, or for a guest
/// that may go elsewhere one that all nodes share.
fn volume(facts: &Facts, may_move: bool) -> Option<(String, bool)> {
    let mut found = Vec::new();
    for storage in storages(facts) {
        let Some(folder) = &storage.snippets else { continue };
        let names = facts.texts.names(folder).unwrap_or_default();
        let leads_here = |name: &&String| {
            let path = format!("{folder}/{name}");
            matches!(facts.texts.get(&path), Ok(Some(Seen::Link(target))) if target == BINARY)
        };
        let name = names.iter().find(|name| *name == "gpu-handoff" && leads_here(name));
        if let Some(name) = name.or_else(|| names.iter().find(leads_here)) {
            found.push((format!("{}:snippets/{name}", storage.name), storage.shared));
        }
    }
    let shared = found.iter().position(|(_, shared)| *shared && may_move);
    found.into_iter().nth(shared.unwrap_or(0))
}

/// What is set, where that is needed, and what is to be known of it.
///
/// # Errors
/// Where the guest has another hookscript, or no storage has this one.
pub(crate) fn wanted(facts: &Facts, guest: &Guest<'_>) -> Result<(Option<String>, Vec<String>), Reason> {
    let (name, tool) = (guest.name, guest.name.kind.tool());
    let resources = facts
        .texts
        .text("/etc/pve/ha/resources.cfg")
        .map_err(|why| not_seen(&why))?
        .unwrap_or_default();
    let is_in_ha = line_in_ha(resources, name.kind.in_ha(), name.id).is_some();
    match Hook::of(facts, guest) {
        Hook::Ours(volume) => Ok((None, on_other_nodes(facts, guest, &volume, is_in_ha))),
        Hook::Calls(volume) => {
            let said = format!(
                "{name} has {} as its hookscript, which calls gpu-handoff.",
                foreign(&volume)
            );
            Ok((None, vec![said]))
        }
        Hook::Another(volume) => Err(because(format!(
            "{name} has another hookscript, {}, and Proxmox has room for one. Hint: to have both, 'cp {CHAIN} \
             /var/lib/vz/snippets/my-hooks', name both at its end, and '{tool} set {} --hookscript local:snippets/my-hooks'; or \
             '{tool} set {} --delete hookscript' first",
            foreign(&volume),
            name.id,
            name.id
        ))),
        Hook::None => {
            let Some((volume, _)) = volume(facts, is_in_ha) else {
                // Of the storage `local` it was looked for by itself.
                let unseen = facts.texts.missed.iter().find(|(part, _)| part == "snippets");
                let unseen = unseen.map_or_else(String::new, |(_, why)| format!(", as far as could be seen ({why})"));
                return Err(because(format!(
                    "no storage has gpu-handoff among its snippets{unseen}. Hint: ln -s {BINARY} {LINK}"
                )));
            };
            let notes = on_other_nodes(facts, guest, &volume, is_in_ha);
            Ok((Some(volume), notes))
        }
    }
}

/// What has to be on other nodes to which HA may move a guest. Only this one can be seen from here.
fn on_other_nodes(facts: &Facts, guest: &Guest<'_>, volume: &str, is_in_ha: bool) -> Vec<String> {
    let nodes = facts.texts.names("/etc/pve/nodes").unwrap_or_default();
    let others: Vec<String> = nodes
        .iter()
        .filter(|n| **n != facts.cluster.node)
        .map(|n| foreign(n))
        .collect();
    if !is_in_ha || others.is_empty() {
        return Vec::new();
    }
    let storage = volume.split(':').next().unwrap_or_default();
    let is_shared = storages(facts).iter().any(|s| s.name == storage && s.shared);
    let (whose, what) = match is_shared {
        true => ("all nodes share", "what it leads to"),
        false => ("each node has by itself", "the hook"),
    };
    vec![format!(
        "HA may start {} on {}: {volume} is on a storage that {whose}, and {what} has to be there, or it does not start there. \
         Only this node can be seen from here: install the package on each of them.",
        guest.name,
        join(&others)
    )]
}

/// The guests of this node that have this program itself as their hookscript.
pub fn attached(facts: &Facts) -> Vec<VmId> {
    let mut found = Vec::new();
    for (kind, folder) in [(Kind::Vm, "/etc/pve/qemu-server"), (Kind::Container, "/etc/pve/lxc")] {
        let names = facts.texts.names(folder).unwrap_or_default();
        let ids = names.iter().filter_map(|name| name.strip_suffix(".conf")?.parse().ok());
        found.extend(ids.filter(|id| {
            Guest::of(facts, *id)
                .is_ok_and(|guest| guest.name.kind == kind && matches!(Hook::of(facts, &guest), Hook::Ours(_)))
        }));
    }
    found
}
