//! The table of settings: one row for each. The parser, the list in `plan`, the commented file and the nearest key that
//! is named for a misspelt one all come from here.
//!
//! # Adding a setting
//!
//! 1. Give [`Settings`] a field, and its default in `Settings::default`; a deadline is a field of
//!    [`Budgets`](crate::base::deadlines::Budgets) instead, which covers older records by itself. The default is stated
//!    nowhere else.
//! 2. Add a row to [`KEYS`], where `plan` is to list it: the key as it is written, the field, and what it is for.
//!    `section.key` may stand in a section `[section]`, as every deadline may in `[deadlines]`; a new section needs a row
//!    in [`SECTIONS`] as well.
//! 3. The field's type says what is allowed. Deadlines (`Duration`) and switches (`bool`) are there. A choice of words is
//!    an enum in `values.rs` with its words as [`Choice`](crate::settings::kinds::Choice), also where there are two and
//!    neither is a mere "on"; anything else implements [`Value`]. Where that file is full (500 lines before its tests), a
//!    type has one of its own, as [`Reset`](crate::settings::reset::Reset) has.
//! 4. Use the field where it is to make a difference. One that makes another plan is drawn in `tests/engine_props/world.rs`
//!    and `tests/crash_campaign/hosts.rs`, and is explained in `docs/policies.md` if it is about who uses a GPU.
//! 5. `UPDATE_GENERATED=1 cargo test --lib settings`, `UPDATE_GENERATED=1 cargo test --test manual` and
//!    `UPDATE_HOSTS=1 cargo test --test hosts` write the texts that show all settings: `debian/config.toml`, the manual
//!    page, a plan. Read the difference before you commit it.

use toml::de::DeValue;

use crate::settings::kinds::Value;
use crate::settings::values::Settings;

/// A setting. Each may stand in a VM's section, too, and counts for that VM alone there.
#[derive(Debug)]
pub struct Key {
    /// As it is written, with its section before a dot.
    pub name: &'static str,
    /// Where its value is kept.
    pub field: fn(&mut Settings) -> &mut dyn Value,
    /// What it is for, and why one would change it: sentences for the manual and the commented file. The words of a
    /// choice are explained with its type.
    pub about: &'static str,
}

impl Key {
    /// The section that it stands in, "" at the top, and what it is called there.
    pub fn place(&self) -> (&'static str, &'static str) {
        self.name.split_once('.').unwrap_or(("", self.name))
    }
}

/// What there is to set, as `plan` lists it.
pub static KEYS: &[Key] = &[
    Key {
        name: "on-backup",
        field: |s| &mut s.on_backup,
        about: "What to do when a VM is started only to back it up, which is how Proxmox backs up a VM that is off. A \
                start that is refused fails that VM's backup.",
    },
    Key {
        name: "way",
        field: |s| &mut s.way,
        about: "How the GPUs leave NVIDIA's driver.",
    },
    Key {
        name: "doubt",
        field: |s| &mut s.doubt,
        about: "What to do where a process has something of NVIDIA's driver open that any GPU is used through, and it \
                cannot be known whether it is one that leaves or one that stays.",
    },
    Key {
        name: "services",
        field: |s| &mut s.services,
        about: "Which services of the host may be stopped where they use a GPU that leaves. Each is started again when the \
                GPU is home, or when the start has failed; one that uses only GPUs that stay, as soon as the others have \
                left. What needs it, and is stopped with it by systemd, is started again, too.",
    },
    Key {
        name: "containers",
        field: |s| &mut s.containers,
        about: "What to do where a process inside a container uses a GPU that leaves.",
    },
    Key {
        name: "ha-containers",
        field: |s| &mut s.ha_containers,
        about: "What to do where 'containers' has a container shut down which the cluster's manager, HA, looks after.",
    },
    Key {
        name: "container-start",
        field: |s| &mut s.container_start,
        about: "What to do where a container is started that has gpu-handoff as its hookscript and is given a GPU which a VM has. \
                Where one of its nodes is missing, what is stranded comes home first, whatever this says. For one container \
                below [vm.104], by its number.",
    },
    Key {
        name: "display-manager",
        field: |s| &mut s.display_manager,
        about: "What to do where a desktop uses a GPU that leaves: the display manager, its X server, or a program of somebody \
                who is logged in there. A desktop that uses only another GPU is left alone.",
    },
    Key {
        name: "processes",
        field: |s| &mut s.processes,
        about: "What to do with a process that uses a GPU which leaves and belongs to a login session at a prompt. Nobody \
                starts it again. It does not concern services, containers, VMs, desktops and cron's jobs.",
    },
    Key {
        name: "gate",
        field: |s| &mut s.gate,
        about: "Whether others are kept from opening a GPU's device nodes while it is handed over, for the part of a second \
                between the last look for its users and the moment when it has left its driver. The kernel refuses them \
                with 'Operation not permitted' meanwhile, in the host and in containers.",
    },
    Key {
        name: "unknown-keys",
        field: |s| &mut s.unknown_keys,
        about: "What to do where a hostpci line of a VM, or a resource mapping that it uses, is not understood and may mean \
                a GPU. A Proxmox that is newer than this program may understand it, and takes the GPU off its driver by \
                itself then.",
    },
    Key {
        name: "reset",
        field: |s| &mut s.reset,
        about: "How a GPU may be reset while it is away. Change it for a card that does not survive the reset that the \
                kernel prefers: one that works in its VM once, and not at the next start.",
    },
    Key {
        name: "notify",
        field: |s| &mut s.notify,
        about: "Whether somebody is told who is not at the screen: of a GPU that is stranded, of a call of our own that is \
                stuck in the kernel, of a GPU that its VM does not need any more and that does not come home, of a service or a \
                container that was stopped and does not start again. Each is told once, not at every try.",
    },
    Key {
        name: "metrics",
        field: |s| &mut s.metrics,
        about: "A file for node_exporter's textfile collector: who has each GPU since when, how many handoffs there were, \
                how long each step of the last ones took, what is stranded or stuck. It is written anew after each \
                handoff, below /var or /run, and is for the whole host: what a VM's section says of it does not count.",
    },
    Key {
        name: "deadlines.way-out",
        field: |s| &mut s.budgets.way_out,
        about: "The whole way out, with all waiting; where containers are stopped for it, 'unit' and twice 'container' are \
                added once for all of them, and a minute where HA manages one. If it does not end in time it is undone, which \
                may take as long again. Proxmox itself waits without limit for a hook, so this is about the patience of the person at \
                'qm start'.",
    },
    Key {
        name: "deadlines.way-home",
        field: |s| &mut s.budgets.way_home,
        about: "The whole way home, with waiting for QEMU to let go of the GPU; for containers that are started again the \
                same is added. Raise it for VMs whose QEMU takes long to end.",
    },
    Key {
        name: "deadlines.lock",
        field: |s| &mut s.budgets.lock,
        about: "Waiting for another run of gpu-handoff to finish: only one at a time changes anything. Raise it where \
                several VMs with GPUs start or stop together.",
    },
    Key {
        name: "deadlines.holder-wait",
        field: |s| &mut s.budgets.holder_wait,
        about: "Waiting for processes that use the GPU to let go of it, before the way out is refused. Long enough for a \
                query of a monitoring tool to end; raise it where such queries take longer.",
    },
    Key {
        name: "deadlines.grace",
        field: |s| &mut s.budgets.grace,
        about: "How long post-stop is waited for once QEMU has ended and nobody holds the VM's lock; then the watcher has \
                the GPU brought home. Before version 9.1.13, qemu-server may wait 60 seconds for that lock before it calls \
                post-stop. With a later one it can be lowered, to have the GPU back sooner when post-stop is lost.",
    },
    Key {
        name: "deadlines.look",
        field: |s| &mut s.budgets.look,
        about: "Reading the host once, with everything that any process has open. Raise it on hosts with very many \
                processes.",
    },
    Key {
        name: "deadlines.attribute",
        field: |s| &mut s.budgets.attribute,
        about: "A write to the kernel that only changes an attribute, such as the driver that a device is meant for.",
    },
    Key {
        name: "deadlines.bind",
        field: |s| &mut s.budgets.bind,
        about: "Taking a driver off one function of a card, or binding one to it. NVIDIA's driver takes seconds for it \
                on servers.",
    },
    Key {
        name: "deadlines.load",
        field: |s| &mut s.budgets.load,
        about: "Loading one kernel module, which sets up all GPUs that it finds. Raise it on hosts with many.",
    },
    Key {
        name: "deadlines.unit",
        field: |s| &mut s.budgets.unit,
        about: "Stopping or starting one service, such as NVIDIA's persistence daemon.",
    },
    Key {
        name: "deadlines.container",
        field: |s| &mut s.budgets.container,
        about: "How long a container that is shut down has for that; then it is ended. One of Docker's or Podman's whose own stop \
                timeout is longer has that, but no more than ten minutes. Raise it for containers of Proxmox's that take long \
                to write down what they have.",
    },
    Key {
        name: "deadlines.process",
        field: |s| &mut s.budgets.process,
        about: "How long a process that is asked to end has for that, and again where it is ended, see 'processes'.",
    },
    Key {
        name: "deadlines.reset",
        field: |s| &mut s.budgets.reset,
        about: "One reset of a function. The kernel itself waits up to a minute for a device to come back, so that less \
                gives up on a GPU that may still come.",
    },
    Key {
        name: "deadlines.verify",
        field: |s| &mut s.budgets.verify,
        about: "Seeing whether a GPU works that has come home: NVIDIA's tool initialises it, which takes seconds on \
                servers.",
    },
    Key {
        name: "deadlines.unload",
        field: |s| &mut s.budgets.unload,
        about: "Unloading one of the driver's modules, with 'unload-per-gpu' added for each GPU.",
    },
    Key {
        name: "deadlines.unload-per-gpu",
        field: |s| &mut s.budgets.unload_per_gpu,
        about: "What is added to 'unload' for each GPU that the driver lets go.",
    },
];

/// The sections of the keys, and what is said of all in each.
pub static SECTIONS: &[(&str, &str)] = &[(
    "deadlines",
    "How long things may take. What does not answer in time counts as failed; on the way out, what was done is undone \
     then. Raise a deadline where the journal says that something gave no answer, and it would only have taken longer.",
)];

/// A key of a `[[device]]` section.
#[derive(Debug)]
pub struct DeviceKey {
    /// As it is written.
    pub name: &'static str,
    /// A value, in TOML.
    pub example: &'static str,
    /// What it is for.
    pub about: &'static str,
}

/// What can be said of a model of GPU. [`crate::settings::known_gpus`] has what we ship.
pub static DEVICE: &[DeviceKey] = &[
    DeviceKey {
        name: "ids",
        example: "\"2b85\"",
        about: "The models: one of NVIDIA's device ids, as 'lspci -nn' shows it behind \"10de:\", or a range such as \
                \"2b80-2bff\".",
    },
    DeviceKey {
        name: "note",
        example: "\"RTX 5090\"",
        about: "What 'gpu-handoff plan' says about it.",
    },
    DeviceKey {
        name: "reset",
        example: "\"bus\"",
        about: "The kernel's reset methods to leave while the GPU is away, in this order. Where the GPU has none of them, \
                resets of its single functions are off, and VFIO resets the whole card. Counts where the setting \
                'reset' is \"auto\".",
    },
    DeviceKey {
        name: "d3cold",
        example: "false",
        about: "Whether the platform may cut the GPU's power while it is away.",
    },
];

/// The row of a key.
pub fn row(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// Whether a section with keys is called like that.
pub fn is_section(name: &str) -> bool {
    KEYS.iter().any(|key| key.place().0 == name && !name.is_empty())
}

impl Settings {
    /// Each key with its value in force and where it came from, for `plan`.
    pub fn listed(&self) -> Vec<(&'static str, String, &str)> {
        let mut copy = self.clone();
        let rows = KEYS.iter().map(|key| {
            let origin = self.origins.get(key.name).map_or("default", String::as_str);
            (key.name, (key.field)(&mut copy).shown(), origin)
        });
        rows.collect()
    }

    /// Sets a key.
    ///
    /// # Errors
    /// What the value must be.
    pub fn set(&mut self, key: &str, value: &DeValue<'_>) -> Result<(), String> {
        let row = row(key).ok_or("it cannot be set for one VM alone")?; // the only place where others come this far
        let field = (row.field)(self);
        field
            .take(value)
            .ok_or_else(|| format!("it must be {}", field.allowed()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::collections::BTreeSet;

    #[test]
    fn each_key_is_there_once_and_each_section_is_explained() {
        let names: BTreeSet<&str> = KEYS.iter().map(|key| key.name).collect();
        assert_eq!(names.len(), KEYS.len());
        let explained: BTreeSet<&str> = SECTIONS.iter().map(|(name, _)| *name).collect();
        let sections: BTreeSet<&str> = KEYS.iter().map(|key| key.place().0).filter(|s| !s.is_empty()).collect();
        assert_eq!(sections, explained);
        assert!(["vm", "device"].iter().all(|other| !sections.contains(other)));
    }

    #[test]
    fn each_key_has_a_field_of_its_own() {
        let mut settings = Settings::default();
        let fields: BTreeSet<usize> = KEYS
            .iter()
            .map(|key| std::ptr::from_mut((key.field)(&mut settings)).addr())
            .collect();
        assert_eq!(fields.len(), KEYS.len());
    }

    #[test]
    fn the_texts_are_sentences() {
        let keys = KEYS.iter().map(|key| key.about);
        let texts = keys
            .chain(SECTIONS.iter().map(|(_, about)| *about))
            .chain(DEVICE.iter().map(|key| key.about));
        for text in texts {
            assert!(text.ends_with('.') && !text.contains("  "), "{text}");
        }
    }
}
