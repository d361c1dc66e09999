//! What speaks against a way out: the host, the IOMMU groups, the driver, the modules.

use std::collections::BTreeSet;

use crate::base::pci::PciAddr;
use crate::base::text::join;
use crate::host::functions::Function;
use crate::host::modules::Problem;
use crate::host::snapshot::Snapshot;
use crate::model::plan::Way;
use crate::model::record::{Beside, Owner, Record, found_again};
use crate::model::refusal::{Reason, Split};
use crate::plan::moving::Ground;
use crate::plan::vendor::nvidia::is_one_shot;

/// Functions of the cards that are not on the bus and that a way home was to find again: without them only a part of the
/// card would leave.
pub(crate) fn removed<'a>(
    snapshot: &'a Snapshot,
    earlier: Option<&'a Record>,
    ground: &'a Ground<'_>,
) -> impl Iterator<Item = Reason> + 'a {
    let of_a_card = |a: &PciAddr| ground.set.iter().any(|f| f.slot() == a.slot());
    let taken = earlier
        .into_iter()
        .flat_map(|r| r.taken.iter().map(move |t| (r, t.addr)));
    let lost = taken.filter(|(record, a)| snapshot.function(*a).is_none() && found_again(record, *a).is_some());
    lost.map(|(_, addr)| addr).filter(of_a_card).map(|addr| {
        Reason::Other(format!(
            "{addr} is not on the bus, and a way home that was to find it again was broken off or did not find it. Hint: \
             'gpu-handoff recover' looks for it and brings the card home"
        ))
    })
}

/// What speaks against it whoever uses it: the IOMMU, the groups, how a card is split.
pub(crate) fn host_reasons(ground: &Ground<'_>, given: &[PciAddr]) -> Vec<Reason> {
    let snapshot = ground.snapshot;
    let mut reasons: Vec<Reason> = silent(ground.functions.iter().copied()).into_iter().collect();
    if !snapshot.iommu {
        reasons.push(Reason::IommuOff);
    }
    let mut said = BTreeSet::new();
    for function in &ground.functions {
        if function.physfn.is_some() {
            // A part of a card; what else could be said is the card's.
            reasons.extend(split(snapshot, function));
            continue;
        }
        let strangers = group_reasons(snapshot, function, &ground.set, given);
        // Each stranger once, not once for every function of the card.
        reasons.extend(strangers.into_iter().filter(|reason| match reason {
            Reason::Stranger { stranger, .. } => said.insert(*stranger),
            _ => true,
        }));
        // Who is at it is named elsewhere, where that is known.
        if function.stuck && snapshot.calls_at(function.addr).next().is_none() {
            reasons.push(Reason::Stuck(function.addr));
        }
        if function.gone {
            reasons.push(Reason::Gone(function.addr));
        }
        reasons.extend(split(snapshot, function));
        if function.noiommu {
            reasons.push(Reason::NoIommuGroup(function.addr));
        }
    }
    reasons
}

/// What speaks against taking the driver off what stays on it, for a moment.
pub(crate) fn beside_reasons(snapshot: &Snapshot, beside: &[Beside]) -> Vec<Reason> {
    let functions = || beside.iter().filter_map(|b| snapshot.function(b.addr));
    let mut reasons: Vec<Reason> = silent(functions()).into_iter().collect();
    if !beside.is_empty() && !functions().any(Function::is_nvidia_gpu) {
        reasons.push(Reason::Other(format!(
            "{} would stay on the driver, which is unloaded and does not load again without a GPU. Hint: give the VM {} as \
             well",
            join(beside.iter().map(|b| b.addr)),
            if beside.len() == 1 { "that" } else { "those" }
        )));
    }
    for function in functions() {
        if function.stuck && snapshot.calls_at(function.addr).next().is_none() {
            reasons.push(Reason::Stuck(function.addr));
        }
        reasons.extend(function.gone.then_some(Reason::Gone(function.addr)));
        reasons.extend(split(snapshot, function));
        let sound = function.addr.sound();
        if snapshot.function(sound).is_some_and(Function::is_on_vfio) {
            reasons.push(Reason::Other(format!(
                "the driver would be loaded again for {}, which stays on it, and take {sound} for a sound card, which is on \
                 vfio-pci: the kernel may oops (open-gpu-kernel-modules issue 1365). Hint: leave {sound} to snd_hda_intel or \
                 to no driver: see 'ids=' of vfio-pci in /etc/modprobe.d",
                function.addr
            )));
        }
    }
    reasons
}

/// That the kernel gave no answer about some of these: what was not read is not taken for what is not there.
pub(crate) fn silent<'a>(functions: impl Iterator<Item = &'a Function>) -> Option<Reason> {
    let unread = functions.filter(|f| !f.asked && !f.stuck);
    let addrs: Vec<PciAddr> = unread.map(|f| f.addr).collect();
    (!addrs.is_empty()).then_some(Reason::Silent(addrs))
}

/// That somebody is at work on what a record speaks of. Nothing else that is seen meanwhile is worth saying: it is not so
/// any more when that is over.
pub(crate) fn at_work(record: &Record) -> Option<Reason> {
    let at_work = record.at_work.as_ref()?;
    let addrs = record.functions();
    let acts = record.acts_at_work();
    Some(match &at_work.run {
        Some(run) => Reason::AtWork {
            addrs,
            run: format!("{run}, at {acts}"),
        },
        None => Reason::LeftAtWork {
            addrs,
            what: format!("{acts}, in process group {}", join(&record.workers)),
        },
    })
}

/// Functions that another handoff has taken.
pub(crate) fn taken_reasons(ground: &Ground<'_>, owner: Owner, records: &[Record]) -> Vec<Reason> {
    let others = || records.iter().filter(|r| r.owner != owner);
    let by_other = |addr: &PciAddr| {
        let record = others().find(|r| r.has(*addr))?;
        Some(Reason::Taken {
            addr: *addr,
            owner: record.owner,
        })
    };
    ground.set.iter().filter_map(by_other).collect()
}

/// What speaks against the way and not against the devices: an unload under GPUs that stay, an unbind that a user would
/// hold up for ever. `others`: what speaks against it so far, of which it is said why those that stay matter.
pub(crate) fn way_reasons(ground: &Ground<'_>, way: Way, others: &[Reason]) -> Option<Reason> {
    let staying = ground.staying();
    let is_one_shot = is_one_shot(ground.snapshot);
    let version = || ground.snapshot.nvidia_version().to_owned();
    let is_by_user = |reason: &Reason| matches!(reason, Reason::Held { .. } | Reason::Doubtful { .. });
    match way {
        Way::Unload if staying.is_empty() => None,
        Way::Unload if !is_one_shot => Some(Reason::UnloadAsked { staying }),
        Way::Unload => others.iter().any(is_by_user).then(|| Reason::Reloaded {
            version: version(),
            staying,
        }),
        _ => (way == Way::Unbind && ground.leaves_nvidia() && is_one_shot)
            .then(|| Reason::OneShot { version: version() }),
    }
}

/// What nobody has asked about counts as missing: a way out without a way home is worse than none.
pub(crate) fn load_reasons(snapshot: &Snapshot, needed: &[String]) -> Vec<Reason> {
    let mut reasons: Vec<(Vec<String>, Problem)> = Vec::new();
    for name in needed {
        let answer = snapshot.loadable.iter().find(|l| l.name == *name);
        let problem = answer.map_or(Some(Problem::NotAsked), |l| l.problem.clone());
        let Some(why) = problem else { continue };
        // The modules of a driver depend on each other, and fail for the same reason: what reads the same is said once.
        let said = why.to_string();
        match reasons.iter_mut().find(|(_, w)| w.to_string() == said) {
            Some((modules, _)) if name != "vfio_pci" => modules.push(name.clone()),
            _ => reasons.push((vec![name.clone()], why)),
        }
    }
    reasons
        .into_iter()
        .map(|(modules, why)| Reason::CannotLoad { modules, why })
        .collect()
}

/// Whether a function is shared in a way that taking it would destroy.
fn split(snapshot: &Snapshot, function: &Function) -> Option<Reason> {
    let addr = function.addr;
    let how = if function.vfs > 0 {
        Split::IntoVirtualFunctions(function.vfs)
    } else if let Some(physfn) = function.physfn {
        Split::VirtualFunctionOf(physfn)
    } else if function.mdevs > 0 {
        Split::IntoMediatedDevices(function.mdevs)
    } else if snapshot.nvidia_gpu(addr).is_some_and(|g| g.mig) {
        Split::Mig
    } else {
        return None;
    };
    Some(Reason::Split { addr, how })
}

/// What speaks against the group of a function.
fn group_reasons(snapshot: &Snapshot, function: &Function, set: &BTreeSet<PciAddr>, given: &[PciAddr]) -> Vec<Reason> {
    let Some(group) = function.group else {
        // Without an IOMMU no function has a group; that is said once.
        return if snapshot.iommu {
            vec![Reason::NoGroup(function.addr)]
        } else {
            Vec::new()
        };
    };
    snapshot
        .group(group)
        .filter(|member| !set.contains(&member.addr) && !given.contains(&member.addr))
        .map(|member| Reason::Stranger {
            of: function.addr,
            stranger: member.addr,
            driver: member.driver.clone(),
            group,
        })
        .collect()
}
