//! What is read of texts that others have written: no input may make it panic, hang or take memory without end.
//!
//! One program with all targets, of which FUZZ_TARGET names one: `tests/fuzz` builds and runs it. What is a parser of bytes or
//! text gets the input; what reads files gets a tree in memory with the input as one of them.
#![no_main]
#![allow(missing_docs)] // the engine's macro makes functions

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use gpu_handoff::attach::pending;
use gpu_handoff::base::clock::Since;
use gpu_handoff::base::root::Root;
use gpu_handoff::host::belongs::Belongs;
use gpu_handoff::host::{grub_config, modprobe_config, module_lists, snapshot};
use gpu_handoff::model::record::Record;
use gpu_handoff::proxmox::container_config;
use gpu_handoff::proxmox::grammar::generation::Generation;
use gpu_handoff::proxmox::mappings::Mappings;
use gpu_handoff::proxmox::reservations::Reservations;
use gpu_handoff::proxmox::vm_config;
use gpu_handoff::report::unpack::unpack;
use gpu_handoff::settings::file;
use libfuzzer_sys::{Corpus, fuzz_target};

/// Reads an input.
type Target = fn(&[u8]);

/// All of them, by name.
const TARGETS: [(&str, Target); 9] = [
    ("vm-config", of_vm_config),
    ("mapping", |data| _ = Mappings::parse(data)),
    ("reservation", |data| _ = Reservations::parse(data)),
    ("container-config", of_container_config),
    ("settings", of_settings),
    ("record", of_record),
    ("report", |data| _ = unpack(data)),
    ("kernel-texts", of_kernel_texts),
    ("config-lists", of_config_lists),
];

static TARGET: OnceLock<Target> = OnceLock::new();

fuzz_target!(init: {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let found = TARGETS.iter().find(|(known, _)| *known == name);
    let Some((_, target)) = found else {
        let known: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
        println!("{}", known.join("\n"));
        std::process::exit(if name.is_empty() { 0 } else { 2 });
    };
    TARGET.get_or_init(|| *target);
}, |data: &[u8]| -> Corpus {
    if let Some(target) = TARGET.get() {
        target(data);
    }
    Corpus::Keep
});

/// In each of Proxmox's grammars, and as attach shows what waits for the next start.
fn of_vm_config(data: &[u8]) {
    for generation in [Generation::Pve8, Generation::Pve9Early, Generation::Pve9] {
        let config = vm_config::parse(data, generation);
        assert!(config.hostpci().count() <= usize::from(vm_config::MAX_HOSTPCI));
    }
    let text = String::from_utf8_lossy(data);
    let _ = (pending::keys(&text), pending::applied(&text));
}

/// Every line that is understood can be shown.
fn of_container_config(data: &[u8]) {
    for reference in container_config::parse(data) {
        assert!(!reference.to_string().is_empty());
    }
}

/// As the file, of which whoever may write it is root; a refusal names a line.
fn of_settings(data: &[u8]) {
    thread_local!(static TREE: tempfile::TempDir = in_memory());
    TREE.with(|tree| {
        let path = tree.path().join("etc/gpu-handoff");
        put(&path.join("config.toml"), data);
        if let Err(why) = file::load(&Root::at(tree.path()), None) {
            assert!(!why.to_string().is_empty());
        }
    });
}

/// A record that is read is written and read again as the same.
fn of_record(data: &[u8]) {
    if let Ok(record) = serde_json::from_slice::<Record>(data) {
        let text = serde_json::to_vec(&record).expect("a record can be written");
        let again: Record = serde_json::from_slice(&text).expect("what was written can be read");
        assert_eq!(record, again);
    }
}

/// What the kernel says, as far as others choose words of it: the first byte chooses the file.
const TEXTS: [&str; 14] = [
    "proc/modules",
    "proc/devices",
    "proc/cmdline",
    "proc/fb",
    "proc/consoles",
    "proc/locks",
    "proc/900/stat",
    "proc/900/cgroup",
    "proc/900/comm",
    "proc/900/maps",
    "proc/900/status",
    "proc/driver/nvidia/gpus/0000:01:00.0/information",
    "sys/bus/pci/devices/0000:01:00.0/class",
    "run/systemd/sessions/3",
];

fn of_kernel_texts(data: &[u8]) {
    thread_local!(static TREE: tempfile::TempDir = a_host());
    let Some((which, text)) = data.split_first() else {
        return;
    };
    TREE.with(|tree| {
        let path = tree.path().join(TEXTS[usize::from(*which) % TEXTS.len()]);
        let before = fs::read(&path).ok();
        put(&path, text);
        let _ = snapshot::read(&Root::at(tree.path()), &[]);
        match before {
            Some(before) => put(&path, &before),
            None => fs::remove_file(&path).expect("what was put there is there"),
        }
    });
}

/// Configuration that is read word by word.
fn of_config_lists(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let _ = modprobe_config::parse("/etc/modprobe.d/x.conf", &text);
    let _ = module_lists::parse("/etc/modules", &text, &['#', ';']);
    let _ = grub_config::parse("/etc/default/grub", &text);
    let _ = Belongs::of_cgroup(&text);
    let _ = Since::parse(&text);
}

fn in_memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").expect("a folder in memory")
}

/// A host with a GPU and a process that has it open.
fn a_host() -> tempfile::TempDir {
    let tree = in_memory();
    for (file, text) in [
        ("proc/modules", "nvidia 1 2 nvidia_uvm, Live 0x0\n"),
        ("proc/devices", "Character devices:\n195 nvidia\n511 nvidia-uvm\n"),
        (
            "proc/900/stat",
            "900 (x) S 1 900 900 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4711 0\n",
        ),
        ("proc/900/cgroup", "0::/user.slice/user-0.slice/session-3.scope\n"),
        ("proc/900/comm", "x\n"),
        ("sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n"),
        ("sys/bus/pci/devices/0000:01:00.0/device", "0x2204\n"),
        ("sys/bus/pci/devices/0000:01:00.0/class", "0x030000\n"),
        ("run/systemd/sessions/3", "CLASS=user\nTYPE=tty\nUID=0\n"),
    ] {
        put(&tree.path().join(file), text.as_bytes());
    }
    tree
}

fn put(path: &Path, bytes: &[u8]) {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).expect("a folder in memory");
    }
    fs::write(path, bytes).expect("a file in memory");
}
