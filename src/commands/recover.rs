//! Every stranded GPU home, or the reason why not.
//!
//! Stranded is what a record speaks of and nobody needs any more: the VM neither runs with it nor starts nor stops, or the run
//! that took it was broken off. What was taken by hand is not stranded, and neither is a GPU that the host's own settings keep
//! on vfio-pci: nothing is on record for it.

use serde::Serialize;
use tracing::{info, warn};

use crate::base::pci::PciAddr;
use crate::base::systemd;
use crate::base::text::{are, join};
use crate::base::vmid::VmId;
use crate::commands::cli::{Cli, Recover};
use crate::commands::free::{self, Freed};
use crate::commands::stopped;
use crate::execute::kernel::Kernel;
use crate::model::act::Act;
use crate::model::claim::Claim;
use crate::model::error::{Error, Exit, chain};
use crate::model::record::{Owner, Record, State};
use crate::model::refusal::Reason;
use crate::output::print::print;
use crate::plan::owners::{self, Part};
use crate::run::session::{Session, must_be_root, this_boot};
use crate::state::store::{Guard, Ledger, UnreadableRecord};

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

impl Outcome {
    fn of(record: &Record, left: Option<String>) -> Self {
        Outcome {
            owner: record.owner.to_string(),
            functions: record.taken.iter().map(|t| t.addr.to_string()).collect(),
            home: left.is_none(),
            left,
        }
    }

    /// Of functions that were on nobody's record. `first`: the first error of the run.
    fn of_nobody(freed: Freed, first: &mut Option<(Exit, String)>) -> Self {
        let functions = join(&freed.functions);
        let left = freed.left.or_else(|| {
            let error = freed.error?;
            let exit = error.exit();
            let why = chain(error);
            warn!("{functions}: {why}");
            first.get_or_insert((exit, why.clone()));
            Some(why)
        });
        Outcome {
            owner: "on nobody's record".to_owned(),
            functions: freed.functions.iter().map(ToString::to_string).collect(),
            home: left.is_none(),
            left,
        }
    }
}

/// Brings home what is stranded.
///
/// # Errors
/// The first of what went wrong; the others are tried all the same.
pub fn run(host: &mut Session, cli: &Cli, how: &Recover) -> Result<(), Error> {
    let mut outcomes = Vec::new();
    let first = bring_home(host, cli, how, &mut outcomes);
    // By now nobody has to wait for what is only said, to whoever reads it or does not.
    if !cli.dry_run && how.vm.is_none() && must_be_root().is_ok() && !systemd::is_shutting_down() {
        have_watched(host);
        if first.is_ok() {
            stopped::name(host, systemd::is_starting);
        }
    }
    let first = first?;
    let printed = print(cli.json, &outcomes, || text(&outcomes, cli.dry_run));
    match first {
        None => printed,
        Some((exit, what)) => Err(Error::Recovery { exit, what }),
    }
}

/// Brings all home that can be brought. Returns the first error of one of them.
fn bring_home(
    host: &mut Session,
    cli: &Cli,
    how: &Recover,
    outcomes: &mut Vec<Outcome>,
) -> Result<Option<(Exit, String)>, Error> {
    let guard = if cli.dry_run {
        None
    } else {
        must_be_root()?;
        let end = host.kernel.now() + host.budgets.way_home;
        Some(host.lock("recover", end)?)
    };
    let (mut records, problems) = host.load(guard.as_ref())?;
    if let (Some(addr), Some(guard)) = (how.clear_wedged, &guard) {
        for record in &mut records {
            if clear_wedged(record, addr) {
                if let Err(e) = guard.save(record) {
                    warn!("writing the record: {e}");
                }
                info!("{}: {addr} counts as free again", record.owner);
            }
        }
    }
    let mut first = None;
    let shutting_down = guard.is_some() && systemd::is_shutting_down();
    let mut said = Vec::new();
    if !shutting_down {
        for freed in free::free(host, guard.as_ref(), &records, how)? {
            said.extend(&freed.functions);
            outcomes.push(Outcome::of_nobody(freed, &mut first));
        }
        // What was freed is on record by now.
        (records, _) = host.load(guard.as_ref())?;
    }
    let asked_for = |owner: Owner| how.vm.is_none_or(|vmid| owner == Owner::Vm(vmid));
    for record in records.iter().filter(|r| asked_for(r.owner)) {
        if shutting_down {
            outcomes.push(Outcome::of(record, Some("the host is shutting down".to_owned())));
            continue;
        }
        let left = match settle(host, guard.as_ref(), record, &records, how, None) {
            Ok(left) => left,
            Err(error) => {
                let exit = error.exit();
                let why = chain(error);
                warn!("{}: {why}", record.owner);
                first.get_or_insert((exit, format!("{}: {why}", record.owner)));
                Some(why)
            }
        };
        if let (Owner::Vm(vmid), None, Some(_)) = (record.owner, &left, &guard) {
            systemd::is_home(vmid);
        }
        outcomes.push(Outcome::of(record, left));
    }
    if !shutting_down && how.vm.is_none() && problems.is_empty() {
        let (records, _) = host.load(guard.as_ref())?;
        for back in free::bring_back(host, guard.as_ref(), &records, &said)? {
            outcomes.push(Outcome::of_nobody(back, &mut first));
        }
    }
    let of_vm = |problem: &&UnreadableRecord| how.vm.is_none_or(|vmid| problem.is_of(Owner::Vm(vmid)));
    for problem in problems.iter().filter(of_vm) {
        let why = problem.to_string();
        warn!("{why}");
        first.get_or_insert((Exit::Refused, why.clone()));
        outcomes.push(Outcome {
            owner: "unknown".to_owned(),
            functions: Vec::new(),
            home: false,
            left: Some(why),
        });
    }
    Ok(first)
}

/// Has somebody watch over what is away of VMs: after a soft reboot, or where the package was removed and installed anew, nobody
/// does. Where one watches, that one goes on.
fn have_watched(host: &Session) {
    let (Ok(boot), Ok((records, _))) = (this_boot(), host.store.load()) else {
        return; // whoever needed them has said why
    };
    let of_a_vm = |record: &Record| match record.owner {
        Owner::Vm(vmid) if record.boot_id == boot => Some(vmid),
        _ => None,
    };
    for vmid in records.iter().filter_map(of_a_vm) {
        if let Err(why) = systemd::keep_watch(vmid) {
            warn!("VM {vmid}: nobody watches over the GPU ({why}): 'gpu-handoff recover' tries once more");
        }
    }
}

/// Brings home what is stranded of these, as far as that can be done now: what is left is said. A container that is starting is
/// started by nobody else, and stays on a record until that one's GPU is home: who knows whether its start comes to an end.
pub(crate) fn stranded_home(host: &mut Session, guard: &Guard, records: &[Record], starting: VmId) {
    for record in records {
        match settle(host, Some(guard), record, records, &Recover::default(), Some(starting)) {
            Ok(None) => {}
            Ok(Some(why)) => info!("{}: {why}", record.owner),
            Err(error) => warn!("{}: {}", record.owner, chain(error)),
        }
    }
}

/// Forgets that calls on a function are stuck. What an interrupted run has removed from the bus stays owed: nothing but the
/// record knows below which bridge it is found again. Returns whether there was anything to forget.
fn clear_wedged(record: &mut Record, addr: PciAddr) -> bool {
    let before = record.wedges.len();
    record.wedges.retain(|w| !w.addrs.contains(&addr));
    let is_cleared = record.wedges.len() < before;
    if is_cleared {
        let mut owed = std::mem::take(&mut record.under_way);
        owed.retain(|act| matches!(act, Act::Rescan { .. }));
        record.rest(record.state);
        record.under_way = owed;
    }
    is_cleared
}

/// One record: None where it is home now, else why it is left.
fn settle(
    host: &mut Session,
    guard: Option<&Guard>,
    record: &Record,
    records: &[Record],
    how: &Recover,
    starting: Option<VmId>,
) -> Result<Option<String>, Error> {
    let snapshot = host.look(records)?;
    // What its QEMU has stays, or another VM's; and what they run without does not.
    let part = Part::beside(record, &owners::in_use(&snapshot, record));
    let Part { comes, stays } = part.unwrap_or_else(|| Part::whole(record));
    let addrs: Vec<PciAddr> = comes.taken.iter().map(|t| t.addr).collect();
    let claim = owners::claim(&snapshot, record, &addrs, host.signs_by_hand(record));
    if let Some(why) = not_stranded(record, claim.as_ref(), how.all) {
        return Ok(Some(why));
    }
    if let Some(Reason::Claimed { claim, .. }) = host.needed_at_home(&addrs, &snapshot, &[record.owner])?.first() {
        info!(
            "{}: {} {} not brought home: {claim}",
            record.owner,
            join(&addrs),
            are(addrs.len())
        );
        return Ok(Some(claim.to_string()));
    }
    let other = snapshot
        .vms
        .iter()
        .find(|vm| Owner::Vm(vm.vmid) != record.owner && !owners::held_by(&snapshot, vm.vmid, &addrs).is_empty());
    if let Some(vm) = other {
        return Ok(Some(Claim::Runs(vm.vmid).to_string()));
    }
    if record.at_work.is_some() {
        let (acts, groups) = (record.acts_at_work(), join(&record.workers));
        return Ok(Some(format!(
            "stranded; a run that was killed was at {acts}, in process group {groups}: once that is over it would be \
             brought home"
        )));
    }
    for wedge in &record.late {
        info!(
            "{}: '{}' was stuck in the kernel and has ended, late",
            record.owner, wedge.act
        );
    }
    host.budgets = record.budgets.clone();
    let end = host.kernel.now() + host.budgets.way_home;
    let planned = match starting {
        Some(ctid) => comes.without_container(ctid),
        None => comes,
    };
    let plan = host.plan_home(&planned, records, Some(snapshot), end)?;
    let Some(guard) = guard else {
        return Ok(Some("stranded; it would be brought home".to_owned()));
    };
    host.execute(guard, record.clone(), stays.clone(), &plan, end)?;
    Ok(stays.map(|stays| {
        let runs = join(stays.taken.iter().map(|t| t.addr));
        format!("a VM runs with {runs}, and {} is home", join(&addrs))
    }))
}

/// Why a record is left as it is; None: what it speaks of is stranded. `claim`: what its owner has; `all`: what was taken by
/// hand comes home as well.
pub fn not_stranded(record: &Record, claim: Option<&Claim>, all: bool) -> Option<String> {
    if let Some(run) = record.at_work.as_ref().and_then(|w| w.run.as_ref()) {
        return Some(format!("{run} is at work on it, at {}", record.acts_at_work()));
    }
    match (record.owner, claim) {
        (Owner::Vm(_), Some(claim)) => Some(claim.to_string()),
        (Owner::ByHand(_), _) if record.state == State::Away && !all => {
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
        let is = are(o.functions.len());
        let it_is = if is == "is" { "it is" } else { "they are" };
        match &o.left {
            None => format!("{}: {functions} {is} home\n", o.owner),
            Some(why) if dry_run => format!("{}: {functions}: {why}\n", o.owner),
            Some(why) => format!("{}: {functions} {is} left as {it_is}: {why}\n", o.owner),
        }
    };
    outcomes.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::time::Duration;

    use crate::base::deadlines::Budgets;
    use crate::base::process::Group;
    use crate::model::record::AtWork;

    use crate::model::record::{Wedge, found_again};

    const GROUP: Group = Group {
        number: 77,
        started: None,
    };

    #[test]
    fn what_is_owed_a_rescan_is_so_after_a_wedge_was_cleared_too() {
        let [gpu, audio, other]: [PciAddr; 3] =
            ["0000:01:00.0", "0000:01:00.1", "0000:02:00.0"].map(|a| a.parse().unwrap());
        let bridge = Some("0000:00:01.0".parse().unwrap());
        let rescan = Act::Rescan { bridge, addr: gpu };
        let mut record = Record::new(Owner::ByHand(gpu), "boot".to_owned(), Budgets::default());
        record.state = State::Returning;
        record.under_way = vec![Act::Remove { addr: gpu }, rescan.clone()];
        record.workers = vec![GROUP];
        record.wedges.push(Wedge {
            group: GROUP,
            addrs: vec![gpu, audio],
            act: "remove".to_owned(),
            stack: String::new(),
            holders: Vec::new(),
        });
        let before = record.clone();
        assert!(!clear_wedged(&mut record, other));
        assert_eq!(record, before);
        assert!(clear_wedged(&mut record, gpu));
        assert_eq!(record.under_way, [rescan]);
        assert_eq!(found_again(&record, audio), Some(Act::Rescan { bridge, addr: audio }));
        assert_eq!((record.state, record.stuck().count()), (State::Returning, 0));
        assert!(record.workers.is_empty(), "it would count as stuck again");
    }

    #[test]
    fn several_functions_are_home_and_one_is() {
        let outcome = |functions: &[&str], left: Option<&str>| Outcome {
            owner: "VM 111".to_owned(),
            functions: functions.iter().map(|f| (*f).to_owned()).collect(),
            home: left.is_none(),
            left: left.map(str::to_owned),
        };
        let (one, two) = (&["0000:01:00.0"][..], &["0000:01:00.0", "0000:01:00.1"][..]);
        for (outcome, line) in [
            (outcome(one, None), "VM 111: 0000:01:00.0 is home\n"),
            (outcome(two, None), "VM 111: 0000:01:00.0, 0000:01:00.1 are home\n"),
            (
                outcome(one, Some("VM 111 runs with it")),
                "VM 111: 0000:01:00.0 is left as it is: VM 111 runs with it\n",
            ),
            (
                outcome(two, Some("VM 111 runs with it")),
                "VM 111: 0000:01:00.0, 0000:01:00.1 are left as they are: VM 111 runs with it\n",
            ),
        ] {
            assert_eq!(text(&[outcome], false), line);
        }
    }

    #[test]
    fn what_a_run_is_at_work_on_is_not_stranded_and_what_a_killed_one_has_left_is() {
        let mut record = Record::new(Owner::Vm("111".parse().unwrap()), "boot".to_owned(), Budgets::default());
        record.under_way = vec![Act::UnloadModule {
            name: "nvidia".to_owned(),
        }];
        let run = Some("VM 111 pre-start (pid 4711)".to_owned());
        for (at_work, busy, why) in [
            (None, false, None),
            (
                None,
                true,
                Some("VM 111 is starting or stopping, or another task has its lock"),
            ),
            (
                Some(run),
                true,
                Some("VM 111 pre-start (pid 4711) is at work on it, at 'nvidia: unload the module', for 2 s"),
            ),
            (Some(None), false, None),
        ] {
            let time = Some(Duration::from_millis(2_900));
            record.at_work = at_work.map(|run| AtWork { run, time });
            let claim = busy.then(|| Claim::Busy("111".parse().unwrap()));
            let left = not_stranded(&record, claim.as_ref(), false);
            assert_eq!(left.as_deref(), why, "{:?}", record.at_work);
        }
    }
}
