//! Reading files of the host below a root that is a parameter: `/` in a real run, a fixture tree in tests.
//!
//! Only reads, and only what a file says; meaning is given to it by [`crate::host::snapshot`] and
//! [`crate::host::holders`]. Writes to the host are acts and go through [`crate::execute::kernel`].

use std::io::Read as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::{fs, io};

use rustix::fs::{OFlags, fcntl_setfl, makedev};
use rustix::io::{Errno, read};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::base::program::command;
use crate::base::recording::{Entries, Recorder, as_on_host, folded, program_file, said_in};
use crate::base::wait::{LONGEST_WAIT, poll_readable};

/// Longest file read, bytes. The longest there is in practice is /proc/PID/maps of a process with as many mappings as
/// the kernel allows (vm.max_map_count, 65530 by default), some 10 MB. A bound, so that a broken mount cannot fill the
/// memory.
const LONGEST: u64 = 256 << 20;

/// The room for a file at first, bytes: as much as most of the kernel's need.
const SHORT: usize = 1 << 10;

/// The room that there is at least for a file of the kernel's, bytes: more than most have.
const ROOM: usize = 64 << 10;

/// Longest configuration file that is read, bytes: such a file is written by hand.
const LONGEST_CONFIG: u64 = 1 << 20;

/// Most of a program's answer that is listened to, bytes.
const MOST_HEARD: usize = 1 << 20;

/// What a program said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// It ended with exit status 0.
    pub ok: bool,
    /// Its exit status; None where a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// A root directory below which the host's files are read.
#[derive(Clone, Debug)]
pub struct Root {
    at: PathBuf,
    /// Keeps what is looked at, for who wants to look at it again elsewhere.
    recorder: Option<Arc<Recorder>>,
}

impl Root {
    /// The host itself.
    pub fn real() -> Self {
        Root::at("/")
    }

    /// A tree that looks like a host, for tests and `--root`.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Root {
            at: path.into(),
            recorder: None,
        }
    }

    /// The same, and whatever is looked at from now on is kept.
    #[must_use]
    pub fn recording(self) -> Self {
        Root {
            recorder: Some(Arc::default()),
            ..self
        }
    }

    /// What was looked at since this was asked the last time; nothing of a root that does not keep it.
    pub fn recorded(&self) -> Entries {
        let recorder = self.recorder.as_ref();
        recorder.map_or_else(Entries::new, |recorder| recorder.take(&self.at))
    }

    /// What no file of the host's says goes into one of the tree's, where what is looked at is kept.
    pub fn tell(&self, path: &str, text: impl FnOnce() -> Vec<u8>) {
        if let Some(recorder) = &self.recorder {
            recorder.tell(path, text());
        }
    }

    /// Whether this is the running host.
    pub fn is_real(&self) -> bool {
        self.at == Path::new("/")
    }

    /// The path of `path` (absolute, as on the host) below this root. Of a tree it is in the tree, whoever has thought of it.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        if let Some(recorder) = &self.recorder {
            recorder.seen(path);
        }
        let leads_up = path.components().any(|c| c == Component::ParentDir);
        if leads_up && !self.is_real() {
            let folded = folded(&path.to_string_lossy());
            return self.at.join(folded.trim_start_matches('/'));
        }
        self.at.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Opens a file. A pipe among the files that somebody keeps is opened at once, too, and a read of one that has nothing to
    /// say fails: who has its other end may never say anything. An attribute of a device takes the time it takes, and a file of
    /// pmxcfs's: no pipe can be in either file system.
    fn open(&self, path: impl AsRef<Path>) -> io::Result<fs::File> {
        let takes_time = ["/sys", "/etc/pve"].iter().any(|at| path.as_ref().starts_with(at));
        let flags = match takes_time {
            true => OFlags::NOCTTY,
            false => OFlags::NONBLOCK | OFlags::NOCTTY,
        };
        let mut options = fs::OpenOptions::new();
        options.read(true).custom_flags(flags.bits().cast_signed());
        options.open(self.path(path))
    }

    /// The file's bytes.
    ///
    /// # Errors
    /// Those of reading, WouldBlock for a pipe that somebody has open.
    pub fn bytes(&self, path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
        // Room for most of them at once: with none, a read of 32 bytes comes first, and then twice as much each time.
        let mut bytes = Vec::with_capacity(SHORT);
        self.open(&path)?.take(LONGEST).read_to_end(&mut bytes)?;
        self.was_read(path.as_ref(), &bytes);
        Ok(bytes)
    }

    /// Whether it keeps what is looked at, so that all of it has to be looked at in the way in which it will be read again.
    pub fn is_recording(&self) -> bool {
        self.recorder.is_some()
    }

    /// The file's bytes, into a buffer that is used again and again: nothing of what was in it before, and of a file that
    /// cannot be read nothing. Of files of the kernel's, which do not say how long they are.
    ///
    /// # Errors
    /// Those of reading.
    pub fn read_into(&self, path: impl AsRef<Path>, bytes: &mut Vec<u8>) -> io::Result<()> {
        bytes.clear();
        bytes.reserve(ROOM);
        let read = self.open(&path)?.take(LONGEST).read_to_end(bytes);
        if let Err(e) = read {
            bytes.clear();
            return Err(e);
        }
        self.was_read(path.as_ref(), bytes);
        Ok(())
    }

    fn was_read(&self, path: &Path, bytes: &[u8]) {
        if let Some(recorder) = &self.recorder {
            recorder.read(path, bytes);
        }
    }

    /// The bytes of a configuration file: of a file that ends, and is no longer than a megabyte. Of /dev/null, to which such
    /// a file is linked that is not to count, there are none.
    ///
    /// # Errors
    /// Those of reading; FileTooLarge; InvalidInput for a pipe, a socket, a device, which might never answer.
    pub fn config(&self, path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
        let file = self.open(&path)?;
        let metadata = file.metadata()?;
        let kind = metadata.file_type();
        if kind.is_char_device() && metadata.rdev() == makedev(1, 3) {
            return Ok(Vec::new());
        }
        if kind.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        if !kind.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
        }
        let mut bytes = Vec::new();
        file.take(LONGEST_CONFIG + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > LONGEST_CONFIG {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                "it has more than a megabyte, as no such file has",
            ));
        }
        self.was_read(path.as_ref(), &bytes);
        Ok(bytes)
    }

    /// The text of a file that is one and no pipe, up to so many bytes.
    ///
    /// # Errors
    /// Those of reading, and where it is no file.
    pub fn text_up_to(&self, path: impl AsRef<Path>, most: u64) -> io::Result<String> {
        let file = self.open(&path)?;
        // A pipe that somebody has put there has no end.
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is no file"));
        }
        let mut bytes = Vec::new();
        file.take(most).read_to_end(&mut bytes)?;
        self.was_read(path.as_ref(), &bytes);
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Where a symbolic link leads, as it was written on the host.
    ///
    /// # Errors
    /// Those of readlink(2).
    pub fn link(&self, path: impl AsRef<Path>) -> io::Result<String> {
        let target = fs::read_link(self.path(&path))?.to_string_lossy().into_owned();
        Ok(match self.is_real() {
            true => target,
            false => as_on_host(&path.as_ref().to_string_lossy(), &target),
        })
    }

    /// The first bytes of a file, at most so many, in one read.
    ///
    /// # Errors
    /// Those of reading.
    pub fn bytes_up_to(&self, path: impl AsRef<Path>, most: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; most];
        let n = self.open(&path)?.read(&mut bytes)?;
        bytes.truncate(n);
        self.was_read(path.as_ref(), &bytes);
        Ok(bytes)
    }

    /// The file's text; bytes that are no UTF-8 become replacement characters.
    pub fn text(&self, path: impl AsRef<Path>) -> io::Result<String> {
        Ok(String::from_utf8_lossy(&self.bytes(path)?).into_owned())
    }

    /// The file's first line without its end, or None where the file is not there or not readable.
    ///
    /// For attributes that a kernel or a device may simply not have; where the difference between "absent" and
    /// "unreadable" matters, use [`Root::text`].
    pub fn line(&self, path: impl AsRef<Path>) -> Option<String> {
        let text = self.text(path).ok()?;
        Some(text.lines().next().unwrap_or("").trim_end().to_owned())
    }

    /// The last component of where a symbolic link points to, as sysfs uses links: `driver` -> `nvidia`.
    pub fn link_name(&self, path: impl AsRef<Path>) -> Option<String> {
        let target = fs::read_link(self.path(path)).ok()?;
        Some(target.file_name()?.to_string_lossy().into_owned())
    }

    /// The last but one component of where a symbolic link points to: the device above, for a link of a bus to its
    /// device.
    pub fn link_parent(&self, path: impl AsRef<Path>) -> Option<String> {
        let target = fs::read_link(self.path(path)).ok()?;
        Some(target.parent()?.file_name()?.to_string_lossy().into_owned())
    }

    /// Where a symbolic link leads to in the end, by its last component.
    pub fn resolved_name(&self, path: impl AsRef<Path>) -> Option<String> {
        let target = fs::canonicalize(self.path(path)).ok()?;
        Some(target.file_name()?.to_string_lossy().into_owned())
    }

    /// What a program of the host says: its standard output and error, and whether it ended with 0.
    ///
    /// Below another root than `/` the answer is a file `programs/WORDS`, the words with blanks between them and `!`
    /// for each `/` ([`program_file`]): recorded standard output, of a program that ended well; or `programs/failed/WORDS`:
    /// recorded standard error, of one that did not.
    ///
    /// There is no deadline here: it is run in a worker, which has one. What it has left running is not waited for. Of what it says a megabyte is heard; one that says
    /// more, as a container's may, finds nobody who listens.
    ///
    /// # Errors
    /// Where it cannot be started, or no answer was recorded.
    pub fn program(&self, words: &[&str]) -> io::Result<Said> {
        self.program_for(words, None)
    }

    /// The same for somebody: the program is ended when that descriptor can be read or is hung up.
    ///
    /// # Errors
    /// As [`Root::program`], and where it was ended.
    pub fn program_for(&self, words: &[&str], asked_by: Option<BorrowedFd<'_>>) -> io::Result<Said> {
        if !self.is_real() {
            let words = words.join(" ");
            let name = program_file(&words);
            let said = |text: &str| said_in(&name, &words, text).map(str::to_owned);
            if let Some(stderr) = self
                .text(format!("/programs/failed/{name}"))
                .ok()
                .as_deref()
                .and_then(said)
            {
                return Ok(Said {
                    stderr,
                    ..Said::default()
                });
            }
            let stdout = said(&self.text(format!("/programs/{name}"))?).ok_or(io::ErrorKind::NotFound)?;
            return Ok(Said {
                ok: true,
                code: Some(0),
                stdout,
                stderr: String::new(),
            });
        }
        let mut child = command(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut pipes = [Pipe::of(child.stdout.take())?, Pipe::of(child.stderr.take())?];
        let pid = i32::try_from(child.id()).unwrap_or_default();
        let end = hear(pid, &mut pipes, asked_by);
        if end != Ok(End::OfItself) {
            let _ = child.kill();
        }
        let status = child.wait()?;
        if let Err(why) = end {
            return Err(why.into());
        }
        if end == Ok(End::NotAwaited) {
            return Err(io::Error::other("who has asked for it has gone"));
        }
        let [stdout, stderr] = pipes.map(Pipe::text);
        let said = Said {
            ok: status.success(),
            code: status.code(),
            stdout,
            stderr,
        };
        let file = words.join(" ").replace('/', "!");
        match said.ok {
            true => self.tell(&format!("/programs/{file}"), || said.stdout.clone().into_bytes()),
            false => self.tell(&format!("/programs/failed/{file}"), || said.stderr.clone().into_bytes()),
        }
        Ok(said)
    }

    /// Whether something is there (links followed).
    pub fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.path(path).exists()
    }

    /// The names in a directory, sorted; none where the directory is not there.
    ///
    /// # Errors
    /// Any error but "not found".
    pub fn names(&self, path: impl AsRef<Path>) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(self.path(&path)) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        let mut names = Vec::new();
        for entry in entries {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort_unstable();
        if let Some(recorder) = &self.recorder {
            recorder.listed(path.as_ref(), &names);
        }
        Ok(names)
    }
}

/// How a program's time was over.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// It has ended.
    OfItself,
    /// Who has asked for it has gone.
    NotAwaited,
}

/// The end of a pipe that a program writes to, and what was heard of it.
struct Pipe {
    from: Option<OwnedFd>,
    heard: Vec<u8>,
}

impl Pipe {
    fn of(pipe: Option<impl Into<OwnedFd>>) -> io::Result<Pipe> {
        let from: Option<OwnedFd> = pipe.map(Into::into);
        if let Some(from) = &from {
            fcntl_setfl(from, OFlags::NONBLOCK)?;
        }
        Ok(Pipe {
            from,
            heard: Vec::new(),
        })
    }

    /// Takes what there is, as far as it is listened to; who says more finds nobody who does.
    fn take(&mut self) {
        let mut bytes = [0; 65536];
        while let Some(from) = &self.from {
            match read(from, &mut bytes) {
                Ok(count @ 1..) if self.heard.len() + count <= MOST_HEARD => {
                    self.heard.extend_from_slice(&bytes[..count]);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Ok(count) => {
                    let left = MOST_HEARD - self.heard.len();
                    self.heard.extend_from_slice(&bytes[..count.min(left)]);
                    self.from = None;
                }
                Err(_) => self.from = None,
            }
        }
    }

    fn text(self) -> String {
        String::from_utf8_lossy(&self.heard).into_owned()
    }
}

/// Listens to a program until it has ended, or who has asked for it has gone. What has come by then is all: a child of its may have
/// the pipes open for as long as it likes.
fn hear(pid: i32, pipes: &mut [Pipe; 2], asked_by: Option<BorrowedFd<'_>>) -> Result<End, Errno> {
    let process = pidfd_open(Pid::from_raw(pid).ok_or(Errno::SRCH)?, PidfdFlags::empty())?;
    loop {
        let mut fds = vec![process.as_fd()];
        fds.extend(asked_by);
        let said = fds.len();
        fds.extend(pipes.iter().filter_map(|pipe| pipe.from.as_ref()).map(AsFd::as_fd));
        let ready = poll_readable(&fds, LONGEST_WAIT);
        for pipe in pipes.iter_mut() {
            pipe.take();
        }
        match &ready[..said] {
            [true, ..] => return Ok(End::OfItself),
            [_, true] => return Ok(End::NotAwaited),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::os::unix::fs::symlink;

    use std::time::{Duration, Instant};

    use nix::sys::signal::{SigSet, Signal, kill};

    use crate::base::recording::What;

    #[test]
    fn a_program_is_not_deaf_to_the_signals_that_we_have_blocked() {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGTERM);
        signals.thread_block().unwrap();
        let said = Root::real().program(&["grep", "SigBlk", "/proc/self/status"]).unwrap();
        signals.thread_unblock().unwrap();
        assert_eq!((said.ok, said.stdout.trim()), (true, "SigBlk:\t0000000000000000"));
    }

    /// Nothing ever comes from one that somebody keeps open, as logind has one for each session.
    #[test]
    fn a_pipe_among_the_files_keeps_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let root = Root::at(dir.path());
        assert_eq!(root.bytes("/pipe").unwrap(), b"", "nobody has it open");
        let _writer = fs::OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
        let mut bytes = Vec::new();
        for read in [
            root.bytes("/pipe").map(drop),
            root.bytes_up_to("/pipe", 4).map(drop),
            root.read_into("/pipe", &mut bytes),
        ] {
            assert_eq!(read.unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
    }

    /// What is run in a container can keep its end of a pipe open, and outlive who is killed for it.
    #[test]
    fn what_a_program_leaves_running_is_not_waited_for() {
        let children = |said: &str| {
            let pid: i32 = said.lines().next().unwrap().parse().unwrap();
            kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        };
        let begun = Instant::now();
        let said = Root::real()
            .program(&["sh", "-c", "sleep 600 & echo $!; echo err >&2"])
            .unwrap();
        let took = begun.elapsed();
        children(&said.stdout);
        assert_eq!((said.ok, said.stderr.as_str()), (true, "err\n"));
        assert!(took < Duration::from_secs(60), "{took:?}");

        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("child");
        let script = format!("sleep 600 & echo $! >{0}.new; mv {0}.new {0}; wait", file.display());
        let (asked_by, asks) = io::pipe().unwrap();
        let leaves = std::thread::spawn({
            let file = file.clone();
            move || {
                while !file.exists() {
                    std::thread::sleep(Duration::from_millis(10));
                }
                drop(asks);
            }
        });
        let begun = Instant::now();
        let error = Root::real().program_for(&["sh", "-c", &script], Some(asked_by.as_fd()));
        let took = begun.elapsed();
        leaves.join().unwrap();
        children(&fs::read_to_string(&file).unwrap());
        assert_eq!(error.unwrap_err().to_string(), "who has asked for it has gone");
        assert!(took < Duration::from_secs(60), "{took:?}");
    }

    #[test]
    fn of_a_program_that_does_not_cease_to_talk_a_megabyte_is_heard() {
        let said = Root::real().program(&["sh", "-c", "yes; echo end >&2"]).unwrap();
        assert_eq!((said.stdout.len(), said.stderr.as_str()), (MOST_HEARD, "end\n"));
    }

    fn text(entries: &Entries, path: &str) -> Option<String> {
        match &entries.get(path)?.what {
            What::Dir => Some("dir".to_owned()),
            What::Text(text) => Some(text.clone()),
            What::Bytes(bytes) => Some(format!("{bytes:?}")),
            What::Link(target) => Some(format!("-> {target}")),
        }
    }

    #[test]
    fn what_was_looked_at_is_kept_by_its_place_and_what_was_not_read_without_its_text() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &[u8]| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("sys/devices/card/class", b"0x030000\n");
        write("sys/devices/card/config", b"\xde\x10rest");
        write("sys/devices/card/unasked", b"1");
        write("boot/initrd.img-1", b"long");
        write("proc/12/stat", b"secret");
        write("proc/modules", b"nvidia 1\n");
        fs::create_dir_all(dir.path().join("sys/bus")).unwrap();
        symlink("../devices/card", dir.path().join("sys/bus/card")).unwrap();
        symlink("/boot/initrd.img-1", dir.path().join("boot/initrd")).unwrap();
        symlink("../sys/../sys/devices", dir.path().join("boot/odd")).unwrap();
        let root = Root::at(dir.path()).recording();
        assert_eq!(root.line("/sys/bus/card/class").as_deref(), Some("0x030000"));
        assert_eq!(root.bytes_up_to("/sys/bus/card/config", 2).unwrap(), b"\xde\x10");
        assert_eq!(root.line("/sys/bus/card/absent"), None);
        assert_eq!(root.names("/boot").unwrap(), ["initrd", "initrd.img-1", "odd"]);
        root.text("/proc/12/stat").unwrap();
        root.text("/proc/modules").unwrap();
        root.tell("/told.json", || b"{}".to_vec());
        let entries = root.recorded();
        for (path, expected) in [
            ("/sys/bus/card", Some("-> ../devices/card")),
            ("/sys/devices/card", Some("dir")),
            ("/sys/devices/card/class", Some("0x030000\n")),
            ("/sys/devices/card/config", Some("[222, 16]")),
            ("/sys/devices/card/unasked", None),
            ("/sys/devices/card/absent", None),
            ("/boot/initrd.img-1", Some("")),
            ("/boot/initrd", Some("-> ../boot/initrd.img-1")),
            ("/boot/odd", Some("-> ../sys/devices")),
            ("/proc/12/stat", None),
            ("/proc/modules", Some("nvidia 1\n")),
            ("/told.json", Some("{}")),
        ] {
            assert_eq!(text(&entries, path).as_deref(), expected, "{path}");
        }
        assert_eq!(root.recorded(), Entries::new());
    }
}
