//! The plan: which acts, in which order. Made by [`crate::way_out`] and [`crate::way_home`], carried out by
//! [`crate::exec`].
//!
//! ```text
//! out   vfio-pci there -> overrides set -> .3 .2 .1 unbound -> .0 let go -> all bound to vfio-pci
//!       .0 is let go by unloading the driver's modules (all its GPUs leave; the kernel itself refuses if
//!       anybody is left) or by unbind (some GPUs stay)
//! home  .0 first: override := original driver -> unbound from vfio-pci -> module loaded -> probed ->
//!       override as it was; then .1 .2 .3; then the modules that were loaded beside it
//! ```
//!
//! The override is set before anything is let go: whatever loads a module meanwhile cannot take the card.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::deadlines::Budgets;
use crate::base::pci::PciAddr;
use crate::host::displays::Platform;
use crate::host::functions::Function;
use crate::host::snapshot::Snapshot;
use crate::record::{Owner, Record, Taken};
use crate::step::{Act, Attribute, Step};

/// How the GPUs leave their host driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// The driver's modules are unloaded: all its GPUs leave.
    Unload,
    /// Each GPU is unbound: others stay.
    Unbind,
    /// Nothing has to leave a driver.
    AlreadyThere,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Way::Unload => "unload",
            Way::Unbind => "unbind",
            Way::AlreadyThere => "already there",
        })
    }
}

/// Where a plan leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// From the host to vfio-pci.
    Out,
    /// From vfio-pci to the host.
    Home,
}

/// What will be done.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// Where it leads.
    pub direction: Direction,
    /// Whose handoff it is.
    pub owner: Owner,
    /// The cards, by slot.
    pub cards: Vec<String>,
    /// How the GPUs leave.
    pub way: Way,
    /// What is taken (out) or given back (home).
    pub taken: Vec<Taken>,
    /// Modules that are loaded again at home, in the order of unloading.
    pub modules: Vec<String>,
    /// Units that are stopped (out) or started again (home).
    pub units: Vec<String>,
    /// Console drivers that are taken off a framebuffer of the card (out) or given back (home).
    pub consoles: Vec<String>,
    /// Firmware framebuffers that are detached (out) or attached again (home).
    pub platforms: Vec<Platform>,
    /// Bridges that may not sleep meanwhile, and may again afterwards.
    pub awake: Vec<PciAddr>,
    /// Taken functions that are not there any more, or have fallen off the bus, in words (home).
    pub missing: Vec<(PciAddr, String)>,
    /// The acts, in order.
    pub steps: Vec<Step>,
    /// What else the reader should know.
    pub notes: Vec<String>,
}

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

/// How a function is found again that a run has removed from the bus and not found again: the act that it was to be
/// followed by.
pub(crate) fn found_again(record: &Record, addr: PciAddr) -> Option<Act> {
    let same_slot = |act: &&Act| act.function().is_some_and(|a| a.slot() == addr.slot());
    let mut owed = record.under_way.iter().filter(same_slot);
    owed.find_map(|act| match act {
        Act::Rescan { bridge, .. } => Some(Act::Rescan { bridge: *bridge, addr }),
        _ => None,
    })
}

/// How long an act may take.
pub fn deadline(act: &Act, budgets: &Budgets, gpus: u32) -> Duration {
    match act {
        Act::LoadModule { .. } => budgets.load,
        Act::UnloadModule { .. } => budgets.unload + budgets.unload_per_gpu * gpus,
        Act::SetOverride { .. } | Act::SetAttribute { .. } | Act::SetConsole { .. } | Act::SetPlatform { .. } => {
            budgets.attribute
        }
        Act::StopUnit { .. } | Act::StartUnit { .. } => budgets.unit,
        Act::ProveFree { .. } => budgets.look,
        Act::Verify { .. } => budgets.verify,
        Act::Reset { .. } => budgets.reset,
        // A rescan probes what it finds.
        Act::Unbind { .. } | Act::Probe { .. } | Act::Remove { .. } | Act::Rescan { .. } => budgets.bind,
    }
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
