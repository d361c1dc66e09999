//! Programs that are run for an act: to their end, or to that of the run; and what starts and stops whoever uses a GPU.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use crate::base::root::Root;
use crate::base::text::{harmless, one_line};
use crate::base::wait::poll_readable;
use crate::execute::kernel::ActError;
use crate::host::unit_states;
use crate::host::units::{Unit, Verb, is_down, runs};

/// How much of what a program says is quoted in an error, characters: the end tells most.
const STDERR_TAIL: usize = 400;

/// Stops or starts a unit or a container. Only of a container of Proxmox's it is asked before whether it is so already: what
/// pct(1) is asked twice it refuses (pve-container, PVE/API2/LXC/Status.pm), and the others do not. `within_s`: how long a container
/// has for its end.
pub(crate) fn switch(root: &Root, unit: &Unit, verb: Verb, within_s: u64) -> Result<(), ActError> {
    let words = unit.command(verb, within_s);
    // What has ended since, or was stopped in its place, uses the driver again when it runs.
    if let Some(service) = unit.runs_on().filter(|_| verb != Verb::Stop)
        && is_so(root, &service, Verb::Stop)
    {
        return run(root, &service.command(Verb::Start, 0));
    }
    // It is ending where an earlier stop was cut off, which goes on by itself; what somebody has started since runs on.
    if let Some(wait) = unit.await_end(within_s).filter(|_| verb == Verb::Start)
        && is_so(root, unit, verb)
    {
        let _ = run(root, &wait);
    }
    with_patience(unit, verb, || match unit {
        Unit::Whole { .. } | Unit::OfHa { .. } => switch_whole(root, unit, &words, verb),
        _ => run_it(root, unit, &words, verb),
    })
}

/// A container is not left half started: that goes on where the run does not, and is not begun then.
fn run_it(root: &Root, unit: &Unit, words: &[String], verb: Verb) -> Result<(), ActError> {
    if verb == Verb::Stop || !unit.is_container() {
        return run(root, words);
    }
    if root.is_real() && poll_readable(&[io::stdin().as_fd()], Duration::ZERO) == [true] {
        return Err(ActError::Failed("who has asked for it has gone".to_owned()));
    }
    run_for(root, words, None)
}

/// A container of Proxmox's, by pct(1).
pub(crate) fn switch_whole(root: &Root, unit: &Unit, words: &[String], verb: Verb) -> Result<(), ActError> {
    await_lock(root, unit);
    if is_so(root, unit, verb) {
        return Ok(());
    }
    run_it(root, unit, words, verb).or_else(|why| if is_so(root, unit, verb) { Ok(()) } else { Err(why) })
}

/// Starts of containers, and in containers, are tried once more: they fail on a lock that another task has for a moment. systemd's
/// own units say with Restart= what they want. The caller's deadline is for both.
pub(crate) fn with_patience(
    unit: &Unit,
    verb: Verb,
    mut attempt: impl FnMut() -> Result<(), ActError>,
) -> Result<(), ActError> {
    let is_worth_it = verb != Verb::Stop && !unit.is_of_systemd() && unit.runs_on().is_none();
    match attempt() {
        Err(ActError::Failed(_)) if is_worth_it => attempt(),
        first => first,
    }
}

/// Waits until nobody is at work on a container: a shutdown that was cut off goes on by itself, with its lock, and what looks as if
/// it ran is on its way down (pve-container, PVE/AbstractConfig.pm, lock_config; the caller's deadline ends the wait).
fn await_lock(root: &Root, unit: &Unit) {
    let Some(ctid) = unit.container() else { return };
    if let Ok(file) = File::open(root.path(format!("/run/lock/lxc/pve-config-{ctid}.lock"))) {
        let _ = file.lock_shared();
    }
}

/// Whether a container is down already, or runs.
pub(crate) fn is_so(root: &Root, unit: &Unit, verb: Verb) -> bool {
    unit_states::read_one(root, unit).is_ok_and(|said| match verb {
        Verb::Stop => is_down(&said.state),
        Verb::Start | Verb::Restart => runs(&said.state),
    })
}

/// Runs a program that only waits for others, to its end or to that of the run; an error quotes the end of what it says.
pub(crate) fn run(root: &Root, words: &[String]) -> Result<(), ActError> {
    run_for(root, words, Some(io::stdin().as_fd()))
}

fn run_for(root: &Root, words: &[String], asked_by: Option<BorrowedFd<'_>>) -> Result<(), ActError> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let said = root
        .program_for(&words, asked_by)
        .map_err(|e| ActError::Failed(format!("{} does not run: {e}", words[0])))?;
    if said.ok {
        return Ok(());
    }
    Err(ActError::Failed(failed(&words, &said.stderr)))
}

/// That a program failed, in words.
pub(crate) fn failed(words: &[&str], stderr: &str) -> String {
    let line = one_line(stderr);
    let skip = line.chars().count().saturating_sub(STDERR_TAIL);
    let tail: String = line.chars().skip(skip).collect();
    format!("{} failed: {}", words.join(" "), harmless(&tail, STDERR_TAIL))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::units::Client;

    /// A host on which these programs say something, or fail.
    fn host(answers: &[(&str, &str)], failing: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let programs = dir.path().join("programs");
        std::fs::create_dir_all(programs.join("failed")).unwrap();
        for (words, answer) in answers {
            let (name, said) = crate::base::recording::file_of(words, (*answer).to_owned());
            std::fs::write(programs.join(name), said).unwrap();
        }
        for (words, answer) in failing {
            std::fs::write(programs.join("failed").join(words), answer).unwrap();
        }
        dir
    }

    #[test]
    fn a_container_that_does_not_start_at_once_is_started_once_more() {
        let podman = Unit::Run {
            client: Client::Podman,
            id: "ec23".repeat(16),
        };
        let service = Unit::Host("ollama.service".into());
        for (unit, verb, failures, attempts, is_well) in [
            (&podman, Verb::Start, 0, 1, true),
            (&podman, Verb::Start, 1, 2, true),
            (&podman, Verb::Restart, 9, 2, false),
            (&podman, Verb::Stop, 9, 1, false),
            (&service, Verb::Start, 9, 1, false),
        ] {
            let mut made = 0;
            let result = with_patience(unit, verb, || {
                made += 1;
                if made > failures {
                    return Ok(());
                }
                Err(ActError::Failed("CT is locked (backup)".into()))
            });
            assert_eq!((made, result.is_ok()), (attempts, is_well), "{unit:?} {verb:?}");
        }
    }

    /// One that is ending has ended by then; one that somebody has started runs on.
    #[test]
    fn a_container_of_a_clients_that_runs_is_not_stopped_to_be_started() {
        let id = "ec23".repeat(16);
        let unit = Unit::Run {
            client: Client::Docker,
            id: id.clone(),
        };
        let inspect = format!(
            "docker container inspect --format {{{{.State.Status}}}}\n{{{{.HostConfig.AutoRemove}}}}\n{{{{index .Config.Labels \
             \"PODMAN_SYSTEMD_UNIT\"}}}}\n{{{{index .Config.Labels \"com.docker.swarm.task.id\"}}}}\n{{{{.Config.StopTimeout}}}} {id}"
        );
        let (start, stop) = (format!("docker start {id}"), format!("docker stop -t 120 {id}"));
        for state in ["running\nfalse\n\n", "exited\nfalse\n\n"] {
            let dir = host(&[(&inspect, state), (&start, "")], &[]);
            assert!(
                switch(&Root::at(dir.path()), &unit, Verb::Start, 120).is_ok(),
                "{state}"
            );
            assert!(
                switch(&Root::at(dir.path()), &unit, Verb::Stop, 120).is_err(),
                "{state}"
            );
            let dir = host(&[(&inspect, state), (&stop, "")], &[]);
            assert!(switch(&Root::at(dir.path()), &unit, Verb::Stop, 120).is_ok(), "{state}");
        }
        assert_eq!(
            unit.await_end(120).unwrap().join(" "),
            format!("timeout --foreground 120 docker wait {id}")
        );
        // timeout(1) waits without end for no time at all.
        assert_eq!(unit.await_end(0), None);
    }

    /// With its service stopped in its place, or by somebody, there is nothing to ask.
    #[test]
    fn what_runs_on_is_asked_to_use_the_driver_again_and_what_has_ended_is_started() {
        let driver_use = Unit::DriverUse {
            driver_use_of: "nvidia-dcgm.service".into(),
        };
        for (state, verb, asked) in [
            ("active", Verb::Start, "dcgmi set --attach-driver"),
            ("activating", Verb::Start, "dcgmi set --attach-driver"),
            ("inactive", Verb::Start, "systemctl start -- nvidia-dcgm.service"),
            ("failed", Verb::Start, "systemctl start -- nvidia-dcgm.service"),
            ("active", Verb::Stop, "dcgmi set --detach-driver"),
        ] {
            let dir = host(&[], &[(asked, "it is the one")]);
            let show = unit_states::shown_by("nvidia-dcgm.service");
            std::fs::write(dir.path().join("programs").join(show), format!("ActiveState={state}\n")).unwrap();
            let why = switch(&Root::at(dir.path()), &driver_use, verb, 0).unwrap_err();
            assert_eq!(why.to_string(), format!("{asked} failed: it is the one"), "{state}");
        }
    }

    #[test]
    fn a_container_that_is_as_it_is_to_be_is_left_alone_and_one_that_fails_is_named() {
        let whole = Unit::Whole {
            container: "104".parse().unwrap(),
        };
        let refused = ("pct start 104", "CT 104 already running\n");
        for (state, failing, verb, is_well) in [
            ("status: running\n", vec![refused], Verb::Start, true),
            ("status: stopped\n", vec![refused], Verb::Start, false),
            ("status: stopped\n", vec![], Verb::Stop, true),
            ("status: running\n", vec![], Verb::Stop, false),
        ] {
            let dir = host(&[("pct status 104", state)], &failing);
            let result = switch(&Root::at(dir.path()), &whole, verb, 30);
            assert_eq!(result.is_ok(), is_well, "{state} {verb:?}: {result:?}");
        }
        let dir = host(&[], &[("pct start 104", "no quorum\u{1b}\n")]);
        let why = switch(&Root::at(dir.path()), &whole, Verb::Start, 30).unwrap_err();
        assert_eq!(why.to_string(), "pct start 104 failed: no quorum\\u{1b}");
    }
}
