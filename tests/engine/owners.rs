//! Owners that are gone: a VM whose post-stop was lost and whose config has changed since, one that others have a GPU of, and
//! one whose GPU does not come home.

use std::sync::Arc;

use gpu_handoff::base::process::Process as Told;
use gpu_handoff::host::vms::RunningVm;
use gpu_handoff::model::act::Act;
use gpu_handoff::model::claim::Claim;
use gpu_handoff::model::record::{Owner, Record, State, Taken};
use gpu_handoff::model::refusal::Reason;

use crate::common::hosts::{add_consoles, add_persistenced};
use crate::common::session::vm;
use crate::common::{Beside, End, Fault, MemLedger, Model, ProbeFault, Process, Session, addr, host};
use crate::{assert_as_before, records};

/// A VM that is given these GPUs.
fn of(vmid: u32, gpus: &[u8]) -> Session {
    let gpus: Vec<_> = gpus.iter().map(|bus| addr(*bus, 0)).collect();
    Session {
        owner: vm(vmid),
        ..Session::new(&gpus)
    }
}

fn nobody() -> Beside {
    Beside::default()
}

/// A host with this many cards, a console and the persistence daemon, and records on file.
fn with_all(cards: u8) -> Model {
    let mut model = host(cards);
    add_consoles(&mut model, true);
    add_persistenced(&mut model);
    model.ledger = Some(Arc::default());
    model
}

fn ledger(model: &Model) -> Arc<MemLedger> {
    Arc::clone(model.ledger.as_ref().unwrap())
}

/// The VM's QEMU, which has a card's group or none.
fn runs(model: &mut Model, vmid: u32, with: Option<u8>) {
    let Owner::Vm(number) = vm(vmid) else { unreachable!() };
    let process = Told { pid: 900, started: 1 };
    model.vms.push(RunningVm { vmid: number, process });
    if let Some(bus) = with {
        model.open(Process::guest(900, vmid, 20 + u32::from(bus))).unwrap();
    }
}

fn on_file(model: &Model) -> Vec<(Owner, Vec<u8>, State)> {
    let of = |r: &Record| {
        r.taken
            .iter()
            .filter(|t| t.addr.function == 0)
            .map(|t| t.addr.bus)
            .collect()
    };
    records(model).iter().map(|r| (r.owner, of(r), r.state)).collect()
}

fn done(end: &End, case: &str) {
    assert!(matches!(end, End::Done), "{case}: {end:?}");
}

/// `qm stop; qm set --delete hostpci0; qm start`, a rollback to a config without it or with another GPU, while post-stop was
/// lost: what the VM has on record and no longer names comes home before it starts.
#[test]
fn what_a_vm_does_not_name_any_more_comes_home_before_it_starts() {
    for (case, cards, before, after) in [
        ("hostpci0 deleted", 1, vec![1], vec![]),
        ("rolled back to none of two", 2, vec![1, 2], vec![]),
        ("another GPU", 2, vec![1], vec![2]),
        ("one less", 2, vec![1, 2], vec![2]),
        ("one more", 2, vec![1], vec![1, 2]),
        ("another pair", 3, vec![1, 2], vec![2, 3]),
    ] {
        let mut model = with_all(cards);
        let at_home = model.state();
        done(&of(111, &before).out(&mut model), case);
        // As a start finds it: the QEMU of before is gone.
        let end = of(111, &after).start(&mut model, &nobody());
        done(&end, case);
        let expected = [(vm(111), after.clone(), State::Away)];
        let expected = if after.is_empty() { &[][..] } else { &expected[..] };
        assert_eq!(on_file(&model), expected, "{case}");
        for bus in 1..=cards {
            let driver = if after.contains(&bus) { "vfio-pci" } else { "nvidia" };
            assert_eq!(model.driver_of(addr(bus, 0)), Some(driver), "{case}: card {bus}");
        }
        done(&of(111, &after).home(&mut model), case);
        assert_as_before(&model, &at_home, case);
    }
}

/// What stays with the VM is left where it is.
#[test]
fn what_a_vm_names_still_does_not_move() {
    let mut model = with_all(2);
    done(&of(111, &[1, 2]).out(&mut model), "out");
    let acts = model.acts.len();
    done(&of(111, &[2]).start(&mut model, &nobody()), "start");
    let touched: Vec<_> = model.acts[acts..].iter().filter_map(Act::function).collect();
    assert!(touched.contains(&addr(1, 0)), "{touched:?}");
    assert!(!touched.iter().any(|a| a.bus == 2), "{touched:?}");
    // And where the sets are the same nothing comes home.
    let acts = model.acts.len();
    done(&of(111, &[2]).start(&mut model, &nobody()), "once more");
    let home = |act: &&Act| matches!(act, Act::Probe { .. } | Act::Unbind { .. } | Act::UnloadModule { .. });
    assert_eq!(model.acts[acts..].iter().filter(home).count(), 0);
}

#[test]
fn what_somebody_has_open_refuses_the_start_of_who_does_not_name_it_any_more() {
    let mut model = with_all(1);
    done(&of(111, &[1]).out(&mut model), "out");
    runs(&mut model, 111, Some(1));
    let (before, acts) = (records(&model), model.acts.len());
    let end = of(111, &[]).start(&mut model, &nobody());
    let End::Refused(refusal) = end else { panic!("{end:?}") };
    assert!(
        refusal.to_string().contains("is in use by process 900 (kvm, VM 111)"),
        "{refusal}"
    );
    assert_eq!((records(&model), model.acts.len()), (before, acts));
}

/// A VM that nobody called us for runs with it: it keeps it, and whose record it is on starts without.
#[test]
fn what_another_vm_runs_with_keeps_nobody_from_starting_who_does_not_name_it_any_more() {
    for after in [vec![], vec![2]] {
        let mut model = with_all(2);
        done(&of(111, &[1]).out(&mut model), "out");
        runs(&mut model, 112, Some(1));
        let case = format!("{after:?}");
        done(&of(111, &after).start(&mut model, &nobody()), &case);
        assert_eq!(
            model.device(addr(1, 0)).and_then(|d| d.driver),
            Some("vfio-pci"),
            "{case}"
        );
        let (_, buses, _) = on_file(&model).pop().unwrap();
        assert_eq!(buses, [vec![1], after].concat(), "{case}");
        assert_eq!(model.laws.broken, [""; 0], "{case}");
    }
}

/// Its own that does not come home keeps a VM from nothing: it is said, stays on record, and comes home later.
#[test]
fn a_vm_starts_without_what_does_not_come_home() {
    for after in [vec![], vec![2]] {
        let mut model = with_all(2);
        let at_home = model.state();
        done(&of(111, &[1]).out(&mut model), "out");
        model.devices.retain(|d| d.addr != addr(1, 0));
        let case = format!("then {after:?}");
        done(&of(111, &after).start(&mut model, &nobody()), &case);
        let left = &records(&model)[0];
        assert!(
            left.has(addr(1, 0)) && left.has(addr(2, 0)) != after.is_empty(),
            "{case}: {left:#?}"
        );
        let end = of(111, &[]).home(&mut model);
        let End::NotRestored(why) = end else {
            panic!("{case}: {end:?}")
        };
        assert!(why.contains("0000:01:00.0 is not there any more"), "{case}: {why}");
        let differs = at_home.differences(&model.state());
        assert_eq!(differs, ["0000:01:00.0 has gone"], "{case}");
    }
}

/// What another VM has on record that neither runs nor starts, or runs without it.
#[test]
fn what_another_vm_has_that_is_gone_comes_home_first() {
    for (case, cards, its, runs_without) in [
        ("it does not run", 1, vec![1], false),
        ("it runs without it", 1, vec![1], true),
        ("of two", 2, vec![1, 2], false),
        ("of two, and it runs", 2, vec![1, 2], true),
    ] {
        let mut model = with_all(cards);
        let at_home = model.state();
        done(&of(112, &its).out(&mut model), case);
        if runs_without {
            runs(&mut model, 112, None);
        }
        let acts = model.acts.len();
        done(&of(111, &[1]).start(&mut model, &nobody()), case);
        assert_eq!(on_file(&model), [(vm(111), vec![1], State::Away)], "{case}");
        let verified = model.acts[acts..].iter().any(|act| matches!(act, Act::Verify { .. }));
        assert!(verified, "{case}: it was not home in between");
        done(&of(111, &[1]).home(&mut model), case);
        assert_as_before(&model, &at_home, case);
    }
}

/// It runs with one of two cards: only the other one comes home, also after a way home of that one that was broken off.
#[test]
fn of_what_a_vm_runs_with_nothing_moves_and_what_it_runs_without_does() {
    for state in [State::Away, State::Stranded, State::Returning] {
        beside_the_one_that_it_runs_with(state);
    }
}

fn beside_the_one_that_it_runs_with(state: State) {
    let mut model = with_all(2);
    let at_home = model.state();
    done(&of(112, &[1, 2]).out(&mut model), "out");
    runs(&mut model, 112, Some(2));
    let mut record = records(&model).remove(0);
    record.state = state;
    ledger(&model).put(record);
    let acts = model.acts.len();
    done(&of(111, &[1]).start(&mut model, &nobody()), "the other card");
    let moved: Vec<_> = model.acts[acts..].iter().filter_map(Act::function).collect();
    assert!(!moved.iter().any(|a| a.bus == 2), "{moved:?}");
    let (one, two) = ((vm(111), vec![1], State::Away), (vm(112), vec![2], State::Away));
    let mut found = on_file(&model);
    found.sort_by_key(|(owner, ..)| owner.to_string());
    assert_eq!(found, [one, two]);
    let end = of(113, &[2]).start(&mut model, &nobody());
    let End::Refused(refusal) = end else { panic!("{end:?}") };
    let text = "0000:02:00.0, 0000:02:00.1 are not free: VM 112 runs with it. Hint: qm shutdown 112";
    assert_eq!(refusal.to_string(), text);
    model.processes.retain(|p| p.pid != 900);
    model.vms.clear();
    done(&of(112, &[]).home(&mut model), "home");
    done(&of(111, &[]).home(&mut model), "home");
    assert_as_before(&model, &at_home, "in the end");
}

/// Who is not gone has a claim, and is named.
#[test]
fn what_another_vm_has_that_is_not_gone_is_refused_with_who_it_is() {
    let busy = Beside {
        busy: vec![vm(112)],
        ..nobody()
    };
    let called = Beside {
        callers: vec![vm(112)],
        ..nobody()
    };
    let needed = Beside {
        needed: vec![Reason::Claimed {
            addrs: vec![addr(1, 0)],
            claim: Claim::Reserved {
                vmid: 113,
                starts: true,
            },
        }],
        ..nobody()
    };
    for (beside, with, said) in [
        (
            busy,
            false,
            "VM 112 is starting or stopping, or another task has its lock. Hint: wait until that is over",
        ),
        (
            called,
            false,
            "pre-start of VM 112 was called by hand, and process 7, which called it, still runs. Hint: 'gpu-handoff 112 \
             post-stop' ends that attempt, and so does the end of that process",
        ),
        (
            needed,
            false,
            "it is reserved for VM 113, which is starting. Hint: wait until that is over",
        ),
        (nobody(), true, "VM 112 runs with it. Hint: qm shutdown 112"),
    ] {
        let mut model = with_all(1);
        done(&of(112, &[1]).out(&mut model), said);
        let mut record = records(&model).remove(0);
        record.caller = Some(Told { pid: 7, started: 1 });
        ledger(&model).put(record);
        if with {
            runs(&mut model, 112, Some(1));
        }
        let (before, acts) = (records(&model), model.acts.len());
        let end = of(111, &[1]).start(&mut model, &beside);
        let End::Refused(refusal) = end else {
            panic!("{said}: {end:?}")
        };
        assert!(refusal.to_string().ends_with(&format!("not free: {said}")), "{refusal}");
        assert_eq!((records(&model), model.acts.len()), (before, acts), "{said}");
    }
}

/// What a person has taken is a person's.
#[test]
fn what_was_taken_by_hand_is_nobody_elses() {
    let mut model = with_all(2);
    let by_hand = Session {
        owner: Owner::ByHand(addr(1, 0)),
        ..of(111, &[1])
    };
    done(&by_hand.out(&mut model), "by hand");
    let end = of(111, &[1, 2]).start(&mut model, &nobody());
    let End::Refused(refusal) = end else { panic!("{end:?}") };
    assert!(
        refusal.to_string().contains("0000:01:00.0 is taken already (by hand)"),
        "{refusal}"
    );
}

const KILLS: [Fault; 3] = [Fault::KilledBefore, Fault::KilledIn, Fault::KilledAfter];

/// Abandoned at any act of its way out or home: the next VM that wants the card has it, and leaves all as it was.
#[test]
fn what_a_run_of_another_vm_has_left_at_any_act_is_settled_by_the_next_one() {
    let mut cases = 0;
    let mut away = with_all(1);
    let at_home = away.state();
    done(&of(112, &[1]).out(&mut away), "out");
    for (start, home) in [(with_all(1), false), (away, true)] {
        let run = |model: &mut Model| {
            let session = of(112, &[1]);
            if home { session.home(model) } else { session.out(model) }
        };
        let mut undisturbed = start.fork();
        done(&run(&mut undisturbed), "undisturbed");
        for at in start.acts.len()..undisturbed.acts.len() {
            for kill in KILLS {
                let mut model = start.fork();
                model.faults.0 = vec![(at, kill)];
                assert!(matches!(run(&mut model), End::Killed));
                model.faults.0.clear();
                let case = format!("home: {home}, act {at}, {kill:?}");
                let end = of(111, &[1]).start(&mut model, &nobody());
                done(&end, &case);
                assert_eq!(on_file(&model), [(vm(111), vec![1], State::Away)], "{case}");
                done(&of(111, &[1]).home(&mut model), &case);
                assert_as_before(&model, &at_home, &case);
                cases += 1;
            }
        }
    }
    assert!(cases > 90, "only {cases} cases");
}

/// Abandoned at any act of a way out on which the driver is unloaded and loaded again: the next VM that wants what stayed
/// has it, and all is as it was when both have been home, in either order.
#[test]
fn what_a_run_of_another_vm_has_left_without_its_driver_is_not_taken_for_what_it_was() {
    let host = || {
        let mut model = with_all(3);
        model.version = "595.45.04".to_owned();
        if let Some(device) = model.devices.iter_mut().find(|d| d.addr == addr(3, 0)) {
            device.driver_override = Some("nvidia".to_owned());
        }
        model
    };
    let at_home = host().state();
    let mut undisturbed = host();
    done(&of(112, &[1]).out(&mut undisturbed), "undisturbed");
    let next = of(111, &[2]);
    for owner in [vm(112), Owner::ByHand(addr(1, 0))] {
        let first = Session { owner, ..of(112, &[1]) };
        for (at, kill) in (0..undisturbed.acts.len()).flat_map(|at| KILLS.map(|kill| (at, kill))) {
            for order in [[&next, &first], [&first, &next]] {
                let mut model = host();
                model.faults.0 = vec![(at, kill)];
                assert!(matches!(first.out(&mut model), End::Killed));
                model.faults.0.clear();
                let case = format!("{owner}, act {at}, {kill:?}, {} comes home first", order[0].owner);
                done(&next.start(&mut model, &nobody()), &case);
                for session in order {
                    done(&session.home(&mut model), &case);
                }
                assert_as_before(&model, &at_home, &case);
                assert_eq!(records(&model), [], "{case}");
            }
        }
    }
}

/// What stayed beside a run that was killed, and that another VM has begun to take since, is that one's to bring home: its
/// sound function may be on vfio-pci already, beside which NVIDIA's driver must not take it.
#[test]
fn what_another_vm_has_taken_since_is_not_bound_by_the_run_that_it_stayed_beside() {
    let mut model = with_all(2);
    model.version = "595.45.04".to_owned();
    let (first, next) = (of(112, &[1]), of(111, &[2]));
    let number = |model: &Model, session: &Session, wanted: &str| {
        let mut model = model.fork();
        session.start(&mut model, &nobody());
        let acts: Vec<String> = model.acts.iter().map(ToString::to_string).collect();
        acts.iter()
            .rposition(|a| a == wanted)
            .unwrap_or_else(|| panic!("{acts:#?}"))
    };
    let killed_after = |model: &mut Model, session: &Session, wanted: &str| {
        model.faults.0 = vec![(number(model, session, wanted), Fault::KilledAfter)];
        assert!(matches!(session.start(model, &nobody()), End::Killed), "{wanted}");
        model.faults.0.clear();
    };
    killed_after(&mut model, &first, "nvidia: unload the module");
    model.die(addr(1, 0));
    model.probe_faults = vec![("nvidia", ProbeFault::Always)]; // until then it is not bound again
    killed_after(&mut model, &next, "0000:02:00.1: bind to vfio-pci");
    model.probe_faults.clear();
    let drivers = |model: &Model| [0, 1].map(|function| model.driver_of(addr(2, function)));
    assert_eq!(drivers(&model), [None, Some("vfio-pci")]);
    let beside: Vec<_> = records(&model).iter().flat_map(|r| r.beside.clone()).collect();
    assert!(beside.iter().any(|b| b.addr == addr(2, 0)), "{beside:?}");
    let end = first.home(&mut model);
    assert!(matches!(end, End::NotRestored(_)), "its own card is dead: {end:?}");
    assert_eq!(drivers(&model), [None, Some("vfio-pci")]);
    done(&next.home(&mut model), "the other's");
    assert_eq!(drivers(&model), [Some("nvidia"), Some("snd_hda_intel")]);
    assert_eq!(model.laws.broken, [""; 0]);
}

/// Three cards by driver 595, of which VM 111 has taken the first with the others beside, and does not get it home.
fn stranded_beside() -> Model {
    let mut model = with_all(3);
    model.version = "595.45.04".to_owned();
    let first = of(111, &[1]);
    let mut undisturbed = model.fork();
    done(&first.out(&mut undisturbed), "undisturbed");
    let of_the_second = |act: &Act| matches!(act, Act::Probe { addr: a, .. } if *a == addr(2, 0));
    let at = undisturbed.acts.iter().position(of_the_second).unwrap();
    model.faults.0 = vec![(at, Fault::KilledAfter)];
    assert!(matches!(first.out(&mut model), End::Killed));
    model.faults.0.clear();
    model.die(addr(1, 0));
    let end = first.home(&mut model);
    assert!(matches!(end, End::NotRestored(_)), "{end:?}");
    for bus in [2, 3] {
        assert_eq!(model.driver_of(addr(bus, 0)), Some("nvidia"), "{bus}");
    }
    model
}

/// What has its driver again after a run that failed is nobody's business any more, whatever becomes of the card that failed.
#[test]
fn what_stayed_beside_a_card_that_does_not_come_home_is_free_for_others() {
    let mut model = stranded_beside();
    assert_eq!(records(&model)[0].beside, []);
    let busy = Beside {
        busy: vec![vm(111)],
        ..nobody()
    };
    let next = of(112, &[2]);
    done(&next.start(&mut model, &busy), "while a task has the other VM's lock");
    done(&next.home(&mut model), "home");
    for bus in [2, 3] {
        assert_eq!(model.driver_of(addr(bus, 0)), Some("nvidia"), "{bus}");
    }
    assert_eq!(model.laws.broken, [""; 0]);
}

/// One that does not answer any more since a run that was killed is said, and keeps no VM from the others.
#[test]
fn a_gpu_that_died_beside_a_run_that_was_killed_keeps_no_vm_from_the_others() {
    for vmid in [111, 112] {
        let mut model = with_all(2);
        model.version = "595.45.04".to_owned();
        let first = of(111, &[1]);
        let mut undisturbed = model.fork();
        done(&first.out(&mut undisturbed), "undisturbed");
        let unload = |act: &Act| matches!(act, Act::UnloadModule { name } if name == "nvidia");
        let at = undisturbed.acts.iter().position(unload).unwrap();
        model.faults.0 = vec![(at, Fault::KilledAfter)];
        assert!(matches!(first.out(&mut model), End::Killed));
        model.faults.0.clear();
        model.die(addr(2, 0));
        let next = of(vmid, &[1]);
        done(&next.start(&mut model, &nobody()), &format!("VM {vmid}"));
        assert_eq!(model.driver_of(addr(1, 0)), Some("vfio-pci"), "VM {vmid}");
        done(&next.home(&mut model), &format!("VM {vmid}, home"));
        assert_eq!(model.driver_of(addr(1, 0)), Some("nvidia"), "VM {vmid}");
        assert_eq!(model.laws.broken, [""; 0], "VM {vmid}");
    }
}

/// What another VM has from vfio-pci, without this hook, stays; the rest of the record comes home for whom it concerns.
#[test]
fn a_vm_that_runs_with_one_of_two_cards_of_another_record_withholds_that_alone() {
    let mut model = with_all(3);
    done(&of(111, &[1, 2]).out(&mut model), "out");
    runs(&mut model, 112, Some(1));
    let next = of(113, &[2]);
    done(&next.start(&mut model, &nobody()), "the other card");
    let mut found = on_file(&model);
    found.sort_by_key(|(owner, ..)| owner.to_string());
    assert_eq!(
        found,
        [(vm(111), vec![1], State::Away), (vm(113), vec![2], State::Away)]
    );
    assert_eq!(model.driver_of(addr(1, 0)), Some("vfio-pci"));
    assert_eq!(model.laws.broken, [""; 0]);
}

/// VM 112 has these cards on record, and its driver takes none back.
fn stranded(cards: u8, its: &[u8]) -> Model {
    let mut model = with_all(cards);
    done(&of(112, its).out(&mut model), "out");
    model.probe_faults = vec![("nvidia", ProbeFault::Always)];
    let end = of(112, its).home(&mut model);
    assert!(matches!(end, End::NotRestored(_)), "{end:?}");
    model
}

/// What is known of each function, whoever has it.
fn facts(model: &Model) -> Vec<Taken> {
    let mut facts: Vec<Taken> = records(model).into_iter().flat_map(|r| r.taken).collect();
    facts.sort_by_key(|t| t.addr);
    facts.dedup();
    facts
}

/// What does not come home the next VM takes over, with all that the way home needs to know.
#[test]
fn what_does_not_come_home_is_taken_over_by_the_next_vm() {
    for (case, cards, its, wanted) in [
        ("the only card", 1, vec![1], vec![1]),
        ("one of two of it", 2, vec![1, 2], vec![1]),
        ("its only one, with another", 2, vec![1], vec![1, 2]),
    ] {
        let at_home = with_all(cards).state();
        let mut model = stranded(cards, &its);
        let (before, own) = (facts(&model), of(111, &wanted));
        done(&own.start(&mut model, &nobody()), case);
        let mut expected = vec![(vm(111), wanted.clone(), State::Away)];
        let left: Vec<u8> = its.iter().copied().filter(|bus| !wanted.contains(bus)).collect();
        if !left.is_empty() {
            expected.push((vm(112), left, State::Stranded));
        }
        let mut found = on_file(&model);
        found.sort_by_key(|(owner, ..)| owner.to_string());
        assert_eq!(found, expected, "{case}");
        let after = facts(&model);
        assert!(
            before.iter().all(|fact| after.contains(fact)),
            "{case}: {before:#?} {after:#?}"
        );
        model.probe_faults.clear();
        for vmid in [111, 112] {
            done(&of(vmid, &[]).home(&mut model), case);
        }
        assert_as_before(&model, &at_home, case);
        assert_eq!(records(&model), [], "{case}");
    }
}

/// Killed before and after each time that a record is written or removed, while it is taken over: whoever comes then brings
/// everything home as it was.
#[test]
fn a_run_that_is_killed_while_it_takes_over_loses_nothing() {
    type Then = fn(&mut Model) -> Vec<End>;
    let thens: [(&str, Then); 5] = [
        ("the new owner first", |m| {
            [111, 112].map(|vm| of(vm, &[]).home(m)).into()
        }),
        ("the old owner first", |m| {
            [112, 111].map(|vm| of(vm, &[]).home(m)).into()
        }),
        ("the new one starts again", |m| {
            let end = of(111, &[1]).start(m, &nobody());
            vec![end, of(111, &[]).home(m), of(112, &[]).home(m)]
        }),
        ("the old one starts again", |m| {
            let end = of(112, &[1]).start(m, &nobody());
            vec![end, of(112, &[]).home(m), of(111, &[]).home(m)]
        }),
        ("a third one starts", |m| {
            let end = of(113, &[1]).start(m, &nobody());
            vec![end, of(113, &[]).home(m), of(112, &[]).home(m), of(111, &[]).home(m)]
        }),
    ];
    for (cards, its) in [(1, vec![1]), (2, vec![1, 2])] {
        let at_home = with_all(cards).state();
        let begun = stranded(cards, &its);
        let before = facts(&begun);
        let (mut kills, mut both) = (0, 0);
        'kills: for n in 0.. {
            for after in [false, true] {
                let mut model = begun.fork();
                ledger(&model).killed_at(n, after);
                let end = of(111, &[1]).start(&mut model, &nobody());
                if let End::Done = end {
                    break 'kills;
                }
                let case = format!("{cards} cards, write {n}, after it: {after}: {end:?}");
                assert!(matches!(end, End::Killed), "{case}");
                let now = facts(&model);
                assert!(
                    before.iter().all(|fact| now.contains(fact)),
                    "{case}: {:#?}",
                    records(&model)
                );
                let has = |vmid: u32| records(&model).iter().any(|r| r.owner == vm(vmid) && r.has(addr(1, 0)));
                both += usize::from(has(111) && has(112));
                kills += 1;
                // Whatever the driver had is over; and while it is not.
                for (then, ends) in &thens {
                    for well in [true, false] {
                        let mut model = model.fork();
                        if well {
                            model.probe_faults.clear();
                        } else {
                            ends(&mut model);
                            model.probe_faults.clear();
                            for vmid in [111, 112, 113] {
                                of(vmid, &[]).home(&mut model);
                            }
                        }
                        let case = format!("{case}, then {then}, well: {well}");
                        if well {
                            ends(&mut model).iter().for_each(|end| done(end, &case));
                        }
                        assert_as_before(&model, &at_home, &case);
                        assert_eq!(records(&model), [], "{case}");
                    }
                }
            }
        }
        assert!(kills > 20 && both > 0, "{kills} kills, {both} between the two records");
    }
}

/// Refused after all: nothing is taken over.
#[test]
fn what_is_refused_after_a_way_home_that_failed_stays_whose_it_is() {
    let mut model = stranded(2, &[1]);
    let before = records(&model);
    model
        .processes
        .push(Process::new(777, &[gpu_handoff::host::nodes::Node::Gpu(addr(2, 0))]));
    let end = of(111, &[1, 2]).start(&mut model, &nobody());
    let End::Refused(refusal) = end else { panic!("{end:?}") };
    assert!(refusal.to_string().contains("process 777"), "{refusal}");
    let now = on_file(&model);
    assert_eq!(now, [(vm(112), vec![1], State::Stranded)]);
    assert_eq!(records(&model)[0].taken, before[0].taken);
}

/// Whatever becomes of a service, the GPU is home and the next VM has it.
#[test]
fn a_service_that_does_not_start_again_is_said_and_strands_nothing() {
    for cards in [1, 2] {
        let mut model = with_all(cards);
        let at_home = model.state();
        let session = of(111, &[1]);
        done(&session.out(&mut model), "out");
        let mut undisturbed = model.fork();
        done(&session.home(&mut undisturbed), "home");
        let of_service = |act: &Act| matches!(act, Act::RestartUnit { .. });
        let acts: Vec<usize> = (model.acts.len()..undisturbed.acts.len())
            .filter(|at| of_service(&undisturbed.acts[*at]))
            .collect();
        assert_eq!(acts.len(), 1, "{:?}", undisturbed.acts);
        for at in acts {
            let mut model = model.fork();
            model.faults.0 = vec![(at, Fault::Fails)];
            let case = format!("{cards} cards, {}", undisturbed.acts[at]);
            done(&session.home(&mut model), &case);
            assert_eq!(records(&model), [], "{case}");
            let mut now = model.state();
            now.units.clone_from(&at_home.units);
            assert_eq!(at_home.differences(&now), [""; 0], "{case}");
            done(&of(112, &[1]).start(&mut model, &nobody()), &case);
        }
    }
}

/// The same, where a way out is undone.
#[test]
fn a_service_that_does_not_start_again_strands_nothing_that_is_undone() {
    let mut model = with_all(1);
    let at_home = model.state();
    let session = of(111, &[1]);
    let mut undisturbed = model.fork();
    done(&session.out(&mut undisturbed), "out");
    // The last act of the way out but for the gate, which is soft, fails, and so does the last one of its undo.
    let last = undisturbed.acts.len() - 2;
    model.faults.0 = vec![(last, Fault::Fails)];
    let mut undone = model.fork();
    let end = session.out(&mut undone);
    assert!(matches!(end, End::Restored(_)), "{end:?}");
    let starts = undone
        .acts
        .iter()
        .rposition(|act| matches!(act, Act::StartUnit { .. }))
        .unwrap();
    model.faults.0.push((starts, Fault::Fails));
    let end = session.out(&mut model);
    let End::RestoredBut(but) = &end else { panic!("{end:?}") };
    assert!(but.contains("nvidia-persistenced does not start again"), "{but}");
    assert_eq!(records(&model), []);
    let mut now = model.state();
    assert_ne!(now.units, at_home.units);
    now.units.clone_from(&at_home.units);
    assert_eq!(at_home.differences(&now), [""; 0]);
}
