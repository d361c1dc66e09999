//! The plan from the host to vfio-pci, or every reason why not. Pure.
//!
//! Decided here: what goes, by which way, and whether anything speaks against it. The acts are put in order in
//! [`crate::leave`].

use std::collections::BTreeSet;

use crate::base::pci::{PciAddr, slots};
use crate::base::text::join;
use crate::host::displays::{Framebuffer, Platform};
use crate::host::functions::Function;
use crate::host::modules::Loadable;
use crate::host::snapshot::{Snapshot, card, users_first};
use crate::leave::{steps, taken_from};
use crate::model::plan::{Direction, Plan, Way};
use crate::model::record::{Owner, Record, Taken, found_again};
use crate::model::refusal::{Reason, Refusal};
use crate::settings::known_gpus;
use crate::settings::values::{Doubt, Settings, WayOut};
use crate::uses;

/// The first driver that lets NVKMS and nvidia_drm drop a GPU when it is unbound (nvidia_modeset_remove in
/// open-gpu-kernel-modules 590.44, kernel-open/nvidia/nv-pci.c). Before it, a GPU that nvidia_drm drives is in
/// use for as long as that module is loaded.
const DRM_LETS_GO: [u32; 2] = [590, 44];

/// From this driver on an unbind that meets a user never ends, even when the user does: the GPU is taken off the
/// driver's list before the wait (open-gpu-kernel-modules 595.45.04, kernel-open/nvidia/nv-pci.c; issue 1119).
const ONE_SHOT: [u32; 1] = [595];

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Whose handoff it is.
    pub owner: Owner,
    /// The GPUs' functions.
    pub gpus: &'a [PciAddr],
    /// All functions that the same VM was given: a group may hold more than GPUs.
    pub given: &'a [PciAddr],
}

/// What is looked at before a way is chosen.
pub(crate) struct Ground<'a> {
    pub(crate) snapshot: &'a Snapshot,
    /// Every function that moves.
    set: BTreeSet<PciAddr>,
    /// Those of them that are there.
    pub(crate) functions: Vec<&'a Function>,
    /// Those of them that are not on vfio-pci yet.
    pub(crate) leaving: Vec<&'a Function>,
}

impl<'a> Ground<'a> {
    fn of(snapshot: &'a Snapshot, gpus: &[PciAddr], given: &[PciAddr], earlier: Option<&Record>) -> Self {
        let mut set: BTreeSet<PciAddr> = gpus.iter().flat_map(|gpu| card(snapshot, *gpu)).collect();
        // Proxmox would unbind an NVSwitch itself, without a deadline, and nobody would bring it home. One that an
        // interrupted run has unbound is known by its record.
        let module = |a: &PciAddr| snapshot.function(*a)?.module.as_deref();
        let taken = |a: &PciAddr| earlier?.taken.iter().find(|t| t.addr == *a)?.module.as_deref();
        let is_switch = |a: &&PciAddr| module(a) == Some("nvidia") || taken(a) == Some("nvidia");
        set.extend(given.iter().filter(is_switch));
        let groups: BTreeSet<u32> = set.iter().filter_map(|a| snapshot.function(*a)?.group).collect();
        set.extend(
            groups
                .iter()
                .flat_map(|g| snapshot.group(*g))
                .filter(|f| is_idle_bridge(f))
                .map(|f| f.addr),
        );
        let functions: Vec<&Function> = set.iter().filter_map(|a| snapshot.function(*a)).collect();
        let leaving = functions.iter().copied().filter(|f| !f.is_on_vfio()).collect();
        Ground {
            snapshot,
            set,
            functions,
            leaving,
        }
    }

    pub(crate) fn addrs(&self) -> Vec<PciAddr> {
        self.set.iter().copied().collect()
    }

    fn leaves_nvidia(&self) -> bool {
        self.leaving.iter().any(|f| f.is_on_nvidia())
    }

    /// Whether this is a function that stays on NVIDIA's driver.
    pub(crate) fn stays(&self, addr: Option<PciAddr>) -> bool {
        addr.is_some_and(|a| self.staying().contains(&a))
    }

    /// Functions on NVIDIA's driver that stay there: GPUs, and NVSwitches, whose driver is in the same module.
    pub(crate) fn staying(&self) -> Vec<PciAddr> {
        let on_nvidia = |f: &&Function| f.is_on_nvidia() || f.module.as_deref() == Some("nvidia");
        let on_nvidia = self.snapshot.functions.iter().filter(on_nvidia);
        on_nvidia.map(|f| f.addr).filter(|a| !self.set.contains(a)).collect()
    }

    fn way(&self, settings: &Settings) -> Way {
        if self.leaving.is_empty() {
            Way::AlreadyThere
        } else if !self.leaves_nvidia() {
            Way::Unbind
        } else if settings.way == WayOut::Unload || (settings.way == WayOut::Auto && self.staying().is_empty()) {
            Way::Unload
        } else {
            Way::Unbind
        }
    }

    /// Modules that are unloaded, in that order.
    fn modules(&self, way: Way) -> Vec<String> {
        match way {
            Way::Unload => users_first(self.snapshot, "nvidia"),
            Way::Unbind if self.leaves_nvidia() && drm_holds_gpus(self.snapshot) => {
                users_first(self.snapshot, "nvidia_drm")
            }
            _ => Vec::new(),
        }
    }
}

/// A member of a group that nobody uses and that Proxmox would bind to vfio-pci with the rest: the host bridge that AMD's
/// root complexes show beside their root ports (class 0600, no bus behind it, no driver). It goes along.
fn is_idle_bridge(function: &Function) -> bool {
    function.class.is_host_bridge() && function.driver.is_none() && !function.bridge
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

/// The plan. `records` are all handoffs there are.
///
/// # Errors
/// [`Refusal`] with every reason found.
pub fn plan(snapshot: &Snapshot, wanted: Wanted<'_>, records: &[Record], settings: &Settings) -> Result<Plan, Refusal> {
    let Wanted { owner, gpus, given } = wanted;
    let earlier = records.iter().find(|r| r.owner == owner);
    let ground = Ground::of(snapshot, gpus, given, earlier);
    let addrs = ground.addrs();
    let way = ground.way(settings);
    let modules = ground.modules(way);

    let absent = gpus.iter().filter(|gpu| snapshot.function(**gpu).is_none());
    let mut reasons: Vec<Reason> = absent.map(|gpu| Reason::Absent(*gpu)).collect();
    reasons.extend(removed(snapshot, earlier, &ground));
    reasons.extend(host_reasons(&ground, given));
    reasons.extend(taken_reasons(&ground, owner, records));
    reasons.dedup();
    let judged = judge_holders(&ground, &addrs, settings, &mut reasons);
    reasons.extend(way_reasons(&ground, way));
    if way == Way::Unbind && !modules.is_empty() {
        reasons.extend(uses::drm_needed(snapshot, &ground.set));
    }
    let displays = Displays::of(&ground, &modules);
    if displays.consoles.is_empty() {
        reasons.extend(uses::unaccounted(snapshot, &modules));
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
            known.cloned().unwrap_or_else(|| taken_from(snapshot, f, settings))
        })
        .collect();
    let mut notes = judged.notes.clone();
    notes.extend(way_notes(&ground, way, &modules, earlier));
    notes.extend(displays.note(snapshot));
    notes.extend(known_gpus::notes(&settings.facts, snapshot, &addrs));
    let (steps, awake) = steps(&ground, way, &modules, &judged, &displays, earlier, settings);
    Ok(Plan {
        direction: Direction::Out,
        owner,
        cards: slots(gpus),
        way,
        taken,
        modules: both(earlier.map(|r| &r.modules), modules),
        units: both(earlier.map(|r| &r.units), judged.units),
        consoles: both(earlier.map(|r| &r.consoles), displays.consoles),
        platforms: both(earlier.map(|r| &r.platforms), displays.platforms),
        awake,
        missing: Vec::new(),
        steps,
        notes,
    })
}

/// Functions of the cards that an interrupted way home has removed from the bus: without them only a part of the card
/// would leave, and the way home finds them.
fn removed<'a>(
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
            "{addr} was removed from the bus by a way home that was broken off. Hint: 'gpu-handoff recover' finds it and \
             brings the card home"
        ))
    })
}

/// What an earlier handoff of the same owner has written down, and what is new.
fn both<T: Clone + PartialEq>(earlier: Option<&Vec<T>>, new: Vec<T>) -> Vec<T> {
    let mut all = earlier.cloned().unwrap_or_default();
    for one in new {
        if !all.contains(&one) {
            all.push(one);
        }
    }
    all
}

/// What is drawn on framebuffers that go away: the consoles, which keep a display driver loaded, and the firmware's
/// framebuffer, which nothing but its memory ties to the card.
pub(crate) struct Displays {
    /// Console drivers to take off.
    pub(crate) consoles: Vec<String>,
    /// Firmware framebuffers to detach.
    pub(crate) platforms: Vec<Platform>,
    /// Another framebuffer remains for the consoles to come back on.
    pub(crate) others: bool,
}

impl Displays {
    fn of(ground: &Ground<'_>, modules: &[String]) -> Self {
        let snapshot = ground.snapshot;
        let goes = |fb: &&Framebuffer| {
            let ours = fb
                .of
                .is_some_and(|of| ground.leaving.iter().any(|f| f.addr.slot() == of.slot()));
            // With the module the framebuffers of GPUs that stay go too, for a moment.
            ours || fb.name.starts_with("nvidia") && modules.iter().any(|m| m == "nvidia_drm")
        };
        let going: Vec<&Framebuffer> = snapshot.framebuffers.iter().filter(goes).collect();
        let others = going.len() < snapshot.framebuffers.len() || going.iter().any(|fb| ground.stays(fb.of));
        // A console that is on another card's framebuffer pins nothing, and is left where it is.
        let pinned = !uses::unaccounted(snapshot, modules).is_empty();
        let bound = snapshot.consoles.iter().filter(|c| c.is_framebuffer() && c.bound);
        let consoles = if going.is_empty() || (others && !pinned) {
            Vec::new()
        } else {
            bound.map(|c| c.name.clone()).collect()
        };
        Displays {
            consoles,
            platforms: going.iter().filter_map(|fb| fb.firmware.clone()).collect(),
            others,
        }
    }

    /// Which way in remains, before the last local console goes.
    fn note(&self, snapshot: &Snapshot) -> Option<String> {
        if self.consoles.is_empty() || self.others {
            return None;
        }
        let until = if self.platforms.is_empty() {
            "the local console is dark until the GPU is home"
        } else {
            // vfio-pci has the kernel give up the firmware's framebuffer on the boot display (linux 6.0 and later,
            // drivers/vfio/pci/vfio_pci_core.c, aperture_remove_conflicting_pci_devices).
            "the local console is on the firmware's framebuffer, which a guest destroys: it may be dark until the host \
             boots again"
        };
        let serial = match snapshot.serial.as_slice() {
            [] => "there is no serial console, so SSH is the only way in".to_owned(),
            names => format!("the serial console {} and SSH are the ways in", join(names)),
        };
        Some(format!("{until}; {serial}"))
    }
}

/// What speaks against it whoever uses it: the IOMMU, the groups, how a card is split.
fn host_reasons(ground: &Ground<'_>, given: &[PciAddr]) -> Vec<Reason> {
    let snapshot = ground.snapshot;
    let mut reasons = Vec::new();
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
        if function.stuck {
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

fn taken_reasons(ground: &Ground<'_>, owner: Owner, records: &[Record]) -> Vec<Reason> {
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

/// What becomes of the holders.
#[derive(Default)]
pub(crate) struct Judged {
    /// Units that are stopped for the handoff: the persistence daemon's.
    pub(crate) units: Vec<String>,
    /// Doubtful ones that the settings accept.
    pub(crate) accepted: Vec<i32>,
    /// What is said of these.
    notes: Vec<String>,
}

/// Sorts the holders; the rest are reasons.
fn judge_holders(ground: &Ground<'_>, addrs: &[PciAddr], settings: &Settings, reasons: &mut Vec<Reason>) -> Judged {
    let mut judged = Judged::default();
    for reason in uses::use_of(ground.snapshot, addrs) {
        match &reason {
            Reason::Held { holder, .. } | Reason::Doubtful { holder, .. } if uses::is_persistenced(holder) => {
                if !judged.units.contains(&holder.belongs_to) {
                    judged.units.push(holder.belongs_to.clone());
                }
            }
            Reason::Doubtful { holder, nodes } if settings.doubt == Doubt::GoOn && !is_one_shot(ground.snapshot) => {
                judged.accepted.push(holder.pid);
                judged.notes.push(format!(
                    "process {} has {} open and may use the GPU; 'doubt' is \"go-on\"",
                    holder.pid,
                    join(nodes)
                ));
            }
            _ => reasons.push(reason),
        }
    }
    judged
}

fn way_reasons(ground: &Ground<'_>, way: Way) -> Option<Reason> {
    let staying = ground.staying();
    if way == Way::Unload && !staying.is_empty() {
        return Some(Reason::UnloadAsked { staying });
    }
    let unbinds_nvidia = way == Way::Unbind && ground.leaves_nvidia();
    if !unbinds_nvidia || !is_one_shot(ground.snapshot) {
        return None;
    }
    let version = ground.snapshot.nvidia.as_ref().map(|n| n.version.clone());
    Some(Reason::OneShot {
        version: version.unwrap_or_default(),
        staying: ground.staying(),
    })
}

/// What nobody has asked about counts as missing: a way out without a way home is worse than none.
fn load_reasons(snapshot: &Snapshot, needed: &[String]) -> Vec<Reason> {
    let mut reasons: Vec<(Vec<String>, String)> = Vec::new();
    for name in needed {
        let answer = snapshot.loadable.iter().find(|l| l.name == *name);
        let why = match answer {
            Some(Loadable { problem: None, .. }) => continue,
            Some(Loadable { problem: Some(why), .. }) => why.clone(),
            None => "nobody has asked modprobe".to_owned(),
        };
        // The modules of a driver depend on each other, and fail for the same reason.
        match reasons.iter_mut().find(|(_, w)| *w == why) {
            Some((modules, _)) if name != "vfio_pci" => modules.push(name.clone()),
            _ => reasons.push((vec![name.clone()], why)),
        }
    }
    reasons
        .into_iter()
        .map(|(modules, why)| Reason::CannotLoad { modules, why })
        .collect()
}

fn way_notes(ground: &Ground<'_>, way: Way, modules: &[String], earlier: Option<&Record>) -> Vec<String> {
    let mut notes = Vec::new();
    if way == Way::Unbind && !modules.is_empty() && !ground.staying().is_empty() {
        notes.push(format!(
            "nvidia_drm is reloaded: driver {} lets no GPU go while it is loaded; displays of the GPUs that stay are \
             dark meanwhile",
            ground.snapshot.nvidia.as_ref().map_or("?", |n| n.version.as_str())
        ));
    }
    let ours = |addr: PciAddr| earlier.is_some_and(|r| r.has(addr));
    let there = ground.functions.iter().filter(|f| f.is_on_vfio() && !ours(f.addr));
    let there: Vec<PciAddr> = there.map(|f| f.addr).collect();
    if !there.is_empty() {
        notes.push(format!(
            "already on vfio-pci (by ids= or another setting of the host, or left there): {}; stays there afterwards",
            join(there)
        ));
    }
    notes
}

/// Whether a function is shared in a way that taking it would destroy.
fn split(snapshot: &Snapshot, function: &Function) -> Option<Reason> {
    let addr = function.addr;
    let how = if function.vfs > 0 {
        format!(
            "has virtual functions ({}), which would vanish under whoever uses them. Hint: \
             '/usr/lib/nvidia/sriov-manage -d {addr}' once they are free",
            function.vfs
        )
    } else if let Some(physfn) = function.physfn {
        format!("is a virtual function of {physfn}, not a card. Hint: give vGPUs to a VM with mdev=")
    } else if function.mdevs > 0 {
        format!(
            "has mediated devices, that is vGPUs ({}), which would vanish under whoever uses them. Hint: stop their VMs \
             first",
            function.mdevs
        )
    } else if snapshot.nvidia_gpu(addr).is_some_and(|g| g.mig) {
        format!(
            "is split into MIG instances. Hint: destroy them with 'nvidia-smi mig -i {addr} -dci', then '-dgi', then \
             'nvidia-smi -i {addr} -mig 0'"
        )
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

/// Whether a GPU counts as in use for as long as nvidia_drm is loaded. An unknown version is an old one.
pub(crate) fn drm_holds_gpus(snapshot: &Snapshot) -> bool {
    let Some(driver) = &snapshot.nvidia else {
        return false;
    };
    driver.modeset && snapshot.module("nvidia_drm").is_some() && version(snapshot).as_slice() < DRM_LETS_GO.as_slice()
}

/// The numbers of the driver's version; none where it is not known, which is less than any.
fn version(snapshot: &Snapshot) -> Vec<u32> {
    let version = snapshot.nvidia.as_ref().map_or("", |n| n.version.as_str());
    version.split('.').filter_map(|p| p.parse().ok()).collect()
}

/// Whether an unbind that meets a user would never end.
fn is_one_shot(snapshot: &Snapshot) -> bool {
    version(snapshot).as_slice() >= ONE_SHOT.as_slice()
}
