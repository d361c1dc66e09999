//! The snapshot: everything the plan needs to know about the host, read in one pass.
//!
//! A snapshot is a value that does not change; the plan is made from it alone. Reading it can block in the
//! kernel where an unbind is stuck (on 6.1 even `driver_override`, measured), so a real run reads it in a
//! disposable worker with a deadline ([`crate::execute::worker`]) and leaves out the attributes of devices known to be
//! stuck. What may be held up by any device is not in it before it was asked for ([`crate::host::functions::Details`]).

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::base::json;
use crate::base::pci::{PciAddr, PciSlot, VENDOR_NVIDIA, parse_sysfs_hex};
use crate::base::process::ancestors;
use crate::base::root::Root;
use crate::base::sets::{IntoSet as _, in_order};
use crate::base::vmid::VmId;
use crate::host::belongs::Belongs;
use crate::host::desktop::Desktop;
use crate::host::displays::{self, Console, Framebuffer};
use crate::host::functions::{Details, Function, VFIO_PCI, read_function, usb_controllers};
use crate::host::holders::{self, Holder, Unseen};
use crate::host::modules::{Loadable, Module, Signatures, beside_modules, parse_modules, vfio_is_idle};
use crate::host::nodes::{self, Node};
use crate::host::nvidia::{self, NvidiaDriver, NvidiaGpu};
use crate::host::stuck_calls::{self, StuckCall};
use crate::host::units::{Facts, Unit};
use crate::host::usb::{self, InUse};
use crate::host::vms::{RunningVm, read_vms};

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
    /// Processes of which not all could be seen.
    pub unseen: Vec<Unseen>,
    /// How many descriptors of each node all processes together have.
    pub open: Vec<(Node, u32)>,
    /// Calls of others that hold the lock of a function, as far as can be told: what they may be at is left alone.
    #[serde(default)]
    pub calls: Vec<StuckCall>,
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
    /// Of the modules that were asked about ([`crate::host::modules`]): whether they can be loaded.
    pub loadable: Vec<Loadable>,
    /// Of the units that were asked about ([`crate::host::units`]): what systemd says.
    #[serde(default)]
    pub units: Vec<Facts>,
    /// The containers that run and are given nodes of GPUs, where that was asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<VmId>,
    /// The display manager, where there is one.
    #[serde(default)]
    pub desktop: Option<Desktop>,
    /// This run and those that it was started from, the nearest first.
    #[serde(default)]
    pub callers: Vec<i32>,
    /// What these belong to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub called_from: Vec<Belongs>,
}

impl Snapshot {
    /// The function at an address.
    pub fn function(&self, addr: PciAddr) -> Option<&Function> {
        self.functions
            .binary_search_by_key(&addr, |f| f.addr)
            .ok()
            .map(|i| &self.functions[i])
    }

    /// Completes these functions with their details; one that has none has gone meanwhile.
    pub fn complete(&mut self, addrs: &[PciAddr], details: Vec<Details>) {
        let gone = |addr: &PciAddr| addrs.contains(addr) && details.iter().all(|d| d.addr != *addr);
        self.functions.retain(|f| !gone(&f.addr));
        for one in details {
            let Some(function) = self.functions.iter_mut().find(|f| f.addr == one.addr) else {
                continue;
            };
            (function.driver_override, function.vfs) = (one.driver_override, one.vfs);
            (function.gone, function.width) = (one.gone, one.width);
            (function.max_width, function.speed, function.max_speed) = (one.max_width, one.speed, one.max_speed);
            function.asked = true;
        }
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
        usb_controllers(&self.functions)
    }

    /// A loaded module.
    pub fn module(&self, name: &str) -> Option<&Module> {
        self.modules.iter().find(|m| m.name == name)
    }

    /// Modules that use NVIDIA's driver and are none of its own, such as GPUDirect's (nvidia_peermem, gdrdrv, nvidia_fs): who has
    /// memory of a GPU pinned by one is in that one's count alone.
    pub(crate) fn others_above_nvidia(&self) -> impl Iterator<Item = &str> {
        const ITS_OWN: [&str; 3] = ["nvidia_uvm", "nvidia_modeset", "nvidia_drm"];
        let above = self.module("nvidia").into_iter().flat_map(|nvidia| &nvidia.users);
        above.map(String::as_str).filter(|name| !ITS_OWN.contains(name))
    }

    /// What systemd says of a unit, where it was asked.
    pub fn facts(&self, unit: &Unit) -> Option<&Facts> {
        self.units.iter().find(|f| f.unit == *unit)
    }

    /// The version of NVIDIA's driver; empty where it is not loaded, or does not say.
    pub fn nvidia_version(&self) -> &str {
        self.nvidia.as_ref().map_or("", |driver| driver.version.as_str())
    }

    /// The calls that may be at a function.
    pub fn calls_at(&self, addr: PciAddr) -> impl Iterator<Item = &StuckCall> {
        self.calls.iter().filter(move |c| c.at.contains(&addr))
    }

    /// What NVIDIA's driver says of a GPU.
    pub fn nvidia_gpu(&self, addr: PciAddr) -> Option<&NvidiaGpu> {
        self.nvidia.as_ref()?.gpus.iter().find(|g| g.addr == addr)
    }
}

/// Reads the snapshot, without details. Attributes of the functions in `stuck`, and of those that a call of somebody else's
/// may be at, are not touched.
///
/// # Errors
/// Where /sys/bus/pci/devices or /proc cannot be listed. A single attribute that cannot be read is not an error:
/// devices come and go while we read.
pub fn read(root: &Root, stuck: &[PciAddr]) -> io::Result<Snapshot> {
    let told = Told::of(root);
    // Before any attribute of what they are at.
    let calls = match &told {
        Some(told) => told.calls.clone(),
        None => stuck_calls::scan(root)?,
    };
    let is_at = |addr| calls.iter().any(|c| c.at.contains(&addr));
    let mut snapshot = read_except(root, &|addr| stuck.contains(&addr) || is_at(addr))?;
    snapshot.calls = calls;
    match told {
        Some(told) => told.put_into(&mut snapshot),
        None => root.tell(TOLD, || serde_json::to_vec(&Told::from(&snapshot)).unwrap_or_default()),
    }
    Ok(snapshot)
}

/// What of a tree of files says what processes do.
const TOLD: &str = "/processes.json";

/// What processes do, which a tree of files cannot show: as it was seen on the host that the tree is of.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Told {
    holders: Vec<Holder>,
    ending: Vec<Holder>,
    unseen: Vec<Unseen>,
    open: Vec<(Node, u32)>,
    calls: Vec<StuckCall>,
    usb: Vec<InUse>,
    vms: Vec<RunningVm>,
    desktop: Option<Desktop>,
    callers: Vec<i32>,
    #[serde(default)]
    called_from: Vec<Belongs>,
}

impl Told {
    /// None: the host itself can be asked, or the tree does not say.
    fn of(root: &Root) -> Option<Told> {
        let text = (!root.is_real()).then(|| root.bytes(TOLD).ok())??;
        json::from_slice(&text).ok()
    }

    fn from(snapshot: &Snapshot) -> Told {
        let snapshot = snapshot.clone();
        Told {
            holders: snapshot.holders,
            ending: snapshot.ending,
            unseen: snapshot.unseen,
            open: snapshot.open,
            calls: snapshot.calls,
            usb: snapshot.usb,
            vms: snapshot.vms,
            desktop: snapshot.desktop,
            callers: snapshot.callers,
            called_from: snapshot.called_from,
        }
    }

    fn put_into(self, snapshot: &mut Snapshot) {
        snapshot.holders = self.holders;
        snapshot.ending = self.ending;
        snapshot.unseen = self.unseen;
        snapshot.open = self.open;
        snapshot.usb = self.usb;
        snapshot.vms = self.vms;
        snapshot.desktop = self.desktop;
        snapshot.callers = self.callers;
        snapshot.called_from = self.called_from;
    }
}

/// Who uses what, and no more of the host than that depends on: as [`read`], without the attributes that can block, so that it
/// is seen whatever is stuck.
///
/// # Errors
/// As [`read`].
pub fn read_uses(root: &Root) -> io::Result<Snapshot> {
    let mut snapshot = read_devices(root, &|_| true, &|_| true)?;
    read_users(root, &mut snapshot)?;
    Ok(snapshot)
}

/// The same of these functions: what else a holder has is shown as far as it counts for them, so that nothing is to be made of
/// what it has not.
///
/// # Errors
/// As [`read`].
pub fn read_uses_of(root: &Root, addrs: &[PciAddr]) -> io::Result<Snapshot> {
    let mut snapshot = read_devices(root, &|addr| addrs.contains(&addr) || counts(root, addr), &|_| true)?;
    read_users(root, &mut snapshot)?;
    Ok(snapshot)
}

/// The drivers of GPUs and of what is on their cards whose modules count who uses any device of theirs.
pub(crate) const COUNTED: [&str; 3] = ["nvidia", "snd_hda_intel", "nvidia-gpu"];

/// Whether who uses a function counts for others too: all of NVIDIA's, and what has a driver whose count is of all its devices
/// together, such as the host's own sound.
fn counts(root: &Root, addr: PciAddr) -> bool {
    let dir = format!("/sys/bus/pci/devices/{addr}");
    let driver = root.link_name(format!("{dir}/driver"));
    if driver.is_some_and(|driver| COUNTED.contains(&driver.as_str())) {
        return true;
    }
    let vendor = root.line(format!("{dir}/vendor"));
    vendor.and_then(|t| parse_sysfs_hex(&t)) == Some(u32::from(VENDOR_NVIDIA))
}

/// Whether the drivers of all of NVIDIA's functions count their users, and the kernel says so: VFIO's groups by themselves.
fn are_counted(snapshot: &Snapshot) -> bool {
    const BESIDE: [&str; 2] = [VFIO_PCI, "xhci_hcd"];
    let counts = |f: &Function| {
        let is_in = |driver: &str| COUNTED.contains(&driver) || BESIDE.contains(&driver);
        f.driver.as_deref().is_none_or(is_in)
    };
    let of_nvidia = |f: &&Function| f.vendor == VENDOR_NVIDIA;
    snapshot.modules.iter().all(|module| module.refs.is_some())
        && snapshot.functions.iter().filter(of_nvidia).all(counts)
}

/// The modules of these drivers, and those above NVIDIA's, which count who has a node of theirs open or mapped.
const COUNTING: [&str; 6] = [
    "nvidia",
    "nvidia_uvm",
    "nvidia_modeset",
    "nvidia_drm",
    "snd_hda_intel",
    "i2c_nvidia_gpu",
];

/// Whether nobody has anything of NVIDIA's functions, by the kernel's counts alone: each has a driver that counts, in no count is
/// anything but other modules, and of VFIO nobody has anything, or no group of its has any of them: one is there until the last of
/// its users has let go (linux, drivers/vfio/group.c, vfio_device_remove_group), longer than the driver's link.
fn nobody_has_any(root: &Root, snapshot: &Snapshot) -> bool {
    let of_nvidia = || snapshot.functions.iter().filter(|f| f.vendor == VENDOR_NVIDIA);
    let of_modules_alone = |module: &Module| beside_modules(&snapshot.modules, module) == Some(0);
    // A driver that is a part of the kernel has no module, and counts nobody.
    let is_idle = |name: &str| snapshot.module(name).is_some_and(of_modules_alone);
    let has_idle_driver = |f: &Function| match f.driver.as_deref() {
        Some("nvidia-gpu") => is_idle("i2c_nvidia_gpu"),
        Some(driver @ ("nvidia" | "snd_hda_intel")) => is_idle(driver),
        _ => true,
    };
    let is_counting =
        |name: &str| COUNTING.contains(&name) || snapshot.others_above_nvidia().any(|other| other == name);
    let mut counting = snapshot.modules.iter().filter(|m| is_counting(&m.name));
    let has_group = |groups: &[String]| {
        of_nvidia().any(|f| {
            let is_there = |group: u32| groups.contains(&group.to_string());
            f.noiommu || !f.vfio_devices.is_empty() || f.group.is_some_and(is_there)
        })
    };
    are_counted(snapshot)
        && of_nvidia().all(has_idle_driver)
        && counting.all(of_modules_alone)
        && (vfio_is_idle(&snapshot.modules) || root.names("/sys/class/vfio").is_ok_and(|groups| !has_group(&groups)))
}

fn read_except(root: &Root, stuck: &dyn Fn(PciAddr) -> bool) -> io::Result<Snapshot> {
    let mut snapshot = read_devices(root, &|_| true, stuck)?;
    snapshot.iommu = !root.names("/sys/class/iommu")?.is_empty();
    snapshot.vfio_pci = root.exists("/sys/bus/pci/drivers/vfio-pci");
    snapshot.consoles = displays::consoles(root)?;
    snapshot.signatures = Signatures::read(root);
    snapshot.serial = displays::serial(root);
    snapshot.vms = read_vms(root)?;
    read_users(root, &mut snapshot)?;
    snapshot.desktop = Desktop::read(root);
    let callers = ancestors(root, std::process::id());
    snapshot.callers = callers.into_iter().filter_map(|pid| i32::try_from(pid).ok()).collect();
    for belongs_to in snapshot.callers.iter().map(|pid| Belongs::of(root, *pid)) {
        if !snapshot.called_from.contains(&belongs_to) {
            snapshot.called_from.push(belongs_to);
        }
    }
    Ok(snapshot)
}

/// The list of modules; a kernel without modules has none.
fn modules_of(root: &Root) -> io::Result<String> {
    match root.text("/proc/modules") {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        text => text,
    }
}

/// The functions that are wanted, the modules, and what NVIDIA's driver says.
fn read_devices(
    root: &Root,
    is_wanted: &dyn Fn(PciAddr) -> bool,
    stuck: &dyn Fn(PciAddr) -> bool,
) -> io::Result<Snapshot> {
    let mut functions = Vec::new();
    for name in root.names("/sys/bus/pci/devices")? {
        let Some(addr) = name.parse::<PciAddr>().ok().filter(|addr| is_wanted(*addr)) else {
            continue;
        };
        if let Some(function) = read_function(root, addr, stuck(addr)) {
            functions.push(function);
        }
    }
    Ok(Snapshot {
        functions: in_order(functions.into_iter(), |f: &Function| f.addr),
        modules: parse_modules(&modules_of(root)?),
        nvidia: nvidia::read(root)?,
        ..Snapshot::default()
    })
}

/// Who uses the functions that were read. Where the kernel's own counts say that nobody does, nobody is looked for: what a process
/// has is in them, whatever it has it by.
fn read_users(root: &Root, snapshot: &mut Snapshot) -> io::Result<()> {
    snapshot.usb = snapshot
        .usb_controllers()
        .flat_map(|addr| usb::in_use(root, addr))
        .collect();
    // Who has a disk open that hangs below a card is in no count.
    let has_disks = snapshot
        .usb_controllers()
        .flat_map(|addr| usb::attached(root, addr))
        .any(|one| one.number.is_some());
    // Nor who has the firmware's framebuffer, which is memory of a card.
    snapshot.framebuffers = displays::framebuffers(root, &snapshot.functions);
    let is_memory = |fb: &Framebuffer| fb.in_memory_of().is_some();
    let has_memory = snapshot.framebuffers.iter().any(is_memory);
    if !has_disks && !has_memory && nobody_has_any(root, snapshot) {
        return Ok(());
    }
    let gpus = snapshot.nvidia.as_ref().map_or(&[][..], |n| &n.gpus);
    let mut nodes = nodes::nodes(root, &snapshot.functions, &snapshot.framebuffers, gpus)?;
    nodes.are_counted = are_counted(snapshot);
    let scan = holders::scan(root, &Arc::new(nodes))?;
    snapshot.holders = scan.holders;
    if !snapshot.holders.is_empty() && snapshot.vms.is_empty() {
        snapshot.vms = read_vms(root)?;
    }
    // A QEMU that somebody has started by hand is where he was, and that VM's all the same.
    for holder in &mut snapshot.holders {
        let is_its = |vm: &&RunningVm| i32::try_from(vm.process.pid) == Ok(holder.pid);
        if let Some(vm) = snapshot.vms.iter().find(is_its) {
            holder.belongs_to = Belongs::Vm(vm.vmid);
        }
    }
    snapshot.ending = scan.ending;
    snapshot.unseen = scan.unseen;
    snapshot.open = scan.open.into_iter().collect();
    // What was opened or closed in the middle of the look is no reference that nobody has.
    let now = parse_modules(&modules_of(root)?);
    for module in &mut snapshot.modules {
        let refs = now.iter().find(|m| m.name == module.name).and_then(|m| m.refs);
        module.refs = module.refs.min(refs);
    }
    Ok(())
}

pub(crate) fn is_on_vfio(snapshot: &Snapshot, addr: PciAddr) -> bool {
    snapshot.function(addr).is_some_and(Function::is_on_vfio)
}

/// The functions that move with a GPU: its slot, what the kernel links to it, and no bridge.
pub fn card(snapshot: &Snapshot, gpu: PciAddr) -> BTreeSet<PciAddr> {
    let mut card: BTreeSet<PciAddr> = snapshot
        .slot(gpu.slot())
        .filter(|f| !f.bridge && (f.physfn.is_none() || f.addr == gpu))
        .map(|f| f.addr)
        .into_set();
    // A virtual function is a part of a card: alone, and refused.
    if snapshot.function(gpu).is_some_and(|f| f.physfn.is_some()) {
        return [gpu].into_iter().into_set();
    }
    let linked = snapshot.function(gpu).into_iter().flat_map(|f| &f.linked);
    card.extend(linked.filter(|a| snapshot.function(**a).is_some_and(|f| !f.bridge)));
    card
}

/// A module and everything that uses it, users first: the order in which the kernel lets them be unloaded.
pub(crate) fn users_first(snapshot: &Snapshot, name: &str) -> Vec<String> {
    fn visit(snapshot: &Snapshot, name: &str, order: &mut Vec<String>) {
        let Some(module) = snapshot.module(name) else {
            return;
        };
        for user in &module.users {
            visit(snapshot, user, order);
        }
        if !order.iter().any(|n| n == name) {
            order.push(name.to_owned());
        }
    }
    let mut order = Vec::new();
    visit(snapshot, name, &mut order);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::fs;
    use std::path::Path;
    use std::sync::mpsc;
    use std::time::Duration;

    use nix::sys::stat::Mode;

    use crate::base::text::join;
    use crate::host::functions::read_details;

    /// Two cards of one function each.
    fn two_cards(dir: &Path) -> [PciAddr; 2] {
        ["0000:01:00.0", "0000:02:00.0"].map(|addr| {
            let function = dir.join("sys/bus/pci/devices").join(addr);
            fs::create_dir_all(&function).unwrap();
            for (name, text) in [
                ("vendor", "0x10de\n"),
                ("device", "0x2204\n"),
                ("class", "0x030000\n"),
                ("driver_override", "(null)\n"),
                ("sriov_numvfs", "0\n"),
                ("config", "\u{de}\u{10}"),
                ("current_link_width", "16\n"),
            ] {
                fs::write(function.join(name), text).unwrap();
            }
            addr.parse().unwrap()
        })
    }

    /// What comes of it, or None where it waits for a pipe that nobody writes to, as it would for a lock.
    fn in_time<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || sender.send(work()));
        receiver.recv_timeout(Duration::from_secs(5)).ok()
    }

    #[test]
    fn an_attribute_that_gives_no_answer_holds_up_nobody_who_asks_for_another_card() {
        for name in ["driver_override", "sriov_numvfs", "config", "current_link_width"] {
            let dir = tempfile::tempdir().unwrap();
            let [asked, other] = two_cards(dir.path());
            let silent = dir.path().join(format!("sys/bus/pci/devices/{other}")).join(name);
            fs::remove_file(&silent).unwrap();
            nix::unistd::mkfifo(&silent, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
            let root = Root::at(dir.path());
            let looked = in_time(move || {
                let mut snapshot = read(&root, &[]).unwrap();
                snapshot.complete(&[asked], read_details(&root, &[asked]));
                snapshot
            });
            let snapshot = looked.unwrap_or_else(|| panic!("{name} of another card holds it up"));
            let read = |addr| snapshot.function(addr).map(|f| (f.asked, f.width));
            assert_eq!(read(asked), Some((true, Some(16))), "{name}");
            assert_eq!(read(other), Some((false, None)), "{name}");
            // The pipe does hold up who reads it.
            let root = Root::at(dir.path());
            let waited = in_time(move || read_details(&root, &[other]));
            assert_eq!(waited, None, "{name}");
            drop(fs::OpenOptions::new().write(true).open(&silent).unwrap());
        }
    }

    /// The host's own sound has the driver whose count is of both.
    #[test]
    fn a_look_at_who_uses_a_card_leaves_out_what_nothing_of_it_depends_on() {
        let dir = tempfile::tempdir().unwrap();
        for (addr, vendor, driver) in [
            ("0000:00:02.0", "0x8086\n", "i915"),
            ("0000:00:1f.0", "0x8086\n", ""),
            ("0000:00:1f.3", "0x8086\n", "snd_hda_intel"),
            ("0000:01:00.0", "0x10de\n", "vfio-pci"),
            ("0000:02:00.0", "0x10de\n", ""),
            ("0000:03:00.0", "0x1002\n", "amdgpu"),
            ("0000:04:00.0", "0x1002\n", "nvidia"),
        ] {
            let function = dir.path().join("sys/bus/pci/devices").join(addr);
            fs::create_dir_all(&function).unwrap();
            for (name, text) in [("vendor", vendor), ("device", "0x2204\n"), ("class", "0x030000\n")] {
                fs::write(function.join(name), text).unwrap();
            }
            if !driver.is_empty() {
                std::os::unix::fs::symlink(format!("../../drivers/{driver}"), function.join("driver")).unwrap();
            }
        }
        let root = Root::at(dir.path());
        let seen = |asked: &[&str]| {
            let addrs: Vec<PciAddr> = asked.iter().map(|a| a.parse().unwrap()).collect();
            let snapshot = read_uses_of(&root, &addrs).unwrap();
            join(snapshot.functions.iter().map(|f| f.addr))
        };
        let of_all = "0000:00:1f.3, 0000:01:00.0, 0000:02:00.0, 0000:04:00.0";
        assert_eq!(seen(&[]), of_all);
        assert_eq!(seen(&["0000:01:00.0"]), of_all);
        assert_eq!(
            seen(&["0000:00:02.0", "0000:09:00.0"]),
            format!("0000:00:02.0, {of_all}")
        );
    }

    #[test]
    fn nobody_is_looked_for_where_the_kernels_counts_say_that_there_is_nobody() {
        let (nvidia, sound, beside) = ("0000:01:00.0", "0000:01:00.1", "0000:00:1f.3");
        // A process that has the node open, which the counts know nothing of: whether it is found says whether it was looked for.
        let looked = |drivers: &[(&str, &str)], modules: &str, more: &[(&str, &str)]| {
            let dir = tempfile::tempdir().unwrap();
            let put = |path: &str, text: &str| {
                let path = dir.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            };
            let link = |path: &str, to: &str| {
                let path = dir.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::os::unix::fs::symlink(to, path).unwrap();
            };
            for (addr, driver) in drivers {
                let function = format!("sys/bus/pci/devices/{addr}");
                let (vendor, class) = match *addr {
                    "0000:01:00.0" => ("0x10de\n", "0x030000\n"),
                    "0000:01:00.1" => ("0x10de\n", "0x040300\n"),
                    _ => ("0x8086\n", "0x040300\n"),
                };
                put(&format!("{function}/vendor"), vendor);
                put(&format!("{function}/device"), "0x2204\n");
                put(&format!("{function}/class"), class);
                if !driver.is_empty() {
                    link(&format!("{function}/driver"), &format!("../../drivers/{driver}"));
                }
                link(&format!("{function}/iommu_group"), "../../kernel/iommu_groups/7");
            }
            put("proc/modules", modules);
            put("proc/devices", "Character devices:\n195 nvidia\n");
            put(
                "proc/driver/nvidia/version",
                "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue\n",
            );
            put(
                &format!("proc/driver/nvidia/gpus/{nvidia}/information"),
                "Device Minor: \t 0\n",
            );
            put(
                "proc/700/stat",
                "700 (cuda) S 1 700 700 0 -1 0 1 2 3 4 5 6 7 8 20 0 1 0 4711 1000 10",
            );
            put("proc/700/comm", "cuda\n");
            // A node that each host has, taken for the GPU's.
            link("proc/700/fd/3", "/dev/null");
            put(&format!("sys/bus/pci/devices/{nvidia}/drm/card0/dev"), "1:3\n");
            // Linked to its place, where a driver of the firmware's framebuffer would have it.
            let platform = "sys/devices/platform/efi-framebuffer.0";
            link(
                "sys/class/graphics/fb0/device",
                "../../../devices/platform/efi-framebuffer.0",
            );
            link(
                &format!("{platform}/driver"),
                "../../../bus/platform/drivers/efi-framebuffer",
            );
            put(
                &format!("sys/bus/pci/devices/{nvidia}/resource"),
                "0xc0000000 0xcfffffff 0x200\n",
            );
            for (path, text) in more {
                put(path, text);
            }
            put("proc/700/fdinfo/3", "pos:\t0\nflags:\t02\n");
            !read_uses(&Root::at(dir.path())).unwrap().holders.is_empty()
        };
        let quiet = "nvidia_drm 1 0 - Live 0x0\nnvidia_modeset 1 1 nvidia_drm, Live 0x0\nnvidia 1 1 nvidia_modeset, Live 0x0\n\
                     snd_hda_intel 1 0 - Live 0x0\n";
        let busy = quiet.replace("nvidia 1 1 ", "nvidia 1 2 ");
        let with_gpudirect = quiet.replace("nvidia 1 1 ", "gdrdrv 1 0 - Live 0x0\nnvidia 1 2 gdrdrv,");
        let host = [(nvidia, "nvidia"), (sound, "snd_hda_intel")];
        let vfio = ("sys/class/vfio/7/dev", "");
        let (fb, memory) = (("proc/fb", "0 EFI VGA\n"), "c0000000-c02fffff : BOOTFB\n");
        let lent = |vfio: u32, vfio_pci: u32| {
            format!("{quiet}vfio 1 {vfio} vfio_pci, Live 0x0\nvfio_pci 1 {vfio_pci} - Live 0x0\n")
        };
        for (drivers, modules, more, is_looked_for) in [
            (&host[..], quiet.to_owned(), &[][..], false),
            (&host, busy, &[], true),
            (&host, quiet.replace("nvidia_drm 1 0 ", "nvidia_drm 1 1 "), &[], true),
            (&host, with_gpudirect.clone(), &[], false),
            (&host, with_gpudirect.replace("gdrdrv 1 0 ", "gdrdrv 1 1 "), &[], true),
            // The host's own sound plays.
            (
                &host,
                quiet.replace("snd_hda_intel 1 0 ", "snd_hda_intel 1 1 "),
                &[],
                true,
            ),
            // The kernel counts nothing, or a driver is a part of it, or a line was missed.
            (&host, quiet.replace(" 0 -", " - -"), &[], true),
            (&host, quiet.replace("snd_hda_intel 1 0 - Live 0x0\n", ""), &[], true),
            (
                &host,
                quiet.replace("nvidia 1 1 nvidia_modeset, Live 0x0\n", ""),
                &[],
                true,
            ),
            (&host, quiet.replace("nvidia_drm 1 0 - Live 0x0\n", ""), &[], true),
            (&[(nvidia, "nvidia"), (sound, "other")], quiet.to_owned(), &[], true),
            // A guest has its sound, or what is in a group with it, or is seen to have it by the group alone.
            (
                &[(nvidia, "nvidia"), (sound, "vfio-pci")],
                quiet.to_owned(),
                &[vfio],
                true,
            ),
            (
                &[(nvidia, "nvidia"), (beside, "vfio-pci")],
                quiet.to_owned(),
                &[vfio],
                true,
            ),
            // VFIO has the card, and nobody anything of VFIO's; somebody has the group, or a device.
            (&[(nvidia, "vfio-pci")], lent(2, 0), &[vfio], false),
            (&[(nvidia, "vfio-pci")], lent(4, 0), &[vfio], true),
            (&[(nvidia, "vfio-pci")], lent(2, 1), &[vfio], true),
            (&[(nvidia, "")], quiet.to_owned(), &[vfio], true),
            (
                &[(nvidia, "")],
                quiet.to_owned(),
                &[("sys/class/vfio/8/dev", "")],
                false,
            ),
            // Who has the firmware's framebuffer is in no count: it is on the card, or on another one.
            (&host, quiet.to_owned(), &[fb, ("proc/iomem", memory)], true),
            (
                &host,
                quiet.to_owned(),
                &[fb, ("proc/iomem", "d0000000-d02fffff : BOOTFB\n")],
                false,
            ),
        ] {
            assert_eq!(
                looked(drivers, &modules, more),
                is_looked_for,
                "{drivers:?} {modules} {more:?}"
            );
        }
    }

    #[test]
    fn what_has_gone_since_the_look_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let [gone, stays] = two_cards(dir.path());
        let root = Root::at(dir.path());
        let mut snapshot = read(&root, &[]).unwrap();
        fs::remove_dir_all(dir.path().join(format!("sys/bus/pci/devices/{gone}"))).unwrap();
        snapshot.complete(&[gone], read_details(&root, &[gone]));
        let left: Vec<PciAddr> = snapshot.functions.iter().map(|f| f.addr).collect();
        assert_eq!(left, [stays]);
    }
}
