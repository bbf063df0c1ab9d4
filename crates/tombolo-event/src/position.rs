//! Places: where a subscription stands ([`Cursor`]) and where a write went ([`Position`], [`Positions`]).
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

use crate::generation::PARTITION_NUMBERS_MAX;
use crate::{Error, EventId, KeyHash, Kind, Result, ServiceName};

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

/// Where an event went, so that a reader elsewhere can wait until it is applied there.
///
/// Travels as `topic/partition/key-hash/id/sequence`, with `-` for a sequence that is not known yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The topic that the event goes to.
    pub topic: ServiceName,
    /// Its partition.
    pub partition: u32,
    /// The hash of its key, by which a parked key is recognised.
    pub key_hash: KeyHash,
    /// The event.
    pub id: EventId,
    /// Its sequence, if it has one yet.
    pub sequence: Option<u64>,
}

/// The header that carries [`Positions`].
pub const POSITION_HEADER: &str = "tombolo-position";
/// The most positions that travel together; with them, and names of usual length, the header
/// stays below the 8 KB that servers commonly take.
pub const POSITIONS_MAX: usize = 64;

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
        let is_partition = |partition: &u32| *partition < PARTITION_NUMBERS_MAX;
        Ok(Self {
            topic: ServiceName::new(topic).map_err(|error| wrong().because(error))?,
            partition: partition.parse().ok().filter(is_partition).ok_or_else(wrong)?,
            key_hash: KeyHash(u64::from_str_radix(key_hash, 16).map_err(|_| wrong())?),
            id: id.parse().map_err(|_| wrong())?,
            sequence: match sequence {
                "-" => None,
                number => Some(number.parse().map_err(|_| wrong())?),
            },
        })
    }
}

/// What a write answers with: the places of its events, the last for each key.
///
/// Travels in the header `Tombolo-Position` with commas between. Of more than [`POSITIONS_MAX`] keys only the last
/// event in each partition is kept, which lies behind the others there; of more partitions than that some are left
/// out, and the word `more` says so.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Positions {
    each: Vec<Position>,
    is_cut: bool,
}

const MORE: &str = "more";

impl Positions {
    /// Adds where the next event went.
    pub fn note(&mut self, position: Position) {
        self.forget(|known| known.key_hash == position.key_hash && is_beside(known, &position));
        if self.each.len() >= POSITIONS_MAX {
            self.fold();
            self.forget(|known| is_beside(known, &position));
        }
        if self.each.len() >= POSITIONS_MAX {
            self.is_cut = true;
            return;
        }
        self.each.push(position);
    }

    fn forget(&mut self, covered: impl Fn(&Position) -> bool) {
        self.each.retain(|known| !covered(known));
    }

    /// Keeps the last of each partition.
    fn fold(&mut self) {
        for position in std::mem::take(&mut self.each) {
            self.forget(|known| is_beside(known, &position));
            self.each.push(position);
        }
    }

    /// Each of them, in the order in which they were noted.
    #[must_use]
    pub fn each(&self) -> &[Position] {
        &self.each
    }

    /// The same, to be completed.
    pub fn each_mut(&mut self) -> &mut [Position] {
        &mut self.each
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.each.is_empty()
    }

    /// Whether some were left out, so that nobody can tell whether all of the write was applied.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.is_cut
    }
}

/// Whether one lies behind the other: in the same partition.
fn is_beside(a: &Position, b: &Position) -> bool {
    a.partition == b.partition && a.topic == b.topic
}

impl FromIterator<Position> for Positions {
    fn from_iter<I: IntoIterator<Item = Position>>(each: I) -> Self {
        let mut positions = Self::default();
        each.into_iter().for_each(|position| positions.note(position));
        positions
    }
}

impl fmt::Display for Positions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let more = self.is_cut.then(|| MORE.to_owned());
        let words: Vec<String> = self.each.iter().map(Position::to_string).chain(more).collect();
        f.write_str(&words.join(", "))
    }
}

impl FromStr for Positions {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let words: Vec<&str> = text.split(',').map(str::trim).filter(|word| !word.is_empty()).collect();
        let (more, positions): (Vec<&str>, Vec<&str>) = words.into_iter().partition(|word| *word == MORE);
        if positions.len() > POSITIONS_MAX {
            return Err(Error::new(
                Kind::InvalidToken,
                format!(
                    "found {} positions in the header {POSITION_HEADER:?}; expected at most {POSITIONS_MAX}: send the last of each partition",
                    positions.len()
                ),
            ));
        }
        let each = positions.into_iter().map(Position::from_str).collect::<Result<_>>()?;
        Ok(Self { each, is_cut: !more.is_empty() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_survives_the_header() {
        for sequence in [None, Some(42)] {
            let position = Position { sequence, ..at(3, "o1") };
            assert_eq!(position.to_string().parse::<Position>().unwrap(), position);
        }
        for wrong in ["orders/x", "Orders!/1/0/0190/1", "orders/70000/0/0190/1"] {
            assert_eq!(wrong.parse::<Position>().unwrap_err().kind(), Kind::InvalidToken, "{wrong}");
        }
    }

    fn at(partition: u32, key: &str) -> Position {
        Position {
            topic: ServiceName::new("orders").unwrap(),
            partition,
            key_hash: KeyHash::of(key),
            id: EventId::new(),
            sequence: None,
        }
    }

    #[test]
    fn the_last_position_of_each_key_is_kept() {
        let (first, other, last) = (at(1, "a"), at(1, "b"), at(1, "a"));
        let positions: Positions = [first, other.clone(), last.clone()].into_iter().collect();
        assert_eq!(positions.each(), [other, last]);
        assert_eq!(positions.to_string().parse::<Positions>().unwrap(), positions);
    }

    #[test]
    fn many_keys_are_covered_by_the_last_of_each_partition() {
        let each: Vec<Position> = (0..200).map(|n| at(n % 8, &n.to_string())).collect();
        let positions: Positions = each.iter().cloned().collect();
        assert!(positions.each().len() <= POSITIONS_MAX && !positions.is_cut());
        for last in &each[192..] {
            assert!(positions.each().contains(last));
        }
    }

    #[test]
    fn more_partitions_than_fit_are_said_to_be_left_out() {
        let positions: Positions = (0..65).map(|n| at(n, "a")).collect();
        let text = positions.to_string();
        assert!(text.len() < 8_000, "{} bytes", text.len());
        assert!(text.ends_with(", more") && text.parse::<Positions>().unwrap().is_cut());
        assert!("more, ".repeat(3).parse::<Positions>().unwrap().is_cut());
        let many = vec![at(1, "a").to_string(); 65].join(",");
        assert_eq!(many.parse::<Positions>().unwrap_err().kind(), Kind::InvalidToken);
    }
}
