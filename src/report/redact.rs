//! What identifies a machine or a person, or opens something, replaced: the same thing by the same placeholder throughout,
//! so that what belongs together is seen to. Pure.
//!
//! Every name and every text of an archive goes through here ([`crate::report::archive`]).

use std::collections::{BTreeMap, BTreeSet};

use crate::report::names::{is_common, is_the_systems, target_of};
use crate::report::patterns::{FINDERS, Kind};

/// Most of a line that is looked at, bytes: no longer one is text.
const LONGEST_LINE: usize = 1 << 20;

/// A line that is shorter has nothing of a form, bytes.
const SHORTEST: usize = 4;

/// What stands behind a dot of a name that is a file's or a unit's, and no domain.
const ENDINGS: [&str; 10] = [
    "cfg", "conf", "json", "ko", "log", "pem", "service", "socket", "toml", "txt",
];

/// Replaces.
#[derive(Debug, Default)]
pub struct Redactor {
    names: Vec<(Kind, String)>,
    /// Names that are left, since they are common, or are parts of paths.
    pub left: BTreeSet<String>,
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
            if is_common(&lower) {
                redactor.left.insert(name.clone());
            } else if name.len() > 1 && !is_number && redactor.names.iter().all(|(_, known)| *known != lower) {
                redactor.names.push((kind, lower.clone()));
                redactor.placeholder(kind, &lower);
            }
        }
        redactor
    }

    /// Leaves the names that are among these words from now on.
    pub fn leave(&mut self, words: &BTreeSet<String>) {
        let is_word = |name: &str| {
            name.split(|c: char| !c.is_ascii_alphanumeric())
                .all(|w| words.contains(w))
        };
        let (left, names) = std::mem::take(&mut self.names)
            .into_iter()
            .partition(|(_, name)| is_word(name));
        self.names = names;
        let left: Vec<(Kind, String)> = left;
        self.left.extend(left.into_iter().map(|(_, name)| name));
    }

    /// A path of the host's. Of those that are the system's only a node's name is another one: they are looked for by what
    /// they are called.
    pub fn path(&mut self, path: &str) -> String {
        match is_the_systems(path) {
            true => self.parts(path, path),
            false => self.text(path),
        }
    }

    /// Where a link leads.
    pub fn target(&mut self, path: &str, target: &str) -> String {
        let leads_to = target_of(path, target);
        match is_the_systems(&leads_to) {
            true => self.parts(target, &leads_to),
            false => self.text(target),
        }
    }

    fn parts(&mut self, path: &str, whole: &str) -> String {
        let path = self.forms(path.to_owned());
        let is_of_a_node = whole.starts_with("/etc/pve/nodes/");
        let mut parts: Vec<String> = path.split('/').map(str::to_owned).collect();
        let node = parts.iter().position(|part| part == "nodes").filter(|_| is_of_a_node);
        for (kind, name) in self.names.clone() {
            let placeholder = self.placeholder(kind, &name);
            for (at, part) in parts.iter_mut().enumerate() {
                let without = without_name(part, &name, &placeholder, false);
                if node.is_some_and(|node| node + 1 == at) && part.eq_ignore_ascii_case(&name) {
                    *part = without;
                } else if without != *part {
                    self.left.insert(name.clone());
                }
            }
        }
        parts.join("/")
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
        let mut line = self.forms(line.to_owned());
        let lower = line.to_ascii_lowercase();
        let names = self.names.iter().filter(|(_, name)| lower.contains(name.as_str()));
        for (kind, name) in names.cloned().collect::<Vec<_>>() {
            let placeholder = self.placeholder(kind, &name);
            line = without_name(&line, &name, &placeholder, kind == Kind::Host);
        }
        line
    }

    fn forms(&mut self, mut line: String) -> String {
        let finders = if line.len() < SHORTEST { &[][..] } else { &FINDERS[..] };
        for (kind, find) in finders {
            let kind = *kind;
            let mut from = 0;
            while let Some(found) = line.get(from..).and_then(find) {
                let (start, end) = (from + found.start, from + found.end);
                let placeholder = self.placeholder(kind, &line[start..end]);
                line.replace_range(start..end, &placeholder);
                from = start + placeholder.len();
            }
        }
        line
    }

    /// The one of a thing; of a new thing the next one.
    fn placeholder(&mut self, kind: Kind, thing: &str) -> String {
        let count = self.known.keys().filter(|(of, _)| *of == kind).count();
        let key = (kind, kind.normal(thing));
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
    // A host's is a part of the names of volume groups: atlas_vg.
    let is_word = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_alphanumeric() || (*b == b'_' && !is_host));
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
            (
                "ip=192.168.77.5:192.168.77.1:192.168.77.254:255.255.255.0:atlas:eth0:off",
                "ip=IP-1:IP-2:IP-3:IP-4:HOST:eth0:off",
            ),
            (
                "ip=192.168.77.5::192.168.77.254:255.255.255.0::eth0:off",
                "ip=IP-1::IP-2:IP-3::eth0:off",
            ),
            (
                "ip=[fd00:77::5]::[fd00:77::1]:64::eth0:off",
                "ip=[IP-1]::[IP-2]:64::eth0:off",
            ),
            ("addr:192.168.77.5 peer:fd00:77::5: x", "addr:IP-1 peer:IP-2: x"),
            ("::ffff:192.168.77.5 fe80::1:8006", "IP-1 IP-2"),
            ("BOOTIF=01-bc-24-11-aa-00-01 BC:24:11:AA:00:01", "BOOTIF=01-MAC-1 MAC-1"),
            ("eth0: BC:24:11:AA:00:01: link up", "eth0: MAC-1: link up"),
            (
                "mac:bc:24:11:aa:00:01 hwaddr=bc2411aa0001 enxbc2411aa0001 bc24.11aa.0001 bc_24",
                "mac:MAC-1 hwaddr=MAC-1 enxMAC-1 MAC-1 bc_24",
            ),
            (
                "380000000000-38ffffffffff : PCI Bus 0000:00",
                "380000000000-38ffffffffff : PCI Bus 0000:00",
            ),
            (
                "resume=/dev/disk/by-id/ata-Samsung_SSD_870_EVO_1TB_S6PUNX0T123456A eui.0025385b21404321 wwn-0x5000c500a1b2c3d4",
                "resume=/dev/disk/by-id/SERIAL-1 eui.SERIAL-2 wwn-SERIAL-3",
            ),
            (
                "dev1: /dev/serial/by-id/usb-ITead_Zigbee_0e4c8a6b1f2d11ec8a5e0242ac130003-if00-port0,uid=0",
                "dev1: /dev/serial/by-id/SERIAL-1,uid=0",
            ),
            (
                "ATTRS{serial}==\"S6PUNX0T123456A\", ENV{ID_SERIAL_SHORT}==\"4C530001planted\", ATTR{wwid}==\"eui.0025385b21404321\"",
                "ATTRS{serial}==\"SERIAL-1\", ENV{ID_SERIAL_SHORT}==\"SERIAL-2\", ATTR{wwid}==\"SERIAL-3\"",
            ),
            ("Board Serial 1324121012345", "Board Serial SERIAL-1"),
            (
                "luks\\x2d550e8400\\x2de29b\\x2d41d4\\x2da716\\x2d446655440000.service 550e8400-e29b-41d4-a716-446655440000 \
                 host_uuid_550e8400-e29b-41d4-a716-446655440000",
                "luks\\x2dUUID-1.service UUID-1 host_uuid_UUID-1",
            ),
            (
                "luks\\\\x2d550e8400\\\\x2de29b\\\\x2d41d4\\\\x2da716\\\\x2d446655440000.service",
                "luks\\\\x2dUUID-1.service",
            ),
            (
                "pass=hunter2 pwd=hunter2 psk=hunter2",
                "pass=SECRET-1 pwd=SECRET-1 psk=SECRET-1",
            ),
            ("PASS: root: run as root", "PASS: root: run as root"),
            (
                "{\"level\":\"pass\",\"token\":null,\"x\":1}",
                "{\"level\":\"pass\",\"token\":null,\"x\":1}",
            ),
            (
                "curl -u me:hunter2 -H 'Authorization: Bearer abcd1234efgh' https://ntfy.sh/mytopic",
                "curl -u SECRET-2 -H 'Authorization: Bearer SECRET-1' https://ntfy.sh/SECRET-3",
            ),
            ("Authorization: Bearer x", "Authorization: Bearer SECRET-1"),
            (
                "n --password hunter2 --token 'abc 123' -q",
                "n --password SECRET-1 --token 'SECRET-2' -q",
            ),
            (
                "https://api.telegram.org/bot123456789:AAEhBOweik9ai2o01/sendMessage https://discord.com/api/webhooks/1234/abcDEF",
                "https://api.telegram.org/SECRET-1 https://discord.com/SECRET-2",
            ),
            (
                "{\"line\":\"install x --opt password=\\\"hunter2 two\\\" y\"}",
                "{\"line\":\"install x --opt password=\\\"SECRET-1\\\" y\"}",
            ),
            (
                "{\"line\":\"{\\\"password\\\": \\\"hunter2\\\"}\"}",
                "{\"line\":\"{\\\"password\\\": \\\"SECRET-1\\\"}\"}",
            ),
            ("{\"password\": \"hun\\\"ter2\"}", "{\"password\": \"SECRET-1\"}"),
            (
                "/dev/mapper/atlas_vg-root ATLAS_x atlas1",
                "/dev/mapper/HOST_vg-root HOST_x atlas1",
            ),
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
        assert_eq!(redactor().left.into_iter().collect::<Vec<_>>(), ["pve", "user"]);
    }

    #[test]
    fn the_same_thing_has_the_same_placeholder_in_each_text() {
        let mut redactor = redactor();
        assert_eq!(redactor.text("10.0.0.1 10.0.0.2"), "IP-1 IP-2");
        assert_eq!(redactor.text("10.0.0.2 10.0.0.3 10.0.0.1"), "IP-2 IP-3 IP-1");
        let once = redactor.text("password=x atlas 10.0.0.1 bob@example.org /home/bob S/N 12345 aa:bb:cc:dd:ee:01");
        assert_eq!(redactor.text(&once), once, "what is redacted stays as it is");
    }

    #[test]
    fn a_name_that_is_a_word_of_the_hosts_stays_and_in_a_path_of_the_systems_every_name_but_a_nodes() {
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let mut redactor = Redactor::new(
            &names(&["atlas", "storage", "q35", "lxc"]),
            &names(&["dev", "qemu", "bob", "carol"]),
        );
        redactor.leave(&["carol".to_owned()].into());
        for (path, expected) in [
            (
                "/etc/pve/nodes/atlas/qemu-server/111.conf",
                "/etc/pve/nodes/HOST/qemu-server/111.conf",
            ),
            ("/etc/pve/nodes/lxc/lxc/104.conf", "/etc/pve/nodes/lxc/lxc/104.conf"),
            ("/etc/modprobe.d/bob.conf", "/etc/modprobe.d/bob.conf"),
            ("/mnt/bob/snippets", "/mnt/USER-1/snippets"),
            ("/home/erin/x", "/home/USER-3/x"),
        ] {
            assert_eq!(redactor.path(path), expected);
        }
        assert_eq!(redactor.target("/etc/pve/local", "nodes/atlas"), "nodes/HOST");
        assert_eq!(redactor.target("/etc/pve/lxc", "local/lxc"), "local/lxc");
        assert_eq!(
            redactor.text("machine: q35 dir: storage dev0: qemu carol bob atlas"),
            "machine: q35 dir: storage dev0: qemu carol USER-1 HOST"
        );
        let left: Vec<&str> = redactor.left.iter().map(String::as_str).collect();
        assert_eq!(left, ["bob", "carol", "dev", "lxc", "q35", "qemu", "storage"]);
    }
}
