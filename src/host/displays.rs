//! Framebuffers, and the consoles that draw on one.
//!
//! A console on a GPU's framebuffer keeps the GPU's display driver loaded (linux, drivers/video/fbdev/core/fbcon.c holds
//! a reference on the framebuffer's module), and no process shows it.

use std::io;

use serde::{Deserialize, Serialize};

use crate::base::pci::{PciAddr, VENDOR_NVIDIA};
use crate::base::root::Root;
use crate::host::functions::{Function, read_regions};

/// What the kernel calls a firmware framebuffer's memory in /proc/iomem: by the platform code (arch/x86/kernel/sysfb.c,
/// drivers/firmware/sysfb_simplefb.c: BOOTFB) and by each driver that may sit on it.
const FIRMWARE_MEMORY: [&str; 7] = [
    "BOOTFB",
    "efifb",
    "vesafb",
    "simplefb",
    "simpledrm",
    "efidrm",
    "vesadrm",
];

/// A framebuffer, from /proc/fb.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Framebuffer {
    /// N of fbN.
    pub number: u32,
    /// Its name, such as nvidia-drmdrmfb, EFI VGA, simpledrmdrmfb.
    pub name: String,
    /// The function it is on: that it belongs to, or, a firmware's framebuffer, whose memory it lies in.
    pub of: Option<PciAddr>,
    /// The platform device it is, where it is the firmware's: nothing but its memory ties it to a function then.
    pub firmware: Option<Platform>,
}

impl Framebuffer {
    /// The function in whose memory it is for whoever maps it. A DRM driver's is a copy in the host's memory (linux,
    /// drivers/gpu/drm/drm_fbdev_shmem.c), and what a card's own driver makes is in that one's count.
    pub(crate) fn in_memory_of(&self) -> Option<PciAddr> {
        let is_a_copy = self.name.ends_with("drmfb");
        self.of.filter(|_| self.firmware.is_some() && !is_a_copy)
    }
}

/// A platform device and its driver, such as efi-framebuffer.0 and efi-framebuffer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// The device.
    pub device: String,
    /// Its driver.
    pub driver: String,
}

/// A driver of the virtual consoles, from /sys/class/vtconsole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Console {
    /// Its name in sysfs, such as vtcon1.
    pub name: String,
    /// What it is: "frame buffer device", "dummy device", "VGA+".
    pub what: String,
    /// The consoles are drawn by it.
    pub bound: bool,
}

impl Console {
    /// It draws on framebuffers.
    pub fn is_framebuffer(&self) -> bool {
        self.what.contains("frame buffer")
    }
}

/// The framebuffers. `functions` are those whose memory a firmware's framebuffer may lie in.
pub fn framebuffers(root: &Root, functions: &[Function]) -> Vec<Framebuffer> {
    let text = root.text("/proc/fb").unwrap_or_default();
    if text.is_empty() {
        return Vec::new(); // whose memory is whose does not matter
    }
    let memory = firmware_memory(&root.text("/proc/iomem").unwrap_or_default());
    let overlaps = |function: &&Function| {
        let meets = |(start, end): &(u64, u64)| memory.iter().any(|(s, e)| s <= end && start <= e);
        // Of one that was read without its attributes.
        let is_to_be_read = function.regions.is_empty() && function.vendor == VENDOR_NVIDIA;
        let own = is_to_be_read.then(|| read_regions(root, function.addr));
        own.as_ref().unwrap_or(&function.regions).iter().any(meets)
    };
    text.lines()
        .filter_map(|line| {
            let (number, name) = line.split_once(' ')?;
            let number = number.parse().ok()?;
            let dir = format!("/sys/class/graphics/fb{number}/device");
            let device = root.resolved_name(&dir).unwrap_or_default();
            let own = device.parse::<PciAddr>().ok();
            let below = || functions.iter().find(overlaps).map(|f| f.addr);
            let driver = root.link_name(format!("{dir}/driver")).filter(|_| own.is_none());
            Some(Framebuffer {
                number,
                name: name.trim().to_owned(),
                of: own.or_else(below),
                firmware: driver.map(|driver| Platform { device, driver }),
            })
        })
        .collect()
}

/// The ranges that firmware framebuffers occupy: `  c0000000-c07fffff : BOOTFB` lines of /proc/iomem. The addresses read
/// as zero without CAP_SYS_ADMIN.
fn firmware_memory(text: &str) -> Vec<(u64, u64)> {
    let range = |line: &str| {
        let (range, name) = line.split_once(" : ")?;
        let (start, end) = range.trim().split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        let (start, end) = (number(start)?, number(end)?);
        (FIRMWARE_MEMORY.contains(&name.trim()) && end > start).then_some((start, end))
    };
    text.lines().filter_map(range).collect()
}

/// The kernel's consoles that are no virtual terminal: `ttyS0  -W- (EC  p a)  4:64` lines of /proc/consoles.
pub fn serial(root: &Root) -> Vec<String> {
    let text = root.text("/proc/consoles").unwrap_or_default();
    let names = text.lines().filter_map(|l| l.split_ascii_whitespace().next());
    let is_serial = |n: &&str| n.starts_with("ttyS") || n.starts_with("ttyAMA") || n.starts_with("hvc");
    names.filter(is_serial).map(str::to_owned).collect()
}

/// The drivers of the virtual consoles.
///
/// # Errors
/// Where the directory is there and cannot be listed.
pub fn consoles(root: &Root) -> io::Result<Vec<Console>> {
    let dir = "/sys/class/vtconsole";
    let names = root.names(dir)?;
    let read = |name: &String| {
        // "(M) frame buffer device": M for a modular driver, S for the system's (linux, drivers/tty/vt/vt.c).
        let what = root.line(format!("{dir}/{name}/name"))?;
        let what = what.split_once(") ").map_or(what.as_str(), |(_, w)| w).to_owned();
        let bound = root.line(format!("{dir}/{name}/bind"))? == "1";
        Some(Console {
            name: name.clone(),
            what,
            bound,
        })
    };
    Ok(names.iter().filter_map(read).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::base::pci::PciClass;
    #[test]
    fn a_firmware_framebuffer_belongs_to_the_card_in_whose_memory_it_lies() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("proc")).unwrap();
        std::fs::write(dir.path().join("proc/fb"), "0 EFI VGA\n").unwrap();
        std::fs::write(
            dir.path().join("proc/iomem"),
            "c0000000-cfffffff : PCI Bus 0000:01\n  c0000000-c02fffff : BOOTFB\n",
        )
        .unwrap();
        let mut card = Function::new("0000:01:00.0".parse().unwrap(), 0x10de, 0x2204, PciClass(0x03_0000));
        let platform = dir.path().join("sys/devices/platform/efi-framebuffer.0");
        std::fs::create_dir_all(&platform).unwrap();
        std::fs::create_dir_all(dir.path().join("sys/class/graphics/fb0")).unwrap();
        std::os::unix::fs::symlink(&platform, dir.path().join("sys/class/graphics/fb0/device")).unwrap();
        std::os::unix::fs::symlink("../../bus/platform/drivers/efi-framebuffer", platform.join("driver")).unwrap();
        for (regions, of) in [
            (vec![(0xc000_0000, 0xcfff_ffff)], Some(card.addr)),
            (vec![(0xd000_0000, 0xdfff_ffff)], None),
        ] {
            card.regions = regions;
            let found = framebuffers(&Root::at(dir.path()), std::slice::from_ref(&card));
            assert_eq!(found[0].of, of);
            let platform = found[0].firmware.as_ref().unwrap();
            assert_eq!(platform.device, "efi-framebuffer.0");
            assert_eq!(platform.driver, "efi-framebuffer");
        }
    }

    #[test]
    fn a_console_driver_has_its_name_without_its_kind() {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in [
            ("vtcon0/name", "(S) dummy device\n"),
            ("vtcon0/bind", "0\n"),
            ("vtcon1/name", "(M) frame buffer device\n"),
            ("vtcon1/bind", "1\n"),
        ] {
            let path = dir.path().join("sys/class/vtconsole").join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let consoles = consoles(&Root::at(dir.path())).unwrap();
        assert_eq!(consoles[0].what, "dummy device");
        assert!(consoles[1].is_framebuffer() && consoles[1].bound);
    }
}
