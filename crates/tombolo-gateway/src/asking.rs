//! Who is asking: found out once, at the door, and vouched for to the service behind it.
//!
//! Invariant: on a route that checks, no token of a client passes; what the service gets is a token of the gateway's own, for that
//! service alone.

use std::sync::Arc;

use axum::response::IntoResponse;
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use http_body_util::BodyExt;
use tombolo::auth::{self, Door, INTERNAL_HEADER, User};

use crate::body::Download;
use crate::config::{AtTheDoor, Route, Settings, Source, Way};
use crate::error::{Error, Kind, Result};

/// The header of the gateway's own token.
pub(crate) const TOKEN: HeaderName = HeaderName::from_static(INTERNAL_HEADER);

/// Checks tokens, if it is known who issues them.
#[derive(Clone, Default)]
pub(crate) struct Doorkeeper(Option<Arc<Door>>);

impl Doorkeeper {
    pub(crate) fn new(door: Option<Arc<Door>>) -> Self {
        Self(door)
    }

    /// Whether every route of `settings` can be kept.
    pub(crate) fn suits(&self, settings: &Settings) -> Result<()> {
        let checks = |route: &&Route| matches!(route.auth, AtTheDoor::Optional | AtTheDoor::Required);
        match settings.routes.iter().find(checks) {
            Some(route) if self.0.is_none() => Err(Error::new(
                Kind::Settings,
                format!(
                    "the route {} asks for a token, and nothing says who issues them; say it: issuer = \"http://…\" in [gateway]",
                    route.name
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Whether it is known who was blocked.
    pub(crate) fn is_ready(&self) -> bool {
        self.0.as_ref().is_none_or(|door| door.is_ready())
    }

    /// Waits until [`Self::is_ready`].
    pub(crate) async fn ready(&self) {
        if let Some(door) = &self.0 {
            door.ready().await;
        }
    }

    /// Who asks; nobody where nobody is asked for a token. The error is the answer.
    pub(crate) async fn check(
        &self,
        route: &Route,
        headers: &HeaderMap,
    ) -> std::result::Result<Option<User>, Response<Download>> {
        let (Some(door), AtTheDoor::Optional | AtTheDoor::Required) = (&self.0, route.auth) else {
            return Ok(None);
        };
        let way = match route.check {
            Way::Local => auth::Way::Local,
            Way::Central => auth::Way::Central,
        };
        match door.check(headers, way).await {
            Ok(None) if route.auth == AtTheDoor::Required => Err(answer(auth::Refusal::Nobody)),
            Ok(user) => Ok(user),
            Err(refusal) => Err(answer(refusal)),
        }
    }

    /// What says to the service of `route` who asks.
    pub(crate) fn vouch(&self, route: &Route, user: Option<&User>) -> Option<HeaderValue> {
        let (door, callee) = (self.0.as_ref()?, callee(route)?);
        match door.sign(user, callee) {
            Ok(token) => Some(token),
            // The service then takes the request for nobody's, which lets nobody in who should not be.
            Err(error) => {
                tracing::error!(%error, callee, "no internal token can be signed");
                None
            }
        }
    }
}

/// The service behind a route that checks.
fn callee(route: &Route) -> Option<&str> {
    if !matches!(route.auth, AtTheDoor::Optional | AtTheDoor::Required) {
        return None;
    }
    match &route.source {
        Source::Service(name) => Some(route.callee.as_deref().unwrap_or(name)),
        _ => route.callee.as_deref(),
    }
}

fn answer(refusal: auth::Refusal) -> Response<Download> {
    refusal.into_response().map(|body| Download::boxed(body.map_err(Into::into)))
}
