//! One life of a handoff on a random host: out, maybe wrong, home, maybe wrong, and home at last.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use gpu_handoff::host::belongs::Belongs;
use gpu_handoff::model::act::Act;
use gpu_handoff::model::record::{Record, State as Stage};
use gpu_handoff::settings::values::Doubt;

use crate::common::hosts::{DCGM, OLLAMA, PERSISTENCED};
use crate::common::modules::needs_first;
use crate::common::session::vm;
use crate::common::{Beside, End, Event, Fault, FunctionState, MemLedger, Model, Process, Session, State};
use crate::order;
use crate::world::World;

/// How many runs came to which end.
#[derive(Debug, Default)]
pub struct Tally {
    ends: [u64; 7],
    acts: u64,
    races: u64,
    again: u64,
    recovered: u64,
    another: u64,
}

const ENDS: [&str; 7] = [
    "done",
    "refused",
    "restored",
    "not restored",
    "killed",
    "not read",
    "interrupted",
];

impl Tally {
    fn count(&mut self, end: &End) {
        let n = match end {
            End::Done => 0,
            End::Refused(_) => 1,
            End::Restored(_) => 2,
            End::NotRestored(_) | End::RestoredBut(_) => 3,
            End::Killed => 4,
            End::NotRead(_) => 5,
            End::Interrupted => 6,
        };
        self.ends[n] += 1;
    }

    /// Random cases that never come to some end show nothing about it. `many`: so many cases that the rarest, a user who
    /// comes after a proof (one in 3000), is not missed by chance.
    pub fn assert_all_seen(&self, many: bool) {
        for (name, count) in ENDS.iter().zip(self.ends).take(5) {
            assert!(count > 0, "no run ended {name}");
        }
        assert!(self.races > 0 || !many, "nobody came after a proof");
        assert!(self.again > 0, "no host changed under a plan");
        assert!(self.recovered > 0, "nothing was brought home after a failure");
        assert!(self.another > 0, "no other VM started on what was left");
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, count) in ENDS.iter().zip(self.ends) {
            write!(f, "{count} {name}, ")?;
        }
        let Tally {
            acts,
            races,
            again,
            recovered,
            another,
            ..
        } = self;
        write!(
            f,
            "{recovered} home after all, {another} other VM's starts; {acts} acts, {races} met a user who came after the proof, {again} planned once more"
        )
    }
}

struct Life<'a> {
    world: &'a World,
    session: Session,
    model: Model,
    before: State,
    tally: &'a mut Tally,
}

/// Lives it. An error is what was wrong.
pub fn live(world: &World, tally: &mut Tally) -> Result<(), String> {
    let mut model = world.model();
    let before = model.state();
    model.laws.may_touch = Some(world.may_touch(&model));
    model.laws.may_doubt = world.doubt == Doubt::GoOn && !model.is_one_shot();
    model.laws.original = Some(before.clone());
    // An override that the host had is put back last, which the rules take for one that keeps others off.
    let plain = world.cards.iter().all(|c| c.driver_override.is_none());
    model.laws.order = plain.then_some(order::broken);
    model.ledger = Some(Arc::new(MemLedger::default()));
    let mut life = Life {
        world,
        session: world.session(),
        model,
        before,
        tally,
    };
    life.out()?;
    life.tally.acts += life.model.acts.len() as u64;
    life.tally.races += life.model.laws.races as u64;
    life.tally.again += life.model.laws.again as u64;
    Ok(())
}

impl Life<'_> {
    fn records(&self) -> Vec<Record> {
        self.model.ledger.as_ref().map(|l| l.records()).unwrap_or_default()
    }

    fn out(&mut self) -> Result<(), String> {
        self.model.faults.0.extend(self.world.out);
        if let (Some((n, lasts)), Some(ledger)) = (self.world.unwritten, &self.model.ledger) {
            if lasts {
                ledger.fails_from(n);
            } else {
                ledger.fails_at(n);
            }
        }
        let end = self.session.out(&mut self.model);
        self.tally.count(&end);
        let said = format!("out: {end:?}");
        self.laws(&said)?;
        match end {
            End::Done => {
                self.away(&said)?;
                if self.comes_another() {
                    self.another()
                } else {
                    self.home()
                }
            }
            End::Refused(_) | End::NotRead(_) | End::Interrupted => {
                self.unchanged(&said)?;
                check(self.model.acts.is_empty(), || {
                    format!("{said}: after {:?}", self.model.acts)
                })
            }
            End::Restored(_) => {
                self.unchanged(&said)?;
                self.nothing_on_record(&said)
            }
            End::RestoredBut(but) => {
                // Only a call that did not answer, or failed, is an excuse; who was ended is said in any case.
                let is_ended = but.contains("was asked to end") || but.contains("the desktop has ended");
                check(self.world.out.is_some() || is_ended, || said.clone())?;
                let mut found = self.differences();
                found.retain(|f| !(f.starts_with("consoles ") && but.contains("the console vtcon")));
                for unit in [PERSISTENCED, OLLAMA, DCGM] {
                    let subject = unit.trim_end_matches(".service");
                    found.retain(|f| !(f.contains(unit) && but.contains(subject)));
                }
                check(found.is_empty(), || format!("{said}: {found:#?}"))?;
                self.nothing_on_record(&said)
            }
            End::NotRestored(_) => {
                self.recorded(&said)?;
                if self.comes_another() {
                    self.another()
                } else {
                    self.recover(&said)
                }
            }
            End::Killed => {
                self.recorded(&said)?;
                // Whichever is asked next finishes it.
                if self.comes_another() {
                    self.another()
                } else if self.world.guest && self.world.udev.is_none() {
                    self.again()
                } else {
                    self.recover(&said)
                }
            }
        }
    }

    /// The same way out once more, after the first one was killed.
    fn again(&mut self) -> Result<(), String> {
        let end = self.session.out(&mut self.model);
        self.tally.count(&end);
        let said = format!("out again: {end:?}");
        self.laws(&said)?;
        if let End::Done = end {
            self.away(&said)?;
        }
        self.recover(&said)
    }

    /// Where udev has loaded a module, what is home is not as it was, and that is held against it here.
    fn comes_another(&self) -> bool {
        self.world.another && self.world.udev.is_none()
    }

    /// Another VM starts on the GPUs of one whose post-stop was lost, or whose run was killed or has failed, and stops.
    fn another(&mut self) -> Result<(), String> {
        let another = Session {
            owner: vm(112),
            ..self.session.clone()
        };
        let end = another.start(&mut self.model, &Beside::default());
        self.tally.count(&end);
        self.tally.another += 1;
        let said = format!("another VM's start: {end:?}");
        self.laws(&said)?;
        match end {
            End::Done => self.away(&said)?,
            _ => self.recorded(&said)?,
        }
        let end = another.home(&mut self.model);
        self.tally.count(&end);
        let said = format!("{said}, then home: {end:?}");
        self.laws(&said)?;
        if self.records().is_empty() {
            return self.unchanged(&said);
        }
        self.recorded(&said)?;
        self.recover(&said)
    }

    fn home(&mut self) -> Result<(), String> {
        if self.world.guest {
            self.guest();
        }
        if let Some((at, fault)) = self.world.home {
            let at = self.model.acts.len() + at;
            self.model.faults.0.push((at, fault));
        }
        if let (Some((n, true)), Some(ledger)) = (self.world.unwritten, &self.model.ledger) {
            ledger.fails_from(n % 4);
        }
        let end = self.session.home(&mut self.model);
        self.tally.count(&end);
        let said = format!("home: {end:?}");
        self.laws(&said)?;
        match end {
            End::Done => {
                self.unchanged(&said)?;
                self.nothing_on_record(&said)
            }
            _ => {
                self.recorded(&said)?;
                self.recover(&said)
            }
        }
    }

    /// The VM runs with what it was given, and is gone a while after it was stopped.
    fn guest(&mut self) {
        let Some(group) = self.model.device(self.session.gpus[0]).and_then(|d| d.group) else {
            return;
        };
        let pid = 3500;
        let mut guest = Process::guest(pid, 111, group);
        guest.ending = true;
        if self.model.open(guest).is_ok() {
            let gone = self.model.time + Duration::from_secs(7);
            self.model
                .events
                .push((crate::common::When::At(gone), Event::Goes(pid)));
        }
    }

    /// Whatever stood in the way has gone: now it must come home.
    fn recover(&mut self, said: &str) -> Result<(), String> {
        let model = &mut self.model;
        model.faults.0.clear();
        model.probe_faults.clear();
        model.broken.clear();
        model.events.clear();
        model.processes.retain(|p| matches!(p.belongs_to, Belongs::Unit(_)));
        if let Some(ledger) = &model.ledger {
            ledger.well();
        }
        model.let_go_of_calls();
        if self.world.udev.is_some_and(|(_, name)| name == "nvidia_drm") {
            // Whoever had it loaded unloads it again.
            model.drm.clear();
            if !self.before.modules.contains(&"nvidia_drm") {
                model.modules.retain(|(m, _)| *m != "nvidia_drm");
            }
            model.spend(Duration::from_secs(1));
        }
        let lost = |f: &crate::common::before::FunctionState| self.model.device(f.addr).is_none_or(|d| d.dead);
        let lost = self.before.functions.iter().any(lost);
        for owner in self.records().iter().map(|r| r.owner).chain([self.session.owner]) {
            let of = Session {
                owner,
                ..self.session.clone()
            };
            let end = of.home(&mut self.model);
            self.tally.count(&end);
            let said = format!("{said}, then home of {owner}: {end:?}");
            self.laws(&said)?;
            match end {
                End::Done => self.tally.recovered += 1,
                End::NotRestored(_) if lost => return self.recorded(&said),
                _ => return Err(said),
            }
        }
        self.unchanged(said)?;
        self.nothing_on_record(said)
    }

    fn nothing_on_record(&self, said: &str) -> Result<(), String> {
        let records = self.records();
        check(records.is_empty(), || format!("{said}: {records:?}"))
    }

    fn laws(&self, said: &str) -> Result<(), String> {
        check(self.model.gate.is_none(), || format!("{said}: the gate was left shut"))?;
        let broken = &self.model.laws.broken;
        check(broken.is_empty(), || format!("{said}\n{broken:#?}"))
    }

    /// All functions of the request are on vfio-pci, all others are as before, and it is on record.
    fn away(&self, said: &str) -> Result<(), String> {
        let now = self.now();
        for function in &self.before.functions {
            let addr = function.addr;
            if self.session.gpus.iter().any(|g| g.slot() == addr.slot()) {
                // One that is pulled out when nothing more is done to it is not missed yet.
                let driver = self.model.device(addr).map(|d| d.bound());
                let is_away = driver.is_none_or(|d| d == Some("vfio-pci"));
                check(is_away, || format!("{said}: {addr} is on {driver:?}"))?;
            } else {
                let driver = now.function(addr).and_then(|f| f.driver);
                check(driver == function.driver, || {
                    format!("{said}: law 2: {addr} is on {driver:?}, was on {:?}", function.driver)
                })?;
            }
        }
        let stages: Vec<Stage> = self.records().iter().map(|r| r.state).collect();
        check(stages == [Stage::Away], || format!("{said}: on record as {stages:?}"))
    }

    /// All is as it was.
    fn unchanged(&self, said: &str) -> Result<(), String> {
        let found = self.differences();
        check(found.is_empty(), || format!("{said}: {found:#?}"))
    }

    fn differences(&self) -> Vec<String> {
        let mut now = self.now();
        // A card that is pulled out when it is home, or before it has left, is as good as any that is not there.
        let gone = self
            .before
            .functions
            .iter()
            .filter(|f| self.model.device(f.addr).is_none());
        now.functions.extend(gone.filter(|_| self.is_pulled_out()).cloned());
        now.functions.sort_by_key(|f| f.addr);
        self.before.differences(&now)
    }

    fn is_pulled_out(&self) -> bool {
        let mut faults = self.model.faults.0.iter();
        faults.any(|(at, fault)| *fault == Fault::Vanishes && *at < self.model.acts.len())
    }

    /// How things are, without what others did meanwhile.
    fn now(&self) -> State {
        let mut now = self.model.state();
        if let Some((_, name)) = self.world.udev {
            let mut brought = Vec::new();
            needs_first(name, &mut brought);
            if name == "nvidia_drm" && self.world.firmware.is_some() {
                now.firmware = self.before.firmware; // it takes the firmware's framebuffer off its GPU
            }
            now.modules
                .retain(|m| !brought.contains(m) || self.before.modules.contains(m));
        }
        // That a card vanishes which was not asked for is nobody's business, though it was without its driver meanwhile.
        let touched = self.model.laws.may_touch.as_ref().unwrap();
        let is_out = |f: &&FunctionState| self.model.device(f.addr).is_none() && !touched.contains(&f.addr);
        now.functions
            .extend(self.before.functions.iter().filter(is_out).cloned());
        // Or that dies.
        for function in &mut now.functions {
            if !touched.contains(&function.addr) && self.model.device(function.addr).is_some_and(|d| d.dead) {
                function.clone_from(self.before.function(function.addr).unwrap());
            }
        }
        now.functions.sort_by_key(|f| f.addr);
        // A driver that is loaded takes what is free and matches: nobody can keep it from that without touching it. Of
        // the functions that are asked for only one that its own override gives away is free at such a moment, or where udev
        // comes in between.
        for function in &mut now.functions {
            let was = self.before.function(function.addr).unwrap();
            let matches = was.driver_override.as_deref() == function.driver
                || (was.driver_override.is_none() && !touched.contains(&function.addr))
                || self.world.udev.is_some();
            if was.driver.is_none() && matches {
                function.driver = None;
                function.power = was.power;
            }
        }
        // A service that does not start is said, and nothing waits for it: as where its only GPU has been pulled out.
        for (unit, was) in now.units.iter_mut().zip(&self.before.units) {
            let starts = || self.model.fork().switch_unit(&was.name, true).is_ok();
            if unit.name == was.name && was.active && !unit.active && !starts() {
                unit.active = true;
            }
        }
        // What udev loads when the containers have been seen to has another number again.
        if self.world.udev.is_some_and(|(_, name)| name == "nvidia_uvm") {
            now.stale.clone_from(&self.before.stale);
        }
        // What fails of these is said, and the GPU counts as home.
        let failed = self
            .model
            .faults
            .0
            .iter()
            .filter_map(|(at, _)| self.model.acts.get(*at));
        for act in failed {
            match act {
                Act::SetAttribute { addr, .. } => {
                    let at = now.functions.iter().position(|f| f.addr == *addr);
                    let was = self.before.function(*addr);
                    if let (Some(at), Some(was)) = (at, was) {
                        let now = &mut now.functions[at];
                        now.reset_methods.clone_from(&was.reset_methods);
                        (now.d3cold, now.power) = (was.d3cold, was.power);
                    }
                }
                Act::SetConsole { .. } => now.consoles.clone_from(&self.before.consoles),
                Act::SetPlatform { .. } => now.firmware = self.before.firmware,
                Act::StartUnit { .. } | Act::RestartUnit { .. } => now.units.clone_from(&self.before.units),
                Act::RenewNodes { container, .. } => now.stale.retain(|ctid| ctid != container),
                _ => {}
            }
        }
        now
    }

    /// What is not as it was is on record.
    fn recorded(&self, said: &str) -> Result<(), String> {
        let now = self.now();
        let records = self.records();
        let found = self.differences();
        if found.is_empty() {
            return Ok(());
        }
        check(!records.is_empty(), || {
            format!("{said}: nothing is on record of {found:#?}")
        })?;
        for before in &self.before.functions {
            let is_same = now.function(before.addr) == Some(before);
            let is_beside = |r: &Record| r.beside.iter().any(|b| b.addr == before.addr);
            let has = |r: &Record| r.has(before.addr) || is_beside(r) || r.awake.contains(&before.addr);
            check(is_same || records.iter().any(has), || {
                format!(
                    "{said}: {:?}, was {before:?}, is not on record",
                    now.function(before.addr)
                )
            })?;
        }
        for name in self.before.modules.iter().filter(|n| !now.modules.contains(n)) {
            let has = records.iter().any(|r| r.modules.iter().any(|m| m == name));
            check(has, || format!("{said}: {name} is not on record"))?;
        }
        Ok(())
    }
}

fn check(holds: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(why()) }
}
