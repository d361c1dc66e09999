//! What uses the GPU inside a container: its service alone is stopped there and started again, or the start is refused.

use gpu_handoff::host::belongs::Belongs;
use gpu_handoff::host::nodes::Node;
use gpu_handoff::model::act::Act;
use gpu_handoff::settings::values::{Containers, Doubt, Processes, Services, WayOut};

use crate::common::hosts::{OLLAMA, add_inside, add_persistenced, inside};
use crate::common::{End, Model, Process, Session, addr, host};
use crate::{assert_as_before, records, runs_again_whatever_fails};

/// This many cards, all used from inside a container.
fn used(cards: u8) -> Model {
    let mut model = host(cards);
    add_persistenced(&mut model);
    add_inside(&mut model);
    model
}

/// The first card, by this way; the setting as given.
fn session(containers: Containers, way: WayOut) -> Session {
    let mut session = Session::new(&[addr(1, 0)]);
    (session.settings.containers, session.settings.way) = (containers, way);
    session
}

fn runs_inside(model: &Model) -> bool {
    model.units.iter().any(|u| u.name == inside() && u.active)
}

/// A process of container 104, in this unit.
fn of_container(pid: i32, unit: Option<&str>) -> Process {
    let mut process = Process::new(pid, &[Node::Gpu(addr(1, 0))]);
    process.belongs_to = Belongs::Container {
        ctid: "104".to_owned(),
        unit: unit.map(str::to_owned),
    };
    process
}

#[test]
fn its_service_is_stopped_inside_and_started_when_the_gpu_is_home() {
    for (cards, way) in [
        (1, WayOut::Auto),
        (1, WayOut::Unbind),
        (2, WayOut::Auto),
        (2, WayOut::Unbind),
    ] {
        let case = format!("{cards} cards, {way:?}");
        let mut model = used(cards);
        let before = model.state();
        let session = session(Containers::Release, way);
        let plan = session.plan_out(&mut model).unwrap();
        assert_eq!(plan.units.first(), Some(&inside()), "{case}");
        let note = "ollama.service in container 104 has the GPU node of 0000:01:00.0";
        let end =
            "and is stopped, as 'containers' says; it is started again when the GPU is home, and the container goes on";
        assert!(
            plan.notes.iter().any(|n| n.starts_with(note) && n.ends_with(end)),
            "{case}: {:?}",
            plan.notes
        );
        let first = plan
            .steps
            .iter()
            .find(|s| matches!(s.act, Act::StopUnit { .. }))
            .unwrap();
        assert_eq!(
            first.act.to_string(),
            "ollama in container 104: stop the service",
            "{case}"
        );
        assert!(matches!(session.out(&mut model), End::Done), "{case}");
        assert!(!runs_inside(&model), "{case}");
        assert!(matches!(session.home(&mut model), End::Done), "{case}");
        assert_as_before(&model, &before, &case);
    }
}

#[test]
fn it_is_refused_with_the_line_that_allows_it() {
    let mut model = used(1);
    let mut session = session(Containers::Refuse, WayOut::Auto);
    // What is allowed of the host's services and sessions is not of a container's.
    session.settings.services = Services::Also(vec![OLLAMA.to_owned()]);
    session.settings.processes = Processes::Kill;
    let refusal = session.plan_out(&mut model).unwrap_err().to_string();
    let hint = "Hint: pct exec 104 -- systemctl stop ollama.service, or containers = \"release\" in \
                /etc/gpu-handoff/config.toml: then that is done for you, and it is started again when the GPU is home, while \
                the container goes on";
    assert!(refusal.contains(hint), "{refusal}");
    assert!(runs_inside(&model));
}

/// A shell, what the container's own management is, and a name that is no unit's: nothing of it is stopped.
#[test]
fn who_belongs_to_no_service_inside_keeps_the_gpu() {
    let long = "x".repeat(4096) + ".service";
    for unit in [
        None,
        Some("ssh.service"),
        Some("dbus.service"),
        Some("systemd-logind.service"),
        Some("-x.service"),
        Some("a b.service"),
        Some("x;reboot.service"),
        Some("a\nb.service"),
        Some(long.as_str()),
    ] {
        let mut model = used(1);
        model.processes.push(of_container(900, unit));
        let before = model.state();
        let session = session(Containers::Release, WayOut::Auto);
        let refusal = session.plan_out(&mut model).unwrap_err().to_string();
        assert!(refusal.contains("in use by process 900"), "{unit:?}: {refusal}");
        assert!(refusal.contains("Hint: pct shutdown 104"), "{unit:?}: {refusal}");
        assert!(!refusal.contains("release"), "{unit:?}: {refusal}");
        assert_as_before(&model, &before, "refused");
    }
}

#[test]
fn one_of_which_it_is_not_known_which_gpu_it_uses_is_stopped_as_well() {
    for doubt in [Doubt::Refuse, Doubt::GoOn] {
        let mut model = host(2);
        add_inside(&mut model);
        for process in &mut model.processes {
            process.nodes = vec![Node::Control, Node::Uvm];
        }
        let before = model.state();
        let mut session = session(Containers::Release, WayOut::Auto);
        session.settings.doubt = doubt;
        assert!(matches!(session.out(&mut model), End::Done));
        assert!(!runs_inside(&model));
        assert!(matches!(session.home(&mut model), End::Done));
        assert_as_before(&model, &before, "at home");
    }
}

/// What was stopped in it starts with the container, if it is to.
#[test]
fn a_container_that_has_been_stopped_meanwhile_strands_nothing() {
    let mut model = used(1);
    let session = session(Containers::Release, WayOut::Auto);
    assert!(matches!(session.out(&mut model), End::Done));
    model.down.push("104".parse().unwrap());
    let end = session.home(&mut model);
    assert!(matches!(end, End::Done), "{end:?}");
    assert_eq!(model.driver_of(addr(1, 0)), Some("nvidia"));
    assert!(records(&model).is_empty());
}

/// Its systemd gives no answer: it is not known what a stop would do.
#[test]
fn a_container_that_gives_no_answer_keeps_the_gpu() {
    let mut model = used(1);
    model.down.push("104".parse().unwrap());
    let session = session(Containers::Release, WayOut::Auto);
    let refusal = session.plan_out(&mut model).unwrap_err().to_string();
    let why = "ollama.service in container 104 may be stopped for it, and is not, since its systemd gives no answer: no answer. \
               Hint: see 'pct exec 104 -- systemctl status ollama.service'";
    assert!(refusal.contains(why), "{refusal}");
}

#[test]
fn whatever_fails_or_is_killed_it_runs_again_at_the_end() {
    let session = session(Containers::Release, WayOut::Auto);
    runs_again_whatever_fails("inside", &|| used(1), &session, &[inside()]);
}
