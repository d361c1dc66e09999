//! How long `check` takes on a host of 16 GPUs, from files to text: every part of the reading, every check, the report.
//!
//! The host is tests/hosts/single-gpu with what tests/check/host adds, its card sixteen times, with sixteen VMs. Programs that
//! are asked (modprobe, modinfo) are answered from files, so that what they take themselves is not in it. Run with
//! `cargo bench --bench check`.

use std::io::Write as _;
use std::path::Path;
use std::time::Instant;
use std::{fs, io};

use gpu_handoff::base::pci::PciAddr;
use gpu_handoff::base::root::Root;
use gpu_handoff::check::facts::{Asked, Facts, Lent};
use gpu_handoff::check::read::{Part, read};
use gpu_handoff::check::report;
use gpu_handoff::check::texts::Texts;
use gpu_handoff::host::functions::read_details;
use gpu_handoff::host::snapshot;
use gpu_handoff::output::check::text;
use gpu_handoff::proxmox::files;
use gpu_handoff::settings::values::Settings;

mod rows;
#[path = "../tests/hosts/tree.rs"]
mod tree;

/// How many cards.
const CARDS: usize = 16;

/// How often it is measured.
const ROUNDS: usize = 20;

fn main() -> io::Result<()> {
    let dir = tempfile::tempdir()?;
    tree::build(&host()?, dir.path()).map_err(io::Error::other)?;
    let root = Root::at(dir.path());
    let mut times = Vec::new();
    let mut lines = 0;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        lines = check(&root)?.lines().count();
        times.push(start.elapsed());
    }
    times.sort_unstable();
    let (median, worst) = (times[ROUNDS / 2], times[ROUNDS - 1]);
    writeln!(
        io::stdout(),
        "check of {CARDS} GPUs, {lines} lines: median {:.1} ms, worst of {ROUNDS} {:.1} ms",
        median.as_secs_f64() * 1e3,
        worst.as_secs_f64() * 1e3
    )?;
    let row = format!("{CARDS} GPUs");
    rows::tell(
        "check",
        &row,
        "gpu-handoff",
        &[("ms", Some(median.as_secs_f64() * 1e3))],
    )
}

fn check(root: &Root) -> io::Result<String> {
    let mut snapshot = snapshot::read(root, &[])?;
    let all: Vec<PciAddr> = snapshot.gpus().map(|f| f.addr).collect();
    assert_eq!(all.len(), CARDS);
    snapshot.complete(&all, read_details(root, &all));
    let mut texts = Texts::default();
    for part in [Part::Host, Part::Modules, Part::Proxmox, Part::Containers] {
        texts.add(read(root, part));
    }
    let cluster = files::cluster_text(root).map_err(io::Error::other)?.parse();
    let asked = Asked {
        root: true,
        ..Asked::default()
    };
    let facts = Facts::of(
        snapshot,
        texts,
        Ok(Settings::default()),
        cluster,
        Lent::default(),
        asked,
    );
    Ok(text(&report::run(&facts, &[])))
}

/// The host's text: what is the card's stands there once for each card.
fn host() -> io::Result<String> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let single = fs::read_to_string(tests.join("hosts/single-gpu/host"))?;
    let mut text = String::new();
    for section in single.split("\n[") {
        let section = if text.is_empty() {
            section.to_owned()
        } else {
            format!("\n[{section}")
        };
        let repeated = ["0000:0b:00", "qemu-server]"]
            .iter()
            .any(|part| section.lines().take(2).any(|l| l.contains(part)));
        let is_shared =
            section.contains("[/sys/class") || section.contains("devlink]") || section.contains("graphics/");
        if !repeated {
            text += &section.replace(
                "fb0 -> /sys/devices/pci0000:00/0000:00:03.1/0000:0b:00.0/graphics/fb0",
                "dir none",
            );
            if section.contains("/sys/devices/virtual/devlink") {
                for card in 1..CARDS {
                    let bus = format!("{:02x}", 0x20 + card);
                    text += &format!("\ndir pci:0000:{bus}:00.0--pci:0000:{bus}:00.1");
                }
            }
            continue;
        }
        for card in 0..CARDS {
            if is_shared && card > 0 {
                continue;
            }
            let bus = if card == 0 {
                "0b".to_owned()
            } else {
                format!("{:02x}", 0x20 + card)
            };
            let of_card = section
                .replace("0000:0b:00", &format!("0000:{bus}:00"))
                .replace("iommu_groups/24", &format!("iommu_groups/{}", 24 + card))
                .replace(
                    "renderD128/dev = 226:128",
                    &format!("renderD{0}/dev = 226:{0}", 128 + card),
                )
                .replace("card0/dev = 226:0", &format!("card{card}/dev = 226:{card}"))
                .replace("Device Minor: \t 0", &format!("Device Minor: \t {card}"))
                .replace("111.conf", &format!("{}.conf", 111 + card));
            text += &of_card;
            text.push('\n');
        }
    }
    Ok(text + &fs::read_to_string(tests.join("check/host"))?)
}
