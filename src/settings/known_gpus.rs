//! What is known of some models that no attribute tells: a small table, each row with its source. Settings can add rows.
//!
//! A row changes what is set while the GPU is away, and is said in the plan. What sysfs itself tells (how a function can
//! be reset, whether it may lose its power) is read, not written down here.

use crate::base::pci::PciAddr;
use crate::base::sets::in_order;
use crate::host::functions::Function;
use crate::host::snapshot::Snapshot;

/// What is known of the GPUs with some device ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// The first device id of NVIDIA's that it holds for.
    pub first: u16,
    /// The last one.
    pub last: u16,
    /// What it is, in words for the plan.
    pub note: String,
    /// The reset methods to leave while the GPU is away, as `reset_method` takes them; None: as they are.
    pub reset: Option<String>,
    /// Whether the platform may cut the power while the GPU is away; None: as it is.
    pub d3cold: Option<bool>,
}

/// The table we ship.
pub fn known() -> Vec<Fact> {
    let fact = |first, last, note: &str, reset: Option<&str>, d3cold| Fact {
        first,
        last,
        note: note.to_owned(),
        reset: reset.map(str::to_owned),
        d3cold,
    };
    vec![
        // linux, drivers/pci/quirks.c, quirk_nvidia_no_bus_reset (commit 4c207e7121fa).
        fact(
            0x2340,
            0x237f,
            "a bus reset does not work on it (linux commit 4c207e7121fa)",
            None,
            None,
        ),
        // tinygrad pull request 18199: GB202 does not come back from a function-level reset; a kernel with a quirk for
        // it lists no flr.
        fact(
            0x2b85,
            0x2b8c,
            "GB202 does not come back from a function-level reset (tinygrad pull request 18199): function resets are off \
             while it is away, and VFIO resets the whole card",
            Some("bus"),
            Some(false),
        ),
        // open-gpu-kernel-modules issue 853: Blackwell cards that do not come back after their VM has ended.
        fact(
            0x2b80,
            0x2fff,
            "Blackwell cards may not come back from D3cold after a guest (open-gpu-kernel-modules issue 853): kept out \
             of it while away",
            None,
            Some(false),
        ),
    ]
}

/// What holds for a function, the most particular fact first: the one for the fewest device ids.
pub fn of<'a>(facts: &'a [Fact], function: &Function) -> Vec<&'a Fact> {
    let holds = |f: &&Fact| function.is_nvidia_gpu() && (f.first..=f.last).contains(&function.device);
    // Later rows come from the settings and count more among equals.
    in_order(facts.iter().rev().filter(holds), |f| f.last - f.first)
}

/// The notes for the GPUs among some functions, each once.
pub fn notes(facts: &[Fact], snapshot: &Snapshot, addrs: &[PciAddr]) -> Vec<String> {
    let mut notes: Vec<String> = Vec::new();
    let gpus = snapshot.gpus().filter(|f| addrs.contains(&f.addr));
    for gpu in gpus {
        for fact in of(facts, gpu) {
            let note = format!("{}: {}", gpu.addr, fact.note);
            if !notes.contains(&note) {
                notes.push(note);
            }
        }
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::base::pci::{PciClass, VENDOR_NVIDIA};
    fn gpu(device: u16) -> Function {
        Function::new(
            "0000:01:00.0".parse().unwrap(),
            VENDOR_NVIDIA,
            device,
            PciClass(0x03_0000),
        )
    }

    #[test]
    fn the_fact_for_the_fewest_ids_comes_first() {
        let mut facts = known();
        assert!(of(&facts, &gpu(0x2204)).is_empty());
        let found = of(&facts, &gpu(0x2b85));
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].reset.as_deref(), Some("bus"));
        facts.push(Fact {
            first: 0x2b85,
            last: 0x2b85,
            note: "mine".to_owned(),
            reset: Some("flr".to_owned()),
            d3cold: None,
        });
        assert_eq!(of(&facts, &gpu(0x2b85))[0].note, "mine");
        assert_eq!(of(&facts, &gpu(0x2b86)).len(), 2);
    }

    #[test]
    fn another_vendors_device_has_none_of_it() {
        let mut other = gpu(0x2b85);
        other.vendor = 0x1002;
        assert!(of(&known(), &other).is_empty());
    }
}
