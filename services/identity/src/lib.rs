//! `identity`: who is asking. Users register and sign in; sessions are refreshed and end; administrators block and unblock;
//! and whoever checks a token finds the keys here, or asks.
//!
//! ```text
//!  register ─┐
//!  sign in   ├─ one transaction: users, sessions, hashes ─ outbox: identity.registered, identity.blocked, …
//!  block    ─┘                                                     │
//!                                                                  └ the topic that services under local checks read
//! ```
//!
//! Invariant: state and event commit together, so the database and the topic agree on who is blocked; no secret is stored as it
//! is, said in an event, or logged.

mod names;
mod events;
mod config;
mod sealing;
mod password;
mod guesses;
mod store;
mod keyring;
mod problems;
mod caller;
mod accounts;
mod sessions;
mod administration;
mod oauth;
mod discovery;

use std::sync::Arc;

use axum::routing::{get, post, put};
use axum::{Extension, Router};
use tombolo::{Result, Service};

use events::{Blocked, Named, Registered, Renamed, RolesChanged, SignedOut, Unblocked};
use guesses::Guesses;
use keyring::Keyring;
use password::Passwords;

pub use accounts::{Profile, profile};
pub use config::{Config, key_file};
pub use names::{DefaultNames, Names};
pub use sealing::SealingKey;
pub use store::{Account, Holds, Refresh, Sql, Statement, Store, StoredKey, Value, Words};

pub(crate) use tombolo::App;

/// What the routes share.
pub(crate) struct Issuer {
    pub(crate) config: Config,
    pub(crate) keyring: Keyring,
    pub(crate) passwords: Passwords,
    pub(crate) guesses: Guesses,
}

fn routes<N: Names, D: Store>() -> Router<App<D>> {
    Router::new()
        .route("/users", post(accounts::register::<N, D>).get(administration::list::<D>))
        .route("/users/{id}", get(administration::show::<D>))
        .route("/users/{id}/block", post(administration::block::<N, D>))
        .route("/users/{id}/unblock", post(administration::unblock::<N, D>))
        .route("/users/{id}/roles", put(administration::give_roles::<N, D>))
        .route("/keys/rotate", post(administration::rotate::<D>))
        .route("/me", get(accounts::me).patch(accounts::rename::<N, D>))
        .route("/me/password", post(accounts::change_password::<N, D>))
        .route("/sign-in", post(sessions::sign_in::<D>))
        .route("/sign-out", post(sessions::sign_out::<N, D>))
        .route("/sign-out/everywhere", post(sessions::sign_out_everywhere::<N, D>))
        .route("/token", post(oauth::token::<N, D>))
        .route("/introspect", post(oauth::introspect::<D>))
        .route("/revoke", post(oauth::revoke::<N, D>))
        .route("/.well-known/openid-configuration", get(discovery::document))
        .route("/.well-known/oauth-authorization-server", get(discovery::document))
        .route("/.well-known/jwks.json", get(discovery::keys::<D>))
}

/// The service under the names `N`, on its own database.
///
/// # Errors
/// `Failed` if the machine's cryptography does not work.
pub fn service_named<N: Names, D: Store>(database: D, config: Config) -> Result<Service<D>> {
    let issuer = Issuer {
        config,
        keyring: Keyring::default(),
        passwords: Passwords::new()?,
        guesses: Guesses::default(),
    };
    let service = Service::new(N::SERVICE, database)
        .setup(async |database: D| database.make_tables().await)
        .routes(routes::<N, D>().layer(Extension(Arc::new(issuer))))
        .answer(administration::how_stands::<N, D>)
        .publishes::<Named<N, Registered>>()
        .publishes::<Named<N, Renamed>>()
        .publishes::<Named<N, Blocked>>()
        .publishes::<Named<N, Unblocked>>()
        .publishes::<Named<N, SignedOut>>()
        .publishes::<Named<N, RolesChanged>>();
    Ok(service)
}

/// The service under its usual names, on its own database.
///
/// # Errors
/// As [`service_named`].
pub fn service<D: Store>(database: D, config: Config) -> Result<Service<D>> {
    service_named::<DefaultNames, D>(database, config)
}
