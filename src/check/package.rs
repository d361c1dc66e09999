//! Checks of this package itself: settings, records, history, units, room on the disk.

use crate::base::text::{are, foreign, join};
use crate::check::facts::Facts;
use crate::check::finding::{Finding, Looked, NotSeen, fail, notice, or_pass, pass, skip, warn};
use crate::settings::file::NotUnderstood;
use crate::state::{history, store};

/// What a record and some lines of history need with room to spare, bytes.
const ROOM: u64 = 1 << 20;

/// What brings our own files back: from the package's file, which need not be from a source that apt knows.
pub(super) const REINSTALL: &str = "apt install --reinstall ./gpu-handoff_*_amd64.deb";

/// The units that are asked for by name.
const UNITS: [&str; 3] = ["gpu-handoff-watch@", "gpu-handoff-home@", "gpu-handoff-recover"];

pub(super) fn settings(facts: &Facts) -> Looked {
    match &facts.settings {
        Err(NotUnderstood { what, hint }) => fail(format!(
            "the settings are not understood, and every way out is refused: {}",
            what.trim_end_matches('.')
        ))
        .hint(hint.as_deref().unwrap_or("see 'gpu-handoff plan'")),
        Ok(settings) if settings.origins.is_empty() => pass("no setting is other than the default"),
        Ok(settings) => {
            let names: Vec<&str> = settings.origins.keys().map(String::as_str).collect();
            pass(format!(
                "the settings are understood; not the default: {}",
                foreign(&names.join(", "))
            ))
        }
    }
    .into()
}

pub(super) fn records(facts: &Facts) -> Looked {
    let mut found: Vec<Finding> = Vec::new();
    for problem in &facts.unreadable_records {
        found.push(fail(problem.clone()).hint(
            "'gpu-handoff status' tells which GPU is away; 'gpu-handoff to_nvidia' brings it home without a record",
        ));
    }
    for record in &facts.records {
        if !record.wedges.is_empty() {
            let what: Vec<String> = record.wedges.iter().map(|w| w.act.to_string()).collect();
            found.push(
                fail(format!(
                    "{}: '{}' is stuck in the kernel",
                    record.owner,
                    what.join("', '")
                ))
                .at(store::DIR, None)
                .hint("'gpu-handoff status' tells what still helps; a plain reboot may hang too"),
            );
        }
    }
    let count = facts.records.len();
    or_pass(
        found,
        match count {
            0 => "nothing is on record as lent".to_owned(),
            1 => format!("{} has a GPU, and its record is whole", facts.records[0].owner),
            n => format!("{n} handoffs are on record, and whole"),
        },
    )
}

pub(super) fn history(facts: &Facts) -> Looked {
    match facts.texts.has(history::DIR)? {
        true => pass(format!("{} is there for the history", history::DIR)),
        false => notice(format!("there is no {}: no history is kept", history::DIR))
            .hint("systemd-tmpfiles --create gpu-handoff.conf"),
    }
    .into()
}

pub(super) fn room(facts: &Facts) -> Looked {
    if facts.texts.free.is_empty() {
        return Err(NotSeen("no file system says what is free".to_owned()));
    }
    let mut found = Vec::new();
    for (mount, free) in &facts.texts.free {
        match free {
            None => found.push(
                fail(format!(
                    "{mount} is read-only: a handoff is refused, since nothing can be written down"
                ))
                .hint(format!("findmnt -T {mount}; mount -o remount,rw it")),
            ),
            Some(free) if *free < ROOM => {
                found.push(
                    fail(format!("{mount} has {free} bytes left, too few for a record"))
                        .hint(format!("df {mount}; make room")),
                );
            }
            Some(_) => {}
        }
    }
    or_pass(found, "there is room for records and history")
}

pub(super) fn units(facts: &Facts) -> Looked {
    let mut found = Vec::new();
    for unit in UNITS {
        let path = format!("/usr/lib/systemd/system/{unit}.service");
        if !facts.texts.has(&path)? {
            found.push(
                fail(format!(
                    "there is no {path}: nobody brings a GPU home that post-stop has forgotten"
                ))
                .hint(REINSTALL),
            );
        }
    }
    let wanted = "/etc/systemd/system/multi-user.target.wants/gpu-handoff-recover.service";
    if found.is_empty() && !facts.texts.has(wanted)? {
        found.push(
            warn("gpu-handoff-recover is not enabled: after a soft reboot nobody brings home what was lent")
                .hint("systemctl enable gpu-handoff-recover"),
        );
    }
    or_pass(found, "the units that bring a GPU home are there")
}

/// Leftovers of other tools.
pub(super) fn proxmenux(facts: &Facts) -> Looked {
    let mut found = Vec::new();
    let rules = "/etc/udev/rules.d/70-nvidia.rules.proxmenux-disabled";
    if facts.texts.has(rules)? {
        found.push(
            warn("ProxMenux has put NVIDIA's udev rules aside for a permanent passthrough: nodes are not made at boot")
                .at(rules, None)
                .hint(format!(
                    "mv {rules} /etc/udev/rules.d/70-nvidia.rules; then ProxMenux, GPU, switch mode to LXC"
                )),
        );
    }
    let guard = "proxmenux-gpu-guard.sh";
    if facts.texts.names("/var/lib/vz/snippets")?.iter().any(|n| n == guard) {
        found.push(
            warn("ProxMenux's withdrawn hook takes GPUs by itself")
                .at(format!("/var/lib/vz/snippets/{guard}"), None)
                .hint("take it out of every guest's 'hookscript', then remove it"),
        );
    }
    or_pass(found, "nothing of ProxMenux's static passthrough is left")
}

pub(super) fn driverctl(facts: &Facts) -> Looked {
    let names = facts.texts.names("/etc/driverctl.d")?;
    let mut found = Vec::new();
    for gpu in facts.gpus() {
        for function in facts.card(gpu.addr) {
            let name = format!("pci-{}", function.addr);
            if names.contains(&name) {
                let path = format!("/etc/driverctl.d/{name}");
                let driver = facts.texts.line(&path)?.to_owned();
                let text = format!(
                    "driverctl binds {} to '{}' at every boot",
                    function.addr,
                    foreign(&driver)
                );
                found.push(
                    fail(text)
                        .at(path, Some(1))
                        .hint(format!("driverctl unset-override {}", function.addr)),
                );
            }
        }
    }
    or_pass(found, "driverctl has none of the GPUs")
}

pub(super) fn scripts(facts: &Facts) -> Looked {
    let known = [
        (
            "/usr/local/bin/gpu-handoff.sh",
            "the script gpu-handoff.sh takes the first GPU it finds, with no look at who uses it",
        ),
        (
            "/usr/local/bin/bind-vfio.sh",
            "bind-vfio.sh gives a card to vfio-pci by new_id, which draws every card of its model",
        ),
        (
            "/usr/local/phoenix_hypervisor",
            "Phoenix's scripts set the host up for a permanent passthrough, and install drivers without DKMS",
        ),
        (
            "/etc/systemd/system/gpu-to-vfio.service",
            "a unit of that name stands before this package's own",
        ),
        (
            "/etc/systemd/system/gpu-to-nvidia.service",
            "a unit of that name stands before this package's own",
        ),
    ];
    let mut found = Vec::new();
    for (path, what) in known {
        if facts.texts.has(path)? {
            found.push(
                notice(what)
                    .at(path, None)
                    .hint("remove it if nobody calls it any more: this package does the same"),
            );
        }
    }
    or_pass(found, "no script of another handoff tool is left")
}

pub(super) fn udev(facts: &Facts) -> Looked {
    let mut found = Vec::new();
    facts.texts.get("/etc/udev/rules.d")?;
    for (path, text) in facts.texts.below("/etc/udev/rules.d/") {
        let lines = text
            .lines()
            .enumerate()
            .filter(|(_, l)| !l.trim_start().starts_with('#'));
        let sets =
            lines.filter(|(_, l)| l.contains("driver_override") || (l.contains("vfio-pci") && l.contains("RUN")));
        found.extend(sets.map(|(at, _)| {
            warn(
                "this rule has devices bound by a driver_override when they appear: a GPU that comes home \
                may be taken again",
            )
            .at(path, Some(at + 1))
            .hint("remove the line, then 'udevadm control --reload'")
        }));
    }
    or_pass(found, "no udev rule binds devices by a driver_override")
}

/// Reservations of VMs that do not run.
pub(super) fn reservations(facts: &Facts) -> Looked {
    if facts.gpus().is_empty() {
        return skip(crate::check::gpu::NONE).into();
    }
    let mut found = Vec::new();
    for vm in &facts.vms {
        let runs = facts.snapshot.vms.iter().any(|v| v.vmid == vm.vmid);
        let reserved = facts.cluster.reservations.of(vm.vmid);
        let gpus: Vec<_> = facts
            .gpus()
            .iter()
            .map(|g| g.addr)
            .filter(|g| reserved.contains(g))
            .collect();
        if !runs && !gpus.is_empty() {
            let text = format!(
                "{} {} reserved for VM {}, which does not run: it is starting, or Proxmox takes that over at \
                the next start",
                join(&gpus),
                are(gpus.len()),
                vm.vmid
            );
            found.push(notice(text).at("/run/qemu-server/pci-id-reservations", None));
        }
    }
    or_pass(found, "no GPU is reserved for a VM that does not run")
}
