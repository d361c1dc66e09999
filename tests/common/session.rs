//! What a run does, on the model: look, plan, carry out, and which of its ends it comes to.
//!
//! The order is that of `gpu_handoff::run::handoff`, which reaches the host through files that the model does not have.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use gpu_handoff::base::pci::PciAddr;
use gpu_handoff::base::process::Group;
use gpu_handoff::base::vmid::VmId;
use gpu_handoff::execute::executor::Executor;
use gpu_handoff::execute::kernel::{ActError, Kernel};
use gpu_handoff::host::snapshot::Snapshot;
use gpu_handoff::model::error::Error;
use gpu_handoff::model::plan::{Direction, Plan};
use gpu_handoff::model::record::{Owner, Record};
use gpu_handoff::model::refusal::{Reason, Refusal};
use gpu_handoff::plan::out::{self, Wanted};
use gpu_handoff::plan::owners::{self, First, Over, Signs};
use gpu_handoff::plan::{clients, home};
use gpu_handoff::run::look::look;
use gpu_handoff::run::owners::{Host, settle, write_over};
use gpu_handoff::settings::reset::Reset;
use gpu_handoff::settings::values::{Gate, Settings};

use super::effects::Killed;
use super::ledger::MemLedger;
use super::state::Model;

/// How often holders are looked for while they are waited for.
const HOLDER_POLL: Duration = Duration::from_millis(500);

/// The ends of a run.
#[derive(Debug)]
pub enum End {
    Done,
    Refused(Refusal),
    /// Failed, and the host is as it was.
    Restored(String),
    /// Failed, and the host is as it was, but for what it names.
    RestoredBut(String),
    /// Failed, and a record says what is left.
    NotRestored(String),
    /// The host could not be read in time.
    NotRead(ActError),
    /// Asked to end while it waited, with nothing changed.
    Interrupted,
    Killed,
}

/// Whose runs, with which settings.
#[derive(Clone, Debug)]
pub struct Session {
    pub owner: Owner,
    pub gpus: Vec<PciAddr>,
    /// What the VM was given besides.
    pub given: Vec<PciAddr>,
    pub settings: Settings,
    /// A container whose own start brings home what is stranded.
    pub starting: Option<VmId>,
}

impl Session {
    /// VM 111 is given these GPUs.
    pub fn new(gpus: &[PciAddr]) -> Self {
        Session {
            owner: vm(111),
            gpus: gpus.to_vec(),
            given: Vec::new(),
            settings: Settings::default(),
            starting: None,
        }
    }

    fn wanted(&self) -> Wanted<'_> {
        Wanted {
            owner: self.owner,
            gpus: &self.gpus,
            given: &self.given,
        }
    }

    /// The records as a run reads them: what an interrupted run has left is waited for, and then counts as stuck.
    pub fn records(&self, model: &mut Model) -> Vec<Record> {
        let Some(ledger) = model.ledger.clone() else {
            return Vec::new();
        };
        let mut records = ledger.records();
        for group in records.iter().flat_map(|r| &r.workers) {
            let end = model.time + self.settings.budgets.lock;
            model.wait_until(end, |m| !m.is_alive(group.number));
        }
        for record in &mut records {
            let ours = model.workers.clone();
            record.settle(|group| !ours.contains(&group.number) && model.is_alive(group.number));
        }
        records
    }

    /// A new process: nobody has asked it to end, and it has no workers yet.
    fn begin(model: &mut Model) {
        model.signal = None;
        model.workers.clear();
        model.laws.first_worker = model.next_worker;
    }

    /// The host, as a run looks at it.
    pub fn look(&self, model: &mut Model, records: &[Record]) -> Result<Snapshot, End> {
        let stuck: Vec<PciAddr> = records.iter().flat_map(Record::stuck).collect();
        let ours: Vec<Group> = records.iter().flat_map(Record::groups).collect();
        look(model, &stuck, &ours, &[], self.settings.budgets.look).map_err(End::NotRead)
    }

    /// As `gpu_handoff::run::session::Session::ask` does it.
    pub fn ask(&self, model: &mut Model, snapshot: &mut Snapshot, addrs: &[PciAddr]) {
        let mut cards: BTreeMap<_, Vec<PciAddr>> = BTreeMap::new();
        for function in addrs.iter().filter_map(|a| snapshot.function(*a)).filter(|f| !f.stuck) {
            cards.entry(function.addr.slot()).or_default().push(function.addr);
        }
        let cards: Vec<Vec<PciAddr>> = cards.into_values().collect();
        let answers = model.details(&cards, self.settings.budgets.look);
        for (card, answer) in cards.iter().zip(answers) {
            match answer {
                Ok(details) => snapshot.complete(card, details),
                Err(ActError::Overdue { .. } | ActError::Interrupted { .. }) => {}
                Err(error) => panic!("{card:?}: {error}"),
            }
        }
    }

    /// The plan of a way out as things are, with what modprobe says.
    pub fn plan_out(&self, model: &mut Model) -> Result<Plan, Refusal> {
        let records = self.records(model);
        match self.look(model, &records) {
            Ok(snapshot) => self.judge(model, snapshot, &records),
            Err(end) => panic!("the host could not be read: {end:?}"),
        }
    }

    fn judge(&self, model: &mut Model, mut snapshot: Snapshot, records: &[Record]) -> Result<Plan, Refusal> {
        let moving = out::moving(&snapshot, self.wanted(), records, &self.settings);
        self.ask(model, &mut snapshot, &moving);
        let needed = out::needed(&snapshot, &self.gpus, &self.given, &self.settings);
        snapshot.loadable = model.what_modprobe_says(&needed);
        snapshot.units = model.what_systemd_says(&clients::to_ask(&snapshot, &self.gpus, &self.given, &self.settings));
        snapshot.containers = model.given_containers();
        out::plan(&snapshot, self.wanted(), records, &self.settings)
    }

    /// The way out, from the look to the end.
    pub fn out(&self, model: &mut Model) -> End {
        Self::begin(model);
        let records = self.records(model);
        self.leave(model, &records, &[])
    }

    /// What pre-start does, with this beside it.
    pub fn start(&self, model: &mut Model, beside: &Beside) -> End {
        Self::begin(model);
        let records = self.records(model);
        let snapshot = match self.look(model, &records) {
            Ok(snapshot) => snapshot,
            Err(end) => return end,
        };
        let mut start = Start {
            session: self,
            model: &mut *model,
            beside,
        };
        let settle = || settle(&mut start, self.owner, &self.gpus, &self.given, records, snapshot);
        let settled = match unless_killed(settle) {
            None => return End::Killed,
            Some(Ok(settled)) => settled,
            Some(Err(Error::Refused(refusal))) => return End::Refused(refusal),
            Some(Err(Error::Interrupted)) => return End::Interrupted,
            Some(Err(error)) => return End::NotRestored(error.to_string()),
        };
        if self.gpus.is_empty() {
            return End::Done;
        }
        self.leave(model, &settled.records, &settled.over)
    }

    fn leave(&self, model: &mut Model, records: &[Record], over: &[Over]) -> End {
        let end = model.time + self.settings.budgets.way_out;
        let before = records.iter().find(|r| r.owner == self.owner);
        let begun = model.time;
        let (plan, seen) = match self.plan_in_time(model, records, end) {
            Ok(planned) => planned,
            Err(end) => return end,
        };
        if let Some(own) = before.filter(|_| !over.is_empty()) {
            let ledger: Arc<MemLedger> = Arc::clone(model.ledger.get_or_insert_default());
            match unless_killed(|| write_over(&*ledger, own, over)) {
                None => return End::Killed,
                Some(Err(error)) => return End::NotRestored(error.to_string()),
                Some(Ok(())) => {}
            }
        }
        let result = self.execute(model, self.record(&plan, before), before.cloned(), &plan, end);
        let enough_time = model.time + (model.time - begun) <= end;
        if !matches!(result, End::Restored(_)) || !enough_time || model.signal.is_some() {
            return result;
        }
        let Ok(snapshot) = self.look(model, records) else {
            return result;
        };
        let addrs: Vec<PciAddr> = plan.taken.iter().map(|t| t.addr).collect();
        if snapshot.changes_since(&seen, &addrs).is_empty() {
            return result;
        }
        model.laws.again += 1;
        if before.is_none() {
            model.laws.original = None; // what somebody else has changed is how it was from now on
        }
        match self.plan_in_time(model, records, end) {
            Ok((plan, _)) => self.execute(model, self.record(&plan, before), before.cloned(), &plan, end),
            Err(why) => End::Restored(format!("planned once more: {why:?}")),
        }
    }

    /// The plan of a way out, with the snapshot that it was made from. Holders get a moment to let go.
    fn plan_in_time(&self, model: &mut Model, records: &[Record], end: Duration) -> Result<(Plan, Snapshot), End> {
        let until = end.min(model.time + self.settings.budgets.holder_wait);
        loop {
            let snapshot = self.look(model, records)?;
            let refusal = match self.judge(model, snapshot.clone(), records) {
                Ok(plan) => return Ok((plan, snapshot)),
                Err(refusal) => refusal,
            };
            let left = until.saturating_sub(model.time);
            let Some(pids) = refusal.only_holders().filter(|_| !left.is_zero()) else {
                return Err(End::Refused(refusal));
            };
            model.await_exit(&pids, left.min(HOLDER_POLL));
            if model.signal.is_some() {
                return Err(End::Interrupted);
            }
        }
    }

    /// The record of a way out: what an earlier handoff of the owner has taken stays in it.
    pub fn record(&self, plan: &Plan, before: Option<&Record>) -> Record {
        let budgets = self.settings.budgets.clone();
        let mut record = before
            .cloned()
            .unwrap_or_else(|| Record::new(self.owner, "boot".to_owned(), budgets));
        record.generation += u64::from(before.is_some());
        record
            .taken
            .retain(|t| !plan.taken.iter().any(|new| new.addr == t.addr));
        record.budgets = plan.with_ends(record.budgets);
        record.taken.extend(plan.taken.iter().cloned());
        record.taken.sort_by_key(|t| t.addr);
        record.beside.clone_from(&plan.beside);
        record.modules.clone_from(&plan.modules);
        record.units.clone_from(&plan.units);
        record.consoles.clone_from(&plan.consoles);
        record.platforms.clone_from(&plan.platforms);
        record.numbers.clone_from(&plan.numbers);
        record.may_reset = self.settings.reset != Reset::Never;
        record.gate = self.settings.gate == Gate::Auto;
        record
    }

    /// The way home, by the record on file.
    pub fn home(&self, model: &mut Model) -> End {
        Self::begin(model);
        let end = model.time + self.settings.budgets.way_home;
        let records = self.records(model);
        let Some(record) = records.iter().find(|r| r.owner == self.owner).cloned() else {
            return End::Done;
        };
        loop {
            let mut snapshot = match self.look(model, &records) {
                Ok(snapshot) => snapshot,
                Err(end) => return end,
            };
            let mut comes = owners::without_what_others_have(&record, &records);
            if let Some(ctid) = self.starting {
                comes = comes.without_container(ctid);
            }
            self.ask(model, &mut snapshot, &comes.functions());
            snapshot.containers = model.given_containers();
            match home::plan(&snapshot, &comes) {
                Ok(plan) => return self.execute(model, record, None, &plan, end),
                Err(refusal) => {
                    let left = end.saturating_sub(model.time);
                    let Some(pids) = refusal.only_ending().filter(|_| !left.is_zero()) else {
                        return End::Refused(refusal);
                    };
                    model.await_exit(&pids, left);
                    if model.signal.is_some() {
                        return End::Interrupted;
                    }
                }
            }
        }
    }

    /// Carries a plan out.
    pub fn execute(&self, model: &mut Model, record: Record, rest: Option<Record>, plan: &Plan, end: Duration) -> End {
        let ledger: Arc<MemLedger> = Arc::clone(model.ledger.get_or_insert_default());
        model.laws.run = Some((self.owner, plan.direction));
        if let Some(order) = model.laws.order {
            let broken = order(plan).into_iter().map(|why| format!("order: {why}"));
            model.laws.broken.extend(broken);
        }
        if plan.direction == Direction::Out && model.laws.original.is_none() {
            model.laws.original = Some(model.state());
        }
        let run = Executor::new(&mut *model, &*ledger, record, rest, end);
        match unless_killed(|| run.execute(plan)) {
            Some(Ok(())) => End::Done,
            Some(Err(Error::Restored { what })) => End::Restored(what),
            Some(Err(Error::RestoredBut { but, .. })) => End::RestoredBut(but),
            Some(Err(error @ Error::NotRestored { .. })) => End::NotRestored(error.to_string()),
            Some(Err(error)) => End::NotRestored(format!("another error: {error}")),
            None => {
                model.gate = None; // the kernel opens it with the end of who has it shut
                End::Killed
            }
        }
    }
}

/// What comes of it; None: the run was killed in the middle.
fn unless_killed<T>(run: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => Some(result),
        Err(payload) if payload.is::<Killed>() => None,
        Err(payload) => resume_unwind(payload),
    }
}

/// Who else there is while a VM starts.
#[derive(Clone, Debug, Default)]
pub struct Beside {
    /// VMs whose lock is held.
    pub busy: Vec<Owner>,
    /// VMs whose pre-start was called by hand, by somebody who lives.
    pub callers: Vec<Owner>,
    /// VMs without a record that need something of it.
    pub needed: Vec<Reason>,
}

/// A start on the model: what `gpu_handoff::run::owners` asks of it.
struct Start<'a> {
    session: &'a Session,
    model: &'a mut Model,
    beside: &'a Beside,
}

impl Host for Start<'_> {
    fn records(&mut self) -> Result<Vec<Record>, Error> {
        Ok(self.session.records(self.model))
    }

    fn look(&mut self, records: &[Record]) -> Result<Snapshot, Error> {
        let look = self.session.look(self.model, records);
        look.map_err(|end| panic!("the host could not be read: {end:?}"))
    }

    fn signs(&self, record: &Record) -> Signs {
        Signs {
            busy: self.beside.busy.contains(&record.owner),
            caller: self.beside.callers.contains(&record.owner),
        }
    }

    fn needed(&mut self, _: &[PciAddr], _: &Snapshot, _: &[Owner]) -> Result<Vec<Reason>, Error> {
        Ok(self.beside.needed.clone())
    }

    fn bring_home(&mut self, first: &First, records: &[Record]) -> Result<(), Error> {
        let First { record, part } = first;
        let of = Session {
            owner: record.owner,
            ..self.session.clone()
        };
        let mut snapshot = self.look(records)?;
        let comes = owners::without_what_others_have(&part.comes, records);
        of.ask(self.model, &mut snapshot, &comes.functions());
        snapshot.containers = self.model.given_containers();
        let plan = home::plan(&snapshot, &comes)?;
        let end = self.model.time + record.budgets.way_home;
        match of.execute(self.model, record.clone(), part.stays.clone(), &plan, end) {
            End::Done => Ok(()),
            End::Killed => resume_unwind(Box::new(Killed)),
            End::NotRestored(what) => Err(Error::NotRestored {
                what,
                left: String::new(),
                hint: String::new(),
            }),
            end => panic!("a way home ended {end:?}"),
        }
    }

    fn not_interrupted(&mut self) -> Result<(), Error> {
        match self.model.signal {
            Some(_) => Err(Error::Interrupted),
            None => Ok(()),
        }
    }

    fn new_record(&self, owner: Owner) -> Result<Record, Error> {
        Ok(Record::new(
            owner,
            "boot".to_owned(),
            self.session.settings.budgets.clone(),
        ))
    }
}

/// A VM.
pub fn vm(vmid: u32) -> Owner {
    match vmid.to_string().parse() {
        Ok(vmid) => Owner::Vm(vmid),
        Err(_) => panic!("{vmid} is no VM's id"),
    }
}
