//! Nodes of nvidia-uvm inside containers that are of no use when the driver is back: its major is given out when it is loaded, so
//! that one that has been away may come back with another.
//!
//! Nothing is changed here: such a node is named, with the line of the config that has the old number. What Proxmox has given a
//! container that runs on is made anew elsewhere ([`crate::execute::renew_nodes`]).

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::base::root::Root;
use crate::base::vmid::VmId;
use crate::host::container_nodes::{At, Inside, process_of, running};
use crate::host::nvidia::{UVM, character_majors};
use crate::proxmox::container_config::{GpuReference, is_header, parse};
use crate::proxmox::files::{container_path, container_texts};
use crate::proxmox::given_nodes::given_nodes;

/// Its nodes, which have the same major (open-gpu-kernel-modules, nvidia-uvm/uvm_common.h).
const NODES: [&str; 2] = ["nvidia-uvm", "nvidia-uvm-tools"];

/// What is looked for.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Wanted {
    /// Containers that were started just now: nobody has let them open more than their config does.
    pub started: Vec<VmId>,
    /// The major that it had before.
    pub had: Option<u32>,
}

/// A node of a container that is another device's now, or nobody's, or that the container may not open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StaleNode {
    /// The container.
    pub ctid: VmId,
    /// Its name in /dev.
    pub name: String,
    /// Its major number.
    pub has: u32,
    /// The driver's.
    pub is: u32,
    /// The line of the container's config, or of a file that it includes, that allows the old number and not the new one.
    pub line: Option<(String, usize)>,
}

impl fmt::Display for StaleNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let StaleNode {
            ctid, name, has, is, ..
        } = self;
        match &self.line {
            Some((path, line)) if has == is => write!(
                f,
                "container {ctid}: it may not open its /dev/{name}, since the driver came back with the major number {is}. Hint: \
                 let line {line} of {path} say 'c {is}:*', then 'pct reboot {ctid}'"
            ),
            None if has == is => write!(
                f,
                "container {ctid}: no line of {} lets it open its /dev/{name}. Hint: 'lxc.cgroup2.devices.allow: c {is}:* rwm' in \
                 it, then 'pct reboot {ctid}'",
                container_path(*ctid)
            ),
            line => {
                write!(
                    f,
                    "container {ctid}: its /dev/{name} has the major number {has}, and the driver came back with {is}. Hint: 'pct \
                     reboot {ctid}' has it made anew"
                )?;
                match line {
                    Some((path, line)) => write!(f, "; before that, line {line} of {path} is to allow 'c {is}:*'"),
                    None => Ok(()),
                }
            }
        }
    }
}

/// Looks into the containers that run.
pub(crate) fn read(root: &Root, wanted: &Wanted) -> Vec<StaleNode> {
    let devices = root.text("/proc/devices").unwrap_or_default();
    let of_it = |(major, name)| (name == UVM).then(|| u32::try_from(major).ok())?;
    let Some(is) = character_majors(&devices).find_map(of_it) else {
        return Vec::new();
    };
    running(root)
        .into_iter()
        .filter_map(|ctid| wrong(root, wanted, ctid, is))
        .collect()
}

fn wrong(root: &Root, wanted: &Wanted, ctid: VmId, is: u32) -> Option<StaleNode> {
    let inside = Inside::of(root, process_of(root, ctid)?).ok()?;
    let major = |name: &str| match inside.at(&format!("dev/{name}")) {
        Ok(At::Node(major, _)) => Some(major),
        _ => None,
    };
    let nodes: Vec<(&str, u32)> = NODES.iter().filter_map(|name| Some((*name, major(name)?))).collect();
    let stale = nodes.iter().find(|(_, has)| *has != is);
    let barred = || {
        let (name, has) = nodes.first()?;
        let is_barred = wanted.started.contains(&ctid) && is_barred(root, ctid, is);
        is_barred.then_some((*name, *has, wanted.had))
    };
    let (name, has, old) = stale.map(|(name, has)| (*name, *has, Some(*has))).or_else(barred)?;
    Some(StaleNode {
        ctid,
        name: name.to_owned(),
        has,
        is,
        line: old.and_then(|old| line_of(root, ctid, old, is)),
    })
}

/// Whether its config binds such a node into it and does not let it open that.
fn is_barred(root: &Root, ctid: VmId, is: u32) -> bool {
    let texts = container_texts(root, ctid).unwrap_or_default();
    let mut given = texts.iter().flat_map(|(_, text)| given_nodes(text));
    let is_bound = given.any(|node| node.how.is_bound() && node.path == format!("/dev/{UVM}"));
    let allows = |rule: &GpuReference| rule.allows(is, 0);
    is_bound && !texts.iter().flat_map(|(_, text)| parse(text)).any(|rule| allows(&rule))
}

/// The first line that lets the container open what has the old number, where none does for the new one; and its file.
pub(crate) fn line_of(root: &Root, ctid: VmId, has: u32, is: u32) -> Option<(String, usize)> {
    let texts = container_texts(root, ctid).ok()?;
    let mut old = None;
    for (path, text) in &texts {
        let lines = text.split(|b| *b == b'\n').map(<[u8]>::trim_ascii_end);
        for (at, line) in lines.take_while(|line| !is_header(line)).enumerate() {
            let line = String::from_utf8_lossy(line);
            let allows =
                |major: u32| line.starts_with("lxc.cgroup2.devices.allow") && line.contains(&format!("c {major}:"));
            if allows(is) {
                return None;
            }
            if allows(has) && old.is_none() {
                old = Some((path.clone(), at + 1));
            }
        }
    }
    old
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::container_nodes::mounts_of_kind;

    const ENTRY: &str = "lxc.mount.entry: /dev/nvidia-uvm dev/nvidia-uvm none bind,optional,create=file\n";

    /// A container that runs, has /dev/null for its nvidia-uvm, and this config; the driver's major.
    fn host(conf: &str, major: u32) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let devices = format!("Character devices:\n{major} nvidia-uvm\n\nBlock devices:\n  8 sd\n");
        put("proc/devices", &devices);
        put("sys/fs/cgroup/lxc/104/ns/init.scope/cgroup.procs", "900\n");
        put("proc/900/mountinfo", &mounts_of_kind("tmpfs"));
        put("etc/pve/lxc/104.conf", conf);
        put(
            "usr/share/more.conf",
            "lxc.cgroup2.devices.allow = c 195:* rwm\nlxc.cgroup2.devices.allow = c 511:* rwm\n",
        );
        dir
    }

    /// The machine itself has a character device where a node cannot be made in a test.
    fn with_node(dir: &tempfile::TempDir) {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let dev = dir.path().join("proc/900/root/dev");
        std::fs::create_dir_all(&dev).unwrap();
        let number = nix::sys::stat::makedev(1, 3);
        let mode = nix::sys::stat::Mode::from_bits_truncate(0o666);
        nix::sys::stat::mknod(&dev.join("nvidia-uvm"), nix::sys::stat::SFlag::S_IFCHR, mode, number).unwrap();
    }

    fn said(conf: &str, major: u32, wanted: &Wanted) -> Vec<String> {
        let dir = host(conf, major);
        with_node(&dir);
        let found = read(&Root::at(dir.path()), wanted);
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_node_with_another_number_is_named_with_the_line_that_has_it() {
        if !nix::unistd::geteuid().is_root() {
            return; // nobody else makes nodes
        }
        let rules =
            "arch: amd64\nlxc.cgroup2.devices.allow: c 195:* rwm\nlxc.cgroup2.devices.allow: c 1:* rwm\n[snap]\n";
        let none = Wanted::default();
        let said = |conf: &str, major| said(conf, major, &none).join("\n");
        let named = "container 104: its /dev/nvidia-uvm has the major number 1, and the driver came back with 509. Hint: 'pct \
                     reboot 104' has it made anew";
        assert_eq!(said("arch: amd64\n", 509), named);
        assert_eq!(
            said(rules, 509),
            format!("{named}; before that, line 3 of /etc/pve/lxc/104.conf is to allow 'c 509:*'")
        );
        assert_eq!(said(rules, 1), "");
    }

    #[test]
    fn the_line_is_looked_for_in_what_the_config_includes_too() {
        let dir = host("arch: amd64\nlxc.include: /usr/share/more.conf\n", 509);
        let (root, ctid) = (Root::at(dir.path()), "104".parse().unwrap());
        let line = Some(("/usr/share/more.conf".to_owned(), 2));
        assert_eq!(line_of(&root, ctid, 511, 509), line);
        assert_eq!(line_of(&root, ctid, 511, 195), None);
    }

    /// It has the right number, and no rule for it.
    #[test]
    fn a_container_that_was_started_and_may_not_open_it_is_named() {
        if !nix::unistd::geteuid().is_root() {
            return; // nobody else makes nodes
        }
        let wanted = Wanted {
            started: vec!["104".parse().unwrap()],
            had: Some(511),
        };
        let include = "lxc.include: /usr/share/more.conf\n";
        let by_line = "container 104: it may not open its /dev/nvidia-uvm, since the driver came back with the major number 1. \
                       Hint: let line 2 of /usr/share/more.conf say 'c 1:*', then 'pct reboot 104'";
        let by_none = "container 104: no line of /etc/pve/lxc/104.conf lets it open its /dev/nvidia-uvm. Hint: \
                       'lxc.cgroup2.devices.allow: c 1:* rwm' in it, then 'pct reboot 104'";
        for (conf, expected) in [
            (format!("{include}{ENTRY}"), by_line),
            (ENTRY.to_owned(), by_none),
            (format!("lxc.cgroup2.devices.allow: c *:* m\n{ENTRY}"), by_none),
            (format!("lxc.cgroup2.devices.allow: c 1:* rw\n{include}{ENTRY}"), ""),
            ("dev0: /dev/nvidia-uvm\n".to_owned(), ""),
        ] {
            assert_eq!(said(&conf, 1, &wanted).join("\n"), expected, "{conf}");
            assert_eq!(said(&conf, 1, &Wanted::default()), [""; 0], "{conf}");
        }
    }
}
