//! What a person has to hear of, from what is on record and what was done; pure.
//!
//! ```text
//! abandoned ──> stranded ──> wedged       of one handoff: the worse is told after the better, never the other way round
//! ```

use std::collections::BTreeMap;

use crate::base::message_ids::{MESSAGE_ABANDONED, MESSAGE_NOT_STARTED, MESSAGE_STRANDED, MESSAGE_WEDGED};
use crate::base::pci::PciSlot;
use crate::base::sets::IntoSet as _;
use crate::base::text::{are, few_or_range, foreign, join};
use crate::base::vmid::VmId;
use crate::model::record::{Owner, Record, State};
use crate::model::sentence::Sentence;
use crate::state::history::{Did, Handoff};

/// What has happened. Of two events of one handoff the later one in this list is the worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A service or a container that was stopped for a handoff does not start again.
    NotStarted,
    /// Its VM does not need a GPU any more, and it does not come home.
    Abandoned,
    /// An act failed and could not be undone.
    Stranded,
    /// A call of ours is stuck in the kernel.
    Wedged,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 4] = [Kind::NotStarted, Kind::Abandoned, Kind::Stranded, Kind::Wedged];

    /// As it is written down.
    pub fn word(self) -> &'static str {
        match self {
            Kind::NotStarted => "not-started",
            Kind::Abandoned => "abandoned",
            Kind::Stranded => "stranded",
            Kind::Wedged => "wedged",
        }
    }

    /// What a monitor of the journal can match.
    pub fn message_id(self) -> &'static str {
        match self {
            Kind::NotStarted => MESSAGE_NOT_STARTED,
            Kind::Abandoned => MESSAGE_ABANDONED,
            Kind::Stranded => MESSAGE_STRANDED,
            Kind::Wedged => MESSAGE_WEDGED,
        }
    }
}

/// An event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What it is.
    pub kind: Kind,
    /// Which handoff, or which stop of which unit: what it is known by, as long as this boot lasts.
    pub key: String,
    /// Whose handoff it is, if a VM's.
    pub vmid: Option<VmId>,
    /// Which cards, or which unit.
    pub device: String,
    /// It in a few words.
    pub title: String,
    /// It in a sentence, with its hints.
    pub text: Sentence,
}

/// Where it is read from.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// The records of this boot.
    pub records: &'a [Record],
    /// Past handoffs, the oldest first.
    pub past: &'a [Handoff],
    /// Which boot this is.
    pub boot: &'a str,
    /// The VM whose watcher has tried in vain.
    pub abandoned: Option<VmId>,
}

/// What there is to be told at this moment, whether it was told before or not. Of a record that a run is at work on there is
/// nothing yet: that run has it told when it has ended.
pub fn events(seen: &Seen<'_>) -> Vec<Event> {
    let of_records = seen.records.iter().filter(|r| r.at_work.is_none());
    let mut events: Vec<Event> = of_records.filter_map(|record| of_record(record, seen)).collect();
    events.extend(not_started(seen));
    events
}

fn of_record(record: &Record, seen: &Seen<'_>) -> Option<Event> {
    let owner = record.owner;
    let vmid = match owner {
        Owner::Vm(vmid) => Some(vmid),
        Owner::ByHand(_) => None,
    };
    let slots = slots(record);
    let cards = few_or_range(&slots, "cards");
    let is = are(slots.len());
    let told = || {
        let why = why(record, &slots, seen)?;
        let what = format!("{owner}: {}", why.what);
        Some(Sentence { what, ..why })
    };
    let (kind, text) = if let Some(wedge) = record.wedges.first() {
        let text = told().unwrap_or_else(|| {
            let what = format!(
                "{owner}: '{}' does not return: process group {} of ours waits in the kernel",
                wedge.act, wedge.group
            );
            let hint = "'gpu-handoff status' says who uses the GPU; 'gpu-handoff recover' works when that process group \
                        has gone. A plain reboot would hang: sync and power-cycle if nothing helps";
            Sentence::new(what, hint)
        });
        (Kind::Wedged, text)
    } else if record.state == State::Stranded {
        let text = told().unwrap_or_else(|| {
            let what = format!("{owner}: {cards} could not be brought home, nor put back");
            let hint = "see 'journalctl -t gpu-handoff' for why, then run 'gpu-handoff recover'";
            Sentence::new(what, hint)
        });
        (Kind::Stranded, text)
    } else {
        let vmid = vmid.filter(|vmid| seen.abandoned == Some(*vmid))?;
        let what = format!(
            "{owner} does not need {cards} any more, and it could not be brought home so far. It is tried again, more and \
             more rarely"
        );
        let hint =
            format!("see 'journalctl -u gpu-handoff-home@{vmid}.service' for why, then run 'gpu-handoff recover'");
        (Kind::Abandoned, Sentence::new(what, hint))
    };
    let name = match owner {
        Owner::Vm(_) => owner.to_string(),
        Owner::ByHand(gpu) => format!("by-hand-{gpu}"),
    };
    let whose = match vmid {
        Some(_) => owner.to_string(),
        None => format!("taken {owner}"),
    };
    Some(Event {
        kind,
        key: format!("{name} {}", record.generation),
        vmid,
        title: format!("{cards} {is} {} ({whose})", kind.word()),
        device: cards,
        text,
    })
}

/// The cards of a record: of GPUs alone where there are any.
fn slots(record: &Record) -> Vec<PciSlot> {
    let on_nvidia = record.taken.iter().filter(|t| t.driver.as_deref() == Some("nvidia"));
    let mut slots: Vec<PciSlot> = on_nvidia.map(|t| t.addr.slot()).collect();
    if slots.is_empty() {
        slots = record.functions().iter().map(|a| a.slot()).collect();
    }
    slots.into_iter().into_set().into_iter().collect()
}

/// The sentence that the last run on these cards has ended with, if it did not end well.
fn why(record: &Record, slots: &[PciSlot], seen: &Seen<'_>) -> Option<Sentence> {
    let owner = record.owner.to_string();
    let slots: Vec<String> = slots.iter().map(ToString::to_string).collect();
    let is_of =
        |h: &&Handoff| h.boot_id == seen.boot && h.owner == owner && h.cards.iter().any(|card| slots.contains(card));
    let last = seen.past.iter().rev().find(is_of)?;
    (!last.is_done()).then(|| Sentence::read(&last.outcome))
}

/// Units that were stopped in this boot, and have failed to start at every try since.
fn not_started(seen: &Seen<'_>) -> Vec<Event> {
    let mut down: BTreeMap<&str, Event> = BTreeMap::new();
    for handoff in seen.past.iter().filter(|h| h.boot_id == seen.boot) {
        for act in &handoff.acts {
            let unit = act.subject();
            match (act.did, &act.error) {
                (Some(Did::Started | Did::Restarted), Some(error)) => {
                    let name = foreign(unit);
                    let remedy = act
                        .remedy
                        .as_deref()
                        .unwrap_or("see 'gpu-handoff history -v', then start it");
                    let error = Sentence::read(error);
                    let what = format!(
                        "{}: {name} was stopped for the handoff of {} and does not start again: {}",
                        foreign(&handoff.owner),
                        join(&handoff.cards),
                        error.what
                    );
                    let event = || Event {
                        kind: Kind::NotStarted,
                        key: format!("{name} {}", handoff.time),
                        vmid: Owner::vm_of(&handoff.owner),
                        device: name.clone(),
                        title: format!("{name} does not start again ({})", foreign(&handoff.owner)),
                        text: Sentence { what, ..error }.with_hint(remedy),
                    };
                    down.entry(unit).or_insert_with(event);
                }
                (Some(Did::Started | Did::Restarted | Did::Stopped), None) => {
                    down.remove(unit);
                }
                _ => {}
            }
        }
    }
    down.into_values().collect()
}
