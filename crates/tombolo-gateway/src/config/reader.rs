//! Reads a table of TOML key by key, and collects what is wrong with it.
//!
//! Invariant: whatever was not asked for is reported as unknown, so no key is passed over.

use std::ops::{Range, RangeInclusive};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A value with its place.
pub(super) type Value<'t> = Spanned<DeValue<'t>>;

/// What is wrong at one place of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The place, in bytes of the text.
    pub at: Range<usize>,
    /// What was found, and what was expected.
    pub message: String,
    /// What to do; may be empty.
    pub advice: String,
}

/// One table, and what was asked of it so far.
pub(super) struct Section<'r, 't> {
    pub(super) mistakes: &'r mut Vec<Mistake>,
    table: &'r DeTable<'t>,
    name: String,
    asked: Vec<&'static str>,
}

impl<'r, 't> Section<'r, 't> {
    /// A section over `value`, if that is a table.
    pub(super) fn open(
        mistakes: &'r mut Vec<Mistake>,
        value: &'r Value<'t>,
        name: impl Into<String>,
    ) -> Option<Self> {
        let name = name.into();
        let Some(table) = value.get_ref().as_table() else {
            let message = format!("{name} is {}; expected a table", found(value));
            mistakes.push(Mistake { at: value.span(), message, advice: String::new() });
            return None;
        };
        Some(Self { mistakes, table, name, asked: Vec::new() })
    }

    /// Says that something is wrong.
    pub(super) fn wrong(&mut self, at: Range<usize>, message: impl Into<String>, advice: impl Into<String>) {
        self.mistakes.push(Mistake { at, message: message.into(), advice: advice.into() });
    }

    /// The value under a key, as it is.
    pub(super) fn value(&mut self, key: &'static str) -> Option<&'r Value<'t>> {
        self.asked.push(key);
        self.table.get(key)
    }

    /// A string.
    pub(super) fn text(&mut self, key: &'static str) -> Option<String> {
        let value = self.value(key)?;
        self.text_of(value, key)
    }

    fn text_of(&mut self, value: &Value<'t>, key: &str) -> Option<String> {
        let text = value.get_ref().as_str().map(str::to_owned);
        if text.is_none() {
            let message = format!("{key} is {}; expected a string", found(value));
            self.wrong(value.span(), message, "put it in quotes");
        }
        text
    }

    /// A list of strings.
    pub(super) fn texts(&mut self, key: &'static str) -> Option<Vec<String>> {
        let value = self.value(key)?;
        let Some(parts) = value.get_ref().as_array() else {
            let message = format!("{key} is {}; expected a list of strings", found(value));
            self.wrong(value.span(), message, format!("write {key} = [\"…\"]"));
            return None;
        };
        parts.iter().map(|part| self.text_of(part, key)).collect()
    }

    /// `true` or `false`.
    pub(super) fn flag(&mut self, key: &'static str) -> Option<bool> {
        let value = self.value(key)?;
        let flag = value.get_ref().as_bool();
        if flag.is_none() {
            let message = format!("{key} is {}; expected true or false", found(value));
            self.wrong(value.span(), message, "");
        }
        flag
    }

    /// A whole number within bounds.
    pub(super) fn number(&mut self, key: &'static str, within: RangeInclusive<u64>) -> Option<u64> {
        let value = self.value(key)?;
        let number = whole(value).filter(|number| within.contains(number));
        if number.is_none() {
            let (min, max) = (within.start(), within.end());
            let message = format!("{key} is {}; expected a number from {min} to {max}", found(value));
            self.wrong(value.span(), message, "");
        }
        number
    }

    /// A number of bytes: a whole number, or text such as `"10 MiB"`.
    pub(super) fn bytes(&mut self, key: &'static str) -> Option<u64> {
        let value = self.value(key)?;
        let number = whole(value).or_else(|| value.get_ref().as_str().and_then(sized));
        if number.is_none() {
            let message = format!("{key} is {}; expected a number of bytes", found(value));
            self.wrong(value.span(), message, "such as 1048576 or \"1 MiB\"");
        }
        number
    }

    /// One of several words.
    pub(super) fn word<T: Copy>(&mut self, key: &'static str, words: &[(&'static str, T)]) -> Option<T> {
        let value = self.value(key)?;
        let text = self.text_of(value, key)?;
        let known = words.iter().find(|(word, _)| *word == text);
        if known.is_none() {
            let all: Vec<_> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
            let advice = did_you_mean(&text, words.iter().map(|(word, _)| *word));
            self.wrong(value.span(), format!("{key} is {text:?}; expected {}", all.join(" or ")), advice);
        }
        known.map(|(_, it)| *it)
    }

    /// The place of a key's value.
    pub(super) fn place(&self, key: &str) -> Range<usize> {
        self.table.get(key).map_or(0..0, Spanned::span)
    }

    /// Reports every key that nobody asked for.
    pub(super) fn finish(mut self) {
        let unknown: Vec<_> =
            self.table.keys().filter(|key| !self.asked.contains(&&**key.get_ref())).collect();
        for key in unknown {
            let advice = did_you_mean(key.get_ref(), self.asked.iter().copied());
            let message = format!(
                "unknown key `{}` in {}; expected {}",
                key.get_ref(),
                self.name,
                self.asked.join(", ")
            );
            self.wrong(key.span(), message, advice);
        }
    }
}

fn whole(value: &Value<'_>) -> Option<u64> {
    let integer = value.get_ref().as_integer()?;
    u64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

/// Reads `10 MiB`, `64kB` and the like.
fn sized(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let unit = match text[digits..].trim() {
        "" | "B" => 1,
        "kB" => 1_000,
        "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(unit)
}

/// Names the word that was probably meant.
pub(super) fn did_you_mean<'k>(found: &str, known: impl IntoIterator<Item = &'k str>) -> String {
    let tolerable = (found.chars().count() / 3).max(1);
    let near = known
        .into_iter()
        .map(|word| (strsim::damerau_levenshtein(found, word), word))
        .filter(|(distance, _)| *distance <= tolerable)
        .min();
    near.map(|(_, word)| format!("did you mean `{word}`?")).unwrap_or_default()
}

/// What a value is, for people.
pub(super) fn found(value: &Value<'_>) -> String {
    match value.get_ref() {
        DeValue::String(text) => format!("the string {text:?}"),
        DeValue::Integer(number) => format!("the number {}", number.as_str()),
        DeValue::Float(number) => format!("the number {}", number.as_str()),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(time) => format!("the time {time}"),
        DeValue::Array(_) => "a list".into(),
        DeValue::Table(_) => "a table".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_units() {
        assert_eq!(sized("10 MiB"), Some(10 << 20));
        assert_eq!(sized("64kB"), Some(64_000));
        assert_eq!(sized("7"), Some(7));
        assert_eq!(sized("7 apples"), None);
        assert_eq!(sized("99999999999 GiB"), None);
    }
}
