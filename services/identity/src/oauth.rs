//! The doors of OAuth 2: the refresh of tokens (RFC 6749), introspection (RFC 7662), revocation (RFC 7009).
//!
//! Invariant: who introspects or revokes has shown a secret, and is told nothing of a token that lets nobody in, but that.

use std::sync::Arc;

use axum::extract::State;
use axum::extract::rejection::FormRejection;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Form, Json};
use serde::{Deserialize, Serialize};
use tombolo::auth::token::{Audience, TOKEN_BYTES_MAX};
use tombolo::{Problem, Transaction};

use crate::caller::Client;
use crate::names::Names;
use crate::sealing::hash;
use crate::sessions::{self, NO_STORE, Tokens};
use crate::store::Store;
use crate::{App, Issuer};

/// A refusal that OAuth's clients understand, and a problem document at once.
#[derive(Serialize)]
struct Refused {
    #[serde(rename = "type")]
    type_uri: &'static str,
    title: &'static str,
    status: u16,
    detail: &'static str,
    error: &'static str,
}

fn refused(error: &'static str, type_uri: &'static str, detail: &'static str) -> Response {
    let status = StatusCode::BAD_REQUEST;
    let document = Refused { type_uri, title: "Bad Request", status: status.as_u16(), detail, error };
    let headers = [(header::CONTENT_TYPE, "application/problem+json"), (header::CACHE_CONTROL, "no-store")];
    (status, headers, Json(document)).into_response()
}

fn malformed() -> Response {
    let detail = "expected a form with grant_type and refresh_token, or with token, each once";
    refused("invalid_request", "urn:tombolo:identity:invalid-request", detail)
}

#[derive(Deserialize)]
pub(crate) struct Grant {
    grant_type: String,
    refresh_token: Option<String>,
}

/// `POST /token`: a refresh token for the next one, and an access token.
pub(crate) async fn token<N: Names, D: Store>(
    State(app): State<App<D>>,
    Extension(issuer): Extension<Arc<Issuer>>,
    form: Result<Form<Grant>, FormRejection>,
) -> Result<([(HeaderName, &'static str); 1], Json<Tokens>), Response> {
    let Form(grant) = form.map_err(|_| malformed())?;
    if grant.grant_type != "refresh_token" {
        let detail = "expected the grant_type refresh_token; sign in at /sign-in for the first one";
        return Err(refused("unsupported_grant_type", "urn:tombolo:identity:unsupported-grant-type", detail));
    }
    let given = grant.refresh_token.filter(|given| given.len() <= TOKEN_BYTES_MAX).ok_or_else(malformed)?;
    let failed = |error: tombolo::Error| Problem::from(error).into_response();
    let begun = sessions::refresh::<N, D>(&app, &issuer, &given).await.map_err(failed)?;
    let Some(begun) = begun else {
        let detail = "the refresh token gives nothing any more; sign in again";
        return Err(refused("invalid_grant", "urn:tombolo:identity:invalid-grant", detail));
    };
    Ok((NO_STORE, Json(begun.tokens(&app, &issuer).await.map_err(failed)?)))
}

#[derive(Deserialize)]
pub(crate) struct Asked {
    token: String,
}

/// What is said of an access token; of any other only that it is not active.
#[derive(Serialize, Default)]
pub(crate) struct Introspected {
    active: bool,
    #[serde(flatten)]
    known: Option<Known>,
}

#[derive(Serialize)]
struct Known {
    iss: String,
    sub: String,
    aud: Audience,
    exp: i64,
    iat: i64,
    jti: String,
    client_id: String,
    sid: Option<String>,
    ver: u64,
    roles: Vec<String>,
    token_type: &'static str,
}

/// `POST /introspect`.
pub(crate) async fn introspect<D: Store>(
    State(app): State<App<D>>,
    Extension(issuer): Extension<Arc<Issuer>>,
    _client: Client,
    form: Result<Form<Asked>, FormRejection>,
) -> Result<([(HeaderName, &'static str); 1], Json<Introspected>), Response> {
    let Form(asked) = form.map_err(|_| malformed())?;
    let found = issuer.look_up(&app, &asked.token).await;
    let found = found.map_err(|error| Problem::from(error).into_response())?;
    let known = found.map(|(claims, account)| Known {
        roles: account.roles(),
        ver: account.version(),
        iss: claims.iss,
        sub: claims.sub,
        aud: claims.aud,
        exp: claims.exp,
        iat: claims.iat,
        jti: claims.jti,
        client_id: claims.client_id,
        sid: claims.sid,
        token_type: "Bearer",
    });
    Ok((NO_STORE, Json(Introspected { active: known.is_some(), known })))
}

/// `POST /revoke`: the session of a refresh token or of an access token ends. An unknown token is none, which is as well.
pub(crate) async fn revoke<N: Names, D: Store>(
    State(app): State<App<D>>,
    Extension(issuer): Extension<Arc<Issuer>>,
    Client(client): Client,
    form: Result<Form<Asked>, FormRejection>,
) -> Result<StatusCode, Response> {
    let Form(asked) = form.map_err(|_| malformed())?;
    let session = session_of(&app, &issuer, &asked.token).await;
    let revoked = async {
        let Some(session) = session? else { return Ok(()) };
        let mut tx = app.begin().await?;
        sessions::end::<N, D>(&app, &mut tx, &session).await?;
        tx.commit().await?;
        tracing::info!(session, by = client, "a session was revoked");
        Ok::<(), tombolo::Error>(())
    };
    revoked.await.map_err(|error| Problem::from(error).into_response())?;
    Ok(StatusCode::OK)
}

async fn session_of<D: Store>(app: &App<D>, issuer: &Issuer, token: &str) -> tombolo::Result<Option<String>> {
    if let Some((claims, _)) = issuer.look_up(app, token).await? {
        return Ok(claims.sid);
    }
    let mut tx = app.begin().await?;
    Ok(D::refresh(&mut tx, &hash(token)).await?.map(|found| found.session_id))
}
