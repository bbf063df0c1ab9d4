//! One poisoned key among a thousand: what the other keys feel of it.
//!
//! The same arrivals twice by turns: once all keys are well, once every event of one key fails. The clock starts when a commit
//! is called and stops when the handler of its event runs.
//!
//! Invariant: every event of the other keys is handled, in both cases.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tombolo::{Event, Handled, Running, Service, Settings, State, View, reject};
use tombolo_db::sqlite::{Sqlite, Tx};

use crate::error::{Error, Result};
use crate::flow::{Files, Ground};
use crate::quantiles::Latencies;
use crate::rounds::Rounds;
use crate::scratch::Scratch;
use crate::server;
use crate::table::{Bar, Row, micros};

const KEYS: u64 = 1_000;
/// Commits per second.
const RATE: f64 = 400.0;
/// Commits of one round: each key twice.
const COMMITS: u64 = 2 * KEYS;
const ROUNDS: usize = 5;
const ARRIVAL_MAX: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(2);

/// Something was moved.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Moved {
    key: u64,
    number: u64,
    is_poison: bool,
}

impl Event for Moved {
    const TYPE: &'static str = "bench-mover.moved.v1";

    fn key(&self) -> String {
        self.key.to_string()
    }
}

/// When a commit was called, and when the handler of its event ran.
type Clocked = (Instant, Option<Instant>);

/// The same for each number.
#[derive(Clone, Default)]
struct Clockings(Arc<Mutex<HashMap<u64, Clocked>>>);

impl Clockings {
    fn called(&self, number: u64) {
        self.all().insert(number, (Instant::now(), None));
    }

    fn handled(&self, number: u64) {
        if let Some((_, handled)) = self.all().get_mut(&number) {
            handled.get_or_insert_with(Instant::now);
        }
    }

    fn all(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Clocked>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The latencies, once all are there.
    fn take(&self) -> Option<Latencies> {
        let mut all = self.all();
        if all.values().any(|(_, handled)| handled.is_none()) {
            return None;
        }
        let took = |(called, handled): Clocked| {
            handled.map(|handled| u64::try_from((handled - called).as_nanos()).unwrap_or(u64::MAX))
        };
        Some(all.drain().filter_map(|(_, clocked)| took(clocked)).collect())
    }
}

async fn follow(moved: Moved, State(clockings): State<Clockings>, tx: &mut Tx) -> Handled {
    if moved.is_poison {
        return Err(reject("poison"));
    }
    clockings.handled(moved.number);
    sqlx::query("INSERT INTO seen (number) VALUES (?)")
        .bind(i64::try_from(moved.number)?)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// The figure.
pub(crate) async fn measure(scratch: &Scratch) -> Result<Vec<Row>> {
    let bus = server::in_process(&scratch.path("poison-log")).await?;
    let ground = Files::new(scratch);
    let clockings = Clockings::default();
    let producer = Service::new("bench-mover", ground.fresh("mover").await?)
        .publishes::<Moved>()
        .bus(bus.clone())
        .start(Settings::default())
        .await?;
    let consumer = Service::new("bench-follower", ground.fresh("follower").await?)
        .state(clockings.clone())
        .view(View::new("moves", 1).on(follow))
        .bus(bus.clone())
        .start(Settings::default())
        .await?;
    let next = std::cell::Cell::new(0);
    let round = async |poison: Option<u64>| {
        let first = next.replace(next.get() + COMMITS);
        move_all(&producer, &clockings, first, poison).await
    };
    round(None).await?;
    // Another key is poisoned in each round: a key that stays parked keeps what comes after it from the handler.
    let keys = std::cell::Cell::new(0);
    let poisoned = async || round(Some(keys.replace(keys.get() + 1))).await;
    let rounds = Rounds::measure(ROUNDS, async || round(None).await, poisoned).await?;
    producer.shutdown().await;
    consumer.shutdown().await;
    bus.close().await;
    let what = "commit to handled of 999 keys beside a poisoned one, p99 / of 1,000 keys that are well, p99";
    Ok(vec![Row::of(what, &rounds, Bar::AtMost(1.2), micros)])
}

async fn move_all(
    producer: &Running<Sqlite>,
    clockings: &Clockings,
    first: u64,
    poison: Option<u64>,
) -> Result<f64> {
    let mut arrivals = tokio::time::interval(Duration::from_secs_f64(1.0 / RATE));
    for number in first..first + COMMITS {
        arrivals.tick().await;
        let key = number % KEYS;
        // Keys that were poisoned before stay parked, so they are not counted.
        let is_poison = poison == Some(key);
        if poison.is_none_or(|poison| key > poison) && key > ROUNDS as u64 {
            clockings.called(number);
        }
        let mut tx = producer.app.begin().await?;
        tx.publish(&Moved { key, number, is_poison })?;
        tx.commit().await?;
    }
    let began = Instant::now();
    loop {
        if let Some(latencies) = clockings.take() {
            return Ok(latencies.us(0.99));
        }
        if began.elapsed() > ARRIVAL_MAX {
            return Err(Error::new("not every event of the keys that are well was handled"));
        }
        tokio::time::sleep(LOOK).await;
    }
}
