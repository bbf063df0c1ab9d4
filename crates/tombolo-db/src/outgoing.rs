//! What a transaction is about to publish: buffered until the commit writes it to the outbox.
//!
//! takes: typed events · writes: nothing yet · commits: with the transaction · if we crash here: nothing
//! happened · if it repeats: consequences get the same ids.
//!
//! An event that is published at a later time is encoded here and now: its id is given, its time is the one at which it is
//! due, and whatever its type becomes meanwhile, what was meant is what will be published.
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
    /// The hash of its key: its stripe, and its partition once the commit knows how the topic is divided.
    pub key_hash: KeyHash,
    /// Its type.
    pub event_type: String,
    /// The stored bytes.
    pub bytes: Bytes,
    /// When it is to be published; none for "with the commit".
    pub due: Option<Timestamp>,
}

/// What a commit has to write, each in the order of publishing.
#[derive(Debug, Default)]
pub struct Taken {
    /// For the outbox.
    pub rows: Vec<Row>,
    /// For later: each has a due time.
    pub later: Vec<Row>,
}

impl Taken {
    /// Whether nothing is to be written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.later.is_empty()
    }

    /// The lock stripes of everything, sorted and without repeats, so that the order of locking is the same everywhere.
    #[must_use]
    pub fn stripes(&self, stripes: u32) -> Vec<u32> {
        let keys = self.rows.iter().chain(&self.later).map(|row| row.key_hash);
        sorted_stripes(keys, stripes)
    }
}

/// The lock stripes of `keys`, sorted and without repeats.
#[must_use]
pub fn sorted_stripes(keys: impl Iterator<Item = KeyHash>, stripes: u32) -> Vec<u32> {
    let set: BTreeSet<u32> = keys.map(|key| key.stripe(stripes)).collect();
    set.into_iter().collect()
}

/// The hash of a stored event's key; of its id if the bytes are not an event, which then stands for itself.
#[cfg(any(feature = "sqlite", feature = "postgres", feature = "documents"))]
pub(crate) fn key_of(id: EventId, bytes: Bytes) -> KeyHash {
    match Envelope::decode(bytes) {
        Ok(envelope) => KeyHash::of(&envelope.key),
        Err(_) => KeyHash::of(&id.to_string()),
    }
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
        self.buffer(event, None)
    }

    /// Buffers `event` to be published when `due` has come: at once if that is past.
    ///
    /// It has its id from now on, and carries `due` as its time. It has no place in its topic before it is due; then it
    /// comes after everything that its key published before.
    ///
    /// # Errors
    /// As [`Outgoing::publish`].
    pub fn publish_at<E: Event>(&mut self, event: &E, due: Timestamp) -> Result<EventId> {
        self.buffer(event, Some(due))
    }

    /// Takes back an event that this transaction was to publish later; whether it was one of its own.
    ///
    /// # Errors
    /// `Refused` in a view, which poisons the transaction.
    pub fn withdraw(&mut self, id: EventId) -> Result<bool> {
        self.mark_used();
        if let Origin::View { view, .. } = &self.origin {
            let error = self.not_in_a_view(view, "withdraws an event");
            return self.poison_on(Err(error));
        }
        let own = self.rows.iter().position(|row| row.id == id && row.due.is_some());
        Ok(own.map(|at| self.rows.remove(at)).is_some())
    }

    fn buffer<E: Event>(&mut self, event: &E, due: Option<Timestamp>) -> Result<EventId> {
        self.mark_used();
        let buffered = self.try_publish(event, due);
        self.poison_on(buffered)
    }

    fn try_publish<E: Event>(&mut self, event: &E, due: Option<Timestamp>) -> Result<EventId> {
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
            time: due.map_or_else(Timestamp::now, |due| due.max(Timestamp::now())),
            content_type: tombolo_event::envelope::JSON.to_owned(),
            trace: self.trace,
            correlation: self.correlation.clone(),
            causation,
            extensions: tombolo_event::envelope::Extensions::new(),
            data: data.into(),
        };
        let bytes = envelope.encode();
        envelope.check(&bytes)?;
        let key_hash = KeyHash::of(&envelope.key);
        self.rows.push(Row { id, key_hash, event_type: envelope.event_type, bytes, due });
        Ok(id)
    }

    fn check_allowed(&self, event_type: &str) -> Result<()> {
        let service = &self.publisher.service;
        if let Origin::View { view, .. } = &self.origin {
            return Err(self.not_in_a_view(view, &format!("publishes {event_type}")));
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
                    "the outbox of service {service} is full, with what it keeps for later; it empties when the bus can be reached and what is kept becomes due"
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

    fn not_in_a_view(&self, view: &str, what: &str) -> Error {
        let service = &self.publisher.service;
        Error::new(
            Kind::Refused,
            format!(
                "view {view:?} of service {service} {what}, but views only keep their tables, because they are rebuilt; do it in a reactor (`.react(…)`)"
            ),
        )
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

    /// What the store calls a collection of the view that is being kept.
    #[cfg(any(feature = "documents", feature = "mongodb"))]
    pub(crate) fn collection(&self, name: &str) -> Result<String> {
        let why = match &self.origin {
            Origin::View { tables: Some(tables), .. } => return tables.collection(name),
            Origin::View { view, tables: None } => {
                format!(
                    "view {view:?} has no collections of its own: declare them with `.tables(\"{{{name}}}\")`"
                )
            }
            _ => "only a handler of a view writes its collections; others read them through `app.view(…)`"
                .to_owned(),
        };
        Err(Error::new(Kind::View, format!("found collection {name:?} of a view, but {why}")))
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

    /// What the commit has to write.
    ///
    /// # Errors
    /// `Poisoned` if anything failed before.
    pub fn take(&mut self) -> Result<Taken> {
        if let Some(why) = &self.poison {
            return Err(Error::new(
                Kind::Poisoned,
                format!("the transaction was rolled back, because earlier in it: {why}"),
            ));
        }
        let (rows, later) = std::mem::take(&mut self.rows).into_iter().partition(|row| row.due.is_none());
        Ok(Taken { rows, later })
    }

    /// Tells that everything that was taken is committed, its events at `positions`.
    #[cfg_attr(
        not(any(
            feature = "sqlite",
            feature = "postgres",
            feature = "mysql",
            feature = "documents",
            feature = "mongodb"
        )),
        expect(dead_code, reason = "only a database commits")
    )]
    pub(crate) fn committed(&self, positions: &[Position]) {
        if let Some(written) = &self.written {
            let mut written = written.lock().unwrap_or_else(PoisonError::into_inner);
            positions.iter().for_each(|position| written.note(position.clone()));
        }
        (self.publisher.wake)();
    }

    /// The ids among `rows` that follow from an event, and so come again when it is handled again.
    #[must_use]
    pub fn consequences(rows: &[Row]) -> Vec<Uuid> {
        rows.iter().map(|row| row.id.0).filter(|id| id.get_version() == Some(Version::Sha1)).collect()
    }

    /// Who publishes.
    #[must_use]
    pub fn publisher(&self) -> &Publisher {
        &self.publisher
    }
}
