//! Processes of login sessions that use the GPU: a setting has them ended, and nobody else's.

use gpu_handoff::host::belongs::Belongs;
use gpu_handoff::host::nodes::Node;
use gpu_handoff::model::act::Act;
use gpu_handoff::output::status::{Sight, status};
use gpu_handoff::plan::clients::{self, Then};
use gpu_handoff::settings::values::{Doubt, Processes, Services, WayOut};

use crate::common::hosts::{OLLAMA, add_ollama};
use crate::common::{End, Event, Fault, Model, Process, Session, When, addr, host};
use crate::{FAULTS, assert_as_before, records};

const PID: i32 = 900;

/// This many cards; the first is used at a prompt.
fn used(cards: u8, deaf: bool) -> Model {
    let mut model = host(cards);
    model.processes.push(Process {
        deaf,
        ..Process::at_a_prompt(PID, &[Node::Control, Node::Gpu(addr(1, 0))])
    });
    model
}

fn set(processes: Processes, way: WayOut) -> Session {
    let mut session = Session::new(&[addr(1, 0)]);
    session.settings.processes = processes;
    session.settings.way = way;
    session
}

fn is_there(model: &Model) -> bool {
    model.processes.iter().any(|p| p.pid == PID)
}

fn is_end(act: &Act) -> bool {
    matches!(act, Act::EndProcesses { .. })
}

#[test]
fn it_is_ended_where_the_setting_says_so_and_else_named_with_the_line_that_allows_it() {
    for (cards, way) in [(1, WayOut::Unload), (1, WayOut::Unbind), (2, WayOut::Unbind)] {
        for processes in [Processes::Refuse, Processes::Terminate, Processes::Kill] {
            let case = format!("{cards} cards, {way:?}, {processes:?}");
            let mut model = used(cards, false);
            let before = model.state();
            let session = set(processes, way);
            if processes == Processes::Refuse {
                let refusal = session.plan_out(&mut model).unwrap_err().to_string();
                assert!(refusal.contains("in use by process 900 (python3"), "{case}: {refusal}");
                assert!(
                    refusal.contains("or processes = \"terminate\" in /etc/gpu-handoff/config.toml"),
                    "{case}: {refusal}"
                );
                assert!(is_there(&model), "{case}");
                continue;
            }
            let plan = session.plan_out(&mut model).unwrap();
            let note = "process 900 (python3) has the GPU node of 0000:01:00.0";
            assert!(
                plan.notes.iter().any(|n| n.starts_with(note)),
                "{case}: {:?}",
                plan.notes
            );
            assert!(matches!(session.out(&mut model), End::Done), "{case}");
            assert!(!is_there(&model), "{case}");
            assert!(matches!(session.home(&mut model), End::Done), "{case}");
            assert_as_before(&model, &before, &case);
        }
    }
}

#[test]
fn who_looks_is_told_what_a_handoff_does_to_each() {
    for (cards, doubt, expected) in [
        (
            1,
            Doubt::Refuse,
            [Then::Killed, Then::Killed, Then::InTheWay, Then::Stopped],
        ),
        (
            2,
            Doubt::Refuse,
            [Then::Killed, Then::InTheWay, Then::InTheWay, Then::Stopped],
        ),
        (
            2,
            Doubt::GoOn,
            [Then::Killed, Then::Accepted, Then::InTheWay, Then::Stopped],
        ),
    ] {
        let mut model = used(cards, false);
        add_ollama(&mut model);
        // What it uses is not known; and one of a container.
        model.processes.push(Process::at_a_prompt(901, &[Node::Control]));
        model.processes.push(Process::new(902, &[Node::Gpu(addr(1, 0))]));
        let mut session = set(Processes::Kill, WayOut::Unbind);
        session.settings.services = Services::Also(vec![OLLAMA.to_owned()]);
        session.settings.doubt = doubt;
        let mut snapshot = session.look(&mut model, &[]).unwrap();
        snapshot.units = model.what_systemd_says(&clients::to_ask(&snapshot, &session.gpus, &[], &session.settings));
        let (clients, unseen) = clients::of(&snapshot, &session.gpus, &session.settings);
        let then: Vec<Then> = clients.iter().map(|client| client.then).collect();
        assert_eq!(then, expected, "{cards} cards, {doubt:?}: {clients:?}");
        assert_eq!(unseen, [], "{cards} cards, {doubt:?}");
        let sight = Sight {
            settings: Some(&session.settings),
            ..Sight::of(&snapshot, &[])
        };
        let card = &status(&sight, None).cards[0];
        let stops = |line: &&String| line.ends_with("; a handoff stops it, and starts it again");
        assert_eq!(card.in_use.iter().filter(stops).count(), 1, "{:?}", card.in_use);
        // Who is in the way of a start is in the way here, and nobody else.
        let refusal = session.plan_out(&mut model).unwrap_err();
        let in_the_way = clients.iter().filter(|client| client.then == Then::InTheWay);
        let named = in_the_way.filter(|c| refusal.to_string().contains(&format!("process {}", c.holder.pid)));
        assert_eq!(
            named.count(),
            then.iter().filter(|then| **then == Then::InTheWay).count(),
            "{cards} cards, {doubt:?}: {refusal}"
        );
    }
}

#[test]
fn one_that_is_deaf_keeps_the_vm_from_starting_and_is_killed_only_where_that_is_set() {
    let mut model = used(1, true);
    let before = model.state();
    let End::Restored(why) = set(Processes::Terminate, WayOut::Auto).out(&mut model) else {
        panic!("it has not ended");
    };
    assert!(
        why.contains("process 900 (python3): ask it to end: it has not ended"),
        "{why}"
    );
    assert!(is_there(&model));
    assert_as_before(&model, &before, "refused");
    let end = set(Processes::Kill, WayOut::Auto).out(&mut model);
    assert!(matches!(end, End::Done), "{end:?}");
    assert!(!is_there(&model));
}

#[test]
fn where_it_was_ended_for_nothing_that_is_said() {
    let session = set(Processes::Terminate, WayOut::Unload);
    let mut undisturbed = used(1, false);
    assert!(matches!(session.out(&mut undisturbed), End::Done));
    let is_unload = |act: &Act| matches!(act, Act::UnloadModule { name } if name == "nvidia");
    let at = undisturbed.acts.iter().position(is_unload).unwrap();
    let mut model = used(1, false);
    let before = model.state();
    model.faults.0 = vec![(at, Fault::Fails)];
    let End::RestoredBut(but) = session.out(&mut model) else {
        panic!("it has failed");
    };
    assert_eq!(
        but,
        "process 900 (python3) was asked to end, and nobody starts it again"
    );
    assert_as_before(&model, &before, "undone");
}

#[test]
fn nobody_elses_process_is_ended() {
    let gpu = Node::Gpu(addr(1, 0));
    let vfio = Node::VfioGroup(21);
    let container = Belongs::Container {
        ctid: "104".to_owned(),
        unit: None,
    };
    let user = Belongs::UserUnit {
        uid: Some(1000),
        name: "pipewire.service".to_owned(),
    };
    let session = || Belongs::Session { id: "3".to_owned() };
    for (belongs_to, nodes, pid) in [
        (container, vec![gpu], PID),
        (user, vec![gpu], PID),
        (Belongs::Unit("pvedaemon.service".to_owned()), vec![gpu], PID),
        (Belongs::Docker("abc".to_owned()), vec![gpu], PID),
        (Belongs::Podman("abc".to_owned()), vec![gpu], PID),
        (Belongs::Unknown, vec![gpu], PID),
        (session(), vec![gpu, vfio], PID),
        (session(), vec![gpu], 1),
    ] {
        let mut model = host(1);
        model.processes.push(Process {
            belongs_to: belongs_to.clone(),
            ..Process::at_a_prompt(pid, &nodes)
        });
        let refusal = set(Processes::Kill, WayOut::Unbind).plan_out(&mut model).unwrap_err();
        let refusal = refusal.to_string();
        assert!(!refusal.contains("processes ="), "{belongs_to:?}: {refusal}");
        assert_eq!(model.processes.len(), 1, "{belongs_to:?}");
    }
}

/// With a display server everything would end that is on its screen; and the run itself with its own shell.
#[test]
fn neither_a_display_server_nor_who_has_started_the_run_is_ended() {
    let mut model = host(1);
    let nodes = [Node::Gpu(addr(1, 0)), Node::Modeset, Node::Drm(addr(1, 0))];
    model.processes.push(Process::at_a_prompt(PID, &nodes));
    let session = set(Processes::Kill, WayOut::Auto);
    let refusal = session.plan_out(&mut model).unwrap_err().to_string();
    assert!(refusal.contains("in use by process 900"), "{refusal}");
    let mut model = used(1, false);
    let mut snapshot = session.look(&mut model, &[]).unwrap();
    snapshot.callers = vec![77, PID, 1];
    let (clients, reasons) = clients::of(&snapshot, &session.gpus, &session.settings);
    assert_eq!(clients[0].then, Then::InTheWay);
    let why = "process 900 (python3) has started this run, and is not ended for it. Hint: start it from another place";
    assert!(reasons.iter().any(|r| r.to_string() == why), "{reasons:?}");
}

/// They have their time together, and who has ended is named though another one has not.
#[test]
fn several_are_ended_at_once() {
    let several = |deaf: bool| {
        let mut model = used(1, deaf);
        for pid in 901..907 {
            model
                .processes
                .push(Process::at_a_prompt(pid, &[Node::Gpu(addr(1, 0))]));
        }
        model
    };
    let mut model = several(true);
    let mut session = set(Processes::Kill, WayOut::Auto);
    session.settings.budgets.process = std::time::Duration::from_secs(20);
    let plan = session.plan_out(&mut model).unwrap();
    let ends: Vec<String> = plan
        .steps
        .iter()
        .filter(|s| is_end(&s.act))
        .map(|s| s.act.to_string())
        .collect();
    assert_eq!(ends, ["7 processes: ask them to end, or end them"]);
    assert!(matches!(session.out(&mut model), End::Done));
    let mut model = several(true);
    let End::RestoredBut(but) = set(Processes::Terminate, WayOut::Auto).out(&mut model) else {
        panic!("one has not ended");
    };
    assert!(!but.contains("process 900"), "{but}");
    for pid in 901..907 {
        assert!(
            but.contains(&format!("process {pid} (python3) was asked to end")),
            "{but}"
        );
    }
}

/// It may use the other one.
#[test]
fn one_that_may_use_a_gpu_that_stays_is_not_ended() {
    let mut model = host(2);
    model.processes.push(Process::at_a_prompt(PID, &[Node::Control]));
    let refusal = set(Processes::Kill, WayOut::Auto).plan_out(&mut model).unwrap_err();
    let refusal = refusal.to_string();
    assert!(refusal.contains("nothing shows that it uses another GPU"), "{refusal}");
    assert!(
        refusal.contains("end that process, then start again; or take the risk with doubt = \"go-on\""),
        "{refusal}"
    );
    assert!(!refusal.contains("processes ="), "{refusal}");
    assert!(is_there(&model));
}

#[test]
fn one_that_has_let_go_since_the_plan_goes_on() {
    let session = set(Processes::Kill, WayOut::Auto);
    let mut undisturbed = used(1, false);
    assert!(matches!(session.out(&mut undisturbed), End::Done));
    let at = undisturbed.acts.iter().position(is_end).unwrap();
    let mut model = used(1, false);
    model.events.push((When::Act(at), Event::LetsGo(PID)));
    let end = session.out(&mut model);
    assert!(matches!(end, End::Done), "{end:?}");
    assert!(model.acts.iter().any(is_end) && is_there(&model));
}

/// At any act of the way out and home; and who was ended for nothing is named.
#[test]
fn whatever_fails_or_is_killed_the_gpu_is_home_at_the_end() {
    for processes in [Processes::Terminate, Processes::Kill] {
        for way in [WayOut::Auto, WayOut::Unbind] {
            let session = set(processes, way);
            let used = || used(1, processes == Processes::Kill);
            let mut undisturbed = used();
            let before = undisturbed.state();
            assert!(matches!(session.out(&mut undisturbed), End::Done));
            assert!(matches!(session.home(&mut undisturbed), End::Done));
            let end = undisturbed.acts.iter().position(is_end).unwrap();
            for (at, act) in undisturbed.acts.iter().enumerate() {
                for fault in FAULTS {
                    let mut model = used();
                    model.faults.0 = vec![(at, fault)];
                    let out = session.out(&mut model);
                    let case = format!("{processes:?}, {way:?}: {fault:?} at {at} {act}: {out:?}");
                    let has_had_its_effect = matches!(fault, Fault::FailsAfterwards | Fault::KilledAfter);
                    let is_over = at > end || (at == end && has_had_its_effect);
                    match &out {
                        // Some acts may fail without an end of it.
                        End::Done => assert!(!is_there(&model), "{case}"),
                        End::Killed => assert_eq!(is_there(&model), !is_over, "{case}"),
                        End::Restored(_) => assert!(is_there(&model) && !is_over, "{case}"),
                        End::RestoredBut(but) => {
                            let named = "process 900 (python3) was asked to end, and nobody starts it again";
                            assert!(!is_there(&model) && is_over && but == named, "{case}");
                        }
                        _ => panic!("{case}"),
                    }
                    let home = match session.home(&mut model) {
                        End::Done => End::Done,
                        _ => session.home(&mut model),
                    };
                    assert!(matches!(home, End::Done), "{case}: {home:?}");
                    assert_as_before(&model, &before, &case);
                    assert!(records(&model).is_empty(), "{case}");
                }
            }
        }
    }
}
