//! Five hosts whose whole report is kept as a text.

use crate::hosts::Edit::{Append, Dir, File, Link, Replace, Without};
use crate::hosts::{Ask, CT, LINK, READY, VM, other, with};

pub const SCREENS: &[(&str, Ask)] = &[
    ("ready", Ask { full: true, ..READY }),
    // Years of guides.
    (
        "planted",
        with(&[
            File(
                "/etc/modprobe.d/vfio.conf",
                "options vfio-pci ids=10de:2204,10de:1aef disable_vga=1\nsoftdep nvidia pre: vfio-pci\n",
            ),
            File(
                "/etc/modprobe.d/blacklist.conf",
                "blacklist nouveau\nblacklist nvidia\n",
            ),
            Replace(
                "/etc/default/grub",
                "quiet iommu=pt",
                "quiet amd_iommu=on iommu=pt pcie_acs_override=downstream,multifunction video=efifb:off",
            ),
            Link(
                "/sys/devices/pci0000:00/0000:00:03.1/0000:0b:00.0/driver",
                "../vfio-pci",
            ),
            File("/etc/udev/rules.d/70-nvidia.rules.proxmenux-disabled", ""),
            File("/usr/local/bin/gpu-handoff.sh", "#!/bin/bash\n"),
            File(
                "/etc/pve/nodes/pve/qemu-server/112.conf",
                "name: work\nmachine: q35\nhostpci0: 0000:0b:00,pcie=1\n",
            ),
            Without("/lib/modules/6.14.11-4-pve/updates/dkms/nvidia-drm.ko"),
            Without("/proc/900/root/usr/lib/x86_64-linux-gnu/libcuda.so.580.95.05"),
            File("/proc/900/root/usr/lib/x86_64-linux-gnu/libcuda.so.570.86.10", ""),
            Append(CT, "onboot: 1\n"),
            Append(VM, "onboot: 1\nballoon: 2048\n"),
        ]),
    ),
    // The package on a Debian that has nothing else.
    (
        "bare",
        with(&[
            Without("/etc/pve"),
            Without("/var/lib/dpkg/status"),
            Without("/proc/driver/nvidia"),
            Without("/sys/class/iommu/ivhd0"),
            Without("/sys/firmware/acpi/tables/IVRS"),
            Replace("/proc/cpuinfo", "AuthenticAMD", "GenuineIntel"),
            Without(LINK),
        ]),
    ),
    // A cluster of two with HA.
    (
        "cluster",
        with(&[
            Dir("/etc/pve/nodes/pve2"),
            File("/etc/pve/ha/resources.cfg", "vm: 111\n\tstate started\n"),
            Replace("/etc/pve/storage.cfg", ",snippets", ""),
            Append("/etc/pve/jobs.cfg", "\nvzdump: backup-all\n\tall 1\n"),
            Dir("/lib/modules/6.17.2-1-pve"),
            File("/sys/kernel/security/lockdown", "none [integrity] confidentiality\n"),
        ]),
    ),
    ("nvswitch", other("nvswitch")),
];
