//! How long each kind of act and each wait may take. What may be set of it, and how, is
//! [`crate::settings::table`]'s.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Bounds on the whole run and on each kind of act.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)] // a record of an earlier version lacks what it did not know
pub struct Budgets {
    /// The whole way out. Proxmox itself waits without limit for a hook (pve-guest-common, GuestHelpers.pm), so
    /// this is about the patience of the person at `qm start`.
    pub way_out: Duration,
    /// The whole way home, waiting for QEMU included.
    pub way_home: Duration,
    /// Waiting for another run of ours to finish.
    pub lock: Duration,
    /// Waiting for holders to let go before the way out is refused: long enough for a query of a monitoring tool
    /// to end, short enough for somebody who waits for an answer.
    pub holder_wait: Duration,
    /// How long post-stop is waited for once QEMU has ended and nobody holds the VM's lock: before qemu-server 9.1.13 it is
    /// called by 'qm cleanup', which waits up to 60 s for that lock (qemu-server 8, PVE/CLI/qm.pm, cleanup).
    #[serde(default = "grace")] // since a later version
    pub grace: Duration,
    /// Reading the host once, every process's descriptors included.
    pub look: Duration,
    /// A write that only changes an attribute.
    pub attribute: Duration,
    /// Taking a driver off a function that is proven free, or binding one: probes of NVIDIA's driver take
    /// seconds on servers.
    pub bind: Duration,
    /// Loading a module, its probes of all devices included.
    pub load: Duration,
    /// Stopping or starting a service.
    pub unit: Duration,
    /// The end of a container that is shut down; then it is ended: half down it would serve nobody, and nothing would start it
    /// again.
    pub container: Duration,
    /// The end of a process that was asked to end, and once more where it is killed.
    pub process: Duration,
    /// A reset of a function. The kernel itself waits up to a minute for a device to come back (linux,
    /// drivers/pci/pci.c, PCIE_RESET_READY_POLL_MS).
    pub reset: Duration,
    /// Seeing whether a GPU works that has come home: NVIDIA's tool initialises it, which takes seconds on servers.
    pub verify: Duration,
    /// Unloading the driver's modules: this much ...
    pub unload: Duration,
    /// ... and this much for each GPU that it lets go.
    pub unload_per_gpu: Duration,
}

fn grace() -> Duration {
    Duration::from_secs(75)
}

impl Default for Budgets {
    fn default() -> Self {
        let s = Duration::from_secs;
        Budgets {
            way_out: s(60),
            way_home: s(120),
            lock: s(30),
            holder_wait: s(5),
            grace: grace(),
            look: s(10),
            attribute: s(5),
            bind: s(20),
            load: s(45),
            unit: s(15),
            container: s(30),
            process: s(10),
            reset: s(75),
            verify: s(30),
            unload: s(20),
            unload_per_gpu: s(5),
        }
    }
}
