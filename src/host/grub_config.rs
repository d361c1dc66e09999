//! What /etc/default/grub and the files beside it set, as far as they are plain assignments.
//!
//! grub-mkconfig has them run by a shell. What is no plain assignment may do anything: it is not understood, and said to be
//! so. Of variables that are not asked for, a value may be what a command says: that runs in a shell of its own, and
//! changes no other variable.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::host::kernel_args::Piece;
use crate::host::place::{Place, Unknown};

/// The arguments of every entry of the menu ...
pub const ALWAYS: &str = "GRUB_CMDLINE_LINUX";

/// ... and those that the entries for recovery do not have (grub, util/grub.d/10_linux.in).
pub const DEFAULT: &str = "GRUB_CMDLINE_LINUX_DEFAULT";

/// An assignment to one of these two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// To which.
    pub name: String,
    /// Where it stands.
    pub place: Place,
    /// Where in its line the value is written, quotes included, in bytes.
    pub written: Range<usize>,
    /// What it is made of.
    value: Vec<Part>,
}

impl Assignment {
    /// Whether it keeps what the variable had before.
    pub fn keeps_what_was(&self) -> bool {
        self.value.contains(&Part::Variable(self.name.clone()))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Variable(String),
}

/// Parses a file: its assignments to the two variables.
///
/// # Errors
/// The first line that is not understood.
pub fn parse(file: &str, text: &str) -> Result<Vec<Assignment>, Unknown> {
    let mut found = Vec::new();
    for (number, line) in (1..).zip(text.split('\n')) {
        match assignment(line) {
            Ok(Some((name, written, value))) if [ALWAYS, DEFAULT].contains(&name) => {
                let other = value.iter().find_map(|part| match part {
                    Part::Variable(other) if ![ALWAYS, DEFAULT].contains(&other.as_str()) => Some(other),
                    _ => None,
                });
                if let Some(other) = other {
                    return Err(not_understood(
                        file,
                        number,
                        &format!("what '${other}' is there is not known"),
                    ));
                }
                found.push(Assignment {
                    name: name.to_owned(),
                    place: Place::line(file, number),
                    written,
                    value,
                });
            }
            Ok(_) => {}
            Err(why) => return Err(not_understood(file, number, why)),
        }
    }
    Ok(found)
}

fn not_understood(file: &str, line: usize, why: &str) -> Unknown {
    Unknown {
        file: file.to_owned(),
        line: Some(line),
        why: why.to_owned(),
    }
}

/// What the two variables are after all these assignments, in the order in which a menu entry has them.
pub fn command_line(assignments: &[Assignment]) -> Vec<Piece> {
    let mut variables: BTreeMap<&str, Vec<Piece>> = BTreeMap::new();
    for assignment in assignments {
        let mut pieces = Vec::new();
        for part in &assignment.value {
            match part {
                Part::Text(text) => pieces.push((text.clone(), assignment.place.clone())),
                Part::Variable(name) => pieces.extend(variables.get(name.as_str()).cloned().unwrap_or_default()),
            }
        }
        variables.insert(&assignment.name, pieces);
    }
    let mut line = variables.remove(ALWAYS).unwrap_or_default();
    if let Some((_, place)) = line.last().cloned() {
        line.push((" ".to_owned(), place));
    }
    line.extend(variables.remove(DEFAULT).unwrap_or_default());
    line
}

/// What an assignment is: its name, where its value is written, and the parts of it.
type Parsed<'a> = Option<(&'a str, Range<usize>, Vec<Part>)>;

/// A line: an assignment, or None where it does nothing.
fn assignment(line: &str) -> Result<Parsed<'_>, &'static str> {
    let bare = line.trim_matches([' ', '\t']);
    // Debian's own grub.d/init-select.cfg has a line that does nothing.
    if bare.is_empty() || bare.starts_with('#') || bare == ":" {
        return Ok(None);
    }
    if bare.chars().any(|c| c.is_control() && c != '\t') {
        return Err("it has a control character, as the line ends of Windows are");
    }
    let start = line.len() - line.trim_start_matches([' ', '\t']).len();
    let rest = &line[start..];
    let (start, rest) = match rest.strip_prefix("export ") {
        Some(after) => {
            let after = after.trim_start_matches(' ');
            (line.len() - after.len(), after)
        }
        None => (start, rest),
    };
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let length = rest.find(|c| !is_of_name(c)).unwrap_or(rest.len());
    let name = &rest[..length];
    let is_name = length > 0 && !name.starts_with(|c: char| c.is_ascii_digit());
    if !is_name || !rest[length..].starts_with('=') {
        return Err("it is no plain assignment");
    }
    let from = start + length + 1;
    let (end, value) = word(line, from, [ALWAYS, DEFAULT].contains(&name))?;
    let behind = &line[end..];
    let more = behind.trim_start_matches([' ', '\t']);
    let is_comment = more.starts_with('#') && more.len() < behind.len();
    if !more.is_empty() && !is_comment {
        return Err("there is more behind the assignment");
    }
    Ok(Some((name, from..end, value)))
}

const OPEN: &str = "the quote is not closed on its line";
const COMMAND: &str = "its value is what a command says, or an expansion that only a shell knows";

/// A word of the shell, from there on: where it ends, and what it is made of (POSIX.1-2017, Shell Command Language 2.2).
/// `plain`: without what a command says.
fn word(line: &str, from: usize, plain: bool) -> Result<(usize, Vec<Part>), &'static str> {
    let mut parts = Vec::new();
    let mut text = String::new();
    let mut quote = None;
    let mut chars = line[from..].char_indices().peekable();
    let mut end = line.len();
    while let Some((at, c)) = chars.next() {
        match (quote, c) {
            (Some('\''), '\'') | (Some('"'), '"') => quote = None,
            (Some('\''), c) => text.push(c),
            (None, '\'' | '"') => quote = Some(c),
            (None, ' ' | '\t') => {
                end = from + at;
                break;
            }
            (None, ';' | '&' | '|' | '<' | '>' | '(' | ')' | '~') => {
                return Err("a character in it that is not quoted means something to a shell");
            }
            (_, '\\') => match chars.next() {
                None => return Err("it goes on in the next line"),
                Some((_, next)) => {
                    // Within double quotes a backslash stays before what needs none.
                    if quote.is_some() && !['$', '`', '"', '\\'].contains(&next) {
                        text.push('\\');
                    }
                    text.push(next);
                }
            },
            (_, '`') if !plain => loop {
                match chars.next() {
                    Some((_, '`')) => break,
                    Some((_, '\\')) | None => return Err(COMMAND),
                    _ => {}
                }
            },
            (_, '`') => return Err(COMMAND),
            (_, '$') => {
                let rest = &line[from + at + 1..];
                if !plain && rest.starts_with('(') {
                    let length = in_parentheses(rest).ok_or(COMMAND)?;
                    skip(&mut chars, length);
                    continue;
                }
                let (name, length) = variable(rest).ok_or(COMMAND)?;
                skip(&mut chars, length);
                if !text.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut text)));
                }
                parts.push(Part::Variable(name.to_owned()));
            }
            (_, c) => text.push(c),
        }
    }
    if quote.is_some() {
        return Err(OPEN);
    }
    if !text.is_empty() {
        parts.push(Part::Text(text));
    }
    Ok((end, parts))
}

/// Goes past so many bytes.
fn skip(chars: &mut std::iter::Peekable<std::str::CharIndices<'_>>, bytes: usize) {
    let Some(&(from, _)) = chars.peek() else { return };
    while chars.peek().is_some_and(|(at, _)| *at < from + bytes) {
        chars.next();
    }
}

/// How long `(...)` is, where nothing in it makes that hard to tell.
fn in_parentheses(text: &str) -> Option<usize> {
    let mut depth = 0_usize;
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            '\\' | '\'' | '"' | '#' => return None,
            _ => {}
        }
        if depth == 0 {
            return Some(at + 1);
        }
    }
    None
}

/// The variable that `NAME` or `{NAME}` behind a dollar is, and how long that is.
fn variable(text: &str) -> Option<(&str, usize)> {
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let inner = text.strip_prefix('{');
    let name = inner.unwrap_or(text);
    let length = name.find(|c| !is_of_name(c)).unwrap_or(name.len());
    let is_name = length > 0 && !name.starts_with(|c: char| c.is_ascii_digit());
    match inner {
        _ if !is_name => None,
        None => Some((&name[..length], length)),
        Some(inner) => inner[length..]
            .starts_with('}')
            .then_some((&name[..length], length + 2)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::host::kernel_args::arguments;

    fn shown(files: &[(&str, &str)]) -> Result<Vec<String>, String> {
        let mut all = Vec::new();
        for (file, text) in files {
            all.extend(parse(file, text).map_err(|u| u.to_string())?);
        }
        let arguments = arguments(&command_line(&all));
        Ok(arguments.iter().map(|a| format!("{} {}", a.place, a.text)).collect())
    }

    #[test]
    fn debians_and_proxmoxs_own_files_are_understood() {
        let grub = "# If you change this file, run 'update-grub' afterwards to update\n\
                    GRUB_DEFAULT=0\nGRUB_TIMEOUT=5\n\
                    GRUB_DISTRIBUTOR=`lsb_release -i -s 2> /dev/null || echo Debian`\n\
                    GRUB_DISTRIBUTOR=`( . /etc/os-release; echo ${NAME:-Debian} ) 2>/dev/null || echo Debian`\n\
                    GRUB_CMDLINE_LINUX_DEFAULT=\"quiet intel_iommu=on\"\nGRUB_CMDLINE_LINUX=\"\"\n\
                    #GRUB_TERMINAL=console\n\nGRUB_DISABLE_OS_PROBER=true\n";
        let files = [
            ("/etc/default/grub", grub),
            ("/etc/default/grub.d/init-select.cfg", "# work around\n:\n"),
            (
                "/etc/default/grub.d/kdump-tools.cfg",
                "GRUB_CMDLINE_LINUX_DEFAULT=\"$GRUB_CMDLINE_LINUX_DEFAULT crashkernel=384M-:128M\"\n",
            ),
            (
                "/etc/default/grub.d/zfs.cfg",
                "GRUB_CMDLINE_LINUX='root=ZFS=rpool/ROOT/pve-1 boot=zfs' # by the installer",
            ),
        ];
        assert_eq!(
            shown(&files).unwrap(),
            [
                "/etc/default/grub.d/zfs.cfg:1 root=ZFS=rpool/ROOT/pve-1",
                "/etc/default/grub.d/zfs.cfg:1 boot=zfs",
                "/etc/default/grub:6 quiet",
                "/etc/default/grub:6 intel_iommu=on",
                "/etc/default/grub.d/kdump-tools.cfg:1 crashkernel=384M-:128M",
            ]
        );
    }

    #[test]
    fn quoting_is_the_shells() {
        for (line, arguments) in [
            ("GRUB_CMDLINE_LINUX=quiet", "quiet"),
            ("GRUB_CMDLINE_LINUX='a b'\"c d\"e", "a bc de"),
            ("export GRUB_CMDLINE_LINUX=\"a\"", "a"),
            ("  GRUB_CMDLINE_LINUX=a\\ b", "a b"),
            ("GRUB_CMDLINE_LINUX=\"a=\\\"b c\\\" \\d\"", "a=\"b c\" \\d"),
            ("GRUB_CMDLINE_LINUX=", ""),
            ("GRUB_CMDLINE_LINUX=a#b\"c\"#d # e", "a#bc#d"),
            ("GRUB_CMDLINE_LINUX=\"${GRUB_CMDLINE_LINUX_DEFAULT} b\"", "b"),
            ("GRUB_OTHER=$(uname -r)\nGRUB_CMDLINE_LINUX=a", "a"),
            ("GRUB_OTHER=\"x `uname -r` y\"\nGRUB_CMDLINE_LINUX=a", "a"),
        ] {
            let words: Vec<String> = shown(&[("/f", line)])
                .unwrap()
                .iter()
                .map(|a| a.split_once(' ').unwrap().1.to_owned())
                .collect();
            assert_eq!(words.join(" "), arguments, "{line}");
        }
    }

    #[test]
    fn what_is_not_plain_is_refused_with_its_line() {
        for (text, said) in [
            ("if true; then", "/f:1: it is no plain assignment"),
            (". /etc/other", "/f:1: it is no plain assignment"),
            ("GRUB_CMDLINE_LINUX+=\" b\"", "/f:1: it is no plain assignment"),
            ("\nGRUB_CMDLINE_LINUX=\"a", "/f:2: the quote is not closed on its line"),
            ("GRUB_CMDLINE_LINUX=\"a \\\nb\"", "/f:1: it goes on in the next line"),
            (
                "GRUB_CMDLINE_LINUX=\"$(cat /etc/args)\"",
                "/f:1: its value is what a command says, or an expansion that only a shell knows",
            ),
            (
                "GRUB_CMDLINE_LINUX=\"${X:-a}\"",
                "/f:1: its value is what a command says, or an expansion that only a shell knows",
            ),
            (
                "GRUB_CMDLINE_LINUX=\"$EXTRA a\"",
                "/f:1: what '$EXTRA' is there is not known",
            ),
            (
                "GRUB_CMDLINE_LINUX=a; true",
                "/f:1: a character in it that is not quoted means something to a shell",
            ),
            ("GRUB_CMDLINE_LINUX=a b", "/f:1: there is more behind the assignment"),
            (
                "GRUB_CMDLINE_LINUX=\"a\"\r\n",
                "/f:1: it has a control character, as the line ends of Windows are",
            ),
            ("unset GRUB_CMDLINE_LINUX", "/f:1: it is no plain assignment"),
            (
                "GRUB_OTHER=\"$(echo \")\")\"",
                "/f:1: its value is what a command says, or an expansion that only a shell knows",
            ),
        ] {
            assert_eq!(shown(&[("/f", text)]).unwrap_err(), said, "{text}");
        }
    }
}
