//! What is said of each act while it is carried out: a line each, with its number in the plan.
//!
//! Not here: what is said at the end ([`crate::model::error`]).

use std::time::Duration;

use tracing::{info, warn};

use crate::base::text::millis;
use crate::execute::kernel::{ActError, Acted};
use crate::host::units::Unit;
use crate::model::act::Act;
use crate::model::plan::Plan;

/// The number in front of a line: which step of how many.
pub(crate) struct Count {
    at: usize,
    of: usize,
}

impl Count {
    pub(crate) fn of(plan: &Plan) -> Self {
        Count {
            at: 0,
            of: plan.steps.len(),
        }
    }

    /// A step that is left out has its number all the same.
    pub(crate) fn skip(&mut self) {
        self.at += 1;
    }

    pub(crate) fn next(&mut self) -> String {
        self.at += 1;
        let width = self.of.to_string().len();
        format!("[{:width$}/{}] ", self.at, self.of)
    }
}

/// What lies between the last look for holders of a function and an act on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gap {
    /// So much time, in which others could have opened it.
    Open(Duration),
    /// The gate was shut all the while.
    Shut,
}

/// The line of an act, with what lies between it and the last look for holders.
pub(crate) fn say(act: &Act, prefix: &str, acted: &Acted, gap: Option<Gap>) {
    let usec = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let duration_usec = usec(acted.took);
    let gap_usec = match gap {
        Some(Gap::Open(gap)) => Some(usec(gap)),
        Some(Gap::Shut) => Some(0),
        None => None,
    };
    let device = act.subject();
    match &acted.result {
        Ok(()) => info!(
            device,
            duration_usec,
            gap_usec,
            "{}",
            line(act, prefix, acted.took, gap)
        ),
        Err(error) => {
            let line = format!("{prefix}{device:<14} {}", act.verb());
            warn!(
                device,
                duration_usec,
                "{line}: failed after {}: {error}",
                millis(acted.took)
            );
        }
    }
}

/// What was done, and how long it took: with the program's name before it 80 columns.
fn line(act: &Act, prefix: &str, took: Duration, gap: Option<Gap>) -> String {
    const WIDTH: usize = 67;
    // Read after the line of the look. Whole milliseconds, rounded up: it is the most that it can have been.
    let later = match gap {
        Some(Gap::Open(gap)) => format!(" {} ms later", gap.as_micros().div_ceil(1000)),
        Some(Gap::Shut) => ", gate shut".to_owned(),
        None => String::new(),
    };
    let line = format!("{prefix}{:<14} {}{later} ", act.subject(), act.verb());
    let room = WIDTH.saturating_sub(line.chars().count());
    format!("{line}{:>room$}", millis(took))
}

/// What is to be done about a service that does not start again: the GPU does not wait for it.
pub(crate) fn say_of_service(act: &Act, error: &ActError) {
    if let Act::StartUnit { name, .. } | Act::RestartUnit { name } = act {
        let (how, by_hand) = (not_started(name, error), name.start_by_hand());
        warn!("{name} was stopped for the handoff and {how}. Hint: {by_hand}");
    }
}

/// That a service has not started, or not yet: systemd goes on with what it was asked for.
pub(crate) fn not_started(unit: &Unit, error: &ActError) -> String {
    match error {
        // Whether what is inside a container has come as far is not known.
        ActError::Overdue { within, .. } if !unit.is_of_systemd() => {
            format!("has not started again within {} s", within.as_secs())
        }
        ActError::Overdue { within, .. } => {
            format!(
                "has not started again within {} s, systemd goes on with it",
                within.as_secs()
            )
        }
        _ => "does not start again".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_how_old_the_proof_is_in_eighty_columns() {
        let us = Duration::from_micros;
        let unbind = |driver: &str| Act::Unbind {
            addr: "0000:65:00.1".parse().unwrap(),
            driver: driver.to_owned(),
        };
        for (driver, took, gap, expected) in [
            (
                "nvidia",
                us(54_800),
                None,
                "[12/27] 0000:65:00.1   unbind from nvidia                     55 ms",
            ),
            (
                "nvidia",
                us(54_800),
                Some(Gap::Open(us(2_100))),
                "[12/27] 0000:65:00.1   unbind from nvidia 3 ms later          55 ms",
            ),
            (
                "snd_hda_intel",
                us(123_400),
                Some(Gap::Open(us(12_000))),
                "[12/27] 0000:65:00.1   unbind from snd_hda_intel 12 ms later 123 ms",
            ),
            (
                "snd_hda_intel",
                us(123_400),
                Some(Gap::Shut),
                "[12/27] 0000:65:00.1   unbind from snd_hda_intel, gate shut  123 ms",
            ),
        ] {
            let line = line(&unbind(driver), "[12/27] ", took, gap);
            assert_eq!(line, expected);
            assert_eq!("gpu-handoff: ".len() + line.len(), 80);
        }
    }
}
