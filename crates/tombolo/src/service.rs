//! Putting a service together: its name, its database, its routes, and what crosses its border.
//!
//! Invariant: everything that crosses the border is declared here, so the descriptor is complete, and what is wired
//! wrongly is said by name before anything starts.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use http::Extensions;
use tombolo_bus::Bus;
use tombolo_db::Database;
use tombolo_event::descriptor::{Descriptor, Published, Subscribed};
use tombolo_event::event::schema_of;
use tombolo_event::{Event, Question, ServiceName, TypeName, key, name};

use crate::life::Life;
use crate::problem::Problem;
use crate::question::answer::Answerer;
use crate::running::{self, Running};
use crate::subscription::Subscription;
use crate::{App, Clock, Effect, Error, Kind, Reactor, Result, Settings, View};

type Setup<D> = Box<dyn FnOnce(D) -> Pin<Box<dyn Future<Output = Result<()>> + Send>> + Send>;

/// A service that is being put together.
pub struct Service<D: Database> {
    name: String,
    partitions: u32,
    states: Extensions,
    state_types: BTreeSet<std::any::TypeId>,
    publishes: Vec<Published>,
    asks: Vec<String>,
    pub(crate) database: D,
    pub(crate) bus: Option<Arc<dyn Bus>>,
    pub(crate) clock: Clock,
    pub(crate) life: Life,
    pub(crate) routes: Router<App<D>>,
    pub(crate) setup: Option<Setup<D>>,
    pub(crate) views: Vec<View<D>>,
    pub(crate) subscriptions: Vec<Subscription<D>>,
    pub(crate) answerers: Vec<Answerer<D>>,
    #[cfg(feature = "auth")]
    pub(crate) auth: Option<crate::auth::Auth>,
}

impl<D: Database> Service<D> {
    /// A service with its name, which is also its topic's, and its own database.
    #[must_use]
    pub fn new(name: &str, database: D) -> Self {
        Self {
            name: name.to_owned(),
            partitions: key::PARTITIONS_DEFAULT,
            states: Extensions::new(),
            state_types: BTreeSet::new(),
            publishes: Vec::new(),
            asks: Vec::new(),
            database,
            bus: None,
            clock: Clock::default(),
            life: Life::default(),
            routes: Router::new(),
            setup: None,
            views: Vec::new(),
            subscriptions: Vec::new(),
            answerers: Vec::new(),
            #[cfg(feature = "auth")]
            auth: None,
        }
    }

    /// How the service finds out who is asking, for routes that take a [`crate::auth::User`].
    #[cfg(feature = "auth")]
    #[must_use]
    pub fn auth(mut self, auth: crate::auth::Auth) -> Self {
        self.auth = Some(auth);
        self
    }

    /// With how many partitions the service's topic begins. `tombolo topics divide` changes it while the service runs; the code
    /// follows with a later deployment.
    #[must_use]
    pub fn partitions(mut self, partitions: u32) -> Self {
        self.partitions = partitions;
        self
    }

    /// The service's routes, plain axum, with `App<D>` as their state. Merged with what was given before.
    #[must_use]
    pub fn routes(mut self, routes: Router<App<D>>) -> Self {
        self.routes = self.routes.merge(routes);
        self
    }

    /// What to do in the service's own database before it serves: its tables, its migrations.
    #[must_use]
    pub fn setup<F, Fut>(mut self, setup: F) -> Self
    where
        F: FnOnce(D) -> Fut + Send + 'static,
        Fut: Future<Output = Result<()>> + Send + 'static,
    {
        self.setup = Some(Box::new(move |database| Box::pin(setup(database))));
        self
    }

    /// A value that handlers take as [`crate::State`].
    #[must_use]
    pub fn state<S: Clone + Send + Sync + 'static>(mut self, state: S) -> Self {
        self.state_types.insert(std::any::TypeId::of::<S>());
        self.states.insert(state);
        self
    }

    /// Declares that the service publishes `E`.
    #[must_use]
    pub fn publishes<E: Event>(mut self) -> Self {
        self.publishes.push(Published { event_type: E::TYPE.to_owned(), schema: schema_of::<E>() });
        self
    }

    /// A read model.
    #[must_use]
    pub fn view(mut self, view: View<D>) -> Self {
        self.views.push(view);
        self
    }

    /// A reaction to events.
    #[must_use]
    pub fn react(mut self, reactor: Reactor<D>) -> Self {
        self.subscriptions.push(reactor.0);
        self
    }

    /// Calls out of the service that follow from events.
    #[must_use]
    pub fn effect(mut self, effect: Effect<D>) -> Self {
        self.subscriptions.push(effect.0);
        self
    }

    /// Answers a question, for `call` and `gather` both. `handler` is an `async fn(Question, App<D>) -> Result<Answer, Problem>`.
    #[must_use]
    pub fn answer<Q, F, Fut>(mut self, handler: F) -> Self
    where
        Q: Question,
        F: Fn(Q, App<D>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Q::Answer, Problem>> + Send + 'static,
    {
        self.answerers.push(Answerer::new(handler));
        self
    }

    /// Declares that the service asks `Q`.
    #[must_use]
    pub fn asks<Q: Question>(mut self) -> Self {
        self.asks.push(Q::NAME.to_owned());
        self
    }

    /// A bus that is at hand already, instead of the one that the settings name: for tests, and for several services in
    /// one process.
    #[must_use]
    pub fn bus(mut self, bus: Arc<dyn Bus>) -> Self {
        self.bus = Some(bus);
        self
    }

    /// The clock by which schedules are kept, for tests that move it.
    #[must_use]
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// What the service says of itself. Nothing is started, and the database is not touched.
    ///
    /// # Errors
    /// `Wiring` for whatever is put together wrongly.
    pub fn describe(&self) -> Result<Descriptor> {
        self.check()?;
        Ok(Descriptor {
            service: ServiceName::new(&self.name)?,
            partitions: self.partitions,
            database: self.database.kind().to_owned(),
            publishes: self.publishes.clone(),
            subscriptions: self.describe_subscriptions()?,
            answers: self.answerers.iter().map(|answerer| answerer.describe.clone()).collect(),
            asks: self.asks.clone(),
        })
    }

    fn describe_subscriptions(&self) -> Result<Vec<Subscribed>> {
        let views = self.views.iter().map(View::describe).collect::<Result<Vec<_>>>()?.into_iter().flatten();
        views.map(Ok).chain(self.subscriptions.iter().map(Subscription::describe)).collect()
    }

    fn check(&self) -> Result<()> {
        if !(1..=key::PARTITIONS_MAX).contains(&self.partitions) {
            let message = format!(
                "service {:?} has {} partitions; expected 1 to {}",
                self.name,
                self.partitions,
                key::PARTITIONS_MAX
            );
            return Err(Error::new(Kind::Wiring, message));
        }
        for published in &self.publishes {
            TypeName::new(&published.event_type)?;
        }
        for question in
            self.asks.iter().chain(self.answerers.iter().map(|answerer| &answerer.describe.question))
        {
            name::check_question(question)?;
        }
        let kept = self.views.iter().flat_map(View::subscriptions);
        let subscribed = self.subscriptions.iter().map(|subscription| &subscription.name);
        self.check_twice("subscription", kept.chain(subscribed))?;
        self.check_twice("view", self.views.iter().map(View::name))?;
        self.check_twice("published type", self.publishes.iter().map(|published| &published.event_type))?;
        self.check_twice("answer to", self.answerers.iter().map(|answerer| &answerer.describe.question))?;
        let has_state = |state| self.state_types.contains(&state);
        self.views.iter().try_for_each(|view| view.check(has_state))?;
        self.subscriptions.iter().try_for_each(|subscription| subscription.check(has_state))
    }

    fn check_twice<'a, N>(&self, what: &str, names: impl Iterator<Item = &'a N>) -> Result<()>
    where
        N: Ord + std::fmt::Debug + ?Sized + 'a,
    {
        let mut counts = BTreeMap::new();
        names.for_each(|name| *counts.entry(name).or_insert(0) += 1);
        match counts.into_iter().find(|&(_, count)| count > 1) {
            Some((name, _)) => Err(Error::new(
                Kind::Wiring,
                format!("service {:?} has {what} {name:?} twice; remove one", self.name),
            )),
            None => Ok(()),
        }
    }

    pub(crate) fn take_states(&mut self) -> Extensions {
        std::mem::take(&mut self.states)
    }

    /// Starts the service, and returns once it serves. `main`, runtime, tracing and shutdown stay the user's.
    ///
    /// # Errors
    /// `Wiring`, `Settings`, `Database`, `DatabaseAway`, `Listen`. A bus that is away is not an error: the service starts without it.
    pub async fn start(self, settings: Settings) -> Result<Running<D>> {
        running::start(self, settings).await
    }

    /// Starts everything but the listener, for a program that serves by itself: [`Running::router`] holds the service's
    /// routes, to merge into its own. Others can only call the service if [`Settings::url`] says where those are served.
    ///
    /// # Errors
    /// As [`Service::start`], but for `Listen`.
    pub async fn start_beside(self, settings: Settings) -> Result<Running<D>> {
        running::start_beside(self, settings).await
    }

    /// What most `main`s want: `--describe` prints the descriptor; else the service starts as the environment says, and
    /// runs until Ctrl-C or SIGTERM.
    ///
    /// # Errors
    /// As [`Service::start`].
    pub async fn run(self) -> Result<()> {
        running::run(self).await
    }
}
