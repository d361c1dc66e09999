//! What of a guest's config waits for its next start, and the config as it is from then on. Pure.
//!
//! Source: qemu-server, PVE/QemuServer.pm, parse_vm_config; pve-container, PVE/LXC/Config.pm, parse_pct_config.

use crate::check::guests::line_of;

/// The lines of the section of pending changes: key and value.
fn section(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let is_header = |line: &&str| {
        let line = line.trim_end();
        line.eq_ignore_ascii_case("[pending]") || line.eq_ignore_ascii_case("[pve:pending]")
    };
    let lines = text.lines().skip_while(move |line| !is_header(line)).skip(1);
    let lines = lines.take_while(|line| !line.starts_with('['));
    lines.filter_map(|line| line.split_once(':'))
}

/// The keys that a `delete:` names; with a `!` before them they go by force.
fn deleted(value: &str) -> impl Iterator<Item = String> {
    let words = value
        .split([' ', ',', ';'])
        .map(|word| word.trim_start_matches('!').trim());
    words.filter(|word| !word.is_empty()).map(str::to_owned)
}

/// The settings that wait for the next start, to be set or deleted.
pub fn keys(text: &str) -> Vec<String> {
    let mut keys = Vec::new();
    for (key, value) in section(text) {
        match key {
            "delete" => keys.extend(deleted(value)),
            key => keys.push(key.to_owned()),
        }
    }
    keys
}

/// The config with these settings gone from its current section, and those set.
pub fn edited(text: &str, delete: &[String], set: &[(String, String)]) -> String {
    let end = text.lines().take_while(|line| !line.starts_with('[')).count();
    let mut lines: Vec<&str> = text.lines().collect();
    let rest = lines.split_off(end);
    for key in set.iter().map(|(key, _)| key).chain(delete) {
        while let Some(at) = line_of(&lines.join("\n"), key) {
            lines.remove(at - 1);
        }
    }
    while lines.last().is_some_and(|line| line.is_empty()) {
        lines.pop();
    }
    let new: Vec<String> = set.iter().map(|(key, value)| format!("{key}: {value}")).collect();
    lines.extend(new.iter().map(String::as_str));
    if !rest.is_empty() {
        lines.push("");
    }
    lines.extend(rest);
    lines.join("\n") + "\n"
}

/// The config with what waits in its current section as well: as it is from the next start on.
pub fn applied(text: &str) -> String {
    let (mut delete, mut set) = (Vec::new(), Vec::new());
    for (key, value) in section(text) {
        match key {
            "delete" => delete.extend(deleted(value)),
            key => set.push((key.to_owned(), value.trim().to_owned())),
        }
    }
    match delete.is_empty() && set.is_empty() {
        true => text.to_owned(),
        false => edited(text, &delete, &set),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_for_the_next_start_is_in_its_own_section() {
        for (text, expected) in [
            ("hostpci0: 01:00\n[before]\nhookscript: x\n", &[][..]),
            (
                "cores: 2\n\n[PENDING]\nhostpci0: 01:00\ndelete: hookscript,!balloon\n\n[old]\nhostpci1: x\n",
                &["hostpci0", "hookscript", "balloon"],
            ),
            ("[pve:pending]\ndev3: /dev/x\n", &["dev3"]),
        ] {
            assert_eq!(keys(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_config_as_it_will_be_has_what_waits_and_keeps_its_other_sections() {
        let text = "machine: pc\nhostpci1: 02:00\n\n[PENDING]\nmachine: q35\ndelete: hostpci1\n\n[old]\nmachine: pc\n";
        let expected = "machine: q35\n\n[PENDING]\nmachine: q35\ndelete: hostpci1\n\n[old]\nmachine: pc\n";
        assert_eq!(applied(text), expected);
        let nothing = "cores: 2\n\n[old]\nmachine: pc\n";
        assert_eq!(applied(nothing), nothing);
    }
}
