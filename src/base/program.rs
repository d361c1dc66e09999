//! Asking a program of the host: no shell, an environment of our own, a deadline.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Duration;

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
    // Its ends are closed by now, and a pipe holds more than is read.
    if let Some(stdout) = child.stdout.take() {
        let _ = stdout.take(ANSWER).read_to_end(&mut said);
    }
    if let Some(stderr) = child.stderr.take() {
        let _ = stderr.take(ANSWER).read_to_end(&mut said);
    }
    Ok((status.success(), String::from_utf8_lossy(&said).into_owned()))
}

/// PATH of programs we start: what Proxmox gives its daemons (pve-common, PVE/Daemon.pm).
pub const PATH: &str = "/sbin:/bin:/usr/sbin:/usr/bin";
