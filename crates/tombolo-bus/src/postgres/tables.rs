//! The tables: made once, together with the mark by which they are known to be ours.
//!
//! Invariant: nothing is made in a schema that holds anything of others, and a schema with the mark has all of its tables.

use sqlx::{AssertSqlSafe, Executor, Row};

use super::found::{LAYOUT, check_mark};
use super::link::Link;
use crate::Result;

/// Layout 1. `listener` is of living connections only, so it needs no log.
const TABLES: &str = "
CREATE TABLE topic (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE,
    incarnation uuid NOT NULL,
    generations integer[] NOT NULL,     -- how many partitions each has, the present one last
    epoch bigint NOT NULL
);
CREATE TABLE partition (                -- the end of each, and what an append is checked against
    topic integer NOT NULL REFERENCES topic ON DELETE CASCADE,
    partition integer NOT NULL,
    incarnation uuid NOT NULL,
    epoch bigint NOT NULL,
    sealed boolean NOT NULL,
    last bigint NOT NULL,               -- the last sequence, 0 if empty
    last_id uuid,
    largest integer NOT NULL,           -- the bytes of the largest record so far, which bounds a page
    begins bigint,                      -- the first sequence that is kept, once something was trimmed
    PRIMARY KEY (topic, partition)
) WITH (fillfactor = 40);               -- changed by each append: room for that in its page
CREATE TABLE record (
    topic integer NOT NULL,
    partition integer NOT NULL,
    sequence bigint NOT NULL,
    id uuid NOT NULL,
    event_type text NOT NULL,
    bytes bytea NOT NULL,
    PRIMARY KEY (topic, partition, sequence)
);
ALTER TABLE record ALTER COLUMN bytes SET STORAGE EXTERNAL;
CREATE TABLE registration (
    service text NOT NULL,
    replica bigint NOT NULL,
    url text NOT NULL,
    descriptor text NOT NULL,
    PRIMARY KEY (service, replica)
);
CREATE UNLOGGED TABLE listener (        -- who hears which subject
    handle bigint NOT NULL,             -- the listening connection: it holds the advisory lock of this number
    number integer NOT NULL,            -- what the connection calls this subject and group
    subject text NOT NULL,
    member_of text,                     -- the group of which one member hears a signal
    PRIMARY KEY (handle, number)
);
CREATE INDEX listener_subject ON listener (subject);
";

impl Link {
    /// Whether the tables are there.
    pub(super) async fn has_tables(&self) -> Result<bool> {
        if self.found().is_some_and(|found| found.has_tables) {
            return Ok(true);
        }
        let mut lease = self.lease().await?;
        let there = self.look(&mut lease).await?.is_some();
        lease.keep();
        Ok(there)
    }

    /// Makes the tables unless they are there.
    pub(super) async fn make_tables(&self) -> Result<()> {
        if self.has_tables().await? {
            return Ok(());
        }
        let mut lease = self.lease().await?;
        lease.begin(self).await?;
        let schema = self.address.schema();
        let lock = sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))").bind(&schema);
        self.answer(lock.execute(&mut *lease)).await?;
        if self.look(&mut lease).await?.is_none() {
            for step in self.steps() {
                self.answer(async { lease.execute(sqlx::raw_sql(AssertSqlSafe(step))).await.map(drop) })
                    .await?;
            }
        }
        lease.commit(self).await?;
        self.made_tables();
        Ok(())
    }

    fn steps(&self) -> [String; 3] {
        let schema = self.address.schema();
        let mark = format!("{}{LAYOUT}", self.address.mark());
        // An empty schema of this name is one that an administrator made for us.
        let make = format!(
            "DO $$ BEGIN IF to_regnamespace('\"{schema}\"') IS NULL THEN CREATE SCHEMA \"{schema}\"; END IF; END $$"
        );
        [make, TABLES.to_owned(), format!("COMMENT ON SCHEMA \"{schema}\" IS '{mark}'")]
    }

    /// Whether the tables are there, asked of the server; refuses what is not ours.
    async fn look(&self, lease: &mut super::link::Lease<'_>) -> Result<Option<()>> {
        let asked = sqlx::query(
            "SELECT coalesce(obj_description(n.oid, 'pg_namespace'), '')
             FROM pg_namespace AS n WHERE n.nspname = $1
             AND (obj_description(n.oid, 'pg_namespace') IS NOT NULL
                  OR EXISTS (SELECT 1 FROM pg_class AS c WHERE c.relnamespace = n.oid))",
        );
        let asked = asked.bind(self.address.schema());
        let Some(row) = self.answer(asked.fetch_optional(&mut **lease)).await? else { return Ok(None) };
        let mark: String = row.try_get(0).map_err(super::failure::failed)?;
        check_mark(&self.address, &mark)?;
        self.made_tables();
        Ok(Some(()))
    }
}
