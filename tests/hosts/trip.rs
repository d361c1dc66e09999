//! What a host is after the acts of a plan, if the kernel does what it is asked: enough to plan the way home from there,
//! and to see an order that no kernel lets pass.

use gpu_handoff::base::pci::PciAddr;
use gpu_handoff::host::displays::Framebuffer;
use gpu_handoff::host::functions::{Function, VFIO_PCI};
use gpu_handoff::host::modules::Module;
use gpu_handoff::host::snapshot::Snapshot;
use gpu_handoff::model::act::{Act, Attribute};
use gpu_handoff::model::plan::Step;

/// The host after these steps. `origin` is what it was before anything left: which driver takes which function, and what
/// uses which module.
///
/// # Errors
/// The first act that the kernel would refuse, and why.
pub fn follow(host: &Snapshot, origin: &Snapshot, steps: &[Step]) -> Result<Snapshot, String> {
    let mut host = host.clone();
    for step in steps {
        match act(&mut host, origin, &step.act) {
            Err(e) if !step.soft => return Err(format!("{}: {e}", step.act)),
            _ => {}
        }
    }
    Ok(host)
}

fn act(host: &mut Snapshot, origin: &Snapshot, act: &Act) -> Result<(), String> {
    match act {
        Act::LoadModule { name } => load(host, origin, name),
        Act::UnloadModule { name } => return unload(host, name),
        Act::SetOverride { addr, driver } => function(host, *addr)?.driver_override.clone_from(driver),
        Act::SetAttribute { addr, attribute, value } => {
            let beside = |f: &Function| (f.addr.domain, f.addr.bus) == (addr.domain, addr.bus) && f.addr != *addr;
            let shares_its_bus = host.functions.iter().any(beside);
            let function = function(host, *addr)?;
            match attribute {
                // Each method is tried out, and a bus reset needs the bus for the function alone, whatever the kernel
                // found before it knew the others (linux, drivers/pci/pci.c, reset_method_store, pci_parent_bus_reset).
                Attribute::ResetMethod if shares_its_bus && value.split(' ').any(|m| m == "bus") => {
                    return Err("invalid argument".to_owned());
                }
                // The kernel finds out again, as it did at first.
                Attribute::ResetMethod if value == "default" => {
                    let before = origin.function(*addr).ok_or("no such device")?;
                    function.reset_methods.clone_from(&before.reset_methods);
                }
                Attribute::ResetMethod => function.reset_methods = value.split(' ').map(str::to_owned).collect(),
                Attribute::D3cold => function.d3cold = value == "1",
                Attribute::Power => function.power_control.clone_from(value),
            }
        }
        Act::SetConsole { name, bound } => {
            // fbcon_startup in linux, drivers/video/fbdev/core/fbcon.c.
            if *bound && host.framebuffers.is_empty() {
                return Err("there is no framebuffer".to_owned());
            }
            let console = host.consoles.iter_mut().find(|c| c.name == *name);
            console.ok_or("no such console")?.bound = *bound;
        }
        Act::SetPlatform { device, bound, .. } => {
            let is_it = |fb: &&Framebuffer| fb.firmware.as_ref().is_some_and(|p| p.device == *device);
            host.framebuffers.retain(|fb| !is_it(&fb));
            // vfio-pci has removed it from the VGA device that the firmware booted with (linux 6.0 and later,
            // drivers/vfio/pci/vfio_pci_core.c, vfio_pci_vga_init; drivers/video/aperture.c, sysfb_disable).
            let of = origin.framebuffers.iter().find(is_it).and_then(|fb| fb.of);
            let is_vga = |f: &Function| f.class.0 >> 8 == 0x0300 && f.boot_vga;
            if *bound && of.and_then(|a| origin.function(a)).is_some_and(is_vga) {
                return Err("no such device".to_owned());
            }
            if *bound {
                host.framebuffers
                    .extend(origin.framebuffers.iter().find(is_it).cloned());
            }
        }
        // Nobody holds anything on these hosts, and everything that comes home works.
        Act::StopUnit { .. }
        | Act::StartUnit { .. }
        | Act::RestartUnit { .. }
        | Act::RenewNodes { .. }
        | Act::EndProcesses { .. }
        | Act::AwaitDesktops { .. }
        | Act::ShutGate { .. }
        | Act::OpenGate { .. }
        | Act::ProveFree { .. }
        | Act::Verify { .. } => {}
        Act::Reset { .. } | Act::ResetBus { .. } | Act::Remove { .. } | Act::Rescan { .. } => {
            return Err("not as a step".to_owned());
        }
        Act::Unbind { addr, driver } => {
            let function = function(host, *addr)?;
            if function.driver.as_ref() != Some(driver) {
                return Err(format!("it is on {:?}", function.driver));
            }
            function.driver = None;
            function.module = None;
            if driver == VFIO_PCI {
                function.power_control = "on".to_owned(); // as vfio_pci_core_unregister_device leaves it
            }
            framebuffers_go(host);
        }
        Act::Probe { addr, driver } => return probe(host, origin, *addr, driver.as_deref()),
    }
    Ok(())
}

fn function(host: &mut Snapshot, addr: PciAddr) -> Result<&mut Function, String> {
    let found = host.functions.iter_mut().find(|f| f.addr == addr);
    found.ok_or_else(|| "no such device".to_owned())
}

/// Those whose function has no driver any more, or whose module is not loaded.
fn framebuffers_go(host: &mut Snapshot) {
    let functions = &host.functions;
    let drm = host.modules.iter().any(|m| m.name == "nvidia_drm");
    host.framebuffers.retain(|fb| {
        let of = fb.of.and_then(|of| functions.iter().find(|f| f.addr == of));
        fb.firmware.is_some() || (of.is_none_or(|f| f.driver.is_some()) && (drm || !fb.name.starts_with("nvidia")))
    });
}

/// What a driver that is back shows. nvidia_drm shows nothing before it is loaded.
fn framebuffers_come(host: &mut Snapshot, origin: &Snapshot) {
    for fb in &origin.framebuffers {
        let of = fb.of.and_then(|of| host.function(of).zip(origin.function(of)));
        let is_home = of.is_some_and(|(now, was)| now.driver == was.driver);
        let drawn = !fb.name.starts_with("nvidia") || host.module("nvidia_drm").is_some();
        if fb.firmware.is_none() && is_home && drawn && !host.framebuffers.contains(fb) {
            host.framebuffers.push(fb.clone());
        }
    }
}

/// A driver that arrives takes the functions it had, unless they have another or an override keeps it away.
fn load(host: &mut Snapshot, origin: &Snapshot, name: &str) {
    if host.module(name).is_some() {
        return;
    }
    let known = origin.module(name);
    // What it uses comes with it.
    let uses = origin.modules.iter().filter(|m| m.users.iter().any(|u| u == name));
    for used in uses.map(|m| m.name.clone()) {
        load(host, origin, &used);
        if let Some(used) = host.modules.iter_mut().find(|m| m.name == used) {
            used.users.push(name.to_owned());
            used.refs = used.refs.map(|r| r + 1);
        }
    }
    host.modules.push(Module {
        name: name.to_owned(),
        refs: known.map_or(Some(0), |m| m.refs.map(|_| 0)),
        users: Vec::new(),
    });
    if name == "vfio_pci" {
        host.vfio_pci = true;
    }
    if name == "nvidia" {
        host.nvidia.clone_from(&origin.nvidia);
    }
    for function in &mut host.functions {
        let Some(was) = origin.function(function.addr) else {
            continue;
        };
        let wanted = function.driver_override.is_none() || function.driver_override == was.driver;
        if function.driver.is_none() && wanted && was.module.as_deref() == Some(name) {
            function.driver.clone_from(&was.driver);
            function.module.clone_from(&was.module);
        }
    }
    framebuffers_come(host, origin);
}

fn unload(host: &mut Snapshot, name: &str) -> Result<(), String> {
    let module = host.module(name).ok_or("it is not loaded")?;
    if module.refs != Some(0) {
        return Err(format!("{:?} references, users: {:?}", module.refs, module.users));
    }
    host.modules.retain(|m| m.name != name);
    for module in &mut host.modules {
        if module.users.iter().any(|u| u == name) {
            module.users.retain(|u| u != name);
            module.refs = module.refs.map(|r| r - 1);
        }
    }
    if name == "nvidia" {
        host.nvidia = None;
    }
    for function in &mut host.functions {
        if function.module.as_deref() == Some(name) {
            function.driver = None;
            function.module = None;
        }
    }
    framebuffers_go(host);
    Ok(())
}

fn probe(host: &mut Snapshot, origin: &Snapshot, addr: PciAddr, wanted: Option<&str>) -> Result<(), String> {
    let was = origin.function(addr).ok_or("no such device")?;
    let wanted = wanted.or(was.driver.as_deref());
    let module = match wanted {
        Some(VFIO_PCI) if host.vfio_pci => None,
        Some(VFIO_PCI) => return Err("vfio-pci is not loaded".to_owned()),
        _ => was.module.clone(),
    };
    if let Some(module) = &module
        && host.module(module).is_none()
    {
        return Err(format!("{module} is not loaded"));
    }
    let function = function(host, addr)?;
    if function.driver.as_deref() == wanted {
        return Ok(());
    }
    if function.driver.is_some() {
        return Err(format!("it is on {:?}", function.driver));
    }
    if function.driver_override.is_some() && function.driver_override.as_deref() != wanted {
        return Err(format!("its override is {:?}", function.driver_override));
    }
    function.driver = wanted.map(str::to_owned);
    function.module = module;
    if wanted == Some(VFIO_PCI) {
        function.power_control = "auto".to_owned(); // as vfio_pci_core_register_device leaves it
    }
    framebuffers_come(host, origin);
    Ok(())
}

/// Whether two states of a host are the same in what a handoff changes. vfio_pci is never unloaded again.
///
/// # Errors
/// The first difference.
pub fn same(before: &Snapshot, after: &Snapshot) -> Result<(), String> {
    for (a, b) in before.functions.iter().zip(&after.functions) {
        let state = |f: &Function| {
            let attributes = (f.reset_methods.clone(), f.d3cold, f.power_control.clone());
            (f.addr, f.driver.clone(), f.driver_override.clone(), attributes)
        };
        if state(a) != state(b) {
            return Err(format!("before: {:?}; after: {:?}", state(a), state(b)));
        }
    }
    // What was on the firmware's framebuffer does not come back before the host boots again.
    let on_firmware = before.framebuffers.iter().any(|fb| fb.firmware.is_some());
    if before.consoles != after.consoles && !on_firmware {
        return Err(format!("before: {:?}; after: {:?}", before.consoles, after.consoles));
    }
    let modules = |host: &Snapshot| {
        let mut names: Vec<String> = host.modules.iter().map(|m| m.name.clone()).collect();
        names.retain(|n| n != "vfio_pci");
        names.sort_unstable();
        names
    };
    if modules(before) != modules(after) {
        return Err(format!(
            "modules before: {:?}; after: {:?}",
            modules(before),
            modules(after)
        ));
    }
    Ok(())
}
