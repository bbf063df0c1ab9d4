//! A plain axum + sqlx service, `parcels`, and how it joins Tombolo: `before` knows nothing of it, `outbox` publishes in
//! its own transactions, `subscription` keeps a copy of orders as well. Each file is a whole service; compare them.
//!
//! `cargo run -p adoption -- outbox`, beside a bus: `tombolo bus --data /tmp/bus`.

mod before;
mod outbox;
mod subscription;
#[cfg(test)]
mod tests;

use std::error::Error;
use std::time::Duration;

use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use tokio::net::TcpListener;
use tombolo::Settings;

/// The service's own tables; Tombolo's are beside them, made by `tombolo schema apply sqlite:parcels.db --service parcels`.
const TABLES: &str = "
CREATE TABLE IF NOT EXISTS parcels (id TEXT PRIMARY KEY, order_id TEXT NOT NULL, weight_grams INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS to_send (order_id TEXT PRIMARY KEY, quantity INTEGER NOT NULL) STRICT;
";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let step = std::env::args().nth(1).unwrap_or_default();
    let pool = pool(&tombolo::settings::database_or("sqlite:parcels.db")).await?;
    let settings = Settings::from_env()?;
    let listener = TcpListener::bind(&settings.listen).await?;
    println!("{step}: http://{}", listener.local_addr()?);
    match step.as_str() {
        "before" => before::serve(listener, pool).await,
        "outbox" => outbox::serve(listener, pool, settings).await,
        "subscription" => subscription::serve(listener, pool, settings).await,
        _ => Err("found no step; expected one of: before, outbox, subscription".into()),
    }
}

/// A pool as such a service has it. Tombolo refuses settings under which a commit could be lost.
async fn pool(url: &str) -> Result<SqlitePool, sqlx::Error> {
    let options: SqliteConnectOptions = url.parse()?;
    let options = options
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(Duration::from_secs(5));
    let pool = SqlitePool::connect_with(options).await?;
    sqlx::raw_sql(TABLES).execute(&pool).await?;
    Ok(pool)
}
