//! The forms that single values in Proxmox's configs have: names, numbers, addresses, lists.
//!
//! Pure predicates over bytes. Which setting has which form is in [`crate::proxmox::grammar::schema`].
//!
//! Source: pve-common 9.2.1, PVE/JSONSchema.pm, and qemu-server 9.2.6, where another file is named.

use crate::proxmox::grammar::propstring::{is_digits, is_space};

/// Digits, possibly with a fraction; neither sign nor exponent.
pub fn is_plain_number(value: &[u8]) -> bool {
    match value.iter().position(|b| *b == b'.') {
        Some(at) => is_digits(&value[..at]) && is_digits(&value[at + 1..]),
        None => is_digits(value),
    }
}

/// A letter, then at least one of letters, digits, `_` and `-`.
pub fn is_config_id(value: &[u8]) -> bool {
    value.len() > 1
        && value[0].is_ascii_alphabetic()
        && value
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

/// Labels of letters, digits and inner hyphens, joined by dots.
pub fn is_dns_name(value: &[u8]) -> bool {
    value.split(|b| *b == b'.').all(is_node_name)
}

/// One label of a host name: what a node may be called.
pub fn is_node_name(value: &[u8]) -> bool {
    let ends = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    ends(value.first()) && ends(value.last()) && value.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
}

/// At least two of letters, digits, `-`, `_` and `.`; a letter first and no sign last.
pub fn is_storage_id(value: &[u8]) -> bool {
    value.len() > 1
        && value[0].is_ascii_alphabetic()
        && value.last().is_some_and(u8::is_ascii_alphanumeric)
        && value
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// `STORAGE:NAME` (pve-storage, PVE/Storage/Plugin.pm, `parse_volume_id`).
pub fn is_volume_id(value: &[u8]) -> bool {
    match value.iter().position(|b| *b == b':') {
        Some(at) => is_storage_id(&value[..at]) && at + 1 < value.len(),
        None => false,
    }
}

/// A volume, a path, or the words `none` and `cdrom`.
pub fn is_drive_file(value: &[u8]) -> bool {
    value == b"none" || value == b"cdrom" || value.starts_with(b"/") || is_volume_id(value)
}

/// The characters that URL encoding leaves, and `%`.
pub fn is_urlencoded(value: &[u8]) -> bool {
    value
        .iter()
        .all(|b| b.is_ascii_alphanumeric() || b"-%_.!~*'()".contains(b))
}

/// Digits, possibly a fraction, possibly one of K, M, G, T.
pub fn is_disk_size(value: &[u8]) -> bool {
    let number = match value {
        [number @ .., b'K' | b'M' | b'G' | b'T'] => number,
        _ => value,
    };
    is_plain_number(number)
}

/// Proxmox's lists: split at NUL if there is one, else at any run of blanks, commas and semicolons.
pub fn split_list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let nul = value.contains(&0);
    let value = trim_end(value, |b| nul && b == 0);
    // Perl's `split` makes no part at all of an empty text.
    let empty_parts_count = nul && !value.is_empty();
    value
        .split(move |b| {
            if nul {
                *b == 0
            } else {
                is_space(*b) || matches!(b, b',' | b';')
            }
        })
        .filter(move |part| empty_parts_count || !part.is_empty())
}

/// Without the bytes at its end that `is` picks: Perl's `split` drops empty parts at the end.
fn trim_end(value: &[u8], is: impl Fn(u8) -> bool) -> &[u8] {
    &value[..value.iter().rposition(|b| !is(*b)).map_or(0, |at| at + 1)]
}

/// A tag: letters, digits, `_`, and inside also `-`, `+` and `.`.
pub fn is_tag(value: &[u8]) -> bool {
    let word = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
    value.first().is_some_and(word) && value.iter().all(|b| word(b) || b"-+.".contains(b))
}

/// `0`, `1` or a list of features.
pub fn is_hotplug(value: &[u8]) -> bool {
    const FEATURES: [&[u8]; 6] = [b"network", b"disk", b"cpu", b"memory", b"usb", b"cloudinit"];
    value == b"0" || value == b"1" || split_list(value).all(|f| FEATURES.contains(&f))
}

/// `[order=]N,up=N,down=N`, each optional, in any order.
pub fn is_startup(value: &[u8]) -> bool {
    value != b"0"
        && value.split(|b| *b == b',').all(|part| {
            let number = [&b"order="[..], b"up=", b"down="]
                .iter()
                .find_map(|p| part.strip_prefix(*p));
            part.iter().copied().all(is_space) || is_digits(number.unwrap_or(part))
        })
}

/// A list of numbers and ranges (pve-common, PVE/CpuSet.pm). That one counts each range through; here the ends alone are
/// compared, whatever their size.
pub fn is_cpuset(value: &[u8]) -> bool {
    let value = trim_end(value, |b| b == b',');
    value.is_empty()
        || value.split(|b| *b == b',').all(|part| {
            let part = part.trim_ascii();
            match part.iter().position(|b| *b == b'-') {
                None => is_digits(part),
                Some(at) => {
                    let (from, to) = (&part[..at], &part[at + 1..]);
                    is_digits(from) && is_digits(to) && not_below(to, from)
                }
            }
        })
}

/// Compares two runs of digits as numbers of any size.
fn not_below(a: &[u8], b: &[u8]) -> bool {
    let plain = |n: &[u8]| n.iter().skip_while(|d| **d == b'0').copied().collect::<Vec<u8>>();
    let (a, b) = (plain(a), plain(b));
    (a.len(), a) >= (b.len(), b)
}

/// An IPv4 address.
pub fn is_ipv4(value: &[u8]) -> bool {
    std::str::from_utf8(value).is_ok_and(|t| t.parse::<std::net::Ipv4Addr>().is_ok())
}

/// An address, or a name. A name that is `0` alone is none: it is false to Perl (PVE/JSONSchema.pm, `pve_verify_address`).
pub fn is_address(value: &[u8]) -> bool {
    value != b"0" && (is_ipv4(value) || is_ipv6(value) || is_dns_name(value))
}

/// An IPv6 address.
pub fn is_ipv6(value: &[u8]) -> bool {
    std::str::from_utf8(value).is_ok_and(|t| t.parse::<std::net::Ipv6Addr>().is_ok())
}

/// An address and a prefix length, 8 to `max`.
fn is_cidr(value: &[u8], is_address: fn(&[u8]) -> bool, max: u32) -> bool {
    let Some(at) = value.iter().position(|b| *b == b'/') else {
        return false;
    };
    let bits = std::str::from_utf8(&value[at + 1..])
        .ok()
        .filter(|t| is_digits(t.as_bytes()));
    let bits = bits.and_then(|t| t.parse::<u32>().ok());
    is_address(&value[..at]) && bits.is_some_and(|n| n > 7 && n <= max)
}

/// An IPv4 address with a prefix length, or `dhcp` or `manual`.
pub fn is_ipv4_config(value: &[u8]) -> bool {
    value == b"dhcp" || value == b"manual" || is_cidr(value, is_ipv4, 32)
}

/// An IPv6 address with a prefix length, or `auto`, `dhcp` or `manual`.
pub fn is_ipv6_config(value: &[u8]) -> bool {
    value == b"auto" || value == b"dhcp" || value == b"manual" || is_cidr(value, is_ipv6, 128)
}

/// A unicast address: the lowest bit of the first byte is 0.
pub fn is_mac(value: &[u8]) -> bool {
    let pair = |p: &[u8]| p.len() == 2 && p.iter().all(u8::is_ascii_hexdigit);
    let mut parts = 0;
    let all = value.split(|b| *b == b':').all(|p| {
        parts += 1;
        pair(p)
    });
    all && parts == 6 && b"02468aceACE".contains(&value[1])
}

/// The name of a bridge.
pub fn is_bridge(value: &[u8]) -> bool {
    !value.is_empty() && value.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
}

/// Numbers and ranges joined by `;`.
pub fn is_number_set(value: &[u8]) -> bool {
    value
        .split(|b| *b == b';')
        .all(|part| match part.iter().position(|b| *b == b'-') {
            Some(at) => is_digits(&part[..at]) && is_digits(&part[at + 1..]),
            None => is_digits(part),
        })
}

/// An address as `host=` takes it: optional domain of four or more hex digits, bus, slot, optional
/// function, lower case (PVE/QemuServer/PCI.pm, `$PCIRE`).
pub fn is_host_id(value: &[u8]) -> bool {
    let (rest, function_ok) = match value {
        [rest @ .., b'.', f] => (rest, is_hex(&[*f])),
        _ => (value, true),
    };
    let mut parts = rest.rsplitn(3, |b| *b == b':');
    let (slot, bus, domain) = (parts.next(), parts.next(), parts.next());
    let two = |p: Option<&[u8]>| p.is_some_and(|p| p.len() == 2 && is_hex(p));
    function_ok && two(slot) && two(bus) && domain.is_none_or(|d| d.len() >= 4 && is_hex(d))
}

/// One or more addresses joined by `;`.
pub fn is_host(value: &[u8]) -> bool {
    value.split(|b| *b == b';').all(is_host_id)
}

/// Lower-case hex digits.
pub fn is_hex(value: &[u8]) -> bool {
    value.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// `0x` and four hex digits.
pub fn is_id_override(value: &[u8]) -> bool {
    value
        .strip_prefix(b"0x")
        .is_some_and(|h| h.len() == 4 && h.iter().all(u8::is_ascii_hexdigit))
}

/// A machine type (PVE/QemuServer/Machine.pm): `pc`, `q35`, `virt`, or one of these with a version.
pub fn is_machine(value: &[u8]) -> bool {
    if value.len() > 40 {
        return false;
    }
    if value == b"pc" || value == b"q35" || value == b"virt" {
        return true;
    }
    let without_pve = |v: &'_ [u8]| -> (usize, bool) {
        // Length of the part before "+pveN", and whether there is one.
        let at = v.windows(4).position(|w| w == b"+pve");
        match at {
            Some(at) if is_digits(&v[at + 4..]) => (at, true),
            _ => (v.len(), false),
        }
    };
    let version = |v: &[u8]| v.split(|b| *b == b'.').count() > 1 && v.split(|b| *b == b'.').all(is_digits);
    for prefix in [&b"pc-i440fx-"[..], b"pc-q35-", b"pc-"] {
        if let Some(rest) = value.strip_prefix(prefix) {
            let rest = rest.strip_suffix(b".pxe").unwrap_or(rest);
            return version(&rest[..without_pve(rest).0]);
        }
    }
    let Some(rest) = value.strip_prefix(b"virt") else {
        return false;
    };
    let (end, has_pve) = without_pve(rest);
    match rest[..end].strip_prefix(b"-") {
        Some(v) => version(v),
        None => end == 0 && has_pve,
    }
}

/// `host`, or a number of address bits, 8 to 64.
pub fn is_phys_bits(value: &[u8]) -> bool {
    let number = std::str::from_utf8(value)
        .ok()
        .filter(|t| t.len() <= 2 && is_digits(t.as_bytes()));
    value == b"host"
        || number
            .and_then(|t| t.parse::<u8>().ok())
            .is_some_and(|n| (8..=64).contains(&n))
}

/// Flags with a leading `+` or `-`, joined by `;`.
pub fn is_cpu_flags(value: &[u8]) -> bool {
    value.split(|b| *b == b';').all(|flag| {
        let name = flag.strip_prefix(b"+").or_else(|| flag.strip_prefix(b"-"));
        name.is_some_and(|n| !n.is_empty() && n.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b)))
    })
}

/// A UUID in its usual groups.
pub fn is_uuid(value: &[u8]) -> bool {
    let lengths = [8, 4, 4, 4, 12];
    let parts: Vec<&[u8]> = value.splitn(6, |b| *b == b'-').collect();
    parts.len() == lengths.len()
        && parts
            .iter()
            .zip(lengths)
            .all(|(p, n)| p.len() == n && p.iter().all(u8::is_ascii_hexdigit))
}

/// Base64, its length not checked.
pub fn is_base64(value: &[u8]) -> bool {
    let body = value.strip_suffix(b"=").unwrap_or(value);
    let body = body.strip_suffix(b"=").unwrap_or(body);
    !body.is_empty() && body.iter().all(|b| b.is_ascii_alphanumeric() || b"+/".contains(b))
}

/// A USB device: `vendor:product`, `bus-port.port`, or `spice`.
pub fn is_usb_host(value: &[u8]) -> bool {
    let id = |p: &[u8]| {
        let p = p.strip_prefix(b"0x").unwrap_or(p);
        p.len() == 4 && p.iter().all(u8::is_ascii_hexdigit)
    };
    let at = |sign: u8| value.iter().position(|b| *b == sign);
    let by_id = at(b':').is_some_and(|i| id(&value[..i]) && id(&value[i + 1..]));
    let ports = |v: &[u8]| v.split(|b| *b == b'.').all(is_digits);
    let by_port = at(b'-').is_some_and(|i| is_digits(&value[..i]) && ports(&value[i + 1..]));
    by_id || by_port || value.eq_ignore_ascii_case(b"spice")
}

/// Letters, digits, `-`, `_` and blanks. The pattern's `{,16}` is a quantifier only from perl 5.34 on,
/// which both generations have.
pub fn is_scsi_text(value: &[u8], max: usize) -> bool {
    value.len() <= max
        && value
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || b"-_".contains(b) || is_space(*b))
}

/// The settings with an index, and how many of each there may be.
const NUMBERED: [(&str, u32); 13] = [
    ("hostpci", 16),
    ("net", 32),
    ("ipconfig", 32),
    ("numa", 8),
    ("virtiofs", 10),
    ("parallel", 3),
    ("serial", 4),
    ("usb", 14),
    ("ide", 4),
    ("sata", 6),
    ("scsi", 31),
    ("virtio", 16),
    ("unused", 256),
];

/// The name of a setting with an index that is spelled without leading zeros and within its bounds.
pub fn numbered_name(key: &str) -> Option<&'static str> {
    let name = key.trim_end_matches(|c: char| c.is_ascii_digit());
    let digits = &key[name.len()..];
    if digits.is_empty() || digits.len() > 3 || (digits.len() > 1 && digits.starts_with('0')) {
        return None;
    }
    let (name, count) = NUMBERED.iter().find(|(n, _)| *n == name)?;
    (digits.parse::<u32>().ok()? < *count).then_some(*name)
}

/// A disk's key.
pub fn is_drive(value: &[u8]) -> bool {
    named(value).is_some_and(|name| matches!(name, "ide" | "sata" | "scsi" | "virtio"))
}

/// A boot device: a drive other than the EFI and TPM ones, a network card, a USB or a hostpci entry.
pub fn is_boot_device(value: &[u8]) -> bool {
    is_drive(value) || named(value).is_some_and(|name| matches!(name, "net" | "usb" | "hostpci"))
}

fn named(value: &[u8]) -> Option<&'static str> {
    std::str::from_utf8(value).ok().and_then(numbered_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sort(accepts: fn(&[u8]) -> bool, good: &[&str], bad: &[&str]) {
        for text in good {
            assert!(accepts(text.as_bytes()), "{text:?} was refused");
        }
        for text in bad {
            assert!(!accepts(text.as_bytes()), "{text:?} was taken");
        }
    }

    #[test]
    fn names() {
        sort(
            is_config_id,
            &["ab", "A_-9", "gpu-a"],
            &["", "a", "1a", "_a", "a.b", "a b", "\u{e4}b"],
        );
        sort(
            is_dns_name,
            &["a", "a.b", "a-b.C9"],
            &["", "-a", "a-", "a..b", "a.", "a_b"],
        );
        sort(is_storage_id, &["ab", "local-lvm", "a.b"], &["a", "a-", "1a", "a/b"]);
        sort(
            is_volume_id,
            &["local:snippets/a b", "aa::"],
            &["local:", "l:x", "lo-:x", "/a:b", "local"],
        );
        sort(
            is_drive_file,
            &["none", "cdrom", "/dev/sda", "aa:b"],
            &["", "disk", "dev/sda"],
        );
        sort(is_tag, &["a", "_", "9+x.y-z"], &["", "-a", ".a", "a b"]);
        sort(is_bridge, &["vmbr0", "a.b-c_d"], &["", "a b", "a/b"]);
    }

    #[test]
    fn lists_are_split_at_nul_or_at_blanks_commas_and_semicolons() {
        let parts = |text: &'static str| split_list(text.as_bytes()).map(<[u8]>::len).collect::<Vec<_>>();
        assert_eq!(parts(" a, bb;;ccc "), [1, 2, 3]);
        assert_eq!(parts("a b\0cc\0\0"), [3, 2]);
        assert_eq!(parts("\0a"), [0, 1]);
        assert_eq!(parts("\0"), [0; 0]);
        assert_eq!(parts("\0\0"), [0; 0]);
        assert_eq!(parts(", ;"), [0; 0]);
        sort(
            is_hotplug,
            &["0", "1", "disk,usb", "disk cpu;memory", ""],
            &["2", "disks", "0,1"],
        );
    }

    #[test]
    fn numbers() {
        sort(is_plain_number, &["0", "1.5"], &["", "1.", ".5", "+1", "1e3"]);
        sort(is_disk_size, &["1", "32.5G", "4M"], &["G", "1g", "1.G", "1GB"]);
        sort(
            is_cpuset,
            &[
                "0",
                "0,5,8-11",
                "1 , 2",
                "1,,",
                "99999999999999999998-99999999999999999999",
            ],
            &["a", ",1", "2-1", "10-9", "1-", "99999999999999999999-1"],
        );
        sort(is_number_set, &["1", "1-2;5"], &["", "1;", "1-", "1,2"]);
        sort(
            is_startup,
            &["1", "order=1,up=2,down=3", " ,1"],
            &["0", "order=", "up= 1", "x=1"],
        );
        sort(is_phys_bits, &["host", "8", "64", "08"], &["7", "65", "064", "hosts"]);
    }

    #[test]
    fn addresses() {
        sort(
            is_host_id,
            &["01:00", "01:00.f", "0000:01:00.0", "10000:e1:00"],
            &[
                "1:00",
                "01:0",
                "000:01:00",
                "01:00.",
                "0A:00",
                "01:00.10",
                "01:00:00.0.0",
            ],
        );
        sort(
            is_host,
            &["01:00;02:00.1"],
            &["", ";", "01:00;", ";01:00", "01:00;;02:00", "01:00 "],
        );
        sort(
            is_mac,
            &["aa:BB:cc:dd:ee:ff", "00:00:00:00:00:00"],
            &[
                "ab:bb:cc:dd:ee:ff",
                "aa:bb:cc:dd:ee",
                "aa:bb:cc:dd:ee:ff:00",
                "aabb:cc:dd:ee:f",
            ],
        );
        sort(
            is_ipv4_config,
            &["dhcp", "10.0.0.1/24", "10.0.0.1/024"],
            &["10.0.0.1", "10.0.0.1/7", "10.0.0.1/33", "10.0.0.256/24", "auto"],
        );
        sort(
            is_ipv6_config,
            &["auto", "fe80::1/64"],
            &["fe80::1", "fe80::1/129", "::/+64"],
        );
        sort(
            is_address,
            &["10.0.0.1", "fe80::1", "dns", "00", "0.a"],
            &["", "0", "a_b"],
        );
        sort(
            is_usb_host,
            &["SPICE", "1-2.3", "0x1234:abcd"],
            &["1-", "1-2.", "12:34", "0x0x1:1234"],
        );
        sort(
            is_id_override,
            &["0x10de", "0xABCD"],
            &["10de", "0X10de", "0x10d", "0x10deg"],
        );
    }

    #[test]
    fn machines() {
        sort(
            is_machine,
            &[
                "pc",
                "q35",
                "virt",
                "pc-9.0",
                "pc-i440fx-8.1.pxe",
                "pc-q35-9.0.1+pve1.pxe",
                "virt+pve0",
                "virt-9.0+pve1",
            ],
            &[
                "pcx",
                "q35-9.0",
                "pc-q35-9",
                "pc-q35-9.",
                "pc-q35-9.0+pve",
                "virt-9",
                "virt.pxe",
                "pc-q35-9.0+pve0+pve1",
            ],
        );
        sort(
            is_machine,
            &["pc-q35-1111111111111111111111111111111.1"],
            &["pc-q35-11111111111111111111111111111111.1"],
        );
    }

    #[test]
    fn smbios() {
        sort(
            is_uuid,
            &["11111111-2222-3333-4444-555555555555"],
            &["1", "11111111-2222-3333-4444-555555555555-"],
        );
        sort(is_base64, &["YQ==", "YWI=", "a"], &["", "=", "==", "a b", "a==="]);
        sort(|v| is_scsi_text(v, 4), &["", "a b", "a-_9"], &["abcde", "a.b"]);
    }
}
