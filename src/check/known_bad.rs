//! Combinations of kernel, driver and device that are known to go wrong: a dated table with the source of each row.
//!
//! A row goes when what it names is too old to be met. What a driver version does by design (what it holds, how its unbind
//! ends) is in [`crate::plan::vendor::nvidia`], what a model does in [`crate::settings::known_gpus`].

use crate::check::facts::Facts;
use crate::check::finding::{Finding, Looked, or_pass, warn};
use crate::check::versions::numbers;
use crate::host::functions::Function;

/// A combination.
#[derive(Debug)]
pub struct Bad {
    /// Kernel releases, from the first up to and without the last; None: any.
    pub kernel: Option<(&'static [u32], &'static [u32])>,
    /// Versions of NVIDIA's driver, likewise.
    pub driver: Option<(&'static [u32], &'static [u32])>,
    /// Device ids, both ends included; None: any GPU.
    pub devices: Option<(u16, u16)>,
    /// What else has to be so of a GPU.
    pub when: fn(&Function) -> bool,
    /// What goes wrong.
    pub what: &'static str,
    /// What helps.
    pub hint: &'static str,
    /// Where that was reported.
    pub source: &'static str,
    /// When it was noted, year and month.
    pub noted: &'static str,
}

/// Any GPU, with nothing said of kernel and driver.
const ANY: Bad = Bad {
    kernel: None,
    driver: None,
    devices: None,
    when: |_| true,
    what: "",
    hint: "",
    source: "",
    noted: "",
};

/// The table.
pub static TABLE: &[Bad] = &[
    Bad {
        kernel: Some((&[7, 2, 2], &[7, 2, 3])),
        when: |gpu| gpu.vfs > 0,
        what: "an unbind from vfio-pci does not end where SR-IOV is on",
        hint: "boot another kernel: 'proxmox-boot-tool kernel pin'",
        source: "one report of kernel 7.2.2",
        noted: "2026-11",
        ..ANY
    },
    Bad {
        kernel: Some((&[6, 14, 2], &[6, 14, 3])),
        what: "resets of PCI devices fail that worked before",
        hint: "boot another kernel: 'proxmox-boot-tool kernel pin'",
        source: "zen-kernel issue 380",
        noted: "2026-11",
        ..ANY
    },
    Bad {
        kernel: Some((&[6, 12, 23], &[6, 12, 24])),
        what: "resets of PCI devices fail that worked before",
        hint: "boot another kernel: 'proxmox-boot-tool kernel pin'",
        source: "zen-kernel issue 380",
        noted: "2026-11",
        ..ANY
    },
    Bad {
        driver: Some((&[595], &[596])),
        what: "after a warning of nvidia_uvm every call of NVML hangs, nvidia-smi too",
        hint: "ask nvidia-smi under 'timeout -s KILL 10'; another branch of the driver has it not",
        source: "open-gpu-kernel-modules issue 1333",
        noted: "2026-11",
        ..ANY
    },
    Bad {
        devices: Some((0x2b85, 0x2b85)),
        when: has_flr,
        what: "this kernel lists a function-level reset for it, from which GB202 was seen not to come back",
        hint: "leave the setting 'reset' as it is: function resets are off while it is away; a newer kernel may know",
        source: "tinygrad pull request 18199; open-gpu-kernel-modules issue 853",
        noted: "2026-11",
        ..ANY
    },
    Bad {
        devices: Some((0x2b87, 0x2b8c)),
        when: has_flr,
        what: "this kernel lists a function-level reset for it, from which GB202 was seen not to come back",
        hint: "leave the setting 'reset' as it is: function resets are off while it is away; a newer kernel may know",
        source: "tinygrad pull request 18199; open-gpu-kernel-modules issue 853",
        noted: "2026-11",
        ..ANY
    },
    Bad {
        driver: Some((&[590], &[590, 44])),
        what: "early versions of this branch let no GPU go while nvidia_drm drives displays",
        hint: "update to 590.44 or later",
        source: "open-gpu-kernel-modules, kernel-open/nvidia/nv-pci.c by tag",
        noted: "2026-11",
        ..ANY
    },
];

fn has_flr(gpu: &Function) -> bool {
    gpu.reset_methods.iter().any(|m| m == "flr")
}

fn within(version: &[u32], range: Option<(&[u32], &[u32])>) -> bool {
    range.is_none_or(|(from, to)| from <= version && version < to)
}

pub(super) fn look(facts: &Facts) -> Looked {
    let kernel = numbers(facts.kernel()?);
    let driver = numbers(facts.snapshot.nvidia_version());
    let mut found: Vec<Finding> = Vec::new();
    for bad in TABLE {
        let meets = |device: u16| bad.devices.is_none_or(|(first, last)| (first..=last).contains(&device));
        let gpus: Vec<_> = facts
            .gpus()
            .into_iter()
            .filter(|g| meets(g.device) && (bad.when)(g))
            .collect();
        if gpus.is_empty() || !within(&kernel, bad.kernel) || !within(&driver, bad.driver) {
            continue;
        }
        let subject = match (bad.kernel, bad.driver, bad.devices) {
            (Some(_), _, _) => format!("kernel {}", facts.kernel()?),
            (_, Some(_), _) => format!("driver {}", facts.snapshot.nvidia_version()),
            _ => crate::base::text::join(gpus.iter().map(|g| facts.name(g))),
        };
        let text = format!("{subject}: {} ({}, {})", bad.what, bad.source, bad.noted);
        found.push(warn(text).hint(bad.hint));
    }
    or_pass(
        found,
        format!("none of the {} combinations that are known to go wrong", TABLE.len()),
    )
}
