//! Properties of the parsers of Proxmox's files: they take every input, a printed hostpci entry parses
//! to itself, and a part of a file means the same whatever else is in the file.

use gpu_handoff::base::pci::PciClass;
use gpu_handoff::base::vmid::VmId;
use gpu_handoff::proxmox::choice::{Site, start};
use gpu_handoff::proxmox::container_config;
use gpu_handoff::proxmox::grammar::generation::Generation;
use gpu_handoff::proxmox::grammar::value::Value;
use gpu_handoff::proxmox::hostpci::{Driver, HostPci};
use gpu_handoff::proxmox::mappings::Mappings;
use gpu_handoff::proxmox::reservations::{Moment, Reservations};
use gpu_handoff::proxmox::resolve::HostFunction;
use gpu_handoff::proxmox::vm_config::{MAX_HOSTPCI, parse};
use proptest::prelude::*;

/// Pieces of real files. Arbitrary mixes of them come closer to the parsers' corners than arbitrary bytes.
const PIECES: &[&str] = &[
    "hostpci0",
    "hostpci15",
    "hostpci16",
    "machine",
    "vga",
    "net0",
    "scsi0",
    "memory",
    "description",
    "args",
    "delete",
    "cpu",
    "boot",
    "template",
    ":",
    ": ",
    "=",
    ",",
    ";",
    "\n",
    "\r\n",
    " ",
    "\t",
    "#",
    "%0a",
    "%c3%a9",
    "%",
    "[PENDING]",
    "[snap1]",
    "[special:cloudinit]",
    "[",
    "]",
    "0000:01:00.0",
    "01:00",
    "02:00.1",
    "10000:e1:00",
    "mapping=gpu",
    "host=",
    "pcie=1",
    "x-vga=on",
    "legacy-igd=1",
    "rombar=0",
    "mdev=nvidia-557",
    "driver=keep",
    "romfile=a b",
    "q35",
    "none",
    "virtio",
    "512",
    "snapstate: delete",
    "\0",
    "\u{b}",
    "gpu",
    "gpu\n",
    "\tmap ",
    "id=10de:2684",
    "node=pve1",
    "path=0000:01:00",
    "iommugroup=14",
    "subsystem-id=1458:40bf",
    "\tmdev 1",
    " 201 ",
    "pid:4711",
    "dev0: /dev/nvidia0",
    "lxc.include",
    "lxc.cgroup2.devices.allow: c 195:",
    "lxc.mount.entry: ",
    "mp0: ",
    "time:1900000000",
    "\"",
    "-",
    "_",
    "0",
    "é",
];

/// Bytes of any kind, pieces of real files, or both.
fn file() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        8 => prop::sample::select(PIECES).prop_map(|piece| piece.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..4),
    ];
    prop_oneof![
        1 => prop::collection::vec(any::<u8>(), 0..400),
        4 => prop::collection::vec(piece, 0..80).prop_map(|pieces| pieces.concat()),
    ]
}

fn generation() -> impl Strategy<Value = Generation> {
    prop_oneof![Just(Generation::Pve8), Just(Generation::Pve9)]
}

fn functions() -> Vec<HostFunction> {
    let function = |addr: &str| HostFunction {
        addr: addr.parse().expect("a PCI address"),
        vendor: Some(0x10de),
        device: Some(0x2684),
        class: Some(PciClass(0x0003_0000)),
        subsystem_vendor: Some(0x1458),
        subsystem_device: Some(0x40bf),
        iommu_group: Some(14),
        mdev_types: None,
        nvidia_vgpu: Some(vec![557]),
        physfn: None,
    };
    ["0000:01:00.0", "0000:01:00.1", "0000:02:00.1", "10000:e1:00.0"]
        .map(function)
        .into()
}

/// A hostpci entry of generation 9 with any combination of options.
fn entry() -> impl Strategy<Value = HostPci> {
    let flag = || prop::option::of(any::<bool>());
    let id = || prop::option::of("0x[0-9a-fA-F]{4}");
    let bytes = |bad: &'static [u8]| {
        prop::collection::vec(
            any::<u8>().prop_filter("a byte of a value", |b| !bad.contains(b)),
            1..12,
        )
        .prop_map(Value::from)
    };
    let host = prop::collection::vec("([0-9a-f]{4,5}:)?[0-9a-f]{2}:[0-9a-f]{2}(\\.[0-9a-f])?", 0..4);
    let names = (host, prop::option::of("[a-zA-Z][a-zA-Z0-9_-]{1,12}"));
    let flags = (flag(), flag(), flag(), flag());
    let values = (prop::option::of(bytes(b",;\r\n")), prop::option::of(bytes(b",/.:\r\n")));
    let driver = prop::option::of(prop_oneof![Just(Driver::Vfio), Just(Driver::Keep)]);
    (0..MAX_HOSTPCI, names, flags, values, (id(), id(), id(), id()), driver).prop_map(
        |(index, (host, mapping), (rombar, pcie, x_vga, legacy_igd), (romfile, mdev), ids, driver)| HostPci {
            index,
            host,
            mapping,
            rombar,
            pcie,
            x_vga,
            legacy_igd,
            romfile,
            mdev,
            vendor_id: ids.0,
            device_id: ids.1,
            sub_vendor_id: ids.2,
            sub_device_id: ids.3,
            driver,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn every_input_is_taken(conf in file(), cfg in file(), reserved in file(), generation in generation()) {
        let config = parse(&conf, generation);
        let _ = (config.pending_deletes(), container_config::parse(&conf));
        let functions = functions();
        let (mappings, reservations) = (Mappings::parse(&cfg), Reservations::parse(&reserved));
        let site = Site {
            node: "pve1",
            generation,
            mappings: &mappings,
            functions: &functions,
            reservations: &reservations,
        };
        let vmid = VmId::try_from(100).expect("an id");
        let start = start(&config, site, Moment { vmid, now: 1_900_000_000, running: &|_| Some(4711) });
        // Nobody gets a function that the host does not have.
        for chosen in start.chosen.values() {
            prop_assert!(chosen.functions.iter().all(|a| functions.iter().any(|f| f.addr == *a)));
        }
    }

    #[test]
    fn the_entries_of_a_file_can_be_parsed_one_by_one(conf in file(), generation in generation()) {
        let config = parse(&conf, generation);
        for entry in config.hostpci().chain(config.pending.hostpci()) {
            prop_assert_eq!(&HostPci::parse(entry.index, &entry.to_bytes(), generation), &Ok(entry.clone()));
        }
        for line in &config.ignored_lines {
            prop_assert!(line.line >= 1 && line.line <= conf.split(|b| *b == b'\n').count());
        }
    }

    #[test]
    fn a_printed_entry_parses_to_itself(entry in entry()) {
        let printed = entry.to_bytes();
        prop_assert_eq!(&HostPci::parse(entry.index, &printed, Generation::Pve9), &Ok(entry.clone()));

        // Also as a line of a file, between other lines; there an entry without any option has no form.
        prop_assume!(!printed.is_empty());
        let line = [b"memory: 512\n", entry.key().as_bytes(), b": ", &printed, b"\r\nname: a\n"].concat();
        let config = parse(&line, Generation::Pve9);
        prop_assert!(config.hostpci().eq([&entry]), "{:?}", config);
    }

    #[test]
    fn sections_behind_do_not_change_what_is_current(conf in file(), more in file(), generation in generation()) {
        let before = parse(&conf, generation);
        let after = parse(&[&conf[..], b"\n[snap]\n", &more].concat(), generation);
        prop_assert_eq!(before.current, after.current);
        prop_assert_eq!(before.ignored_lines, after.ignored_lines);
        prop_assert_eq!(before.ignored_hostpci, after.ignored_hostpci);
    }
}
