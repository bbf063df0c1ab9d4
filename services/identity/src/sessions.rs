//! Signing in and out, and the refresh of a session.
//!
//! ```text
//!  sign in ─ token 1 ── token 2 ── token 3        each is used once, and gives the next
//!                          └ used again: within GRACE, before its successor was used, it gives the same successor;
//!                            else somebody has a copy, and the session ends
//! ```
//!
//! Invariant: at any time one refresh token of a session gives another; a session that has ended gives none, for good.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderName, StatusCode, header};
use axum::{Extension, Json};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tombolo::auth::token::{Audience, Claims};
use tombolo::{Result, Transaction};
use uuid::Uuid;

use crate::caller::{self, Caller};
use crate::events::{Named, SignedOut};
use crate::names::Names;
use crate::password::{BYTES_MAX, Compared};
use crate::problems::{Body, Refusal, is_blocked, no_user, not_signed_in};
use crate::sealing::{hash, token};
use crate::store::{Account, Store};
use crate::{App, Issuer, accounts};

/// For how long a used token gives its successor once more: to requests at the same time, and to one whose answer was lost.
const GRACE: Duration = Duration::from_secs(10);
/// The program that users sign in by, unless a token is exchanged by another.
const CLIENT: &str = "tombolo";

/// What no cache may keep.
pub(crate) const NO_STORE: [(HeaderName, &str); 1] = [(header::CACHE_CONTROL, "no-store")];

/// What a sign-in or a refresh gives (RFC 6749).
#[derive(Serialize)]
pub(crate) struct Tokens {
    access_token: String,
    token_type: &'static str,
    expires_in: u64,
    refresh_token: String,
}

/// A session that goes on, before its tokens are made.
pub(crate) struct Begun {
    account: Account,
    session: String,
    refresh_token: String,
}

impl Begun {
    /// The tokens. Signed after the commit, so that no lock waits for it.
    pub(crate) async fn tokens<D: Store>(self, app: &App<D>, issuer: &Issuer) -> Result<Tokens> {
        let now = app.now().as_second();
        let life = issuer.config.token_life.as_secs();
        let claims = Claims {
            iss: issuer.config.issuer.clone(),
            aud: Audience::One(issuer.config.audience.clone()),
            exp: now.saturating_add_unsigned(life),
            iat: now,
            nbf: None,
            jti: Uuid::now_v7().to_string(),
            client_id: CLIENT.to_owned(),
            sid: Some(self.session),
            ver: self.account.version(),
            roles: self.account.roles(),
            sub: self.account.id,
        };
        let access_token = issuer.keyring.sign(app, &issuer.config, &claims).await?;
        Ok(Tokens { access_token, token_type: "Bearer", expires_in: life, refresh_token: self.refresh_token })
    }
}

fn later(now: Timestamp, by: Duration) -> Timestamp {
    SignedDuration::try_from(by).ok().and_then(|by| now.checked_add(by).ok()).unwrap_or(Timestamp::MAX)
}

/// Begins a session.
pub(crate) async fn begin<D: Store>(
    app: &App<D>,
    issuer: &Issuer,
    tx: &mut D::Tx,
    user: &str,
) -> Result<Begun, Refusal> {
    let account = D::user_in(tx, user).await?.ok_or_else(|| no_user(user))?;
    if account.blocked {
        return Err(is_blocked().into());
    }
    let (session, refresh_token, now) = (Uuid::new_v4().to_string(), token()?, app.now());
    D::insert_session(tx, &session, user, now, later(now, issuer.config.session_life)).await?;
    D::insert_refresh(tx, &hash(&refresh_token), &session).await?;
    Ok(Begun { account, session, refresh_token })
}

/// Ends every session of a user, and says so.
pub(crate) async fn end_all<N: Names, D: Store>(app: &App<D>, tx: &mut D::Tx, user: &str) -> Result<()> {
    let now = app.now();
    // The user first: a refresh holds the user, and waits for the session.
    let Some(account) = D::raise(tx, user).await? else { return Ok(()) };
    D::end_sessions(tx, user, now).await?;
    let version = account.version();
    let event = SignedOut { user_id: account.id, session_id: None, version, at_ms: now.as_millisecond() };
    tx.publish(&Named::<N, _>::new(event))?;
    Ok(())
}

/// Ends one session, if it goes on, and says so.
pub(crate) async fn end<N: Names, D: Store>(app: &App<D>, tx: &mut D::Tx, session: &str) -> Result<()> {
    let now = app.now();
    let Some(user_id) = D::end_session(tx, session, now).await? else { return Ok(()) };
    let version = D::user_in(tx, &user_id).await?.map_or(0, |account| account.version());
    let session_id = Some(session.to_owned());
    tx.publish(&Named::<N, _>::new(SignedOut { user_id, session_id, version, at_ms: now.as_millisecond() }))?;
    Ok(())
}

#[derive(Deserialize)]
pub(crate) struct SignIn {
    email: String,
    password: String,
}

/// `POST /sign-in`.
pub(crate) async fn sign_in<D: Store>(
    State(app): State<App<D>>,
    Extension(issuer): Extension<Arc<Issuer>>,
    from: caller::From,
    Body(body): Body<SignIn>,
) -> Result<([(HeaderName, &'static str); 1], Json<Tokens>), Refusal> {
    let (account, address) = (accounts::account(&body.email), caller::address(&from));
    if account.len() > BYTES_MAX || body.password.len() > BYTES_MAX {
        return Err(not_signed_in().into());
    }
    issuer.guesses.count(&account, address, Instant::now()).map_err(Refusal::TooMany)?;
    let (user, stored) = app.database().password(&account).await?.unzip();
    let compared = issuer.passwords.compare(body.password.clone(), stored.clone()).await?;
    let (Some(user), Some(stored), Compared::Same | Compared::SameButOld) = (user, stored, compared) else {
        return Err(not_signed_in().into());
    };
    issuer.guesses.forgive(&account, address);
    // Also where it stays as it is: a password that was changed meanwhile signs nobody in.
    let renewed = match compared {
        Compared::SameButOld => issuer.passwords.hash(body.password).await?,
        _ => stored.clone(),
    };
    let mut tx = app.begin().await?;
    if !D::replace_password(&mut tx, &user, &stored, &renewed).await? {
        return Err(not_signed_in().into());
    }
    let begun = begin(&app, &issuer, &mut tx, &user).await?;
    tx.commit().await.map_err(tombolo::Error::from)?;
    clear(&app).await;
    Ok((NO_STORE, Json(begun.tokens(&app, &issuer).await?)))
}

/// Clears away some sessions that ended long ago. In a transaction of its own, and what fails is left to the next sign-in: InnoDB may
/// end one of two that clear beside each other.
async fn clear<D: Store>(app: &App<D>) {
    let cleared = async {
        let mut tx = app.begin().await?;
        D::clear_sessions(&mut tx, app.now()).await?;
        tx.commit().await.map_err(tombolo::Error::from)
    };
    if let Err(error) = cleared.await {
        tracing::debug!("old sessions are left to the next sign-in: {error}");
    }
}

/// `POST /sign-out`: this session.
pub(crate) async fn sign_out<N: Names, D: Store>(
    State(app): State<App<D>>,
    caller: Caller,
) -> Result<StatusCode, Refusal> {
    let mut tx = app.begin().await?;
    end::<N, D>(&app, &mut tx, &caller.session).await?;
    tx.commit().await.map_err(tombolo::Error::from)?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /sign-out/everywhere`: every session of the user.
pub(crate) async fn sign_out_everywhere<N: Names, D: Store>(
    State(app): State<App<D>>,
    caller: Caller,
) -> Result<StatusCode, Refusal> {
    let mut tx = app.begin().await?;
    end_all::<N, D>(&app, &mut tx, &caller.account.id).await?;
    tx.commit().await.map_err(tombolo::Error::from)?;
    Ok(StatusCode::NO_CONTENT)
}

/// The session that a refresh token goes on with; none if it gives nothing.
pub(crate) async fn refresh<N: Names, D: Store>(
    app: &App<D>,
    issuer: &Issuer,
    given: &str,
) -> Result<Option<Begun>> {
    let (hashed, now) = (hash(given), app.now());
    let mut tx = app.begin().await?;
    let Some(found) = D::refresh(&mut tx, &hashed).await? else { return Ok(None) };
    if found.ended_ms.is_some() || found.ends_ms <= now.as_millisecond() {
        return Ok(None);
    }
    let account = D::user_in(&mut tx, &found.user_id).await?.filter(|account| !account.blocked);
    let Some(account) = account else { return Ok(None) };
    let (session, successor) = (found.session_id, issuer.config.sealing_key.successor(given));
    let begun = Begun { account, session: session.clone(), refresh_token: successor.clone() };
    let Some(used_ms) = found.used_ms else {
        D::use_refresh(&mut tx, &hashed, now).await?;
        D::insert_refresh(&mut tx, &hash(&successor), &session).await?;
        D::prolong(&mut tx, &session, later(now, issuer.config.session_life)).await?;
        tx.commit().await?;
        return Ok(Some(begun));
    };
    let next = D::refresh(&mut tx, &hash(&successor)).await?;
    let is_unused = next.is_some_and(|next| next.used_ms.is_none());
    if is_unused && now.as_millisecond().saturating_sub(used_ms) < GRACE.as_millis() as i64 {
        return Ok(Some(begun));
    }
    tracing::warn!(
        user = begun.account.id,
        session,
        "a used refresh token was shown again, its session ends"
    );
    end::<N, D>(app, &mut tx, &session).await?;
    tx.commit().await?;
    Ok(None)
}
