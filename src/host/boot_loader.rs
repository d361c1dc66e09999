//! The kernel's command line: that of now, and the one that the configured boot loader has for the next boot.
//!
//! Which loader is in use is told by what it leaves behind when it starts a kernel. Nothing is mounted to find out, and
//! where it cannot be told that is the answer.

use serde::{Deserialize, Serialize};

use crate::base::root::Root;
use crate::host::grub_config::{command_line, parse};
use crate::host::kernel_args::{Argument, arguments};
use crate::host::place::{Place, Unknown, by_name, text};

/// The command line of now.
pub const NOW: &str = "/proc/cmdline";

/// GRUB's settings; those beside it come after it, in the order of their names (Debian's grub-mkconfig).
pub const GRUB: &str = "/etc/default/grub";

/// The folder beside it; its files end in `.cfg`.
pub const GRUB_D: &str = "/etc/default/grub.d";

/// The command line of what proxmox-boot-tool has systemd-boot start (Proxmox VE's manual, Host Bootloader, "Systemd-boot").
pub const KERNEL_CMDLINE: &str = "/etc/kernel/cmdline";

/// The boot partitions that proxmox-boot-tool keeps (proxmox-kernel-helper); without it, it does nothing.
pub const PROXMOX_UUIDS: &str = "/etc/kernel/proxmox-boot-uuids";

/// What the loader says of itself: systemd-boot, and GRUB's module bli (Boot Loader Interface, `LoaderInfo`).
const LOADER_INFO: &str = "/sys/firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";

/// The loader that starts the kernel, and where its command line is configured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loader {
    /// systemd-boot, whose entries proxmox-boot-tool writes with what [`KERNEL_CMDLINE`] has.
    SystemdBoot,
    /// GRUB.
    Grub {
        /// proxmox-boot-tool keeps its boot partitions.
        proxmox_boot_tool: bool,
    },
    /// Neither, or it cannot be told; why, as a sentence without its end.
    Other(String),
}

/// Both command lines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootConfig {
    /// Which loader is in use.
    pub loader: Loader,
    /// The arguments of now.
    pub now: Vec<Argument>,
    /// Those that are configured for the next boot, or what of it is not understood. Of a loader that is not known there is
    /// nothing.
    pub next: Result<Vec<Argument>, Vec<Unknown>>,
}

impl BootConfig {
    /// Reads them.
    pub fn read(root: &Root) -> Self {
        let now = root.config(NOW).unwrap_or_default();
        let now = String::from_utf8_lossy(&now).into_owned();
        let now = arguments(&[(now, Place::line(NOW, 1))]);
        let loader = loader(root, &now);
        let next = match &loader {
            Loader::SystemdBoot => kernel_cmdline(root),
            Loader::Grub { .. } => grub(root),
            Loader::Other(why) => Err(vec![Unknown {
                file: PROXMOX_UUIDS.to_owned(),
                line: None,
                why: why.clone(),
            }]),
        };
        BootConfig { loader, now, next }
    }
}

/// Which loader has started the kernel that runs.
fn loader(root: &Root, now: &[Argument]) -> Loader {
    let proxmox_boot_tool = root.exists(PROXMOX_UUIDS);
    let grub = Loader::Grub { proxmox_boot_tool };
    let is_grub = || match root.exists(GRUB) {
        true => grub.clone(),
        false => Loader::Other(format!("GRUB is in use, and {GRUB} is not there")),
    };
    if !root.exists("/sys/firmware/efi") {
        // systemd-boot is for UEFI alone.
        return is_grub();
    }
    let of_systemd_boot = || match proxmox_boot_tool {
        true => Loader::SystemdBoot,
        false => Loader::Other("systemd-boot is in use, and proxmox-boot-tool does not keep it".to_owned()),
    };
    // Four bytes of attributes, then UTF-16 (linux, Documentation/filesystems/efivarfs.rst).
    let info = root.config(LOADER_INFO).unwrap_or_default();
    let units: Vec<u16> = info
        .get(4..)
        .unwrap_or_default()
        .chunks_exact(2)
        .map(|b| u16::from_le_bytes([b[0], b[1]]))
        .collect();
    let info = String::from_utf16_lossy(&units);
    if info.starts_with("systemd-boot") {
        return of_systemd_boot();
    }
    // GRUB's command `linux` puts the file's name first; systemd-boot gives each initrd with the name it has on the boot
    // partition (grub, grub-core/loader/i386/linux.c; systemd, src/boot/efi/boot.c, initrd_prepare).
    let by_grub = now.iter().any(|a| a.name() == "BOOT_IMAGE");
    let by_systemd_boot = now
        .iter()
        .any(|a| a.name() == "initrd" && a.value().is_some_and(|v| v.starts_with('\\')));
    match (info.starts_with("GRUB") || by_grub, by_systemd_boot) {
        (true, false) => is_grub(),
        (false, true) => of_systemd_boot(),
        _ if !proxmox_boot_tool && root.exists(GRUB) => grub,
        _ => Loader::Other("which boot loader has started this kernel cannot be told".to_owned()),
    }
}

/// The one line of /etc/kernel/cmdline.
fn kernel_cmdline(root: &Root) -> Result<Vec<Argument>, Vec<Unknown>> {
    let mut unknown = Vec::new();
    let read = text(root, KERNEL_CMDLINE, &mut unknown);
    let Some(text) = read else {
        if unknown.is_empty() {
            unknown.push(Unknown {
                file: KERNEL_CMDLINE.to_owned(),
                line: None,
                why: "it is not there, so that each new kernel gets the arguments of the one that runs".to_owned(),
            });
        }
        return Err(unknown);
    };
    let filled = (1..).zip(text.split('\n')).filter(|(_, l)| !l.trim().is_empty());
    let lines: Vec<(usize, &str)> = filled.collect();
    let not_understood = |line: usize, why: &str| {
        Err(vec![Unknown {
            file: KERNEL_CMDLINE.to_owned(),
            line: Some(line),
            why: why.to_owned(),
        }])
    };
    match lines.as_slice() {
        [] => not_understood(1, "it is empty"),
        [(number, line)] if line.chars().any(|c| c.is_control() && c != '\t') => {
            not_understood(*number, "it has a control character, as the line ends of Windows are")
        }
        [(number, line)] => Ok(arguments(&[((*line).to_owned(), Place::line(KERNEL_CMDLINE, *number))])),
        [_, (number, _), ..] => not_understood(*number, "all arguments are to be on one line"),
    }
}

/// The files of GRUB's settings that are there, in the order in which they count.
pub fn grub_files(root: &Root, unknown: &mut Vec<Unknown>) -> Vec<String> {
    let mut files = vec![GRUB.to_owned()];
    files.extend(by_name(root, &[GRUB_D], ".cfg", unknown));
    files
}

/// What GRUB's settings come to.
fn grub(root: &Root) -> Result<Vec<Argument>, Vec<Unknown>> {
    let (mut unknown, mut all) = (Vec::new(), Vec::new());
    for file in grub_files(root, &mut unknown) {
        let text = text(root, &file, &mut unknown).unwrap_or_default();
        match parse(&file, &text) {
            Ok(assignments) => all.extend(assignments),
            Err(why) => unknown.push(why),
        }
    }
    match unknown.is_empty() {
        true => Ok(arguments(&command_line(&all))),
        false => Err(unknown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(files: &[(&str, &str)]) -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in files {
            let path = dir.path().join(file.trim_start_matches('/'));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let root = Root::at(dir.path());
        (dir, root)
    }

    /// As efivarfs has it.
    fn info(text: &str) -> String {
        let utf16 = text.chars().flat_map(|c| [c, '\0']);
        "\u{6}\0\0\0".chars().chain(utf16).collect()
    }

    const BY_GRUB: (&str, &str) = (
        NOW,
        "BOOT_IMAGE=/boot/vmlinuz-6.8.12-4-pve root=/dev/mapper/pve-root ro quiet\n",
    );
    const BY_SYSTEMD_BOOT: (&str, &str) = (
        NOW,
        "initrd=\\EFI\\proxmox\\6.8.12-4-pve\\initrd.img-6.8.12-4-pve root=ZFS=rpool/ROOT/pve-1 boot=zfs\n",
    );
    const EFI: (&str, &str) = ("/sys/firmware/efi/systab", "");
    const UUIDS: (&str, &str) = (PROXMOX_UUIDS, "D34B-A25D\n");
    const DEFAULT: (&str, &str) = (GRUB, "GRUB_CMDLINE_LINUX_DEFAULT=\"quiet\"\n");

    #[test]
    fn the_loader_is_told_by_what_it_leaves_behind() {
        let grub = |proxmox_boot_tool| Loader::Grub { proxmox_boot_tool };
        let other = |why: &str| Loader::Other(why.to_owned());
        let (by_info, by_bli) = (info("systemd-boot 252.26-1~deb12u2"), info("GRUB 2.12"));
        let (by_info, by_bli) = ((LOADER_INFO, by_info.as_str()), (LOADER_INFO, by_bli.as_str()));
        for (files, expected) in [
            (vec![DEFAULT], grub(false)),
            (vec![DEFAULT, BY_GRUB, UUIDS], grub(true)),
            (vec![DEFAULT, BY_GRUB, EFI], grub(false)),
            (vec![DEFAULT, BY_GRUB, EFI, UUIDS], grub(true)),
            (vec![DEFAULT, BY_SYSTEMD_BOOT, EFI, UUIDS], Loader::SystemdBoot),
            (vec![DEFAULT, EFI, UUIDS, by_info], Loader::SystemdBoot),
            (vec![DEFAULT, EFI, UUIDS, by_bli], grub(true)),
            (vec![DEFAULT, EFI], grub(false)),
            (
                vec![DEFAULT, EFI, UUIDS],
                other("which boot loader has started this kernel cannot be told"),
            ),
            (
                vec![DEFAULT, EFI, by_info],
                other("systemd-boot is in use, and proxmox-boot-tool does not keep it"),
            ),
            (
                vec![BY_GRUB],
                other("GRUB is in use, and /etc/default/grub is not there"),
            ),
        ] {
            let (_dir, root) = host(&files);
            assert_eq!(BootConfig::read(&root).loader, expected, "{files:?}");
        }
    }

    fn shown(config: &BootConfig) -> Result<Vec<String>, Vec<String>> {
        let next = config.next.as_ref();
        next.map(|all| all.iter().map(|a| format!("{} {}", a.place, a.text)).collect())
            .map_err(|all| all.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn the_next_command_line_is_the_loaders_and_what_is_not_understood_is_said() {
        let boot = |text: &'static str| vec![BY_SYSTEMD_BOOT, EFI, UUIDS, (KERNEL_CMDLINE, text)];
        for (files, expected) in [
            (
                boot("root=ZFS=rpool/ROOT/pve-1 boot=zfs\n"),
                Ok(vec![
                    "/etc/kernel/cmdline:1 root=ZFS=rpool/ROOT/pve-1",
                    "/etc/kernel/cmdline:1 boot=zfs",
                ]),
            ),
            (
                boot("root=a\nintel_iommu=on\n"),
                Err(vec!["/etc/kernel/cmdline:2: all arguments are to be on one line"]),
            ),
            (boot("\n"), Err(vec!["/etc/kernel/cmdline:1: it is empty"])),
            (
                boot("root=a\r\n"),
                Err(vec![
                    "/etc/kernel/cmdline:1: it has a control character, as the line ends of Windows are",
                ]),
            ),
            (
                vec![BY_SYSTEMD_BOOT, EFI, UUIDS],
                Err(vec![
                    "/etc/kernel/cmdline: it is not there, so that each new kernel gets the arguments of the one that runs",
                ]),
            ),
            (
                vec![
                    DEFAULT,
                    BY_GRUB,
                    ("/etc/default/grub.d/b.cfg", "GRUB_CMDLINE_LINUX=$(x)"),
                    ("/etc/default/grub.d/a.cfg", "exit"),
                    ("/etc/default/grub.d/c.cfg.dpkg-old", "exit"),
                ],
                Err(vec![
                    "/etc/default/grub.d/a.cfg:1: it is no plain assignment",
                    "/etc/default/grub.d/b.cfg:1: its value is what a command says, or an expansion that only a shell knows",
                ]),
            ),
            (vec![DEFAULT, BY_GRUB], Ok(vec!["/etc/default/grub:1 quiet"])),
        ] {
            let (_dir, root) = host(&files);
            let s = |all: Vec<&str>| all.into_iter().map(str::to_owned).collect::<Vec<_>>();
            assert_eq!(shown(&BootConfig::read(&root)), expected.map(s).map_err(s), "{files:?}");
        }
        let (_dir, root) = host(&[DEFAULT, BY_GRUB]);
        let now: Vec<String> = BootConfig::read(&root).now.iter().map(|a| a.text.clone()).collect();
        assert_eq!(now.join(" ") + "\n", BY_GRUB.1);
    }
}
