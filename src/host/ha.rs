//! Containers that the cluster's manager, HA, looks after: what it is to do with one, and how it lets go of one.
//!
//! It starts, stops and moves them by itself, so nothing is done beside its back: pct(1) only asks it and ends (pve-container,
//! PVE/API2/LXC/Status.pm, vm_start, vm_shutdown), and a container that it has to stop and that does not end in its time is in
//! "error" for it from then on, which only a person gets it out of (pve-ha-manager, PVE/HA/Manager.pm, next_state_request_stop,
//! next_state_error). So it is asked to ignore one for as long as that is stopped, which is its own way of leaving one to others
//! (ha-manager(1), "ignored"): then pct(1) does what it is asked, in its time.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use crate::base::json;
use crate::base::root::Root;
use crate::base::text::harmless;
use crate::base::vmid::VmId;
use crate::base::wait::poll_readable;

/// How long HA may take to let go of one: a round of its manager and one of this node's daemon, of some ten seconds each, of which
/// one may just have begun (pve-ha-manager, PVE/HA/CRM.pm, do_one_iteration; PVE/HA/LRM.pm, work).
pub(crate) const LETS_GO_WITHIN: Duration = Duration::from_secs(60);

/// There is no event: its file system reports none (pve-cluster, pmxcfs).
const POLL: Duration = Duration::from_millis(500);

/// What its manager has written in its last round, and what this node's daemon has.
const MANAGER: &str = "/etc/pve/ha/manager_status";
const SERVICES: &str = "/etc/pve/local/lrm_status";

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

/// How a container is for HA's manager by its last round; None where it has no state for it, or none that can be read.
pub(crate) fn own_state(root: &Root, ctid: VmId) -> Option<String> {
    let status: serde_json::Value = json::from_slice(root.text(MANAGER).ok()?.as_bytes()).ok()?;
    let state = status["service_status"][format!("ct:{ctid}")]["state"].as_str()?;
    Some(harmless(state, 32))
}

/// Waits until HA does nothing with a container any more, of which it has just been told so. Whether it has come to that in time.
/// `asked_by`: where that can be read or is hung up, nobody waits for it any more.
pub(crate) fn await_ignored(root: &Root, ctid: VmId, within: Duration, asked_by: BorrowedFd<'_>) -> bool {
    let end = Instant::now() + within;
    let mut rounds = Rounds::from_now_on(root);
    while !rounds.are_over(root, ctid) {
        if Instant::now() >= end || poll_readable(&[asked_by], POLL) == [true] {
            return false;
        }
    }
    true
}

/// The rounds of HA's daemons that may have begun before they were told. Each writes the time into its status at the end of
/// one (pve-ha-manager, PVE/HA/Manager.pm, flush_master_status; PVE/HA/LRM.pm, update_lrm_status). The manager has no state for
/// what it ignores (Manager.pm, manage, "removing stale service"): where it has none in a status that was written since, it has
/// read what it was told, or never had one, and gets none. This node's daemon goes by the manager's status as it was when its own
/// round began (LRM.pm, update_service_status).
struct Rounds {
    /// The manager's status when it was told, or the first that could be read since; None where it has never run.
    told: Option<Option<String>>,
    /// This node's when the manager had let go.
    let_go: Option<Option<String>>,
}

impl Rounds {
    fn from_now_on(root: &Root) -> Rounds {
        let told = match root.text(MANAGER) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            text => Some(text.ok()),
        };
        Rounds { told, let_go: None }
    }

    /// Whether both are over.
    fn are_over(&mut self, root: &Root, ctid: VmId) -> bool {
        let Some(told) = &mut self.told else { return true };
        // What cannot be read now is not what is not there.
        let services = || match root.text(SERVICES) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Some(None),
            text => Some(Some(text.ok()?)),
        };
        match (&self.let_go, root.text(MANAGER)) {
            (Some(before), _) => services().is_some_and(|now| now != *before),
            (None, Err(_)) => false,
            (None, Ok(now)) => {
                let before = told.get_or_insert_with(|| now.clone());
                if now != *before && !has_one(&now, ctid) {
                    self.let_go = services();
                }
                // A node without that daemon has nobody who starts anything.
                self.let_go == Some(None)
            }
        }
    }
}

/// Whether the manager has a state for a container by this status, as far as can be told: it may be being written.
fn has_one(status: &str, ctid: VmId) -> bool {
    json::from_slice::<serde_json::Value>(status.as_bytes()).map_or(true, |status| {
        status["service_status"].get(format!("ct:{ctid}")).is_some()
    })
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

    /// Files of HA's below a folder.
    fn put(dir: &tempfile::TempDir, path: &str, text: &str) {
        let path = dir.path().join(path.trim_start_matches('/'));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn ha_has_let_go_of_a_container_when_both_its_daemons_have_had_a_round_without_it() {
        let ctid = "104".parse().unwrap();
        let status = |time: u32, services: &str| format!(r#"{{"timestamp":{time},"service_status":{{{services}}}}}"#);
        let ours = r#""ct:104":{"state":"started"}"#;
        for before in [ours, "", r#""vm:104":{"state":"started"}"#] {
            let dir = tempfile::tempdir().unwrap();
            let root = Root::at(dir.path());
            put(&dir, MANAGER, &status(1, before));
            put(&dir, SERVICES, r#"{"timestamp":1}"#);
            let mut rounds = Rounds::from_now_on(&root);
            let mut next = |path: &str, text: &str| {
                put(&dir, path, text);
                rounds.are_over(&root, ctid)
            };
            // Not by what was written before it was told, whether that lists it or not.
            assert!(!next(SERVICES, r#"{"timestamp":2}"#), "{before}");
            // Its manager had read the old word.
            assert!(!next(MANAGER, &status(2, ours)));
            // It is being written.
            assert!(!next(MANAGER, "") && !next(MANAGER, r#"{"service_status":{"#));
            assert!(!next(MANAGER, &status(3, r#""vm:104":{}"#)));
            // What this node's does may go by the status of before.
            assert!(!next(MANAGER, &status(4, "")));
            assert!(next(SERVICES, r#"{"timestamp":3}"#));
        }
    }

    #[test]
    fn where_ha_has_never_run_nobody_is_waited_for_and_a_daemon_that_is_silent_not_for_ever() {
        let ctid = "104".parse().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path());
        let (theirs, ours) = std::io::pipe().unwrap();
        let lets_go = || await_ignored(&root, ctid, Duration::ZERO, std::os::fd::AsFd::as_fd(&theirs));
        assert!(lets_go());
        put(&dir, MANAGER, "{}");
        assert!(!lets_go());
        // Nor for one that nobody waits for.
        drop(ours);
        assert!(!await_ignored(
            &root,
            ctid,
            LETS_GO_WITHIN,
            std::os::fd::AsFd::as_fd(&theirs)
        ));
        // A node that has never had the other daemon.
        let mut rounds = Rounds::from_now_on(&root);
        put(&dir, MANAGER, r#"{"timestamp":2}"#);
        assert!(rounds.are_over(&root, ctid));
    }

    #[test]
    fn how_a_container_is_for_ha_is_in_its_managers_status() {
        let ctid = "104".parse().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path());
        assert_eq!(own_state(&root, ctid), None);
        for (text, state) in [
            ("", None),
            (
                r#"{"service_status":{"ct:104":{"state":"relo\u001bcate"}}}"#,
                Some("relo\\u{1b}cate"),
            ),
            (r#"{"service_status":{"ct:1040":{"state":"started"}}}"#, None),
            (r#"{"service_status":{"ct:104":{}}}"#, None),
        ] {
            put(&dir, MANAGER, text);
            assert_eq!(own_state(&root, ctid).as_deref(), state, "{text}");
        }
    }
}
