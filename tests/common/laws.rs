//! The laws of a handoff, held against every act as it begins.
//!
//! Laws 1 (prove free first), 2 (touch only what was asked for), 3 (write down the inverse before each act) and 8 (no
//! unloading of vfio modules), and that nothing is touched that is stuck. A test reads what was broken from
//! [`Laws::broken`].

use std::collections::BTreeSet;

use gpu_handoff::base::pci::PciAddr;
use gpu_handoff::host::functions::VFIO_PCI;
use gpu_handoff::host::nodes::Node;
use gpu_handoff::model::act::{Act, Attribute};
use gpu_handoff::model::plan::{Direction, Plan};
use gpu_handoff::model::record::{Owner, Record};

use super::before::State;
use super::calls::{Call, Lock};
use super::state::{Device, Model};
use super::tables;

/// What the laws are held against.
#[derive(Clone, Debug, Default)]
pub struct Laws {
    /// What was broken, in words.
    pub broken: Vec<String>,
    /// The functions that the request is about; None: not looked at.
    pub may_touch: Option<BTreeSet<PciAddr>>,
    /// A process whose use of the GPU is doubtful may be met.
    pub may_doubt: bool,
    /// Calls that met a user who came after the proof.
    pub races: usize,
    /// Ways out that were planned once more.
    pub again: usize,
    /// Whose handoff it is and where it leads; None: the record is not looked at.
    pub run: Option<(Owner, Direction)>,
    /// What of a plan's order is wrong, in words.
    pub order: Option<fn(&Plan) -> Vec<&'static str>>,
    /// What NVIDIA's driver has taken so far: among them what had no driver, when it was loaded for others.
    pub caught: BTreeSet<PciAddr>,
    /// The first worker of the run that is at work.
    pub first_worker: u32,
    /// How things were before the first act of the handoff.
    pub original: Option<State>,
    /// When functions were last proven free, on the count of what has happened.
    proofs: Vec<(PciAddr, u64)>,
    /// When nvidia_drm was last loaded.
    drm_loaded: u64,
}

impl Model {
    /// Holds the laws against an act that is about to begin.
    pub(super) fn judge(&mut self, act: &Act) {
        let mut broken = Vec::new();
        self.judge_users(act, &mut broken);
        if let (Some(set), Some(addr)) = (&self.laws.may_touch, act.function())
            && !set.contains(&addr)
            && !self.gives_back(act)
        {
            broken.push(format!("law 2: {act}: not asked for"));
        }
        if let Act::ResetBus { bridge, .. } = act {
            let is_ours = |d: &Device| {
                let may = self.laws.may_touch.as_ref().is_none_or(|set| set.contains(&d.addr));
                may && !d.bridge && d.driver.is_none()
            };
            if self.is_let_reset(*bridge) && !self.below(*bridge).all(is_ours) {
                broken.push(format!(
                    "law 2: {act}: more than what was asked for is below, or on a driver"
                ));
            }
        }
        if let Act::UnloadModule { name } = act
            && name.starts_with("vfio")
        {
            broken.push(format!("law 8: {act}"));
        }
        self.judge_wedged(act, &mut broken);
        self.judge_record(act, &mut broken);
        self.laws.broken.extend(broken);
    }

    /// Law 2 for what is only read: a card that is slow holds up whoever asks it something.
    pub(super) fn judge_details(&mut self, addrs: &[PciAddr]) {
        let mut broken = Vec::new();
        for addr in addrs {
            if self.wedged().contains(addr) && self.is_known_to_hang(*addr) {
                broken.push(format!("wedged: attributes of {addr} were read"));
            }
            let may = |set: &BTreeSet<PciAddr>| set.contains(addr) || self.is_let_go_with_the_others(*addr);
            if self.laws.may_touch.as_ref().is_some_and(|set| !may(set)) {
                broken.push(format!(
                    "law 2: attributes of {addr} were read, which was not asked for"
                ));
            }
        }
        self.laws.broken.extend(broken);
    }

    /// Whether an act is about a function that has lost its driver with the unload for another, and gives it back: binds it,
    /// or keeps others from it until then. One that another driver has taken is taken off that.
    fn gives_back(&self, act: &Act) -> bool {
        let original = act.function().and_then(|a| self.laws.original.as_ref()?.function(a));
        let Some(original) = original.filter(|o| self.is_let_go_with_the_others(o.addr)) else {
            return false;
        };
        // One without a driver has been taken by NVIDIA's, when that was loaded for others before.
        let had = original.driver.unwrap_or("nvidia");
        if !had.starts_with("nvidia") {
            return false;
        }
        match act {
            Act::Probe { driver, .. } => driver.as_deref() == Some(had),
            Act::SetOverride { driver, .. } => driver.as_deref() == Some(had) || *driver == original.driver_override,
            Act::Unbind { driver, .. } => driver == "nouveau",
            Act::ProveFree { .. } => true, // who looks touches nothing
            _ => false,
        }
    }

    /// Whether a function is on a driver that can only be unloaded, or was.
    fn is_let_go_with_the_others(&self, addr: PciAddr) -> bool {
        let was = self.laws.original.as_ref().and_then(|o| o.function(addr)?.driver);
        let is = self.device(addr).and_then(|d| d.driver);
        let is_or_was = is.into_iter().chain(was).any(|d| d.starts_with("nvidia"));
        let on_nvidia = is_or_was || self.laws.caught.contains(&addr);
        on_nvidia && (self.is_one_shot() || self.version.is_empty())
    }

    /// Whether who looks can know that a call of ours hangs at a function. Not where it is none of ours, such as a GPU without a
    /// driver that a module tries first; and who comes after a run that was killed does not where nothing could be written
    /// any more: the kernel gives no answer then, and that is the refusal.
    pub(super) fn is_known_to_hang(&self, addr: PciAddr) -> bool {
        let is_ours = self.laws.may_touch.as_ref().is_none_or(|set| set.contains(&addr));
        is_ours && self.ledger.as_ref().is_none_or(|ledger| !ledger.is_behind())
    }

    /// Whether a run can know that a call hangs at a function: its own calls it knows, and those of an earlier one from the
    /// record, if that could be written.
    fn is_known_in_this_run(&self, addr: PciAddr) -> bool {
        let at = |call: &&Call| call.held.contains(&Lock::Device(addr));
        let is_own = |call: &Call| call.group >= self.laws.first_worker;
        self.is_known_to_hang(addr) || self.calls.iter().filter(at).any(is_own)
    }

    /// Law 1: no unbind or unload that begins may meet a user.
    fn judge_users(&mut self, act: &Act, broken: &mut Vec<String>) {
        let addrs: Vec<PciAddr> = match act {
            Act::Unbind { addr, driver } => {
                let bound = self.device(*addr).is_some_and(|d| d.driver == Some(driver.as_str()));
                if bound { vec![*addr] } else { Vec::new() }
            }
            // These reach the driver's remove() and reset handlers.
            Act::Remove { addr } => vec![*addr],
            // A function that is bound is not reset (gpu_handoff::execute::perform).
            Act::Reset { addr } if self.driver_of(*addr).is_none() => vec![*addr],
            Act::ResetBus { bridge, .. } if self.is_let_reset(*bridge) => self.below(*bridge).map(|d| d.addr).collect(),
            // The kernel itself refuses to unload what is in use.
            Act::UnloadModule { name } if self.refs(name) == 0 => {
                let of = |d: &&Device| {
                    let info = d.driver.and_then(tables::driver_info);
                    info.is_some_and(|i| i.module == name)
                };
                self.devices.iter().filter(of).map(|d| d.addr).collect()
            }
            _ => return,
        };
        for addr in addrs {
            let Some(device) = self.device(addr) else { continue };
            let proof = self.laws.proofs.iter().rev().find(|p| p.0 == addr).map(|p| p.1);
            let mut raced = false;
            for process in self.processes.iter().filter(|p| self.is_used_by(device, p)) {
                let seen = !process.hidden && process.nodes.iter().any(|n| is_of(n, device));
                if !seen && self.laws.may_doubt {
                    continue;
                }
                match proof {
                    // With the gate shut nobody can have come through it.
                    Some(tick) if process.came > tick && !self.is_behind_gate(addr, process) => raced = true,
                    _ => broken.push(format!("law 1: {act}: in use by {process:?}, last proven at {proof:?}")),
                }
            }
            if device.driver == Some("nvidia") && !self.drm_lets_go() && self.drm.contains(&addr) {
                match proof {
                    Some(tick) if self.laws.drm_loaded > tick => raced = true,
                    _ => broken.push(format!("law 1: {act}: nvidia_drm holds {addr}")),
                }
            }
            self.laws.races += usize::from(raced);
        }
    }

    /// Whether the gate is shut to all by which this process uses the function.
    fn is_behind_gate(&self, addr: PciAddr, process: &super::state::Process) -> bool {
        let Some((addrs, whole)) = &self.gate else {
            return false;
        };
        let own = self
            .device(addr)
            .is_some_and(|d| process.nodes.iter().any(|n| is_of(n, d)));
        addrs.contains(&addr) && (own || *whole)
    }

    /// With a driver below it nothing is reset (gpu_handoff::execute::perform).
    fn is_let_reset(&self, bridge: PciAddr) -> bool {
        self.below(bridge).all(|d| d.bound().is_none())
    }

    /// Nothing that is stuck is touched, nor waited for.
    fn judge_wedged(&self, act: &Act, broken: &mut Vec<String>) {
        if self.calls.is_empty() {
            return;
        }
        let wedged = self.wedged();
        match act {
            // Looks at processes only.
            Act::ProveFree { .. } => {}
            Act::LoadModule { name } | Act::UnloadModule { name } => {
                let busy =
                    |c: &&Call| c.is_stuck() && c.module.is_some_and(|m| m == name || tables::needs(name).contains(&m));
                if let Some(call) = self.calls.iter().find(busy) {
                    broken.push(format!("wedged: {act}: touched while {:?} is stuck", call.module));
                }
                let is_live = self.stage(name).is_some();
                let touches = |d: &&Device| match act {
                    Act::LoadModule { .. } => {
                        let mut drivers = tables::DRIVERS.iter().filter(|i| i.module == name);
                        !is_live && drivers.any(|i| self.matches(i.name, d))
                    }
                    _ => d.driver.and_then(tables::driver_info).is_some_and(|i| i.module == name),
                };
                let mut met = wedged.iter().filter_map(|a| self.device(*a)).filter(touches);
                if let Some(device) = met.next() {
                    broken.push(format!("wedged: {act}: touched {}", device.addr));
                }
            }
            act => {
                if act
                    .function()
                    .is_some_and(|a| wedged.contains(&a) && self.is_known_in_this_run(a))
                {
                    broken.push(format!("wedged: {act}: touched"));
                }
            }
        }
    }

    /// NVIDIA's driver takes what vfio-pci keeps at function 1 of a card for a sound card, and the kernel oopses
    /// (open-gpu-kernel-modules, kernel-open/nvidia/nv.c, nv_audio_dynamic_power; issues 1365 and 1141). What a rescan finds
    /// has no override, and an id that was left to vfio-pci attracts it: that is met before anybody could act.
    pub(super) fn judge_sound(&mut self, gpu: PciAddr) {
        let sound = PciAddr { function: 1, ..gpu };
        let was = self.laws.original.as_ref().and_then(|o| o.function(sound));
        let (Some(was), Some((owner, _)), Some(ledger)) = (was, self.laws.run, &self.ledger) else {
            return;
        };
        let is_ours = ledger.with(owner, |r| r.has(gpu) && r.has(sound)) == Some(true);
        let is_found = |a: &Act| matches!(a, Act::Rescan { addr, .. } if addr.slot() == gpu.slot());
        let is_away = self.device(sound).is_some_and(|d| d.driver == Some(VFIO_PCI));
        // The host itself wants it there: whoever loads vfio-pci binds it.
        let is_set_aside = was.driver == Some(VFIO_PCI) || was.driver_override.as_deref() == Some(VFIO_PCI);
        if is_ours && is_away && gpu != sound && !is_set_aside && !self.acts.iter().any(is_found) {
            let broken = format!("{gpu} was bound to nvidia while {sound} was on {VFIO_PCI}");
            self.laws.broken.push(broken);
        }
    }

    /// Functions whose lock is held by a call that was left behind, or that somebody else is in.
    pub fn wedged(&self) -> Vec<PciAddr> {
        let left = self.calls.iter().filter(|c| c.is_stuck() || c.by.is_some());
        let locks = left.flat_map(|c| &c.held);
        let device = |l: &Lock| match l {
            Lock::Device(addr) => Some(*addr),
            Lock::Bus => None,
        };
        locks.filter_map(device).collect()
    }

    /// Law 3: what is on file names the act as under way and knows its inverse.
    fn judge_record(&self, act: &Act, broken: &mut Vec<String>) {
        let (Some(ledger), Some((owner, direction))) = (&self.ledger, self.laws.run) else {
            return;
        };
        let on_file = |record: &Record| {
            if !record.under_way.iter().any(|a| covers(a, act)) {
                broken.push(format!("law 3: {act}: on file {:?} is under way", record.under_way));
            }
            if let Some(why) = self.lacks(record, act).filter(|_| direction == Direction::Out) {
                broken.push(format!("law 3: {act}: {why}"));
            }
        };
        // Where nothing can be written any more, nothing more is taken; what was taken is given back all the same.
        if ledger.is_behind() {
            let takes = match act {
                Act::Unbind { driver, .. } => driver != VFIO_PCI,
                Act::Probe { driver, .. } => driver.as_deref() == Some(VFIO_PCI),
                _ => false,
            };
            if takes && direction == Direction::Out {
                broken.push(format!("law 3: {act}: begun without a record"));
            }
            return;
        }
        if ledger.with(owner, on_file).is_none() {
            broken.push(format!("law 3: {act}: nothing is on file"));
        }
    }

    /// What a record lacks that is needed to take an act back.
    fn lacks(&self, record: &Record, act: &Act) -> Option<String> {
        let original = self.laws.original.as_ref()?;
        let lacks = |has: bool, what: &str| (!has).then(|| format!("the record lacks {what}"));
        match act {
            Act::UnloadModule { name } => {
                // One that was not there before need not come back.
                let was_there = original.modules.contains(&name.as_str());
                let module_of = |d: &&Device| d.driver.and_then(tables::driver_info).map(|i| i.module);
                let of_it = self.devices.iter().filter(|d| module_of(d) == Some(name.as_str()));
                let is_known = |a: PciAddr| record.has(a) || record.beside.iter().any(|b| b.addr == a);
                if let Some(unknown) = of_it.map(|d| d.addr).find(|a| !is_known(*a)) {
                    return Some(format!("the record lacks {unknown}, which stays"));
                }
                return lacks(record.modules.contains(name) || !was_there, name);
            }
            Act::StopUnit { name, .. } => {
                return lacks(record.units.iter().any(|unit| unit.holds(name)), &name.to_string());
            }
            Act::SetPlatform {
                device, bound: false, ..
            } => {
                return lacks(record.platforms.iter().any(|p| p.device == *device), device);
            }
            Act::ProveFree { .. } => return None,
            _ => {}
        }
        let addr = act.function()?;
        let before = original.function(addr)?;
        if self.device(addr).is_some_and(|d| d.bridge) {
            return lacks(record.awake.contains(&addr), "the bridge");
        }
        if record.beside.iter().any(|b| b.addr == addr) && self.gives_back(act) {
            return None;
        }
        let Some(taken) = record.taken.iter().find(|t| t.addr == addr) else {
            return Some(format!("{addr}, which was {before:?}"));
        };
        if taken.driver.as_deref() != before.driver || taken.driver_override != before.driver_override {
            return Some(format!("the record has {taken:?}, it was {before:?}"));
        }
        if let Act::SetAttribute { attribute, value, .. } = act {
            let was = match attribute {
                Attribute::ResetMethod if self.device(addr).is_none_or(|d| before.reset_methods == d.can_reset) => {
                    "default".to_owned()
                }
                Attribute::ResetMethod => before.reset_methods.join(" "),
                Attribute::D3cold => if before.d3cold { "1" } else { "0" }.to_owned(),
                Attribute::Power => before.power.to_owned(),
            };
            let known = taken.attributes.iter().find(|(a, _)| a == attribute);
            if *value != was && known.is_none_or(|(_, value)| *value != was) {
                return Some(format!("the record has {known:?}, it was {was}"));
            }
        }
        None
    }

    pub(super) fn proven(&mut self, addrs: &[PciAddr]) {
        let tick = self.tick;
        self.laws.proofs.retain(|p| !addrs.contains(&p.0));
        self.laws.proofs.extend(addrs.iter().map(|a| (*a, tick)));
    }

    pub(super) fn drm_was_loaded(&mut self) {
        self.laws.drm_loaded = self.tick;
    }
}

/// Whether a node is a function's own, so that who has it open uses that function.
fn is_of(node: &Node, device: &Device) -> bool {
    match node {
        Node::Gpu(a) | Node::Drm(a) | Node::Sound(a) | Node::VfioDevice(a) => *a == device.addr,
        Node::VfioGroup(group) => device.group == Some(*group),
        _ => false,
    }
}

/// Whether what is said to be under way is this act, or the looks for several cards of which it is one.
fn covers(under_way: &Act, act: &Act) -> bool {
    match (under_way, act) {
        (Act::ProveFree { addrs: all, .. }, Act::ProveFree { addrs, .. }) => addrs.iter().all(|a| all.contains(a)),
        _ => under_way == act,
    }
}
