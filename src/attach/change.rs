//! What is set and deleted for one guest, and the command that does it. Pure.

use crate::attach::guest::{Guest, Name};
use crate::attach::lines::Line;
use crate::attach::pending;
use crate::check::guests::line_of;

/// A change of one guest's config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Whose.
    pub name: Name,
    /// Its config as it is.
    before: String,
    /// Settings with their new values.
    pub set: Vec<(String, String)>,
    /// Settings that go.
    pub delete: Vec<String>,
    /// What is to be known of it, a sentence each.
    pub notes: Vec<String>,
    /// What attach has set for it, when this is done; None: as it was.
    pub lines: Option<Vec<Line>>,
    /// Whether the settings of a VM that loses the hook stay: it has the hook of somebody else, which may call this program.
    pub keeps_settings: bool,
}

impl Change {
    /// Nothing yet.
    pub fn of(guest: &Guest<'_>) -> Change {
        Change {
            name: guest.name,
            before: guest.text.to_owned(),
            set: Vec::new(),
            delete: Vec::new(),
            notes: Vec::new(),
            lines: None,
            keeps_settings: false,
        }
    }

    /// Whether nothing is set and nothing deleted.
    pub fn is_nothing(&self) -> bool {
        self.set.is_empty() && self.delete.is_empty()
    }

    /// The words of the command: one for all, so that Proxmox takes all or nothing.
    pub fn command(&self) -> Vec<String> {
        let mut words = [self.name.kind.tool(), "set", &self.name.id.to_string()]
            .map(str::to_owned)
            .to_vec();
        for (key, value) in &self.set {
            words.extend([format!("--{key}"), value.clone()]);
        }
        if !self.delete.is_empty() {
            words.extend(["--delete".to_owned(), self.delete.join(",")]);
        }
        words
    }

    /// The config as it will be, as far as its current section goes.
    pub fn after(&self) -> String {
        pending::edited(&self.before, &self.delete, &self.set)
    }

    /// Whether a config that was read since has all of it.
    pub fn is_in(&self, text: &str) -> bool {
        let now = pending::applied(text);
        let value = |key: &str| {
            let line = now.lines().nth(line_of(&now, key)? - 1)?;
            line.split_once(':').map(|(_, value)| value.trim().to_owned())
        };
        let is_set = |(key, wanted): &(String, String)| value(key).as_ref() == Some(wanted);
        self.set.iter().all(is_set) && self.delete.iter().all(|key| value(key).is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::attach::guest::Kind;

    #[test]
    fn a_change_is_one_command_and_of_the_current_section_alone() {
        let name = Name {
            kind: Kind::Vm,
            id: "111".parse().unwrap(),
        };
        let text = "cores: 2\nhookscript: a:snippets/b\nhostpci0: 02:00\n\n[before]\nhookscript: x\n";
        let guest = Guest { name, text, vm: None };
        let mut change = Change::of(&guest);
        assert!(change.is_nothing());
        change.set = [
            ("hookscript", "local:snippets/gpu-handoff"),
            ("hostpci1", "0000:01:00,pcie=1"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .to_vec();
        change.delete = vec!["hostpci0".to_owned(), "hostpci9".to_owned()];
        assert_eq!(
            change.command().join(" "),
            "qm set 111 --hookscript local:snippets/gpu-handoff --hostpci1 0000:01:00,pcie=1 --delete hostpci0,hostpci9"
        );
        assert_eq!(
            change.after(),
            "cores: 2\nhookscript: local:snippets/gpu-handoff\nhostpci1: 0000:01:00,pcie=1\n\n[before]\nhookscript: x\n"
        );
        assert!(change.is_in(&change.after()) && !change.is_in(text));
        let waits = "hookscript: local:snippets/gpu-handoff\nhostpci0: 02:00\n[PENDING]\nhostpci1: 0000:01:00,pcie=1\ndelete: hostpci0\n";
        assert!(change.is_in(waits));
    }
}
