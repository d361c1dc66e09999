//! Property strings: `key=value,key=value`, the form most values of a VM config and of a resource
//! mapping have, checked against a format.
//!
//! Pure, over bytes: a file may hold any. What the keys mean is not known here; the formats are in
//! [`crate::proxmox::grammar::schema`] and [`crate::proxmox::resolve`].
//!
//! Source of the grammar: pve-common 9.2.1, PVE/JSONSchema.pm, `parse_property_string`,
//! `check_object` and `check_prop`.

use std::collections::HashSet;
use std::fmt;

/// Why Proxmox does not take a line of a config, or a property string.
///
/// Where a value breaks several rules Proxmox's own message names any of them; so do we.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Invalid {
    /// The line has no recognised form: a blank before the key or the colon, no value, ...
    UnparsableLine,
    /// The key is not in the schema (`hostpci16`, `hostpci00`, ...).
    UnknownSetting,
    /// A property string with a property its format does not have.
    UnknownProperty,
    /// A property, or the bare value, given twice.
    DuplicateProperty,
    /// A part with `=` but without a name or without a value.
    MissingPropertyKey,
    /// A property string with a bad value, or no property string at all.
    InvalidPropertyValue,
    /// A bad value of another kind of setting.
    InvalidValue,
    /// A carriage return inside the value.
    LineBreakInValue,
    /// `delete:` outside of `[PENDING]`.
    DeleteOutsidePending,
    /// The line ends in `snapstate: prepare` or `snapstate: delete` and is silently taken as that.
    TakenAsSnapstate,
}

impl Invalid {
    /// A stable word for programs.
    pub fn code(self) -> &'static str {
        match self {
            Invalid::UnparsableLine => "unparsable-line",
            Invalid::UnknownSetting => "unknown-setting",
            Invalid::UnknownProperty => "unknown-property",
            Invalid::DuplicateProperty => "duplicate-property",
            Invalid::MissingPropertyKey => "missing-property-key",
            Invalid::InvalidPropertyValue => "invalid-property-value",
            Invalid::InvalidValue => "invalid-value",
            Invalid::LineBreakInValue => "line-break-in-value",
            Invalid::DeleteOutsidePending => "delete-outside-pending",
            Invalid::TakenAsSnapstate => "taken-as-snapstate",
        }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Invalid::UnparsableLine => "the line has no form that Proxmox knows",
            Invalid::UnknownSetting => "Proxmox has no such setting",
            Invalid::UnknownProperty => "it has a property that Proxmox does not know",
            Invalid::DuplicateProperty => "it gives a property twice",
            Invalid::MissingPropertyKey => "a property has no name or no value",
            Invalid::InvalidPropertyValue => "a property has a bad value",
            Invalid::InvalidValue => "the value is bad",
            Invalid::LineBreakInValue => "there is a carriage return inside the value",
            Invalid::DeleteOutsidePending => "'delete' is only allowed in [PENDING]",
            Invalid::TakenAsSnapstate => "Proxmox takes the line as 'snapstate:'",
        })
    }
}

/// What the value of one property has to look like.
#[derive(Clone, Copy, Debug)]
pub enum Check {
    /// Anything that is not empty.
    Text,
    /// At most this many bytes.
    Short(usize),
    /// 1, on, yes, true, 0, off, no or false, in any case; without its name before it 1 or 0 alone.
    Bool,
    /// The same words without its name, too (pve-common from 9.0.12 on).
    Switch,
    /// An optional sign and digits, between two bounds (inclusive).
    Integer(f64, f64),
    /// A decimal number, possibly with a fraction and an exponent, between two bounds (inclusive).
    Number(f64, f64),
    /// One of these words, to the letter; the words are separated by blanks.
    OneOf(&'static str),
    /// What this function accepts.
    Like(fn(&[u8]) -> bool),
}

/// No bound.
pub const ANY: (f64, f64) = (f64::NEG_INFINITY, f64::INFINITY);

/// One property of a format.
#[derive(Clone, Copy, Debug)]
pub struct Prop {
    /// Its name.
    pub name: &'static str,
    /// What its value has to look like.
    pub check: Check,
    /// The format is not met without it.
    pub required: bool,
    /// A part without `=` is its value.
    pub default_key: bool,
    /// The value is stored under this name instead.
    pub alias: Option<&'static str>,
    /// The name is stored as the value of this property (a network card's model).
    pub key_alias: Option<&'static str>,
    /// Only valid together with this one.
    pub requires: Option<&'static str>,
}

impl Prop {
    /// An optional property.
    pub const fn new(name: &'static str, check: Check) -> Prop {
        Prop {
            name,
            check,
            required: false,
            default_key: false,
            alias: None,
            key_alias: None,
            requires: None,
        }
    }

    /// Another name for a property.
    pub const fn alias(name: &'static str, of: &'static str) -> Prop {
        Prop {
            alias: Some(of),
            ..Prop::new(name, Check::Text)
        }
    }

    /// Must be there.
    pub const fn required(self) -> Prop {
        Prop { required: true, ..self }
    }

    /// Is meant by a part without `=`.
    pub const fn default_key(self) -> Prop {
        Prop {
            default_key: true,
            ..self
        }
    }

    /// Needs another property beside it.
    pub const fn requires(self, other: &'static str) -> Prop {
        Prop {
            requires: Some(other),
            ..self
        }
    }

    /// Stores its own name as the value of `of`.
    pub const fn key_alias(self, of: &'static str) -> Prop {
        Prop {
            key_alias: Some(of),
            ..self
        }
    }
}

/// The properties a property string may have, in groups (formats share groups).
pub type Format = &'static [&'static [Prop]];

/// The properties of a string that met its format. Booleans are "1" or "0".
#[derive(Clone, Debug, Default)]
pub struct Fields<'a>(Vec<(&'static str, &'a [u8])>);

impl<'a> Fields<'a> {
    /// The value of a property.
    pub fn get(&self, name: &str) -> Option<&'a [u8]> {
        self.0.iter().find(|(n, _)| *n == name).map(|(_, v)| *v)
    }

    /// The value of a boolean property.
    pub fn flag(&self, name: &str) -> Option<bool> {
        self.get(name).map(|v| v == b"1")
    }

    fn set(&mut self, name: &'static str, value: &'a [u8]) {
        match self.0.iter_mut().find(|(n, _)| *n == name) {
            Some(slot) => slot.1 = value,
            None => self.0.push((name, value)),
        }
    }
}

/// Parses `data` and checks it against `format`. Names and values are not trimmed.
pub fn parse<'a>(format: Format, data: &'a [u8]) -> Result<Fields<'a>, Invalid> {
    let mut fields = Fields::default();
    let mut unknown: HashSet<&[u8]> = HashSet::new();
    let mut bare_seen = false;
    for part in data.split(|b| *b == b',') {
        if part.iter().copied().all(is_space) {
            continue;
        }
        let Some(at) = part.iter().position(|b| *b == b'=') else {
            if std::mem::replace(&mut bare_seen, true) {
                return Err(Invalid::DuplicateProperty);
            }
            let Some(prop) = props(format).find(|p| p.default_key) else {
                return Err(Invalid::InvalidPropertyValue);
            };
            // Perl's truth: an earlier "0" counts as not given and is replaced.
            if fields.get(prop.name).is_some_and(|v| v != b"0") {
                return Err(Invalid::DuplicateProperty);
            }
            fields.set(prop.name, kept(matches!(prop.check, Check::Switch), part));
            continue;
        };
        let (key, value) = (&part[..at], &part[at + 1..]);
        if key.is_empty() || value.is_empty() {
            return Err(Invalid::MissingPropertyKey);
        }
        let Some(prop) = props(format).find(|p| p.name.as_bytes() == key) else {
            if !unknown.insert(key) {
                return Err(Invalid::DuplicateProperty);
            }
            continue;
        };
        // A property under its second name is not seen here, and replaces.
        if prop.alias.is_none() && fields.get(prop.name).is_some() {
            return Err(Invalid::DuplicateProperty);
        }
        if let Some(other) = prop.key_alias {
            if fields.get(other).is_some() {
                return Err(Invalid::DuplicateProperty);
            }
            fields.set(other, prop.name.as_bytes());
        }
        let target = match prop.alias {
            Some(name) => props(format).find(|p| p.name == name).unwrap_or(prop),
            None => prop,
        };
        let is_bool = matches!(target.check, Check::Bool | Check::Switch);
        fields.set(target.name, kept(is_bool, value));
    }
    if !unknown.is_empty() {
        return Err(Invalid::UnknownProperty);
    }
    if props(format).all(|p| holds(p, &fields)) {
        Ok(fields)
    } else {
        Err(Invalid::InvalidPropertyValue)
    }
}

/// A value as it is kept: where it is a boolean, in one spelling.
fn kept(is_bool: bool, value: &[u8]) -> &[u8] {
    match parse_bool(value).filter(|_| is_bool) {
        Some(true) => b"1",
        Some(false) => b"0",
        None => value,
    }
}

fn props(format: Format) -> impl Iterator<Item = &'static Prop> {
    format.iter().copied().flatten()
}

/// Whether one property of the format is met.
fn holds(prop: &Prop, fields: &Fields<'_>) -> bool {
    match fields.get(prop.name) {
        None => !prop.required || prop.alias.is_some(),
        Some(value) => passes(prop.check, value) && prop.requires.is_none_or(|other| fields.get(other).is_some()),
    }
}

fn passes(check: Check, value: &[u8]) -> bool {
    match check {
        Check::Text => true,
        Check::Short(max) => value.len() <= max,
        Check::Bool | Check::Switch => value == b"1" || value == b"0",
        Check::Integer(min, max) => is_integer(value) && within(value, min, max),
        Check::Number(min, max) => is_number(value) && within(value, min, max),
        Check::OneOf(words) => is_word_of(words, value),
        Check::Like(accepts) => accepts(value),
    }
}

/// Whether `value` is one of the words of `list`, which are separated by blanks.
pub fn is_word_of(list: &str, value: &[u8]) -> bool {
    list.split_ascii_whitespace().any(|word| word.as_bytes() == value)
}

/// What Perl's `\s` matches in a byte string.
pub fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

/// Proxmox's boolean words (PVE/JSONSchema.pm, `parse_boolean`).
pub fn parse_bool(value: &[u8]) -> Option<bool> {
    const YES: [&str; 4] = ["1", "on", "yes", "true"];
    const NO: [&str; 4] = ["0", "off", "no", "false"];
    let is = |words: [&str; 4]| words.iter().any(|w| value.eq_ignore_ascii_case(w.as_bytes()));
    if is(YES) {
        Some(true)
    } else if is(NO) {
        Some(false)
    } else {
        None
    }
}

/// An optional sign and digits.
pub fn is_integer(value: &[u8]) -> bool {
    let digits = value
        .strip_prefix(b"+")
        .or_else(|| value.strip_prefix(b"-"))
        .unwrap_or(value);
    is_digits(digits)
}

/// One or more decimal digits.
pub fn is_digits(value: &[u8]) -> bool {
    !value.is_empty() && value.iter().all(u8::is_ascii_digit)
}

/// `[+-]?(\d+\.\d+|\d+\.|\.\d+|\d+)([eE][+-]?\d+)?`
fn is_number(value: &[u8]) -> bool {
    let value = value
        .strip_prefix(b"+")
        .or_else(|| value.strip_prefix(b"-"))
        .unwrap_or(value);
    let (mantissa, exponent) = match value.iter().position(|b| matches!(b, b'e' | b'E')) {
        Some(at) => (&value[..at], Some(&value[at + 1..])),
        None => (value, None),
    };
    let plain = match mantissa.iter().position(|b| *b == b'.') {
        None => is_digits(mantissa),
        Some(at) => {
            let (whole, rest) = (&mantissa[..at], &mantissa[at + 1..]);
            let digits_only = whole.iter().chain(rest).all(u8::is_ascii_digit);
            digits_only && !(whole.is_empty() && rest.is_empty())
        }
    };
    plain && exponent.is_none_or(is_integer)
}

/// Compares as Perl does: as floating point numbers.
fn within(value: &[u8], min: f64, max: f64) -> bool {
    let number = std::str::from_utf8(value).ok().and_then(|t| t.parse::<f64>().ok());
    number.is_some_and(|n| n >= min && n <= max)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMAT: Format = &[&[
        Prop::new("host", Check::Like(|v| v.first() != Some(&b'!'))).default_key(),
        Prop::new("pcie", Check::Bool),
        Prop::new("size", Check::Integer(2.0, 9.0)),
        Prop::new("rate", Check::Number(0.0, f64::INFINITY)),
        Prop::new("gw", Check::Text).requires("host"),
        Prop::alias("dev", "host"),
    ]];

    fn get(text: &str, name: &str) -> Option<String> {
        let fields = parse(FORMAT, text.as_bytes()).unwrap_or_else(|r| panic!("{text:?}: {r}"));
        fields.get(name).map(|v| String::from_utf8_lossy(v).into_owned())
    }

    #[test]
    fn values_are_found_as_they_are_spelled() {
        for (text, name, value) in [
            ("a,pcie=1", "host", Some("a")),
            ("pcie=1,a", "host", Some("a")),
            ("host=a=b", "host", Some("a=b")),
            ("host= a", "host", Some(" a")),
            (" ,,a, ,", "host", Some("a")),
            ("", "host", None),
            ("a,pcie=YES", "pcie", Some("1")),
            ("a,pcie=oFF", "pcie", Some("0")),
            ("host=0,a", "host", Some("a")), // an earlier "0" is false to Perl
            ("host=a,dev=b", "host", Some("b")),
            ("rate=1.5e3", "rate", Some("1.5e3")),
        ] {
            assert_eq!(get(text, name).as_deref(), value, "{text:?}");
        }
    }

    #[test]
    fn bad_strings_are_refused_with_the_reason() {
        use Invalid::*;
        for (text, reason) in [
            ("a,b", DuplicateProperty),
            ("a,host=b", DuplicateProperty),
            ("pcie=1,pcie=1", DuplicateProperty),
            ("x=1,x=1", DuplicateProperty),
            ("dev=a,host=b", DuplicateProperty),
            ("a,x=1", UnknownProperty),
            ("a, pcie=1", UnknownProperty),
            ("a,=1", MissingPropertyKey),
            ("a,pcie=", MissingPropertyKey),
            ("=", MissingPropertyKey),
            ("!a", InvalidPropertyValue),
            ("a,pcie=2", InvalidPropertyValue),
            ("a,size=1", InvalidPropertyValue),
            ("a,size=10", InvalidPropertyValue),
            ("a,size=2.0", InvalidPropertyValue),
            ("a,rate=.", InvalidPropertyValue),
            ("gw=b", InvalidPropertyValue),
        ] {
            assert_eq!(parse(FORMAT, text.as_bytes()).err(), Some(reason), "{text:?}");
        }
    }

    #[test]
    fn numbers_are_those_of_perlretut() {
        for text in ["1", "-1", "+1.5", "1.", ".5", "1e9", "1.5E-3"] {
            assert!(is_number(text.as_bytes()), "{text:?}");
        }
        for text in ["", "+", ".", "1e", "e1", "1e1.5", "0x1", " 1", "1_0"] {
            assert!(!is_number(text.as_bytes()), "{text:?}");
        }
    }
}
