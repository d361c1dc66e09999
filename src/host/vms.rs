//! The VMs that run on this host: their QEMU processes.

use std::io;

use serde::{Deserialize, Serialize};

use crate::base::process::{Process, Stat};
use crate::base::root::Root;
use crate::base::vmid::VmId;

/// A VM that runs on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningVm {
    /// The VM.
    pub vmid: VmId,
    /// Its QEMU.
    pub process: Process,
}

/// Where qemu-server keeps the pid files of running VMs (PVE/QemuServer/Helpers.pm, pidfile_name).
pub const PID_FILES: &str = "/run/qemu-server";

/// The VMs that run: a pidfile of qemu-server whose process is a QEMU with that very pidfile in its command line and no
/// zombie (qemu-server, PVE/QemuServer/Helpers.pm, parse_cmdline and instance_running_locally).
pub(crate) fn read_vms(root: &Root) -> io::Result<Vec<RunningVm>> {
    let names = root.names(PID_FILES)?;
    let vmids = names.iter().filter_map(|name| name.strip_suffix(".pid")?.parse().ok());
    Ok(vmids.filter_map(|vmid| running_vm(root, vmid)).collect())
}

/// One VM, if it runs.
pub fn running_vm(root: &Root, vmid: VmId) -> Option<RunningVm> {
    let pid = root
        .line(format!("{PID_FILES}/{vmid}.pid"))?
        .trim()
        .parse::<u32>()
        .ok()?;
    let cmdline = root.text(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let is_ours = pid > 0 && is_qemu_of(&cmdline, vmid);
    let started = Stat::read(root, &format!("/proc/{pid}")).and_then(|stat| stat.started);
    is_ours.then_some(RunningVm {
        vmid,
        process: Process {
            pid,
            started: started.unwrap_or(0),
        },
    })
}

/// Whether a command line (words ended by NUL) is a QEMU's with qemu-server's pidfile of this VM, by its whole path: a QEMU
/// that somebody started by hand may have a file of the same name elsewhere. qemu-server writes /var/run, which is a
/// link to /run. A zombie has no command line.
fn is_qemu_of(cmdline: &str, vmid: VmId) -> bool {
    let words: Vec<&str> = cmdline.split('\0').collect();
    let program = words[0].rsplit('/').next().unwrap_or_default();
    let ours = ["/var/run", "/run"].map(|run| format!("{run}/qemu-server/{vmid}.pid"));
    let is_option = |word: &str| matches!(word, "-pidfile" | "--pidfile");
    let has_pidfile = words
        .windows(2)
        .any(|w| is_option(w[0]) && ours.iter().any(|path| path == w[1]));
    (program == "kvm" || program.starts_with("qemu-system")) && has_pidfile
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_runs_if_its_pidfile_is_in_the_command_line_of_a_qemu() {
        for (cmdline, runs) in [
            ("/usr/bin/kvm\0-pidfile\0/var/run/qemu-server/111.pid\0", true),
            (
                "/usr/bin/qemu-system-x86_64\0-pidfile\0/run/qemu-server/111.pid\0",
                true,
            ),
            ("/usr/bin/kvm\0--pidfile\0/run/qemu-server/111.pid\0", true),
            ("/usr/bin/kvm\0-pidfile\0/run/qemu-server/112.pid\0", false),
            ("/usr/bin/kvm\0-pidfile\0/root/111.pid\0", false),
            ("/usr/bin/kvm\0-pidfile\0/srv/run/qemu-server/111.pid\0", false),
            ("/usr/bin/kvm\0-pidfile\x00111.pid\0", false),
            ("/usr/bin/kvm\0pidfile\0/run/qemu-server/111.pid\0", false),
            ("/usr/bin/vim\0-pidfile\0/run/qemu-server/111.pid\0", false),
            ("", false),
        ] {
            assert_eq!(is_qemu_of(cmdline, "111".parse().unwrap()), runs, "{cmdline:?}");
        }
    }
}
