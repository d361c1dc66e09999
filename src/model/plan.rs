//! The plan: which acts, in which order. Made by [`crate::plan::out`] and [`crate::plan::home`], carried out by
//! [`crate::execute::executor`].
//!
//! ```text
//! out   vfio-pci there -> overrides set -> .3 .2 .1 unbound -> .0 let go -> all bound to vfio-pci
//!       .0 is let go by unloading the driver's modules (all its GPUs leave; the kernel itself refuses if
//!       anybody is left) or by unbind (some GPUs stay); of a driver whose unbind may never end by unloading it, too,
//!       and loading it again for those that stay
//! home  .3 .2 .1: override := original driver -> unbound from vfio-pci
//!       .0: the same -> module loaded -> probed -> override as it was
//!       .1 .2 .3: module loaded -> probed -> override as it was; then the modules that were loaded beside nvidia
//! ```
//!
//! The override is set before anything is let go: whatever loads a module meanwhile cannot take the card.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::deadlines::Budgets;
use crate::base::pci::PciAddr;
use crate::host::displays::Platform;
use crate::host::ha;
use crate::host::nvidia::Numbers;
use crate::host::units::Unit;
use crate::model::act::Act;
use crate::model::record::{Beside, Owner, Taken};

/// How the GPUs leave their host driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// The driver's modules are unloaded: all its GPUs leave, or get it back when it is loaded again.
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

/// Where a plan leads, and so what a failure means: a way out is undone, a way home goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// From the host to vfio-pci.
    Out,
    /// From vfio-pci to the host.
    Home,
}

/// What will be done, and all that the record and the reader are told of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// Also how the fields below are meant, where they say (out) and (home).
    pub direction: Direction,
    /// Under whose name it is on record.
    pub owner: Owner,
    /// The cards, as people name them: by slot, without the function.
    pub cards: Vec<String>,
    /// How the GPUs leave the driver that they are on.
    pub way: Way,
    /// What is taken (out) or given back (home).
    pub taken: Vec<Taken>,
    /// What stays on the driver that is unloaded, and gets it back before the end (out).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub beside: Vec<Beside>,
    /// Modules that are loaded again at home, in the order of unloading.
    pub modules: Vec<String>,
    /// Units that are stopped (out) or started again (home).
    pub units: Vec<Unit>,
    /// Those of them that use only what stays, and are started again at once (out).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub again: Vec<Unit>,
    /// Console drivers that are taken off a framebuffer of the card (out) or given back (home).
    pub consoles: Vec<String>,
    /// Firmware framebuffers that are detached (out) or attached again (home).
    pub platforms: Vec<Platform>,
    /// How the driver's nodes are numbered before it is loaded anew (out).
    #[serde(skip)]
    pub numbers: Numbers,
    /// Bridges that may not sleep meanwhile, and may again afterwards.
    pub awake: Vec<PciAddr>,
    /// Taken functions that are not there any more, or have fallen off the bus, in words (home).
    pub missing: Vec<(PciAddr, String)>,
    /// The acts, in order; those of different cards may be done at once ([`Step::card`]).
    pub steps: Vec<Step>,
    /// What a person should know before it is done: who is affected, what stays as it is.
    pub notes: Vec<String>,
}

impl Plan {
    /// Bounds of which the one for containers is as long as any has for its end by this plan: the way home starts them again,
    /// and may have to wait for that.
    pub fn with_ends(&self, mut budgets: Budgets) -> Budgets {
        for step in &self.steps {
            if let Act::StopUnit { within_s, .. } = step.act {
                budgets.container = budgets.container.max(Duration::from_secs(within_s));
            }
        }
        budgets
    }
}

/// How long what is of a desktop may go on after its display manager: logind's default and as much as the end itself takes
/// (logind.conf(5), UserStopDelaySec).
pub(crate) const DESKTOPS_END: Duration = Duration::from_secs(14);

/// How long an act may take. `gpus`: how many the driver lets go, where it is unloaded.
pub fn deadline(act: &Act, budgets: &Budgets, gpus: u32) -> Duration {
    match act {
        Act::LoadModule { .. } => budgets.load,
        Act::UnloadModule { .. } => budgets.unload + budgets.unload_per_gpu * gpus,
        Act::SetOverride { .. }
        | Act::SetAttribute { .. }
        | Act::SetConsole { .. }
        | Act::SetPlatform { .. }
        | Act::ShutGate { .. }
        | Act::OpenGate { .. } => budgets.attribute,
        Act::StopUnit { name, within_s } | Act::StartUnit { name, within_s, .. } if name.is_container() => {
            container_time(budgets, Duration::from_secs(*within_s)) + ha_time(name)
        }
        Act::StopUnit { .. } | Act::StartUnit { .. } => budgets.unit,
        Act::RestartUnit { .. } => budgets.unit * 2,
        Act::RenewNodes { .. } => budgets.unit,
        // After a look at what has its number by now.
        Act::EndProcesses { within_ms, kill, .. } => {
            let times = if *kill { 2 } else { 1 };
            budgets.look + Duration::from_millis(*within_ms) * times
        }
        // After a look as well.
        Act::AwaitDesktops { .. } => budgets.look + DESKTOPS_END,
        // Two looks in a row.
        Act::ProveFree { .. } => budgets.look * 2,
        Act::Verify { .. } => budgets.verify,
        Act::Reset { .. } | Act::ResetBus { .. } => budgets.reset,
        // A rescan probes what it finds.
        Act::Unbind { .. } | Act::Probe { .. } | Act::Remove { .. } | Act::Rescan { .. } => budgets.bind,
    }
}

/// How long a container may take to go down, or to come up: one that has to be ended has its time twice, and Proxmox waits as
/// long again for what it has asked (pve-container, PVE/LXC.pm, vm_stop). `ends`: how long that one has for its end.
fn container_time(budgets: &Budgets, ends: Duration) -> Duration {
    budgets.unit + budgets.container.max(ends) * 2
}

/// What containers among these add to the time of a whole way: they go down, and come up, all at once.
pub fn containers_time(units: &[Unit], budgets: &Budgets) -> Duration {
    let own = match units.iter().any(Unit::is_container) {
        true => container_time(budgets, Duration::ZERO),
        false => Duration::ZERO,
    };
    own + units.iter().map(ha_time).max().unwrap_or_default()
}

/// What the cluster's manager adds to that, which is asked first.
fn ha_time(unit: &Unit) -> Duration {
    match unit {
        Unit::OfHa { .. } => ha::LETS_GO_WITHIN,
        _ => Duration::ZERO,
    }
}

/// An act with what belongs to it: how long it may take, what takes it back, what else is tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What is done; only where it fails are the rungs tried.
    pub act: Act,
    /// How long it may take before it is left behind.
    pub deadline: Duration,
    /// The acts that take it back, in order.
    pub inverse: Vec<Act>,
    /// What is tried, one after the other, where the act fails: each a way to what the act should have led to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rungs: Vec<Vec<Act>>,
    /// The first function of the card it is for, where it may be done beside what is done for other cards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub card: Option<PciAddr>,
    /// A failure is said and changes nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub soft: bool,
}
