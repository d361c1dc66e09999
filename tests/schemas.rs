//! The JSON that programs read, held against the schemas in docs/schemas: on every host of tests/hosts, in every state of
//! tests/screens. The schemas are strict, so that a field nobody has described fails here.

#![allow(clippy::unwrap_used)] // a test that cannot set itself up should stop there

#[allow(dead_code)] // tests/hosts.rs asks for more
#[path = "hosts/asked.rs"]
mod asked;
#[path = "hosts/many.rs"]
mod many;
#[path = "screens/states.rs"]
mod states;
#[path = "hosts/tree.rs"]
mod tree;

use std::fs;
use std::path::Path;

use gpu_handoff::base::pci::PciAddr;
use gpu_handoff::commands::plan::{Shown, VERSION};
use gpu_handoff::commands::report::Shown as ReportShown;
use gpu_handoff::model::record::Record;
use gpu_handoff::output::groups::groups;
use gpu_handoff::output::history::History;
use gpu_handoff::output::holders::users;
use gpu_handoff::output::plan::PlanView;
use gpu_handoff::output::status::{Sight, status};
use gpu_handoff::plan::{clients, home};
use gpu_handoff::report::archive as report;
use gpu_handoff::settings::values::Settings;
use jsonschema::Validator;
use serde::Serialize;
use serde_json::{Value, json};

use asked::{Host, Kind, folders, requests};

/// The schemas, by what prints it. A new one has its file, a row in docs/schemas/README.md, its name here, and a test that
/// holds what is printed against it.
const NAMES: [&str; 8] = [
    "status", "groups", "holders", "plan", "history", "check", "report", "attach",
];

fn schema(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("docs/schemas/{name}.json"));
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn validator(name: &str) -> Validator {
    jsonschema::draft202012::new(&schema(name)).unwrap()
}

/// A value as it is printed; what is wrong with it.
fn wrong(validator: &Validator, value: &impl Serialize) -> Vec<String> {
    let value = serde_json::to_value(value).unwrap();
    let errors = validator.iter_errors(&value);
    errors.map(|e| format!("{}: {e}", e.instance_path())).collect()
}

#[test]
fn schemas_are_schemas_and_say_all_there_is() {
    fn objects(value: &Value, seen: &mut usize) {
        if let Some(map) = value.as_object() {
            if map.get("type") == Some(&json!("object")) {
                *seen += 1;
                assert_eq!(map.get("additionalProperties"), Some(&json!(false)), "{value}");
            }
            map.values().for_each(|v| objects(v, seen));
        }
        value.as_array().into_iter().flatten().for_each(|v| objects(v, seen));
    }
    for name in NAMES {
        let schema = schema(name);
        assert_eq!(
            schema["$schema"], "https://json-schema.org/draft/2020-12/schema",
            "{name}"
        );
        assert!(jsonschema::meta::is_valid(&schema), "{name}");
        let mut seen = 0;
        objects(&schema, &mut seen);
        assert!(seen >= 2, "{name}");
    }
}

#[test]
fn status_groups_and_holders_of_every_host_are_as_described() {
    let [of_status, of_groups, of_holders] = ["status", "groups", "holders"].map(validator);
    let (mut problems, mut cards) = (Vec::new(), 0);
    for folder in folders() {
        let snapshot = Host::of(&folder).unwrap().look().unwrap();
        let gpus: Vec<PciAddr> = snapshot.gpus().map(|f| f.addr).collect();
        let (clients, unseen) = clients::of(&snapshot, &gpus, &Settings::default());
        let status = status(&Sight::of(&snapshot, &[]), None);
        cards += status.cards.len();
        problems.extend(wrong(&of_status, &status));
        problems.extend(wrong(
            &of_groups,
            &groups(&snapshot, &[], "quiet pcie_acs_override=downstream", None),
        ));
        problems.extend(wrong(&of_holders, &users(&clients, &unseen, &gpus)));
    }
    assert_eq!(problems, Vec::<String>::new());
    assert!(cards > 0);
}

#[test]
fn status_holders_and_history_in_every_state_are_as_described() {
    let [of_status, of_holders, of_history] = ["status", "holders", "history"].map(validator);
    let mut problems = Vec::new();
    for case in states::cases() {
        let gpus: Vec<PciAddr> = case.snapshot.gpus().map(|f| f.addr).collect();
        let (clients, unseen) = clients::of(&case.snapshot, &gpus, &Settings::default());
        let of = |problem: String| format!("{}: {problem}", case.name);
        problems.extend(wrong(&of_status, &case.status()).into_iter().map(of));
        problems.extend(wrong(&of_holders, &users(&clients, &unseen, &[])).into_iter().map(of));
        problems.extend(
            wrong(&of_history, &History::of(&case.past, None, None))
                .into_iter()
                .map(of),
        );
    }
    assert_eq!(problems, Vec::<String>::new());
}

#[test]
fn every_plan_and_every_refusal_is_as_described() {
    let of_plan = validator("plan");
    let (mut problems, mut plans) = (Vec::new(), 0);
    for folder in folders() {
        let host = Host::of(&folder).unwrap();
        for request in requests(&folder).unwrap().iter().filter(|r| r.kind != Kind::Status) {
            let answer = host.answer(request).unwrap();
            let outcome = answer.outcome.as_ref();
            let plan = outcome.and_then(|o| o.as_ref().ok());
            let refusal = outcome.and_then(|o| o.as_ref().err());
            // What comes home first has the same form; the way home of the plan itself stands for it.
            let first = plan.map(|plan| {
                let mut record = Record::new(plan.owner, "boot".to_owned(), Settings::default().budgets);
                record.taken.clone_from(&plan.taken);
                home::plan(&answer.snapshot, &record)
            });
            plans += usize::from(plan.is_some());
            let shown = Shown {
                version: VERSION,
                entries: &answer.given.entries,
                template: answer.given.template,
                first: first.iter().flatten().map(PlanView::from).collect(),
                plan,
                by_hand: plan.map(|_| "0000:01:00.0".to_owned()),
                refused: refusal.map_or_else(Vec::new, |r| r.0.iter().map(ToString::to_string).collect()),
                containers: &answer.containers,
                settings: answer.settings.listed(),
            };
            problems.extend(wrong(&of_plan, &shown));
        }
    }
    assert_eq!(problems, Vec::<String>::new());
    assert!(plans > 0 || std::env::var_os("HOSTS_DIR").is_some());
}

#[test]
fn a_report_that_was_written_and_one_that_was_only_listed_are_as_described() {
    let of_report = validator("report");
    for file in [None, Some("x.tar.gz".into())] {
        let listed = |missing: Option<&str>| report::Listed {
            name: "check.txt".to_owned(),
            size: 1,
            missing: missing.map(str::to_owned),
        };
        let shown = ReportShown {
            version: 1,
            file,
            contents: vec![listed(None), listed(Some("it is cut"))],
        };
        assert_eq!(wrong(&of_report, &shown), Vec::<String>::new());
    }
}

/// What these tests are worth: a field that nobody has described, one that is missing, and a word that is none.
#[test]
fn a_field_that_is_forgotten_or_new_and_a_wrong_word_are_seen() {
    let of_status = validator("status");
    let cases = states::cases();
    let case = cases.iter().find(|case| case.name == "vm").unwrap();
    let good = serde_json::to_value(case.status()).unwrap();
    assert_eq!(wrong(&of_status, &good), Vec::<String>::new());
    let mut new = good.clone();
    new["cards"][0]["colour"] = json!("green");
    let mut gone = good.clone();
    gone["cards"][0]["functions"][0]
        .as_object_mut()
        .unwrap()
        .remove("driver");
    let mut word = good.clone();
    word["cards"][0]["state"] = json!("lent");
    let mut version = good;
    version["version"] = json!(2);
    for (value, path) in [
        (new, "/cards/0"),
        (gone, "/cards/0/functions/0"),
        (word, "/cards/0/state"),
        (version, "/version"),
    ] {
        let wrong = wrong(&of_status, &value);
        assert!(
            wrong.iter().any(|w| w.starts_with(&format!("{path}: "))),
            "{path}: {wrong:?}"
        );
    }
}

/// Each is named in the package, beside what says for which command it is.
#[test]
fn the_package_ships_them_and_their_readme_names_each() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(folder.join("docs/schemas/README.md")).unwrap();
    let package = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
    let mut files = Vec::new();
    for entry in fs::read_dir(folder.join("docs/schemas")).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        files.extend(name.strip_suffix(".json").map(str::to_owned));
    }
    files.sort();
    let mut names = NAMES.map(str::to_owned);
    names.sort();
    assert_eq!(files, names);
    assert!(package.contains("[\"docs/schemas/*\", \"usr/share/doc/gpu-handoff/schemas/\", \"644\"]"));
    for name in names {
        assert!(readme.contains(&format!("`{name}.json`")), "{name}");
    }
}
