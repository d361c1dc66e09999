//! What a terminal of 80 columns shows: `status` in each state there is a word for, with no GPU, one and sixteen, and IOMMU
//! groups. The texts are in tests/screens; UPDATE_SCREENS=1 writes them, to be read before they are committed.

#![allow(clippy::unwrap_used)] // a test that cannot set itself up should stop there

#[path = "hosts/many.rs"]
mod many;
#[path = "screens/states.rs"]
mod states;
#[path = "hosts/tree.rs"]
mod tree;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use gpu_handoff::base::root::Root;
use gpu_handoff::base::text::columns;
use gpu_handoff::host::pci_ids;
use gpu_handoff::host::snapshot;
use gpu_handoff::output::groups;
use gpu_handoff::output::status::Status;
use gpu_handoff::output::status_table::{plain, text};
use gpu_handoff::output::style::Style;

/// Hosts of tests/hosts whose groups tell something.
const HOSTS: [&str; 6] = [
    "acs-less",
    "host-bridge-in-group",
    "noiommu",
    "nvswitch",
    "two-same-model",
    "usb-c",
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/screens")
}

/// What differs, or nothing.
fn compare(name: &str, shown: &str) -> Option<String> {
    let path = folder().join(format!("{name}.txt"));
    if std::env::var_os("UPDATE_SCREENS").is_some_and(|v| v == "1") {
        fs::write(path, shown).unwrap();
        return None;
    }
    let expected = fs::read_to_string(path).unwrap_or_default();
    (expected != shown).then(|| format!("{name}:\n{shown}\nshould be:\n{expected}"))
}

fn groups_of(folder: &Path) -> groups::Groups {
    let text = fs::read_to_string(folder.join("host")).unwrap();
    groups_in(&text)
}

fn groups_in(host: &str) -> groups::Groups {
    let dir = tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap();
    tree::build(host, dir.path()).unwrap();
    let root = Root::at(dir.path());
    let snapshot = snapshot::read(&root, &[]).unwrap();
    let names = pci_ids::read(&root, &groups::ids(&snapshot));
    let cmdline = root.line("/proc/cmdline").unwrap_or_default();
    groups::groups(&snapshot, &names, &cmdline, None)
}

#[test]
fn every_state_has_its_screen() {
    let mut problems = Vec::new();
    for case in states::cases() {
        let shown = text(&case.status(), Style::terminal());
        problems.extend(compare(&format!("status-{}", case.name), &shown));
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn every_state_has_a_word_of_its_own() {
    let words = |status: &Status| {
        serde_json::to_value(status.cards.first()?.state)
            .ok()?
            .as_str()
            .map(str::to_owned)
    };
    let seen: BTreeSet<String> = states::cases()
        .iter()
        .filter_map(|case| words(&case.status()))
        .collect();
    let all = [
        "by-hand",
        "handing-over",
        "host",
        "interrupted",
        "late",
        "missing",
        "nobody",
        "stranded",
        "stuck",
        "vm",
        "wedged",
    ];
    assert_eq!(seen.iter().map(String::as_str).collect::<Vec<_>>(), all);
}

#[test]
fn groups_have_their_screens() {
    let mut problems = Vec::new();
    for host in HOSTS {
        let shown = groups::text(
            &groups_of(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hosts").join(host)),
            Style::terminal(),
        );
        problems.extend(compare(&format!("groups-{host}"), &shown));
    }
    for gpus in [0, 1, 16] {
        let shown = groups::text(&groups_in(&many::host(gpus)), Style::terminal());
        problems.extend(compare(&format!("groups-of-{gpus}"), &shown));
    }
    // What splits them: a card of which a part is in another group, by an override on the command line.
    let split = many::host(1)
        .replacen(
            "iommu_groups/20\nreset_method = flr\n",
            "iommu_groups/21\nreset_method = flr\n",
            1,
        )
        .replace(
            "intel_iommu=on",
            "intel_iommu=on pcie_acs_override=downstream,multifunction",
        );
    problems.extend(compare(
        "groups-split",
        &groups::text(&groups_in(&split), Style::terminal()),
    ));
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn no_line_of_a_screen_is_longer_than_80_columns() {
    let mut screens = 0;
    for entry in fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "txt") {
            continue;
        }
        screens += 1;
        for (n, line) in (1..).zip(fs::read_to_string(&path).unwrap().lines()) {
            assert!(columns(line) <= 80, "{}:{n}: {} columns", path.display(), columns(line));
        }
    }
    assert!(screens >= 20, "only {screens} screens");
}

/// Whatever somebody else has chosen a name for is on one line, in its columns.
#[test]
fn foreign_names_neither_wrap_nor_colour_a_line() {
    for case in states::cases() {
        let mut case = case;
        for holder in &mut case.snapshot.holders {
            holder.comm = "\u{1b}[31m\u{4e2d}\u{6587}a-name-that-is-long-enough-for-a-novel-of-its-own\n".to_owned();
        }
        for named in &mut case.names {
            named.device = Some("\u{4e2d}".repeat(60));
        }
        let shown = text(&case.status(), Style::terminal());
        assert!(!shown.contains('\u{1b}'), "{shown}");
        assert!(shown.lines().all(|l| columns(l) <= 80), "{shown}");
        let coloured = Style {
            colours: true,
            ..Style::terminal()
        };
        let coloured = text(&case.status(), coloured);
        let mut pieces = coloured.split('\u{1b}');
        let first = pieces.next().unwrap().to_owned();
        let without: String = pieces.map(|piece| piece.split_once('m').unwrap().1).collect();
        assert_eq!(first + &without, shown, "{}", case.name);
    }
}

#[test]
fn plain_lines_are_those_of_the_script() {
    let cases = states::cases();
    let of = |name: &str| plain(&cases.iter().find(|c| c.name == name).unwrap().status());
    assert_eq!(of("no-gpu"), "");
    assert_eq!(
        of("host"),
        "[gpu-handoff] 0000:01:00.0 driver=nvidia\n[gpu-handoff] 0000:01:00.1 driver=snd_hda_intel\n"
    );
    assert_eq!(
        of("vm"),
        "[gpu-handoff] 0000:01:00.0 driver=vfio-pci\n[gpu-handoff] 0000:01:00.1 driver=vfio-pci\n"
    );
    assert_eq!(
        of("stranded"),
        "[gpu-handoff] 0000:01:00.0 driver=none\n[gpu-handoff] 0000:01:00.1 driver=none\n"
    );
}
