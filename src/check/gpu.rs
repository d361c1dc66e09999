//! Checks of each GPU: whether it can be given away alone, whether it can be reset, what it is part of.

use crate::base::text::{are, join};
use crate::check::facts::Facts;
use crate::check::finding::{Finding, Looked, fail, info, notice, or_pass, pass, skip, warn};
use crate::host::functions::Function;
use crate::host::nodes::Node;
use crate::settings::known_gpus;
use crate::settings::values::Settings;

/// PCI class of an NVSwitch: a bridge of another kind (NVIDIA's fabric manager documentation; pci.ids, GA100 and GH100
/// "NVSwitch").
const NVSWITCH: u32 = 0x0680;

pub(super) const NONE: &str = "there is no NVIDIA GPU";

/// Asks something of each GPU; where nothing is found, `well` is said of all.
fn each(facts: &Facts, well: &str, look: impl Fn(&Function) -> Vec<Finding>) -> Looked {
    let gpus = facts.gpus();
    if gpus.is_empty() {
        return skip(NONE).into();
    }
    or_pass(gpus.into_iter().flat_map(look).collect(), well)
}

pub(super) fn there(facts: &Facts) -> Looked {
    let gpus = facts.gpus();
    if gpus.is_empty() {
        return fail("there is no NVIDIA GPU on the PCI bus")
            .hint("lspci -nn -d 10de:; a card that has gone comes back with 'echo 1 >/sys/bus/pci/rescan'")
            .into();
    }
    let named: Vec<String> = gpus.iter().map(|gpu| facts.name(gpu)).collect();
    match named.as_slice() {
        [one] => pass(format!("1 NVIDIA GPU: {one}")),
        [first, .., last] if named.len() > 3 => pass(format!("{} NVIDIA GPUs: {first} ... {last}", named.len())),
        few => pass(format!("{} NVIDIA GPUs: {}", few.len(), few.join(", "))),
    }
    .into()
}

pub(super) fn answers(facts: &Facts) -> Looked {
    each(facts, "every GPU answers", |gpu| {
        if gpu.gone {
            let text = format!("{} has fallen off the bus: its config space reads all ones", gpu.addr);
            return vec![
                fail(text).hint("power the host off and on; 'journalctl -k -g \"fallen off\"' tells since when"),
            ];
        }
        if !gpu.asked {
            return vec![Finding::from(crate::check::finding::NotSeen(format!(
                "{} gave no answer in time",
                gpu.addr
            )))];
        }
        Vec::new()
    })
}

pub(super) fn calls(facts: &Facts) -> Looked {
    each(facts, "no call of anybody's is stuck at a GPU", |gpu| {
        let at: Vec<String> = facts
            .snapshot
            .calls_at(gpu.addr)
            .filter(|c| c.lasts)
            .map(|c| format!("process {}", c.pid))
            .collect();
        if at.is_empty() {
            return Vec::new();
        }
        let text = format!("{} {} stuck in a call on {}", at.join(", "), are(at.len()), gpu.addr);
        vec![
            fail(text).hint(
                "'gpu-handoff status' tells what it waits for, 'gpu-handoff recover' lets it end where that is safe",
            ),
        ]
    })
}

pub(super) fn group(facts: &Facts) -> Looked {
    if !facts.snapshot.iommu {
        return skip("the IOMMU is off").into();
    }
    each(facts, "no GPU shares its IOMMU group with another device", |gpu| {
        let card: Vec<_> = facts.card(gpu.addr).iter().map(|f| f.addr).collect();
        let Some(group) = gpu.group else { return Vec::new() };
        let strangers = facts
            .snapshot
            .group(group)
            .filter(|f| !card.contains(&f.addr) && !f.class.is_bridge());
        let strangers: Vec<String> = strangers
            .map(|f| {
                format!(
                    "{} ({}, {})",
                    f.addr,
                    f.class.name(),
                    f.driver.as_deref().unwrap_or("no driver")
                )
            })
            .collect();
        if strangers.is_empty() {
            return Vec::new();
        }
        let text = format!(
            "IOMMU group {group} of {} has {} in it, which would have to go along",
            gpu.addr,
            strangers.join(", ")
        );
        vec![fail(text).hint(
            "put the card into another slot, one that hangs off the processor; a firmware setting 'ACS' or 'ARI' may \
             split the group",
        )]
    })
}

pub(super) fn functions(facts: &Facts) -> Looked {
    each(facts, "every function of every card has its driver", |gpu| {
        let card = facts.card(gpu.addr);
        let lent = gpu.is_on_vfio();
        let bare = card
            .iter()
            .filter(|f| f.addr != gpu.addr && f.driver.is_none() && !lent && !f.bridge);
        bare.map(|f| {
            notice(format!(
                "{} ({}) of that card has no driver on the host",
                f.addr,
                f.class.name()
            ))
            .hint("none is needed: it goes along, and comes home to none")
        })
        .collect()
    })
}

pub(super) fn reset(facts: &Facts) -> Looked {
    each(facts, "every GPU can be reset", |gpu| {
        if gpu.reset_methods.is_empty() && !gpu.stuck {
            let text = format!(
                "{} cannot be reset by the kernel: a guest leaves it as it was",
                gpu.addr
            );
            return vec![
                warn(text)
                    .at(format!("/sys/bus/pci/devices/{}/reset_method", gpu.addr), None)
                    .hint("after a guest that crashed the host may need a power cycle"),
            ];
        }
        Vec::new()
    })
}

pub(super) fn known(facts: &Facts) -> Looked {
    let shipped = Settings::default().facts;
    let known = facts.settings.as_ref().map_or(&shipped, |s| &s.facts);
    each(
        facts,
        "nothing is known of these models that a handoff has to mind",
        |gpu| {
            let of_it = known_gpus::of(known, gpu).into_iter();
            of_it
                .map(|fact| notice(format!("{}: {}", gpu.addr, fact.note)))
                .collect()
        },
    )
}

pub(super) fn sriov(facts: &Facts) -> Looked {
    each(facts, "no GPU is split into virtual functions or vGPUs", |gpu| {
        if gpu.vfs > 0 {
            let text = format!(
                "{} has {} virtual functions: it is never handed over as a whole",
                gpu.addr, gpu.vfs
            );
            let file = format!("/sys/bus/pci/devices/{}/sriov_numvfs", gpu.addr);
            let hint = format!("echo 0 >{file}, once no VM has one of them");
            return vec![fail(text).at(file, None).hint(hint)];
        }
        if gpu.mdevs > 0 {
            let text = format!(
                "{} has {} mediated device{}: it is never handed over as a whole",
                gpu.addr,
                gpu.mdevs,
                if gpu.mdevs == 1 { "" } else { "s" }
            );
            return vec![fail(text).hint(format!(
                "ls /sys/bus/pci/devices/{}; write 1 to the 'remove' of each",
                gpu.addr
            ))];
        }
        Vec::new()
    })
}

pub(super) fn mig(facts: &Facts) -> Looked {
    each(facts, "no GPU is split into MIG instances", |gpu| {
        match facts.snapshot.nvidia_gpu(gpu.addr).is_some_and(|g| g.mig) {
            false => Vec::new(),
            true => vec![
                fail(format!(
                    "{} is split into MIG instances: it is never handed over",
                    gpu.addr
                ))
                .hint(format!(
                    "nvidia-smi mig -i {0} -dci; nvidia-smi mig -i {0} -dgi",
                    gpu.addr
                )),
            ],
        }
    })
}

pub(super) fn nvlink(facts: &Facts) -> Looked {
    let is_switch = |f: &&Function| f.vendor == crate::base::pci::VENDOR_NVIDIA && f.class.0 >> 8 == NVSWITCH;
    let switches: Vec<_> = facts
        .snapshot
        .functions
        .iter()
        .filter(is_switch)
        .map(|f| f.addr)
        .collect();
    if switches.is_empty() {
        return pass("there is no NVSwitch: each GPU stands alone").into();
    }
    notice(format!(
        "{} NVSwitches join the GPUs: the fabric manager serves all of them, and each handoff has \
                the fabric set up anew",
        switches.len()
    ))
    .hint("lend them in the sets that the fabric has, or all at once")
    .into()
}

pub(super) fn usb(facts: &Facts) -> Looked {
    each(facts, "nothing is in use below a card's USB controller", |gpu| {
        let card: Vec<_> = facts.card(gpu.addr).iter().map(|f| f.addr).collect();
        let reasons = crate::plan::users::usb_below(&facts.snapshot, &card);
        reasons.map(|reason| warn(reason.fact())).collect()
    })
}

pub(super) fn ucsi(facts: &Facts) -> Looked {
    each(facts, "no card has a USB-C controller that the host drives", |gpu| {
        let card = facts.card(gpu.addr);
        let driven = card.iter().filter(|f| f.driver.as_deref() == Some("nvidia-gpu"));
        driven
            .map(|f| {
                info(format!(
                    "{} is driven by i2c_nvidia_gpu, whose unbind was seen to take minutes \
                (system76-power issue 71)",
                    f.addr
                ))
                .hint(
                    "where it does, 'blacklist i2c_nvidia_gpu' in /etc/modprobe.d: only USB-C displays \
                of the host's need it",
                )
            })
            .collect()
    })
}

pub(super) fn framebuffer(facts: &Facts) -> Looked {
    each(facts, "no firmware's framebuffer lies in a GPU's memory", |gpu| {
        let its = facts
            .snapshot
            .framebuffers
            .iter()
            .filter(|f| f.of == Some(gpu.addr) && f.firmware.is_some());
        its.map(|f| {
            let text = format!(
                "{} has the firmware's framebuffer fb{} ({}): a handoff takes it off, and nothing gives it back",
                gpu.addr,
                f.number,
                crate::base::text::foreign(&f.name)
            );
            notice(text)
                .hint("with 'options nvidia_drm modeset=1 fbdev=1' the driver's own takes its place, and comes home")
        })
        .collect()
    })
}

pub(super) fn overridden(facts: &Facts) -> Looked {
    each(
        facts,
        "no function has a driver_override that nobody has on record",
        |gpu| {
            let card = facts.card(gpu.addr);
            let is_recorded = facts.records.iter().any(|r| r.has(gpu.addr));
            let set = card.into_iter().filter(|f| f.driver_override.is_some() && !is_recorded);
            set.map(|f| {
                let name = crate::base::text::foreign(f.driver_override.as_deref().unwrap_or_default());
                let file = format!("/sys/bus/pci/devices/{}/driver_override", f.addr);
                let hint = format!("echo >{file}");
                warn(format!(
                    "{} has a driver_override to '{name}' that no handoff has set",
                    f.addr
                ))
                .at(file, None)
                .hint(hint)
            })
            .collect()
        },
    )
}

pub(super) fn stranded(facts: &Facts) -> Looked {
    each(facts, "no GPU is on vfio-pci without somebody who has it", |gpu| {
        let is_its = |node: &Node| {
            let of_group = gpu.group.is_some_and(|group| *node == Node::VfioGroup(group));
            of_group || *node == Node::VfioDevice(gpu.addr)
        };
        let runs = facts.snapshot.holders.iter().any(|h| h.nodes.iter().any(is_its));
        let recorded = facts.records.iter().any(|r| r.has(gpu.addr));
        if !gpu.is_on_vfio() || runs || recorded {
            return Vec::new();
        }
        let text = format!(
            "{} is on vfio-pci, no VM runs with it, and no handoff has it on record",
            gpu.addr
        );
        let hint = format!(
            "'gpu-handoff to_nvidia --gpu {}'; if it is there again after a boot, see the check 'vfio-ids'",
            gpu.addr
        );
        vec![warn(text).hint(hint)]
    })
}

/// An id that was given to vfio-pci while it ran cannot be read back (linux, drivers/pci/pci-driver.c, new_id_store): a GPU
/// that is on vfio-pci, by no override and no line, was taken by one.
pub(super) fn new_id(facts: &Facts) -> Looked {
    let by_line = !crate::check::lines::found(facts, "vfio-ids")?.is_empty();
    each(facts, "no GPU was drawn to vfio-pci by a leftover new_id", |gpu| {
        let recorded = facts.records.iter().any(|r| r.has(gpu.addr));
        if !gpu.is_on_vfio() || gpu.driver_override.is_some() || by_line || recorded || !gpu.asked {
            return Vec::new();
        }
        let id = format!("{:04x} {:04x}", gpu.vendor, gpu.device);
        let text = format!(
            "{} is on vfio-pci by no driver_override and no line: an id was written to new_id, which draws every card \
             of its model, or the initramfs has a line that the host has no more",
            gpu.addr
        );
        vec![warn(text).hint(format!("echo '{id}' >/sys/bus/pci/drivers/vfio-pci/remove_id"))]
    })
}

pub(super) fn users(facts: &Facts) -> Looked {
    use crate::plan::clients::Then;
    let mut found = Vec::new();
    for user in &facts.users {
        let who = format!(
            "{} (pid {})",
            crate::base::text::foreign(&user.holder.comm),
            user.holder.pid
        );
        let of = user.holder.belongs_to.to_string();
        let of = if of.is_empty() {
            String::new()
        } else {
            format!(" of {of}")
        };
        let nodes = join(&user.nodes);
        found.push(match user.then {
            Then::Stopped => info(format!(
                "{who}{of} uses {nodes}: its service is stopped for a handoff, and started again"
            )),
            Then::LetsGo => info(format!(
                "{who}{of} uses {nodes}: a handoff has it let go, and it runs on"
            )),
            Then::Ended => info(format!("{who}{of} uses {nodes}: a handoff asks it to end")),
            Then::Killed => notice(format!(
                "{who}{of} uses {nodes}: a handoff asks it to end, and kills it where it does not"
            )),
            Then::Accepted => info(format!(
                "{who}{of} has {nodes} open, maybe for another GPU: the settings take the risk"
            )),
            Then::InTheWay => warn(format!("{who}{of} uses {nodes}: a handoff is refused while it does")).hint(
                "'gpu-handoff holders' tells what stops it; the settings 'services', 'containers' and 'processes' can",
            ),
        });
    }
    found.extend(facts.other_users.iter().map(|reason| warn(reason.fact())));
    or_pass(found, "nobody uses a GPU now")
}
