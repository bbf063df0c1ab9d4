//! Subscriptions: named readers of topics. A [`crate::View`] folds events into its tables; a [`Reactor`] works in its
//! service's database and may publish; an [`crate::Effect`] calls out.
//!
//! Invariant: a subscription's name is its durable identity, and where it starts is said, never assumed.

use std::sync::Arc;

use tombolo_db::{Database, Origin, Share, Tables};
use tombolo_event::descriptor::Subscribed;
use tombolo_event::{EventId, ServiceName, name};

use crate::effect::{CallBounds, Caller};
use crate::freshness::Reader;
use crate::handler::{FromDelivery, Handler, Reads, Registered};
use crate::{Error, Kind, Result};

/// Where a new subscription begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    FromStart,
    FromNow,
}

/// What a subscription may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Role {
    View,
    Reactor,
    Effect,
}

impl Role {
    /// The word for it, in descriptors and in status.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Reactor => "reactor",
            Self::Effect => "effect",
        }
    }
}

/// A reaction: work in the service's own database that follows from events, and may publish what follows from it.
///
/// It never runs in a rebuild. Calling out (mail, payment) is not for a reactor.
pub struct Reactor<D: Database>(pub(crate) Subscription<D>);

impl<D: Database> Reactor<D> {
    /// A reactor that starts with the first event of each topic.
    #[must_use]
    pub fn from_start(name: &str) -> Self {
        Self(Subscription::new(name.to_owned(), Role::Reactor, Start::FromStart))
    }

    /// A reactor that starts with what comes after its first start.
    #[must_use]
    pub fn from_now(name: &str) -> Self {
        Self(Subscription::new(name.to_owned(), Role::Reactor, Start::FromNow))
    }

    /// Reacts to one type of event. `react` is an `async fn(Event, &mut Tx) -> Handled`.
    #[must_use]
    pub fn on<E, M, H>(mut self, react: H) -> Self
    where
        E: FromDelivery,
        H: for<'a> Handler<'a, E, D::Tx, M>,
    {
        self.0.add(react);
        self
    }
}

/// What views, reactors and effects are to the worker.
pub(crate) struct Subscription<D: Database> {
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) start: Start,
    /// What a view or a reactor does, in a transaction.
    pub(crate) handlers: Vec<Registered<D::Tx>>,
    /// What an effect does, outside any.
    pub(crate) callers: Vec<Arc<Caller<D>>>,
    /// The bounds of that.
    pub(crate) calls: CallBounds,
    /// The tables of the build that it keeps, if it keeps a view with tables of its own.
    pub(crate) tables: Option<Tables>,
    /// Whether events of different keys may be handled by different replicas at once.
    pub(crate) split_by_key: bool,
}

impl<D: Database> Subscription<D> {
    pub(crate) fn new(name: String, role: Role, start: Start) -> Self {
        let (calls, split_by_key) = (CallBounds::default(), role != Role::View);
        Self {
            name,
            role,
            start,
            handlers: Vec::new(),
            callers: Vec::new(),
            calls,
            tables: None,
            split_by_key,
        }
    }

    pub(crate) fn add<E, M, H>(&mut self, handler: H)
    where
        E: FromDelivery,
        H: for<'a> Handler<'a, E, D::Tx, M>,
    {
        self.handlers.push(Registered::new(handler));
    }

    /// The same view for one build of it, which is a subscription of its own.
    pub(crate) fn of_build(&self, name: &str, tables: Option<Tables>) -> Self {
        Self {
            handlers: self.handlers.clone(),
            tables,
            split_by_key: self.split_by_key,
            ..Self::new(name.to_owned(), self.role.clone(), self.start)
        }
    }

    fn reads(&self) -> impl Iterator<Item = &Reads> {
        let callers = self.callers.iter().map(|caller| &caller.reads);
        self.handlers.iter().map(|handler| &handler.reads).chain(callers)
    }

    /// The topics that it reads, without repeats.
    pub(crate) fn topics(&self) -> Vec<&'static str> {
        let mut topics: Vec<_> = self.reads().map(|reads| reads.topic).collect();
        topics.sort_unstable();
        topics.dedup();
        topics
    }

    /// Every type that it reads.
    pub(crate) fn types(&self) -> Vec<String> {
        let mut types: Vec<_> =
            self.reads().flat_map(|reads| &reads.types).map(|&name| name.to_owned()).collect();
        types.sort_unstable();
        types
    }

    /// The handler of a stored type, of a view or a reactor.
    pub(crate) fn handler(&self, stored: &str) -> Option<&Registered<D::Tx>> {
        Reads::find(&self.handlers, |handler| &handler.reads, stored)
    }

    /// The handler of a stored type, of an effect.
    pub(crate) fn caller(&self, stored: &str) -> Option<&Arc<Caller<D>>> {
        Reads::find(&self.callers, |caller| &caller.reads, stored)
    }

    /// What a transaction that handles `cause` may publish.
    pub(crate) fn origin(&self, cause: EventId) -> Origin {
        match self.role {
            Role::View => Origin::View { view: self.name.clone(), tables: self.tables.clone() },
            Role::Reactor | Role::Effect => Origin::Reaction { subscription: self.name.clone(), cause },
        }
    }

    /// Checks what the compiler cannot.
    pub(crate) fn check(&self, states: impl Fn(std::any::TypeId) -> bool + Copy) -> Result<()> {
        name::check_subscription(&self.name)?;
        if self.handlers.is_empty() && self.callers.is_empty() {
            let last = if self.role == Role::Effect { "Attempt" } else { "&mut Tx" };
            let message = format!(
                "subscription {:?} handles nothing; add `.on(…)` with an async fn(Event, {last})",
                self.name
            );
            return Err(Error::new(Kind::Wiring, message));
        }
        let mut types = self.types();
        types.dedup_by(|a, b| {
            let twice = a == b;
            if twice {
                b.push('!');
            }
            twice
        });
        if let Some(twice) = types.iter().find(|name| name.ends_with('!')) {
            let name = twice.trim_end_matches('!');
            return Err(Error::new(
                Kind::Wiring,
                format!("subscription {:?} handles {name} twice; remove one handler", self.name),
            ));
        }
        self.reads().try_for_each(|reads| reads.check(&self.name, states))
    }

    pub(crate) fn describe(&self) -> Result<Subscribed> {
        let handles = self.reads().map(Reads::describe).collect::<Result<_>>()?;
        Ok(Subscribed { name: self.name.clone(), kind: self.role.name().to_owned(), handles })
    }

    /// How replicas share it.
    pub(crate) fn share(&self) -> Share {
        if self.split_by_key { Share::Split } else { Share::Whole }
    }

    /// What those who wait for it need to know.
    pub(crate) fn reader(&self) -> Reader {
        Reader { name: self.name.clone(), subscription: self.name.clone(), topics: self.topics() }
    }

    pub(crate) fn topic_names(&self) -> Result<Vec<ServiceName>> {
        self.topics().into_iter().map(|topic| Ok(ServiceName::new(topic)?)).collect()
    }
}
