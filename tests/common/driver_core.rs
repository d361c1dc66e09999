//! The driver core of the model: which driver matches, bind and unbind, dynamic ids, remove and rescan.
//!
//! After linux, drivers/base/dd.c and bus.c, drivers/pci/pci-driver.c; what blocks beside a stuck call is measured.

use std::time::Duration;

use gpu_handoff::base::pci::PciAddr;

use super::calls::{After, Call, Errno, Lock, Move};
use super::state::{Device, Generation, Model, ProbeFault};
use super::tables;

/// How long the kernel waits for a card that does not answer after a reset: 65 s of growing pauses (linux,
/// drivers/pci/pci.c, pci_dev_wait), 70 s as measured.
pub const DEAD_RESET: Duration = Duration::from_secs(70);

impl Model {
    /// Whether a driver would take a function (pci_match_device): an override keeps all others away and lets its own
    /// driver take anything; then the dynamic ids, then the driver's table.
    pub fn matches(&self, driver: &str, device: &Device) -> bool {
        if device.bridge {
            return false;
        }
        if let Some(only) = &device.driver_override {
            return only == driver;
        }
        let has = |(d, v, i): &(&str, u16, u16)| *d == driver && (*v, *i) == (device.vendor, device.device);
        self.dynamic.iter().any(has) || tables::driver_info(driver).is_some_and(|d| (d.takes)(device))
    }

    /// Writes `driver_override`. A write of no bytes does not reach the kernel's attribute (linux, fs/kernfs/file.c and
    /// fs/sysfs/file.c); a newline clears it.
    pub fn write_override(&mut self, group: u32, addr: PciAddr, text: &str) -> Result<u32, Errno> {
        self.device(addr).ok_or(Errno::NoEnt)?;
        if text.is_empty() {
            return Ok(self.begin(group, Vec::new()));
        }
        let name = text.split('\n').next().filter(|n| !n.is_empty()).map(str::to_owned);
        let mut todo = vec![Move::SetOverride(addr, name)];
        if self.generation == Generation::K6_1 {
            todo.insert(0, Move::Lock(Lock::Device(addr)));
            todo.push(Move::Unlock(Lock::Device(addr)));
        }
        Ok(self.begin(group, todo))
    }

    /// Writes an address to a driver's `unbind`. `dev->driver` is looked at without the lock, so that a second unbind
    /// beside a stuck one waits for it.
    pub fn unbind(&mut self, group: u32, driver: &str, addr: PciAddr) -> Result<u32, Errno> {
        let driver = self.registered(driver).ok_or(Errno::NoEnt)?;
        let device = self.device(addr).ok_or(Errno::NoDev)?;
        if device.driver != Some(driver) {
            return Err(Errno::NoDev);
        }
        let lock = Lock::Device(addr);
        Ok(self.begin(
            group,
            vec![Move::Lock(lock), Move::Release(addr, driver), Move::Unlock(lock)],
        ))
    }

    /// Writes an address to a driver's `bind`.
    pub fn bind(&mut self, group: u32, driver: &str, addr: PciAddr) -> Result<u32, Errno> {
        let driver = self.registered(driver).ok_or(Errno::NoEnt)?;
        let device = self.device(addr).ok_or(Errno::NoDev)?;
        if !self.matches(driver, device) {
            return Err(Errno::NoDev);
        }
        let lock = Lock::Device(addr);
        Ok(self.begin(
            group,
            vec![Move::Lock(lock), Move::Bind(addr, driver), Move::Unlock(lock)],
        ))
    }

    /// Writes an address to `drivers_probe`. Of a function with a driver, stuck or not, nothing is asked
    /// (bus_rescan_devices_helper); that no driver takes it is no error.
    pub fn drivers_probe(&mut self, group: u32, addr: PciAddr) -> Result<u32, Errno> {
        let device = self.device(addr).ok_or(Errno::NoDev)?;
        if device.driver.is_some() {
            return Ok(self.begin(group, Vec::new()));
        }
        let lock = Lock::Device(addr);
        Ok(self.begin(group, vec![Move::Lock(lock), Move::Try(addr, 0), Move::Unlock(lock)]))
    }

    /// Writes to a driver's `new_id`: the driver then goes through every device that matches, bound ones too.
    pub fn new_id(&mut self, group: u32, driver: &str, vendor: u16, device: u16) -> Result<u32, Errno> {
        let driver = self.registered(driver).ok_or(Errno::NoEnt)?;
        if self.dynamic.contains(&(driver, vendor, device)) {
            return Err(Errno::Exist);
        }
        self.dynamic.push((driver, vendor, device));
        Ok(self.begin(group, vec![Move::Attach(driver, 0)]))
    }

    /// Writes to a driver's `remove_id`. Nothing is unbound by it.
    pub fn remove_id(&mut self, group: u32, driver: &str, vendor: u16, device: u16) -> Result<u32, Errno> {
        let driver = self.registered(driver).ok_or(Errno::NoEnt)?;
        let before = self.dynamic.len();
        self.dynamic.retain(|d| *d != (driver, vendor, device));
        if self.dynamic.len() == before {
            return Err(Errno::NoDev);
        }
        Ok(self.begin(group, Vec::new()))
    }

    /// Writes to a function's `remove`.
    pub fn remove(&mut self, group: u32, addr: PciAddr) -> Result<u32, Errno> {
        let device = self.device(addr).ok_or(Errno::NoEnt)?;
        let driver = device.driver;
        let lock = Lock::Device(addr);
        let mut todo = vec![Move::Lock(Lock::Bus), Move::Lock(lock)];
        todo.extend(driver.map(|d| Move::Release(addr, d)));
        todo.extend([Move::Unlock(lock), Move::Remove(addr), Move::Unlock(Lock::Bus)]);
        Ok(self.begin(group, todo))
    }

    /// Writes to the `rescan` of a bridge, or of the whole bus.
    pub fn rescan(&mut self, group: u32, bridge: Option<PciAddr>) -> Result<u32, Errno> {
        if let Some(bridge) = bridge {
            self.device(bridge).ok_or(Errno::NoEnt)?;
        }
        Ok(self.begin(
            group,
            vec![Move::Lock(Lock::Bus), Move::Rescan(bridge), Move::Unlock(Lock::Bus)],
        ))
    }

    /// Writes to a function's `reset`.
    pub fn reset(&mut self, group: u32, addr: PciAddr) -> Result<u32, Errno> {
        let device = self.device(addr).ok_or(Errno::NoEnt)?;
        if device.can_reset.is_empty() {
            return Err(Errno::NoEnt);
        }
        let lock = Lock::Device(addr);
        let mut todo = vec![Move::Lock(lock)];
        if device.dead {
            todo.extend([Move::Sleep(DEAD_RESET), Move::Fail(Errno::Io)]);
        }
        todo.push(Move::Unlock(lock));
        Ok(self.begin(group, todo))
    }

    /// What is directly below a bridge.
    pub fn below(&self, bridge: PciAddr) -> impl Iterator<Item = &Device> {
        self.devices.iter().filter(move |d| d.parent == Some(bridge))
    }

    /// Writes to a bridge's `reset_subordinate`: everything below is locked, and reset at once (linux, drivers/pci/pci.c,
    /// pci_bus_lock).
    pub fn reset_below(&mut self, group: u32, bridge: PciAddr) -> Result<u32, Errno> {
        if !self.device(bridge).is_some_and(|d| d.resets_below) {
            return Err(Errno::NoEnt);
        }
        let addrs: Vec<PciAddr> = self.below(bridge).map(|d| d.addr).collect();
        let is_dead = self.below(bridge).any(|d| d.dead);
        if self.bus_reset_heals {
            self.probe_faults.clear();
        }
        let mut todo: Vec<Move> = addrs.iter().map(|a| Move::Lock(Lock::Device(*a))).collect();
        if is_dead {
            todo.extend([Move::Sleep(DEAD_RESET), Move::Fail(Errno::Io)]);
        }
        todo.extend(addrs.iter().map(|a| Move::Unlock(Lock::Device(*a))));
        Ok(self.begin(group, todo))
    }

    /// A card is pulled out: its functions are gone, whatever was going on.
    pub fn vanish(&mut self, addr: PciAddr) {
        self.devices.retain(|d| d.addr.slot() != addr.slot());
        self.drm.retain(|a| a.slot() != addr.slot());
        for device in &mut self.devices {
            device.linked.retain(|a| a.slot() != addr.slot());
        }
    }

    /// A card falls off the bus: its config space reads all ones.
    pub fn die(&mut self, addr: PciAddr) {
        for device in self.devices.iter_mut().filter(|d| d.addr.slot() == addr.slot()) {
            device.dead = true;
        }
    }

    fn registered(&self, driver: &str) -> Option<&'static str> {
        self.drivers.iter().copied().find(|d| *d == driver)
    }

    pub(super) fn do_move(&mut self, call: &mut Call, next: Move) {
        match next {
            Move::SetOverride(addr, name) => {
                if let Some(device) = self.device_mut(addr) {
                    device.driver_override = name;
                }
            }
            Move::Release(addr, driver) => self.release(call, addr, driver),
            Move::Released(addr, driver) => self.unbound(addr, driver),
            Move::Try(addr, from) => self.try_from(call, addr, from),
            Move::Bind(addr, driver) => match self.device(addr) {
                Some(device) if device.driver.is_none() => call.todo.push(Move::Probe(addr, driver, After::Answer)),
                Some(_) => call.answer = Err(Errno::Busy),
                None => call.answer = Err(Errno::NoDev),
            },
            Move::Probe(addr, driver, after) => self.probe(call, addr, driver, after),
            Move::Probed(addr, driver, after) => self.probed(call, addr, driver, after),
            Move::Attach(driver, from) => self.attach(call, driver, from),
            Move::Remove(addr) => {
                if let Ok(at) = self.devices.binary_search_by_key(&addr, |d| d.addr) {
                    let device = self.devices.remove(at);
                    self.removed.push(device);
                }
            }
            Move::Rescan(bridge) => self.find_removed(call, bridge),
            Move::Insert(_) | Move::Inserted(_) | Move::Deleted(_) => self.module_move(call, &next),
            _ => {}
        }
    }

    /// __device_release_driver: the link goes first, `dev->driver` only after the driver's remove().
    fn release(&mut self, call: &mut Call, addr: PciAddr, driver: &'static str) {
        let lets_go = self.drm_lets_go();
        let one_shot = self.is_one_shot();
        let Some(device) = self.device_mut(addr).filter(|d| d.driver == Some(driver)) else {
            return;
        };
        device.link = false;
        call.todo.push(Move::Released(addr, driver));
        match driver {
            "nvidia" => {
                if lets_go {
                    self.drm.remove(&addr);
                }
                if one_shot && self.usage(addr) > 0 {
                    call.todo.push(Move::Hang);
                } else {
                    call.todo.push(Move::WaitUnused(addr));
                }
            }
            // vfio_unregister_group_dev waits for the guest (drivers/vfio/vfio_main.c), snd_card_free for the last
            // close (sound/core/init.c).
            "vfio-pci" | "snd_hda_intel" => call.todo.push(Move::WaitUnused(addr)),
            _ => {}
        }
        call.twist_here(self.time, false);
    }

    /// A driver has let go of a function.
    fn unbound(&mut self, addr: PciAddr, driver: &'static str) {
        if driver == "nvidia" {
            self.drm.remove(&addr);
        }
        if let Some(device) = self.device_mut(addr) {
            device.driver = None;
            device.link = false;
            device.minor = None;
            if driver == "vfio-pci" {
                device.power = "on"; // vfio_pci_core_unregister_device
            }
        }
    }

    /// A driver has taken a function.
    pub(super) fn bound(&mut self, addr: PciAddr, driver: &'static str) {
        if driver == "vfio-pci"
            && let Some(device) = self.device_mut(addr)
        {
            device.power = "auto"; // drivers/vfio/pci/vfio_pci_core.c, vfio_pci_core_register_device
        }
        if driver != "nvidia" {
            return;
        }
        self.judge_sound(addr);
        self.laws.caught.insert(addr);
        let taken: Vec<u32> = self.devices.iter().filter_map(|d| d.minor).collect();
        let minor = (0..).find(|n| !taken.contains(n));
        if let Some(device) = self.device_mut(addr) {
            device.minor = minor;
        }
        // Where it lets none go, nvidia_drm takes only the GPUs that are there when it is loaded.
        if self.modeset && self.drm_lets_go() && self.is_live("nvidia_drm") {
            self.drm.insert(addr);
        }
    }

    fn try_from(&mut self, call: &mut Call, addr: PciAddr, from: usize) {
        let Some(device) = self.device(addr).filter(|d| d.driver.is_none()) else {
            return;
        };
        let rest = self.drivers.iter().enumerate().skip(from);
        let found = rest.map(|(n, d)| (n, *d)).find(|(_, d)| self.matches(d, device));
        if let Some((n, driver)) = found {
            call.todo.push(Move::Probe(addr, driver, After::TryFrom(n + 1)));
        }
    }

    fn probe(&mut self, call: &mut Call, addr: PciAddr, driver: &'static str, after: After) {
        let Some(device) = self.device(addr).filter(|d| d.driver.is_none()) else {
            return;
        };
        let managed = tables::driver_info(driver).is_some_and(|d| d.managed_dma);
        if !managed && self.is_owned(device.group) {
            // Before the driver's probe, in dma_configure (drivers/pci/pci-driver.c): no other driver is tried.
            call.answer = match after {
                After::TryFrom(_) => Err(Errno::Inval),
                After::Answer => Err(Errno::Busy),
                After::Nothing => call.answer,
            };
            return;
        }
        if let Some(device) = self.device_mut(addr) {
            device.driver = Some(driver);
            device.link = true;
        }
        call.todo.push(Move::Probed(addr, driver, after));
        let slow = self.probe_faults.iter().find_map(|(d, fault)| match fault {
            ProbeFault::Takes(time) if *d == driver => Some(*time),
            _ => None,
        });
        call.todo.extend(slow.map(Move::Sleep));
        call.twist_here(self.time, false);
    }

    fn probed(&mut self, call: &mut Call, addr: PciAddr, driver: &'static str, after: After) {
        let error = self.probe_error(addr, driver);
        let Some(errno) = error else {
            self.bound(addr, driver);
            return;
        };
        if let Some(device) = self.device_mut(addr) {
            device.driver = None;
            device.link = false;
        }
        match after {
            After::TryFrom(n) => call.todo.push(Move::Try(addr, n)),
            After::Answer => call.answer = Err(errno),
            After::Nothing => {}
        }
    }

    fn probe_error(&mut self, addr: PciAddr, driver: &'static str) -> Option<Errno> {
        let mut scripted = false;
        for (d, fault) in &mut self.probe_faults {
            match fault {
                ProbeFault::Always if *d == driver => scripted = true,
                ProbeFault::Fails(n) if *d == driver && *n > 0 => {
                    *n -= 1;
                    scripted = true;
                }
                _ => {}
            }
        }
        let device = self.device(addr)?;
        let info = tables::driver_info(driver)?;
        match driver {
            // vfio_pci_core_register_device: no device without a group.
            "vfio-pci" => (device.group.is_none() || !self.iommu).then_some(Errno::Inval),
            // An override lets a driver try what it cannot drive; a dead GPU is not found. nvidia_probe answers -1.
            "nvidia" if self.unknown.contains(&addr) => Some(Errno::Perm),
            _ if scripted || device.dead || !(info.takes)(device) => Some(Errno::Perm),
            _ => None,
        }
    }

    /// driver_attach: a driver tries each device that matches, under its lock, those that have a driver too.
    fn attach(&mut self, call: &mut Call, driver: &'static str, from: u32) {
        if !self.drivers.contains(&driver) {
            return;
        }
        let later = self
            .devices
            .iter()
            .filter(|d| d.order > from && self.matches(driver, d));
        let Some((order, addr)) = later.map(|d| (d.order, d.addr)).min() else {
            return;
        };
        let lock = Lock::Device(addr);
        call.todo.extend([
            Move::Attach(driver, order),
            Move::Unlock(lock),
            Move::Probe(addr, driver, After::Nothing),
            Move::Lock(lock),
        ]);
    }

    /// A rescan finds what was removed, without its override, and binds it before it returns (linux,
    /// drivers/pci/bus.c, pci_bus_add_device).
    fn find_removed(&mut self, call: &mut Call, bridge: Option<PciAddr>) {
        // Of a card that reads all ones only the other functions come back (measured).
        let elsewhere = |d: &Device| bridge.is_some() && d.parent != bridge;
        let missing = |d: &Device| elsewhere(d) || (d.dead && d.addr.function == 0);
        let (gone, mut back): (Vec<Device>, Vec<Device>) = self.removed.drain(..).partition(missing);
        self.removed = gone;
        back.sort_by_key(|d| d.addr);
        let binds = self.autoprobe || self.generation < Generation::K7_2;
        // Each is bound before the end of the rescan; the one that is pushed last goes first.
        if binds {
            for addr in back.iter().rev().map(|d| d.addr) {
                let lock = Lock::Device(addr);
                let moves = [Move::Unlock(lock), Move::Try(addr, 0), Move::Lock(lock)];
                call.todo.extend(moves);
            }
        }
        for old in back {
            self.add(Device {
                driver: None,
                link: false,
                driver_override: None,
                minor: None,
                reset_methods: old.can_reset.iter().map(|m| (*m).to_owned()).collect(),
                d3cold: true,
                power: "on",
                ..old
            });
        }
    }
}
