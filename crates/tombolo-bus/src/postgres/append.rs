//! Appends as statements: one for everything that follows what is stored, and a transaction for the rest.
//!
//! Takes runs of records, one for each of some partitions of a topic; writes them and the partitions' rows in one statement, which
//! is a transaction of its own: committed when the server answers, synced. If we crash before, nothing or all of it is stored. If
//! it repeats, the condition on the last sequence does not hold, and ids are compared under the partition's lock.
//!
//! Invariant: a run is stored if and only if the partition's row, locked, has its incarnation and epoch, is not sealed and ends right
//! before it.

use std::sync::Arc;

use sqlx::Row;
use sqlx::postgres::PgRow;
use tombolo_event::{Cursor, EventId, Incarnation};
use uuid::Uuid;

use super::failure::failed;
use super::link::{APPENDING_MAX, Lease, Link, SERVER};
use super::topics::{partition_number, signed, unsigned};
use super::wakes::Wakes;
use crate::adapter::lanes::{Carrier, Job, Load, Terms};
use crate::adapter::refusal::{Place, check_incarnation, same_id, unknown_partition, unknown_topic};
use crate::{Append, Appended, Error, Kind, Read, Record, Result};

/// The rows are locked in the order of their numbers, so that no two appends, nor an append and a raise, wait for each other.
const APPEND: &str = "
WITH durable AS MATERIALIZED (
    SELECT set_config('synchronous_commit', CASE current_setting('synchronous_commit')
        WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true) AS setting
), run AS (
    SELECT * FROM unnest($2::integer[], $3::bigint[], $4::bigint[], $5::uuid[], $13::integer[])
        AS r (partition, before, last, last_id, largest)
), place AS MATERIALIZED (
    SELECT p.topic, p.partition, p.incarnation, p.epoch, p.sealed, p.last
    FROM topic AS t JOIN partition AS p ON p.topic = t.id
    WHERE t.name = $1 AND p.partition = ANY ($2) ORDER BY p.partition FOR NO KEY UPDATE OF p
), moved AS (
    UPDATE partition AS p SET last = run.last, last_id = run.last_id, largest = greatest(p.largest, run.largest)
    FROM place JOIN run USING (partition)
    WHERE p.topic = place.topic AND p.partition = place.partition
      AND place.incarnation = $6 AND place.epoch = $7 AND NOT place.sealed AND place.last = run.before
    RETURNING p.topic, p.partition
), added AS (
    INSERT INTO record (topic, partition, sequence, id, event_type, bytes)
    SELECT moved.topic, r.partition, r.sequence, r.id, r.event_type, r.bytes
    FROM unnest($8::integer[], $9::bigint[], $10::uuid[], $11::text[], $12::bytea[])
         AS r (partition, sequence, id, event_type, bytes) JOIN moved USING (partition)
)
SELECT place.topic, place.partition FROM place JOIN moved USING (partition) CROSS JOIN durable";

/// Records of one partition that follow each other.
struct Run<'a> {
    partition: u32,
    records: Vec<&'a Record>,
}

/// What was stored: the topic's number, and the partitions whose runs are in.
#[derive(Default)]
struct Landed {
    topic: i32,
    partitions: Vec<u32>,
}

/// Refuses what no table can hold.
pub(super) fn check(append: &Append) -> Result<()> {
    for record in &append.records {
        let name = record.type_name();
        if name.len() != record.event_type.len() || name.contains('\0') {
            let message = format!("event {} has the type {name:?}; expected text", record.id);
            return Err(Error::new(Kind::InvalidName, message));
        }
    }
    let last = append.records.last().map_or(0, |record| record.sequence);
    if last.max(append.epoch) > i64::MAX as u64 {
        let message = format!("append to {} has a sequence or epoch over {}", append.topic, i64::MAX);
        return Err(Error::new(Kind::Hole, message));
    }
    Ok(())
}

/// Takes loads to the server, one statement each.
pub(super) struct Appending {
    pub(super) link: Arc<Link>,
    pub(super) wakes: Arc<Wakes>,
}

impl Carrier for Appending {
    const LOADS_MAX: usize = APPENDING_MAX;

    async fn carry(&self, load: Load) {
        let landed = match self.send(&load).await {
            Ok(landed) => landed,
            Err(error) => return load.fail(&error),
        };
        self.wakes.appended(&ends(&load, &landed), landed.topic);
        for (partition, jobs) in load.runs {
            match landed.partitions.contains(&partition) {
                true => jobs.into_iter().for_each(Job::stored),
                false => self.settle_all(jobs).await,
            }
        }
    }
}

impl Appending {
    async fn send(&self, load: &Load) -> Result<Landed> {
        let terms = seen_by(&self.link, &load.terms).await?;
        let runs: Vec<Run<'_>> = load
            .runs
            .iter()
            .map(|(partition, jobs)| Run {
                partition: *partition,
                records: jobs.iter().flat_map(|job| &job.append.records).collect(),
            })
            .collect();
        let mut lease = self.link.lease_to_append().await?;
        let landed = store(&self.link, &mut lease, &terms, &runs).await?;
        lease.keep();
        Ok(landed)
    }

    async fn settle_all(&self, jobs: Vec<Job>) {
        for job in jobs {
            let settled = settle(&self.link, &job.append).await;
            job.tell(settled);
        }
    }
}

/// Where the partitions of a load end now.
fn ends(load: &Load, landed: &Landed) -> Vec<(u32, u64)> {
    let stored = load.runs.iter().filter(|(partition, _)| landed.partitions.contains(partition));
    let end = |jobs: &Vec<Job>| Some(jobs.last()?.append.records.last()?.sequence);
    stored.filter_map(|(partition, jobs)| Some((*partition, end(jobs)?))).collect()
}

/// Stores the runs that follow what is stored, on a connection in no transaction or in one that is durable.
async fn store(link: &Link, lease: &mut Lease<'_>, terms: &Terms, runs: &[Run<'_>]) -> Result<Landed> {
    let rows = link.answer(statement(terms, runs).fetch_all(&mut **lease)).await?;
    let mut landed = Landed::default();
    for row in &rows {
        landed.topic = row.try_get(0).map_err(failed)?;
        let partition: i32 = row.try_get(1).map_err(failed)?;
        landed.partitions.push(u32::try_from(partition).unwrap_or(u32::MAX));
    }
    Ok(landed)
}

fn statement<'q>(
    terms: &'q Terms,
    runs: &'q [Run<'q>],
) -> sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments> {
    let ends = || runs.iter().filter_map(|run| Some((run, run.records.first()?, run.records.last()?)));
    let partitions: Vec<i32> = ends().map(|(run, _, _)| partition_number(run.partition)).collect();
    let before: Vec<i64> = ends().map(|(_, first, _)| signed(first.sequence - 1)).collect();
    let last: Vec<i64> = ends().map(|(_, _, last)| signed(last.sequence)).collect();
    let last_id: Vec<Uuid> = ends().map(|(_, _, last)| last.id.0).collect();
    let largest: Vec<i32> = runs.iter().map(|run| largest(&run.records)).collect();
    let records = || runs.iter().flat_map(|run| run.records.iter().map(|record| (run.partition, *record)));
    let of: Vec<i32> = records().map(|(partition, _)| partition_number(partition)).collect();
    let sequences: Vec<i64> = records().map(|(_, record)| signed(record.sequence)).collect();
    let ids: Vec<Uuid> = records().map(|(_, record)| record.id.0).collect();
    let types: Vec<&str> = records().map(|(_, record)| record.type_name()).collect();
    let bytes: Vec<&[u8]> = records().map(|(_, record)| &record.bytes[..]).collect();
    sqlx::query(APPEND)
        .bind(terms.topic.as_str())
        .bind(partitions)
        .bind(before)
        .bind(last)
        .bind(last_id)
        .bind(terms.incarnation.0)
        .bind(signed(terms.epoch))
        .bind(of)
        .bind(sequences)
        .bind(ids)
        .bind(types)
        .bind(bytes)
        .bind(largest)
}

fn largest(records: &[&Record]) -> i32 {
    let size = records.iter().map(|record| record.size()).max().unwrap_or(0);
    i32::try_from(size).unwrap_or(i32::MAX)
}

/// Decides about one append under the lock of its partition: refuses it, acknowledges what is stored, completes it.
async fn settle(link: &Link, append: &Append) -> Result<Appended> {
    let mut lease = link.lease_to_append().await?;
    lease.begin(link).await?;
    let (topic, place) = hold(link, &mut lease, append).await?;
    let stored = place.stored_of(append)?;
    if stored > 0 && !acknowledges_anything(link) {
        compare(link, &mut lease, append, topic, stored).await?;
    }
    let rest = &append.records[stored..];
    let mut last = place.last;
    if let Some(end) = rest.last() {
        place.check_open(append)?;
        let run = Run { partition: append.partition, records: rest.iter().collect() };
        store(link, &mut lease, &Terms::of(append), &[run]).await?;
        last = end.sequence;
    }
    lease.commit(link).await?;
    Ok(Appended { last })
}

/// Locks the row of the append's partition.
async fn hold(link: &Link, lease: &mut Lease<'_>, append: &Append) -> Result<(i32, Place)> {
    let asked = sqlx::query(
        "SELECT p.topic, p.incarnation, p.epoch, p.sealed, p.last FROM topic AS t JOIN partition AS p ON p.topic = t.id
         WHERE t.name = $1 AND p.partition = $2 FOR NO KEY UPDATE OF p",
    );
    let asked = asked.bind(append.topic.as_str()).bind(partition_number(append.partition));
    match link.answer(asked.fetch_optional(&mut **lease)).await? {
        Some(row) => Ok((row.try_get(0).map_err(failed)?, place(&row)?)),
        None => Err(absent(link, lease, append).await?),
    }
}

fn place(row: &PgRow) -> Result<Place> {
    Ok(Place {
        incarnation: Incarnation(row.try_get(1).map_err(failed)?),
        epoch: unsigned(row.try_get(2).map_err(failed)?),
        sealed: row.try_get(3).map_err(failed)?,
        last: unsigned(row.try_get(4).map_err(failed)?),
    })
}

/// Why there is no row of the append's partition.
async fn absent(link: &Link, lease: &mut Lease<'_>, append: &Append) -> Result<Error> {
    let asked = sqlx::query(
        "SELECT t.incarnation, (SELECT count(*) FROM partition AS p WHERE p.topic = t.id) FROM topic AS t WHERE t.name = $1",
    );
    let row = link.answer(asked.bind(append.topic.as_str()).fetch_optional(&mut **lease)).await?;
    let Some(row) = row else { return Ok(unknown_topic(&append.topic, SERVER)) };
    let incarnation = Incarnation(row.try_get(0).map_err(failed)?);
    if let Err(other) = check_incarnation(&append.topic, incarnation, append.incarnation) {
        return Ok(other);
    }
    let found: i64 = row.try_get(1).map_err(failed)?;
    Ok(unknown_partition(&append.topic, append.partition, u32::try_from(found).unwrap_or(u32::MAX)))
}

/// Compares the ids of the first `stored` records with those in the log.
async fn compare(
    link: &Link,
    lease: &mut Lease<'_>,
    append: &Append,
    topic: i32,
    stored: usize,
) -> Result<()> {
    let repeated = &append.records[..stored];
    let (first, last) = (repeated[0].sequence, repeated[0].sequence + stored as u64 - 1);
    let asked = sqlx::query(
        "SELECT sequence, id FROM record WHERE topic = $1 AND partition = $2 AND sequence BETWEEN $3 AND $4 ORDER BY sequence",
    );
    let asked =
        asked.bind(topic).bind(partition_number(append.partition)).bind(signed(first)).bind(signed(last));
    let rows = link.answer(asked.fetch_all(&mut **lease)).await?;
    let mut found = rows.iter();
    for record in repeated {
        let id = match found.next() {
            Some(row) => {
                let sequence: i64 = row.try_get(0).map_err(failed)?;
                let id: Uuid = row.try_get(1).map_err(failed)?;
                (unsigned(sequence) == record.sequence).then_some(EventId(id))
            }
            None => None,
        };
        if id.is_none() {
            // It may be one that was trimmed, which this says.
            let at = Cursor::at(append.incarnation, record.sequence, record.id);
            let read = Read::to_tail(&append.topic, append.partition, at);
            let missing = super::reader::begin(link, &read, at).await.err();
            if let Some(trimmed) = missing.filter(|error| error.kind() == Kind::Trimmed) {
                return Err(trimmed);
            }
        }
        same_id(append, record, id)?;
    }
    Ok(())
}

#[cfg(feature = "mutants")]
fn acknowledges_anything(link: &Link) -> bool {
    link.mutant == Some(super::Mutant::AcknowledgeAnyRepeat)
}

#[cfg(not(feature = "mutants"))]
fn acknowledges_anything(_link: &Link) -> bool {
    false
}

/// The terms under which a load is sent.
#[cfg(feature = "mutants")]
async fn seen_by(link: &Link, terms: &Terms) -> Result<Terms> {
    if link.mutant != Some(super::Mutant::IgnoreTheEpoch) {
        return Ok(terms.clone());
    }
    let epoch = link.stored(&terms.topic).await?.topic.epoch;
    Ok(Terms { epoch, ..terms.clone() })
}

#[cfg(not(feature = "mutants"))]
#[expect(clippy::unused_async, reason = "a switch of the test build asks the server")]
async fn seen_by(_link: &Link, terms: &Terms) -> Result<Terms> {
    Ok(terms.clone())
}
