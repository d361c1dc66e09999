//! Waiting for the end of processes and for descriptors; signals do not end a wait, and no wait is without an end.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout};
use rustix::process::{PidfdFlags, pidfd_open};

/// Nothing is waited for longer, whatever a deadline says: an `Instant` cannot hold every `Duration`.
pub const LONGEST_WAIT: Duration = Duration::from_secs(86_400);

/// Descriptors of these processes; None if one of them has ended.
pub fn pidfds(pids: &[i32]) -> Option<Vec<std::os::fd::OwnedFd>> {
    let open = |pid: &i32| pidfd_open(rustix::process::Pid::from_raw(*pid)?, PidfdFlags::empty()).ok();
    pids.iter().map(open).collect()
}

/// Waits until one of these processes has ended. Returns whether one has.
pub fn await_one(pids: &[i32], within: Duration) -> bool {
    let Some(fds) = pidfds(pids) else { return true };
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    poll_readable(&fds, within).contains(&true)
}

/// Waits until one of the descriptors is readable or hung up: which ones. Signals do not end the wait.
pub fn poll_readable(fds: &[BorrowedFd<'_>], within: Duration) -> Vec<bool> {
    poll(fds, PollFlags::POLLIN, within)
}

/// Waits until something can be written to a descriptor, or nobody will read it any more. Signals do not end the wait.
pub fn poll_writable(fd: BorrowedFd<'_>, within: Duration) -> bool {
    poll(&[fd], PollFlags::POLLOUT, within) == [true]
}

fn poll(fds: &[BorrowedFd<'_>], events: PollFlags, within: Duration) -> Vec<bool> {
    let end = Instant::now() + within.min(LONGEST_WAIT);
    loop {
        let left = end.saturating_duration_since(Instant::now());
        // Rounded up, so that a wait of less than a millisecond is no busy loop.
        let timeout = if within.is_zero() {
            left
        } else {
            left + Duration::from_micros(999)
        };
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        let mut polled: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::new(*fd, events)).collect();
        match nix::poll::poll(&mut polled, timeout) {
            Ok(n) if n > 0 => return polled.iter().map(|p| p.any().unwrap_or(true)).collect(),
            _ if left.is_zero() => return vec![false; fds.len()],
            _ => {}
        }
    }
}
