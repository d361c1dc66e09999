//! The manual pages, written from what the program itself says: its command line (`src/commands/cli.rs`) and its table of
//! settings (`src/settings/table.rs`). `UPDATE_GENERATED=1 cargo test --test manual` writes them anew.

#![allow(clippy::unwrap_used)] // a test that cannot set itself up should stop there

use std::fmt::Write;
use std::fs;
use std::path::Path;

use clap::{Arg, Command, CommandFactory};
use gpu_handoff::commands::cli::Cli;
use gpu_handoff::settings::table::{DEVICE, KEYS, SECTIONS};
use gpu_handoff::settings::values::Settings;

const ENDS: [&str; 6] = [
    "Done, or nothing to do.",
    "Failed, and the host is as it was, but for what the text says.",
    "The command line is wrong.",
    "Refused, and nothing was changed.",
    "Failed, and not restored: the text says what still helps.",
    "A deadline passed while waiting, and nothing was changed.",
];

const FILES: [(&str, &str); 6] = [
    ("/etc/gpu-handoff/config.toml", "Settings, see gpu-handoff.toml(5)."),
    (
        "/etc/gpu-handoff/conf.d/VMID.toml",
        "Settings of one VM; attach writes there what is stopped for it.",
    ),
    (
        "/run/gpu-handoff",
        "Records of what is lent, and the lock that only one run has at a time.",
    ),
    ("/var/lib/gpu-handoff", "What was done so far."),
    (
        "/var/lib/vz/snippets/gpu-handoff",
        "The link by which Proxmox VE finds its hookscript.",
    ),
    (
        "/usr/share/gpu-handoff/snippets/chain",
        "Several hookscripts for one guest, to be copied.",
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

fn head(name: &str, section: u8, what: &str) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let title = name.to_uppercase();
    format!(
        ".\\\" Written by tests/manual.rs from the program itself.\n.TH {} {section} \"\" \"gpu-handoff {version}\"\n.SH NAME\n{} \\- {what}\n",
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
             gpu\\-handoff attach 111\n.RE\n.fi\n.SH COMMANDS\n";
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
    page += ".SH EXIT STATUS\n";
    for (status, text) in ENDS.iter().enumerate() {
        item(&mut page, &status.to_string(), text);
    }
    page += ".SH FILES\n";
    for (file, text) in FILES {
        item(&mut page, file, text);
    }
    page += ".SH EXAMPLES\n";
    item(
        &mut page,
        "gpu-handoff attach 111 --gpu 0",
        "Give VM 111 the hook and the first GPU: the command is shown, and run when that is confirmed.",
    );
    item(
        &mut page,
        "gpu-handoff plan --vm 111",
        "What pre-start would do for VM 111, step by step, or every reason why not.",
    );
    item(
        &mut page,
        "gpu-handoff holders",
        "Who uses a GPU, and what a handoff would do to each.",
    );
    item(
        &mut page,
        "gpu-handoff recover",
        "Bring home whatever is lent to nobody any more.",
    );
    item(
        &mut page,
        "journalctl -t gpu-handoff -o verbose",
        "What was done, with fields.",
    );
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
    writeln!(page, "{}", roff(order)).unwrap();
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
