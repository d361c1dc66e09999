//! Every stranded GPU home, or the reason why not.
//!
//! Stranded is what a record speaks of and nobody needs any more: the VM neither runs nor starts nor stops, or the run that
//! took it was broken off. What was taken by hand is not stranded, and neither is a GPU that the host's own settings keep
//! on vfio-pci: nothing is on record for it.

use serde::Serialize;
use tracing::{info, warn};

use crate::cli::{Cli, Recover};
use crate::commands::print;
use crate::exit::Error;
use crate::inventory::Snapshot;
use crate::kernel::Kernel;
use crate::record::{Guard, Ledger, Owner, Record, State};
use crate::report::{chain, join};
use crate::run::{Host, must_be_root};

/// What became of one record.
#[derive(Debug, Serialize)]
struct Outcome {
    /// Whose handoff it is.
    owner: String,
    /// Its functions.
    functions: Vec<String>,
    /// It is home now.
    home: bool,
    /// Why it is not.
    left: Option<String>,
}

/// Brings home what is stranded.
///
/// # Errors
/// The first of what went wrong; the others are tried all the same.
pub fn run(host: &mut Host, cli: &Cli, how: &Recover) -> Result<(), Error> {
    let guard = if cli.dry_run {
        None
    } else {
        must_be_root()?;
        let end = host.kernel.now() + host.budgets.way_home;
        Some(host.lock("recover", end)?)
    };
    let mut records = host.records()?;
    if let (Some(addr), Some(guard)) = (how.clear_wedged, &guard) {
        for record in &mut records {
            let before = record.wedges.len();
            record.wedges.retain(|w| !w.addrs.contains(&addr));
            if record.wedges.len() < before {
                record.rest(record.state);
                guard.save(record).map_err(|e| Error::io("writing the record", e))?;
                info!("{}: {addr} counts as free again", record.owner);
            }
        }
    }
    let mut outcomes = Vec::new();
    let mut first = None;
    for record in &records {
        let (home, left) = match settle(host, guard.as_ref(), record, &records, how) {
            Ok(None) => (true, None),
            Ok(Some(why)) => (false, Some(why)),
            Err(error) => {
                let exit = error.exit();
                let why = chain(error);
                warn!("{}: {why}", record.owner);
                first.get_or_insert((exit, record.owner, why.clone()));
                (false, Some(why))
            }
        };
        outcomes.push(Outcome {
            owner: record.owner.to_string(),
            functions: record.taken.iter().map(|t| t.addr.to_string()).collect(),
            home,
            left,
        });
    }
    print(cli, &outcomes, || text(&outcomes, cli.dry_run))?;
    match first {
        None => Ok(()),
        Some((exit, owner, why)) => Err(Error::Recovery {
            exit,
            what: format!("{owner}: {why}"),
        }),
    }
}

/// One record: None where it is home now, else why it is left.
fn settle(
    host: &mut Host,
    guard: Option<&Guard>,
    record: &Record,
    records: &[Record],
    how: &Recover,
) -> Result<Option<String>, Error> {
    let snapshot = host.look(records)?;
    if let Some(why) = not_stranded(host, &snapshot, record, how) {
        return Ok(Some(why));
    }
    for wedge in &record.late {
        info!(
            "{}: '{}' was stuck in the kernel and has ended, late",
            record.owner, wedge.act
        );
    }
    host.budgets = record.budgets.clone();
    let end = host.kernel.now() + host.budgets.way_home;
    let plan = host.plan_home(record, records, end)?;
    let Some(guard) = guard else {
        return Ok(Some("stranded; it would be brought home".to_owned()));
    };
    host.execute(guard, record.clone(), None, &plan, end)?;
    Ok(None)
}

fn not_stranded(host: &Host, snapshot: &Snapshot, record: &Record, how: &Recover) -> Option<String> {
    match record.owner {
        Owner::Vm(vmid) if host.vm_is_busy(vmid) => Some(format!("VM {vmid} is starting or stopping")),
        Owner::Vm(vmid) if snapshot.vms.iter().any(|v| v.vmid == vmid) => Some(format!("VM {vmid} runs with it")),
        Owner::ByHand(_) if record.state == State::Away && !how.all => {
            Some("it was taken by hand; 'gpu-handoff recover --all' brings it home as well".to_owned())
        }
        _ => None,
    }
}

fn text(outcomes: &[Outcome], dry_run: bool) -> String {
    if outcomes.is_empty() {
        return "Nothing is away: no GPU has to be brought home.\n".to_owned();
    }
    let line = |o: &Outcome| {
        let functions = join(&o.functions);
        match &o.left {
            None => format!("{}: {functions} is home\n", o.owner),
            Some(why) if dry_run => format!("{}: {functions}: {why}\n", o.owner),
            Some(why) => format!("{}: {functions} is left as it is: {why}\n", o.owner),
        }
    };
    outcomes.iter().map(line).collect()
}
