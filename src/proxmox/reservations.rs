//! Which VM has which PCI device reserved: Proxmox's file of reservations, and which of them still count.

use std::collections::BTreeMap;

use crate::base::pci::PciAddr;
use crate::base::sets::IntoSet as _;
use crate::base::vmid::VmId;
use crate::proxmox::grammar::propstring::{is_digits, is_space};
use crate::proxmox::grammar::values::is_host_id;
use crate::proxmox::start_error::StartError;

/// The file that holds the reservations of all VMs.
pub const RESERVATIONS: &str = "/run/qemu-server/pci-id-reservations";

/// A claim on a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// The VM's id. The file may hold any number.
    pub vmid: u64,
    /// How long it holds.
    pub hold: Hold,
    running_as: Option<VmId>,
}

/// How long a reservation holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Until this Unix time, while the VM starts.
    Until(u64),
    /// While the VM runs as this process.
    Process(u64),
}

/// The reservations of all VMs, by function as it is spelled in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reservations(BTreeMap<String, Reservation>);

/// What else the answer depends on.
#[derive(Clone, Copy)]
pub struct Moment<'a> {
    /// The VM that starts.
    pub vmid: VmId,
    /// Unix time in seconds.
    pub now: u64,
    /// The process id of a VM, if it runs.
    pub running: &'a dyn Fn(VmId) -> Option<u32>,
}

impl std::fmt::Debug for Moment<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Moment")
            .field("vmid", &self.vmid)
            .field("now", &self.now)
            .finish_non_exhaustive()
    }
}

impl Reservations {
    /// Parses the file. Lines that are not exactly `FUNCTION VMID time:SECONDS` or `... pid:PID` have no
    /// effect; of several lines for a function the last one counts.
    pub fn parse(raw: &[u8]) -> Reservations {
        Reservations(raw.split(|b| *b == b'\n').filter_map(reservation).into_map())
    }

    /// How many functions are spelled in the file.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing is reserved.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The functions a VM has reserved, live or not, that are spelled as full names.
    pub fn of(&self, vmid: VmId) -> Vec<PciAddr> {
        let own = self.0.iter().filter(|(_, r)| r.vmid == u64::from(vmid.get()));
        own.filter_map(|(name, _)| name.parse::<PciAddr>().ok().filter(|a| a.to_string() == *name))
            .collect()
    }

    /// Who else has a function now.
    pub fn conflict(&self, device: PciAddr, moment: Moment<'_>) -> Option<StartError> {
        let claim = self.0.get(&device.to_string())?;
        if claim.vmid == u64::from(moment.vmid.get()) {
            return None;
        }
        let vmid = claim.vmid;
        Some(match self.holder(device, moment.now, moment.running)?.hold {
            Hold::Until(_) => StartError::ReservedByOther { device, vmid },
            Hold::Process(_) => StartError::InUseByOther { device, vmid },
        })
    }

    /// Who has a function now: the reservation, if it counts.
    pub fn holder(&self, device: PciAddr, now: u64, running: &dyn Fn(VmId) -> Option<u32>) -> Option<&Reservation> {
        let claim = self.0.get(&device.to_string())?;
        let counts = match claim.hold {
            Hold::Until(time) => time > now,
            Hold::Process(pid) => claim.is_running_as(pid, running),
        };
        counts.then_some(claim)
    }
}

impl Reservation {
    /// Whether its VM runs as this process.
    fn is_running_as(&self, pid: u64, running: &dyn Fn(VmId) -> Option<u32>) -> bool {
        let running = self.running_as.and_then(running).map(u64::from);
        pid != 0 && running == Some(pid)
    }
}

fn reservation(line: &[u8]) -> Option<(String, Reservation)> {
    let mut parts = line.splitn(3, |b| is_space(*b));
    let (id, vmid, hold) = (parts.next()?, parts.next()?, parts.next()?);
    if !is_host_id(id) {
        return None;
    }
    let hold = match (hold.strip_prefix(b"time:"), hold.strip_prefix(b"pid:")) {
        (Some(time), _) => Hold::Until(number(time)?),
        (_, Some(pid)) => Hold::Process(number(pid)?),
        _ => return None,
    };
    // A VM's process is looked up by the text, so one with leading zeros never runs.
    let running_as = std::str::from_utf8(vmid).ok().and_then(|t| t.parse::<VmId>().ok());
    let vmid = number(vmid)?;
    Some((
        String::from_utf8_lossy(id).into_owned(),
        Reservation { vmid, hold, running_as },
    ))
}

/// Digits; a number that is too large is the largest one.
fn number(digits: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(digits).ok().filter(|t| is_digits(t.as_bytes()))?;
    Some(text.parse::<u64>().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_has_a_function_until_its_time_is_over_or_while_it_runs() {
        let file = b"0000:81:00.0 100 pid:5\n0000:82:00.0 201 pid:6\n0000:82:00.1 202 time:70\n";
        let all = Reservations::parse(file);
        let running = |vmid: VmId| (vmid.get() == 100).then_some(5);
        for (device, now, holder) in [
            ("0000:81:00.0", 60, Some(100)),
            ("0000:82:00.0", 60, None),
            ("0000:82:00.1", 60, Some(202)),
            ("0000:82:00.1", 70, None),
            ("0000:83:00.0", 60, None),
        ] {
            let found = all.holder(device.parse().unwrap(), now, &running).map(|r| r.vmid);
            assert_eq!(found, holder, "{device}");
        }
    }

    #[test]
    fn the_real_choice_is_what_a_vm_has_reserved() {
        let file = b"0000:81:00.0 100 pid:5\n0000:82:00.0 201 pid:6\n0000:82:00.1 100 time:7\n83:00.0 100 pid:5\n";
        let own = Reservations::parse(file).of(VmId::try_from(100).unwrap());
        assert_eq!(
            own.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["0000:81:00.0", "0000:82:00.1"]
        );
    }
}
