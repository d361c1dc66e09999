//! Files that are real, below a root of the test, and programs that are pretended; both fail, or the run is killed in them,
//! where a test says.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use gpu_handoff::base::root::Root;
use gpu_handoff::model::error::Error;
use gpu_handoff::prepare::apply::{self, Done};
use gpu_handoff::prepare::changes::{Change, changes};
use gpu_handoff::prepare::effects::{Attributes, Effects, Host};
use gpu_handoff::prepare::facts::Facts;
use gpu_handoff::prepare::journal::Journal;
use gpu_handoff::prepare::revert;
use gpu_handoff::prepare::wanted::wanted;

use crate::hosts::tree;

/// What happens in one of the effects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The run is killed before it.
    Before,
    /// The run is killed in it: half a file lies beside the one that was to be replaced, a program has not got to its end.
    Within,
    /// The run is killed after it.
    After,
    /// It fails.
    Fails,
}

/// A run was killed.
struct Killed;

/// The programs that ran: their words, and the host's files as they saw them.
pub type Ran = Rc<RefCell<Vec<(String, BTreeMap<String, String>)>>>;

#[derive(Debug)]
pub struct World {
    host: Host,
    dir: PathBuf,
    /// How many effects there were.
    count: usize,
    /// Which of them meets a fault.
    fault: Option<(usize, Fault)>,
    pub ran: Ran,
    /// Programs that are not there.
    pub missing: Vec<&'static str>,
    /// A program that fails.
    pub failing: Option<&'static str>,
}

impl World {
    pub fn at(root: &Root, ran: &Ran, fault: Option<(usize, Fault)>) -> World {
        World {
            host: Host::at(root.clone()),
            dir: root.path("/"),
            count: 0,
            fault,
            ran: Rc::clone(ran),
            missing: Vec::new(),
            failing: None,
        }
    }

    fn now(&mut self) -> Option<Fault> {
        self.count += 1;
        let fault = self.fault.filter(|(at, _)| *at == self.count).map(|(_, fault)| fault);
        if fault == Some(Fault::Before) {
            panic_any(Killed);
        }
        fault
    }

    fn end<T>(fault: Option<Fault>, result: T) -> T {
        if fault == Some(Fault::After) {
            panic_any(Killed);
        }
        result
    }
}

impl Effects for World {
    fn root(&self) -> &Root {
        self.host.root()
    }

    fn write(&mut self, file: &str, bytes: &[u8], attributes: Attributes) -> io::Result<()> {
        let fault = self.now();
        match fault {
            Some(Fault::Fails) => return Err(io::Error::from_raw_os_error(28)),
            Some(Fault::Within) => {
                let path = self.host.root().path(file);
                let name = format!(".{}.gpu-handoff", path.file_name().unwrap().to_string_lossy());
                let half = path.with_file_name(name);
                std::fs::create_dir_all(half.parent().unwrap()).unwrap();
                std::fs::write(half, &bytes[..bytes.len() / 2]).unwrap();
                panic_any(Killed);
            }
            _ => {}
        }
        let result = self.host.write(file, bytes, attributes);
        World::end(fault, result)
    }

    fn remove(&mut self, file: &str) -> io::Result<()> {
        let fault = self.now();
        match fault {
            Some(Fault::Fails) => return Err(io::Error::from_raw_os_error(30)),
            Some(Fault::Within) => panic_any(Killed),
            _ => {}
        }
        let result = self.host.remove(file);
        World::end(fault, result)
    }

    fn forget_leftover(&mut self, file: &str) -> io::Result<()> {
        self.host.forget_leftover(file)
    }

    fn remove_dir(&mut self, dir: &str) {
        self.host.remove_dir(dir);
    }

    fn has(&self, program: &str) -> bool {
        !self.missing.contains(&program)
    }

    fn run(&mut self, words: &[&str], _: Duration) -> Result<(), String> {
        let fault = self.now();
        if fault == Some(Fault::Fails) || self.failing == Some(words[0]) {
            return Err("failed (exit status: 1)".to_owned());
        }
        if fault == Some(Fault::Within) {
            panic_any(Killed);
        }
        self.ran.borrow_mut().push((words.join(" "), tree(&self.dir)));
        World::end(fault, Ok(()))
    }
}

/// What a run has led to; None: it was killed.
pub type Ended = Option<Result<Done, Error>>;

/// A run that may be killed. What is said of that is kept off the screen.
pub fn killed_or(run: impl FnOnce() -> Result<Done, Error>) -> Ended {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => Some(result),
        Err(what) if what.is::<Killed>() => None,
        Err(what) => std::panic::resume_unwind(what),
    }
}

/// What this host needs.
pub fn needed(world: &World) -> Result<Vec<Change>, String> {
    let facts = Facts::read(world.root());
    let wanted = wanted(&facts);
    changes(world, &facts, &wanted).map_err(|why| why.to_string())
}

pub fn apply_once(world: &mut World) -> Result<Done, Error> {
    let mut journal = Journal::read(world.root())?;
    let changes = needed(world).unwrap();
    apply::apply(world, &mut journal, changes, "this boot")
}

pub fn revert_once(world: &mut World) -> Result<Done, Error> {
    let mut journal = Journal::read(world.root())?;
    revert::revert(world, &mut journal, "this boot")
}
