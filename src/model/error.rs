//! How a run ends: the exit codes, and the one error type whose text the administrator reads.
//!
//! Not for control flow inside a run: a plan that refuses is a value ([`crate::model::refusal::Refusal`]), an act that
//! fails is a value ([`crate::execute::kernel::ActError`]); they become an [`Error`] once, at the end.

use std::process::ExitCode;

use crate::model::refusal::{Reason, Refusal};
use crate::settings::file::NotUnderstood;

/// The exit codes, each one of the ends a run can have. Documented in the README and the man page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done, or nothing to do.
    Done = 0,
    /// Failed, and the host is as it was, but for what the text says (unexpected I/O errors too).
    Failed = 1,
    /// The command line is not one of ours.
    Usage = 2,
    /// Refused, and nothing was changed; of a check: a handoff would not work.
    Refused = 3,
    /// Failed and not restored: a device is wedged or stranded and the text says what to do.
    NotRestored = 4,
    /// A deadline passed while waiting (lock, holder, QEMU), and nothing was changed.
    Overdue = 5,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// Why a run did not end well. The text is a sentence, with a "Hint:" where the user can act; it does not
/// repeat its source, because the chain is printed on one line at the end of the run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line is not one of ours; the text says why.
    #[error("{0}")]
    Usage(String),
    /// The plan refused; nothing was touched. The refusal lists every reason found.
    #[error("{0}")]
    Refused(Refusal),
    /// Checks have failed; their findings are printed.
    #[error("{failures} {} FAIL, as printed. Hint: mend them one by one, and check again", if *.failures == 1 { "finding is a" } else { "findings are a" })]
    Unfit {
        /// How many findings are a FAIL.
        failures: usize,
    },
    /// An act failed and everything before it was undone.
    #[error("{what}; the host is as it was before")]
    Restored {
        /// What failed, on which device, why.
        what: String,
    },
    /// The same but for what no GPU depends on: a console that nothing gives back, a service that does not start again.
    #[error("{what}; all else is as it was before, but {but}")]
    RestoredBut {
        /// What failed, on which device, why.
        what: String,
        /// What is not as it was, each with a hint.
        but: String,
    },
    /// The same, and what the plan was made for has changed, but there is no second one.
    #[error("{what}; the host is as it was before. A second plan: {why}")]
    NoSecondPlan {
        /// What failed of the first plan, on which device, why.
        what: String,
        /// A refusal, or why there is no answer.
        why: Box<Error>,
    },
    /// An act failed and not everything could be undone, or a call is stuck in the kernel.
    #[error("{what}; not restored: {left}. Hint: {hint}")]
    NotRestored {
        /// What failed at first, on which device, why.
        what: String,
        /// The devices or acts that are not as they were.
        left: String,
        /// What still helps, with the command for it.
        hint: String,
    },
    /// Waited as long as allowed; nothing was changed.
    #[error("{what} within {} s; nothing was changed. Hint: {hint}", .within.as_secs())]
    Overdue {
        /// What did not happen.
        what: String,
        /// How long was waited; said in whole seconds.
        within: std::time::Duration,
        /// What the user can do about it.
        hint: String,
    },
    /// Not everything that was to be done for several could be: not all that was stranded was brought home, say.
    #[error("{what}")]
    Recovery {
        /// Of the first of them: the run ends with it.
        exit: Exit,
        /// Whose the first of them is, and why it could not.
        what: String,
    },
    /// A refusal, or a wait that was too long, after something else was done for it: a GPU brought home first, a call of
    /// somebody else's freed. That stays.
    #[error("what was done so far stays done; then: {}", .why.without_promise())]
    Beside {
        /// What ends the run.
        why: Box<Error>,
    },
    /// A signal asked us to end while we waited.
    #[error("a signal asked us to end while waiting; nothing was changed")]
    Interrupted,
    /// Reading or writing failed where it was not expected to.
    #[error("{what}")]
    Io {
        /// What was tried, on which file.
        what: String,
        /// What the system said: the next link of the chain that is printed.
        source: std::io::Error,
    },
}

impl From<Refusal> for Error {
    /// Not a source: the refusal's text is the whole message, and a chain would say it twice.
    fn from(refusal: Refusal) -> Self {
        Error::Refused(refusal)
    }
}

impl From<NotUnderstood> for Error {
    fn from(settings: NotUnderstood) -> Self {
        Refusal::from(Reason::Other(settings.to_string())).into()
    }
}

impl Error {
    /// An error of the system with what was tried, which the system does not say.
    pub fn io(what: impl Into<String>, source: std::io::Error) -> Self {
        Error::Io {
            what: what.into(),
            source,
        }
    }

    /// The same error of a run that has done something by then: it may not say that nothing was changed.
    #[must_use]
    pub fn beside(self) -> Error {
        match self {
            Error::Recovery {
                exit: Exit::Refused | Exit::Overdue,
                what,
            } => Error::Recovery {
                exit: Exit::Failed,
                what,
            },
            why @ (Error::Refused(_) | Error::Overdue { .. } | Error::Interrupted) => {
                Error::Beside { why: Box::new(why) }
            }
            error => error,
        }
    }

    /// Its text, but for that nothing was changed.
    pub fn without_promise(&self) -> String {
        match self {
            Error::Overdue { what, within, hint } => format!("{what} within {} s. Hint: {hint}", within.as_secs()),
            Error::Interrupted => "a signal asked us to end while waiting".to_owned(),
            error => error.to_string(),
        }
    }

    /// How a run ends that this error ends: what Proxmox and scripts see of it.
    pub fn exit(&self) -> Exit {
        match self {
            Error::Usage(_) => Exit::Usage,
            Error::Recovery { exit, .. } => *exit,
            Error::Refused(_) | Error::Unfit { .. } => Exit::Refused,
            Error::Restored { .. }
            | Error::RestoredBut { .. }
            | Error::NoSecondPlan { .. }
            | Error::Beside { .. }
            | Error::Interrupted
            | Error::Io { .. } => Exit::Failed,
            Error::NotRestored { .. } => Exit::NotRestored,
            Error::Overdue { .. } => Exit::Overdue,
        }
    }
}

/// The text that a run ends with: an error and its causes on one line, the outermost first.
///
/// Not by way of [`anyhow::Error`]: with RUST_BACKTRACE in the environment that looks for the callers, and the package's binary has
/// no tables to find them by, for which the C compiler's library ends the process (gcc, libgcc/unwind-dw2.c, uw_init_context_1).
pub fn chain(error: Error) -> String {
    let error: Box<dyn std::error::Error> = error.into();
    let causes: Vec<String> = anyhow::Chain::new(&*error).map(ToString::to_string).collect();
    causes.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::time::Duration;

    #[test]
    fn who_has_done_something_does_not_say_that_nothing_was_changed() {
        let refused = || Error::Refused(Refusal::from(Reason::Other("no. Hint: yes".to_owned())));
        let late = Error::Overdue {
            what: "nobody came".to_owned(),
            within: Duration::from_secs(5),
            hint: "wait".to_owned(),
        };
        let recovery = |exit| Error::Recovery {
            exit,
            what: "VM 111: no".to_owned(),
        };
        for (error, said) in [
            (refused(), "what was done so far stays done; then: no. Hint: yes"),
            (
                late,
                "what was done so far stays done; then: nobody came within 5 s. Hint: wait",
            ),
            (
                Error::Interrupted,
                "what was done so far stays done; then: a signal asked us to end while waiting",
            ),
            (recovery(Exit::Refused), "VM 111: no"),
            (recovery(Exit::Overdue), "VM 111: no"),
        ] {
            let beside = error.beside();
            assert_eq!((beside.exit(), beside.to_string().as_str()), (Exit::Failed, said));
        }
        // What says by itself how the host is stays as it is.
        for error in [recovery(Exit::NotRestored), Error::Restored { what: "a".to_owned() }] {
            let (exit, text) = (error.exit(), error.to_string());
            let beside = error.beside();
            assert_eq!((beside.exit(), beside.to_string()), (exit, text));
        }
        assert_eq!(refused().exit(), Exit::Refused);
    }
}
