//! The settings of the server on which the promise stands: read once before anything else.
//!
//! Invariant: a setting under which an acknowledged commit could be lost, or under which names would not be kept exactly, is
//! refused by its name, with what to do.

use std::collections::BTreeMap;

use sqlx::Row;
use sqlx::mysql::{MySqlConnection, MySqlRow};

use super::session;
use crate::{Error, Kind, Result};

/// The oldest servers with everything that is used here: locks that skip, window functions, tables out of JSON, collations
/// that compare exactly.
const MARIADB_MIN: (u32, u32, u32) = (10, 6, 0);
const MYSQL_MIN: (u32, u32, u32) = (8, 0, 17);
/// The smallest packet that holds the largest insert, in bytes.
const PACKET_BYTES_MIN: u64 = 4 << 20;

/// What is wrong with a value, if anything is.
type Judge = fn(&str, &Settings) -> Option<&'static str>;

/// Each setting, and its judge. One that the server does not have is not judged.
const JUDGES: &[(&str, Judge)] = &[
    ("innodb_flush_log_at_trx_commit", |found, _| {
        (found != "1").then_some("which loses commits in a power cut; expected 1")
    }),
    ("sync_binlog", |found, all| {
        (all.is("log_bin", "ON") && found != "1")
            .then_some("which loses commits in a power cut while the binary log is on; expected 1")
    }),
    ("innodb_doublewrite", |found, _| {
        matches!(found.to_ascii_uppercase().as_str(), "OFF" | "0" | "DETECT_ONLY")
            .then_some("which damages pages in a power cut; expected ON")
    }),
    ("binlog_format", |found, all| {
        (all.is("log_bin", "ON") && found.eq_ignore_ascii_case("STATEMENT"))
            .then_some("which forbids READ COMMITTED transactions to write; expected ROW")
    }),
    ("default_storage_engine", |found, _| {
        (!found.eq_ignore_ascii_case("InnoDB"))
            .then_some("whose tables do not take part in transactions; expected InnoDB")
    }),
    ("sql_mode", |found, _| {
        (!found.split(',').any(|mode| matches!(mode, "STRICT_TRANS_TABLES" | "STRICT_ALL_TABLES"))).then_some(
            "which cuts off what is too long without an error; expected STRICT_TRANS_TABLES among them",
        )
    }),
    ("wsrep_on", |found, _| {
        found.eq_ignore_ascii_case("ON").then_some(
            "whose nodes do not see each other's row locks, so that events of a key could change their order; expected a server outside of a Galera cluster",
        )
    }),
    ("max_allowed_packet", |found, _| {
        found
            .parse::<u64>()
            .is_ok_and(|bytes| bytes < PACKET_BYTES_MIN)
            .then_some("which is less than the largest insert of events; expected 4194304 or more")
    }),
];

/// The server's settings by name.
#[derive(Debug, Default)]
struct Settings(BTreeMap<String, String>);

impl Settings {
    fn is(&self, name: &str, value: &str) -> bool {
        self.0.get(name).is_some_and(|found| found.eq_ignore_ascii_case(value))
    }

    fn judge(&self) -> Result<()> {
        for (name, judge) in JUDGES {
            let found = self.0.get(*name).map(String::as_str);
            if let Some((found, why)) = found.and_then(|found| Some((found, judge(found, self)?))) {
                return Err(refused(name, found, why));
            }
        }
        Ok(())
    }
}

/// Refuses settings that would break the promise.
pub(super) async fn check(connection: &mut MySqlConnection) -> Result<()> {
    let version: String = sqlx::query_scalar("SELECT VERSION()").fetch_one(&mut *connection).await?;
    check_version(&version)?;
    let names: Vec<String> = JUDGES.iter().map(|(name, _)| format!("'{name}'")).collect();
    let show = format!("SHOW VARIABLES WHERE Variable_name IN ('log_bin', {})", names.join(", "));
    let rows = sqlx::raw_sql(sqlx::AssertSqlSafe(show)).fetch_all(&mut *connection).await?;
    let pair = |row: &MySqlRow| Ok((row.try_get::<String, _>(0)?.to_ascii_lowercase(), row.try_get(1)?));
    Settings(rows.iter().map(pair).collect::<Result<_>>()?).judge()?;
    if session::counts_can_be_read(connection).await? {
        return Ok(());
    }
    Err(Error::new(
        Kind::Unsafe,
        "the server does not show the counts Handler_rollback and Com_rollback_to_savepoint of a session, by which a statement that failed is found out; expected them in its session status",
    ))
}

fn refused(name: &str, found: &str, why: &str) -> Error {
    Error::new(
        Kind::Unsafe,
        format!(
            "the server runs with {name} = {found}, {why}: set it in the server's configuration, or with SET GLOBAL and connect again"
        ),
    )
}

fn check_version(version: &str) -> Result<()> {
    let (least, name) =
        if version.contains("MariaDB") { (MARIADB_MIN, "MariaDB") } else { (MYSQL_MIN, "MySQL") };
    if parse(version).is_some_and(|found| found >= least) {
        return Ok(());
    }
    let (major, minor, patch) = least;
    Err(Error::new(
        Kind::Unsafe,
        format!("the server is {name} {version}; expected {major}.{minor}.{patch} or newer: use a newer one"),
    ))
}

/// Reads `10.11.19-MariaDB-0+deb12u1`.
fn parse(version: &str) -> Option<(u32, u32, u32)> {
    let mut numbers = version.split(|letter: char| !letter.is_ascii_digit()).map(str::parse);
    let mut next = || numbers.next()?.ok();
    Some((next()?, next()?, next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOUND: &[(&str, &str)] = &[
        ("innodb_flush_log_at_trx_commit", "1"),
        ("log_bin", "ON"),
        ("sync_binlog", "1"),
        ("innodb_doublewrite", "ON"),
        ("binlog_format", "MIXED"),
        ("default_storage_engine", "InnoDB"),
        ("sql_mode", "STRICT_TRANS_TABLES,NO_ENGINE_SUBSTITUTION"),
        ("wsrep_on", "OFF"),
        ("max_allowed_packet", "16777216"),
    ];

    fn judged(changed: &[(&str, &str)]) -> Result<()> {
        let all = SOUND.iter().chain(changed);
        Settings(all.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()).judge()
    }

    #[test]
    fn a_server_that_loses_commits_is_refused_by_name() {
        assert!(judged(&[]).is_ok());
        for (name, value) in [
            ("innodb_flush_log_at_trx_commit", "2"),
            ("sync_binlog", "0"),
            ("innodb_doublewrite", "OFF"),
            ("binlog_format", "STATEMENT"),
            ("default_storage_engine", "MyISAM"),
            ("sql_mode", "NO_ENGINE_SUBSTITUTION"),
            ("wsrep_on", "ON"),
            ("max_allowed_packet", "1048576"),
        ] {
            let error = judged(&[(name, value)]).unwrap_err();
            assert_eq!(error.kind(), Kind::Unsafe);
            assert!(error.to_string().contains(&format!("{name} = {value}")), "{error}");
        }
    }

    #[test]
    fn what_concerns_a_binary_log_does_not_matter_without_one() {
        let without = [("log_bin", "OFF"), ("sync_binlog", "0"), ("binlog_format", "STATEMENT")];
        assert!(judged(&without).is_ok());
    }

    #[test]
    fn old_servers_are_refused_with_what_is_expected() {
        for sound in ["10.6.0-MariaDB", "10.11.19-MariaDB-0+deb12u1", "11.4.2-MariaDB", "8.0.17", "8.4.3"] {
            assert!(check_version(sound).is_ok(), "{sound}");
        }
        for (old, expected) in [("10.5.29-MariaDB", "10.6.0"), ("8.0.16", "8.0.17"), ("5.7.44-log", "8.0.17")]
        {
            let error = check_version(old).unwrap_err().to_string();
            assert!(error.contains(old) && error.contains(expected), "{error}");
        }
    }
}
