//! Which settings a VM config may have, and what their values have to look like.
//!
//! Only what decides whether Proxmox takes a line or ignores it: the parser of a config file checks a
//! setting's type and its format, but not its enumeration, pattern or bounds (those are checked by the
//! API alone), so `bios: coreboot` is taken. What a setting means is not known here.
//!
//! Source: qemu-server 9.2.6 and 8.4.10, PVE/QemuServer.pm (`$confdesc`, `check_type`) and the modules
//! it takes formats from; formats without a place named here are those of PVE/JSONSchema.pm.

use Check::{Bool, Integer, Like, Number, OneOf, Text};

use crate::proxmox::grammar::generation::Generation;
use crate::proxmox::grammar::propstring::{
    ANY, Check, Format, Invalid, Prop, is_digits, is_word_of, parse, parse_bool,
};
use crate::proxmox::grammar::values::{
    is_base64, is_bridge, is_config_id, is_cpu_flags, is_cpuset, is_disk_size, is_dns_name, is_drive_file, is_host,
    is_hotplug, is_id_override, is_ipv4, is_ipv4_config, is_ipv6, is_ipv6_config, is_mac, is_machine, is_number_set,
    is_phys_bits, is_plain_number, is_scsi_text, is_startup, is_storage_id, is_tag, is_urlencoded, is_usb_host,
    is_uuid, is_volume_id, split_list,
};

/// What kind of value a setting has.
#[derive(Clone, Copy)]
enum Kind {
    Bool,
    Integer,
    Number,
    /// Anything; one pair of quotes around it is removed.
    Text,
    Props(Format),
    Like(fn(&[u8]) -> bool),
    Cpu,
}

/// The node's own part of the rules.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// Which schema.
    pub generation: Generation,
    /// Names of the CPU models in /etc/pve/virtual-guest/cpu-models.conf, without `custom-`. A
    /// `cpu: custom-NAME` that is not among them is ignored.
    pub cpu_models: &'a [&'a str],
}

/// Checks the value of a setting as Proxmox does when it reads the file, and yields the value it keeps.
pub fn check(key: &str, value: &[u8], rules: Rules<'_>) -> Result<Vec<u8>, Invalid> {
    let kind = kind(key, rules.generation).ok_or(Invalid::UnknownSetting)?;
    if value.contains(&b'\r') || value.contains(&b'\n') {
        return Err(Invalid::LineBreakInValue);
    }
    let accepted = match kind {
        Kind::Bool => {
            let flag = parse_bool(value).ok_or(Invalid::InvalidValue)?;
            return Ok(if flag { b"1".to_vec() } else { b"0".to_vec() });
        }
        Kind::Text => return Ok(unquote(value).to_vec()),
        Kind::Integer => is_digits(value),
        Kind::Number => is_plain_number(value),
        Kind::Like(accepts) => accepts(value),
        Kind::Props(format) => {
            parse(format, value)?;
            true
        }
        Kind::Cpu => is_cpu(value, rules)?,
    };
    if accepted {
        Ok(value.to_vec())
    } else {
        Err(Invalid::InvalidValue)
    }
}

fn either(generation: Generation, eight: Format, nine: Format) -> Kind {
    match generation {
        Generation::Pve8 => Kind::Props(eight),
        Generation::Pve9 => Kind::Props(nine),
    }
}

/// The format of a hostpci entry.
pub fn hostpci_format(generation: Generation) -> Format {
    match generation {
        Generation::Pve8 => HOSTPCI_8,
        Generation::Pve9 => HOSTPCI_9,
    }
}

/// The format of `machine:`.
pub fn machine_format(generation: Generation) -> Format {
    match generation {
        Generation::Pve8 => MACHINE_8,
        Generation::Pve9 => MACHINE_9,
    }
}

fn kind(key: &str, generation: Generation) -> Option<Kind> {
    let nine = generation == Generation::Pve9;
    let kind = match key {
        "onboot" | "autostart" | "reboot" | "numa" | "keephugepages" | "acpi" | "kvm" | "tdf" | "localtime"
        | "freeze" | "template" | "tablet" | "protection" | "ciupgrade" => Kind::Bool,
        "allow-ksm" if nine => Kind::Bool,
        "cpuunits" | "balloon" | "shares" | "smp" | "sockets" | "cores" | "vcpus" | "migrate_speed" | "snaptime" => {
            Kind::Integer
        }
        "cpulimit" | "migrate_downtime" => Kind::Number,
        "lock"
        | "keyboard"
        | "scsihw"
        | "description"
        | "ostype"
        | "hugepages"
        | "startdate"
        | "args"
        | "runningcpu"
        | "running-nets-host-mtu"
        | "arch"
        | "bios"
        | "vmgenid"
        | "citype"
        | "ciuser"
        | "cipassword"
        | "searchdomain" => Kind::Text,
        "hotplug" => Kind::Like(is_hotplug),
        "name" => Kind::Like(is_dns_name),
        "bootdisk" => Kind::Like(|v| is_drive(v) || v == b"efidisk0" || v == b"tpmstate0"),
        "startup" => Kind::Like(is_startup),
        "parent" => Kind::Like(is_config_id),
        "vmstate" | "hookscript" => Kind::Like(is_volume_id),
        "vmstatestorage" => Kind::Like(is_storage_id),
        "tags" => Kind::Like(|v| split_list(v).all(is_tag)),
        "affinity" => Kind::Like(is_cpuset),
        "nameserver" => Kind::Like(|v| split_list(v).all(|a| is_ipv4(a) || is_ipv6(a) || is_dns_name(a))),
        "sshkeys" => Kind::Like(is_urlencoded),
        "cpu" => Kind::Cpu,
        "memory" => Kind::Props(MEMORY),
        "amd-sev" => Kind::Props(SEV),
        "intel-tdx" if nine => Kind::Props(TDX),
        "boot" => Kind::Props(BOOT),
        "agent" => either(generation, AGENT_8, AGENT_9),
        "vga" => Kind::Props(VGA),
        "watchdog" => Kind::Props(WATCHDOG),
        "machine" | "runningmachine" => Kind::Props(machine_format(generation)),
        "smbios1" => Kind::Props(SMBIOS),
        "ivshmem" => Kind::Props(IVSHMEM),
        "audio0" => Kind::Props(AUDIO),
        "spice_enhancements" => Kind::Props(SPICE),
        "rng0" => Kind::Props(RNG),
        "meta" => Kind::Props(META),
        "cicustom" => Kind::Props(CICUSTOM),
        "cdrom" => either(generation, IDE_8, IDE_9),
        "efidisk0" => Kind::Props(EFIDISK),
        "tpmstate0" => either(generation, TPMSTATE_8, TPMSTATE_9),
        _ => return numbered(key, generation),
    };
    Some(kind)
}

/// Settings with an index: a fixed count of keys, each spelled without leading zeros.
fn numbered(key: &str, generation: Generation) -> Option<Kind> {
    let name = key.trim_end_matches(|c: char| c.is_ascii_digit());
    let digits = &key[name.len()..];
    if digits.is_empty() || digits.len() > 3 || (digits.len() > 1 && digits.starts_with('0')) {
        return None;
    }
    let (count, kind) = match name {
        "hostpci" => (16, Kind::Props(hostpci_format(generation))),
        "net" => (32, Kind::Props(NET)),
        "ipconfig" => (32, Kind::Props(IPCONFIG)),
        "numa" => (8, Kind::Props(NUMA)),
        "virtiofs" => (10, Kind::Props(VIRTIOFS)),
        "parallel" => (3, Kind::Text),
        "serial" => (4, Kind::Text),
        "usb" => (14, Kind::Props(USB)),
        "ide" => (4, either(generation, IDE_8, IDE_9)),
        "sata" => (6, either(generation, SATA_8, SATA_9)),
        "scsi" => (31, either(generation, SCSI_8, SCSI_9)),
        "virtio" => (16, either(generation, VIRTIO_8, VIRTIO_9)),
        "unused" => (256, Kind::Props(UNUSED)),
        _ => return None,
    };
    (digits.parse::<u32>().ok()? < count).then_some(kind)
}

/// A CPU: a property string whose model has to be one that this generation knows, with flags from a
/// fixed set (PVE/QemuServer/CPUConfig.pm, `validate_vm_cpu_conf`).
fn is_cpu(value: &[u8], rules: Rules<'_>) -> Result<bool, Invalid> {
    let nine = rules.generation == Generation::Pve9;
    let fields = parse(if nine { CPU_9 } else { CPU_8 }, value)?;
    let of_qemu = |model: &[u8]| is_word_of(CPU_MODELS, model) || (nine && is_word_of(CPU_MODELS_9, model));
    // For models of one's own; in a VM's config any is wrong, but one that does not exist first of all.
    if fields.get("reported-model").is_some_and(|m| !of_qemu(m)) {
        return Err(Invalid::InvalidPropertyValue);
    }
    let Some(model) = fields.get("cputype").filter(|m| *m != b"0") else {
        return Ok(false);
    };
    let model_ok = match model.strip_prefix(b"custom-") {
        Some(custom) => rules.cpu_models.iter().any(|m| m.as_bytes() == custom),
        None => of_qemu(model) || is_word_of(BUILTIN_MODELS, model),
    };
    let flags_ok = fields.get("flags").is_none_or(|flags| {
        flags.split(|b| *b == b';').all(|flag| {
            let name = flag.strip_prefix(b"+").or_else(|| flag.strip_prefix(b"-"));
            name.is_some_and(|n| is_word_of(CPU_FLAGS, n))
        })
    });
    Ok(model_ok && flags_ok && fields.get("reported-model").is_none())
}

/// A boot device: a drive other than the EFI and TPM ones, a network card, a USB or a hostpci entry.
fn is_boot_device(value: &[u8]) -> bool {
    let numbered_of = |name: &str| {
        std::str::from_utf8(value).is_ok_and(|key| {
            let rest = key.strip_prefix(name);
            rest.is_some_and(|r| is_digits(r.as_bytes())) && numbered(key, Generation::Pve9).is_some()
        })
    };
    is_drive(value) || numbered_of("net") || numbered_of("usb") || numbered_of("hostpci")
}

/// A disk's key.
fn is_drive(value: &[u8]) -> bool {
    std::str::from_utf8(value).is_ok_and(|key| {
        let name = key.trim_end_matches(|c: char| c.is_ascii_digit());
        matches!(name, "ide" | "sata" | "scsi" | "virtio") && numbered(key, Generation::Pve9).is_some()
    })
}

/// Removes one pair of quotes around a string that has no format.
fn unquote(value: &[u8]) -> &[u8] {
    match value {
        [b'"', inner @ .., b'"'] => inner,
        _ => value,
    }
}

// ---- formats

const fn any_integer() -> Check {
    Integer(ANY.0, ANY.1)
}

const fn any_number() -> Check {
    Number(ANY.0, ANY.1)
}

const fn from(min: f64) -> Check {
    Integer(min, f64::INFINITY)
}

const HOSTPCI: &[Prop] = &[
    Prop::new("host", Like(is_host)).default_key(),
    Prop::new("mapping", Like(is_config_id)),
    Prop::new("rombar", Bool),
    Prop::new("romfile", Like(|v| !v.contains(&b';'))),
    Prop::new("pcie", Bool),
    Prop::new("x-vga", Bool),
    Prop::new("legacy-igd", Bool),
    Prop::new("mdev", Like(|v| !v.iter().any(|b| b"/.:".contains(b)))),
    Prop::new("vendor-id", Like(is_id_override)),
    Prop::new("device-id", Like(is_id_override)),
    Prop::new("sub-vendor-id", Like(is_id_override)),
    Prop::new("sub-device-id", Like(is_id_override)),
];
const HOSTPCI_8: Format = &[HOSTPCI];
/// `driver` since qemu-server 9.0.25.
const HOSTPCI_9: Format = &[HOSTPCI, &[Prop::new("driver", OneOf("vfio keep"))]];

const MACHINE: &[Prop] = &[
    Prop::new("type", Like(is_machine)).default_key(),
    Prop::new("viommu", OneOf("intel virtio")),
    Prop::new("enable-s3", Bool),
    Prop::new("enable-s4", Bool),
];
const MACHINE_8: Format = &[MACHINE];
const MACHINE_9: Format = &[MACHINE, &[Prop::new("aw-bits", Number(32.0, 64.0))]];

const CPU: &[Prop] = &[
    Prop::new("cputype", Text).default_key(),
    Prop::new("reported-model", Text),
    Prop::new("hidden", Bool),
    Prop::new(
        "hv-vendor-id",
        Like(|v| v.len() <= 12 && v.iter().all(u8::is_ascii_alphanumeric)),
    ),
    Prop::new("flags", Like(is_cpu_flags)),
    Prop::new("phys-bits", Like(is_phys_bits)),
    Prop::new("guest-phys-bits", Integer(32.0, 64.0)),
];
const CPU_8: Format = &[CPU];
const CPU_9: Format = &[CPU, &[Prop::new("level", Integer(0.0, 4_294_967_295.0))]];

const MEMORY: Format = &[&[Prop::new("current", from(16.0)).default_key().required()]];

const SEV: Format = &[&[
    Prop::new("type", OneOf("std es snp")).default_key().required(),
    Prop::new("no-debug", Bool),
    Prop::new("no-key-sharing", Bool),
    Prop::new("allow-smt", Bool),
    Prop::new("kernel-hashes", Bool),
]];

const TDX: Format = &[&[
    Prop::new("type", OneOf("tdx")).default_key().required(),
    Prop::new("attestation", Bool).required(),
    Prop::new("vsock-cid", from(2.0)),
    Prop::new("vsock-port", from(0.0)),
]];

const BOOT: Format = &[&[
    Prop::new(
        "legacy",
        Like(|v| v.len() <= 4 && v.iter().all(|b| b"acdn".contains(b))),
    )
    .default_key(),
    Prop::new("order", Like(|v| split_list(v).all(is_boot_device))),
]];

const AGENT: &[Prop] = &[
    Prop::new("enabled", Bool).default_key().required(),
    Prop::new("fstrim_cloned_disks", Bool),
    Prop::new("type", OneOf("virtio isa")),
];
const AGENT_8: Format = &[AGENT, &[Prop::new("freeze-fs-on-backup", Bool)]];
const AGENT_9: Format = &[
    AGENT,
    &[
        Prop::new("freeze-fs", Bool),
        Prop::alias("freeze-fs-on-backup", "freeze-fs"),
        Prop::alias("guest-fsfreeze", "freeze-fs"),
    ],
];

const VGA: Format = &[&[
    Prop::new(
        "type",
        OneOf("cirrus qxl qxl2 qxl3 qxl4 none serial0 serial1 serial2 serial3 std virtio virtio-gl vmware"),
    )
    .default_key(),
    Prop::new("memory", Integer(4.0, 512.0)),
    Prop::new("clipboard", OneOf("vnc")),
]];

const WATCHDOG: Format = &[&[
    Prop::new("model", OneOf("i6300esb ib700")).default_key(),
    Prop::new("action", OneOf("reset shutdown poweroff pause debug none")),
]];

const SMBIOS: Format = &[&[
    Prop::new("uuid", Like(is_uuid)),
    Prop::new("version", Like(is_base64)),
    Prop::new("serial", Like(is_base64)),
    Prop::new("manufacturer", Like(is_base64)),
    Prop::new("product", Like(is_base64)),
    Prop::new("sku", Like(is_base64)),
    Prop::new("family", Like(is_base64)),
    Prop::new("base64", Bool),
]];

const IVSHMEM: Format = &[&[
    Prop::new("size", from(1.0)).required(),
    Prop::new(
        "name",
        Like(|v| v.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')),
    ),
]];

const AUDIO: Format = &[&[
    Prop::new("device", OneOf("ich9-intel-hda intel-hda AC97")).required(),
    Prop::new("driver", OneOf("spice none")),
]];

const SPICE: Format = &[&[
    Prop::new("foldersharing", Bool),
    Prop::new("videostreaming", OneOf("off all filter")),
]];

const RNG: Format = &[&[
    Prop::new("source", OneOf("/dev/urandom /dev/random /dev/hwrng"))
        .default_key()
        .required(),
    Prop::new("max_bytes", any_integer()),
    Prop::new("period", any_integer()),
]];

const META: Format = &[&[
    Prop::new("ctime", from(0.0)),
    Prop::new(
        "creation-qemu",
        Like(|v| v.contains(&b'.') && v.split(|b| *b == b'.').all(is_digits)),
    ),
]];

const CICUSTOM: Format = &[&[
    Prop::new("meta", Like(is_volume_id)),
    Prop::new("network", Like(is_volume_id)),
    Prop::new("user", Like(is_volume_id)),
    Prop::new("vendor", Like(is_volume_id)),
]];

const fn nic(model: &'static str) -> Prop {
    Prop::alias(model, "macaddr").key_alias("model")
}

const NIC_NAMES: &[Prop] = &[
    nic("e1000"),
    nic("e1000-82540em"),
    nic("e1000-82544gc"),
    nic("e1000-82545em"),
    nic("e1000e"),
    nic("i82551"),
    nic("i82557b"),
    nic("i82559er"),
    nic("ne2k_isa"),
    nic("ne2k_pci"),
    nic("pcnet"),
    nic("rtl8139"),
    nic("virtio"),
    nic("vmxnet3"),
];

/// PVE/QemuServer/Network.pm. A card's model may be the name of its MAC address.
const NET: Format = &[
    NIC_NAMES,
    &[
        Prop::new("macaddr", Like(is_mac)),
        Prop::new("model", OneOf(NICS)).default_key().required(),
        Prop::new("bridge", Like(is_bridge)),
        Prop::new("queues", Integer(0.0, 64.0)),
        Prop::new("rate", Number(0.0, f64::INFINITY)),
        Prop::new("tag", Integer(1.0, 4094.0)),
        Prop::new("trunks", Like(is_number_set)),
        Prop::new("firewall", Bool),
        Prop::new("link_down", Bool),
        Prop::new("mtu", Integer(1.0, 65520.0)),
    ],
];
const NICS: &str = "e1000 e1000-82540em e1000-82544gc e1000-82545em e1000e i82551 i82557b \
    i82559er ne2k_isa ne2k_pci pcnet rtl8139 virtio vmxnet3";

const IPCONFIG: Format = &[&[
    Prop::new("ip", Like(is_ipv4_config)),
    Prop::new("gw", Like(is_ipv4)).requires("ip"),
    Prop::new("ip6", Like(is_ipv6_config)),
    Prop::new("gw6", Like(is_ipv6)).requires("ip6"),
]];

const NUMA: Format = &[&[
    Prop::new("cpus", Like(is_number_set)).required(),
    Prop::new("memory", any_number()),
    Prop::new("hostnodes", Like(is_number_set)),
    Prop::new("policy", OneOf("preferred bind interleave")),
]];

const VIRTIOFS: Format = &[&[
    Prop::new("dirid", Like(is_config_id)).default_key().required(),
    Prop::new("cache", OneOf("auto always metadata never")),
    Prop::new("direct-io", Bool),
    Prop::new("writeback", Bool),
    Prop::new("expose-xattr", Bool),
    Prop::new("expose-acl", Bool),
]];

const USB: Format = &[&[
    Prop::new("host", Like(is_usb_host)).default_key(),
    Prop::new("mapping", Like(is_config_id)),
    Prop::new("usb3", Bool),
]];

// Drives: PVE/QemuServer/Drive.pm.
const FILE: &[Prop] = &[
    Prop::alias("volume", "file"),
    Prop::new("file", Like(is_drive_file)).default_key().required(),
];
const IMAGE_FORMAT: &[Prop] = &[Prop::new("format", OneOf("raw qcow qed qcow2 vmdk cloop"))];
const SIZE: &[Prop] = &[Prop::new("size", Like(is_disk_size))];
const DRIVE: &[Prop] = &[
    Prop::new("media", OneOf("cdrom disk")),
    Prop::new("snapshot", Bool),
    Prop::new("cache", OneOf("none writethrough writeback unsafe directsync")),
    Prop::new("backup", Bool),
    Prop::new("replicate", Bool),
    Prop::new("rerror", OneOf("ignore report stop")),
    Prop::new("werror", OneOf("enospc ignore report stop")),
    Prop::new("aio", OneOf("native threads io_uring")),
    Prop::new("discard", OneOf("ignore on")),
    Prop::new("detect_zeroes", Bool),
    Prop::new("serial", Like(|v| v.len() <= 60 && is_urlencoded(v))),
    Prop::new("shared", Bool),
    Prop::new("bps", any_integer()),
    Prop::new("bps_rd", any_integer()),
    Prop::new("bps_wr", any_integer()),
    Prop::new("mbps", any_number()),
    Prop::new("mbps_rd", any_number()),
    Prop::new("mbps_wr", any_number()),
    Prop::new("iops", any_integer()),
    Prop::new("iops_rd", any_integer()),
    Prop::new("iops_wr", any_integer()),
    Prop::new("mbps_max", any_number()),
    Prop::new("mbps_rd_max", any_number()),
    Prop::new("mbps_wr_max", any_number()),
    Prop::new("iops_max", any_integer()),
    Prop::new("iops_rd_max", any_integer()),
    Prop::new("iops_wr_max", any_integer()),
    Prop::new("bps_max_length", from(1.0)),
    Prop::new("bps_rd_max_length", from(1.0)),
    Prop::new("bps_wr_max_length", from(1.0)),
    Prop::new("iops_max_length", from(1.0)),
    Prop::new("iops_rd_max_length", from(1.0)),
    Prop::new("iops_wr_max_length", from(1.0)),
    Prop::alias("bps_rd_length", "bps_rd_max_length"),
    Prop::alias("bps_wr_length", "bps_wr_max_length"),
    Prop::alias("iops_rd_length", "iops_rd_max_length"),
    Prop::alias("iops_wr_length", "iops_wr_max_length"),
];
/// Gone in 9.
const GEOMETRY: &[Prop] = &[
    Prop::new("cyls", any_integer()),
    Prop::new("heads", any_integer()),
    Prop::new("secs", any_integer()),
    Prop::new("trans", OneOf("none lba auto")),
];
const MODEL: &[Prop] = &[Prop::new("model", Like(|v| v.len() <= 120 && is_urlencoded(v)))];
const SSD: &[Prop] = &[Prop::new("ssd", Bool)];
const IOTHREAD: &[Prop] = &[Prop::new("iothread", Bool)];
const READ_ONLY: &[Prop] = &[Prop::new("ro", Bool)];
/// The pattern has an inner `^` but no inner `$`; the outer one asks for the end all the same.
const WWN: &[Prop] = &[Prop::new(
    "wwn",
    Like(|v| {
        v.strip_prefix(b"0x")
            .is_some_and(|h| h.len() == 16 && h.iter().all(u8::is_ascii_hexdigit))
    }),
)];
const SCSI_ONLY: &[Prop] = &[
    Prop::new("product", Like(|v| is_scsi_text(v, 16))),
    Prop::new("vendor", Like(|v| is_scsi_text(v, 8))),
    Prop::new("queues", from(2.0)),
    Prop::new("scsiblock", Bool),
];
const IDE_8: Format = &[FILE, IMAGE_FORMAT, SIZE, DRIVE, MODEL, SSD, WWN, GEOMETRY];
const IDE_9: Format = &[FILE, IMAGE_FORMAT, SIZE, DRIVE, MODEL, SSD, WWN];
const SATA_8: Format = &[FILE, IMAGE_FORMAT, SIZE, DRIVE, SSD, WWN, GEOMETRY];
const SATA_9: Format = &[FILE, IMAGE_FORMAT, SIZE, DRIVE, SSD, WWN];
const SCSI_8: Format = &[
    FILE,
    IMAGE_FORMAT,
    SIZE,
    DRIVE,
    IOTHREAD,
    SCSI_ONLY,
    READ_ONLY,
    SSD,
    WWN,
    GEOMETRY,
];
const SCSI_9: Format = &[
    FILE,
    IMAGE_FORMAT,
    SIZE,
    DRIVE,
    IOTHREAD,
    SCSI_ONLY,
    READ_ONLY,
    SSD,
    WWN,
];
const VIRTIO_8: Format = &[FILE, IMAGE_FORMAT, SIZE, DRIVE, IOTHREAD, READ_ONLY, GEOMETRY];
const VIRTIO_9: Format = &[FILE, IMAGE_FORMAT, SIZE, DRIVE, IOTHREAD, READ_ONLY];
const EFIDISK: Format = &[
    FILE,
    IMAGE_FORMAT,
    SIZE,
    &[
        Prop::new("efitype", OneOf("2m 4m")),
        Prop::new("pre-enrolled-keys", Bool),
        Prop::new("ms-cert", OneOf("2011 2023 2023w 2023k")),
    ],
];
const TPM: &[Prop] = &[Prop::new("version", OneOf("v1.2 v2.0"))];
const TPMSTATE_8: Format = &[FILE, SIZE, TPM];
const TPMSTATE_9: Format = &[FILE, SIZE, TPM, &[Prop::new("format", OneOf("raw qcow2 vmdk"))]];
const UNUSED: Format = &[&[
    Prop::alias("volume", "file"),
    Prop::new("file", Like(is_volume_id)).default_key().required(),
]];

// ---- CPU models and flags: PVE/QemuServer/CPUConfig.pm

const CPU_FLAGS: &str = "\
    nested-virt md-clear pcid spec-ctrl ssbd ibpb virt-ssbd amd-ssbd amd-no-ssb pdpe1gb \
    hv-tlbflush hv-evmcs aes";

/// Models of Proxmox, made of flags.
const BUILTIN_MODELS: &str = "x86-64-v2 x86-64-v2-AES x86-64-v3 x86-64-v4";
/// Models of QEMU.
const CPU_MODELS: &str = "\
    486 pentium pentium2 pentium3 coreduo \
    core2duo Conroe Penryn Nehalem Nehalem-IBRS Westmere Westmere-IBRS SandyBridge \
    SandyBridge-IBRS IvyBridge IvyBridge-IBRS Haswell Haswell-IBRS Haswell-noTSX \
    Haswell-noTSX-IBRS Broadwell Broadwell-IBRS Broadwell-noTSX Broadwell-noTSX-IBRS \
    Skylake-Client Skylake-Client-IBRS Skylake-Client-noTSX-IBRS Skylake-Client-v4 \
    Skylake-Server Skylake-Server-IBRS Skylake-Server-noTSX-IBRS Skylake-Server-v4 \
    Skylake-Server-v5 Cascadelake-Server Cascadelake-Server-v2 Cascadelake-Server-noTSX \
    Cascadelake-Server-v4 Cascadelake-Server-v5 Cooperlake Cooperlake-v2 KnightsMill \
    Icelake-Client Icelake-Client-noTSX Icelake-Server Icelake-Server-noTSX \
    Icelake-Server-v3 Icelake-Server-v4 Icelake-Server-v5 Icelake-Server-v6 SapphireRapids \
    SapphireRapids-v2 GraniteRapids athlon phenom Opteron_G1 Opteron_G2 Opteron_G3 \
    Opteron_G4 Opteron_G5 EPYC EPYC-IBPB EPYC-v3 EPYC-v4 EPYC-Rome EPYC-Rome-v2 EPYC-Rome-v3 \
    EPYC-Rome-v4 EPYC-Milan EPYC-Milan-v2 EPYC-Genoa host kvm32 kvm64 qemu32 qemu64 max";
const CPU_MODELS_9: &str = "\
    Icelake-Server-v7 SapphireRapids-v3 SapphireRapids-v4 SapphireRapids-v5 \
    SapphireRapids-v6 GraniteRapids-v2 GraniteRapids-v3 GraniteRapids-v4 GraniteRapids-v5 \
    SierraForest SierraForest-v2 SierraForest-v3 SierraForest-v4 SierraForest-v5 \
    ClearwaterForest ClearwaterForest-v2 ClearwaterForest-v3 DiamondRapids EPYC-v5 \
    EPYC-Rome-v5 EPYC-Milan-v3 EPYC-Genoa-v2 EPYC-Turin a64fx cortex-a35 cortex-a53 \
    cortex-a55 cortex-a57 cortex-a72 cortex-a76 cortex-a78ae cortex-a710 neoverse-n1 \
    neoverse-n2 neoverse-v1";

#[cfg(test)]
mod tests {
    use super::*;

    const NINE: Rules<'_> = Rules {
        generation: Generation::Pve9,
        cpu_models: &["mine"],
    };

    const EIGHT: Rules<'_> = Rules {
        generation: Generation::Pve8,
        cpu_models: &[],
    };

    fn kept(key: &str, value: &str, rules: Rules<'_>) -> Result<String, Invalid> {
        check(key, value.as_bytes(), rules).map(|v| String::from_utf8_lossy(&v).into_owned())
    }

    #[test]
    fn values_are_kept_as_proxmox_keeps_them() {
        for (key, value, expected) in [
            ("template", "yes", "1"),
            ("onboot", "OFF", "0"),
            ("lock", "\"backup\"", "backup"),
            ("bios", "coreboot", "coreboot"), // the parser does not check enumerations
            ("cores", "0", "0"),
            ("name", "a.b", "a.b"),
            ("memory", "current=512", "current=512"),
            (
                "net31",
                "virtio=aa:bb:cc:dd:ee:ff,bridge=vmbr0",
                "virtio=aa:bb:cc:dd:ee:ff,bridge=vmbr0",
            ),
            (
                "scsi30",
                "local:vm-1-disk-0,iothread=1,size=32G",
                "local:vm-1-disk-0,iothread=1,size=32G",
            ),
            ("unused255", "local:x", "local:x"),
            ("boot", "order=scsi0;net0;hostpci15", "order=scsi0;net0;hostpci15"),
            ("cpu", "custom-mine", "custom-mine"),
            (
                "cpu",
                "cputype=EPYC-Turin,flags=+aes;-pcid",
                "cputype=EPYC-Turin,flags=+aes;-pcid",
            ),
        ] {
            assert_eq!(kept(key, value, NINE).as_deref(), Ok(expected), "{key}: {value}");
        }
    }

    #[test]
    fn bad_values_are_refused_with_the_reason() {
        use Invalid::*;
        for (key, value, reason) in [
            ("hostpci16", "01:00", UnknownSetting),
            ("hostpci00", "01:00", UnknownSetting),
            ("hostpci", "01:00", UnknownSetting),
            ("hostpci01", "a\rb", UnknownSetting),
            ("net32", "virtio", UnknownSetting),
            ("delete", " ", UnknownSetting),
            ("bios", "a\rb", LineBreakInValue),
            ("template", "2", InvalidValue),
            ("cores", "+1", InvalidValue),
            ("cpulimit", "1.", InvalidValue),
            ("name", "a b", InvalidValue),
            ("hookscript", "/usr/bin/hook", InvalidValue),
            ("cpu", "host,reported-model=host", InvalidValue),
            ("cpu", "host,reported-model=none", InvalidPropertyValue),
            ("cpu", "host,flags=+sse9", InvalidValue),
            ("cpu", "host,flags=aes", InvalidPropertyValue),
            ("cpu", "flags=+aes", InvalidValue),
            ("cpu", "custom-other", InvalidValue),
            ("cpu", "host,hidden=2", InvalidPropertyValue),
            ("memory", "lots", InvalidPropertyValue),
            ("memory", " ", InvalidPropertyValue),
            ("net0", "bridge=vmbr0", InvalidPropertyValue),
            ("net0", "virtio,e1000=aa:bb:cc:dd:ee:ff", DuplicateProperty),
            ("spice_enhancements", "1", InvalidPropertyValue),
            ("agent", "1,x=1", UnknownProperty),
            ("boot", "order=efidisk0", InvalidPropertyValue),
            ("boot", "order=hostpci16", InvalidPropertyValue),
            ("ipconfig0", "gw=10.0.0.1", InvalidPropertyValue),
        ] {
            assert_eq!(kept(key, value, NINE), Err(reason), "{key}: {value}");
        }
    }

    #[test]
    fn some_settings_are_of_one_generation_only() {
        for (key, value, reason) in [
            ("allow-ksm", "1", Invalid::UnknownSetting),
            ("intel-tdx", "tdx,attestation=1", Invalid::UnknownSetting),
            ("cpu", "cortex-a57", Invalid::InvalidValue),
            ("hostpci0", "01:00,driver=keep", Invalid::UnknownProperty),
            ("machine", "q35,aw-bits=48", Invalid::UnknownProperty),
            ("agent", "1,guest-fsfreeze=1", Invalid::UnknownProperty),
            ("tpmstate0", "local:x,format=raw", Invalid::UnknownProperty),
        ] {
            assert!(kept(key, value, NINE).is_ok(), "{key}: {value}");
            assert_eq!(kept(key, value, EIGHT), Err(reason), "{key}: {value}");
        }
        assert!(kept("ide0", "none,cyls=1", EIGHT).is_ok());
        assert_eq!(kept("ide0", "none,cyls=1", NINE), Err(Invalid::UnknownProperty));
    }
}
