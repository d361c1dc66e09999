//! Text for people: foreign text made harmless, lists, durations.

use std::fmt::Display;
use std::time::Duration;

/// Longest piece of foreign text in a line, bytes.
const FOREIGN: usize = 64;

/// With a colon behind it, what a text of ours begins its advice with.
const HINT: &str = "Hint";

/// Text that somebody else chose (a process name from a container, say): one line, printable, at most 64 bytes, and none that
/// looks as if we advised something.
pub fn foreign(text: &str) -> String {
    harmless(text, FOREIGN)
}

/// The same, of at most so many bytes.
pub fn harmless(text: &str, most: usize) -> String {
    escaped(text, most, |before, c| {
        !is_printable(c) || (c == ':' && before.ends_with(HINT))
    })
}

/// A text of ours, in which some of somebody else's may be: one line, printable, at most so many bytes.
pub fn printable(text: &str, most: usize) -> String {
    escaped(text, most, |_, c| !is_printable(c))
}

/// A text with some characters escaped, by what is before them; of at most so many bytes.
fn escaped(text: &str, most: usize, is_odd: impl Fn(&str, char) -> bool) -> String {
    let mut safe = String::new();
    for c in text.chars() {
        let piece = match (is_odd(&safe, c), is_printable(c)) {
            (false, _) => c.to_string(),
            (true, true) => c.escape_unicode().to_string(),
            (true, false) => c.escape_default().to_string(),
        };
        if safe.len() + piece.len() > most {
            break;
        }
        safe.push_str(&piece);
    }
    safe
}

/// Longest name that is shown as a word of a command, bytes: all of one that systemd takes (systemd.unit(5)).
const TYPED: usize = 255;

/// A name that somebody else chose, as a word of a command that a person is told to type: quoted where a shell would read it
/// otherwise.
pub fn typed(name: &str) -> String {
    let name = harmless(name, TYPED);
    let is_plain = |c: char| c.is_ascii_alphanumeric() || ":-_.@/".contains(c);
    if name.chars().all(is_plain) {
        return name;
    }
    format!("'{}'", name.replace('\'', "'\\''"))
}

/// The same as a value of the settings: a string of TOML's in which a backslash is one.
pub fn in_toml(name: &str) -> String {
    let name = harmless(name, TYPED);
    match name.contains('\\') {
        true => format!("'{name}'"),
        false => format!("\"{name}\""),
    }
}

fn is_printable(c: char) -> bool {
    !c.is_control() && !is_invisible(c)
}

/// Characters that change how the text around them is shown: direction marks, separators, zero-width signs.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// A program's stderr on one line.
pub fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ")
}

/// Values with commas between them.
pub fn join<T: Display>(values: impl IntoIterator<Item = T>) -> String {
    let texts: Vec<String> = values.into_iter().map(|v| v.to_string()).collect();
    texts.join(", ")
}

/// Most values that a line names one by one: with more it would be longer than a terminal is wide.
const NAMED: usize = 3;

/// Values of a list in order, named one by one where they are few; else how many `of_what` they are, the first and the last.
pub fn few_or_range<T: Display>(values: &[T], of_what: &str) -> String {
    match values {
        [first, .., last] if values.len() > NAMED => format!("{} {of_what} ({first} ... {last})", values.len()),
        few => join(few),
    }
}

/// The form of "to be" for so many.
pub fn are(count: usize) -> &'static str {
    if count > 1 { "are" } else { "is" }
}

/// How many columns of a terminal a text takes, at most: from the first of the wide scripts on a character may take two.
pub fn columns(text: &str) -> usize {
    text.chars().map(|c| if c < '\u{1100}' { 1 } else { 2 }).sum()
}

/// A text in lines of so many columns at most, broken at blanks; a word that is longer than a line is broken anywhere.
pub fn wrapped(text: &str, width: usize) -> Vec<String> {
    let width = width.max(2);
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let last = lines.last().map_or(0, |line| columns(line));
        let is_first = last == 0;
        if !is_first && last + 1 + columns(word) > width {
            lines.push(String::new());
        } else if !is_first {
            push(&mut lines, ' ');
        }
        for c in word.chars() {
            let last = lines.last().map_or(0, |line| columns(line));
            if last + columns(c.encode_utf8(&mut [0; 4])) > width {
                lines.push(String::new());
            }
            push(&mut lines, c);
        }
    }
    lines
}

fn push(lines: &mut [String], c: char) {
    if let Some(line) = lines.last_mut() {
        line.push(c);
    }
}

/// A duration as people read it: milliseconds below ten seconds, seconds above.
pub fn millis(duration: Duration) -> String {
    let ms = duration.as_secs_f64() * 1e3;
    match ms {
        ms if ms < 10.0 => format!("{ms:.1} ms"),
        ms if ms < 10_000.0 => format!("{ms:.0} ms"),
        ms => format!("{:.1} s", ms / 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_stays_on_its_line() {
        for (text, safe) in [
            ("python3", "python3"),
            ("a\nb\x1b[2J", "a\\nb\\u{1b}[2J"),
            ("right\u{202e}left", "right\\u{202e}left"),
            ("x Hint: do y", "x Hint\\u{3a} do y"),
            ("Hint", "Hint"),
            ("", ""),
        ] {
            assert_eq!(foreign(text), safe);
        }
        assert_eq!(printable("it is so. Hint: do\ny", 64), "it is so. Hint: do\\ny");
        assert_eq!(foreign(&"x".repeat(100)).len(), 64);
        assert!(foreign(&"\n".repeat(100)).len() <= 64);
    }

    #[test]
    fn three_are_named_and_of_more_the_first_and_the_last() {
        for (values, text) in [
            (&[][..], ""),
            (&[1][..], "1"),
            (&[1, 2, 3], "1, 2, 3"),
            (&[1, 2, 3, 5], "4 cards (1 ... 5)"),
        ] {
            assert_eq!(few_or_range(values, "cards"), text);
        }
        assert_eq!([0, 1, 2].map(are), ["is", "is", "are"]);
    }

    #[test]
    fn a_text_is_broken_at_blanks_and_a_word_that_is_too_long_anywhere() {
        for (text, width, lines) in [
            ("one two three", 7, &["one two", "three"][..]),
            ("one two three", 80, &["one two three"]),
            ("a-long-word and one", 6, &["a-long", "-word", "and", "one"]),
            ("\u{4e2d}\u{6587} x", 4, &["\u{4e2d}\u{6587}", "x"]),
            ("", 4, &[""]),
        ] {
            assert_eq!(wrapped(text, width), lines, "{text:?}");
            assert!(lines.iter().all(|l| columns(l) <= width), "{text:?}");
        }
    }

    #[test]
    fn durations_have_the_unit_that_fits() {
        for (us, text) in [
            (400, "0.4 ms"),
            (54_800, "55 ms"),
            (9_999_000, "9999 ms"),
            (12_340_000, "12.3 s"),
        ] {
            assert_eq!(millis(Duration::from_micros(us)), text);
        }
    }
}
