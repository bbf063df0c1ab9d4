//! Central checks: the issuer is asked for each request (RFC 7662).
//!
//! Invariant: nothing is remembered unless that was asked for, so a block takes effect with the next request; an issuer that does not
//! answer lets nobody in, and is not asked by everybody at once.
//!
//! Source: <https://www.rfc-editor.org/rfc/rfc7662>.

use std::time::Duration;

use async_trait::async_trait;
use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use quick_cache::sync::Cache;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::breaker::Breaker;
use super::remembered::{Hash, TOKENS_MAX, hash};
use super::settings::Issuer;
use super::token::{Audience, Expected};
use super::{Check, Refusal, User, keys};
use crate::Clock;
use crate::settings::Secret;

/// How long the issuer's answer is waited for.
const ASK_BOUND: Duration = Duration::from_secs(2);
/// When to ask again after a failure that is not the breaker's.
const AGAIN: Duration = Duration::from_secs(1);

/// The check.
pub(crate) struct Central {
    address: String,
    client: (String, Secret),
    expected: Expected,
    http: reqwest::Client,
    breaker: Breaker,
    clock: Clock,
    remembered: Option<(SignedDuration, Lately)>,
}

/// Whom the issuer let in lately, until when that counts.
type Lately = Cache<Hash, (Timestamp, User)>;

#[derive(Serialize)]
struct Asked<'a> {
    token: &'a str,
    token_type_hint: &'static str,
}

#[derive(Deserialize)]
struct Answered {
    active: bool,
    sub: Option<String>,
    sid: Option<String>,
    client_id: Option<String>,
    #[serde(default)]
    ver: u64,
    #[serde(default)]
    roles: Vec<String>,
    exp: Option<i64>,
    iss: Option<String>,
    aud: Option<Audience>,
}

#[async_trait]
impl Check for Central {
    async fn check(&self, token: &str) -> Result<User, Refusal> {
        if let Some(user) = self.find(token) {
            return Ok(user);
        }
        let leave = self.breaker.enter(Instant::now()).map_err(away)?;
        match self.ask(token).await {
            Ok(answered) => {
                leave.answered();
                self.judge(answered).inspect(|user| self.keep(token, user))
            }
            Err(error) => {
                leave.failed(Instant::now());
                tracing::warn!("{} cannot be asked who is asking: {error}", self.address);
                Err(away(AGAIN))
            }
        }
    }
}

fn away(again: Duration) -> Refusal {
    Refusal::Away { what: "it cannot be found out now who is asking", again }
}

impl Central {
    pub(crate) fn new(
        issuer: &Issuer,
        client: &(String, Secret),
        expected: Expected,
        http: reqwest::Client,
        clock: Clock,
    ) -> Self {
        let under = || format!("{}/introspect", issuer.name.trim_end_matches('/'));
        let address = issuer.introspect_at.clone().unwrap_or_else(under);
        Self {
            address,
            client: client.clone(),
            expected,
            http,
            breaker: Breaker::default(),
            clock,
            remembered: None,
        }
    }

    /// The same, which remembers for so long whom the issuer let in.
    pub(crate) fn remembering(mut self, kept: Option<Duration>) -> Self {
        let kept = kept.and_then(|kept| SignedDuration::try_from(kept).ok());
        self.remembered = kept.map(|kept| (kept, Cache::new(TOKENS_MAX)));
        self
    }

    fn find(&self, token: &str) -> Option<User> {
        let (until, user) = self.remembered.as_ref()?.1.get(&hash(token)?)?;
        (self.clock.now() < until).then_some(user)
    }

    fn keep(&self, token: &str, user: &User) {
        let Some((kept, lately)) = &self.remembered else { return };
        let (Some(hash), Ok(until)) = (hash(token), self.clock.now().checked_add(*kept)) else { return };
        let ends = user.ends.and_then(|ends| Timestamp::from_second(ends).ok());
        lately.insert(hash, (ends.map_or(until, |ends| ends.min(until)), user.clone()));
    }

    async fn ask(&self, token: &str) -> Result<Answered, String> {
        let (client, secret) = &self.client;
        let asked = Asked { token, token_type_hint: "access_token" };
        let request = self.http.post(&self.address).basic_auth(client, Some(&secret.0)).form(&asked);
        let response = request.timeout(ASK_BOUND).send().await.map_err(|error| error.to_string())?;
        match response.status() {
            StatusCode::OK => keys::read(response).await,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(format!(
                "it does not know the client {client:?} by this secret; register it there, or mend TOMBOLO_AUTH_SECRET"
            )),
            status => Err(format!("it answered {status}")),
        }
    }

    fn judge(&self, answered: Answered) -> Result<User, Refusal> {
        let Answered { active: true, sub: Some(id), .. } = answered else { return Err(Refusal::Token) };
        let is_other_issuer = answered.iss.is_some_and(|issuer| issuer != self.expected.issuer);
        let is_for_us = answered.aud.is_some_and(|audience| audience.has(&self.expected.audience));
        let has_ended = answered.exp.is_some_and(|exp| exp <= self.clock.now().as_second());
        if id.is_empty() || is_other_issuer || !is_for_us || has_ended {
            return Err(Refusal::Token);
        }
        let client = answered.client_id.unwrap_or_default();
        let Answered { sid: session, roles, ver: version, exp: ends, .. } = answered;
        Ok(User { id, session, roles, client, version, ends })
    }
}
