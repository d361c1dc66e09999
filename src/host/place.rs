//! Where something stands in the host's configuration, and files of it that could not be read.
//!
//! What stands there is told by [`crate::host::modprobe_config`], [`crate::host::module_lists`] and
//! [`crate::host::boot_loader`].

use std::collections::BTreeMap;
use std::{fmt, io};

use serde::{Deserialize, Serialize};

use crate::base::root::Root;
use crate::base::text::harmless;

/// Longest path that is shown, bytes.
const LONGEST_PATH: usize = 256;

/// A line of a file, or several that belong together by a backslash at the end of each.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place {
    /// The file, as an absolute path of the host.
    pub file: String,
    /// The first line, counted from 1.
    pub line: usize,
    /// How many lines it is.
    pub lines: usize,
}

impl Place {
    /// One line.
    pub fn line(file: &str, line: usize) -> Self {
        Place {
            file: file.to_owned(),
            line,
            lines: 1,
        }
    }
}

impl fmt::Display for Place {
    /// `/etc/modprobe.d/vfio.conf:3`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", harmless(&self.file, LONGEST_PATH), self.line)
    }
}

/// A file or directory that is there and could not be read, or a line that is not understood: what it says is not known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unknown {
    /// The file.
    pub file: String,
    /// The line, counted from 1; None: all of it.
    pub line: Option<usize>,
    /// Why, as the rest of a sentence.
    pub why: String,
}

impl Unknown {
    /// A file that could not be read.
    pub(crate) fn file(file: &str, error: &io::Error) -> Self {
        Unknown {
            file: file.to_owned(),
            line: None,
            why: error.to_string(),
        }
    }
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", harmless(&self.file, LONGEST_PATH))?;
        match self.line {
            Some(line) => write!(f, ":{line}: {}", self.why),
            None => write!(f, ": {}", self.why),
        }
    }
}

/// The files of several directories whose names end so, in the order of their names: of two with one name that of the
/// directory that comes first counts. Hidden ones are left out, as kmod (libkmod/libkmod-config.c, conf_files_filter_out)
/// and systemd (src/basic/conf-files.c) do.
pub(crate) fn by_name(root: &Root, dirs: &[&str], ending: &str, unknown: &mut Vec<Unknown>) -> Vec<String> {
    let mut files = BTreeMap::new();
    for dir in dirs {
        let names = match root.names(dir) {
            Ok(names) => names,
            // A file where the directory would be is no directory: nothing of it is read.
            Err(e) if e.kind() == io::ErrorKind::NotADirectory => continue,
            Err(e) => {
                unknown.push(Unknown::file(dir, &e));
                continue;
            }
        };
        for name in names {
            if name.ends_with(ending) && name.len() > ending.len() && !name.starts_with('.') {
                let file = format!("{dir}/{name}");
                files.entry(name).or_insert(file);
            }
        }
    }
    files.into_values().collect()
}

/// A file's text, or what is not known then; None where it is not there, or a directory.
pub(crate) fn text(root: &Root, file: &str, unknown: &mut Vec<Unknown>) -> Option<String> {
    match root.config(file) {
        Ok(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
        // A link that leads nowhere is as good as no file to all who read these.
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::IsADirectory) => None,
        Err(e) => {
            unknown.push(Unknown::file(file, &e));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_shown_as_file_and_line_and_stays_on_its_own() {
        for (file, shown) in [
            ("/etc/modules", "/etc/modules:3"),
            ("/etc/modprobe.d/a\n.conf", "/etc/modprobe.d/a\\n.conf:3"),
        ] {
            assert_eq!(Place::line(file, 3).to_string(), shown);
            let unknown = Unknown {
                file: file.to_owned(),
                line: Some(3),
                why: "why".to_owned(),
            };
            assert_eq!(unknown.to_string(), format!("{shown}: why"));
        }
    }

    #[test]
    fn of_two_files_with_one_name_that_of_the_first_directory_counts() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path());
        for file in [
            "etc/m.d/b.conf",
            "run/m.d/a.conf",
            "run/m.d/b.conf",
            "run/m.d/.hidden.conf",
            "run/m.d/a.conf.dpkg-old",
            "run/m.d/.conf",
        ] {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        std::fs::write(dir.path().join("usr"), "").unwrap();
        let mut unknown = Vec::new();
        let files = by_name(
            &root,
            &["/etc/m.d", "/run/m.d", "/usr", "/lib/m.d"],
            ".conf",
            &mut unknown,
        );
        assert_eq!(files, ["/run/m.d/a.conf", "/etc/m.d/b.conf"]);
        assert_eq!(unknown, []);
    }

    #[test]
    fn what_might_never_answer_is_not_read_and_dev_null_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path());
        let at = |name: &str| dir.path().join(name);
        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::fs::write(at("huge"), vec![b'#'; (1 << 20) + 1]).unwrap();
        std::fs::write(at("full"), vec![b'#'; 1 << 20]).unwrap();
        std::fs::create_dir(at("dir")).unwrap();
        for (link, target) in [("masked", "/dev/null"), ("dangling", "nowhere"), ("circle", "circle")] {
            std::os::unix::fs::symlink(target, at(link)).unwrap();
        }
        for (file, read, said) in [
            ("/pipe", None, vec!["/pipe: it is no regular file"]),
            (
                "/huge",
                None,
                vec!["/huge: it has more than a megabyte, as no such file has"],
            ),
            ("/full", Some(1 << 20), vec![]),
            ("/dir", None, vec![]),
            ("/masked", Some(0), vec![]),
            ("/dangling", None, vec![]),
            (
                "/circle",
                None,
                vec!["/circle: Too many levels of symbolic links (os error 40)"],
            ),
        ] {
            let mut unknown = Vec::new();
            let text = text(&root, file, &mut unknown);
            let unknown: Vec<String> = unknown.iter().map(ToString::to_string).collect();
            assert_eq!(
                (text.map(|t| t.len()), unknown),
                (read, said.iter().map(|s| (*s).to_owned()).collect()),
                "{file}"
            );
        }
    }
}
