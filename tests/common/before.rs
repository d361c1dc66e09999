//! What must be as before after an undo and after a way home.

use gpu_handoff::base::pci::PciAddr;
use gpu_handoff::base::vmid::VmId;
use gpu_handoff::host::displays::Console;

use super::state::{Device, Model, Unit};

/// A function as it must be found again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionState {
    pub addr: PciAddr,
    pub driver: Option<&'static str>,
    pub driver_override: Option<String>,
    pub reset_methods: Vec<String>,
    pub d3cold: bool,
    pub power: &'static str,
}

/// What must be as before after an undo and after a way home.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Sorted by address, bridges too.
    pub functions: Vec<FunctionState>,
    /// Loaded modules, sorted; vfio_pci is left out, since nothing ever unloads it.
    pub modules: Vec<&'static str>,
    pub units: Vec<Unit>,
    pub dynamic: Vec<(&'static str, u16, u16)>,
    pub consoles: Vec<Console>,
    pub firmware: Option<bool>,
    /// Containers whose nodes have another number than the driver's.
    pub stale: Vec<VmId>,
}

impl State {
    /// What differs, in words; empty where nothing does.
    pub fn differences(&self, now: &State) -> Vec<String> {
        let mut found = Vec::new();
        for before in &self.functions {
            match now.function(before.addr) {
                Some(after) if after == before => {}
                Some(after) => found.push(format!("{after:?}, was {before:?}")),
                None => found.push(format!("{} has gone", before.addr)),
            }
        }
        if self.modules != now.modules {
            found.push(format!("modules {:?}, were {:?}", now.modules, self.modules));
        }
        if self.units != now.units {
            found.push(format!("units {:?}, were {:?}", now.units, self.units));
        }
        // Ids that vfio-pci gets by its own parameter come with the module.
        let kept = |s: &State| {
            s.dynamic
                .iter()
                .filter(|d| d.0 != "vfio-pci")
                .copied()
                .collect::<Vec<_>>()
        };
        if kept(self) != kept(now) {
            found.push(format!("dynamic ids {:?}, were {:?}", now.dynamic, self.dynamic));
        }
        if self.consoles != now.consoles {
            found.push(format!("consoles {:?}, were {:?}", now.consoles, self.consoles));
        }
        if self.firmware != now.firmware {
            found.push(format!(
                "the firmware's framebuffer {:?}, was {:?}",
                now.firmware, self.firmware
            ));
        }
        if self.stale != now.stale {
            found.push(format!("nodes in {:?} do not fit, before {:?}", now.stale, self.stale));
        }
        found
    }

    /// A function in it.
    pub fn function(&self, addr: PciAddr) -> Option<&FunctionState> {
        let at = self.functions.binary_search_by_key(&addr, |f| f.addr).ok()?;
        Some(&self.functions[at])
    }
}

impl Model {
    /// What must be as before.
    pub fn state(&self) -> State {
        let state = |d: &Device| FunctionState {
            addr: d.addr,
            driver: d.bound(),
            driver_override: d.driver_override.clone(),
            reset_methods: d.reset_methods.clone(),
            d3cold: d.d3cold,
            power: d.power,
        };
        let functions = self.devices.iter().map(state).collect();
        let live = self.modules.iter().map(|(n, _)| *n);
        let mut modules: Vec<&str> = live.filter(|n| *n != "vfio_pci").collect();
        modules.sort_unstable();
        let mut dynamic = self.dynamic.clone();
        dynamic.sort_unstable();
        State {
            functions,
            modules,
            units: self.units.clone(),
            dynamic,
            consoles: self.consoles.clone(),
            firmware: self.firmware.as_ref().map(|(_, bound)| *bound),
            stale: self.stale_containers(),
        }
    }

    /// Containers that run on, and are given nodes.
    pub fn given_containers(&self) -> Vec<VmId> {
        self.given.iter().map(|(ctid, _)| *ctid).collect()
    }

    /// Those of them whose nodes are another device's, while there is one that they could be.
    pub fn stale_containers(&self) -> Vec<VmId> {
        let is_stale = |(_, sees): &&(VmId, u32)| self.is_live("nvidia_uvm") && *sees != self.uvm;
        self.given.iter().filter(is_stale).map(|(ctid, _)| *ctid).collect()
    }
}
