//! Events that cannot be handled: what is parked, what waits behind it, what flows on, and how it comes back in order.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tombolo::sqlite::{Sqlite, Tx};
use tombolo::status::State as Status;
use tombolo::{Clock, Handled, Running, Service, Settings, State, View, reject};
use tombolo_bus::Bus;
use tombolo_bus::embedded::{Log, Options};
use tombolo_db::mutant::Mutant;
use tombolo_db::{Cursors, Outbox, ParkedEvent, ParkedFilter, Parking};

use crate::support::{
    App, Ground, Placed, copies, eventually, place, subscription, until_copied, with_copies,
};

/// Longer than any pause between two tries.
pub(crate) const LATER: Duration = Duration::from_secs(2 * 3_600);

/// What is wrong with the world, and how often it was met.
#[derive(Clone, Default)]
pub(crate) struct Trouble {
    /// Orders that fail.
    bad: Arc<Mutex<BTreeSet<String>>>,
    /// Whether they are rejected rather than failing.
    rejects: Arc<AtomicBool>,
    tries: Arc<AtomicU32>,
}

impl Trouble {
    pub(crate) fn with(orders: &[&str]) -> Self {
        let trouble = Self::default();
        trouble.bad.lock().unwrap().extend(orders.iter().map(|&order| order.to_owned()));
        trouble
    }

    pub(crate) fn rejecting(self) -> Self {
        self.rejects.store(true, Ordering::SeqCst);
        self
    }

    pub(crate) fn mend(&self, order: &str) {
        self.bad.lock().unwrap().remove(order);
    }

    pub(crate) fn is_over(&self) {
        self.bad.lock().unwrap().clear();
    }

    fn tries(&self) -> u32 {
        self.tries.load(Ordering::SeqCst)
    }
}

/// Fails for bad orders, after it has written.
pub(crate) async fn copy_unless_bad(event: Placed, State(trouble): State<Trouble>, tx: &mut Tx) -> Handled {
    sqlx::query("INSERT INTO copies (id, cents) VALUES (?, ?)")
        .bind(&event.order)
        .bind(event.cents)
        .execute(&mut **tx)
        .await?;
    if trouble.bad.lock().unwrap().contains(&event.order) {
        trouble.tries.fetch_add(1, Ordering::SeqCst);
        if trouble.rejects.load(Ordering::SeqCst) {
            return Err(reject("the order is bad"));
        }
        return Err(std::io::Error::other("the order is bad").into());
    }
    Ok(())
}

pub(crate) async fn history(ground: &Ground, trouble: &Trouble, clock: &Clock) -> Running<Sqlite> {
    ground.start(history_service(ground, trouble, clock)).await
}

pub(crate) fn history_service(ground: &Ground, trouble: &Trouble, clock: &Clock) -> Service<Sqlite> {
    with_copies(Service::new("history", ground.database("history")))
        .clock(clock.clone())
        .state(trouble.clone())
        .view(View::new("copies", 1).on(copy_unless_bad))
}

async fn parked(app: &App) -> Vec<ParkedEvent> {
    app.database().parked(&ParkedFilter::default(), 100_000).await.unwrap()
}

pub(crate) async fn until_parked(app: &App, count: usize) -> Vec<ParkedEvent> {
    eventually(&format!("{count} parked"), || async { parked(app).await.len() == count }).await;
    parked(app).await
}

/// The values of one order as they were applied.
pub(crate) async fn applied(app: &App, order: &str) -> Vec<i64> {
    let all = copies(app).await;
    all.into_iter().filter(|(id, _)| id == order).map(|(_, cents)| cents).collect()
}

#[tokio::test]
async fn a_failing_key_is_parked_and_the_others_flow_on() {
    let ground = Ground::new();
    let (trouble, clock) = (Trouble::with(&["bad"]), Clock::stopped());
    let (orders, history) = (ground.orders().await, history(&ground, &trouble, &clock).await);
    for n in 0..40 {
        place(&orders.app, &format!("o{n}"), n).await;
        if n % 10 == 0 {
            place(&orders.app, "bad", n).await;
        }
    }
    assert_eq!(until_copied(&history.app, 40).await.len(), 40);
    let parked = until_parked(&history.app, 4).await;
    assert_eq!(trouble.tries(), 3, "a few tries at once, and none for what waits behind");
    let tries: Vec<u32> = parked.iter().map(|event| event.tries.attempts).collect();
    assert_eq!(tries, [3, 0, 0, 0]);
    assert!(parked[0].tries.error.as_ref().unwrap().contains("the order is bad"), "{parked:?}");
    eventually("nothing behind", || async {
        subscription(&history.app).is_some_and(|status| status.state == Status::Live)
    })
    .await;
    let status = subscription(&history.app).unwrap();
    assert_eq!((status.parked_keys, status.parked_events), (1, 4));
    let ms = |at: jiff::Timestamp| at.as_millisecond();
    assert_eq!(status.oldest_parked.map(ms), Some(ms(parked[0].parked_at)));
}

#[tokio::test]
async fn parked_events_come_back_in_order_when_their_time_comes() {
    let ground = Ground::new();
    let (trouble, clock) = (Trouble::with(&["bad"]), Clock::stopped());
    let (orders, history) = (ground.orders().await, history(&ground, &trouble, &clock).await);
    for n in 0..20 {
        place(&orders.app, "bad", n).await;
    }
    until_parked(&history.app, 20).await;
    clock.advance(LATER);
    eventually("one more try", || async { trouble.tries() == 4 }).await;
    let parked = until_parked(&history.app, 20).await;
    assert_eq!(
        (parked[0].tries.attempts, parked[1].tries.attempts),
        (4, 0),
        "it stops at the first that fails"
    );
    trouble.is_over();
    clock.advance(LATER);
    until_parked(&history.app, 0).await;
    place(&orders.app, "bad", 20).await;
    until_copied(&history.app, 21).await;
    assert_eq!(applied(&history.app, "bad").await, (0..21).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_rejection_is_parked_at_once_and_waits_until_it_is_told() {
    let ground = Ground::new();
    let (trouble, clock) = (Trouble::with(&["bad"]).rejecting(), Clock::stopped());
    let (orders, history) = (ground.orders().await, history(&ground, &trouble, &clock).await);
    place(&orders.app, "bad", 1).await;
    let parked = until_parked(&history.app, 1).await;
    assert_eq!((parked[0].tries.attempts, parked[0].tries.retry_at), (1, None));
    assert_eq!(trouble.tries(), 1);
}

#[tokio::test]
async fn what_is_parked_outlives_the_process() {
    let ground = Ground::new();
    let (trouble, clock) = (Trouble::with(&["bad"]), Clock::stopped());
    let orders = ground.orders().await;
    for n in 0..4 {
        let history = history(&ground, &trouble, &clock).await;
        place(&orders.app, "bad", n).await;
        place(&orders.app, &format!("good{n}"), n).await;
        until_parked(&history.app, n as usize + 1).await;
        until_copied(&history.app, n as usize + 1).await;
        // Dropped as in a crash, or given up as in a clean stop.
        if n % 2 == 0 {
            history.shutdown().await;
        }
    }
    trouble.is_over();
    clock.advance(LATER);
    let history = history(&ground, &trouble, &clock).await;
    until_parked(&history.app, 0).await;
    assert_eq!(applied(&history.app, "bad").await, [0, 1, 2, 3]);
}

#[tokio::test]
async fn many_keys_failing_alike_leave_the_partition_stuck_and_park_no_more() {
    let ground = Ground::new();
    let (trouble, clock) = (Trouble::default(), Clock::stopped());
    trouble.bad.lock().unwrap().extend((0..60).map(|n| format!("o{n}")));
    let (orders, history) = (ground.orders().await, history(&ground, &trouble, &clock).await);
    for n in 0..60 {
        place(&orders.app, &format!("o{n}"), n).await;
    }
    eventually("stuck", || async {
        subscription(&history.app).is_some_and(|status| status.state == Status::Stuck)
    })
    .await;
    assert_eq!(parked(&history.app).await.len(), 20);
    let status = subscription(&history.app).unwrap();
    let why = status.partitions.iter().find_map(|partition| partition.error.clone()).unwrap();
    assert!(why.contains("keys failed one after the other") && why.contains("the order is bad"), "{why}");
    trouble.is_over();
    clock.advance(LATER);
    assert_eq!(until_copied(&history.app, 60).await.len(), 60);
    until_parked(&history.app, 0).await;
    eventually("live", || async {
        subscription(&history.app).is_some_and(|status| status.state == Status::Live)
    })
    .await;
}

#[tokio::test]
async fn a_redrive_under_load_is_never_overtaken() {
    let ground = Ground::new();
    let (trouble, clock) = (Trouble::default(), Clock::stopped());
    let (orders, history) = (ground.orders().await, history(&ground, &trouble, &clock).await);
    let keys = ["a", "b", "c"];
    for n in 0..150 {
        // Each key goes bad and good again while its events keep coming.
        let key = keys[n as usize % 3];
        match n % 50 {
            10 => _ = trouble.bad.lock().unwrap().insert(key.to_owned()),
            35 => {
                trouble.is_over();
                clock.advance(LATER);
            }
            _ => {}
        }
        for key in keys {
            place(&orders.app, key, n).await;
        }
    }
    trouble.is_over();
    clock.advance(LATER);
    until_copied(&history.app, 450).await;
    until_parked(&history.app, 0).await;
    for key in keys {
        assert_eq!(applied(&history.app, key).await, (0..150).collect::<Vec<_>>(), "{key}");
    }
    assert!(trouble.tries() > 0, "nothing ever failed");
}

async fn panic_once(event: Placed, State(trouble): State<Trouble>, tx: &mut Tx) -> Handled {
    sqlx::query("INSERT INTO copies (id, cents) VALUES (?, ?)")
        .bind(event.order)
        .bind(event.cents)
        .execute(&mut **tx)
        .await?;
    assert!(trouble.tries.fetch_add(1, Ordering::SeqCst) > 0, "the first try panics");
    Ok(())
}

#[tokio::test]
async fn a_panic_is_a_rejection() {
    let ground = Ground::new();
    let orders = ground.orders().await;
    let history = with_copies(Service::new("history", ground.database("history")))
        .state(Trouble::default())
        .view(View::new("copies", 1).on(panic_once));
    let history = ground.start(history).await;
    place(&orders.app, "o1", 1).await;
    let parked = until_parked(&history.app, 1).await;
    assert!(parked[0].tries.error.as_ref().unwrap().contains("the first try panics"), "{parked:?}");
    place(&orders.app, "o2", 2).await;
    assert_eq!(until_copied(&history.app, 1).await, [("o2".to_owned(), 2)]);
}

#[tokio::test]
async fn one_percent_of_poison_is_parked_exactly_and_nothing_else_is() {
    let ground = Ground::new();
    let (trouble, clock) = (Trouble::default(), Clock::stopped());
    let bad: Vec<String> = (0..20).map(|n| format!("o{}", n * 100 + 37)).collect();
    trouble.bad.lock().unwrap().extend(bad.iter().cloned());
    let orders = ground.orders().await;
    for n in 0..2_000 {
        place(&orders.app, &format!("o{n}"), n).await;
    }
    // Started with everything waiting, so that batches are large.
    let history = history(&ground, &trouble, &clock).await;
    assert_eq!(until_copied(&history.app, 1_980).await.len(), 1_980);
    let parked = until_parked(&history.app, 20).await;
    // By what is on record: a database that was busy for a moment costs a try that nobody counts.
    let attempts: Vec<u32> = parked.iter().map(|event| event.tries.attempts).collect();
    assert_eq!(attempts, [3; 20]);
    trouble.is_over();
    clock.advance(LATER);
    until_parked(&history.app, 0).await;
    let mut all: Vec<i64> = copies(&history.app).await.into_iter().map(|(_, cents)| cents).collect();
    all.sort_unstable();
    assert_eq!(all, (0..2_000).collect::<Vec<_>>());
}

/// Whether the order of a key holds when it is parked and comes back, in a database that may be broken on purpose.
async fn comes_back_in_order(mutant: Option<Mutant>) -> bool {
    let ground = Ground::new();
    let (trouble, clock) = (Trouble::with(&["bad"]), Clock::stopped());
    let orders = ground.orders().await;
    let database = ground.database("history");
    let database = mutant.map_or(database.clone(), |mutant| database.with_mutant(mutant));
    let history = with_copies(Service::new("history", database))
        .clock(clock.clone())
        .state(trouble.clone())
        .view(View::new("copies", 1).on(copy_unless_bad));
    let history = ground.start(history).await;
    for n in 0..5 {
        place(&orders.app, "bad", n).await;
    }
    place(&orders.app, "last", 5).await;
    eventually("everything passed", || async {
        let status = subscription(&history.app);
        status.is_some_and(|status| status.parked_events > 0 && status.state == Status::Live)
            && copies(&history.app).await.len() == 1
            && trouble.tries() == 3
    })
    .await;
    eventually("five behind the cursor", || async {
        let cursors = history.app.database().cursors().await.unwrap();
        cursors.iter().map(|cursor| cursor.cursor.sequence).sum::<u64>() == 6
    })
    .await;
    trouble.is_over();
    clock.advance(LATER);
    until_parked(&history.app, 0).await;
    applied(&history.app, "bad").await == (0..5).collect::<Vec<_>>()
}

#[tokio::test]
async fn a_key_that_is_parked_without_its_followers_is_caught() {
    assert!(comes_back_in_order(None).await);
    assert!(!comes_back_in_order(Some(Mutant::ParkWithoutFollowers)).await);
}

/// As if the database were away for some time: nobody's fault.
async fn copy_when_reachable(event: Placed, State(trouble): State<Trouble>, tx: &mut Tx) -> Handled {
    if !trouble.bad.lock().unwrap().is_empty() {
        trouble.tries.fetch_add(1, Ordering::SeqCst);
        return Err(sqlx::Error::PoolTimedOut.into());
    }
    crate::support::copy(event, tx).await
}

#[tokio::test]
async fn a_database_that_is_away_parks_nothing_and_counts_no_try() {
    let ground = Ground::new();
    let trouble = Trouble::with(&["everything"]);
    let orders = ground.orders().await;
    let history = with_copies(Service::new("history", ground.database("history")))
        .state(trouble.clone())
        .view(View::new("copies", 1).on(copy_when_reachable));
    let history = ground.start(history).await;
    for n in 0..30 {
        place(&orders.app, &format!("o{n}"), n).await;
    }
    eventually("many tries", || async { trouble.tries() > 10 }).await;
    let cursors = history.app.database().cursors().await.unwrap();
    assert!(cursors.iter().all(|cursor| cursor.attempts == 0) && parked(&history.app).await.is_empty());
    trouble.is_over();
    assert_eq!(until_copied(&history.app, 30).await.len(), 30);
    assert!(parked(&history.app).await.is_empty());
}

/// The environment of a process that handles an event which ends it: where its files are.
const CHILD: &str = "TOMBOLO_TEST_DEADLY";

async fn copy_unless_deadly(event: Placed, tx: &mut Tx) -> Handled {
    if event.order == "deadly" {
        std::process::abort();
    }
    crate::support::copy(event, tx).await
}

/// One life of a process with both services and the log on disk; ends well once everything is handled or parked.
#[tokio::test]
async fn a_life_with_a_deadly_event() {
    let Ok(folder) = std::env::var(CHILD) else { return };
    let folder = std::path::PathBuf::from(folder);
    let (log, _) = Log::open(&folder.join("log"), Options::default()).unwrap();
    let settings = || Settings { replica: Some(1), ..Settings::default() };
    let database = |name: &str| Sqlite::open(folder.join(name).to_str().unwrap()).unwrap();
    let bus = || Arc::clone(&log) as Arc<dyn Bus>;
    let orders = Service::new("orders", database("orders.db")).publishes::<Placed>().bus(bus());
    let orders = orders.start(settings()).await.unwrap();
    if orders.app.database().depth().await.unwrap().rows == 0 && !folder.join("placed").exists() {
        let mut tx = orders.app.begin().await.unwrap();
        for n in 0..20 {
            tx.publish(&Placed { order: format!("o{n}"), cents: n }).unwrap();
        }
        tx.publish(&Placed { order: "deadly".into(), cents: 20 }).unwrap();
        tx.publish(&Placed { order: "deadly".into(), cents: 21 }).unwrap();
        for n in 22..40 {
            tx.publish(&Placed { order: format!("o{n}"), cents: n }).unwrap();
        }
        tx.commit().await.unwrap();
        std::fs::write(folder.join("placed"), "").unwrap();
    }
    let history = with_copies(Service::new("history", database("history.db")))
        .view(View::new("copies", 1).on(copy_unless_deadly))
        .bus(bus());
    let history = history.start(settings()).await.unwrap();
    until_copied(&history.app, 38).await;
    let parked = until_parked(&history.app, 2).await;
    assert_eq!((parked[0].tries.attempts, parked[1].tries.attempts), (3, 0));
    assert!(parked[0].tries.error.as_ref().unwrap().contains("the process died"), "{parked:?}");
}

#[test]
fn an_event_that_kills_the_process_each_time_is_parked_after_its_attempts() {
    let folder = tempfile::tempdir().unwrap();
    let mut deaths = 0;
    loop {
        let mut life = std::process::Command::new(std::env::current_exe().unwrap());
        life.args(["--exact", "parking::a_life_with_a_deadly_event"]).env(CHILD, folder.path());
        let life = life.output().unwrap();
        if life.status.success() {
            break;
        }
        let said = String::from_utf8_lossy(&life.stdout);
        assert!(!said.contains("FAILED"), "{said}");
        deaths += 1;
        assert!(deaths <= 4, "it is tried once unseen and three times on record");
    }
    assert!(deaths >= 3, "{deaths}");
}
