//! The rules that hold for every file of src, and what breaks them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::code::{Code, Source, Token, places};
use crate::paths::{Path, module_of, paths};

/// The wings, from the top to the ground.
pub const WINGS: [&str; 16] = [
    "commands", "run", "execute", "tell", "output", "attach", "prepare", "check", "plan", "report", "state", "model",
    "settings", "proxmox", "host", "base",
];

/// Wings that take values and give values.
const PURE: [&str; 7] = ["attach", "check", "plan", "report", "model", "settings", "proxmox"];

/// Their files that read, through a root that is a parameter.
const READERS: [&str; 4] = [
    "check/read.rs",
    "report/unpack.rs",
    "settings/file.rs",
    "proxmox/files.rs",
];

/// What reaches beyond values.
const IMPURE: [&str; 24] = [
    "std::fs",
    "std::env",
    "std::net",
    "std::os",
    "std::process",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "std::io::stdin",
    "nix",
    "rustix",
    "crate::base::clock::now",
    "crate::base::clock::now_on",
    "crate::base::clock::told",
    "crate::base::files",
    "crate::base::process",
    "crate::base::program",
    "crate::base::root",
    "crate::base::systemd",
    "crate::base::systemd_socket",
    "crate::base::threads",
    "crate::base::uevents",
    "crate::base::unsafe_calls",
    "crate::base::wait",
];

/// What says something: that is no reader's either.
const SAYS: [&str; 3] = ["tracing", "std::io::stdout", "std::io::stderr"];

/// The same as macros.
const SAYING: [&str; 5] = ["print", "println", "eprint", "eprintln", "dbg"];

/// What begins like something impure and is a value.
const VALUES: [&str; 5] = [
    "std::process::ExitCode",
    "std::net::Ipv4Addr",
    "std::net::Ipv6Addr",
    "crate::base::process::Group",
    "crate::base::process::Process",
];

/// Methods, of a path's and a moment's, that ask the host.
const ASKS: [&str; 11] = [
    "exists",
    "try_exists",
    "is_file",
    "is_dir",
    "is_symlink",
    "read_dir",
    "read_link",
    "metadata",
    "symlink_metadata",
    "canonicalize",
    "elapsed",
];

/// Ways from file to file that are no paths.
const BESIDE_PATHS: [&[&str]; 4] = [
    &["include", "!"],
    &["macro_use"],
    &["macro_export"],
    &["extern", "crate"],
];

/// Most lines of a file without its tests.
const MOST_LINES: usize = 500;

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Offence {
    pub file: String,
    pub line: usize,
    pub rule: &'static str,
    pub what: String,
}

impl fmt::Display for Offence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "src/{}:{}: {}: {}", self.file, self.line, self.rule, self.what)
    }
}

pub fn texts(found: &[Offence]) -> String {
    let lines: Vec<String> = found.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

/// Which files each file imports, with the line of the first such import.
pub type Imports = BTreeMap<String, BTreeMap<String, usize>>;

fn wing_of(file: &str) -> Option<usize> {
    let (wing, _) = file.split_once('/')?;
    WINGS.iter().position(|w| *w == wing)
}

/// Whether a path is this thing, or something in it.
fn is_in(path: &str, thing: &str) -> bool {
    path.strip_prefix(thing)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

pub fn offences(sources: &[Source]) -> (Vec<Offence>, Imports) {
    let files: BTreeMap<Path, &str> = sources.iter().map(|(f, _)| (module_of(f), f.as_str())).collect();
    let mut all = BTreeSet::new();
    let mut imports = Imports::new();
    for (file, text) in sources {
        let code = Code::read(text);
        let mut looked = Looked {
            file,
            files: &files,
            all: &mut all,
            imports: &mut imports,
        };
        looked.at_its_form(text, &code);
        match wing_of(file) {
            Some(wing) => {
                looked.at_its_paths(wing, &code);
                looked.at_its_calls(wing, &code);
            }
            None if file == "lib.rs" => looked.at_the_list_of_wings(&code),
            None if file == "main.rs" => {}
            None => looked.offence(
                1,
                "every file is in a wing",
                format!("the wings are {}", WINGS.join(", ")),
            ),
        }
    }
    all.extend(circles(&imports));
    (all.into_iter().collect(), imports)
}

/// A file that is looked at.
struct Looked<'a> {
    file: &'a str,
    /// The file of each module.
    files: &'a BTreeMap<Path, &'a str>,
    all: &'a mut BTreeSet<Offence>,
    imports: &'a mut Imports,
}

impl Looked<'_> {
    fn offence(&mut self, line: usize, rule: &'static str, what: String) {
        let file = self.file.to_owned();
        self.all.insert(Offence { file, line, rule, what });
    }

    fn at_its_form(&mut self, text: &str, code: &Code) {
        if !text.starts_with("//! ") {
            self.offence(
                1,
                "a file says what it is for",
                "it begins without a line of '//!'".to_owned(),
            );
        }
        if code.own_lines > MOST_LINES {
            self.offence(
                1,
                "a file has at most 500 lines",
                format!("{} lines without its tests", code.own_lines),
            );
        }
        let tokens = &code.tokens;
        let mut beside: Vec<usize> = BESIDE_PATHS.iter().flat_map(|words| places(tokens, words)).collect();
        let of_attributes = |at: &usize| tokens[*at].is_attribute;
        beside.extend(places(tokens, &["path", "="]).into_iter().filter(of_attributes));
        for at in beside {
            let what = format!("'{}' goes round that", tokens[at].text);
            self.offence(tokens[at].line, "what a file has of another one it has by a path", what);
        }
    }

    fn at_the_list_of_wings(&mut self, code: &Code) {
        for line in code.tokens.chunks(4) {
            let words: Vec<&str> = line.iter().map(|t| t.text.as_str()).collect();
            if !matches!(words[..], ["pub", "mod", name, ";"] if WINGS.contains(&name)) {
                let what = format!("it has '{}'", words.join(" "));
                return self.offence(line[0].line, "lib.rs lists the wings and has nothing of its own", what);
            }
        }
    }

    /// What of this path a pure file may not know, and which file it is of.
    fn meaning(&self, path: &[String]) -> (Option<&'static str>, Option<&str>) {
        let name = path.join("::");
        let among = |names: &[&'static str]| names.iter().find(|thing| is_in(&name, thing)).copied();
        let says = among(&SAYS);
        let is_reader = READERS.contains(&self.file);
        let impure = says.or_else(|| among(&IMPURE).filter(|_| !is_reader && among(&VALUES).is_none()));
        let file = (1..=path.len()).rev().find_map(|n| self.files.get(&path[..n]));
        (impure, file.copied().filter(|file| *file != self.file))
    }

    fn at_its_paths(&mut self, wing: usize, code: &Code) {
        for named in paths(self.file, code) {
            let (impure, file) = self.meaning(&named.path);
            // The line that imports it is named already.
            if named.by.as_ref().is_some_and(|by| self.meaning(by) == (impure, file)) {
                continue;
            }
            let file = file.map(str::to_owned);
            let (name, line) = (named.path.join("::"), named.line);
            // A unit test may write the files that it reads.
            if PURE.contains(&WINGS[wing]) && impure.is_some() && !named.is_test {
                self.offence(
                    line,
                    "a pure wing knows values only",
                    format!("{} uses {name}", WINGS[wing]),
                );
            }
            if named.path[0] != "crate" {
                continue;
            }
            let wing_named = named.path.get(1).map(String::as_str);
            if wing_named.is_some_and(|name| !WINGS.contains(&name)) {
                self.offence(line, "a path leads into a wing", format!("{name} is in none"));
                continue;
            }
            // With the whole of it under a name, what is used of it is not to be seen.
            let is_door = named.path.len() < 3
                || file
                    .as_ref()
                    .is_some_and(|f| module_of(f) == named.path && f.ends_with("/mod.rs"));
            if named.is_import && is_door && named.path != module_of(self.file) {
                self.offence(line, "an import names what it needs", format!("{name} is a whole wing"));
            }
            let Some(target) = file else { continue };
            if wing_of(&target).is_some_and(|t| t < wing) {
                let above = &target[..target.find('/').unwrap_or(0)];
                self.offence(
                    line,
                    "an import goes down",
                    format!("{name} is of {above}, which lies above {}", WINGS[wing]),
                );
            }
            let own = self.imports.entry(self.file.to_owned()).or_default();
            own.entry(target).or_insert(line);
        }
    }

    fn at_its_calls(&mut self, wing: usize, code: &Code) {
        if !PURE.contains(&WINGS[wing]) {
            return;
        }
        let own: Vec<Token> = code.own();
        let mut calls: Vec<(usize, String)> = Vec::new();
        for name in SAYING {
            calls.extend(
                places(&own, &[name, "!"])
                    .into_iter()
                    .map(|at| (at, format!("{name}!"))),
            );
        }
        for name in ASKS.iter().filter(|_| !READERS.contains(&self.file)) {
            let of_a_value = places(&own, &[".", name, "("]);
            let of_the_type = ["Path", "PathBuf"].map(|of| places(&own, &[of, ":", ":", name]));
            let places = of_a_value.into_iter().chain(of_the_type.into_iter().flatten());
            calls.extend(places.map(|at| (at, format!("{name}()"))));
        }
        for (at, what) in calls {
            self.offence(
                own[at].line,
                "a pure wing knows values only",
                format!("{} uses {what}", WINGS[wing]),
            );
        }
    }
}

/// An offence for every import that is part of a circle.
fn circles(imports: &Imports) -> Vec<Offence> {
    let mut found = Vec::new();
    for (file, targets) in imports {
        for (target, line) in targets {
            let Some(between) = way(imports, target, file) else {
                continue;
            };
            let between: String = between
                .iter()
                .map(|file| format!("src/{file}, which imports "))
                .collect();
            found.push(Offence {
                file: file.clone(),
                line: *line,
                rule: "no circles",
                what: format!("it imports {between}it"),
            });
        }
    }
    found
}

/// The shortest way by imports: the files on it, the first among them and the last not.
fn way<'a>(imports: &'a Imports, from: &'a str, to: &str) -> Option<Vec<&'a str>> {
    let mut ways = vec![vec![from]];
    let mut seen = BTreeSet::from([from]);
    while !ways.is_empty() {
        let mut longer = Vec::new();
        for way in ways {
            for next in imports.get(way[way.len() - 1]).into_iter().flat_map(BTreeMap::keys) {
                if next == to {
                    return Some(way);
                }
                if seen.insert(next) {
                    longer.push(way.iter().copied().chain([next.as_str()]).collect());
                }
            }
        }
        ways = longer;
    }
    None
}
