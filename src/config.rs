//! How long things may take. The settings file will set these; until it exists they are constants with reasons.
//!
//! Every value is printed where it is in force, and kept in the record of a handoff, so that the way home does
//! not depend on what is configured by then.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Bounds on the whole run and on each kind of act.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budgets {
    /// The whole way out. Proxmox itself waits without limit for a hook (pve-guest-common, GuestHelpers.pm), so
    /// this is about the patience of the person at `qm start`.
    pub way_out: Duration,
    /// The whole way home, waiting for QEMU included.
    pub way_home: Duration,
    /// Waiting for another run of ours to finish.
    pub lock: Duration,
    /// Reading the host once, every process's descriptors included.
    pub look: Duration,
    /// A write that only changes an attribute.
    pub attribute: Duration,
    /// Taking a driver off a function that is proven free, or binding one: probes of NVIDIA's driver take
    /// seconds on servers.
    pub bind: Duration,
    /// Loading a module, its probes of all devices included.
    pub load: Duration,
    /// Unloading the driver's modules: this much ...
    pub unload: Duration,
    /// ... and this much for each GPU that it lets go.
    pub unload_per_gpu: Duration,
}

impl Default for Budgets {
    fn default() -> Self {
        let s = Duration::from_secs;
        Budgets {
            way_out: s(60),
            way_home: s(120),
            lock: s(30),
            look: s(10),
            attribute: s(5),
            bind: s(20),
            load: s(45),
            unload: s(20),
            unload_per_gpu: s(5),
        }
    }
}
