//! The worker: a child of our own binary in which every call that the kernel can hold up is made.
//!
//! ```text
//! run ── spawn ──> worker (own session, no descriptor of ours but two pipes)
//!     ── request, one JSON line ──>
//!     <── reply, one JSON line ──      within the deadline: go on
//!                                      not: SIGKILL to its session; if even that does not
//!                                      end it, it stays in the kernel and the run returns
//! ```
//!
//! Not here: what to do and in which order ([`crate::plan`]), and what a failure means ([`crate::exec`]).

use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::kmod::DeleteModuleFlags;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use crate::host::Root;
use crate::inventory::{self, Snapshot};
use crate::kernel::{ActError, Kernel};
use crate::loadable::{self, Loadable};
use crate::pci::PciAddr;
use crate::refusal::Reason;
use crate::step::{Act, Expect};
use crate::uses;

/// The first argument that makes the binary a worker. Not a command: no help lists it.
pub const WORKER_ARG: &str = "__worker";

/// PATH of programs we start: what Proxmox gives its daemons (pve-common, PVE/Daemon.pm).
const PATH: &str = "/sbin:/bin:/usr/sbin:/usr/bin";

/// How long a killed worker gets to disappear before it counts as stuck in the kernel. SIGKILL ends anything
/// that is not in an uninterruptible call at once; the rest is scheduling on a loaded host.
const AFTER_KILL: Duration = Duration::from_millis(1000);

/// How often it is looked whether a killed process group has gone.
const GROUP_POLL: Duration = Duration::from_millis(10);

/// Nothing is waited for longer, whatever a deadline says: an `Instant` cannot hold every `Duration`.
const LONGEST_WAIT: Duration = Duration::from_secs(86_400);

/// How much of a program's stderr an error quotes, characters: modprobe says what is wrong in one line.
const STDERR_TAIL: usize = 400;

#[derive(Serialize, Deserialize)]
enum Request {
    Look { stuck: Vec<PciAddr> },
    Loadable { names: Vec<String> },
    Act(Act),
}

#[derive(Serialize, Deserialize)]
enum Reply {
    Snapshot(Box<Snapshot>),
    Loadable(Vec<Loadable>),
    Acted(Result<(), ActError>),
}

/// The running kernel, reached through workers.
#[derive(Debug)]
pub struct Linux {
    started: Instant,
    worker: Option<Worker>,
}

impl Linux {
    /// Starts no worker yet; the first call does.
    pub fn new() -> Self {
        Linux {
            started: Instant::now(),
            worker: None,
        }
    }

    fn ask(&mut self, request: &Request, within: Duration) -> Result<Reply, ActError> {
        let mut worker = match self.worker.take() {
            Some(worker) => worker,
            None => Worker::spawn().map_err(|e| ActError::Failed(format!("cannot start a worker: {e}")))?,
        };
        match worker.ask(request, within) {
            Ok(reply) => {
                self.worker = Some(worker);
                Ok(reply)
            }
            Err(e) if e.kind() == io::ErrorKind::TimedOut => Err(ActError::Overdue {
                within,
                stuck: worker.abandon(),
            }),
            Err(e) => {
                let stuck = worker.abandon();
                let stuck = stuck.map_or(String::new(), |group| format!(", process group {group} is stuck"));
                Err(ActError::Failed(format!("the worker ended: {e}{stuck}")))
            }
        }
    }
}

impl Default for Linux {
    fn default() -> Self {
        Linux::new()
    }
}

impl Kernel for Linux {
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn worker(&self) -> Option<u32> {
        self.worker.as_ref().map(|w| w.child.id())
    }

    fn look(&mut self, stuck: &[PciAddr], within: Duration) -> Result<Snapshot, ActError> {
        let request = Request::Look { stuck: stuck.to_vec() };
        match self.ask(&request, within)? {
            Reply::Snapshot(snapshot) => Ok(*snapshot),
            Reply::Acted(Err(error)) => Err(error),
            _ => Err(another_question()),
        }
    }

    fn loadable(&mut self, names: &[String], within: Duration) -> Result<Vec<Loadable>, ActError> {
        let request = Request::Loadable { names: names.to_vec() };
        match self.ask(&request, within)? {
            Reply::Loadable(answers) => Ok(answers),
            _ => Err(another_question()),
        }
    }

    fn act(&mut self, act: &Act, within: Duration) -> Result<(), ActError> {
        match self.ask(&Request::Act(act.clone()), within)? {
            Reply::Acted(result) => result,
            _ => Err(another_question()),
        }
    }

    fn await_exit(&mut self, pids: &[i32], within: Duration) -> bool {
        await_one(pids, within)
    }
}

fn another_question() -> ActError {
    ActError::Failed("the worker answered another question".to_owned())
}

/// Waits until one of the descriptors is readable or hung up. Signals do not end the wait.
fn poll_readable(fds: &[BorrowedFd<'_>], within: Duration) -> bool {
    let end = Instant::now() + within.min(LONGEST_WAIT);
    loop {
        let left = end.saturating_duration_since(Instant::now());
        // Rounded up, so that a wait of less than a millisecond is no busy loop.
        let timeout = PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX);
        let mut polled: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
        match nix::poll::poll(&mut polled, timeout) {
            Ok(n) if n > 0 => return true,
            _ if left.is_zero() => return false,
            _ => {}
        }
    }
}

/// The parent's end of a worker.
#[derive(Debug)]
struct Worker {
    child: Child,
    requests: ChildStdin,
    replies: ChildStdout,
    buffer: Vec<u8>,
}

impl Worker {
    fn spawn() -> io::Result<Worker> {
        let mut child = Command::new("/proc/self/exe")
            .arg0("gpu-handoff")
            .arg(WORKER_ARG)
            .env_clear()
            .env("PATH", PATH)
            .env("LC_ALL", "C")
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Proxmox waits for the end of our stderr: whatever stays behind must not hold it.
            .stderr(Stdio::null())
            .spawn()?;
        let ends = child.stdin.take().zip(child.stdout.take());
        let (requests, replies) = ends.ok_or_else(|| io::Error::other("no pipes to the worker"))?;
        Ok(Worker {
            child,
            requests,
            replies,
            buffer: Vec::new(),
        })
    }

    fn ask(&mut self, request: &Request, within: Duration) -> io::Result<Reply> {
        let end = Instant::now() + within;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.requests.write_all(&line)?;
        loop {
            if let Some(at) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=at).collect();
                return Ok(serde_json::from_slice(&line)?);
            }
            let left = end.saturating_duration_since(Instant::now());
            if !poll_readable(&[self.replies.as_fd()], left) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let mut chunk = [0; 65536];
            match self.replies.read(&mut chunk)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => self.buffer.extend_from_slice(&chunk[..n]),
            }
        }
    }

    /// Kills the worker and what it started (modprobe). Returns their process group if any of it does not end: it is
    /// stuck in the kernel.
    fn abandon(mut self) -> Option<u32> {
        let group = self.child.id();
        let end = Instant::now() + AFTER_KILL;
        // The worker leads a session of its own; before it has made one, only its own pid works.
        let raw = i32::try_from(group).ok()?;
        let _ = nix::sys::signal::killpg(Pid::from_raw(raw), Signal::SIGKILL);
        let _ = self.child.kill();
        loop {
            let reaped = self.child.try_wait().is_ok_and(|status| status.is_some());
            if reaped && alive_in_group(&Root::real(), group).is_empty() {
                return None;
            }
            if Instant::now() >= end {
                return Some(group);
            }
            // There is no event for the end of somebody else's child.
            std::thread::sleep(GROUP_POLL);
        }
    }
}

/// The processes of a group that have not ended. A zombie has: it only waits for its parent to notice.
pub fn alive_in_group(root: &Root, group: u32) -> Vec<i32> {
    let is_member = |pid: &i32| {
        let stat = root.line(format!("/proc/{pid}/stat")).unwrap_or_default();
        // State, parent, process group behind the name (proc(5)).
        let mut fields = stat
            .rsplit_once(')')
            .map_or("", |(_, rest)| rest)
            .split_ascii_whitespace();
        let ended = fields.next().is_none_or(|state| matches!(state, "Z" | "X"));
        !ended && fields.nth(1) == Some(group.to_string().as_str())
    };
    let processes = root.names("/proc").unwrap_or_default();
    processes
        .iter()
        .filter_map(|name| name.parse().ok())
        .filter(is_member)
        .collect()
}

impl Drop for Worker {
    /// End of requests ends an idle worker; it is reaped where that takes no time.
    fn drop(&mut self) {
        let _ = self.child.try_wait();
    }
}

/// The worker's side: answers requests from stdin until it ends.
///
/// # Errors
/// Where its pipes cannot be read or written, which ends it.
pub fn serve() -> io::Result<()> {
    let _ = nix::unistd::setsid();
    close_inherited()?;
    let root = Root::real();
    let mut stdout = io::stdout().lock();
    for line in BufReader::new(io::stdin()).lines() {
        let reply = match serde_json::from_str(&line?)? {
            Request::Look { stuck } => match inventory::read(&root, &stuck) {
                Ok(snapshot) => Reply::Snapshot(Box::new(snapshot)),
                Err(e) => Reply::Acted(Err(ActError::Failed(format!("cannot read the host: {e}")))),
            },
            Request::Loadable { names } => Reply::Loadable(loadable::read(&root, &names)),
            Request::Act(act) => Reply::Acted(perform(&root, &act)),
        };
        let mut line = serde_json::to_vec(&reply)?;
        line.push(b'\n');
        stdout.write_all(&line)?;
        stdout.flush()?;
    }
    Ok(())
}

/// Closes what the caller of our caller may have left open without close-on-exec.
fn close_inherited() -> io::Result<()> {
    let mut open = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        open.extend(entry?.file_name().to_string_lossy().parse::<i32>());
    }
    for fd in open.into_iter().filter(|fd| *fd > 2) {
        // The directory's own descriptor is among them and is closed already: no error to act on.
        let _ = nix::unistd::close(fd);
    }
    Ok(())
}

/// Carries an act out, unless what it should lead to is so already: every act may be done twice.
fn perform(root: &Root, act: &Act) -> Result<(), ActError> {
    let expect = act.expect();
    if expect != Expect::Nothing && verify(root, &expect).is_ok() {
        return Ok(());
    }
    match act {
        Act::LoadModule { name } => run(&["modprobe", "--", name])?,
        Act::UnloadModule { name } => delete_module(name)?,
        Act::SetOverride { addr, driver } => write_sysfs(
            root,
            &format!("/sys/bus/pci/devices/{addr}/driver_override"),
            &format!("{}\n", driver.as_deref().unwrap_or_default()),
        )?,
        Act::SetAttribute { addr, attribute, value } => write_sysfs(
            root,
            &format!("/sys/bus/pci/devices/{addr}/{}", attribute.name()),
            &format!("{value}\n"),
        )?,
        Act::StopUnit { name } => run(&["systemctl", "stop", "--", name])?,
        Act::StartUnit { name } => run(&["systemctl", "start", "--", name])?,
        Act::ProveFree { addrs } => prove_free(root, addrs)?,
        Act::Unbind { addr, driver } => write_sysfs(
            root,
            &format!("/sys/bus/pci/drivers/{driver}/unbind"),
            &addr.to_string(),
        )?,
        Act::Probe { addr, .. } => write_sysfs(root, "/sys/bus/pci/drivers_probe", &addr.to_string())?,
    }
    verify(root, &expect)
}

/// Looks until nobody uses the functions. Only processes that are ending are waited for, one after the other: on a busy
/// host some process always is, for a moment. The caller's deadline ends a wait that does not.
fn prove_free(root: &Root, addrs: &[PciAddr]) -> Result<(), ActError> {
    loop {
        let snapshot =
            inventory::read_uses(root).map_err(|e| ActError::Failed(format!("cannot read the host: {e}")))?;
        let reasons = uses::use_of(&snapshot, addrs);
        let mut ending = Vec::new();
        for reason in &reasons {
            match reason {
                Reason::Ending(holder) => ending.push(holder.pid),
                reason => return Err(ActError::Failed(reason.to_string())),
            }
        }
        if ending.is_empty() {
            return Ok(());
        }
        await_one(&ending, LONGEST_WAIT);
    }
}

/// Waits until one of these processes has ended. Returns whether one has.
fn await_one(pids: &[i32], within: Duration) -> bool {
    let mut fds = Vec::new();
    for pid in pids {
        let Some(pid) = rustix::process::Pid::from_raw(*pid) else {
            continue;
        };
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => fds.push(fd),
            Err(_) => return true, // it has ended already
        }
    }
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    poll_readable(&fds, within)
}

/// Reads a post-condition back.
fn verify(root: &Root, expect: &Expect) -> Result<(), ActError> {
    let driver = |addr: &PciAddr| root.link_name(format!("/sys/bus/pci/devices/{addr}/driver"));
    let bound = |driver: &Option<String>| match driver {
        Some(driver) => format!("the driver is {driver}"),
        None => "no driver is bound".to_owned(),
    };
    let (reached, observed) = match expect {
        Expect::Nothing => (true, String::new()),
        Expect::Loaded(name) => {
            let module = format!("/sys/module/{}", name.replace('-', "_"));
            let state = root.line(format!("{module}/initstate"));
            // A built-in module has no such file; one that comes or goes is not to be relied on.
            let live = root.exists(&module) && state.is_none_or(|s| s == "live");
            (live, format!("{name} is not loaded"))
        }
        Expect::Override(addr, wanted) => {
            let read = root
                .line(format!("/sys/bus/pci/devices/{addr}/driver_override"))
                .filter(|t| !t.is_empty() && t != "(null)");
            (read == *wanted, Expect::Override(*addr, read).to_string())
        }
        Expect::Attribute(addr, attribute, wanted) => {
            let read = root.line(format!("/sys/bus/pci/devices/{addr}/{}", attribute.name()));
            let read = read.unwrap_or_default();
            (read == *wanted, Expect::Attribute(*addr, *attribute, read).to_string())
        }
        Expect::Unit(name, wanted) => {
            // 0: active or reloading (systemctl(1), is-active).
            let said = root.program(&["systemctl", "is-active", "--quiet", "--", name]);
            let active = said
                .map_err(|e| ActError::Failed(format!("cannot run systemctl: {e}")))?
                .ok;
            (active == *wanted, Expect::Unit(name.clone(), active).to_string())
        }
        Expect::Driver(addr, wanted) => {
            let read = driver(addr);
            (read == *wanted, bound(&read))
        }
        Expect::HostDriver(addr) => {
            let read = driver(addr);
            (read.as_deref().is_some_and(|d| d != "vfio-pci"), bound(&read))
        }
    };
    if reached {
        return Ok(());
    }
    Err(ActError::NotReached {
        expected: expect.to_string(),
        observed,
    })
}

/// One write, nothing else: a second one would be a second act. Never creates and never truncates, as std's
/// `fs::write` would ask for.
fn write_sysfs(root: &Root, path: &str, text: &str) -> Result<(), ActError> {
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).open(root.path(path))?;
        let written = file.write(text.as_bytes())?;
        if written == text.len() {
            return Ok(());
        }
        Err(io::ErrorKind::WriteZero.into())
    };
    write().map_err(|e| ActError::Failed(format!("writing {:?} to {path}: {e}", text.trim_end())))
}

fn delete_module(name: &str) -> Result<(), ActError> {
    let name_c = std::ffi::CString::new(name).map_err(|e| ActError::Failed(e.to_string()))?;
    match nix::kmod::delete_module(&name_c, DeleteModuleFlags::O_NONBLOCK) {
        // Gone already is what was wanted.
        Ok(()) | Err(nix::errno::Errno::ENOENT) => Ok(()),
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EBUSY) => {
            Err(ActError::Failed(format!("the kernel says that {name} is in use")))
        }
        Err(e) => Err(ActError::Failed(format!("unloading {name}: {e}"))),
    }
}

/// Runs a program to its end; an error quotes the end of what it says.
fn run(words: &[&str]) -> Result<(), ActError> {
    let program = words[0];
    let said = Root::real()
        .program(words)
        .map_err(|e| ActError::Failed(format!("cannot run {program}: {e}")))?;
    if said.ok {
        return Ok(());
    }
    let line = crate::report::one_line(&said.stderr);
    let skip = line.chars().count().saturating_sub(STDERR_TAIL);
    let tail: String = line.chars().skip(skip).collect();
    Err(ActError::Failed(format!("{} failed: {tail}", words.join(" "))))
}

#[cfg(test)]
mod tests {
    use super::*;

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
