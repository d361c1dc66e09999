//! Which device nodes a process maps, and those of its threads that have descriptors of their own: what the kernel shows only
//! when the process is in no call on its memory, so that a thread of ours waits for it.
//!
//! Not here: descriptors of the process itself ([`crate::host::tables`]).

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::CWD;

use crate::base::process::has_gone;
use crate::base::root::Root;
use crate::base::threads::{self, Receiver, Sender, channel};
use crate::base::unsafe_calls::share_files;
use crate::host::nodes::{Node, Nodes};
use crate::host::tables::{Held, LeadsTo, Table, look_at};

/// How long the kernel may take to show the mappings and threads of one process. It waits for a process that is in the
/// middle of mmap(2) or execve(2) (linux, fs/proc/task_mmu.c, m_start; kernel/kcmp.c, kcmp_lock).
const MEMORY: Duration = Duration::from_millis(500);

/// What the kernel shows of a process only when that is in no system call on its memory.
#[derive(Default)]
pub(crate) struct Memory {
    /// It has memory, and so has not begun to close its descriptors: who exits gives that up first (linux, kernel/exit.c,
    /// do_exit).
    pub(crate) is_there: bool,
    pub(crate) mapped: BTreeSet<Node>,
    /// Of threads with tables of their own.
    pub(crate) own_tables: Held,
}

/// A thread of ours that waits for the kernel in our place. One that waits for ever ends with us: SIGKILL ends those waits.
pub(crate) struct Helper {
    ask: Sender<Vec<i32>>,
    answers: Receiver<io::Result<Memory>>,
}

impl Helper {
    pub(crate) fn start(root: &Root, nodes: &Arc<Nodes>) -> Helper {
        let (ask, asked) = channel::<Vec<i32>>();
        let (answer, answers) = channel();
        let (root, nodes) = (root.clone(), Arc::clone(nodes));
        threads::start(move || {
            let mut known = Known::default();
            for pid in asked.flatten() {
                if !answer.send(memory_of(&root, pid, &nodes, &mut known)) {
                    return; // nobody waits any more
                }
            }
        });
        Helper { ask, answers }
    }

    /// Asks for these processes, one after the other.
    pub(crate) fn ask(&self, pids: Vec<i32>) {
        // Where it has ended there is no answer either.
        let _ = self.ask.send(pids);
    }

    /// The next answer; None where there is none in time.
    pub(crate) fn answer(&self) -> Option<io::Result<Memory>> {
        self.answers.receive(MEMORY)
    }
}

/// What a helper keeps from one process to the next.
#[derive(Default)]
struct Known {
    /// Mapped files that are no device, so that the libraries that every process maps are looked at once.
    other_files: HashSet<FileId>,
    /// Where mappings are read into.
    maps: Vec<u8>,
}

fn memory_of(root: &Root, pid: i32, nodes: &Nodes, known: &mut Known) -> io::Result<Memory> {
    let mut memory = Memory::default();
    let dir = format!("/proc/{pid}");
    let threads = threads(root, pid)?;
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
    let mut of = match root.read_into(format!("{dir}/maps"), &mut known.maps) {
        Err(e) if !has_gone(&e) => return Err(e),
        _ => dir,
    };
    memory.is_there = !known.maps.is_empty();
    if known.maps.is_empty() {
        // It has ended before its threads, or is the kernel's.
        let tasks = threads.iter().map(|tid| format!("{of}/task/{tid}"));
        let with_maps = tasks.into_iter().find(|task| {
            let read = root.read_into(format!("{task}/maps"), &mut known.maps);
            read.is_ok() && !known.maps.is_empty()
        });
        of = with_maps.unwrap_or_default();
    }
    for line in known.maps.split(|b| *b == b'\n') {
        let Some((range, file)) = mapped_file(line) else {
            continue;
        };
        if known.other_files.contains(&file) {
            continue;
        }
        let link = root.path(format!("{of}/map_files/{range}"));
        match look_at(CWD, &link) {
            LeadsTo::NoDevice => _ = known.other_files.insert(file),
            other => memory.mapped.extend(other.node(nodes)),
        }
    }
    Ok(memory)
}

/// The threads of a process.
fn threads(root: &Root, pid: i32) -> io::Result<Vec<i32>> {
    let dir = format!("/proc/{pid}/task");
    // A link for each thread beside the two of every directory (linux, fs/proc/base.c, proc_task_getattr): most have one.
    if root.is_real() && !root.is_recording() && std::fs::metadata(&dir)?.nlink() == 3 {
        return Ok(vec![pid]);
    }
    let names = root.names(dir)?;
    let threads: Vec<i32> = names.iter().filter_map(|tid| tid.parse().ok()).collect();
    match threads.is_empty() {
        true => Err(io::ErrorKind::NotFound.into()),
        false => Ok(threads),
    }
}

/// Whether a thread shares its process's table, which shows below the process. One that called unshare(2) with CLONE_FILES
/// does not, nor one whose leader has ended, which has none any more (linux, kernel/exit.c, exit_files). Where the kernel
/// does not say, what is shared is looked at twice.
fn has_the_same_table(root: &Root, pid: i32, tid: i32) -> bool {
    root.is_real() && share_files(pid, tid).unwrap_or(false)
}

/// File system (major and minor) and inode: what tells one mapped file from another.
type FileId = (u32, u32, u64);

/// Address range and file of a line of /proc/PID/maps that maps one (proc(5)). Only the path can be foreign text, and it is
/// not used.
fn mapped_file(line: &[u8]) -> Option<(&str, FileId)> {
    let path = line.iter().position(|b| *b == b'/')?;
    let mut fields = str::from_utf8(&line[..path]).ok()?.split_ascii_whitespace();
    let range = fields.next()?;
    let (major, minor) = fields.nth(2)?.split_once(':')?;
    let inode = fields.next()?.parse().ok().filter(|n| *n != 0)?;
    let number = |text| u32::from_str_radix(text, 16).ok();
    Some((range, (number(major)?, number(minor)?, inode)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_with_a_file_are_mappings_of_one() {
        let line = b"7f00-7f10 rw-s 00000000 00:05 123   /dev/nvidia0";
        assert_eq!(mapped_file(line), Some(("7f00-7f10", (0, 5, 123))));
        assert_eq!(mapped_file(b"7f00-7f10 rw-p 00000000 00:00 0"), None);
        assert_eq!(mapped_file(b"7f00-7f10 rw-p 00000000 00:00 0   [heap]"), None);
    }
}
