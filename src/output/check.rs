//! What the checks have said, for people and programs: the form of Proxmox's own checklists, and the value that
//! `check --json` prints.

use std::fmt::Write as _;

use serde::Serialize;

use crate::base::text::{harmless, printable};
use crate::check::finding::{Finding, Level};
use crate::check::report::{Report, Said, Summary};
use crate::check::table::{ROWS, Row};

/// The version of the form in JSON: it changes with the meaning of a field, not with a new one.
const VERSION: u32 = 1;

/// A terminal's width.
const COLUMNS: usize = 80;

/// Longest text of a finding, bytes: what it quotes is bounded where it is quoted.
const LONGEST: usize = 2000;

/// A check of the table, for `--list --json`.
#[derive(Debug, Serialize)]
pub struct Listed {
    /// Its name.
    pub id: &'static str,
    /// What it is about.
    pub about: &'static str,
    /// The worst that it can say.
    pub severity: Level,
    /// What it looks at.
    pub what: &'static str,
}

/// The table of checks.
pub fn listed() -> Vec<Listed> {
    let one = |row: &Row| Listed {
        id: row.id,
        about: row.room.title(),
        severity: row.severity,
        what: row.what,
    };
    ROWS.iter().map(one).collect()
}

/// The same for people.
pub fn list_text() -> String {
    let mut text = String::new();
    for row in ROWS {
        let head = format!("{:<20} {:<6} ", row.id, row.severity.word());
        text += &wrapped(&head, head.len(), row.what);
    }
    text
}

/// A finding, with its check.
#[derive(Debug, Serialize)]
pub struct Shown<'a> {
    /// The check's name.
    pub id: &'static str,
    /// What it is about.
    pub about: &'static str,
    /// What it has found.
    #[serde(flatten)]
    pub finding: &'a Finding,
}

/// All findings, and how many there are of each kind.
#[derive(Debug, Serialize)]
pub struct All<'a> {
    /// The version of this form.
    pub version: u32,
    /// In the order of the table.
    pub findings: Vec<Shown<'a>>,
    /// How many.
    pub summary: Summary,
}

/// What `check --json` prints.
pub fn shown(report: &Report) -> All<'_> {
    fn of(said: &Said) -> impl Iterator<Item = Shown<'_>> {
        said.findings.iter().map(|finding| Shown {
            id: said.row.id,
            about: said.row.room.title(),
            finding,
        })
    }
    All {
        version: VERSION,
        findings: report.0.iter().flat_map(of).collect(),
        summary: report.summary(),
    }
}

/// The findings of this level and worse.
pub fn findings(report: &Report, least: Level) -> Vec<Shown<'_>> {
    let mut all = shown(report).findings;
    all.retain(|one| one.finding.level >= least);
    all
}

/// The same for people.
pub fn findings_text(findings: &[Shown<'_>]) -> String {
    findings.iter().map(|one| line(one.id, one.finding)).collect()
}

/// What `check` prints (the form: pve-manager, PVE/CLI/pve8to9.pm).
pub fn text(report: &Report) -> String {
    let mut text = String::new();
    for (room, said) in report.rooms() {
        let _ = write!(text, "= CHECKING {} =\n\n", room.title().to_uppercase());
        for one in said {
            for finding in &one.findings {
                text += &line(one.row.id, finding);
            }
        }
        text.push('\n');
    }
    text + &summary(report.summary())
}

/// A finding: its place, what it is, and what mends it on a line of its own.
fn line(id: &str, finding: &Finding) -> String {
    let head = format!("{}: ", finding.level.word());
    let place = finding.place.as_ref().map_or(String::new(), |place| {
        format!("{}: ", harmless(&place.to_string(), 300))
    });
    let text = printable(&format!("{id}: {place}{}", finding.text), LONGEST);
    let mut lines = wrapped(&head, head.len(), &text);
    if let Some(hint) = &finding.hint {
        lines += &wrapped(
            &format!("{}Hint: ", " ".repeat(head.len())),
            head.len() + 2,
            &printable(hint, LONGEST),
        );
    }
    lines
}

/// A text behind its head, in lines of a terminal's width; the following ones begin with so many blanks. A word that is
/// longer than a line is broken.
fn wrapped(head: &str, indent: usize, text: &str) -> String {
    let mut lines = head.to_owned();
    let mut used = head.chars().count();
    let mut first = true;
    for word in text.split(' ').filter(|w| !w.is_empty()) {
        let mut word: Vec<char> = word.chars().collect();
        if !first && used + 1 + word.len() > COLUMNS {
            lines.push('\n');
            lines += &" ".repeat(indent);
            used = indent;
        } else if !first {
            lines.push(' ');
            used += 1;
        }
        first = false;
        while used + word.len() > COLUMNS {
            let rest = word.split_off(COLUMNS - used);
            lines.extend(word);
            lines.push('\n');
            lines += &" ".repeat(indent);
            (word, used) = (rest, indent);
        }
        used += word.len();
        lines.extend(word);
    }
    lines.push('\n');
    lines
}

fn summary(summary: Summary) -> String {
    let not_seen = match summary.not_looked_at {
        0 => String::new(),
        n => format!(" (and {n} that could not be looked at)"),
    };
    let mut text = format!(
        "= SUMMARY =\n\nTOTAL:    {}\nPASSED:   {}\nINFOS:    {}\nSKIPPED:  {}{not_seen}\nNOTICES:  \
                {}\nWARNINGS: {}\nFAILURES: {}\n",
        summary.total,
        summary.passed,
        summary.informed,
        summary.skipped,
        summary.notices,
        summary.warnings,
        summary.failures,
    );
    if summary.failures + summary.warnings > 0 {
        text += "\nATTENTION: Please check the output for detailed information!\n";
    }
    if summary.failures > 0 {
        text += "Try to solve the problems one at a time and then run this check again.\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::check::finding::fail;

    #[test]
    fn nothing_is_wider_than_a_terminal() {
        let long = "x".repeat(200);
        let finding = fail(format!(
            "a\u{1b}[2J {long} and more words than fit on the line that this one begins with"
        ))
        .at(format!("/etc/{long}"), Some(3))
        .hint("make it 'options vfio-pci ids=1b21:2142', then 'update-initramfs -u -k all' and reboot, or do not");
        let text = line("vfio-ids", &finding);
        assert!(text.lines().all(|l| l.chars().count() <= COLUMNS), "{text}");
        assert!(!text.contains('\u{1b}'));
        assert!(text.starts_with("FAIL: vfio-ids:"), "{text}");
        assert_eq!(wrapped("PASS: ", 6, "well"), "PASS: well\n");
        assert!(list_text().lines().all(|l| l.chars().count() <= COLUMNS));
    }
}
