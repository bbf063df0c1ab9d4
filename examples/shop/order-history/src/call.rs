//! By *call*: ask the owners directly, one after the other. One of them down, and there is no answer.

use std::collections::{BTreeSet, HashMap};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tombolo::{App, Database, Problem, Question};

use crate::{History, Line, User, Via};

#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct UserById {
    user_id: String,
}

impl Question for UserById {
    const NAME: &'static str = "users.by-id.v1";
    type Answer = Option<User>;
}

#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct OrdersOfUser {
    user_id: String,
}

impl Question for OrdersOfUser {
    const NAME: &'static str = "orders.of-user.v1";
    type Answer = Vec<Order>;
}

#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct ProductsByIds {
    pub(crate) product_ids: BTreeSet<String>,
}

impl Question for ProductsByIds {
    const NAME: &'static str = "products.by-ids.v1";
    type Answer = Vec<Product>;
}

/// Of what `orders` answers, what the history shows.
#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct Order {
    id: String,
    pub(crate) product_id: String,
    quantity: i64,
    price_cents: i64,
    state: String,
}

/// Of what `products` answers, what the history shows.
#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct Product {
    id: String,
    title: String,
}

pub(crate) async fn history<D: Database>(app: &App<D>, user_id: &str) -> Result<History, Problem> {
    let user = app.call("users", &UserById { user_id: user_id.to_owned() }).await?;
    let orders = app.call("orders", &OrdersOfUser { user_id: user_id.to_owned() }).await?;
    let product_ids: BTreeSet<String> = orders.iter().map(|order| order.product_id.clone()).collect();
    let products = if product_ids.is_empty() {
        Vec::new()
    } else {
        app.call("products", &ProductsByIds { product_ids }).await?
    };
    Ok(History { via: Via::Call, user, orders: join(orders, products), missing: Vec::new() })
}

/// Puts titles to orders, which come oldest first.
pub(crate) fn join(orders: Vec<Order>, products: Vec<Product>) -> Vec<Line> {
    let titles: HashMap<String, String> =
        products.into_iter().map(|product| (product.id, product.title)).collect();
    let line = |order: Order| Line {
        title: titles.get(&order.product_id).cloned(),
        order_id: order.id,
        product_id: order.product_id,
        quantity: order.quantity,
        price_cents: order.price_cents,
        state: order.state,
    };
    orders.into_iter().map(line).collect()
}
