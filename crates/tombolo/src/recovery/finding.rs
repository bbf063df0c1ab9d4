//! What the database and the bus say of one topic, held against each other. Pure.
//!
//! ```text
//!  database   removed 41 ── waiting 42, 43 ── numbered 43
//!  bus                ……… tail            agrees if 41 ≤ tail ≤ 43, and the id at the tail is ours
//!              tail < 41: the bus lost its tail     tail > 43: the database is an older copy
//! ```
//!
//! How the topic is divided is compared, too: the bus follows the database, so it never has a generation more.
//!
//! Invariant: whatever a crash of our own can leave behind agrees; everything else is found, and named.

use std::fmt;

use serde::{Deserialize, Serialize};
use tombolo_bus::{Tail, Topic};
use tombolo_db::Mark;
use tombolo_db::port::recovery::{Counted, Standing};
use tombolo_event::{EventId, Generations, Incarnation, ServiceName};

/// In what the database of a service and the bus do not agree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The service, whose topic it is.
    pub service: ServiceName,
    /// Which of the two is behind.
    pub what: What,
    /// What the database says.
    pub database: Side,
    /// What the bus says.
    pub bus: Side,
    /// The partitions in which they differ.
    pub partitions: Vec<Difference>,
}

/// Which side is behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// The bus has what the database does not know: the database was restored from an older copy, or is a second one of the
    /// database in use.
    DatabaseBehind,
    /// The database published what the bus does not have: the bus was restored from an older copy, or lost its tail.
    BusBehind,
    /// Under one number each has another event: both went on from a common state.
    Parted,
    /// The topic was made again, or this is another bus.
    OtherTopic,
    /// A relay of another database leads the topic right now: this one is a second copy of it.
    LedElsewhere,
}

/// What one side says of the topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Side {
    /// The epoch of the relay that led last.
    pub epoch: u64,
    /// The topic's incarnation; none before it was seen.
    pub incarnation: Option<Incarnation>,
    /// How the topic is divided; none in what was written down by a program that knew of no divisions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generations: Option<Generations>,
}

impl Side {
    fn of_database(standing: &Standing) -> Self {
        let generations = Some(standing.generations.clone());
        Self { epoch: standing.epoch, incarnation: standing.incarnation, generations }
    }

    fn of_bus(topic: &Topic) -> Self {
        let generations = Some(topic.generations.clone());
        Self { epoch: topic.epoch, incarnation: Some(topic.incarnation), generations }
    }
}

/// In what they differ in one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The partition.
    pub partition: u32,
    /// Where the bus ends.
    pub bus: u64,
    /// The id of the event there.
    pub bus_id: Option<EventId>,
    /// Up to where the database knows its events to be published.
    pub published: u64,
    /// The last number that the database gave.
    pub numbered: u64,
    /// The database's event under the number at which the bus ends, if it has one there.
    pub database_id: Option<EventId>,
}

/// What the database counted in a partition; nothing if it does not have it.
pub(super) fn counted(standing: &Standing, partition: u32) -> Counted {
    let known = standing.partitions.iter().find(|counted| counted.removed.partition == partition);
    let nothing = Mark { partition, sequence: 0, id: None };
    known.copied().unwrap_or(Counted { removed: nothing, numbered: 0 })
}

/// In what the two differ in each partition. One that only the database has ends at 0 on the bus, which follows.
fn differences(standing: &Standing, tails: &[Tail], ids: &[Option<EventId>]) -> Vec<Difference> {
    let there = tails.iter().zip(ids).map(|(tail, id)| (*tail, *id));
    let only_here = standing.partitions.iter().map(|counted| counted.removed.partition);
    let only_here = only_here.filter(|partition| !tails.iter().any(|tail| tail.partition == *partition));
    let only_here = only_here.map(|partition| (Tail { partition, sequence: 0, id: None }, None));
    let all = there.chain(only_here);
    all.filter_map(|(tail, id)| difference(&counted(standing, tail.partition), &tail, id)).collect()
}

/// Holds one side against the other. `ids` are the events that wait in the outbox under the numbers at which the bus ends.
pub(crate) fn compare(
    standing: &Standing,
    topic: &Topic,
    tails: &[Tail],
    ids: &[Option<EventId>],
) -> Option<Finding> {
    let (database, bus) = (Side::of_database(standing), Side::of_bus(topic));
    let partitions = differences(standing, tails, ids);
    let any = |differs: fn(&Difference) -> bool| partitions.iter().any(differs);
    let what = if standing.incarnation.is_some_and(|known| known != topic.incarnation) {
        What::OtherTopic
    } else if any(|found| found.bus < found.published) {
        What::BusBehind
    } else if any(|found| found.bus <= found.numbered)
        || are_parted(&standing.generations, &topic.generations)
    {
        What::Parted
    } else if topic.epoch > standing.epoch
        || !partitions.is_empty()
        || !standing.generations.continue_from(&topic.generations)
    {
        What::DatabaseBehind
    } else {
        return None;
    };
    Some(Finding { service: topic.name.clone(), what, database, bus, partitions })
}

/// Whether each was divided otherwise.
fn are_parted(one: &Generations, other: &Generations) -> bool {
    !one.continue_from(other) && !other.continue_from(one)
}

fn difference(counted: &Counted, tail: &Tail, waiting: Option<EventId>) -> Option<Difference> {
    let Counted { removed, numbered } = *counted;
    let database_id = if tail.sequence == removed.sequence { removed.id } else { waiting };
    let within = (removed.sequence..=numbered).contains(&tail.sequence);
    if within && tail.id == database_id {
        return None;
    }
    Some(Difference {
        partition: removed.partition,
        bus: tail.sequence,
        bus_id: tail.id,
        published: removed.sequence,
        numbered,
        database_id,
    })
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let service = &self.service;
        match self.what {
            What::DatabaseBehind => write!(
                f,
                "the database of {service} is older than its topic on the bus: it was restored from an older copy, or it is a second copy of the one in use"
            )?,
            What::BusBehind => write!(
                f,
                "topic {service} on the bus is older than the database of {service}: the bus was restored from an older copy, or lost its tail"
            )?,
            What::Parted => write!(
                f,
                "topic {service} has other events than the database of {service} under the same numbers: two copies of the database, or of the bus, were both written to"
            )?,
            What::LedElsewhere => write!(
                f,
                "a service with another database leads topic {service} right now: the database of this one is a second copy of it"
            )?,
            What::OtherTopic => write!(
                f,
                "topic {service} on the bus is not the one that the database of {service} published to: it was made again, or this is another bus"
            )?,
        }
        self.write_facts(f)
    }
}

impl Finding {
    /// What is found when somebody else answers, though both sides agree.
    pub(crate) fn led_elsewhere(standing: &Standing, topic: &Topic) -> Self {
        Self {
            service: topic.name.clone(),
            what: What::LedElsewhere,
            database: Side::of_database(standing),
            bus: Side::of_bus(topic),
            partitions: Vec::new(),
        }
    }

    fn write_facts(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = |id: Option<EventId>| id.map_or_else(|| "no event".to_owned(), |id| id.to_string());
        match self.what {
            What::OtherTopic => {
                let incarnation = |side: &Side| side.incarnation.map_or_else(String::new, |i| i.to_string());
                write!(
                    f,
                    " (incarnation {} there, {} here)",
                    incarnation(&self.bus),
                    incarnation(&self.database)
                )?;
            }
            _ if self.bus.epoch > self.database.epoch => {
                write!(f, " (epoch {} there, {} here)", self.bus.epoch, self.database.epoch)?;
            }
            _ => {}
        }
        if let (Some(there), Some(here)) = (&self.bus.generations, &self.database.generations)
            && there != here
        {
            write!(f, " (partitions {there} there, {here} here)")?;
        }
        let Some(first) = self.partitions.first() else { return Ok(()) };
        let Difference { partition, bus, published, numbered, .. } = *first;
        write!(f, "; in partition {partition} the bus ends at {bus}")?;
        match self.what {
            What::Parted => {
                write!(f, " with {}, where the database has {}", id(first.bus_id), id(first.database_id))?;
            }
            _ => write!(f, ", the database published up to {published} and gave numbers up to {numbered}")?,
        }
        match self.partitions.len() - 1 {
            0 => Ok(()),
            more => write!(f, ", and {more} more partitions differ"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Stage {
        standing: Standing,
        topic: Topic,
        tail: Tail,
        waiting: Option<EventId>,
    }

    impl Stage {
        /// A database that published up to 41 and numbered up to 43, and a bus that ends at 41.
        fn agreeing() -> Self {
            let (incarnation, id) = (Incarnation::new(), EventId::new());
            let removed = Mark { partition: 0, sequence: 41, id: Some(id) };
            let standing = Standing {
                epoch: 3,
                is_free: true,
                lease: String::new(),
                incarnation: Some(incarnation),
                halt: None,
                generations: Generations::first(1).unwrap(),
                partitions: vec![Counted { removed, numbered: 43 }],
            };
            let name = ServiceName::new("orders").unwrap();
            let topic = Topic { name, generations: Generations::first(1).unwrap(), incarnation, epoch: 3 };
            Self { standing, topic, tail: Tail { partition: 0, sequence: 41, id: Some(id) }, waiting: None }
        }

        fn ending(sequence: u64) -> Self {
            let mut stage = Self::agreeing();
            stage.tail.sequence = sequence;
            stage.tail.id = Some(EventId::new());
            stage
        }

        fn found(&self) -> Option<What> {
            let found = compare(&self.standing, &self.topic, &[self.tail], &[self.waiting]);
            found.map(|finding| finding.what)
        }
    }

    #[test]
    fn what_a_crash_leaves_behind_agrees() {
        assert_eq!(Stage::agreeing().found(), None);
        for sequence in [42, 43] {
            let mut sent = Stage::ending(sequence);
            sent.waiting = sent.tail.id;
            assert_eq!(sent.found(), None, "sent up to {sequence}, not yet removed");
        }
        let mut raised = Stage::agreeing();
        raised.standing.epoch = 9;
        assert_eq!(raised.found(), None, "the epoch is raised here first");
        let mut new = Stage::agreeing();
        new.standing.incarnation = None;
        assert_eq!(new.found(), None, "the topic was not seen yet");
    }

    #[test]
    fn everything_else_is_found() {
        assert_eq!(Stage::ending(44).found(), Some(What::DatabaseBehind));
        assert_eq!(Stage::ending(40).found(), Some(What::BusBehind));
        assert_eq!(Stage::ending(41).found(), Some(What::Parted));
        assert_eq!(Stage::ending(42).found(), Some(What::Parted));
        let mut led = Stage::agreeing();
        led.topic.epoch = 4;
        assert_eq!(led.found(), Some(What::DatabaseBehind));
        let mut other = Stage::agreeing();
        other.topic.incarnation = Incarnation::new();
        assert_eq!(other.found(), Some(What::OtherTopic));
    }

    #[test]
    fn the_bus_may_be_behind_in_its_division_and_never_ahead() {
        let divided = |each: &[u32]| Generations::try_from(each.to_vec()).unwrap();
        let mut ahead = Stage::agreeing();
        ahead.standing.generations = divided(&[1, 1]);
        let new = Mark { partition: 1, sequence: 0, id: None };
        ahead.standing.partitions.push(Counted { removed: new, numbered: 7 });
        assert_eq!(ahead.found(), None, "the bus follows");
        ahead.standing.partitions[1].removed.sequence = 3;
        assert_eq!(ahead.found(), Some(What::BusBehind), "it had followed before");
        let mut behind = Stage::agreeing();
        behind.topic.generations = divided(&[1, 1]);
        assert_eq!(behind.found(), Some(What::DatabaseBehind));
        behind.standing.generations = divided(&[1, 2]);
        assert_eq!(behind.found(), Some(What::Parted));
        let found = compare(&behind.standing, &behind.topic, &[behind.tail], &[None]).unwrap();
        assert!(found.to_string().contains("(partitions 1 → 1 there, 1 → 2 here)"), "{found}");
    }

    #[test]
    fn a_finding_names_both_sides() {
        let stage = Stage::ending(1041);
        let found = compare(&stage.standing, &stage.topic, &[stage.tail], &[None]).unwrap();
        let text = found.to_string();
        for expected in ["database of orders is older", "ends at 1041", "up to 41", "up to 43"] {
            assert!(text.contains(expected), "{text}");
        }
        let json = serde_json::to_string(&found).unwrap();
        assert_eq!(serde_json::from_str::<Finding>(&json).unwrap(), found);
    }
}
