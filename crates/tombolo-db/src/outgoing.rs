//! What a transaction is about to publish: buffered until the commit writes it to the outbox.
//!
//! takes: typed events · writes: nothing yet · commits: with the transaction · if we crash here: nothing
//! happened · if it repeats: consequences get the same ids.
//!
//! Invariant: what cannot be published poisons the transaction, so that state never commits without its events.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use jiff::Timestamp;
use sqlx::SqlStr;
use tombolo_event::{
    Consequence, Envelope, Event, EventId, KeyHash, Position, Positions, ServiceName, TraceContext,
};
use uuid::{Uuid, Version};

use crate::{Error, Kind, Result, Tables};

/// The most events of one transaction.
pub const EVENTS_PER_TRANSACTION_MAX: usize = 10_000;

/// Who publishes, what it may publish, and how the relay hears of it. Cheap to clone; one for each service.
#[derive(Clone)]
pub struct Publisher {
    /// The service: the source of its events and the name of its topic.
    pub service: ServiceName,
    /// The number of partitions of its topic.
    pub partitions: u32,
    /// The types that it declared.
    pub declared: Arc<BTreeSet<String>>,
    /// Set while the outbox is full.
    pub full: Arc<AtomicBool>,
    /// Wakes the relay after a commit; only a hint.
    pub wake: Arc<dyn Fn() + Send + Sync>,
}

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher").field("service", &self.service).finish_non_exhaustive()
    }
}

/// Why a transaction is open, and so how its events are identified and traced.
#[derive(Debug, Clone, Default)]
pub enum Origin {
    /// A request, or anything else that is not an event: new ids.
    #[default]
    Request,
    /// A reactor handles an event: ids derived from it.
    Reaction {
        /// The subscription.
        subscription: String,
        /// The event that is being handled.
        cause: EventId,
    },
    /// A view, which may not publish.
    View {
        /// The subscription of its build.
        view: String,
        /// The build's own tables, if the view declared them.
        tables: Option<Tables>,
    },
}

/// The events that a transaction publishes when it commits.
#[derive(Debug)]
pub struct Outgoing {
    publisher: Publisher,
    origin: Origin,
    ordinal: u32,
    /// The span in which events are published from here on.
    pub trace: Option<TraceContext>,
    /// The correlation that events carry from here on.
    pub correlation: Option<String>,
    /// Where the commit notes the places of the events, for whoever answers for the work around it.
    pub written: Option<Arc<Mutex<Positions>>>,
    rows: Vec<Row>,
    poison: Option<String>,
    used: Arc<AtomicBool>,
}

/// An event that waits to be written to the outbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its identity.
    pub id: EventId,
    /// The hash of its key: its stripe.
    pub key_hash: KeyHash,
    /// Its partition.
    pub partition: u32,
    /// Its type.
    pub event_type: String,
    /// The stored bytes.
    pub bytes: Bytes,
}

impl Outgoing {
    /// Nothing yet.
    #[must_use]
    pub fn new(publisher: Publisher) -> Self {
        Self {
            publisher,
            origin: Origin::Request,
            ordinal: 0,
            trace: None,
            correlation: None,
            written: None,
            rows: Vec::new(),
            poison: None,
            used: Arc::default(),
        }
    }

    /// Says what the transaction handles from here on.
    pub fn enter(&mut self, origin: Origin) {
        self.origin = origin;
        self.ordinal = 0;
    }

    /// Buffers `event`.
    ///
    /// # Errors
    /// `Refused` for a type that was not declared, a view, a wrong key or size; `Full` while the outbox is full. Either poisons the transaction.
    pub fn publish<E: Event>(&mut self, event: &E) -> Result<EventId> {
        self.mark_used();
        let buffered = self.try_publish(event);
        if let Err(error) = &buffered {
            self.poison(&error.to_string());
        }
        buffered
    }

    fn try_publish<E: Event>(&mut self, event: &E) -> Result<EventId> {
        self.check_allowed(E::TYPE)?;
        let data = serde_json::to_vec(event).map_err(|error| {
            Error::new(Kind::Refused, format!("an event of type {} cannot be written as JSON", E::TYPE))
                .because(error)
        })?;
        let (id, causation) = self.next_id();
        let envelope = Envelope {
            id,
            source: self.publisher.service.to_string(),
            event_type: E::TYPE.to_owned(),
            key: event.key(),
            time: Timestamp::now(),
            content_type: tombolo_event::envelope::JSON.to_owned(),
            trace: self.trace,
            correlation: self.correlation.clone(),
            causation,
            data: data.into(),
        };
        let bytes = envelope.encode();
        envelope.check(&bytes)?;
        let key_hash = KeyHash::of(&envelope.key);
        let partition = key_hash.partition(self.publisher.partitions);
        self.rows.push(Row { id, key_hash, partition, event_type: envelope.event_type, bytes });
        Ok(id)
    }

    fn check_allowed(&self, event_type: &str) -> Result<()> {
        let service = &self.publisher.service;
        if let Origin::View { view, .. } = &self.origin {
            return Err(Error::new(
                Kind::Refused,
                format!(
                    "view {view:?} of service {service} publishes {event_type}, but views only keep their tables, because they are rebuilt; publish from a reactor (`.on(…)`)"
                ),
            ));
        }
        if !self.publisher.declared.contains(event_type) {
            let declared: Vec<&str> = self.publisher.declared.iter().map(String::as_str).collect();
            return Err(Error::new(
                Kind::Refused,
                format!(
                    "service {service} publishes {event_type}, which it did not declare (it declared: {}); add `.publishes::<…>()` where the service is built",
                    declared.join(", ")
                ),
            ));
        }
        if self.publisher.full.load(Ordering::Relaxed) {
            return Err(Error::new(
                Kind::Full,
                format!(
                    "the outbox of service {service} is full; it empties when the bus can be reached again"
                ),
            ));
        }
        if self.rows.len() >= EVENTS_PER_TRANSACTION_MAX {
            return Err(Error::new(
                Kind::Refused,
                format!("one transaction publishes more than {EVENTS_PER_TRANSACTION_MAX} events; split it"),
            ));
        }
        Ok(())
    }

    fn next_id(&mut self) -> (EventId, Option<EventId>) {
        let Origin::Reaction { subscription, cause } = &self.origin else { return (EventId::new(), None) };
        let of = Consequence {
            service: self.publisher.service.as_str(),
            subscription,
            cause: *cause,
            ordinal: self.ordinal,
        };
        let id = EventId::of_consequence(&of);
        self.ordinal += 1;
        (id, Some(*cause))
    }

    /// `text` with the tables of the view that is being kept in the places of their names in braces.
    ///
    /// # Errors
    /// `View` for a name that its tables do not have, or if no view with tables of its own is being kept.
    pub fn sql(&self, text: &'static str) -> Result<SqlStr> {
        let why = match &self.origin {
            Origin::View { tables: Some(tables), .. } => return tables.sql(text),
            Origin::View { view, tables: None } => {
                format!("view {view:?} has no tables of its own: declare them with `.tables(…)`")
            }
            _ => "only a handler of a view writes its tables; others read them through `app.view(…)`"
                .to_owned(),
        };
        Err(Error::new(Kind::View, format!("found SQL for the tables of a view ({text:?}), but {why}")))
    }

    /// Says that something was done in the transaction: a statement was run or an event published.
    pub fn mark_used(&self) {
        self.used.store(true, Ordering::Relaxed);
    }

    /// Whether something was done in the transaction.
    #[must_use]
    pub fn is_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether something was done in the transaction; gone once it has ended. For whoever has to know that a transaction
    /// is open without holding it.
    #[must_use]
    pub fn used(&self) -> Weak<AtomicBool> {
        Arc::downgrade(&self.used)
    }

    /// Makes a commit impossible.
    pub fn poison(&mut self, why: &str) {
        self.poison.get_or_insert_with(|| why.to_owned());
    }

    /// Passes on what was done, and makes a commit impossible if it failed.
    pub(crate) fn poison_on<T>(&mut self, done: Result<T>) -> Result<T> {
        if let Err(error) = &done {
            self.poison(&error.to_string());
        }
        done
    }

    /// What the commit has to write, in order.
    ///
    /// # Errors
    /// `Poisoned` if anything failed before.
    pub fn take(&mut self) -> Result<Vec<Row>> {
        match &self.poison {
            Some(why) => Err(Error::new(
                Kind::Poisoned,
                format!("the transaction was rolled back, because earlier in it: {why}"),
            )),
            None => Ok(std::mem::take(&mut self.rows)),
        }
    }

    /// Tells that the events are committed, at `positions`.
    pub(crate) fn committed(&self, positions: &[Position]) {
        if let Some(written) = &self.written {
            let mut written = written.lock().unwrap_or_else(PoisonError::into_inner);
            positions.iter().for_each(|position| written.note(position.clone()));
        }
        if !positions.is_empty() {
            (self.publisher.wake)();
        }
    }

    /// The ids among `rows` that follow from an event, and so come again when it is handled again.
    #[must_use]
    pub fn consequences(rows: &[Row]) -> Vec<Uuid> {
        rows.iter().map(|row| row.id.0).filter(|id| id.get_version() == Some(Version::Sha1)).collect()
    }

    /// The lock stripes of `rows`, sorted and without repeats, so that the order of locking is the same everywhere.
    #[must_use]
    pub fn stripes(rows: &[Row], stripes: u32) -> Vec<u32> {
        let set: BTreeSet<u32> = rows.iter().map(|row| row.key_hash.stripe(stripes)).collect();
        set.into_iter().collect()
    }

    /// Who publishes.
    #[must_use]
    pub fn publisher(&self) -> &Publisher {
        &self.publisher
    }
}
