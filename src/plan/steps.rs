//! The list of steps that a plan is put together from: a method for each kind of act, which adds it with its deadline, its
//! card and what usually takes it back. What is unusual about a step is said after it.
//!
//! ```text
//! steps.stop(&unit);                             taken back by starting it
//! steps.load("vfio_pci").for_good();             taken back by nothing
//! ```
//!
//! Not here: which acts, and in which order ([`crate::plan::out_steps`], [`crate::plan::home_steps`]).

use std::collections::BTreeMap;
use std::time::Duration;

use crate::base::deadlines::Budgets;
use crate::base::pci::PciAddr;
use crate::base::sets::IntoSet as _;
use crate::base::vmid::VmId;
use crate::host::displays::Platform;
use crate::host::holders::Holder;
use crate::host::nvidia::Numbers;
use crate::host::units::{Facts, Unit};
use crate::model::act::{Act, Attribute};
use crate::model::named::Named;
use crate::model::plan::{Step, deadline};

/// The steps so far.
pub(crate) struct Steps<'a> {
    budgets: &'a Budgets,
    gpus: u32,
    /// The first function of the card of each function that moves.
    cards: BTreeMap<PciAddr, PciAddr>,
    /// Whether a failure takes everything back: on the way home there is nothing to go back to.
    taken_back: bool,
    /// What was said of units that are stopped.
    said: &'a [Facts],
    list: Vec<Step>,
}

impl<'a> Steps<'a> {
    /// Of a way out, on which every act is taken back if one fails. `gpus`: how many GPUs the driver lets go.
    /// `functions`: those that move, of which those of a slot belong together.
    pub(crate) fn out(budgets: &'a Budgets, gpus: usize, functions: &[PciAddr]) -> Self {
        let first = |a: &PciAddr| functions.iter().copied().filter(|f| f.slot() == a.slot()).min();
        Steps {
            budgets,
            gpus: u32::try_from(gpus).unwrap_or(u32::MAX),
            cards: functions.iter().filter_map(|a| Some((*a, first(a)?))).into_map(),
            taken_back: true,
            said: &[],
            list: Vec::new(),
        }
    }

    /// Of a way home. `gpus`: how many GPUs the driver takes.
    pub(crate) fn home(budgets: &'a Budgets, gpus: usize, functions: &[PciAddr]) -> Self {
        Steps {
            taken_back: false,
            ..Steps::out(budgets, gpus, functions)
        }
    }

    /// The same, with what was said of units that are stopped.
    pub(crate) fn with(self, said: &'a [Facts]) -> Self {
        Steps { said, ..self }
    }

    /// How long one of these has for its end if it is a container: as the settings say, or by its own word where that is longer.
    fn ends(&self, unit: &Unit) -> Duration {
        let said = self.said.iter().find(|facts| facts.unit == *unit);
        let own = said
            .and_then(|facts| facts.said.as_ref().ok())
            .map_or(0, |said| said.ends_within_s);
        self.budgets.container.max(Duration::from_secs(own))
    }

    pub(crate) fn into_list(self) -> Vec<Step> {
        self.list
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether a module is loaded by one of them.
    pub(crate) fn loads(&self, module: &str) -> bool {
        let load = Act::load(module);
        self.list.iter().any(|s| s.act == load)
    }

    fn add(&mut self, act: Act, inverse: Vec<Act>) -> Added<'_> {
        let deadline = deadline(&act, self.budgets, self.gpus);
        let card = act.function().and_then(|a| self.cards.get(&a).copied());
        self.list.push(Step {
            act,
            deadline,
            inverse: if self.taken_back { inverse } else { Vec::new() },
            rungs: Vec::new(),
            card,
            soft: false,
        });
        let last = self.list.len() - 1;
        Added(&mut self.list[last])
    }

    pub(crate) fn load(&mut self, module: &str) -> Added<'_> {
        self.add(Act::load(module), vec![Act::unload(module)])
    }

    pub(crate) fn unload(&mut self, module: &str) -> Added<'_> {
        self.add(Act::unload(module), vec![Act::load(module)])
    }

    /// `starters`: what starts others when they are used, each with one of these. A socket does not listen for what runs (systemd,
    /// src/core/socket.c, socket_start): what is started by one is down when that is started again, and comes after it.
    pub(crate) fn stop(&mut self, unit: &Unit, starters: &[(Unit, Unit)]) -> Added<'_> {
        let started: Vec<&Unit> = starters
            .iter()
            .filter(|(by, _)| by == unit)
            .map(|(_, its)| its)
            .collect();
        let ends = self.ends(unit); // what starts others is no container
        let mut back: Vec<Act> = started.iter().map(|its| Act::stop(its, ends)).collect();
        if starters.iter().all(|(_, its)| its != unit) {
            back.push(Act::start(unit, ends));
        }
        back.extend(started.iter().rev().map(|its| Act::start(its, ends)));
        self.add(Act::stop(unit, ends), back)
    }

    pub(crate) fn start(&mut self, unit: &Unit) -> Added<'_> {
        let ends = self.ends(unit);
        self.add(Act::start(unit, ends), vec![Act::stop(unit, ends)])
    }

    /// The same of one whose stop has come to its end: where it runs somebody has started it, and its end is not waited for.
    pub(crate) fn start_what_has_ended(&mut self, unit: &Unit) -> Added<'_> {
        let back = Act::stop(unit, self.ends(unit));
        let start = Act::StartUnit {
            name: unit.clone(),
            within_s: 0,
            has_ended: true,
        };
        self.add(start, vec![back])
    }

    /// Nothing takes that back.
    pub(crate) fn restart(&mut self, unit: &Unit) -> Added<'_> {
        let name = unit.clone();
        self.add(Act::RestartUnit { name }, Vec::new())
    }

    /// The driver is back: containers that run on see it. Whatever becomes of that, the device is where it belongs.
    pub(crate) fn renew_nodes(&mut self, container: VmId, before: &Numbers) -> Added<'_> {
        self.add(Act::renew_nodes(container, before), Vec::new()).soft()
    }

    /// Waits for what ends with a display manager that was stopped. Whether it has the look before anything is let go says.
    pub(crate) fn await_desktops(&mut self, processes: &[Named], addrs: &[PciAddr]) -> Added<'_> {
        let act = Act::AwaitDesktops {
            processes: processes.to_vec(),
            addrs: addrs.to_vec(),
        };
        self.add(act, Vec::new()).soft()
    }

    /// Ends processes, which nothing takes back. `kill`: those that do not end when asked.
    pub(crate) fn end_processes(&mut self, holders: &[Holder], addrs: &[PciAddr], kill: bool) -> Added<'_> {
        let within_ms = u64::try_from(self.budgets.process.as_millis()).unwrap_or(u64::MAX);
        let act = Act::EndProcesses {
            processes: holders.iter().map(Named::of).collect(),
            addrs: addrs.to_vec(),
            within_ms,
            kill,
        };
        self.add(act, Vec::new())
    }

    /// Takes a console driver off its framebuffer, or gives it back.
    pub(crate) fn console(&mut self, name: &str, bound: bool) -> Added<'_> {
        self.add(Act::set_console(name, bound), vec![Act::set_console(name, !bound)])
    }

    /// Detaches a framebuffer of the firmware, or attaches it again.
    pub(crate) fn platform(&mut self, platform: &Platform, bound: bool) -> Added<'_> {
        let back = Act::set_platform(platform, !bound);
        self.add(Act::set_platform(platform, bound), vec![back])
    }

    /// Sets an override that nothing has to come back from.
    pub(crate) fn set_override(&mut self, addr: PciAddr, to: Option<&str>) -> Added<'_> {
        self.add(Act::set_override(addr, to), Vec::new())
    }

    /// Sets an override; taken back, the function has the one that it had before.
    pub(crate) fn change_override(&mut self, addr: PciAddr, before: Option<&str>, to: Option<&str>) -> Added<'_> {
        let back = Act::set_override(addr, before);
        self.add(Act::set_override(addr, to), vec![back])
    }

    /// Sets an attribute that nothing has to come back from.
    pub(crate) fn set_attribute(&mut self, addr: PciAddr, attribute: Attribute, to: &str) -> Added<'_> {
        self.add(Act::set_attribute(addr, attribute, to), Vec::new())
    }

    /// Sets an attribute; taken back, the function has what it had before.
    pub(crate) fn change_attribute(
        &mut self,
        addr: PciAddr,
        attribute: Attribute,
        before: &str,
        to: &str,
    ) -> Added<'_> {
        let back = Act::set_attribute(addr, attribute, before);
        self.add(Act::set_attribute(addr, attribute, to), vec![back])
    }

    /// A failure is no reason to stop: what sleeps wakes up when it is asked something. The step says on either way what
    /// ends it.
    pub(crate) fn keep_awake(&mut self, addr: PciAddr) -> Added<'_> {
        let sleep = Act::set_attribute(addr, Attribute::Power, "auto");
        let step = self.set_attribute(addr, Attribute::Power, "on");
        step.undone_by(vec![sleep]).soft()
    }

    /// The end of [`Steps::keep_awake`].
    pub(crate) fn let_sleep(&mut self, addr: PciAddr) -> Added<'_> {
        self.set_attribute(addr, Attribute::Power, "auto").soft()
    }

    /// A host that has no gate goes on without: what is said then is that it has none. Undoing opens it first of all
    /// (`src/execute/undo.rs`).
    pub(crate) fn shut_gate(&mut self, addrs: &[PciAddr], whole: bool) -> Added<'_> {
        let addrs = addrs.to_vec();
        self.add(Act::ShutGate { addrs, whole }, Vec::new()).soft()
    }

    /// The end of [`Steps::shut_gate`].
    pub(crate) fn open_gate(&mut self, addrs: &[PciAddr]) -> Added<'_> {
        self.add(Act::open_gate(addrs), Vec::new()).soft()
    }

    /// `despite`: processes of which it is not known whether they use it, and that the settings accept.
    /// `despite_unseen`: they accept, too, that there may be others who were not seen.
    pub(crate) fn prove_free(&mut self, addr: PciAddr, despite: &[i32], despite_unseen: bool) -> Added<'_> {
        let act = Act::ProveFree {
            addrs: vec![addr],
            despite: despite.to_vec(),
            despite_unseen,
        };
        self.add(act, Vec::new())
    }

    /// Taken back, the driver has it again, whatever its override was meanwhile.
    pub(crate) fn unbind(&mut self, addr: PciAddr, driver: &str) -> Added<'_> {
        let back = vec![Act::set_override(addr, Some(driver)), Act::probe(addr, driver)];
        self.add(Act::unbind(addr, driver), back)
    }

    /// Taken back, it is on no driver; a guest may have come to use it meanwhile, which stops that.
    pub(crate) fn probe(&mut self, addr: PciAddr, driver: &str) -> Added<'_> {
        let back = vec![Act::prove_free(vec![addr]), Act::unbind(addr, driver)];
        self.add(Act::probe(addr, driver), back)
    }

    /// Has a function that was removed from the bus found again below this bridge; None: on all buses.
    pub(crate) fn rescan(&mut self, bridge: Option<PciAddr>, addr: PciAddr) -> Added<'_> {
        self.add(Act::Rescan { bridge, addr }, Vec::new())
    }

    /// Looks whether a GPU works that has come home. `width`: lanes of its link before it left.
    pub(crate) fn verify(&mut self, addr: PciAddr, width: Option<u32>) -> Added<'_> {
        self.add(Act::Verify { addr, width }, Vec::new())
    }
}

/// The step that was just added: what is unusual about it.
pub(crate) struct Added<'a>(&'a mut Step);

impl Added<'_> {
    /// A failure is said and changes nothing.
    pub(crate) fn soft(self) -> Self {
        self.0.soft = true;
        self
    }

    /// These take it back, in this order, and not what usually does.
    pub(crate) fn undone_by(self, inverse: Vec<Act>) -> Self {
        self.0.inverse = inverse;
        self
    }

    /// This too, after what usually takes it back.
    pub(crate) fn undone_also_by(self, act: Act) -> Self {
        self.0.inverse.push(act);
        self
    }

    /// Nothing takes it back.
    pub(crate) fn for_good(self) -> Self {
        self.undone_by(Vec::new())
    }

    /// What is tried, one after the other, where it fails.
    pub(crate) fn rungs(self, rungs: Vec<Vec<Act>>) -> Self {
        self.0.rungs = rungs;
        self
    }
}

/// What is tried where a service that ran on does not use the driver again when asked: it learns of the GPUs by a start.
pub(crate) fn anew(unit: &Unit) -> Vec<Vec<Act>> {
    let service = unit.runs_on().into_iter();
    service.map(|name| vec![Act::RestartUnit { name }]).collect()
}

/// What an earlier run has stopped, and what this one stops as well: a container of HA's once, as what it is owed to be.
pub(crate) fn both_units(earlier: Option<&Vec<Unit>>, new: &[Unit]) -> Vec<Unit> {
    let mut all = both(earlier, new);
    let of_ha: Vec<Unit> = all.iter().filter(|unit| unit.is_of_ha()).cloned().collect();
    all.retain(|unit| unit.is_of_ha() || !unit.is_whole() || !of_ha.iter().any(|one| one.holds(unit)));
    all
}

/// What an earlier run has taken, and what this one takes as well.
pub(crate) fn both<T: Clone + PartialEq>(earlier: Option<&Vec<T>>, new: &[T]) -> Vec<T> {
    let mut all = earlier.cloned().unwrap_or_default();
    for one in new {
        if !all.contains(one) {
            all.push(one.clone());
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run that was killed has had HA ignore it, and the next one finds it so.
    #[test]
    fn a_container_of_has_is_on_record_once_and_given_back_to_ha() {
        let container: VmId = "104".parse().unwrap();
        let (whole, of_ha) = (
            Unit::Whole { container },
            Unit::OfHa {
                ha_container: container,
            },
        );
        let inside = Unit::Inside {
            container,
            unit: "x.service".to_owned(),
        };
        let other = Unit::Whole {
            container: "105".parse().unwrap(),
        };
        for (earlier, new, all) in [
            (vec![of_ha.clone()], vec![whole.clone()], vec![of_ha.clone()]),
            (vec![whole.clone()], vec![of_ha.clone()], vec![of_ha.clone()]),
            (
                vec![inside.clone(), whole.clone()],
                vec![other.clone()],
                vec![inside.clone(), whole.clone(), other.clone()],
            ),
            (
                vec![inside.clone(), of_ha.clone()],
                vec![other.clone()],
                vec![inside, of_ha, other],
            ),
        ] {
            assert_eq!(both_units(Some(&earlier), &new), all);
        }
        assert_eq!(both_units(None, std::slice::from_ref(&whole)), [whole]);
    }
}
