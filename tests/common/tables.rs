//! What drivers and modules the model's kernel has: which functions a driver takes, and which modules a module needs.

use gpu_handoff::base::pci::VENDOR_NVIDIA;

use super::Device;

/// A driver of the PCI bus.
pub struct DriverInfo {
    /// Its name in /sys/bus/pci/drivers.
    pub name: &'static str,
    /// The module it comes with.
    pub module: &'static str,
    /// Whether its table of ids has a function. vfio-pci's has all, but only for an override (PCI_DRIVER_OVERRIDE_DEVICE_VFIO
    /// in linux, drivers/vfio/pci/vfio_pci.c).
    pub takes: fn(&Device) -> bool,
    /// It leaves DMA to the user (`driver_managed_dma`): it may be bound beside a guest that owns the IOMMU group.
    pub managed_dma: bool,
}

/// The drivers there are. Ids and classes as in their modules' aliases.
pub static DRIVERS: [DriverInfo; 9] = [
    driver("nvidia", "nvidia", is_gpu),
    // It comes with NVIDIA's module, and takes its switches (open-gpu-kernel-modules, kernel-open/nvidia/linux_nvswitch.c).
    driver("nvidia-nvswitch", "nvidia", |d| {
        d.vendor == VENDOR_NVIDIA && d.class.0 >> 8 == 0x0680
    }),
    driver("nouveau", "nouveau", is_gpu),
    driver("snd_hda_intel", "snd_hda_intel", |d| d.class.0 >> 8 == 0x0403),
    driver("xhci_hcd", "xhci_pci", |d| d.class.0 == 0x0c_0330),
    driver("nvidia-gpu", "i2c_nvidia_gpu", |d| {
        d.vendor == VENDOR_NVIDIA && d.class.0 >> 8 == 0x0c80
    }),
    driver("nvme", "nvme", |d| d.class.0 >> 8 == 0x0108),
    driver("e1000e", "e1000e", |d| d.class.0 >> 8 == 0x0200),
    DriverInfo {
        name: "vfio-pci",
        module: "vfio_pci",
        takes: |_| false,
        managed_dma: true,
    },
];

const fn driver(name: &'static str, module: &'static str, takes: fn(&Device) -> bool) -> DriverInfo {
    DriverInfo {
        name,
        module,
        takes,
        managed_dma: false,
    }
}

fn is_gpu(device: &Device) -> bool {
    device.vendor == VENDOR_NVIDIA && device.class.is_gpu()
}

/// A driver by its name.
pub fn driver_info(name: &str) -> Option<&'static DriverInfo> {
    DRIVERS.iter().find(|d| d.name == name)
}

/// The driver a function has on an ordinary host.
pub fn natural(device: &Device) -> Option<&'static str> {
    DRIVERS.iter().find(|d| (d.takes)(device)).map(|d| d.name)
}

/// The modules there are, each with those it needs.
pub static MODULES: [(&str, &[&str]); 12] = [
    ("nvidia", &[]),
    ("nvidia_modeset", &["nvidia"]),
    ("nvidia_drm", &["nvidia_modeset"]),
    ("nvidia_uvm", &["nvidia"]),
    ("nvidia_peermem", &["nvidia"]),
    ("nouveau", &[]),
    ("snd_hda_intel", &[]),
    ("xhci_pci", &[]),
    ("i2c_nvidia_gpu", &[]),
    ("nvme", &[]),
    ("e1000e", &[]),
    ("vfio_pci", &[]),
];

/// A module's own name, from any spelling of it; None where the host has no such module.
pub fn module_name(name: &str) -> Option<&'static str> {
    let same = |other: &str| {
        name.len() == other.len()
            && name
                .bytes()
                .zip(other.bytes())
                .all(|(a, b)| a == b || (a, b) == (b'-', b'_'))
    };
    MODULES.iter().map(|(n, _)| *n).find(|n| same(n))
}

/// The modules that a module needs itself.
pub fn needs(name: &str) -> &'static [&'static str] {
    MODULES.iter().find(|(n, _)| *n == name).map_or(&[], |(_, needs)| needs)
}
