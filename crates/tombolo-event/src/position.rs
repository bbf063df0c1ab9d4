//! Places: where a subscription stands ([`Cursor`]) and where a write went ([`Position`]).
//!
//! Invariant: sequences of a partition run 1, 2, 3, … without holes, in one incarnation of the topic.
//!
//! ```text
//! incarnation 7f…   1   2   3   4   5   6      tail = 6
//!                           └ cursor at 3: 1, 2 and 3 are applied, next is 4
//! ```

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{Error, EventId, KeyHash, Kind, Result};

/// The identity of a topic's life, given when it is made. A topic that was deleted and made again has another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Incarnation(pub Uuid);

impl Incarnation {
    /// A new one.
    #[must_use]
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }
}

impl Default for Incarnation {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a reader stands in one partition: after the event with this sequence and this id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// The topic's incarnation.
    pub incarnation: Incarnation,
    /// The last sequence that was applied; 0 before the first.
    pub sequence: u64,
    /// The id of the event at that sequence; none before the first. Both are compared whenever reading begins,
    /// so that a log which was restored or re-created is found out at once.
    pub id: Option<EventId>,
}

impl Cursor {
    /// Before the first event.
    #[must_use]
    pub fn start(incarnation: Incarnation) -> Self {
        Self { incarnation, sequence: 0, id: None }
    }

    /// After the event `id` at `sequence`.
    #[must_use]
    pub fn at(incarnation: Incarnation, sequence: u64, id: EventId) -> Self {
        Self { incarnation, sequence, id: Some(id) }
    }
}

/// What a write answers with, so that a reader elsewhere can wait until it is applied there.
///
/// Travels in the header `Tombolo-Position` as `topic/partition/key-hash/id/sequence`, with `-` for a sequence
/// that is not known yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The topic that the event goes to.
    pub topic: String,
    /// Its partition.
    pub partition: u32,
    /// The hash of its key, by which a parked key is recognised.
    pub key_hash: KeyHash,
    /// The event.
    pub id: EventId,
    /// Its sequence, where the database numbers in the publishing transaction.
    pub sequence: Option<u64>,
}

/// The header that carries a [`Position`].
pub const POSITION_HEADER: &str = "tombolo-position";

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}/{}/", self.topic, self.partition, self.key_hash, self.id)?;
        match self.sequence {
            Some(sequence) => write!(f, "{sequence}"),
            None => f.write_str("-"),
        }
    }
}

impl FromStr for Position {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            Error::new(
                Kind::InvalidToken,
                format!(
                    "position {text:?} is not of the form topic/partition/key-hash/id/sequence; pass on the header {POSITION_HEADER:?} as it came"
                ),
            )
        };
        let parts: Vec<&str> = text.split('/').collect();
        let [topic, partition, key_hash, id, sequence] = parts[..] else { return Err(wrong()) };
        Ok(Self {
            topic: topic.to_owned(),
            partition: partition.parse().map_err(|_| wrong())?,
            key_hash: KeyHash(u64::from_str_radix(key_hash, 16).map_err(|_| wrong())?),
            id: id.parse().map_err(|_| wrong())?,
            sequence: match sequence {
                "-" => None,
                number => Some(number.parse().map_err(|_| wrong())?),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_survives_the_header() {
        for sequence in [None, Some(42)] {
            let position = Position {
                topic: "orders".into(),
                partition: 3,
                key_hash: KeyHash::of("o1"),
                id: EventId::new(),
                sequence,
            };
            assert_eq!(position.to_string().parse::<Position>().unwrap(), position);
        }
        assert_eq!("orders/x".parse::<Position>().unwrap_err().kind(), Kind::InvalidToken);
    }
}
