//! Tombolo's tables in SQLite: made, brought up to date or checked before anything else.
//!
//! Invariant: a version only adds to the one before it, so that version N and N−1 run together; and a database
//! belongs to one service for good.

use sqlx::Row;
use sqlx::sqlite::SqliteConnection;
use tombolo_event::Generations;

use super::{Sqlite, generations};
use crate::{Error, Kind, Owner, Result, Schema};

/// The steps from an empty database to the present version, one for each version.
const STEPS: &[&str] = &[
    "
CREATE TABLE tombolo_service (          -- whose database it is; one row
    one INTEGER PRIMARY KEY CHECK (one = 1),
    service TEXT NOT NULL,
    partitions INTEGER NOT NULL,
    incarnation BLOB                    -- of the topic, once it was seen
);
CREATE TABLE tombolo_leader (           -- the relay; one row
    one INTEGER PRIMARY KEY CHECK (one = 1),
    epoch INTEGER NOT NULL,
    holder BLOB,
    until_ms INTEGER NOT NULL
);
CREATE TABLE tombolo_partition (        -- how far each partition is numbered and removed
    partition INTEGER PRIMARY KEY,
    numbered INTEGER NOT NULL DEFAULT 0,
    removed_sequence INTEGER NOT NULL DEFAULT 0,
    removed_id BLOB,
    waiting_bytes INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE tombolo_outbox (           -- the events that wait for the relay
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    partition INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    id BLOB NOT NULL,
    event_type TEXT NOT NULL,
    bytes BLOB NOT NULL,
    written_ms INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000 AS INTEGER)),
    UNIQUE (partition, sequence)
);
CREATE TABLE tombolo_subscription (     -- the types that each subscription handles
    subscription TEXT NOT NULL,
    event_type TEXT NOT NULL,
    PRIMARY KEY (subscription, event_type)
) WITHOUT ROWID;
CREATE TABLE tombolo_cursor (           -- where each subscription stands, and who holds it
    subscription TEXT NOT NULL,
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    incarnation BLOB NOT NULL,
    sequence INTEGER NOT NULL,
    id BLOB,
    lease_epoch INTEGER NOT NULL DEFAULT 0,
    holder BLOB,
    until_ms INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    attempt_id BLOB,
    error TEXT,
    moved_ms INTEGER,
    PRIMARY KEY (subscription, topic, partition)
);
", "
CREATE TABLE tombolo_effect_call (      -- the calls of effects: those after their cursor, and the last ones before it
    subscription TEXT NOT NULL,
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    id BLOB NOT NULL,
    attempts INTEGER NOT NULL,
    result TEXT,                        -- JSON, once the call has returned
    error TEXT,                         -- what the last try failed with
    done_ms INTEGER,                    -- when the completion was stored
    PRIMARY KEY (subscription, topic, partition, sequence)
);
", "
CREATE TABLE tombolo_view (             -- which build of each view is read
    view TEXT PRIMARY KEY,
    version INTEGER NOT NULL,
    build INTEGER NOT NULL,
    epoch INTEGER NOT NULL              -- counts the switches
) WITHOUT ROWID;
CREATE TABLE tombolo_build (            -- the builds of each view; a dropped one keeps its name
    view TEXT NOT NULL,
    version INTEGER NOT NULL,
    build INTEGER NOT NULL,
    subscription TEXT NOT NULL UNIQUE,
    namespace TEXT NOT NULL,
    tables TEXT,                        -- the SQL that made its tables, unless they are the user's own
    request BLOB UNIQUE,                -- who asked for it, if it is a further one
    switches INTEGER NOT NULL,          -- whether it is switched to when it is ready
    live_epoch INTEGER,                 -- under which it was switched to last
    left_ms INTEGER,                    -- when it was switched away from last
    made_ms INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000 AS INTEGER)),
    dropped_ms INTEGER,
    PRIMARY KEY (view, version, build)
) WITHOUT ROWID;
",
    "
CREATE TABLE tombolo_request (          -- what operators asked of subscriptions, and what became of it
    id BLOB PRIMARY KEY,
    subscription TEXT NOT NULL,
    topic TEXT,                         -- with the partition: whose holder carries it out
    partition INTEGER,
    action TEXT NOT NULL,
    detail TEXT NOT NULL,
    asked_by TEXT NOT NULL,
    asked_ms INTEGER NOT NULL,
    done INTEGER,
    outcome TEXT,
    done_ms INTEGER
);
CREATE INDEX tombolo_request_open ON tombolo_request (subscription, id) WHERE done_ms IS NULL;
", "
ALTER TABLE tombolo_leader ADD COLUMN halt BLOB;   -- why nobody may lead; null if somebody may
CREATE TABLE tombolo_halt (             -- what was found to differ from the bus, and what was decided
    id BLOB PRIMARY KEY,
    found_ms INTEGER NOT NULL,
    finding TEXT NOT NULL,
    decided_ms INTEGER,
    decided_by TEXT,
    choice TEXT,
    outcome TEXT
) WITHOUT ROWID;
CREATE TABLE tombolo_known (            -- consequences that are on the bus, though this database was restored since
    id BLOB PRIMARY KEY
) WITHOUT ROWID;
", "
CREATE TABLE tombolo_later (            -- the events whose time has not come
    nth INTEGER PRIMARY KEY AUTOINCREMENT,
    id BLOB NOT NULL UNIQUE,
    due_us INTEGER NOT NULL,            -- by the service's clock, in microseconds since 1970
    key_hash INTEGER NOT NULL,
    event_type TEXT NOT NULL,
    bytes BLOB NOT NULL
);
CREATE INDEX tombolo_later_due ON tombolo_later (due_us);
CREATE TABLE tombolo_later_depth (      -- how many those are, so that nobody has to count; one row
    one INTEGER PRIMARY KEY CHECK (one = 1),
    rows INTEGER NOT NULL,
    bytes INTEGER NOT NULL
);
INSERT INTO tombolo_later_depth VALUES (1, 0, 0);
CREATE TRIGGER tombolo_later_in AFTER INSERT ON tombolo_later BEGIN
    UPDATE tombolo_later_depth SET rows = rows + 1, bytes = bytes + length(NEW.bytes);
END;
CREATE TRIGGER tombolo_later_out AFTER DELETE ON tombolo_later BEGIN
    UPDATE tombolo_later_depth SET rows = rows - 1, bytes = bytes - length(OLD.bytes);
END;
", "
CREATE TABLE tombolo_parked (           -- the events that could not be handled, and those behind them of the same key
    subscription TEXT NOT NULL,
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    id BLOB NOT NULL,
    key_hash INTEGER NOT NULL,
    event_type TEXT NOT NULL,
    bytes BLOB NOT NULL,
    parked_ms INTEGER NOT NULL,
    attempts INTEGER NOT NULL,          -- tries that were begun; 0: waits behind another of its key
    unfinished INTEGER NOT NULL,        -- of these the last ones, in which the process died
    error TEXT,
    retry_ms INTEGER,                   -- when the next try is due, if it is not only for when it is told
    PRIMARY KEY (subscription, topic, partition, sequence)
);
CREATE INDEX tombolo_parked_key ON tombolo_parked (subscription, topic, key_hash, partition, sequence);
ALTER TABLE tombolo_cursor ADD COLUMN abandoned INTEGER NOT NULL DEFAULT 0;  -- the holder before did not release it
ALTER TABLE tombolo_cursor ADD COLUMN in_hand INTEGER NOT NULL DEFAULT 1;    -- the most events of its next transaction
ALTER TABLE tombolo_cursor ADD COLUMN paused_by TEXT;                        -- the operator who paused it
", "
CREATE TABLE tombolo_member (           -- who wants each subscription, for as long as its lease lasts
    subscription TEXT NOT NULL,
    replica BLOB NOT NULL,
    life BLOB NOT NULL,
    whole INTEGER NOT NULL,             -- whether all partitions or none
    until_ms INTEGER NOT NULL,
    PRIMARY KEY (subscription, replica)
) WITHOUT ROWID;
",
    "
ALTER TABLE tombolo_service ADD COLUMN generations TEXT;    -- JSON: how many partitions each generation has; null: `partitions`
ALTER TABLE tombolo_partition ADD COLUMN sealed INTEGER CHECK (numbered <= sealed);  -- its last number, in earlier generations
"];

/// The SQL that makes the tables in an empty database, as `tombolo schema print` shows it.
#[must_use]
pub fn schema_sql() -> String {
    let mut sql = String::from("CREATE TABLE IF NOT EXISTS tombolo_schema (version INTEGER NOT NULL);\n");
    for (version, step) in STEPS.iter().enumerate() {
        sql.push_str(step.trim_start());
        sql.push_str(&format!("INSERT INTO tombolo_schema (version) VALUES ({});\n", version + 1));
    }
    sql
}

impl Sqlite {
    /// Checks settings and Tombolo's tables, and changes nothing. Returns the version of the tables.
    ///
    /// # Errors
    /// `Schema` for tables that are missing or older than this program's, `Unsafe`, `Unavailable`.
    pub async fn check(&self) -> Result<i64> {
        self.check_settings().await?;
        let found = version(&mut *self.writer.acquire().await?).await?;
        let expected = STEPS.len() as i64;
        if found < expected { Err(missing(found, expected)) } else { Ok(found) }
    }

    pub(super) async fn prepare_schema(&self, owner: &Owner, schema: Schema) -> Result<()> {
        match self.check().await {
            Err(error) if error.kind() == Kind::Schema && schema == Schema::Apply => {
                self.write(&self.writer, apply).await?;
            }
            checked => {
                checked?;
            }
        }
        let settled = is_owned_by(&mut *self.writer.acquire().await?, owner).await?;
        if settled {
            return Ok(());
        }
        self.write(&self.writer, async |connection| own(connection, owner).await).await
    }
}

fn missing(found: i64, expected: i64) -> Error {
    let what = match found {
        0 => "the database has no tables of Tombolo".to_owned(),
        older => format!("the database has version {older} of Tombolo's tables"),
    };
    Error::new(
        Kind::Schema,
        format!(
            "{what}; expected version {expected}: run `tombolo schema apply`, or start the service with TOMBOLO_SCHEMA=apply"
        ),
    )
}

/// The version of the tables that are there; 0 if there are none. A newer one than ours is fine: it only adds.
async fn version(connection: &mut SqliteConnection) -> Result<i64> {
    let table = sqlx::query("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'tombolo_schema'");
    if table.fetch_optional(&mut *connection).await?.is_none() {
        return Ok(0);
    }
    let found = sqlx::query("SELECT coalesce(max(version), 0) FROM tombolo_schema");
    Ok(found.fetch_one(connection).await?.try_get(0)?)
}

async fn apply(connection: &mut SqliteConnection) -> Result<()> {
    sqlx::raw_sql("CREATE TABLE IF NOT EXISTS tombolo_schema (version INTEGER NOT NULL)")
        .execute(&mut *connection)
        .await?;
    let found = version(connection).await?;
    for (step, number) in STEPS.iter().zip(1_i64..).filter(|(_, number)| *number > found) {
        sqlx::raw_sql(*step).execute(&mut *connection).await?;
        sqlx::query("INSERT INTO tombolo_schema (version) VALUES (?)")
            .bind(number)
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

/// Whether the database is `owner`'s already; `false` if it is nobody's yet.
async fn is_owned_by(connection: &mut SqliteConnection, owner: &Owner) -> Result<bool> {
    let row = sqlx::query("SELECT service, generations, partitions FROM tombolo_service");
    let Some(row) = row.fetch_optional(connection).await? else { return Ok(false) };
    let service: String = row.try_get(0)?;
    crate::owner::check(owner, &service, &generations::of(&row, 1)?)?;
    Ok(true)
}

async fn own(connection: &mut SqliteConnection, owner: &Owner) -> Result<()> {
    if is_owned_by(connection, owner).await? {
        return Ok(());
    }
    sqlx::query("INSERT INTO tombolo_service (one, service, partitions) VALUES (1, ?, ?)")
        .bind(owner.service.as_str())
        .bind(owner.partitions)
        .execute(&mut *connection)
        .await?;
    sqlx::query("INSERT INTO tombolo_leader (one, epoch, until_ms) VALUES (1, 0, 0)")
        .execute(&mut *connection)
        .await?;
    generations::store(connection, &Generations::first(owner.partitions)?).await
}
