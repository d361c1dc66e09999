//! The commented file: a config.toml in which every setting stands with its default and what it is for, and none is set.
//!
//! A `#` with a blank behind it begins text, one without a blank a setting that can be made to count by taking the `#`
//! away. No section is in force: what somebody adds at the end would be one of its keys. The file is written from
//! [`crate::settings::table`] and [`Settings::default`]; debian/config.toml is a copy of it.

use crate::settings::table::{DEVICE, KEYS, Key, SECTIONS};
use crate::settings::values::Settings;

/// Longest line.
const WIDTH: usize = 78;

const HEAD: &str = "Settings of gpu-handoff. Every one is optional. Here each stands with its default, switched off by a '#' \
                    without a blank behind it: take that away and change the value. No section is in force, so that a setting \
                    can be added at the end as well; what stands below a line in brackets that is switched on is of that \
                    section alone.";

const ORDER: &str = "Files in /etc/gpu-handoff/conf.d/*.toml are read after this one, by their names; of a setting that is \
                     given twice the later one counts, and what a VM's own section says counts more. A file that is called by \
                     a VM's number, as conf.d/111.toml, is for that VM alone, without a section, and counts most: 'gpu-handoff \
                     attach' writes such ones. 'gpu-handoff plan' shows each setting with its value and where it came from. \
                     What is not understood refuses the way out, never the way home: what was in force when a GPU left \
                     holds for its way home, too.";

const VM: &str =
    "Any of the settings above for one VM, by its number. Take the '#' away from the line with the number, too.";

const VM_EXAMPLE: &str = "#[vm.111]\n#on-backup = \"refuse\"\n#deadlines.way-out = 90\n";

const DEVICES: &str = "What is known of a model of GPU that the kernel does not tell; gpu-handoff knows something of a few \
                       itself. As many of these sections as you like; only 'ids' must be there. Of two sections for a \
                       model the one for fewer ids counts.";

/// The commented file.
pub fn commented() -> String {
    let mut text = format!("{}#\n{}", comment(HEAD), comment(ORDER));
    for key in KEYS.iter().filter(|key| key.place().0.is_empty()) {
        text += &format!("\n{}", setting(key, ""));
    }
    for (section, about) in SECTIONS {
        let keys: Vec<&Key> = KEYS.iter().filter(|key| key.place().0 == *section).collect();
        let common = common(&keys);
        text += &format!("\n{}", comment(about));
        if !common.is_empty() {
            text += &comment(&format!("Each must be {common}."));
        }
        for key in keys {
            text += &format!("\n{}", setting(key, &common));
        }
    }
    text += &format!("\n{}{VM_EXAMPLE}", comment(VM));
    text += &format!("\n{}", comment(DEVICES));
    for key in DEVICE {
        text += &item(key.name, key.about);
    }
    text += "#[[device]]\n";
    for key in DEVICE {
        text += &format!("#{} = {}\n", key.name, key.example);
    }
    text
}

/// What each key of a section must be, if it is the same for all; "" otherwise.
fn common(keys: &[&Key]) -> String {
    let mut defaults = Settings::default();
    let mut allowed = keys.iter().map(|key| (key.field)(&mut defaults).allowed());
    let first = allowed.next().unwrap_or_default();
    if allowed.all(|other| other == first) {
        first
    } else {
        String::new()
    }
}

/// A setting with its text; what it must be is left out where the head of its section says so.
fn setting(key: &Key, said: &str) -> String {
    let mut defaults = Settings::default();
    let value = (key.field)(&mut defaults);
    let words = value.words();
    let mut text = comment(key.about);
    for (word, means) in &words {
        text += &item(&format!("\"{word}\""), means);
    }
    if words.is_empty() && value.allowed() != said {
        text += &comment(&format!("It must be {}.", value.allowed()));
    }
    text + &format!("#{} = {}\n", key.name, value.toml())
}

/// Text as a comment, in lines of some length.
fn comment(text: &str) -> String {
    wrapped("# ", "# ", text)
}

/// An item of a list, with its name before it.
fn item(name: &str, text: &str) -> String {
    wrapped(&format!("#   {name}: "), "#       ", text)
}

fn wrapped(first: &str, others: &str, text: &str) -> String {
    let mut lines = String::new();
    let mut line = first.to_owned();
    let mut empty = true;
    for word in text.split_whitespace() {
        if !empty && line.len() + 1 + word.len() > WIDTH {
            lines += &format!("{line}\n");
            line = others.to_owned();
            empty = true;
        }
        if !empty {
            line.push(' ');
        }
        line += word;
        empty = false;
    }
    lines + &format!("{line}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::fs;
    use std::path::Path;

    use crate::base::root::Root;
    use crate::base::vmid::VmId;
    use crate::settings::file;
    use crate::settings::values::Gate;

    /// What a config.toml sets.
    fn read(text: &str, vmid: Option<&str>) -> Settings {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("etc/gpu-handoff");
        fs::create_dir_all(&base).unwrap();
        fs::write(base.join("config.toml"), text).unwrap();
        let vmid: Option<VmId> = vmid.map(|v| v.parse().unwrap());
        file::load(&Root::at(dir.path()), vmid).unwrap_or_else(|e| panic!("{e}\n{text}"))
    }

    /// The file with the switched-off lines made to count that are chosen by their numbers.
    fn switched_on(chosen: impl Fn(usize, &str) -> bool) -> String {
        let line = |(number, line): (usize, &str)| match line.strip_prefix('#') {
            Some(setting) if is_setting(line) && chosen(number, setting) => format!("{setting}\n"),
            _ => format!("{line}\n"),
        };
        commented().lines().enumerate().map(line).collect()
    }

    fn is_setting(line: &str) -> bool {
        line.strip_prefix('#')
            .is_some_and(|rest| !rest.is_empty() && !rest.starts_with(' '))
    }

    /// The lines of the table's keys, before the examples.
    fn lines_of_keys() -> Vec<(usize, String)> {
        let text = commented();
        let lines = text.lines().enumerate().take_while(|(_, line)| *line != "#[vm.111]");
        let settings = lines.filter(|(_, line)| is_setting(line));
        settings.map(|(n, line)| (n, line.to_owned())).collect()
    }

    fn values(settings: &Settings) -> Vec<(&'static str, String)> {
        settings
            .listed()
            .into_iter()
            .map(|(key, value, _)| (key, value))
            .collect()
    }

    /// `UPDATE_GENERATED=1 cargo test --lib settings` writes the file instead of comparing it.
    #[test]
    fn the_file_of_the_package_is_the_one_that_is_written_here() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("debian/config.toml");
        if std::env::var_os("UPDATE_GENERATED").is_some_and(|v| v == "1") {
            fs::write(&path, commented()).unwrap();
        }
        let kept = fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(
            kept,
            commented(),
            "debian/config.toml is stale: run UPDATE_GENERATED=1 cargo test --lib settings"
        );
    }

    #[test]
    fn as_it_is_it_sets_nothing() {
        assert_eq!(read(&commented(), Some("111")), Settings::default());
    }

    #[test]
    fn any_one_key_switched_on_sets_its_default_and_nothing_else() {
        let lines = lines_of_keys();
        assert_eq!(lines.len(), KEYS.len());
        let mut set = Vec::new();
        for (number, line) in &lines {
            let settings = read(&switched_on(|n, _| n == *number), None);
            assert_eq!(values(&settings), values(&Settings::default()), "{line}");
            let origins: Vec<(&String, &String)> = settings.origins.iter().collect();
            let [(key, at)] = origins.as_slice() else {
                panic!("{line} sets {origins:?}");
            };
            assert_eq!(**at, format!("/etc/gpu-handoff/config.toml:{}", number + 1));
            set.push((*key).clone());
        }
        let mut all: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
        set.sort();
        all.sort_unstable();
        assert_eq!(set, all);
    }

    #[test]
    fn with_every_line_switched_on_all_is_as_by_default_but_for_the_examples() {
        let text = switched_on(|_, _| true);
        let settings = read(&text, None);
        let defaults = Settings::default();
        assert_eq!(values(&settings), values(&defaults));
        assert_eq!(settings.budgets, defaults.budgets);
        assert_eq!(settings.origins.len(), KEYS.len());
        let (example, known) = settings.facts.split_last().unwrap();
        assert_eq!(known, defaults.facts);
        assert_eq!(
            (example.first, example.last, example.note.as_str()),
            (0x2b85, 0x2b85, "RTX 5090")
        );
        assert_eq!((example.reset.as_deref(), example.d3cold), (Some("bus"), Some(false)));

        let own = read(&text, Some("111"));
        let differ: Vec<(&str, String)> = values(&own)
            .into_iter()
            .filter(|value| !values(&defaults).contains(value))
            .collect();
        assert_eq!(
            differ,
            [
                ("on-backup", "refuse".to_owned()),
                ("deadlines.way-out", "90 s".to_owned())
            ]
        );
    }

    #[test]
    fn a_setting_that_is_added_at_the_end_is_of_no_section() {
        let lines = lines_of_keys();
        let is_key = |n: usize| lines.iter().any(|(number, _)| *number == n);
        let deadlines = switched_on(|n, line| is_key(n) && line.starts_with("deadlines."));
        for text in [commented(), deadlines] {
            let settings = read(&format!("{text}gate = \"off\"\n"), None);
            assert_eq!(settings.gate, Gate::Off, "{text}");
        }
    }

    #[test]
    fn no_line_is_longer_than_a_terminal_is_wide() {
        let text = commented();
        let long: Vec<&str> = text.lines().filter(|line| line.len() > WIDTH + 2).collect();
        assert!(long.is_empty(), "{long:?}");
    }
}
