//! `check`: reads the host, asks every check, shows what they say. Nothing is touched.

use std::time::Duration;

use crate::base::pci::PciAddr;
use crate::base::text::{foreign, join};
use crate::check::facts::{Asked, Facts, Lent};
use crate::check::read::Part;
use crate::check::report;
use crate::check::table::ROWS;
use crate::check::texts::Texts;
use crate::commands::cli::{Check, Cli};
use crate::execute::kernel::ActError;
use crate::model::error::Error;
use crate::output::check;
use crate::output::print::print;
use crate::run::session::Session;

/// How long each part of the reading may take. What the parts ask is answered in milliseconds, or not at all.
const WITHIN: Duration = Duration::from_secs(10);

/// The same for what takes seconds: lsinitramfs unpacks hundreds of megabytes.
const SLOW_WITHIN: Duration = Duration::from_secs(120);

/// Shows the checks, or runs them.
pub(crate) fn run(host: &mut Session, cli: &Cli, how: &Check) -> Result<(), Error> {
    let skipped = known(&how.skip)?;
    if how.list {
        return print(cli.json, &check::listed(), check::list_text);
    }
    let asked = Asked {
        vm: how.vm,
        ct: how.ct,
        full: how.full,
        root: !host.root.is_real() || nix::unistd::geteuid().is_root(),
    };
    let facts = facts(host, asked, &[])?;
    let report = report::run(&facts, &skipped);
    print(cli.json, &check::shown(&report), || check::text(&report))?;
    match report.summary().failures {
        0 => Ok(()),
        failures => Err(Error::Unfit { failures }),
    }
}

/// The names that are to be skipped, if all of them are names.
fn known(names: &[String]) -> Result<Vec<&str>, Error> {
    for name in names {
        if ROWS.iter().all(|row| row.id != name) {
            let hint = match report::close_to(name).as_slice() {
                [] => "'gpu-handoff check --list' shows them".to_owned(),
                near => format!("did you mean {}? 'gpu-handoff check --list' shows all", join(near)),
            };
            let name = foreign(name);
            return Err(Error::Usage(format!(
                "there is no check '{name}' to skip. Hint: {hint}"
            )));
        }
    }
    Ok(names.iter().map(String::as_str).collect())
}

/// Everything that the checks look at, and these parts besides, as far as it can be had in time.
pub(crate) fn facts(host: &mut Session, asked: Asked, more: &[Part]) -> Result<Facts, Error> {
    let settings = host.read_settings(asked.vm).map(|()| host.settings.clone());
    let (records, unreadable) = match host.load(None) {
        Ok((records, problems)) => (records, problems.iter().map(ToString::to_string).collect()),
        // As somebody who is not root finds them: the checks say so.
        Err(why) => (Vec::new(), vec![crate::model::error::chain(why)]),
    };
    let mut snapshot = host.look(&records)?;
    let gpus: Vec<PciAddr> = snapshot.gpus().map(|f| f.addr).collect();
    let shown = crate::output::status::shown(&snapshot);
    let within = host.budgets.attribute;
    host.ask(&mut snapshot, &shown, within)?;
    host.ask_for_units(&mut snapshot, &gpus, &[]);
    let mut texts = Texts::default();
    let mut parts = vec![Part::Host, Part::Modules, Part::Proxmox, Part::Containers];
    parts.extend(asked.full.then_some(Part::Slow));
    parts.extend(more);
    for part in parts {
        let within = if part == Part::Slow { SLOW_WITHIN } else { WITHIN };
        match host.kernel.texts(part, within) {
            Ok(read) => texts.add(read),
            Err(ActError::Interrupted { .. }) => return Err(Error::Interrupted),
            Err(why) => texts.missed.push((part.covers().to_owned(), why.to_string())),
        }
    }
    // What is wrong with the mappings is said where they are looked for.
    let cluster = host.cluster().unwrap_or_default();
    let lent = Lent { records, unreadable };
    Ok(Facts::of(snapshot, texts, settings, cluster, lent, asked))
}
