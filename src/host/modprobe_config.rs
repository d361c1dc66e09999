//! What modprobe.d says, line by line, as kmod reads it: for who has to name the line.
//!
//! Whether a module can be loaded is asked of modprobe itself ([`crate::host::modules`]). What a line means for a handoff is
//! not decided here.

use serde::{Deserialize, Serialize};

use crate::base::root::Root;
use crate::host::place::{Place, Unknown, by_name, text};

/// Where kmod looks, the first first (kmod 30 and later, libkmod/libkmod.c, default_config_paths).
pub const DIRS: [&str; 5] = [
    "/etc/modprobe.d",
    "/run/modprobe.d",
    "/usr/local/lib/modprobe.d",
    "/usr/lib/modprobe.d",
    "/lib/modprobe.d",
];

/// A line's directive. Names of modules have underscores, as kmod compares them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Directive {
    /// `alias WILDCARD MODULE`; a module named `off` never is.
    Alias {
        /// What is asked for; may have wildcards.
        name: String,
        /// What is loaded.
        module: String,
    },
    /// `blacklist MODULE`: its own aliases do not count. Who names the module has it loaded all the same.
    Blacklist {
        /// The module.
        module: String,
    },
    /// `options MODULE OPTION...`
    Options {
        /// The module.
        module: String,
        /// Each `NAME=VALUE`, as written.
        options: Vec<String>,
    },
    /// `install MODULE COMMAND`: run instead of loading it.
    Install {
        /// The module, which may have wildcards.
        module: String,
        /// The command.
        command: String,
    },
    /// `remove MODULE COMMAND`: run instead of unloading it.
    Remove {
        /// The module, which may have wildcards.
        module: String,
        /// The command.
        command: String,
    },
    /// `softdep MODULE pre: MODULES post: MODULES`
    Softdep {
        /// The module.
        module: String,
        /// Loaded before it.
        pre: Vec<String>,
        /// Loaded after it.
        post: Vec<String>,
    },
    /// What kmod ignores, with a message or in silence: another word, or one of the above without what it needs.
    Ignored {
        /// Its first word.
        word: String,
    },
}

/// A line that is no comment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Where it stands.
    pub place: Place,
    /// What it says.
    pub directive: Directive,
}

/// All of modprobe.d.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModprobeConfig {
    /// Its lines, in the order in which kmod reads them.
    pub lines: Vec<Line>,
    /// What could not be read.
    pub unknown: Vec<Unknown>,
}

impl ModprobeConfig {
    /// Reads it.
    pub fn read(root: &Root) -> Self {
        let mut config = ModprobeConfig::default();
        for file in by_name(root, &DIRS, ".conf", &mut config.unknown) {
            if let Some(text) = text(root, &file, &mut config.unknown) {
                config.lines.extend(parse(&file, &text));
            }
        }
        config
    }
}

/// Parses a file (kmod, libkmod/libkmod-config.c, kmod_config_parse): words are parted by blanks and tabs; a line that
/// begins with `#` is a comment.
pub fn parse(file: &str, text: &str) -> Vec<Line> {
    let mut lines = Vec::new();
    for (line, count, logical) in logical_lines(text) {
        if logical.starts_with('#') {
            continue;
        }
        let Some((word, rest)) = next_word(&logical) else {
            continue;
        };
        lines.push(Line {
            place: Place {
                file: file.to_owned(),
                line,
                lines: count,
            },
            directive: directive(word, rest).unwrap_or_else(|| Directive::Ignored { word: word.to_owned() }),
        });
    }
    lines
}

/// Lines as kmod joins them, each with its number and how many it is (shared/util.c, freadline_wrapped): a backslash before
/// the end of a line joins the next to it, with nothing between them, in comments too; any other backslash is dropped.
fn logical_lines(text: &str) -> Vec<(usize, usize, String)> {
    let mut lines = Vec::new();
    let (mut first, mut now) = (1, 1);
    let mut logical = String::new();
    let mut chars = text.chars();
    loop {
        match chars.next() {
            None => break,
            Some('\\') => match chars.next() {
                Some('\n') => now += 1,
                Some(c) => logical.push(c),
                None => break,
            },
            Some('\n') => {
                lines.push((first, now - first + 1, std::mem::take(&mut logical)));
                now += 1;
                first = now;
            }
            Some(c) => logical.push(c),
        }
    }
    if !logical.is_empty() {
        let physical = text.lines().count();
        lines.push((first, physical + 1 - first, logical));
    }
    lines
}

/// The next word, and what comes after the one separator behind it, as strtok_r has it.
fn next_word(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_start_matches([' ', '\t']);
    if text.is_empty() {
        return None;
    }
    Some(text.split_once([' ', '\t']).unwrap_or((text, "")))
}

fn directive(word: &str, rest: &str) -> Option<Directive> {
    if !["alias", "blacklist", "options", "install", "remove", "softdep"].contains(&word) {
        return None;
    }
    let (first, rest) = next_word(rest)?;
    let module = underscores(first)?;
    let has_rest = || Some(rest.trim_start().to_owned()).filter(|r| !r.is_empty());
    Some(match word {
        "blacklist" => Directive::Blacklist { module },
        "alias" => Directive::Alias {
            name: module,
            module: underscores(next_word(rest)?.0)?,
        },
        "options" => Directive::Options {
            module,
            options: has_rest().map(|r| options(&r))?,
        },
        "install" => Directive::Install {
            module,
            command: has_rest()?,
        },
        "remove" => Directive::Remove {
            module,
            command: has_rest()?,
        },
        _ => {
            let (pre, post) = softdep(&has_rest()?);
            Directive::Softdep { module, pre, post }
        }
    })
}

/// The words of a module's options: quotes keep blanks together (linux, lib/cmdline.c, next_arg).
fn options(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in text.chars() {
        quoted ^= c == '"';
        match words.last_mut() {
            Some(word) if quoted || !c.is_ascii_whitespace() => word.push(c),
            _ => words.push(String::new()),
        }
    }
    words.retain(|w| !w.is_empty());
    words
}

/// The modules before and after (libkmod-config.c, kmod_config_add_softdep): any white space parts them, and what comes
/// before the first `pre:` or `post:` counts for nothing.
fn softdep(text: &str) -> (Vec<String>, Vec<String>) {
    let (mut pre, mut post) = (Vec::new(), Vec::new());
    let mut into: Option<&mut Vec<String>> = None;
    for word in text.split_ascii_whitespace() {
        match word {
            "pre:" => into = Some(&mut pre),
            "post:" => into = Some(&mut post),
            _ => {
                if let Some(into) = &mut into {
                    into.push(word.to_owned());
                }
            }
        }
    }
    (pre, post)
}

/// A module's name as kmod compares it: dashes are underscores, but within brackets (shared/util.c, underscores). None where
/// the brackets do not match, which kmod calls a bad line.
fn underscores(name: &str) -> Option<String> {
    let mut in_brackets = false;
    let mut normal = String::new();
    for c in name.chars() {
        match c {
            '[' => in_brackets = true,
            ']' if !in_brackets => return None,
            ']' => in_brackets = false,
            _ => {}
        }
        normal.push(if c == '-' && !in_brackets { '_' } else { c });
    }
    (!in_brackets).then_some(normal)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Vec<(usize, usize, Directive)> {
        parse("/etc/modprobe.d/a.conf", text)
            .into_iter()
            .map(|l| (l.place.line, l.place.lines, l.directive))
            .collect()
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|w| (*w).to_owned()).collect()
    }

    #[test]
    fn each_directive_is_read_with_its_line() {
        let s = str::to_owned;
        let text = "# comment\n\nblacklist nvidia-drm\n\toptions vfio-pci  ids=10de:2204,10de:1aef disable_vga=1\n\
                    install nvidia /bin/false\nremove nvidia rmmod nvidia-drm  nvidia\n\
                    softdep nvidia ignored pre: vfio-pci post: nvidia-uvm\nalias pci:v000010DEd* off\n\
                    install nvidia\noptions nvidia\nblacklist\nsomething else\n # no comment to kmod\n\
                    alias char-major-[1-9]* nvidia-x\nblacklist a]\nlast";
        let expected = [
            (
                3,
                Directive::Blacklist {
                    module: s("nvidia_drm"),
                },
            ),
            (
                4,
                Directive::Options {
                    module: s("vfio_pci"),
                    options: words(&["ids=10de:2204,10de:1aef", "disable_vga=1"]),
                },
            ),
            (
                5,
                Directive::Install {
                    module: s("nvidia"),
                    command: s("/bin/false"),
                },
            ),
            (
                6,
                Directive::Remove {
                    module: s("nvidia"),
                    command: s("rmmod nvidia-drm  nvidia"),
                },
            ),
            (
                7,
                Directive::Softdep {
                    module: s("nvidia"),
                    pre: words(&["vfio-pci"]),
                    post: words(&["nvidia-uvm"]),
                },
            ),
            (
                8,
                Directive::Alias {
                    name: s("pci:v000010DEd*"),
                    module: s("off"),
                },
            ),
            (9, Directive::Ignored { word: s("install") }),
            (10, Directive::Ignored { word: s("options") }),
            (11, Directive::Ignored { word: s("blacklist") }),
            (12, Directive::Ignored { word: s("something") }),
            (13, Directive::Ignored { word: s("#") }),
            (
                14,
                Directive::Alias {
                    name: s("char_major_[1-9]*"),
                    module: s("nvidia_x"),
                },
            ),
            (15, Directive::Ignored { word: s("blacklist") }),
            (16, Directive::Ignored { word: s("last") }),
        ];
        assert_eq!(shown(text), expected.map(|(line, d)| (line, 1, d)));
    }

    #[test]
    fn lines_are_joined_by_a_backslash_and_other_backslashes_are_dropped() {
        let blacklist = |module: &str| Directive::Blacklist {
            module: module.to_owned(),
        };
        for (text, expected) in [
            (
                "blacklist \\\n nvidia\nblacklist b\n",
                vec![(1, 2, blacklist("nvidia")), (3, 1, blacklist("b"))],
            ),
            ("black\\\nlist nvi\\\ndia", vec![(1, 3, blacklist("nvidia"))]),
            ("blacklist nv\\idia\n", vec![(1, 1, blacklist("nvidia"))]),
            // A comment goes on, too: this blacklists nothing.
            (
                "# why \\\nblacklist nvidia\nblacklist b\n",
                vec![(3, 1, blacklist("b"))],
            ),
            ("blacklist nvidia\\", vec![(1, 1, blacklist("nvidia"))]),
            ("blacklist nvidia \\\n", vec![(1, 1, blacklist("nvidia"))]),
            // kmod knows no carriage return: no module has such a name.
            ("blacklist nvidia\r\n", vec![(1, 1, blacklist("nvidia\r"))]),
            ("", vec![]),
            ("\n\\\n\n", vec![]),
        ] {
            assert_eq!(shown(text), expected, "{text:?}");
        }
    }

    #[test]
    fn quotes_keep_the_words_of_an_option_together() {
        assert_eq!(
            options("NVreg_RegistryDwords=\"a=1; b=2\"  x=1\ty"),
            ["NVreg_RegistryDwords=\"a=1; b=2\"", "x=1", "y"]
        );
    }

    #[test]
    fn files_are_read_in_the_order_of_their_names_and_what_is_not_readable_is_said() {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in [
            ("etc/modprobe.d/vfio.conf", "options vfio-pci ids=10de:2204\n"),
            ("usr/lib/modprobe.d/vfio.conf", "options vfio-pci ids=10de:9999\n"),
            ("usr/lib/modprobe.d/aliases.conf", "blacklist nouveau\n"),
            ("etc/modprobe.d/notes.txt", "blacklist nvidia\n"),
        ] {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        nix::unistd::mkfifo(&dir.path().join("etc/modprobe.d/z.conf"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let config = ModprobeConfig::read(&Root::at(dir.path()));
        let places: Vec<String> = config.lines.iter().map(|l| l.place.to_string()).collect();
        assert_eq!(
            places,
            ["/usr/lib/modprobe.d/aliases.conf:1", "/etc/modprobe.d/vfio.conf:1"]
        );
        let unknown: Vec<String> = config.unknown.iter().map(ToString::to_string).collect();
        assert_eq!(unknown, ["/etc/modprobe.d/z.conf: it is no regular file"]);
    }
}
