//! What was changed, kept on disk: each file as it was and as we made it, and what is still to be done.
//!
//! Below [`DIR`]: `journal.json`, and for each entry `N.before` and `N.after`, whole. What is to be done is there before it
//! is done, so that the next run knows how far a run has come that was killed, by comparing: a file is as it was, or as it
//! was to become, or somebody has edited it since. The form has a version; a later version of the program reads it.

use std::io;

use serde::{Deserialize, Serialize};

use crate::base::json;
use crate::base::root::Root;
use crate::model::error::Error;
use crate::model::refusal::{Reason, Refusal};
use crate::prepare::effects::{Attributes, Effects};

/// Where it is kept; for root alone.
pub const DIR: &str = "/var/lib/gpu-handoff/prepared";

/// The form that is written.
const VERSION: u32 = 1;

/// A program and its arguments.
pub type Command = Vec<String>;

/// What a run was at that has not come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Doing {
    /// `--apply`
    Apply,
    /// `--revert`
    Revert,
}

/// What was changed, in the order in which it was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Journal {
    /// What a run is at, or was at when it was killed.
    pub doing: Option<Doing>,
    /// Programs that are still to be run for what is in the files now.
    pub due: Vec<Command>,
    /// The boot in which something was changed that counts at the next one (/proc/sys/kernel/random/boot_id).
    pub reboot: Option<String>,
    /// The changes.
    pub entries: Vec<Entry>,
}

/// A file that was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its copies are called so.
    pub number: u32,
    /// The file, as it is called in the configuration.
    pub file: String,
    /// Where it is, links followed.
    pub target: String,
    /// As it was, with its attributes; None: it was not there.
    pub before: Option<(Vec<u8>, Attributes)>,
    /// As it was made.
    pub after: Vec<u8>,
    /// Programs that are run when it has changed.
    pub commands: Vec<Command>,
}

impl Entry {
    /// Who may do what with the file: as it was, or everybody may read it.
    pub fn attributes(&self) -> Attributes {
        self.before
            .as_ref()
            .map_or(Attributes::PUBLIC, |(_, attributes)| *attributes)
    }
}

/// The form on disk.
#[derive(Debug, Serialize, Deserialize)]
struct OnDisk {
    version: u32,
    /// The version of the program that has written it, for people.
    written_by: String,
    #[serde(default)]
    doing: Option<Doing>,
    #[serde(default)]
    due: Vec<Command>,
    #[serde(default)]
    reboot: Option<String>,
    entries: Vec<EntryOnDisk>,
}

#[derive(Debug, Serialize, Deserialize)]
struct EntryOnDisk {
    number: u32,
    file: String,
    target: String,
    /// None: there was no such file.
    before: Option<Attributes>,
    #[serde(default)]
    commands: Vec<Command>,
}

fn path(name: &str) -> String {
    format!("{DIR}/{name}")
}

impl Journal {
    /// Reads it; without one, nothing was changed.
    ///
    /// # Errors
    /// A refusal, where it is there and cannot be used: nothing may be changed or taken back then.
    pub fn read(root: &Root) -> Result<Journal, Error> {
        let refused = |why: String| {
            let hint = "each file as it was lies beside it, as N.before; put back by hand what you want back, and move \
                        the folder away";
            let text = format!("{} is not used: {why}. Hint: {hint}", path("journal.json"));
            Error::from(Refusal::from(Reason::Other(text)))
        };
        let bytes = match root.config(path("journal.json")) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Journal::default()),
            Err(e) => return Err(refused(e.to_string())),
        };
        /// What every form has.
        #[derive(Deserialize)]
        struct Form {
            version: u32,
        }
        let Form { version } = json::from_slice(&bytes).map_err(|e| refused(e.to_string()))?;
        if version > VERSION {
            let why = format!("its form is {version}, of a later version of gpu-handoff; this one knows {VERSION}");
            return Err(refused(why));
        }
        let on_disk: OnDisk = json::from_slice(&bytes).map_err(|e| refused(e.to_string()))?;
        let mut journal = Journal {
            doing: on_disk.doing,
            due: on_disk.due,
            reboot: on_disk.reboot,
            entries: Vec::new(),
        };
        for entry in on_disk.entries {
            let number = entry.number;
            let copy = |kind: &str| {
                let name = path(&format!("{number}.{kind}"));
                root.config(&name)
                    .map_err(|e| refused(format!("{name} cannot be read: {e}")))
            };
            let before = match entry.before {
                Some(attributes) => Some((copy("before")?, attributes)),
                None => None,
            };
            journal.entries.push(Entry {
                number,
                file: entry.file,
                target: entry.target,
                before,
                after: copy("after")?,
                commands: entry.commands,
            });
        }
        Ok(journal)
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.due.is_empty()
    }

    /// A number that no entry has.
    pub fn next_number(&self) -> u32 {
        self.entries.iter().map(|e| e.number + 1).max().unwrap_or(1)
    }

    /// Writes the copies of entries that are about to be added. Until the journal names them, nobody knows of them.
    ///
    /// # Errors
    /// Those of writing.
    pub fn keep(effects: &mut dyn Effects, entries: &[Entry]) -> io::Result<()> {
        for entry in entries {
            if let Some((bytes, _)) = &entry.before {
                effects.write(&path(&format!("{}.before", entry.number)), bytes, Attributes::PRIVATE)?;
            }
            let name = path(&format!("{}.after", entry.number));
            effects.write(&name, &entry.after, Attributes::PRIVATE)?;
        }
        Ok(())
    }

    /// Writes the journal; one that is empty goes, with all that is beside it.
    ///
    /// # Errors
    /// Those of writing.
    pub fn write(&self, effects: &mut dyn Effects) -> io::Result<()> {
        if self.is_empty() {
            effects.remove(&path("journal.json"))?;
        } else {
            let on_disk = OnDisk {
                version: VERSION,
                written_by: env!("CARGO_PKG_VERSION").to_owned(),
                doing: self.doing,
                due: self.due.clone(),
                reboot: self.reboot.clone(),
                entries: self
                    .entries
                    .iter()
                    .map(|entry| EntryOnDisk {
                        number: entry.number,
                        file: entry.file.clone(),
                        target: entry.target.clone(),
                        before: entry.before.as_ref().map(|(_, attributes)| *attributes),
                        commands: entry.commands.clone(),
                    })
                    .collect(),
            };
            let mut text = serde_json::to_string_pretty(&on_disk)?;
            text.push('\n');
            effects.write(&path("journal.json"), text.as_bytes(), Attributes::PRIVATE)?;
        }
        self.forget_others(effects)
    }

    /// Removes copies that no entry has: of entries that were taken back, and of a run that was killed before it wrote them
    /// down.
    fn forget_others(&self, effects: &mut dyn Effects) -> io::Result<()> {
        for name in effects.root().names(DIR)? {
            let is_ours = self.entries.iter().any(|e| {
                name == format!("{}.after", e.number) || (name == format!("{}.before", e.number) && e.before.is_some())
            });
            if !is_ours && name != "journal.json" {
                effects.remove(&path(&name))?;
            }
        }
        if self.is_empty() {
            effects.remove_dir(DIR);
        }
        Ok(())
    }
}
