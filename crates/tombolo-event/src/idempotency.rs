//! The key by which a receiver outside (a mail server, a payment provider) knows a call again.
//!
//! Invariant: the key of one event in one subscription never changes, whatever crashes, whoever calls, and however
//! often; no other event and no other subscription has it.

use std::fmt;

use uuid::Uuid;

use crate::EventId;

/// What an effect gives to whomever it calls, so that a repeated call is recognised: an `Idempotency-Key`, a `Message-ID`.
/// Shown as a UUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdempotencyKey(pub Uuid);

impl IdempotencyKey {
    /// The key of the call that `subscription` of `service` makes for the event `cause`.
    #[must_use]
    pub fn of(service: &str, subscription: &str, cause: EventId) -> Self {
        // An ordinal is a number, so no event that the same subscription publishes has this id.
        Self(Uuid::new_v5(&cause.0, format!("{service}/{subscription}/call").as_bytes()))
    }
}

impl fmt::Display for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Consequence;

    #[test]
    fn a_key_is_pinned_and_nobody_elses() {
        let cause = EventId(Uuid::from_u128(7));
        let key = IdempotencyKey::of("orders", "confirmations", cause);
        assert_eq!(key.to_string(), include_str!("../golden/idempotency-key.txt").trim());
        let consequence = Consequence { service: "orders", subscription: "confirmations", cause, ordinal: 0 };
        assert_ne!(key.0, EventId::of_consequence(&consequence).0);
        assert_ne!(key, IdempotencyKey::of("orders", "invoices", cause));
        assert_ne!(key, IdempotencyKey::of("orders", "confirmations", EventId(Uuid::from_u128(8))));
    }
}
