//! Every way in which a run can have been killed: at each act of a plan, of its rungs, and of its undo.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use gpu_handoff::model::act::Act;

use crate::common::{End, Fault, MemLedger, Model, Session, Twist};
use crate::hosts::Trip;

/// Before an act, while it is in the kernel, after it.
pub const KILLS: [Fault; 3] = [Fault::KilledBefore, Fault::KilledIn, Fault::KilledAfter];

/// Longer than a call goes on whose run was killed.
const OUTLIVES: Duration = Duration::from_secs(1);

/// An act of which the kernel does not come back.
const HANGS: Fault = Fault::Twisted(Twist::Hangs);

/// The acts of the longest rung: a proof, the removal of four functions, a rescan, a probe.
const RUNG: usize = 7;

/// What is asked of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Out,
    Home,
}

impl Command {
    pub fn opposite(self) -> Self {
        match self {
            Command::Out => Command::Home,
            Command::Home => Command::Out,
        }
    }

    pub fn run(self, session: &Session, model: &mut Model) -> End {
        match self {
            Command::Out => session.out(model),
            Command::Home => session.home(model),
        }
    }
}

/// Whether there is room for records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    Always,
    /// There was none when the run was killed, so that what is on record is older, and there is again.
    Again,
    Never,
}

/// A host and its record as a run that was killed has left them.
pub struct Scene {
    pub command: Command,
    /// What has gone wrong, by the number of the act; the kill last. Empty: nothing has.
    pub faults: Vec<(usize, Fault)>,
    pub room: Room,
    pub model: Model,
}

impl Scene {
    /// A call of it hangs, and nobody knows for how long.
    pub fn hangs(&self) -> bool {
        self.faults.iter().any(|(_, fault)| *fault == HANGS)
    }

    /// What has led to it, in words.
    pub fn told(&self) -> String {
        let Scene {
            command,
            faults,
            room,
            model,
        } = self;
        let acts = model.acts.iter().map(ToString::to_string).collect::<Vec<_>>();
        format!("{command:?} with {faults:?}, room for records: {room:?}, after {acts:#?}")
    }
}

/// Each scene of a trip, in an order that is always the same. The first is a way out that nothing disturbed, after which
/// nobody calls back.
pub fn each(trip: &Trip, mut then: impl FnMut(Scene)) {
    let away = away(trip);
    then(Scene {
        command: Command::Out,
        faults: Vec::new(),
        room: Room::Always,
        model: away.fork(),
    });
    for (command, start) in [(Command::Out, &trip.model), (Command::Home, &away)] {
        let run = Run { trip, command, start };
        let first = start.acts.len();
        let acts = run.with(&[]).acts.len();
        run.killed_at(&[], first..acts, &mut then);
        for at in first..acts {
            run.gone_wrong(at, at + 1 == acts, &mut then);
            run.hung(at, &mut then);
        }
        if trip.full {
            run.unwritten(first, &mut then);
        }
    }
}

/// The host when the way out is done.
pub fn away(trip: &Trip) -> Model {
    let mut model = trip.model.fork();
    let end = trip.session.out(&mut model);
    assert!(matches!(end, End::Done), "{}: {end:?}", trip.name);
    model
}

fn ledger(model: &Model) -> &Arc<MemLedger> {
    model.ledger.as_ref().unwrap()
}

struct Run<'a> {
    trip: &'a Trip,
    command: Command,
    start: &'a Model,
}

impl Run<'_> {
    /// The host after a run in which this goes wrong.
    fn with(&self, faults: &[(usize, Fault)]) -> Model {
        let mut model = self.start.fork();
        model.faults.0 = faults.to_vec();
        let end = self.command.run(&self.trip.session, &mut model);
        assert!(!matches!(end, End::Killed | End::Refused(_)), "{end:?}");
        model
    }

    /// The run is killed at each of these acts.
    fn killed_at(&self, faults: &[(usize, Fault)], acts: Range<usize>, then: &mut impl FnMut(Scene)) {
        for (at, kill) in acts.flat_map(|at| KILLS.map(|kill| (at, kill))) {
            let mut model = self.start.fork();
            let faults = [faults, &[(at, kill)]].concat();
            model.faults.0.clone_from(&faults);
            let end = self.command.run(&self.trip.session, &mut model);
            assert!(matches!(end, End::Killed), "{}: {faults:?}: {end:?}", self.trip.name);
            model.faults.0.clear();
            let command = self.command;
            let scene = |room, faults, model| Scene {
                command,
                faults,
                room,
                model,
            };
            if self.trip.full && faults.len() == 1 {
                let model = model.fork();
                ledger(&model).fails_from(0);
                then(scene(Room::Never, faults.clone(), model));
            }
            then(scene(Room::Always, faults, model));
        }
    }

    /// From some record on none can be written any more, and the run is killed at an act after that.
    fn unwritten(&self, first: usize, then: &mut impl FnMut(Scene)) {
        for full_from in 0.. {
            let start = || {
                let model = self.start.fork();
                ledger(&model).fails_from(full_from);
                model
            };
            let mut undisturbed = start();
            let end = self.command.run(&self.trip.session, &mut undisturbed);
            assert!(matches!(end, End::Done | End::Restored(_)), "{full_from}: {end:?}");
            if !ledger(&undisturbed).is_behind() {
                return; // all of them were written by then
            }
            for (at, kill) in (first..undisturbed.acts.len()).flat_map(|at| KILLS.map(|kill| (at, kill))) {
                let mut model = start();
                model.faults.0 = vec![(at, kill)];
                let end = self.command.run(&self.trip.session, &mut model);
                assert!(matches!(end, End::Killed), "{full_from}: {at} {kill:?}: {end:?}");
                model.faults.0.clear();
                if !ledger(&model).is_behind() {
                    continue; // as if it got full with the kill
                }
                // The call that it was in is on no record. Whoever looks at a host finds such a call all the same, and waits for its
                // end (gpu_handoff::run::look); a look at the model does not show it.
                model.spend(OUTLIVES);
                let again = model.fork();
                ledger(&again).well();
                for (room, model) in [(Room::Never, model), (Room::Again, again)] {
                    let (command, faults) = (self.command, vec![(at, kill)]);
                    then(Scene {
                        command,
                        faults,
                        room,
                        model,
                    });
                }
            }
        }
    }

    /// An act hangs, and the run is killed beside it: at another one of its round, and in what is done about it.
    fn hung(&self, at: usize, then: &mut impl FnMut(Scene)) {
        if self.trip.beside_hangs {
            let hangs = [(at, HANGS)];
            self.killed_at(&hangs, at + 1..self.with(&hangs).acts.len(), then);
        }
    }

    /// An act fails, and the run is killed in what is done about that. On small hosts at every act that follows; elsewhere
    /// at every act of the rungs and of the longest undo, and at the first one of each other undo.
    fn gone_wrong(&self, at: usize, last: bool, then: &mut impl FnMut(Scene)) {
        let whole = self.trip.small || (last && self.command == Command::Out);
        let until = |run: &Model, rungs: usize| run.acts.len().min(if whole { usize::MAX } else { at + 1 + rungs });
        let mut fails = vec![(at, Fault::Fails)];
        loop {
            let run = self.with(&fails);
            let next = at + fails.len();
            // What begins a rung: the same once more, a reset, or the last one's proof.
            let again = run.acts.get(next) == run.acts.get(at);
            let climbs = again || matches!(run.acts.get(next), Some(Act::Reset { .. }));
            let rung = if matches!(run.acts[next - 1], Act::Reset { .. }) {
                RUNG
            } else {
                usize::from(climbs)
            };
            self.killed_at(&fails, next..until(&run, fails.len() + rung), then);
            if !climbs {
                break;
            }
            fails.push((next, Fault::Fails));
        }
        if self.trip.small {
            let fails = [(at, Fault::FailsAfterwards)];
            self.killed_at(&fails, at + 1..until(&self.with(&fails), 1), then);
        }
    }
}
