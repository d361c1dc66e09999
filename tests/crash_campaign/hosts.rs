//! The hosts of the campaign, and what is asked of each: those of tests/hosts, and those that are made here.

use std::collections::BTreeSet;
use std::sync::Arc;

use gpu_handoff::base::pci::PciAddr;
use gpu_handoff::host::displays::{Framebuffer, Platform};
use gpu_handoff::host::functions::VFIO_PCI;
use gpu_handoff::host::nodes::Node;
use gpu_handoff::host::units::{Client, Unit};
use gpu_handoff::model::plan::{Plan, Way};
use gpu_handoff::model::record::Owner;
use gpu_handoff::settings::values::{Containers, DisplayManager, HaContainers, Processes, Services, Settings, WayOut};

use crate::asked::{Answer, Host, Kind, folders, requests};
use crate::common::hosts::{
    FABRICMANAGER, MPS, OLLAMA, POWERD, WEBUI, add_card, add_consoles, add_dcgm, add_desktop, add_given, add_inside,
    add_of_ha, add_of_user, add_ollama, add_persistenced, add_run, add_socket, add_started, add_webui, add_whole,
    add_whole_of, of_user,
};
use crate::common::{Generation, MemLedger, Model, Process, Session, addr, host};
use crate::convert::model_of;
use crate::order;

/// A host and a request that leads to a plan.
pub struct Trip {
    pub name: String,
    pub model: Model,
    pub session: Session,
    /// One card and few acts: where everything is tried that grows with the square of them.
    pub small: bool,
    /// What a kill beside a call that hangs leads to is tried as well.
    pub beside_hangs: bool,
    /// And what comes of a file system that is full, from each moment on.
    pub full: bool,
}

impl Trip {
    fn new(name: &str, mut model: Model, session: Session) -> Self {
        let plan = session.plan_out(&mut model).unwrap_or_else(|e| panic!("{name}: {e}"));
        model.laws.may_touch = Some(may_touch(&model, &plan));
        model.laws.original = Some(model.state());
        // An override that the host had is put back last, which the rules take for one that keeps others off.
        let plain = plan.taken.iter().all(|t| t.driver_override.is_none());
        model.laws.order = plain.then_some(order::broken);
        model.ledger = Some(Arc::new(MemLedger::default()));
        Trip {
            name: name.to_owned(),
            model,
            session,
            small: false,
            beside_hangs: false,
            full: false,
        }
    }

    fn small(mut self) -> Self {
        self.small = true;
        self.beside_hangs()
    }

    fn beside_hangs(mut self) -> Self {
        self.beside_hangs = true;
        self
    }

    fn full(mut self) -> Self {
        self.full = true;
        self
    }
}

/// What a plan takes, and the bridges above.
fn may_touch(model: &Model, plan: &Plan) -> BTreeSet<PciAddr> {
    let mut set: BTreeSet<PciAddr> = plan.taken.iter().map(|t| t.addr).collect();
    let mut above: Vec<PciAddr> = set.iter().copied().collect();
    while let Some(addr) = above.pop() {
        let parent = model.device(addr).and_then(|d| d.parent);
        above.extend(parent.filter(|p| set.insert(*p)));
    }
    set
}

/// Every plan out of tests/hosts, without and with the persistence daemon on the GPUs.
pub fn of_the_folders() -> Vec<Trip> {
    let mut trips = Vec::new();
    for folder in folders() {
        let host = Host::of(&folder).unwrap();
        let name = folder.file_name().unwrap().display().to_string();
        for request in requests(&folder).unwrap().iter().filter(|r| r.kind == Kind::Plan) {
            let Ok(answer) = host.answer(request) else { continue };
            let Some(Ok(plan)) = &answer.outcome else { continue };
            let name = format!("{name}, {}", request.command);
            let session = session_of(&answer, plan);
            let model = model_of(&answer.snapshot);
            assert_same_plan(&name, &session, &model, plan);
            let mut with_daemon = model.clone();
            trips.push(Trip::new(&name, model, session.clone()));
            if plan.way != Way::AlreadyThere && answer.snapshot.nvidia.is_some() {
                add_persistenced(&mut with_daemon);
                let trip = Trip::new(&format!("{name}, with the persistence daemon"), with_daemon, session);
                trips.push(trip);
            }
        }
    }
    trips
}

fn session_of(answer: &Answer, plan: &Plan) -> Session {
    Session {
        owner: plan.owner,
        gpus: answer.given.gpus.clone(),
        given: answer.given.functions.iter().copied().collect(),
        settings: answer.settings.clone(),
        starting: None,
    }
}

/// The model is a likeness of the host only where the same is planned on it.
fn assert_same_plan(name: &str, session: &Session, model: &Model, plan: &Plan) {
    let on_the_model = session
        .plan_out(&mut model.fork())
        .unwrap_or_else(|e| panic!("{name}: {e}"));
    let text = |plan: &Plan| -> Vec<String> { plan.steps.iter().map(|s| s.act.to_string()).collect() };
    assert_eq!(text(&on_the_model), text(plan), "{name}");
    assert_eq!(on_the_model.modules, plan.modules, "{name}");
}

/// Hosts that differ from each other in one thing each.
pub fn made_here() -> Vec<Trip> {
    let one = || Session::new(&[addr(1, 0)]);
    let mut trips = vec![
        Trip::new("one card", host(1), one()).small().full(),
        Trip::new("one of two", host(2), Session::new(&[addr(2, 0)]))
            .small()
            .full(),
        Trip::new("both of two", host(2), Session::new(&[addr(1, 0), addr(2, 0)])).beside_hangs(),
        Trip::new("one card of four functions", wide(1), one()).small(),
        Trip::new(
            "two cards of four functions",
            wide(2),
            Session::new(&[addr(1, 0), addr(2, 0)]),
        ),
    ];
    for cards in [1, 2] {
        let mut model = host(cards);
        model.processes.push(Process {
            ending: true,
            ..Process::guest(950, 200, 99)
        });
        model.processes.push(Process {
            unreadable: true,
            ..Process::new(951, &[])
        });
        let name = format!("another VM's QEMU that is ending and a process that cannot be read, {cards}");
        trips.push(Trip::new(&name, model, one()).small());
    }
    let unbind = |version: &str, cards| {
        let mut model = host(cards);
        version.clone_into(&mut model.version);
        let mut session = one();
        session.settings.way = WayOut::Unbind;
        Trip::new(&format!("unbound from {version}, {cards}"), model, session)
    };
    trips.push(unbind("580.95.05", 1).small());
    trips.push(unbind("590.48.01", 1));
    trips.push(unbind("590.48.01", 2));
    let mut newest = host(1);
    newest.version = "595.45.04".to_owned();
    trips.push(Trip::new("driver 595", newest, one()));
    for cards in [1, 2] {
        let mut model = host(cards);
        add_consoles(&mut model, true);
        add_persistenced(&mut model);
        trips.push(Trip::new(&format!("console and daemon, {cards}"), model, one()).small());
    }
    for (cards, gpus) in [(1, vec![1]), (2, vec![1])] {
        let mut model = host(cards);
        add_persistenced(&mut model);
        add_ollama(&mut model);
        let mut session = Session::new(&gpus.iter().map(|bus| addr(*bus, 0)).collect::<Vec<_>>());
        session.settings.services = Services::Also(vec![OLLAMA.to_owned()]);
        model.processes.push(Process {
            deaf: true,
            ..Process::at_a_prompt(900, &[Node::Gpu(addr(1, 0))])
        });
        session.settings.processes = Processes::Kill;
        trips.push(Trip::new(&format!("a service, the daemon and a process, {cards}"), model, session).small());
    }
    let mut model = host(1);
    add_inside(&mut model);
    add_given(&mut model, "104");
    let mut session = one();
    session.settings.containers = Containers::Release;
    trips.push(Trip::new("a service inside a container", model, session).small());
    for (version, cards) in [("580.95.05", 1), ("595.45.04", 2)] {
        let mut model = host(cards);
        version.clone_into(&mut model.version);
        add_given(&mut model, "104");
        add_given(&mut model, "105");
        trips.push(Trip::new(&format!("two containers that run on, {cards}"), model, one()));
    }
    let mut model = host(1);
    for ctid in ["105", "106"] {
        add_whole_of(&mut model, ctid);
    }
    let mut session = one();
    session.settings.containers = Containers::Shutdown;
    trips.push(Trip::new("two containers as wholes", model, session));
    let mut model = host(1);
    add_inside(&mut model);
    add_whole(&mut model);
    let mut session = one();
    session.settings.containers = Containers::Shutdown;
    trips.push(Trip::new("a container as a whole", model, session).small());
    for client in [Client::Docker, Client::Podman] {
        let mut model = host(1);
        add_run(&mut model, client);
        let mut session = one();
        session.settings.containers = Containers::Release;
        trips.push(Trip::new(&format!("a container of {client:?}'s"), model, session));
    }
    let mut model = host(1);
    add_desktop(&mut model);
    let mut session = one();
    session.settings.display_manager = DisplayManager::Stop;
    trips.push(Trip::new("a desktop", model, session));
    let mut model = host(1);
    add_ollama(&mut model);
    add_socket(&mut model);
    let mut session = one();
    session.settings.services = Services::Also(vec![OLLAMA.to_owned()]);
    trips.push(Trip::new("a service with its socket", model, session).small());
    let mut model = host(1);
    add_of_user(&mut model);
    let mut session = one();
    session.settings.services = Services::Also(of_user().word().into_iter().collect());
    trips.push(Trip::new("a service of a user", model, session).small());
    for (cards, can_let_go) in [(1, true), (2, true), (1, false)] {
        let mut model = host(cards);
        model.version = "590.48.01".to_owned();
        add_dcgm(&mut model, can_let_go);
        let name = format!("DCGM, {cards}, lets go: {can_let_go}");
        let trip = Trip::new(&name, model, one());
        trips.push(if can_let_go { trip.small() } else { trip });
    }
    for generation in [Generation::K6_1, Generation::K7_2] {
        let mut model = host(1);
        model.generation = generation;
        trips.push(Trip::new(&format!("{generation:?}"), model, one()));
    }
    let by_hand = Session {
        owner: Owner::ByHand(addr(1, 0)),
        ..one()
    };
    trips.push(Trip::new("by hand", host(1), by_hand).small());
    trips.extend(users_by_either_way());
    trips.extend(odd_ones());
    trips
}

/// Users of the only card, who are stopped or ended before the driver is unloaded, or the card unbound from it.
fn users_by_either_way() -> Vec<Trip> {
    let trip = |name: &str, way, add: &dyn Fn(&mut Model), allow: &dyn Fn(&mut Settings)| {
        let (mut model, mut session) = (host(1), Session::new(&[addr(1, 0)]));
        add(&mut model);
        allow(&mut session.settings);
        session.settings.way = way;
        Trip::new(&format!("{name}, {way:?}"), model, session)
    };
    let also = |names: &[&str]| Services::Also(names.iter().map(|name| (*name).to_owned()).collect());
    let (unload, unbind) = (WayOut::Unload, WayOut::Unbind);
    let by_ha = |way| {
        trip("a container that HA manages", way, &add_of_ha, &|settings| {
            settings.containers = Containers::Shutdown;
            settings.ha_containers = HaContainers::Stop;
        })
    };
    let own = |way| {
        let add = |model: &mut Model| {
            for unit in [POWERD, FABRICMANAGER, MPS] {
                add_started(model, &Unit::host(unit));
            }
        };
        let allow = |settings: &mut Settings| settings.services = also(&[MPS]);
        trip("NVIDIA's own services, and MPS", way, &add, &allow)
    };
    let needed = |way| {
        let allow = |settings: &mut Settings| settings.services = also(&[WEBUI, OLLAMA]);
        trip("two services, of which one needs the other", way, &add_webui, &allow)
    };
    let asked_to_end = |way| {
        let process = Process::at_a_prompt(900, &[Node::Gpu(addr(1, 0))]);
        let add = |model: &mut Model| model.processes.push(process.clone());
        let allow = |settings: &mut Settings| settings.processes = Processes::Terminate;
        trip("a process that ends when asked", way, &add, &allow)
    };
    let release = |settings: &mut Settings| settings.containers = Containers::Release;
    let stop_desktop = |settings: &mut Settings| settings.display_manager = DisplayManager::Stop;
    vec![
        by_ha(unload).small(),
        by_ha(unbind),
        own(unload),
        own(unbind),
        needed(unload),
        needed(unbind).small(),
        asked_to_end(unload),
        asked_to_end(unbind),
        trip("a service inside a container", unbind, &add_inside, &release),
        trip(
            "a container of Docker's",
            unbind,
            &|model| add_run(model, Client::Docker),
            &release,
        ),
        trip("a desktop", unbind, &add_desktop, &stop_desktop),
    ]
}

/// Hosts on which somebody has set something.
fn odd_ones() -> Vec<Trip> {
    let one = || Session::new(&[addr(1, 0)]);
    let mut trips = Vec::new();
    let mut sleepy = wide(1);
    for device in &mut sleepy.devices {
        device.power = "auto";
        device.sleeps = device.addr.function > 0;
    }
    trips.push(Trip::new("a card that sleeps", sleepy, one()).small());
    let mut blackwell = Model::new(Generation::K6_12);
    add_card(&mut blackwell, 1, 0x2b85, 1);
    blackwell.settle_on(addr(1, 0), "nvidia");
    trips.push(Trip::new("attributes that are changed", blackwell, one()));
    let mut overridden = host(1);
    for (function, driver) in [(0, "nvidia"), (1, "snd_hda_intel")] {
        overridden.device_mut(addr(1, function)).unwrap().driver_override = Some(driver.to_owned());
    }
    trips.push(Trip::new("overrides of the host's own", overridden, one()));
    let mut set_aside = host(1);
    set_aside.set_aside(addr(1, 1));
    trips.push(Trip::new("a function without a driver", set_aside, one()));
    let mut one_aside = host(2);
    one_aside.set_aside(addr(2, 0));
    let both = Session::new(&[addr(1, 0), addr(2, 0)]);
    trips.push(Trip::new("a GPU without a driver", one_aside, both));
    let mut by_ids = host(1);
    let audio = by_ids.device_mut(addr(1, 1)).unwrap();
    (audio.driver, audio.link) = (None, false);
    let ids = (audio.vendor, audio.device);
    by_ids.vfio_ids.push(ids);
    by_ids.settle_on(addr(1, 1), VFIO_PCI);
    trips.push(Trip::new("audio on vfio-pci already", by_ids, one()));
    let mut nouveau = Model::new(Generation::K6_12);
    add_card(&mut nouveau, 1, 0x128b, 2);
    nouveau.settle_on(addr(1, 0), "nouveau");
    nouveau.settle_on(addr(1, 1), "snd_hda_intel");
    trips.push(Trip::new("nouveau", nouveau, one()));
    let mut firmware = host(1);
    firmware.modeset = false;
    firmware.drm.clear();
    add_consoles(&mut firmware, true);
    let framebuffer = Framebuffer {
        number: 0,
        name: "EFI VGA".to_owned(),
        of: Some(addr(1, 0)),
        firmware: Some(Platform {
            device: "efi-framebuffer.0".to_owned(),
            driver: "efi-framebuffer".to_owned(),
        }),
    };
    firmware.firmware = Some((framebuffer, true));
    trips.push(Trip::new("the firmware's framebuffer", firmware, one()));
    trips
}

/// Cards of four functions each.
fn wide(cards: u8) -> Model {
    let mut model = Model::new(Generation::K6_12);
    for bus in 1..=cards {
        add_card(&mut model, bus, 0x2204, 4);
        for (function, driver) in (0..).zip(["nvidia", "snd_hda_intel", "xhci_hcd", "nvidia-gpu"]) {
            model.settle_on(addr(bus, function), driver);
        }
    }
    model.loaded_since_boot("nvidia_uvm");
    model.loaded_since_boot("nvidia_drm");
    model
}
