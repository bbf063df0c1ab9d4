//! The service `users` as a program of its own.

use tombolo::sqlite::Sqlite;

#[tokio::main]
async fn main() -> tombolo::Result<()> {
    let database = Sqlite::open(tombolo::settings::database_or("sqlite:users.db"))?;
    shop_users::service(database).run().await
}
