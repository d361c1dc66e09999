//! What is stopped without being named: NVIDIA's own services, each down while the GPU is away, and as it was afterwards, whatever
//! fails; and NVIDIA's MPS, which is somebody's work, and only stopped by the name of its service.

use gpu_handoff::host::units::Unit;
use gpu_handoff::settings::values::{Services, WayOut};

use crate::common::hosts::{FABRICMANAGER, MPS, PERSISTENCED, POWERD, add_started};
use crate::common::{End, Model, Session, addr, host};
use crate::{assert_as_before, runs_again_whatever_fails};

/// This many cards, all used by it.
fn used(unit: &str, cards: u8) -> Model {
    let mut model = host(cards);
    add_started(&mut model, &Unit::host(unit));
    model
}

fn asked(way: WayOut, services: Services) -> Session {
    let mut session = Session::new(&[addr(1, 0)]);
    session.settings.way = way;
    session.settings.services = services;
    session
}

fn is_up(model: &Model, unit: &str) -> bool {
    model.units.iter().any(|u| u.name == Unit::host(unit) && u.active)
}

#[test]
fn it_is_down_while_the_gpu_is_away_and_runs_again_whatever_fails() {
    let named = || Services::Also(vec![MPS.to_owned()]);
    for (unit, services) in [
        (PERSISTENCED, Services::Auto),
        (POWERD, Services::Auto),
        (FABRICMANAGER, Services::Auto),
        (MPS, named()),
    ] {
        for way in [WayOut::Auto, WayOut::Unbind] {
            let session = asked(way, services.clone());
            let mut model = used(unit, 1);
            let before = model.state();
            assert!(matches!(session.out(&mut model), End::Done), "{unit}");
            assert!(!is_up(&model, unit), "{unit}");
            assert!(matches!(session.home(&mut model), End::Done), "{unit}");
            assert_as_before(&model, &before, unit);
            runs_again_whatever_fails(unit, &|| used(unit, 1), &session, &[Unit::host(unit)]);
        }
    }
}

/// Those that serve each GPU by itself run again for the one that stays; the fabric manager serves all at once.
#[test]
fn where_a_gpu_stays_it_serves_that_one() {
    for unit in [PERSISTENCED, POWERD] {
        let mut model = used(unit, 2);
        let before = model.state();
        let session = asked(WayOut::Unbind, Services::Auto);
        assert!(matches!(session.out(&mut model), End::Done), "{unit}");
        assert!(is_up(&model, unit), "{unit}");
        assert!(matches!(session.home(&mut model), End::Done), "{unit}");
        assert_as_before(&model, &before, unit);
    }
    let mut model = used(FABRICMANAGER, 2);
    let refusal = asked(WayOut::Unbind, Services::Auto).plan_out(&mut model).unwrap_err();
    assert!(refusal.to_string().contains(FABRICMANAGER), "{refusal}");
    assert!(is_up(&model, FABRICMANAGER));
}

#[test]
fn where_nothing_may_be_stopped_it_is_refused_with_the_line_that_allows_it() {
    for (unit, services) in [
        (PERSISTENCED, Services::Refuse),
        (POWERD, Services::Refuse),
        (FABRICMANAGER, Services::Refuse),
        (MPS, Services::Auto),
    ] {
        let mut model = used(unit, 1);
        let before = model.state();
        let refusal = asked(WayOut::Auto, services)
            .plan_out(&mut model)
            .unwrap_err()
            .to_string();
        assert!(refusal.contains(&format!("services = \"{unit}\"")), "{refusal}");
        assert_as_before(&model, &before, unit);
    }
}
