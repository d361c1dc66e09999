//! What `attach` and `detach` have in common: the host as they need it, what is shown before anything is done, and the commands run.

use std::fmt::Debug;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use crate::attach::change::Change;
use crate::attach::guest::because;
use crate::base::vmid::VmId;
use crate::check::facts::{Asked, Facts};
use crate::check::read::Part;
use crate::commands::check;
use crate::commands::cli::Cli;
use crate::model::error::Error;
use crate::model::refusal::{Reason, Refusal};
use crate::output::attach::{Shown, text};
use crate::output::print::{json_text, out};
use crate::output::stderr::Stderr;
use crate::prepare::effects::{self, Effects};
use crate::run::session::Session;

/// How long qm(1) or pct(1) may take: it waits ten seconds for the guest's lock, and for an answer of the cluster's file system.
const SET: Duration = Duration::from_secs(60);

/// How long a person may think before nothing is done.
const PATIENCE: Duration = Duration::from_secs(3600);

/// What the commands need of the host; the tests have another implementation of it.
pub trait Host: Debug {
    /// What is there, for this guest or none in particular.
    ///
    /// # Errors
    /// Where the host cannot be read.
    fn facts(&mut self, id: Option<VmId>) -> Result<Facts, Error>;

    /// Its files and programs.
    fn effects(&mut self) -> &mut dyn Effects;

    /// Whether there is somebody to ask.
    fn may_ask(&self) -> bool;

    /// Asks somebody: yes, or anything else.
    ///
    /// # Errors
    /// Where a signal ends the wait, and those of reading.
    fn ask(&mut self, question: &str) -> Result<bool, Error>;

    /// Whether it may change anything.
    fn is_root(&self) -> bool;

    /// Shows something.
    ///
    /// # Errors
    /// Those of writing.
    fn show(&mut self, text: &str) -> Result<(), Error>;
}

/// The running host.
#[derive(Debug)]
pub(crate) struct Real {
    session: Session,
    effects: effects::Host,
}

impl Real {
    pub(crate) fn new() -> Real {
        let session = Session::real();
        let effects = effects::Host::at(session.root.clone());
        Real { session, effects }
    }
}

impl Host for Real {
    fn facts(&mut self, id: Option<VmId>) -> Result<Facts, Error> {
        let asked = Asked {
            vm: id,
            root: self.is_root(),
            ..Asked::default()
        };
        check::facts(&mut self.session, asked, &[Part::Snippets])
    }

    fn effects(&mut self) -> &mut dyn Effects {
        &mut self.effects
    }

    fn may_ask(&self) -> bool {
        io::stdin().is_terminal() && io::stderr().is_terminal()
    }

    fn ask(&mut self, question: &str) -> Result<bool, Error> {
        let asked = Stderr.write_all(format!("{question} [y/N] ").as_bytes());
        asked.map_err(|e| Error::io("asking", e))?;
        let stdin = io::stdin();
        let answers = self.session.kernel.wait(&[stdin.as_fd()], PATIENCE) == [true];
        self.session.not_interrupted()?;
        let mut answer = String::new();
        if answers {
            stdin
                .read_line(&mut answer)
                .map_err(|e| Error::io("reading the answer", e))?;
        }
        Ok(["y", "yes"].contains(&answer.trim().to_ascii_lowercase().as_str()))
    }

    fn is_root(&self) -> bool {
        nix::unistd::geteuid().is_root()
    }

    fn show(&mut self, text: &str) -> Result<(), Error> {
        out(text).map_err(|e| Error::io("writing to stdout", e))
    }
}

pub(crate) fn refused(reasons: Vec<Reason>) -> Error {
    Refusal(reasons).into()
}

/// The commands of changes, as they can be typed.
pub(crate) fn commands(changes: &[Change]) -> Vec<String> {
    let those = changes.iter().filter(|change| !change.is_nothing());
    those.map(|change| change.command().join(" ")).collect()
}

/// What is asked, and how.
#[derive(Clone, Copy)]
pub(crate) struct Way {
    pub(crate) json: bool,
    pub(crate) dry_run: bool,
    pub(crate) yes: bool,
}

impl Way {
    pub(crate) fn of(cli: &Cli, yes: bool) -> Result<Way, Error> {
        if cli.json && !cli.dry_run && !yes {
            let why = "with --json nobody is asked. Hint: add --yes, or --dry-run to see what would be done";
            return Err(Error::Usage(why.to_owned()));
        }
        Ok(Way {
            json: cli.json,
            dry_run: cli.dry_run,
            yes,
        })
    }
}

/// What is shown before anything is done; whether it goes on.
pub(crate) fn announced(host: &mut dyn Host, way: Way, shown: &Shown<'_>) -> Result<bool, Error> {
    match (way.json, way.dry_run) {
        (true, true) => host.show(&json_text(shown)?)?,
        (true, false) => {}
        (false, _) => host.show(&text(shown))?,
    }
    if way.dry_run {
        if !way.json && !shown.is_nothing() {
            host.show("Nothing was changed.\n")?;
        }
        return Ok(false);
    }
    Ok(true)
}

/// That it may be done at all.
pub(crate) fn may(host: &dyn Host, way: Way) -> Result<(), Error> {
    if !host.is_root() {
        let why = "only root can change a guest's config. Hint: run it as root; --dry-run shows what would be done";
        return Err(refused(vec![because(why)]));
    }
    if !way.yes && !host.may_ask() {
        let why = "nobody can be asked: this is no terminal. Hint: add --yes, or --dry-run to see what would be done";
        return Err(refused(vec![because(why)]));
    }
    Ok(())
}

/// Runs the commands of changes, one after the other.
pub(crate) fn run(host: &mut dyn Host, changes: &[Change]) -> Result<(), Error> {
    for change in changes.iter().filter(|change| !change.is_nothing()) {
        let command = change.command();
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        let ended = host.effects().run(&words, SET);
        ended.map_err(|why| {
            let show = format!("{} config {}", words[0], change.name.id);
            let why = format!("{why}. Hint: that is Proxmox's own answer; '{show}' shows what is set");
            Error::io(format!("running '{}'", command.join(" ")), io::Error::other(why))
        })?;
    }
    Ok(())
}
