//! A call of somebody else's that holds a function, for a sentence: who, at what, what it waits for, and what helps.
//!
//! Not here: what it waits for, judged ([`crate::plan::hangs`]).

use serde::{Deserialize, Serialize};

use crate::base::text::{foreign, join};
use crate::host::belongs::Belongs;
use crate::host::holders::Holder;
use crate::host::nodes::Node;
use crate::host::stuck_calls::{StuckCall, What};
use crate::model::remedy::Remedy;

/// A call, and what it waits for as far as can be told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hang {
    /// The call.
    pub call: StuckCall,
    /// Processes that use the device, with the nodes that show it.
    pub holders: Vec<(Holder, Vec<Node>)>,
    /// nvidia_drm has the GPU for as long as it is loaded.
    pub drm: bool,
    /// The version of a driver that does not end such a call, whatever becomes of the users; empty where it is not known.
    pub never_ends: Option<String>,
}

impl Hang {
    /// What is the matter, and what can be done about it.
    pub(crate) fn said(&self) -> (String, Remedy) {
        let call = &self.call;
        let who = process(call.pid, &call.comm, &call.belongs_to);
        let what = text(call);
        if !call.lasts {
            let fact = format!("{who} is at {what} at this moment");
            return (fact, "wait until that is over, then try again".into());
        }
        let mut waits: Vec<String> = Vec::new();
        if self.drm {
            waits.push("nvidia_drm, which has the GPU for as long as it is loaded".to_owned());
        }
        waits.extend(self.holders.iter().map(|(holder, nodes)| {
            let who = process(holder.pid, &holder.comm, &holder.belongs_to);
            format!("{who}, which has {} open", join(nodes))
        }));
        let waits = match (waits.as_slice(), &call.frame) {
            // It waits for no user.
            ([], frame) if !call.what.lets_go() => {
                let frame = frame.as_deref().map(foreign);
                frame.map_or(String::new(), |frame| format!("; it waits in the kernel at {frame}"))
            }
            ([], None) => "; nobody is seen to use the device".to_owned(),
            ([], Some(frame)) => format!(
                "; it waits in the kernel at {}, and nobody is seen to use the device",
                foreign(frame)
            ),
            (waits, _) => format!("; it waits for {}", waits.join(" and for ")),
        };
        let (never, remedy) = match (&self.never_ends, self.holders.first()) {
            (Some(version), _) => {
                let by = match version.as_str() {
                    "" => "the driver, whose version cannot be read, may not end it".to_owned(),
                    _ => format!("driver {version} does not end it"),
                };
                let never = format!("; {by} once it has met a user");
                (never, "sync and power-cycle (a reboot will hang)".into())
            }
            (None, Some((holder, _))) => (String::new(), Remedy::of_holder(holder)),
            (None, None) if self.drm => (
                String::new(),
                "'gpu-handoff recover' unloads nvidia_drm, which lets it end, and brings the GPU home".into(),
            ),
            // A device is waited for so long after its reset (linux, drivers/pci/pci.c, PCIE_RESET_READY_POLL_MS).
            (None, None) if !call.what.lets_go() => (
                String::new(),
                "wait until that is over, which for a reset may take a minute, then try again; if it does not end, see \
                 'journalctl -k', then sync and power-cycle (a reboot will hang)"
                    .into(),
            ),
            (None, None) => (
                String::new(),
                "see 'journalctl -k' for what the driver says; if it does not end, sync and power-cycle (a reboot will \
                 hang)"
                    .into(),
            ),
        };
        (format!("{who} hangs in {what}{waits}{never}"), remedy)
    }
}

/// What a call does, and at which function; where that cannot be told, at which it may be.
fn text(call: &StuckCall) -> String {
    let driver = call.driver.as_deref().map_or("its driver".to_owned(), foreign);
    let at: Vec<String> = call.at.iter().map(ToString::to_string).collect();
    let at = at.join(" or ");
    match call.what {
        What::Unbind => format!("an unbind of {at} from {driver}"),
        What::Remove => format!("the removal of {at} from the bus"),
        What::Reset => format!("a reset of {at}"),
        What::VirtualFunctions => format!("a change of the virtual functions of {at}"),
        What::Bind => format!("a bind of {at}"),
        What::Release => format!("the unload of {driver}, or a removal, at {at}"),
    }
}

/// A process, for a sentence.
pub(crate) fn process(pid: i32, comm: &str, belongs_to: &Belongs) -> String {
    let belongs = match belongs_to {
        Belongs::Unknown => String::new(),
        belongs => format!(", {}", foreign(&belongs.to_string())),
    };
    format!("process {pid} ({}{belongs})", foreign(comm))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_said_with_what_it_waits_for_and_what_helps() {
        let gpu = "0000:01:00.0".parse().unwrap();
        let call = StuckCall {
            pid: 812,
            thread: 812,
            started: Some(4711),
            group: Some(812),
            comm: "sh".to_owned(),
            belongs_to: Belongs::Session { id: "3".to_owned() },
            what: What::Unbind,
            driver: Some("nvidia".to_owned()),
            at: vec![gpu],
            frame: Some("nv_pci_remove".to_owned()),
            lasts: true,
        };
        let holder = Holder {
            pid: 900,
            comm: "python3".to_owned(),
            belongs_to: Belongs::Unit("ollama.service".to_owned()),
            nodes: vec![Node::Gpu(gpu)],
        };
        let hang = Hang {
            call: call.clone(),
            holders: Vec::new(),
            drm: false,
            never_ends: None,
        };
        let held = vec![(holder, vec![Node::Gpu(gpu)])];
        let at_two = StuckCall {
            at: vec![gpu, "0000:02:00.0".parse().unwrap()],
            ..call.clone()
        };
        let reset = StuckCall {
            what: What::Reset,
            frame: None,
            ..call.clone()
        };
        let for_a_moment = StuckCall { lasts: false, ..call };
        let in_unbind = "process 812 (sh, login session 3) hangs in an unbind of 0000:01:00.0 from nvidia";
        for (hang, fact, remedy) in [
            (
                Hang {
                    drm: true,
                    ..hang.clone()
                },
                format!("{in_unbind}; it waits for nvidia_drm, which has the GPU for as long as it is loaded"),
                "'gpu-handoff recover' unloads nvidia_drm, which lets it end, and brings the GPU home",
            ),
            (
                Hang {
                    holders: held.clone(),
                    ..hang.clone()
                },
                format!(
                    "{in_unbind}; it waits for process 900 (python3, ollama.service), which has the GPU node of \
                     0000:01:00.0 open"
                ),
                "systemctl stop ollama.service",
            ),
            (
                Hang {
                    drm: true,
                    holders: held.clone(),
                    ..hang.clone()
                },
                format!(
                    "{in_unbind}; it waits for nvidia_drm, which has the GPU for as long as it is loaded and for process \
                     900 (python3, ollama.service), which has the GPU node of 0000:01:00.0 open"
                ),
                "systemctl stop ollama.service",
            ),
            (
                Hang {
                    holders: held,
                    never_ends: Some("595.45.04".to_owned()),
                    ..hang.clone()
                },
                format!(
                    "{in_unbind}; it waits for process 900 (python3, ollama.service), which has the GPU node of \
                     0000:01:00.0 open; driver 595.45.04 does not end it once it has met a user"
                ),
                "sync and power-cycle (a reboot will hang)",
            ),
            (
                Hang {
                    call: at_two,
                    ..hang.clone()
                },
                "process 812 (sh, login session 3) hangs in an unbind of 0000:01:00.0 or 0000:02:00.0 from nvidia; it \
                 waits in the kernel at nv_pci_remove, and nobody is seen to use the device"
                    .to_owned(),
                "see 'journalctl -k' for what the driver says; if it does not end, sync and power-cycle (a reboot will hang)",
            ),
            (
                Hang {
                    call: reset,
                    ..hang.clone()
                },
                "process 812 (sh, login session 3) hangs in a reset of 0000:01:00.0".to_owned(),
                "wait until that is over, which for a reset may take a minute, then try again; if it does not end, see \
                 'journalctl -k', then sync and power-cycle (a reboot will hang)",
            ),
            (
                Hang {
                    call: for_a_moment,
                    drm: true,
                    ..hang
                },
                "process 812 (sh, login session 3) is at an unbind of 0000:01:00.0 from nvidia at this moment"
                    .to_owned(),
                "wait until that is over, then try again",
            ),
        ] {
            let said = hang.said();
            assert_eq!((said.0, said.1.to_string().as_str()), (fact, remedy));
        }
    }
}
