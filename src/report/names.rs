//! Names of hosts and people that are words of the host's own too: what must not be replaced, so that a report says elsewhere
//! what the host says. Pure.

use std::collections::BTreeSet;

use crate::base::recording::{Entries, What};
use crate::report::keep;

/// Names that many machines and people have: they tell nothing of anybody.
const COMMON: [&str; 30] = [
    "admin",
    "backup",
    "card",
    "debian",
    "default",
    "device",
    "docker",
    "driver",
    "gpu",
    "guest",
    "home",
    "host",
    "kernel",
    "linux",
    "local",
    "localhost",
    "memory",
    "node",
    "none",
    "nvidia",
    "proxmox",
    "pve",
    "root",
    "server",
    "system",
    "test",
    "ubuntu",
    "user",
    "vfio",
    "vm",
];

/// Words of the files that go along, as values of keys, commands and forms.
const GRAMMAR: &str = "acpi ahci alias all alpine amd amdgpu archlinux args ast auto away bin blacklist boot btrfs bus call calls \
    caller callers card centos ceph cephfs cgroup cifs cirrus class cmdline comm compute config console consoles controller cpu \
    ct cuda desktop devuan dir disabled dkms done dri drivers dump early edk2 efi ehci enabled end esxi etc ext4 fail fb fedora \
    file files firmware flags foreign free gentoo glusterfs grub ha hidden holder holders home hook hooks i440fx i915 ignored \
    images import info initramfs initrd install intel iommu iscsi iso jobs kvm l26 leaving lib linux24 linux26 loader lock lvm \
    lvmthin lxc manager map mapping mdev media mem mnt mod modeset modinfo modprobe module modules mount name names nfs nixos \
    nodes nouveau nvidia nvme off on open opensuse opt options other ovmf owner part parts pass pbs pc pci pcie pending pid post \
    pre private proc process processes programs q35 qemu qm qxl radeon rbd record records release remove resources returning \
    rombar root rootdir run sbin scope script scripts seabios search serial server service session shell slice snap snapshot snd \
    snippets socket softdep solaris special spice srv start started state std stopped storage stranded stub svm sys systemctl \
    systemd target template textfile timer tmp true false tty udev uhci unit units unmanaged unseen update usb usr uvm var \
    version vfio vga video virtio vm vms vmx vram vzdump vztmpl w2k win10 win11 win7 win8 wvista wxp xe xhci yes zfs zfspool \
    zram";

/// Folders that are the system's own: nobody's name is a part of what is looked for below them.
const SYSTEM: [&str; 12] = [
    "boot", "bin", "dev", "etc", "lib", "lib64", "proc", "run", "sbin", "sys", "usr", "var",
];

/// Folders of the kernel's and of packages: every word of a path below them is theirs.
const KERNELS: [&str; 5] = ["/boot/", "/dev/", "/lib/modules/", "/proc/", "/sys/"];

/// Files of the kernel's whose words are its own.
const KERNELS_FILES: [&str; 6] = [
    "/proc/cpuinfo",
    "/proc/devices",
    "/proc/fb",
    "/proc/iomem",
    "/proc/meminfo",
    "/proc/modules",
];

fn words(text: &str) -> impl Iterator<Item = String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric());
    words.filter(|word| !word.is_empty()).map(str::to_ascii_lowercase)
}

/// Whether a name is one that many have, or a word of Proxmox's, the kernel's or ours.
pub(super) fn is_common(name: &str) -> bool {
    let is = |word: &str| words(word).any(|word| word == name);
    COMMON.contains(&name) || GRAMMAR.split_whitespace().any(is) || keep::known_words().any(is)
}

/// The words that a host's own files are made of: names that are among them have to stay.
pub(super) fn of_the_host(entries: &Entries) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (path, entry) in entries {
        let is_its = KERNELS.iter().any(|folder| path.starts_with(folder)) && !path.starts_with("/sys/fs/");
        if is_its {
            found.extend(words(path));
        }
        let What::Text(text) = &entry.what else { continue };
        if KERNELS_FILES.contains(&path.as_str()) {
            found.extend(words(text));
        } else if path == "/proc/cmdline" {
            let keys = text.split_whitespace().filter_map(|word| word.split('=').next());
            found.extend(keys.flat_map(words));
        } else if path.ends_with(".json") || path.ends_with(".jsonl") {
            // "key": or, in lines within lines, \"key\":
            let parts: Vec<&str> = text.split('"').collect();
            let is_key = |pair: &&[&str]| pair[1].trim_start().starts_with(':');
            found.extend(parts.windows(2).filter(is_key).flat_map(|pair| words(pair[0])));
        }
    }
    found
}

/// Whether a path is the system's, below which names stay but for those of nodes.
pub(super) fn is_the_systems(path: &str) -> bool {
    let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    // Of programs there are the words.
    let is_told = !path[1..].contains('/');
    is_told || (SYSTEM.contains(&first) && !path.starts_with("/var/lib/vz/"))
}

/// Where a link leads, from the root on.
pub(super) fn target_of(path: &str, target: &str) -> String {
    let mut parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}
