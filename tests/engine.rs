//! Plan and executor on the model kernel: the order of acts, and that a failure at any act ends as it should.

#![allow(clippy::unwrap_used)] // a test that cannot set itself up should stop there

mod common;

use std::time::Duration;

use common::{Fault, Model, addr, host};
use gpu_handoff::config::{Budgets, Settings};
use gpu_handoff::exec::Run;
use gpu_handoff::exit::{Error, Exit};
use gpu_handoff::holders::{Holder, Node};
use gpu_handoff::pci::PciAddr;
use gpu_handoff::plan::{Plan, Way};
use gpu_handoff::record::{Guard, Owner, Record, State, Store};
use gpu_handoff::refusal::{Reason, Refusal};
use gpu_handoff::step::Act;
use gpu_handoff::way_home;
use gpu_handoff::way_out::{self, Wanted};

const VM: &str = "111";

fn vm() -> Owner {
    Owner::Vm(VM.parse().unwrap())
}

fn plan_out(model: &Model, gpus: &[PciAddr]) -> Result<Plan, Refusal> {
    plan_with(model, gpus, &[], &[])
}

fn plan_with(model: &Model, gpus: &[PciAddr], given: &[PciAddr], records: &[Record]) -> Result<Plan, Refusal> {
    let wanted = Wanted {
        owner: vm(),
        gpus,
        given,
    };
    way_out::plan(&model.host, wanted, records, &Settings::default())
}

/// A store in a temporary directory with its lock held.
fn locked() -> (tempfile::TempDir, Store, Guard) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::at(dir.path());
    let guard = store.lock("test", Duration::from_secs(10)).unwrap();
    (dir, store, guard)
}

fn execute(model: &mut Model, guard: &Guard, record: Record, plan: &Plan) -> Result<(), Error> {
    let end = model.time + Duration::from_secs(60);
    Run {
        kernel: model,
        ledger: guard,
        record,
        rest: None,
        end,
    }
    .execute(plan)
}

fn record_for(plan: &Plan) -> Record {
    let mut record = Record::new(vm(), "boot".to_owned(), Budgets::default());
    record.taken.clone_from(&plan.taken);
    record.modules.clone_from(&plan.modules);
    record
}

fn holder(nodes: &[Node]) -> Holder {
    Holder {
        pid: 777,
        comm: "python3".to_owned(),
        belongs_to: "container 104".to_owned(),
        nodes: nodes.to_vec(),
    }
}

fn text(plan: &Plan) -> Vec<String> {
    plan.steps.iter().map(|s| s.act.to_string()).collect()
}

#[test]
fn the_only_gpu_leaves_by_unloading_the_modules() {
    let plan = plan_out(&host(1), &[addr(1, 0)]).unwrap();
    assert_eq!(plan.way, Way::Unload);
    assert_eq!(
        text(&plan),
        [
            "vfio_pci: load the module",
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
        ]
    );
}

#[test]
fn one_of_two_gpus_is_unbound_and_drm_reloaded_for_the_other() {
    let plan = plan_out(&host(2), &[addr(2, 0)]).unwrap();
    assert_eq!(plan.way, Way::Unbind);
    assert_eq!(
        text(&plan),
        [
            "vfio_pci: load the module",
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
        ("580.95.05", true),
        ("", true),
    ] {
        let mut model = host(2);
        model.host.nvidia.as_mut().unwrap().version = version.to_owned();
        let plan = plan_out(&model, &[addr(2, 0)]).unwrap();
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
        let (before, modules) = (model.bindings(), model.loaded());
        let (_dir, store, guard) = locked();
        let out = plan_out(&model, &gpus).unwrap();
        execute(&mut model, &guard, record_for(&out), &out).unwrap();
        for gpu in &gpus {
            for n in 0..2 {
                let function = model.host.function(addr(gpu.bus, n)).unwrap();
                assert_eq!(function.driver.as_deref(), Some("vfio-pci"));
                assert_eq!(function.driver_override, None);
            }
        }
        let record = store.load().unwrap().0.remove(0);
        assert_eq!(record.state, State::Away);
        let home = way_home::plan(&model.host, &record).unwrap();
        execute(&mut model, &guard, record, &home).unwrap();
        assert_eq!(model.bindings(), before);
        assert_eq!(model.loaded(), modules);
        assert!(store.load().unwrap().0.is_empty());
    }
}

#[test]
fn a_second_pre_start_has_nothing_to_do_and_forgets_nothing() {
    let mut model = host(1);
    let (_dir, store, guard) = locked();
    let out = plan_out(&model, &[addr(1, 0)]).unwrap();
    execute(&mut model, &guard, record_for(&out), &out).unwrap();
    let records = store.load().unwrap().0;
    let again = plan_with(&model, &[addr(1, 0)], &[], &records).unwrap();
    assert!(again.steps.is_empty());
    assert_eq!(again.taken[0].driver.as_deref(), Some("nvidia"));
    assert_eq!(again.modules, out.modules);
}

/// From 595 on an unbind that meets a user never ends: only the unload, which the kernel itself refuses, is safe.
#[test]
fn from_595_on_a_gpu_leaves_only_with_all_the_others() {
    let mut model = host(2);
    model.host.nvidia.as_mut().unwrap().version = "595.45.04".to_owned();
    let refusal = plan_out(&model, &[addr(2, 0)]).unwrap_err().to_string();
    assert!(refusal.contains("driver 595.45.04 never ends"), "{refusal}");
    assert_eq!(plan_out(&model, &[addr(1, 0), addr(2, 0)]).unwrap().way, Way::Unload);
}

#[test]
fn a_card_that_has_vanished_is_not_called_home() {
    let mut model = host(1);
    let (_dir, store, guard) = locked();
    let out = plan_out(&model, &[addr(1, 0)]).unwrap();
    execute(&mut model, &guard, record_for(&out), &out).unwrap();
    model.host.functions.retain(|f| f.addr != addr(1, 0));
    let record = store.load().unwrap().0.remove(0);
    let home = way_home::plan(&model.host, &record).unwrap();
    let error = execute(&mut model, &guard, record, &home).unwrap_err();
    assert_eq!(error.exit(), Exit::NotRestored);
    assert!(
        error.to_string().contains("0000:01:00.0 is not there any more"),
        "{error}"
    );
    assert_eq!(
        model.host.function(addr(1, 1)).unwrap().driver.as_deref(),
        Some("snd_hda_intel")
    );
    assert!(store.load().unwrap().0[0].has(addr(1, 0)));
}

/// Every act of the way out, failing before and after its effect: the host must be as it was, nothing recorded.
#[test]
fn a_failure_at_any_act_of_the_way_out_is_undone() {
    let mut cases = 0;
    for (cards, gpus) in [
        (1, vec![addr(1, 0)]),
        (2, vec![addr(2, 0)]),
        (2, vec![addr(1, 0), addr(2, 0)]),
    ] {
        let steps = plan_out(&host(cards), &gpus).unwrap().steps.len();
        for at in 0..steps {
            for fault in [Fault::Fails, Fault::FailsAfterwards] {
                let mut model = host(cards);
                let (before, modules) = (model.bindings(), model.loaded());
                let (_dir, store, guard) = locked();
                let out = plan_out(&model, &gpus).unwrap();
                model.fault = Some((at, fault));
                // Proofs of several cards are one act: there are fewer acts than steps.
                let Err(error) = execute(&mut model, &guard, record_for(&out), &out) else {
                    assert!(model.acts.len() <= at, "act {at} did not fail the run");
                    continue;
                };
                let case = format!("{cards} cards, act {at} {:?} {fault:?}: {error}", out.steps[at].act);
                assert_eq!(error.exit(), Exit::Failed, "{case}");
                assert_eq!(model.bindings(), before, "{case}");
                assert_eq!(model.loaded(), modules, "{case}");
                assert!(store.load().unwrap().0.is_empty(), "{case}");
                cases += 1;
            }
        }
    }
    assert!(cases > 60, "only {cases} cases");
}

/// A call that never returns: the run ends, says so, keeps a record, and touches that device no more.
#[test]
fn a_hang_at_any_act_ends_wedged_with_a_record() {
    for (cards, gpus) in [(1, vec![addr(1, 0)]), (2, vec![addr(2, 0)])] {
        let steps = plan_out(&host(cards), &gpus).unwrap().steps;
        for (at, step) in steps.iter().enumerate() {
            let mut model = host(cards);
            let before = model.bindings();
            let (_dir, store, guard) = locked();
            let out = plan_out(&model, &gpus).unwrap();
            model.fault = Some((at, Fault::Hangs));
            let error = execute(&mut model, &guard, record_for(&out), &out).unwrap_err();
            if let Act::ProveFree { .. } = step.act {
                // Looking changes nothing; what hangs there is some other process's file.
                assert_eq!(error.exit(), Exit::Failed, "{error}");
                assert_eq!(model.bindings(), before);
                continue;
            }
            assert_eq!(error.exit(), Exit::NotRestored, "{:?}: {error}", step.act);
            let record = store.load().unwrap().0.remove(0);
            assert_eq!((record.state, record.wedges[0].group), (State::Stranded, 4242));
            let stuck: Vec<PciAddr> = record.stuck().collect();
            assert_eq!(stuck, record_for(&out).touched_by(&step.act));
            for act in &model.acts[at + 1..] {
                let module = matches!(act, Act::LoadModule { .. } | Act::UnloadModule { .. });
                assert!(!module, "{:?} after {:?} got stuck", act, step.act);
                assert!(!stuck.iter().any(|a| act.subject() == a.to_string()), "{act:?}");
            }
            let refusal = way_home::plan(&model.host, &record).unwrap_err();
            assert!(refusal.to_string().contains("stuck in the kernel"), "{refusal}");
        }
    }
}

/// On the way home one function's failure does not keep the others away.
#[test]
fn what_can_come_home_does() {
    let mut model = host(1);
    let (_dir, store, guard) = locked();
    let out = plan_out(&model, &[addr(1, 0)]).unwrap();
    execute(&mut model, &guard, record_for(&out), &out).unwrap();
    let record = store.load().unwrap().0.remove(0);
    let home = way_home::plan(&model.host, &record).unwrap();
    // The driver takes it no more, whatever is tried.
    let driver = model.drivers.remove("nvidia").unwrap();
    let error = execute(&mut model, &guard, record, &home).unwrap_err();
    assert_eq!(error.exit(), Exit::NotRestored);
    let audio = model.host.function(addr(1, 1)).unwrap();
    assert_eq!(audio.driver.as_deref(), Some("snd_hda_intel"));
    assert_eq!(store.load().unwrap().0[0].state, State::Stranded);
    // The next try finds the rest.
    model.drivers.insert("nvidia".to_owned(), driver);
    let record = store.load().unwrap().0.remove(0);
    let home = way_home::plan(&model.host, &record).unwrap();
    execute(&mut model, &guard, record, &home).unwrap();
    assert_eq!(model.bindings(), host(1).bindings());
}

#[test]
fn whoever_uses_the_gpu_is_named_with_the_remedy() {
    for (nodes, cards, refused) in [
        (vec![Node::Gpu(addr(1, 0))], 1, true),
        (vec![Node::Control], 1, true),
        (vec![Node::Uvm], 2, true),
        (vec![Node::Sound(addr(1, 1))], 1, true),
        (vec![Node::VfioGroup(21)], 1, true),
        (vec![Node::Drm(addr(1, 0))], 2, true),
        (vec![Node::UnknownGpu(9)], 2, true),
        // Another GPU's own nodes are no reason.
        (vec![Node::Gpu(addr(2, 0))], 2, false),
        (vec![Node::Sound(addr(2, 1))], 2, false),
        (vec![Node::VfioGroup(22)], 2, false),
        // But its displays are, where nvidia_drm would have to be unloaded.
        (vec![Node::Drm(addr(2, 0))], 2, true),
    ] {
        let mut model = host(cards);
        model.host.holders.push(holder(&nodes));
        let plan = plan_out(&model, &[addr(1, 0)]);
        assert_eq!(plan.is_err(), refused, "{nodes:?}");
        if let Err(refusal) = plan {
            let text = refusal.to_string();
            assert!(text.contains("process 777 (python3, container 104)"), "{text}");
            assert!(text.contains("Hint: pct shutdown 104"), "{text}");
        }
    }
}

#[test]
fn every_reason_is_listed_at_once() {
    let mut model = host(1);
    model.host.iommu = false;
    model.host.holders.push(holder(&[Node::Gpu(addr(1, 0))]));
    model.host.unreadable.push(9);
    let Refusal(reasons) = plan_out(&model, &[addr(1, 0)]).unwrap_err();
    assert!(
        matches!(
            reasons.as_slice(),
            [Reason::IommuOff, Reason::Held { .. }, Reason::Unreadable(_)]
        ),
        "{reasons:?}"
    );
    assert!(
        Refusal(reasons)
            .to_string()
            .starts_with("3 reasons: (1) the IOMMU is off")
    );
}

#[test]
fn a_stranger_in_the_group_refuses_unless_the_vm_was_given_it() {
    let mut model = host(2);
    for function in &mut model.host.functions {
        function.group = Some(21);
    }
    let refusal = plan_out(&model, &[addr(1, 0)]).unwrap_err().to_string();
    assert!(
        refusal.contains("IOMMU group 21 of 0000:01:00.0 also has 0000:02:00.0 (nvidia)"),
        "{refusal}"
    );
    let given = [addr(2, 0), addr(2, 1)];
    plan_with(&model, &[addr(1, 0)], &given, &[]).unwrap();
    plan_out(&model, &[addr(1, 0), addr(2, 0)]).unwrap();
}

#[test]
fn a_card_that_is_split_or_without_an_iommu_is_refused_with_the_remedy() {
    type Change = fn(&mut Model);
    let cases: [(Change, &str); 4] = [
        (|m| m.host.functions[0].vfs = 4, "0000:01:00.0 has 4 virtual functions"),
        (
            |m| m.host.functions[0].physfn = Some(addr(9, 0)),
            "0000:01:00.0 is a virtual function of 0000:09:00.0",
        ),
        (
            |m| m.host.nvidia.as_mut().unwrap().gpus[0].mig = true,
            "0000:01:00.0 is split into MIG instances",
        ),
        (
            |m| m.host.functions[1].noiommu = true,
            "0000:01:00.1 is in a group of VFIO's unsafe no-IOMMU mode",
        ),
    ];
    for (change, text) in cases {
        let mut model = host(1);
        change(&mut model);
        let refusal = plan_out(&model, &[addr(1, 0)]).unwrap_err().to_string();
        assert!(refusal.starts_with(text), "{refusal}");
        assert!(refusal.contains("Hint: "), "{refusal}");
    }
}

#[test]
fn what_another_handoff_has_is_not_taken() {
    let model = host(1);
    let mut record = Record::new(Owner::Vm("112".parse().unwrap()), "boot".to_owned(), Budgets::default());
    record.taken = plan_out(&model, &[addr(1, 0)]).unwrap().taken;
    let refusal = plan_with(&model, &[addr(1, 0)], &[], &[record]).unwrap_err();
    assert!(
        refusal.to_string().contains("0000:01:00.0 is taken already (VM 112)"),
        "{refusal}"
    );
}

#[test]
fn a_module_that_nobody_accounts_for_refuses() {
    let mut model = host(1);
    model
        .host
        .modules
        .iter_mut()
        .find(|m| m.name == "nvidia_drm")
        .unwrap()
        .refs = Some(1);
    let refusal = plan_out(&model, &[addr(1, 0)]).unwrap_err().to_string();
    assert!(refusal.contains("module nvidia_drm is in use (1 more"), "{refusal}");
    assert!(refusal.contains("vtconsole"), "{refusal}");
}

#[test]
fn the_run_stops_when_its_time_is_over_and_undoes() {
    let mut model = host(1);
    let before = model.bindings();
    let (_dir, _store, guard) = locked();
    let out = plan_out(&model, &[addr(1, 0)]).unwrap();
    // Each act of the model takes 10 ms: after five of them the time is over.
    let end = Duration::from_millis(45);
    let record = record_for(&out);
    let run = Run {
        kernel: &mut model,
        ledger: &guard,
        record,
        rest: None,
        end,
    };
    let error = run.execute(&out).unwrap_err();
    assert!(
        error.to_string().contains("the time for the whole run is over"),
        "{error}"
    );
    assert_eq!(error.exit(), Exit::Failed);
    assert_eq!(model.bindings(), before);
}

#[test]
fn without_a_record_the_drivers_are_inferred() {
    let mut model = host(1);
    let (_dir, _store, guard) = locked();
    let out = plan_out(&model, &[addr(1, 0)]).unwrap();
    execute(&mut model, &guard, record_for(&out), &out).unwrap();
    let empty = Record::new(Owner::ByHand(addr(1, 0)), "boot".to_owned(), Budgets::default());
    let record = way_home::inferred(&model.host, &[addr(1, 0)], empty);
    let home = way_home::plan(&model.host, &record).unwrap();
    execute(&mut model, &guard, record, &home).unwrap();
    assert_eq!(model.bindings(), host(1).bindings());
    assert_eq!(model.loaded(), host(1).loaded());
}
