//! `orders`: who bought what, at which price. Sells by its own small copies of users and products, and cancels what is
//! not paid in time.

mod catalog;
mod mail;
mod payment;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sqlx::SqliteConnection;
use tombolo::sqlite::Sqlite;
use tombolo::{Event, Problem, Question, Service};
use uuid::Uuid;

use payment::{OPEN, OrderCancelled, OrderPaid, PaymentDue, PaymentTime};

pub(crate) type App = tombolo::App<Sqlite>;

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

#[derive(Serialize, Deserialize, JsonSchema, sqlx::FromRow)]
struct Order {
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
    user_id: String,
    product_id: String,
    quantity: i64,
}

async fn place(
    State(app): State<App>,
    Extension(payment_time): Extension<PaymentTime>,
    Json(body): Json<PlaceOrder>,
) -> Result<(StatusCode, Json<Order>), Problem> {
    if !(1..=QUANTITY_MAX).contains(&body.quantity) {
        let detail = format!("found quantity {}; expected 1 to {QUANTITY_MAX}", body.quantity);
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail));
    }
    catalog::check_user(&app, &body.user_id).await?;
    let price_cents = catalog::price_cents(&app, &body.product_id).await?;
    let order = Order {
        id: Uuid::now_v7().to_string(),
        user_id: body.user_id,
        product_id: body.product_id,
        quantity: body.quantity,
        price_cents,
        state: OPEN.to_owned(),
    };
    let mut tx = app.begin().await?;
    sqlx::query("INSERT INTO orders (id, user_id, product_id, quantity, price_cents) VALUES (?, ?, ?, ?, ?)")
        .bind(&order.id)
        .bind(&order.user_id)
        .bind(&order.product_id)
        .bind(order.quantity)
        .bind(order.price_cents)
        .execute(&mut *tx)
        .await?;
    tx.publish(&placed(&order))?;
    payment::expect(&mut tx, &order.id, app.now() + payment_time.0)?;
    tx.commit().await?;
    Ok((StatusCode::CREATED, Json(order)))
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

async fn show(State(app): State<App>, Path(id): Path<String>) -> Result<Json<Order>, Problem> {
    let mut connection = app.database().pool().acquire().await?;
    Ok(Json(find(&mut connection, &id).await?))
}

async fn find(connection: &mut SqliteConnection, id: &str) -> Result<Order, Problem> {
    let order = sqlx::query_as("SELECT * FROM orders_with_state WHERE id = ?").bind(id);
    let found = order.fetch_optional(connection).await?;
    found.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, format!("there is no order {id:?}")))
}

async fn pay(State(app): State<App>, Path(id): Path<String>) -> Result<Json<Order>, Problem> {
    let mut tx = app.begin().await?;
    let order = find(&mut tx, &id).await?;
    if !payment::pay(&mut tx, &id).await? {
        let detail = format!("order {id} is {}; only an open one can be paid", order.state);
        return Err(Problem::new(StatusCode::CONFLICT, detail));
    }
    let paid = find(&mut tx, &id).await?;
    tx.commit().await?;
    Ok(Json(paid))
}

async fn of_user(app: &App, user_id: &str) -> Result<Vec<Order>, Problem> {
    let orders =
        sqlx::query_as("SELECT * FROM orders_with_state WHERE user_id = ? ORDER BY id").bind(user_id);
    Ok(orders.fetch_all(app.database().pool()).await?)
}

async fn orders_of_user(question: OrdersOfUser, app: App) -> Result<Vec<Order>, Problem> {
    of_user(&app, &question.user_id).await
}

async fn about_user(question: AboutUser, app: App) -> Result<AboutUserAnswer, Problem> {
    Ok(AboutUserAnswer { orders: of_user(&app, &question.user_id).await? })
}

/// The service on its own database.
///
/// # Errors
/// `Settings` for a setting of the shop in the environment that is not what it should be.
pub fn service(database: Sqlite) -> tombolo::Result<Service<Sqlite>> {
    let routes = Router::new()
        .route("/orders", post(place))
        .route("/orders/{id}", get(show))
        .route("/orders/{id}/pay", post(pay))
        .layer(Extension(PaymentTime::from_env()?));
    let service = Service::new("orders", database)
        .setup(async |database: Sqlite| {
            sqlx::raw_sql(include_str!("schema.sql")).execute(database.pool()).await?;
            Ok(())
        })
        .routes(routes)
        .publishes::<OrderPlaced>()
        .publishes::<PaymentDue>()
        .publishes::<OrderPaid>()
        .publishes::<OrderCancelled>()
        .view(catalog::view())
        .react(payment::reactor())
        .asks::<catalog::UserById>()
        .asks::<catalog::ProductsByIds>()
        .answer(orders_of_user)
        .answer(about_user);
    mail::confirm_orders(service)
}
