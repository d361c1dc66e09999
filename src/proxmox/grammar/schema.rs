//! Which settings a VM config may have, and what their values have to look like.
//!
//! Only what decides whether Proxmox takes a line or ignores it: the parser of a config file checks a
//! setting's type and its format, but not its enumeration, pattern or bounds (those are checked by the
//! API alone), so `bios: coreboot` is taken. What a setting means is not known here.
//!
//! Source: qemu-server 9.2.6 and 8.4.10, PVE/QemuServer.pm (`$confdesc`, `check_type`) and the modules
//! it takes formats from; formats without a place named here are those of PVE/JSONSchema.pm.

use crate::proxmox::grammar::formats::{
    AGENT_8, AGENT_9, AUDIO, BOOT, BUILTIN_MODELS, CICUSTOM, CPU_8, CPU_9, CPU_FLAGS, CPU_MODELS, CPU_MODELS_9,
    EFIDISK, HOSTPCI_8, HOSTPCI_9, IDE_8, IDE_9, IPCONFIG, IVSHMEM, MACHINE_8, MACHINE_9, MEMORY, META, NET_8, NET_9,
    NUMA, RNG, SATA_8, SATA_9, SCSI_8, SCSI_9, SEV, SMBIOS, SPICE, TDX, TPMSTATE_8, TPMSTATE_9, UNUSED, USB, VGA,
    VIRTIO_8, VIRTIO_9, VIRTIOFS, WATCHDOG,
};
use crate::proxmox::grammar::generation::Generation;
use crate::proxmox::grammar::propstring::{Format, Invalid, is_digits, is_word_of, parse, parse_bool};
use crate::proxmox::grammar::values::{
    is_address, is_config_id, is_cpuset, is_dns_name, is_drive, is_hotplug, is_plain_number, is_startup, is_storage_id,
    is_tag, is_urlencoded, is_volume_id, numbered_name, split_list,
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
        Generation::Pve8 | Generation::Pve9Early => Kind::Props(eight),
        Generation::Pve9 => Kind::Props(nine),
    }
}

/// The format of a hostpci entry.
pub fn hostpci_format(generation: Generation) -> Format {
    match generation {
        Generation::Pve8 | Generation::Pve9Early => HOSTPCI_8,
        Generation::Pve9 => HOSTPCI_9,
    }
}

/// The format of `machine:`.
pub fn machine_format(generation: Generation) -> Format {
    match generation {
        Generation::Pve8 => MACHINE_8,
        Generation::Pve9Early | Generation::Pve9 => MACHINE_9,
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
        "nameserver" => Kind::Like(|v| split_list(v).all(is_address)),
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

/// Settings with an index: a fixed count of keys.
fn numbered(key: &str, generation: Generation) -> Option<Kind> {
    let kind = match numbered_name(key)? {
        "hostpci" => Kind::Props(hostpci_format(generation)),
        "net" => either(generation, NET_8, NET_9),
        "ipconfig" => Kind::Props(IPCONFIG),
        "numa" => Kind::Props(NUMA),
        "virtiofs" => Kind::Props(VIRTIOFS),
        "parallel" | "serial" => Kind::Text,
        "usb" => Kind::Props(USB),
        "ide" => either(generation, IDE_8, IDE_9),
        "sata" => either(generation, SATA_8, SATA_9),
        "scsi" => either(generation, SCSI_8, SCSI_9),
        "virtio" => either(generation, VIRTIO_8, VIRTIO_9),
        "unused" => Kind::Props(UNUSED),
        _ => return None,
    };
    Some(kind)
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

/// Removes one pair of quotes around a string that has no format.
fn unquote(value: &[u8]) -> &[u8] {
    match value {
        [b'"', inner @ .., b'"'] => inner,
        _ => value,
    }
}

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
            ("nameserver", "10.0.0.1 0.pool.ntp.org", "10.0.0.1 0.pool.ntp.org"),
            ("tags", "\0", "\0"), // a list without parts
            ("nameserver", "\0", "\0"),
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
            ("nameserver", "0", InvalidValue),
            ("nameserver", "10.0.0.1,0", InvalidValue),
            ("agent", "maybe", InvalidPropertyValue),
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
            ("agent", "on", Invalid::InvalidPropertyValue),
            (
                "net0",
                "virtio=aa:bb:cc:dd:ee:ff,host-tunnel=1",
                Invalid::UnknownProperty,
            ),
            ("tpmstate0", "local:x,format=raw", Invalid::UnknownProperty),
        ] {
            assert!(kept(key, value, NINE).is_ok(), "{key}: {value}");
            assert_eq!(kept(key, value, EIGHT), Err(reason), "{key}: {value}");
        }
        let early = Rules {
            generation: Generation::Pve9Early,
            ..EIGHT
        };
        assert!(kept("machine", "q35,aw-bits=48", early).is_ok());
        assert!(kept("hostpci0", "01:00,driver=keep", early).is_err());
        assert!(kept("ide0", "none,cyls=1", EIGHT).is_ok());
        assert_eq!(kept("ide0", "none,cyls=1", NINE), Err(Invalid::UnknownProperty));
        assert!(kept("agent", "enabled=on", EIGHT).is_ok());
    }

    /// Who counts a range through is at it for longer than anybody waits, and needs more memory than there is.
    #[test]
    fn a_range_of_any_size_is_judged_at_once() {
        const HUGE: &str = "0-99999999999999999999";
        let cases = [
            ("affinity", HUGE.to_owned()),
            ("numa0", format!("cpus={HUGE}")),
            ("net0", format!("virtio,trunks={HUGE}")),
        ];
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for (key, value) in cases {
                let _ = sender.send((key, kept(key, &value, NINE) == Ok(value)));
            }
        });
        for expected in ["affinity", "numa0", "net0"] {
            let judged = receiver.recv_timeout(std::time::Duration::from_secs(10));
            assert_eq!(judged, Ok((expected, true)));
        }
    }
}
