//! What detach takes away from a guest. Pure.

use crate::attach::change::Change;
use crate::attach::guest::{Guest, because};
use crate::attach::hook::Hook;
use crate::attach::lines::{Line, Unwanted};
use crate::attach::{devices, nodes, pending};
use crate::base::pci::PciAddr;
use crate::base::text::{foreign, join};
use crate::base::vmid::VmId;
use crate::check::facts::Facts;
use crate::model::record::Owner;
use crate::model::refusal::Reason;

/// Stands for every GPU.
const ALL: &str = "all";

/// The change, where there is one, with what is to be known. `gpus`: whose lines go, too, by their names; `set`: those that
/// attach has set.
///
/// # Errors
/// Every reason why not.
pub fn change(facts: &Facts, id: VmId, gpus: &[String], set: &[Line]) -> Result<Change, Vec<Reason>> {
    let guest = Guest::of(facts, id).map_err(|why| vec![why])?;
    let (name, tool) = (guest.name, guest.name.kind.tool());
    let mut change = Change::of(&guest);
    let mut reasons = Vec::new();
    match Hook::of(facts, &guest) {
        Hook::Ours(_) => change.delete.push("hookscript".to_owned()),
        Hook::None => change.notes.push(format!("{name} has no hookscript.")),
        Hook::Another(volume) => {
            change.keeps_settings = true;
            change.notes.push(format!(
                "{name} has another hookscript, {}, which stays: it does not call gpu-handoff, as far as can be seen.",
                foreign(&volume)
            ));
        }
        Hook::Calls(volume) => reasons.push(because(format!(
            "{name} has {} as its hookscript, which calls gpu-handoff and perhaps others. Hint: take the line out of it, or '{tool} set \
             {id} --delete hookscript'",
            foreign(&volume)
        ))),
    }
    match lines(facts, &guest, gpus, set) {
        Err(more) => reasons.extend(more),
        Ok(unwanted) => {
            let stays = |line: &&Line| !unwanted.keys.contains(&line.key);
            change.lines = (!gpus.is_empty()).then(|| set.iter().filter(stays).cloned().collect());
            // What waits for its next start it has not got yet.
            let waits = pending::keys(guest.text);
            let has: Vec<&String> = unwanted.keys.iter().filter(|key| !waits.contains(key)).collect();
            if !has.is_empty() && guest.runs(facts) {
                let it = if has.len() > 1 { "them" } else { "it" };
                change.notes.push(format!(
                    "{name} runs: it has {} until it is stopped, and starts without {it}.",
                    join(has)
                ));
            }
            change.delete.extend(unwanted.keys);
            change.notes.extend(unwanted.notes);
        }
    }
    // What waits and goes is what attach has set.
    let mut ours = change.delete.clone();
    ours.retain(|key| key != "hookscript");
    let families: &[&str] = match (ours.is_empty(), guest.vm) {
        (true, _) => &["hookscript"],
        (false, Some(_)) => &["hookscript", "hostpci"],
        (false, None) => &["hookscript", "dev"],
    };
    reasons.splice(0..0, guest.in_the_way(families, &ours));
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
fn lines(facts: &Facts, guest: &Guest<'_>, names: &[String], set: &[Line]) -> Result<Unwanted, Vec<Reason>> {
    if names.is_empty() {
        return Ok(Unwanted::default());
    }
    let gpus = match names.iter().any(|name| name == ALL) {
        true => None,
        false => Some(devices::named(facts, names)?),
    };
    Ok(match guest.vm {
        Some(vm) => devices::unwanted(facts, vm, gpus.as_deref(), set),
        None => nodes::unwanted(facts, guest, gpus.as_deref(), set),
    })
}
