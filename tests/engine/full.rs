//! A file system that is full: the record serves the way back and never forbids it.

use std::sync::Arc;

use gpu_handoff::model::act::Act;

use crate::common::{End, MemLedger, Model, ProbeFault, Session, addr, host};
use crate::{assert_as_before, records};

/// A host with this many cards, and records that are on file.
fn model(cards: u8) -> (Model, Arc<MemLedger>) {
    let mut model = host(cards);
    let ledger = Arc::new(MemLedger::default());
    model.ledger = Some(Arc::clone(&ledger));
    (model, ledger)
}

/// Today's journal is yesterday's: whenever it gets full, everything that was taken is given back.
#[test]
fn a_way_out_that_cannot_be_written_down_any_more_is_undone_whenever_that_begins() {
    for cards in [1, 2] {
        let mut done = 0;
        for n in 0.. {
            let (mut model, ledger) = model(cards);
            let before = model.state();
            ledger.fails_from(n);
            let end = Session::new(&[addr(1, 0)]).out(&mut model);
            let case = format!("{cards} cards, full from record {n} on: {end:?}");
            if let End::Done = end {
                break;
            }
            let End::Restored(why) = &end else { panic!("{case}") };
            assert!(why.contains("writing the record: no storage space"), "{case}");
            assert_as_before(&model, &before, &case);
            assert_eq!(records(&model), [], "{case}");
            done += 1;
        }
        assert!(done > 10, "{done} moments of a way out");
    }
}

#[test]
fn a_way_home_needs_no_record_to_be_written() {
    for cards in [1, 2] {
        for n in [0, 1, 5] {
            let (mut model, ledger) = model(cards);
            let before = model.state();
            let session = Session::new(&[addr(1, 0)]);
            assert!(matches!(session.out(&mut model), End::Done));
            ledger.fails_from(n);
            let end = session.home(&mut model);
            let case = format!("{cards} cards, full from record {n} on: {end:?}");
            assert!(matches!(end, End::Done), "{case}");
            assert_as_before(&model, &before, &case);
            assert_eq!(records(&model), [], "{case}");
        }
    }
}

/// Whoever removes a card from the bus has to write down how it is found again: nobody else knows that it was there.
#[test]
fn nothing_is_removed_from_the_bus_that_nobody_would_know_of() {
    for full in [false, true] {
        let (mut model, ledger) = model(1);
        let before = model.state();
        let session = Session::new(&[addr(1, 0)]);
        assert!(matches!(session.out(&mut model), End::Done));
        model.probe_faults = vec![("nvidia", ProbeFault::Always)];
        if full {
            ledger.fails_from(0);
        }
        let acts = model.acts.len();
        let end = session.home(&mut model);
        assert!(matches!(end, End::NotRestored(_)), "{end:?}");
        let removed = model.acts[acts..].iter().any(|act| matches!(act, Act::Remove { .. }));
        assert_eq!(removed, !full);
        assert_eq!(model.laws.broken, [""; 0]);
        model.probe_faults.clear();
        ledger.well();
        assert!(matches!(session.home(&mut model), End::Done));
        assert_as_before(&model, &before, &format!("full: {full}"));
    }
}
