//! The acts of a way out, in their order, and what is written down of each function. Pure.
//!
//! What goes, by which way, and whether anything speaks against it is decided before, in [`crate::plan::out`].

use crate::base::deadlines::Budgets;
use crate::base::pci::PciAddr;
use crate::host::functions::VFIO_PCI;
use crate::model::act::{Act, Attribute};
use crate::model::plan::{Step, Way};
use crate::model::record::Record;
use crate::plan::consoles::Displays;
use crate::plan::moving::Ground;
use crate::plan::steps::{
    Steps, load, probe, prove_free, set_attribute, set_console, set_override, set_platform, start, stop, unbind,
    unload, wake,
};
use crate::plan::taken::{attributes, own_override};
use crate::plan::users::Judged;
use crate::settings::values::{Reset, Settings};

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
