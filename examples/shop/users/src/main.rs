//! The service `users` as a program of its own, on the kind of database that its address names.

use tombolo::mysql::Mysql;
use tombolo::postgres::Postgres;
use tombolo::settings::{database_kind, database_or, other_database};
use tombolo::sqlite::Sqlite;

#[tokio::main]
async fn main() -> tombolo::Result<()> {
    let address = database_or("sqlite:users.db");
    let config = shop_users::config(&address)?;
    match database_kind(&address) {
        "sqlite" => shop_users::service(Sqlite::open(&address)?, config)?.run().await,
        "mysql" => shop_users::service(Mysql::open(&address)?, config)?.run().await,
        "postgres" => shop_users::service(Postgres::open(&address)?, config)?.run().await,
        _ => Err(other_database(&address, KINDS)),
    }
}

const KINDS: &[&str] = &["sqlite:PATH", "mysql://user@host/NAME", "postgres://user@host/NAME"];
