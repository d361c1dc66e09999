//! A file of src as its tokens: no comments, brackets as tokens of their own, and which of them are the unit tests'.

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// A file: its path below src, and its text.
pub type Source = (String, String);

/// A token.
#[derive(Clone, Debug)]
pub struct Token {
    pub text: String,
    pub line: usize,
    /// It is in a module that is compiled for the unit tests alone.
    pub is_test: bool,
    /// It is in one that is compiled with the feature `fault-points` alone.
    pub is_fault: bool,
    /// It is in an attribute.
    pub is_attribute: bool,
}

impl Token {
    /// A name or a keyword.
    pub fn is_word(&self) -> bool {
        let is_part = |c: char| c.is_alphanumeric() || c == '_';
        !self.text.is_empty() && self.text.chars().all(is_part) && !self.text.starts_with(|c: char| c.is_ascii_digit())
    }

    /// What stands between the quotes, where it is a string.
    pub fn string(&self) -> Option<&str> {
        let text = self.text.trim_start_matches(['r', '#']).trim_end_matches('#');
        text.strip_prefix('"')?.strip_suffix('"')
    }
}

/// A file that was read.
pub struct Code {
    pub tokens: Vec<Token>,
    /// Its lines without the modules that are there for the unit tests alone.
    pub own_lines: usize,
}

impl Code {
    pub fn read(text: &str) -> Code {
        let mut code = Code {
            tokens: Vec::new(),
            own_lines: text.lines().count(),
        };
        let stream: TokenStream = text.parse().expect("the file is Rust");
        code.add(stream, &Token::first());
        code
    }

    /// The tokens that are no unit test's.
    pub fn own(&self) -> Vec<Token> {
        self.tokens.iter().filter(|t| !t.is_test).cloned().collect()
    }

    fn add(&mut self, tokens: TokenStream, within: &Token) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        for (at, token) in tokens.iter().enumerate() {
            let TokenTree::Group(group) = token else {
                let (text, line) = (token.to_string(), token.span().start().line);
                self.tokens.push(Token {
                    text,
                    line,
                    ..within.clone()
                });
                continue;
            };
            let is_attribute = group.delimiter() == Delimiter::Bracket && follows_a_hash(&tokens[..at]);
            if is_attribute && compact(&group.stream()).starts_with("doc=") {
                // A comment. Its `#`, or `#!`, was no token of the code.
                while self
                    .tokens
                    .last()
                    .is_some_and(|t| ["#", "!"].contains(&t.text.as_str()))
                {
                    self.tokens.pop();
                }
                continue;
            }
            let (mut inner, condition) = (within.clone(), module_condition(&tokens[..at]));
            inner.is_attribute |= is_attribute;
            if let Some((begin, _)) = condition.as_ref().filter(|(_, text)| text == "cfg(test)") {
                if !within.is_test {
                    self.own_lines -= group.span_close().end().line - begin + 1;
                }
                inner.is_test = true;
            }
            inner.is_fault |= condition.is_some_and(|(_, text)| text == "cfg(feature=\"fault-points\")");
            let (open, close) = match group.delimiter() {
                Delimiter::Parenthesis => ("(", ")"),
                Delimiter::Brace => ("{", "}"),
                Delimiter::Bracket => ("[", "]"),
                Delimiter::None => ("", ""),
            };
            let bracket = |text: &str, line| Token {
                text: text.to_owned(),
                line,
                ..inner.clone()
            };
            self.tokens.push(bracket(open, group.span_open().start().line));
            self.add(group.stream(), &inner);
            self.tokens.push(bracket(close, group.span_close().start().line));
        }
    }
}

impl Token {
    fn first() -> Token {
        Token {
            text: String::new(),
            line: 0,
            is_test: false,
            is_fault: false,
            is_attribute: false,
        }
    }
}

fn compact(tokens: &TokenStream) -> String {
    tokens.to_string().replace(' ', "")
}

fn is_mark(token: Option<&TokenTree>, mark: char) -> bool {
    matches!(token, Some(TokenTree::Punct(p)) if p.as_char() == mark)
}

/// Whether a bracket behind these tokens is an attribute's: behind `#`, or `#!`.
fn follows_a_hash(before: &[TokenTree]) -> bool {
    let behind_mark = is_mark(before.last(), '!') && is_mark(before.iter().rev().nth(1), '#');
    is_mark(before.last(), '#') || behind_mark
}

/// Of a brace behind `mod name`: the condition that this module is compiled under, with its line.
fn module_condition(before: &[TokenTree]) -> Option<(usize, String)> {
    let [rest @ .., TokenTree::Ident(word), TokenTree::Ident(_)] = before else {
        return None;
    };
    if word != "mod" {
        return None;
    }
    // Back to the end of what comes before it.
    let own = rest.iter().rev().take_while(|token| match token {
        TokenTree::Group(group) => group.delimiter() != Delimiter::Brace,
        TokenTree::Punct(mark) => mark.as_char() != ';',
        _ => true,
    });
    let mut conditions = own.filter_map(|token| match token {
        TokenTree::Group(group) if group.delimiter() == Delimiter::Bracket => {
            Some((group.span_open().start().line, compact(&group.stream())))
        }
        _ => None,
    });
    conditions.find(|(_, text)| text.starts_with("cfg("))
}

/// Where these words stand one behind the other; "" stands for any token.
pub fn places(tokens: &[Token], words: &[&str]) -> Vec<usize> {
    let windows = tokens.windows(words.len()).enumerate();
    let is_it = |window: &[Token]| {
        window
            .iter()
            .zip(words)
            .all(|(t, word)| word.is_empty() || t.text == *word)
    };
    windows.filter(|(_, window)| is_it(window)).map(|(at, _)| at).collect()
}
