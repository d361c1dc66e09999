//! For each check a host on which it finds nothing, and one on which it finds the worst that it can say.

use crate::hosts::Edit::{Append, Dir, File, Link, Mode, Old, Replace, Without};
use crate::hosts::{Ask, CT, LINK, READY, VM, other, with};

/// A check, a host that is well, one that is ill.
pub struct Case {
    pub row: &'static str,
    pub well: Ask,
    pub ill: Ask,
}

const fn case(row: &'static str, ill: Ask) -> Case {
    Case { row, well: READY, ill }
}

const GRUB: &str = "/etc/default/grub";
const WORDS: &str = "quiet iommu=pt";
const MODPROBE: &str = "/etc/modprobe.d/vfio.conf";
const VERSION: &str = "/proc/driver/nvidia/version";
const SIXTEEN: &str = "0x0000000010000000 0x0000000010ffffff 0x0000000000040200\n";
const INFORMATION: &str = "/proc/driver/nvidia/gpus/0000:0b:00.0/information";

pub const CASES: &[Case] = &[
    case("root", Ask { root: false, ..READY }),
    case("proxmox", with(&[Replace("/var/lib/dpkg/status", "9.1.11", "7.4-3")])),
    case(
        "qemu-server",
        with(&[Replace("/var/lib/dpkg/status", "qemu-server", "qemu-none")]),
    ),
    case("virtualisation", with(&[Replace("/proc/cpuinfo", " svm", "")])),
    case(
        "secure-boot",
        with(&[File(
            "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c",
            "\u{6}\0\0\0\u{1}",
        )]),
    ),
    case(
        "lockdown",
        with(&[File(
            "/sys/kernel/security/lockdown",
            "none [integrity] confidentiality\n",
        )]),
    ),
    case(
        "module-signatures",
        with(&[File(
            "/sys/kernel/security/lockdown",
            "none [integrity] confidentiality\n",
        )]),
    ),
    case("kernel", with(&[Dir("/lib/modules/6.17.2-1-pve")])),
    case(
        "gate",
        with(&[File(
            "/proc/self/mounts",
            "tmpfs /sys/fs/cgroup tmpfs ro 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n",
        )]),
    ),
    case(
        "vfio",
        with(&[Without(
            "/lib/modules/6.14.11-4-pve/kernel/drivers/vfio/pci/vfio-pci.ko",
        )]),
    ),
    case(
        "console",
        with(&[File("/proc/consoles", "tty0                 -WU (EC  p  )    4:2\n")]),
    ),
    case(
        "iommu",
        with(&[
            Without("/sys/class/iommu/ivhd0"),
            Replace("/proc/cpuinfo", "AuthenticAMD", "GenuineIntel"),
        ]),
    ),
    case(
        "iommu-firmware",
        with(&[
            Without("/sys/class/iommu/ivhd0"),
            Without("/sys/firmware/acpi/tables/IVRS"),
        ]),
    ),
    case(
        "iommu-groups",
        with(&[Without("/sys/devices/pci0000:00/0000:00:03.1/0000:0b:00.0/iommu_group")]),
    ),
    case(
        "interrupt-remapping",
        with(&[Replace("/proc/interrupts", "IR-PCI", "PCI")]),
    ),
    case("iommu-off", with(&[Replace(GRUB, WORDS, "quiet amd_iommu=off")])),
    case(
        "iommu-argument",
        with(&[Replace(GRUB, WORDS, "quiet amd_iommu=on iommu=pt")]),
    ),
    case(
        "acs-override",
        with(&[Replace(
            GRUB,
            WORDS,
            "quiet iommu=pt pcie_acs_override=downstream,multifunction",
        )]),
    ),
    case(
        "noiommu",
        with(&[File(MODPROBE, "options vfio enable_unsafe_noiommu_mode=1\n")]),
    ),
    case("gpu", with(&[Without("/sys/bus/pci/devices/0000:0b:00.0")])),
    Case {
        row: "gpu-answers",
        well: READY,
        ill: other("fallen-off-the-bus"),
    },
    case("gpu-calls", other("unbind-hangs")),
    case("gpu-group", other("acs-less")),
    case(
        "gpu-functions",
        with(&[Without("/sys/devices/pci0000:00/0000:00:03.1/0000:0b:00.1/driver")]),
    ),
    case(
        "gpu-reset",
        with(&[File(
            "/sys/devices/pci0000:00/0000:00:03.1/0000:0b:00.0/reset_method",
            "\n",
        )]),
    ),
    case(
        "gpu-known",
        with(&[File(
            "/sys/devices/pci0000:00/0000:00:03.1/0000:0b:00.0/device",
            "0x2b85\n",
        )]),
    ),
    case(
        "gpu-sriov",
        with(&[File(
            "/sys/devices/pci0000:00/0000:00:03.1/0000:0b:00.0/sriov_numvfs",
            "4\n",
        )]),
    ),
    case("gpu-mig", other("mig")),
    case("gpu-nvlink", other("nvswitch")),
    case(
        "gpu-regions",
        with(&[File(
            "/sys/devices/pci0000:00/0000:00:03.1/0000:0b:00.0/resource",
            SIXTEEN,
        )]),
    ),
    case(
        "gpu-rebar",
        with(&[Replace(
            "/sys/devices/pci0000:00/0000:00:03.1/0000:0b:00.0/resource",
            "0x0000007fffffffff",
            "0x000000780fffffff",
        )]),
    ),
    case(
        "gpu-width",
        with(&[File(
            "/sys/devices/pci0000:00/0000:00:03.1/0000:0b:00.0/current_link_width",
            "8\n",
        )]),
    ),
    case(
        "gpu-speed",
        with(&[File(
            "/sys/devices/pci0000:00/0000:00:03.1/0000:0b:00.0/current_link_speed",
            "2.5 GT/s PCIe\n",
        )]),
    ),
    case(
        "gpu-power",
        with(&[File(
            "/sys/devices/pci0000:00/0000:00:03.1/0000:0b:00.0/power/runtime_status",
            "suspended\n",
        )]),
    ),
    case("gpu-framebuffer", other("boot-vga-firmware-framebuffer")),
    case(
        "gpu-override",
        with(&[File(
            "/sys/devices/pci0000:00/0000:00:03.1/0000:0b:00.0/driver_override",
            "vfio-pci\n",
        )]),
    ),
    case(
        "gpu-stranded",
        with(&[Link(
            "/sys/devices/pci0000:00/0000:00:03.1/0000:0b:00.0/driver",
            "../vfio-pci",
        )]),
    ),
    case(
        "gpu-new-id",
        with(&[Link(
            "/sys/devices/pci0000:00/0000:00:03.1/0000:0b:00.0/driver",
            "../vfio-pci",
        )]),
    ),
    case("gpu-usb", other("usb-disk-in-use")),
    case("gpu-usb-c", other("usb-c")),
    case("gpu-users", Ask { used: true, ..READY }),
    case(
        "driver-installed",
        with(&[Without("/lib/modules/6.14.11-4-pve/updates/dkms/nvidia-drm.ko")]),
    ),
    case("driver-loaded", with(&[Without("/proc/driver/nvidia")])),
    case(
        "driver-on-disk",
        with(&[File("/programs/modinfo -F version nvidia", "580.105.08\n")]),
    ),
    case(
        "driver-library",
        with(&[
            Without("/usr/lib/x86_64-linux-gnu/libcuda.so.580.95.05"),
            Without("/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.95.05"),
            File("/usr/lib/x86_64-linux-gnu/libcuda.so.570.86.10", ""),
        ]),
    ),
    case(
        "driver-branch",
        with(&[
            File("/sys/devices/pci0000:00/0000:00:03.1/0000:0b:00.0/device", "0x1b06\n"),
            Replace(VERSION, "580.95.05", "590.48.01"),
            Replace(INFORMATION, "RTX 3090", "GTX 1080 Ti"),
        ]),
    ),
    case(
        "driver-open",
        with(&[
            File("/sys/devices/pci0000:00/0000:00:03.1/0000:0b:00.0/device", "0x2b85\n"),
            Replace(VERSION, "Open Kernel Module for x86_64", "x86_64 Kernel Module"),
            Replace(INFORMATION, "RTX 3090", "RTX 5090"),
        ]),
    ),
    case(
        "driver-newest-kernel",
        with(&[File(
            "/lib/modules/6.17.2-1-pve/modules.dep",
            "kernel/drivers/vfio/vfio.ko:\n",
        )]),
    ),
    case(
        "driver-headers",
        with(&[File("/lib/modules/6.17.2-1-pve/modules.dep", "")]),
    ),
    case("driver-drm", other("driver-470")),
    case("driver-one-shot", with(&[Replace(VERSION, "580.95.05", "595.45.04")])),
    case("driver-smi", with(&[Without("/usr/bin/nvidia-smi")])),
    case("nouveau", other("nouveau")),
    case(
        "known-bad",
        with(&[File("/proc/sys/kernel/osrelease", "6.14.2-1-pve\n")]),
    ),
    Case {
        row: "dkms",
        well: Ask { full: true, ..READY },
        ill: Ask {
            full: true,
            ..with(&[File(
                "/programs/dkms status",
                "nvidia/580.95.05, 6.11.0-1-pve, x86_64: installed\nnvidia/580.95.05: added\n",
            )])
        },
    },
    case(
        "vfio-ids",
        with(&[File(
            MODPROBE,
            "# for the VM\n\noptions vfio-pci ids=10de:2204,10de:1aef disable_vga=1\n",
        )]),
    ),
    case(
        "blacklist",
        with(&[File(
            "/etc/modprobe.d/blacklist.conf",
            "blacklist nouveau\nblacklist nvidia\n",
        )]),
    ),
    case(
        "install-false",
        with(&[File("/etc/modprobe.d/nvidia.conf", "install nvidia /bin/false\n")]),
    ),
    case("softdep", with(&[File(MODPROBE, "softdep nvidia pre: vfio-pci\n")])),
    case(
        "modules-load",
        with(&[File("/etc/modules-load.d/vfio.conf", "vfio\nvfio_virqfd\n")]),
    ),
    case(
        "firmware-framebuffer",
        with(&[Replace(
            GRUB,
            WORDS,
            "quiet iommu=pt video=efifb:off initcall_blacklist=sysfb_init",
        )]),
    ),
    case(
        "cmdline",
        with(&[Replace(GRUB, WORDS, "quiet iommu=pt mitigations=off")]),
    ),
    case(
        "configured",
        with(&[Replace(GRUB, "\"quiet iommu=pt\"", "\"$(cat /etc/words)\"")]),
    ),
    case(
        "initramfs-age",
        with(&[
            File(MODPROBE, "options vfio-pci disable_vga=1\n"),
            Old("/boot/initrd.img-6.14.11-4-pve"),
        ]),
    ),
    Case {
        row: "initramfs",
        well: Ask { full: true, ..READY },
        ill: Ask {
            full: true,
            ..with(&[Append(
                "/programs/lsinitramfs !boot!initrd.img-6.14.11-4-pve",
                "etc/modprobe.d/vfio.conf\n",
            )])
        },
    },
    case(
        "proxmenux",
        with(&[File("/etc/udev/rules.d/70-nvidia.rules.proxmenux-disabled", "")]),
    ),
    case(
        "driverctl",
        with(&[File("/etc/driverctl.d/pci-0000:0b:00.0", "vfio-pci\n")]),
    ),
    case(
        "udev-rules",
        with(&[File(
            "/etc/udev/rules.d/99-vfio.rules",
            "# the card\nACTION==\"add\", KERNEL==\"0000:0b:00.0\", ATTR{driver_override}=\"vfio-pci\"\n",
        )]),
    ),
    case(
        "scripts",
        with(&[
            File("/usr/local/bin/gpu-handoff.sh", "#!/bin/bash\n"),
            Dir("/usr/local/phoenix_hypervisor"),
        ]),
    ),
    case(
        "snippets",
        with(&[
            File(
                "/var/lib/vz/snippets/vm111-hook.sh",
                "#!/usr/bin/env bash\nset -e\n/usr/local/bin/gpu-handoff.sh to_vfio\n",
            ),
            Replace(VM, "local:snippets/gpu-handoff", "local:snippets/vm111-hook.sh"),
        ]),
    ),
    case("hook-link", with(&[Without(LINK)])),
    case("hook-executable", with(&[Mode("/usr/sbin/gpu-handoff", 0o644)])),
    case(
        "hook-storage",
        with(&[Replace("/etc/pve/storage.cfg", ",snippets", "")]),
    ),
    case(
        "hook-vms",
        with(&[Replace(VM, "hookscript: local:snippets/gpu-handoff\n", "")]),
    ),
    case(
        "hook-containers",
        with(&[Replace(CT, "hookscript: local:snippets/gpu-handoff\n", "")]),
    ),
    case("hook-nodes", with(&[Dir("/etc/pve/nodes/pve2")])),
    case(
        "vm",
        Ask {
            vm: Some("999"),
            ..READY
        },
    ),
    case(
        "vm-hostpci",
        with(&[Replace(
            VM,
            "hostpci0: 0000:0b:00,pcie=1",
            "hostpci0: 0000:0B:00,pcie=1",
        )]),
    ),
    case("vm-machine", with(&[Replace(VM, "machine: q35\n", "")])),
    case("vm-bios", with(&[Replace(VM, "bios: ovmf\n", "")])),
    case("vm-cpu", with(&[Replace(VM, "cpu: host", "cpu: x86-64-v2-AES")])),
    case(
        "vm-hiding",
        with(&[
            Replace(VM, "cpu: host", "cpu: host,hidden=1"),
            Replace(INFORMATION, "GeForce RTX 3090", "RTX A6000"),
        ]),
    ),
    case(
        "vm-x-vga",
        with(&[Replace(
            VM,
            "hostpci0: 0000:0b:00,pcie=1",
            "hostpci0: 0000:0b:00.0,pcie=1,x-vga=1\nhostpci1: 0000:0b:00.1,x-vga=1",
        )]),
    ),
    case("vm-balloon", with(&[Append(VM, "balloon: 2048\n")])),
    case("vm-memory", with(&[Replace(VM, "memory: 16384", "memory: 131072")])),
    case(
        "vm-same-gpu",
        with(&[
            Append(VM, "onboot: 1\n"),
            File(
                "/etc/pve/nodes/pve/qemu-server/112.conf",
                "name: work\nmachine: q35\nonboot: 1\nhostpci0: 0000:0b:00.0,pcie=1\n",
            ),
        ]),
    ),
    case(
        "vm-args",
        with(&[Append(VM, "args: -device vfio-pci,host=0000:0b:00.0\n")]),
    ),
    case(
        "vm-order",
        with(&[Append(VM, "onboot: 1\n"), Append(CT, "onboot: 1\n")]),
    ),
    case(
        "vm-backup",
        with(&[Append(
            "/etc/pve/jobs.cfg",
            "\nvzdump: backup-all\n\tall 1\n\tschedule 02:00\n",
        )]),
    ),
    case(
        "vm-ha",
        with(&[File("/etc/pve/ha/resources.cfg", "vm: 111\n\tstate started\n")]),
    ),
    case(
        "vm-mapping",
        with(&[
            Dir("/etc/pve/nodes/pve2"),
            File(
                "/etc/pve/mapping/pci.cfg",
                "gpu\n\tmap id=10de:2204,iommugroup=24,node=pve,path=0000:0b:00,subsystem-id=10de:147d\n",
            ),
            Replace(VM, "hostpci0: 0000:0b:00,pcie=1", "hostpci0: mapping=gpu,pcie=1"),
        ]),
    ),
    case(
        "vm-reserved",
        with(&[File(
            "/run/qemu-server/pci-id-reservations",
            "0000:0b:00.0 111 pid:4711\n",
        )]),
    ),
    Case {
        row: "ct",
        well: with(&[Without("/etc/pve/nodes/pve/lxc/104.conf")]),
        ill: READY,
    },
    case(
        "ct-driver",
        with(&[
            Without("/proc/900/root/usr/lib/x86_64-linux-gnu/libcuda.so.580.95.05"),
            File("/proc/900/root/usr/lib/x86_64-linux-gnu/libcuda.so.570.86.10", ""),
        ]),
    ),
    case("ct-nodes", with(&[Without("/dev/nvidia-uvm")])),
    case(
        "ct-numbers",
        with(&[Append(CT, "lxc.cgroup2.devices.allow: c 509:* rwm\n")]),
    ),
    case(
        "ct-cgroup1",
        with(&[Append(CT, "lxc.cgroup.devices.allow: c 195:* rwm\n")]),
    ),
    case(
        "docker",
        with(&[File(
            "/etc/docker/daemon.json",
            "{\n  \"runtimes\": { \"nvidia\": {} }\n}\n",
        )]),
    ),
    case(
        "settings",
        with(&[File("/etc/gpu-handoff/config.toml", "gate = \"shut\"\n")]),
    ),
    case(
        "records",
        Ask {
            unreadable: Some("/run/gpu-handoff/vm-111.json is no record: expected value at line 1 column 1"),
            ..READY
        },
    ),
    case("history", with(&[Without("/var/lib/gpu-handoff")])),
    case("room", with(&[File("/filesystems", "/run ro\n/var/lib 90000000000\n")])),
    case(
        "units",
        with(&[Without("/usr/lib/systemd/system/gpu-handoff-watch@.service")]),
    ),
];
