//! Who uses a VM's GPUs now and would be in the way of its start, and which settings have that stopped. Pure.
//!
//! What is offered is only what is started again. A process of a login session, which nobody starts again, is left to its owner.

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
use crate::settings::values::{Services, Settings};

/// A setting that would have somebody stopped who is in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Who that is.
    pub who: String,
    /// What is asked, without the question mark.
    question: String,
    /// The setting.
    pub key: &'static str,
    /// Its value for that alone.
    pub value: String,
}

impl Offer {
    /// What a person is asked; `vm` has the GPU meanwhile.
    pub fn question(&self, vm: Name) -> String {
        format!(
            "{}: {}?",
            self.who,
            self.question.replace("{}", &format!("while {vm} runs"))
        )
    }
}

/// The settings of the VM as they are now; the defaults where they are not understood, which the checks say.
fn settings(facts: &Facts) -> Settings {
    facts.settings.clone().unwrap_or_default()
}

/// What is offered, and who else is in the way, a sentence each.
pub fn of(facts: &Facts, vm: Name) -> (Vec<Offer>, Vec<String>) {
    let given = facts.vms.iter().find(|one| one.vmid == vm.id).map(|one| &one.given);
    let gpus: Vec<PciAddr> = given.map(|given| given.gpus.clone()).unwrap_or_default();
    if gpus.is_empty() {
        return (Vec::new(), Vec::new());
    }
    let (clients, _) = clients::of(&facts.snapshot, &gpus, &settings(facts));
    let (mut offers, mut inside, mut others) = (Vec::<Offer>::new(), Vec::<Unit>::new(), Vec::new());
    for client in clients {
        if client.then != Then::InTheWay || client.holder.belongs_to == Belongs::Vm(vm.id) {
            continue;
        }
        let offer = match Remedy::of_suspect(&client.holder) {
            Remedy::StopService(name) => Offer {
                who: format!("unit {}", foreign(&name)),
                question: "stop it {}, start it again".to_owned(),
                key: "services",
                value: name,
            },
            Remedy::StopInside(unit) | Remedy::StopWhole(unit) => {
                if !inside.contains(&unit) {
                    inside.push(unit);
                }
                continue;
            }
            Remedy::StopDesktop => Offer {
                who: "the desktop".to_owned(),
                question: "stop it {}, with all that is open in it, start it again".to_owned(),
                key: "display-manager",
                value: "stop".to_owned(),
            },
            _ => {
                others.push(in_the_way(client));
                continue;
            }
        };
        if !offers.contains(&offer) {
            offers.push(offer);
        }
    }
    offers.extend(containers(&inside));
    (offers, others)
}

fn in_the_way(client: Client) -> String {
    let (holder, nodes) = (Box::new(client.holder), client.nodes);
    match client.doubtful {
        true => Reason::Doubtful { holder, nodes },
        false => Reason::Held { holder, nodes },
    }
    .to_string()
}

/// One setting is for all containers: it is one question.
fn containers(units: &[Unit]) -> Option<Offer> {
    let who = |unit: &Unit| match unit {
        Unit::Inside { container, unit } => format!("container {container}, unit {}", foreign(unit)),
        unit => unit.to_string(),
    };
    let is_shut_down = units.iter().any(|unit| matches!(unit, Unit::Whole { .. }));
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
        key: "containers",
        value: if is_shut_down { "shutdown" } else { "release" }.to_owned(),
    })
}

/// The settings that are set for what was accepted: with what counts already.
pub fn lines(facts: &Facts, vm: Name, accepted: &[&Offer]) -> Vec<(&'static str, String)> {
    let settings = settings(facts);
    let mut lines = Vec::new();
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
        match now.is_empty() {
            false => lines.push((key, now.join(" "))),
            true if is_own => lines.push((key, value)),
            true => {}
        }
    }
    lines
}

/// These settings as lines of TOML. A name of a service may have a backslash.
pub fn toml(lines: &[(&'static str, String)]) -> String {
    lines
        .iter()
        .map(|(key, value)| format!("{key} = \"{}\"\n", value.replace('\\', "\\\\")))
        .collect()
}
