//! Why somebody still has what is on record, or needs what is about to be moved. An owner without a claim is gone, and owns
//! nothing.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::base::vmid::VmId;
use crate::model::remedy::Remedy;

/// A claim on functions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Claim {
    /// Somebody holds Proxmox's lock of this VM, which has the functions or is to get them: a start, a stop, or another task.
    Busy(VmId),
    /// Its pre-start was called by hand, and who did so may still start it.
    Caller {
        /// The VM.
        vmid: VmId,
        /// The process that called.
        pid: u32,
    },
    /// Its QEMU has them.
    Runs(VmId),
    /// Proxmox has one of them reserved for it.
    Reserved {
        /// The VM, by what the file of reservations says.
        vmid: u64,
        /// It is starting; else it runs.
        starts: bool,
    },
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Claim::Busy(vmid) => write!(f, "VM {vmid} is starting or stopping, or another task has its lock"),
            Claim::Caller { vmid, pid } => write!(
                f,
                "pre-start of VM {vmid} was called by hand, and process {pid}, which called it, still runs"
            ),
            Claim::Runs(vmid) => write!(f, "VM {vmid} runs with it"),
            Claim::Reserved { vmid, starts: true } => write!(f, "it is reserved for VM {vmid}, which is starting"),
            Claim::Reserved { vmid, starts: false } => write!(f, "it is reserved for VM {vmid}, which runs"),
        }
    }
}

impl Claim {
    /// What ends it.
    pub fn remedy(&self) -> Remedy {
        match self {
            Claim::Busy(_) | Claim::Reserved { starts: true, .. } => "wait until that is over".into(),
            Claim::Caller { vmid, .. } => {
                format!("'gpu-handoff {vmid} post-stop' ends that attempt, and so does the end of that process").into()
            }
            Claim::Runs(vmid) => Remedy::StopVm(*vmid),
            Claim::Reserved { vmid, .. } => format!("shut that VM down with 'qm shutdown {vmid}'").into(),
        }
    }
}
