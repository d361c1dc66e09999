//! The hosts of the checks: one that is ready for handoffs, and what can be changed on it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use gpu_handoff::base::pci::PciAddr;
use gpu_handoff::base::root::Root;
use gpu_handoff::check::facts::{Asked, Facts, Lent};
use gpu_handoff::check::read::{Part, read};
use gpu_handoff::check::texts::Texts;
use gpu_handoff::host::belongs::Belongs;
use gpu_handoff::host::functions::read_details;
use gpu_handoff::host::holders::Holder;
use gpu_handoff::host::nodes::Node;
use gpu_handoff::host::unit_states;
use gpu_handoff::plan::clients;
use gpu_handoff::proxmox::files;
use gpu_handoff::settings::file;

use crate::asked::Host;

pub const VM: &str = "/etc/pve/nodes/pve/qemu-server/111.conf";
pub const CT: &str = "/etc/pve/nodes/pve/lxc/104.conf";
pub const LINK: &str = "/var/lib/vz/snippets/gpu-handoff";

/// A change.
#[derive(Clone, Copy, Debug)]
pub enum Edit {
    /// A file has this text.
    File(&'static str, &'static str),
    /// A file has this text at its end, too.
    Append(&'static str, &'static str),
    /// A file's text has this for that.
    Replace(&'static str, &'static str, &'static str),
    /// It is not there.
    Without(&'static str),
    /// A link leads there, whether something is there or not.
    Link(&'static str, &'static str),
    /// A folder is there.
    Dir(&'static str),
    /// A file has this mode.
    Mode(&'static str, u32),
    /// A file was changed an hour ago.
    Old(&'static str),
    /// It was changed after all others.
    New(&'static str),
}

/// Which machine is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// The one that is ready.
    Ready,
    /// One of tests/hosts, as it is.
    Other(&'static str),
}

/// What is asked of a host, and what a tree of files cannot show.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    pub machine: Machine,
    pub edits: &'static [Edit],
    pub vm: Option<&'static str>,
    pub ct: Option<&'static str>,
    pub full: bool,
    pub root: bool,
    /// A process of a login session has the GPU open.
    pub used: bool,
    /// A file of a record that is none.
    pub unreadable: Option<&'static str>,
    /// A part that gave no answer.
    pub missed: Option<Part>,
}

/// The host that is ready, as it is.
pub const READY: Ask = Ask {
    machine: Machine::Ready,
    edits: &[],
    vm: None,
    ct: None,
    full: false,
    root: true,
    used: false,
    unreadable: None,
    missed: None,
};

/// With changes.
pub const fn with(edits: &'static [Edit]) -> Ask {
    Ask { edits, ..READY }
}

/// Another machine.
pub const fn other(name: &'static str) -> Ask {
    Ask {
        machine: Machine::Other(name),
        ..READY
    }
}

/// What is changed of single-gpu beyond what is added to it.
const OF_READY: &[Edit] = &[
    Edit::Link(LINK, "/usr/sbin/gpu-handoff"),
    Edit::Mode("/usr/sbin/gpu-handoff", 0o755),
    Edit::File(
        "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c",
        "\u{6}\0\0\0\0",
    ),
    Edit::File(
        "/var/lib/dpkg/status",
        "Package: pve-manager\nStatus: install ok installed\nVersion: 9.1.11\n\nPackage: qemu-server\nStatus: install ok \
         installed\nVersion: 9.2.6\n\nPackage: zlib1g\nStatus: install ok installed\nVersion: 1\n",
    ),
    Edit::New("/boot/initrd.img-6.14.11-4-pve"),
    Edit::Append(CT, "hookscript: local:snippets/gpu-handoff\n"),
    Edit::Append("/proc/consoles", "ttyS0                -W- (EC  p a)    4:64\n"),
    Edit::File(
        "/sys/devices/pci0000:00/0000:00:03.1/0000:0b:00.0/max_link_width",
        "16\n",
    ),
    Edit::File(
        "/sys/devices/pci0000:00/0000:00:03.1/0000:0b:00.0/current_link_speed",
        "16.0 GT/s PCIe\n",
    ),
    Edit::File(
        "/sys/devices/pci0000:00/0000:00:03.1/0000:0b:00.0/max_link_speed",
        "16.0 GT/s PCIe\n",
    ),
    Edit::File("/sys/devices/pci0000:00/0000:00:03.1/0000:0b:00.0/sriov_numvfs", "0\n"),
];

fn below(root: &Root, path: &str) -> PathBuf {
    root.path(path)
}

fn set_changed(root: &Root, path: &str, when: SystemTime) -> std::io::Result<()> {
    fs::File::options()
        .write(true)
        .open(below(root, path))?
        .set_modified(when)
}

fn apply(root: &Root, edit: &Edit) -> std::io::Result<()> {
    let parent = |path: &str| match below(root, path).parent() {
        Some(parent) => fs::create_dir_all(parent),
        None => Ok(()),
    };
    let remove = |path: &str| {
        let path = below(root, path);
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
            Ok(_) => fs::remove_file(path),
            Err(e) => Err(e),
        }
    };
    match edit {
        Edit::File(path, text) => {
            parent(path)?;
            fs::write(below(root, path), text)
        }
        Edit::Append(path, text) => {
            let path = below(root, path);
            let before = fs::read_to_string(&path).unwrap_or_default();
            fs::write(path, before + text)
        }
        Edit::Replace(path, from, to) => {
            let path = below(root, path);
            let before = fs::read_to_string(&path)?;
            assert!(before.contains(from), "{} has no '{from}'", path.display());
            fs::write(path, before.replace(from, to))
        }
        Edit::Without(path) => remove(path),
        Edit::Link(path, target) => {
            parent(path)?;
            let _ = remove(path);
            symlink(target, below(root, path))
        }
        Edit::Dir(path) => fs::create_dir_all(below(root, path)),
        Edit::Mode(path, mode) => fs::set_permissions(below(root, path), fs::Permissions::from_mode(*mode)),
        Edit::Old(path) => set_changed(root, path, SystemTime::now() - Duration::from_secs(3600)),
        Edit::New(path) => set_changed(root, path, SystemTime::now() + Duration::from_secs(3600)),
    }
}

/// The host, changed.
pub fn host(ask: &Ask) -> Host {
    let hosts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let host = match ask.machine {
        Machine::Ready => {
            let read = |path: &str| fs::read_to_string(hosts.join(path)).unwrap();
            Host::from_text(&(read("hosts/single-gpu/host") + &read("check/host"))).unwrap()
        }
        Machine::Other(name) => Host::of(&hosts.join("hosts").join(name)).unwrap(),
    };
    let of_ready = if ask.machine == Machine::Ready { OF_READY } else { &[] };
    for edit in of_ready.iter().chain(ask.edits) {
        apply(&host.root, edit).unwrap_or_else(|e| panic!("{edit:?}: {e}"));
    }
    host
}

/// What the checks look at there: as `gpu-handoff check` reads it, without workers.
pub fn facts(host: &Host, ask: &Ask) -> Facts {
    let root = &host.root;
    let number = |text: Option<&str>| text.map(|t| t.parse().unwrap());
    let mut snapshot = host.look().unwrap();
    let all: Vec<PciAddr> = snapshot.functions.iter().map(|f| f.addr).collect();
    snapshot.complete(&all, read_details(root, &all));
    let gpus: Vec<PciAddr> = snapshot.gpus().map(|f| f.addr).collect();
    if ask.used {
        snapshot.holders.push(Holder {
            pid: 4321,
            comm: "python3".to_owned(),
            belongs_to: Belongs::Session { id: "3".to_owned() },
            nodes: vec![Node::Gpu(gpus[0])],
        });
    }
    let settings = file::load(root, number(ask.vm));
    let asked_units = clients::to_ask(&snapshot, &gpus, &[], settings.as_ref().unwrap_or(&Default::default()));
    snapshot.units = unit_states::read(root, &asked_units);
    let mut parts = vec![
        Part::Host,
        Part::Modules,
        Part::Proxmox,
        Part::Containers,
        Part::Snippets,
    ];
    parts.extend(ask.full.then_some(Part::Slow));
    let mut texts = Texts::default();
    for part in parts {
        match ask.missed == Some(part) {
            true => texts
                .missed
                .push((part.covers().to_owned(), "no answer within 10 s".to_owned())),
            false => texts.add(read(root, part)),
        }
    }
    let cluster = files::cluster_text(root).unwrap().parse();
    let lent = Lent {
        records: Vec::new(),
        unreadable: ask.unreadable.into_iter().map(str::to_owned).collect(),
    };
    let asked = Asked {
        vm: number(ask.vm),
        ct: number(ask.ct),
        full: ask.full,
        root: ask.root,
    };
    Facts::of(snapshot, texts, settings, cluster, lent, asked)
}
