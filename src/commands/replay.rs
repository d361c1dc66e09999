//! `report --replay`: `check` and `plan` on the host of a report, which is a tree of files then. Nothing of the host that
//! this runs on is looked at.

use std::fs::File;
use std::path::Path;

use nix::sys::signal::{SigSet, Signal};
use tracing::warn;

use crate::base::root::Root;
use crate::base::text::harmless;
use crate::base::threads;
use crate::base::vmid::VmId;
use crate::check::facts::{Asked, Facts};
use crate::check::report;
use crate::commands::check::facts;
use crate::commands::cli::{Cli, Replayed, Report, Target};
use crate::commands::plan::planned;
use crate::model::error::Error;
use crate::output::check;
use crate::output::print::{print_text, shown};
use crate::report::archive::MISSING;
use crate::report::unpack::{Folder, Tree, fill};
use crate::run::session::Session;

/// What a host says: a text for each question, and how it ends.
pub type Answers = Vec<(String, Result<(), Error>)>;

/// Shows what they say, and ends as the first of them that does not end well.
pub(crate) fn run(cli: &Cli, how: &Report, archive: &Path) -> Result<(), Error> {
    let what = || format!("the report {}", archive.display());
    let file = File::open(archive).map_err(|e| Error::io(format!("{} cannot be opened", what()), e))?;
    let unread = |why| Error::Usage(format!("{} cannot be read: {why}", what()));
    let signals = signals_blocked();
    let mut tree = Tree::make().map_err(unread)?;
    gone_with_a_signal(signals, tree.folder());
    fill(&mut tree, file).map_err(unread)?;
    let mut host = Session::on(Root::at(tree.root()));
    for why in &tree.left_out {
        warn!("{}: left out: {why}", what());
    }
    for why in host.root.text(format!("/{MISSING}")).unwrap_or_default().lines() {
        warn!("{}: not in it: {}", what(), harmless(why, 400));
    }
    let mut ends = Ok(());
    for (text, end) in answers(&mut host, cli.json, how.vm, how.only)? {
        print_text(&text)?;
        ends = ends.and(end);
    }
    ends
}

/// The signals that ask us to end, blocked for this thread and those that it starts.
fn signals_blocked() -> SigSet {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        signals.add(signal);
    }
    let _ = signals.thread_block(); // it fails for no set of signals
    signals
}

/// A signal that asks us to end does so at once, whatever we are at, and the tree goes first.
fn gone_with_a_signal(signals: SigSet, folder: Folder) {
    // Without it a signal ends us all the same, and the tree stays.
    let _ = threads::start(move || {
        if let Ok(signal) = signals.wait() {
            folder.remove();
            // As a shell has it that tells of a program that a signal has ended.
            std::process::exit(128 + signal as i32);
        }
    });
}

/// What `check`, and `plan` of each VM with a GPU, say on a host.
///
/// # Errors
/// Where it cannot be looked at.
pub fn answers(host: &mut Session, json: bool, vm: Option<VmId>, only: Option<Replayed>) -> Result<Answers, Error> {
    // What only root can see is in it.
    let asked = Asked {
        vm,
        root: true,
        ..Asked::default()
    };
    let facts = facts(host, asked, &[])?;
    let mut answers = Answers::new();
    if only != Some(Replayed::Plan) {
        answers.push(checked(&facts, json)?);
    }
    if only != Some(Replayed::Check) {
        for vmid in with_gpu(&facts) {
            let head = match json {
                true => String::new(),
                false => format!("\n== plan --vm {vmid}\n"),
            };
            // Why there is none for one VM keeps no other from having its own.
            answers.push(match plan_of(host, json, vmid) {
                Ok((text, end)) => (head + &text, end),
                Err(why) => (head, Err(why)),
            });
        }
    }
    Ok(answers)
}

/// What `check` says.
pub(crate) fn checked(facts: &Facts, json: bool) -> Result<(String, Result<(), Error>), Error> {
    let report = report::run(facts, &[]);
    let text = shown(json, &check::shown(&report), || check::text(&report))?;
    let end = match report.summary().failures {
        0 => Ok(()),
        failures => Err(Error::Unfit { failures }),
    };
    Ok((text, end))
}

/// The VMs that are asked about and have a GPU, or may have one.
pub(crate) fn with_gpu(facts: &Facts) -> Vec<VmId> {
    let with = facts.asked_vms().filter(|vm| vm.has_gpu());
    with.map(|vm| vm.vmid).collect()
}

/// What `plan --vm VMID` says; where it cannot be asked, why.
pub(crate) fn plan_of(host: &mut Session, json: bool, vmid: VmId) -> Result<(String, Result<(), Error>), Error> {
    let target = Target {
        vm: Some(vmid),
        gpu: None,
    };
    planned(host, json, &target, Some(vmid))
}
