//! What other programs find in MySQL and MariaDB: the table in which they publish, and the procedure with which they apply.
//!
//! takes: rows of the foreign outbox · writes: the outbox, or the reason why a row is parked · commits: with the leader's
//! round · if we crash here: the rows are in one of the two tables, never in both or none · if it repeats: what was
//! taken in is not there to be taken again.
//!
//! The trigger first locks the row of the key's stripe and then takes a position by an insert of its own. A position that the
//! table counts by itself would be given before the trigger: a statement of many rows reserves them all at its first.
//!
//! Invariant: of one key, whatever is seen of the foreign outbox is in the order of commits, and nothing that is not seen yet
//! comes before it: its stripe is locked until the commit.

use std::sync::atomic::Ordering;

use jiff::Timestamp;
use sqlx::mysql::{MySqlConnection, MySqlRow};
use sqlx::{AssertSqlSafe, Executor, Row};
use tombolo_event::Generations;
use tombolo_event::envelope::EVENT_BYTES_MAX;

use super::schema::{IS_THERE, statement};
use super::session::number;
use super::{Mysql, limit as bound, unsigned};
use crate::foreign::{Judged, Waiting, Written, judge, tell};
use crate::mutant::Mutant;
use crate::{Depth, Error, ForeignParked, ForeignParts, Kind, Result, RoundLimit, Schema};

/// The foreign outbox.
const OUTBOX: &[&str] = &[
    "CREATE TABLE IF NOT EXISTS tombolo_events (       -- what other programs publish: they insert, in their own transactions
    position bigint NOT NULL DEFAULT 0 PRIMARY KEY,    -- given by the trigger, under the lock of the key
    id char(36),                                   -- made by the trigger, unless the program gives one
    event_type varchar(255) NOT NULL,              -- such as 'orders.placed.v1'
    event_key varchar(700) NOT NULL,               -- the entity that the event is about: the order of events is that of its key
    data longtext,                                 -- JSON, or any text under another content type
    data_binary longblob,                          -- bytes in its place
    content_type varchar(255) NOT NULL DEFAULT 'application/json',
    event_time datetime(6),                        -- in UTC; that of the insert, unless the program gives one
    traceparent varchar(255),                      -- of W3C trace context
    written datetime(6),
    parked datetime(6),                            -- since when it is parked, because no bus will take it
    parked_reason text,
    UNIQUE KEY id (id),
    KEY parked (parked)
) OPTIONS",
    "CREATE TABLE IF NOT EXISTS tombolo_event_stripe ( -- the locks of the keys of those; never written to
    stripe int PRIMARY KEY
) OPTIONS",
    "INSERT IGNORE INTO tombolo_event_stripe (stripe)
WITH RECURSIVE stripes (stripe) AS (SELECT 0 UNION ALL SELECT stripe + 1 FROM stripes WHERE stripe < 255)
SELECT stripe FROM stripes",
    "CREATE TABLE IF NOT EXISTS tombolo_event_position ( -- gives positions; no row outlives its transaction
    position bigint AUTO_INCREMENT PRIMARY KEY
) OPTIONS",
    "CREATE TRIGGER tombolo_place_event BEFORE INSERT ON tombolo_events FOR EACH ROW
BEGIN
    DECLARE locked int;
    -- The lock first, until the commit; then the position.
    SELECT stripe INTO locked FROM tombolo_event_stripe WHERE stripe = CRC32(NEW.event_key) % 256 FOR UPDATE;
    INSERT INTO tombolo_event_position VALUES ();
    SET NEW.position = LAST_INSERT_ID();
    DELETE FROM tombolo_event_position WHERE position = NEW.position;
    SET NEW.id = COALESCE(NEW.id, UUID());
    SET NEW.event_time = COALESCE(NEW.event_time, UTC_TIMESTAMP(6));
    SET NEW.written = UTC_TIMESTAMP(6);
END",
];

/// With what other programs apply an event. The collation is that of the cursors, which has another name on MariaDB than on MySQL.
const INBOX: &[&str] = &["CREATE PROCEDURE tombolo_apply(
    IN in_subscription varchar(255), IN in_topic varchar(63), IN in_partition int, IN in_sequence bigint, IN in_id char(36))
    MODIFIES SQL DATA
BEGIN
    DECLARE reached bigint;
    DECLARE said varchar(128);
    UPDATE tombolo_cursor
    SET sequence = in_sequence, id = UNHEX(REPLACE(in_id, '-', '')), attempts = 0, attempt_id = NULL, error = NULL,
        moved = UTC_TIMESTAMP(6)
    WHERE subscription = CONVERT(in_subscription USING utf8mb4) COLLATION
      AND topic = CONVERT(in_topic USING utf8mb4) COLLATION
      AND `partition` = in_partition AND sequence = in_sequence - 1;
    IF ROW_COUNT() <> 1 THEN
        -- The caller rolls its transaction back, and with it the effect.
        SELECT MAX(sequence) INTO reached FROM tombolo_cursor
        WHERE subscription = CONVERT(in_subscription USING utf8mb4) COLLATION
          AND topic = CONVERT(in_topic USING utf8mb4) COLLATION AND `partition` = in_partition LOCK IN SHARE MODE;
        SET said = CASE
            WHEN reached IS NULL THEN 'the subscription has no cursor there: `tombolo deliver` makes it'
            WHEN reached >= in_sequence THEN 'the event was applied already'
            ELSE CONCAT('the event is not the next one: that is ', reached + 1) END;
        SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = said;
    END IF;
END"];

const COLLATION: &str = "COLLATE /*M!utf8mb4_nopad_bin*//*!80000 utf8mb4_0900_bin*/";

/// The oldest rows that are not parked, nor behind one that is, within a limit. What is too large is not read.
const NEXT: &str = "
    SELECT e.position, e.id, e.event_type, e.event_key, e.content_type,
           TIMESTAMPDIFF(MICROSECOND, '1970-01-01', e.event_time), e.traceparent,
           IF(COALESCE(LENGTH(e.data), LENGTH(e.data_binary), 0) <= ?, COALESCE(CAST(e.data AS BINARY), e.data_binary), NULL),
           CAST(COALESCE(LENGTH(e.data), LENGTH(e.data_binary), 0) AS SIGNED)
    FROM (SELECT position, ROW_NUMBER() OVER w AS nth, SUM(size) OVER w AS total
          FROM (SELECT position, LEAST(COALESCE(LENGTH(data), LENGTH(data_binary), 0), ?) AS size
                FROM tombolo_events AS waiting FORCE INDEX (PRIMARY)
                WHERE parked IS NULL AND position > ? AND NOT EXISTS (
                    SELECT 1 FROM tombolo_events AS p FORCE INDEX (parked)
                    WHERE p.parked IS NOT NULL AND p.event_key = waiting.event_key)
                ORDER BY position LIMIT ?) AS some
          WINDOW w AS (ORDER BY position)) AS next
    STRAIGHT_JOIN tombolo_events AS e FORCE INDEX (PRIMARY) ON e.position = next.position
    WHERE next.nth = 1 OR next.total <= ? ORDER BY e.position";

/// The SQL that makes `parts` behind `prefix`, as `tombolo schema print` shows it: for the server's own client, which has to be told
/// where a trigger ends.
#[must_use]
pub fn foreign_sql(prefix: &str, parts: ForeignParts) -> String {
    let mut sql = String::new();
    for text in texts(parts) {
        let statement = made(text, prefix);
        match text.ends_with("END") {
            true => sql.push_str(&format!("DELIMITER //\n{statement}//\nDELIMITER ;\n")),
            false => sql.push_str(&format!("{statement};\n")),
        }
    }
    sql
}

fn texts(parts: ForeignParts) -> impl Iterator<Item = &'static str> {
    let outbox = OUTBOX.iter().filter(move |_| parts.outbox);
    outbox.chain(INBOX.iter().filter(move |_| parts.inbox)).copied()
}

fn made(text: &str, prefix: &str) -> String {
    statement(text, prefix).replace("COLLATION", COLLATION)
}

impl Mysql {
    /// Makes or checks `parts`.
    pub(super) async fn make_foreign(&self, parts: ForeignParts, schema: Schema) -> Result<()> {
        if parts.notify {
            return Err(Error::new(
                Kind::Schema,
                "MySQL and MariaDB have no NOTIFY; leave --notify out: the relay looks every 10 ms to 1 s",
            ));
        }
        if schema == Schema::Apply {
            let mut making = self.making().await?;
            for text in texts(parts) {
                self.make_once(making.connection(), text).await?;
            }
            making.end().await?;
        }
        self.check_foreign(parts).await
    }

    /// A trigger or a procedure that is there is left as it is.
    async fn make_once(&self, connection: &mut MySqlConnection, text: &str) -> Result<()> {
        let mut text = made(text, &self.prefix);
        if self.mutation.is(Mutant::NoKeyLock) {
            text = text.replace(" FOR UPDATE", "");
        }
        if self.mutation.is(Mutant::ForeignAppliesTwice) {
            text = text.replace("AND sequence = in_sequence - 1", "");
        }
        match connection.execute(AssertSqlSafe(text)).await {
            Err(error) if number(&error).is_some_and(|found| IS_THERE.contains(&found)) => Ok(()),
            done => Ok(done.map(|_| ())?),
        }
    }

    async fn check_foreign(&self, parts: ForeignParts) -> Result<()> {
        let found = sqlx::query(
            "SELECT EXISTS (SELECT 1 FROM information_schema.triggers
                            WHERE trigger_schema = DATABASE() AND trigger_name = ?),
                    EXISTS (SELECT 1 FROM information_schema.routines
                            WHERE routine_schema = DATABASE() AND routine_name = ?)",
        );
        let prefix = &self.prefix;
        let found = found.bind(format!("{prefix}place_event")).bind(format!("{prefix}apply"));
        let found = found.fetch_one(&self.pool).await?;
        for (nth, is_wanted, what) in [
            (0, parts.outbox, "no outbox for other programs: run `tombolo schema apply --outbox`"),
            (1, parts.inbox, "no procedure for other programs: run `tombolo schema apply --inbox`"),
        ] {
            if is_wanted && !found.try_get::<bool, _>(nth)? {
                return Err(Error::new(
                    Kind::Schema,
                    format!("the database has, with the prefix {prefix:?}, {what}"),
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
        let found = self.has_foreign_on(&mut *self.pool.acquire().await?).await?;
        self.has_foreign.store(found, Ordering::Relaxed);
        Ok(found)
    }

    async fn has_foreign_on(&self, connection: &mut MySqlConnection) -> Result<bool> {
        let found = sqlx::query(
            "SELECT 1 FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = ?",
        );
        Ok(found.bind(format!("{}events", self.prefix)).fetch_optional(connection).await?.is_some())
    }

    /// The position of the first row that the leader would take in.
    pub(super) async fn first_foreign(&self) -> Result<Option<i64>> {
        let found = sqlx::query_scalar(self.sql(
            "SELECT position FROM tombolo_events AS e WHERE parked IS NULL AND NOT EXISTS (
                 SELECT 1 FROM tombolo_events AS p FORCE INDEX (parked)
                 WHERE p.parked IS NOT NULL AND p.event_key = e.event_key)
             ORDER BY position LIMIT 1",
        ));
        Ok(found.fetch_optional(&self.pool).await?)
    }

    /// Takes in what other programs wrote, above a position that is none but for a mutant.
    pub(super) async fn take_in(
        &self,
        connection: &mut MySqlConnection,
        generations: &Generations,
        limit: RoundLimit,
        above: i64,
    ) -> Result<Judged> {
        let large = bound(EVENT_BYTES_MAX + 1);
        let next = sqlx::query(self.sql(NEXT)).bind(large).bind(large).bind(above);
        let next = next.bind(bound(limit.rows.max(1))).bind(bound(limit.bytes));
        let next = next.fetch_all(&mut *connection).await?;
        let written = next.iter().map(written).collect::<Result<Vec<_>>>()?;
        if written.is_empty() {
            return Ok(Judged::default());
        }
        let service: String = sqlx::query_scalar(self.sql("SELECT service FROM tombolo_service"))
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

    /// Removes what was taken in from where it was: by the primary key alone, so that nothing waits for what is not committed.
    pub(super) async fn remove_foreign(&self, connection: &mut MySqlConnection, taken: &[i64]) -> Result<()> {
        if taken.is_empty() {
            return Ok(());
        }
        let list: Vec<String> = taken.iter().map(i64::to_string).collect();
        let gone = format!(
            "DELETE e FROM {}events AS e FORCE INDEX (PRIMARY) WHERE position IN ({})",
            self.prefix,
            list.join(",")
        );
        let gone = connection.execute(AssertSqlSafe(gone)).await?.rows_affected();
        if gone == taken.len() as u64 {
            return Ok(());
        }
        Err(Error::new(
            Kind::Unavailable,
            "rows of the foreign outbox were changed while they were taken in; they are looked at again",
        ))
    }

    async fn park_foreign(&self, connection: &mut MySqlConnection, parked: &[ForeignParked]) -> Result<()> {
        for ForeignParked { position, reason, .. } in parked {
            let park = sqlx::query(self.sql(
                "UPDATE tombolo_events SET parked = UTC_TIMESTAMP(6), parked_reason = ? WHERE position = ?",
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
            "SELECT COUNT(*), CAST(COALESCE(SUM(COALESCE(LENGTH(data), LENGTH(data_binary), 0)), 0) AS SIGNED),
                    TIMESTAMPDIFF(MICROSECOND, '1970-01-01', MIN(written)) DIV 1000,
                    (SELECT COUNT(*) FROM tombolo_events WHERE parked IS NOT NULL)
             FROM (SELECT data, data_binary, written FROM tombolo_events ORDER BY position LIMIT ?) AS oldest",
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
            "SELECT position, event_key, event_type, COALESCE(parked_reason, '') FROM tombolo_events
             WHERE parked IS NOT NULL ORDER BY position LIMIT ?",
        ));
        let rows = rows.bind(bound(most)).fetch_all(&self.pool).await?;
        let parked = |row: &MySqlRow| {
            Ok(ForeignParked {
                position: row.try_get(0)?,
                key: row.try_get(1)?,
                event_type: row.try_get(2)?,
                reason: row.try_get(3)?,
            })
        };
        rows.iter().map(parked).collect()
    }

    /// Drops what is on the bus already; returns how much.
    pub(super) async fn drop_known_foreign(&self, connection: &mut MySqlConnection) -> Result<u64> {
        if !self.has_foreign_on(&mut *connection).await? {
            return Ok(0);
        }
        let known = "DELETE e FROM tombolo_events AS e JOIN tombolo_known AS k ON UNHEX(REPLACE(e.id, '-', '')) = k.id";
        Ok(sqlx::query(self.sql(known)).execute(connection).await?.rows_affected())
    }
}

fn written(row: &MySqlRow) -> Result<Written> {
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

    const ALL: ForeignParts = ForeignParts { outbox: true, notify: false, inbox: true };

    #[test]
    fn the_printed_sql_has_the_prefix_that_was_asked_for() {
        let sql = foreign_sql("inbox_", ALL);
        assert!(
            sql.contains("EXISTS inbox_events") && !sql.contains("tombolo_") && !sql.contains("COLLATION")
        );
        assert_eq!(sql.matches("DELIMITER //").count(), 2);
    }

    #[test]
    fn the_lock_comes_before_the_position() {
        let sql = foreign_sql("tombolo_", ALL);
        assert!(sql.find("FOR UPDATE").unwrap() < sql.find("LAST_INSERT_ID").unwrap());
    }
}
