//! What is set and deleted for one guest, and the command that does it. Pure.

use crate::attach::guest::{Guest, Name};
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
        let end = self.before.lines().take_while(|line| !line.starts_with('[')).count();
        let mut lines: Vec<String> = self.before.lines().map(str::to_owned).collect();
        let mut current: Vec<String> = lines.drain(..end).collect();
        let gone = self.set.iter().map(|(key, _)| key).chain(&self.delete);
        for key in gone {
            while let Some(at) = line_of(&current.join("\n"), key) {
                current.remove(at - 1);
            }
        }
        while current.last().is_some_and(String::is_empty) {
            current.pop();
        }
        current.extend(self.set.iter().map(|(key, value)| format!("{key}: {value}")));
        if !lines.is_empty() {
            current.push(String::new());
        }
        current.extend(lines);
        current.join("\n") + "\n"
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
    }
}
