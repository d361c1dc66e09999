//! The host made ready for handoffs: shown, done with `--apply`, taken back with `--revert`.
//!
//! What is changed is decided and done in [`crate::prepare`].

use std::os::fd::BorrowedFd;

use tracing::info;

use crate::base::text::join;
use crate::commands::cli::{Cli, Prepare};
use crate::model::error::Error;
use crate::model::record::Record;
use crate::model::refusal::{Reason, Refusal};
use crate::output::prepare::{Ended, Shown, ShownFile, applying, done, reverting, text};
use crate::output::print::print;
use crate::prepare::apply::{add_due, apply, settle};
use crate::prepare::changes::{Change, changes};
use crate::prepare::effects::{Effects, Host};
use crate::prepare::facts::Facts;
use crate::prepare::journal::Journal;
use crate::prepare::revert::{judge, revert, said, shown};
use crate::prepare::wanted::wanted;
use crate::run::lock::not_locked;
use crate::run::session::{Session, this_boot};
use crate::state::store::{Guard, Store};

/// Where the lock of whoever prepares is.
const LOCK_DIR: &str = "/run/gpu-handoff/prepare";

pub(crate) fn run(host: &mut Session, cli: &Cli, how: &Prepare) -> Result<(), Error> {
    let mut effects = Host::at(host.root.clone());
    if cli.dry_run || !(how.apply || how.revert) {
        let shown = match how.revert {
            true => would_revert(&effects)?,
            false => would_apply(&effects)?,
        };
        return print(cli.json, &shown, || text(&shown));
    }
    must_be_root()?;
    let who = if how.revert {
        "prepare --revert"
    } else {
        "prepare --apply"
    };
    let _alone = alone(host, who)?;
    say_who_is_away(&host.records(None)?);
    let boot = this_boot()?;
    let mut journal = Journal::read(&host.root)?;
    let result = match how.revert {
        true => revert(&mut effects, &mut journal, &boot)?,
        false => {
            let (changes, notes) = needed(&effects)?;
            for note in notes {
                info!("{note}");
            }
            apply(&mut effects, &mut journal, changes, &boot)?
        }
    };
    print(cli.json, &Ended::of(result), || done(how.revert, result))
}

/// Only one prepares at a time. Handoffs go on beside it: what it changes counts at the next boot, and an initramfs takes minutes.
fn alone(host: &mut Session, who: &str) -> Result<Guard, Error> {
    let within = host.budgets.lock;
    let kernel = &mut host.kernel;
    let wait = |fd: BorrowedFd<'_>, within| kernel.wait(&[fd], within) == [true];
    let locked = Store::at(LOCK_DIR).lock_with(who, within, wait);
    host.not_interrupted()?;
    let guard = locked.map_err(|e| not_locked(e, within))?;
    // One that makes an initramfs goes on where we are killed: two of them would write one file.
    guard.pass_on().map_err(|e| Error::io("passing the lock on", e))?;
    Ok(guard)
}

/// What this host needs, and what else is to be said of it.
fn needed(effects: &dyn Effects) -> Result<(Vec<Change>, Vec<String>), Error> {
    let facts = Facts::read(effects.root());
    let wanted = wanted(&facts);
    let changes = changes(effects, &facts, &wanted).map_err(|why| {
        let reasons = why.0.iter().map(|unknown| {
            Reason::Other(format!(
                "the host's configuration is not understood: {unknown}. Hint: write it plainly, or make the change by \
                 hand; 'gpu-handoff check' tells which is needed"
            ))
        });
        Error::from(Refusal(reasons.collect()))
    })?;
    Ok((changes, wanted.notes))
}

fn would_apply(effects: &dyn Effects) -> Result<Shown, Error> {
    let mut journal = Journal::read(effects.root())?;
    let mut due = journal.due.clone();
    add_due(&mut due, &settle(effects, &mut journal));
    let (changes, notes) = needed(effects)?;
    for change in &changes {
        add_due(&mut due, &change.entry.commands);
    }
    Ok(applying(&changes, &due, &notes, &journal, &this_boot()?))
}

fn would_revert(effects: &dyn Effects) -> Result<Shown, Error> {
    let mut journal = Journal::read(effects.root())?;
    let (mut files, mut notes, mut due) = (Vec::new(), Vec::new(), journal.due.clone());
    add_due(&mut due, &settle(effects, &mut journal));
    for entry in journal.entries.iter().rev() {
        let back = judge(effects, entry);
        if let Some(diff) = shown(effects, entry) {
            add_due(&mut due, &entry.commands);
            files.push(ShownFile {
                file: entry.file.clone(),
                why: Vec::new(),
                diff,
            });
        }
        notes.extend(said(entry, &back).map(|said| said + "."));
    }
    Ok(reverting(files, &due, notes, &journal))
}

/// Devices that are away now stay where they are.
fn say_who_is_away(records: &[Record]) {
    for record in records.iter().filter(|r| !r.taken.is_empty()) {
        info!(
            "{} has {} now, and keeps it: only files that count at the next boot are changed",
            record.owner,
            join(record.taken.iter().map(|t| t.addr))
        );
    }
}

fn must_be_root() -> Result<(), Error> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let why = "only root can change the host's configuration. Hint: run it as root";
    Err(Refusal::from(Reason::Other(why.to_owned())).into())
}
