//! What administrators do: find users, block and unblock them, give them roles, have the next key sign.
//!
//! takes: a decision about a user · writes: the user, its sessions, its version, the event · commits: all of it at once · if we crash
//! here: nothing happened · if it repeats: the version is raised again, and nothing else changes.

use std::sync::Arc;

use axum::extract::{FromRequestParts, Path, Query, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::{Extension, Json};
use serde::Deserialize;
use tombolo::{Problem, Transaction};
use tombolo_event::propagation::Standing;

use crate::accounts::Shown;
use crate::caller::Steward;
use crate::events::{Blocked, HowStands, Named, RolesChanged, Unblocked};
use crate::names::Names;
use crate::problems::{Body, no_user, wrong};
use crate::store::{Account, PAGE_MAX, Store};
use crate::{App, Issuer};

/// The most roles of a user, and the longest of them.
const ROLES_MAX: usize = 32;
const ROLE_BYTES_MAX: usize = 64;

#[derive(Deserialize)]
pub(crate) struct Page {
    #[serde(default)]
    query: String,
    #[serde(default)]
    after: String,
    most: Option<i64>,
}

/// Whoever may look users up.
pub(crate) struct Reader;

impl<D: Store> FromRequestParts<App<D>> for Reader {
    type Rejection = <Steward as FromRequestParts<App<D>>>::Rejection;

    async fn from_request_parts(parts: &mut Parts, app: &App<D>) -> Result<Self, Self::Rejection> {
        let issuer = parts.extensions.get::<Arc<Issuer>>();
        if issuer.is_none_or(|issuer| !issuer.config.public) {
            Steward::from_request_parts(parts, app).await?;
        }
        Ok(Self)
    }
}

/// `GET /users`: those whose name or address begins with `query`, after the id `after`.
pub(crate) async fn list<D: Store>(
    State(app): State<App<D>>,
    _reader: Reader,
    Query(page): Query<Page>,
) -> Result<Json<Vec<Shown>>, Problem> {
    let most = page.most.unwrap_or(PAGE_MAX).clamp(1, PAGE_MAX);
    let users = app.database().users(&page.query, &page.after, most).await?;
    Ok(Json(users.into_iter().map(Shown::from).collect()))
}

/// `GET /users/{id}`.
pub(crate) async fn show<D: Store>(
    State(app): State<App<D>>,
    _reader: Reader,
    Path(id): Path<String>,
) -> Result<Json<Shown>, Problem> {
    let user = app.database().user(&id).await?.ok_or_else(|| no_user(&id))?;
    Ok(Json(user.into()))
}

/// `POST /users/{id}/block`: every session ends, and no new one begins.
pub(crate) async fn block<N: Names, D: Store>(
    State(app): State<App<D>>,
    Steward(by): Steward,
    Path(id): Path<String>,
) -> Result<Json<Shown>, Problem> {
    let now = app.now();
    let mut tx = app.begin().await?;
    D::set_blocked(&mut tx, &id, true).await?;
    D::end_sessions(&mut tx, &id, now).await?;
    let user = D::raise(&mut tx, &id).await?.ok_or_else(|| no_user(&id))?;
    let event = Blocked { user_id: id, version: user.version(), at_ms: now.as_millisecond() };
    tx.publish(&Named::<N, _>::new(event))?;
    tx.commit().await?;
    tracing::info!(user = user.id, by, "blocked");
    Ok(Json(user.into()))
}

/// `POST /users/{id}/unblock`.
pub(crate) async fn unblock<N: Names, D: Store>(
    State(app): State<App<D>>,
    Steward(by): Steward,
    Path(id): Path<String>,
) -> Result<Json<Shown>, Problem> {
    let mut tx = app.begin().await?;
    D::set_blocked(&mut tx, &id, false).await?;
    let user = D::raise(&mut tx, &id).await?.ok_or_else(|| no_user(&id))?;
    let event = Unblocked { user_id: id, version: user.version(), at_ms: app.now().as_millisecond() };
    tx.publish(&Named::<N, _>::new(event))?;
    tx.commit().await?;
    tracing::info!(user = user.id, by, "unblocked");
    Ok(Json(user.into()))
}

#[derive(Deserialize)]
pub(crate) struct Roles {
    roles: Vec<String>,
}

fn check_roles(roles: &[String]) -> Result<(), Problem> {
    let is_word = |role: &String| {
        let plain = role.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_:.".contains(&byte));
        !role.is_empty() && role.len() <= ROLE_BYTES_MAX && plain
    };
    if roles.len() <= ROLES_MAX && roles.iter().all(is_word) {
        return Ok(());
    }
    Err(wrong(format!(
        "found {} roles; expected at most {ROLES_MAX}, each of letters, digits and -_:. in at most {ROLE_BYTES_MAX} bytes",
        roles.len()
    )))
}

/// `PUT /users/{id}/roles`.
pub(crate) async fn give_roles<N: Names, D: Store>(
    State(app): State<App<D>>,
    Steward(by): Steward,
    Path(id): Path<String>,
    Body(body): Body<Roles>,
) -> Result<Json<Shown>, Problem> {
    check_roles(&body.roles)?;
    let mut tx = app.begin().await?;
    D::set_roles(&mut tx, &id, &body.roles.join(" ")).await?;
    let user = D::raise(&mut tx, &id).await?.ok_or_else(|| no_user(&id))?;
    let (version, at_ms) = (user.version(), app.now().as_millisecond());
    let event = RolesChanged { user_id: id, roles: body.roles, version, at_ms };
    tx.publish(&Named::<N, _>::new(event))?;
    tx.commit().await?;
    tracing::info!(user = user.id, by, roles = user.roles, "given roles");
    Ok(Json(user.into()))
}

/// How a user stands, and whether all of it is on the bus.
pub(crate) async fn how_stands<N: Names, D: Store>(
    asked: HowStands<N>,
    app: App<D>,
) -> Result<Option<Standing>, Problem> {
    // The database first: what is said meanwhile counts as waiting, and what was sent is not missed.
    let user = app.database().user(&asked.user_id).await?;
    let waiting = app.database().depth().await?.rows;
    let standing = |user: Account| Standing { version: user.version(), blocked: user.blocked, waiting };
    Ok(user.map(standing))
}

/// `POST /keys/rotate`.
pub(crate) async fn rotate<D: Store>(
    State(app): State<App<D>>,
    Extension(issuer): Extension<Arc<Issuer>>,
    Steward(by): Steward,
) -> Result<StatusCode, Problem> {
    issuer.keyring.rotate(&app, &issuer.config).await?;
    tracing::info!(by, "the keys were rotated");
    Ok(StatusCode::NO_CONTENT)
}
