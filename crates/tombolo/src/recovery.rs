//! Restores and clones: what the database and the bus say of the service's topic is compared before anybody leads, a
//! difference halts the service's relay for good, and an operator's word ends it.
//!
//! takes: what both sides say, an operator's decision · writes: the halt; then the database's numbers and marks ·
//! commits when: the halt, or the decision with all that follows from it, is in the database · if we crash here: still
//! halted, the epoch at the bus may be raised · if it repeats: the halt is over, and the repeat is refused.
//!
//! Invariant: a copy of a database writes nothing anywhere until it is known that the bus knows nothing which it does
//! not, so it never climbs over its original, however often it is started.

mod finding;
mod alive;
mod report;
mod door;

use std::sync::Arc;

use futures_util::StreamExt;
use jiff::Timestamp;
use tokio::sync::{Notify, watch};
use tombolo_bus::{Bus, Read, Tail, Topic, TopicSpec, moving::is_moved};
use tombolo_db::port::recovery::{Adopted, Adoption, Decision, Halt, Standing};
use tombolo_db::{Mark, Outbox, Publisher};
use tombolo_event::{Cursor, EventId, Generations, Incarnation};
use uuid::Uuid;

use crate::{Error, Kind, Result};
use alive::Leads;
pub(crate) use alive::Questions;
pub(crate) use door::routes;
pub use finding::{Difference, Finding, Side, What};
pub use report::{Choice, Decide, Decided, HaltReport, InPartition, PastHalt, RecoveryReport};

/// Both sides, and who asks.
pub(crate) struct Recovery {
    pub(crate) outbox: Arc<dyn Outbox>,
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) publisher: Publisher,
    is_relayed: bool,
    /// Who this process is to the leases.
    pub(crate) holder: Uuid,
    /// Woken when a halt has ended.
    pub(crate) decided: Notify,
    /// Whether the database is known to be the one that counts.
    counts: watch::Sender<bool>,
}

/// How both sides stand to each other.
pub(crate) enum Examined {
    /// Whoever leads now finds what it expects.
    Agree(Topic),
    /// Somebody else leads.
    Led,
}

/// Both sides as they are now.
struct Look {
    standing: Standing,
    topic: Topic,
    tails: Vec<Tail>,
    finding: Option<Finding>,
}

/// What the bus has in one partition of which the database does not know that it is published.
struct OnBus {
    /// Whether the database's own last published event is there, so that what follows it is what the database does not know.
    is_proven: bool,
    ids: Vec<EventId>,
}

impl Recovery {
    pub(crate) fn new(
        outbox: Arc<dyn Outbox>,
        bus: Arc<dyn Bus>,
        publisher: Publisher,
        is_relayed: bool,
        holder: Uuid,
    ) -> Self {
        // Whoever publishes nothing has nothing to be compared.
        let counts = watch::Sender::new(!is_relayed);
        Self { outbox, bus, publisher, is_relayed, holder, decided: Notify::new(), counts }
    }

    /// Whether the service has a topic: it publishes, or ships what other programs publish.
    pub(crate) fn is_relayed(&self) -> bool {
        self.is_relayed
    }

    /// Waits until the database is known to be the one that counts (`true`), or known not to be.
    pub(crate) async fn until(&self, counts: bool) {
        // The sender is in here, so it outlives the wait.
        self.counts.subscribe().wait_for(|now| *now == counts).await.ok();
    }

    /// Looks whether this process may lead. Writes nothing if it may.
    ///
    /// # Errors
    /// `Restored` if the database is halted, or is halted now because the two sides do not agree.
    pub(crate) async fn examine(&self) -> Result<Examined> {
        let examined = self.try_examine().await?;
        self.counts.send_replace(true);
        Ok(examined)
    }

    async fn try_examine(&self) -> Result<Examined> {
        let standing = self.outbox.standing(self.holder).await?;
        if let Some(halt) = &standing.halt {
            return Err(self.halted(halt));
        }
        if !standing.is_free {
            return Ok(Examined::Led);
        }
        let topic = self.topic(&standing).await?;
        let tails = self.bus.tails(&topic.name).await?;
        if self.compare(&standing, &topic, &tails).await?.is_none() {
            return match self.who_leads(&standing).await? {
                Leads::Nobody => Ok(Examined::Agree(topic)),
                Leads::Here => Ok(Examined::Led),
                Leads::Elsewhere => {
                    Err(self.halt(&Finding::led_elsewhere(&standing, &topic), standing.epoch).await)
                }
            };
        }
        // Once more with the database as it is after the bus was asked: a relay of our own may have worked in between.
        let again = self.outbox.standing(self.holder).await?;
        if has_moved(&standing, &again) {
            return Err(moving());
        }
        let Some(finding) = self.compare(&again, &topic, &tails).await? else {
            return Ok(Examined::Agree(topic));
        };
        // A row that was looked for may have been removed after the look: by a relay of our own whose lease has ended.
        match has_moved(&again, &self.outbox.standing(self.holder).await?) {
            true => Err(moving()),
            false => Err(self.halt(&finding, again.epoch).await),
        }
    }

    /// The same for the one who leads, with the tails that the bus told when it fenced all others.
    ///
    /// # Errors
    /// `Restored` as before.
    pub(crate) async fn examine_leading(&self, topic: &Topic, epoch: u64, tails: &[Tail]) -> Result<()> {
        let standing = self.outbox.standing(self.holder).await?;
        let raised = Topic { epoch, ..topic.clone() };
        match self.compare(&standing, &raised, tails).await? {
            Some(finding) if standing.epoch == epoch => Err(self.halt(&finding, epoch).await),
            _ => Ok(()),
        }
    }

    /// The topic as it is on the bus; made if nobody has made it yet. Then it begins with the first generation, because rows may
    /// wait that have their numbers there.
    async fn topic(&self, standing: &Standing) -> Result<Topic> {
        if !self.is_relayed {
            let service = &self.publisher.service;
            return Err(Error::new(
                Kind::Undecided,
                format!(
                    "service {service} publishes nothing, so there is nothing about which its database and the bus could differ"
                ),
            ));
        }
        let first = standing.generations.beside(0).map_or(1, |first| first.end);
        let spec = TopicSpec::new(self.publisher.service.clone(), Generations::first(first)?);
        let topic = self.bus.ensure_topic(&spec).await?;
        if is_moved(topic.epoch) {
            return Err(moved(&topic));
        }
        Ok(topic)
    }

    async fn compare(&self, standing: &Standing, topic: &Topic, tails: &[Tail]) -> Result<Option<Finding>> {
        let mut ids = Vec::with_capacity(tails.len());
        for tail in tails {
            let counted = finding::counted(standing, tail.partition);
            let waits = tail.sequence > counted.removed.sequence && tail.sequence <= counted.numbered;
            ids.push(match waits {
                true => self.outbox.numbered(tail.partition, tail.sequence).await?,
                false => None,
            });
        }
        Ok(finding::compare(standing, topic, tails, &ids))
    }

    /// Writes down that nobody may lead, and says why.
    async fn halt(&self, finding: &Finding, epoch: u64) -> Error {
        let halt = match serde_json::to_string(finding) {
            Ok(finding) => Halt { id: Uuid::now_v7(), found_at: Timestamp::now(), finding },
            Err(error) => return Error::new(Kind::Restored, finding.to_string()).because(error),
        };
        match self.outbox.halt(&halt, epoch, self.holder).await {
            Ok(true) => self.halted(&halt),
            Ok(false) => moving(),
            Err(error) => error.into(),
        }
    }

    fn halted(&self, halt: &Halt) -> Error {
        self.counts.send_replace(false);
        let service = &self.publisher.service;
        Error::new(
            Kind::Restored,
            format!(
                "{}. Nothing is published, and nothing is passed over, until somebody decides: see `tombolo recover {service}`",
                finding_of(halt)
            ),
        )
    }

    /// Ends the halt because both sides agree again: the bus, or the database, was put right.
    ///
    /// # Errors
    /// `Undecided` if they do not, or if the halt is over.
    pub(crate) async fn resume(&self, decision: &Decision) -> Result<()> {
        if let Some(finding) = self.look().await?.finding {
            return Err(Error::new(Kind::Undecided, format!("nothing was changed, because {finding}")));
        }
        self.outbox.resume(decision).await.map_err(undecided)?;
        self.decided.notify_one();
        Ok(())
    }

    /// Ends the halt by taking the bus's word for what is published. First everybody else who publishes under this name
    /// is fenced, so that what the bus says is its last word.
    ///
    /// # Errors
    /// `Undecided` if the halt is over, or somebody else was faster.
    pub(crate) async fn take_bus(&self, decision: &Decision) -> Result<Adopted> {
        let standing = self.outbox.standing(self.holder).await?;
        if standing.halt.as_ref().map(|halt| halt.id) != Some(decision.halt) {
            let message = format!(
                "nothing was changed: the service is not halted by {} any more; look again with `tombolo recover {}`",
                decision.halt, self.publisher.service
            );
            return Err(Error::new(Kind::Undecided, message));
        }
        let topic = self.topic(&standing).await?;
        if self.who_leads(&standing).await? == Leads::Elsewhere {
            let finding = Finding::led_elsewhere(&standing, &topic);
            let message =
                format!("nothing was changed, because {finding}; end the service that uses it first");
            return Err(Error::new(Kind::Undecided, message));
        }
        let epoch = standing.epoch.max(topic.epoch) + 1;
        let tails = self.bus.raise_epoch(&topic.name, topic.incarnation, epoch).await?;
        let mut on_bus = Vec::new();
        for tail in &tails {
            on_bus.extend(self.on_bus(&standing, &topic, tail).await?.ids);
        }
        let tails = tails.iter().map(mark).collect();
        let generations = topic.generations.clone();
        let adoption = Adoption { incarnation: topic.incarnation, epoch, generations, tails, on_bus };
        let adopted = self.outbox.adopt(decision, &adoption).await.map_err(undecided)?;
        tracing::warn!(service = %self.publisher.service, by = decision.by, "the bus's word was taken: {adopted}");
        self.decided.notify_one();
        Ok(adopted)
    }

    /// How it is now, whether halted or not. Changes nothing.
    async fn look(&self) -> Result<Look> {
        let topic = self.topic(&self.outbox.standing(self.holder).await?).await?;
        let tails = self.bus.tails(&topic.name).await?;
        let standing = self.outbox.standing(self.holder).await?;
        let mut finding = self.compare(&standing, &topic, &tails).await?;
        if finding.is_none() && self.who_leads(&standing).await? == Leads::Elsewhere {
            finding = Some(Finding::led_elsewhere(&standing, &topic));
        }
        Ok(Look { standing, topic, tails, finding })
    }

    /// Reads what the bus has behind what the database knows to be published; all of it, if that is not there.
    async fn on_bus(&self, standing: &Standing, topic: &Topic, tail: &Tail) -> Result<OnBus> {
        // Of a partition that the database does not have it knows that nothing is published there.
        let counted = finding::counted(standing, tail.partition);
        let proven = published(topic.incarnation, &counted.removed);
        if let Some(after) = proven.filter(|after| after.sequence <= tail.sequence) {
            match self.ids_after(topic, tail, after).await {
                Ok(ids) => return Ok(OnBus { is_proven: true, ids }),
                Err(error) if !is_elsewhere(&error) => return Err(error.into()),
                Err(_) => {}
            }
        }
        let ids = self.ids_after(topic, tail, Cursor::start(topic.incarnation)).await?;
        Ok(OnBus { is_proven: false, ids })
    }

    async fn ids_after(
        &self,
        topic: &Topic,
        tail: &Tail,
        after: Cursor,
    ) -> tombolo_bus::Result<Vec<EventId>> {
        let mut batches = self.bus.read(Read::to_tail(&topic.name, tail.partition, after)).await?;
        let mut ids = Vec::new();
        while let Some(batch) = batches.next().await {
            ids.extend(batch?.records.iter().map(|record| record.id));
        }
        Ok(ids)
    }
}

/// Where the database's last published event is; none if it published nothing.
fn published(incarnation: Incarnation, removed: &Mark) -> Option<Cursor> {
    match removed.id {
        Some(id) => Some(Cursor::at(incarnation, removed.sequence, id)),
        None => (removed.sequence == 0).then(|| Cursor::start(incarnation)),
    }
}

/// Whether the place is not in this log.
fn is_elsewhere(error: &tombolo_bus::Error) -> bool {
    use tombolo_bus::Kind;
    matches!(error.kind(), Kind::OtherId | Kind::BeyondTail | Kind::OtherIncarnation)
}

fn mark(tail: &Tail) -> Mark {
    Mark { partition: tail.partition, sequence: tail.sequence, id: tail.id }
}

/// Whether somebody led, or removed what was done, between two looks.
fn has_moved(before: &Standing, after: &Standing) -> bool {
    let removed =
        |standing: &Standing| standing.partitions.iter().map(|counted| counted.removed).collect::<Vec<_>>();
    before.epoch != after.epoch || !after.is_free || removed(before) != removed(after)
}

fn moved(topic: &Topic) -> Error {
    Error::new(
        Kind::Bus,
        format!(
            "topic {} was moved to another bus by `tombolo topics copy`, and is sealed on this one; start the service with the address of the other (TOMBOLO_BUS). Until then its outbox fills",
            topic.name
        ),
    )
}

fn moving() -> Error {
    Error::new(Kind::DatabaseAway, "another relay of this service is at work; looks again")
}

/// What was found, in words; as it stands in the database if it is not ours to read.
fn finding_of(halt: &Halt) -> String {
    serde_json::from_str::<Finding>(&halt.finding)
        .map_or_else(|_| halt.finding.clone(), |finding| finding.to_string())
}

fn undecided(error: tombolo_db::Error) -> Error {
    match error.kind() {
        tombolo_db::Kind::Mismatch => Error::new(Kind::Undecided, error.to_string()).because(error),
        _ => error.into(),
    }
}
