//! The settings of one VM in a file of its own, /etc/gpu-handoff/conf.d/VMID.toml, as attach writes it; and what attach keeps
//! beside it of what it has set.
//!
//! A copy tells later whether somebody has edited it since: what is somebody's is neither written over nor removed.

use std::collections::BTreeSet;
use std::io;

use crate::attach::lines::{self, Line};
use crate::attach::offers::toml;
use crate::base::sets::IntoSet as _;
use crate::base::vmid::VmId;
use crate::model::error::Error;
use crate::prepare::effects::{Attributes, Effects};
use crate::settings::file::of_vm;

/// Where the copies are, and the lines that were set.
const KEPT: &str = "/var/lib/gpu-handoff/attached";

/// Whose a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// There is none.
    Nobodys,
    /// As attach has written it.
    Ours,
    /// Anybody's.
    Others,
}

/// The file of a VM, as it was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    /// Whose it is.
    pub whose: Whose,
    /// What is in it.
    bytes: Option<Vec<u8>>,
}

fn copy_of(vmid: VmId) -> String {
    format!("{KEPT}/{vmid}.toml")
}

fn lines_of(id: VmId) -> String {
    format!("{KEPT}/{id}.json")
}

/// What is written for a VM; `notes` say how far a setting goes, a line each.
pub fn text(vmid: VmId, lines: &[(&'static str, String)], notes: &[String]) -> String {
    let notes: String = notes.iter().map(|note| format!("# {note}\n")).collect();
    format!(
        "# Settings of VM {vmid} alone, written by 'gpu-handoff attach {vmid}', which adds\n# to them; 'gpu-handoff detach {vmid}' \
         removes them. Once it is edited, both leave\n# this file alone. gpu-handoff.toml(5) says what there is to set.\n{notes}{}",
        toml(lines)
    )
}

fn read(effects: &dyn Effects, path: &str) -> Result<Option<Vec<u8>>, Error> {
    match effects.read(path) {
        Ok(found) => Ok(found.map(|found| found.bytes)),
        Err(e) => Err(Error::io(format!("reading {path}"), e)),
    }
}

/// The file of a VM, and whose it is.
///
/// # Errors
/// Where it is there and cannot be read.
pub fn look(effects: &dyn Effects, vmid: VmId) -> Result<Own, Error> {
    let path = of_vm(vmid);
    let bytes = read(effects, &path)?;
    // Only root can read the copy: for everybody else it is somebody's.
    let copy = effects.read(&copy_of(vmid)).ok().flatten();
    // A link that leads nowhere is not to be read, and somebody has made it.
    let is_link = effects.root().link(&path).is_ok();
    let whose = match (&bytes, copy) {
        _ if is_link => Whose::Others,
        (None, _) => Whose::Nobodys,
        (Some(bytes), Some(copy)) if copy.bytes == *bytes => Whose::Ours,
        _ => Whose::Others,
    };
    Ok(Own { whose, bytes })
}

/// The lines that attach has set for a guest.
///
/// # Errors
/// Where that is not to be read, or of a later version.
pub fn lines(effects: &dyn Effects, id: VmId) -> Result<Vec<Line>, Error> {
    let path = lines_of(id);
    let bytes = read(effects, &path)?;
    let parsed = bytes.map_or(Ok(Vec::new()), |bytes| lines::parse(&bytes));
    parsed.map_err(|why| {
        Error::io(
            format!("reading {path}, which says what attach has set"),
            io::Error::other(why),
        )
    })
}

/// The guests of which something is kept.
///
/// # Errors
/// Where the folder cannot be read.
pub fn all(effects: &dyn Effects) -> Result<BTreeSet<VmId>, Error> {
    let names = effects.root().names(KEPT);
    let names = names.map_err(|e| Error::io(format!("reading {KEPT}"), e))?;
    let id = |name: &String| {
        let stem = name.strip_suffix(".toml").or_else(|| name.strip_suffix(".json"))?;
        stem.parse().ok()
    };
    Ok(names.iter().filter_map(id).into_set())
}

/// What was there before: a path, and what was in it.
#[derive(Debug, Default)]
pub struct Before(Vec<(String, Option<Vec<u8>>, Attributes)>);

impl Before {
    fn put(
        &mut self,
        effects: &mut dyn Effects,
        path: String,
        bytes: Option<&[u8]>,
        attributes: Attributes,
    ) -> Result<(), Error> {
        let was = read(effects, &path)?;
        if was.as_deref() == bytes {
            return Ok(());
        }
        let done = match bytes {
            Some(bytes) => effects.write(&path, bytes, attributes),
            None => effects.remove(&path),
        };
        let what = if bytes.is_some() { "writing" } else { "removing" };
        done.map_err(|e| Error::io(format!("{what} {path}"), e))?;
        self.0.push((path, was, attributes));
        Ok(())
    }

    /// Puts that back, the last first.
    ///
    /// # Errors
    /// Those of writing and removing: what could not be put back, after all else was.
    pub fn put_back(self, effects: &mut dyn Effects) -> Result<(), Error> {
        let mut ended = Ok(());
        for (path, was, attributes) in self.0.into_iter().rev() {
            let done = match was {
                Some(bytes) => effects.write(&path, &bytes, attributes),
                None => effects.remove(&path),
            };
            if let Err(e) = done {
                ended = Err(Error::io(format!("putting back {path}"), e));
            }
        }
        effects.remove_dir(KEPT);
        ended
    }

    fn all(
        &mut self,
        effects: &mut dyn Effects,
        id: VmId,
        settings: Option<&str>,
        lines: Option<&[Line]>,
    ) -> Result<(), Error> {
        if let Some(lines) = lines {
            let text = (!lines.is_empty()).then(|| lines::text(lines));
            let bytes = text.as_deref().map(str::as_bytes);
            self.put(effects, lines_of(id), bytes, Attributes::PUBLIC)?;
        }
        if let Some(text) = settings {
            self.put(effects, of_vm(id), Some(text.as_bytes()), Attributes::PUBLIC)?;
            self.put(effects, copy_of(id), Some(text.as_bytes()), Attributes::PRIVATE)?;
        }
        Ok(())
    }
}

/// Writes down what is about to be set, before it is: the lines, the settings, and the copy after these: killed in between, they
/// are somebody's.
///
/// # Errors
/// Those of writing: then all is as it was, or the error says what is not.
pub fn put(
    effects: &mut dyn Effects,
    id: VmId,
    settings: Option<&str>,
    lines: Option<&[Line]>,
) -> Result<Before, Error> {
    let mut before = Before::default();
    match before.all(effects, id, settings, lines) {
        Ok(()) => Ok(before),
        Err(why) => {
            before
                .put_back(effects)
                .map_err(|left| not_restored(why.to_string(), &left))?;
            Err(why)
        }
    }
}

/// What failed, and then could not be taken back.
pub fn not_restored(what: String, left: &Error) -> Error {
    let mut causes = left.to_string();
    if let Error::Io { source, .. } = left {
        causes = format!("{causes}: {source}");
    }
    Error::NotRestored {
        what,
        left: format!("{causes}, so that what was written there is in force"),
        hint: "see that file, and remove what is not wanted".to_owned(),
    }
}

/// Takes the settings away.
///
/// # Errors
/// Those of removing them.
pub fn remove(effects: &mut dyn Effects, vmid: VmId) -> Result<(), Error> {
    for path in [of_vm(vmid), copy_of(vmid)] {
        effects
            .remove(&path)
            .map_err(|e| Error::io(format!("removing {path}"), e))?;
    }
    effects.remove_dir(KEPT);
    Ok(())
}

/// Forgets what attach has set, but for these lines.
///
/// # Errors
/// Those of writing.
pub fn keep(effects: &mut dyn Effects, id: VmId, lines: &[Line]) -> Result<(), Error> {
    Before::default().all(effects, id, None, Some(lines))?;
    effects.remove_dir(KEPT);
    Ok(())
}
