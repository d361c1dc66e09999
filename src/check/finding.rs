//! What a check says: findings with their level, or that it could not look.

use serde::Serialize;

/// How a finding counts: the words of Proxmox's own checklists (pve-manager, PVE/CLI/pve8to9.pm, log_pass to log_fail).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Pass,
    /// Worth knowing.
    Info,
    /// Not looked at: nothing to look at here, asked to leave it out, or it could not be seen.
    Skip,
    /// Unusual, and no obstacle.
    Notice,
    /// It may keep a handoff from working.
    Warn,
    /// A handoff does not work like this, or the GPU does not come home.
    Fail,
}

impl Level {
    /// The word before a line.
    pub fn word(self) -> &'static str {
        match self {
            Level::Pass => "PASS",
            Level::Info => "INFO",
            Level::Skip => "SKIP",
            Level::Notice => "NOTICE",
            Level::Warn => "WARN",
            Level::Fail => "FAIL",
        }
    }
}

/// A place in a file of the host's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// The file, as on the host.
    pub file: String,
    /// Its line, from 1; None: the file as a whole.
    pub line: Option<usize>,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}", self.file),
            None => f.write_str(&self.file),
        }
    }
}

/// One thing that a check has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How it counts.
    pub level: Level,
    /// Where it stands.
    #[serde(flatten)]
    pub place: Option<Place>,
    /// What it is, a clause.
    pub text: String,
    /// The command or the edit that mends it.
    pub hint: Option<String>,
    /// False: it could not be looked at.
    pub looked: bool,
}

impl Finding {
    fn new(level: Level, text: impl Into<String>) -> Self {
        Finding {
            level,
            place: None,
            text: text.into(),
            hint: None,
            looked: true,
        }
    }

    /// The same, of this level.
    pub fn of(level: Level, text: impl Into<String>) -> Self {
        Finding::new(level, text)
    }

    /// The same with where it stands.
    #[must_use]
    pub fn at(mut self, file: impl Into<String>, line: impl Into<Option<usize>>) -> Self {
        self.place = Some(Place {
            file: file.into(),
            line: line.into(),
        });
        self
    }

    /// The same with what mends it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// As it should be.
pub fn pass(text: impl Into<String>) -> Finding {
    Finding::new(Level::Pass, text)
}

/// Worth knowing.
pub fn info(text: impl Into<String>) -> Finding {
    Finding::new(Level::Info, text)
}

/// Nothing to look at.
pub fn skip(text: impl Into<String>) -> Finding {
    Finding::new(Level::Skip, text)
}

/// Unusual.
pub fn notice(text: impl Into<String>) -> Finding {
    Finding::new(Level::Notice, text)
}

/// It may be in the way.
pub fn warn(text: impl Into<String>) -> Finding {
    Finding::new(Level::Warn, text)
}

/// It is in the way.
pub fn fail(text: impl Into<String>) -> Finding {
    Finding::new(Level::Fail, text)
}

/// Why a check could not look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotSeen(pub String);

/// What a check says: what it has found, or that it could not look.
pub type Looked = Result<Vec<Finding>, NotSeen>;

/// One finding, as a check's whole answer.
impl From<Finding> for Looked {
    fn from(finding: Finding) -> Self {
        Ok(vec![finding])
    }
}

/// What was found, or, where that is nothing, that all is well.
pub fn or_pass(found: Vec<Finding>, text: impl Into<String>) -> Looked {
    Ok(if found.is_empty() { vec![pass(text)] } else { found })
}

impl From<NotSeen> for Finding {
    fn from(why: NotSeen) -> Self {
        Finding {
            looked: false,
            ..Finding::new(Level::Skip, format!("could not look: {}", why.0))
        }
    }
}
