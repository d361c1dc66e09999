//! Where Proxmox keeps things: the node's name, a VM's config and its lock, containers' configs, mappings, reservations, and
//! which generation of Proxmox reads them.
//!
//! Readers over a root, the only ones of this wing; the grammar is the other files'. /etc/pve is a FUSE file system, whose
//! daemon may leave a read without an answer (pmxcfs(8)): in a run a worker reads it ([`find`]), and what it has read is
//! understood by the run.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;

use serde::{Deserialize, Serialize};

use crate::base::clock::now_on;
use crate::base::json;
use crate::base::root::Root;
use crate::base::text::foreign;
use crate::base::vmid::VmId;
use crate::host::{container_nodes, nvidia};
use crate::proxmox::PVE;
use crate::proxmox::container_config::{GpuContainer, GpuReference, parse};
use crate::proxmox::given_nodes::given_nodes;
use crate::proxmox::grammar::generation::Generation;
use crate::proxmox::mappings::Mappings;
use crate::proxmox::reservations::{RESERVATIONS, Reservations};
use crate::proxmox::unreadable::Unreadable;
use crate::proxmox::vm_config::{self, VmConfig};

/// The first qemu-server that knows `aw-bits` of a machine (qemu-server commit dc52c006).
const KNOWS_AW_BITS: [u32; 3] = [9, 0, 21];

/// The first qemu-server that knows `driver=` of a hostpci entry (qemu-server commit aa47045f).
const KNOWS_DRIVER: [u32; 3] = [9, 0, 25];

/// The first line of what dpkg says of that package, behind another one.
const PACKAGE: &str = "\nPackage: qemu-server\n";

/// What of Proxmox's files is asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Wanted {
    /// A VM's config.
    VmConfig {
        /// Whose.
        vmid: VmId,
        /// The node that it comes from during an incoming migration (PVE_MIGRATED_FROM).
        migrated_from: String,
    },
    /// What the choice of devices depends on besides.
    Cluster,
    /// The containers that are given a GPU.
    Containers,
    /// Those that run and are given nodes of one.
    RunningContainers,
    /// The VMs of this node.
    Vms,
}

/// What was found, as it was read.
#[derive(Debug, Serialize, Deserialize)]
pub enum Found {
    /// A VM's config.
    VmConfig(ConfigText),
    /// A file of mappings and one of reservations.
    Cluster(ClusterText),
    /// The containers that are given a GPU.
    Containers(Vec<GpuContainer>),
    /// Those that run and are given nodes of one.
    RunningContainers(Vec<VmId>),
    /// The VMs of this node.
    Vms(Vec<VmId>),
    /// No config of a VM: the number is a container's.
    IsContainer,
    /// What is there cannot be read.
    Unreadable(Unreadable),
}

/// Reads it.
pub fn find(root: &Root, wanted: &Wanted) -> Found {
    let found = match wanted {
        Wanted::VmConfig { vmid, migrated_from } => match vm_config_text(root, *vmid, migrated_from) {
            Err(why) if why.source.kind() == io::ErrorKind::NotFound && is_container(root, *vmid) => {
                Ok(Found::IsContainer)
            }
            read => read.map(Found::VmConfig),
        },
        Wanted::Cluster => cluster_text(root).map(Found::Cluster),
        Wanted::Containers => gpu_containers(root).map(Found::Containers),
        Wanted::RunningContainers => Ok(Found::RunningContainers(running_containers(root))),
        Wanted::Vms => vms(root).map(Found::Vms),
    };
    found.unwrap_or_else(Found::Unreadable)
}

/// A VM's config as it was read.
#[derive(Debug, Serialize, Deserialize)]
pub struct ConfigText {
    path: String,
    #[serde(with = "crate::base::bytes")]
    bytes: Vec<u8>,
    generation: Generation,
    names_a_device: bool,
}

impl ConfigText {
    /// Whether it may give the VM a device. Where it does not, nothing of it needs to be understood.
    pub fn names_a_device(&self) -> bool {
        self.names_a_device
    }

    /// What it says.
    pub fn parse(self) -> Config {
        Config {
            config: vm_config::parse(&self.bytes, self.generation),
            path: self.path,
            generation: self.generation,
        }
    }
}

/// What the choice of devices depends on, as it was read.
#[derive(Debug, Serialize, Deserialize)]
pub struct ClusterText {
    node: String,
    #[serde(with = "crate::base::bytes")]
    mappings: Vec<u8>,
    #[serde(with = "crate::base::bytes")]
    reservations: Vec<u8>,
    now: u64,
}

impl ClusterText {
    /// What it says.
    pub fn parse(self) -> Cluster {
        Cluster {
            node: self.node,
            mappings: Mappings::parse(&self.mappings),
            reservations: Reservations::parse(&self.reservations),
            now: self.now,
        }
    }
}

/// A VM's config, parsed, and where it was read.
#[derive(Debug)]
pub struct Config {
    /// The path as on the host.
    pub path: String,
    /// What it says.
    pub config: VmConfig,
    /// The generation that was taken for granted.
    pub generation: Generation,
}

/// What Proxmox's choice of devices depends on besides the VM's config and the host's devices.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// The local node's name.
    pub node: String,
    /// /etc/pve/mapping/pci.cfg.
    pub mappings: Mappings,
    /// The reservations of all VMs of this node.
    pub reservations: Reservations,
    /// Unix time, seconds.
    pub now: u64,
}

/// Reads it. A file that is not there is one without entries, as for Proxmox.
///
/// # Errors
/// A sentence, where a file is there and cannot be read.
pub fn cluster_text(root: &Root) -> Result<ClusterText, Unreadable> {
    let file = |path: &str| match root.bytes(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(Unreadable {
            what: format!("{path} cannot be read"),
            source,
            hint: Some(Cow::Borrowed("see 'systemctl status pve-cluster'")),
        }),
        Ok(bytes) => Ok(bytes),
    };
    // The node's name is the host's up to the first dot (pve-common, PVE/INotify.pm, nodename).
    let host = root.line("/proc/sys/kernel/hostname").unwrap_or_default();
    Ok(ClusterText {
        node: host.split('.').next().unwrap_or_default().to_owned(),
        mappings: file(&format!("{PVE}/mapping/pci.cfg"))?,
        reservations: file(RESERVATIONS)?,
        now: now_on(root),
    })
}

/// The reservations without the mappings, for when /etc/pve gives no answer: they are on a file system of the host's own.
pub fn reservations_alone(root: &Root) -> Cluster {
    Cluster {
        reservations: Reservations::parse(&root.bytes(RESERVATIONS).unwrap_or_default()),
        now: now_on(root),
        ..Cluster::default()
    }
}

/// The lock that Proxmox holds through a whole start or stop of a VM (pve-guest-common, AbstractConfig.pm, lock_config).
/// None where there is no file yet, which is not made.
///
/// # Errors
/// Those of opening it.
pub fn lock_file(root: &Root, vmid: VmId) -> io::Result<Option<File>> {
    match File::open(root.path(lock_path(vmid))) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Where that lock is.
pub fn lock_path(vmid: VmId) -> String {
    format!("/var/lock/qemu-server/lock-{vmid}.conf")
}

/// Whether somebody holds the lock. Ours, which finds out, is let go with the file.
pub fn is_held(lock: &File) -> bool {
    matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock))
}

/// Which processes have the lock: those that asked for it, and may have ended since (linux, fs/locks.c, lock_get_status;
/// a line of /proc/locks has the kind, the process, and the file by the numbers of its device and inode).
pub fn lock_holders(root: &Root, lock: &File) -> Vec<u32> {
    let Ok(meta) = lock.metadata() else {
        return Vec::new();
    };
    let (major, minor) = (nix::sys::stat::major(meta.dev()), nix::sys::stat::minor(meta.dev()));
    let file = format!("{major:02x}:{minor:02x}:{}", meta.ino());
    let locks = root.text("/proc/locks").unwrap_or_default();
    let pid = |line: &str| {
        // One that waits has an arrow before its kind.
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        match words.as_slice() {
            [_, "FLOCK", _, _, pid, id, ..] if *id == file => pid.parse().ok(),
            _ => None,
        }
    };
    locks.lines().filter_map(pid).collect()
}

/// What of a tree of files says who has which lock: a file of the tree is held by nobody.
const LOCKS: &str = "/locks.json";

/// Who has which lock.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Locks {
    /// The run that has the host-wide one, in its words.
    pub run: Option<String>,
    /// The processes that have a VM's, by VM; a VM that is not here is locked by nobody.
    pub vms: BTreeMap<VmId, Vec<u32>>,
}

impl Locks {
    /// Of a tree of files that says it.
    pub fn told(root: &Root) -> Option<Locks> {
        let text = (!root.is_real()).then(|| root.bytes(LOCKS).ok())??;
        json::from_slice(&text).ok()
    }

    /// Tells a tree that is made of this host.
    pub fn tell(&self, root: &Root) {
        root.tell(LOCKS, || serde_json::to_vec(self).unwrap_or_default());
    }
}

/// The processes that have a VM's lock; None: it is not held.
///
/// # Errors
/// Those of opening it.
pub fn vm_lock(root: &Root, vmid: VmId) -> io::Result<Option<Vec<u32>>> {
    if let Some(mut told) = Locks::told(root) {
        return Ok(told.vms.remove(&vmid));
    }
    let lock = lock_file(root, vmid)?.filter(is_held);
    Ok(lock.map(|lock| lock_holders(root, &lock)))
}

/// The VMs of this node.
///
/// # Errors
/// A sentence, where they cannot be listed.
fn vms(root: &Root) -> Result<Vec<VmId>, Unreadable> {
    let dir = format!("{PVE}/qemu-server");
    match root.names(&dir) {
        Ok(names) => Ok(names
            .iter()
            .filter_map(|n| n.strip_suffix(".conf")?.parse().ok())
            .collect()),
        Err(source) => Err(Unreadable {
            what: format!("{dir} cannot be read"),
            source,
            hint: Some("see 'systemctl status pve-cluster'".into()),
        }),
    }
}

/// Reads a VM's config as Proxmox will: from the source node's directory during an incoming migration, which
/// `migrated_from` (PVE_MIGRATED_FROM) names, from the local node's otherwise (qemu-server, QemuServer.pm,
/// vm_start).
///
/// # Errors
/// A sentence that names the file and what may be wrong.
pub fn vm_config_text(root: &Root, vmid: VmId, migrated_from: &str) -> Result<ConfigText, Unreadable> {
    let path = if is_node_name(migrated_from) {
        format!("{PVE}/nodes/{migrated_from}/qemu-server/{vmid}.conf")
    } else {
        format!("{PVE}/qemu-server/{vmid}.conf")
    };
    let bytes = root.bytes(&path).map_err(|e| {
        let hint = match e.kind() {
            io::ErrorKind::NotFound if root.names(PVE).is_ok_and(|names| names.is_empty()) => {
                "/etc/pve is empty or absent: is this a Proxmox VE host, and does pve-cluster.service run?"
            }
            io::ErrorKind::NotFound => "'qm list' shows the VMs of this node",
            _ => "see 'systemctl status pve-cluster'",
        };
        Unreadable {
            what: format!("the config of VM {vmid} cannot be read: {path}"),
            source: e,
            hint: Some(Cow::Borrowed(hint)),
        }
    })?;
    // What the generations differ in is about devices: of a VM that is given none, megabytes need not be read.
    let names_a_device = vm_config::names_a_device(&bytes);
    let status = names_a_device.then(|| root.text("/var/lib/dpkg/status").unwrap_or_default());
    Ok(ConfigText {
        path,
        bytes,
        generation: generation(&status.unwrap_or_default()),
        names_a_device,
    })
}

/// Whether this is the number of a container of this node: VMs and containers share the numbers.
fn is_container(root: &Root, vmid: VmId) -> bool {
    root.exists(container_path(vmid))
}

/// Where a container's config is.
pub fn container_path(ctid: VmId) -> String {
    format!("{PVE}/lxc/{ctid}.conf")
}

/// A node's name is a host name; anything else in the environment is not used as part of a path.
fn is_node_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// The generation of the installed qemu-server, from dpkg's status file. Where it is not installed, the later one:
/// its grammar is the wider one.
pub(crate) fn generation(status: &str) -> Generation {
    let version = || {
        let at = match status.starts_with(&PACKAGE[1..]) {
            true => 0,
            false => status.find(PACKAGE)? + 1,
        };
        let paragraph = status[at..].split("\n\n").next()?;
        paragraph.lines().find_map(|line| line.strip_prefix("Version: "))
    };
    let Some(version) = version() else {
        return Generation::Pve9;
    };
    let numbers: Vec<u32> = version
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|n| n.parse().ok())
        .collect();
    if numbers.as_slice() < KNOWS_AW_BITS.as_slice() {
        Generation::Pve8
    } else if numbers.as_slice() < KNOWS_DRIVER.as_slice() {
        Generation::Pve9Early
    } else {
        Generation::Pve9
    }
}

/// A line for each hostpci entry that Proxmox ignores too, so that nobody wonders where the card is.
pub fn ignored(config: &Config) -> Vec<String> {
    let of_hostpci = |key: &&str| key.starts_with("hostpci");
    let lines = config.config.ignored_lines.iter();
    lines
        .filter_map(|l| l.key.as_deref().filter(of_hostpci).map(|key| (l, key)))
        .map(|(l, key)| {
            format!(
                "{}:{}: {} is ignored, as Proxmox does: {}",
                config.path,
                l.line,
                foreign(key),
                l.reason
            )
        })
        .collect()
}

/// Major number of /dev/dri nodes (linux, include/drm/drm_drv.h, DRM_MAJOR); render nodes from minor 128 on.
const DRM_MAJOR: u32 = 226;

/// The containers of this node that are given a GPU when they run. Device numbers of NVIDIA's and of DRM's nodes are
/// fixed (195 and 226); others are given out when a module is loaded, and only a scan of who has them open tells.
///
/// # Errors
/// A sentence, where a config is there and cannot be read.
pub fn gpu_containers(root: &Root) -> Result<Vec<GpuContainer>, Unreadable> {
    let dir = format!("{PVE}/lxc");
    let unreadable = |path: &str, source: io::Error| Unreadable {
        what: format!("{path} cannot be read"),
        source,
        hint: None,
    };
    let mut found = Vec::new();
    for name in root.names(&dir).map_err(|e| unreadable(&dir, e))? {
        let Some(Ok(ctid)) = name.strip_suffix(".conf").map(str::parse::<VmId>) else {
            continue;
        };
        let path = format!("{dir}/{name}");
        let mut references = parse(&root.bytes(&path).map_err(|e| unreadable(&path, e))?);
        for include in references.clone() {
            if let GpuReference::Include { path } = include {
                references.extend(included(root, &path));
            }
        }
        references.retain(|r| match r {
            GpuReference::Allow { .. } => {
                r.allows(nvidia::MAJOR, 0) || r.allows(DRM_MAJOR, 0) || r.allows(DRM_MAJOR, 128)
            }
            GpuReference::Include { .. } => false,
            _ => true,
        });
        if !references.is_empty() {
            let lines = references.iter().map(|r| foreign(&r.to_string())).collect();
            let nodes = references.iter().filter_map(GpuReference::nvidia_node);
            let nodes = nodes.map(str::to_owned).collect();
            found.push(GpuContainer { ctid, lines, nodes });
        }
    }
    Ok(found)
}

/// The containers that run and are given nodes of GPUs, as far as their configs can be read.
fn running_containers(root: &Root) -> Vec<VmId> {
    let is_given = |ctid: &VmId| {
        let texts = container_texts(root, *ctid).unwrap_or_default();
        texts.iter().any(|(_, text)| !given_nodes(text).is_empty())
    };
    container_nodes::running(root).into_iter().filter(is_given).collect()
}

/// A container's config as it was read, and what it includes, each with its path.
///
/// # Errors
/// Where it cannot be read.
pub(crate) fn container_texts(root: &Root, ctid: VmId) -> Result<Vec<(String, Vec<u8>)>, Unreadable> {
    let path = container_path(ctid);
    let text = root.bytes(&path).map_err(|source| Unreadable {
        what: format!("{path} cannot be read"),
        source,
        hint: None,
    })?;
    let includes = parse(&text).into_iter().filter_map(|reference| match reference {
        GpuReference::Include { path } => Some(path),
        _ => None,
    });
    let included = includes
        .flat_map(|path| included_texts(root, &path))
        .collect::<Vec<_>>();
    Ok(std::iter::once((path, text)).chain(included).collect())
}

/// What an `lxc.include` brings in: a file, or all files of a folder that end in .conf (lxc.container.conf(5)). One
/// level: an include within it is not followed, and one that cannot be read keeps its container from starting.
fn included(root: &Root, path: &str) -> Vec<GpuReference> {
    included_texts(root, path)
        .iter()
        .flat_map(|(_, bytes)| parse(bytes))
        .collect()
}

fn included_texts(root: &Root, path: &str) -> Vec<(String, Vec<u8>)> {
    let files = match root.names(path) {
        Ok(names) => names
            .iter()
            .filter(|n| n.ends_with(".conf"))
            .map(|n| format!("{path}/{n}"))
            .collect(),
        Err(_) => vec![path.to_owned()],
    };
    let text = |file: String| Some((file.clone(), root.bytes(&file).ok()?));
    files.into_iter().filter_map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_installed_qemu_server_decides_the_generation() {
        for (version, expected) in [
            ("8.4.10", Generation::Pve8),
            ("9.0.20", Generation::Pve8),
            ("9.0.21", Generation::Pve9Early),
            ("9.0.24", Generation::Pve9Early),
            ("9.0.25", Generation::Pve9),
            ("9.2.6~rc1", Generation::Pve9),
            ("10.0.0", Generation::Pve9),
        ] {
            let status = format!(
                "Package: pve-manager\nVersion: 1.0\n\nPackage: qemu-server\nStatus: install ok installed\nVersion: \
                 {version}\n\nPackage: zlib1g\nVersion: 7\n"
            );
            assert_eq!(generation(&status), expected, "{version}");
        }
        assert_eq!(generation(""), Generation::Pve9);
    }

    #[test]
    fn the_source_nodes_file_is_read_during_a_migration() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path());
        for (path, text) in [
            ("etc/pve/qemu-server/111.conf", "hostpci0: 01:00\n"),
            ("etc/pve/nodes/pve2/qemu-server/111.conf", "hostpci0: 02:00\n"),
        ] {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let vmid = "111".parse().unwrap();
        for (from, host) in [("", "01:00"), ("pve2", "02:00"), ("../../pve2", "01:00")] {
            let read = vm_config_text(&root, vmid, from).unwrap().parse();
            assert_eq!(read.config.hostpci().next().unwrap().host, [host], "{from:?}");
        }
    }

    #[test]
    fn a_config_that_is_not_there_or_no_file_is_a_sentence() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path());
        let vmid = "111".parse().unwrap();
        let text = vm_config_text(&root, vmid, "").unwrap_err().to_string();
        assert!(text.contains("does pve-cluster.service run?"), "{text}");
        std::fs::create_dir_all(dir.path().join("etc/pve/qemu-server/111.conf")).unwrap();
        let text = vm_config_text(&root, vmid, "").unwrap_err().to_string();
        assert_eq!(
            text,
            "the config of VM 111 cannot be read: /etc/pve/qemu-server/111.conf: Is a directory (os error 21). Hint: \
             see 'systemctl status pve-cluster'"
        );
        let text = vm_config_text(&root, "112".parse().unwrap(), "")
            .unwrap_err()
            .to_string();
        assert!(text.ends_with("Hint: 'qm list' shows the VMs of this node"), "{text}");
    }

    #[test]
    fn containers_with_a_gpu_are_found_through_includes_too() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path());
        for (path, text) in [
            (
                "etc/pve/lxc/104.conf",
                "dev0: /dev/nvidia0\n[before]\ndev1: /dev/nvidia1\n",
            ),
            ("etc/pve/lxc/105.conf", "lxc.include: /etc/lxc/gpu.d\n"),
            (
                "etc/pve/lxc/106.conf",
                "lxc.cgroup2.devices.allow: c 10:200 rwm\nlxc.include: /nowhere\n",
            ),
            ("etc/lxc/gpu.d/nvidia.conf", "lxc.cgroup2.devices.allow = c 195:* rwm\n"),
            ("etc/lxc/gpu.d/readme", "lxc.mount.entry = /dev/nvidia9 x none bind\n"),
        ] {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let found = gpu_containers(&root).unwrap();
        let found: Vec<_> = found.iter().map(|c| (c.ctid.get(), c.lines.join("; "))).collect();
        assert_eq!(
            found,
            [
                (104, "dev0: /dev/nvidia0".to_owned()),
                (105, "devices.allow: c 195:*".to_owned())
            ]
        );
    }
}
