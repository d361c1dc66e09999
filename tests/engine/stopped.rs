//! Each kind of user that a setting allows to be stopped: it is down while the GPU is away, runs again at home, and whatever
//! fails or is killed in between leaves nothing stopped that is not named.

use std::time::Duration;

use gpu_handoff::base::pci::PciAddr;
use gpu_handoff::host::belongs::Belongs;
use gpu_handoff::host::nodes::Node;
use gpu_handoff::host::units::{Client, Ha, Unit, Verb};
use gpu_handoff::model::act::Act;
use gpu_handoff::model::plan::containers_time;
use gpu_handoff::model::record::{Record, State};
use gpu_handoff::settings::values::{Containers, DisplayManager, Doubt, HaContainers, Services, Settings, WayOut};

use crate::common::hosts::{
    GDM, OLLAMA, PERSISTENCED, SOCKET, WEBUI, add_desktop, add_inside, add_of_ha, add_of_user, add_ollama,
    add_persistenced, add_run, add_socket, add_webui, add_whole, inside, of_ha, of_user, run, whole,
};
use crate::common::{End, Event, Fault, Model, Process, Session, Twist, When, addr, host};
use crate::{assert_as_before, logged, records, runs_again_whatever_fails};

/// A kind of user: how it comes into the model, which setting allows what, and what is stopped in which order.
struct Kind {
    name: &'static str,
    add: fn(&mut Model),
    allow: fn(&mut Settings),
    stopped: Vec<Unit>,
    started: Vec<Unit>,
    hint: &'static str,
}

fn kinds() -> Vec<Kind> {
    let client = |name, client, add| Kind {
        name,
        add,
        allow: |settings| settings.containers = Containers::Release,
        stopped: vec![run(client)],
        started: vec![run(client)],
        hint: "stop 0123456789ab, or containers = \"release\" in /etc/gpu-handoff/config.toml: then that is done for you, and \
               it is started again when the GPU is home",
    };
    vec![
        client("docker", Client::Docker, |model| add_run(model, Client::Docker)),
        client("podman", Client::Podman, |model| add_run(model, Client::Podman)),
        Kind {
            name: "a container as a whole",
            add: |model| {
                add_inside(model);
                add_whole(model);
            },
            allow: |settings| settings.containers = Containers::Shutdown,
            stopped: vec![whole()],
            started: vec![whole()],
            hint: "Hint: pct shutdown 104, or containers = \"shutdown\" in /etc/gpu-handoff/config.toml: then that is done for \
                   you, and it is started again when the GPU is home",
        },
        Kind {
            name: "a container that HA manages",
            add: |model| {
                add_inside(model);
                add_of_ha(model);
            },
            allow: |settings| {
                settings.containers = Containers::Shutdown;
                settings.ha_containers = HaContainers::Stop;
            },
            stopped: vec![of_ha()],
            started: vec![of_ha()],
            hint: "Hint: pct shutdown 104, or containers = \"shutdown\" in /etc/gpu-handoff/config.toml",
        },
        Kind {
            name: "a service inside, where the container might be shut down",
            add: add_inside,
            allow: |settings| settings.containers = Containers::Shutdown,
            stopped: vec![inside()],
            started: vec![inside()],
            hint: "containers = \"release\"",
        },
        Kind {
            name: "a desktop",
            add: |model| {
                add_desktop(model);
                for (pid, belongs_to) in [
                    (800, session("desktop")),
                    (
                        801,
                        Belongs::UserUnit {
                            uid: Some(1000),
                            name: "org.gnome.Shell@wayland.service".to_owned(),
                        },
                    ),
                ] {
                    model.processes.push(of(pid, belongs_to));
                }
            },
            allow: |settings| settings.display_manager = DisplayManager::Stop,
            stopped: vec![Unit::host(GDM)],
            started: vec![Unit::host(GDM)],
            hint: "Hint: systemctl stop display-manager, or display-manager = \"stop\" in /etc/gpu-handoff/config.toml: then \
                   that is done for you, and it is started again when the GPU is home",
        },
        Kind {
            name: "a service with its socket",
            add: |model| {
                add_ollama(model);
                add_socket(model);
            },
            allow: |settings| settings.services = Services::Also(vec![OLLAMA.to_owned()]),
            stopped: [SOCKET, OLLAMA].map(Unit::host).to_vec(),
            started: [SOCKET, OLLAMA].map(Unit::host).to_vec(),
            hint: "services = \"ollama.service\"",
        },
        Kind {
            name: "two services, of which one needs the other",
            add: add_webui,
            allow: |settings| settings.services = Services::Also([WEBUI, OLLAMA].map(str::to_owned).to_vec()),
            stopped: [WEBUI, OLLAMA].map(Unit::host).to_vec(),
            started: [OLLAMA, WEBUI].map(Unit::host).to_vec(),
            hint: "services = \"ollama.service\"",
        },
        Kind {
            name: "a service of a user's systemd",
            add: add_of_user,
            allow: |settings| settings.services = Services::Also(of_user().word().into_iter().collect()),
            stopped: vec![of_user()],
            started: vec![of_user()],
            hint: "Hint: systemctl --user stop ollama.service as that user, or services = \"user-1000/ollama.service\" in \
                   /etc/gpu-handoff/config.toml: then that is done for you, and it is started again when the GPU is home",
        },
    ]
}

fn session(what: &str) -> Belongs {
    Belongs::OtherSession {
        id: "2".to_owned(),
        what: what.to_owned(),
    }
}

fn of(pid: i32, belongs_to: Belongs) -> Process {
    Process {
        belongs_to,
        ..Process::new(pid, &[Node::Gpu(addr(1, 0))])
    }
}

/// This many cards, all used by such a one and by the persistence daemon.
fn used(kind: &Kind, cards: u8) -> Model {
    let mut model = host(cards);
    add_persistenced(&mut model);
    (kind.add)(&mut model);
    model
}

/// The one of that name.
fn kind_named(name: &str) -> Kind {
    kinds().into_iter().find(|kind| kind.name == name).unwrap()
}

fn asked(kind: &Kind, way: WayOut) -> Session {
    let gpus: [PciAddr; 1] = [addr(1, 0)];
    let mut session = Session::new(&gpus);
    session.settings.way = way;
    (kind.allow)(&mut session.settings);
    session
}

/// Those of the kind that were stopped, or started, by these acts; the daemon is another test's.
fn switched(kind: &Kind, acts: &[Act], on: bool) -> Vec<Unit> {
    let one = |act: &Act| match act {
        Act::StopUnit { name, .. } if !on => Some(name.clone()),
        Act::StartUnit { name, .. } if on => Some(name.clone()),
        _ => None,
    };
    acts.iter()
        .filter_map(one)
        .filter(|unit| kind.stopped.contains(unit))
        .collect()
}

fn runs(kind: &Kind, model: &Model) -> bool {
    kind.stopped.iter().all(|unit| model.is_up(unit))
}

#[test]
fn it_is_stopped_in_its_order_and_started_in_its_order_when_the_gpu_is_home() {
    for kind in kinds() {
        for (cards, way) in [
            (1, WayOut::Auto),
            (1, WayOut::Unbind),
            (2, WayOut::Auto),
            (2, WayOut::Unbind),
        ] {
            let case = format!("{}: {cards} cards, {way:?}", kind.name);
            let mut model = used(&kind, cards);
            let before = model.state();
            let session = asked(&kind, way);
            let out = session.out(&mut model);
            assert!(matches!(out, End::Done), "{case}: {out:?}");
            assert_eq!(switched(&kind, &model.acts, false), kind.stopped, "{case}");
            assert!(!kind.stopped.iter().any(|unit| model.is_up(unit)), "{case}");
            let away = model.acts.len();
            let home = session.home(&mut model);
            assert!(matches!(home, End::Done), "{case}: {home:?}");
            assert_eq!(switched(&kind, &model.acts[away..], true), kind.started, "{case}");
            assert_as_before(&model, &before, &case);
        }
    }
}

/// What is asked of its program, how long that is waited for, and what the record has for the way home.
#[test]
fn a_container_has_as_long_for_its_end_as_the_settings_or_it_itself_say_whichever_is_longer() {
    for (name, set, own, ends, words) in [
        ("docker", 30, 10, 30, "stop -t 30"),
        ("docker", 30, 120, 120, "stop -t 120"),
        ("docker", 200, 120, 200, "stop -t 200"),
        ("podman", 5, 10, 10, "stop -t 10"),
        ("a container as a whole", 30, 0, 30, "--timeout 30"),
        ("a container as a whole", 90, 0, 90, "--timeout 90"),
    ] {
        let case = format!("{name}: {set} s, {own} s");
        let kind = kind_named(name);
        let container = &kind.stopped[0];
        let mut model = used(&kind, 1);
        for unit in model.units.iter_mut().filter(|unit| unit.name == *container) {
            unit.ends_within_s = own;
        }
        let mut session = asked(&kind, WayOut::Auto);
        session.settings.budgets.container = Duration::from_secs(set);
        let plan = session.plan_out(&mut model).unwrap();
        let ends_within = |act: &Act| match act {
            Act::StopUnit { name, within_s } | Act::StartUnit { name, within_s, .. } if name == container => {
                Some(*within_s)
            }
            _ => None,
        };
        let stop = plan.steps.iter().find(|step| ends_within(&step.act).is_some()).unwrap();
        let bound = session.settings.budgets.unit + Duration::from_secs(ends) * 2;
        assert_eq!((ends_within(&stop.act), stop.deadline), (Some(ends), bound), "{case}");
        let command = container.command(Verb::Stop, ends).join(" ");
        assert!(command.contains(words), "{case}: {command}");
        let budgets = plan.with_ends(session.settings.budgets.clone());
        assert_eq!(containers_time(&plan.units, &budgets), bound, "{case}");

        assert!(matches!(session.out(&mut model), End::Done), "{case}");
        let record = &records(&model)[0];
        assert_eq!(record.budgets, budgets, "{case}");
        // Where all have ended, one that runs by now somebody has started.
        for (state, waited) in [(State::Leaving, ends), (State::Away, 0)] {
            let mut model = model.fork();
            let ledger = model.ledger.clone().unwrap();
            ledger.put(Record {
                state,
                ..record.clone()
            });
            let away = model.acts.len();
            assert!(matches!(session.home(&mut model), End::Done), "{case}");
            let start = model.acts[away..].iter().find_map(ends_within);
            assert_eq!(start, Some(waited), "{case}: {state:?}");
        }
    }
}

#[test]
fn without_the_setting_it_is_refused_with_the_line_that_allows_it() {
    for kind in kinds() {
        let mut model = used(&kind, 1);
        let before = model.state();
        let refusal = Session::new(&[addr(1, 0)])
            .plan_out(&mut model)
            .unwrap_err()
            .to_string();
        assert!(refusal.contains(kind.hint), "{}: {refusal}", kind.name);
        assert_as_before(&model, &before, kind.name);
    }
}

/// A start for a backup takes a GPU only where nobody uses it.
#[test]
fn for_a_backup_it_is_left_alone() {
    for kind in kinds() {
        let mut session = asked(&kind, WayOut::Auto);
        session.settings.only_if_free();
        let mut model = used(&kind, 1);
        assert!(session.plan_out(&mut model).is_err(), "{}", kind.name);
    }
}

#[test]
fn whatever_fails_or_is_killed_it_runs_again_at_the_end() {
    for kind in kinds() {
        for way in [WayOut::Auto, WayOut::Unbind] {
            let case = format!("{}, {way:?}", kind.name);
            runs_again_whatever_fails(&case, &|| used(&kind, 1), &asked(&kind, way), &kind.stopped);
        }
    }
}

/// The way home is another run's, which has the record alone. With the host's next start that is gone, and systemd and Proxmox
/// start what they start at a boot.
#[test]
fn the_record_names_it_until_it_is_started_again() {
    for kind in kinds() {
        let mut model = used(&kind, 1);
        let session = asked(&kind, WayOut::Auto);
        assert!(matches!(session.out(&mut model), End::Done), "{}", kind.name);
        let records = records(&model);
        assert!(
            kind.stopped.iter().all(|unit| records[0].units.contains(unit)),
            "{}",
            kind.name
        );
        let json = serde_json::to_string(&records[0]).unwrap();
        let read: gpu_handoff::model::record::Record = serde_json::from_str(&json).unwrap();
        assert_eq!(read.units, records[0].units, "{}", kind.name);
    }
}

/// Of a desktop that goes on where somebody is logged in otherwise, the look before the GPU leaves says that it is used.
#[test]
fn what_outlives_its_desktop_keeps_the_gpu_and_the_desktop_comes_back() {
    let kind = kind_named("a desktop");
    let mut model = used(&kind, 1);
    let session = asked(&kind, WayOut::Unbind);
    let plan = session.plan_out(&mut model).unwrap();
    let note = "as 'display-manager' says; it is started again when the GPU is home, and all desktops end";
    assert!(plan.notes.iter().any(|n| n.ends_with(note)), "{:?}", plan.notes);
    // Another user's, by a number of which no desktop is known.
    model.processes.push(of(
        802,
        Belongs::UserUnit {
            uid: Some(1001),
            name: "pipewire.service".to_owned(),
        },
    ));
    let before = model.units.clone();
    let end = session.out(&mut model);
    assert!(matches!(end, End::Refused(_)), "{end:?}");
    assert_eq!(model.units, before);
}

/// It has the driver's own nodes open, as every user of any GPU has, and draws on the other card.
#[test]
fn a_desktop_on_another_gpu_goes_on() {
    for way in [WayOut::Auto, WayOut::Unbind] {
        let kind = kind_named("a desktop");
        let mut model = host(2);
        add_desktop(&mut model);
        for process in &mut model.processes {
            process.nodes = vec![Node::Gpu(addr(2, 0)), Node::Control, Node::Modeset];
        }
        let before = model.state();
        let refusal = asked(&kind, way).plan_out(&mut model).unwrap_err().to_string();
        // Its own display manager is not stopped for it, whatever is set, and not offered.
        let other =
            "it uses 0000:02:00.0, and may use this GPU as well. Hint: take the risk with doubt = \"go-on\" in ";
        assert!(refusal.contains(other), "{refusal}");
        let mut session = asked(&kind, way);
        session.settings.doubt = Doubt::GoOn;
        assert!(matches!(session.out(&mut model), End::Done));
        assert!(runs(&kind, &model));
        assert!(matches!(session.home(&mut model), End::Done));
        assert_as_before(&model, &before, "at home");
    }
}

/// A shell beside the service: the whole container goes down then, and nothing is said of a service that is stopped inside.
#[test]
fn where_a_container_is_shut_down_nothing_is_stopped_inside() {
    let mut model = host(1);
    add_inside(&mut model);
    add_whole(&mut model);
    let kind = kind_named("a container as a whole");
    let plan = asked(&kind, WayOut::Auto).plan_out(&mut model).unwrap();
    assert_eq!(plan.units, [whole()]);
    assert!(
        plan.notes.iter().all(|note| !note.contains("the container goes on")),
        "{:?}",
        plan.notes
    );
}

/// The desktop is the last to go: where another does not stop, nobody's work is lost.
#[test]
fn a_desktop_goes_after_what_may_fail() {
    let mut model = host(1);
    add_persistenced(&mut model);
    add_desktop(&mut model);
    add_ollama(&mut model);
    let mut session = Session::new(&[addr(1, 0)]);
    session.settings.services = Services::Also(vec![OLLAMA.to_owned()]);
    session.settings.display_manager = DisplayManager::Stop;
    let plan = session.plan_out(&mut model).unwrap();
    assert_eq!(plan.units, [OLLAMA, GDM, PERSISTENCED].map(Unit::host));
}

/// The display manager comes back, and whose work is lost is said.
#[test]
fn a_desktop_that_has_ended_for_nothing_is_said() {
    let kind = kind_named("a desktop");
    let session = asked(&kind, WayOut::Unload);
    let mut undisturbed = used(&kind, 1);
    assert!(matches!(session.out(&mut undisturbed), End::Done));
    let at = |wanted: fn(&Act) -> bool| undisturbed.acts.iter().position(wanted).unwrap();
    let stop = at(|act| matches!(act, Act::StopUnit { .. }));
    let waited = at(|act| matches!(act, Act::AwaitDesktops { .. }));
    let unload = at(|act| matches!(act, Act::UnloadModule { name } if name == "nvidia"));
    assert!(stop + 1 == waited && waited < unload, "{:?}", undisturbed.acts);
    let mut model = used(&kind, 1);
    model.faults.0 = vec![(unload, Fault::Fails)];
    let End::RestoredBut(but) = session.out(&mut model) else {
        panic!("it has failed");
    };
    assert!(
        but.starts_with("the desktop has ended (process ") && but.ends_with("whoever was at it has to log in again"),
        "{but}"
    );
    assert!(runs(&kind, &model));
}

/// What only waits is broken off by a signal, and what it has begun is undone in the seconds that are left: what is stopped then,
/// so that its socket listens again, is not broken off.
#[test]
fn whoever_was_stopped_runs_again_after_a_signal_at_anything_that_waits() {
    for kind in kinds() {
        for way in [WayOut::Auto, WayOut::Unbind] {
            let model = used(&kind, 1);
            let first = model.acts.len();
            let acts = {
                let mut model = model.fork();
                assert!(matches!(asked(&kind, way).out(&mut model), End::Done));
                model.acts[first..].to_vec()
            };
            let waiting: Vec<usize> = (0..acts.len()).filter(|at| acts[*at].only_waits()).collect();
            assert!(waiting.len() > 1, "{}: {acts:?}", kind.name);
            for at in waiting {
                let mut model = model.fork();
                model.faults.0 = vec![(first + at, Fault::Signal)];
                let end = asked(&kind, way).out(&mut model);
                let what = format!("{}, {way:?}, {}: {end:?}", kind.name, acts[at]);
                // A desktop that has ended for nothing is named.
                let has_ended = acts[..=at].iter().any(|act| matches!(act, Act::AwaitDesktops { .. }));
                match &end {
                    End::RestoredBut(but) if has_ended => assert!(but.contains("the desktop has ended"), "{what}"),
                    end => assert!(matches!(end, End::Restored(_)) && !has_ended, "{what}"),
                }
                assert!(runs(&kind, &model) && records(&model).is_empty(), "{what}");
                assert_eq!(model.laws.broken, [""; 0], "{what}");
            }
        }
    }
}

/// What gives back goes on after a signal as long as there is time, and then nothing more is begun: the next run does the rest.
#[test]
fn a_start_that_a_signal_leaves_no_time_for_is_the_last_act_and_the_next_runs_to_wait_for() {
    let kind = kinds()
        .into_iter()
        .find(|k| k.name.starts_with("two services"))
        .unwrap();
    let model = used(&kind, 1);
    let (before, first) = (model.state(), model.acts.len());
    let fails = {
        let mut model = model.fork();
        assert!(matches!(asked(&kind, WayOut::Unbind).out(&mut model), End::Done));
        let is_last_look = |act: &Act| matches!(act, Act::ProveFree { .. });
        first + model.acts[first..].iter().position(is_last_look).unwrap()
    };
    let start = {
        let mut model = model.fork();
        model.faults.0 = vec![(fails, Fault::Fails)];
        assert!(matches!(asked(&kind, WayOut::Unbind).out(&mut model), End::Restored(_)));
        let is_start = |act: &Act| matches!(act, Act::StartUnit { .. });
        fails + model.acts[fails..].iter().position(is_start).unwrap()
    };
    let mut model = model.fork();
    let slow = Fault::Twisted(Twist::Takes(Duration::from_secs(10)));
    model.faults.0 = vec![(fails, Fault::Fails), (start, slow)];
    model.events.push((When::Act(start), Event::Signal));
    let session = asked(&kind, WayOut::Unbind);
    let End::NotRestored(said) = session.out(&mut model) else {
        panic!("it was waited for")
    };
    assert!(said.contains("it is left to process group"), "{said}");
    assert_eq!(model.acts.len(), start + 1, "{:?}", &model.acts[start..]);
    assert!(
        !records(&model)[0].workers.is_empty(),
        "the next run has nobody to wait for"
    );
    assert!(matches!(session.home(&mut model), End::Done));
    assert_as_before(&model, &before, "at home");
}

#[test]
fn what_could_not_be_started_again_is_not_stopped() {
    for (kind, why) in [
        (
            "docker",
            "it was started with --rm, and is gone for good once it is stopped",
        ),
        ("a container as a whole", "container 104 is locked (backup)"),
    ] {
        let kind = kind_named(kind);
        let mut model = used(&kind, 1);
        model.never = Some((kind.stopped[0].clone(), why.to_owned()));
        let before = model.state();
        let refusal = asked(&kind, WayOut::Auto).plan_out(&mut model).unwrap_err().to_string();
        assert!(
            refusal.contains(&format!(
                "may be stopped for it, but {why}. Hint: where that does no harm, '"
            )),
            "{refusal}"
        );
        assert_as_before(&model, &before, kind.name);
    }
}

/// By the setting alone: HA lets go of it before, and has it back with its start.
#[test]
fn a_container_that_ha_manages_is_shut_down_where_the_settings_say_so() {
    let kind = kind_named("a container that HA manages");
    for way in [WayOut::Auto, WayOut::Unbind] {
        let mut model = used(&kind, 1);
        let before = model.state();
        let mut session = asked(&kind, way);
        session.settings.ha_containers = HaContainers::Refuse;
        let refusal = session.plan_out(&mut model).unwrap_err().to_string();
        let said = "container 104 may be shut down for it, but HA manages it, and answers for where it runs. Hint: have HA ignore it meanwhile by \
                    ha-containers = \"stop\" in /etc/gpu-handoff/config.toml, or 'ha-manager set ct:104 --state stopped' before the start";
        assert!(refusal.contains(said), "{refusal}");
        let session = asked(&kind, way);
        let plan = session.plan_out(&mut model).unwrap();
        let note = "and is shut down, as 'containers' says; it is started again when the GPU is home, and HA ignores it until then";
        assert!(plan.notes.iter().any(|n| n.ends_with(note)), "{:?}", plan.notes);
        let stop = plan
            .steps
            .iter()
            .find(|s| matches!(s.act, Act::StopUnit { .. }))
            .unwrap();
        // HA's rounds come on top of what any container may take.
        let budgets = &session.settings.budgets;
        let most = budgets.unit + budgets.container * 2 + Duration::from_secs(60);
        assert_eq!(stop.deadline, most, "{stop:?}");
        assert_eq!(plan.units[..1], [of_ha()]);
        assert!(matches!(session.out(&mut model), End::Done));
        assert!(!runs(&kind, &model));
        let of_it = |model: &Model| model.units.iter().find_map(|u| u.ha.clone());
        assert_eq!(of_it(&model), Some(Ha::Ignores));
        assert!(matches!(session.home(&mut model), End::Done));
        assert_as_before(&model, &before, "at home");
    }
}

/// It would end in the middle, with what it has stopped.
#[test]
fn a_run_that_was_started_from_what_is_to_be_stopped_stops_nothing() {
    let of_user = Belongs::UserUnit {
        uid: Some(1000),
        name: "app-terminal.scope".to_owned(),
    };
    for (name, from, unit) in [
        ("a desktop", of_user, "gdm.service"),
        ("a desktop", session("desktop"), "gdm.service"),
        ("a service with its socket", Belongs::Unit(OLLAMA.to_owned()), OLLAMA),
        (
            "two services, of which one needs the other",
            Belongs::Unit(WEBUI.to_owned()),
            OLLAMA,
        ),
    ] {
        let kind = kind_named(name);
        let mut model = used(&kind, 1);
        model.called_from = vec![Belongs::Unknown, from];
        let before = model.state();
        let refusal = asked(&kind, WayOut::Auto).plan_out(&mut model).unwrap_err().to_string();
        let why = format!(
            "{unit} may be stopped for it, but this run was started from it, or from what ends with it. Hint: start it from \
             another place: by SSH, or from Proxmox's web page"
        );
        assert!(refusal.contains(&why), "{name}: {refusal}");
        assert_as_before(&model, &before, name);
        model.called_from = vec![Belongs::Session { id: "7".to_owned() }];
        assert!(asked(&kind, WayOut::Auto).plan_out(&mut model).is_ok(), "{name}");
    }
}

/// Its socket does not listen then, which is said; but who has come to need it is not taken down for that.
#[test]
fn what_somebody_has_started_while_the_gpu_was_away_runs_on_when_that_is_home() {
    let kind = kind_named("a service with its socket");
    let mut model = used(&kind, 1);
    let session = asked(&kind, WayOut::Auto);
    assert!(matches!(session.out(&mut model), End::Done));
    model.switch_unit(&Unit::host(OLLAMA), true).unwrap();
    let away = model.acts.len();
    assert!(matches!(session.home(&mut model), End::Done));
    assert_eq!(switched(&kind, &model.acts[away..], false), []);
    assert!(model.units.iter().any(|u| u.name == Unit::host(OLLAMA) && u.active));
}

/// The signal comes before the first of them: nobody of theirs is stopped to be started again, or waited for.
#[test]
fn what_a_signal_has_kept_from_being_stopped_is_left_alone() {
    let is_switch = |act: &Act| matches!(act, Act::StopUnit { .. } | Act::StartUnit { .. });
    for kind in kinds() {
        let session = asked(&kind, WayOut::Auto);
        let mut model = used(&kind, 1);
        let first = {
            let mut model = model.fork();
            assert!(matches!(session.out(&mut model), End::Done), "{}", kind.name);
            model.acts.iter().position(is_switch).unwrap()
        };
        let before = model.state();
        // The load of vfio_pci, which is finished.
        model.faults.0 = vec![(first - 1, Fault::Signal)];
        let end = session.out(&mut model);
        assert!(matches!(end, End::Restored(_)), "{}: {end:?}", kind.name);
        assert!(!model.acts.iter().any(is_switch), "{}: {:?}", kind.name, model.acts);
        assert_as_before(&model, &before, kind.name);
        assert!(records(&model).is_empty(), "{}", kind.name);
    }
}

/// With its start alone HA would ignore it for ever.
#[test]
fn a_container_of_has_that_does_not_start_again_is_said_with_what_gives_it_back_to_ha() {
    let kind = kind_named("a container that HA manages");
    let mut model = used(&kind, 1);
    let session = asked(&kind, WayOut::Auto);
    assert!(matches!(session.out(&mut model), End::Done));
    let start = {
        let mut model = model.fork();
        assert!(matches!(session.home(&mut model), End::Done));
        let is_its = |act: &Act| matches!(act, Act::StartUnit { name, .. } if name.is_of_ha());
        model.acts.iter().position(is_its).unwrap()
    };
    model.faults.0 = vec![(start, Fault::Twisted(Twist::Hangs))];
    let (_, said) = logged(|| session.home(&mut model));
    let hint = "Hint: see 'pct status 104', then 'pct start 104' and 'ha-manager set ct:104 --state started'";
    assert!(said.contains(hint), "{said}");
}
