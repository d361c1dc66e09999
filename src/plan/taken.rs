//! What is noted of a function before it leaves, so that it comes home as it was.

use crate::base::pci::PciAddr;
use crate::host::functions::Function;
use crate::host::snapshot::Snapshot;
use crate::model::act::Attribute;
use crate::model::record::{Record, Taken};
use crate::settings::known_gpus;
use crate::settings::reset::Reset;
use crate::settings::values::Settings;

/// The override that a function has on the host, as any of the records has it whose run may have changed it; None: none of
/// them has.
pub(crate) fn recorded_override(records: &[Record], addr: PciAddr) -> Option<&Option<String>> {
    let taken = records
        .iter()
        .flat_map(|r| &r.taken)
        .map(|t| (t.addr, &t.driver_override));
    let beside = records
        .iter()
        .flat_map(|r| &r.beside)
        .map(|b| (b.addr, &b.driver_override));
    let known = taken.chain(beside).find(|(a, _)| *a == addr);
    known.map(|(_, own)| own)
}

/// What a function goes back to, as it is before anything is changed; what another's run that was killed has left without
/// its driver, as that has it on record (`records`: all there are).
pub(crate) fn taken_from(snapshot: &Snapshot, function: &Function, records: &[Record], settings: &Settings) -> Taken {
    let mut taken = Taken {
        addr: function.addr,
        driver: function.driver.clone(),
        module: function.module.clone(),
        driver_override: function.driver_override.clone(),
        width: function.width.filter(|_| function.is_nvidia_gpu()),
        attributes: attributes(snapshot, function, settings)
            .into_iter()
            .map(|(attribute, before, _)| (attribute, before))
            .collect(),
        parent: function.parent,
    };
    let bereft = records.iter().flat_map(|r| &r.beside).find(|b| b.addr == function.addr);
    if let Some(beside) = bereft.filter(|_| taken.driver.is_none()) {
        taken.driver = Some(beside.driver.clone());
        taken.module = Some("nvidia".to_owned());
    }
    if let Some(own) = recorded_override(records, function.addr) {
        taken.driver_override.clone_from(own);
    }
    taken
}

/// Attributes that are changed while a function is away: which, what puts them back, what they become.
pub(crate) fn attributes(
    snapshot: &Snapshot,
    function: &Function,
    settings: &Settings,
) -> Vec<(Attribute, String, String)> {
    if function.is_on_vfio() {
        return Vec::new();
    }
    let known = known_gpus::of(&settings.facts, function);
    let mut changes = Vec::new();
    let wanted = match &settings.reset {
        Reset::By(methods) if function.is_nvidia_gpu() => Some(methods.clone()),
        Reset::Never | Reset::By(_) => None,
        Reset::Auto => known.iter().find_map(|f| f.reset.clone()),
    };
    // The list is made before the other functions of a card are known, and a bus reset is not possible beside one (linux,
    // drivers/pci/pci.c, pci_parent_bus_reset): the kernel refuses to have it set.
    let addr = function.addr;
    let alone = || {
        !snapshot
            .functions
            .iter()
            .any(|f| f.addr != addr && (f.addr.domain, f.addr.bus) == (addr.domain, addr.bus))
    };
    let can = |m: &&str| function.reset_methods.iter().any(|has| has == m) && (*m != "bus" || alone());
    let wanted = wanted.map(|methods| methods.split(' ').filter(can).collect::<Vec<_>>().join(" "));
    // Where a fact leaves no method, function resets are switched off: VFIO then resets the whole card by its bus. Where a
    // setting leaves none, the device is left as it is.
    let wanted = wanted.filter(|w| !w.is_empty() || settings.reset == Reset::Auto);
    let before = function.reset_methods.join(" ");
    if let Some(wanted) = wanted.filter(|w| *w != before && !before.is_empty()) {
        changes.push((Attribute::ResetMethod, "default".to_owned(), wanted));
    }
    // Bound to vfio-pci a function is let sleep, and kept awake when it is unbound (linux,
    // drivers/vfio/pci/vfio_pci_core.c): what it was before is lost.
    if function.power_control == "auto" {
        changes.push((Attribute::Power, "auto".to_owned(), "auto".to_owned()));
    }
    let flag = |allowed: bool| if allowed { "1" } else { "0" }.to_owned();
    let wanted = known.iter().find_map(|f| f.d3cold);
    if let Some(wanted) = wanted.filter(|w| *w != function.d3cold) {
        changes.push((Attribute::D3cold, flag(function.d3cold), flag(wanted)));
    }
    changes
}
