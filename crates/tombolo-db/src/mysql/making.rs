//! The database itself, for whoever sets a system up: made on its server if it is not there yet.
//!
//! Invariant: a database that is there is not touched, whoever made it; two that make it at once both succeed.

use std::str::FromStr;

use sqlx::mysql::{MySqlConnectOptions, MySqlConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};
use tokio::time::timeout;

use super::CONNECT_WAIT_MAX;
use crate::transient::mysql_number;
use crate::{Error, Kind, Result};

/// The server's answer for a database that is not there.
const UNKNOWN_DATABASE: u16 = 1049;

/// Makes the database that `url` names, if it is not there; `true` if it was made now.
///
/// # Errors
/// `Database` for a URL that names none, for a user who is not let in or may make none; `Unavailable`.
pub async fn create_database(url: &str) -> Result<bool> {
    let options = MySqlConnectOptions::from_str(url)?;
    let Some(name) = options.get_database().map(str::to_owned) else {
        let message = "the address names no database; expected mysql://user@host/NAME";
        return Err(Error::new(Kind::Database, message));
    };
    match connect(&options).await {
        Err(sqlx::Error::Database(answer)) if mysql_number(&*answer) == Some(UNKNOWN_DATABASE) => {}
        other => return Ok(other?.close().await.map(|()| false)?),
    }
    let mut connection = connect(&MySqlConnectOptions::from_str(&without_database(url))?).await?;
    let create = format!("CREATE DATABASE IF NOT EXISTS `{}` CHARACTER SET utf8mb4", name.replace('`', "``"));
    let created = sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut connection).await;
    connection.close().await?;
    created.map(|_| true).map_err(|error| {
        Error::new(
            Kind::Database,
            format!(
                "database {name:?} is not there, and cannot be made: {error}; make it, or grant CREATE on it"
            ),
        )
    })
}

/// The address of the server alone.
fn without_database(url: &str) -> String {
    let (place, query) = url.split_once('?').unwrap_or((url, ""));
    let server = place.rsplit_once('/').map_or(place, |(server, _)| server);
    if query.is_empty() { server.to_owned() } else { format!("{server}?{query}") }
}

async fn connect(options: &MySqlConnectOptions) -> sqlx::Result<MySqlConnection> {
    let connected = timeout(CONNECT_WAIT_MAX, options.connect()).await;
    connected.unwrap_or_else(|_| Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_is_what_is_left_of_an_address_without_its_database() {
        assert_eq!(without_database("mysql://shop:x@db:3306/users"), "mysql://shop:x@db:3306");
        assert_eq!(without_database("mysql://db/users?ssl-mode=disabled"), "mysql://db?ssl-mode=disabled");
    }
}
