//! The list of steps that a plan is put together from: a method for each kind of act, with its deadline.

use std::collections::{BTreeMap, BTreeSet};

use crate::base::deadlines::Budgets;
use crate::base::pci::PciAddr;
use crate::host::displays::Platform;
use crate::host::functions::Function;
use crate::host::snapshot::Snapshot;
use crate::model::act::{Act, Attribute};
use crate::model::plan::{Step, deadline};
use crate::model::record::Record;

/// Collects steps with the deadline that belongs to each kind of act, and the card that each is for.
pub(crate) struct Steps<'a> {
    budgets: &'a Budgets,
    gpus: u32,
    cards: BTreeMap<PciAddr, PciAddr>,
    pub(crate) steps: Vec<Step>,
}

impl<'a> Steps<'a> {
    /// `gpus`: how many GPUs the driver lets go or takes. `functions`: those that move, of which those of a slot belong
    /// together.
    pub(crate) fn new(budgets: &'a Budgets, gpus: usize, functions: &[PciAddr]) -> Self {
        let first = |a: &PciAddr| functions.iter().copied().filter(|f| f.slot() == a.slot()).min();
        Steps {
            budgets,
            gpus: u32::try_from(gpus).unwrap_or(u32::MAX),
            cards: functions.iter().filter_map(|a| Some((*a, first(a)?))).collect(),
            steps: Vec::new(),
        }
    }

    pub(crate) fn push(&mut self, act: Act, inverse: Vec<Act>) -> &mut Step {
        let deadline = deadline(&act, self.budgets, self.gpus);
        let card = act.function().and_then(|a| self.cards.get(&a).copied());
        self.steps.push(Step {
            act,
            deadline,
            inverse,
            rungs: Vec::new(),
            card,
            soft: false,
        });
        let last = self.steps.len() - 1;
        &mut self.steps[last]
    }

    /// Whether an act is among them.
    pub(crate) fn has(&self, act: &Act) -> bool {
        self.steps.iter().any(|s| s.act == *act)
    }
}

/// Keeps functions that sleep, and what is above them, awake. Returns the bridges, which may sleep again afterwards, and
/// those that an interrupted run has kept awake; what becomes of the functions is their drivers' business.
pub(crate) fn wake(
    snapshot: &Snapshot,
    functions: &[&Function],
    earlier: Option<&Record>,
    steps: &mut Steps<'_>,
) -> Vec<PciAddr> {
    let mut bridges: BTreeSet<PciAddr> = earlier.into_iter().flat_map(|r| r.awake.iter().copied()).collect();
    for function in functions {
        let mut above = function.parent;
        // As deep as buses can be nested; a loop in a broken tree ends too.
        for _ in 0..256 {
            let Some(bridge) = above.and_then(|a| snapshot.function(a)) else {
                break;
            };
            if bridge.power_control == "auto" {
                bridges.insert(bridge.addr);
            }
            above = bridge.parent;
        }
    }
    let auto = |addr: PciAddr| vec![set_attribute(addr, Attribute::Power, "auto")];
    for bridge in &bridges {
        steps
            .push(set_attribute(*bridge, Attribute::Power, "on"), auto(*bridge))
            .soft = true;
    }
    for function in functions
        .iter()
        .filter(|f| f.power_control == "auto" && f.power == "suspended")
    {
        steps
            .push(
                set_attribute(function.addr, Attribute::Power, "on"),
                auto(function.addr),
            )
            .soft = true;
    }
    bridges.into_iter().collect()
}

pub(crate) fn set_override(addr: PciAddr, driver: Option<&str>) -> Act {
    Act::SetOverride {
        addr,
        driver: driver.map(str::to_owned),
    }
}

pub(crate) fn probe(addr: PciAddr, driver: &str) -> Act {
    Act::Probe {
        addr,
        driver: Some(driver.to_owned()),
    }
}

pub(crate) fn prove_free(addrs: Vec<PciAddr>) -> Act {
    Act::ProveFree {
        addrs,
        despite: Vec::new(),
    }
}

pub(crate) fn unbind(addr: PciAddr, driver: &str) -> Act {
    Act::Unbind {
        addr,
        driver: driver.to_owned(),
    }
}

pub(crate) fn load(name: &str) -> Act {
    Act::LoadModule { name: name.to_owned() }
}

pub(crate) fn unload(name: &str) -> Act {
    Act::UnloadModule { name: name.to_owned() }
}

pub(crate) fn stop(name: &str) -> Act {
    Act::StopUnit { name: name.to_owned() }
}

pub(crate) fn start(name: &str) -> Act {
    Act::StartUnit { name: name.to_owned() }
}

pub(crate) fn set_console(name: &str, bound: bool) -> Act {
    Act::SetConsole {
        name: name.to_owned(),
        bound,
    }
}

pub(crate) fn set_platform(platform: &Platform, bound: bool) -> Act {
    Act::SetPlatform {
        device: platform.device.clone(),
        driver: platform.driver.clone(),
        bound,
    }
}

pub(crate) fn set_attribute(addr: PciAddr, attribute: Attribute, value: &str) -> Act {
    Act::SetAttribute {
        addr,
        attribute,
        value: value.to_owned(),
    }
}
