//! What was told already: below /run beside the records, so that it outlives a process and not the boot.

use std::io;
use std::path::Path;

use crate::base::files::replace;
use crate::tell::events::{Event, Kind};

/// Its folder; a lock in it is held by who tells, so that two do not tell the same.
pub const DIR: &str = "/run/gpu-handoff/tell";

/// Its file.
const FILE: &str = "told";

/// How many events are remembered: far more than there are at a time, and few enough to be read at once.
const MOST: usize = 200;

/// What a line begins with of an event that nobody has taken so far.
const UNSENT: &str = "unsent ";

/// An event that is in the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
struct One {
    kind: Kind,
    key: String,
    /// Every way to send it has refused it: it is tried again.
    is_unsent: bool,
}

/// Events that were told, the oldest first: a line each, the kind and the key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told(Vec<One>);

impl Told {
    /// What is in the file; a line that is none is left out.
    fn parse(text: &str) -> Self {
        let line = |line: &str| {
            let unsent = line.strip_prefix(UNSENT);
            let (word, key) = unsent.unwrap_or(line).split_once(' ')?;
            let kind = Kind::ALL.into_iter().find(|kind| kind.word() == word)?;
            let (key, is_unsent) = (key.to_owned(), unsent.is_some());
            Some(One { kind, key, is_unsent })
        };
        Told(text.lines().filter_map(line).collect())
    }

    fn text(&self) -> String {
        let line = |one: &One| {
            let unsent = if one.is_unsent { UNSENT } else { "" };
            format!("{unsent}{} {}\n", one.kind.word(), one.key)
        };
        self.0.iter().map(line).collect()
    }

    /// What was told, by the file in this folder; nothing where it is not there.
    ///
    /// # Errors
    /// Those of reading.
    pub fn read(dir: &Path) -> io::Result<Self> {
        match std::fs::read_to_string(dir.join(FILE)) {
            Ok(text) => Ok(Told::parse(&text)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Told::default()),
            Err(e) => Err(e),
        }
    }

    /// Puts it into the file in this folder.
    ///
    /// # Errors
    /// Those of writing.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        replace(&dir.join(FILE), self.text().as_bytes())
    }

    /// Those of these events that are news, which count as told from now on: nothing as bad was told of the same.
    #[must_use]
    pub fn news(&mut self, events: Vec<Event>) -> Vec<Event> {
        let is_told = |event: &Event| self.0.iter().any(|one| one.key == event.key && one.kind >= event.kind);
        let news: Vec<Event> = events.into_iter().filter(|event| !is_told(event)).collect();
        self.0.extend(news.iter().map(|event| One {
            kind: event.kind,
            key: event.key.clone(),
            is_unsent: false,
        }));
        let too_many = self.0.len().saturating_sub(MOST);
        self.0.drain(..too_many);
        news
    }

    /// Those of these events that are in the journal and that nobody has taken, which count as sent from now on.
    #[must_use]
    pub fn unsent(&mut self, events: &[Event]) -> Vec<Event> {
        let mut unsent = Vec::new();
        for event in events {
            if let Some(one) = self.of(event).filter(|one| one.is_unsent) {
                one.is_unsent = false;
                unsent.push(event.clone());
            }
        }
        unsent
    }

    /// Nobody has taken this one.
    pub fn refused(&mut self, event: &Event) {
        if let Some(one) = self.of(event) {
            one.is_unsent = true;
        }
    }

    fn of(&mut self, event: &Event) -> Option<&mut One> {
        self.0
            .iter_mut()
            .find(|one| one.key == event.key && one.kind == event.kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::model::sentence::Sentence;

    fn event(kind: Kind, key: &str) -> Event {
        Event {
            kind,
            key: key.to_owned(),
            vmid: None,
            device: String::new(),
            title: String::new(),
            text: Sentence::read(""),
        }
    }

    #[test]
    fn of_one_handoff_only_what_is_worse_is_news() {
        use Kind::{Abandoned, Stranded, Wedged};
        let mut told = Told::default();
        for (kind, key, is_news) in [
            (Abandoned, "VM 111 5", true),
            (Abandoned, "VM 111 5", false),
            (Wedged, "VM 111 5", true),
            (Stranded, "VM 111 5", false),
            (Abandoned, "VM 111 5", false),
            (Stranded, "VM 111 6", true),
            (Stranded, "VM 112 5", true),
        ] {
            let news = told.news(vec![event(kind, key)]);
            assert_eq!(news.len() == 1, is_news, "{kind:?} {key}");
        }
    }

    #[test]
    fn it_is_read_as_it_was_written_and_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Told::read(dir.path()).unwrap(), Told::default());
        let mut told = Told::default();
        for at in 0..MOST + 50 {
            let _ = told.news(vec![event(Kind::Stranded, &format!("VM 111 {at}"))]);
        }
        assert_eq!(told.0.len(), MOST);
        told.write(dir.path()).unwrap();
        let mut read = Told::read(dir.path()).unwrap();
        assert_eq!(read, told);
        assert_eq!(read.news(vec![event(Kind::Stranded, "VM 111 249")]), []);
        let one = One {
            kind: Kind::Wedged,
            key: "VM 9 1".to_owned(),
            is_unsent: false,
        };
        assert_eq!(
            Told::parse("stranded\nnonsense VM 1 1\n\nwedged VM 9 1"),
            Told(vec![one])
        );
    }

    #[test]
    fn what_nobody_has_taken_is_no_news_and_is_sent_again() {
        let dir = tempfile::tempdir().unwrap();
        let stranded = [event(Kind::Stranded, "VM 111 5")];
        let mut told = Told::default();
        assert_eq!(told.news(stranded.to_vec()), stranded);
        assert_eq!(told.unsent(&stranded), []);
        told.refused(&stranded[0]);
        told.write(dir.path()).unwrap();
        let mut told = Told::read(dir.path()).unwrap();
        assert_eq!(told.news(stranded.to_vec()), []);
        assert_eq!(told.unsent(&stranded), stranded);
        assert_eq!(told.unsent(&stranded), []);
    }
}
