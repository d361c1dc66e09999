//! Who lives, and since when: the one place that reads /proc/PID/stat, and what tells one process from the next that has
//! its number.
//!
//! Not here: what a process has open ([`crate::host::holders`]), waiting for its end ([`crate::base::wait`]).

use std::time::Duration;
use std::{fmt, io};

use rustix::process::{Signal, pidfd_send_signal};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::base::clock::{MOMENT, now_on, told};
use crate::base::root::Root;
use crate::base::wait::pidfds;

/// How long the host has been up, the time it slept included: a clock that all processes share and nobody sets.
pub fn since_boot() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default()
}

/// The same of the host that is looked at: of a tree that says it, when it was made.
pub fn since_boot_on(root: &Root) -> Duration {
    told(root).map_or_else(since_boot, |(_, up)| up)
}

/// Tells a tree that is made of this host which moment it is of, and that these processes live: what /proc says of them but for
/// their names.
pub fn tell(root: &Root, pids: impl IntoIterator<Item = u32>) {
    let (now, up) = (now_on(root), since_boot_on(root));
    root.tell(MOMENT, || format!("{now} {}\n", up.as_millis()).into_bytes());
    for pid in pids {
        let path = format!("/proc/{pid}/stat");
        let Some(line) = root.line(&path) else { continue };
        if let Some((_, rest)) = line.rsplit_once(')') {
            let fields: Vec<&str> = rest.split_ascii_whitespace().take(FIELDS).collect();
            root.tell(&path, || format!("{pid} (x) {}\n", fields.join(" ")).into_bytes());
        }
    }
}

/// Fields of /proc/PID/stat behind the name, up to when it started (proc_pid_stat(5)).
const FIELDS: usize = 20;

/// What tells this boot from every other one (proc_sys_kernel(5), random/boot_id).
///
/// # Errors
/// Those of reading it, and UnexpectedEof where it is empty: two boots that cannot be told apart are not one.
pub fn boot_id() -> io::Result<String> {
    boot_id_on(&Root::real())
}

/// The same of the host that is looked at.
///
/// # Errors
/// As [`boot_id`].
pub fn boot_id_on(root: &Root) -> io::Result<String> {
    let id = root.text("/proc/sys/kernel/random/boot_id")?;
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
    /// Its parent.
    parent: Option<u32>,
    /// Its process group.
    pub(crate) group: Option<u32>,
    /// Its session.
    session: Option<u32>,
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
            parent: fields.next().and_then(|parent| parent.parse().ok()),
            group: fields.next().and_then(|group| group.parse().ok()),
            session: fields.next().and_then(|session| session.parse().ok()),
            flags: fields.nth(2).and_then(|flags| flags.parse().ok()).unwrap_or(0),
            started: fields.nth(12).and_then(|started| started.parse().ok()),
        })
    }

    /// It sleeps in the kernel and no signal wakes it (TASK_UNINTERRUPTIBLE, shown as D).
    pub(crate) fn is_uninterruptible(self) -> bool {
        self.state == b'D'
    }

    /// It has ended; a zombie only waits for its parent to notice.
    fn has_ended(self) -> bool {
        matches!(self.state, b'Z' | b'X')
    }

    /// How far it is with its exit. In the kernel files are closed after they are taken out of sight and before the process
    /// can be waited for (linux, kernel/exit.c, do_exit: exit_files, exit_task_work, exit_notify).
    fn exit(self) -> ExitState {
        /// PF_EXITING.
        const EXITING: u64 = 0x4;
        match self.state {
            b'Z' => ExitState::Zombie,
            b'X' => ExitState::Other,
            _ if self.flags & EXITING != 0 && !self.is_the_kernels() => ExitState::Exiting,
            _ => ExitState::Other,
        }
    }

    /// A thread of the kernel: PF_KTHREAD, which only the kernel sets.
    fn is_the_kernels(self) -> bool {
        const KERNEL_THREAD: u64 = 0x0020_0000;
        self.flags & KERNEL_THREAD != 0
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

/// Whether this is a thread of the kernel: it has no memory of a process's and no descriptors but those of the first thread of
/// all, which has none (linux, kernel/fork.c, kernel_thread; init/init_task.c, init_files).
pub(crate) fn is_the_kernels(root: &Root, pid: i32) -> bool {
    Stat::read(root, &format!("/proc/{pid}")).is_some_and(Stat::is_the_kernels)
}

/// The flags that a descriptor was opened with, from its file in /proc/PID/fdinfo (proc_pid_fdinfo(5)); none where it does not say.
pub(crate) fn open_flags(info: &str) -> u32 {
    let octal = info.lines().find_map(|line| line.strip_prefix("flags:"));
    octal
        .and_then(|octal| u32::from_str_radix(octal.trim(), 8).ok())
        .unwrap_or(0)
}

/// The process ended while it was looked at.
pub(crate) fn has_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::errno::Errno::ESRCH as i32)
}

/// Whether a process is in a PID namespace below ours: it has a number there as well (proc_pid_status(5), NSpid). Who may not
/// follow /proc/PID/ns/pid may read that.
fn is_elsewhere(root: &Root, pid: i32) -> bool {
    let status = root.text(format!("/proc/{pid}/status")).unwrap_or_default();
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    numbers.is_some_and(|numbers| numbers.split_whitespace().count() > 1)
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

/// Who has called this process, by its parent's id. None where that has ended: its children are then those of the first process, or
/// of a systemd that looks after a user (PR_SET_CHILD_SUBREAPER(2const)), which start units besides and outlive them all.
pub fn caller(root: &Root, parent: u32) -> Option<Process> {
    let program = root.link_name(format!("/proc/{parent}/exe")).unwrap_or_default();
    // A program that was replaced meanwhile is called deleted (proc_pid_exe(5)).
    let is_systemd = program.trim_end_matches(" (deleted)") == "systemd";
    (parent > 1 && !is_systemd).then(|| process(root, parent)).flatten()
}

/// A process and those it descends from, the nearest first.
pub fn ancestors(root: &Root, pid: u32) -> Vec<u32> {
    let mut found = vec![pid];
    let parent = |pid: u32| Stat::read(root, &format!("/proc/{pid}"))?.parent;
    while let Some(next) = found.last().and_then(|pid| parent(*pid)) {
        // The first process has none; a number that comes again has been given out anew meanwhile.
        if next == 0 || found.contains(&next) {
            break;
        }
        found.push(next);
    }
    found
}

/// A process group of ours, which a worker leads in a session of its own: its number, and when the leader started. The
/// number alone does not tell it: once all of the group has ended, the kernel gives it to the next process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "GroupForm")]
pub struct Group {
    /// The leader's id, which is the number of the group and of its session.
    #[serde(rename = "group")]
    pub number: u32,
    /// When the leader started, clock ticks after boot; None: a record of an earlier form does not say.
    pub started: Option<u64>,
}

/// How a group is written down: in earlier records as a bare number.
#[derive(Deserialize)]
#[serde(untagged)]
enum GroupForm {
    Number(u32),
    Group {
        group: u32,
        #[serde(default)]
        started: Option<u64>,
    },
}

impl From<GroupForm> for Group {
    fn from(form: GroupForm) -> Self {
        let (number, started) = match form {
            GroupForm::Number(number) => (number, None),
            GroupForm::Group { group, started } => (group, started),
        };
        Group { number, started }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number.fmt(f)
    }
}

impl Group {
    /// The group that this child of ours leads, or will as soon as it runs. It must not have been waited for: until then
    /// its number is nobody else's.
    pub(crate) fn of_child(root: &Root, pid: u32) -> Self {
        Group {
            number: pid,
            started: Stat::read(root, &format!("/proc/{pid}")).and_then(|stat| stat.started),
        }
    }

    /// The processes of this very group that have not ended: the leader, and what it has started (modprobe), which may
    /// outlive it. Not who is in another PID namespace: what lxc-attach(1) runs in a container has our group and session for as
    /// long as it makes none of its own (lxc, src/lxc/attach.c, do_attach: setsid for LXC_ATTACH_TERMINAL alone), and is the
    /// container's.
    ///
    /// The number is given to no other process for as long as one of the group or of its session is left (linux,
    /// kernel/pid.c, __change_pid), so a process that has it and started at another time means that all of ours has
    /// ended. Where no process has it, what is in the group is ours, as far as can be told: it started no earlier than our
    /// leader and is in our leader's session. (That of another leader which has come and gone meanwhile could pass for
    /// ours: all numbers would have been given out once in between, and it would have to be a daemon.)
    pub fn alive(self, root: &Root) -> Vec<i32> {
        let leader = Stat::read(root, &format!("/proc/{}", self.number));
        if self.started.is_some() && leader.is_some_and(|leader| leader.started != self.started) {
            return Vec::new();
        }
        let processes = root.names("/proc").unwrap_or_default();
        let pids = processes.iter().filter_map(|name| name.parse().ok());
        pids.filter(|pid: &i32| {
            let stat = Stat::read(root, &format!("/proc/{pid}"));
            stat.is_some_and(|stat| !stat.has_ended() && self.has(*pid, stat)) && !is_elsewhere(root, *pid)
        })
        .collect()
    }

    /// Kills them, and nobody who has come to a number of theirs since.
    pub(crate) fn kill(self, root: &Root) {
        for pid in self.alive(root) {
            let Some(fds) = pidfds(&[pid]) else { continue };
            // The descriptor is of whoever has the number now.
            if self.alive(root).contains(&pid) {
                let _ = pidfd_send_signal(&fds[0], Signal::KILL); // it has ended
            }
        }
    }

    /// Whether a process belongs to it.
    fn has(self, pid: i32, stat: Stat) -> bool {
        let Some(since) = self.started else {
            return stat.group == Some(self.number);
        };
        // A child that has not made its session yet is in the group of its parent.
        let leads = u32::try_from(pid) == Ok(self.number);
        let is_in = stat.group == Some(self.number) && stat.session == Some(self.number);
        (leads || is_in) && stat.started.is_some_and(|started| started >= since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_takes_in_orphans_has_called_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let stat = |pid: u32| format!("{pid} (x) S 1 {pid} {pid} 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 77 0 0\n");
        for (pid, program) in [
            (1, "/usr/lib/systemd/systemd"),
            (7, "/usr/bin/bash"),
            (8, "/usr/lib/systemd/systemd"),
            (9, "/usr/lib/systemd/systemd (deleted)"),
            (10, "/usr/bin/systemd-run"),
        ] {
            let of = dir.path().join(format!("proc/{pid}"));
            std::fs::create_dir_all(&of).unwrap();
            std::fs::write(of.join("stat"), stat(pid)).unwrap();
            std::os::unix::fs::symlink(program, of.join("exe")).unwrap();
        }
        let called = |pid| caller(&Root::at(dir.path()), pid).map(|process| process.pid);
        let expected = [None, None, Some(7), None, None, Some(10), None];
        assert_eq!([0, 1, 7, 8, 9, 10, 11].map(called), expected);
        assert_eq!(
            process(&Root::at(dir.path()), 1).map(|process| process.started),
            Some(77)
        );
    }

    #[test]
    fn a_boot_that_does_not_say_which_it_is_is_none() {
        use io::ErrorKind::{IsADirectory, NotFound, UnexpectedEof};
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("proc/sys/kernel/random/boot_id");
        let read = || boot_id_on(&Root::at(dir.path())).map_err(|e| e.kind());
        assert_eq!(read(), Err(NotFound));
        std::fs::create_dir_all(&file).unwrap();
        assert_eq!(read(), Err(IsADirectory)); // it is there, and cannot be read
        std::fs::remove_dir(&file).unwrap();
        for (text, expected) in [
            ("", Err(UnexpectedEof)),
            ("\n", Err(UnexpectedEof)),
            ("0a1b\n", Ok("0a1b".to_owned())),
        ] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(read(), expected, "{text:?}");
        }
        assert_eq!(boot_id().unwrap().len(), 36);
    }

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
            ("proc/10/stat", stat("I", 0x0420_8060)),
        ] {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        assert!(is_ending(&root, 7));
        assert!(!is_ending(&root, 9));
        let kernels: Vec<i32> = [7, 9, 10, 11]
            .into_iter()
            .filter(|pid| is_the_kernels(&root, *pid))
            .collect();
        assert_eq!(kernels, [10]);
    }

    #[test]
    fn a_name_with_blanks_and_brackets_does_not_shift_the_start_time() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1000 10";
        assert_eq!(Stat::parse(stat).unwrap().started, Some(98765));
        assert_eq!(Stat::parse(""), None);
    }

    /// A host with these processes: state, parent, group, session, when it started.
    fn processes(them: &[(u32, &str, u32, u32, u64)]) -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        for (pid, state, group, session, started) in them {
            let path = dir.path().join(format!("proc/{pid}"));
            std::fs::create_dir_all(&path).unwrap();
            let stat = format!(
                "{pid} (mod) probe) {state} 1 {group} {session} 0 -1 0 1 2 3 4 5 6 7 8 20 0 1 0 {started} 1000 10"
            );
            std::fs::write(path.join("stat"), stat).unwrap();
        }
        let root = Root::at(dir.path());
        (dir, root)
    }

    #[test]
    fn a_group_is_alive_while_one_of_its_own_is_and_another_with_its_number_is_not_it() {
        let known = Group {
            number: 70,
            started: Some(100),
        };
        let bare = Group {
            number: 70,
            started: None,
        };
        let (worker, modprobe) = ((70, "S", 70, 70, 100), (71, "D", 70, 70, 105));
        for (case, there, of_known, of_bare) in [
            (
                "all of it",
                vec![worker, modprobe, (72, "S", 72, 72, 90)],
                vec![70, 71],
                vec![70, 71],
            ),
            ("the leader has ended", vec![modprobe], vec![71], vec![71]),
            (
                "it waits for its parent",
                vec![(70, "Z", 70, 70, 100), modprobe],
                vec![71],
                vec![71],
            ),
            ("all has ended", vec![(70, "Z", 70, 70, 100)], vec![], vec![]),
            ("no session yet", vec![(70, "R", 69, 60, 100)], vec![70], vec![]),
            (
                "the number is somebody else's",
                vec![(70, "S", 70, 70, 900)],
                vec![],
                vec![70],
            ),
            (
                "somebody else's zombie's",
                vec![(70, "Z", 70, 70, 900), (71, "S", 70, 70, 905)],
                vec![],
                vec![71],
            ),
            (
                "a shell's job, its leader gone",
                vec![(71, "S", 70, 60, 905)],
                vec![],
                vec![71],
            ),
            ("older than ours", vec![(69, "S", 70, 70, 99)], vec![], vec![69]),
        ] {
            let (_dir, root) = processes(&there);
            let sorted = |group: Group| {
                let mut pids = group.alive(&root);
                pids.sort_unstable();
                pids
            };
            assert_eq!(sorted(known), of_known, "{case}");
            assert_eq!(sorted(bare), of_bare, "{case}, known by its number alone");
        }
    }

    #[test]
    fn a_child_of_ours_is_known_by_its_start() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let group = Group::of_child(&Root::real(), child.id());
        assert!(group.started.is_some());
        assert_eq!(group.alive(&Root::real()), [i32::try_from(child.id()).unwrap()]);
        let younger = Group {
            started: group.started.map(|started| started + 1),
            ..group
        };
        assert!(younger.alive(&Root::real()).is_empty());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(group.alive(&Root::real()).is_empty());
    }

    /// As lxc-attach leaves it: in the group and the session of who has asked for it, and in the namespace of a container.
    #[test]
    fn who_is_in_another_pid_namespace_is_none_of_the_group_and_is_not_killed_with_it() {
        if !nix::unistd::geteuid().is_root() {
            return; // nobody else may make such a namespace
        }
        let root = Root::real();
        let script = "unshare -pf sleep 600 & sleep 600 & wait";
        let mut leader = std::process::Command::new("setsid")
            .args(["sh", "-c", script])
            .spawn()
            .unwrap();
        let group = Group::of_child(&root, leader.id());
        let of_group = || -> Vec<i32> {
            let pids = root.names("/proc").unwrap();
            let pids = pids.iter().filter_map(|name| name.parse().ok());
            let is_in = |stat: Stat| stat.group == Some(group.number) && stat.session == Some(group.number);
            pids.filter(|pid: &i32| Stat::read(&root, &format!("/proc/{pid}")).is_some_and(is_in))
                .collect()
        };
        let until = std::time::Instant::now() + Duration::from_secs(20);
        let elsewhere = loop {
            let elsewhere: Vec<i32> = of_group().into_iter().filter(|pid| is_elsewhere(&root, *pid)).collect();
            if of_group().len() == 4 && elsewhere.len() == 1 {
                break elsewhere[0];
            }
            assert!(std::time::Instant::now() < until, "{:?}", of_group());
            std::thread::sleep(Duration::from_millis(10));
        };
        let alive = group.alive(&root);
        group.kill(&root);
        leader.wait().unwrap();
        let is_left = process(&root, elsewhere.unsigned_abs()).is_some();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(elsewhere), nix::sys::signal::Signal::SIGKILL).unwrap();
        assert!(alive.len() == 3 && !alive.contains(&elsewhere), "{alive:?}");
        assert!(is_left);
    }

    #[test]
    fn a_group_is_written_with_its_start_and_read_as_a_bare_number_too() {
        let known = Group {
            number: 78,
            started: Some(4711),
        };
        let bare = Group {
            number: 78,
            started: None,
        };
        assert_eq!(serde_json::to_string(&known).unwrap(), r#"{"group":78,"started":4711}"#);
        for (text, group) in [
            (r#"{"group":78,"started":4711}"#, known),
            (r#"{"group":78,"started":null}"#, bare),
            (r#"{"group":78}"#, bare),
            ("78", bare),
        ] {
            assert_eq!(serde_json::from_str::<Group>(text).unwrap(), group, "{text}");
        }
    }
}
