//! `users`: who there is. Owns names and addresses, says when somebody registered, and answers who somebody is.

mod store;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tombolo::{App, Event, Problem, Question, Service, Transaction};
use uuid::Uuid;

pub use store::Store;

/// The longest name, in characters.
const NAME_CHARS_MAX: usize = 200;
/// The longest address, in characters.
const EMAIL_CHARS_MAX: usize = 254;

#[derive(Serialize, Deserialize, JsonSchema)]
struct UserRegistered {
    user_id: String,
    name: String,
    email: String,
}

impl Event for UserRegistered {
    const TYPE: &'static str = "users.registered.v1";
    fn key(&self) -> String {
        self.user_id.clone()
    }
}

/// Who is this? Asked by a service that has no copy yet.
#[derive(Serialize, Deserialize, JsonSchema)]
struct UserById {
    user_id: String,
}

impl Question for UserById {
    const NAME: &'static str = "users.by-id.v1";
    type Answer = Option<User>;
}

/// What do you know about this user? Asked of everybody at once.
#[derive(Serialize, Deserialize, JsonSchema)]
struct AboutUser {
    user_id: String,
}

impl Question for AboutUser {
    const NAME: &'static str = "shop.about-user.v1";
    type Answer = AboutUserAnswer;
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct AboutUserAnswer {
    user: Option<User>,
}

/// Somebody who registered.
#[derive(Serialize, Deserialize, JsonSchema, sqlx::FromRow)]
pub struct User {
    id: String,
    name: String,
    email: String,
}

#[derive(Deserialize)]
struct Register {
    name: String,
    email: String,
}

fn check(body: &Register) -> Result<(), Problem> {
    let name = body.name.trim().chars().count();
    if !(1..=NAME_CHARS_MAX).contains(&name) {
        return Err(refusal(format!("found a name of {name} characters; expected 1 to {NAME_CHARS_MAX}")));
    }
    let email = body.email.chars().count();
    if !body.email.contains('@') || email > EMAIL_CHARS_MAX {
        return Err(refusal(format!(
            "found an email of {email} characters; expected an address with an @, at most {EMAIL_CHARS_MAX}"
        )));
    }
    Ok(())
}

fn refusal(detail: String) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
}

async fn register<D: Store>(
    State(app): State<App<D>>,
    Json(body): Json<Register>,
) -> Result<(StatusCode, Json<User>), Problem> {
    check(&body)?;
    let user = User { id: Uuid::now_v7().to_string(), name: body.name, email: body.email };
    let mut tx = app.begin().await?;
    D::insert(&mut tx, &user).await?;
    tx.publish(&UserRegistered {
        user_id: user.id.clone(),
        name: user.name.clone(),
        email: user.email.clone(),
    })?;
    tx.commit().await?;
    Ok((StatusCode::CREATED, Json(user)))
}

async fn show<D: Store>(State(app): State<App<D>>, Path(id): Path<String>) -> Result<Json<User>, Problem> {
    let found = app.database().find(&id).await?;
    found.map(Json).ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, format!("there is no user {id:?}")))
}

async fn list<D: Store>(State(app): State<App<D>>) -> Result<Json<Vec<User>>, Problem> {
    Ok(Json(app.database().list().await?))
}

async fn user_by_id<D: Store>(question: UserById, app: App<D>) -> Result<Option<User>, Problem> {
    Ok(app.database().find(&question.user_id).await?)
}

async fn about_user<D: Store>(question: AboutUser, app: App<D>) -> Result<AboutUserAnswer, Problem> {
    Ok(AboutUserAnswer { user: app.database().find(&question.user_id).await? })
}

/// The service on its own database.
#[must_use]
pub fn service<D: Store>(database: D) -> Service<D> {
    let routes = Router::new()
        .route("/users", post(register::<D>).get(list::<D>))
        .route("/users/{id}", get(show::<D>));
    Service::new("users", database)
        .setup(async |database: D| database.make_tables().await)
        .routes(routes)
        .publishes::<UserRegistered>()
        .answer(user_by_id::<D>)
        .answer(about_user::<D>)
}
