//! The lines of a guest that attach sets and detach takes away. Which ones attach has set is kept on disk: detach takes these
//! away, and no others. Pure.

use serde::{Deserialize, Serialize};

use crate::attach::guest::Name;
use crate::base::json;
use crate::base::pci::PciAddr;
use crate::base::text::foreign;

/// The form of the file. A field that goes, or means something else, makes it another one.
const VERSION: u32 = 1;

/// A line that attach has set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Its key: hostpciN, devN.
    pub key: String,
    /// Its value, as it was set: once it has another one it is somebody's.
    pub value: String,
    /// The GPU that it gives; None: what every GPU needs.
    #[serde(default)]
    pub gpu: Option<PciAddr>,
}

/// Lines to set, and sentences about them.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) lines: Vec<Line>,
    pub(crate) notes: Vec<String>,
}

/// The keys of lines that go, and sentences about those that stay.
#[derive(Debug, Default)]
pub(crate) struct Unwanted {
    pub(crate) keys: Vec<String>,
    pub(crate) notes: Vec<String>,
}

/// That a line stays which attach has not set, or not so.
pub(crate) fn stays(of: Name, key: &str, value: &str) -> String {
    format!(
        "{of} has {key} ({}) still, which attach has not set, or not so: '{} set {} --delete {key}' takes it out.",
        foreign(value),
        of.kind.tool(),
        of.id
    )
}

#[derive(Serialize, Deserialize)]
struct Kept {
    version: u32,
    #[serde(default)]
    lines: Vec<Line>,
}

/// The text of the file.
pub fn text(lines: &[Line]) -> String {
    let kept = Kept {
        version: VERSION,
        lines: lines.to_vec(),
    };
    serde_json::to_string(&kept).unwrap_or_default() + "\n"
}

/// What a file says.
///
/// # Errors
/// Why it is none that is understood.
pub fn parse(bytes: &[u8]) -> Result<Vec<Line>, String> {
    let kept: Kept = json::from_slice(bytes).map_err(|e| e.to_string())?;
    match kept.version {
        VERSION => Ok(kept.lines),
        other => Err(format!("it has the form {other}, of a later version")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_again_and_a_later_form_is_not_guessed_at() {
        let lines = vec![
            Line {
                key: "hostpci0".to_owned(),
                value: "0000:01:00,pcie=1".to_owned(),
                gpu: Some("0000:01:00.0".parse().unwrap()),
            },
            Line {
                key: "dev1".to_owned(),
                value: "/dev/nvidiactl".to_owned(),
                gpu: None,
            },
        ];
        assert_eq!(parse(text(&lines).as_bytes()), Ok(lines));
        assert_eq!(parse(b"{\"version\":1}"), Ok(Vec::new()));
        assert_eq!(
            parse(b"{\"version\":2,\"lines\":[]}"),
            Err("it has the form 2, of a later version".to_owned())
        );
        assert!(parse(b"").is_err());
    }
}
