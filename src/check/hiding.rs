//! Whether a guest must not see that it is one: by the card's vendor, and the age of the driver in the guest.
//!
//! What is known of it: NVIDIA's GeForce drivers for guests before 465.89 gave up with code 43 where they saw a hypervisor
//! (NVIDIA, "GeForce GPU Passthrough for Windows Virtual Machine (Beta)", April 2021); Intel's for Arc look for the bit of
//! leaf 1 itself (the guide proxmox-gpu-passthrough, vendors). Professional cards, and AMD's, never asked.

use crate::base::sets::IntoSet as _;
use crate::check::facts::Facts;
use crate::check::finding::{Finding, Looked, NotSeen, info, notice, or_pass, skip};
use crate::check::guests::Vm;
use crate::host::functions::Function;

/// Vendor ids.
const INTEL: u16 = 0x8086;
const NVIDIA: u16 = 0x10de;

/// Whether the config hides the hypervisor, by the CPU's property or QEMU's own argument.
fn hides(vm: &Vm) -> bool {
    let by_cpu = vm.get("cpu").is_some_and(|c| {
        c.split(',')
            .any(|p| matches!(p, "hidden=1" | "hidden=on" | "hidden=yes"))
    });
    by_cpu || vm.get("args").is_some_and(|a| a.contains("kvm=off"))
}

/// Which setting hides it.
fn key(vm: &Vm) -> &'static str {
    match vm.get("args").is_some_and(|a| a.contains("kvm=off")) {
        true => "args",
        false => "cpu",
    }
}

/// The CPU property with hiding in it.
fn hidden(vm: &Vm) -> String {
    let cpu = vm.get("cpu").unwrap_or_else(|| "host".to_owned());
    format!("qm set {} --cpu {},hidden=1", vm.vmid, crate::base::text::foreign(&cpu))
}

pub(super) fn look(facts: &Facts) -> Looked {
    facts.texts.get("/etc/pve/qemu-server")?;
    let mut found: Vec<Finding> = Vec::new();
    let mut any = false;
    for vm in facts.asked_vms() {
        let functions = vm
            .given
            .entries
            .iter()
            .flat_map(|e| e.chosen.iter().chain(e.alternatives.iter().flatten()));
        for display in functions
            .copied()
            .into_set()
            .iter()
            .filter_map(|a| facts.snapshot.function(*a))
        {
            if !display.class.is_gpu() {
                continue;
            }
            any = true;
            found.extend(of(facts, vm, display));
        }
    }
    if !any {
        return match facts.texts.missed.is_empty() {
            true => skip(crate::check::vm::NONE).into(),
            false => Err(NotSeen("not every config could be read".to_owned())),
        };
    }
    or_pass(found, "no guest has to be kept from seeing that it is one")
}

fn of(facts: &Facts, vm: &Vm, display: &Function) -> Option<Finding> {
    let is_windows = vm.get("ostype").is_some_and(|o| o.starts_with('w'));
    match display.vendor {
        // A bit that kvm=off leaves on.
        INTEL if is_windows && !vm.get("args").is_some_and(|a| a.contains("-hypervisor")) => Some(
            vm.at(
                notice(format!(
                    "VM {}: Intel's driver for Windows gives up where it sees a hypervisor, and hidden=1 is \
                not enough",
                    vm.vmid
                ))
                .hint(format!(
                    "qm set {} --args '-cpu host,kvm=off,-hypervisor,hv_vendor_id=GenuineIntel'",
                    vm.vmid
                )),
                "args",
            ),
        ),
        NVIDIA => {
            let model = facts
                .snapshot
                .nvidia_gpu(display.addr)
                .map(|g| g.model.as_str())
                .unwrap_or_default();
            let consumer = model.is_empty() || model.contains("GeForce") || model.contains("TITAN");
            match (consumer, hides(vm)) {
                (true, true) => Some(
                    vm.at(
                        info(format!(
                            "VM {} hides the hypervisor: needed by GeForce drivers for guests before 465.89 only",
                            vm.vmid
                        ))
                        .hint(format!(
                            "with a later one in the guest, 'qm set {} --delete args', or take \
                'hidden=1' out of 'cpu'",
                            vm.vmid
                        )),
                        key(vm),
                    ),
                ),
                (true, false) => Some(
                    vm.at(
                        info(format!(
                            "VM {}: a GeForce needs no hiding of the hypervisor from driver 465.89 on in \
                the guest",
                            vm.vmid
                        ))
                        .hint(format!("for an older one: {}", hidden(vm))),
                        "cpu",
                    ),
                ),
                (false, true) => Some(
                    vm.at(
                        notice(format!(
                            "VM {} hides the hypervisor, which a professional card never asked for, \
                and Windows runs slower for it",
                            vm.vmid
                        ))
                        .hint("take 'hidden=1' out of 'cpu', and 'kvm=off' out of 'args'"),
                        key(vm),
                    ),
                ),
                (false, false) => None,
            }
        }
        _ => None,
    }
}
