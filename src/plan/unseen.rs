//! Who may use a GPU unseen: what the kernel's own counts say beyond the holders that were found.

use crate::base::pci::PciAddr;
use crate::host::belongs::Belongs;
use crate::host::functions::Function;
use crate::host::holders::Holder;
use crate::host::modules::vfio_is_idle;
use crate::host::nodes::Node;
use crate::host::snapshot::Snapshot;
use crate::model::refusal::Reason;
use crate::plan::vendor::nvidia::{module_of, references_per_open};

/// What was not seen and speaks against an unbind of these functions.
///
/// Where the kernel itself knows, it is asked: NVIDIA's modules, those that use them, and those of a card's other functions, count
/// who has their nodes open, and where all of that is accounted for, nobody unseen has any. A VFIO group tells by itself whether it is
/// held ([`crate::execute::perform`]), and a USB controller waits for nobody. For all other drivers who could not be looked
/// into may be a user.
pub(crate) fn unseen(snapshot: &Snapshot, addrs: &[PciAddr]) -> Vec<Reason> {
    let functions = || addrs.iter().filter_map(|a| snapshot.function(*a));
    let mut asked: Vec<&str> = functions().filter_map(|f| counting(snapshot, f)).collect();
    if functions().any(Function::is_on_nvidia) {
        asked.extend(["nvidia", "nvidia_uvm"]);
        asked.extend(snapshot.others_above_nvidia());
    }
    asked.sort_unstable();
    asked.dedup();
    let may_hide = asked.iter().any(|name| uncounted(snapshot, name, false) > 0);
    let waits_for_nobody = |f: &Function| f.driver.as_deref() == Some(XHCI);
    let tells =
        |f: &Function| f.is_on_nvidia() || f.is_on_vfio() || waits_for_nobody(f) || counting(snapshot, f).is_some();
    let on_others = functions().any(|f| f.driver.is_some() && !tells(f));
    if !may_hide && !on_others {
        return Vec::new();
    }
    // What a guest is given is on vfio-pci; of the host's devices it can only have one that it draws with.
    let counts = |h: &&Holder| may_hide || !matches!(h.belongs_to, Belongs::Vm(_));
    let ending = snapshot.ending.iter().filter(counts);
    let mut reasons: Vec<Reason> = ending.map(|h| Reason::Ending(Box::new(h.clone()))).collect();
    if !snapshot.unseen.is_empty() {
        reasons.push(Reason::Unseen(snapshot.unseen.clone()));
    }
    if reasons.is_empty() {
        let beyond = asked.iter().map(|name| (*name, uncounted(snapshot, name, true)));
        let beyond = beyond.filter(|(_, refs)| *refs > 0);
        reasons.extend(beyond.map(|(name, refs)| Reason::Uncounted {
            name: name.to_owned(),
            refs,
        }));
    }
    reasons
}

/// Whether the kernel's counts alone say that nobody has any node of these functions' drivers open or mapped: each has such a
/// count, and nothing is in it but other modules. Then one look proves it, whatever somebody hands on behind its back.
pub fn nobody_by_count(snapshot: &Snapshot, addrs: &[PciAddr]) -> bool {
    addrs.iter().all(|addr| {
        let Some(function) = snapshot.function(*addr) else {
            return false;
        };
        if function.is_on_vfio() {
            return vfio_is_idle(&snapshot.modules);
        }
        let asked: Vec<&str> = if function.is_on_nvidia() {
            let its_own = ["nvidia", "nvidia_uvm", "nvidia_modeset", "nvidia_drm"];
            its_own.into_iter().chain(snapshot.others_above_nvidia()).collect()
        } else {
            counting(snapshot, function).into_iter().collect()
        };
        let of_modules_alone = |name: &&str| match snapshot.module(name) {
            Some(module) => module
                .refs
                .is_some_and(|refs| u32::try_from(module.users.len()) == Ok(refs)),
            None => *name != "nvidia",
        };
        !asked.is_empty() && asked.iter().all(of_modules_alone)
    })
}

/// Modules that no other module uses and that still have references, where no process was found to have any.
///
/// Only the top of the chain is judged: references that the upper modules take on the lower ones go with them, and those of
/// who `lets_go` first with it.
pub fn unaccounted(snapshot: &Snapshot, modules: &[String], lets_go: impl Fn(&Holder) -> bool) -> Vec<Reason> {
    let mut others = snapshot.holders.iter().filter(|h| !lets_go(h));
    if others.any(|h| h.nodes.iter().any(|n| module_of(snapshot, n).is_some())) {
        return Vec::new(); // somebody is named already
    }
    let top = modules.iter().filter_map(|name| snapshot.module(name));
    top.filter(|m| m.users.is_empty())
        .filter_map(|m| {
            let refs = uncounted(snapshot, &m.name, true);
            (refs > 0).then(|| Reason::ModuleInUse {
                name: m.name.clone(),
                refs,
            })
        })
        .collect()
}

/// The drivers of a card's other functions whose modules count who has a node of any of their devices open: the sound
/// function's (linux, sound/core/pcm_native.c, snd_pcm_open; control.c, snd_ctl_open; hwdep.c and rawmidi.c alike: the card's
/// module), and that of the bus to its USB-C port (drivers/i2c/busses/i2c-nvidia-gpu.c, gpu_i2c_probe, the adapter's owner;
/// i2c-core-base.c, i2c_get_adapter, and i2c_del_adapter, which waits for all who have it).
const COUNTING: [(&str, &str); 2] = [("snd_hda_intel", "snd_hda_intel"), ("nvidia-gpu", "i2c_nvidia_gpu")];

/// The driver of a card's USB controller: who has a device of it open is told that it has gone, and is not waited for (linux,
/// drivers/usb/core/devio.c, usbfs_notify's USB_DEVICE_REMOVE). What is plugged in is a reason of its own.
const XHCI: &str = "xhci_hcd";

/// The module that counts the users of a function; None: there is none, or it is part of the kernel, which counts nobody.
fn counting(snapshot: &Snapshot, function: &Function) -> Option<&'static str> {
    let (_, module) = COUNTING
        .iter()
        .find(|(driver, _)| function.driver.as_deref() == Some(*driver))?;
    snapshot.module(module)?.refs.map(|_| *module)
}

/// References of a module that neither its other modules nor the descriptors that were found account for: one of NVIDIA's
/// driver's, or of those of a card's other functions.
/// A descriptor that was handed on counts as often as it is seen, so that there may be more than this says, and not less.
///
/// `at_least`: what may be counted twice is taken for what is; otherwise there may be less than this says, and not more.
fn uncounted(snapshot: &Snapshot, name: &str, at_least: bool) -> u32 {
    let Some(module) = snapshot.module(name) else { return 0 };
    // Drivers that open /dev/nvidia-modeset through nvidia's own character device count it there as well
    // (nvidia_register_module, in kernel-open/nvidia/nv-frontend.c of the branches that have that file).
    let by_way_of = |node: &Node| at_least && name == "nvidia" && *node == Node::Modeset;
    let of_other = |node: &Node| match node {
        Node::Sound(addr) | Node::I2c(addr) => {
            snapshot.function(*addr).and_then(|f| counting(snapshot, f)) == Some(name)
        }
        _ => false,
    };
    let is_of_module = |node: &Node| module_of(snapshot, node) == Some(name) || by_way_of(node) || of_other(node);
    let open = snapshot.open.iter().filter(|(node, _)| is_of_module(node));
    let of_open = open.fold(0_u32, |sum, (node, count)| {
        sum.saturating_add(count.saturating_mul(references_per_open(node)))
    });
    let users = u32::try_from(module.users.len()).unwrap_or(u32::MAX);
    let accounted = of_open.saturating_add(users);
    module.refs.unwrap_or(0).saturating_sub(accounted)
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::host::snapshot::COUNTED;

    #[test]
    fn whoever_counts_in_a_drivers_count_is_looked_at() {
        for (driver, _) in COUNTING {
            assert!(COUNTED.contains(&driver), "{driver}");
        }
    }
}
