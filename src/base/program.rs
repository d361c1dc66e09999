//! Asking a program of the host: no shell, an environment of our own, a deadline.

use std::io::Read;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::{OFlags, fcntl_setfl};

use crate::base::wait::await_one;

/// Most of a program's answer that is kept, bytes.
const ANSWER: u64 = 4096;

/// How long a program that was killed may take to end.
const TO_END: Duration = Duration::from_secs(1);

/// Runs a program to its end: whether it ended with 0, and what it said.
pub(crate) fn ask(words: &[&str], within: Duration) -> Result<(bool, String), String> {
    let cannot = |e| format!("{} cannot be run: {e}", words[0]);
    let mut child = Command::new(words[0])
        .args(&words[1..])
        .env_clear()
        .env("PATH", PATH)
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(cannot)?;
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

/// PATH of programs we start: what Proxmox gives its daemons (pve-common, PVE/Daemon.pm).
pub const PATH: &str = "/sbin:/bin:/usr/sbin:/usr/bin";

#[cfg(test)]
mod tests {
    use super::*;

    use std::time::Instant;

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
}
