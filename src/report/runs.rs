//! The words of a line, each with its place. Pure.

use std::ops::Range;

/// Runs of characters that are in such a word.
pub(super) fn runs(line: &str, is_in: impl Fn(u8) -> bool) -> impl Iterator<Item = Range<usize>> {
    let bytes = line.as_bytes();
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < bytes.len() && !is_in(bytes[at]) {
            at += 1;
        }
        let start = at;
        while at < bytes.len() && is_in(bytes[at]) {
            at += 1;
        }
        (start < at).then_some(start..at)
    })
}

/// A letter, a digit or an underscore.
pub(super) fn is_word(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'_'
}

/// Whether a range stands by itself: no letter or digit before or behind it.
pub(super) fn stands_alone(line: &str, range: &Range<usize>) -> bool {
    let bytes = line.as_bytes();
    let is_end = |at: Option<usize>| {
        at.and_then(|at| bytes.get(at))
            .is_none_or(|b| !b.is_ascii_alphanumeric())
    };
    is_end(range.start.checked_sub(1)) && is_end(Some(range.end))
}

/// From there to the next byte that ends a value: white space, a quote, a bracket.
pub(super) fn value_at(line: &str, start: usize) -> Range<usize> {
    let rest = &line[start..];
    let end = rest.find(|c: char| c.is_whitespace() || "\"'<>()[]{},;".contains(c));
    start..start + end.unwrap_or(rest.len())
}
