//! How a screen is written: colours where a person looks at it, and lines that a terminal of 80 columns does not wrap.
//!
//! Into a pipe or a file a sentence is one line, as grep(1) wants it, and there are no colours.

use std::io::IsTerminal;

use crate::base::text::{columns, wrapped};

/// Columns of the terminal that screens are made for: a serial console and Proxmox's own shells have no more.
pub const COLUMNS: usize = 80;

/// How a screen is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// With colours.
    pub colours: bool,
    /// Sentences go on in another line where they are too long.
    pub wraps: bool,
    /// What is shown again takes the place of what was there.
    pub redraws: bool,
}

/// What a colour means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ink {
    /// The head of a table.
    Head,
    /// As it should be.
    Good,
    /// Somebody has it.
    Lent,
    /// It will pass, or somebody can do something about it now.
    Care,
    /// It needs a person.
    Bad,
}

impl Style {
    /// For whoever reads standard output. Colours are left out where NO_COLOR is set to anything (no-color.org), and for
    /// terminals that say they have none.
    pub fn of_stdout() -> Style {
        let is_terminal = std::io::stdout().is_terminal();
        let is_set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty());
        let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        Style {
            colours: is_terminal && !is_set("NO_COLOR") && !is_dumb,
            wraps: is_terminal,
            redraws: is_terminal && !is_dumb,
        }
    }

    /// For a terminal without colours.
    pub fn terminal() -> Style {
        Style {
            wraps: true,
            ..Style::default()
        }
    }

    /// A text in a colour: the eight that every terminal has (ECMA-48, select graphic rendition).
    pub fn paint(self, ink: Ink, text: &str) -> String {
        if !self.colours || text.trim().is_empty() {
            return text.to_owned();
        }
        let code = match ink {
            Ink::Head => "1",
            Ink::Good => "32",
            Ink::Lent => "36",
            Ink::Care => "33",
            Ink::Bad => "1;31",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// A sentence below its label; where it goes on in another line, it does so below its own beginning.
    pub fn labelled(self, label: &str, text: &str) -> String {
        let indent = columns(label);
        if !self.wraps {
            return format!("{label}{text}\n");
        }
        let lines = wrapped(text, COLUMNS - indent);
        let mut all = String::new();
        for (n, line) in lines.iter().enumerate() {
            let before = if n == 0 { label.to_owned() } else { " ".repeat(indent) };
            all += &format!("{before}{line}\n");
        }
        all
    }
}

/// A text in a column of so many characters; one that is longer ends in two points.
pub fn fit(text: &str, width: usize) -> String {
    if columns(text) <= width {
        return text.to_owned() + &" ".repeat(width - columns(text));
    }
    let mut short = String::new();
    for c in text.chars() {
        if columns(&short) + columns(c.encode_utf8(&mut [0; 4])) + 2 > width {
            break;
        }
        short.push(c);
    }
    short += "..";
    let missing = width.saturating_sub(columns(&short));
    short + &" ".repeat(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_stays_in_its_columns_on_a_terminal_and_on_its_line_elsewhere() {
        let text = "word ".repeat(40);
        let text = text.trim_end();
        let on_terminal = Style::terminal().labelled("  in use:  ", text);
        assert!(on_terminal.lines().all(|l| columns(l) <= COLUMNS), "{on_terminal}");
        assert!(
            on_terminal.lines().skip(1).all(|l| l.starts_with("           word")),
            "{on_terminal}"
        );
        assert_eq!(
            Style::default().labelled("  in use:  ", text),
            format!("  in use:  {text}\n")
        );
    }

    #[test]
    fn a_column_is_filled_or_cut() {
        for (text, width, fitted) in [
            ("nvidia", 8, "nvidia  "),
            ("nvidia", 6, "nvidia"),
            ("snd_hda_intel", 8, "snd_hd.."),
            ("\u{4e2d}\u{6587}\u{4e2d}", 5, "\u{4e2d}.. "),
        ] {
            assert_eq!(fit(text, width), fitted);
        }
    }

    #[test]
    fn colours_are_there_only_where_they_were_asked_for() {
        assert_eq!(Style::default().paint(Ink::Bad, "wedged"), "wedged");
        let colours = Style {
            colours: true,
            ..Style::terminal()
        };
        assert_eq!(colours.paint(Ink::Bad, "wedged"), "\x1b[1;31mwedged\x1b[0m");
        assert_eq!(colours.paint(Ink::Bad, "  "), "  ");
    }
}
