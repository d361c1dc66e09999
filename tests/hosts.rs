//! What `plan` says on hosts of many kinds: each folder of tests/hosts is a host, what is asked of it, and the text that an
//! administrator reads.
//!
//! The form of a folder is described in tests/hosts/README.md. Another folder of such folders is taken from HOSTS_DIR.
//! UPDATE_HOSTS=1 writes the texts instead of comparing them.

#![allow(clippy::unwrap_used)] // a test that cannot set itself up should stop there

#[path = "hosts/asked.rs"]
mod asked;
#[path = "hosts/order.rs"]
mod order;
#[path = "hosts/trip.rs"]
mod trip;
#[path = "hosts/tree.rs"]
mod tree;

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use gpu_handoff::base::pci::PciAddr;
use gpu_handoff::commands::plan::{Shown, shown_text};
use gpu_handoff::host::functions::read_details;
use gpu_handoff::host::pci_ids;
use gpu_handoff::host::snapshot::{self, Snapshot};
use gpu_handoff::model::act::Act;
use gpu_handoff::model::plan::{Plan, Step};
use gpu_handoff::model::record::{Owner, Record};
use gpu_handoff::output::plan::plan_text;
use gpu_handoff::output::status::{self, Sight, shown, status};
use gpu_handoff::output::status_table;
use gpu_handoff::output::style::Style;
use gpu_handoff::plan::home;
use gpu_handoff::plan::out::{self, Wanted};
use gpu_handoff::settings::values::{Processes, Settings};

use asked::{Answer, Host, Kind, folders, request, requests};

/// The text of everything that a folder asks for.
const PLAN: &str = "plan.txt";
/// The JSON of its one `json` request.
const JSON: &str = "plan.json";

#[test]
fn every_host_is_planned_as_its_text_says() {
    let update = std::env::var_os("UPDATE_HOSTS").is_some_and(|v| v == "1");
    let (mut report, mut failed) = (String::new(), 0);
    let folders = folders();
    for folder in &folders {
        let problems = compare(folder, update);
        failed += usize::from(!problems.is_empty());
        for problem in problems {
            writeln!(report, "{}: {problem}", folder.file_name().unwrap().display()).unwrap();
        }
    }
    let passed = folders.len() - failed;
    // Not println!: this line is to be seen of a passed test, too.
    writeln!(
        std::io::stdout(),
        "{} hosts, {passed} passed, {failed} failed",
        folders.len()
    )
    .unwrap();
    assert!(failed == 0, "{report}");
}

/// Whatever is planned can be done, one act after the other, and the way home leads to where everything was.
#[test]
fn every_plan_can_be_followed_there_and_home_again() {
    let (mut plans, mut problems) = (0, Vec::new());
    for folder in folders() {
        let host = Host::of(&folder).unwrap();
        let requests = requests(&folder).unwrap();
        for request in requests.iter().filter(|r| r.kind == Kind::Plan) {
            let Ok(Answer {
                outcome: Some(Ok(plan)),
                snapshot,
                ..
            }) = host.answer(request)
            else {
                continue;
            };
            plans += 1;
            if let Err(e) = there_and_home(&snapshot, &plan) {
                problems.push(format!("{}: {}: {e}", folder.display(), request.command));
            }
        }
    }
    // Elsewhere all may be refused.
    assert!(
        plans > 0 || std::env::var_os("HOSTS_DIR").is_some(),
        "no host has a plan"
    );
    assert_eq!(problems, Vec::<String>::new());
}

#[test]
fn a_wrong_order_and_a_forgotten_act_are_seen() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hosts/single-gpu");
    let answer = Host::of(&folder).unwrap().answer(&request("gpu").unwrap()).unwrap();
    let (before, plan) = (answer.snapshot, answer.outcome.unwrap().unwrap());
    let mut wrong = plan.steps.clone();
    wrong.reverse();
    let error = trip::follow(&before, &before, &wrong).unwrap_err();
    assert!(error.starts_with("0000:0b:00.0: bind to vfio-pci: "), "{error}");

    let away = trip::follow(&before, &before, &plan.steps).unwrap();
    let home = home::plan(&away, &record_of(&plan)).unwrap();
    let back = trip::follow(&away, &before, &home.steps).unwrap();
    assert_eq!(trip::same(&before, &back), Ok(()));
    for (act, error) in [
        (
            "0000:0b:00.0: unbind from vfio-pci",
            "0000:0b:00.0: bind to nvidia: it is on",
        ),
        ("0000:0b:00.1: clear driver_override", "before: (PciAddr"),
        ("0000:0b:00.1: set power/control to auto", "before: (PciAddr"),
        ("nvidia_uvm: load the module", "modules before:"),
        ("vtcon1: give the console back", "before: [Console"),
    ] {
        let mut forgetful = home.steps.clone();
        forgetful.retain(|s| s.act.to_string() != act);
        assert_eq!(forgetful.len() + 1, home.steps.len(), "{act}");
        let back = trip::follow(&away, &before, &forgetful);
        let seen = back.and_then(|back| trip::same(&before, &back)).unwrap_err();
        assert!(seen.starts_with(error), "without {act}: {seen}");
    }
}

/// Every plan of every host, out and home, and the same with the persistence daemon on the GPUs.
fn all_plans() -> Vec<Plan> {
    let mut plans = Vec::new();
    for folder in folders() {
        let host = Host::of(&folder).unwrap();
        for request in requests(&folder).unwrap().iter().filter(|r| r.kind == Kind::Plan) {
            let Ok(answer) = host.answer(request) else { continue };
            let (given, mut settings) = (&answer.given, answer.settings);
            settings.processes = Processes::Terminate;
            let with_daemon = order::with_persistenced(answer.snapshot.clone());
            let with_a_user = order::with_a_user(with_daemon.clone());
            for before in [answer.snapshot, with_daemon, with_a_user] {
                let functions: Vec<PciAddr> = given.functions.iter().copied().collect();
                let wanted = Wanted {
                    owner: request
                        .vm
                        .map_or(Owner::ByHand("0000:01:00.0".parse().unwrap()), Owner::Vm),
                    gpus: &given.gpus,
                    given: &functions,
                };
                let Ok(plan) = out::plan(&before, wanted, &[], &settings) else {
                    continue;
                };
                let mut away = trip::follow(&before, &before, &plan.steps).unwrap();
                away.holders.clear();
                plans.push(home::plan(&away, &record_of(&plan)).unwrap());
                plans.push(plan);
            }
        }
    }
    plans
}

#[test]
fn every_plan_keeps_the_rules_of_order() {
    let mut problems = Vec::new();
    for plan in all_plans() {
        for rule in order::broken(&plan) {
            problems.push(format!("{} {:?}: {rule}", plan.cards.join(", "), plan.direction));
        }
    }
    assert_eq!(problems, Vec::<String>::new());
}

/// For each rule there is a plan that it is about, and the same plan with two of its steps exchanged breaks it.
#[test]
fn every_rule_of_order_can_be_broken() {
    let plans = all_plans();
    for rule in order::rules().filter(|_| std::env::var_os("HOSTS_DIR").is_none()) {
        let of_it = plans.iter().filter(|p| p.direction == rule.direction);
        let about = of_it.filter_map(|p| Some((p, *rule.pairs(&p.steps).first()?))).next();
        let Some((plan, (earlier, later))) = about else {
            panic!("no plan has anything to do with: {}", rule.why);
        };
        let mut wrong = plan.clone();
        wrong.steps.swap(earlier, later);
        assert!(order::broken(&wrong).contains(&rule.why), "{}", rule.why);
    }
    let out = plans
        .iter()
        .find(|p| order::is_proven(&p.steps) && p.steps.iter().any(is_proof))
        .unwrap();
    let mut wrong = out.clone();
    wrong.steps.retain(|s| !is_proof(s));
    assert!(!order::is_proven(&wrong.steps));
}

fn is_proof(step: &Step) -> bool {
    matches!(step.act, Act::ProveFree { .. })
}

fn there_and_home(before: &Snapshot, plan: &Plan) -> Result<(), String> {
    let away = trip::follow(before, before, &plan.steps)?;
    let left = plan.taken.iter().find(|t| !away.function(t.addr).unwrap().is_on_vfio());
    if let Some(left) = left {
        return Err(format!("{} is not on vfio-pci", left.addr));
    }
    let home = home::plan(&away, &record_of(plan)).map_err(|e| e.to_string())?;
    let back = trip::follow(&away, before, &home.steps)?;
    trip::same(before, &back)
}

/// The record as it is when the devices are away.
fn record_of(plan: &Plan) -> Record {
    let mut record = Record::new(plan.owner, "boot".to_owned(), Settings::default().budgets);
    record.taken.clone_from(&plan.taken);
    record.modules.clone_from(&plan.modules);
    record.units.clone_from(&plan.units);
    record.consoles.clone_from(&plan.consoles);
    record.platforms.clone_from(&plan.platforms);
    record.numbers.clone_from(&plan.numbers);
    record
}

/// What differs from the texts of a folder, or, with `update`, what keeps them from being written.
fn compare(folder: &Path, update: bool) -> Vec<String> {
    let texts = match texts(folder) {
        Ok(texts) => texts,
        Err(e) => return vec![e],
    };
    let mut problems = Vec::new();
    for (name, text) in texts {
        let path = folder.join(name);
        if update {
            fs::write(&path, &text).unwrap();
            continue;
        }
        match fs::read_to_string(&path) {
            Err(e) => problems.push(format!("{name}: {e}")),
            Ok(expected) if expected == text => {}
            Ok(expected) => {
                let line = expected.lines().zip(text.lines()).take_while(|(a, b)| a == b).count();
                let at = |text: &str| text.lines().nth(line).unwrap_or("(the end)").to_owned();
                problems.push(format!(
                    "{name}:{}:\n  expected: {}\n  now:      {}",
                    line + 1,
                    at(&expected),
                    at(&text)
                ));
            }
        }
    }
    problems
}

/// The texts that a folder should have.
fn texts(folder: &Path) -> Result<Vec<(&'static str, String)>, String> {
    let host = Host::of(folder)?;
    let (mut plan, mut json) = (String::new(), None);
    for request in requests(folder)? {
        if request.kind == Kind::Status {
            let mut snapshot = host.look()?;
            let shown = shown(&snapshot);
            snapshot.complete(&shown, read_details(&host.root, &shown));
            let names = pci_ids::read(&host.root, &status::ids(&snapshot));
            let sight = Sight {
                names: &names,
                ..Sight::of(&snapshot, &[])
            };
            let text = status_table::text(&status(&sight, None), Style::terminal());
            plan += &format!("== status\n{text}");
            continue;
        }
        let answer = host.answer(&request)?;
        if request.kind == Kind::Json {
            let settings = answer.settings.listed();
            let text = serde_json::to_string_pretty(&answer.shown(settings)).unwrap();
            json = Some(text + "\n");
            continue;
        }
        plan += if plan.is_empty() { "" } else { "\n" };
        plan += &match (&request.kind, &answer.outcome) {
            (Kind::Home, Some(Ok(out))) => {
                let away = trip::follow(&answer.snapshot, &answer.snapshot, &out.steps)?;
                let home = home::plan(&away, &record_of(out));
                let text = home.map_or_else(|e| format!("Refused: {e}\n"), |h| plan_text(&h));
                format!("== home again, after {}\n{text}", request.command)
            }
            (Kind::Home, _) => return Err(format!("{}: there is no plan to come home from", request.command)),
            // The settings are the same on all hosts; tests/cli.rs shows them.
            _ => format!(
                "== {}\n{}",
                request.command,
                shown_text(&answer.shown(Vec::new()), &answer.given, "")
            ),
        };
    }
    Ok([(PLAN, Some(plan)), (JSON, json)]
        .into_iter()
        .filter_map(|(name, text)| Some((name, text?)))
        .collect())
}

impl Answer {
    fn shown<'a>(&'a self, settings: Vec<(&'static str, String, &'a str)>) -> Shown<'a> {
        let plan = self.outcome.as_ref();
        Shown {
            version: gpu_handoff::commands::plan::VERSION,
            entries: &self.given.entries,
            template: self.given.template,
            first: Vec::new(), // nothing is away
            plan: plan.and_then(|p| p.as_ref().ok()),
            by_hand: None, // nothing is away
            refused: match plan {
                Some(Err(refusal)) => refusal.0.iter().map(ToString::to_string).collect(),
                _ => Vec::new(),
            },
            containers: &self.containers,
            settings,
        }
    }
}

/// Facts of hosts that no text shows; a misspelt attribute in a host would go unnoticed.
#[test]
fn the_files_of_the_hosts_are_read_for_what_they_mean() {
    let read = |name: &str| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hosts").join(name);
        let host = Host::of(&folder).unwrap();
        let mut snapshot = snapshot::read(&host.root, &[]).unwrap();
        let all: Vec<PciAddr> = snapshot.functions.iter().map(|f| f.addr).collect();
        snapshot.complete(&all, read_details(&host.root, &all));
        snapshot
    };
    let addr = |text: &str| text.parse::<PciAddr>().unwrap();

    let host = read("boot-vga-firmware-framebuffer");
    let card = host.function(addr("0000:03:00.0")).unwrap();
    assert!(card.boot_vga && card.d3cold && card.power == "active" && card.power_control == "on");
    assert_eq!(card.reset_methods, ["bus"]);
    assert_eq!((card.parent, card.width), (Some(addr("0000:00:03.0")), Some(16)));
    let resets_below: Vec<PciAddr> = host
        .functions
        .iter()
        .filter(|f| f.resets_below)
        .map(|f| f.addr)
        .collect();
    assert_eq!(resets_below, [addr("0000:00:03.0")]);
    let shown = &host.framebuffers[0];
    assert_eq!(shown.of, Some(card.addr));
    let platform = shown.firmware.as_ref().unwrap();
    assert_eq!(
        (platform.device.as_str(), platform.driver.as_str()),
        ("simple-framebuffer.0", "simple-framebuffer")
    );
    assert_eq!(host.serial, ["ttyS0"]);
    assert!(host.consoles[1].is_framebuffer() && host.consoles[1].bound && !host.consoles[0].bound);

    let host = read("single-gpu");
    let shown = &host.framebuffers[0];
    assert_eq!((shown.of, &shown.firmware), (Some(addr("0000:0b:00.0")), &None));
    assert!(host.nvidia.unwrap().open && !host.vfio_pci);

    let host = read("vgpu-creatable-types");
    let function = host.function(addr("0000:41:00.5")).unwrap();
    assert_eq!(function.nvidia_vgpu, Some(vec![1155, 1156]));
    assert_eq!(function.physfn, Some(addr("0000:41:00.0")));
    assert_eq!(
        host.function(addr("0000:41:00.4")).unwrap().nvidia_vgpu,
        Some(Vec::new())
    );

    let host = read("vgpu-mdev");
    let card = host.function(addr("0000:3b:00.0")).unwrap();
    assert_eq!(card.mdev_types.as_ref().unwrap(), &["nvidia-222", "nvidia-231"]);
    assert_eq!(card.mdevs, 1);

    let host = read("usb-c");
    let functions = ["0000:65:00.1", "0000:65:00.2", "0000:65:00.3"].map(addr);
    assert_eq!(host.function(addr("0000:65:00.0")).unwrap().linked, functions);
    assert!(host.function(addr("0000:64:00.0")).unwrap().bridge);

    let host = read("mapping-two-cards");
    assert_eq!(
        (
            host.vms[0].vmid.get(),
            host.vms[0].process.pid,
            host.vms[0].process.started
        ),
        (112, 4711, 48213)
    );
}

#[test]
fn a_tree_has_the_files_links_and_folders_that_its_text_says() {
    let text = "# a comment\n\
                [/sys/devices/pci0000:00/0000:01:00.0]\n\
                class = 0x030000\n\
                power/control = auto\n\
                driver -> /sys/bus/pci/drivers/nvidia\n\
                iommu_group -> /sys/kernel/iommu_groups/14\n\
                dir pci_bus/0000:01\n\
                empty =\n\
                [/proc]\n\
                modules:\n    nvidia 1 0 - Live 0x0\n\n    last 1 0 - Live 0x0\n\
                cmdline = a\\x00b\n\
                config = \\xde\\x10\n\
                [/programs]\n\
                modinfo -F signer /lib/a.ko = somebody\n";
    let dir = tempfile::tempdir().unwrap();
    tree::build(text, dir.path()).unwrap();
    let read = |path: &str| fs::read_to_string(dir.path().join(path)).unwrap();
    for (path, text) in [
        ("sys/bus/pci/devices/0000:01:00.0/class", "0x030000\n"),
        ("sys/bus/pci/drivers/nvidia/0000:01:00.0/power/control", "auto\n"),
        ("sys/kernel/iommu_groups/14/devices/0000:01:00.0/empty", "\n"),
        ("proc/modules", "nvidia 1 0 - Live 0x0\n\nlast 1 0 - Live 0x0\n"),
        ("proc/cmdline", "a\0b\n"),
        ("programs/modinfo -F signer !lib!a.ko", "somebody\n"),
    ] {
        assert_eq!(read(path), text, "{path}");
    }
    assert_eq!(fs::read(dir.path().join("proc/config")).unwrap(), [0xde, 0x10]);
    for folder in [
        "sys/module/nvidia",
        "sys/module/last",
        "sys/bus/pci/devices/0000:01:00.0/pci_bus/0000:01",
    ] {
        assert!(dir.path().join(folder).is_dir(), "{folder}");
    }
    let link = fs::read_link(dir.path().join("sys/bus/pci/devices/0000:01:00.0")).unwrap();
    assert!(link.is_relative() && link.ends_with("sys/devices/pci0000:00/0000:01:00.0"));
}

#[test]
fn what_a_text_gets_wrong_is_named_with_its_line() {
    for (text, error) in [
        ("class = 0\n", "line 1: no [folder] before it"),
        ("[sys]\n", "line 1: the folder sys has no absolute path"),
        (
            "[/sys]\nclass\n",
            "line 2: neither 'name = text', 'name -> target' nor 'name:'",
        ),
        ("[/sys]\na = 1\n\n[/sys]\na = 2\n", "line 5: /sys/a is there already"),
        ("[/sys]\na -> /nowhere\n", "line 2: /sys/a leads nowhere: /nowhere"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(tree::build(text, dir.path()), Err(error.to_owned()), "{text:?}");
    }
}

#[test]
fn a_folder_without_its_text_or_with_another_one_fails() {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    let problem = || compare(dir.path(), false).join("; ");
    assert_eq!(problem(), "host: No such file or directory (os error 2)");
    put("host", "[/proc]\ndir 1\n[/sys/bus/pci]\ndir devices\n");
    assert_eq!(problem(), "request: No such file or directory (os error 2)");
    put("request", "card 1\n");
    assert_eq!(
        problem(),
        "request: 'card 1' is no 'vm VMID', 'gpu NAME', 'gpu' or 'status'"
    );
    put("request", "gpu\n");
    assert_eq!(problem(), "plan.txt: No such file or directory (os error 2)");
    assert_eq!(compare(dir.path(), true), Vec::<String>::new());
    assert_eq!(problem(), "");
    let text = fs::read_to_string(dir.path().join(PLAN)).unwrap();
    put(PLAN, &text.replace("no NVIDIA GPU", "one GPU"));
    assert_eq!(
        problem(),
        "plan.txt:2:\n  expected: Refused: there is one GPU on this host. Hint: see 'lspci -nn -d 10de:'\n  now:      \
         Refused: there is no NVIDIA GPU on this host. Hint: see 'lspci -nn -d 10de:'"
    );
}
