//! A question to systemd over the socket that it has for root: D-Bus without a bus in between, as `systemctl` asks when root
//! runs it (systemd, src/shared/bus-util.c, `bus_connect_system_systemd`), without the program that would have to be started
//! for that. systemd listens there from its start (src/core/dbus.c, `bus_init_private`) and takes nobody but root
//! (src/shared/bus-util.c, `bus_check_peercred`).
//!
//! The form is that of the D-Bus Specification, 0.43: "Authentication Protocol", "Message Protocol", "Marshaling". It is said
//! in two steps, as sd-bus does (src/libsystemd/sd-bus/bus-socket.c, `bus_socket_start_auth_client`): sd-bus at the other end
//! looks at what came with the authentication only when more comes.
//!
//! Not here: what is asked ([`crate::base::systemd`]).

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::{Errno, read};
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, send, socket_with};

use crate::base::wait::{poll_readable, poll_writable};

/// Where systemd listens.
pub(crate) const SOCKET: &str = "/run/systemd/private";

/// The interface of what systemd does (org.freedesktop.systemd1(5)).
pub(crate) const MANAGER: &str = "org.freedesktop.systemd1.Manager";

/// Who we are: user 0, in hexadecimal digits of its decimal ones.
const HELLO: &[u8] = b"\0AUTH EXTERNAL 30\r\nBEGIN\r\n";

/// Most that is listened to, bytes: an answer is some hundred, and systemd says there unasked what else happens.
const MOST: usize = 64 << 10;

/// The number of our one message.
const SERIAL: u32 = 1;

/// Why there is no answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It was asked, and says no.
    Refused(String),
    /// It has not said anything in time.
    Silent,
    /// It cannot be asked in this way.
    Cannot(String),
}

impl From<Errno> for Failure {
    fn from(error: Errno) -> Failure {
        Failure::Cannot(io::Error::from(error).to_string())
    }
}

/// Calls a method whose arguments are texts. Its answer, where that is a text or a path, also in a variant; nothing where there
/// is none.
///
/// # Errors
/// [`Failure`]. After [`Failure::Silent`] and [`Failure::Cannot`] it may have been done all the same.
pub(crate) fn call(
    socket: &Path,
    interface: &str,
    method: &str,
    args: &[&str],
    within: Duration,
) -> Result<String, Failure> {
    let mut line = Line::to(socket, within)?;
    line.say(HELLO)?;
    let greeting = line.hear_line()?;
    if !greeting.starts_with(b"OK ") {
        return Err(Failure::Cannot("it does not let us in".to_owned()));
    }
    line.say(&message(interface, method, args))?;
    loop {
        match heard(&line.hear_message()?).ok_or_else(no_message)? {
            Heard::Answer(text) => return Ok(text),
            Heard::Refusal(why) => return Err(Failure::Refused(why)),
            Heard::Else => {}
        }
    }
}

fn no_message() -> Failure {
    Failure::Cannot("it says what is no message of D-Bus".to_owned())
}

/// A connection that is kept no longer than until a moment.
struct Line {
    socket: OwnedFd,
    end: Instant,
    /// What has come and was not taken yet.
    heard: Vec<u8>,
    /// How much may still come.
    left: usize,
}

impl Line {
    /// Whoever has no place for us now is not waited for (connect(2), EAGAIN).
    fn to(path: &Path, within: Duration) -> Result<Line, Failure> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(Line {
            socket,
            end: Instant::now() + within,
            heard: Vec::new(),
            left: MOST,
        })
    }

    fn time(&self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }

    fn say(&self, mut bytes: &[u8]) -> Result<(), Failure> {
        while !bytes.is_empty() {
            match send(&self.socket, bytes, SendFlags::NOSIGNAL) {
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if poll_writable(self.socket.as_fd(), self.time()) => {}
                Err(Errno::AGAIN) => return Err(Failure::Silent),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Waits for more.
    fn hear_more(&mut self) -> Result<(), Failure> {
        let mut bytes = [0; 4096];
        loop {
            if poll_readable(&[self.socket.as_fd()], self.time()) != [true] {
                return Err(Failure::Silent);
            }
            match read(&self.socket, &mut bytes) {
                Ok(0) => return Err(Failure::Cannot("it has hung up".to_owned())),
                Ok(count) if count > self.left => return Err(Failure::Cannot("it says too much".to_owned())),
                Ok(count) => {
                    self.left -= count;
                    self.heard.extend_from_slice(&bytes[..count]);
                    return Ok(());
                }
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// The next so many bytes.
    fn take(&mut self, count: usize) -> Result<Vec<u8>, Failure> {
        while self.heard.len() < count {
            self.hear_more()?;
        }
        Ok(self.heard.drain(..count).collect())
    }

    fn hear_line(&mut self) -> Result<Vec<u8>, Failure> {
        loop {
            if let Some(at) = self.heard.windows(2).position(|two| two == b"\r\n") {
                return self.take(at + 2);
            }
            self.hear_more()?;
        }
    }

    fn hear_message(&mut self) -> Result<Vec<u8>, Failure> {
        while self.heard.len() < FIXED {
            self.hear_more()?;
        }
        let length = length(&self.heard).filter(|length| *length <= MOST);
        self.take(length.ok_or_else(no_message)?)
    }
}

/// How long that part of a message is that all have, bytes.
const FIXED: usize = 16;

/// Of the protocol.
const VERSION: u8 = 1;

/// Kinds of messages; the one between is an error.
const CALL: u8 = 1;
const RETURN: u8 = 2;
const SIGNAL: u8 = 4;

/// Codes of header fields.
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const METHOD: u8 = 3;
const REPLY_TO: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

/// A call of a method of the manager's, in the order of bytes that we have ourselves.
fn message(interface: &str, method: &str, args: &[&str]) -> Vec<u8> {
    let mut body = Vec::new();
    for arg in args {
        put_text(&mut body, arg);
    }
    let order = if cfg!(target_endian = "big") { b'B' } else { b'l' };
    let mut message = vec![order, CALL, 0, VERSION];
    put_number(&mut message, body.len());
    message.extend(SERIAL.to_ne_bytes());
    put_number(&mut message, 0); // the length of the fields, which is known below
    for (code, kind, text) in [
        (PATH, b'o', "/org/freedesktop/systemd1"),
        (DESTINATION, b's', "org.freedesktop.systemd1"),
        (INTERFACE, b's', interface),
        (METHOD, b's', method),
    ] {
        pad(&mut message, 8);
        message.extend([code, 1, kind, 0]);
        put_text(&mut message, text);
    }
    pad(&mut message, 8);
    let count = u8::try_from(args.len()).unwrap_or_default();
    message.extend([SIGNATURE, 1, b'g', 0, count]);
    message.extend(args.iter().map(|_| b's'));
    message.push(0);
    let mut length = Vec::new();
    put_number(&mut length, message.len() - FIXED);
    message[12..FIXED].copy_from_slice(&length);
    pad(&mut message, 8);
    message.extend(body);
    message
}

fn pad(bytes: &mut Vec<u8>, to: usize) {
    bytes.resize(bytes.len().next_multiple_of(to), 0);
}

fn put_number(bytes: &mut Vec<u8>, number: usize) {
    pad(bytes, 4);
    bytes.extend(u32::try_from(number).unwrap_or_default().to_ne_bytes());
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    put_number(bytes, text.len());
    bytes.extend(text.as_bytes());
    bytes.push(0);
}

/// How long a message is of which the first [`FIXED`] bytes are there.
fn length(bytes: &[u8]) -> Option<usize> {
    let mut message = Reader::of(bytes)?;
    let body = usize::try_from(message.number()?).ok()?;
    message.number()?;
    let fields = usize::try_from(message.number()?).ok()?;
    fields
        .checked_add(FIXED)?
        .checked_next_multiple_of(8)?
        .checked_add(body)
}

/// What a message is to us.
enum Heard {
    /// Nothing: what has happened, or a question.
    Else,
    /// It was done. What is said to that, if anything is.
    Answer(String),
    /// It was not, and why.
    Refusal(String),
}

/// None: it is no message, or no answer that any of our calls has.
fn heard(message: &[u8]) -> Option<Heard> {
    let mut reader = Reader::of(message)?;
    let (_, _, fields) = (reader.number()?, reader.number()?, reader.number()?);
    let end = usize::try_from(fields).ok()?.checked_add(FIXED)?;
    let (mut reply_to, mut signature) = (None, "");
    while reader.at < end {
        reader.align(8)?;
        match (reader.byte()?, reader.signature()?) {
            (SIGNATURE, "g") => signature = reader.signature()?,
            (code, "u") => {
                let number = reader.number()?;
                reply_to = if code == REPLY_TO { Some(number) } else { reply_to };
            }
            (_, "s" | "o") => _ = reader.text()?,
            _ => return None,
        }
    }
    let kind = message[1];
    if matches!(kind, CALL | SIGNAL) {
        return Some(Heard::Else);
    }
    if reader.at != end || reply_to != Some(SERIAL) {
        return None;
    }
    reader.align(8)?;
    if signature == "v" {
        signature = reader.signature()?;
    }
    let text = match signature {
        "s" | "o" => reader.text()?,
        "" => "",
        _ => return None,
    };
    Some(match kind {
        RETURN => Heard::Answer(text.to_owned()),
        _ => Heard::Refusal(text.to_owned()),
    })
}

/// Reads a message from its front to its end.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    is_big: bool,
}

impl<'a> Reader<'a> {
    /// At the first number, which is the length of the body.
    fn of(bytes: &'a [u8]) -> Option<Reader<'a>> {
        let is_big = match bytes.get(..4)? {
            [b'l', CALL..=SIGNAL, _, VERSION] => false,
            [b'B', CALL..=SIGNAL, _, VERSION] => true,
            _ => return None,
        };
        Some(Reader { bytes, at: 4, is_big })
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(count)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn align(&mut self, to: usize) -> Option<()> {
        self.take(self.at.next_multiple_of(to) - self.at).map(drop)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn number(&mut self) -> Option<u32> {
        self.align(4)?;
        let bytes = self.take(4)?.try_into().ok()?;
        Some(match self.is_big {
            true => u32::from_be_bytes(bytes),
            false => u32::from_le_bytes(bytes),
        })
    }

    /// So many bytes of text, and the zero behind them.
    fn text_of(&mut self, length: usize) -> Option<&'a str> {
        let text = str::from_utf8(self.take(length)?).ok()?;
        (self.byte()? == 0).then_some(text)
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = usize::try_from(self.number()?).ok()?;
        self.text_of(length)
    }

    fn signature(&mut self) -> Option<&'a str> {
        let length = usize::from(self.byte()?);
        self.text_of(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::io::{Read as _, Write as _};
    use std::os::unix::net::{UnixListener, UnixStream};

    /// Long enough for a machine that is busy.
    const GENEROUS: Duration = Duration::from_secs(20);

    const SOON: Duration = Duration::from_millis(100);

    const STATE: [&str; 2] = [MANAGER, "SystemState"];

    const GET: &str = "org.freedesktop.DBus.Properties";

    /// What systemd is asked, byte by byte.
    const QUESTION: &[u8] = b"l\x01\0\x01\x38\0\0\0\x01\0\0\0\x90\0\0\0\
        \x01\x01o\0\x19\0\0\0/org/freedesktop/systemd1\0\0\0\0\0\0\0\
        \x06\x01s\0\x18\0\0\0org.freedesktop.systemd1\0\0\0\0\0\0\0\0\
        \x02\x01s\0\x1f\0\0\0org.freedesktop.DBus.Properties\0\
        \x03\x01s\0\x03\0\0\0Get\0\0\0\0\0\
        \x08\x01g\0\x02ss\0\
        \x20\0\0\0org.freedesktop.systemd1.Manager\0\0\0\0\
        \x0b\0\0\0SystemState\0";

    /// A message of systemd's to us, in either order of bytes.
    fn reply(is_big: bool, kind: u8, to: u32, signature: &str, body: &[u8]) -> Vec<u8> {
        let number = |n: usize| {
            let n = u32::try_from(n).unwrap();
            if is_big { n.to_be_bytes() } else { n.to_le_bytes() }
        };
        let mut fields = vec![REPLY_TO, 1, b'u', 0];
        fields.extend(number(to as usize));
        if !signature.is_empty() {
            fields.extend([SIGNATURE, 1, b'g', 0, u8::try_from(signature.len()).unwrap()]);
            fields.extend(signature.bytes().chain([0]));
        }
        let mut message = vec![if is_big { b'B' } else { b'l' }, kind, 1, 1];
        message.extend(number(body.len()));
        message.extend(number(4711));
        message.extend(number(fields.len()));
        message.extend(fields);
        pad(&mut message, 8);
        message.extend(body);
        message
    }

    /// A text, at the beginning of a body or behind the signature of a variant.
    fn text(is_big: bool, before: &[u8], text: &str) -> Vec<u8> {
        let length = u32::try_from(text.len()).unwrap();
        let mut body = before.to_vec();
        pad(&mut body, 4);
        body.extend(if is_big {
            length.to_be_bytes()
        } else {
            length.to_le_bytes()
        });
        body.extend(text.bytes().chain([0]));
        body
    }

    fn state(is_big: bool, state: &str) -> Vec<u8> {
        reply(is_big, RETURN, SERIAL, "v", &text(is_big, b"\x01s\0", state))
    }

    /// A systemd that lets us in with `greeting`, reads the question and says this; then it hangs up or, `stays`, says no more.
    fn asked(
        greeting: &'static [u8],
        pieces: Vec<Vec<u8>>,
        stays: bool,
    ) -> (Result<String, Failure>, Vec<u8>, Duration) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("private");
        let listener = UnixListener::bind(&socket).unwrap();
        let systemd = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut hello = [0; HELLO.len()];
            stream.read_exact(&mut hello).unwrap();
            assert_eq!(hello, HELLO);
            stream.write_all(greeting).unwrap();
            let mut question = vec![0; QUESTION.len()];
            let read = stream.read(&mut question).unwrap_or_default();
            question.truncate(read);
            for piece in pieces {
                // Who has heard enough has hung up.
                let _ = stream.write_all(&piece);
                std::thread::yield_now();
            }
            if stays {
                let _ = stream.read(&mut [0]);
            }
            question
        });
        let begun = Instant::now();
        let within = if stays { SOON } else { GENEROUS };
        let said = call(&socket, GET, "Get", &STATE, within);
        let took = begun.elapsed();
        (said, systemd.join().unwrap(), took)
    }

    #[test]
    fn what_systemd_says_is_its_answer_in_whatever_form_it_comes() {
        let ok = |text: &str| Ok(text.to_owned());
        let no_message = || Err(no_message());
        let cannot = |why: &str| Err(Failure::Cannot(why.to_owned()));
        let with = |at: usize, byte: u8| {
            let mut message = state(false, "running");
            message[at] = byte;
            message
        };
        let happened = reply(false, SIGNAL, 7, "as", b"\0\0\0\0");
        let refusal = reply(false, 3, SERIAL, "s", &text(false, b"", "Unit x not found."));
        for (case, said, expected) in [
            ("it runs", state(false, "running"), ok("running")),
            ("it is shutting down", state(false, "stopping"), ok("stopping")),
            (
                "its machine has another order of bytes",
                state(true, "stopping"),
                ok("stopping"),
            ),
            (
                "a path",
                reply(false, RETURN, SERIAL, "o", &text(false, b"", "/job/1")),
                ok("/job/1"),
            ),
            ("nothing", reply(false, RETURN, SERIAL, "", b""), ok("")),
            (
                "after what has happened",
                [happened.clone(), state(false, "x")].concat(),
                ok("x"),
            ),
            ("no", refusal, Err(Failure::Refused("Unit x not found.".to_owned()))),
            ("garbage", b"garbage, and more of it".to_vec(), no_message()),
            ("another version", with(3, 2), no_message()),
            ("a kind that there is not", with(1, 5), no_message()),
            ("to another question", reply(false, RETURN, 2, "", b""), no_message()),
            ("numbers", reply(false, RETURN, SERIAL, "u", &[0; 4]), no_message()),
            ("a text beyond its message", with(36, 200), no_message()),
            (
                "a text without its end",
                reply(false, RETURN, SERIAL, "s", b"\x01\0\0\0xx"),
                no_message(),
            ),
            (
                "no text",
                reply(false, RETURN, SERIAL, "s", b"\x01\0\0\0\xff\0"),
                no_message(),
            ),
            ("fields that end in the middle of one", with(12, 14), no_message()),
            ("a field of another type", with(18, b'x'), no_message()),
            ("it is too long", with(6, 2), no_message()),
            (
                "half of it",
                state(false, "running")[..30].to_vec(),
                cannot("it has hung up"),
            ),
            ("nobody", Vec::new(), cannot("it has hung up")),
            (
                "it does not cease",
                happened.repeat(MOST / 32),
                cannot("it says too much"),
            ),
        ] {
            let (answer, question, _) = asked(b"OK 0123456789abcdef\r\n", vec![said.clone()], false);
            assert_eq!(answer, expected, "{case}");
            assert_eq!(question, QUESTION, "{case}");
            let pieces = said.chunks(1).take(MOST / 64).map(<[u8]>::to_vec).collect();
            if said.len() < MOST / 64 {
                assert_eq!(asked(b"OK 0123\r\n", pieces, false).0, expected, "{case}, in pieces");
            }
        }
    }

    #[test]
    fn who_says_nothing_is_waited_for_no_longer_than_asked_for() {
        for (greeting, said) in [
            (&b""[..], vec![]),
            (b"OK 01", vec![]),
            (b"OK 01\r\n", vec![]),
            (b"OK 01\r\n", vec![state(false, "running")[..30].to_vec()]),
        ] {
            let (answer, _, took) = asked(greeting, said, true);
            assert_eq!(answer, Err(Failure::Silent));
            assert!((SOON..GENEROUS).contains(&took), "{took:?}");
        }
    }

    #[test]
    fn who_does_not_let_us_in_is_asked_nothing_and_where_nobody_listens_there_is_an_error() {
        let (answer, question, _) = asked(b"REJECTED EXTERNAL\r\n", vec![], false);
        assert_eq!(answer, Err(Failure::Cannot("it does not let us in".to_owned())));
        assert_eq!(question, b"");
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("private");
        let cannot = |error: io::Error| Err(Failure::Cannot(error.to_string()));
        let ask = || call(&socket, GET, "Get", &STATE, GENEROUS);
        assert_eq!(ask(), cannot(Errno::NOENT.into()));
        // One that takes no more does not keep us (unix(7), the backlog).
        let listener = UnixListener::bind(&socket).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let _first = UnixStream::connect(&socket).unwrap();
        assert_eq!(ask(), cannot(Errno::AGAIN.into()));
        drop(listener);
        assert_eq!(ask(), cannot(Errno::CONNREFUSED.into()));
    }
}
