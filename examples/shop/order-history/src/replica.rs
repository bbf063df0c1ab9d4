//! By *replica*: the service's own copy, kept from the owners' events. Nobody else needs to be up.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tombolo::{App, Event, Handled, Problem, View};

use crate::{History, Store, Via};

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

/// Of an order that was placed, what the history shows.
#[derive(Serialize, Deserialize, JsonSchema)]
pub struct OrderPlaced {
    pub(crate) order_id: String,
    pub(crate) user_id: String,
    pub(crate) product_id: String,
    pub(crate) quantity: i64,
    pub(crate) price_cents: i64,
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
pub(crate) fn view<D: Store>() -> View<D> {
    View::new(ORDER_HISTORY, 2)
        .tables(D::TABLES)
        .on(user_registered::<D>)
        .on(product_added::<D>)
        .on(product_changed::<D>)
        .on(order_placed::<D>)
        .on(order_paid::<D>)
        .on(order_cancelled::<D>)
}

async fn user_registered<D: Store>(event: UserRegistered, tx: &mut D::Tx) -> Handled {
    Ok(D::add_user(tx, &event.user_id, &event.name).await?)
}

async fn product_added<D: Store>(event: ProductAdded, tx: &mut D::Tx) -> Handled {
    Ok(D::add_product(tx, &event.product_id, &event.title).await?)
}

async fn product_changed<D: Store>(event: ProductChanged, tx: &mut D::Tx) -> Handled {
    Ok(D::set_title(tx, &event.product_id, &event.title).await?)
}

/// There is no guard against doubles here, and none is needed: the cursor moves in the same transaction.
async fn order_placed<D: Store>(event: OrderPlaced, tx: &mut D::Tx) -> Handled {
    Ok(D::add_order(tx, &event).await?)
}

/// The order is there: events of one key come in their order.
async fn order_paid<D: Store>(event: OrderPaid, tx: &mut D::Tx) -> Handled {
    Ok(D::set_state(tx, &event.order_id, "paid").await?)
}

async fn order_cancelled<D: Store>(event: OrderCancelled, tx: &mut D::Tx) -> Handled {
    Ok(D::set_state(tx, &event.order_id, "cancelled").await?)
}

/// Topics have no order between them, so an order may be here before its product: its title is empty for that moment.
/// Whoever has just written waits for it here, and is told if it is still on its way.
pub(crate) async fn history<D: Store>(app: &App<D>, user_id: &str) -> Result<History, Problem> {
    app.fresh(ORDER_HISTORY).await?;
    let (database, view) = (app.database(), app.view(ORDER_HISTORY).await?);
    let user = database.user(&view, user_id).await?;
    let orders = database.orders(&view, user_id).await?;
    Ok(History { via: Via::Replica, user, orders, missing: Vec::new() })
}
