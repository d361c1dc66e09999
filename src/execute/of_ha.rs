//! A container that the cluster's manager looks after is shut down and started again: HA ignores it meanwhile
//! ([`crate::host::ha`]).
//!
//! What somebody has told HA since counts: then it is left so.

use std::io;
use std::os::fd::AsFd;

use crate::base::root::Root;
use crate::base::vmid::VmId;
use crate::execute::kernel::ActError;
use crate::execute::programs::{is_so, run, switch_whole, with_patience};
use crate::host::ha;
use crate::host::units::{Unit, Verb};

/// Stops or starts it. HA lets go of it before, and has it back when it runs. `within_s`: how long it has for its end. `notes`: what
/// is to be said of what went well.
///
/// # Errors
/// Why it is not stopped, or does not run.
pub(crate) fn switch(
    root: &Root,
    ctid: VmId,
    verb: Verb,
    within_s: u64,
    notes: &mut Vec<String>,
) -> Result<(), ActError> {
    let whole = Unit::Whole { container: ctid };
    let words = whole.command(verb, within_s);
    let wanted = ha::wanted(root, ctid)
        .map_err(|e| ActError::Failed(format!("what HA is to do with {whole} is not known: {e}")))?;
    if verb == Verb::Stop {
        match wanted.as_deref() {
            // It is nobody's but ours by now.
            None => {}
            Some(ha::STARTED) => let_go(root, ctid)?,
            Some(ha::IGNORED) => {
                return Err(ActError::Failed(format!(
                    "HA was told to ignore {whole} meanwhile, and is given it back"
                )));
            }
            Some(other) => {
                return Err(ActError::Failed(format!(
                    "HA has {whole} \"{other}\" by now, and it is left so"
                )));
            }
        }
        return switch_whole(root, &whole, &words, verb);
    }
    let start = || with_patience(&whole, verb, || switch_whole(root, &whole, &words, verb));
    match wanted.as_deref() {
        None => start(),
        Some(ha::IGNORED) => {
            // Where it has gone to another node meanwhile HA starts it there.
            if root.exists(format!("/etc/pve/lxc/{ctid}.conf")) {
                // Given back as it is, one that does not start here would be carried off to where its GPU is not.
                start().map_err(|why| match why {
                    ActError::Failed(why) => ActError::Failed(format!("{why}, and HA ignores it still")),
                    other => other,
                })?;
            }
            if let Err(why) = with_patience(&whole, verb, || have_back(root, ctid)) {
                let by_hand = ha::request(ctid, ha::STARTED).join(" ");
                notes.push(format!("HA ignores it still: {why}. Hint: {by_hand}"));
            }
            Ok(())
        }
        // It was not stopped, or somebody has given it back.
        Some(ha::STARTED) if is_so(root, &whole, verb) => Ok(()),
        Some(ha::STARTED) => match ha::own_state(root, ctid).as_deref() {
            Some("error") => Err(ActError::Failed(format!(
                "{whole} is in \"error\" for HA, which only 'ha-manager set ct:{ctid} --state disabled' leads out of"
            ))),
            _ => {
                notes.push("HA has it \"started\" by now, and starts it itself".to_owned());
                Ok(())
            }
        },
        Some(other) => {
            notes.push(format!("HA has it \"{other}\" by now, and it is left so"));
            Ok(())
        }
    }
}

/// Has HA look after it again, if it ignores it.
///
/// # Errors
/// Why it does not.
pub(crate) fn give_back(root: &Root, ctid: VmId) -> Result<(), String> {
    match ha::wanted(root, ctid) {
        Ok(Some(wanted)) if wanted == ha::IGNORED => have_back(root, ctid).map_err(|e| e.to_string()),
        Ok(_) => Ok(()),
        Err(e) => Err(e.to_string()),
    }
}

fn have_back(root: &Root, ctid: VmId) -> Result<(), ActError> {
    run(root, &ha::request(ctid, ha::STARTED))
}

/// Has HA ignore it, and waits until it does.
fn let_go(root: &Root, ctid: VmId) -> Result<(), ActError> {
    run(root, &ha::request(ctid, ha::IGNORED))?;
    if ha::await_ignored(root, ctid, ha::LETS_GO_WITHIN, io::stdin().as_fd()) {
        return Ok(());
    }
    Err(ActError::Failed(format!(
        "HA was asked to ignore container {ctid}, and has not let go of it within {} s",
        ha::LETS_GO_WITHIN.as_secs()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    const IGNORE: (&str, &str) = ("ha-manager set ct:104 --state ignored", "");
    const GIVE_BACK: (&str, &str) = ("ha-manager set ct:104 --state started", "");
    const SHUTDOWN: (&str, &str) = ("pct shutdown 104 --forceStop 1 --timeout 30", "");
    const START: (&str, &str) = ("pct start 104", "");
    const UP: (&str, &str) = ("pct status 104", "status: running\n");
    const DOWN: (&str, &str) = ("pct status 104", "status: stopped\n");

    /// A host on which these programs say something, and others are not there; HA's manager has never had a round.
    fn host(wanted: &str, answers: &[(&str, &str)], is_here: bool) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: String, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        for (words, answer) in answers {
            put(format!("programs/{words}"), answer);
        }
        put(
            "etc/pve/ha/resources.cfg".into(),
            &format!("ct: 104\n\tstate {wanted}\n"),
        );
        if is_here {
            put("etc/pve/lxc/104.conf".into(), "arch: amd64\n");
        }
        dir
    }

    #[test]
    fn ha_lets_go_of_a_container_before_it_is_shut_down_and_has_it_back_when_it_runs() {
        let is = |wanted: &str, answers: &[(&str, &str)], verb, is_here| {
            let dir = host(wanted, answers, is_here);
            let mut notes = Vec::new();
            let result = switch(&Root::at(dir.path()), "104".parse().unwrap(), verb, 30, &mut notes);
            (result.map_err(|e| e.to_string()), notes.join("; "))
        };
        for (wanted, answers, verb, is_here) in [
            ("started", &[UP, IGNORE, SHUTDOWN][..], Verb::Stop, true),
            ("ignored", &[DOWN, START, GIVE_BACK], Verb::Start, true),
            ("ignored", &[UP, GIVE_BACK], Verb::Start, true),
            // It was moved meanwhile.
            ("ignored", &[GIVE_BACK], Verb::Start, false),
            // It was not stopped.
            ("started", &[UP], Verb::Start, true),
        ] {
            let said = is(wanted, answers, verb, is_here);
            assert_eq!(said, (Ok(()), String::new()), "{wanted} {verb:?} {answers:?}");
        }
        for (wanted, answers, verb, why) in [
            ("started", &[UP, IGNORE][..], Verb::Stop, "pct does not run"),
            // Without a quorum it is not even asked.
            ("started", &[UP, SHUTDOWN], Verb::Stop, "ha-manager does not run"),
            (
                "disabled",
                &[UP, IGNORE, SHUTDOWN],
                Verb::Stop,
                "HA has container 104 \"disabled\" by now",
            ),
            (
                "ignored",
                &[UP, IGNORE, SHUTDOWN],
                Verb::Stop,
                "HA was told to ignore container 104 meanwhile",
            ),
            // One that does not start is not HA's to carry off.
            ("ignored", &[DOWN, GIVE_BACK], Verb::Start, ", and HA ignores it still"),
        ] {
            let (said, _) = is(wanted, answers, verb, true);
            assert!(
                said.as_ref().is_err_and(|said| said.contains(why)),
                "{wanted} {verb:?}: {said:?}"
            );
        }
        let (said, notes) = is("ignored", &[DOWN, START], Verb::Start, true);
        assert!(
            said.is_ok() && notes.starts_with("HA ignores it still: ha-manager"),
            "{said:?} {notes}"
        );
        assert!(
            notes.ends_with("Hint: ha-manager set ct:104 --state started"),
            "{notes}"
        );
        let (said, notes) = is("started", &[DOWN, START], Verb::Start, true);
        assert_eq!(
            (said, notes.as_str()),
            (Ok(()), "HA has it \"started\" by now, and starts it itself")
        );
        let (said, notes) = is("disabled", &[DOWN, START], Verb::Start, true);
        assert_eq!(
            (said, notes.as_str()),
            (Ok(()), "HA has it \"disabled\" by now, and it is left so")
        );
    }

    #[test]
    fn what_is_in_error_for_ha_is_not_said_to_have_started() {
        let dir = host("started", &[DOWN], true);
        let status = r#"{"service_status":{"ct:104":{"state":"error"}}}"#;
        std::fs::write(dir.path().join("etc/pve/ha/manager_status"), status).unwrap();
        let root = Root::at(dir.path());
        let result = switch(&root, "104".parse().unwrap(), Verb::Start, 30, &mut Vec::new());
        assert!(result.unwrap_err().to_string().contains("is in \"error\" for HA"));
    }

    #[test]
    fn what_ha_does_not_ignore_is_not_given_back() {
        for (wanted, answers, is_well) in [
            ("ignored", &[GIVE_BACK][..], true),
            ("ignored", &[], false),
            ("started", &[], true),
            ("disabled", &[], true),
        ] {
            let dir = host(wanted, answers, true);
            let given = give_back(&Root::at(dir.path()), "104".parse().unwrap());
            assert_eq!(given.is_ok(), is_well, "{wanted}: {given:?}");
        }
    }
}
