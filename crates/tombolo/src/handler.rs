//! Handlers: the user's own `async fn(Event, &mut Tx)`, and what it answers.
//!
//! Invariant: an error through `?` counts against the event, a rejection is final, and a failure of the service's
//! own database is neither.

use std::any::TypeId;
use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use http::Extensions;
use jiff::Timestamp;
use schemars::Schema;
use tombolo_event::descriptor;
use tombolo_event::event::same_family;
use tombolo_event::{Envelope, Event, EventId, ServiceName};

use crate::{Error, Kind};

/// What a handler returns.
pub type Handled = Result<(), HandlerError>;

/// Why a handler did not handle an event. Any standard error becomes one through `?`; [`reject`] is the other way.
pub struct HandlerError {
    rejected: bool,
    error: Box<dyn StdError + Send + Sync>,
}

/// Says that an event can never be handled: retrying would not help.
pub fn reject(reason: impl Into<String>) -> HandlerError {
    HandlerError { rejected: true, error: reason.into().into() }
}

impl HandlerError {
    /// Whether it is a rejection.
    #[must_use]
    pub fn is_rejection(&self) -> bool {
        self.rejected
    }

    /// Whether the service's own database was away: nobody's fault, so it does not count.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        tombolo_db::transient::is_transient(&*self.error)
    }
}

impl<E: StdError + Send + Sync + 'static> From<E> for HandlerError {
    fn from(error: E) -> Self {
        Self { rejected: false, error: Box::new(error) }
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rejected = if self.rejected { "rejected: " } else { "" };
        write!(f, "{rejected}{}", self.error)
    }
}

impl fmt::Debug for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An event together with what its envelope says.
#[derive(Debug, Clone)]
pub struct Received<E> {
    /// The event.
    pub event: E,
    /// Its identity: the natural idempotency key towards anything outside.
    pub id: EventId,
    /// The service in which it happened.
    pub source: String,
    /// When it was published, by its producer's clock.
    pub time: Timestamp,
    /// Its number in its partition.
    pub sequence: u64,
}

/// A value that the service was given by [`crate::Service::state`], taken by a handler before `&mut Tx`.
#[derive(Debug, Clone, Copy)]
pub struct State<S>(pub S);

impl<S: Clone + Send + Sync + 'static> State<S> {
    pub(crate) fn need() -> Need {
        (TypeId::of::<S>(), std::any::type_name::<S>())
    }

    pub(crate) fn of(states: &Extensions) -> Self {
        let state = states.get::<S>().cloned();
        Self(state.expect("the service checks at its start that every handler's state is there"))
    }
}

/// What a handler can take as its first argument: an event, or a [`Received`] one.
pub trait FromDelivery: Send + Sized + 'static {
    /// The event's type.
    type Event: Event;
    /// Reads it.
    ///
    /// # Errors
    /// As [`tombolo_event::event::read`].
    fn from_delivery(envelope: &Envelope, sequence: u64) -> tombolo_event::Result<Self>;
}

impl<E: Event> FromDelivery for E {
    type Event = E;
    fn from_delivery(envelope: &Envelope, _sequence: u64) -> tombolo_event::Result<Self> {
        tombolo_event::event::read(envelope)
    }
}

impl<E: Event> FromDelivery for Received<E> {
    type Event = E;
    fn from_delivery(envelope: &Envelope, sequence: u64) -> tombolo_event::Result<Self> {
        let event = tombolo_event::event::read(envelope)?;
        Ok(Self { event, id: envelope.id, source: envelope.source.clone(), time: envelope.time, sequence })
    }
}

/// A plain `async fn(Event, &mut Tx)` or `async fn(Event, State<S>, &mut Tx)`. Implemented for those alone;
/// `Marker` only tells the two apart.
pub trait Handler<'a, E, T: 'a, Marker>: Send + Sync + 'static {
    /// The handler's future.
    type Future: Future<Output = Handled> + Send + 'a;
    /// The state that it takes, by type and name.
    fn needs() -> Option<Need>;
    /// Calls it.
    fn call(&self, event: E, states: &Extensions, tx: &'a mut T) -> Self::Future;
}

impl<'a, F, Fut, E, T: 'a> Handler<'a, E, T, ()> for F
where
    F: Fn(E, &'a mut T) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Handled> + Send + 'a,
{
    type Future = Fut;
    fn needs() -> Option<Need> {
        None
    }
    fn call(&self, event: E, _states: &Extensions, tx: &'a mut T) -> Fut {
        self(event, tx)
    }
}

impl<'a, F, Fut, E, T: 'a, S> Handler<'a, E, T, State<S>> for F
where
    F: Fn(E, State<S>, &'a mut T) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Handled> + Send + 'a,
    S: Clone + Send + Sync + 'static,
{
    type Future = Fut;
    fn needs() -> Option<Need> {
        Some(State::<S>::need())
    }
    fn call(&self, event: E, states: &Extensions, tx: &'a mut T) -> Fut {
        self(event, State::of(states), tx)
    }
}

/// A value that a handler takes from its service, by type and name.
pub type Need = (TypeId, &'static str);

/// What a handler reads, and what it takes beside: what there is to know of it before it is called.
#[derive(Clone)]
pub(crate) struct Reads {
    pub(crate) topic: &'static str,
    pub(crate) types: Vec<&'static str>,
    schema: Schema,
    needs: Vec<Need>,
}

impl Reads {
    pub(crate) fn of<E: FromDelivery>(needs: impl IntoIterator<Item = Need>) -> Self {
        Self {
            topic: E::Event::topic(),
            types: tombolo_event::event::readable_types::<E::Event>(),
            schema: tombolo_event::event::schema_of::<E::Event>(),
            needs: needs.into_iter().collect(),
        }
    }

    /// Of `handlers`, that of a stored type; `None` if none handles its family.
    ///
    /// An unknown version of a handled family finds the family's handler, which then refuses it by name.
    pub(crate) fn find<'h, H>(handlers: &'h [H], of: fn(&H) -> &Self, stored: &str) -> Option<&'h H> {
        let exact = handlers.iter().find(|handler| of(handler).types.contains(&stored));
        let is_family = |handler: &&H| of(handler).types.iter().any(|handled| same_family(handled, stored));
        exact.or_else(|| handlers.iter().find(is_family))
    }

    /// Checks what the compiler cannot: names, and the states that it takes.
    pub(crate) fn check(&self, subscription: &str, has_state: impl Fn(TypeId) -> bool) -> crate::Result<()> {
        for event_type in &self.types {
            tombolo_event::TypeName::new(event_type)?;
        }
        ServiceName::new(self.topic)?;
        match self.needs.iter().find(|(id, _)| !has_state(*id)) {
            Some((_, name)) => Err(Error::new(
                Kind::Wiring,
                format!(
                    "a handler of subscription {subscription:?} takes State<{name}>, which the service was not given; add `.state(…)` where the service is built"
                ),
            )),
            None => Ok(()),
        }
    }

    pub(crate) fn describe(&self) -> crate::Result<descriptor::Handled> {
        let types = self.types.iter().map(|&name| name.to_owned()).collect();
        Ok(descriptor::Handled { topic: ServiceName::new(self.topic)?, types, schema: self.schema.clone() })
    }
}

/// What a handler's future is to the worker.
pub(crate) type Boxed<'a> = Pin<Box<dyn Future<Output = Handled> + Send + 'a>>;
type Run<T> = dyn for<'a> Fn(&Envelope, u64, &Extensions, &'a mut T) -> Boxed<'a> + Send + Sync;

/// A handler with its types worked out: what the worker calls.
pub(crate) struct Registered<T> {
    pub(crate) reads: Reads,
    run: Arc<Run<T>>,
}

impl<T> Clone for Registered<T> {
    fn clone(&self) -> Self {
        Self { reads: self.reads.clone(), run: Arc::clone(&self.run) }
    }
}

impl<T: Send + 'static> Registered<T> {
    pub(crate) fn new<E, M, H>(handler: H) -> Self
    where
        E: FromDelivery,
        H: for<'a> Handler<'a, E, T, M>,
    {
        let run = for_any_borrow(move |envelope, sequence, states, tx| {
            boxed(&handler, envelope, sequence, states, tx)
        });
        Self { reads: Reads::of::<E>(H::needs()), run: Arc::new(run) }
    }

    /// Handles one stored event.
    pub(crate) fn handle<'a>(
        &self,
        envelope: &Envelope,
        sequence: u64,
        states: &Extensions,
        tx: &'a mut T,
    ) -> Boxed<'a> {
        (self.run)(envelope, sequence, states, tx)
    }
}

/// Tells the compiler that the closure takes a transaction of any lifetime.
fn for_any_borrow<T, F>(run: F) -> F
where
    F: for<'a> Fn(&Envelope, u64, &Extensions, &'a mut T) -> Boxed<'a> + Send + Sync,
{
    run
}

fn boxed<'a, E, M, T: Send + 'static, H>(
    handler: &H,
    envelope: &Envelope,
    sequence: u64,
    states: &Extensions,
    tx: &'a mut T,
) -> Boxed<'a>
where
    E: FromDelivery,
    H: Handler<'a, E, T, M>,
{
    match E::from_delivery(envelope, sequence) {
        Ok(event) => Box::pin(handler.call(event, states, tx)),
        Err(error) => Box::pin(std::future::ready(Err(error.into()))),
    }
}
