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
use tombolo::sqlite::Sqlite;
use tombolo::{Result, Service};

use events::{Blocked, Named, Registered, Renamed, RolesChanged, SignedOut, Unblocked};
use guesses::Guesses;
use keyring::Keyring;
use password::Passwords;

pub use config::Config;
pub use names::{DefaultNames, Names};
pub use sealing::SealingKey;

pub(crate) type App = tombolo::App<Sqlite>;

/// What the routes share.
pub(crate) struct Issuer {
    pub(crate) config: Config,
    pub(crate) keyring: Keyring,
    pub(crate) passwords: Passwords,
    pub(crate) guesses: Guesses,
}

fn routes<N: Names>() -> Router<App> {
    Router::new()
        .route("/users", post(accounts::register::<N>).get(administration::list))
        .route("/users/{id}", get(administration::show))
        .route("/users/{id}/block", post(administration::block::<N>))
        .route("/users/{id}/unblock", post(administration::unblock::<N>))
        .route("/users/{id}/roles", put(administration::give_roles::<N>))
        .route("/keys/rotate", post(administration::rotate))
        .route("/me", get(accounts::me).patch(accounts::rename::<N>))
        .route("/me/password", post(accounts::change_password::<N>))
        .route("/sign-in", post(sessions::sign_in))
        .route("/sign-out", post(sessions::sign_out::<N>))
        .route("/sign-out/everywhere", post(sessions::sign_out_everywhere::<N>))
        .route("/token", post(oauth::token::<N>))
        .route("/introspect", post(oauth::introspect))
        .route("/revoke", post(oauth::revoke::<N>))
        .route("/.well-known/openid-configuration", get(discovery::document))
        .route("/.well-known/oauth-authorization-server", get(discovery::document))
        .route("/.well-known/jwks.json", get(discovery::keys))
}

/// The service under the names `N`, on its own database.
///
/// # Errors
/// `Failed` if the machine's cryptography does not work.
pub fn service_named<N: Names>(database: Sqlite, config: Config) -> Result<Service<Sqlite>> {
    let issuer = Issuer {
        config,
        keyring: Keyring::default(),
        passwords: Passwords::new()?,
        guesses: Guesses::default(),
    };
    let service = Service::new(N::SERVICE, database)
        .setup(async |database: Sqlite| store::make_tables(&database).await)
        .routes(routes::<N>().layer(Extension(Arc::new(issuer))))
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
pub fn service(database: Sqlite, config: Config) -> Result<Service<Sqlite>> {
    service_named::<DefaultNames>(database, config)
}
