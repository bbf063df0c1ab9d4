//! The service `identity` as a program of its own, on the kind of database that its address names.

#[cfg(feature = "mysql")]
use tombolo::mysql::Mysql;
use tombolo::settings::{database_kind, database_or, other_database};
use tombolo::sqlite::Sqlite;
use tombolo_identity::{Config, key_file, service};

#[tokio::main]
async fn main() -> tombolo::Result<()> {
    let address = database_or("sqlite:identity.db");
    let config = Config::from_env(key_file(&address, "identity"))?;
    match database_kind(&address) {
        "sqlite" => service(Sqlite::open(&address)?, config)?.run().await,
        #[cfg(feature = "mysql")]
        "mysql" => service(Mysql::open(&address)?, config)?.run().await,
        _ => Err(other_database(&address, KINDS)),
    }
}

#[cfg(feature = "mysql")]
const KINDS: &[&str] = &["sqlite:PATH", "mysql://user@host/NAME"];
#[cfg(not(feature = "mysql"))]
const KINDS: &[&str] = &["sqlite:PATH"];
