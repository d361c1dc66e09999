//! Hosts to begin with.

use gpu_handoff::base::pci::{PciAddr, VENDOR_NVIDIA};
use gpu_handoff::host::desktop::Desktop;
use gpu_handoff::host::displays::Console;
use gpu_handoff::host::units as unit;

use super::state::{Device, Generation, Model, Unit};

/// The persistence daemon's unit.
pub const PERSISTENCED: &str = "nvidia-persistenced.service";

/// Others of NVIDIA's, which use every GPU.
pub const POWERD: &str = "nvidia-powerd.service";
pub const FABRICMANAGER: &str = "nvidia-fabricmanager.service";

/// A service that somebody has for NVIDIA's MPS.
pub const MPS: &str = "mps.service";

/// `0000:BB:00.F`
pub fn addr(bus: u8, function: u8) -> PciAddr {
    PciAddr {
        domain: 0,
        bus,
        slot: 0,
        function,
    }
}

/// Class and device id of a card's functions 1 to 3: audio, USB, UCSI (TU102's).
const COMPANIONS: [(u32, u16); 3] = [(0x04_0300, 0x1aef), (0x0c_0330, 0x1ad6), (0x0c_8000, 0x1ad7)];

/// Adds a card below a port of its own, in a group of its own, on no driver.
pub fn add_card(model: &mut Model, bus: u8, device: u16, functions: u8) {
    let port = PciAddr {
        slot: bus,
        ..addr(0, 0)
    };
    model.add(Device {
        bridge: true,
        resets_below: model.generation == Generation::K7_2,
        group: Some(u32::from(bus)),
        ..Device::new(port, 0x8086, 0x3420, 0x06_0400)
    });
    for n in 0..functions {
        let (class, id) = match n {
            0 => (0x03_0000, device),
            n => COMPANIONS[usize::from(n) - 1],
        };
        // Links lead from function 0 to each other one (linux, drivers/pci/quirks.c, quirk_gpu_hda and its like).
        let linked = match n {
            0 => (1..functions).map(|n| addr(bus, n)).collect(),
            _ => vec![addr(bus, 0)],
        };
        let can_reset = if n == 0 { vec!["flr", "bus"] } else { Vec::new() };
        model.add(Device {
            group: Some(20 + u32::from(bus)),
            parent: Some(port),
            linked,
            reset_methods: can_reset.iter().map(|m| (*m).to_owned()).collect(),
            can_reset,
            ..Device::new(addr(bus, n), VENDOR_NVIDIA, id, class)
        });
    }
}

/// A host with `cards` GPUs of two functions each, at home, all modules loaded and idle.
pub fn host(cards: u8) -> Model {
    let mut model = Model::new(Generation::K6_12);
    for bus in 1..=cards {
        add_card(&mut model, bus, 0x2204, 2);
        model.settle_on(addr(bus, 0), "nvidia");
        model.settle_on(addr(bus, 1), "snd_hda_intel");
    }
    model.loaded_since_boot("nvidia_uvm");
    model.loaded_since_boot("nvidia_drm");
    model
}

/// The text consoles, drawn on a framebuffer or not.
pub fn add_consoles(model: &mut Model, on_framebuffer: bool) {
    let console = |name: &str, what: &str, bound| Console {
        name: name.to_owned(),
        what: what.to_owned(),
        bound,
    };
    model.consoles = vec![
        console("vtcon0", "dummy device", !on_framebuffer),
        console("vtcon1", "frame buffer device", on_framebuffer),
    ];
}

/// A service that uses every GPU of the driver, and runs without any as well.
pub const OLLAMA: &str = "ollama.service";

/// That service.
pub fn add_ollama(model: &mut Model) {
    add_started(model, &unit::Unit::host(OLLAMA));
}

/// What needs that service, and uses every GPU as well.
pub const WEBUI: &str = "open-webui.service";

/// Both of these, by the number of its process the one that needs the other first: that was started anew since.
pub fn add_webui(model: &mut Model) {
    add_started(model, &unit::Unit::host(WEBUI));
    model.units.last_mut().unwrap().needs = Some(unit::Unit::host(OLLAMA));
    add_ollama(model);
}

/// The same inside a container.
pub fn inside() -> unit::Unit {
    unit::Unit::Inside {
        container: "104".parse().unwrap(),
        unit: OLLAMA.to_owned(),
    }
}

/// That one.
pub fn add_inside(model: &mut Model) {
    add_started(model, &inside());
}

/// The container that this is in, which uses every GPU itself as well, by no service.
pub fn whole() -> unit::Unit {
    unit::Unit::Whole {
        container: "104".parse().unwrap(),
    }
}

/// That container.
pub fn add_whole(model: &mut Model) {
    add_started(model, &whole());
}

/// The same container where the cluster's manager looks after it, as what that is owed.
pub fn of_ha() -> unit::Unit {
    unit::Unit::OfHa {
        ha_container: "104".parse().unwrap(),
    }
}

/// That container.
pub fn add_of_ha(model: &mut Model) {
    add_whole(model);
    model.units.last_mut().unwrap().ha = Some(unit::Ha::LooksAfter);
}

/// The same of a user's systemd.
pub fn of_user() -> unit::Unit {
    unit::Unit::OfUser {
        user: 1000,
        unit: OLLAMA.to_owned(),
    }
}

/// That one.
pub fn add_of_user(model: &mut Model) {
    add_started(model, &of_user());
}

/// The service of DCGM's host engine, which uses every GPU.
pub const DCGM: &str = "nvidia-dcgm.service";

/// Its use of the driver.
pub fn driver_use() -> unit::Unit {
    unit::Unit::DriverUse {
        driver_use_of: DCGM.to_owned(),
    }
}

/// It, and its `dcgmi`, which can let the driver go from some version on.
pub fn add_dcgm(model: &mut Model, can_let_go: bool) {
    if can_let_go {
        model.units.push(Unit::new(driver_use()));
    }
    add_started(model, &unit::Unit::host(DCGM));
}

/// Another one as a whole.
pub fn whole_of(ctid: &str) -> unit::Unit {
    unit::Unit::Whole {
        container: ctid.parse().unwrap(),
    }
}

/// That one.
pub fn add_whole_of(model: &mut Model, ctid: &str) {
    add_started(model, &whole_of(ctid));
}

/// A container that runs on, and is given nodes of the driver's.
pub fn add_given(model: &mut Model, ctid: &str) {
    model.given.push((ctid.parse().unwrap(), model.uvm));
}

/// A container of Docker's or Podman's.
pub fn run(client: unit::Client) -> unit::Unit {
    let id = "0123456789abcdef".repeat(4);
    unit::Unit::Run { client, id }
}

/// That container.
pub fn add_run(model: &mut Model, client: unit::Client) {
    add_started(model, &run(client));
}

/// The display manager, which uses every GPU.
pub const GDM: &str = "gdm.service";

/// It, and a desktop.
pub fn add_desktop(model: &mut Model) {
    add_started(model, &unit::Unit::host(GDM));
    model.desktop = Some(Desktop {
        unit: GDM.to_owned(),
        users: vec![1000],
    });
}

/// A socket that starts [`OLLAMA`], which has it.
pub fn add_socket(model: &mut Model) {
    model.units.push(Unit {
        active: true,
        starts: Some(unit::Unit::host(OLLAMA)),
        ..Unit::new(unit::Unit::host(SOCKET))
    });
}

/// That socket.
pub const SOCKET: &str = "ollama.socket";

/// The persistence daemon, which holds every GPU of the driver.
pub fn add_persistenced(model: &mut Model) {
    add_started(model, &unit::Unit::host(PERSISTENCED));
}

/// What needs the persistence daemon, and uses every GPU as well.
pub const EXPORTER: &str = "exporter.service";

/// Both of these.
pub fn add_exporter(model: &mut Model) {
    add_persistenced(model);
    add_started(model, &unit::Unit::host(EXPORTER));
    model.units.last_mut().unwrap().needs = Some(unit::Unit::host(PERSISTENCED));
}

/// A unit that runs, and uses every GPU.
pub fn add_started(model: &mut Model, unit: &unit::Unit) {
    model.units.push(Unit::new(unit.clone()));
    let started = model.switch_unit(unit, true);
    assert!(started.is_ok(), "{started:?}");
}
