//! The service `identity` as a program of its own, on SQLite.

use std::path::PathBuf;

use tombolo::settings::database_or;
use tombolo::sqlite::Sqlite;
use tombolo_identity::Config;

#[tokio::main]
async fn main() -> tombolo::Result<()> {
    let address = database_or("sqlite:identity.db");
    let file = address.trim_start_matches("sqlite:").trim_start_matches("//");
    let file = file.split_once('?').map_or(file, |(file, _)| file);
    let config = Config::from_env(PathBuf::from(format!("{file}.key")))?;
    tombolo_identity::service(Sqlite::open(&address)?, config)?.run().await
}
