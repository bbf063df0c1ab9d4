//! The service `orders` as a program of its own.

use tombolo::sqlite::Sqlite;

#[tokio::main]
async fn main() -> tombolo::Result<()> {
    let database = Sqlite::open(tombolo::settings::database_or("sqlite:orders.db"))?;
    shop_orders::service(database)?.run().await
}
