//! The formats of the settings that are property strings, generation by generation.
//!
//! Tables only; [`crate::proxmox::grammar::schema`] says which setting has which.
//!
//! Source: qemu-server 9.2.6 and 8.4.10, PVE/QemuServer.pm (`$confdesc`) and the modules it takes formats from;
//! formats without a place named here are those of PVE/JSONSchema.pm.

use crate::proxmox::grammar::propstring::Check::{self, Bool, Integer, Like, Number, OneOf, Switch, Text};
use crate::proxmox::grammar::propstring::{ANY, Format, Prop, is_digits};
use crate::proxmox::grammar::values::{
    is_base64, is_boot_device, is_bridge, is_config_id, is_cpu_flags, is_disk_size, is_drive_file, is_host,
    is_id_override, is_ipv4, is_ipv4_config, is_ipv6, is_ipv6_config, is_mac, is_machine, is_number_set, is_phys_bits,
    is_scsi_text, is_urlencoded, is_usb_host, is_uuid, is_volume_id, split_list,
};

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

pub(crate) const HOSTPCI_8: Format = &[HOSTPCI];

/// `driver` since qemu-server 9.0.25.
pub(crate) const HOSTPCI_9: Format = &[HOSTPCI, &[Prop::new("driver", OneOf("vfio keep"))]];

const MACHINE: &[Prop] = &[
    Prop::new("type", Like(is_machine)).default_key(),
    Prop::new("viommu", OneOf("intel virtio")),
    Prop::new("enable-s3", Bool),
    Prop::new("enable-s4", Bool),
];

pub(crate) const MACHINE_8: Format = &[MACHINE];

pub(crate) const MACHINE_9: Format = &[MACHINE, &[Prop::new("aw-bits", Number(32.0, 64.0))]];

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

pub(crate) const CPU_8: Format = &[CPU];

pub(crate) const CPU_9: Format = &[CPU, &[Prop::new("level", Integer(0.0, 4_294_967_295.0))]];

pub(crate) const MEMORY: Format = &[&[Prop::new("current", from(16.0)).default_key().required()]];

pub(crate) const SEV: Format = &[&[
    Prop::new("type", OneOf("std es snp")).default_key().required(),
    Prop::new("no-debug", Bool),
    Prop::new("no-key-sharing", Bool),
    Prop::new("allow-smt", Bool),
    Prop::new("kernel-hashes", Bool),
]];

pub(crate) const TDX: Format = &[&[
    Prop::new("type", OneOf("tdx")).default_key().required(),
    Prop::new("attestation", Bool).required(),
    Prop::new("vsock-cid", from(2.0)),
    Prop::new("vsock-port", from(0.0)),
]];

pub(crate) const BOOT: Format = &[&[
    Prop::new(
        "legacy",
        Like(|v| v.len() <= 4 && v.iter().all(|b| b"acdn".contains(b))),
    )
    .default_key(),
    Prop::new("order", Like(|v| split_list(v).all(is_boot_device))),
]];

const AGENT: &[Prop] = &[
    Prop::new("fstrim_cloned_disks", Bool),
    Prop::new("type", OneOf("virtio isa")),
];

pub(crate) const AGENT_8: Format = &[
    AGENT,
    &[
        Prop::new("enabled", Bool).default_key().required(),
        Prop::new("freeze-fs-on-backup", Bool),
    ],
];

pub(crate) const AGENT_9: Format = &[
    AGENT,
    &[
        Prop::new("enabled", Switch).default_key().required(),
        Prop::new("freeze-fs", Bool),
        Prop::alias("freeze-fs-on-backup", "freeze-fs"),
        Prop::alias("guest-fsfreeze", "freeze-fs"),
    ],
];

pub(crate) const VGA: Format = &[&[
    Prop::new(
        "type",
        OneOf("cirrus qxl qxl2 qxl3 qxl4 none serial0 serial1 serial2 serial3 std virtio virtio-gl vmware"),
    )
    .default_key(),
    Prop::new("memory", Integer(4.0, 512.0)),
    Prop::new("clipboard", OneOf("vnc")),
]];

pub(crate) const WATCHDOG: Format = &[&[
    Prop::new("model", OneOf("i6300esb ib700")).default_key(),
    Prop::new("action", OneOf("reset shutdown poweroff pause debug none")),
]];

pub(crate) const SMBIOS: Format = &[&[
    Prop::new("uuid", Like(is_uuid)),
    Prop::new("version", Like(is_base64)),
    Prop::new("serial", Like(is_base64)),
    Prop::new("manufacturer", Like(is_base64)),
    Prop::new("product", Like(is_base64)),
    Prop::new("sku", Like(is_base64)),
    Prop::new("family", Like(is_base64)),
    Prop::new("base64", Bool),
]];

pub(crate) const IVSHMEM: Format = &[&[
    Prop::new("size", from(1.0)).required(),
    Prop::new(
        "name",
        Like(|v| v.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')),
    ),
]];

pub(crate) const AUDIO: Format = &[&[
    Prop::new("device", OneOf("ich9-intel-hda intel-hda AC97")).required(),
    Prop::new("driver", OneOf("spice none")),
]];

pub(crate) const SPICE: Format = &[&[
    Prop::new("foldersharing", Bool),
    Prop::new("videostreaming", OneOf("off all filter")),
]];

pub(crate) const RNG: Format = &[&[
    Prop::new("source", OneOf("/dev/urandom /dev/random /dev/hwrng"))
        .default_key()
        .required(),
    Prop::new("max_bytes", any_integer()),
    Prop::new("period", any_integer()),
]];

pub(crate) const META: Format = &[&[
    Prop::new("ctime", from(0.0)),
    Prop::new(
        "creation-qemu",
        Like(|v| v.contains(&b'.') && v.split(|b| *b == b'.').all(is_digits)),
    ),
]];

pub(crate) const CICUSTOM: Format = &[&[
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
const NET: &[Prop] = &[
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
];

pub(crate) const NET_8: Format = &[NIC_NAMES, NET];

/// `host-tunnel` since 9.1.18. Earlier ones of 9 ignore a line that has it; no GPU depends on that.
pub(crate) const NET_9: Format = &[NIC_NAMES, NET, &[Prop::new("host-tunnel", Bool)]];

const NICS: &str = "e1000 e1000-82540em e1000-82544gc e1000-82545em e1000e i82551 i82557b \
    i82559er ne2k_isa ne2k_pci pcnet rtl8139 virtio vmxnet3";

pub(crate) const IPCONFIG: Format = &[&[
    Prop::new("ip", Like(is_ipv4_config)),
    Prop::new("gw", Like(is_ipv4)).requires("ip"),
    Prop::new("ip6", Like(is_ipv6_config)),
    Prop::new("gw6", Like(is_ipv6)).requires("ip6"),
]];

pub(crate) const NUMA: Format = &[&[
    Prop::new("cpus", Like(is_number_set)).required(),
    Prop::new("memory", any_number()),
    Prop::new("hostnodes", Like(is_number_set)),
    Prop::new("policy", OneOf("preferred bind interleave")),
]];

pub(crate) const VIRTIOFS: Format = &[&[
    Prop::new("dirid", Like(is_config_id)).default_key().required(),
    Prop::new("cache", OneOf("auto always metadata never")),
    Prop::new("direct-io", Bool),
    Prop::new("writeback", Bool),
    Prop::new("expose-xattr", Bool),
    Prop::new("expose-acl", Bool),
]];

pub(crate) const USB: Format = &[&[
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

pub(crate) const IDE_8: Format = &[FILE, IMAGE_FORMAT, SIZE, DRIVE, MODEL, SSD, WWN, GEOMETRY];

pub(crate) const IDE_9: Format = &[FILE, IMAGE_FORMAT, SIZE, DRIVE, MODEL, SSD, WWN];

pub(crate) const SATA_8: Format = &[FILE, IMAGE_FORMAT, SIZE, DRIVE, SSD, WWN, GEOMETRY];

pub(crate) const SATA_9: Format = &[FILE, IMAGE_FORMAT, SIZE, DRIVE, SSD, WWN];

pub(crate) const SCSI_8: Format = &[
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

pub(crate) const SCSI_9: Format = &[
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

pub(crate) const VIRTIO_8: Format = &[FILE, IMAGE_FORMAT, SIZE, DRIVE, IOTHREAD, READ_ONLY, GEOMETRY];

pub(crate) const VIRTIO_9: Format = &[FILE, IMAGE_FORMAT, SIZE, DRIVE, IOTHREAD, READ_ONLY];

pub(crate) const EFIDISK: Format = &[
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

pub(crate) const TPMSTATE_8: Format = &[FILE, SIZE, TPM];

pub(crate) const TPMSTATE_9: Format = &[FILE, SIZE, TPM, &[Prop::new("format", OneOf("raw qcow2 vmdk"))]];

pub(crate) const UNUSED: Format = &[&[
    Prop::alias("volume", "file"),
    Prop::new("file", Like(is_volume_id)).default_key().required(),
]];

// ---- CPU models and flags: PVE/QemuServer/CPUConfig.pm

pub(crate) const CPU_FLAGS: &str = "\
    nested-virt md-clear pcid spec-ctrl ssbd ibpb virt-ssbd amd-ssbd amd-no-ssb pdpe1gb \
    hv-tlbflush hv-evmcs aes";

/// Models of Proxmox, made of flags.
pub(crate) const BUILTIN_MODELS: &str = "x86-64-v2 x86-64-v2-AES x86-64-v3 x86-64-v4";

/// Models of QEMU.
pub(crate) const CPU_MODELS: &str = "\
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

pub(crate) const CPU_MODELS_9: &str = "\
    Icelake-Server-v7 SapphireRapids-v3 SapphireRapids-v4 SapphireRapids-v5 \
    SapphireRapids-v6 GraniteRapids-v2 GraniteRapids-v3 GraniteRapids-v4 GraniteRapids-v5 \
    SierraForest SierraForest-v2 SierraForest-v3 SierraForest-v4 SierraForest-v5 \
    ClearwaterForest ClearwaterForest-v2 ClearwaterForest-v3 DiamondRapids EPYC-v5 \
    EPYC-Rome-v5 EPYC-Milan-v3 EPYC-Genoa-v2 EPYC-Turin a64fx cortex-a35 cortex-a53 \
    cortex-a55 cortex-a57 cortex-a72 cortex-a76 cortex-a78ae cortex-a710 neoverse-n1 \
    neoverse-n2 neoverse-v1";
