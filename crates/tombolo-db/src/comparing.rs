//! Comparing two builds of a view, table by table: every difference is noticed, and a bounded sample of them is shown.
//!
//! ```text
//!  rows of the old ──┐  each row into one of 4,096 buckets by its key: count and sum of hashes
//!  rows of the new ──┘  buckets that differ hold the differences: the rows of a few of them are read again
//! ```
//!
//! Invariant: however large the tables are, what is held in memory is bounded; and both are read in one snapshot.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use serde_json::{Map, Value};
use tombolo_event::KeyHash;

use crate::views::{ROWS_SHOWN_MAX, refusal};
use crate::{Build, Compared, Difference, Result, Sample};

/// How many buckets rows fall into.
const BUCKETS: usize = 4_096;
/// The rows that are read again, at most, unless one bucket alone has more.
const ROWS_HELD_MAX: u64 = 20_000;
/// A column of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) name: String,
    /// Whether it belongs to the primary key.
    pub(crate) key: bool,
}

/// What both tables have, so that it can be compared.
pub(crate) struct Common {
    pub(crate) columns: Vec<String>,
    /// The primary key, if both have the same; else a row is known by all of its columns.
    #[cfg_attr(
        not(any(feature = "sqlite", feature = "postgres", feature = "mysql")),
        expect(dead_code, reason = "a document has its key outside")
    )]
    pub(crate) key: Vec<String>,
}

impl Common {
    fn of(old: &[Column], new: &[Column]) -> Self {
        let both = old.iter().filter(|column| new.iter().any(|other| other.name == column.name));
        let columns: Vec<String> = both.map(|column| column.name.clone()).collect();
        let key_of = |columns: &[Column]| {
            let key = columns.iter().filter(|column| column.key).map(|column| column.name.clone());
            key.collect::<Vec<_>>()
        };
        let (key, other) = (key_of(old), key_of(new));
        let key = if key == other && !key.is_empty() { key } else { columns.clone() };
        Self { columns, key }
    }
}

/// One moment of the database, in which both builds are read.
#[async_trait]
pub(crate) trait Snapshot: Send {
    /// The columns of a build's table; none if the build has no table of that name (but an index, or nothing).
    async fn columns(&mut self, build: &Build, table: &str) -> Result<Vec<Column>>;

    /// Reads every row: its key as a JSON array, and itself as a JSON object.
    async fn each(
        &mut self,
        build: &Build,
        table: &str,
        common: &Common,
        with: &mut (dyn FnMut(String, String) + Send),
    ) -> Result<()>;
}

/// Compares all tables of two builds, whose names are `names`.
pub(crate) async fn compare(
    snapshot: &mut impl Snapshot,
    names: BTreeSet<String>,
    [old, new]: [&Build; 2],
    sample: Sample,
) -> Result<Vec<Compared>> {
    if let Some(build) = [old, new].into_iter().find(|build| build.tables.is_none()) {
        return Err(refusal::no_tables(build));
    }
    let mut all = Vec::new();
    for name in names {
        let columns = [snapshot.columns(old, &name).await?, snapshot.columns(new, &name).await?];
        if columns.iter().any(|columns| !columns.is_empty()) {
            all.push(compare_table(snapshot, name, [old, new], columns, sample).await?);
        }
    }
    Ok(all)
}

async fn compare_table(
    snapshot: &mut impl Snapshot,
    table: String,
    builds: [&Build; 2],
    [old, new]: [Vec<Column>; 2],
    sample: Sample,
) -> Result<Compared> {
    let common = Common::of(&old, &new);
    let is_there = [!old.is_empty(), !new.is_empty()];
    let mut digests = [Digest::default(), Digest::default()];
    for side in [Side::Old, Side::New].into_iter().filter(|side| is_there[*side as usize]) {
        let digest = &mut digests[side as usize];
        let mut add = |key: String, row: String| digest.add(&key, &row);
        snapshot.each(builds[side as usize], &table, &common, &mut add).await?;
    }
    let [old_digest, new_digest] = &digests;
    let is_compared = is_there == [true, true];
    let buckets = if is_compared { old_digest.differing(new_digest, sample) } else { Vec::new() };
    let mut differing = Differing::new(&buckets);
    for side in [Side::Old, Side::New].into_iter().filter(|_| !buckets.is_empty()) {
        let mut add = |key: String, row: String| differing.add(side, &key, row);
        snapshot.each(builds[side as usize], &table, &common, &mut add).await?;
    }
    Ok(Compared {
        table,
        old_rows: is_there[0].then_some(old_digest.rows),
        new_rows: is_there[1].then_some(new_digest.rows),
        only_old_columns: lacking(&old, &new),
        only_new_columns: lacking(&new, &old),
        same: is_compared && buckets.is_empty(),
        differences: differing.sample(sample),
    })
}

/// The names of `one` that `other` does not have.
pub(crate) fn lacking(one: &[Column], other: &[Column]) -> Vec<String> {
    let lacks = one.iter().filter(|column| other.iter().all(|found| found.name != column.name));
    lacks.map(|column| column.name.clone()).collect()
}

/// A table's rows, counted and summed in buckets.
pub(crate) struct Digest {
    pub(crate) rows: u64,
    buckets: Vec<(u64, u64)>,
}

impl Default for Digest {
    fn default() -> Self {
        Self { rows: 0, buckets: vec![(0, 0); BUCKETS] }
    }
}

impl Digest {
    /// Takes one row in, with its key: both as JSON.
    pub(crate) fn add(&mut self, key: &str, row: &str) {
        let (count, sum) = &mut self.buckets[bucket(key)];
        *count += 1;
        *sum = sum.wrapping_add(KeyHash::of(row).0 | 1);
        self.rows += 1;
    }

    /// The buckets to read again, so that differences are found; none if there are none.
    pub(crate) fn differing(&self, other: &Self, sample: Sample) -> Vec<usize> {
        let from = (sample.seed % BUCKETS as u64) as usize;
        let order = (from..BUCKETS).chain(0..from);
        let mut held = 0;
        let mut chosen = Vec::new();
        for bucket in order.filter(|&bucket| self.buckets[bucket] != other.buckets[bucket]) {
            held += self.buckets[bucket].0 + other.buckets[bucket].0;
            if held > ROWS_HELD_MAX && !chosen.is_empty() {
                break;
            }
            chosen.push(bucket);
        }
        chosen
    }
}

/// The rows of a few buckets of both tables: by key, those of the old and those of the new.
pub(crate) struct Differing {
    chosen: Vec<bool>,
    rows: BTreeMap<String, [Vec<String>; 2]>,
}

/// Which of the two builds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Old,
    New,
}

impl Differing {
    pub(crate) fn new(buckets: &[usize]) -> Self {
        let mut chosen = vec![false; BUCKETS];
        buckets.iter().for_each(|&bucket| chosen[bucket] = true);
        Self { chosen, rows: BTreeMap::new() }
    }

    pub(crate) fn add(&mut self, side: Side, key: &str, row: String) {
        if self.chosen[bucket(key)] {
            self.rows.entry(key.to_owned()).or_default()[side as usize].push(row);
        }
    }

    /// The rows that are not the same, up to the sample's size.
    pub(crate) fn sample(self, sample: Sample) -> Vec<Difference> {
        let differences = self.rows.into_values().flat_map(|[old, new]| {
            let (olds, news) = (beyond(&old, &new), beyond(&new, &old));
            let pairs = 0..olds.len().max(news.len());
            let pair = move |at: usize| Difference { old: object(olds.get(at)), new: object(news.get(at)) };
            pairs.map(pair).collect::<Vec<_>>()
        });
        differences.take(sample.rows.min(ROWS_SHOWN_MAX)).collect()
    }
}

/// What `one` has beyond `other`; a row that is there several times counts each time.
fn beyond(one: &[String], other: &[String]) -> Vec<String> {
    let mut rest = one.to_vec();
    for row in other {
        if let Some(at) = rest.iter().position(|found| found == row) {
            rest.remove(at);
        }
    }
    rest
}

fn object(row: Option<&String>) -> Option<Map<String, Value>> {
    // What the database's own JSON functions wrote can be read.
    row.map(|row| serde_json::from_str(row).unwrap_or_default())
}

fn bucket(key: &str) -> usize {
    (KeyHash::of(key).0 % BUCKETS as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: Sample = Sample { rows: 10, seed: 7 };

    fn row(key: u32, value: u32) -> (String, String) {
        (format!("[{key}]"), format!("{{\"k\": {key}, \"v\": {value}}}"))
    }

    fn compare(old: &[(String, String)], new: &[(String, String)], sample: Sample) -> Vec<Difference> {
        let digest = |rows: &[(String, String)]| {
            let mut digest = Digest::default();
            rows.iter().for_each(|(key, row)| digest.add(key, row));
            digest
        };
        let mut differing = Differing::new(&digest(old).differing(&digest(new), sample));
        old.iter().for_each(|(key, row)| differing.add(Side::Old, key, row.clone()));
        new.iter().for_each(|(key, row)| differing.add(Side::New, key, row.clone()));
        differing.sample(sample)
    }

    #[test]
    fn one_row_among_many_is_found_whichever_way_it_differs() {
        let same: Vec<_> = (0..50_000).map(|n| row(n, n)).collect();
        assert!(compare(&same, &same.iter().rev().cloned().collect::<Vec<_>>(), SAMPLE).is_empty());
        let value = |row: &Option<Map<String, Value>>| row.as_ref().map(|row| row["v"].clone());
        for (other, expected) in [
            ([&same[..30_000], &[row(30_000, 1)], &same[30_001..]].concat(), (Some(30_000), Some(1))),
            ([&same[..30_000], &same[30_001..]].concat(), (Some(30_000), None)),
            ([&same[..], &[row(77_777, 5)]].concat(), (None, Some(5))),
            ([&same[..], &same[9..10]].concat(), (None, Some(9))),
        ] {
            let found = compare(&same, &other, SAMPLE);
            assert_eq!(found.len(), 1);
            let values = (value(&found[0].old), value(&found[0].new));
            assert_eq!(values, (expected.0.map(Value::from), expected.1.map(Value::from)));
        }
    }

    #[test]
    fn of_many_differences_a_bounded_sample_is_shown_and_another_seed_shows_others() {
        let (old, new): (Vec<_>, Vec<_>) = (0..50_000).map(|n| (row(n, n), row(n, n + 1))).unzip();
        let first = compare(&old, &new, SAMPLE);
        assert_eq!((first.len(), &first), (10, &compare(&old, &new, SAMPLE)));
        assert_ne!(first, compare(&old, &new, Sample { seed: 2_000, ..SAMPLE }));
    }
}
