//! What identifies a machine or a person, or opens something, replaced: the same thing by the same placeholder throughout,
//! so that what belongs together is seen to. Pure.
//!
//! Every name and every text of an archive goes through here ([`crate::report::archive`]).

use std::collections::BTreeMap;

use crate::report::patterns::{FINDERS, Kind};

/// Names that many machines and people have: they tell nothing of anybody, and are parts of other words (`/etc/pve`).
const COMMON: [&str; 30] = [
    "admin",
    "backup",
    "card",
    "debian",
    "default",
    "device",
    "docker",
    "driver",
    "gpu",
    "guest",
    "home",
    "host",
    "kernel",
    "linux",
    "local",
    "localhost",
    "memory",
    "node",
    "none",
    "nvidia",
    "proxmox",
    "pve",
    "root",
    "server",
    "system",
    "test",
    "ubuntu",
    "user",
    "vfio",
    "vm",
];

/// Most of a line that is looked at, bytes: no longer one is text.
const LONGEST_LINE: usize = 1 << 20;

/// What stands behind a dot of a name that is a file's or a unit's, and no domain.
const ENDINGS: [&str; 10] = [
    "cfg", "conf", "json", "ko", "log", "pem", "service", "socket", "toml", "txt",
];

/// Replaces.
#[derive(Debug, Default)]
pub struct Redactor {
    names: Vec<(Kind, String)>,
    /// Names that are left, since they are common.
    pub left: Vec<String>,
    known: BTreeMap<(Kind, String), usize>,
}

impl Redactor {
    /// With the names of hosts, the own one first, and of people.
    pub fn new(hosts: &[String], users: &[String]) -> Redactor {
        let mut redactor = Redactor::default();
        let hosts = hosts.iter().map(|name| (Kind::Host, name));
        for (kind, name) in hosts.chain(users.iter().map(|name| (Kind::User, name))) {
            let lower = name.to_ascii_lowercase();
            let is_number = name.bytes().all(|b| b.is_ascii_digit());
            if COMMON.contains(&lower.as_str()) {
                redactor.left.push(name.clone());
            } else if name.len() > 1 && !is_number && redactor.names.iter().all(|(_, known)| *known != lower) {
                redactor.names.push((kind, lower.clone()));
                redactor.placeholder(kind, &lower);
            }
        }
        redactor
    }

    /// A text without what it should not say.
    pub fn text(&mut self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut key: Option<String> = None;
        for line in text.split_inclusive('\n') {
            // A key that is written down in lines (RFC 7468); in JSON it is one line.
            if line.contains("-----BEGIN ") && line.contains("PRIVATE KEY") {
                key = Some(String::new());
            }
            match &mut key {
                Some(lines) => {
                    *lines += line;
                    if line.contains("-----END ") {
                        let lines = key.take().unwrap_or_default();
                        out += &self.placeholder(Kind::Secret, &lines);
                        out.push('\n');
                    }
                }
                None => out += &self.line(line),
            }
        }
        if let Some(lines) = key {
            out += &self.placeholder(Kind::Secret, &lines);
        }
        out
    }

    fn line(&mut self, line: &str) -> String {
        if line.len() > LONGEST_LINE {
            return format!("(a line of {} bytes)\n", line.len());
        }
        let mut line = line.to_owned();
        for (kind, find) in FINDERS {
            let mut from = 0;
            while let Some(found) = line.get(from..).and_then(find) {
                let (start, end) = (from + found.start, from + found.end);
                let placeholder = self.placeholder(kind, &line[start..end]);
                line.replace_range(start..end, &placeholder);
                from = start + placeholder.len();
            }
        }
        for (kind, name) in self.names.clone() {
            let placeholder = self.placeholder(kind, &name);
            line = without_name(&line, &name, &placeholder, kind == Kind::Host);
        }
        line
    }

    /// The one of a thing; of a new thing the next one.
    fn placeholder(&mut self, kind: Kind, thing: &str) -> String {
        let count = self.known.keys().filter(|(of, _)| *of == kind).count();
        let key = (kind, thing.to_ascii_lowercase());
        match (kind, *self.known.entry(key).or_insert(count + 1)) {
            (Kind::Host, 1) => "HOST".to_owned(),
            (kind, number) => format!("{}-{number}", kind.word()),
        }
    }
}

/// A line without a name where it stands by itself, a domain behind a host's included.
fn without_name(line: &str, name: &str, placeholder: &str, is_host: bool) -> String {
    let lower = line.to_ascii_lowercase();
    let (mut out, mut done) = (String::new(), 0);
    let is_word = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
    for (at, _) in lower.match_indices(name) {
        let end = at + name.len();
        let before = at.checked_sub(1).and_then(|at| line.as_bytes().get(at));
        if at < done || is_word(before) || is_word(line.as_bytes().get(end)) {
            continue;
        }
        out += &line[done..at];
        out += placeholder;
        done = end + if is_host { domain(&line[end..]) } else { 0 };
    }
    out + &line[done..]
}

/// How long the domain is that a text begins with: `.example.org`.
fn domain(text: &str) -> usize {
    let end = text
        .find(|c: char| !(c.is_ascii_alphanumeric() || c == '.' || c == '-'))
        .unwrap_or(text.len());
    let domain = text[..end].trim_end_matches('.');
    let last = domain.rsplit('.').next().unwrap_or_default();
    let is_one = domain.starts_with('.') && last.len() > 1 && last.bytes().all(|b| b.is_ascii_alphabetic());
    if is_one && !ENDINGS.contains(&last) {
        domain.len()
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redactor() -> Redactor {
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        Redactor::new(&names(&["atlas", "hermes", "pve"]), &names(&["bob", "user"]))
    }

    #[test]
    fn what_identifies_and_what_opens_something_is_replaced_and_the_rest_is_left() {
        for (text, expected) in [
            (
                "GPU UUID: GPU-550e8400-e29b-41d4-a716-446655440000",
                "GPU UUID: GPU-UUID-1",
            ),
            (
                "root=UUID=550e8400-E29B-41d4-a716-446655440000 ro",
                "root=UUID=UUID-1 ro",
            ),
            (
                "systemd.machine_id=0123456789abcdef0123456789abcdef",
                "systemd.machine_id=UUID-1",
            ),
            ("D34B-A25D grub", "UUID-1 grub"),
            (
                "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c",
                "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c",
            ),
            ("virtio=BC:24:11:AA:00:01,bridge=vmbr0", "virtio=MAC-1,bridge=vmbr0"),
            (
                "netconsole=@192.168.1.5/eth0,6666@10.0.0.1/aa-bb-cc-dd-ee-ff",
                "netconsole=@IP-1/eth0,6666@IP-2/MAC-1",
            ),
            (
                "to 10.0.0.1:8006, [fe80::1%2]. From 10.0.0.1.",
                "to IP-1:8006, [IP-2%2]. From IP-1.",
            ),
            ("2001:db8::1/64", "IP-1/64"),
            ("127.0.0.1 0.0.0.0 ::1", "127.0.0.1 0.0.0.0 ::1"),
            (
                "0000:0b:00.0 10de:2684 94.02.71.00.10 580.82.07",
                "0000:0b:00.0 10de:2684 94.02.71.00.10 580.82.07",
            ),
            ("std::face::add", "std::face::add"),
            ("password=hunter2,x quiet", "password=SECRET-1 quiet"),
            ("Password: correct horse battery", "Password: SECRET-1"),
            (
                "{\"api_token\": \"a b\", \"x\": 1}",
                "{\"api_token\": \"SECRET-1\", \"x\": 1}",
            ),
            ("MY_SECRET='a b' c", "MY_SECRET='SECRET-1' c"),
            ("http://bob:pw@proxy:3128/", "http://SECRET-1@proxy:3128/"),
            ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFoo x", "ssh-ed25519 SECRET-1 x"),
            ("root:$6$saltsalt$abcdefghij:1", "root:SECRET-1:1"),
            (
                "Authorization: Bearer eyJhbGciOiJIUzI1NiJ9.e30.abc",
                "Authorization: Bearer SECRET-1",
            ),
            ("hf_abcdefghijklmnop", "SECRET-1"),
            ("x aB3dEfGhIjKlMnOpQrStUvWxYz0123456789aBcDeF y", "x SECRET-1 y"),
            (
                "NVreg_DynamicPowerManagementVideoMemoryThreshold=200",
                "NVreg_DynamicPowerManagementVideoMemoryThreshold=200",
            ),
            ("usb 1-1: SerialNumber: 4C530001", "usb 1-1: SerialNumber: SERIAL-1"),
            (
                "Device Serial Number 00-1b-21-ff-ff-aa-bb-cc",
                "Device Serial Number SERIAL-1",
            ),
            ("console=ttyS0 a serial console", "console=ttyS0 a serial console"),
            (
                "mail to Bob.B@example.org; bob@pve, root@pam",
                "mail to EMAIL-1; EMAIL-2, root@pam",
            ),
            (
                "user@1000.service gpu-handoff-watch@111.service",
                "user@1000.service gpu-handoff-watch@111.service",
            ),
            (
                "/home/carol/x of bob-ml.service bobby",
                "/home/USER-2/x of USER-1-ml.service bobby",
            ),
            (
                "atlas.lan.example.org: ATLAS hermes.conf atlases",
                "HOST: HOST HOST-2.conf atlases",
            ),
            (
                "/etc/pve/nodes/atlas/qemu-server /etc/pve pve",
                "/etc/pve/nodes/HOST/qemu-server /etc/pve pve",
            ),
            (
                "a\n-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n-----END OPENSSH PRIVATE KEY-----\nb",
                "a\nSECRET-1\nb",
            ),
        ] {
            assert_eq!(redactor().text(text), expected);
        }
        assert_eq!(redactor().left, ["pve", "user"]);
    }

    #[test]
    fn the_same_thing_has_the_same_placeholder_in_each_text() {
        let mut redactor = redactor();
        assert_eq!(redactor.text("10.0.0.1 10.0.0.2"), "IP-1 IP-2");
        assert_eq!(redactor.text("10.0.0.2 10.0.0.3 10.0.0.1"), "IP-2 IP-3 IP-1");
        let once = redactor.text("password=x atlas 10.0.0.1 bob@example.org /home/bob S/N 12345 aa:bb:cc:dd:ee:01");
        assert_eq!(redactor.text(&once), once, "what is redacted stays as it is");
    }
}
