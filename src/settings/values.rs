//! The settings: what there is to set, each key's value and its default. Where they are read is [`crate::settings::file`].
//!
//! The way home never depends on them: the record of a handoff keeps what was in force.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use toml::de::DeValue;

use crate::base::deadlines::Budgets;
use crate::settings::known_gpus::{self, Fact};

/// Longest deadline that can be set, seconds: a day, so that a typing error is not "for ever".
const LONGEST: u64 = 86_400;

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

/// The words of a setting that is a choice.
trait Choice: Copy + PartialEq + 'static {
    /// Each value with its word.
    const WORDS: &'static [(Self, &'static str)];

    fn word(self) -> &'static str {
        let found = Self::WORDS.iter().find(|(value, _)| *value == self);
        found.map_or("", |(_, word)| word)
    }

    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        let DeValue::String(text) = value else {
            return Err(Self::must());
        };
        let found = Self::WORDS.iter().find(|(_, word)| *word == text.as_ref());
        found.map(|(value, _)| *value).ok_or_else(Self::must)
    }

    fn must() -> String {
        let words: Vec<String> = Self::WORDS.iter().map(|(_, w)| format!("\"{w}\"")).collect();
        let (last, rest) = words.split_last().map_or(("", &[][..]), |(l, r)| (l.as_str(), r));
        format!("it must be {} or {last}", rest.join(", "))
    }
}

impl Choice for OnBackup {
    const WORDS: &'static [(Self, &'static str)] = &[
        (OnBackup::IfFree, "if-free"),
        (OnBackup::Handoff, "handoff"),
        (OnBackup::Refuse, "refuse"),
    ];
}

impl Choice for WayOut {
    const WORDS: &'static [(Self, &'static str)] = &[
        (WayOut::Auto, "auto"),
        (WayOut::Unload, "unload"),
        (WayOut::Unbind, "unbind"),
    ];
}

impl Choice for Doubt {
    const WORDS: &'static [(Self, &'static str)] = &[(Doubt::Refuse, "refuse"), (Doubt::GoOn, "go-on")];
}

/// How a GPU may be reset while it is away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reset {
    /// As the kernel has it, or as [`crate::settings::known_gpus`] knows better.
    Auto,
    /// We never ask for a reset ourselves, and change nothing about those of VFIO.
    Never,
    /// By these methods only, in this order.
    By(String),
}

/// The reset methods of the kernel (linux, drivers/pci/pci.c, pci_reset_fn_methods).
const RESET_METHODS: [&str; 7] = ["device_specific", "acpi", "flr", "af_flr", "pm", "bus", "cxl_bus"];

impl Reset {
    /// From a setting.
    ///
    /// # Errors
    /// What it must be.
    pub fn read(value: &DeValue<'_>) -> Result<Self, String> {
        let must = || {
            format!(
                "it must be \"auto\", \"never\", or methods out of: {}",
                RESET_METHODS.join(" ")
            )
        };
        let DeValue::String(text) = value else {
            return Err(must());
        };
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        match words.as_slice() {
            [] => Err(must()),
            ["auto"] => Ok(Reset::Auto),
            ["never"] => Ok(Reset::Never),
            words if words.iter().all(|w| RESET_METHODS.contains(w)) => Ok(Reset::By(words.join(" "))),
            _ => Err(must()),
        }
    }

    fn word(&self) -> &str {
        match self {
            Reset::Auto => "auto",
            Reset::Never => "never",
            Reset::By(methods) => methods,
        }
    }
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
    /// How a GPU may be reset while it is away.
    pub reset: Reset,
    /// What is known of some models: our table, and what the settings add.
    pub facts: Vec<Fact>,
    /// Where each value that is not the default came from: `file:line`, by key.
    pub origins: BTreeMap<String, String>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            budgets: Budgets::default(),
            on_backup: OnBackup::IfFree,
            way: WayOut::Auto,
            doubt: Doubt::Refuse,
            reset: Reset::Auto,
            facts: known_gpus::known(),
            origins: BTreeMap::new(),
        }
    }
}

/// The keys, as they are written.
pub const KEYS: [&str; 18] = [
    "on-backup",
    "way",
    "doubt",
    "reset",
    "deadlines.way-out",
    "deadlines.way-home",
    "deadlines.lock",
    "deadlines.holder-wait",
    "deadlines.grace",
    "deadlines.look",
    "deadlines.attribute",
    "deadlines.bind",
    "deadlines.load",
    "deadlines.unit",
    "deadlines.reset",
    "deadlines.verify",
    "deadlines.unload",
    "deadlines.unload-per-gpu",
];

impl Settings {
    /// Each key with its value in force and where it came from, for `plan`.
    pub fn listed(&self) -> Vec<(&'static str, String, &str)> {
        let value = |key: &str| match self.budget(key) {
            Some(deadline) => format!("{} s", deadline.as_secs()),
            None => match key {
                "way" => self.way.word(),
                "doubt" => self.doubt.word(),
                "reset" => self.reset.word(),
                _ => self.on_backup.word(),
            }
            .to_owned(),
        };
        let origin = |key: &str| self.origins.get(key).map_or("default", String::as_str);
        KEYS.iter().map(|key| (*key, value(key), origin(key))).collect()
    }

    fn budget(&self, key: &str) -> Option<Duration> {
        let mut copy = self.budgets.clone();
        budget_of(&mut copy, key).copied()
    }

    /// Sets a key.
    ///
    /// # Errors
    /// What the value must be.
    pub fn set(&mut self, key: &str, value: &DeValue<'_>) -> Result<(), String> {
        if let Some(budget) = budget_of(&mut self.budgets, key) {
            *budget = seconds(value)?;
            return Ok(());
        }
        match key {
            "way" => self.way = Choice::read(value)?,
            "doubt" => self.doubt = Choice::read(value)?,
            "reset" => self.reset = Reset::read(value)?,
            _ => self.on_backup = Choice::read(value)?,
        }
        Ok(())
    }
}

fn budget_of<'a>(budgets: &'a mut Budgets, key: &str) -> Option<&'a mut Duration> {
    Some(match key {
        "deadlines.way-out" => &mut budgets.way_out,
        "deadlines.way-home" => &mut budgets.way_home,
        "deadlines.lock" => &mut budgets.lock,
        "deadlines.holder-wait" => &mut budgets.holder_wait,
        "deadlines.grace" => &mut budgets.grace,
        "deadlines.look" => &mut budgets.look,
        "deadlines.attribute" => &mut budgets.attribute,
        "deadlines.bind" => &mut budgets.bind,
        "deadlines.load" => &mut budgets.load,
        "deadlines.unit" => &mut budgets.unit,
        "deadlines.reset" => &mut budgets.reset,
        "deadlines.verify" => &mut budgets.verify,
        "deadlines.unload" => &mut budgets.unload,
        "deadlines.unload-per-gpu" => &mut budgets.unload_per_gpu,
        _ => return None,
    })
}

fn seconds(value: &DeValue<'_>) -> Result<Duration, String> {
    let number = match value {
        DeValue::Integer(n) => u64::from_str_radix(n.as_str(), n.radix()).ok(),
        _ => None,
    };
    number
        .filter(|n| (1..=LONGEST).contains(n))
        .map(Duration::from_secs)
        .ok_or_else(|| format!("it must be a whole number of seconds from 1 to {LONGEST}"))
}
