//! By *replica*: the service's own copy, kept from the owners' events. Nobody else needs to be up.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tombolo::sqlite::{Sqlite, Tx};
use tombolo::{Event, Handled, Problem, View};

use crate::{App, History, Line, User, Via};

#[derive(Serialize, Deserialize, JsonSchema)]
struct UserRegistered {
    user_id: String,
    name: String,
}

impl Event for UserRegistered {
    const TYPE: &'static str = "users.registered.v1";
    fn key(&self) -> String {
        self.user_id.clone()
    }
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct ProductAdded {
    product_id: String,
    title: String,
}

impl Event for ProductAdded {
    const TYPE: &'static str = "products.added.v1";
    fn key(&self) -> String {
        self.product_id.clone()
    }
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct ProductChanged {
    product_id: String,
    title: String,
}

impl Event for ProductChanged {
    const TYPE: &'static str = "products.changed.v1";
    fn key(&self) -> String {
        self.product_id.clone()
    }
}

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

#[derive(Serialize, Deserialize, JsonSchema)]
struct OrderPaid {
    order_id: String,
}

impl Event for OrderPaid {
    const TYPE: &'static str = "orders.paid.v1";
    fn key(&self) -> String {
        self.order_id.clone()
    }
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct OrderCancelled {
    order_id: String,
}

impl Event for OrderCancelled {
    const TYPE: &'static str = "orders.cancelled.v1";
    fn key(&self) -> String {
        self.order_id.clone()
    }
}

/// The view's name.
const ORDER_HISTORY: &str = "order-history";

/// Version 2 knows the states of orders. It handles more types than version 1 did, so it has to see the topics from their
/// start, in tables of its own.
pub(crate) fn view() -> View<Sqlite> {
    View::new(ORDER_HISTORY, 2)
        .tables(include_str!("tables.sql"))
        .on(user_registered)
        .on(product_added)
        .on(product_changed)
        .on(order_placed)
        .on(order_paid)
        .on(order_cancelled)
}

async fn user_registered(event: UserRegistered, tx: &mut Tx) -> Handled {
    sqlx::query(tx.sql("INSERT INTO {users} (user_id, name) VALUES (?, ?)")?)
        .bind(event.user_id)
        .bind(event.name)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

async fn product_added(event: ProductAdded, tx: &mut Tx) -> Handled {
    sqlx::query(tx.sql("INSERT INTO {products} (product_id, title) VALUES (?, ?)")?)
        .bind(event.product_id)
        .bind(event.title)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

async fn product_changed(event: ProductChanged, tx: &mut Tx) -> Handled {
    sqlx::query(tx.sql("UPDATE {products} SET title = ? WHERE product_id = ?")?)
        .bind(event.title)
        .bind(event.product_id)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// There is no guard against doubles here, and none is needed: the cursor moves in the same transaction.
async fn order_placed(event: OrderPlaced, tx: &mut Tx) -> Handled {
    let insert = tx.sql(
        "INSERT INTO {orders} (order_id, user_id, product_id, quantity, price_cents, state) VALUES (?, ?, ?, ?, ?, 'open')",
    )?;
    sqlx::query(insert)
        .bind(event.order_id)
        .bind(event.user_id)
        .bind(event.product_id)
        .bind(event.quantity)
        .bind(event.price_cents)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

async fn order_paid(event: OrderPaid, tx: &mut Tx) -> Handled {
    set_state(tx, event.order_id, "paid").await
}

async fn order_cancelled(event: OrderCancelled, tx: &mut Tx) -> Handled {
    set_state(tx, event.order_id, "cancelled").await
}

/// The order is there: events of one key come in their order.
async fn set_state(tx: &mut Tx, order_id: String, state: &str) -> Handled {
    let update = tx.sql("UPDATE {orders} SET state = ? WHERE order_id = ?")?;
    sqlx::query(update).bind(state).bind(order_id).execute(&mut **tx).await?;
    Ok(())
}

/// Topics have no order between them, so an order may be here before its product: its title is empty for that moment.
/// Whoever has just written waits for it here, and is told if it is still on its way.
pub(crate) async fn history(app: &App, user_id: &str) -> Result<History, Problem> {
    app.fresh(ORDER_HISTORY).await?;
    let (pool, view) = (app.database().pool(), app.view(ORDER_HISTORY).await?);
    let user = view.sql("SELECT user_id AS id, name FROM {users} WHERE user_id = ?")?;
    let user = sqlx::query_as::<_, User>(user).bind(user_id).fetch_optional(pool).await?;
    let orders = view.sql(
        "SELECT o.order_id, o.product_id, p.title, o.quantity, o.price_cents, o.state
         FROM {orders} o LEFT JOIN {products} p USING (product_id)
         WHERE o.user_id = ? ORDER BY o.order_id",
    )?;
    let orders = sqlx::query_as::<_, Line>(orders).bind(user_id).fetch_all(pool).await?;
    Ok(History { via: Via::Replica, user, orders, missing: Vec::new() })
}
