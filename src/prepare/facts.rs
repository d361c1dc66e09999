//! What is read of the host to decide what to change.

use crate::base::pci::VENDOR_NVIDIA;
use crate::base::root::Root;
use crate::base::sets::IntoSet as _;
use crate::check::fights::Cpu;
use crate::host::boot_loader::BootConfig;
use crate::host::modprobe_config::ModprobeConfig;
use crate::host::module_lists::ModuleLists;

/// The host, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// modprobe.d.
    pub modprobe: ModprobeConfig,
    /// What is loaded at boot.
    pub lists: ModuleLists,
    /// The command lines.
    pub boot: BootConfig,
    /// The processor's maker.
    pub cpu: Cpu,
    /// The kernel has an IOMMU in use.
    pub iommu_is_on: bool,
    /// This kernel has Intel's on without being told.
    pub iommu_by_default: bool,
    /// Vendor and device ids of NVIDIA's functions.
    pub ids: Vec<(u16, u16)>,
}

impl Facts {
    /// Reads them. Of a device only its ids are read, which no stuck call holds up.
    pub fn read(root: &Root) -> Self {
        let cpuinfo = root.bytes_up_to("/proc/cpuinfo", 4096).unwrap_or_default();
        let release = root.line("/proc/sys/kernel/osrelease").unwrap_or_default();
        let config = root.config(format!("/boot/config-{release}")).unwrap_or_default();
        let config = String::from_utf8_lossy(&config).into_owned();
        Facts {
            modprobe: ModprobeConfig::read(root),
            lists: ModuleLists::read(root),
            boot: BootConfig::read(root),
            cpu: Cpu::of(&String::from_utf8_lossy(&cpuinfo)),
            iommu_is_on: root.names("/sys/class/iommu").is_ok_and(|names| !names.is_empty()),
            iommu_by_default: config.lines().any(|l| l == "CONFIG_INTEL_IOMMU_DEFAULT_ON=y"),
            ids: ids(root),
        }
    }
}

/// The ids of NVIDIA's functions.
fn ids(root: &Root) -> Vec<(u16, u16)> {
    let mut found = Vec::new();
    for name in root.names("/sys/bus/pci/devices").unwrap_or_default() {
        let number = |file: &str| {
            let text = root.line(format!("/sys/bus/pci/devices/{name}/{file}"))?;
            u16::from_str_radix(text.trim_start_matches("0x"), 16).ok()
        };
        if let (Some(VENDOR_NVIDIA), Some(device)) = (number("vendor"), number("device")) {
            found.push((VENDOR_NVIDIA, device));
        }
    }
    found.into_iter().into_set().into_iter().collect()
}
