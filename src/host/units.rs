//! What uses a GPU and can be stopped and started again: units of systemd's, of the host, of a user or inside a container that
//! goes on, and containers; and what lets a driver go without being stopped.
//!
//! Not here: whether they run, and what goes down with them ([`crate::host::unit_states`]).

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::base::text::{foreign, typed};
use crate::base::vmid::VmId;
use crate::host::belongs::Belongs;
use crate::host::ha;
use crate::host::holders::Holder;
use crate::host::unit_names::{can_be_stopped, service};

/// Such a unit, or container, by its whole name. In JSON one of the host is its name alone.
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
    /// A container of Proxmox's, with all that is in it.
    Whole {
        /// The container.
        container: VmId,
    },
    /// A container of Docker's or Podman's.
    Run {
        /// Whose.
        client: Client,
        /// Its whole id.
        id: String,
    },
    /// Of a user's systemd.
    OfUser {
        /// The user, by number.
        user: u32,
        /// The unit, by a name that [`can_be_stopped`]: the user chooses it.
        unit: String,
    },
    /// The same as a whole container of Proxmox's, where the cluster's manager looks after it: that ignores it as long as it is stopped
    /// ([`crate::host::ha`]).
    OfHa {
        /// The container.
        ha_container: VmId,
    },
    /// The use that DCGM makes of the driver, which it lets go and takes again while its service runs on.
    DriverUse {
        /// That service, of the host.
        driver_use_of: String,
    },
}

/// A program that runs containers, and is asked for them: its name is the program's, which both take the same words for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Client {
    /// docker(1).
    Docker,
    /// podman(1), as root: a container of another user is a unit of that user's.
    Podman,
}

impl Client {
    /// Its name as it writes it itself.
    fn name(self) -> &'static str {
        match self {
            Client::Docker => "Docker",
            Client::Podman => "Podman",
        }
    }

    /// What is run.
    pub(crate) fn program(self) -> &'static str {
        match self {
            Client::Docker => "docker",
            Client::Podman => "podman",
        }
    }

    /// A container of its, by its whole id: 64 hexadecimal digits (moby, pkg/stringid; podman the same).
    fn container(self, id: &str) -> Option<Unit> {
        let is_id = id.len() == 64 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        is_id.then(|| Unit::Run {
            client: self,
            id: id.to_owned(),
        })
    }
}

impl Unit {
    /// One of the host's.
    pub fn host(name: &str) -> Unit {
        Unit::Host(name.to_owned())
    }

    /// The one that a process is of: of the host, or inside a container, by a name that can be stopped there; where it has none,
    /// the container.
    pub fn of(holder: &Holder) -> Option<Unit> {
        Unit::of_what(&holder.belongs_to)
    }

    /// The same of what a process belongs to.
    pub fn of_what(belongs_to: &Belongs) -> Option<Unit> {
        match belongs_to {
            Belongs::Unit(name) => Some(Unit::host(name)),
            Belongs::Container { ctid, unit } => {
                let container = ctid.parse().ok()?;
                Some(match unit.as_deref().filter(|name| can_be_stopped(name)) {
                    Some(name) => Unit::Inside {
                        container,
                        unit: name.to_owned(),
                    },
                    None => Unit::Whole { container },
                })
            }
            Belongs::Docker(id) => Client::Docker.container(id),
            Belongs::Podman(id) => Client::Podman.container(id),
            Belongs::UserUnit { uid: Some(uid), name } => can_be_stopped(name).then(|| Unit::OfUser {
                user: *uid,
                unit: name.clone(),
            }),
            _ => None,
        }
    }

    /// The container of Proxmox's that it is, or is inside.
    pub fn container(&self) -> Option<VmId> {
        match self {
            Unit::Inside { container, .. }
            | Unit::Whole { container }
            | Unit::OfHa {
                ha_container: container,
            } => Some(*container),
            Unit::Host(_) | Unit::Run { .. } | Unit::OfUser { .. } | Unit::DriverUse { .. } => None,
        }
    }

    /// Whether another one lets go with it, and is given back with it: it is the same, or is inside it, or is what runs on.
    pub fn holds(&self, other: &Unit) -> bool {
        self == other
            || (self.is_whole() && self.container() == other.container())
            || self.runs_on().is_some_and(|service| service == *other)
    }

    /// The service that runs on while it lets the driver go.
    pub fn runs_on(&self) -> Option<Unit> {
        match self {
            Unit::DriverUse { driver_use_of } => Some(Unit::host(driver_use_of)),
            _ => None,
        }
    }

    /// The word by which 'services' names it.
    pub fn word(&self) -> Option<String> {
        match self {
            Unit::Host(name) => Some(name.clone()),
            Unit::OfUser { user, unit } => Some(format!("user-{user}/{unit}")),
            _ => None,
        }
    }

    /// Whether it is looked after by a systemd that we reach without entering anything.
    pub fn is_of_systemd(&self) -> bool {
        matches!(self, Unit::Host(_) | Unit::OfUser { .. })
    }

    /// Whether it is a container, which takes its time to go down and to come up.
    pub fn is_container(&self) -> bool {
        self.is_whole() || matches!(self, Unit::Run { .. })
    }

    /// Whether it is a container of Proxmox's as a whole, whoever looks after it.
    pub fn is_whole(&self) -> bool {
        matches!(self, Unit::Whole { .. } | Unit::OfHa { .. })
    }

    /// Whether it is one that the cluster's manager is owed.
    pub fn is_of_ha(&self) -> bool {
        matches!(self, Unit::OfHa { .. })
    }

    /// Whether it is this container of Proxmox's as a whole.
    pub fn is_whole_of(&self, container: VmId) -> bool {
        self.is_whole() && self.container() == Some(container)
    }

    /// Its name, if it is one of the host's.
    pub fn on_host(&self) -> Option<&str> {
        match self {
            Unit::Host(name) => Some(name),
            _ => None,
        }
    }

    /// Its name or id, wherever it is.
    pub fn name(&self) -> String {
        match self {
            Unit::Host(name)
            | Unit::Inside { unit: name, .. }
            | Unit::Run { id: name, .. }
            | Unit::OfUser { unit: name, .. }
            | Unit::DriverUse { driver_use_of: name } => name.clone(),
            Unit::Whole { container }
            | Unit::OfHa {
                ha_container: container,
            } => container.to_string(),
        }
    }

    /// Another unit of the same systemd; of a container, a container.
    pub fn beside(&self, name: &str) -> Unit {
        let unit = name.to_owned();
        match self {
            Unit::Host(_) => Unit::Host(unit),
            Unit::Inside { container, .. } => Unit::Inside {
                container: *container,
                unit,
            },
            Unit::OfUser { user, .. } => Unit::OfUser { user: *user, unit },
            whole => whole.clone(),
        }
    }

    /// Whether another one is looked after by the same program.
    pub fn is_beside(&self, other: &Unit) -> bool {
        self.beside(&other.name()) == *other
    }

    /// Who looks after it.
    pub(crate) fn keeper(&self) -> &'static str {
        match self {
            Unit::Host(_) | Unit::Inside { .. } | Unit::OfUser { .. } => "its systemd",
            Unit::DriverUse { .. } => "dcgmi",
            Unit::Whole { .. } | Unit::OfHa { .. } => "Proxmox",
            Unit::Run { client, .. } => client.name(),
        }
    }

    /// Without the suffix that all units have, for the first column of a line.
    pub fn subject(&self) -> String {
        match self {
            Unit::Host(name) => foreign(name.trim_end_matches(".service")),
            Unit::Inside { container, unit } => {
                format!(
                    "{} in container {container}",
                    foreign(unit.trim_end_matches(".service"))
                )
            }
            Unit::OfUser { user, unit } => format!("{} of user {user}", foreign(unit.trim_end_matches(".service"))),
            Unit::DriverUse { driver_use_of } => foreign(driver_use_of.trim_end_matches(".service")),
            Unit::Whole { .. } | Unit::Run { .. } | Unit::OfHa { .. } => self.to_string(),
        }
    }

    /// What a person does where it does not start again.
    pub(crate) fn start_by_hand(&self) -> String {
        let (status, start) = (self.by_hand("status"), self.by_hand("start"));
        match self {
            // It starts here before it is HA's again.
            Unit::OfHa { ha_container } => format!("see '{status}', then 'pct start {ha_container}' and '{start}'"),
            _ => format!("see '{status}' for why, then '{start}'"),
        }
    }

    /// systemctl(1) for its systemd, by Proxmox's own way in, as the container's root (pve-container, PVE/CLI/pct.pm, exec:
    /// lxc-attach); or as that user, of no group, with nothing of our environment. A user's systemd is found by
    /// XDG_RUNTIME_DIR and takes orders on a socket of its own there, without a bus and without a session (systemd,
    /// src/shared/bus-util.c, bus_connect_user_systemd); `--machine=UID@` would have to make one by PAM first (systemd,
    /// src/libsystemd/sd-bus/sd-bus.c, bus_set_address_machine).
    pub(crate) fn systemctl(&self) -> Vec<String> {
        let words = match self {
            Unit::Inside { container, .. } => format!("pct exec {container} -- systemctl"),
            Unit::OfUser { user, .. } => format!(
                "env -i XDG_RUNTIME_DIR=/run/user/{user} DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/{user}/bus setpriv \
                 --reuid={user} --regid={NOGROUP} --clear-groups systemctl --user"
            ),
            _ => "systemctl".to_owned(),
        };
        words.split_whitespace().map(str::to_owned).collect()
    }

    /// What has it stopped or started, word for word. No name that is stopped begins with a dash; in a container nothing is
    /// between that and systemctl, since pct(1) has had its `--` already. `within_s`: a container that has not shut down in so many
    /// seconds is ended by Proxmox (pct(1), shutdown), or by its client.
    pub fn command(&self, verb: Verb, within_s: u64) -> Vec<String> {
        let words: Vec<&str> = match (self, verb) {
            (Unit::Host(name) | Unit::OfUser { unit: name, .. }, _) => vec![verb.word(), "--", name],
            (Unit::Inside { unit, .. }, _) => vec![verb.word(), unit],
            (Unit::DriverUse { .. }, verb) => {
                let how = if verb == Verb::Stop {
                    "--detach-driver"
                } else {
                    "--attach-driver"
                };
                return ["dcgmi", "set", how].map(str::to_owned).to_vec();
            }
            (Unit::Whole { .. } | Unit::OfHa { .. }, Verb::Stop) => {
                let words = ["pct", "shutdown", &self.name(), "--forceStop", "1", "--timeout"];
                let mut words = words.map(str::to_owned).to_vec();
                words.push(within_s.to_string());
                return words;
            }
            (Unit::Whole { .. } | Unit::OfHa { .. }, Verb::Start | Verb::Restart) => {
                return ["pct", "start", &self.name()].map(str::to_owned).to_vec();
            }
            (Unit::Run { client, id }, Verb::Start | Verb::Restart) => {
                return [client.program(), verb.word(), id].map(str::to_owned).to_vec();
            }
            (Unit::Run { client, id }, Verb::Stop) => {
                let words = [client.program(), verb.word(), "-t", &within_s.to_string(), id];
                return words.map(str::to_owned).to_vec();
            }
        };
        let words = words.into_iter().map(str::to_owned);
        self.systemctl().into_iter().chain(words).collect()
    }

    /// What waits for the end of one that is ending, no longer than that may take.
    pub(crate) fn await_end(&self, within_s: u64) -> Option<Vec<String>> {
        let Unit::Run { client, id } = self else { return None };
        // For timeout(1) that is without end.
        if within_s == 0 {
            return None;
        }
        let within = within_s.to_string();
        // In the group of who asks, with which it is killed.
        let words = ["timeout", "--foreground", &within, client.program(), "wait", id];
        Some(words.map(str::to_owned).to_vec())
    }

    /// What stops it, starts it, or shows how it is ("status"), as people type it.
    pub fn by_hand(&self, verb: &str) -> String {
        match self {
            Unit::Host(name) => format!("systemctl {verb} {}", typed(name)),
            Unit::Inside { unit, .. } => format!("{} {verb} {}", self.systemctl().join(" "), typed(unit)),
            Unit::OfUser { user, unit } => {
                format!("systemctl --user --machine={user}@.host {verb} {}", typed(unit))
            }
            Unit::Whole { container } => {
                let verb = if verb == "stop" { "shutdown" } else { verb };
                format!("pct {verb} {container}")
            }
            Unit::OfHa { ha_container } => match verb {
                "stop" => ha::request(*ha_container, "stopped").join(" "),
                "start" => ha::request(*ha_container, ha::STARTED).join(" "),
                _ => format!("pct {verb} {ha_container}"),
            },
            Unit::Run { client, id } => {
                let verb = if verb == "status" { "inspect" } else { verb };
                format!("{} {verb} {id:.12}", client.program())
            }
            Unit::DriverUse { driver_use_of } => match verb {
                "stop" => self.command(Verb::Stop, 0).join(" "),
                "start" => self.command(Verb::Start, 0).join(" "),
                _ => format!("systemctl {verb} {}", typed(driver_use_of)),
            },
        }
    }
}

/// The group of who needs none (base-passwd, nogroup): a user's systemd looks at the user alone.
const NOGROUP: u32 = 65534;

/// What is done to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// It ends, and stays down.
    Stop,
    /// It runs again.
    Start,
    /// It ends if it runs, and runs anew.
    Restart,
}

impl Verb {
    /// As systemctl(1), docker(1) and podman(1) have it.
    fn word(self) -> &'static str {
        match self {
            Verb::Stop => "stop",
            Verb::Start => "start",
            Verb::Restart => "restart",
        }
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unit::Host(name) => f.write_str(&foreign(name)),
            Unit::Inside { container, unit } => write!(f, "{} in container {container}", foreign(unit)),
            Unit::Whole { container }
            | Unit::OfHa {
                ha_container: container,
            } => write!(f, "container {container}"),
            Unit::Run { client, id } => write!(f, "{} container {id:.12}", client.name()),
            Unit::OfUser { user, unit } => write!(f, "{} of user {user}", foreign(unit)),
            Unit::DriverUse { driver_use_of } => {
                write!(f, "the use that {} makes of the driver", foreign(driver_use_of))
            }
        }
    }
}

/// A service as 'services' names it: one of the host, or `user-UID/` and one of that user's systemd. In the form of [`Unit::word`].
pub fn named(word: &str) -> Option<String> {
    let Some((user, name)) = word.split_once('/') else {
        return service(word);
    };
    let digits = user.strip_prefix("user-")?;
    let user: u32 = digits.parse().ok().filter(|user: &u32| user.to_string() == digits)?;
    // No user has the last number (setresuid(2)).
    let unit = service(name).filter(|_| user != u32::MAX)?;
    Unit::OfUser { user, unit }.word()
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
    /// Its state (org.freedesktop.systemd1(5), ActiveState): "active" where it has been started and runs; of a container as its
    /// program has it: "running".
    pub state: String,
    /// Why it is not to be stopped all the same: a clause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub never: Option<String>,
    /// What runs and is stopped with it, since it needs it: each before what it needs. Foreign text, of a container.
    pub takes_along: Vec<String>,
    /// What would start these again whenever they are used or due, and is stopped before them: sockets, paths, timers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub started_by: Vec<String>,
    /// How long it has for its end by its own word, seconds: a container of a client's.
    #[serde(default)]
    pub ends_within_s: u64,
    /// What the cluster's manager makes of it, if it is one of its containers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ha: Option<Ha>,
}

impl Said {
    /// Whether it runs: a stop ends it, and a start makes it as it was. One that is being started or stopped is neither.
    pub fn runs(&self) -> bool {
        runs(&self.state)
    }
}

/// What the cluster's manager makes of one of its containers ([`crate::host::ha`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ha {
    /// It has it started, and looks after it.
    LooksAfter,
    /// It leaves it alone.
    Ignores,
    /// It is at work on it, or cannot go on: a clause.
    IsAtIt(String),
}

/// Whether it has been started and runs, by this state.
pub(crate) fn runs(state: &str) -> bool {
    matches!(state, "active" | "reloading" | "running")
}

/// Whether nothing of it runs, as far as systemd knows, by this state.
pub(crate) fn is_down(state: &str) -> bool {
    matches!(state, "inactive" | "failed" | "stopped")
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
        let of_user = Unit::OfUser {
            user: 1000,
            unit: "ollama.service".to_owned(),
        };
        let driver_use = Unit::DriverUse {
            driver_use_of: "nvidia-dcgm.service".to_owned(),
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
            (
                &of_user,
                r#"{"user":1000,"unit":"ollama.service"}"#,
                "ollama.service of user 1000",
                "env -i XDG_RUNTIME_DIR=/run/user/1000 DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/1000/bus setpriv \
                 --reuid=1000 --regid=65534 --clear-groups systemctl --user stop -- ollama.service",
            ),
            (
                &driver_use,
                r#"{"driver_use_of":"nvidia-dcgm.service"}"#,
                "the use that nvidia-dcgm.service makes of the driver",
                "dcgmi set --detach-driver",
            ),
        ] {
            assert_eq!(serde_json::to_string(unit).unwrap(), json);
            assert_eq!(&serde_json::from_str::<Unit>(json).unwrap(), unit);
            assert_eq!(unit.to_string(), text);
            assert_eq!(unit.command(Verb::Stop, 30).join(" "), stop);
        }
        let whole = Unit::Whole {
            container: "104".parse().unwrap(),
        };
        let words = "pct shutdown 104 --forceStop 1 --timeout 45";
        assert_eq!(whole.command(Verb::Stop, 45).join(" "), words);
        let id = "ec23".repeat(16);
        let podman = Client::Podman.container(&id).unwrap();
        assert_eq!(
            podman.command(Verb::Stop, 45).join(" "),
            format!("podman stop -t 45 {id}")
        );
        assert_eq!(host.by_hand("status"), "systemctl status ollama.service");
        assert_eq!(
            of_user.by_hand("status"),
            "systemctl --user --machine=1000@.host status ollama.service"
        );
        assert_eq!(driver_use.by_hand("start"), "dcgmi set --attach-driver");
        assert_eq!(driver_use.by_hand("status"), "systemctl status nvidia-dcgm.service");
        assert!(driver_use.holds(&Unit::host("nvidia-dcgm.service")) && !driver_use.holds(&host));
        assert!(!driver_use.is_beside(&Unit::host("nvidia-dcgm.service")));
        assert!(of_user.is_beside(&of_user.beside("x.service")) && !of_user.is_beside(&host));
        assert_eq!(inside.subject(), "ollama in container 104");
        assert_eq!(
            Unit::host("a\u{1b}b.service").by_hand("stop"),
            "systemctl stop 'a\\u{1b}b.service'"
        );
        assert!(serde_json::from_str::<Unit>(r#"{"container":99,"unit":"x.service"}"#).is_err());
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
