//! The elected relay's rounds on MySQL and MariaDB.
//!
//! takes: rows that have no number · writes: their numbers, marks, removals · commits: all of a round in one
//! transaction under the lock of the leader's row, synced before anybody sees the rows · if we crash here: the next leader
//! hands out the same rows with the same numbers first · if it repeats: the bus finds the same bytes under them.
//!
//! Invariant: a number is given once, by whoever holds the leader's row under the present epoch, to a row that is
//! there and has none; a row that commits late is there when it is there.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use sqlx::mysql::{MySqlConnection, MySqlRow};
use sqlx::{AssertSqlSafe, Executor, Row};
use tombolo_event::operator::Outcome;
use tombolo_event::{EventId, Generations, Incarnation, KeyHash, barrier};
use uuid::Uuid;

use super::outbox::{Won, next_due};
use super::session::Session;
use super::{Mysql, limit as bound, micros, signed, unsigned};
use crate::mutant::Mutant;
use crate::{Leader, Mark, OutboxRow, Result, RoundLimit, fencing};

pub(super) struct MysqlLeader {
    database: Mysql,
    epoch: u64,
    generations: Generations,
    lease: Duration,
    marks: Vec<Mark>,
    removed: Vec<Mark>,
    /// The last sequence that was handed out, by partition.
    taken: BTreeMap<u32, u64>,
    /// Whether rows may have numbers that were not handed out: at the start, and after any failure.
    is_backlog: bool,
    /// The highest position seen; used by nothing but a mutant.
    highest: i64,
    /// Whether other programs have a table here: looked at when the leadership begins, and whenever nothing else is to do.
    has_foreign: bool,
    /// As `highest`, of theirs.
    highest_foreign: i64,
    next_due: Option<Timestamp>,
}

/// A row that is about to get its number.
struct Unnumbered {
    position: i64,
    key_hash: KeyHash,
    row: OutboxRow,
}

impl MysqlLeader {
    pub(super) fn new(database: Mysql, lease: Duration, won: Won, has_foreign: bool) -> Self {
        let Won { epoch, generations, marks } = won;
        Self {
            database,
            epoch,
            generations,
            lease,
            removed: marks.clone(),
            taken: marks.iter().map(|mark| (mark.partition, mark.sequence)).collect(),
            marks,
            is_backlog: true,
            highest: 0,
            has_foreign,
            highest_foreign: 0,
            next_due: None,
        }
    }

    /// The marks of `done` that lie above what was removed before.
    fn news(&self, done: &[Mark]) -> Vec<Mark> {
        let is_news = |mark: &&Mark| {
            let known = self.removed.iter().find(|known| known.partition == mark.partition);
            mark.sequence > known.map_or(0, |known| known.sequence)
        };
        done.iter().filter(is_news).copied().collect()
    }

    fn compare(&self, found: u64) -> Result<()> {
        if found == self.epoch || self.database.mutation.is(Mutant::NoFencing) {
            return Ok(());
        }
        Err(fencing::replaced(self.epoch, found))
    }

    /// Whether there are rows without a number; fails if somebody else leads.
    async fn is_waiting(&mut self) -> Result<bool> {
        let row = sqlx::query(self.database.sql(
            "SELECT CASE WHEN halt IS NULL THEN epoch ELSE 0 END, (SELECT MIN(due_us) FROM tombolo_later),
                    EXISTS (SELECT 1 FROM tombolo_outbox WHERE sequence IS NULL),
                    EXISTS (SELECT 1 FROM information_schema.tables
                            WHERE table_schema = DATABASE() AND table_name = 'tombolo_events')
             FROM tombolo_leader",
        ));
        let row = row.fetch_one(&self.database.pool).await?;
        self.look(&row)?;
        self.has_foreign = row.try_get(3)?;
        Ok(row.try_get(2)? || (self.has_foreign && self.database.first_foreign().await?.is_some()))
    }

    /// Begins a transaction that holds the leader's row, cut off before the lease ends if it stands still.
    async fn begin(&mut self) -> Result<Session> {
        let mut session = Session::begin(&self.database.pool, self.lease / 2).await?;
        let lock = sqlx::query(self.database.sql(
            "SELECT CASE WHEN halt IS NULL THEN epoch ELSE 0 END, (SELECT MIN(due_us) FROM tombolo_later)
             FROM tombolo_leader FOR UPDATE",
        ));
        let looked = lock.fetch_one(&mut *session).await.map_err(Into::into).and_then(|row| self.look(&row));
        match looked {
            Ok(()) => Ok(session),
            Err(error) => {
                session.rollback().await?;
                Err(error)
            }
        }
    }

    /// Compares the epoch, and remembers what is due next.
    fn look(&mut self, row: &MySqlRow) -> Result<()> {
        self.compare(unsigned(row.try_get(0)?))?;
        self.next_due = next_due(row, 1)?;
        Ok(())
    }

    /// Rows that an earlier leader numbered, or this one before a failure, above what was handed out.
    async fn backlog(&self, connection: &mut MySqlConnection, limit: RoundLimit) -> Result<Vec<OutboxRow>> {
        let mut rows: Vec<OutboxRow> = Vec::new();
        for (&partition, &after) in &self.taken {
            let bytes: usize = rows.iter().map(|row| row.bytes.len()).sum();
            if rows.len() >= limit.rows.max(1) || bytes >= limit.bytes.max(1) {
                break;
            }
            let left = RoundLimit { rows: limit.rows.max(1) - rows.len(), bytes: limit.bytes.max(1) - bytes };
            let is_first = rows.is_empty();
            let (some, is_cut) = self.backlog_of(connection, partition, after, left, is_first).await?;
            rows.extend(some);
            if is_cut {
                break;
            }
        }
        Ok(rows)
    }

    /// The same in one partition, the first one however large if `first`; and whether the limit cut something off.
    async fn backlog_of(
        &self,
        connection: &mut MySqlConnection,
        partition: u32,
        after: u64,
        left: RoundLimit,
        first: bool,
    ) -> Result<(Vec<OutboxRow>, bool)> {
        let found = sqlx::query(self.database.sql(
            "SELECT o.position, o.`partition`, o.sequence, o.id, o.event_type,
                    IF((nth = 1 AND ?) OR total <= ?, o.bytes, NULL)
             FROM (SELECT position, sequence, ROW_NUMBER() OVER w AS nth, SUM(size) OVER w AS total
                   FROM (SELECT position, sequence, size FROM tombolo_outbox FORCE INDEX (numbered)
                         WHERE `partition` = ? AND sequence > ? ORDER BY sequence LIMIT ?) AS some
                   WINDOW w AS (ORDER BY sequence)) AS next
             STRAIGHT_JOIN tombolo_outbox AS o FORCE INDEX (PRIMARY) ON o.position = next.position
             ORDER BY next.sequence",
        ));
        let found = found.bind(first).bind(bound(left.bytes)).bind(signed(partition)).bind(after as i64);
        let found = found.bind(bound(left.rows)).fetch_all(connection).await?;
        let is_fitting =
            |row: &&MySqlRow| row.try_get::<Option<Vec<u8>>, _>(5).is_ok_and(|bytes| bytes.is_some());
        let rows: Vec<OutboxRow> = found
            .iter()
            .take_while(is_fitting)
            .map(|row| outbox_row(row, unsigned(row.try_get(2)?)))
            .collect::<Result<_>>()?;
        let is_cut = rows.len() < found.len();
        Ok((rows, is_cut))
    }

    /// Gives numbers to the next rows that have none, in the order of their positions: in the present generation, wherever
    /// whoever published them believed that they would go.
    async fn number(
        &mut self,
        connection: &mut MySqlConnection,
        limit: RoundLimit,
    ) -> Result<Vec<OutboxRow>> {
        let mut next = self.unnumbered(connection, limit).await?;
        if next.is_empty() {
            return Ok(Vec::new());
        }
        let numbered = sqlx::query(self.database.sql("SELECT `partition`, numbered FROM tombolo_partition"));
        let mut numbered: BTreeMap<u32, u64> =
            numbered.fetch_all(&mut *connection).await?.iter().map(last_number).collect::<Result<_>>()?;
        let as_hinted = self.database.mutation.is(Mutant::NumbersWhereHinted);
        for Unnumbered { position, key_hash, row } in &mut next {
            if !as_hinted {
                row.partition = self.generations.partition(*key_hash);
            }
            let last = numbered.entry(row.partition).or_default();
            *last += 1;
            row.sequence = *last;
            self.highest = self.highest.max(*position);
        }
        self.store_numbers(connection, &next).await?;
        let mut rows: Vec<OutboxRow> = next.into_iter().map(|next| next.row).collect();
        rows.sort_by_key(|row| (row.partition, row.sequence));
        Ok(rows)
    }

    /// The next rows without a number, in the order of their positions: one however large, and no more than the limit.
    async fn unnumbered(
        &self,
        connection: &mut MySqlConnection,
        limit: RoundLimit,
    ) -> Result<Vec<Unnumbered>> {
        let above =
            if self.database.mutation.is(Mutant::NaiveOutboxCursor) { self.highest } else { i64::MIN };
        let found = sqlx::query(self.database.sql(
            "SELECT o.position, o.`partition`, o.key_hash, o.id, o.event_type, o.bytes
             FROM (SELECT position, ROW_NUMBER() OVER w AS nth, SUM(size) OVER w AS total
                   FROM (SELECT position, size FROM tombolo_outbox FORCE INDEX (waiting)
                         WHERE sequence IS NULL AND position > ? ORDER BY position LIMIT ?) AS some
                   WINDOW w AS (ORDER BY position)) AS next
             STRAIGHT_JOIN tombolo_outbox AS o FORCE INDEX (PRIMARY) ON o.position = next.position
             WHERE next.nth = 1 OR next.total <= ? ORDER BY o.position",
        ));
        let found = found.bind(above).bind(bound(limit.rows.max(1))).bind(bound(limit.bytes));
        let read = |row: &MySqlRow| {
            let key_hash = KeyHash(row.try_get::<i64, _>(2)?.cast_unsigned());
            Ok(Unnumbered { position: row.try_get(0)?, key_hash, row: outbox_row(row, 0)? })
        };
        found.fetch_all(connection).await?.iter().map(read).collect()
    }

    /// Writes the numbers of rows, and the last one of each partition. By the primary key alone: a server that read through
    /// the table would wait for rows that are not committed.
    async fn store_numbers(&self, connection: &mut MySqlConnection, next: &[Unnumbered]) -> Result<()> {
        let one = |Unnumbered { position, row, .. }: &Unnumbered| {
            format!("[{position},{},{}]", row.partition, row.sequence)
        };
        let each: Vec<String> = next.iter().map(one).collect();
        let last: BTreeMap<u32, u64> =
            next.iter().map(|next| (next.row.partition, next.row.sequence)).collect();
        let last: Vec<String> =
            last.iter().map(|(partition, sequence)| format!("[{partition},{sequence}]")).collect();
        let Mysql { prefix, .. } = &self.database;
        let store = format!(
            "UPDATE JSON_TABLE('[{}]', '$[*]' COLUMNS (
                 place bigint PATH '$[0]', part int PATH '$[1]', number bigint PATH '$[2]')) AS n
             STRAIGHT_JOIN {prefix}outbox AS o FORCE INDEX (PRIMARY) ON o.position = n.place
             SET o.`partition` = n.part, o.sequence = n.number;
             UPDATE JSON_TABLE('[{}]', '$[*]' COLUMNS (part int PATH '$[0]', number bigint PATH '$[1]')) AS n
             STRAIGHT_JOIN {prefix}partition AS p FORCE INDEX (PRIMARY) ON p.`partition` = n.part
             SET p.numbered = n.number",
            each.join(","),
            last.join(",")
        );
        connection.execute(AssertSqlSafe(store)).await?;
        Ok(())
    }

    /// One transaction: removes, then numbers; or hands out what has numbers already.
    /// The second is whether there may be more of the latter.
    async fn work(
        &mut self,
        news: &[Mark],
        limit: RoundLimit,
        from_backlog: bool,
    ) -> Result<(Vec<OutboxRow>, bool)> {
        let mut session = self.begin().await?;
        self.database.remove(&mut session, news).await?;
        let mut rows = Vec::new();
        if from_backlog {
            rows = self.backlog(&mut session, limit).await?;
        }
        let is_backlog = !rows.is_empty();
        let mut apart = None;
        if !is_backlog {
            apart = self.take_in(&mut session, limit).await?;
            rows = self.number(&mut session, limit).await?;
        }
        session.commit().await?;
        self.remove_apart(apart).await?;
        Ok((rows, is_backlog))
    }

    /// Takes in what other programs wrote; none if there was nothing. Returns what is not removed yet, which is nothing but for
    /// a mutant.
    async fn take_in(
        &mut self,
        connection: &mut MySqlConnection,
        limit: RoundLimit,
    ) -> Result<Option<Vec<i64>>> {
        if !self.has_foreign {
            return Ok(None);
        }
        let is = |mutant| self.database.mutation.is(mutant);
        let above = if is(Mutant::NaiveOutboxCursor) { self.highest_foreign } else { i64::MIN };
        let apart = is(Mutant::ForeignRemovedApart);
        let judged = self.database.take_in(connection, &self.generations, limit, above).await?;
        self.highest_foreign = judged.taken.iter().copied().fold(self.highest_foreign, i64::max);
        if judged.taken.is_empty() {
            return Ok(None);
        }
        barrier::reach("foreign.before-take-in");
        Ok(Some(if apart { judged.taken } else { Vec::new() }))
    }

    async fn remove_apart(&mut self, apart: Option<Vec<i64>>) -> Result<()> {
        let Some(apart) = apart else { return Ok(()) };
        barrier::reach("foreign.after-take-in");
        if apart.is_empty() {
            return Ok(());
        }
        // Whoever ends the task at the barrier ends it here, however soon the server would answer.
        tokio::task::yield_now().await;
        let mut session = self.begin().await?;
        self.database.remove_foreign(&mut session, &apart).await?;
        Ok(session.commit().await?)
    }

    fn remember(&mut self, news: &[Mark], rows: &[OutboxRow]) {
        for mark in news {
            self.removed.retain(|known| known.partition != mark.partition);
            self.removed.push(*mark);
            let taken = self.taken.entry(mark.partition).or_default();
            *taken = mark.sequence.max(*taken);
        }
        for row in rows {
            let taken = self.taken.entry(row.partition).or_default();
            *taken = row.sequence.max(*taken);
        }
    }
}

#[async_trait]
impl Leader for MysqlLeader {
    fn epoch(&self) -> u64 {
        self.epoch
    }

    fn marks(&self) -> &[Mark] {
        &self.marks
    }

    async fn pin(&mut self, found: Incarnation) -> Result<()> {
        let mut session = self.begin().await?;
        let pin = self.database.sql("UPDATE tombolo_service SET incarnation = COALESCE(incarnation, ?)");
        sqlx::query(pin).bind(found.0).execute(&mut *session).await?;
        let row = sqlx::query(self.database.sql("SELECT incarnation, service FROM tombolo_service"));
        let row = row.fetch_one(&mut *session).await?;
        let (known, service): (Uuid, String) = (row.try_get(0)?, row.try_get(1)?);
        fencing::compare_incarnation(&service, Incarnation(known), found)?;
        Ok(session.commit().await?)
    }

    fn generations(&self) -> &Generations {
        &self.generations
    }

    async fn divide(&mut self, generations: &Generations, asked: Option<(Uuid, &Outcome)>) -> Result<()> {
        let mut session = self.begin().await?;
        self.database.divide(&mut session, generations).await?;
        if let Some((request, outcome)) = asked {
            self.database.finish_request(&mut session, request, outcome).await?;
        }
        barrier::reach("divide.before-commit");
        session.commit().await?;
        barrier::reach("divide.after-commit");
        self.generations = generations.clone();
        for partition in 0..generations.partitions() {
            self.taken.entry(partition).or_default();
        }
        Ok(())
    }

    async fn round(&mut self, done: &[Mark], limit: RoundLimit) -> Result<Vec<OutboxRow>> {
        let news = self.news(done);
        if news.is_empty() && !self.is_backlog && !self.is_waiting().await? {
            return Ok(Vec::new());
        }
        // A commit whose answer is lost may have given numbers all the same: they would be found there.
        let from_backlog = std::mem::replace(&mut self.is_backlog, true);
        let (rows, is_backlog) = self.work(&news, limit, from_backlog).await?;
        self.is_backlog = is_backlog;
        self.remember(&news, &rows);
        if !rows.is_empty() {
            barrier::reach("relay.after-numbering");
        }
        if !news.is_empty() {
            barrier::reach("relay.after-remove");
        }
        Ok(rows)
    }

    fn next_due(&self) -> Option<Timestamp> {
        self.next_due
    }

    async fn move_due(&mut self, now: Timestamp, limit: RoundLimit) -> Result<usize> {
        let mut session = self.begin().await?;
        let due = self.database.lock_due(&mut session, now, limit).await?;
        self.database.insert(&mut session, &due, &self.generations).await?;
        let apart = self.database.mutation.is(Mutant::LaterRemovedApart);
        if !apart {
            self.database.remove_later(&mut session, &due).await?;
        }
        barrier::reach("later.before-move");
        session.commit().await?;
        barrier::reach("later.after-move");
        if apart {
            let mut session = self.begin().await?;
            self.database.remove_later(&mut session, &due).await?;
            session.commit().await?;
        }
        self.next_due = self.next_due.filter(|_| due.is_empty());
        Ok(due.len())
    }

    async fn renew(&mut self) -> Result<()> {
        let renewed = sqlx::query(self.database.sql(
            "UPDATE tombolo_leader SET until = UTC_TIMESTAMP(6) + INTERVAL ? MICROSECOND
             WHERE epoch = ? AND halt IS NULL",
        ));
        let renewed = renewed.bind(micros(self.lease)).bind(self.epoch as i64);
        if renewed.execute(&self.database.pool).await?.rows_affected() == 0 {
            // Says why.
            return Ok(self.begin().await?.rollback().await?);
        }
        Ok(())
    }

    async fn resign(mut self: Box<Self>, done: &[Mark]) -> Result<()> {
        let news = self.news(done);
        if !news.is_empty() {
            let mut session = self.begin().await?;
            self.database.remove(&mut session, &news).await?;
            session.commit().await?;
            barrier::reach("relay.after-remove");
        }
        let mut session = self.begin().await?;
        let free = self.database.sql("UPDATE tombolo_leader SET until = '1970-01-01', holder = NULL");
        sqlx::query(free).execute(&mut *session).await?;
        Ok(session.commit().await?)
    }
}

fn last_number(row: &MySqlRow) -> Result<(u32, u64)> {
    let (partition, numbered): (i32, i64) = (row.try_get(0)?, row.try_get(1)?);
    Ok((partition.unsigned_abs(), unsigned(numbered)))
}

/// A row of the outbox, with its number in the partition.
fn outbox_row(row: &MySqlRow, sequence: u64) -> Result<OutboxRow> {
    let (partition, bytes): (i32, Vec<u8>) = (row.try_get(1)?, row.try_get(5)?);
    Ok(OutboxRow {
        partition: partition.unsigned_abs(),
        sequence,
        id: EventId(row.try_get(3)?),
        event_type: row.try_get(4)?,
        bytes: bytes.into(),
    })
}
