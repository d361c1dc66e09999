//! The record of what was taken from where: versioned JSON below /run/gpu-handoff, one file per owner.
//!
//! It is written before each act and is all that the way home is decided from. The directory is on tmpfs (a
//! reboot gives every device back to its own driver, and forgets the record with it, but for what was stopped, see
//! [`crate::state::stopped`]), 0700, made by tmpfiles.d or by the first run. Holding the host-wide lock is the right to
//! write: only [`crate::state::store::Guard`] can.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::deadlines::Budgets;
use crate::base::pci::PciAddr;
use crate::base::process::{Group, Process};
use crate::base::sets::{IntoSet as _, in_order};
use crate::base::text::join;
use crate::base::vmid::VmId;
use crate::host::displays::Platform;
use crate::host::nvidia::Numbers;
use crate::host::units::Unit;
use crate::model::act::{Act, Attribute};

/// The form of the file. A record of another version is reported and left alone.
pub(crate) const VERSION: u32 = 1;

/// Whose handoff it is: what a record is filed under, and who brings it home.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Owner {
    /// A VM's hook took it; that VM's post-stop brings it home.
    Vm(VmId),
    /// A person took it, and maybe others with it; a VM that starts on it leaves it so. The address is that of
    /// the first GPU, so that cards taken one by one come home one by one.
    ByHand(PciAddr),
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Owner::Vm(vmid) => write!(f, "VM {vmid}"),
            Owner::ByHand(_) => write!(f, "by hand"),
        }
    }
}

impl Owner {
    /// The VM, of a text that is an owner's.
    pub fn vm_of(text: &str) -> Option<VmId> {
        text.strip_prefix("VM ")?.parse().ok()
    }
}

/// How far a handoff is.
///
/// ```text
/// (no record) -> Leaving -> Away -> Returning -> (no record)
///                   |                   |
///                   +----> Stranded <---+      failed and not restored: a person or a later run
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// On the way out; if nobody works on it, the run was interrupted.
    Leaving,
    /// On vfio-pci, where a guest may use it.
    Away,
    /// On the way home; if nobody works on it, the run was interrupted.
    Returning,
    /// An act failed and could not be undone.
    Stranded,
}

/// A function that was taken, and what it goes back to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// Where it is on the bus, before and after.
    pub addr: PciAddr,
    /// The driver it had; None: it had none.
    pub driver: Option<String>,
    /// The module of that driver: loaded at home before the driver is asked to bind.
    pub module: Option<String>,
    /// The `driver_override` it had on the host; None: it had none.
    pub driver_override: Option<String>,
    /// Lanes of its PCI Express link before it left, for a GPU.
    #[serde(default)] // since a later version
    pub width: Option<u32>,
    /// Attributes that were changed, and what they were.
    #[serde(default)] // since a later version
    pub attributes: Vec<(Attribute, String)>,
    /// The bridge it was below: where it is looked for if it is not there any more; None: on a root bus, or not known.
    #[serde(default)] // since a later version
    pub parent: Option<PciAddr>,
}

/// A function that stays on NVIDIA's driver while another leaves it, where the driver can only be unloaded and loaded again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beside {
    /// Where it is on the bus.
    pub addr: PciAddr,
    /// The driver it has, of NVIDIA's module: a GPU's or an NVSwitch's.
    pub driver: String,
    /// The `driver_override` it has; while it is without its driver it has that one's name, so that nobody else takes it.
    pub driver_override: Option<String>,
}

/// One handoff, from the first act of the way out to the last of the way home.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The form of this file: only one of the form that we write is read.
    pub version: u32,
    /// Also the name of the file.
    pub owner: Owner,
    /// Tells the handoffs of a boot apart, later ones by a higher number: when it was begun, ms after boot.
    pub generation: u64,
    /// /proc/sys/kernel/random/boot_id when it was written.
    pub boot_id: String,
    /// How far it is, as of the last act that was written down.
    pub state: State,
    /// What was taken, in the order of its addresses.
    pub taken: Vec<Taken>,
    /// What stays and is without its driver until the modules are loaded again; none once everything is away.
    #[serde(default, skip_serializing_if = "Vec::is_empty")] // since a later version
    pub beside: Vec<Beside>,
    /// Modules that were unloaded and are loaded again at home, in the order of unloading.
    pub modules: Vec<String>,
    /// Units that were stopped and are started again at home.
    #[serde(default)] // since a later version
    pub units: Vec<Unit>,
    /// Console drivers that were taken off a framebuffer of the card.
    #[serde(default)] // since a later version
    pub consoles: Vec<String>,
    /// Firmware framebuffers that were detached.
    #[serde(default)] // since a later version
    pub platforms: Vec<Platform>,
    /// How the driver's nodes were numbered before it left: what lines of containers' configs may mean.
    #[serde(default, skip_serializing_if = "Numbers::is_empty")] // since a later version
    pub numbers: Numbers,
    /// Bridges that are kept awake for as long as acts are under way.
    #[serde(default)] // since a later version
    pub awake: Vec<PciAddr>,
    /// Whether a reset may be asked for.
    #[serde(default = "yes")] // since a later version
    pub may_reset: bool,
    /// Whether others are kept from opening it while it comes home.
    #[serde(default = "yes")] // since a later version
    pub gate: bool,
    /// The acts that were about to be done when this was written, each for another card.
    #[serde(default)]
    pub under_way: Vec<Act>,
    /// Calls that are stuck in the kernel: nothing is done that would wait for them.
    #[serde(default)]
    pub wedges: Vec<Wedge>,
    /// The workers that do the acts under way: each may outlive the run by that one act.
    #[serde(default)]
    pub workers: Vec<Group>,
    /// The run whose workers they are.
    #[serde(default)] // since a later version
    pub run: Option<Run>,
    /// Who is at the acts under way. Not written down: found where the record is read without the lock.
    #[serde(skip)]
    pub at_work: Option<AtWork>,
    /// Calls that were stuck and have ended since. Not written down: found when the record is read.
    #[serde(skip)]
    pub late: Vec<Wedge>,
    /// Who called pre-start by hand, without Proxmox's lock on the VM: when this process ends, the attempt is over.
    #[serde(default)] // since a later version
    pub caller: Option<Process>,
    /// The VM's QEMU, once post-start has seen it.
    pub qemu: Option<Process>,
    /// The bounds that were in force when the devices left.
    pub budgets: Budgets,
}

/// A run, for those who read the record while it is at work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Its process: while this lives, the workers are its own and no left-overs.
    pub process: Process,
    /// When the acts under way were begun, milliseconds after boot.
    pub since_ms: u64,
}

/// Who is at the acts under way. A run that holds the lock knows it: itself, or what a run that was killed has left, which
/// it waits for and then calls stuck ([`Record::settle`]). Without the lock no more than this can be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AtWork {
    /// The run, in words; None: it has been killed, and a worker of it lives.
    pub run: Option<String>,
    /// For how long; None: the record does not say.
    pub time: Option<Duration>,
}

/// A call that does not return, and what hangs with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wedge {
    /// The process group of ours that waits in the kernel. Once it has gone nothing is stuck any more.
    #[serde(flatten)]
    pub group: Group,
    /// The functions whose attributes are not to be touched meanwhile.
    pub addrs: Vec<PciAddr>,
    /// The act that does not return, in words: who reads this has no plan.
    pub act: String,
    /// Where in the kernel it waits (/proc/PID/stack), one frame to a line; empty where that is not known.
    pub stack: String,
    /// Who used the device when the deadline passed, in words.
    pub holders: Vec<String>,
}

fn yes() -> bool {
    true
}

impl Owner {
    /// Whose a GPU is that nobody's record has: by hand, under the name of a function of its card that no record has for its own.
    /// One that began with this GPU may have another one by now.
    pub fn unrecorded(gpu: PciAddr, records: &[Record]) -> Owner {
        let is_free = |owner: &Owner| records.iter().all(|record| record.owner != *owner);
        let mut names = gpu.of_slot().map(Owner::ByHand);
        names.find(is_free).unwrap_or(Owner::ByHand(gpu))
    }
}

impl Record {
    /// Of a handoff of which nothing was done yet, the owner's first.
    pub fn new(owner: Owner, boot_id: String, budgets: Budgets) -> Self {
        Record {
            version: VERSION,
            owner,
            generation: 1,
            boot_id,
            state: State::Leaving,
            taken: Vec::new(),
            beside: Vec::new(),
            modules: Vec::new(),
            units: Vec::new(),
            consoles: Vec::new(),
            platforms: Vec::new(),
            numbers: Numbers::default(),
            awake: Vec::new(),
            may_reset: true,
            gate: true,
            under_way: Vec::new(),
            wedges: Vec::new(),
            workers: Vec::new(),
            run: None,
            at_work: None,
            late: Vec::new(),
            caller: None,
            qemu: None,
            budgets,
        }
    }

    /// It is of another handoff from now on, with a number that no other one of this boot has, though records are removed in between.
    /// `up`: the time since the boot.
    pub fn number(&mut self, up: Duration) {
        let now = u64::try_from(up.as_millis()).unwrap_or(u64::MAX);
        self.generation = now.max(self.generation.saturating_add(1));
    }

    /// Puts the functions that were taken into the order of their addresses.
    pub fn sort_taken(&mut self) {
        self.taken = in_order(self.taken.drain(..), |t| t.addr);
    }

    /// The functions of this record that an act touches: those of its driver, for a module.
    pub fn touched_by(&self, act: &Act) -> Vec<PciAddr> {
        match act {
            Act::SetOverride { addr, .. }
            | Act::SetAttribute { addr, .. }
            | Act::Unbind { addr, .. }
            | Act::Reset { addr }
            | Act::Verify { addr, .. }
            | Act::Probe { addr, .. } => vec![*addr],
            // These hold the lock that every removal and rescan needs, and reach the whole slot.
            Act::Remove { addr } | Act::Rescan { addr, .. } => {
                let of = self.taken.iter().map(|t| t.addr);
                of.filter(|a| a.slot() == addr.slot()).collect()
            }
            Act::ResetBus { addr, .. } => {
                let of = self.taken.iter().map(|t| t.addr);
                of.filter(|a| (a.domain, a.bus) == (addr.domain, addr.bus)).collect()
            }
            Act::ProveFree { .. }
            | Act::StopUnit { .. }
            | Act::StartUnit { .. }
            | Act::RestartUnit { .. }
            | Act::RenewNodes { .. }
            | Act::EndProcesses { .. }
            | Act::AwaitDesktops { .. }
            | Act::SetConsole { .. }
            | Act::SetPlatform { .. }
            | Act::ShutGate { .. }
            | Act::OpenGate { .. } => Vec::new(),
            Act::LoadModule { name } | Act::UnloadModule { name } => {
                let of = |t: &&Taken| {
                    let driver = t.driver.as_deref() == Some("nvidia") && name.starts_with("nvidia");
                    driver || t.module.as_ref() == Some(name)
                };
                let mut touched: Vec<PciAddr> = self.taken.iter().filter(of).map(|t| t.addr).collect();
                if name.starts_with("nvidia") {
                    touched.extend(self.beside.iter().map(|b| b.addr));
                }
                // A module that is nobody's driver (vfio_pci) could have been after any of them.
                if touched.is_empty() {
                    self.taken.iter().map(|t| t.addr).collect()
                } else {
                    touched
                }
            }
        }
    }

    /// The functions whose attributes are not to be touched.
    pub fn stuck(&self) -> impl Iterator<Item = PciAddr> {
        self.wedges.iter().flat_map(|w| w.addrs.iter().copied())
    }

    /// The process groups of ours that may be at an act still: workers, and those that are stuck.
    pub fn groups(&self) -> Vec<Group> {
        let wedged = self.wedges.iter().map(|w| w.group);
        self.workers.iter().copied().chain(wedged).collect()
    }

    /// The workers at an act that touches a function, and those that are stuck: the way home is for after their end. Who waits for
    /// a service or a process is waited for by nobody.
    pub fn awaited(&self) -> Vec<Group> {
        match self.touches_nothing() {
            true => self.wedges.iter().map(|w| w.group).collect(),
            false => self.groups(),
        }
    }

    /// Whether none of the acts under way touches a function: what is at them is ended, sooner or later.
    pub fn touches_nothing(&self) -> bool {
        self.under_way_on().is_empty()
    }

    /// Whether one of the acts under way stops or starts a container: whoever runs that has begun with it, and a start before it
    /// has gone down would find it running, and be no start.
    pub fn switches_a_container(&self) -> bool {
        self.under_way.iter().any(|act| match act {
            Act::StopUnit { name, .. } | Act::StartUnit { name, .. } | Act::RestartUnit { name } => name.is_container(),
            _ => false,
        })
    }

    /// Forgets what was stuck in a process group that has gone, and takes over as stuck what a run that was killed
    /// has left its workers with. Only who holds the lock may: without it, the workers may be those of a run that lives.
    pub fn settle(&mut self, is_alive: impl Fn(Group) -> bool) {
        self.forget_ended(is_alive);
        self.give_up_workers();
    }

    /// Its workers count as stuck from here on: they were waited for.
    pub fn give_up_workers(&mut self) {
        if self.touches_nothing() {
            return;
        }
        let addrs = self.under_way_on();
        for group in &self.workers {
            if !self.wedges.iter().any(|w| w.group.number == group.number) {
                self.wedges.push(Wedge {
                    group: *group,
                    addrs: addrs.clone(),
                    act: join(&self.under_way),
                    stack: String::new(),
                    holders: Vec::new(),
                });
            }
        }
    }

    /// Notes who is at the acts under way, for a reader without the lock: `run`, in words, if it lives, or else what it has
    /// left. `now` is the time since boot.
    pub fn look_on(&mut self, run: Option<String>, now: Duration, is_alive: impl Fn(Group) -> bool) {
        self.forget_ended(is_alive);
        self.at_work = (run.is_some() || !self.workers.is_empty()).then(|| AtWork {
            run,
            time: self.run.map(|r| now.saturating_sub(Duration::from_millis(r.since_ms))),
        });
    }

    fn forget_ended(&mut self, is_alive: impl Fn(Group) -> bool) {
        let (wedges, late) = self.wedges.drain(..).partition(|w| is_alive(w.group));
        (self.wedges, self.late) = (wedges, late);
        self.workers.retain(|group| is_alive(*group));
    }

    /// The functions that the acts under way touch.
    fn under_way_on(&self) -> Vec<PciAddr> {
        let addrs: BTreeSet<PciAddr> = self.under_way.iter().flat_map(|a| self.touched_by(a)).into_set();
        addrs.into_iter().collect()
    }

    /// The functions whose attributes a look is to leave alone: what is stuck, and what somebody is at.
    pub fn not_to_be_read(&self) -> Vec<PciAddr> {
        let at_work = self.at_work.as_ref().map(|_| self.under_way_on());
        self.stuck().chain(at_work.into_iter().flatten()).collect()
    }

    /// The acts that somebody is at, in words, and for how long if that is known.
    pub fn acts_at_work(&self) -> String {
        // What is owed comes later.
        let is_owed = |act: &&Act| matches!(act, Act::Rescan { .. });
        let acts: Vec<&Act> = self.under_way.iter().filter(|a| !is_owed(a)).collect();
        let acts = if acts.is_empty() {
            join(&self.under_way)
        } else {
            join(acts)
        };
        match self.at_work.as_ref().and_then(|w| w.time) {
            Some(time) => format!("'{acts}', for {} s", time.as_secs()),
            None => format!("'{acts}'"),
        }
    }

    /// Nothing is under way any more.
    pub fn rest(&mut self, state: State) {
        self.state = state;
        self.under_way.clear();
        self.workers.clear();
        self.run = None;
    }

    /// What stays, and was not taken since.
    pub fn stayed(&self) -> impl Iterator<Item = &Beside> {
        self.beside.iter().filter(|b| !self.has(b.addr))
    }

    /// All that it speaks of: what was taken, and what stays.
    pub fn functions(&self) -> Vec<PciAddr> {
        let taken = self.taken.iter().map(|t| t.addr);
        taken.chain(self.stayed().map(|b| b.addr)).collect()
    }

    /// The same without what is to be started again of this container.
    #[must_use]
    pub fn without_container(mut self, ctid: VmId) -> Self {
        self.units.retain(|unit| unit.container() != Some(ctid));
        self
    }

    /// Whether a function was taken by this handoff.
    pub fn has(&self, addr: PciAddr) -> bool {
        self.taken.iter().any(|t| t.addr == addr)
    }
}

/// How a function is found again that a run has removed from the bus and not found again: the act that it was to be
/// followed by.
pub(crate) fn found_again(record: &Record, addr: PciAddr) -> Option<Act> {
    let same_slot = |act: &&Act| act.function().is_some_and(|a| a.slot() == addr.slot());
    let mut owed = record.under_way.iter().filter(same_slot);
    owed.find_map(|act| match act {
        Act::Rescan { bridge, .. } => Some(Act::Rescan { bridge: *bridge, addr }),
        _ => None,
    })
}

#[cfg(test)]
impl Taken {
    /// A GPU as it is on a host that has set nothing about it; for the tests of the house.
    pub(crate) fn on_nvidia(addr: PciAddr) -> Taken {
        Taken {
            addr,
            driver: Some("nvidia".to_owned()),
            module: Some("nvidia".to_owned()),
            driver_override: None,
            width: None,
            attributes: Vec::new(),
            parent: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::base::json;

    #[test]
    fn the_vm_that_is_an_owner_is_known_by_the_owners_text() {
        let vmid: VmId = "111".parse().unwrap();
        assert_eq!(Owner::vm_of(&Owner::Vm(vmid).to_string()), Some(vmid));
        let by_hand = Owner::ByHand("0000:01:00.0".parse().unwrap());
        for text in [by_hand.to_string().as_str(), "", "VM", "VM x", "111", "a VM 111"] {
            assert_eq!(Owner::vm_of(text), None, "{text}");
        }
    }

    /// Two GPUs went by hand, and the first one is home: its name is the second one's still.
    #[test]
    fn what_is_on_nobodys_record_takes_no_other_records_place() {
        let gpu: PciAddr = "0000:01:00.0".parse().unwrap();
        let on_file = |names: &[&str]| -> Vec<Record> {
            let owners = names.iter().map(|name| Owner::ByHand(name.parse().unwrap()));
            owners
                .map(|owner| Record::new(owner, "boot".to_owned(), Budgets::default()))
                .collect()
        };
        for (names, name) in [
            (&[][..], "0000:01:00.0"),
            (&["0000:02:00.0"], "0000:01:00.0"),
            (&["0000:01:00.0"], "0000:01:00.1"),
            (&["0000:01:00.1", "0000:01:00.0"], "0000:01:00.2"),
        ] {
            assert_eq!(
                Owner::unrecorded(gpu, &on_file(names)),
                Owner::ByHand(name.parse().unwrap()),
                "{names:?}"
            );
        }
        let second: PciAddr = "0000:01:00.1".parse().unwrap();
        assert_eq!(
            Owner::unrecorded(second, &on_file(&["0000:01:00.1"])),
            Owner::ByHand(gpu)
        );
    }

    fn group(number: u32) -> Group {
        Group {
            number,
            started: Some(4711),
        }
    }

    fn record() -> Record {
        let mut record = Record::new(Owner::Vm("111".parse().unwrap()), "boot".to_owned(), Budgets::default());
        record.taken.push(Taken::on_nvidia("0000:01:00.0".parse().unwrap()));
        record
    }

    /// As a run that unloads a module writes it down.
    fn at_an_act() -> Record {
        let mut record = record();
        record.workers = vec![group(78), group(79)];
        record.under_way = vec![Act::UnloadModule {
            name: "nvidia".to_owned(),
        }];
        record.run = Some(Run {
            process: Process { pid: 77, started: 4700 },
            since_ms: 60_000,
        });
        record
    }

    #[test]
    fn what_is_stuck_is_so_for_as_long_as_the_process_group_lives() {
        let gpu = record().taken[0].addr;
        let mut stuck = record();
        stuck.wedges.push(Wedge {
            group: group(77),
            addrs: vec![gpu],
            act: "unbind".to_owned(),
            stack: String::new(),
            holders: Vec::new(),
        });
        stuck.settle(|g| g == group(77));
        assert_eq!(stuck.stuck().collect::<Vec<_>>(), [gpu]);
        stuck.settle(|_| false);
        assert_eq!((stuck.wedges.len(), stuck.late.len()), (0, 1));
    }

    #[test]
    fn what_a_killed_run_has_left_is_stuck_to_who_holds_the_lock_and_at_work_to_who_does_not() {
        let gpu = record().taken[0].addr;
        let mut held = at_an_act();
        held.settle(|g| g.number == 78);
        assert_eq!(held.wedges[0].group, group(78));
        assert_eq!((held.stuck().collect::<Vec<_>>(), held.at_work), (vec![gpu], None));

        let now = Duration::from_millis(62_500);
        for (run, alive, at_work) in [
            (Some("VM 111 pre-start (pid 77)"), vec![78, 79], true),
            // Between its acts: the workers wait, and one may have been ended.
            (Some("VM 111 pre-start (pid 77)"), vec![], true),
            (None, vec![78], true),
            (None, vec![], false),
        ] {
            let mut read = at_an_act();
            read.look_on(run.map(str::to_owned), now, |g| alive.contains(&g.number));
            assert_eq!(read.stuck().count(), 0, "{run:?} {alive:?}");
            let expected = at_work.then(|| AtWork {
                run: run.map(str::to_owned),
                time: Some(Duration::from_millis(2_500)),
            });
            assert_eq!(read.at_work, expected, "{run:?} {alive:?}");
            let left_alone = if at_work { vec![gpu] } else { Vec::new() };
            assert_eq!(read.not_to_be_read(), left_alone, "{run:?} {alive:?}");
            assert_eq!(read.acts_at_work().contains("for 2 s"), at_work, "{run:?} {alive:?}");
        }
    }

    #[test]
    fn who_is_at_a_service_is_waited_for_by_nobody() {
        let inside = Act::StartUnit {
            name: Unit::Inside {
                container: "104".parse().unwrap(),
                unit: "ollama.service".to_owned(),
            },
            within_s: 0,
            has_ended: false,
        };
        let mut record = at_an_act();
        assert_eq!(record.awaited(), [group(78), group(79)]);
        record.under_way = vec![inside.clone()];
        assert!(record.touches_nothing());
        assert_eq!(record.awaited(), []);
        record.under_way = at_an_act().under_way;
        record.settle(|g| g == group(79));
        record.under_way = vec![inside];
        assert_eq!(record.awaited(), [group(79)]);
    }

    #[test]
    fn what_is_at_work_is_told_without_what_is_owed_later() {
        let (addr, bridge) = (record().taken[0].addr, None);
        let mut record = at_an_act();
        record.under_way.push(Act::Rescan { bridge, addr });
        assert_eq!(record.acts_at_work(), "'nvidia: unload the module'");
        record.under_way.remove(0);
        assert_eq!(record.acts_at_work(), format!("'{}'", Act::Rescan { bridge, addr }));
    }

    #[test]
    fn nobody_is_at_work_on_what_rests() {
        let mut record = at_an_act();
        record.rest(State::Away);
        assert_eq!((record.workers, record.run, record.under_way), (vec![], None, vec![]));
    }

    /// A record as it was written before groups had a start and runs a name.
    const EARLIER: &str = r#"{
      "version": 1, "owner": {"vm": 111}, "generation": 3, "boot_id": "boot", "state": "leaving",
      "taken": [{"addr": "0000:01:00.0", "driver": "nvidia", "module": "nvidia", "driver_override": null,
                 "width": 16, "attributes": []}],
      "modules": ["nvidia"], "units": [], "consoles": [], "platforms": [], "awake": [], "may_reset": true,
      "under_way": [{"UnloadModule": {"name": "nvidia"}}],
      "wedges": [{"group": 77, "addrs": ["0000:01:00.0"], "act": "unbind", "stack": "", "holders": ["x"]}],
      "workers": [78, 79], "caller": null, "qemu": {"pid": 900, "started": 5},
      "budgets": {"way_out": {"secs": 60, "nanos": 0}, "way_home": {"secs": 120, "nanos": 0}, "lock": {"secs": 30, "nanos": 0},
                  "holder_wait": {"secs": 5, "nanos": 0}, "grace": {"secs": 75, "nanos": 0}, "look": {"secs": 10, "nanos": 0},
                  "attribute": {"secs": 5, "nanos": 0}, "bind": {"secs": 20, "nanos": 0}, "load": {"secs": 45, "nanos": 0},
                  "unit": {"secs": 15, "nanos": 0}, "reset": {"secs": 75, "nanos": 0}, "verify": {"secs": 30, "nanos": 0},
                  "unload": {"secs": 20, "nanos": 0}, "unload_per_gpu": {"secs": 5, "nanos": 0}}
    }"#;

    #[test]
    fn a_record_of_the_earlier_form_is_read_with_its_bare_numbers() {
        let read: Record = json::from_slice(EARLIER.as_bytes()).unwrap();
        let bare = |number| Group { number, started: None };
        assert_eq!(read.workers, [bare(78), bare(79)]);
        assert_eq!((read.wedges[0].group, read.wedges[0].holders.len()), (bare(77), 1));
        assert_eq!((read.generation, read.run, read.under_way.len()), (3, None, 1));
        assert_eq!((&read.taken[0].width, &read.budgets), (&Some(16), &Budgets::default()));
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_a_wedge_has_its_group_where_it_always_was() {
        let mut record = at_an_act();
        record.wedges.push(Wedge {
            group: group(77),
            addrs: vec![record.taken[0].addr],
            act: "unbind".to_owned(),
            stack: String::new(),
            holders: Vec::new(),
        });
        let json = serde_json::to_value(&record).unwrap();
        assert_eq!(json["wedges"][0]["group"], 77);
        assert_eq!(json["wedges"][0]["started"], 4711);
        let text = json.to_string();
        assert_eq!(json::from_slice::<Record>(text.as_bytes()).unwrap(), record);
    }
}
