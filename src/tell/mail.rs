//! A message as text: for Proxmox's notifications a title and a text, and the whole of a mail; pure.

use crate::base::text::{harmless, printable, wrapped};
use crate::tell::events::Event;

/// Columns of a line of a message.
const WIDTH: usize = 72;

/// Longest sentence, bytes: one that is longer has nothing more that a person would read.
const LONGEST: usize = 4096;

/// Longest subject, bytes: with its name before it a line of a mail that need not be folded (RFC 5322, 2.1.1).
const SUBJECT: usize = 120;

/// What is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The host.
    pub host: String,
    /// It in a few words: printable ASCII.
    pub title: String,
    /// Its text: lines that a terminal shows whole.
    pub body: String,
}

impl Message {
    /// That this has happened on this host.
    pub fn of(event: &Event, host: &str) -> Self {
        let host = header(host, 64);
        let mut paragraphs: Vec<String> = Vec::new();
        let mut room = LONGEST;
        for (word, part) in event.text.parts() {
            let part = printable(part, room);
            room -= part.len();
            if !part.is_empty() {
                paragraphs.push(format!("{word}{}.", part.trim_end_matches(['.', ';', ','])));
            }
        }
        paragraphs.push(format!(
            "This is said once. What became of it: 'gpu-handoff status' and 'gpu-handoff history' on {host}. No more messages \
             like this one: notify = \"off\" in /etc/gpu-handoff/config.toml."
        ));
        let lines: Vec<String> = paragraphs.iter().map(|p| wrapped(p, WIDTH).join("\n")).collect();
        Message {
            title: header(&event.title, SUBJECT),
            body: lines.join("\n\n") + "\n",
            host,
        }
    }

    /// As a mail to root, for sendmail(8). It says that a program has made it, so that nobody's absence is answered to it
    /// (RFC 3834, 5).
    pub fn mail(&self) -> String {
        format!(
            "From: root\nTo: root\nSubject: gpu-handoff on {}: {}\nAuto-Submitted: auto-generated\nMIME-Version: 1.0\n\
             Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\n{}",
            self.host, self.title, self.body
        )
    }
}

/// Text for a header: on one line, and of ASCII, which needs no encoding there (RFC 2047).
fn header(text: &str, most: usize) -> String {
    let mut ascii = String::new();
    for c in text.chars() {
        match c.is_ascii() {
            true => ascii.push(c),
            false => ascii.extend(c.escape_default()),
        }
    }
    harmless(&ascii, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::base::deadlines::Budgets;
    use crate::model::named::Named;
    use crate::model::plan::Direction;
    use crate::model::record::{Owner, Record, State, Taken};
    use crate::model::sentence::Sentence;
    use crate::state::history::Handoff;
    use crate::tell::events::{Kind, Seen, events};

    fn event(title: &str, text: &str) -> Event {
        Event {
            kind: Kind::Stranded,
            key: "VM 111 5".to_owned(),
            vmid: None,
            device: "0000:01:00".to_owned(),
            title: title.to_owned(),
            text: Sentence::read(text),
        }
    }

    #[test]
    fn a_mail_has_the_sentence_the_remedy_and_how_to_have_no_more() {
        let event = event(
            "0000:01:00 is stranded (VM 111)",
            "VM 111: the way home failed (0000:01:00.0: bind to nvidia: the driver did not take it); not restored: \
             0000:01:00.0. Hint: see 'journalctl -k' for what the driver says, then run 'gpu-handoff recover'",
        );
        let expected = "\
From: root
To: root
Subject: gpu-handoff on pve: 0000:01:00 is stranded (VM 111)
Auto-Submitted: auto-generated
MIME-Version: 1.0
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: 8bit

VM 111: the way home failed (0000:01:00.0: bind to nvidia: the driver
did not take it); not restored: 0000:01:00.0.

Hint: see 'journalctl -k' for what the driver says, then run
'gpu-handoff recover'.

This is said once. What became of it: 'gpu-handoff status' and
'gpu-handoff history' on pve. No more messages like this one: notify =
\"off\" in /etc/gpu-handoff/config.toml.
";
        assert_eq!(Message::of(&event, "pve").mail(), expected);
    }

    #[test]
    fn a_name_that_has_a_hint_in_it_is_no_hint_of_ours() {
        let mut record = Record::new(Owner::Vm("111".parse().unwrap()), "boot".to_owned(), Budgets::default());
        record.taken.push(Taken::on_nvidia("0000:01:00.0".parse().unwrap()));
        record.state = State::Stranded;
        let who = Named {
            pid: 4242,
            comm: "x Hint: do y".to_owned(),
        };
        let past = [Handoff {
            time: 1_795_249_367,
            boot_id: "boot".to_owned(),
            owner: "VM 111".to_owned(),
            direction: Direction::Home,
            cards: vec!["0000:01:00".to_owned()],
            outcome: format!("{who} does not let go. Hint: end it yourself"),
            took_ms: 5,
            acts: Vec::new(),
            forgotten: None,
        }];
        let events = events(&Seen {
            records: &[record],
            past: &past,
            boot: "boot",
            abandoned: None,
        });
        let body = Message::of(&events[0], "pve").body;
        let expected = "VM 111: process 4242 (x Hint\\u{3a} do y) does not let go.\n\nHint: end it yourself.\n\nThis is said once.";
        assert!(body.starts_with(expected), "{body}");
    }

    #[test]
    fn names_that_others_have_chosen_make_no_header_and_no_line() {
        let hostile = "a\r\nBcc: x@example.org\r\n\r\n.\r\n\u{1b}[2J\u{202e}\u{4e2d}\0b";
        for (title, text, host) in [
            (hostile, "text", "pve"),
            ("title", hostile, "pve"),
            ("title", "text", hostile),
            (&"x".repeat(10_000), &"y".repeat(100_000), &"z".repeat(10_000)),
        ] {
            let mail = Message::of(&event(title, text), host).mail();
            let (headers, body) = mail.split_once("\n\n").unwrap();
            let names: Vec<&str> = headers.lines().map(|l| l.split_once(": ").unwrap().0).collect();
            assert_eq!(
                names.join(" "),
                "From To Subject Auto-Submitted MIME-Version Content-Type Content-Transfer-Encoding"
            );
            assert!(
                headers.chars().all(|c| c == '\n' || c == ' ' || c.is_ascii_graphic()),
                "{headers:?}"
            );
            assert!(headers.lines().all(|l| l.len() < 250), "{headers}");
            assert!(
                !body.chars().any(|c| c.is_control() && c != '\n') && !body.contains('\u{202e}'),
                "{body:?}"
            );
            assert!(body.lines().all(|l| l != "." && l.chars().count() <= WIDTH), "{body:?}");
            assert!(mail.len() < 8192, "{}", mail.len());
        }
    }
}
