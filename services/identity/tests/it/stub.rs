//! An issuer that a test makes: its keys, and how often it was asked for them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair,
};
use axum::routing::get;
use axum::{Json, Router};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};
use tombolo::auth::Auth;

use crate::stage::ISSUER;

/// A key of a test's own.
#[derive(Clone)]
pub(crate) struct Own {
    pub(crate) kid: String,
    pub(crate) algorithm: Algorithm,
    pub(crate) signs: EncodingKey,
}

impl Own {
    pub(crate) fn new(kid: &str, algorithm: Algorithm) -> Self {
        let ec =
            |algorithm| EcdsaKeyPair::generate(algorithm).unwrap().to_pkcs8v1().unwrap().as_ref().to_vec();
        let signs = match algorithm {
            Algorithm::ES256 => EncodingKey::from_ec_der(&ec(&ECDSA_P256_SHA256_FIXED_SIGNING)),
            Algorithm::ES384 => EncodingKey::from_ec_der(&ec(&ECDSA_P384_SHA384_FIXED_SIGNING)),
            _ => EncodingKey::from_ed_der(Ed25519KeyPair::generate().unwrap().to_pkcs8v1().unwrap().as_ref()),
        };
        Self { kid: kid.to_owned(), algorithm, signs }
    }

    /// The public key, as it is published.
    pub(crate) fn jwk(&self) -> Value {
        let mut jwk = Jwk::from_encoding_key(&self.signs, self.algorithm).unwrap();
        jwk.common.key_id = Some(self.kid.clone());
        serde_json::to_value(jwk).unwrap()
    }

    /// The token of this header and these claims, signed by this key, whatever the header says.
    pub(crate) fn sign(&self, header: &Value, claims: &Value) -> String {
        let message = message(&header.to_string(), &claims.to_string());
        format!("{message}.{}", self.signature(&message))
    }

    pub(crate) fn signature(&self, message: &str) -> String {
        jsonwebtoken::crypto::sign(message.as_bytes(), &self.signs, self.algorithm).unwrap()
    }
}

/// The first two parts of a token.
pub(crate) fn message(header: &str, claims: &str) -> String {
    format!("{}.{}", base64(header.as_bytes()), base64(claims.as_bytes()))
}

pub(crate) fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}

/// Bytes in the base64 that has padding.
pub(crate) fn base64_standard(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// An issuer that publishes what it is told.
pub(crate) struct Stub {
    url: String,
    keys: Arc<Mutex<Vec<Value>>>,
    asked: Arc<AtomicUsize>,
}

impl Stub {
    pub(crate) async fn new(keys: Vec<Value>) -> Self {
        let (keys, asked) = (Arc::new(Mutex::new(keys)), Arc::new(AtomicUsize::new(0)));
        let (shown, counted) = (Arc::clone(&keys), Arc::clone(&asked));
        let routes = Router::new().route(
            "/keys",
            get(async move || {
                counted.fetch_add(1, Ordering::SeqCst);
                Json(json!({ "keys": *shown.lock().unwrap() }))
            }),
        );
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        // Ends with the test's runtime.
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Self { url, keys, asked }
    }

    pub(crate) fn publish(&self, keys: Vec<Value>) {
        *self.keys.lock().unwrap() = keys;
    }

    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    pub(crate) fn auth(&self) -> Auth {
        Auth::local(ISSUER).keys_at(&format!("{}/keys", self.url))
    }
}
