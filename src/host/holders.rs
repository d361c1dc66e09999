//! Who uses a GPU: every process with a descriptor or a mapping of one of its device nodes.
//!
//! Nodes are told by device number, not by path, so that a container's own nodes count too. What a process
//! does with the device is not looked at, and nothing is stopped here: holders are found and named.
//!
//! ```text
//! first    each process's table of descriptors, in turns, so that one that has a million keeps nobody waiting
//! then     mappings, and threads with a table of their own: for these the kernel waits for the process, so a helper asks,
//!          while the tables of others are read
//! last     who has come meanwhile, until nobody new has ended before it was looked at
//! ```
//!
//! Where there are many processes, several threads share them.
//!
//! What could not be seen is said with its name; what that means is judged by [`crate::plan::users`], which asks the kernel's
//! own counters.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::base::process::{has_gone, is_ending, is_the_kernels};
use crate::base::root::Root;
use crate::base::threads::{self, channel};
use crate::host::belongs::Belongs;
use crate::host::memories::{Helper, Memory};
use crate::host::nodes::{Node, Nodes};
use crate::host::tables::{Held, Room, Table};

/// How long the reading of all tables of descriptors may take together: half of the default deadline of a look. Each process
/// gets its turn in it, and what it has not shown by then is not known.
const TABLES: Duration = Duration::from_secs(4);

/// So many processes that let themselves not be read in that time are waited for; after them the rest is not asked.
const STUCK_AT_MOST: usize = 4;

/// How often it is looked who has come meanwhile, at most.
const ROUNDS: usize = 100;

/// For so many processes there is a thread, up to [`LANES`] of them and to one for each processor.
const LANE: usize = 256;

/// So many threads at most: more are not faster, since they wait for the kernel's locks on /proc.
const LANES: usize = 4;

/// So many processes are asked for at once: each question wakes the helper.
const AT_ONCE: usize = 64;

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

impl Scan {
    fn add(&mut self, other: Scan) {
        self.holders.extend(other.holders);
        self.ending.extend(other.ending);
        self.unseen.extend(other.unseen);
        for (node, count) in other.open {
            *self.open.entry(node).or_default() += count;
        }
    }
}

/// So many threads share so many processes.
fn lanes(processes: usize) -> usize {
    let wanted = (processes / LANE).min(LANES);
    match wanted {
        0 | 1 => 1,
        _ => wanted.min(threads::processors()),
    }
}

/// Looks through every process.
///
/// A process that ends while it is read is no holder, and who has come in its place is looked at, too.
///
/// # Errors
/// Where /proc itself cannot be listed.
pub fn scan(root: &Root, nodes: &Arc<Nodes>) -> io::Result<Scan> {
    scan_until(root, nodes, Instant::now() + TABLES)
}

/// `end`: from then on a table gets no second turn.
fn scan_until(root: &Root, nodes: &Arc<Nodes>, end: Instant) -> io::Result<Scan> {
    let mut scanner = Scanner::new(root, nodes, end);
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
    scan.holders.sort_unstable_by_key(pid);
    scan.ending.sort_unstable_by_key(pid);
    scan.unseen.sort_unstable_by_key(|u| u.pid);
    Ok(scan)
}

/// A scan in the middle of it, or a thread's part of one.
struct Scanner<'a> {
    root: &'a Root,
    nodes: &'a Arc<Nodes>,
    /// When tables are not read any more.
    end: Instant,
    room: Room,
    helper: Helper,
    /// Who is to be asked for of the helper.
    to_ask: Vec<i32>,
    /// Helpers that were left waiting.
    stuck: usize,
    scan: Scan,
}

impl<'a> Scanner<'a> {
    fn new(root: &'a Root, nodes: &'a Arc<Nodes>, end: Instant) -> Self {
        Scanner {
            root,
            nodes,
            end,
            room: Room::default(),
            helper: Helper::start(root, nodes),
            to_ask: Vec::new(),
            stuck: 0,
            scan: Scan::default(),
        }
    }

    /// Looks at these processes. Returns those that had ended before anything of them was seen.
    fn look_at_all(&mut self, pids: &[i32]) -> Vec<i32> {
        let lanes = lanes(pids.len());
        // In turns: those that have much to show are likely to be one after the other.
        let lane = |number: usize| pids.iter().skip(number).step_by(lanes).copied().collect::<Vec<i32>>();
        let mut own = lane(0);
        let (sender, receiver) = channel();
        for number in 1..lanes {
            let (root, nodes, end) = (self.root.clone(), Arc::clone(self.nodes), self.end);
            let (pids, sender) = (lane(number), sender.clone());
            let is_there = threads::start(move || {
                let mut scanner = Scanner::new(&root, &nodes, end);
                let passed = scanner.look_at_these(&pids);
                let _ = sender.send((scanner.scan, passed));
            });
            if !is_there {
                own.extend(lane(number));
            }
        }
        drop(sender);
        let mut passed = self.look_at_these(&own);
        // Each has the same end as this one.
        for (scan, more) in receiver {
            self.scan.add(scan);
            passed.extend(more);
        }
        passed
    }

    fn look_at_these(&mut self, pids: &[i32]) -> Vec<i32> {
        let (mut passed, mut done, mut open) = (Vec::new(), Vec::new(), Vec::new());
        for pid in pids {
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
                    self.ask(pid);
                    done.push((pid, table.held));
                } else {
                    self.turn(pid, table, &mut done, &mut open, &mut passed);
                }
            }
        }
        self.helper.ask(std::mem::take(&mut self.to_ask));
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
        match table.next_turn(self.nodes, &mut self.room) {
            Ok(true) if table.is_empty && is_the_kernels(self.root, pid) => return,
            Ok(true) => {}
            Ok(false) => return open.push((pid, table)),
            Err(e) if has_gone(&e) && table.held.is_empty() => return passed.push(pid),
            Err(e) if has_gone(&e) => {}
            Err(e) => self.not_seen(pid, Hidden::Refused(e.to_string())),
        }
        // Not earlier: who maps a node and closes it would be seen with neither.
        self.ask(pid);
        done.push((pid, table.held));
    }

    fn ask(&mut self, pid: i32) {
        self.to_ask.push(pid);
        if self.to_ask.len() == AT_ONCE {
            self.helper.ask(std::mem::take(&mut self.to_ask));
        }
    }

    /// What else a process has, and the sum of it.
    fn finish(&mut self, pid: i32, mut held: Held, memory: Result<Memory, Option<Hidden>>, passed: &mut Vec<i32>) {
        let mut lives = false;
        match memory {
            Ok(more) => {
                lives = more.is_there;
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
        } else if !lives && is_ending(self.root, pid) {
            let holder = self.holder(pid, Vec::new());
            self.scan.ending.push(holder);
        }
    }

    /// Mappings and threads of each, by way of the helper, who was asked for them in this order. An error is what was not
    /// seen; None: the process has ended.
    fn memories_of(&mut self, pids: &[i32]) -> Vec<Result<Memory, Option<Hidden>>> {
        let mut memories = Vec::new();
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
                        self.helper.ask(pids[memories.len() + 1..].to_vec());
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

/// On the running kernel, with /dev/full in the place of a GPU's node.
#[cfg(test)]
mod tests {
    use super::*;

    use std::fs::File;
    use std::io::{BufRead as _, BufReader};
    use std::process::{Child, Command, Stdio};
    use std::sync::mpsc;

    use nix::sched::{CloneFlags, unshare};

    /// Linux, Documentation/admin-guide/devices.txt.
    const FULL: (u64, u64) = (1, 7);

    fn nodes() -> Arc<Nodes> {
        let mut nodes = Nodes::default();
        nodes.exact.insert(FULL, Node::Control);
        Arc::new(nodes)
    }

    /// A shell that has done this, and waits.
    struct Waiting(Child);

    impl Waiting {
        fn after(script: &str) -> Waiting {
            let mut words = Command::new("bash"); // sh need not know descriptors of two digits
            words.args(["-c", &format!("{script}\necho; read")]);
            let mut child = words.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            let mut line = String::new();
            BufReader::new(child.stdout.as_mut().unwrap())
                .read_line(&mut line)
                .unwrap();
            assert_eq!(line, "\n", "{script}");
            Waiting(child)
        }

        fn pid(&self) -> i32 {
            i32::try_from(self.0.id()).unwrap()
        }
    }

    impl Drop for Waiting {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn nodes_of(scan: &Scan, pid: i32) -> &[Node] {
        let holder = scan.holders.iter().find(|h| h.pid == pid);
        holder.map_or(&[], |holder| &holder.nodes)
    }

    /// The name by which it is said that this was not seen of a process.
    fn is_hidden<'a>(scan: &'a Scan, pid: i32, what: &Hidden) -> Option<&'a str> {
        let said = scan.unseen.iter().find(|u| u.pid == pid && u.what == *what);
        said.map(|u| u.comm.as_str())
    }

    #[test]
    fn what_a_thread_has_open_in_a_table_of_its_own_is_held_by_its_process() {
        let (root, nodes) = (Root::real(), nodes());
        let us = i32::try_from(std::process::id()).unwrap();
        let (opened, is_opened) = mpsc::channel();
        let (look, has_looked) = mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_FILES).unwrap();
            let file = File::open("/dev/full").unwrap();
            opened.send(()).unwrap();
            let _ = has_looked.recv(); // the end of who looks ends this as well
            drop(file);
        });
        is_opened.recv().unwrap();
        // It is in no table but the thread's.
        let of_process = Table::of(&root, &format!("/proc/{us}")).unwrap();
        assert_eq!(of_process.read_whole(&nodes).unwrap(), Held::new());
        // On a busy machine the helper's answer may be late, which is said.
        let mut scans = (0..20).map(|_| scan(&root, &nodes).unwrap());
        let scan = scans
            .find(|scan| is_hidden(scan, us, &Hidden::Memory).is_none())
            .unwrap();
        drop(look);
        thread.join().unwrap();
        assert_eq!(nodes_of(&scan, us), [Node::Control]);
        assert!(scan.open[&Node::Control] >= 1, "{:?}", scan.open);
    }

    #[test]
    fn a_process_with_more_descriptors_than_there_is_time_for_is_named_and_keeps_nobody_from_being_seen() {
        let many = "ulimit -n 4096; for ((n = 10; n < 3000; n++)); do eval \"exec $n< /etc/passwd\"; done";
        let has_many = Waiting::after(&format!("exec 9< /dev/full; {many}"));
        let has_one = Waiting::after("exec 9< /dev/full");
        let (root, nodes) = (Root::real(), nodes());
        for (time, hidden) in [(Duration::ZERO, true), (Duration::from_secs(60), false)] {
            let scan = scan_until(&root, &nodes, Instant::now() + time).unwrap();
            let said = [&has_many, &has_one].map(|one| is_hidden(&scan, one.pid(), &Hidden::Descriptors));
            assert_eq!(said, [hidden.then_some("bash"), None], "{time:?}");
            for pid in [has_many.pid(), has_one.pid()] {
                // What it has shown by then counts.
                assert_eq!(nodes_of(&scan, pid), [Node::Control], "{time:?}");
            }
        }
    }
}
