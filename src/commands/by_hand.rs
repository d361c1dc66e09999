//! Handoffs that a person asks for: `to_vfio`, `to_nvidia`.

use std::time::Duration;

use tracing::{info, warn};

use crate::base::program::ask_to;
use crate::base::systemd;
use crate::base::text::{foreign, join};
use crate::base::vmid::VmId;
use crate::commands::cli::{Cli, Target};
use crate::commands::plan::show_plan;
use crate::commands::target::{by_whom, given, moving, part_of, recorded, some_gpus, variable};
use crate::execute::kernel::Kernel;
use crate::model::error::Error;
use crate::model::plan::Direction;
use crate::model::record::State;
use crate::model::refusal::{Reason, Refusal};
use crate::output::plan;
use crate::output::print::print;
use crate::plan::inferred;
use crate::plan::owners::Part;
use crate::run::owners::Settled;
use crate::run::session::{Session, must_be_root};

/// Containers that are restarted when a GPU has come home by hand: a variable of the shell script that came before this program.
const RESTARTED: &str = "LXC_RESTART_IDS";

/// How long a container has to shut down, seconds; then pct(1) ends it (pve-container, PVE/LXC.pm, vm_reboot).
const SHUTDOWN: &str = "30";

/// How long its restart is waited for.
const RESTART: Duration = Duration::from_secs(90);

pub(crate) fn to_vfio(host: &mut Session, cli: &Cli, target: &Target) -> Result<(), Error> {
    if cli.dry_run {
        return show_plan(host, cli, target, None);
    }
    must_be_root()?;
    host.read_settings(target.vm)?;
    let end = host.kernel.now() + host.budgets.way_out;
    let guard = host.lock("to_vfio by hand", end)?;
    let records = host.readable_records(&guard)?;
    let snapshot = host.look(&records)?;
    let given = given(host, target, &snapshot)?;
    some_gpus(target, &given)?;
    let addrs = moving(&snapshot, &given.gpus);
    let claimed = host.claims(Direction::Out, &addrs, &snapshot, &records)?;
    if !claimed.is_empty() {
        return Err(Refusal(claimed).into());
    }
    let owner = by_whom(&records, given.gpus[0]);
    host.way_out(&guard, Settled::as_is(records, snapshot), owner, &given, end)
}

pub(crate) fn to_nvidia(host: &mut Session, cli: &Cli, target: &Target) -> Result<(), Error> {
    let restarted = named_containers(variable(RESTARTED).as_deref().unwrap_or_default())?;
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
    let records = host.records(guard.as_ref())?;
    let snapshot = host.look(&records)?;
    let (record, part) = match recorded(host, target, &records, &snapshot)? {
        Ok((record, gpus)) => (record.clone(), part_of(record, &gpus, &snapshot)),
        Err(gpus) => {
            info!(
                "no record says where {} came from: its drivers are inferred from what it is",
                join(&gpus)
            );
            let mut empty = host.unrecorded(gpus[0], &records)?;
            empty.rest(State::Away); // nobody's run that was broken off
            let record = inferred::inferred(&snapshot, &gpus, empty);
            (record.clone(), Part::whole(&record))
        }
    };
    let claimed = host.claims(Direction::Home, &part.addrs(), &snapshot, &records)?;
    if !claimed.is_empty() {
        return Err(Refusal(claimed).into());
    }
    let plan = host.plan_home(&part.comes, &records, Some(snapshot), end)?;
    match guard {
        Some(guard) => {
            host.execute(&guard, record, part.stays, &plan, end)?;
            // Their own hook may wait for it.
            drop(guard);
            restart(&restarted);
            Ok(())
        }
        None => print(cli.json, &plan::PlanView::from(&plan), || plan::plan_text(&plan)),
    }
}

/// The containers of such a list; numbers, with spaces or commas between.
fn named_containers(list: &str) -> Result<Vec<VmId>, Error> {
    let named = list.split([' ', ',']).filter(|id| !id.is_empty());
    let number = |id: &str| {
        id.parse().map_err(|_| {
            let why = format!(
                "{RESTARTED} has '{}', which is no container's number. Hint: numbers with spaces between, such as '104 105'",
                foreign(id)
            );
            Refusal::from(Reason::Other(why)).into()
        })
    };
    named.map(number).collect()
}

/// Restarts containers, one after the other. The GPU is home: that one of them does not restart is said, and fails nothing.
fn restart(ctids: &[VmId]) {
    for ctid in ctids {
        match ask_to(&["pct", "reboot", &ctid.to_string(), "--timeout", SHUTDOWN], RESTART) {
            Ok(()) => info!("container {ctid} was restarted, as {RESTARTED} says"),
            Err(why) => {
                warn!("container {ctid} was not restarted, as {RESTARTED} says: {why}. Hint: 'pct reboot {ctid}'");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_named_by_numbers_and_nothing_else() {
        for (list, numbers) in [("", ""), ("104", "104"), (" 104,105  106 ", "104 105 106")] {
            let named = named_containers(list).unwrap();
            let named: Vec<String> = named.iter().map(ToString::to_string).collect();
            assert_eq!(named.join(" "), numbers);
        }
        for list in ["104 x", "-1", "99", "104;105", "104 \u{1b}"] {
            let why = named_containers(list).unwrap_err().to_string();
            assert!(why.contains("which is no container's number. Hint: "), "{why}");
            assert!(!why.contains('\u{1b}'), "{why}");
        }
    }
}
