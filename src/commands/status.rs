//! `status`: who has which card, or which IOMMU groups the cards are in. Nothing is touched.

use std::collections::BTreeSet;

use tracing::debug;

use crate::base::pci::{PciAddr, PciSlot};
use crate::base::sets::IntoSet as _;
use crate::commands::cli::{Cli, Status, Target};
use crate::commands::target::{given, is_named, named_by_variable, some_gpus, vanished};
use crate::host::pci_ids::Named;
use crate::host::snapshot::{Snapshot, card};
use crate::model::error::Error;
use crate::model::record::{Owner, Record};
use crate::output::print::{json_line, print};
use crate::output::status::Sight;
use crate::output::style::Style;
use crate::output::{groups, status, status_table};
use crate::plan::owners::slots_of;
use crate::run::session::Session;

/// What is shown, and who has to end before something else is to be shown that nobody tells of.
pub(crate) struct Screen {
    /// The text, or the JSON on one line.
    pub text: String,
    /// Processes that are at a call: ours, and others.
    pub at_calls: Vec<i32>,
}

/// Shows it once.
pub(crate) fn run(cli: &Cli, how: &Status) -> Result<(), Error> {
    let mut host = Session::real();
    let seen = see(&mut host, how)?;
    match &seen.shown {
        Shown::Status(status) => print(cli.json, status, || match how.plain {
            true => status_table::plain(status),
            false => status_table::text(status, Style::of_stdout()),
        }),
        Shown::Groups(groups) => print(cli.json, groups, || groups::text(groups, Style::of_stdout())),
    }
}

/// What is shown at this moment, for who shows it again and again.
pub(crate) fn screen(host: &mut Session, json: bool, how: &Status, style: Style) -> Result<Screen, Error> {
    let seen = see(host, how)?;
    let text = match &seen.shown {
        Shown::Status(status) if json => json_line(status)?,
        Shown::Groups(groups) if json => json_line(groups)?,
        Shown::Status(status) if how.plain => status_table::plain(status),
        Shown::Status(status) => status_table::text(status, style),
        Shown::Groups(groups) => groups::text(groups, style),
    };
    Ok(Screen {
        text,
        at_calls: seen.at_calls,
    })
}

enum Shown {
    Status(status::Status),
    Groups(groups::Groups),
}

struct Seen {
    shown: Shown,
    at_calls: Vec<i32>,
}

fn see(host: &mut Session, how: &Status) -> Result<Seen, Error> {
    let records = host.records(None)?;
    let mut snapshot = host.look(&records)?;
    // Settings that are not understood refuse a handoff, and keep nobody from looking.
    let has_settings = host.read_settings(how.target.vm).is_ok();
    let only = selected(host, &how.target, &snapshot, &records)?;
    let groups = records.iter().flat_map(Record::groups);
    let ours = groups.flat_map(|group| group.alive(&host.root));
    let at_calls = ours.chain(snapshot.calls.iter().map(|c| c.pid)).collect();
    if how.groups {
        let names = host.kernel.names(&groups::ids(&snapshot));
        let cmdline = host.root.line("/proc/cmdline").unwrap_or_default();
        let groups = groups::groups(&snapshot, &names, &cmdline, only.as_ref());
        let shown = Shown::Groups(groups);
        return Ok(Seen { shown, at_calls });
    }
    // Who wants the drivers alone wants them at once.
    let (mut names, mut past): (Vec<Named>, _) = (Vec::new(), Vec::new());
    if !how.plain {
        // A card that does not answer is shown as one, beside the others.
        let is_shown = |addr: &PciAddr| only.as_ref().is_none_or(|slots| slots.contains(&addr.slot()));
        let gpus: Vec<PciAddr> = snapshot.gpus().map(|f| f.addr).filter(is_shown).collect();
        let cards: BTreeSet<PciAddr> = gpus.iter().flat_map(|gpu| card(&snapshot, *gpu)).into_set();
        let cards: Vec<PciAddr> = cards.into_iter().collect();
        host.ask(&mut snapshot, &cards, host.budgets.attribute)?;
        if has_settings {
            host.ask_for_units(&mut snapshot, &gpus, &[]);
        }
        names = host.kernel.names(&status::ids(&snapshot));
        past = host.kernel.past().unwrap_or_else(|why| {
            debug!("{why}");
            Vec::new()
        });
    }
    let sight = Sight {
        snapshot: &snapshot,
        records: &records,
        settings: has_settings.then_some(&host.settings),
        names: &names,
        past: &past,
    };
    let shown = Shown::Status(status::status(&sight, only.as_ref()));
    Ok(Seen { shown, at_calls })
}

/// The cards that a target means; None: all. What a VM has on record is the VM's, whatever its config says by now.
fn selected(
    host: &mut Session,
    target: &Target,
    snapshot: &Snapshot,
    records: &[Record],
) -> Result<Option<BTreeSet<PciSlot>>, Error> {
    if !is_named(target) {
        return Ok(None);
    }
    let of_vm = |r: &&Record| target.vm.is_some_and(|vmid| r.owner == Owner::Vm(vmid));
    let own = records
        .iter()
        .filter(of_vm)
        .flat_map(|r| &r.taken)
        .map(|t| t.addr.slot());
    let mut slots: BTreeSet<PciSlot> = own.into_set();
    let name = target.gpu.clone().or_else(named_by_variable);
    if let (None, Some(name)) = (target.vm, name) {
        let record = vanished(records, snapshot, &name);
        let of_name = record.into_iter().flat_map(|r| &r.taken).map(|t| t.addr);
        slots.extend(of_name.filter(|a| snapshot.function(*a).is_none()).map(|a| a.slot()));
    }
    if !slots.is_empty() && target.vm.is_none() {
        return Ok(Some(slots));
    }
    match given(host, target, snapshot) {
        Ok(mut given) => {
            slots.extend(slots_of(&given.gpus));
            // What is not understood of a config keeps nobody from looking at the rest.
            if !given.gpus.is_empty() {
                given.refused = None;
            }
            if slots.is_empty() {
                some_gpus(target, &given)?;
            }
        }
        Err(error) if slots.is_empty() => return Err(error),
        Err(_) => {}
    }
    Ok(Some(slots))
}
