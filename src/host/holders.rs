//! Who uses a GPU: every process with a descriptor or a mapping of one of its device nodes.
//!
//! Nodes are told by device number, not by path, so that a container's own nodes count too. What a process
//! does with the device is not looked at, and nothing is stopped here: holders are found and named.

use std::collections::HashSet;
use std::io;

use rustix::fs::{AtFlags, CWD, FileType, StatxFlags, statx};
use serde::{Deserialize, Serialize};

use crate::base::process::{Stat, has_gone, is_ending};
use crate::base::root::Root;
use crate::host::belongs::Belongs;
use crate::host::nodes::{Node, Nodes};

/// A process that holds at least one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its process id in our pid namespace.
    pub pid: i32,
    /// Its name (/proc/PID/comm), as it chose it: foreign text.
    pub comm: String,
    /// What it belongs to, from its cgroup.
    pub belongs_to: Belongs,
    /// The nodes it holds, sorted, each once.
    pub nodes: Vec<Node>,
}

/// What a scan of /proc found.
#[derive(Debug, Default)]
pub struct Scan {
    /// The holders, by pid.
    pub holders: Vec<Holder>,
    /// Processes that are ending: their descriptors are gone from sight while the kernel still closes them, which
    /// for a GPU or a VFIO group takes as long as a reset of the device. Without nodes, since none can be seen.
    pub ending: Vec<Holder>,
    /// Processes whose descriptors could not be read.
    pub unreadable: Vec<i32>,
}

/// Looks through every process.
///
/// A process that ends while it is read is no holder; one whose descriptors may not be read is reported as
/// unreadable.
///
/// # Errors
/// Where /proc itself cannot be listed.
pub fn scan(root: &Root, nodes: &Nodes) -> io::Result<Scan> {
    let mut scan = Scan::default();
    let mut other_files = HashSet::new();
    for name in root.names("/proc")? {
        let Ok(pid) = name.parse::<i32>() else {
            continue;
        };
        let holder = |nodes| Holder {
            pid,
            comm: root.line(format!("/proc/{pid}/comm")).unwrap_or_default(),
            belongs_to: Belongs::of_cgroup(&root.text(format!("/proc/{pid}/cgroup")).unwrap_or_default()),
            nodes,
        };
        match held_by_threads(root, pid, nodes, &mut other_files) {
            Ok(held) if held.is_empty() => {
                if is_ending(root, pid) {
                    scan.ending.push(holder(Vec::new()));
                }
            }
            Ok(held) => scan.holders.push(holder(held)),
            Err(e) if has_gone(&e) => {}
            Err(_) => scan.unreadable.push(pid),
        }
    }
    scan.holders.sort_by_key(|h| h.pid);
    Ok(scan)
}

/// The nodes a process holds. Its threads share one table of descriptors, which shows below the leader; where that
/// one has ended before the others, it shows below theirs alone.
fn held_by_threads(root: &Root, pid: i32, nodes: &Nodes, other_files: &mut HashSet<FileId>) -> io::Result<Vec<Node>> {
    let held = held_by(root, &format!("/proc/{pid}"), nodes, other_files)?;
    let is_zombie = || Stat::read(root, &format!("/proc/{pid}")).is_some_and(Stat::is_zombie);
    if !held.is_empty() || !is_zombie() {
        return Ok(held);
    }
    let mut all = Vec::new();
    for thread in root.names(format!("/proc/{pid}/task"))? {
        match held_by(root, &format!("/proc/{pid}/task/{thread}"), nodes, other_files) {
            Ok(held) => all.extend(held),
            Err(e) if has_gone(&e) => {}
            Err(e) => return Err(e),
        }
    }
    all.sort_unstable();
    all.dedup();
    Ok(all)
}

/// The nodes that one thread's table and memory show.
///
/// `other_files` remembers mapped files that are no device, so that the libraries that every process maps are looked
/// at once.
fn held_by(root: &Root, dir: &str, nodes: &Nodes, other_files: &mut HashSet<FileId>) -> io::Result<Vec<Node>> {
    let mut held = Vec::new();
    for entry in std::fs::read_dir(root.path(format!("{dir}/fd")))? {
        let path = entry?.path();
        let target = std::fs::read_link(&path);
        // Sockets, pipes and anonymous inodes have no path; only what has one can be a device node.
        if target.is_ok_and(|t| t.is_absolute()) {
            match look_at(&path) {
                LeadsTo::Device(major, minor) => held.extend(nodes.of(major, minor)),
                LeadsTo::Block(number) => held.extend(nodes.disks.get(&number)),
                LeadsTo::NoDevice | LeadsTo::Nothing => {}
            }
        }
    }
    let maps = root.bytes(format!("{dir}/maps"))?;
    for line in maps.split(|b| *b == b'\n') {
        // Only the path can be foreign text, and it is not used.
        let line = String::from_utf8_lossy(line);
        let Some((range, file)) = mapped_file(&line) else {
            continue;
        };
        if other_files.contains(&file) {
            continue;
        }
        match look_at(&root.path(format!("{dir}/map_files/{range}"))) {
            LeadsTo::Device(major, minor) => held.extend(nodes.of(major, minor)),
            LeadsTo::Block(number) => held.extend(nodes.disks.get(&number)),
            LeadsTo::NoDevice => _ = other_files.insert(file),
            LeadsTo::Nothing => {}
        }
    }
    held.sort_unstable();
    held.dedup();
    Ok(held)
}

/// What a link of /proc leads to.
enum LeadsTo {
    /// A character device of this major and minor number.
    Device(u64, u64),
    /// A block device of this major and minor number.
    Block((u64, u64)),
    /// Something else.
    NoDevice,
    /// Nothing that can be told: it was closed meanwhile, or its file system does not answer to root (FUSE without
    /// allow_other, a dead network mount). Such file systems carry no usable device nodes.
    Nothing,
}

/// Without asking a server: what is cached tells a device node from a file, and a dead server answers never.
fn look_at(link: &std::path::Path) -> LeadsTo {
    let seen = statx(CWD, link, AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE);
    let Ok(meta) = seen else { return LeadsTo::Nothing };
    let (major, minor) = (u64::from(meta.stx_rdev_major), u64::from(meta.stx_rdev_minor));
    match FileType::from_raw_mode(u32::from(meta.stx_mode)) {
        FileType::CharacterDevice => LeadsTo::Device(major, minor),
        FileType::BlockDevice => LeadsTo::Block((major, minor)),
        _ => LeadsTo::NoDevice,
    }
}

/// File system (major and minor) and inode: what tells one mapped file from another.
type FileId = (u32, u32, u64);

/// Address range and file of a line of /proc/PID/maps that maps one (proc(5)).
fn mapped_file(line: &str) -> Option<(&str, FileId)> {
    let mut fields = line.split_ascii_whitespace();
    let range = fields.next()?;
    let (major, minor) = fields.nth(2)?.split_once(':')?;
    let inode = fields.next()?.parse().ok().filter(|n| *n != 0)?;
    fields.next().filter(|path| path.starts_with('/'))?;
    let number = |text| u32::from_str_radix(text, 16).ok();
    Some((range, (number(major)?, number(minor)?, inode)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_with_a_file_are_mappings_of_one() {
        let line = "7f00-7f10 rw-s 00000000 00:05 123   /dev/nvidia0";
        assert_eq!(mapped_file(line), Some(("7f00-7f10", (0, 5, 123))));
        assert_eq!(mapped_file("7f00-7f10 rw-p 00000000 00:00 0"), None);
        assert_eq!(mapped_file("7f00-7f10 rw-p 00000000 00:00 0   [heap]"), None);
    }
}
