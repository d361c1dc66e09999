//! `detach`: what would be taken away is shown, a person asked, and Proxmox's own program run.
//!
//! What is taken away is decided in [`crate::attach::unwanted`].

use crate::attach::own_file::{self, Whose};
use crate::attach::{hook, unwanted};
use crate::commands::cli::{Cli, Detach};
use crate::commands::guests::{Host, Way, announced, commands, may, refused, run};
use crate::model::error::Error;
use crate::output::attach::Shown;
use crate::output::print::json_text;
use crate::settings::file::of_vm;

/// Takes the hook away from a guest, or from all of this node.
///
/// # Errors
/// A refusal with every reason, and what Proxmox's program says; of several guests all are left as they are where one cannot be changed.
pub fn detach(host: &mut dyn Host, cli: &Cli, how: &Detach) -> Result<(), Error> {
    let way = Way::of(cli, how.yes)?;
    let facts = host.facts(how.id)?;
    let ids = how.id.map_or_else(|| hook::attached(&facts), |id| vec![id]);
    let (mut changes, mut reasons) = (Vec::new(), Vec::new());
    for id in ids {
        match unwanted::change(&facts, id, &how.gpu) {
            Ok(change) => changes.push(change),
            Err(more) => reasons.extend(more),
        }
    }
    if !reasons.is_empty() {
        return Err(refused(reasons));
    }
    let mut shown = Shown::of(commands(&changes));
    let mut own = Vec::new();
    for change in &changes {
        shown.notes.extend(change.notes.iter().cloned());
        let id = change.name.id;
        match own_file::look(host.effects(), id)? {
            Whose::Ours => {
                shown.removes.push(of_vm(id));
                own.push(id);
            }
            Whose::Others => shown
                .notes
                .push(format!("{} is not as attach wrote it, and stays.", of_vm(id))),
            Whose::Nobodys => {}
        }
    }
    if changes.is_empty() {
        shown
            .notes
            .push("No guest of this node has gpu-handoff as its hookscript.".to_owned());
    }
    if !announced(host, way, &shown)? || shown.is_nothing() {
        return Ok(());
    }
    may(host, way)?;
    if !(way.yes || host.ask("Do it?")?) {
        return host.show("Nothing was changed.\n");
    }
    run(host, &changes)?;
    for id in own {
        own_file::remove(host.effects(), id)?;
    }
    shown.done = true;
    match way.json {
        true => host.show(&json_text(&shown)?),
        false => changes
            .iter()
            .try_for_each(|change| host.show(&format!("{} is detached.\n", change.name))),
    }
}
