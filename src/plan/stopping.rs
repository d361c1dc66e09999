//! Which unit is stopped so that a user of a GPU lets go, and why it may be; or why it cannot be. Pure.
//!
//! Not here: what becomes of all users together ([`crate::plan::clients`]), and whether a unit runs
//! ([`crate::host::unit_states`]).

use std::collections::BTreeSet;

use crate::base::pci::PciAddr;
use crate::host::belongs::Belongs;
use crate::host::holders::Holder;
use crate::host::nodes::Node;
use crate::host::unit_names::can_be_stopped;
use crate::host::unit_states::Kept;
use crate::host::units::{Ha, Said, Unit};
use crate::model::refusal::Reason;
use crate::plan::moving::Ground;
use crate::plan::vendor::nvidia::{is_own_service, lets_go_and_runs_on};
use crate::settings::values::{Containers, DisplayManager, HaContainers, Services, Settings};

/// Why a unit may be stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// It is NVIDIA's own, of the host.
    Own,
    /// It is the display manager, and a desktop uses the GPU.
    Desktop,
    /// The settings name it, or its kind.
    Named,
}

/// Whether the settings have a unit stopped where it is in the way, and why.
pub(crate) fn may_stop(unit: &Unit, settings: &Settings, all_leave: bool) -> Option<How> {
    let is_allowed = match (unit, settings.containers) {
        (Unit::Host(_) | Unit::OfUser { .. } | Unit::DriverUse { .. }, _) => match &settings.services {
            Services::Refuse => return None,
            _ if is_own_service(unit, all_leave) => return Some(How::Own),
            services => unit.word().is_some_and(|word| services.names(&word)),
        },
        (Unit::Whole { .. } | Unit::OfHa { .. }, containers) => containers == Containers::Shutdown,
        (Unit::Inside { .. } | Unit::Run { .. }, containers) => containers != Containers::Refuse,
    };
    is_allowed.then_some(How::Named)
}

/// What may be stopped so that a holder lets go, the gentlest first, and why each. A desktop ends only for a GPU that it uses.
pub(crate) fn ways_to_stop(holder: &Holder, ground: &Ground<'_>, settings: &Settings) -> Vec<(Unit, How)> {
    let desktop = ground
        .snapshot
        .desktop
        .as_ref()
        .filter(|_| settings.display_manager == DisplayManager::Stop);
    if let Some(desktop) = desktop.filter(|desktop| desktop.has(&holder.belongs_to)) {
        let its = ground.snapshot.holders.iter().filter(|h| desktop.has(&h.belongs_to));
        let leaves = |addr: PciAddr| ground.set.contains(&addr);
        if its.flat_map(|h| &h.nodes).filter_map(Node::function).any(leaves) {
            return vec![(Unit::host(&desktop.unit), How::Desktop)];
        }
    }
    let Some(own) = Unit::of(holder) else {
        return Vec::new();
    };
    let whole = own.container().map(|container| Unit::Whole { container });
    let mut units: Vec<Unit> = lets_go_and_runs_on(ground.snapshot, &own).into_iter().collect();
    units.push(own);
    units.extend(whole.filter(|whole| !units.contains(whole)));
    let all_leave = ground.staying().is_empty();
    let allowed = |unit: Unit| may_stop(&unit, settings, all_leave).map(|how| (unit, how));
    units.into_iter().filter_map(allowed).collect()
}

/// A unit that is stopped.
pub(crate) struct Stop<'a> {
    pub(crate) unit: Unit,
    /// What systemd says of it.
    pub(crate) said: &'a Said,
    /// Why it may be.
    pub(crate) how: How,
    /// It uses only what stays.
    pub(crate) again: bool,
    /// What is stopped where it does not let go when asked.
    pub(crate) instead: Option<Unit>,
}

impl<'a> Stop<'a> {
    /// What is stopped for a holder, where the settings have that done; or why that cannot be done, all that it may be. `wholes`:
    /// containers that are shut down.
    pub(crate) fn of(
        holder: &Holder,
        ground: &Ground<'a>,
        settings: &Settings,
        wholes: &BTreeSet<Unit>,
    ) -> Option<Result<Self, Vec<Reason>>> {
        let mut reasons = Vec::new();
        let mut ways = ways_to_stop(holder, ground, settings);
        ways.retain(|(unit, _)| unit.is_whole() || !wholes.iter().any(|whole| whole.holds(unit)));
        for (unit, how) in ways {
            match Stop::of_unit(&unit, how, ground, settings) {
                Ok(stop) => return Some(Ok(stop)),
                // What is said of the service itself counts.
                Err(_) if unit.runs_on().is_some() => {}
                Err(why) => reasons.push(Reason::Kept { unit, why }),
            }
        }
        (!reasons.is_empty()).then_some(Err(reasons))
    }

    fn of_unit(unit: &Unit, how: How, ground: &Ground<'a>, settings: &Settings) -> Result<Self, Kept> {
        let said = match ground.snapshot.facts(unit).map(|f| &f.said) {
            None => return Err(Kept::NoAnswer("it was not asked".to_owned())),
            Some(Err(why)) => return Err(Kept::NoAnswer(why.clone())),
            Some(Ok(said)) => said,
        };
        if !said.runs() {
            return Err(Kept::State(said.state.clone()));
        }
        if let Some(why) = &said.never {
            return Err(Kept::Never(why.clone()));
        }
        match &said.ha {
            Some(Ha::IsAtIt(how)) => return Err(Kept::HaIsAtIt(how.clone())),
            Some(Ha::LooksAfter) if settings.ha_containers == HaContainers::Refuse => return Err(Kept::OfHa),
            _ => {}
        }
        if unit.runs_on().is_none()
            && ground
                .snapshot
                .called_from
                .iter()
                .any(|of| ends_with(of, unit, how, said, ground))
        {
            return Err(Kept::Caller);
        }
        let all_leave = ground.staying().is_empty();
        let may = |name: &String| can_be_stopped(name) && may_stop(&unit.beside(name), settings, all_leave).is_some();
        if let Some(needed) = said.takes_along.iter().find(|name| !may(name)) {
            return Err(Kept::TakesAlong(needed.clone()));
        }
        // One that would take others along is left to them.
        let is_alone = |stop: &Stop<'_>| stop.said.takes_along.is_empty() && stop.said.started_by.is_empty();
        let service = unit.runs_on();
        let instead = service.filter(|service| {
            let stop = Stop::of_unit(service, how, ground, settings);
            stop.is_ok_and(|stop| is_alone(&stop))
        });
        let again = !uses(ground, unit, |addr| ground.set.contains(&addr))
            && uses(ground, unit, |addr| ground.stays(Some(addr)));
        let of_ha = unit.container().filter(|_| said.ha == Some(Ha::LooksAfter));
        Ok(Stop {
            unit: of_ha.map_or_else(|| unit.clone(), |ha_container| Unit::OfHa { ha_container }),
            said,
            how,
            again: again && how == How::Named,
            instead,
        })
    }
}

/// Whether what belongs there ends when a unit is stopped.
fn ends_with(belongs_to: &Belongs, unit: &Unit, how: How, said: &Said, ground: &Ground<'_>) -> bool {
    let desktop = ground.snapshot.desktop.as_ref().filter(|_| how == How::Desktop);
    let is_along = |one: &Unit| said.takes_along.iter().any(|name| unit.beside(name) == *one);
    desktop.is_some_and(|desktop| desktop.has(belongs_to))
        || Unit::of_what(belongs_to).is_some_and(|one| unit.holds(&one) || is_along(&one))
}

/// Whether a unit, all of its processes together, has one of these functions.
pub(crate) fn uses(ground: &Ground<'_>, unit: &Unit, wanted: impl Fn(PciAddr) -> bool) -> bool {
    let all = ground.snapshot.holders.iter();
    let its = all.filter(|h| Unit::of(h).is_some_and(|one| unit.holds(&one)));
    its.flat_map(|h| &h.nodes).filter_map(Node::function).any(wanted)
}
