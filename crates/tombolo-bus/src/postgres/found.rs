//! What a server is found to be whenever a connection is made: its version, the settings on which the promise rests, and
//! whether the tables are there and ours.
//!
//! Invariant: a connection to a server whose settings would lose what it acknowledged is not used, unless that was accepted.

use sqlx::Row;
use sqlx::postgres::{PgConnection, PgRow};

use super::address::Address;
use crate::accept::{Accepted, Weakness};
use crate::{Error, Guarantee, Kind, Result};

/// The oldest server that is supported, as it numbers its versions.
const VERSION_MIN: i32 = 150_000;
/// The layout of the tables that this program makes and reads.
pub(super) const LAYOUT: u32 = 1;

const UNSYNCED: Weakness = Weakness {
    name: "unsynced",
    costs: "a power cut loses acknowledged events, and may leave a database that cannot be read",
    remedy: "set `fsync = on` in postgresql.conf and reload",
};
const TORN_PAGES: Weakness = Weakness {
    name: "torn-pages",
    costs: "a power cut in the middle of a page damages acknowledged events, unless the file system never tears pages",
    remedy: "set `full_page_writes = on` in postgresql.conf and reload",
};
const UNLOGGED: Weakness = Weakness {
    name: "unlogged",
    costs: "the death of the server's process empties them",
    remedy: "set them back (`ALTER TABLE … SET LOGGED`)",
};
/// All that could be accepted.
pub(super) const WEAKNESSES: &[Weakness] = &[UNSYNCED, TORN_PAGES, UNLOGGED];

/// What was found.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) version: String,
    /// Whether the tables of the namespace are there.
    pub(super) has_tables: bool,
    keeps: bool,
    standbys: String,
}

impl Found {
    pub(super) async fn ask(connection: &mut PgConnection, address: &Address) -> sqlx::Result<PgRow> {
        let asked = sqlx::query(
            "SELECT current_setting('server_version_num')::integer, current_setting('server_version'),
                    current_setting('fsync'), current_setting('full_page_writes'),
                    current_setting('synchronous_standby_names'), pg_is_in_recovery(),
                    n.oid IS NOT NULL, coalesce(obj_description(n.oid, 'pg_namespace'), ''),
                    (SELECT count(*) FROM pg_class AS c WHERE c.relnamespace = n.oid),
                    (SELECT count(*) FROM pg_class AS c WHERE c.relnamespace = n.oid AND c.relpersistence <> 'p'
                     AND c.relname IN ('topic', 'partition', 'record', 'registration'))
             FROM (VALUES ($1)) AS wanted (name) LEFT JOIN pg_namespace AS n ON n.nspname = wanted.name",
        );
        asked.bind(address.schema()).fetch_one(connection).await
    }

    pub(super) fn read(row: &PgRow, address: &Address, accepted: &Accepted) -> Result<Self> {
        let wrong = super::failure::failed;
        let number: i32 = row.try_get(0).map_err(wrong)?;
        let version: String = row.try_get(1).map_err(wrong)?;
        let (fsync, pages): (String, String) =
            (row.try_get(2).map_err(wrong)?, row.try_get(3).map_err(wrong)?);
        check_version(number, &version)?;
        if row.try_get(5).map_err(wrong)? {
            let message =
                format!("PostgreSQL at {} is a standby; expected the server that it follows", address.place);
            return Err(Error::new(Kind::Unavailable, message));
        }
        check_setting(accepted, &UNSYNCED, "fsync", &fsync)?;
        check_setting(accepted, &TORN_PAGES, "full_page_writes", &pages)?;
        let (exists, mark): (bool, String) = (row.try_get(6).map_err(wrong)?, row.try_get(7).map_err(wrong)?);
        let (relations, unlogged): (i64, i64) =
            (row.try_get(8).map_err(wrong)?, row.try_get(9).map_err(wrong)?);
        let has_tables = exists && (relations > 0 || !mark.is_empty());
        if has_tables {
            check_mark(address, &mark)?;
        }
        if unlogged > 0 {
            accepted.check(&UNLOGGED, "tables of the bus are unlogged")?;
        }
        Ok(Self {
            version,
            has_tables,
            keeps: fsync == "on" && pages == "on" && unlogged == 0,
            standbys: row.try_get(4).map_err(wrong)?,
        })
    }

    pub(super) fn guarantee(found: Option<&Self>) -> Guarantee {
        let Some(found) = found else {
            return Guarantee {
                engine: "PostgreSQL, of a version not known yet".into(),
                survives_power_cut: false,
                detail: "the server was not reached yet, so its settings are not known".into(),
            };
        };
        let detail = match found.keeps {
            true => {
                "committed and flushed to the server's disk (synchronous_commit = on in each append, whatever its default) \
                 before it is acknowledged and before any reader sees it"
            }
            false => {
                "committed, but settings of the server that were accepted by name let a crash or a power cut lose or damage it"
            }
        };
        let standbys = match found.standbys.as_str() {
            "" => {
                "; it survives the loss of the machine only as far as its disk does (no synchronous standby)"
                    .to_owned()
            }
            named => format!("; and flushed by synchronous standbys ({named})"),
        };
        Guarantee {
            engine: format!("PostgreSQL {}", found.version),
            survives_power_cut: found.keeps,
            detail: format!("{detail}{standbys}"),
        }
    }
}

fn check_version(number: i32, version: &str) -> Result<()> {
    if number >= VERSION_MIN {
        return Ok(());
    }
    let message = format!(
        "PostgreSQL server is version {version}; expected {} or later: upgrade it",
        VERSION_MIN / 10_000
    );
    Err(Error::new(Kind::Configuration, message))
}

fn check_setting(accepted: &Accepted, weakness: &Weakness, name: &str, found: &str) -> Result<()> {
    if found == "on" {
        return Ok(());
    }
    accepted.check(weakness, &format!("the PostgreSQL server runs with {name} = {found}"))
}

/// Refuses a schema that somebody else made, or a newer program.
pub(super) fn check_mark(address: &Address, mark: &str) -> Result<()> {
    let schema = address.schema();
    match mark.strip_prefix(&address.mark()).map(str::parse::<u32>) {
        Some(Ok(LAYOUT)) => Ok(()),
        Some(Ok(found)) => {
            let message = format!(
                "schema {schema:?} at {} has layout {found}; expected {LAYOUT}: use a program of the version that made it",
                address.place
            );
            Err(Error::new(Kind::TopicDiffers, message))
        }
        _ => {
            let message = format!(
                "schema {schema:?} at {} is not Tombolo's: its comment is {mark:?}; expected {:?}: choose another namespace",
                address.place,
                format!("{}{LAYOUT}", address.mark())
            );
            Err(Error::new(Kind::TopicDiffers, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_loses_events_is_refused_by_name_unless_accepted() {
        let (_, none) = Accepted::split("postgres://h/d", WEAKNESSES).unwrap();
        let (_, some) = Accepted::split("postgres://h/d?accept=torn-pages", WEAKNESSES).unwrap();
        assert!(check_setting(&none, &UNSYNCED, "fsync", "on").is_ok());
        for (accepted, weakness, name) in [
            (&none, &UNSYNCED, "fsync"),
            (&some, &UNSYNCED, "fsync"),
            (&none, &TORN_PAGES, "full_page_writes"),
        ] {
            let error = check_setting(accepted, weakness, name, "off").unwrap_err();
            assert_eq!(error.kind(), Kind::Unsafe);
            assert!(error.to_string().contains(&format!("{name} = off")), "{error}");
            assert!(error.to_string().contains(&format!("accept={}", weakness.name)), "{error}");
        }
        assert!(check_setting(&some, &TORN_PAGES, "full_page_writes", "off").is_ok());
    }

    #[test]
    fn a_server_that_is_too_old_is_refused() {
        assert!(check_version(150_018, "15.18").is_ok());
        let error = check_version(140_009, "14.9").unwrap_err();
        assert!(error.kind() == Kind::Configuration && error.to_string().contains("14.9"), "{error}");
    }

    #[test]
    fn another_layout_and_another_schema_are_told_apart() {
        let address = Address::parse("postgres://u@h/d?namespace=a").unwrap();
        let said = |mark: &str| check_mark(&address, mark).map_err(|error| error.to_string());
        assert_eq!(said("Tombolo bus of namespace a, layout 1"), Ok(()));
        assert!(said("Tombolo bus of namespace a, layout 7").unwrap_err().contains("layout 7"));
        assert!(said("Tombolo bus of namespace b, layout 1").unwrap_err().contains("not Tombolo's"));
        assert!(said("").unwrap_err().contains("not Tombolo's"));
    }
}
