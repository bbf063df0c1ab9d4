//! The service `identity` as a program of its own, on the kind of database that its address names.

#[cfg(feature = "mysql")]
use tombolo::mysql::Mysql;
#[cfg(feature = "postgres")]
use tombolo::postgres::Postgres;
use tombolo::settings::{database_kind, database_or, other_database};
use tombolo::sqlite::Sqlite;
use tombolo_identity::{Config, key_file, service};

#[tokio::main]
async fn main() -> tombolo::Result<()> {
    let address = database_or("sqlite:identity.db");
    let config = Config::from_env(key_file(&address, "identity"))?;
    match database_kind(&address) {
        "sqlite" => service(Sqlite::open(&address)?, config)?.run().await,
        #[cfg(feature = "postgres")]
        "postgres" => service(Postgres::open(&address)?, config)?.run().await,
        #[cfg(feature = "mysql")]
        "mysql" => service(Mysql::open(&address)?, config)?.run().await,
        _ => Err(other_database(&address, KINDS)),
    }
}

/// The addresses of the databases that this program was built for.
const KINDS: &[&str] = &[
    "sqlite:PATH",
    #[cfg(feature = "postgres")]
    "postgres://user@host/NAME",
    #[cfg(feature = "mysql")]
    "mysql://user@host/NAME",
];
