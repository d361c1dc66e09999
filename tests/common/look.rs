//! What a look at the model shows: a snapshot, made from its state.

use gpu_handoff::base::pci::{PciAddr, VENDOR_NVIDIA};
use gpu_handoff::host::belongs::Belongs;
use gpu_handoff::host::displays::Framebuffer;
use gpu_handoff::host::functions::{Details, Function};
use gpu_handoff::host::holders::{Hidden, Holder, Unseen};
use gpu_handoff::host::modules::{Loadable, Module, Problem};
use gpu_handoff::host::nodes::Node;
use gpu_handoff::host::nvidia::{NvidiaDriver, NvidiaGpu};
use gpu_handoff::host::snapshot::Snapshot;
use gpu_handoff::host::stuck_calls::{StuckCall, What};

use super::calls::{Call, Lock};
use super::state::{Device, Model, Process, Stage};
use super::tables;

impl Model {
    /// The whole host without details; of the functions in `stuck` only what can be read without their lock.
    pub fn snapshot(&self, stuck: &[PciAddr]) -> Snapshot {
        let mut snapshot = self.uses();
        for (function, device) in snapshot.functions.iter_mut().zip(&self.devices) {
            function.stuck = stuck.contains(&device.addr);
            if !function.stuck {
                attributes(function, device);
            }
        }
        self.look_at_modules(&mut snapshot);
        snapshot.calls = self.calls_of_others();
        snapshot.vms.clone_from(&self.vms);
        snapshot.desktop.clone_from(&self.desktop);
        snapshot.called_from.clone_from(&self.called_from);
        snapshot.iommu = self.iommu;
        snapshot.vfio_pci = self.drivers.contains(&"vfio-pci");
        snapshot.consoles.clone_from(&self.consoles);
        snapshot.framebuffers = self.framebuffers();
        snapshot
    }

    /// What is read of functions that are asked for.
    pub fn details_of(&self, addrs: &[PciAddr]) -> Vec<Details> {
        let devices = addrs.iter().filter_map(|a| self.device(*a));
        let details = |device: &Device| Details {
            addr: device.addr,
            driver_override: device.driver_override.clone(),
            vfs: device.vfs,
            gone: device.vendor == VENDOR_NVIDIA && device.dead,
            width: None,
            max_width: None,
            speed: String::new(),
            max_speed: String::new(),
        };
        devices.map(details).collect()
    }

    /// The whole host, with the details of every function that is not stuck.
    pub fn whole_snapshot(&self, stuck: &[PciAddr]) -> Snapshot {
        let mut snapshot = self.snapshot(stuck);
        let all: Vec<PciAddr> = self.devices.iter().map(|d| d.addr).collect();
        let asked: Vec<PciAddr> = all.into_iter().filter(|a| !stuck.contains(a)).collect();
        snapshot.complete(&asked, self.details_of(&asked));
        snapshot
    }

    /// What a look for holders reads: no attribute that a stuck call could hold up.
    pub fn uses(&self) -> Snapshot {
        let mut snapshot = Snapshot {
            functions: self.devices.iter().map(function).collect(),
            ..Snapshot::default()
        };
        for process in &self.processes {
            if process.hidden {
                continue;
            }
            if process.unreadable {
                snapshot.unseen.push(Unseen {
                    pid: process.pid,
                    comm: process.comm.to_owned(),
                    what: Hidden::Refused("Permission denied".to_owned()),
                });
            } else if process.ending {
                snapshot.ending.push(holder(process, Vec::new()));
            } else if !process.nodes.is_empty() {
                let mut nodes: Vec<Node> = process.nodes.iter().map(|n| self.node_seen(*n)).collect();
                nodes.sort_unstable();
                snapshot.open.extend(nodes.iter().map(|n| (*n, 1)));
                snapshot.holders.push(holder(process, nodes));
            }
        }
        snapshot.holders.sort_by_key(|h| h.pid);
        snapshot
    }

    /// Calls of others that hold a function's lock, and the functions that each may be at.
    pub fn calls_of_others(&self) -> Vec<StuckCall> {
        let locked = |call: &Call| {
            call.held.iter().find_map(|lock| match lock {
                Lock::Device(addr) => self.device(*addr),
                Lock::Bus => None,
            })
        };
        let call = |call: &Call| {
            let (pid, device) = (call.by?, locked(call)?);
            let driver = device.driver?;
            let fits = |d: &&Device| d.vendor == VENDOR_NVIDIA && d.bound().is_none() && d.class == device.class;
            Some(StuckCall {
                pid,
                thread: pid,
                started: Some(u64::from(call.id)),
                group: u32::try_from(pid).ok(),
                comm: "sh".to_owned(),
                belongs_to: Belongs::Unknown,
                what: What::Unbind,
                driver: Some(driver.to_owned()),
                at: self.devices.iter().filter(fits).map(|d| d.addr).collect(),
                frame: Some("nv_pci_remove".to_owned()),
                lasts: false,
            })
        };
        self.calls.iter().filter_map(call).collect()
    }

    pub(super) fn look_at_modules(&self, snapshot: &mut Snapshot) {
        let loaded = self.modules.iter().filter(|(_, stage)| *stage != Stage::Coming);
        snapshot.modules = loaded
            .map(|(name, _)| Module {
                name: (*name).to_owned(),
                refs: Some(self.refs(name)),
                users: self.users(name).map(str::to_owned).collect(),
            })
            .collect();
        snapshot.nvidia = self.nvidia();
    }

    /// The N of a /dev/nvidiaN whose GPU the driver does not have any more stands for no GPU.
    fn node_seen(&self, node: Node) -> Node {
        match node {
            Node::Gpu(addr) if self.device(addr).is_none_or(|d| d.driver != Some("nvidia")) => Node::UnknownGpu(0),
            node => node,
        }
    }

    fn nvidia(&self) -> Option<NvidiaDriver> {
        self.stage("nvidia")?;
        let gpus = self.devices.iter().filter(|d| d.driver == Some("nvidia"));
        let gpu = |d: &Device| NvidiaGpu {
            addr: d.addr,
            minor: d.minor,
            model: "NVIDIA GeForce RTX 3090".to_owned(),
            uuid: format!("GPU-{}", d.addr),
            mig: d.mig,
        };
        Some(NvidiaDriver {
            version: self.version.clone(),
            open: true,
            modeset: self.modeset && self.stage("nvidia_drm").is_some(),
            gpus: gpus.map(gpu).collect(),
            majors: self
                .stage("nvidia_uvm")
                .map(|_| ("nvidia-uvm".to_owned(), 500 + self.uvm))
                .into_iter()
                .collect(),
        })
    }

    fn framebuffers(&self) -> Vec<Framebuffer> {
        let firmware = self.firmware.iter().filter(|(_, bound)| *bound);
        let mut all: Vec<Framebuffer> = firmware.map(|(fb, _)| fb.clone()).collect();
        all.extend(self.other_framebuffers.iter().cloned());
        let first = u32::try_from(all.len()).unwrap_or(0);
        let nouveau = self.devices.iter().filter(|d| d.bound() == Some("nouveau"));
        let drawn = self.drm.iter().map(|a| (*a, "nvidia-drmdrmfb"));
        let drawn = drawn.chain(nouveau.map(|d| (d.addr, "nouveaudrmfb")));
        let drawn = drawn.filter(|(addr, _)| !self.headless.contains(addr));
        all.extend((first..).zip(drawn).map(|(number, (addr, name))| Framebuffer {
            number,
            name: name.to_owned(),
            of: Some(addr),
            firmware: None,
        }));
        all
    }

    /// What modprobe says of modules.
    pub fn what_modprobe_says(&self, names: &[String]) -> Vec<Loadable> {
        let problem = |name: &str| {
            let known = tables::module_name(name);
            match self.broken.iter().find(|(n, _)| Some(*n) == known) {
                Some((_, why)) => Some(Problem::Refused((*why).to_owned())),
                None if known.is_none() => Some(Problem::Refused(format!("Module {name} not found"))),
                None => None,
            }
        };
        let one = |name: &String| Loadable {
            name: name.clone(),
            problem: problem(name),
        };
        names.iter().map(one).collect()
    }
}

/// What is read of every function, stuck or not.
fn function(device: &Device) -> Function {
    let driver = device.bound();
    Function {
        driver: driver.map(str::to_owned),
        module: driver.and_then(tables::driver_info).map(|d| d.module.to_owned()),
        group: device.group,
        bridge: device.bridge,
        resets_below: device.resets_below,
        linked: device.linked.clone(),
        physfn: device.physfn,
        mdevs: device.mdevs,
        noiommu: device.noiommu,
        parent: device.parent,
        stuck: true,
        ..Function::new(device.addr, device.vendor, device.device, device.class)
    }
}

fn attributes(function: &mut Function, device: &Device) {
    device.power.clone_into(&mut function.power_control);
    if device.vendor == VENDOR_NVIDIA {
        function.reset_methods.clone_from(&device.reset_methods);
        function.d3cold = device.d3cold;
        let sleeps = device.sleeps && device.power == "auto";
        if sleeps { "suspended" } else { "active" }.clone_into(&mut function.power);
        function.boot_vga = device.boot_vga;
    }
}

fn holder(process: &Process, nodes: Vec<Node>) -> Holder {
    Holder {
        pid: process.pid,
        comm: process.comm.to_owned(),
        belongs_to: process.belongs_to.clone(),
        nodes,
    }
}
