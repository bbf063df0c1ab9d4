//! By *gather*: ask everybody at once over the bus, and reduce what comes in time. Who did not answer is named.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tombolo::{App, Database, Missing, Problem, Question};

use crate::call::{self, Order, Product, ProductsByIds};
use crate::{History, User, Via};

/// What do you know about this user? `users` answers with the user, `orders` with the orders.
#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct AboutUser {
    user_id: String,
}

impl Question for AboutUser {
    const NAME: &'static str = "shop.about-user.v1";
    type Answer = AboutUserAnswer;
}

#[derive(Serialize, Deserialize, JsonSchema, Default)]
#[serde(default)]
pub(crate) struct AboutUserAnswer {
    user: Option<User>,
    orders: Vec<Order>,
}

fn merge(mut all: AboutUserAnswer, part: AboutUserAnswer) -> AboutUserAnswer {
    all.user = all.user.or(part.user);
    all.orders.extend(part.orders);
    all
}

pub(crate) async fn history<D: Database>(app: &App<D>, user_id: &str) -> Result<History, Problem> {
    let question = AboutUser { user_id: user_id.to_owned() };
    let about = app.gather(&question).map_reduce(|_, part| part, AboutUserAnswer::default(), merge).await?;
    let mut missing = about.missing;
    let products = products(app, &about.value.orders, &mut missing).await?;
    Ok(History {
        via: Via::Gather,
        user: about.value.user,
        orders: call::join(about.value.orders, products),
        missing,
    })
}

async fn products<D: Database>(
    app: &App<D>,
    orders: &[Order],
    missing: &mut Vec<Missing>,
) -> Result<Vec<Product>, Problem> {
    let product_ids: BTreeSet<String> = orders.iter().map(|order| order.product_id.clone()).collect();
    if product_ids.is_empty() {
        return Ok(Vec::new());
    }
    let titles = app.gather(&ProductsByIds { product_ids }).await?;
    missing.extend(titles.missing);
    Ok(titles.value.into_iter().flat_map(|(_, products)| products).collect())
}
