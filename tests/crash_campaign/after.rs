//! What is asked after a run was killed, and whether it ends as it should.

use std::fmt;
use std::time::Duration;

use gpu_handoff::base::process::Process as Told;
use gpu_handoff::commands::recover::not_stranded;
use gpu_handoff::execute::kernel::Kernel;
use gpu_handoff::host::functions::VFIO_PCI;
use gpu_handoff::host::vms::RunningVm;
use gpu_handoff::model::record::{Owner, Record, State};
use gpu_handoff::plan::owners::{self, Signs};

use crate::common::session::vm;
use crate::common::{Beside as Others, End, Model, Process, Session};
use crate::hosts::Trip;
use crate::killed::{Command, KILLS, Room, Scene};
use crate::watched::{Beside, beside, watch};

/// The ends of a run, by name.
const ENDS: [&str; 4] = ["done", "refused unchanged", "restored", "not restored"];

/// How often each was asked, and how it ended.
#[derive(Debug, Default)]
pub struct Tally {
    pub kills: u64,
    pub same: u64,
    pub opposite: u64,
    pub recover: u64,
    pub watcher: u64,
    /// Another VM starts on the same GPUs.
    pub another: u64,
    /// Recoveries that were killed themselves.
    pub twice: u64,
    /// Recoveries beside a VM that starts, runs, or holds the group.
    pub busy: u64,
    /// Whatever is asked while a call of the killed run hangs.
    pub hung: u64,
    /// Kills of runs that could not write each record, or after which none can be written.
    pub full: u64,
    pub ends: [u64; 4],
    /// What was not as it should be.
    pub problems: Vec<String>,
}

impl Tally {
    pub fn cases(&self) -> u64 {
        self.same + self.opposite + self.recover + self.watcher + self.another + self.twice + self.busy + self.hung
    }

    pub fn add(&mut self, other: Tally) {
        self.kills += other.kills;
        self.same += other.same;
        self.opposite += other.opposite;
        self.recover += other.recover;
        self.watcher += other.watcher;
        self.another += other.another;
        self.twice += other.twice;
        self.busy += other.busy;
        self.hung += other.hung;
        self.full += other.full;
        for (sum, n) in self.ends.iter_mut().zip(other.ends) {
            *sum += n;
        }
        self.problems.extend(other.problems);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} cases after {} kills, {} of them on a full file system: {} same again, {} the opposite, {} recover, {} the watcher, {} another VM's \
             start, {} recover or the watcher killed and again, {} recover beside a VM, {} beside a call that hangs; ends: ",
            self.cases(),
            self.kills,
            self.full,
            self.same,
            self.opposite,
            self.recover,
            self.watcher,
            self.another,
            self.twice,
            self.busy,
            self.hung
        )?;
        let ends: Vec<String> = ENDS
            .iter()
            .zip(self.ends)
            .map(|(name, n)| format!("{n} {name}"))
            .collect();
        let left = match self.problems.len() {
            0 => "0 GPUs left behind".to_owned(),
            n => format!("{n} cases did not end as they should"),
        };
        write!(f, "{}; {left}", ends.join(", "))
    }
}

/// What recover came to.
#[derive(Debug)]
pub enum Recovered {
    /// Nothing is on record.
    Nothing,
    /// It is not stranded, because.
    Left(#[allow(dead_code)] String), // seen where a case has failed
    Tried(End),
}

/// One scene, and all that may be asked after it.
pub struct After<'a> {
    pub trip: &'a Trip,
    pub tally: &'a mut Tally,
}

impl After<'_> {
    pub fn all(&mut self, scene: &Scene) {
        self.tally.kills += u64::from(!scene.faults.is_empty());
        if scene.hangs() {
            return self.while_it_hangs(scene);
        }
        self.tally.full += u64::from(scene.room != Room::Always);
        self.tally.same += 1;
        self.asked(scene, scene.command);
        self.tally.opposite += 1;
        self.asked(scene, scene.command.opposite());
        let recovered = self.recovered(scene);
        self.watched(scene);
        if scene.room == Room::Never {
            return; // nobody takes a GPU that cannot be written down
        }
        self.another_vm(scene);
        self.beside_a_vm(scene);
        if self.trip.small && scene.faults.len() <= 1 && scene.room == Room::Always {
            self.recovered_twice(scene, &recovered);
        }
    }

    fn problem(&mut self, scene: &Scene, said: &str, why: &str) {
        let told = scene.told();
        self.tally
            .problems
            .push(format!("{}: {said}: {why}\n{told}", self.trip.name));
    }

    /// Whatever is asked while a call hangs comes to an end, and touches nothing that the call may be at; once it is over,
    /// everything comes home.
    fn while_it_hangs(&mut self, scene: &Scene) {
        let session = &self.trip.session;
        let another = Session {
            owner: vm(112),
            ..session.clone()
        };
        let by_hand = matches!(session.owner, Owner::ByHand(_));
        type Asked<'a> = (&'a str, &'a dyn Fn(&mut Model) -> String);
        let asked: [Asked<'_>; 5] = [
            ("the same", &|model| format!("{:?}", scene.command.run(session, model))),
            ("the opposite", &|model| {
                format!("{:?}", scene.command.opposite().run(session, model))
            }),
            ("recover", &|model| {
                format!("{:?}", recover(self.trip, model, false, true))
            }),
            // It does not leave, since the call may end.
            ("the watcher", &|model| {
                format!("{:?}", watch(self.trip, model, Beside::default()))
            }),
            ("another VM's start", &|model| {
                format!("{:?}", another.start(model, &Others::default()))
            }),
        ];
        let mut wrong = Vec::new();
        for (what, ask) in asked.iter().take(if by_hand { 3 } else { 5 }) {
            let mut model = scene.model.fork();
            let end = ask(&mut model);
            let meanwhile = self.on_record(&model);
            model.let_go_of_calls();
            let homes = [another.home(&mut model), session.home(&mut model)];
            if let Err(why) = meanwhile.and_then(|()| self.home(&model)) {
                wrong.push((format!("while it hangs {what}: {end}, then home: {homes:?}"), why));
            }
        }
        self.tally.hung += if by_hand { 3 } else { 5 };
        for (said, why) in wrong {
            self.problem(scene, &said, &why);
        }
    }

    /// The same or the opposite command, and home after it.
    fn asked(&mut self, scene: &Scene, command: Command) {
        let mut model = scene.model.fork();
        let end = command.run(&self.trip.session, &mut model);
        let said = format!("then {command:?}: {end:?}");
        let (n, wrong) = match end {
            End::Done if command == Command::Out => (0, self.away(&model)),
            End::Done => (0, self.home(&model)),
            End::Refused(_) | End::NotRead(_) | End::Interrupted => (1, unchanged(&scene.model, &model)),
            End::Restored(_) => (2, self.on_record(&model)),
            End::NotRestored(_) | End::RestoredBut(_) => (3, self.on_record(&model)),
            End::Killed => (3, Err("nobody killed it".to_owned())),
        };
        self.tally.ends[n] += 1;
        if let Err(why) = wrong {
            return self.problem(scene, &said, &why);
        }
        let end = Command::Home.run(&self.trip.session, &mut model);
        if let Err(why) = self.home(&model) {
            self.problem(scene, &format!("{said}, then home: {end:?}"), &why);
        }
    }

    /// Recover, with nobody about: everything is home, whatever was being done.
    fn recovered(&mut self, scene: &Scene) -> Model {
        self.tally.recover += 1;
        let mut model = scene.model.fork();
        let end = recover(self.trip, &mut model, false, true);
        self.tally.ends[0] += 1;
        if let Err(why) = self.home(&model) {
            self.problem(scene, &format!("then recover: {end:?}"), &why);
        }
        model
    }

    /// The watcher, whatever goes on beside it.
    fn watched(&mut self, scene: &Scene) {
        if let Owner::ByHand(_) = self.trip.session.owner {
            return; // nobody watches
        }
        for beside in beside(scene.model.time) {
            self.tally.watcher += 1;
            self.tally.ends[0] += 1;
            let mut model = scene.model.fork();
            let left = watch(self.trip, &mut model, beside);
            if let Err(why) = left.and_then(|()| self.home(&model)) {
                self.problem(scene, &format!("then the watcher, {beside:?}"), &why);
            }
        }
    }

    /// Another VM starts on the same GPUs, and stops: it has them, and everything is home then. (One that is removed from the
    /// bus at the moment is no GPU that a VM could be given.)
    fn another_vm(&mut self, scene: &Scene) {
        if let Owner::ByHand(_) = self.trip.session.owner {
            return; // it is a person's
        }
        self.tally.another += 1;
        self.tally.ends[0] += 1;
        let another = Session {
            owner: vm(112),
            ..self.trip.session.clone()
        };
        let mut model = scene.model.fork();
        let end = another.start(&mut model, &Others::default());
        let said = format!("then another VM's start: {end:?}");
        let away = match end {
            End::Done => self.away(&model),
            _ => Err("it does not have them".to_owned()),
        };
        let of_old = model.ledger.as_ref().is_some_and(|l| l.records().len() != 1);
        let end = another.home(&mut model);
        let wrong = away.and_then(|()| self.home(&model));
        if let Err(why) = wrong {
            self.problem(scene, &format!("{said}, then home: {end:?}"), &why);
        } else if of_old {
            self.problem(scene, &said, "not one record");
        }
    }

    /// The way home that recover or the watcher begins is killed too, at each of its acts. The watcher begins another;
    /// recover is asked again.
    fn recovered_twice(&mut self, scene: &Scene, recovered: &Model) {
        let acts = scene.model.acts.len()..recovered.acts.len();
        for (at, kill) in acts.flat_map(|at| KILLS.map(|kill| (at, kill))) {
            let mut model = scene.model.fork();
            model.faults.0 = vec![(at, kill)];
            let mut watched = model.fork();
            let first = recover(self.trip, &mut model, false, true);
            model.faults.0.clear();
            let second = recover(self.trip, &mut model, false, true);
            let killed = matches!(first, Recovered::Tried(End::Killed));
            let wrong = if killed {
                self.home(&model)
            } else {
                Err("it was not killed".to_owned())
            };
            if let Err(why) = wrong {
                let said = format!("then recover, killed at {at} ({kill:?}): {first:?}, and again: {second:?}");
                self.problem(scene, &said, &why);
            }
            let left = watch(self.trip, &mut watched, Beside::default());
            let Owner::Vm(_) = self.trip.session.owner else {
                (self.tally.twice, self.tally.ends[0]) = (self.tally.twice + 1, self.tally.ends[0] + 1);
                continue;
            };
            if let Err(why) = left.and_then(|()| self.home(&watched)) {
                let said = format!("then the watcher's way home, killed at {at} ({kill:?})");
                self.problem(scene, &said, &why);
            }
            (self.tally.twice, self.tally.ends[0]) = (self.tally.twice + 2, self.tally.ends[0] + 2);
        }
    }

    /// Recover while the VM starts or stops, while it runs with the GPU, and while a QEMU that is not known to run holds the
    /// group: nothing is touched. While the VM runs without it the GPU comes home.
    fn beside_a_vm(&mut self, scene: &Scene) {
        let Owner::Vm(vmid) = self.trip.session.owner else {
            return self.by_hand(scene);
        };
        for (what, busy, runs, holds) in [
            ("the VM's lock is held", true, false, false),
            ("the VM runs with it", false, true, true),
            ("the VM runs without it", false, true, false),
            ("a QEMU", false, false, true),
        ] {
            let mut model = scene.model.fork();
            if runs {
                model.vms.push(RunningVm {
                    vmid,
                    process: Told { pid: 900, started: 1 },
                });
            }
            if holds {
                let group = model.device(self.trip.session.gpus[0]).and_then(|d| d.group);
                let guest = Process::guest(900, vmid.get(), group.unwrap_or_default());
                if model.open(guest).is_err() {
                    continue; // it could not start on this
                }
            }
            let before = model.fork();
            self.tally.busy += 1;
            let end = recover(self.trip, &mut model, busy, true);
            let wrong = if busy || holds {
                self.tally.ends[1] += 1;
                match end {
                    Recovered::Left(_) | Recovered::Tried(End::Refused(_)) => unchanged(&before, &model),
                    _ => Err("not left alone".to_owned()),
                }
            } else {
                self.tally.ends[0] += 1;
                self.home(&model)
            };
            if let Err(why) = wrong.and_then(|()| laws(&model)) {
                self.problem(scene, &format!("{what}, then recover: {end:?}"), &why);
            }
        }
    }

    /// What was taken by hand, and is away as it should be, is left so where nobody asks for all.
    fn by_hand(&mut self, scene: &Scene) {
        if scene.faults.is_empty() {
            let mut model = scene.model.fork();
            let end = recover(self.trip, &mut model, false, false);
            self.tally.busy += 1;
            self.tally.ends[1] += 1;
            let left = matches!(end, Recovered::Left(_));
            let wrong = if left {
                unchanged(&scene.model, &model)
            } else {
                Err("not left alone".to_owned())
            };
            if let Err(why) = wrong {
                self.problem(scene, &format!("then recover without --all: {end:?}"), &why);
            }
        }
    }

    /// Everything of the request is on vfio-pci, everything else as it was, and it is on record.
    fn away(&self, model: &Model) -> Result<(), String> {
        laws(model)?;
        let before = model.laws.original.as_ref().ok_or("no state to compare with")?;
        let record = record(model).ok_or("nothing is on record")?;
        if record.state != State::Away {
            return Err(format!("on record as {:?}", record.state));
        }
        for function in &before.functions {
            let now = model.driver_of(function.addr);
            let wanted = if record.has(function.addr) {
                Some(VFIO_PCI)
            } else {
                function.driver
            };
            if now != wanted {
                return Err(format!("{} is on {now:?}, not on {wanted:?}", function.addr));
            }
            // An override is for the moment of the bind: on vfio-pci it would keep the function there.
            let now = model.device(function.addr).and_then(|d| d.driver_override.as_deref());
            let wanted = function.driver_override.as_deref().filter(|d| *d != VFIO_PCI);
            if record.has(function.addr) && now != wanted {
                return Err(format!(
                    "driver_override of {} is {now:?}, not {wanted:?}",
                    function.addr
                ));
            }
        }
        Ok(())
    }

    /// All is as it was, and nothing is on record.
    fn home(&self, model: &Model) -> Result<(), String> {
        laws(model)?;
        let before = model.laws.original.as_ref().ok_or("no state to compare with")?;
        let found = before.differences(&model.state());
        if !found.is_empty() {
            return Err(format!("{found:#?}"));
        }
        record(model).map_or(Ok(()), |record| Err(format!("on record: {record:#?}")))
    }

    /// It has failed: whatever is not as it was is on record.
    fn on_record(&self, model: &Model) -> Result<(), String> {
        laws(model)?;
        record(model).map_or_else(|| self.home(model), |_| Ok(()))
    }
}

/// `gpu-handoff recover`, `--all` or not.
pub fn recover(trip: &Trip, model: &mut Model, busy: bool, all: bool) -> Recovered {
    let Some(record) = record(model) else {
        return Recovered::Nothing;
    };
    let signs = Signs {
        busy,
        ..Signs::default()
    };
    let stuck: Vec<_> = record.stuck().collect();
    let claim = match model.fork().look(&stuck, Duration::from_secs(5)) {
        Ok(snapshot) => {
            let addrs: Vec<_> = record.taken.iter().map(|t| t.addr).collect();
            owners::claim(&snapshot, &record, &addrs, signs)
        }
        Err(error) => return Recovered::Left(error.to_string()),
    };
    match not_stranded(&record, claim.as_ref(), all) {
        Some(why) => Recovered::Left(why),
        None => Recovered::Tried(trip.session.home(model)),
    }
}

pub fn record(model: &Model) -> Option<Record> {
    model.ledger.as_ref()?.records().pop()
}

fn laws(model: &Model) -> Result<(), String> {
    let broken = &model.laws.broken;
    if broken.is_empty() {
        Ok(())
    } else {
        Err(format!("{broken:#?}"))
    }
}

/// Nothing was done. What a worker of the killed run was at may have ended meanwhile.
fn unchanged(before: &Model, after: &Model) -> Result<(), String> {
    laws(after)?;
    if after.acts.len() > before.acts.len() {
        return Err(format!("{:#?} was done", &after.acts[before.acts.len()..]));
    }
    if record(before) != record(after) {
        return Err(format!("the record was {:#?}, is {:#?}", record(before), record(after)));
    }
    Ok(())
}
