//! `users`: who there is. Owns names and addresses, says when somebody registered, and answers who somebody is.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tombolo::sqlite::Sqlite;
use tombolo::{Event, Problem, Question, Service};
use uuid::Uuid;

type App = tombolo::App<Sqlite>;

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

#[derive(Serialize, Deserialize, JsonSchema, sqlx::FromRow)]
struct User {
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

async fn register(
    State(app): State<App>,
    Json(body): Json<Register>,
) -> Result<(StatusCode, Json<User>), Problem> {
    check(&body)?;
    let user = User { id: Uuid::now_v7().to_string(), name: body.name, email: body.email };
    let mut tx = app.begin().await?;
    sqlx::query("INSERT INTO users (id, name, email) VALUES (?, ?, ?)")
        .bind(&user.id)
        .bind(&user.name)
        .bind(&user.email)
        .execute(&mut *tx)
        .await?;
    tx.publish(&UserRegistered {
        user_id: user.id.clone(),
        name: user.name.clone(),
        email: user.email.clone(),
    })?;
    tx.commit().await?;
    Ok((StatusCode::CREATED, Json(user)))
}

async fn find(app: &App, id: &str) -> Result<Option<User>, Problem> {
    let user = sqlx::query_as("SELECT id, name, email FROM users WHERE id = ?").bind(id);
    Ok(user.fetch_optional(app.database().pool()).await?)
}

async fn show(State(app): State<App>, Path(id): Path<String>) -> Result<Json<User>, Problem> {
    let found = find(&app, &id).await?;
    found.map(Json).ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, format!("there is no user {id:?}")))
}

async fn list(State(app): State<App>) -> Result<Json<Vec<User>>, Problem> {
    let users = sqlx::query_as("SELECT id, name, email FROM users ORDER BY id LIMIT 1000");
    Ok(Json(users.fetch_all(app.database().pool()).await?))
}

async fn user_by_id(question: UserById, app: App) -> Result<Option<User>, Problem> {
    find(&app, &question.user_id).await
}

async fn about_user(question: AboutUser, app: App) -> Result<AboutUserAnswer, Problem> {
    Ok(AboutUserAnswer { user: find(&app, &question.user_id).await? })
}

/// The service on its own database.
#[must_use]
pub fn service(database: Sqlite) -> Service<Sqlite> {
    Service::new("users", database)
        .setup(async |database: Sqlite| {
            sqlx::raw_sql(include_str!("schema.sql")).execute(database.pool()).await?;
            Ok(())
        })
        .routes(Router::new().route("/users", post(register).get(list)).route("/users/{id}", get(show)))
        .publishes::<UserRegistered>()
        .answer(user_by_id)
        .answer(about_user)
}
