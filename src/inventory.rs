//! The snapshot: everything the plan needs to know about the host, read in one pass.
//!
//! A snapshot is a value that does not change; the plan is made from it alone. Reading it can block in the
//! kernel where an unbind is stuck (on 6.1 even `driver_override`, measured), so a real run reads it in a
//! disposable worker with a deadline ([`crate::worker`]) and leaves out the attributes of devices known to be
//! stuck.

use std::io;

use serde::{Deserialize, Serialize};

use crate::base::pci::{PciAddr, PciClass, PciSlot, VENDOR_NVIDIA, parse_sysfs_hex, parse_sysfs_hex64};
use crate::base::process::{Process, start_time};
use crate::base::root::Root;
use crate::base::vmid::VmId;
use crate::display::{self, Console, Framebuffer};
use crate::driver::{self, NvidiaDriver, NvidiaGpu};
use crate::holders::{self, Holder};
use crate::loadable::{Loadable, Signatures};
use crate::usb::{self, InUse};

/// The driver that a guest's device is bound to.
pub const VFIO_PCI: &str = "vfio-pci";

/// The host as it was when it was looked at.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Snapshot {
    /// Every PCI function, sorted by address.
    pub functions: Vec<Function>,
    /// Loaded modules, from /proc/modules.
    pub modules: Vec<Module>,
    /// NVIDIA's kernel driver, where it is loaded.
    pub nvidia: Option<NvidiaDriver>,
    /// Processes that use a GPU, what is on the same card, or a VFIO node.
    pub holders: Vec<Holder>,
    /// Processes that are ending and may not have let go yet.
    pub ending: Vec<Holder>,
    /// Processes whose descriptors could not be read: what they hold is not known.
    pub unreadable: Vec<i32>,
    /// What the host uses below the USB controllers of cards.
    pub usb: Vec<InUse>,
    /// The VMs that run.
    pub vms: Vec<RunningVm>,
    /// Whether the kernel has an IOMMU in use (/sys/class/iommu is populated, as Proxmox asks).
    pub iommu: bool,
    /// Whether the driver vfio-pci is there to be bound to.
    pub vfio_pci: bool,
    /// The framebuffers, by number.
    pub framebuffers: Vec<Framebuffer>,
    /// The drivers of the virtual consoles, by number.
    pub consoles: Vec<Console>,
    /// Whether the kernel loads modules without a signature.
    pub signatures: Signatures,
    /// Serial consoles of the kernel, such as ttyS0: ways in that need no display.
    pub serial: Vec<String>,
    /// Of the modules that were asked about ([`crate::loadable`]): whether they can be loaded.
    pub loadable: Vec<Loadable>,
}

/// A VM that runs on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningVm {
    /// The VM.
    pub vmid: VmId,
    /// Its QEMU.
    pub process: Process,
}

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
    /// `driver_override`; None for "(null)".
    pub driver_override: Option<String>,
    /// Number of its IOMMU group.
    pub group: Option<u32>,
    /// Whether it is a bridge to another bus (has `pci_bus`): never handed over, as Proxmox leaves it too.
    pub bridge: bool,
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
    /// Start and end (inclusive) of its memory regions (`resource`).
    pub regions: Vec<(u64, u64)>,
    /// Its VFIO character devices (`vfio-dev`), such as vfio0, where it is on a VFIO driver and the kernel makes them.
    pub vfio_devices: Vec<String>,
}

/// A loaded module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Module {
    /// Name with underscores, as the kernel has it.
    pub name: String,
    /// Reference count, uses by other modules included. None where the kernel cannot unload modules.
    pub refs: Option<u32>,
    /// Modules that use it.
    pub users: Vec<String>,
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
            driver_override: None,
            group: None,
            bridge: false,
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

impl Snapshot {
    /// The function at an address.
    pub fn function(&self, addr: PciAddr) -> Option<&Function> {
        self.functions
            .binary_search_by_key(&addr, |f| f.addr)
            .ok()
            .map(|i| &self.functions[i])
    }

    /// The functions of a slot, in order.
    pub fn slot(&self, slot: PciSlot) -> impl Iterator<Item = &Function> {
        self.functions.iter().filter(move |f| f.addr.slot() == slot)
    }

    /// The non-bridge members of an IOMMU group, in order.
    pub fn group(&self, group: u32) -> impl Iterator<Item = &Function> {
        self.functions
            .iter()
            .filter(move |f| f.group == Some(group) && !f.bridge)
    }

    /// The NVIDIA GPUs' functions, in order; a virtual function is a part of one.
    pub fn gpus(&self) -> impl Iterator<Item = &Function> {
        self.functions
            .iter()
            .filter(|f| f.is_nvidia_gpu() && f.physfn.is_none())
    }

    /// What became different since an earlier look, in words: the drivers of these functions, and NVIDIA's modules. What
    /// is on vfio-pci now stands in nobody's way.
    pub fn changes_since(&self, before: &Snapshot, addrs: &[PciAddr]) -> Vec<String> {
        let driver = |s: &Snapshot, addr| match s.function(addr) {
            None => "gone".to_owned(),
            Some(f) => f.driver.clone().unwrap_or_else(|| "no driver".to_owned()),
        };
        let drivers = addrs.iter().filter_map(|addr| {
            let (was, is) = (driver(before, *addr), driver(self, *addr));
            (was != is && is != VFIO_PCI).then(|| format!("{addr}: {was} then, {is} now"))
        });
        let new = |m: &&Module| m.name.starts_with("nvidia") && before.module(&m.name).is_none();
        let modules = self.modules.iter().filter(new);
        drivers
            .chain(modules.map(|m| format!("{}: not loaded then", m.name)))
            .collect()
    }

    /// The USB controllers that cards have.
    pub fn usb_controllers(&self) -> impl Iterator<Item = PciAddr> {
        let is_one = |f: &&Function| f.vendor == VENDOR_NVIDIA && f.class.is_usb();
        self.functions.iter().filter(is_one).map(|f| f.addr)
    }

    /// A loaded module.
    pub fn module(&self, name: &str) -> Option<&Module> {
        self.modules.iter().find(|m| m.name == name)
    }

    /// What NVIDIA's driver says of a GPU.
    pub fn nvidia_gpu(&self, addr: PciAddr) -> Option<&NvidiaGpu> {
        self.nvidia.as_ref()?.gpus.iter().find(|g| g.addr == addr)
    }
}

/// Reads the snapshot. Attributes of the functions in `stuck` are not touched.
///
/// # Errors
/// Where /sys/bus/pci/devices or /proc cannot be listed. A single attribute that cannot be read is not an error:
/// devices come and go while we read.
pub fn read(root: &Root, stuck: &[PciAddr]) -> io::Result<Snapshot> {
    read_except(root, |addr| stuck.contains(&addr))
}

/// As [`read`], without the attributes that can block: enough to see who uses what, whatever is stuck.
///
/// # Errors
/// As [`read`].
pub fn read_uses(root: &Root) -> io::Result<Snapshot> {
    read_except(root, |_| true)
}

fn read_except(root: &Root, stuck: impl Fn(PciAddr) -> bool) -> io::Result<Snapshot> {
    let mut functions = Vec::new();
    for name in root.names("/sys/bus/pci/devices")? {
        let Ok(addr) = name.parse::<PciAddr>() else {
            continue;
        };
        if let Some(function) = read_function(root, addr, stuck(addr)) {
            functions.push(function);
        }
    }
    functions.sort_by_key(|f| f.addr);
    let modules = parse_modules(&root.text("/proc/modules").unwrap_or_default());
    let nvidia = driver::read(root)?;
    let mut snapshot = Snapshot {
        functions,
        modules,
        nvidia,
        vms: read_vms(root)?,
        iommu: !root.names("/sys/class/iommu")?.is_empty(),
        vfio_pci: root.exists("/sys/bus/pci/drivers/vfio-pci"),
        consoles: display::consoles(root)?,
        signatures: Signatures::read(root),
        serial: display::serial(root),
        ..Snapshot::default()
    };
    snapshot.framebuffers = display::framebuffers(root, &snapshot.functions);
    snapshot.usb = snapshot
        .usb_controllers()
        .flat_map(|addr| usb::in_use(root, addr))
        .collect();
    let nodes = holders::nodes(root, &snapshot)?;
    let scan = holders::scan(root, &nodes)?;
    snapshot.holders = scan.holders;
    snapshot.ending = scan.ending;
    snapshot.unreadable = scan.unreadable;
    Ok(snapshot)
}

/// Reads one function; None if it has gone meanwhile.
///
/// Of a stuck one only what is known to be read without its lock: ids, class and links.
fn read_function(root: &Root, addr: PciAddr, stuck: bool) -> Option<Function> {
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
    let lengths = name.split('-').map(str::len);
    lengths.eq([8, 4, 4, 4, 12]) && name.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit())
}

/// Attributes that can wait for the lock of a stuck device: on 6.1 even `driver_override` (measured), `sriov_numvfs`
/// on some kernels (linux commit 35ff867b7657).
fn read_attributes(root: &Root, dir: &str, function: &mut Function) {
    let line = |name: &str| root.line(format!("{dir}/{name}"));
    function.driver_override = line("driver_override").filter(|t| !t.is_empty() && t != "(null)");
    function.vfs = line("sriov_numvfs").and_then(|t| t.parse().ok()).unwrap_or(0);
    function.power_control = line("power/control").unwrap_or_default();
    // What follows is of use for what is handed over.
    if function.vendor != VENDOR_NVIDIA {
        return;
    }
    // The kernel remembers ids; only config space tells whether the device still answers.
    let config = root.bytes_up_to(format!("{dir}/config"), 4).unwrap_or_default();
    function.gone = config == [0xff; 4];
    function.width = line("current_link_width").and_then(|t| t.parse().ok());
    function.boot_vga = line("boot_vga").as_deref() == Some("1");
    let methods = line("reset_method").unwrap_or_default();
    function.reset_methods = methods.split_ascii_whitespace().map(str::to_owned).collect();
    function.d3cold = line("d3cold_allowed").as_deref() == Some("1");
    function.power = line("power/runtime_status").unwrap_or_default();
    function.regions = regions(&root.text(format!("{dir}/resource")).unwrap_or_default());
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

/// The VMs that run: a pidfile of qemu-server whose process is a QEMU with that pidfile in its command line and no
/// zombie (qemu-server, PVE/QemuServer/Helpers.pm, vm_running_locally).
fn read_vms(root: &Root) -> io::Result<Vec<RunningVm>> {
    let names = root.names("/run/qemu-server")?;
    let vmids = names.iter().filter_map(|name| name.strip_suffix(".pid")?.parse().ok());
    Ok(vmids.filter_map(|vmid| running_vm(root, vmid)).collect())
}

/// One VM, if it runs.
pub fn running_vm(root: &Root, vmid: VmId) -> Option<RunningVm> {
    let name = format!("{vmid}.pid");
    let pid = root
        .line(format!("/run/qemu-server/{name}"))?
        .trim()
        .parse::<u32>()
        .ok()?;
    let cmdline = root.text(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let is_ours = pid > 0 && is_qemu_with(&cmdline, &name);
    let stat = root.line(format!("/proc/{pid}/stat")).unwrap_or_default();
    let started = start_time(&stat).unwrap_or(0);
    is_ours.then_some(RunningVm {
        vmid,
        process: Process { pid, started },
    })
}

/// Whether a command line (words ended by NUL) is a QEMU's with `-pidfile .../VMID.pid`. A zombie has none.
fn is_qemu_with(cmdline: &str, pidfile: &str) -> bool {
    let words: Vec<&str> = cmdline.split('\0').collect();
    let program = words[0].rsplit('/').next().unwrap_or_default();
    let has_pidfile = words
        .windows(2)
        .any(|w| w[0].trim_start_matches('-') == "pidfile" && w[1].rsplit('/').next() == Some(pidfile));
    (program == "kvm" || program.starts_with("qemu-system")) && has_pidfile
}

/// Parses /proc/modules: name, size, references, users with a comma behind each, state, address.
fn parse_modules(text: &str) -> Vec<Module> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let name = fields.next()?.to_owned();
            let refs = fields.nth(1)?.parse().ok();
            let users = fields
                .next()?
                .split(',')
                .filter(|u| !u.is_empty() && *u != "-" && !u.starts_with('['))
                .map(str::to_owned)
                .collect();
            Some(Module { name, refs, users })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_with_and_without_users() {
        let text = "nvidia_uvm 1 0 - Live 0x0 (OE)\n\
                    nvidia 9 3 nvidia_uvm,nvidia_modeset, Live 0x0 (OE)\n\
                    odd 1 - [permanent], Live 0x0\n";
        let modules = parse_modules(text);
        assert_eq!(modules[0].refs, Some(0));
        assert!(modules[0].users.is_empty());
        assert_eq!(modules[1].users, ["nvidia_uvm", "nvidia_modeset"]);
        assert_eq!(modules[2].refs, None);
    }

    #[test]
    fn a_vm_runs_if_its_pidfile_is_in_the_command_line_of_a_qemu() {
        for (cmdline, runs) in [
            ("/usr/bin/kvm\0-pidfile\0/var/run/qemu-server/111.pid\0", true),
            (
                "/usr/bin/qemu-system-x86_64\0-pidfile\0/run/qemu-server/111.pid\0",
                true,
            ),
            ("/usr/bin/kvm\0-pidfile\0/run/qemu-server/112.pid\0", false),
            ("/usr/bin/vim\0-pidfile\0/run/qemu-server/111.pid\0", false),
            ("", false),
        ] {
            assert_eq!(is_qemu_with(cmdline, "111.pid"), runs, "{cmdline:?}");
        }
    }
}
