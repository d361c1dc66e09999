//! A text with some of its lines or words changed. Pure, and all else of the text stays as it is, to the byte.

use crate::host::grub_config::{Assignment, DEFAULT, parse};
use crate::host::place::{Place, Unknown};

/// What is before a line that was commented out.
pub const MARK: &str = "# gpu-handoff: ";

/// Comments lines out, with another one behind where there is one.
pub fn comment_out(text: &str, edits: &[(&Place, Option<&str>)]) -> String {
    let mut new = String::new();
    for (number, line) in (1..).zip(text.split_inclusive('\n')) {
        let edit = edits
            .iter()
            .find(|(place, _)| (place.line..place.line + place.lines).contains(&number));
        let Some((place, instead)) = edit else {
            new.push_str(line);
            continue;
        };
        new.push_str(MARK);
        new.push_str(line);
        if let Some(instead) = instead.filter(|_| number + 1 == place.line + place.lines) {
            if !line.ends_with('\n') {
                new.push('\n');
            }
            new.push_str(instead);
            new.push('\n');
        }
    }
    new
}

/// What becomes of an argument: its text, where it is, and its new text.
pub type Replaced<'a> = (&'a str, &'a Place, Option<&'a str>);

/// Replaces a word that blanks, or the ends, part from all else. None: it is not there as it is written.
pub(crate) fn replace_word(text: &str, word: &str, instead: Option<&str>) -> Option<String> {
    let is_end = |c: Option<char>| c.is_none_or(|c| matches!(c, ' ' | '\t' | '"' | '\'' | '\n'));
    let found = text
        .match_indices(word)
        .find(|(at, _)| is_end(text[..*at].chars().next_back()) && is_end(text[at + word.len()..].chars().next()));
    let (from, _) = found?;
    let to = from + word.len();
    let (mut before, mut after) = (&text[..from], &text[to..]);
    if instead.is_none() {
        // One of the two blanks around it goes along.
        match before.strip_suffix(' ') {
            Some(shorter) => before = shorter,
            None => after = after.strip_prefix(' ').unwrap_or(after),
        }
    }
    Some(format!("{before}{}{after}", instead.unwrap_or_default()))
}

/// The one line of /etc/kernel/cmdline.
///
/// # Errors
/// A word that is not found as it is written.
pub fn kernel_cmdline(
    file: &str,
    text: &str,
    edits: &[Replaced<'_>],
    missing: Option<&str>,
) -> Result<String, Unknown> {
    let mut new = text.to_owned();
    for (word, place, instead) in edits {
        new = replace_word(&new, word, *instead).ok_or_else(|| not_as_written(file, place.line, word))?;
    }
    if let Some(word) = missing {
        let end = new.trim_end().len();
        new.insert_str(end, &format!(" {word}"));
    }
    Ok(new)
}

fn not_as_written(file: &str, line: usize, word: &str) -> Unknown {
    Unknown {
        file: file.to_owned(),
        line: Some(line),
        why: format!(
            "'{}' is quoted there in a way that is not understood",
            crate::base::text::foreign(word)
        ),
    }
}

/// GRUB's files, as (file, text) in their order: those that change, with their new text.
///
/// # Errors
/// What is not understood.
pub fn grub(
    files: &[(String, String)],
    edits: &[Replaced<'_>],
    missing: Option<&str>,
) -> Result<Vec<(String, String)>, Unknown> {
    let mut new = files.to_vec();
    for (word, place, instead) in edits {
        let assignment = assignments(&new)?.into_iter().find(|a| a.place == **place);
        let unknown = || not_as_written(&place.file, place.line, word);
        let assignment = assignment.ok_or_else(unknown)?;
        change_value(&mut new, &assignment, |value| replace_word(value, word, *instead)).ok_or_else(unknown)?;
    }
    if let Some(word) = missing {
        add(&mut new, word)?;
    }
    Ok(new
        .into_iter()
        .filter(|(file, text)| files.iter().any(|(f, t)| f == file && t != text))
        .collect())
}

/// All assignments of these files.
///
/// # Errors
/// The first line that is not understood.
pub fn assignments(files: &[(String, String)]) -> Result<Vec<Assignment>, Unknown> {
    let mut all = Vec::new();
    for (file, text) in files {
        all.extend(parse(file, text)?);
    }
    Ok(all)
}

/// Writes another value into an assignment's line. None: it is not as was expected.
fn change_value(
    files: &mut [(String, String)],
    assignment: &Assignment,
    change: impl FnOnce(&str) -> Option<String>,
) -> Option<()> {
    let (_, text) = files.iter_mut().find(|(f, _)| *f == assignment.place.file)?;
    let before: usize = text
        .split_inclusive('\n')
        .take(assignment.place.line - 1)
        .map(str::len)
        .sum();
    let written = before + assignment.written.start..before + assignment.written.end;
    let value = change(text.get(written.clone())?)?;
    text.replace_range(written, &value);
    Some(())
}

/// Adds an argument where the default ones are set: to the last assignment that does not keep what was, for what comes
/// after it keeps it.
fn add(files: &mut [(String, String)], word: &str) -> Result<(), Unknown> {
    let all = assignments(files)?;
    let of_default: Vec<&Assignment> = all.iter().filter(|a| a.name == DEFAULT).collect();
    let base = of_default.iter().rfind(|a| !a.keeps_what_was()).or(of_default.first());
    let Some(base) = base else {
        let Some((_, text)) = files.first_mut() else {
            return Ok(());
        };
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str(&format!("{DEFAULT}=\"{word}\"\n"));
        return Ok(());
    };
    let with_word = |value: &str| {
        let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''));
        let Some(quote) = quote else {
            let plain = |c: char| c.is_ascii_alphanumeric() || "=._,:/-".contains(c);
            let blank = if value.is_empty() { "" } else { " " };
            return value.chars().all(plain).then(|| format!("\"{value}{blank}{word}\""));
        };
        let inner = value.strip_prefix(quote)?.strip_suffix(quote)?;
        let is_one = !inner.contains(quote) && !inner.ends_with('\\');
        let blank = if inner.is_empty() || inner.ends_with(' ') {
            ""
        } else {
            " "
        };
        is_one.then(|| format!("{quote}{inner}{blank}{word}{quote}"))
    };
    let place = base.place.clone();
    change_value(files, base, with_word).ok_or_else(|| Unknown {
        file: place.file,
        line: Some(place.line),
        why: format!("its quotes are set in a way in which '{word}' cannot be added"),
    })
}
