//! The service `orders` as a program of its own, on the kind of database that its address names.

use tombolo::postgres::Postgres;
use tombolo::settings::{database_kind, database_or, other_database};
use tombolo::sqlite::Sqlite;

#[tokio::main]
async fn main() -> tombolo::Result<()> {
    let address = database_or("sqlite:orders.db");
    match database_kind(&address) {
        "sqlite" => shop_orders::service(Sqlite::open(&address)?)?.run().await,
        "postgres" => shop_orders::service(Postgres::open(&address)?)?.run().await,
        _ => Err(other_database(&address, &["sqlite:PATH", "postgres://user@host/NAME"])),
    }
}
