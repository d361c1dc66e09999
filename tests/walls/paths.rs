//! Every path of a file: in its code, its `use` lines, its macros, and the strings of its attributes.
//!
//! A path that begins with a name which the file imports, or with a module that it declares, is that thing's path: of
//! `use std::time::Instant;` and `Instant::now()` comes `std::time::Instant::now`.

use std::collections::{BTreeMap, BTreeSet};

use crate::code::{Code, Token};

/// A path's names.
pub type Path = Vec<String>;

/// A path in the code.
#[derive(Debug)]
pub struct Named {
    /// From the crate on, or from another crate's name.
    pub path: Path,
    pub line: usize,
    /// What is imported by the name that it begins with, if it begins with one.
    pub by: Option<Path>,
    /// It stands in a `use` line.
    pub is_import: bool,
    pub is_test: bool,
}

/// As it is written, in which module.
struct Written {
    path: Path,
    line: usize,
    module: Path,
    is_import: bool,
    is_test: bool,
}

#[derive(Default)]
struct Reader {
    written: Vec<Written>,
    /// What each imported name stands for; of two scopes there may be two.
    imported: BTreeMap<String, BTreeSet<Path>>,
    /// Modules that are declared here and have a file of their own.
    children: BTreeMap<String, Path>,
}

pub fn module_of(file: &str) -> Path {
    let names = file.trim_end_matches(".rs").trim_end_matches("/mod").split('/');
    std::iter::once("crate").chain(names).map(str::to_owned).collect()
}

/// All paths of a file that have more than one name, and all that is imported.
pub fn paths(file: &str, code: &Code) -> Vec<Named> {
    let mut reader = Reader::default();
    reader.read(&code.tokens, module_of(file));
    let mut named = Vec::new();
    for written in &reader.written {
        let mut add = |path, by| {
            named.push(Named {
                path,
                line: written.line,
                by,
                is_import: written.is_import,
                is_test: written.is_test,
            });
        };
        let first = &written.path[0];
        let rest = &written.path[1..];
        let behind = |of: &Path| of.iter().chain(rest).cloned().collect::<Path>();
        let is_itself = |of: &&Path| written.is_import && **of == written.path;
        let things: Vec<&Path> = reader.imported.get(first).into_iter().flatten().collect();
        match reader.children.get(first) {
            Some(child) => add(behind(child), None),
            None if things.is_empty() || things.iter().any(is_itself) => {
                add(absolute(&written.path, &written.module), None);
            }
            None => things.iter().for_each(|of| add(behind(of), Some((*of).clone()))),
        }
    }
    named
}

impl Reader {
    fn read(&mut self, tokens: &[Token], mut module: Path) {
        let mut depth = 0;
        let mut inline = Vec::new();
        let text = |at: usize| tokens.get(at).map_or("", |t: &Token| t.text.as_str());
        let mut at = 0;
        while at < tokens.len() {
            let token = &tokens[at];
            match token.text.as_str() {
                "(" | "[" | "{" => depth += 1,
                ")" | "]" | "}" => {
                    depth -= 1;
                    if inline.last() == Some(&depth) {
                        inline.pop();
                        module.pop();
                    }
                }
                "mod" if text(at + 2) == "{" => {
                    module.push(text(at + 1).to_owned());
                    inline.push(depth);
                    depth += 1;
                    at += 2;
                }
                "mod" if text(at + 2) == ";" => {
                    let child = module.iter().cloned().chain([text(at + 1).to_owned()]).collect();
                    self.children.insert(text(at + 1).to_owned(), child);
                }
                // Not the `use<'a>` of a type.
                "use" if text(at + 1) != "<" => {
                    at = self.tree(tokens, at + 1, &[], &module);
                    continue;
                }
                _ if token.is_word() => {
                    let mut path = vec![token.text.clone()];
                    while text(at + 1) == ":" && text(at + 2) == ":" && tokens.get(at + 3).is_some_and(Token::is_word) {
                        path.push(text(at + 3).to_owned());
                        at += 3;
                    }
                    self.keep(path, token, &module);
                }
                // #[serde(with = "crate::base::text")]
                _ if token.is_attribute => {
                    let names: Vec<&str> = token.string().map_or(Vec::new(), |text| text.split("::").collect());
                    let is_name = |n: &&str| !n.is_empty() && n.chars().all(|c| c.is_alphanumeric() || c == '_');
                    if names.iter().all(is_name) && !names.is_empty() {
                        self.keep(names.into_iter().map(str::to_owned).collect(), token, &module);
                    }
                }
                _ => {}
            }
            at += 1;
        }
    }

    fn keep(&mut self, path: Path, token: &Token, module: &Path) {
        if path.len() > 1 {
            self.written.push(Written {
                path,
                line: token.line,
                module: module.clone(),
                is_import: false,
                is_test: token.is_test,
            });
        }
    }

    /// Reads one tree of a `use`; returns where it ends.
    fn tree(&mut self, tokens: &[Token], mut at: usize, before: &[String], module: &Path) -> usize {
        let mut path = before.to_vec();
        let (first, mut name, mut is_glob) = (at, None, false);
        loop {
            match tokens[at].text.as_str() {
                "{" => {
                    at += 1;
                    while tokens[at].text != "}" {
                        at = self.tree(tokens, at, &path, module);
                        at += usize::from(tokens[at].text == ",");
                    }
                    return at + 1;
                }
                "," | "}" | ";" => break,
                "as" => {
                    name = Some(tokens[at + 1].text.clone());
                    at += 1;
                }
                "*" => is_glob = true,
                ":" => {}
                word => path.push(word.to_owned()),
            }
            at += 1;
        }
        // `{self}` is what stands before the brace.
        if path.len() > 1 && path.last().is_some_and(|word| word == "self") {
            path.pop();
        }
        let name = name.or_else(|| path.last().cloned()).filter(|_| !is_glob);
        if let Some(name) = name {
            let whole = absolute(&path, module);
            self.imported.entry(name).or_default().insert(whole);
        }
        self.written.push(Written {
            path,
            line: tokens[first].line,
            module: module.clone(),
            is_import: true,
            is_test: tokens[first].is_test,
        });
        at
    }
}

/// A path that begins with `self` or `super`, from the crate on.
fn absolute(path: &[String], module: &Path) -> Path {
    let mut base = module.clone();
    let mut rest = path;
    match path[0].as_str() {
        "self" => rest = &path[1..],
        "super" => {}
        _ => return path.to_vec(),
    }
    while let Some((_, behind)) = rest.split_first().filter(|(word, _)| *word == "super") {
        base.pop();
        rest = behind;
    }
    base.extend(rest.iter().cloned());
    base
}
