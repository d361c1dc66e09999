//! A record for a GPU that is away without one: what its natural driver is.

use std::collections::BTreeSet;

use crate::base::pci::PciAddr;
use crate::host::snapshot::{Snapshot, card};
use crate::model::record::{Record, Taken};
use crate::plan::vendor::nvidia::natural_driver;

/// A record for functions that nobody wrote down: what their own drivers would be, by what they are.
///
/// GPUs go to `nvidia`; for the others the kernel chooses when they are probed. The caller says that it was
/// inferred.
pub fn inferred(snapshot: &Snapshot, gpus: &[PciAddr], mut record: Record) -> Record {
    let mut set = BTreeSet::new();
    for gpu in gpus {
        set.extend(card(snapshot, *gpu));
    }
    for function in set.iter().filter_map(|a| snapshot.function(*a)) {
        let (driver, module) = natural_driver(function);
        let on_vfio = function.is_on_vfio();
        record.taken.retain(|t| t.addr != function.addr);
        record.taken.push(Taken {
            addr: function.addr,
            driver: if on_vfio || function.driver.is_none() {
                driver.map(str::to_owned)
            } else {
                function.driver.clone()
            },
            module: module.map(str::to_owned),
            driver_override: None,
            width: None,
            attributes: Vec::new(),
            parent: function.parent,
        });
    }
    record.sort_taken();
    if record.modules.is_empty() && snapshot.gpus().any(|f| set.contains(&f.addr)) {
        record.modules = ["nvidia_uvm", "nvidia_drm", "nvidia_modeset", "nvidia"]
            .map(str::to_owned)
            .to_vec();
    }
    record
}
