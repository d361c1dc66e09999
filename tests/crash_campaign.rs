//! A run may be killed at any instant. On the model kernel it is, at every act of every plan, of its rungs and of its undo:
//! before the act, while it is in the kernel, after it. Whatever is asked then comes to one of the ends of a run, and what
//! is there to bring GPUs home without anybody's help leaves none behind.
//!
//! There is no chance in it: the cases are always the same.

#![allow(clippy::unwrap_used)] // a test that cannot set itself up should stop there

#[path = "crash_campaign/after.rs"]
mod after;
#[path = "hosts/asked.rs"]
#[allow(dead_code)] // tests/hosts.rs uses the rest
mod asked;
#[path = "common/mod.rs"]
mod common;
#[path = "crash_campaign/convert.rs"]
mod convert;
#[path = "crash_campaign/hosts.rs"]
mod hosts;
#[path = "crash_campaign/killed.rs"]
mod killed;
#[path = "hosts/order.rs"]
#[allow(dead_code)] // as above
mod order;
#[path = "hosts/tree.rs"]
mod tree;
#[path = "crash_campaign/watched.rs"]
mod watched;

use std::io::{Write as _, stdout}; // of a passed test, too, which println! is not
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use after::{After, Tally};
use hosts::Trip;

#[test]
fn wherever_a_run_is_killed_no_gpu_is_left_behind() {
    let start = Instant::now();
    let mut trips = hosts::of_the_folders();
    let folders = trips.len();
    trips.extend(hosts::made_here());
    let tally = campaign(&trips);
    let took = start.elapsed();
    let mut out = stdout();
    writeln!(
        out,
        "crash campaign: {} plans out and home, {folders} of tests/hosts: {tally}; {took:.1?}",
        trips.len()
    )
    .unwrap();
    let tried = [
        ("another VM's start", tally.another),
        ("a second kill", tally.twice),
        ("a call that hangs", tally.hung),
        ("a VM beside it", tally.busy),
        ("the watcher", tally.watcher),
        ("a full file system", tally.full),
    ];
    let untried = tried.iter().filter(|(_, times)| *times == 0).map(|(what, _)| *what);
    assert_eq!(untried.collect::<Vec<_>>(), [""; 0]);
    let first = tally.problems.iter().take(3).map(String::as_str).collect::<Vec<_>>();
    assert!(
        first.is_empty(),
        "{} problems, the first:\n{}",
        tally.problems.len(),
        first.join("\n")
    );
}

/// All trips, on as many processors as there are.
fn campaign(trips: &[Trip]) -> Tally {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut tally = Tally::default();
        while let Some(trip) = trips.get(next.fetch_add(1, Ordering::Relaxed)) {
            killed::each(trip, |scene| {
                After {
                    trip,
                    tally: &mut tally,
                }
                .all(&scene);
            });
        }
        tally
    };
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let mut all = Tally::default();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            all.add(worker.join().unwrap());
        }
    });
    all
}
