//! The binary as a program: arguments, exit codes, and which stream says what. Nothing here needs a GPU, and
//! nothing here touches one.

#![allow(clippy::unwrap_used)] // a test that cannot set itself up should stop there

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Runs the binary as Proxmox does: stdin at its end, LC_ALL=C.
fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gpu-handoff"))
        .args(args)
        .env("LC_ALL", "C")
        .env("PVE_MIGRATED_FROM", "")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn phases_that_do_nothing_say_so_in_one_line_and_succeed() {
    for phase in ["post-start", "pre-stop", "post-stop", "some-future-phase"] {
        let output = run(&["199999999", phase]);
        assert_eq!(output.status.code(), Some(0), "{phase}");
        assert_eq!(stderr(&output).lines().count(), 1, "{phase}: {}", stderr(&output));
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_wrong_hook_call_is_a_usage_error_with_a_hint() {
    for (args, part) in [
        (&["abc", "pre-start"][..], "'abc' is not a VM id"),
        (&["99", "pre-start"], "'99' is not a VM id"),
        (&["0111", "post-stop"], "'0111' is not a VM id"),
        (&["1000000000", "pre-start"], "'1000000000' is not a VM id"),
        (&["111"], "after 111 there is no phase"),
        (&["111", ""], "after 111 there is no phase"),
        (&["111", "pre-start", "x\ny"], "there is more: 'x\\ny'"),
    ] {
        let output = run(args);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
        assert!(text.contains(part), "{args:?}: {text}");
        assert!(text.contains("Hint: "), "{args:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{args:?}: {text}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn pre_start_of_a_vm_without_config_is_refused() {
    let output = run(&["199999999", "pre-start"]);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(
        text.contains("refused, nothing was changed: the config of VM 199999999 cannot be read"),
        "{text}"
    );
    assert_eq!(text.matches("Hint: ").count(), 1, "{text}");
}

#[test]
fn results_go_to_stdout_and_help_has_the_exit_codes() {
    let output = run(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let help = String::from_utf8(output.stdout).unwrap();
    assert!(help.contains("Exit status: 0 done or nothing to do"), "{help}");
    assert!(output.stderr.is_empty());
    let output = run(&["status", "--json"]);
    assert_eq!(output.status.code(), Some(0));
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(value["version"] == 1 && value["cards"].is_array(), "{value}");
}

#[test]
fn a_reader_that_has_gone_is_no_panic() {
    for args in [
        &["--help"][..],
        &["status"],
        &["holders"],
        &["199999999", "pre-start"],
        &["frobnicate"],
    ] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_gpu-handoff"))
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        drop(child.stderr.take());
        let status = child.wait().unwrap();
        assert_ne!(status.code(), Some(101), "{args:?} panicked");
        assert!(status.code().is_some(), "{args:?} was killed by a signal");
    }
}

/// The variables of the shell script count where nobody says which GPU is meant, and only by hand.
#[test]
fn the_scripts_variables_name_a_gpu_by_hand_and_are_not_used_by_the_hook() {
    let with = |args: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_gpu-handoff"))
            .args(args)
            .env("GPU_PCI", "0000:fe:1f.0")
            .stdin(Stdio::null())
            .output()
            .unwrap()
    };
    let by_hand = with(&["plan"]);
    assert_eq!(by_hand.status.code(), Some(3));
    assert!(
        stderr(&by_hand).contains("there is no NVIDIA GPU '0000:fe:1f.0'"),
        "{}",
        stderr(&by_hand)
    );
    let named = with(&["plan", "--gpu", "7"]);
    assert!(
        stderr(&named).contains("there is no NVIDIA GPU '7'"),
        "{}",
        stderr(&named)
    );
    let hook = with(&["199999999", "pre-stop"]);
    assert_eq!(hook.status.code(), Some(0));
    assert!(
        stderr(&hook).contains("GPU_PCI is set and not used"),
        "{}",
        stderr(&hook)
    );
}

/// The daemon behind /etc/pve may leave a read without an answer, as a named pipe does that nobody writes to.
#[test]
fn a_file_that_never_answers_ends_pre_start_with_a_sentence_in_time() {
    const BINARY: &str = env!("CARGO_BIN_EXE_gpu-handoff");
    // In a mount namespace of its own nothing of it reaches the host; where there can be none, nothing is shown.
    let script = "mount -t tmpfs none /etc || exit 77; mkdir -p /etc/pve/qemu-server && \
                  mkfifo /etc/pve/qemu-server/111.conf && exec timeout -s KILL 40 \"$1\" 111 pre-start";
    let mut words = Command::new("unshare");
    words.args(["--mount", "sh", "-c", script, "sh", BINARY]);
    let output = words.stdin(Stdio::null()).output().unwrap();
    let text = stderr(&output);
    if output.status.code() == Some(77) || text.contains("unshare failed") {
        return;
    }
    assert_eq!(output.status.code(), Some(5), "{text}");
    assert!(
        text.contains("the config of VM 111 could not be read within 10 s; nothing was changed. Hint: see 'systemctl"),
        "{text}"
    );
}

/// It may outlive its run, in a call that does not end: the run's lock and its signals are not to stay with it.
#[test]
fn a_worker_has_nothing_of_its_run_but_pipes() {
    const BINARY: &str = env!("CARGO_BIN_EXE_gpu-handoff");
    let script = "mount -t tmpfs none /etc || exit 77; mkdir -p /etc/pve/qemu-server && \
                  mkfifo /etc/pve/qemu-server/111.conf && exec \"$1\" 111 pre-start";
    let mut words = Command::new("unshare");
    words.args(["--mount", "sh", "-c", script, "sh", BINARY]);
    let mut run = words.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let until = Instant::now() + Duration::from_secs(8); // its run waits for ten
    let is_worker =
        |pid: &&str| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "gpu-handoff-wrk\n");
    let is_its_own = |to: &String| to.starts_with("pipe:") || to == "/dev/null" || to == "/dev/kmsg";
    let open_in = |pid: &str| -> Vec<String> {
        let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let links = entries.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
        links.map(|to| to.display().to_string()).collect()
    };
    loop {
        if run.try_wait().unwrap().is_some_and(|ended| ended.code() != Some(5)) {
            return; // where there can be no mount namespace
        }
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", run.id())).unwrap_or_default();
        if let Some(worker) = children.split_whitespace().find(is_worker) {
            let open = open_in(worker);
            // It closes what is not its own at once, and waits for the config then.
            if Instant::now() > until || (open.len() >= 5 && open.iter().all(is_its_own)) {
                let cwd = std::fs::read_link(format!("/proc/{worker}/cwd")).unwrap();
                kill(Pid::from_raw(worker.parse().unwrap()), Signal::SIGKILL).unwrap();
                run.kill().unwrap();
                run.wait().unwrap();
                assert!(open.len() >= 5 && open.iter().all(is_its_own), "{open:?}");
                assert_eq!(cwd, Path::new("/"));
                return;
            }
        }
        assert!(Instant::now() < until, "there is no worker");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn check_lists_its_rows_and_a_name_that_there_is_none_of_has_close_ones() {
    let listed = run(&["check", "--list"]);
    assert_eq!(listed.status.code(), Some(0));
    let text = String::from_utf8(listed.stdout).unwrap();
    assert!(text.lines().count() >= 60, "{text}");
    assert!(text.lines().all(|l| l.chars().count() <= 80), "{text}");
    for (args, part) in [
        (
            &["check", "--skip", "iomu"][..],
            "there is no check 'iomu' to skip. Hint: did you mean iommu?",
        ),
        (
            &["check", "--skip", "iommu", "x\u{1b}[2J"],
            "there is no check 'x\\u{1b}[2J' to skip",
        ),
        (
            &["check", "--list", "--skip", "no-such-name"],
            "'gpu-handoff check --list' shows them",
        ),
    ] {
        let output = run(args);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
        assert!(text.contains(part), "{args:?}: {text}");
        assert!(output.stdout.is_empty());
    }
}

/// This machine need not be ready: whatever it is, it is told within the time that a person waits, and nothing is touched.
#[test]
fn check_runs_on_whatever_machine_this_is() {
    let output = run(&["check", "--json"]);
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let value: serde_json::Value =
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}{}", stderr(&output)));
    // What every Linux has is seen, whatever it says.
    let of = |id: &str| {
        value["findings"]
            .as_array()
            .unwrap()
            .iter()
            .find(|f| f["id"] == id)
            .unwrap()
            .clone()
    };
    for id in [
        "virtualisation",
        "gate",
        "interrupt-remapping",
        "cmdline",
        "room",
        "vm-memory",
    ] {
        assert_eq!(of(id)["looked"], true, "{}", of(id));
    }
    let failures = value["summary"]["failures"].as_u64().unwrap();
    assert_eq!(
        output.status.code(),
        Some(if failures == 0 { 0 } else { 3 }),
        "{}",
        stderr(&output)
    );
    if failures > 0 {
        assert!(
            stderr(&output).contains("FAIL, as printed. Hint: "),
            "{}",
            stderr(&output)
        );
    }
}

#[test]
fn attach_and_detach_name_what_is_not_there_and_ask_nobody_who_is_not() {
    // Where Proxmox's files are not mounted, nobody knows which guests there are.
    let none = match std::path::Path::new("/etc/pve/qemu-server").exists() {
        true => "there is no VM or container 199999999 on this host. Hint: 'qm list'",
        false => "there is no /etc/pve/qemu-server. Hint: see 'systemctl status pve-cluster'",
    };
    for (args, exit, part) in [
        (&["attach", "199999999"][..], 3, none),
        (&["detach", "199999999", "--yes"], 3, none),
        (
            &["attach", "199999999", "--json"],
            2,
            "with --json nobody is asked. Hint: add --yes, or --dry-run",
        ),
        (&["attach"], 2, "VMID"),
        (&["attach", "99"], 2, "99"),
        (&["attach", "111", "--primary-gpu"], 2, "--gpu"),
        (&["detach", "111", "--all"], 2, "--all"),
    ] {
        let output = run(args);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(exit), "{args:?}: {text}");
        assert!(text.contains(part), "{args:?}: {text}");
        assert!(output.stdout.is_empty(), "{args:?}");
    }
}
