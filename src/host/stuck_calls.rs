//! Calls of somebody else's that are in the kernel at a function of an NVIDIA card: a script that hangs in an unbind.
//!
//! Such a call holds the device's lock, so that everything that needs it would wait behind it: a reset, a removal, on 6.1
//! even reading `driver_override`. The link `driver` goes as soon as an unbind begins (linux, drivers/base/dd.c,
//! __device_release_driver), and `dev->driver` does not: `drivers_probe` returns at once and binds nothing (linux,
//! drivers/base/bus.c, bus_rescan_devices_helper). Whether a function without a driver is free,
//! only the task tells that is at it.
//!
//! A task is found by what it has open for writing (a file such as `unbind`) and, where the kernel shows it, by its stack;
//! what has nothing open (rmmod, a hot-plug thread) by its stack alone. Its state, stack, descriptors, name and cgroup can be
//! read whatever it hangs in; its memory and its command line are not looked at.
//!
//! Not here: which calls are our own, and whether they last ([`crate::run::look`]), and what they wait for.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::base::pci::{PciAddr, PciClass, VENDOR_NVIDIA, parse_sysfs_hex};
use crate::base::process::Stat;
use crate::base::root::Root;
use crate::base::sets::in_order;
use crate::host::belongs::Belongs;

/// How long the descriptors of all processes are looked through for such calls. A host with a million of them is no reason
/// to know nothing: what has none that were read is known by its stack.
const TABLES: Duration = Duration::from_secs(1);

/// A call that is in the kernel, at one of some functions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StuckCall {
    /// The process.
    pub pid: i32,
    /// Its thread that made the call.
    pub thread: i32,
    /// When that thread started, clock ticks after boot.
    pub started: Option<u64>,
    /// Its process group.
    pub group: Option<u32>,
    /// The name of the process, as it chose it: foreign text.
    pub comm: String,
    /// What it belongs to, from its cgroup.
    pub belongs_to: Belongs,
    /// What it does.
    pub what: What,
    /// The driver whose remove() it is in, or the module of that, where either is known.
    pub driver: Option<String>,
    /// The functions that it can be at: of an NVIDIA card, without the link `driver`. The lock of one of them is held.
    pub at: Vec<PciAddr>,
    /// Where in the kernel it waits; None where that is not shown.
    pub frame: Option<String>,
    /// It was there at two looks with a pause between them ([`crate::run::look`]).
    #[serde(default)]
    pub lasts: bool,
}

impl StuckCall {
    /// Whether it is the same call, as far as anybody can tell: of the same thread.
    pub fn is(&self, other: &StuckCall) -> bool {
        (self.pid, self.thread, self.started) == (other.pid, other.thread, other.started)
    }
}

/// What such a call does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// A write to a driver's `unbind`.
    Unbind,
    /// A write to `remove`: the function leaves the bus.
    Remove,
    /// A write to `reset`.
    Reset,
    /// A write to `sriov_numvfs`.
    VirtualFunctions,
    /// A write to `bind`, `new_id` or `drivers_probe`.
    Bind,
    /// Something that takes a driver off its devices: the unload of its module, a card that was pulled.
    Release,
}

impl What {
    /// Whether a driver lets go of a function in it, which may wait for whoever uses that. The others wait for the device, or for
    /// such a call.
    pub fn lets_go(self) -> bool {
        matches!(self, What::Unbind | What::Remove | What::Release)
    }
}

/// What a file of sysfs stands for, by its name.
fn of_file(name: &str) -> Option<What> {
    Some(match name {
        "unbind" => What::Unbind,
        "remove" => What::Remove,
        "reset" => What::Reset,
        "sriov_numvfs" => What::VirtualFunctions,
        "bind" | "new_id" | "drivers_probe" => What::Bind,
        _ => return None,
    })
}

/// A function without the link `driver`.
#[derive(Clone, Copy, Debug)]
struct Driverless {
    addr: PciAddr,
    class: PciClass,
    parent: Option<PciAddr>,
}

/// The calls that can be at a function of an NVIDIA card, by process. Where each such function has a driver nothing is
/// looked at.
///
/// # Errors
/// Where a directory that is there cannot be listed.
pub fn scan(root: &Root) -> io::Result<Vec<StuckCall>> {
    let functions = driverless(root)?;
    if functions.is_empty() {
        return Ok(Vec::new());
    }
    let begun = Instant::now();
    scan_until(root, &functions, begun + TABLES * 2, begun + TABLES)
}

/// The same, with the moments at which no more descriptors are read: of processes that wait uninterruptibly, which come
/// first, and of the others, of which a driver of former years can keep one.
fn scan_until(root: &Root, functions: &[Driverless], waiting: Instant, others: Instant) -> io::Result<Vec<StuckCall>> {
    let (mut that_wait, mut that_do_not) = (Vec::new(), Vec::new());
    for name in root.names("/proc")? {
        let Ok(pid) = name.parse::<i32>() else {
            continue;
        };
        // Of a process that ends meanwhile, or is not to be read, nothing is known.
        let Ok(threads) = root.names(format!("/proc/{pid}/task")) else {
            continue;
        };
        let threads: Vec<i32> = threads.iter().filter_map(|t| t.parse().ok()).collect();
        let waits = |thread: &i32| {
            let stat = Stat::read(root, &format!("/proc/{pid}/task/{thread}"));
            stat.is_some_and(|stat| stat.is_uninterruptible())
        };
        match threads.iter().any(waits) {
            true => that_wait.push((pid, threads)),
            false => that_do_not.push((pid, threads)),
        }
    }
    let mut calls = Vec::new();
    for (processes, until) in [(that_wait, waiting), (that_do_not, others)] {
        for (pid, threads) in processes {
            let written = written_by(root, pid, until);
            calls.extend(
                threads
                    .into_iter()
                    .filter_map(|thread| call_of(root, pid, thread, &written, functions)),
            );
        }
    }
    Ok(in_order(calls.into_iter(), |c: &StuckCall| (c.pid, c.thread)))
}

/// The functions of NVIDIA cards without the link `driver`, of a class that is on such a card. Only what can be read without
/// a lock is read.
fn driverless(root: &Root) -> io::Result<Vec<Driverless>> {
    let mut found = Vec::new();
    for name in root.names("/sys/bus/pci/devices")? {
        let dir = format!("/sys/bus/pci/devices/{name}");
        let number = |file: &str| root.line(format!("{dir}/{file}")).and_then(|t| parse_sysfs_hex(&t));
        let Ok(addr) = name.parse() else { continue };
        if number("vendor") != Some(u32::from(VENDOR_NVIDIA)) || root.link_name(format!("{dir}/driver")).is_some() {
            continue;
        }
        let Some(class) = number("class").map(PciClass) else {
            continue;
        };
        let parent = root.link_parent(&dir).and_then(|n| n.parse().ok());
        if is_of_a_card(class) {
            found.push(Driverless { addr, class, parent });
        }
    }
    Ok(found)
}

/// Display, audio, USB, UCSI, and an NVSwitch.
fn is_of_a_card(class: PciClass) -> bool {
    class.is_gpu() || matches!(class.0 >> 8, 0x0403 | 0x0c03 | 0x0c80 | 0x0680)
}

/// What a process has open for writing of that kind: what it stands for, and its whole path; as much as can be read in time.
fn written_by(root: &Root, pid: i32, until: Instant) -> Vec<(What, String)> {
    let Ok(entries) = std::fs::read_dir(root.path(format!("/proc/{pid}/fd"))) else {
        return Vec::new();
    };
    let in_time = entries.take_while(|_| Instant::now() < until);
    let written = in_time.filter_map(|entry| {
        let path = entry.ok()?.path();
        let target = std::fs::read_link(&path).ok()?;
        // `remove` takes its own file away before it waits.
        let target = target.as_os_str().as_bytes();
        let target = String::from_utf8_lossy(target.strip_suffix(b" (deleted)").unwrap_or(target)).into_owned();
        let what = of_file(target.rsplit('/').next()?).filter(|_| target.contains("/sys/"))?;
        is_for_writing(&path).then_some((what, target))
    });
    written.collect()
}

/// The mode of such a link says how the file is open (proc(5), /proc/PID/fd).
fn is_for_writing(link: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::symlink_metadata(link).is_ok_and(|meta| meta.permissions().mode() & 0o200 != 0)
}

/// The call that a thread is in, if it is one at these functions.
fn call_of(
    root: &Root,
    pid: i32,
    thread: i32,
    written: &[(What, String)],
    functions: &[Driverless],
) -> Option<StuckCall> {
    let dir = format!("/proc/{pid}/task/{thread}");
    let stat = Stat::read(root, &dir)?;
    // NVIDIA's driver sleeps so that no signal wakes it (kernel-open/common/inc/nv-time.h, nv_sleep_ms); some years ago a
    // signal could have, so that a descriptor is enough to look further.
    if !stat.is_uninterruptible() && written.is_empty() {
        return None;
    }
    let stack = stack(root, &dir);
    // Open is not written to: with a stack to look at, it has to be in a write to sysfs.
    let writes = match stack.as_slice() {
        [] => stat.is_uninterruptible(),
        stack => stack.iter().any(|f| f.name.starts_with("kernfs_fop_write")),
    };
    let written = written
        .iter()
        .filter(|_| writes)
        .map(|(what, path)| (*what, Some(path)));
    // A driver of the PCI bus lets go of a device (linux, drivers/pci/pci-driver.c).
    let lets_go = stack.iter().any(|f| f.name == "pci_device_remove");
    let what = written.chain(lets_go.then_some((What::Release, None)));
    let (what, driver, at) = what
        .map(|(what, path)| {
            let driver = path.and_then(|p| driver_in(p)).or_else(|| driver_on(&stack));
            let device = path.and_then(|p| p.rsplit('/').nth(1)?.parse().ok());
            let at = may_be_at(functions, device, driver.as_deref());
            (what, driver, at)
        })
        .find(|(_, _, at)| !at.is_empty())?;
    Some(StuckCall {
        pid,
        thread,
        started: stat.started,
        group: stat.group,
        comm: root.line(format!("/proc/{pid}/comm")).unwrap_or_default(),
        belongs_to: Belongs::of(root, pid),
        what,
        driver,
        at,
        frame: stack.iter().map(|f| &f.name).find(|name| !only_sleeps(name)).cloned(),
        lasts: false,
    })
}

/// The functions that a call on this device, or by this driver, may be at: all where neither is known.
fn may_be_at(functions: &[Driverless], device: Option<PciAddr>, driver: Option<&str>) -> Vec<PciAddr> {
    let of_device = |f: &&Driverless| device.is_none_or(|addr| f.addr == addr || f.parent == Some(addr));
    let of_driver = |f: &&Driverless| driver.is_none_or(|driver| fits(driver, f.class));
    let may_be = functions.iter().filter(of_device).filter(of_driver);
    may_be.map(|f| f.addr).collect()
}

/// Whether a driver, or its module, can have been on a function of this class of an NVIDIA card. A driver that makes a
/// device a guest's can have been on any.
fn fits(driver: &str, class: PciClass) -> bool {
    let named = driver.replace('-', "_");
    match named.as_str() {
        "nvidia" => class.is_gpu() || class.0 >> 8 == 0x0680,
        "nouveau" | "nova_core" | "nvidiafb" | "efifb" => class.is_gpu(),
        "snd_hda_intel" => class.0 >> 8 == 0x0403,
        "xhci_hcd" | "xhci_pci" => class.0 >> 8 == 0x0c03,
        "nvidia_gpu" | "i2c_nvidia_gpu" => class.0 >> 8 == 0x0c80,
        "pci_stub" => true,
        other => other.contains("vfio"),
    }
}

/// The driver in the path of its own file.
fn driver_in(path: &str) -> Option<String> {
    let (_, rest) = path.split_once("/drivers/")?;
    rest.split('/').next().map(str::to_owned)
}

/// One call of a stack.
#[derive(Debug, PartialEq, Eq)]
struct Frame {
    name: String,
    module: Option<String>,
}

/// What a task waits in, the innermost call first; none where the kernel does not show it (to root alone, and not without
/// CONFIG_STACKTRACE). A line is `[<0>] NAME+OFFSET/SIZE [MODULE]` (linux, fs/proc/base.c, proc_pid_stack; %pB).
fn stack(root: &Root, dir: &str) -> Vec<Frame> {
    let text = root.text(format!("{dir}/stack")).unwrap_or_default();
    let frame = |line: &str| {
        let mut words = line.split_ascii_whitespace().skip_while(|w| w.starts_with("[<"));
        let name = words.next()?.split(['+', '.']).next()?.to_owned();
        let module = words.next().and_then(|w| w.strip_prefix('[')?.strip_suffix(']'));
        Some(Frame {
            name,
            module: module.map(str::to_owned),
        })
    };
    text.lines().filter_map(frame).collect()
}

/// The module of the driver whose remove() the bus has called: the frame before the bus's own.
fn driver_on(stack: &[Frame]) -> Option<String> {
    let bus = stack.iter().position(|f| f.name == "pci_device_remove")?;
    stack.get(bus.checked_sub(1)?)?.module.clone()
}

/// A frame that says no more than that something is waited for.
fn only_sleeps(name: &str) -> bool {
    ["__schedule", "schedule", "msleep", "usleep", "os_delay", "nv_delay"]
        .iter()
        .any(|sleep| name.starts_with(sleep))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host of two GPUs, the first one with an audio function, and whatever is written besides. A link is written as
    /// `-> target`.
    fn host(files: &[(&str, &str)]) -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let device = |addr: &str, class: &str, driver: Option<&str>| {
            let port = dir.path().join("sys/devices/pci0000:00/0000:00:01.0").join(addr);
            std::fs::create_dir_all(&port).unwrap();
            std::fs::write(port.join("vendor"), "0x10de\n").unwrap();
            std::fs::write(port.join("class"), class).unwrap();
            let bus = dir.path().join("sys/bus/pci/devices");
            std::fs::create_dir_all(&bus).unwrap();
            let target = format!("../../../devices/pci0000:00/0000:00:01.0/{addr}");
            std::os::unix::fs::symlink(target, bus.join(addr)).unwrap();
            if let Some(driver) = driver {
                std::os::unix::fs::symlink(format!("../../../../bus/pci/drivers/{driver}"), port.join("driver"))
                    .unwrap();
            }
        };
        let all = files.iter().any(|(path, _)| *path == "both");
        device("0000:01:00.0", "0x030000\n", None);
        device("0000:01:00.1", "0x040300\n", None);
        device("0000:02:00.0", "0x030000\n", if all { None } else { Some("nvidia") });
        for (path, text) in files.iter().filter(|(path, _)| *path != "both") {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            match text.strip_prefix("-> ") {
                Some(target) => std::os::unix::fs::symlink(target, path).unwrap(),
                None => std::fs::write(path, text).unwrap(),
            }
        }
        let root = Root::at(dir.path());
        (dir, root)
    }

    const UNBIND: &str = "-> /sys/bus/pci/drivers/nvidia/unbind";
    const D: &str = "812 (sh) D 1 812 800 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 4711 1000 10";
    const S: &str = "812 (sh) S 1 812 800 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 4711 1000 10";
    const IN_UNBIND: &str = "[<0>] msleep+0x2d/0x40\n[<0>] nv_pci_remove_helper.isra.0+0x1f1/0x3c0 [nvidia]\n\
                             [<0>] nv_pci_remove+0x9/0x20 [nvidia]\n[<0>] pci_device_remove+0x42/0xb0\n\
                             [<0>] device_release_driver_internal+0x19c/0x200\n[<0>] unbind_store+0xa4/0xb0\n\
                             [<0>] kernfs_fop_write_iter+0x13b/0x1f0\n[<0>] vfs_write+0x28e/0x460\n";
    const ELSEWHERE: &str = "[<0>] do_wait+0x61/0xc0\n[<0>] kernel_wait4+0xa1/0x140\n";
    const RMMOD: &str = "[<0>] msleep+0x2d/0x40\n[<0>] nv_pci_remove+0x9/0x20 [nvidia]\n\
                         [<0>] pci_device_remove+0x42/0xb0\n[<0>] driver_detach+0x47/0x90\n\
                         [<0>] __do_sys_delete_module.constprop.0+0x18a/0x2f0\n";
    const OF_A_DISK: &str = "[<0>] usb_stor_disconnect+0x2d/0x40 [usb_storage]\n[<0>] usb_unbind_interface+0x9/0x20\n\
                             [<0>] device_release_driver_internal+0x19c/0x200\n";
    const OF_A_NET_CARD: &str = "[<0>] ixgbe_remove+0x9/0x20 [ixgbe]\n[<0>] pci_device_remove+0x42/0xb0\n\
                                 [<0>] kernfs_fop_write_iter+0x13b/0x1f0\n";

    /// Where the descriptors are too many, those of who waits are read before the others', and stacks all the same.
    #[test]
    fn where_the_time_for_descriptors_is_over_what_is_known_without_them_is_told() {
        let (stat, stack, fd) = ("proc/812/task/812/stat", "proc/812/task/812/stack", "proc/812/fd/1");
        let write = "[<0>] kernfs_fop_write_iter+0x13b/0x1f0\n";
        let soon = Duration::from_secs(3600);
        for (state, stack_of, waiting, others, found) in [
            (D, write, soon, Duration::ZERO, Some(What::Unbind)),
            (D, write, Duration::ZERO, Duration::ZERO, None),
            (D, IN_UNBIND, Duration::ZERO, Duration::ZERO, Some(What::Release)),
            (S, write, soon, soon, Some(What::Unbind)),
            (S, write, soon, Duration::ZERO, None),
        ] {
            let (_dir, root) = host(&[(stat, state), (fd, UNBIND), (stack, stack_of)]);
            let now = Instant::now();
            let calls = scan_until(&root, &driverless(&root).unwrap(), now + waiting, now + others).unwrap();
            let what: Vec<What> = calls.iter().map(|c| c.what).collect();
            assert_eq!(what, Vec::from_iter(found), "{state} {stack_of} {waiting:?} {others:?}");
        }
    }

    #[test]
    fn who_is_in_a_call_is_told_by_what_is_open_and_by_the_stack_and_from_who_is_not() {
        let (stat, stack) = ("proc/812/task/812/stat", "proc/812/task/812/stack");
        let fd = "proc/812/fd/1";
        let (gpu, audio, other) = ("0000:01:00.0", "0000:01:00.1", "0000:02:00.0");
        let remove = "-> /sys/devices/pci0000:00/0000:00:01.0/0000:01:00.1/remove (deleted)";
        let port = "-> /sys/devices/pci0000:00/0000:00:01.0/remove";
        let elsewhere = "-> /sys/devices/pci0000:00/0000:00:1f.0/0000:09:00.0/reset";
        for (case, files, expected) in [
            (
                "in an unbind",
                vec![(stat, D), (fd, UNBIND), (stack, IN_UNBIND)],
                Some((What::Unbind, vec![gpu], Some("nv_pci_remove_helper"))),
            ),
            (
                "no stack is shown",
                vec![(stat, D), (fd, UNBIND)],
                Some((What::Unbind, vec![gpu], None)),
            ),
            (
                "a driver that lets signals wake it",
                vec![(stat, S), (fd, UNBIND), (stack, IN_UNBIND)],
                Some((What::Unbind, vec![gpu], Some("nv_pci_remove_helper"))),
            ),
            (
                "two GPUs without a driver",
                vec![("both", ""), (stat, D), (fd, UNBIND), (stack, IN_UNBIND)],
                Some((What::Unbind, vec![gpu, other], Some("nv_pci_remove_helper"))),
            ),
            (
                "a removal",
                vec![(stat, D), (fd, remove)],
                Some((What::Remove, vec![audio], None)),
            ),
            (
                "a removal of the port above",
                vec![(stat, D), (fd, port)],
                Some((What::Remove, vec![gpu, audio], None)),
            ),
            (
                "rmmod",
                vec![(stat, D), (stack, RMMOD)],
                Some((What::Release, vec![gpu], Some("nv_pci_remove"))),
            ),
            (
                "what else is open is another device's",
                vec![(stat, D), ("proc/812/fd/0", elsewhere), (fd, UNBIND)],
                Some((What::Unbind, vec![gpu], None)),
            ),
            ("open and not written to", vec![(stat, S), (fd, UNBIND)], None),
            (
                "open, and it waits for something else",
                vec![(stat, D), (fd, UNBIND), (stack, ELSEWHERE)],
                None,
            ),
            (
                "another driver's",
                vec![
                    (stat, D),
                    (fd, "-> /sys/bus/pci/drivers/ixgbe/unbind"),
                    (stack, OF_A_NET_CARD),
                ],
                None,
            ),
            ("another device's", vec![(stat, D), (fd, elsewhere)], None),
            (
                "a file that somebody named so",
                vec![(stat, D), (fd, "-> /root/unbind")],
                None,
            ),
            ("a disk that is pulled", vec![(stat, D), (stack, OF_A_DISK)], None),
            ("another driver lets go", vec![(stat, D), (stack, OF_A_NET_CARD)], None),
            ("rmmod, no signal could wake it", vec![(stat, S), (stack, RMMOD)], None),
        ] {
            let mut files = files;
            files.push(("proc/812/comm", "sh\n"));
            let (_dir, root) = host(&files);
            let calls = scan(&root).unwrap();
            let found = calls.first().map(|c| {
                let at: Vec<String> = c.at.iter().map(ToString::to_string).collect();
                (c.what, at, c.frame.clone())
            });
            let expected = expected.map(|(what, at, frame)| {
                let at: Vec<String> = at.iter().map(|a| (*a).to_owned()).collect();
                (what, at, frame.map(str::to_owned))
            });
            assert_eq!(found, expected, "{case}");
            assert!(calls.len() < 2, "{case}");
            if let Some(call) = calls.first() {
                let who = (call.pid, call.thread, call.group, call.started, call.comm.as_str());
                assert_eq!(who, (812, 812, Some(812), Some(4711), "sh"), "{case}");
            }
        }
    }

    #[test]
    fn a_thread_that_is_not_the_first_is_found() {
        let (_dir, root) = host(&[
            ("proc/812/task/812/stat", S),
            ("proc/812/task/812/stack", ELSEWHERE),
            ("proc/812/task/815/stat", D),
            ("proc/812/task/815/stack", IN_UNBIND),
            ("proc/812/fd/7", UNBIND),
        ]);
        let calls = scan(&root).unwrap();
        assert_eq!(
            calls.iter().map(|c| (c.pid, c.thread)).collect::<Vec<_>>(),
            [(812, 815)]
        );
    }
}
