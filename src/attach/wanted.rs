//! What attach sets for a guest. Pure.

use crate::attach::change::Change;
use crate::attach::devices::{self, How};
use crate::attach::guest::{Guest, because};
use crate::attach::lines::{Line, Wanted};
use crate::attach::{hook, nodes, pending};
use crate::base::text::join;
use crate::base::vmid::VmId;
use crate::check::facts::Facts;
use crate::model::refusal::Reason;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Wish {
    /// For which guest.
    pub id: VmId,
    /// Which GPUs it is given, by their names; none: what it has.
    pub gpus: Vec<String>,
    /// How a VM is given them.
    pub how: How,
}

/// The change, where there is one, with what is to be known. `set`: the lines that attach has set for it before.
///
/// # Errors
/// Every reason why not.
pub fn change(facts: &Facts, wish: &Wish, set: &[Line]) -> Result<Change, Vec<Reason>> {
    let guest = Guest::of(facts, wish.id).map_err(|why| vec![why])?;
    let name = guest.name;
    let mut change = Change::of(&guest);
    let mut reasons = Vec::new();
    if guest.get("template").as_deref() == Some("1") {
        reasons.push(because(format!(
            "{name} is a template, which nobody starts. Hint: attach what is cloned from it"
        )));
    }
    match hook::wanted(facts, &guest) {
        Err(why) => reasons.push(why),
        Ok((volume, notes)) => {
            change
                .set
                .extend(volume.map(|volume| ("hookscript".to_owned(), volume)));
            change.notes.extend(notes);
        }
    }
    reasons.extend(guest.vm.map(devices::ignored).unwrap_or_default());
    let family = if guest.vm.is_some() { "hostpci" } else { "dev" };
    let mut families = vec!["hookscript"];
    match lines(facts, &guest, wish) {
        Err(more) => {
            families.push(family);
            reasons.extend(more);
        }
        Ok(wanted) => {
            if !wanted.lines.is_empty() {
                families.push(family);
                let still = |line: &&Line| guest.get(&line.key).as_ref() == Some(&line.value);
                let mut lines: Vec<Line> = set.iter().filter(still).cloned().collect();
                lines.extend(wanted.lines.iter().cloned());
                change.lines = Some(lines);
            }
            let mut waits: Vec<&str> = wanted.lines.iter().map(|line| line.key.as_str()).collect();
            if !guest.runs(facts) {
                waits.clear();
            }
            let pending = pending::keys(guest.text);
            let of_gpu = |key: &&String| key.starts_with(family) && guest.get(key).is_some();
            if wanted.lines.is_empty() && !wish.gpus.is_empty() {
                waits.extend(pending.iter().filter(of_gpu).map(String::as_str));
            }
            change.notes.extend(wanted.notes);
            if !waits.is_empty() {
                let wait = if waits.len() > 1 { "wait" } else { "waits" };
                let runs = if guest.runs(facts) { " runs" } else { "" };
                change
                    .notes
                    .push(format!("{name}{runs}: {} {wait} for its next start.", join(&waits)));
            }
            let set = wanted.lines.into_iter().map(|line| (line.key, line.value));
            change.set.extend(set);
        }
    }
    reasons.splice(0..0, guest.in_the_way(&families, &[]));
    if reasons.is_empty() { Ok(change) } else { Err(reasons) }
}

fn lines(facts: &Facts, guest: &Guest<'_>, wish: &Wish) -> Result<Wanted, Vec<Reason>> {
    let gpus = devices::named(facts, &wish.gpus)?;
    match guest.vm {
        _ if gpus.is_empty() => Ok(Wanted::default()),
        Some(vm) => devices::wanted(facts, vm, &gpus, wish.how),
        None if wish.how.primary || wish.how.mapping => Err(vec![because(format!(
            "{} is a container, and --primary-gpu and --mapping are of VMs. Hint: leave them out",
            guest.name
        ))]),
        None => nodes::wanted(facts, guest, &gpus),
    }
}
