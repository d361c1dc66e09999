//! Who is asked to let go for a handoff: services that are stopped and started again, processes that are ended. Pure.
//!
//! Not here: who uses a GPU ([`crate::plan::users`]), and what is written of it in the way of a hint
//! ([`crate::model::remedy`]).

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::base::pci::PciAddr;
use crate::base::sets::{IntoSet as _, in_order};
use crate::base::text::{foreign, join};
use crate::base::vmid::VmId;
use crate::host::functions::Function;
use crate::host::holders::Holder;
use crate::host::nodes::Node;
use crate::host::snapshot::Snapshot;
use crate::host::unit_names::is_starter;
use crate::host::units::Unit;
use crate::model::doubt::Risk;
use crate::model::named::Named;
use crate::model::plan::Way;
use crate::model::record::Beside;
use crate::model::refusal::Reason;
use crate::plan::moving::Ground;
use crate::plan::stopping::{How, Stop, uses, ways_to_stop};
use crate::plan::unseen::unseen;
use crate::plan::users::{drm_needed, held, usb_below};
use crate::plan::vendor::nvidia::{is_one_shot, is_own_service};
use crate::settings::values::{Doubt, Processes, Settings};

/// Whether a process uses one of these functions, and may be ended for it, as things are now.
pub fn can_end_now(snapshot: &Snapshot, pid: i32, addrs: &[PciAddr]) -> bool {
    held(snapshot, addrs).iter().any(|reason| match reason {
        Reason::Held { holder, .. } => holder.pid == pid && Processes::can_end(holder),
        _ => false,
    })
}

/// Whether this process uses one of these functions now.
pub fn uses_now(snapshot: &Snapshot, process: &Named, addrs: &[PciAddr]) -> bool {
    held(snapshot, addrs).iter().any(|reason| match reason {
        Reason::Held { holder, .. } | Reason::Doubtful { holder, .. } => Named::of(holder) == *process,
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
    /// Where nothing shows that it is one of these that it uses: what comes of it if it is.
    pub doubt: Option<Risk>,
    /// What becomes of it.
    pub then: Then,
}

/// What becomes of a user of a GPU when that leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Then {
    /// Its service, of the host or inside a container, is stopped, and started again.
    Stopped,
    /// Its service lets the driver go, and runs on.
    LetsGo,
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
        let (holder, nodes, doubt) = match reason {
            Reason::Held { holder, nodes } => (holder, nodes, None),
            Reason::Doubtful { holder, nodes, risk } => (holder, nodes, Some(risk)),
            _ => continue,
        };
        if let Some(same) = clients.iter_mut().find(|c: &&mut Client| c.holder.pid == holder.pid) {
            same.nodes.extend(nodes);
            continue;
        }
        let then = match &holder.belongs_to {
            _ if judged.accepted.contains(&holder.pid) => Then::Accepted,
            _ if !judged.lets_go(&holder) => Then::InTheWay,
            _ if judged.only_lets_go(&holder) => Then::LetsGo,
            _ if !judged.processes.iter().any(|p| p.pid == holder.pid) => Then::Stopped,
            _ if settings.processes == Processes::Kill => Then::Killed,
            _ => Then::Ended,
        };
        clients.push(Client {
            holder: *holder,
            nodes,
            doubt,
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
    pub(crate) units: Vec<Unit>,
    /// Those of them that use only what stays: they are started again as soon as the rest has left.
    pub(crate) again: Vec<Unit>,
    /// Those of them that need one of NVIDIA's own, and are started again whenever that is.
    pub(crate) with_own: Vec<Unit>,
    /// What starts these again when they are used, each with the unit: stopped before it, and started with it.
    pub(crate) starters: Vec<(Unit, Unit)>,
    /// What is stopped in the place of these where they do not let go.
    pub(crate) instead: Vec<(Unit, Unit)>,
    /// The display manager that is stopped, if one is.
    pub(crate) desktop: Option<Unit>,
    /// Processes that end with it.
    pub(crate) of_desktop: Vec<Named>,
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
        let is_stopped = |unit: &Unit| self.units.iter().any(|one| one.holds(unit));
        let is_of_desktop = self.of_desktop.iter().any(|process| process.pid == holder.pid);
        is_of_desktop
            || Unit::of(holder).as_ref().is_some_and(is_stopped)
            || self.processes.iter().any(|p| p.pid == holder.pid)
    }

    /// Whether its service runs on.
    fn only_lets_go(&self, holder: &Holder) -> bool {
        let of = Unit::of(holder);
        let runs_on = |unit: &Unit| of.is_some() && unit.runs_on() == of;
        self.units.iter().any(runs_on) && !self.units.iter().any(|unit| of.as_ref() == Some(unit))
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

    /// A service is stopped, and what systemd stops with it before: NVIDIA's own last, since others may talk to them.
    fn stops(&mut self, ground: &Ground<'_>, stop: &Stop<'_>, nodes: &[Node]) {
        let Stop {
            unit,
            said,
            how,
            again,
            instead,
        } = stop;
        if self.units.contains(unit) {
            return;
        }
        self.instead
            .extend(instead.iter().map(|other| (unit.clone(), other.clone())));
        let when = if *again {
            "the other GPU has left"
        } else {
            "the GPU is home"
        };
        let (setting, goes_on) = match (how, unit) {
            (How::Own, _) => ("services", ""),
            (How::Desktop, _) => ("display-manager", ", and all desktops end"),
            (How::Named, Unit::Host(_) | Unit::OfUser { .. } | Unit::DriverUse { .. }) => ("services", ""),
            (How::Named, Unit::Inside { .. }) => ("containers", ", and the container goes on"),
            (How::Named, Unit::OfHa { .. }) => ("containers", ", and HA ignores it until then"),
            (How::Named, _) => ("containers", ""),
        };
        if let Unit::DriverUse { driver_use_of } = unit {
            self.notes.push(format!(
                "{} has {} open; it lets the driver go and runs on, and uses it again when {when}",
                foreign(driver_use_of),
                join(nodes)
            ));
        } else if *how != How::Own {
            let is_stopped = if unit.is_whole() { "shut down" } else { "stopped" };
            self.notes.push(format!(
                "{unit} has {} open and is {is_stopped}, as '{setting}' says; it is started again when {when}{goes_on}",
                join(nodes)
            ));
        }
        if *how == How::Desktop {
            let desktop = ground.snapshot.desktop.iter();
            let its = desktop.flat_map(|d| ground.snapshot.holders.iter().filter(|h| d.has(&h.belongs_to)));
            self.of_desktop.extend(its.map(Named::of));
            self.desktop = Some(unit.clone());
        }
        let beside = |name: &String| unit.beside(name);
        let starters: Vec<Unit> = said.started_by.iter().map(beside).collect();
        let along: Vec<Unit> = said.takes_along.iter().map(beside).collect();
        let new = |one: &&Unit| !self.units.contains(one);
        let stopped: Vec<Unit> = starters
            .iter()
            .chain(&along)
            .filter(new)
            .chain([unit])
            .cloned()
            .collect();
        for one in &starters {
            self.notes.push(format!(
                "{one} starts {unit} whenever it is used, and is stopped and started again with it"
            ));
            self.starters
                .extend(along.iter().chain([unit]).map(|its| (one.clone(), its.clone())));
        }
        for one in &along {
            self.notes
                .push(format!("{one} needs {unit}, and is stopped and started again with it"));
        }
        match (again, how) {
            // But for one that needs it and uses what leaves.
            (true, _) => {
                let leaves = |one: &&Unit| uses(ground, one, |addr| ground.set.contains(&addr));
                self.again.extend(stopped.iter().filter(|one| !leaves(one)).cloned());
            }
            (false, How::Own) => self.with_own.extend(stopped.iter().filter(|one| *one != unit).cloned()),
            (false, _) => {}
        }
        // What ends without coming back as it was goes last, but for what others may talk to; and nothing goes before what is
        // stopped with it, or that would be stopped by systemd, and given back by nobody where a run ends in between.
        let own = self.units.iter().position(|one| is_own_service(one, true));
        let behind = self
            .units
            .iter()
            .rposition(|one| starters.contains(one) || along.contains(one))
            .map_or(0, |at| at + 1);
        let at = match how {
            How::Own => self.units.len(),
            How::Desktop => own.unwrap_or(self.units.len()).max(behind),
            How::Named => behind,
        };
        self.units.splice(at..at, stopped);
    }
}

/// The containers that are shut down because of one of these, in which nothing is stopped by itself. `accepts_doubt`: for a doubt
/// none is.
fn shut_down(users: &[Reason], ground: &Ground<'_>, settings: &Settings, accepts_doubt: bool) -> BTreeSet<Unit> {
    let stopped = users.iter().filter_map(|reason| match reason {
        Reason::Doubtful { .. } if accepts_doubt => None,
        Reason::Held { holder, .. } | Reason::Doubtful { holder, .. } => {
            Stop::of(holder, ground, settings, &BTreeSet::new())
        }
        _ => None,
    });
    let units = stopped.filter_map(|stop| Some(stop.ok()?.unit));
    units.filter(Unit::is_whole).into_set()
}

/// The units that may have to be stopped where these GPUs leave, of which systemd has to be asked
/// ([`crate::host::unit_states`]) before the rest is decided.
pub fn to_ask(snapshot: &Snapshot, gpus: &[PciAddr], given: &[PciAddr], settings: &Settings) -> Vec<Unit> {
    let ground = Ground::of(snapshot, gpus, given, None);
    let way = ground.way(settings);
    let let_go = let_go(&ground, &ground.beside(way), way);
    let users = users_of(&ground, way, &let_go).into_iter();
    let holders = users.filter_map(|reason| match reason {
        Reason::Held { holder, .. } | Reason::Doubtful { holder, .. } => Some(holder),
        _ => None,
    });
    let may: BTreeSet<Unit> = holders
        .flat_map(|holder| ways_to_stop(&holder, &ground, settings))
        .map(|(unit, _)| unit)
        .into_set();
    may.into_iter().collect()
}

/// What is let go: what leaves, and what stays on a driver that is unloaded.
fn let_go(ground: &Ground<'_>, beside: &[Beside], way: Way) -> Vec<PciAddr> {
    let mut let_go = ground.addrs();
    // What is without its driver since an earlier run is not taken off one.
    if way == Way::Unload {
        let_go.extend(beside.iter().map(|b| b.addr));
    }
    let_go
}

/// In which order units are started again that were stopped in this one: the host's own before those of users, these before
/// containers, and what is inside containers last, in which somebody else decides whether a start ever ends; of what is inside
/// several, one of each after the other. What starts others when they are used is before these, since a socket does not listen for
/// a service that runs (systemd, src/core/socket.c, socket_start).
pub(crate) fn start_order(units: &[Unit]) -> Vec<&Unit> {
    let mut before: BTreeMap<VmId, usize> = BTreeMap::new();
    let mut order: Vec<(_, &Unit)> = Vec::new();
    for unit in units.iter().rev() {
        let turn = match unit {
            Unit::Inside { container, .. } => {
                let turn = before.entry(*container).or_default();
                *turn += 1;
                *turn
            }
            _ => 0,
        };
        order.push(((place(unit), !is_starter(&unit.name()), turn), unit));
    }
    let order = in_order(order.into_iter(), |(key, _)| *key).into_iter();
    order.map(|(_, unit)| unit).collect()
}

/// Whose a unit is: the host's own, a user's, a container, or what is inside one.
fn place(unit: &Unit) -> u8 {
    match unit {
        Unit::Host(_) | Unit::DriverUse { .. } => 0,
        Unit::OfUser { .. } => 1,
        Unit::Whole { .. } | Unit::Run { .. } | Unit::OfHa { .. } => 2,
        Unit::Inside { .. } => 3,
    }
}

/// Whether a process uses what leaves, and the settings have it ended.
fn is_ended(holder: &Holder, nodes: &[Node], ground: &Ground<'_>, settings: &Settings) -> bool {
    let of: Vec<PciAddr> = nodes.iter().filter_map(Node::function).collect();
    // One that only uses what stays, where the driver is loaded anew, is nobody's to end.
    let leaves = of.is_empty() || of.iter().any(|addr| ground.set.contains(addr));
    settings.processes != Processes::Refuse && Processes::can_end(holder) && leaves
}

/// Why one that the settings have ended is not: this run was started from it.
fn is_caller(holder: &Holder, snapshot: &Snapshot) -> Option<Reason> {
    snapshot.callers.contains(&holder.pid).then(|| {
        Reason::Other(format!(
            "process {} ({}) has started this run, and is not ended for it. Hint: start it from another place",
            holder.pid,
            foreign(&holder.comm)
        ))
    })
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
    let let_go = let_go(ground, beside, way);
    let mut judged = Judged {
        let_go: let_go.clone(),
        ..Judged::default()
    };
    let accepts_doubt = settings.doubt == Doubt::GoOn && !is_one_shot(snapshot);
    let is_unbound = |a: &&PciAddr| way != Way::Unload || !snapshot.function(**a).is_some_and(Function::is_on_nvidia);
    let unbound: Vec<PciAddr> = addrs.iter().filter(is_unbound).copied().collect();
    let users = users_of(ground, way, &let_go);
    let wholes = shut_down(&users, ground, settings, accepts_doubt);
    let stop_of = |holder: &Holder| Stop::of(holder, ground, settings, &wholes);
    // For a doubt that the settings accept no container goes down.
    let is_accepted = |reason: &Reason, stop: &Result<Stop<'_>, Vec<Reason>>| {
        let whole = stop.as_ref().is_ok_and(|stop| stop.unit.is_whole());
        accepts_doubt && whole && matches!(reason, Reason::Doubtful { .. })
    };
    let all = users.into_iter().chain(unseen(snapshot, &unbound));
    for reason in all.chain(usb_below(snapshot, addrs)) {
        match &reason {
            Reason::Held { holder, .. } | Reason::Doubtful { holder, .. } if judged.lets_go(holder) => {}
            Reason::Held { holder, nodes } | Reason::Doubtful { holder, nodes, .. }
                if let Some(stop) = stop_of(holder)
                    && !is_accepted(&reason, &stop) =>
            {
                match stop {
                    Ok(stop) => judged.stops(ground, &stop, nodes),
                    Err(why) => {
                        reasons.push(reason);
                        for why in why {
                            if !reasons.contains(&why) {
                                reasons.push(why);
                            }
                        }
                    }
                }
            }
            Reason::Held { holder, nodes } if is_ended(holder, nodes, ground, settings) => {
                match is_caller(holder, snapshot) {
                    None => judged.ends(holder, nodes, settings.processes == Processes::Kill),
                    Some(why) => reasons.extend([reason, why]),
                }
            }
            Reason::Doubtful { holder, nodes, .. } if accepts_doubt => {
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
    // Containers go down beside each other, and so they stand there; who is started last is stopped first, for an undo, too.
    judged.units = in_order(judged.units.drain(..), |unit| std::cmp::Reverse(place(unit)));
    judged
}
