//! Past handoffs: the value that `history --json` prints, and its text.

use std::time::Duration;

use serde::Serialize;

use crate::base::clock::utc;
use crate::base::text::{join, millis};
use crate::model::plan::Direction;
use crate::output::style::{Ink, Style, fit};
use crate::state::history::{Did, Handoff, Past};

/// The form of the JSON: docs/schemas/history.json.
pub const VERSION: u32 = 1;

/// Columns of an act, of its bar and of its time: with four blanks before them and one between each they fill 79.
const ACT: usize = 44;
const BAR: usize = 20;
const TOOK: usize = 9;

/// What `history` prints.
#[derive(Debug, Serialize)]
pub struct History<'a> {
    /// [`VERSION`].
    pub version: u32,
    /// The handoffs, the oldest first.
    pub handoffs: Vec<&'a Handoff>,
}

impl<'a> History<'a> {
    /// Of these handoffs those since a moment, seconds since 1970, and of this owner; None: all.
    pub fn of(all: &'a [Handoff], since: Option<u64>, owner: Option<&str>) -> Self {
        let counts = |h: &&Handoff| since.is_none_or(|t| h.time >= t) && owner.is_none_or(|o| h.owner == o);
        History {
            version: VERSION,
            handoffs: all.iter().filter(counts).collect(),
        }
    }
}

/// The entries for people: a line for each, what it stopped and gave back, and its acts where `acts` asks for them.
pub fn text(history: &History<'_>, acts: bool, style: Style) -> String {
    if history.handoffs.is_empty() {
        return "No handoff so far.\n".to_owned();
    }
    let mut text = String::new();
    let mut boot = None;
    for entry in &history.handoffs {
        if boot.is_some_and(|boot| boot != entry.boot_id) {
            text += "-- the host was started anew --\n";
        }
        boot = Some(entry.boot_id.as_str());
        text += &handoff(entry, style);
        let longest = entry.acts.iter().map(|a| a.took_ms).max().unwrap_or(0);
        for act in entry.acts.iter().filter(|_| acts) {
            text += &bar(act, longest, style);
        }
    }
    text
}

fn handoff(entry: &Handoff, style: Style) -> String {
    let to = match entry.direction {
        Direction::Out => "to vfio-pci",
        Direction::Home => "home",
    };
    let cards = join(&entry.cards);
    let took = millis(Duration::from_millis(entry.took_ms));
    let line = format!("{}: {cards} {to}, {took}: {}", entry.owner, entry.outcome);
    let mut text = style.labelled(&format!("{}  ", utc(entry.time)), &line);
    for (did, word) in [
        (Did::Stopped, "stopped"),
        (Did::Ended, "asked to end"),
        (Did::Started, "started again"),
        (Did::Restarted, "restarted"),
    ] {
        let is_it = |act: &&Past| act.did == Some(did) && act.error.is_none();
        let what: Vec<&str> = entry.acts.iter().filter(is_it).map(Past::subject).collect();
        if !what.is_empty() {
            text += &style.labelled(&format!("    {word}: "), &join(what));
        }
    }
    text
}

/// An act with its time as a bar, as long as its part of the longest one's; one that took any time has one.
fn bar(act: &Past, longest: u64, style: Style) -> String {
    let part = u128::from(act.took_ms) * BAR as u128;
    let length = part.div_ceil(u128::from(longest.max(1)));
    let bar = "#".repeat(usize::try_from(length).unwrap_or(BAR));
    let (ink, failed) = match &act.error {
        None => (Ink::Lent, None),
        Some(error) => (Ink::Bad, Some(error)),
    };
    let took = millis(Duration::from_millis(act.took_ms));
    let bar = style.paint(ink, &fit(&bar, BAR));
    let line = format!("    {} {bar} {took:>TOOK$}\n", fit(&act.text.to_string(), ACT));
    let failed = failed.map_or(String::new(), |error| style.labelled("      failed: ", error));
    line + &failed
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::base::text::columns;

    fn act(text: &str, took_ms: u64, did: Option<Did>) -> Past {
        Past {
            text: text.into(),
            took_ms,
            error: None,
            did,
            remedy: None,
        }
    }

    fn entries() -> Vec<Handoff> {
        let out = Handoff {
            time: 1_795_249_367,
            boot_id: "first".to_owned(),
            owner: "VM 111".to_owned(),
            direction: Direction::Out,
            cards: vec!["0000:01:00".to_owned()],
            outcome: "done".to_owned(),
            took_ms: 1234,
            acts: vec![
                act("ollama.service: stop the service", 400, Some(Did::Stopped)),
                act("nvidia-persistenced.service: stop the service", 12, Some(Did::Stopped)),
                act("0000:01:00.0: unbind from nvidia", 800, None),
                act("0000:01:00.0: clear driver_override", 0, None),
            ],
            forgotten: None,
        };
        let mut failed = act("0000:01:00.0: bind to nvidia", 20_000, None);
        failed.error =
            Some("it did not end within 20 s, and is stuck in the kernel: nothing else is done on it".to_owned());
        let home = Handoff {
            time: 1_795_252_967,
            boot_id: "second".to_owned(),
            direction: Direction::Home,
            outcome: "0000:01:00.0 could not be bound to nvidia. Hint: see 'gpu-handoff status'".to_owned(),
            took_ms: 20_400,
            acts: vec![
                failed,
                act("ollama.service: start the service", 400, Some(Did::Started)),
            ],
            ..out.clone()
        };
        vec![out, home]
    }

    #[test]
    fn the_text_has_a_line_for_each_what_was_stopped_and_bars_on_demand() {
        let entries = entries();
        let history = History::of(&entries, None, None);
        let expected = "\
2026-11-21 08:22:47 UTC  VM 111: 0000:01:00 to vfio-pci, 1234 ms: done
    stopped: ollama.service, nvidia-persistenced.service
    ollama.service: stop the service             ##########              400 ms
    nvidia-persistenced.service: stop the serv.. #                        12 ms
    0000:01:00.0: unbind from nvidia             ####################    800 ms
    0000:01:00.0: clear driver_override                                  0.0 ms
-- the host was started anew --
2026-11-21 09:22:47 UTC  VM 111: 0000:01:00 home, 20.4 s: 0000:01:00.0 could not
                         be bound to nvidia. Hint: see 'gpu-handoff status'
    started again: ollama.service
    0000:01:00.0: bind to nvidia                 ####################    20.0 s
      failed: it did not end within 20 s, and is stuck in the kernel: nothing
              else is done on it
    ollama.service: start the service            #                       400 ms
";
        let shown = text(&history, true, Style::terminal());
        assert_eq!(shown, expected);
        assert!(shown.lines().all(|line| columns(line) <= 80));
        let short = text(&history, false, Style::default());
        assert_eq!(short.lines().count(), 5, "{short}");
    }

    #[test]
    fn of_a_vm_and_since_a_moment() {
        let entries = entries();
        let count = |since, owner| History::of(&entries, since, owner).handoffs.len();
        assert_eq!(count(None, Some("VM 111")), 2);
        assert_eq!(count(None, Some("VM 11")), 0);
        assert_eq!(count(Some(1_795_249_368), None), 1);
        assert_eq!(
            text(&History::of(&[], None, None), true, Style::default()),
            "No handoff so far.\n"
        );
    }
}
