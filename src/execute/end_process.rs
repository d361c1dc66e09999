//! Processes of somebody else's are asked to end, or ended: no others than those that are meant, and only while they use what
//! leaves.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::process::{Signal, pidfd_send_signal};

use crate::base::pci::PciAddr;
use crate::base::root::Root;
use crate::base::text::join;
use crate::base::wait::{pidfds, poll_readable};
use crate::execute::kernel::ActError;
use crate::host::snapshot;
use crate::model::named::Named;
use crate::model::plan::DESKTOPS_END;
use crate::plan::clients;

/// Who is to end, and how.
pub(crate) struct Request<'a> {
    pub(crate) processes: &'a [Named],
    /// What they must use.
    pub(crate) addrs: &'a [PciAddr],
    /// How long they have, and again where they are killed.
    pub(crate) within: Duration,
    pub(crate) kill: bool,
    /// Who has asked: when this can be read, or is hung up, nobody is killed any more.
    pub(crate) asked_by: BorrowedFd<'a>,
}

/// What came of it.
pub(crate) struct Outcome {
    pub(crate) result: Result<(), ActError>,
    /// Who has ended for it, or was asked to and is not waited for.
    pub(crate) ended: Vec<i32>,
    /// Who was left alone.
    pub(crate) notes: Vec<String>,
}

/// Asks them all to end, and kills those that have not by then. One that has let go meanwhile goes on, and so does another
/// one that has its number by now.
pub(crate) fn end_processes(root: &Root, request: &Request<'_>) -> Outcome {
    let mut outcome = Outcome {
        result: Ok(()),
        ended: Vec::new(),
        notes: Vec::new(),
    };
    // From here on the descriptors say who is meant.
    let meant = request.processes.iter();
    let meant: Vec<(&Named, OwnedFd)> = meant
        .filter_map(|one| Some((one, pidfds(&[one.pid])?.pop()?)))
        .collect();
    let snapshot = match snapshot::read_uses(root) {
        Ok(snapshot) => snapshot,
        Err(e) => {
            outcome.result = Err(ActError::Failed(format!("cannot read the host: {e}")));
            return outcome;
        }
    };
    // Who still has it open is named before anything is let go.
    let is_user = |one: &Named| clients::can_end_now(&snapshot, one.pid, request.addrs);
    let (mut left, gone): (Vec<_>, Vec<_>) = meant.into_iter().partition(|(one, _)| is_user(one));
    let lives = |fd: &OwnedFd| poll_readable(&[fd.as_fd()], Duration::ZERO) == [false];
    let spared = gone.iter().filter(|(_, fd)| lives(fd));
    outcome
        .notes
        .extend(spared.map(|(one, _)| format!("{one} does not use it any more, and goes on")));
    let signals: &[&[Signal]] = match request.kill {
        // One that is stopped (Ctrl-Z) has to go on to end.
        true => &[&[Signal::TERM, Signal::CONT], &[Signal::KILL]],
        false => &[&[Signal::TERM, Signal::CONT]],
    };
    for signals in signals {
        if poll_readable(&[request.asked_by], Duration::ZERO) == [true] {
            outcome.result = Err(ActError::Failed("who has asked for it has gone".to_owned()));
            return outcome;
        }
        for (one, fd) in &left {
            for signal in *signals {
                match pidfd_send_signal(fd, *signal) {
                    Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                    Err(e) => {
                        outcome.result = Err(ActError::Failed(format!("{one} cannot be sent a signal: {e}")));
                        return outcome;
                    }
                }
            }
        }
        let nobody_asks = await_all(&mut left, request, &mut outcome.ended);
        if left.is_empty() {
            return outcome;
        }
        if nobody_asks {
            // They go on to end, and nobody sees it.
            outcome.ended.extend(left.iter().map(|(one, _)| one.pid));
            outcome.result = Err(ActError::Failed("who has asked for it has gone".to_owned()));
            return outcome;
        }
    }
    let who = match request.processes {
        [_] => "it".to_owned(),
        _ => join(left.iter().map(|(one, _)| one)),
    };
    outcome.result = Err(ActError::Failed(not_ended(&who, request)));
    outcome
}

/// Waits until those of a desktop that use the functions have ended with it. One that goes on is left alone, and the look before
/// anything is let go says whether it matters.
pub(crate) fn await_desktops(root: &Root, processes: &[Named], addrs: &[PciAddr], asked_by: BorrowedFd<'_>) -> Outcome {
    let mut outcome = Outcome {
        result: Ok(()),
        ended: Vec::new(),
        notes: Vec::new(),
    };
    // From here on the descriptors say who is meant; who has none has ended.
    let mut meant: Vec<(&Named, OwnedFd)> = Vec::new();
    for one in processes {
        match pidfds(&[one.pid]).and_then(|mut fds| fds.pop()) {
            Some(fd) => meant.push((one, fd)),
            None => outcome.ended.push(one.pid),
        }
    }
    if meant.is_empty() {
        return outcome;
    }
    let snapshot = match snapshot::read_uses(root) {
        Ok(snapshot) => snapshot,
        Err(e) => {
            outcome.result = Err(ActError::Failed(format!("cannot read the host: {e}")));
            return outcome;
        }
    };
    // A number that is another process's by now, and one that has let go, are nobody's to wait for.
    meant.retain(|(one, _)| clients::uses_now(&snapshot, one, addrs));
    let request = Request {
        processes,
        addrs,
        within: DESKTOPS_END,
        kill: false,
        asked_by,
    };
    if await_all(&mut meant, &request, &mut outcome.ended) {
        outcome.ended.extend(meant.iter().map(|(one, _)| one.pid));
        outcome.result = Err(ActError::Failed("who has asked for it has gone".to_owned()));
        return outcome;
    }
    let left = meant.iter();
    outcome
        .notes
        .extend(left.map(|(one, _)| format!("{one} has not ended with its desktop")));
    outcome
}

/// Waits until all have ended, no longer than they have for it; those that have are taken out. Whether who has asked for it
/// has gone.
fn await_all(left: &mut Vec<(&Named, OwnedFd)>, request: &Request<'_>, ended: &mut Vec<i32>) -> bool {
    let end = Instant::now() + request.within;
    while !left.is_empty() {
        let fds = left.iter().map(|(_, fd)| fd.as_fd()).chain([request.asked_by]);
        let fds: Vec<BorrowedFd<'_>> = fds.collect();
        let ready = poll_readable(&fds, end.saturating_duration_since(Instant::now()));
        let mut has_ended = ready.iter();
        left.retain(|(one, _)| match has_ended.next() {
            Some(true) => {
                ended.push(one.pid);
                false
            }
            _ => true,
        });
        if has_ended.next() == Some(&true) {
            return true;
        }
        if !ready.contains(&true) {
            return false; // the time is over
        }
    }
    false
}

fn not_ended(who: &str, request: &Request<'_>) -> String {
    let waited = request.within.as_secs();
    if request.kill {
        format!(
            "{who} was killed and has not ended {waited} s later: stuck in the kernel. Hint: see /proc/PID/stack of it and \
             'journalctl -k' for what holds it up"
        )
    } else {
        format!(
            "{who} was asked to end (SIGTERM) and has not {waited} s later. Hint: end it yourself, or set processes = \"kill\", \
             or raise deadlines.process"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::process::{Child, Command};

    /// A host on which this process of a login session has the GPU open.
    fn host(pid: u32) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let gpu = "sys/bus/pci/devices/0000:01:00.0";
        for (name, text) in [("vendor", "0x10de\n"), ("device", "0x2204\n"), ("class", "0x030000\n")] {
            put(&format!("{gpu}/{name}"), text);
        }
        put("proc/modules", "");
        put(
            &format!("proc/{pid}/cgroup"),
            "0::/user.slice/user-0.slice/session-3.scope\n",
        );
        put(&format!("proc/{pid}/comm"), "sleep\n");
        put("run/systemd/sessions/3", "CLASS=user\nTYPE=tty\n");
        dir
    }

    fn sleeper() -> Child {
        Command::new("sleep").arg("1000").spawn().unwrap()
    }

    /// Nobody uses the GPU there: whoever is meant goes on, and that is said.
    #[test]
    fn who_has_let_go_is_left_alone() {
        let mut child = sleeper();
        let dir = host(child.id());
        let (reader, _writer) = std::io::pipe().unwrap();
        let processes = [Named {
            pid: i32::try_from(child.id()).unwrap(),
            comm: "sleep".to_owned(),
        }];
        let request = Request {
            processes: &processes,
            addrs: &["0000:01:00.0".parse().unwrap()],
            within: Duration::from_secs(1),
            kill: true,
            asked_by: reader.as_fd(),
        };
        let outcome = end_processes(&Root::at(dir.path()), &request);
        assert_eq!((outcome.result, outcome.ended), (Ok(()), Vec::new()));
        assert!(
            outcome.notes[0].ends_with("does not use it any more, and goes on"),
            "{:?}",
            outcome.notes
        );
        assert_eq!(child.try_wait().unwrap(), None);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Neither the end of the wait nor of who has asked for it is mistaken for an end of theirs.
    #[test]
    fn all_are_waited_for_together_and_no_longer_than_somebody_asks() {
        let (mut first, mut second) = (sleeper(), sleeper());
        let named = [&first, &second].map(|child| Named {
            pid: i32::try_from(child.id()).unwrap(),
            comm: "sleep".to_owned(),
        });
        let watched = || -> Vec<(&Named, OwnedFd)> {
            let fds = named
                .iter()
                .map(|one| (one, pidfds(&[one.pid]).unwrap().pop().unwrap()));
            fds.collect()
        };
        let (reader, writer) = std::io::pipe().unwrap();
        let request = |within| Request {
            processes: &named,
            addrs: &[],
            within,
            kill: false,
            asked_by: reader.as_fd(),
        };
        let (mut left, mut ended) = (watched(), Vec::new());
        first.kill().unwrap();
        assert!(!await_all(&mut left, &request(Duration::from_millis(300)), &mut ended));
        assert_eq!((left.len(), ended.as_slice()), (1, &[named[0].pid][..]));
        drop(writer);
        assert!(await_all(&mut left, &request(Duration::from_secs(1000)), &mut ended));
        assert_eq!(left.len(), 1);
        second.kill().unwrap();
        first.wait().unwrap();
        second.wait().unwrap();
    }
}
