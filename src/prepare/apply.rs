//! Changes written down, made, and the programs run that they need.
//!
//! ```text
//! copies -> journal (what, and what is due) -> each file -> each program, struck off -> journal
//! ```
//!
//! Killed anywhere, the next run compares the files with the copies ([`settle`]), and goes on from there, forwards or back.

use std::io;

use serde::Serialize;
use tracing::info;

use crate::base::text::{foreign, join};
use crate::model::error::Error;
use crate::model::refusal::{Reason, Refusal};
use crate::prepare::changes::Change;
use crate::prepare::effects::{Effects, PROGRAM};
use crate::prepare::journal::{Command, DIR, Doing, Entry, Journal};

/// What a run has led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Done {
    /// Something was changed or run.
    pub changed: bool,
    /// It counts when the host has been rebooted.
    pub reboot: bool,
}

/// Compares the journal with the files: entries that somebody has taken back, or that a killed run has not come to, are
/// none. Of several entries of one file the later ones stand on the earlier ones.
/// What cannot be read now stays. The programs of those that are none are returned: whether somebody who has taken a change
/// back by hand has run them, nobody knows.
pub fn settle(effects: &dyn Effects, journal: &mut Journal) -> Vec<Command> {
    let mut due = Vec::new();
    let mut targets: Vec<String> = journal.entries.iter().map(|e| e.target.clone()).collect();
    targets.sort_unstable();
    targets.dedup();
    for target in targets {
        let Ok(now) = effects.read(&target).map(|found| found.map(|f| f.bytes)) else {
            continue;
        };
        let of_target: Vec<&Entry> = journal.entries.iter().filter(|e| e.target == target).collect();
        // How many of them, from the first on, are in the file.
        let last_made = of_target.iter().rposition(|e| Some(&e.after) == now.as_ref());
        let first_not = of_target
            .iter()
            .position(|e| e.before.as_ref().map(|(bytes, _)| bytes) == now.as_ref());
        let stay = match (last_made, first_not) {
            (Some(at), _) => at + 1,
            (None, Some(at)) => at,
            // Edited since, or gone.
            (None, None) => of_target.len(),
        };
        let none: Vec<u32> = of_target[stay..].iter().map(|e| e.number).collect();
        for entry in &of_target[stay..] {
            add_due(&mut due, &entry.commands);
        }
        journal.entries.retain(|e| !none.contains(&e.number));
    }
    due
}

/// Removes what a run that was killed has left beside the files that it was to change.
///
/// # Errors
/// Those of removing it.
pub(crate) fn tidy(effects: &mut dyn Effects, journal: &Journal) -> Result<(), Error> {
    if journal.doing.is_none() {
        return Ok(());
    }
    for entry in &journal.entries {
        let removed = effects.forget_leftover(&entry.target);
        removed.map_err(|e| {
            Error::io(
                format!("removing what a run has left beside {}", foreign(&entry.target)),
                e,
            )
        })?;
    }
    Ok(())
}

/// Adds commands that are not among them yet, in the order in which they are to be run: an initramfs is made before a boot
/// loader is told of it.
pub fn add_due(due: &mut Vec<Command>, more: &[Command]) {
    for command in more {
        if !due.contains(command) {
            due.push(command.clone());
        }
    }
    let makes_initramfs = |c: &Command| c.first().is_some_and(|program| program == "update-initramfs");
    let (first, others): (Vec<Command>, Vec<Command>) = due.drain(..).partition(makes_initramfs);
    due.extend(first.into_iter().chain(others));
}

/// That all programs are there.
///
/// # Errors
/// A refusal that names the first that is not.
pub fn programs_are_there(effects: &dyn Effects, due: &[Command]) -> Result<(), Error> {
    let missing = due.iter().filter_map(|c| c.first()).find(|p| !effects.has(p));
    match missing {
        None => Ok(()),
        Some(program) => {
            let package = match program.as_str() {
                "update-initramfs" => {
                    "the package initramfs-tools has it; what makes this host's initramfs otherwise is not known here"
                }
                "proxmox-boot-tool" => "the package proxmox-kernel-helper has it",
                _ => "the package grub2-common has it",
            };
            let why = format!(
                "'{}' is not on this host, and what is changed would not count without it. Hint: {package}",
                foreign(program)
            );
            Err(Refusal::from(Reason::Other(why)).into())
        }
    }
}

/// Makes the changes. `boot` is this boot's id.
///
/// # Errors
/// A refusal where a program is missing; [`Error::Restored`] where a file could not be written; [`Error::NotRestored`] where
/// a program failed: the changes stay then, and can be taken back or gone on with.
pub fn apply(
    effects: &mut dyn Effects,
    journal: &mut Journal,
    changes: Vec<Change>,
    boot: &str,
) -> Result<Done, Error> {
    // Of what is on disk: a copy is not overwritten as long as the journal there names it.
    let first = journal.next_number();
    tidy(effects, journal)?;
    let mut due = journal.due.clone();
    add_due(&mut due, &settle(effects, journal));
    let was_broken_off = journal.doing.is_some();
    for change in &changes {
        add_due(&mut due, &change.entry.commands);
    }
    programs_are_there(effects, &due)?;
    let done = Done {
        changed: !changes.is_empty() || !due.is_empty(),
        reboot: changes.iter().any(Change::needs_reboot) || !due.is_empty(),
    };
    if !done.changed && !was_broken_off {
        return Ok(done);
    }
    let before = journal.clone();
    let mut new = Vec::new();
    for change in changes {
        let number = first + u32::try_from(new.len()).unwrap_or(u32::MAX);
        new.push(Entry { number, ..change.entry });
    }
    let cannot_note = |e| {
        Error::io(
            format!("writing down in {DIR} what is to be changed; nothing was changed"),
            e,
        )
    };
    Journal::keep(effects, &new).map_err(cannot_note)?;
    journal.entries.extend(new.iter().cloned());
    journal.doing = Some(Doing::Apply);
    journal.due = due;
    if done.reboot {
        journal.reboot = Some(boot.to_owned());
    }
    journal.write(effects).map_err(cannot_note)?;
    for (at, entry) in new.iter().enumerate() {
        if let Err(error) = make(effects, entry) {
            let what = format!("{} could not be changed: {error}", entry.file);
            // It may be in its place, and not on the disk.
            let now = effects.read(&entry.target).ok().flatten();
            let is_made = now.is_some_and(|found| found.bytes == entry.after);
            return Err(take_back(
                effects,
                &new[..at + usize::from(is_made)],
                before,
                journal,
                what,
            ));
        }
        info!("{}: changed", entry.file);
    }
    run_due(effects, journal)?;
    finish(effects, journal)?;
    Ok(done)
}

/// Puts the new text into a file, if it is still as it was.
fn make(effects: &mut dyn Effects, entry: &Entry) -> io::Result<()> {
    let now = effects.read(&entry.target)?;
    if now.map(|f| f.bytes) != entry.before.as_ref().map(|(bytes, _)| bytes.clone()) {
        return Err(io::Error::other("somebody else has changed it meanwhile"));
    }
    effects.write(&entry.target, &entry.after, entry.attributes())
}

/// What was made of this run goes back, since the rest of it cannot be made.
fn take_back(effects: &mut dyn Effects, made: &[Entry], before: Journal, journal: &mut Journal, what: String) -> Error {
    let mut left = Vec::new();
    for entry in made.iter().rev() {
        if let Err(e) = put_back(effects, entry) {
            left.push(format!("{}: {e}", entry.file));
        }
    }
    let is_back = left.is_empty();
    if is_back {
        *journal = before;
    }
    // What it has that was not made is none for the next run.
    if let Err(e) = journal.write(effects) {
        left.push(format!("{DIR}: {e}"));
    }
    match is_back && left.is_empty() {
        true => Error::Restored { what },
        false => Error::NotRestored {
            what,
            left: join(left),
            hint: "'gpu-handoff prepare --revert' tries once more".to_owned(),
        },
    }
}

/// Makes a file what it was before an entry.
pub(crate) fn put_back(effects: &mut dyn Effects, entry: &Entry) -> io::Result<()> {
    match &entry.before {
        Some((bytes, attributes)) => {
            // Who may do what with it is nothing that was changed here.
            let now = effects.read(&entry.target)?;
            effects.write(&entry.target, bytes, now.map_or(*attributes, |f| f.attributes))
        }
        None => effects.remove(&entry.target),
    }
}

/// Runs what is due, and strikes off each that has ended well.
///
/// # Errors
/// [`Error::NotRestored`] with what is still due.
pub(crate) fn run_due(effects: &mut dyn Effects, journal: &mut Journal) -> Result<(), Error> {
    while let Some(command) = journal.due.first().cloned() {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        info!("running '{}'", words.join(" "));
        let result = match effects.has(words[0]) {
            true => effects.run(&words, PROGRAM),
            false => Err("is not on this host".to_owned()),
        };
        if let Err(why) = result {
            let due: Vec<String> = journal.due.iter().map(|c| format!("'{}'", c.join(" "))).collect();
            let (again, other) = match journal.doing {
                Some(Doing::Revert) => (
                    "--revert",
                    "or run by hand what is still to be run, and remove /var/lib/gpu-handoff/prepared",
                ),
                _ => ("--apply", "'--revert' takes back what was changed"),
            };
            return Err(Error::NotRestored {
                what: format!("'{}' {why}", words.join(" ")),
                left: format!(
                    "the files are changed, and {} {} still to be run",
                    join(&due),
                    are(&due)
                ),
                hint: format!(
                    "see its output above and what it is missing, then run 'gpu-handoff prepare {again}' once more; {other}"
                ),
            });
        }
        journal.due.remove(0);
        note(effects, journal)?;
    }
    Ok(())
}

fn are(due: &[String]) -> &'static str {
    crate::base::text::are(due.len())
}

/// The run has come to its end.
pub(crate) fn finish(effects: &mut dyn Effects, journal: &mut Journal) -> Result<(), Error> {
    journal.doing = None;
    note(effects, journal)
}

/// Writes the journal.
pub(crate) fn note(effects: &mut dyn Effects, journal: &Journal) -> Result<(), Error> {
    let written = journal.write(effects);
    written.map_err(|e| Error::io(format!("writing down in {DIR} what was done"), e))
}
