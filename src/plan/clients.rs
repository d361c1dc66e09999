//! Who is asked to let go for a handoff: services that are stopped and started again, processes that are ended. Pure.
//!
//! Not here: who uses a GPU ([`crate::plan::users`]), and what is written of it in the way of a hint
//! ([`crate::model::remedy`]).

use serde::Serialize;

use crate::base::pci::PciAddr;
use crate::base::text::{foreign, join};
use crate::host::belongs::Belongs;
use crate::host::functions::Function;
use crate::host::holders::Holder;
use crate::host::nodes::Node;
use crate::host::snapshot::Snapshot;
use crate::model::plan::Way;
use crate::model::record::Beside;
use crate::model::refusal::Reason;
use crate::plan::moving::Ground;
use crate::plan::unseen::unseen;
use crate::plan::users::{drm_needed, held, usb_below};
use crate::plan::vendor::nvidia::{is_one_shot, is_own_service};
use crate::settings::values::{Doubt, Processes, Services, Settings};

/// Whether a process uses one of these functions, and may be ended for it, as things are now.
pub fn can_end_now(snapshot: &Snapshot, pid: i32, addrs: &[PciAddr]) -> bool {
    held(snapshot, addrs).iter().any(|reason| match reason {
        Reason::Held { holder, .. } => holder.pid == pid && Processes::can_end(holder),
        _ => false,
    })
}

/// A process that uses GPUs, for a look at all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// Who it is.
    pub holder: Holder,
    /// What it has of theirs.
    pub nodes: Vec<Node>,
    /// Nothing shows that it is one of these that it uses.
    pub doubtful: bool,
    /// What becomes of it.
    pub then: Then,
}

/// What becomes of a user of a GPU when that leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Then {
    /// Its service is stopped, and started again.
    Stopped,
    /// It is asked to end.
    Ended,
    /// The same, and it is killed where it does not.
    Killed,
    /// It is left alone: the settings take the risk.
    Accepted,
    /// The GPU does not leave.
    InTheWay,
}

/// Who uses these GPUs, and what becomes of each if they leave together; and what of it was not seen.
pub fn of(snapshot: &Snapshot, gpus: &[PciAddr], settings: &Settings) -> (Vec<Client>, Vec<Reason>) {
    let ground = Ground::of(snapshot, gpus, &[], None);
    let way = ground.way(settings);
    let mut reasons = Vec::new();
    let judged = judge_holders(&ground, &ground.beside(way), way, settings, &mut reasons);
    let mut clients = Vec::new();
    for reason in users_of(&ground, way, &judged.let_go) {
        let doubtful = matches!(reason, Reason::Doubtful { .. });
        let (Reason::Held { holder, nodes } | Reason::Doubtful { holder, nodes }) = reason else {
            continue;
        };
        if let Some(same) = clients.iter_mut().find(|c: &&mut Client| c.holder.pid == holder.pid) {
            same.nodes.extend(nodes);
            continue;
        }
        let then = match &holder.belongs_to {
            _ if judged.accepted.contains(&holder.pid) => Then::Accepted,
            _ if !judged.lets_go(&holder) => Then::InTheWay,
            Belongs::Unit(_) => Then::Stopped,
            _ if settings.processes == Processes::Kill => Then::Killed,
            _ => Then::Ended,
        };
        clients.push(Client {
            holder: *holder,
            nodes,
            doubtful,
            then,
        });
    }
    reasons.retain(|r| !matches!(r, Reason::Held { .. } | Reason::Doubtful { .. }));
    (clients, reasons)
}

/// What becomes of the holders.
#[derive(Default)]
pub(crate) struct Judged {
    /// Units that are stopped for the handoff, in that order.
    pub(crate) units: Vec<String>,
    /// Processes that are ended for it.
    pub(crate) processes: Vec<Holder>,
    /// What is to be let go.
    pub(crate) let_go: Vec<PciAddr>,
    /// Doubtful ones that the settings accept.
    pub(crate) accepted: Vec<i32>,
    /// The settings accept that there may be others, who were not seen.
    pub(crate) accepts_unseen: bool,
    /// What is said of these.
    pub(crate) notes: Vec<String>,
}

impl Judged {
    /// Whether a holder lets go before anything is taken off its driver.
    pub(crate) fn lets_go(&self, holder: &Holder) -> bool {
        let is_stopped = matches!(&holder.belongs_to, Belongs::Unit(name) if self.units.contains(name));
        is_stopped || self.processes.iter().any(|p| p.pid == holder.pid)
    }

    /// A process is ended.
    fn ends(&mut self, holder: &Holder, nodes: &[Node], kill: bool) {
        let how = if kill { ", and ended where it does not," } else { "" };
        self.notes.push(format!(
            "process {} ({}) has {} open and is asked to end{how} as 'processes' says; nobody starts it again",
            holder.pid,
            foreign(&holder.comm),
            join(nodes)
        ));
        self.processes.push(holder.clone());
    }

    /// A service is stopped: NVIDIA's own last, since others may talk to them.
    fn stops(&mut self, unit: &str, is_own: bool, nodes: &[Node]) {
        if self.units.iter().any(|u| u == unit) {
            return;
        }
        if is_own {
            self.units.push(unit.to_owned());
            return;
        }
        self.units.insert(0, unit.to_owned());
        self.notes.push(format!(
            "{} has {} open and is stopped, as 'services' says; it is started again when the GPU is home",
            foreign(unit),
            join(nodes)
        ));
    }
}

/// The service that a holder belongs to, where the settings have it stopped, and whether it is NVIDIA's own.
fn stopped<'h>(holder: &'h Holder, ground: &Ground<'_>, settings: &Settings) -> Option<(&'h str, bool)> {
    let Belongs::Unit(unit) = &holder.belongs_to else {
        return None;
    };
    let is_own = is_own_service(unit, ground.staying().is_empty());
    let may = match &settings.services {
        Services::Refuse => false,
        services => is_own || services.names(unit),
    };
    may.then_some((unit.as_str(), is_own))
}

/// Whether a process uses what leaves, and the settings have it ended.
fn is_ended(holder: &Holder, nodes: &[Node], ground: &Ground<'_>, settings: &Settings) -> bool {
    let of: Vec<PciAddr> = nodes.iter().filter_map(Node::function).collect();
    // One that only uses what stays, where the driver is loaded anew, is nobody's to end.
    let leaves = of.is_empty() || of.iter().any(|addr| ground.set.contains(addr));
    settings.processes != Processes::Refuse && Processes::can_end(holder) && leaves
}

/// Who is seen to use what is let go, and nvidia_drm for what stays where that has to be loaded anew.
fn users_of(ground: &Ground<'_>, way: Way, let_go: &[PciAddr]) -> Vec<Reason> {
    let mut users = held(ground.snapshot, let_go);
    if way == Way::Unbind && !ground.modules(way).is_empty() {
        users.extend(drm_needed(ground.snapshot, &ground.set));
    }
    users
}

/// Sorts the holders; the rest are reasons. `way`: where the driver is unloaded, the kernel refuses if anybody unseen has it
/// open, and nobody's word counts against that; and who uses what stays on it counts, too.
pub(crate) fn judge_holders(
    ground: &Ground<'_>,
    beside: &[Beside],
    way: Way,
    settings: &Settings,
    reasons: &mut Vec<Reason>,
) -> Judged {
    let snapshot = ground.snapshot;
    let addrs = &ground.addrs();
    let mut let_go = addrs.clone();
    // What is without its driver since an earlier run is not taken off one.
    if way == Way::Unload {
        let_go.extend(beside.iter().map(|b| b.addr));
    }
    let mut judged = Judged {
        let_go: let_go.clone(),
        ..Judged::default()
    };
    let accepts_doubt = settings.doubt == Doubt::GoOn && !is_one_shot(snapshot);
    let is_unbound = |a: &&PciAddr| way != Way::Unload || !snapshot.function(**a).is_some_and(Function::is_on_nvidia);
    let unbound: Vec<PciAddr> = addrs.iter().filter(is_unbound).copied().collect();
    let all = users_of(ground, way, &let_go)
        .into_iter()
        .chain(unseen(snapshot, &unbound));
    for reason in all.chain(usb_below(snapshot, addrs)) {
        match &reason {
            Reason::Held { holder, .. } | Reason::Doubtful { holder, .. } if judged.lets_go(holder) => {}
            Reason::Held { holder, nodes } | Reason::Doubtful { holder, nodes }
                if let Some((unit, is_own)) = stopped(holder, ground, settings) =>
            {
                judged.stops(unit, is_own, nodes);
            }
            Reason::Held { holder, nodes } if is_ended(holder, nodes, ground, settings) => {
                judged.ends(holder, nodes, settings.processes == Processes::Kill);
            }
            Reason::Doubtful { holder, nodes } if accepts_doubt => {
                judged.accepted.push(holder.pid);
                judged.notes.push(format!(
                    "process {} has {} open and may use the GPU; 'doubt' is \"go-on\"",
                    holder.pid,
                    join(nodes)
                ));
            }
            Reason::Unseen(_) | Reason::Uncounted { .. } if accepts_doubt => {
                judged.accepts_unseen = true;
                judged.notes.push(format!("{}; 'doubt' is \"go-on\"", reason.fact()));
            }
            _ => reasons.push(reason),
        }
    }
    judged
}
