//! Tombolo's tables in MySQL and MariaDB: made, brought up to date or checked before anything else.
//!
//! These servers commit after each statement that makes a table. So a step is a list of statements each of which may be
//! repeated, and its version is written when all of them are done: whoever comes after an interruption does the step again.
//!
//! Invariant: a version only adds to the one before it, so that version N and N−1 run together; and the tables
//! belong to one service for good.

use std::borrow::Cow;
use std::time::Duration;

use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Executor, MySqlPool, Row};
use tombolo_event::{Generations, KeyHash};

use super::session::{Session, number};
use super::{Mysql, PREFIX, generations, settings, signed};
use crate::port::STRIPES;
use crate::{Error, Kind, Owner, Result, Schema};

/// The rows beside those of the stripes that are locks too: for what a subscription or a service is, and for claims.
const OPENING_LOCK: u32 = STRIPES;
pub(super) const CLAIM_LOCK: u32 = STRIPES + 1;

/// How long whoever makes tables waits for another one who does.
const MAKING_WAIT_MAX: Duration = Duration::from_secs(60);

/// A table, an index, a column, a procedure or a trigger is there already: an earlier run was interrupted after it.
pub(super) const IS_THERE: &[u16] = &[1050, 1060, 1061, 1304, 1359];

/// The steps from an empty database to the present version, one for each version. What follows a table's columns stands for [`OPTIONS`].
const STEPS: &[&[&str]] = &[&[
    "CREATE TABLE IF NOT EXISTS tombolo_service (      -- whose database it is; one row
    one tinyint PRIMARY KEY DEFAULT 1 CHECK (one = 1),
    service varchar(63) NOT NULL,
    partitions int NOT NULL,
    generations text,                              -- JSON: how many partitions each generation has; null: `partitions`
    incarnation binary(16)                         -- of the topic, once it was seen
) OPTIONS",
    "CREATE TABLE IF NOT EXISTS tombolo_stripe (       -- the locks of keys, and two others; never written to
    stripe int PRIMARY KEY
) OPTIONS",
    "INSERT IGNORE INTO tombolo_stripe (stripe)
WITH RECURSIVE stripes (stripe) AS (SELECT 0 UNION ALL SELECT stripe + 1 FROM stripes WHERE stripe < 257)
SELECT stripe FROM stripes",
    "CREATE TABLE IF NOT EXISTS tombolo_leader (       -- the relay; one row
    one tinyint PRIMARY KEY DEFAULT 1 CHECK (one = 1),
    epoch bigint NOT NULL,
    holder binary(16),
    until datetime(6) NOT NULL,                    -- times of leases are UTC, by the server's clock
    halt binary(16)                                -- why nobody may lead; null if somebody may
) OPTIONS",
    "CREATE TABLE IF NOT EXISTS tombolo_partition (    -- how far each partition is numbered and removed
    `partition` int PRIMARY KEY,
    numbered bigint NOT NULL DEFAULT 0,
    removed_sequence bigint NOT NULL DEFAULT 0,
    removed_id binary(16),
    sealed bigint,                                 -- its last number, in earlier generations
    CHECK (numbered <= sealed)
) OPTIONS",
    "CREATE TABLE IF NOT EXISTS tombolo_outbox (       -- the events that wait for the relay
    position bigint AUTO_INCREMENT PRIMARY KEY,
    `partition` int NOT NULL,
    sequence bigint,                               -- given by the relay before it is sent
    id binary(16) NOT NULL,
    key_hash bigint NOT NULL,
    event_type varchar(127) NOT NULL,
    bytes longblob NOT NULL,
    size int NOT NULL,
    written datetime(6) NOT NULL,
    UNIQUE KEY numbered (`partition`, sequence),
    KEY waiting (sequence, position)
) OPTIONS",
    "CREATE TABLE IF NOT EXISTS tombolo_later (        -- the events whose time has not come
    nth bigint AUTO_INCREMENT PRIMARY KEY,
    id binary(16) NOT NULL,
    due_us bigint NOT NULL,                        -- by the service's clock, in microseconds since 1970
    key_hash bigint NOT NULL,
    event_type varchar(127) NOT NULL,
    bytes longblob NOT NULL,
    size int NOT NULL,
    UNIQUE KEY id (id),
    KEY due (due_us, nth)
) OPTIONS",
    "CREATE TABLE IF NOT EXISTS tombolo_subscription ( -- the types that each subscription handles
    subscription varchar(255) NOT NULL,
    event_type varchar(127) NOT NULL,
    PRIMARY KEY (subscription, event_type)
) OPTIONS",
    "CREATE TABLE IF NOT EXISTS tombolo_cursor (       -- where each subscription stands, and who holds it
    subscription varchar(255) NOT NULL,
    topic varchar(63) NOT NULL,
    `partition` int NOT NULL,
    incarnation binary(16) NOT NULL,
    sequence bigint NOT NULL,
    id binary(16),
    lease_epoch bigint NOT NULL DEFAULT 0,
    holder binary(16),
    until datetime(6) NOT NULL DEFAULT '1970-01-01',
    attempts int NOT NULL DEFAULT 0,
    attempt_id binary(16),
    error text,
    moved datetime(6),
    abandoned boolean NOT NULL DEFAULT false,      -- the holder before did not release it
    in_hand int NOT NULL DEFAULT 1,                -- the most events of its next transaction
    paused_by text,                                -- the operator who paused it
    PRIMARY KEY (subscription, topic, `partition`)
) OPTIONS",
    "CREATE TABLE IF NOT EXISTS tombolo_member (       -- who wants each subscription, for as long as its lease lasts
    subscription varchar(255) NOT NULL,
    replica binary(16) NOT NULL,
    life binary(16) NOT NULL,
    whole boolean NOT NULL,                        -- whether all partitions or none
    until datetime(6) NOT NULL,
    PRIMARY KEY (subscription, replica)
) OPTIONS",
    "CREATE TABLE IF NOT EXISTS tombolo_effect_call (  -- the calls of effects: those after their cursor, and the last before it
    subscription varchar(255) NOT NULL,
    topic varchar(63) NOT NULL,
    `partition` int NOT NULL,
    sequence bigint NOT NULL,
    id binary(16) NOT NULL,
    attempts int NOT NULL,
    result mediumtext,                             -- JSON, once the call has returned
    error text,                                    -- what the last try failed with
    done datetime(6),                              -- when the completion was stored
    PRIMARY KEY (subscription, topic, `partition`, sequence)
) OPTIONS",
    "CREATE TABLE IF NOT EXISTS tombolo_parked (       -- what could not be handled, and what came behind it of the same key
    subscription varchar(255) NOT NULL,
    topic varchar(63) NOT NULL,
    `partition` int NOT NULL,
    sequence bigint NOT NULL,
    id binary(16) NOT NULL,
    key_hash bigint NOT NULL,
    event_type varchar(127) NOT NULL,
    bytes longblob NOT NULL,
    parked_ms bigint NOT NULL,
    attempts int NOT NULL,                         -- tries that were begun; 0: waits behind another of its key
    unfinished int NOT NULL,                       -- of these the last ones, in which the process died
    error text,
    retry_ms bigint,                               -- when the next try is due, if not only when it is told
    PRIMARY KEY (subscription, topic, `partition`, sequence),
    KEY parked_key (subscription, topic, key_hash, `partition`, sequence)
) OPTIONS",
    "CREATE TABLE IF NOT EXISTS tombolo_view (         -- which build of each view is read
    view varchar(255) PRIMARY KEY,
    version int NOT NULL,
    build int NOT NULL,
    epoch bigint NOT NULL                          -- counts the switches
) OPTIONS",
    "CREATE TABLE IF NOT EXISTS tombolo_build (        -- the builds of each view; a dropped one keeps its name
    view varchar(255) NOT NULL,
    version int NOT NULL,
    build int NOT NULL,
    subscription varchar(255) NOT NULL,
    namespace varchar(255) NOT NULL,
    tables mediumtext,                             -- the SQL that made its tables, unless they are the user's own
    request binary(16),                            -- who asked for it, if it is a further one
    switches boolean NOT NULL,                     -- whether it is switched to when it is ready
    live_epoch bigint,                             -- under which it was switched to last
    left_at datetime(6),                           -- when it was switched away from last
    made datetime(6),                              -- when its tables stood; null while they are made
    dropped datetime(6),
    cleared datetime(6),                           -- when the tables of a dropped one were gone
    PRIMARY KEY (view, version, build),
    UNIQUE KEY subscription (subscription),
    UNIQUE KEY request (request)
) OPTIONS",
    "CREATE TABLE IF NOT EXISTS tombolo_request (      -- what operators asked of subscriptions, and what became of it
    id binary(16) PRIMARY KEY,
    subscription varchar(255) NOT NULL,
    topic varchar(63),                             -- with the partition: whose holder carries it out
    `partition` int,
    action varchar(255) NOT NULL,
    detail mediumtext NOT NULL,
    asked_by text NOT NULL,
    asked_ms bigint NOT NULL,
    done boolean,
    outcome mediumtext,
    done_ms bigint,
    KEY request_open (done_ms, subscription, id)
) OPTIONS",
    "CREATE TABLE IF NOT EXISTS tombolo_halt (         -- what was found to differ from the bus, and what was decided
    id binary(16) PRIMARY KEY,
    found_ms bigint NOT NULL,
    finding mediumtext NOT NULL,
    decided datetime(6),
    decided_by text,
    choice text,
    outcome text
) OPTIONS",
    "CREATE TABLE IF NOT EXISTS tombolo_known (        -- consequences on the bus, though this database was restored since
    id binary(16) PRIMARY KEY
) OPTIONS",
]];

const VERSION_TABLE: &str = "CREATE TABLE IF NOT EXISTS tombolo_schema (version int PRIMARY KEY) OPTIONS";

/// What every table is: in transactions, and with names that are compared byte by byte, trailing spaces included. The collation has
/// another name on MariaDB than on MySQL; each reads only its own comment.
const OPTIONS: &str = "ENGINE = InnoDB ROW_FORMAT = DYNAMIC
    CHARACTER SET utf8mb4 COLLATE /*M!utf8mb4_nopad_bin*//*!80000 utf8mb4_0900_bin*/";

/// The SQL that makes the tables behind `prefix`, as `tombolo schema print` shows it.
#[must_use]
pub fn schema_sql(prefix: &str) -> String {
    let mut sql = format!("{};\n", statement(VERSION_TABLE, prefix));
    for (step, version) in STEPS.iter().zip(1..) {
        step.iter().for_each(|text| sql.push_str(&format!("{};\n", statement(text, prefix))));
        sql.push_str(&format!("INSERT IGNORE INTO {prefix}schema (version) VALUES ({version});\n"));
    }
    sql
}

pub(super) fn statement(text: &str, prefix: &str) -> String {
    text.replace(") OPTIONS", &format!(") {OPTIONS}")).replace(PREFIX, prefix)
}

/// `text` with `prefix` in the place of `tombolo_`.
pub(super) fn prefixed(text: &'static str, prefix: &str) -> Cow<'static, str> {
    if prefix == PREFIX { Cow::Borrowed(text) } else { Cow::Owned(text.replace(PREFIX, prefix)) }
}

impl Mysql {
    /// Checks settings and Tombolo's tables, and changes nothing. Returns the version of the tables.
    ///
    /// # Errors
    /// `Schema` for tables that are missing or older than this program's, `Unsafe`, `Unavailable`.
    pub async fn check(&self) -> Result<i64> {
        let mut connection = self.pool.acquire().await.map_err(|error| self.unreachable(error))?;
        settings::check(&mut connection).await?;
        let (found, expected) = (self.version(&mut connection).await?, STEPS.len() as i32);
        if found < expected { Err(self.missing(found, expected)) } else { Ok(i64::from(found)) }
    }

    pub(super) async fn prepare_schema(&self, owner: &Owner, schema: Schema) -> Result<()> {
        match self.check().await {
            Err(error) if error.kind() == Kind::Schema && schema == Schema::Apply => self.apply().await?,
            checked => {
                checked?;
            }
        }
        if self.is_owned_by(&mut *self.pool.acquire().await?, owner).await? {
            return Ok(());
        }
        let mut session = Session::begin(&self.pool, self.idle_max).await?;
        self.own(&mut session, owner).await?;
        Ok(session.commit().await?)
    }

    fn unreachable(&self, error: sqlx::Error) -> Error {
        let options = self.pool.connect_options();
        let name = options.get_database().unwrap_or_default().to_owned();
        let place = format!("{}:{}", options.get_host(), options.get_port());
        let message = match (number(&error), &error) {
            (Some(UNKNOWN_DATABASE), _) => {
                format!(
                    "there is no database {name:?} at {place}: create it (`mariadb -e 'CREATE DATABASE {name}'`)"
                )
            }
            (_, sqlx::Error::PoolTimedOut | sqlx::Error::Io(_)) => {
                format!(
                    "the MySQL server at {place} could not be reached for database {name:?}; check that it runs and that the address is right ({error})"
                )
            }
            _ => return error.into(),
        };
        Error::new(Kind::Unavailable, message).because(error)
    }

    fn missing(&self, found: i32, expected: i32) -> Error {
        let prefix = &self.prefix;
        let what = match found {
            0 => format!("the database has no tables of Tombolo with the prefix {prefix:?}"),
            older => {
                format!("the database has version {older} of Tombolo's tables with the prefix {prefix:?}")
            }
        };
        Error::new(
            Kind::Schema,
            format!(
                "{what}; expected version {expected}: run `tombolo schema apply`, or start the service with TOMBOLO_SCHEMA=apply"
            ),
        )
    }

    /// The version of the tables that are there; 0 if there are none. A newer one than ours is fine: it only adds.
    async fn version(&self, connection: &mut MySqlConnection) -> Result<i32> {
        let table = sqlx::query(
            "SELECT 1 FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = ?",
        );
        let table = table.bind(format!("{}schema", self.prefix));
        if table.fetch_optional(&mut *connection).await?.is_none() {
            return Ok(0);
        }
        let found = sqlx::query(self.sql("SELECT COALESCE(MAX(version), 0) FROM tombolo_schema"));
        Ok(found.fetch_one(connection).await?.try_get(0)?)
    }

    async fn apply(&self) -> Result<()> {
        let mut making = self.making().await?;
        let connection = making.connection();
        self.repeat(connection, VERSION_TABLE).await?;
        let found = self.version(connection).await?;
        for (step, number) in STEPS.iter().zip(1_i32..).filter(|(_, number)| *number > found) {
            for text in *step {
                self.repeat(connection, text).await?;
            }
            let done = self.sql("INSERT IGNORE INTO tombolo_schema (version) VALUES (?)");
            sqlx::query(done).bind(number).execute(&mut *connection).await?;
        }
        making.end().await
    }

    /// Runs a statement of a step, which an earlier run may have done.
    async fn repeat(&self, connection: &mut MySqlConnection, text: &str) -> Result<()> {
        match connection.execute(AssertSqlSafe(statement(text, &self.prefix))).await {
            Err(error) if number(&error).is_some_and(|found| IS_THERE.contains(&found)) => Ok(()),
            done => Ok(done.map(|_| ())?),
        }
    }

    /// One at a time makes tables in this database.
    pub(super) async fn making(&self) -> Result<Making> {
        let name: Option<String> = sqlx::query_scalar("SELECT DATABASE()")
            .fetch_one(&self.pool)
            .await
            .map_err(|error| self.unreachable(error))?;
        let of = format!("{}/{}", name.unwrap_or_default(), self.prefix);
        Making::begin(&self.pool, format!("tombolo/{:016x}", KeyHash::of(&of).0)).await
    }

    /// One at a time opens a subscription, or makes a build of one.
    pub(super) async fn lock_opening(&self, connection: &mut MySqlConnection) -> Result<()> {
        self.lock_row(connection, OPENING_LOCK).await
    }

    /// Locks one of the rows beside those of the stripes until the commit.
    pub(super) async fn lock_row(&self, connection: &mut MySqlConnection, row: u32) -> Result<()> {
        let lock = sqlx::query(self.sql("SELECT stripe FROM tombolo_stripe WHERE stripe = ? FOR UPDATE"));
        lock.bind(signed(row)).fetch_one(connection).await?;
        Ok(())
    }

    /// Whether the tables are `owner`'s already; `false` if they are nobody's yet.
    async fn is_owned_by(&self, connection: &mut MySqlConnection, owner: &Owner) -> Result<bool> {
        let row = sqlx::query(self.sql("SELECT service, generations, partitions FROM tombolo_service"));
        let Some(row) = row.fetch_optional(connection).await? else { return Ok(false) };
        let service: String = row.try_get(0)?;
        crate::owner::check(owner, &service, &generations::of(&row, 1)?)?;
        Ok(true)
    }

    async fn own(&self, connection: &mut MySqlConnection, owner: &Owner) -> Result<()> {
        self.lock_opening(connection).await?;
        if self.is_owned_by(connection, owner).await? {
            return Ok(());
        }
        sqlx::query(self.sql("INSERT INTO tombolo_service (service, partitions) VALUES (?, ?)"))
            .bind(owner.service.as_str())
            .bind(signed(owner.partitions))
            .execute(&mut *connection)
            .await?;
        sqlx::query(self.sql("INSERT INTO tombolo_leader (epoch, until) VALUES (0, '1970-01-01')"))
            .execute(&mut *connection)
            .await?;
        self.store_generations(connection, &Generations::first(owner.partitions)?).await
    }
}

/// ER_BAD_DB_ERROR.
const UNKNOWN_DATABASE: u16 = 1049;

/// The right to make tables: a lock of the session, because a statement that makes a table ends every transaction.
pub(super) struct Making {
    connection: sqlx::pool::PoolConnection<sqlx::MySql>,
    name: String,
}

impl Making {
    async fn begin(pool: &MySqlPool, name: String) -> Result<Self> {
        let mut connection = pool.acquire().await?;
        // The lock is the session's: whatever happens, it goes with it.
        connection.close_on_drop();
        let got = sqlx::query_scalar("SELECT GET_LOCK(?, ?)").bind(&name).bind(MAKING_WAIT_MAX.as_secs());
        let got: Option<i64> = got.fetch_one(&mut *connection).await?;
        if got == Some(1) {
            return Ok(Self { connection, name });
        }
        Err(Error::new(
            Kind::Unavailable,
            format!(
                "another process has been making tables in this database for {} s; wait for its end, or look at the server's process list",
                MAKING_WAIT_MAX.as_secs()
            ),
        ))
    }

    pub(super) fn connection(&mut self) -> &mut MySqlConnection {
        &mut self.connection
    }

    /// Gives the right up.
    pub(super) async fn end(mut self) -> Result<()> {
        sqlx::query("DO RELEASE_LOCK(?)").bind(&self.name).execute(&mut *self.connection).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_printed_schema_has_the_prefix_that_was_asked_for() {
        assert!(schema_sql("tombolo_").contains("CREATE TABLE IF NOT EXISTS tombolo_outbox"));
        let other = schema_sql("inbox_");
        assert!(other.contains("EXISTS inbox_outbox") && !other.contains("tombolo_"));
    }

    #[test]
    fn every_table_takes_part_in_transactions_and_compares_names_exactly() {
        let sql = schema_sql("tombolo_");
        assert_eq!(sql.matches("CREATE TABLE").count(), sql.matches("ENGINE = InnoDB").count());
        assert_eq!(sql.matches("CREATE TABLE").count(), sql.matches("utf8mb4_nopad_bin").count());
    }
}
