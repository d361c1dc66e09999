//! The manual pages, written from what the program itself says: its command line (`src/commands/cli.rs`) and its table of
//! settings (`src/settings/table.rs`). `UPDATE_GENERATED=1 cargo test --test manual` writes them anew.

#![allow(clippy::unwrap_used)] // a test that cannot set itself up should stop there
#![allow(clippy::print_stdout)] // what was left out is said

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command as Process;

use clap::{Arg, Command, CommandFactory};
use gpu_handoff::check::table::ROWS;
use gpu_handoff::commands::cli::Cli;
use gpu_handoff::model::error::Exit;
use gpu_handoff::settings::table::{DEVICE, KEYS, SECTIONS};
use gpu_handoff::settings::values::Settings;

/// What each exit code says. The list of [`Exit`]'s names is the match's: a new one does not compile without its sentence.
fn ends() -> Vec<(Exit, &'static str)> {
    let all = [
        Exit::Done,
        Exit::Failed,
        Exit::Usage,
        Exit::Refused,
        Exit::NotRestored,
        Exit::Overdue,
    ];
    let says = |exit: &Exit| match exit {
        Exit::Done => "Done, or nothing to do.",
        Exit::Failed => "Failed, and the host is as it was, but for what the text says.",
        Exit::Usage => "The command line is wrong.",
        Exit::Refused => {
            "Refused, and nothing was changed. Of check: a finding is a FAIL, and a handoff would not work."
        }
        Exit::NotRestored => "Failed, and not restored: the text says what still helps.",
        Exit::Overdue => "A deadline passed while waiting, and nothing was changed.",
    };
    all.into_iter().map(|exit| (exit, says(&exit))).collect()
}

const FILES: [(&str, &str); 20] = [
    ("/etc/gpu-handoff/config.toml", "Settings, see gpu-handoff.toml(5)."),
    (
        "/etc/gpu-handoff/conf.d/*.toml",
        "More of them, read after it by their names.",
    ),
    (
        "/etc/gpu-handoff/conf.d/VMID.toml",
        "Settings of one VM; attach writes there what is stopped for it.",
    ),
    (
        "/etc/pve/qemu-server/VMID.conf",
        "The VM's config, Proxmox's own: its hostpci lines say which GPUs leave.",
    ),
    (
        "/run/gpu-handoff",
        "Records of what is lent, the lock that only one run has at a time, and what people were told in this boot.",
    ),
    (
        "/var/lib/gpu-handoff",
        "What was done so far: some hundred handoffs, for history.",
    ),
    (
        "/var/lib/gpu-handoff/attached",
        "The lines that attach has set in guests' configs, for detach.",
    ),
    (
        "/var/lib/gpu-handoff/stopped-*.json",
        "What is stopped for VMs, for as long as it is: after a boot what does not run of it is named.",
    ),
    (
        "/var/lib/gpu-handoff/prepared",
        "Each file that prepare has changed, as it was before.",
    ),
    (
        "/var/lib/vz/snippets/gpu-handoff",
        "The link by which Proxmox VE finds its hookscript.",
    ),
    (
        "/usr/share/pve-manager/templates/default/gpu-handoff-subject.txt.hbs",
        "With gpu-handoff-body.txt.hbs beside it: what a message looks like that goes through Proxmox VE's notifications.",
    ),
    (
        "gpu-handoff-report-DATE-TIME.tar.gz",
        "In the current folder: what report writes.",
    ),
    (
        "/usr/share/gpu-handoff/snippets/chain",
        "Several hookscripts for one guest, to be copied.",
    ),
    (
        "/usr/share/doc/gpu-handoff",
        "More than a manual page holds: policies by example, troubleshooting, every message, schemas of what --json prints.",
    ),
    (
        "gpu-handoff-watch@VMID.service",
        "Waits until nobody needs the VM's GPU any more; pre-start has it started.",
    ),
    (
        "gpu-handoff-home@VMID.service",
        "Brings it home then; the watcher starts it.",
    ),
    (
        "gpu-handoff-recover.service",
        "Brings home at boot what is lent to nobody any more: after a soft reboot, which keeps /run.",
    ),
    (
        "gpu-handoff-stopped.service",
        "Names at the end of a boot what was stopped for a VM when the host went down, and does not run.",
    ),
    (
        "gpu-handoff-tell@WHO.service",
        "Tells people, and writes the metrics, after a handoff; nobody waits for it.",
    ),
    (
        "gpu-to-vfio.service, gpu-to-nvidia.service",
        "Handoffs by hand, for systemctl start; not enabled.",
    ),
];

/// Variables that are heeded, and for what.
const ENVIRONMENT: [(&str, &str); 5] = [
    (
        "GPU_PCI",
        "Stands for --gpu where neither that nor --vm is given, in to_vfio, to_nvidia, plan, status and holders: exported, it \
         leaves other GPUs out of what these show. The hook warns of it, and does not use it.",
    ),
    (
        "GPU_AUDIO_PCI",
        "Beside GPU_PCI: the sound function of that card, which moves with it anyway. One of another card is refused.",
    ),
    (
        "LXC_RESTART_IDS",
        "Containers, by their numbers with spaces between, that to_nvidia restarts (pct reboot) when the GPU is home. The hook \
         does not use it.",
    ),
    ("NO_COLOR", "Where it is set and not empty, nothing is coloured."),
    (
        "TMPDIR",
        "Where report unpacks an archive for --replay, and the one that it has made; /tmp by default.",
    ),
];

/// Command lines, and what they are for.
const EXAMPLES: [(&str, &str); 15] = [
    (
        "gpu-handoff attach 111 --gpu 0",
        "Give VM 111 the hook and the first GPU: the command is shown, and run when that is confirmed.",
    ),
    (
        "qm set 111 --hookscript local:snippets/gpu-handoff",
        "The hook alone, by Proxmox's own command. From then on a start of the VM takes its GPU, and its end brings it home.",
    ),
    (
        "gpu-handoff check --vm 111",
        "Before the first start: what of this host or of the VM's config is in the way, and what mends it.",
    ),
    (
        "gpu-handoff plan --vm 111",
        "What pre-start would do for VM 111, step by step, or every reason why not; all settings with their origin.",
    ),
    (
        "gpu-handoff holders",
        "Who uses a GPU, and what a handoff would do to each.",
    ),
    (
        "gpu-handoff status --watch",
        "Every GPU, shown anew whenever something happens; Ctrl-C ends it.",
    ),
    (
        "gpu-handoff to_vfio --gpu 01:00",
        "Hand a GPU over without a VM. It stays so until to_nvidia.",
    ),
    ("gpu-handoff to_nvidia --gpu 01:00", "Bring it home."),
    (
        "gpu-handoff recover",
        "Bring home whatever is lent to nobody any more, or say why not.",
    ),
    (
        "gpu-handoff report",
        "Write one archive for a bug report: what status, check and plan say and see, the drivers' lines of the kernel's log, our \
         own records, history and journal. Of guests' configs only the lines about devices go along; names of hosts and people, \
         UUIDs, serial numbers, MAC and IP addresses, passwords and keys are replaced.",
    ),
    (
        "gpu-handoff report --replay FILE plan --vm 111",
        "What plan says for VM 111 of the host that a report is of; without plan or check, both.",
    ),
    (
        "gpu-handoff prepare; gpu-handoff prepare --apply",
        "Show what of the host's boot configuration is in the way; then change it. prepare --revert takes that back.",
    ),
    (
        "gpu-handoff history --vm 111 --since 7d -v",
        "The handoffs of a week, each step with its time as a bar.",
    ),
    (
        "gpu-handoff status --json",
        "For programs: the form is described in /usr/share/doc/gpu-handoff/schemas.",
    ),
    (
        "journalctl -t gpu-handoff -o verbose",
        "What was done, with fields: VMID, PHASE, DEVICE, DURATION_USEC, MESSAGE_ID.",
    ),
];

/// Settings for a common host each, for the page of the settings.
const SETTINGS: [(&str, &str); 4] = [
    (
        "services = \"ollama.service\"",
        "A server whose service has the GPU while no VM wants it: it is stopped for the VM, and started again.",
    ),
    ("containers = \"release\"", "The same for what runs inside containers."),
    (
        "display-manager = \"stop\"",
        "A workstation whose desktop is on the GPU: it ends when the VM starts.",
    ),
    (
        "[vm.111]\non-backup = \"refuse\"",
        "A VM whose backup, while it is off, is to fail, so that the GPU stays with the host at night.",
    ),
];

/// Text as roff takes it: a dash is a dash of a command, and no line of it is an instruction.
fn roff(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    if text.starts_with(['.', '\'']) {
        format!("\\&{text}")
    } else {
        text
    }
}

fn item(page: &mut String, name: &str, text: &str) {
    let full_stop = if text.is_empty() || text.ends_with('.') {
        ""
    } else {
        "."
    };
    writeln!(page, ".TP\n\\fB{}\\fR\n{}{full_stop}", roff(name), roff(text)).unwrap();
}

/// The day of the version: of the first entry in debian/changelog, "Fri, 20 Nov 2026 10:00:00 +0000".
fn day() -> String {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let log = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("debian/changelog")).unwrap();
    let signed = log.lines().find(|line| line.starts_with(" -- ")).unwrap();
    let mut words = signed.split(", ").nth(1).unwrap().split_whitespace();
    let (day, month, year) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
    let month = MONTHS.iter().position(|m| *m == month).unwrap() + 1;
    format!("{year}-{month:02}-{day:0>2}")
}

fn head(name: &str, section: u8, what: &str) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let day = day();
    let title = name.to_uppercase();
    format!(
        ".\\\" Written by tests/manual.rs from the program itself.\n.TH {} {section} \"{day}\" \"gpu-handoff {version}\"\n.SH NAME\n{} \\- {what}\n",
        roff(&title),
        roff(name)
    )
}

fn named(arg: &Arg) -> String {
    let value = arg.get_value_names().map(|names| names[0].as_str()).unwrap_or_default();
    let long = arg.get_long().map(|l| format!("--{l}")).unwrap_or_default();
    let short = arg.get_short().map(|s| format!("-{s}")).unwrap_or_default();
    let flags = [short, long].into_iter().filter(|f| !f.is_empty()).collect::<Vec<_>>();
    match (flags.is_empty(), arg.get_action().takes_values()) {
        (true, _) => value.to_owned(),
        (_, true) => format!("{} {value}", flags.join(", ")),
        (_, false) => flags.join(", "),
    }
}

fn options(page: &mut String, command: &Command, global: bool) {
    for arg in command
        .get_arguments()
        .filter(|a| !a.is_hide_set() && a.get_id() != "help" && a.is_global_set() == global)
    {
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        item(page, &named(arg), &help);
    }
}

fn page_8() -> String {
    let mut cli = Cli::command();
    cli.build();
    let mut page = head(
        "gpu-handoff",
        8,
        "lend the host's NVIDIA GPU to a Proxmox VE guest and bring it home",
    );
    page += ".SH SYNOPSIS\n.B gpu\\-handoff\n.I COMMAND\n[\\fIOPTIONS\\fR]\n.br\n.B gpu\\-handoff\n.I VMID PHASE\n";
    page += ".SH DESCRIPTION\n";
    writeln!(
        page,
        "{}",
        roff(
            "The program is a hookscript of Proxmox VE, which calls it with a guest's number and a phase. At pre-start it \
             hands the GPUs of the VM's own hostpci lines, with all their functions, from the host's drivers to vfio-pci, \
             at post-stop it brings each function home to the driver that it had. It proves first that nobody uses a GPU, \
             has a deadline for every act, and undoes what it did when an act fails."
        )
    )
    .unwrap();
    page += ".PP\nAttached to a VM once, nothing more is to be done:\n.PP\n.nf\n.RS\n\
             gpu\\-handoff attach 111 \\-\\-gpu 0\n.RE\n.fi\n.SH COMMANDS\n";
    for command in cli
        .get_subcommands()
        .filter(|c| !c.is_hide_set() && c.get_name() != "help")
    {
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        item(&mut page, command.get_name(), &about);
        let mut own = String::new();
        options(&mut own, command, false);
        if !own.is_empty() {
            write!(page, ".RS\n{own}.RE\n").unwrap();
        }
    }
    page += ".SH OPTIONS\n";
    options(&mut page, &cli, true);
    options(&mut page, &cli, false);
    page += ".SH CHECKS\n";
    writeln!(
        page,
        "{}",
        roff("What check looks at, by the names that --skip takes, with the worst that each can say.")
    )
    .unwrap();
    for room in ROWS.chunk_by(|a, b| a.room == b.room) {
        writeln!(page, ".SS {}", roff(room[0].room.title())).unwrap();
        for row in room {
            item(&mut page, row.id, &format!("{} ({})", row.what, row.severity.word()));
        }
    }
    page += ".SH EXIT STATUS\n";
    for (exit, text) in ends() {
        item(&mut page, &(exit as u8).to_string(), text);
    }
    page += ".SH FILES\n";
    for (file, text) in FILES {
        item(&mut page, file, text);
    }
    page += ".SH ENVIRONMENT\n";
    for (variable, text) in ENVIRONMENT {
        item(&mut page, variable, text);
    }
    page += ".SH EXAMPLES\n";
    for (command, text) in EXAMPLES {
        item(&mut page, command, text);
    }
    page + ".SH SEE ALSO\n.BR gpu\\-handoff.toml (5),\n.BR qm (1),\n.BR pct (1)\n"
}

fn page_5() -> String {
    let mut defaults = Settings::default();
    let mut page = head("gpu-handoff.toml", 5, "settings of gpu\\-handoff");
    page +=
        ".SH SYNOPSIS\n.I /etc/gpu\\-handoff/config.toml\n.br\n.I /etc/gpu\\-handoff/conf.d/*.toml\n.SH DESCRIPTION\n";
    let order = "Every setting is optional. Files in conf.d are read after config.toml, by their names; of a setting that is \
                 given twice the later one counts, and what a VM's own section [vm.VMID] says counts more. A file that is called \
                 by a VM's number, as conf.d/111.toml, is for that VM alone, without a section, and counts most: 'gpu-handoff \
                 attach' writes such ones. 'gpu-handoff plan' shows each setting with its value and where it came from. What is \
                 not understood refuses the way out, never the way home.";
    let places = "A setting without a section stands above the first line in brackets of its file: what is below such a line is of that \
                  section alone. One of a section stands below the section's name in brackets, or wherever one without a \
                  section may stand, with that name and a dot before it: 'deadlines.way-out = 90'. So it does for one VM, below \
                  [vm.111].";
    writeln!(page, "{}\n.PP\n{}", roff(order), roff(places)).unwrap();
    for (section, about) in [("", "")].iter().chain(SECTIONS.iter()) {
        writeln!(
            page,
            ".SH {}",
            if section.is_empty() {
                "SETTINGS".to_owned()
            } else {
                format!("[{section}]")
            }
        )
        .unwrap();
        if !about.is_empty() {
            writeln!(page, "{}", roff(about)).unwrap();
        }
        for key in KEYS.iter().filter(|key| key.place().0 == *section) {
            let value = (key.field)(&mut defaults);
            item(&mut page, &format!("{} = {}", key.place().1, value.toml()), key.about);
            let words = value.words();
            if words.is_empty() {
                writeln!(page, "It must be {}.", roff(&value.allowed())).unwrap();
            } else {
                page += ".RS\n";
                for (word, means) in words {
                    item(&mut page, &format!("\"{word}\""), &means);
                }
                page += ".RE\n";
            }
        }
    }
    page += ".SH [[device]]\nWhat is known of a model of GPU, once for each. Of two for a model the one for fewer ids counts.\n";
    for key in DEVICE {
        item(&mut page, &format!("{} = {}", key.name, key.example), key.about);
    }
    page += ".SH FILES\n";
    item(
        &mut page,
        "/etc/gpu-handoff/config.toml",
        "As the package brings it: every setting with its default, none in force.",
    );
    item(
        &mut page,
        "/etc/gpu-handoff/conf.d/*.toml",
        "Settings of yours, by file.",
    );
    item(
        &mut page,
        "/usr/share/doc/gpu-handoff/examples",
        "Settings for common hosts, to be copied to conf.d.",
    );
    page += ".SH EXAMPLES\n";
    for (n, (setting, text)) in SETTINGS.iter().enumerate() {
        // A heading begins a paragraph by itself.
        let paragraph = if n == 0 { "" } else { ".PP\n" };
        writeln!(page, "{paragraph}{}\n.nf\n.RS", roff(text)).unwrap();
        setting
            .lines()
            .for_each(|line| writeln!(page, "{}", roff(line)).unwrap());
        page += ".RE\n.fi\n";
    }
    page + ".SH SEE ALSO\n.BR gpu\\-handoff (8)\n"
}

#[test]
fn the_pages_are_what_the_program_says() {
    for (name, page) in [("gpu-handoff.8", page_8()), ("gpu-handoff.toml.5", page_5())] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/man").join(name);
        if std::env::var_os("UPDATE_GENERATED").is_some() {
            fs::write(&path, &page).unwrap();
        }
        let kept = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            kept == page,
            "{} is stale: run UPDATE_GENERATED=1 cargo test --test manual",
            path.display()
        );
    }
}

/// Words of a page, without roff's own.
fn plain(page: &str) -> String {
    page.replace("\\-", "-").replace("\\fB", "").replace("\\fR", "")
}

/// Whether a page has an item of this name, with something below it.
fn has_item(page: &str, name: &str) -> bool {
    let page = plain(page);
    page.split(".TP\n").skip(1).any(|item| {
        let mut lines = item.lines();
        lines.next() == Some(name)
            && lines
                .next()
                .is_some_and(|text| text.len() > 5 && !text.starts_with('.'))
    })
}

#[test]
fn each_exit_code_each_check_each_command_and_each_setting_is_in_the_manual() {
    let (page_8, page_5) = (page_8(), page_5());
    for (exit, _) in ends() {
        assert!(has_item(&page_8, &(exit as u8).to_string()), "{exit:?}");
    }
    for row in ROWS {
        assert!(has_item(&page_8, row.id), "the check {}", row.id);
    }
    let cli = Cli::command();
    for command in cli.get_subcommands().filter(|c| !c.is_hide_set()) {
        assert!(has_item(&page_8, command.get_name()), "{}", command.get_name());
    }
    let mut defaults = Settings::default();
    for key in KEYS {
        let default = (key.field)(&mut defaults).toml();
        assert!(
            has_item(&page_5, &format!("{} = {default}", key.place().1)),
            "{}",
            key.name
        );
    }
    for key in DEVICE {
        assert!(
            has_item(&page_5, &format!("{} = {}", key.name, key.example)),
            "{}",
            key.name
        );
    }
}

/// The examples of settings are settings, and the commands are ours.
#[test]
fn the_examples_are_taken_as_they_are() {
    for (setting, _) in SETTINGS {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("etc/gpu-handoff");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("config.toml"), setting).unwrap();
        let vmid = "111".parse().unwrap();
        let loaded = gpu_handoff::settings::file::load(&gpu_handoff::base::root::Root::at(root.path()), Some(vmid));
        assert!(loaded.is_ok(), "{setting}: {:?}", loaded.err());
    }
    for words in EXAMPLES.iter().flat_map(|(command, _)| command.split("; ")) {
        if let Some(arguments) = words.strip_prefix("gpu-handoff ") {
            let words = std::iter::once("gpu-handoff").chain(arguments.split(' '));
            assert!(Cli::command().try_get_matches_from(words).is_ok(), "{arguments}");
        }
    }
}

/// man's own formatter and mandoc find nothing to complain of, at the width of a terminal. A machine without one of them
/// leaves that one out; tests/run installs both.
#[test]
fn the_pages_render_at_80_columns_without_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in [("gpu-handoff.8", page_8()), ("gpu-handoff.toml.5", page_5())] {
        let page = folder.path().join(name);
        fs::write(&page, text).unwrap();
        let man = Process::new("man")
            .args(["--warnings", "--encoding=utf8", "-P", "cat", "-l"])
            .arg(&page)
            .envs([("MANWIDTH", "80"), ("LC_ALL", "C.UTF-8"), ("MANROFFOPT", "-ww")])
            .output();
        if let Ok(output) = man {
            let (out, err) = (String::from_utf8(output.stdout), String::from_utf8(output.stderr));
            let (out, err) = (out.unwrap(), err.unwrap());
            assert!(output.status.success() && err.is_empty(), "{name}: {err}");
            let wide: Vec<&str> = out.lines().filter(|line| line.chars().count() > 80).collect();
            assert!(out.lines().count() > 50 && wide.is_empty(), "{name}: {wide:?}");
        } else {
            println!("man is not installed: {name} was not rendered");
        }
        match Process::new("mandoc")
            .args(["-T", "lint", "-W", "warning"])
            .arg(&page)
            .output()
        {
            Ok(lint) => {
                let said = String::from_utf8(lint.stdout).unwrap();
                assert!(said.is_empty(), "{name}: {said}");
            }
            Err(_) => println!("mandoc is not installed: {name} was not linted"),
        }
    }
}
