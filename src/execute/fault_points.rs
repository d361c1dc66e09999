//! Where the crash campaigns of the tests have a run killed. They are in builds with the feature `fault-points` alone, which
//! the package is not built with.
//!
//! `GPU_HANDOFF_TEST_KILL=N:before|in|after` in the environment kills the run in its Nth round of acts.

/// A moment of a round of acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "fault-points"), allow(dead_code))] // told apart only where they count
pub(crate) enum Point {
    /// It is on record, and no worker knows of it.
    Before,
    /// The workers have it.
    In,
    /// It is done, and the record does not say so.
    After,
}

#[cfg(feature = "fault-points")]
mod build {
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    use super::Point;

    /// Where this run is to be killed.
    #[derive(Debug)]
    pub(crate) struct FaultPoints(Option<(u32, Point)>);

    impl Default for FaultPoints {
        fn default() -> Self {
            FaultPoints(
                std::env::var("GPU_HANDOFF_TEST_KILL")
                    .ok()
                    .and_then(|text| parse(&text)),
            )
        }
    }

    fn parse(text: &str) -> Option<(u32, Point)> {
        let (round, point) = text.split_once(':')?;
        let point = match point {
            "before" => Point::Before,
            "in" => Point::In,
            "after" => Point::After,
            _ => return None,
        };
        Some((round.parse().ok()?, point))
    }

    impl FaultPoints {
        /// As the environment has it; what is not understood is none.
        pub(crate) fn from_env() -> Self {
            FaultPoints(
                std::env::var("GPU_HANDOFF_TEST_KILL")
                    .ok()
                    .and_then(|text| parse(&text)),
            )
        }

        /// The run has come here, and may end here.
        pub(crate) fn reached(&mut self, now: Point) {
            let Some((round, point)) = &mut self.0 else { return };
            if *round == 1 && *point == now {
                let _ = kill(Pid::this(), Signal::SIGKILL);
            }
            if now == Point::After {
                *round = round.saturating_sub(1);
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_round_and_a_moment_are_told_from_everything_else() {
            for (text, expected) in [
                ("12:after", Some((12, Point::After))),
                ("1:before", Some((1, Point::Before))),
                ("3:in", Some((3, Point::In))),
                ("3:later", None),
                ("x:in", None),
                ("3", None),
            ] {
                assert_eq!(parse(text), expected, "{text:?}");
            }
        }
    }
}

#[cfg(not(feature = "fault-points"))]
mod build {
    use super::Point;

    /// None: this build has no switch of the tests.
    #[derive(Debug)]
    pub(crate) struct FaultPoints;

    impl FaultPoints {
        pub(crate) fn from_env() -> Self {
            FaultPoints
        }

        /// Nothing.
        #[allow(clippy::unused_self)] // the other build has use for it
        pub(crate) fn reached(&mut self, _: Point) {}
    }
}

pub(crate) use build::FaultPoints;
