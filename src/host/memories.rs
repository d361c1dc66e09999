//! Which device nodes a process maps, and those of its threads that have descriptors of their own: what the kernel shows only
//! when the process is in no call on its memory, so that a thread of ours waits for it.
//!
//! Not here: descriptors of the process itself ([`crate::host::tables`]).

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead as _};
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::CWD;

use crate::base::process::has_gone;
use crate::base::root::Root;
use crate::base::threads::{self, Receiver, Sender, channel};
use crate::base::unsafe_calls::{SharedMapping, next_shared_mapping, share_files};
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
        // Where there can be none, no answer comes.
        let _ = threads::start(move || {
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
    other_files: BTreeSet<Vec<u8>>,
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
    // Private mappings of a device are in the count of its driver, which is held against what was seen
    // ([`crate::plan::users`]); it is as good as never that there is one.
    if nodes.are_counted && root.is_real() && !root.is_recording() {
        // Of a kernel without it, and of a process without memory, there is an error.
        if let Ok(mapped) = shared(&dir, nodes) {
            memory.is_there = true;
            memory.mapped.extend(mapped);
            return Ok(memory);
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
    let mut lines = known.maps.as_slice();
    let mut last = &[][..];
    while !lines.is_empty() {
        let mapping = mapped_file(lines);
        lines = behind_line(lines);
        // A file is mapped in several parts, one after the other.
        let Some((range, file)) = mapping.filter(|(_, file)| *file != last) else {
            continue;
        };
        if !known.other_files.contains(file) {
            let link = root.path(format!("{of}/map_files/{range}"));
            match look_at(CWD, &link) {
                LeadsTo::NoDevice => _ = known.other_files.insert(file.to_vec()),
                // Another part of it may tell.
                LeadsTo::Nothing => continue,
                device => memory.mapped.extend(device.node(nodes)),
            }
        }
        last = file;
    }
    Ok(memory)
}

/// The nodes that a process maps for others to see.
fn shared(dir: &str, nodes: &Nodes) -> io::Result<Vec<Node>> {
    let maps = File::open(format!("{dir}/maps"))?;
    let (mut mapped, mut from) = (Vec::new(), 0);
    while let Some(SharedMapping { start, end }) = next_shared_mapping(&maps, from)? {
        mapped.extend(look_at(CWD, format!("{dir}/map_files/{start:x}-{end:x}")).node(nodes));
        from = end;
    }
    Ok(mapped)
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

/// Address range and file of the first of these lines of /proc/PID/maps, where it maps one (proc(5)): of the file its file system
/// (major and minor) and inode, as they stand there. The path behind them can be foreign text, and is not looked at.
fn mapped_file(lines: &[u8]) -> Option<(&str, &[u8])> {
    let is_blank = |b: &u8| *b == b' ';
    // Range, permissions of four letters, offset, and then the file.
    let range = lines.iter().position(is_blank)?;
    let offset = range + 1 + 5;
    let file = offset + lines.get(offset..)?.iter().position(is_blank)? + 1;
    let inode = file + lines.get(file..)?.iter().position(is_blank)? + 1;
    let ends = |b: &u8| !b.is_ascii_digit();
    let end = inode + lines.get(inode..)?.iter().position(ends)?;
    let is_file = lines.get(inode..end).is_some_and(|inode| inode != b"0");
    let range = str::from_utf8(lines.get(..range)?).ok()?;
    is_file.then_some((range, &lines[file..end]))
}

/// What is behind the first of these lines.
fn behind_line(mut lines: &[u8]) -> &[u8] {
    // It fails for no slice.
    let _ = lines.skip_until(b'\n');
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_with_a_file_are_mappings_of_one() {
        let line = b"7f00-7f10 rw-s 00000000 00:05 123   /dev/nvidia0\nnext";
        assert_eq!(mapped_file(line), Some(("7f00-7f10", &b"00:05 123"[..])));
        assert_eq!(behind_line(line), b"next");
        assert_eq!(behind_line(b"the last"), b"");
        for none in [
            &b"7f00-7f10 rw-p 00000000 00:00 0 \n7f10-7f20 rw-s 00000000 00:05 123   /dev/nvidia0\n"[..],
            b"7f00-7f10 rw-p 00000000 00:00 0   [heap]\n",
            b"7f00-7f10",
            b"7f00-7f10 rw-p",
            b"",
        ] {
            assert_eq!(mapped_file(none), None);
        }
    }
}
