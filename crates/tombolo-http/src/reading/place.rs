//! Where a reader stands: what it says, and what it is told.
//!
//! Of one partition a sequence, or the token `incarnation/sequence/id`, which proves that the log is the one that was read before.
//! Of a whole topic the token `incarnation/sequences/partition:id`: a sequence for each partition, and the id of the last event as the proof.
//!
//! Invariant: a token is read as it was written, and nothing else is taken for one.

use std::fmt;
use std::str::FromStr;

use tombolo_bus::{Bus, Topic};
use tombolo_event::{Cursor, EventId, Incarnation};

use crate::problem::{Problem, Refusal};

/// A place in one partition, as text.
pub(super) fn written(cursor: &Cursor) -> String {
    let id = cursor.id.map(|id| id.to_string()).unwrap_or_default();
    format!("{}/{}/{id}", cursor.incarnation, cursor.sequence)
}

/// The place in one partition that a reader names.
pub(super) async fn of_partition(
    bus: &dyn Bus,
    topic: &Topic,
    partition: u32,
    after: &str,
) -> Result<Cursor, Problem> {
    if let Ok(sequence) = after.parse() {
        return Ok(bus.cursor_at(topic, partition, sequence).await?);
    }
    token(after).ok_or_else(|| wrong(after, "a sequence, or a token that was answered in Tombolo-Cursor"))
}

fn token(text: &str) -> Option<Cursor> {
    let mut parts = text.split('/');
    let incarnation = Incarnation(parts.next()?.parse().ok()?);
    let sequence = parts.next()?.parse().ok()?;
    let id = match parts.next()? {
        "" => None,
        id => Some(id.parse::<EventId>().ok()?),
    };
    // A sequence without its id proves nothing, and is refused as another place.
    parts.next().is_none().then_some(Cursor { incarnation, sequence, id })
}

fn wrong(after: &str, expected: &str) -> Problem {
    let detail = format!("after is {after:?}; expected {expected}");
    Problem::new(Refusal::InvalidParameter, detail).with("parameter", "after")
}

/// A place in every partition of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Places {
    incarnation: Incarnation,
    sequences: Vec<u64>,
    last: Option<(u32, EventId)>,
}

impl Places {
    pub(super) fn start(topic: &Topic) -> Self {
        Self { incarnation: topic.incarnation, sequences: vec![0; topic.partitions() as usize], last: None }
    }

    /// The places that a reader names: nothing for the start.
    pub(super) fn read(topic: &Topic, after: &str) -> Result<Self, Problem> {
        if after == "0" {
            return Ok(Self::start(topic));
        }
        let mut places: Self = after.parse().map_err(|()| {
            wrong(after, "a token that was answered in Tombolo-Cursor, or as the id of a server-sent event")
        })?;
        // A partition that was made since then is read from its start.
        places.sequences.resize(topic.partitions() as usize, 0);
        Ok(places)
    }

    /// Proves that the log is the one that was read before, and finds the place in one partition.
    pub(super) async fn cursor(
        &self,
        bus: &dyn Bus,
        topic: &Topic,
        partition: u32,
    ) -> Result<Cursor, Problem> {
        if self.incarnation != topic.incarnation {
            let detail =
                format!("the place is in another life of topic {}: it was made anew since then", topic.name);
            return Err(Problem::new(Refusal::OtherPlace, detail));
        }
        let sequence = self.sequence(partition);
        match self.last {
            Some((of, id)) if of == partition => Ok(Cursor::at(self.incarnation, sequence, id)),
            _ => Ok(bus.cursor_at(topic, partition, sequence).await?),
        }
    }

    pub(super) fn sequence(&self, partition: u32) -> u64 {
        self.sequences.get(partition as usize).copied().unwrap_or(0)
    }

    /// Moves on in one partition, if anything was read there.
    pub(super) fn moved_to(&mut self, partition: u32, cursor: Cursor) {
        if let (true, Some(id)) = (cursor.sequence > self.sequence(partition), cursor.id) {
            self.moved(partition, cursor.sequence, id);
        }
    }

    /// Moves on in one partition.
    pub(super) fn moved(&mut self, partition: u32, sequence: u64, id: EventId) {
        if let Some(place) = self.sequences.get_mut(partition as usize) {
            *place = sequence;
            self.last = Some((partition, id));
        }
    }
}

impl fmt::Display for Places {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sequences: Vec<String> = self.sequences.iter().map(u64::to_string).collect();
        write!(f, "{}/{}/", self.incarnation, sequences.join(","))?;
        match self.last {
            Some((partition, id)) => write!(f, "{partition}:{id}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Places {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split('/');
        let mut next = || parts.next().ok_or(());
        let incarnation = Incarnation(next()?.parse().map_err(drop)?);
        let sequences =
            next()?.split(',').map(|it| it.parse().map_err(drop)).collect::<Result<Vec<_>, _>>()?;
        let last = match next()? {
            "" => None,
            last => {
                let (partition, id) = last.split_once(':').ok_or(())?;
                Some((partition.parse().map_err(drop)?, id.parse().map_err(drop)?))
            }
        };
        let is_whole =
            parts.next().is_none() && last.is_none_or(|(of, _): (u32, _)| (of as usize) < sequences.len());
        if is_whole { Ok(Self { incarnation, sequences, last }) } else { Err(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_read_as_it_is_written() {
        let incarnation = Incarnation::new();
        for cursor in [Cursor::start(incarnation), Cursor::at(incarnation, 7, EventId::new())] {
            assert_eq!(token(&written(&cursor)), Some(cursor));
        }
        for odd in ["", "x", "7/", &format!("{incarnation}/7//")] {
            assert_eq!(token(odd), None, "{odd}");
        }
    }

    #[test]
    fn the_places_of_a_topic_are_read_as_they_are_written() {
        let mut places = Places { incarnation: Incarnation::new(), sequences: vec![0, 0, 0], last: None };
        assert_eq!(places.to_string().parse(), Ok(places.clone()));
        places.moved(2, 9, EventId::new());
        assert_eq!(places.to_string().parse(), Ok(places.clone()));
        let of_partition = format!("{}/1/{}", places.incarnation, EventId::new());
        let beyond = format!("{}/1,2/7:{}", places.incarnation, EventId::new());
        for odd in ["x", "7", &of_partition, &beyond, &format!("{places}/")] {
            assert!(odd.parse::<Places>().is_err(), "{odd}");
        }
    }
}
