//! The signing keys: one that signs, one that is published already and signs next, and those whose tokens still live.
//!
//! ```text
//!            made        rotated                    rotated
//!   key 2    next ·············· current ──────────────── retired ·····|  gone: its last token has ended
//!   key 3                        next ···················· current ────
//!            published from the beginning, so that everybody has it before it signs
//! ```
//!
//! Invariant: no key signs before it was published for [`PUBLISHED_BEFORE`], and none disappears before its tokens have ended: so a
//! rotation refuses nobody. What is stored of a private key is sealed.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair};
use axum::http::StatusCode;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::jwk::{Jwk, PublicKeyUse};
use jsonwebtoken::{EncodingKey, Header};
use tombolo::auth::token::{Algorithm, Claims, Key, LEEWAY, TYPE};
use tombolo::{Problem, Result, Transaction};

use crate::App;
use crate::config::Config;
use crate::sealing::{broken, random};
use crate::store::{Store, StoredKey};

/// How long a key is published before it signs: longer than services keep what they fetched.
pub(crate) const PUBLISHED_BEFORE: Duration = Duration::from_secs(6 * 60);
/// How long what is in memory is believed.
const RELOAD_EVERY: Duration = Duration::from_secs(10);

/// What a key does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Next,
    Current,
    Retired,
}

/// A key that was opened.
pub(crate) struct Opened {
    pub(crate) jwk: Jwk,
    pub(crate) verifies: Key,
    signs: EncodingKey,
    state: State,
    since: Timestamp,
}

/// All keys, as they were at one time.
pub(crate) struct Ring {
    pub(crate) keys: Vec<Opened>,
    read_at: Timestamp,
}

/// The keys in memory.
#[derive(Default)]
pub(crate) struct Keyring(RwLock<Option<Arc<Ring>>>);

impl Ring {
    fn of(&self, state: State) -> Option<&Opened> {
        self.keys.iter().find(|key| key.state == state)
    }

    /// The key of this name, if its tokens may still live.
    pub(crate) fn find(&self, kid: &str) -> Option<&Key> {
        self.keys.iter().map(|key| &key.verifies).find(|key| key.kid == kid)
    }
}

fn later(time: Timestamp, by: Duration) -> Timestamp {
    SignedDuration::try_from(by).ok().and_then(|by| time.checked_add(by).ok()).unwrap_or(Timestamp::MAX)
}

impl Keyring {
    /// The keys as they are now: made at the first time, and rotated once it is time.
    pub(crate) async fn ring<D: Store>(&self, app: &App<D>, config: &Config) -> Result<Arc<Ring>> {
        let now = app.now();
        let kept = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(ring) = kept.filter(|ring| now < later(ring.read_at, RELOAD_EVERY)) {
            return Ok(ring);
        }
        let mut ring = read(app, config).await?;
        if ring.of(State::Current).is_none() || ring.of(State::Next).is_none() {
            complete(app, config).await?;
            ring = read(app, config).await?;
        }
        let is_due = |key: &Opened| now >= later(key.since, config.rotate_every);
        if ring.of(State::Current).is_some_and(is_due) && rotate(app, config).await?.is_ok() {
            ring = read(app, config).await?;
        }
        Ok(self.keep(ring))
    }

    fn keep(&self, ring: Ring) -> Arc<Ring> {
        let ring = Arc::new(ring);
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&ring));
        ring
    }

    /// Has the next key sign from now on.
    pub(crate) async fn rotate<D: Store>(&self, app: &App<D>, config: &Config) -> Result<(), Problem> {
        self.ring(app, config).await?;
        let rotated = rotate(app, config).await?;
        self.keep(read(app, config).await?);
        rotated.map_err(|published| {
            let free_at = later(published, PUBLISHED_BEFORE);
            let detail = format!(
                "the next key was published at {published}, and services may not have it before {free_at}; rotate after that"
            );
            Problem::new(StatusCode::CONFLICT, detail).of_type("urn:tombolo:identity:key-too-new")
        })
    }

    /// Signs `claims`.
    pub(crate) async fn sign<D: Store>(
        &self,
        app: &App<D>,
        config: &Config,
        claims: &Claims,
    ) -> Result<String> {
        let ring = self.ring(app, config).await?;
        let key = ring.of(State::Current).ok_or(()).map_err(broken("finding a key to sign with"))?;
        let mut header = Header::new(key.verifies.algorithm);
        header.typ = Some(TYPE.to_owned());
        header.kid = Some(key.verifies.kid.clone());
        jsonwebtoken::encode(&header, claims, &key.signs).map_err(broken("signing"))
    }
}

/// Reads the keys, but for those whose last token has ended.
async fn read<D: Store>(app: &App<D>, config: &Config) -> Result<Ring> {
    let read_at = app.now();
    let kept = config.token_life + LEEWAY + 2 * RELOAD_EVERY;
    let mut keys = Vec::new();
    for stored in app.database().keys().await? {
        let key = open(config, &stored)?;
        if key.state != State::Retired || read_at < later(key.since, kept) {
            keys.push(key);
        }
    }
    Ok(Ring { keys, read_at })
}

fn open(config: &Config, stored: &StoredKey) -> Result<Opened> {
    let secret = config.sealing_key.open(&stored.kid, &stored.sealed)?;
    let (algorithm, signs) = match stored.algorithm.as_str() {
        "ES256" => (Algorithm::ES256, EncodingKey::from_ec_der(&secret)),
        _ => (Algorithm::EdDSA, EncodingKey::from_ed_der(&secret)),
    };
    let mut jwk = Jwk::from_encoding_key(&signs, algorithm).map_err(broken("reading a signing key"))?;
    jwk.common.key_id = Some(stored.kid.clone());
    jwk.common.public_key_use = Some(PublicKeyUse::Signature);
    let verifies = Key::from_jwk(&jwk, &[algorithm]).ok_or(()).map_err(broken("reading a signing key"))?;
    let state = match stored.state.as_str() {
        "next" => State::Next,
        "current" => State::Current,
        _ => State::Retired,
    };
    let since = Timestamp::from_millisecond(stored.since_ms).unwrap_or(Timestamp::MIN);
    Ok(Opened { jwk, verifies, signs, state, since })
}

/// Makes a key, sealed.
fn make(config: &Config, state: &'static str, since: Timestamp) -> Result<StoredKey> {
    let kid = URL_SAFE_NO_PAD.encode(random::<16>()?);
    let failed = || broken("making a signing key");
    let secret = match config.algorithm {
        Algorithm::EdDSA => {
            let pair = Ed25519KeyPair::generate().map_err(failed())?;
            pair.to_pkcs8v1().map_err(failed())?.as_ref().to_vec()
        }
        _ => {
            let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map_err(failed())?;
            pair.to_pkcs8v1().map_err(failed())?.as_ref().to_vec()
        }
    };
    Ok(StoredKey {
        sealed: config.sealing_key.seal(&kid, &secret)?,
        kid,
        algorithm: format!("{:?}", config.algorithm),
        state: state.to_owned(),
        since_ms: since.as_millisecond(),
    })
}

/// Makes the keys that are not there yet. Nobody verifies by any key before the first one signs.
async fn complete<D: Store>(app: &App<D>, config: &Config) -> Result<()> {
    let mut tx = app.begin().await?;
    let there = D::keys_in(&mut tx).await?;
    for state in ["current", "next"] {
        if there.iter().all(|key| key.state != state) {
            D::insert_key(&mut tx, &make(config, state, app.now())?).await?;
        }
    }
    tx.commit().await?;
    Ok(())
}

/// Has the next key sign; or, if that is too new, says since when it is published.
async fn rotate<D: Store>(app: &App<D>, config: &Config) -> Result<Result<(), Timestamp>> {
    let now = app.now();
    let mut tx = app.begin().await?;
    let there = D::keys_in(&mut tx).await?;
    let next =
        there.iter().find(|key| key.state == "next").ok_or(()).map_err(broken("finding the next key"))?;
    let published = Timestamp::from_millisecond(next.since_ms).unwrap_or(Timestamp::MAX);
    if now < later(published, PUBLISHED_BEFORE) {
        tx.rollback().await?;
        return Ok(Err(published));
    }
    let kept = config.token_life + LEEWAY + 2 * RELOAD_EVERY;
    let gone = now.checked_sub(SignedDuration::try_from(kept).unwrap_or(SignedDuration::MAX));
    D::rotate_keys(&mut tx, now, gone.unwrap_or(Timestamp::MIN)).await?;
    D::insert_key(&mut tx, &make(config, "next", now)?).await?;
    tx.commit().await?;
    tracing::info!("another key signs from now on");
    Ok(Ok(()))
}
