//! Who reads while another run is at work: what a look leaves alone, what is shown, and what is said of a plan.

use std::time::Duration;

use gpu_handoff::model::act::Act;
use gpu_handoff::model::record::Record;
use gpu_handoff::model::refusal::{Reason, Refusal};
use gpu_handoff::output::status::{Sight, status};
use gpu_handoff::output::status_table;
use gpu_handoff::output::style::Style;
use gpu_handoff::plan::home;
use gpu_handoff::plan::out::{self, Wanted};

use crate::common::calls::{Lock, Move};
use crate::common::session::vm;
use crate::common::{End, Fault, Generation, Model, Session, addr, host};
use crate::{acts, assert_as_before, records, trips};

/// The record as somebody reads it who does not have the lock, two seconds into the act.
fn read(model: &Model, run: Option<&str>) -> Vec<Record> {
    let mut records = records(model);
    for record in &mut records {
        let now = record.run.map_or(0, |run| run.since_ms) + 2_300;
        let run = run.map(str::to_owned);
        record.look_on(run, Duration::from_millis(now), |group| model.is_alive(group.number));
    }
    records
}

/// What a plan of the way out for somebody, and of the way home, are refused with.
fn refused(model: &mut Model, session: &Session, records: &[Record]) -> [Refusal; 2] {
    let stuck: Vec<_> = records.iter().flat_map(Record::not_to_be_read).collect();
    let snapshot = model.whole_snapshot(&stuck);
    let wanted = Wanted {
        owner: session.owner,
        gpus: &session.gpus,
        given: &[],
    };
    let out = out::plan(&snapshot, wanted, records, &session.settings);
    [out.unwrap_err(), home::plan(&snapshot, &records[0]).unwrap_err()]
}

const RUN: &str = "VM 111 pre-start (pid 4711)";

/// The record of each act is read while that act is in the kernel: of a run that lives nothing is stuck.
#[test]
fn at_each_act_of_a_run_that_lives_another_sees_who_is_at_what_and_nothing_stuck() {
    let mut cases = 0;
    for (name, host, gpus) in trips() {
        let session = Session::new(&gpus);
        let other = Session {
            owner: vm(112),
            ..session.clone()
        };
        for at in 0..acts(&host, &session).0 {
            let mut model = host.fork();
            // The model's way to stop in the middle of an act; to the reader the run is alive.
            model.faults.0 = vec![(at, Fault::KilledIn)];
            assert!(matches!(session.out(&mut model), End::Killed));
            let act = model.acts[at].clone();
            let case = format!("{name}, act {at} {act}");
            let records = read(&model, Some(RUN));
            assert_eq!(records[0].stuck().count(), 0, "{case}");
            for who in [&session, &other] {
                for refusal in refused(&mut model.fork(), who, &records) {
                    let [Reason::AtWork { addrs, run }] = refusal.0.as_slice() else {
                        panic!("{case}: {refusal}")
                    };
                    assert!(addrs.contains(&gpus[0]), "{case}");
                    assert!(run.starts_with(&format!("{RUN}, at '")), "{case}: {run}");
                    assert!(
                        run.contains(&act.to_string()) && run.ends_with("', for 2 s"),
                        "{case}: {run}"
                    );
                }
            }
            let left = read(&model, None);
            assert_eq!(left[0].stuck().count(), 0, "{case}");
            if model.is_alive(left[0].workers.first().map_or(0, |w| w.number)) {
                for refusal in refused(&mut model.fork(), &session, &left) {
                    assert!(
                        matches!(refusal.0.as_slice(), [Reason::LeftAtWork { .. }]),
                        "{case}: {refusal}"
                    );
                    assert!(!refusal.to_string().contains("power-cycle"), "{case}: {refusal}");
                }
            }
            assert_eq!(model.laws.broken, [""; 0], "{case}");
            cases += 1;
        }
    }
    assert!(cases > 50, "only {cases} cases");
}

/// What stays on a driver that is unloaded and loaded again is without it meanwhile: nothing is said to be stuck or missing.
#[test]
fn what_stays_beside_a_run_that_lives_is_at_work_as_well() {
    let mut host = host(2);
    host.version = "595.45.04".to_owned();
    let session = Session::new(&[addr(1, 0)]);
    let other = Session {
        owner: vm(112),
        ..Session::new(&[addr(2, 0)])
    };
    let mut cases = 0;
    for at in 0..acts(&host, &session).0 {
        let mut model = host.fork();
        model.faults.0 = vec![(at, Fault::KilledIn)];
        assert!(matches!(session.out(&mut model), End::Killed));
        let case = format!("act {at} {}", model.acts[at]);
        let records = read(&model, Some(RUN));
        let [refusal, _] = refused(&mut model.fork(), &other, &records);
        let [Reason::AtWork { addrs, .. }] = refusal.0.as_slice() else {
            panic!("{case}: {refusal}")
        };
        assert!(addrs.contains(&addr(2, 0)), "{case}: {addrs:?}");
        let stuck: Vec<_> = records.iter().flat_map(Record::not_to_be_read).collect();
        let cards = status(&Sight::of(&model.whole_snapshot(&stuck), &records), None).cards;
        assert!(cards.iter().all(|card| card.at_work.is_some()), "{case}");
        assert_eq!((&cards[1].owner, cards[1].stuck.len()), (&None, 0), "{case}");
        cases += 1;
    }
    assert!(cases > 10, "only {cases} cases");
}

/// It is not probed before it answers, and neither is the driver loaded, which would wait for its lock.
#[test]
fn what_stayed_beside_a_run_that_was_killed_is_asked_before_it_is_bound_again() {
    let mut model = host(2);
    (model.version, model.generation) = ("595.45.04".to_owned(), Generation::K6_1);
    let before = model.state();
    let session = Session::new(&[addr(1, 0)]);
    let mut undisturbed = model.fork();
    assert!(matches!(session.out(&mut undisturbed), End::Done));
    let unload = |act: &Act| matches!(act, Act::UnloadModule { name } if name == "nvidia");
    let at = undisturbed.acts.iter().position(unload).unwrap();
    model.faults.0 = vec![(at, Fault::KilledAfter)];
    assert!(matches!(session.out(&mut model), End::Killed));
    let lock = Lock::Device(addr(2, 0));
    let minute = Duration::from_secs(60);
    model.begin(99, vec![Move::Lock(lock), Move::Sleep(minute), Move::Unlock(lock)]);
    model.spend(Duration::from_millis(1));
    let acts = model.acts.len();
    let end = session.home(&mut model);
    let End::Refused(refusal) = end else { panic!("{end:?}") };
    assert_eq!(refusal.0, [Reason::Silent(vec![addr(2, 0)])]);
    assert_eq!(model.acts.len(), acts);
    model.spend(minute);
    let end = session.home(&mut model);
    assert!(matches!(end, End::Done), "{end:?}");
    assert_as_before(&model, &before, "after the wait");
}

#[test]
fn status_says_who_is_at_work_what_was_left_and_what_is_stuck() {
    let session = Session::new(&[addr(1, 0)]);
    let mut model = host(1);
    // The unload of the first module.
    model.faults.0 = vec![(6, Fault::KilledIn)];
    assert!(matches!(session.out(&mut model), End::Killed));
    let shown = |records: &[Record]| {
        let model = model.fork();
        let stuck: Vec<_> = records.iter().flat_map(Record::not_to_be_read).collect();
        let snapshot = model.whole_snapshot(&stuck);
        let status = status(&Sight::of(&snapshot, records), None);
        let json = serde_json::to_value(&status).unwrap();
        let text = status_table::text(&status, Style::default());
        let lines: Vec<String> = text.lines().skip(6).map(str::to_owned).collect();
        (lines, json["cards"][0].clone())
    };
    let act = "nvidia_uvm: unload the module";
    let (lines, json) = shown(&read(&model, Some(RUN)));
    let words = format!("{RUN}, at '{act}', for 2 s");
    assert_eq!(
        lines[..2],
        ["  lent to: VM 111 (leaving)".to_owned(), format!("  at work: {words}")]
    );
    assert_eq!(
        (&json["at_work"], &json["left"], &json["stuck"]),
        (&words.into(), &().into(), &serde_json::json!([]))
    );

    let left = read(&model, None);
    let (lines, json) = shown(&left);
    let group = left[0].workers[0];
    let words = format!("'{act}', for 2 s, in process group {group} of ours, by a run that was killed");
    assert_eq!(lines[1], format!("  left:    {words}"));
    assert_eq!(
        (&json["at_work"], &json["left"], &json["stuck"]),
        (&().into(), &words.into(), &serde_json::json!([]))
    );

    let mut settled = records(&model);
    settled[0].settle(|group| model.is_alive(group.number));
    let (lines, json) = shown(&settled);
    let words = format!("'{act}' is stuck in the kernel at ?, in process group {group} of ours");
    assert!(lines.contains(&format!("  wedged:  {words}")), "{lines:?}");
    assert_eq!((&json["at_work"], &json["left"]), (&().into(), &().into()));
    assert_eq!(json["stuck"], serde_json::json!([words]));
}
