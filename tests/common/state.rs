//! The model's state: functions, modules, processes, units, and the clock.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use gpu_handoff::base::pci::{PciAddr, PciClass};
use gpu_handoff::base::vmid::VmId;
use gpu_handoff::host::belongs::Belongs;
use gpu_handoff::host::desktop::Desktop;
use gpu_handoff::host::displays::{Console, Framebuffer};
use gpu_handoff::host::nodes::Node;
use gpu_handoff::host::units as unit;
use gpu_handoff::host::vms::RunningVm;
use gpu_handoff::model::act::Act;

use super::calls::{Answer, Call, Lock};
use super::effects::Faults;
use super::ledger::MemLedger;
use super::tables;

/// What differs between kernels where a call is stuck, and at a rescan (measured on 6.1.192, 6.12.107 and 7.2.12).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Generation {
    /// Reading and writing `driver_override`, and reading `uevent`, wait for the device's lock.
    K6_1,
    /// They do not.
    K6_12,
    /// A rescan heeds `drivers_autoprobe`.
    K7_2,
}

/// A PCI function.
#[derive(Clone, Debug)]
pub struct Device {
    pub addr: PciAddr,
    pub vendor: u16,
    pub device: u16,
    pub class: PciClass,
    pub group: Option<u32>,
    /// A bridge: its driver is built in and nothing here moves it.
    pub bridge: bool,
    /// It has `reset_subordinate`.
    pub resets_below: bool,
    pub parent: Option<PciAddr>,
    /// The other functions of its device links.
    pub linked: Vec<PciAddr>,
    /// The driver core's `dev->driver`: set from the beginning of a probe to the end of a remove.
    pub driver: Option<&'static str>,
    /// The link `driver` in sysfs: gone as soon as an unbind begins.
    pub link: bool,
    pub driver_override: Option<String>,
    /// What its hardware can do, and what `reset_method` reads.
    pub can_reset: Vec<&'static str>,
    pub reset_methods: Vec<String>,
    pub d3cold: bool,
    /// `power/control`: "auto" or "on".
    pub power: &'static str,
    /// It sleeps while `power` is "auto".
    pub sleeps: bool,
    pub vfs: u32,
    pub physfn: Option<PciAddr>,
    pub mdevs: usize,
    pub noiommu: bool,
    pub mig: bool,
    pub boot_vga: bool,
    /// Its config space reads all ones.
    pub dead: bool,
    /// N of /dev/nvidiaN, while NVIDIA's driver has it.
    pub minor: Option<u32>,
    /// Place in the bus's list of devices: the order in which a new driver tries them.
    pub order: u32,
}

impl Device {
    /// A function that the kernel has just found.
    pub fn new(addr: PciAddr, vendor: u16, device: u16, class: u32) -> Self {
        Device {
            addr,
            vendor,
            device,
            class: PciClass(class),
            group: None,
            bridge: false,
            resets_below: false,
            parent: None,
            linked: Vec::new(),
            driver: None,
            link: false,
            driver_override: None,
            can_reset: Vec::new(),
            reset_methods: Vec::new(),
            d3cold: true,
            // As the kernel finds it (linux, drivers/pci/pci.c, pci_pm_init).
            power: "on",
            sleeps: false,
            vfs: 0,
            physfn: None,
            mdevs: 0,
            noiommu: false,
            mig: false,
            boot_vga: false,
            dead: false,
            minor: None,
            order: 0,
        }
    }

    /// The driver that sysfs shows.
    pub fn bound(&self) -> Option<&'static str> {
        self.driver.filter(|_| self.link)
    }
}

/// How far a module is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Coming,
    Live,
    Going,
}

/// A process with open nodes.
#[derive(Clone, Debug)]
pub struct Process {
    pub pid: i32,
    pub comm: &'static str,
    pub belongs_to: Belongs,
    pub nodes: Vec<Node>,
    /// GPUs it uses through nodes of the whole driver: attached through nvidiactl, registered with nvidia_uvm.
    pub uses: Vec<PciAddr>,
    /// It has begun to exit: a scan sees it, and no longer what it holds.
    pub ending: bool,
    /// Its descriptors cannot be read.
    pub unreadable: bool,
    /// What it holds is in no table that a scan reads, as a descriptor that is in flight; only the kernel counts it.
    pub hidden: bool,
    /// It does not end when it is asked to.
    pub deaf: bool,
    /// When it opened its nodes, on the count of what has happened.
    pub came: u64,
}

impl Process {
    /// A process of a container.
    pub fn new(pid: i32, nodes: &[Node]) -> Self {
        Process {
            pid,
            comm: "python3",
            belongs_to: Belongs::Container {
                ctid: "104".to_owned(),
                unit: None,
            },
            nodes: nodes.to_vec(),
            uses: Vec::new(),
            ending: false,
            unreadable: false,
            hidden: false,
            deaf: false,
            came: 0,
        }
    }

    /// One that somebody has started at a prompt.
    pub fn at_a_prompt(pid: i32, nodes: &[Node]) -> Self {
        Process {
            belongs_to: Belongs::Session { id: "3".to_owned() },
            ..Process::new(pid, nodes)
        }
    }

    /// A guest that holds a group.
    pub fn guest(pid: i32, vmid: u32, group: u32) -> Self {
        Process {
            comm: "kvm",
            belongs_to: Belongs::Vm(vmid.try_into().unwrap()),
            ..Process::new(pid, &[Node::VfioGroup(group)])
        }
    }
}

/// A unit of systemd. The only one that has processes here is the persistence daemon: while it is active one holds every
/// GPU that was there when it was started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    pub name: unit::Unit,
    pub active: bool,
    /// What it needs: it is stopped with that.
    pub needs: Option<unit::Unit>,
    /// What it starts whenever that is used, which is always: a socket.
    pub starts: Option<unit::Unit>,
    /// It was stopped with the container that it is in, and comes back with that.
    pub with_whole: bool,
    /// A container's own word on how long it has for its end, seconds.
    pub ends_within_s: u64,
    /// What the cluster's manager makes of a container that it knows.
    pub ha: Option<unit::Ha>,
}

impl Unit {
    /// One that is down.
    pub fn new(name: unit::Unit) -> Self {
        Unit {
            name,
            active: false,
            needs: None,
            starts: None,
            with_whole: false,
            ends_within_s: 0,
            ha: None,
        }
    }
}

/// What happens by itself.
#[derive(Clone, Debug)]
pub enum Event {
    /// A process opens its nodes; nothing happens if one of them is not there.
    Comes(Process),
    /// A process begins to exit, and holds what it has until it goes.
    Ends(i32),
    /// A process is gone.
    Goes(i32),
    /// A process closes its nodes and lives on.
    LetsGo(i32),
    /// Somebody else's modprobe, such as udev's.
    Loads(&'static str),
    /// A process of somebody else's writes a function's address to its driver's `unbind`.
    Unbinds(i32, PciAddr),
    /// The config space of a card's functions reads all ones from now on.
    Dies(PciAddr),
    /// A card is gone from the bus.
    Vanishes(PciAddr),
    /// Somebody starts a unit.
    Starts(unit::Unit),
    /// The run is asked to end (SIGTERM).
    Signal,
    /// Who has the gate shut ends.
    GateFalls,
}

/// When something happens by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    At(Duration),
    /// Immediately before the Nth act, counted from 0.
    Act(usize),
}

/// How a driver's probe goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeFault {
    /// The next N fail.
    Fails(u32),
    /// Every one fails.
    Always,
    /// Each takes so long.
    Takes(Duration),
}

/// The host and its kernel.
#[derive(Clone, Debug)]
pub struct Model {
    pub generation: Generation,
    /// Sorted by address.
    pub devices: Vec<Device>,
    /// What a rescan would find again.
    pub removed: Vec<Device>,
    pub next_order: u32,
    /// Registered drivers, in the order in which the bus tries them.
    pub drivers: Vec<&'static str>,
    /// Ids added by new_id or vfio-pci's parameter `ids`.
    pub dynamic: Vec<(&'static str, u16, u16)>,
    /// `vfio-pci ids=` of modprobe.d: added whenever the module is loaded.
    pub vfio_ids: Vec<(u16, u16)>,
    pub autoprobe: bool,
    pub probe_faults: Vec<(&'static str, ProbeFault)>,
    /// A reset of all below a bridge ends these.
    pub bus_reset_heals: bool,
    /// Loaded modules, in the order of loading.
    pub modules: Vec<(&'static str, Stage)>,
    /// References of modules that nothing accounts for.
    pub pins: Vec<&'static str>,
    /// Modules that cannot be loaded, and what modprobe says.
    pub broken: Vec<(&'static str, &'static str)>,
    /// NVIDIA's driver.
    pub version: String,
    pub modeset: bool,
    /// GPUs that nvidia_drm drives.
    pub drm: BTreeSet<PciAddr>,
    /// A console on one of nvidia_drm's framebuffers keeps it loaded.
    pub fbcon_pins: bool,
    pub consoles: Vec<Console>,
    /// A console that was taken off its framebuffer comes back with a new one only.
    pub console_is_lost: bool,
    /// The firmware's framebuffer, whether its driver is bound, and in whose memory it lies.
    pub firmware: Option<(Framebuffer, bool)>,
    /// GPUs that this driver of NVIDIA does not know.
    pub unknown: BTreeSet<PciAddr>,
    /// GPUs without a display, which show none.
    pub headless: BTreeSet<PciAddr>,
    /// Those of drivers that nothing here moves.
    pub other_framebuffers: Vec<Framebuffer>,
    pub iommu: bool,
    /// VMs that run, as far as a look is concerned.
    pub vms: Vec<RunningVm>,
    pub desktop: Option<Desktop>,
    /// What the run was started from.
    pub called_from: Vec<Belongs>,
    /// One of the units is not to be stopped, and why.
    pub never: Option<(unit::Unit, String)>,
    pub processes: Vec<Process>,
    /// This host has a gate; and while it is shut, for whom, and whether for the whole driver.
    pub has_gate: bool,
    pub gate: Option<(Vec<PciAddr>, bool)>,
    pub units: Vec<Unit>,
    /// Processes that have ended for the act that is being done.
    pub ended: Vec<i32>,
    /// Containers that do not run: nothing is done inside.
    pub down: Vec<VmId>,
    /// How often nvidia_uvm has been loaded: its nodes have another number each time.
    pub uvm: u32,
    /// Containers that run on and are given its node, each with the number that it sees.
    pub given: Vec<(VmId, u32)>,
    pub events: Vec<(When, Event)>,
    pub time: Duration,
    /// Counts what has happened.
    pub tick: u64,
    pub calls: Vec<Call>,
    /// Answers that were not asked for yet.
    pub answers: Vec<(u32, Answer)>,
    pub locks: Vec<(Lock, u32)>,
    pub next_call: u32,
    pub next_pid: i32,
    /// Process groups that wait for an act, and the next one's number.
    pub workers: Vec<u32>,
    pub next_worker: u32,
    /// When the run was asked to end.
    pub signal: Option<Duration>,
    /// Acts give back what was taken, and a signal breaks none of them off.
    pub gives_back: bool,
    /// Acts so far.
    pub acts: Vec<Act>,
    pub faults: Faults,
    pub laws: super::laws::Laws,
    pub ledger: Option<Arc<MemLedger>>,
}

impl Model {
    /// A host without devices.
    pub fn new(generation: Generation) -> Self {
        Model {
            generation,
            devices: Vec::new(),
            removed: Vec::new(),
            next_order: 0,
            drivers: Vec::new(),
            dynamic: Vec::new(),
            vfio_ids: Vec::new(),
            autoprobe: true,
            probe_faults: Vec::new(),
            bus_reset_heals: false,
            modules: Vec::new(),
            pins: Vec::new(),
            broken: Vec::new(),
            version: "580.95.05".to_owned(),
            modeset: true,
            drm: BTreeSet::new(),
            fbcon_pins: true,
            consoles: Vec::new(),
            console_is_lost: false,
            firmware: None,
            unknown: BTreeSet::new(),
            headless: BTreeSet::new(),
            other_framebuffers: Vec::new(),
            iommu: true,
            vms: Vec::new(),
            desktop: None,
            called_from: Vec::new(),
            never: None,
            has_gate: true,
            gate: None,
            processes: Vec::new(),
            units: Vec::new(),
            down: Vec::new(),
            uvm: 0,
            given: Vec::new(),
            ended: Vec::new(),
            events: Vec::new(),
            time: Duration::ZERO,
            tick: 0,
            calls: Vec::new(),
            answers: Vec::new(),
            locks: Vec::new(),
            next_call: 1,
            next_pid: 2000,
            workers: Vec::new(),
            next_worker: 4242,
            signal: None,
            gives_back: false,
            acts: Vec::new(),
            faults: Faults::default(),
            laws: super::laws::Laws::default(),
            ledger: None,
        }
    }

    /// The same host again, with records of its own.
    pub fn fork(&self) -> Self {
        Model {
            ledger: self.ledger.as_ref().map(|l| Arc::new(l.copy())),
            ..self.clone()
        }
    }

    /// Adds a function to the bus.
    pub fn add(&mut self, mut device: Device) {
        self.next_order += 1;
        device.order = self.next_order;
        let at = self.devices.partition_point(|d| d.addr < device.addr);
        self.devices.insert(at, device);
    }

    fn index(&self, addr: PciAddr) -> Option<usize> {
        self.devices.binary_search_by_key(&addr, |d| d.addr).ok()
    }

    /// The function at an address, if it is there.
    pub fn device(&self, addr: PciAddr) -> Option<&Device> {
        self.index(addr).map(|i| &self.devices[i])
    }

    /// As [`Model::device`].
    pub fn device_mut(&mut self, addr: PciAddr) -> Option<&mut Device> {
        self.index(addr).map(|i| &mut self.devices[i])
    }

    /// The driver that sysfs shows for a function.
    pub fn driver_of(&self, addr: PciAddr) -> Option<&'static str> {
        self.device(addr).and_then(Device::bound)
    }

    /// Whether a module is loaded.
    pub fn is_live(&self, name: &str) -> bool {
        self.modules.iter().any(|(n, s)| *n == name && *s == Stage::Live)
    }

    /// References of a module: modules that need it, open nodes, a console on its framebuffer.
    pub fn refs(&self, name: &str) -> u32 {
        let by_modules = self.users(name).count();
        let held = |node: &Node| match node {
            Node::Modeset => name == "nvidia_modeset",
            Node::Uvm => name == "nvidia_uvm",
            Node::Drm(addr) => match name {
                "nvidia_drm" => self.drm.contains(addr),
                "nouveau" => self.device(*addr).is_some_and(|d| d.driver == Some("nouveau")),
                _ => false,
            },
            // A bus is its adapter's driver's.
            Node::Sound(addr) | Node::I2c(addr) => self
                .device(*addr)
                .and_then(|d| d.driver)
                .and_then(tables::driver_info)
                .is_some_and(|d| d.module == name),
            Node::VfioGroup(_) | Node::VfioDevice(_) => name == "vfio_pci",
            _ => name == "nvidia", // its GPUs' own, and those of the whole driver
        };
        // Of its character devices, for each open node one for the device and one for its operations.
        let each = |node: &Node| match name {
            "nvidia" | "nvidia_modeset" | "nvidia_uvm" if !matches!(node, Node::I2c(_)) => 2,
            _ => 1,
        };
        let nodes = self.processes.iter().flat_map(|p| &p.nodes);
        let by_nodes: usize = nodes.filter(|n| held(n)).map(each).sum();
        let by_console = name == "nvidia_drm" && self.fbcon_pins && self.console_on_drm();
        let pinned = self.pins.iter().filter(|n| **n == name).count();
        u32::try_from(by_modules + by_nodes + pinned).unwrap_or(u32::MAX) + u32::from(by_console)
    }

    /// Loaded modules that need this one.
    pub fn users<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'static str> + 'a {
        let loaded = self.modules.iter().map(|(n, _)| *n);
        loaded.filter(move |n| tables::needs(n).contains(&name))
    }

    fn console_on_drm(&self) -> bool {
        self.modeset && !self.drm.is_empty() && self.consoles.iter().any(|c| c.bound && c.is_framebuffer())
    }

    /// The numbers of the driver's version.
    fn version_numbers(&self) -> Vec<u32> {
        self.version.split('.').filter_map(|p| p.parse().ok()).collect()
    }

    /// A remove() that meets a user never ends (open-gpu-kernel-modules 595.45.04, kernel-open/nvidia/nv-pci.c).
    pub fn is_one_shot(&self) -> bool {
        self.version_numbers() >= vec![595]
    }

    /// remove() tells nvidia_drm to drop the GPU first (nvidia_modeset_remove): from 590.44 on, in branch 580 from
    /// 580.105.08 on, and in 580.94.06.
    pub fn drm_lets_go(&self) -> bool {
        match self.version_numbers().as_slice() {
            [580, 94, n, ..] => *n >= 6,
            [580, rest @ ..] => *rest >= [105, 8][..],
            numbers => *numbers >= [590, 44][..],
        }
    }

    /// nvidia_drm draws the console itself (its parameter `fbdev`, since 545.23.06).
    pub fn drm_has_framebuffers(&self) -> bool {
        self.version_numbers() >= vec![545]
    }

    /// How many users a bound function has: what its driver's remove() would wait for.
    pub fn usage(&self, addr: PciAddr) -> usize {
        let Some(device) = self.device(addr) else { return 0 };
        let by_drm = device.driver == Some("nvidia") && !self.drm_lets_go() && self.drm.contains(&addr);
        let users = self.processes.iter().filter(|p| self.is_used_by(device, p));
        users.count() + usize::from(by_drm)
    }

    /// Whether a process uses a function, whether a scan can see that or not.
    pub fn is_used_by(&self, device: &Device, process: &Process) -> bool {
        let addr = device.addr;
        let attached = device.driver == Some("nvidia") && process.uses.contains(&addr);
        attached
            || process.nodes.iter().any(|node| match node {
                Node::Gpu(a) | Node::Sound(a) | Node::VfioDevice(a) => *a == addr,
                Node::VfioGroup(group) => device.group == Some(*group) && device.driver == Some("vfio-pci"),
                _ => false,
            })
    }

    /// Whether a guest owns the IOMMU group of a function (linux, drivers/iommu/iommu.c, iommu_group_claim_dma_owner).
    pub fn is_owned(&self, group: Option<u32>) -> bool {
        let Some(group) = group else { return false };
        let of_group = |a: PciAddr| self.device(a).is_some_and(|d| d.group == Some(group));
        self.processes.iter().flat_map(|p| &p.nodes).any(|n| match n {
            Node::VfioGroup(g) => *g == group,
            Node::VfioDevice(a) => of_group(*a),
            _ => false,
        })
    }

    /// Puts a function on a driver as if it had been so since boot, the modules loaded.
    pub fn settle_on(&mut self, addr: PciAddr, driver: &'static str) {
        let module = tables::driver_info(driver).map_or(driver, |d| d.module);
        self.loaded_since_boot(module);
        if let Some(device) = self.device_mut(addr) {
            device.driver = Some(driver);
            device.link = true;
        }
        self.bound(addr, driver);
    }

    /// Takes the driver off a function, as somebody did who wanted it so.
    pub fn set_aside(&mut self, addr: PciAddr) {
        self.drm.remove(&addr);
        if let Some(device) = self.device_mut(addr) {
            device.driver = None;
            device.link = false;
            device.minor = None;
        }
    }

    /// A module as if it had been loaded since boot.
    pub fn loaded_since_boot(&mut self, name: &'static str) {
        for need in tables::needs(name) {
            self.loaded_since_boot(need);
        }
        if self.modules.iter().any(|(n, _)| *n == name) {
            return;
        }
        self.modules.push((name, Stage::Live));
        self.register(name);
        self.module_is_live(name);
    }
}
