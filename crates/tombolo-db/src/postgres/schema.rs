//! Tombolo's tables in PostgreSQL: made, brought up to date or checked before anything else.
//!
//! Invariant: a version only adds to the one before it, so that version N and N−1 run together; and the tables
//! belong to one service for good.

use std::borrow::Cow;

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Row};
use tombolo_event::Generations;

use super::{Postgres, SCHEMA, generations};
use crate::port::STRIPES;
use crate::{Error, Kind, Owner, Result, Schema};

/// The advisory lock, beside those of the stripes, under which tables are made.
pub(super) const SCHEMA_LOCK: i32 = STRIPES as i32;

/// The steps from an empty database to the present version, one for each version.
const STEPS: &[&str] = &["
CREATE TABLE tombolo.service (          -- whose database it is; one row
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    service text NOT NULL,
    partitions integer NOT NULL,
    incarnation uuid                    -- of the topic, once it was seen
);
CREATE TABLE tombolo.leader (           -- the relay; one row
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    epoch bigint NOT NULL,
    holder uuid,
    until timestamptz NOT NULL
);
CREATE TABLE tombolo.partition (        -- how far each partition is numbered and removed
    partition integer PRIMARY KEY,
    numbered bigint NOT NULL DEFAULT 0,
    removed_sequence bigint NOT NULL DEFAULT 0,
    removed_id uuid
);
CREATE SEQUENCE tombolo.position;
CREATE TABLE tombolo.outbox (           -- the events that wait for the relay
    position bigint PRIMARY KEY,
    partition integer NOT NULL,
    sequence bigint,                    -- given by the relay before it is sent
    id uuid NOT NULL,
    event_type text NOT NULL,
    bytes bytea NOT NULL,
    size integer NOT NULL,
    written timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (                                -- a queue: each row is updated and deleted soon, so it is tidied often
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000, autovacuum_vacuum_cost_delay = 0
);
CREATE UNIQUE INDEX outbox_numbered ON tombolo.outbox (partition, sequence) WHERE sequence IS NOT NULL;
CREATE INDEX outbox_unnumbered ON tombolo.outbox (position) WHERE sequence IS NULL;
CREATE TABLE tombolo.subscription (     -- the types that each subscription handles
    subscription text NOT NULL,
    event_type text NOT NULL,
    PRIMARY KEY (subscription, event_type)
);
CREATE TABLE tombolo.cursor (           -- where each subscription stands, and who holds it
    subscription text NOT NULL,
    topic text NOT NULL,
    partition integer NOT NULL,
    incarnation uuid NOT NULL,
    sequence bigint NOT NULL,
    id uuid,
    lease_epoch bigint NOT NULL DEFAULT 0,
    holder uuid,
    until timestamptz NOT NULL DEFAULT '-infinity',
    attempts integer NOT NULL DEFAULT 0,
    attempt_id uuid,
    error text,
    moved timestamptz,
    PRIMARY KEY (subscription, topic, partition)
) WITH (fillfactor = 50);
", "
CREATE TABLE tombolo.effect_call (      -- the calls of effects: those after their cursor, and the last ones before it
    subscription text NOT NULL,
    topic text NOT NULL,
    partition integer NOT NULL,
    sequence bigint NOT NULL,
    id uuid NOT NULL,
    attempts integer NOT NULL,
    result text,                        -- JSON, once the call has returned
    error text,                         -- what the last try failed with
    done timestamptz,                   -- when the completion was stored
    PRIMARY KEY (subscription, topic, partition, sequence)
);
", "
CREATE TABLE tombolo.view (             -- which build of each view is read
    view text PRIMARY KEY,
    version integer NOT NULL,
    build integer NOT NULL,
    epoch bigint NOT NULL               -- counts the switches
);
CREATE TABLE tombolo.build (            -- the builds of each view; a dropped one keeps its name
    view text NOT NULL,
    version integer NOT NULL,
    build integer NOT NULL,
    subscription text NOT NULL UNIQUE,
    namespace text NOT NULL,
    tables text,                        -- the SQL that made its tables, unless they are the user's own
    request uuid UNIQUE,                -- who asked for it, if it is a further one
    switches boolean NOT NULL,          -- whether it is switched to when it is ready
    live_epoch bigint,                  -- under which it was switched to last
    left_at timestamptz,                -- when it was switched away from last
    made timestamptz NOT NULL DEFAULT clock_timestamp(),
    dropped timestamptz,
    PRIMARY KEY (view, version, build)
);
", "
CREATE TABLE tombolo.request (          -- what operators asked of subscriptions, and what became of it
    id uuid PRIMARY KEY,
    subscription text NOT NULL,
    topic text,                         -- with the partition: whose holder carries it out
    partition integer,
    action text NOT NULL,
    detail text NOT NULL,
    asked_by text NOT NULL,
    asked_ms bigint NOT NULL,
    done boolean,
    outcome text,
    done_ms bigint
);
CREATE INDEX request_open ON tombolo.request (subscription, id) WHERE done_ms IS NULL;
", "
ALTER TABLE tombolo.leader ADD COLUMN halt uuid;   -- why nobody may lead; null if somebody may
CREATE TABLE tombolo.halt (             -- what was found to differ from the bus, and what was decided
    id uuid PRIMARY KEY,
    found timestamptz NOT NULL,
    finding text NOT NULL,
    decided timestamptz,
    decided_by text,
    choice text,
    outcome text
);
CREATE TABLE tombolo.known (            -- consequences that are on the bus, though this database was restored since
    id uuid PRIMARY KEY
);
", "
CREATE TABLE tombolo.later (            -- the events whose time has not come
    nth bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    id uuid NOT NULL UNIQUE,
    due_us bigint NOT NULL,             -- by the service's clock, in microseconds since 1970
    key_hash bigint NOT NULL,
    event_type text NOT NULL,
    bytes bytea NOT NULL,
    size integer NOT NULL
) WITH (                                -- tidied and counted often, as the outbox is
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000, autovacuum_vacuum_cost_delay = 0,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 20000
);
CREATE INDEX later_due ON tombolo.later (due_us, nth);
", "
CREATE TABLE tombolo.parked (           -- the events that could not be handled, and those behind them of the same key
    subscription text NOT NULL,
    topic text NOT NULL,
    partition integer NOT NULL,
    sequence bigint NOT NULL,
    id uuid NOT NULL,
    key_hash bigint NOT NULL,
    event_type text NOT NULL,
    bytes bytea NOT NULL,
    parked_ms bigint NOT NULL,
    attempts integer NOT NULL,          -- tries that were begun; 0: waits behind another of its key
    unfinished integer NOT NULL,        -- of these the last ones, in which the process died
    error text,
    retry_ms bigint,                    -- when the next try is due, if it is not only for when it is told
    PRIMARY KEY (subscription, topic, partition, sequence)
);
CREATE INDEX parked_key ON tombolo.parked (subscription, topic, key_hash, partition, sequence);
ALTER TABLE tombolo.cursor
    ADD COLUMN abandoned boolean NOT NULL DEFAULT false,   -- the holder before did not release it
    ADD COLUMN in_hand integer NOT NULL DEFAULT 1,         -- the most events of its next transaction
    ADD COLUMN paused_by text;                             -- the operator who paused it
", "
CREATE TABLE tombolo.member (           -- who wants each subscription, for as long as its lease lasts
    subscription text NOT NULL,
    replica uuid NOT NULL,
    life uuid NOT NULL,
    whole boolean NOT NULL,             -- whether all partitions or none
    until timestamptz NOT NULL,
    PRIMARY KEY (subscription, replica)
);
", "
ALTER TABLE tombolo.service ADD COLUMN generations text;    -- JSON: how many partitions each generation has; null: `partitions`
ALTER TABLE tombolo.partition ADD COLUMN sealed bigint CHECK (numbered <= sealed);  -- its last number, in earlier generations
"];

const VERSION_TABLE: &str = "CREATE TABLE IF NOT EXISTS tombolo.schema (version integer NOT NULL);\n";

/// The SQL that makes the tables in `schema`, as `tombolo schema print` shows it.
#[must_use]
pub fn schema_sql(schema: &str) -> String {
    let mut sql = format!("CREATE SCHEMA IF NOT EXISTS tombolo;\n{VERSION_TABLE}");
    for (version, step) in STEPS.iter().enumerate() {
        sql.push_str(step.trim_start());
        sql.push_str(&format!("INSERT INTO tombolo.schema (version) VALUES ({});\n", version + 1));
    }
    if schema == SCHEMA {
        return sql;
    }
    sql.replace("tombolo.", &format!("\"{schema}\"."))
        .replace("EXISTS tombolo;", &format!("EXISTS \"{schema}\";"))
}

impl Postgres {
    /// Checks settings and Tombolo's tables, and changes nothing. Returns the version of the tables.
    ///
    /// # Errors
    /// `Schema` for tables that are missing or older than this program's, `Unsafe`, `Unavailable`.
    pub async fn check(&self) -> Result<i64> {
        let mut connection = self.pool.acquire().await.map_err(|error| self.unreachable(error))?;
        check_settings(&mut connection).await?;
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
        let mut connection = self.pool.acquire().await?;
        if self.is_owned_by(&mut connection, owner).await? {
            return Ok(());
        }
        let mut transaction = self.pool.begin().await?;
        self.own(&mut transaction, owner).await?;
        Ok(transaction.commit().await?)
    }

    fn unreachable(&self, error: sqlx::Error) -> Error {
        let options = self.pool.connect_options();
        let name = options.get_database().unwrap_or_else(|| options.get_username()).to_owned();
        let place = format!("{}:{}", options.get_host(), options.get_port());
        let code = error.as_database_error().and_then(|found| found.code().map(Cow::into_owned));
        let message = match (code.as_deref(), &error) {
            (Some("3D000"), _) => {
                format!("there is no database {name:?} at {place}: create it (`createdb {name}`)")
            }
            (_, sqlx::Error::PoolTimedOut | sqlx::Error::Io(_)) => {
                format!(
                    "PostgreSQL at {place} could not be reached for database {name:?}; check that it runs and that the address is right ({error})"
                )
            }
            _ => return error.into(),
        };
        Error::new(Kind::Unavailable, message).because(error)
    }

    fn missing(&self, found: i32, expected: i32) -> Error {
        let schema = &self.schema;
        let what = match found {
            0 => format!("the database has no tables of Tombolo in schema {schema:?}"),
            older => format!("the database has version {older} of Tombolo's tables in schema {schema:?}"),
        };
        Error::new(
            Kind::Schema,
            format!(
                "{what}; expected version {expected}: run `tombolo schema apply`, or start the service with TOMBOLO_SCHEMA=apply"
            ),
        )
    }

    /// The version of the tables that are there; 0 if there are none. A newer one than ours is fine: it only adds.
    async fn version(&self, connection: &mut PgConnection) -> Result<i32> {
        let table = sqlx::query("SELECT 1 FROM pg_tables WHERE schemaname = $1 AND tablename = 'schema'");
        if table.bind(&*self.schema).fetch_optional(&mut *connection).await?.is_none() {
            return Ok(0);
        }
        let found = sqlx::query(self.sql("SELECT coalesce(max(version), 0) FROM tombolo.schema"));
        Ok(found.fetch_one(connection).await?.try_get(0)?)
    }

    async fn apply(&self) -> Result<()> {
        let mut transaction = self.pool.begin().await?;
        self.lock_schema(&mut transaction).await?;
        let make = format!("CREATE SCHEMA IF NOT EXISTS \"{}\"", self.schema);
        sqlx::raw_sql(AssertSqlSafe(make)).execute(&mut *transaction).await?;
        sqlx::raw_sql(self.sql(VERSION_TABLE)).execute(&mut *transaction).await?;
        let found = self.version(&mut transaction).await?;
        for (step, number) in STEPS.iter().zip(1_i32..).filter(|(_, number)| *number > found) {
            sqlx::raw_sql(self.sql(step)).execute(&mut *transaction).await?;
            sqlx::query(self.sql("INSERT INTO tombolo.schema (version) VALUES ($1)"))
                .bind(number)
                .execute(&mut *transaction)
                .await?;
        }
        Ok(transaction.commit().await?)
    }

    /// One replica at a time makes tables.
    pub(super) async fn lock_schema(&self, connection: &mut PgConnection) -> Result<()> {
        sqlx::query("SELECT pg_advisory_xact_lock($1, $2)")
            .bind(self.lock_class)
            .bind(SCHEMA_LOCK)
            .execute(connection)
            .await?;
        Ok(())
    }

    /// Whether the tables are `owner`'s already; `false` if they are nobody's yet.
    async fn is_owned_by(&self, connection: &mut PgConnection, owner: &Owner) -> Result<bool> {
        let row = sqlx::query(self.sql("SELECT service, generations, partitions FROM tombolo.service"));
        let Some(row) = row.fetch_optional(connection).await? else { return Ok(false) };
        let service: String = row.try_get(0)?;
        crate::owner::check(owner, &service, &generations::of(&row, 1)?)?;
        Ok(true)
    }

    async fn own(&self, connection: &mut PgConnection, owner: &Owner) -> Result<()> {
        self.lock_schema(connection).await?;
        if self.is_owned_by(connection, owner).await? {
            return Ok(());
        }
        sqlx::query(self.sql("INSERT INTO tombolo.service (service, partitions) VALUES ($1, $2)"))
            .bind(owner.service.as_str())
            .bind(super::signed(owner.partitions))
            .execute(&mut *connection)
            .await?;
        sqlx::query(self.sql("INSERT INTO tombolo.leader (epoch, until) VALUES (0, '-infinity')"))
            .execute(&mut *connection)
            .await?;
        self.store_generations(connection, &Generations::first(owner.partitions)?).await
    }
}

/// Refuses settings under which an acknowledged commit could be lost. `synchronous_commit` is ours to set, and is
/// set in each transaction that needs it.
async fn check_settings(connection: &mut PgConnection) -> Result<()> {
    let settings = sqlx::query("SELECT current_setting('fsync'), current_setting('full_page_writes')");
    let row = settings.fetch_one(connection).await?;
    check_setting("fsync", row.try_get(0)?)?;
    check_setting("full_page_writes", row.try_get(1)?)
}

fn check_setting(name: &str, found: &str) -> Result<()> {
    if found == "on" {
        return Ok(());
    }
    Err(Error::new(
        Kind::Unsafe,
        format!(
            "the PostgreSQL server runs with {name} = {found}, which loses or damages commits in a power cut; expected on: set it in postgresql.conf and reload"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_does_not_sync_is_refused_by_name() {
        assert!(check_setting("fsync", "on").is_ok());
        let error = check_setting("full_page_writes", "off").unwrap_err();
        assert_eq!(error.kind(), Kind::Unsafe);
        assert!(error.to_string().contains("full_page_writes = off"), "{error}");
    }

    #[test]
    fn the_printed_schema_is_that_which_was_asked_for() {
        assert!(schema_sql("tombolo").contains("CREATE TABLE tombolo.outbox"));
        let other = schema_sql("inbox");
        assert!(other.contains("CREATE TABLE \"inbox\".outbox") && other.contains("EXISTS \"inbox\";"));
        assert!(!other.contains("tombolo"));
    }
}
