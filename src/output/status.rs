//! Who has which card, what it is bound to and who uses it: the value that `status --json` prints.
//!
//! Not here: its table ([`crate::output::status_table`]).

use std::collections::BTreeSet;

use serde::Serialize;

use crate::base::pci::{PciAddr, PciSlot};
use crate::base::sets::{IntoSet as _, in_order};
use crate::base::text::{foreign, join};
use crate::host::belongs::Belongs;
use crate::host::functions::Function;
use crate::host::holders::Holder;
use crate::host::pci_ids::{Ids, Named};
use crate::host::snapshot::{Snapshot, card};
use crate::model::plan::Direction;
use crate::model::record::{Record, Taken, Wedge};
use crate::model::refusal::Reason;
use crate::output::card_state::{CardState, OnRecord};
use crate::plan::clients::{self, Client, Then};
use crate::plan::hangs;
use crate::plan::users::use_of;
use crate::settings::values::Settings;
use crate::state::history::Handoff;

/// What is shown where there is nothing to show.
pub const NO_GPU: &str = "no NVIDIA GPU on this host\n";

/// The form of the JSON: docs/schemas/status.json. A field that goes, or means something else, makes it another one.
pub const VERSION: u32 = 1;

/// What a status is made from.
#[derive(Clone, Copy, Debug)]
pub struct Sight<'a> {
    /// The host.
    pub snapshot: &'a Snapshot,
    /// What is on record.
    pub records: &'a [Record],
    /// What they have done to its users at a handoff is said with these.
    pub settings: Option<&'a Settings>,
    /// What devices are called.
    pub names: &'a [Named],
    /// Past handoffs, the oldest first.
    pub past: &'a [Handoff],
}

impl<'a> Sight<'a> {
    /// Of a host of which nothing is known but how it is.
    pub fn of(snapshot: &'a Snapshot, records: &'a [Record]) -> Self {
        Sight {
            snapshot,
            records,
            settings: None,
            names: &[],
            past: &[],
        }
    }
}

/// What `status` prints.
#[derive(Debug, Serialize)]
pub struct Status {
    /// [`VERSION`].
    pub version: u32,
    /// The cards, by slot.
    pub cards: Vec<CardStatus>,
}

/// One card as `status` shows it.
#[derive(Debug, Serialize)]
pub struct CardStatus {
    /// Slot, DDDD:BB:SS.
    pub slot: String,
    /// What the system's list of PCI ids calls it, or NVIDIA's driver; or its ids.
    pub name: String,
    /// Its UUID, as NVIDIA's driver has it: not while it is away.
    pub uuid: Option<String>,
    /// Its functions.
    pub functions: Vec<FunctionStatus>,
    /// Whose it is, in a word.
    pub state: CardState,
    /// The VM whose it is.
    pub vmid: Option<u32>,
    /// Whose handoff it is in, and how far that is.
    pub owner: Option<String>,
    /// The run that is at work on it at this moment, at what, and for how long.
    pub at_work: Option<String>,
    /// What a run that was killed was at and is not over: it is not known yet whether it is stuck.
    pub left: Option<String>,
    /// What is stuck in the kernel.
    pub stuck: Vec<String>,
    /// What was stuck and has ended since.
    pub late: Vec<String>,
    /// Who uses it, by name; one of which it is not sure with a question mark.
    pub users: Vec<String>,
    /// Not all of that could be seen.
    pub unclear: bool,
    /// Who uses it, and what is not known, in sentences.
    pub in_use: Vec<String>,
    /// What can be done, where something is to be done.
    pub hint: Option<&'static str>,
    /// The last handoff of it.
    pub last: Option<Last>,
}

/// One function of a card.
#[derive(Debug, Serialize)]
pub struct FunctionStatus {
    /// Address.
    pub addr: String,
    /// Vendor and device id; None: it is not on the bus any more.
    pub id: Option<String>,
    /// A word for its class.
    pub class: &'static str,
    /// Bound driver.
    pub driver: Option<String>,
    /// The kernel answered when its attributes were read; else `driver_override` is not known.
    pub answers: bool,
    /// `driver_override`.
    pub driver_override: Option<String>,
    /// IOMMU group.
    pub group: Option<u32>,
}

/// A handoff that is over.
#[derive(Debug, Serialize)]
pub struct Last {
    /// When it began, seconds since 1970 (UTC).
    pub time: u64,
    /// Whose it was.
    pub owner: String,
    /// Where it led.
    pub direction: Direction,
    /// How it ended: "done", or the sentence that was its error.
    pub outcome: String,
    /// How long it took, milliseconds.
    pub took_ms: u64,
}

/// The status of every NVIDIA GPU, and of those that were taken and have vanished; with `only`, of the cards in these slots.
pub fn status(sight: &Sight<'_>, only: Option<&BTreeSet<PciSlot>>) -> Status {
    let mut cards: Vec<(PciAddr, Vec<PciAddr>)> = gpus(sight.snapshot)
        .map(|gpu| (gpu, card(sight.snapshot, gpu).into_iter().collect()))
        .collect();
    cards.extend(missing(sight));
    let mut cards = in_order(cards.into_iter(), |(gpu, _)| *gpu);
    cards.retain(|(gpu, _)| only.is_none_or(|slots| slots.contains(&gpu.slot())));
    Status {
        version: VERSION,
        cards: cards
            .iter()
            .map(|(gpu, addrs)| card_status(sight, *gpu, addrs))
            .collect(),
    }
}

/// The first GPU of each card: one with two GPU functions is one card.
fn gpus(snapshot: &Snapshot) -> impl Iterator<Item = PciAddr> {
    let is_first = |gpu: &&Function| {
        let mut others = snapshot.gpus();
        !others.any(|other| other.addr.slot() == gpu.addr.slot() && other.addr < gpu.addr)
    };
    snapshot.gpus().filter(is_first).map(|gpu| gpu.addr)
}

/// Cards that are on record and of which nothing is on the bus any more.
fn missing(sight: &Sight<'_>) -> Vec<(PciAddr, Vec<PciAddr>)> {
    let mut cards = Vec::new();
    for record in sight.records {
        let is_gpu = |t: &&Taken| t.driver.as_deref() == Some("nvidia");
        for gpu in record.taken.iter().filter(is_gpu).map(|t| t.addr) {
            let of_it = record.taken.iter().map(|t| t.addr).filter(|a| a.slot() == gpu.slot());
            let of_it: Vec<PciAddr> = of_it.collect();
            let is_there = sight.snapshot.gpus().any(|f| f.addr.slot() == gpu.slot());
            if !is_there && !cards.iter().any(|(_, addrs): &(_, Vec<_>)| addrs.contains(&gpu)) {
                cards.push((gpu, of_it));
            }
        }
    }
    cards
}

/// The functions of which [`status`] shows details.
pub fn shown(snapshot: &Snapshot) -> Vec<PciAddr> {
    let shown: BTreeSet<PciAddr> = snapshot.gpus().flat_map(|gpu| card(snapshot, gpu.addr)).into_set();
    shown.into_iter().collect()
}

/// The ids of the GPUs, to ask for their names.
pub fn ids(snapshot: &Snapshot) -> Vec<Ids> {
    snapshot.gpus().map(|f| (f.vendor, f.device)).collect()
}

fn card_status(sight: &Sight<'_>, gpu: PciAddr, addrs: &[PciAddr]) -> CardStatus {
    let Sight { snapshot, records, .. } = *sight;
    let record = records.iter().find(|r| r.has(gpu));
    let on_record = OnRecord {
        addrs,
        record,
        // What stays on a driver that is loaded again is without it meanwhile.
        beside: records.iter().find(|r| r.stayed().any(|b| b.addr == gpu)),
        records,
    };
    let (state, vmid) = on_record.state(snapshot);
    let (at_work, left) = at_work(record.or(on_record.beside));
    let of_driver = snapshot.nvidia_gpu(gpu);
    let uuid = of_driver.map(|g| foreign(&g.uuid));
    let wedges = records
        .iter()
        .flat_map(|r| &r.wedges)
        .filter(|w| on_record.is_at(&w.addrs));
    let late = records
        .iter()
        .flat_map(|r| &r.late)
        .filter(|w| on_record.is_at(&w.addrs));
    let clients = |settings: &Settings| clients::of(snapshot, &[gpu], settings).0;
    let clients = sight.settings.map_or_else(Vec::new, clients);
    let uses = use_of(snapshot, addrs);
    let (users, unclear) = users(&uses);
    CardStatus {
        slot: gpu.slot().to_string(),
        name: name(sight, gpu),
        // Before the driver has looked at a GPU it has none to tell (open-gpu-kernel-modules, nv-procfs.c).
        uuid: uuid.filter(|uuid| !uuid.is_empty() && !uuid.contains('?')),
        functions: addrs.iter().map(|a| function_status(snapshot, *a)).collect(),
        state,
        vmid: vmid.map(|v| v.get()),
        owner: record.map(|r| format!("{} ({})", r.owner, how_far(r))),
        at_work,
        left,
        stuck: wedges.map(stuck).collect(),
        late: late.map(ended).collect(),
        users,
        unclear,
        in_use: hangs::at(snapshot, addrs)
            .iter()
            .chain(&uses)
            // The remedy belongs to a refusal; here only the fact is told.
            .map(|reason| reason.fact() + becomes_of(reason, &clients))
            .collect(),
        hint: hint(state),
        last: sight.past.iter().rev().find_map(|handoff| last(handoff, gpu)),
    }
}

fn name(sight: &Sight<'_>, gpu: PciAddr) -> String {
    let Some(function) = sight.snapshot.function(gpu) else {
        return "not on the bus any more".to_owned();
    };
    let ids = (function.vendor, function.device);
    let listed = sight.names.iter().find(|n| n.ids == ids).and_then(|n| n.device.clone());
    let of_driver = || {
        let model = sight.snapshot.nvidia_gpu(gpu).map(|g| foreign(&g.model));
        model.filter(|m| !m.is_empty())
    };
    let by_ids = || format!("NVIDIA {:04x}:{:04x}", function.vendor, function.device);
    listed.or_else(of_driver).unwrap_or_else(by_ids)
}

fn function_status(snapshot: &Snapshot, addr: PciAddr) -> FunctionStatus {
    let Some(f) = snapshot.function(addr) else {
        return FunctionStatus {
            addr: addr.to_string(),
            id: None,
            class: "",
            driver: None,
            answers: false,
            driver_override: None,
            group: None,
        };
    };
    FunctionStatus {
        addr: f.addr.to_string(),
        id: Some(format!("{:04x}:{:04x}", f.vendor, f.device)),
        class: f.class.name(),
        driver: f.driver.as_deref().map(foreign),
        // What is stuck was not asked, and is told by itself.
        answers: (f.asked && !f.gone) || f.stuck,
        driver_override: f.driver_override.as_deref().map(foreign),
        group: f.group,
    }
}

/// How far a handoff is, as its record has it.
fn how_far(record: &Record) -> String {
    let state = serde_json::to_value(record.state).ok();
    state.as_ref().and_then(|s| s.as_str()).unwrap_or("?").to_owned()
}

fn stuck(wedge: &Wedge) -> String {
    // `[<0>] nv_pci_remove+0x1b2/0x4f0 [nvidia]`: the module is there only where it is one (proc_pid_stack(5)).
    let mut words = wedge.stack.lines().next().unwrap_or_default().split_ascii_whitespace();
    let frame = words.find(|word| !word.starts_with('[')).unwrap_or("?");
    format!(
        "'{}' is stuck in the kernel at {frame}, in process group {} of ours",
        wedge.act, wedge.group
    )
}

fn ended(wedge: &Wedge) -> String {
    format!(
        "'{}' was stuck in the kernel, in process group {} of ours, and has ended since",
        wedge.act, wedge.group
    )
}

fn last(handoff: &Handoff, gpu: PciAddr) -> Option<Last> {
    let slot = gpu.slot().to_string();
    handoff.cards.contains(&slot).then(|| Last {
        time: handoff.time,
        owner: foreign(&handoff.owner),
        direction: handoff.direction,
        outcome: handoff.outcome.clone(),
        took_ms: handoff.took_ms,
    })
}

fn hint(state: CardState) -> Option<&'static str> {
    match state {
        CardState::Interrupted | CardState::Stranded | CardState::Late | CardState::Missing => {
            Some("'gpu-handoff recover' brings it home, or says why it cannot")
        }
        CardState::Wedged => Some("see 'journalctl -k'; if it does not end, sync and power-cycle (a reboot will hang)"),
        CardState::Stuck => Some("'gpu-handoff recover' lets it end where that is safe, or says what keeps it"),
        CardState::Host | CardState::Vm | CardState::ByHand | CardState::HandingOver | CardState::Nobody => None,
    }
}

/// Who uses a card, by name, each once; and whether not all of that is known.
fn users(uses: &[Reason]) -> (Vec<String>, bool) {
    let (mut users, mut unclear) = (Vec::new(), false);
    for reason in uses {
        let name = match reason {
            Reason::Held { holder, .. } => word(holder),
            Reason::Doubtful { holder, .. } => format!("{}?", word(holder)),
            Reason::UsbInUse(_) => "USB".to_owned(),
            _ => {
                unclear = true;
                continue;
            }
        };
        if !users.contains(&name) {
            users.push(name);
        }
    }
    (users, unclear)
}

/// A user in a word.
fn word(holder: &Holder) -> String {
    match &holder.belongs_to {
        Belongs::Vm(vmid) => format!("VM {vmid}"),
        Belongs::Container { ctid, .. } => format!("CT {}", foreign(ctid)),
        Belongs::Unit(name) => foreign(name.strip_suffix(".service").unwrap_or(name)),
        _ => foreign(&holder.comm),
    }
}

/// What a handoff does to a user, in a word; nothing where it does nothing.
fn becomes_of(user: &Reason, clients: &[Client]) -> &'static str {
    let (Reason::Held { holder, .. } | Reason::Doubtful { holder, .. }) = user else {
        return "";
    };
    match clients.iter().find(|c| c.holder.pid == holder.pid).map(|c| c.then) {
        Some(Then::Stopped) => "; a handoff stops it, and starts it again",
        Some(Then::LetsGo) => "; a handoff has it let go, and it runs on",
        Some(Then::Ended) => "; a handoff asks it to end",
        Some(Then::Killed) => "; a handoff asks it to end, or kills it",
        Some(Then::Accepted) => "; a handoff goes on beside it",
        Some(Then::InTheWay) | None => "",
    }
}

/// Who is at work on what a record speaks of: a run that lives, or what one that was killed has left.
fn at_work(record: Option<&Record>) -> (Option<String>, Option<String>) {
    let Some((record, at_work)) = record.and_then(|r| Some((r, r.at_work.as_ref()?))) else {
        return (None, None);
    };
    let acts = record.acts_at_work();
    match &at_work.run {
        Some(run) => (Some(format!("{run}, at {acts}")), None),
        None => {
            let groups = join(&record.workers);
            let left = format!("{acts}, in process group {groups} of ours, by a run that was killed");
            (None, Some(left))
        }
    }
}
