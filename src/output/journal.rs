//! Logging: the lines people read on stderr, and the same with fields in the journal where there is one.
//!
//! Levels, from the administrator's point of view:
//! - error: the run did not do what was asked; the last line, a sentence with a hint.
//! - warn: something went wrong that the run could deal with, or that needs a look later.
//! - info: what was done, to which device, how long it took. What a task log should show, no more.
//! - debug: why it was decided so (`-v`).
//!
//! On stderr a line is the message alone. In the journal it carries VMID, PHASE, DEVICE, DURATION_USEC and
//! MESSAGE_ID (`journalctl -t gpu-handoff -o verbose`). A journald that is stuck holds nothing up: it is asked before
//! each line whether it takes one. How many it did not take is said where the next one goes, or on stderr at the end.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::{Data, LookupSpan};

use crate::base::wait::poll_writable;
use crate::output::stderr::Stderr;

/// Where journald listens (sd_journal_print(3)).
const SOCKET: &str = "/run/systemd/journal/socket";

/// How long journald gets to take a line before the line is left out, once: a busy one catches up within milliseconds.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where lines go that are for the journal, once [`init`] has found one.
static JOURNAL: OnceLock<Arc<Journald>> = OnceLock::new();

/// Whether lines are for nobody.
static HUSHED: AtomicBool = AtomicBool::new(false);

/// Which fields each line has in the journal, beside its own: by journald's names.
pub type Fields = Vec<(&'static str, String)>;

/// Has lines said on stderr from `level` up, and all of them in the journal, if there is one. What they are of is the same for all
/// lines of a run, so that there are no spans.
pub fn init(level: LevelFilter, fields: Fields) {
    let level = if stderr_is_journal() { LevelFilter::OFF } else { level };
    let Ok(journald) = Journald::at(Path::new(SOCKET), fields) else {
        // Only a second call could fail, and main makes one.
        let _ = tracing::subscriber::set_global_default(OnStderr { level, most: level });
        return;
    };
    let journal = Journal(Arc::clone(JOURNAL.get_or_init(|| Arc::new(journald))));
    let most = level.max(LevelFilter::DEBUG);
    let _ = tracing::subscriber::set_global_default(OnStderr { level, most }.with(journal));
}

/// From now on nothing goes to the journal: in a child that is no other program.
pub fn hush() {
    HUSHED.store(true, Ordering::Relaxed);
}

/// Says at the end of a run how many lines the journal has not taken, if any and if nobody has said it. `coming` are those
/// that are still to be said: the last line on stderr is to be the one that says how the run ended.
pub fn say_left_out(coming: u64) {
    let Some(journald) = JOURNAL.get().filter(|j| j.left_out.load(Ordering::Relaxed) > 0) else {
        return;
    };
    if (journald.has_a_place() && journald.tell_left_out()) || stderr_is_journal() {
        return;
    }
    let count = journald.left_out.swap(0, Ordering::Relaxed) + coming;
    let _ = Stderr.write_all(format!("gpu-handoff: warning: {}\n", left_out(count)).as_bytes());
}

fn left_out(count: u64) -> String {
    match count {
        1 => "1 line was not taken by the journal".to_owned(),
        count => format!("{count} lines were not taken by the journal"),
    }
}

/// Lines on stderr from a level up.
struct OnStderr {
    level: LevelFilter,
    /// Up to where anybody is to be told.
    most: LevelFilter,
}

impl Subscriber for OnStderr {
    fn enabled(&self, what: &Metadata<'_>) -> bool {
        *what.level() <= self.most
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.most)
    }

    /// A line is its message, with a word before it where it is bad news.
    fn event(&self, event: &Event<'_>) {
        let level = *event.metadata().level();
        if level > self.level {
            return;
        }
        let mut message = Message(String::new());
        event.record(&mut message);
        let word = match level {
            Level::ERROR => "error: ",
            Level::WARN => "warning: ",
            _ => "",
        };
        let _ = Stderr.write_all(format!("gpu-handoff: {word}{}\n", message.0).as_bytes());
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// There are none: what tracing-journald asks for.
impl<'a> LookupSpan<'a> for OnStderr {
    type Data = Data<'a>;

    fn span_data(&'a self, _: &Id) -> Option<Data<'a>> {
        None
    }
}

/// tracing-journald's layer, made when journald first takes a line: it sends one when it is made.
struct Journal(Arc<Journald>);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        if *event.metadata().level() > Level::DEBUG || !self.0.takes() {
            return;
        }
        self.0.tell_left_out();
        if let Some(layer) = self.0.layer.get() {
            layer.on_event(event, context);
        }
    }
}

/// Another end of journald's socket, to see whether a line would be taken: the layer's own would wait for a place in the
/// queue without a bound.
struct Journald {
    socket: UnixDatagram,
    /// For each line.
    fields: Fields,
    layer: OnceLock<tracing_journald::Layer>,
    stuck: AtomicBool,
    /// Lines that were not taken and of which nothing is said yet.
    left_out: AtomicU64,
}

impl Journald {
    fn at(path: &Path, fields: Fields) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        socket.set_nonblocking(true)?;
        Ok(Journald {
            socket,
            fields,
            layer: OnceLock::new(),
            stuck: AtomicBool::new(false),
            left_out: AtomicU64::new(0),
        })
    }

    /// Whether there is a layer, and a place in journald's queue. A line is counted where there is none.
    fn takes(&self) -> bool {
        if HUSHED.load(Ordering::Relaxed) {
            return false;
        }
        let has_layer =
            || self.layer.get().is_some() || make_layer(&self.fields).is_ok_and(|l| self.layer.set(l).is_ok());
        let takes = self.has_a_place() && has_layer();
        self.left_out.fetch_add(u64::from(!takes), Ordering::Relaxed);
        takes
    }

    /// Tells the journal how many lines it has not taken, if any. Not as an event, which cannot be made while another one is
    /// on its way: by journald's own protocol (systemd.io, JOURNAL_NATIVE_PROTOCOL). Returns whether it has taken this one.
    fn tell_left_out(&self) -> bool {
        let count = self.left_out.swap(0, Ordering::Relaxed);
        if count == 0 {
            return true;
        }
        let fields = format!(
            "PRIORITY=4\nSYSLOG_IDENTIFIER=gpu-handoff\nMESSAGE={}\n",
            left_out(count)
        );
        let taken = self.socket.send(fields.as_bytes()).is_ok();
        if !taken {
            self.left_out.fetch_add(count, Ordering::Relaxed);
        }
        taken
    }

    /// Waits for a place once; from then on until there is one, no more.
    fn has_a_place(&self) -> bool {
        let was_stuck = self.stuck.load(Ordering::Relaxed);
        let patience = if was_stuck { Duration::ZERO } else { PATIENCE };
        // A connected datagram socket is writable when the other end's queue has a place (linux, net/unix/af_unix.c,
        // unix_dgram_poll).
        let takes = poll_writable(self.socket.as_fd(), patience);
        self.stuck.store(!takes, Ordering::Relaxed);
        if !takes && !was_stuck && !stderr_is_journal() {
            // Not as an event, which would come here again.
            let _ = Stderr.write_all(b"gpu-handoff: warning: journald takes no lines: they are only here\n");
        }
        takes
    }
}

/// The layer, whose socket is made one that does not wait: somebody else may take the last place after we have looked, and
/// what one sender may have under way is bounded, too. Its own first line, an empty one, is the exception; systemd ends a
/// journald that does nothing after three minutes (systemd-journald.service, WatchdogSec).
fn make_layer(fields: &Fields) -> io::Result<tracing_journald::Layer> {
    let before = sockets()?;
    let layer = tracing_journald::layer()?;
    if let [new] = sockets()?.difference(&before).collect::<Vec<_>>().as_slice() {
        // Where it may not be done the look before each line has to do.
        let _ = set_nonblocking(**new);
    }
    Ok(layer
        .with_syslog_identifier("gpu-handoff".to_owned())
        .with_field_prefix(None)
        .with_custom_fields(fields.iter().map(|(name, value)| (*name, value))))
}

/// The numbers of our sockets.
fn sockets() -> io::Result<BTreeSet<i32>> {
    let mut numbers = BTreeSet::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        let to = std::fs::read_link(entry.path()).unwrap_or_default();
        if to.to_string_lossy().starts_with("socket:") {
            numbers.extend(entry.file_name().to_string_lossy().parse::<i32>());
        }
    }
    Ok(numbers)
}

/// By way of a second descriptor, since the first is somebody else's: they share the flag (fcntl(2), F_SETFL).
fn set_nonblocking(number: i32) -> io::Result<()> {
    let ourselves = pidfd_open(getpid(), PidfdFlags::empty())?;
    let second = pidfd_getfd(ourselves, number, PidfdGetfdFlags::empty())?;
    fcntl_setfl(&second, fcntl_getfl(&second)? | OFlags::NONBLOCK)?;
    Ok(())
}

/// Whether stderr leads to the journal, as in a unit: each line would be there twice (systemd.exec(5), $JOURNAL_STREAM).
fn stderr_is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    let stat = rustix::fs::fstat(std::io::stderr());
    stat.is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::time::Instant;
    /// Fills the queue of a journald: each sender may have so much under way, and the queue has so many places. Returns how
    /// many lines wait in it.
    fn fill(path: &Path) -> (usize, Vec<UnixDatagram>) {
        let (mut waiting, mut senders) = (0, Vec::new());
        loop {
            let other = UnixDatagram::unbound().unwrap();
            other.set_nonblocking(true).unwrap();
            let sent = (0..).take_while(|_| other.send_to(b"line", path).is_ok()).count();
            waiting += sent;
            senders.push(other);
            if sent == 0 {
                return (waiting, senders);
            }
        }
    }

    #[test]
    fn lines_that_were_not_taken_are_counted_and_told_with_the_next_that_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let journald = UnixDatagram::bind(&path).unwrap();
        journald.set_nonblocking(true).unwrap();
        let ours = Journald::at(&path, Fields::new()).unwrap();
        let (waiting, _senders) = fill(&path);
        for _ in 0..3 {
            assert!(!ours.takes());
        }
        assert!(!ours.tell_left_out());
        let mut bytes = [0; 200];
        for _ in 0..waiting {
            journald.recv(&mut bytes).unwrap();
        }
        assert!(ours.tell_left_out());
        let length = journald.recv(&mut bytes).unwrap();
        assert_eq!(
            std::str::from_utf8(&bytes[..length]).unwrap(),
            "PRIORITY=4\nSYSLOG_IDENTIFIER=gpu-handoff\nMESSAGE=3 lines were not taken by the journal\n"
        );
        assert!(ours.tell_left_out());
        assert!(journald.recv(&mut bytes).is_err(), "it was told twice");
        assert_eq!(left_out(1), "1 line was not taken by the journal");
    }

    #[test]
    fn a_journald_that_is_stuck_is_waited_for_once_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let journald = UnixDatagram::bind(&path).unwrap();
        let ours = Journald::at(&path, Fields::new()).unwrap();
        assert!(ours.has_a_place());
        let (waiting, _senders) = fill(&path);
        assert!(!ours.has_a_place());
        let start = Instant::now();
        for _ in 0..100 {
            assert!(!ours.has_a_place());
        }
        assert!(start.elapsed() < PATIENCE * 10, "it was waited for again");
        for _ in 0..waiting {
            journald.recv(&mut [0; 8]).unwrap();
        }
        assert!(ours.has_a_place());
    }

    #[test]
    fn a_socket_that_is_somebody_elses_is_made_not_to_wait() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let _nobody_reads = UnixDatagram::bind(&path).unwrap();
        let theirs = UnixDatagram::unbound().unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&theirs);
        assert!(sockets().unwrap().contains(&number));
        set_nonblocking(number).unwrap();
        let failed = (0..).find_map(|_| theirs.send_to(b"line", &path).err()).unwrap();
        assert_eq!(failed.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn without_a_journald_there_is_none() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Journald::at(&dir.path().join("socket"), Fields::new()).is_err());
    }
}
