//! Which of the host's devices a container's config gives it, as far as they may be of a GPU:
//! /etc/pve/lxc/CTID.conf.
//!
//! Pure. It tells what a container may open once it runs, not what it has open, and it cannot be complete:
//! a container may get at a device through an include or a hook, too. Who really holds a GPU is found
//! in [`crate::host::holders`].
//!
//! Source: pve-container 6.1.10, PVE/LXC/Config.pm, `parse_pct_config` and `$dev_desc`; for values of
//! `lxc.*` lxc.container.conf(5).

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::base::sets::in_order;
use crate::base::vmid::VmId;
use crate::proxmox::grammar::propstring::{is_digits, is_space};
use crate::proxmox::grammar::values::is_config_id;
use crate::proxmox::vm_config::is_snapstate;

/// How many devN and mpN a container may have.
pub(crate) const MAX_ENTRIES: u16 = 256;

/// A line of the current section through which a container may get at a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GpuReference {
    /// `devN:`, a node passed to the container.
    Device {
        /// The key.
        key: String,
        /// The node's path on the host.
        path: String,
    },
    /// `mpN:` or `lxc.mount.entry`, a node or a folder of nodes bound into the container.
    Mount {
        /// The key.
        key: String,
        /// The path on the host.
        path: String,
    },
    /// `lxc.cgroup2.devices.allow` or `lxc.cgroup.devices.allow` of character devices. Which number a driver
    /// has is known on the host only (most of NVIDIA's are given out when the module is loaded), so rules
    /// for other devices are here too: ask [`GpuReference::allows`].
    Allow {
        /// The major number; `None` is any.
        major: Option<u32>,
        /// The minor number; `None` is any.
        minor: Option<u32>,
        /// What for, of "rwm": to read, to write, to make a node.
        letters: String,
    },
    /// `lxc.include`, a file or folder with more lines, which is not looked into.
    Include {
        /// Its path.
        path: String,
    },
    /// `lxc.hook.*` of NVIDIA's container tools, which make nodes of their own.
    Hook {
        /// The key.
        key: String,
        /// The command.
        command: String,
    },
}

impl GpuReference {
    /// Whether it is a rule that lets the container open a character device of this number: to read or to write.
    pub fn allows(&self, major: u32, minor: u32) -> bool {
        self.letters_for(major, minor).is_some()
    }

    /// What such a rule lets the container do.
    pub fn letters_for(&self, major: u32, minor: u32) -> Option<&str> {
        match self {
            GpuReference::Allow {
                major: a,
                minor: b,
                letters,
            } => {
                let is_it = a.is_none_or(|a| a == major) && b.is_none_or(|b| b == minor);
                Some(letters.as_str()).filter(|letters| is_it && letters.contains(['r', 'w']))
            }
            _ => None,
        }
    }
}

impl GpuReference {
    /// The node of NVIDIA's that it names.
    pub fn nvidia_node(&self) -> Option<&str> {
        match self {
            GpuReference::Device { path, .. } | GpuReference::Mount { path, .. } => {
                Some(path.as_str()).filter(|path| path.starts_with("/dev/nvidia"))
            }
            _ => None,
        }
    }
}

impl fmt::Display for GpuReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |n: &Option<u32>| n.map_or_else(|| "*".to_owned(), |n| n.to_string());
        match self {
            GpuReference::Device { key, path } | GpuReference::Mount { key, path } => write!(f, "{key}: {path}"),
            GpuReference::Allow { major, minor, .. } => {
                write!(f, "devices.allow: c {}:{}", number(major), number(minor))
            }
            GpuReference::Include { path } => write!(f, "lxc.include: {path}"),
            GpuReference::Hook { key, command } => write!(f, "{key}: {command}"),
        }
    }
}

/// Parses a container's config. Takes every input.
///
/// Of a repeated devN or mpN the last line counts; other than for VMs it does so even if it is bad (the
/// container then does not start). Lines of `lxc.*` add up, and an empty one takes back those before it.
pub fn parse(raw: &[u8]) -> Vec<GpuReference> {
    let mut numbered: BTreeMap<(&str, u16), &[u8]> = BTreeMap::new();
    let mut lxc: BTreeMap<&str, Vec<(usize, &[u8])>> = BTreeMap::new();
    for (number, line) in raw.split(|b| *b == b'\n').enumerate() {
        let line = trim_end(line);
        if is_header(line) {
            break; // what follows is pending or a snapshot
        }
        if let Some((key, value)) = lxc_line(line) {
            if value.is_empty() {
                lxc.remove(key);
            } else {
                lxc.entry(key).or_default().push((number, value));
            }
        } else if let Some((key, value)) = numbered_line(line).filter(|_| !is_snapstate(line)) {
            numbered.insert(key, value);
        }
    }
    let numbered = numbered.into_iter().filter_map(|((name, index), value)| {
        let (key, default) = (format!("{name}{index}"), if name == "dev" { "path" } else { "volume" });
        let path = property(value, default).filter(|path| is_gpu_path(path))?;
        Some(if name == "dev" {
            GpuReference::Device { key, path }
        } else {
            GpuReference::Mount { key, path }
        })
    });
    let lxc = lxc
        .into_iter()
        .flat_map(|(key, lines)| lines.into_iter().map(move |(number, value)| (number, key, value)))
        .filter_map(|(number, key, value)| Some((number, lxc_reference(key, value)?)));
    let lxc = in_order(lxc, |(number, _)| *number);
    numbered
        .chain(lxc.into_iter().map(|(_, reference)| reference))
        .collect()
}

/// A header begins another section only if it has this form; another line in brackets is ignored.
pub(crate) fn is_header(line: &[u8]) -> bool {
    let name = line.strip_prefix(b"[").and_then(|l| l.strip_suffix(b"]"));
    name.is_some_and(|name| name.eq_ignore_ascii_case(b"pve:pending") || is_config_id(name))
}

/// `lxc.KEY: value` or `lxc.KEY = value`.
pub(super) fn lxc_line(line: &[u8]) -> Option<(&str, &[u8])> {
    let is_key = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-.".contains(b);
    let end = line.iter().position(|b| !is_key(b))?;
    let key = std::str::from_utf8(&line[..end])
        .ok()
        .filter(|k| k.len() > 4 && k.starts_with("lxc."))?;
    let rest = &line[end..];
    let value = rest
        .strip_prefix(b":")
        .or_else(|| trim_start(rest).strip_prefix(b"="))?;
    Some((key, trim_start(value)))
}

/// `devN: value` or `mpN: value`.
pub(super) fn numbered_line(line: &[u8]) -> Option<((&'static str, u16), &[u8])> {
    let (name, rest) = [("dev", b"dev".as_slice()), ("mp", b"mp")]
        .iter()
        .find_map(|(name, bytes)| Some((*name, line.strip_prefix(*bytes)?)))?;
    let colon = rest.iter().position(|b| *b == b':')?;
    let digits = std::str::from_utf8(&rest[..colon])
        .ok()
        .filter(|d| is_digits(d.as_bytes()))?;
    let index = digits
        .parse::<u16>()
        .ok()
        .filter(|i| *i < MAX_ENTRIES && i.to_string() == digits)?;
    Some(((name, index), trim_start(&rest[colon + 1..])))
}

/// A property of a property string, or the part without a name.
fn property(value: &[u8], name: &str) -> Option<String> {
    let named = |part: &[u8]| {
        part.strip_prefix(name.as_bytes())
            .and_then(|p| p.strip_prefix(b"="))
            .map(<[u8]>::to_vec)
    };
    let bare = |part: &[u8]| (!part.contains(&b'=') && !part.is_empty()).then(|| part.to_vec());
    let found = value
        .split(|b| *b == b',')
        .find_map(|part| named(part).or_else(|| bare(part)))?;
    Some(String::from_utf8_lossy(&found).into_owned())
}

fn lxc_reference(key: &str, value: &[u8]) -> Option<GpuReference> {
    let text = || String::from_utf8_lossy(value).into_owned();
    match key {
        "lxc.mount.entry" => {
            let path = value
                .split(|b| is_space(*b))
                .next()
                .map(String::from_utf8_lossy)?
                .into_owned();
            is_gpu_path(&path).then(|| GpuReference::Mount {
                key: key.to_owned(),
                path,
            })
        }
        "lxc.cgroup2.devices.allow" | "lxc.cgroup.devices.allow" => allow(value),
        "lxc.include" => Some(GpuReference::Include { path: text() }),
        _ => {
            let command = text();
            let is_nvidia = key.starts_with("lxc.hook.") && command.contains("nvidia");
            is_nvidia.then(|| GpuReference::Hook {
                key: key.to_owned(),
                command,
            })
        }
    }
}

/// `c MAJOR:MINOR ACCESS`, either number may be `*`; `a` alone is every device, for all (lxc, src/lxc/cgroups/cgroup_utils.c and
/// cgfsng.c, device_cgroup_rule_parse).
fn allow(value: &[u8]) -> Option<GpuReference> {
    let mut words = value.split(|b| is_space(*b)).filter(|w| !w.is_empty());
    match (words.next()?, words.next()) {
        (b"a", None) => Some(GpuReference::Allow {
            major: None,
            minor: None,
            letters: "rwm".to_owned(),
        }),
        (b"a" | b"c", Some(device)) => {
            let device = std::str::from_utf8(device).ok()?;
            let letters = words.next().map(String::from_utf8_lossy).unwrap_or_default();
            let (major, minor) = device.split_once(':')?;
            let number = |text: &str| {
                if text == "*" {
                    Some(None)
                } else {
                    text.parse::<u32>().ok().map(Some)
                }
            };
            Some(GpuReference::Allow {
                major: number(major)?,
                minor: number(minor)?,
                letters: "rwm".chars().filter(|letter| letters.contains(*letter)).collect(),
            })
        }
        _ => None,
    }
}

/// NVIDIA's own nodes, the DRM nodes, or all of /dev.
pub(super) fn is_gpu_path(path: &str) -> bool {
    let path = path.trim_end_matches('/');
    path == "/dev" || path == "/dev/dri" || path.starts_with("/dev/dri/") || path.starts_with("/dev/nvidia")
}

fn trim_end(text: &[u8]) -> &[u8] {
    &text[..text.iter().rposition(|b| !is_space(*b)).map_or(0, |at| at + 1)]
}

fn trim_start(text: &[u8]) -> &[u8] {
    &text[text.iter().position(|b| !is_space(*b)).unwrap_or(text.len())..]
}

/// A container whose config gives it a GPU, and by which lines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuContainer {
    /// Its id.
    pub ctid: VmId,
    /// The lines, as they were understood.
    pub lines: Vec<String>,
    /// NVIDIA's nodes that they name, by their paths on the host.
    #[serde(default)]
    pub nodes: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<String> {
        parse(text.as_bytes()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn references_are_found_in_every_kind_of_line() {
        for (line, expected) in [
            ("dev0: /dev/nvidia0,gid=44", "dev0: /dev/nvidia0"),
            ("dev3: mode=0660,path=/dev/dri/renderD128", "dev3: /dev/dri/renderD128"),
            (
                "dev255:/dev/nvidia-caps/nvidia-cap1\r",
                "dev255: /dev/nvidia-caps/nvidia-cap1",
            ),
            ("mp0: /dev/dri/,mp=/dev/dri", "mp0: /dev/dri/"),
            (
                "lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file",
                "lxc.mount.entry: /dev/nvidia0",
            ),
            ("lxc.mount.entry = /dev dev none bind", "lxc.mount.entry: /dev"),
            ("lxc.cgroup2.devices.allow: c 195:* rwm", "devices.allow: c 195:*"),
            ("lxc.cgroup.devices.allow=c 226:128 rwm", "devices.allow: c 226:128"),
            ("lxc.cgroup2.devices.allow: a", "devices.allow: c *:*"),
            (
                "lxc.include: /usr/share/lxc/config/common.conf",
                "lxc.include: /usr/share/lxc/config/common.conf",
            ),
            (
                "lxc.hook.mount: /usr/share/lxc/hooks/nvidia",
                "lxc.hook.mount: /usr/share/lxc/hooks/nvidia",
            ),
        ] {
            assert_eq!(found(line), [expected], "{line:?}");
        }
    }

    #[test]
    fn other_lines_are_no_references() {
        for line in [
            "#dev0: /dev/nvidia0",
            " dev0: /dev/nvidia0",
            "dev0 : /dev/nvidia0",
            "dev00: /dev/nvidia0",
            "dev256: /dev/nvidia0",
            "dev: /dev/nvidia0",
            "dev0: /dev/ttyS0",
            "dev0: /dev/driver",
            "dev0: uid=0",
            "dev0: /dev/nvidia0 snapstate: delete",
            "mp0: local:100/vm-100-disk-0.raw,mp=/dev/nvidia0",
            "lxc.mount.entry: /srv dev/nvidia0 none bind",
            "lxc.cgroup2.devices.allow: b 8:* rwm",
            "lxc.cgroup2.devices.allow: c 195",
            "lxc.cgroup2.devices.deny: c 195:* rwm",
            "lxc.hook.mount: /usr/local/bin/other",
            "lxc.: x",
            "LXC.include: x",
            "lxc.mount.entry",
        ] {
            assert_eq!(found(line), [""; 0], "{line:?}");
        }
    }

    #[test]
    fn the_last_line_of_a_key_counts_and_an_empty_one_takes_back() {
        assert_eq!(found("dev0: /dev/nvidia0\ndev0: /dev/ttyS0"), [""; 0]);
        assert_eq!(
            found("dev1: /dev/nvidia1\ndev0: /dev/nvidia0"),
            ["dev0: /dev/nvidia0", "dev1: /dev/nvidia1"]
        );
        let text = "lxc.cgroup2.devices.allow: c 195:0 rwm\nlxc.include: x\nlxc.cgroup2.devices.allow:\n\
                    lxc.cgroup2.devices.allow: c 195:1 rwm\n";
        assert_eq!(found(text), ["lxc.include: x", "devices.allow: c 195:1"]);
    }

    #[test]
    fn only_the_current_section_counts() {
        for header in ["[pve:pending]", "[PVE:Pending] \r", "[snap1]"] {
            assert_eq!(
                found(&format!("arch: amd64\n{header}\ndev0: /dev/nvidia0\n")),
                [""; 0],
                "{header:?}"
            );
        }
        for no_header in ["[x]", "[]", "[a b]", " [snap1]", "[snap1] x"] {
            assert_eq!(
                found(&format!("{no_header}\ndev0: /dev/nvidia0")),
                ["dev0: /dev/nvidia0"],
                "{no_header:?}"
            );
        }
    }

    #[test]
    fn rules_are_compared_by_number() {
        let allow = |text: &str| parse(format!("lxc.cgroup2.devices.allow: {text}").as_bytes()).remove(0);
        assert!(allow("c 195:* rwm").allows(195, 255));
        assert!(allow("c *:0 r").allows(508, 0));
        assert!(!allow("c 195:0 rwm").allows(195, 1));
        assert!(!allow("c 226:* rwm").allows(195, 0));
        assert!(allow("a").allows(1, 2));
        assert!(allow("a *:* rwm").allows(1, 2));
        // To make a node opens nothing: it is what lxc's own common.conf allows for all.
        assert!(!allow("c *:* m").allows(195, 0) && !allow("c 195:*").allows(195, 0));
        assert_eq!(allow("c 195:* mr").letters_for(195, 0), Some("rm"));
        assert_eq!(allow("c 195:* w").letters_for(195, 0), Some("w"));
        assert!(!parse(b"dev0: /dev/nvidia0")[0].allows(195, 0));
    }
}
