//! Durable names: services (and with them topics), event types, subscriptions, questions.
//!
//! A name outlives every refactor, so it is always an explicit string; it is checked once, here, and is
//! safe in a file name, a URL path, an SQL literal and a NATS subject token.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, Kind, Result};

/// The longest name of a service, topic, subscription or question, in bytes.
pub const NAME_BYTES_MAX: usize = 63;
/// The longest name of an event type, in bytes.
pub const TYPE_BYTES_MAX: usize = 127;

/// The name of a service and of its topic: lowercase letters, digits and `-`, starting with a letter.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct ServiceName(String);

impl ServiceName {
    /// Checks `name`.
    ///
    /// # Errors
    /// [`Kind::InvalidName`] with the first character that is not allowed.
    pub fn new(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        check_word("service name", &name, NAME_BYTES_MAX)?;
        Ok(Self(name))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Checks a subscription's or a view's name: the same rule as for services.
///
/// # Errors
/// [`Kind::InvalidName`].
pub fn check_subscription(name: &str) -> Result<()> {
    check_word("subscription name", name, NAME_BYTES_MAX)
}

/// Checks a question's name: dotted words ending in a version, like an event type's.
///
/// # Errors
/// [`Kind::InvalidName`].
pub fn check_question(name: &str) -> Result<()> {
    TypeName::parse("question name", name).map(drop)
}

fn check_word(what: &str, name: &str, max: usize) -> Result<()> {
    let shape = "lowercase letters, digits and '-', starting with a letter";
    let fail = |found: String| {
        Err(Error::new(
            Kind::InvalidName,
            format!("{what} {name:?} {found}; expected {shape}, at most {max} bytes"),
        ))
    };
    if name.is_empty() {
        return fail("is empty".into());
    }
    if name.len() > max {
        return fail(format!("is {} bytes long", name.len()));
    }
    if let Some(odd) = name.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-')) {
        return fail(format!("contains {odd:?}"));
    }
    if !name.starts_with(|c: char| c.is_ascii_lowercase()) {
        return fail(format!("starts with {:?}", &name[..1]));
    }
    Ok(())
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ServiceName {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        Self::new(s)
    }
}

impl TryFrom<String> for ServiceName {
    type Error = Error;
    fn try_from(s: String) -> Result<Self> {
        Self::new(s)
    }
}

impl From<ServiceName> for String {
    fn from(name: ServiceName) -> Self {
        name.0
    }
}

/// The durable name of an event type in its two parts: `users.registered` and version 1 of
/// `users.registered.v1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TypeName<'a> {
    /// The name without its version; versions of one family lift into each other.
    pub family: &'a str,
    /// The version, from 1.
    pub version: u32,
}

impl<'a> TypeName<'a> {
    /// Splits and checks the name of an event type.
    ///
    /// # Errors
    /// [`Kind::InvalidName`] if it is not dotted words with a version at the end.
    pub fn new(name: &'a str) -> Result<Self> {
        Self::parse("event type", name)
    }

    fn parse(what: &str, name: &'a str) -> Result<Self> {
        let wrong = |found: &str| {
            let shape = "dotted lowercase words with a version at the end, such as \"orders.placed.v1\"";
            Err(Error::new(
                Kind::InvalidName,
                format!("{what} {name:?} {found}; expected {shape}, at most {TYPE_BYTES_MAX} bytes"),
            ))
        };
        if name.len() > TYPE_BYTES_MAX {
            return wrong("is too long");
        }
        let Some((family, version)) = name.rsplit_once(".v") else { return wrong("has no version") };
        let version = match version.parse::<u32>() {
            Ok(number) if number > 0 && !version.starts_with(['0', '+']) => number,
            _ => return wrong("has a version that is not a number from 1"),
        };
        let word =
            |w: &str| !w.is_empty() && w.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '-' | '_'));
        if !family.split('.').all(word) {
            return wrong("has an empty word or an odd character");
        }
        Ok(Self { family, version })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_odd_characters_is_refused_and_the_character_named() {
        for (name, said) in
            [("", "is empty"), ("Users", "'U'"), ("us/ers", "'/'"), ("7up", "\"7\""), ("ü", "'ü'")]
        {
            let error = ServiceName::new(name).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidName);
            assert!(error.to_string().contains(said), "{error}");
        }
        assert!(ServiceName::new("a".repeat(64)).is_err());
        assert!(ServiceName::new("order-history").is_ok());
    }

    #[test]
    fn a_type_splits_into_family_and_version() {
        let name = TypeName::new("users.registered.v12").unwrap();
        assert_eq!((name.family, name.version), ("users.registered", 12));
        for odd in
            ["users", "users.v", "users.v0", "users.v01", "users.v+1", ".v1", "a..b.v1", "A.v1", "a b.v1"]
        {
            assert!(TypeName::new(odd).is_err(), "{odd}");
        }
    }
}
