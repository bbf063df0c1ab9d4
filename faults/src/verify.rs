//! The checks, after everything has settled: I1 to I5.
//!
//! - **I1** what was acknowledged is delivered. **I2** what is delivered was committed. **I3** per key, sequences are
//!   contiguous and in order. **I4** every event is applied once per subscription. **I5** a view equals the fold of its topics.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::{interval, timeout};
use tombolo::Event;
use tombolo_bus::{Identity, Read};
use tombolo_event::{Cursor, Envelope, ServiceName};

use crate::databases::Reader;
use crate::process::{Outcome, Placed, Seen, Which, World};

/// How long settling may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// (id, key, n), in the order of application.
pub(crate) type Rows = Vec<(String, String, i64)>;

/// The rows of an outbox.
const WAITING: &str = "SELECT count(*) FROM tombolo.outbox";
/// How many events the subscriptions have behind them, all together.
const APPLIED: &str = "SELECT CAST(coalesce(sum(sequence), 0) AS BIGINT) FROM tombolo.cursor";
/// What is in the view.
pub(crate) const COPIES: &str = "SELECT count(*) FROM copies";

/// What was checked.
pub(crate) struct Checked {
    pub(crate) events: usize,
}

/// What waits in the producer's outbox.
pub(crate) async fn outbox_rows(world: &World<'_>) -> Outcome<i64> {
    world.databases.read(Which::Producer).await?.count(WAITING).await
}

/// Waits until nothing is left to do, then checks everything.
pub(crate) async fn settled(world: &World<'_>, acknowledged: &[String]) -> Outcome<Checked> {
    let mut orders = world.databases.read(Which::Producer).await?;
    let mut history = world.databases.read(Which::Consumer).await?;
    settle(&mut orders, &mut history).await?;
    let ordered = orders.rows("SELECT id, key, n FROM orders ORDER BY place").await?;
    let copied = history.rows("SELECT id, key, n FROM copies ORDER BY place").await?;
    let placed = topic::<Placed>(world, "orders").await?;
    let seen = topic::<Seen>(world, "history").await?;
    let committed = ids(ordered.iter().map(|row| &row.0))?;
    let published = ids(placed.iter().map(|event| &event.id))?;
    let applied = ids(copied.iter().map(|row| &row.0))?;
    let reacted = ids(seen.iter().map(|event| &event.id))?;
    same("I1/I2: events of the topic and rows of the producer", &published, &committed)?;
    same("I4/I5: rows of the view and events of the topic", &applied, &published)?;
    same("I4: what the reactor published and what it read", &reacted, &published)?;
    if let Some(lost) = acknowledged.iter().find(|id| !applied.contains(*id)) {
        return Err(format!("I1: order {lost} was acknowledged and is not in the view").into());
    }
    in_order("the topic", placed.iter().map(|event| (&event.key, event.n)))?;
    in_order("the view", copied.iter().map(|row| (&row.1, row.2)))?;
    Ok(Checked { events: placed.len() })
}

async fn settle(orders: &mut Reader, history: &mut Reader) -> Outcome<()> {
    let mut look = interval(Duration::from_millis(10));
    let quiet = async {
        loop {
            look.tick().await;
            let rows = orders.count("SELECT count(*) FROM orders").await?;
            let waiting = orders.count(WAITING).await?;
            let copies = history.count(COPIES).await?;
            let reactions = history.count(WAITING).await?;
            let cursors = history.count(APPLIED).await?;
            if waiting == 0 && reactions == 0 && copies >= rows && cursors >= 2 * rows {
                return Outcome::Ok(());
            }
        }
    };
    timeout(PATIENCE, quiet)
        .await
        .map_err(|_| format!("nothing settled within {PATIENCE:?}: something is lost or stuck"))?
}

/// Every event of a topic; sequences must be contiguous from 1 in each partition.
async fn topic<E: Event>(world: &World<'_>, name: &str) -> Outcome<Vec<E>> {
    let bus = tombolo_bus::connect(&world.bus_url(), &Identity::Operator).await?;
    let name = ServiceName::new(name)?;
    let topic = bus.topic(&name).await?;
    let mut events = Vec::new();
    for partition in 0..topic.partitions {
        let mut expected = 1;
        let mut batches = bus.read(Read::to_tail(&name, partition, Cursor::start(topic.incarnation))).await?;
        while let Some(batch) = batches.next().await {
            for record in batch?.records {
                if record.sequence != expected {
                    return Err(format!(
                        "I3: {name}/{partition} has {} where {expected} was expected",
                        record.sequence
                    )
                    .into());
                }
                expected += 1;
                events.push(tombolo_event::event::read(&Envelope::decode(record.bytes)?)?);
            }
        }
    }
    Ok(events)
}

fn ids<'a>(all: impl Iterator<Item = &'a String>) -> Outcome<BTreeSet<&'a String>> {
    let mut ids = BTreeSet::new();
    for id in all {
        if !ids.insert(id) {
            return Err(format!("I4: order {id} is there twice").into());
        }
    }
    Ok(ids)
}

fn same(what: &str, left: &BTreeSet<&String>, right: &BTreeSet<&String>) -> Outcome<()> {
    let differ: Vec<_> = left.symmetric_difference(right).take(3).collect();
    if differ.is_empty() {
        Ok(())
    } else {
        Err(format!("{what} differ: {} and {}, for example in {differ:?}", left.len(), right.len()).into())
    }
}

fn in_order<'a>(place: &str, rows: impl Iterator<Item = (&'a String, i64)>) -> Outcome<()> {
    let mut last: BTreeMap<&String, i64> = BTreeMap::new();
    for (key, n) in rows {
        if let Some(before) = last.insert(key, n).filter(|before| *before >= n) {
            return Err(format!("I3: in {place}, key {key} has {n} after {before}").into());
        }
    }
    Ok(())
}
