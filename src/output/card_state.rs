//! Whose a card is at this moment, in a word: what `status` shows of records and calls before it says more.
//!
//! Not here: the sentences ([`crate::output::status`]), and whether anything is done about it.

use serde::Serialize;

use crate::base::pci::PciAddr;
use crate::base::vmid::VmId;
use crate::host::functions::Function;
use crate::host::snapshot::Snapshot;
use crate::model::record::{Owner, Record, State};
use crate::plan::owners::held_by;

/// Whose a card is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CardState {
    /// The host's: no handoff has it.
    Host,
    /// A VM's: handed over, or its QEMU has it without a handoff of ours.
    Vm,
    /// Handed over by a person.
    ByHand,
    /// A run is at work on it.
    HandingOver,
    /// A run on it was broken off: it is neither here nor there.
    Interrupted,
    /// An act failed and could not be undone.
    Stranded,
    /// A call of ours on it is stuck in the kernel.
    Wedged,
    /// A call of ours was stuck and has ended since: it can come home.
    Late,
    /// A call of somebody else's is stuck on it.
    Stuck,
    /// On vfio-pci, and neither a handoff nor a VM has it: the host's own settings have put it there.
    Nobody,
    /// It was taken, and is not on the bus any more.
    Missing,
}

/// A card with what is on record of it.
pub(crate) struct OnRecord<'a> {
    /// The functions that move together.
    pub addrs: &'a [PciAddr],
    /// The record that has taken it.
    pub record: Option<&'a Record>,
    /// The record of a run beside which it stays.
    pub beside: Option<&'a Record>,
    /// All records.
    pub records: &'a [Record],
}

impl OnRecord<'_> {
    /// Whether some functions are of this card.
    pub(crate) fn is_at(&self, addrs: &[PciAddr]) -> bool {
        addrs.iter().any(|a| self.addrs.contains(a))
    }

    /// Whose it is, and which VM's. What is worse is said first: what is stuck stays so whoever else has it.
    pub(crate) fn state(&self, snapshot: &Snapshot) -> (CardState, Option<VmId>) {
        let vmid = match self.record.map(|r| r.owner) {
            Some(Owner::Vm(vmid)) => Some(vmid),
            Some(Owner::ByHand(_)) => None,
            None => self.vm(snapshot),
        };
        (self.word(snapshot, vmid), vmid)
    }

    /// The VM whose QEMU has it.
    fn vm(&self, snapshot: &Snapshot) -> Option<VmId> {
        let mut vms = snapshot.vms.iter().map(|vm| vm.vmid);
        vms.find(|vmid| !held_by(snapshot, *vmid, self.addrs).is_empty())
    }

    fn word(&self, snapshot: &Snapshot, vmid: Option<VmId>) -> CardState {
        let functions = || self.addrs.iter().filter_map(|a| snapshot.function(*a));
        let all = || self.records.iter();
        let run = |record: Option<&Record>| record.and_then(|r| r.at_work.as_ref()).map(|w| w.run.is_some());
        if snapshot.calls.iter().any(|c| c.lasts && self.is_at(&c.at)) {
            return CardState::Stuck;
        }
        if all().flat_map(|r| &r.wedges).any(|w| self.is_at(&w.addrs)) {
            return CardState::Wedged;
        }
        match run(self.record.or(self.beside)) {
            Some(true) => return CardState::HandingOver,
            Some(false) => return CardState::Interrupted,
            None => {}
        }
        if functions().next().is_none() {
            return CardState::Missing;
        }
        if all().flat_map(|r| &r.late).any(|w| self.is_at(&w.addrs)) {
            return CardState::Late;
        }
        match self.record.map(|r| (r.state, r.owner)) {
            Some((State::Stranded, _)) => CardState::Stranded,
            Some((State::Leaving | State::Returning, _)) => CardState::Interrupted,
            Some((State::Away, Owner::Vm(_))) => CardState::Vm,
            Some((State::Away, Owner::ByHand(_))) => CardState::ByHand,
            None if vmid.is_some() => CardState::Vm,
            None if functions().any(|f| f.is_nvidia_gpu() && Function::is_on_vfio(f)) => CardState::Nobody,
            None => CardState::Host,
        }
    }
}
