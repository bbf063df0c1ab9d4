//! The checks, after everything has settled: I1 to I5.
//!
//! - **I1** what was acknowledged is delivered. **I2** what is delivered was committed. **I3** per key, sequences are
//!   contiguous and in order. **I4** every event is applied once per subscription. **I5** a view equals the fold of its topics.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::{Instant, interval};
use tombolo::Event;
use tombolo_bus::{Identity, Read};
use tombolo_event::{Cursor, Envelope, ServiceName};

use crate::load::Load;
use crate::process::{Outcome, Placed, Seen, Which, World};
use crate::reader::{Count, Reader, Rows};

/// How long settling may stand still.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often the databases are looked at.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How many such looks there are for each look at what the services say of themselves.
const LOOKS_PER_STATUS: u32 = 50;

/// A promise that was broken, as opposed to a run that went wrong.
#[derive(Debug)]
pub(crate) struct Broken(pub(crate) String);

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Broken {}

fn broken<T>(what: String) -> Outcome<T> {
    Err(Box::new(Broken(what)))
}

/// What was checked.
pub(crate) struct Checked {
    pub(crate) events: usize,
}

/// What waits in the producer's outbox.
async fn outbox_rows(world: &World<'_>) -> Outcome<i64> {
    let mut orders = world.scene.databases.read(Which::Producer).await?;
    let rows = orders.count(Count::Waiting).await?;
    orders.close().await?;
    Ok(rows)
}

/// Whether something is half done: a request, a row in the outbox, an event that is not in the view.
pub(crate) async fn is_work_in_flight(world: &World<'_>, load: &Load) -> Outcome<bool> {
    let behind = match world.scene.databases.read(Which::Consumer).await {
        Ok(mut history) => usize::try_from(history.count_copies().await?)? < load.count(),
        Err(_) => true,
    };
    Ok(behind || load.outstanding() > 0 || outbox_rows(world).await? > 0)
}

/// Waits until nothing is left to do, then checks everything.
pub(crate) async fn settled(world: &World<'_>, acknowledged: &[String]) -> Outcome<Checked> {
    settled_but(world, acknowledged, &Except::default()).await
}

/// What is different by an operator's word.
#[derive(Debug, Default)]
pub(crate) struct Except {
    /// Orders that the producer published and does not know any more: an older copy of its database took its place.
    pub(crate) forgotten: Vec<String>,
    /// Orders that were parked and dropped, so that they are not in the view.
    pub(crate) dropped: Vec<String>,
}

/// The same with exceptions.
pub(crate) async fn settled_but(
    world: &World<'_>,
    acknowledged: &[String],
    except: &Except,
) -> Outcome<Checked> {
    let mut orders = world.scene.databases.read(Which::Producer).await?;
    let mut history = world.scene.databases.read(Which::Consumer).await?;
    kept(&orders.orders().await?, acknowledged)?;
    settle(world, &mut orders, &mut history, except).await?;
    let ordered = orders.orders().await?;
    let copied = history.copied().await?;
    orders.close().await?;
    history.close().await?;
    let placed = topic::<Placed>(world, "orders").await?;
    let seen = topic::<Seen>(world, "history").await?;
    let committed = ids(ordered.iter().map(|row| &row.0).chain(&except.forgotten))?;
    let published = ids(placed.iter().map(|event| &event.id))?;
    let applied = ids(copied.iter().map(|row| &row.0).chain(&except.dropped))?;
    let reacted = ids(seen.iter().map(|event| &event.id))?;
    same("I1/I2: events of the topic and rows of the producer", &published, &committed)?;
    same("I4/I5: rows of the view and events of the topic", &applied, &published)?;
    same("I4: what the reactor published and what it read", &reacted, &published)?;
    letters(world, &published)?;
    in_order("the topic", placed.iter().map(|event| (&event.key, event.n)))?;
    in_order("the view", copied.iter().map(|row| (&row.1, row.2)))?;
    Ok(Checked { events: placed.len() })
}

/// How many events are parked at the consumer.
pub(crate) async fn parked(world: &World<'_>) -> Outcome<i64> {
    let mut history = world.scene.databases.read(Which::Consumer).await?;
    let parked = history.count(Count::Parked).await?;
    history.close().await?;
    Ok(parked)
}

/// The table of the build that is read.
pub(crate) async fn live(world: &World<'_>) -> Outcome<String> {
    let mut history = world.scene.databases.read(Which::Consumer).await?;
    let live = history.copies().await?;
    history.close().await?;
    Ok(live)
}

/// How many generations of partitions the producer's topic has on the bus.
pub(crate) async fn generations(world: &World<'_>) -> Outcome<usize> {
    let bus = tombolo_bus::connect(&world.bus_url(), &Identity::Operator).await?;
    Ok(bus.topic(&ServiceName::new("orders")?).await?.generations.each().len())
}

/// Each order has one letter, however often it came.
fn letters(world: &World<'_>, published: &BTreeSet<&String>) -> Outcome<()> {
    let Some(office) = &world.scene.office else { return Ok(()) };
    let arrived = office.arrived();
    same("letters and events of the topic", &arrived.keys.keys().collect(), published)?;
    match arrived.keys.iter().find(|(_, keys)| keys.len() != 1) {
        Some((order, keys)) => broken(format!("order {order} has letters under {} keys", keys.len())),
        None => Ok(()),
    }
}

/// What was acknowledged is there; that it is in the view, too, follows from what is compared later.
fn kept(ordered: &Rows, acknowledged: &[String]) -> Outcome<()> {
    let ordered: BTreeSet<&String> = ordered.iter().map(|row| &row.0).collect();
    match acknowledged.iter().find(|id| !ordered.contains(id)) {
        Some(lost) => broken(format!("I1: order {lost} was acknowledged and the producer does not know it")),
        None => Ok(()),
    }
}

/// Waits until nothing is left to do. What has stopped by name never settles.
async fn settle(
    world: &World<'_>,
    orders: &mut Reader,
    history: &mut Reader,
    except: &Except,
) -> Outcome<()> {
    let mut look = interval(LOOK_EVERY);
    let (mut looks, mut before, mut moved) = (0, Left::default(), Instant::now());
    loop {
        look.tick().await;
        looks += 1;
        if looks % LOOKS_PER_STATUS == 0
            && let Some(stopped) = world.stopped(world.scene.cast).await
        {
            return broken(stopped);
        }
        let mut left = Left::now(orders, history).await?;
        left.rows += except.forgotten.len() as i64;
        left.copies += except.dropped.len() as i64;
        if left.is_nothing() {
            return Ok(());
        }
        if left != before {
            (before, moved) = (left, Instant::now());
        } else if moved.elapsed() > PATIENCE {
            return broken(format!("nothing moved for {PATIENCE:?}, something is lost or stuck: {left:?}"));
        }
    }
}

/// What there is to do.
#[derive(Debug, Default, PartialEq, Eq)]
struct Left {
    rows: i64,
    waiting: i64,
    copies: i64,
    reactions_waiting: i64,
    parked: i64,
    /// By the last of the consumer's subscriptions.
    applied: i64,
}

impl Left {
    async fn now(orders: &mut Reader, history: &mut Reader) -> Outcome<Self> {
        Ok(Self {
            rows: orders.count(Count::Orders).await?,
            waiting: orders.count(Count::Waiting).await?,
            copies: history.count_copies().await?,
            parked: history.count(Count::Parked).await?,
            reactions_waiting: history.count(Count::Waiting).await?,
            applied: history.count(Count::Applied).await?,
        })
    }

    fn is_nothing(&self) -> bool {
        self.waiting == 0
            && self.reactions_waiting == 0
            && self.parked == 0
            && self.copies >= self.rows
            && self.applied >= self.rows
    }
}

/// The beginning of what was said, for the table.
pub(crate) fn short(said: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 160;
    said.chars().take(SHOWN_CHARS_MAX).collect::<String>().replace('|', "/")
}

/// Every event of a topic; sequences must be contiguous from 1 in each partition.
async fn topic<E: Event>(world: &World<'_>, name: &str) -> Outcome<Vec<E>> {
    let bus = tombolo_bus::connect(&world.bus_url(), &Identity::Operator).await?;
    let name = ServiceName::new(name)?;
    let topic = bus.topic(&name).await?;
    let mut events = Vec::new();
    for partition in 0..topic.partitions() {
        let mut expected = 1;
        let mut batches = bus.read(Read::to_tail(&name, partition, Cursor::start(topic.incarnation))).await?;
        while let Some(batch) = batches.next().await {
            for record in batch?.records {
                if record.sequence != expected {
                    let found = record.sequence;
                    return broken(format!(
                        "I3: {name}/{partition} has {found} where {expected} was expected"
                    ));
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
            return broken(format!("I4: order {id} is there twice"));
        }
    }
    Ok(ids)
}

fn same(what: &str, left: &BTreeSet<&String>, right: &BTreeSet<&String>) -> Outcome<()> {
    let differ: Vec<_> = left.symmetric_difference(right).take(3).collect();
    if differ.is_empty() {
        Ok(())
    } else {
        broken(format!("{what} differ: {} and {}, for example in {differ:?}", left.len(), right.len()))
    }
}

fn in_order<'a>(place: &str, rows: impl Iterator<Item = (&'a String, i64)>) -> Outcome<()> {
    let mut last: BTreeMap<&String, i64> = BTreeMap::new();
    for (key, n) in rows {
        if let Some(before) = last.insert(key, n).filter(|before| *before >= n) {
            return broken(format!("I3: in {place}, key {key} has {n} after {before}"));
        }
    }
    Ok(())
}
