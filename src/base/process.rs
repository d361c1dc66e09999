//! Who lives, and since when: the one place that reads /proc/PID/stat, and what tells one process from the next that has
//! its number.
//!
//! Not here: what a process has open ([`crate::host::holders`]), waiting for its end ([`crate::base::wait`]).

use std::{fs, io};

use serde::{Deserialize, Serialize};

use crate::base::root::Root;

/// What tells this boot from every other one (proc_sys_kernel(5), random/boot_id).
///
/// # Errors
/// Those of reading it, and UnexpectedEof where it is empty: two boots that cannot be told apart are not one.
pub fn boot_id() -> io::Result<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    match id.trim() {
        "" => Err(io::ErrorKind::UnexpectedEof.into()),
        id => Ok(id.to_owned()),
    }
}

/// What /proc/PID/stat says of a process, or /proc/PID/task/TID/stat of a thread (proc(5)). Fields are counted from behind
/// the name, which may contain anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    /// One letter; X where there is none.
    state: u8,
    /// Its process group.
    group: Option<u32>,
    /// PF_ flags of include/linux/sched.h.
    flags: u64,
    /// When it started, clock ticks after boot.
    pub(crate) started: Option<u64>,
}

impl Stat {
    /// Reads it; None where the process is not there any more.
    pub(crate) fn read(root: &Root, dir: &str) -> Option<Stat> {
        Stat::parse(&root.line(format!("{dir}/stat"))?)
    }

    fn parse(text: &str) -> Option<Stat> {
        let (_, rest) = text.rsplit_once(')')?;
        let mut fields = rest.split_ascii_whitespace();
        Some(Stat {
            state: fields.next().map_or(b'X', |state| state.as_bytes()[0]),
            group: fields.nth(1).and_then(|group| group.parse().ok()),
            flags: fields.nth(3).and_then(|flags| flags.parse().ok()).unwrap_or(0),
            started: fields.nth(12).and_then(|started| started.parse().ok()),
        })
    }

    /// It has ended, and its parent has not noticed yet; of a process, other threads may go on.
    pub(crate) fn is_zombie(self) -> bool {
        self.state == b'Z'
    }

    /// It has ended; a zombie only waits for its parent to notice.
    fn has_ended(self) -> bool {
        matches!(self.state, b'Z' | b'X')
    }

    /// How far it is with its exit. In the kernel files are closed after they are taken out of sight and before the process
    /// can be waited for (linux, kernel/exit.c, do_exit: exit_files, exit_task_work, exit_notify).
    fn exit(self) -> ExitState {
        /// PF_EXITING and PF_KTHREAD.
        const EXITING: u64 = 0x4;
        const KERNEL_THREAD: u64 = 0x0020_0000;
        match self.state {
            b'Z' => ExitState::Zombie,
            b'X' => ExitState::Other,
            _ if self.flags & EXITING != 0 && self.flags & KERNEL_THREAD == 0 => ExitState::Exiting,
            _ => ExitState::Other,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum ExitState {
    Exiting,
    Zombie,
    Other,
}

/// Whether a process has begun to exit and has not finished: a thread of it still closes files.
pub(crate) fn is_ending(root: &Root, pid: i32) -> bool {
    let exit = |dir: &str| Stat::read(root, dir).map_or(ExitState::Other, Stat::exit);
    match exit(&format!("/proc/{pid}")) {
        ExitState::Exiting => true,
        ExitState::Zombie => {
            // A leader that has ended before its last thread.
            let threads = root.names(format!("/proc/{pid}/task")).unwrap_or_default();
            let mut states = threads.iter().map(|t| exit(&format!("/proc/{pid}/task/{t}")));
            states.any(|s| s == ExitState::Exiting)
        }
        ExitState::Other => false,
    }
}

/// The process ended while it was looked at.
pub(crate) fn has_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::errno::Errno::ESRCH as i32)
}

/// A process that is told from every other one since boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// When it started, clock ticks after boot.
    pub started: u64,
}

/// The process that has this id now; None where there is none, or it is a zombie.
pub fn process(root: &Root, pid: u32) -> Option<Process> {
    let stat = Stat::read(root, &format!("/proc/{pid}"))?;
    let started = stat.started.filter(|_| !stat.has_ended())?;
    Some(Process { pid, started })
}

/// The processes of a group that have not ended.
pub fn alive_in_group(root: &Root, group: u32) -> Vec<i32> {
    let is_member = |pid: &i32| {
        let stat = Stat::read(root, &format!("/proc/{pid}"));
        stat.is_some_and(|stat| !stat.has_ended() && stat.group == Some(group))
    };
    let processes = root.names("/proc").unwrap_or_default();
    processes
        .iter()
        .filter_map(|name| name.parse().ok())
        .filter(is_member)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_ending_until_its_last_thread_has_closed_its_files() {
        let stat = |state: &str, flags: u64| format!("7 (a) b) {state} 1 7 7 0 -1 {flags} 1 2 3 4 5 6 7 8 20 0 1 0 9");
        for (state, flags, expected) in [
            ("S", 0x0040_0000, ExitState::Other),
            ("D", 0x0040_0004, ExitState::Exiting),
            ("R", 0x4, ExitState::Exiting),
            ("Z", 0x4, ExitState::Zombie),
            ("I", 0x0020_8044, ExitState::Other),
        ] {
            let stat = Stat::parse(&stat(state, flags)).unwrap();
            assert_eq!(stat.exit(), expected, "{state} {flags:x}");
        }
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path());
        for (path, text) in [
            ("proc/7/stat", stat("Z", 0x4)),
            ("proc/7/task/7/stat", stat("Z", 0x4)),
            ("proc/7/task/8/stat", stat("D", 0x4)),
            ("proc/9/stat", stat("Z", 0x4)),
            ("proc/9/task/9/stat", stat("Z", 0x4)),
        ] {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        assert!(is_ending(&root, 7));
        assert!(!is_ending(&root, 9));
    }

    #[test]
    fn a_name_with_blanks_and_brackets_does_not_shift_the_start_time() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1000 10";
        assert_eq!(Stat::parse(stat).unwrap().started, Some(98765));
        assert_eq!(Stat::parse(""), None);
    }

    #[test]
    fn a_zombie_is_not_alive_in_its_group() {
        let dir = tempfile::tempdir().unwrap();
        for (pid, stat) in [
            (70, "70 (gpu-handoff) Z 1 70 70 0"),
            (71, "71 (mod) probe) D 70 70 70 0"),
            (72, "72 (sh) S 1 72 72 0"),
        ] {
            let path = dir.path().join(format!("proc/{pid}"));
            std::fs::create_dir_all(&path).unwrap();
            std::fs::write(path.join("stat"), stat).unwrap();
        }
        let root = Root::at(dir.path());
        assert_eq!(alive_in_group(&root, 70), [71]);
        assert_eq!(alive_in_group(&root, 7), [0; 0]);
    }
}
