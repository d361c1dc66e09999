//! `status --watch`: shows it again whenever something happens, until its reader has gone or a signal comes.
//!
//! ```text
//! the records, the history           inotify(7)
//! devices, drivers, modules          the kernel's messages
//! who opens and closes a GPU's node  inotify(7), of the host's nodes
//! VMs that start and end             inotify(7), of qemu-server's pid files
//! calls that are under way           the ends of their processes
//! ```
//!
//! A container that has nodes of its own tells nobody when it opens one: for that it is looked once a minute.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::time::{Duration, Instant};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::base::clock::{now, utc};
use crate::base::root::Root;
use crate::base::uevents::Uevents;
use crate::base::wait::{pidfds, poll_readable};
use crate::commands::cli::{Cli, Status};
use crate::commands::status::screen;
use crate::execute::linux::Linux;
use crate::host::vms;
use crate::model::error::Error;
use crate::output::print::out_to_reader;
use crate::output::style::Style;
use crate::run::session::Session;
use crate::state::{history, store};

/// What has no event is seen after so long at the latest.
const AT_THE_LATEST: Duration = Duration::from_secs(60);

/// Events come in crowds (a handoff writes its record a dozen times): it is looked when so long none has come ...
const QUIET: Duration = Duration::from_millis(100);

/// ... and not more often than this, so that a tool that opens a GPU again and again has no host busy with it.
const APART: Duration = Duration::from_millis(500);

/// The kernel's messages that count.
const SUBSYSTEMS: [&str; 2] = ["pci", "module"];

/// Shows it until nobody reads any more.
pub(crate) fn run(cli: &Cli, how: &Status) -> Result<(), Error> {
    let mut host = Session::with(Linux::for_looking());
    let style = Style::of_stdout();
    let events = Events::new()?;
    let mut before = None;
    loop {
        // Before the look: what happens meanwhile is an event.
        events.watch();
        let screen = screen(&mut host, cli.json, how, style)?;
        let looked = Instant::now();
        if before.as_ref() != Some(&screen.text) {
            let text = heading(cli, how, style, before.is_none()) + &screen.text;
            let read_on = out_to_reader(&text).map_err(|e| Error::io("writing to stdout", e))?;
            if !read_on {
                return Ok(());
            }
            before = Some(screen.text);
        }
        if !events.wait(&screen.at_calls, looked) {
            return Ok(());
        }
    }
}

/// What stands before it: a terminal is made empty, and elsewhere the time tells one from the next. Programs get neither.
fn heading(cli: &Cli, how: &Status, style: Style, is_first: bool) -> String {
    let now = utc(now());
    match () {
        () if cli.json || (how.plain && !style.wraps) => String::new(),
        () if style.redraws => format!("\x1b[H\x1b[2J{now}, and whenever something changes; Ctrl-C ends it\n\n"),
        () if is_first => format!("{now}\n"),
        () => format!("\n{now}\n"),
    }
}

/// Whatever tells that something has changed.
struct Events {
    files: Inotify,
    uevents: Option<Uevents>,
    /// Standard output, where it is a pipe: its end is one, too.
    reader: Option<OwnedFd>,
}

impl Events {
    fn new() -> Result<Self, Error> {
        let files = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK);
        Ok(Events {
            files: files.map_err(|e| Error::io("watching files", e.into()))?,
            // A container may have no such sockets: the minute counts there.
            uevents: Uevents::listen().ok(),
            reader: reader().ok().flatten(),
        })
    }

    /// Watches whatever is there by now; what is watched already stays so.
    fn watch(&self) {
        let written = AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_DELETE;
        let used = AddWatchFlags::IN_OPEN | AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_CLOSE_NOWRITE;
        let watch = |path: &str, flags| self.files.add_watch(path, flags).is_ok();
        if !watch(store::DIR, written) {
            watch("/run", AddWatchFlags::IN_CREATE | AddWatchFlags::IN_ONESHOT);
        }
        watch(history::DIR, written | AddWatchFlags::IN_MODIFY);
        watch(vms::PID_FILES, written | AddWatchFlags::IN_CREATE);
        let root = Root::real();
        for dir in ["/dev", "/dev/dri", "/dev/vfio", "/dev/vfio/devices"] {
            let names = root.names(dir).unwrap_or_default();
            for name in names.iter().filter(|n| dir != "/dev" || n.starts_with("nvidia")) {
                watch(&format!("{dir}/{name}"), used);
            }
        }
    }

    /// Until something has happened, or for so long as nothing may be missed. Whether anybody reads on.
    fn wait(&self, at_calls: &[i32], looked: Instant) -> bool {
        // One that has ended meanwhile is an event.
        let calls = if at_calls.is_empty() { None } else { pidfds(at_calls) };
        let has_ended = !at_calls.is_empty() && calls.is_none();
        let calls = calls.unwrap_or_default();
        let mut first = has_ended.then(Instant::now);
        loop {
            let now = Instant::now();
            let until = match first {
                // A crowd of them that never ends is looked at all the same.
                Some(first) => (now + QUIET).min(first + APART).max(looked + APART),
                None => looked + AT_THE_LATEST,
            };
            if now >= until {
                return true;
            }
            match self.poll(&calls, first.is_some(), until - now) {
                Event::Gone => return false,
                Event::None => return true,
                Event::Counts => first = first.or_else(|| Some(Instant::now())),
                Event::Other => {}
            }
        }
    }

    /// What comes first within that time. `happened`: an end that is told again and again does not count any more.
    fn poll(&self, calls: &[OwnedFd], happened: bool, within: Duration) -> Event {
        let mut fds: Vec<BorrowedFd<'_>> = vec![self.files.as_fd()];
        fds.extend(self.reader.iter().map(AsFd::as_fd));
        fds.extend(self.uevents.iter().map(AsFd::as_fd));
        let watched = fds.len();
        if !happened {
            fds.extend(calls.iter().map(AsFd::as_fd));
        }
        let ready = poll_readable(&fds, within);
        if !ready.contains(&true) {
            return Event::None;
        }
        if self.reader.is_some() && ready[1] {
            return Event::Gone;
        }
        let files = self.files.read_events().is_ok_and(|events| !events.is_empty());
        let devices = self.uevents.as_ref().is_some_and(|u| u.drain(&SUBSYSTEMS));
        match files || devices || ready[watched..].contains(&true) {
            true => Event::Counts,
            false => Event::Other,
        }
    }
}

enum Event {
    /// Something that may be shown.
    Counts,
    /// Something else.
    Other,
    /// Nothing, in that time.
    None,
    /// Nobody reads any more.
    Gone,
}

/// Standard output, where it is a pipe: that can be read, or is hung up, when its reader has gone.
fn reader() -> io::Result<Option<OwnedFd>> {
    let ours = io::stdout().as_fd().try_clone_to_owned()?;
    let is_pipe = fs::File::from(ours.try_clone()?).metadata()?.file_type().is_fifo();
    Ok(is_pipe.then_some(ours))
}
