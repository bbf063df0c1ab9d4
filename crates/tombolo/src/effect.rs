//! Effects: calls out of the service that follow from events, such as an e-mail or a payment.
//!
//! ```ignore
//! async fn confirm(order: OrderPlaced, mail: State<Mailer>, attempt: Attempt) -> Result<Receipt, HandlerError> {
//!     mail.0.send(&order, attempt.key).await
//! }
//! Service::new("orders", database).state(mailer).effect(Effect::from_now("confirmations").on(confirm))
//! ```
//!
//! No transaction is open while a call runs. Of one key, calls are made one after the other in the order of its events;
//! of different keys, several at once. A call is made at least once, and again after a crash in the middle of it: always
//! with the same [`Attempt::key`], by which the receiver knows it again. What it returns is stored with its completion,
//! and what is completed is not called again.
//!
//! Invariant: an effect's name is its durable identity, where it starts is said, and it never runs in a rebuild.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::Extensions;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tombolo_db::Database;
use tombolo_event::{Envelope, IdempotencyKey};

use crate::handler::{Boxed, FromDelivery, Need, Reads};
use crate::subscription::{Role, Start, Subscription};
use crate::{App, Handled, HandlerError, State};

/// How many calls of one effect run at once in one process, each for another key, unless it says otherwise.
pub const EFFECT_CALLS_MAX: usize = 16;
/// How long a call may take before it counts as failed, unless its effect says otherwise.
pub const EFFECT_BOUND: Duration = Duration::from_secs(30);

/// What a call is told about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt {
    /// The same for every try of this event's call, in every process, and nobody else's: for the receiver to know a
    /// repeat by.
    pub key: IdempotencyKey,
    /// The how-manieth try it is, from 1. A crash in the middle of one counts.
    pub number: u32,
}

/// Calls out of the service that follow from events.
pub struct Effect<D: Database>(pub(crate) Subscription<D>);

impl<D: Database> Effect<D> {
    /// An effect that starts with the first event of each topic: everything that ever happened has its call.
    #[must_use]
    pub fn from_start(name: &str) -> Self {
        Self(Subscription::new(name.to_owned(), Role::Effect, Start::FromStart))
    }

    /// An effect that starts with what comes after its first start.
    #[must_use]
    pub fn from_now(name: &str) -> Self {
        Self(Subscription::new(name.to_owned(), Role::Effect, Start::FromNow))
    }

    /// Makes one call for each event of a type. `call` is an `async fn(Event, Attempt) -> Result<Returned, HandlerError>`;
    /// between the two it may take the service as [`App`] and a value as [`State`], one of them or both in this order.
    #[must_use]
    pub fn on<E, M, H>(mut self, call: H) -> Self
    where
        E: FromDelivery,
        H: EffectHandler<E, D, M>,
    {
        self.0.callers.push(Arc::new(Caller::new(call, None)));
        self
    }

    /// The same, and `then` runs in the transaction that stores the completion, with what the call returned: an
    /// `async fn(Event, Returned, &mut Tx) -> Handled`, which may write and publish. If it fails, it alone is tried again.
    #[must_use]
    pub fn on_then<E, M, H, T>(mut self, call: H, then: T) -> Self
    where
        E: FromDelivery,
        H: EffectHandler<E, D, M>,
        H::Returned: DeserializeOwned,
        T: for<'a> Completion<'a, E, H::Returned, D::Tx>,
    {
        let then = for_any_borrow::<D, _>(move |envelope, sequence, returned, tx| {
            completed(&then, envelope, sequence, returned, tx)
        });
        self.0.callers.push(Arc::new(Caller::new(call, Some(Box::new(then)))));
        self
    }

    /// How many calls run at once in one process, each for another key (at least 1); [`EFFECT_CALLS_MAX`] unless said.
    #[must_use]
    pub fn calls_at_once(mut self, calls: usize) -> Self {
        self.0.calls.at_once = calls.max(1);
        self
    }

    /// How long a call may take before it counts as failed; [`EFFECT_BOUND`] unless said.
    #[must_use]
    pub fn within(mut self, bound: Duration) -> Self {
        self.0.calls.bound = bound;
        self
    }
}

/// The bounds of an effect's calls.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CallBounds {
    pub(crate) at_once: usize,
    pub(crate) bound: Duration,
}

impl Default for CallBounds {
    fn default() -> Self {
        Self { at_once: EFFECT_CALLS_MAX, bound: EFFECT_BOUND }
    }
}

/// What an effect's handler can take between the event and the [`Attempt`].
pub trait FromService<D: Database>: Sized {
    /// The state that it is, by type and name.
    fn need() -> Option<Need>;
    /// Takes it.
    fn from_service(app: &App<D>, states: &Extensions) -> Self;
}

impl<D: Database> FromService<D> for App<D> {
    fn need() -> Option<Need> {
        None
    }
    fn from_service(app: &Self, _states: &Extensions) -> Self {
        app.clone()
    }
}

impl<D: Database, S: Clone + Send + Sync + 'static> FromService<D> for State<S> {
    fn need() -> Option<Need> {
        Some(State::<S>::need())
    }
    fn from_service(_app: &App<D>, states: &Extensions) -> Self {
        State::of(states)
    }
}

/// A plain `async fn(Event, …, Attempt) -> Result<Returned, HandlerError>`, with none to two of [`App`] and [`State`]
/// between. Implemented for those alone; `Marker` only tells them apart.
#[diagnostic::on_unimplemented(
    message = "this is not the handler of an effect",
    label = "expected an async fn(Event, Attempt) -> Result<Returned, HandlerError>",
    note = "between Event and Attempt it may take App<…> and State<…>, one of them or both in this order",
    note = "Event implements tombolo::Event, or is Received<…> of one; Returned implements serde::Serialize; the future is Send"
)]
pub trait EffectHandler<E, D: Database, Marker>: Send + Sync + 'static {
    /// What the call returns.
    type Returned: Serialize + Send + 'static;
    /// The call under way.
    type Future: Future<Output = Result<Self::Returned, HandlerError>> + Send + 'static;
    /// The states that it takes.
    fn needs() -> Vec<Need>;
    /// Makes the call.
    fn call(&self, event: E, app: &App<D>, states: &Extensions, attempt: Attempt) -> Self::Future;
}

impl<F, Fut, E, R, D> EffectHandler<E, D, ()> for F
where
    F: Fn(E, Attempt) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<R, HandlerError>> + Send + 'static,
    R: Serialize + Send + 'static,
    D: Database,
{
    type Returned = R;
    type Future = Fut;
    fn needs() -> Vec<Need> {
        Vec::new()
    }
    fn call(&self, event: E, _app: &App<D>, _states: &Extensions, attempt: Attempt) -> Fut {
        self(event, attempt)
    }
}

impl<F, Fut, E, A, R, D> EffectHandler<E, D, (A,)> for F
where
    F: Fn(E, A, Attempt) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<R, HandlerError>> + Send + 'static,
    A: FromService<D>,
    R: Serialize + Send + 'static,
    D: Database,
{
    type Returned = R;
    type Future = Fut;
    fn needs() -> Vec<Need> {
        A::need().into_iter().collect()
    }
    fn call(&self, event: E, app: &App<D>, states: &Extensions, attempt: Attempt) -> Fut {
        self(event, A::from_service(app, states), attempt)
    }
}

impl<F, Fut, E, A, B, R, D> EffectHandler<E, D, (A, B)> for F
where
    F: Fn(E, A, B, Attempt) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<R, HandlerError>> + Send + 'static,
    A: FromService<D>,
    B: FromService<D>,
    R: Serialize + Send + 'static,
    D: Database,
{
    type Returned = R;
    type Future = Fut;
    fn needs() -> Vec<Need> {
        A::need().into_iter().chain(B::need()).collect()
    }
    fn call(&self, event: E, app: &App<D>, states: &Extensions, attempt: Attempt) -> Fut {
        self(event, A::from_service(app, states), B::from_service(app, states), attempt)
    }
}

/// A plain `async fn(Event, Returned, &mut Tx) -> Handled`. Implemented for those alone.
#[diagnostic::on_unimplemented(
    message = "this does not complete the call of an effect",
    label = "expected an async fn(Event, Returned, &mut Tx) -> Handled",
    note = "Event and Returned are those of the call that it completes"
)]
pub trait Completion<'a, E, R, T: 'a>: Send + Sync + 'static {
    /// The completion's future.
    type Future: Future<Output = Handled> + Send + 'a;
    /// Completes.
    fn complete(&self, event: E, returned: R, tx: &'a mut T) -> Self::Future;
}

impl<'a, F, Fut, E, R, T: 'a> Completion<'a, E, R, T> for F
where
    F: Fn(E, R, &'a mut T) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Handled> + Send + 'a,
{
    type Future = Fut;
    fn complete(&self, event: E, returned: R, tx: &'a mut T) -> Fut {
        self(event, returned, tx)
    }
}

/// A call under way, which returns JSON.
pub(crate) type Calling = Pin<Box<dyn Future<Output = Result<String, HandlerError>> + Send>>;
type Call<D> = dyn Fn(&Envelope, u64, &App<D>, &Extensions, Attempt) -> Calling + Send + Sync;
type Then<T> = dyn for<'a> Fn(&Envelope, u64, &str, &'a mut T) -> Boxed<'a> + Send + Sync;

/// An effect's handler with its types worked out: what the worker calls.
pub(crate) struct Caller<D: Database> {
    pub(crate) reads: Reads,
    call: Box<Call<D>>,
    then: Option<Box<Then<D::Tx>>>,
}

impl<D: Database> Caller<D> {
    fn new<E, M, H>(handler: H, then: Option<Box<Then<D::Tx>>>) -> Self
    where
        E: FromDelivery,
        H: EffectHandler<E, D, M>,
    {
        let call = move |envelope: &Envelope, sequence, app: &App<D>, states: &Extensions, attempt| {
            calling(&handler, envelope, sequence, app, states, attempt)
        };
        Self { reads: Reads::of::<E>(H::needs()), call: Box::new(call), then }
    }

    /// Makes the call for one stored event.
    pub(crate) fn call(
        &self,
        envelope: &Envelope,
        sequence: u64,
        app: &App<D>,
        states: &Extensions,
        attempt: Attempt,
    ) -> Calling {
        (self.call)(envelope, sequence, app, states, attempt)
    }

    /// What else belongs into the transaction of the completion.
    pub(crate) fn then<'a>(
        &self,
        envelope: &Envelope,
        sequence: u64,
        returned: &str,
        tx: &'a mut D::Tx,
    ) -> Boxed<'a> {
        match &self.then {
            Some(then) => then(envelope, sequence, returned, tx),
            None => Box::pin(std::future::ready(Ok(()))),
        }
    }
}

fn calling<E, M, D, H>(
    handler: &H,
    envelope: &Envelope,
    sequence: u64,
    app: &App<D>,
    states: &Extensions,
    attempt: Attempt,
) -> Calling
where
    E: FromDelivery,
    D: Database,
    H: EffectHandler<E, D, M>,
{
    let event = match E::from_delivery(envelope, sequence) {
        Ok(event) => event,
        Err(error) => return Box::pin(std::future::ready(Err(error.into()))),
    };
    let call = handler.call(event, app, states, attempt);
    Box::pin(async move {
        let returned = call.await?;
        let json = serde_json::to_string(&returned);
        // The call was made: a mistake in what it returned must not make it again.
        Ok(json.unwrap_or_else(|error| serde_json::json!({ "unwritable": error.to_string() }).to_string()))
    })
}

/// Tells the compiler that the closure takes a transaction of any lifetime.
fn for_any_borrow<D, F>(then: F) -> F
where
    D: Database,
    F: for<'a> Fn(&Envelope, u64, &str, &'a mut D::Tx) -> Boxed<'a>,
{
    then
}

fn completed<'a, E, R, T, C>(
    then: &C,
    envelope: &Envelope,
    sequence: u64,
    returned: &str,
    tx: &'a mut T,
) -> Boxed<'a>
where
    E: FromDelivery,
    R: DeserializeOwned,
    C: Completion<'a, E, R, T>,
{
    let event = E::from_delivery(envelope, sequence).map_err(HandlerError::from);
    let returned = serde_json::from_str(returned).map_err(HandlerError::from);
    match event.and_then(|event| Ok((event, returned?))) {
        Ok((event, returned)) => Box::pin(then.complete(event, returned, tx)),
        Err(error) => Box::pin(std::future::ready(Err(error))),
    }
}
