//! What somebody else hangs in: who is refused and what is not touched, and what recover makes of it.

use std::time::Duration;

use gpu_handoff::base::deadlines::Budgets;
use gpu_handoff::host::belongs::Belongs;
use gpu_handoff::host::nodes::Node;
use gpu_handoff::host::snapshot::Snapshot;
use gpu_handoff::host::stuck_calls::{StuckCall, What};
use gpu_handoff::model::act::Act;
use gpu_handoff::model::record::{Owner, Record, State};
use gpu_handoff::model::refusal::{Reason, Refusal};
use gpu_handoff::output::status::{Sight, status};
use gpu_handoff::output::status_table;
use gpu_handoff::output::style::Style;
use gpu_handoff::plan::{hangs, home, inferred};

use crate::common::hosts::{add_consoles, add_persistenced};
use crate::common::{End, Event, Fault, Generation, Model, Process, Session, Twist, When, addr, host};
use crate::{assert_as_before, records};

/// The script, and what it is in the unbind of.
const SCRIPT: i32 = 812;

/// A host in which a script has written a GPU's address to the `unbind` of nvidia two seconds ago.
fn unbound_by_a_script(mut model: Model, bus: u8) -> Model {
    model
        .events
        .push((When::At(Duration::from_secs(1)), Event::Unbinds(SCRIPT, addr(bus, 0))));
    model.wait_until(Duration::from_secs(3), |_| false);
    assert_eq!(model.driver_of(addr(bus, 0)), None);
    model
}

/// A host with one GPU, of whose driver only the main module is loaded.
fn without_drm() -> Model {
    let mut model = host(1);
    model.drm.clear();
    model
        .modules
        .retain(|(name, _)| *name == "nvidia" || !name.starts_with("nvidia"));
    model
}

fn only() -> Session {
    Session::new(&[addr(1, 0)])
}

fn seen(model: &mut Model) -> Snapshot {
    let mut snapshot = only().look(model, &[]).unwrap();
    let all: Vec<_> = snapshot.functions.iter().map(|f| f.addr).collect();
    only().ask(model, &mut snapshot, &all);
    snapshot
}

/// What to_nvidia is refused with where nothing is on record.
fn to_nvidia(snapshot: &Snapshot) -> Refusal {
    let empty = Record::new(Owner::ByHand(addr(1, 0)), "boot".to_owned(), Budgets::default());
    let record = inferred::inferred(snapshot, &[addr(1, 0)], empty);
    home::plan(snapshot, &record).unwrap_err()
}

const IN_UNBIND: &str = "process 812 (sh) hangs in an unbind of 0000:01:00.0 from nvidia; it waits for ";
const DRM: &str = "nvidia_drm, which has the GPU for as long as it is loaded";

#[test]
fn an_unbind_that_somebody_else_hangs_in_is_named_at_once_and_nothing_is_touched() {
    for generation in [Generation::K6_1, Generation::K6_12] {
        let mut model = host(1);
        model.generation = generation;
        let mut model = unbound_by_a_script(model, 1);
        let before = model.time;
        let end = only().out(&mut model);
        let End::Refused(Refusal(reasons)) = &end else {
            panic!("{end:?}")
        };
        let [reason @ Reason::Hangs(_)] = reasons.as_slice() else {
            panic!("{reasons:?}")
        };
        assert_eq!(reason.fact(), format!("{IN_UNBIND}{DRM}"));
        assert!(
            reason
                .to_string()
                .contains("Hint: 'gpu-handoff recover' unloads nvidia_drm")
        );
        let snapshot = seen(&mut model);
        let refused = to_nvidia(&snapshot).to_string();
        assert!(refused.starts_with(IN_UNBIND), "{refused}");
        let text = status_table::text(&status(&Sight::of(&snapshot, &[]), None), Style::default());
        assert!(text.contains(&format!("  in use:  {IN_UNBIND}{DRM}\n")), "{text}");
        let row = text.lines().find(|l| l.starts_with("0000:01:00 ")).unwrap();
        assert!(row.contains(" stuck "), "{text}");
        let took = model.time - before;
        assert!(took < Duration::from_secs(3), "{took:?} for two looks");
        assert_eq!((model.acts.len(), &model.laws.broken), (0, &vec![]));
    }
}

/// The unload of nvidia goes through every device that nvidia has, and would wait behind the unbind of the other one.
/// Before anything is done at what leaves, those that stay have all of their driver again.
#[test]
fn a_bind_that_hangs_after_a_reload_costs_those_that_stay_nothing() {
    let mut host = host(3);
    host.version = "595.45.04".to_owned();
    add_persistenced(&mut host);
    let session = Session::new(&[addr(1, 0)]);
    let mut undisturbed = host.fork();
    assert!(matches!(session.out(&mut undisturbed), End::Done));
    let is_bind = |act: &Act| matches!(act, Act::Probe { driver, .. } if driver.as_deref() == Some("vfio-pci"));
    let binds = (0..undisturbed.acts.len()).filter(|at| is_bind(&undisturbed.acts[*at]));
    for at in binds {
        let mut model = host.fork();
        model.faults.0 = vec![(at, Fault::Twisted(Twist::Hangs))];
        let end = session.out(&mut model);
        assert!(matches!(end, End::NotRestored(_)), "{end:?}");
        let loaded = |model: &Model| model.state().modules.clone();
        let of_nvidia = |names: Vec<&'static str>| {
            names
                .into_iter()
                .filter(|n| n.starts_with("nvidia"))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            of_nvidia(loaded(&model)),
            of_nvidia(loaded(&host)),
            "{}",
            undisturbed.acts[at]
        );
        for bus in [2, 3] {
            assert_eq!(model.driver_of(addr(bus, 0)), Some("nvidia"));
        }
        assert!(model.units.iter().all(|unit| unit.active), "{:?}", model.units);
    }
}

#[test]
fn another_gpu_does_not_leave_by_an_unload_beside_an_unbind_that_hangs() {
    let mut model = unbound_by_a_script(host(2), 2);
    let refused = only().plan_out(&mut model).unwrap_err().to_string();
    let text = "process 812 (sh) hangs in an unbind of 0000:02:00.0 from nvidia; it waits for nvidia_drm";
    assert!(refused.starts_with(text), "{refused}");
}

#[test]
fn an_unbind_that_is_under_way_for_a_moment_is_no_reason_to_refuse() {
    for (takes, refused) in [(400, false), (5_000, true)] {
        let mut model = without_drm();
        let id = model.unbind(0, "nvidia", addr(1, 0)).unwrap();
        let call = model.call_mut(id).unwrap();
        (call.left_behind, call.by) = (true, Some(SCRIPT));
        call.twist = Some(Twist::Takes(Duration::from_millis(takes)));
        model.processes.push(Process::new(SCRIPT, &[]));
        model.wait_until(Duration::from_millis(50), |_| false);
        assert_eq!(model.driver_of(addr(1, 0)), None, "it has begun");
        let end = only().out(&mut model);
        match (refused, &end) {
            (false, End::Done) => {}
            (true, End::Refused(refusal)) => {
                let text = refusal.to_string();
                assert!(
                    text.contains("hangs in an unbind of 0000:01:00.0 from nvidia"),
                    "{text}"
                );
                assert!(text.contains("nobody is seen to use the device"), "{text}");
            }
            _ => panic!("{takes} ms: {end:?}"),
        }
        assert_eq!(model.laws.broken, [""; 0], "{takes} ms");
    }
}

/// As `recover` does it (gpu_handoff::commands::free): the unload on record, then the wait, then what comes home.
fn recover(model: &mut Model) -> Result<End, Refusal> {
    let snapshot = seen(model);
    let call = snapshot.calls[0].clone();
    hangs::may_be_freed(&snapshot, &call)?;
    let by_hand = Session {
        owner: Owner::ByHand(call.at[0]),
        ..only()
    };
    let empty = Record::new(by_hand.owner, "boot".to_owned(), Budgets::default());
    let record = hangs::put_on_record(&snapshot, &call, empty);
    let plan = hangs::freeing(&snapshot, &call, &record);
    let end = model.time + Duration::from_secs(100);
    match by_hand.execute(model, record.clone(), Some(record.clone()), &plan, end) {
        End::Done => {}
        end => return Ok(end),
    }
    let later = model.time + Duration::from_secs(20);
    model.wait_until(later, |m| m.calls_of_others().is_empty());
    Ok(come_home(model, record))
}

/// What nobody holds any more comes home, by the record that has been kept or by a new one.
fn come_home(model: &mut Model, record: Record) -> End {
    let snapshot = seen(model);
    let taken = hangs::comes_home(&snapshot, addr(1, 0), |_| None).unwrap();
    let record = hangs::unrecorded(taken, record);
    let by_hand = Session {
        owner: record.owner,
        ..only()
    };
    let end = model.time + Duration::from_secs(100);
    let plan = home::plan(&snapshot, &record).unwrap();
    assert!(!plan.steps.iter().any(|s| matches!(s.act, Act::Reset { .. })));
    by_hand.execute(model, record, None, &plan, end)
}

#[test]
fn an_unbind_that_waits_for_nvidia_drm_is_freed_and_the_gpu_comes_home() {
    let mut with_console = host(1);
    add_consoles(&mut with_console, true);
    for before in [host(1), with_console] {
        freed(&before);
    }
}

fn freed(before: &Model) {
    let mut model = unbound_by_a_script(before.fork(), 1);
    model
        .events
        .push((When::At(model.time + Duration::from_secs(60)), Event::Goes(SCRIPT)));
    let end = recover(&mut model).unwrap();
    assert!(matches!(end, End::Done), "{end:?}");
    model.processes.clear();
    assert_as_before(&model, &before.state(), "after recover");
    assert!(records(&model).is_empty());
}

/// Killed at each moment: what is on file brings the GPU home.
#[test]
fn a_recover_that_is_killed_leaves_a_record_that_brings_the_gpu_home() {
    for fault in [Fault::KilledBefore, Fault::KilledIn, Fault::KilledAfter] {
        let before = host(1);
        let mut model = unbound_by_a_script(before.fork(), 1);
        model.faults.0 = vec![(0, fault)];
        let end = recover(&mut model);
        assert!(matches!(end, Ok(End::Killed)), "{fault:?} {end:?}");
        let by_hand = Session {
            owner: Owner::ByHand(addr(1, 0)),
            ..only()
        };
        assert_eq!(records(&model)[0].state, State::Returning, "{fault:?}");
        if fault == Fault::KilledBefore {
            assert!(matches!(by_hand.home(&mut model), End::Refused(_)), "it hangs still");
            let end = recover(&mut model);
            assert!(matches!(end, Ok(End::Done)), "{end:?}");
        } else {
            let later = model.time + Duration::from_secs(5);
            model.wait_until(later, |_| false);
            let end = by_hand.home(&mut model);
            assert!(matches!(end, End::Done), "{fault:?} {end:?}");
        }
        model.processes.clear();
        assert_as_before(&model, &before.state(), &format!("{fault:?}"));
        assert!(records(&model).is_empty(), "{fault:?}");
    }
}

#[test]
fn a_holder_is_named_and_when_it_has_gone_the_gpu_comes_home() {
    let mut model = without_drm();
    let before = model.fork();
    model.processes.push(Process::new(900, &[Node::Gpu(addr(1, 0))]));
    let mut model = unbound_by_a_script(model, 1);
    let refused = recover(&mut model).unwrap_err().to_string();
    assert_eq!(
        refused,
        format!(
            "{IN_UNBIND}process 900 (python3, container 104), which has the GPU node of 0000:01:00.0 open. Hint: pct \
             shutdown 104"
        )
    );
    assert_eq!(model.acts.len(), 0);
    model.processes.clear();
    model.wait_until(model.time + Duration::from_secs(1), |_| false);
    let empty = Record::new(Owner::ByHand(addr(1, 0)), "boot".to_owned(), Budgets::default());
    let end = come_home(&mut model, empty);
    assert!(matches!(end, End::Done), "{end:?}");
    assert_as_before(&model, &before.state(), "when it has gone");
}

#[test]
fn nvidia_drm_is_not_unloaded_where_that_harms_somebody_or_frees_nothing() {
    type Change = fn(&mut Model);
    let cases: [(&str, u8, Change, &str); 6] = [
        ("alone", 1, |_| {}, ""),
        (
            "a holder besides",
            1,
            |m| m.processes.push(Process::new(900, &[Node::Gpu(addr(1, 0))])),
            "process 900",
        ),
        (
            "a module in use",
            1,
            |m| m.pins.push("nvidia_drm"),
            "module nvidia_drm is in use (1 more",
        ),
        (
            "a display of another GPU",
            2,
            |m| m.processes.push(Process::new(901, &[Node::Drm(addr(2, 0))])),
            "a DRM node of 0000:02:00.0 is in use by process 901",
        ),
        (
            "a console on another GPU",
            2,
            |_| {},
            "nvidia_drm also draws the display of 0000:02:00.0",
        ),
        (
            "another GPU without a display",
            2,
            |m| _ = m.headless.insert(addr(2, 0)),
            "",
        ),
    ];
    for (case, cards, change, text) in cases {
        let mut model = host(cards);
        change(&mut model);
        let mut model = unbound_by_a_script(model, 1);
        let snapshot = seen(&mut model);
        let freed = hangs::may_be_freed(&snapshot, &snapshot.calls[0]);
        let refused = freed.err().map(|r| r.to_string()).unwrap_or_default();
        assert!(
            refused.contains(text) && refused.is_empty() == text.is_empty(),
            "{case}: {refused}"
        );
    }
    // By a driver that lets nvidia_drm drop the GPU it is not that which holds it.
    let mut model = host(1);
    model.processes.push(Process::new(900, &[Node::Gpu(addr(1, 0))]));
    for (version, text) in [
        (
            "590.48.01",
            "it waits for process 900 (python3, container 104), which has",
        ),
        (
            "595.45.04",
            "driver 595.45.04 does not end it once it has met a user. Hint: sync and power-cycle",
        ),
    ] {
        model.version = version.to_owned();
        let mut model = unbound_by_a_script(model.fork(), 1);
        let snapshot = seen(&mut model);
        let refused = hangs::may_be_freed(&snapshot, &snapshot.calls[0])
            .unwrap_err()
            .to_string();
        assert!(
            refused.contains(text) && !refused.contains("nvidia_drm"),
            "{version}: {refused}"
        );
    }
}

#[test]
fn what_is_meant_for_another_driver_does_not_come_home() {
    type Change = fn(&mut Model);
    let cases: [(Change, Option<u64>, &str); 5] = [
        (|_| {}, None, ""),
        (|_| {}, Some(111), "Proxmox has reserved 0000:01:00.0 for VM 111"),
        (
            |m| m.device_mut(addr(1, 0)).unwrap().driver_override = Some("vfio-pci".to_owned()),
            None,
            "the driver_override of 0000:01:00.0 means it for vfio-pci",
        ),
        (
            |m| m.settle_on(addr(1, 0), "vfio-pci"),
            None,
            "0000:01:00.0 is on vfio-pci by now",
        ),
        (
            |m| m.modules.retain(|(name, _)| !name.starts_with("nvidia")),
            None,
            "nvidia, the module of the driver of 0000:01:00.0, is not loaded",
        ),
    ];
    for (change, reserved, why) in cases {
        let mut model = host(1);
        model.set_aside(addr(1, 0));
        change(&mut model);
        let snapshot = seen(&mut model);
        let comes = hangs::comes_home(&snapshot, addr(1, 0), |_| reserved);
        assert_eq!(comes.as_ref().err().map_or("", String::as_str), why);
        if let Ok(taken) = comes {
            let addrs: Vec<_> = taken.iter().map(|t| t.addr).collect();
            assert_eq!(addrs, [addr(1, 0)], "the audio function is on its driver");
        }
    }
}

/// A reset waits for the device alone, and what somebody does behind it waits for that: neither for who uses the driver of another
/// GPU, nor for nvidia_drm.
#[test]
fn a_reset_that_somebody_makes_and_what_waits_behind_it_wait_for_no_user() {
    for (what, text) in [
        (What::Reset, "a reset of 0000:02:00.0"),
        (
            What::VirtualFunctions,
            "a change of the virtual functions of 0000:02:00.0",
        ),
        (What::Bind, "a bind of 0000:02:00.0"),
    ] {
        for version in ["580.95.05", "595.45.04"] {
            for user in [None, Some(Process::new(900, &[Node::Control]))] {
                let mut model = host(2);
                model.version = version.to_owned();
                model.processes.extend(user);
                model.set_aside(addr(2, 0));
                let mut snapshot = seen(&mut model);
                snapshot.calls.push(StuckCall {
                    pid: SCRIPT,
                    thread: SCRIPT,
                    started: Some(1),
                    group: Some(812),
                    comm: "sh".to_owned(),
                    belongs_to: Belongs::Unknown,
                    what,
                    driver: None,
                    at: vec![addr(2, 0)],
                    frame: Some("pci_dev_wait".to_owned()),
                    lasts: true,
                });
                let said = format!("process 812 (sh) hangs in {text}; it waits in the kernel at pci_dev_wait");
                for reasons in [
                    hangs::at(&snapshot, &[addr(2, 0)]),
                    hangs::may_be_freed(&snapshot, &snapshot.calls[0]).unwrap_err().0,
                ] {
                    let [reason] = reasons.as_slice() else {
                        panic!("{reasons:?}")
                    };
                    assert_eq!(reason.fact(), said, "{version}");
                    let whole = reason.to_string();
                    assert!(whole.contains("Hint: wait until that is over"), "{version}: {whole}");
                }
            }
        }
    }
}
