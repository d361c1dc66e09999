//! Checks of the VMs that have a GPU: what Proxmox or the guest would stumble over.

use crate::base::pci::PciAddr;
use crate::base::text::{few_or_range, foreign, harmless};
use crate::check::facts::Facts;
use crate::check::finding::{Finding, Looked, fail, info, notice, or_pass, pass, skip, warn};
use crate::check::guests::Vm;

/// What is said where there is none.
pub(super) const NONE: &str = "no VM of this node has a GPU";

/// Asks something of each VM that is asked about and has a GPU.
pub(super) fn each(facts: &Facts, well: &str, look: impl Fn(&Vm) -> Vec<Finding>) -> Looked {
    facts.texts.get("/etc/pve/qemu-server")?;
    let vms: Vec<&Vm> = facts.asked_vms().filter(|vm| vm.has_gpu()).collect();
    if vms.is_empty() {
        return skip(NONE).into();
    }
    or_pass(vms.into_iter().flat_map(look).collect(), well)
}

fn mib(text: &str) -> Option<u64> {
    let current = text.split(',').find_map(|part| {
        part.strip_prefix("current=")
            .or_else(|| (!part.contains('=')).then_some(part))
    });
    current?.parse().ok()
}

/// A VM's memory, MiB (qemu-server, PVE/QemuServer/Memory.pm: 512 where nothing is said).
fn memory(vm: &Vm) -> u64 {
    vm.get("memory").and_then(|m| mib(&m)).unwrap_or(512)
}

pub(super) fn hostpci(facts: &Facts) -> Looked {
    each(
        facts,
        "every hostpci entry with a GPU is one that Proxmox starts the VM with",
        |vm| {
            let mut found = Vec::new();
            if let Some(why) = &vm.given.refused {
                let key = vm.given.entries.first().map_or("hostpci0", |e| e.key.as_str());
                let finding = fail(format!("VM {}: {}", vm.vmid, why.fact()));
                let finding = vm.at(finding, key);
                found.push(match why.remedy() {
                    Some(remedy) => finding.hint(remedy.to_string()),
                    None => finding.hint(format!("qm config {}", vm.vmid)),
                });
            }
            for line in vm.config.config.ignored_hostpci_lines() {
                let key = line.key.as_deref().unwrap_or("hostpci");
                let (key, value) = (foreign(key), foreign(&line.value.to_str()));
                let text = format!(
                    "VM {}: Proxmox ignores '{key}: {value}' ({}), and starts the VM without it",
                    vm.vmid, line.reason
                );
                let hint = format!(
                    "qm set {} --{key} VALUE, in the form of qm(1): addresses are in small letters",
                    vm.vmid
                );
                found.push(fail(text).at(&vm.config.path, Some(line.line)).hint(hint));
            }
            found
        },
    )
}

pub(super) fn machine(facts: &Facts) -> Looked {
    each(facts, "every VM with a GPU is of the machine type q35", |vm| {
        let q35 = vm.config.config.is_q35(vm.config.generation);
        let pcie = vm.config.config.hostpci().find(|h| h.pcie == Some(true));
        match (q35, pcie) {
            (true, _) => Vec::new(),
            (false, Some(entry)) => vec![
                vm.at(
                    fail(format!(
                        "VM {}: {} has pcie=1, for which Proxmox wants the machine type q35",
                        vm.vmid,
                        entry.key()
                    ))
                    .hint(format!("qm set {} --machine q35", vm.vmid)),
                    &entry.key(),
                ),
            ],
            (false, None) => vec![
                vm.at(
                    notice(format!(
                        "VM {} is of the machine type i440fx: its GPU hangs on a PCI bus, not on PCI Express",
                        vm.vmid
                    ))
                    .hint(format!(
                        "qm set {} --machine q35, and pcie=1 in its hostpci line; Windows may have \
                to be installed anew",
                        vm.vmid
                    )),
                    "machine",
                ),
            ],
        }
    })
}

pub(super) fn bios(facts: &Facts) -> Looked {
    each(facts, "every VM with a GPU boots by OVMF (UEFI)", |vm| {
        if vm.get("bios").as_deref() == Some("ovmf") {
            return Vec::new();
        }
        vec![
            vm.at(
                notice(format!(
                    "VM {} boots by SeaBIOS: a card whose firmware is for UEFI alone shows nothing \
                until its driver runs",
                    vm.vmid
                ))
                .hint(format!(
                    "a new guest: 'qm set {0} --bios ovmf --efidisk0 STORAGE:1'; one that is \
                installed may not boot then",
                    vm.vmid
                )),
                "bios",
            ),
        ]
    })
}

pub(super) fn cpu(facts: &Facts) -> Looked {
    each(facts, "every VM with a GPU has the host's CPU type", |vm| {
        let cpu = vm.get("cpu").unwrap_or_else(|| "kvm64".to_owned());
        let kind = cpu
            .split(',')
            .find_map(|p| p.strip_prefix("cputype=").or_else(|| (!p.contains('=')).then_some(p)));
        if kind == Some("host") {
            return Vec::new();
        }
        vec![
            vm.at(
                notice(format!(
                    "VM {} has the CPU type {}: drivers and CUDA may miss what the processor can",
                    vm.vmid,
                    foreign(kind.unwrap_or("kvm64"))
                ))
                .hint(format!("qm set {} --cpu host", vm.vmid)),
                "cpu",
            ),
        ]
    })
}

pub(super) fn balloon(facts: &Facts) -> Looked {
    each(facts, "no VM with a GPU has ballooning memory", |vm| {
        let balloon = vm.get("balloon").and_then(|b| b.parse::<u64>().ok());
        if balloon == Some(0) || balloon.is_none_or(|b| b >= memory(vm)) {
            return Vec::new();
        }
        vec![
            vm.at(
                notice(format!(
                    "VM {} has ballooning memory: VFIO pins all of it at the start, and the balloon frees nothing",
                    vm.vmid
                ))
                .hint(format!("qm set {} --balloon 0", vm.vmid)),
                "balloon",
            ),
        ]
    })
}

pub(super) fn x_vga(facts: &Facts) -> Looked {
    each(facts, "no VM has more than one card as its only display", |vm| {
        let with: Vec<String> = vm
            .config
            .config
            .hostpci()
            .filter(|h| h.x_vga == Some(true))
            .map(|h| h.key())
            .collect();
        match with.as_slice() {
            [_, second, ..] => vec![
                vm.at(
                    warn(format!(
                        "VM {}: {} all have x-vga=1, and a guest has one primary display",
                        vm.vmid,
                        with.join(", ")
                    ))
                    .hint("leave x-vga=1 to one of them"),
                    second,
                ),
            ],
            _ => Vec::new(),
        }
    })
}

pub(super) fn fits(facts: &Facts) -> Looked {
    let meminfo = facts.texts.needed("/proc/meminfo")?;
    let kib = |key: &str| {
        let line = meminfo.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
        line?.trim().trim_end_matches(" kB").parse::<u64>().ok()
    };
    let total = kib("MemTotal").map(|k| k / 1024);
    let free = kib("MemAvailable").map(|k| k / 1024);
    let (Some(total), Some(free)) = (total, free) else {
        return Err(crate::check::finding::NotSeen(
            "/proc/meminfo says neither MemTotal nor MemAvailable".to_owned(),
        ));
    };
    each(
        facts,
        "every VM with a GPU fits into the memory that is free: all of it is pinned at the start",
        |vm| {
            let (wants, runs) = (memory(vm), facts.snapshot.vms.iter().any(|v| v.vmid == vm.vmid));
            if runs || vm.get("hugepages").is_some() {
                return Vec::new();
            }
            let hint = format!(
                "qm set {} --memory N, with less than the host has: pinned memory is never swapped",
                vm.vmid
            );
            if wants > total {
                let text = format!(
                    "VM {} has {wants} MiB, all of which is pinned for the GPU, and the host has {total}",
                    vm.vmid
                );
                return vec![vm.at(fail(text).hint(hint), "memory")];
            }
            if wants > free {
                let text = format!(
                    "VM {} has {wants} MiB, all of which is pinned for the GPU at its start, and less is free now",
                    vm.vmid
                );
                return vec![vm.at(warn(text).hint(hint), "memory")];
            }
            Vec::new()
        },
    )
}

pub(super) fn same_gpu(facts: &Facts) -> Looked {
    each(facts, "no GPU is in the configs of two VMs", |vm| {
        let asked = facts.asked.vm == Some(vm.vmid);
        // Each pair is said once.
        let others = facts
            .vms
            .iter()
            .filter(|o| o.vmid != vm.vmid && (asked || o.vmid > vm.vmid));
        let found = others.filter_map(|other| {
            let of_other = |gpu: &&PciAddr| other.given.gpus.contains(gpu);
            let both: Vec<PciAddr> = vm.given.gpus.iter().filter(of_other).copied().collect();
            let key = vm.key_of(*both.first()?).unwrap_or("hostpci0");
            let there = other
                .key_of(both[0])
                .map_or(String::new(), |key| format!(" (its {key})"));
            let gpus = few_or_range(&both, "GPUs");
            let text = format!("VM {} and VM {}{there} both have {gpus}", vm.vmid, other.vmid);
            let finding = match vm.flag("onboot") && other.flag("onboot") {
                true => fail(format!("{text}, and both start with the host: the second one does not"))
                    .hint(format!("qm set {} --onboot 0", other.vmid)),
                false => notice(format!(
                    "{text}: one runs at a time, and the other's start is refused meanwhile"
                ))
                .hint("intended where they take turns; else give one of them another card"),
            };
            Some(vm.at(finding, key))
        });
        found.collect()
    })
}

pub(super) fn arguments(facts: &Facts) -> Looked {
    facts.texts.get("/etc/pve/qemu-server")?;
    let by_hand = facts
        .asked_vms()
        .filter(|vm| vm.get("args").is_some_and(|a| a.contains("vfio-pci")));
    let found: Vec<Finding> = by_hand
        .map(|vm| {
            vm.at(
                warn(format!(
                    "VM {} is given a device by 'args': neither Proxmox nor this hook knows of it, \
                and nobody hands it over",
                    vm.vmid
                ))
                .hint(format!(
                    "qm set {} --hostpci0 ADDRESS, and take the device out of 'args'",
                    vm.vmid
                )),
                "args",
            )
        })
        .collect();
    or_pass(found, "no VM is given a PCI device by 'args'")
}

pub(super) fn order(facts: &Facts) -> Looked {
    each(
        facts,
        "no container that is given a GPU starts with the host beside a VM that takes one",
        |vm| {
            if !vm.flag("onboot") {
                return Vec::new();
            }
            let with = facts.containers.iter().filter(|c| c.on_boot());
            let order = |text: Option<&str>| {
                let parts = text.unwrap_or_default().split(',').find_map(|p| {
                    p.strip_prefix("order=")
                        .or_else(|| p.parse::<u32>().is_ok().then_some(p))
                });
                parts.and_then(|n| n.parse::<u32>().ok())
            };
            with.map(|ct| {
                let first = match (order(vm.get("startup").as_deref()), order(ct.get("startup"))) {
                    (Some(vm), Some(ct)) => vm.cmp(&ct),
                    (Some(_), None) => std::cmp::Ordering::Less,
                    (None, Some(_)) => std::cmp::Ordering::Greater,
                    (None, None) => std::cmp::Ordering::Equal,
                };
                let order = match first {
                    std::cmp::Ordering::Less => "before",
                    std::cmp::Ordering::Equal => "at the same time as",
                    std::cmp::Ordering::Greater => "after",
                };
                let text = format!(
                    "VM {} takes a GPU at boot, {order} container {} starts that is given one",
                    vm.vmid, ct.ctid
                );
                vm.at(
                    notice(text).hint(format!(
                        "qm set {} --startup order=1,up=30, and pct set {} --startup order=2; or leave one of \
                them off",
                        vm.vmid, ct.ctid
                    )),
                    "onboot",
                )
            })
            .collect()
        },
    )
}

pub(super) fn backup(facts: &Facts) -> Looked {
    let jobs = facts.texts.text("/etc/pve/jobs.cfg")?.unwrap_or_default();
    each(facts, "no backup job starts a VM with a GPU", |vm| {
        let mut found = Vec::new();
        let mut section = "";
        for (at, line) in jobs.lines().enumerate() {
            if !line.starts_with(char::is_whitespace) {
                section = line;
            }
            let line_of = line.trim();
            let names = line_of
                .strip_prefix("vmid ")
                .is_some_and(|ids| ids.split(',').any(|id| id.trim() == vm.vmid.to_string()));
            if section.starts_with("vzdump:") && (names || line_of == "all 1") {
                let job = harmless(section.trim_start_matches("vzdump:").trim(), 40);
                found.push(
                    info(format!(
                        "VM {} is backed up by job {job}: while it is off that starts it with its \
                GPU, and 'on-backup' says what happens",
                        vm.vmid
                    ))
                    .at("/etc/pve/jobs.cfg", Some(at + 1))
                    .hint("on-backup = \"if-free\" (the default) leaves a GPU that is in use to its users"),
                );
            }
        }
        found
    })
}

/// The pass of a row that is about one VM alone.
pub(super) fn known(facts: &Facts) -> Looked {
    let Some(vmid) = facts.asked.vm else {
        let count = facts.asked_vms().filter(|vm| vm.has_gpu()).count();
        facts.texts.get("/etc/pve/qemu-server")?;
        return match count {
            0 => info(NONE),
            1 => info("1 VM of this node has a GPU"),
            n => info(format!("{n} VMs of this node have a GPU")),
        }
        .into();
    };
    facts.texts.get("/etc/pve/qemu-server")?;
    match facts.asked_vms().next() {
        None => fail(format!("there is no VM {vmid} on this node")).hint("qm list"),
        Some(vm) if !vm.has_gpu() => fail(format!("VM {vmid} has no hostpci entry that means an NVIDIA GPU"))
            .at(&vm.config.path, None)
            .hint(format!(
                "qm set {vmid} --hostpci0 {},pcie=1",
                facts
                    .gpus()
                    .first()
                    .map_or_else(|| "ADDRESS".to_owned(), |g| g.addr.slot().to_string())
            )),
        Some(vm) => pass(format!("VM {vmid} has {}", crate::base::text::join(&vm.given.gpus))),
    }
    .into()
}
