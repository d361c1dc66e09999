//! The way back: from the journal alone, whatever this version would do now.

use tracing::{info, warn};

use crate::base::text::{harmless, join};
use crate::host::modprobe_config;
use crate::model::error::Error;
use crate::prepare::apply::{Done, add_due, finish, note, put_back, run_due, settle, tidy};
use crate::prepare::diff::unified;
use crate::prepare::effects::Effects;
use crate::prepare::journal::{DIR, Doing, Entry, Journal};
use crate::prepare::take_out::{TakenOut, take_out};

/// Longest path that is shown, bytes.
const LONGEST_PATH: usize = 256;

/// What becomes of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Back {
    /// The file is as it was made: it becomes what it was.
    Whole,
    /// It was edited since: only what is ours goes. The new bytes.
    Ours(Vec<u8>),
    /// There is nothing of ours in it any more.
    Nothing,
    /// It was removed since.
    Gone,
    /// It was edited since, and what is ours cannot be told from that.
    Unclear,
    /// It was edited since, and what was left of it without ours would hide a package's file, named here.
    Hides(String),
}

/// What would become of an entry. Of a file that cannot be read nothing can be told.
pub fn judge(effects: &dyn Effects, entry: &Entry) -> Back {
    match effects.read(&entry.target).map(|found| found.map(|f| f.bytes)) {
        Err(_) => Back::Unclear,
        Ok(None) => Back::Gone,
        Ok(Some(now)) if now == entry.after => Back::Whole,
        Ok(Some(now)) => {
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
            // A copy of a package's file goes before that (modprobe.d(5)), however little is left in it.
            let name = entry.target.rsplit('/').next().unwrap_or_default();
            let [own, others @ ..] = &modprobe_config::DIRS;
            let is_made = entry.before.is_none() && entry.target.starts_with(own);
            let mut hidden = others.iter().map(|dir| format!("{dir}/{name}"));
            if let Some(file) = hidden.find(|file| is_made && effects.root().exists(file)) {
                return Back::Hides(file);
            }
            let before = entry.before.as_ref().map_or(&[][..], |(bytes, _)| bytes);
            let (Some(before), Some(after), Some(now)) = (text(before), text(&entry.after), text(&now)) else {
                return Back::Unclear;
            };
            match take_out(&before, &after, &now) {
                TakenOut::Text(text) => Back::Ours(text.into_bytes()),
                TakenOut::Nothing => Back::Nothing,
                TakenOut::Unclear => Back::Unclear,
            }
        }
    }
}

/// What an entry's way back changes, as a diff; None: nothing.
pub fn shown(effects: &dyn Effects, entry: &Entry) -> Option<String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let before = entry.before.as_ref().map(|(bytes, _)| text(bytes));
    match judge(effects, entry) {
        Back::Whole => Some(unified(&entry.target, Some(&text(&entry.after)), before.as_deref())),
        Back::Ours(new) => {
            let now = effects.read(&entry.target).ok().flatten()?.bytes;
            Some(unified(&entry.target, Some(&text(&now)), Some(&text(&new))))
        }
        Back::Nothing | Back::Gone | Back::Unclear | Back::Hides(_) => None,
    }
}

/// What is said of an entry that is not simply put back.
pub fn said(entry: &Entry, back: &Back) -> Option<String> {
    let file = harmless(&entry.file, LONGEST_PATH);
    Some(match back {
        Back::Whole => return None,
        Back::Ours(_) => format!("{file} was edited since: only what was changed here is taken back, the rest stays"),
        Back::Nothing => format!("{file} was edited since, and has nothing of this in it any more: it stays as it is"),
        Back::Gone => format!("{file} was removed since: it stays so"),
        Back::Hides(package) => format!(
            "{file} was edited since, and is read instead of {package}, of which it is a copy but for this change: it stays \
             as it is. Hint: move what was added to a file of another name, and remove this one"
        ),
        Back::Unclear => {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let before = entry.before.as_ref().map(|(bytes, _)| text(bytes));
            let diff = unified(&entry.target, Some(&text(&entry.after)), before.as_deref());
            format!(
                "{file} was edited since, and where this change is in it now cannot be told: it is not overwritten. What \
                 would be taken back:\n{diff}"
            )
        }
    })
}

/// Takes everything back that the journal has.
///
/// # Errors
/// [`Error::NotRestored`] where a file was edited so that it is left, or could not be written, or a program failed. All
/// others are back then.
pub fn revert(effects: &mut dyn Effects, journal: &mut Journal, boot: &str) -> Result<Done, Error> {
    let was_broken_off = journal.doing == Some(Doing::Revert);
    // Of a run that was killed before its end nobody knows what its programs have seen.
    let mut due = journal.due.clone();
    if journal.doing.is_some() {
        for entry in &journal.entries {
            add_due(&mut due, &entry.commands);
        }
    }
    tidy(effects, journal)?;
    add_due(&mut due, &settle(effects, journal));
    let mut changed = !due.is_empty();
    let mut stays = Vec::new();
    for entry in journal.entries.iter().rev() {
        let back = judge(effects, entry);
        // An earlier change of the same file lies below one that stays, and stays with it.
        if !matches!(back, Back::Unclear | Back::Hides(_)) {
            add_due(&mut due, &entry.commands);
        }
    }
    if journal.entries.is_empty() && due.is_empty() && !was_broken_off {
        // Copies that a killed run has left.
        journal.doing = None;
        finish(effects, journal)?;
        return Ok(Done {
            changed: false,
            reboot: false,
        });
    }
    journal.doing = Some(Doing::Revert);
    journal.due = due;
    if !journal.due.is_empty() {
        journal.reboot = Some(boot.to_owned());
    }
    note(effects, journal)?;
    let mut blocked: Vec<String> = Vec::new();
    for entry in journal.entries.clone().iter().rev() {
        if blocked.contains(&entry.target) {
            stays.push(entry.clone());
            continue;
        }
        let back = judge(effects, entry);
        if let Some(said) = said(entry, &back) {
            warn!("{said}");
        }
        let result = match &back {
            Back::Whole => put_back(effects, entry),
            Back::Ours(bytes) => {
                let found = effects.read(&entry.target);
                found.and_then(|found| match found {
                    Some(found) => effects.write(&entry.target, bytes, found.attributes),
                    None => Ok(()),
                })
            }
            Back::Nothing | Back::Gone => Ok(()),
            Back::Unclear | Back::Hides(_) => Err(std::io::Error::other("it was edited since")),
        };
        match result {
            Err(e) => {
                blocked.push(entry.target.clone());
                stays.push(entry.clone());
                if !matches!(back, Back::Unclear | Back::Hides(_)) {
                    warn!("{} could not be put back: {e}", entry.file);
                }
            }
            Ok(()) => {
                if matches!(back, Back::Whole | Back::Ours(_)) {
                    changed = true;
                    info!("{}: as it was", entry.file);
                }
            }
        }
    }
    stays.reverse();
    let reboot = !journal.due.is_empty();
    // What is back is told by comparing until the programs have run; after them the journal has only what stays.
    run_due(effects, journal)?;
    journal.entries = stays;
    finish(effects, journal)?;
    if !journal.entries.is_empty() {
        let files: Vec<&String> = journal.entries.iter().map(|e| &e.file).collect();
        return Err(Error::NotRestored {
            what: "not everything could be taken back".to_owned(),
            left: format!("{}, as said above", join(files)),
            hint: format!(
                "take the change out of it by hand and run 'gpu-handoff prepare --revert' once more, or leave it and \
                 remove {DIR}, which has the file as it was"
            ),
        });
    }
    Ok(Done { changed, reboot })
}
