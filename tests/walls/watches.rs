//! What is in one place, and has to stay there: each watch gives an offence where it is somewhere else.

use std::collections::{BTreeMap, BTreeSet};

use crate::code::{Code, Source, Token, places};
use crate::paths::paths;
use crate::rules::{Offence, WINGS};

/// Who has /proc/PID/stat read: the one that does, and the one that knows its name to keep it out of a report.
const STAT: [&str; 2] = ["base/process.rs", "report/keep.rs"];

/// What the switches of the tests begin with.
const FAULT_SWITCH: &str = "GPU_HANDOFF_TEST";

/// Variables of the environment that are read by a name in the code, as SECURITY.md has them.
pub const VARIABLES: [&str; 3] = ["JOURNAL_STREAM", "PVE_MIGRATED_FROM", "TERM"];

/// Files that read one whose name is a value there: `NO_COLOR`, `GPU_PCI` and `GPU_AUDIO_PCI`, and those that say that the
/// hook runs from another script.
const VARIABLES_BY_VALUE: [&str; 3] = ["commands/hook.rs", "commands/target.rs", "output/style.rs"];

/// The parser of the settings, the table of them, and where their values are.
const PARSER: &str = "settings/file.rs";
const TABLE: &str = "settings/table.rs";
const VALUES: (&str, &str) = ("settings/values.rs", "Settings");
const DEADLINES: (&str, &str) = ("base/deadlines.rs", "Budgets");

/// Fields that are no setting: those that have fields of their own, the `[[device]]` sections, and where each value stands.
const NO_SETTING: [&str; 3] = ["budgets", "facts", "origins"];

/// Names in the parser that are sections.
const SECTIONS: [&str; 2] = ["device", "vm"];

/// Methods that take a text apart, or look into it.
const READ_BACK: [&str; 16] = [
    "split",
    "split_once",
    "rsplit",
    "rsplit_once",
    "splitn",
    "rsplitn",
    "split_inclusive",
    "split_terminator",
    "find",
    "rfind",
    "contains",
    "matches",
    "match_indices",
    "strip_prefix",
    "strip_suffix",
    "starts_with",
];

/// What our own texts are known by, and the file that writes such a text and reads it.
const OURS: [(&str, &str); 2] = [("Hint:", "model/sentence.rs"), ("VM ", "model/record.rs")];

fn offence(file: &str, line: usize, rule: &'static str, what: String) -> Offence {
    let file = file.to_owned();
    Offence { file, line, rule, what }
}

/// A file's path, and its tokens without its unit tests.
type Own<'a> = (&'a str, Vec<Token>);

/// Everything that is somewhere else than in its place.
pub fn offences(sources: &[Source]) -> Vec<Offence> {
    let own: Vec<Own<'_>> = sources
        .iter()
        .map(|(file, text)| (file.as_str(), Code::read(text).own()))
        .collect();
    let mut found: Vec<Offence> = Vec::new();
    for (file, tokens) in &own {
        found.extend(stat(file, tokens));
        found.extend(switches(file, tokens));
        found.extend(read_back(file, tokens));
    }
    found.extend(settings(&own));
    found.extend(said_twice(&own));
    found.sort();
    found
}

fn stat(file: &str, tokens: &[Token]) -> Vec<Offence> {
    let is_stat = |text: &str| text == "stat" || text.ends_with("/stat");
    let read = tokens
        .iter()
        .filter(|t| t.string().is_some_and(is_stat) && !STAT.contains(&file));
    let what = "Stat::read of base/process.rs has what is in it";
    read.map(|t| offence(file, t.line, "one place reads /proc/PID/stat", what.to_owned()))
        .collect()
}

fn switches(file: &str, tokens: &[Token]) -> Vec<Offence> {
    let is_switch = |t: &&Token| !t.is_fault && t.string().is_some_and(|text| text.contains(FAULT_SWITCH));
    let rule = "a switch of the tests is in builds with fault-points alone";
    let switches = tokens.iter().filter(is_switch);
    let mut found: Vec<Offence> = switches.map(|t| offence(file, t.line, rule, t.text.clone())).collect();
    for name in ["var", "var_os", "vars", "vars_os"] {
        for at in places(tokens, &["env", ":", ":", name, "(", ""]) {
            let asked = &tokens[at + 5];
            let is_known = match asked.string() {
                Some(variable) => VARIABLES.contains(&variable) || variable.contains(FAULT_SWITCH),
                None => VARIABLES_BY_VALUE.contains(&file) && asked.is_word(),
            };
            if !is_known {
                let what = format!("{name}({})", asked.text);
                found.push(offence(
                    file,
                    asked.line,
                    "SECURITY.md has each variable that is read",
                    what,
                ));
            }
        }
    }
    found
}

/// The programs that are run, as far as their names stand first in a list of words.
pub fn programs(tokens: &[Token]) -> Vec<String> {
    let lists: [&[&str]; 4] = [
        &["program", "(", "&", "[", ""],
        &["words", "=", "[", ""],
        &["texts", ",", "&", "[", ""],
        &["return", "[", ""],
    ];
    let firsts = lists
        .iter()
        .flat_map(|words| places(tokens, words).into_iter().map(|at| at + words.len() - 1));
    let names = firsts.filter_map(|at| tokens[at].string());
    names.map(str::to_owned).collect()
}

fn read_back(file: &str, tokens: &[Token]) -> Vec<Offence> {
    let mut found = Vec::new();
    for name in READ_BACK {
        for at in places(tokens, &[".", name, "(", ""]) {
            let Some(text) = tokens[at + 3].string() else { continue };
            let ours = OURS.iter().filter(|(own, place)| text.contains(own) && file != *place);
            let what = |place: &str| format!("{name}({}): src/{place} reads it", tokens[at + 3].text);
            found.extend(
                ours.map(|(_, place)| offence(file, tokens[at].line, "no text of ours is taken apart", what(place))),
            );
        }
    }
    found
}

/// Each setting has its row: the fields with their values, and the words that the parser knows.
fn settings(own: &[Own<'_>]) -> Vec<Offence> {
    let of = |file: &str| own.iter().find(|(name, _)| *name == file).map(|(_, tokens)| tokens);
    let Some(table) = of(TABLE) else { return Vec::new() };
    let behind = |words: &[&str]| -> Vec<&Token> {
        let places = places(table, words);
        places.into_iter().map(|at| &table[at + words.len()]).collect()
    };
    let mut found = Vec::new();
    for ((file, name), way) in [(VALUES, &["s", "."][..]), (DEADLINES, &["s", ".", "budgets", "."])] {
        let rows: Vec<&str> = behind(way).iter().map(|t| t.text.as_str()).collect();
        for field in fields(of(file).map_or(&[], Vec::as_slice), name) {
            if !rows.contains(&field.text.as_str()) && !NO_SETTING.contains(&field.text.as_str()) {
                let what = format!("{} of {name} has none", field.text);
                found.push(offence(file, field.line, "each setting has its row in the table", what));
            }
        }
    }
    let rows: Vec<&str> = behind(&["name", ":"]).iter().filter_map(|t| t.string()).collect();
    let is_key = |text: &str| {
        let is_part = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        text.starts_with(|c: char| c.is_ascii_lowercase()) && text.chars().all(is_part)
    };
    for token in of(PARSER).into_iter().flatten() {
        let Some(word) = token.string().filter(|text| is_key(text)) else {
            continue;
        };
        if !rows.contains(&word) && !SECTIONS.contains(&word) {
            let what = format!("the parser knows '{word}', which has none");
            found.push(offence(
                PARSER,
                token.line,
                "each setting has its row in the table",
                what,
            ));
        }
    }
    found
}

/// The fields of a struct, as tokens.
fn fields<'t>(tokens: &'t [Token], name: &str) -> Vec<&'t Token> {
    let Some(start) = places(tokens, &["struct", name, "{"]).first().copied() else {
        return Vec::new();
    };
    let mut depth = 0;
    let mut fields = Vec::new();
    for (at, token) in tokens.iter().enumerate().skip(start + 2) {
        depth = match token.text.as_str() {
            "{" | "(" | "[" => depth + 1,
            "}" | ")" | "]" => depth - 1,
            _ => depth,
        };
        if depth == 0 {
            break;
        }
        if depth == 1
            && token.is_word()
            && !token.is_attribute
            && tokens[at + 1].text == ":"
            && tokens[at + 2].text != ":"
            && tokens[at - 1].text != ":"
        {
            fields.push(token);
        }
    }
    fields
}

/// `Reason::Other` is for what is said once: its text stands nowhere else.
fn said_twice(own: &[Own<'_>]) -> Vec<Offence> {
    let mut first: BTreeMap<&str, (&str, usize)> = BTreeMap::new();
    let mut found = Vec::new();
    for (file, tokens) in own {
        for at in places(tokens, &["Reason", ":", ":", "Other", "("]) {
            let mut depth = 0;
            let inside = tokens[at + 4..].iter().take_while(|token| {
                depth += match token.text.as_str() {
                    "(" => 1,
                    ")" => -1,
                    _ => 0,
                };
                depth > 0
            });
            let Some(text) = inside.filter_map(Token::string).next() else {
                continue;
            };
            let line = tokens[at].line;
            match first.get(text) {
                None => _ = first.insert(text, (*file, line)),
                Some((other, of)) => {
                    let what = format!("src/{other}:{of} says the same: give it a variant of Reason");
                    found.push(offence(file, line, "Reason::Other is for what is said once", what));
                }
            }
        }
    }
    found
}

/// A door shows what somebody beyond it uses; the rest is private. `outside`: files that are not of src.
pub fn doors(sources: &[Source], outside: &[Source]) -> Vec<Offence> {
    // Wing and module of each path, with the wing of the file that has it.
    let mut used: BTreeSet<(String, String, &str)> = BTreeSet::new();
    let of_src = sources
        .iter()
        .map(|source| (source, source.0.split('/').next().unwrap_or_default()));
    for ((file, text), user) in of_src.chain(outside.iter().map(|source| (source, ""))) {
        for named in paths(file, &Code::read(text)) {
            if let [root, wing, module, ..] = &named.path[..]
                && ["crate", "gpu_handoff"].contains(&root.as_str())
            {
                used.insert((wing.clone(), module.clone(), user));
            }
        }
    }
    let mut found = Vec::new();
    for wing in WINGS {
        let door = format!("{wing}/mod.rs");
        let Some((_, text)) = sources.iter().find(|(file, _)| *file == door) else {
            continue;
        };
        let tokens = Code::read(text).tokens;
        for at in places(&tokens, &["mod", "", ";"]) {
            let name = &tokens[at + 1];
            let is_shown = at > 0 && [")", "pub"].contains(&tokens[at - 1].text.as_str());
            let is_used = used
                .iter()
                .any(|(of, module, by)| of == wing && *module == name.text && *by != wing);
            if is_shown && !is_used {
                let what = format!("nobody outside uses {wing}::{}", name.text);
                found.push(offence(&door, name.line, "a door shows what others use", what));
            }
        }
    }
    found
}
