//! Telling: text for people, JSON for programs, and how foreign text gets into either.
//!
//! Results go to stdout through [`out`], which survives a reader that has gone; messages go through tracing.

use std::fmt::Write as _;
use std::io::{self, Write};

use serde::{Serialize, Serializer};

use crate::base::text::{foreign, join};
use crate::host::functions::Function;
use crate::host::snapshot::{Snapshot, card};
use crate::model::plan::{Direction, Plan, Way};
use crate::model::record::{Owner, Record};
use crate::plan::selection::HostpciEntry;
use crate::plan::users::use_of;

/// Writes a result to stdout. A closed pipe is the reader's decision, not an error.
///
/// # Errors
/// Any other error of writing.
pub fn out(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// A hostpci entry as `plan` shows it: what it says, what it means, what becomes of it.
pub fn entry_text(entry: &HostpciEntry) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "{}: {}", entry.key, foreign(&entry.value));
    for (n, alternative) in (1..).zip(&entry.alternatives) {
        let chosen = if *alternative == entry.chosen {
            "  <- Proxmox's choice"
        } else {
            ""
        };
        let _ = writeln!(text, "  alternative {n}: {}{chosen}", join(alternative));
    }
    match &entry.left {
        Some(why) => _ = writeln!(text, "  {why}; left to Proxmox"),
        None if entry.ours.is_empty() => {}
        None => _ = writeln!(text, "  to hand over: the card of {}", join(&entry.ours)),
    }
    text
}

/// What `plan` and `--dry-run` print: the steps in the executor's own words.
pub fn plan_text(plan: &Plan) -> String {
    let mut text = String::new();
    let to = match plan.direction {
        Direction::Out => "the host -> vfio-pci",
        Direction::Home => "vfio-pci -> the host",
    };
    let way = match plan.direction {
        Direction::Out => format!(", way: {}", plan.way),
        Direction::Home => String::new(),
    };
    let _ = writeln!(text, "{}: {} ({to}{way})", plan.owner, plan.cards.join(", "));
    for taken in &plan.taken {
        let driver = taken.driver.as_deref().unwrap_or("no driver");
        let _ = writeln!(text, "  {}  {driver} on the host", taken.addr);
    }
    if plan.steps.is_empty() {
        let _ = writeln!(text, "Nothing to do: everything is where it should be.");
    }
    let width = plan.steps.len().to_string().len();
    for (n, step) in (1..).zip(&plan.steps) {
        let line = format!("{n:>width$}. {:<14} {}", step.act.subject(), step.act.verb());
        let _ = writeln!(text, "{line:<59} at most {} s", step.deadline.as_secs());
    }
    for note in &plan.notes {
        let _ = writeln!(text, "Note: {note}");
    }
    text
}

/// A plan for programs. Its form is kept: what the record writes down of a plan has a form of its own, which may change with
/// every version.
#[derive(Debug, Serialize)]
pub struct PlanView {
    /// "out": from the host to vfio-pci; "home": back.
    pub direction: Direction,
    /// Whose handoff it is: "VM 111" or "by hand".
    pub owner: String,
    /// The number of that VM.
    pub vmid: Option<u32>,
    /// The cards, by slot.
    pub cards: Vec<String>,
    /// How the GPUs leave: "unload", "unbind" or "already-there"; None on the way home.
    pub way: Option<Way>,
    /// What is taken or given back.
    pub functions: Vec<PlanFunction>,
    /// The steps, in order.
    pub steps: Vec<PlanStep>,
    /// What else the reader should know.
    pub notes: Vec<String>,
}

/// A function that a plan takes or gives back.
#[derive(Debug, Serialize)]
pub struct PlanFunction {
    /// Address.
    pub addr: String,
    /// Its driver on the host.
    pub driver: Option<String>,
    /// Why it cannot come home.
    pub missing: Option<String>,
}

/// A step of a plan.
#[derive(Debug, Serialize)]
pub struct PlanStep {
    /// The function, module or unit that it is about.
    pub subject: String,
    /// What is done, in the executor's words.
    pub text: String,
    /// How long it may take, seconds.
    pub deadline_s: u64,
    /// The slot of the card it is for, where it may be done beside what is done for other cards.
    pub card: Option<String>,
    /// A failure is said and changes nothing.
    pub soft: bool,
}

impl From<&Plan> for PlanView {
    fn from(plan: &Plan) -> Self {
        let missing = |addr| {
            plan.missing
                .iter()
                .find(|(a, _)| *a == addr)
                .map(|(_, why)| why.clone())
        };
        PlanView {
            direction: plan.direction,
            owner: plan.owner.to_string(),
            vmid: match plan.owner {
                Owner::Vm(vmid) => Some(vmid.get()),
                Owner::ByHand(_) => None,
            },
            cards: plan.cards.clone(),
            way: (plan.direction == Direction::Out).then_some(plan.way),
            functions: plan
                .taken
                .iter()
                .map(|taken| PlanFunction {
                    addr: taken.addr.to_string(),
                    driver: taken.driver.clone(),
                    missing: missing(taken.addr),
                })
                .collect(),
            steps: plan
                .steps
                .iter()
                .map(|step| PlanStep {
                    subject: step.act.subject(),
                    text: step.act.verb(),
                    deadline_s: step.deadline.as_secs(),
                    card: step.card.map(|a| a.slot().to_string()),
                    soft: step.soft,
                })
                .collect(),
            notes: plan.notes.clone(),
        }
    }
}

/// Writes a plan that there may be as its [`PlanView`].
///
/// # Errors
/// The serializer's.
pub fn plan_view<S: Serializer>(plan: &Option<&Plan>, serializer: S) -> Result<S::Ok, S::Error> {
    plan.map(PlanView::from).serialize(serializer)
}

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
    /// `driver_override`.
    pub driver_override: Option<String>,
    /// IOMMU group.
    pub group: Option<u32>,
}

/// The status of every NVIDIA GPU.
pub fn status(snapshot: &Snapshot, records: &[Record]) -> Vec<CardStatus> {
    snapshot
        .gpus()
        .filter(|gpu| {
            // A card with two GPU functions is one card.
            !snapshot
                .gpus()
                .any(|other| other.addr.slot() == gpu.addr.slot() && other.addr < gpu.addr)
        })
        .map(|gpu| card_status(snapshot, records, gpu))
        .collect()
}

fn card_status(snapshot: &Snapshot, records: &[Record], gpu: &Function) -> CardStatus {
    let addrs: Vec<_> = card(snapshot, gpu.addr).into_iter().collect();
    let name = snapshot
        .nvidia_gpu(gpu.addr)
        .map(|g| foreign(&g.model))
        .filter(|m| !m.is_empty())
        .unwrap_or_else(|| format!("NVIDIA {:04x}:{:04x}", gpu.vendor, gpu.device));
    let owner = records.iter().find(|r| r.has(gpu.addr)).map(|r| {
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
    CardStatus {
        slot: gpu.addr.slot().to_string(),
        name,
        functions,
        owner,
        stuck,
        in_use: use_of(snapshot, &addrs)
            .iter()
            .map(|r| {
                // The remedy belongs to a refusal; here only the fact is told.
                let text = r.to_string();
                text.split(". Hint:").next().unwrap_or(&text).to_owned()
            })
            .collect(),
    }
}

/// `status` for people.
pub fn status_text(cards: &[CardStatus]) -> String {
    if cards.is_empty() {
        return "no NVIDIA GPU on this host\n".to_owned();
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
            let _ = writeln!(text, "{line}{tail}");
        }
        let _ = writeln!(text, "  lent to: {}", card.owner.as_deref().unwrap_or("nobody"));
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
