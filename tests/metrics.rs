//! Metrics: in every state that `status` has a word for the text is OpenMetrics, and what node_exporter reads besides; one host
//! word for word; the dashboard in contrib asks for nothing else. `UPDATE_METRICS=1` writes tests/metrics/host.prom.

#![allow(clippy::unwrap_used)] // a test that cannot set itself up should stop there

#[path = "hosts/many.rs"]
mod many;
#[allow(dead_code)] // tests/screens.rs asks for more
#[path = "screens/states.rs"]
mod states;
#[path = "hosts/tree.rs"]
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gpu_handoff::host::units::Unit;
use gpu_handoff::model::act::Act;
use gpu_handoff::model::plan::Direction;
use gpu_handoff::state::history::{Counts, Handoff, Past};
use gpu_handoff::tell::metrics::{METRICS, Seen, text};
use serde_json::Value;

/// The labels of a sample.
type Labels = Vec<(String, String)>;

/// Name, labels and value of each sample of a text, if it is one of OpenMetrics (specification/OpenMetrics.md, ABNF), as far
/// as we use that: no timestamps, exemplars, units or empty lines.
fn samples(text: &str) -> Result<Vec<(String, Labels, f64)>, String> {
    let body = text.strip_suffix("# EOF\n").ok_or("it does not end with EOF")?;
    let mut samples = Vec::new();
    let mut families: BTreeMap<&str, &str> = BTreeMap::new();
    let (mut family, mut helped) = ("", "");
    let mut seen = BTreeSet::new();
    for line in body.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            helped = help.split_once(' ').ok_or("a help without text")?.0;
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').ok_or("a type without a word")?;
            if helped != name || !["gauge", "counter"].contains(&kind) {
                return Err(format!("a type without its help, or a wrong one: {line}"));
            }
            if name.ends_with("_total") || families.insert(name, kind).is_some() {
                return Err(format!("a name that is none, or comes twice: {line}"));
            }
            family = name;
        } else {
            let (name, rest) = line.split_once('{').ok_or(format!("no labels: {line}"))?;
            let (labels, value) = labels(rest).ok_or(format!("no labels: {line}"))?;
            let suffix = if families[family] == "counter" { "_total" } else { "" };
            if name != format!("{family}{suffix}") || !is_name(name) {
                return Err(format!("not of its family: {line}"));
            }
            if !seen.insert(line.rsplit_once(' ').map(|(series, _)| series.to_owned())) {
                return Err(format!("twice: {line}"));
            }
            let value = value.parse().map_err(|_| format!("no number: {line}"))?;
            samples.push((name.to_owned(), labels, value));
        }
    }
    Ok(samples)
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
}

/// Labels up to the brace that closes them, and what comes behind it.
fn labels(mut rest: &str) -> Option<(Labels, &str)> {
    let mut labels = Vec::new();
    loop {
        let (name, quoted) = rest.split_once("=\"")?;
        let (mut value, mut chars) = (String::new(), quoted.char_indices());
        let end = loop {
            match chars.next()? {
                (at, '"') => break at,
                (_, '\\') => value.push(match chars.next()?.1 {
                    'n' => '\n',
                    c @ ('"' | '\\') => c,
                    _ => return None,
                }),
                (_, c) => value.push(c),
            }
        };
        labels.push((name.to_owned(), value));
        if !is_name(name) {
            return None;
        }
        rest = quoted[end + 1..].strip_prefix(',').unwrap_or(&quoted[end + 1..]);
        if let Some(value) = rest.strip_prefix("} ") {
            return Some((labels, value));
        }
    }
}

fn text_of(case: &states::Case) -> String {
    text(&Seen {
        snapshot: &case.snapshot,
        records: &case.records,
        past: &case.past,
    })
}

#[test]
fn the_checker_finds_what_is_wrong() {
    let head = "# HELP a Help.\n# TYPE a gauge\n";
    for (body, is_right) in [
        ("a{b=\"c\"} 1\n", true),
        ("a{b=\"c\\\\\\\"\\n\",d=\"\"} 1.5\n", true),
        ("a{b=\"c\"} 1\na{b=\"c\"} 2\n", false),
        ("a{b=\"c\\x\"} 1\n", false),
        ("a{b=\"c\n\"} 1\n", false),
        ("a{b=\"c\"} one\n", false),
        ("b{b=\"c\"} 1\n", false),
        ("a_total{b=\"c\"} 1\n", false),
        ("# TYPE b gauge\n", false),
        ("\n", false),
    ] {
        assert_eq!(samples(&format!("{head}{body}# EOF\n")).is_ok(), is_right, "{body}");
        assert!(samples(&format!("{head}{body}")).is_err());
    }
}

#[test]
fn in_every_state_the_text_is_openmetrics_and_each_gpu_has_one_holder() {
    for case in states::cases() {
        let samples = samples(&text_of(&case)).unwrap_or_else(|why| panic!("{}: {why}", case.name));
        let of = |name: &str| samples.iter().filter(move |s| s.0 == name).collect::<Vec<_>>();
        let gpus: BTreeSet<&str> = of("gpu_handoff_gpu_holder").iter().map(|s| s.1[0].1.as_str()).collect();
        assert_eq!(gpus.len(), of("gpu_handoff_gpu_holder").len(), "{}", case.name);
        let any = |name: &str| of(name).iter().any(|s| s.2 > 0.0);
        let is_one_of = |names: &[&str]| names.contains(&case.name);
        assert_eq!(
            (any("gpu_handoff_gpu_stranded"), any("gpu_handoff_gpu_wedged")),
            (
                is_one_of(&["stranded", "late", "missing", "sixteen"]),
                is_one_of(&["wedged", "stuck-by-another"])
            ),
            "{}",
            case.name
        );
    }
}

/// The dashboard, and what else asks for metrics by their names.
fn asks_for_metrics() -> Vec<PathBuf> {
    let contrib = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/grafana");
    let mut files: Vec<PathBuf> = fs::read_dir(contrib).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn every_metric_that_the_dashboard_asks_for_is_there_and_every_one_that_is_there_is_shown() {
    let ours: BTreeSet<String> = METRICS
        .iter()
        .map(|m| format!("{}{}", m.name, if m.kind == "counter" { "_total" } else { "" }))
        .collect();
    let mut asked = BTreeSet::new();
    for file in asks_for_metrics() {
        let text = fs::read_to_string(&file).unwrap();
        if file.extension().is_some_and(|e| e == "json") {
            let dashboard: Value = serde_json::from_str(&text).unwrap();
            assert!(dashboard["panels"].as_array().is_some_and(|p| p.len() >= 4));
        }
        for part in text.split("gpu_handoff_").skip(1) {
            let end = part
                .find(|c: char| !c.is_ascii_lowercase() && c != '_')
                .unwrap_or(part.len());
            asked.insert(format!("gpu_handoff_{}", &part[..end]));
        }
    }
    assert_eq!(asked, ours);
}

#[test]
fn a_host_word_for_word() {
    let mut case = states::cases().into_iter().find(|case| case.name == "vm").unwrap();
    let start = Act::StartUnit {
        name: Unit::host("a\"b\\c\u{1b}.service"),
        within_s: 0,
        has_ended: false,
    };
    let out = Handoff {
        time: 1_795_249_367,
        boot_id: "boot".to_owned(),
        owner: "VM 111".to_owned(),
        direction: Direction::Out,
        cards: vec!["0000:01:00".to_owned()],
        outcome: "done".to_owned(),
        took_ms: 1234,
        acts: [
            "nvidia: unload the module",
            "0000:01:00.0: bind to vfio-pci",
            "0000:01:00.0: bind to vfio-pci",
        ]
        .map(|text| Past {
            text: text.into(),
            took_ms: 5,
            error: None,
            did: None,
            remedy: None,
        })
        .to_vec(),
        forgotten: Some(Counts {
            out_done: 300,
            out_failed: 1,
            home_done: 299,
            home_failed: 2,
        }),
    };
    let home = Handoff {
        time: 1_795_240_000,
        direction: Direction::Home,
        outcome: "no. Hint: yes".to_owned(),
        acts: vec![Past::of(&start, Duration::from_millis(15_002), Some(&"no"))],
        forgotten: None,
        ..out.clone()
    };
    case.past = vec![
        Handoff {
            forgotten: out.forgotten,
            ..home
        },
        Handoff { forgotten: None, ..out },
    ];
    let found = text_of(&case);
    samples(&found).unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/metrics/host.prom");
    if std::env::var_os("UPDATE_METRICS").is_some() {
        fs::write(&path, &found).unwrap();
    }
    assert_eq!(found, fs::read_to_string(path).unwrap());
}
