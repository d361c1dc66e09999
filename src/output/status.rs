//! Who has which card, what it is bound to and who uses it: the value that `status --json` prints, and its text.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde::Serialize;

use crate::base::pci::PciAddr;
use crate::base::text::{foreign, join};
use crate::host::functions::Function;
use crate::host::snapshot::{Snapshot, card};
use crate::model::record::Record;
use crate::model::refusal::Reason;
use crate::plan::clients::{self, Client, Then};
use crate::plan::hangs;
use crate::plan::users::use_of;
use crate::settings::values::Settings;

/// What is shown where there is nothing to show.
pub const NO_GPU: &str = "no NVIDIA GPU on this host\n";

/// One card as `status` shows it.
#[derive(Debug, Serialize)]
pub struct CardStatus {
    /// Slot, DDDD:BB:SS.
    pub slot: String,
    /// What NVIDIA's driver calls it, or its ids.
    pub name: String,
    /// Its functions.
    pub functions: Vec<FunctionStatus>,
    /// Whose handoff it is in, and how far that is.
    pub owner: Option<String>,
    /// The run that is at work on it at this moment, at what, and for how long.
    pub at_work: Option<String>,
    /// What a run that was killed was at and is not over: it is not known yet whether it is stuck.
    pub left: Option<String>,
    /// What is stuck in the kernel.
    pub stuck: Vec<String>,
    /// Who uses it, and what is not known.
    pub in_use: Vec<String>,
}

/// One function of a card.
#[derive(Debug, Serialize)]
pub struct FunctionStatus {
    /// Address.
    pub addr: String,
    /// Vendor and device id.
    pub id: String,
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

/// The status of every NVIDIA GPU. `settings`: what they have done to its users at a handoff is said with these.
pub fn status(snapshot: &Snapshot, records: &[Record], settings: Option<&Settings>) -> Vec<CardStatus> {
    snapshot
        .gpus()
        .filter(|gpu| {
            // A card with two GPU functions is one card.
            !snapshot
                .gpus()
                .any(|other| other.addr.slot() == gpu.addr.slot() && other.addr < gpu.addr)
        })
        .map(|gpu| card_status(snapshot, records, settings, gpu))
        .collect()
}

/// The functions of which [`status`] shows details.
pub fn shown(snapshot: &Snapshot) -> Vec<PciAddr> {
    let shown: BTreeSet<PciAddr> = snapshot.gpus().flat_map(|gpu| card(snapshot, gpu.addr)).collect();
    shown.into_iter().collect()
}

fn card_status(snapshot: &Snapshot, records: &[Record], settings: Option<&Settings>, gpu: &Function) -> CardStatus {
    let addrs: Vec<_> = card(snapshot, gpu.addr).into_iter().collect();
    let name = snapshot
        .nvidia_gpu(gpu.addr)
        .map(|g| foreign(&g.model))
        .filter(|m| !m.is_empty())
        .unwrap_or_else(|| format!("NVIDIA {:04x}:{:04x}", gpu.vendor, gpu.device));
    let record = records.iter().find(|r| r.has(gpu.addr));
    // What stays on a driver that is loaded again is without it meanwhile.
    let beside = || records.iter().find(|r| r.stayed().any(|b| b.addr == gpu.addr));
    let (at_work, left) = at_work(record.or_else(beside));
    let owner = record.map(|r| {
        let state = serde_json::to_value(r.state).ok();
        let state = state.as_ref().and_then(|s| s.as_str()).unwrap_or("?").to_owned();
        format!("{} ({state})", r.owner)
    });
    let functions = addrs
        .iter()
        .filter_map(|a| snapshot.function(*a))
        .map(|f| FunctionStatus {
            addr: f.addr.to_string(),
            id: format!("{:04x}:{:04x}", f.vendor, f.device),
            class: f.class.name(),
            driver: f.driver.clone(),
            // What is stuck was not asked, and is told by itself.
            answers: f.asked || f.stuck,
            driver_override: f.driver_override.clone(),
            group: f.group,
        })
        .collect();
    let wedges = records.iter().flat_map(|r| &r.wedges);
    let stuck: Vec<String> = wedges
        .filter(|w| w.addrs.iter().any(|a| addrs.contains(a)))
        .map(|w| {
            let frame = w
                .stack
                .lines()
                .next()
                .and_then(|l| l.split_ascii_whitespace().last())
                .unwrap_or("?");
            format!(
                "'{}' is stuck in the kernel at {frame}, in process group {} of ours",
                w.act, w.group
            )
        })
        .collect();
    let clients = settings.map_or_else(Vec::new, |settings| clients::of(snapshot, &[gpu.addr], settings).0);
    CardStatus {
        slot: gpu.addr.slot().to_string(),
        name,
        functions,
        owner,
        at_work,
        left,
        stuck,
        in_use: hangs::at(snapshot, &addrs)
            .iter()
            .chain(&use_of(snapshot, &addrs))
            // The remedy belongs to a refusal; here only the fact is told.
            .map(|reason| reason.fact() + becomes_of(reason, &clients))
            .collect(),
    }
}

/// What a handoff does to a user, in a word; nothing where it does nothing.
fn becomes_of(user: &Reason, clients: &[Client]) -> &'static str {
    let (Reason::Held { holder, .. } | Reason::Doubtful { holder, .. }) = user else {
        return "";
    };
    match clients.iter().find(|c| c.holder.pid == holder.pid).map(|c| c.then) {
        Some(Then::Stopped) => "; a handoff stops it, and starts it again",
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

/// `status` for people.
pub fn status_text(cards: &[CardStatus]) -> String {
    if cards.is_empty() {
        return NO_GPU.to_owned();
    }
    let mut text = String::new();
    for card in cards {
        let _ = writeln!(text, "{}  {}", card.slot, card.name);
        for f in &card.functions {
            let group = f.group.map_or("-".to_owned(), |g| g.to_string());
            let line = format!(
                "  {}  {}  {:<6} {:<14} group {group}",
                f.addr,
                f.id,
                f.class,
                f.driver.as_deref().unwrap_or("no driver")
            );
            let tail = f
                .driver_override
                .as_ref()
                .map_or(String::new(), |d| format!("  override {d}"));
            let tail = if f.answers {
                tail
            } else {
                "  does not answer".to_owned()
            };
            let _ = writeln!(text, "{line}{tail}");
        }
        let _ = writeln!(text, "  lent to: {}", card.owner.as_deref().unwrap_or("nobody"));
        if let Some(line) = &card.at_work {
            let _ = writeln!(text, "  at work: {line}");
        }
        if let Some(line) = &card.left {
            let _ = writeln!(text, "  left:    {line}");
        }
        if card.in_use.is_empty() {
            let _ = writeln!(text, "  in use:  no");
        }
        for line in &card.stuck {
            let _ = writeln!(text, "  wedged:  {line}");
        }
        for line in &card.in_use {
            let _ = writeln!(text, "  in use:  {line}");
        }
    }
    text
}
