//! DCGM, which lets the driver go and runs on where it can; and NVIDIA's MPS, which computes for others and is not NVIDIA's to stop.

use gpu_handoff::host::belongs::Belongs;
use gpu_handoff::host::nodes::Node;
use gpu_handoff::host::units::Unit;
use gpu_handoff::model::act::Act;
use gpu_handoff::settings::values::{Processes, Services, WayOut};

use crate::common::hosts::{DCGM, add_dcgm, add_persistenced, driver_use};
use crate::common::state::Unit as State;
use crate::common::{End, Fault, Model, Process, Session, addr, host};
use crate::{assert_as_before, records, runs_again_whatever_fails};

/// This many cards, all used by DCGM.
fn used(cards: u8, version: &str, can_let_go: bool) -> Model {
    let mut model = host(cards);
    version.clone_into(&mut model.version);
    add_persistenced(&mut model);
    add_dcgm(&mut model, can_let_go);
    model
}

fn asked(way: WayOut) -> Session {
    let mut session = Session::new(&[addr(1, 0)]);
    session.settings.way = way;
    session
}

fn is_up(model: &Model, unit: &Unit) -> bool {
    model.units.iter().any(|u| u.name == *unit && u.active)
}

/// What is done to DCGM, in words.
fn done(acts: &[Act]) -> Vec<String> {
    let acts = acts.iter().map(ToString::to_string);
    acts.filter(|act| act.starts_with("nvidia-dcgm")).collect()
}

#[test]
fn from_driver_590_on_it_lets_the_driver_go_and_runs_on() {
    let go = "nvidia-dcgm: let the driver go";
    let again = "nvidia-dcgm: use the driver again";
    for (cards, way, there, home) in [
        (1, WayOut::Auto, vec![go], vec![again]),
        (1, WayOut::Unbind, vec![go], vec![again]),
        // It has the others back as soon as the first has left.
        (2, WayOut::Auto, vec![go, again], vec![again]),
        (2, WayOut::Unbind, vec![go, again], vec![again]),
    ] {
        let case = format!("{cards} cards, {way:?}");
        let mut model = used(cards, "590.48.01", true);
        let before = model.state();
        let session = asked(way);
        let plan = session.plan_out(&mut model).unwrap();
        assert!(plan.units.contains(&driver_use()), "{case}: {:?}", plan.units);
        assert!(!plan.units.contains(&Unit::host(DCGM)), "{case}");
        let note = "; it lets the driver go and runs on, and uses it again when the GPU is home";
        let is_it = |n: &String| n.starts_with(DCGM) && n.ends_with(note);
        assert!(plan.notes.iter().any(is_it), "{case}: {:?}", plan.notes);
        let end = session.out(&mut model);
        assert!(matches!(end, End::Done), "{case}: {end:?}");
        assert_eq!(done(&model.acts), there, "{case}");
        assert!(is_up(&model, &Unit::host(DCGM)), "{case}");
        assert_eq!(is_up(&model, &driver_use()), cards == 2, "{case}");
        let away = model.acts.len();
        let end = session.home(&mut model);
        assert!(matches!(end, End::Done), "{case}: {end:?}");
        assert_eq!(done(&model.acts[away..]), home, "{case}");
        assert_as_before(&model, &before, &case);
    }
}

#[test]
fn by_an_older_driver_or_an_older_dcgmi_it_is_stopped_and_started_again() {
    for (version, can_let_go) in [("580.105.08", true), ("590.48.01", false), ("", true)] {
        let case = format!("{version:?}, {can_let_go}");
        let mut model = used(1, version, can_let_go);
        let before = model.state();
        let session = asked(WayOut::Auto);
        let end = session.out(&mut model);
        assert!(matches!(end, End::Done), "{case}: {end:?}");
        assert_eq!(done(&model.acts), ["nvidia-dcgm: stop the service"], "{case}");
        assert!(!is_up(&model, &Unit::host(DCGM)), "{case}");
        let end = session.home(&mut model);
        assert!(matches!(end, End::Done), "{case}: {end:?}");
        assert_as_before(&model, &before, &case);
    }
}

/// As where its host engine gives no answer.
#[test]
fn where_it_does_not_let_go_it_is_stopped_instead() {
    for cards in [1, 2] {
        let mut model = used(cards, "590.48.01", true);
        let before = model.state();
        let session = asked(WayOut::Auto);
        let plan = session.plan_out(&mut model).unwrap();
        let stops = |act: &Act| matches!(act, Act::StopUnit { name, .. } if *name == driver_use());
        let at = plan.steps.iter().position(|step| stops(&step.act)).unwrap();
        model.faults.0 = vec![(at, Fault::Fails)];
        let end = session.out(&mut model);
        assert!(matches!(end, End::Done), "{cards}: {end:?}");
        assert_eq!(
            done(&model.acts)[..2],
            ["nvidia-dcgm: let the driver go", "nvidia-dcgm: stop the service"],
            "{cards}"
        );
        assert_eq!(is_up(&model, &Unit::host(DCGM)), cards == 2, "{cards}");
        assert!(records(&model)[0].units.contains(&driver_use()), "{cards}");
        let end = session.home(&mut model);
        assert!(matches!(end, End::Done), "{cards}: {end:?}");
        assert_as_before(&model, &before, &format!("{cards} cards"));
    }
}

/// Others that it would take along are nobody's to stop unasked, and nothing is lost by asking it first.
#[test]
fn what_needs_it_runs_on_and_keeps_it_from_being_stopped() {
    let exporter = Unit::host("exporter.service");
    let mut model = used(1, "590.48.01", true);
    model.units.push(State {
        active: true,
        needs: Some(Unit::host(DCGM)),
        ..State::new(exporter.clone())
    });
    let before = model.state();
    let session = asked(WayOut::Auto);
    let plan = session.plan_out(&mut model).unwrap();
    assert!(
        plan.steps.iter().all(|step| step
            .rungs
            .iter()
            .flatten()
            .all(|act| !matches!(act, Act::StopUnit { .. }))),
        "{plan:?}"
    );
    assert!(matches!(session.out(&mut model), End::Done));
    assert!(is_up(&model, &exporter));
    assert!(matches!(session.home(&mut model), End::Done));
    assert_as_before(&model, &before, "with what needs it");
}

/// At home it is asked to use the driver again; one that does not is started anew, which takes it up.
#[test]
fn where_it_does_not_take_the_driver_up_it_is_started_anew() {
    let mut model = used(1, "590.48.01", true);
    let before = model.state();
    let session = asked(WayOut::Auto);
    assert!(matches!(session.out(&mut model), End::Done));
    let mut undisturbed = model.fork();
    assert!(matches!(session.home(&mut undisturbed), End::Done));
    let starts = |act: &Act| matches!(act, Act::StartUnit { name, .. } if *name == driver_use());
    let at = undisturbed.acts.iter().position(starts).unwrap();
    model.faults.0 = vec![(at, Fault::Fails)];
    let away = model.acts.len();
    let end = session.home(&mut model);
    assert!(matches!(end, End::Done), "{end:?}");
    assert_eq!(
        done(&model.acts[away..]),
        [
            "nvidia-dcgm: use the driver again",
            "nvidia-dcgm: start the service anew"
        ]
    );
    assert_as_before(&model, &before, "at home");
}

/// Whoever stops it while the GPU is away has it started as any other service that the handoff has to give back.
#[test]
fn one_that_has_ended_meanwhile_is_started_at_home() {
    let mut model = used(1, "590.48.01", true);
    let before = model.state();
    let session = asked(WayOut::Auto);
    assert!(matches!(session.out(&mut model), End::Done));
    model.switch_unit(&Unit::host(DCGM), false).unwrap();
    assert!(matches!(session.home(&mut model), End::Done));
    assert_as_before(&model, &before, "at home");
}

#[test]
fn whatever_fails_or_is_killed_it_uses_the_driver_at_the_end() {
    let used = || used(1, "590.48.01", true);
    let units = [driver_use(), Unit::host(DCGM)];
    for way in [WayOut::Auto, WayOut::Unbind] {
        runs_again_whatever_fails(&format!("DCGM, {way:?}"), &used, &asked(way), &units);
    }
}

#[test]
fn with_refuse_it_is_in_the_way() {
    let mut model = used(1, "590.48.01", true);
    let before = model.state();
    let mut session = asked(WayOut::Auto);
    session.settings.services = Services::Refuse;
    let refusal = session.plan_out(&mut model).unwrap_err().to_string();
    assert!(refusal.contains("services = \"nvidia-dcgm.service\""), "{refusal}");
    assert_as_before(&model, &before, "refused");
}

/// MPS by whom, and what a hint says of it.
#[test]
fn mps_is_refused_with_what_ends_it_and_stopped_where_its_service_is_named() {
    let quit = "Hint: it is NVIDIA's MPS, which computes for others: when it has no clients, 'echo quit | \
                nvidia-cuda-mps-control' as the user who has started it, then start again";
    let named = "; or services = \"mps.service\" in /etc/gpu-handoff/config.toml: then it is stopped for you, whoever \
                 computes through it, and is started again when the GPU is home";
    let service = Belongs::Unit("mps.service".to_owned());
    let session_of = || Belongs::Session { id: "3".to_owned() };
    for (belongs_to, has_unit) in [
        (session_of(), false),
        (Belongs::Unknown, false),
        (service.clone(), true),
    ] {
        let mut model = host(1);
        model.processes.push(Process {
            comm: "nvidia-cuda-mps",
            belongs_to: belongs_to.clone(),
            ..Process::new(500, &[Node::Gpu(addr(1, 0)), Node::Control, Node::Uvm])
        });
        let before = model.state();
        let refusal = asked(WayOut::Auto).plan_out(&mut model).unwrap_err().to_string();
        assert!(refusal.contains("in use by process 500 (nvidia-cuda-mps"), "{refusal}");
        assert!(refusal.contains(quit), "{refusal}");
        assert_eq!(refusal.contains(named), has_unit, "{refusal}");
        assert!(!refusal.contains("processes ="), "{refusal}");
        assert_as_before(&model, &before, "refused");
    }
    // At a prompt it is a process as any other where a setting has these end.
    let mut model = host(1);
    model.processes.push(Process {
        comm: "nvidia-cuda-mps",
        ..Process::at_a_prompt(500, &[Node::Gpu(addr(1, 0))])
    });
    let mut session = asked(WayOut::Auto);
    session.settings.processes = Processes::Terminate;
    assert!(matches!(session.out(&mut model), End::Done));
    // By a service that is named.
    let mps = Unit::host("mps.service");
    let mut model = host(1);
    model.units.push(State::new(mps.clone()));
    model.switch_unit(&mps, true).unwrap();
    model.processes.last_mut().unwrap().comm = "nvidia-cuda-mps";
    let before = model.state();
    let mut session = asked(WayOut::Auto);
    session.settings.services = Services::Also(vec!["mps.service".to_owned()]);
    assert!(matches!(session.out(&mut model), End::Done));
    assert!(!is_up(&model, &mps));
    assert!(matches!(session.home(&mut model), End::Done));
    assert_as_before(&model, &before, "at home");
}
