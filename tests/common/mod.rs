//! A model of the kernel for tests: drivers, modules with reference counts, overrides, and calls that fail or
//! hang on demand. No I/O, and a clock of its own.
//!
//! What it models is what the lab shows of the real kernel; it is no model of a GPU.

#![allow(dead_code)] // each test binary uses its part

use std::collections::BTreeMap;
use std::time::Duration;

use gpu_handoff::driver::{NvidiaDriver, NvidiaGpu};
use gpu_handoff::inventory::{Function, Module, Snapshot};
use gpu_handoff::kernel::{ActError, Kernel};
use gpu_handoff::loadable::Loadable;
use gpu_handoff::pci::{PciAddr, PciClass};
use gpu_handoff::step::{Act, Attribute, Expect};
use gpu_handoff::uses;

/// How the Nth act goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The kernel says no, and nothing has happened.
    Fails,
    /// The call returns an error after it has had its effect.
    FailsAfterwards,
    /// No answer; the process in the kernel cannot be ended.
    Hangs,
}

/// The kernel.
#[derive(Clone, Debug)]
pub struct Model {
    /// What a look shows.
    pub host: Snapshot,
    /// Which module a driver belongs to, and what it binds by itself when it is loaded.
    pub drivers: BTreeMap<String, Vec<PciAddr>>,
    /// Active units.
    pub units: Vec<String>,
    /// Acts so far.
    pub acts: Vec<Act>,
    /// The act (counted from 0) that goes wrong.
    pub fault: Option<(usize, Fault)>,
    /// Time of the clock.
    pub time: Duration,
}

/// `0000:BB:00.F`
pub fn addr(bus: u8, function: u8) -> PciAddr {
    format!("0000:{bus:02x}:00.{function}").parse().unwrap()
}

/// A host with `cards` GPUs of two functions each, at home, all modules loaded and idle.
pub fn host(cards: u8) -> Model {
    let mut functions = Vec::new();
    let mut gpus = Vec::new();
    for bus in 1..=cards {
        for (n, device, class, driver) in [
            (0, 0x2204, 0x03_0000, "nvidia"),
            (1, 0x1aef, 0x04_0300, "snd_hda_intel"),
        ] {
            functions.push(Function {
                driver: Some(driver.to_owned()),
                module: Some(driver.to_owned()),
                group: Some(20 + u32::from(bus)),
                linked: vec![addr(bus, 1 - n)],
                ..Function::new(addr(bus, n), 0x10de, device, PciClass(class))
            });
        }
        gpus.push(NvidiaGpu {
            addr: addr(bus, 0),
            minor: Some(u32::from(bus) - 1),
            model: "NVIDIA GeForce RTX 3090".to_owned(),
            uuid: format!("GPU-{bus}"),
            mig: false,
        });
    }
    let module = |name: &str, users: &[&str]| Module {
        name: name.to_owned(),
        refs: u32::try_from(users.len()).ok(),
        users: users.iter().map(|u| (*u).to_owned()).collect(),
    };
    let mut model = Model {
        host: Snapshot {
            functions,
            modules: vec![
                module("nvidia_uvm", &[]),
                module("nvidia_drm", &[]),
                module("nvidia_modeset", &["nvidia_drm"]),
                module("nvidia", &["nvidia_uvm", "nvidia_modeset"]),
                module("snd_hda_intel", &[]),
            ],
            nvidia: Some(NvidiaDriver {
                version: "580.95.05".to_owned(),
                open: true,
                modeset: true,
                gpus,
            }),
            iommu: true,
            vfio_pci: false,
            loadable: loadable(),
            ..Snapshot::default()
        },
        drivers: BTreeMap::new(),
        units: Vec::new(),
        acts: Vec::new(),
        fault: None,
        time: Duration::ZERO,
    };
    for function in model.host.functions.clone() {
        model
            .drivers
            .entry(function.driver.unwrap())
            .or_default()
            .push(function.addr);
    }
    model
}

/// modprobe can load everything.
pub fn loadable() -> Vec<Loadable> {
    let names = ["nvidia_uvm", "nvidia_drm", "nvidia_modeset", "nvidia", "vfio_pci"];
    let one = |name: &&str| Loadable {
        name: (*name).to_owned(),
        problem: None,
    };
    names.iter().map(one).collect()
}

impl Model {
    /// Driver and override of each function: what must be as before after an undo.
    pub fn bindings(&self) -> Vec<(PciAddr, Option<String>, Option<String>)> {
        let state = |f: &Function| (f.addr, f.driver.clone(), f.driver_override.clone());
        self.host.functions.iter().map(state).collect()
    }

    /// Names of the loaded modules, sorted; vfio_pci is left out, since nothing ever unloads it.
    pub fn loaded(&self) -> Vec<String> {
        let mut names: Vec<String> = self.host.modules.iter().map(|m| m.name.clone()).collect();
        names.retain(|n| n != "vfio_pci");
        names.sort_unstable();
        names
    }

    fn function(&mut self, addr: PciAddr) -> Result<&mut Function, ActError> {
        let found = self.host.functions.iter_mut().find(|f| f.addr == addr);
        found.ok_or_else(|| ActError::Failed(format!("{addr}: no such device")))
    }

    fn effect(&mut self, act: &Act) -> Result<(), ActError> {
        match act {
            Act::LoadModule { name } => self.load(name)?,
            Act::UnloadModule { name } => self.unload(name)?,
            Act::SetOverride { addr, driver } => self.function(*addr)?.driver_override.clone_from(driver),
            Act::SetAttribute { addr, attribute, value } => {
                let function = self.function(*addr)?;
                match attribute {
                    Attribute::ResetMethod => {
                        function.reset_methods = value.split(' ').map(str::to_owned).collect();
                    }
                    Attribute::D3cold => function.d3cold = value == "1",
                    Attribute::Power => function.power_control.clone_from(value),
                }
            }
            Act::Reset { .. }
            | Act::Remove { .. }
            | Act::Rescan { .. }
            | Act::SetConsole { .. }
            | Act::SetPlatform { .. }
            | Act::Verify { .. } => {}
            Act::StopUnit { name } => self.units.retain(|u| u != name),
            Act::StartUnit { name } => self.units.push(name.clone()),
            Act::ProveFree { addrs } => {
                if let Some(reason) = uses::use_of(&self.host, addrs).first() {
                    return Err(ActError::Failed(reason.to_string()));
                }
            }
            Act::Unbind { addr, driver } => {
                let function = self.function(*addr)?;
                if function.driver.as_ref() == Some(driver) {
                    function.driver = None;
                    function.module = None;
                }
            }
            Act::Probe { addr, .. } => self.probe(*addr)?,
        }
        match self.reached(&act.expect()) {
            true => Ok(()),
            false => Err(ActError::NotReached {
                expected: act.expect().to_string(),
                observed: "something else".to_owned(),
            }),
        }
    }

    fn load(&mut self, name: &str) -> Result<(), ActError> {
        if self.host.module(name).is_some() {
            return Ok(());
        }
        // nvidia's init gives up where it can bind no GPU (nv.c, nvidia_init_module: "No NVIDIA devices probed").
        let free = |f: &Function| f.driver.is_none() && f.driver_override.as_deref().is_none_or(|d| d == "nvidia");
        if name == "nvidia" && !self.host.gpus().any(free) {
            return Err(ActError::Failed("modprobe nvidia: No such device".to_owned()));
        }
        let needs: &[&str] = match name {
            "nvidia_uvm" | "nvidia_modeset" => &["nvidia"],
            "nvidia_drm" => &["nvidia_modeset"],
            _ => &[],
        };
        for need in needs {
            self.load(need)?;
            let module = self.host.modules.iter_mut().find(|m| m.name == *need).unwrap();
            module.users.push(name.to_owned());
            module.refs = module.refs.map(|r| r + 1);
        }
        self.host.modules.push(Module {
            name: name.to_owned(),
            refs: Some(0),
            users: Vec::new(),
        });
        if name == "vfio_pci" {
            self.host.vfio_pci = true;
        }
        // A driver that arrives tries what has none, and an override of another name keeps it away.
        let matching = self.drivers.get(name).cloned().unwrap_or_default();
        for function in &mut self.host.functions {
            let wanted = function.driver_override.as_deref().is_none_or(|d| d == name);
            if wanted && function.driver.is_none() && matching.contains(&function.addr) {
                function.driver = Some(name.to_owned());
                function.module = Some(name.to_owned());
            }
        }
        Ok(())
    }

    fn unload(&mut self, name: &str) -> Result<(), ActError> {
        let Some(module) = self.host.module(name) else {
            return Ok(());
        };
        if module.refs != Some(0) {
            return Err(ActError::Failed(format!("{name} is in use")));
        }
        self.host.modules.retain(|m| m.name != name);
        for module in &mut self.host.modules {
            if module.users.iter().any(|u| u == name) {
                module.users.retain(|u| u != name);
                module.refs = module.refs.map(|r| r - 1);
            }
        }
        for function in &mut self.host.functions {
            if function.module.as_deref() == Some(name) {
                function.driver = None;
                function.module = None;
            }
        }
        Ok(())
    }

    /// `drivers_probe`: succeeds whether a driver takes the device or not.
    fn probe(&mut self, addr: PciAddr) -> Result<(), ActError> {
        let drivers = self.drivers.clone();
        let loaded: Vec<String> = self.host.modules.iter().map(|m| m.name.clone()).collect();
        let vfio_pci = self.host.vfio_pci;
        let function = self.function(addr)?;
        if function.driver.is_some() {
            return Ok(());
        }
        let takes = |driver: &str, loaded: &[String]| match driver {
            "vfio-pci" => vfio_pci,
            other => loaded.iter().any(|m| m == other) && drivers.get(other).is_some_and(|d| d.contains(&addr)),
        };
        let natural = drivers.keys().find(|d| takes(d, &loaded)).cloned();
        function.driver = match &function.driver_override {
            Some(only) => takes(only, &loaded).then(|| only.clone()),
            None => natural,
        };
        function.module = function.driver.clone().filter(|d| d != "vfio-pci");
        Ok(())
    }

    fn reached(&self, expect: &Expect) -> bool {
        let driver = |addr: &PciAddr| self.host.function(*addr).and_then(|f| f.driver.clone());
        match expect {
            Expect::Nothing => true,
            Expect::Loaded(name) => self.host.module(name).is_some(),
            Expect::Override(addr, wanted) => self.host.function(*addr).is_some_and(|f| f.driver_override == *wanted),
            Expect::Attribute(addr, attribute, wanted) => self.host.function(*addr).is_some_and(|f| match attribute {
                Attribute::ResetMethod => f.reset_methods.join(" ") == *wanted,
                Attribute::D3cold => f.d3cold == (wanted == "1"),
                Attribute::Power => f.power_control == *wanted,
            }),
            Expect::Unit(name, active) => self.units.contains(name) == *active,
            Expect::NotOn(addr, unwanted) => driver(addr).as_ref() != Some(unwanted),
            Expect::Console(..) | Expect::Platform(..) | Expect::Present(..) => true,
            Expect::Driver(addr, wanted) => driver(addr) == *wanted,
            Expect::HostDriver(addr) => driver(addr).is_some_and(|d| d != "vfio-pci"),
        }
    }
}

impl Kernel for Model {
    fn now(&self) -> Duration {
        self.time
    }

    fn look(&mut self, stuck: &[PciAddr], _: Duration) -> Result<Snapshot, ActError> {
        let mut snapshot = self.host.clone();
        for function in &mut snapshot.functions {
            function.stuck = stuck.contains(&function.addr);
        }
        Ok(snapshot)
    }

    fn act(&mut self, act: &Act, within: Duration) -> Result<(), ActError> {
        let n = self.acts.len();
        self.acts.push(act.clone());
        self.time += Duration::from_millis(10);
        match self.fault {
            Some((at, Fault::Fails)) if at == n => Err(ActError::Failed("scripted".to_owned())),
            Some((at, Fault::FailsAfterwards)) if at == n => {
                self.effect(act)?;
                Err(ActError::Failed("scripted, afterwards".to_owned()))
            }
            Some((at, Fault::Hangs)) if at == n => {
                self.time += within;
                Err(ActError::Overdue {
                    within,
                    stuck: Some(4242),
                })
            }
            _ => self.effect(act),
        }
    }

    fn loadable(&mut self, names: &[String], _: Duration) -> Result<Vec<Loadable>, ActError> {
        let mut answers = loadable();
        answers.retain(|l| names.contains(&l.name));
        Ok(answers)
    }

    fn await_exit(&mut self, _: &[i32], _: Duration) -> bool {
        true
    }
}
