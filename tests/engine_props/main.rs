//! Properties of plan and executor on random hosts: the laws hold in every run, and every run comes to one of its ends.
//!
//!     cargo test --test engine_props -- --nocapture
//!     PROPTEST_CASES=1000000 cargo test --test engine_props -- --nocapture
//!
//! Each case has a seed of its own. A failure prints it, with the smallest case that still fails; this runs it again:
//!
//!     ENGINE_PROPS_SEED=<seed> cargo test --test engine_props -- --nocapture

#![allow(clippy::unwrap_used)] // a test that cannot set itself up should stop there
#![allow(clippy::print_stdout)] // the numbers of a run are its result

#[path = "../common/mod.rs"]
mod common;
mod life;
#[path = "../hosts/order.rs"]
#[allow(dead_code)] // its own test uses the rest
mod order;
mod world;

use std::io::{Write as _, stdout}; // of a passed test, too, which println! is not
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use life::{Tally, live};

/// How many cases there are where PROPTEST_CASES does not say.
const CASES: u64 = 20_000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// A random case that depends on its seed alone.
fn runner(seed: u64) -> TestRunner {
    let mut bytes = [0x5a; 16];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        failure_persistence: None,
        max_shrink_iters: 20_000, // each takes a fraction of a millisecond
        ..Config::with_cases(1)
    };
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::XorShift, &bytes))
}

#[test]
fn every_run_keeps_the_laws_and_comes_to_one_of_its_ends() {
    let one = number("ENGINE_PROPS_SEED");
    let cases = if one.is_some() {
        1
    } else {
        number("PROPTEST_CASES").unwrap_or(CASES)
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let first = one.unwrap_or_else(|| u64::try_from(now.as_micros()).unwrap());
    let strategy = world::worlds();
    let mut tally = Tally::default();
    let start = Instant::now();
    for seed in (first..).take(usize::try_from(cases).unwrap()) {
        let mut runner = runner(seed);
        let tree = strategy.new_tree(&mut runner).unwrap();
        if live(&tree.current(), &mut tally).is_ok() {
            continue;
        }
        let again = runner.run_one(tree, |world| {
            live(&world, &mut Tally::default()).map_err(TestCaseError::fail)
        });
        let Err(TestError::Fail(why, world)) = again else {
            panic!("seed {seed} failed once, and then did not");
        };
        panic!(
            "seed {seed}: {why}\nin {world:#?}\nagain: ENGINE_PROPS_SEED={seed} cargo test --test engine_props -- \
             --nocapture"
        );
    }
    let took = start.elapsed();
    writeln!(stdout(), "{cases} cases from seed {first}: {tally}").unwrap();
    writeln!(
        stdout(),
        "{took:.1?}, {:.1?} per 100000 cases",
        took * 100_000 / u32::try_from(cases).unwrap()
    )
    .unwrap();
    if cases >= CASES {
        tally.assert_all_seen(cases >= 5 * CASES);
    }
}
