//! Checks of the containers that are given a GPU.

use crate::base::text::{foreign, harmless, join};
use crate::check::facts::Facts;
use crate::check::finding::{Finding, Looked, NotSeen, fail, info, or_pass, skip, warn};
use crate::check::guests::{Container, line_of};
use crate::proxmox::container_config::GpuReference;

const NONE: &str = "no container of this node is given a GPU";

fn each(facts: &Facts, well: &str, look: impl Fn(&Container) -> Vec<Finding>) -> Looked {
    facts.texts.get("/etc/pve/lxc")?;
    if facts.asked_containers().next().is_none() {
        return skip(NONE).into();
    }
    or_pass(facts.asked_containers().flat_map(look).collect(), well)
}

pub(super) fn given(facts: &Facts) -> Looked {
    facts.texts.get("/etc/pve/lxc")?;
    let mut lines = Vec::new();
    for container in facts.asked_containers() {
        let by: Vec<String> = container.references.iter().map(|r| foreign(&r.to_string())).collect();
        lines.push(
            info(format!(
                "container {} is given a GPU: {}",
                container.ctid,
                harmless(&join(by), 200)
            ))
            .at(&container.path, None),
        );
    }
    if let (Some(ctid), true) = (facts.asked.ct, lines.is_empty()) {
        lines.push(
            warn(format!(
                "container {ctid} of this node is given no GPU, or there is none of that number"
            ))
            .hint(format!(
                "pct config {ctid}; a GPU is given by 'dev0: /dev/nvidia0' and the like"
            )),
        );
    }
    if lines.is_empty() {
        lines.push(skip(NONE));
    }
    Ok(lines)
}

pub(super) fn versions(facts: &Facts) -> Looked {
    let host = facts.snapshot.nvidia_version();
    if host.is_empty() {
        return skip("NVIDIA's driver is not loaded: there is no version to compare with").into();
    }
    if let Some((_, why)) = facts.texts.missed.iter().find(|(part, _)| part == "containers") {
        return Err(NotSeen(format!("inside the containers: {why}")));
    }
    each(
        facts,
        &format!("the driver's libraries inside the containers that run are of the host's version ({host})"),
        |container| {
            let ctid = container.ctid;
            match facts.texts.inside.get(&ctid).map(Vec::as_slice) {
                None => vec![Finding::from(NotSeen(format!(
                    "container {ctid} does not run, and its files are not mounted"
                )))],
                Some([]) => vec![info(format!(
                    "container {ctid} has no driver library where packages and NVIDIA's \
                installer put it"
                ))],
                Some(versions) => {
                    let wrong: Vec<&str> = versions.iter().map(String::as_str).filter(|v| *v != host).collect();
                    let named = foreign(&join(&wrong));
                    let hint = format!(
                        "in the container: the same installer as on the host with \
                '--no-kernel-module', or the distribution's packages of {host}"
                    );
                    let finding = match (wrong.len(), versions.len()) {
                        (0, _) => return Vec::new(),
                        (some, all) if some < all => warn(format!(
                            "container {ctid} has the driver's libraries of \
                {named} beside those of the host's {host}: which are used is up to a link"
                        )),
                        _ => fail(format!(
                            "container {ctid} has the driver's libraries of {named}, and the host's \
                driver is {host}: nothing in it can use the GPU"
                        )),
                    };
                    vec![finding.at(&container.path, None).hint(hint)]
                }
            }
        },
    )
}

pub(super) fn nodes(facts: &Facts) -> Looked {
    let dev = facts.texts.names("/dev")?;
    each(facts, "every node that a container is given is there", |container| {
        let mut found = Vec::new();
        for reference in &container.references {
            let Some(path) = reference.nvidia_node() else { continue };
            let name = path.trim_start_matches("/dev/").split('/').next().unwrap_or_default();
            if dev.iter().any(|n| n == name) {
                continue;
            }
            // pve-container, PVE/LXC/Config.pm: a devN whose node is not there keeps the container from starting; a mount entry is
            // mostly one with "optional".
            let (key, then) = match reference {
                GpuReference::Device { key, .. } => (key, "it does not start"),
                GpuReference::Mount { key, .. } => (key, "it starts without"),
                _ => continue,
            };
            let text = format!(
                "container {} is given {}, which the host has not now: {then}",
                container.ctid,
                foreign(path)
            );
            found.push(
                warn(text)
                    .at(&container.path, line_of(&container.text, key))
                    .hint("nvidia-modprobe -c 0 -u makes the nodes; the container hook makes them before each start"),
            );
        }
        found
    })
}

pub(super) fn old_keys(facts: &Facts) -> Looked {
    each(
        facts,
        "no container is given a GPU by a key of cgroup version 1",
        |container| {
            let lines = container.text.lines().take_while(|l| !l.starts_with('[')).enumerate();
            let old = lines.filter(|(_, l)| l.starts_with("lxc.cgroup.devices.allow"));
            old.map(|(at, line)| {
                warn(format!(
                    "container {}: '{}' is of cgroup version 1, which counts for nothing on this host",
                    container.ctid,
                    harmless(line, 80)
                ))
                .at(&container.path, Some(at + 1))
                .hint(
                    "make it lxc.cgroup2.devices.allow; or give the nodes by 'dev0: /dev/nvidia0', which \
                needs no numbers",
                )
            })
            .collect()
        },
    )
}

/// Numbers of drivers that are given out when a module is loaded: a rule with an old one lets nobody in.
pub(super) fn numbers(facts: &Facts) -> Looked {
    let devices = facts.texts.needed("/proc/devices")?;
    let character: Vec<(u32, &str)> = devices
        .lines()
        .take_while(|l| !l.starts_with("Block"))
        .filter_map(|l| {
            let (number, name) = l.trim().split_once(' ')?;
            Some((number.parse().ok()?, name))
        })
        .collect();
    each(
        facts,
        "every number that a container may open is one of this host's",
        |container| {
            let lines = container.text.lines().take_while(|l| !l.starts_with('[')).enumerate();
            let rules = lines.filter_map(|(at, line)| {
                let rest = line
                    .strip_prefix("lxc.cgroup2.devices.allow")?
                    .trim_start_matches([':', '=', ' ']);
                let major = rest.strip_prefix("c ")?.split(':').next()?.parse::<u32>().ok()?;
                Some((at + 1, major, line))
            });
            // From 234 on, and above 384, the kernel gives numbers out (linux, fs/char_dev.c, CHRDEV_MAJOR_DYN_END and
            // CHRDEV_MAJOR_DYN_EXT_START).
            let given_out = rules.filter(|(_, major, _)| (234..=254).contains(major) || (384..=511).contains(major));
            let unknown = given_out.filter(|(_, major, _)| character.iter().all(|(n, _)| n != major));
            unknown
                .map(|(at, major, line)| {
                    let now = character
                        .iter()
                        .filter(|(_, name)| *name == "nvidia-uvm" || *name == "nvidia-caps");
                    let now: Vec<String> = now.map(|(n, name)| format!("{name} has {n}")).collect();
                    let now = if now.is_empty() {
                        String::new()
                    } else {
                        format!(" ({})", now.join(", "))
                    };
                    warn(format!(
                        "container {}: '{}' is about number {major}, which no driver has now{now}",
                        container.ctid,
                        harmless(line, 80)
                    ))
                    .at(&container.path, Some(at))
                    .hint("give the nodes by 'dev0: /dev/nvidia-uvm' and the like, which follow the numbers")
                })
                .collect()
        },
    )
}

pub(super) fn docker(facts: &Facts) -> Looked {
    let path = "/etc/docker/daemon.json";
    let Some(text) = facts.texts.text(path)? else {
        return skip("Docker is not set up on the host").into();
    };
    if !text.contains("nvidia") {
        return skip("Docker has no runtime of NVIDIA's").into();
    }
    let line = text.lines().position(|l| l.contains("nvidia")).map(|at| at + 1);
    info("Docker's containers on the host may use the GPUs: a refusal names them, and the setting 'containers' stops them")
        .at(path, line)
        .hint("containers = \"release\", 'docker stop' before the VM starts, or another card by NVIDIA_VISIBLE_DEVICES")
        .into()
}
