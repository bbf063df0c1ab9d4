//! Who issues the tokens of a measurement: a service that is called `identity`, with the discovery document, the key and the topic of
//! blocks that a gateway looks for. It signs with what Tombolo's identity signs with, in ES256.
//!
//! No user signs in here: hashing a thousand passwords would take longer than everything else.
//!
//! Invariant: no two tokens are the same.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::thread;

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use axum::routing::get;
use axum::{Json, Router};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use jsonwebtoken::jwk::{Jwk, PublicKeyUse};
use jsonwebtoken::{EncodingKey, Header};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tombolo::auth::token::{Algorithm, Audience, Claims, TYPE};
use tombolo::{Running, Service, Settings};
use tombolo_db::sqlite::Sqlite;
use tombolo_event::Event;
use uuid::Uuid;

use super::proxies::free_port;
use crate::error::{Error, Result};
use crate::scratch::Scratch;

/// Whom the tokens are for: what a gateway expects unless it is told otherwise.
pub(super) const AUDIENCE: &str = "tombolo";
/// For how long they live: longer than any run.
const LIFE_S: i64 = 3600;
const KID: &str = "bench";

/// Somebody was blocked, as identity says it.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Blocked {
    user_id: String,
    version: u64,
    at_ms: i64,
}

impl Event for Blocked {
    const TYPE: &'static str = "identity.blocked.v1";

    fn key(&self) -> String {
        self.user_id.clone()
    }
}

/// The key, without the service.
pub(super) struct Signer {
    pub(super) name: String,
    signs: EncodingKey,
    jwk: Jwk,
    pem: String,
}

/// The service, which runs until it is dropped.
pub(super) struct Issuer {
    pub(super) signer: Signer,
    running: Running<Sqlite>,
}

impl Signer {
    pub(super) fn new(name: &str) -> Result<Self> {
        let failed = |_| Error::new("no key can be made: the machine's cryptography does not work");
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map_err(failed)?;
        let signs = EncodingKey::from_ec_der(pair.to_pkcs8v1().map_err(failed)?.as_ref());
        let mut jwk = Jwk::from_encoding_key(&signs, Algorithm::ES256)?;
        jwk.common.key_id = Some(KID.to_owned());
        jwk.common.public_key_use = Some(PublicKeyUse::Signature);
        let der = pair.public_key().as_der().map_err(failed)?;
        let pem = format!(
            "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
            STANDARD.encode(der.as_ref())
        );
        Ok(Self { name: name.to_owned(), signs, jwk, pem })
    }

    /// What a token of the user says.
    pub(super) fn claims(&self, user: usize) -> Claims {
        let now = Timestamp::now().as_second();
        Claims {
            iss: self.name.clone(),
            sub: format!("user-{user}"),
            aud: Audience::One(AUDIENCE.to_owned()),
            exp: now + LIFE_S,
            iat: now,
            nbf: None,
            jti: Uuid::now_v7().to_string(),
            client_id: "bench".to_owned(),
            sid: Some(Uuid::new_v4().to_string()),
            ver: 1,
            roles: Vec::new(),
        }
    }

    pub(super) fn sign(&self, claims: &Claims) -> Result<String> {
        let mut header = Header::new(Algorithm::ES256);
        header.typ = Some(TYPE.to_owned());
        header.kid = Some(KID.to_owned());
        Ok(jsonwebtoken::encode(&header, claims, &self.signs)?)
    }

    /// A file with so many tokens, one a line, of so many users; signed by all processors.
    pub(super) fn write(&self, file: &Path, tokens: usize, users: usize) -> Result<()> {
        let threads = thread::available_parallelism()?.get();
        let part = |first: usize| -> Result<Vec<String>> {
            (first..tokens).step_by(threads).map(|number| self.sign(&self.claims(number % users))).collect()
        };
        let parts: Vec<_> = thread::scope(|scope| {
            let signing: Vec<_> = (0..threads).map(|first| scope.spawn(move || part(first))).collect();
            signing.into_iter().map(thread::ScopedJoinHandle::join).collect()
        });
        let mut writer = BufWriter::new(fs::File::create(file)?);
        for part in parts {
            for token in part.map_err(|_| Error::new("a thread that signs ended too early"))?? {
                writeln!(writer, "{token}")?;
            }
        }
        Ok(writer.flush()?)
    }

    /// The public key, as HAProxy takes it.
    pub(super) fn public_key(&self, scratch: &Scratch) -> Result<PathBuf> {
        let file = scratch.path("issuer.pem");
        fs::write(&file, &self.pem)?;
        Ok(file)
    }
}

impl Issuer {
    /// Starts the service beside this bus.
    pub(super) async fn start(scratch: &Scratch, bus: &str) -> Result<Self> {
        let listen = format!("127.0.0.1:{}", free_port()?);
        let signer = Signer::new(&format!("http://{listen}"))?;
        let document =
            json!({ "issuer": signer.name, "jwks_uri": format!("{}/.well-known/jwks.json", signer.name) });
        let routes = Router::new()
            .route("/.well-known/openid-configuration", answering(document))
            .route("/.well-known/jwks.json", answering(json!({ "keys": [signer.jwk] })));
        let database = Sqlite::open(scratch.path("identity.db").display().to_string())?;
        let settings = Settings { bus: bus.to_owned(), listen, ..Settings::default() };
        let service = Service::new("identity", database).routes(routes).publishes::<Blocked>();
        Ok(Self { signer, running: service.start(settings).await? })
    }

    /// Blocks a user, as identity does.
    pub(super) async fn block(&self, user: usize) -> Result<()> {
        let at_ms = Timestamp::now().as_millisecond();
        let mut tx = self.running.app.begin().await?;
        tx.publish(&Blocked { user_id: format!("user-{user}"), version: 2, at_ms })?;
        tx.commit().await?;
        Ok(())
    }

    pub(super) async fn end(self) {
        self.running.shutdown().await;
    }
}

fn answering(document: Value) -> axum::routing::MethodRouter<tombolo::App<Sqlite>> {
    get(async move || Json(document))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_tokens_are_the_same() {
        let (folder, signer) = (tempfile::tempdir().unwrap(), Signer::new("http://issuer").unwrap());
        let file = folder.path().join("tokens");
        signer.write(&file, 101, 10).unwrap();
        let text = fs::read_to_string(file).unwrap();
        assert_eq!(text.lines().collect::<BTreeSet<_>>().len(), 101);
    }
}
