//! Services that use the GPU and that a setting has stopped: they run again when it is home, and whatever fails in between.

use gpu_handoff::host::belongs::Belongs;
use gpu_handoff::host::nodes::Node;
use gpu_handoff::host::units::Unit;
use gpu_handoff::model::act::Act;
use gpu_handoff::model::refusal::Reason;
use gpu_handoff::settings::values::{Processes, Services, WayOut};

use crate::common::hosts::{
    EXPORTER, OLLAMA, PERSISTENCED, WEBUI, add_consoles, add_exporter, add_ollama, add_persistenced,
};
use crate::common::state::Unit as UnitState;
use crate::common::{End, Event, Fault, Model, ProbeFault, Process, Session, When, addr, host};
use crate::{assert_as_before, records, runs_again_whatever_fails};

/// This many cards, all used by the service and the daemon.
fn used(cards: u8) -> Model {
    let mut model = host(cards);
    add_persistenced(&mut model);
    add_ollama(&mut model);
    model
}

/// The first card, by this way; the service is named.
fn named(way: WayOut) -> Session {
    let mut session = Session::new(&[addr(1, 0)]);
    session.settings.services = Services::Also(vec![OLLAMA.to_owned()]);
    session.settings.way = way;
    session
}

fn runs(model: &Model, unit: &str) -> bool {
    model.units.iter().any(|u| u.name.on_host() == Some(unit) && u.active)
}

#[test]
fn a_service_that_is_named_is_stopped_before_the_daemon_and_started_after_it() {
    for (cards, way) in [
        (1, WayOut::Auto),
        (1, WayOut::Unbind),
        (2, WayOut::Auto),
        (2, WayOut::Unbind),
    ] {
        let case = format!("{cards} cards, {way:?}");
        let mut model = used(cards);
        let before = model.state();
        let session = named(way);
        let plan = session.plan_out(&mut model).unwrap();
        assert_eq!(plan.units, [OLLAMA, PERSISTENCED].map(Unit::host), "{case}");
        let note = "ollama.service has the GPU node of 0000:01:00.0";
        assert!(
            plan.notes.iter().any(|n| n.starts_with(note)),
            "{case}: {:?}",
            plan.notes
        );
        let end = session.out(&mut model);
        assert!(matches!(end, End::Done), "{case}: {end:?}");
        assert!(!runs(&model, OLLAMA), "{case}");
        assert_eq!(runs(&model, PERSISTENCED), cards == 2, "{case}");
        let away = model.acts.len();
        let end = session.home(&mut model);
        assert!(matches!(end, End::Done), "{case}: {end:?}");
        assert_as_before(&model, &before, &case);
        let started = model.acts[away..].iter().filter_map(|act| match act {
            Act::StartUnit { name, .. } | Act::RestartUnit { name } => name.on_host(),
            _ => None,
        });
        assert_eq!(started.collect::<Vec<_>>(), [PERSISTENCED, OLLAMA], "{case}");
        assert!(
            !model.acts[away..]
                .iter()
                .any(|act| matches!(act, Act::StopUnit { name, .. } if name.on_host() == Some(OLLAMA))),
            "{case}: somebody may have started it since"
        );
    }
}

/// Only when all had ended, somebody else must have started what runs: an undo and a run that was killed come before that.
#[test]
fn only_after_a_whole_way_out_what_runs_already_was_started_by_somebody_else() {
    let starts = |acts: &[Act]| -> Vec<bool> {
        let of_ollama = acts.iter().filter_map(|act| match act {
            Act::StartUnit { name, has_ended, .. } if name.on_host() == Some(OLLAMA) => Some(*has_ended),
            _ => None,
        });
        of_ollama.collect()
    };
    let session = named(WayOut::Auto);
    let mut model = used(1);
    assert!(matches!(session.out(&mut model), End::Done));
    assert!(matches!(session.home(&mut model), End::Done));
    assert_eq!(starts(&model.acts), [true]);
    let unload = |act: &Act| matches!(act, Act::UnloadModule { name } if name == "nvidia");
    let at = model.acts.iter().position(unload).unwrap();
    let mut model = used(1);
    model.faults.0 = vec![(at, Fault::Fails)];
    assert!(matches!(session.out(&mut model), End::Restored(_)));
    assert_eq!(starts(&model.acts), [false]);
}

/// Its timer starts another service that needs it, when all was planned: systemd would stop that along, and nobody start it again.
#[test]
fn what_has_come_to_need_a_service_since_the_plan_is_not_stopped_with_it() {
    let webui = Unit::host(WEBUI);
    let mut model = used(1);
    model.units.push(UnitState {
        needs: Some(Unit::host(OLLAMA)),
        ..UnitState::new(webui.clone())
    });
    let first = model.acts.len();
    model.events.push((When::Act(first), Event::Starts(webui)));
    let End::Restored(why) = named(WayOut::Auto).out(&mut model) else {
        panic!("it was stopped");
    };
    let said = "open-webui.service needs ollama.service by now, and would be stopped as well, before 'ollama: stop the service'";
    assert_eq!(why, said);
    assert!(runs(&model, OLLAMA) && runs(&model, WEBUI) && runs(&model, PERSISTENCED));
    assert!(records(&model).is_empty());
    // It is seen by the next plan, which asks for its name.
    let refusal = named(WayOut::Auto).plan_out(&mut model).unwrap_err().to_string();
    assert!(
        refusal.contains("open-webui.service needs it and would be stopped as well"),
        "{refusal}"
    );
}

#[test]
fn a_service_that_is_not_named_is_refused_with_the_line_that_allows_it() {
    for (services, own) in [
        (Services::Auto, false),
        (Services::Refuse, true),
        (Services::Also(vec!["jellyfin.service".to_owned()]), false),
    ] {
        let mut model = used(1);
        let mut session = named(WayOut::Auto);
        session.settings.services = services.clone();
        let refusal = session.plan_out(&mut model).unwrap_err();
        let units: Vec<&str> = refusal
            .0
            .iter()
            .map(|reason| match reason {
                Reason::Held { holder, .. } => match &holder.belongs_to {
                    Belongs::Unit(unit) => unit.as_str(),
                    other => panic!("{other:?}"),
                },
                other => panic!("{other}"),
            })
            .collect();
        let mut expected = vec![OLLAMA];
        if own {
            expected.insert(0, PERSISTENCED);
        }
        assert_eq!(units, expected, "{services:?}");
        let hint = "Hint: systemctl stop ollama.service, or services = \"ollama.service\" in \
                    /etc/gpu-handoff/config.toml: then that is done for you, and it is started again when the GPU is home";
        assert!(refusal.to_string().contains(hint), "{refusal}");
    }
}

/// One that has only what any GPU is used through may use the one that leaves.
#[test]
fn a_service_of_which_it_is_not_known_which_gpu_it_uses_is_stopped_as_well() {
    let mut model = host(2);
    add_ollama(&mut model);
    for process in &mut model.processes {
        process.nodes = vec![Node::Control, Node::Uvm];
    }
    let before = model.state();
    let session = named(WayOut::Auto);
    assert!(matches!(session.out(&mut model), End::Done));
    assert!(!runs(&model, OLLAMA));
    assert!(matches!(session.home(&mut model), End::Done));
    assert_as_before(&model, &before, "at home");
}

/// nvidia_drm is loaded anew for the GPU that leaves.
#[test]
fn who_draws_on_a_gpu_that_stays_is_stopped_where_it_is_a_service_and_never_ended() {
    let draws = vec![Node::Drm(addr(2, 0))];
    let mut model = host(2);
    add_ollama(&mut model);
    for process in &mut model.processes {
        process.nodes.clone_from(&draws);
    }
    let before = model.state();
    let mut session = named(WayOut::Unbind);
    session.settings.processes = Processes::Kill;
    let end = session.out(&mut model);
    assert!(matches!(end, End::Done), "{end:?}");
    let end = session.home(&mut model);
    assert!(matches!(end, End::Done), "{end:?}");
    assert_as_before(&model, &before, "at home");
    model.processes.push(Process::at_a_prompt(900, &draws));
    let refusal = session.plan_out(&mut model).unwrap_err().to_string();
    assert!(
        refusal.contains("a DRM node of 0000:02:00.0 is in use by process 900"),
        "{refusal}"
    );
    assert!(!refusal.contains("processes ="), "{refusal}");
}

/// The name alone, in a container, is not the service.
#[test]
fn a_unit_of_that_name_in_a_container_is_not_the_service() {
    let mut model = host(1);
    let mut process = Process::new(9, &[Node::Gpu(addr(1, 0))]);
    process.belongs_to = Belongs::Container {
        ctid: "104".to_owned(),
        unit: Some(OLLAMA.to_owned()),
    };
    model.processes.push(process);
    let refusal = named(WayOut::Auto).plan_out(&mut model).unwrap_err();
    assert!(
        refusal
            .to_string()
            .contains("pct exec 104 -- systemctl stop ollama.service"),
        "{refusal}"
    );
}

#[test]
fn whatever_fails_or_is_killed_the_service_runs_again_at_the_end() {
    for way in [WayOut::Auto, WayOut::Unbind] {
        let case = format!("a service, {way:?}");
        runs_again_whatever_fails(&case, &|| used(1), &named(way), &[Unit::host(OLLAMA)]);
    }
}

/// What it uses is there again in a moment, or has been all the time: it does not wait for what has left.
#[test]
fn a_service_that_uses_only_what_stays_runs_again_as_soon_as_the_rest_has_left() {
    for (case, nodes, way) in [
        ("it draws there", vec![Node::Drm(addr(2, 0))], WayOut::Unbind),
        (
            "it may use either",
            vec![Node::Gpu(addr(2, 0)), Node::Control],
            WayOut::Auto,
        ),
    ] {
        let mut model = host(2);
        add_ollama(&mut model);
        for process in &mut model.processes {
            process.nodes.clone_from(&nodes);
        }
        let before = model.state();
        let session = named(way);
        let plan = session.plan_out(&mut model).unwrap();
        assert_eq!(plan.again, [Unit::host(OLLAMA)], "{case}");
        let end = "it is started again when the other GPU has left";
        assert!(plan.notes.iter().any(|n| n.ends_with(end)), "{case}: {:?}", plan.notes);
        assert!(matches!(session.out(&mut model), End::Done), "{case}");
        assert!(runs(&model, OLLAMA), "{case}");
        // Whoever stops it from here on has it stopped.
        assert!(records(&model)[0].units.is_empty(), "{case}");
        model.switch_unit(&Unit::host(OLLAMA), false).unwrap();
        assert!(matches!(session.home(&mut model), End::Done), "{case}");
        assert!(!runs(&model, OLLAMA), "{case}");
        model.switch_unit(&Unit::host(OLLAMA), true).unwrap();
        assert_as_before(&model, &before, case);
    }
}

/// systemd stops it as well, and starts it with nothing.
#[test]
fn what_needs_a_service_that_is_stopped_runs_again_as_well() {
    for cards in [1, 2] {
        let mut model = host(cards);
        add_exporter(&mut model);
        let before = model.state();
        let mut session = named(WayOut::Auto);
        session.settings.services = Services::Auto;
        let refusal = session.plan_out(&mut model).unwrap_err().to_string();
        let why = "nvidia-persistenced.service may be stopped for it, but exporter.service needs it and would be stopped as \
                   well. Hint: where that does no harm, name exporter.service in 'services' as well";
        assert!(refusal.contains(why), "{cards}: {refusal}");
        session.settings.services = Services::Also(vec![EXPORTER.to_owned()]);
        let plan = session.plan_out(&mut model).unwrap();
        assert_eq!(plan.units, [EXPORTER, PERSISTENCED].map(Unit::host), "{cards}");
        let note = "exporter.service needs nvidia-persistenced.service, and is stopped and started again with it";
        assert!(plan.notes.iter().any(|n| n == note), "{cards}: {:?}", plan.notes);
        assert!(matches!(session.out(&mut model), End::Done), "{cards}");
        for unit in [EXPORTER, PERSISTENCED] {
            assert_eq!(runs(&model, unit), cards == 2, "{cards}: {unit}");
        }
        assert!(matches!(session.home(&mut model), End::Done), "{cards}");
        assert_as_before(&model, &before, &format!("{cards} cards"));
    }
}

/// NVIDIA's own is started anew for the GPU that is back, and what has come to need it meanwhile with it.
#[test]
fn what_has_come_to_need_the_daemon_meanwhile_runs_on_when_the_gpu_is_home() {
    let mut model = host(2);
    add_exporter(&mut model);
    model.switch_unit(&Unit::host(EXPORTER), false).unwrap();
    let session = named(WayOut::Auto);
    assert!(matches!(session.out(&mut model), End::Done));
    model.switch_unit(&Unit::host(EXPORTER), true).unwrap();
    assert!(matches!(session.home(&mut model), End::Done));
    assert!(runs(&model, EXPORTER) && runs(&model, PERSISTENCED));
}

/// It is being started, or has ended and left something: a stop would do nothing, and a start something new.
#[test]
fn a_service_that_does_not_run_is_neither_stopped_nor_started() {
    let mut model = used(1);
    for unit in &mut model.units {
        unit.active = unit.name.on_host() != Some(OLLAMA);
    }
    let refusal = named(WayOut::Auto).plan_out(&mut model).unwrap_err().to_string();
    assert!(refusal.contains("in use by process"), "{refusal}");
    assert!(
        refusal.contains("ollama.service may be stopped for it, but is \"inactive\""),
        "{refusal}"
    );
    assert!(!runs(&model, OLLAMA));
}

/// The console of a GPU that leaves goes with it, where a GPU stays that others draw on, as without the service.
#[test]
fn a_console_is_found_beside_a_service_that_is_stopped() {
    for service in [false, true] {
        let mut model = host(2);
        add_consoles(&mut model, true);
        if service {
            add_ollama(&mut model);
        }
        let before = model.state();
        let session = named(WayOut::Auto);
        let plan = session.plan_out(&mut model).unwrap();
        assert_eq!(plan.consoles, ["vtcon1"], "{service}");
        assert!(matches!(session.out(&mut model), End::Done), "{service}");
        assert!(matches!(session.home(&mut model), End::Done), "{service}");
        assert_as_before(&model, &before, "at home");
    }
}

/// Each try to bring it home would end whoever needs the daemon, for nothing.
#[test]
fn for_a_gpu_that_does_not_come_home_the_daemon_of_the_others_is_not_started_anew() {
    let restarts = |acts: &[Act]| acts.iter().filter(|act| matches!(act, Act::RestartUnit { .. })).count();
    for is_gone in [true, false] {
        let mut model = host(2);
        add_exporter(&mut model);
        let mut session = named(WayOut::Unbind);
        session.settings.services = Services::Also(vec![EXPORTER.to_owned()]);
        assert!(matches!(session.out(&mut model), End::Done));
        match is_gone {
            true => model.vanish(addr(1, 0)),
            false => model.probe_faults = vec![("nvidia", ProbeFault::Always)],
        }
        let away = model.acts.len();
        for _ in 0..3 {
            assert!(!matches!(session.home(&mut model), End::Done), "{is_gone}");
        }
        assert_eq!(restarts(&model.acts[away..]), 0, "{is_gone}");
        assert!(runs(&model, EXPORTER) && runs(&model, PERSISTENCED), "{is_gone}");
        if !is_gone {
            model.probe_faults = Vec::new();
            assert!(matches!(session.home(&mut model), End::Done));
            assert_eq!(restarts(&model.acts[away..]), 1, "it learns of the one that is back");
        }
    }
}
