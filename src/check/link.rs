//! Checks of how a GPU is connected: its memory regions, its link, its power.

use crate::check::facts::Facts;
use crate::check::finding::{Finding, Looked, info, notice, or_pass, pass, skip, warn};
use crate::check::gpu::NONE;
use crate::host::functions::Function;

/// What a GPU's frame buffer is seen through where Resizable BAR is off, bytes (PCI-SIG, "Resizable BAR", in its absence
/// NVIDIA's boards ask for 256 MiB).
const WINDOW: u64 = 256 << 20;

/// The size below which no region is a GPU's window, bytes: its registers take 16 MiB.
const REGISTERS: u64 = 64 << 20;

fn each(facts: &Facts, well: &str, look: impl Fn(&Function) -> Option<Finding>) -> Looked {
    let gpus = facts.gpus();
    if gpus.is_empty() {
        return skip(NONE).into();
    }
    or_pass(gpus.into_iter().filter_map(look).collect(), well)
}

fn largest(gpu: &Function) -> u64 {
    gpu.regions
        .iter()
        .map(|(start, end)| end - start + 1)
        .max()
        .unwrap_or(0)
}

pub(super) fn assigned(facts: &Facts) -> Looked {
    each(facts, "every GPU's memory regions have their addresses", |gpu| {
        (largest(gpu) < REGISTERS && !gpu.stuck).then(|| {
            warn(format!(
                "{} has no window to its memory: the firmware has given it no address",
                gpu.addr
            ))
            .at(format!("/sys/bus/pci/devices/{}/resource", gpu.addr), None)
            .hint("turn on 'Above 4G decoding' in the firmware's setup")
        })
    })
}

pub(super) fn rebar(facts: &Facts) -> Looked {
    each(
        facts,
        "every GPU's memory is in reach as a whole, or nearly (Resizable BAR)",
        |gpu| {
            (largest(gpu) == WINDOW).then(|| {
                notice(format!(
                    "{}'s memory is in reach through 256 MiB at a time: Resizable BAR is off",
                    gpu.addr
                ))
                .hint(
                    "turn on 'Above 4G decoding' and 'Resizable BAR' in the firmware's setup; a guest sees \
                it as it was at boot",
                )
            })
        },
    )
}

pub(super) fn width(facts: &Facts) -> Looked {
    let gpus = facts.gpus();
    if gpus.iter().all(|g| g.width.is_none() || g.max_width.is_none()) && !gpus.is_empty() {
        return skip("no GPU says how wide its link is").into();
    }
    each(facts, "every GPU's link is as wide as the card", |gpu| {
        let (now, most) = (gpu.width?, gpu.max_width?);
        (now < most && now > 0).then(|| {
            warn(format!("{}'s link has {now} lanes of {most}", gpu.addr)).hint(
                "a slot may have no more; if it had at boot, only a power cycle brings them back (seen after resets)",
            )
        })
    })
}

pub(super) fn speed(facts: &Facts) -> Looked {
    let gpus = facts.gpus();
    let known: Vec<&&Function> = gpus.iter().filter(|g| !g.max_speed.is_empty()).collect();
    if known.is_empty() {
        return skip(if gpus.is_empty() {
            NONE
        } else {
            "no GPU says how fast its link is"
        })
        .into();
    }
    let lines = known.iter().map(|gpu| {
        let (now, most) = (&gpu.speed, &gpu.max_speed);
        match now == most {
            true => pass(format!("{}'s link runs at {now}", gpu.addr)),
            false => info(format!(
                "{}'s link runs at {now} of {most}: it is slower while the GPU idles",
                gpu.addr
            )),
        }
    });
    Ok(lines.collect())
}

pub(super) fn power(facts: &Facts) -> Looked {
    each(facts, "every GPU is awake", |gpu| {
        if gpu.power != "suspended" {
            return None;
        }
        let may = if gpu.d3cold { ", and its power may be cut" } else { "" };
        Some(
            notice(format!(
                "{} sleeps{may}: a handoff wakes it, and keeps it awake while it moves",
                gpu.addr
            ))
            .at(format!("/sys/bus/pci/devices/{}/power/runtime_status", gpu.addr), None),
        )
    })
}
