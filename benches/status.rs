//! How long `status` takes on a host of sixteen GPUs, milliseconds; it is to stay below 50.
//!
//! Two figures: the program from its start to its end, on a tree of files in a mount namespace, with the processes of this
//! machine (what the namespace itself takes is measured beside it and subtracted); and the parts of it that are ours, without
//! a process. Run with `cargo bench --bench status`, as root for the first.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use gpu_handoff::base::root::Root;
use gpu_handoff::host::functions::read_details;
use gpu_handoff::host::{pci_ids, snapshot};
use gpu_handoff::output::status::{Sight, ids, shown, status};
use gpu_handoff::output::status_table::text;
use gpu_handoff::output::style::Style;

#[path = "../tests/hosts/many.rs"]
mod many;
#[path = "../tests/hosts/namespace.rs"]
mod namespace;
mod rows;
#[path = "../tests/hosts/tree.rs"]
mod tree;

/// What is promised.
const LIMIT: Duration = Duration::from_millis(50);

/// So often each is measured; the median counts.
const ROUNDS: usize = 21;

/// Lines of the real list of PCI ids, in round numbers.
const NAMES: u32 = 38_000;

fn main() -> io::Result<ExitCode> {
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())?;
    tree::build(&many::host(16), dir.path()).map_err(io::Error::other)?;
    long_list(dir.path())?;
    let root = Root::at(dir.path());
    let ours = median(|| {
        let mut snapshot = snapshot::read(&root, &[])?;
        let cards = shown(&snapshot);
        snapshot.complete(&cards, read_details(&root, &cards));
        let names = pci_ids::read(&root, &ids(&snapshot));
        let sight = Sight {
            names: &names,
            ..Sight::of(&snapshot, &[])
        };
        Ok(text(&status(&sight, None), Style::terminal()).len())
    })?;
    say("16 GPUs, reading and writing", ours)?;
    let run = |binary: &'static str, args: &'static [&'static str]| {
        let tree = dir.path().to_owned();
        move || {
            let output = namespace::command(binary, &tree, args).output()?;
            match output.status.success() {
                true => Ok(output.stdout.len()),
                false if namespace::could_not(&output) => Err(io::ErrorKind::Unsupported.into()),
                false => Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned())),
            }
        }
    };
    let nothing = match median(run("/bin/true", &[])) {
        Err(e) if e.kind() == io::ErrorKind::Unsupported => {
            writeln!(
                io::stdout(),
                "no mount namespace here: the program itself was not measured"
            )?;
            return Ok(ExitCode::SUCCESS);
        }
        nothing => nothing?,
    };
    let whole = median(run(env!("CARGO_BIN_EXE_gpu-handoff"), &["status"]))?.saturating_sub(nothing);
    say("16 GPUs, the program from start to end", whole)?;
    let is_kept = whole < LIMIT;
    writeln!(
        io::stdout(),
        "below {} ms: {}",
        LIMIT.as_millis(),
        if is_kept { "yes" } else { "NO" }
    )?;
    Ok(if is_kept { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The list of PCI ids as long as it is in fact.
fn long_list(tree: &Path) -> io::Result<()> {
    let path = tree.join("usr/share/misc/pci.ids");
    let own = fs::read_to_string(&path)?;
    let lines = (0..NAMES).map(|n| format!("\t{:04x}  A device with a name of the usual length\n", n & 0xffff));
    fs::write(path, format!("0001  A vendor\n{}{own}", lines.collect::<String>()))
}

/// How long it takes, in the middle.
fn median(mut work: impl FnMut() -> io::Result<usize>) -> io::Result<Duration> {
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let start = Instant::now();
        std::hint::black_box(work()?);
        times.push(start.elapsed());
    }
    times.sort();
    Ok(times[ROUNDS / 2])
}

fn say(what: &str, took: Duration) -> io::Result<()> {
    let ms = took.as_secs_f64() * 1e3;
    writeln!(io::stdout(), "{what:<44} {ms:>8.1} ms")?;
    rows::tell("status", what, "gpu-handoff", &[("ms", Some(ms))])
}
