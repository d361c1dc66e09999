//! Lines of the host's configuration that fight a handoff, as findings. What fights is decided in
//! [`crate::check::fights`].

use crate::base::text::harmless;
use crate::check::facts::Facts;
use crate::check::fights::{Fight, Mend, of_argument, of_modprobe, of_module_list};
use crate::check::finding::{Finding, Looked, or_pass};
use crate::check::line::{Kind, Line};

/// Longest line that is repeated, bytes.
const LINE: usize = 160;

/// The findings of one row among the host's lines.
pub(super) fn found(facts: &Facts, row: &str) -> Result<Vec<Finding>, crate::check::finding::NotSeen> {
    let ids = facts.ids();
    let mut findings = Vec::new();
    for line in facts.lines()? {
        let words: Vec<&str> = line.words.iter().map(String::as_str).collect();
        let fight = match line.kind {
            Kind::Modprobe => of_modprobe(&words, &ids),
            Kind::Module => words.first().and_then(|name| of_module_list(name)),
            Kind::Argument => words.first().and_then(|word| of_argument(word, &ids)),
        };
        if let Some(fight) = fight.filter(|f| f.row == row) {
            let text = harmless(&words.join(" "), LINE);
            let hint = hint(line, &fight);
            let finding = Finding::of(fight.level, format!("'{text}' {}", fight.what));
            let finding = finding.at(&line.file, line.line);
            findings.push(match hint {
                Some(hint) => finding.hint(hint),
                None => finding,
            });
        }
    }
    Ok(findings)
}

/// A row that is about nothing but lines.
pub(super) fn fights(facts: &Facts, row: &str, well: &str) -> Looked {
    or_pass(found(facts, row)?, well)
}

fn hint(line: &Line, fight: &Fight) -> Option<String> {
    let then = match line.kind {
        Kind::Modprobe => "update-initramfs -u -k all",
        Kind::Module => return Some("remove the line".to_owned()),
        Kind::Argument if line.file.starts_with("/etc/default/grub") => "update-grub",
        Kind::Argument if line.file.starts_with("/etc/kernel/cmdline") => "proxmox-boot-tool refresh",
        Kind::Argument => "update-grub' or 'proxmox-boot-tool refresh",
    };
    let what = match (line.kind, line.line) {
        (Kind::Argument, None) => "the word where the boot loader has it",
        (Kind::Argument, _) => "the word",
        _ => "the line",
    };
    Some(match &fight.mend {
        Mend::Remove => format!("remove {what}, then '{then}' and reboot"),
        Mend::Become(text) => format!("make it '{}', then '{then}' and reboot", harmless(text, LINE)),
        Mend::Told => {
            return (line.kind == Kind::Argument)
                .then(|| format!("remove {what} if you can do without, then '{then}' and reboot"));
        }
    })
}

/// Words that are configured for the next boot and that the running kernel was not given.
pub(super) fn pending(facts: &Facts) -> Looked {
    let running = facts.arguments()?;
    let lines = facts.lines()?;
    let configured: Vec<&Line> = lines
        .iter()
        .filter(|l| l.kind == Kind::Argument && l.line.is_some())
        .collect();
    if configured.is_empty() {
        return crate::check::finding::skip("no boot loader's configuration is known here").into();
    }
    let is_new = |line: &&&Line| line.words.first().is_some_and(|word| !running.contains(&word.as_str()));
    let found = configured.iter().filter(is_new).map(|line| {
        crate::check::finding::notice(format!(
            "'{}' is set for the kernel and not in force",
            harmless(&line.words.join(" "), LINE)
        ))
        .at(&line.file, line.line)
        .hint("'update-grub' or 'proxmox-boot-tool refresh' if that is still to do, then reboot")
    });
    or_pass(found.collect(), "the running kernel has every argument that is set")
}

/// What of the configuration is not understood, so that nothing is known of it.
pub(super) fn understood(facts: &Facts) -> Looked {
    facts.lines()?;
    let found = facts.texts.unread.iter().map(|why| {
        crate::check::finding::warn(format!("not understood: {}", harmless(why, 300))).hint(
            "see for yourself whether something there gives a GPU away; 'gpu-handoff prepare' leaves such a \
                file alone",
        )
    });
    or_pass(
        found.collect(),
        "every file that decides what happens at boot is understood",
    )
}
