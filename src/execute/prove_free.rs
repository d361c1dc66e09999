//! The proof that nobody uses what is about to go, as late as it can be had.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use crate::base::pci::PciAddr;
use crate::base::root::Root;
use crate::base::sets::IntoSet as _;
use crate::base::wait::await_one;
use crate::execute::kernel::ActError;
use crate::host::snapshot::{self, Snapshot, is_on_vfio};
use crate::model::refusal::Reason;
use crate::plan::unseen::nobody_by_count;
use crate::plan::users;

/// How long a holder that turned up only now, or a module's last user, gets to let go: a query of a monitoring tool, udev
/// at its work. Who stays longer is a reason to stop.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// How long a VFIO group that nobody is seen to hold is waited for: who is ending closes it, with a reset of the device.
/// Shorter than the default deadline of a look, so that the reason is said.
const GROUP_PATIENCE: Duration = Duration::from_secs(7);

/// How often it is looked again where there is no event to wait for.
pub(crate) const POLL: Duration = Duration::from_millis(50);

/// What a look has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// Somebody uses the functions, or may.
    Somebody,
    /// Nobody was seen to.
    Nobody,
    /// Nobody, and the kernel's own counts say the same.
    NobodyByCount,
}

/// What the looks so far prove. A look goes through processes one after the other: a descriptor that is handed to one that had its
/// turn, by one that has not and ends before that, is in none of what it saw.
#[derive(Default)]
struct Proof {
    nobody_before: bool,
}

impl Proof {
    /// Takes the next look in. Returns whether it is proven by now that nobody uses the functions.
    fn is_complete_with(&mut self, look: Look) -> bool {
        let before = std::mem::replace(&mut self.nobody_before, look != Look::Somebody);
        match look {
            Look::Somebody => false,
            Look::Nobody => before,
            Look::NobodyByCount => true,
        }
    }
}

/// CLOCK_MONOTONIC, which all processes read alike (clock_gettime(2)): what one worker notes compares with what another
/// does.
pub(crate) fn now() -> Option<Duration> {
    Duration::try_from(clock_gettime(ClockId::Monotonic)).ok()
}

/// Looks until nobody uses the functions, twice in a row, or once where the kernel's own counts say the same: with the gate
/// shut, what two looks do not see cannot have come in between. Processes that are ending are waited for, one after the other:
/// on a busy host some process always is, for a moment. Others have a moment to let go. The caller's deadline ends a wait that
/// does not. Returns when the scan that found nobody was over.
pub(crate) fn prove_free(
    root: &Root,
    addrs: &[PciAddr],
    despite: &[i32],
    despite_unseen: bool,
) -> Result<Option<Duration>, ActError> {
    let begun = Instant::now();
    let mut proof = Proof::default();
    loop {
        let snapshot =
            snapshot::read_uses_of(root, addrs).map_err(|e| ActError::Failed(format!("cannot read the host: {e}")))?;
        let looked = now();
        let patient = begun.elapsed() < PATIENCE;
        let mut reasons = users::use_of(&snapshot, addrs);
        reasons.extend(users::drm_holds(&snapshot, addrs));
        let (mut pids, mut wait) = (Vec::new(), false);
        for reason in &reasons {
            match reason {
                Reason::Ending(holder) => pids.push(holder.pid),
                Reason::Doubtful { holder, .. } if despite.contains(&holder.pid) => {}
                Reason::Held { holder, .. } | Reason::Doubtful { holder, .. } if patient => pids.push(holder.pid),
                Reason::Unseen(_) | Reason::Uncounted { .. } if despite_unseen => {}
                Reason::Unseen(_) | Reason::Uncounted { .. } if patient => wait = true,
                reason => return Err(ActError::Failed(reason.to_string())),
            }
        }
        let nobody = pids.is_empty() && !wait;
        let look = match nobody.then(|| held_group(root, &snapshot, addrs)) {
            None => Look::Somebody,
            Some(None) if nobody_by_count(&snapshot, addrs) => Look::NobodyByCount,
            Some(None) => Look::Nobody,
            Some(Some(_)) if begun.elapsed() < GROUP_PATIENCE => Look::Somebody,
            Some(Some(reason)) => return Err(ActError::Failed(reason.to_string())),
        };
        if proof.is_complete_with(look) {
            return Ok(looked);
        }
        match look {
            Look::Somebody if pids.is_empty() => std::thread::sleep(POLL), // counters have no event
            // One that lets go without ending gives no sign.
            Look::Somebody => _ = await_one(&pids, POLL * 4),
            Look::Nobody | Look::NobodyByCount => {}
        }
    }
}

/// A group of these functions that is held, or that cannot be asked, in the kernel's own word: a second opening of one is refused with EBUSY (linux,
/// drivers/vfio/group.c, vfio_group_fops_open). A QEMU that is ending closes it out of everybody's sight. For reading alone,
/// since the gate is shut for everything else, and for no longer than this call: nobody else may open it meanwhile.
fn held_group(root: &Root, snapshot: &Snapshot, addrs: &[PciAddr]) -> Option<Reason> {
    let on_vfio = |a: &&PciAddr| is_on_vfio(snapshot, **a);
    let groups: BTreeSet<u32> = addrs
        .iter()
        .filter(on_vfio)
        .filter_map(|a| snapshot.function(*a)?.group)
        .into_set();
    groups.into_iter().find_map(|group| {
        let node = format!("/dev/vfio/{group}");
        let nonblocking = nix::fcntl::OFlag::O_NONBLOCK.bits();
        let opened = OpenOptions::new().read(true).custom_flags(nonblocking).open(root.path(&node));
        let error = opened.err()?;
        if error.raw_os_error() == Some(nix::errno::Errno::EBUSY as i32) {
            return Some(Reason::GroupHeld(group));
        }
        // Somebody has removed the node of a group that the kernel has; a kernel without groups has none.
        let number = root.line(format!("/sys/class/vfio/{group}/dev"));
        let (major, minor) = number.as_deref().filter(|_| error.kind() == io::ErrorKind::NotFound)?.split_once(':')?;
        Some(Reason::Other(format!(
            "{node} is not there, so that the kernel cannot be asked whether somebody has that group open. Hint: 'mknod -m \
             600 {node} c {major} {minor}' makes it again"
        )))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::base::pci::{PciClass, VENDOR_NVIDIA};
    use crate::host::functions::{Function, VFIO_PCI};

    #[test]
    fn nobody_is_proven_by_two_looks_in_a_row_or_by_one_that_the_counts_confirm() {
        use Look::{Nobody, NobodyByCount, Somebody};
        for (looks, proven_at) in [
            (&[Nobody, Nobody, Nobody][..], Some(1)),
            (&[Somebody, Nobody, Nobody], Some(2)),
            // Who is seen in between was behind the look before.
            (&[Nobody, Somebody, Nobody, Somebody, Nobody], None),
            (&[Nobody, Somebody, Nobody, Nobody], Some(3)),
            (&[NobodyByCount], Some(0)),
            (&[Somebody, NobodyByCount], Some(1)),
            (&[Nobody, NobodyByCount], Some(1)),
            (&[Somebody, Somebody], None),
            (&[Nobody], None),
        ] {
            let mut proof = Proof::default();
            let proven = looks.iter().position(|look| proof.is_complete_with(*look));
            assert_eq!(proven, proven_at, "{looks:?}");
        }
    }

    #[test]
    fn a_group_whose_node_is_gone_cannot_be_asked_and_a_kernel_without_groups_has_none() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path());
        let mut function = Function::new(
            "0000:01:00.0".parse().unwrap(),
            VENDOR_NVIDIA,
            0x2204,
            PciClass(0x03_0000),
        );
        (function.driver, function.group) = (Some(VFIO_PCI.to_owned()), Some(21));
        let addrs = [function.addr];
        let snapshot = Snapshot {
            functions: vec![function],
            ..Snapshot::default()
        };
        assert_eq!(held_group(&root, &snapshot, &addrs), None);
        for (path, text) in [("sys/class/vfio/21/dev", "242:3\n"), ("dev/vfio/21", "")] {
            std::fs::create_dir_all(dir.path().join(path).parent().unwrap()).unwrap();
            std::fs::write(dir.path().join(path), text).unwrap();
            let said = held_group(&root, &snapshot, &addrs).map(|reason| reason.to_string());
            match text {
                "" => assert_eq!(said, None),
                _ => assert!(
                    said.unwrap()
                        .ends_with("'mknod -m 600 /dev/vfio/21 c 242 3' makes it again")
                ),
            }
        }
    }
}
