//! Reads what the checks look at beyond the snapshot: the one file of this wing that touches the host.
//!
//! In parts, each asked by itself in a worker with a deadline: /etc/pve, whose daemon may not answer, a container's files
//! and slow programs keep nobody from hearing of the rest. Nothing is judged here.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use rustix::fs::{Dir, StatVfsMountFlags, statvfs};
use serde::{Deserialize, Serialize};

use crate::base::json;
use crate::base::root::Root;
use crate::base::sets::IntoSet as _;
use crate::base::vmid::VmId;
use crate::check::configured;
use crate::check::texts::{Seen, Texts};
use crate::check::versions::{library_version, numbers};
use crate::host::boot_loader::BootConfig;
use crate::host::container_nodes::{Inside, process_of};
use crate::host::modprobe_config::ModprobeConfig;
use crate::host::module_lists::ModuleLists;
use crate::host::modules;
use crate::proxmox::storages::{self, STORAGES};

/// Longest text that is read of one file, bytes: the longest that is wanted whole, modules.dep, has less than one million.
const LONGEST: u64 = 4 << 20;

/// What is read at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Part {
    /// Files of the host.
    Host,
    /// What modprobe and modinfo say.
    Modules,
    /// Files of Proxmox's below /etc/pve.
    Proxmox,
    /// Files inside containers that run.
    Containers,
    /// What takes seconds: the initramfs, DKMS.
    Slow,
    /// The snippets of all storages, of which one may be a file server that is gone.
    Snippets,
}

impl Part {
    /// The paths that are not seen where it gives no answer.
    pub fn covers(self) -> &'static str {
        match self {
            Part::Host => "/",
            Part::Modules => "modprobe",
            Part::Proxmox => "/etc/pve",
            Part::Containers => "containers",
            Part::Slow => "slow",
            Part::Snippets => "snippets",
        }
    }
}

/// Texts that are read whole.
const TEXTS: [&str; 19] = [
    "/proc/cmdline",
    "/proc/devices",
    "/proc/driver/nvidia/params",
    "/proc/interrupts",
    "/proc/meminfo",
    "/proc/mounts",
    "/proc/sys/kernel/hostname",
    "/proc/sys/kernel/osrelease",
    "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c",
    "/sys/kernel/security/lockdown",
    "/sys/module/nvidia/version",
    "/sys/module/nvidia_drm/parameters/fbdev",
    "/sys/module/nvidia_drm/parameters/modeset",
    "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode",
    "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts",
    "/etc/docker/daemon.json",
    "/etc/udev/rules.d/70-nvidia.rules.proxmenux-disabled",
    "/etc/systemd/system/gpu-to-vfio.service",
    "/etc/systemd/system/gpu-to-nvidia.service",
];

/// What systemd makes of an enabled unit, a link.
const WANTED_AT_BOOT: &str = "/etc/systemd/system/multi-user.target.wants/gpu-handoff-recover.service";

/// What only has to be there; a file's mode and time are noted.
const PATHS: [&str; 14] = [
    "/boot",
    "/dev/kvm",
    "/etc/modprobe.d",
    "/etc/udev/rules.d/70-nvidia.rules.proxmenux-disabled",
    "/sys/firmware/efi",
    "/usr/bin/nvidia-smi",
    "/usr/lib/systemd/system/gpu-handoff-home@.service",
    "/usr/lib/systemd/system/gpu-handoff-recover.service",
    "/usr/lib/systemd/system/gpu-handoff-watch@.service",
    "/usr/local/bin/bind-vfio.sh",
    "/usr/local/bin/gpu-handoff.sh",
    "/usr/local/phoenix_hypervisor",
    "/usr/sbin/gpu-handoff",
    "/var/lib/gpu-handoff",
];

/// Folders whose names are noted, with what the names that count have in them.
const FOLDERS: [(&str, &[&str]); 14] = [
    ("/boot", &["initrd.img-"]),
    ("/dev", &["nvidia", "dri", "kvm"]),
    ("/dev/dri", &[]),
    ("/dev/nvidia-caps", &[]),
    ("/etc/driverctl.d", &[]),
    ("/etc/modprobe.d", &[".conf"]),
    ("/etc/udev/rules.d", &[".rules"]),
    ("/lib/modules", &[]),
    ("/sys/class/iommu", &[]),
    ("/sys/firmware/acpi/tables", &["DMAR", "IVRS", "VIOT"]),
    ("/sys/kernel/iommu_groups", &[]),
    ("/usr/lib/x86_64-linux-gnu", &["libcuda.so.", "libnvidia-ml.so."]),
    (
        "/usr/lib/x86_64-linux-gnu/nvidia/current",
        &["libcuda.so.", "libnvidia-ml.so."],
    ),
    ("/var/lib/dkms", &["nvidia"]),
];

/// The folders of a container in which NVIDIA's libraries lie (its own installer, Debian's and Fedora's packages).
const LIBRARIES: [&str; 4] = [
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/x86_64-linux-gnu/nvidia/current",
    "usr/lib64",
    "usr/lib",
];

/// Packages whose versions count: these, and whatever has "nvidia" in its name.
const PACKAGES: [&str; 4] = ["pve-manager", "qemu-server", "proxmox-ve", "gpu-handoff"];

/// The mounts of which it counts whether something can be written.
const MOUNTS: [&str; 2] = ["/run", "/var/lib"];

/// What of a tree of files says how much is free.
const FILESYSTEMS: &str = "/filesystems";

/// The versions of NVIDIA's libraries inside containers, of a tree of files, which has no processes.
const INSIDE: &str = "/libraries.json";

/// The modules that a handoff loads.
const MODULES: [&str; 5] = ["nvidia", "nvidia_uvm", "nvidia_modeset", "nvidia_drm", "vfio_pci"];

/// Reads a part.
pub fn read(root: &Root, part: Part) -> Texts {
    let mut texts = Texts::default();
    match part {
        Part::Host => host(root, &mut texts),
        Part::Modules => {
            texts.loadable = modules::read(root, &MODULES.map(str::to_owned));
            for name in ["nvidia", "nvidia-current"] {
                say(root, &mut texts, &["modinfo", "-F", "version", name]);
            }
        }
        Part::Proxmox => proxmox(root, &mut texts),
        Part::Containers => containers(root, &mut texts),
        Part::Slow => {
            let kernel = root.line("/proc/sys/kernel/osrelease").unwrap_or_default();
            say(
                root,
                &mut texts,
                &["lsinitramfs", &format!("/boot/initrd.img-{kernel}")],
            );
            say(root, &mut texts, &["dkms", "status"]);
        }
        Part::Snippets => snippets(root, &mut texts),
    }
    texts
}

/// Where each snippet leads, or what is in it.
fn snippets(root: &Root, texts: &mut Texts) {
    let storages = storages::parse(&root.text(STORAGES).unwrap_or_default());
    // Of one that is switched off the file server may be gone for good.
    let on = storages.into_iter().filter(|storage| !storage.disabled);
    for folder in on.filter_map(|storage| storage.snippets) {
        add_names(root, texts, &folder, |_| true);
        for name in names_in(texts, &folder) {
            add_link(root, texts, &format!("{folder}/{name}"));
        }
    }
}

fn say(root: &Root, texts: &mut Texts, words: &[&str]) {
    let said = match root.program(words) {
        Ok(said) if said.ok => Ok(said.stdout),
        Ok(said) => Err(crate::base::text::harmless(
            &crate::base::text::one_line(&said.stderr),
            200,
        )),
        Err(e) => Err(e.to_string()),
    };
    texts.said.insert(words.join(" "), said);
}

fn host(root: &Root, texts: &mut Texts) {
    for path in TEXTS {
        add_text(root, texts, path);
    }
    // Of a machine with hundreds of processors one line tells whether interrupts are remapped.
    if let Some(Seen::Text(text)) = texts.seen.get_mut("/proc/interrupts") {
        *text = text.lines().find(|l| l.contains("IR-")).unwrap_or_default().to_owned();
    }
    // The first processor is enough.
    if let Ok(bytes) = root.bytes_up_to("/proc/cpuinfo", 8192) {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        texts.seen.insert("/proc/cpuinfo".to_owned(), Seen::Text(text));
    }
    add_link(root, texts, WANTED_AT_BOOT);
    for path in PATHS {
        note(root, texts, path);
    }
    for (path, parts) in FOLDERS {
        add_names(root, texts, path, |name| {
            parts.is_empty() || parts.iter().any(|p| name.contains(p))
        });
    }
    for folder in ["/etc/driverctl.d", "/etc/udev/rules.d"] {
        add_texts_below(root, texts, folder);
    }
    for name in names_in(texts, "/etc/modprobe.d") {
        note(root, texts, &format!("/etc/modprobe.d/{name}"));
    }
    for name in names_in(texts, "/boot") {
        note(root, texts, &format!("/boot/{name}"));
    }
    let snippets = "/var/lib/vz/snippets";
    add_names(root, texts, snippets, |_| true);
    for name in names_in(texts, snippets) {
        let is_ours = name == "gpu-handoff";
        let add = if is_ours { add_link } else { add_text };
        add(root, texts, &format!("{snippets}/{name}"));
        note(root, texts, &format!("{snippets}/{name}"));
    }
    let (modprobe, lists, boot) = (
        ModprobeConfig::read(root),
        ModuleLists::read(root),
        BootConfig::read(root),
    );
    texts.lines = configured::lines(&modprobe, &lists, &boot);
    let unread = modprobe
        .unknown
        .iter()
        .chain(&lists.unknown)
        .chain(boot.next.as_ref().err().into_iter().flatten());
    texts.unread.extend(unread.map(ToString::to_string));
    add_modules(root, texts);
    add_packages(root, texts);
    for mount in MOUNTS {
        if let Some(free) = free(root, mount) {
            texts.free.insert(mount.to_owned(), free);
        }
    }
    root.tell(FILESYSTEMS, || {
        let line = |(mount, free): (&String, &Option<u64>)| {
            format!("{mount} {}\n", free.map_or("ro".to_owned(), |free| free.to_string()))
        };
        texts.free.iter().map(line).collect::<String>().into_bytes()
    });
}

fn names_in(texts: &Texts, path: &str) -> Vec<String> {
    match texts.seen.get(path) {
        Some(Seen::Names(names)) => names.clone(),
        _ => Vec::new(),
    }
}

/// Which modules of NVIDIA's and VFIO's the running and the newest kernel have: the lines of modules.dep that are about
/// them. And whether there is what DKMS builds with.
fn add_modules(root: &Root, texts: &mut Texts) {
    let installed = names_in(texts, "/lib/modules");
    let newest = installed.iter().max_by_key(|release| numbers(release)).cloned();
    let running = root.line("/proc/sys/kernel/osrelease");
    let mut kernels: Vec<String> = running.into_iter().chain(newest).collect();
    kernels.dedup();
    for kernel in kernels {
        let path = format!("/lib/modules/{kernel}/modules.dep");
        add_text(root, texts, &path);
        if let Some(Seen::Text(text)) = texts.seen.get_mut(&path) {
            let of = |line: &&str| {
                line.split(':')
                    .next()
                    .is_some_and(|f| f.contains("nvidia") || f.contains("vfio"))
            };
            *text = text.lines().filter(of).map(|l| format!("{l}\n")).collect();
        }
        note(root, texts, &format!("/lib/modules/{kernel}/build"));
    }
}

/// Of dpkg's status file what is asked for: the versions of some packages that are installed.
fn add_packages(root: &Root, texts: &mut Texts) {
    let path = "/var/lib/dpkg/status";
    // It grows with every package: it is read as a whole, as any file is at most.
    let text = match root.text(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return,
        Err(e) => {
            texts.seen.insert(path.to_owned(), Seen::Unreadable(e.to_string()));
            return;
        }
    };
    let counts = |p: &&str| {
        let name = p.lines().find_map(|l| l.strip_prefix("Package: ")).unwrap_or_default();
        let installed = p.lines().any(|l| l == "Status: install ok installed");
        installed && (PACKAGES.contains(&name) || name.contains("nvidia"))
    };
    let kept = |p: &str| -> String {
        let lines = p
            .lines()
            .filter(|l| l.starts_with("Package: ") || l.starts_with("Version: "));
        lines.map(|l| format!("{l}\n")).collect()
    };
    let packages: Vec<String> = text.split("\n\n").filter(counts).map(kept).collect();
    texts.seen.insert(path.to_owned(), Seen::Text(packages.join("\n")));
}

fn proxmox(root: &Root, texts: &mut Texts) {
    for name in ["storage.cfg", "jobs.cfg", "ha/resources.cfg", "mapping/pci.cfg"] {
        add_text(root, texts, &format!("/etc/pve/{name}"));
    }
    add_names(root, texts, "/etc/pve/nodes", |_| true);
    for node in names_in(texts, "/etc/pve/nodes") {
        for kind in ["qemu-server", "lxc"] {
            add_names(root, texts, &format!("/etc/pve/nodes/{node}/{kind}"), |_| true);
        }
    }
    for kind in ["qemu-server", "lxc"] {
        let folder = format!("/etc/pve/{kind}");
        let is_config = |name: &str| name.strip_suffix(".conf").is_some_and(|id| id.parse::<VmId>().is_ok());
        add_names(root, texts, &folder, is_config);
        for name in names_in(texts, &folder) {
            add_text(root, texts, &format!("{folder}/{name}"));
        }
    }
}

/// The libraries inside each container that runs. A container's folders are its own: nothing is followed that leads out of
/// it, and names are all that is read.
fn containers(root: &Root, texts: &mut Texts) {
    if !root.is_real()
        && let Ok(told) = root.bytes(INSIDE)
    {
        texts.inside = json::from_slice(&told).unwrap_or_default();
        return;
    }
    let names = root.names("/sys/fs/cgroup/lxc").unwrap_or_default();
    for ctid in names.iter().filter_map(|name| name.parse::<VmId>().ok()) {
        let Some(pid) = process_of(root, ctid) else {
            continue;
        };
        let Ok(inside) = Inside::of(root, pid) else {
            continue;
        };
        let versions = LIBRARIES.iter().flat_map(|dir| versions_in(&inside, dir)).into_set();
        texts.inside.insert(ctid, versions.into_iter().collect());
    }
    root.tell(INSIDE, || serde_json::to_vec(&texts.inside).unwrap_or_default());
}

fn versions_in(inside: &Inside, dir: &str) -> Vec<String> {
    let Ok(dir) = inside.folder(dir) else {
        return Vec::new();
    };
    let Ok(entries) = Dir::read_from(&dir) else {
        return Vec::new();
    };
    let names = entries.filter_map(Result::ok);
    names
        .filter_map(|entry| library_version(&entry.file_name().to_string_lossy()).map(str::to_owned))
        .collect()
}

fn add_names(root: &Root, texts: &mut Texts, path: &str, counts: impl Fn(&str) -> bool) {
    if !root.exists(path) {
        return;
    }
    let seen = match root.names(path) {
        Ok(names) => Seen::Names(names.into_iter().filter(|n| counts(n)).collect()),
        Err(e) => Seen::Unreadable(e.to_string()),
    };
    texts.seen.insert(path.to_owned(), seen);
}

fn add_texts_below(root: &Root, texts: &mut Texts, folder: &str) {
    for name in names_in(texts, folder) {
        add_text(root, texts, &format!("{folder}/{name}"));
    }
}

/// Where a link leads, whether something is there or not; of a file that is none its text.
fn add_link(root: &Root, texts: &mut Texts, path: &str) {
    match root.link(path) {
        Ok(target) => {
            texts.seen.insert(path.to_owned(), Seen::Link(target));
        }
        Err(_) => add_text(root, texts, path),
    }
}

/// A file's text, links followed.
fn add_text(root: &Root, texts: &mut Texts, path: &str) {
    let seen = match root.text_up_to(path, LONGEST) {
        Ok(text) => Seen::Text(text),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return,
        Err(e) => Seen::Unreadable(e.to_string()),
    };
    texts.seen.insert(path.to_owned(), seen);
}

/// That it is there, with mode and time.
fn note(root: &Root, texts: &mut Texts, path: &str) {
    // A link's target is meant below this root, too.
    let target = fs::read_link(root.path(path)).ok().filter(|t| t.is_absolute());
    let file = target.map_or_else(|| root.path(path), |target| root.path(target));
    let Ok(meta) = fs::metadata(file) else {
        return;
    };
    texts
        .seen
        .entry(path.to_owned())
        .or_insert_with(|| Seen::Text(String::new()));
    texts.modes.insert(path.to_owned(), meta.permissions().mode());
    texts
        .changed
        .insert(path.to_owned(), u64::try_from(meta.mtime()).unwrap_or(0));
}

/// The bytes that are free where something is kept; None within: it is read-only. Below another root than `/` a file
/// `filesystems` says it: `PATH BYTES`, or `PATH ro`.
fn free(root: &Root, path: &str) -> Option<Option<u64>> {
    if !root.is_real() {
        let text = root.text(FILESYSTEMS).ok()?;
        let of_it = text.lines().find_map(|l| l.strip_prefix(path)?.strip_prefix(' '));
        return of_it.map(|free| free.parse().ok());
    }
    let stat = statvfs(path).ok()?;
    let writable = !stat.f_flag.contains(StatVfsMountFlags::RDONLY);
    Some(writable.then(|| stat.f_bavail.saturating_mul(stat.f_frsize)))
}
