//! What others find out by themselves: the discovery document (OpenID Connect Discovery, RFC 8414) and the keys (RFC 7517).
//!
//! Invariant: what is not there is not named.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderName, header};
use axum::{Extension, Json};
use serde_json::{Value, json};
use tombolo::Problem;

use crate::store::Store;
use crate::{App, Issuer};

/// How long others may keep the keys: less than a key is published before it signs.
const KEPT: [(HeaderName, &str); 1] = [(header::CACHE_CONTROL, "public, max-age=300")];

/// `GET /.well-known/openid-configuration`.
pub(crate) async fn document(Extension(issuer): Extension<Arc<Issuer>>) -> Json<Value> {
    let name = &issuer.config.issuer;
    let under = |path: &str| format!("{}{path}", name.trim_end_matches('/'));
    let algorithm = format!("{:?}", issuer.config.algorithm);
    Json(json!({
        "issuer": name,
        "jwks_uri": under("/.well-known/jwks.json"),
        "token_endpoint": under("/token"),
        "introspection_endpoint": under("/introspect"),
        "revocation_endpoint": under("/revoke"),
        "userinfo_endpoint": under("/me"),
        "grant_types_supported": ["refresh_token"],
        "response_types_supported": [],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": [algorithm],
        "token_endpoint_auth_methods_supported": ["none"],
        "introspection_endpoint_auth_methods_supported": ["client_secret_basic"],
        "revocation_endpoint_auth_methods_supported": ["client_secret_basic"],
        "claims_supported": ["iss", "sub", "aud", "exp", "iat", "jti", "client_id", "sid", "ver", "roles"],
    }))
}

/// `GET /.well-known/jwks.json`.
pub(crate) async fn keys<D: Store>(
    State(app): State<App<D>>,
    Extension(issuer): Extension<Arc<Issuer>>,
) -> Result<([(HeaderName, &'static str); 1], Json<Value>), Problem> {
    let ring = issuer.keyring.ring(&app, &issuer.config).await?;
    let keys: Vec<_> = ring.keys.iter().map(|key| &key.jwk).collect();
    Ok((KEPT, Json(json!({ "keys": keys }))))
}
