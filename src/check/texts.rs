//! Files of the host's as they were read: a value. What was not looked at is another answer than what is not there.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::base::vmid::VmId;
use crate::check::finding::NotSeen;
use crate::check::line::Line;
use crate::host::modules::Loadable;
use crate::proxmox::PVE;

/// What a file was when it was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seen {
    /// A file's text, or the part of it that counts.
    Text(String),
    /// The names in a folder, sorted, or those that count.
    Names(Vec<String>),
    /// Where a symbolic link leads.
    Link(String),
    /// It is there, and could not be read; why.
    Unreadable(String),
}

/// Files of the host's by their paths. What is not among them is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Texts {
    /// What was seen.
    pub seen: BTreeMap<String, Seen>,
    /// When files were changed, seconds of Unix time.
    pub changed: BTreeMap<String, u64>,
    /// The permission bits of files.
    pub modes: BTreeMap<String, u32>,
    /// Bytes that are free, by mount; None: nothing can be written there.
    pub free: BTreeMap<String, Option<u64>>,
    /// Lines of modprobe.d, of lists of modules, of the kernel's command line.
    pub lines: Vec<Line>,
    /// What of these could not be read, or is not understood: a sentence each.
    pub unread: Vec<String>,
    /// What modprobe says of the driver's and VFIO's modules.
    pub loadable: Vec<Loadable>,
    /// What programs have said, by their words.
    pub said: BTreeMap<String, Result<String, String>>,
    /// The versions of NVIDIA's libraries inside containers that run.
    pub inside: BTreeMap<VmId, Vec<String>>,
    /// Parts that gave no answer: the paths below this were not looked at, and why.
    pub missed: Vec<(String, String)>,
}

impl Texts {
    /// With those of another part.
    pub fn add(&mut self, other: Texts) {
        self.seen.extend(other.seen);
        self.changed.extend(other.changed);
        self.modes.extend(other.modes);
        self.free.extend(other.free);
        self.lines.extend(other.lines);
        self.unread.extend(other.unread);
        self.loadable.extend(other.loadable);
        self.said.extend(other.said);
        self.inside.extend(other.inside);
        self.missed.extend(other.missed);
    }

    /// What was seen at a path. None: it is not there.
    ///
    /// # Errors
    /// Why it could not be looked at.
    pub fn get(&self, path: &str) -> Result<Option<&Seen>, NotSeen> {
        match self.seen.get(path) {
            Some(Seen::Unreadable(why)) => Err(NotSeen(format!("{path}: {why}"))),
            Some(seen) => Ok(Some(seen)),
            None => match self.missed.iter().find(|(part, _)| part == covering(path)) {
                Some((_, why)) => Err(NotSeen(format!("{path}: {why}"))),
                None => Ok(None),
            },
        }
    }

    /// A file's text; None where it is not there.
    ///
    /// # Errors
    /// As [`Texts::get`].
    pub fn text(&self, path: &str) -> Result<Option<&str>, NotSeen> {
        Ok(match self.get(path)? {
            Some(Seen::Text(text)) => Some(text),
            _ => None,
        })
    }

    /// A file's text that has to be there.
    ///
    /// # Errors
    /// As [`Texts::get`], and where it is not there.
    pub fn needed(&self, path: &str) -> Result<&str, NotSeen> {
        self.text(path)?.ok_or_else(|| NotSeen(format!("there is no {path}")))
    }

    /// The first line of a file; empty where it is not there.
    ///
    /// # Errors
    /// As [`Texts::get`].
    pub fn line(&self, path: &str) -> Result<&str, NotSeen> {
        Ok(self.text(path)?.and_then(|t| t.lines().next()).unwrap_or_default())
    }

    /// The names in a folder; none where it is not there.
    ///
    /// # Errors
    /// As [`Texts::get`].
    pub fn names(&self, path: &str) -> Result<&[String], NotSeen> {
        Ok(match self.get(path)? {
            Some(Seen::Names(names)) => names,
            _ => &[],
        })
    }

    /// Whether something is there.
    ///
    /// # Errors
    /// As [`Texts::get`].
    pub fn has(&self, path: &str) -> Result<bool, NotSeen> {
        Ok(self.get(path)?.is_some())
    }

    /// The files below a folder that were read: path and text.
    pub fn below<'t>(&'t self, folder: &'t str) -> impl Iterator<Item = (&'t str, &'t str)> {
        let texts = self.seen.range(folder.to_owned()..);
        let texts = texts.take_while(move |(path, _)| path.starts_with(folder));
        texts.filter_map(|(path, seen)| match seen {
            Seen::Text(text) => Some((path.as_str(), text.as_str())),
            _ => None,
        })
    }

    /// The version of an installed package.
    ///
    /// # Errors
    /// As [`Texts::get`].
    pub fn package(&self, name: &str) -> Result<Option<&str>, NotSeen> {
        let status = self.text("/var/lib/dpkg/status")?.unwrap_or_default();
        let mut of_it = status
            .split("\n\n")
            .filter(|p| p.lines().any(|l| l.strip_prefix("Package: ") == Some(name)));
        Ok(of_it.find_map(|p| p.lines().find_map(|l| l.strip_prefix("Version: "))))
    }
}

/// The part of the reading that a path is of.
fn covering(path: &str) -> &'static str {
    match path.starts_with(PVE) {
        true => PVE,
        false => "/",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_looked_at_is_another_answer_than_what_is_not_there() {
        let mut texts = Texts::default();
        texts
            .seen
            .insert("/proc/cmdline".to_owned(), Seen::Text("quiet\n".to_owned()));
        texts
            .seen
            .insert("/etc/x".to_owned(), Seen::Unreadable("Permission denied".to_owned()));
        texts
            .missed
            .push(("/etc/pve".to_owned(), "no answer within 5 s".to_owned()));
        assert_eq!(texts.line("/proc/cmdline"), Ok("quiet"));
        assert_eq!(texts.text("/proc/absent"), Ok(None));
        let not_seen = |path: &str| texts.text(path).unwrap_err().0;
        assert_eq!(not_seen("/etc/x"), "/etc/x: Permission denied");
        assert_eq!(
            not_seen("/etc/pve/storage.cfg"),
            "/etc/pve/storage.cfg: no answer within 5 s"
        );
    }
}
