//! What the documents say of tests and of the program is so: each fault and each cell of ours in a comparison names what
//! shows it, and commands, settings and links are there.

#![allow(clippy::unwrap_used)] // a test that cannot set itself up should stop there

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use gpu_handoff::base::root::Root;
use gpu_handoff::check::table::ROWS;
use gpu_handoff::commands::cli::Cli;
use gpu_handoff::settings::file;
use gpu_handoff::settings::values::{Services, Settings};

fn top() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(top().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// What is written for people: the README and docs/*.md, by name.
fn documents() -> Vec<(String, String)> {
    let mut names = vec!["README.md".to_owned()];
    for entry in fs::read_dir(top().join("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".md") {
            names.push(format!("docs/{name}"));
        }
    }
    names.sort();
    names.into_iter().map(|name| (name.clone(), read(&name))).collect()
}

/// Words between backquotes.
fn spans(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The names of scenarios of the lab, and of tests.
fn shown() -> BTreeSet<String> {
    fn tests(dir: &Path, all: &mut BTreeSet<String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("lab") {
                tests(&path, all);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let found = text.split("#[test]\n").skip(1);
                let name = |code: &str| code.split("fn ").nth(1)?.split('(').next().map(str::to_owned);
                all.extend(found.filter_map(name));
            }
        }
    }
    let mut all = BTreeSet::new();
    tests(&top().join("tests"), &mut all);
    tests(&top().join("src"), &mut all);
    let scenarios = fs::read_dir(top().join("tests/lab/scenarios")).unwrap();
    let names = scenarios.map(|e| e.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned());
    // These show what the lab's own card and driver can do, without our program.
    all.extend(names.filter(|name| !name.starts_with("fault-") && !name.starts_with("range-")));
    all
}

/// The last cells of a document's rows that do not say what shows them, or name what is not there. Rows of a table whose last
/// heading is not this one are left out.
fn unshown(document: &str, heading: &str, shown: &BTreeSet<String>) -> Vec<String> {
    let mut faults = Vec::new();
    let mut counts = false;
    for line in document.lines() {
        let Some(row) = line.strip_prefix("| ").and_then(|row| row.strip_suffix(" |")) else {
            counts &= line.starts_with("|--");
            continue;
        };
        let last = row.rsplit(" | ").next().unwrap();
        if last == heading {
            counts = true;
        } else if counts {
            let named: Vec<&str> = spans(last).collect();
            // A comparison may say "no" of us as well.
            if named.is_empty() && last != "no" {
                faults.push(format!("nothing shows: {row}"));
            }
            let gone = named.iter().filter(|name| !shown.contains(**name));
            faults.extend(gone.map(|name| format!("there is no {name}: {row}")));
        }
    }
    faults
}

#[test]
fn every_fault_and_every_cell_of_ours_names_what_shows_it() {
    let shown = shown();
    for (name, heading, at_least) in [
        ("docs/faults.md", "shown by", 45),
        ("docs/comparison.md", "gpu-handoff", 30),
    ] {
        let document = read(name);
        let faults = unshown(&document, heading, &shown);
        assert!(faults.is_empty(), "{name}:\n{}", faults.join("\n"));
        let rows = document.lines().filter(|line| line.starts_with("| ")).count();
        assert!(rows >= at_least, "{name} has {rows} rows");
    }
    let shown = BTreeSet::from(["holders".to_owned()]);
    let table = "| fault | shown by |\n|---|---|\n";
    for (row, expected) in [
        ("| a | `holders` |", ""),
        ("| a | `holder` |", "there is no holder: a | `holder`"),
        ("| a | somebody |", "nothing shows: a | somebody"),
    ] {
        assert_eq!(
            unshown(&format!("{table}{row}\n"), "shown by", &shown).join("; "),
            expected
        );
    }
}

/// A document is a page of the package as well: what it links to is beside it there, too.
#[test]
fn links_between_documents_lead_somewhere() {
    let mut faults = Vec::new();
    for (name, text) in documents() {
        let folder = Path::new(&name).parent().unwrap();
        for link in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            if link.starts_with("http") || !top().join(folder).join(link).is_file() {
                faults.push(format!("{name}: {link}"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// A line that is a setting, or the head of a section of them.
fn is_setting(line: &str) -> bool {
    let line = line.trim();
    line.starts_with('[')
        || line
            .split_once(" = ")
            .is_some_and(|(key, _)| key.chars().all(|c| c.is_ascii_lowercase() || "-.".contains(c)))
}

/// What settings are for a VM, or why they are not taken.
fn taken(settings: &str, vmid: &str) -> Result<Settings, String> {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("etc/gpu-handoff");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("config.toml"), settings).unwrap();
    file::load(&Root::at(root.path()), Some(vmid.parse().unwrap())).map_err(|why| why.to_string())
}

/// Why settings are not taken, if they are not.
fn not_taken(settings: &str) -> Option<String> {
    ["111", "112"].iter().find_map(|vmid| taken(settings, vmid).err())
}

/// Each service has its whole time, beside what else a handoff takes: services stop and start one after the other.
#[test]
fn examples_of_settings_leave_time_for_their_services() {
    let mut examples = vec![
        read("debian/examples/inference.toml"),
        read("debian/examples/workstation.toml"),
    ];
    let policies = read("docs/policies.md");
    let marked = "    # /etc/gpu-handoff/conf.d/";
    let blocks = policies.split(marked).skip(1);
    // To the first line that is a sentence again.
    examples.extend(blocks.map(|rest| {
        let lines = rest.lines().skip(1);
        let block = lines.take_while(|line| line.is_empty() || line.starts_with("    "));
        block.map(|line| format!("{}\n", line.trim())).collect()
    }));
    assert_eq!(examples.len(), 4);
    let usual = Settings::default().budgets;
    for example in examples {
        let settings = taken(&example, "111").unwrap_or_else(|why| panic!("{why}\n{example}"));
        let Services::Also(names) = &settings.services else {
            continue;
        };
        let services = settings.budgets.unit * u32::try_from(names.len()).unwrap();
        assert!(settings.budgets.way_out >= usual.way_out + services, "{example}");
        assert!(settings.budgets.way_home >= usual.way_home + services, "{example}");
    }
}

/// In a row or a sentence: `containers = "release"`, or `d3cold = false` of a model.
#[test]
fn settings_in_sentences_are_taken_and_checks_are_there() {
    let (mut settings, mut checks) = (0, 0);
    for (name, text) in documents() {
        for setting in
            spans(&text).filter(|span| !span.contains(['\n', '…']) && is_setting(span) && !span.starts_with('['))
        {
            let of_a_model = format!("[[device]]\nids = \"2b85\"\n{setting}");
            assert!(
                not_taken(setting).is_none() || not_taken(&of_a_model).is_none(),
                "{name}: {setting}"
            );
            settings += 1;
        }
        // "`check` says, as `gpu-new-id`, `gpu-override`, ..."
        for list in text.split(" as `").skip(1) {
            // To the first backquote that no other name follows.
            let end = list.match_indices('`').find(|(at, _)| {
                let is_between = list[*at..].starts_with("`, `") || list[..*at].ends_with(", ");
                !is_between
            });
            let names = list[..end.unwrap().0].split("`, `");
            for id in names.filter(|name| !name.contains(['/', ' ', ':', '.'])) {
                assert!(ROWS.iter().any(|row| row.id == id), "{name}: there is no check {id}");
                checks += 1;
            }
        }
    }
    assert!(settings > 15 && checks > 20, "only {settings} and {checks} were found");
}

#[test]
fn settings_in_documents_are_taken_and_commands_are_ours() {
    let (mut settings, mut commands) = (0, 0);
    for (name, text) in documents() {
        // Blocks that are all settings and comments.
        for block in text
            .split("\n\n")
            .filter(|block| block.lines().all(|l| l.starts_with("    ") || l.is_empty()))
        {
            let lines: Vec<&str> = block.lines().map(str::trim).filter(|l| !l.starts_with('#')).collect();
            if lines.is_empty() || !lines.iter().all(|line| is_setting(line)) {
                continue;
            }
            settings += 1;
            let why = not_taken(&lines.join("\n"));
            assert!(why.is_none(), "{name}: {block}\n{why:?}");
        }
        let mut fenced = false;
        let typed = text.lines().filter(|line| {
            fenced ^= line.starts_with("```");
            fenced || line.starts_with("    ")
        });
        let typed: Vec<&str> = typed
            .map(|l| l.trim_start().trim_start_matches("# "))
            .chain(spans(&text))
            .collect();
        for command in typed.iter().filter_map(|line| line.strip_prefix("gpu-handoff ")) {
            let command = command.split("  ").next().unwrap().split(" || ").next().unwrap();
            let words: Vec<&str> = command.split_whitespace().collect();
            // The form VMID PHASE is told apart before the parser; COMMAND and the like stand for something.
            let is_form = words[0].chars().all(|c| c.is_ascii_digit()) || words[0].chars().all(|c| c.is_uppercase());
            if is_form || command.contains('…') || words.contains(&"--help") {
                continue;
            }
            commands += 1;
            let parsed = Cli::command().try_get_matches_from(std::iter::once("gpu-handoff").chain(words));
            assert!(parsed.is_ok(), "{name}: gpu-handoff {command}");
        }
    }
    assert!(
        settings >= 5 && commands >= 60,
        "only {settings} and {commands} were found"
    );
}

/// The words by which people look for it are in headings of the README.
#[test]
fn the_readme_is_found_and_is_short() {
    let readme = read("README.md");
    let headings: String = readme
        .lines()
        .filter(|l| l.starts_with('#'))
        .collect::<Vec<_>>()
        .join("\n")
        .to_lowercase();
    for words in [
        "proxmox gpu passthrough",
        "nvidia vfio",
        "hot handoff",
        "without a reboot",
        "between host and vm",
        "windows 11",
        "linux vm",
        "single gpu",
        "bind vfio-pci",
        "unbind nvidia",
        "driver_override",
        "function level reset",
        "remove and rescan",
        "fbcon detach",
        "nvidia-persistenced",
        "containers",
        "xid 119",
        "unknown error",
        "flip event timeout",
    ] {
        assert!(headings.contains(words), "no heading has '{words}'");
    }
    let lines = readme.lines().count();
    assert!(lines < 250, "{lines} lines");
    // What nobody may take out without saying why.
    for promise in ["tests/build-deb", "tests/lab/demo", "tests/run", "pretended"] {
        assert!(readme.contains(promise), "{promise}");
    }
}

/// The recorded session has lines of today's form: each act is one of those that the plans of tests/hosts have.
#[test]
fn recorded_lines_are_said_today() {
    let mut plans = String::new();
    for host in fs::read_dir(top().join("tests/hosts")).unwrap() {
        plans += &fs::read_to_string(host.unwrap().path().join("plan.txt")).unwrap_or_default();
    }
    let readme = read("README.md");
    let acts = readme
        .lines()
        .filter_map(|line| line.strip_prefix("gpu-handoff: [")?.split_once("] "));
    let mut count = 0;
    for (number, act) in acts {
        // "vtcon0         take the console off the framebuffer   56 ms", "..., gate shut  240 ms"
        let (_, verb) = act.split_once(' ').unwrap();
        let verb = verb
            .trim()
            .rsplit_once(' ')
            .unwrap()
            .0
            .trim_end_matches(|c: char| c.is_ascii_digit() || " .".contains(c));
        let verb = verb.trim_end_matches(", gate shut");
        assert!(plans.contains(&format!(" {verb} ")), "[{number}] {verb}");
        count += 1;
    }
    assert!(count > 15, "{count} lines");
}
