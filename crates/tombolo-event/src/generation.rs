//! Generations: how a topic is divided into partitions, now and before.
//!
//! The number of partitions of a topic is changed by a new generation. Its partitions get the numbers after those that are
//! there, so that a partition's number means one thing for ever; the earlier ones are sealed and stay readable.
//!
//! ```text
//! generation 1, of 2       0 ── 1                     sealed: nothing more comes, what is there stays
//! generation 2, of 3                2 ── 3 ── 4       appended to, and entered by readers behind the ends of 0 and 1
//! ```
//!
//! Invariant: numbers only grow, and never get another meaning.

use std::fmt;
use std::ops::Range;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::key::PARTITIONS_MAX;
use crate::{Error, KeyHash, Kind, Result};

/// The most generations of a topic.
pub const GENERATIONS_MAX: usize = 32;

/// Partitions of all generations of a topic, at most: every number of a partition is below.
pub const PARTITION_NUMBERS_MAX: u32 = PARTITIONS_MAX * GENERATIONS_MAX as u32;

/// How many partitions each generation of a topic has, the present one last. There is always one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "Vec<u32>", into = "Vec<u32>")]
pub struct Generations(Vec<u32>);

impl Generations {
    /// A topic that has only ever had `partitions`.
    ///
    /// # Errors
    /// `InvalidGenerations` if that is not 1 to [`PARTITIONS_MAX`].
    pub fn first(partitions: u32) -> Result<Self> {
        Self::try_from(vec![partitions])
    }

    /// The same with one more generation.
    ///
    /// # Errors
    /// `InvalidGenerations` if `partitions` is not 1 to [`PARTITIONS_MAX`], or there are [`GENERATIONS_MAX`] already.
    pub fn and(&self, partitions: u32) -> Result<Self> {
        Self::try_from(self.0.iter().copied().chain([partitions]).collect::<Vec<_>>())
    }

    /// The number of partitions of each, the first generation first.
    #[must_use]
    pub fn each(&self) -> &[u32] {
        &self.0
    }

    /// The number of the partitions of the present generation.
    #[must_use]
    pub fn present(&self) -> u32 {
        self.0.last().copied().unwrap_or(1)
    }

    /// How many partitions there are in all generations: their numbers are 0 up to here.
    #[must_use]
    pub fn partitions(&self) -> u32 {
        self.0.iter().sum()
    }

    /// The partition, of the present generation, in which the next event of a key goes.
    #[must_use]
    pub fn partition(&self, key: KeyHash) -> u32 {
        self.partitions() - self.present() + key.partition(self.present())
    }

    /// The numbers of the partitions in the generation of `partition`; none if there is no such partition.
    #[must_use]
    pub fn beside(&self, partition: u32) -> Option<Range<u32>> {
        let mut first = 0;
        for partitions in &self.0 {
            let range = first..first + partitions;
            if range.contains(&partition) {
                return Some(range);
            }
            first = range.end;
        }
        None
    }

    /// Which generation `partition` is of, from 1; none if there is no such partition.
    #[must_use]
    pub fn number_of(&self, partition: u32) -> Option<usize> {
        self.steps().position(|until| partition < until.partitions()).map(|at| at + 1)
    }

    /// The numbers of the partitions of all generations before that of `partition`: what has to be read before it.
    #[must_use]
    pub fn before(&self, partition: u32) -> Range<u32> {
        0..self.beside(partition).map_or(0, |beside| beside.start)
    }

    /// The partitions in which the events of a key go in each generation after that of `partition`.
    pub fn after(&self, partition: u32, key: KeyHash) -> impl Iterator<Item = u32> {
        let mut first = 0;
        let each = self.0.iter().map(move |partitions| {
            let own = first + key.partition(*partitions);
            first += partitions;
            own
        });
        let end = self.beside(partition).map_or(u32::MAX, |beside| beside.end);
        each.filter(move |own| *own >= end)
    }

    /// Whether nothing more comes in `partition`, because its generation is not the present one.
    #[must_use]
    pub fn is_sealed(&self, partition: u32) -> bool {
        partition < self.partitions() - self.present()
    }

    /// These as they came about: the first alone, then with one more each time.
    pub fn steps(&self) -> impl Iterator<Item = Self> + '_ {
        (1..=self.0.len()).map(|count| Self(self.0[..count].to_vec()))
    }

    /// Whether these are `earlier`, or came out of them.
    #[must_use]
    pub fn continue_from(&self, earlier: &Self) -> bool {
        self.0.starts_with(&earlier.0)
    }
}

impl TryFrom<Vec<u32>> for Generations {
    type Error = Error;

    fn try_from(each: Vec<u32>) -> Result<Self> {
        let wrong = |found: String| Err(Error::new(Kind::InvalidGenerations, found));
        if each.is_empty() || each.len() > GENERATIONS_MAX {
            return wrong(format!(
                "found {} generations of a topic; expected 1 to {GENERATIONS_MAX}",
                each.len()
            ));
        }
        match each.iter().find(|partitions| !(1..=PARTITIONS_MAX).contains(partitions)) {
            Some(found) => wrong(format!("found {found} partitions; expected 1 to {PARTITIONS_MAX}")),
            None => Ok(Self(each)),
        }
    }
}

impl From<Generations> for Vec<u32> {
    fn from(generations: Generations) -> Self {
        generations.0
    }
}

impl fmt::Display for Generations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each: Vec<String> = self.0.iter().map(u32::to_string).collect();
        f.write_str(&each.join(" → "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_a_new_generation_follow_the_earlier_ones() {
        let two = Generations::first(2).unwrap();
        let five = two.and(3).unwrap();
        assert_eq!((five.partitions(), five.present()), (5, 3));
        let ranges = [0, 1, 2, 4].map(|partition| five.beside(partition).unwrap());
        assert_eq!(ranges, [0..2, 0..2, 2..5, 2..5]);
        assert_eq!((five.before(1), five.before(4), five.beside(5)), (0..0, 0..2, None));
        assert_eq!([0, 1, 2, 4, 5].map(|it| five.number_of(it)), [Some(1), Some(1), Some(2), Some(2), None]);
        assert!(five.is_sealed(1) && !five.is_sealed(2) && !two.is_sealed(1));
        for key in ["a", "b", "c", "d"].map(KeyHash::of) {
            assert_eq!(two.partition(key), key.partition(2));
            assert_eq!(five.partition(key), 2 + key.partition(3));
            let after = |partition| five.after(partition, key).collect::<Vec<_>>();
            assert_eq!((after(1), after(2), after(9)), (vec![five.partition(key)], vec![], vec![]));
        }
    }

    #[test]
    fn one_continues_from_what_it_came_out_of() {
        let eight = Generations::first(8).unwrap();
        let more = eight.and(16).unwrap();
        assert!(more.continue_from(&eight) && eight.continue_from(&eight));
        assert_eq!(more.steps().collect::<Vec<_>>(), [eight.clone(), more.clone()]);
        assert!(!eight.continue_from(&more) && !more.continue_from(&Generations::first(4).unwrap()));
    }

    #[test]
    fn what_no_topic_can_have_is_refused() {
        let kind = |each: Vec<u32>| Generations::try_from(each).map_err(|error| error.kind());
        for wrong in [vec![], vec![0], vec![8, 0], vec![PARTITIONS_MAX + 1], vec![1; GENERATIONS_MAX + 1]] {
            assert_eq!(kind(wrong), Err(Kind::InvalidGenerations));
        }
        let read: Generations = serde_json::from_str("[8,16]").unwrap();
        assert_eq!(
            (serde_json::to_string(&read).unwrap(), read.to_string()),
            ("[8,16]".into(), "8 → 16".into())
        );
        assert!(serde_json::from_str::<Generations>("[]").is_err());
    }
}
