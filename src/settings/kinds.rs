//! What kinds of values can be set: how each is read from TOML, written back, and explained.

use std::time::Duration;

use toml::de::DeValue;

/// Longest deadline that can be set, seconds: a day, so that a typing error is not "for ever".
const LONGEST: u64 = 86_400;

/// A value that can be set.
pub trait Value {
    /// Takes the value over; None, and nothing is changed, where it is none of those allowed.
    fn take(&mut self, value: &DeValue<'_>) -> Option<()>;

    /// What is allowed, as "it must be" goes on.
    fn allowed(&self) -> String;

    /// The value as `plan` shows it.
    fn shown(&self) -> String;

    /// The value as a file of settings has it.
    fn toml(&self) -> String;

    /// What each word means, where the value is one of a few words.
    fn words(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }
}

/// Deadlines, in whole seconds. Zero is not allowed: nothing would ever be done in time.
impl Value for Duration {
    fn take(&mut self, value: &DeValue<'_>) -> Option<()> {
        let DeValue::Integer(number) = value else { return None };
        let seconds = u64::from_str_radix(number.as_str(), number.radix()).ok()?;
        *self = Some(seconds)
            .filter(|n| (1..=LONGEST).contains(n))
            .map(Duration::from_secs)?;
        Some(())
    }

    fn allowed(&self) -> String {
        format!("a whole number of seconds from 1 to {LONGEST}")
    }

    fn shown(&self) -> String {
        format!("{} s", self.as_secs())
    }

    fn toml(&self) -> String {
        self.as_secs().to_string()
    }
}

/// Switches.
impl Value for bool {
    fn take(&mut self, value: &DeValue<'_>) -> Option<()> {
        let DeValue::Boolean(on) = value else { return None };
        *self = *on;
        Some(())
    }

    fn allowed(&self) -> String {
        "true or false".to_owned()
    }

    fn shown(&self) -> String {
        self.to_string()
    }

    fn toml(&self) -> String {
        self.to_string()
    }
}

/// A choice of a few words.
pub trait Choice: Copy + PartialEq + 'static {
    /// Each value with its word and what that means.
    const WORDS: &'static [(Self, &'static str, &'static str)];
}

impl<T: Choice> Value for T {
    fn take(&mut self, value: &DeValue<'_>) -> Option<()> {
        let DeValue::String(text) = value else { return None };
        *self = T::WORDS.iter().find(|(_, word, _)| *word == text.as_ref())?.0;
        Some(())
    }

    fn allowed(&self) -> String {
        let words: Vec<String> = T::WORDS.iter().map(|(_, word, _)| format!("\"{word}\"")).collect();
        let (last, rest) = words.split_last().map_or(("", &[][..]), |(l, r)| (l.as_str(), r));
        format!("{} or {last}", rest.join(", "))
    }

    fn shown(&self) -> String {
        let found = T::WORDS.iter().find(|(value, _, _)| value == self);
        found.map_or("", |(_, word, _)| word).to_owned()
    }

    fn toml(&self) -> String {
        format!("\"{}\"", self.shown())
    }

    fn words(&self) -> Vec<(&'static str, String)> {
        let words = T::WORDS.iter();
        words.map(|(_, word, means)| (*word, (*means).to_owned())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use toml::de::DeTable;

    /// What is in force after a value was read: as shown, or None where it was not taken.
    fn after(mut value: impl Value, text: &str) -> Option<String> {
        let file = format!("key = {text}");
        let table = DeTable::parse(&file).unwrap();
        let before = value.shown();
        let taken = value.take(table.get_ref().get("key").unwrap().get_ref());
        assert!(taken.is_some() || value.shown() == before, "{text}");
        taken.map(|()| value.shown())
    }

    #[test]
    fn a_switch_is_true_or_false() {
        for (text, shown) in [
            ("true", Some("true")),
            ("false", Some("false")),
            ("\"true\"", None),
            ("1", None),
        ] {
            assert_eq!(after(false, text).as_deref(), shown, "{text}");
        }
    }

    #[test]
    fn a_deadline_is_a_second_to_a_day() {
        for (text, shown) in [
            ("1", Some("1 s")),
            ("0x3c", Some("60 s")),
            ("86_400", Some("86400 s")),
            ("86401", None),
            ("0", None),
            ("-1", None),
            ("1.5", None),
            ("\"5\"", None),
        ] {
            assert_eq!(after(Duration::from_secs(7), text).as_deref(), shown, "{text}");
        }
    }
}
