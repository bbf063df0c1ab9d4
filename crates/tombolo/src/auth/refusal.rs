//! Why somebody is not let in, as a problem document that says what to do.
//!
//! Invariant: nothing here tells a wrong token from an expired or a blocked one; that is said to the service's own log alone.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};

use crate::Problem;

/// Why somebody is not let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// No token was shown.
    Nobody,
    /// The token lets nobody in.
    Token,
    /// No internal token was shown, where only a service may ask.
    NoService,
    /// The internal token lets nobody in.
    Internal,
    /// The user does not have this role.
    Role(&'static str),
    /// It cannot be found out now.
    Away {
        /// What is away, for people.
        what: &'static str,
        /// When to ask again.
        again: Duration,
    },
    /// The service was put together without what the route needs.
    Unset(String),
}

const SIGN_IN: &str = "urn:tombolo:auth:sign-in";
const TOKEN: &str = "urn:tombolo:auth:token-refused";
const SERVICE: &str = "urn:tombolo:auth:service-only";
const INTERNAL: &str = "urn:tombolo:auth:internal-token-refused";
const ROLE: &str = "urn:tombolo:auth:role-missing";
const AWAY: &str = "urn:tombolo:auth:away";
const UNSET: &str = "urn:tombolo:auth:not-set-up";

impl Refusal {
    fn problem(&self) -> Problem {
        match self {
            Self::Nobody => {
                let detail =
                    "found no access token; sign in, and send the token as `Authorization: Bearer …`";
                Problem::new(StatusCode::UNAUTHORIZED, detail).of_type(SIGN_IN)
            }
            Self::Token => {
                let detail =
                    "the access token lets nobody in; get another with the refresh token, or sign in";
                Problem::new(StatusCode::UNAUTHORIZED, detail).of_type(TOKEN)
            }
            Self::NoService => {
                let detail = "found no internal token; this is for services, whose calls carry one";
                Problem::new(StatusCode::UNAUTHORIZED, detail).of_type(SERVICE)
            }
            Self::Internal => {
                let detail = "the internal token lets nobody in; the service that calls has to be registered at the bus, and to ask this one by its name";
                Problem::new(StatusCode::UNAUTHORIZED, detail).of_type(INTERNAL)
            }
            Self::Role(role) => {
                let detail = format!("this needs the role {role:?}; ask an administrator for it");
                Problem::new(StatusCode::FORBIDDEN, detail).of_type(ROLE)
            }
            Self::Away { what, again } => {
                let detail = format!("{what}; ask again in {} s", seconds(*again));
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).of_type(AWAY)
            }
            Self::Unset(why) => {
                let detail = format!("the service {why}");
                Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail).of_type(UNSET)
            }
        }
    }

    /// The challenge of RFC 6750 that goes with it.
    fn challenge(&self) -> Option<&'static str> {
        match self {
            Self::Nobody | Self::NoService => Some("Bearer"),
            Self::Token | Self::Internal => Some("Bearer error=\"invalid_token\""),
            Self::Role(_) => Some("Bearer error=\"insufficient_scope\""),
            Self::Away { .. } | Self::Unset(_) => None,
        }
    }
}

fn seconds(time: Duration) -> u64 {
    time.as_secs().max(1)
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = self.problem().into_response();
        let headers = response.headers_mut();
        if let Some(challenge) = self.challenge() {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        if let Self::Away { again, .. } = self {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds(again)));
        }
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        refusal.problem()
    }
}
