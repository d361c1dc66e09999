//! What a handoff costs in our own program, without the kernel's acts: start, config, snapshot, look, plan, and the text of it,
//! for one card and for sixteen: `plan --vm`, which is all of a run but what it does.
//!
//! On a host that is a tree of files, in a mount and a PID namespace, so that no process but ours is looked through. Wall time
//! from start to end (what the namespaces take is subtracted), the median; and instructions in user space, as valgrind's
//! callgrind counts them. Run with `cargo bench --bench handoff`, as root; without valgrind there is the first figure alone.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

#[path = "../tests/hosts/many.rs"]
mod many;
#[path = "../tests/hosts/namespace.rs"]
mod namespace;
mod rows;
#[path = "../tests/hosts/tree.rs"]
mod tree;

/// The argument of the program inside the namespace.
const INSIDE: &str = "--inside";

/// So often each is started; the median counts.
const ROUNDS: usize = 21;

fn main() -> io::Result<ExitCode> {
    if std::env::args().nth(1).is_some_and(|arg| arg == INSIDE) {
        return measure();
    }
    let words = ["--pid", "--fork", "--kill-child", "--mount", "--mount-proc"];
    let mut unshare = Command::new("unshare");
    Err(unshare.args(words).arg(std::env::current_exe()?).arg(INSIDE).exec())
}

fn measure() -> io::Result<ExitCode> {
    for cards in [1, 16] {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())?;
        tree::build(&many::host(cards), dir.path()).map_err(io::Error::other)?;
        lend(dir.path(), cards)?;
        let args = ["plan", "--vm", "111"];
        let nothing = median(dir.path(), "/bin/true", &[])?;
        let took = median(dir.path(), env!("CARGO_BIN_EXE_gpu-handoff"), &args)?.saturating_sub(nothing);
        let ms = took.as_secs_f64() * 1e3;
        let count = instructions(dir.path(), &args);
        let shown = count.map_or("-".to_owned(), |n| n.to_string());
        writeln!(
            io::stdout(),
            "plan of {cards:>2} cards: {ms:>8.1} ms {shown:>12} instructions"
        )?;
        let row = format!("{cards} cards");
        rows::tell(
            "our own work",
            &row,
            "gpu-handoff plan",
            &[("ms", Some(ms)), ("instructions", count.map(rows::whole))],
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A VM that is given all of the cards.
fn lend(tree: &Path, cards: usize) -> io::Result<()> {
    let vms = tree.join("etc/pve/nodes/pve/qemu-server");
    fs::create_dir_all(&vms)?;
    let lines = (0..cards).map(|n| format!("hostpci{n}: 0000:{:02x}:00,pcie=1\n", 2 * n + 1));
    fs::write(
        vms.join("111.conf"),
        format!("machine: q35\n{}", lines.collect::<String>()),
    )?;
    std::os::unix::fs::symlink("nodes/pve/qemu-server", tree.join("etc/pve/qemu-server"))
}

fn median(tree: &Path, binary: &str, args: &[&str]) -> io::Result<Duration> {
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let output = namespace::command(binary, tree, args).output()?;
        times.push(start.elapsed());
        // What a run leaves to init is ours here, and the next run would meet it. There is none left where that fails.
        while nix::sys::wait::wait().is_ok() {}
        if namespace::could_not(&output) {
            return Err(io::Error::other("no mount namespace here"));
        }
        if !output.status.success() {
            return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()));
        }
    }
    times.sort();
    Ok(times[ROUNDS / 2])
}

/// Its instructions; None: there is no valgrind.
fn instructions(tree: &Path, args: &[&str]) -> Option<u64> {
    let mut words = vec![
        "--tool=callgrind",
        "--callgrind-out-file=/dev/null",
        env!("CARGO_BIN_EXE_gpu-handoff"),
    ];
    words.extend(args);
    let output = namespace::command("/usr/bin/valgrind", tree, &words).output().ok()?;
    rows::collected(&String::from_utf8_lossy(&output.stderr))
}
