//! The device nodes of each GPU, by device number: what a process that uses it has open.

use std::collections::{BTreeMap, BTreeSet};
use std::{fmt, io};

use serde::{Deserialize, Serialize};

use crate::base::pci::PciAddr;
use crate::base::root::Root;
use crate::host::displays::Framebuffer;
use crate::host::functions::{Function, usb_controllers};
use crate::host::nvidia::{NvidiaGpu, character_majors};
use crate::host::{nvidia, usb};

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
    /// The firmware's framebuffer, /dev/fbN, in the memory of this function.
    Framebuffer(PciAddr),
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
            Node::Framebuffer(addr) => write!(f, "the firmware's framebuffer on {addr}"),
            Node::VfioGroup(group) => write!(f, "/dev/vfio/{group}"),
            Node::VfioDevice(addr) => write!(f, "the VFIO node of {addr}"),
        }
    }
}

impl Node {
    /// The function that it is of; None: of none alone.
    pub fn function(&self) -> Option<PciAddr> {
        match self {
            Node::Gpu(a)
            | Node::Drm(a)
            | Node::Sound(a)
            | Node::I2c(a)
            | Node::Disk(a)
            | Node::Framebuffer(a)
            | Node::VfioDevice(a) => Some(*a),
            Node::UnknownGpu(_)
            | Node::Control
            | Node::Modeset
            | Node::Uvm
            | Node::Caps
            | Node::Switch
            | Node::VfioGroup(_) => None,
        }
    }
}

/// Device numbers and what they stand for.
#[derive(Debug, Default)]
pub struct Nodes {
    pub(crate) exact: BTreeMap<(u64, u64), Node>,
    whole_major: BTreeMap<u64, Node>,
    /// Block devices have numbers of their own.
    pub(crate) disks: BTreeMap<(u64, u64), Node>,
    /// The drivers behind all of them count who has a node open or mapped, in whichever way.
    pub(crate) are_counted: bool,
}

impl Nodes {
    pub(crate) fn of(&self, major: u64, minor: u64) -> Option<Node> {
        if let Some(node) = self.exact.get(&(major, minor)) {
            return Some(*node);
        }
        if major == u64::from(nvidia::MAJOR) {
            return u32::try_from(minor).ok().map(Node::UnknownGpu);
        }
        self.whole_major.get(&major).copied()
    }
}

/// Numbers of device nodes that are kept shut while their device is handed over (`src/execute/gate.rs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Door {
    /// Of a block device; otherwise of a character device.
    pub(crate) block: bool,
    pub(crate) major: u32,
    /// None: all of the major number.
    pub(crate) minor: Option<u32>,
    /// It opens for reading alone: so the kernel can be asked whether a VFIO group is held. Whoever means to use one opens
    /// it for both.
    pub(crate) writers_only: bool,
}

impl Nodes {
    /// The doors to these functions and VFIO groups; with `whole`, also to NVIDIA's driver as such.
    pub(crate) fn doors(&self, addrs: &[PciAddr], groups: &BTreeSet<u32>, whole: bool) -> Vec<Door> {
        let is_meant = |node: &Node| match node {
            Node::VfioGroup(group) => groups.contains(group),
            node => node.function().map_or(whole, |addr| addrs.contains(&addr)),
        };
        let door = |node: &Node, block, major: u64, minor: Option<u64>| {
            Some(Door {
                block,
                major: u32::try_from(major).ok()?,
                minor: match minor {
                    Some(minor) => Some(u32::try_from(minor).ok()?),
                    None => None,
                },
                writers_only: matches!(node, Node::VfioGroup(_) | Node::VfioDevice(_)),
            })
        };
        let exact = self.exact.iter().filter(|(_, node)| is_meant(node));
        let disks = self.disks.iter().filter(|(_, node)| is_meant(node));
        let majors = self.whole_major.iter().filter(|(_, node)| is_meant(node));
        let mut doors: Vec<Door> = exact
            .filter_map(|((major, minor), node)| door(node, false, *major, Some(*minor)))
            .chain(disks.filter_map(|((major, minor), node)| door(node, true, *major, Some(*minor))))
            .chain(majors.filter_map(|(major, node)| door(node, false, *major, None)))
            .collect();
        if whole {
            // Those of GPUs whose number the driver does not tell are among them.
            doors.extend(door(&Node::Control, false, u64::from(nvidia::MAJOR), None));
        }
        doors.sort_unstable();
        doors
    }
}

/// The device numbers by which NVIDIA's GPUs, what is on the cards of these functions, and the VFIO groups can be held.
///
/// # Errors
/// Where a directory of sysfs that is there cannot be listed.
pub fn nodes(
    root: &Root,
    functions: &[Function],
    framebuffers: &[Framebuffer],
    gpus: &[NvidiaGpu],
) -> io::Result<Nodes> {
    let mut nodes = Nodes::default();
    nodes
        .exact
        .insert((u64::from(nvidia::MAJOR), CONTROL_MINOR), Node::Control);
    nodes
        .exact
        .insert((u64::from(nvidia::MAJOR), MODESET_MINOR), Node::Modeset);
    for gpu in gpus {
        if let Some(minor) = gpu.minor {
            nodes
                .exact
                .insert((u64::from(nvidia::MAJOR), u64::from(minor)), Node::Gpu(gpu.addr));
        }
    }
    let devices = root.text("/proc/devices").unwrap_or_default();
    for (major, name) in character_majors(&devices) {
        match name {
            "nvidia-uvm" => nodes.whole_major.insert(major, Node::Uvm),
            // Those of NVLink's memory export are files of the same module (open-gpu-kernel-modules, kernel-open:
            // nv-caps-imex.c).
            "nvidia-caps" | "nvidia-caps-imex-channels" => nodes.whole_major.insert(major, Node::Caps),
            "nvidia-nvswitch" | "nvidia-nvlink" => nodes.whole_major.insert(major, Node::Switch),
            // misc devices (major 10) and others are found by their own `dev` files below.
            _ => None,
        };
    }
    for (name, node) in [("nvidia-uvm", Node::Uvm), ("nvidia-modeset", Node::Modeset)] {
        insert_dev(root, &mut nodes, &format!("/sys/class/misc/{name}/dev"), node);
    }
    for function in functions {
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
        if let Some(addr) = above(root, &dir).filter(|a| functions.iter().any(|f| f.addr == *a)) {
            insert_dev(root, &mut nodes, &format!("{dir}/dev"), Node::I2c(addr));
        }
    }
    // What maps one has the card's memory, whatever becomes of the framebuffer. Those of a card's own driver are in its count.
    for framebuffer in framebuffers {
        if let Some(addr) = framebuffer.in_memory_of() {
            let path = format!("/sys/class/graphics/fb{}/dev", framebuffer.number);
            insert_dev(root, &mut nodes, &path, Node::Framebuffer(addr));
        }
    }
    for addr in usb_controllers(functions) {
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

#[cfg(test)]
mod tests {
    use super::*;

    use crate::host::displays::Platform;

    #[test]
    fn a_cards_i2c_buses_usb_disks_and_the_firmwares_framebuffer_are_among_the_nodes() {
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
            crate::host::functions::Function::new(addr, 0x10de, 0x1e07, crate::base::pci::PciClass(class))
        };
        let functions = vec![function("0000:01:00.0", 0x03_0000), function("0000:01:00.2", 0x0c_0330)];
        let [gpu, usb] = [functions[0].addr, functions[1].addr];
        // The firmware's on the card, another one's on its driver's, and one that is on no card.
        let framebuffer = |number: u32, name: &str, of: Option<PciAddr>, driver: Option<&str>| {
            let path = dir.path().join(format!("sys/class/graphics/fb{number}/dev"));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, format!("29:{number}\n")).unwrap();
            let platform = |driver: &str| Platform {
                device: format!("{driver}.0"),
                driver: driver.to_owned(),
            };
            Framebuffer {
                number,
                name: name.to_owned(),
                of,
                firmware: driver.map(platform),
            }
        };
        let framebuffers = [
            framebuffer(0, "EFI VGA", Some(gpu), Some("efi-framebuffer")),
            framebuffer(1, "nvidia-drmdrmfb", Some(gpu), None),
            framebuffer(2, "VESA VGA", None, Some("vesa-framebuffer")),
            framebuffer(3, "simpledrmdrmfb", Some(gpu), Some("simple-framebuffer")),
        ];
        let nodes = nodes(&Root::at(dir.path()), &functions, &framebuffers, &[]).unwrap();
        let found = [0, 1, 2, 3].map(|minor| nodes.of(29, minor));
        assert_eq!(found, [Some(Node::Framebuffer(gpu)), None, None, None]);
        let door = Door {
            block: false,
            major: 29,
            minor: Some(0),
            writers_only: false,
        };
        assert!(nodes.doors(&[gpu], &BTreeSet::new(), false).contains(&door));
        assert!(!nodes.doors(&[usb], &BTreeSet::new(), true).contains(&door));
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
    fn what_the_driver_registers_by_name_is_told_by_its_major() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("proc")).unwrap();
        let devices = "Character devices:\n234 nvidia-caps-imex-channels\n235 nvidia-nvswitch\n236 nvidia-nvlink\n\
                       237 nvidia-caps\n511 nvidia-uvm\n512 nvidia-caps-of-tomorrow\n";
        std::fs::write(dir.path().join("proc/devices"), devices).unwrap();
        let nodes = nodes(&Root::at(dir.path()), &[], &[], &[]).unwrap();
        let of = [234, 235, 236, 237, 511, 512].map(|major| nodes.of(major, 2048));
        let (caps, switch) = (Some(Node::Caps), Some(Node::Switch));
        assert_eq!(of, [caps, switch, switch, caps, Some(Node::Uvm), None]);
    }

    #[test]
    fn a_gpu_node_without_an_owner_is_still_a_gpu_node() {
        let nodes = Nodes::default();
        assert_eq!(nodes.of(195, 7), Some(Node::UnknownGpu(7)));
        assert_eq!(nodes.of(1, 3), None);
    }
}
