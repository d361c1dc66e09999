//! The settings in force, and the default of each. What their keys are is [`crate::settings::table`]'s.
//!
//! The way home never depends on them: the record of a handoff keeps what was in force.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use toml::de::DeValue;

use crate::base::deadlines::Budgets;
use crate::host::belongs::Belongs;
use crate::host::holders::Holder;
use crate::host::nodes::Node;
use crate::host::units::named;
use crate::settings::kinds::{Choice, Value};
use crate::settings::known_gpus::{self, Fact};
use crate::settings::messages::{Metrics, Notify};
use crate::settings::reset::Reset;

/// What to do when a VM is started for the backup of its stopped self (`lock: backup`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnBackup {
    /// Hand the GPU over if nobody uses it; refuse otherwise, which fails that VM's backup.
    IfFree,
    /// As for any other start.
    Handoff,
    /// Never hand it over; the backup of that VM fails.
    Refuse,
}

/// How GPUs leave their host driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WayOut {
    /// By unloading the driver where all its GPUs leave, by unbind otherwise.
    Auto,
    /// Only by unloading the driver: the kernel itself refuses if anybody is left.
    Unload,
    /// Only by unbind: faster, and as safe as the look for holders before it.
    Unbind,
}

/// What to do where it cannot be known whether a process uses the GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Doubt {
    /// Refuse.
    Refuse,
    /// Go on, at the risk of an unbind that waits for that process. Refused nevertheless from driver 595 on.
    GoOn,
}

/// Whether others are kept from opening a GPU while it is handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gate {
    /// Wherever the kernel can.
    Auto,
    /// Never.
    Off,
}

/// What to do where a VM's config or a mapping has a line that is not understood and may mean a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnknownKeys {
    /// Refuse.
    Refuse,
    /// Go on as if the line were not there.
    Ignore,
}

impl Choice for OnBackup {
    const WORDS: &'static [(Self, &'static str, &'static str)] = &[
        (
            OnBackup::IfFree,
            "if-free",
            "hand the GPU over if nobody uses it, and refuse otherwise, whatever 'services', 'containers', 'display-manager' \
             and 'processes' allow. NVIDIA's own services are nobody, unless 'services' is \"refuse\"; 'doubt' counts.",
        ),
        (
            OnBackup::Handoff,
            "handoff",
            "as for any other start: who uses the GPU is in the way, or asked to let go, as the settings below say.",
        ),
        (
            OnBackup::Refuse,
            "refuse",
            "never hand it over; the backup of that VM fails.",
        ),
    ];
}

impl Choice for WayOut {
    const WORDS: &'static [(Self, &'static str, &'static str)] = &[
        (
            WayOut::Auto,
            "auto",
            "unload the driver where all its GPUs leave, and unbind those that leave where others stay; from driver 595 on \
             unload it then, too, and load it again for the others, if nobody uses them.",
        ),
        (
            WayOut::Unload,
            "unload",
            "only by unloading the driver: the kernel itself refuses if anybody is left. Before driver 595 refused where a \
             GPU stays on it.",
        ),
        (
            WayOut::Unbind,
            "unbind",
            "only by unbind: faster, and as safe as the look for users of the GPU before it. Refused from driver 595 on.",
        ),
    ];
}

impl Choice for Doubt {
    const WORDS: &'static [(Self, &'static str, &'static str)] = &[
        (Doubt::Refuse, "refuse", "refuse, and name the process."),
        (
            Doubt::GoOn,
            "go-on",
            "go on, at the risk of an unbind that waits for that process. Refused nevertheless from driver 595 on.",
        ),
    ];
}

impl Choice for Gate {
    const WORDS: &'static [(Self, &'static str, &'static str)] = &[
        (
            Gate::Auto,
            "auto",
            "where the kernel has cgroups of version 2 alone, as on any Proxmox VE from version 8 on that was not told \
             otherwise; elsewhere a line says that there is no gate.",
        ),
        (Gate::Off, "off", "nobody is kept from opening it."),
    ];
}

impl Choice for UnknownKeys {
    const WORDS: &'static [(Self, &'static str, &'static str)] = &[
        (UnknownKeys::Refuse, "refuse", "refuse, and name the line."),
        (
            UnknownKeys::Ignore,
            "ignore",
            "go on as if the line were not there, as a Proxmox that does not know it either will.",
        ),
    ];
}

/// Which services that use a GPU may be stopped for a handoff, and are started again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Services {
    /// None.
    Refuse,
    /// NVIDIA's own, which serve nobody without it.
    Auto,
    /// These units as well.
    Also(Vec<String>),
}

impl Services {
    /// Whether a unit is named, by this word.
    pub fn names(&self, unit: &str) -> bool {
        matches!(self, Services::Also(names) if names.iter().any(|name| name == unit))
    }
}

impl Value for Services {
    fn take(&mut self, value: &DeValue<'_>) -> Option<()> {
        let DeValue::String(text) = value else { return None };
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        *self = match words.as_slice() {
            [] => return None,
            ["refuse"] => Services::Refuse,
            ["auto"] => Services::Auto,
            words if words.iter().any(|word| ["auto", "refuse"].contains(word)) => return None,
            words => Services::Also(words.iter().map(|word| named(word)).collect::<Option<_>>()?),
        };
        Some(())
    }

    fn allowed(&self) -> String {
        "\"auto\", \"refuse\", or names of services, those of a user as user-UID/NAME, but of none that the host itself needs".to_owned()
    }

    fn shown(&self) -> String {
        match self {
            Services::Refuse => "refuse".to_owned(),
            Services::Auto => "auto".to_owned(),
            Services::Also(names) => names.join(" "),
        }
    }

    fn toml(&self) -> String {
        format!("\"{}\"", self.shown())
    }

    fn words(&self) -> Vec<(&'static str, String)> {
        let words = [
            (
                "auto",
                "NVIDIA's own, which are there for the GPU alone: the persistence daemon, nvidia-powerd, DCGM, and the fabric \
                 manager where no GPU stays on the driver. From driver 590 on DCGM is not stopped, but lets the driver go, where \
                 its 'dcgmi' can do that (DCGM 4.5).",
            ),
            (
                "refuse",
                "none: a service that uses the GPU keeps the VM from starting.",
            ),
            (
                "ollama.service jellyfin.service",
                "names, with spaces between: these as well. One that uses a GPU when it leaves is stopped, and started again \
                 when that is home; one that does not is left alone.",
            ),
            (
                "user-1000/ollama.service",
                "the same for a service of a user's own systemd (systemctl --user), by the user's number.",
            ),
        ];
        words.map(|(word, means)| (word, means.to_owned())).to_vec()
    }
}

/// What to do with a process of a login session that uses a GPU which leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Processes {
    /// Refuse.
    Refuse,
    /// Ask it to end.
    Terminate,
    /// Ask it to end, and end it where it does not.
    Kill,
}

impl Processes {
    /// Whether a process is one of those. Not one that has a GPU through VFIO, which is a guest, and not one that sets a
    /// display's mode and draws on it, which is a display server: with it everything would end that is on its screen.
    pub fn can_end(holder: &Holder) -> bool {
        let is_guest = |node: &Node| matches!(node, Node::VfioGroup(_) | Node::VfioDevice(_));
        let is_of_session = matches!(holder.belongs_to, Belongs::Session { .. });
        let nodes = &holder.nodes;
        let is_server = nodes.contains(&Node::Modeset) && nodes.iter().any(|n| matches!(n, Node::Drm(_)));
        is_of_session && holder.pid > 1 && !nodes.iter().any(is_guest) && !is_server
    }
}

impl Choice for Processes {
    const WORDS: &'static [(Self, &'static str, &'static str)] = &[
        (Processes::Refuse, "refuse", "refuse, and name the process."),
        (
            Processes::Terminate,
            "terminate",
            "ask it to end (SIGTERM). One that has not ended after 'deadlines.process' keeps the VM from starting.",
        ),
        (
            Processes::Kill,
            "kill",
            "ask it to end, and end it (SIGKILL) where it has not after that time: what it has not saved is lost.",
        ),
    ];
}

/// What to do with what uses a GPU which leaves inside a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Containers {
    /// Refuse.
    Refuse,
    /// Stop the service that it is, inside, and start it again.
    Release,
    /// The same, and shut the container down where that is not enough.
    Shutdown,
}

impl Choice for Containers {
    const WORDS: &'static [(Self, &'static str, &'static str)] = &[
        (
            Containers::Refuse,
            "refuse",
            "refuse, and name the container and the process.",
        ),
        (
            Containers::Release,
            "release",
            "stop the service inside that it belongs to, by 'pct exec' and the container's own systemd, and start it again \
             when the GPU is home; the container and all else in it goes on. A process that belongs to no service there \
             keeps the VM from starting. A container of Docker's or Podman's is stopped and started again by its own program.",
        ),
        (
            Containers::Shutdown,
            "shutdown",
            "as \"release\"; and where that cannot be done inside a container of Proxmox's, shut the container down and start \
             it again when the GPU is home. One that has not shut down after 'deadlines.container' is ended, as by 'pct stop'; for \
             one that HA manages see 'ha-containers'.",
        ),
    ];
}

/// What to do with a container that is to be shut down, and that the cluster's manager looks after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HaContainers {
    /// Refuse.
    Refuse,
    /// Have the manager ignore it for as long as it is stopped.
    Stop,
}

impl Choice for HaContainers {
    const WORDS: &'static [(Self, &'static str, &'static str)] = &[
        (HaContainers::Refuse, "refuse", "refuse: HA answers for where it runs."),
        (
            HaContainers::Stop,
            "stop",
            "have HA ignore it ('ha-manager set ct:CTID --state ignored'), shut it down and start it again as any other, and give it back \
             to HA when the GPU is home ('--state started'). Meanwhile HA does nothing for it: where this node fails, it is not started on \
             another one; and after a reboot with the GPU away it is named, and HA ignores it until somebody says so.",
        ),
    ];
}

/// What to do with a desktop that uses a GPU which leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DisplayManager {
    /// Refuse.
    Refuse,
    /// Stop the display manager, which ends all desktops, and start it again.
    Stop,
}

impl Choice for DisplayManager {
    const WORDS: &'static [(Self, &'static str, &'static str)] = &[
        (DisplayManager::Refuse, "refuse", "refuse, and name the process."),
        (
            DisplayManager::Stop,
            "stop",
            "stop the display manager (display-manager.service), and start it again when the GPU is home. That ends the \
             desktops of all who are logged in there: what they have not saved is lost.",
        ),
    ];
}

/// What to do where a container is started that is given a GPU which is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ContainerStart {
    /// Refuse, which keeps it from starting.
    Refuse,
    /// Let it start without.
    GoOn,
}

impl Choice for ContainerStart {
    const WORDS: &'static [(Self, &'static str, &'static str)] = &[
        (
            ContainerStart::Refuse,
            "refuse",
            "refuse its start, and say who has the GPU.",
        ),
        (
            ContainerStart::GoOn,
            "go-on",
            "let it start. Proxmox itself refuses that for a 'dev' line; one of 'lxc.mount.entry' with 'optional' is left out, and is \
             put there when the GPU is home, without a restart.",
        ),
    ];
}

/// The settings in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How long things may take.
    pub budgets: Budgets,
    /// What to do at a backup of the stopped VM.
    pub on_backup: OnBackup,
    /// How GPUs leave their host driver.
    pub way: WayOut,
    /// What to do where it cannot be known whether a process uses the GPU.
    pub doubt: Doubt,
    /// Which services may be stopped and started again.
    pub services: Services,
    /// What to do with what uses it inside a container.
    pub containers: Containers,
    /// What to do where a container is started and its GPU is away.
    pub container_start: ContainerStart,
    /// What to do with a desktop.
    pub display_manager: DisplayManager,
    /// What to do with a container of HA's that is to be shut down.
    pub ha_containers: HaContainers,
    /// What to do with processes of login sessions.
    pub processes: Processes,
    /// Whether others are kept from opening a GPU while it is handed over.
    pub gate: Gate,
    /// What to do with a line of Proxmox\'s that is not understood and may mean a GPU.
    pub unknown_keys: UnknownKeys,
    /// How a GPU may be reset while it is away.
    pub reset: Reset,
    /// Whether messages are sent.
    pub notify: Notify,
    /// Where metrics are written.
    pub metrics: Metrics,
    /// What is known of some models: our table, and what the settings add.
    pub facts: Vec<Fact>,
    /// Where each value that is not the default came from: `file:line`, by key.
    pub origins: BTreeMap<String, String>,
}

impl Settings {
    /// What holds where a GPU may leave only if nobody uses it: NVIDIA's own services are nobody.
    pub fn only_if_free(&mut self) {
        if self.services != Services::Refuse {
            self.services = Services::Auto;
        }
        self.containers = Containers::Refuse;
        self.display_manager = DisplayManager::Refuse;
        self.processes = Processes::Refuse;
    }
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            budgets: Budgets::default(),
            on_backup: OnBackup::IfFree,
            way: WayOut::Auto,
            doubt: Doubt::Refuse,
            services: Services::Auto,
            containers: Containers::Refuse,
            container_start: ContainerStart::Refuse,
            display_manager: DisplayManager::Refuse,
            ha_containers: HaContainers::Refuse,
            processes: Processes::Refuse,
            gate: Gate::Auto,
            unknown_keys: UnknownKeys::Refuse,
            reset: Reset::Auto,
            notify: Notify::Auto,
            metrics: Metrics(None),
            facts: known_gpus::known(),
            origins: BTreeMap::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use toml::de::DeTable;

    use crate::host::unit_names::can_be_stopped;

    fn services(text: &str) -> Option<Services> {
        let file = format!("key = {text}");
        let table = DeTable::parse(&file).unwrap();
        let mut value = Services::Refuse;
        value.take(table.get_ref().get("key").unwrap().get_ref())?;
        Some(value)
    }

    #[test]
    fn services_are_words_or_names_and_none_that_the_host_needs() {
        assert_eq!(services("\"auto\""), Some(Services::Auto));
        assert_eq!(services("\"refuse\""), Some(Services::Refuse));
        let named = services("\"ollama  jellyfin.service a@b.service\"").unwrap();
        assert_eq!(named.shown(), "ollama.service jellyfin.service a@b.service");
        assert_eq!(services(&named.toml()), Some(named.clone()));
        let of_user = services("\"user-1000/ollama x\"").unwrap();
        assert_eq!(of_user.shown(), "user-1000/ollama.service x.service");
        assert!(of_user.names("user-1000/ollama.service") && !of_user.names("ollama.service"));
        assert!(named.names("ollama.service") && !named.names("ollama") && !Services::Auto.names("auto.service"));
        for none in [
            "\"\"",
            "true",
            "[\"ollama\"]",
            "\"pvedaemon\"",
            "\"ollama dbus.service\"",
            "\"systemd-logind\"",
            "\"display.socket\"",
            "\"../x\"",
            "\"refuse ollama\"",
            "\"-x\"",
            "\"a;b\"",
            "\"user-1000/\"",
            "\"user-/x\"",
            "\"user-joe/x\"",
            "\"user-01000/x\"",
            "\"user-+1/x\"",
            "\"user-4294967295/x\"",
            "\"user-1000/dbus\"",
            "\"user-1000/a/b\"",
            "\"1000/x\"",
        ] {
            assert_eq!(services(none), None, "{none}");
        }
        assert!(can_be_stopped("ollama.service"));
        for none in [
            "ollama",
            "pvedaemon.service",
            "a b.service",
            "session-3.scope",
            "a\u{202e}b.service",
        ] {
            assert!(!can_be_stopped(none), "{none}");
        }
    }
}
