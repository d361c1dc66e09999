//! Checks of the host: who asks, Proxmox, the processor, what the kernel lets in.

use crate::check::facts::Facts;
use crate::check::finding::{Looked, fail, info, notice, or_pass, pass, skip, warn};
use crate::check::versions::numbers;
use crate::host::modules::Problem;
use crate::settings::values::Gate;

/// The Proxmox VE that this was tried against: major versions of pve-manager.
const KNOWN: [u32; 2] = [8, 9];

/// The first qemu-server that calls post-stop by the new way alone (qemu-server commit 7d48d8ba).
const NEW_CLEANUP: [u32; 3] = [9, 1, 13];

pub(super) fn root(facts: &Facts) -> Looked {
    match facts.asked.root {
        true => pass("run as root"),
        false => fail("not run as root: much of what follows cannot be seen").hint("run it as root"),
    }
    .into()
}

pub(super) fn proxmox(facts: &Facts) -> Looked {
    let Some(version) = facts.texts.package("pve-manager")? else {
        return warn("pve-manager is not installed: no Proxmox VE host, or its packages are half removed")
            .hint("'dpkg -l pve-manager' shows it")
            .into();
    };
    match numbers(version).first() {
        Some(major) if KNOWN.contains(major) => pass(format!("Proxmox VE {version}")),
        _ => warn(format!(
            "Proxmox VE {version} is none that this was written for (8 and 9)"
        ))
        .hint("see whether there is a newer gpu-handoff, and install it: 'gpu-handoff --version' tells which this is"),
    }
    .into()
}

pub(super) fn qemu_server(facts: &Facts) -> Looked {
    let Some(version) = facts.texts.package("qemu-server")? else {
        return warn("qemu-server is not installed: there is nobody to call the hook")
            .hint("apt install qemu-server")
            .into();
    };
    match numbers(version).as_slice() >= NEW_CLEANUP.as_slice() {
        true => pass(format!("qemu-server {version} calls post-stop in its own task")),
        false => info(format!(
            "qemu-server {version} calls post-stop late, or after a failed start never: the watcher brings \
                the GPU home"
        )),
    }
    .into()
}

pub(super) fn virtualisation(facts: &Facts) -> Looked {
    let cpu = facts.texts.needed("/proc/cpuinfo")?;
    let flags = cpu.lines().find(|l| l.starts_with("flags")).unwrap_or_default();
    let has = |flag: &str| flags.split_ascii_whitespace().any(|f| f == flag);
    if !has("vmx") && !has("svm") {
        return warn("the processor shows neither vmx nor svm: VMs with KVM do not start")
            .hint("turn on VT-x or SVM in the firmware's setup")
            .into();
    }
    match facts.texts.has("/dev/kvm")? {
        true => pass("the processor has virtualisation, and /dev/kvm is there"),
        false => warn("there is no /dev/kvm: VMs with KVM do not start")
            .hint("modprobe kvm_intel, or kvm_amd; 'dmesg | grep kvm' says why not"),
    }
    .into()
}

pub(super) fn secure_boot(facts: &Facts) -> Looked {
    if !facts.texts.has("/sys/firmware/efi")? {
        return pass("the host was booted without UEFI: there is no Secure Boot").into();
    }
    let path = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
    // Four bytes of attributes, then the value (linux, Documentation/filesystems/efivarfs.rst).
    match facts.texts.text(path)?.and_then(|t| t.chars().last()) {
        Some('\u{1}') => info("Secure Boot is on: the kernel takes signed modules only")
            .hint("'mokutil --list-enrolled' shows the keys that count"),
        _ => pass("Secure Boot is off"),
    }
    .into()
}

pub(super) fn lockdown(facts: &Facts) -> Looked {
    let text = facts.texts.line("/sys/kernel/security/lockdown")?;
    let mode = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    match mode.map(|(mode, _)| mode) {
        None | Some("none") => pass("the kernel is not locked down"),
        Some(mode) => notice(format!(
            "the kernel is in lockdown mode {mode}: a module without a signature is refused, as is a driver \
                that was built here and not signed"
        ))
        .hint("'mokutil --sb-state' tells whether that is Secure Boot's doing"),
    }
    .into()
}

pub(super) fn signatures(facts: &Facts) -> Looked {
    let Some(asked_by) = &facts.snapshot.signatures.asked_by else {
        return pass("the kernel asks for no signatures of modules").into();
    };
    // Of several modules that need the same file the first is named.
    let mut files: Vec<&str> = Vec::new();
    let mut unsigned = Vec::new();
    for one in &facts.texts.loadable {
        if let Some(problem @ Problem::Unsigned { file, .. }) = &one.problem
            && !files.contains(&file.as_str())
        {
            files.push(file);
            unsigned
                .push(fail(format!("{}: {problem}", one.name)).hint(
                    "sign it with a key that is enrolled: 'mokutil --import /var/lib/dkms/mok.pub', then reboot",
                ));
        }
    }
    or_pass(
        unsigned,
        format!("every module that is needed is signed, as {asked_by} wants it"),
    )
}

pub(super) fn kernel(facts: &Facts) -> Looked {
    let running = facts.kernel()?;
    match facts.newest_kernel()? {
        None => skip("no kernel's modules are installed").into(),
        Some(newest) if newest == running => {
            pass(format!("the running kernel {running} is the newest one installed")).into()
        }
        Some(newest) => notice(format!(
            "kernel {running} runs, and {newest} is installed: it boots next, if none is pinned"
        ))
        .hint("reboot when it suits; 'proxmox-boot-tool kernel list' shows which is chosen")
        .into(),
    }
}

pub(super) fn gate(facts: &Facts) -> Looked {
    let off = facts.settings.as_ref().is_ok_and(|s| s.gate == Gate::Off);
    if off {
        let at = facts
            .settings
            .as_ref()
            .ok()
            .and_then(|s| s.origins.get("gate").cloned());
        let text = format!(
            "the gate is off by a setting{}",
            at.map_or(String::new(), |at| format!(" ({at})"))
        );
        return warn(format!(
            "{text}: a program can open a GPU between the look and the unbind"
        ))
        .hint("take 'gate = \"off\"' out of the settings")
        .into();
    }
    let mounts = facts.texts.needed("/proc/mounts")?;
    let mut at_root = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        (fields.next()? == "/sys/fs/cgroup").then_some(fields.next()?)
    });
    match at_root.next_back() {
        Some("cgroup2") => pass("nobody can open a GPU while it is handed over (cgroup version 2)"),
        _ => warn("cgroups are not of version 2 alone: nobody is kept from opening a GPU while it is handed over")
            .hint("take 'systemd.unified_cgroup_hierarchy=0' off the kernel's command line, and reboot"),
    }
    .into()
}

pub(super) fn vfio(facts: &Facts) -> Looked {
    let asked = facts.texts.loadable.iter().find(|l| l.name == "vfio_pci");
    match asked.map(|l| &l.problem) {
        None if facts.snapshot.vfio_pci => pass("vfio-pci is there").into(),
        None => Err(crate::check::finding::NotSeen(
            "modprobe was not asked for vfio_pci".to_owned(),
        )),
        Some(None) => pass("vfio-pci can be loaded").into(),
        Some(Some(Problem::NoAnswer(why))) => Err(crate::check::finding::NotSeen(format!("modprobe: {why}"))),
        Some(Some(why)) => fail(format!("vfio_pci: {why}"))
            .hint("'modprobe -v vfio-pci' tries it; it belongs to the kernel's own package")
            .into(),
    }
}

/// How long a GPU's own console counts as the only way in: never, with a serial console or another display.
pub(super) fn console(facts: &Facts) -> Looked {
    let gpus = facts.gpus();
    let others = facts
        .snapshot
        .functions
        .iter()
        .filter(|f| f.class.is_gpu() && !f.is_nvidia_gpu() && f.physfn.is_none());
    if gpus.is_empty() {
        return skip("there is no NVIDIA GPU").into();
    }
    if let Some(other) = others.clone().next() {
        return pass(format!(
            "the host has a display of its own beside the GPUs ({})",
            other.addr
        ))
        .into();
    }
    if let Some(serial) = facts.snapshot.serial.first() {
        return pass(format!(
            "the host has a serial console ({serial}) while its only display is lent"
        ))
        .into();
    }
    notice("the host's only display is a GPU that is lent: meanwhile there is no console but the network's")
        .hint("have a way in by SSH, or a serial console: 'console=ttyS0' on the kernel's command line")
        .into()
}
