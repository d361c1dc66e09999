//! Bug reports: the host of one says elsewhere what it says at home, nothing that identifies or opens something is in one, and
//! an archive that means ill is refused.

#![allow(clippy::unwrap_used)] // a test that cannot set itself up should stop there

#[allow(dead_code)] // what plans need
#[path = "hosts/asked.rs"]
mod asked;
#[allow(dead_code)] // what checks need
#[path = "check/hosts.rs"]
mod hosts;
#[path = "hosts/tree.rs"]
mod tree;

use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use gpu_handoff::base::recording::{Entry, What};
use gpu_handoff::base::root::Root;
use gpu_handoff::commands::replay::answers;
use gpu_handoff::commands::report::packed;
use gpu_handoff::report::archive::{LONGEST, Packed, Report, pack};
use gpu_handoff::report::redact::Redactor;
use gpu_handoff::report::unpack::unpack;
use gpu_handoff::run::session::Session;
use tar::{Builder, EntryType, Header};

use asked::{Host, folders};
use hosts::{Ask, Edit, READY, host};

/// What check and plan say of a host.
fn said(root: &Root) -> String {
    let answers = answers(&mut Session::on(root.clone()), false, None, None).unwrap();
    answers.into_iter().map(|(text, _)| text).collect()
}

fn report_of(root: &Root) -> Packed {
    packed(&mut Session::on(root.clone().recording()), "r", 1_795_939_200).unwrap()
}

fn said_elsewhere(report: &Packed) -> String {
    let tree = unpack(&report.bytes[..]).unwrap();
    said(&Root::at(tree.root()))
}

/// The first line that differs.
fn differs(here: &str, elsewhere: &str) -> Option<String> {
    let line = here.lines().zip(elsewhere.lines()).find(|(a, b)| a != b);
    let ends = || (here.lines().count() != elsewhere.lines().count()).then_some(("another length", ""));
    line.or_else(ends).map(|(a, b)| format!("here: {a}\n  elsewhere: {b}"))
}

#[test]
fn a_host_says_elsewhere_what_it_says_at_home() {
    let mut problems = Vec::new();
    let mut hosts: Vec<(String, Host)> = vec![("ready".to_owned(), host(&READY))];
    for folder in folders() {
        hosts.push((folder.display().to_string(), Host::of(&folder).unwrap()));
    }
    let mut plans = 0;
    for (name, host) in &hosts {
        let here = said(&host.root);
        plans += here.matches("== plan --vm").count();
        if let Some(differs) = differs(&here, &said_elsewhere(&report_of(&host.root))) {
            problems.push(format!("{name}:\n  {differs}"));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert!(plans > 0, "no plan of any VM");
}

/// What is in no report: each stands in the files below, and in what programs say.
const SECRETS: [&str; 24] = [
    "550e8400-e29b-41d4-a716-446655440000",
    "GPU-11111111-2222",
    "0123456789abcdef0123456789abcdef",
    "BC:24:11:AA:00:01",
    "bc:24:11:aa:00:01",
    "192.168.77.5",
    "fd00:77::5",
    "hunter2",
    "correct horse",
    "AAAAC3NzaC1lZDI1NTE5AAAAIPlanted",
    "$6$planted",
    "eyJplanted",
    "atlas",
    "hermes",
    "planted.example",
    "carol",
    "dave",
    "4C530001planted",
    "secret-project",
    "a-private-path",
    "bm90IGEga2V5",
    "ops@planted",
    "before-the-move",
    "proxy-word",
];

const EVERYTHING: &str = "uuid 550e8400-e29b-41d4-a716-446655440000 nvidia GPU-11111111-2222-4333-8444-555555555555\n\
    machine 0123456789abcdef0123456789abcdef mac BC:24:11:AA:00:01 and bc:24:11:aa:00:01 vfio\n\
    ip 192.168.77.5 and fd00:77::5 on atlas.planted.example, hermes iommu\n\
    nvidia password=hunter2 token: correct horse\n\
    nvidia ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPlanted x $6$planted$abcdefgh eyJplanted.abcdef.ghi\n\
    nvidia /home/carol/a dave ops@planted.example SerialNumber: 4C530001planted\n\
    nvidia http://me:proxy-word@192.168.77.5:3128/\n\
    -----BEGIN PRIVATE KEY-----\nbm90IGEga2V5\n-----END PRIVATE KEY-----\n";

const OF_A_VM: &str = "#a description: secret-project, hunter2\nname: secret-project\ncipassword: hunter2\n\
    sshkeys: ssh-ed25519%20AAAAC3NzaC1lZDI1NTE5AAAAIPlanted\nargs: -device vfio-pci -fw_cfg name=a-private-path\n\
    net0: virtio=BC:24:11:AA:00:01\nscsi0: a-private-path:1\nsmbios1: uuid=550e8400-e29b-41d4-a716-446655440000\n\
    vmgenid: 550e8400-e29b-41d4-a716-446655440000\n[before-the-move]\nname: secret-project\n";

const PLANTED: Ask = hosts::with(&[
    Edit::File("/proc/sys/kernel/hostname", "atlas\n"),
    Edit::Dir("/etc/pve/nodes/hermes"),
    Edit::File(
        "/etc/passwd",
        "root:x:0:0::/root:/bin/sh\ndave:x:1000:1000::/home/dave:/bin/sh\n",
    ),
    Edit::Append(hosts::VM, OF_A_VM),
    Edit::Append(
        hosts::CT,
        "hostname: secret-project\nlxc.environment: TOKEN=hunter2\nlxc.mount.entry: /srv/a-private-path srv none bind\n",
    ),
    Edit::Append(
        "/proc/cmdline",
        " root=UUID=550e8400-e29b-41d4-a716-446655440000 ip=192.168.77.5 password=hunter2\n",
    ),
    Edit::File("/etc/modprobe.d/planted.conf", EVERYTHING),
    Edit::File(
        "/etc/gpu-handoff/config.toml",
        "# 192.168.77.5 atlas hunter2: password=hunter2\n",
    ),
    Edit::File("/etc/udev/rules.d/70-planted.rules", EVERYTHING),
    Edit::File(
        "/etc/pve/jobs.cfg",
        "vzdump: daily\n\tmailto ops@planted.example\n\tvmid 111\n\tcomment secret-project\n",
    ),
    Edit::File(
        "/etc/pve/storage.cfg",
        "cifs: media\n\tserver 192.168.77.5\n\tusername dave\n\tcontent snippets\n",
    ),
    Edit::File(
        "/etc/docker/daemon.json",
        "{\"http-proxy\": \"http://me:proxy-word@h\",\n \"nvidia\": {}}\n",
    ),
    Edit::File(
        "/var/lib/vz/snippets/user-data",
        "password: hunter2\nmodprobe nvidia # secret-project\n",
    ),
    Edit::File("/programs/pveversion -v", EVERYTHING),
    Edit::File("/programs/uname -srvmo", EVERYTHING),
    Edit::File("/programs/lspci -nnk", EVERYTHING),
    Edit::File(
        "/programs/journalctl -k -b -q --no-pager --no-hostname -o short-monotonic",
        EVERYTHING,
    ),
    Edit::File(
        "/programs/journalctl -t gpu-handoff -q --no-pager --no-hostname -o short-iso -n 5000",
        EVERYTHING,
    ),
    Edit::File("/programs/failed/modinfo -F version nvidia", EVERYTHING),
]);

#[test]
fn planted_secrets_are_not_in_a_report_and_what_is_asked_for_is() {
    let host = host(&PLANTED);
    let report = report_of(&host.root);
    let mut bytes = Vec::new();
    GzDecoder::new(&report.bytes[..]).read_to_end(&mut bytes).unwrap();
    let text = String::from_utf8_lossy(&bytes);
    let lower = text.to_ascii_lowercase();
    for secret in SECRETS {
        if let Some(at) = lower.find(&secret.to_ascii_lowercase()) {
            let from = (0..=at.saturating_sub(200))
                .rev()
                .find(|i| lower.is_char_boundary(*i))
                .unwrap();
            panic!(
                "{secret} is in it: {}",
                lower[from..].chars().take(400).collect::<String>()
            );
        }
    }
    for there in [
        "r/contents.txt",
        "r/check.txt",
        "r/check.json",
        "r/status.json",
        "r/plan-111.txt",
        "r/history.json",
        "r/kernel-log.txt",
        "r/host/etc/pve/nodes/pve/qemu-server/111.conf",
        "hostpci0: ",
        "args: vfio-pci",
        "root=UUID=UUID-",
        "cifs: media",
        "HOST-2",
    ] {
        assert!(text.contains(there), "{there} is missing");
    }
    let names: Vec<&str> = report.list.iter().map(|one| one.name.as_str()).collect();
    assert!(names.contains(&"journal.txt") && names.contains(&"host/"), "{names:?}");
    // It says the same elsewhere, with the placeholders.
    let elsewhere = said_elsewhere(&report);
    let kept = |name: &str| {
        let tree = GzDecoder::new(&report.bytes[..]);
        let mut archive = tar::Archive::new(tree);
        let mut entries = archive.entries().unwrap().map(Result::unwrap);
        let mut entry = entries.find(|e| e.path().unwrap().as_ref() == Path::new(name)).unwrap();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        text
    };
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let here = format!(
        "{} == plan --vm 111 {}",
        words(&kept("r/check.txt")),
        words(&kept("r/plan-111.txt"))
    );
    let there = words(&elsewhere);
    let same = here
        .split(' ')
        .zip(there.split(' '))
        .take_while(|(a, b)| a == b)
        .count();
    let from = |text: &str| {
        text.split(' ')
            .skip(same.saturating_sub(12))
            .take(24)
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert!(here == there, "here: {}\nelsewhere: {}", from(&here), from(&there));
}

#[test]
fn what_cannot_be_had_is_a_line_of_the_list_and_what_is_too_long_is_cut() {
    let report = Report {
        files: vec![
            ("lspci.txt".to_owned(), Err("'lspci -nnk' cannot be run".to_owned())),
            ("long.txt".to_owned(), Ok("x\n".repeat(LONGEST))),
        ],
        ..Report::default()
    };
    let packed = pack(report, &mut Redactor::default(), "r", 0).unwrap();
    let lines: Vec<(usize, Option<&str>)> = packed.list.iter().map(|l| (l.size, l.missing.as_deref())).collect();
    assert_eq!(
        lines,
        [
            (0, Some("'lspci -nnk' cannot be run")),
            (LONGEST, Some("it is cut: it had 2097152 bytes")),
            (0, None),
        ]
    );
}

/// An archive of these entries: path, kind, target or text.
fn archive(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
    let mut archive = Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (path, kind, text) in entries {
        let mut header = Header::new_gnu();
        // As somebody writes it who does not ask the library.
        header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        let is_file = *kind == EntryType::Regular;
        if !is_file {
            header.as_gnu_mut().unwrap().linkname[..text.len()].copy_from_slice(text.as_bytes());
        }
        let bytes = if is_file { text.as_bytes() } else { &[] };
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        archive.append(&header, bytes).unwrap();
    }
    archive.into_inner().unwrap().finish().unwrap()
}

#[test]
fn an_archive_that_means_ill_is_refused_and_leaves_nothing_behind() {
    use EntryType::{Char, Directory, Link, Regular, Symlink};
    let long = "x".repeat(LONGEST + 1);
    let dir = ("r/host/", Directory, "");
    for (entries, why) in [
        (&[("r/host/../../x", Regular, "x")][..], "leads out of it"),
        (&[("/r/host/x", Regular, "x")], "leads out of it"),
        (&[("../host/x", Regular, "x")], "leads out of it"),
        (&[("r/host/a/l", Symlink, "../../x")], "is a link that leads out of it"),
        (
            &[("r/host/l", Symlink, "/etc/shadow")],
            "is a link that leads out of it",
        ),
        (&[("r/host/l", Symlink, "a/../../x")], "is a link that leads out of it"),
        (
            &[("r/host/l", Symlink, "a"), ("r/host/l/x", Regular, "x")],
            "is in a folder that is none",
        ),
        (
            &[("r/host/x", Regular, "x"), ("r/host/x", Regular, "y")],
            "cannot be made",
        ),
        (
            &[("r/host/l", Symlink, "x"), ("r/host/l", Regular, "y")],
            "cannot be made",
        ),
        (
            &[dir, ("r/host/x", Link, "r/host/y")],
            "is neither file, folder nor link",
        ),
        (&[dir, ("r/host/x", Char, "")], "is neither file, folder nor link"),
        (&[("r/host/x", Regular, &long)], "is longer than a file of a report"),
        (&[("r/contents.txt", Regular, "x")], "it has no host in it"),
    ] {
        let error = unpack(&archive(entries)[..]).unwrap_err();
        assert!(error.contains(why), "{}: {error}", entries[0].0);
    }
    let good = archive(&[
        dir,
        ("r/host/proc/cmdline", Regular, "quiet\n"),
        ("r/host/proc/l", Symlink, "cmdline"),
    ]);
    let tree = unpack(&good[..]).unwrap();
    let root = tree.root();
    assert_eq!(fs::read_to_string(root.join("proc/l")).unwrap(), "quiet\n");
    let mode = fs::metadata(root.parent().unwrap()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    drop(tree);
    assert!(!root.parent().unwrap().exists());
    for damaged in [&good[..good.len() / 2], b"no archive", b""] {
        let error = unpack(damaged).unwrap_err();
        assert!(
            error.contains("it is no whole archive") || error.contains("it has no host"),
            "{error}"
        );
    }
}

#[test]
fn times_modes_and_links_come_through_an_archive() {
    let entry = |mode, what| Entry {
        mode,
        changed: 1_700_000_000,
        what,
    };
    let report = Report {
        host: [
            ("/etc", entry(0o755, What::Dir)),
            ("/etc/hook", entry(0o755, What::Text("x".to_owned()))),
            ("/etc/link", entry(0o777, What::Link("hook".to_owned()))),
            ("/sys", entry(0o555, What::Dir)),
            ("/sys/config", entry(0o444, What::Bytes(vec![0xde, 0x10]))),
        ]
        .map(|(path, entry)| (path.to_owned(), entry))
        .into(),
        ..Report::default()
    };
    let packed = pack(report, &mut Redactor::default(), "r", 0).unwrap();
    let tree = unpack(&packed.bytes[..]).unwrap();
    let meta = |path: &str| fs::metadata(tree.root().join(path)).unwrap();
    assert_eq!(meta("etc/hook").permissions().mode() & 0o777, 0o755);
    let changed = meta("etc/link").modified().unwrap();
    assert_eq!(
        changed.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs(),
        1_700_000_000
    );
    assert_eq!(meta("sys").permissions().mode() & 0o777, 0o555);
    assert_eq!(fs::read(tree.root().join("sys/config")).unwrap(), [0xde, 0x10]);
}

fn run(args: &[&str], dir: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gpu-handoff"))
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[test]
fn the_program_writes_one_for_root_alone_and_never_over_anything() {
    let dir = tempfile::tempdir().unwrap();
    let output = run(&["report", "--output", "r.tar.gz"], dir.path());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    if !nix::unistd::geteuid().is_root() {
        assert_eq!(output.status.code(), Some(3), "{text}");
        return;
    }
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert_eq!(output.stdout, b"r.tar.gz\n");
    assert!(text.contains("check.txt") && text.contains("host/"), "{text}");
    let file = dir.path().join("r.tar.gz");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let before = fs::read(&file).unwrap();
    symlink("nowhere", dir.path().join("link")).unwrap();
    for there in ["r.tar.gz", "link"] {
        let output = run(&["report", "--output", there], dir.path());
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "{text}");
        assert!(text.contains(&format!("{there} is there already. Hint: ")), "{text}");
    }
    assert_eq!(fs::read(&file).unwrap(), before);
    assert!(!dir.path().join("nowhere").exists());
    // This machine, elsewhere.
    let here = run(&["check", "--json"], dir.path());
    let there = run(&["report", "--replay", "r.tar.gz", "check", "--json"], dir.path());
    assert_eq!(here.status.code(), there.status.code());
    let findings = |output: &Output| {
        let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let levels = value["findings"].as_array().unwrap().iter();
        levels
            .map(|f| format!("{} {}", f["id"], f["level"]))
            .collect::<Vec<_>>()
    };
    assert_eq!(findings(&here), findings(&there));
}
