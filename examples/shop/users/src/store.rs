//! What `users` asks of its own database, and in a file for each, how SQLite and MariaDB (or MySQL) do it in their SQL.
//!
//! The same program runs on either; the address decides (`main.rs`). Invariant: everything that differs between the databases
//! is below here.

mod sqlite;
mod mysql;

use tombolo::{Database, Result};

use crate::User;

/// A database that `users` can own.
pub trait Store: Database {
    /// Makes the tables that are not there yet.
    fn make_tables(&self) -> impl Future<Output = Result<()>> + Send;

    /// Keeps a new user.
    fn insert(tx: &mut Self::Tx, user: &User) -> impl Future<Output = Result<()>> + Send;

    /// The user, if there is one.
    fn find(&self, id: &str) -> impl Future<Output = Result<Option<User>>> + Send;

    /// The first thousand users.
    fn list(&self) -> impl Future<Output = Result<Vec<User>>> + Send;
}
