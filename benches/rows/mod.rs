//! How a benchmark hands its figures to tests/bench: a line of JSON each, where the environment asks for it.

#![allow(dead_code)] // each benchmark wants another part of it

use std::collections::BTreeMap;
use std::io::{self, Write as _};

/// What tests/bench sets.
const ASKED: &str = "GPU_HANDOFF_BENCH";

/// One row of a table, with its figures; those that could not be had are left out.
pub fn tell(table: &str, row: &str, tool: &str, figures: &[(&str, Option<f64>)]) -> io::Result<()> {
    if std::env::var_os(ASKED).is_none() {
        return Ok(());
    }
    let mut line = serde_json::json!({"table": table, "row": row, "tool": tool});
    for (name, figure) in figures {
        if let Some(figure) = figure {
            line[name] = serde_json::json!((figure * 100.0).round() / 100.0);
        }
    }
    writeln!(io::stdout(), "bench: {line}")
}

/// A count as a figure.
pub fn whole(count: u64) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

/// The instructions that callgrind has counted, by process: "==4711== Collected : 427123".
pub fn collected_by(text: &str) -> BTreeMap<u32, u64> {
    let one = |line: &str| {
        let (of, count) = line.split_once("== Collected : ")?;
        Some((of.trim_start_matches('=').parse().ok()?, count.trim().parse().ok()?))
    };
    text.lines().filter_map(one).collect()
}

/// Those of the process that was started.
pub fn collected(text: &str) -> Option<u64> {
    collected_by(text).into_values().next()
}
