//! `plan`: what pre-start would do, or every reason why not.

use serde::Serialize;

use crate::base::pci::PciAddr;
use crate::base::vmid::VmId;
use crate::commands::cli::{Cli, Target};
use crate::commands::target::{by_whom, given, moving, some_gpus};
use crate::host::snapshot::Snapshot;
use crate::model::error::Error;
use crate::model::plan::{Direction, Plan};
use crate::model::record::{Owner, Record};
use crate::model::refusal::{Reason, Refusal};
use crate::output::print::print_text;
use crate::output::{plan, print};
use crate::plan::obstacles::at_work;
use crate::plan::selection::{Given, HostpciEntry, lent_by_hand};
use crate::plan::{home, owners};
use crate::proxmox::container_config::GpuContainer;
use crate::run::session::Session;
use crate::state::store::UnreadableRecord;

/// The form of the JSON: docs/schemas/plan.json.
pub const VERSION: u32 = 1;

/// What `plan` shows.
#[derive(Debug, Serialize)]
pub struct Shown<'a> {
    /// [`VERSION`].
    pub version: u32,
    /// The VM's entries, where a VM was named.
    pub entries: &'a [HostpciEntry],
    /// The VM is a template.
    pub template: bool,
    /// What would come home before: what the VM has and no longer wants, and what others have who are gone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub first: Vec<plan::PlanView>,
    /// What would be done; None: nothing, it is refused, or it is planned when something has come home first.
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

/// Shows the plan. A refusal is a result too: it is shown, and the exit code is that of the refusal. `starts`: the VM whose
/// pre-start it is; None: a person's handoff, which may be of a VM's devices as well.
pub(crate) fn show_plan(host: &mut Session, cli: &Cli, target: &Target, starts: Option<VmId>) -> Result<(), Error> {
    let (text, result) = planned(host, cli.json, target, starts)?;
    print_text(&text)?;
    result
}

/// What [`show_plan`] shows, and how it ends.
pub(crate) fn planned(
    host: &mut Session,
    json: bool,
    target: &Target,
    starts: Option<VmId>,
) -> Result<(String, Result<(), Error>), Error> {
    host.read_settings(target.vm)?;
    let (records, problems) = host.load(None)?;
    let mut snapshot = host.look(&records)?;
    let given = given(host, target, &snapshot)?;
    // A VM that is given no device, and has nothing on record, is started whatever is in /run.
    let is_concerned =
        starts.is_none_or(|vmid| !given.entries.is_empty() || records.iter().any(|r| r.owner == Owner::Vm(vmid)));
    let unreadable = problems.first().filter(|_| is_concerned).map(UnreadableRecord::refusal);
    let refusal = unreadable.or_else(|| given.refused.clone().map(Refusal::from));
    if starts.is_none() && refusal.is_none() {
        some_gpus(target, &given)?;
    }
    let by_hand = starts.and_then(|_| lent_by_hand(&records, &snapshot, &given.gpus));
    let mut first = Vec::new();
    let plan = match refusal.map_or_else(|| before(host, starts, &given, &mut snapshot, &records), |r| Ok(Err(r)))? {
        Err(refusal) => Some(Err(refusal)),
        Ok(homes) if !homes.is_empty() => {
            first = homes;
            None
        }
        Ok(_) if given.gpus.is_empty() || by_hand.is_some() => None,
        Ok(_) => {
            let owner = starts.map_or_else(|| by_whom(&records, given.gpus[0]), Owner::Vm);
            Some(host.judge_out(snapshot, &records, owner, &given)?)
        }
    };
    let refused = match &plan {
        Some(Err(refusal)) => refusal.0.iter().map(ToString::to_string).collect(),
        _ => Vec::new(),
    };
    let containers = host.gpu_containers()?;
    let shown = Shown {
        version: VERSION,
        entries: &given.entries,
        template: given.template,
        first: first.iter().map(plan::PlanView::from).collect(),
        plan: plan.as_ref().and_then(|p| p.as_ref().ok()),
        by_hand,
        refused,
        containers: &containers,
        settings: host.settings.listed(),
    };
    let text = print::shown(json, &shown, || {
        let homes: String = first.iter().map(plan::plan_text).collect();
        shown_text(&shown, &given, &homes)
    })?;
    Ok(match plan {
        Some(Err(refusal)) => (text, Err(refusal.into())),
        _ => (text, Ok(())),
    })
}

/// The plans of what comes home first, or why what is wanted is not to be had; by hand nothing comes home first.
fn before(
    host: &mut Session,
    starts: Option<VmId>,
    given: &Given,
    snapshot: &mut Snapshot,
    records: &[Record],
) -> Result<Result<Vec<Plan>, Refusal>, Error> {
    let Some(vmid) = starts else {
        let claimed = host.claims(Direction::Out, &moving(snapshot, &given.gpus), snapshot, records)?;
        return Ok(if claimed.is_empty() {
            Ok(Vec::new())
        } else {
            Err(Refusal(claimed))
        });
    };
    let owner = Owner::Vm(vmid);
    let own = records.iter().find(|r| r.owner == owner);
    let functions: Vec<PciAddr> = given.functions.iter().copied().collect();
    let wanted = owners::wanted(snapshot, &given.gpus, &functions, own);
    // While a run is at work, whose its record is says little: pre-start waits until it is over.
    let concerned = records
        .iter()
        .filter(|r| !owners::concerned(snapshot, r, &wanted).is_empty());
    let runs: Vec<Reason> = concerned.filter_map(at_work).collect();
    if !runs.is_empty() {
        return Ok(Err(Refusal(runs)));
    }
    let (mut tried, mut homes) = (Vec::new(), Vec::new());
    loop {
        let first = match owners::first(snapshot, records, owner, &wanted, &tried, |r| host.signs(r)) {
            Ok(Some(first)) => first,
            Ok(None) => return Ok(Ok(homes)),
            Err(reasons) => return Ok(Err(Refusal(reasons))),
        };
        let of = first.record.owner;
        tried.push(of);
        let taken = first.part.addrs();
        // It stays on record where it cannot come home now, and the start goes on.
        let is_left = !taken.iter().any(|a| wanted.contains(&a.slot()));
        let needed = host.needed_at_home(&taken, snapshot, &[owner, of])?;
        if !needed.is_empty() {
            if is_left {
                continue;
            }
            return Ok(Err(Refusal(needed)));
        }
        let comes = owners::without_what_others_have(&first.part.comes, records);
        host.ask(snapshot, &comes.functions(), host.budgets.look)?;
        match home::plan(snapshot, &comes) {
            Ok(plan) => homes.push(plan),
            Err(refusal) if is_left && (of != owner || !refusal.is_by(owner)) => {}
            Err(refusal) => return Ok(Err(refusal)),
        }
    }
}

/// What `plan` shows, for people. `homes`: the plans of what comes home first.
pub fn shown_text(shown: &Shown<'_>, given: &Given, homes: &str) -> String {
    let mut text = String::new();
    for entry in shown.entries {
        text += &plan::entry_text(entry);
    }
    if given.template {
        text += &format!("{}\n", given.left().join("\n"));
    }
    if !homes.is_empty() {
        text += &format!("First {homes}");
        text += "What comes after that is planned from how things are then.\n";
    }
    match shown.plan {
        None if shown.by_hand.is_some() => {
            let gpus = shown.by_hand.as_deref().unwrap_or_default();
            text +=
                &format!("Nothing to do: {gpus} was handed over by hand already, and stays so when the VM stops.\n");
        }
        Some(plan) => text += &plan::plan_text(plan),
        None if shown.refused.is_empty() && homes.is_empty() => {
            text += "Nothing to do: no NVIDIA GPU is handed over.\n";
        }
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
