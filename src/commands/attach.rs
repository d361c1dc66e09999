//! `attach`: what would be set is shown, a person asked, and Proxmox's own program run.
//!
//! What is set is decided in [`crate::attach`].

use crate::attach::change::Change;
use crate::attach::devices::How;
use crate::attach::guest::{Kind, Name, because};
use crate::attach::offers::{self, Offer};
use crate::attach::own_file::{self, Whose};
use crate::attach::wanted::{self, Wish};
use crate::check::facts::Facts;
use crate::check::finding::Level;
use crate::check::report;
use crate::commands::cli::{Attach, Cli};
use crate::commands::guests::{Host, Way, announced, commands, may, refused, run};
use crate::model::error::Error;
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
    let change = wanted::change(&facts, &wish).map_err(refused)?;
    let name = change.name;
    let facts = with(facts, &change);
    let (mut offers, others) = match name.kind {
        Kind::Vm => offers::of(&facts, name),
        Kind::Container => (Vec::new(), Vec::new()),
    };
    let changes = [change];
    let mut shown = Shown::of(commands(&changes)).in_the_way(&offers, others);
    shown.notes.clone_from(&changes[0].notes);
    let report = report::run(&facts, &[]);
    if !changes[0].is_nothing() {
        shown.says(&report, Level::Fail);
    }
    if !offers.is_empty() && own_file::look(host.effects(), name.id)? == Whose::Others {
        let all: Vec<&Offer> = offers.iter().collect();
        let mut lines = offers::lines(&facts, name, &all);
        // What it says besides stays as it is.
        lines.retain(|(key, _)| offers.iter().any(|o| o.key == *key));
        let why = format!(
            "{} is somebody's own. Hint: add this to it: {}",
            of_vm(name.id),
            offers::toml(&lines).trim_end().replace('\n', ", ")
        );
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
        return host.show("Nothing was changed.\n");
    }
    run(host, &changes)?;
    if let Some(file) = &shown.writes {
        own_file::write(host.effects(), name.id, &file.text)?;
    }
    let runs = facts.snapshot.vms.iter().any(|vm| vm.vmid == name.id);
    let now = host.facts(Some(name.id))?;
    // What waits for the next start is looked at as it will be.
    let now = if runs {
        with(now, &changes[0])
    } else {
        of_kind(now, name)
    };
    let report = report::run(&now, &[]);
    let mut ended = Shown {
        done: true,
        findings: Vec::new(),
        ..shown
    };
    ended.says(&report, Level::Warn);
    match way.json {
        true => host.show(&json_text(&ended)?),
        false => host.show(&attached(name, &ended)),
    }
}

/// The file that has these offers accepted.
fn written(facts: &Facts, name: Name, accepted: &[&Offer]) -> Option<File> {
    let file = || File {
        path: of_vm(name.id),
        text: own_file::text(name.id, &offers::lines(facts, name, accepted)),
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
