//! The settings of one VM in a file of its own, /etc/gpu-handoff/conf.d/VMID.toml, as attach writes it.
//!
//! A copy tells later whether somebody has edited it since: what is somebody's is neither written over nor removed.

use crate::attach::offers::toml;
use crate::base::vmid::VmId;
use crate::model::error::Error;
use crate::prepare::effects::{Attributes, Effects};
use crate::settings::file::of_vm;

/// Where the copies are.
const COPIES: &str = "/var/lib/gpu-handoff/attached";

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

fn copy_of(vmid: VmId) -> String {
    format!("{COPIES}/{vmid}.toml")
}

/// What is written for a VM.
pub fn text(vmid: VmId, lines: &[(&'static str, String)]) -> String {
    format!(
        "# Settings of VM {vmid} alone, written by 'gpu-handoff attach {vmid}', which adds\n# to them; 'gpu-handoff detach {vmid}' \
         removes them. Once it is edited, both leave\n# this file alone. gpu-handoff.toml(5) says what there is to set.\n{}",
        toml(lines)
    )
}

/// Whose the file of a VM is.
///
/// # Errors
/// Where it is there and cannot be read.
pub fn look(effects: &dyn Effects, vmid: VmId) -> Result<Whose, Error> {
    let path = of_vm(vmid);
    let found = effects
        .read(&path)
        .map_err(|e| Error::io(format!("reading {path}"), e))?;
    let Some(found) = found else { return Ok(Whose::Nobodys) };
    // Only root can read the copy: for everybody else it is somebody's.
    let copy = effects.read(&copy_of(vmid)).ok().flatten();
    Ok(match copy {
        Some(copy) if copy.bytes == found.bytes => Whose::Ours,
        _ => Whose::Others,
    })
}

/// Writes it, and the copy after it: killed in between, it is somebody's.
///
/// # Errors
/// Those of writing.
pub fn write(effects: &mut dyn Effects, vmid: VmId, text: &str) -> Result<(), Error> {
    let bytes = text.as_bytes();
    let (path, copy) = (of_vm(vmid), copy_of(vmid));
    let written = effects.write(&path, bytes, Attributes::PUBLIC);
    written.map_err(|e| Error::io(format!("writing {path}"), e))?;
    let copied = effects.write(&copy, bytes, Attributes::PRIVATE);
    copied.map_err(|e| Error::io(format!("writing {copy}, by which 'detach' knows {path}"), e))
}

/// Takes both away.
///
/// # Errors
/// Those of removing them.
pub fn remove(effects: &mut dyn Effects, vmid: VmId) -> Result<(), Error> {
    for path in [of_vm(vmid), copy_of(vmid)] {
        effects
            .remove(&path)
            .map_err(|e| Error::io(format!("removing {path}"), e))?;
    }
    effects.remove_dir(COPIES);
    Ok(())
}
