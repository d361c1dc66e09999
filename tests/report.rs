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
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use gpu_handoff::base::deadlines::Budgets;
use gpu_handoff::base::process::{Group, Process};
use gpu_handoff::base::recording::{Entry, What};
use gpu_handoff::base::root::Root;
use gpu_handoff::commands::replay::answers;
use gpu_handoff::commands::report::packed;
use gpu_handoff::model::act::Act;
use gpu_handoff::model::record::{Owner, Record, Run, State, Taken, Wedge};
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

/// A network adapter of the host usb-disk-in-use.
const ADAPTER: &str = "enx00e04c680001";

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
        let there = said_elsewhere(&report_of(&host.root));
        // A network adapter is called by its address: that is another one in a report, and lines are of another length.
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join("\n");
        let (here, there) = match here.contains(ADAPTER) {
            true => (words(&here.replace(ADAPTER, "enxMAC-1")), words(&there)),
            false => (here, there),
        };
        if let Some(differs) = differs(&here, &there) {
            problems.push(format!("{name}:\n  {differs}"));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert!(plans > 0, "no plan of any VM");
}

/// What is in no report: each stands in the files below, and in what programs say.
const SECRETS: [&str; 44] = [
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
    "192.168.77.1",
    "192.168.77.254",
    "255.255.255.0",
    "192.168.77.9",
    "bc-24-11-aa-00-01",
    "bc2411aa0001",
    "0e4c8a6b1f2d11ec8a5e0242ac130003",
    "A50285BIplanted",
    "S6PUNX0Tplanted",
    "5000c500a1b2c3d4",
    "550e8400\\x2de29b",
    "topicplanted",
    "bearerplanted",
    "wordplanted",
    "passplanted",
    "pwdplanted",
    "pskplanted",
    "botplanted",
    "pending-divorce",
    "jsonplanted",
];

const EVERYTHING: &str = "uuid 550e8400-e29b-41d4-a716-446655440000 nvidia GPU-11111111-2222-4333-8444-555555555555\n\
    machine 0123456789abcdef0123456789abcdef mac BC:24:11:AA:00:01 and bc:24:11:aa:00:01 vfio\n\
    ip 192.168.77.5 and fd00:77::5 on atlas.planted.example, hermes iommu\n\
    nvidia password=hunter2 token: correct horse\n\
    nvidia ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPlanted x $6$planted$abcdefgh eyJplanted.abcdef.ghi\n\
    nvidia /home/carol/a dave ops@planted.example SerialNumber: 4C530001planted\n\
    nvidia http://me:proxy-word@192.168.77.5:3128/\n\
    nvidia ip=192.168.77.5::192.168.77.254:255.255.255.0::eth0:off addr:192.168.77.9 peer:fd00:77::5 BOOTIF=01-bc-24-11-aa-00-01\n\
    nvidia r8169 0000:05:00.0 eth0: BC:24:11:AA:00:01: link up, mac:bc:24:11:aa:00:01, renamed to enxbc2411aa0001\n\
    nvidia resume=/dev/disk/by-id/ata-Samsung_SSD_S6PUNX0Tplanted wwn-0x5000c500a1b2c3d4 /dev/mapper/atlas_vg-root\n\
    nvidia luks\\x2d550e8400\\x2de29b\\x2d41d4\\x2da716\\x2d446655440000.service\n\
    nvidia curl -u me:hunter2 -H 'Authorization: Bearer bearerplanted' https://ntfy.sh/topicplanted --password wordplanted\n\
    nvidia pass=passplanted pwd=pwdplanted psk=pskplanted https://api.telegram.org/bot1234:botplanted/send\n\
    nvidia {\"line\": \"password=\\\"jsonplanted jsonplanted\\\"\"}\n\
    -----BEGIN PRIVATE KEY-----\nbm90IGEga2V5\n-----END PRIVATE KEY-----\n";

const OF_A_VM: &str = "#a description: secret-project, hunter2\nname: secret-project\ncipassword: hunter2\n\
    sshkeys: ssh-ed25519%20AAAAC3NzaC1lZDI1NTE5AAAAIPlanted\nargs: -device vfio-pci -fw_cfg name=a-private-path\n\
    net0: virtio=BC:24:11:AA:00:01\nscsi0: a-private-path:1\nsmbios1: uuid=550e8400-e29b-41d4-a716-446655440000\n\
    vmgenid: 550e8400-e29b-41d4-a716-446655440000\n[before-the-move]\nname: secret-project\n\
    [pending-divorce]\nname: secret-project\n";

const RULES: &str = "SUBSYSTEM==\"tty\", ATTRS{serial}==\"A50285BIplanted\", ENV{ID_SERIAL_SHORT}==\"S6PUNX0Tplanted\"\n\
    RUN+=\"/usr/bin/curl -u me:hunter2 https://ntfy.sh/topicplanted\"\n";

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
        "dev5: /dev/serial/by-id/usb-ITead_Zigbee_0e4c8a6b1f2d11ec8a5e0242ac130003-if00-port0,uid=0\nhostname: secret-project\nlxc.environment: TOKEN=hunter2\nlxc.mount.entry: /srv/a-private-path srv none bind\n",
    ),
    Edit::Append(
        "/proc/cmdline",
        " root=UUID=550e8400-e29b-41d4-a716-446655440000 ip=192.168.77.5:192.168.77.1:192.168.77.254:255.255.255.0:atlas:eth0:off \
         BOOTIF=01-bc-24-11-aa-00-01 password=hunter2\n",
    ),
    Edit::File("/etc/modprobe.d/planted.conf", EVERYTHING),
    Edit::File(
        "/etc/gpu-handoff/config.toml",
        "# 192.168.77.5 atlas hunter2: password=hunter2\n",
    ),
    Edit::File("/etc/udev/rules.d/70-planted.rules", EVERYTHING),
    Edit::File("/etc/udev/rules.d/71-planted.rules", RULES),
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

const DEV: Ask = hosts::with(&[Edit::File(
    "/etc/passwd",
    "root:x:0:0::/root:/bin/sh\ndev:x:1000:1000::/home/dev:/bin/sh\n",
)]);
const QEMU: Ask = hosts::with(&[Edit::File(
    "/etc/passwd",
    "root:x:0:0::/root:/bin/sh\nqemu:x:1000:1000::/home/x:/bin/sh\n",
)]);
const OPEN: Ask = hosts::with(&[Edit::File(
    "/etc/passwd",
    "root:x:0:0::/root:/bin/sh\nopen:x:1000:1000::/home/x:/bin/sh\nholders:x:1001:1000::/home/y:/bin/sh\n",
)]);
const STORAGE: Ask = hosts::with(&[
    Edit::Dir("/etc/pve/nodes/storage"),
    Edit::File(
        "/etc/pve/storage.cfg",
        "dir: local\n\tpath /var/lib/vz\n\tcontent snippets\n",
    ),
]);
const LXC: Ask = hosts::with(&[Edit::Dir("/etc/pve/nodes/lxc")]);
const Q35: Ask = hosts::with(&[Edit::Dir("/etc/pve/nodes/q35")]);
const BOB: Ask = hosts::with(&[
    Edit::File(
        "/etc/passwd",
        "root:x:0:0::/root:/bin/sh\nbob:x:1000:1000::/home/bob:/bin/sh\n",
    ),
    Edit::File("/etc/modprobe.d/bob.conf", "blacklist nvidia\n"),
]);

#[test]
fn a_name_that_is_a_word_of_the_hosts_changes_nothing_elsewhere_and_is_in_the_list() {
    for (name, ask) in [
        ("dev", &DEV),
        ("qemu", &QEMU),
        ("open", &OPEN),
        ("storage", &STORAGE),
        ("lxc", &LXC),
        ("q35", &Q35),
        ("bob", &BOB),
    ] {
        let host = host(ask);
        let report = report_of(&host.root);
        assert_eq!(differs(&said(&host.root), &said_elsewhere(&report)), None, "{name}");
        let mut bytes = Vec::new();
        GzDecoder::new(&report.bytes[..]).read_to_end(&mut bytes).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        let left = text.lines().find(|line| line.contains("names are left as they are: "));
        assert!(left.is_some_and(|line| line.contains(name)), "{name}: {left:?}");
    }
}

#[test]
fn a_file_that_is_no_utf_8_is_read_elsewhere_as_it_is_at_home() {
    let host = host(&READY);
    let text = b"# f\xfcr die Grafik\nblacklist nvidia\noptions vfio-pci ids=10de:2204\n";
    fs::write(host.root.path("/etc/modprobe.d/zz.conf"), text).unwrap();
    let vm = host.root.path(hosts::VM);
    let mut bytes = fs::read(&vm).unwrap();
    bytes.extend(b"#gr\xfc\xdfe\n");
    fs::write(&vm, bytes).unwrap();
    let here = said(&host.root);
    assert!(here.contains("FAIL: vfio-ids"), "{here}");
    assert_eq!(differs(&here, &said_elsewhere(&report_of(&host.root))), None);
}

/// A host on which a call of ours is stuck, or a run is at work.
fn with_a_record(change: impl FnOnce(&mut Record)) -> Host {
    let host = host(&READY);
    let boot = "0b0e8400-e29b-41d4-a716-446655440000";
    let write = |path: &str, text: &str| {
        let path = host.root.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("/proc/sys/kernel/random/boot_id", &format!("{boot}\n"));
    write(
        "/proc/4242/stat",
        "4242 (gpu-handoff) D 1 4242 4242 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 777 0 0\n",
    );
    let mut record = Record::new(Owner::Vm("111".parse().unwrap()), boot.to_owned(), Budgets::default());
    record.taken.push(Taken {
        addr: "0000:0b:00.0".parse().unwrap(),
        driver: Some("nvidia".to_owned()),
        module: Some("nvidia".to_owned()),
        driver_override: None,
        width: None,
        attributes: Vec::new(),
        parent: None,
    });
    change(&mut record);
    write("/run/gpu-handoff/vm-111.json", &serde_json::to_string(&record).unwrap());
    host
}

#[test]
fn a_call_that_is_stuck_is_so_elsewhere_and_so_is_a_run_at_work() {
    let group = Group {
        number: 4242,
        started: Some(777),
    };
    let addr = "0000:0b:00.0".parse().unwrap();
    let stuck = with_a_record(|record| {
        record.state = State::Stranded;
        record.wedges.push(Wedge {
            group,
            addrs: vec![addr],
            act: "0000:0b:00.0: unbind from nvidia".to_owned(),
            stack: "nv_wait+0x1".to_owned(),
            holders: Vec::new(),
        });
    });
    let at_work = with_a_record(|record| {
        record.workers.push(group);
        let process = Process {
            pid: 4242,
            started: 777,
        };
        record.run = Some(Run { process, since_ms: 1 });
        record.under_way = vec![Act::Unbind {
            addr,
            driver: "nvidia".to_owned(),
        }];
    });
    for (host, said_here) in [(stuck, "is stuck in the kernel"), (at_work, "process 4242")] {
        let here = said(&host.root);
        assert!(here.contains(said_here), "{here}");
        assert_eq!(differs(&here, &said_elsewhere(&report_of(&host.root))), None);
    }
}

#[test]
fn a_reservation_holds_as_long_elsewhere_as_at_home() {
    let host = host(&READY);
    let path = host.root.path("/run/qemu-server/pci-id-reservations");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    // Of a tree with a moment of its own, which is long ago.
    fs::write(host.root.path("/moment"), "1700000000 60000\n").unwrap();
    fs::write(
        path,
        "0000:0b:00.0 112 time:1700000006\n0000:0b:00.1 112 time:1700000006\n",
    )
    .unwrap();
    let here = said(&host.root);
    assert!(here.contains("FAIL: vm-hostpci"), "{here}");
    assert_eq!(differs(&here, &said_elsewhere(&report_of(&host.root))), None);
}

#[test]
fn what_a_program_said_is_found_elsewhere_by_words_that_are_redacted_and_longer_than_a_name() {
    let names: String = (0..20).map(|n| format!(" of-hermes-{n}.service")).collect();
    let words = format!("systemctl show{names}");
    let entry = |what| Entry {
        mode: 0o644,
        changed: 0,
        what,
    };
    let report = Report {
        host: [
            ("/programs".to_owned(), entry(What::Dir)),
            (format!("/programs/{words}"), entry(What::Text("Id=x\n".to_owned()))),
        ]
        .into(),
        ..Report::default()
    };
    let packed = pack(report, &mut Redactor::new(&["hermes".to_owned()], &[]), "r", 0).unwrap();
    let tree = unpack(&packed.bytes[..]).unwrap();
    assert_eq!(tree.left_out, [""; 0]);
    let words = words.replace("hermes", "HOST");
    let words: Vec<&str> = words.split(' ').collect();
    assert_eq!(Root::at(tree.root()).program(&words).unwrap().stdout, "Id=x\n");
}

#[test]
fn a_link_with_dots_in_it_comes_through() {
    let host = host(&READY);
    symlink(
        "/root/scripts/../hook.pl",
        host.root.path("/var/lib/vz/snippets/mine.pl"),
    )
    .unwrap();
    let tree = unpack(&report_of(&host.root).bytes[..]).unwrap();
    assert_eq!(tree.left_out, [""; 0]);
    let there = Root::at(tree.root()).link("/var/lib/vz/snippets/mine.pl");
    assert_eq!(there.unwrap(), "/root/hook.pl");
}

#[test]
fn what_is_missing_is_in_the_list_and_in_the_tree() {
    let report = Report {
        missing: vec!["files of Proxmox's below /etc/pve: no answer within 5 s".to_owned()],
        ..Report::default()
    };
    let packed = pack(report, &mut Redactor::default(), "r", 0).unwrap();
    let missing: Vec<&str> = packed.list.iter().filter_map(|l| l.missing.as_deref()).collect();
    assert_eq!(missing, ["files of Proxmox's below /etc/pve: no answer within 5 s"]);
    let tree = unpack(&packed.bytes[..]).unwrap();
    let text = fs::read_to_string(tree.root().join("missing")).unwrap();
    assert_eq!(text, "files of Proxmox's below /etc/pve: no answer within 5 s\n");
}

/// A path of Proxmox's files that leads out of the tree, and install lines that lead to each other.
#[test]
fn nothing_outside_a_tree_is_looked_at_and_no_question_leads_to_others_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("secret"), "x").unwrap();
    fs::create_dir(dir.path().join("tree")).unwrap();
    let root = Root::at(dir.path().join("tree"));
    for path in ["/../secret", "/a/../../secret", "../secret"] {
        assert!(!root.exists(path) && root.text(path).is_err(), "{path}");
    }
    let many = "modprobe nvidia; ".repeat(200);
    let path = root.path("/programs/modprobe --show-depends -- nvidia");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, format!("install {many}\n").repeat(20)).unwrap();
    let answers = gpu_handoff::host::modules::read(&root, &["nvidia".to_owned()]);
    let why = answers[0].problem.as_ref().map(ToString::to_string);
    let expected = "modprobe cannot be asked for it: its install lines lead to more than 64 others";
    assert_eq!(why.as_deref(), Some(expected));
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
fn what_means_ill_in_an_archive_is_left_out_and_said_and_a_damaged_one_leaves_nothing_behind() {
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
    ] {
        let whole: Vec<_> = [dir, ("r/host/good", Regular, "good")]
            .iter()
            .chain(entries)
            .copied()
            .collect();
        let tree = unpack(&archive(&whole)[..]).unwrap();
        assert!(
            tree.left_out.len() == 1 && tree.left_out[0].contains(why),
            "{:?}",
            tree.left_out
        );
        assert_eq!(fs::read_to_string(tree.root().join("good")).unwrap(), "good");
    }
    let error = unpack(&archive(&[("r/contents.txt", Regular, "x")])[..]).unwrap_err();
    assert!(error.contains("it has no host in it"), "{error}");
    let many: Vec<String> = (0..40).map(|n| format!("/r/host/{n}")).collect();
    let many: Vec<_> = many
        .iter()
        .map(|path| (path.as_str(), Regular, "x"))
        .chain([dir])
        .collect();
    assert_eq!(unpack(&archive(&many)[..]).unwrap().left_out.len(), 21);
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
fn a_replay_that_is_asked_to_end_does_so_at_once_and_leaves_no_folder() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_gpu-handoff"))
        .args(["report", "--replay"])
        .arg(&pipe)
        .env("TMPDIR", dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // It waits for the rest of this.
    let mut end = fs::OpenOptions::new().write(true).open(&pipe).unwrap();
    end.write_all(&[0x1f, 0x8b]).unwrap();
    let folders = || {
        let entries = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        entries.filter(|name| name.to_string_lossy().contains("replay")).count()
    };
    let soon = Instant::now() + Duration::from_secs(20);
    while folders() == 0 && Instant::now() < soon {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(folders(), 1);
    // The signal is blocked as soon as there is a folder, and waited for.
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    let blocked = || {
        fs::read_to_string(format!("/proc/{pid}/status"))
            .unwrap()
            .contains("SigBlk:\t0000000000004003")
    };
    while !blocked() && Instant::now() < soon {
        std::thread::sleep(Duration::from_millis(10));
    }
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert_eq!(folders(), 0);
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
