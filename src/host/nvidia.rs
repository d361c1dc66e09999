//! NVIDIA's kernel driver as it shows itself below /proc/driver/nvidia.

use std::collections::BTreeMap;
use std::io;

use serde::{Deserialize, Serialize};

use crate::base::pci::PciAddr;
use crate::base::root::Root;
use crate::base::sets::IntoSet as _;

/// Major number of /dev/nvidia*, fixed (NV_MAJOR_DEVICE_NUMBER in open-gpu-kernel-modules, nv-chardev-numbers.h).
pub const MAJOR: u32 = 195;

/// NVIDIA's driver, from /proc/driver/nvidia.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NvidiaDriver {
    /// Version, such as 580.95.05; empty where the file is not as we know it.
    pub version: String,
    /// Built from NVIDIA's open sources ("Open Kernel Module"), as Blackwell and later need it.
    pub open: bool,
    /// nvidia_drm drives displays (its parameter `modeset`); false where it is not loaded.
    pub modeset: bool,
    /// Which /dev/nvidiaN belongs to which GPU.
    pub gpus: Vec<NvidiaGpu>,
    /// Majors that the kernel has given it, by their names in /proc/devices.
    #[serde(default)]
    pub majors: BTreeMap<String, u32>,
}

/// How the driver's nodes are numbered, where another load of it may number them anew.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Numbers {
    /// As [`NvidiaDriver::majors`].
    pub majors: BTreeMap<String, u32>,
    /// N of /dev/nvidiaN of each GPU.
    pub minors: BTreeMap<PciAddr, u32>,
}

impl Numbers {
    /// As the driver has them.
    pub fn of(driver: &NvidiaDriver) -> Numbers {
        let minors = driver.gpus.iter().filter_map(|gpu| Some((gpu.addr, gpu.minor?)));
        Numbers {
            majors: driver.majors.clone(),
            minors: minors.into_map(),
        }
    }

    /// With what was noted before, which counts.
    #[must_use]
    pub fn noted_before(mut self, before: &Numbers) -> Numbers {
        self.majors.extend(before.majors.clone());
        self.minors.extend(&before.minors);
        self
    }

    /// Nothing is known.
    pub fn is_empty(&self) -> bool {
        self.majors.is_empty() && self.minors.is_empty()
    }
}

/// What the kernel gives a major to when it is loaded: nvidia-uvm (open-gpu-kernel-modules, nvidia-uvm/uvm.c, uvm_init) and the
/// capabilities (nvidia-caps, kernel-open/nvidia/nv-caps.c, nv_caps_root_init).
pub(crate) const UVM: &str = "nvidia-uvm";
pub(crate) const CAPS: &str = "nvidia-caps";

/// One GPU of NVIDIA's driver, from /proc/driver/nvidia/gpus/BDF/information.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NvidiaGpu {
    /// The GPU's function.
    pub addr: PciAddr,
    /// N of /dev/nvidiaN. Not the index order.
    pub minor: Option<u32>,
    /// Marketing name.
    pub model: String,
    /// UUID as NVIDIA prints it, GPU-....
    pub uuid: String,
    /// It is split into MIG instances (capabilities/gpuN/mig/gi*).
    pub mig: bool,
}

impl NvidiaDriver {
    /// N of /dev/nvidiaN of a GPU.
    pub fn minor(&self, addr: PciAddr) -> Option<u32> {
        self.gpus.iter().find(|g| g.addr == addr)?.minor
    }
}

/// Reads it; None where it is not loaded.
///
/// # Errors
/// Where a directory is there and cannot be listed.
pub fn read(root: &Root) -> io::Result<Option<NvidiaDriver>> {
    let dir = "/proc/driver/nvidia";
    if !root.exists(dir) {
        return Ok(None);
    }
    let mut gpus = Vec::new();
    for name in root.names(format!("{dir}/gpus"))? {
        let Ok(addr) = name.parse() else { continue };
        let text = root.text(format!("{dir}/gpus/{name}/information")).unwrap_or_default();
        let mut gpu = parse_information(addr, &text);
        if let Some(minor) = gpu.minor {
            let instances = root.names(format!("{dir}/capabilities/gpu{minor}/mig"))?;
            gpu.mig = instances.iter().any(|n| n.starts_with("gi"));
        }
        gpus.push(gpu);
    }
    let version = root.text(format!("{dir}/version")).unwrap_or_default();
    Ok(Some(NvidiaDriver {
        version: parse_version(&version),
        open: version.contains("Open Kernel Module"),
        modeset: root
            .line("/sys/module/nvidia_drm/parameters/modeset")
            .is_some_and(|v| v == "Y"),
        gpus,
        majors: given_out(&root.text("/proc/devices").unwrap_or_default()),
    }))
}

/// The "Character devices:" part of /proc/devices: major and name (proc_devices(5)).
pub(crate) fn character_majors(text: &str) -> impl Iterator<Item = (u64, &str)> {
    text.lines()
        .take_while(|l| !l.starts_with("Block"))
        .filter_map(|l| l.trim().split_once(' '))
        .filter_map(|(number, name)| Some((number.parse().ok()?, name.trim())))
}

/// Those that are given out at load.
fn given_out(devices: &str) -> BTreeMap<String, u32> {
    let ours = character_majors(devices).filter(|(_, name)| [UVM, CAPS].contains(name));
    ours.filter_map(|(number, name)| Some((name.to_owned(), u32::try_from(number).ok()?)))
        .into_map()
}

/// Parses /proc/driver/nvidia/gpus/BDF/information: `Key: <tabs> value` lines (open-gpu-kernel-modules,
/// kernel-open/nvidia/nv-procfs.c, nv_procfs_read_gpu_info).
fn parse_information(addr: PciAddr, text: &str) -> NvidiaGpu {
    let value = |key: &str| {
        text.lines()
            .filter_map(|l| l.split_once(':'))
            .find(|(k, _)| k.trim() == key)
            .map(|(_, v)| v.trim().to_owned())
    };
    NvidiaGpu {
        addr,
        minor: value("Device Minor").and_then(|v| v.parse().ok()),
        model: value("Model").unwrap_or_default(),
        uuid: value("GPU UUID").unwrap_or_default(),
        mig: false,
    }
}

/// The version in /proc/driver/nvidia/version: the first word of the form N.N or N.N.N of the NVRM line, which
/// reads "Kernel Module  470.256.02  ..." or "Open Kernel Module for x86_64  580.95.05  ...".
fn parse_version(text: &str) -> String {
    text.lines()
        .find(|l| l.starts_with("NVRM version:"))
        .and_then(|l| l.split_ascii_whitespace().find(|w| is_version(w)))
        .unwrap_or_default()
        .to_owned()
}

fn is_version(word: &str) -> bool {
    let parts: Vec<&str> = word.split('.').collect();
    (2..=3).contains(&parts.len())
        && parts
            .iter()
            .all(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_of_the_proprietary_and_the_open_module() {
        for (line, version) in [
            (
                "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.256.02  Thu May  2",
                "470.256.02",
            ),
            (
                "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build",
                "580.95.05",
            ),
            ("NVRM version: something else", ""),
        ] {
            assert_eq!(parse_version(line), version);
        }
    }

    #[test]
    fn information_as_the_driver_prints_it() {
        let text = "Model: \t\t NVIDIA GeForce RTX 3090\nGPU UUID: \t GPU-1\nDevice Minor: \t 3\n";
        let gpu = parse_information("01:00.0".parse().unwrap(), text);
        assert_eq!(gpu.minor, Some(3));
        assert_eq!(gpu.model, "NVIDIA GeForce RTX 3090");
        assert_eq!(gpu.uuid, "GPU-1");
    }
}
