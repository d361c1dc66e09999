//! What VMs and containers say of themselves, understood for the checks. Pure.

use crate::base::pci::PciAddr;
use crate::base::sets::in_order;
use crate::base::vmid::VmId;
use crate::check::finding::Finding;
use crate::check::texts::Texts;
use crate::host::snapshot::Snapshot;
use crate::plan::selection::{self, Given};
use crate::proxmox::container_config::{self, GpuReference};
use crate::proxmox::files::{Cluster, Config, generation};
use crate::proxmox::vm_config;

/// A VM of this node.
#[derive(Debug)]
pub struct Vm {
    /// Its number.
    pub vmid: VmId,
    /// Its config, where it was read.
    pub config: Config,
    /// The config's text.
    pub text: String,
    /// What its entries mean here.
    pub given: Given,
}

impl Vm {
    /// Every VM whose config was read.
    pub fn all(texts: &Texts, snapshot: &Snapshot, cluster: &Cluster) -> Vec<Vm> {
        let status = texts.text("/var/lib/dpkg/status").ok().flatten().unwrap_or_default();
        let generation = generation(status);
        let of = |(path, text): (&str, &str)| {
            let vmid: VmId = path.rsplit('/').next()?.strip_suffix(".conf")?.parse().ok()?;
            let config = Config {
                path: path.to_owned(),
                config: vm_config::parse(text.as_bytes(), generation),
                generation,
            };
            let given = selection::of_vm(vmid, &config, snapshot, cluster);
            Some(Vm {
                vmid,
                config,
                text: text.to_owned(),
                given,
            })
        };
        in_order(texts.below("/etc/pve/qemu-server/").filter_map(of), |vm| vm.vmid)
    }

    /// It has entries that mean a GPU, or may mean one.
    pub fn has_gpu(&self) -> bool {
        let given = &self.given;
        !given.gpus.is_empty() || given.refused.is_some() || given.not_understood.is_some()
    }

    /// A setting of its current section.
    pub fn get(&self, key: &str) -> Option<String> {
        self.config
            .config
            .current
            .get(key)
            .map(|value| value.to_str().into_owned())
    }

    /// Whether a switch is on.
    pub fn flag(&self, key: &str) -> bool {
        self.config.config.current.flag(key)
    }

    /// A finding at the line that sets this, or at the file where none does.
    pub fn at(&self, finding: Finding, key: &str) -> Finding {
        finding.at(&self.config.path, line_of(&self.text, key))
    }

    /// The first key of its entries that mean this GPU.
    pub fn key_of(&self, gpu: PciAddr) -> Option<&str> {
        let entries = self.given.entries.iter();
        let mut of_it = entries.filter(|e| e.ours.contains(&gpu) || e.alternatives.iter().flatten().any(|a| *a == gpu));
        of_it.next().map(|e| e.key.as_str())
    }
}

/// The last line of the current section that sets this key, from 1.
pub fn line_of(text: &str, key: &str) -> Option<usize> {
    let current = text.lines().take_while(|l| !l.starts_with('[')).enumerate();
    let sets = |l: &str| {
        l.strip_prefix(key)
            .is_some_and(|rest| rest.trim_start().starts_with([':', '=']))
    };
    current.filter(|(_, l)| sets(l)).last().map(|(at, _)| at + 1)
}

/// A container of this node that is given a GPU.
#[derive(Debug)]
pub struct Container {
    /// Its number.
    pub ctid: VmId,
    /// Its config's path.
    pub path: String,
    /// The config's text.
    pub text: String,
    /// What gives it a GPU.
    pub references: Vec<GpuReference>,
}

impl Container {
    /// Every container whose config was read and names a node of a GPU's.
    pub fn all(texts: &Texts) -> Vec<Container> {
        let of = |(path, text): (&str, &str)| {
            let ctid: VmId = path.rsplit('/').next()?.strip_suffix(".conf")?.parse().ok()?;
            let references = container_config::parse(text.as_bytes());
            let is_gpus = |r: &GpuReference| {
                let by_number = r.allows(crate::host::nvidia::MAJOR, 0) || r.allows(226, 0) || r.allows(226, 128);
                by_number || !matches!(r, GpuReference::Allow { .. } | GpuReference::Include { .. })
            };
            references.iter().any(is_gpus).then(|| Container {
                ctid,
                path: path.to_owned(),
                text: text.to_owned(),
                references,
            })
        };
        in_order(texts.below("/etc/pve/lxc/").filter_map(of), |c| c.ctid)
    }

    /// A setting of its current section.
    pub fn get(&self, key: &str) -> Option<&str> {
        let line = self.text.lines().nth(line_of(&self.text, key)? - 1)?;
        line.split_once(':').map(|(_, value)| value.trim())
    }

    /// It starts with the host.
    pub fn on_boot(&self) -> bool {
        self.get("onboot") == Some("1")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_that_sets_a_key_is_of_the_current_section() {
        let text = "memory: 1\nhostpci0: 01:00\nhostpci0: 02:00\n[old]\nhostpci0: 03:00\nballoon: 0\n";
        assert_eq!(line_of(text, "hostpci0"), Some(3));
        assert_eq!(line_of(text, "balloon"), None);
        assert_eq!(line_of(text, "host"), None);
        assert_eq!(
            line_of("lxc.cgroup.devices.allow = c 195:*\n", "lxc.cgroup.devices.allow"),
            Some(1)
        );
    }
}
