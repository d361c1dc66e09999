//! Every row of the table, asked: the report, and what it counts.

use serde::Serialize;

use crate::check::facts::Facts;
use crate::check::finding::{Finding, Level, skip};
use crate::check::table::{ROWS, Room, Row};

/// What one check has said.
#[derive(Debug)]
pub struct Said {
    /// The check.
    pub row: &'static Row,
    /// What it has found; one at least.
    pub findings: Vec<Finding>,
}

/// What all checks have said, in the order of the table.
#[derive(Debug)]
pub struct Report(pub Vec<Said>);

/// How many findings there are of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub struct Summary {
    /// All of them.
    pub total: usize,
    /// As it should be.
    pub passed: usize,
    /// Worth knowing.
    pub informed: usize,
    /// Nothing to look at, or asked to leave out.
    pub skipped: usize,
    /// Could not be looked at.
    pub not_looked_at: usize,
    /// Unusual.
    pub notices: usize,
    /// May be in the way.
    pub warnings: usize,
    /// In the way.
    pub failures: usize,
}

/// Asks every check but those to skip.
pub fn run(facts: &Facts, skipped: &[&str]) -> Report {
    let ask = |row: &'static Row| {
        let findings = match skipped.contains(&row.id) {
            true => vec![skip("left out, as asked")],
            false => (row.look)(facts).unwrap_or_else(|why| vec![why.into()]),
        };
        Said { row, findings }
    };
    Report(ROWS.iter().map(ask).collect())
}

impl Report {
    /// The rooms, each with what its checks have said.
    pub fn rooms(&self) -> impl Iterator<Item = (Room, &[Said])> {
        let by_room = self.0.chunk_by(|a, b| a.row.room == b.row.room);
        by_room.filter_map(|said| Some((said.first()?.row.room, said)))
    }

    /// How many there are of each kind.
    pub fn summary(&self) -> Summary {
        let mut summary = Summary::default();
        for finding in self.0.iter().flat_map(|s| &s.findings) {
            summary.total += 1;
            let count = match finding.level {
                Level::Pass => &mut summary.passed,
                Level::Info => &mut summary.informed,
                Level::Skip if finding.looked => &mut summary.skipped,
                Level::Skip => &mut summary.not_looked_at,
                Level::Notice => &mut summary.notices,
                Level::Warn => &mut summary.warnings,
                Level::Fail => &mut summary.failures,
            };
            *count += 1;
        }
        summary
    }
}

/// The names of checks that are nearest to one that there is none of: those with the fewest letters to change, or that it
/// is a part of.
pub fn close_to(name: &str) -> Vec<&'static str> {
    let near = |row: &Row| match row.id.contains(name) && name.len() > 2 {
        true => 0,
        false => distance(name, row.id),
    };
    let Some(best) = ROWS
        .iter()
        .map(near)
        .min()
        .filter(|best| *best <= 3 && *best < name.len())
    else {
        return Vec::new();
    };
    ROWS.iter()
        .filter(|row| near(row) == best)
        .take(3)
        .map(|row| row.id)
        .collect()
}

/// How many letters to change, add or leave out lead from one to the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let changed = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_name_has_close_ones() {
        assert_eq!(close_to("iomu"), ["iommu"]);
        assert_eq!(close_to("hook-vm"), ["hook-vms"]);
        assert_eq!(close_to("rebar"), ["gpu-rebar"]);
        assert_eq!(close_to("nothing-like-it"), Vec::<&str>::new());
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
