//! What attach sets for a guest. Pure.

use crate::attach::change::Change;
use crate::attach::devices::{self, How};
use crate::attach::guest::{Guest, because};
use crate::attach::{hook, nodes};
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

/// The change, where there is one, with what is to be known.
///
/// # Errors
/// Every reason why not.
pub fn change(facts: &Facts, wish: &Wish) -> Result<Change, Vec<Reason>> {
    let guest = Guest::of(facts, wish.id).map_err(|why| vec![why])?;
    let mut change = Change::of(&guest);
    let keys: &[&str] = if wish.gpus.is_empty() {
        &["hookscript"]
    } else {
        &["hookscript", "hostpci", "dev"]
    };
    let mut reasons = guest.in_the_way(keys);
    if guest.get("template").as_deref() == Some("1") {
        reasons.push(because(format!(
            "{} is a template, which nobody starts. Hint: attach what is cloned from it",
            guest.name
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
    let lines = devices::named(facts, &wish.gpus).and_then(|gpus| match guest.vm {
        _ if gpus.is_empty() => Ok(devices::Wanted::default()),
        Some(vm) => devices::wanted(facts, vm, &gpus, wish.how),
        None if wish.how.primary || wish.how.mapping => Err(vec![because(format!(
            "{} is a container, and --primary-gpu and --mapping are of VMs. Hint: leave them out",
            guest.name
        ))]),
        None => {
            let lines = nodes::wanted(facts, &guest, &gpus)?;
            let is_there = lines
                .is_empty()
                .then(|| format!("{} is given the GPU's nodes already.", guest.name));
            Ok(devices::Wanted {
                lines,
                notes: is_there.into_iter().collect(),
            })
        }
    });
    match lines {
        Err(more) => reasons.extend(more),
        Ok(wanted) => {
            change.set.extend(wanted.lines);
            change.notes.extend(wanted.notes);
        }
    }
    if reasons.is_empty() { Ok(change) } else { Err(reasons) }
}
