//! What `check` says: every check on a host where it finds nothing and on one where it finds something, word for word, and
//! whole reports of five hosts.
//!
//! The hosts are trees of files, made from one that is ready for handoffs (tests/check/host) and changed in code
//! (tests/check/cases.rs). UPDATE_CHECK=1 writes the texts instead of comparing them; they are read before they are
//! committed.

#![allow(clippy::unwrap_used)] // a test that cannot set itself up should stop there

#[allow(dead_code)] // what plans need
#[path = "hosts/asked.rs"]
mod asked;
#[path = "check/cases.rs"]
mod cases;
#[path = "check/hosts.rs"]
mod hosts;
#[path = "check/screens.rs"]
mod screens;
#[path = "hosts/tree.rs"]
mod tree;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use gpu_handoff::check::finding::{Finding, Level};
use gpu_handoff::check::read::Part;
use gpu_handoff::check::report::{self, Report, Said};
use gpu_handoff::check::table::ROWS;
use gpu_handoff::output::check::{shown, text};

use cases::CASES;
use hosts::{Ask, READY, facts, host};

/// What one check says of a host.
fn findings(row: &str, ask: &Ask) -> Vec<Finding> {
    let row = ROWS
        .iter()
        .find(|r| r.id == row)
        .unwrap_or_else(|| panic!("there is no check {row}"));
    let facts = facts(&host(ask), ask);
    (row.look)(&facts).unwrap_or_else(|why| vec![why.into()])
}

/// The same as it is shown.
fn lines(row: &'static str, findings: Vec<Finding>) -> String {
    let row = ROWS.iter().find(|r| r.id == row).unwrap();
    let text = text(&Report(vec![Said { row, findings }]));
    let body = text.split("= SUMMARY =").next().unwrap();
    body.lines()
        .skip(2)
        .filter(|l| !l.is_empty())
        .fold(String::new(), |all, line| all + "  " + line + "\n")
}

fn compare(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/check").join(name);
    if std::env::var_os("UPDATE_CHECK").is_some_and(|v| v == "1") {
        fs::write(path, text).unwrap();
        return;
    }
    let expected = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
    let same = expected.lines().zip(text.lines()).take_while(|(a, b)| a == b).count();
    let at = |text: &str| text.lines().nth(same).unwrap_or("(the end)").to_owned();
    assert!(
        expected == text,
        "{name}:{}:\n  expected: {}\n  now:      {}",
        same + 1,
        at(&expected),
        at(text)
    );
}

#[test]
fn every_check_has_a_host_where_it_finds_nothing_and_one_where_it_finds_its_worst() {
    let table: Vec<&str> = ROWS.iter().map(|r| r.id).collect();
    let tried: Vec<&str> = CASES.iter().map(|c| c.row).collect();
    assert_eq!(tried, table, "a case for each check, in the order of the table");
    let (mut golden, mut problems) = (String::new(), Vec::new());
    for case in CASES {
        let severity = ROWS.iter().find(|r| r.id == case.row).unwrap().severity;
        let (well, ill) = (findings(case.row, &case.well), findings(case.row, &case.ill));
        let worst = |found: &[Finding]| found.iter().filter(|f| f.looked).map(|f| f.level).max();
        if worst(&well).is_none_or(|w| w >= severity.min(Level::Notice) && w != Level::Skip) && case.row != "ct" {
            problems.push(format!(
                "{}: on the host where it should find nothing: {well:?}",
                case.row
            ));
        }
        if worst(&ill) != Some(severity) {
            problems.push(format!("{}: its worst is {severity:?}, and it says {ill:?}", case.row));
        }
        let no_remedy = ill.iter().find(|f| f.level >= Level::Warn && f.hint.is_none());
        if let Some(finding) = no_remedy.filter(|_| !["gpu-usb"].contains(&case.row)) {
            problems.push(format!("{}: nothing mends it: {}", case.row, finding.text));
        }
        write!(
            golden,
            "== {}\n{}--\n{}\n",
            case.row,
            lines(case.row, well),
            lines(case.row, ill)
        )
        .unwrap();
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert!(
        golden.lines().all(|l| l.chars().count() <= 82),
        "a line is wider than a terminal"
    );
    compare("rows.txt", &golden);
}

/// The page for those who have a finding and look it up: each check with the worst that it says, and what mends that.
#[test]
fn the_page_of_checks_has_each_at_its_worst() {
    let cell = |text: &str| {
        text.replace('\\', "\\\\")
            .replace('|', "\\|")
            .replace('<', "&lt;")
            .replace('*', "\\*")
    };
    let mut page = "# Checks\n\n\
        Written by tests/check.rs from the checks themselves: what each looks at, the worst that it can say, that sentence as \
        one host has it,\nand what mends it. `gpu-handoff check --list` lists them, `--skip ID` leaves some out. A `FAIL` ends \
        `check` with exit 3.\n"
        .to_owned();
    let mut room = "";
    for (row, case) in ROWS.iter().zip(CASES) {
        if room != row.room.title() {
            room = row.room.title();
            write!(
                page,
                "\n## {room}\n\n| check | looks at | worst | says | what mends it |\n|---|---|---|---|---|\n"
            )
            .unwrap();
        }
        let found = findings(case.row, &case.ill);
        let worst = found.iter().find(|f| f.level == row.severity).unwrap();
        let at = worst.place.as_ref().map_or(String::new(), |place| format!("{place}: "));
        writeln!(
            page,
            "| `{}` | {} | {} | {}{} | {} |",
            row.id,
            cell(row.what),
            row.severity.word(),
            cell(&at),
            cell(&worst.text),
            cell(worst.hint.as_deref().unwrap_or("-"))
        )
        .unwrap();
    }
    compare("../../docs/checks.md", &page);
}

#[test]
fn whole_reports_read_as_their_texts_say() {
    for (name, ask) in screens::SCREENS {
        let report = report::run(&facts(&host(ask), ask), &[]);
        let text = text(&report);
        let wide: Vec<&str> = text.lines().filter(|l| l.chars().count() > 80).collect();
        assert!(wide.is_empty(), "{name}: {wide:?}");
        compare(&format!("{name}.txt"), &text);
    }
    let of = |name: &str| {
        let ask = screens::SCREENS.iter().find(|(n, _)| *n == name).unwrap().1;
        report::run(&facts(&host(&ask), &ask), &[]).summary()
    };
    let ready = of("ready");
    assert_eq!((ready.failures, ready.warnings, ready.not_looked_at), (0, 0, 0));
    assert!(of("planted").failures >= 4);
}

#[test]
fn what_gave_no_answer_is_not_looked_at_and_the_rest_is() {
    let whole = report::run(&facts(&host(&READY), &READY), &[]).summary();
    for (part, at_least) in [
        (Part::Host, 20),
        (Part::Proxmox, 10),
        (Part::Containers, 1),
        (Part::Modules, 1),
    ] {
        let ask = Ask {
            missed: Some(part),
            ..READY
        };
        let report = report::run(&facts(&host(&ask), &ask), &[]);
        let summary = report.summary();
        assert!(summary.not_looked_at >= at_least, "{part:?}: {summary:?}");
        assert!(summary.failures <= whole.failures + 1, "{part:?}: {}", text(&report));
        assert!(text(&report).contains("SKIP: "), "{part:?}");
    }
}

#[test]
fn what_is_to_be_left_out_is_left_out_and_said() {
    let ask = Ask { root: false, ..READY };
    let facts = facts(&host(&ask), &ask);
    assert_eq!(report::run(&facts, &[]).summary().failures, 1);
    let report = report::run(&facts, &["root"]);
    assert_eq!(report.summary().failures, 0);
    assert!(text(&report).contains("SKIP: root: left out, as asked"));
}

#[test]
fn the_form_in_json_has_a_version_and_every_finding() {
    let report = report::run(&facts(&host(&READY), &READY), &[]);
    let value = serde_json::to_value(shown(&report)).unwrap();
    assert_eq!(value["version"], 1);
    let findings = value["findings"].as_array().unwrap();
    assert_eq!(
        u64::try_from(findings.len()).unwrap(),
        value["summary"]["total"].as_u64().unwrap()
    );
    // All that its schema names, and nothing else.
    let schema = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/schemas/check.json")).unwrap();
    let schema: serde_json::Value = serde_json::from_str(&schema).unwrap();
    let names =
        |value: &serde_json::Value| -> BTreeSet<String> { value.as_object().unwrap().keys().cloned().collect() };
    let of = |path: &str| schema.pointer(path).unwrap();
    let listed = |path: &str| -> Vec<serde_json::Value> { of(path).as_array().unwrap().clone() };
    assert_eq!(names(&value), names(of("/properties")));
    assert_eq!(names(&value["summary"]), names(of("/$defs/summary/properties")));
    let (levels, rooms) = (
        listed("/$defs/finding/properties/level/enum"),
        listed("/$defs/finding/properties/about/enum"),
    );
    for finding in findings {
        let keys = names(finding);
        assert!(keys.is_subset(&names(of("/$defs/finding/properties"))), "{finding}");
        let required = listed("/$defs/finding/required");
        assert!(required.iter().all(|k| keys.contains(k.as_str().unwrap())), "{finding}");
        assert!(
            levels.contains(&finding["level"]) && rooms.contains(&finding["about"]),
            "{finding}"
        );
    }
}
