//! Checks of the IOMMU: whether it is on, what it needs to be, whether its groups are what the hardware keeps apart.

use crate::check::facts::Facts;
use crate::check::fights::{Cpu, missing_argument};
use crate::check::finding::{Finding, Looked, NotSeen, fail, pass, skip, warn};
use crate::check::lines::fights;

/// The processor, for words.
fn cpu(facts: &Facts) -> Result<Cpu, NotSeen> {
    Ok(Cpu::of(facts.texts.needed("/proc/cpuinfo")?))
}

pub(super) fn on(facts: &Facts) -> Looked {
    if facts.snapshot.iommu {
        return pass("the IOMMU is on").into();
    }
    let failed = fail("the IOMMU is off: no device can be given to a guest");
    let argument = missing_argument(cpu(facts)?, facts.arguments()?);
    match argument {
        Some(word) => failed.hint(format!(
            "add '{word}' to the kernel's command line, and VT-d in the firmware's setup; 'gpu-handoff \
                prepare' shows the edit"
        )),
        None => failed.hint(
            "turn on VT-d or AMD-Vi (IOMMU) in the firmware's setup; Intel's needs 'intel_iommu=on' on the kernel's \
             command line, too",
        ),
    }
    .into()
}

pub(super) fn firmware(facts: &Facts) -> Looked {
    let tables = facts.texts.names("/sys/firmware/acpi/tables")?;
    let found = tables.iter().find(|t| ["DMAR", "IVRS", "VIOT"].contains(&t.as_str()));
    match (found, facts.snapshot.iommu) {
        (Some(table), _) => pass(format!("the firmware describes an IOMMU (ACPI table {table})")),
        (None, true) => pass("the kernel has found an IOMMU without a table of the firmware's"),
        (None, false) => fail("the firmware describes no IOMMU (no ACPI table DMAR or IVRS)")
            .hint("turn on VT-d, or IOMMU and SVM for AMD, in the firmware's setup"),
    }
    .into()
}

pub(super) fn groups(facts: &Facts) -> Looked {
    let gpus = facts.gpus();
    if gpus.is_empty() {
        return skip("there is no NVIDIA GPU").into();
    }
    if !facts.snapshot.iommu {
        return skip("the IOMMU is off").into();
    }
    let without: Vec<Finding> = gpus
        .iter()
        .filter(|gpu| gpu.group.is_none())
        .map(|gpu| {
            fail(format!("{} is in no IOMMU group, though the IOMMU is on", gpu.addr))
                .hint("'dmesg | grep -e DMAR -e AMD-Vi' says why it was left out")
        })
        .collect();
    crate::check::finding::or_pass(without, "every GPU is in an IOMMU group")
}

pub(super) fn remapping(facts: &Facts) -> Looked {
    if !facts.snapshot.iommu {
        return skip("the IOMMU is off").into();
    }
    // linux, arch/x86: a chip below interrupt remapping has IR- before its name.
    if facts.texts.needed("/proc/interrupts")?.contains("IR-") {
        return pass("interrupts are remapped").into();
    }
    let parameter = "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts";
    match facts.texts.line(parameter)? {
        "Y" => warn(
            "interrupts are not remapped, and VFIO is told to go on without: a guest can send the host any interrupt",
        )
        .hint("turn on interrupt remapping (x2APIC) in the firmware's setup, and drop 'allow_unsafe_interrupts'"),
        _ => fail("interrupts are not remapped: VFIO gives no guest a device (vfio_iommu_type1)").hint(
            "turn on interrupt remapping (x2APIC) in the firmware's setup; 'allow_unsafe_interrupts=1' of \
             vfio_iommu_type1 goes without",
        ),
    }
    .into()
}

pub(super) fn off(facts: &Facts) -> Looked {
    fights(
        facts,
        "iommu-off",
        "nothing on the kernel's command line turns the IOMMU off",
    )
}

pub(super) fn argument(facts: &Facts) -> Looked {
    fights(
        facts,
        "iommu-argument",
        "the kernel's command line has no argument for the IOMMU that means nothing",
    )
}

pub(super) fn acs(facts: &Facts) -> Looked {
    fights(
        facts,
        "acs-override",
        "IOMMU groups are as the hardware keeps them apart",
    )
}

pub(super) fn noiommu(facts: &Facts) -> Looked {
    let parameter = "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode";
    let grouped = facts.snapshot.functions.iter().find(|f| f.noiommu);
    if let Some(function) = grouped {
        return fail(format!(
            "{} is in a group of VFIO's without an IOMMU: it is never handed over",
            function.addr
        ))
        .hint("take 'enable_unsafe_noiommu_mode' out of modprobe.d and off the kernel's command line, and reboot")
        .into();
    }
    if facts.texts.line(parameter)? == "Y" {
        return fail("VFIO's mode without an IOMMU is on: a guest could write anywhere in the host's memory")
            .at(parameter, None)
            .hint(format!("echo N >{parameter}"))
            .into();
    }
    fights(facts, "noiommu", "VFIO's mode without an IOMMU is off")
}
