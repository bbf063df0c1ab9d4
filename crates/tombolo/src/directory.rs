//! Who else there is: what every service said of itself when it started, kept in memory.
//!
//! Invariant: the directory is a cache. What it last knew stays usable while the bus is away; a change is heard as a
//! signal, and looked for now and then in case the signal was lost.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tombolo_bus::{Bus, Registration, Signal};
use tombolo_event::descriptor::Descriptor;

use crate::Result;
#[cfg(feature = "auth")]
use crate::auth::token::Key;
use crate::question::Listeners;

/// The subject on which everybody is told to look again: somebody registered, or divided its topic anew.
pub(crate) const SUBJECT: &str = "directory";
const REFRESH_EVERY: Duration = Duration::from_secs(15);

/// A replica of a service, as it described itself.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) service: String,
    pub(crate) url: String,
    pub(crate) descriptor: Descriptor,
    /// By which the tokens of its calls are verified.
    #[cfg(feature = "auth")]
    keys: Vec<Arc<Key>>,
}

/// The cache.
pub(crate) struct Directory {
    bus: Arc<dyn Bus>,
    own: Registration,
    handled: Vec<(String, String)>,
    peers: Mutex<Vec<Peer>>,
    said: Mutex<BTreeSet<String>>,
    changed: watch::Sender<u64>,
}

impl Directory {
    /// Nobody known yet. `handled` are the (topic, type) pairs that this service needs somebody to publish.
    pub(crate) fn new(bus: Arc<dyn Bus>, own: Registration, handled: Vec<(String, String)>) -> Self {
        Self {
            bus,
            own,
            handled,
            peers: Mutex::default(),
            said: Mutex::default(),
            changed: watch::Sender::new(0),
        }
    }

    /// Changes whenever something is registered.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Registers this service and keeps the cache true until it is stopped.
    pub(crate) async fn run(
        self: Arc<Self>,
        listeners: Listeners,
        registered: watch::Sender<bool>,
        stop: CancellationToken,
    ) {
        tokio::select! {
            () = listeners.all() => {}
            () = stop.cancelled() => return,
        }
        let mut attempt = 0;
        loop {
            let followed = tokio::select! {
                followed = self.follow(&registered) => followed,
                () = stop.cancelled() => return,
            };
            let Err(error) = followed else { return };
            if attempt == 0 {
                tracing::warn!("cannot register at the bus yet, goes on without: {error}");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(crate::RETRY.jittered(attempt)) => attempt += 1,
            }
        }
    }

    async fn follow(&self, registered: &watch::Sender<bool>) -> Result<()> {
        let mut signals = self.bus.listen(SUBJECT, None).await?;
        self.bus.register(&self.own).await?;
        self.bus.signal(SUBJECT, Signal { reply_to: None, payload: Bytes::new() }).await?;
        self.refresh().await?;
        registered.send_replace(true);
        loop {
            tokio::select! {
                signal = signals.next() => match signal {
                    Some(_) => self.refresh().await?,
                    None => return Ok(()),
                },
                () = sleep(REFRESH_EVERY) => self.refresh().await?,
            }
        }
    }

    /// Asks the bus who there is.
    pub(crate) async fn refresh(&self) -> Result<()> {
        let peers: Vec<Peer> = self.bus.registrations().await?.into_iter().filter_map(peer).collect();
        self.check_wiring(&peers);
        *self.peers.lock().unwrap_or_else(PoisonError::into_inner) = peers;
        self.changed.send_modify(|version| *version += 1);
        Ok(())
    }

    /// Says, once and by name, what this service handles and nobody publishes.
    fn check_wiring(&self, peers: &[Peer]) {
        for (topic, event_type) in &self.handled {
            let Some(owner) = peers.iter().find(|peer| peer.service == *topic) else { continue };
            let published: Vec<&str> =
                owner.descriptor.publishes.iter().map(|published| published.event_type.as_str()).collect();
            let family =
                published.iter().any(|published| tombolo_event::event::same_family(published, event_type));
            let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
            if !family && said.insert(event_type.clone()) {
                tracing::warn!(
                    "handles {event_type}, but service {topic} does not publish it; it publishes: {}",
                    published.join(", ")
                );
            }
        }
    }

    fn peers(&self) -> Vec<Peer> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The services that answer a question, by name.
    pub(crate) fn answerers(&self, question: &str) -> BTreeSet<String> {
        let answers =
            |peer: &Peer| peer.descriptor.answers.iter().any(|answered| answered.question == question);
        self.peers().into_iter().filter(answers).map(|peer| peer.service).collect()
    }

    /// Where a service can be called, one address for each replica that said one.
    pub(crate) fn urls(&self, service: &str) -> Vec<String> {
        let callable = |peer: &Peer| peer.service == service && !peer.url.is_empty();
        self.peers().into_iter().filter(callable).map(|peer| peer.url).collect()
    }

    /// A key that a replica of a service has registered.
    #[cfg(feature = "auth")]
    pub(crate) fn key(&self, service: &str, kid: &str) -> Option<Arc<Key>> {
        let peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let of_service = peers.iter().filter(|peer| peer.service == service);
        of_service.flat_map(|peer| &peer.keys).find(|key| key.kid == kid).cloned()
    }

    /// Every service's name.
    pub(crate) fn services(&self) -> BTreeSet<String> {
        self.peers().into_iter().map(|peer| peer.service).collect()
    }
}

fn peer(registration: Registration) -> Option<Peer> {
    match serde_json::from_str(&registration.descriptor) {
        Ok(descriptor) => Some(Peer {
            #[cfg(feature = "auth")]
            keys: keys_of(&registration.descriptor),
            service: registration.service.into(),
            url: registration.url,
            descriptor,
        }),
        Err(error) => {
            tracing::warn!(service = %registration.service, "its descriptor cannot be read, it is left out: {error}");
            None
        }
    }
}

/// The most keys of one replica.
#[cfg(feature = "auth")]
const KEYS_MAX: usize = 4;

/// A descriptor as it is registered: with the public keys of this process, which `--describe` has none of.
#[derive(serde::Serialize)]
struct Described<'a, K> {
    #[serde(flatten)]
    descriptor: &'a Descriptor,
    #[serde(skip_serializing_if = "<[K]>::is_empty")]
    keys: &'a [K],
    /// How it checks who asks, if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    checks: Option<String>,
}

/// What is registered of a service's replica that has these keys, and checks who asks in this way.
pub(crate) fn described<K: serde::Serialize>(
    descriptor: &Descriptor,
    keys: &[K],
    checks: Option<String>,
) -> serde_json::Result<String> {
    serde_json::to_string(&Described { descriptor, keys, checks })
}

/// The keys of a registration. One that cannot be read verifies nothing; services of before have none.
#[cfg(feature = "auth")]
fn keys_of(registered: &str) -> Vec<Arc<Key>> {
    #[derive(serde::Deserialize)]
    struct Keys {
        #[serde(default)]
        keys: Vec<serde_json::Value>,
    }
    let keys = serde_json::from_str::<Keys>(registered).map(|registered| registered.keys).unwrap_or_default();
    let jwks = keys.into_iter().take(KEYS_MAX).filter_map(|key| serde_json::from_value(key).ok());
    jwks.filter_map(|jwk| Key::from_jwk(&jwk, &crate::auth::INTERNAL_ALGORITHMS)).map(Arc::new).collect()
}
