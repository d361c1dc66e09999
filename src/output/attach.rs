//! What attach and detach would do, or have done.

use serde::Serialize;

use crate::attach::guest::Name;
use crate::attach::offers::Offer;
use crate::base::text::wrapped;
use crate::check::finding::Level;
use crate::check::report::Report;
use crate::output::check;

/// The form of the JSON: docs/schemas/attach.json.
const VERSION: u32 = 1;

/// Longest line of ours, columns.
const WIDTH: usize = 79;

/// A file that is written.
#[derive(Clone, Debug, Serialize)]
pub struct File {
    /// Which.
    pub path: String,
    /// What will be in it.
    pub text: String,
}

/// Somebody who is in the way, and the setting that has it stopped.
#[derive(Clone, Debug, Serialize)]
pub struct Policy {
    /// Who.
    pub who: String,
    /// The setting.
    pub key: &'static str,
    /// Its value.
    pub value: String,
}

/// What is done.
#[derive(Debug, Serialize)]
pub struct Shown<'a> {
    /// The form.
    pub version: u32,
    /// It was done; otherwise it would be.
    pub done: bool,
    /// The commands, as they can be typed.
    pub commands: Vec<String>,
    /// The file that is written.
    pub writes: Option<File>,
    /// Files that are removed.
    pub removes: Vec<String>,
    /// What is to be known, a sentence each.
    pub notes: Vec<String>,
    /// What could be allowed to be stopped.
    pub policies: Vec<Policy>,
    /// Who else is in the way now, a sentence each.
    pub in_the_way: Vec<String>,
    /// What 'gpu-handoff check' says with it.
    pub findings: Vec<check::Shown<'a>>,
}

impl<'a> Shown<'a> {
    /// These commands alone.
    pub fn of(commands: Vec<String>) -> Self {
        Shown {
            version: VERSION,
            done: false,
            commands,
            writes: None,
            removes: Vec::new(),
            notes: Vec::new(),
            policies: Vec::new(),
            in_the_way: Vec::new(),
            findings: Vec::new(),
        }
    }

    /// With who is in the way of a start.
    pub fn in_the_way(&mut self, offers: &[Offer], others: Vec<String>) {
        let policy = |offer: &Offer| Policy {
            who: offer.who.clone(),
            key: offer.key,
            value: offer.value.clone(),
        };
        self.policies = offers.iter().map(policy).collect();
        self.in_the_way = others;
    }

    /// With what the checks say, from this level on.
    pub fn says(&mut self, report: &'a Report, least: Level) {
        self.findings = check::findings(report, least);
    }

    /// Whether there is anything to do.
    pub fn is_nothing(&self) -> bool {
        self.commands.is_empty() && self.writes.is_none() && self.removes.is_empty()
    }
}

/// A sentence in lines that fit a terminal.
fn sentence(text: &str) -> String {
    wrapped(text, WIDTH).join("\n") + "\n"
}

/// What would be done, for people.
pub fn text(shown: &Shown<'_>) -> String {
    let mut text = String::new();
    if !shown.commands.is_empty() {
        text += "This would be run:\n";
        for command in &shown.commands {
            text += &format!("    {command}\n");
        }
    }
    text += &files(shown);
    for note in &shown.notes {
        text += &sentence(note);
    }
    text += &in_the_way(shown);
    if !shown.findings.is_empty() {
        text += "With that 'gpu-handoff check' says:\n";
        text += &check::findings_text(&shown.findings);
    }
    text
}

/// Who is in the way now, for people.
fn in_the_way(shown: &Shown<'_>) -> String {
    let mut text = String::new();
    if !shown.policies.is_empty() || !shown.in_the_way.is_empty() {
        text += "In the way of a start, as things are now:\n";
    }
    for policy in &shown.policies {
        text += &sentence(&format!(
            "- {}; allowed by {} = \"{}\"",
            policy.who, policy.key, policy.value
        ));
    }
    for other in &shown.in_the_way {
        text += &sentence(&format!("- {other}"));
    }
    text
}

/// The files that are written and removed, for people.
pub fn files(shown: &Shown<'_>) -> String {
    let mut text = String::new();
    if let Some(file) = &shown.writes {
        text += &format!("This would be written to {}:\n", file.path);
        for line in file.text.lines() {
            text += &format!("    {line}\n");
        }
    }
    for path in &shown.removes {
        text += &format!("This would be removed: {path}\n");
    }
    text
}

/// That a guest is attached, what the checks say of it now, and what was not shown before it was done.
pub fn attached(name: Name, shown: &Shown<'_>, news: &[String]) -> String {
    let what = format!("gpu-handoff check --{} {}", name.kind.in_ha(), name.id);
    let mut text: String = news.iter().map(|one| sentence(one)).collect();
    if shown.writes.is_some() {
        text += &in_the_way(shown);
    }
    if !shown.findings.is_empty() {
        text += &format!("'{what}' says now:\n{}", check::findings_text(&shown.findings));
    }
    text += &sentence(&format!(
        "{name} is attached. '{what}' shows all, 'gpu-handoff detach {}' takes it back.",
        name.id
    ));
    text
}

/// A sentence for people, in lines that fit a terminal.
pub fn said(text: &str) -> String {
    sentence(text)
}
