//! Who uses a GPU: every process with a descriptor or a mapping of one of its device nodes.
//!
//! Nodes are told by device number, not by path, so that a container's own nodes count too. What a process
//! does with the device is not looked at, and nothing is stopped here: holders are found and named.
//!
//! ```text
//! first    each process's table of descriptors, in turns, so that one that has a million keeps nobody waiting
//! then     mappings, and threads with a table of their own: for these the kernel waits for the process, so a helper asks
//! last     who has come meanwhile, until nobody new has ended before it was looked at
//! ```
//!
//! What could not be seen is said with its name; what that means is judged by [`crate::plan::users`], which asks the kernel's
//! own counters.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, StatxFlags, openat, statx};
use serde::{Deserialize, Serialize};

use crate::base::process::{has_gone, is_ending, is_the_kernels};
use crate::base::root::Root;
use crate::base::unsafe_calls::share_files;
use crate::host::belongs::Belongs;
use crate::host::nodes::{Node, Nodes};

/// How long the reading of all tables of descriptors may take together: half of the default deadline of a look. Each process
/// gets its turn in it, and what it has not shown by then is not known.
const TABLES: Duration = Duration::from_secs(4);

/// A turn: as many descriptors of a process are looked at before the next one has its turn. All of most processes.
const TURN: usize = 1024;

/// How long the kernel may take to show the mappings and threads of one process. It waits for a process that is in the
/// middle of mmap(2) or execve(2) (linux, fs/proc/task_mmu.c, m_start; kernel/kcmp.c, kcmp_lock).
const MEMORY: Duration = Duration::from_millis(500);

/// So many processes that let themselves not be read in that time are waited for; after them the rest is not asked.
const STUCK_AT_MOST: usize = 4;

/// How often it is looked who has come meanwhile, at most.
const ROUNDS: usize = 100;

/// A process that holds at least one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its process id in our pid namespace.
    pub pid: i32,
    /// Its name (/proc/PID/comm), as it chose it: foreign text, and no evidence of anything.
    pub comm: String,
    /// What it belongs to, from its cgroup.
    pub belongs_to: Belongs,
    /// The nodes it holds, sorted, each once.
    pub nodes: Vec<Node>,
}

/// A process of which not all could be seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unseen {
    /// Its process id.
    pub pid: i32,
    /// Its name, as it chose it; empty where it was gone by then.
    pub comm: String,
    /// What was not seen.
    pub what: Hidden,
}

/// What of a process was not seen, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hidden {
    /// All: the kernel does not show it to us; its words.
    Refused(String),
    /// Descriptors: there are too many for the time there was.
    Descriptors,
    /// Mappings, and threads with descriptors of their own: the kernel waits for the process to show them.
    Memory,
    /// All: it and others like it ended before they could be looked at, and may have handed on what they had.
    Passing,
}

/// What a scan of /proc found.
#[derive(Debug, Default)]
pub struct Scan {
    /// The holders, by pid.
    pub holders: Vec<Holder>,
    /// How many descriptors of each node there are; where a process only maps one, its mapping counts.
    pub open: BTreeMap<Node, u32>,
    /// Processes that are ending: their descriptors are gone from sight while the kernel still closes them, which
    /// for a GPU or a VFIO group takes as long as a reset of the device. Without nodes, since none can be seen.
    pub ending: Vec<Holder>,
    /// Processes of which not all could be seen.
    pub unseen: Vec<Unseen>,
}

/// Looks through every process.
///
/// A process that ends while it is read is no holder, and who has come in its place is looked at, too.
///
/// # Errors
/// Where /proc itself cannot be listed.
pub fn scan(root: &Root, nodes: &Arc<Nodes>) -> io::Result<Scan> {
    let mut scanner = Scanner {
        root,
        nodes,
        end: Instant::now() + TABLES,
        helper: Helper::start(root, nodes),
        stuck: 0,
        scan: Scan::default(),
    };
    let mut seen: BTreeSet<i32> = BTreeSet::new();
    let mut rounds = 0;
    loop {
        let names = root.names("/proc")?;
        let pids = names.iter().filter_map(|name| name.parse().ok());
        let new: Vec<i32> = pids.filter(|pid| seen.insert(*pid)).collect();
        // Who has ended before it was looked at may have had children, which are there by now, with what it had.
        let passed = scanner.look_at_all(&new);
        let Some(last) = passed.last() else { break };
        rounds += 1;
        if rounds == ROUNDS {
            scanner.not_seen(*last, Hidden::Passing);
            break;
        }
    }
    let mut scan = scanner.scan;
    let pid = |holder: &Holder| holder.pid;
    scan.holders.sort_by_key(pid);
    scan.ending.sort_by_key(pid);
    scan.unseen.sort_by_key(|u| u.pid);
    Ok(scan)
}

/// A scan in the middle of it.
struct Scanner<'a> {
    root: &'a Root,
    nodes: &'a Arc<Nodes>,
    /// When tables are not read any more.
    end: Instant,
    helper: Helper,
    /// Helpers that were left waiting.
    stuck: usize,
    scan: Scan,
}

impl Scanner<'_> {
    /// Looks at these processes. Returns those that had ended before anything of them was seen.
    fn look_at_all(&mut self, pids: &[i32]) -> Vec<i32> {
        let (mut passed, mut done, mut open) = (Vec::new(), Vec::new(), Vec::new());
        for pid in pids.iter().filter(|pid| !is_the_kernels(self.root, **pid)) {
            match Table::of(self.root, &format!("/proc/{pid}")) {
                // Those that are read in one turn are closed again: only so many may be open at once.
                Ok(table) => self.turn(*pid, table, &mut done, &mut open, &mut passed),
                Err(e) if has_gone(&e) => passed.push(*pid),
                Err(e) => self.not_seen(*pid, Hidden::Refused(e.to_string())),
            }
        }
        while !open.is_empty() {
            for (pid, table) in std::mem::take(&mut open) {
                if Instant::now() >= self.end {
                    self.not_seen(pid, Hidden::Descriptors);
                    done.push((pid, table.held));
                } else {
                    self.turn(pid, table, &mut done, &mut open, &mut passed);
                }
            }
        }
        let pids: Vec<i32> = done.iter().map(|(pid, _)| *pid).collect();
        let memories = self.memories_of(&pids);
        for ((pid, held), memory) in done.into_iter().zip(memories) {
            self.finish(pid, held, memory, &mut passed);
        }
        passed
    }

    /// One turn of a process: it is done, open still, or has ended without showing anything.
    fn turn(
        &mut self,
        pid: i32,
        mut table: Table,
        done: &mut Vec<(i32, Held)>,
        open: &mut Vec<(i32, Table)>,
        passed: &mut Vec<i32>,
    ) {
        match table.next_turn(self.nodes) {
            Ok(true) => done.push((pid, table.held)),
            Ok(false) => open.push((pid, table)),
            Err(e) if has_gone(&e) && table.held.is_empty() => passed.push(pid),
            Err(e) => {
                if !has_gone(&e) {
                    self.not_seen(pid, Hidden::Refused(e.to_string()));
                }
                done.push((pid, table.held));
            }
        }
    }

    /// What else a process has, and the sum of it.
    fn finish(&mut self, pid: i32, mut held: Held, memory: Result<Memory, Option<Hidden>>, passed: &mut Vec<i32>) {
        match memory {
            Ok(more) => {
                for (node, count) in more.own_tables {
                    *held.entry(node).or_default() += count;
                }
                for node in more.mapped {
                    held.entry(node).or_insert(1);
                }
            }
            Err(None) => {
                if held.is_empty() {
                    passed.push(pid);
                }
            }
            Err(Some(what)) => self.not_seen(pid, what),
        }
        if !held.is_empty() {
            let holder = self.holder(pid, held.keys().copied().collect());
            self.scan.holders.push(holder);
            for (node, count) in held {
                *self.scan.open.entry(node).or_default() += count;
            }
        } else if is_ending(self.root, pid) {
            let holder = self.holder(pid, Vec::new());
            self.scan.ending.push(holder);
        }
    }

    /// Mappings and threads of each, by way of the helper, who is asked for all at once. An error is what was not seen; None:
    /// the process has ended.
    fn memories_of(&mut self, pids: &[i32]) -> Vec<Result<Memory, Option<Hidden>>> {
        let mut memories = Vec::new();
        self.helper.ask(pids);
        while memories.len() < pids.len() {
            memories.push(if self.stuck >= STUCK_AT_MOST {
                Err(Some(Hidden::Memory))
            } else {
                match self.helper.answer() {
                    Some(Ok(memory)) => Ok(memory),
                    Some(Err(e)) if has_gone(&e) => Err(None),
                    Some(Err(e)) => Err(Some(Hidden::Refused(e.to_string()))),
                    None => {
                        self.stuck += 1;
                        self.helper = Helper::start(self.root, self.nodes);
                        self.helper.ask(&pids[memories.len() + 1..]);
                        Err(Some(Hidden::Memory))
                    }
                }
            });
        }
        memories
    }

    fn comm(&self, pid: i32) -> String {
        self.root.line(format!("/proc/{pid}/comm")).unwrap_or_default()
    }

    fn holder(&self, pid: i32, nodes: Vec<Node>) -> Holder {
        Holder {
            pid,
            comm: self.comm(pid),
            belongs_to: Belongs::of(self.root, pid),
            nodes,
        }
    }

    fn not_seen(&mut self, pid: i32, what: Hidden) {
        let comm = self.comm(pid);
        self.scan.unseen.push(Unseen { pid, comm, what });
    }
}

/// How many descriptors of each node.
type Held = BTreeMap<Node, u32>;

/// A table of descriptors that is being read.
struct Table {
    entries: Dir,
    /// What there is so far.
    held: Held,
}

impl Table {
    /// That of a process, or of a thread: the directory below /proc.
    fn of(root: &Root, task: &str) -> io::Result<Table> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = openat(CWD, root.path(format!("{task}/fd")), flags, Mode::empty())?;
        Ok(Table {
            entries: Dir::new(dir)?,
            held: Held::new(),
        })
    }

    /// Looks at the next descriptors. Returns whether those were the last.
    fn next_turn(&mut self, nodes: &Nodes) -> io::Result<bool> {
        for _ in 0..TURN {
            let Some(entry) = self.entries.read() else {
                return Ok(true);
            };
            let entry = entry?;
            let name = entry.file_name();
            if name.to_bytes().starts_with(b".") {
                continue;
            }
            let Some(node) = look_at(self.entries.fd()?, name).node(nodes) else {
                continue;
            };
            if !self.is_path_only(&name.to_string_lossy()) {
                *self.held.entry(node).or_default() += 1;
            }
        }
        Ok(false)
    }

    /// It was opened with O_PATH: a name of the node and no use of the device, which anybody may have (open(2)).
    fn is_path_only(&self, name: &str) -> bool {
        const O_PATH: u32 = 0o10_000_000;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let path = format!("../fdinfo/{name}");
        let file = self
            .entries
            .fd()
            .and_then(|dir| openat(dir, path, flags, Mode::empty()));
        let Ok(file) = file else { return false };
        let text = io::read_to_string(std::fs::File::from(file)).unwrap_or_default();
        let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
        flags.is_some_and(|octal| u32::from_str_radix(octal.trim(), 8).is_ok_and(|flags| flags & O_PATH != 0))
    }

    /// All of it, without turns.
    fn read_whole(mut self, nodes: &Nodes) -> io::Result<Held> {
        while !self.next_turn(nodes)? {}
        Ok(self.held)
    }
}

/// What the kernel shows of a process only when that is in no system call on its memory.
#[derive(Default)]
struct Memory {
    mapped: BTreeSet<Node>,
    /// Of threads with tables of their own.
    own_tables: Held,
}

/// A thread of ours that waits for the kernel in our place. One that waits for ever ends with us: SIGKILL ends those waits.
struct Helper {
    ask: Sender<i32>,
    answers: Receiver<io::Result<Memory>>,
}

impl Helper {
    fn start(root: &Root, nodes: &Arc<Nodes>) -> Helper {
        let (ask, asked) = channel::<i32>();
        let (answer, answers) = channel();
        let (root, nodes) = (root.clone(), Arc::clone(nodes));
        std::thread::spawn(move || {
            let mut other_files = HashSet::new();
            for pid in asked {
                if answer.send(memory_of(&root, pid, &nodes, &mut other_files)).is_err() {
                    return; // nobody waits any more
                }
            }
        });
        Helper { ask, answers }
    }

    /// Asks for these processes, one after the other.
    fn ask(&self, pids: &[i32]) {
        // Where it has ended there is no answer either.
        let _ = pids.iter().try_for_each(|pid| self.ask.send(*pid));
    }

    /// The next answer; None where there is none in time.
    fn answer(&self) -> Option<io::Result<Memory>> {
        self.answers.recv_timeout(MEMORY).ok()
    }
}

/// `other_files` remembers mapped files that are no device, so that the libraries that every process maps are looked
/// at once.
fn memory_of(root: &Root, pid: i32, nodes: &Nodes, other_files: &mut HashSet<FileId>) -> io::Result<Memory> {
    let mut memory = Memory::default();
    let dir = format!("/proc/{pid}");
    let threads: Vec<i32> = root
        .names(format!("{dir}/task"))?
        .iter()
        .filter_map(|tid| tid.parse().ok())
        .collect();
    if threads.is_empty() {
        return Err(io::ErrorKind::NotFound.into());
    }
    for tid in &threads {
        if *tid == pid || has_the_same_table(root, pid, *tid) {
            continue;
        }
        match Table::of(root, &format!("{dir}/task/{tid}")).and_then(|table| table.read_whole(nodes)) {
            Ok(held) => {
                for (node, count) in held {
                    *memory.own_tables.entry(node).or_default() += count;
                }
            }
            Err(e) if has_gone(&e) => {}
            Err(e) => return Err(e),
        }
    }
    let (dir, maps) = match root.bytes(format!("{dir}/maps")) {
        Ok(maps) if !maps.is_empty() => (dir, maps),
        Err(e) if !has_gone(&e) => return Err(e),
        // It has ended before its threads, or is the kernel's.
        _ => threads
            .iter()
            .map(|tid| format!("{dir}/task/{tid}"))
            .find_map(|task| {
                root.bytes(format!("{task}/maps"))
                    .ok()
                    .filter(|m| !m.is_empty())
                    .map(|m| (task, m))
            })
            .unwrap_or_default(),
    };
    for line in maps.split(|b| *b == b'\n') {
        // Only the path can be foreign text, and it is not used.
        let line = String::from_utf8_lossy(line);
        let Some((range, file)) = mapped_file(&line) else {
            continue;
        };
        if other_files.contains(&file) {
            continue;
        }
        let link = root.path(format!("{dir}/map_files/{range}"));
        match look_at(CWD, &link) {
            LeadsTo::NoDevice => _ = other_files.insert(file),
            other => memory.mapped.extend(other.node(nodes)),
        }
    }
    Ok(memory)
}

/// Whether a thread shares its process's table, which shows below the process. One that called unshare(2) with CLONE_FILES
/// does not, nor one whose leader has ended, which has none any more (linux, kernel/exit.c, exit_files). Where the kernel
/// does not say, what is shared is looked at twice.
fn has_the_same_table(root: &Root, pid: i32, tid: i32) -> bool {
    root.is_real() && share_files(pid, tid).unwrap_or(false)
}

/// What a link of /proc leads to.
enum LeadsTo {
    /// A character device of this major and minor number.
    Device(u64, u64),
    /// A block device of this major and minor number.
    Block((u64, u64)),
    /// Something else.
    NoDevice,
    /// Nothing that can be told: it was closed meanwhile, or its file system does not answer to root (FUSE without
    /// allow_other, a dead network mount). Such file systems carry no usable device nodes.
    Nothing,
}

impl LeadsTo {
    fn node(&self, nodes: &Nodes) -> Option<Node> {
        match self {
            LeadsTo::Device(major, minor) => nodes.of(*major, *minor),
            LeadsTo::Block(number) => nodes.disks.get(number).copied(),
            LeadsTo::NoDevice | LeadsTo::Nothing => None,
        }
    }
}

/// Without asking a server: what is cached tells a device node from a file, and a dead server answers never.
fn look_at(dir: impl std::os::fd::AsFd, link: impl rustix::path::Arg) -> LeadsTo {
    let seen = statx(dir, link, AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE);
    let Ok(meta) = seen else { return LeadsTo::Nothing };
    let (major, minor) = (u64::from(meta.stx_rdev_major), u64::from(meta.stx_rdev_minor));
    match FileType::from_raw_mode(u32::from(meta.stx_mode)) {
        FileType::CharacterDevice => LeadsTo::Device(major, minor),
        FileType::BlockDevice => LeadsTo::Block((major, minor)),
        _ => LeadsTo::NoDevice,
    }
}

/// File system (major and minor) and inode: what tells one mapped file from another.
type FileId = (u32, u32, u64);

/// Address range and file of a line of /proc/PID/maps that maps one (proc(5)).
fn mapped_file(line: &str) -> Option<(&str, FileId)> {
    let mut fields = line.split_ascii_whitespace();
    let range = fields.next()?;
    let (major, minor) = fields.nth(2)?.split_once(':')?;
    let inode = fields.next()?.parse().ok().filter(|n| *n != 0)?;
    fields.next().filter(|path| path.starts_with('/'))?;
    let number = |text| u32::from_str_radix(text, 16).ok();
    Some((range, (number(major)?, number(minor)?, inode)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_with_a_file_are_mappings_of_one() {
        let line = "7f00-7f10 rw-s 00000000 00:05 123   /dev/nvidia0";
        assert_eq!(mapped_file(line), Some(("7f00-7f10", (0, 5, 123))));
        assert_eq!(mapped_file("7f00-7f10 rw-p 00000000 00:00 0"), None);
        assert_eq!(mapped_file("7f00-7f10 rw-p 00000000 00:00 0   [heap]"), None);
    }
}
