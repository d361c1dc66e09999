//! `report`: one archive for a bug report, with everything that is asked for in one and nothing that identifies or opens
//! something.
//!
//! What `status`, `check` and `plan` look at is kept while they look: the same looks can be had of the archive, elsewhere
//! ([`crate::commands::replay`]). Every program has a deadline, every file that this process reads itself too, and what cannot
//! be had is a line of the list.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use tracing::info;

use crate::base::clock;
use crate::base::program;
use crate::base::recording;
use crate::base::root::Root;
use crate::check::facts::{Asked, Facts};
use crate::check::line::{Kind, Line};
use crate::commands::check::facts;
use crate::commands::cli::{Cli, Status};
use crate::commands::replay::{checked, plan_of, with_gpu};
use crate::commands::status::screen;
use crate::model::error::{Error, chain};
use crate::model::refusal::{Reason, Refusal};
use crate::output::history::History;
use crate::output::print::{print, shown};
use crate::output::style::Style;
use crate::report::archive::{HOST, LONGEST, Listed, Packed, Report, list_text, pack};
use crate::report::redact::Redactor;
use crate::report::unpack::unpack;
use crate::run::elsewhere::in_time;
use crate::run::session::Session;
use crate::state::store::DIR;

/// How long each program may take. They answer in a second, a long journal on a slow disk in some.
const WITHIN: Duration = Duration::from_secs(20);

/// The form of the JSON: docs/schemas/report.json.
const VERSION: u32 = 1;

/// What is asked of programs of the host: the file that has the answer, and the words.
const PROGRAMS: [(&str, &[&str]); 5] = [
    ("pveversion.txt", &["pveversion", "-v"]),
    // Without the host's name.
    ("uname.txt", &["uname", "-srvmo"]),
    ("lspci.txt", &["lspci", "-nnk"]),
    (
        "kernel-log.txt",
        &[
            "journalctl",
            "-k",
            "-b",
            "-q",
            "--no-pager",
            "--no-hostname",
            "-o",
            "short-monotonic",
        ],
    ),
    (
        "journal.txt",
        &[
            "journalctl",
            "-t",
            "gpu-handoff",
            "-q",
            "--no-pager",
            "--no-hostname",
            "-o",
            "short-iso",
            "-n",
            "5000",
        ],
    ),
];

/// Whose lines of the kernel's log go along, besides those with a card's address.
const DRIVERS: [&str; 17] = [
    "nvidia",
    "nvrm",
    "nvlink",
    "nouveau",
    "vfio",
    "iommu",
    "dmar",
    "amd-vi",
    "xid",
    "drm",
    "fbcon",
    "framebuffer",
    "efifb",
    "simplefb",
    "vgaarb",
    "snd_hda",
    "linux version",
];

/// A file of the report, or why there is none.
type File = (String, Result<String, String>);

/// What `report --json` prints.
#[derive(Debug, Serialize)]
pub struct Shown {
    /// The version of this form.
    pub version: u32,
    /// The archive; None: it was only listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// What is in it.
    pub contents: Vec<Listed>,
}

/// Writes it, or lists what would be in it.
pub(crate) fn run(cli: &Cli, how: &crate::commands::cli::Report) -> Result<(), Error> {
    if !nix::unistd::geteuid().is_root() {
        let why = "a report needs root: to others most of what belongs in it is not shown. Hint: run it as root";
        return Err(Refusal::from(Reason::Other(why.to_owned())).into());
    }
    let now = clock::now();
    let name = format!("gpu-handoff-report-{}", stamp(now));
    let mut packed = packed(&mut Session::recording(), &name, now)?;
    // Whoever gets it is to be able to read it.
    match unpack(&packed.bytes[..]) {
        Ok(tree) => packed.list.extend(tree.left_out.iter().map(|why| not_read(why))),
        Err(why) => packed.list.push(not_read(&why)),
    }
    let mut shown = Shown {
        version: VERSION,
        file: None,
        contents: packed.list,
    };
    if how.list || cli.dry_run {
        return print(cli.json, &shown, || list_text(&shown.contents));
    }
    let file = how
        .output
        .clone()
        .unwrap_or_else(|| PathBuf::from(format!("{name}.tar.gz")));
    write(&file, &packed.bytes)?;
    for line in list_text(&shown.contents).lines() {
        info!("{line}");
    }
    info!(
        "read it before you give it away: 'tar xzf {}' unpacks it",
        file.display()
    );
    shown.file = Some(file.clone());
    print(cli.json, &shown, || format!("{}\n", file.display()))
}

/// What of a report is not read again.
fn not_read(why: &str) -> Listed {
    Listed {
        name: format!("{HOST}/"),
        size: 0,
        missing: Some(format!("'report --replay' does without it: {why}")),
    }
}

/// `20261129-0810`.
fn stamp(time: u64) -> String {
    let text = clock::utc(time);
    let digits: String = text.chars().filter(char::is_ascii_digit).take(12).collect();
    format!("{}-{}", &digits[..8], &digits[8..])
}

/// Writes an archive for root alone, and never in the place of anything.
fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut options = OpenOptions::new();
    let made = options.write(true).create_new(true).mode(0o600).open(path);
    let mut file = made.map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => {
            let why = format!("{} is there already. Hint: --output with another name", path.display());
            Refusal::from(Reason::Other(why)).into()
        }
        _ => Error::io(format!("{} cannot be made", path.display()), e),
    })?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(|e| {
        let _ = std::fs::remove_file(path);
        Error::io(format!("{} cannot be written", path.display()), e)
    })
}

/// The report of a host that keeps what is looked at.
///
/// # Errors
/// Where it cannot be packed; what cannot be looked at is a line of its list.
pub fn packed(host: &mut Session, name: &str, time: u64) -> Result<Packed, Error> {
    let mut report = Report::default();
    let own = own(&host.root).into_iter();
    let nodes: Vec<String> = own.chain(of(host, &mut report, "nodes", hosts)).collect();
    let mut redactor = Redactor::new(&nodes, &of(host, &mut report, "people", users));
    host.tell_who_lives();
    let status = screen(host, true, &Status::default(), Style::terminal());
    report.files.push(file("status.json", status.map(|screen| screen.text)));
    keep(host, &mut report);
    let asked = Asked {
        root: true,
        ..Asked::default()
    };
    let found = facts(host, asked, &[]);
    keep(host, &mut report);
    match &found {
        Ok(facts) => {
            report
                .files
                .push(file("check.txt", checked(facts, false).map(|(text, _)| text)));
            report
                .files
                .push(file("check.json", checked(facts, true).map(|(text, _)| text)));
            report
                .files
                .push(("configuration.txt".to_owned(), Ok(configuration(facts))));
            for vmid in with_gpu(facts) {
                let plan = plan_of(host, false, vmid).map(|(text, _)| text);
                report.files.push(file(&format!("plan-{vmid}.txt"), plan));
                keep(host, &mut report);
            }
        }
        Err(e) => report.files.push(("check.txt".to_owned(), Err(e.to_string()))),
    }
    let past = host.kernel.past();
    let history = past.and_then(|past| {
        let history = History::of(&past, None, None);
        shown(true, &history, String::new).map_err(chain)
    });
    report.files.push(("history.json".to_owned(), history));
    let root = host.root.clone();
    let records = in_time(move || {
        let names = root.names(DIR).unwrap_or_default();
        for name in names.iter().filter(|name| name.ends_with(".json")) {
            let _ = root.bytes(format!("{DIR}/{name}"));
        }
    });
    report
        .missing
        .extend(records.err().map(|why| format!("the records: {why}")));
    keep(host, &mut report);
    let cards: Vec<String> = found.iter().flat_map(cards).collect();
    for (name, words) in PROGRAMS {
        let is_log = name == "kernel-log.txt";
        let counts = |line: &str| !is_log || is_of_the_drivers(line, &cards);
        report.files.push((name.to_owned(), said(&host.root, words, counts)));
    }
    pack(report, &mut redactor, name, time).map_err(|e| Error::io("packing the report", e))
}

fn file(name: &str, text: Result<String, Error>) -> File {
    (name.to_owned(), text.map_err(chain))
}

fn keep(host: &mut Session, report: &mut Report) {
    let entries = host.recorded(&mut report.missing);
    recording::add(&mut report.host, entries);
}

/// Names that are to be replaced. Where they could not be read they are in the report: that is said.
fn of(host: &Session, report: &mut Report, whose: &str, names: fn(&Root) -> Vec<String>) -> Vec<String> {
    let root = host.root.clone();
    in_time(move || names(&root)).unwrap_or_else(|why| {
        let file = format!("names of {whose}");
        report
            .files
            .push((file, Err(format!("{why}, so that none of them is replaced"))));
        Vec::new()
    })
}

/// The addresses of what is on the cards, as the kernel writes them.
fn cards(facts: &Facts) -> Vec<String> {
    let gpus = facts.gpus().into_iter();
    gpus.flat_map(|gpu| facts.card(gpu.addr))
        .map(|f| f.addr.to_string())
        .collect()
}

fn is_of_the_drivers(line: &str, cards: &[String]) -> bool {
    let lower = line.to_ascii_lowercase();
    DRIVERS.iter().any(|word| lower.contains(word)) || cards.iter().any(|card| line.contains(card.as_str()))
}

/// What a line of modprobe.d begins with (modprobe.d(5)): others say nothing, whatever they are.
const COMMANDS: [&str; 6] = ["alias", "blacklist", "install", "options", "remove", "softdep"];

/// The lines of modprobe.d, of lists of modules and of the kernel's command line, as they are understood.
fn configuration(facts: &Facts) -> String {
    let is_one = |line: &&Line| {
        let first = line.words.first().map(String::as_str).unwrap_or_default();
        line.kind != Kind::Modprobe || COMMANDS.contains(&first)
    };
    let lines = facts.texts.lines.iter().filter(is_one).map(|line| {
        let number = line.line.map_or(String::new(), |number| format!(":{number}"));
        format!("{}{number}: {}\n", line.file, line.words.join(" "))
    });
    let unread = facts.texts.unread.iter().map(|why| format!("{why}\n"));
    lines.chain(unread).collect()
}

/// What a program says: those of its lines that count, the first and the last where there are too many.
fn said(root: &Root, words: &[&str], counts: impl Fn(&str) -> bool) -> Result<String, String> {
    let mut lines = Lines::default();
    let end = match root.is_real() {
        true => program::run(words, WITHIN, |line| {
            if counts(line) {
                lines.add(line);
            }
        }),
        false => {
            let said = root.program(words).map_err(|e| e.to_string())?;
            said.stdout
                .lines()
                .filter(|line| counts(line))
                .for_each(|line| lines.add(line));
            if said.ok { Ok(()) } else { Err(said.stderr) }
        }
    };
    match (lines.text(), end) {
        (text, Err(why)) if text.is_empty() => Err(format!("'{}' {}", words.join(" "), why.trim_end())),
        (text, Err(why)) => Ok(format!("{text}({})\n", why.trim_end())),
        (text, Ok(())) => Ok(text),
    }
}

/// Lines, of which the middle is left out where they are more than a file of a report has.
#[derive(Debug, Default)]
struct Lines {
    first: String,
    last: std::collections::VecDeque<String>,
    length: usize,
    left_out: usize,
}

impl Lines {
    fn add(&mut self, line: &str) {
        if self.last.is_empty() && self.first.len() + line.len() < LONGEST / 2 {
            self.first += line;
            self.first.push('\n');
            return;
        }
        self.length += line.len() + 1;
        self.last.push_back(line.to_owned());
        // Room for the placeholders, which may be longer than what they replace.
        while self.length > LONGEST / 4 {
            let Some(line) = self.last.pop_front() else { break };
            self.length -= line.len() + 1;
            self.left_out += 1;
        }
    }

    fn text(self) -> String {
        let mut text = self.first;
        if self.left_out > 0 {
            text += &format!("({} lines are left out here)\n", self.left_out);
        }
        for line in self.last {
            text += &line;
            text.push('\n');
        }
        text
    }
}

/// The name of this host, which no file system holds up.
fn own(root: &Root) -> Option<String> {
    let own = root.line("/proc/sys/kernel/hostname")?;
    own.split('.').next().filter(|name| !name.is_empty()).map(str::to_owned)
}

/// The names of the cluster's nodes.
fn hosts(root: &Root) -> Vec<String> {
    root.names("/etc/pve/nodes").unwrap_or_default()
}

/// The names of people: from 1000 on they are none of the system's (Debian Policy, 9.2.2).
fn users(root: &Root) -> Vec<String> {
    let text = root.text("/etc/passwd").unwrap_or_default();
    let of = |line: &str| {
        let mut fields = line.split(':');
        let (name, uid) = (fields.next()?, fields.nth(1)?.parse::<u32>().ok()?);
        (uid >= 1000 && uid != 65534).then(|| name.to_owned())
    };
    text.lines().filter_map(of).collect()
}
