//! The plan from vfio-pci to the host. Pure: from the record, not from any config, and from how things are now.

use crate::base::pci::{PciAddr, PciClass, VENDOR_NVIDIA, slots};
use crate::host::functions::{Function, VFIO_PCI};
use crate::host::snapshot::Snapshot;
use crate::model::act::{Act, Attribute};
use crate::model::plan::{Direction, Plan, Way};
use crate::model::record::{Record, State, Taken, found_again};
use crate::model::refusal::{Reason, Refusal};
use crate::plan::steps::{
    Steps, load, probe, prove_free, set_attribute, set_console, set_override, set_platform, start, stop, unbind,
    unload, wake,
};
use crate::plan::users;
use crate::plan::vendor::nvidia::drm_holds_gpus;

/// The plan from vfio-pci to the host, from the record alone and how things are now.
///
/// # Errors
/// [`Refusal`] where somebody still uses a function.
pub fn plan(snapshot: &Snapshot, record: &Record) -> Result<Plan, Refusal> {
    let addrs: Vec<PciAddr> = record.taken.iter().map(|t| t.addr).collect();
    let is_on_vfio = |a: &PciAddr| snapshot.function(*a).is_some_and(Function::is_on_vfio);
    let on_vfio: Vec<PciAddr> = addrs.iter().copied().filter(is_on_vfio).collect();
    let mut reasons = users::use_of(snapshot, &on_vfio);
    reasons.extend(record.stuck().map(Reason::Stuck));
    if !reasons.is_empty() {
        return Err(Refusal(reasons));
    }
    // A host bridge that went along is no card.
    let is_card = |a: &PciAddr| snapshot.function(*a).is_none_or(|f| f.vendor == VENDOR_NVIDIA);
    let cards: Vec<PciAddr> = addrs.iter().copied().filter(is_card).collect();
    let mut plan = Plan {
        direction: Direction::Home,
        owner: record.owner,
        cards: slots(&cards),
        way: Way::AlreadyThere,
        taken: record.taken.clone(),
        modules: record.modules.clone(),
        units: record.units.clone(),
        consoles: record.consoles.clone(),
        platforms: record.platforms.clone(),
        awake: Vec::new(),
        missing: Vec::new(),
        steps: Vec::new(),
        notes: Vec::new(),
    };
    let mut present = Vec::new();
    // What an interrupted run has removed, as it is when it is found again.
    let removed: Vec<Function> = record
        .taken
        .iter()
        .filter_map(|t| removed(snapshot, record, t))
        .collect();
    for taken in &record.taken {
        let known = removed.iter().find(|f| f.addr == taken.addr);
        match snapshot.function(taken.addr).or(known) {
            None => plan.missing.push((taken.addr, "is not there any more".to_owned())),
            // Every access to it would take the minute that the kernel waits for a device after a reset.
            Some(function) if function.gone => plan.missing.push((
                taken.addr,
                "does not answer any more (it reads all ones) and needs a power cycle".to_owned(),
            )),
            Some(function) => present.push((taken, function)),
        }
    }
    // An NVSwitch, whose driver is in the same module, does not keep that loaded: without a GPU it gives up (see
    // modules_home).
    let is_switch = |t: &Taken| t.module.as_deref() == Some("nvidia") && t.driver.as_deref() != Some("nvidia");
    present.sort_by_key(|(taken, _)| is_switch(taken));
    let gpus = present.iter().filter(|(_, f)| f.is_nvidia_gpu()).count();
    let mut steps = Steps::new(&record.budgets, gpus, &addrs);
    let leaving = |(taken, function): &&(&Taken, &Function)| function.driver != taken.driver;
    let asleep: Vec<&Function> = present.iter().filter(leaving).map(|(_, f)| *f).collect();
    let bridges = wake(snapshot, &asleep, Some(record), &mut steps);
    plan.awake.clone_from(&bridges);
    for rescan in removed.iter().filter_map(|f| found_again(record, f.addr)) {
        steps.push(rescan, Vec::new());
    }
    let moves = present.iter().any(|(t, f)| f.driver != t.driver);
    // What had no driver is kept from the modules that are loaded for the others.
    let without = || present.iter().filter(|(t, _)| t.driver.is_none() && moves);
    for (_, function) in without().filter(|(_, f)| f.driver_override.as_deref() != Some(VFIO_PCI)) {
        steps.push(set_override(function.addr, Some(VFIO_PCI)), Vec::new());
    }
    for (taken, function) in &present {
        home_steps(snapshot, record, taken, function, moves, &mut steps);
    }
    // Without any of their GPUs they would not load, and serve nobody.
    if gpus > 0 || plan.missing.is_empty() {
        modules_home(snapshot, record, &mut steps, &mut plan.notes);
    }
    for (taken, function) in without() {
        steps.push(
            set_override(function.addr, taken.driver_override.as_deref()),
            Vec::new(),
        );
    }
    for (taken, _) in &present {
        for (attribute, before) in &taken.attributes {
            // The device has come home whatever becomes of these.
            steps
                .push(set_attribute(taken.addr, *attribute, before), Vec::new())
                .soft = true;
        }
    }
    for bridge in bridges {
        steps
            .push(set_attribute(bridge, Attribute::Power, "auto"), Vec::new())
            .soft = true;
    }
    // A run that was broken off may have left nothing but these behind.
    if !steps.steps.is_empty() || record.state != State::Away {
        displays_home(record, &mut steps);
        for name in &record.units {
            // One that runs for other GPUs learns of the returned one only when it starts.
            steps.push(stop(name), Vec::new());
            steps.push(start(name), Vec::new());
        }
    }
    if !steps.steps.is_empty() {
        plan.way = Way::Unbind;
    }
    let doubtful = !steps.steps.is_empty() || record.state == State::Stranded;
    for (taken, function) in present.into_iter().filter(|_| doubtful) {
        if function.is_nvidia_gpu() && taken.driver.as_deref() == Some("nvidia") {
            let (addr, width) = (taken.addr, taken.width);
            steps.push(Act::Verify { addr, width }, Vec::new());
        }
    }
    plan.steps = steps.steps;
    Ok(plan)
}

/// A function that an interrupted run has removed from the bus, as it is found again: without an override, on no driver
/// where none is quicker.
fn removed(snapshot: &Snapshot, record: &Record, taken: &Taken) -> Option<Function> {
    let addr = taken.addr;
    let Some(Act::Rescan { bridge, .. }) = found_again(record, addr).filter(|_| snapshot.function(addr).is_none())
    else {
        return None;
    };
    // VGA, as far as it matters here: what a GPU does when it is home is looked at.
    let is_gpu = taken.driver.as_deref() == Some("nvidia");
    let class = PciClass(if is_gpu { 0x03_0000 } else { 0 });
    Some(Function {
        parent: bridge,
        ..Function::new(addr, VENDOR_NVIDIA, 0, class)
    })
}

/// nvidia itself was loaded for its GPU; the others come after it, because nvidia_drm before 590 takes only the GPUs that
/// are there when it is loaded.
fn modules_home(snapshot: &Snapshot, record: &Record, steps: &mut Steps<'_>, notes: &mut Vec<String>) {
    // A way home that was broken off may have bound the GPU and not come to this.
    let comes_home = !steps.steps.is_empty() || matches!(record.state, State::Returning | State::Stranded);
    for name in record.modules.iter().rev() {
        let loaded = snapshot.module(name);
        let reload = name == "nvidia_drm" && comes_home && drm_holds_gpus(snapshot);
        if reload && loaded.and_then(|m| m.refs) == Some(0) {
            // A console may have come to it with the GPU.
            steps.push(unload(name), Vec::new()).soft = true;
            steps.push(load(name), Vec::new());
        } else if reload {
            notes.push(format!(
                "{name} is in use by another GPU and stays loaded: the returning GPU drives no display until it is \
                 reloaded"
            ));
        } else if loaded.is_none() && name != "nvidia" {
            steps.push(load(name), Vec::new());
        }
    }
}

fn displays_home(record: &Record, steps: &mut Steps<'_>) {
    for platform in &record.platforms {
        // A driver of the GPU that has its framebuffer by now keeps the firmware's away, and is the better one.
        steps.push(set_platform(platform, true), Vec::new()).soft = true;
    }
    for name in &record.consoles {
        // Its number may have changed with the last framebuffer's end (linux, drivers/video/fbdev/core/fbcon.c), and a
        // framebuffer that is new draws the console by itself.
        steps.push(set_console(name, true), Vec::new()).soft = true;
    }
}

/// `moves`: some function changes its driver, so that modules may be loaded.
fn home_steps(
    snapshot: &Snapshot,
    record: &Record,
    taken: &Taken,
    function: &Function,
    moves: bool,
    steps: &mut Steps<'_>,
) {
    let addr = taken.addr;
    let was = taken.driver_override.as_deref();
    let current = function.driver.as_deref();
    if current == taken.driver.as_deref() {
        let later = taken.driver.is_none() && moves;
        if function.driver_override.as_deref() != was && !later {
            steps.push(set_override(addr, was), Vec::new());
        }
        return;
    }
    let driver = taken.driver.as_deref();
    if let Some(driver) = driver.filter(|d| function.driver_override.as_deref() != Some(*d)) {
        steps.push(set_override(addr, Some(driver)), Vec::new());
    }
    if let Some(current) = current {
        steps.push(prove_free(vec![addr]), Vec::new());
        steps.push(unbind(addr, current), Vec::new());
    }
    if let Some(driver) = driver {
        // Loaded only now: what modprobe loads along with nvidia (softdeps) finds the GPU bound.
        let module = taken.module.as_ref().filter(|m| snapshot.module(m).is_none());
        let module = module.filter(|m| !steps.has(&load(m)));
        let rungs = rungs_home(snapshot, record, function, driver);
        if let Some(module) = module {
            let step = steps.push(load(module), Vec::new());
            // nvidia does not load where no GPU lets itself be bound: it is the load that fails then.
            if driver == "nvidia" {
                step.rungs.clone_from(&rungs);
                let probe = probe(addr, driver);
                for act in step.rungs.iter_mut().flatten().filter(|a| **a == probe) {
                    *act = load(module);
                }
            }
        }
        steps.push(probe(addr, driver), Vec::new()).rungs = rungs;
    }
    if driver.is_some() && driver != was {
        steps.push(set_override(addr, was), Vec::new());
    }
}

/// What is tried where a function does not let itself be bound to its driver: the same once more; a reset of it; then the
/// whole card leaves the bus and is found again, which makes the kernel set it up anew and lets its drivers bind by
/// themselves.
fn rungs_home(snapshot: &Snapshot, record: &Record, function: &Function, driver: &str) -> Vec<Vec<Act>> {
    let addr = function.addr;
    // Once more: somebody else's modprobe may have been in the middle of loading the driver, or of giving up.
    let mut rungs = vec![vec![probe(addr, driver)]];
    if snapshot.function(addr).is_none() {
        // It was removed, and is found again by now. An id left to vfio-pci attracts what has no override.
        rungs.push(vec![
            prove_free(vec![addr]),
            unbind(addr, VFIO_PCI),
            probe(addr, driver),
        ]);
        return rungs;
    }
    if record.may_reset && !function.reset_methods.is_empty() {
        rungs.push(vec![Act::Reset { addr }, probe(addr, driver)]);
    }
    let slot: Vec<PciAddr> = snapshot.slot(addr.slot()).map(|f| f.addr).collect();
    // A removal waits for users like an unbind: only what is ours, and was proven free, may go with it.
    // And what would come back on another driver than it had, none of it.
    let comes_back = |t: &&Taken| t.driver.as_deref().is_some_and(|d| d != VFIO_PCI);
    let ours = |a: &PciAddr| record.taken.iter().filter(comes_back).any(|t| t.addr == *a);
    if addr.function == 0 && slot.iter().all(ours) {
        // The other functions may be home already, and in use by now.
        let mut anew = vec![prove_free(slot.clone())];
        anew.extend(slot.iter().rev().map(|addr| Act::Remove { addr: *addr }));
        let bridge = function.parent;
        anew.push(Act::Rescan { bridge, addr });
        anew.push(probe(addr, driver));
        // Overrides do not come back by themselves.
        let lost = record.taken.iter().filter(|t| slot.contains(&t.addr));
        let lost = lost.filter_map(|t| Some(set_override(t.addr, Some(t.driver_override.as_deref()?))));
        anew.extend(lost);
        rungs.push(anew);
    }
    rungs
}
