//! Modules of the model: dependencies, references, what loading and unloading does to drivers and functions.

use gpu_handoff::base::pci::PciAddr;
use gpu_handoff::host::nodes::Node;

use super::calls::{Answer, Call, Errno, Lock, Move};
use super::state::{Model, Process, Stage};
use super::tables::{self, DRIVERS};

impl Model {
    pub fn stage(&self, name: &str) -> Option<Stage> {
        self.modules.iter().find(|(n, _)| *n == name).map(|(_, s)| *s)
    }

    /// `modprobe NAME`: what it needs first. A module that is loaded is no error.
    pub fn modprobe(&mut self, group: u32, name: &str) -> Result<u32, Errno> {
        let name = tables::module_name(name).ok_or(Errno::NoEnt)?;
        let mut order = Vec::new();
        needs_first(name, &mut order);
        let todo = order.iter().map(|n| Move::Insert(n)).collect();
        let id = self.begin(group, todo);
        if let Some(call) = self.call_mut(id) {
            call.module = Some(name);
        }
        Ok(id)
    }

    /// delete_module with O_NONBLOCK (linux, kernel/module/main.c): at once an error where the module is used. Its drivers
    /// then let go of their devices one by one, and wait for whoever uses one.
    pub fn delete_module(&mut self, group: u32, name: &str) -> Result<u32, Errno> {
        let name = tables::module_name(name).ok_or(Errno::NoEnt)?;
        match self.stage(name) {
            None => return Err(Errno::NoEnt),
            Some(Stage::Live) => {}
            Some(_) => return Err(Errno::Busy),
        }
        if self.refs(name) > 0 {
            return Err(Errno::Again);
        }
        self.set_stage(name, Stage::Going);
        let mut todo = Vec::new();
        for driver in DRIVERS.iter().filter(|d| d.module == name) {
            // Off the bus's list first, so that it takes nothing any more.
            self.drivers.retain(|d| *d != driver.name);
            self.dynamic.retain(|d| d.0 != driver.name);
            // The one bound last goes first (driver_detach).
            let mut bound: Vec<(u32, PciAddr)> = self
                .devices
                .iter()
                .filter(|d| d.driver == Some(driver.name))
                .map(|d| (d.order, d.addr))
                .collect();
            bound.sort_unstable();
            for (_, addr) in bound.into_iter().rev() {
                let lock = Lock::Device(addr);
                todo.extend([Move::Lock(lock), Move::Release(addr, driver.name), Move::Unlock(lock)]);
            }
        }
        todo.push(Move::Deleted(name));
        let id = self.begin(group, todo);
        if let Some(call) = self.call_mut(id) {
            call.module = Some(name);
        }
        Ok(id)
    }

    fn set_stage(&mut self, name: &'static str, stage: Stage) {
        match self.modules.iter_mut().find(|(n, _)| *n == name) {
            Some(module) => module.1 = stage,
            None => self.modules.push((name, stage)),
        }
    }

    pub(super) fn register(&mut self, module: &'static str) {
        for driver in DRIVERS.iter().filter(|d| d.module == module) {
            if !self.drivers.contains(&driver.name) {
                self.drivers.push(driver.name);
            }
            if driver.name == "vfio-pci" {
                let ids = self.vfio_ids.iter().map(|(v, d)| (driver.name, *v, *d));
                self.dynamic.extend(ids.collect::<Vec<_>>());
            }
        }
    }

    /// What a module does once it is loaded.
    pub(super) fn module_is_live(&mut self, name: &str) {
        self.uvm += u32::from(name == "nvidia_uvm");
        if name == "nvidia_drm" && self.modeset {
            let gpus = self.devices.iter().filter(|d| d.bound() == Some("nvidia"));
            self.drm = gpus.map(|d| d.addr).collect();
            self.drm_was_loaded();
            if self.console_is_lost && !self.drm.is_empty() {
                // fbcon takes a new framebuffer (linux, drivers/video/fbdev/core/fbcon.c, do_fb_registered).
                self.consoles.iter_mut().for_each(|c| c.bound = c.is_framebuffer());
            }
            // With a framebuffer of its own it takes the memory from the firmware's driver (linux, drivers/video/aperture.c).
            if self.drm_has_framebuffers()
                && let Some((fb, bound)) = &mut self.firmware
                && fb.of.is_some_and(|a| self.drm.contains(&a))
            {
                *bound = false;
            }
        }
    }

    pub(super) fn module_move(&mut self, call: &mut Call, next: &Move) {
        match *next {
            Move::Insert(name) => self.insert(call, name),
            Move::Inserted(name) => self.inserted(call, name),
            Move::Deleted(name) => {
                if name == "nvidia_drm" {
                    self.drm.clear();
                }
                self.modules.retain(|(n, _)| *n != name);
                call.twist_here(self.time, false);
            }
            _ => {}
        }
    }

    fn insert(&mut self, call: &mut Call, name: &'static str) {
        if self.stage(name).is_some() {
            return;
        }
        if self.broken.iter().any(|(n, _)| *n == name) {
            call.answer = Err(Errno::NoEnt);
            call.todo.clear();
            return;
        }
        self.set_stage(name, Stage::Coming);
        call.todo.push(Move::Inserted(name));
        self.register(name);
        if self.autoprobe {
            let drivers = DRIVERS.iter().filter(|d| d.module == name);
            call.todo.extend(drivers.map(|d| Move::Attach(d.name, 0)));
        }
        call.twist_here(self.time, false);
    }

    fn inserted(&mut self, call: &mut Call, name: &'static str) {
        // nvidia's init gives up where it could bind no GPU: "No NVIDIA devices probed" or "None of the NVIDIA devices
        // were initialized" (open-gpu-kernel-modules, kernel-open/nvidia/nv.c, nvidia_init_module).
        let has_gpu = self.devices.iter().any(|d| d.driver == Some("nvidia"));
        if name == "nvidia" && !has_gpu {
            self.drivers.retain(|d| *d != "nvidia");
            self.modules.retain(|(n, _)| *n != name);
            call.answer = Err(Errno::NoDev);
            call.todo.clear();
            return;
        }
        self.set_stage(name, Stage::Live);
        self.module_is_live(name);
    }

    /// A process opens its nodes: all of them, or there is an error and no process.
    pub fn open(&mut self, mut process: Process) -> Answer {
        for node in &process.nodes {
            if self.is_shut(node) {
                return Err(Errno::Perm);
            }
            self.can_open(node)?;
        }
        process.came = self.tick;
        self.processes.push(process);
        Ok(())
    }

    /// Whether the gate is shut to a node. As gpu_handoff::host::nodes has it, whose numbers are those that the functions have
    /// at that moment.
    fn is_shut(&self, node: &Node) -> bool {
        let Some((addrs, whole)) = &self.gate else {
            return false;
        };
        match node {
            Node::VfioGroup(group) => addrs
                .iter()
                .any(|a| self.device(*a).is_some_and(|d| d.group == Some(*group))),
            node => node.function().map_or(*whole, |addr| addrs.contains(&addr)),
        }
    }

    fn can_open(&self, node: &Node) -> Answer {
        let is_on = |addr: PciAddr, driver: &str| self.driver_of(addr) == Some(driver);
        let there = match node {
            Node::Gpu(addr) => is_on(*addr, "nvidia"),
            Node::UnknownGpu(_) => false,
            Node::Modeset => self.is_live("nvidia_modeset"),
            Node::Uvm => self.is_live("nvidia_uvm"),
            Node::Drm(addr) => self.drm.contains(addr) || is_on(*addr, "nouveau"),
            Node::Sound(addr) => is_on(*addr, "snd_hda_intel"),
            Node::VfioDevice(addr) => {
                let device = self.device(*addr).filter(|d| d.bound() == Some("vfio-pci"));
                return self.can_own(device.ok_or(Errno::NoEnt)?.group);
            }
            Node::VfioGroup(group) => return self.can_own(Some(*group)),
            _ => self.is_live("nvidia"), // those of the whole driver
        };
        if there { Ok(()) } else { Err(Errno::NoEnt) }
    }

    /// A group is owned by one guest, and only where no member is on a driver that does DMA of its own (linux,
    /// drivers/iommu/iommu.c, __iommu_take_dma_ownership).
    fn can_own(&self, group: Option<u32>) -> Answer {
        let members = || self.devices.iter().filter(|d| d.group == group && !d.bridge);
        if !members().any(|d| d.bound() == Some("vfio-pci")) {
            return Err(Errno::NoEnt);
        }
        let own_dma = |driver: &str| tables::driver_info(driver).is_some_and(|d| !d.managed_dma);
        if self.is_owned(group) || members().any(|d| d.driver.is_some_and(own_dma)) {
            return Err(Errno::Busy);
        }
        Ok(())
    }
}

/// A module and what it needs, the most needed first.
pub fn needs_first(name: &'static str, order: &mut Vec<&'static str>) {
    for need in tables::needs(name) {
        needs_first(need, order);
    }
    if !order.contains(&name) {
        order.push(name);
    }
}
