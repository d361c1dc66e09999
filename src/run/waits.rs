//! What a run waits for: that QEMU lets go of a GPU.

use std::collections::BTreeSet;
use std::time::Duration;

use tracing::info;

use crate::base::pci::{PciAddr, PciSlot};
use crate::base::text::join;
use crate::execute::kernel::Kernel;
use crate::host::belongs::Belongs;
use crate::host::snapshot::is_on_vfio;
use crate::model::error::Error;
use crate::model::record::Owner;
use crate::model::refusal::{Reason, Refusal};
use crate::plan::{owners, users};
use crate::run::session::Session;

/// Waits, without the lock, for the VM's own QEMU to let go of the VFIO nodes: post-stop may come while it is still
/// unpinning memory, since QEMU removes its pidfile before it is gone. Cards that another VM runs with by now are not waited
/// for: they are returned.
pub(crate) fn await_vfio(host: &mut Session, owner: Owner, end: Duration) -> Result<BTreeSet<PciSlot>, Error> {
    loop {
        let records = host.records(None)?;
        let Some(record) = records.iter().find(|r| r.owner == owner) else {
            return Ok(BTreeSet::new());
        };
        let snapshot = host.look(&records)?;
        let addrs: Vec<PciAddr> = record.taken.iter().map(|t| t.addr).collect();
        let elsewhere = owners::elsewhere(&snapshot, owner, &addrs);
        let is_waited_for = |a: &PciAddr| is_on_vfio(&snapshot, *a) && !elsewhere.contains(&a.slot());
        let on_vfio: Vec<PciAddr> = addrs.into_iter().filter(is_waited_for).collect();
        let mut pids = Vec::new();
        for reason in users::keeps_away(&snapshot, &on_vfio, owner) {
            match &reason {
                Reason::Held { holder, .. } | Reason::Ending(holder) if !is_another_vm(&holder.belongs_to, owner) => {
                    pids.push(holder.pid);
                }
                _ => return Err(Refusal::from(reason).into()),
            }
        }
        if pids.is_empty() {
            return Ok(elsewhere);
        }
        let left = end.saturating_sub(host.kernel.now());
        info!(
            "{owner}: waiting for process {} to let go of the VFIO group, at most {} s",
            join(&pids),
            left.as_secs()
        );
        let ended = host.kernel.await_exit(&pids, left);
        host.not_interrupted()?;
        if !ended {
            return Err(Error::Overdue {
                what: format!("process {} did not let go of the VFIO group", join(&pids)),
                within: host.budgets.way_home,
                hint: "end it, then run 'gpu-handoff to_nvidia'".to_owned(),
            });
        }
    }
}

fn is_another_vm(belongs_to: &Belongs, owner: Owner) -> bool {
    matches!(belongs_to, Belongs::Vm(vmid) if Owner::Vm(*vmid) != owner)
}
