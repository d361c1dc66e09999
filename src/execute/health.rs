//! Whether a GPU that has come home works: NVIDIA's driver lists it, its tool answers, and the kernel's log is quiet about
//! it.
//!
//! Part of the worker's side: any of these may hang in the driver, and has the deadline of the act.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::time::{Duration, Instant};

use crate::base::pci::PciAddr;
use crate::base::root::Root;
use crate::base::text::{foreign, one_line};
use crate::execute::kernel::ActError;
use crate::host::nvidia;

/// How long the driver gets to list a GPU that it has taken: it does so within its probe, or soon after.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often it is looked: there is no event for it.
const POLL: Duration = Duration::from_millis(50);

/// Exit statuses of nvidia-smi that tell of a GPU that does not work (nvidia-smi(1), RETURN VALUE: 6 it was not found,
/// 8 its power cables, 9 the driver, 10 its interrupts, 14 its infoROM, 15 it has fallen off the bus). The others tell of
/// the installation or of the question.
const SMI_GPU_FAILS: [i32; 6] = [6, 8, 9, 10, 14, 15];

/// Xids after which a GPU is of no use until it is reset or switched off (NVIDIA, "Xid Errors": 79 it has fallen off the
/// bus, 119 and 120 its GSP does not answer, 154 a recovery action is asked for).
const XID_FATAL: [u32; 4] = [79, 119, 120, 154];

/// The kernel's log from some moment on; None where it cannot be had.
pub(crate) struct Health(Option<File>);

impl Health {
    /// Counts what the kernel reports from now on.
    pub(crate) fn from_now_on() -> Self {
        Health(kernel_log())
    }

    /// Looks at a GPU that has come home. What is odd but works is a note.
    ///
    /// # Errors
    /// What it does not do.
    pub(crate) fn check(
        &mut self,
        root: &Root,
        addr: PciAddr,
        width: Option<u32>,
        notes: &mut Vec<String>,
    ) -> Result<(), ActError> {
        answers(root, addr)?;
        let minor = wait_for(|| nvidia::read(root).ok()??.minor(addr)).ok_or_else(|| {
            ActError::Failed(format!(
                "NVIDIA's driver has it, and does not list it below /proc/driver/nvidia/gpus/{addr}"
            ))
        })?;
        let said = ask_nvidia_smi(root, addr);
        for line in self.new_kernel_lines() {
            let Some((of, xid)) = xid(&line) else { continue };
            if of != addr.slot().to_string() {
                continue;
            }
            let text = format!("the driver reports: {}", foreign(line.trim()));
            if XID_FATAL.contains(&xid) {
                return Err(ActError::Failed(text));
            }
            notes.push(text);
        }
        notes.extend(said?);
        notes.extend(make_node(root, minor));
        let now = root.line(format!("/sys/bus/pci/devices/{addr}/current_link_width"));
        let now = now.and_then(|t| t.parse::<u32>().ok());
        if let (Some(before), Some(now)) = (width, now)
            && now < before
        {
            notes.push(format!(
                "its link has {now} lanes and had {before}: a power cycle brings them back"
            ));
        }
        Ok(())
    }

    /// The kernel's lines since the last call. Each read gives one record, `PRIORITY,NUMBER,TIME,FLAGS;TEXT` (linux,
    /// Documentation/ABI/testing/dev-kmsg).
    fn new_kernel_lines(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        let Some(log) = &mut self.0 else { return lines };
        let mut record = [0; 8192];
        loop {
            match log.read(&mut record) {
                Ok(n) if n > 0 => {
                    let text = String::from_utf8_lossy(&record[..n]).into_owned();
                    let text = text.split_once(';').map_or("", |(_, t)| t);
                    lines.push(text.lines().next().unwrap_or_default().to_owned());
                }
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {} // overwritten before we came
                _ => return lines,
            }
        }
    }
}

fn kernel_log() -> Option<File> {
    let nonblocking = nix::fcntl::OFlag::O_NONBLOCK.bits();
    let mut log = OpenOptions::new()
        .read(true)
        .custom_flags(nonblocking)
        .open("/dev/kmsg")
        .ok()?;
    log.seek(SeekFrom::End(0)).ok()?;
    Some(log)
}

/// The slot and the number of an Xid line: `NVRM: Xid (PCI:0000:01:00): 79, pid=...` (NVIDIA, "Xid Errors").
fn xid(line: &str) -> Option<(String, u32)> {
    let (_, rest) = line.split_once("NVRM: Xid (PCI:")?;
    let (slot, rest) = rest.split_once(')')?;
    let digits: String = rest
        .trim_start_matches([':', ' '])
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    Some((slot.to_owned(), digits.parse().ok()?))
}

/// NVIDIA's own tool, where it is installed. A note where it fails for a reason that is not the GPU's.
fn ask_nvidia_smi(root: &Root, addr: PciAddr) -> Result<Option<String>, ActError> {
    if !root.exists("/usr/bin/nvidia-smi") {
        return Ok(None);
    }
    // Its addresses have a domain of eight digits.
    let slot = addr.slot();
    let name = format!(
        "{:08x}:{:02x}:{:02x}.{:x}",
        slot.domain, slot.bus, slot.slot, addr.function
    );
    let words = [
        "nvidia-smi",
        "--query-gpu=pci.bus_id",
        "--format=csv,noheader",
        "-i",
        &name,
    ];
    let said = root
        .program(&words)
        .map_err(|e| ActError::Failed(format!("cannot run nvidia-smi: {e}")))?;
    if said.ok {
        return Ok(None);
    }
    let text = foreign(&one_line(&format!("{} {}", said.stdout, said.stderr)));
    let text = format!("nvidia-smi says: {text}");
    if said.code.is_none_or(|code| SMI_GPU_FAILS.contains(&code)) {
        return Err(ActError::Failed(text));
    }
    Ok(Some(text))
}

/// Where udev makes no nodes, nvidia-modprobe does (nvidia-modprobe(1), -c). A note where neither has.
pub(crate) fn make_node(root: &Root, minor: u32) -> Option<String> {
    let path = format!("/dev/nvidia{minor}");
    let number = nix::sys::stat::makedev(u64::from(nvidia::MAJOR), u64::from(minor));
    let is_there = || {
        let meta = std::fs::metadata(root.path(&path));
        meta.is_ok_and(|m| m.file_type().is_char_device() && m.rdev() == number)
    };
    if is_there() {
        return None;
    }
    if root.exists("/usr/bin/nvidia-modprobe") {
        let _ = root.program(&["nvidia-modprobe", "-c", &minor.to_string()]);
    }
    (!is_there()).then(|| format!("there is no {path}: the first program that needs it may have to make it"))
}

/// Looks again until there is something, for as long as patience lasts: there is no event for it.
fn wait_for<T>(look: impl Fn() -> Option<T>) -> Option<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() >= end {
            return None;
        }
        std::thread::sleep(POLL);
    }
}

/// A device that reads all ones has fallen off the bus: every further access would take as long as the kernel waits for
/// one to come back, a minute and more.
pub(crate) fn answers(root: &Root, addr: PciAddr) -> Result<(), ActError> {
    let config = root.bytes_up_to(format!("/sys/bus/pci/devices/{addr}/config"), 4);
    if config.is_ok_and(|bytes| bytes == [0xff; 4]) {
        return Err(ActError::Failed(
            "it does not answer any more (its config space reads all ones): it has fallen off the bus and needs a power \
             cycle"
                .to_owned(),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_xid_line_tells_slot_and_number() {
        let line = "NVRM: Xid (PCI:0000:01:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.";
        assert_eq!(xid(line), Some(("0000:01:00".to_owned(), 79)));
        assert_eq!(xid("NVRM: loading NVIDIA UNIX"), None);
        assert_eq!(xid("NVRM: Xid (PCI:0000:01:00): none"), None);
    }
}
