//! Standard error, which nobody may be reading: a terminal that is stopped, a pipe that nobody empties. A line waits for
//! its reader once, and not for ever: the run behind it has a GPU in its hands.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::base::wait::poll_writable;

/// How long the reader gets for a line. Where it has not taken it by then, the following ones are left out at once, until
/// one is taken.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a pipe takes without waiting, once it says that it takes something (pipe(7), `PIPE_BUF`).
const PIECE: usize = 4096;

/// Lines that were not taken, and of which nothing is said yet.
static LEFT_OUT: AtomicU64 = AtomicU64::new(0);

/// Standard error, for one line at a time.
pub(crate) struct Stderr;

impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let stderr = io::stderr();
        write(stderr.as_fd(), &LEFT_OUT, PATIENCE, line)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(()) // it has no buffer
    }
}

/// Writes a line, or counts it as left out.
fn write(to: BorrowedFd<'_>, left_out: &AtomicU64, patience: Duration, line: &[u8]) -> io::Result<usize> {
    let before = left_out.load(Ordering::Relaxed);
    let patience = if before > 0 { Duration::ZERO } else { patience };
    let note = match before {
        0 => String::new(),
        1 => "gpu-handoff: warning: 1 line was left out here: nobody took it\n".to_owned(),
        n => format!("gpu-handoff: warning: {n} lines were left out here: nobody took them\n"),
    };
    for piece in note.as_bytes().chunks(PIECE).chain(line.chunks(PIECE)) {
        if !poll_writable(to, patience) {
            left_out.fetch_add(1, Ordering::Relaxed);
            return Ok(line.len());
        }
        let mut rest = piece;
        while !rest.is_empty() {
            match rustix::io::write(to, rest) {
                Ok(n) => rest = &rest[n..],
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
    left_out.store(0, Ordering::Relaxed);
    Ok(line.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::io::Read;

    #[test]
    fn a_reader_that_takes_nothing_holds_nothing_up_and_hears_later_what_it_has_missed() {
        let (mut from, to) = io::pipe().unwrap();
        let (left_out, soon) = (AtomicU64::new(0), Duration::from_millis(10));
        let full = vec![b'.'; 64 * 1024];
        write(to.as_fd(), &left_out, soon, &full).unwrap();
        for line in ["first\n", "second\n"] {
            assert_eq!(write(to.as_fd(), &left_out, soon, line.as_bytes()).unwrap(), line.len());
        }
        from.read_exact(&mut vec![0; full.len()]).unwrap();
        write(to.as_fd(), &left_out, soon, b"third\n").unwrap();
        drop(to);
        let mut text = String::new();
        from.read_to_string(&mut text).unwrap();
        assert_eq!(
            text,
            "gpu-handoff: warning: 2 lines were left out here: nobody took them\nthird\n"
        );
    }
}
