//! What `orders` asks of its own database, and in a file for each, how SQLite and PostgreSQL do it in their SQL.
//!
//! The same program runs on either; the address decides (`main.rs`). Invariant: everything that differs between the databases
//! is below here.

mod sqlite;
mod postgres;

use tombolo::view::Live;
use tombolo::{Database, Result};

use crate::Order;

/// A database that `orders` can own.
pub trait Store: Database {
    /// The tables of the view `catalog`.
    const CATALOG: &'static str;

    /// Makes the tables that are not there yet.
    fn make_tables(&self) -> impl Future<Output = Result<()>> + Send;

    /// Keeps a new order.
    fn insert(tx: &mut Self::Tx, order: &Order) -> impl Future<Output = Result<()>> + Send;

    /// The order, if there is one.
    fn find(&self, id: &str) -> impl Future<Output = Result<Option<Order>>> + Send;

    /// The same as a transaction sees it.
    fn find_in(tx: &mut Self::Tx, id: &str) -> impl Future<Output = Result<Option<Order>>> + Send;

    /// The orders of a user, the oldest first.
    fn of_user(&self, user_id: &str) -> impl Future<Output = Result<Vec<Order>>> + Send;

    /// Gives an order its outcome, if it has none; whether that is so.
    fn decide(tx: &mut Self::Tx, order_id: &str, outcome: &str) -> impl Future<Output = Result<bool>> + Send;

    /// Adds a user to the catalog.
    fn add_user(tx: &mut Self::Tx, id: &str, email: &str) -> impl Future<Output = Result<()>> + Send;

    /// Adds a product to the catalog.
    fn add_product(tx: &mut Self::Tx, id: &str, price_cents: i64) -> impl Future<Output = Result<()>> + Send;

    /// Changes a price in the catalog.
    fn set_price(tx: &mut Self::Tx, id: &str, price_cents: i64) -> impl Future<Output = Result<()>> + Send;

    /// A user's address, if the catalog has it.
    fn email(&self, catalog: &Live, user_id: &str) -> impl Future<Output = Result<Option<String>>> + Send;

    /// A product's price, if the catalog has it.
    fn price_cents(
        &self,
        catalog: &Live,
        product_id: &str,
    ) -> impl Future<Output = Result<Option<i64>>> + Send;
}
