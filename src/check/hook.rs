//! Checks of the hook: whether it is where Proxmox looks for it, and which guests call it.

use crate::base::text::{foreign, join};
use crate::check::facts::Facts;
use crate::check::finding::{Finding, Looked, fail, info, notice, or_pass, pass, skip, warn};
use crate::check::package::REINSTALL;
use crate::check::texts::Seen;
use crate::check::vm;
use crate::proxmox::storages::{self, STORAGES};

/// Where the package links it.
pub const LINK: &str = "/var/lib/vz/snippets/gpu-handoff";

/// The binary.
pub const BINARY: &str = "/usr/sbin/gpu-handoff";

/// How a guest names it, on whichever storage.
pub fn is_ours(volume: &str) -> bool {
    volume.ends_with(":snippets/gpu-handoff")
}

/// The guests whose config names the hook on the storage "local", in words.
fn who_names_it(facts: &Facts) -> Vec<String> {
    let vms = facts
        .vms
        .iter()
        .filter(|vm| vm.get("hookscript").as_deref() == Some("local:snippets/gpu-handoff"));
    let cts = facts
        .containers
        .iter()
        .filter(|c| c.get("hookscript") == Some("local:snippets/gpu-handoff"));
    vms.map(|vm| format!("VM {}", vm.vmid))
        .chain(cts.map(|c| format!("container {}", c.ctid)))
        .collect()
}

pub(super) fn link(facts: &Facts) -> Looked {
    let hint = format!("ln -sf {BINARY} {LINK}");
    let named = who_names_it(facts);
    match facts.texts.get(LINK)? {
        None if named.is_empty() => {
            warn(format!("there is no {LINK}: no guest can have it as its hookscript")).hint(hint)
        }
        None => fail(format!(
            "there is no {LINK}: no guest with that hookscript starts ({})",
            join(&named)
        ))
        .hint(hint),
        Some(Seen::Link(target)) if target == BINARY => pass(format!("{LINK} leads to {BINARY}")),
        Some(Seen::Link(target)) => warn(format!("it leads to {}, not to {BINARY}", foreign(target)))
            .at(LINK, None)
            .hint(hint),
        Some(_) => warn("it is a file of its own: an update of the package does not reach it")
            .at(LINK, None)
            .hint(hint),
    }
    .into()
}

pub(super) fn executable(facts: &Facts) -> Looked {
    // A link's mode is its target's; where that is not there, it has none.
    let path = if facts.texts.has(LINK)? { LINK } else { BINARY };
    match facts.texts.modes.get(path) {
        None => fail(format!(
            "{path} leads to nothing: Proxmox says 'script does not exist', and no guest with it starts"
        ))
        .hint(format!("ls -lL {path}; {REINSTALL}")),
        Some(mode) if mode & 0o111 == 0 => {
            fail("it is not executable: Proxmox starts no guest that has it as its hookscript")
                .at(path, None)
                .hint(format!("chmod 755 {path}"))
        }
        Some(_) => pass("the hook is executable"),
    }
    .into()
}

pub(super) fn content(facts: &Facts) -> Looked {
    let Some(text) = facts.texts.text(STORAGES)? else {
        return skip("there is no /etc/pve/storage.cfg").into();
    };
    let mut section = "";
    for (at, line) in text.lines().enumerate() {
        if !line.starts_with(char::is_whitespace) {
            section = line.trim_end();
        }
        if section == "dir: local"
            && let Some(content) = line.trim().strip_prefix("content ")
        {
            if content.split(',').any(|c| c.trim() == "snippets") {
                return pass("the storage 'local' shows its snippets").into();
            }
            return notice(
                "the storage 'local' does not list snippets: the hook works, and the web page does not show it",
            )
            .at("/etc/pve/storage.cfg", Some(at + 1))
            .hint(format!(
                "pvesm set local --content {},snippets",
                foreign(content.trim())
            ))
            .into();
        }
    }
    skip("/etc/pve/storage.cfg says nothing of what 'local' has").into()
}

pub(super) fn attached(facts: &Facts) -> Looked {
    vm::each(facts, "every VM with a GPU has this hook", |vm| {
        if vm.given.gpus.is_empty() {
            return Vec::new();
        }
        match vm.get("hookscript") {
            Some(volume) if is_ours(&volume) => Vec::new(),
            Some(volume) => vec![
                vm.at(
                    warn(format!(
                        "VM {} has {} as its hookscript: Proxmox itself takes the GPU off its driver, \
                without a deadline, and nobody brings it home",
                        vm.vmid,
                        foreign(&volume)
                    ))
                    .hint(format!("gpu-handoff attach {} says how to have both", vm.vmid)),
                    "hookscript",
                ),
            ],
            None => vec![
                warn(format!(
                    "VM {} has a GPU and no hookscript: Proxmox itself takes it off its driver, \
                without a deadline, and nobody brings it home",
                    vm.vmid
                ))
                .at(&vm.config.path, None)
                .hint(format!("gpu-handoff attach {}", vm.vmid)),
            ],
        }
    })
}

pub(super) fn containers(facts: &Facts) -> Looked {
    if facts.asked_containers().next().is_none() {
        return skip("no container of this node is given a GPU").into();
    }
    let without = facts
        .asked_containers()
        .filter(|c| !c.get("hookscript").is_some_and(is_ours));
    let found = without
        .map(|c| {
            info(format!(
                "container {} is given a GPU and has not this hook: started while a VM has the GPU, \
                it starts without nodes that work",
                c.ctid
            ))
            .at(&c.path, None)
            .hint(format!("gpu-handoff attach {}", c.ctid))
        })
        .collect();
    or_pass(found, "every container that is given a GPU has this hook")
}

/// Where a guest may start that HA moves: on any node.
pub(super) fn nodes(facts: &Facts) -> Looked {
    let nodes = facts.texts.names("/etc/pve/nodes")?;
    let others: Vec<&str> = nodes
        .iter()
        .map(String::as_str)
        .filter(|n| *n != facts.cluster.node)
        .collect();
    if others.is_empty() {
        return skip("this node is alone").into();
    }
    let storages = storages::parse(facts.texts.text(STORAGES)?.unwrap_or_default());
    vm::each(
        facts,
        "no VM with this hook can start on a node that has it not",
        |vm| {
            let Some(volume) = vm.get("hookscript").filter(|v| is_ours(v)) else {
                return Vec::new();
            };
            let storage = volume.split(':').next().unwrap_or_default().to_owned();
            if storages.iter().any(|s| s.shared && s.name == storage) {
                return Vec::new();
            }
            let text = format!(
                "VM {} has the hook on {}, which each node has by itself: on {} it starts only if the package \
                is installed there",
                vm.vmid,
                foreign(&storage),
                join(&others)
            );
            let finding = notice(text).hint(format!("ssh {} ls -l {LINK}", others[0]));
            vec![vm.at(finding, "hookscript")]
        },
    )
}

/// Other scripts that guests with a GPU have, by what is in them.
pub(super) fn snippets(facts: &Facts) -> Looked {
    let names = facts.texts.names("/var/lib/vz/snippets")?;
    let mut found: Vec<Finding> = Vec::new();
    for name in names.iter().filter(|n| *n != "gpu-handoff") {
        let path = format!("/var/lib/vz/snippets/{name}");
        let text = facts.texts.text(&path).ok().flatten().unwrap_or_default();
        let touches = [
            "driver_override",
            "/sys/bus/pci/drivers",
            "gpu-handoff.sh",
            "vfio-pci",
            "nvidia",
        ];
        let Some((at, word)) = text
            .lines()
            .enumerate()
            .find_map(|(at, l)| Some((at + 1, touches.iter().find(|w| l.contains(**w))?)))
        else {
            continue;
        };
        let users: Vec<String> = facts
            .vms
            .iter()
            .filter(|vm| {
                vm.get("hookscript")
                    .is_some_and(|v| v.ends_with(&format!(":snippets/{name}")))
            })
            .map(|vm| format!("VM {}", vm.vmid))
            .collect();
        let whose = match users.is_empty() {
            true => "no VM here has it".to_owned(),
            false => format!("the hookscript of {}", join(&users)),
        };
        let text = format!("another script that moves GPUs ('{word}' in it), {whose}");
        let hint = "remove it if nobody needs it: two of them pull one GPU in two directions";
        found.push(match users.is_empty() {
            true => notice(text).at(path, Some(at)).hint(hint),
            false => warn(text).at(path, Some(at)).hint(hint),
        });
    }
    or_pass(found, "no other script among the snippets moves GPUs")
}
