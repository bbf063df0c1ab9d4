//! What somebody accepts by name although it breaks the promise: `?accept=NAME[,NAME]` at the end of a bus URL.
//!
//! An engine checks its server's settings when it first reaches it. What would lose what was acknowledged is refused, with its
//! name and the remedy; whoever wants it all the same writes the name, and then finds it in the guarantee.
//!
//! Invariant: nothing is accepted that was not named, and no name is taken that means nothing.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use crate::{Error, Kind, Result};

/// The names that a URL accepts.
#[derive(Debug, Default)]
pub(crate) struct Accepted {
    names: Vec<String>,
    /// What was said already: a setting is found again with every connection.
    said: Mutex<BTreeSet<String>>,
}

/// A setting of a server that would break the promise.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weakness {
    /// By which it can be accepted: lower case, with hyphens.
    pub(crate) name: &'static str,
    /// What is lost, and when.
    pub(crate) costs: &'static str,
    /// What to set instead.
    pub(crate) remedy: &'static str,
}

impl Accepted {
    /// Takes the names off `url`; `known` are all that this engine could ask for.
    ///
    /// # Errors
    /// `Configuration` for a name that is not known.
    pub(crate) fn split(url: &str, known: &[Weakness]) -> Result<(String, Self)> {
        let Some((address, query)) = url.split_once('?') else {
            return Ok((url.to_owned(), Self::default()));
        };
        let (accept, rest): (Vec<&str>, Vec<&str>) =
            query.split('&').partition(|pair| pair.starts_with("accept="));
        let names = accept.iter().flat_map(|pair| pair["accept=".len()..].split(','));
        let names: Vec<String> = names.filter(|name| !name.is_empty()).map(str::to_owned).collect();
        if let Some(name) = names.iter().find(|name| known.iter().all(|weakness| weakness.name != **name)) {
            let known: Vec<&str> = known.iter().map(|weakness| weakness.name).collect();
            let message = format!(
                "the bus URL accepts {name:?}, which this engine has no setting for; it could accept: {}",
                if known.is_empty() { "nothing".to_owned() } else { known.join(", ") }
            );
            return Err(Error::new(Kind::Configuration, message));
        }
        let address =
            if rest.is_empty() { address.to_owned() } else { format!("{address}?{}", rest.join("&")) };
        Ok((address, Self { names, said: Mutex::default() }))
    }

    /// Whether `weakness` is accepted.
    pub(crate) fn names(&self, weakness: &Weakness) -> bool {
        self.names.iter().any(|accepted| accepted == weakness.name)
    }

    /// Whether `weakness`, which was found as `found`, may stay; says so if it may.
    ///
    /// # Errors
    /// `Unsafe` if it was not accepted.
    #[cfg_attr(
        not(any(feature = "nats", feature = "rabbitmq", feature = "postgres", feature = "redis")),
        expect(dead_code, reason = "Kafka judges each topic, and says it then")
    )]
    pub(crate) fn check(&self, weakness: &Weakness, found: &str) -> Result<()> {
        self.judge(weakness, found)?;
        if self.said.lock().unwrap_or_else(PoisonError::into_inner).insert(found.to_owned()) {
            tracing::warn!("{found}: {}; accepted by name ({})", weakness.costs, weakness.name);
        }
        Ok(())
    }

    /// Whether `weakness`, which was found as `found`, may stay.
    ///
    /// # Errors
    /// `Unsafe` if it was not accepted.
    pub(crate) fn judge(&self, weakness: &Weakness, found: &str) -> Result<()> {
        if self.names(weakness) {
            return Ok(());
        }
        let Weakness { name, costs, remedy } = weakness;
        let message = format!(
            "{found}: {costs}; {remedy}, or accept it by name: put `accept={name}` into the query of the bus URL"
        );
        Err(Error::new(Kind::Unsafe, message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[Weakness] = &[
        Weakness { name: "unsynced", costs: "a power cut loses events", remedy: "set it to always" },
        Weakness { name: "evicting", costs: "memory pressure loses events", remedy: "set noeviction" },
    ];

    #[test]
    fn only_what_is_named_is_accepted() {
        let (address, accepted) = Accepted::split("redis://host/0?x=1&accept=unsynced", KNOWN).unwrap();
        assert_eq!(address, "redis://host/0?x=1");
        assert!(accepted.check(&KNOWN[0], "found everysec").is_ok());
        let refused = accepted.check(&KNOWN[1], "found allkeys-lru").unwrap_err();
        assert_eq!(refused.kind(), Kind::Unsafe);
        assert!(refused.to_string().contains("accept=evicting"), "{refused}");
        let (address, nothing) = Accepted::split("redis://host", KNOWN).unwrap();
        assert!(address == "redis://host" && nothing.names.is_empty());
    }

    #[test]
    fn a_name_that_means_nothing_is_refused() {
        let refused = Accepted::split("redis://host?accept=unsynced,typo", KNOWN).unwrap_err();
        assert_eq!(refused.kind(), Kind::Configuration);
        assert!(refused.to_string().contains("typo") && refused.to_string().contains("unsynced, evicting"));
    }
}
