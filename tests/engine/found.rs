//! What random hosts have shown (tests/engine_props), each in its smallest form.

use std::time::Duration;

use gpu_handoff::host::displays::Framebuffer;
use gpu_handoff::host::nodes::Node;
use gpu_handoff::model::act::Act;
use gpu_handoff::model::record::State;
use gpu_handoff::settings::reset::Reset;
use gpu_handoff::settings::values::{Doubt, Settings, WayOut};

use crate::common::hosts::{add_card, add_consoles, add_persistenced};
use crate::common::{
    Device, End, Event, Fault, Generation, Model, ProbeFault, Process, Session, Twist, When, addr, host,
};
use crate::{assert_as_before, records};

/// The number of the act, on a way out that nothing disturbs, that is the last one of these.
fn nth(model: &Model, session: &Session, wanted: fn(&Act) -> bool) -> usize {
    let mut model = model.fork();
    assert!(matches!(session.out(&mut model), End::Done));
    model.acts.iter().rposition(wanted).unwrap()
}

/// Killed as this act is over; then home.
fn killed_then_home(host: &Model, session: &Session, wanted: fn(&Act) -> bool) {
    let mut model = host.clone();
    let before = model.state();
    let at = nth(&model, session, wanted);
    model.faults.0 = vec![(at, Fault::KilledAfter)];
    assert!(matches!(session.out(&mut model), End::Killed));
    let end = session.home(&mut model);
    assert!(matches!(end, End::Done), "{end:?}");
    assert_as_before(&model, &before, "after a kill");
    assert!(records(&model).is_empty());
}

/// The daemon was stopped for the moment of the unbind, and the run that would have started it again was killed.
#[test]
fn what_stays_has_its_daemon_and_modules_again_after_a_run_that_was_killed() {
    let mut with_daemon = host(2);
    add_persistenced(&mut with_daemon);
    let mut undisturbed = with_daemon.fork();
    assert!(matches!(only().out(&mut undisturbed), End::Done));
    let away = undisturbed.state();
    for at in 0..undisturbed.acts.len() {
        let mut model = with_daemon.fork();
        model.ledger = Some(std::sync::Arc::default());
        let before = model.state();
        model.faults.0 = vec![(at, Fault::KilledAfter)];
        assert!(matches!(only().out(&mut model), End::Killed), "{at}");
        let end = only().out(&mut model);
        assert!(matches!(end, End::Done), "{at}: {end:?}");
        let now = model.state();
        assert_eq!(
            (&now.units, &now.modules),
            (&away.units, &away.modules),
            "killed after act {at}"
        );
        let end = only().home(&mut model);
        assert!(matches!(end, End::Done), "{at}: {end:?}");
        assert_as_before(&model, &before, "at home");
    }
}

fn only() -> Session {
    Session::new(&[addr(1, 0)])
}

#[test]
fn a_run_that_was_killed_early_leaves_no_service_stopped_and_no_console_dark() {
    let mut with_all = host(1);
    add_consoles(&mut with_all, true);
    add_persistenced(&mut with_all);
    killed_then_home(&with_all, &only(), |a| matches!(a, Act::StopUnit { .. }));
    killed_then_home(&with_all, &only(), |a| {
        matches!(a, Act::SetConsole { bound: false, .. })
    });
    // Where a GPU stays the console is given back before the end: until then it is on record too.
    let mut two = host(2);
    add_consoles(&mut two, true);
    killed_then_home(&two, &only(), |a| matches!(a, Act::SetConsole { bound: false, .. }));
}

/// A host whose card, and the port above, may sleep.
fn sleepy() -> Model {
    let mut model = host(1);
    for device in &mut model.devices {
        device.power = "auto";
    }
    model
}

#[test]
fn a_bridge_that_is_kept_awake_is_on_record_until_it_may_sleep_again() {
    killed_then_home(&sleepy(), &only(), |a| matches!(a, Act::Unbind { .. }));
}

#[test]
fn an_undo_lets_sleep_what_slept() {
    let host = sleepy();
    let before = host.state();
    let at = nth(&host, &only(), |a| matches!(a, Act::SetOverride { driver: None, .. }));
    let mut model = host.clone();
    model.faults.0 = vec![(at, Fault::Fails)];
    assert!(matches!(only().out(&mut model), End::Restored(_)));
    assert_as_before(&model, &before, "after the undo");
}

#[test]
fn a_function_without_a_driver_has_none_when_it_is_home() {
    let mut model = host(2);
    model.set_aside(addr(2, 0));
    let before = model.state();
    let both = Session::new(&[addr(1, 0), addr(2, 0)]);
    let at = nth(&model, &both, |a| matches!(a, Act::SetOverride { driver: None, .. }));
    let mut fails = model.fork();
    fails.faults.0 = vec![(at, Fault::Fails)];
    assert!(matches!(both.out(&mut fails), End::Restored(_)));
    assert_as_before(&fails, &before, "after an undo");
    assert!(matches!(both.out(&mut model), End::Done));
    let end = both.home(&mut model);
    assert!(matches!(end, End::Done), "{end:?}");
    assert_as_before(&model, &before, "at home");
}

/// A card that is removed and found again has no overrides, and its drivers are those that come first.
#[test]
fn overrides_survive_the_last_rung_and_what_it_would_move_for_good_is_not_removed() {
    let mut model = host(1);
    for (function, driver) in [(0, "nvidia"), (1, "snd_hda_intel")] {
        model.device_mut(addr(1, function)).unwrap().driver_override = Some(driver.to_owned());
    }
    let before = model.state();
    let mut session = only();
    session.settings.way = WayOut::Unbind;
    assert!(matches!(session.out(&mut model), End::Done));
    // The load, the load once more and after the reset fail; what is found again works.
    model.probe_faults = vec![("nvidia", ProbeFault::Fails(3))];
    let end = session.home(&mut model);
    assert!(matches!(end, End::Done), "{end:?}");
    assert!(model.acts.iter().any(|a| matches!(a, Act::Rescan { .. })));
    assert_as_before(&model, &before, "at home");

    let mut model = host(1);
    model.set_aside(addr(1, 1));
    let before = model.state();
    assert!(matches!(session.out(&mut model), End::Done));
    model.probe_faults = vec![("nvidia", ProbeFault::Fails(3))];
    assert!(matches!(session.home(&mut model), End::NotRestored(_)));
    assert!(matches!(session.home(&mut model), End::Done));
    assert_as_before(&model, &before, "at home after all");
}

/// The same, broken off while the card is off the bus: nothing but the record knows that it was ever there.
#[test]
fn a_card_that_an_interrupted_run_has_removed_is_found_again() {
    let mut away = host(1);
    let before = away.state();
    assert!(matches!(only().out(&mut away), End::Done));
    away.probe_faults = vec![("nvidia", ProbeFault::Fails(3))];
    let mut whole = away.fork();
    assert!(matches!(only().home(&mut whole), End::Done));
    let removals = whole
        .acts
        .iter()
        .enumerate()
        .filter(|(_, a)| matches!(a, Act::Remove { .. }));
    let removals: Vec<usize> = removals.map(|(at, _)| at).collect();
    assert_eq!(removals.len(), 2);
    for (n, at) in removals.into_iter().enumerate() {
        for fault in [Fault::KilledAfter, Fault::KilledIn, Fault::Signal] {
            let mut model = away.fork();
            model.faults.0 = vec![(at, fault)];
            let end = only().home(&mut model);
            assert!(matches!(end, End::Killed | End::NotRestored(_)), "{end:?}");
            assert!(model.device(addr(1, 1)).is_none() || fault == Fault::KilledIn);
            // The audio alone is missing, or the whole card: neither is a card to start a VM with.
            let end = only().out(&mut model.fork());
            assert!(matches!(end, End::Refused(_)), "{n} {fault:?}: {end:?}");
            let end = only().home(&mut model);
            assert!(matches!(end, End::Done), "{n} {fault:?}: {end:?}");
            assert_as_before(&model, &before, "at home");
            assert!(records(&model).is_empty());
        }
    }
}

/// An id that somebody has left to vfio-pci attracts what is found again without an override.
#[test]
fn what_is_found_again_on_vfio_pci_comes_home() {
    let mut model = host(1);
    let gpu = model.device(addr(1, 0)).unwrap();
    let ids = (gpu.vendor, gpu.device);
    model.vfio_ids.push(ids);
    model.loaded_since_boot("vfio_pci");
    let before = model.state();
    assert!(matches!(only().out(&mut model), End::Done));
    model.probe_faults = vec![("nvidia", ProbeFault::Fails(3))];
    let at = {
        let mut model = model.fork();
        only().home(&mut model);
        model
            .acts
            .iter()
            .rposition(|a| matches!(a, Act::Remove { .. }))
            .unwrap()
    };
    model.faults.0 = vec![(at, Fault::KilledAfter)];
    assert!(matches!(only().home(&mut model), End::Killed));
    let end = only().home(&mut model);
    assert!(matches!(end, End::Done), "{end:?}");
    assert_as_before(&model, &before, "at home");
}

/// A GPU and an NVSwitch, whose driver is in the same module, and that comes first on the bus.
fn with_a_switch() -> Model {
    let mut model = host(1);
    let switch = Device {
        group: Some(40),
        ..Device::new(addr(0, 0), 0x10de, 0x22a3, 0x06_8000)
    };
    model.add(switch);
    model.settle_on(addr(0, 0), "nvidia-nvswitch");
    model
}

#[test]
fn a_switch_comes_home_after_a_gpu_without_which_its_module_does_not_load() {
    let host = with_a_switch();
    let before = host.state();
    let session = Session {
        given: vec![addr(0, 0), addr(1, 0), addr(1, 1)],
        ..only()
    };
    let mut model = host.fork();
    assert!(matches!(session.out(&mut model), End::Done));
    let end = session.home(&mut model);
    assert!(matches!(end, End::Done), "{end:?}");
    assert_as_before(&model, &before, "at home");
    // Unbound by a run that was killed it is still one of what is handed over.
    let at = nth(
        &host,
        &session,
        |a| matches!(a, Act::Unbind { driver, .. } if driver == "nvidia-nvswitch"),
    );
    let mut model = host.fork();
    model.faults.0 = vec![(at, Fault::KilledAfter)];
    assert!(matches!(session.out(&mut model), End::Killed));
    let end = session.out(&mut model);
    assert!(matches!(end, End::Done), "{end:?}");
    assert_eq!(model.driver_of(addr(0, 0)), Some("vfio-pci"));
}

#[test]
fn the_persistence_daemon_is_not_started_for_a_switch_alone() {
    let mut model = with_a_switch();
    add_persistenced(&mut model);
    let before = model.state();
    let end = only().out(&mut model);
    assert!(matches!(end, End::Done), "{end:?}");
    assert!(!model.units[0].active);
    assert!(matches!(only().home(&mut model), End::Done));
    assert_as_before(&model, &before, "at home");
}

#[test]
fn what_was_changed_while_away_stays_on_record_until_it_is_put_back() {
    let mut model = Model::new(Generation::K6_12);
    add_card(&mut model, 1, 0x2b85, 1);
    model.settle_on(addr(1, 0), "nvidia");
    let before = model.state();
    assert!(matches!(only().out(&mut model), End::Done));
    assert!(!model.device(addr(1, 0)).unwrap().d3cold);
    // Asked to end while the last but these are done.
    let at = model.acts.len();
    let home = {
        let mut model = model.fork();
        assert!(matches!(only().home(&mut model), End::Done));
        assert_as_before(&model, &before, "without a signal");
        model.acts[at..]
            .iter()
            .position(|a| matches!(a, Act::SetAttribute { .. }))
            .unwrap()
    };
    model.faults.0 = vec![(at + home - 1, Fault::Signal)];
    let end = only().home(&mut model);
    assert!(matches!(end, End::NotRestored(_)), "{end:?} {:#?}", &model.acts[at..]);
    assert_eq!(records(&model)[0].state, State::Stranded);
    assert!(matches!(only().home(&mut model), End::Done));
    assert_as_before(&model, &before, "at home after all");
}

#[test]
fn a_proof_sees_nvidia_drm_that_came_back_and_holds_the_gpu() {
    let mut model = host(2);
    let before = model.state();
    let at = nth(
        &model,
        &only(),
        |a| matches!(a, Act::UnloadModule { name } if name == "nvidia_drm"),
    );
    model.events.push((When::Act(at + 1), Event::Loads("nvidia_drm")));
    let end = only().out(&mut model);
    let End::Restored(why) = end else { panic!("{end:?}") };
    assert!(why.contains("nvidia_drm"), "{why}");
    assert_as_before(&model, &before, "after the undo");
}

#[test]
fn after_a_rung_that_is_stuck_comes_no_other() {
    let mut model = host(1);
    let mut session = only();
    session.settings.way = WayOut::Unbind;
    assert!(matches!(session.out(&mut model), End::Done));
    model.probe_faults = vec![("nvidia", ProbeFault::Always)];
    let at = model.acts.len();
    let reset = {
        let mut model = model.fork();
        session.home(&mut model);
        model.acts[at..]
            .iter()
            .position(|a| matches!(a, Act::Reset { .. }))
            .unwrap()
    };
    model.faults.0 = vec![(at + reset, Fault::Twisted(Twist::Hangs))];
    assert!(matches!(session.home(&mut model), End::NotRestored(_)));
    assert_eq!(model.laws.broken, [""; 0]);
}

/// Another VM that is given the same card may start in the seconds that a way out takes.
#[test]
fn an_undo_takes_nothing_from_a_guest_that_has_come() {
    let mut model = host(1);
    model.has_gate = false;
    let at = nth(&model, &only(), |a| matches!(a, Act::SetOverride { driver: None, .. }));
    let comes = Event::Comes(Process::guest(900, 200, 21));
    model.events.push((When::Act(at), comes));
    model.faults.0 = vec![(at, Fault::Fails)];
    let end = only().out(&mut model);
    assert!(matches!(end, End::NotRestored(_)), "{end:?}");
    assert_eq!(model.laws.broken, [""; 0]);
    assert!(model.wedged().is_empty());
    assert_eq!(records(&model)[0].state, State::Stranded);
}

/// What is asked for a second time after a kill in the undo finds the undo's own overrides.
#[test]
fn the_hosts_own_override_is_the_one_on_record() {
    let host = host(1);
    let at = nth(&host, &only(), |a| matches!(a, Act::Probe { .. }));
    let mut model = host.clone();
    model.faults.0 = vec![(at, Fault::Fails), (at + 1, Fault::Fails)];
    assert!(matches!(only().out(&mut model), End::Restored(_)));
    let undo = model.acts[at..]
        .iter()
        .position(|a| matches!(a, Act::LoadModule { .. }))
        .unwrap();
    let mut model = host.clone();
    model.faults.0 = vec![
        (at, Fault::Fails),
        (at + 1, Fault::Fails),
        (at + undo, Fault::KilledBefore),
    ];
    assert!(matches!(only().out(&mut model), End::Killed));
    let end = only().out(&mut model);
    assert!(matches!(end, End::Done), "{end:?} {:#?}", model.acts);
    assert_eq!(model.device(addr(1, 0)).unwrap().driver_override, None);
}

/// The firmware's framebuffer, detached by a run that was killed at once.
#[test]
fn a_firmware_framebuffer_comes_back_after_a_kill() {
    let mut model = host(1);
    model.modeset = false;
    model.drm.clear();
    let framebuffer = Framebuffer {
        number: 0,
        name: "EFI VGA".to_owned(),
        of: Some(addr(1, 0)),
        firmware: Some(gpu_handoff::host::displays::Platform {
            device: "efi-framebuffer.0".to_owned(),
            driver: "efi-framebuffer".to_owned(),
        }),
    };
    model.firmware = Some((framebuffer, true));
    killed_then_home(&model, &only(), |a| matches!(a, Act::SetPlatform { .. }));
}

#[test]
fn in_doubt_it_goes_on_where_that_is_asked_for() {
    for (doubt, uses, done) in [
        (Doubt::Refuse, false, false),
        (Doubt::GoOn, false, true),
        (Doubt::GoOn, true, false),
    ] {
        let mut model = host(2);
        let mut holder = Process::new(777, &[Node::Control]);
        if uses {
            // It turns out to use the very GPU: up to driver 590 the unbind waits for it.
            holder.uses.push(addr(1, 0));
        }
        model.open(holder).unwrap();
        model.laws.may_doubt = doubt == Doubt::GoOn;
        let session = Session {
            settings: Settings {
                doubt,
                ..Settings::default()
            },
            ..only()
        };
        let end = session.out(&mut model);
        assert_eq!(matches!(end, End::Done), done, "{doubt:?} {uses}: {end:?}");
        assert_eq!(model.laws.broken, [""; 0]);
        model.spend(Duration::from_secs(1));
    }
}

/// By a driver that lets a GPU go without nvidia_drm being unloaded, that module drives the GPU as soon as it is bound, and
/// takes what vfio-pci keeps at function 1 for a sound card.
#[test]
fn a_gpu_comes_home_after_its_sound_function_has_left_vfio_pci_or_not_at_all() {
    let mut host = host(2);
    host.version = "580.105.08".to_owned();
    let before = host.state();
    let is_let_go = |a: &Act| matches!(a, Act::Unbind { addr, .. } if addr.function == 1);
    let is_proof = |a: &Act| matches!(a, Act::ProveFree { addrs, .. } if addrs[0].function == 1);
    for wanted in [is_proof, is_let_go] as [fn(&Act) -> bool; 2] {
        for hurdle in [Fault::Fails, Fault::Twisted(Twist::Hangs)] {
            let mut model = host.fork();
            assert!(matches!(only().out(&mut model), End::Done));
            let mut undisturbed = model.fork();
            let out = model.acts.len();
            assert!(matches!(only().home(&mut undisturbed), End::Done));
            assert_as_before(&undisturbed, &before, "undisturbed");
            let at = undisturbed.acts[out..].iter().position(wanted).unwrap() + out;
            model.faults.0 = vec![(at, hurdle)];
            let end = only().home(&mut model);
            let case = format!("{:?} {hurdle:?}: {end:?}", model.acts[at]);
            let End::NotRestored(why) = end else { panic!("{case}") };
            assert!(
                why.contains("would take 0000:01:00.1, which is still on vfio-pci"),
                "{case}"
            );
            assert_eq!(model.driver_of(addr(1, 0)), Some("vfio-pci"), "{case}");
            assert_eq!(model.laws.broken, [""; 0], "{case}");
            model.faults.0.clear();
            let what_hung = model.calls.iter_mut();
            what_hung.for_each(|c| c.todo.retain(|m| *m != crate::common::calls::Move::Hang));
            model.spend(Duration::from_secs(400));
            let end = only().home(&mut model);
            assert!(matches!(end, End::Done), "{case}, then {end:?}");
            assert_as_before(&model, &before, &case);
        }
    }
}

#[test]
fn who_leaves_the_sound_function_to_vfio_pci_is_told_what_that_may_lead_to() {
    for (sound, said) in [("vfio-pci", true), ("snd_hda_intel", false)] {
        let mut model = host(1);
        model.settle_on(addr(1, 1), sound);
        let plan = only().plan_out(&mut model).unwrap();
        let told = |note: &String| note.starts_with("NVIDIA's driver takes function 1 of 0000:01:00 for a sound card");
        assert_eq!(plan.notes.iter().any(told), said, "{:?}", plan.notes);
    }
}

/// On 6.12 a 1 written to `bind` of the framebuffer's console was taken without an error and changed nothing.
#[test]
fn a_console_that_does_not_come_back_is_given_a_new_framebuffer_or_said_to_be_dark() {
    for (pinned, comes_back) in [(false, true), (true, false)] {
        let mut model = host(1);
        add_consoles(&mut model, true);
        model.console_is_lost = true;
        model.has_gate = false; // which would keep that somebody away
        let before = model.state();
        let at = nth(&model, &only(), |a| matches!(a, Act::SetConsole { .. })) + 2;
        model.faults.0 = vec![(at, Fault::Fails)];
        if pinned {
            // Somebody uses the driver by then.
            let comes = Process::new(777, &[Node::Drm(addr(1, 0))]);
            model.events.push((When::Act(at), Event::Comes(comes)));
        }
        let end = only().out(&mut model);
        assert_eq!(records(&model), [], "{end:?}");
        assert_eq!(model.laws.broken, [""; 0]);
        if comes_back {
            assert!(matches!(end, End::Restored(_)), "{end:?}");
            assert_as_before(&model, &before, "undone");
            continue;
        }
        let End::RestoredBut(but) = end else { panic!("{end:?}") };
        assert!(but.contains("the console vtcon1 draws on no framebuffer"), "{but}");
        let all = model.devices.iter().map(|d| d.bound());
        assert_eq!(
            all.collect::<Vec<_>>(),
            host(1).devices.iter().map(|d| d.bound()).collect::<Vec<_>>()
        );
    }
}

/// Where neither the function's own reset nor anything else helps, the bridge above the card resets it, if there is nothing
/// else below.
#[test]
fn a_card_that_only_its_bridge_can_reset_is_reset_by_that_unless_somebody_else_is_below() {
    let port = addr(0, 0);
    for (may_reset, offered, stranger, is_reset) in [
        (true, true, false, true),
        (false, true, false, false),
        (true, false, false, false),
        (true, true, true, false),
    ] {
        let mut model = Model::new(Generation::K7_2);
        add_card(&mut model, 1, 0x2204, 2);
        let port = model.device(addr(1, 0)).unwrap().parent.unwrap_or(port);
        model.device_mut(port).unwrap().resets_below = offered;
        if stranger {
            // In a group of its own, as below a switch.
            let place = gpu_handoff::base::pci::PciAddr { slot: 1, ..addr(1, 0) };
            let other = Device::new(place, 0x8086, 0x1533, 0x02_0000);
            let (parent, group) = (Some(port), Some(77));
            model.add(Device { parent, group, ..other });
        }
        model.loaded_since_boot("nvidia_drm");
        model.settle_on(addr(1, 0), "nvidia");
        model.settle_on(addr(1, 1), "snd_hda_intel");
        let before = model.state();
        let mut session = only();
        if !may_reset {
            session.settings.reset = Reset::Never;
        }
        assert!(matches!(session.out(&mut model), End::Done));
        model.probe_faults = vec![("nvidia", ProbeFault::Always)];
        model.bus_reset_heals = true;
        let end = session.home(&mut model);
        let case = format!("may: {may_reset}, offered: {offered}, stranger: {stranger}: {end:?}");
        let was_reset = model.acts.iter().any(|a| matches!(a, Act::ResetBus { .. }));
        assert_eq!(was_reset, is_reset, "{case}");
        assert_eq!(matches!(end, End::Done), is_reset, "{case}");
        assert_eq!(model.laws.broken, [""; 0], "{case}");
        if is_reset {
            assert_as_before(&model, &before, &case);
        }
    }
}
