//! `users`: who there is. It is the identity service under the shop's names, and answers the shop's questions about users besides.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tombolo::{App, Problem, Question, Result, Service};
use tombolo_identity::{Config, Names, Profile, Store, key_file, profile, service_named};

/// Where `users` is unless the environment says another place: its port in `tombolo.toml`.
const ADDRESS: &str = "http://127.0.0.1:7101";

/// What identity is called here.
struct Users;

impl Names for Users {
    const SERVICE: &'static str = "users";
    const TYPES: &'static str = "users";
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
#[derive(Serialize, Deserialize, JsonSchema)]
struct User {
    id: String,
    name: String,
    email: String,
}

impl From<Profile> for User {
    fn from(Profile { id, name, email }: Profile) -> Self {
        Self { id, name, email }
    }
}

async fn user_by_id<D: Store>(question: UserById, app: App<D>) -> Result<Option<User>, Problem> {
    Ok(profile(&app, &question.user_id).await?.map(User::from))
}

async fn about_user<D: Store>(question: AboutUser, app: App<D>) -> Result<AboutUserAnswer, Problem> {
    Ok(AboutUserAnswer { user: user_by_id(UserById { user_id: question.user_id }, app).await? })
}

/// What the environment says, for the database at `address`.
///
/// # Errors
/// `Settings` for a value that cannot be meant.
pub fn config(address: &str) -> Result<Config> {
    Config::from_env_or(ADDRESS, key_file(address, Users::SERVICE))
}

/// The service on its own database. The shop is there to be tried out: somebody may register without a password, who then can't sign
/// in, and everybody may look users up.
///
/// # Errors
/// `Failed` if the machine's cryptography does not work.
pub fn service<D: Store>(database: D, mut config: Config) -> Result<Service<D>> {
    (config.without_password, config.public) = (true, true);
    let service = service_named::<Users, D>(database, config)?;
    Ok(service.answer(user_by_id::<D>).answer(about_user::<D>))
}
