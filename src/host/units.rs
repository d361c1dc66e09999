//! Units of systemd's that use a GPU: of the host, or inside a container that goes on; whether they run, and what goes down
//! with them.
//!
//! Asked on the way out alone: the way home depends on nothing that systemd says.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::os::fd::AsFd;

use serde::{Deserialize, Serialize};

use crate::base::root::Root;
use crate::base::text::{foreign, harmless, one_line};
use crate::base::vmid::VmId;
use crate::host::belongs::Belongs;
use crate::host::holders::Holder;

/// Such a unit, by its whole name. In JSON one of the host is its name alone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Unit {
    /// Of the host's own systemd.
    Host(String),
    /// Of the systemd inside a container.
    Inside {
        /// The container.
        container: VmId,
        /// The unit, by a name that [`can_be_stopped`]: the container chooses it.
        unit: String,
    },
}

impl Unit {
    /// One of the host's.
    pub fn host(name: &str) -> Unit {
        Unit::Host(name.to_owned())
    }

    /// The one that a process is of: of the host, or inside a container, by a name that can be stopped there.
    pub fn of(holder: &Holder) -> Option<Unit> {
        match &holder.belongs_to {
            Belongs::Unit(name) => Some(Unit::host(name)),
            Belongs::Container { ctid, unit: Some(name) } if can_be_stopped(name) => Some(Unit::Inside {
                container: ctid.parse().ok()?,
                unit: name.clone(),
            }),
            _ => None,
        }
    }

    /// Its name, if it is one of the host's.
    pub fn on_host(&self) -> Option<&str> {
        match self {
            Unit::Host(name) => Some(name),
            Unit::Inside { .. } => None,
        }
    }

    /// Its name, wherever it is.
    pub fn name(&self) -> &str {
        match self {
            Unit::Host(name) | Unit::Inside { unit: name, .. } => name,
        }
    }

    /// Another one of the same systemd.
    pub fn beside(&self, name: &str) -> Unit {
        let unit = name.to_owned();
        match self {
            Unit::Host(_) => Unit::Host(unit),
            Unit::Inside { container, .. } => Unit::Inside {
                container: *container,
                unit,
            },
        }
    }

    /// Whether another one is of the same systemd.
    pub fn is_beside(&self, other: &Unit) -> bool {
        self.beside(other.name()) == *other
    }

    /// Without the suffix that all of them have, for the first column of a line.
    pub fn subject(&self) -> String {
        let short = foreign(self.name().trim_end_matches(".service"));
        match self {
            Unit::Host(_) => short,
            Unit::Inside { container, .. } => format!("{short} in container {container}"),
        }
    }

    /// What comes before systemctl(1) where its systemd is: nothing, or Proxmox's own way in, as the container's root
    /// (pve-container, PVE/CLI/pct.pm, exec: lxc-attach).
    fn way_in(&self) -> Vec<String> {
        match self {
            Unit::Host(_) => Vec::new(),
            Unit::Inside { container, .. } => ["pct", "exec", &container.to_string(), "--"]
                .map(str::to_owned)
                .to_vec(),
        }
    }

    /// What has systemd do this to it, word for word. No name that is stopped begins with a dash; in a container nothing is
    /// between that and systemctl, since pct(1) has had its `--` already.
    pub fn command(&self, verb: &str) -> Vec<String> {
        let mut words = self.way_in();
        words.extend(["systemctl", verb].map(str::to_owned));
        words.extend(self.on_host().map(|_| "--".to_owned()));
        words.push(self.name().to_owned());
        words
    }

    /// The same as people type it.
    pub fn by_hand(&self, verb: &str) -> String {
        let mut words = self.way_in();
        words.extend(["systemctl".to_owned(), verb.to_owned(), foreign(self.name())]);
        words.join(" ")
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&foreign(self.name()))?;
        match self {
            Unit::Host(_) => Ok(()),
            Unit::Inside { container, .. } => write!(f, " in container {container}"),
        }
    }
}

/// What no host should be without: stopped, it takes the host's management, its sessions or its network along.
fn is_needed(unit: &str) -> bool {
    let starts = [
        "pve",
        "systemd-",
        "dbus",
        "ssh",
        "user@",
        "gpu-handoff",
        "lxc",
        "corosync",
        "ceph",
    ];
    starts.iter().any(|start| unit.starts_with(start))
}

/// The name of a service as systemd has it (systemd.unit(5)), from one without its suffix or with it; no longer than what is
/// shown of one, and none that the host needs, or a container.
pub fn service(word: &str) -> Option<String> {
    let name = word.strip_suffix(".service").unwrap_or(word);
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
    let other = [".socket", ".timer", ".target", ".scope", ".slice", ".mount"];
    let is_good = !name.is_empty()
        && name.len() <= 56
        && name.chars().all(is_allowed)
        && !name.starts_with(['-', '.'])
        && !other.iter().any(|suffix| name.ends_with(suffix));
    (is_good && !is_needed(name)).then(|| format!("{name}.service"))
}

/// Whether a unit is a service that may be stopped at all.
pub fn can_be_stopped(unit: &str) -> bool {
    unit.ends_with(".service") && service(unit).as_deref() == Some(unit)
}

/// What systemd says of a unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The unit.
    pub unit: Unit,
    /// What it said, or why it said nothing.
    pub said: Result<Said, String>,
}

impl Facts {
    /// Of one that gave no answer, and why.
    pub fn none(unit: &Unit, why: &str) -> Facts {
        Facts {
            unit: unit.clone(),
            said: Err(why.to_owned()),
        }
    }
}

/// What it said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// Its state (org.freedesktop.systemd1(5), ActiveState): "active" where it has been started and runs.
    pub state: String,
    /// What runs and is stopped with it, since it needs it: each before what it needs. Foreign text, of a container.
    pub takes_along: Vec<String>,
}

impl Said {
    /// Whether it runs: a stop ends it, and a start makes it as it was. One that is being started or stopped is neither.
    pub fn runs(&self) -> bool {
        runs(&self.state)
    }
}

/// Whether it has been started and runs, by this state.
pub(crate) fn runs(state: &str) -> bool {
    matches!(state, "active" | "reloading")
}

/// Why a unit is not stopped that the settings would have stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kept {
    /// Its systemd gave no answer; why.
    NoAnswer(String),
    /// It does not run, as far as systemd knows; its state.
    State(String),
    /// This one is stopped with it, and must not be.
    TakesAlong(String),
}

/// Through these, in a unit that is stopped, systemd stops others (systemd, src/core/unit-dependency-atom.c,
/// UNIT_ATOM_PROPAGATE_STOP). One that a version does not know is not in its answer.
const STOPPED_WITH: [&str; 5] = ["RequiredBy", "RequisiteOf", "BoundBy", "ConsistsOf", "PropagatesStopTo"];

/// Most units that are asked about for one; with more of them it is not stopped.
const MOST: usize = 64;

/// Most that are stopped with one: each may take its deadline to start again, and a way home has to end in time.
const MOST_ALONG: usize = 8;

/// The same inside a container, which says what it likes.
const MOST_ALONG_INSIDE: usize = 3;

/// A unit as systemd shows it: its state, and what it would stop.
type Shown = BTreeMap<String, (String, Vec<String>)>;

/// Asks about units. A program that does not answer holds this up as long as it likes.
pub fn read(root: &Root, units: &[Unit]) -> Vec<Facts> {
    let facts = |unit: &Unit| Facts {
        unit: unit.clone(),
        said: of(root, unit),
    };
    units.iter().map(facts).collect()
}

/// What systemd says of one, and of those that it takes along.
fn of(root: &Root, unit: &Unit) -> Result<Said, String> {
    let mut shown = Shown::new();
    let mut next = vec![unit.name().to_owned()];
    while !next.is_empty() {
        show(root, unit, &next, &mut shown)?;
        let named = shown.values().flat_map(|(_, others)| others);
        let new: BTreeSet<&String> = named.filter(|name| !shown.contains_key(*name)).collect();
        next = new.into_iter().cloned().collect();
        if shown.len() + next.len() > MOST {
            return Err(format!("more than {MOST} others depend on it"));
        }
    }
    let (state, _) = shown.get(unit.name()).ok_or("systemd does not know it")?;
    let mut takes_along = Vec::new();
    visit(&shown, unit.name(), &mut BTreeSet::new(), &mut takes_along);
    takes_along.retain(|name| name != unit.name());
    let most = match unit {
        Unit::Host(_) => MOST_ALONG,
        Unit::Inside { .. } => MOST_ALONG_INSIDE,
    };
    if takes_along.len() > most {
        return Err(format!("{} others would be stopped with it", takes_along.len()));
    }
    Ok(Said {
        state: harmless(state, 32),
        takes_along,
    })
}

/// What is stopped with a unit, each before what it needs, and the unit itself at the end.
fn visit(shown: &Shown, name: &str, seen: &mut BTreeSet<String>, order: &mut Vec<String>) {
    let Some((_, others)) = shown.get(name).filter(|(state, _)| !is_down(state)) else {
        return;
    };
    if !seen.insert(name.to_owned()) {
        return;
    }
    for other in others {
        visit(shown, other, seen, order);
    }
    order.push(name.to_owned());
}

/// Whether nothing of it runs, as far as systemd knows, by this state.
pub(crate) fn is_down(state: &str) -> bool {
    matches!(state, "inactive" | "failed")
}

/// One question to systemctl. A unit that it does not know is "inactive" there.
fn show(root: &Root, unit: &Unit, names: &[String], shown: &mut Shown) -> Result<(), String> {
    let properties = format!("--property=Id,ActiveState,{}", STOPPED_WITH.join(","));
    let mut words = unit.way_in();
    words.extend(["systemctl".to_owned(), "show".to_owned(), properties]);
    words.extend(names.iter().cloned());
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let stdin = io::stdin();
    let said = root
        .program_for(&words, Some(stdin.as_fd()))
        .map_err(|e| format!("{} cannot be run: {e}", words[0]))?;
    if !said.ok {
        return Err(harmless(&one_line(&said.stderr), 200));
    }
    for (block, name) in said.stdout.split("\n\n").zip(names) {
        let values = |key: &str| block.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        let state = values("ActiveState").unwrap_or_default().to_owned();
        let words = STOPPED_WITH.iter().filter_map(|key| values(key));
        // No option, whatever a container calls it.
        let others = words
            .flat_map(str::split_whitespace)
            .filter(|name| !name.starts_with('-'));
        shown.insert(name.clone(), (state, others.map(str::to_owned).collect()));
    }
    for name in names {
        shown.entry(name.clone()).or_default();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_of_the_host_is_its_name_and_one_inside_a_container_says_where() {
        let host = Unit::host("ollama.service");
        let inside = Unit::Inside {
            container: "104".parse().unwrap(),
            unit: "ollama.service".to_owned(),
        };
        for (unit, json, text, stop) in [
            (
                &host,
                "\"ollama.service\"",
                "ollama.service",
                "systemctl stop -- ollama.service",
            ),
            (
                &inside,
                r#"{"container":104,"unit":"ollama.service"}"#,
                "ollama.service in container 104",
                "pct exec 104 -- systemctl stop ollama.service",
            ),
        ] {
            assert_eq!(serde_json::to_string(unit).unwrap(), json);
            assert_eq!(&serde_json::from_str::<Unit>(json).unwrap(), unit);
            assert_eq!(unit.to_string(), text);
            assert_eq!(unit.command("stop").join(" "), stop);
        }
        assert_eq!(host.by_hand("status"), "systemctl status ollama.service");
        assert_eq!(inside.subject(), "ollama in container 104");
        assert_eq!(
            Unit::host("a\u{1b}b.service").by_hand("stop"),
            "systemctl stop a\\u{1b}b.service"
        );
        assert!(serde_json::from_str::<Unit>(r#"{"container":99,"unit":"x.service"}"#).is_err());
    }

    /// A host on which systemctl says this of these units, in their order.
    fn host(answers: &[(&str, &str)], way_in: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("programs")).unwrap();
        for (names, answer) in answers {
            let properties = STOPPED_WITH.join(",");
            let file = format!("{way_in}systemctl show --property=Id,ActiveState,{properties} {names}");
            std::fs::write(dir.path().join("programs").join(file), answer).unwrap();
        }
        dir
    }

    #[test]
    fn what_needs_a_unit_goes_down_with_it_and_is_named_before_what_it_needs() {
        let dir = host(
            &[
                (
                    "dcgm.service",
                    "Id=dcgm.service\nActiveState=active\nRequiredBy=exporter.service off.service\nConsistsOf=\n",
                ),
                (
                    "exporter.service off.service",
                    "ActiveState=active\nBoundBy=scrape.service dcgm.service -x\n\nActiveState=inactive\nRequiredBy=none.service\n",
                ),
                (
                    "none.service scrape.service",
                    "ActiveState=inactive\n\nActiveState=activating\n",
                ),
            ],
            "",
        );
        let root = Root::at(dir.path());
        let facts = read(&root, &[Unit::host("dcgm.service"), Unit::host("other.service")]);
        let said = facts[0].said.clone().unwrap();
        assert!(said.runs());
        assert_eq!(said.takes_along, ["scrape.service", "exporter.service"]);
        assert!(facts[1].said.is_err(), "{:?}", facts[1]);
    }

    #[test]
    fn a_container_is_asked_by_its_own_systemctl_and_what_it_says_stays_text() {
        let dir = host(&[("x.service", "ActiveState=act\u{1b}ive\n")], "pct exec 104 -- ");
        let unit = Unit::Inside {
            container: "104".parse().unwrap(),
            unit: "x.service".to_owned(),
        };
        let said = of(&Root::at(dir.path()), &unit).unwrap();
        assert_eq!((said.state.as_str(), said.runs()), ("act\\u{1b}ive", false));
        let many: String = (0..100).map(|n| format!(" u{n}.service")).collect();
        let dir = host(
            &[("x.service", &format!("ActiveState=active\nRequiredBy={many}\n"))],
            "pct exec 104 -- ",
        );
        let said = of(&Root::at(dir.path()), &unit);
        assert_eq!(said, Err("more than 64 others depend on it".to_owned()));
    }

    #[test]
    fn what_is_being_started_or_stopped_does_not_run() {
        for (state, runs) in [
            ("active", true),
            ("reloading", true),
            ("activating", false),
            ("deactivating", false),
            ("inactive", false),
            ("failed", false),
            ("", false),
        ] {
            let said = Said {
                state: state.to_owned(),
                ..Said::default()
            };
            assert_eq!(said.runs(), runs, "{state}");
        }
    }
}
