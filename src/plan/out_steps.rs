//! The acts of a way out, in their order. Pure.
//!
//! What goes, by which way, and whether anything speaks against it is decided before, in [`crate::plan::out`].

use std::time::Duration;

use crate::base::pci::PciAddr;
use crate::base::vmid::VmId;
use crate::host::functions::{Function, VFIO_PCI};
use crate::host::units::Unit;
use crate::model::act::{Act, Attribute};
use crate::model::plan::{Step, Way};
use crate::model::record::{Beside, Record, Taken};
use crate::plan::awake::{bridges, sleepers};
use crate::plan::clients::{Judged, start_order};
use crate::plan::consoles::Displays;
use crate::plan::moving::Ground;
use crate::plan::steps::{Added, Steps, anew, both, both_units};
use crate::plan::taken::attributes;
use crate::plan::vendor::nvidia::is_own_service;
use crate::settings::reset::Reset;
use crate::settings::values::{Gate, Processes, Settings};

/// A way out that has been decided on.
pub(crate) struct WayOut<'a> {
    pub(crate) ground: &'a Ground<'a>,
    pub(crate) way: Way,
    /// All that moves, as it was before any handoff.
    pub(crate) taken: &'a [Taken],
    /// What stays and is without its driver meanwhile.
    pub(crate) beside: &'a [Beside],
    /// Modules that are unloaded, in that order.
    pub(crate) modules: &'a [String],
    pub(crate) judged: &'a Judged,
    pub(crate) displays: &'a Displays,
    /// What an interrupted run of the same owner has left.
    pub(crate) earlier: Option<&'a Record>,
    pub(crate) settings: &'a Settings,
}

impl WayOut<'_> {
    /// The acts, and the bridges that may not sleep meanwhile.
    pub(crate) fn steps(&self) -> (Vec<Step>, Vec<PciAddr>) {
        let Ground { snapshot, leaving, .. } = self.ground;
        let let_go = self.on_nvidia().len() + self.beside.len();
        let mut steps = Steps::out(&self.settings.budgets, let_go, &self.ground.addrs()).with(&snapshot.units);
        if !leaving.is_empty() && !snapshot.vfio_pci {
            // Never unloaded again: other VMs may come to depend on it.
            steps.load("vfio_pci").for_good();
        }
        for unit in &self.judged.units {
            let instead = self.judged.instead.iter().filter(|(of, _)| of == unit);
            let rungs = instead
                .map(|(_, other)| vec![Act::stop(other, Duration::ZERO)])
                .collect();
            steps.stop(unit, &self.judged.starters).rungs(rungs);
            if self.judged.desktop.as_ref() == Some(unit) {
                steps.await_desktops(&self.judged.of_desktop, &self.judged.let_go);
            }
        }
        for console in &self.displays.consoles {
            steps.console(console, false);
        }
        for platform in &self.displays.platforms {
            steps.platform(platform, false);
        }
        self.shut_gate(&mut steps);
        // Behind it, so that nobody comes in their place while they are waited for.
        let ended = &self.judged.processes;
        if !ended.is_empty() {
            steps.end_processes(ended, &self.judged.let_go, self.settings.processes == Processes::Kill);
        }
        let awake = bridges(snapshot, leaving, self.earlier);
        for addr in awake.iter().copied().chain(sleepers(leaving)) {
            steps.keep_awake(addr);
        }
        for function in leaving {
            steps.change_override(function.addr, self.own_override(function), Some(VFIO_PCI));
        }
        for (beside, is) in self.without_a_driver() {
            if is.driver_override.as_deref() != Some(&beside.driver) {
                let own = beside.driver_override.as_deref();
                steps.change_override(beside.addr, own, Some(&beside.driver));
            }
        }
        // Functions 1 to 3 of Turing and later cards work only while function 0 is awake, so it goes last
        // (linux commit 6d2e369f0d, "PCI: Add NVIDIA GPU multi-function power dependencies").
        let descending = || leaving.iter().rev().copied();
        for function in descending().filter(|f| !f.is_on_nvidia()) {
            self.unbind(function, &mut steps);
        }
        for module in self.modules {
            self.unload(module, &mut steps);
        }
        if self.way == Way::Unload && !self.beside.is_empty() {
            // Before anything is done at what leaves that may take long: those that stay do not wait for it. Its override keeps
            // the driver from it.
            steps.load("nvidia").for_good();
            self.bind_those_that_stay(&mut steps);
            // Nothing that leaves has a driver any more.
            self.open_gate(&mut steps);
            self.serve_those_that_stay(&mut steps);
        }
        if self.way == Way::Unbind {
            let mut is_first = self.modules.is_empty();
            for function in descending().filter(|f| f.is_on_nvidia()) {
                let unbind = self.unbind(function, &mut steps).filter(|_| is_first);
                unbind.into_iter().for_each(|step| self.undone_for_containers(step));
                is_first = false;
            }
        }
        for function in leaving {
            self.change_attributes(function, &mut steps);
        }
        for function in descending() {
            self.bind_to_vfio(function, &mut steps);
        }
        for function in leaving.iter().copied().chain(self.on_vfio_with_another_override()) {
            self.put_override_back(function, &mut steps);
        }
        for bridge in &awake {
            steps.let_sleep(*bridge);
        }
        if self.way != Way::Unload || self.beside.is_empty() {
            self.open_gate(&mut steps);
            // A run that was killed may have left nothing to unbind, and something to give back.
            let takes = self.way != Way::AlreadyThere || self.earlier.is_some();
            if takes && !(self.ground.staying().is_empty() && self.beside.is_empty()) {
                self.serve_those_that_stay(&mut steps);
            }
        }
        if self.displays.others {
            for console in &self.displays.consoles {
                steps.console(console, true).soft();
            }
        }
        (steps.into_list(), awake)
    }

    /// Functions that leave NVIDIA's driver.
    fn on_nvidia(&self) -> Vec<PciAddr> {
        let leaving = self.ground.leaving.iter();
        leaving.filter(|f| f.is_on_nvidia()).map(|f| f.addr).collect()
    }

    /// After the services and the console, which let go of it with their own descriptors, and before processes are ended and
    /// the first look for holders. What leaves no driver cannot be held through one.
    fn shut_gate(&self, steps: &mut Steps<'_>) {
        let leaving = self.behind_the_gate();
        if !leaving.is_empty() {
            let unloaded = self.way == Way::Unload || self.ground.staying().is_empty();
            let whole = unloaded && !self.on_nvidia().is_empty();
            steps.shut_gate(&leaving, whole);
        }
    }

    /// Before the services of those that stay start again, which open what they find.
    fn open_gate(&self, steps: &mut Steps<'_>) {
        let leaving = self.behind_the_gate();
        if !leaving.is_empty() {
            steps.open_gate(&leaving);
        }
    }

    /// Functions that leave a driver of the host.
    fn behind_the_gate(&self) -> Vec<PciAddr> {
        let leaving = self.ground.leaving.iter().filter(|f| f.driver.is_some());
        let addrs = leaving.map(|f| f.addr);
        match self.settings.gate {
            Gate::Auto => addrs.collect(),
            Gate::Off => Vec::new(),
        }
    }

    /// Takes a function off its driver, if it has one.
    fn unbind<'s>(&self, function: &Function, steps: &'s mut Steps<'_>) -> Option<Added<'s>> {
        let driver = function.driver.as_ref()?;
        steps.prove_free(function.addr, &self.judged.accepted, self.judged.accepts_unseen);
        Some(steps.unbind(function.addr, driver))
    }

    /// The containers that run on and are given nodes of GPUs.
    fn see_the_driver(&self) -> impl Iterator<Item = VmId> {
        let is_down = |container: &VmId| self.judged.units.iter().any(|unit| unit.is_whole_of(*container));
        let containers = self.ground.snapshot.containers.iter();
        containers.filter(move |c| !is_down(c)).copied()
    }

    /// What is let go first is the last to come back in an undo, and containers see it then.
    fn undone_for_containers(&self, step: Added<'_>) {
        let numbers = self.ground.numbers();
        let renewals = self.see_the_driver().map(|c| Act::renew_nodes(c, &numbers));
        renewals.fold(step, Added::undone_also_by);
    }

    fn unload(&self, module: &str, steps: &mut Steps<'_>) {
        let mut step = steps.unload(module);
        if module == "nvidia" {
            let gpus = || self.on_nvidia().into_iter();
            // First, because nvidia does not load where no GPU lets itself be bound.
            let mut back: Vec<Act> = gpus().map(|a| Act::set_override(a, Some("nvidia"))).collect();
            back.push(Act::load(module));
            back.extend(gpus().map(|a| Act::probe(a, "nvidia")));
            back.extend(self.beside.iter().map(|b| Act::probe(b.addr, &b.driver)));
            step = step.undone_by(back);
        }
        if self.modules.first().is_some_and(|first| first == module) {
            self.undone_for_containers(step);
        }
    }

    fn change_attributes(&self, function: &Function, steps: &mut Steps<'_>) {
        let changes = attributes(self.ground.snapshot, function, self.settings);
        for (attribute, before, wanted) in changes.iter().filter(|(_, before, wanted)| before != wanted) {
            steps.change_attribute(function.addr, *attribute, before, wanted);
        }
    }

    fn bind_to_vfio(&self, function: &Function, steps: &mut Steps<'_>) {
        let addr = function.addr;
        let mut step = steps.probe(addr, VFIO_PCI);
        if function.power_control == "auto" {
            // vfio-pci keeps a function awake that it lets go.
            step = step.undone_also_by(Act::set_attribute(addr, Attribute::Power, "auto"));
        }
        if self.settings.reset != Reset::Never && !function.reset_methods.is_empty() {
            step.rungs(vec![vec![Act::Reset { addr }, Act::probe(addr, VFIO_PCI)]]);
        }
    }

    /// The override that a function has on the host.
    fn own_override(&self, function: &Function) -> Option<&str> {
        let taken = self.taken.iter().find(|t| t.addr == function.addr);
        taken?.driver_override.as_deref()
    }

    /// The override that a function has once it is bound: the host's own again, unless that is vfio-pci.
    fn override_away<'f>(&'f self, function: &'f Function) -> Option<&'f str> {
        self.own_override(function).filter(|d| *d != VFIO_PCI)
    }

    /// What is on vfio-pci already, where a run that was broken off, out or home, has left another override on it.
    fn on_vfio_with_another_override(&self) -> impl Iterator<Item = &Function> {
        let ours = |f: &Function| self.earlier.is_some_and(|r| r.has(f.addr));
        let functions = self.ground.functions.iter().copied().filter(|f| f.is_on_vfio());
        functions.filter(move |f| ours(f) && f.driver_override.as_deref() != self.override_away(f))
    }

    fn put_override_back(&self, function: &Function, steps: &mut Steps<'_>) {
        let step = steps.set_override(function.addr, self.override_away(function));
        if !function.is_on_vfio() {
            // In an undo, too, nobody takes it who loads a module meanwhile; and what had no driver has none after it.
            step.undone_by(vec![Act::set_override(function.addr, Some(VFIO_PCI))]);
        }
    }

    /// What stays and is without its driver meanwhile, or may have been since a run that was killed; and how it is.
    fn those_that_stay(&self) -> impl Iterator<Item = (&Beside, &Function)> {
        let snapshot = self.ground.snapshot;
        self.beside.iter().filter_map(|b| Some((b, snapshot.function(b.addr)?)))
    }

    /// Those of them that have to be bound again.
    fn without_a_driver(&self) -> impl Iterator<Item = (&Beside, &Function)> {
        self.those_that_stay().filter(|(_, is)| self.loses_its_driver(is))
    }

    fn loses_its_driver(&self, is: &Function) -> bool {
        self.way == Way::Unload || is.driver.is_none()
    }

    fn bind_those_that_stay(&self, steps: &mut Steps<'_>) {
        for (Beside { addr, driver, .. }, is) in self.without_a_driver() {
            let again = vec![Act::load("nvidia"), Act::probe(*addr, driver)];
            let step = steps.probe(*addr, driver).for_good().rungs(vec![again]);
            if is.driver.is_none() {
                step.soft(); // an earlier run has left it so: it does not keep others from starting
            }
        }
    }

    /// Modules and services come back for those that stay on NVIDIA's driver; what a run that was killed has taken from them,
    /// too.
    fn serve_those_that_stay(&self, steps: &mut Steps<'_>) {
        for module in both(self.earlier.map(|r| &r.modules), self.modules).iter().rev() {
            if module == "nvidia" && steps.loads(module) {
                continue;
            }
            let step = steps.load(module);
            // What stays may be in use from here on, and what leaves is taken back without another unload.
            if module.starts_with("nvidia") && !self.beside.is_empty() {
                step.for_good();
            }
            if module == "nvidia" {
                self.bind_those_that_stay(steps);
            }
        }
        for (beside, is) in self.those_that_stay() {
            let (own, driver) = (beside.driver_override.as_deref(), Some(beside.driver.as_str()));
            let is_changed = self.loses_its_driver(is) && own != driver;
            if is_changed || is.driver_override.as_deref() != own {
                steps.set_override(beside.addr, own);
            }
        }
        // What is loaded anew may have other numbers.
        if !both(self.earlier.map(|r| &r.modules), self.modules).is_empty() {
            let numbers = self.ground.numbers();
            for container in self.see_the_driver() {
                steps.renew_nodes(container, &numbers);
            }
        }
        // The persistence daemon does not start where there is no GPU; an NVSwitch that stays is none.
        let mut gpus = self.ground.snapshot.gpus();
        if gpus.any(|f| self.ground.stays(Some(f.addr))) {
            // Others come back when all that they had is home.
            let units = both_units(self.earlier.map(|r| &r.units), &self.judged.units);
            let Judged { again, with_own, .. } = self.judged;
            // Its GPU is there again, or has been all the time.
            let is_others = |unit: &Unit| again.contains(unit) || with_own.contains(unit);
            for unit in start_order(&units) {
                if is_own_service(unit, true) {
                    steps.start(unit).rungs(anew(unit));
                } else if is_others(unit) {
                    steps.start(unit).soft().for_good();
                }
            }
        }
    }
}
