//! What moves: the functions that leave, and whether NVIDIA's driver leaves with them.

use std::collections::BTreeSet;

use crate::base::pci::PciAddr;
use crate::base::sets::IntoSet as _;
use crate::host::functions::Function;
use crate::host::nvidia::Numbers;
use crate::host::snapshot::{Snapshot, card, users_first};
use crate::model::plan::Way;
use crate::model::record::{Beside, Record};
use crate::plan::vendor::nvidia::{drm_holds_gpus, is_one_shot};
use crate::settings::values::{Settings, WayOut};

/// What is looked at before a way is chosen.
pub(crate) struct Ground<'a> {
    /// The host as it was read.
    pub(crate) snapshot: &'a Snapshot,
    /// Every function that moves.
    pub(crate) set: BTreeSet<PciAddr>,
    /// Those of them that are there.
    pub(crate) functions: Vec<&'a Function>,
    /// Those of them that are not on vfio-pci yet.
    pub(crate) leaving: Vec<&'a Function>,
    /// What stays, and an interrupted run may have left without the driver that it had.
    bereft: Vec<Beside>,
    /// How the driver's nodes were numbered before an interrupted run.
    noted: Numbers,
}

impl<'a> Ground<'a> {
    /// The cards of these GPUs, with what has to leave with them: `given` are all devices of the same VM, `earlier` what
    /// an interrupted run has taken.
    pub(crate) fn of(snapshot: &'a Snapshot, gpus: &[PciAddr], given: &[PciAddr], earlier: Option<&Record>) -> Self {
        let mut set: BTreeSet<PciAddr> = gpus.iter().flat_map(|gpu| card(snapshot, *gpu)).into_set();
        // Proxmox would unbind an NVSwitch itself, without a deadline, and nobody would bring it home. One that an
        // interrupted run has unbound is known by its record.
        let module = |a: &PciAddr| snapshot.function(*a)?.module.as_deref();
        let taken = |a: &PciAddr| earlier?.taken.iter().find(|t| t.addr == *a)?.module.as_deref();
        let is_switch = |a: &&PciAddr| module(a) == Some("nvidia") || taken(a) == Some("nvidia");
        set.extend(given.iter().filter(is_switch));
        let groups: BTreeSet<u32> = set.iter().filter_map(|a| snapshot.function(*a)?.group).into_set();
        set.extend(
            groups
                .iter()
                .flat_map(|g| snapshot.group(*g))
                .filter(|f| is_idle_bridge(f))
                .map(|f| f.addr),
        );
        let functions: Vec<&Function> = set.iter().filter_map(|a| snapshot.function(*a)).collect();
        let leaving = functions.iter().copied().filter(|f| !f.is_on_vfio()).collect();
        let of_earlier = earlier.into_iter().flat_map(|r| &r.beside);
        // What does not answer any more has no driver to have again.
        let is_lost = |f: &Function| f.is_on_vfio() || (f.gone && f.driver.is_none());
        let is_there = |b: &&Beside| !set.contains(&b.addr) && snapshot.function(b.addr).is_some_and(|f| !is_lost(f));
        let bereft = of_earlier.filter(is_there).cloned().collect();
        Ground {
            snapshot,
            set,
            functions,
            leaving,
            bereft,
            noted: earlier.map(|r| r.numbers.clone()).unwrap_or_default(),
        }
    }

    /// How the driver's nodes are numbered, or were before an interrupted run.
    pub(crate) fn numbers(&self) -> Numbers {
        let now = self.snapshot.nvidia.as_ref().map(Numbers::of);
        now.unwrap_or_default().noted_before(&self.noted)
    }

    pub(crate) fn addrs(&self) -> Vec<PciAddr> {
        self.set.iter().copied().collect()
    }

    pub(crate) fn leaves_nvidia(&self) -> bool {
        self.leaving.iter().any(|f| f.is_on_nvidia())
    }

    /// Whether this is a function that stays on NVIDIA's driver.
    pub(crate) fn stays(&self, addr: Option<PciAddr>) -> bool {
        addr.is_some_and(|a| self.staying().contains(&a))
    }

    /// Functions on NVIDIA's driver that stay there: GPUs, and NVSwitches, whose driver is in the same module.
    pub(crate) fn staying(&self) -> Vec<PciAddr> {
        let on_nvidia = |f: &&Function| f.is_on_nvidia() || f.module.as_deref() == Some("nvidia");
        let on_nvidia = self.snapshot.functions.iter().filter(on_nvidia);
        on_nvidia.map(|f| f.addr).filter(|a| !self.set.contains(a)).collect()
    }

    /// What stays on NVIDIA's driver and is without it for a moment, since it is unloaded and loaded again; and what may have
    /// been without it since a run that was killed.
    pub(crate) fn beside(&self, way: Way) -> Vec<Beside> {
        let mut beside = self.bereft.clone();
        if way == Way::Unload && is_one_shot(self.snapshot) {
            let staying = self.staying();
            let new = staying.iter().filter(|a| self.bereft.iter().all(|b| b.addr != **a));
            beside.extend(new.filter_map(|a| {
                let function = self.snapshot.function(*a)?;
                Some(Beside {
                    addr: *a,
                    driver: function.driver.clone()?,
                    driver_override: function.driver_override.clone(),
                })
            }));
        }
        beside
    }

    /// The way that the settings ask for; left to us, NVIDIA's driver is unloaded where nothing stays on it, and where its
    /// unbind could wait for ever.
    pub(crate) fn way(&self, settings: &Settings) -> Way {
        if self.leaving.is_empty() {
            Way::AlreadyThere
        } else if !self.leaves_nvidia() {
            Way::Unbind
        } else if settings.way == WayOut::Unload || (settings.way == WayOut::Auto && self.unloads()) {
            Way::Unload
        } else {
            Way::Unbind
        }
    }

    fn unloads(&self) -> bool {
        self.staying().is_empty() || is_one_shot(self.snapshot)
    }

    /// Modules that are unloaded, in that order.
    pub(crate) fn modules(&self, way: Way) -> Vec<String> {
        match way {
            Way::Unload => users_first(self.snapshot, "nvidia"),
            Way::Unbind if self.leaves_nvidia() && drm_holds_gpus(self.snapshot) => {
                users_first(self.snapshot, "nvidia_drm")
            }
            _ => Vec::new(),
        }
    }
}

/// A member of a group that nobody uses and that Proxmox would bind to vfio-pci with the rest: the host bridge that AMD's
/// root complexes show beside their root ports (class 0600, no bus behind it, no driver). It goes along.
pub(crate) fn is_idle_bridge(function: &Function) -> bool {
    function.class.is_host_bridge() && function.driver.is_none() && !function.bridge
}
