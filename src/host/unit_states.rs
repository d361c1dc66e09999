//! Whether what uses a GPU runs that can be stopped, and what goes down with it: systemd is asked, or who runs a container.
//!
//! Asked on the way out alone: the way home depends on nothing that is said here.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::AsFd;

use serde::{Deserialize, Serialize};

use crate::base::root::Root;
use crate::base::sets::IntoSet as _;
use crate::base::text::{harmless, one_line};
use crate::base::vmid::VmId;
use crate::host::ha;
use crate::host::unit_names::is_starter;
use crate::host::units::{Client, Facts, Ha, Said, Unit, is_down};

/// Through these, in a unit that is stopped, systemd stops others (systemd, src/core/unit-dependency-atom.c,
/// UNIT_ATOM_PROPAGATE_STOP). One that a version does not know is not in its answer.
const STOPPED_WITH: [&str; 5] = ["RequiredBy", "RequisiteOf", "BoundBy", "ConsistsOf", "PropagatesStopTo"];

/// Most units that are asked about for one; with more of them it is not stopped.
const MOST: usize = 64;

/// Most that are stopped with one: each may take its deadline to start again, and a way home has to end in time.
const MOST_ALONG: usize = 8;

/// The same inside a container, and of a user's systemd, which say what they like.
const MOST_ALONG_INSIDE: usize = 3;

/// Through this, what starts a unit whenever it is used, or due (systemd.socket(5), systemd.path(5), systemd.timer(5)).
const STARTED_BY: &str = "TriggeredBy";

/// How long a container of a client's has for its end where nothing is said of that, seconds (moby, container/container.go,
/// defaultStopTimeout; podman the same).
const ENDS_WITHIN_S: u64 = 10;

/// The longest that it has, whatever it says itself: somebody waits for the start of a VM, and a way home has to end in time.
const LONGEST_END_S: u64 = 600;

/// A unit as systemd shows it: its state, what it would stop, what starts it, and why it would not come back.
#[derive(Default)]
struct Shown {
    state: String,
    stops: Vec<String>,
    started_by: Vec<String>,
    never: Option<String>,
    /// A socket that starts a unit for each connection.
    accepts: bool,
}

/// What else is asked of a unit (org.freedesktop.systemd1(5)); one that a version does not know is not in its answer.
const MORE: &str = "LoadState,CanStart,CanStop,Transient,UpheldBy,Accept,KillMode";

/// Why a unit that is stopped would not be as it was: a clause.
fn never<'a>(name: &str, value: impl Fn(&str) -> Option<&'a str>) -> Option<String> {
    let name = harmless(name, 64);
    let is = |key: &str, wanted: &str| value(key) == Some(wanted);
    let load_state = value("LoadState").unwrap_or("loaded");
    if is("Transient", "yes") {
        return Some(format!(
            "{name} was started by systemd-run or the like, and is gone for good once it is stopped"
        ));
    }
    if !matches!(load_state, "loaded" | "") {
        return Some(format!(
            "{name} is \"{}\" for systemd, which does not start that again",
            harmless(load_state, 32)
        ));
    }
    if is("CanStart", "no") || is("CanStop", "no") {
        return Some(format!("systemd does not start and stop {name} when it is asked to"));
    }
    // The first two end all that is in it, and the others its main process alone or nothing (systemd.kill(5), KillMode=). What is no
    // service, socket or scope has none.
    if let Some(mode) = value("KillMode").filter(|mode| !matches!(*mode, "control-group" | "mixed" | "")) {
        return Some(format!(
            "{name} has KillMode={}, and what it has started goes on when it is stopped",
            harmless(mode, 32)
        ));
    }
    let upholder = value("UpheldBy").and_then(|all| all.split_whitespace().next());
    upholder.map(|by| format!("{} starts {name} again at once", harmless(by, 64)))
}

/// Units by their names.
type All = BTreeMap<String, Shown>;

/// Asks about them. A program that does not answer holds this up as long as it likes.
pub fn read(root: &Root, units: &[Unit]) -> Vec<Facts> {
    let facts = |unit: &Unit| Facts {
        unit: unit.clone(),
        said: read_one(root, unit).and_then(|said| match unit {
            Unit::Run { client, id } if said.runs() && said.never.is_none() => Ok(Said {
                never: shared(root, *client, id)?,
                ..said
            }),
            _ => Ok(said),
        }),
    };
    units.iter().map(facts).collect()
}

/// The same of one by itself, without who shares something with it.
pub(crate) fn read_one(root: &Root, unit: &Unit) -> Result<Said, String> {
    match unit {
        Unit::Host(_) | Unit::Inside { .. } | Unit::OfUser { .. } => of_systemd(root, unit),
        Unit::DriverUse { driver_use_of } => of_dcgm(root, driver_use_of),
        Unit::Whole { container }
        | Unit::OfHa {
            ha_container: container,
        } => of_proxmox(root, unit, *container),
        Unit::Run { client, id } => of_client(root, *client, id),
    }
}

/// What a program says, or why it says nothing.
fn said(root: &Root, words: &[&str]) -> Result<String, String> {
    let stdin = io::stdin();
    let said = root
        .program_for(words, Some(stdin.as_fd()))
        .map_err(|e| format!("{} cannot be run: {e}", words[0]))?;
    match said.ok {
        true => Ok(said.stdout),
        false => Err(harmless(&one_line(&said.stderr), 200)),
    }
}

/// Whether a container of Proxmox's runs, which pct(1) prints as `status: running`. One that the cluster's manager is about to stop is
/// left to it.
fn of_proxmox(root: &Root, unit: &Unit, ctid: VmId) -> Result<Said, String> {
    let answer = said(root, &["pct", "status", &ctid.to_string()])?;
    let state = answer.lines().find_map(|line| line.strip_prefix("status: "));
    // Of its current state, which ends where a snapshot's begins: a lock keeps Proxmox from both (PVE/LXC/Config.pm, check_lock).
    let config = root.text(format!("/etc/pve/lxc/{ctid}.conf")).unwrap_or_default();
    let mut current = config.lines().take_while(|line| !line.starts_with('['));
    let lock = current
        .find_map(|line| line.strip_prefix("lock:"))
        .map(|lock| harmless(lock.trim(), 32));
    let by_ha = ha::wanted(root, ctid).map_err(|e| format!("what HA is to do with it cannot be read: {e}"))?;
    let for_manager = ha::own_state(root, ctid);
    let of_ha = match (by_ha.as_deref(), for_manager.as_deref()) {
        (None, _) => None,
        // It may start it again until it has had its round; one that it is owed is not asked about to be stopped.
        (Some(ha::IGNORED), Some(_)) if !unit.is_of_ha() => Some(Ha::IsAtIt(format!(
            "HA was told to ignore {unit}, and has not let go of it yet"
        ))),
        (Some(ha::IGNORED), _) => Some(Ha::Ignores),
        // New to it, or as it is to be.
        (Some(ha::STARTED), None | Some(ha::STARTED)) => Some(Ha::LooksAfter),
        (Some(ha::STARTED), Some(state)) => Some(Ha::IsAtIt(format!(
            "{unit} is \"{state}\" for HA, which is at work on it, or cannot go on"
        ))),
        (Some(state), _) => Some(Ha::IsAtIt(format!(
            "{unit} is \"{state}\" for HA, which ends it by itself"
        ))),
    };
    Ok(Said {
        state: harmless(state.unwrap_or("unknown"), 32),
        never: lock.map(|lock| format!("{unit} is locked ({lock})")),
        ha: of_ha,
        ..Said::default()
    })
}

/// Whether a container of Docker's or Podman's runs, and whether it would be there to be started again. `AutoRemove` is the
/// `--rm` of its start; a label is set for one that a unit of systemd's looks after (podman-systemd.unit(5)), and for one of Docker
/// Swarm's, which starts another in its place (moby, daemon/cluster/executor/container/container.go, labels). `StopTimeout` is what
/// a stop without `-t` would give it (`--stop-timeout`; compose's `stop_grace_period`).
fn of_client(root: &Root, client: Client, id: &str) -> Result<Said, String> {
    const ASKED: &str = "{{.State.Status}}\n{{.HostConfig.AutoRemove}}\n{{index .Config.Labels \"PODMAN_SYSTEMD_UNIT\"}}\n{{index .Config.Labels \"com.docker.swarm.task.id\"}}\n{{.Config.StopTimeout}}";
    let answer = said(root, &[client.program(), "container", "inspect", "--format", ASKED, id])?;
    let mut lines = answer.lines();
    let mut line = || lines.next().unwrap_or_default().trim();
    let (state, goes, keeper, task, timeout) = (line(), line(), line(), line(), line());
    let never = match (goes, keeper) {
        _ if !matches!(task, "" | "<no value>") => Some("Docker Swarm looks after it, and starts another".to_owned()),
        ("false", "" | "<no value>") => None,
        ("false", unit) => Some(format!("{} of systemd's looks after it", harmless(unit, 64))),
        ("true", _) => Some("it was started with --rm, and is gone for good once it is stopped".to_owned()),
        _ => Some("it cannot be seen whether it could be started again".to_owned()),
    };
    Ok(Said {
        state: harmless(state, 32),
        never,
        ends_within_s: ends_within(timeout),
        ..Said::default()
    })
}

/// Why a container is not stopped whose namespaces another one shares that runs: the kernel ends all that is in a PID namespace with its
/// first process (pid_namespaces(7)), and a start makes new ones, while the other keeps what is left of the old: a network that leads
/// nowhere. Both clients write `container:` and which one (moby, api/types/container/hostconfig.go, NetworkMode, PidMode, IpcMode;
/// podman, libpod/container_inspect.go and container_inspect_linux.go).
fn shared(root: &Root, client: Client, id: &str) -> Result<Option<String>, String> {
    const ASKED: &str = "{{.Id}} {{.HostConfig.NetworkMode}},{{.HostConfig.PidMode}},{{.HostConfig.IpcMode}}";
    let program = client.program();
    let inspect = |format: &str, ids: &str| {
        let mut words = vec![program, "container", "inspect", "--format", format];
        words.extend(ids.split_whitespace());
        said(root, &words)
    };
    let ask = || inspect(ASKED, &said(root, &[program, "ps", "--quiet", "--no-trunc"])?);
    // One of them may have ended in between.
    let answer = ask().or_else(|_| ask())?;
    let lines = answer.lines().filter_map(|line| line.split_once(' '));
    let modes = lines.flat_map(|(of, modes)| modes.split(',').map(move |mode| (of, mode)));
    let joined = modes.filter_map(|(of, mode)| Some((of, mode.strip_prefix("container:")?)));
    let joined: Vec<(&str, &str)> = joined.filter(|(of, _)| *of != id).collect();
    let is_id = |which: &str| which.len() >= SHORT_ID && which.bytes().all(|b| b.is_ascii_hexdigit());
    let own = match joined.iter().all(|(_, which)| is_id(which)) {
        true => String::new(),
        false => inspect("{{.Name}}", id)?,
    };
    let own = own.trim().trim_start_matches('/');
    let is_it = |which: &str| which == own || (is_id(which) && id.starts_with(which));
    Ok(joined.iter().find(|(_, which)| is_it(which)).map(|(of, _)| {
        let of = harmless(of, SHORT_ID);
        format!("container {of} shares its namespaces, and would end with it or be cut off")
    }))
}

/// Of an id, what both clients show (moby, pkg/stringid; podman the same).
const SHORT_ID: usize = 12;

/// The seconds that a container has for its end: those of its client's, which below zero are for ever (docker(1), `--stop-timeout`;
/// Podman's are without a sign, and so very many), or `<nil>`.
fn ends_within(timeout: &str) -> u64 {
    match timeout.parse::<u64>() {
        Ok(seconds) => seconds.min(LONGEST_END_S),
        Err(_) if timeout.starts_with('-') => LONGEST_END_S,
        Err(_) => ENDS_WITHIN_S,
    }
}

/// Whether DCGM runs, and can let the driver go: what its program can set is in its help. Since DCGM 4.5 (NVIDIA/DCGM,
/// dcgmi/CommandLineParser.cpp, "detach-driver").
fn of_dcgm(root: &Root, service: &str) -> Result<Said, String> {
    const OPTION: &str = "--detach-driver";
    if !said(root, &["dcgmi", "set", "--help"])?.contains(OPTION) {
        return Err(format!("dcgmi knows no {OPTION}"));
    }
    let Said { state, .. } = of_systemd(root, &Unit::host(service))?;
    Ok(Said {
        state,
        ..Said::default()
    })
}

/// What systemd says of one, of those that it takes along, and of what starts these.
fn of_systemd(root: &Root, unit: &Unit) -> Result<Said, String> {
    let mut all = All::new();
    let own = unit.name();
    let mut next = vec![own.clone()];
    while !next.is_empty() {
        show(root, unit, &next, &mut all)?;
        let named = all.values().flat_map(|shown| &shown.stops);
        let new: BTreeSet<&String> = named.filter(|name| !all.contains_key(*name)).into_set();
        next = new.into_iter().cloned().collect();
        if all.len() + next.len() > MOST {
            return Err(format!("more than {MOST} others depend on it"));
        }
    }
    let state = all.get(&own).map(|shown| shown.state.clone());
    let mut takes_along = Vec::new();
    visit(&all, &own, &mut BTreeSet::new(), &mut takes_along);
    let starters: BTreeSet<&String> = takes_along.iter().flat_map(|name| &all[name].started_by).into_set();
    let new: Vec<String> = starters
        .iter()
        .filter(|name| !all.contains_key(**name))
        .copied()
        .cloned()
        .collect();
    let starters: Vec<String> = starters.into_iter().cloned().collect();
    if starters.len() > MOST {
        return Err(format!("more than {MOST} others start it"));
    }
    if !new.is_empty() {
        show(root, unit, &new, &mut all)?;
    }
    let runs = |name: &String| all.get(name).is_some_and(|shown| !is_down(&shown.state));
    let started_by: Vec<String> = starters.into_iter().filter(runs).collect();
    takes_along.retain(|name| *name != own);
    let most = match unit {
        Unit::Inside { .. } | Unit::OfUser { .. } => MOST_ALONG_INSIDE,
        _ => MOST_ALONG,
    };
    let others = takes_along.len() + started_by.len();
    if others > most {
        return Err(format!("{others} others would be stopped with it"));
    }
    let needed = started_by.iter().find(|name| !is_starter(name));
    let needed = needed.map(|name| format!("{} starts it again, and is not to be stopped", harmless(name, 64)));
    let accepting = started_by.iter().find(|name| all[*name].accepts);
    let accepting = accepting.map(|name| {
        format!(
            "it is for one connection of {}, which nothing makes again",
            harmless(name, 64)
        )
    });
    let stopped = takes_along.iter().chain([&own]).chain(&started_by);
    let never: Vec<String> = stopped.filter_map(|name| all[name].never.clone()).collect();
    let never = needed.or(accepting).or_else(|| never.into_iter().next());
    Ok(Said {
        state: harmless(state.as_deref().unwrap_or_default(), 32),
        takes_along,
        started_by,
        never,
        ends_within_s: 0,
        ha: None,
    })
}

/// What is stopped with a unit, each before what it needs, and the unit itself at the end.
fn visit(all: &All, name: &str, seen: &mut BTreeSet<String>, order: &mut Vec<String>) {
    let Some(shown) = all.get(name).filter(|shown| !is_down(&shown.state)) else {
        return;
    };
    if !seen.insert(name.to_owned()) {
        return;
    }
    for other in &shown.stops {
        visit(all, other, seen, order);
    }
    order.push(name.to_owned());
}

/// One question to systemctl. A unit that it does not know is "inactive" there.
fn show(root: &Root, unit: &Unit, names: &[String], all: &mut All) -> Result<(), String> {
    let properties = format!(
        "--property=Id,ActiveState,{},{STARTED_BY},{MORE}",
        STOPPED_WITH.join(",")
    );
    let mut words = unit.systemctl();
    words.extend(["show".to_owned(), properties]);
    words.extend(names.iter().cloned());
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let answer = said(root, &words)?;
    for (block, name) in answer.split("\n\n").zip(names) {
        let values = |key: &str| block.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        let list = |keys: &[&str]| {
            let words = keys.iter().filter_map(|key| values(key));
            // No option, whatever a container calls it.
            let names = words
                .flat_map(str::split_whitespace)
                .filter(|name| !name.starts_with('-'));
            names.map(str::to_owned).collect()
        };
        let shown = Shown {
            state: values("ActiveState").unwrap_or_default().to_owned(),
            stops: list(&STOPPED_WITH),
            started_by: list(&[STARTED_BY]),
            never: never(name, values),
            accepts: values("Accept") == Some("yes"),
        };
        all.insert(name.clone(), shown);
    }
    for name in names {
        all.entry(name.clone()).or_default();
    }
    Ok(())
}

/// The file that has what systemctl shows of a unit of a host that is a tree of files.
#[cfg(test)]
pub(crate) fn shown_by(name: &str) -> String {
    let properties = STOPPED_WITH.join(",");
    format!("systemctl show --property=Id,ActiveState,{properties},{STARTED_BY},{MORE} {name}")
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
    /// Something else speaks against it.
    Never(String),
    /// The cluster's manager looks after it, and the settings do not have that asked.
    OfHa,
    /// That is at work on it, or cannot go on; how.
    HaIsAtIt(String),
    /// This run was started from it, or from what is stopped with it, and would end in the middle.
    Caller,
}

impl Kept {
    /// Whether it may pass: a unit on its way up can be stopped in a moment, and one on its way down has ended; and HA gets on.
    pub fn may_pass(&self) -> bool {
        match self {
            Kept::State(now) => ["activating", "deactivating", "reloading"].contains(&now.as_str()),
            Kept::HaIsAtIt(_) => true,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host on which systemctl says this of these units, in their order.
    fn host(answers: &[(&str, &str)], way_in: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("programs")).unwrap();
        for (names, answer) in answers {
            let properties = STOPPED_WITH.join(",");
            let file =
                format!("{way_in}systemctl show --property=Id,ActiveState,{properties},{STARTED_BY},{MORE} {names}");
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
        let said = of_systemd(&Root::at(dir.path()), &unit).unwrap();
        assert_eq!((said.state.as_str(), said.runs()), ("act\\u{1b}ive", false));
        let many: String = (0..100).map(|n| format!(" u{n}.service")).collect();
        let dir = host(
            &[("x.service", &format!("ActiveState=active\nRequiredBy={many}\n"))],
            "pct exec 104 -- ",
        );
        let said = of_systemd(&Root::at(dir.path()), &unit);
        assert_eq!(said, Err("more than 64 others depend on it".to_owned()));
    }

    #[test]
    fn a_users_systemd_is_asked_as_that_user() {
        let unit = Unit::OfUser {
            user: 1000,
            unit: "x.service".to_owned(),
        };
        let way_in = "env -i XDG_RUNTIME_DIR=/run/user/1000 DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/1000/bus setpriv \
                      --reuid=1000 --regid=65534 --clear-groups systemctl --user";
        let properties = STOPPED_WITH.join(",");
        let words =
            |names: &str| format!("{way_in} show --property=Id,ActiveState,{properties},{STARTED_BY},{MORE} {names}");
        let answers = [
            ("x.service", "ActiveState=active\nTriggeredBy=x.socket\n"),
            ("x.socket", "ActiveState=active\nAccept=no\n"),
        ];
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("programs")).unwrap();
        for (names, answer) in answers {
            let (name, text) = crate::base::recording::file_of(&words(names), answer.to_owned());
            std::fs::write(dir.path().join("programs").join(name), text).unwrap();
        }
        let said = of_systemd(&Root::at(dir.path()), &unit).unwrap();
        assert_eq!(
            (said.state.as_str(), said.started_by),
            ("active", vec!["x.socket".to_owned()])
        );
    }

    #[test]
    fn dcgm_lets_go_where_its_program_says_that_it_can() {
        for (help, state, said) in [
            (
                Some("dcgmi set --attach-driver\ndcgmi set --detach-driver\n"),
                "active",
                Ok("active"),
            ),
            (Some("--detach-driver\n"), "inactive", Ok("inactive")),
            (
                Some("dcgmi set --host X\n"),
                "active",
                Err("dcgmi knows no --detach-driver"),
            ),
            (None, "active", Err("dcgmi cannot be run: ")),
        ] {
            let dir = host(&[("nvidia-dcgm.service", &format!("ActiveState={state}\n"))], "");
            if let Some(help) = help {
                std::fs::write(dir.path().join("programs/dcgmi set --help"), help).unwrap();
            }
            let unit = Unit::DriverUse {
                driver_use_of: "nvidia-dcgm.service".to_owned(),
            };
            let facts = read(&Root::at(dir.path()), &[unit]);
            match (&facts[0].said, said) {
                (Ok(is), Ok(state)) => assert_eq!(is.state, state),
                (Err(is), Err(why)) => assert!(is.starts_with(why), "{is}"),
                other => panic!("{help:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn what_would_not_come_back_as_it_was_is_told_with_the_reason() {
        for (answer, why) in [
            (
                "ActiveState=active\nLoadState=loaded\nCanStart=yes\nTransient=no\n",
                None,
            ),
            (
                "ActiveState=active\nLoadState=loaded\nTransient=yes\n",
                Some("x.service was started by systemd-run or the like, and is gone for good once it is stopped"),
            ),
            (
                "ActiveState=active\nLoadState=masked\n",
                Some("x.service is \"masked\" for systemd, which does not start that again"),
            ),
            (
                "ActiveState=active\nCanStart=no\n",
                Some("systemd does not start and stop x.service when it is asked to"),
            ),
            ("ActiveState=active\nKillMode=control-group\n", None),
            ("ActiveState=active\nKillMode=mixed\n", None),
            (
                "ActiveState=active\nKillMode=process\n",
                Some("x.service has KillMode=process, and what it has started goes on when it is stopped"),
            ),
            (
                "ActiveState=active\nKillMode=none\n",
                Some("x.service has KillMode=none, and what it has started goes on when it is stopped"),
            ),
            (
                "ActiveState=active\nUpheldBy=up\u{1b}.service\n",
                Some("up\\u{1b}.service starts x.service again at once"),
            ),
        ] {
            let dir = host(&[("x.service", answer)], "");
            let said = of_systemd(&Root::at(dir.path()), &Unit::host("x.service")).unwrap();
            assert_eq!(said.never.as_deref(), why, "{answer}");
        }
        for (socket, why) in [
            ("ActiveState=active\nAccept=no\n", None),
            (
                "ActiveState=active\nAccept=yes\n",
                Some("it is for one connection of x.socket, which nothing makes again"),
            ),
        ] {
            let service = "ActiveState=active\nTriggeredBy=x.socket\n";
            let dir = host(&[("x.service", service), ("x.socket", socket)], "");
            let said = of_systemd(&Root::at(dir.path()), &Unit::host("x.service")).unwrap();
            assert_eq!(said.never.as_deref(), why, "{socket}");
            assert_eq!(said.started_by, ["x.socket"]);
        }
        let dir = host(
            &[
                ("x.service", "ActiveState=active\nTriggeredBy=dbus.socket\n"),
                ("dbus.socket", "ActiveState=active\n"),
            ],
            "",
        );
        let said = of_systemd(&Root::at(dir.path()), &Unit::host("x.service")).unwrap();
        assert_eq!(
            said.never.as_deref(),
            Some("dbus.socket starts it again, and is not to be stopped")
        );
    }

    /// A host on which these programs say something, with these files.
    fn answering(programs: &[(&str, &str)], files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let programs = programs.iter().map(|(words, text)| {
            let (name, text) = crate::base::recording::file_of(words, (*text).to_owned());
            (format!("programs/{name}"), text)
        });
        let files = files
            .iter()
            .map(|(path, text)| ((*path).to_owned(), (*text).to_owned()));
        for (path, text) in programs.chain(files) {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        dir
    }

    #[test]
    fn a_container_of_proxmoxs_is_running_or_not_and_locked_ones_and_those_that_ha_is_at_are_left_alone() {
        let (conf, resources, status) = (
            "etc/pve/lxc/104.conf",
            "etc/pve/ha/resources.cfg",
            "etc/pve/ha/manager_status",
        );
        let (started, ignored) = ("vm: 104\n\nct: 104\n\tstate started\n", "ct: 104\n\tstate ignored\n");
        let is_started = r#"{"service_status":{"ct:104":{"state":"started"}}}"#;
        let (looks_after, ignores) = (Some(Ha::LooksAfter), Some(Ha::Ignores));
        let is_at_it = |why: &str| Some(Ha::IsAtIt(why.to_owned()));
        for (state, files, ha, never) in [
            ("running", &[][..], None, None),
            ("stopped", &[], None, None),
            (
                "running",
                &[(conf, "arch: amd64\nlock: backup\n")],
                None,
                Some("container 104 is locked (backup)"),
            ),
            ("running", &[(conf, "arch: amd64\n[snap]\nlock: backup\n")], None, None),
            ("running", &[(resources, "vm: 104\n")], None, None),
            (
                "running",
                &[(resources, started), (status, is_started)],
                looks_after.clone(),
                None,
            ),
            // It is new to HA, or has no manager.
            (
                "running",
                &[(resources, started), (status, "{}")],
                looks_after.clone(),
                None,
            ),
            ("running", &[(resources, started)], looks_after.clone(), None),
            (
                "running",
                &[
                    (resources, started),
                    (status, r#"{"service_status":{"ct:104":{"state":"relocate"}}}"#),
                ],
                is_at_it("container 104 is \"relocate\" for HA, which is at work on it, or cannot go on"),
                None,
            ),
            (
                "running",
                &[(resources, "ct: 104\n\tstate disabled\n")],
                is_at_it("container 104 is \"disabled\" for HA, which ends it by itself"),
                None,
            ),
            (
                "running",
                &[(resources, ignored), (status, "{}")],
                ignores.clone(),
                None,
            ),
            (
                "running",
                &[(resources, ignored), (status, is_started)],
                is_at_it("HA was told to ignore container 104, and has not let go of it yet"),
                None,
            ),
        ] {
            let dir = answering(&[("pct status 104", &format!("status: {state}\n"))], files);
            let unit = Unit::Whole {
                container: "104".parse().unwrap(),
            };
            let facts = read(&Root::at(dir.path()), &[unit]);
            let said = facts[0].said.clone().unwrap();
            assert_eq!(
                (said.state.as_str(), said.ha.clone(), said.never.as_deref()),
                (state, ha.clone(), never),
                "{files:?}"
            );
        }
    }

    #[test]
    fn a_container_of_a_clients_is_left_alone_where_it_would_not_be_there_again() {
        let id = "0123456789abcdef".repeat(4);
        for (answer, state, never) in [
            ("running\nfalse\n\n\n<nil>\n", "running", None),
            ("running\nfalse\n<no value>\n\n10\n", "running", None),
            ("paused\nfalse\n\n", "paused", None),
            (
                "running\ntrue\n\n",
                "running",
                Some("it was started with --rm, and is gone for good once it is stopped"),
            ),
            (
                "running\nfalse\nollama.service\n",
                "running",
                Some("ollama.service of systemd's looks after it"),
            ),
            (
                "running\nfalse\n\nk3sq\n",
                "running",
                Some("Docker Swarm looks after it, and starts another"),
            ),
            (
                "running\n",
                "running",
                Some("it cannot be seen whether it could be started again"),
            ),
        ] {
            for client in [Client::Docker, Client::Podman] {
                let name = format!(
                    "{} container inspect --format {{{{.State.Status}}}}\n{{{{.HostConfig.AutoRemove}}}}\n{{{{index \
                     .Config.Labels \"PODMAN_SYSTEMD_UNIT\"}}}}\n{{{{index .Config.Labels \"com.docker.swarm.task.id\"}}}}\n{{{{.Config.StopTimeout}}}} {id}",
                    client.program()
                );
                let (all, one) = asked_of_all(client, std::slice::from_ref(&id));
                let dir = answering(&[(&name, answer), (&all, &id), (&one, &format!("{id} default,,"))], &[]);
                let unit = Unit::Run { client, id: id.clone() };
                let facts = read(&Root::at(dir.path()), &[unit]);
                let said = facts[0].said.clone().unwrap();
                assert_eq!((said.state.as_str(), said.never.as_deref()), (state, never), "{answer}");
                assert_eq!(said.ends_within_s, 10, "{answer}");
            }
        }
    }

    /// How a client is asked which containers run, and what these share.
    fn asked_of_all(client: Client, ids: &[String]) -> (String, String) {
        let client = client.program();
        let asked = "{{.Id}} {{.HostConfig.NetworkMode}},{{.HostConfig.PidMode}},{{.HostConfig.IpcMode}}";
        (
            format!("{client} ps --quiet --no-trunc"),
            format!("{client} container inspect --format {asked} {}", ids.join(" ")),
        )
    }

    /// A start gives it others, and that one keeps what is left of the old ones.
    #[test]
    fn a_container_of_a_clients_is_left_alone_where_another_one_shares_its_namespaces() {
        let ids = ["0123456789abcdef".repeat(4), "fedcba9876543210".repeat(4)];
        let [id, other] = &ids;
        let whole_id = format!("container:{id}");
        for (name, modes, is_shared) in [
            ("/ollama", "default,,private", false),
            ("/ollama", "host,host,host", false),
            ("/ollama", &format!("container:{other},private,private"), false),
            ("/ollama", "container:ollama2,private,private", false),
            ("/ollama", &format!("{whole_id},,private"), true),
            ("ollama", &format!("bridge,{whole_id},shareable"), true),
            ("ollama", &format!("bridge,private,{whole_id}"), true),
            ("/ollama", "container:ollama,,private", true),
            ("/ollama", "container:0123456789ab,,private", true),
        ] {
            for client in [Client::Docker, Client::Podman] {
                let unit = Unit::Run { client, id: id.clone() };
                let state = format!(
                    "{} container inspect --format {{{{.State.Status}}}}\n{{{{.HostConfig.AutoRemove}}}}\n{{{{index \
                     .Config.Labels \"PODMAN_SYSTEMD_UNIT\"}}}}\n{{{{index .Config.Labels \"com.docker.swarm.task.id\"}}}}\n{{{{.Config.StopTimeout}}}} {id}",
                    client.program()
                );
                let (all, modes_of) = asked_of_all(client, &ids);
                let running = format!("{id}\n{other}\n");
                let said_of = format!("{id} bridge,private,shareable\n{other} {modes}\n");
                let own_name = format!("{} container inspect --format {{{{.Name}}}} {id}", client.program());
                let answers = [
                    (state.as_str(), "running\nfalse\n\n\n<nil>\n"),
                    (&own_name, name),
                    (&all, &running),
                    (&modes_of, &said_of),
                ];
                let dir = answering(&answers, &[]);
                let facts = read(&Root::at(dir.path()), std::slice::from_ref(&unit));
                let why = "container fedcba987654 shares its namespaces, and would end with it or be cut off";
                let said = facts[0].said.clone().unwrap();
                assert_eq!(
                    said.never.as_deref(),
                    is_shared.then_some(why),
                    "{client:?} {name} {modes}"
                );
                // Whether it could be stopped is not known without that.
                let dir = answering(&answers[..3], &[]);
                let facts = read(&Root::at(dir.path()), std::slice::from_ref(&unit));
                assert!(facts[0].said.is_err(), "{:?}", facts[0]);
                assert!(read_one(&Root::at(dir.path()), &unit).unwrap().runs());
            }
        }
    }

    /// Podman's -1 has no sign.
    #[test]
    fn a_container_has_what_it_says_itself_for_its_end_and_ten_minutes_where_it_says_for_ever() {
        for (said, seconds) in [
            ("0", 0),
            ("1", 1),
            ("120", 120),
            ("600", 600),
            ("601", 600),
            ("-1", 600),
            ("18446744073709551615", 600),
            ("<nil>", 10),
            ("<no value>", 10),
            ("", 10),
        ] {
            assert_eq!(ends_within(said), seconds, "{said}");
        }
    }
}
