//! The plan from vfio-pci to the host, from the record alone and how things are now. Pure.

use std::collections::BTreeSet;

use crate::inventory::{Function, Snapshot};
use crate::pci::PciAddr;
use crate::plan::{
    Direction, Plan, Steps, Way, card, load, probe, set_attribute, set_override, slots, start, stop, unbind, unload,
};
use crate::record::{Record, Taken};
use crate::refusal::{Reason, Refusal};
use crate::step::Act;
use crate::uses;

/// The plan from vfio-pci to the host, from the record alone and how things are now.
///
/// # Errors
/// [`Refusal`] where somebody still uses a function.
pub fn plan(snapshot: &Snapshot, record: &Record) -> Result<Plan, Refusal> {
    let addrs: Vec<PciAddr> = record.taken.iter().map(|t| t.addr).collect();
    let on_vfio: Vec<PciAddr> = addrs
        .iter()
        .copied()
        .filter(|a| snapshot.function(*a).is_some_and(Function::is_on_vfio))
        .collect();
    let mut reasons = uses::use_of(snapshot, &on_vfio);
    reasons.extend(record.stuck.iter().map(|a| Reason::Stuck(*a)));
    if !reasons.is_empty() {
        return Err(Refusal(reasons));
    }
    let mut plan = Plan {
        direction: Direction::Home,
        owner: record.owner,
        cards: slots(&addrs),
        way: Way::AlreadyThere,
        taken: record.taken.clone(),
        modules: record.modules.clone(),
        units: record.units.clone(),
        missing: Vec::new(),
        steps: Vec::new(),
        notes: Vec::new(),
    };
    let gpus = snapshot.gpus().filter(|f| addrs.contains(&f.addr)).count();
    let mut steps = Steps::new(&record.budgets, gpus);
    for taken in &record.taken {
        match snapshot.function(taken.addr) {
            Some(function) => home_steps(snapshot, taken, function, &mut steps),
            None => plan.missing.push(taken.addr),
        }
    }
    // nvidia itself was loaded for its GPU; the others come after it, because nvidia_drm before 590 takes only the
    // GPUs that are there when it is loaded.
    for name in record.modules.iter().rev() {
        let loaded = snapshot.module(name);
        let reload = name == "nvidia_drm" && !steps.steps.is_empty() && loaded.is_some();
        if reload && loaded.and_then(|m| m.refs) == Some(0) {
            steps.push(unload(name), Vec::new());
            steps.push(load(name), Vec::new());
        } else if reload {
            plan.notes.push(format!(
                "{name} is in use by another GPU and stays loaded: the returning GPU drives no display until it is \
                 reloaded"
            ));
        } else if loaded.is_none() && name != "nvidia" {
            steps.push(load(name), Vec::new());
        }
    }
    if !steps.steps.is_empty() {
        for name in &record.units {
            // One that runs for other GPUs learns of the returned one only when it starts.
            steps.push(stop(name), Vec::new());
            steps.push(start(name), Vec::new());
        }
    }
    plan.steps = steps.steps;
    if !plan.steps.is_empty() {
        plan.way = Way::Unbind;
    }
    Ok(plan)
}

fn home_steps(snapshot: &Snapshot, taken: &Taken, function: &Function, steps: &mut Steps<'_>) {
    let addr = taken.addr;
    for (attribute, before) in &taken.attributes {
        steps.push(set_attribute(addr, *attribute, before), Vec::new());
    }
    let was = taken.driver_override.as_deref();
    let current = function.driver.as_deref();
    if current == taken.driver.as_deref() {
        if function.driver_override.as_deref() != was {
            steps.push(set_override(addr, was), Vec::new());
        }
        return;
    }
    let driver = taken.driver.as_deref();
    steps.push(set_override(addr, driver.or(was)), Vec::new());
    if let Some(current) = current {
        steps.push(Act::ProveFree { addrs: vec![addr] }, Vec::new());
        steps.push(unbind(addr, current), Vec::new());
    }
    if let Some(driver) = driver {
        // Loaded only now: what modprobe loads along with nvidia (softdeps) finds the GPU bound.
        let module = taken.module.as_ref().filter(|m| snapshot.module(m).is_none());
        let module = module.filter(|m| !steps.has(&load(m)));
        if let Some(module) = module {
            steps.push(load(module), Vec::new());
        }
        steps.push(probe(addr, driver), Vec::new());
    }
    if driver.is_some() && driver != was {
        steps.push(set_override(addr, was), Vec::new());
    }
}

/// A record for functions that nobody wrote down: what their own drivers would be, by what they are.
///
/// GPUs go to `nvidia`; for the others the kernel chooses when they are probed. The caller says that it was
/// inferred.
pub fn inferred(snapshot: &Snapshot, gpus: &[PciAddr], mut record: Record) -> Record {
    let mut set = BTreeSet::new();
    for gpu in gpus {
        set.extend(card(snapshot, *gpu));
    }
    for function in set.iter().filter_map(|a| snapshot.function(*a)) {
        let (driver, module) = natural_driver(function);
        let on_vfio = function.is_on_vfio();
        record.taken.retain(|t| t.addr != function.addr);
        record.taken.push(Taken {
            addr: function.addr,
            driver: if on_vfio || function.driver.is_none() {
                driver.map(str::to_owned)
            } else {
                function.driver.clone()
            },
            module: module.map(str::to_owned),
            driver_override: None,
            attributes: Vec::new(),
        });
    }
    record.taken.sort_by_key(|t| t.addr);
    if record.modules.is_empty() && snapshot.gpus().any(|f| set.contains(&f.addr)) {
        record.modules = ["nvidia_uvm", "nvidia_drm", "nvidia_modeset", "nvidia"]
            .map(str::to_owned)
            .to_vec();
    }
    record
}

/// Driver and module of a card's functions by class, where the kernel has one for them: the aliases of
/// nvidia (VGA and 3D of vendor 10de), snd_hda_intel, xhci_pci (driver xhci_hcd) and i2c_nvidia_gpu (driver
/// nvidia-gpu) in modules.alias.
fn natural_driver(function: &Function) -> (Option<&'static str>, Option<&'static str>) {
    match function.class.0 >> 8 {
        0x0300 | 0x0302 => (Some("nvidia"), Some("nvidia")),
        0x0403 => (Some("snd_hda_intel"), Some("snd_hda_intel")),
        0x0c03 => (Some("xhci_hcd"), Some("xhci_pci")),
        0x0c80 => (Some("nvidia-gpu"), Some("i2c_nvidia_gpu")),
        _ => (None, None),
    }
}
