//! A plan as `plan` and `--dry-run` show it, text and JSON.

use std::fmt::Write as _;

use serde::{Serialize, Serializer};

use crate::base::text::{foreign, join};
use crate::model::plan::{Direction, Plan, Way};
use crate::model::record::Owner;
use crate::plan::selection::HostpciEntry;

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
