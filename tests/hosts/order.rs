//! The order of a plan as a table of rules: what comes before what, and why.

use gpu_handoff::base::pci::PciAddr;
use gpu_handoff::host::functions::VFIO_PCI;
use gpu_handoff::host::snapshot::Snapshot;
use gpu_handoff::model::act::{Act, Attribute};
use gpu_handoff::model::plan::{Direction, Plan, Step};

/// Wherever an act is an `earlier` one and another a `later` one for it, the earlier one comes first.
pub struct Rule {
    pub direction: Direction,
    /// Why, in words.
    pub why: &'static str,
    earlier: fn(&Act) -> bool,
    later: fn(&Act, &Act) -> bool,
}

fn is_unload(act: &Act, module: fn(&str) -> bool) -> bool {
    matches!(act, Act::UnloadModule { name } if module(name))
}

fn is_load(act: &Act, module: fn(&str) -> bool) -> bool {
    matches!(act, Act::LoadModule { name } if module(name))
}

/// The function that is bound to vfio-pci, if this act does so.
fn to_vfio(act: &Act) -> Option<PciAddr> {
    match act {
        Act::Probe { addr, driver } if driver.as_deref() == Some(VFIO_PCI) => Some(*addr),
        _ => None,
    }
}

/// The function that is bound to a driver of the host.
fn to_host(act: &Act) -> Option<PciAddr> {
    match act {
        Act::Probe { addr, driver } if driver.as_deref() != Some(VFIO_PCI) => Some(*addr),
        _ => None,
    }
}

fn unbound(act: &Act) -> Option<PciAddr> {
    match act {
        Act::Unbind { addr, .. } => Some(*addr),
        _ => None,
    }
}

fn overridden(act: &Act) -> Option<PciAddr> {
    match act {
        Act::SetOverride { addr, driver: Some(_) } => Some(*addr),
        _ => None,
    }
}

fn cleared(act: &Act) -> Option<PciAddr> {
    match act {
        Act::SetOverride { addr, driver: None } => Some(*addr),
        _ => None,
    }
}

fn same(a: Option<PciAddr>, b: Option<PciAddr>) -> bool {
    a.is_some() && a == b
}

/// `of` is function 0 of the card that the other one is a further function of.
fn is_first_of(of: Option<PciAddr>, other: Option<PciAddr>) -> bool {
    matches!((of, other), (Some(a), Some(b)) if a.slot() == b.slot() && a.function == 0 && b.function > 0)
}

fn of_gpu(name: &str) -> bool {
    name.starts_with("nvidia")
}

fn beside_the_driver(name: &str) -> bool {
    name.starts_with("nvidia_")
}

fn the_driver(name: &str) -> bool {
    name == "nvidia"
}

fn set_while_away(act: &Act) -> Option<PciAddr> {
    match act {
        Act::SetAttribute { addr, attribute, .. } if *attribute != Attribute::Power => Some(*addr),
        _ => None,
    }
}

fn kept_awake(act: &Act) -> bool {
    matches!(act, Act::SetAttribute { attribute: Attribute::Power, value, .. } if value == "on")
}

fn lets_go(act: &Act) -> bool {
    unbound(act).is_some() || is_unload(act, of_gpu)
}

const OUT: Direction = Direction::Out;
const HOME: Direction = Direction::Home;

fn is_proof(act: &Act) -> bool {
    matches!(act, Act::ProveFree { .. })
}

/// A row: direction, why, the earlier act, the later one for it.
type Row = (Direction, &'static str, fn(&Act) -> bool, fn(&Act, &Act) -> bool);

const ROWS: &[Row] = &[
    (
        OUT,
        "vfio-pci is there before anything is bound to it",
        |a| is_load(a, |n| n == "vfio_pci"),
        |_, b| to_vfio(b).is_some(),
    ),
    (
        OUT,
        "the persistence daemon lets go before anything is taken",
        |a| matches!(a, Act::StopUnit { .. }),
        |_, b| lets_go(b),
    ),
    (
        OUT,
        "the console leaves before what draws it",
        |a| matches!(a, Act::SetConsole { bound: false, .. }),
        |_, b| lets_go(b),
    ),
    (
        OUT,
        "the firmware's framebuffer leaves before its card",
        |a| matches!(a, Act::SetPlatform { bound: false, .. }),
        |_, b| lets_go(b),
    ),
    (OUT, "nothing sleeps while it is moved", kept_awake, |_, b| {
        lets_go(b) || to_vfio(b).is_some()
    }),
    (
        OUT,
        "the override keeps others off before a function is let go",
        |a| overridden(a).is_some(),
        |a, b| same(overridden(a), unbound(b)),
    ),
    (
        OUT,
        "the override keeps a module that comes back off the card",
        |a| overridden(a).is_some(),
        |_, b| is_unload(b, of_gpu),
    ),
    (
        OUT,
        "functions 1 to 3 work only while function 0 is awake: they leave first",
        |a| unbound(a).is_some(),
        |a, b| is_first_of(unbound(b), unbound(a)),
    ),
    (
        OUT,
        "functions 1 to 3 leave before the driver of function 0 is unloaded",
        |a| unbound(a).is_some_and(|a| a.function > 0),
        |_, b| is_unload(b, the_driver),
    ),
    (
        OUT,
        "a module's users are unloaded before it",
        |a| is_unload(a, beside_the_driver),
        |_, b| is_unload(b, the_driver),
    ),
    (
        OUT,
        "nvidia_drm uses nvidia_modeset",
        |a| is_unload(a, |n| n == "nvidia_drm"),
        |_, b| is_unload(b, |n| n == "nvidia_modeset"),
    ),
    (
        OUT,
        "what is unbound is bound again after it",
        |a| unbound(a).is_some(),
        |a, b| same(unbound(a), to_vfio(b)),
    ),
    (
        OUT,
        "nothing is bound to vfio-pci before its driver is gone",
        |a| is_unload(a, the_driver),
        |_, b| to_vfio(b).is_some(),
    ),
    (
        OUT,
        "a guest finds the attributes set",
        |a| set_while_away(a).is_some(),
        |a, b| same(set_while_away(a), to_vfio(b)),
    ),
    (
        OUT,
        "the override is cleared when it has done its work",
        |a| to_vfio(a).is_some(),
        |a, b| same(to_vfio(a), cleared(b)),
    ),
    (
        OUT,
        "what is stopped lets go by its own descriptors: the gate is shut after it",
        |a| matches!(a, Act::StopUnit { .. } | Act::SetConsole { bound: false, .. }),
        |_, b| matches!(b, Act::ShutGate { .. }),
    ),
    (
        OUT,
        "nobody comes between the look and the act: the gate is shut before the look",
        |a| matches!(a, Act::ShutGate { .. }),
        |_, b| is_proof(b) || lets_go(b),
    ),
    (
        OUT,
        "nobody comes in the place of who is asked to end: the gate is shut before",
        |a| matches!(a, Act::ShutGate { .. }),
        |_, b| matches!(b, Act::EndProcesses { .. }),
    ),
    (
        OUT,
        "the gate is open again when nothing is let go any more, and before services start",
        |a| lets_go(a) || matches!(a, Act::OpenGate { .. }),
        |a, b| match a {
            Act::OpenGate { .. } => matches!(b, Act::StartUnit { .. }),
            _ => matches!(b, Act::OpenGate { .. }),
        },
    ),
    (
        HOME,
        "no guest comes between the look and the act: the gate is shut before the look",
        |a| matches!(a, Act::ShutGate { .. }),
        |_, b| is_proof(b) || unbound(b).is_some(),
    ),
    (
        HOME,
        "the gate is open again when nothing is let go any more, and before services and our own look",
        |a| unbound(a).is_some() || matches!(a, Act::OpenGate { .. }),
        |a, b| match a {
            Act::OpenGate { .. } => matches!(b, Act::RestartUnit { .. } | Act::StartUnit { .. } | Act::Verify { .. }),
            _ => matches!(b, Act::OpenGate { .. }),
        },
    ),
    (
        HOME,
        "the override names the driver before the function is let go",
        |a| overridden(a).is_some(),
        |a, b| same(overridden(a), unbound(b)),
    ),
    (
        HOME,
        "functions 1 to 3 leave vfio-pci before NVIDIA's driver can take function 0",
        |a| unbound(a).is_some_and(|a| a.function > 0),
        |a, b| is_first_of(to_host(b), unbound(a)) || is_first_of(unbound(b), unbound(a)),
    ),
    (
        HOME,
        "functions 1 to 3 work only while function 0 is awake: they come home after it",
        |a| to_host(a).is_some(),
        |a, b| is_first_of(to_host(a), to_host(b)),
    ),
    (HOME, "nothing sleeps while it is moved", kept_awake, |_, b| {
        unbound(b).is_some() || to_host(b).is_some()
    }),
    (
        HOME,
        "nvidia_drm before 590 takes only the GPUs that are there when it is loaded",
        |a| to_host(a).is_some_and(|a| a.function == 0),
        |_, b| is_load(b, beside_the_driver),
    ),
    (
        HOME,
        "the override is cleared when it has done its work",
        |a| to_host(a).is_some(),
        |a, b| same(to_host(a), cleared(b)),
    ),
    (
        HOME,
        "the console comes back when its framebuffer is there",
        |a| is_load(a, |n| n == "nvidia_drm"),
        |_, b| matches!(b, Act::SetConsole { bound: true, .. }),
    ),
    (
        HOME,
        "the persistence daemon starts when all its GPUs are there",
        |a| to_host(a).is_some() || is_load(a, of_gpu),
        |_, b| matches!(b, Act::RestartUnit { .. }),
    ),
    (
        HOME,
        "what containers see of the driver is right when all of it is there, and before services inside start",
        |a| to_host(a).is_some() || is_load(a, of_gpu) || matches!(a, Act::RenewNodes { .. }),
        |a, b| match a {
            Act::RenewNodes { .. } => matches!(b, Act::RestartUnit { .. } | Act::StartUnit { .. }),
            _ => matches!(b, Act::RenewNodes { .. }),
        },
    ),
    (
        HOME,
        "whether the GPU works is seen before services take their time",
        |a| matches!(a, Act::Verify { .. }),
        |_, b| matches!(b, Act::RestartUnit { .. }),
    ),
];

/// The rules.
pub fn rules() -> impl Iterator<Item = Rule> {
    ROWS.iter().map(|&(direction, why, earlier, later)| Rule {
        direction,
        why,
        earlier,
        later,
    })
}

impl Rule {
    /// The pairs of steps that the rule is about, earlier one first.
    pub fn pairs(&self, steps: &[Step]) -> Vec<(usize, usize)> {
        let mut pairs = Vec::new();
        for (n, a) in steps.iter().enumerate().filter(|(_, s)| (self.earlier)(&s.act)) {
            let later = steps.iter().enumerate().filter(|(_, b)| (self.later)(&a.act, &b.act));
            pairs.extend(later.map(|(m, _)| (n, m)).filter(|(n, m)| n != m));
        }
        pairs
    }

    /// Whether a list of steps keeps it.
    pub fn is_kept(&self, steps: &[Step]) -> bool {
        self.pairs(steps).iter().all(|(earlier, later)| earlier < later)
    }
}

/// Each unbind has a proof of the same function right before it.
pub fn is_proven(steps: &[Step]) -> bool {
    let proof = |n: usize| n.checked_sub(1).and_then(|n| steps.get(n)).map(|s| &s.act);
    steps.iter().enumerate().all(|(n, step)| match &step.act {
        Act::Unbind { addr, .. } => matches!(proof(n), Some(Act::ProveFree { addrs, .. }) if addrs.contains(addr)),
        _ => true,
    })
}

/// Each gate that is shut is opened, and each function is let go behind one, where there is one at all.
pub fn is_gated(steps: &[Step]) -> bool {
    let shut = steps.iter().find_map(|s| match &s.act {
        Act::ShutGate { addrs, .. } => Some(addrs),
        _ => None,
    });
    let opened = steps.iter().find_map(|s| match &s.act {
        Act::OpenGate { addrs } => Some(addrs),
        _ => None,
    });
    let all_behind = |addrs: &Vec<PciAddr>| steps.iter().filter_map(|s| unbound(&s.act)).all(|a| addrs.contains(&a));
    shut == opened && shut.is_none_or(all_behind)
}

/// What a plan breaks, in words.
pub fn broken(plan: &Plan) -> Vec<&'static str> {
    let of_plan = rules().filter(|r| r.direction == plan.direction);
    let mut broken: Vec<&str> = of_plan.filter(|r| !r.is_kept(&plan.steps)).map(|r| r.why).collect();
    if !is_proven(&plan.steps) {
        broken.push("nothing is unbound without a proof right before it");
    }
    if !is_gated(&plan.steps) {
        broken.push("what is let go is behind the gate, which is opened again");
    }
    broken
}

/// The persistence daemon on a host's GPUs, which no tree of files can show: a descriptor needs a device node; and a container
/// that runs on.
pub fn with_persistenced(mut snapshot: Snapshot) -> Snapshot {
    use gpu_handoff::host::belongs::Belongs;
    use gpu_handoff::host::holders::Holder;
    use gpu_handoff::host::nodes::Node;
    use gpu_handoff::host::units::{Facts, Said, Unit};
    let nodes: Vec<Node> = snapshot
        .gpus()
        .filter(|f| f.is_on_nvidia())
        .map(|f| Node::Gpu(f.addr))
        .collect();
    if !nodes.is_empty() {
        snapshot.containers.push("104".parse().unwrap());
        snapshot.holders.push(Holder {
            pid: 900,
            comm: "nvidia-persiste".to_owned(),
            belongs_to: Belongs::Unit("nvidia-persistenced.service".to_owned()),
            nodes,
        });
        snapshot.units.push(Facts {
            unit: Unit::host("nvidia-persistenced.service"),
            said: Ok(Said {
                state: "active".to_owned(),
                ..Said::default()
            }),
        });
    }
    snapshot
}

/// The same host with a process of a login session on every GPU.
pub fn with_a_user(mut snapshot: Snapshot) -> Snapshot {
    use gpu_handoff::host::belongs::Belongs;
    use gpu_handoff::host::holders::Holder;
    use gpu_handoff::host::nodes::Node;
    let on_nvidia = snapshot.gpus().filter(|f| f.is_on_nvidia());
    let nodes: Vec<Node> = on_nvidia.map(|f| Node::Gpu(f.addr)).collect();
    if !nodes.is_empty() {
        snapshot.holders.push(Holder {
            pid: 901,
            comm: "python3".to_owned(),
            belongs_to: Belongs::Session { id: "3".to_owned() },
            nodes,
        });
    }
    snapshot
}
