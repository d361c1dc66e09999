//! The acts of a way out, in their order, and what is written down of each function. Pure.
//!
//! What goes, by which way, and whether anything speaks against it is decided before, in [`crate::way_out`].

use crate::base::deadlines::Budgets;
use crate::base::pci::PciAddr;
use crate::host::functions::{Function, VFIO_PCI};
use crate::host::snapshot::Snapshot;
use crate::model::act::{Act, Attribute};
use crate::model::plan::{Step, Way};
use crate::model::record::{Record, Taken};
use crate::plan::steps::{
    Steps, load, probe, prove_free, set_attribute, set_console, set_override, set_platform, start, stop, unbind,
    unload, wake,
};
use crate::settings::known_gpus::{self, Fact};
use crate::settings::values::{Reset, Settings};
use crate::way_out::{Displays, Ground, Judged};

/// The acts of a way out that has been decided on, and the bridges that may not sleep meanwhile.
pub(crate) fn steps(
    ground: &Ground<'_>,
    way: Way,
    modules: &[String],
    judged: &Judged,
    displays: &Displays,
    earlier: Option<&Record>,
    settings: &Settings,
) -> (Vec<Step>, Vec<PciAddr>) {
    let Ground { snapshot, leaving, .. } = ground;
    let budgets: &Budgets = &settings.budgets;
    let on_nvidia: Vec<PciAddr> = leaving.iter().filter(|f| f.is_on_nvidia()).map(|f| f.addr).collect();
    let mut steps = Steps::new(budgets, on_nvidia.len(), &ground.addrs());
    if !leaving.is_empty() && !snapshot.vfio_pci {
        // Never unloaded again: other VMs may come to depend on it.
        steps.push(load("vfio_pci"), Vec::new());
    }
    for name in &judged.units {
        steps.push(stop(name), vec![start(name)]);
    }
    for name in &displays.consoles {
        steps.push(set_console(name, false), vec![set_console(name, true)]);
    }
    for platform in &displays.platforms {
        steps.push(set_platform(platform, false), vec![set_platform(platform, true)]);
    }
    let asleep = wake(snapshot, leaving, earlier, &mut steps);
    for function in leaving {
        let before = own_override(function, earlier);
        steps.push(
            set_override(function.addr, Some(VFIO_PCI)),
            vec![set_override(function.addr, before)],
        );
    }
    // Functions 1 to 3 of Turing and later cards work only while function 0 is awake, so it goes last
    // (linux commit 6d2e369f0d, "PCI: Add NVIDIA GPU multi-function power dependencies").
    let descending = || leaving.iter().rev().copied();
    for function in descending() {
        let Some(driver) = &function.driver else { continue };
        if function.is_on_nvidia() {
            continue;
        }
        push_unbind(&mut steps, function.addr, driver, &judged.accepted);
    }
    for name in modules {
        let mut inverse = Vec::new();
        if name == "nvidia" {
            // First, because nvidia does not load where no GPU lets itself be bound.
            inverse.extend(on_nvidia.iter().map(|a| set_override(*a, Some("nvidia"))));
            inverse.push(load(name));
            inverse.extend(on_nvidia.iter().map(|a| probe(*a, "nvidia")));
        } else {
            inverse.push(load(name));
        }
        steps.push(unload(name), inverse);
    }
    if way == Way::Unbind {
        for function in descending().filter(|f| f.is_on_nvidia()) {
            push_unbind(&mut steps, function.addr, "nvidia", &judged.accepted);
        }
    }
    for function in leaving {
        for (attribute, before, wanted) in attributes(snapshot, function, settings) {
            if before == wanted {
                continue;
            }
            let back = set_attribute(function.addr, attribute, &before);
            steps.push(set_attribute(function.addr, attribute, &wanted), vec![back]);
        }
    }
    for function in descending() {
        // A guest may have come meanwhile.
        let mut inverse = vec![prove_free(vec![function.addr]), unbind(function.addr, VFIO_PCI)];
        if function.power_control == "auto" {
            // vfio-pci keeps a function awake that it lets go.
            inverse.push(set_attribute(function.addr, Attribute::Power, "auto"));
        }
        let step = steps.push(probe(function.addr, VFIO_PCI), inverse);
        if settings.reset != Reset::Never && !function.reset_methods.is_empty() {
            let addr = function.addr;
            step.rungs.push(vec![Act::Reset { addr }, probe(addr, VFIO_PCI)]);
        }
    }
    // A run that was broken off, out or home, may have left another one on what is on vfio-pci already.
    let own = |function| own_override(function, earlier).filter(|d| *d != VFIO_PCI);
    let bound = ground.functions.iter().copied().filter(|f| {
        let ours = earlier.is_some_and(|r| r.has(f.addr));
        ours && f.is_on_vfio() && f.driver_override.as_deref() != own(f)
    });
    for function in leaving.iter().copied().chain(bound) {
        // What had no driver is to have none after an undo, which may load nvidia again.
        let back = function
            .driver
            .is_none()
            .then(|| set_override(function.addr, Some(VFIO_PCI)));
        steps.push(set_override(function.addr, own(function)), back.into_iter().collect());
    }
    for bridge in &asleep {
        steps
            .push(set_attribute(*bridge, Attribute::Power, "auto"), Vec::new())
            .soft = true;
    }
    // For those that stay.
    if way == Way::Unbind && !ground.staying().is_empty() {
        for name in modules.iter().rev() {
            steps.push(load(name), vec![unload(name)]);
        }
        // The persistence daemon does not start where there is no GPU; an NVSwitch that stays is none.
        if snapshot.gpus().any(|f| ground.stays(Some(f.addr))) {
            for name in &judged.units {
                steps.push(start(name), vec![stop(name)]);
            }
        }
    }
    if displays.others {
        for name in &displays.consoles {
            steps.push(set_console(name, true), vec![set_console(name, false)]);
        }
    }
    (steps.steps, asleep)
}

/// The override that a function has on the host: what an interrupted run has written down, where there is one.
fn own_override<'a>(function: &'a Function, earlier: Option<&'a Record>) -> Option<&'a str> {
    let known = earlier.and_then(|r| r.taken.iter().find(|t| t.addr == function.addr));
    let known = known.map_or(&function.driver_override, |t| &t.driver_override);
    known.as_deref()
}

fn push_unbind(steps: &mut Steps<'_>, addr: PciAddr, driver: &str, despite: &[i32]) {
    let act = Act::ProveFree {
        addrs: vec![addr],
        despite: despite.to_vec(),
    };
    steps.push(act, Vec::new());
    steps.push(
        unbind(addr, driver),
        vec![set_override(addr, Some(driver)), probe(addr, driver)],
    );
}

pub(crate) fn taken_from(snapshot: &Snapshot, function: &Function, settings: &Settings) -> Taken {
    Taken {
        addr: function.addr,
        driver: function.driver.clone(),
        module: function.module.clone(),
        driver_override: function.driver_override.clone(),
        width: function.width.filter(|_| function.is_nvidia_gpu()),
        attributes: attributes(snapshot, function, settings)
            .into_iter()
            .map(|(attribute, before, _)| (attribute, before))
            .collect(),
    }
}

/// Attributes that are changed while a function is away: which, what puts them back, what they become.
fn attributes(snapshot: &Snapshot, function: &Function, settings: &Settings) -> Vec<(Attribute, String, String)> {
    if function.is_on_vfio() {
        return Vec::new();
    }
    let known = known_gpus::of(&settings.facts, function);
    let known = |value: fn(&Fact) -> Option<String>| known.iter().find_map(|f| value(f));
    let mut changes = Vec::new();
    let wanted = match &settings.reset {
        Reset::By(methods) if function.is_nvidia_gpu() => Some(methods.clone()),
        Reset::Never | Reset::By(_) => None,
        Reset::Auto => known(|f| f.reset.clone()),
    };
    // The list is made before the other functions of a card are known, and a bus reset is not possible beside one (linux,
    // drivers/pci/pci.c, pci_parent_bus_reset): the kernel refuses to have it set.
    let addr = function.addr;
    let alone = || {
        !snapshot
            .functions
            .iter()
            .any(|f| f.addr != addr && (f.addr.domain, f.addr.bus) == (addr.domain, addr.bus))
    };
    let can = |m: &&str| function.reset_methods.iter().any(|has| has == m) && (*m != "bus" || alone());
    let wanted = wanted.map(|methods| methods.split(' ').filter(can).collect::<Vec<_>>().join(" "));
    // Where a fact leaves no method, function resets are switched off: VFIO then resets the whole card by its bus. Where a
    // setting leaves none, the device is left as it is.
    let wanted = wanted.filter(|w| !w.is_empty() || settings.reset == Reset::Auto);
    let before = function.reset_methods.join(" ");
    if let Some(wanted) = wanted.filter(|w| *w != before && !before.is_empty()) {
        changes.push((Attribute::ResetMethod, "default".to_owned(), wanted));
    }
    // Bound to vfio-pci a function is let sleep, and kept awake when it is unbound (linux,
    // drivers/vfio/pci/vfio_pci_core.c): what it was before is lost.
    if function.power_control == "auto" {
        changes.push((Attribute::Power, "auto".to_owned(), "auto".to_owned()));
    }
    let flag = |allowed: bool| if allowed { "1" } else { "0" }.to_owned();
    let wanted = known(|f| f.d3cold.map(|allowed| allowed.to_string()));
    if let Some(wanted) = wanted.map(|w| w == "true").filter(|w| *w != function.d3cold) {
        changes.push((Attribute::D3cold, flag(function.d3cold), flag(wanted)));
    }
    changes
}
