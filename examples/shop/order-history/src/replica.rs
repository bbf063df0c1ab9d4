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

pub(crate) fn view() -> View<Sqlite> {
    View::new("order-history", 1).on(user_registered).on(product_added).on(product_changed).on(order_placed)
}

async fn user_registered(event: UserRegistered, tx: &mut Tx) -> Handled {
    sqlx::query("INSERT INTO history_users (user_id, name) VALUES (?, ?)")
        .bind(event.user_id)
        .bind(event.name)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

async fn product_added(event: ProductAdded, tx: &mut Tx) -> Handled {
    sqlx::query("INSERT INTO history_products (product_id, title) VALUES (?, ?)")
        .bind(event.product_id)
        .bind(event.title)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

async fn product_changed(event: ProductChanged, tx: &mut Tx) -> Handled {
    sqlx::query("UPDATE history_products SET title = ? WHERE product_id = ?")
        .bind(event.title)
        .bind(event.product_id)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// There is no guard against doubles here, and none is needed: the cursor moves in the same transaction.
async fn order_placed(event: OrderPlaced, tx: &mut Tx) -> Handled {
    sqlx::query("INSERT INTO history_orders (order_id, user_id, product_id, quantity, price_cents) VALUES (?, ?, ?, ?, ?)")
        .bind(event.order_id)
        .bind(event.user_id)
        .bind(event.product_id)
        .bind(event.quantity)
        .bind(event.price_cents)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// Topics have no order between them, so an order may be here before its product: its title is empty for that moment.
pub(crate) async fn history(app: &App, user_id: &str) -> Result<History, Problem> {
    app.fresh("order-history").await?;
    let pool = app.database().pool();
    let user = sqlx::query_as::<_, User>("SELECT user_id AS id, name FROM history_users WHERE user_id = ?")
        .bind(user_id);
    let user = user.fetch_optional(pool).await?;
    let orders = sqlx::query_as::<_, Line>(
        "SELECT o.order_id, o.product_id, p.title, o.quantity, o.price_cents
         FROM history_orders o LEFT JOIN history_products p USING (product_id)
         WHERE o.user_id = ? ORDER BY o.order_id",
    );
    let orders = orders.bind(user_id).fetch_all(pool).await?;
    Ok(History { via: Via::Replica, user, orders, missing: Vec::new() })
}
