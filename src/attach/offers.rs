//! Who uses a VM's GPUs now and would be in the way of its start, and which settings have that stopped. Pure.
//!
//! What is offered is only what is then stopped, and started again: each is judged as if it were accepted. A process of a login
//! session, which nobody starts again, is left to its owner.

use std::collections::BTreeSet;

use crate::attach::guest::Name;
use crate::base::pci::PciAddr;
use crate::base::text::foreign;
use crate::check::facts::Facts;
use crate::host::belongs::Belongs;
use crate::host::units::Unit;
use crate::model::refusal::Reason;
use crate::model::remedy::Remedy;
use crate::plan::clients::{self, Client, Then};
use crate::settings::file::of_vm;
use crate::settings::values::{Containers, DisplayManager, Services, Settings};

/// Somebody who is in the way, and might be stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
enum One {
    /// A service of the host, or of a user, as 'services' names it.
    Service(String),
    /// Something inside a container, or a container.
    Inside(Unit),
    /// The display manager.
    Desktop,
}

/// A setting that would have somebody stopped who is in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Who that is.
    pub who: String,
    /// What is asked, without the question mark.
    question: String,
    /// How far the setting goes beyond that, a sentence.
    breadth: Option<String>,
    /// The setting.
    pub key: &'static str,
    /// Its value for that alone.
    pub value: String,
}

impl Offer {
    /// What a person is asked; `vm` has the GPU meanwhile.
    pub fn question(&self, vm: Name) -> String {
        let question = self.question.replace("{}", &format!("while {vm} runs"));
        let breadth = self.breadth.as_ref().map(|breadth| format!(" {breadth}"));
        format!("{}: {question}?{}", self.who, breadth.unwrap_or_default())
    }
}

/// Who is in the way of a start.
#[derive(Clone, Debug, Default)]
pub struct InTheWay {
    /// Of which GPUs.
    pub gpus: Vec<PciAddr>,
    /// Who might be stopped, each with its processes.
    ones: Vec<(One, Vec<i32>)>,
    /// Who else, a sentence each.
    pub others: Vec<String>,
}

/// The settings of the VM as they are now; the defaults where they are not understood.
fn settings(facts: &Facts) -> Settings {
    facts.settings.clone().unwrap_or_default()
}

impl InTheWay {
    /// Who is in the way of this VM, by the settings as they are.
    pub fn of(facts: &Facts, vm: Name) -> InTheWay {
        let given = facts.vms.iter().find(|one| one.vmid == vm.id).map(|one| &one.given);
        let mut found = InTheWay {
            gpus: given.map(|given| given.gpus.clone()).unwrap_or_default(),
            ..InTheWay::default()
        };
        if found.gpus.is_empty() {
            return found;
        }
        let (clients, reasons) = clients::of(&facts.snapshot, &found.gpus, &settings(facts));
        for client in clients.into_iter().filter(|client| is_in_the_way(client, vm)) {
            let one = match Remedy::of_suspect(&client.holder) {
                Remedy::StopService(word) | Remedy::QuitMps(Some(word)) => One::Service(word),
                Remedy::StopUserService(unit) => One::Service(unit.word().unwrap_or_default()),
                Remedy::StopInside(unit) | Remedy::StopWhole(unit) => One::Inside(unit),
                Remedy::StopDesktop => One::Desktop,
                _ => {
                    found.others.push(in_the_way(client));
                    continue;
                }
            };
            let pid = client.holder.pid;
            match found.ones.iter_mut().find(|(known, _)| *known == one) {
                Some((_, pids)) => pids.push(pid),
                None => found.ones.push((one, vec![pid])),
            }
        }
        found.others.extend(reasons.iter().map(ToString::to_string));
        if let (Err(why), false) = (&facts.settings, found.ones.is_empty()) {
            // What stands in them would be lost.
            let why = format!(
                "nothing is offered while the settings are not understood: {why}. Hint: mend them, then attach again"
            );
            found.others.push(why);
            found.give_up(facts, vm);
        }
        found
    }

    /// Nobody may be stopped: each is in the way as it is.
    fn give_up(&mut self, facts: &Facts, vm: Name) {
        let pids: Vec<i32> = self.ones.drain(..).flat_map(|(_, pids)| pids).collect();
        let (clients, _) = clients::of(&facts.snapshot, &self.gpus, &settings(facts));
        let those = clients
            .into_iter()
            .filter(|c| is_in_the_way(c, vm) && pids.contains(&c.holder.pid));
        self.others.extend(those.map(in_the_way));
    }

    /// The settings as they would be with all of it accepted: of these systemd is to be asked before [`InTheWay::judged`].
    pub fn accepted(&self, facts: &Facts) -> Settings {
        let mut settings = settings(facts);
        for (one, _) in &self.ones {
            match one {
                One::Service(name) => match &mut settings.services {
                    Services::Also(names) if names.contains(name) => {}
                    Services::Also(names) => names.push(name.clone()),
                    services => *services = Services::Also(vec![name.clone()]),
                },
                One::Inside(Unit::Whole { .. }) => settings.containers = Containers::Shutdown,
                One::Inside(_) if settings.containers == Containers::Refuse => {
                    settings.containers = Containers::Release;
                }
                One::Inside(_) => {}
                One::Desktop => settings.display_manager = DisplayManager::Stop,
            }
        }
        settings
    }

    /// Without those that would not be stopped all the same: these are in the way, with the reason.
    #[must_use]
    pub fn judged(mut self, facts: &Facts, vm: Name) -> InTheWay {
        loop {
            let (clients, reasons) = clients::of(&facts.snapshot, &self.gpus, &self.accepted(facts));
            let there: Vec<Client> = clients.into_iter().filter(|client| is_in_the_way(client, vm)).collect();
            let stays = |pids: &[i32]| there.iter().find(|client| pids.contains(&client.holder.pid));
            let Some(at) = self.ones.iter().position(|(_, pids)| stays(pids).is_some()) else {
                let mut said = BTreeSet::new();
                self.others.retain(|other| said.insert(other.clone()));
                return self;
            };
            let (one, pids) = self.ones.remove(at);
            // Why it would not: said of the unit, or of the container that it is in.
            let is_why = |reason: &&Reason| match (reason, &one) {
                (Reason::Kept { unit, .. }, One::Service(word)) => unit.word().as_ref() == Some(word),
                (Reason::Kept { unit, .. }, One::Inside(inside)) => unit.holds(inside),
                (Reason::Kept { unit, .. }, One::Desktop) => unit.on_host().is_some(),
                _ => false,
            };
            let why: Vec<String> = reasons.iter().filter(is_why).map(ToString::to_string).collect();
            let client = stays(&pids).cloned();
            match why.is_empty() {
                true => self.others.extend(client.map(in_the_way)),
                false => self.others.extend(why),
            }
        }
    }

    /// What is offered.
    pub fn offers(&self, facts: &Facts) -> Vec<Offer> {
        let refuses = settings(facts).services == Services::Refuse;
        let breadth = refuses.then(|| "This allows NVIDIA's own services to be stopped, too.".to_owned());
        let mut inside = Vec::new();
        let mut offers = Vec::new();
        for (one, _) in &self.ones {
            match one {
                One::Service(name) => offers.push(Offer {
                    who: format!("unit {}", foreign(name)),
                    question: "stop it {}, start it again".to_owned(),
                    breadth: breadth.clone(),
                    key: "services",
                    value: name.clone(),
                }),
                One::Inside(unit) => inside.push(unit.clone()),
                One::Desktop => offers.push(Offer {
                    who: "the desktop".to_owned(),
                    question: "stop it {}, with all that is open in it, start it again".to_owned(),
                    breadth: None,
                    key: "display-manager",
                    value: "stop".to_owned(),
                }),
            }
        }
        offers.extend(containers(&inside));
        offers
    }
}

fn is_in_the_way(client: &Client, vm: Name) -> bool {
    client.then == Then::InTheWay && client.holder.belongs_to != Belongs::Vm(vm.id)
}

fn in_the_way(client: Client) -> String {
    let (holder, nodes) = (Box::new(client.holder), client.nodes);
    match client.doubt {
        Some(risk) => Reason::Doubtful { holder, nodes, risk },
        None => Reason::Held { holder, nodes },
    }
    .to_string()
}

/// One setting is for all containers: it is one question.
fn containers(units: &[Unit]) -> Option<Offer> {
    let who = |unit: &Unit| match unit {
        Unit::Inside { container, unit } => format!("container {container}, unit {}", foreign(unit)),
        unit => unit.to_string(),
    };
    let is_shut_down = units.iter().any(|unit| unit.is_whole());
    let question = match (units.len(), is_shut_down) {
        (0, _) => return None,
        (1, false) => "stop it {}, start it again",
        (1, true) => "shut it down {}, start it again",
        (_, false) => "stop them {}, start them again",
        (_, true) => "stop them {}, or shut them down where that is not enough, start them again",
    };
    Some(Offer {
        who: units.iter().map(who).collect::<Vec<_>>().join("; "),
        question: question.to_owned(),
        breadth: Some("This allows it for every container that uses the GPU then.".to_owned()),
        key: "containers",
        value: if is_shut_down { "shutdown" } else { "release" }.to_owned(),
    })
}

/// The settings that are set for what was accepted: with what counts already. And how far they go, a line of a comment each.
pub fn lines(facts: &Facts, vm: Name, accepted: &[&Offer]) -> (Vec<(&'static str, String)>, Vec<String>) {
    let settings = settings(facts);
    let (mut lines, mut notes) = (Vec::new(), Vec::new());
    for (key, value, origin) in settings.listed() {
        let mut now: Vec<&str> = accepted
            .iter()
            .filter(|o| o.key == key)
            .map(|o| o.value.as_str())
            .collect();
        let is_own = origin
            .strip_prefix(&of_vm(vm.id))
            .is_some_and(|rest| rest.starts_with(':'));
        if let (Services::Also(before), "services", false) = (&settings.services, key, now.is_empty()) {
            // One that is named already is offered again where that was not enough.
            let known: Vec<&str> = before.iter().map(String::as_str).collect();
            now.retain(|name| !known.contains(name));
            now.splice(0..0, known);
        }
        let (is_new, value) = match now.is_empty() {
            false => (true, now.join(" ")),
            true => (false, value),
        };
        if !is_new && !is_own {
            continue;
        }
        match (key, value.as_str()) {
            ("containers", "release" | "shutdown") => {
                notes.push("containers: this is of every container that uses the GPU at a start.".to_owned());
            }
            ("services", names) if names != "refuse" => {
                notes.push("services: with these, NVIDIA's own services may be stopped.".to_owned());
            }
            _ => {}
        }
        lines.push((key, value));
    }
    (lines, notes)
}

/// These settings as lines of TOML. A name of a service may have a backslash.
pub fn toml(lines: &[(&'static str, String)]) -> String {
    lines
        .iter()
        .map(|(key, value)| format!("{key} = \"{}\"\n", value.replace('\\', "\\\\")))
        .collect()
}
