//! `plan`, and `--dry-run` of a phase: what would be done, or every reason why not.

use serde::Serialize;

use crate::commands::cli::{Cli, Target};
use crate::commands::target::given;
use crate::model::error::Error;
use crate::model::plan::Plan;
use crate::model::record::Owner;
use crate::model::refusal::Refusal;
use crate::output::plan;
use crate::output::print::print;
use crate::plan::selection::{Given, HostpciEntry, lent_by_hand};
use crate::proxmox::container_config::GpuContainer;
use crate::run::session::Session;

/// What `plan` shows.
#[derive(Debug, Serialize)]
pub struct Shown<'a> {
    /// The VM's entries, where a VM was named.
    pub entries: &'a [HostpciEntry],
    /// The VM is a template.
    pub template: bool,
    /// What would be done; None: nothing, or it is refused.
    #[serde(serialize_with = "crate::output::plan::plan_view")]
    pub plan: Option<&'a Plan>,
    /// GPUs that were handed over by hand already: the VM leaves them so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by_hand: Option<String>,
    /// Every reason why not.
    pub refused: Vec<String>,
    /// Containers that are given a GPU when they run.
    pub containers: &'a [GpuContainer],
    /// Each setting with its value and where it came from.
    pub settings: Vec<(&'static str, String, &'a str)>,
}

/// Shows the plan. A refusal is a result too: it is shown, and the exit code is that of the refusal.
pub(crate) fn show_plan(host: &mut Session, cli: &Cli, target: &Target) -> Result<(), Error> {
    host.read_settings(target.vm)?;
    let records = host.records(None)?;
    let snapshot = host.look(&records)?;
    let given = given(host, target, &snapshot)?;
    let refusal = given.refused.clone().map(Refusal::from);
    let by_hand = target.vm.and_then(|_| lent_by_hand(&records, &snapshot, &given.gpus));
    let plan = match refusal {
        Some(refusal) => Some(Err(refusal)),
        None if given.gpus.is_empty() || by_hand.is_some() => None,
        None => {
            let owner = target.vm.map_or(Owner::ByHand(given.gpus[0]), Owner::Vm);
            Some(host.judge_out(snapshot, &records, owner, &given)?)
        }
    };
    let refused = match &plan {
        Some(Err(refusal)) => refusal.0.iter().map(ToString::to_string).collect(),
        _ => Vec::new(),
    };
    let containers = host.gpu_containers()?;
    let shown = Shown {
        entries: &given.entries,
        template: given.template,
        plan: plan.as_ref().and_then(|p| p.as_ref().ok()),
        by_hand,
        refused,
        containers: &containers,
        settings: host.settings.listed(),
    };
    print(cli.json, &shown, || shown_text(&shown, &given))?;
    match plan {
        Some(Err(refusal)) => Err(refusal.into()),
        _ => Ok(()),
    }
}

/// What `plan` shows, for people.
pub fn shown_text(shown: &Shown<'_>, given: &Given) -> String {
    let mut text = String::new();
    for entry in shown.entries {
        text += &plan::entry_text(entry);
    }
    if given.template {
        text += &format!("{}\n", given.left().join("\n"));
    }
    match shown.plan {
        None if shown.by_hand.is_some() => {
            let gpus = shown.by_hand.as_deref().unwrap_or_default();
            text +=
                &format!("Nothing to do: {gpus} was handed over by hand already, and stays so when the VM stops.\n");
        }
        Some(plan) => text += &plan::plan_text(plan),
        None if shown.refused.is_empty() => text += "Nothing to do: no NVIDIA GPU is handed over.\n",
        None => {}
    }
    for reason in &shown.refused {
        text += &format!("Refused: {reason}\n");
    }
    for container in shown.containers {
        text += &format!(
            "Container {} is given a GPU: {}\n",
            container.ctid,
            container.lines.join("; ")
        );
    }
    for (key, value, origin) in &shown.settings {
        text += &format!("Setting: {key:<24} {value:<8} ({origin})\n");
    }
    text
}
