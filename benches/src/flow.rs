//! The whole path under as much as it can take: from commits in one service to the view of another.
//!
//! The yardstick is the same path written by hand without Tombolo, as a careful team would: an outbox table, a task that takes
//! 100 rows at a time, a consumer that applies them in one transaction with a cursor, and removes them only then. It has no
//! bus, so nothing can be replayed and there can be one consumer; ours goes through the synced log. Producer's and
//! consumer's databases, tables, rows and transactions (100 events in each) are the same for both.
//!
//! Invariant: both ends hold every event before the clock stops.

mod by_hand;
mod ground;
mod sqlite;
mod postgres;

use std::sync::Arc;
use std::time::Instant;

use tombolo::{Handled, Running, Service, Settings, View};
use tombolo_bus::Bus;
use tombolo_db::Transaction;

use crate::error::Result;
use crate::rounds::Rounds;
use crate::scratch::Scratch;
use crate::server;
use crate::table::{Bar, Row, rate};

pub(crate) use by_hand::Path as HandPath;
pub(crate) use ground::{Files, Ground, Server, Store, Ticked, until_count};

/// Events of one round.
const EVENTS: i64 = 30_000;
/// Events of one transaction of the producer.
pub(crate) const TRANSACTION_EVENTS: i64 = 100;
const ROUNDS: usize = 5;
const WHAT: &str =
    "sustained throughput, commit to view, 100 events in a transaction, one insert in the handler";

/// On every database that can be had.
pub(crate) async fn measure(scratch: &Scratch) -> Result<Vec<Row>> {
    let mut rows = vec![on(&Files::new(scratch), scratch).await?];
    rows.push(match Server::from_env() {
        Some(server) => on(&server, scratch).await?,
        None => Row::absent(&format!("{WHAT} (postgres)"), Server::absent(), Bar::AtLeast(0.5)),
    });
    Ok(rows)
}

async fn on<G: Ground>(ground: &G, scratch: &Scratch) -> Result<Row> {
    let path = Path::start(ground, scratch, "flow").await?;
    let hand = by_hand::Path::start(ground).await?;
    let mut next = (0, 0);
    let by_hand = async || {
        next.0 += EVENTS;
        hand.carry(next.0 - EVENTS..next.0).await
    };
    let ours = async || {
        next.1 += EVENTS;
        path.carry(next.1 - EVENTS..next.1).await
    };
    let rounds = Rounds::measure(ROUNDS, by_hand, ours).await?;
    path.end().await;
    let what = format!("{WHAT} ({}) / the same by hand, without a bus", ground.name());
    Ok(Row::of(&what, &rounds, Bar::AtLeast(0.5), rate))
}

/// What tracing costs: the same path with and without a subscriber that writes every span and event of level info.
pub(crate) async fn observed(scratch: &Scratch) -> Result<Vec<Row>> {
    use tracing_subscriber::EnvFilter;
    let silent = || EnvFilter::new("off");
    let subscriber = tracing_subscriber::fmt().with_writer(std::io::sink).with_env_filter(silent());
    let subscriber = subscriber.with_filter_reloading();
    let level = subscriber.reload_handle();
    subscriber.init();
    let path = Path::start(&Files::new(scratch), scratch, "observed").await?;
    let mut next = 0;
    let mut rounds = Rounds::default();
    for _ in 0..=ROUNDS {
        let mut figures = [0.0; 2];
        for (figure, filter) in figures.iter_mut().zip([silent(), EnvFilter::new("info")]) {
            level.reload(filter)?;
            *figure = path.carry(next..next + EVENTS).await?;
            next += EVENTS;
        }
        rounds.0.push(crate::rounds::Round { yardstick: figures[0], subject: figures[1] });
    }
    level.reload(silent())?;
    path.end().await;
    // The first round warms everything up.
    rounds.0.remove(0);
    let what = "the same path (sqlite) with tracing at info and metrics / without tracing";
    Ok(vec![Row::of(what, &rounds, Bar::AtLeast(0.95), rate)])
}

/// A producer, a bus, and a consumer, in this process.
pub(crate) struct Path<D: Store> {
    pub(crate) producer: Running<D>,
    pub(crate) consumer: Running<D>,
    bus: Arc<dyn Bus>,
}

impl<D: Store> Path<D> {
    /// On the embedded log, on disk.
    async fn start<G: Ground<Database = D>>(ground: &G, scratch: &Scratch, name: &str) -> Result<Self> {
        let bus = server::in_process(&scratch.path(&format!("{name}-{}-log", ground.name()))).await?;
        Self::start_on(ground, bus).await
    }

    pub(crate) async fn start_on<G: Ground<Database = D>>(ground: &G, bus: Arc<dyn Bus>) -> Result<Self> {
        let producer =
            producer(ground.fresh("bench-source").await?).bus(bus.clone()).start(Settings::default()).await?;
        let consumer =
            consumer(ground.fresh("bench-sight").await?).bus(bus.clone()).start(Settings::default()).await?;
        Ok(Self { producer, consumer, bus })
    }

    /// Events per second from the first commit until the view holds the last.
    pub(crate) async fn carry(&self, numbers: std::ops::Range<i64>) -> Result<f64> {
        let began = Instant::now();
        for first in numbers.clone().step_by(TRANSACTION_EVENTS as usize) {
            commit(&self.producer, first..first + TRANSACTION_EVENTS).await?;
        }
        ground::until_count(self.consumer.app.database(), numbers.end).await?;
        Ok((numbers.end - numbers.start) as f64 / began.elapsed().as_secs_f64())
    }

    pub(crate) async fn end(self) {
        self.producer.shutdown().await;
        self.consumer.shutdown().await;
        self.bus.close().await;
    }
}

/// A service that publishes.
pub(crate) fn producer<D: Store>(database: D) -> Service<D> {
    Service::new("bench-source", database).publishes::<Ticked>()
}

/// A service with a view of one insert.
pub(crate) fn consumer<D: Store>(database: D) -> Service<D> {
    Service::new("bench-sight", database).view(View::new("sight", 1).on(see::<D>))
}

async fn see<D: Store>(ticked: Ticked, tx: &mut D::Tx) -> Handled {
    D::insert_seen(tx, ticked.number).await?;
    Ok(())
}

/// One transaction with a row and an event for each number.
pub(crate) async fn commit<D: Store>(producer: &Running<D>, numbers: std::ops::Range<i64>) -> Result<()> {
    commit_in(&producer.app, numbers).await
}

pub(crate) async fn commit_in<D: Store>(app: &tombolo::App<D>, numbers: std::ops::Range<i64>) -> Result<()> {
    let mut tx = app.begin().await?;
    for number in numbers {
        let ticked = Ticked::new(number);
        D::insert_tick(&mut tx, number, &ticked.text).await?;
        tx.outgoing().publish(&ticked)?;
    }
    tx.commit().await?;
    Ok(())
}
