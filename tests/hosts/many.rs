//! The text of a host of many GPUs that are all alike, in the form of tests/hosts/README.md.

use std::fmt::Write as _;

/// A list of PCI ids with what such a host has.
const PCI_IDS: &str = "
[/usr/share/misc]
pci.ids:
    10de  NVIDIA Corporation
    \t22ba  AD102 High Definition Audio Controller
    \t2684  AD102 [GeForce RTX 4090]
    8086  Intel Corporation
    \t15f3  Ethernet Controller I225-V
";

/// A host of so many GPUs, at most 24, each below a root port and in an IOMMU group of its own, on an open driver 580.
pub fn host(gpus: usize) -> String {
    let mut text = String::from(PCI_IDS);
    let mut information = String::new();
    for n in 0..gpus {
        let (port, bus, group) = (format!("0000:00:{:02x}.0", n + 1), 2 * n + 1, 20 + n);
        let root = "/sys/devices/pci0000:00";
        let _ = write!(
            text,
            "
[{root}/{port}]
class = 0x060400
vendor = 0x8086
device = 0x352a
driver -> /sys/bus/pci/drivers/pcieport
driver_override = (null)
iommu_group -> /sys/kernel/iommu_groups/{n}
dir pci_bus/0000:{bus:02x}
power/control = auto

[{root}/{port}/0000:{bus:02x}:00.0]
class = 0x030000
vendor = 0x10de
device = 0x2684
driver -> /sys/bus/pci/drivers/nvidia
driver_override = (null)
iommu_group -> /sys/kernel/iommu_groups/{group}
boot_vga = 0
reset_method = flr bus
current_link_width = 16
d3cold_allowed = 1
power/control = on
power/runtime_status = active
config = \\xde\\x10\\x84\\x26

[{root}/{port}/0000:{bus:02x}:00.1]
class = 0x040300
vendor = 0x10de
device = 0x22ba
driver -> /sys/bus/pci/drivers/snd_hda_intel
driver_override = (null)
iommu_group -> /sys/kernel/iommu_groups/{group}
reset_method = flr
d3cold_allowed = 1
power/control = auto
power/runtime_status = suspended
"
        );
        let _ = write!(
            information,
            "
[/proc/driver/nvidia/gpus/0000:{bus:02x}:00.0]
information:
    Model: \t\t NVIDIA GeForce RTX 4090
    GPU UUID: \t GPU-7f1c5b0e-2f43-6d0a-91a4-3f0c5e1d{n:04x}
    Device Minor: \t {n}
"
        );
    }
    text += "
[/sys/bus/pci/drivers]
nvidia/module -> /sys/module/nvidia
snd_hda_intel/module -> /sys/module/snd_hda_intel

[/sys/class/iommu]
dir dmar0

[/proc/driver/nvidia]
version:
    NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (root@pve)  Tue Sep 23 10:11:16 UTC 2025

[/proc]
modules:
    nvidia 104165376 0 - Live 0xffffffffc4a00000 (OE)
    snd_hda_intel 61440 0 - Live 0xffffffffc0d51000
cmdline = BOOT_IMAGE=/boot/vmlinuz-6.14.11-4-pve root=/dev/mapper/pve-root ro quiet intel_iommu=on

[/sys/bus/pci/drivers/vfio-pci]

[/run/gpu-handoff]
lock =
";
    text + &information
}
