//! Which hookscript a guest has, and which one it is given. Pure.

use crate::attach::guest::{Guest, Kind, because, mounted, not_seen};
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

/// What the package leaves in the place of the link where it was removed and a guest still names it (snippets/removed).
const STAY_BEHIND: &str = "gpu-handoff: stay-behind";

impl Hook {
    /// What this guest has.
    pub fn of(facts: &Facts, guest: &Guest<'_>) -> Hook {
        let Some(volume) = guest.get("hookscript") else {
            return Hook::None;
        };
        let path = storages::path_of(&storages(facts), &volume);
        match path.as_deref().and_then(|path| facts.texts.get(path).ok().flatten()) {
            Some(Seen::Link(target)) if path.is_some_and(|path| leads_here(&path, target)) => Hook::Ours(volume),
            Some(Seen::Text(text)) if text.contains(STAY_BEHIND) => Hook::Ours(volume),
            Some(Seen::Text(text)) if calls_us(text) => Hook::Calls(volume),
            // A copy of the program is no text of somebody's.
            Some(Seen::Text(text)) if !text.starts_with("\u{7f}ELF") => Hook::Another(volume),
            Some(Seen::Link(_)) => Hook::Another(volume),
            // By its name alone, where the storage gives no answer or the link is gone.
            _ if is_ours(&volume) => Hook::Ours(volume),
            _ => Hook::Another(volume),
        }
    }
}

/// Whether a link leads to this program: by itself, or by the package's link.
fn leads_here(path: &str, target: &str) -> bool {
    let target = match target.starts_with('/') {
        true => target.to_owned(),
        false => format!("{}/{target}", path.rsplit_once('/').map_or("", |(folder, _)| folder)),
    };
    let mut parts: Vec<&str> = Vec::new();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let target = format!("/{}", parts.join("/"));
    target == BINARY || (target == LINK && path != LINK)
}

/// Whether a line of a script that is no comment has this program or its link, as something else than what is compared or
/// looked for, as in the script that calls several.
fn calls_us(script: &str) -> bool {
    let in_line = |line: &str, what: &str| {
        let mut before = line
            .match_indices(what)
            .map(|(at, _)| line[..at].trim_end_matches(['"', '\'']));
        before.any(|before| {
            let last = before.split_whitespace().next_back().unwrap_or_default();
            !["=", "==", "!=", "-e", "-f", "-x"].contains(&last)
        })
    };
    let lines = script.lines().map(str::trim_start);
    let mut lines = lines.filter(|line| !line.starts_with('#'));
    lines.any(|line| [BINARY, LINK].iter().any(|what| in_line(line, what)))
}

fn storages(facts: &Facts) -> Vec<Storage> {
    storages::parse(facts.texts.text(STORAGES).ok().flatten().unwrap_or_default())
}

/// The volume by which a guest is given this program: of a storage that has a link to it, `local` first, or for a guest
/// that may go elsewhere one that all nodes share.
fn volume(facts: &Facts, may_move: bool) -> Option<String> {
    let mut found = Vec::new();
    let here = |storage: &Storage| storage.is_on(&facts.cluster.node);
    for storage in storages(facts).into_iter().filter(here) {
        let Some(folder) = &storage.snippets else { continue };
        let names = facts.texts.names(folder).unwrap_or_default();
        let is_link = |name: &&String| {
            let path = format!("{folder}/{name}");
            matches!(facts.texts.get(&path), Ok(Some(Seen::Link(target))) if leads_here(&path, target))
        };
        // It becomes a word of a command that is shown.
        let is_word = |name: &&String| name.bytes().all(|b| b.is_ascii_graphic());
        let name = names.iter().find(|name| *name == "gpu-handoff" && is_link(name));
        let name = name.or_else(|| names.iter().filter(is_word).find(is_link));
        if let Some(name) = name.filter(|_| is_word(&&storage.name)) {
            found.push((format!("{}:snippets/{name}", storage.name), storage.shared));
        }
    }
    let shared = found.iter().position(|(_, shared)| *shared && may_move);
    found.into_iter().nth(shared.unwrap_or(0)).map(|(volume, _)| volume)
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
        Hook::Ours(volume) => Ok((None, on_other_nodes(facts, guest, &volume, is_in_ha)?)),
        Hook::Calls(volume) => {
            let said = format!(
                "{name} has {} as its hookscript, which calls gpu-handoff.",
                foreign(&volume)
            );
            let mut notes = on_other_nodes(facts, guest, &volume, is_in_ha)?;
            notes.insert(0, said);
            Ok((None, notes))
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
            let Some(volume) = volume(facts, is_in_ha) else {
                // Of the storage `local` it was looked for by itself.
                let unseen = facts.texts.missed.iter().find(|(part, _)| part == "snippets");
                let unseen = unseen.map_or_else(String::new, |(_, why)| format!(", as far as could be seen ({why})"));
                return Err(because(format!(
                    "no storage has gpu-handoff among its snippets{unseen}. Hint: ln -s {BINARY} {LINK}"
                )));
            };
            let notes = on_other_nodes(facts, guest, &volume, is_in_ha)?;
            Ok((Some(volume), notes))
        }
    }
}

/// What has to be on other nodes to which HA may move a guest. Only this one can be seen from here.
fn on_other_nodes(facts: &Facts, guest: &Guest<'_>, volume: &str, is_in_ha: bool) -> Result<Vec<String>, Reason> {
    let nodes = facts.texts.names("/etc/pve/nodes").map_err(|why| not_seen(&why))?;
    let others: Vec<&String> = nodes.iter().filter(|n| **n != facts.cluster.node).collect();
    if !is_in_ha || others.is_empty() {
        return Ok(Vec::new());
    }
    let name = volume.split(':').next().unwrap_or_default();
    let storages = storages(facts);
    let storage = storages.iter().find(|s| s.name == name);
    let mut notes = Vec::new();
    let missing = others.iter().filter(|node| storage.is_some_and(|s| !s.is_on(node)));
    let missing: Vec<String> = missing.map(|node| foreign(node)).collect();
    if !missing.is_empty() {
        notes.push(format!(
            "The storage {} is not there on {}, as {STORAGES} says: {} does not start there.",
            foreign(name),
            join(missing),
            guest.name
        ));
    }
    let (whose, what) = match storage.is_some_and(|s| s.shared) {
        true => ("all nodes share", "what it leads to"),
        false => ("each node has by itself", "the hook"),
    };
    notes.push(format!(
        "HA may start {} on {}: {} is on a storage that {whose}, and {what} has to be there, or it does not start there. \
         Only this node can be seen from here: install the package on each of them.",
        guest.name,
        join(others.iter().map(|node| foreign(node))),
        foreign(volume)
    ));
    Ok(notes)
}

/// The guests of this node that have this program itself as their hookscript.
///
/// # Errors
/// Each guest that could not be looked at: nobody knows whether it is one of them.
pub fn attached(facts: &Facts) -> Result<Vec<VmId>, Vec<Reason>> {
    mounted(facts).map_err(|why| vec![why])?;
    let (mut found, mut reasons) = (Vec::new(), Vec::new());
    for (kind, folder) in [(Kind::Vm, "/etc/pve/qemu-server"), (Kind::Container, "/etc/pve/lxc")] {
        let names = facts.texts.names(folder).map_err(|why| vec![not_seen(&why)])?;
        for id in names.iter().filter_map(|name| name.strip_suffix(".conf")?.parse().ok()) {
            match Guest::of(facts, id) {
                Ok(guest) if guest.name.kind == kind && matches!(Hook::of(facts, &guest), Hook::Ours(_)) => {
                    found.push(id);
                }
                Ok(_) => {}
                Err(why) if reasons.contains(&why) => {}
                Err(why) => reasons.push(why),
            }
        }
    }
    if reasons.is_empty() { Ok(found) } else { Err(reasons) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_calls_us_where_a_line_that_is_no_comment_names_us() {
        for (script, calls) in [
            ("#!/bin/sh\nhook /usr/sbin/gpu-handoff\n", true),
            ("#!/bin/sh\n\"/usr/sbin/gpu-handoff\" \"$@\" || exit 1\n", true),
            (
                "#!/usr/bin/perl\nsystem('/var/lib/vz/snippets/gpu-handoff', @ARGV);\n",
                true,
            ),
            ("#!/bin/sh\n  # hook /usr/sbin/gpu-handoff\necho no\n", false),
            (
                "#!/bin/sh\nif [ \"$1\" = /usr/sbin/gpu-handoff ] && [ ! -e \"/usr/sbin/gpu-handoff\" ]; then :; fi\n",
                false,
            ),
            ("#!/bin/bash\necho my old script\n", false),
        ] {
            assert_eq!(calls_us(script), calls, "{script}");
        }
        let chain = include_str!("../../snippets/chain");
        assert!(calls_us(chain));
        assert!(!calls_us(&chain.replace("\nhook /usr", "\n# hook /usr")));
    }

    #[test]
    fn a_link_leads_here_however_it_is_spelled() {
        let share = "/mnt/pve/share/snippets/gpu-handoff";
        for (path, target, here) in [
            (LINK, "/usr/sbin/gpu-handoff", true),
            (LINK, "../../../../usr/sbin/gpu-handoff", true),
            (share, LINK, true),
            (LINK, LINK, false),
            (LINK, "gpu-handoff", false),
            (share, "/usr/local/sbin/gpu-handoff", false),
        ] {
            assert_eq!(leads_here(path, target), here, "{path} -> {target}");
        }
    }
}
