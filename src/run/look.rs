//! A look at the host, and whether a call of somebody else's that it shows lasts: an unbind that is under way for a moment
//! is no hang.
//!
//! Not here: how such a call is found ([`crate::host::stuck_calls`]), and what is made of it.

use std::time::Duration;

use crate::base::pci::PciAddr;
use crate::base::process::Group;
use crate::execute::kernel::{ActError, Kernel};
use crate::host::snapshot::Snapshot;
use crate::host::stuck_calls::StuckCall;

/// How long a call of somebody else's is waited for before it counts as one that hangs. An unbind of a GPU that nobody uses
/// takes a part of it, and who is refused should know at once.
const PAUSE: Duration = Duration::from_secs(1);

/// Reads the host. Calls of our own process groups are not among [`Snapshot::calls`]: they are on record. Where there are
/// others, it is read again until they are over or [`PAUSE`] is; those that were there all the time are said to last, as are
/// those that are `known` to from an earlier look, which are not waited for.
///
/// # Errors
/// [`ActError`] where the host could not be read, or not in time.
pub fn look<K: Kernel>(
    kernel: &mut K,
    stuck: &[PciAddr],
    ours: &[Group],
    known: &[StuckCall],
    within: Duration,
) -> Result<Snapshot, ActError> {
    let others = |kernel: &mut K| {
        let mut snapshot = kernel.look(stuck, within)?;
        let workers = kernel.workers();
        let is_ours = |c: &StuckCall| ours.iter().chain(&workers).any(|group| is_of(c, *group));
        snapshot.calls.retain(|c| !is_ours(c));
        Ok(snapshot)
    };
    let mut snapshot: Snapshot = others(kernel)?;
    let first = snapshot.calls.clone();
    let end = kernel.now() + PAUSE;
    let is_known = |call: &StuckCall| known.iter().any(|k| k.is(call));
    while !snapshot.calls.iter().all(is_known) {
        let left = end.saturating_sub(kernel.now());
        if left.is_zero() || kernel.interrupted().is_some() {
            break;
        }
        // A call may end and its process live on: there is no event for that.
        let pids: Vec<i32> = snapshot.calls.iter().map(|c| c.pid).collect();
        kernel.await_exit(&pids, left);
        snapshot = others(kernel)?;
    }
    for call in &mut snapshot.calls {
        let all_the_time = kernel.now() >= end && first.iter().any(|before| before.is(call));
        call.lasts = all_the_time || is_known(call);
    }
    Ok(snapshot)
}

/// Whether a call is of a process group of ours. A number alone may be another's by now.
fn is_of(call: &StuckCall, group: Group) -> bool {
    let is_younger = |since: u64| call.started.is_none_or(|started| started >= since);
    call.group == Some(group.number) && group.started.is_none_or(is_younger)
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::host::belongs::Belongs;
    use crate::host::functions::Details;
    use crate::host::modules::Loadable;
    use crate::host::stuck_calls::What;
    use crate::model::act::Act;

    /// A host on which these threads are in calls, each until some moment; the clock goes while something is waited for.
    struct Host {
        now: Duration,
        calls: Vec<(StuckCall, Duration, Duration)>,
        looks: usize,
    }

    impl Kernel for Host {
        fn now(&self) -> Duration {
            self.now
        }

        fn look(&mut self, _: &[PciAddr], _: Duration) -> Result<Snapshot, ActError> {
            self.looks += 1;
            let there = self.calls.iter().filter(|c| c.1 <= self.now && self.now < c.2);
            Ok(Snapshot {
                calls: there.map(|c| c.0.clone()).collect(),
                ..Snapshot::default()
            })
        }

        fn details(&mut self, _: &[Vec<PciAddr>], _: Duration) -> Vec<Result<Vec<Details>, ActError>> {
            Vec::new()
        }

        fn loadable(&mut self, _: &[String], _: Duration) -> Result<Vec<Loadable>, ActError> {
            Ok(Vec::new())
        }

        fn act(&mut self, _: &Act, _: Duration) -> Result<(), ActError> {
            Ok(())
        }

        /// A process ends with its call.
        fn await_exit(&mut self, pids: &[i32], within: Duration) -> bool {
            let ends = self.calls.iter().filter(|c| pids.contains(&c.0.pid)).map(|c| c.2);
            let end = self.now + within;
            self.now = ends.filter(|e| *e > self.now).min().map_or(end, |e| e.min(end));
            self.now < end
        }
    }

    fn call(pid: i32, started: u64) -> StuckCall {
        StuckCall {
            pid,
            thread: pid,
            started: Some(started),
            group: u32::try_from(pid).ok(),
            comm: "sh".to_owned(),
            belongs_to: Belongs::Unknown,
            what: What::Unbind,
            driver: None,
            at: vec!["0000:01:00.0".parse().unwrap()],
            frame: None,
            lasts: false,
        }
    }

    #[test]
    fn a_call_lasts_that_is_there_all_the_time_and_ours_is_none() {
        let ms = Duration::from_millis;
        let (at_once, ever) = (ms(0), ms(100_000));
        let ours = Group {
            number: 812,
            started: Some(100),
        };
        for (case, calls, found, took, looks) in [
            ("nobody", vec![], vec![], 0, 1),
            (
                "it hangs",
                vec![(call(812, 99), at_once, ever)],
                vec![(812, true)],
                1_000,
                2,
            ),
            (
                "it is over soon",
                vec![(call(812, 99), at_once, ms(300))],
                vec![],
                300,
                2,
            ),
            (
                "one hangs beside one that is over soon",
                vec![(call(812, 99), at_once, ever), (call(813, 99), at_once, ms(300))],
                vec![(812, true)],
                1_000,
                3,
            ),
            (
                "another one has begun meanwhile",
                vec![(call(812, 99), at_once, ms(900)), (call(813, 99), ms(500), ever)],
                vec![(813, false)],
                1_000,
                3,
            ),
            (
                "it is known to hang",
                vec![(call(900, 99), at_once, ever)],
                vec![(900, true)],
                0,
                1,
            ),
            ("a worker of ours", vec![(call(812, 100), at_once, ever)], vec![], 0, 1),
        ] {
            let mut host = Host {
                now: ms(0),
                calls,
                looks: 0,
            };
            let snapshot = look(&mut host, &[], &[ours], &[call(900, 99)], ms(10_000)).unwrap();
            let seen: Vec<(i32, bool)> = snapshot.calls.iter().map(|c| (c.pid, c.lasts)).collect();
            assert_eq!((seen, host.now, host.looks), (found, ms(took), looks), "{case}");
        }
    }
}
