//! What `order-history` asks of its own database, and in a file for each, how SQLite and PostgreSQL do it in their SQL.
//!
//! The same program runs on either; the address decides (`main.rs`). Invariant: everything that differs between the databases
//! is below here.

mod sqlite;
mod postgres;

use tombolo::view::Live;
use tombolo::{Database, Result};

use crate::replica::OrderPlaced;
use crate::{Line, User};

/// A database that `order-history` can own.
pub trait Store: Database {
    /// The tables of its view.
    const TABLES: &'static str;

    /// Adds a user.
    fn add_user(tx: &mut Self::Tx, id: &str, name: &str) -> impl Future<Output = Result<()>> + Send;

    /// Adds a product.
    fn add_product(tx: &mut Self::Tx, id: &str, title: &str) -> impl Future<Output = Result<()>> + Send;

    /// Changes a product's title.
    fn set_title(tx: &mut Self::Tx, id: &str, title: &str) -> impl Future<Output = Result<()>> + Send;

    /// Adds an order, which is open.
    fn add_order(tx: &mut Self::Tx, order: &OrderPlaced) -> impl Future<Output = Result<()>> + Send;

    /// Changes an order's state.
    fn set_state(tx: &mut Self::Tx, order_id: &str, state: &str) -> impl Future<Output = Result<()>> + Send;

    /// The user, if the view has one.
    fn user(&self, view: &Live, user_id: &str) -> impl Future<Output = Result<Option<User>>> + Send;

    /// The orders of a user with their products, the oldest first.
    fn orders(&self, view: &Live, user_id: &str) -> impl Future<Output = Result<Vec<Line>>> + Send;
}
