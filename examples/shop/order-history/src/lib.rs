//! `order-history`: one question, "the orders of user X with their products", answered in all three ways.

mod store;
mod call;
mod gather;
mod replica;

use axum::extract::{Path, Query, State};
use axum::routing::get;
use axum::{Json, Router};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tombolo::auth::{self, Auth};
use tombolo::{App, Missing, Problem, Service};

pub use replica::OrderPlaced;
pub use store::Store;

/// Who issues the tokens, unless the environment says otherwise: `users`, at its port in `tombolo.toml`.
const USERS: &str = "http://127.0.0.1:7101";

/// What every way answers with.
#[derive(Serialize)]
pub(crate) struct History {
    via: Via,
    user: Option<User>,
    orders: Vec<Line>,
    missing: Vec<Missing>,
}

/// Who ordered, as far as it is known.
#[derive(Serialize, Deserialize, JsonSchema, sqlx::FromRow)]
pub struct User {
    id: String,
    name: String,
}

/// One order with its product.
#[derive(Serialize, sqlx::FromRow)]
pub struct Line {
    order_id: String,
    product_id: String,
    /// The present title; none while it is not known.
    title: Option<String>,
    quantity: i64,
    /// The price of one piece when it was ordered.
    price_cents: i64,
    /// `open`, `paid` or `cancelled`.
    state: String,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Via {
    Call,
    Gather,
    Replica,
}

#[derive(Deserialize)]
struct Parameters {
    #[serde(default = "by_replica")]
    via: Via,
}

fn by_replica() -> Via {
    Via::Replica
}

async fn orders_of<D: Store>(
    State(app): State<App<D>>,
    Path(user_id): Path<String>,
    Query(how): Query<Parameters>,
) -> Result<Json<History>, Problem> {
    history(&app, &user_id, how.via).await
}

/// The orders of whoever asks.
async fn my_orders<D: Store>(
    State(app): State<App<D>>,
    user: auth::User,
    Query(how): Query<Parameters>,
) -> Result<Json<History>, Problem> {
    history(&app, &user.id, how.via).await
}

async fn history<D: Store>(app: &App<D>, user_id: &str, via: Via) -> Result<Json<History>, Problem> {
    let history = match via {
        Via::Call => call::history(app, user_id).await?,
        Via::Gather => gather::history(app, user_id).await?,
        Via::Replica => replica::history(app, user_id).await?,
    };
    Ok(Json(history))
}

/// The service on its own database.
///
/// # Errors
/// `Settings` for a setting in the environment that is not what it should be.
pub fn service<D: Store>(database: D) -> tombolo::Result<Service<D>> {
    let routes = Router::new()
        .route("/users/{id}/orders", get(orders_of::<D>))
        .route("/me/orders", get(my_orders::<D>));
    let service = Service::new("order-history", database)
        .routes(routes)
        .auth(Auth::local(USERS).blocks_in("users", "users").with_env()?)
        .view(replica::view())
        .asks::<call::UserById>()
        .asks::<call::OrdersOfUser>()
        .asks::<call::ProductsByIds>()
        .asks::<gather::AboutUser>();
    Ok(service)
}
