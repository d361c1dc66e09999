//! A sentence with its hints: what is the matter, and what to do about it.
//!
//! Where one is kept, as the outcome of a handoff or the error of an act, it is one text, which is written and read here
//! alone. That it is read as it was written is due to [`crate::base::text::harmless`]: no name in it has "Hint:".

use std::{fmt, iter};

/// What stands before a hint.
const HINT: &str = "Hint: ";

/// A sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sentence {
    /// What is the matter, with its full stop where a hint follows.
    pub what: String,
    /// What to do about it: of several reasons the hint of each, with what follows it.
    pub hints: Vec<String>,
}

impl Sentence {
    /// One with a hint.
    pub fn new(what: impl Into<String>, hint: impl Into<String>) -> Self {
        let what = Sentence {
            what: what.into(),
            hints: Vec::new(),
        };
        what.with_hint(hint)
    }

    /// The sentence that is kept as this text.
    pub fn read(text: &str) -> Self {
        let between = format!(" {HINT}");
        let mut parts = text.split(&between).map(str::to_owned);
        Sentence {
            what: parts.next().unwrap_or_default(),
            hints: parts.collect(),
        }
    }

    /// The same with one more hint.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.last_mut().unwrap_or(&mut self.what).push('.');
        self.hints.push(hint.into());
        self
    }

    /// Each of its parts, with the word before it.
    pub fn parts(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let hints = self.hints.iter().map(|hint| (HINT, hint.as_str()));
        iter::once(("", self.what.as_str())).chain(hints)
    }
}

impl fmt::Display for Sentence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (word, part)) in self.parts().enumerate() {
            let blank = if n == 0 { "" } else { " " };
            write!(f, "{blank}{word}{part}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_read_as_it_was_written() {
        for (text, hints) in [
            ("", 0),
            ("done", 0),
            ("it failed. Hint: mend it", 1),
            ("2 reasons: (1) a. Hint: b (2) c. Hint: d", 2),
            ("it failed.  Hint: mend it", 1),
        ] {
            let read = Sentence::read(text);
            assert_eq!((read.to_string().as_str(), read.hints.len()), (text, hints));
        }
        let made = Sentence::new("it failed", "mend it").with_hint("say so");
        assert_eq!(made.to_string(), "it failed. Hint: mend it. Hint: say so");
        assert_eq!(Sentence::read(&made.to_string()), made);
    }
}
