//! The model kernel of tests/common against a real one: each text of tests/model_vs_kernel is carried out here on the
//! model, and in the lab on a kernel (tests/lab/scenarios/model-vs-kernel.sh). Answers and end state must be the same.
//!
//! The form of a text is described in tests/model_vs_kernel/README.md. UPDATE_MODEL=1 writes what the model answers
//! instead of comparing it; only the lab can say whether that is right.

#![allow(clippy::unwrap_used)] // a test that cannot set itself up should stop there
#![allow(clippy::print_stdout)] // cargo test catches it

mod common;

use std::fmt::Write as _;
use std::fs;
use std::io::{Write as _, stdout}; // of a passed test, too, which println! is not
use std::path::Path;
use std::time::Duration;

use common::calls::Errno;
use common::hosts::add_consoles;
use common::{End, Model, ProbeFault, Process, Session, addr, host};
use gpu_handoff::base::pci::{PciAddr, VENDOR_NVIDIA};
use gpu_handoff::execute::kernel::Kernel as _;
use gpu_handoff::host::nodes::Node;
use gpu_handoff::model::record::{Owner, Record};
use gpu_handoff::plan::inferred;
use gpu_handoff::settings::values::Settings;
use gpu_handoff::state::store::Ledger as _;

/// The process group of raw calls.
const RAW: u32 = 1;
/// The process that `hold` starts.
const HOLDER: i32 = 777;
/// No call of these texts takes longer.
const LONG: Duration = Duration::from_secs(60);

#[test]
fn the_model_answers_as_the_texts_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/model_vs_kernel");
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == "txt"));
    paths.sort();
    assert!(paths.len() >= 14, "{} texts", paths.len());
    let mut differ = Vec::new();
    for path in &paths {
        let wanted = fs::read_to_string(path).unwrap();
        let is = carry_out(&wanted);
        if std::env::var_os("UPDATE_MODEL").is_some() {
            fs::write(path, &is).unwrap();
        } else if is != wanted {
            differ.push(format!("{}:\n{is}", path.display()));
        }
    }
    writeln!(
        stdout(),
        "{} files, {} as on the model",
        paths.len(),
        paths.len() - differ.len()
    )
    .unwrap();
    assert!(differ.is_empty(), "{}", differ.join("\n"));
}

/// The text with the model's answers and end state in it.
fn carry_out(text: &str) -> String {
    let mut model = host(1);
    add_consoles(&mut model, true);
    model.fbcon_pins = false; // as the lab's stand-in for nvidia_drm has it unless asked otherwise
    let session = Session {
        owner: Owner::ByHand(addr(1, 0)),
        ..Session::new(&[addr(1, 0)])
    };
    let mut is = String::new();
    for line in text.lines().take_while(|l| *l != "== state") {
        let (what, wanted) = match line.split_once(" -> ") {
            Some(parts) if !line.starts_with('#') => parts,
            _ => {
                writeln!(is, "{line}").unwrap();
                continue;
            }
        };
        let words: Vec<&str> = what.split(' ').collect();
        let answer = match words[..] {
            ["out"] => said(session.out(&mut model), wanted),
            ["home"] => said(home(&session, &mut model), wanted),
            _ => match raw(&mut model, &words) {
                Ok(()) => "ok".to_owned(),
                Err(errno) => errno.to_string(),
            },
        };
        writeln!(is, "{what} -> {answer}").unwrap();
    }
    is + "== state\n" + &state(&model)
}

/// An operation that is a call into the kernel, or a switch of the tests.
fn raw(model: &mut Model, words: &[&str]) -> Result<(), Errno> {
    let id = match *words {
        ["override", at, "empty"] => model.write_override(RAW, place(at), ""),
        ["override", at, "clear"] => model.write_override(RAW, place(at), "\n"),
        ["override", at, driver] => model.write_override(RAW, place(at), &format!("{driver}\n")),
        ["unbind", at, driver] => model.unbind(RAW, driver, place(at)),
        ["bind", at, driver] => model.bind(RAW, driver, place(at)),
        ["probe", at] => model.drivers_probe(RAW, place(at)),
        ["new_id", vendor, device] => model.new_id(RAW, "vfio-pci", hex(vendor), hex(device)),
        ["remove_id", vendor, device] => model.remove_id(RAW, "vfio-pci", hex(vendor), hex(device)),
        ["modprobe", name] => model.modprobe(RAW, name),
        ["rmmod", name] => model.delete_module(RAW, name),
        ["remove", at] => model.remove(RAW, place(at)),
        ["rescan"] => model.rescan(RAW, None),
        ["hold", node] => {
            let process = Process::new(HOLDER, &[named(model, node)]);
            return model.open(process);
        }
        ["release"] => {
            model.processes.retain(|p| p.pid != HOLDER);
            return Ok(());
        }
        ["probe-fails", count] => {
            let fault = ProbeFault::Fails(count.parse().unwrap());
            model.probe_faults.push(("nvidia", fault));
            return Ok(());
        }
        ["forget"] => {
            let ledger = model.ledger.get_or_insert_default();
            ledger.remove(Owner::ByHand(addr(1, 0))).unwrap();
            return Ok(());
        }
        _ => panic!("{words:?} is no operation"),
    }?;
    let end = model.time + LONG;
    model
        .wait_for(id, end)
        .unwrap_or_else(|| panic!("{words:?} never ends"))
}

/// The way home by hand; without a record the drivers are inferred, as `to_nvidia` does it.
fn home(session: &Session, model: &mut Model) -> End {
    let settings = Settings::default();
    let ledger = model.ledger.get_or_insert_default();
    let known = ledger.with(session.owner, |_| ()).is_some();
    if !known {
        let snapshot = model.look(&[], settings.budgets.look).unwrap();
        let empty = Record::new(session.owner, "boot".to_owned(), settings.budgets.clone());
        let record = inferred::inferred(&snapshot, &session.gpus, empty);
        model.ledger.get_or_insert_default().put(record);
    }
    let end = session.home(model);
    if !known && matches!(end, End::Refused(_)) {
        model.ledger.get_or_insert_default().remove(session.owner).unwrap(); // the program has not written it yet
    }
    end
}

/// A run's exit status, with the words that are wanted where they are in what it said, or else all it said.
fn said(end: End, wanted: &str) -> String {
    let (status, text) = match end {
        End::Done => return "0".to_owned(),
        End::Refused(refusal) => (3, refusal.to_string()),
        End::Restored(what) => (1, what),
        End::NotRestored(what) => (4, what),
        other => panic!("{other:?}"),
    };
    match wanted.strip_prefix(&format!("{status} ")) {
        Some(words) if text.contains(words) => wanted.to_owned(),
        _ => format!("{status} {text}"),
    }
}

fn place(text: &str) -> PciAddr {
    text.parse().unwrap()
}

fn hex(text: &str) -> u16 {
    u16::from_str_radix(text, 16).unwrap()
}

fn named(model: &Model, node: &str) -> Node {
    match node {
        "nvidia0" => Node::Gpu(addr(1, 0)),
        "nvidiactl" => Node::Control,
        "nvidia-uvm" => Node::Uvm,
        "drm" => Node::Drm(addr(1, 0)),
        "snd" => Node::Sound(addr(1, 1)),
        "vfio" => Node::VfioGroup(model.device(addr(1, 0)).and_then(|d| d.group).unwrap()),
        _ => panic!("{node} is no node"),
    }
}

/// Drivers and overrides of the card's functions, NVIDIA's modules, and the nodes that are there.
fn state(model: &Model) -> String {
    let mut text = String::new();
    let card = || model.devices.iter().filter(|d| d.vendor == VENDOR_NVIDIA);
    for device in card() {
        let driver = device.bound().unwrap_or("none");
        let only = device.driver_override.as_deref().unwrap_or("(null)");
        writeln!(text, "{} {driver} {only}", device.addr).unwrap();
    }
    let mut modules: Vec<&str> = model.modules.iter().map(|(name, _)| *name).collect();
    modules.retain(|name| name.starts_with("nvidia"));
    modules.sort_unstable();
    let on = |driver: &str| card().any(|d| d.bound() == Some(driver));
    let nodes = [
        ("nvidia0", on("nvidia")),
        ("nvidiactl", model.is_live("nvidia")),
        ("nvidia-uvm", model.is_live("nvidia_uvm")),
        ("nvidia-modeset", model.is_live("nvidia_modeset")),
        ("drm", !model.drm.is_empty()),
        ("snd", on("snd_hda_intel")),
        ("vfio", on("vfio-pci")),
    ];
    let there: Vec<&str> = nodes.iter().filter(|n| n.1).map(|n| n.0).collect();
    writeln!(text, "{}", ["modules", &modules.join(" ")].join(" ").trim_end()).unwrap();
    writeln!(text, "{}", ["nodes", &there.join(" ")].join(" ").trim_end()).unwrap();
    text
}
