//! A part of a world: one replica of a service, which can be crashed and started again as often as a test likes.
//!
//! Invariant: its database outlives its lives, and nothing else does.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use http::{HeaderMap, Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use tombolo_bus::{Bus, TopicSpec};
use tombolo_db::{ParkedEvent, ParkedFilter, Transaction};
use tombolo_event::descriptor::{Descriptor, Subscribed};
use tombolo_event::{Event, Generations, ServiceName};
use uuid::Uuid;

use super::bus::Switch;
use super::dice::lock;
use super::fate::Fate;
use super::settle::{Member, Reads, Standing};
use super::{Ground, PATIENCE};
use crate::life::Life;
use crate::settings::Lease;
use crate::sqlite::Sqlite;
use crate::subscription::Role;
use crate::{App, Committed, Database, Result, Running, Service, Settings};

/// How long a part that died keeps what it held, against replicas; a part that is started again takes it back at once.
const LEASE: Lease = Lease(Duration::from_secs(2));

/// The most parked events that a test is shown.
const PARKED_SHOWN_MAX: usize = 1_000;

/// One replica of a service in a world. Clones are the same one.
pub struct Part<D: Database = Sqlite>(Arc<Inner<D>>);

struct Inner<D: Database> {
    ground: Arc<Ground>,
    name: ServiceName,
    replica: u32,
    version: Mutex<Arc<Version<D>>>,
    connection: Switch,
    being: Mutex<Being<D>>,
}

/// A version of a service: how it is made, again and again, and what it says of itself.
pub(super) struct Version<D: Database> {
    open: Arc<dyn Fn() -> D + Send + Sync>,
    service: Box<dyn Fn(D) -> Service<D> + Send + Sync>,
    descriptor: Descriptor,
}

enum Being<D: Database> {
    Up { running: Running<D>, fate: Arc<Fate> },
    Down { why: String },
}

impl<D: Database> Clone for Part<D> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<D: Database> Version<D> {
    /// # Panics
    /// If the service is put together wrongly.
    pub(super) fn new<F>(open: Arc<dyn Fn() -> D + Send + Sync>, service: F) -> Arc<Self>
    where
        F: Fn(D) -> Service<D> + Send + Sync + 'static,
    {
        let described = service(open()).describe();
        let descriptor =
            described.unwrap_or_else(|error| panic!("a service is put together wrongly: {error}"));
        Arc::new(Self { open, service: Box::new(service), descriptor })
    }

    /// Its subscriptions, but for the builds of its views, which come and go.
    fn subscriptions(&self) -> impl Iterator<Item = Reads> {
        let is_lasting = |subscribed: &&Subscribed| subscribed.kind != Role::View.name();
        self.descriptor.subscriptions.iter().filter(is_lasting).map(|subscribed| Reads {
            subscription: subscribed.name.clone(),
            topics: subscribed.handles.iter().map(|handled| handled.topic.clone()).collect(),
        })
    }
}

impl<D: Database> Part<D> {
    /// A part that is not started yet.
    pub(super) fn new(ground: Arc<Ground>, replica: u32, version: Arc<Version<D>>) -> Self {
        let name = version.descriptor.service.clone();
        let being = Mutex::new(Being::Down { why: "was not started yet".into() });
        let (version, connection) = (Mutex::new(version), Switch::default());
        Self(Arc::new(Inner { ground, name, replica, version, connection, being }))
    }

    /// Its service's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.name.as_str()
    }

    pub(super) fn version(&self) -> Arc<Version<D>> {
        Arc::clone(&lock(&self.0.version))
    }

    /// Stops it, and starts another version of its service in its place, on the same database.
    ///
    /// # Panics
    /// If that is another service, or does not start.
    pub async fn deploy<F>(&self, service: F)
    where
        F: Fn(D) -> Service<D> + Send + Sync + 'static,
    {
        let version = Version::new(Arc::clone(&self.version().open), service);
        let found = &version.descriptor.service;
        assert_eq!(found, &self.0.name, "what is deployed is another service; start it as a part of its own");
        self.stop().await;
        *lock(&self.0.version) = version;
        self.restart().await;
    }

    /// Starts it again, with the database as its last life left it.
    ///
    /// # Panics
    /// If it runs, or does not start.
    pub async fn restart(&self) {
        let name = self.label();
        assert!(self.down().is_some(), "{name} runs; crash it or stop it before it is started again");
        self.bury().await;
        let Inner { ground, connection, .. } = &*self.0;
        let version = self.version();
        let descriptor = &version.descriptor;
        let fate = Fate::new(ground.weather, ground.dice);
        let line = ground.bus.line(name.clone(), Arc::clone(&fate), connection.clone());
        if !descriptor.publishes.is_empty() {
            // So that whoever subscribes to the topic finds it at once. Its relay finds it as if made in an earlier life.
            let (name, generations) = (descriptor.service.clone(), Generations::first(descriptor.partitions));
            let generations = generations.expect("a service checks it when it is described");
            let spec = TopicSpec::new(name, generations);
            line.ensure_topic(&spec).await.ok();
        }
        let mut service = (version.service)((version.open)());
        service.life = Life { fate: Some(Arc::clone(&fate)) };
        let settings = Settings { replica: Some(self.0.replica), lease: LEASE, ..Settings::default() };
        let service = service.bus(Arc::new(line)).clock(ground.clock.clone());
        let running =
            service.start(settings).await.unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        *lock(&self.0.being) = Being::Up { running, fate };
        ground.acquaint().await;
    }

    /// Ends it at once, wherever it is.
    pub async fn crash(&self) {
        if let Being::Up { fate, .. } = &*lock(&self.0.being) {
            fate.end("was crashed".into());
        }
        self.bury().await;
    }

    /// Lets it finish what it began, and ends it.
    pub async fn stop(&self) {
        let being = self.replace("was stopped");
        if let Being::Up { running, fate } = being {
            running.shutdown().await;
            fate.end("was stopped".into());
        }
    }

    /// It crashes the next time that one of its tasks or requests comes to a named point of the path.
    ///
    /// # Panics
    /// If it does not run, or a service has no point of that name.
    pub fn crash_at(&self, point: &str) {
        self.crash_at_nth(point, 1);
    }

    /// The same, the `nth` time that it is there, from 1.
    ///
    /// # Panics
    /// As [`Part::crash_at`].
    pub fn crash_at_nth(&self, point: &str, nth: u32) {
        match &*lock(&self.0.being) {
            Being::Up { fate, .. } => fate.arm(point, nth, |point| !point.starts_with("log.")),
            Being::Down { why } => panic!("{} cannot crash: it {why}", self.label()),
        }
    }

    /// Waits until it has crashed at the point that was named.
    ///
    /// # Panics
    /// If it never does.
    pub async fn crashed(&self) {
        let fate = match &*lock(&self.0.being) {
            Being::Up { fate, .. } => Arc::clone(fate),
            Being::Down { .. } => return,
        };
        let over = timeout(PATIENCE, fate.over()).await;
        assert!(
            over.is_ok(),
            "{} did not crash within {PATIENCE:?}: it never came to the point",
            self.label()
        );
        self.bury().await;
    }

    /// Cuts its line to the bus, and to nothing else.
    pub fn cut_off(&self) {
        self.0.connection.off();
    }

    /// Mends its line to the bus.
    pub fn reconnect(&self) {
        self.0.connection.on();
    }

    /// The service, as its own code sees it. Ask again after a restart: a life's app ends with it.
    ///
    /// # Panics
    /// If it does not run.
    #[must_use]
    pub fn app(&self) -> App<D> {
        self.with_running(|running| running.app.clone())
    }

    /// The service's own database: its views, and whatever else it keeps.
    ///
    /// # Panics
    /// If it does not run.
    #[must_use]
    pub fn database(&self) -> D {
        self.with_running(|running| running.app.database().clone())
    }

    /// What is parked in the service, by subscription, topic, partition and sequence: at most 1,000 events.
    ///
    /// # Panics
    /// If it does not run, or its database cannot be read.
    pub async fn parked(&self) -> Vec<ParkedEvent> {
        let parked = self.database().parked(&ParkedFilter::default(), PARKED_SHOWN_MAX).await;
        parked.unwrap_or_else(|error| panic!("what {} has parked cannot be read: {error}", self.label()))
    }

    /// Publishes an event in a transaction of its own, where a test has no route to have it published by.
    ///
    /// # Panics
    /// If it cannot be published.
    pub async fn publish<E: Event>(&self, event: &E) -> Committed {
        let published: Result<Committed> = async {
            let mut tx = self.app().begin().await?;
            tx.outgoing().publish(event)?;
            Ok(tx.commit().await?)
        }
        .await;
        published.unwrap_or_else(|error| panic!("{} cannot publish {}: {error}", self.label(), E::TYPE))
    }

    /// `GET`s one of its routes.
    ///
    /// # Panics
    /// If no answer comes.
    pub async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path, None::<&()>).await
    }

    /// `POST`s a body as JSON to one of its routes.
    ///
    /// # Panics
    /// If no answer comes.
    pub async fn post(&self, path: &str, body: impl Serialize) -> Response {
        self.request(Method::POST, path, Some(&body)).await
    }

    /// Sends a request to one of its routes.
    ///
    /// # Panics
    /// If no answer comes.
    pub async fn request(&self, method: Method, path: &str, body: Option<&impl Serialize>) -> Response {
        let what = format!("{method} {path}");
        let answered = self.try_request(method, path, body).await;
        answered.unwrap_or_else(|| {
            let why = self.down().unwrap_or_else(|| "broke the connection off".into());
            panic!("{} did not answer {what}: it {why}", self.label())
        })
    }

    /// Sends a request to one of its routes; none if the connection broke, as it does in a crash.
    ///
    /// # Panics
    /// If it does not run to begin with.
    pub async fn try_request(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Option<Response> {
        let url = self.with_running(|running| format!("{}{path}", running.url));
        let mut request = self.0.ground.client.request(method, url);
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.ok()?;
        let (status, headers) = (response.status(), response.headers().clone());
        Some(Response { status, headers, body: response.bytes().await.ok()? })
    }

    /// Why it is down, if it is.
    fn down(&self) -> Option<String> {
        match &*lock(&self.0.being) {
            Being::Up { fate, .. } => fate.end_of(),
            Being::Down { why } => Some(why.clone()),
        }
    }

    fn with_running<T>(&self, look: impl FnOnce(&Running<D>) -> T) -> T {
        let being = lock(&self.0.being);
        let why = match &*being {
            Being::Up { running, fate } => match fate.end_of() {
                None => return look(running),
                Some(why) => why,
            },
            Being::Down { why } => why.clone(),
        };
        drop(being);
        panic!("{} is down: it {why}; start it again first", self.label())
    }

    /// Takes what is left of a life that has ended.
    async fn bury(&self) {
        let Some(why) = self.down() else { return };
        if let Being::Up { running, .. } = self.replace(&why) {
            running.cut_off().await;
        }
    }

    fn replace(&self, why: &str) -> Being<D> {
        std::mem::replace(&mut *lock(&self.0.being), Being::Down { why: why.to_owned() })
    }

    /// Its name for people: with its number if it is not the first replica.
    fn label(&self) -> String {
        match self.0.replica {
            1 => self.name().to_owned(),
            number => format!("{} (replica {number})", self.name()),
        }
    }
}

#[async_trait]
impl<D: Database> Member for Part<D> {
    fn label(&self) -> String {
        Part::label(self)
    }

    fn service(&self) -> &ServiceName {
        &self.0.name
    }

    fn is_working(&self) -> bool {
        self.down().is_none() && !self.0.connection.is_off()
    }

    async fn standing(&self) -> Result<Standing> {
        let app = self.app();
        let (mut reads, switches) = app.builds().kept().await?;
        reads.extend(self.version().subscriptions());
        let cursors = app.database().cursors().await?;
        let mut parked = Vec::new();
        for Reads { subscription, .. } in &reads {
            let heads = app.database().parked_heads(subscription).await?;
            parked.extend(heads.into_iter().map(|head| (subscription.clone(), head)));
        }
        let outbox = app.database().depth().await?;
        Ok(Standing {
            label: Part::label(self),
            service: self.0.name.clone(),
            generations: app.database().standing(Uuid::nil()).await?.generations,
            reads,
            switches,
            cursors,
            outbox,
            now: self.0.ground.clock.now(),
            parked,
            asked: app.database().has_open_requests().await?,
            status: app.status(),
        })
    }

    async fn peers(&self) -> Result<std::collections::BTreeSet<String>> {
        self.app().refresh_peers().await
    }
}

/// What a route answered.
#[derive(Debug, Clone)]
pub struct Response {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body as it came.
    pub body: bytes::Bytes,
}

impl Response {
    /// The body as what it is to be.
    ///
    /// # Panics
    /// If it is something else.
    #[must_use]
    pub fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| {
            panic!("the answer {} is not what it should be: {error}: {}", self.status, self.text())
        })
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}
