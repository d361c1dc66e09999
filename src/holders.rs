//! Who uses a GPU: every process with a descriptor or a mapping of one of its device nodes.
//!
//! Nodes are told by device number, not by path, so that a container's own nodes count too. What a process
//! does with the device is not looked at, and nothing is stopped here: holders are found and named.

use std::collections::{BTreeMap, HashSet};
use std::{fmt, io};

use rustix::fs::{AtFlags, CWD, FileType, StatxFlags, statx};
use serde::{Deserialize, Serialize};

use crate::base::pci::PciAddr;
use crate::base::process::{has_gone, is_ending};
use crate::base::root::Root;
use crate::inventory::Snapshot;
use crate::{driver, usb};

/// Minor of /dev/nvidiactl (NV_CONTROL_DEVICE_MINOR).
const CONTROL_MINOR: u64 = 255;
/// Minor of /dev/nvidia-modeset (NV_MODESET_DEVICE_MINOR).
const MODESET_MINOR: u64 = 254;

/// A kind of device node by which a process can hold a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Node {
    /// /dev/nvidiaN of this GPU.
    Gpu(PciAddr),
    /// /dev/nvidiaN whose N the driver's /proc files do not assign to a GPU.
    UnknownGpu(u32),
    /// /dev/nvidiactl: of all GPUs and none; a GPU can be attached through it.
    Control,
    /// /dev/nvidia-modeset.
    Modeset,
    /// /dev/nvidia-uvm and nvidia-uvm-tools: GPUs are registered through it.
    Uvm,
    /// A node below /dev/nvidia-caps.
    Caps,
    /// A node of an NVSwitch or of NVLink: the fabric manager's, and through it of every GPU behind.
    Switch,
    /// A DRM node of this function.
    Drm(PciAddr),
    /// An ALSA node of this function.
    Sound(PciAddr),
    /// An I2C bus of this function.
    I2c(PciAddr),
    /// A disk below this USB controller, or a partition of one.
    Disk(PciAddr),
    /// /dev/vfio/GROUP.
    VfioGroup(u32),
    /// /dev/vfio/devices/vfioN of this function.
    VfioDevice(PciAddr),
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Node::Gpu(addr) => write!(f, "the GPU node of {addr}"),
            Node::UnknownGpu(n) => write!(f, "/dev/nvidia{n}"),
            Node::Control => write!(f, "/dev/nvidiactl"),
            Node::Modeset => write!(f, "/dev/nvidia-modeset"),
            Node::Uvm => write!(f, "/dev/nvidia-uvm"),
            Node::Caps => write!(f, "/dev/nvidia-caps"),
            Node::Switch => write!(f, "an NVSwitch node"),
            Node::Drm(addr) => write!(f, "a DRM node of {addr}"),
            Node::Sound(addr) => write!(f, "a sound node of {addr}"),
            Node::I2c(addr) => write!(f, "an I2C bus of {addr}"),
            Node::Disk(addr) => write!(f, "a disk at {addr}"),
            Node::VfioGroup(group) => write!(f, "/dev/vfio/{group}"),
            Node::VfioDevice(addr) => write!(f, "the VFIO node of {addr}"),
        }
    }
}

/// A process that holds at least one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its process id in our pid namespace.
    pub pid: i32,
    /// Its name (/proc/PID/comm), as it chose it: foreign text.
    pub comm: String,
    /// What it belongs to, from its cgroup: "container 104", "VM 111", "x.service"; empty if unknown.
    pub belongs_to: String,
    /// The nodes it holds, sorted, each once.
    pub nodes: Vec<Node>,
}

/// What a scan of /proc found.
#[derive(Debug, Default)]
pub struct Scan {
    /// The holders, by pid.
    pub holders: Vec<Holder>,
    /// Processes that are ending: their descriptors are gone from sight while the kernel still closes them, which
    /// for a GPU or a VFIO group takes as long as a reset of the device. Without nodes, since none can be seen.
    pub ending: Vec<Holder>,
    /// Processes whose descriptors could not be read.
    pub unreadable: Vec<i32>,
}

/// Device numbers and what they stand for.
#[derive(Debug, Default)]
pub struct Nodes {
    exact: BTreeMap<(u64, u64), Node>,
    whole_major: BTreeMap<u64, Node>,
    /// Block devices have numbers of their own.
    disks: BTreeMap<(u64, u64), Node>,
}

impl Nodes {
    fn of(&self, major: u64, minor: u64) -> Option<Node> {
        if let Some(node) = self.exact.get(&(major, minor)) {
            return Some(*node);
        }
        if major == u64::from(driver::MAJOR) {
            return u32::try_from(minor).ok().map(Node::UnknownGpu);
        }
        self.whole_major.get(&major).copied()
    }
}

/// The device numbers by which the snapshot's GPUs, what is on their cards, and the VFIO groups can be held.
///
/// # Errors
/// Where a directory of sysfs that is there cannot be listed.
pub fn nodes(root: &Root, snapshot: &Snapshot) -> io::Result<Nodes> {
    let mut nodes = Nodes::default();
    nodes
        .exact
        .insert((u64::from(driver::MAJOR), CONTROL_MINOR), Node::Control);
    nodes
        .exact
        .insert((u64::from(driver::MAJOR), MODESET_MINOR), Node::Modeset);
    for gpu in snapshot.nvidia.iter().flat_map(|n| &n.gpus) {
        if let Some(minor) = gpu.minor {
            nodes
                .exact
                .insert((u64::from(driver::MAJOR), u64::from(minor)), Node::Gpu(gpu.addr));
        }
    }
    let devices = root.text("/proc/devices").unwrap_or_default();
    for (major, name) in character_majors(&devices) {
        match name {
            "nvidia-uvm" => nodes.whole_major.insert(major, Node::Uvm),
            "nvidia-caps" => nodes.whole_major.insert(major, Node::Caps),
            "nvidia-nvswitch" | "nvidia-nvlink" => nodes.whole_major.insert(major, Node::Switch),
            // misc devices (major 10) and others are found by their own `dev` files below.
            _ => None,
        };
    }
    for (name, node) in [("nvidia-uvm", Node::Uvm), ("nvidia-modeset", Node::Modeset)] {
        insert_dev(root, &mut nodes, &format!("/sys/class/misc/{name}/dev"), node);
    }
    for function in &snapshot.functions {
        let addr = function.addr;
        let dir = format!("/sys/bus/pci/devices/{addr}");
        for name in root.names(format!("{dir}/drm"))? {
            insert_dev(root, &mut nodes, &format!("{dir}/drm/{name}/dev"), Node::Drm(addr));
        }
        for card in root.names(format!("{dir}/sound"))? {
            for name in root.names(format!("{dir}/sound/{card}"))? {
                insert_dev(
                    root,
                    &mut nodes,
                    &format!("{dir}/sound/{card}/{name}/dev"),
                    Node::Sound(addr),
                );
            }
        }
        for name in root.names(format!("{dir}/vfio-dev"))? {
            insert_dev(
                root,
                &mut nodes,
                &format!("{dir}/vfio-dev/{name}/dev"),
                Node::VfioDevice(addr),
            );
        }
    }
    for name in root.names("/sys/class/vfio")? {
        if let Ok(group) = name.parse() {
            insert_dev(
                root,
                &mut nodes,
                &format!("/sys/class/vfio/{name}/dev"),
                Node::VfioGroup(group),
            );
        }
    }
    // Whoever has one open holds up the driver that made it (linux, drivers/i2c/i2c-core-base.c, i2c_del_adapter waits until
    // nobody refers to the bus).
    for name in root.names("/sys/class/i2c-dev")? {
        let dir = format!("/sys/class/i2c-dev/{name}");
        if let Some(addr) = above(root, &dir).filter(|a| snapshot.function(*a).is_some()) {
            insert_dev(root, &mut nodes, &format!("{dir}/dev"), Node::I2c(addr));
        }
    }
    for addr in snapshot.usb_controllers() {
        for disk in usb::attached(root, addr) {
            let number = disk.number.as_deref().and_then(device_number);
            nodes.disks.extend(number.map(|n| (n, Node::Disk(addr))));
        }
    }
    Ok(nodes)
}

/// The PCI function that a device of a class is below, nested as it may be.
fn above(root: &Root, link: &str) -> Option<PciAddr> {
    let target = std::fs::read_link(root.path(link)).ok()?;
    let names = target
        .components()
        .map(|c| c.as_os_str().to_string_lossy().parse().ok());
    names.flatten().last()
}

fn insert_dev(root: &Root, nodes: &mut Nodes, path: &str, node: Node) {
    let number = root.line(path);
    if let Some(number) = number.as_deref().and_then(device_number) {
        nodes.exact.insert(number, node);
    }
}

/// MAJOR:MINOR.
fn device_number(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The "Character devices:" part of /proc/devices: major and name.
fn character_majors(text: &str) -> impl Iterator<Item = (u64, &str)> {
    text.lines()
        .take_while(|l| !l.starts_with("Block"))
        .filter_map(|l| l.trim().split_once(' '))
        .filter_map(|(number, name)| Some((number.parse().ok()?, name.trim())))
}

/// Looks through every process.
///
/// A process that ends while it is read is no holder; one whose descriptors may not be read is reported as
/// unreadable.
///
/// # Errors
/// Where /proc itself cannot be listed.
pub fn scan(root: &Root, nodes: &Nodes) -> io::Result<Scan> {
    let mut scan = Scan::default();
    let mut other_files = HashSet::new();
    for name in root.names("/proc")? {
        let Ok(pid) = name.parse::<i32>() else {
            continue;
        };
        let holder = |nodes| Holder {
            pid,
            comm: root.line(format!("/proc/{pid}/comm")).unwrap_or_default(),
            belongs_to: belongs_to(&root.text(format!("/proc/{pid}/cgroup")).unwrap_or_default()),
            nodes,
        };
        match held_by_threads(root, pid, nodes, &mut other_files) {
            Ok(held) if held.is_empty() => {
                if is_ending(root, pid) {
                    scan.ending.push(holder(Vec::new()));
                }
            }
            Ok(held) => scan.holders.push(holder(held)),
            Err(e) if has_gone(&e) => {}
            Err(_) => scan.unreadable.push(pid),
        }
    }
    scan.holders.sort_by_key(|h| h.pid);
    Ok(scan)
}

/// The nodes a process holds. Its threads share one table of descriptors, which shows below the leader; where that
/// one has ended before the others, it shows below theirs alone.
fn held_by_threads(root: &Root, pid: i32, nodes: &Nodes, other_files: &mut HashSet<FileId>) -> io::Result<Vec<Node>> {
    let held = held_by(root, &format!("/proc/{pid}"), nodes, other_files)?;
    let state = || root.line(format!("/proc/{pid}/stat")).unwrap_or_default();
    if !held.is_empty() || !state().rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" Z")) {
        return Ok(held);
    }
    let mut all = Vec::new();
    for thread in root.names(format!("/proc/{pid}/task"))? {
        match held_by(root, &format!("/proc/{pid}/task/{thread}"), nodes, other_files) {
            Ok(held) => all.extend(held),
            Err(e) if has_gone(&e) => {}
            Err(e) => return Err(e),
        }
    }
    all.sort_unstable();
    all.dedup();
    Ok(all)
}

/// The nodes that one thread's table and memory show.
///
/// `other_files` remembers mapped files that are no device, so that the libraries that every process maps are looked
/// at once.
fn held_by(root: &Root, dir: &str, nodes: &Nodes, other_files: &mut HashSet<FileId>) -> io::Result<Vec<Node>> {
    let mut held = Vec::new();
    for entry in std::fs::read_dir(root.path(format!("{dir}/fd")))? {
        let path = entry?.path();
        let target = std::fs::read_link(&path);
        // Sockets, pipes and anonymous inodes have no path; only what has one can be a device node.
        if target.is_ok_and(|t| t.is_absolute()) {
            match look_at(&path) {
                Seen::Device(major, minor) => held.extend(nodes.of(major, minor)),
                Seen::Block(number) => held.extend(nodes.disks.get(&number)),
                Seen::NoDevice | Seen::Nothing => {}
            }
        }
    }
    let maps = root.bytes(format!("{dir}/maps"))?;
    for line in maps.split(|b| *b == b'\n') {
        // Only the path can be foreign text, and it is not used.
        let line = String::from_utf8_lossy(line);
        let Some((range, file)) = mapped_file(&line) else {
            continue;
        };
        if other_files.contains(&file) {
            continue;
        }
        match look_at(&root.path(format!("{dir}/map_files/{range}"))) {
            Seen::Device(major, minor) => held.extend(nodes.of(major, minor)),
            Seen::Block(number) => held.extend(nodes.disks.get(&number)),
            Seen::NoDevice => _ = other_files.insert(file),
            Seen::Nothing => {}
        }
    }
    held.sort_unstable();
    held.dedup();
    Ok(held)
}

/// What a link of /proc leads to.
enum Seen {
    /// A character device of this major and minor number.
    Device(u64, u64),
    /// A block device of this major and minor number.
    Block((u64, u64)),
    /// Something else.
    NoDevice,
    /// Nothing that can be told: it was closed meanwhile, or its file system does not answer to root (FUSE without
    /// allow_other, a dead network mount). Such file systems carry no usable device nodes.
    Nothing,
}

/// Without asking a server: what is cached tells a device node from a file, and a dead server answers never.
fn look_at(link: &std::path::Path) -> Seen {
    let seen = statx(CWD, link, AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE);
    let Ok(meta) = seen else { return Seen::Nothing };
    let (major, minor) = (u64::from(meta.stx_rdev_major), u64::from(meta.stx_rdev_minor));
    match FileType::from_raw_mode(u32::from(meta.stx_mode)) {
        FileType::CharacterDevice => Seen::Device(major, minor),
        FileType::BlockDevice => Seen::Block((major, minor)),
        _ => Seen::NoDevice,
    }
}

/// File system (major and minor) and inode: what tells one mapped file from another.
type FileId = (u32, u32, u64);

/// Address range and file of a line of /proc/PID/maps that maps one (proc(5)).
fn mapped_file(line: &str) -> Option<(&str, FileId)> {
    let mut fields = line.split_ascii_whitespace();
    let range = fields.next()?;
    let (major, minor) = fields.nth(2)?.split_once(':')?;
    let inode = fields.next()?.parse().ok().filter(|n| *n != 0)?;
    fields.next().filter(|path| path.starts_with('/'))?;
    let number = |text| u32::from_str_radix(text, 16).ok();
    Some((range, (number(major)?, number(minor)?, inode)))
}

/// What a process belongs to, from /proc/PID/cgroup.
///
/// Names as made by pve-container (`lxc/CTID`), qemu-server (`qemu.slice/VMID.scope`), systemd, Docker
/// (`docker-ID.scope`) and Podman (`libpod-ID.scope`).
pub fn belongs_to(cgroup: &str) -> String {
    let path = cgroup
        .lines()
        .find_map(|l| l.strip_prefix("0::"))
        .or_else(|| cgroup.lines().find_map(|l| l.splitn(3, ':').nth(2)))
        .unwrap_or_default();
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    let scope = |part: &'_ str| part.strip_suffix(".scope").map(str::to_owned);
    let mut found = String::new();
    for pair in parts.windows(2) {
        if pair[0] == "lxc" && pair[1].bytes().all(|b| b.is_ascii_digit()) {
            return format!("container {}", pair[1]);
        }
        if pair[0] == "qemu.slice"
            && let Some(vmid) = scope(pair[1])
        {
            return format!("VM {vmid}");
        }
    }
    for part in parts {
        if let Some(name) = scope(part) {
            let id = |id: &str| id.chars().take(12).collect::<String>();
            if let Some(docker) = name.strip_prefix("docker-") {
                return format!("Docker container {}", id(docker));
            }
            if let Some(podman) = name.strip_prefix("libpod-") {
                return format!("Podman container {}", id(podman));
            }
            if let Some(session) = name.strip_prefix("session-") {
                return format!("login session {session}");
            }
        }
        if part.ends_with(".service") {
            let of_user = found.starts_with("user");
            found = if of_user {
                format!("user service {part}")
            } else {
                part.to_owned()
            };
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroups_name_what_a_process_belongs_to() {
        for (cgroup, name) in [
            ("0::/lxc/104/ns/system.slice/ollama.service\n", "container 104"),
            ("0::/qemu.slice/111.scope\n", "VM 111"),
            (
                "0::/system.slice/nvidia-persistenced.service\n",
                "nvidia-persistenced.service",
            ),
            (
                "0::/system.slice/docker-0123456789abcdef0123.scope\n",
                "Docker container 0123456789ab",
            ),
            ("0::/machine.slice/libpod-abc.scope/container\n", "Podman container abc"),
            ("0::/user.slice/user-0.slice/session-3.scope\n", "login session 3"),
            (
                "0::/user.slice/user-1000.slice/user@1000.service/app.slice/pipewire.service\n",
                "user service pipewire.service",
            ),
            ("0::/\n", ""),
            ("", ""),
            ("12:pids:/lxc/7\n", "container 7"),
        ] {
            assert_eq!(belongs_to(cgroup), name, "{cgroup:?}");
        }
    }

    #[test]
    fn only_lines_with_a_file_are_mappings_of_one() {
        let line = "7f00-7f10 rw-s 00000000 00:05 123   /dev/nvidia0";
        assert_eq!(mapped_file(line), Some(("7f00-7f10", (0, 5, 123))));
        assert_eq!(mapped_file("7f00-7f10 rw-p 00000000 00:00 0"), None);
        assert_eq!(mapped_file("7f00-7f10 rw-p 00000000 00:00 0   [heap]"), None);
    }

    #[test]
    fn a_cards_i2c_buses_and_usb_disks_are_among_the_nodes() {
        let dir = tempfile::tempdir().unwrap();
        let card = "sys/devices/pci0000:00/0000:00:01.0/0000:01:00";
        for (path, number) in [
            (".0/i2c-3/i2c-dev/i2c-3/dev", "89:3\n"),
            (".0/drm/card0/card0-DP-1/i2c-7/i2c-dev/i2c-7/dev", "89:7\n"),
            (".2/usb3/3-1/3-1:1.0/host6/target6:0:0/6:0:0:0/block/sdb/dev", "8:16\n"),
        ] {
            let path = dir.path().join(format!("{card}{path}"));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, number).unwrap();
        }
        let link = |path: &str, target: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::os::unix::fs::symlink(target, path).unwrap();
        };
        let of = "../../devices/pci0000:00/0000:00:01.0/0000:01:00.0";
        link("sys/class/i2c-dev/i2c-3", &format!("{of}/i2c-3/i2c-dev/i2c-3"));
        link(
            "sys/class/i2c-dev/i2c-7",
            &format!("{of}/drm/card0/card0-DP-1/i2c-7/i2c-dev/i2c-7"),
        );
        link(
            "sys/class/i2c-dev/i2c-9",
            "../../devices/platform/x/i2c-9/i2c-dev/i2c-9",
        );
        link(
            "sys/bus/pci/devices/0000:01:00.2",
            "../../../devices/pci0000:00/0000:00:01.0/0000:01:00.2",
        );
        let function = |addr: &str, class: u32| {
            let addr = addr.parse().unwrap();
            crate::inventory::Function::new(addr, 0x10de, 0x1e07, crate::base::pci::PciClass(class))
        };
        let functions = vec![function("0000:01:00.0", 0x03_0000), function("0000:01:00.2", 0x0c_0330)];
        let [gpu, usb] = [functions[0].addr, functions[1].addr];
        let snapshot = Snapshot {
            functions,
            ..Snapshot::default()
        };
        let nodes = nodes(&Root::at(dir.path()), &snapshot).unwrap();
        assert_eq!(nodes.of(89, 3), Some(Node::I2c(gpu)));
        assert_eq!(nodes.of(89, 7), Some(Node::I2c(gpu)));
        assert_eq!(nodes.of(89, 9), None);
        assert_eq!(nodes.of(8, 16), None); // a character device of that number is no disk
        assert_eq!(nodes.disks.get(&(8, 16)), Some(&Node::Disk(usb)));
    }

    #[test]
    fn majors_stop_at_the_block_devices() {
        let text = "Character devices:\n  1 mem\n195 nvidia\n511 nvidia-uvm\n\nBlock devices:\n  8 sd\n";
        let found: Vec<_> = character_majors(text).collect();
        assert_eq!(found, [(1, "mem"), (195, "nvidia"), (511, "nvidia-uvm")]);
    }

    #[test]
    fn a_gpu_node_without_an_owner_is_still_a_gpu_node() {
        let nodes = Nodes::default();
        assert_eq!(nodes.of(195, 7), Some(Node::UnknownGpu(7)));
        assert_eq!(nodes.of(1, 3), None);
    }
}
