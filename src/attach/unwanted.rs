//! What detach takes away from a guest. Pure.

use crate::attach::change::Change;
use crate::attach::guest::{Guest, because};
use crate::attach::hook::Hook;
use crate::attach::{devices, nodes};
use crate::base::pci::PciAddr;
use crate::base::text::{foreign, join};
use crate::base::vmid::VmId;
use crate::check::facts::Facts;
use crate::model::record::Owner;
use crate::model::refusal::Reason;

/// Stands for every GPU.
const ALL: &str = "all";

/// The change, where there is one, with what is to be known. `gpus`: whose lines go, too, by their names.
///
/// # Errors
/// Every reason why not.
pub fn change(facts: &Facts, id: VmId, gpus: &[String]) -> Result<Change, Vec<Reason>> {
    let guest = Guest::of(facts, id).map_err(|why| vec![why])?;
    let (name, tool) = (guest.name, guest.name.kind.tool());
    let mut change = Change::of(&guest);
    let keys: &[&str] = if gpus.is_empty() {
        &["hookscript"]
    } else {
        &["hookscript", "hostpci", "dev"]
    };
    let mut reasons = guest.in_the_way(keys);
    match Hook::of(facts, &guest) {
        Hook::Ours(_) => change.delete.push("hookscript".to_owned()),
        Hook::None => change.notes.push(format!("{name} has no hookscript.")),
        Hook::Another(volume) => {
            let volume = foreign(&volume);
            change.notes.push(format!("{name} has another hookscript, {volume}, which stays."));
        }
        Hook::Calls(volume) => reasons.push(because(format!(
            "{name} has {} as its hookscript, which calls gpu-handoff and perhaps others. Hint: take the line out of it, or '{tool} set \
             {id} --delete hookscript'",
            foreign(&volume)
        ))),
    }
    match lines(facts, &guest, gpus) {
        Err(more) => reasons.extend(more),
        Ok((keys, notes)) => {
            change.delete.extend(keys);
            change.notes.extend(notes);
        }
    }
    let own = facts
        .records
        .iter()
        .filter(|r| r.owner == Owner::Vm(id) && guest.vm.is_some());
    let out: Vec<PciAddr> = own.flat_map(|r| &r.taken).map(|t| t.addr).collect();
    if !out.is_empty() && change.delete.iter().any(|key| key == "hookscript") {
        change.notes.push(format!(
            "{name} has {} now, and without the hookscript its post-stop is not called: the watcher brings that home when {name} has \
             ended.",
            join(out)
        ));
    }
    if reasons.is_empty() { Ok(change) } else { Err(reasons) }
}

/// The keys of lines that go, and why others stay.
fn lines(facts: &Facts, guest: &Guest<'_>, names: &[String]) -> Result<(Vec<String>, Vec<String>), Vec<Reason>> {
    if names.is_empty() {
        return Ok((Vec::new(), Vec::new()));
    }
    let gpus = match names.iter().any(|name| name == ALL) {
        true => None,
        false => Some(devices::named(facts, names)?),
    };
    match guest.vm {
        Some(vm) => Ok(devices::set_by_us(facts, vm, gpus.as_deref())),
        None => Ok((nodes::set_by_us(facts, guest, gpus.as_deref())?, Vec::new())),
    }
}
