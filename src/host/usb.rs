//! What hangs below a card's USB controller and would be torn away with it: disks that are in use, networks that are up.
//!
//! Only what the host itself uses is looked for; who has a disk's node open is a holder ([`crate::host::holders`]). Keyboards and
//! the like come and go with no harm. Not seen: a disk mounted nowhere but in another mount namespace, and an interface that
//! was moved into another network namespace.

use std::fs;

use serde::{Deserialize, Serialize};

use crate::base::pci::PciAddr;
use crate::base::root::Root;

/// How deep below a controller a disk can be: seven tiers of hubs and devices (USB 2.0 specification, 4.1.1), then the
/// interface and what SCSI puts below it (host, target, address, block).
const DEEPEST: usize = 16;

/// IFF_UP of include/uapi/linux/if.h, as `flags` shows it (linux, Documentation/ABI/testing/sysfs-class-net).
const UP: u32 = 1;

/// A disk, a partition or a network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Its name, such as sdb1 or enx00e04c680001.
    pub name: String,
    /// Its folder in sysfs.
    pub dir: String,
    /// MAJOR:MINOR of a disk or a partition; None for a network interface.
    pub number: Option<String>,
}

/// Something below a card that the host uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InUse {
    /// The card's USB controller.
    pub of: PciAddr,
    /// What is used, such as sdb1.
    pub name: String,
    /// How.
    pub how: How,
}

/// How the host uses something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// Mounted there.
    Mounted(String),
    /// Swapped to.
    Swap,
    /// Other block devices are made of it: device mapper (LVM, encryption), md.
    PartOf(Vec<String>),
    /// A device of a btrfs file system that is mounted.
    Btrfs,
    /// A device of a ZFS pool that is imported.
    Zfs(String),
    /// The interface is up.
    Up,
}

/// Disks, partitions and interfaces below a controller. What goes while it is looked at is not there.
pub fn attached(root: &Root, addr: PciAddr) -> Vec<Attached> {
    let dir = format!("/sys/bus/pci/devices/{addr}");
    let mut found = Vec::new();
    for name in root.names(&dir).unwrap_or_default() {
        // A root hub; what else begins so is a file or a folder without devices.
        if name.strip_prefix("usb").is_some_and(|n| n.parse::<u32>().is_ok()) {
            below(root, &format!("{dir}/{name}"), DEEPEST, &mut found);
        }
    }
    found
}

fn below(root: &Root, dir: &str, depth: usize, found: &mut Vec<Attached>) {
    for name in root.names(dir).unwrap_or_default() {
        let path = format!("{dir}/{name}");
        // Links lead out of the tree, or round in circles.
        if !fs::symlink_metadata(root.path(&path)).is_ok_and(|meta| meta.is_dir()) {
            continue;
        }
        match name.as_str() {
            "block" => {
                for disk in root.names(&path).unwrap_or_default() {
                    disks(root, &path, &disk, found);
                }
            }
            "net" => found.extend(root.names(&path).unwrap_or_default().into_iter().map(|name| Attached {
                dir: format!("{path}/{name}"),
                number: None,
                name,
            })),
            _ if depth > 0 => below(root, &path, depth - 1, found),
            _ => {}
        }
    }
}

/// A disk and its partitions.
fn disks(root: &Root, dir: &str, disk: &str, found: &mut Vec<Attached>) {
    let dir = format!("{dir}/{disk}");
    let mut parts = root.names(&dir).unwrap_or_default();
    parts.retain(|part| root.exists(format!("{dir}/{part}/partition")));
    let parts = parts.into_iter().map(|part| (format!("{dir}/{part}"), part));
    for (dir, name) in [(dir.clone(), disk.to_owned())].into_iter().chain(parts) {
        if let Some(number) = root.line(format!("{dir}/dev")) {
            found.push(Attached {
                name,
                dir,
                number: Some(number),
            });
        }
    }
}

/// What of a controller's disks and interfaces the host uses.
pub fn in_use(root: &Root, of: PciAddr) -> Vec<InUse> {
    let attached = attached(root, of);
    if attached.is_empty() {
        return Vec::new();
    }
    let mounts = mounts(&root.text("/proc/self/mountinfo").unwrap_or_default());
    let swaps = swaps(&root.text("/proc/swaps").unwrap_or_default());
    // What comes from several places is found by the first that knows how it is undone.
    let how = |one: &Attached| -> Option<How> {
        let Some(number) = &one.number else {
            return is_up(root, &one.dir).then_some(How::Up);
        };
        let node = format!("/dev/{}", one.name);
        let mount = mounts.iter().find(|m| m.number == *number || m.source == node);
        if let Some(mount) = mount {
            return Some(How::Mounted(mount.target.clone()));
        }
        if swaps.contains(&node) {
            return Some(How::Swap);
        }
        let made_of_it = root.names(format!("{}/holders", one.dir)).unwrap_or_default();
        if !made_of_it.is_empty() {
            return Some(How::PartOf(made_of_it));
        }
        if is_in_btrfs(root, &one.name) {
            return Some(How::Btrfs);
        }
        pool(root, number).map(How::Zfs)
    };
    let found = attached.iter().filter_map(|one| {
        Some(InUse {
            of,
            name: one.name.clone(),
            how: how(one)?,
        })
    });
    found.collect()
}

/// A mounted file system.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    /// MAJOR:MINOR of its files. No block device's for btrfs, which has one of its own.
    number: String,
    /// What was mounted.
    source: String,
    /// Where.
    target: String,
}

/// Parses /proc/self/mountinfo (proc_pid_mountinfo(5)): `36 35 98:0 / /mnt rw - ext4 /dev/sdb1 rw`, with any number of
/// fields before the dash.
fn mounts(text: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(2);
        Some(Mount {
            number: before.next()?.to_owned(),
            target: unescaped(before.nth(1)?),
            source: unescaped(after.split(' ').nth(1)?),
        })
    };
    text.lines().filter_map(mount).collect()
}

/// Parses /proc/swaps (proc_swaps(5)): a header, then lines that begin with the file.
fn swaps(text: &str) -> Vec<String> {
    let files = text.lines().skip(1).filter_map(|l| l.split_ascii_whitespace().next());
    files.map(unescaped).collect()
}

/// Blanks, tabs, line ends and backslashes are `\040`, `\011`, `\012` and `\134` there.
fn unescaped(text: &str) -> String {
    let mut pieces = text.split('\\');
    let mut plain = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let code = piece.split_at_checked(3);
        let code = code.and_then(|(digits, rest)| Some((u8::from_str_radix(digits, 8).ok()?, rest)));
        match code {
            Some((byte, rest)) if byte.is_ascii() => {
                plain.push(char::from(byte));
                plain.push_str(rest);
            }
            _ => {
                plain.push('\\');
                plain.push_str(piece);
            }
        }
    }
    plain
}

fn is_up(root: &Root, dir: &str) -> bool {
    let flags = root.line(format!("{dir}/flags")).unwrap_or_default();
    let flags = flags.strip_prefix("0x").and_then(|t| u32::from_str_radix(t, 16).ok());
    flags.is_some_and(|f| f & UP != 0) || root.line(format!("{dir}/operstate")).as_deref() == Some("up")
}

/// Whether it is a device of a mounted btrfs file system: /sys/fs/btrfs/UUID/devices has a link for each (linux,
/// fs/btrfs/sysfs.c, btrfs_sysfs_add_device).
fn is_in_btrfs(root: &Root, name: &str) -> bool {
    let systems = root.names("/sys/fs/btrfs").unwrap_or_default();
    let has = |system: &String| {
        let devices = root
            .names(format!("/sys/fs/btrfs/{system}/devices"))
            .unwrap_or_default();
        devices.iter().any(|device| device == name)
    };
    systems.iter().any(has)
}

/// The ZFS pool that a device is of, if it is imported. No file of the kernel's says which devices a pool has: udev knows what
/// pool's label a device carries (ID_FS_TYPE and ID_FS_LABEL, blkid(8)), ZFS which pools it has (a folder for each in
/// /proc/spl/kstat/zfs, which is where resource-agents looks, too: heartbeat/ZFS, zpool_is_imported).
fn pool(root: &Root, number: &str) -> Option<String> {
    let known = root.text(format!("/run/udev/data/b{number}")).ok()?;
    let value = |key: &str| {
        known
            .lines()
            .find_map(|l| l.strip_prefix("E:")?.strip_prefix(key)?.strip_prefix('='))
    };
    let label = value("ID_FS_LABEL").filter(|_| value("ID_FS_TYPE") == Some("zfs_member"))?;
    let imported = root.names("/proc/spl/kstat/zfs").unwrap_or_default();
    imported.into_iter().find(|pool| pool == label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_told_by_number_source_and_place() {
        let text = "24 31 0:22 / /sys rw,nosuid shared:7 - sysfs sysfs rw\n\
                    91 31 8:17 / /media/my\\040disk rw,relatime shared:50 master:1 - ext4 /dev/sdb1 rw\n\
                    92 31 0:48 /@ /mnt/b rw - btrfs /dev/sdb2 rw,subvolid=5\n\
                    broken\n";
        let found = mounts(text);
        assert_eq!(found.len(), 3);
        assert_eq!(
            (found[1].number.as_str(), found[1].target.as_str()),
            ("8:17", "/media/my disk")
        );
        assert_eq!(
            (found[2].number.as_str(), found[2].source.as_str()),
            ("0:48", "/dev/sdb2")
        );
    }

    #[test]
    fn swaps_have_a_header() {
        let text = "Filename\t\tType\t\tSize\tUsed\tPriority\n/dev/sdb3   partition\t1\t0\t-2\n/a\\040b file 1 0 -3\n";
        assert_eq!(swaps(text), ["/dev/sdb3", "/a b"]);
        assert!(swaps("").is_empty());
    }

    #[test]
    fn what_is_no_escape_stays() {
        for (text, plain) in [
            ("a\\040b", "a b"),
            ("\\134", "\\"),
            ("\\9", "\\9"),
            ("\\777x", "\\777x"),
            ("\\é", "\\é"),
        ] {
            assert_eq!(unescaped(text), plain);
        }
    }

    /// A controller with a disk of four partitions and two interfaces, each of which is used in its own way.
    #[test]
    fn each_use_is_found_and_what_is_idle_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let hub = "sys/bus/pci/devices/0000:65:00.2/usb3";
        let disk = format!("{hub}/3-1/3-1.2/3-1.2:1.0/host6/target6:0:0/6:0:0:0/block/sdb");
        write(&format!("{disk}/dev"), "8:16\n");
        for part in 1..=6 {
            write(&format!("{disk}/sdb{part}/partition"), &format!("{part}\n"));
            write(&format!("{disk}/sdb{part}/dev"), &format!("8:{}\n", 16 + part));
        }
        write(&format!("{disk}/sdb3/holders/dm-0/dev"), "252:0\n");
        for (name, flags) in [("up0", "0x1003\n"), ("down0", "0x1002\n")] {
            write(&format!("{hub}/3-2/3-2:1.0/net/{name}/flags"), flags);
        }
        write(
            &format!("{hub}/3-3/3-3:1.0/0003:046D:C31C.0001/input/input9/name"),
            "Keyboard\n",
        );
        std::os::unix::fs::symlink("../..", dir.path().join(hub).join("3-1/round")).unwrap();
        write("proc/self/mountinfo", "91 31 8:17 / /mnt/x rw - ext4 /dev/sdb1 rw\n");
        write("proc/swaps", "Filename\n/dev/sdb2 partition\n");
        write("sys/fs/btrfs/7e0f/devices/sdb4/dev", "8:20\n");
        for part in [21, 22] {
            let pool = if part == 21 { "tank" } else { "exported" };
            let known = format!("S:disk/by-label/x\nE:ID_FS_LABEL={pool}\nE:ID_FS_TYPE=zfs_member\n");
            write(&format!("run/udev/data/b8:{part}"), &known);
        }
        write("proc/spl/kstat/zfs/tank/state", "ONLINE\n");
        let of = "0000:65:00.2".parse().unwrap();
        let found = in_use(&Root::at(dir.path()), of);
        let found: Vec<(&str, &How)> = found.iter().map(|u| (u.name.as_str(), &u.how)).collect();
        assert_eq!(
            found,
            [
                ("sdb1", &How::Mounted("/mnt/x".to_owned())),
                ("sdb2", &How::Swap),
                ("sdb3", &How::PartOf(vec!["dm-0".to_owned()])),
                ("sdb4", &How::Btrfs),
                ("sdb5", &How::Zfs("tank".to_owned())),
                ("up0", &How::Up),
            ]
        );
        assert_eq!(attached(&Root::at(dir.path()), of).len(), 9);
    }
}
