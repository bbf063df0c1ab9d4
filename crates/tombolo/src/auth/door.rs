//! The checks and the tokens of a program that is no service, such as a gateway: it finds out who asks, and vouches for that to the
//! services behind it.
//!
//! ```text
//!  client ── Authorization: Bearer … ──► Door::check ── Some(user) ── Door::sign(user, "orders") ── Tombolo-Internal-Token ──► orders
//! ```
//!
//! It has no database. So the blocks are read from the start of their topic whenever it starts: they are few beside what a bus reads
//! in a second, and no file can be lost, be old, or be another bus's.
//!
//! Invariant: a door believes no internal token, whoever shows it; and it is ready once it knows who was blocked, and its own key is
//! registered.

use std::sync::{Arc, Mutex, PoisonError};

use http::{HeaderMap, HeaderValue};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tombolo_bus::{Bus, Registration};
use tombolo_event::ServiceName;
use tombolo_event::descriptor::Descriptor;

use super::feed::{Feed, Heard};
use super::internal::Signer;
use super::propagation::Propagation;
use super::trail::NoTrail;
use super::{Auth, Checks, Refusal, User, Way, bearer};
use crate::directory::{self, Directory};
use crate::question::Listeners;
use crate::{Clock, Error, Kind, Result};

/// Where a program is, and as what it is known.
#[derive(Debug, Clone)]
pub struct Place {
    /// Its name, which its tokens carry: what the services behind it take for a door.
    pub name: String,
    /// Which of its replicas this is, from 1.
    pub replica: u32,
    /// Where it is reached; empty if nobody has to know.
    pub url: String,
}

impl Place {
    /// The one replica of a program.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned(), replica: 1, url: String::new() }
    }
}

/// The checks and the tokens of a program that is no service.
pub struct Door {
    place: Place,
    checks: Checks,
    signer: Arc<Signer>,
    clock: Clock,
    joined: Option<Joined>,
    feed: Mutex<Option<Feed>>,
    loaded: Option<watch::Receiver<bool>>,
    registered: watch::Sender<bool>,
}

/// The bus, and who is on it.
struct Joined {
    bus: Arc<dyn Bus>,
    directory: Arc<Directory>,
}

impl Door {
    /// Makes a key, and the checks that `auth` says. [`Door::run`] does the rest.
    ///
    /// Without a bus no block is heard, and local checks are bound by the token's life alone; services find the door's key
    /// nowhere, and take none of its tokens.
    ///
    /// # Errors
    /// `Settings` for what cannot be meant; `Wiring` for a name that no service may have.
    pub fn open(auth: Auth, place: &Place, bus: Option<Arc<dyn Bus>>, clock: &Clock) -> Result<Self> {
        let signer = Arc::new(Signer::new(&place.name)?);
        let auth = if bus.is_some() { auth } else { auth.without_blocks() };
        let opened = auth.open_everywhere(clock)?;
        let registration = registration(place, &signer, opened.checks.way())?;
        let joined = bus.map(|bus| {
            let directory = Directory::new(Arc::clone(&bus), registration, Vec::new());
            Joined { bus, directory: Arc::new(directory) }
        });
        let loaded = opened.feed.as_ref().map(|feed| feed.heard.is_loaded());
        let (clock, feed, registered) =
            (clock.clone(), Mutex::new(opened.feed), watch::Sender::new(joined.is_none()));
        Ok(Self {
            place: place.clone(),
            checks: opened.checks,
            signer,
            clock,
            joined,
            feed,
            loaded,
            registered,
        })
    }

    /// Who asks by these headers, if somebody says so.
    ///
    /// # Errors
    /// [`Refusal`], which is a response. [`Way::Gateway`] is refused as not set up: this is the gateway.
    pub async fn check(&self, headers: &HeaderMap, way: Way) -> Result<Option<User>, Refusal> {
        self.checks.shown(bearer(headers)?, way).await
    }

    /// What to send `callee` in [`INTERNAL_HEADER`](super::INTERNAL_HEADER), in place of whatever a client sent there: who this is, and
    /// for whom it asks. `callee` is the service's name.
    ///
    /// # Errors
    /// `Failed` if it cannot be signed.
    pub fn sign(&self, user: Option<&User>, callee: &str) -> Result<HeaderValue> {
        self.signer.sign(user, callee, self.clock.now())
    }

    /// The public key, as a JWKS.
    #[must_use]
    pub fn jwks(&self) -> Value {
        json!({ "keys": [self.signer.jwk()] })
    }

    /// Whether it is known who was blocked, and the services can find the key.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.loaded.as_ref().is_none_or(|loaded| *loaded.borrow()) && *self.registered.borrow()
    }

    /// Waits until [`Door::is_ready`].
    pub async fn ready(&self) {
        let mut registered = self.registered.subscribe();
        if let Some(mut loaded) = self.loaded.clone() {
            // An error says that the reading has ended for ever; `is_ready` stays as it was.
            loaded.wait_for(|&is| is).await.ok();
        }
        registered.wait_for(|&is| is).await.ok();
    }

    /// Registers the key and follows the blocks, until it is stopped. To be called once.
    pub async fn run(&self, stop: CancellationToken) {
        let Some(Joined { bus, directory }) = &self.joined else {
            return stop.cancelled().await;
        };
        let feed = self.feed.lock().unwrap_or_else(PoisonError::into_inner).take();
        let heard = feed.as_ref().map(|feed| (feed.topic.clone(), Arc::clone(&feed.heard)));
        let changes = directory.changes();
        let reading = async {
            if let Some(feed) = feed {
                feed.reading(Box::new(NoTrail), Arc::clone(bus), changes).run(stop.clone()).await;
            }
        };
        let propagation = self.propagation(bus, heard).run(stop.clone());
        let following = Arc::clone(directory).run(Listeners::new(), self.registered.clone(), stop.clone());
        tokio::join!(reading, following, propagation);
    }

    fn propagation(&self, bus: &Arc<dyn Bus>, heard: Option<(ServiceName, Arc<Heard>)>) -> Propagation {
        let Place { name, replica, .. } = self.place.clone();
        Propagation { bus: Arc::clone(bus), service: name, replica, way: self.checks.way(), heard }
    }
}

/// What the bus is told of a program that publishes and answers nothing.
fn registration(place: &Place, signer: &Signer, way: Way) -> Result<Registration> {
    let descriptor = Descriptor {
        service: ServiceName::new(&place.name)?,
        partitions: 1,
        database: "none".to_owned(),
        publishes: Vec::new(),
        subscriptions: Vec::new(),
        answers: Vec::new(),
        asks: Vec::new(),
    };
    let descriptor = directory::described(&descriptor, &[signer.jwk()], Some(way.to_string()))
        .map_err(|error| Error::new(Kind::Wiring, error.to_string()))?;
    let service = ServiceName::new(&place.name)?;
    Ok(Registration { service, replica: place.replica, url: place.url.clone(), descriptor })
}
