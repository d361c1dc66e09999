//! What uses the GPU inside a container: its service alone is stopped there and started again, or the start is refused.

use std::time::Duration;

use gpu_handoff::execute::kernel::Kernel;
use gpu_handoff::host::belongs::Belongs;
use gpu_handoff::host::nodes::Node;
use gpu_handoff::host::units::{Ha, Unit};
use gpu_handoff::model::act::Act;
use gpu_handoff::plan::renumbered::renumbered;
use gpu_handoff::proxmox::container_config::GpuContainer;
use gpu_handoff::settings::values::{Containers, Doubt, HaContainers, Processes, Services, WayOut};

use crate::common::hosts::{
    OLLAMA, add_given, add_inside, add_persistenced, add_started, add_whole, add_whole_of, inside, whole, whole_of,
};
use crate::common::state::Unit as UnitState;
use crate::common::{End, Fault, Model, Process, Session, Twist, addr, host};
use crate::{assert_as_before, logged, records, runs_again_whatever_fails};

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

/// Its service has the GPU, and what is of no service in it the other one: that is a doubt, and no reason to shut it down. One that
/// has the GPU itself is.
#[test]
fn for_a_doubt_that_the_settings_accept_no_container_is_shut_down_and_its_service_is_released() {
    for (doubt, nodes, stopped) in [
        (Doubt::GoOn, vec![Node::Gpu(addr(2, 0)), Node::Control], inside()),
        (Doubt::Refuse, vec![Node::Gpu(addr(2, 0)), Node::Control], whole()),
        (Doubt::GoOn, vec![Node::Gpu(addr(1, 0)), Node::Control], whole()),
    ] {
        // By its number the one or the other is seen first.
        for pid in [2, 900] {
            let case = format!("{doubt:?}, {nodes:?}, {pid}");
            let mut model = host(2);
            add_inside(&mut model);
            for process in &mut model.processes {
                process.nodes = vec![Node::Gpu(addr(1, 0)), Node::Control];
            }
            model.units.push(UnitState {
                active: true,
                ..UnitState::new(whole())
            });
            let mut process = of_container(pid, None);
            process.nodes.clone_from(&nodes);
            model.processes.push(process);
            model.processes.sort_by_key(|process| process.pid);
            let mut session = session(Containers::Shutdown, WayOut::Auto);
            session.settings.doubt = doubt;
            let plan = session.plan_out(&mut model).unwrap();
            assert_eq!(plan.units, std::slice::from_ref(&stopped), "{case}");
        }
    }
}

/// Where the service's stop would leave what it has started, the container may be shut down, or not.
#[test]
fn a_service_that_cannot_be_stopped_well_is_left_to_the_container_as_a_whole() {
    let why = "cron.service has KillMode=process, and what it has started goes on when it is stopped";
    for (containers, stopped) in [(Containers::Release, None), (Containers::Shutdown, Some(whole()))] {
        let mut model = used(1);
        model.never = Some((inside(), why.to_owned()));
        model.units.push(UnitState {
            active: true,
            ..UnitState::new(whole())
        });
        let session = session(containers, WayOut::Auto);
        match (session.plan_out(&mut model), stopped) {
            (Ok(plan), Some(stopped)) => assert_eq!(plan.units.first(), Some(&stopped)),
            (Err(refusal), None) => {
                let said = format!("ollama.service in container 104 may be stopped for it, but {why}");
                assert!(refusal.to_string().contains(&said), "{refusal}");
            }
            other => panic!("{other:?}"),
        }
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
    for way in [WayOut::Auto, WayOut::Unbind] {
        let session = session(Containers::Release, way);
        runs_again_whatever_fails(&format!("inside, {way:?}"), &|| used(1), &session, &[inside()]);
    }
}

/// The container runs on, and where it does is as before.
#[test]
fn what_is_released_in_a_container_that_ha_manages_needs_no_setting_for_ha_which_is_told_nothing() {
    let used = || {
        let mut model = used(1);
        model.units.push(UnitState {
            active: true,
            ha: Some(Ha::LooksAfter),
            ..UnitState::new(whole())
        });
        model
    };
    for containers in [Containers::Release, Containers::Shutdown] {
        for way in [WayOut::Auto, WayOut::Unbind] {
            let case = format!("{containers:?}, {way:?}");
            let session = session(containers, way);
            assert_eq!(session.settings.ha_containers, HaContainers::Refuse);
            let mut model = used();
            let before = model.state();
            assert!(matches!(session.out(&mut model), End::Done), "{case}");
            assert!(!runs_inside(&model), "{case}");
            let of_ha = |model: &Model| model.units.iter().find(|u| u.name == whole()).cloned();
            assert_eq!(of_ha(&model), of_ha(&used()), "{case}");
            assert!(!records(&model)[0].units.iter().any(Unit::is_whole), "{case}");
            assert!(matches!(session.home(&mut model), End::Done), "{case}");
            assert_as_before(&model, &before, &case);
            runs_again_whatever_fails(&case, &used, &session, &[inside()]);
        }
    }
}

/// By its own start, which may be refused, fail or be killed: until its GPU is home it is on record, and named by whoever reads that.
#[test]
fn a_container_that_is_starting_is_started_by_nobody_else_and_stays_on_record_until_the_gpu_is_home() {
    for (containers, unit) in [(Containers::Shutdown, whole()), (Containers::Release, inside())] {
        let used = || {
            let mut model = used(1);
            if unit == whole() {
                add_whole(&mut model);
            }
            model
        };
        let mut session = session(containers, WayOut::Auto);
        let mut start = used();
        assert!(matches!(session.out(&mut start), End::Done));
        session.starting = unit.container();
        let first = start.acts.len();
        let mut home = start.fork();
        assert!(matches!(session.home(&mut home), End::Done));
        assert!(records(&home).is_empty());
        let is_its = |act: &Act| matches!(act, Act::StartUnit { name, .. } if *name == unit);
        assert_eq!(home.acts.iter().find(|act| is_its(act)), None);
        let faults = [Fault::Fails, Fault::KilledBefore, Fault::KilledIn, Fault::KilledAfter];
        for (at, fault) in (first..home.acts.len()).flat_map(|at| faults.map(|fault| (at, fault))) {
            let mut model = start.fork();
            model.faults.0 = vec![(at, fault)];
            let end = session.home(&mut model);
            for record in records(&model) {
                assert!(
                    record.units.contains(&unit),
                    "{at} {fault:?}: {end:?}: {:?}",
                    record.units
                );
            }
        }
    }
}

/// Two containers that run on and are given nodes of the driver's, of this version.
fn given(version: &str, cards: u8) -> Model {
    let mut model = used(cards);
    version.clone_into(&mut model.version);
    add_given(&mut model, "104");
    add_given(&mut model, "105");
    model
}

fn position(model: &Model, from: usize, is: impl Fn(&Act) -> bool) -> Option<usize> {
    model.acts.iter().skip(from).position(is).map(|at| at + from)
}

/// Its services start only then; both at once.
#[test]
fn containers_that_run_on_see_the_driver_that_is_back_before_their_services_do() {
    let mut model = given("580.95.05", 1);
    let before = model.state();
    let session = session(Containers::Release, WayOut::Auto);
    assert!(matches!(session.out(&mut model), End::Done));
    let (away, uvm) = (model.acts.len(), model.uvm);
    assert!(matches!(session.home(&mut model), End::Done));
    assert_ne!(model.uvm, uvm);
    assert_as_before(&model, &before, "at home");
    let renewed = |act: &Act| matches!(act, Act::RenewNodes { .. });
    let started = |act: &Act| matches!(act, Act::StartUnit { name, .. } if *name == inside());
    let loaded = |act: &Act| matches!(act, Act::LoadModule { name } if name == "nvidia_uvm");
    let order = [
        position(&model, away, loaded),
        position(&model, away, renewed),
        position(&model, away, started),
    ];
    assert!(order.is_sorted() && order.iter().all(Option::is_some), "{order:?}");
    assert_eq!(model.acts.iter().filter(|act| renewed(act)).count(), 2);
}

/// Of a driver whose unbind may never end, those that stay have another number before the first GPU has left.
#[test]
fn containers_see_the_driver_that_was_loaded_anew_for_the_gpus_that_stay() {
    let mut model = given("595.45.04", 2);
    let session = session(Containers::Release, WayOut::Auto);
    assert!(matches!(session.out(&mut model), End::Done));
    assert_eq!(model.stale_containers(), []);
    assert_eq!(model.laws.broken, [""; 0]);
    assert!(matches!(session.home(&mut model), End::Done));
    assert_eq!(model.stale_containers(), []);
}

/// Whatever fails on the way out, the undo sees to it; at home a failure of it is said, and strands nothing.
#[test]
fn whatever_fails_containers_see_the_driver_at_the_end_or_that_is_said() {
    let session = session(Containers::Release, WayOut::Auto);
    let mut undisturbed = given("580.95.05", 1);
    assert!(matches!(session.out(&mut undisturbed), End::Done));
    let away = undisturbed.acts.len();
    assert!(matches!(session.home(&mut undisturbed), End::Done));
    for (at, act) in undisturbed.acts.iter().enumerate() {
        for fault in [Fault::Fails, Fault::Twisted(Twist::Hangs)] {
            let is_renewal = matches!(act, Act::RenewNodes { .. });
            if fault != Fault::Fails && !is_renewal {
                continue;
            }
            let case = format!("{fault:?} at {at} {act}");
            let mut model = given("580.95.05", 1);
            let before = model.state();
            model.faults.0 = vec![(at, fault)];
            let (ends, said) = logged(|| (session.out(&mut model), session.home(&mut model)));
            if at < away {
                assert_as_before(&model, &before, &case);
                continue;
            }
            if is_renewal {
                assert!(matches!(ends, (End::Done, End::Done)), "{case}: {ends:?}");
                assert!(said.contains("see that its nodes fit: failed after"), "{case}: {said}");
                assert_eq!(model.stale_containers().len(), 1, "{case}");
                assert!(runs_inside(&model), "{case}");
            }
            assert_eq!(model.laws.broken, [""; 0], "{case}");
        }
    }
}

/// Three containers in which the GPU is nobody's service.
fn wholes(cards: u8) -> (Model, Vec<Unit>) {
    let mut model = host(cards);
    add_persistenced(&mut model);
    let ctids = ["104", "105", "106"];
    ctids.iter().for_each(|ctid| add_whole_of(&mut model, ctid));
    (model, ctids.map(whole_of).to_vec())
}

/// Each by a worker of its own; the acts of one card need one.
#[test]
fn containers_go_down_and_come_up_at_the_same_time() {
    for cards in [1, 2] {
        let (mut model, units) = wholes(cards);
        let before = model.state();
        let session = session(Containers::Shutdown, WayOut::Auto);
        let plan = session.plan_out(&mut model).unwrap();
        let containers: Vec<&Unit> = plan.units.iter().filter(|unit| unit.is_container()).collect();
        assert_eq!(containers.len(), 3);
        assert_eq!(plan.units[..3].iter().collect::<Vec<_>>(), containers);
        let (out, said) = logged(|| session.out(&mut model));
        assert!(matches!(out, End::Done), "{out:?}");
        assert_eq!(model.workers.len(), 3);
        for unit in &units {
            assert!(said.contains(&format!("{unit}  shut it down")), "{unit}: {said}");
        }
        let on_record = &records(&model)[0].units;
        assert!(units.iter().all(|unit| on_record.contains(unit)));
        let (home, said) = logged(|| session.home(&mut model));
        assert!(matches!(home, End::Done), "{home:?}");
        assert_eq!(model.workers.len(), 3);
        for unit in &units {
            assert!(said.contains(&format!("{unit}  start it again")), "{unit}: {said}");
        }
        assert_as_before(&model, &before, "at home");
    }
}

/// One that hangs has its own bound, and holds up none of the others, going down or coming up; all of them are back.
#[test]
fn a_container_that_takes_its_time_holds_up_no_other() {
    let session = session(Containers::Shutdown, WayOut::Auto);
    let (mut undisturbed, units) = wholes(1);
    assert!(matches!(session.out(&mut undisturbed), End::Done));
    let away = undisturbed.acts.len();
    assert!(matches!(session.home(&mut undisturbed), End::Done));
    let of_container = |act: &Act| match act {
        Act::StopUnit { name, .. } | Act::StartUnit { name, .. } => name.is_container(),
        _ => false,
    };
    let at: Vec<usize> = (0..undisturbed.acts.len())
        .filter(|at| of_container(&undisturbed.acts[*at]))
        .collect();
    assert_eq!(at.len(), 6);
    for at in at {
        let (mut model, _) = wholes(1);
        model.faults.0 = vec![(at, Fault::Fails)];
        let out = session.out(&mut model);
        let case = format!("at {at} {}: {out:?}", undisturbed.acts[at]);
        let is_up = |model: &Model, unit: &Unit| model.units.iter().any(|u| u.name == *unit && u.active);
        if at < away {
            assert!(matches!(out, End::Restored(_)), "{case}");
            assert!(units.iter().all(|unit| is_up(&model, unit)), "{case}");
            assert_eq!(model.acts[at].to_string(), undisturbed.acts[at].to_string());
            continue;
        }
        assert!(matches!(session.home(&mut model), End::Done), "{case}");
        assert_eq!(units.iter().filter(|unit| !is_up(&model, unit)).count(), 1, "{case}");
        assert!(records(&model).is_empty(), "{case}");
    }
}

#[test]
fn whatever_fails_or_is_killed_all_of_several_containers_run_again() {
    let units = wholes(1).1;
    for way in [WayOut::Auto, WayOut::Unbind] {
        let session = session(Containers::Shutdown, way);
        runs_again_whatever_fails(&format!("three containers, {way:?}"), &|| wholes(1).0, &session, &units);
    }
}

/// So many services of a container, older than the host's own.
fn many_inside(count: u32) -> (Model, Session) {
    let mut model = host(1);
    add_persistenced(&mut model);
    for n in 0..count {
        let unit = format!("x{n}.service");
        let container = "104".parse().unwrap();
        add_started(&mut model, &Unit::Inside { container, unit });
    }
    add_started(&mut model, &Unit::host(OLLAMA));
    let mut session = session(Containers::Release, WayOut::Auto);
    session.settings.services = Services::Also(vec![OLLAMA.to_owned()]);
    (model, session)
}

/// The container's root decides how long they take: the host's own is there first, and what is tried in vain is not tried for ever.
#[test]
fn services_inside_that_never_finish_starting_starve_nobody() {
    for (count, ends_well) in [(9, true), (160, false)] {
        let (mut model, session) = many_inside(count);
        assert!(matches!(session.out(&mut model), End::Done), "{count}");
        let away = model.acts.len();
        let mut undisturbed = many_inside(count).0;
        assert!(matches!(session.out(&mut undisturbed), End::Done), "{count}");
        assert!(matches!(session.home(&mut undisturbed), End::Done), "{count}");
        let is_inside = |act: &Act| matches!(act, Act::StartUnit { name, .. } if name.container().is_some());
        model.faults.0 = (away..undisturbed.acts.len())
            .filter(|at| is_inside(&undisturbed.acts[*at]))
            .map(|at| (at, Fault::Twisted(Twist::Hangs)))
            .collect();
        assert_eq!(model.faults.0.len(), count as usize);
        let began = model.time;
        let end = session.home(&mut model);
        let took = model.time - began;
        let ollama = Unit::host(OLLAMA);
        assert!(
            model.units.iter().any(|u| u.name == ollama && u.active),
            "{count}: {end:?}"
        );
        assert_eq!(matches!(end, End::Done), ends_well, "{count}: {end:?}");
        if ends_well {
            assert!(took < session.settings.budgets.unit * 3, "{took:?}");
            continue;
        }
        let of_record = records(&model).swap_remove(0).units;
        let left = of_record.iter().filter(|unit| unit.container().is_some()).count();
        assert!(left > 0 && left < 48, "{left}");
        // What was tried and said is left at that.
        let acts = model.acts.len();
        model.faults.0.clear();
        let end = session.home(&mut model);
        assert!(matches!(end, End::Done), "{end:?}");
        assert_eq!(model.acts[acts..].iter().filter(|act| is_inside(act)).count(), left);
        assert!(records(&model).is_empty());
    }
}

/// The GPU that stays has a driver that was loaded anew, by the run that was killed or by the one after it.
#[test]
fn whenever_the_way_out_is_killed_containers_see_the_driver_once_it_was_taken_up_again() {
    let session = session(Containers::Release, WayOut::Auto);
    let mut undisturbed = given("595.45.04", 2);
    assert!(matches!(session.out(&mut undisturbed), End::Done));
    for (at, act) in undisturbed.acts.iter().enumerate() {
        for fault in [Fault::KilledBefore, Fault::KilledIn, Fault::KilledAfter] {
            let case = format!("{fault:?} at {at} {act}");
            let mut model = given("595.45.04", 2);
            model.faults.0 = vec![(at, fault)];
            assert!(matches!(session.out(&mut model), End::Killed), "{case}");
            let out = session.out(&mut model);
            assert!(matches!(out, End::Done), "{case}: {out:?}");
            assert_eq!(model.stale_containers(), [], "{case}");
            assert!(matches!(session.home(&mut model), End::Done), "{case}");
            assert_eq!(model.stale_containers(), [], "{case}");
        }
    }
}

/// The GPU that stays is the first one that the driver finds when it is loaded anew.
#[test]
fn a_container_whose_node_is_another_gpus_by_then_is_named() {
    let given = |ctid: &str, node: &str| GpuContainer {
        ctid: ctid.parse().unwrap(),
        lines: Vec::new(),
        nodes: vec![node.to_owned()],
    };
    let containers = [given("104", "/dev/nvidia1"), given("105", "/dev/nvidia0")];
    for (version, is_named) in [("580.95.05", false), ("595.45.04", true)] {
        let mut model = host(2);
        version.clone_into(&mut model.version);
        let mut session = session(Containers::Refuse, WayOut::Auto);
        session.settings.way = WayOut::Auto;
        let before = session.plan_out(&mut model).unwrap().numbers;
        assert_eq!(before.minors.len(), 2, "{version}");
        assert!(matches!(session.out(&mut model), End::Done), "{version}");
        let driver = model.look(&[], Duration::from_secs(10)).unwrap().nvidia.unwrap();
        let said = renumbered(&before, &driver, &containers);
        assert_eq!(said.len(), if is_named { 2 } else { 0 }, "{version}: {said:?}");
        if is_named {
            let text = said.join("\n");
            assert!(
                text.contains("container 105 is given /dev/nvidia0, which was 0000:01:00.0 and is 0000:02:00.0"),
                "{text}"
            );
        }
    }
}
