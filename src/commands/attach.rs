//! `attach`: what would be set is shown, a person asked, and Proxmox's own program run.
//!
//! What is set is decided in [`crate::attach`].

use crate::attach::change::Change;
use crate::attach::devices::How;
use crate::attach::guest::{Kind, Name, because};
use crate::attach::offers::{self, InTheWay, Offer};
use crate::attach::own_file::{self, Own, Whose};
use crate::attach::wanted::{self, Wish};
use crate::check::facts::Facts;
use crate::check::finding::Level;
use crate::check::report;
use crate::commands::cli::{Attach, Cli};
use crate::commands::guests::{Host, Ran, Read, Way, announced, commands, declined, may, refused, run};
use crate::model::error::{Error, chain};
use crate::output::attach::{File, Shown, attached, files};
use crate::output::print::json_text;
use crate::settings::file::of_vm;

/// Gives a guest the hook.
///
/// # Errors
/// A refusal with every reason; what Proxmox's program says.
pub fn attach(host: &mut dyn Host, cli: &Cli, how: &Attach) -> Result<(), Error> {
    let way = Way::of(cli, how.yes)?;
    let wish = Wish {
        id: how.id,
        gpus: how.gpu.clone(),
        how: How {
            primary: how.primary_gpu,
            mapping: how.mapping,
        },
    };
    let facts = host.facts(Some(how.id))?;
    let (read, facts) = Read::of(facts, how.id).map_err(|why| refused(vec![why]))?;
    // Who is not root cannot see what was set, and changes nothing.
    let set = match host.is_root() {
        true => own_file::lines(host.effects(), how.id)?,
        false => Vec::new(),
    };
    let change = wanted::change(&facts, &wish, &set).map_err(refused)?;
    let name = change.name;
    let mut facts = with(facts, &change);
    let users = users(host, &mut facts, name);
    let mut offers = users.offers(&facts);
    let changes = [change];
    let mut shown = Shown::of(commands(&changes));
    shown.in_the_way(&offers, users.others);
    shown.notes.clone_from(&changes[0].notes);
    let report = report::run(&facts, &[]);
    if !changes[0].is_nothing() {
        shown.says(&report, Level::Fail);
    }
    let own = own_file::look(host.effects(), name.id)?;
    if !offers.is_empty() && own.whose == Whose::Others {
        let why = somebodys(&facts, name, &offers);
        if how.accept_policies {
            return Err(refused(vec![because(why)]));
        }
        shown.notes.push(why);
        offers.clear();
    }
    if how.accept_policies {
        shown.writes = written(&facts, name, &offers.iter().collect::<Vec<_>>());
    }
    let asks = !way.yes && !how.accept_policies && !offers.is_empty();
    if shown.is_nothing() && !(asks && host.may_ask() && host.is_root()) {
        shown
            .notes
            .push(format!("{name} is attached already: there is nothing to do."));
        announced(host, Way { dry_run: true, ..way }, &shown)?;
        return Ok(());
    }
    if !announced(host, way, &shown)? {
        return Ok(());
    }
    may(host, way)?;
    if asks {
        let mut accepted = Vec::new();
        for offer in &offers {
            if host.ask(&offer.question(name))? {
                accepted.push(offer);
            }
        }
        shown.writes = written(&facts, name, &accepted);
        host.show(&files(&shown))?;
    }
    if shown.is_nothing() || !(way.yes || host.ask("Do it?")?) {
        return Err(declined(host));
    }
    let news = done(host, &read, &changes[0], &own, shown.writes.as_ref())?;
    ended(host, way, name, shown, news)
}

/// Who uses the VM's GPUs now, each judged as if it might be stopped.
fn users(host: &mut dyn Host, facts: &mut Facts, name: Name) -> InTheWay {
    match name.kind {
        Kind::Container => InTheWay::default(),
        Kind::Vm => {
            let users = InTheWay::of(facts, name);
            if users.offers(facts).is_empty() {
                return users;
            }
            let settings = users.accepted(facts);
            host.ask_for_units(&mut facts.snapshot, &users.gpus, &settings);
            users.judged(facts, name)
        }
    }
}

/// That the settings of a VM are not ours to change, and what would have to be in them.
fn somebodys(facts: &Facts, name: Name, offers: &[Offer]) -> String {
    let all: Vec<&Offer> = offers.iter().collect();
    let (mut lines, _) = offers::lines(facts, name, &all);
    // What it says besides stays as it is.
    lines.retain(|(key, _)| offers.iter().any(|o| o.key == *key));
    format!(
        "{} is somebody's own. Hint: add this to it: {}",
        of_vm(name.id),
        offers::toml(&lines).trim_end().replace('\n', ", ")
    )
}

/// Does what was shown, where all is still as it was: what is set is written down first, and taken back where Proxmox's program
/// fails. What there is to say of it.
fn done(
    host: &mut dyn Host,
    read: &Read,
    change: &Change,
    own: &Own,
    writes: Option<&File>,
) -> Result<Vec<String>, Error> {
    let id = change.name.id;
    read.is_still_so(host)?;
    if writes.is_some() && own_file::look(host.effects(), id)? != *own {
        return Err(refused(vec![because(format!(
            "{} has changed since it was shown. Hint: run it again",
            of_vm(id)
        ))]));
    }
    let settings = writes.map(|file| file.text.as_str());
    let before = own_file::put(host.effects(), id, settings, change.lines.as_deref())?;
    match run(host, read, change) {
        Ran::Done(said) => Ok(said.into_iter().collect()),
        Ran::Unknown(why) => Err(why),
        Ran::Nothing(why) => match before.put_back(host.effects()) {
            Ok(()) => Err(why),
            Err(left) => Err(own_file::not_restored(chain(why), &left)),
        },
    }
}

/// Says that it is done, and how things are then.
fn ended(host: &mut dyn Host, way: Way, name: Name, shown: Shown<'_>, mut news: Vec<String>) -> Result<(), Error> {
    let mut ended = Shown {
        done: true,
        findings: Vec::new(),
        ..shown
    };
    // What is done is done, whatever comes now.
    let now = host.facts(Some(name.id)).and_then(|now| {
        let read = Read::of(now, name.id);
        read.map_err(|why| refused(vec![why]))
    });
    let report = match now {
        Ok((_, now)) => {
            let mut now = of_kind(now, name);
            if ended.writes.is_some() {
                let users = users(host, &mut now, name);
                ended.in_the_way(&users.offers(&now), users.others);
            }
            report::run(&now, &[])
        }
        Err(why) => {
            news.push(format!(
                "What 'gpu-handoff check' says of it now could not be looked at: {}.",
                why.without_promise()
            ));
            ended.in_the_way(&[], Vec::new());
            report::Report(Vec::new())
        }
    };
    ended.says(&report, Level::Warn);
    match way.json {
        true => {
            ended.notes.extend(news);
            host.show(&json_text(&ended)?)
        }
        false => host.show(&attached(name, &ended, &news)),
    }
}

/// The file that has these offers accepted.
fn written(facts: &Facts, name: Name, accepted: &[&Offer]) -> Option<File> {
    let (lines, notes) = offers::lines(facts, name, accepted);
    let file = || File {
        path: of_vm(name.id),
        text: own_file::text(name.id, &lines, &notes),
    };
    (!accepted.is_empty()).then(file)
}

/// The same, for the checks of one guest.
fn of_kind(mut facts: Facts, name: Name) -> Facts {
    (facts.asked.vm, facts.asked.ct) = match name.kind {
        Kind::Vm => (Some(name.id), None),
        Kind::Container => (None, Some(name.id)),
    };
    facts
}

/// The same as if the change were made.
fn with(facts: Facts, change: &Change) -> Facts {
    of_kind(facts, change.name).as_if(&change.name.path(), change.after())
}
