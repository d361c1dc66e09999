//! What a run leaves alone: cards that it was not asked for, a device that is not at fault; and what it looks for itself.

use std::time::Duration;

use gpu_handoff::execute::kernel::Kernel;
use gpu_handoff::host::functions::VFIO_PCI;
use gpu_handoff::model::act::Act;
use gpu_handoff::model::record::State;
use gpu_handoff::output::status::{Sight, shown, status};
use gpu_handoff::output::status_table;
use gpu_handoff::output::style::Style;
use gpu_handoff::settings::values::WayOut;

use crate::common::calls::{Lock, Move};
use crate::common::{End, Generation, Model, ProbeFault, Session, addr, host};
use crate::{assert_as_before, records};

/// Longer than a look may take.
const SLOW: Duration = Duration::from_secs(60);

/// As somebody who resets this function and waits for it, on a kernel that reads `driver_override` below the lock.
fn resetting(model: &mut Model, bus: u8) {
    model.generation = Generation::K6_1;
    let lock = Lock::Device(addr(bus, 0));
    model.begin(99, vec![Move::Lock(lock), Move::Sleep(SLOW), Move::Unlock(lock)]);
    model.spend(Duration::from_millis(1));
    assert!(model.is_locked(addr(bus, 0)));
}

fn first() -> Session {
    Session::new(&[addr(1, 0)])
}

#[test]
fn another_card_that_is_slow_holds_up_neither_way() {
    let mut model = host(2);
    let before = model.state();
    model.laws.may_touch = Some((0..2).map(|n| addr(1, n)).collect());
    resetting(&mut model, 2);
    let end = first().out(&mut model);
    assert!(matches!(end, End::Done), "{end:?}");
    let end = first().home(&mut model);
    assert!(matches!(end, End::Done), "{end:?}");
    assert!(model.is_locked(addr(2, 0)), "it was waited for");
    model.spend(SLOW);
    assert_as_before(&model, &before, "beside a slow card");
}

#[test]
fn a_card_that_is_slow_itself_is_refused_and_nothing_that_was_not_read_is_believed() {
    let mut model = host(1);
    let before = model.state();
    let said = "the kernel gives no answer about 0000:01:00.0, 0000:01:00.1: it waits for the device, as it does for up to a \
                minute after a reset. Hint: try again in a minute; if it stays so, see 'journalctl -k' for what holds it up";
    resetting(&mut model, 1);
    let end = first().out(&mut model);
    let End::Refused(why) = end else { panic!("{end:?}") };
    assert_eq!((why.to_string().as_str(), model.acts.len()), (said, 0));
    model.spend(SLOW);
    assert!(matches!(first().out(&mut model), End::Done));
    let acts = model.acts.len();
    resetting(&mut model, 1);
    let end = first().home(&mut model);
    let End::Refused(why) = end else { panic!("{end:?}") };
    assert_eq!((why.to_string().as_str(), model.acts.len()), (said, acts));
    model.spend(SLOW);
    let end = first().home(&mut model);
    assert!(matches!(end, End::Done), "{end:?}");
    assert_as_before(&model, &before, "after the wait");
}

#[test]
fn status_shows_a_card_that_does_not_answer_beside_the_others() {
    let mut model = host(2);
    resetting(&mut model, 2);
    let mut snapshot = model.look(&[], SLOW).unwrap();
    let all = shown(&snapshot);
    first().ask(&mut model, &mut snapshot, &all);
    let status = status(&Sight::of(&snapshot, &[]), None);
    let json = serde_json::to_value(&status).unwrap();
    let answers = |card: usize| [0, 1].map(|f| json["cards"][card]["functions"][f]["answers"].as_bool());
    assert_eq!([answers(0), answers(1)], [[Some(true); 2], [Some(false); 2]]);
    let text = status_table::text(&status, Style::default());
    let silent: Vec<&str> = text.lines().filter(|l| l.contains(" does not answer ")).collect();
    assert_eq!(silent.len(), 2, "{text}");
    assert!(silent.iter().all(|l| l.starts_with("  0000:02:00.")), "{text}");
}

fn is_rough(act: &Act) -> bool {
    matches!(act, Act::Reset { .. } | Act::Remove { .. })
}

/// Away by unloading the modules, so that they have to be loaded again.
fn away() -> (Model, Session) {
    let mut model = host(1);
    let mut session = first();
    session.settings.way = WayOut::Unload;
    assert!(matches!(session.out(&mut model), End::Done));
    (model, session)
}

#[test]
fn for_a_module_that_is_missing_no_card_is_reset_or_removed() {
    for module in ["nvidia", "snd_hda_intel"] {
        let before = host(1).state();
        let (mut model, session) = away();
        model.drivers.retain(|d| *d != module);
        model.modules.retain(|(name, _)| *name != module);
        model.broken = vec![(module, "its file is gone")];
        let end = session.home(&mut model);
        let End::NotRestored(why) = end else { panic!("{end:?}") };
        let left = if module == "nvidia" {
            "0000:01:00.0"
        } else {
            "0000:01:00.1"
        };
        let begins = format!("the way home failed ({module}: load the module: it cannot be loaded: ");
        assert!(why.starts_with(&begins), "{why}");
        assert!(
            why.ends_with(&format!(
                "); not restored: {left}. Hint: build them for the running kernel ('dkms autoinstall'), or boot the kernel \
                 they were built for; then run 'gpu-handoff recover'"
            )),
            "{why}"
        );
        assert!(!model.acts.iter().any(is_rough), "{module}: {:?}", model.acts);
        assert_eq!(why.matches("load the module").count(), 1, "{why}");
        // Once it is back all comes home.
        model.broken.clear();
        let end = session.home(&mut model);
        assert!(matches!(end, End::Done), "{module}: {end:?}");
        assert_as_before(&model, &before, module);
    }
}

#[test]
fn for_a_module_that_finds_no_gpu_to_bind_the_rungs_are_climbed() {
    for (fails, rough) in [(1, 0), (2, 1), (3, 3)] {
        let before = host(1).state();
        let (mut model, session) = away();
        model.probe_faults = vec![("nvidia", ProbeFault::Fails(fails))];
        let end = session.home(&mut model);
        assert!(matches!(end, End::Done), "{fails}: {end:?}");
        let climbed = model.acts.iter().filter(|a| is_rough(a)).count();
        assert_eq!(climbed, rough, "{fails}: {:?}", model.acts);
        assert_as_before(&model, &before, "after the rungs");
    }
}

#[test]
fn a_second_gpu_is_left_on_vfio_pci_where_its_module_is_missing() {
    let mut model = host(2);
    let before = model.state();
    let session = Session::new(&[addr(1, 0), addr(2, 0)]);
    assert!(matches!(session.out(&mut model), End::Done));
    model.broken = vec![("nvidia", "its file is gone")];
    let end = session.home(&mut model);
    assert!(matches!(end, End::NotRestored(_)), "{end:?}");
    assert!(!model.acts.iter().any(is_rough));
    assert_eq!(model.driver_of(addr(2, 0)), Some(VFIO_PCI));
    model.broken.clear();
    let end = session.home(&mut model);
    assert!(matches!(end, End::Done), "{end:?}");
    assert_as_before(&model, &before, "with the module");
}

/// Somebody writes to the function's `remove`.
fn taken_off(model: &mut Model, function: u8) {
    let id = model.remove(99, addr(1, function)).unwrap();
    let end = model.time + SLOW;
    assert_eq!(model.wait_for(id, end), Some(Ok(())));
    assert!(model.device(addr(1, function)).is_none());
}

#[test]
fn what_somebody_has_removed_while_it_was_away_is_found_again() {
    // By unloading; by unbinding, with the driver still there for another GPU; and where an older record knows no bridge.
    for (cards, knows_bridge) in [(1, true), (2, true), (1, false)] {
        for functions in [&[1][..], &[1, 0], &[0]] {
            let case = format!("{cards} cards, bridge {knows_bridge}, {functions:?} removed");
            let mut model = host(cards);
            let before = model.state();
            assert!(matches!(first().out(&mut model), End::Done));
            let bridge = model.device(addr(1, 0)).unwrap().parent;
            if !knows_bridge {
                let ledger = model.ledger.clone().unwrap();
                let mut record = ledger.records().remove(0);
                record.taken.iter_mut().for_each(|t| t.parent = None);
                ledger.put(record);
            }
            for function in functions {
                taken_off(&mut model, *function);
            }
            let acts = model.acts.len();
            let end = first().home(&mut model);
            assert!(matches!(end, End::Done), "{case}: {end:?}");
            assert_as_before(&model, &before, &case);
            assert!(records(&model).is_empty(), "{case}");
            let bridge = bridge.filter(|_| knows_bridge);
            for function in functions {
                let addr = addr(1, *function);
                let rescan = Act::Rescan { bridge, addr };
                assert!(model.acts[acts..].contains(&rescan), "{case}: {:?}", model.acts);
            }
        }
    }
}

#[test]
fn what_no_rescan_finds_needs_a_power_cycle_and_its_modules_no_loading() {
    let (mut model, session) = away();
    model.vanish(addr(1, 0));
    let acts = model.acts.len();
    let end = session.home(&mut model);
    let End::NotRestored(why) = end else { panic!("{end:?}") };
    assert_eq!(
        why,
        "the way home failed (0000:01:00.0 is not there any more, and a rescan does not find it; 0000:01:00.1 is not there \
         any more, and a rescan does not find it); not restored: 0000:01:00.0, 0000:01:00.1. Hint: a power cycle brings back \
         what does not answer; then run 'gpu-handoff recover'"
    );
    let done = &model.acts[acts..];
    assert!(done.iter().all(|a| matches!(a, Act::Rescan { .. })), "{done:?}");
    assert_eq!(records(&model)[0].state, State::Stranded);
    let end = session.out(&mut model);
    assert!(matches!(end, End::Refused(_)), "{end:?}");
}

/// What is found again has no override: nouveau, or an id that was left to vfio-pci, may be quicker than its own driver.
#[test]
fn what_is_found_again_on_another_driver_goes_home_all_the_same() {
    for other in ["nouveau", VFIO_PCI] {
        let (mut model, session) = away();
        if other == VFIO_PCI {
            let gpu = model.device(addr(1, 0)).unwrap();
            let id = (VFIO_PCI, gpu.vendor, gpu.device);
            model.dynamic.push(id);
        } else {
            model.loaded_since_boot("nouveau");
        }
        taken_off(&mut model, 1);
        taken_off(&mut model, 0);
        let end = session.home(&mut model);
        assert!(matches!(end, End::Done), "{other}: {end:?}");
        assert_eq!(model.driver_of(addr(1, 0)), Some("nvidia"), "{other}");
        assert_eq!(model.laws.broken, [""; 0], "{other}");
    }
}
