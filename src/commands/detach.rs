//! `detach`: what would be taken away is shown, a person asked, and Proxmox's own program run.
//!
//! What is taken away is decided in [`crate::attach::unwanted`].

use crate::attach::change::Change;
use crate::attach::guest::{Guest, on_another_node};
use crate::attach::own_file::{self, Own, Whose};
use crate::attach::{hook, unwanted};
use crate::base::text::join;
use crate::base::vmid::VmId;
use crate::check::facts::Facts;
use crate::commands::cli::{Cli, Detach};
use crate::commands::guests::{Host, Ran, Read, Way, announced, commands, declined, may, refused, run};
use crate::model::error::{Error, Exit, chain};
use crate::output::attach::{Shown, said};
use crate::output::print::json_text;
use crate::settings::file::of_vm;

/// A guest that loses what it has.
struct One {
    read: Read,
    change: Change,
    /// Its settings, where they go.
    own: Option<Own>,
}

/// Takes the hook away from a guest, or from all of this node.
///
/// # Errors
/// A refusal with every reason: of several guests all are left as they are where it is known before that one cannot be changed. What
/// Proxmox's program says: then the others are changed all the same.
pub fn detach(host: &mut dyn Host, cli: &Cli, how: &Detach) -> Result<(), Error> {
    let way = Way::of(cli, how.yes)?;
    let mut facts = host.facts(how.id)?;
    let mut shown = Shown::of(Vec::new());
    let (ids, gone) = match how.id {
        Some(id) => (vec![id], Vec::new()),
        None => all(host, &facts, !how.gpu.is_empty(), &mut shown.notes)?,
    };
    let (mut ones, mut reasons) = (Vec::new(), Vec::new());
    for id in ids {
        let read;
        (read, facts) = Read::of(facts, id).map_err(|why| refused(vec![why]))?;
        let set = match how.gpu.is_empty() {
            true => Vec::new(),
            false => own_file::lines(host.effects(), id)?,
        };
        match unwanted::change(&facts, id, &how.gpu, &set) {
            Ok(change) => {
                shown.notes.extend(change.notes.iter().cloned());
                let own = settings(host, &change, &mut shown)?;
                ones.push(One { read, change, own });
            }
            Err(more) => reasons.extend(more),
        }
    }
    if !reasons.is_empty() {
        return Err(refused(reasons));
    }
    let changes: Vec<Change> = ones.iter().map(|one| one.change.clone()).collect();
    shown.commands = commands(&changes);
    shown.removes.extend(gone.iter().map(|(id, _)| of_vm(*id)));
    if ones.is_empty() && gone.is_empty() {
        shown
            .notes
            .push("No guest of this node has gpu-handoff as its hookscript.".to_owned());
    }
    if !announced(host, way, &shown)? || shown.is_nothing() {
        return Ok(());
    }
    may(host, way)?;
    if !(way.yes || host.ask("Do it?")?) {
        return Err(declined(host));
    }
    let (mut is_done, mut failed) = (false, Vec::new());
    for one in ones.iter().filter(|one| !one.change.is_nothing() || one.own.is_some()) {
        match detached(host, one) {
            Ok(news) => {
                is_done = true;
                if !way.json {
                    for new in news {
                        host.show(&said(&new))?;
                    }
                    host.show(&format!("{} is detached.\n", one.change.name))?;
                } else {
                    shown.notes.extend(news);
                }
            }
            Err(why @ Error::Interrupted) => {
                failed.push(why);
                break;
            }
            Err(why) => failed.push(why),
        }
    }
    for (id, own) in &gone {
        if failed.iter().any(|why| matches!(why, Error::Interrupted)) {
            break;
        }
        match removed(host, *id, own) {
            Ok(_) => is_done = true,
            Err(why) => failed.push(why),
        }
    }
    match all_of(failed) {
        Some(why) if is_done => Err(why.beside()),
        Some(why) => Err(why),
        None if way.json => {
            shown.done = true;
            host.show(&json_text(&shown)?)
        }
        None => Ok(()),
    }
}

/// Every guest of this node that has the hook, or lines that attach has set where these are to go; and the settings of those that
/// have it no more, or are gone.
#[allow(clippy::type_complexity)] // two lists
fn all(
    host: &mut dyn Host,
    facts: &Facts,
    with_lines: bool,
    notes: &mut Vec<String>,
) -> Result<(Vec<VmId>, Vec<(VmId, Own)>), Error> {
    let mut ids = hook::attached(facts).map_err(refused)?;
    let mut gone = Vec::new();
    for id in own_file::all(host.effects())? {
        if ids.contains(&id) {
            continue;
        }
        if on_another_node(facts, id).map_err(|why| refused(vec![why]))?.is_some() {
            notes.push(format!("{} is of a guest of another node, and stays.", of_vm(id)));
            continue;
        }
        let guest = Guest::of(facts, id).ok();
        // Whose hook may call this program is asked about by its number.
        let is_free = |guest: &Guest<'_>| matches!(hook::Hook::of(facts, guest), hook::Hook::None);
        if guest.is_some() && with_lines && !own_file::lines(host.effects(), id)?.is_empty() {
            ids.push(id);
        } else if guest.as_ref().is_none_or(is_free) {
            let own = own_file::look(host.effects(), id)?;
            if own.whose == Whose::Ours {
                gone.push((id, own));
            }
        }
    }
    Ok((ids, gone))
}

/// The settings of a guest, where they go with the hook.
fn settings(host: &mut dyn Host, change: &Change, shown: &mut Shown<'_>) -> Result<Option<Own>, Error> {
    let id = change.name.id;
    let own = own_file::look(host.effects(), id)?;
    match own.whose {
        Whose::Ours if change.keeps_settings => {
            shown.notes.push(format!("{} stays as well.", of_vm(id)));
        }
        Whose::Ours => {
            shown.removes.push(of_vm(id));
            return Ok(Some(own));
        }
        Whose::Others => shown
            .notes
            .push(format!("{} is not as attach wrote it, and stays.", of_vm(id))),
        Whose::Nobodys => {}
    }
    Ok(None)
}

/// Takes the settings away, if they are still as they were; whether they were.
fn removed(host: &mut dyn Host, id: VmId, own: &Own) -> Result<bool, Error> {
    if own_file::look(host.effects(), id)? != *own {
        return Ok(false);
    }
    own_file::remove(host.effects(), id).map(|()| true)
}

/// Does what was shown for a guest, where all is still as it was: the command, then its settings. What there is to say of it.
fn detached(host: &mut dyn Host, one: &One) -> Result<Vec<String>, Error> {
    let (name, id) = (one.change.name, one.change.name.id);
    one.read.is_still_so(host)?;
    let mut news = match run(host, &one.read, &one.change) {
        Ran::Done(said) => Vec::from_iter(said),
        Ran::Nothing(why) | Ran::Unknown(why) => return Err(why),
    };
    let half = |why: Error| Error::NotRestored {
        what: format!("{name}: {}", chain(why)),
        left: format!(
            "it has the hook no more, and what attach has written for it is there, {} among it",
            of_vm(id)
        ),
        hint: format!("gpu-handoff detach {id}, once that can be written"),
    };
    if let Some(own) = &one.own
        && !removed(host, id, own).map_err(half)?
    {
        news.push(format!("{} has changed since it was shown, and stays.", of_vm(id)));
    }
    if let Some(lines) = &one.change.lines {
        own_file::keep(host.effects(), id, lines).map_err(half)?;
    }
    Ok(news)
}

/// What did not go well, as one error.
fn all_of(mut failed: Vec<Error>) -> Option<Error> {
    match failed.len() {
        0 | 1 => failed.pop(),
        _ => Some(Error::Recovery {
            exit: failed
                .iter()
                .map(Error::exit)
                .find(|exit| *exit == Exit::NotRestored)
                .unwrap_or(failed[0].exit()),
            what: join(
                failed
                    .into_iter()
                    .enumerate()
                    .map(|(at, why)| format!("({}) {}", at + 1, chain(why))),
            ),
        }),
    }
}
