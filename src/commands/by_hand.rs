//! Handoffs that a person asks for: `to_vfio`, `to_nvidia`.

use tracing::info;

use crate::base::systemd;
use crate::base::text::join;
use crate::commands::cli::{Cli, Target};
use crate::commands::plan::show_plan;
use crate::commands::target::{by_whom, given, moving, part_of, recorded, some_gpus};
use crate::execute::kernel::Kernel;
use crate::model::error::Error;
use crate::model::plan::Direction;
use crate::model::record::{Owner, Record, State};
use crate::model::refusal::{Reason, Refusal};
use crate::output::plan;
use crate::output::print::print;
use crate::plan::inferred;
use crate::plan::owners::Part;
use crate::run::owners::Settled;
use crate::run::session::{Session, must_be_root, this_boot};

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
            let mut empty = Record::new(Owner::ByHand(gpus[0]), this_boot()?, host.budgets.clone());
            empty.rest(State::Away); // nobody's run that was broken off
            let record = inferred::inferred(&snapshot, &gpus, empty);
            (record.clone(), Part::whole(&record))
        }
    };
    let claimed = host.claims(Direction::Home, &part.addrs(), &snapshot, &records)?;
    if !claimed.is_empty() {
        return Err(Refusal(claimed).into());
    }
    let plan = host.plan_home(&part.comes, &records, end)?;
    match guard {
        Some(guard) => host.execute(&guard, record, part.stays, &plan, end),
        None => print(cli.json, &plan::PlanView::from(&plan), || plan::plan_text(&plan)),
    }
}
