//! What `prepare` would change, or has changed.

use serde::Serialize;

use crate::prepare::apply::Done;
use crate::prepare::changes::Change;
use crate::prepare::journal::{Command, Doing, Journal};

/// Longest line of ours, columns.
const WIDTH: usize = 79;

/// What would be done, as it is printed. Its form has a version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// The form.
    pub version: u32,
    /// The option that does it: `--apply` or `--revert`.
    pub option: &'static str,
    /// Each file that is changed.
    pub files: Vec<ShownFile>,
    /// Programs that are run then, in this order.
    pub commands: Vec<String>,
    /// What stays as it is and is worth knowing.
    pub notes: Vec<String>,
    /// Whether it counts only when the host has been rebooted.
    pub reboot: bool,
}

/// How a run has ended, as it is printed. Its form has a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Ended {
    /// The form.
    version: u32,
    /// What it has led to.
    #[serde(flatten)]
    done: Done,
}

impl Ended {
    /// In today's form.
    pub fn of(done: Done) -> Self {
        Ended { version: 1, done }
    }
}

/// A file that is changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ShownFile {
    /// Which.
    pub file: String,
    /// What is changed, and why.
    pub why: Vec<String>,
    /// What differs, in the unified format.
    pub diff: String,
}

fn commands(due: &[Command]) -> Vec<String> {
    due.iter().map(|c| c.join(" ")).collect()
}

/// What `--apply` would do. `due` is all that would be run; `boot` this boot's id.
pub fn applying(changes: &[Change], due: &[Command], notes: &[String], journal: &Journal, boot: &str) -> Shown {
    let mut notes = notes.to_vec();
    notes.extend(broken_off(journal));
    if changes.is_empty() && due.is_empty() && journal.reboot.as_deref() == Some(boot) {
        notes.push("It was prepared since the last reboot: it counts from the next one on.".to_owned());
    }
    Shown {
        version: 1,
        option: "--apply",
        files: changes
            .iter()
            .map(|change| ShownFile {
                file: change.entry.file.clone(),
                why: change.why.clone(),
                diff: change.diff(),
            })
            .collect(),
        commands: commands(due),
        notes,
        reboot: changes.iter().any(Change::needs_reboot) || !due.is_empty(),
    }
}

/// What `--revert` would do: each file with its diff.
pub fn reverting(files: Vec<ShownFile>, due: &[Command], notes: Vec<String>, journal: &Journal) -> Shown {
    let mut notes = notes;
    notes.extend(broken_off(journal));
    Shown {
        version: 1,
        option: "--revert",
        files,
        commands: commands(due),
        notes,
        reboot: !due.is_empty(),
    }
}

fn broken_off(journal: &Journal) -> Option<String> {
    let option = match journal.doing? {
        Doing::Apply => "--apply",
        Doing::Revert => "--revert",
    };
    Some(format!(
        "A run of 'gpu-handoff prepare {option}' was broken off: '--apply' goes on from there, '--revert' takes everything back."
    ))
}

/// The same for people.
pub fn text(shown: &Shown) -> String {
    let command = format!("gpu-handoff prepare {}", shown.option);
    let mut text = String::new();
    if shown.files.is_empty() && shown.commands.is_empty() {
        text.push_str(match shown.option {
            "--revert" => "There is nothing to take back.\n",
            _ => "There is nothing to change: this host is prepared.\n",
        });
    } else {
        text.push_str(&format!("'{command}' would change this:\n"));
    }
    for file in &shown.files {
        text.push('\n');
        for why in &file.why {
            text.push_str(&wrapped(why));
        }
        text.push_str(&file.diff);
    }
    if !shown.commands.is_empty() {
        text.push_str("\nThen it would run:\n");
        for command in &shown.commands {
            text.push_str(&format!("    {command}\n"));
        }
    }
    if !shown.notes.is_empty() {
        text.push('\n');
    }
    for note in &shown.notes {
        // What differs in a file is shown as it is.
        match note.split_once('\n') {
            Some((said, diff)) => text.push_str(&format!("{}{diff}", wrapped(said))),
            None => text.push_str(&wrapped(note)),
        }
    }
    if !shown.files.is_empty() || !shown.commands.is_empty() {
        text.push_str(match shown.reboot {
            true => "\nIt counts when the host has been rebooted. Nothing was changed yet.\n",
            false => "\nNo reboot is needed for it. Nothing was changed yet.\n",
        });
    }
    text
}

/// What is said at the end of a run that has changed something, or nothing.
pub fn done(revert: bool, done: Done) -> String {
    let Done { changed, reboot } = done;
    let (done, nothing) = match revert {
        true => ("Everything is as it was before.", "There was nothing to take back."),
        false => (
            "This host is prepared; 'gpu-handoff prepare --revert' takes it back.",
            "There was nothing to change: this host is prepared.",
        ),
    };
    let mut text = if changed { done } else { nothing }.to_owned();
    if reboot {
        text.push_str("\nReboot the host: it counts from then on.");
    }
    text.push('\n');
    text
}

/// A sentence in lines that fit a terminal, those after the first set in.
fn wrapped(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last().map_or(0, |l| l.chars().count());
        if line > 0 && line + 1 + word.chars().count() > WIDTH {
            lines.push(format!("  {word}"));
            continue;
        }
        if let Some(last) = lines.last_mut() {
            if !last.is_empty() {
                last.push(' ');
            }
            last.push_str(word);
        }
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_are_wrapped_and_words_are_not() {
        let long = "w".repeat(100);
        for (text, expected) in [
            ("a b", "a b\n".to_owned()),
            (
                &["word"; 20].join(" "),
                format!("{}\n  {}\n", ["word"; 16].join(" "), ["word"; 4].join(" ")),
            ),
            (&format!("a {long} b"), format!("a\n  {long}\n  b\n")),
        ] {
            assert_eq!(wrapped(text), expected);
        }
    }
}
