//! The plan from the host to vfio-pci, or every reason why not. Pure.
//!
//! Decided here: what goes, by which way, and whether anything speaks against it. The acts are put in order in
//! `out_steps`.

use crate::base::pci::{PciAddr, slots};
use crate::base::text::join;
use crate::host::functions::Function;
use crate::host::snapshot::Snapshot;
use crate::model::plan::{Direction, Plan, Way};
use crate::model::record::{Owner, Record, Taken};
use crate::model::refusal::{Reason, Refusal};
use crate::plan::clients::judge_holders;
use crate::plan::consoles::Displays;
use crate::plan::hangs;
use crate::plan::moving::Ground;
use crate::plan::obstacles::{
    at_work, beside_reasons, host_reasons, load_reasons, removed, taken_reasons, way_reasons,
};
use crate::plan::out_steps::WayOut;
use crate::plan::owners;
use crate::plan::steps::{both, both_units};
use crate::plan::taken::{recorded_override, taken_from};
use crate::plan::unseen;
use crate::settings::known_gpus;
use crate::settings::values::Settings;

/// What a way out is asked for: for whom, and which devices.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Who takes them: what the handoff is on record as, and what an interrupted run is continued for.
    pub owner: Owner,
    /// The display functions of the GPUs; the rest of each card goes along.
    pub gpus: &'a [PciAddr],
    /// All functions that the same VM was given: a group may hold more than GPUs.
    pub given: &'a [PciAddr],
}

/// The modules that a way out for these GPUs depends on: those that come back at home, and vfio_pci. Whether they can be
/// loaded has to be asked ([`crate::host::modules`]) before [`plan`] is.
pub fn needed(snapshot: &Snapshot, gpus: &[PciAddr], given: &[PciAddr], settings: &Settings) -> Vec<String> {
    let ground = Ground::of(snapshot, gpus, given, None);
    let mut names = ground.modules(ground.way(settings));
    if !ground.leaving.is_empty() && !snapshot.vfio_pci {
        names.push("vfio_pci".to_owned());
    }
    names
}

/// The functions whose details [`plan`] needs: those that would move, and those that are without their driver meanwhile.
pub fn moving(snapshot: &Snapshot, wanted: Wanted<'_>, records: &[Record], settings: &Settings) -> Vec<PciAddr> {
    let earlier = records.iter().find(|r| r.owner == wanted.owner);
    let ground = Ground::of(snapshot, wanted.gpus, wanted.given, earlier);
    let mut addrs = ground.addrs();
    addrs.extend(ground.beside(ground.way(settings)).iter().map(|b| b.addr));
    addrs
}

/// The plan. `records` are all handoffs there are; the functions that move have their details in the snapshot
/// ([`moving`]).
///
/// # Errors
/// [`Refusal`] with every reason found.
pub fn plan(snapshot: &Snapshot, wanted: Wanted<'_>, records: &[Record], settings: &Settings) -> Result<Plan, Refusal> {
    let Wanted { owner, gpus, given } = wanted;
    let earlier = records.iter().find(|r| r.owner == owner);
    let ground = Ground::of(snapshot, gpus, given, earlier);
    let moves = owners::slots_of(&ground.addrs());
    let concerned = records
        .iter()
        .filter(|r| r.owner == owner || !owners::concerned(snapshot, r, &moves).is_empty());
    let at_work: Vec<Reason> = concerned.filter_map(at_work).collect();
    if !at_work.is_empty() {
        return Err(Refusal(at_work));
    }
    let addrs = ground.addrs();
    let way = ground.way(settings);
    let modules = ground.modules(way);
    let mut beside = ground.beside(way);
    for one in &mut beside {
        if let Some(own) = recorded_override(records, one.addr) {
            one.driver_override.clone_from(own);
        }
    }

    let absent = gpus.iter().filter(|gpu| snapshot.function(**gpu).is_none());
    let mut reasons: Vec<Reason> = absent.map(|gpu| Reason::Absent(*gpu)).collect();
    reasons.extend(removed(snapshot, earlier, &ground));
    // The unload of a driver goes through every device that it has.
    let unloaded = modules.iter().any(|m| m == "nvidia").then_some("nvidia");
    reasons.extend(hangs::on_the_way_out(snapshot, &addrs, unloaded));
    reasons.extend(host_reasons(&ground, given));
    reasons.extend(beside_reasons(snapshot, &beside));
    reasons.extend(taken_reasons(&ground, owner, records));
    reasons.dedup();
    let judged = judge_holders(&ground, &beside, way, settings, &mut reasons);
    reasons.extend(way_reasons(&ground, way, &reasons));
    let displays = Displays::of(&ground, &modules, |h| judged.lets_go(h));
    if displays.consoles.is_empty() {
        reasons.extend(unseen::unaccounted(snapshot, &modules, |h| judged.lets_go(h)));
    }
    reasons.extend(load_reasons(snapshot, &needed(snapshot, gpus, given, settings)));
    if !reasons.is_empty() {
        return Err(Refusal(reasons));
    }

    let taken: Vec<Taken> = ground
        .functions
        .iter()
        .map(|f| {
            let known = earlier.and_then(|r| r.taken.iter().find(|t| t.addr == f.addr));
            known
                .cloned()
                .unwrap_or_else(|| taken_from(snapshot, f, records, settings))
        })
        .collect();
    let mut notes = judged.notes.clone();
    notes.extend(way_notes(&ground, way, &modules, earlier));
    notes.extend(displays.note(snapshot));
    notes.extend(known_gpus::notes(&settings.facts, snapshot, &addrs));
    let decided = WayOut {
        ground: &ground,
        way,
        taken: &taken,
        beside: &beside,
        modules: &modules,
        judged: &judged,
        displays: &displays,
        earlier,
        settings,
    };
    let (steps, awake) = decided.steps();
    Ok(Plan {
        direction: Direction::Out,
        owner,
        cards: slots(gpus),
        way,
        taken,
        beside,
        modules: both(earlier.map(|r| &r.modules), &modules),
        units: both_units(earlier.map(|r| &r.units), &judged.units),
        again: judged.again.clone(),
        consoles: both(earlier.map(|r| &r.consoles), &displays.consoles),
        platforms: both(earlier.map(|r| &r.platforms), &displays.platforms),
        numbers: ground.numbers(),
        awake,
        missing: Vec::new(),
        steps,
        notes,
    })
}

/// What becomes of those that stay on a driver that is unloaded and loaded again.
fn reload_note(ground: &Ground<'_>, way: Way) -> Option<String> {
    let reloaded = ground.staying();
    if way != Way::Unload || reloaded.is_empty() {
        return None;
    }
    let version = match ground.snapshot.nvidia_version() {
        "" => "of unknown version",
        version => version,
    };
    let (stays, are, its) = match reloaded.len() {
        1 => ("stays", "is", "its"),
        _ => ("stay", "are", "their"),
    };
    Some(format!(
        "driver {version} is unloaded and loaded again, since its unbind may never end; {}, which {stays} on it, {are} \
         without it meanwhile, {its} displays dark, and what nvidia-smi has set there is gone; the numbers of /dev/nvidiaN \
         may be others afterwards",
        join(&reloaded)
    ))
}

/// What an earlier handoff of the same owner has written down, and what is new.
fn way_notes(ground: &Ground<'_>, way: Way, modules: &[String], earlier: Option<&Record>) -> Vec<String> {
    let mut notes = Vec::new();
    if way == Way::Unbind && !modules.is_empty() && !ground.staying().is_empty() {
        notes.push(format!(
            "nvidia_drm is reloaded: driver {} lets no GPU go while it is loaded; displays of the GPUs that stay are \
             dark meanwhile",
            ground.snapshot.nvidia.as_ref().map_or("?", |n| n.version.as_str())
        ));
    }
    notes.extend(reload_note(ground, way));
    let ours = |addr: PciAddr| earlier.is_some_and(|r| r.has(addr));
    let there = ground.functions.iter().filter(|f| f.is_on_vfio() && !ours(f.addr));
    let there: Vec<PciAddr> = there.map(|f| f.addr).collect();
    if !there.is_empty() {
        notes.push(format!(
            "already on vfio-pci (by ids= or another setting of the host, or left there): {}; stays there afterwards",
            join(&there)
        ));
    }
    // To take it off and give it back would not change that: it is on vfio-pci whenever the GPU is at home.
    let is_sound_of = |gpu: &Function| there.iter().any(|a| a.slot() == gpu.addr.slot() && a.function == 1);
    let gpus = ground.leaving.iter().filter(|f| f.is_on_nvidia() && is_sound_of(f));
    notes.extend(gpus.map(|gpu| {
        format!(
            "NVIDIA's driver takes function 1 of {} for a sound card, whatever driver has it, and on vfio-pci the kernel may \
             oops while the GPU is at home (open-gpu-kernel-modules issue 1365). Hint: leave it to snd_hda_intel or to no \
             driver: see 'ids=' of vfio-pci in /etc/modprobe.d",
            gpu.addr.slot()
        )
    }));
    notes
}
