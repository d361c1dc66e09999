//! The record of what was taken from where: versioned JSON below /run/gpu-handoff, one file per owner.
//!
//! It is written before each act and is all that the way home is decided from. The directory is on tmpfs (a
//! reboot gives every device back to its own driver, and forgets the record with it), 0700, made by tmpfiles.d
//! or by the first run. Holding the host-wide lock is the right to write: only [`crate::state::store::Guard`] can.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::base::deadlines::Budgets;
use crate::base::pci::PciAddr;
use crate::base::process::Process;
use crate::base::vmid::VmId;
use crate::host::displays::Platform;
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
}

/// One handoff, from the first act of the way out to the last of the way home.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The form of this file: only one of the form that we write is read.
    pub version: u32,
    /// Also the name of the file.
    pub owner: Owner,
    /// Counts the handoffs of this owner since boot.
    pub generation: u64,
    /// /proc/sys/kernel/random/boot_id when it was written.
    pub boot_id: String,
    /// How far it is, as of the last act that was written down.
    pub state: State,
    /// What was taken, in the order of its addresses.
    pub taken: Vec<Taken>,
    /// Modules that were unloaded and are loaded again at home, in the order of unloading.
    pub modules: Vec<String>,
    /// Units that were stopped and are started again at home.
    #[serde(default)] // since a later version
    pub units: Vec<String>,
    /// Console drivers that were taken off a framebuffer of the card.
    #[serde(default)] // since a later version
    pub consoles: Vec<String>,
    /// Firmware framebuffers that were detached.
    #[serde(default)] // since a later version
    pub platforms: Vec<Platform>,
    /// Bridges that are kept awake for as long as acts are under way.
    #[serde(default)] // since a later version
    pub awake: Vec<PciAddr>,
    /// Whether a reset may be asked for.
    #[serde(default = "yes")] // since a later version
    pub may_reset: bool,
    /// The acts that were about to be done when this was written, each for another card.
    #[serde(default)]
    pub under_way: Vec<Act>,
    /// Calls that are stuck in the kernel: nothing is done that would wait for them.
    #[serde(default)]
    pub wedges: Vec<Wedge>,
    /// The workers, by process group, that do the acts under way: each may outlive the run by that one act.
    #[serde(default)]
    pub workers: Vec<u32>,
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

/// A call that does not return, and what hangs with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wedge {
    /// The process group of ours that waits in the kernel. Once it has gone nothing is stuck any more.
    pub group: u32,
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
            modules: Vec::new(),
            units: Vec::new(),
            consoles: Vec::new(),
            platforms: Vec::new(),
            awake: Vec::new(),
            may_reset: true,
            under_way: Vec::new(),
            wedges: Vec::new(),
            workers: Vec::new(),
            late: Vec::new(),
            caller: None,
            qemu: None,
            budgets,
        }
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
            Act::ProveFree { .. }
            | Act::StopUnit { .. }
            | Act::StartUnit { .. }
            | Act::SetConsole { .. }
            | Act::SetPlatform { .. } => Vec::new(),
            Act::LoadModule { name } | Act::UnloadModule { name } => {
                let of = |t: &&Taken| {
                    let driver = t.driver.as_deref() == Some("nvidia") && name.starts_with("nvidia");
                    driver || t.module.as_ref() == Some(name)
                };
                let touched: Vec<PciAddr> = self.taken.iter().filter(of).map(|t| t.addr).collect();
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
    pub fn groups(&self) -> Vec<u32> {
        let wedged = self.wedges.iter().map(|w| w.group);
        self.workers.iter().copied().chain(wedged).collect()
    }

    /// Forgets what was stuck in a process group that has gone, and takes over as stuck what a run that was killed
    /// has left its workers with.
    pub fn settle(&mut self, is_alive: impl Fn(u32) -> bool) {
        let (wedges, late) = self.wedges.drain(..).partition(|w| is_alive(w.group));
        (self.wedges, self.late) = (wedges, late);
        self.workers.retain(|group| is_alive(*group));
        let addrs: BTreeSet<PciAddr> = self.under_way.iter().flat_map(|a| self.touched_by(a)).collect();
        for group in &self.workers {
            if !self.wedges.iter().any(|w| w.group == *group) {
                self.wedges.push(Wedge {
                    group: *group,
                    addrs: addrs.iter().copied().collect(),
                    act: crate::base::text::join(&self.under_way),
                    stack: String::new(),
                    holders: Vec::new(),
                });
            }
        }
    }

    /// Nothing is under way any more.
    pub fn rest(&mut self, state: State) {
        self.state = state;
        self.under_way.clear();
        self.workers.clear();
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
