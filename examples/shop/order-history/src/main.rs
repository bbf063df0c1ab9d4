//! The service `order-history` as a program of its own, on the kind of database that its address names.

use tombolo::postgres::Postgres;
use tombolo::settings::{database_kind, database_or, other_database};
use tombolo::sqlite::Sqlite;

#[tokio::main]
async fn main() -> tombolo::Result<()> {
    let address = database_or("sqlite:order-history.db");
    match database_kind(&address) {
        "sqlite" => shop_order_history::service(Sqlite::open(&address)?)?.run().await,
        "postgres" => shop_order_history::service(Postgres::open(&address)?)?.run().await,
        _ => Err(other_database(&address, &["sqlite:PATH", "postgres://user@host/NAME"])),
    }
}
