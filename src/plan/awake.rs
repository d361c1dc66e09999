//! What is kept awake while acts are under way: functions that sleep, and the bridges above them.
//!
//! The bridges may sleep again afterwards; what becomes of the functions is their drivers' business.

use std::collections::BTreeSet;

use crate::base::pci::PciAddr;
use crate::base::sets::IntoSet as _;
use crate::host::functions::Function;
use crate::host::snapshot::Snapshot;
use crate::model::record::Record;

/// The bridges above these functions that may sleep, and those that an interrupted run has kept awake.
pub(crate) fn bridges(snapshot: &Snapshot, functions: &[&Function], earlier: Option<&Record>) -> Vec<PciAddr> {
    let mut bridges: BTreeSet<PciAddr> = earlier.into_iter().flat_map(|r| r.awake.iter().copied()).into_set();
    for function in functions {
        let mut above = function.parent;
        // As deep as buses can be nested; a loop in a broken tree ends too.
        for _ in 0..256 {
            let Some(bridge) = above.and_then(|a| snapshot.function(a)) else {
                break;
            };
            if bridge.power_control == "auto" {
                bridges.insert(bridge.addr);
            }
            above = bridge.parent;
        }
    }
    bridges.into_iter().collect()
}

/// Those of these functions that sleep.
pub(crate) fn sleepers(functions: &[&Function]) -> Vec<PciAddr> {
    let sleeps = |f: &&&Function| f.power_control == "auto" && f.power == "suspended";
    functions.iter().filter(sleeps).map(|f| f.addr).collect()
}
