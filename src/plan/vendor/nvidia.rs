//! What is particular to NVIDIA's driver, by version: the one place where its laws stand.

use crate::host::functions::Function;
use crate::host::snapshot::Snapshot;

/// The unit of NVIDIA's persistence daemon, in NVIDIA's own packages and Debian's.
pub(crate) const PERSISTENCED: &str = "nvidia-persistenced.service";

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

/// The first driver that lets NVKMS and nvidia_drm drop a GPU when it is unbound (nvidia_modeset_remove in
/// open-gpu-kernel-modules 590.44, kernel-open/nvidia/nv-pci.c). Before it, a GPU that nvidia_drm drives is in
/// use for as long as that module is loaded.
const DRM_LETS_GO: [u32; 2] = [590, 44];

/// From this driver on an unbind that meets a user never ends, even when the user does: the GPU is taken off the
/// driver's list before the wait (open-gpu-kernel-modules 595.45.04, kernel-open/nvidia/nv-pci.c; issue 1119).
const ONE_SHOT: [u32; 1] = [595];

/// Whether a GPU counts as in use for as long as nvidia_drm is loaded. An unknown version is an old one.
pub(crate) fn drm_holds_gpus(snapshot: &Snapshot) -> bool {
    let Some(driver) = &snapshot.nvidia else {
        return false;
    };
    driver.modeset && snapshot.module("nvidia_drm").is_some() && version(snapshot).as_slice() < DRM_LETS_GO.as_slice()
}

/// The numbers of the driver's version; none where it is not known, which is less than any.
pub(crate) fn version(snapshot: &Snapshot) -> Vec<u32> {
    let version = snapshot.nvidia.as_ref().map_or("", |n| n.version.as_str());
    version.split('.').filter_map(|p| p.parse().ok()).collect()
}

/// Whether an unbind that meets a user would never end.
pub(crate) fn is_one_shot(snapshot: &Snapshot) -> bool {
    version(snapshot).as_slice() >= ONE_SHOT.as_slice()
}
