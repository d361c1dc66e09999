//! A process of somebody else's is asked to end, or ended: no other than the one that is meant, and only while it uses what
//! leaves.

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};

use crate::base::pci::PciAddr;
use crate::base::process::ancestors;
use crate::base::root::Root;
use crate::base::wait::{pidfds, poll_readable};
use crate::execute::kernel::ActError;
use crate::host::snapshot;
use crate::plan::clients;

/// Ends a process that uses these functions: asks it to, and kills it where it has not by then. One that has let go
/// meanwhile goes on, and so does another one that has its number by now.
pub(crate) fn end_process(
    root: &Root,
    pid: i32,
    addrs: &[PciAddr],
    within: Duration,
    kill: bool,
) -> Result<(), ActError> {
    let Some(fd) = pidfds(&[pid]).and_then(|mut fds| fds.pop()) else {
        return Ok(()); // it has ended
    };
    // From here on the descriptor says who is meant.
    let snapshot = snapshot::read_uses(root).map_err(|e| ActError::Failed(format!("cannot read the host: {e}")))?;
    if !clients::can_end_now(&snapshot, pid, addrs) {
        return Ok(()); // who still has it open is named before anything is let go
    }
    let is_ours = |ours: u32| i32::try_from(ours) == Ok(pid);
    if ancestors(root, std::process::id()).into_iter().any(is_ours) {
        let why = "this run was started from it. Hint: start it from another place";
        return Err(ActError::Failed(why.to_owned()));
    }
    for signal in [Signal::TERM, Signal::KILL].into_iter().take(if kill { 2 } else { 1 }) {
        match pidfd_send_signal(&fd, signal) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(e) => return Err(ActError::Failed(format!("it cannot be sent a signal: {e}"))),
        }
        if poll_readable(&[fd.as_fd()], within) == [true] {
            return Ok(());
        }
    }
    let waited = within.as_secs();
    Err(ActError::Failed(if kill {
        format!(
            "it was killed and has not ended {waited} s later: it is stuck in the kernel. Hint: see 'cat /proc/{pid}/stack' and \
             'journalctl -k' for what holds it up"
        )
    } else {
        format!(
            "it was asked to end (SIGTERM) and has not {waited} s later. Hint: end it yourself, or set processes = \"kill\", or \
             raise deadlines.process"
        )
    }))
}
