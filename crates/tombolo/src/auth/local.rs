//! Local checks: a token is verified in the service itself, and then held against what was said of its user since.
//!
//! Invariant: before what was said is loaded, nobody is let in.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::blocks::Verdict;
use super::feed::Heard;
use super::keys::Keys;
use super::remembered::Remembered;
use super::token::{Claims, Expected};
use super::{Check, Refusal, User};
use crate::Clock;

/// The check.
pub(crate) struct Local {
    pub(crate) expected: Expected,
    pub(crate) keys: Keys,
    pub(crate) heard: Option<Arc<Heard>>,
    pub(crate) fallback: Option<Fallback>,
    pub(crate) remembered: Remembered<Claims>,
    pub(crate) clock: Clock,
}

/// Who is asked once nothing has been heard of blocks for too long.
pub(crate) struct Fallback {
    pub(crate) after: Duration,
    pub(crate) check: Arc<dyn Check>,
}

const AGAIN: Duration = Duration::from_secs(1);

#[async_trait]
impl Check for Local {
    async fn check(&self, token: &str) -> Result<User, Refusal> {
        if let Some(fallback) = self.fallback.as_ref().filter(|fallback| self.is_cut_off(fallback.after)) {
            return fallback.check.check(token).await;
        }
        let claims = self.verify(token).await?;
        hold_against(self.heard.as_deref(), User::from(&*claims))
    }
}

/// The user of a token that is right by itself, as what was heard since lets it be.
pub(crate) fn hold_against(heard: Option<&Heard>, user: User) -> Result<User, Refusal> {
    let Some(heard) = heard else { return Ok(user) };
    match heard.judge(&user) {
        Some(Verdict::Goes(None)) => Ok(user),
        Some(Verdict::Goes(Some(roles))) => Ok(User { roles, ..user }),
        Some(Verdict::Ended) => {
            tracing::debug!(user = user.id, "a token is refused: its user or its session was blocked");
            Err(Refusal::Token)
        }
        None => Err(Refusal::Away { what: "it is not known yet who was blocked", again: AGAIN }),
    }
}

impl Local {
    async fn verify(&self, token: &str) -> Result<Arc<Claims>, Refusal> {
        let refuse = |why| {
            tracing::debug!("a token is refused: {why}");
            Refusal::Token
        };
        let kid = self.expected.kid(token).map_err(refuse)?;
        let key = self.keys.find(&kid).await?;
        if let Some(claims) = self.remembered.find(token, &key) {
            claims.check_times(self.clock.now()).map_err(refuse)?;
            return Ok(claims);
        }
        let claims = Arc::new(self.expected.verify(token, &key, self.clock.now()).map_err(refuse)?);
        self.remembered.keep(token, &key, &claims);
        Ok(claims)
    }

    fn is_cut_off(&self, after: Duration) -> bool {
        self.heard.as_ref().is_some_and(|heard| heard.cut_off_for().is_some_and(|time| time >= after))
    }
}
