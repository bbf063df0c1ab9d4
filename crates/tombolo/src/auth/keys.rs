//! The issuer's published keys, kept in memory.
//!
//! Invariant: however many tokens name keys that are not known, the issuer is asked at most once in [`ASK_EVERY`]; and a key that the
//! issuer publishes no longer is gone within [`FRESH_FOR`], if the issuer can be reached.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::jwk::Jwk;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;

use super::Refusal;
use super::mutant::{Mutant, Mutation};
use super::settings::Issuer;
use super::token::{Algorithm, Key};
use crate::Clock;

/// How often the issuer is asked for its keys at most.
pub(crate) const ASK_EVERY: Duration = Duration::from_secs(30);
/// The same, before it has answered for the first time.
const FIRST_EVERY: Duration = Duration::from_secs(1);
/// How long keys are taken as they are while the issuer can be reached.
pub(crate) const FRESH_FOR: Duration = Duration::from_secs(300);
/// How long the issuer's answer is waited for.
const ASK_BOUND: Duration = Duration::from_secs(3);
/// The most bytes of the issuer's documents.
const DOCUMENT_BYTES_MAX: usize = 256 << 10;
/// The most keys of an issuer.
const KEYS_MAX: usize = 100;

/// The keys, and where they come from.
pub(crate) struct Keys {
    issuer: Issuer,
    algorithms: Vec<Algorithm>,
    http: reqwest::Client,
    clock: Clock,
    mutation: Mutation,
    known: RwLock<Known>,
    turn: Mutex<()>,
}

#[derive(Default)]
struct Known {
    keys: HashMap<String, Arc<Key>>,
    answered: Option<Timestamp>,
    asked: Option<Timestamp>,
}

#[derive(Deserialize)]
struct Discovered {
    issuer: String,
    jwks_uri: String,
}

#[derive(Deserialize)]
struct Published {
    keys: Vec<serde_json::Value>,
}

impl Keys {
    pub(crate) fn new(
        issuer: Issuer,
        algorithms: Vec<Algorithm>,
        http: reqwest::Client,
        clock: Clock,
        mutation: Mutation,
    ) -> Self {
        Self { issuer, algorithms, http, clock, mutation, known: RwLock::default(), turn: Mutex::default() }
    }

    /// The key of this name.
    pub(crate) async fn find(&self, kid: &str) -> Result<Arc<Key>, Refusal> {
        let (found, is_fresh) = self.look(kid);
        if let Some(key) = found.as_ref().filter(|_| is_fresh) {
            return Ok(Arc::clone(key));
        }
        if found.is_some() {
            // One of those who come asks; the others go on with what is known.
            if let Ok(_turn) = self.turn.try_lock() {
                self.ask_again().await;
            }
            let found = self.look(kid).0;
            return found.ok_or(Refusal::Token);
        }
        let _turn = self.turn.lock().await;
        if self.look(kid).0.is_none() {
            self.ask_again().await;
        }
        match self.look(kid).0 {
            Some(key) => Ok(key),
            None if self.read().answered.is_some() => Err(Refusal::Token),
            None => Err(Refusal::Away { what: "the issuer's keys cannot be had", again: FIRST_EVERY }),
        }
    }

    fn look(&self, kid: &str) -> (Option<Arc<Key>>, bool) {
        let known = self.read();
        let is_fresh = known.answered.is_some_and(|answered| self.is_within(answered, FRESH_FOR));
        (known.keys.get(kid).cloned(), is_fresh)
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is less than `bound` since `then`. A clock that was set back counts as long ago.
    fn is_within(&self, then: Timestamp, bound: Duration) -> bool {
        let since = self.clock.now().duration_since(then);
        !since.is_negative() && SignedDuration::try_from(bound).is_ok_and(|bound| since < bound)
    }

    /// Asks the issuer, unless it was asked just now. For whoever has the turn.
    async fn ask_again(&self) {
        let every = if self.read().answered.is_some() { ASK_EVERY } else { FIRST_EVERY };
        if self.read().asked.is_some_and(|asked| self.is_within(asked, every))
            && !self.mutation.is(Mutant::AsksEachTime)
        {
            return;
        }
        self.known.write().unwrap_or_else(PoisonError::into_inner).asked = Some(self.clock.now());
        match self.ask().await {
            Ok(keys) => {
                let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
                known.keys = keys.into_iter().map(|key| (key.kid.clone(), Arc::new(key))).collect();
                known.answered = Some(self.clock.now());
            }
            Err(error) => tracing::warn!("the keys of {} cannot be had: {error}", self.issuer.name),
        }
    }

    async fn ask(&self) -> Result<Vec<Key>, String> {
        let address = match &self.issuer.keys_at {
            Some(address) => address.clone(),
            None => self.discover().await?,
        };
        let published: Published = get(&self.http, &address).await?;
        let jwks = published.keys.into_iter().take(KEYS_MAX);
        let jwks = jwks.filter_map(|jwk| serde_json::from_value::<Jwk>(jwk).ok());
        let keys: Vec<Key> = jwks.filter_map(|jwk| Key::from_jwk(&jwk, &self.algorithms)).collect();
        if keys.is_empty() {
            return Err(format!("{address} holds no key for {:?}", self.algorithms));
        }
        Ok(keys)
    }

    async fn discover(&self) -> Result<String, String> {
        let Issuer { name, .. } = &self.issuer;
        let address = format!("{}/.well-known/openid-configuration", name.trim_end_matches('/'));
        let discovered: Discovered = get(&self.http, &address).await?;
        if discovered.issuer != *name {
            return Err(format!("{address} is of the issuer {:?}, expected {name:?}", discovered.issuer));
        }
        Ok(discovered.jwks_uri)
    }
}

/// A client that follows nobody elsewhere.
pub(crate) fn client() -> crate::Result<reqwest::Client> {
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).timeout(ASK_BOUND);
    client.build().map_err(|error| {
        crate::Error::new(crate::Kind::Settings, format!("no HTTP client can be made: {error}"))
            .because(error)
    })
}

async fn get<T: DeserializeOwned>(http: &reqwest::Client, address: &str) -> Result<T, String> {
    let answered = http.get(address).send().await.and_then(reqwest::Response::error_for_status);
    let response = answered.map_err(|error| error.to_string())?;
    read(response).await.map_err(|error| format!("{address}: {error}"))
}

/// Reads a JSON document that is not too long.
pub(crate) async fn read<T: DeserializeOwned>(mut response: reqwest::Response) -> Result<T, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| error.to_string())? {
        body.extend_from_slice(&chunk);
        if body.len() > DOCUMENT_BYTES_MAX {
            return Err(format!("it is longer than {DOCUMENT_BYTES_MAX} bytes"));
        }
    }
    serde_json::from_slice(&body).map_err(|error| error.to_string())
}
