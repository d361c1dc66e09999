//! Plan and executor on the model kernel: the order of acts, and that a failure at any act ends as it should.

#![allow(clippy::unwrap_used)] // a test that cannot set itself up should stop there

mod beside;
mod containers;
#[path = "../common/mod.rs"]
mod common;
mod found;
mod full;
mod own;
mod owners;
mod hangs;
mod let_go;
mod looks;
mod refused;
mod processes;
mod services;
mod signals;
mod stopped;
mod told;
mod untouched;

use std::cell::RefCell;
use std::io;
use std::time::Duration;

use common::hosts::{add_consoles, add_persistenced};
use common::{End, Event, Fault, Model, ProbeFault, Process, Session, Twist, When, addr, host};
use gpu_handoff::base::deadlines::Budgets;
use gpu_handoff::base::pci::PciAddr;
use gpu_handoff::execute::kernel::Kernel;
use gpu_handoff::host::displays::{Framebuffer, Platform};
use gpu_handoff::host::nodes::Node;
use gpu_handoff::host::units::{Ha, Unit};
use gpu_handoff::model::act::Act;
use gpu_handoff::model::plan::{Plan, Way};
use gpu_handoff::model::record::{Owner, Record, State};
use gpu_handoff::model::refusal::Refusal;
use gpu_handoff::plan::{home, inferred};
use gpu_handoff::settings::values::{Gate, WayOut};

fn plan_out(model: &mut Model, gpus: &[PciAddr]) -> Result<Plan, Refusal> {
    Session::new(gpus).plan_out(model)
}

fn text(plan: &Plan) -> Vec<String> {
    plan.steps.iter().map(|s| s.act.to_string()).collect()
}

fn records(model: &Model) -> Vec<Record> {
    model.ledger.as_ref().map(|l| l.records()).unwrap_or_default()
}

/// No law was broken, and all is as it was.
fn assert_as_before(model: &Model, before: &common::State, case: &str) {
    assert_eq!(model.laws.broken, [""; 0], "{case}");
    let now = model.state();
    assert!(*before == now, "{case}: {:#?}", before.differences(&now));
}

/// How any act may fail, and a run be killed at it.
const FAULTS: [Fault; 5] = [
    Fault::Fails,
    Fault::FailsAfterwards,
    Fault::KilledBefore,
    Fault::KilledIn,
    Fault::KilledAfter,
];

/// Whatever fails or is killed, at any act of the way out and home: all is as before at the end, but for what could not be
/// started, and what is stopped is on record until then. `used`: the host, with the first card's users; `units`: those that are
/// stopped.
fn runs_again_whatever_fails(name: &str, used: &dyn Fn() -> Model, session: &Session, units: &[Unit]) {
    let before = used().state();
    let mut undisturbed = used();
    assert!(matches!(session.out(&mut undisturbed), End::Done), "{name}");
    let away = undisturbed.acts.len();
    assert!(matches!(session.home(&mut undisturbed), End::Done), "{name}");
    for (at, act) in undisturbed.acts.iter().enumerate() {
        // Only what is asked of HA has a half; a start of which nothing but that has failed is none that fails.
        let has_half = matches!(act, Act::StopUnit { name, .. } if name.is_of_ha());
        for fault in FAULTS.into_iter().chain(has_half.then_some(Fault::FailsHalfway)) {
            let mut model = used();
            let case = format!("{name}: {fault:?} at {at} {act}");
            model.faults.0 = vec![(at, fault)];
            let out = session.out(&mut model);
            let on_record = |unit: &Unit| {
                records(&model)
                    .iter()
                    .any(|r| r.units.iter().any(|one| one.holds(unit)))
            };
            let is_lost = |unit: &&Unit| !model.is_up(unit) && !on_record(unit);
            assert_eq!(units.iter().find(is_lost), None, "{case}: {out:?}");
            let (home, said) = logged(|| session.home(&mut model));
            let again = match home {
                End::Done => home,
                _ => session.home(&mut model),
            };
            assert!(matches!(again, End::Done), "{case}: {out:?}, {again:?}");
            // What does not start is said, and strands nothing.
            let down = match act {
                Act::StartUnit { name, .. } | Act::RestartUnit { name } if at >= away && fault == Fault::Fails => {
                    Some(name).filter(|name| !model.is_up(name))
                }
                _ => None,
            };
            let (mut as_before, mut now) = (before.clone(), model.state());
            if let Some(down) = down {
                let words = format!("{down} was stopped for the handoff and does not start again");
                assert!(said.contains(&words), "{case}: {said}");
                // HA would carry it off to where its GPU is not.
                let its_ha = now
                    .units
                    .iter()
                    .filter(|u| down.holds(&u.name))
                    .filter_map(|u| u.ha.as_ref());
                assert_eq!(its_ha.filter(|ha| **ha != Ha::Ignores).count(), 0, "{case}");
                for state in [&mut as_before, &mut now] {
                    state.units.retain(|u| !down.holds(&u.name));
                }
            }
            assert_eq!(as_before.differences(&now), [""; 0], "{case}: {out:?}, {again:?}");
            assert!(records(&model).is_empty(), "{case}");
            assert_eq!(model.laws.broken, [""; 0], "{case}");
        }
    }
}

#[test]
fn the_only_gpu_leaves_by_unloading_the_modules() {
    let plan = plan_out(&mut host(1), &[addr(1, 0)]).unwrap();
    assert_eq!(plan.way, Way::Unload);
    assert_eq!(
        text(&plan),
        [
            "vfio_pci: load the module",
            "0000:01:00: keep others from opening it",
            "0000:01:00.0: set driver_override to vfio-pci",
            "0000:01:00.1: set driver_override to vfio-pci",
            "0000:01:00.1: look for holders once more",
            "0000:01:00.1: unbind from snd_hda_intel",
            "nvidia_uvm: unload the module",
            "nvidia_drm: unload the module",
            "nvidia_modeset: unload the module",
            "nvidia: unload the module",
            "0000:01:00.1: bind to vfio-pci",
            "0000:01:00.0: bind to vfio-pci",
            "0000:01:00.0: clear driver_override",
            "0000:01:00.1: clear driver_override",
            "0000:01:00: let others open it again",
        ]
    );
}

#[test]
fn one_of_two_gpus_is_unbound_and_drm_reloaded_for_the_other() {
    let plan = plan_out(&mut host(2), &[addr(2, 0)]).unwrap();
    assert_eq!(plan.way, Way::Unbind);
    assert_eq!(
        text(&plan),
        [
            "vfio_pci: load the module",
            "0000:02:00: keep others from opening it",
            "0000:02:00.0: set driver_override to vfio-pci",
            "0000:02:00.1: set driver_override to vfio-pci",
            "0000:02:00.1: look for holders once more",
            "0000:02:00.1: unbind from snd_hda_intel",
            "nvidia_drm: unload the module",
            "0000:02:00.0: look for holders once more",
            "0000:02:00.0: unbind from nvidia",
            "0000:02:00.1: bind to vfio-pci",
            "0000:02:00.0: bind to vfio-pci",
            "0000:02:00.0: clear driver_override",
            "0000:02:00.1: clear driver_override",
            "0000:02:00: let others open it again",
            "nvidia_drm: load the module",
        ]
    );
}

#[test]
fn a_driver_that_lets_go_by_itself_needs_no_reload_of_drm() {
    for (version, reloaded) in [
        ("590.48.01", false),
        ("590.44", false),
        ("590.43.99", true),
        ("580.105.08", false),
        ("580.95.05", true),
        ("580.94.06", false),
    ] {
        let mut model = host(2);
        model.version = version.to_owned();
        let plan = plan_out(&mut model, &[addr(2, 0)]).unwrap();
        let unloads = plan.steps.iter().any(|s| matches!(s.act, Act::UnloadModule { .. }));
        assert_eq!(unloads, reloaded, "driver {version}");
    }
}

#[test]
fn there_and_back_ends_where_it_began() {
    for (cards, gpus) in [
        (1, vec![addr(1, 0)]),
        (2, vec![addr(2, 0)]),
        (2, vec![addr(1, 0), addr(2, 0)]),
        (3, vec![addr(2, 0)]),
    ] {
        let mut model = host(cards);
        let before = model.state();
        let session = Session::new(&gpus);
        let end = session.out(&mut model);
        assert!(matches!(end, End::Done), "{end:?}");
        for gpu in &gpus {
            for n in 0..2 {
                let device = model.device(addr(gpu.bus, n)).unwrap();
                assert_eq!(device.bound(), Some("vfio-pci"));
                assert_eq!(device.driver_override, None);
            }
        }
        assert_eq!(records(&model)[0].state, State::Away);
        let end = session.home(&mut model);
        assert!(matches!(end, End::Done), "{end:?}");
        assert_as_before(&model, &before, &format!("{cards} cards, {gpus:?}"));
        assert!(records(&model).is_empty());
    }
}

thread_local! {
    /// The lines that go to the log. Of each test its own: which thread asks first decides what tracing remembers of a place
    /// in the code, so that a subscriber for one thread alone may see nothing (tracing-core, callsite.rs).
    static LOG: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

struct Log;

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LOG.with_borrow_mut(|log| log.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a run says, on this thread.
fn logged<T>(run: impl FnOnce() -> T) -> (T, String) {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| tracing_subscriber::fmt().with_writer(|| Log).with_ansi(false).init());
    LOG.take();
    let end = run();
    (end, String::from_utf8(LOG.take()).unwrap())
}

#[test]
fn each_unbind_says_how_long_after_the_last_look_it_was() {
    for (gate, said) in [(Gate::Auto, ", gate shut "), (Gate::Off, " 0 ms later ")] {
        let mut model = host(2);
        let mut session = Session::new(&[addr(2, 0)]);
        session.settings.gate = gate;
        let (ends, text) = logged(|| (session.out(&mut model), session.home(&mut model)));
        assert!(matches!(ends, (End::Done, End::Done)), "{ends:?}");
        let unbinds: Vec<&str> = text.lines().filter(|l| l.contains("unbind from")).collect();
        assert_eq!(unbinds.len(), 4, "{text}");
        for line in unbinds {
            assert!(line.contains(said) && line.contains("gap_usec=0"), "{gate:?}: {line}");
        }
    }
}

#[test]
fn consoles_and_the_persistence_daemon_go_and_come_back() {
    for (cards, gpus) in [(1, vec![addr(1, 0)]), (2, vec![addr(2, 0)])] {
        let mut model = host(cards);
        add_consoles(&mut model, true);
        add_persistenced(&mut model);
        let before = model.state();
        let session = Session::new(&gpus);
        let end = session.out(&mut model);
        assert!(matches!(end, End::Done), "{end:?}");
        // Where a GPU stays, its console and its daemon do.
        assert_eq!(model.units[0].active, cards > 1);
        assert_eq!(model.consoles[1].bound, cards > 1);
        let end = session.home(&mut model);
        assert!(matches!(end, End::Done), "{end:?}");
        assert_as_before(&model, &before, &format!("{cards} cards"));
    }
}

/// The daemon's references are of the module whose nodes it has open, the topmost one where no other is loaded or where it
/// keeps nvidia_uvm's state, too (nvidia-persistenced(1), --uvm-persistence-mode).
#[test]
fn the_persistence_daemon_accounts_for_the_modules_it_has_open_whichever_are_loaded() {
    for (beside_nvidia, also_open) in [
        (vec![], vec![]),
        (vec!["nvidia_uvm"], vec![]),
        (vec!["nvidia_uvm"], vec![Node::Uvm]),
        (vec!["nvidia_modeset", "nvidia_uvm"], vec![Node::Uvm]),
    ] {
        let mut model = host(1);
        (model.modeset, model.drm) = (false, Default::default());
        model
            .modules
            .retain(|(name, _)| !name.starts_with("nvidia_") || beside_nvidia.contains(name));
        add_persistenced(&mut model);
        let case = format!("{beside_nvidia:?} {also_open:?}");
        let daemon = model.processes.iter_mut().find(|p| p.comm == "nvidia-persiste");
        daemon.expect(&case).nodes.extend(also_open);
        let plan = plan_out(&mut model, &[addr(1, 0)]).expect(&case);
        assert_eq!(plan.way, Way::Unload, "{case}");
        let session = Session::new(&[addr(1, 0)]);
        let end = session.out(&mut model);
        assert!(matches!(end, End::Done), "{case}: {end:?}");
        assert!(!model.units[0].active, "{case}");
        let end = session.home(&mut model);
        assert!(matches!(end, End::Done), "{case}: {end:?}");
        assert!(model.units[0].active && model.is_live("nvidia"), "{case}");
        assert_eq!(model.laws.broken, [""; 0], "{case}");
    }
}

/// What the daemon does not account for is found beside it.
#[test]
fn a_console_on_nvidia_drm_is_found_beside_the_persistence_daemon() {
    let mut model = host(1);
    add_persistenced(&mut model);
    model.pins.push("nvidia_drm");
    let refusal = plan_out(&mut model, &[addr(1, 0)]).unwrap_err().to_string();
    assert!(refusal.starts_with("module nvidia_drm is in use (1 more"), "{refusal}");
}

#[test]
fn the_firmwares_framebuffer_goes_with_the_card_it_lies_on() {
    for (of, goes) in [(addr(1, 0), true), (addr(9, 0), false)] {
        let mut model = host(1);
        model.modeset = false;
        model.drm.clear();
        add_consoles(&mut model, true);
        let framebuffer = Framebuffer {
            number: 0,
            name: "EFI VGA".to_owned(),
            of: Some(of),
            firmware: Some(Platform {
                device: "efi-framebuffer.0".to_owned(),
                driver: "efi-framebuffer".to_owned(),
            }),
        };
        model.firmware = Some((framebuffer, true));
        let before = model.state();
        let session = Session::new(&[addr(1, 0)]);
        assert!(matches!(session.out(&mut model), End::Done));
        assert_eq!(model.state().firmware, Some(!goes));
        assert_eq!(model.consoles[1].bound, !goes);
        assert!(matches!(session.home(&mut model), End::Done));
        assert_as_before(&model, &before, &format!("on {of}"));
    }
}

#[test]
fn a_second_pre_start_has_nothing_to_do_and_forgets_nothing() {
    let mut model = host(1);
    let session = Session::new(&[addr(1, 0)]);
    let out = session.plan_out(&mut model).unwrap();
    assert!(matches!(session.out(&mut model), End::Done));
    let again = session.plan_out(&mut model).unwrap();
    assert!(again.steps.is_empty());
    assert_eq!(again.taken[0].driver.as_deref(), Some("nvidia"));
    assert_eq!(again.modules, out.modules);
}

#[test]
fn a_card_that_has_vanished_is_not_called_home() {
    let mut model = host(1);
    let session = Session::new(&[addr(1, 0)]);
    assert!(matches!(session.out(&mut model), End::Done));
    model.devices.retain(|d| d.addr != addr(1, 0));
    let end = session.home(&mut model);
    let End::NotRestored(why) = end else { panic!("{end:?}") };
    assert!(why.contains("0000:01:00.0 is not there any more"), "{why}");
    assert_eq!(model.driver_of(addr(1, 1)), Some("snd_hda_intel"));
    assert!(records(&model)[0].has(addr(1, 0)));
}

/// The hosts and requests on which every act is made to go wrong.
fn trips() -> Vec<(&'static str, Model, Vec<PciAddr>)> {
    let mut console = host(1);
    add_consoles(&mut console, true);
    add_persistenced(&mut console);
    vec![
        ("the only card", host(1), vec![addr(1, 0)]),
        ("one of two", host(2), vec![addr(2, 0)]),
        ("both", host(2), vec![addr(1, 0), addr(2, 0)]),
        ("with console and daemon", console, vec![addr(1, 0)]),
    ]
}

/// How many acts a way out and a way home have.
fn acts(model: &Model, session: &Session) -> (usize, usize) {
    let mut model = model.clone();
    assert!(matches!(session.out(&mut model), End::Done));
    let out = model.acts.len();
    assert!(matches!(session.home(&mut model), End::Done));
    (out, model.acts.len() - out)
}

/// Every act of the way out, failing before and after its effect: the host must be as it was, nothing recorded.
#[test]
fn a_failure_at_any_act_of_the_way_out_is_undone() {
    let mut cases = 0;
    for (name, host, gpus) in trips() {
        let session = Session::new(&gpus);
        let before = host.state();
        for at in 0..acts(&host, &session).0 {
            for fault in [Fault::Fails, Fault::FailsAfterwards] {
                let mut model = host.clone();
                model.faults.0 = vec![(at, fault)];
                let end = session.out(&mut model);
                let case = format!("{name}, act {at} {:?} {fault:?}", model.acts[at]);
                match end {
                    End::Restored(_) => {
                        assert_as_before(&model, &before, &case);
                        assert!(records(&model).is_empty(), "{case}");
                    }
                    // What a reset helps against, and what goes on without a gate.
                    End::Done => {
                        let is_soft = is_gate(&model.acts[at]) && model.gate.is_none();
                        assert!(is_soft || matches!(model.acts[at], Act::Probe { .. }), "{case}");
                    }
                    end => panic!("{case}: {end:?}"),
                }
                cases += 1;
            }
        }
    }
    assert!(cases > 100, "only {cases} cases");
}

/// An act without which a handoff goes on.
fn is_gate(act: &Act) -> bool {
    matches!(act, Act::ShutGate { .. } | Act::OpenGate { .. })
}

/// A call that never returns: the run ends, says so, keeps a record, and touches that device no more.
#[test]
fn a_hang_at_any_act_ends_wedged_with_a_record() {
    for (name, host, gpus) in trips() {
        let session = Session::new(&gpus);
        let before = host.state();
        for at in 0..acts(&host, &session).0 {
            let mut model = host.clone();
            model.faults.0 = vec![(at, Fault::Twisted(Twist::Hangs))];
            let end = session.out(&mut model);
            let act = model.acts[at].clone();
            let case = format!("{name}, act {at} {act:?}: {end:?}");
            assert_eq!(model.laws.broken, [""; 0], "{case}");
            if is_gate(&act) {
                assert!(matches!(end, End::Done) && model.gate.is_none(), "{case}");
                continue;
            }
            // Looking changes nothing; what hangs there is some other process's file. Programs can be ended, and a
            // console or a framebuffer is no device of the card's.
            let harmless = matches!(
                act,
                Act::ProveFree { .. }
                    | Act::StopUnit { .. }
                    | Act::EndProcesses { .. }
                    | Act::AwaitDesktops { .. }
                    | Act::SetConsole { .. }
                    | Act::SetPlatform { .. }
            );
            if harmless {
                assert!(matches!(end, End::Restored(_)), "{case}");
                assert_as_before(&model, &before, &case);
                continue;
            }
            assert!(matches!(end, End::NotRestored(_)), "{case}");
            let record = records(&model).remove(0);
            assert_eq!(record.state, State::Stranded, "{case}");
            let stuck: Vec<PciAddr> = record.stuck().collect();
            assert_eq!(stuck, record.touched_by(&act), "{case}");
            assert!(record.wedges.iter().all(|w| model.is_alive(w.group.number)), "{case}");
            for later in &model.acts[at + 1..] {
                let module = matches!(later, Act::LoadModule { .. } | Act::UnloadModule { .. });
                assert!(!module, "{later:?} after {act:?} got stuck");
                assert!(!later.function().is_some_and(|a| stuck.contains(&a)), "{later:?}");
            }
            let end = session.home(&mut model);
            let End::Refused(refusal) = end else {
                panic!("{case}: then {end:?}")
            };
            assert!(refusal.to_string().contains("stuck in the kernel"), "{refusal}");
            assert_eq!(model.laws.broken, [""; 0], "{case}");
        }
    }
}

/// A call that returns after its deadline: the record says it was late, and the next way home is complete.
#[test]
fn what_was_late_comes_home_when_it_has_ended() {
    for (name, host, gpus) in trips() {
        let session = Session::new(&gpus);
        let before = host.state();
        for at in 0..acts(&host, &session).0 {
            for twist in [Twist::Takes(Duration::from_secs(300)), Twist::HangsAtTheEnd] {
                let mut model = host.clone();
                model.faults.0 = vec![(at, Fault::Twisted(twist))];
                let end = session.out(&mut model);
                let case = format!("{name}, act {at} {:?} {twist:?}: {end:?}", model.acts[at]);
                if let End::NotRestored(_) = end {
                    // Whatever it waited for has come.
                    model
                        .calls
                        .iter_mut()
                        .for_each(|c| c.todo.retain(|m| *m != common::calls::Move::Hang));
                    model.spend(Duration::from_secs(400));
                    let end = session.home(&mut model);
                    assert!(matches!(end, End::Done), "{case}: then {end:?}");
                } else if is_gate(&model.acts[at]) {
                    let end = session.home(&mut model);
                    assert!(matches!(end, End::Done), "{case}: then {end:?}");
                }
                assert_as_before(&model, &before, &case);
                assert!(records(&model).is_empty(), "{case}");
            }
        }
    }
}

/// On the way home one function's failure does not keep the others away.
#[test]
fn what_can_come_home_does() {
    let mut model = host(1);
    let before = model.state();
    let session = Session::new(&[addr(1, 0)]);
    assert!(matches!(session.out(&mut model), End::Done));
    model.probe_faults = vec![("nvidia", ProbeFault::Always)];
    assert!(matches!(session.home(&mut model), End::NotRestored(_)));
    assert_eq!(model.driver_of(addr(1, 1)), Some("snd_hda_intel"));
    assert_eq!(records(&model)[0].state, State::Stranded);
    // The next try finds the rest.
    model.probe_faults.clear();
    let end = session.home(&mut model);
    assert!(matches!(end, End::Done), "{end:?}");
    assert_as_before(&model, &before, "the second try");
}

#[test]
fn the_run_stops_when_its_time_is_over_and_undoes() {
    let mut model = host(1);
    let before = model.state();
    let session = Session::new(&[addr(1, 0)]);
    let plan = session.plan_out(&mut model).unwrap();
    // Loading vfio_pci takes 40 ms in the model: the time is over a few acts later.
    let end = model.now() + Duration::from_millis(45);
    let record = session.record(&plan, None);
    let end = session.execute(&mut model, record, None, &plan, end);
    let End::Restored(why) = end else { panic!("{end:?}") };
    assert!(why.contains("the time for the whole run is over"), "{why}");
    assert_as_before(&model, &before, "after the undo");
}

#[test]
fn without_a_record_the_drivers_are_inferred() {
    let mut model = host(1);
    let before = model.state();
    let session = Session::new(&[addr(1, 0)]);
    assert!(matches!(session.out(&mut model), End::Done));
    model.ledger = None;
    let empty = Record::new(Owner::ByHand(addr(1, 0)), "boot".to_owned(), Budgets::default());
    let snapshot = model.whole_snapshot(&[]);
    let record = inferred::inferred(&snapshot, &[addr(1, 0)], empty);
    let home = home::plan(&snapshot, &record).unwrap();
    let by_hand = Session {
        owner: record.owner,
        ..session
    };
    let end = model.now() + Duration::from_secs(60);
    let end = by_hand.execute(&mut model, record, None, &home, end);
    assert!(matches!(end, End::Done), "{end:?}");
    assert_as_before(&model, &before, "inferred");
}

#[test]
fn what_changed_of_a_card_between_two_looks_is_told_in_words() {
    let mut model = host(2);
    let look = |model: &mut Model| model.look(&[], Duration::from_secs(1)).unwrap();
    let before = look(&mut model);
    let card = [addr(1, 0), addr(1, 1)];
    for device in &mut model.devices {
        if device.addr == addr(1, 1) || device.addr == addr(2, 1) {
            device.driver = None;
        }
    }
    let after = look(&mut model);
    let told = after.changes_since(&before, &card);
    assert_eq!(told, ["0000:01:00.1: snd_hda_intel then, no driver now"]);
    assert_eq!(
        before.changes_since(&after, &card),
        ["0000:01:00.1: no driver then, snd_hda_intel now"]
    );
    assert!(before.changes_since(&before, &card).is_empty());
    model.devices.retain(|device| device.addr != addr(1, 1));
    let told = look(&mut model).changes_since(&before, &card);
    assert_eq!(told, ["0000:01:00.1: snd_hda_intel then, gone now"]);
}

/// With the gate shut nobody comes after the proof, and the GPU leaves.
#[test]
fn who_would_come_after_the_proof_finds_the_gate_shut() {
    let mut model = host(2);
    model.version = "590.48.01".to_owned();
    let mut session = Session::new(&[addr(1, 0)]);
    session.settings.way = WayOut::Unbind;
    let plan = session.plan_out(&mut model).unwrap();
    let at = |wanted: fn(&Act) -> bool| plan.steps.iter().position(|s| wanted(&s.act)).unwrap();
    let shut = at(|a| matches!(a, Act::ShutGate { .. }));
    let open = at(|a| matches!(a, Act::OpenGate { .. }));
    assert!(shut < open);
    let nodes = [
        Node::Gpu(addr(1, 0)),
        Node::Drm(addr(1, 0)),
        Node::Sound(addr(1, 1)),
        Node::VfioGroup(21),
    ];
    for (pid, at) in (700..).zip(shut + 1..open) {
        for (n, node) in (0..).zip(&nodes) {
            let comes = Process::new(pid * 10 + n, &[*node]);
            model.events.push((When::Act(at), Event::Comes(comes)));
        }
    }
    let record = session.record(&plan, None);
    let end = model.now() + Duration::from_secs(60);
    let end = session.execute(&mut model, record, None, &plan, end);
    assert!(matches!(end, End::Done), "{end:?}");
    assert_eq!((model.laws.races, model.processes.len()), (0, 0));
    assert_eq!(model.laws.broken, [""; 0]);
    // What belongs to the GPU that stays was open all the while, and afterwards all is.
    assert_eq!(model.gate, None);
}

/// A probe can take its time, and the numbers behind the gate are the next VM's by then.
#[test]
fn on_the_way_home_the_gate_is_open_before_any_of_several_cards_is_bound() {
    let mut model = host(2);
    model.version = "590.48.01".to_owned();
    let mut session = Session::new(&[addr(1, 0), addr(2, 0)]);
    session.settings.way = WayOut::Unbind;
    assert!(matches!(session.out(&mut model), End::Done));
    let before = model.acts.len();
    assert!(matches!(session.home(&mut model), End::Done));
    let acts = &model.acts[before..];
    let open = acts.iter().position(|a| matches!(a, Act::OpenGate { .. })).unwrap();
    let is_unbind = |a: &Act| matches!(a, Act::Unbind { .. });
    let is_probe = |a: &Act| matches!(a, Act::Probe { .. });
    assert_eq!(acts[..open].iter().filter(|a| is_unbind(a)).count(), 4, "{acts:?}");
    assert_eq!(acts[open..].iter().filter(|a| is_probe(a)).count(), 4, "{acts:?}");
    assert!(!acts[..open].iter().any(is_probe), "{acts:?}");
}

/// A gate that falls is no gate: what was seen to be free behind it is not taken off its driver, and what was not looked at
/// yet is, as on a host that has none.
#[test]
fn a_gate_that_falls_after_the_look_ends_the_way_out_and_one_that_falls_before_it_is_said() {
    for falls_at_the_look in [true, false] {
        let mut model = host(2);
        model.version = "590.48.01".to_owned();
        let before = model.state();
        let mut session = Session::new(&[addr(1, 0)]);
        session.settings.way = WayOut::Unbind;
        let plan = session.plan_out(&mut model).unwrap();
        let at = |wanted: fn(&Act) -> bool| plan.steps.iter().position(|s| wanted(&s.act)).unwrap();
        let fall = match falls_at_the_look {
            true => at(|a| matches!(a, Act::ProveFree { .. })),
            false => at(|a| matches!(a, Act::ShutGate { .. })) + 1,
        };
        model.events.push((When::Act(fall), Event::GateFalls));
        let record = session.record(&plan, None);
        let until = model.now() + Duration::from_secs(60);
        let (end, log) = logged(|| session.execute(&mut model, record, None, &plan, until));
        let said = "the process that kept others from opening";
        match end {
            End::Restored(text) if falls_at_the_look => {
                assert!(text.contains(said), "{text}");
                assert_as_before(&model, &before, &text);
            }
            End::Done if !falls_at_the_look => assert!(log.contains(said) && !log.contains("gate shut"), "{log}"),
            end => panic!("{end:?}: {log}"),
        }
        assert_eq!(model.laws.broken, [""; 0]);
    }
}

/// On a host without a gate, who comes after the proof is met by the unbind: that race is only bounded, and told.
#[test]
fn who_comes_after_the_proof_wedges_the_gpu_until_it_lets_go() {
    for (version, frees) in [("590.48.01", true), ("595.45.04", false)] {
        let mut model = host(2);
        model.has_gate = false;
        // Nobody is refused by a plan that was made for another driver.
        model.version = "590.48.01".to_owned();
        let before = model.state();
        let mut session = Session::new(&[addr(1, 0)]);
        session.settings.way = WayOut::Unbind;
        let plan = session.plan_out(&mut model).unwrap();
        let unbind =
            |s: &gpu_handoff::model::plan::Step| matches!(&s.act, Act::Unbind { driver, .. } if driver == "nvidia");
        let at = plan.steps.iter().position(unbind).unwrap();
        model.version = version.to_owned();
        let comes = Process::new(777, &[Node::Gpu(addr(1, 0))]);
        model.events.push((When::Act(at), Event::Comes(comes)));
        let record = session.record(&plan, None);
        let end = model.now() + Duration::from_secs(60);
        let end = session.execute(&mut model, record, None, &plan, end);
        assert!(matches!(end, End::NotRestored(_)), "{end:?}");
        assert_eq!(
            (model.laws.races, model.laws.broken.len()),
            (1, 0),
            "{:?}",
            model.laws.broken
        );
        assert_eq!(model.wedged(), [addr(1, 0)]);
        model.processes.retain(|p| p.pid != 777);
        model.spend(Duration::from_secs(1));
        assert_eq!(model.wedged().is_empty(), frees);
        let end = session.home(&mut model);
        assert_eq!(matches!(end, End::Done), frees, "{end:?}");
        if frees {
            assert_as_before(&model, &before, version);
        }
    }
}
