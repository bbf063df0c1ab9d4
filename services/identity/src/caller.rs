//! Who asks the service itself: a user by an access token, or a program by its secret.
//!
//! Invariant: a token is held against the database, so here a block, a sign-out and other roles take effect at once.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use axum::Extension;
use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tombolo::auth::token::{Claims, Expected};
use tombolo::auth::{ADMIN, Refusal, bearer};
use tombolo::{Problem, Result};

use crate::store::{Account, Store};
use crate::{App, Issuer};

/// The client that may do what an administrator may: the first administrator is made by it.
const OPERATOR: &str = "operator";

/// Where a request came from, if the program that serves says so.
pub(crate) type From = Option<Extension<ConnectInfo<SocketAddr>>>;

/// The address of whoever asks; without one everybody is the same.
pub(crate) fn address(from: &From) -> IpAddr {
    from.as_ref().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |Extension(ConnectInfo(from))| from.ip())
}

impl Issuer {
    fn expected(&self, keys: &[crate::keyring::Opened]) -> Expected {
        Expected {
            issuer: self.config.issuer.clone(),
            audience: self.config.audience.clone(),
            algorithms: keys.iter().map(|key| key.verifies.algorithm).collect(),
        }
    }

    /// Whom a token lets in now, if anybody.
    pub(crate) async fn look_up<D: Store>(
        &self,
        app: &App<D>,
        token: &str,
    ) -> Result<Option<(Claims, Account)>> {
        let ring = self.keyring.ring(app, &self.config).await?;
        let expected = self.expected(&ring.keys);
        let Ok(kid) = expected.kid(token) else { return Ok(None) };
        let Some(key) = ring.find(&kid) else { return Ok(None) };
        let Ok(claims) = expected.verify(token, key, app.now()) else { return Ok(None) };
        let session = claims.sid.as_deref().unwrap_or_default();
        if !app.database().session_lives(session, &claims.sub, app.now()).await? {
            return Ok(None);
        }
        let account = app.database().user(&claims.sub).await?.filter(|account| !account.blocked);
        Ok(account.map(|account| (claims, account)))
    }

    /// The client whose secret the request shows.
    pub(crate) fn client(&self, headers: &HeaderMap) -> Option<String> {
        let given = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
        let (scheme, given) = given.split_once(' ')?;
        let given = STANDARD.decode(given.trim()).ok().filter(|_| scheme.eq_ignore_ascii_case("basic"))?;
        let (name, secret) = std::str::from_utf8(&given).ok()?.split_once(':')?;
        let known =
            self.config.clients.get(name).map(|known| known.0.as_str()).filter(|known| !known.is_empty());
        // Compared by their hashes, so that not even the length is told by the time that it takes.
        let hash = |text: &str| digest(&SHA256, text.as_bytes());
        let is_same =
            verify_slices_are_equal(hash(known.unwrap_or_default()).as_ref(), hash(secret).as_ref());
        (is_same.is_ok() && known.is_some()).then(|| name.to_owned())
    }
}

/// The user who asks, as the database has it, and the session.
pub(crate) struct Caller {
    pub(crate) account: Account,
    pub(crate) session: String,
}

impl<D: Store> FromRequestParts<App<D>> for Caller {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, app: &App<D>) -> Result<Self, Refusal> {
        let issuer = parts.extensions.get::<Arc<Issuer>>().cloned();
        let issuer = issuer.ok_or_else(|| Refusal::Unset("has no issuer".to_owned()))?;
        let token = bearer(&parts.headers)?.ok_or(Refusal::Nobody)?;
        let found = issuer.look_up(app, token).await.map_err(|error| {
            tracing::error!("it cannot be found out who is asking: {error}");
            Refusal::Away {
                what: "it cannot be found out now who is asking",
                again: std::time::Duration::from_secs(1),
            }
        })?;
        let (claims, account) = found.ok_or(Refusal::Token)?;
        Ok(Self { account, session: claims.sid.unwrap_or_default() })
    }
}

/// An administrator, or the client `operator`.
pub(crate) struct Steward(pub(crate) String);

impl<D: Store> FromRequestParts<App<D>> for Steward {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, app: &App<D>) -> Result<Self, Refusal> {
        let issuer = parts.extensions.get::<Arc<Issuer>>().cloned();
        let client = issuer.and_then(|issuer| issuer.client(&parts.headers));
        if let Some(client) = client.filter(|client| client == OPERATOR) {
            return Ok(Self(client));
        }
        let Caller { account, .. } = Caller::from_request_parts(parts, app).await?;
        match account.roles().iter().any(|role| role == ADMIN) {
            true => Ok(Self(account.id)),
            false => Err(Refusal::Role(ADMIN)),
        }
    }
}

/// A program that shows its secret.
pub(crate) struct Client(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for Client {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Response> {
        let issuer = parts.extensions.get::<Arc<Issuer>>();
        let client = issuer.and_then(|issuer| issuer.client(&parts.headers));
        client.map(Self).ok_or_else(|| {
            let detail = "this is for programs; send the name and the secret of one of TOMBOLO_IDENTITY_CLIENTS by HTTP Basic";
            let problem = Problem::new(StatusCode::UNAUTHORIZED, detail).of_type("urn:tombolo:identity:client-refused");
            let mut response = problem.into_response();
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"clients\""));
            response
        })
    }
}
