//! Random hosts, requests and mishaps.

use std::collections::BTreeSet;
use std::time::Duration;

use gpu_handoff::base::pci::PciAddr;
use gpu_handoff::host::displays::{Framebuffer, Platform};
use gpu_handoff::host::nodes::Node;
use gpu_handoff::host::units as unit;
use gpu_handoff::settings::reset::Reset;
use gpu_handoff::settings::values::{Containers, DisplayManager, Doubt, Gate, Processes, Services, Settings, WayOut};
use proptest::prelude::*;
use proptest::sample::select;

use crate::common::hosts::{
    OLLAMA, PERSISTENCED, add_card, add_consoles, add_dcgm, add_desktop, add_given, add_inside, add_of_user,
    add_ollama, add_persistenced, add_run, add_socket, add_whole, of_user,
};
use crate::common::state::Unit;
use crate::common::{Device, Event, Fault, Generation, Model, ProbeFault, Process, Session, Twist, When, addr};

/// Where a function is when it all begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// On the driver it has on this host.
    Own,
    /// On vfio-pci by its parameter `ids`.
    Vfio,
    None,
}

#[derive(Clone, Debug)]
pub struct Card {
    pub device: u16,
    /// Function 0 first.
    pub functions: Vec<Start>,
    /// GPU and the others: an override of their own driver, or of vfio-pci.
    pub driver_override: Option<&'static str>,
    /// Its functions may sleep.
    pub auto: bool,
    pub group: Group,
}

/// What an IOMMU group has besides the card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    Own,
    WithTheNextCard,
    WithAStranger,
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    Gpu,
    /// nvidiactl, uvm, modeset or caps, and whether it really uses a GPU through it.
    Control(bool),
    Uvm(bool),
    Modeset,
    Caps,
    Drm,
    Sound,
    /// The GPU, through a descriptor that no table shows.
    Hidden,
    /// A guest holds the card's group.
    Guest,
    Unreadable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stays {
    ForEver,
    LetsGo(u64),
    /// It is ending from the beginning, and gone later.
    Ending(u64),
    /// It comes before the Nth act, and lets go later.
    Comes(usize, u64),
}

#[derive(Clone, Debug)]
pub struct Holder {
    pub holds: Holds,
    /// Which card, modulo how many there are.
    pub card: usize,
    pub stays: Stays,
    /// It is of a login session, and whether it ends when it is asked to.
    pub at_a_prompt: Option<bool>,
}

/// Somebody who uses all GPUs and could be stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Other {
    /// A service inside a container.
    Inside,
    /// The same, and something else in that container.
    Whole,
    /// A container of Docker's.
    Docker,
    /// A container of Podman's.
    Podman,
    /// The display manager.
    Desktop,
    /// A service that a socket starts again whenever it is used.
    Socket,
    /// A service of a user's systemd.
    OfUser,
    /// DCGM, and whether its program can have it let go of the driver.
    Dcgm(bool),
}

const OTHERS: [Other; 9] = [
    Other::Inside,
    Other::Whole,
    Other::Docker,
    Other::Podman,
    Other::Desktop,
    Other::Socket,
    Other::OfUser,
    Other::Dcgm(true),
    Other::Dcgm(false),
];

/// A host, what is asked of it, and what goes wrong.
#[derive(Clone, Debug)]
pub struct World {
    pub cards: Vec<Card>,
    /// The GPUs' own driver is nouveau.
    pub nouveau: bool,
    pub generation: Generation,
    pub version: &'static str,
    pub modeset: bool,
    /// nvidia_drm, nvidia_uvm, nvidia_peermem and vfio_pci are loaded.
    pub loaded: [bool; 4],
    pub persistenced: bool,
    /// A service uses all GPUs, and whether the setting `services` names it.
    pub service: Option<bool>,
    /// Somebody else who could be stopped does, and whether he may be.
    pub other: Option<(Other, bool)>,
    /// None: no console; else whether it is on a framebuffer.
    pub console: Option<bool>,
    /// The firmware's framebuffer lies on this card.
    pub firmware: Option<usize>,
    pub broken: Option<&'static str>,
    pub holders: Vec<Holder>,
    pub way: WayOut,
    pub doubt: Doubt,
    pub processes: Processes,
    pub gate: Gate,
    /// The kernel has none, whatever the settings ask for.
    pub no_gate: bool,
    pub reset: u8,
    /// Which cards are asked for; none of those there are: the first.
    pub wanted: u16,
    pub probe_fault: Option<(&'static str, ProbeFault)>,
    /// udev loads a module before this act.
    pub udev: Option<(usize, &'static str)>,
    /// Writing the record fails the Nth time; or from then on, on the way home as well.
    pub unwritten: Option<(usize, bool)>,
    /// The Nth act of the way out, and of the way home, goes wrong.
    pub out: Option<(usize, Fault)>,
    pub home: Option<(usize, Fault)>,
    /// The VM runs for a while between the two.
    pub guest: bool,
    /// Nobody calls again for the VM, and another one starts on its GPUs.
    pub another: bool,
}

fn card() -> impl Strategy<Value = Card> {
    let gpu = prop_oneof![
        12 => Just(Start::Own),
        2 => Just(Start::Vfio),
        1 => Just(Start::None)
    ];
    let other = prop_oneof![8 => Just(Start::Own), 1 => Just(Start::Vfio), 1 => Just(Start::None)];
    let functions = (gpu, prop::collection::vec(other, 0..=3)).prop_map(|(gpu, mut others)| {
        others.insert(0, gpu);
        others
    });
    let group = prop_oneof![
        40 => Just(Group::Own),
        2 => Just(Group::WithTheNextCard),
        1 => Just(Group::WithAStranger),
        1 => Just(Group::None)
    ];
    let driver_override = prop_oneof![12 => Just(None), 1 => Just(Some("own")), 1 => Just(Some("vfio-pci"))];
    let device = select(vec![0x2204, 0x2204, 0x2684, 0x2b85, 0x2330]);
    (device, functions, driver_override, prop::bool::weighted(0.2), group).prop_map(
        |(device, functions, driver_override, auto, group)| Card {
            device,
            functions,
            driver_override,
            auto,
            group,
        },
    )
}

fn cards() -> impl Strategy<Value = Vec<Card>> {
    prop_oneof![
        8 => prop::collection::vec(card(), 1..=2),
        4 => prop::collection::vec(card(), 3..=5),
        1 => prop::collection::vec(card(), 6..=16)
    ]
}

fn holder() -> impl Strategy<Value = Holder> {
    let holds = select(vec![
        Holds::Gpu,
        Holds::Gpu,
        Holds::Control(false),
        Holds::Control(true),
        Holds::Uvm(false),
        Holds::Uvm(true),
        Holds::Modeset,
        Holds::Caps,
        Holds::Drm,
        Holds::Sound,
        Holds::Hidden,
        Holds::Guest,
        Holds::Unreadable,
    ]);
    let stays = prop_oneof![
        2 => Just(Stays::ForEver),
        4 => (0_u64..20_000).prop_map(Stays::LetsGo),
        2 => (0_u64..20_000).prop_map(Stays::Ending),
        3 => (0_usize..40, 0_u64..5_000).prop_map(|(at, time)| Stays::Comes(at, time))
    ];
    let at_a_prompt = prop::option::weighted(0.4, prop::bool::weighted(0.7));
    (holds, 0_usize..16, stays, at_a_prompt).prop_map(|(holds, card, stays, at_a_prompt)| Holder {
        holds,
        card,
        stays,
        at_a_prompt,
    })
}

fn mishap() -> impl Strategy<Value = Option<(usize, Fault)>> {
    let twist = select(vec![
        Fault::Twisted(Twist::Hangs),
        Fault::Twisted(Twist::HangsAtTheEnd),
        Fault::Twisted(Twist::Takes(Duration::from_secs(3))),
        Fault::Twisted(Twist::Takes(Duration::from_secs(120))),
    ]);
    let fault = prop_oneof![
        3 => select(vec![Fault::Fails, Fault::FailsAfterwards]),
        2 => twist,
        3 => select(vec![Fault::KilledBefore, Fault::KilledIn, Fault::KilledAfter]),
        1 => Just(Fault::Signal),
        1 => select(vec![Fault::Vanishes, Fault::Dies])
    ];
    let at = prop_oneof![5 => 0_usize..16, 2 => 16_usize..64, 1 => 64_usize..300];
    prop::option::weighted(0.4, (at, fault))
}

/// All of it.
pub fn worlds() -> impl Strategy<Value = World> {
    let host = (
        (cards(), prop::bool::weighted(0.15)),
        select(vec![Generation::K6_1, Generation::K6_12, Generation::K7_2]),
        select(vec!["470.256.02", "580.95.05", "580.105.08", "590.44.01", "595.45.04"]),
        any::<bool>(),
        any::<[bool; 4]>(),
        (
            prop::bool::weighted(0.3),
            prop::option::weighted(0.2, prop::bool::weighted(0.8)),
            prop::option::weighted(0.25, (select(OTHERS.to_vec()), prop::bool::weighted(0.8))),
        ),
        prop::option::of(any::<bool>()),
        prop::option::weighted(0.1, 0_usize..16),
        prop::option::weighted(0.05, select(vec!["nvidia", "nvidia_drm", "vfio_pci"])),
        prop_oneof![3 => Just(Vec::new()), 2 => prop::collection::vec(holder(), 1..=2)],
    );
    let settings = (
        select(vec![WayOut::Auto, WayOut::Auto, WayOut::Unbind, WayOut::Unload]),
        select(vec![Doubt::Refuse, Doubt::GoOn]),
        select(vec![Processes::Refuse, Processes::Terminate, Processes::Kill]),
        (
            select(vec![Gate::Auto, Gate::Auto, Gate::Off]),
            prop::bool::weighted(0.2),
        ),
        0_u8..3,
    );
    let probe_fault = (
        select(vec!["nvidia", "snd_hda_intel", "nouveau"]),
        select(vec![
            ProbeFault::Fails(1),
            ProbeFault::Always,
            ProbeFault::Takes(Duration::from_secs(2)),
            ProbeFault::Takes(Duration::from_secs(60)),
        ]),
    );
    let request = (
        any::<u16>(),
        prop::option::weighted(0.1, probe_fault),
        prop::option::weighted(
            0.1,
            (
                0_usize..30,
                select(vec!["nvidia", "nvidia_drm", "nvidia_uvm", "nouveau"]),
            ),
        ),
        prop::option::weighted(0.05, (0_usize..40, any::<bool>())),
        mishap(),
        mishap(),
        any::<bool>(),
        prop::bool::weighted(0.25),
    );
    (host, settings, request).prop_map(|(host, settings, request)| {
        let ((cards, nouveau), generation, version, modeset, loaded, units, console, firmware, broken, holders) = host;
        let (persistenced, service, other) = units;
        let (way, doubt, processes, (gate, no_gate), reset) = settings;
        let (wanted, probe_fault, udev, unwritten, out, home, guest, another) = request;
        World {
            cards,
            nouveau,
            generation,
            version,
            modeset,
            loaded,
            persistenced,
            service,
            other,
            console,
            firmware,
            broken,
            holders,
            way,
            doubt,
            processes,
            gate,
            no_gate,
            reset,
            wanted,
            probe_fault,
            udev,
            unwritten,
            out,
            home,
            guest,
            another,
        }
    })
}

/// The bus of the Nth card.
fn bus(card: usize) -> u8 {
    u8::try_from(card + 1).unwrap()
}

impl World {
    /// The GPUs that are asked for.
    pub fn gpus(&self) -> Vec<PciAddr> {
        let asked = |n: &usize| self.wanted & (1 << n) != 0;
        let mut gpus: Vec<PciAddr> = (0..self.cards.len()).filter(asked).map(|n| addr(bus(n), 0)).collect();
        if gpus.is_empty() {
            gpus.push(addr(1, 0));
        }
        gpus
    }

    /// What may be touched for them: the functions of their slots, and the ports above, which must not sleep.
    pub fn may_touch(&self, model: &Model) -> BTreeSet<PciAddr> {
        let gpus = self.gpus();
        let slots = |a: PciAddr| gpus.iter().any(|g| g.slot() == a.slot());
        let functions = model.devices.iter().filter(|d| slots(d.addr));
        functions.flat_map(|d| [Some(d.addr), d.parent]).flatten().collect()
    }

    pub fn session(&self) -> Session {
        let mut settings = Settings {
            way: self.way,
            doubt: self.doubt,
            processes: self.processes,
            gate: self.gate,
            ..Settings::default()
        };
        let mut named: Vec<String> = Vec::new();
        if self.service == Some(true) || self.other == Some((Other::Socket, true)) {
            named.push(OLLAMA.to_owned());
        }
        if self.other == Some((Other::OfUser, true)) {
            named.extend(of_user().word());
        }
        match (&self.other, named.is_empty()) {
            (_, false) => settings.services = Services::Also(named),
            (Some((Other::Dcgm(_), false)), true) => settings.services = Services::Refuse,
            _ => {}
        }
        match self.other {
            Some((Other::Inside | Other::Docker | Other::Podman, true)) => settings.containers = Containers::Release,
            Some((Other::Whole, true)) => settings.containers = Containers::Shutdown,
            Some((Other::Desktop, true)) => settings.display_manager = DisplayManager::Stop,
            Some((Other::Socket | Other::OfUser | Other::Dcgm(_), true) | (_, false)) | None => {}
        }
        settings.reset = match self.reset {
            0 => Reset::Auto,
            1 => Reset::Never,
            _ => Reset::By("bus".to_owned()),
        };
        Session {
            settings,
            ..Session::new(&self.gpus())
        }
    }

    /// The host as it is when it is asked.
    pub fn model(&self) -> Model {
        let mut model = Model::new(self.generation);
        model.version = self.version.to_owned();
        model.modeset = self.modeset;
        model.has_gate = !self.no_gate;
        for (n, card) in self.cards.iter().enumerate() {
            self.build_card(&mut model, n, card);
        }
        let is_on_nvidia = model.devices.iter().any(|d| d.driver == Some("nvidia"));
        let modules = ["nvidia_drm", "nvidia_uvm", "nvidia_peermem", "vfio_pci"];
        for (name, _) in modules.iter().zip(self.loaded).filter(|(_, loaded)| *loaded) {
            if is_on_nvidia || *name == "vfio_pci" {
                model.loaded_since_boot(name);
            }
        }
        if let Some(on_framebuffer) = self.console {
            let there_is_one = !model.drm.is_empty() || self.firmware.is_some();
            add_consoles(&mut model, on_framebuffer && there_is_one);
        }
        if let Some(card) = self.firmware.filter(|_| model.drm.is_empty()) {
            let platform = Platform {
                device: "efi-framebuffer.0".to_owned(),
                driver: "efi-framebuffer".to_owned(),
            };
            let framebuffer = Framebuffer {
                number: 0,
                name: "EFI VGA".to_owned(),
                of: Some(addr(bus(card % self.cards.len()), 0)),
                firmware: Some(platform),
            };
            model.firmware = Some((framebuffer, true));
        }
        if self.persistenced && is_on_nvidia {
            add_persistenced(&mut model);
        } else if self.persistenced {
            model.units.push(Unit::new(unit::Unit::host(PERSISTENCED)));
        }
        if self.service.is_some() {
            add_ollama(&mut model);
        }
        match self.other.map(|(other, _)| other) {
            Some(Other::Inside) => {
                add_inside(&mut model);
                add_given(&mut model, "104");
                add_given(&mut model, "105");
            }
            Some(Other::Whole) => {
                add_inside(&mut model);
                add_whole(&mut model);
            }
            Some(Other::Docker) => add_run(&mut model, unit::Client::Docker),
            Some(Other::Podman) => add_run(&mut model, unit::Client::Podman),
            Some(Other::Desktop) => add_desktop(&mut model),
            Some(Other::Socket) => {
                if self.service.is_none() {
                    add_ollama(&mut model);
                }
                add_socket(&mut model);
            }
            Some(Other::OfUser) => add_of_user(&mut model),
            Some(Other::Dcgm(can_let_go)) => add_dcgm(&mut model, can_let_go),
            None => {}
        }
        model
            .broken
            .extend(self.broken.map(|name| (name, "its file is not there")));
        for (n, holder) in self.holders.iter().enumerate() {
            self.add_holder(&mut model, n, holder);
        }
        model.probe_faults.extend(self.probe_fault);
        model
            .events
            .extend(self.udev.map(|(act, name)| (When::Act(act), Event::Loads(name))));
        model
    }

    fn build_card(&self, model: &mut Model, n: usize, card: &Card) {
        let bus = bus(n);
        let functions = u8::try_from(card.functions.len()).unwrap();
        add_card(model, bus, card.device, functions);
        let group = match card.group {
            Group::Own => Some(20 + u32::from(bus)),
            Group::WithTheNextCard => Some(21 + u32::from(bus)),
            Group::WithAStranger => {
                let stranger = addr(100 + bus, 0);
                model.add(Device {
                    group: Some(20 + u32::from(bus)),
                    ..Device::new(stranger, 0x8086, 0x10d3, 0x02_0000)
                });
                model.settle_on(stranger, "e1000e");
                Some(20 + u32::from(bus))
            }
            Group::None => None,
        };
        for (function, start) in (0..).zip(&card.functions) {
            let at = addr(bus, function);
            let device = model.device_mut(at).unwrap();
            device.group = group;
            if card.auto {
                device.power = "auto";
                device.sleeps = function > 0;
            }
            let natural = match function {
                0 if self.nouveau => "nouveau",
                _ => crate::common::tables::natural(device).unwrap(),
            };
            let ids = (device.vendor, device.device);
            if *start != Start::None || function > 0 {
                device.driver_override = card
                    .driver_override
                    .map(|o| if o == "own" { natural } else { o }.to_owned());
            }
            match start {
                Start::Own => model.settle_on(at, natural),
                Start::Vfio if group.is_some() => {
                    if !model.vfio_ids.contains(&ids) {
                        model.vfio_ids.push(ids);
                    }
                    model.settle_on(at, "vfio-pci");
                    if !model.dynamic.contains(&("vfio-pci", ids.0, ids.1)) {
                        model.dynamic.push(("vfio-pci", ids.0, ids.1));
                    }
                }
                Start::Vfio | Start::None => {}
            }
        }
        let port = model.device(addr(bus, 0)).unwrap().parent.unwrap();
        if card.auto {
            model.device_mut(port).unwrap().power = "auto";
        }
    }

    fn add_holder(&self, model: &mut Model, n: usize, holder: &Holder) {
        let card = addr(bus(holder.card % self.cards.len()), 0);
        let pid = 3000 + i32::try_from(n).unwrap();
        let audio = addr(card.bus, 1);
        let (nodes, uses) = match holder.holds {
            Holds::Gpu | Holds::Hidden => (vec![Node::Gpu(card)], None),
            Holds::Control(uses) => (vec![Node::Control], uses.then_some(card)),
            Holds::Uvm(uses) => (vec![Node::Control, Node::Uvm], uses.then_some(card)),
            Holds::Modeset => (vec![Node::Modeset], None),
            Holds::Caps => (vec![Node::Caps], None),
            Holds::Drm => (vec![Node::Drm(card)], None),
            Holds::Sound => (vec![Node::Sound(audio)], None),
            Holds::Guest | Holds::Unreadable => (Vec::new(), None),
        };
        let group = model.device(card).and_then(|d| d.group);
        let mut process = match (holder.holds, group) {
            (Holds::Guest, Some(group)) => Process::guest(pid, 200, group),
            _ => Process::new(pid, &nodes),
        };
        if let Some(ends) = holder.at_a_prompt.filter(|_| process.comm != "kvm") {
            process.belongs_to = Process::at_a_prompt(pid, &[]).belongs_to;
            process.deaf = !ends;
        }
        process.unreadable = holder.holds == Holds::Unreadable;
        process.hidden = holder.holds == Holds::Hidden;
        // Only what the driver has can be used.
        let can_use = |a: &PciAddr| model.driver_of(*a) == Some("nvidia");
        process.uses.extend(uses.filter(can_use));
        let after = |time: u64| When::At(Duration::from_millis(time));
        match holder.stays {
            Stays::ForEver => _ = model.open(process),
            Stays::LetsGo(time) => {
                if model.open(process).is_ok() {
                    model.events.push((after(time), Event::LetsGo(pid)));
                }
            }
            Stays::Ending(time) => {
                process.ending = true;
                if model.open(process).is_ok() {
                    model.events.push((after(time), Event::Goes(pid)));
                }
            }
            Stays::Comes(act, time) => {
                model.events.push((When::Act(act), Event::Comes(process)));
                model.events.push((after(time), Event::Goes(pid)));
            }
        }
    }
}
