//! The acts of a way home, in their order. Pure.
//!
//! What can come home at all is decided before, in [`crate::plan::home`].

use crate::base::pci::{PciAddr, PciSlot};
use crate::host::functions::{Function, VFIO_PCI};
use crate::host::snapshot::Snapshot;
use crate::host::unit_names::is_starter;
use crate::host::units::Unit;
use crate::model::act::Act;
use crate::model::plan::Step;
use crate::model::record::{Beside, Record, State, Taken};
use crate::plan::awake::{bridges, sleepers};
use crate::plan::clients::start_order;
use crate::plan::steps::{Steps, anew};
use crate::plan::vendor::nvidia::{drm_holds_gpus, is_own_service};

/// A way home that nothing speaks against.
pub(crate) struct WayHome<'a> {
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) record: &'a Record,
    /// What is not on the bus, as it is when it is found again.
    pub(crate) removed: &'a [Function],
    /// What comes home: each as it was and as it is, in the order in which it does.
    pub(crate) present: Vec<(&'a Taken, &'a Function)>,
    /// Nothing that was taken is missing.
    pub(crate) all_are_there: bool,
}

/// What is done on a way home.
pub(crate) struct Acts {
    pub(crate) steps: Vec<Step>,
    /// Bridges that may not sleep meanwhile.
    pub(crate) awake: Vec<PciAddr>,
    /// What else is worth saying.
    pub(crate) notes: Vec<String>,
}

impl WayHome<'_> {
    /// The others of a card leave vfio-pci before function 0 does, and come home after it, since they work only while it is
    /// awake.
    ///
    /// NVIDIA's driver takes what another driver keeps at function 1 for a sound card, as soon as it drives a display: with
    /// vfio-pci there the kernel oopses (open-gpu-kernel-modules, kernel-open/nvidia/nv.c, nv_audio_dynamic_power; issues 1365
    /// and 1141). Without a driver nothing is kept there.
    pub(crate) fn acts(&self) -> Acts {
        let (snapshot, record, present) = (self.snapshot, self.record, &self.present);
        let addrs: Vec<PciAddr> = record.taken.iter().map(|t| t.addr).collect();
        let gpus = present.iter().filter(|(_, f)| f.is_nvidia_gpu()).count();
        let mut steps = Steps::home(&record.budgets, gpus, &addrs);
        let mut notes = Vec::new();

        let coming = self.coming();
        let awake = bridges(snapshot, &coming, Some(record));
        for addr in awake.iter().copied().chain(sleepers(&coming)) {
            steps.keep_awake(addr);
        }
        for function in self.removed {
            steps.rescan(function.parent, function.addr);
        }
        // What had no driver is kept from the modules that are loaded for the others.
        let kept = |f: &Function| f.driver_override.as_deref() == Some(VFIO_PCI);
        for (_, function) in self.driverless().filter(|(_, f)| !kept(f)) {
            steps.set_override(function.addr, Some(VFIO_PCI));
        }
        // Neither may NVIDIA's driver take a GPU, with its load for another, whose sound is not off vfio-pci yet.
        for (_, function) in present
            .iter()
            .filter(|(t, f)| self.waits_for_its_sound(t, f) && !kept(f))
        {
            steps.set_override(function.addr, Some(VFIO_PCI));
        }
        // Somebody has had NVIDIA's driver take what is not its own, and the service, which runs again, holds that.
        if coming.iter().any(|f| f.is_on_nvidia()) {
            for unit in record.units.iter().filter(|unit| is_beside_us(unit)) {
                steps.stop(unit, &[]).soft();
            }
        }
        // Their nodes of VFIO, as long as they are on vfio-pci: a guest that came now would hold up the unbind.
        let (bereft, strays) = (self.bereft(), self.strays());
        let let_go = coming.iter().copied().chain(strays.iter().map(|(_, f)| *f));
        let behind = let_go.filter(|f| f.driver.is_some() && record.gate);
        let behind: Vec<PciAddr> = behind.map(|f| f.addr).collect();
        if !behind.is_empty() {
            steps.shut_gate(&behind, false);
        }
        for (beside, function) in &strays {
            steps.set_override(beside.addr, Some(&beside.driver));
            if let Some(other) = &function.driver {
                steps.prove_free(beside.addr, &[], false);
                steps.unbind(beside.addr, other);
            }
        }
        let mut slots: Vec<PciSlot> = present.iter().map(|(_, f)| f.addr.slot()).collect();
        slots.dedup();
        // All at once; by card where a module is to be loaded first, since a card that cannot come home for that keeps the next one
        // where it is of use.
        let at_once = if self.needs_a_module() { 1 } else { slots.len().max(1) };
        let last = coming.iter().map(|f| f.addr.slot()).next_back();
        if !behind.is_empty() && last.is_none() {
            steps.open_gate(&behind);
        }
        for some in slots.chunks(at_once) {
            let its = |slot: PciSlot| present.iter().filter(move |(_, f)| f.addr.slot() == slot);
            for slot in some {
                for (taken, function) in its(*slot).rev().filter(|(t, f)| f.driver != t.driver) {
                    self.let_go(taken, function, &mut steps);
                }
            }
            // Before what has just left is bound: the kernel gives the numbers to the next VM's group (linux, drivers/vfio/group.c,
            // vfio_group_release), and a probe can take its time.
            if !behind.is_empty() && last.is_some_and(|last| some.contains(&last)) {
                steps.open_gate(&behind);
            }
            for slot in some {
                for (taken, function) in its(*slot) {
                    self.bring_home(taken, function, &mut steps);
                }
            }
        }
        for (beside, _) in &strays {
            self.bind_again(beside, &mut steps);
        }
        // Nobody has asked what it is.
        for beside in &bereft {
            steps.set_override(beside.addr, beside.driver_override.as_deref());
        }
        // Without any of their GPUs they would not load, and serve nobody.
        if gpus > 0 || !bereft.is_empty() || self.all_are_there {
            self.load_modules(&mut steps, &mut notes);
        }
        for (taken, function) in self.driverless() {
            steps.set_override(function.addr, taken.driver_override.as_deref());
        }
        for (taken, _) in present {
            for (attribute, before) in &taken.attributes {
                // The device has come home whatever becomes of these.
                steps.set_attribute(taken.addr, *attribute, before).soft();
            }
        }
        for bridge in &awake {
            steps.let_sleep(*bridge);
        }
        // A run that was broken off may have left nothing but these behind, and, where the record could not be written, no
        // word of it.
        self.give_displays_back(&mut steps);
        // Before the services, which may take their time.
        if !steps.is_empty() || record.state == State::Stranded {
            self.verify(&mut steps);
        }
        // Before the services inside, which open what they find.
        for container in &snapshot.containers {
            steps.renew_nodes(*container, &record.numbers);
        }
        self.restart_services(&mut steps);
        Acts {
            steps: steps.into_list(),
            awake,
            notes,
        }
    }

    /// What a run that was killed may have left without its driver, when that was unloaded for another. What somebody has
    /// given to a guest meanwhile is left alone.
    fn bereft(&self) -> Vec<&Beside> {
        let is_left = |f: &Function| !f.gone && !f.is_on_vfio();
        let stayed = self.record.stayed();
        stayed
            .filter(|b| self.snapshot.function(b.addr).is_some_and(is_left))
            .collect()
    }

    /// Those of them that are without it, or on another.
    fn strays(&self) -> Vec<(&Beside, &Function)> {
        let bereft = self.bereft().into_iter();
        let there = bereft.filter_map(|b| Some((b, self.snapshot.function(b.addr)?)));
        there.filter(|(b, f)| f.driver.as_ref() != Some(&b.driver)).collect()
    }

    fn bind_again(&self, beside: &Beside, steps: &mut Steps<'_>) {
        if self.snapshot.module("nvidia").is_none() && !steps.loads("nvidia") {
            steps.load("nvidia");
        }
        let again = vec![Act::load("nvidia"), Act::probe(beside.addr, &beside.driver)];
        steps.probe(beside.addr, &beside.driver).rungs(vec![again]);
    }

    /// Whether a driver is not loaded that one of them goes to.
    fn needs_a_module(&self) -> bool {
        let mut modules = self.present.iter().filter_map(|(taken, _)| taken.module.as_deref());
        modules.any(|name| self.snapshot.module(name).is_none())
    }

    /// Functions that are not on their driver.
    fn coming(&self) -> Vec<&Function> {
        let present = self.present.iter();
        present.filter(|(t, f)| f.driver != t.driver).map(|(_, f)| *f).collect()
    }

    /// Whether modules may be loaded, because a function changes its driver.
    fn moves(&self) -> bool {
        self.present.iter().any(|(t, f)| f.driver != t.driver)
    }

    /// Whether this is a GPU without a driver beside a sound function that is on vfio-pci.
    fn waits_for_its_sound(&self, taken: &Taken, function: &Function) -> bool {
        let sound = function.addr.sound();
        let is_gpu = function.addr.function == 0 && taken.driver.as_deref() == Some("nvidia");
        let is_there = |(_, f): &(&Taken, &Function)| f.addr == sound && f.is_on_vfio();
        is_gpu && function.driver.is_none() && self.present.iter().any(is_there)
    }

    /// Functions that had no driver, where others move.
    fn driverless(&self) -> impl Iterator<Item = &(&Taken, &Function)> {
        let moves = self.moves();
        self.present.iter().filter(move |(t, _)| t.driver.is_none() && moves)
    }

    /// Takes a function off the driver that it is on; who looks for it from then on finds the one that it goes to.
    fn let_go(&self, taken: &Taken, function: &Function, steps: &mut Steps<'_>) {
        let addr = function.addr;
        let is_other = taken.driver != function.driver_override || self.waits_for_its_sound(taken, function);
        if taken.driver.is_some() && is_other {
            steps.set_override(addr, taken.driver.as_deref());
        }
        if let Some(current) = &function.driver {
            steps.prove_free(addr, &[], false);
            steps.unbind(addr, current);
        }
    }

    fn bring_home(&self, taken: &Taken, function: &Function, steps: &mut Steps<'_>) {
        let addr = taken.addr;
        let (was, is) = (taken.driver_override.as_deref(), function.driver_override.as_deref());
        if function.driver == taken.driver {
            let later = taken.driver.is_none() && self.moves();
            if is != was && !later {
                steps.set_override(addr, was);
            }
            return;
        }
        let Some(driver) = taken.driver.as_deref() else { return };
        let mut rungs = self.rungs(function, driver);
        // Loaded only now: what modprobe loads along with nvidia (softdeps) finds the GPU bound.
        let absent = |m: &&String| self.snapshot.module(m).is_none();
        if let Some(module) = taken.module.as_ref().filter(absent).filter(|m| !steps.loads(m)) {
            let step = steps.load(module);
            // nvidia does not load where no GPU lets itself be bound: it is the load that fails then.
            if driver == "nvidia" {
                step.rungs(in_place_of(&Act::probe(addr, driver), &Act::load(module), &rungs));
            }
        } else if let Some(module) = taken.module.as_ref().filter(absent) {
            // It was to be loaded for another function, which may not have come home.
            rungs.insert(0, vec![Act::load(module), Act::probe(addr, driver)]);
        }
        steps.probe(addr, driver).rungs(rungs);
        if Some(driver) != was {
            steps.set_override(addr, was);
        }
    }

    /// What is tried where a function does not let itself be bound to its driver: the same once more; a reset of it; one of
    /// all below the bridge above it, where that is this card; then the whole card leaves the bus and is found again, which makes the kernel set it up anew and lets its drivers bind
    /// by themselves.
    fn rungs(&self, function: &Function, driver: &str) -> Vec<Vec<Act>> {
        let addr = function.addr;
        let probe = || Act::probe(addr, driver);
        // Once more: somebody else's modprobe may have been in the middle of loading the driver, or of giving up.
        let mut rungs = vec![vec![probe()]];
        if self.snapshot.function(addr).is_none() {
            // It was gone, and is found again by now. An id left to vfio-pci attracts what has no override, and a GPU is
            // what nouveau is for.
            let mut rung = vec![Act::prove_free(vec![addr]), Act::unbind(addr, VFIO_PCI)];
            rung.extend((driver == "nvidia").then(|| Act::unbind(addr, "nouveau")));
            rung.push(probe());
            rungs.push(rung);
            return rungs;
        }
        if self.record.may_reset && !function.reset_methods.is_empty() {
            rungs.push(vec![Act::Reset { addr }, probe()]);
        }
        if let Some(bridge) = self.bridge_to_reset(function) {
            let free = Act::prove_free(self.below(bridge).map(|f| f.addr).collect());
            rungs.push(vec![free, Act::ResetBus { addr, bridge }, probe()]);
        }
        let slot: Vec<PciAddr> = self.snapshot.slot(addr.slot()).map(|f| f.addr).collect();
        if addr.function == 0 && slot.iter().all(|a| self.may_be_removed(*a)) {
            rungs.push(self.anew(function, driver, &slot));
        }
        rungs
    }

    /// What is directly below a bridge.
    fn below(&self, bridge: PciAddr) -> impl Iterator<Item = &Function> {
        let functions = self.snapshot.functions.iter();
        functions.filter(move |f| f.parent == Some(bridge))
    }

    /// The bridge above a card that can reset all below it, where that is this card, all of which comes home, and nothing
    /// else. A `bus` reset of the function itself is no way there: it is refused beside another function of the bus (linux,
    /// drivers/pci/pci.c, pci_parent_bus_reset).
    fn bridge_to_reset(&self, function: &Function) -> Option<PciAddr> {
        let bridge = self.snapshot.function(function.parent?)?;
        let is_ours = |f: &Function| f.addr.slot() == function.addr.slot() && !f.bridge && self.may_be_removed(f.addr);
        let may = self.record.may_reset && bridge.resets_below && function.addr.function == 0;
        (may && self.below(bridge.addr).all(is_ours)).then_some(bridge.addr)
    }

    /// A removal waits for users like an unbind: only what is ours, and was proven free, may go with it. And what would
    /// come back on another driver than it had, none of it.
    fn may_be_removed(&self, addr: PciAddr) -> bool {
        let comes_back = |t: &Taken| t.driver.as_deref().is_some_and(|d| d != VFIO_PCI);
        self.record.taken.iter().any(|t| t.addr == addr && comes_back(t))
    }

    /// The card of function 0 leaves the bus and is found again. `slot`: all its functions.
    fn anew(&self, function: &Function, driver: &str, slot: &[PciAddr]) -> Vec<Act> {
        let (addr, bridge) = (function.addr, function.parent);
        // The other functions may be home already, and in use by now.
        let mut anew = vec![Act::prove_free(slot.to_vec())];
        anew.extend(slot.iter().rev().map(|addr| Act::Remove { addr: *addr }));
        anew.push(Act::Rescan { bridge, addr });
        anew.push(Act::probe(addr, driver));
        // Overrides do not come back by themselves.
        let lost = self.record.taken.iter().filter(|t| slot.contains(&t.addr));
        anew.extend(lost.filter_map(|t| Some(Act::set_override(t.addr, Some(t.driver_override.as_deref()?)))));
        anew
    }

    /// nvidia itself was loaded for its GPU; the others come after it, because nvidia_drm of a driver that lets no
    /// GPU go takes only those that are there when it is loaded.
    fn load_modules(&self, steps: &mut Steps<'_>, notes: &mut Vec<String>) {
        // A way home that was broken off may have bound the GPU and not come to this.
        let comes_home = !steps.is_empty() || matches!(self.record.state, State::Returning | State::Stranded);
        for name in self.record.modules.iter().rev() {
            let loaded = self.snapshot.module(name);
            let reload = name == "nvidia_drm" && comes_home && drm_holds_gpus(self.snapshot);
            if reload && loaded.and_then(|m| m.refs) == Some(0) {
                // A console may have come to it with the GPU.
                steps.unload(name).soft();
                steps.load(name);
            } else if reload {
                notes.push(format!(
                    "{name} is in use by another GPU and stays loaded: the returning GPU drives no display until it is \
                     reloaded"
                ));
            } else if loaded.is_none() && name != "nvidia" {
                steps.load(name);
            }
        }
    }

    fn give_displays_back(&self, steps: &mut Steps<'_>) {
        for platform in &self.record.platforms {
            // A driver of the GPU that has its framebuffer by now keeps the firmware's away, and is the better one.
            steps.platform(platform, true).soft();
        }
        for console in &self.record.consoles {
            // Its number may have changed with the last framebuffer's end (linux, drivers/video/fbdev/core/fbcon.c), and
            // a framebuffer that is new draws the console by itself.
            steps.console(console, true).soft();
        }
    }

    fn restart_services(&self, steps: &mut Steps<'_>) {
        // The GPU is home whatever becomes of its services.
        let order = start_order(&self.record.units);
        let (starters, others): (Vec<&Unit>, Vec<&Unit>) = order.iter().partition(|unit| is_starter(&unit.name()));
        // Where the run was killed in between, what they start runs still. One that runs by now though all had left in order
        // somebody has started, and it is left alone, and named.
        let is_whole = self.record.state == State::Away;
        let stem = |unit: &Unit| unit.name().rsplit_once('.').map(|(stem, _)| stem.to_owned());
        let is_started = |unit: &&&Unit| {
            let starts = |one: &&Unit| one.is_beside(unit) && stem(one) == stem(unit);
            !is_whole && !is_own_service(unit, true) && starters.iter().any(starts)
        };
        for unit in others.iter().rev().filter(is_started) {
            steps.stop(unit, &[]).soft();
        }
        for unit in order {
            // One of NVIDIA's that runs for other GPUs learns of the returned one only when it starts, but for DCGM where it has
            // let the driver go. Another one that runs by now somebody has started.
            if is_own_service(unit, true) && unit.runs_on().is_none() && self.brings_a_gpu() {
                steps.restart(unit).soft();
            } else if is_whole {
                steps.start_what_has_ended(unit).soft().rungs(anew(unit));
            } else {
                steps.start(unit).soft().rungs(anew(unit));
            }
        }
    }

    fn verify(&self, steps: &mut Steps<'_>) {
        for (taken, _) in self.gpus_of_nvidia() {
            steps.verify(taken.addr, taken.width);
        }
    }

    /// The GPUs that go back to NVIDIA's driver.
    fn gpus_of_nvidia(&self) -> impl Iterator<Item = &(&Taken, &Function)> {
        let back = |t: &Taken, f: &Function| f.is_nvidia_gpu() && t.driver.as_deref() == Some("nvidia");
        self.present.iter().filter(move |(t, f)| back(t, f))
    }

    /// Whether one comes that an earlier try has not brought home already.
    fn brings_a_gpu(&self) -> bool {
        let mut gpus = self.gpus_of_nvidia();
        gpus.any(|(taken, function)| self.record.state != State::Stranded || function.driver != taken.driver)
    }
}

/// Whether it is in no container.
fn is_beside_us(unit: &Unit) -> bool {
    unit.container().is_none() && !unit.is_container()
}

/// The rungs with another act in the place of one.
fn in_place_of(act: &Act, other: &Act, rungs: &[Vec<Act>]) -> Vec<Vec<Act>> {
    let put = |a: &Act| if a == act { other.clone() } else { a.clone() };
    rungs.iter().map(|rung| rung.iter().map(put).collect()).collect()
}
