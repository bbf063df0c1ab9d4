//! Registering, and what users change of themselves.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use tombolo::{Problem, Transaction};
use uuid::Uuid;

use crate::caller::{self, Caller};
use crate::events::{Named, Registered, Renamed};
use crate::names::Names;
use crate::password::{BYTES_MAX, CHARS_MIN, Compared};
use crate::problems::{Body, Refusal, no_user, not_signed_in, wrong};
use crate::sessions::{self, Tokens};
use crate::store::{Account, Store};
use crate::{App, Issuer};

/// The longest name, in characters.
const NAME_CHARS_MAX: usize = 200;
/// The longest address, in characters.
const EMAIL_CHARS_MAX: usize = 254;

#[derive(Deserialize)]
pub(crate) struct Register {
    name: String,
    email: String,
    password: Option<String>,
}

/// A user, as others are shown it.
#[derive(Serialize)]
pub(crate) struct Shown {
    id: String,
    name: String,
    email: String,
    roles: Vec<String>,
    blocked: bool,
}

impl From<Account> for Shown {
    fn from(account: Account) -> Self {
        let roles = account.roles();
        Self { id: account.id, name: account.name, email: account.email, roles, blocked: account.blocked }
    }
}

/// What others may know of a user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Profile {
    /// The user's id.
    pub id: String,
    /// What the user goes by.
    pub name: String,
    /// The user's address.
    pub email: String,
}

impl From<Account> for Profile {
    fn from(account: Account) -> Self {
        Self { id: account.id, name: account.name, email: account.email }
    }
}

/// The user of this id, for a program that answers questions of its own about users.
///
/// # Errors
/// `Database` or `DatabaseAway`.
pub async fn profile<D: Store>(app: &App<D>, id: &str) -> tombolo::Result<Option<Profile>> {
    Ok(app.database().user(id).await?.map(Profile::from))
}

/// What an address is to the table of passwords.
pub(crate) fn account(email: &str) -> String {
    email.trim().to_lowercase()
}

/// Refuses what not every database can keep.
fn check_text(what: &str, text: &str) -> Result<(), Problem> {
    if text.contains('\0') {
        return Err(wrong(format!("found a zero byte in the {what}; expected text without one")));
    }
    Ok(())
}

pub(crate) fn check_name(name: &str) -> Result<(), Problem> {
    check_text("name", name)?;
    let chars = name.trim().chars().count();
    if (1..=NAME_CHARS_MAX).contains(&chars) {
        return Ok(());
    }
    Err(wrong(format!("found a name of {chars} characters; expected 1 to {NAME_CHARS_MAX}")))
}

fn check_email(email: &str) -> Result<(), Problem> {
    check_text("email", email)?;
    let chars = email.chars().count();
    if email.contains('@') && chars <= EMAIL_CHARS_MAX {
        return Ok(());
    }
    Err(wrong(format!(
        "found an email of {chars} characters; expected an address with an @, at most {EMAIL_CHARS_MAX}"
    )))
}

fn check_password(password: &str) -> Result<(), Problem> {
    let chars = password.chars().count();
    if chars >= CHARS_MIN && password.len() <= BYTES_MAX {
        return Ok(());
    }
    Err(wrong(format!(
        "found a password of {chars} characters; expected {CHARS_MIN} or more, in at most {BYTES_MAX} bytes"
    )))
}

#[derive(Serialize)]
struct Accepted {
    detail: &'static str,
}

/// `POST /users`. Whoever gives a password is answered the same whether the address was free or not.
pub(crate) async fn register<N: Names, D: Store>(
    State(app): State<App<D>>,
    Extension(issuer): Extension<Arc<Issuer>>,
    from: caller::From,
    Body(body): Body<Register>,
) -> Result<Response, Refusal> {
    check_name(&body.name)?;
    check_email(&body.email)?;
    let id = Uuid::now_v7().to_string();
    let (roles, created_ms) = (String::new(), app.now().as_millisecond());
    let user =
        Account { id, name: body.name, email: body.email, roles, blocked: false, version: 1, created_ms };
    let Some(password) = body.password else {
        if !issuer.config.without_password {
            return Err(wrong("found no password; send one as \"password\"").into());
        }
        insert::<N, D>(&app, &user, None).await?;
        return Ok((StatusCode::CREATED, Json(Profile::from(user))).into_response());
    };
    check_password(&password)?;
    let account = account(&user.email);
    // Registering is guessing, too: what it costs in hashing is bounded for each address.
    issuer
        .guesses
        .count(&account, caller::address(&from), tokio::time::Instant::now())
        .map_err(Refusal::TooMany)?;
    let hash = issuer.passwords.hash(password).await?;
    insert::<N, D>(&app, &user, Some((&account, &hash))).await?;
    let detail = "if the address had no account, it has this one now; sign in with it";
    Ok((StatusCode::ACCEPTED, Json(Accepted { detail })).into_response())
}

/// Keeps a user, if the account is not another's.
async fn insert<N: Names, D: Store>(
    app: &App<D>,
    user: &Account,
    password: Option<(&str, &str)>,
) -> tombolo::Result<()> {
    let mut tx = app.begin().await?;
    D::insert_user(&mut tx, user).await?;
    if let Some((account, hash)) = password
        && !D::insert_password(&mut tx, account, &user.id, hash).await?
    {
        tx.rollback().await?;
        return Ok(());
    }
    let (user_id, name, email) = (user.id.clone(), user.name.clone(), user.email.clone());
    tx.publish(&Named::<N, _>::new(Registered { user_id, name, email }))?;
    tx.commit().await?;
    Ok(())
}

/// `GET /me`.
pub(crate) async fn me(caller: Caller) -> Json<Shown> {
    Json(caller.account.into())
}

#[derive(Deserialize)]
pub(crate) struct Rename {
    name: String,
}

/// `PATCH /me`.
pub(crate) async fn rename<N: Names, D: Store>(
    State(app): State<App<D>>,
    caller: Caller,
    Body(body): Body<Rename>,
) -> Result<Json<Shown>, Problem> {
    check_name(&body.name)?;
    let user_id = caller.account.id;
    let mut tx = app.begin().await?;
    D::rename(&mut tx, &user_id, &body.name).await?;
    let renamed = D::user_in(&mut tx, &user_id).await?.ok_or_else(|| no_user(&user_id))?;
    tx.publish(&Named::<N, _>::new(Renamed { user_id, name: body.name }))?;
    tx.commit().await?;
    Ok(Json(renamed.into()))
}

#[derive(Deserialize)]
pub(crate) struct ChangePassword {
    current: String,
    new: String,
}

/// `POST /me/password`. Every session ends, and a new one begins.
pub(crate) async fn change_password<N: Names, D: Store>(
    State(app): State<App<D>>,
    Extension(issuer): Extension<Arc<Issuer>>,
    from: caller::From,
    caller: Caller,
    Body(body): Body<ChangePassword>,
) -> Result<Json<Tokens>, Refusal> {
    check_password(&body.new)?;
    let (user, address) = (caller.account.id, caller::address(&from));
    let account = account(&caller.account.email);
    issuer.guesses.count(&account, address, tokio::time::Instant::now()).map_err(Refusal::TooMany)?;
    let stored = app.database().password_of(&user).await?;
    if body.current.len() > BYTES_MAX
        || issuer.passwords.compare(body.current, stored.clone()).await? == Compared::Other
    {
        return Err(not_signed_in().into());
    }
    issuer.guesses.forgive(&account, address);
    let hash = issuer.passwords.hash(body.new).await?;
    let mut tx = app.begin().await?;
    if !D::replace_password(&mut tx, &user, &stored.unwrap_or_default(), &hash).await? {
        return Err(not_signed_in().into());
    }
    sessions::end_all::<N, D>(&app, &mut tx, &user).await?;
    let begun = sessions::begin(&app, &issuer, &mut tx, &user).await?;
    tx.commit().await.map_err(tombolo::Error::from)?;
    Ok(Json(begun.tokens(&app, &issuer).await?))
}
