//! A host of tests/hosts as a state of the model kernel.
//!
//! What the model does not know is left out where nothing of a handoff depends on it: modules besides those of
//! `tables::MODULES`, the names of drivers that nothing here moves, the memory of functions.

use gpu_handoff::base::pci::PciAddr;
use gpu_handoff::host::functions::{Function, VFIO_PCI};
use gpu_handoff::host::snapshot::Snapshot;

use crate::common::tables::{driver_info, module_name};
use crate::common::{Device, Generation, Model};

/// The driver of whatever stays where it is: pcieport, amdgpu, ixgbe.
const SOME_DRIVER: &str = "some driver";

/// The state of the model that a snapshot shows.
pub fn model_of(snapshot: &Snapshot) -> Model {
    let mut model = Model::new(Generation::K6_12);
    model.iommu = snapshot.iommu;
    model.vms.clone_from(&snapshot.vms);
    if let Some(nvidia) = &snapshot.nvidia {
        model.version.clone_from(&nvidia.version);
        model.modeset = nvidia.modeset;
    }
    for function in &snapshot.functions {
        model.add(device(snapshot, function));
    }
    for function in &snapshot.functions {
        let Some(driver) = function.driver.as_deref() else {
            continue;
        };
        // As `vfio-pci.ids=` has it: the id comes with the module.
        let ids = (function.vendor, function.device);
        if driver == VFIO_PCI && function.driver_override.is_none() && !model.vfio_ids.contains(&ids) {
            model.vfio_ids.push(ids);
        }
        match driver_info(driver) {
            Some(info) if !function.bridge => model.settle_on(function.addr, info.name),
            _ => {
                let device = model.device_mut(function.addr).unwrap();
                (device.driver, device.link) = (Some(SOME_DRIVER), true);
            }
        }
        // What a driver sets as it binds may have been changed since.
        let device = model.device_mut(function.addr).unwrap();
        device.power = power(function);
    }
    // Users of a module are listed in the order in which they came.
    for module in &snapshot.modules {
        if let Some(name) = module_name(&module.name) {
            model.loaded_since_boot(name);
        }
    }
    model.consoles.clone_from(&snapshot.consoles);
    // Nobody on these hosts holds anything: what has a reference on it has it from a console.
    model.fbcon_pins = snapshot.module("nvidia_drm").is_some_and(|m| m.refs != Some(0));
    // A GPU that has no driver beside a loaded one: a proprietary driver and a card of Blackwell.
    let refused = |f: &&Function| snapshot.nvidia.is_some() && f.driver.is_none() && f.driver_override.is_none();
    model.unknown = snapshot.gpus().filter(refused).map(|f| f.addr).collect();
    let drawn = |a: &PciAddr| snapshot.framebuffers.iter().any(|fb| fb.of == Some(*a));
    model.headless = snapshot.gpus().map(|f| f.addr).filter(|a| !drawn(a)).collect();
    for framebuffer in &snapshot.framebuffers {
        let driver = framebuffer.of.and_then(|of| snapshot.function(of)?.driver.as_deref());
        if framebuffer.firmware.is_some() {
            model.firmware = Some((framebuffer.clone(), true));
        } else if driver.and_then(driver_info).is_none() {
            model.other_framebuffers.push(framebuffer.clone());
        }
    }
    model
}

fn device(snapshot: &Snapshot, function: &Function) -> Device {
    let methods = ["flr", "af_flr", "pm", "bus", "cxl_bus", "device_specific", "acpi"];
    let mig = snapshot.nvidia_gpu(function.addr).is_some_and(|g| g.mig);
    Device {
        group: function.group,
        bridge: function.bridge,
        parent: function.parent,
        linked: function.linked.clone(),
        driver_override: function.driver_override.clone(),
        can_reset: function
            .reset_methods
            .iter()
            .filter_map(|has| methods.into_iter().find(|m| m == has))
            .collect(),
        reset_methods: function.reset_methods.clone(),
        d3cold: function.d3cold,
        power: power(function),
        sleeps: function.power == "suspended",
        vfs: function.vfs,
        physfn: function.physfn,
        mdevs: function.mdevs,
        noiommu: function.noiommu,
        mig,
        boot_vga: function.boot_vga,
        dead: function.gone,
        ..Device::new(function.addr, function.vendor, function.device, function.class.0)
    }
}

fn power(function: &Function) -> &'static str {
    if function.power_control == "auto" { "auto" } else { "on" }
}
