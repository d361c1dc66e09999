//! What is wanted, as each file before and after. What was edited is read once more: nothing is written that is not
//! understood as it was meant.

use std::fmt;

use crate::host::boot_loader::{KERNEL_CMDLINE, Loader, grub_files};
use crate::host::grub_config::command_line;
use crate::host::kernel_args::{Argument, arguments};
use crate::host::modprobe_config::{self, Directive};
use crate::host::module_lists;
use crate::host::place::{Place, Unknown};
use crate::prepare::diff::unified;
use crate::prepare::edit::{self, Replaced};
use crate::prepare::effects::{Attributes, Effects};
use crate::prepare::facts::Facts;
use crate::prepare::journal::{Command, Entry};
use crate::prepare::wanted::{LineEdit, Wanted, is_in_initramfs};

/// The list of modules that is ours.
pub const LOAD: &str = "/etc/modules-load.d/gpu-handoff.conf";

const LOAD_HEAD: &str = "# Made by 'gpu-handoff prepare --apply'; '--revert' takes it away.\n";

/// A file that is to be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// As the journal has it; its number is given when it is written down.
    pub entry: Entry,
    /// What is changed in it, and why; each a sentence without its end.
    pub why: Vec<String>,
}

impl Change {
    /// What differs.
    pub fn diff(&self) -> String {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let before = self.entry.before.as_ref().map(|(bytes, _)| text(bytes));
        unified(&self.entry.target, before.as_deref(), Some(&text(&self.entry.after)))
    }

    /// Whether it counts at the next boot alone. A module can be loaded at any time.
    pub fn needs_reboot(&self) -> bool {
        self.entry.file != LOAD
    }
}

/// Why nothing is changed: what was not understood, or cannot be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotUnderstood(pub Vec<Unknown>);

impl fmt::Display for NotUnderstood {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        crate::base::text::join(&self.0).fmt(f)
    }
}

/// The changes, in the order in which they are made.
///
/// # Errors
/// What is not understood, all of it.
pub fn changes(effects: &dyn Effects, facts: &Facts, wanted: &Wanted) -> Result<Vec<Change>, NotUnderstood> {
    let mut unknown = wanted.unknown.clone();
    let mut all = Vec::new();
    let mut files: Vec<&str> = wanted.lines.iter().map(|l| l.place.file.as_str()).collect();
    files.dedup();
    for file in files {
        let edits: Vec<&LineEdit> = wanted.lines.iter().filter(|l| l.place.file == file).collect();
        match lines(effects, file, &edits) {
            Ok(change) => all.push(change),
            Err(why) => unknown.push(why),
        }
    }
    if !wanted.arguments.is_empty() || wanted.missing.is_some() {
        match command_lines(effects, facts, wanted) {
            Ok(changes) => all.extend(changes),
            Err(why) => unknown.push(why),
        }
    }
    if !wanted.load.is_empty() {
        match load(effects, &wanted.load) {
            Ok(change) => all.push(change),
            Err(why) => unknown.push(why),
        }
    }
    // A file that has two names is changed once.
    let mut targets: Vec<String> = Vec::new();
    all.retain(|change: &Change| {
        let is_new = !targets.contains(&change.entry.target);
        targets.push(change.entry.target.clone());
        is_new
    });
    match unknown.is_empty() {
        true => Ok(all),
        false => Err(NotUnderstood(unknown)),
    }
}

fn unknown(file: &str, why: impl fmt::Display) -> Unknown {
    Unknown {
        file: file.to_owned(),
        line: None,
        why: why.to_string(),
    }
}

/// A file's text as it is, with where it is and its attributes.
struct Original {
    target: String,
    text: String,
    attributes: Attributes,
}

fn original(effects: &dyn Effects, file: &str) -> Result<Option<Original>, Unknown> {
    let target = effects
        .resolve(file)
        .map_err(|e| unknown(file, format!("where it leads cannot be told: {e}")))?;
    let found = effects.read(&target).map_err(|e| unknown(file, e))?;
    let Some(found) = found else { return Ok(None) };
    if found.names > 1 {
        let why = "it has several names (hard links), of which one alone would be changed";
        return Err(unknown(file, why));
    }
    let text = String::from_utf8(found.bytes).map_err(|_| unknown(file, "it is no text in UTF-8"))?;
    Ok(Some(Original {
        target,
        text,
        attributes: found.attributes,
    }))
}

fn change(file: &str, original: Option<Original>, target: String, after: String, commands: Vec<Command>) -> Change {
    Change {
        entry: Entry {
            number: 0,
            file: file.to_owned(),
            target,
            before: original.map(|o| (o.text.into_bytes(), o.attributes)),
            after: after.into_bytes(),
            commands,
        },
        why: Vec::new(),
    }
}

fn command(words: &[&str]) -> Command {
    words.iter().map(|w| (*w).to_owned()).collect()
}

/// Lines that are commented out. Of a file that a package has below /usr the one in /etc with its name is made, which goes
/// before it.
fn lines(effects: &dyn Effects, file: &str, edits: &[&LineEdit]) -> Result<Change, Unknown> {
    let original = original(effects, file)?.ok_or_else(|| unknown(file, "it is gone"))?;
    let pairs: Vec<(&Place, Option<&str>)> = edits.iter().map(|e| (&e.place, e.instead.as_deref())).collect();
    let after = edit::comment_out(&original.text, &pairs);
    is_as_meant(file, &original.text, &after, edits)?;
    let commands = match is_in_initramfs(file) {
        true => vec![command(&["update-initramfs", "-u", "-k", "all"])],
        false => Vec::new(),
    };
    let name = file.rsplit('/').next().unwrap_or(file);
    let is_a_packages = !file.starts_with("/etc/");
    let mut made = if is_a_packages {
        let file = format!("/etc/modprobe.d/{name}");
        let target = effects.resolve(&file).map_err(|e| unknown(&file, e))?;
        change(&file, None, target, after, commands)
    } else {
        let target = original.target.clone();
        change(file, Some(original), target, after, commands)
    };
    made.why = edits.iter().map(|e| format!("{}: {}", e.place, e.why)).collect();
    if is_a_packages {
        made.why.push(format!(
            "{file} is a package's: the file of that name in /etc goes before it"
        ));
    }
    Ok(made)
}

/// That a changed file says what it said before, but for what was changed.
fn is_as_meant(file: &str, before: &str, after: &str, edits: &[&LineEdit]) -> Result<(), Unknown> {
    let meant = match file == module_lists::INITRAMFS {
        true => {
            let listed = |text: &str| -> Vec<(String, Vec<String>, usize)> {
                let all = module_lists::parse(file, text, &['#']);
                all.into_iter().map(|l| (l.module, l.options, l.place.line)).collect()
            };
            let mut expected = Vec::new();
            for (module, options, line) in listed(before) {
                match edits.iter().find(|e| e.place.line == line) {
                    None => expected.push((module, options)),
                    Some(edit) => {
                        let instead = listed(edit.instead.as_deref().unwrap_or_default());
                        expected.extend(instead.into_iter().map(|(m, o, _)| (m, o)));
                    }
                }
            }
            let now: Vec<(String, Vec<String>)> = listed(after).into_iter().map(|(m, o, _)| (m, o)).collect();
            now == expected
        }
        false => {
            let mut expected: Vec<Directive> = Vec::new();
            for line in modprobe_config::parse(file, before) {
                match edits.iter().find(|e| e.place.line == line.place.line) {
                    None => expected.push(line.directive),
                    Some(edit) => {
                        let instead = edit.instead.as_deref().unwrap_or_default();
                        expected.extend(modprobe_config::parse(file, instead).into_iter().map(|l| l.directive));
                    }
                }
            }
            let now: Vec<Directive> = modprobe_config::parse(file, after)
                .into_iter()
                .map(|l| l.directive)
                .collect();
            now == expected
        }
    };
    match meant {
        true => Ok(()),
        false => Err(unknown(file, "its lines cannot be commented out one by one")),
    }
}

/// The command line of the loader that is in use.
fn command_lines(effects: &dyn Effects, facts: &Facts, wanted: &Wanted) -> Result<Vec<Change>, Unknown> {
    let missing = wanted.missing.as_ref().map(|(word, _)| *word);
    let edits: Vec<Replaced<'_>> = wanted
        .arguments
        .iter()
        .map(|a| (a.argument.text.as_str(), &a.argument.place, a.instead.as_deref()))
        .collect();
    let refresh = command(&["proxmox-boot-tool", "refresh"]);
    let (files, changed, command) = match facts.boot.loader {
        Loader::SystemdBoot => {
            let original = original(effects, KERNEL_CMDLINE)?;
            let text = original.map(|o| o.text).unwrap_or_default();
            let new = edit::kernel_cmdline(KERNEL_CMDLINE, &text, &edits, missing)?;
            let files = vec![(KERNEL_CMDLINE.to_owned(), text)];
            (files, vec![(KERNEL_CMDLINE.to_owned(), new)], refresh)
        }
        Loader::Grub { proxmox_boot_tool } => {
            let mut files = Vec::new();
            for file in grub_files(effects.root(), &mut Vec::new()) {
                if let Some(original) = original(effects, &file)? {
                    files.push((file, original.text));
                }
            }
            let changed = edit::grub(&files, &edits, missing)?;
            let command = match proxmox_boot_tool {
                true => refresh,
                false => command(&["update-grub"]),
            };
            (files, changed, command)
        }
        Loader::Other(ref why) => return Err(unknown(KERNEL_CMDLINE, why)),
    };
    args_are_as_meant(facts, &files, &changed, wanted)?;
    let mut all = Vec::new();
    for (file, after) in changed {
        let original = original(effects, &file)?.ok_or_else(|| unknown(&file, "it is gone"))?;
        let target = original.target.clone();
        let mut made = change(&file, Some(original), target, after, vec![command.clone()]);
        let here = wanted.arguments.iter().filter(|a| a.argument.place.file == file);
        made.why = here.map(|a| format!("{}: {}", a.argument.place, a.why)).collect();
        all.push(made);
    }
    if let (Some((word, why)), Some(first)) = (&wanted.missing, all.iter_mut().find(|c| has(c, missing))) {
        first
            .why
            .push(format!("{}: '{word}' is missing: {why}", first.entry.file));
    }
    Ok(all)
}

/// Whether a change is the one that adds this word.
fn has(change: &Change, word: Option<&str>) -> bool {
    let before = change.entry.before.as_ref().map_or(&[][..], |(bytes, _)| bytes);
    let count = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes).into_owned();
        word.map_or(0, |w| text.matches(w).count())
    };
    count(&change.entry.after) > count(before)
}

/// That the changed files come to the command line that is meant.
fn args_are_as_meant(
    facts: &Facts,
    files: &[(String, String)],
    changed: &[(String, String)],
    wanted: &Wanted,
) -> Result<(), Unknown> {
    let new: Vec<(String, String)> = files
        .iter()
        .map(|(file, text)| {
            let changed = changed.iter().find(|(f, _)| f == file);
            (file.clone(), changed.map_or(text, |(_, new)| new).clone())
        })
        .collect();
    let pieces = match facts.boot.loader {
        Loader::Grub { .. } => command_line(&edit::assignments(&new)?),
        _ => new
            .iter()
            .map(|(file, text)| (text.clone(), Place::line(file, 1)))
            .collect(),
    };
    let now: Vec<String> = arguments(&pieces).into_iter().map(|a| a.text).collect();
    let becomes = |argument: &Argument| {
        let edit = wanted.arguments.iter().find(|e| e.argument == *argument);
        edit.map_or(Some(argument.text.clone()), |e| e.instead.clone())
    };
    let next = facts.boot.next.as_deref().unwrap_or_default();
    let expected: Vec<String> = next.iter().filter_map(becomes).collect();
    let missing = wanted.missing.as_ref().map(|(word, _)| *word);
    let mut without = now.clone();
    if let Some(word) = missing
        && let Some(at) = without.iter().position(|w| w == word)
    {
        without.remove(at);
    }
    let is_added = missing.is_none_or(|word| now.iter().any(|w| w == word));
    match without == expected && is_added {
        true => Ok(()),
        false => {
            let file = files.first().map_or(KERNEL_CMDLINE, |(file, _)| file);
            let why = "what would be written there does not come to the command line that is meant";
            Err(unknown(file, why))
        }
    }
}

/// Modules that are loaded at boot from now on.
fn load(effects: &dyn Effects, modules: &[&str]) -> Result<Change, Unknown> {
    let target = effects.resolve(LOAD).map_err(|e| unknown(LOAD, e))?;
    let original = original(effects, LOAD)?;
    let mut text = original.as_ref().map_or(LOAD_HEAD.to_owned(), |o| o.text.clone());
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    for module in modules {
        text.push_str(&format!("{module}\n"));
    }
    let mut made = change(LOAD, original, target, text, Vec::new());
    made.why = vec![format!(
        "{LOAD}: what a VM's card is bound to is loaded at boot ({})",
        modules.join(", ")
    )];
    Ok(made)
}
