//! What runs already when it is to be started again: somebody has started it while the GPU was away. It is left alone, and named:
//! most programs look for a GPU only when they begin.
//!
//! Part of the worker's side. Not here: the start itself ([`crate::execute::programs`]).

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use crate::base::root::Root;
use crate::execute::programs::is_so;
use crate::host::container_nodes;
use crate::host::unit_names::is_starter;
use crate::host::units::{Unit, Verb, runs};
use crate::model::act::Act;

/// What is said of it, if this is a start. `began`: when the run did, on the clock of [`crate::execute::prove_free::now`]. What systemd
/// has started since then it has for this run: what a socket has that we have started, or another service wants.
pub(crate) fn note(root: &Root, act: &Act, began: Option<Duration>) -> Option<String> {
    let Act::StartUnit {
        name: unit,
        has_ended: true,
        ..
    } = act
    else {
        return None;
    };
    let is_running = match unit {
        // It runs all the while.
        Unit::DriverUse { .. } => false,
        Unit::Whole { container }
        | Unit::OfHa {
            ha_container: container,
        } => container_nodes::runs(root, *container),
        Unit::Run { .. } => is_so(root, unit, Verb::Start),
        // What starts others uses no GPU itself.
        _ if is_starter(&unit.name()) => false,
        _ => began.is_some_and(|began| has_run_since_before(root, unit, began)),
    };
    let verb = if unit.is_whole() { "reboot" } else { "restart" };
    is_running.then(|| {
        format!(
            "it runs already, since somebody has started it meanwhile, and may do without the GPU. Hint: {}",
            unit.by_hand(verb)
        )
    })
}

/// Whether systemd has begun to start it before that moment, and it runs (org.freedesktop.systemd1(5),
/// InactiveExitTimestampMonotonic: microseconds of CLOCK_MONOTONIC).
fn has_run_since_before(root: &Root, unit: &Unit, moment: Duration) -> bool {
    let mut words = unit.systemctl();
    words.extend(["show", ASKED].map(str::to_owned));
    words.push(unit.name());
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let Ok(said) = root.program_for(&words, Some(io::stdin().as_fd())) else {
        return false;
    };
    let value = |key: &str| {
        let mut lines = said.stdout.lines();
        lines.find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
    };
    let since = value("InactiveExitTimestampMonotonic").and_then(|since| since.parse().ok());
    value("ActiveState").is_some_and(runs) && since.is_some_and(|since| Duration::from_micros(since) < moment)
}

const ASKED: &str = "--property=ActiveState,InactiveExitTimestampMonotonic";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_has_started_while_the_gpu_was_away_is_named_with_what_has_it_look_again() {
        let began = Some(Duration::from_micros(5_000_000));
        let shown = |state: &str, since: u64| format!("ActiveState={state}\nInactiveExitTimestampMonotonic={since}\n");
        let inside = Unit::Inside {
            container: "104".parse().unwrap(),
            unit: "ollama.service".to_owned(),
        };
        let whole = Unit::Whole {
            container: "104".parse().unwrap(),
        };
        let (ollama, socket) = (Unit::host("ollama.service"), Unit::host("ollama.socket"));
        for (unit, file, text, hint) in [
            (
                &ollama,
                format!("programs/systemctl show {ASKED} ollama.service"),
                shown("active", 4_999_999),
                Some("systemctl restart ollama.service"),
            ),
            // We have, or what we have started.
            (
                &ollama,
                format!("programs/systemctl show {ASKED} ollama.service"),
                shown("active", 5_000_001),
                None,
            ),
            (
                &ollama,
                format!("programs/systemctl show {ASKED} ollama.service"),
                shown("inactive", 1),
                None,
            ),
            (
                &socket,
                format!("programs/systemctl show {ASKED} ollama.socket"),
                shown("active", 1),
                None,
            ),
            (
                &inside,
                format!("programs/pct exec 104 -- systemctl show {ASKED} ollama.service"),
                shown("active", 1),
                Some("pct exec 104 -- systemctl restart ollama.service"),
            ),
            (
                &whole,
                "sys/fs/cgroup/lxc/104/cgroup.procs".to_owned(),
                "4711\n".to_owned(),
                Some("pct reboot 104"),
            ),
            (
                &whole,
                "sys/fs/cgroup/lxc/105/cgroup.procs".to_owned(),
                "4711\n".to_owned(),
                None,
            ),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join(&file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            let start = |has_ended| Act::StartUnit {
                name: unit.clone(),
                within_s: 0,
                has_ended,
            };
            let root = Root::at(dir.path());
            let expected = hint.map(|hint| {
                format!(
                    "it runs already, since somebody has started it meanwhile, and may do without the GPU. Hint: {hint}"
                )
            });
            assert_eq!(note(&root, &start(true), began), expected, "{unit} {file}");
            // After a run that was killed it may never have been stopped.
            assert_eq!(note(&root, &start(false), began), None, "{unit} {file}");
        }
    }
}
