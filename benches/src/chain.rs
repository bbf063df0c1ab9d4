//! The chain that many teams run: PostgreSQL, NATS JetStream, PostgreSQL; beside the same by hand, from outbox to copy
//! without a bus, woken by NOTIFY.
//!
//! Whether a row is there says a trigger on the table of the copies, which tells a connection of the bench at the commit: the
//! same for both. The clock starts when the producer's transaction begins.
//!
//! Invariant: every event is seen before a round ends, in both ways.

use std::cell::Cell;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use sqlx::PgPool;
use sqlx::postgres::PgListener;
use tombolo_bus::Identity;
use tombolo_db::postgres::Postgres;

use crate::error::{Error, Result};
use crate::flow::{self, HandPath, Path, Server, Store};
use crate::quantiles::Latencies;
use crate::rounds::Rounds;
use crate::table::{Bar, Row, micros, rate};
use crate::visible::arrivals;

const ROUNDS: usize = 5;
/// Events of a round of throughput.
const EVENTS: i64 = 20_000;
/// Commits per second, and how long they arrive.
const RATE: f64 = 200.0;
const ROUND_SECONDS: f64 = 3.0;
/// How long the last may take to arrive.
const ARRIVAL_MAX: Duration = Duration::from_secs(20);
const NATS_VARIABLE: &str = "TOMBOLO_TEST_NATS";
const VISIBLE: &str =
    "commit to visible, PostgreSQL → NATS → PostgreSQL, 200/s, p50 / by hand, woken by NOTIFY";
const FLOW: &str = "sustained throughput, PostgreSQL → NATS → PostgreSQL / by hand, 100 per transaction";

/// Both figures.
pub(crate) async fn measure() -> Result<Vec<Row>> {
    let (Some(server), Ok(nats)) = (Server::from_env(), std::env::var(NATS_VARIABLE)) else {
        let why = format!("{}, and {NATS_VARIABLE} one of NATS", Server::absent());
        let absent = |what, bar| Row::absent(what, why.clone(), bar);
        return Ok(vec![absent(VISIBLE, Bar::AtMost(1.5)), absent(FLOW, Bar::AtLeast(0.5))]);
    };
    on(&server, &nats).await
}

async fn on(server: &Server, nats: &str) -> Result<Vec<Row>> {
    let address = format!("{nats}/bench-{}?accept=unsynced", uuid::Uuid::new_v4().simple());
    let bus = tombolo_bus::connect(&address, &Identity::Operator).await?;
    let path = Path::start_on(server, bus).await?;
    let hand = HandPath::start(server).await?;
    let (mut ours, mut by_hand) = (0, 0);
    let flow = Rounds::measure(
        ROUNDS,
        async || hand.carry(next(&mut by_hand, EVENTS)).await,
        async || path.carry(next(&mut ours, EVENTS)).await,
    );
    let flow = flow.await?;
    let (told, hand_told) =
        (Told::of(path.consumer.app.database().pool()).await?, Told::of(hand.consumer.pool()).await?);
    waking(hand.producer.pool()).await?;
    let relay = tokio::spawn(relay(hand.producer.clone(), hand.consumer.clone()));
    let round = Cell::new(0);
    let visible = Rounds::measure(
        ROUNDS,
        async || {
            round.set(round.get() + 1);
            let commit = |number| by_hand_committing(hand.producer.clone(), number);
            paced(round.get(), &mut by_hand, &hand_told, commit).await
        },
        async || {
            paced(round.get(), &mut ours, &told, |number| committing(path.producer.app.clone(), number)).await
        },
    );
    let visible = visible.await?;
    relay.abort();
    path.end().await;
    Ok(vec![
        Row::of(VISIBLE, &visible, Bar::AtMost(1.5), micros),
        Row::of(FLOW, &flow, Bar::AtLeast(0.5), rate),
    ])
}

/// The next so many numbers.
fn next(from: &mut i64, count: i64) -> Range<i64> {
    *from += count;
    *from - count..*from
}

async fn committing(app: tombolo::App<Postgres>, number: i64) -> Result<()> {
    flow::commit_in(&app, number..number + 1).await
}

async fn by_hand_committing(producer: Postgres, number: i64) -> Result<()> {
    producer.hand_commit(number..number + 1).await
}

/// Every commit by hand wakes who listens.
async fn waking(pool: &PgPool) -> Result<()> {
    let trigger = "CREATE FUNCTION wake() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM pg_notify('hand', ''); RETURN NULL; END $$;
        CREATE TRIGGER wake AFTER INSERT ON hand_outbox FOR EACH STATEMENT EXECUTE FUNCTION wake()";
    sqlx::raw_sql(trigger).execute(pool).await?;
    Ok(())
}

/// Carries what is in the outbox, whenever it is woken.
async fn relay(producer: Postgres, consumer: Postgres) -> Result<()> {
    const CARRIED_ROWS: i64 = 100;
    let mut woken = PgListener::connect_with(producer.pool()).await?;
    woken.listen("hand").await?;
    loop {
        let rows = producer.hand_take(CARRIED_ROWS).await?;
        if rows.is_empty() {
            woken.recv().await?;
            continue;
        }
        consumer.hand_apply(&rows).await?;
        // Exactly those: of two at once, the one with the earlier position may commit later, and must not go with the other.
        let done: Vec<i64> = rows.iter().map(|(position, _)| *position).collect();
        let remove = sqlx::query("DELETE FROM hand_outbox WHERE position = ANY($1)").bind(done);
        remove.execute(producer.pool()).await?;
    }
}

/// When each copy was told of.
struct Told(Arc<Mutex<HashMap<i64, Instant>>>);

impl Told {
    async fn of(pool: &PgPool) -> Result<Self> {
        let trigger = "CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN PERFORM pg_notify('seen', NEW.number::text); RETURN NULL; END $$;
            CREATE TRIGGER tell AFTER INSERT ON seen FOR EACH ROW EXECUTE FUNCTION tell()";
        sqlx::raw_sql(trigger).execute(pool).await?;
        let mut listener = PgListener::connect_with(pool).await?;
        listener.listen("seen").await?;
        let told = Arc::new(Mutex::new(HashMap::new()));
        let heard = Arc::clone(&told);
        tokio::spawn(async move {
            while let Ok(said) = listener.recv().await {
                if let Ok(number) = said.payload().parse() {
                    heard.lock().unwrap_or_else(PoisonError::into_inner).insert(number, Instant::now());
                }
            }
        });
        Ok(Self(told))
    }

    fn at(&self, number: i64) -> Option<Instant> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&number).copied()
    }

    async fn until(&self, numbers: Range<i64>) -> Result<()> {
        let arrived = async {
            for number in numbers {
                while self.at(number).is_none() {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }
        };
        tokio::time::timeout(ARRIVAL_MAX, arrived).await.map_err(|_| Error::new("not everything arrived"))
    }
}

/// Commits at the arrivals of a round, each in a task of its own; returns the median until each was told of, in µs.
async fn paced<F: Future<Output = Result<()>> + Send + 'static>(
    round: u64,
    from: &mut i64,
    told: &Told,
    commit: impl Fn(i64) -> F,
) -> Result<f64> {
    let arrivals = arrivals(round, RATE, ROUND_SECONDS);
    let numbers = next(from, i64::try_from(arrivals.len())?);
    let (began, mut begun, mut commits) = (tokio::time::Instant::now(), Vec::new(), Vec::new());
    for (at, number) in arrivals.into_iter().zip(numbers.clone()) {
        tokio::time::sleep_until(began + Duration::from_nanos(at)).await;
        begun.push((number, Instant::now()));
        commits.push(tokio::spawn(commit(number)));
    }
    try_join_all(commits).await?.into_iter().collect::<Result<()>>()?;
    told.until(numbers).await?;
    let took = begun.into_iter().filter_map(|(number, began)| Some(told.at(number)?.duration_since(began)));
    let took: Latencies = took.map(|took| u64::try_from(took.as_nanos()).unwrap_or(u64::MAX)).collect();
    Ok(took.p50_us())
}
