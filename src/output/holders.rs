//! Who uses GPUs and what becomes of each at a handoff: the value that `holders --json` prints, and its table.

use std::fmt::Write as _;

use serde::Serialize;

use crate::base::pci::PciAddr;
use crate::base::text::{foreign, join};
use crate::model::doubt;
use crate::model::refusal::Reason;
use crate::model::remedy::Remedy;
use crate::plan::clients::{Client, Then};

/// Longest command and owner in the table, characters: with the rest it fits a terminal of 80 columns.
const COLUMNS: (usize, usize) = (16, 27);

/// The form of the JSON: docs/schemas/holders.json.
pub const VERSION: u32 = 1;

/// Who uses GPUs.
#[derive(Debug, Serialize)]
pub struct Users {
    /// [`VERSION`].
    pub version: u32,
    /// Who was seen, by pid.
    pub holders: Vec<User>,
    /// What was not seen, or only counted: a sentence each.
    pub unseen: Vec<String>,
    /// What else speaks against a handoff, or for waiting: what is plugged in below a card, who is ending.
    pub others: Vec<String>,
    /// GPUs of which it is told what would be if all of them left together; none where one was asked for.
    pub together: Vec<PciAddr>,
}

/// A process that uses a GPU.
#[derive(Debug, Serialize)]
pub struct User {
    /// Its process id.
    pub pid: i32,
    /// Its name, as it chose it.
    pub command: String,
    /// The service, container, VM or login session it belongs to; None: nothing that is known.
    pub belongs_to: Option<String>,
    /// What it has open or mapped.
    pub nodes: Vec<String>,
    /// Nothing shows that it is one of these GPUs that it uses.
    pub doubtful: bool,
    /// What becomes of it.
    pub then: Then,
    /// What can be done about it, where it is in the way.
    pub hint: Option<String>,
}

/// From what was found.
pub fn users(clients: &[Client], reasons: &[Reason], together: &[PciAddr]) -> Users {
    let is_unseen = |reason: &&Reason| matches!(reason, Reason::Unseen(_) | Reason::Uncounted { .. });
    let (unseen, others): (Vec<&Reason>, Vec<&Reason>) = reasons.iter().partition(is_unseen);
    let facts = |of: Vec<&Reason>| of.into_iter().map(Reason::fact).collect();
    Users {
        version: VERSION,
        holders: clients.iter().map(user).collect(),
        unseen: facts(unseen),
        others: facts(others),
        together: if together.len() > 1 {
            together.to_vec()
        } else {
            Vec::new()
        },
    }
}

fn user(client: &Client) -> User {
    let Client {
        holder,
        nodes,
        doubt,
        then,
    } = client;
    let remedy = match doubt {
        Some(risk) => doubt::remedy(holder, *risk),
        None => Remedy::of_user(holder, nodes),
    };
    User {
        pid: holder.pid,
        command: foreign(&holder.comm),
        belongs_to: Some(holder.belongs_to.to_string()).filter(|text| !text.is_empty()),
        nodes: nodes.iter().map(ToString::to_string).collect(),
        doubtful: doubt.is_some(),
        then: *then,
        hint: (*then == Then::InTheWay).then(|| remedy.to_string()),
    }
}

/// `holders` for people.
pub fn text(users: &Users) -> String {
    let mut text = String::new();
    if !users.holders.is_empty() {
        let _ = writeln!(text, "{}", row("PID", "COMMAND", "BELONGS TO", "AT A HANDOFF"));
    }
    for user in &users.holders {
        let pid = user.pid.to_string();
        let belongs_to = user.belongs_to.as_deref().unwrap_or("-");
        let _ = writeln!(text, "{}", row(&pid, &user.command, belongs_to, in_words(user.then)));
        let maybe = if user.doubtful { ", maybe for another GPU" } else { "" };
        let _ = writeln!(text, "         {}{maybe}", join(&user.nodes));
        if let Some(hint) = &user.hint {
            let _ = writeln!(text, "         Hint: {hint}");
        }
    }
    for unseen in &users.unseen {
        let _ = writeln!(text, "Not seen: {unseen}");
    }
    for other in &users.others {
        let _ = writeln!(text, "Beside that: {other}");
    }
    if text.is_empty() {
        return "Nobody uses it.\n".to_owned();
    }
    if !users.together.is_empty() {
        let _ = writeln!(
            text,
            "This is so where {} leave together. For one of them: --gpu, or --vm,\nwhose own settings count then.",
            join(&users.together)
        );
    }
    text
}

fn in_words(then: Then) -> &'static str {
    match then {
        Then::Stopped => "stopped, started again",
        Then::LetsGo => "lets go, runs on",
        Then::Ended => "asked to end",
        Then::Killed => "asked to end, killed",
        Then::Accepted => "left, as 'doubt' says",
        Then::InTheWay => "in the way",
    }
}

fn row(pid: &str, command: &str, belongs_to: &str, then: &str) -> String {
    let (first, second) = COLUMNS;
    let cut = |text: &str, to: usize| text.chars().take(to).collect::<String>();
    let (command, belongs_to) = (cut(command, first), cut(belongs_to, second));
    format!("{pid:<8} {command:<first$} {belongs_to:<second$} {then}")
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::base::pci::PciAddr;
    use crate::host::belongs::Belongs;
    use crate::host::holders::Holder;
    use crate::host::nodes::Node;
    use crate::model::doubt::Risk;

    fn client(pid: i32, comm: &str, belongs_to: Belongs, doubtful: bool, then: Then) -> Client {
        let gpu: PciAddr = "0000:01:00.0".parse().unwrap();
        let nodes = if doubtful {
            vec![Node::Control]
        } else {
            vec![Node::Gpu(gpu), Node::Control]
        };
        Client {
            holder: Holder {
                pid,
                comm: comm.to_owned(),
                belongs_to,
                nodes: nodes.clone(),
            },
            nodes,
            doubt: doubtful.then_some(Risk::Waits),
            then,
        }
    }

    #[test]
    fn each_has_a_row_and_who_is_in_the_way_a_hint() {
        let unit = |name: &str| Belongs::Unit(name.to_owned());
        let session = || Belongs::Session { id: "3".to_owned() };
        let container = Belongs::Container {
            ctid: "104".to_owned(),
            unit: Some("ollama.service".to_owned()),
        };
        let clients = [
            client(310, "ollama", unit("ollama.service"), false, Then::Stopped),
            client(311, "nv-hostengine", unit("nvidia-dcgm.service"), false, Then::LetsGo),
            client(900, "python3", session(), false, Then::Ended),
            client(901, "a\u{1b}[2J\u{202e}name", session(), false, Then::Killed),
            client(902, "nvtop", session(), true, Then::Accepted),
            client(1_234_567, "ollama", container, false, Then::InTheWay),
            client(7, "x", Belongs::Unknown, true, Then::InTheWay),
        ];
        let unseen = [Reason::Uncounted {
            name: "nvidia_uvm".to_owned(),
            refs: 2,
        }];
        let users = users(&clients, &unseen, &[]);
        let text = text(&users);
        let expected = "\
PID      COMMAND          BELONGS TO                  AT A HANDOFF
310      ollama           ollama.service              stopped, started again
         the GPU node of 0000:01:00.0, /dev/nvidiactl
311      nv-hostengine    nvidia-dcgm.service         lets go, runs on
         the GPU node of 0000:01:00.0, /dev/nvidiactl
900      python3          login session 3             asked to end
";
        assert!(text.starts_with(expected), "{text}");
        assert!(
            text.contains("         Hint: pct exec 104 -- systemctl stop ollama.service, or "),
            "{text}"
        );
        assert!(text.contains("/dev/nvidiactl, maybe for another GPU\n"), "{text}");
        assert!(text.contains("Not seen: "), "{text}");
        assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text}");
        let rows = text
            .lines()
            .filter(|line| !line.starts_with(' ') && !line.starts_with("Not"));
        assert!(rows.clone().all(|line| line.chars().count() <= 80), "{text}");
        assert_eq!(rows.count(), 1 + clients.len());
    }

    #[test]
    fn where_there_is_nobody_that_is_said() {
        assert_eq!(text(&users(&[], &[], &[])), "Nobody uses it.\n");
    }
}
