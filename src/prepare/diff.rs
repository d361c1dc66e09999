//! Two texts, shown as what differs: the unified format (POSIX.1-2017, diff -u). Pure.

use crate::base::text::harmless;

/// Lines around a difference that are shown.
const AROUND: usize = 2;

/// Longest line that is shown, bytes.
const LINE: usize = 1024;

/// A stretch of lines that are others in the second text: where it begins in each, and the lines of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hunk<'a> {
    /// Lines before it in the first text.
    pub from: usize,
    /// Its lines there, ends included.
    pub old: Vec<&'a str>,
    /// Lines before it in the second text.
    pub to: usize,
    /// Its lines there.
    pub new: Vec<&'a str>,
}

/// Lines with their ends.
pub fn lines(text: &str) -> Vec<&str> {
    text.split_inclusive('\n').collect()
}

/// Where two texts differ. Ours differ in few lines of short files; a longest common subsequence is found by the table.
pub fn hunks<'a>(old: &'a str, new: &'a str) -> Vec<Hunk<'a>> {
    let (old, new) = (lines(old), lines(new));
    let head = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
    let tail = old[head..]
        .iter()
        .rev()
        .zip(new[head..].iter().rev())
        .take_while(|(a, b)| a == b)
        .count();
    let (a, b) = (&old[head..old.len() - tail], &new[head..new.len() - tail]);
    // The table has a cell for each pair of lines: where there would be too many of them, it is one difference.
    let common = if a.len().saturating_mul(b.len()) > 1 << 22 {
        Vec::new()
    } else {
        common(a, b)
    };
    let mut found = Vec::new();
    let (mut i, mut j) = (0, 0);
    for (next_i, next_j) in common.into_iter().chain([(a.len(), b.len())]) {
        if (i, j) != (next_i, next_j) {
            found.push(Hunk {
                from: head + i,
                old: a[i..next_i].to_vec(),
                to: head + j,
                new: b[j..next_j].to_vec(),
            });
        }
        (i, j) = (next_i + 1, next_j + 1);
    }
    found
}

/// The pairs of lines that stay.
fn common(a: &[&str], b: &[&str]) -> Vec<(usize, usize)> {
    let width = b.len() + 1;
    let mut longest = vec![0_u32; (a.len() + 1) * width];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            longest[i * width + j] = match a[i] == b[j] {
                true => longest[(i + 1) * width + j + 1] + 1,
                false => longest[(i + 1) * width + j].max(longest[i * width + j + 1]),
            };
        }
    }
    let (mut pairs, mut i, mut j) = (Vec::new(), 0, 0);
    while i < a.len() && j < b.len() {
        if a[i] == b[j] {
            pairs.push((i, j));
            (i, j) = (i + 1, j + 1);
        } else if longest[(i + 1) * width + j] >= longest[i * width + j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    pairs
}

/// What differs, in the unified format. None stands for a file that is not there.
pub fn unified(file: &str, old: Option<&str>, new: Option<&str>) -> String {
    let name = |text: Option<&str>| text.map_or("/dev/null".to_owned(), |_| harmless(file, LINE));
    let mut shown = format!("--- {}\n+++ {}\n", name(old), name(new));
    let (old, new) = (old.unwrap_or_default(), new.unwrap_or_default());
    let all = lines(old);
    let hunks = hunks(old, new);
    let mut group: Vec<&Hunk<'_>> = Vec::new();
    for hunk in &hunks {
        let is_near = group
            .last()
            .is_some_and(|l| hunk.from - (l.from + l.old.len()) <= 2 * AROUND);
        if !is_near {
            show(&group, &all, &mut shown);
            group.clear();
        }
        group.push(hunk);
    }
    show(&group, &all, &mut shown);
    shown
}

/// Differences that are close to each other, with what is around them.
fn show(group: &[&Hunk<'_>], all: &[&str], shown: &mut String) {
    let (Some(first), Some(last)) = (group.first(), group.last()) else {
        return;
    };
    let start = first.from.saturating_sub(AROUND);
    let end = (last.from + last.old.len() + AROUND).min(all.len());
    let grown: usize = group.iter().map(|h| h.new.len()).sum();
    let shrunk: usize = group.iter().map(|h| h.old.len()).sum();
    let (old, new) = (end - start, end - start + grown - shrunk);
    let to = first.to - (first.from - start);
    let range = |start: usize, count: usize| match count {
        0 => format!("{start},0"),
        1 => format!("{}", start + 1),
        _ => format!("{},{count}", start + 1),
    };
    shown.push_str(&format!("@@ -{} +{} @@\n", range(start, old), range(to, new)));
    let mut at = start;
    for hunk in group {
        for line in &all[at..hunk.from] {
            push(' ', line, shown);
        }
        for line in &hunk.old {
            push('-', line, shown);
        }
        for line in &hunk.new {
            push('+', line, shown);
        }
        at = hunk.from + hunk.old.len();
    }
    for line in &all[at..end] {
        push(' ', line, shown);
    }
}

fn push(sign: char, line: &str, shown: &mut String) {
    let bare = line.strip_suffix('\n');
    // A tab is harmless, and escaped it would be another line than the file's.
    let text: Vec<String> = bare.unwrap_or(line).split('\t').map(|t| harmless(t, LINE)).collect();
    shown.push(sign);
    shown.push_str(&text.join("\t"));
    shown.push('\n');
    if bare.is_none() {
        shown.push_str("\\ No newline at end of file\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_shown_as_diff_does() {
        for (old, new, expected) in [
            (
                Some("1\n2\n3\n4\n5\n6\n"),
                Some("1\n2\n3\nx\n5\n6\n"),
                "--- /f\n+++ /f\n@@ -2,5 +2,5 @@\n 2\n 3\n-4\n+x\n 5\n 6\n",
            ),
            (None, Some("a\nb\n"), "--- /dev/null\n+++ /f\n@@ -0,0 +1,2 @@\n+a\n+b\n"),
            (
                Some("a"),
                None,
                "--- /f\n+++ /dev/null\n@@ -1 +0,0 @@\n-a\n\\ No newline at end of file\n",
            ),
            (
                Some("a"),
                Some("a\n"),
                "--- /f\n+++ /f\n@@ -1 +1 @@\n-a\n\\ No newline at end of file\n+a\n",
            ),
            (
                Some("1\n2\n3\n4\n5\n6\n7\n8\n9\n"),
                Some("0\n1\n2\n3\n4\n5\n6\n7\n8\n"),
                "--- /f\n+++ /f\n@@ -1,2 +1,3 @@\n+0\n 1\n 2\n@@ -7,3 +8,2 @@\n 7\n 8\n-9\n",
            ),
            (
                Some("a\n\x1b[2J\tb\r\n"),
                Some("a\n"),
                "--- /f\n+++ /f\n@@ -1,2 +1 @@\n a\n-\\u{1b}[2J\tb\\r\n",
            ),
        ] {
            assert_eq!(unified("/f", old, new), expected);
        }
    }

    #[test]
    fn lines_that_stay_are_in_no_hunk() {
        let found = hunks("a\nb\nc\nd\n", "a\nx\nc\ny\nd\n");
        let shown: Vec<_> = found
            .iter()
            .map(|h| (h.from, h.old.concat(), h.to, h.new.concat()))
            .collect();
        let s = str::to_owned;
        assert_eq!(shown, [(1, s("b\n"), 1, s("x\n")), (3, s(""), 3, s("y\n"))]);
    }
}
