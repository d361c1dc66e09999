//! What is particular to NVIDIA's driver, by version: the one place where its laws stand.

use crate::host::functions::Function;
use crate::host::nodes::Node;
use crate::host::snapshot::Snapshot;
use crate::host::units::Unit;

/// The unit of NVIDIA's persistence daemon, in NVIDIA's own packages and Debian's.
pub(crate) const PERSISTENCED: &str = "nvidia-persistenced.service";

/// The unit of NVIDIA's fabric manager, which serves all GPUs of an NVSwitch system.
const FABRICMANAGER: &str = "nvidia-fabricmanager.service";

/// NVIDIA's services that have no purpose but the GPUs: the persistence daemon, Dynamic Boost, the Data Center GPU Manager
/// (by the names of NVIDIA's packages).
const OWN_SERVICES: [&str; 3] = [PERSISTENCED, "nvidia-powerd.service", DCGM];

/// The unit of DCGM's host engine, in NVIDIA's packages.
const DCGM: &str = "nvidia-dcgm.service";

/// From this driver on DCGM can let it go and take it again while it runs on, by `dcgmi set --detach-driver` and
/// `--attach-driver`: it closes the nodes of all GPUs; either is no error where it is so already
/// (docs.nvidia.com/datacenter/dcgm, "Detached GPUs": DCGM 4.5 and driver 590; NVIDIA/DCGM, testing/python3/tests,
/// test_dcgm_attach_detach_driver and the two beside it).
const DCGM_LETS_GO: &[u32] = &[590];

/// What has a service of the host let the driver go without being stopped, where it can.
pub(crate) fn lets_go_and_runs_on(snapshot: &Snapshot, unit: &Unit) -> Option<Unit> {
    let version = numbers(snapshot.nvidia_version())?;
    let can = unit.on_host() == Some(DCGM) && version.as_slice() >= DCGM_LETS_GO;
    can.then(|| Unit::DriverUse {
        driver_use_of: DCGM.to_owned(),
    })
}

/// Whether a unit of the host is NVIDIA's own, and serves nobody else once these GPUs have left: where some stay, the fabric manager does.
pub(crate) fn is_own_service(unit: &Unit, all_leave: bool) -> bool {
    let is_own = |name: &str| OWN_SERVICES.contains(&name) || (all_leave && name == FABRICMANAGER);
    let runs_on = unit.runs_on();
    runs_on.as_ref().unwrap_or(unit).on_host().is_some_and(is_own)
}

/// Driver and module of a card's functions by class, where the kernel has one for them: the aliases of
/// nvidia (VGA and 3D of vendor 10de), snd_hda_intel, xhci_pci (driver xhci_hcd) and i2c_nvidia_gpu (driver
/// nvidia-gpu) in modules.alias.
pub(crate) fn natural_driver(function: &Function) -> (Option<&'static str>, Option<&'static str>) {
    match function.class.0 >> 8 {
        0x0300 | 0x0302 => (Some("nvidia"), Some("nvidia")),
        0x0403 => (Some("snd_hda_intel"), Some("snd_hda_intel")),
        0x0c03 => (Some("xhci_hcd"), Some("xhci_pci")),
        0x0c80 => (Some("nvidia-gpu"), Some("i2c_nvidia_gpu")),
        _ => (None, None),
    }
}

/// The drivers that let NVKMS and nvidia_drm drop a GPU when it is unbound, from the first of each range up to, and
/// without, the last (nvidia_modeset_remove in kernel-open/nvidia/nv-pci.c of open-gpu-kernel-modules: in the tags
/// 580.94.06, 580.105.08 and 590.44, not in 580.95.05, which is a later branch of the older code). By any other, a GPU
/// that nvidia_drm drives is in use for as long as that module is loaded.
const DRM_LETS_GO: [(&[u32], &[u32]); 3] = [
    (&[580, 94, 6], &[580, 95, 5]),
    (&[580, 105, 8], &[581]),
    (&[590, 44], &[u32::MAX]),
];

/// From this driver on an unbind that meets a user never ends, even when the user does: the GPU is taken off the
/// driver's list before the wait (open-gpu-kernel-modules 595.45.04, kernel-open/nvidia/nv-pci.c; issue 1119).
const ONE_SHOT: &[u32] = &[595];

/// The module of NVIDIA's driver that an open node is a reference of: the owner of its file operations
/// (open-gpu-kernel-modules, kernel-open: nv.c, nv-caps.c, linux_nvswitch.c; nvidia-modeset, nvidia-uvm and nvidia-drm).
pub(crate) fn module_of(snapshot: &Snapshot, node: &Node) -> Option<&'static str> {
    match node {
        Node::Gpu(_) | Node::UnknownGpu(_) | Node::Control | Node::Caps | Node::Switch => Some("nvidia"),
        // Of whichever driver made the bus.
        Node::I2c(addr) => snapshot
            .function(*addr)
            .is_some_and(Function::is_on_nvidia)
            .then_some("nvidia"),
        Node::Modeset => Some("nvidia_modeset"),
        Node::Uvm => Some("nvidia_uvm"),
        Node::Drm(_) => Some("nvidia_drm"),
        Node::Sound(_) | Node::Disk(_) | Node::Framebuffer(_) | Node::VfioGroup(_) | Node::VfioDevice(_) => None,
    }
}

/// How many references of its module an open node is. The kernel takes one for the character device and one for its file
/// operations where the driver names the module as the owner of both, as these do (linux, fs/char_dev.c, chrdev_open and
/// cdev_get; open-gpu-kernel-modules, kernel-open: nv_register_chrdev, nv-caps.c, nvidia-uvm/uvm.c); DRM's is one (linux,
/// drivers/gpu/drm/drm_drv.c, drm_stub_open), and so is that of an I2C bus, which is its adapter's owner (linux,
/// drivers/i2c/i2c-core-base.c, i2c_get_adapter).
pub(crate) fn references_per_open(node: &Node) -> u32 {
    match node {
        Node::Gpu(_) | Node::UnknownGpu(_) | Node::Control | Node::Caps | Node::Switch | Node::Modeset | Node::Uvm => 2,
        Node::Drm(_)
        | Node::I2c(_)
        | Node::Sound(_)
        | Node::Disk(_)
        | Node::Framebuffer(_)
        | Node::VfioGroup(_)
        | Node::VfioDevice(_) => 1,
    }
}

/// Whether a GPU counts as in use for as long as nvidia_drm is loaded; of a driver whose version is not known it does.
pub(crate) fn drm_holds_gpus(snapshot: &Snapshot) -> bool {
    let Some(driver) = &snapshot.nvidia else {
        return false;
    };
    let lets_go = |numbers: &[u32]| DRM_LETS_GO.iter().any(|(from, to)| *from <= numbers && numbers < *to);
    let drives_displays = driver.modeset && snapshot.module("nvidia_drm").is_some();
    drives_displays && !numbers(&driver.version).is_some_and(|n| lets_go(&n))
}

/// Whether an unbind that meets a user would never end; by a driver whose version is not known it could.
pub(crate) fn is_one_shot(snapshot: &Snapshot) -> bool {
    let driver = snapshot.nvidia.as_ref();
    driver.is_some_and(|d| numbers(&d.version).is_none_or(|n| n.as_slice() >= ONE_SHOT))
}

/// The numbers of a version; none where a part is no number.
fn numbers(version: &str) -> Option<Vec<u32>> {
    version.split('.').map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::host::modules::Module;
    use crate::host::nvidia::NvidiaDriver;

    #[test]
    fn a_driver_by_its_version_holds_gpus_through_drm_and_ends_its_unbinds_or_not() {
        for (version, drm_holds, one_shot) in [
            ("470.256.02", true, false),
            ("580.94.03", true, false),
            ("580.94.06", false, false),
            ("580.95.04", false, false),
            ("580.95.05", true, false),
            ("580.105.07", true, false),
            ("580.105.08", false, false),
            ("580.126.09", false, false),
            ("581.15", true, false),
            ("590.43.99", true, false),
            ("590.44", false, false),
            ("590.44.01", false, false),
            ("595.45.04", false, true),
            ("620.70", false, true),
            // Not known: the strictest of either.
            ("", true, true),
            ("590", true, false),
            ("590.beta.48", true, true),
            ("590.99999999999", true, true),
        ] {
            let snapshot = Snapshot {
                modules: vec![Module {
                    name: "nvidia_drm".to_owned(),
                    refs: Some(0),
                    users: Vec::new(),
                }],
                nvidia: Some(NvidiaDriver {
                    version: version.to_owned(),
                    open: true,
                    modeset: true,
                    gpus: Vec::new(),
                    majors: std::collections::BTreeMap::new(),
                }),
                ..Snapshot::default()
            };
            assert_eq!(drm_holds_gpus(&snapshot), drm_holds, "{version:?}");
            assert_eq!(is_one_shot(&snapshot), one_shot, "{version:?}");
        }
        assert!(!drm_holds_gpus(&Snapshot::default()), "not loaded");
        assert!(!is_one_shot(&Snapshot::default()), "not loaded");
    }
}
