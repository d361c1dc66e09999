//! Checks of NVIDIA's driver: whether it is there for every kernel, whether its parts are of one version, whether it is
//! the one that these GPUs need.

use crate::check::facts::Facts;
use crate::check::finding::{Finding, Looked, NotSeen, fail, info, notice, or_pass, pass, skip, warn};
use crate::check::models::{self, Era};
use crate::check::texts::Seen;
use crate::check::versions::{library_version, numbers};
use crate::host::modules::Problem;
use crate::plan::vendor::nvidia::{drm_holds_gpus, is_one_shot};

/// The modules of the driver, as modprobe is asked for them.
const PARTS: [&str; 4] = ["nvidia", "nvidia_modeset", "nvidia_drm", "nvidia_uvm"];

/// What installs the driver, in words.
const INSTALL: &str =
    "install it for this kernel: 'dkms autoinstall', or NVIDIA's installer, with the kernel's headers there";

pub(super) fn installed(facts: &Facts) -> Looked {
    if facts.texts.loadable.is_empty() {
        return Err(not_asked(facts));
    }
    let kernel = facts.kernel()?;
    let mut found = Vec::new();
    for name in PARTS {
        let Some(asked) = facts.texts.loadable.iter().find(|l| l.name == name) else {
            continue;
        };
        match &asked.problem {
            None | Some(Problem::Unsigned { .. }) => {} // signatures are another row's
            Some(Problem::NoAnswer(why)) => return Err(NotSeen(format!("modprobe: {why}"))),
            Some(why @ Problem::Forbidden { .. }) => found.push(
                fail(format!("{name} cannot be loaded: {why}"))
                    .hint("see the checks 'install-false' and 'blacklist' for the line"),
            ),
            Some(why) => found.push(fail(format!("{name} cannot be loaded for kernel {kernel}: {why}")).hint(INSTALL)),
        }
    }
    or_pass(
        found,
        format!("NVIDIA's modules are there for the running kernel {kernel}"),
    )
}

/// Why modprobe was not asked.
fn not_asked(facts: &Facts) -> NotSeen {
    let missed = facts.texts.missed.iter().find(|(part, _)| part == "modprobe");
    NotSeen(missed.map_or_else(
        || "modprobe was not asked".to_owned(),
        |(_, why)| format!("modprobe: {why}"),
    ))
}

pub(super) fn loaded(facts: &Facts) -> Looked {
    if facts.gpus().is_empty() {
        return skip("there is no NVIDIA GPU").into();
    }
    let away = facts.gpus().iter().all(|gpu| gpu.is_on_vfio());
    match &facts.snapshot.nvidia {
        Some(driver) if !driver.version.is_empty() => {
            let kind = if driver.open { "open" } else { "proprietary" };
            pass(format!("NVIDIA's {kind} driver {} is loaded", driver.version))
        }
        Some(_) => warn("NVIDIA's driver is loaded and does not say its version: it counts as the worst one")
            .at("/proc/driver/nvidia/version", None),
        None if away => skip("every GPU is on vfio-pci: the driver need not be loaded"),
        None => warn("NVIDIA's driver is not loaded: the host cannot use its GPU")
            .hint("modprobe nvidia; 'journalctl -k -g nvidia' says why not"),
    }
    .into()
}

pub(super) fn on_disk(facts: &Facts) -> Looked {
    let loaded = facts.snapshot.nvidia_version();
    if loaded.is_empty() {
        return skip("NVIDIA's driver is not loaded").into();
    }
    let asked = ["modinfo -F version nvidia", "modinfo -F version nvidia-current"];
    let said = asked
        .iter()
        .filter_map(|words| facts.texts.said.get(*words)?.as_ref().ok());
    match said.map(|t| t.trim()).find(|t| !t.is_empty()) {
        None => Err(NotSeen("modinfo says no version of nvidia".to_owned())),
        Some(version) if version == loaded => {
            pass(format!("the module on disk is the one that is loaded ({loaded})")).into()
        }
        Some(version) => warn(format!(
            "driver {loaded} is loaded, and {version} is installed: the next handoff that loads it again has \
                the other one"
        ))
        .hint(
            "reboot, or stop every user of the GPUs and load it anew: 'modprobe -r nvidia_drm nvidia_uvm \
                nvidia', 'modprobe nvidia'",
        )
        .into(),
    }
}

pub(super) fn library(facts: &Facts) -> Looked {
    let loaded = facts.snapshot.nvidia_version();
    if loaded.is_empty() {
        return skip("NVIDIA's driver is not loaded").into();
    }
    let folders = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu/nvidia/current"];
    let mut versions: Vec<(&str, &str)> = Vec::new();
    for folder in folders {
        let names = facts.texts.names(folder)?.iter();
        versions.extend(names.filter_map(|name| Some((folder, library_version(name)?))));
    }
    if versions.is_empty() {
        return info("no library of NVIDIA's is installed on the host: the module alone serves containers").into();
    }
    let wrong: Vec<&(&str, &str)> = versions.iter().filter(|(_, version)| *version != loaded).collect();
    let hint = "reboot if the driver was updated since; else install both from one source";
    match (wrong.first(), wrong.len() == versions.len()) {
        (None, _) => pass(format!("module and libraries are of one version ({loaded})")),
        (Some((folder, version)), true) => fail(format!(
            "the module is of version {loaded}, and libraries in {folder} of {version}: 'nvidia-smi' and CUDA refuse to work"
        ))
        .hint(hint),
        (Some((folder, version)), false) => warn(format!(
            "{folder} has libraries of {version} beside those of the module's version {loaded}: which are used is up to a link"
        ))
        .hint(hint),
    }
    .into()
}

pub(super) fn era(facts: &Facts) -> Looked {
    let version = facts.snapshot.nvidia_version();
    if version.is_empty() {
        return skip("NVIDIA's driver is not loaded").into();
    }
    let major = numbers(version).first().copied().unwrap_or(0);
    let mut found = Vec::new();
    for gpu in facts.gpus() {
        let name = facts.name(gpu);
        match models::era(gpu.device) {
            Era::Kepler if major > 470 => found.push(
                fail(format!(
                    "{name} is driven by no driver after 470, and {version} is installed"
                ))
                .hint("install branch 470"),
            ),
            Era::Maxwell if major > 580 => found.push(
                fail(format!(
                    "{name} (Maxwell to Volta) is driven by no driver after 580, and {version} is installed"
                ))
                .hint("install branch 580"),
            ),
            Era::Blackwell if major < 570 => found.push(
                fail(format!(
                    "{name} (Blackwell) needs driver 570 or later, and {version} is installed"
                ))
                .hint("install branch 580"),
            ),
            _ => {}
        }
    }
    or_pass(found, format!("driver {version} is one that these GPUs are driven by"))
}

/// What drives what: NVIDIA, Driver Installation Guide, "Kernel Modules" (open: Turing and later; proprietary: none of
/// Blackwell and later). Of Ada, what the guide proxmox-gpu-passthrough saw (its TROUBLESHOOTING).
pub(super) fn flavour(facts: &Facts) -> Looked {
    let Some(driver) = &facts.snapshot.nvidia else {
        return skip("NVIDIA's driver is not loaded").into();
    };
    let mut found: Vec<Finding> = Vec::new();
    for gpu in facts.gpus() {
        let name = facts.name(gpu);
        let open = "install the open modules of the same version ('nvidia-open', or the installer's '-m=kernel-open')";
        match (models::era(gpu.device), driver.open) {
            (Era::Blackwell, false) => found.push(
                fail(format!(
                    "{name} (Blackwell) is driven by the open modules only, and the proprietary ones are loaded"
                ))
                .hint(open),
            ),
            (Era::Ada, false) => found.push(
                warn(format!(
                    "{name} (Ada) was seen not to come up with the proprietary modules of server branches"
                ))
                .hint(open),
            ),
            (Era::Kepler | Era::Maxwell, true) => found.push(
                fail(format!(
                    "{name} is older than Turing, which the open modules do not drive"
                ))
                .hint("install the proprietary modules of branch 580 or older"),
            ),
            _ => {}
        }
    }
    let kind = if driver.open { "open" } else { "proprietary" };
    or_pass(found, format!("the {kind} modules drive every GPU here"))
}

pub(super) fn nouveau(facts: &Facts) -> Looked {
    let on = facts
        .gpus()
        .into_iter()
        .filter(|gpu| gpu.driver.as_deref() == Some("nouveau"));
    let hint = "echo 'blacklist nouveau' >/etc/modprobe.d/nouveau.conf, then 'update-initramfs -u -k all' and reboot";
    let mut found: Vec<Finding> = on
        .map(|gpu| warn(format!("{} is on nouveau, not on NVIDIA's driver", gpu.addr)).hint(hint))
        .collect();
    // A framebuffer driver of the kernel's for cards before 2004, which takes the alias of later ones, too.
    for name in ["nouveau", "nvidiafb"] {
        if found.is_empty() && facts.snapshot.module(name).is_some() {
            let text = format!("{name} is loaded beside NVIDIA's driver: at the next boot it may be first");
            let hint = format!(
                "echo 'blacklist {name}' >/etc/modprobe.d/{name}.conf, then 'update-initramfs -u -k all' and reboot"
            );
            found.push(warn(text).hint(hint));
        }
    }
    or_pass(found, "neither nouveau nor nvidiafb is loaded")
}

pub(super) fn newest(facts: &Facts) -> Looked {
    let Some(newest) = facts.newest_kernel()? else {
        return skip("no kernel's modules are installed").into();
    };
    let path = format!("/lib/modules/{newest}/modules.dep");
    let text = facts.texts.needed(&path)?;
    let is_driver = |line: &str| {
        let file = line
            .split(':')
            .next()
            .and_then(|f| f.rsplit('/').next())
            .unwrap_or_default();
        let name = file.split('.').next().unwrap_or_default();
        name == "nvidia" || name == "nvidia-current"
    };
    match text.lines().any(is_driver) {
        true => pass(format!("NVIDIA's module is there for the newest kernel {newest}")),
        false => warn(format!(
            "there is no module of NVIDIA's for kernel {newest}, the newest that is installed"
        ))
        .at(path, None)
        .hint(format!(
            "apt install proxmox-headers-{newest}, then 'dkms autoinstall -k {newest}'"
        )),
    }
    .into()
}

pub(super) fn headers(facts: &Facts) -> Looked {
    if facts.texts.names("/var/lib/dkms")?.is_empty() {
        return skip("the driver is not built by DKMS").into();
    }
    let Some(newest) = facts.newest_kernel()? else {
        return skip("no kernel's modules are installed").into();
    };
    match facts.texts.has(&format!("/lib/modules/{newest}/build"))? {
        true => pass(format!("the headers of kernel {newest} are there for DKMS")),
        false => warn(format!(
            "the headers of kernel {newest} are not installed: DKMS cannot build the driver for it"
        ))
        .hint(format!(
            "apt install proxmox-headers-{newest}; 'proxmox-default-headers' keeps them coming"
        )),
    }
    .into()
}

pub(super) fn drm(facts: &Facts) -> Looked {
    if facts.snapshot.nvidia.is_none() {
        return skip("NVIDIA's driver is not loaded").into();
    }
    let version = facts.snapshot.nvidia_version();
    let modeset = facts.texts.line("/sys/module/nvidia_drm/parameters/modeset")?;
    let fbdev = facts.texts.line("/sys/module/nvidia_drm/parameters/fbdev")?;
    if drm_holds_gpus(&facts.snapshot) && facts.gpus().len() > 1 {
        return warn(format!(
            "driver {version} with nvidia_drm's modeset=1 lets no single GPU go: where one leaves, nvidia_drm \
                is unloaded for all of them"
        ))
        .hint("update to 580.105.08 or later, or set 'options nvidia_drm modeset=0' where no console is wanted")
        .into();
    }
    match (modeset, fbdev) {
        ("Y", "N") => notice(
            "nvidia_drm drives displays without a framebuffer (fbdev=0): the host has no text console on the GPU",
        )
        .hint("'options nvidia_drm modeset=1 fbdev=1' in /etc/modprobe.d gives one"),
        ("Y", _) => pass("nvidia_drm drives displays, and a handoff takes the console off before"),
        _ => pass("nvidia_drm drives no displays: nothing of the kernel's holds a GPU"),
    }
    .into()
}

pub(super) fn one_shot(facts: &Facts) -> Looked {
    let version = facts.snapshot.nvidia_version();
    if facts.snapshot.nvidia.is_none() {
        return skip("NVIDIA's driver is not loaded").into();
    }
    match is_one_shot(&facts.snapshot) {
        false => pass(format!(
            "an unbind of driver {version} that meets a user ends when the user does"
        )),
        true => notice(format!(
            "an unbind of driver {version} that meets a user never ends (open-gpu-kernel-modules issue 1119): \
                every handoff unloads the driver, for all GPUs"
        ))
        .hint("a driver before 595 lets single GPUs go while others are in use"),
    }
    .into()
}

pub(super) fn smi(facts: &Facts) -> Looked {
    match facts.texts.has("/usr/bin/nvidia-smi")? {
        true => pass("nvidia-smi is there: a GPU that has come home is asked whether it works"),
        false => notice("there is no nvidia-smi: whether a GPU works that has come home is not asked")
            .hint("install 'nvidia-smi', or 'nvidia-utils', of the driver's version"),
    }
    .into()
}

pub(super) fn dkms(facts: &Facts) -> Looked {
    if !facts.asked.full {
        return skip("asked for with --full").into();
    }
    let said = match facts.texts.said.get("dkms status") {
        Some(Ok(said)) => said,
        Some(Err(why)) => return Err(NotSeen(format!("dkms status: {why}"))),
        None => return Err(NotSeen("dkms was not asked".to_owned())),
    };
    let of_nvidia: Vec<&str> = said.lines().filter(|l| l.starts_with("nvidia")).collect();
    if of_nvidia.is_empty() {
        return info("DKMS knows no driver of NVIDIA's: it is not built anew for another kernel").into();
    }
    let mut kernels = vec![facts.kernel()?];
    kernels.extend(facts.newest_kernel()?);
    kernels.dedup();
    let without = kernels
        .iter()
        .filter(|k| !of_nvidia.iter().any(|l| l.contains(**k) && l.contains("installed")));
    let found = without
        .map(|kernel| {
            warn(format!("DKMS has not installed the driver for kernel {kernel}")).hint(format!(
                "dkms autoinstall -k {kernel}; /var/lib/dkms/nvidia/*/build/make.log says why it failed"
            ))
        })
        .collect();
    or_pass(
        found,
        format!("DKMS has installed the driver for {}", kernels.join(" and ")),
    )
}

pub(super) fn initramfs(facts: &Facts) -> Looked {
    if !facts.asked.full {
        return skip("asked for with --full").into();
    }
    let image = format!("/boot/initrd.img-{}", facts.kernel()?);
    let said = match facts.texts.said.get(&format!("lsinitramfs {image}")) {
        Some(Ok(said)) => said,
        Some(Err(why)) => return Err(NotSeen(format!("lsinitramfs {image}: {why}"))),
        None => return Err(NotSeen("lsinitramfs was not asked".to_owned())),
    };
    let configured = facts.texts.names("/etc/modprobe.d")?;
    let inside: Vec<&str> = said.lines().filter_map(|l| l.strip_prefix("etc/modprobe.d/")).collect();
    let stale = inside
        .iter()
        .filter(|name| !name.is_empty() && !configured.iter().any(|c| c == *name));
    let found = stale
        .map(|name| {
            warn(format!(
                "it has etc/modprobe.d/{}, which the host has no more",
                crate::base::text::foreign(name)
            ))
            .at(&image, None)
            .hint("update-initramfs -u -k all")
        })
        .collect();
    or_pass(
        found,
        format!("{image} has no line of modprobe.d that the host has not"),
    )
}

/// Whether the initramfs was made after the last change of modprobe.d.
pub(super) fn initramfs_age(facts: &Facts) -> Looked {
    let image = format!("/boot/initrd.img-{}", facts.kernel()?);
    let Some(made) = facts.texts.changed.get(&image) else {
        return skip(format!("there is no {image}")).into();
    };
    let names = match facts.texts.get("/etc/modprobe.d")? {
        Some(Seen::Names(names)) => names.as_slice(),
        _ => &[],
    };
    let paths = names.iter().map(|name| format!("/etc/modprobe.d/{name}"));
    let newer = paths.filter(|path| facts.texts.changed.get(path).is_some_and(|changed| changed > made));
    let found = newer
        .map(|path| {
            notice(format!(
                "it was changed after {image} was made, which has the older one"
            ))
            .at(path, None)
            .hint("update-initramfs -u -k all")
        })
        .collect();
    or_pass(found, "the initramfs is newer than every file of modprobe.d")
}
