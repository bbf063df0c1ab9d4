//! What other programs find in PostgreSQL: the table in which they publish, and the function with which they apply.
//!
//! takes: rows of the foreign outbox · writes: the outbox, or the reason why a row is parked · commits: with the leader's
//! round · if we crash here: the rows are in one of the two tables, never in both or none · if it repeats: what was
//! taken in is not there to be taken again.
//!
//! The trigger first locks the stripe of the key and then takes a position from a sequence that nobody caches. A default of the
//! column would be evaluated before the trigger, and give earlier positions to later commits.
//!
//! Invariant: of one key, whatever is seen of the foreign outbox is in the order of commits, and nothing that is not seen yet
//! comes before it: its stripe is locked until the commit.

use std::sync::atomic::Ordering;

use futures_util::StreamExt;
use jiff::Timestamp;
use sqlx::postgres::{PgConnection, PgListener, PgRow};
use sqlx::{AssertSqlSafe, Row};
use tombolo_event::Generations;
use tombolo_event::envelope::EVENT_BYTES_MAX;

use super::{Postgres, SCHEMA, lock_class, unsigned};
use crate::foreign::{Judged, Waiting, Written, judge, tell};
use crate::mutant::Mutant;
use crate::port::foreign::FOREIGN_STRIPES;
use crate::{Depth, Error, ForeignParked, ForeignParts, HintStream, Kind, Result, RoundLimit, Schema};

/// The foreign outbox. `CLASS` stands for the class of its locks.
const OUTBOX: &str = "
CREATE TABLE IF NOT EXISTS tombolo.events (     -- what other programs publish: they insert, in their own transactions
    position bigint PRIMARY KEY,                -- given by the trigger, under the lock of the key
    id uuid NOT NULL UNIQUE,                    -- made by the trigger, unless the program gives one
    event_type text NOT NULL,                   -- such as 'orders.placed.v1'
    event_key text NOT NULL,                    -- the entity that the event is about: the order of events is that of its key
    data text,                                  -- JSON, or any text under another content type
    data_binary bytea,                          -- bytes in its place
    content_type text NOT NULL DEFAULT 'application/json',
    event_time timestamptz NOT NULL,            -- that of the insert, unless the program gives one
    traceparent text,                           -- of W3C trace context
    written timestamptz NOT NULL DEFAULT clock_timestamp(),
    parked timestamptz,                         -- since when it is parked, because no bus will take it
    parked_reason text
) WITH (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000, autovacuum_vacuum_cost_delay = 0
);
CREATE INDEX IF NOT EXISTS events_parked ON tombolo.events (event_key) WHERE parked IS NOT NULL;
CREATE SEQUENCE IF NOT EXISTS tombolo.event_position CACHE 1;
CREATE OR REPLACE FUNCTION tombolo.place_event() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- The lock first, until the commit; then the position.
    PERFORM pg_advisory_xact_lock(CLASS, hashtext(NEW.event_key) & STRIPES);
    NEW.position := nextval('tombolo.event_position');
    NEW.id := coalesce(NEW.id, gen_random_uuid());
    NEW.event_time := coalesce(NEW.event_time, clock_timestamp());
    RETURN NEW;
END $$;
DROP TRIGGER IF EXISTS place_event ON tombolo.events;
CREATE TRIGGER place_event BEFORE INSERT ON tombolo.events
    FOR EACH ROW EXECUTE FUNCTION tombolo.place_event();
DROP TRIGGER IF EXISTS notify_events ON tombolo.events;
";

/// Wakes the relay with each transaction that inserts. `CHANNEL` stands for the channel.
const NOTIFY: &str = "CREATE OR REPLACE FUNCTION tombolo.notify_events() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pg_notify('CHANNEL', '');
    RETURN NULL;
END $$;
CREATE TRIGGER notify_events AFTER INSERT ON tombolo.events
    FOR EACH STATEMENT EXECUTE FUNCTION tombolo.notify_events();
";

/// With what other programs apply an event.
const INBOX: &str = "
CREATE OR REPLACE FUNCTION tombolo.apply(subscription text, topic text, partition integer, sequence bigint, id uuid)
RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    reached bigint;
BEGIN
    UPDATE tombolo.cursor AS c
    SET sequence = $4, id = $5, attempts = 0, attempt_id = NULL, error = NULL, moved = clock_timestamp()
    WHERE c.subscription = $1 AND c.topic = $2 AND c.partition = $3 AND c.sequence = $4 - 1;
    IF FOUND THEN
        RETURN true;
    END IF;
    -- The caller's transaction fails with this, so that its effect is undone whatever it does next.
    SELECT c.sequence INTO reached FROM tombolo.cursor AS c
    WHERE c.subscription = $1 AND c.topic = $2 AND c.partition = $3;
    IF reached IS NULL THEN
        RAISE EXCEPTION 'subscription % has no cursor in %/%: `tombolo deliver` makes it', $1, $2, $3 USING ERRCODE = 'TB003';
    ELSIF reached >= $4 THEN
        RAISE EXCEPTION 'event %/%/% was applied by subscription % already', $2, $3, $4, $1 USING ERRCODE = 'TB001';
    END IF;
    RAISE EXCEPTION 'event %/%/% is not the next one of subscription %: that is %', $2, $3, $4, $1, reached + 1
        USING ERRCODE = 'TB002';
END $$;
";

/// The oldest rows that are not parked, nor behind one that is, within a limit. What is too large is not read.
const NEXT: &str = "
    WITH oldest AS (
        SELECT position, least(coalesce(octet_length(data), octet_length(data_binary), 0), $3) AS size
        FROM tombolo.events AS e
        WHERE parked IS NULL AND position > $4 AND NOT EXISTS (
            SELECT 1 FROM tombolo.events AS p WHERE p.parked IS NOT NULL AND p.event_key = e.event_key)
        ORDER BY position LIMIT $1
    ), next AS (
        SELECT position, row_number() OVER w AS nth, sum(size) OVER w AS total FROM oldest WINDOW w AS (ORDER BY position)
    )
    SELECT e.position, e.id::text, e.event_type, e.event_key, e.content_type,
           CASE WHEN isfinite(e.event_time) THEN (extract(epoch FROM e.event_time) * 1000000)::bigint END,
           e.traceparent,
           CASE WHEN coalesce(octet_length(e.data), octet_length(e.data_binary), 0) <= $3
                THEN coalesce(convert_to(e.data, 'UTF8'), e.data_binary) END,
           coalesce(octet_length(e.data), octet_length(e.data_binary), 0)::bigint
    FROM tombolo.events AS e JOIN next USING (position)
    WHERE nth = 1 OR total <= $2
    ORDER BY e.position FOR UPDATE OF e";

/// The SQL that makes `parts` in `schema`, as `tombolo schema print` shows it.
#[must_use]
pub fn foreign_sql(schema: &str, parts: ForeignParts) -> String {
    let mut sql = String::new();
    if parts.outbox {
        let class = lock_class(&format!("{schema}/events")).to_string();
        let stripes = (FOREIGN_STRIPES - 1).to_string();
        sql.push_str(&OUTBOX.replace("CLASS", &class).replace("STRIPES", &stripes));
    }
    if parts.outbox && parts.notify {
        sql.push_str(&NOTIFY.replace("CHANNEL", &channel(schema)));
    }
    if parts.inbox {
        sql.push_str(INBOX);
    }
    if schema == SCHEMA { sql } else { sql.replace("tombolo.", &format!("\"{schema}\".")) }
}

/// The channel on which an insert is heard of.
fn channel(schema: &str) -> String {
    format!("{schema}_events")
}

impl Postgres {
    /// Makes or checks `parts`.
    pub(super) async fn make_foreign(&self, parts: ForeignParts, schema: Schema) -> Result<()> {
        if schema == Schema::Apply {
            let mut transaction = self.pool.begin().await?;
            self.lock_schema(&mut transaction).await?;
            let mut sql = foreign_sql(&self.schema, parts);
            if self.mutation.is(Mutant::ForeignPositionByDefault) {
                sql = by_default(&sql);
            }
            if self.mutation.is(Mutant::NoKeyLock) {
                sql = sql.replace("PERFORM pg_advisory_xact_lock", "-- no lock: ");
            }
            if self.mutation.is(Mutant::ForeignAppliesTwice) {
                sql = sql.replace("AND c.sequence = $4 - 1", "");
            }
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *transaction).await?;
            transaction.commit().await?;
        }
        self.check_foreign(parts).await
    }

    async fn check_foreign(&self, parts: ForeignParts) -> Result<()> {
        let found = sqlx::query(
            "SELECT EXISTS (SELECT 1 FROM pg_trigger WHERE tgrelid = to_regclass($1) AND tgname = 'place_event'),
                    EXISTS (SELECT 1 FROM pg_trigger WHERE tgrelid = to_regclass($1) AND tgname = 'notify_events'),
                    to_regprocedure($2) IS NOT NULL",
        );
        let table = format!("\"{}\".events", self.schema);
        let function = format!("\"{}\".apply(text, text, integer, bigint, uuid)", self.schema);
        let found = found.bind(table).bind(function).fetch_one(&self.pool).await?;
        for (nth, is_wanted, what) in [
            (0, parts.outbox, "no outbox for other programs: run `tombolo schema apply --outbox`"),
            (1, parts.notify, "a trigger that notifies nobody: run `tombolo schema apply --outbox --notify`"),
            (2, parts.inbox, "no procedure for other programs: run `tombolo schema apply --inbox`"),
        ] {
            if is_wanted && !found.try_get::<bool, _>(nth)? {
                let schema = &self.schema;
                return Err(Error::new(
                    Kind::Schema,
                    format!("schema {schema:?} of the database has {what}"),
                ));
            }
        }
        Ok(())
    }

    /// Whether other programs have a table here.
    pub(super) async fn has_foreign(&self) -> Result<bool> {
        if self.has_foreign.load(Ordering::Relaxed) {
            return Ok(true);
        }
        let found = sqlx::query_scalar(self.sql("SELECT to_regclass('tombolo.events') IS NOT NULL"));
        let found = found.fetch_one(&self.pool).await?;
        self.has_foreign.store(found, Ordering::Relaxed);
        Ok(found)
    }

    /// The position of the first row that the leader would take in.
    pub(super) async fn first_foreign(&self) -> Result<Option<i64>> {
        let found = sqlx::query_scalar(self.sql(
            "SELECT position FROM tombolo.events AS e WHERE parked IS NULL AND NOT EXISTS (
                 SELECT 1 FROM tombolo.events AS p WHERE p.parked IS NOT NULL AND p.event_key = e.event_key)
             ORDER BY position LIMIT 1",
        ));
        Ok(found.fetch_optional(&self.pool).await?)
    }

    /// Takes in what other programs wrote, above a position that is none but for a mutant. Returns what is parked from now on, and
    /// the highest position seen.
    pub(super) async fn take_in(
        &self,
        connection: &mut PgConnection,
        generations: &Generations,
        limit: RoundLimit,
        above: i64,
    ) -> Result<Judged> {
        let next = sqlx::query(self.sql(NEXT)).bind(limit.rows.max(1) as i64).bind(limit.bytes as i64);
        let next = next.bind(EVENT_BYTES_MAX as i32 + 1).bind(above).fetch_all(&mut *connection).await?;
        let written = next.iter().map(written).collect::<Result<Vec<_>>>()?;
        if written.is_empty() {
            return Ok(Judged::default());
        }
        let service: String = sqlx::query_scalar(self.sql("SELECT service FROM tombolo.service"))
            .fetch_one(&mut *connection)
            .await?;
        let mut judged = judge(&service, written);
        if self.mutation.is(Mutant::ForeignSteppedOver) {
            judged.taken.extend(judged.parked.drain(..).map(|parked| parked.position));
        }
        self.insert(connection, &judged.rows, generations).await?;
        if !self.mutation.is(Mutant::ForeignRemovedApart) {
            self.remove_foreign(connection, &judged.taken).await?;
        }
        self.park_foreign(connection, &judged.parked).await?;
        tell(&service, &judged.parked);
        Ok(judged)
    }

    /// Removes what was taken in from where it was.
    pub(super) async fn remove_foreign(&self, connection: &mut PgConnection, taken: &[i64]) -> Result<()> {
        let gone = sqlx::query(self.sql("DELETE FROM tombolo.events WHERE position = ANY($1)"));
        gone.bind(taken).execute(connection).await?;
        Ok(())
    }

    async fn park_foreign(&self, connection: &mut PgConnection, parked: &[ForeignParked]) -> Result<()> {
        for ForeignParked { position, reason, .. } in parked {
            let park = sqlx::query(self.sql(
                "UPDATE tombolo.events SET parked = clock_timestamp(), parked_reason = $1 WHERE position = $2",
            ));
            park.bind(reason).bind(position).execute(&mut *connection).await?;
        }
        Ok(())
    }

    /// Adds what waits in the foreign outbox.
    pub(super) async fn add_foreign(&self, depth: Depth, most: i64) -> Result<Depth> {
        if !self.has_foreign().await? {
            return Ok(depth);
        }
        let row = sqlx::query(self.sql(
            "SELECT count(*), coalesce(sum(coalesce(octet_length(data), octet_length(data_binary), 0)), 0)::bigint,
                    (extract(epoch FROM min(written)) * 1000)::bigint,
                    (SELECT count(*) FROM tombolo.events WHERE parked IS NOT NULL)
             FROM (SELECT * FROM tombolo.events ORDER BY position LIMIT $1) AS oldest",
        ));
        let row = row.bind(most).fetch_one(&self.pool).await?;
        let oldest: Option<i64> = row.try_get(2)?;
        let oldest = oldest.and_then(|ms| Timestamp::from_millisecond(ms).ok());
        let waiting = Waiting {
            rows: unsigned(row.try_get(0)?),
            bytes: unsigned(row.try_get(1)?),
            oldest,
            parked_rows: unsigned(row.try_get(3)?),
        };
        Ok(waiting.beside(depth))
    }

    pub(super) async fn parked_foreign(&self, most: usize) -> Result<Vec<ForeignParked>> {
        if !self.has_foreign().await? {
            return Ok(Vec::new());
        }
        let rows = sqlx::query(self.sql(
            "SELECT position, event_key, event_type, coalesce(parked_reason, '') FROM tombolo.events
             WHERE parked IS NOT NULL ORDER BY position LIMIT $1",
        ));
        let rows = rows.bind(i64::try_from(most).unwrap_or(i64::MAX)).fetch_all(&self.pool).await?;
        let parked = |row: &PgRow| {
            Ok(ForeignParked {
                position: row.try_get(0)?,
                key: row.try_get(1)?,
                event_type: row.try_get(2)?,
                reason: row.try_get(3)?,
            })
        };
        rows.iter().map(parked).collect()
    }

    /// Listens for inserts, on a connection of its own that is made again when it breaks.
    pub(super) async fn hear_foreign(&self) -> Result<HintStream> {
        let mut listener = PgListener::connect_with(&self.pool).await?;
        listener.listen(&channel(&self.schema)).await?;
        Ok(Box::pin(listener.into_stream().filter_map(async |heard| heard.ok().map(drop))))
    }

    /// Drops what is on the bus already; returns how much.
    pub(super) async fn drop_known_foreign(&self, connection: &mut PgConnection) -> Result<u64> {
        let there = sqlx::query_scalar(self.sql("SELECT to_regclass('tombolo.events') IS NOT NULL"));
        if !there.fetch_one(&mut *connection).await? {
            return Ok(0);
        }
        let known = "DELETE FROM tombolo.events AS e USING tombolo.known AS k WHERE e.id = k.id";
        Ok(sqlx::query(self.sql(known)).execute(connection).await?.rows_affected())
    }
}

/// What it would be with the position as a default of its column: the trigger only locks.
fn by_default(sql: &str) -> String {
    let position = "position bigint PRIMARY KEY";
    let given = "    NEW.position := nextval('";
    let from = sql.find(given).unwrap_or(sql.len());
    let to = from + sql[from..].find('\n').unwrap_or(0);
    let sequence = sql[from..to].trim_start_matches("    NEW.position := ").trim_end_matches(';');
    let make = "CREATE SEQUENCE IF NOT EXISTS";
    let made = sql.find(make).map(|at| &sql[at..at + sql[at..].find('\n').unwrap_or(0)]).unwrap_or_default();
    let rest = format!("{}{}", &sql[..from], &sql[to..]);
    format!("{made}\n{}", rest.replace(position, &format!("{position} DEFAULT {sequence}")))
}

fn written(row: &PgRow) -> Result<Written> {
    let time: Option<i64> = row.try_get(5)?;
    Ok(Written {
        position: row.try_get(0)?,
        id: row.try_get(1)?,
        event_type: row.try_get(2)?,
        key: row.try_get(3)?,
        content_type: row.try_get(4)?,
        time: time.and_then(|time| Timestamp::from_microsecond(time).ok()),
        trace: row.try_get(6)?,
        data: row.try_get(7)?,
        size: unsigned(row.try_get(8)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: ForeignParts = ForeignParts { outbox: true, notify: true, inbox: true };

    #[test]
    fn the_printed_sql_is_in_the_schema_that_was_asked_for() {
        let sql = foreign_sql("tombolo", ALL);
        assert!(sql.contains("CREATE TABLE IF NOT EXISTS tombolo.events"));
        assert!(!sql.contains("CLASS,") && !sql.contains("STRIPES") && !sql.contains("CHANNEL"));
        let other = foreign_sql("shop", ALL);
        assert!(other.contains("\"shop\".apply(") && other.contains("pg_notify('shop_events'"));
        assert!(!other.contains("tombolo."), "{other}");
    }

    #[test]
    fn the_lock_comes_before_the_position() {
        let sql = foreign_sql("tombolo", ALL);
        assert!(sql.find("pg_advisory_xact_lock").unwrap() < sql.find("nextval").unwrap());
        let broken = by_default(&sql);
        assert!(
            broken.contains("position bigint PRIMARY KEY DEFAULT nextval('tombolo.event_position')"),
            "{broken}"
        );
    }
}
