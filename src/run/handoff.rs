//! What every run does, whoever asked for it: plan, carry out, say so.
//!
//! Which of it a phase or a command needs is written in [`crate::commands::hook`] and `src/commands/by_hand.rs`.

use std::io;
use std::time::{Duration, SystemTime};

use tracing::{info, warn};

use crate::base::message_ids::{MESSAGE_HOME, MESSAGE_OUT};
use crate::base::pci::PciAddr;
use crate::base::process::since_boot;
use crate::base::systemd;
use crate::base::text::{are, few_or_range, foreign, join, millis};
use crate::base::vmid::VmId;
use crate::execute::executor::Executor;
use crate::execute::kernel::Kernel;
use crate::execute::stale_nodes;
use crate::host::nvidia::UVM;
use crate::host::snapshot::Snapshot;
use crate::host::units::{Facts, Unit};
use crate::model::error::{Error, chain};
use crate::model::plan::{Direction, Plan, Way, containers_time};
use crate::model::record::{Owner, Record, State};
use crate::model::refusal::{Reason, Refusal};
use crate::plan::out::{self, Wanted};
use crate::plan::renumbered::renumbered;
use crate::plan::selection::Given;
use crate::plan::{clients, home, owners};
use crate::proxmox::files::{self, Found};
use crate::run::owners::{Settled, write_over};
use crate::run::session::{Session, this_boot};
use crate::settings::reset::Reset;
use crate::settings::values::Gate;
use crate::state::history;
use crate::state::stopped;
use crate::state::store::Guard;

/// How often holders are looked for while they are waited for: a look costs a few milliseconds of one CPU.
const HOLDER_POLL: Duration = Duration::from_millis(500);

/// How old a look may be that a plan is made from without another one: it is as old anyway when the plan's first act is done, on a
/// host that is slow to read, and each act looks again at what it depends on. Proxmox's files, which are read in between, may
/// take longer than that.
const NEWS: Duration = Duration::from_secs(1);

impl Session {
    /// The plan of a way out from a snapshot, which is completed with the details of what moves and with what modprobe
    /// says.
    ///
    /// # Errors
    /// Where modprobe gave no answer, or nobody could be asked. The refusal of the plan is a result.
    pub fn judge_out(
        &mut self,
        mut snapshot: Snapshot,
        records: &[Record],
        owner: Owner,
        given: &Given,
    ) -> Result<Result<Plan, Refusal>, Error> {
        let functions: Vec<PciAddr> = given.functions.iter().copied().collect();
        let wanted = Wanted {
            owner,
            gpus: &given.gpus,
            given: &functions,
        };
        let moving = out::moving(&snapshot, wanted, records, &self.settings);
        self.ask(&mut snapshot, &moving, self.budgets.look)?;
        let needed = out::needed(&snapshot, &given.gpus, &functions, &self.settings);
        let answers = self.kernel.loadable(&needed, self.budgets.look);
        snapshot.loadable = answers.map_err(|e| Error::Io {
            what: "modprobe could not be asked for the driver's modules".to_owned(),
            source: io::Error::other(e),
        })?;
        self.ask_for_units(&mut snapshot, &given.gpus, &functions);
        snapshot.containers = self.running_containers();
        Ok(out::plan(&snapshot, wanted, records, &self.settings))
    }

    /// Asks systemd for the units that may have to be stopped where these leave, that of the host and that of each container by
    /// itself, all at once. Without an answer they are not.
    pub fn ask_for_units(&mut self, snapshot: &mut Snapshot, gpus: &[PciAddr], given: &[PciAddr]) {
        let units = clients::to_ask(snapshot, gpus, given, &self.settings);
        snapshot.units.extend(self.facts_of(&units));
    }

    /// What is said of units, or why nothing is.
    pub(crate) fn facts_of(&mut self, units: &[Unit]) -> Vec<Facts> {
        facts_of(&mut self.kernel, units, self.budgets.unit)
    }

    /// The containers that run and are given nodes of GPUs. Without an answer none are looked after: a GPU does not wait for that.
    fn running_containers(&mut self) -> Vec<VmId> {
        match self.find("the configs of the containers", files::Wanted::RunningContainers) {
            Ok(Found::RunningContainers(containers)) => containers,
            Ok(_) => Vec::new(),
            Err(why) => {
                warn!(
                    "containers are not looked after, and nodes in them may not be right: {}",
                    chain(why)
                );
                Vec::new()
            }
        }
    }

    /// The way out, from the plan to the end. Where it failed, was undone, and the host is not what the plan was made for
    /// any more (a driver came to a function just then, a module was loaded), it is planned once more.
    ///
    /// # Errors
    /// A refusal, what the executor made of a failure, or why the host could not be read or what is taken over not written
    /// down.
    pub fn way_out(
        &mut self,
        guard: &Guard,
        settled: Settled,
        owner: Owner,
        given: &Given,
        end: Duration,
    ) -> Result<(), Error> {
        let Settled {
            records,
            snapshot,
            over,
            ..
        } = settled;
        let records = records.as_slice();
        let before = records.iter().find(|r| r.owner == owner);
        let begun = self.kernel.now();
        let (plan, seen) = self.plan_out(snapshot, records, owner, given, end)?;
        before.into_iter().for_each(say_broken_off);
        if let Owner::Vm(vmid) = owner {
            self.ask_for_watcher(vmid);
        }
        if let Some(own) = before.filter(|_| !over.is_empty()) {
            reserve(guard)?;
            write_over(guard, own, &over).map_err(|e| Error::io("writing down what is taken over", e))?;
        }
        let result = self.leave(guard, &plan, before, end);
        let Err(Error::Restored { what }) = &result else {
            return result;
        };
        let now = self.kernel.now();
        let enough_time = now + now.saturating_sub(begun) <= end;
        if !enough_time || self.kernel.interrupted().is_some() {
            return result;
        }
        let Ok(snapshot) = self.look(records) else {
            return result;
        };
        let addrs: Vec<PciAddr> = plan.taken.iter().map(|t| t.addr).collect();
        let changes = snapshot.changes_since(&seen, &addrs);
        if changes.is_empty() {
            return result;
        }
        warn!(
            "{owner}: {what}; all was undone. The host has changed meanwhile ({}): planning once more",
            changes.join(", ")
        );
        // Something was done by now, and undone: no refusal may say that nothing was changed.
        let none = |why| Error::NoSecondPlan {
            what: what.clone(),
            why: Box::new(why),
        };
        let (plan, _) = self.plan_out(snapshot, records, owner, given, end).map_err(none)?;
        match self.leave(guard, &plan, before, end) {
            Err(why @ Error::Refused(_)) => Err(none(why)),
            result => result,
        }
    }

    /// Carries out a plan of a way out. `before` is the owner's record of an earlier handoff.
    fn leave(&mut self, guard: &Guard, plan: &Plan, before: Option<&Record>, end: Duration) -> Result<(), Error> {
        let owner = plan.owner;
        reserve(guard)?;
        let mut record = match before {
            Some(before) => before.clone(),
            None => Record::new(owner, this_boot()?, self.budgets.clone()),
        };
        record.number(since_boot());
        // What an earlier handoff of this owner took and this one does not want is still away: it comes home with the
        // rest.
        record
            .taken
            .retain(|t| !plan.taken.iter().any(|new| new.addr == t.addr));
        if !record.taken.is_empty() {
            let (away, comes) = match record.taken.len() {
                1 => ("is away", "comes"),
                _ => ("are away", "come"),
            };
            warn!(
                "{owner}: {} {away} from an earlier handoff and {comes} home with the rest",
                join(record.taken.iter().map(|t| t.addr))
            );
        }
        record.budgets = plan.with_ends(record.budgets);
        record.taken.extend(plan.taken.iter().cloned());
        record.sort_taken();
        record.beside.clone_from(&plan.beside);
        record.modules.clone_from(&plan.modules);
        record.units.clone_from(&plan.units);
        record.consoles.clone_from(&plan.consoles);
        record.platforms.clone_from(&plan.platforms);
        record.numbers.clone_from(&plan.numbers);
        record.may_reset = self.settings.reset != Reset::Never;
        record.gate = self.settings.gate == Gate::Auto;
        (record.caller, record.qemu) = (self.caller, None);
        self.execute(guard, record, before.cloned(), plan, end)
    }

    /// From here on the GPU comes home whatever becomes of the start.
    fn ask_for_watcher(&self, vmid: VmId) {
        if let Err(why) = systemd::watch(vmid) {
            warn!(
                "VM {vmid}: nobody watches over the GPU ({why}): if the start fails, 'gpu-handoff recover' brings it home"
            );
        } else if let Some(caller) = self.caller {
            info!(
                "VM {vmid}: called by hand, without Proxmox's lock on the VM: if no QEMU runs when process {} ({}) has \
                 ended, the GPU comes home",
                caller.pid,
                foreign(&self.root.line(format!("/proc/{}/comm", caller.pid)).unwrap_or_default())
            );
        }
    }

    /// The plan of a way out. Where only holders are in the way, they get a moment to let go: a monitoring tool's
    /// query should not fail the start of a VM. Returned with the snapshot that it was made from.
    fn plan_out(
        &mut self,
        snapshot: Snapshot,
        records: &[Record],
        owner: Owner,
        given: &Given,
        end: Duration,
    ) -> Result<(Plan, Snapshot), Error> {
        let until = end.min(self.kernel.now() + self.budgets.holder_wait);
        let mut seen = snapshot.clone();
        let mut planned = self.judge_out(snapshot, records, owner, given)?;
        let mut said = false;
        while let Err(refusal) = &planned {
            let left = until.saturating_sub(self.kernel.now());
            let Some(pids) = refusal.only_holders().filter(|_| !left.is_zero()) else {
                break;
            };
            if !said {
                let whom = match pids.as_slice() {
                    [] => "what is in use".to_owned(),
                    pids => format!("process {}", join(pids)),
                };
                info!("{owner}: waiting up to {} for {whom} to let go", millis(left));
                said = true;
            }
            // A process may let go without ending, and neither for that nor for a count there is an event.
            self.kernel.await_exit(&pids, left.min(HOLDER_POLL));
            self.not_interrupted()?;
            seen = self.look(records)?;
            planned = self.judge_out(seen.clone(), records, owner, given)?;
        }
        Ok((planned?, seen))
    }

    /// The plan of a way home. A guest that is just ending is waited for. `seen`: what the last look has shown, of the same
    /// records, where nothing was done since; the host is read again where that is no news any more.
    ///
    /// # Errors
    /// A refusal: somebody uses a device, or does not end in time.
    pub fn plan_home(
        &mut self,
        record: &Record,
        records: &[Record],
        seen: Option<Snapshot>,
        end: Duration,
    ) -> Result<Plan, Error> {
        say_broken_off(record);
        let record = owners::without_what_others_have(record, records);
        let mut seen = seen.filter(|_| self.kernel.now().saturating_sub(self.looked) < NEWS);
        loop {
            let mut snapshot = match seen.take() {
                Some(snapshot) => snapshot,
                None => self.look(records)?,
            };
            self.ask(&mut snapshot, &record.functions(), self.budgets.look)?;
            snapshot.containers = self.running_containers();
            let refusal = match home::plan(&snapshot, &record) {
                Ok(plan) => return Ok(plan),
                Err(refusal) => refusal,
            };
            let left = end.saturating_sub(self.kernel.now());
            let Some(pids) = refusal.only_ending().filter(|_| !left.is_zero()) else {
                return Err(refusal.into());
            };
            info!(
                "{}: waiting up to {} for process {} to end",
                record.owner,
                millis(left),
                join(&pids)
            );
            self.kernel.await_exit(&pids, left);
            self.not_interrupted()?;
        }
    }

    /// Carries a plan out and says how it went. `rest` is the record that is to be on file when nothing of this run
    /// is left to say.
    ///
    /// # Errors
    /// What the executor made of a failure.
    pub fn execute(
        &mut self,
        guard: &Guard,
        record: Record,
        rest: Option<Record>,
        plan: &Plan,
        end: Duration,
    ) -> Result<(), Error> {
        let start = self.kernel.now();
        let end = end + containers_time(&plan.units, &record.budgets);
        let steps = plan.steps.len();
        if steps > 0 {
            let left = end.saturating_sub(start).as_secs();
            let how = match plan.direction {
                Direction::Out => format!("to vfio-pci by {}", plan.way),
                Direction::Home => "home".to_owned(),
            };
            let cards = few_or_range(&plan.cards, "cards");
            info!("{}: {cards} {how}: {steps} steps, at most {left} s", plan.owner);
        }
        for note in &plan.notes {
            info!("note: {note}");
        }
        let stops = plan.direction == Direction::Out && !record.units.is_empty();
        if stops {
            self.keep_stopped(Some(&record));
        }
        let run = Executor::new(&mut self.kernel, guard, record, rest, end);
        let began = SystemTime::now();
        let result = run.execute(plan);
        let took = self.kernel.now().saturating_sub(start);
        if steps > 0 {
            self.remember(plan, began, took, &result);
        }
        if stops || plan.direction == Direction::Home {
            self.keep_stopped(None);
        }
        result?;
        let message_id = match plan.direction {
            Direction::Out => MESSAGE_OUT,
            Direction::Home => MESSAGE_HOME,
        };
        info!(message_id, device = plan.cards.join(", "), "{}", done(plan, took));
        // The driver has been loaded anew, for those who stay as well.
        if steps > 0 && plan.way != Way::AlreadyThere {
            let of = |unit: &Unit| unit.container().filter(|_| unit.is_container());
            let wanted = stale_nodes::Wanted {
                started: plan.units.iter().filter_map(of).collect(),
                had: plan.numbers.majors.get(UVM).copied(),
            };
            for node in self.kernel.stale_nodes(wanted, self.budgets.attribute) {
                warn!("{node}");
            }
            for container in self.renumbered(guard, plan) {
                warn!("{container}");
            }
        }
        Ok(())
    }

    /// Containers whose lines name another GPU than before, where the driver has, or had, several.
    fn renumbered(&mut self, guard: &Guard, plan: &Plan) -> Vec<String> {
        if plan.numbers.minors.len() < 2 {
            return Vec::new();
        }
        let look = |host: &mut Session| {
            let records = host.records(Some(guard))?;
            Ok((host.look(&records)?.nvidia, host.gpu_containers()?))
        };
        match look(self) {
            Ok((Some(driver), containers)) => renumbered(&plan.numbers, &driver, &containers),
            Ok((None, _)) => Vec::new(),
            Err(why) => {
                let why: Error = why;
                warn!(
                    "whether containers are given other GPUs than before is not known: {}",
                    chain(why)
                );
                Vec::new()
            }
        }
    }

    /// Keeps what the records have stopped for whoever starts the host anew. `coming`: the record that is about to be written.
    fn keep_stopped(&mut self, coming: Option<&Record>) {
        let (Ok(boot), Ok((records, _))) = (this_boot(), self.store.load()) else {
            return;
        };
        let is_old = |record: &&Record| coming.is_some_and(|coming| coming.owner == record.owner);
        let records = records.iter().filter(|record| !is_old(record)).chain(coming);
        if let Err(why) = self.kernel.keep_stopped(boot, stopped::text(records)) {
            warn!("what is stopped is not kept for the host's next start: {why}");
        }
    }

    /// Adds a run to the history.
    fn remember(&mut self, plan: &Plan, began: SystemTime, took: Duration, result: &Result<(), Error>) {
        let entry = history::Handoff {
            time: began.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs()),
            boot_id: this_boot().unwrap_or_default(),
            owner: plan.owner.to_string(),
            direction: plan.direction,
            cards: plan.cards.clone(),
            outcome: result.as_ref().map_or_else(ToString::to_string, |()| "done".to_owned()),
            took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            acts: self.kernel.take_past(),
            forgotten: None,
        };
        if let Err(why) = self.kernel.remember(entry) {
            warn!("the history was not written: {why}");
        }
    }
}

/// What is said of units, those of each place by themselves, or why nothing is.
fn facts_of(kernel: &mut dyn Kernel, units: &[Unit], within: Duration) -> Vec<Facts> {
    let places: Vec<&[Unit]> = units.chunk_by(Unit::is_beside).collect();
    let mut facts = Vec::new();
    for (place, answer) in places.iter().zip(kernel.units_of(&places, within)) {
        let no_answer = |why: String| place.iter().map(|unit| Facts::none(unit, &why)).collect();
        facts.extend(answer.unwrap_or_else(|e| no_answer(e.to_string())));
    }
    facts
}

/// Keeps room for the record of what leaves.
fn reserve(guard: &Guard) -> Result<(), Refusal> {
    guard.reserve().map_err(|e| Reason::NoRoom(e.to_string()).into())
}

/// The line of a plan that was carried out. The acts have named each card, if there are many.
fn done(plan: &Plan, took: Duration) -> String {
    let to = match plan.direction {
        Direction::Out => "on vfio-pci",
        Direction::Home => "home",
    };
    let how = if plan.steps.is_empty() {
        "already".to_owned()
    } else {
        format!("after {}", millis(took))
    };
    let cards = few_or_range(&plan.cards, "cards");
    format!("{}: {cards} {} {to} {how}", plan.owner, are(plan.cards.len()))
}

/// Says that the run before this one was broken off: the lock is ours, so nobody works on it.
fn say_broken_off(record: &Record) {
    if let Some(what) = broken_off(record) {
        warn!("{what}; it is taken up from there");
    }
}

/// That the run before this one was broken off. Not where somebody is at work on it, which only a reader without the lock
/// meets.
fn broken_off(record: &Record) -> Option<String> {
    let way = match record.state {
        State::Leaving => "way out",
        State::Returning => "way home",
        State::Away | State::Stranded => return None,
    };
    if record.at_work.is_some() {
        return None;
    }
    let during = match record.under_way.first() {
        Some(act) => format!(" at '{act}'"),
        None => String::new(),
    };
    Some(format!("{}: an earlier {way} was broken off{during}", record.owner))
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::base::deadlines::Budgets;
    use crate::execute::kernel::ActError;
    use crate::host::functions::Details;
    use crate::host::modules::Loadable;
    use crate::model::act::Act;
    use crate::model::plan::{Step, Way};
    use crate::model::record::AtWork;

    /// A host whose containers do not answer: how often it was asked, and for how many of them.
    struct Silent(Vec<usize>);

    impl Kernel for Silent {
        fn now(&self) -> Duration {
            Duration::ZERO
        }

        fn look(&mut self, _: &[PciAddr], _: Duration) -> Result<Snapshot, ActError> {
            Ok(Snapshot::default())
        }

        fn details(&mut self, _: &[Vec<PciAddr>], _: Duration) -> Vec<Result<Vec<Details>, ActError>> {
            Vec::new()
        }

        fn loadable(&mut self, _: &[String], _: Duration) -> Result<Vec<Loadable>, ActError> {
            Ok(Vec::new())
        }

        fn units_of(&mut self, places: &[&[Unit]], within: Duration) -> Vec<Result<Vec<Facts>, ActError>> {
            self.0.push(places.len());
            let no_answer = |_: &&[Unit]| Err(ActError::Overdue { within, stuck: None });
            places.iter().map(no_answer).collect()
        }

        fn act(&mut self, _: &Act, _: Duration) -> Result<(), ActError> {
            Ok(())
        }

        fn await_exit(&mut self, _: &[i32], _: Duration) -> bool {
            false
        }
    }

    #[test]
    fn containers_that_do_not_answer_are_asked_at_once_and_each_by_itself() {
        let inside = |container: &str, unit: &str| Unit::Inside {
            container: container.parse().unwrap(),
            unit: unit.to_owned(),
        };
        let units = [
            Unit::host("a.service"),
            inside("104", "a.service"),
            inside("104", "b.service"),
            inside("105", "a.service"),
        ];
        let mut silent = Silent(Vec::new());
        let facts = facts_of(&mut silent, &units, Duration::from_secs(15));
        assert_eq!(silent.0, [3]);
        let why = "no answer within 15000 ms";
        assert_eq!(facts, units.map(|unit| Facts::none(&unit, why)));
    }

    fn plan(direction: Direction, cards: u8, steps: usize) -> Plan {
        let step = Step {
            act: Act::load("nvidia"),
            deadline: Duration::ZERO,
            inverse: Vec::new(),
            rungs: Vec::new(),
            card: None,
            soft: false,
        };
        Plan {
            direction,
            owner: Owner::Vm("111".parse().unwrap()),
            cards: (1..=cards).map(|bus| format!("0000:{bus:02x}:00")).collect(),
            way: Way::Unbind,
            taken: Vec::new(),
            modules: Vec::new(),
            units: Vec::new(),
            again: Vec::new(),
            consoles: Vec::new(),
            platforms: Vec::new(),
            numbers: crate::host::nvidia::Numbers::default(),
            beside: Vec::new(),
            awake: Vec::new(),
            missing: Vec::new(),
            steps: vec![step; steps],
            notes: Vec::new(),
        }
    }

    #[test]
    fn one_card_is_and_two_are_there_and_sixteen_fit_the_line() {
        for (direction, cards, steps, line) in [
            (Direction::Out, 1, 1, "VM 111: 0000:01:00 is on vfio-pci after 9999 ms"),
            (Direction::Home, 1, 0, "VM 111: 0000:01:00 is home already"),
            (
                Direction::Out,
                2,
                1,
                "VM 111: 0000:01:00, 0000:02:00 are on vfio-pci after 9999 ms",
            ),
            (
                Direction::Home,
                2,
                1,
                "VM 111: 0000:01:00, 0000:02:00 are home after 9999 ms",
            ),
            (
                Direction::Out,
                16,
                1,
                "VM 111: 16 cards (0000:01:00 ... 0000:10:00) are on vfio-pci after 9999 ms",
            ),
        ] {
            let plan = plan(direction, cards, steps);
            assert_eq!(done(&plan, Duration::from_millis(9999)), line);
            assert!(line.len() <= 80, "{line}");
        }
    }

    #[test]
    fn a_way_is_broken_off_where_nobody_is_at_work_on_it() {
        let mut record = Record::new(Owner::Vm("111".parse().unwrap()), "boot".to_owned(), Budgets::default());
        record.under_way = vec![Act::LoadModule {
            name: "nvidia".to_owned(),
        }];
        let run = AtWork {
            run: Some("VM 111 pre-start (pid 4711)".to_owned()),
            time: None,
        };
        for (state, at_work, said) in [
            (
                State::Leaving,
                None,
                Some("VM 111: an earlier way out was broken off at 'nvidia: load the module'"),
            ),
            (State::Leaving, Some(run.clone()), None),
            (
                State::Returning,
                Some(AtWork {
                    run: None,
                    ..run.clone()
                }),
                None,
            ),
            (
                State::Returning,
                None,
                Some("VM 111: an earlier way home was broken off at 'nvidia: load the module'"),
            ),
            (State::Away, None, None),
        ] {
            (record.state, record.at_work) = (state, at_work);
            assert_eq!(broken_off(&record).as_deref(), said, "{state:?} {:?}", record.at_work);
        }
    }
}
