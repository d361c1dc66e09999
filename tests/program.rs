//! The program itself, on hosts that are trees of files: what `status`, `holders`, `plan` and `history` print, and what
//! `status --watch` does when something happens. Needs root and mount namespaces; where there are none, nothing is shown.

#![allow(clippy::unwrap_used)] // a test that cannot set itself up should stop there

#[path = "hosts/many.rs"]
mod many;
#[path = "hosts/namespace.rs"]
mod namespace;
#[path = "hosts/tree.rs"]
mod tree;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Output};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use gpu_handoff::base::deadlines::Budgets;
use gpu_handoff::base::process::boot_id;
use gpu_handoff::base::root::Root;
use gpu_handoff::host::units::Unit;
use gpu_handoff::model::plan::Direction;
use gpu_handoff::model::record::{Owner, Record, State, Taken};
use gpu_handoff::state::history::{self, Handoff};
use gpu_handoff::state::stopped;
use gpu_handoff::state::store::{Ledger, Store};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const BINARY: &str = env!("CARGO_BIN_EXE_gpu-handoff");

/// Long enough for a slow machine; what is waited for comes at once.
const PATIENCE: Duration = Duration::from_secs(30);

fn host(gpus: usize) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    tree::build(&many::host(gpus), dir.path()).unwrap();
    dir
}

/// None where there can be no namespace.
fn run(tree: &Path, args: &[&str]) -> Option<Output> {
    let output = namespace::command(BINARY, tree, args).output().ok()?;
    (!namespace::could_not(&output)).then_some(output)
}

fn stdout(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn json(output: &Output, schema: &str) -> Value {
    as_described(&stdout(output), schema)
}

fn as_described(text: &str, schema: &str) -> Value {
    let value: Value = serde_json::from_str(text).unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("docs/schemas/{schema}.json"));
    let schema: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    let errors: Vec<String> = validator.iter_errors(&value).map(|e| e.to_string()).collect();
    assert_eq!(errors, Vec::<String>::new());
    value
}

/// VM 111 has the first GPU, as a handoff writes it down.
fn lend(tree: &Path) {
    let owner = Owner::Vm("111".parse().unwrap());
    write_down(tree, owner, &["0000:01:00.0", "0000:01:00.1"], &[]);
}

/// A GPU and its sound are away, and these services are stopped for it.
fn write_down(tree: &Path, owner: Owner, functions: &[&str], services: &[&str]) {
    let mut record = Record::new(owner, boot_id().unwrap(), Budgets::default());
    for (function, driver) in functions.iter().zip(["nvidia", "snd_hda_intel"]) {
        record.taken.push(Taken {
            addr: function.parse().unwrap(),
            driver: Some(driver.to_owned()),
            module: Some(driver.to_owned()),
            driver_override: None,
            width: None,
            attributes: Vec::new(),
            parent: None,
        });
    }
    record.units = services.iter().map(|name| Unit::host(name)).collect();
    record.state = State::Away;
    let store = Store::at(tree.join("run/gpu-handoff"));
    let guard = store.lock("a test", PATIENCE).unwrap();
    guard.save(&record).unwrap();
}

/// By the settings nobody is sent anything: the machine that this runs on may have a mail server.
#[test]
fn what_nobody_brings_home_is_told_once_and_the_metrics_are_written() {
    let dir = host(2);
    lend(dir.path());
    let setting = |metrics: &str| {
        let settings = dir.path().join("etc/gpu-handoff");
        fs::create_dir_all(&settings).unwrap();
        let text = format!("notify = \"off\"\nmetrics = \"{metrics}\"\n");
        fs::write(settings.join("config.toml"), text).unwrap();
    };
    let tell = |asked_by: &str| {
        let output = run(dir.path(), &["tell", asked_by])?;
        assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(0), ""));
        Some(String::from_utf8(output.stderr).unwrap())
    };
    setting("/var/lib/gpu.prom");
    let Some(said) = tell("4711") else { return };
    assert_eq!(said, "", "VM 111 has it");
    let said = tell("4711-abandoned-111").unwrap();
    let expected =
        "gpu-handoff: warning: VM 111 does not need 0000:01:00 any more, and it could not be brought home so far. ";
    assert!(said.starts_with(expected) && said.lines().count() == 1, "{said}");
    assert_eq!(tell("4712-abandoned-111").unwrap(), "");
    let metrics = dir.path().join("var/lib/gpu.prom");
    let text = fs::read_to_string(&metrics).unwrap();
    for line in [
        "gpu_handoff_gpu_holder{gpu=\"0000:01:00.0\",holder=\"VM 111\"} 1\n",
        "gpu_handoff_gpu_holder{gpu=\"0000:03:00.0\",holder=\"host\"} 1\n",
        "gpu_handoff_handoffs_total{direction=\"out\",result=\"done\"} 0\n",
    ] {
        assert!(text.contains(line), "{text}");
    }
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&metrics).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o644);
    setting("/var/nowhere/gpu.prom");
    let said = tell("4713").unwrap();
    let expected =
        "gpu-handoff: warning: the metrics were not written to /var/nowhere/gpu.prom: its folder is not there\n";
    assert_eq!(said, expected);
}

#[test]
fn status_holders_and_history_of_a_host_are_printed_as_they_are_described() {
    let dir = host(2);
    lend(dir.path());
    let entry = Handoff {
        forgotten: None,
        time: 1_795_249_367,
        boot_id: "boot".to_owned(),
        owner: "VM 111".to_owned(),
        direction: Direction::Out,
        cards: vec!["0000:01:00".to_owned()],
        outcome: "done".to_owned(),
        took_ms: 1234,
        acts: Vec::new(),
    };
    history::add(&Root::at(dir.path()), &entry).unwrap();
    let Some(status) = run(dir.path(), &["status", "--json"]) else {
        return;
    };
    let status = json(&status, "status");
    let card = |n: usize, field: &str| status["cards"][n][field].clone();
    assert_eq!(
        (card(0, "slot"), card(0, "name")),
        ("0000:01:00".into(), "AD102 [GeForce RTX 4090]".into())
    );
    assert_eq!(
        (card(0, "state"), card(0, "vmid"), card(1, "state")),
        ("vm".into(), 111.into(), "host".into())
    );
    assert_eq!(card(0, "last")["time"], 1_795_249_367);
    let one = json(
        &run(dir.path(), &["status", "--json", "--vm", "111"]).unwrap(),
        "status",
    );
    assert_eq!(one["cards"].as_array().unwrap().len(), 1);
    let one = json(&run(dir.path(), &["status", "--json", "--gpu", "1"]).unwrap(), "status");
    assert_eq!(one["cards"][0]["slot"], "0000:03:00");
    let groups = json(&run(dir.path(), &["status", "--groups", "--json"]).unwrap(), "groups");
    assert_eq!(groups["groups"][0]["group"], 20);
    json(&run(dir.path(), &["holders", "--json"]).unwrap(), "holders");
    let past = json(
        &run(dir.path(), &["history", "--json", "--vm", "111"]).unwrap(),
        "history",
    );
    assert_eq!(past["handoffs"].as_array().unwrap().len(), 1);
    let past = json(
        &run(dir.path(), &["history", "--json", "--since", "2026-11-22"]).unwrap(),
        "history",
    );
    assert_eq!(past["handoffs"].as_array().unwrap().len(), 0);
    let plain = stdout(&run(dir.path(), &["status", "--plain", "--gpu", "0"]).unwrap());
    assert_eq!(
        plain,
        "[gpu-handoff] 0000:01:00.0 driver=nvidia\n[gpu-handoff] 0000:01:00.1 driver=snd_hda_intel\n"
    );
    let text = run(dir.path(), &["status"]).unwrap();
    assert!(!stdout(&text).contains('\u{1b}'), "colours in a pipe");
}

/// The machine's own modprobe is asked there, so that a plan may be a refusal: that has the same form.
#[test]
fn on_every_host_of_tests_hosts_the_json_is_as_described() {
    let mut shown = 0;
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hosts")).unwrap() {
        let Ok(text) = fs::read_to_string(entry.unwrap().path().join("host")) else {
            continue;
        };
        let dir = tempfile::tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir())
            .unwrap();
        tree::build(&text, dir.path()).unwrap();
        for (args, schema) in [
            (&["status", "--json"][..], "status"),
            (&["holders", "--json"], "holders"),
            (&["plan", "--json", "--gpu", "0"], "plan"),
        ] {
            let Some(output) = run(dir.path(), args) else { return };
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(matches!(output.status.code(), Some(0 | 3)), "{args:?}: {stderr}");
            as_described(&String::from_utf8(output.stdout).unwrap(), schema);
            shown += 1;
        }
    }
    assert!(shown > 60, "{shown}");
}

/// As the attributes of a card are that is being reset: a pipe that nobody writes to keeps its reader waiting, too.
#[test]
fn a_card_that_does_not_answer_keeps_nobody_from_seeing_the_others() {
    let dir = host(4);
    let silent = dir.path().join("sys/bus/pci/devices/0000:03:00.0/driver_override");
    fs::remove_file(&silent).unwrap();
    nix::unistd::mkfifo(&silent, nix::sys::stat::Mode::S_IRUSR).unwrap();
    let start = Instant::now();
    let Some(output) = run(dir.path(), &["status", "--json"]) else {
        return;
    };
    let status = json(&output, "status");
    let took = start.elapsed();
    let answers = [0, 1, 2, 3].map(|card: usize| status["cards"][card]["functions"][0]["answers"].as_bool());
    assert_eq!(answers, [Some(true), Some(false), Some(true), Some(true)]);
    // The deadline of one question, not of one for each card.
    let least = Budgets::default().attribute;
    assert!((least..2 * least).contains(&took), "{took:?}");
}

#[test]
fn a_gpu_that_is_not_there_and_a_vm_without_one_are_refused() {
    let dir = host(2);
    for (args, said) in [
        (&["status", "--gpu", "7"][..], "there is no NVIDIA GPU '7'"),
        (&["status", "--vm", "112"], "the config of VM 112 cannot be read"),
    ] {
        let Some(output) = run(dir.path(), args) else { return };
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{stderr}");
        assert!(stderr.contains(said) && stderr.contains("Hint: "), "{stderr}");
    }
}

/// A watch, and its lines as they come.
struct Watched {
    child: Child,
    lines: Receiver<String>,
}

impl Watched {
    /// With its first line; None where there can be no namespace.
    fn begin(tree: &Path) -> Option<(Watched, Value)> {
        let mut child = namespace::command(BINARY, tree, &["status", "--watch", "--json"])
            .spawn()
            .ok()?;
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        // It ends with the pipe, or when nobody listens any more: then the pipe is closed.
        std::thread::spawn(move || {
            for line in stdout.lines() {
                if line.map_or(true, |line| sender.send(line).is_err()) {
                    return;
                }
            }
        });
        let Ok(first) = lines.recv_timeout(PATIENCE) else {
            let output = child.wait_with_output().unwrap();
            assert!(
                namespace::could_not(&output),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
            return None;
        };
        Some((Watched { child, lines }, serde_json::from_str(&first).unwrap()))
    }

    fn next(&self) -> Value {
        serde_json::from_str(&self.lines.recv_timeout(PATIENCE).unwrap()).unwrap()
    }

    /// How it ends, which it has to do at once.
    fn end(mut self) -> Option<i32> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(start.elapsed() < PATIENCE, "it goes on");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn a_watch_shows_a_record_as_soon_as_it_is_written_and_removed_and_ends_by_a_signal() {
    let dir = host(1);
    let Some((watched, first)) = Watched::begin(dir.path()) else {
        return;
    };
    assert_eq!(first["cards"][0]["state"], "host");
    let start = Instant::now();
    lend(dir.path());
    assert_eq!(watched.next()["cards"][0]["state"], "vm");
    let store = Store::at(dir.path().join("run/gpu-handoff"));
    let guard = store.lock("a test", PATIENCE).unwrap();
    guard.remove(Owner::Vm("111".parse().unwrap())).unwrap();
    assert_eq!(watched.next()["cards"][0]["state"], "host");
    // Far less than the minute after which it looks whatever happens.
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
    let pid = Pid::from_raw(watched.child.id().try_into().unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    assert_eq!(watched.end(), None, "a signal has ended it");
}

#[test]
fn a_watch_ends_when_its_reader_has_gone() {
    let dir = host(1);
    let mut command = namespace::command(BINARY, dir.path(), &["status", "--watch", "--json"]);
    let mut child = command.spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    if stdout.read_line(&mut line).unwrap() == 0 {
        assert!(namespace::could_not(&child.wait_with_output().unwrap()));
        return;
    }
    drop(stdout);
    let (_, lines) = channel();
    assert_eq!(Watched { child, lines }.end(), Some(0));
}

/// A host of two GPUs whose systemd knows what /etc/units says of each service.
fn host_with_services(services: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = host(2);
    let systemctl = "#!/bin/sh
        for unit; do :; done
        case $1 in
        show) echo \"ActiveState=$(cat \"/etc/units/$unit\")\" ;;
        is-active) cat \"/etc/units/$unit\" ;;
        is-system-running) echo starting ;;
        start) echo active >\"/etc/units/$unit\" ;;
        esac\n";
    let path = dir.path().join("usr/bin/systemctl");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, systemctl).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir_all(dir.path().join("etc/units")).unwrap();
    for (name, state) in services {
        fs::write(dir.path().join("etc/units").join(name), format!("{state}\n")).unwrap();
    }
    dir
}

/// One run brings home what is stranded, and what was taken by hand stays away; with the next one that comes home as well.
#[test]
fn what_is_stopped_is_kept_for_the_next_boot_until_it_is_given_back() {
    let by_hand = Owner::ByHand("0000:03:00.0".parse().unwrap());
    for can_be_written in [true, false] {
        let dir = host_with_services(&[("ollama.service", "inactive"), ("jellyfin.service", "inactive")]);
        let root = Root::at(dir.path());
        if !can_be_written {
            fs::create_dir_all(dir.path().join("var/lib")).unwrap();
            fs::write(dir.path().join("var/lib/gpu-handoff"), "no folder").unwrap();
        }
        let vm = Owner::Vm("111".parse().unwrap());
        write_down(dir.path(), vm, &["0000:01:00.0", "0000:01:00.1"], &["ollama.service"]);
        write_down(
            dir.path(),
            by_hand,
            &["0000:03:00.0", "0000:03:00.1"],
            &["jellyfin.service"],
        );
        let state = |name: &str| fs::read_to_string(dir.path().join("etc/units").join(name)).unwrap();
        let Some(output) = run(dir.path(), &["recover"]) else {
            return;
        };
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            stdout(&output).contains("VM 111: 0000:01:00.0, 0000:01:00.1 are home\n"),
            "{said}"
        );
        assert_eq!(
            (state("ollama.service").as_str(), state("jellyfin.service").as_str()),
            ("active\n", "inactive\n")
        );
        let kept = stopped::read(&root).records;
        let kept: Vec<(Owner, &[Unit])> = kept.iter().map(|one| (one.owner, one.units.as_slice())).collect();
        let jellyfin = [Unit::host("jellyfin.service")];
        let expected = if can_be_written {
            vec![(by_hand, &jellyfin[..])]
        } else {
            Vec::new()
        };
        assert_eq!(kept, expected, "{said}");
        // It is of this boot.
        assert!(!said.contains("before the host went down"), "{said}");

        let output = run(dir.path(), &["recover", "--all"]).unwrap();
        stdout(&output);
        assert_eq!(state("jellyfin.service"), "active\n");
        assert_eq!(stopped::read(&root), stopped::Stopped::default());
        assert!(
            Store::at(dir.path().join("run/gpu-handoff"))
                .load()
                .unwrap()
                .0
                .is_empty()
        );
    }
}

#[test]
fn what_was_stopped_in_an_earlier_boot_and_does_not_run_is_named_once() {
    for command in [&["recover"][..], &["tell", "booted"]] {
        let states = [
            ("up.service", "active"),
            ("down.service", "inactive"),
            ("broken.service", "failed"),
        ];
        let dir = host_with_services(&states);
        let root = Root::at(dir.path());
        let owner = Owner::Vm("111".parse().unwrap());
        let mut before = Record::new(owner, "another".to_owned(), Budgets::default());
        before.units = ["up.service", "down.service", "broken.service"]
            .map(Unit::host)
            .to_vec();
        stopped::keep(&root, "another", &stopped::text([&before].into_iter())).unwrap();
        // What this boot is about to start is not known while it goes on.
        fs::create_dir_all(dir.path().join("run/systemd/system")).unwrap();
        let Some(output) = run(dir.path(), &["recover"]) else {
            return;
        };
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!said.contains("before the host went down"), "{said}");
        assert_eq!(stopped::read(&root).records.len(), 1, "{said}");
        fs::remove_dir_all(dir.path().join("run/systemd")).unwrap();
        let Some(output) = run(dir.path(), command) else { return };
        let said = String::from_utf8(output.stderr.clone()).unwrap();
        stdout(&output);
        let line = |unit: &str| {
            format!(
                "{unit} was stopped for VM 111 before the host went down, and does not run. Hint: systemctl start {unit}"
            )
        };
        let named: Vec<&str> = said
            .lines()
            .filter(|line| line.contains("before the host went down"))
            .collect();
        assert_eq!(named.len(), 2, "{command:?}: {said}");
        assert!(named[0].ends_with(&line("down.service")), "{named:?}");
        assert!(named[1].ends_with(&line("broken.service")), "{named:?}");
        assert_eq!(stopped::read(&root), stopped::Stopped::default());
        let again = run(dir.path(), command).unwrap();
        let said = String::from_utf8_lossy(&again.stderr);
        assert!(!said.contains("before the host went down"), "{said}");
    }
}
