//! The nodes of GPUs that a container's config gives it, each with its place in the container and how it comes there.
//!
//! Pure. Not here: what else of the host a container may get at ([`crate::proxmox::container_config`]), and whether the nodes in
//! it are right (`src/execute/renew_nodes.rs`).
//!
//! Source: pve-container 6.1.10, PVE/LXC/Config.pm, `$dev_desc`; PVE/LXC.pm, `device_passthrough_hotplug`; for
//! `lxc.mount.entry` lxc.container.conf(5).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::proxmox::container_config::{is_gpu_path, is_header, lxc_line, numbered_line};
use crate::proxmox::grammar::propstring::{is_space, parse_bool};
use crate::proxmox::vm_config::is_snapstate;

/// The mode of a node where `devN` says none (PVE/LXC/Tools.pm, create_passthrough_device_node).
const MODE: u32 = 0o660;

/// Such a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GivenNode {
    /// Its path on the host, below /dev.
    pub(crate) path: String,
    /// Its path in the container, without the slash that it begins with: below /dev there as well.
    pub(crate) inside: String,
    /// How it comes there.
    pub(crate) how: How,
}

/// How a node comes into a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum How {
    /// Proxmox makes one of the same number, and has the container open it.
    Made {
        /// Its permissions.
        mode: u32,
        /// Its owner, as the container knows it.
        uid: u32,
        /// Its group, as the container knows it.
        gid: u32,
        /// It is opened for reading alone.
        deny_write: bool,
    },
    /// The host's own is bound there, and other lines have the container open it.
    Bound {
        /// Only to be looked at and opened: neither its owner nor its mode is changed by way of the container.
        read_only: bool,
    },
    /// A folder of the host's is bound there, with what is in it.
    Folder {
        /// The same of it.
        read_only: bool,
    },
}

impl How {
    /// Whether other lines have the container open it.
    pub(crate) fn is_bound(self) -> bool {
        matches!(self, How::Bound { .. })
    }
}

/// Those of the current section, and the folders of such nodes: of one that the host has removed and made anew since, as the last
/// node in it goes (linux, drivers/base/devtmpfs.c, delete_path), a container sees the old one, which stays empty.
pub(crate) fn given_nodes(raw: &[u8]) -> Vec<GivenNode> {
    let mut made: BTreeMap<u16, &[u8]> = BTreeMap::new();
    let mut points: BTreeMap<u16, &[u8]> = BTreeMap::new();
    let mut bound: Vec<GivenNode> = Vec::new();
    for line in raw.split(|b| *b == b'\n').map(<[u8]>::trim_ascii_end) {
        if is_header(line) {
            break; // what follows is pending or a snapshot
        }
        if let Some(("lxc.mount.entry", value)) = lxc_line(line) {
            if value.is_empty() {
                bound.clear(); // takes back those before it
            }
            bound.extend(entry(value));
        } else if let Some(((name, index), value)) = numbered_line(line).filter(|_| !is_snapstate(line)) {
            let lines = if name == "dev" { &mut made } else { &mut points };
            lines.insert(index, value);
        }
    }
    let mut given: Vec<GivenNode> = made.into_values().filter_map(device).collect();
    given.extend(points.into_values().filter_map(mount_point));
    given.extend(bound);
    given
}

/// `[path=]PATH[,mode=OCTAL][,uid=N][,gid=N][,deny-write=1]`.
fn device(value: &[u8]) -> Option<GivenNode> {
    let text = std::str::from_utf8(value).ok()?;
    let named = |name: &str| {
        let mut parts = text.split(',');
        parts.find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
    };
    let bare = || text.split(',').find(|part| !part.contains('=') && !part.is_empty());
    let path = named("path").or_else(bare).filter(|path| is_node(path))?;
    let number = |name: &str, radix, otherwise| match named(name) {
        Some(digits) => u32::from_str_radix(digits, radix).ok(),
        None => Some(otherwise),
    };
    Some(GivenNode {
        path: path.to_owned(),
        inside: path[1..].to_owned(),
        how: How::Made {
            mode: number("mode", 8, MODE)? & 0o777,
            uid: number("uid", 10, 0)?,
            gid: number("gid", 10, 0)?,
            // Another word Proxmox refuses, and the container does not start.
            deny_write: named("deny-write").map_or(Some(false), |word| parse_bool(word.as_bytes()))?,
        },
    })
}

/// `[volume=]PATH,mp=/dev/PLACE[,ro=1]`, of a folder (PVE/LXC/Config.pm, `$mp_desc`).
fn mount_point(value: &[u8]) -> Option<GivenNode> {
    let text = std::str::from_utf8(value).ok()?;
    let named = |name: &str| {
        let mut parts = text.split(',');
        parts.find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
    };
    let bare = || text.split(',').find(|part| !part.contains('=') && !part.is_empty());
    let path = named("volume").or_else(bare)?.trim_end_matches('/');
    let inside = named("mp")?.trim_start_matches('/').trim_end_matches('/');
    let is_below_dev = inside.strip_prefix("dev/").is_some_and(is_plain);
    let read_only = named("ro").map_or(Some(false), |word| parse_bool(word.as_bytes()))?;
    (is_below_dev && is_folder(path)).then(|| GivenNode {
        path: path.to_owned(),
        inside: inside.to_owned(),
        how: How::Folder { read_only },
    })
}

/// `PATH dev/PLACE none bind,...`
fn entry(value: &[u8]) -> Option<GivenNode> {
    let mut words = value.split(|b| is_space(*b)).filter(|word| !word.is_empty());
    let mut word = || std::str::from_utf8(words.next()?).ok();
    let (path, inside, _, options) = (word()?, word()?, word()?, word()?);
    let is_bound = options.split(',').any(|option| option == "bind" || option == "rbind");
    let is_below_dev = inside.strip_prefix("dev/").is_some_and(is_plain);
    let read_only = options.split(',').any(|option| option == "ro");
    let how = match path {
        _ if is_folder(path) => How::Folder { read_only },
        _ => How::Bound { read_only },
    };
    (is_bound && is_below_dev && (is_node(path) || is_folder(path))).then(|| GivenNode {
        path: path.to_owned(),
        inside: inside.to_owned(),
        how,
    })
}

/// A folder that has only such nodes.
fn is_folder(path: &str) -> bool {
    ["/dev/dri", "/dev/nvidia-caps"].contains(&path)
}

/// One of NVIDIA's nodes, or of DRM's, and no folder of them as far as a name tells.
fn is_node(path: &str) -> bool {
    is_gpu_path(path) && path != "/dev" && !is_folder(path) && path.strip_prefix("/dev/").is_some_and(is_plain)
}

/// A path that leads nowhere but down, without what stands for other characters (fstab(5)).
fn is_plain(below: &str) -> bool {
    let is_name = |name: &str| !name.is_empty() && name != "." && name != "..";
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./:".contains(&b);
    below.split('/').all(is_name) && below.bytes().all(is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_found_in_lines_of_both_kinds_with_their_place_and_owner() {
        let made = |path: &str, mode, uid, gid, deny_write| GivenNode {
            path: path.to_owned(),
            inside: path[1..].to_owned(),
            how: How::Made {
                mode,
                uid,
                gid,
                deny_write,
            },
        };
        let bound = |path: &str, inside: &str| GivenNode {
            path: path.to_owned(),
            inside: inside.to_owned(),
            how: How::Bound { read_only: false },
        };
        let folder = |path: &str, read_only| GivenNode {
            path: path.to_owned(),
            inside: path[1..].to_owned(),
            how: How::Folder { read_only },
        };
        for (line, expected) in [
            ("dev0: /dev/nvidia0", made("/dev/nvidia0", 0o660, 0, 0, false)),
            (
                "dev1: gid=44,mode=0666,path=/dev/nvidia-uvm,uid=1000,deny-write=1\r",
                made("/dev/nvidia-uvm", 0o666, 1000, 44, true),
            ),
            (
                "dev2: /dev/nvidia-caps/nvidia-cap1,deny-write=0",
                made("/dev/nvidia-caps/nvidia-cap1", 0o660, 0, 0, false),
            ),
            (
                "dev2: /dev/nvidia0,deny-write=YES",
                made("/dev/nvidia0", 0o660, 0, 0, true),
            ),
            (
                "dev3: /dev/dri/renderD128,mode=7777",
                made("/dev/dri/renderD128", 0o777, 0, 0, false),
            ),
            (
                "lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file",
                bound("/dev/nvidia0", "dev/nvidia0"),
            ),
            (
                "lxc.mount.entry = /dev/dri/card1 dev/dri/card0 none rbind 0 0",
                bound("/dev/dri/card1", "dev/dri/card0"),
            ),
            (
                "lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,ro,optional,create=file",
                GivenNode {
                    how: How::Bound { read_only: true },
                    ..bound("/dev/nvidia0", "dev/nvidia0")
                },
            ),
            (
                "lxc.mount.entry: /dev/dri dev/dri none bind,optional,create=dir",
                folder("/dev/dri", false),
            ),
            ("mp0: /dev/dri/,mp=/dev/dri", folder("/dev/dri", false)),
            ("mp1: mp=/dev/dri,volume=/dev/dri,ro=On", folder("/dev/dri", true)),
        ] {
            assert_eq!(given_nodes(line.as_bytes()), [expected], "{line}");
        }
        let text = "dev0: /dev/nvidia0\ndev0: /dev/nvidia1\nlxc.mount.entry: /dev/nvidiactl dev/nvidiactl none bind\n\
                    lxc.mount.entry:\n[snap]\ndev1: /dev/nvidia2\n";
        assert_eq!(given_nodes(text.as_bytes()), [made("/dev/nvidia1", 0o660, 0, 0, false)]);
    }

    #[test]
    fn what_is_no_node_or_leads_elsewhere_is_none_of_them() {
        for line in [
            "dev0: /dev/ttyS0",
            "dev0: /dev/nvidia0,mode=8",
            "dev0: /dev/nvidia0,uid=-1",
            "dev0: /dev/nvidia0,deny-write=maybe",
            "dev0: /dev/nvidia0 snapstate: delete",
            "dev0: /dev/nvidia/../sda",
            "dev0: /dev/nvidia0//",
            "mp0: /dev/dri/,mp=/srv/dri",
            "mp0: /dev/dri,mp=/dev/../dri",
            "mp0: /dev/nvidia0,mp=/dev/nvidia0",
            "lxc.mount.entry: /dev dev none bind",
            "lxc.mount.entry: /dev/nvidia0 dev/../etc/nvidia0 none bind",
            "lxc.mount.entry: /dev/nvidia0 /dev/nvidia0 none bind",
            "lxc.mount.entry: /dev/nvidia0 etc/nvidia0 none bind",
            "lxc.mount.entry: /dev/nvidia0 dev/nvidia\\0400 none bind",
            "lxc.mount.entry: /dev/nvidia0 dev/nvidia0 tmpfs rw",
            "lxc.mount.entry: /dev/nvidia0 dev/nvidia0",
        ] {
            assert_eq!(given_nodes(line.as_bytes()), [], "{line}");
        }
    }
}
