//! The shop as a customer sees it: its four services and their routes. Invariant: what goes wrong says which service
//! it was, and what it said.

use std::fmt;
use std::time::Duration;

use clap::Args;
use reqwest::{Client, Method, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::made::{Change, Good, Person};

/// How long one request may take.
const ANSWER_BOUND: Duration = Duration::from_secs(10);

/// Where the services are. The defaults are the ports of examples/shop/tombolo.toml.
#[derive(Debug, Args)]
pub(crate) struct Addresses {
    /// Where `users` is.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:7101")]
    users_url: String,
    /// Where `products` is.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:7102")]
    products_url: String,
    /// Where `orders` is.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:7103")]
    orders_url: String,
    /// Where `order-history` is.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:7104")]
    order_history_url: String,
}

/// Why a request was not granted.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The service said no.
    Refused { service: &'static str, status: StatusCode, detail: String },
    /// No answer came, so nobody knows whether it was done.
    Unanswered { service: &'static str, url: String, cause: String },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { service, status, detail } => write!(f, "{service} answered {status}: {detail}"),
            Self::Unanswered { service, url, cause } => write!(
                f,
                "{service} did not answer at {url}: {cause}; is the shop running? start it with `cargo shop`, or name its address with --{service}-url"
            ),
        }
    }
}

impl std::error::Error for Refusal {}

/// The three ways of `order-history`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Via {
    Call,
    Gather,
    Replica,
}

/// What `order-history` answers.
#[derive(Debug, Deserialize, PartialEq)]
pub(crate) struct History {
    pub(crate) via: Via,
    pub(crate) user: Value,
    pub(crate) orders: Vec<Line>,
    pub(crate) missing: Vec<Value>,
}

/// One order with its product.
#[derive(Debug, Deserialize, PartialEq)]
pub(crate) struct Line {
    pub(crate) order_id: String,
    product_id: String,
    title: Option<String>,
    quantity: i64,
    price_cents: i64,
}

#[derive(Deserialize)]
struct Made {
    id: String,
}

#[derive(Deserialize)]
struct Problem {
    detail: String,
}

/// A running shop.
pub(crate) struct Shop {
    client: Client,
    users: String,
    products: String,
    orders: String,
    order_history: String,
}

type Answer<T> = Result<T, Refusal>;

impl Shop {
    /// A shop at these addresses; nothing is asked yet.
    pub(crate) fn new(addresses: &Addresses) -> reqwest::Result<Self> {
        let base = |url: &str| url.trim_end_matches('/').to_owned();
        Ok(Self {
            client: Client::builder().no_proxy().timeout(ANSWER_BOUND).build()?,
            users: base(&addresses.users_url),
            products: base(&addresses.products_url),
            orders: base(&addresses.orders_url),
            order_history: base(&addresses.order_history_url),
        })
    }

    /// Registers a user; returns the id.
    pub(crate) async fn register(&self, person: &Person) -> Answer<String> {
        self.make("users", format!("{}/users", self.users), person).await
    }

    /// Adds a product; returns the id.
    pub(crate) async fn add(&self, good: &Good) -> Answer<String> {
        self.make("products", format!("{}/products", self.products), good).await
    }

    /// Changes a product.
    pub(crate) async fn change(&self, product_id: &str, change: &Change) -> Answer<()> {
        let url = format!("{}/products/{product_id}", self.products);
        let _: Made = self.ask("products", Method::PATCH, url, Some(change)).await?;
        Ok(())
    }

    /// Places an order; returns the id.
    pub(crate) async fn order(&self, user_id: &str, product_id: &str, quantity: i64) -> Answer<String> {
        let body = json!({ "user_id": user_id, "product_id": product_id, "quantity": quantity });
        self.make("orders", format!("{}/orders", self.orders), &body).await
    }

    /// The orders of a user with their products.
    pub(crate) async fn history(&self, user_id: &str, via: Via) -> Answer<History> {
        let way = match via {
            Via::Call => "call",
            Via::Gather => "gather",
            Via::Replica => "replica",
        };
        let url = format!("{}/users/{user_id}/orders?via={way}", self.order_history);
        self.ask("order-history", Method::GET, url, None::<&()>).await
    }

    async fn make(&self, service: &'static str, url: String, body: &impl Serialize) -> Answer<String> {
        let made: Made = self.ask(service, Method::POST, url, Some(body)).await?;
        Ok(made.id)
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        service: &'static str,
        method: Method,
        url: String,
        body: Option<&impl Serialize>,
    ) -> Answer<T> {
        let mut request = self.client.request(method, &url);
        if let Some(body) = body {
            request = request.json(body);
        }
        let unanswered = |error: reqwest::Error| Refusal::Unanswered {
            service,
            url: url.clone(),
            cause: if error.is_timeout() {
                format!("waited {} s", ANSWER_BOUND.as_secs())
            } else {
                root_cause(&error)
            },
        };
        let response = request.send().await.map_err(unanswered)?;
        let status = response.status();
        let text = response.text().await.map_err(unanswered)?;
        let refused = |detail: String| Refusal::Refused { service, status, detail };
        if !status.is_success() {
            let problem = serde_json::from_str::<Problem>(&text);
            return Err(refused(problem.map_or(text, |problem| problem.detail)));
        }
        serde_json::from_str(&text)
            .map_err(|error| refused(format!("its answer is not what was expected: {error}; it was {text}")))
    }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}
