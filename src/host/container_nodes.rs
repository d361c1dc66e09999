//! Device nodes inside containers whose numbers are not NVIDIA's any more: some of its majors are given out when a module is
//! loaded, so that a driver that has been away may come back with others.
//!
//! What a container has in its /dev it was given at its start (pve-container, PVE/LXC.pm, vm_start), and it says there what it
//! likes. Nothing is changed here: such a node is named, with the line of the config that has the old number. What Proxmox has given
//! it is made anew elsewhere ([`crate::execute::renew_nodes`]).

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::{fmt, io};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, StatxFlags, openat2, statx};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::base::root::Root;
use crate::base::vmid::VmId;
use crate::host::nodes::character_majors;

/// The containers that run.
pub(crate) fn running(root: &Root) -> Vec<VmId> {
    let names = root.names("/sys/fs/cgroup/lxc").unwrap_or_default();
    let ctids = names.into_iter().filter_map(|name| name.parse::<VmId>().ok());
    ctids.filter(|ctid| process_of(root, *ctid).is_some()).collect()
}

/// The driver whose major is given out at load, and its nodes (open-gpu-kernel-modules, nvidia-uvm/uvm_common.h).
const DRIVER: &str = "nvidia-uvm";
const NODES: [&str; 2] = ["nvidia-uvm", "nvidia-uvm-tools"];

/// File systems that answer by themselves: a container may have another one at /dev, whose server need not.
const PROMPT: [&str; 2] = ["tmpfs", "devtmpfs"];

/// A node of a container that is another device's now, or nobody's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StaleNode {
    /// The container.
    pub ctid: VmId,
    /// Its name in /dev.
    pub name: String,
    /// Its major number.
    pub has: u64,
    /// The driver's.
    pub is: u64,
    /// The line of the container's config that allows the old number, and not the new one.
    pub line: Option<usize>,
}

impl fmt::Display for StaleNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let StaleNode {
            ctid, name, has, is, ..
        } = self;
        write!(
            f,
            "container {ctid}: its /dev/{name} has the major number {has}, and the driver came back with {is}. Hint: 'pct reboot \
             {ctid}' has it made anew"
        )?;
        match self.line {
            Some(line) => write!(
                f,
                "; before that, line {line} of /etc/pve/lxc/{ctid}.conf is to allow 'c {is}:*'"
            ),
            None => Ok(()),
        }
    }
}

/// Looks into the containers that run: one node of each, since all have the same number.
pub fn read(root: &Root) -> Vec<StaleNode> {
    let devices = root.text("/proc/devices").unwrap_or_default();
    let Some(is) = character_majors(&devices).find_map(|(major, name)| (name == DRIVER).then_some(major)) else {
        return Vec::new();
    };
    let stale = running(root).into_iter().filter_map(|ctid| {
        let pid = process_of(root, ctid)?;
        let of_it = NODES
            .iter()
            .filter_map(|name| Some((*name, major_of(root, pid, name)?)));
        let (name, has) = of_it.into_iter().find(|(_, has)| *has != is)?;
        Some(StaleNode {
            ctid,
            name: name.to_owned(),
            has,
            is,
            line: line_of(root, ctid, has, is),
        })
    });
    stale.collect()
}

/// A process of a container: its first one, where its systemd has that in a group of its own.
pub(crate) fn process_of(root: &Root, ctid: VmId) -> Option<u32> {
    let groups = ["ns/init.scope", "ns", "."];
    groups.iter().find_map(|group| {
        let procs = root.line(format!("/sys/fs/cgroup/lxc/{ctid}/{group}/cgroup.procs"))?;
        procs.parse().ok()
    })
}

/// The major number of a character device in the /dev of a process.
fn major_of(root: &Root, pid: u32, name: &str) -> Option<u64> {
    if !dev_answers(root, pid) {
        return None;
    }
    let top = File::open(root.path(format!("/proc/{pid}/root"))).ok()?;
    match at(&top, &format!("dev/{name}")) {
        Ok(At::Node(major, _)) => Some(u64::from(major)),
        _ => None,
    }
}

/// Whether what a process has at /dev is a file system of its own that answers by itself.
pub(crate) fn dev_answers(root: &Root, pid: u32) -> bool {
    let mounts = root.text(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    let at_dev = mounts.lines().rfind(|line| line.split(' ').nth(4) == Some("/dev"));
    let kind = at_dev.and_then(|line| line.split_once(" - ")?.1.split(' ').next());
    kind.is_some_and(|kind| PROMPT.contains(&kind))
}

/// What there is at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    /// A character device: its major and minor number.
    Node(u32, u32),
    /// A regular file: what a node can be bound onto, too.
    File,
    /// Nothing, or not even the folder.
    Nothing,
    /// Something that nobody has put there who gives nodes to containers: a link, a folder.
    Other,
}

/// Looks at a place below a root. Nothing is followed that could lead out of it, and no link.
///
/// # Errors
/// Where it cannot be looked at.
pub(crate) fn at(top: impl AsFd, path: &str) -> io::Result<At> {
    let found = match open_at(top, path).and_then(|node| {
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        Ok(statx(&node, "", flags, StatxFlags::TYPE)?)
    }) {
        Ok(found) => found,
        Err(e) => {
            return match Errno::from_io_error(&e) {
                Some(Errno::NOENT) => Ok(At::Nothing),
                Some(Errno::LOOP | Errno::NOTDIR) => Ok(At::Other),
                _ => Err(e),
            };
        }
    };
    Ok(match FileType::from_raw_mode(found.stx_mode.into()) {
        FileType::CharacterDevice => At::Node(found.stx_rdev_major, found.stx_rdev_minor),
        FileType::RegularFile => At::File,
        _ => At::Other,
    })
}

/// A place below a root, to be looked at.
pub(crate) fn open_at(top: impl AsFd, path: &str) -> io::Result<OwnedFd> {
    let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat2(top, path, flags, Mode::empty(), within)?)
}

/// The first line that lets the container open what has the old number, where none does for the new one.
pub(crate) fn line_of(root: &Root, ctid: VmId, has: u64, is: u64) -> Option<usize> {
    let text = root.text(format!("/etc/pve/lxc/{ctid}.conf")).ok()?;
    let allows =
        |line: &str, major: u64| line.starts_with("lxc.cgroup2.devices.allow") && line.contains(&format!("c {major}:"));
    let current = || text.lines().take_while(|line| !line.starts_with('['));
    if current().any(|line| allows(line, is)) {
        return None;
    }
    current().position(|line| allows(line, has)).map(|at| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_with_another_number_is_named_with_the_line_that_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        put(
            "proc/devices",
            "Character devices:\n  1 mem\n509 nvidia-uvm\n\nBlock devices:\n  8 sd\n",
        );
        put("sys/fs/cgroup/lxc/104/ns/init.scope/cgroup.procs", "900\n");
        put("sys/fs/cgroup/lxc/105/ns/cgroup.procs", "");
        put("sys/fs/cgroup/lxc/lxc.monitor/cgroup.procs", "1\n");
        put("proc/900/root/dev/nvidia-uvm", "no node");
        put("proc/900/mountinfo", "1 0 0:5 / /dev rw - tmpfs none rw\n");
        put(
            "etc/pve/lxc/104.conf",
            "arch: amd64\nlxc.cgroup2.devices.allow: c 195:* rwm\nlxc.cgroup2.devices.allow: c 1:* rwm\n[snap]\n",
        );
        let root = Root::at(dir.path());
        assert_eq!(read(&root), []);
        // The machine itself has a character device where a node cannot be made in a test.
        let top = dir.path().join("proc/901/root");
        std::fs::create_dir_all(top.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink("/", &top).unwrap();
        put("proc/901/mountinfo", "1 0 0:5 / /dev rw shared:2 - devtmpfs udev rw\n");
        assert_eq!(major_of(&root, 901, "null"), Some(1));
        for other in [
            "1 0 0:5 / /dev rw - fuse.x x rw\n",
            "1 0 0:5 / /srv rw - tmpfs x rw\n",
            "",
        ] {
            put("proc/901/mountinfo", other);
            assert_eq!(major_of(&root, 901, "null"), None, "{other}");
        }
        // A /dev that leads elsewhere is none.
        put("proc/902/mountinfo", "1 0 0:5 / /dev rw - tmpfs none rw\n");
        std::fs::create_dir_all(dir.path().join("proc/902/root")).unwrap();
        std::os::unix::fs::symlink("/dev", dir.path().join("proc/902/root/dev")).unwrap();
        assert_eq!(major_of(&root, 902, "null"), None);
        assert_eq!(line_of(&root, "104".parse().unwrap(), 1, 509), Some(3));
        assert_eq!(line_of(&root, "104".parse().unwrap(), 1, 195), None);
        let stale = StaleNode {
            ctid: "104".parse().unwrap(),
            name: "nvidia-uvm".to_owned(),
            has: 511,
            is: 509,
            line: Some(3),
        };
        assert_eq!(
            stale.to_string(),
            "container 104: its /dev/nvidia-uvm has the major number 511, and the driver came back with 509. Hint: 'pct reboot \
             104' has it made anew; before that, line 3 of /etc/pve/lxc/104.conf is to allow 'c 509:*'"
        );
    }
}
