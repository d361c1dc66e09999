//! PCI functions as sysfs has them: ids, driver, group, what hangs together with them.
//!
//! Attributes of a function on which a call is stuck are left alone: reading some of them would wait for that call. What
//! the kernel may keep any reader waiting for is read only of functions that a request is about ([`Details`]).

use serde::{Deserialize, Serialize};

use crate::base::pci::{PciAddr, PciClass, VENDOR_NVIDIA, parse_sysfs_hex, parse_sysfs_hex64};
use crate::base::root::Root;

/// The driver that a guest's device is bound to.
pub const VFIO_PCI: &str = "vfio-pci";

/// One PCI function as sysfs shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Function {
    /// Its address.
    pub addr: PciAddr,
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Subsystem vendor and device id, where the device has them.
    pub subsystem: Option<(u16, u16)>,
    /// Class code.
    pub class: PciClass,
    /// The driver bound to it. None is no proof that an unbind has ended: the link goes first.
    pub driver: Option<String>,
    /// The module that driver belongs to; None for a built-in driver.
    pub module: Option<String>,
    /// Its details ([`Details`]) were read. Not so: `driver_override`, `vfs`, `gone` and `width` say nothing.
    pub asked: bool,
    /// `driver_override`; None for "(null)".
    pub driver_override: Option<String>,
    /// Number of its IOMMU group.
    pub group: Option<u32>,
    /// Whether it is a bridge to another bus (has `pci_bus`): never handed over, as Proxmox leaves it too.
    pub bridge: bool,
    /// It can have all below it reset (has `reset_subordinate`, linux 6.13 and later).
    #[serde(default)] // since a later version
    pub resets_below: bool,
    /// Functions this one consumes or supplies (power, audio): device links of the kernel.
    pub linked: Vec<PciAddr>,
    /// The function was known to be stuck and was not looked at beyond its name.
    pub stuck: bool,
    /// Types of classic mediated devices, where the function offers any (`mdev_supported_types`).
    pub mdev_types: Option<Vec<String>>,
    /// How many mediated devices it has: children named by a UUID.
    pub mdevs: usize,
    /// Numbers of NVIDIA vGPU types that can be created, where it offers them (`nvidia/creatable_vgpu_types`, kernel
    /// 6.8 and later).
    pub nvidia_vgpu: Option<Vec<u32>>,
    /// The physical function, if this is a virtual one.
    pub physfn: Option<PciAddr>,
    /// How many virtual functions it has now (`sriov_numvfs`).
    pub vfs: u32,
    /// Its group is one of VFIO's unsafe mode without an IOMMU (`iommu_group/name` is vfio-noiommu).
    pub noiommu: bool,
    /// The bridge it hangs below; None on a root bus.
    pub parent: Option<PciAddr>,
    /// It is the display the firmware booted with (`boot_vga`).
    pub boot_vga: bool,
    /// How it can be reset, in the kernel's order (`reset_method`, linux 5.15 and later); empty where it cannot.
    pub reset_methods: Vec<String>,
    /// `d3cold_allowed`: the platform may cut its power while it idles.
    pub d3cold: bool,
    /// `power/control`: "auto" (it may sleep) or "on".
    pub power_control: String,
    /// `power/runtime_status`, such as "active" or "suspended".
    pub power: String,
    /// Its config space reads all ones: it has fallen off the bus, or has no power.
    pub gone: bool,
    /// Lanes of its PCI Express link now.
    pub width: Option<u32>,
    /// Lanes that the card has.
    #[serde(default)] // since a later version
    pub max_width: Option<u32>,
    /// Speed of its link now, such as "16.0 GT/s PCIe"; empty where it does not say.
    #[serde(default)]
    pub speed: String,
    /// The most that the card can.
    #[serde(default)]
    pub max_speed: String,
    /// Start and end (inclusive) of its memory regions (`resource`).
    pub regions: Vec<(u64, u64)>,
    /// Its VFIO character devices (`vfio-dev`), such as vfio0, where it is on a VFIO driver and the kernel makes them.
    pub vfio_devices: Vec<String>,
}

impl Function {
    /// A function of which only its address, ids and class are known.
    pub fn new(addr: PciAddr, vendor: u16, device: u16, class: PciClass) -> Self {
        Function {
            addr,
            vendor,
            device,
            subsystem: None,
            class,
            driver: None,
            module: None,
            asked: false,
            driver_override: None,
            group: None,
            bridge: false,
            resets_below: false,
            linked: Vec::new(),
            stuck: false,
            mdev_types: None,
            mdevs: 0,
            nvidia_vgpu: None,
            physfn: None,
            vfs: 0,
            noiommu: false,
            parent: None,
            boot_vga: false,
            reset_methods: Vec::new(),
            d3cold: false,
            power_control: String::new(),
            power: String::new(),
            gone: false,
            width: None,
            max_width: None,
            speed: String::new(),
            max_speed: String::new(),
            regions: Vec::new(),
            vfio_devices: Vec::new(),
        }
    }

    /// It is bound to vfio-pci.
    pub fn is_on_vfio(&self) -> bool {
        self.driver.as_deref() == Some(VFIO_PCI)
    }

    /// It is bound to NVIDIA's driver.
    pub fn is_on_nvidia(&self) -> bool {
        self.driver.as_deref() == Some("nvidia")
    }

    /// An NVIDIA display controller: what makes a card ours.
    pub fn is_nvidia_gpu(&self) -> bool {
        self.vendor == VENDOR_NVIDIA && self.class.is_gpu()
    }
}

/// What the kernel may keep a reader waiting for. `driver_override` is read below the device's lock by some kernels (6.1,
/// measured), `sriov_numvfs` too (linux commit 35ff867b7657), and a reset holds that lock for as long as it waits for the
/// device, a minute and more (drivers/pci/pci.c, pci_dev_lock and pci_dev_wait). Config space is closed meanwhile, and a
/// device that sleeps is woken up for it (drivers/pci/access.c, pci_wait_cfg; pci-sysfs.c, pci_read_config); the width of
/// the link is read from there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Details {
    /// Whose they are.
    pub addr: PciAddr,
    /// As in [`Function`].
    pub driver_override: Option<String>,
    /// As in [`Function`].
    pub vfs: u32,
    /// As in [`Function`]; not looked at where it is none of NVIDIA's.
    pub gone: bool,
    /// As in [`Function`]; not looked at where it is none of NVIDIA's.
    pub width: Option<u32>,
    /// As there.
    pub max_width: Option<u32>,
    /// As there.
    pub speed: String,
    /// As there.
    pub max_speed: String,
}

/// Reads the details of these functions. What has gone meanwhile has none.
pub fn read_details(root: &Root, addrs: &[PciAddr]) -> Vec<Details> {
    addrs.iter().filter_map(|addr| details(root, *addr)).collect()
}

fn details(root: &Root, addr: PciAddr) -> Option<Details> {
    let dir = format!("/sys/bus/pci/devices/{addr}");
    let line = |name: &str| root.line(format!("{dir}/{name}"));
    let vendor = parse_sysfs_hex(&line("vendor")?)?;
    let mut details = Details {
        addr,
        driver_override: line("driver_override").filter(|t| !t.is_empty() && t != "(null)"),
        vfs: line("sriov_numvfs").and_then(|t| t.parse().ok()).unwrap_or(0),
        gone: false,
        width: None,
        max_width: None,
        speed: String::new(),
        max_speed: String::new(),
    };
    // What follows is of use for what is handed over.
    if vendor == u32::from(VENDOR_NVIDIA) {
        // The kernel remembers ids; only config space tells whether the device still answers.
        let config = root.bytes_up_to(format!("{dir}/config"), 4).unwrap_or_default();
        details.gone = config == [0xff; 4];
        details.width = line("current_link_width").and_then(|t| t.parse().ok());
        details.max_width = line("max_link_width").and_then(|t| t.parse().ok());
        details.speed = line("current_link_speed").unwrap_or_default();
        details.max_speed = line("max_link_speed").unwrap_or_default();
    }
    Some(details)
}

/// The USB controllers that cards have, among these functions.
pub(crate) fn usb_controllers(functions: &[Function]) -> impl Iterator<Item = PciAddr> {
    let is_one = |f: &&Function| f.vendor == VENDOR_NVIDIA && f.class.is_usb();
    functions.iter().filter(is_one).map(|f| f.addr)
}

/// Reads one function; None if it has gone meanwhile.
///
/// Of a stuck one only what is known to be read without its lock: ids, class and links.
pub(crate) fn read_function(root: &Root, addr: PciAddr, stuck: bool) -> Option<Function> {
    let dir = format!("/sys/bus/pci/devices/{addr}");
    let number = |name: &str| root.line(format!("{dir}/{name}")).and_then(|t| parse_sysfs_hex(&t));
    let id = |name: &str| number(name).and_then(|n| u16::try_from(n).ok());
    let names = root.names(&dir).ok()?;
    let group = root.link_name(format!("{dir}/iommu_group"));
    let mut function = Function {
        subsystem: id("subsystem_vendor").zip(id("subsystem_device")),
        driver: root.link_name(format!("{dir}/driver")),
        module: root.link_name(format!("{dir}/driver/module")),
        group: group.and_then(|n| n.parse().ok()),
        bridge: names.iter().any(|n| n == "pci_bus"),
        resets_below: names.iter().any(|n| n == "reset_subordinate"),
        mdevs: names.iter().filter(|n| is_uuid(n)).count(),
        linked: names.iter().filter_map(|n| linked(n)).collect(),
        stuck,
        noiommu: root.line(format!("{dir}/iommu_group/name")).as_deref() == Some("vfio-noiommu"),
        physfn: root.link_name(format!("{dir}/physfn")).and_then(|n| n.parse().ok()),
        parent: root.link_parent(&dir).and_then(|n| n.parse().ok()),
        vfio_devices: root.names(format!("{dir}/vfio-dev")).unwrap_or_default(),
        ..Function::new(addr, id("vendor")?, id("device")?, PciClass(number("class")?))
    };
    let has = |name: &str| names.iter().any(|n| n == name);
    if has("mdev_supported_types") {
        function.mdev_types = Some(root.names(format!("{dir}/mdev_supported_types")).unwrap_or_default());
    }
    if has("nvidia") {
        let types = root.text(format!("{dir}/nvidia/creatable_vgpu_types"));
        function.nvidia_vgpu = Some(vgpu_types(&types.unwrap_or_default()));
    }
    if !stuck {
        read_attributes(root, &dir, &mut function);
    }
    Some(function)
}

fn is_uuid(name: &str) -> bool {
    // In the tree of a report, where they are replaced.
    if name.starts_with("UUID-") {
        return true;
    }
    let lengths = name.split('-').map(str::len);
    lengths.eq([8, 4, 4, 4, 12]) && name.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit())
}

/// What the kernel knows without its device and without its lock (linux, drivers/pci/pci-sysfs.c and pci.c,
/// drivers/base/power/sysfs.c). Of a stuck one it is left alone all the same.
fn read_attributes(root: &Root, dir: &str, function: &mut Function) {
    let line = |name: &str| root.line(format!("{dir}/{name}"));
    function.power_control = line("power/control").unwrap_or_default();
    // What follows is of use for what is handed over.
    if function.vendor != VENDOR_NVIDIA {
        return;
    }
    function.boot_vga = line("boot_vga").as_deref() == Some("1");
    let methods = line("reset_method").unwrap_or_default();
    function.reset_methods = methods.split_ascii_whitespace().map(str::to_owned).collect();
    function.d3cold = line("d3cold_allowed").as_deref() == Some("1");
    function.power = line("power/runtime_status").unwrap_or_default();
    function.regions = read_regions(root, function.addr);
}

/// Its memory regions; the kernel tells them without its lock (linux, drivers/pci/pci-sysfs.c, resource_show).
pub(crate) fn read_regions(root: &Root, addr: PciAddr) -> Vec<(u64, u64)> {
    let text = root.text(format!("/sys/bus/pci/devices/{addr}/resource"));
    regions(&text.unwrap_or_default())
}

/// The other end of a device link, from a name such as `consumer:pci:0000:01:00.1` (linux,
/// Documentation/ABI/testing/sysfs-devices-consumer).
fn linked(name: &str) -> Option<PciAddr> {
    let addr = name
        .strip_prefix("consumer:pci:")
        .or_else(|| name.strip_prefix("supplier:pci:"));
    addr?.parse().ok()
}

/// Parses `resource`: a line `START END FLAGS` for each region, all zero where there is none (linux,
/// Documentation/PCI/sysfs-pci.rst). Only memory counts (IORESOURCE_MEM, 0x200).
fn regions(text: &str) -> Vec<(u64, u64)> {
    let region = |line: &str| {
        let mut fields = line.split_ascii_whitespace().map(parse_sysfs_hex64);
        let (start, end, flags) = (fields.next()??, fields.next()??, fields.next()??);
        (flags & 0x200 != 0 && end > start).then_some((start, end))
    };
    text.lines().filter_map(region).collect()
}

/// Parses `creatable_vgpu_types`: a header, then `NUMBER : NAME` lines (NVIDIA vGPU software documentation, "Creating
/// an NVIDIA vGPU on a Linux with KVM Hypervisor").
fn vgpu_types(text: &str) -> Vec<u32> {
    text.lines()
        .filter_map(|l| l.split_once(':')?.0.trim().parse().ok())
        .collect()
}
