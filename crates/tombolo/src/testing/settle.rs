//! Settling: waiting until nothing is left to do, and saying by name what still is.
//!
//! Invariant: a world has settled only if two looks in a row find nothing open and nothing moved between them: the first
//! saw every cursor at its tail, the outboxes in between were empty, and since no cursor moved no reactor filled one.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use tombolo_bus::{Bus, Tail, Topic};
use tombolo_db::{CursorState, Depth, ParkedHead};
use tombolo_event::{Generations, ServiceName};

use super::bus::WorldBus;
use crate::status::{PartitionStatus, ServiceStatus};
use crate::{Error, Kind, Result};

/// A part, whatever its database.
#[async_trait]
pub(super) trait Member: Send + Sync {
    fn label(&self) -> String;
    fn service(&self) -> &ServiceName;
    /// Whether it can do anything: it runs, and reaches the bus if anybody does.
    fn is_working(&self) -> bool;
    async fn standing(&self) -> Result<Standing>;
    /// The services that it knows, after a look.
    async fn peers(&self) -> Result<BTreeSet<String>>;
}

/// Where a part stands. The cursors were looked at before the outbox.
pub(super) struct Standing {
    pub(super) label: String,
    pub(super) service: ServiceName,
    /// How its topic is divided, as its database says.
    pub(super) generations: Generations,
    /// What it subscribes to now.
    pub(super) reads: Vec<Reads>,
    /// The builds that its views are to be switched to.
    pub(super) switches: Vec<String>,
    pub(super) cursors: Vec<CursorState>,
    pub(super) outbox: Depth,
    /// The world's time when it was looked at.
    pub(super) now: Timestamp,
    /// The first parked event of each key, by subscription.
    pub(super) parked: Vec<(String, ParkedHead)>,
    /// Whether an operator asked for something that was not done yet.
    pub(super) asked: bool,
    pub(super) status: ServiceStatus,
}

impl Standing {
    fn cursor(&self, subscription: &str, topic: &ServiceName, partition: u32) -> Option<&CursorState> {
        self.cursors.iter().find(|cursor| {
            cursor.subscription == subscription && cursor.topic == *topic && cursor.partition == partition
        })
    }
}

/// A subscription that a part has, and its topics.
pub(crate) struct Reads {
    pub(crate) subscription: String,
    pub(crate) topics: Vec<ServiceName>,
}

/// A topic and where it ends.
pub(super) struct Ends {
    pub(super) topic: Topic,
    pub(super) tails: Vec<Tail>,
}

/// What one look found.
#[derive(Default, PartialEq)]
pub(super) struct Look {
    /// What is left to do, in words.
    pub(super) open: Vec<String>,
    /// What is parked and not due, in words.
    pub(super) parked: Vec<String>,
    /// Where everything stood: part or topic, subscription, partition, sequence.
    places: Vec<(String, String, u32, u64)>,
}

impl Look {
    /// Looks at everybody who works.
    pub(super) async fn at(members: &[Arc<dyn Member>], bus: &WorldBus) -> Result<Self> {
        let mut ends = Vec::new();
        for topic in bus.topics().await? {
            ends.push(Ends { tails: bus.tails(&topic.name).await?, topic });
        }
        let mut look = Self::default();
        look.topics(&ends);
        let working: Vec<_> = members.iter().filter(|member| member.is_working()).collect();
        for member in &working {
            match member.standing().await {
                Ok(standing) => look.part(&standing, &ends),
                // It crashed in between, and so is not waited for.
                Err(_) if !member.is_working() => {}
                Err(error) => look.open.push(format!("{}: its database: {error}", member.label())),
            }
        }
        if look.open.is_empty() {
            look.open = strangers(&working).await?;
        }
        Ok(look)
    }

    /// A look that was not possible.
    pub(super) fn failed(error: &Error) -> Self {
        Self { open: vec![error.to_string()], ..Self::default() }
    }

    fn topics(&mut self, ends: &[Ends]) {
        for end in ends {
            let name = end.topic.name.to_string();
            let places =
                end.tails.iter().map(|tail| (name.clone(), String::new(), tail.partition, tail.sequence));
            self.places.extend(places);
        }
    }

    fn part(&mut self, standing: &Standing, ends: &[Ends]) {
        let label = &standing.label;
        if standing.outbox.rows > 0 {
            let relay = standing.status.relay.as_ref().map_or("no relay", |relay| relay.state.as_str());
            self.open
                .push(format!("{label}: {} in its outbox; its relay: {relay}", events(standing.outbox.rows)));
        }
        if let Some(end) = ends.iter().find(|end| end.topic.name == standing.service)
            && !end.topic.generations.continue_from(&standing.generations)
        {
            self.open
                .push(format!("{label}: its topic is not divided on the bus yet: {}", standing.generations));
        }
        if let Some(due) = standing.outbox.next_due.filter(|due| *due <= standing.now) {
            self.open.push(format!("{label}: an event that was due at {due} is not in its outbox"));
        }
        if standing.asked {
            self.open.push(format!("{label}: an operator's request is not carried out yet"));
        }
        for (subscription, head) in &standing.parked {
            self.parked(standing, subscription, head);
        }
        let waiting = standing.switches.iter();
        self.open
            .extend(waiting.map(|build| format!("{label}: its readers are not switched to {build} yet")));
        for Reads { subscription, topics } in &standing.reads {
            for end in ends.iter().filter(|end| topics.contains(&end.topic.name)) {
                for tail in &end.tails {
                    self.partition(standing, subscription, end, tail);
                }
            }
        }
    }

    /// A parked key is left to do if its time has come; else it is for the test to mean it.
    fn parked(&mut self, standing: &Standing, subscription: &str, head: &ParkedHead) {
        let (label, topic, partition) = (&standing.label, &head.topic, head.partition);
        let why = head.tries.error.as_deref().unwrap_or("not tried yet");
        let events = events(head.events);
        let line = format!(
            "{label}: subscription {subscription} has {events} of a key parked in {topic}/{partition}: {why}"
        );
        let cursor = standing.cursor(subscription, topic, partition);
        let paused = cursor.is_some_and(|cursor| cursor.paused_by.is_some());
        // Partitions of earlier generations have lower numbers, so what waits there is ahead.
        let is_ahead = |(its, other): &(String, ParkedHead)| {
            let is_earlier = other.topic == *topic && other.partition < partition;
            its == subscription && other.key_hash == head.key_hash && is_earlier
        };
        let paused = paused || standing.parked.iter().any(is_ahead);
        let due = head.tries.attempts == 0 || head.tries.retry_at.is_some_and(|at| at <= standing.now);
        if due && !paused { self.open.push(line) } else { self.parked.push(line) }
    }

    fn partition(&mut self, standing: &Standing, subscription: &str, end: &Ends, tail: &Tail) {
        let topic = &end.topic.name;
        let cursor = standing.cursor(subscription, topic, tail.partition);
        let place = format!("{}: subscription {subscription} in {topic}/{}", standing.label, tail.partition);
        let Some(cursor) = cursor else {
            self.open
                .push(format!("{place} has not begun{}", why(standing, subscription, topic, tail.partition)));
            return;
        };
        let sequence = cursor.cursor.sequence;
        self.places.push((
            standing.label.clone(),
            format!("{subscription}/{topic}"),
            tail.partition,
            sequence,
        ));
        let is_elsewhere = sequence < tail.sequence || cursor.cursor.incarnation != end.topic.incarnation;
        // What an operator paused is not waited for, nor what waits for it.
        let earlier = end.topic.generations.before(tail.partition);
        let paused = earlier.chain([tail.partition]).any(|partition| {
            standing.cursor(subscription, topic, partition).is_some_and(|cursor| cursor.paused_by.is_some())
        });
        if is_elsewhere && !paused {
            let behind = events(tail.sequence.saturating_sub(sequence));
            let why = why(standing, subscription, topic, tail.partition);
            self.open.push(format!("{place} is {behind} behind, at {sequence} of {}{why}", tail.sequence));
        }
    }
}

fn events(count: u64) -> String {
    if count == 1 { "1 event".into() } else { format!("{count} events") }
}

/// What the part itself says of a subscription that is behind.
fn why(standing: &Standing, subscription: &str, topic: &ServiceName, partition: u32) -> String {
    let Some(status) = standing.status.subscriptions.iter().find(|status| status.name == subscription) else {
        return String::new();
    };
    let of_partition = |status: &&PartitionStatus| {
        status.topic == topic.as_str() && status.partition == partition && status.error.is_some()
    };
    let mut why = String::new();
    if let Some(partition) = status.partitions.iter().find(of_partition) {
        let error = partition.error.as_deref().unwrap_or_default();
        write!(why, "; {:?} after {} attempts: {error}", partition.state, partition.attempts).ok();
    }
    if let Some(detail) = &status.detail {
        write!(why, "; {detail}").ok();
    }
    why
}

/// Everybody must know everybody who works, for a gather to ask them all.
async fn strangers(working: &[&Arc<dyn Member>]) -> Result<Vec<String>> {
    let mut open = Vec::new();
    for member in working {
        let known = member.peers().await?;
        for other in working.iter().filter(|other| !known.contains(other.service().as_str())) {
            open.push(format!("{}: does not know {} yet", member.label(), other.service()));
        }
    }
    Ok(open)
}

/// What a world that did not settle says.
pub(super) fn unsettled(open: &[String], seed: u64, within: Duration) -> String {
    let moving = [String::from("nothing in particular, but something moves all the time")];
    let open = if open.is_empty() { &moving[..] } else { open };
    let open = open.iter().map(|line| format!("\n  - {line}")).collect::<String>();
    format!("the world (seed {seed}) did not settle within {within:?}; still open:{open}")
}

/// What it says when something was parked.
pub(super) fn parked(parked: &[String], seed: u64) -> String {
    let parked = parked.iter().map(|line| format!("\n  - {line}")).collect::<String>();
    format!(
        "the world (seed {seed}) has settled, but for what is parked (a test that means that says so: world.expect_parked()):{parked}"
    )
}

/// What it says while nothing can settle.
pub(super) fn bus_away() -> Error {
    Error::new(
        Kind::BusAway,
        "the bus is away, so nothing can settle; bring it back first: world.bus().back()",
    )
}
