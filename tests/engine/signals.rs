//! A signal in the middle of a run: what it leaves under way is on record, whatever else has failed, and what was not begun is not
//! taken back.

use std::time::Duration;

use gpu_handoff::model::act::Act;

use crate::common::{End, Event, Fault, Model, ProbeFault, Session, Twist, When, addr, host};
use crate::{assert_as_before, records};

/// Longer than a signal leaves time for, and less than the next run waits.
const SLOW: Fault = Fault::Twisted(Twist::Takes(Duration::from_secs(20)));

/// A run that a signal has ended in the middle of this act: the next one waits for its worker and brings all home.
fn is_waited_for(session: &Session, model: &mut Model, end: End, act: usize, case: &str) {
    let End::NotRestored(said) = end else {
        panic!("{case}: {end:?}")
    };
    let hint = "'gpu-handoff recover' finishes the way home once that act is over";
    assert!(said.contains(hint), "{case}: {said}");
    assert_eq!(model.acts.len(), act + 1, "{case}: {:?}", &model.acts[act..]);
    assert!(!records(model)[0].workers.is_empty(), "{case}: nobody to wait for");
    let end = session.home(model);
    assert!(matches!(end, End::Done), "{case}: {end:?}");
}

/// A reset that is tried where a driver does not take the card takes a minute at worst.
#[test]
fn a_rung_that_a_signal_leaves_under_way_is_the_next_runs_to_wait_for() {
    let session = Session::new(&[addr(1, 0)]);
    let is_reset = |act: &Act| matches!(act, Act::Reset { .. });
    for is_home in [false, true] {
        let case = if is_home { "home" } else { "out" };
        let mut model = host(1);
        let before = model.state();
        let bind = {
            let mut model = model.fork();
            assert!(matches!(session.out(&mut model), End::Done));
            model
                .acts
                .iter()
                .rposition(|act| matches!(act, Act::Probe { .. }))
                .unwrap()
        };
        let run: fn(&Session, &mut Model) -> End = if is_home { Session::home } else { Session::out };
        if is_home {
            assert!(matches!(session.out(&mut model), End::Done));
            model.probe_faults.push(("nvidia", ProbeFault::Always));
        } else {
            model.faults.0.push((bind, Fault::Fails));
        }
        let reset = {
            let mut model = model.fork();
            let _ = run(&session, &mut model);
            model.acts.iter().position(is_reset).unwrap()
        };
        model.faults.0.push((reset, SLOW));
        model.events.push((When::Act(reset), Event::Signal));
        let end = run(&session, &mut model);
        model.probe_faults.clear();
        is_waited_for(&session, &mut model, end, reset, case);
        assert_as_before(&model, &before, case);
    }
}

/// Both cards are bound at once, and the one that fails is the first.
#[test]
fn an_act_that_a_signal_leaves_under_way_beside_one_that_has_failed_is_the_next_runs_to_wait_for() {
    let session = Session::new(&[addr(1, 0), addr(2, 0)]);
    let model = host(2);
    let before = model.state();
    let first = {
        let mut model = model.fork();
        assert!(matches!(session.out(&mut model), End::Done));
        let of = |act: &Act| match act {
            Act::Probe { addr, .. } => Some(addr.slot()),
            _ => None,
        };
        let is_round = |acts: &[Act]| of(&acts[0]).is_some() && of(&acts[1]).is_some() && of(&acts[0]) != of(&acts[1]);
        model.acts.windows(2).position(is_round).unwrap()
    };
    let mut model = model.fork();
    model.faults.0 = vec![(first, Fault::Fails), (first + 1, SLOW)];
    model.events.push((When::Act(first + 1), Event::Signal));
    let end = session.out(&mut model);
    is_waited_for(&session, &mut model, end, first + 1, "two cards");
    assert_as_before(&model, &before, "two cards");
}
