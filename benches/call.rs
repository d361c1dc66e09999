//! What a call costs that has nothing to do: the hook of a VM that is given no GPU, in each of its phases, beside an empty Rust
//! program, `sh -c :` and `perl -e 1`.
//!
//! Two figures: wall time from start to end, in turns, the median; and instructions in user space, as valgrind's callgrind
//! counts them, which two runs agree on. What is promised: at most 1.25 times the wall time of an empty Rust program, and at
//! most 450,000 instructions. Run with `cargo bench --bench call`, as root; without valgrind there is the first figure alone.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

mod rows;

/// The argument of the program inside the mount namespace.
const INSIDE: &str = "--inside";

/// So often each is started; the median counts.
const ROUNDS: usize = 301;

/// What is promised.
const MOST_TIMES: f64 = 1.25;
const MOST_INSTRUCTIONS: u64 = 450_000;

/// A VM that is given no GPU.
const CONFIG: &str = "boot: order=scsi0;net0\ncores: 4\ncpu: host\nhookscript: local:snippets/gpu-handoff\nmachine: q35\n\
    memory: 16384\nname: web\nnet0: virtio=BC:24:11:2A:3B:4C,bridge=vmbr0,firewall=1\nnuma: 0\nostype: l26\n\
    scsi0: local-lvm:vm-100-disk-0,iothread=1,size=32G\nscsihw: virtio-scsi-single\nsockets: 1\n";

/// What is run, by its name in the table.
struct Call {
    name: String,
    words: Vec<String>,
    is_ours: bool,
}

fn main() -> io::Result<ExitCode> {
    match std::env::args().nth(1) {
        Some(arg) if arg == INSIDE => compare(),
        _ => inside(),
    }
}

/// Goes on in a mount namespace in which there is a node of Proxmox's with that VM.
fn inside() -> io::Result<ExitCode> {
    let dir = tempfile::tempdir()?;
    let vms = dir.path().join("etc/pve/nodes/pve/qemu-server");
    fs::create_dir_all(&vms)?;
    fs::write(vms.join("100.conf"), CONFIG)?;
    std::os::unix::fs::symlink("nodes/pve/qemu-server", dir.path().join("etc/pve/qemu-server"))?;
    let empty = dir.path().join("empty");
    fs::write(dir.path().join("empty.rs"), "fn main() {}\n")?;
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let flags = ["-O", "-Cpanic=abort", "-Cstrip=symbols", "-o"];
    run(Command::new(rustc)
        .args(flags)
        .arg(&empty)
        .arg(dir.path().join("empty.rs")))?;
    let script = "mount -t overlay overlay -o lowerdir=\"$1/etc:/etc\" /etc || exit; shift; exec \"$@\"";
    let status = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(dir.path())
        .arg(std::env::current_exe()?)
        .arg(INSIDE)
        .arg(&empty)
        .status()?;
    Ok(match status.success() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn compare() -> io::Result<ExitCode> {
    let empty = std::env::args().nth(2).unwrap_or_default();
    let call = |name: &str, words: &[&str], is_ours| Call {
        name: name.to_owned(),
        words: words.iter().map(|word| (*word).to_owned()).collect(),
        is_ours,
    };
    let mut calls = vec![call("an empty Rust program", &[&empty], false)];
    for phase in ["pre-start", "post-start", "pre-stop", "post-stop"] {
        let words = [env!("CARGO_BIN_EXE_gpu-handoff"), "100", phase];
        calls.push(call(&format!("gpu-handoff 100 {phase}"), &words, true));
    }
    calls.push(call("sh -c :", &["sh", "-c", ":"], false));
    calls.push(call("perl -e 1", &["perl", "-e", "1"], false));
    calls.retain(|call| call.is_ours || start(&call.words, Stdio::null()).is_ok());

    let mut times: Vec<Vec<Duration>> = vec![Vec::new(); calls.len()];
    for _ in 0..ROUNDS {
        for (call, times) in calls.iter().zip(&mut times) {
            times.push(start(&call.words, Stdio::null())?);
        }
    }
    let mut out = io::stdout();
    writeln!(out, "{:<28}{:>10}{:>10}{:>16}", "", "ms", "ratio", "instructions")?;
    let (mut floor, mut is_kept) = (None, true);
    for (call, mut times) in calls.iter().zip(times) {
        times.sort();
        let median = times[ROUNDS / 2].as_secs_f64() * 1e3;
        let ratio = median / *floor.get_or_insert(median);
        let count = instructions(&call.words);
        let shown = count.map_or("-".to_owned(), |n| n.to_string());
        writeln!(out, "{:<28}{median:>10.2}{ratio:>10.2}{shown:>16}", call.name)?;
        let figures = [
            ("ms", Some(median)),
            ("ratio", Some(ratio)),
            ("instructions", count.map(rows::whole)),
        ];
        rows::tell("nothing to do", "a call", &call.name, &figures)?;
        is_kept &= !call.is_ours || (ratio <= MOST_TIMES && count.is_none_or(|n| n <= MOST_INSTRUCTIONS));
    }
    let kept = if is_kept { "yes" } else { "NO" };
    writeln!(
        out,
        "at most {MOST_TIMES} times, at most {MOST_INSTRUCTIONS} instructions: {kept}"
    )?;
    Ok(if is_kept { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A program with the short environment of a daemon: libc looks through all of it at each start, and cargo's is long.
fn bare(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command
}

/// Runs it to its end; how long that took.
fn start(words: &[String], stderr: Stdio) -> io::Result<Duration> {
    let mut command = bare(&words[0]);
    command
        .args(&words[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr);
    let start = Instant::now();
    run(&mut command)?;
    Ok(start.elapsed())
}

/// Its instructions and those of its children; None: there is no valgrind. What callgrind says of a child has all in it that its
/// parent had done before fork(2), so that it is asked a second time for what comes after.
fn instructions(words: &[String]) -> Option<u64> {
    let own = collected(words, &[])?.into_values().next()?;
    let since_fork = collected(words, &["--zero-before=fork"])?;
    Some(own + since_fork.into_values().skip(1).sum::<u64>())
}

/// What each process has collected, the parent first: the kernel counts them up.
fn collected(words: &[String], options: &[&str]) -> Option<BTreeMap<u32, u64>> {
    let program = match words[0].contains('/') {
        true => Path::new(&words[0]).to_owned(),
        false => Path::new("/bin").join(&words[0]),
    };
    let mut command = bare("valgrind");
    command
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .args(options)
        .arg(OsStr::new(&program))
        .args(&words[1..]);
    let output = command.stdin(Stdio::null()).output().ok()?;
    let found = rows::collected_by(&String::from_utf8_lossy(&output.stderr));
    (!found.is_empty()).then_some(found)
}

fn run(command: &mut Command) -> io::Result<()> {
    match command.status()?.success() {
        true => Ok(()),
        false => Err(io::Error::other(format!("{command:?} failed"))),
    }
}
