//! Which of the files that were looked at go into a report, and which of their lines: what is not on a list here is left
//! out. A line that is left out leaves an empty one or a `#`, so that the others are where they were.
//!
//! Not here: what is replaced in the lines that go along ([`crate::report::redact`]).

use crate::base::recording::{Entries, What};
use crate::base::sets::IntoSet as _;

/// Folders and files whose text goes along as it was read.
const WHOLE: [&str; 34] = [
    "/boot/efi/loader/",
    "/etc/default/grub",
    "/etc/driverctl.d/",
    "/etc/gpu-handoff/",
    "/etc/initramfs-tools/modules",
    "/etc/kernel/",
    "/etc/modprobe.d/",
    "/etc/modules",
    "/etc/nvidia/",
    "/etc/systemd/system/gpu-",
    "/lib/modprobe.d/",
    "/lib/modules-load.d/",
    "/proc/cmdline",
    "/proc/consoles",
    "/proc/cpuinfo",
    "/proc/devices",
    "/proc/driver/nvidia/",
    "/proc/fb",
    "/proc/interrupts",
    "/proc/iomem",
    "/proc/meminfo",
    "/proc/modules",
    "/proc/sys/kernel/",
    "/programs/",
    "/run/gpu-handoff/",
    "/run/modprobe.d/",
    "/run/modules-load.d/",
    "/run/qemu-server/pci-id-reservations",
    "/sys/",
    "/usr/lib/modprobe.d/",
    "/usr/lib/modules-load.d/",
    "/usr/local/lib/modprobe.d/",
    "/usr/local/lib/modules-load.d/",
    "/var/lib/gpu-handoff/",
];

/// What is told of what no file says ([`crate::base::root::Root::tell`]).
const TOLD: [&str; 5] = [
    "/processes.json",
    "/filesystems",
    "/libraries.json",
    "/locks.json",
    "/moment",
];

/// Keys of a VM that say how it has its devices; a number may follow.
const VM_KEYS: [&str; 29] = [
    "acpi",
    "agent",
    "arch",
    "balloon",
    "bios",
    "boot",
    "bootdisk",
    "cores",
    "cpu",
    "cpulimit",
    "cpuunits",
    "delete",
    "hookscript",
    "hostpci",
    "hugepages",
    "kvm",
    "lock",
    "machine",
    "memory",
    "numa",
    "onboot",
    "ostype",
    "protection",
    "scsihw",
    "shares",
    "sockets",
    "startup",
    "template",
    "vga",
];

/// The same of a container.
const CT_KEYS: [&str; 16] = [
    "arch",
    "cores",
    "cpulimit",
    "cpuunits",
    "dev",
    "features",
    "hookscript",
    "lock",
    "memory",
    "onboot",
    "ostype",
    "protection",
    "startup",
    "swap",
    "template",
    "unprivileged",
];

/// Keys of LXC's that count where a GPU is named behind them.
const LXC_KEYS: [&str; 4] = ["lxc.environment", "lxc.hook", "lxc.include", "lxc.mount.entry"];

/// What is passed to QEMU besides is not shown, but for these words, which the checks ask for.
const ARGS: [&str; 3] = ["vfio-pci", "kvm=off", "-hypervisor"];

/// What the checks look for in the scripts of others.
const IN_SCRIPTS: [&str; 5] = [
    "driver_override",
    "/sys/bus/pci/drivers",
    "gpu-handoff.sh",
    "vfio-pci",
    "nvidia",
];

/// What they look for in udev's rules: other words are of somebody's devices, or call somebody's programs.
const IN_RULES: [&str; 3] = ["driver_override", "vfio-pci", "RUN"];

/// What the nodes are called that a GPU has.
const OF_A_GPU: [&str; 4] = ["nvidia", "NVIDIA_", "/dev/dri", "/dev/vfio"];

/// Files of sections below /etc/pve.
const SECTIONS: [&str; 4] = ["/storage.cfg", "/jobs.cfg", "/ha/resources.cfg", "/mapping/pci.cfg"];

/// Keys in them.
const SECTION_KEYS: [&str; 14] = [
    "all",
    "content",
    "disable",
    "enabled",
    "exclude",
    "live-migration-capable",
    "map",
    "mdev",
    "mode",
    "nodes",
    "path",
    "shared",
    "state",
    "vmid",
];

/// Packages whose versions count, besides those with "nvidia" in their names.
const PACKAGES: [&str; 4] = ["pve-manager", "qemu-server", "proxmox-ve", "gpu-handoff"];

/// Mounts that are asked for.
const MOUNTS: [&str; 3] = ["/run", "/sys/fs/cgroup", "/var/lib"];

/// What goes along, of what was looked at.
pub fn kept(entries: Entries) -> Entries {
    let is_hidden =
        |path: &str| path.starts_with("/run/systemd/sessions") || path.starts_with("/var/lib/systemd/linger");
    let of = entries.into_iter().filter(|(path, _)| !is_hidden(path));
    of.map(|(path, mut entry)| {
        entry.what = match entry.what {
            What::Text(text) => What::Text(lines_of(&path, text)),
            What::Bytes(bytes) if path.starts_with("/sys/") => What::Bytes(bytes),
            // A file that somebody has written in another encoding is read so here, too.
            What::Bytes(bytes) => What::Text(lines_of(&path, String::from_utf8_lossy(&bytes).into_owned())),
            what => what,
        };
        (path, entry)
    })
    .into_map()
}

fn lines_of(path: &str, text: String) -> String {
    if text.is_empty() {
        return text;
    }
    let name = path.rsplit('/').next().unwrap_or_default();
    match path {
        "/proc/mounts" => lines(&text, "", |line| {
            let at = line.split(' ').nth(1).is_some_and(|at| MOUNTS.contains(&at));
            at.then(|| line.to_owned())
        }),
        "/etc/docker/daemon.json" => lines(&text, "", |line| words(line, &["nvidia"])),
        "/var/lib/dpkg/status" => packages(&text),
        _ if path.starts_with("/etc/udev/rules.d/") => lines(&text, "", |line| {
            let is_note = line.trim_start().starts_with('#');
            (!is_note).then(|| words(line, &IN_RULES)).flatten()
        }),
        _ if path.starts_with("/etc/pve/") => of_proxmox(path, &text),
        _ if path.starts_with("/var/lib/vz/snippets/") => lines(&text, "", |line| words(line, &IN_SCRIPTS)),
        _ if name == "modules.dep" => lines(&text, "", |line| {
            let file = line.split(':').next().unwrap_or_default();
            (file.contains("nvidia") || file.contains("vfio")).then(|| line.to_owned())
        })
        .lines()
        .filter(|line| !line.is_empty())
        .map(|line| format!("{line}\n"))
        .collect(),
        // Of a disk's or a stick's the number alone is in the file, and no word tells what it is.
        _ if path.starts_with("/sys/") && ["serial", "uuid", "address", "unique_id"].contains(&name) => String::new(),
        // What somebody has noted for themselves is theirs; what `prepare` has noted is ours.
        _ if path.starts_with("/etc/") && is_whole(path) => lines(&text, "#", |line| {
            let is_note = line.trim_start().starts_with('#') && !line.contains("gpu-handoff:");
            (!is_note).then(|| line.to_owned())
        }),
        _ if is_whole(path) || TOLD.contains(&path) || is_a_state(path) => text,
        _ => String::new(),
    }
}

/// Whether it is what was told of a process of ours ([`crate::run::elsewhere`]).
fn is_a_state(path: &str) -> bool {
    let pid = path.strip_prefix("/proc/").and_then(|path| path.strip_suffix("/stat"));
    pid.is_some_and(|pid| !pid.is_empty() && pid.bytes().all(|b| b.is_ascii_digit()))
}

/// The words that lines are kept by, and the paths of what is kept.
pub(super) fn known_words() -> impl Iterator<Item = &'static str> {
    let lists: [&[&str]; 9] = [
        &WHOLE,
        &VM_KEYS,
        &CT_KEYS,
        &LXC_KEYS,
        &SECTIONS,
        &SECTION_KEYS,
        &PACKAGES,
        &MOUNTS,
        &TOLD,
    ];
    lists.into_iter().flatten().copied()
}

fn is_whole(path: &str) -> bool {
    WHOLE.iter().any(|folder| path.starts_with(folder))
}

/// Each line as it goes along, or what stands in its place.
fn lines(text: &str, else_: &str, kept: impl Fn(&str) -> Option<String>) -> String {
    let line = |line| kept(line).unwrap_or_else(|| else_.to_owned()) + "\n";
    text.lines().map(line).collect()
}

/// Those of these words that are in a line.
fn words(line: &str, known: &[&str]) -> Option<String> {
    let words: Vec<&str> = known.iter().filter(|word| line.contains(**word)).copied().collect();
    (!words.is_empty()).then(|| words.join(" "))
}

fn packages(text: &str) -> String {
    let field = |package: &str, name: &str| package.lines().find(|line| line.starts_with(name)).map(str::to_owned);
    let counts = |package: &&str| {
        let name = field(package, "Package: ").unwrap_or_default();
        let name = name.trim_start_matches("Package: ");
        PACKAGES.contains(&name) || name.contains("nvidia")
    };
    let kept = |package| {
        let fields = ["Package: ", "Status: ", "Version: "];
        fields
            .iter()
            .filter_map(|name| field(package, name))
            .map(|line| line + "\n")
            .collect()
    };
    let packages: Vec<String> = text.split("\n\n").filter(counts).map(kept).collect();
    packages.join("\n")
}

fn of_proxmox(path: &str, text: &str) -> String {
    match path {
        _ if path.contains("/qemu-server/") => guest(text, vm_line),
        _ if path.contains("/lxc/") => guest(text, container_line),
        // A file of sections begins each at the margin (pve-common, PVE/SectionConfig.pm).
        _ if SECTIONS.iter().any(|file| path.ends_with(file)) => lines(text, "", |line| {
            let key = line.split_whitespace().next().unwrap_or_default();
            let is_head = !line.starts_with(char::is_whitespace) && !line.starts_with('#');
            match is_head || key.is_empty() || SECTION_KEYS.contains(&key) {
                true => Some(line.to_owned()),
                // The next line is of the same section still.
                false => line.starts_with(char::is_whitespace).then(|| format!("\t{key} -")),
            }
        }),
        _ => String::new(),
    }
}

/// A guest's config. What stands in a snapshot is not what it starts with, and the names of snapshots are somebody's words.
fn guest(text: &str, kept: fn(&str) -> Option<String>) -> String {
    let (mut kept_text, mut snapshots, mut counts) = (String::new(), 0, true);
    for line in text.lines() {
        let is_head = line.starts_with('[');
        if is_head {
            // qemu-server, PVE/QemuServer.pm, parse_vm_config; pve-container, PVE/LXC/Config.pm, parse_pct_config.
            let name = line.trim_end().to_ascii_lowercase();
            counts = name == "[pending]" || name == "[pve:pending]" || name.starts_with("[special:");
            snapshots += 1;
        }
        kept_text += &match (is_head, counts) {
            (true, true) => line.to_owned(),
            (true, false) => format!("[snapshot{snapshots}]"),
            (false, true) => kept(line).unwrap_or_else(|| "#".to_owned()),
            (false, false) => "#".to_owned(),
        };
        kept_text.push('\n');
    }
    kept_text
}

/// A key as it stands in a config, and what is behind it.
fn key_of(line: &str) -> Option<(&str, &str)> {
    let at = line.find([':', '='])?;
    Some((line[..at].trim(), line[at + 1..].trim()))
}

fn is_one_of(key: &str, keys: &[&str]) -> bool {
    keys.contains(&key.trim_end_matches(|c: char| c.is_ascii_digit()))
}

fn vm_line(line: &str) -> Option<String> {
    let (key, value) = key_of(line)?;
    match key {
        "args" => Some(format!("args: {}", words(value, &ARGS)?)),
        // A model of CPU that somebody has made has a name of somebody's.
        _ if is_one_of(key, &VM_KEYS) => Some(line.to_owned()),
        _ => None,
    }
}

fn container_line(line: &str) -> Option<String> {
    let (key, value) = key_of(line)?;
    let names_a_gpu = OF_A_GPU.iter().any(|word| value.contains(word));
    // A device that is none of a GPU's is somebody's stick, by its serial number.
    if is_one_of(key, &["dev"]) && !names_a_gpu {
        return None;
    }
    let is_device = key.starts_with("lxc.cgroup.devices") || key.starts_with("lxc.cgroup2.devices");
    let is_lxc = names_a_gpu && LXC_KEYS.iter().any(|known| key.starts_with(known));
    (is_device || is_lxc || is_one_of(key, &CT_KEYS)).then(|| line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_guest_go_the_lines_about_its_devices_and_the_others_leave_a_mark() {
        let vm = "#a description with hunter2\nargs: -device vfio-pci,host=x -cpu host,kvm=off\nballoon: 0\ncipassword: x\n\
                  hostpci0: 0000:01:00,pcie=1\nmachine: q35\nname: secret-project\nnet0: virtio=BC:24:11:00:00:01\nnuma0: cpus=0\n\
                  smbios1: uuid=1\nsshkeys: ssh-rsa\nvmgenid: 1\n[PENDING]\nhostpci1: 02:00\nname: x\n[pending-divorce]\nhostpci0: 03:00\n";
        assert_eq!(
            lines_of("/etc/pve/nodes/pve/qemu-server/111.conf", vm.to_owned()),
            "#\nargs: vfio-pci kvm=off\nballoon: 0\n#\nhostpci0: 0000:01:00,pcie=1\nmachine: q35\n#\n#\nnuma0: cpus=0\n#\n#\n#\n\
             [PENDING]\nhostpci1: 02:00\n#\n[snapshot2]\n#\n"
        );
        let ct = "dev0: /dev/nvidia0\ndev1: /dev/serial/by-id/usb-x\nhostname: mail\nlxc.cgroup2.devices.allow: c 195:* rwm\nlxc.environment: TOKEN=x\n\
                  lxc.environment: NVIDIA_VISIBLE_DEVICES=all\nlxc.mount.entry: /srv/private srv none bind\n\
                  lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind\nnet0: name=eth0\nunprivileged: 1\n";
        assert_eq!(
            lines_of("/etc/pve/lxc/104.conf", ct.to_owned()),
            "dev0: /dev/nvidia0\n#\n#\nlxc.cgroup2.devices.allow: c 195:* rwm\n#\nlxc.environment: NVIDIA_VISIBLE_DEVICES=all\n#\n\
             lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind\n#\nunprivileged: 1\n"
        );
    }

    #[test]
    fn of_other_files_go_the_lines_that_are_asked_for_and_of_unknown_ones_nothing() {
        for (path, text, kept) in [
            (
                "/etc/pve/storage.cfg",
                "nfs: media\n\tserver 10.0.0.5\n\tpath /mnt\n\tusername bob\n\n",
                "nfs: media\n\tserver -\n\tpath /mnt\n\tusername -\n\n",
            ),
            (
                "/etc/pve/jobs.cfg",
                "vzdump: daily\n\tmailto bob@x\n\tvmid 111\n",
                "vzdump: daily\n\tmailto -\n\tvmid 111\n",
            ),
            ("/etc/pve/user.cfg", "user:bob@pve:1:\n", ""),
            ("/etc/pve/priv/token", "secret", ""),
            (
                "/var/lib/vz/snippets/user-data",
                "password: x\nmodprobe nvidia\n",
                "\nnvidia\n",
            ),
            (
                "/etc/docker/daemon.json",
                "{\"proxy\": \"x\",\n\"nvidia\": {}}\n",
                "\nnvidia\n",
            ),
            (
                "/proc/mounts",
                "nas:/x /mnt nfs rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n",
                "\ncgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n",
            ),
            (
                "/var/lib/dpkg/status",
                "Package: a\nVersion: 1\n\nPackage: qemu-server\nStatus: install ok installed\nMaintainer: M\nVersion: 9\n",
                "Package: qemu-server\nStatus: install ok installed\nVersion: 9\n",
            ),
            (
                "/lib/modules/6/modules.dep",
                "kernel/a.ko:\nupdates/nvidia.ko: b\n",
                "updates/nvidia.ko: b\n",
            ),
            ("/etc/shadow", "root:x", ""),
            (
                "/etc/udev/rules.d/70-x.rules",
                "ATTRS{serial}==\"A50285BI\"\n# driver_override\nRUN+=\"x vfio-pci me:hunter2\"\nATTR{driver_override}=\"x\"\n",
                "\n\nvfio-pci RUN\ndriver_override\n",
            ),
            ("/proc/4242/stat", "4242 (x) D 1", "4242 (x) D 1"),
            ("/sys/bus/usb/devices/1-1/serial", "4C530001", ""),
            (
                "/etc/modprobe.d/notes.conf",
                "# for Bob\n# gpu-handoff: blacklist nvidia\nblacklist x\n",
                "#\n# gpu-handoff: blacklist nvidia\nblacklist x\n",
            ),
            (
                "/etc/pve/mapping/pci.cfg",
                "gpu\n\tdescription Bob's\n\tmap id=10de:2204\n",
                "gpu\n\tdescription -\n\tmap id=10de:2204\n",
            ),
            (
                "/etc/modprobe.d/vfio.conf",
                "options vfio-pci ids=1\n",
                "options vfio-pci ids=1\n",
            ),
        ] {
            assert_eq!(lines_of(path, text.to_owned()), kept, "{path}");
        }
    }

    #[test]
    fn of_a_file_in_another_encoding_go_the_same_lines() {
        let entry = |what| crate::base::recording::Entry {
            mode: 0o644,
            changed: 0,
            what,
        };
        let bytes = |text: &[u8]| entry(What::Bytes(text.to_vec()));
        let entries = Entries::from([
            (
                "/etc/modprobe.d/a.conf".to_owned(),
                bytes(b"# f\xfcr\nblacklist nvidia\n"),
            ),
            ("/etc/shadow".to_owned(), bytes(b"\xfc")),
            ("/sys/x/config".to_owned(), bytes(b"\xde\x10")),
        ]);
        let kept: Vec<What> = kept(entries).into_values().map(|entry| entry.what).collect();
        assert_eq!(
            kept,
            [
                What::Text("#\nblacklist nvidia\n".to_owned()),
                What::Text(String::new()),
                What::Bytes(vec![0xde, 0x10])
            ]
        );
    }
}
