//! The workers: children of ours in which every call that the kernel can hold up is made ([`crate::execute::perform`]).
//!
//! ```text
//! run ── start ──> worker (own session, no descriptor of ours but two pipes)
//!     ── request, one JSON line ──>
//!     <── reply, one JSON line ──      within the deadline: go on
//!                                      not: SIGKILL to its session; if even that does not
//!                                      end it, it stays in the kernel, in a scope of its own,
//!                                      and the run returns
//!                                      a signal to us: four seconds, then it is left to finish
//! ```
//!
//! Not here: which requests there are at once, and how long they may take ([`crate::execute::linux`]).

use std::cell::OnceCell;
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::buffer::spare_capacity;
use serde::{Deserialize, Serialize};

use crate::base::json;
use crate::base::pci::PciAddr;
use crate::base::process::Group;
use crate::base::program::PATH;
use crate::base::recording::Entries;
use crate::base::root::Root;
use crate::base::systemd;
use crate::base::text::join;
use crate::base::unsafe_calls::{fork_to, is_close_on_exec};
use crate::base::vmid::VmId;
use crate::check::read::Part;
use crate::check::texts::Texts;
use crate::execute::kernel::ActError;
use crate::execute::stale_nodes::{self, StaleNode};
use crate::host::functions::Details;
use crate::host::modules::Loadable;
use crate::host::pci_ids::{Ids, Named};
use crate::host::snapshot::Snapshot;
use crate::host::units::{Facts, Unit};
use crate::model::act::Act;
use crate::output::journal;
use crate::proxmox::files::{Found, Wanted};
use crate::state::history::Handoff;
use crate::state::stopped::Stopped;

/// The first argument that makes the binary a worker. Not a command: no help lists it.
pub const WORKER_ARG: &str = "__worker";

/// The second argument, of one that keeps what it looks at.
pub const RECORDING_ARG: &str = "recording";

/// How long a killed worker gets to disappear before it counts as stuck in the kernel. SIGKILL ends anything
/// that is not in an uninterruptible call at once; the rest is scheduling on a loaded host.
const AFTER_KILL: Duration = Duration::from_millis(1000);

/// What a pipe holds, bytes (pipe(7)).
const PIPE: usize = 64 << 10;

/// How often it is looked whether a killed process group has gone.
const GROUP_POLL: Duration = Duration::from_millis(10);

/// What a worker is asked, as it goes through the pipe.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Question {
    /// Read the host; leave the attributes of these functions alone.
    Look {
        /// Calls that touch these hang in the kernel.
        stuck: Vec<PciAddr>,
    },
    /// Read the details of these functions.
    Details {
        /// Of one card.
        addrs: Vec<PciAddr>,
    },
    /// Ask modprobe whether modules can be loaded.
    Loadable {
        /// As modprobe takes them.
        names: Vec<String>,
    },
    /// Ask systemd for units.
    Units(Vec<Unit>),
    /// Make nodes of NVIDIA's.
    MakeNodes {
        /// Their paths.
        paths: Vec<String>,
        /// The driver may be loaded for that.
        load: bool,
    },
    /// Look into containers.
    StaleNodes(stale_nodes::Wanted),
    /// Carry out an act. A gate stays shut until it is to be opened, or this worker ends.
    Act(Act),
    /// Read files of Proxmox's.
    Find(Wanted),
    /// Read files that the checks look at.
    Check(Part),
    /// Add this to the history.
    Remember(Handoff),
    /// Read the history.
    Past,
    /// Keep this of what is stopped in a boot.
    KeepStopped(String, String),
    /// Read what was stopped in each boot.
    Stopped,
    /// Forget that of the boots before this one.
    ForgetStopped(String),
    /// Have the cluster's manager look after this container again, if it ignores it.
    GiveToHa(VmId),
    /// Read what devices are called.
    Names(Vec<Ids>),
    /// What was looked at since this was asked the last time.
    Recorded,
}

impl Question {
    /// What is looked at for it, in words.
    pub(crate) fn what(&self) -> String {
        match self {
            Question::Look { .. } => "devices and processes".to_owned(),
            Question::Details { addrs } => format!("the attributes of {}", join(addrs)),
            Question::Loadable { .. } => "what modprobe says".to_owned(),
            Question::Units(_) => "what systemd says".to_owned(),
            Question::StaleNodes(_) => "nodes inside containers".to_owned(),
            Question::Find(_) => "files of Proxmox's below /etc/pve".to_owned(),
            Question::Check(part) => format!("what the checks look at ({})", part.covers()),
            Question::Past
            | Question::Remember(_)
            | Question::KeepStopped(..)
            | Question::Stopped
            | Question::ForgetStopped(_) => "the history".to_owned(),
            Question::Names(_) => "the names of devices".to_owned(),
            Question::Recorded => "what a worker has looked at".to_owned(),
            Question::Act(_) | Question::MakeNodes { .. } | Question::GiveToHa(_) => "an act".to_owned(),
        }
    }
}

/// What a worker answers, as it comes through the pipe.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// The host, as far as it could be read.
    Snapshot(Box<Snapshot>),
    /// Of those functions that are there.
    Details(Vec<Details>),
    /// What modprobe says.
    Loadable(Vec<Loadable>),
    /// What systemd says of units.
    Units(Vec<Facts>),
    /// Files of Proxmox's.
    Found(Found),
    /// Files that the checks look at.
    Texts(Box<Texts>),
    /// Whether the history has it now, or HA.
    Remembered(Result<(), String>),
    /// The history, the oldest entry first.
    Past(Result<Vec<Handoff>, String>),
    /// What was stopped in each boot.
    Stopped(Stopped),
    /// What devices are called.
    Names(Vec<Named>),
    /// What was looked at, as far as it may leave the host.
    Recorded(Entries),
    /// Those that cannot be had.
    NotMade(Vec<String>),
    /// Nodes inside them that are another device's.
    StaleNodes(Vec<StaleNode>),
    /// How the act went.
    Acted {
        /// Whether it led to what it should have.
        result: Result<(), ActError>,
        /// What else is worth saying.
        notes: Vec<String>,
        /// As in [`crate::execute::kernel::Acted`].
        moment: Option<Duration>,
        /// As there.
        ended: Vec<i32>,
    },
}

/// The parent's end of a worker.
#[derive(Debug)]
pub(crate) struct Worker {
    pid: Pid,
    reaped: bool,
    /// Once somebody has asked, which is before it is waited for.
    group: OnceCell<Group>,
    /// None where nobody waits for its answers any more.
    requests: Option<PipeWriter>,
    replies: PipeReader,
    buffer: Vec<u8>,
}

/// What a worker does from its start to its end ([`crate::execute::perform::serve`]).
pub(crate) type Serve = fn(bool) -> io::Result<()>;

impl Worker {
    /// Starts a worker that waits for requests. `records`: it keeps what it looks at.
    ///
    /// It is this program as it is now, which begins at once; where this process has other threads, it is started anew.
    ///
    /// # Errors
    /// Those of starting a process.
    pub fn start(records: bool, serve: Serve) -> io::Result<Worker> {
        let (asked, requests) = io::pipe()?;
        let (replies, answers) = io::pipe()?;
        let pid = match fork_to(|| be_one(&asked, &answers).and_then(|()| serve(records)).is_ok()) {
            Err(e) if e.kind() == io::ErrorKind::Unsupported => spawn(records, asked, answers)?,
            forked => forked?,
        };
        Ok(Worker {
            group: OnceCell::new(),
            pid,
            reaped: false,
            requests: Some(requests),
            replies,
            buffer: Vec::new(),
        })
    }

    /// Gives it a request. One at a time: the next only when the reply to the last has come.
    ///
    /// # Errors
    /// Where it has ended.
    pub fn send(&mut self, request: &Question) -> io::Result<()> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        let requests = self.requests.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        requests.write_all(&line)
    }

    /// Its process group: what it starts is in it too, and a call that is stuck is known by it.
    pub fn group(&self) -> Group {
        let of_child = || Group::of_child(&Root::real(), self.pid.as_raw().unsigned_abs());
        *self.group.get_or_init(of_child)
    }

    /// Readable when a reply has come.
    pub fn replies(&self) -> BorrowedFd<'_> {
        self.replies.as_fd()
    }

    /// Takes what has come; a reply once it is whole.
    ///
    /// # Errors
    /// Where it has ended.
    pub fn receive(&mut self) -> io::Result<Option<Answer>> {
        // As much as a pipe has at once (pipe(7)).
        self.buffer.reserve(PIPE);
        match rustix::io::read(&self.replies, spare_capacity(&mut self.buffer))? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            // One reply is asked for at a time.
            _ if self.buffer.last() != Some(&b'\n') => return Ok(None),
            _ => {}
        }
        let reply = json::from_slice(&self.buffer);
        self.buffer.clear();
        Ok(Some(reply?))
    }

    /// Tells it that nobody waits for its answer any more. Whether it has not been told so before.
    pub fn hang_up(&mut self) -> bool {
        self.requests.take().is_some()
    }

    /// Kills the worker and what it started (modprobe). Returns their process group if any of it does not end: it is
    /// stuck in the kernel.
    pub fn abandon(self) -> Option<Group> {
        self.kill();
        let group = self.group();
        let alive = self.ends_by(Instant::now() + AFTER_KILL);
        if alive.is_empty() {
            return None;
        }
        systemd::take_over(group.number, &alive);
        Some(group)
    }

    /// Kills the worker and what it started.
    pub fn kill(&self) {
        // The worker leads a session of its own; before it has made one, only its own pid works.
        let _ = killpg(self.pid, Signal::SIGKILL);
        let _ = kill(self.pid, Signal::SIGKILL);
    }

    /// Waits until they have ended, once killed. What is left of them by then.
    fn ends_by(mut self, end: Instant) -> Vec<i32> {
        loop {
            let mut alive = self.group().alive(&Root::real());
            if !self.has_ended() && alive.is_empty() {
                alive.push(self.pid.as_raw()); // between one look and the other
            }
            if alive.is_empty() || Instant::now() >= end {
                return alive;
            }
            // There is no event for the end of somebody else's child.
            std::thread::sleep(GROUP_POLL);
        }
    }

    /// Waits until it has ended itself, once killed, no longer than that. What it has started is not looked for, which on a full host
    /// takes its time.
    pub fn is_gone_by(&mut self, end: Instant) {
        self.group(); // while its number is nobody else's
        while !self.has_ended() && Instant::now() < end {
            std::thread::sleep(GROUP_POLL); // as above
        }
    }

    /// Whether it has ended; whoever is our parent then has nothing of it left.
    fn has_ended(&mut self) -> bool {
        self.reaped = self.reaped
            || !matches!(
                waitpid(self.pid, Some(WaitPidFlag::WNOHANG)),
                Ok(WaitStatus::StillAlive)
            );
        self.reaped
    }
}

impl Drop for Worker {
    /// End of requests ends an idle worker; it is reaped where that takes no time.
    fn drop(&mut self) {
        self.has_ended();
    }
}

/// In a child: it is a worker from now on.
fn be_one(asked: &PipeReader, answers: &PipeWriter) -> io::Result<()> {
    // Lines are the parent's to say, whose place in the journal's queue is not this one's.
    journal::hush();
    close_the_runs([asked.as_raw_fd(), answers.as_raw_fd()])?;
    dup2_stdin(asked)?;
    dup2_stdout(answers)?;
    // Proxmox waits for the end of our stderr: whatever stays behind must not hold it.
    dup2_stderr(File::options().write(true).open("/dev/null")?)?;
    std::env::set_current_dir("/")
}

/// Closes what the run has opened, its lock first of all, but for these two. What is left then is the caller's of our caller: to
/// close a file of a server that does not answer may take for ever (linux, fs/fuse/file.c, `fuse_flush`, which is sent by force),
/// and whoever hangs there is to have nothing that others wait for.
fn close_the_runs(but: [RawFd; 2]) -> io::Result<()> {
    // Whatever is not close-on-exec is not of this program, which opens nothing else.
    close_those(|fd| !but.contains(&fd) && is_close_on_exec(fd))
}

/// Closes descriptors of this process, but for the first three.
pub(crate) fn close_those(is_one: impl Fn(RawFd) -> bool) -> io::Result<()> {
    let mut open = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        open.extend(entry?.file_name().to_string_lossy().parse::<RawFd>());
    }
    for fd in open.into_iter().filter(|fd| *fd > 2 && is_one(*fd)) {
        // The directory's own descriptor is among them and is closed already: no error to act on.
        let _ = nix::unistd::close(fd);
    }
    Ok(())
}

/// Our own binary, asked for by [`WORKER_ARG`].
fn spawn(records: bool, asked: PipeReader, answers: PipeWriter) -> io::Result<Pid> {
    let child = Command::new("/proc/self/exe")
        .arg0("gpu-handoff")
        .arg(WORKER_ARG)
        .args(records.then_some(RECORDING_ARG))
        .env_clear()
        .env("PATH", PATH)
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(asked)
        .stdout(answers)
        .stderr(Stdio::null())
        .spawn()?;
    Ok(Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?))
}
