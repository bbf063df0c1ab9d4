//! Tokens from service to service: who calls, and for which user.
//!
//! ```text
//!  orders ── Tombolo-Internal-Token: iss orders, aud products, sub ada, 60 s ──► products
//!     └ its public key, with its registration at the bus ─────────────────────────┘ found by iss and kid
//! ```
//!
//! A process makes its key when it starts, and keeps it in memory alone. The bus lets only the owner of a name register it, once
//! it has credentials; so whose key it is, is as certain as whose events are whose.
//!
//! Invariant: a token is taken by the service that it is for, and by no other; it outlives neither [`LIFE`] nor the access token that
//! it stands for; however many tokens name keys that are not known, the bus is asked at most once in [`LOOK_EVERY`].

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::signature::Ed25519KeyPair;
use http::{HeaderMap, HeaderValue};
use jiff::Timestamp;
use jsonwebtoken::jwk::{Jwk, PublicKeyUse};
use jsonwebtoken::{EncodingKey, Header, Validation};
use quick_cache::sync::Cache;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::time::Instant;
use uuid::Uuid;

use super::mutant::{Mutant, Mutation};
use super::remembered::{Remembered, TOKENS_MAX};
use super::token::{self, Algorithm, Key, Refused, TOKEN_BYTES_MAX};
use super::{Caller, Refusal, User};
use crate::directory::Directory;
use crate::{Clock, Error, Kind, Result};

/// The header that carries an internal token.
pub const INTERNAL_HEADER: &str = "tombolo-internal-token";
/// What the header's `typ` says of an internal token.
pub const INTERNAL_TYPE: &str = "tombolo-internal+jwt";
/// How long an internal token lives at most.
pub const LIFE: Duration = Duration::from_secs(60);
/// For how long a token that was signed is sent again, rather than one signed for each request. What it says is the same, and it
/// lives at least as long again, unless the user's own token ends before.
const SENT_AGAIN: Duration = Duration::from_secs(30);
/// How a service may sign them.
pub(crate) const ALGORITHMS: [Algorithm; 2] = [Algorithm::EdDSA, Algorithm::ES256];
/// How often the bus is asked at most for keys that are not known.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What an internal token says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Says {
    iss: String,
    aud: String,
    iat: i64,
    exp: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    sub: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sid: Option<String>,
    #[serde(default)]
    ver: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    roles: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_id: Option<String>,
}

impl Says {
    fn of(asker: &str, user: Option<&User>, callee: &str, now: Timestamp) -> Self {
        let now = now.as_second();
        let longest = now.saturating_add(LIFE.as_secs().cast_signed());
        Self {
            iss: asker.to_owned(),
            aud: callee.to_owned(),
            iat: now,
            exp: user.and_then(|user| user.ends).map_or(longest, |ends| ends.min(longest)),
            sub: user.map(|user| user.id.clone()),
            sid: user.and_then(|user| user.session.clone()),
            ver: user.map_or(0, |user| user.version),
            roles: user.map(|user| user.roles.clone()).unwrap_or_default(),
            client_id: user.map(|user| user.client.clone()),
        }
    }

    fn check(&self, callee: &str) -> Result<(), Refused> {
        let is_empty = self.iss.is_empty() || self.sub.as_ref().is_some_and(String::is_empty);
        if is_empty || self.aud != callee {
            return Err(Refused::Meant);
        }
        let longest = self.iat.saturating_add(LIFE.as_secs().cast_signed());
        if self.exp > longest { Err(Refused::Time) } else { Ok(()) }
    }

    /// Who calls, and for whom.
    fn vouched(&self) -> Vouched {
        let Self { iss, sid, ver, roles, client_id, exp, .. } = self;
        let user = self.sub.clone().map(|id| User {
            id,
            session: sid.clone(),
            roles: roles.clone(),
            client: client_id.clone().unwrap_or_default(),
            version: *ver,
            ends: Some(*exp),
        });
        Vouched { caller: Caller { service: iss.clone() }, user }
    }
}

/// What a service vouches for: that it calls, and for which user.
#[derive(Debug, Clone)]
pub(crate) struct Vouched {
    pub(crate) caller: Caller,
    pub(crate) user: Option<User>,
}

/// A process's own key.
pub(crate) struct Signer {
    name: String,
    kid: String,
    signs: EncodingKey,
    jwk: Jwk,
    /// By for whom and for which service: what was signed last, and when.
    signed: Cache<(Option<User>, String), (Timestamp, HeaderValue)>,
}

fn broken<E: std::fmt::Display>(error: E) -> Error {
    Error::new(Kind::Failed, format!("no key can be made: {error}; the machine's cryptography does not work"))
}

impl Signer {
    /// A new key for the service `name`.
    pub(crate) fn new(name: &str) -> Result<Self> {
        let pair = Ed25519KeyPair::generate().map_err(broken)?;
        let pair = pair.to_pkcs8v1().map_err(broken)?;
        let signs = EncodingKey::from_ed_der(pair.as_ref());
        let mut jwk = Jwk::from_encoding_key(&signs, Algorithm::EdDSA).map_err(broken)?;
        let kid = Uuid::new_v4().to_string();
        jwk.common.key_id = Some(kid.clone());
        jwk.common.public_key_use = Some(PublicKeyUse::Signature);
        Ok(Self { name: name.to_owned(), kid, signs, jwk, signed: Cache::new(TOKENS_MAX) })
    }

    /// The public key, as it is registered.
    pub(crate) fn jwk(&self) -> &Jwk {
        &self.jwk
    }

    /// The public key, as others verify by it.
    #[cfg(test)]
    pub(crate) fn key(&self) -> Option<Key> {
        Key::from_jwk(&self.jwk, &ALGORITHMS)
    }

    /// A token by which `callee` knows who calls, and for which user.
    pub(crate) fn sign(&self, user: Option<&User>, callee: &str, now: Timestamp) -> Result<HeaderValue> {
        let meant = (user.cloned(), callee.to_owned());
        let is_fresh = |signed: &Timestamp| {
            let age = now.as_second() - signed.as_second();
            (0..SENT_AGAIN.as_secs().cast_signed()).contains(&age)
        };
        if let Some((signed, token)) = self.signed.get(&meant)
            && is_fresh(&signed)
        {
            return Ok(token);
        }
        let token = self.sign_anew(user, callee, now)?;
        self.signed.insert(meant, (now, token.clone()));
        Ok(token)
    }

    fn sign_anew(&self, user: Option<&User>, callee: &str, now: Timestamp) -> Result<HeaderValue> {
        let mut header = Header::new(Algorithm::EdDSA);
        header.typ = Some(INTERNAL_TYPE.to_owned());
        header.kid = Some(self.kid.clone());
        let says = Says::of(&self.name, user, callee, now);
        let signed = jsonwebtoken::encode(&header, &says, &self.signs);
        let signed = signed.map_err(|error| {
            Error::new(Kind::Failed, format!("a token for {callee} cannot be signed: {error}"))
        })?;
        HeaderValue::try_from(signed).map_err(|error| Error::new(Kind::Failed, error.to_string()))
    }
}

/// What a service signs its calls with, and how it verifies those of others.
pub(crate) struct Internal {
    signer: Arc<Signer>,
    directory: Arc<Directory>,
    clock: Clock,
    mutation: Mutation,
    looked: Mutex<Option<Instant>>,
    remembered: Remembered<Says>,
}

impl Internal {
    pub(crate) fn new(
        signer: Arc<Signer>,
        directory: Arc<Directory>,
        clock: Clock,
        mutation: Mutation,
    ) -> Self {
        let (looked, remembered) = (Mutex::default(), Remembered::default());
        Self { signer, directory, clock, mutation, looked, remembered }
    }

    /// A token by which `callee` knows who calls, and for which user. A call goes on without one that cannot be signed, and is
    /// refused where one is asked for.
    pub(crate) fn sign(&self, user: Option<&User>, callee: &str) -> Option<HeaderValue> {
        match self.signer.sign(user, callee, self.clock.now()) {
            Ok(token) => Some(token),
            Err(error) => {
                tracing::error!("{error}");
                None
            }
        }
    }

    /// What the headers of a request vouch for, if they have a token.
    pub(crate) async fn vouched(&self, headers: &HeaderMap) -> Result<Option<Vouched>, Refusal> {
        let mut given = headers.get_all(INTERNAL_HEADER).iter();
        let Some(first) = given.next() else { return Ok(None) };
        let token = first.to_str().ok().filter(|_| given.next().is_none());
        let verified = match token {
            Some(token) => self.verify(token).await,
            None => Err(Refused::Form),
        };
        match verified {
            Ok(says) => Ok(Some(says.vouched())),
            Err(why) => {
                tracing::debug!("an internal token is refused: {why}");
                Err(Refusal::Internal)
            }
        }
    }

    async fn verify(&self, token: &str) -> Result<Arc<Says>, Refused> {
        let kid = token::read_header(token, &ALGORITHMS, INTERNAL_TYPE)?;
        let caller = unverified_issuer(token)?;
        let key = self.key(&caller, &kid).await.ok_or(Refused::Signature)?;
        let says = match self.remembered.find(token, &key) {
            Some(says) => says,
            None => self.decode(token, &key, &caller)?,
        };
        token::check_times(says.iat, says.exp, self.clock.now())?;
        Ok(says)
    }

    fn decode(&self, token: &str, key: &Arc<Key>, caller: &str) -> Result<Arc<Says>, Refused> {
        let mut validation = Validation::new(key.algorithm);
        validation.set_issuer(&[caller]);
        validation.set_audience(&[&self.signer.name]);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        // By the service's own clock instead.
        validation.validate_exp = false;
        validation.validate_aud = !self.mutation.is(Mutant::TakesForOthers);
        let verified = jsonwebtoken::decode::<Says>(token, &key.decoding, &validation);
        let says = Arc::new(verified.map_err(|error| token::refused(&error))?.claims);
        if !self.mutation.is(Mutant::TakesForOthers) {
            says.check(&self.signer.name)?;
        }
        self.remembered.keep(token, key, &says);
        Ok(says)
    }

    /// The key of a service's replica; looked for at the bus if it is not known, but not by everybody at once.
    async fn key(&self, service: &str, kid: &str) -> Option<Arc<Key>> {
        if let Some(key) = self.directory.key(service, kid) {
            return Some(key);
        }
        let mut looked = self.looked.lock().await;
        if let Some(key) = self.directory.key(service, kid) {
            return Some(key);
        }
        let is_due = looked.is_none_or(|looked| looked.elapsed() >= LOOK_EVERY);
        if !is_due && !self.mutation.is(Mutant::AsksEachTime) {
            return None;
        }
        *looked = Some(Instant::now());
        if let Err(error) = self.directory.refresh().await {
            tracing::debug!("the keys of {service} cannot be looked for: {error}");
        }
        self.directory.key(service, kid)
    }
}

#[derive(Deserialize)]
struct Issued {
    iss: String,
}

/// By whom a token says that it is, before anything proves it: only to find the key that has to.
fn unverified_issuer(token: &str) -> Result<String, Refused> {
    if token.len() > TOKEN_BYTES_MAX {
        return Err(Refused::Form);
    }
    let issued = jsonwebtoken::dangerous::insecure_decode_claims::<Issued>(token);
    issued.map(|issued| issued.iss).map_err(|_| Refused::Form)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tombolo_bus::{Bus, Registration};

    use super::*;
    use crate::testing::WorldBus;

    async fn looks_for_a_flood(mutation: Mutation) -> u64 {
        let bus: Arc<dyn Bus> = Arc::new(WorldBus::calm());
        let own = Registration {
            service: "orders".parse().unwrap(),
            replica: 1,
            url: String::new(),
            descriptor: "{}".into(),
        };
        let directory = Arc::new(Directory::new(bus, own, Vec::new()));
        let signer = Arc::new(Signer::new("orders").unwrap());
        let (clock, changes) = (Clock::stopped(), directory.changes());
        let internal = Internal::new(signer, directory, clock.clone(), mutation);
        for _ in 0..100 {
            let token = Signer::new("stranger").unwrap().sign(None, "orders", clock.now()).unwrap();
            let headers = HeaderMap::from_iter([(INTERNAL_HEADER.parse().unwrap(), token)]);
            assert_eq!(internal.vouched(&headers).await.unwrap_err(), Refusal::Internal);
        }
        *changes.borrow()
    }

    #[test]
    fn a_token_is_sent_again_for_a_while_to_the_same_service_for_the_same_user_as_the_user_is() {
        let (signer, clock) = (Signer::new("orders").unwrap(), Clock::stopped());
        let ada = User {
            id: "ada".into(),
            session: None,
            roles: Vec::new(),
            client: "shop".into(),
            version: 1,
            ends: Some(clock.now().as_second() + 900),
        };
        let first = signer.sign(Some(&ada), "products", clock.now()).unwrap();
        assert_eq!(signer.sign(Some(&ada), "products", clock.now()).unwrap(), first);
        let mut others = vec![
            signer.sign(None, "products", clock.now()).unwrap(),
            signer.sign(Some(&ada), "users", clock.now()).unwrap(),
        ];
        for changed in [
            User { id: "bob".into(), ..ada.clone() },
            User { roles: vec!["admin".into()], ..ada.clone() },
            User { version: 2, ..ada.clone() },
            User { session: Some("s".into()), ..ada.clone() },
            User { ends: Some(clock.now().as_second() + 5), ..ada.clone() },
        ] {
            others.push(signer.sign(Some(&changed), "products", clock.now()).unwrap());
        }
        clock.advance(SENT_AGAIN);
        others.push(signer.sign(Some(&ada), "products", clock.now()).unwrap());
        let different: std::collections::HashSet<_> = others.iter().chain([&first]).collect();
        assert_eq!(different.len(), 9);
    }

    #[tokio::test]
    async fn a_flood_of_unknown_keys_asks_the_bus_once_in_a_while() {
        let begun = Instant::now();
        let looks = looks_for_a_flood(Mutation::default()).await;
        assert!((1..=1 + begun.elapsed().as_secs()).contains(&looks), "{looks} looks");
        #[cfg(feature = "mutants")]
        assert_eq!(
            looks_for_a_flood(Mutation(Some(Mutant::AsksEachTime))).await,
            100,
            "the mutant is caught"
        );
    }
}
