//! Who is asking: the extractors [`User`], [`Admin`], `Option<User>` and [`Caller`], and the ways to check what they are told by.
//!
//! ```text
//! Service::new("orders", database).auth(Auth::local("http://identity:7106")).routes(routes)
//! async fn place(State(app): State<App>, user: User, Json(body): Json<PlaceOrder>) -> Result<Json<Order>, Problem> { … }
//! ```
//!
//! A request shows an access token. **Local** checks verify it here, by the issuer's published keys, and look into what
//! identity's topic said of its user since it was issued; **central** ones ask the issuer; behind a **gateway** it is the gateway
//! that checks, and vouches by an internal token of its own. Which of them is one line of code or one variable of the environment,
//! for all routes or for one. A `call` carries an internal token by itself: the asking service, and the user for whom it asks.
//!
//! Invariant: nobody is let in by anything but a token that was checked; no header of a client's says who is asking. An internal
//! token that is shown decides: a wrong one is refused, whatever else the request has. A refusal says what to do, and not what was
//! wrong with the token.

mod settings;
pub mod mutant;
pub mod token;
mod refusal;
mod remembered;
pub mod blocks;
mod trail;
mod feed;
mod propagation;
mod keys;
mod local;
mod breaker;
mod central;
mod internal;
pub mod door;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::extract::{Extension, FromRequestParts, OptionalFromRequestParts};
use http::request::Parts;
use http::{HeaderMap, header};
use serde::Serialize;

pub use door::Door;
use feed::Heard;
use internal::Vouched;
pub(crate) use internal::{ALGORITHMS as INTERNAL_ALGORITHMS, Internal, Signer};
pub use internal::{INTERNAL_HEADER, INTERNAL_TYPE, LIFE as INTERNAL_LIFE};
pub(crate) use propagation::Propagation;
pub use refusal::Refusal;
pub(crate) use settings::Opened;
pub use settings::{Auth, Way};
pub use tombolo_event::propagation::{STANDING, Standing};
pub(crate) use trail::InDatabase;

use crate::current::Current;

/// The role of whoever administers.
pub const ADMIN: &str = "admin";

/// Somebody who is signed in.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct User {
    /// The user, as the issuer names it.
    pub id: String,
    /// The session in which the token was issued, if the issuer says.
    pub session: Option<String>,
    /// What the user may do.
    pub roles: Vec<String>,
    /// The program by which the user asks.
    pub client: String,
    /// The version of the user at which the token was issued.
    #[serde(skip)]
    pub(crate) version: u64,
    /// When the token ends, in seconds since 1970, if it says.
    #[serde(skip)]
    pub(crate) ends: Option<i64>,
}

impl User {
    /// Whether the user has a role.
    #[must_use]
    pub fn has_role(&self, role: &str) -> bool {
        self.roles.iter().any(|has| has == role)
    }
}

/// Somebody who is signed in and has the role [`ADMIN`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin(pub User);

/// The service that calls, as its internal token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Caller {
    /// Its name.
    pub service: String,
}

/// Who is asking in the work at hand, as far as anybody has found out.
#[derive(Debug, Default)]
pub(crate) struct ForWhom {
    pub(crate) user: Option<Result<User, Refusal>>,
    pub(crate) caller: Option<Result<Caller, Refusal>>,
}

/// A way to check an access token.
#[async_trait]
pub(crate) trait Check: Send + Sync + 'static {
    /// Who shows `token`.
    ///
    /// # Errors
    /// [`Refusal::Token`] for a token that lets nobody in; [`Refusal::Away`] if that cannot be found out now.
    async fn check(&self, token: &str) -> Result<User, Refusal>;
}

/// The checks of a service. Clones are the same ones.
#[derive(Clone)]
pub(crate) struct Checks {
    way: Way,
    local: Option<Arc<dyn Check>>,
    central: Option<Arc<dyn Check>>,
    heard: Option<Arc<Heard>>,
    doors: Arc<[String]>,
    alarm_after: Duration,
}

impl Checks {
    /// The routes behind these checks.
    pub(crate) fn over<S: Clone + Send + Sync + 'static>(self, routes: Router<S>) -> Router<S> {
        routes.layer(Extension(self))
    }

    /// What is wrong, if nothing has been heard of blocks for too long.
    fn complaint(&self) -> Option<String> {
        let cut_off = self.heard.as_ref()?.cut_off_for().filter(|time| *time >= self.alarm_after)?;
        let seconds = cut_off.as_secs();
        Some(format!(
            "the bus cannot be reached for {seconds} s: who was blocked or signed out since is not known here"
        ))
    }

    /// The way of routes that name no other.
    pub(crate) fn way(&self) -> Way {
        self.way
    }

    fn of(&self, way: Way) -> Result<&Arc<dyn Check>, Refusal> {
        let check = match way {
            Way::Local => self.local.as_ref(),
            Way::Central => self.central.as_ref(),
            Way::Gateway => None,
        };
        check.ok_or_else(|| Refusal::Unset(format!("has no {way} check; set it up where `.auth(…)` is")))
    }

    /// Who shows an access token, if there is one.
    async fn shown(&self, token: Option<&str>, way: Way) -> Result<Option<User>, Refusal> {
        match token {
            Some(token) => self.of(way)?.check(token).await.map(Some),
            None => Ok(None),
        }
    }

    /// The user of an internal token.
    async fn vouched(
        &self,
        vouched: Vouched,
        token: Result<Option<&str>, Refusal>,
        way: Way,
    ) -> Result<Option<User>, Refusal> {
        let Vouched { caller, user } = vouched;
        let Some(user) = user else { return Ok(None) };
        if way == Way::Gateway && !self.doors.contains(&caller.service) {
            let doors = &self.doors;
            tracing::debug!(caller.service, ?doors, "a user is refused: the service that vouches is no door");
            return Err(Refusal::Internal);
        }
        let user = local::hold_against(self.heard.as_deref(), user)?;
        // What is to be asked is asked, where the user's own token has come along.
        match (way, token) {
            (Way::Central, Ok(Some(token))) => {
                let asked = self.of(way)?.check(token).await?;
                if asked.id == user.id { Ok(Some(asked)) } else { Err(Refusal::Token) }
            }
            _ => Ok(Some(user)),
        }
    }
}

/// Who is asking, if somebody says so.
async fn asking(parts: &Parts) -> Result<Option<User>, Refusal> {
    let Some(checks) = parts.extensions.get::<Checks>() else {
        return Err(Refusal::Unset("has no checks; add `.auth(…)` where the service is built".to_owned()));
    };
    let way = parts.extensions.get::<Way>().copied().unwrap_or(checks.way);
    let token = bearer(&parts.headers);
    let user = match vouched(parts).await? {
        Some(vouched) => checks.vouched(vouched, token, way).await?,
        // Whoever comes past the gateway with a token of whatever kind is refused.
        None if way == Way::Gateway => match token? {
            Some(_) => return Err(Refusal::Token),
            None => None,
        },
        None => checks.shown(token?, way).await?,
    };
    if let Some(user) = &user {
        Current::note_user(user);
    }
    Ok(user)
}

/// What is wrong with the checks of the service that this request came to.
pub(crate) fn complaint(parts: &Parts) -> Option<String> {
    parts.extensions.get::<Checks>().and_then(Checks::complaint)
}

/// What another service vouches for in this request.
async fn vouched(parts: &Parts) -> Result<Option<Vouched>, Refusal> {
    match parts.extensions.get::<Arc<Internal>>() {
        Some(internal) => internal.vouched(&parts.headers).await,
        None if parts.headers.contains_key(INTERNAL_HEADER) => Err(Refusal::Internal),
        None => Ok(None),
    }
}

/// Who asks a question that came by a call. Nobody is refused by this: that is for the handler to do, if it wants to know.
pub(crate) async fn for_whom(parts: &Parts) -> ForWhom {
    let caller = match vouched(parts).await {
        Ok(vouched) => vouched.map(|vouched| Ok(vouched.caller)),
        Err(refusal) => Some(Err(refusal)),
    };
    let user = match asking(parts).await {
        Ok(user) => user.map(Ok),
        Err(refusal) => Some(Err(refusal)),
    };
    ForWhom { user, caller }
}

/// The token of the one `Authorization` header that there may be.
///
/// # Errors
/// [`Refusal::Token`] for anything else in it, or two of them.
pub fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let mut given = headers.get_all(header::AUTHORIZATION).iter();
    let Some(first) = given.next() else { return Ok(None) };
    let token = first.to_str().ok().and_then(|value| value.split_once(' '));
    let token = token.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, token)| token);
    match (token, given.next()) {
        (Some(token), None) if !token.is_empty() && token.len() <= token::TOKEN_BYTES_MAX => Ok(Some(token)),
        _ => Err(Refusal::Token),
    }
}

impl<S: Send + Sync> FromRequestParts<S> for User {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Refusal> {
        asking(parts).await?.ok_or(Refusal::Nobody)
    }
}

impl<S: Send + Sync> OptionalFromRequestParts<S> for User {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Option<Self>, Refusal> {
        asking(parts).await
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Admin {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let user = <User as FromRequestParts<S>>::from_request_parts(parts, state).await?;
        if user.has_role(ADMIN) { Ok(Self(user)) } else { Err(Refusal::Role(ADMIN)) }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Refusal> {
        vouched(parts).await?.map(|vouched| vouched.caller).ok_or(Refusal::NoService)
    }
}

impl<S: Send + Sync> OptionalFromRequestParts<S> for Caller {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Option<Self>, Refusal> {
        Ok(vouched(parts).await?.map(|vouched| vouched.caller))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[&'static str]) -> HeaderMap {
        let values = values.iter().map(|value| http::HeaderValue::from_static(value));
        values.map(|value| (header::AUTHORIZATION, value)).fold(HeaderMap::new(), |mut all, (name, value)| {
            all.append(name, value);
            all
        })
    }

    #[test]
    fn exactly_one_bearer_token_is_taken() {
        assert!(matches!(bearer(&headers(&[])), Ok(None)));
        assert!(matches!(bearer(&headers(&["bearer a.b.c"])), Ok(Some("a.b.c"))));
        for refused in [&["Bearer "][..], &["Basic a"], &["a.b.c"], &["Bearer a", "Bearer b"], &["Bearer"]] {
            assert!(matches!(bearer(&headers(refused)), Err(Refusal::Token)), "{refused:?}");
        }
        let long: &'static str = Box::leak(format!("Bearer {}", "a".repeat(9 << 10)).into_boxed_str());
        assert!(bearer(&headers(&[long])).is_err());
    }
}
