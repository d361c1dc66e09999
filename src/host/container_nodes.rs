//! Device nodes inside containers whose numbers are not NVIDIA's any more: some of its majors are given out when a module is
//! loaded, so that a driver that has been away may come back with others.
//!
//! What a container has in its /dev it was given at its start (pve-container, PVE/LXC.pm, vm_start), and it says there what it
//! likes. Nothing is changed here: such a node is named, with the line of the config that has the old number.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use serde::{Deserialize, Serialize};

use crate::base::root::Root;
use crate::base::vmid::VmId;
use crate::host::nodes::character_majors;

/// The drivers whose majors are given out at load, and the beginning of their nodes' names below /dev.
const DRIVERS: [(&str, &str); 3] = [
    ("nvidia-uvm", "nvidia-uvm"),
    ("nvidia-caps", "nvidia-caps/"),
    ("nvidia-nvswitch", "nvidia-nvswitch"),
];

/// A node of a container that is another device's now, or nobody's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StaleNode {
    /// The container.
    pub ctid: VmId,
    /// Its path below /dev, of those that NVIDIA's programs look for.
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

/// Looks into the containers that run. The files of one may hold this up for as long as they like.
pub fn read(root: &Root) -> Vec<StaleNode> {
    let devices = root.text("/proc/devices").unwrap_or_default();
    let majors: BTreeMap<&str, u64> = character_majors(&devices).map(|(major, name)| (name, major)).collect();
    let mut stale = Vec::new();
    for name in root.names("/sys/fs/cgroup/lxc").unwrap_or_default() {
        let Some((ctid, pid)) = name
            .parse()
            .ok()
            .and_then(|ctid: VmId| Some((ctid, process_of(root, ctid)?)))
        else {
            continue;
        };
        for (driver, prefix) in DRIVERS {
            let Some(is) = majors.get(driver).copied() else {
                continue;
            };
            let of_it = nodes(root, pid, prefix).into_iter().filter(|(_, has)| *has != is);
            stale.extend(of_it.map(|(name, has)| StaleNode {
                ctid,
                name,
                has,
                is,
                line: line_of(root, ctid, has, is),
            }));
        }
    }
    stale
}

/// A process of a container: its first one, where its systemd has that in a group of its own.
fn process_of(root: &Root, ctid: VmId) -> Option<u32> {
    let groups = ["ns/init.scope", "ns", "."];
    groups.iter().find_map(|group| {
        let procs = root.line(format!("/sys/fs/cgroup/lxc/{ctid}/{group}/cgroup.procs"))?;
        procs.parse().ok()
    })
}

/// Character devices in /dev of a process whose names begin so: name and major.
fn nodes(root: &Root, pid: u32, prefix: &str) -> Vec<(String, u64)> {
    let (folder, begin) = prefix
        .split_once('/')
        .map_or(("", prefix), |(folder, rest)| (folder, rest));
    let dev = format!("/proc/{pid}/root/dev/{folder}");
    let names = root.names(&dev).unwrap_or_default();
    let of_it = names
        .into_iter()
        .filter(|name| name.starts_with(begin) && name.len() < 32 && name.is_ascii());
    of_it
        .filter_map(|name| {
            let node = std::fs::symlink_metadata(root.path(format!("{dev}/{name}"))).ok()?;
            let is_node = node.file_type().is_char_device();
            let name = if folder.is_empty() {
                name
            } else {
                format!("{folder}/{name}")
            };
            is_node.then(|| (name, nix::sys::stat::major(node.rdev())))
        })
        .collect()
}

/// The first line that lets the container open what has the old number, where none does for the new one.
fn line_of(root: &Root, ctid: VmId, has: u64, is: u64) -> Option<usize> {
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

    /// A node cannot be made in a test; /dev/null's number is the one that there is everywhere.
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
        put("proc/900/root/dev/nvidia-uvm-tools", "no node");
        put(
            "etc/pve/lxc/104.conf",
            "arch: amd64\nlxc.cgroup2.devices.allow: c 195:* rwm\nlxc.cgroup2.devices.allow: c 1:* rwm\n[snap]\n",
        );
        let root = Root::at(dir.path());
        assert_eq!(read(&root), []);
        // The real thing, by way of a link to the folder that has it.
        let dev = dir.path().join("proc/900/root/dev");
        std::fs::remove_dir_all(&dev).unwrap();
        std::os::unix::fs::symlink("/dev", &dev).unwrap();
        let found = nodes(&root, 900, "nul");
        assert_eq!(found, [("null".to_owned(), 1)]);
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
