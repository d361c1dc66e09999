//! Asking a program of the host: no shell, an environment of our own, a deadline.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, fcntl_setfl};

use crate::base::text::{foreign, one_line};
use crate::base::unsafe_calls::with_no_signal_blocked;
use crate::base::wait::{await_one, pidfds, poll_readable};

/// Most of a program's answer that is kept, bytes.
const ANSWER: u64 = 4096;

/// How long a program that was killed may take to end.
const TO_END: Duration = Duration::from_secs(1);

/// A program with an environment of our own, no signal blocked, and nothing to read.
pub(crate) fn command(words: &[&str]) -> Command {
    let mut command = Command::new(words[0]);
    command
        .args(&words[1..])
        .env_clear()
        .env("PATH", PATH)
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(Stdio::null());
    with_no_signal_blocked(&mut command);
    command
}

/// Runs a program to its end: whether it ended with 0, and what it said.
pub(crate) fn ask(words: &[&str], within: Duration) -> Result<(bool, String), String> {
    ask_with(words, None, within)
}

/// The same for what the program does.
///
/// # Errors
/// What it said where it did not end with 0, on one line.
pub(crate) fn ask_to(words: &[&str], within: Duration) -> Result<(), String> {
    let (ok, said) = ask(words, within)?;
    if ok { Ok(()) } else { Err(foreign(&one_line(&said))) }
}

/// As [`ask`], for a program that reads this from stdin. It is no longer than what a pipe holds (pipe(7), 64 KiB), so that
/// nobody waits for a program that does not read.
pub(crate) fn ask_with(words: &[&str], input: Option<&[u8]>, within: Duration) -> Result<(bool, String), String> {
    let cannot = |e| format!("{} cannot be run: {e}", words[0]);
    let mut command = command(words);
    if input.is_some() {
        command.stdin(Stdio::piped());
    }
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(cannot)?;
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        // One that ends without having read it says so by how it ends.
        let _ = fcntl_setfl(&stdin, OFlags::NONBLOCK).map(|()| stdin.write_all(input));
    }
    let pid = i32::try_from(child.id()).unwrap_or_default();
    if !await_one(&[pid], within) {
        let _ = child.kill();
        let secs = within.as_secs();
        // One that waits in the kernel is deaf to that: it is left to whoever is our parent when we have ended.
        if !await_one(&[pid], TO_END) {
            return Err(format!(
                "{} gave no answer within {secs} s, and process {pid} does not end",
                words[0]
            ));
        }
        let _ = child.wait();
        return Err(format!("{} gave no answer within {secs} s", words[0]));
    }
    let status = child.wait().map_err(cannot)?;
    let mut said = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        hear(stdout, &mut said);
    }
    if let Some(stderr) = child.stderr.take() {
        hear(stderr, &mut said);
    }
    Ok((status.success(), String::from_utf8_lossy(&said).into_owned()))
}

/// What a program that has ended has left in a pipe. One that it has started may have the other end still: nothing more is
/// waited for.
fn hear(pipe: impl Read + AsFd, said: &mut Vec<u8>) {
    if fcntl_setfl(&pipe, OFlags::NONBLOCK).is_ok() {
        let _ = pipe.take(ANSWER).read_to_end(said);
    }
}

/// Runs a program to its end, and passes each line of what it says on as it says it.
///
/// # Errors
/// Why it did not end with 0, as the rest of a sentence.
pub(crate) fn run(words: &[&str], within: Duration, mut line: impl FnMut(&str)) -> Result<(), String> {
    let cannot = |e| format!("cannot be run: {e}");
    let (mut heard, says) = std::io::pipe().map_err(cannot)?;
    let mut child = command(words)
        .stdout(says.try_clone().map_err(cannot)?)
        .stderr(says)
        .spawn()
        .map_err(cannot)?;
    let pid = i32::try_from(child.id()).unwrap_or_default();
    let pidfd = pidfds(&[pid]);
    fcntl_setfl(&heard, OFlags::NONBLOCK).map_err(|e| cannot(e.into()))?;
    let end = Instant::now() + within;
    let mut rest = Vec::new();
    let has_ended = loop {
        let left = end.saturating_duration_since(Instant::now());
        let mut fds: Vec<BorrowedFd<'_>> = vec![heard.as_fd()];
        fds.extend(pidfd.iter().flatten().map(AsFd::as_fd));
        let ready = poll_readable(&fds, left);
        let has_ended = pidfd.is_none() || ready.get(1) == Some(&true);
        let is_silent = pass_on(&mut heard, &mut rest, &mut line);
        match (has_ended, ready.contains(&true)) {
            (true, _) => break true,
            (false, false) => break false,
            // Nobody has the pipe open any more, and it is no use to ask it again.
            (false, true) if is_silent => break await_one(&[pid], end.saturating_duration_since(Instant::now())),
            (false, true) => {}
        }
    };
    if !rest.is_empty() {
        line(&String::from_utf8_lossy(&rest));
    }
    if !has_ended {
        let _ = child.kill();
        let secs = within.as_secs();
        if !await_one(&[pid], TO_END) {
            return Err(format!("did not end within {secs} s, and process {pid} does not end"));
        }
        let _ = child.wait();
        return Err(format!("did not end within {secs} s, and was ended"));
    }
    let status = child.wait().map_err(cannot)?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("failed ({status})")),
    }
}

/// Most of a line that is kept until its end comes, bytes.
const LONGEST_LINE: usize = 4096;

/// Passes on what lines are there. Whether there will be no more.
fn pass_on(heard: &mut impl Read, rest: &mut Vec<u8>, line: &mut impl FnMut(&str)) -> bool {
    let mut bytes = [0; 4096];
    loop {
        let count = match heard.read(&mut bytes) {
            Ok(0) => return true,
            Ok(count) => count,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => return false, // nothing now
        };
        for byte in &bytes[..count] {
            // A carriage return is how progress is drawn over itself.
            if matches!(byte, b'\n' | b'\r') || rest.len() == LONGEST_LINE {
                if !rest.is_empty() {
                    line(&String::from_utf8_lossy(rest));
                }
                rest.clear();
            }
            if !matches!(byte, b'\n' | b'\r') {
                rest.push(*byte);
            }
        }
    }
}

/// PATH of programs we start: what Proxmox gives its daemons (pve-common, PVE/Daemon.pm).
pub const PATH: &str = "/sbin:/bin:/usr/sbin:/usr/bin";

#[cfg(test)]
mod tests {
    use nix::sys::signal::{SigSet, Signal};

    use super::*;

    const SOON: Duration = Duration::from_millis(200);

    /// Long enough for a machine that is busy.
    const GENEROUS: Duration = Duration::from_secs(20);

    #[test]
    fn a_program_that_does_not_end_is_ended() {
        let begun = Instant::now();
        let error = ask(&["sleep", "1000"], SOON).unwrap_err();
        assert_eq!(error, "sleep gave no answer within 0 s");
        assert!(begun.elapsed() < GENEROUS, "{:?}", begun.elapsed());
    }

    #[test]
    fn a_program_is_not_deaf_to_the_signals_that_we_have_blocked() {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGTERM);
        signals.thread_block().unwrap();
        let (ok, said) = ask(&["grep", "SigBlk", "/proc/self/status"], GENEROUS).unwrap();
        signals.thread_unblock().unwrap();
        assert_eq!((ok, said.trim()), (true, "SigBlk:\t0000000000000000"));
    }

    #[test]
    fn a_program_reads_what_it_is_given_and_one_that_does_not_is_not_waited_for() {
        let said = ask_with(&["cat"], Some(b"one\ntwo"), GENEROUS);
        assert_eq!(said, Ok((true, "one\ntwo".to_owned())));
        let long = vec![b'x'; 1 << 20];
        assert_eq!(ask_with(&["true"], Some(&long), GENEROUS), Ok((true, String::new())));
        let error = ask_with(&["sleep", "1000"], Some(&long), SOON).unwrap_err();
        assert_eq!(error, "sleep gave no answer within 0 s");
    }

    #[test]
    fn what_a_program_has_said_is_heard_though_its_child_has_the_pipe_open_still() {
        let begun = Instant::now();
        let said = ask(
            &["sh", "-c", "echo out; echo err >&2; sleep 60 & echo $!; exit 3"],
            GENEROUS,
        );
        let took = begun.elapsed();
        let (ended_well, said) = said.unwrap();
        let lines: Vec<&str> = said.lines().collect();
        let [out, child, err] = lines[..] else {
            panic!("{said:?}")
        };
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(child.parse().unwrap()),
            nix::sys::signal::Signal::SIGKILL,
        )
        .unwrap();
        assert_eq!((ended_well, out, err), (false, "out", "err"));
        assert!(took < GENEROUS, "{took:?}");
    }

    #[test]
    fn a_program_that_says_more_than_a_pipe_holds_is_ended_and_one_that_is_not_there_is_named() {
        let error = ask(&["sh", "-c", "while :; do echo more; done"], SOON).unwrap_err();
        assert_eq!(error, "sh gave no answer within 0 s");
        let error = ask(&["/nowhere/program"], SOON).unwrap_err();
        assert!(error.starts_with("/nowhere/program cannot be run: "), "{error}");
    }

    #[test]
    fn what_a_program_says_is_passed_on_by_lines_and_how_it_ended_is_told() {
        for (script, within, said, end) in [
            (
                "echo one; echo two >&2; printf three",
                GENEROUS,
                vec!["one", "two", "three"],
                Ok(()),
            ),
            (
                "printf '10%%\r20%%\r\n\n'; exit 3",
                GENEROUS,
                vec!["10%", "20%"],
                Err("failed (exit status: 3)"),
            ),
            ("exec >&- 2>&-; sleep 0.1", GENEROUS, vec![], Ok(())),
            (
                "echo begun; exec sleep 1000",
                SOON,
                vec!["begun"],
                Err("did not end within 0 s, and was ended"),
            ),
        ] {
            let mut lines = Vec::new();
            let ended = run(&["sh", "-c", script], within, |line| lines.push(line.to_owned()));
            assert_eq!(
                (lines, ended.as_ref().copied().map_err(String::as_str)),
                (said.iter().map(|s| (*s).to_owned()).collect(), end),
                "{script}"
            );
        }
        // More than a pipe holds, of a program whose child has the pipe open still.
        let mut count = 0;
        let ended = run(
            &["sh", "-c", "yes | head -n 100000; sleep 60 & exit 0"],
            GENEROUS,
            |_| count += 1,
        );
        assert_eq!((count, ended), (100_000, Ok(())));
        let error = run(&["/nowhere/program"], GENEROUS, |_| {}).unwrap_err();
        assert!(error.starts_with("cannot be run: "), "{error}");
    }
}
