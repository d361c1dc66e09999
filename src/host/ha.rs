//! Containers that the cluster's manager, HA, looks after: what it is to do with one, and how it lets go of one.
//!
//! It starts, stops and moves them by itself, so nothing is done beside its back: pct(1) only asks it and ends (pve-container,
//! PVE/API2/LXC/Status.pm, vm_start, vm_shutdown), and a container that it has to stop and that does not end in its time is in
//! "error" for it from then on, which only a person gets it out of (pve-ha-manager, PVE/HA/Manager.pm, next_state_request_stop,
//! next_state_error). So it is asked to ignore one for as long as that is stopped, which is its own way of leaving one to others
//! (ha-manager(1), "ignored"): then pct(1) does what it is asked, in its time.

use std::io;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::base::root::Root;
use crate::base::text::harmless;
use crate::base::vmid::VmId;

/// How long HA may take to let go of one: the rounds of its manager, of some ten seconds, of which one may just have begun
/// (pve-ha-manager, PVE/HA/CRM.pm, do_one_iteration).
pub(crate) const LETS_GO_WITHIN: Duration = Duration::from_secs(40);

/// There is no event: its file system reports none (pve-cluster, src/pmxcfs).
const POLL: Duration = Duration::from_millis(500);

/// What it is to do with one that it runs, and with one that it leaves alone.
pub(crate) const STARTED: &str = "started";
pub(crate) const IGNORED: &str = "ignored";

/// What HA is to do with a container: its `state`, which is "started" where none is said (pve-ha-manager, PVE/HA/Config.pm,
/// read_and_check_resources_config). None where HA does not know it.
///
/// # Errors
/// Those of reading; without HA there is nothing to read.
pub(crate) fn wanted(root: &Root, ctid: VmId) -> io::Result<Option<String>> {
    match root.text("/etc/pve/ha/resources.cfg") {
        Ok(resources) => Ok(wanted_in(&resources, ctid)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// The same of this text: a section's header, and what follows up to an empty line (pve-common, PVE/SectionConfig.pm,
/// parse_config).
fn wanted_in(resources: &str, ctid: VmId) -> Option<String> {
    let is_its = |line: &&str| {
        let header = line.split_once(':').map(|(kind, id)| (kind, id.trim()));
        header == Some(("ct", &ctid.to_string()))
    };
    let mut lines = resources.lines().skip_while(|line| !is_its(line));
    lines.next()?;
    let mut words = lines.take_while(|line| !line.is_empty()).map(str::split_whitespace);
    let state = words.find_map(|mut words| words.next().filter(|key| *key == "state").and(words.next()));
    Some(match state {
        None | Some("enabled") => STARTED.to_owned(),
        Some(state) => harmless(state, 32),
    })
}

/// What has HA do this with a container from now on, word for word.
pub(crate) fn request(ctid: VmId, state: &str) -> Vec<String> {
    let words = ["ha-manager", "set", &format!("ct:{ctid}"), "--state", state];
    words.map(str::to_owned).to_vec()
}

/// Waits until HA does nothing with a container any more: it has no state of its own for one that it ignores (pve-ha-manager,
/// PVE/HA/Manager.pm, manage, "removing stale service"). Whether it has come to that in time.
pub(crate) fn await_ignored(root: &Root, ctid: VmId, within: Duration) -> bool {
    let end = Instant::now() + within;
    loop {
        if !is_managed(root, ctid) {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        sleep(POLL);
    }
}

/// Whether HA's daemons have a state for it. Without a file they have never run.
fn is_managed(root: &Root, ctid: VmId) -> bool {
    match root.text("/etc/pve/ha/manager_status") {
        Ok(text) => serde_json::from_str::<serde_json::Value>(&text).map_or(true, |status| {
            status["service_status"].get(format!("ct:{ctid}")).is_some()
        }),
        Err(e) => e.kind() != io::ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ha_is_to_do_with_a_container_is_in_its_section() {
        let ctid = "104".parse().unwrap();
        for (text, state) in [
            ("", None),
            ("vm: 104\n\tstate started\n", None),
            ("ct: 1040\n\tstate started\n", None),
            ("ct: 104\n\tstate started\n", Some("started")),
            ("vm: 104\n\n ct: 104\n", None),
            ("ct: 104\n", Some("started")),
            ("ct:104\n\tgroup a\n\tstate enabled\n", Some("started")),
            (
                "ct: 104  \n\tgroup a\n# mine\n\tstate stopped\n\nct: 105\n\tstate started\n",
                Some("stopped"),
            ),
            // The next one's is not its own.
            ("ct: 104\n\nct: 105\n\tstate stopped\n", Some("started")),
            ("ct: 104\n\tcomment state stopped\n\tstate disabled\n", Some("disabled")),
            ("ct: 104\n\tstate ignored\n", Some("ignored")),
        ] {
            assert_eq!(wanted_in(text, ctid).as_deref(), state, "{text:?}");
        }
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(wanted(&Root::at(dir.path()), ctid).unwrap(), None);
        // What cannot be read is not nothing.
        std::fs::create_dir_all(dir.path().join("etc/pve/ha/resources.cfg")).unwrap();
        assert!(wanted(&Root::at(dir.path()), ctid).is_err());
    }

    #[test]
    fn ha_has_let_go_of_a_container_when_it_has_no_state_for_it() {
        let ctid = "104".parse().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path());
        let lets_go = || await_ignored(&root, ctid, Duration::ZERO);
        assert!(lets_go());
        std::fs::create_dir_all(dir.path().join("etc/pve/ha")).unwrap();
        for (text, has_let_go) in [
            (r#"{"service_status":{"ct:104":{"state":"started"}}}"#, false),
            (r#"{"service_status":{"ct:104":{"state":"error"}}}"#, false),
            (r#"{"service_status":{"vm:104":{"state":"started"}}}"#, true),
            (r#"{"node_status":{}}"#, true),
            // It is being written.
            ("", false),
            (r#"{"service_status":{"#, false),
        ] {
            std::fs::write(dir.path().join("etc/pve/ha/manager_status"), text).unwrap();
            assert_eq!(lets_go(), has_let_go, "{text}");
        }
    }
}
