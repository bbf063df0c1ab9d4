//! `orders`: who bought what, at which price. Sells by its own small copies of users and products, and cancels what is
//! not paid in time.
//!
//! Whoever has signed in orders as that user; without a token the order says for whom it is, so that the shop can be tried out by
//! hand. Only an administrator cancels an order, and `users` is asked each time whether that still is one.

mod store;
mod catalog;
mod mail;
mod payment;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tombolo::auth::{Admin, Auth, User, Way};
use tombolo::{App, Event, Problem, Question, Service, Transaction};
use uuid::Uuid;

use payment::{OPEN, OrderCancelled, OrderPaid, PaymentDue, PaymentTime};
pub use store::Store;

/// Who issues the tokens, unless the environment says otherwise: `users`, at its port in `tombolo.toml`.
const USERS: &str = "http://127.0.0.1:7101";
/// The most pieces of one order.
const QUANTITY_MAX: i64 = 1_000_000;

#[derive(Serialize, Deserialize, JsonSchema)]
struct OrderPlaced {
    order_id: String,
    user_id: String,
    product_id: String,
    quantity: i64,
    price_cents: i64,
}

impl Event for OrderPlaced {
    const TYPE: &'static str = "orders.placed.v1";
    fn key(&self) -> String {
        self.order_id.clone()
    }
}

/// Which orders has this user placed?
#[derive(Serialize, Deserialize, JsonSchema)]
struct OrdersOfUser {
    user_id: String,
}

impl Question for OrdersOfUser {
    const NAME: &'static str = "orders.of-user.v1";
    type Answer = Vec<Order>;
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
    orders: Vec<Order>,
}

/// An order as its owner shows it.
#[derive(Serialize, Deserialize, JsonSchema, sqlx::FromRow)]
pub struct Order {
    id: String,
    user_id: String,
    product_id: String,
    quantity: i64,
    /// The price of one piece when it was ordered.
    price_cents: i64,
    /// `open`, `paid` or `cancelled`.
    state: String,
}

#[derive(Deserialize)]
struct PlaceOrder {
    /// Whoever has signed in need not say it.
    user_id: Option<String>,
    product_id: String,
    quantity: i64,
}

async fn place<D: Store>(
    State(app): State<App<D>>,
    Extension(payment_time): Extension<PaymentTime>,
    user: Option<User>,
    Json(body): Json<PlaceOrder>,
) -> Result<(StatusCode, Json<Order>), Problem> {
    if !(1..=QUANTITY_MAX).contains(&body.quantity) {
        let detail = format!("found quantity {}; expected 1 to {QUANTITY_MAX}", body.quantity);
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail));
    }
    let user_id = for_whom(user, body.user_id)?;
    catalog::check_user(&app, &user_id).await?;
    let price_cents = catalog::price_cents(&app, &body.product_id).await?;
    let order = Order {
        id: Uuid::now_v7().to_string(),
        user_id,
        product_id: body.product_id,
        quantity: body.quantity,
        price_cents,
        state: OPEN.to_owned(),
    };
    let mut tx = app.begin().await?;
    D::insert(&mut tx, &order).await?;
    tx.publish(&placed(&order))?;
    payment::expect(&mut tx, &order.id, app.now() + payment_time.0)?;
    tx.commit().await?;
    Ok((StatusCode::CREATED, Json(order)))
}

/// Whose order it is.
fn for_whom(user: Option<User>, named: Option<String>) -> Result<String, Problem> {
    let detail = match (user, named) {
        (None, Some(named)) => return Ok(named),
        (Some(user), named) if named.as_ref().is_none_or(|named| *named == user.id) => return Ok(user.id),
        (Some(user), _) => {
            let detail = format!("found the order of another user than {}; sign in as that user", user.id);
            return Err(Problem::new(StatusCode::FORBIDDEN, detail));
        }
        (None, None) => "found no user; sign in and send the token, or say user_id",
    };
    Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail))
}

fn placed(order: &Order) -> OrderPlaced {
    OrderPlaced {
        order_id: order.id.clone(),
        user_id: order.user_id.clone(),
        product_id: order.product_id.clone(),
        quantity: order.quantity,
        price_cents: order.price_cents,
    }
}

async fn show<D: Store>(State(app): State<App<D>>, Path(id): Path<String>) -> Result<Json<Order>, Problem> {
    app.database().find(&id).await?.map(Json).ok_or_else(|| unknown(&id))
}

fn unknown(id: &str) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, format!("there is no order {id:?}"))
}

async fn pay<D: Store>(State(app): State<App<D>>, Path(id): Path<String>) -> Result<Json<Order>, Problem> {
    let mut tx = app.begin().await?;
    let order = D::find_in(&mut tx, &id).await?.ok_or_else(|| unknown(&id))?;
    if !payment::pay::<D>(&mut tx, &id).await? {
        let detail = format!("order {id} is {}; only an open one can be paid", order.state);
        return Err(Problem::new(StatusCode::CONFLICT, detail));
    }
    let paid = D::find_in(&mut tx, &id).await?.ok_or_else(|| unknown(&id))?;
    tx.commit().await?;
    Ok(Json(paid))
}

async fn cancel<D: Store>(
    State(app): State<App<D>>,
    Admin(_): Admin,
    Path(id): Path<String>,
) -> Result<Json<Order>, Problem> {
    let mut tx = app.begin().await?;
    let order = D::find_in(&mut tx, &id).await?.ok_or_else(|| unknown(&id))?;
    if !payment::cancel::<D>(&mut tx, &id).await? {
        let detail = format!("order {id} is {}; only an open one can be cancelled", order.state);
        return Err(Problem::new(StatusCode::CONFLICT, detail));
    }
    let cancelled = D::find_in(&mut tx, &id).await?.ok_or_else(|| unknown(&id))?;
    tx.commit().await?;
    Ok(Json(cancelled))
}

async fn orders_of_user<D: Store>(question: OrdersOfUser, app: App<D>) -> Result<Vec<Order>, Problem> {
    Ok(app.database().of_user(&question.user_id).await?)
}

async fn about_user<D: Store>(question: AboutUser, app: App<D>) -> Result<AboutUserAnswer, Problem> {
    Ok(AboutUserAnswer { orders: app.database().of_user(&question.user_id).await? })
}

/// The service on its own database.
///
/// # Errors
/// `Settings` for a setting of the shop in the environment that is not what it should be.
pub fn service<D: Store>(database: D) -> tombolo::Result<Service<D>> {
    let routes = Router::new()
        .route("/orders", post(place::<D>))
        .route("/orders/{id}", get(show::<D>))
        .route("/orders/{id}/pay", post(pay::<D>))
        .route("/orders/{id}/cancel", post(cancel::<D>).layer(Extension(Way::Central)))
        .layer(Extension(PaymentTime::from_env()?));
    let service = Service::new("orders", database)
        .setup(async |database: D| database.make_tables().await)
        .routes(routes)
        .auth(Auth::local(USERS).blocks_in("users", "users").with_env()?)
        .publishes::<OrderPlaced>()
        .publishes::<PaymentDue>()
        .publishes::<OrderPaid>()
        .publishes::<OrderCancelled>()
        .view(catalog::view())
        .react(payment::reactor())
        .asks::<catalog::UserById>()
        .asks::<catalog::ProductsByIds>()
        .answer(orders_of_user::<D>)
        .answer(about_user::<D>);
    mail::confirm_orders(service)
}
