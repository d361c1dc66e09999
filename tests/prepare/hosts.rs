//! Hosts as they are met: trees of files with what guides have left in them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use gpu_handoff::base::root::Root;

/// A host: its files, and its links.
pub struct Fixture {
    pub name: &'static str,
    pub files: &'static [(&'static str, &'static str)],
    pub links: &'static [(&'static str, &'static str)],
}

const INTEL: (&str, &str) = ("proc/cpuinfo", "processor\t: 0\nvendor_id\t: GenuineIntel\n");
const AMD: (&str, &str) = ("proc/cpuinfo", "processor\t: 0\nvendor_id\t: AuthenticAMD\n");
const CARD: (&str, &str) = ("sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n");
const CARD_ID: (&str, &str) = ("sys/bus/pci/devices/0000:01:00.0/device", "0x2204\n");
const SOUND: (&str, &str) = ("sys/bus/pci/devices/0000:01:00.1/vendor", "0x10de\n");
const SOUND_ID: (&str, &str) = ("sys/bus/pci/devices/0000:01:00.1/device", "0x1aef\n");
const NIC: (&str, &str) = ("sys/bus/pci/devices/0000:02:00.0/vendor", "0x8086\n");
const NIC_ID: (&str, &str) = ("sys/bus/pci/devices/0000:02:00.0/device", "0x1533\n");
const EFI: (&str, &str) = ("sys/firmware/efi/systab", "");
const UUIDS: (&str, &str) = ("etc/kernel/proxmox-boot-uuids", "D34B-A25D\n");

/// What Debian's driver packages have: it fights nothing.
const DEBIANS: (&str, &str) = (
    "etc/nvidia/nvidia-modprobe.conf",
    "install nvidia modprobe -i nvidia-current $CMDLINE_OPTS\n\n\
     install nvidia-modeset modprobe nvidia ; modprobe -i nvidia-current-modeset $CMDLINE_OPTS\n\n\
     alias nvidia-drm nvidia-current-drm\n",
);

const DEBIANS_GRUB: &str = "# If you change this file, run 'update-grub' afterwards to update\n\
    # /boot/grub/grub.cfg.\n\
    \n\
    GRUB_DEFAULT=0\n\
    GRUB_TIMEOUT=5\n\
    GRUB_DISTRIBUTOR=`lsb_release -i -s 2> /dev/null || echo Debian`\n\
    GRUB_CMDLINE_LINUX_DEFAULT=\"quiet\"\n\
    GRUB_CMDLINE_LINUX=\"\"\n";

/// An Intel host that boots by GRUB, after several guides.
pub const GRUB_INTEL: Fixture = Fixture {
    name: "grub-intel",
    files: &[
        INTEL,
        CARD,
        CARD_ID,
        SOUND,
        SOUND_ID,
        NIC,
        NIC_ID,
        DEBIANS,
        (
            "proc/cmdline",
            "BOOT_IMAGE=/boot/vmlinuz-6.5.13-5-pve root=/dev/mapper/pve-root ro quiet\n",
        ),
        ("etc/default/grub", DEBIANS_GRUB),
        (
            "etc/default/grub.d/init-select.cfg",
            "# Work around a bug in the obsolete init-select package\n:\n",
        ),
        (
            "etc/default/grub.d/kdump-tools.cfg",
            "GRUB_CMDLINE_LINUX_DEFAULT=\"$GRUB_CMDLINE_LINUX_DEFAULT crashkernel=384M-:128M\"\n",
        ),
        // No end of its last line; one id is another card's.
        (
            "etc/modprobe.d/vfio.conf",
            "options vfio-pci ids=10de:2204,10de:1aef,8086:1533 disable_vga=1",
        ),
        (
            "etc/modprobe.d/pve-blacklist.conf",
            "# This file contains a list of modules which are not supported by Proxmox VE\n\n\
             # nvidiafb see bugreport https://bugzilla.proxmox.com/show_bug.cgi?id=701\nblacklist nvidiafb\n",
        ),
        // From an editor of Windows, and with a line that goes on.
        (
            "etc/modprobe.d/blacklist-gpu.conf",
            "blacklist nouveau\r\nblacklist nvidia\r\nblacklist \\\n  nvidia\n",
        ),
        (
            "etc/modprobe.d/nvidia-off.conf",
            "install nvidia /bin/false\nsoftdep nvidia pre: vfio-pci\n",
        ),
        (
            "usr/lib/modprobe.d/zz-passthrough.conf",
            "# a package's\noptions vfio-pci ids=10de:2204\n",
        ),
        (
            "etc/modules",
            "# /etc/modules: kernel modules to load at boot time.\nvfio\nvfio_virqfd\n",
        ),
        (
            "etc/initramfs-tools/modules",
            "# List of modules\nvfio_pci ids=10de:2204\n",
        ),
    ],
    links: &[
        ("etc/modprobe.d/nvidia.conf", "../nvidia/nvidia-modprobe.conf"),
        ("etc/modules-load.d/modules.conf", "../modules"),
    ],
};

/// The same by systemd-boot, which proxmox-boot-tool keeps.
pub const SYSTEMD_BOOT_INTEL: Fixture = Fixture {
    name: "systemd-boot-intel",
    files: &[
        INTEL,
        CARD,
        CARD_ID,
        SOUND,
        SOUND_ID,
        EFI,
        UUIDS,
        (
            "proc/cmdline",
            "initrd=\\EFI\\proxmox\\6.5.13-5-pve\\initrd.img-6.5.13-5-pve root=ZFS=rpool/ROOT/pve-1 boot=zfs\n",
        ),
        (
            "etc/kernel/cmdline",
            "root=ZFS=rpool/ROOT/pve-1 boot=zfs vfio-pci.ids=10de:2204,10de:1aef modprobe.blacklist=nouveau,nvidia\n",
        ),
        ("etc/default/grub", DEBIANS_GRUB),
        ("etc/gpu/ids.conf", "# by hand\noptions vfio_pci ids=10de:2204\n"),
        ("etc/modules-load.d/mine.conf", "vfio_iommu_type1\n"),
    ],
    links: &[("etc/modprobe.d/vfio.conf", "../gpu/ids.conf")],
};

/// An AMD host that boots by GRUB from boot partitions that proxmox-boot-tool keeps.
pub const GRUB_AMD: Fixture = Fixture {
    name: "grub-amd",
    files: &[
        AMD,
        CARD,
        CARD_ID,
        SOUND,
        SOUND_ID,
        EFI,
        UUIDS,
        (
            "proc/cmdline",
            "BOOT_IMAGE=/vmlinuz-6.8.12-4-pve root=ZFS=/ROOT/pve-1 ro quiet amd_iommu=on iommu=off\n",
        ),
        (
            "etc/default/grub",
            "GRUB_DEFAULT=0\nGRUB_CMDLINE_LINUX_DEFAULT='quiet amd_iommu=on iommu=off'\n\
             GRUB_CMDLINE_LINUX='root=ZFS=rpool/ROOT/pve-1 boot=zfs'",
        ),
        (
            "etc/modprobe.d/a.conf",
            "blacklist nvidia\nblacklist nvidia_drm\nblacklist amdgpu\x1b[2J\n",
        ),
        ("etc/modules", "vfio\nvfio_iommu_type1\nvfio_pci\n"),
    ],
    links: &[("etc/modules-load.d/modules.conf", "../modules")],
};

/// An AMD host on which nothing is to be done.
pub const SYSTEMD_BOOT_AMD: Fixture = Fixture {
    name: "systemd-boot-amd",
    files: &[
        AMD,
        CARD,
        CARD_ID,
        SOUND,
        SOUND_ID,
        EFI,
        UUIDS,
        (
            "proc/cmdline",
            "initrd=\\EFI\\proxmox\\6.8.12-4-pve\\initrd.img-6.8.12-4-pve root=ZFS=rpool/ROOT/pve-1 boot=zfs\n",
        ),
        ("sys/class/iommu/ivhd0/amd-iommu/version", "1\n"),
        ("etc/kernel/cmdline", "root=ZFS=rpool/ROOT/pve-1 boot=zfs\n"),
        ("etc/modprobe.d/kvm.conf", "options kvm ignore_msrs=1\n"),
        ("etc/modules-load.d/vfio.conf", "vfio-pci\n"),
    ],
    links: &[],
};

pub const ALL: [&Fixture; 4] = [&GRUB_INTEL, &SYSTEMD_BOOT_INTEL, &GRUB_AMD, &SYSTEMD_BOOT_AMD];

impl Fixture {
    /// The host, with these files besides or instead.
    pub fn make(&self, more: &[(&str, &str)]) -> (tempfile::TempDir, Root) {
        // Thousands of runs put each file on the disk before they go on: in memory that takes no time.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        let dir = dir.unwrap();
        for (path, text) in self.files.iter().chain(more) {
            write(dir.path(), path, text);
        }
        for (link, target) in self.links {
            let link = dir.path().join(link);
            fs::create_dir_all(link.parent().unwrap()).unwrap();
            symlink(target, link).unwrap();
        }
        // Rights that are kept.
        for (path, mode) in [("etc/modprobe.d/vfio.conf", 0o640), ("etc/kernel/cmdline", 0o600)] {
            let path = dir.path().join(path);
            if path.exists() {
                fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
            }
        }
        let root = Root::at(dir.path());
        (dir, root)
    }
}

/// Writes a file of a host, as an administrator does: over what is there.
pub fn write(dir: &Path, path: &str, text: impl AsRef<[u8]>) {
    let path = dir.join(path.trim_start_matches('/'));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// Every file and link of a host: what it is, whose, and what is in it. What is kept below /var is not the host's.
pub fn tree(dir: &Path) -> BTreeMap<String, String> {
    fn look(dir: &Path, below: &str, all: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = format!("{below}/{}", path.file_name().unwrap().to_string_lossy());
            let metadata = fs::symlink_metadata(&path).unwrap();
            if metadata.is_dir() {
                if name != "/var" {
                    look(&path, &name, all);
                }
            } else if metadata.is_symlink() {
                all.insert(name, format!("-> {}", fs::read_link(&path).unwrap().display()));
            } else if metadata.is_file() {
                let (mode, uid, gid) = (metadata.mode(), metadata.uid(), metadata.gid());
                let text = fs::read(&path).unwrap().escape_ascii().to_string();
                all.insert(name, format!("{mode:o} {uid}:{gid} {text}"));
            }
        }
    }
    let mut all = BTreeMap::new();
    look(dir, "", &mut all);
    all
}
