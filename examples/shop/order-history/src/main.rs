//! The service `order-history` as a program of its own.

use tombolo::sqlite::Sqlite;

#[tokio::main]
async fn main() -> tombolo::Result<()> {
    let database = Sqlite::open(tombolo::settings::database_or("sqlite:order-history.db"))?;
    shop_order_history::service(database).run().await
}
