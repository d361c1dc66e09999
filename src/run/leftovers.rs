//! What a run that was killed has left behind: its workers, waited for or ended.
//!
//! Not here: what counts as stuck from then on ([`crate::model::record::Record::give_up_workers`]), and who watches it
//! ([`crate::commands::watch_next`]).

use std::time::Duration;

use tracing::{info, warn};

use crate::base::process::Group;
use crate::base::root::Root;
use crate::base::systemd;
use crate::base::text::{join, millis};
use crate::execute::kernel::Kernel;
use crate::execute::linux::Linux;
use crate::model::error::Error;
use crate::model::record::Record;
use crate::state::store::{Guard, Ledger};

/// How long a worker that waits for a service may take to notice that its run has gone: it ends what it has started at once.
const TO_NOTICE: Duration = Duration::from_secs(2);

/// How long what was killed gets to disappear before it is taken to be in the kernel.
const AFTER_KILL: Duration = Duration::from_secs(1);

/// Waits for the workers of a run that was killed: each finishes the one act it is at. The lock is ours, so no other run is alive
/// that it could belong to. One that does not finish counts as stuck from here on, on file too, so that no later run waits for it
/// again. What is at an act that touches no function is ended: nothing waits for it, and who it asks, a container's systemd or a
/// user's, may keep it for as long as that likes; but for a container that goes down or comes up, which is waited for.
///
/// # Errors
/// [`Error::Interrupted`].
pub(super) fn await_leftovers(
    kernel: &mut Linux,
    root: &Root,
    guard: &Guard,
    record: &Record,
    end: Duration,
) -> Result<(), Error> {
    let alive_in = |group: &Group| group.alive(root);
    let is_awaited = |group: &&Group| !record.wedges.iter().any(|w| w.group == **group);
    let is_ended = record.touches_nothing();
    let is_at_once = is_ended && !record.switches_a_container();
    let until = match is_at_once {
        true => end.min(kernel.now() + TO_NOTICE),
        false => end,
    };
    let mut said = is_at_once;
    loop {
        let alive: Vec<i32> = record.workers.iter().filter(is_awaited).flat_map(alive_in).collect();
        let left = until.saturating_sub(kernel.now());
        if alive.is_empty() {
            return Ok(());
        }
        if left.is_zero() && is_ended {
            end_leftovers(kernel, root, guard, record);
            return Ok(());
        }
        if left.is_zero() {
            give_up(root, guard, record);
            return Ok(());
        }
        if kernel.interrupted().is_some() {
            return Err(Error::Interrupted);
        }
        if !said {
            info!(
                "{}: waiting up to {} for what an interrupted run has left",
                record.owner,
                millis(left)
            );
            said = true;
        }
        kernel.await_exit(&alive, left);
    }
}

/// They are stuck, for all who come after.
fn give_up(root: &Root, guard: &Guard, record: &Record) {
    for group in &record.workers {
        systemd::take_over(group.number, &group.alive(root));
    }
    let mut given_up = record.clone();
    given_up.workers.retain(|group| !group.alive(root).is_empty());
    given_up.give_up_workers();
    if let Err(e) = guard.save(&given_up) {
        warn!("{}: that it is stuck could not be written down: {e}", record.owner);
    }
}

/// They are killed, and forgotten: what does not end of them is in the kernel, and ends as soon as that lets it.
fn end_leftovers(kernel: &mut Linux, root: &Root, guard: &Guard, record: &Record) {
    record.workers.iter().for_each(|group| group.kill(root));
    let until = kernel.now() + AFTER_KILL;
    loop {
        let alive: Vec<i32> = record.workers.iter().flat_map(|group| group.alive(root)).collect();
        let left = until.saturating_sub(kernel.now());
        if alive.is_empty() || left.is_zero() {
            break;
        }
        kernel.await_exit(&alive, left);
    }
    for group in &record.workers {
        systemd::take_over(group.number, &group.alive(root));
    }
    let stuck: Vec<u32> = record
        .workers
        .iter()
        .filter(|group| !group.alive(root).is_empty())
        .map(|group| group.number)
        .collect();
    if stuck.is_empty() {
        info!("{}: what an interrupted run has left was ended", record.owner);
    } else {
        warn!(
            "{}: what an interrupted run has left hangs in the kernel, in a call that touches no GPU, and is not waited for: \
             process group {}",
            record.owner,
            join(&stuck)
        );
    }
    let mut ended = record.clone();
    ended.workers.clear();
    if let Err(e) = guard.save(&ended) {
        warn!("{}: that it has ended could not be written down: {e}", record.owner);
    }
}
