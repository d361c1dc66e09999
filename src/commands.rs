//! The commands a person types: handoffs by hand, plan, status.

use std::io;

use serde::Serialize;
use tracing::info;

use crate::base::pci::PciAddr;
use crate::base::process::boot_id;
use crate::base::root::Root;
use crate::base::systemd;
use crate::base::text::join;
use crate::cli::{Cli, Command, Side, Target};
use crate::context::{Host, must_be_root};
use crate::execute::kernel::Kernel;
use crate::host::snapshot::Snapshot;
use crate::model::error::Error;
use crate::model::plan::Plan;
use crate::model::record::{Owner, Record, State};
use crate::model::refusal::{Reason, Refusal};
use crate::plan::inferred;
use crate::plan::selection::{self, Given, HostpciEntry, lent_by_hand};
use crate::proxmox::container_config::GpuContainer;
use crate::proxmox::files;
use crate::report::{self, out};
use crate::state::history;
use crate::{output, recover, watch};

/// Runs a command.
///
/// # Errors
/// As each command has it.
pub fn run(cli: &Cli) -> Result<(), Error> {
    // The host is made by each that needs it, since that catches signals: they are to end the watcher, which waits for
    // what may take months.
    match &cli.command {
        Command::ToVfio(target) | Command::Handoff { to: Side::Vfio, target } => {
            to_vfio(&mut Host::real(), cli, target)
        }
        Command::ToNvidia(target)
        | Command::Handoff {
            to: Side::Nvidia,
            target,
        } => to_nvidia(&mut Host::real(), cli, target),
        Command::Plan(target) => show_plan(&mut Host::real(), cli, target),
        Command::Status => {
            let mut host = Host::real();
            let records = host.records()?;
            let cards = report::status(&host.look(&records)?, &records);
            print(cli, &cards, || report::status_text(&cards))
        }
        Command::Recover(how) => recover::run(&mut Host::real(), cli, how),
        Command::History => {
            let entries = history::read(&Root::real());
            let entries = entries.map_err(|e| Error::io(format!("reading {}", history::DIR), e))?;
            print(cli, &entries, || output::history::text(&entries, cli.verbose))
        }
        Command::Watch { vmid } => watch::run(*vmid),
    }
}

/// Prints a result as it was asked for.
///
/// # Errors
/// Those of writing.
pub fn print<T: Serialize>(cli: &Cli, value: &T, text: impl Fn() -> String) -> Result<(), Error> {
    let text = if cli.json {
        let json = serde_json::to_string_pretty(value).map_err(io::Error::from);
        json.map_err(|e| Error::io("writing JSON", e))? + "\n"
    } else {
        text()
    };
    out(&text).map_err(|e| Error::io("writing to stdout", e))
}

/// What a target means on this host. Without any, GPU_PCI and GPU_AUDIO_PCI count, the variables of the shell script that
/// came before this program.
fn given(host: &Host, target: &Target, snapshot: &Snapshot) -> Result<Given, Error> {
    let variable = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    let gpu = match (&target.vm, &target.gpu, variable("GPU_PCI")) {
        (Some(vmid), ..) => return host.devices_of(*vmid, &host.vm_config(*vmid)?, snapshot),
        (None, Some(name), _) => selection::named(name, snapshot),
        (None, None, Some(name)) => selection::named(&name, snapshot)
            .and_then(|gpu| selection::has_audio(gpu, variable("GPU_AUDIO_PCI").as_deref(), snapshot)),
        (None, None, None) => selection::only(snapshot),
    };
    Ok(Given {
        gpus: vec![gpu.map_err(Refusal::from)?],
        ..Given::default()
    })
}

/// The GPUs of a target that has to have some.
fn some_gpus(target: &Target, given: &Given) -> Result<(), Error> {
    if let Some(reason) = &given.refused {
        return Err(Refusal::from(reason.clone()).into());
    }
    match (&target.vm, given.gpus.is_empty()) {
        (Some(vmid), true) => {
            let why = format!("VM {vmid} has no NVIDIA GPU to hand over. Hint: see 'gpu-handoff plan --vm {vmid}'");
            Err(Refusal::from(Reason::Other(why)).into())
        }
        _ => Ok(()),
    }
}

/// What `plan` shows.
#[derive(Debug, Serialize)]
pub struct Shown<'a> {
    /// The VM's entries, where a VM was named.
    pub entries: &'a [HostpciEntry],
    /// The VM is a template.
    pub template: bool,
    /// What would be done; None: nothing, or it is refused.
    #[serde(serialize_with = "report::plan_view")]
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
fn show_plan(host: &mut Host, cli: &Cli, target: &Target) -> Result<(), Error> {
    host.read_settings(target.vm)?;
    let records = host.records()?;
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
    let containers = files::gpu_containers(&host.root).map_err(Refusal::from)?;
    let shown = Shown {
        entries: &given.entries,
        template: given.template,
        plan: plan.as_ref().and_then(|p| p.as_ref().ok()),
        by_hand,
        refused,
        containers: &containers,
        settings: host.settings.listed(),
    };
    print(cli, &shown, || shown_text(&shown, &given))?;
    match plan {
        Some(Err(refusal)) => Err(refusal.into()),
        _ => Ok(()),
    }
}

/// What `plan` shows, for people.
pub fn shown_text(shown: &Shown<'_>, given: &Given) -> String {
    let mut text = String::new();
    for entry in shown.entries {
        text += &report::entry_text(entry);
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
        Some(plan) => text += &report::plan_text(plan),
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

fn to_vfio(host: &mut Host, cli: &Cli, target: &Target) -> Result<(), Error> {
    if cli.dry_run {
        return show_plan(host, cli, target);
    }
    must_be_root()?;
    host.read_settings(target.vm)?;
    let end = host.kernel.now() + host.budgets.way_out;
    let guard = host.lock("to_vfio by hand", end)?;
    let records = host.readable_records()?;
    let snapshot = host.look(&records)?;
    let given = given(host, target, &snapshot)?;
    some_gpus(target, &given)?;
    let by_hand = records.iter().filter(|r| matches!(r.owner, Owner::ByHand(_)));
    let earlier = by_hand.into_iter().find(|r| r.has(given.gpus[0]));
    let owner = earlier.map_or(Owner::ByHand(given.gpus[0]), |r| r.owner);
    host.way_out(&guard, snapshot, &records, owner, &given, end)
}

/// The record that a target's GPUs are in, or the GPUs where there is none. With a VM its own record comes first: its
/// config may have changed since.
fn recorded<'a>(
    host: &Host,
    target: &Target,
    records: &'a [Record],
    snapshot: &Snapshot,
) -> Result<Result<&'a Record, Vec<PciAddr>>, Error> {
    let of_vm = |r: &&Record| target.vm.is_some_and(|vmid| r.owner == Owner::Vm(vmid));
    if let Some(record) = records.iter().find(of_vm) {
        return Ok(Ok(record));
    }
    let given = given(host, target, snapshot)?;
    some_gpus(target, &given)?;
    let found = records.iter().find(|r| given.gpus.iter().any(|g| r.has(*g)));
    Ok(found.ok_or(given.gpus))
}

fn to_nvidia(host: &mut Host, cli: &Cli, target: &Target) -> Result<(), Error> {
    let end = host.kernel.now() + host.budgets.way_home;
    let guard = if cli.dry_run {
        None
    } else {
        must_be_root()?;
        Some(host.lock("to_nvidia by hand", end)?)
    };
    if guard.is_some() && systemd::is_shutting_down() {
        let why = "the host is shutting down, nothing is brought home. Hint: after a reboot every device is at home";
        return Err(Refusal::from(Reason::Other(why.to_owned())).into());
    }
    let records = host.records()?;
    let snapshot = host.look(&records)?;
    let record = match recorded(host, target, &records, &snapshot)? {
        Ok(record) => record.clone(),
        Err(gpus) => {
            info!(
                "no record says where {} came from: its drivers are inferred from what it is",
                join(&gpus)
            );
            let mut empty = Record::new(Owner::ByHand(gpus[0]), boot_id(), host.budgets.clone());
            empty.rest(State::Away); // nobody's run that was broken off
            inferred::inferred(&snapshot, &gpus, empty)
        }
    };
    if let Owner::Vm(vmid) = record.owner
        && host.vm_is_busy(vmid)
    {
        let why = format!("VM {vmid} is starting or stopping. Hint: wait until that is over");
        return Err(Refusal::from(Reason::Other(why)).into());
    }
    let plan = host.plan_home(&record, &records, end)?;
    match guard {
        Some(guard) => host.execute(&guard, record, None, &plan, end),
        None => print(cli, &report::PlanView::from(&plan), || report::plan_text(&plan)),
    }
}
