//! What `attach` and `detach` have in common: the host as they need it, what is shown before anything is done, and the commands run.

use std::fmt::Debug;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use crate::attach::change::Change;
use crate::attach::guest::{Guest, Name, because, not_seen};
use crate::attach::pending;
use crate::base::pci::PciAddr;
use crate::base::vmid::VmId;
use crate::check::facts::{Asked, Facts};
use crate::check::read::Part;
use crate::check::texts::Texts;
use crate::commands::check;
use crate::commands::cli::Cli;
use crate::execute::linux::Linux;
use crate::host::snapshot::Snapshot;
use crate::model::error::Error;
use crate::model::refusal::{Reason, Refusal};
use crate::output::attach::{Shown, text};
use crate::output::print::{json_text, out};
use crate::output::stderr::Stderr;
use crate::prepare::effects::{self, Effects};
use crate::run::session::Session;
use crate::settings::values::Settings;

/// How long qm(1) or pct(1) may take: it waits ten seconds for the guest's lock, and for an answer of the cluster's file system.
const SET: Duration = Duration::from_secs(60);

/// How long the cluster's file system may take to show its files.
const CONFIGS: Duration = Duration::from_secs(10);

/// How long a person may think before nothing is done.
const PATIENCE: Duration = Duration::from_secs(3600);

/// What the commands need of the host; the tests have another implementation of it.
pub trait Host: Debug {
    /// What is there, for this guest or none in particular.
    ///
    /// # Errors
    /// Where the host cannot be read.
    fn facts(&mut self, id: Option<VmId>) -> Result<Facts, Error>;

    /// Proxmox's files, read once more, whether or not a signal has come. What gives no answer is among what was missed.
    fn configs(&mut self) -> Texts;

    /// Asks systemd, and who else looks after them, of those who use these GPUs and are stopped by these settings.
    fn ask_for_units(&mut self, snapshot: &mut Snapshot, gpus: &[PciAddr], settings: &Settings);

    /// That nobody has asked this run to end.
    ///
    /// # Errors
    /// [`Error::Interrupted`].
    fn not_interrupted(&mut self) -> Result<(), Error>;

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

    fn configs(&mut self) -> Texts {
        // By workers of its own, which no signal ends: one that a signal has reached asks nothing any more, and what became of a
        // command is to be known all the same.
        Linux::for_looking()
            .texts(Part::Proxmox, CONFIGS)
            .unwrap_or_else(|why| Texts {
                missed: vec![(Part::Proxmox.covers().to_owned(), why.to_string())],
                ..Texts::default()
            })
    }

    fn ask_for_units(&mut self, snapshot: &mut Snapshot, gpus: &[PciAddr], settings: &Settings) {
        let before = std::mem::replace(&mut self.session.settings, settings.clone());
        snapshot.units.clear();
        self.session.ask_for_units(snapshot, gpus, &[]);
        self.session.settings = before;
    }

    fn not_interrupted(&mut self) -> Result<(), Error> {
        self.session.not_interrupted()
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
    match way.json {
        // What is done is printed once, when it is.
        true if way.dry_run || shown.is_nothing() => host.show(&json_text(shown)?)?,
        true => {}
        false => host.show(&text(shown))?,
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

/// A guest, and its config as it was read: what is shown and asked about is that.
#[derive(Clone, Debug)]
pub(crate) struct Read {
    name: Name,
    text: String,
}

impl Read {
    /// The guest's config; and the facts with what waits for its next start counted in it.
    pub(crate) fn of(facts: Facts, id: VmId) -> Result<(Read, Facts), Reason> {
        let guest = Guest::of(&facts, id)?;
        let read = Read {
            name: guest.name,
            text: guest.text.to_owned(),
        };
        let applied = pending::applied(&read.text);
        Ok((read.clone(), facts.as_if(&read.name.path(), applied)))
    }

    /// That its config is still as it was when it was shown.
    ///
    /// # Errors
    /// A refusal where it is not, or cannot be read; and where a signal has come.
    pub(crate) fn is_still_so(&self, host: &mut dyn Host) -> Result<(), Error> {
        host.not_interrupted()?;
        match host.configs().text(&self.name.path()) {
            Ok(Some(now)) if now == self.text => Ok(()),
            Ok(_) => Err(refused(vec![because(format!(
                "the config of {} has changed since it was shown. Hint: run it again",
                self.name
            ))])),
            Err(why) => Err(refused(vec![not_seen(&why)])),
        }
    }

    /// What became of a command that did not end well: whether it has done what it says all the same.
    ///
    /// # Errors
    /// Why that is not known.
    fn has(&self, host: &mut dyn Host, change: &Change) -> Result<bool, String> {
        match host.configs().text(&self.name.path()) {
            Ok(Some(now)) if now == self.text => Ok(false),
            Ok(Some(now)) if change.is_in(now) => Ok(true),
            Ok(_) => Err(format!(
                "the config of {} is neither as it was nor as it was to be",
                self.name
            )),
            Err(why) => Err(why.0),
        }
    }
}

/// How a command has ended.
#[derive(Debug)]
pub(crate) enum Ran {
    /// It was done; what there is to say of it.
    Done(Option<String>),
    /// It failed, and nothing was changed.
    Nothing(Error),
    /// It failed, and nobody knows what it has changed.
    Unknown(Error),
}

/// Runs the command of a change.
pub(crate) fn run(host: &mut dyn Host, read: &Read, change: &Change) -> Ran {
    if change.is_nothing() {
        return Ran::Done(None);
    }
    let words = change.command();
    let command = words.join(" ");
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let Err(why) = host.effects().run(&words, SET) else {
        return Ran::Done(None);
    };
    let show = format!("{} config {}", words[0], change.name.id);
    let what = format!("running '{command}'");
    match read.has(host, change) {
        Ok(true) => Ran::Done(Some(format!(
            "'{command}' {why}; {} is as it was to be all the same.",
            change.name
        ))),
        Ok(false) => {
            let why = format!("{why}. Hint: that is Proxmox's own answer; '{show}' shows what is set");
            Ran::Nothing(Error::io(what, io::Error::other(why)))
        }
        Err(left) => Ran::Unknown(Error::NotRestored {
            what: format!("{what}: {why}"),
            left,
            hint: format!(
                "'{show}' shows what is set, 'gpu-handoff detach {} --gpu all' takes it back",
                change.name.id
            ),
        }),
    }
}

/// That nobody wanted it.
pub(crate) fn declined(host: &mut dyn Host) -> Error {
    match host.show("Nothing was changed.\n") {
        Err(why) => why,
        Ok(()) => refused(vec![because(
            "nobody said yes to it. Hint: answer with 'y', or add --yes",
        )]),
    }
}
