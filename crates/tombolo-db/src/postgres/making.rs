//! The database itself, for whoever sets a system up: made on its server if it is not there yet.
//!
//! Invariant: a database that is there is not touched, whoever made it; two that make it at once both succeed.

use std::str::FromStr;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};
use tokio::time::timeout;

use super::CONNECT_WAIT_MAX;
use crate::{Error, Kind, Result};

/// The server's answer for a database that is not there.
const UNKNOWN_DATABASE: &str = "3D000";
/// Its answers when somebody else has just made it, or is making it.
const MADE_MEANWHILE: [&str; 2] = ["42P04", "23505"];
/// The database that every server has, from which others are made.
const MAINTENANCE: &str = "postgres";

/// Makes the database that `url` names, if it is not there; `true` if it was made now.
///
/// # Errors
/// `Database` for a URL that names none, for a user who is not let in or may make none; `Unavailable`.
pub async fn create_database(url: &str) -> Result<bool> {
    let options = PgConnectOptions::from_str(url)?;
    let Some(name) = options.get_database().map(str::to_owned) else {
        let message = "the address names no database; expected postgres://user@host/NAME";
        return Err(Error::new(Kind::Database, message));
    };
    match connect(&options).await {
        Err(sqlx::Error::Database(answer)) if answer.code().is_some_and(|code| code == UNKNOWN_DATABASE) => {}
        other => return Ok(other?.close().await.map(|()| false)?),
    }
    let mut connection = connect(&options.database(MAINTENANCE)).await?;
    let create = format!("CREATE DATABASE \"{}\"", name.replace('"', "\"\""));
    let created = sqlx::query(AssertSqlSafe(create)).execute(&mut connection).await;
    connection.close().await?;
    match created {
        Ok(_) => Ok(true),
        Err(sqlx::Error::Database(answer)) if is_made_meanwhile(answer.code().as_deref()) => Ok(false),
        Err(error) => Err(Error::new(
            Kind::Database,
            format!(
                "database {name:?} is not there, and cannot be made: {error}; make it (`createdb`), or grant CREATEDB"
            ),
        )),
    }
}

fn is_made_meanwhile(code: Option<&str>) -> bool {
    code.is_some_and(|code| MADE_MEANWHILE.contains(&code))
}

async fn connect(options: &PgConnectOptions) -> sqlx::Result<PgConnection> {
    let connected = timeout(CONNECT_WAIT_MAX, options.connect()).await;
    connected.unwrap_or_else(|_| Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())))
}
