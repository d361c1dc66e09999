//! How fast the parsers of Proxmox's files are, in MB/s, on files of 16 MiB, and a realistic one from 1 KiB on.
//!
//! The lines of one table should be of one order of magnitude: the parsers are linear, whatever the file
//! is made of, and however long it is. Run with `cargo bench --bench parsers`.

use std::io::Write as _;
use std::time::Instant;

use gpu_handoff::proxmox::container_config;
use gpu_handoff::proxmox::grammar::generation::Generation;
use gpu_handoff::proxmox::mappings::Mappings;
use gpu_handoff::proxmox::reservations::Reservations;
use gpu_handoff::proxmox::vm_config::parse;

mod rows;

/// A file of that size.
const SIZE: usize = 16 << 20;

fn main() -> std::io::Result<()> {
    let config = |raw: &[u8]| parse(raw, Generation::Pve9).hostpci().count();
    let mappings = |raw: &[u8]| usize::from(Mappings::parse(raw).get("gpu").is_some());
    let reservations = |raw: &[u8]| Reservations::parse(raw).len();

    let realistic = "machine: q35\ncpu: host,hidden=1,flags=+pcid;-aes\nmemory: 16384\n#a comment%3A x\n\
        net0: virtio=AA:BB:CC:DD:EE:FF,bridge=vmbr0,firewall=1\nscsi0: local-lvm:vm-1-disk-0,iothread=1,size=32G\n\
        hostpci0: 0000:01:00,pcie=1,x-vga=1\nhostpci1: 01:ZZ\nboot: order=scsi0;net0\n";
    let unknown = (0..).map(|n| format!("hostpci{n}: 01:00\n"));
    let unknown_properties = std::iter::once("hostpci0: 01:00".to_owned()).chain((0..).map(|n| format!(",k{n}=1")));
    let long_host = std::iter::once("hostpci0: 01:00.0".to_owned()).chain(std::iter::repeat(";01:00.0".to_owned()));
    let map = "\tmap id=10de:2684,iommugroup=14,node=pve1,path=0000:01:00,subsystem-id=1458:40bf\n";
    let names = (0..).map(|n| format!("gpu{n}\n{map}\n"));
    let reserved = (0..0x1_0000_u32)
        .cycle()
        .map(|n| format!("{n:04x}:01:00.0 201 pid:4711\n"));

    measure("config: realistic", &repeat(realistic), config)?;
    for (size, name) in [(1 << 10, "1 KiB"), (64 << 10, "64 KiB"), (1 << 20, "1 MiB")] {
        let times = usize::max(1, size / realistic.len());
        measure(
            &format!("config: realistic, {name}"),
            realistic.repeat(times).as_bytes(),
            config,
        )?;
    }
    measure("config: one key per line, none known", &fill(unknown), config)?;
    measure("config: one line of blanks", &repeat(" "), config)?;
    measure("config: one line of text", &repeat("x"), config)?;
    measure("config: empty lines", &repeat("\n"), config)?;
    measure("config: comments", &repeat("#%41\n"), config)?;
    measure("config: section headers", &repeat("[PENDING]\n"), config)?;
    measure("config: one long host list", &fill(long_host), config)?;
    measure(
        "config: one entry of unknown properties",
        &fill(unknown_properties),
        config,
    )?;
    measure("config: commas", &[b"hostpci0: ", &repeat(",")[..]].concat(), config)?;
    measure(
        "mappings: one with many lines",
        &[b"gpu\n", &repeat(map)[..]].concat(),
        mappings,
    )?;
    measure("mappings: many", &fill(names), mappings)?;
    measure("reservations", &fill(reserved), reservations)?;
    let containers = |raw: &[u8]| container_config::parse(raw).len();
    let rule = "lxc.cgroup2.devices.allow: c 195:* rwm\nlxc.environment:\ndev0: /dev/nvidia0\n";
    measure("container", &repeat(rule), containers)
}

fn repeat(piece: &str) -> Vec<u8> {
    piece.repeat(SIZE / piece.len()).into_bytes()
}

fn fill(pieces: impl Iterator<Item = String>) -> Vec<u8> {
    let mut file = Vec::with_capacity(SIZE);
    for piece in pieces {
        if file.len() + piece.len() > SIZE {
            break;
        }
        file.extend_from_slice(piece.as_bytes());
    }
    file
}

/// Prints one line: the best of three runs.
fn measure(name: &str, file: &[u8], parser: impl Fn(&[u8]) -> usize) -> std::io::Result<()> {
    let mut best = f64::INFINITY;
    // A short one takes less than the clock tells.
    let times = usize::max(1, (1 << 20) / file.len());
    for _ in 0..3 {
        let begin = Instant::now();
        for _ in 0..times {
            std::hint::black_box(parser(std::hint::black_box(file)));
        }
        best = best.min(begin.elapsed().as_secs_f64());
    }
    best /= f64::from(u32::try_from(times).unwrap_or(u32::MAX));
    let size = f64::from(u32::try_from(file.len()).unwrap_or(u32::MAX)) / 1e6;
    writeln!(
        std::io::stdout(),
        "{name:42} {size:6.1} MB in {:7.1} ms: {:7.0} MB/s",
        best * 1e3,
        size / best
    )?;
    let figures = [("ms", Some(best * 1e3)), ("MB/s", Some(size / best))];
    rows::tell("parsers", name, "gpu-handoff", &figures)
}
