//! What was stopped for a handoff when the host went down, and does not run: named, once.
//!
//! A record does not outlive a boot ([`crate::state::stopped`] does). What is enabled is started by the boot itself, and is nobody's
//! concern here; which that is nobody knows before the boot is over: a service may be started by another one, a container by
//! pve-guests.service, Docker's by its daemon. So it is not asked what is enabled, with each program's own word for it, but what runs
//! when all that is started at a boot has been: by `gpu-handoff-stopped.service`, after the targets of the boot and pve-guests, or
//! by who calls `recover` later. What is still about to start then, as by a job of systemd's, is not called down. Of what gives no
//! answer it is said that it is not known.

use tracing::warn;

use crate::host::unit_names::is_starter;
use crate::host::units::{Facts, Ha, Unit, is_down};
use crate::model::error::chain;
use crate::model::record::{Owner, Record};
use crate::run::session::{Session, this_boot};
use crate::state::stopped;

/// Names those of the boots before this one that do not run, and forgets these boots. `is_too_early`: it is not known yet. Called
/// without the host-wide lock: a disk may give no answer, and nobody is to wait for that.
pub(crate) fn name(host: &mut Session, is_too_early: fn() -> bool) {
    let Ok(boot) = this_boot() else { return };
    let all = match host.kernel.stopped() {
        Ok(all) => all,
        Err(why) => return warn!("what was stopped when the host went down is not known: {why}"),
    };
    let before: Vec<&Record> = all.records.iter().filter(|one| one.boot_id != boot).collect();
    let unreadable: Vec<&String> = all.unreadable.iter().filter(|path| !path.contains(&boot)).collect();
    if before.is_empty() && unreadable.is_empty() || is_too_early() {
        return;
    }
    let units: Vec<Unit> = owed(&before).map(|(_, unit)| unit.clone()).collect();
    // What a handoff has stopped before the answers, or by then, is its own to give back.
    let asked = host.load(None).and_then(|(mut now, _)| {
        let facts = host.facts_of(&units);
        now.extend(host.load(None)?.0);
        Ok((now, facts))
    });
    let (now, facts) = match asked {
        Ok(asked) => asked,
        Err(why) => return warn!("what was stopped when the host went down is not named: {}", chain(why)),
    };
    for line in lines(&before, &now, &facts) {
        warn!("{line}");
    }
    for path in &unreadable {
        warn!(
            "what was stopped for handoffs before the host went down is not known: {path} is not readable, and is removed"
        );
    }
    if let Err(why) = host.kernel.forget_stopped(boot) {
        warn!("what was stopped before the host went down is not forgotten, and is named once more: {why}");
    }
}

/// What was stopped in the boots before, and for whom.
fn owed<'a>(before: &'a [&Record]) -> impl Iterator<Item = (Owner, &'a Unit)> {
    before
        .iter()
        .flat_map(|one| stopped::owed(one).map(|unit| (one.owner, unit)))
}

/// A sentence for each that does not run, or of which that is not known. `now`: what is stopped at this moment.
fn lines(before: &[&Record], now: &[Record], facts: &[Facts]) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let is_stopped_again = |unit: &Unit| now.iter().flat_map(|one| &one.units).any(|one| one.holds(unit));
    for (owner, unit) in owed(before).filter(|(_, unit)| !is_stopped_again(unit)) {
        let whom = match owner {
            Owner::Vm(_) => owner.to_string(),
            Owner::ByHand(gpu) => format!("a handoff of {gpu} by hand"),
        };
        let said = facts.iter().find(|facts| facts.unit == *unit).map(|facts| &facts.said);
        let line = match said {
            Some(Ok(said)) if unit.is_of_ha() && said.ha.is_some() => match &said.ha {
                Some(Ha::Ignores) => format!(
                    "{unit} was stopped for {whom} before the host went down, and HA ignores it still{}. Hint: {}",
                    if is_down(&said.state) {
                        ", so that it does not run"
                    } else {
                        ""
                    },
                    unit.by_hand("start")
                ),
                // It starts it, or has been told otherwise.
                _ => continue,
            },
            Some(Ok(said)) if ended(unit, &said.state) && !waits(unit, facts) => {
                let start = unit.by_hand("start");
                format!("{unit} was stopped for {whom} before the host went down, and does not run. Hint: {start}")
            }
            Some(Err(why)) => format!(
                "{unit} was stopped for {whom} before the host went down, and whether it runs is not known: {why}. Hint: {}",
                unit.by_hand("status")
            ),
            _ => continue,
        };
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines
}

/// Whether nothing of it runs, nor is about to: of a container of a client's by the client's own words (docker-ps(1),
/// podman-ps(1), `status`).
fn ended(unit: &Unit, state: &str) -> bool {
    let is_client = matches!(unit, Unit::Run { .. });
    is_down(state) || is_client && matches!(state, "exited" | "created" | "configured" | "initialized" | "dead")
}

/// Whether its socket, path or timer was stopped with it and is back, and starts it when it is used or due.
fn waits(unit: &Unit, facts: &[Facts]) -> bool {
    let stem = |name: String| name.rsplit_once('.').map(|(stem, _)| stem.to_owned());
    facts.iter().any(|other| {
        let name = other.unit.name();
        is_starter(&name)
            && unit.is_beside(&other.unit)
            && stem(name) == stem(unit.name())
            && other.said.as_ref().is_ok_and(|said| said.runs())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::base::deadlines::Budgets;
    use crate::host::units::{Client, Said};

    fn stopped(boot: &str, owner: Owner, units: &[Unit]) -> Record {
        let mut record = Record::new(owner, boot.to_owned(), Budgets::default());
        record.units = units.to_vec();
        record
    }

    fn is(unit: &Unit, state: &str) -> Facts {
        let state = state.to_owned();
        Facts {
            unit: unit.clone(),
            said: Ok(Said {
                state,
                ..Said::default()
            }),
        }
    }

    #[test]
    fn what_does_not_run_is_named_once_with_what_starts_it_and_what_runs_is_not() {
        let vm = Owner::Vm("111".parse().unwrap());
        let by_hand = Owner::ByHand("0000:01:00.0".parse().unwrap());
        let host = Unit::host;
        let whole = Unit::Whole {
            container: "104".parse().unwrap(),
        };
        let inside = Unit::Inside {
            container: "105".parse().unwrap(),
            unit: "x.service".to_owned(),
        };
        // Of what is in a container that is shut down now nothing is said either.
        let again_whole = Unit::Whole {
            container: "106".parse().unwrap(),
        };
        let again_inside = Unit::Inside {
            container: "106".parse().unwrap(),
            unit: "y.service".to_owned(),
        };
        let of_ha = Unit::OfHa {
            ha_container: "107".parse().unwrap(),
        };
        let [down_of_ha, taken_back] = ["108", "109"].map(|ctid| Unit::OfHa {
            ha_container: ctid.parse().unwrap(),
        });
        let of_ha_is = |unit: &Unit, state: &str, ha| Facts {
            unit: unit.clone(),
            said: Ok(Said {
                state: state.to_owned(),
                ha: Some(ha),
                ..Said::default()
            }),
        };
        let docker = Unit::Run {
            client: Client::Docker,
            id: "ec23".repeat(16),
        };
        let before = [
            host("up.service"),
            host("down.service"),
            host("failed.service"),
            host("coming.service"),
            host("again.service"),
            host("sleeps.socket"),
            host("sleeps.service"),
            whole.clone(),
            docker.clone(),
            inside.clone(),
            again_inside.clone(),
            of_ha.clone(),
            down_of_ha.clone(),
            taken_back.clone(),
        ];
        let all = [
            stopped("a", vm, &before),
            stopped("a", by_hand, &[host("other.service")]),
            // Twice by the same name for the same VM.
            stopped("b", vm, &[host("down.service")]),
        ];
        let all: Vec<&Record> = all.iter().collect();
        let now = [stopped(
            "now",
            vm,
            &[host("again.service"), host("new.service"), again_whole],
        )];
        let facts = [
            is(&before[0], "active"),
            is(&before[1], "inactive"),
            is(&before[2], "failed"),
            is(&before[3], "activating"),
            is(&before[4], "inactive"),
            Facts::none(&again_inside, "container '106' not running!"),
            is(&before[5], "active"),
            is(&before[6], "inactive"),
            is(&whole, "stopped"),
            is(&docker, "exited"),
            of_ha_is(&of_ha, "running", Ha::Ignores),
            of_ha_is(&down_of_ha, "stopped", Ha::Ignores),
            // HA starts it, or has been told otherwise.
            of_ha_is(&taken_back, "stopped", Ha::LooksAfter),
            Facts::none(&inside, "container '105' not running!"),
            is(&host("other.service"), "inactive"),
        ];
        let went = "before the host went down";
        assert_eq!(
            lines(&all, &now, &facts),
            [
                format!(
                    "down.service was stopped for VM 111 {went}, and does not run. Hint: systemctl start down.service"
                ),
                format!(
                    "failed.service was stopped for VM 111 {went}, and does not run. Hint: systemctl start failed.service"
                ),
                format!("container 104 was stopped for VM 111 {went}, and does not run. Hint: pct start 104"),
                format!(
                    "Docker container ec23ec23ec23 was stopped for VM 111 {went}, and does not run. Hint: docker start \
                     ec23ec23ec23"
                ),
                format!(
                    "x.service in container 105 was stopped for VM 111 {went}, and whether it runs is not known: container \
                     '105' not running!. Hint: pct exec 105 -- systemctl status x.service"
                ),
                format!(
                    "container 107 was stopped for VM 111 {went}, and HA ignores it still. Hint: ha-manager set ct:107 --state \
                     started"
                ),
                format!(
                    "container 108 was stopped for VM 111 {went}, and HA ignores it still, so that it does not run. Hint: \
                     ha-manager set ct:108 --state started"
                ),
                format!(
                    "other.service was stopped for a handoff of 0000:01:00.0 by hand {went}, and does not run. Hint: \
                     systemctl start other.service"
                ),
            ]
        );
        assert_eq!(lines(&[], &now, &facts), [""; 0]);
    }
}
