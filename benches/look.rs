//! The look for who uses a GPU, beside fuser(1) and lsof(8): through 100 to 10,000 processes, and through 1,000 to 1,000,000
//! descriptors.
//!
//! In a pid namespace of its own, so that there are as many processes as it says. The peers are programs, of which the time
//! that they take to start is subtracted (they print their version); ours is the function that a run calls, in a program that
//! runs already. All look for the same node, which nobody has open. What is promised: descriptors at most fuser's time, and at
//! most a third of lsof's. Run with `cargo bench --bench look`, as root.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gpu_handoff::base::root::Root;
use gpu_handoff::host::{holders, nodes};
use rustix::process::{Resource, getrlimit, setrlimit};

mod rows;

/// The argument that makes this program one that has many descriptors.
const HOLD: &str = "--hold";

/// The argument of the program inside the namespace.
const INSIDE: &str = "--inside";

/// So often each looks, in turns; the median counts.
const ROUNDS: usize = 5;

/// So many descriptors at most are one process's: a hard limit that is common where services run.
const EACH: usize = 16_000;

/// Over as many processes descriptors are spread at least.
const SPREAD: usize = 25;

fn main() -> io::Result<ExitCode> {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some(HOLD) => hold(args.get(2).and_then(|n| n.parse().ok()).unwrap_or(0)),
        Some(INSIDE) => compare(),
        _ => {
            let words = ["--pid", "--fork", "--kill-child", "--mount", "--mount-proc"];
            let mut unshare = Command::new("unshare");
            Err(unshare.args(words).arg(std::env::current_exe()?).arg(INSIDE).exec())
        }
    }
}

/// Has so many descriptors more, until stdin ends.
fn hold(count: u64) -> io::Result<ExitCode> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit)?;
    let null = fs::File::open("/dev/null")?;
    let held = (0..count).map(|_| null.try_clone()).collect::<io::Result<Vec<_>>>()?;
    writeln!(io::stdout(), "{}", held.len())?;
    io::stdin().read_line(&mut String::new())?;
    Ok(ExitCode::SUCCESS)
}

/// One who looks.
struct Looker {
    name: &'static str,
    look: Box<dyn Fn() -> io::Result<()>>,
    /// What does as much as its start.
    start: Option<Box<dyn Fn() -> io::Result<()>>>,
}

fn compare() -> io::Result<ExitCode> {
    let dir = tempfile::tempdir()?;
    // A node that nobody has: fuser and lsof ask for a file, we for numbers.
    let node = dir.path().join("nvidia0");
    run(Command::new("mknod").arg(&node).args(["c", "195", "0"]))?;
    let lookers = lookers(dir.path(), &node)?;
    let mut out = io::stdout();
    write!(out, "{:<36}", "milliseconds")?;
    lookers.iter().try_for_each(|one| write!(out, "{:>12}", one.name))?;
    writeln!(out)?;
    let mut crowd: Vec<Child> = Vec::new();
    let mut is_kept = true;
    for count in [100, 1_000, 10_000] {
        while crowd.len() < count {
            crowd.push(sleeper()?);
        }
        is_kept &= row(&format!("{count} processes"), &lookers)?;
    }
    end(crowd)?;
    for count in [1_000, 10_000, 100_000, 1_000_000] {
        let over = SPREAD.max(count / EACH);
        let crowd = (0..over).map(|_| holder(count / over)).collect::<io::Result<_>>()?;
        is_kept &= row(&format!("{count} descriptors, {over} processes"), &lookers)?;
        end(crowd)?;
    }
    writeln!(
        out,
        "at most fuser's, at most a third of lsof's, at the most of both: {}",
        if is_kept { "yes" } else { "NO" }
    )?;
    Ok(if is_kept { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Ours first; the others as far as they are there.
fn lookers(host: &Path, node: &Path) -> io::Result<Vec<Looker>> {
    let nodes = Arc::new(nodes::nodes(&Root::at(host), &[], &[], &[])?);
    let ours = move || {
        let scan = holders::scan(&Root::real(), &nodes)?;
        match scan.unseen.first() {
            Some(unseen) => Err(io::Error::other(format!("not all was seen: {unseen:?}"))),
            None => Ok(()),
        }
    };
    let mut lookers = vec![Looker {
        name: "gpu-handoff",
        look: Box::new(ours),
        start: None,
    }];
    for (name, version) in [("fuser", "-V"), ("lsof", "-v")] {
        let program = move |args: Vec<std::ffi::OsString>| {
            let mut command = Command::new(name);
            command.args(args).stdout(Stdio::null()).stderr(Stdio::null());
            // That nobody has the file open is a failure with both.
            command.status().map(drop)
        };
        if program(vec![version.into()]).is_err() {
            continue;
        }
        let file = node.as_os_str().to_owned();
        lookers.push(Looker {
            name,
            look: Box::new(move || program(vec![file.clone()])),
            start: Some(Box::new(move || program(vec![version.into()]))),
        });
    }
    Ok(lookers)
}

/// Has all of them look, in turns, and prints a line. Whether what is promised holds, where this is the most of it.
fn row(what: &str, lookers: &[Looker]) -> io::Result<bool> {
    let mut times: Vec<Vec<Duration>> = vec![Vec::new(); lookers.len()];
    for _ in 0..ROUNDS {
        for (looker, times) in lookers.iter().zip(&mut times) {
            let start = looker
                .start
                .as_ref()
                .map_or(Ok(Duration::ZERO), |start| clock(start.as_ref()))?;
            times.push(clock(looker.look.as_ref())?.saturating_sub(start));
        }
    }
    let mut out = io::stdout();
    write!(out, "{what:<36}")?;
    let mut medians = Vec::new();
    for (looker, mut times) in lookers.iter().zip(times) {
        times.sort();
        let median = times[ROUNDS / 2];
        write!(out, "{:>12.1}", median.as_secs_f64() * 1e3)?;
        medians.push((looker.name, median));
    }
    writeln!(out)?;
    for (name, median) in &medians {
        rows::tell("the look", what, name, &[("ms", Some(median.as_secs_f64() * 1e3))])?;
    }
    let of = |name: &str| medians.iter().find(|(n, _)| *n == name).map(|(_, median)| *median);
    let ours = of("gpu-handoff").unwrap_or_default();
    let is_most = what.starts_with("10000 processes") || what.starts_with("1000000 ");
    let is_kept = of("fuser").is_none_or(|fuser| ours <= fuser) && of("lsof").is_none_or(|lsof| ours * 3 <= lsof);
    Ok(is_kept || !is_most)
}

fn clock(work: &dyn Fn() -> io::Result<()>) -> io::Result<Duration> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed())
}

fn sleeper() -> io::Result<Child> {
    Command::new("sleep").arg("infinity").stdin(Stdio::null()).spawn()
}

fn holder(count: usize) -> io::Result<Child> {
    let mut child = Command::new(std::env::current_exe()?)
        .args([HOLD, &count.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let stdout = child.stdout.as_mut().ok_or_else(|| io::Error::other("no pipe"))?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    match line.trim() == count.to_string() {
        true => Ok(child),
        false => Err(io::Error::other(format!(
            "a process could not have {count} descriptors"
        ))),
    }
}

fn end(crowd: Vec<Child>) -> io::Result<()> {
    for mut child in crowd {
        child.kill()?;
        child.wait()?;
    }
    Ok(())
}

fn run(command: &mut Command) -> io::Result<()> {
    match command.status()?.success() {
        true => Ok(()),
        false => Err(io::Error::other(format!("{command:?} failed"))),
    }
}
