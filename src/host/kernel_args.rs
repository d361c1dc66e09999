//! Arguments of the kernel's command line, each with the place where it was written.

use serde::{Deserialize, Serialize};

use crate::host::place::Place;

/// One argument.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Argument {
    /// As it is written: `intel_iommu=on`.
    pub text: String,
    /// Where.
    pub place: Place,
}

impl Argument {
    /// Its name, as the kernel compares it: a dash is an underscore (linux, kernel/params.c, dash2underscore).
    pub fn name(&self) -> String {
        let name = self.unquoted().split('=').next().unwrap_or_default();
        name.replace('-', "_")
    }

    /// Its value; None: it has none.
    pub fn value(&self) -> Option<&str> {
        let (_, value) = self.unquoted().split_once('=')?;
        Some(value.strip_prefix('"').unwrap_or(value))
    }

    /// Without quotes around all of it, or the one at the end (linux, lib/cmdline.c, next_arg).
    pub fn unquoted(&self) -> &str {
        let text = self.text.strip_prefix('"').unwrap_or(&self.text);
        text.strip_suffix('"').unwrap_or(text)
    }
}

/// A piece of a command line, and where it stands.
pub(crate) type Piece = (String, Place);

/// The arguments of a command line that is made of pieces: white space parts them, but for that within double quotes
/// (linux, lib/cmdline.c, next_arg). What comes after a lone `--` is for the first process, and left out.
pub(crate) fn arguments(pieces: &[Piece]) -> Vec<Argument> {
    let mut found: Vec<Argument> = Vec::new();
    let (mut within, mut quoted) = (false, false);
    for (text, place) in pieces {
        for c in text.chars() {
            quoted ^= c == '"';
            if c.is_ascii_whitespace() && !quoted {
                within = false;
                continue;
            }
            match found.last_mut() {
                Some(argument) if within => argument.text.push(c),
                _ => found.push(Argument {
                    text: c.to_string(),
                    place: place.clone(),
                }),
            }
            within = true;
        }
    }
    if let Some(end) = found.iter().position(|a| a.text == "--") {
        found.truncate(end);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(text: &str, line: usize) -> Piece {
        (text.to_owned(), Place::line("/f", line))
    }

    #[test]
    fn arguments_are_parted_as_the_kernel_does_and_stand_where_they_begin() {
        let pieces = [
            piece("quiet vfio-pci.ids=10de:2204 ", 1),
            piece("a=\"b  c\"\tx", 2),
            piece("=y -- init args", 3),
        ];
        let shown: Vec<(String, Option<String>, usize)> = arguments(&pieces)
            .iter()
            .map(|a| (a.name(), a.value().map(str::to_owned), a.place.line))
            .collect();
        let s = |text: &str| Some(text.to_owned());
        assert_eq!(
            shown,
            [
                ("quiet".to_owned(), None, 1),
                ("vfio_pci.ids".to_owned(), s("10de:2204"), 1),
                ("a".to_owned(), s("b  c"), 2),
                ("x".to_owned(), s("y"), 2),
            ]
        );
        let quoted = arguments(&[piece("\"modprobe.blacklist=nvidia, b\"", 1)]);
        assert_eq!(
            (quoted[0].name().as_str(), quoted[0].value()),
            ("modprobe.blacklist", Some("nvidia, b"))
        );
    }
}
