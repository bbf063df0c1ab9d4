//! A topic that is divided anew while events flow: of each key everything is applied once and in order, whatever crashes,
//! waits parked, moves between replicas or is built anew.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::StatusCode;
use tombolo::sqlite::{Sqlite, Tx};
use tombolo::testing::{Part, World};
use tombolo::{Attempt, Effect, Freshness, Handled, HandlerError, Reactor, Service, State, View};
use tombolo_bus::Bus;
use tombolo_db::mutant::Mutant;
use tombolo_db::{Recovery, Requests};
use tombolo_event::operator::{Action, Ask, Goal, Outcome, Place, Plan, Preview, Request, of_topic};
use tombolo_event::{Generations, KeyHash, Position, ServiceName, barrier};
use uuid::Uuid;

use crate::parking::{LATER, Trouble, applied, copy_unless_bad};
use crate::support::{App, Placed, copies, copy, eventually, place, with_copies};
use crate::world::history;

/// How many keys the tests write.
const KEYS: i64 = 12;
/// Longer than anybody who is told to look waits.
const BOUND: Duration = Duration::from_secs(10);

fn orders_in(partitions: u32) -> impl Fn(Sqlite) -> Service<Sqlite> + Send + Sync + 'static {
    move |database| {
        let service = Service::new("orders", database).partitions(partitions).publishes::<Placed>();
        service.setup(async |database: Sqlite| {
            let table =
                "CREATE TABLE IF NOT EXISTS orders (id TEXT PRIMARY KEY, cents INTEGER NOT NULL) STRICT";
            sqlx::raw_sql(table).execute(database.pool()).await?;
            Ok(())
        })
    }
}

fn key(n: i64) -> String {
    format!("k{}", n % KEYS)
}

/// The events `from` up to `to`, of all keys in turn, one transaction each.
async fn place_from(app: &App, from: i64, to: i64) {
    for n in from..to {
        place(app, &key(n), n).await;
    }
}

fn topic() -> ServiceName {
    ServiceName::new("orders").unwrap()
}

fn ask(partitions: u32) -> Ask {
    let action = Action::Divide { partitions };
    Ask { subscription: of_topic(&topic()), asked_by: "ann@host".into(), action }
}

/// Has the topic divided anew, and waits until the database has done it.
async fn divide(orders: &Part, partitions: u32) -> Outcome {
    let answer = orders.post("/tombolo/requests", ask(partitions)).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text());
    let ids: Vec<Uuid> =
        serde_json::from_value(answer.json::<serde_json::Value>()["requests"].clone()).unwrap();
    outcome(&orders.app(), ids[0]).await
}

async fn outcome(app: &App, id: Uuid) -> Outcome {
    let request =
        || async { app.database().request(id).await.unwrap().and_then(|found: Request| found.outcome) };
    eventually("an outcome", || async { request().await.is_some() }).await;
    request().await.unwrap()
}

async fn generations(world: &World) -> Vec<u32> {
    world.bus().topic(&topic()).await.unwrap().generations.each().to_vec()
}

/// Fails unless the first `count` events were applied, each once, and those of a key in order.
fn assert_whole(applied: &[(String, i64)], count: i64) {
    for n in 0..KEYS {
        let of_key: Vec<i64> =
            applied.iter().filter(|(order, _)| *order == key(n)).map(|(_, cents)| *cents).collect();
        assert!(of_key.is_sorted(), "{}: {of_key:?}", key(n));
    }
    let mut all: Vec<i64> = applied.iter().map(|(_, cents)| *cents).collect();
    all.sort_unstable();
    assert_eq!(all, (0..count).collect::<Vec<_>>());
}

#[tokio::test]
async fn everything_of_a_key_is_applied_in_order_while_the_topic_grows_and_shrinks() {
    let world = World::new();
    let (orders, history) = (world.start(orders_in(2)).await, world.start(history).await);
    let mut placed = 0;
    for partitions in [8, 2, 5] {
        place_from(&orders.app(), placed, placed + 60).await;
        let app = orders.app();
        let (outcome, ()) =
            tokio::join!(divide(&orders, partitions), place_from(&app, placed + 60, placed + 120));
        assert!(outcome.done, "{outcome:?}");
        place_from(&orders.app(), placed + 120, placed + 132).await;
        placed += 132;
    }
    world.settle().await;
    assert_whole(&copies(&history.app()).await, placed);
    assert_eq!(generations(&world).await, [2, 8, 2, 5]);
    let tails = world.bus().tails(&topic()).await.unwrap();
    for generation in [0..2, 2..10, 10..12, 12..17] {
        let its = tails.iter().filter(|tail| generation.contains(&tail.partition));
        assert!(its.map(|tail| tail.sequence).sum::<u64>() > 0, "nothing is in {generation:?}");
    }
}

#[tokio::test]
async fn a_crash_at_any_point_of_a_division_keeps_the_order() {
    for point in barrier::ALL.iter().filter(|point| point.starts_with("divide.")) {
        let world = World::new();
        let (orders, history) = (world.start(orders_in(3)).await, world.start(history).await);
        place_from(&orders.app(), 0, 40).await;
        orders.crash_at(point);
        let asked = orders.try_request(http::Method::POST, "/tombolo/requests", Some(&ask(5))).await;
        assert!(asked.is_none_or(|asked| asked.status == StatusCode::ACCEPTED), "{point}");
        orders.crashed().await;
        orders.restart().await;
        place_from(&orders.app(), 40, 80).await;
        world.settle().await;
        assert_whole(&copies(&history.app()).await, 80);
        assert_eq!(generations(&world).await, [3, 5], "{point}: the request was not forgotten");
    }
}

#[tokio::test]
async fn a_reader_that_crashes_between_the_generations_goes_on_in_order() {
    for point in barrier::ALL.iter().filter(|point| point.starts_with("subscription.")) {
        for nth in [1, 4] {
            let world = World::new();
            let (orders, history) = (world.start(orders_in(2)).await, world.start(history).await);
            place_from(&orders.app(), 0, 30).await;
            history.crash_at_nth(point, nth);
            let app = orders.app();
            let ((), outcome) = tokio::join!(place_from(&app, 30, 60), divide(&orders, 4));
            assert!(outcome.done);
            place_from(&app, 60, 90).await;
            history.crashed().await;
            history.restart().await;
            world.settle().await;
            assert_whole(&copies(&history.app()).await, 90);
        }
    }
}

fn reacting(database: Sqlite) -> Service<Sqlite> {
    with_copies(Service::new("history", database)).react(Reactor::from_start("copier").on(copy))
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_wait_for_each_others_partitions() {
    let world = World::new();
    let (orders, first) = (world.start(orders_in(4)).await, world.start(reacting).await);
    let second = world.replicate(&first).await;
    place_from(&orders.app(), 0, 100).await;
    let app = orders.app();
    let (outcome, ()) = tokio::join!(divide(&orders, 6), place_from(&app, 100, 200));
    assert!(outcome.done);
    let third = world.replicate(&first).await;
    second.crash().await;
    place_from(&app, 200, 300).await;
    assert!(divide(&orders, 3).await.done);
    place_from(&app, 300, 400).await;
    second.restart().await;
    world.settle().await;
    assert_whole(&copies(&third.app()).await, 400);
}

/// A reader that begins with everything there, of several generations.
async fn reads_from_the_start(mutant: Option<Mutant>) -> Vec<(String, i64)> {
    let world = World::new();
    let orders = world.start(orders_in(2)).await;
    place_from(&orders.app(), 0, 200).await;
    assert!(divide(&orders, 3).await.done);
    place_from(&orders.app(), 200, 400).await;
    let start = move |database: Sqlite| {
        history(mutant.map_or(database.clone(), |mutant| database.with_mutant(mutant)))
    };
    let late = world.start(start).await;
    world.settle().await;
    copies(&late.app()).await
}

#[tokio::test]
async fn a_new_reader_reads_the_generations_one_after_the_other() {
    assert_whole(&reads_from_the_start(None).await, 400);
}

#[tokio::test]
async fn a_reader_that_enters_a_generation_early_is_caught() {
    let applied = reads_from_the_start(Some(Mutant::EntersEarly)).await;
    let of_key = |n| applied.iter().filter(move |(order, _)| *order == key(n)).map(|(_, cents)| *cents);
    assert!((0..KEYS).any(|n| !of_key(n).is_sorted()), "the order held all the same");
}

#[tokio::test]
async fn a_reader_that_started_with_what_was_new_misses_nothing_of_a_new_generation() {
    let world = World::new();
    let orders = world.start(orders_in(2)).await;
    place_from(&orders.app(), 0, 20).await;
    world.settle().await;
    let from_now = |database: Sqlite| {
        with_copies(Service::new("history", database)).react(Reactor::from_now("copier").on(copy))
    };
    let history = world.start(from_now).await;
    world.settle().await;
    history.stop().await;
    place_from(&orders.app(), 20, 40).await;
    assert!(divide(&orders, 4).await.done);
    place_from(&orders.app(), 40, 80).await;
    world.settle().await;
    history.restart().await;
    world.settle().await;
    let mut found: Vec<i64> = copies(&history.app()).await.into_iter().map(|(_, cents)| cents).collect();
    found.sort_unstable();
    assert_eq!(found, (20..80).collect::<Vec<_>>());
}

fn troubled(trouble: &Trouble) -> impl Fn(Sqlite) -> Service<Sqlite> + Send + Sync + 'static {
    let trouble = trouble.clone();
    move |database| {
        with_copies(Service::new("history", database))
            .state(trouble.clone())
            .react(Reactor::from_start("copier").on(copy_unless_bad))
    }
}

#[tokio::test]
async fn what_comes_of_a_parked_key_waits_behind_it_across_generations() {
    let world = World::new();
    world.expect_parked();
    let trouble = Trouble::with(&["k1", "k2"]);
    let (orders, history) = (world.start(orders_in(2)).await, world.start(troubled(&trouble)).await);
    place_from(&orders.app(), 0, 36).await;
    world.settle().await;
    assert!(divide(&orders, 5).await.done);
    place_from(&orders.app(), 36, 60).await;
    assert!(divide(&orders, 3).await.done);
    place_from(&orders.app(), 60, 84).await;
    world.settle().await;
    let parked = history.parked().await;
    assert_eq!(parked.len(), 14, "3 + 2 + 2 of two keys");
    let tried = parked.iter().filter(|event| event.tries.attempts > 0);
    assert!(tried.clone().all(|event| event.partition < 2) && tried.count() == 2, "only the first of each");
    // It is remembered over a restart, and beside another replica.
    history.stop().await;
    history.restart().await;
    let second = world.replicate(&history).await;
    world.settle().await;
    assert_eq!(second.parked().await.len(), 14);
    assert_eq!(copies(&history.app()).await.len(), 70, "the other keys flow on");
    trouble.mend("k1");
    world.advance(LATER).await;
    assert_eq!(applied(&history.app(), "k1").await, (0..7).map(|n| 1 + n * KEYS).collect::<Vec<_>>());
    assert!(applied(&history.app(), "k2").await.is_empty());
    trouble.is_over();
    world.advance(LATER).await;
    assert_eq!(history.parked().await, []);
    assert_whole(&copies(&history.app()).await, 84);
}

#[tokio::test]
async fn a_redrive_that_is_told_does_not_overtake_what_is_parked_before() {
    let world = World::new();
    world.expect_parked();
    let trouble = Trouble::with(&["k1"]).rejecting();
    let (orders, history) = (world.start(orders_in(2)).await, world.start(troubled(&trouble)).await);
    place_from(&orders.app(), 0, 24).await;
    assert!(divide(&orders, 5).await.done);
    place_from(&orders.app(), 24, 48).await;
    world.settle().await;
    assert_eq!(history.parked().await.len(), 4);
    let redrive = || async {
        let ask = Ask {
            subscription: "copier".into(),
            asked_by: "ann@host".into(),
            action: Action::Redrive(tombolo_event::operator::Which::default()),
        };
        assert_eq!(history.post("/tombolo/requests", ask).await.status, StatusCode::ACCEPTED);
        world.settle().await;
    };
    redrive().await;
    assert_eq!((history.parked().await.len(), applied(&history.app(), "k1").await), (4, vec![]));
    trouble.is_over();
    redrive().await;
    assert_eq!(history.parked().await, []);
    assert_whole(&copies(&history.app()).await, 48);
}

#[derive(Clone, Default)]
struct Letters(Arc<Mutex<Vec<(String, i64)>>>);

async fn send(event: Placed, State(letters): State<Letters>, _: Attempt) -> Result<(), HandlerError> {
    let mut letters = letters.0.lock().unwrap();
    let letter = (event.order, event.cents);
    // A world makes each call twice.
    if letters.last() != Some(&letter) {
        letters.push(letter);
    }
    Ok(())
}

#[tokio::test]
async fn effects_call_out_in_order_across_generations() {
    let world = World::new();
    let letters = Letters::default();
    let outside = letters.clone();
    let mailing = move |database: Sqlite| {
        Service::new("mail", database).state(outside.clone()).effect(Effect::from_start("letters").on(send))
    };
    let (orders, mail) = (world.start(orders_in(2)).await, world.start(mailing).await);
    place_from(&orders.app(), 0, 40).await;
    let app = orders.app();
    let (outcome, ()) = tokio::join!(divide(&orders, 5), place_from(&app, 40, 80));
    assert!(outcome.done);
    world.settle().await;
    let sent = letters.0.lock().unwrap().clone();
    for n in 0..KEYS {
        let mut of_key: Vec<i64> =
            sent.iter().filter(|(order, _)| *order == key(n)).map(|(_, cents)| *cents).collect();
        assert!(of_key.is_sorted(), "{}: {of_key:?}", key(n));
        of_key.dedup();
        assert_eq!(of_key, (0..80).filter(|cents| cents % KEYS == n).collect::<Vec<_>>());
    }
    drop(mail);
}

#[tokio::test]
async fn a_view_is_built_anew_from_all_generations() {
    let world = World::new();
    let (orders, history) = (world.start(orders_in(2)).await, world.start(viewing(1)).await);
    place_from(&orders.app(), 0, 60).await;
    assert!(divide(&orders, 5).await.done);
    place_from(&orders.app(), 60, 120).await;
    let app = orders.app();
    let ((), ()) = tokio::join!(history.deploy(viewing(2)), place_from(&app, 120, 180));
    assert!(divide(&orders, 3).await.done);
    place_from(&orders.app(), 180, 240).await;
    world.settle().await;
    let live = history.app().view("copies").await.unwrap();
    assert_eq!(live.version(), 2);
    let sql = live.sql("SELECT id, cents FROM {copies} ORDER BY n").unwrap();
    let all: Vec<(String, i64)> = sqlx::query_as(sql).fetch_all(history.database().pool()).await.unwrap();
    assert_whole(&all, 240);
}

fn viewing(version: u32) -> impl Fn(Sqlite) -> Service<Sqlite> + Send + Sync + 'static {
    move |database| {
        let table =
            "CREATE TABLE {copies} (n INTEGER PRIMARY KEY, id TEXT NOT NULL, cents INTEGER NOT NULL) STRICT";
        Service::new("history", database).view(View::new("copies", version).tables(table).on(copy_into_view))
    }
}

async fn copy_into_view(event: Placed, tx: &mut Tx) -> Handled {
    let sql = tx.sql("INSERT INTO {copies} (id, cents) VALUES (?, ?)")?;
    sqlx::query(sql).bind(event.order).bind(event.cents).execute(&mut **tx).await?;
    Ok(())
}

#[tokio::test]
async fn a_position_is_found_though_its_event_went_to_the_new_generation() {
    let world = World::new();
    let (orders, history) = (world.start(orders_in(2)).await, world.start(history).await);
    place_from(&orders.app(), 0, 12).await;
    assert!(divide(&orders, 3).await.done);
    let committed = orders.publish(&Placed { order: "k5".into(), cents: 12 }).await;
    let position = committed.positions[0].clone();
    assert!(position.partition >= 2, "{position}");
    let waits = async |position: Position| {
        let positions = [position].into_iter().collect();
        history.app().wait_for("copies", &positions, BOUND).await.unwrap()
    };
    assert_eq!(waits(position.clone()).await, Freshness::Current);
    // As the publisher on another database saw it, before the relay gave the number.
    let hinted = KeyHash::of("k5").partition(2);
    let unnumbered = Position { partition: hinted, sequence: None, ..position };
    assert_eq!(waits(unnumbered).await, Freshness::Current);
}

#[tokio::test]
async fn an_earlier_partition_that_is_paused_holds_up_the_later_ones_and_says_so() {
    let world = World::new();
    let (orders, history) = (world.start(orders_in(2)).await, world.start(reacting).await);
    place_from(&orders.app(), 0, 24).await;
    world.settle().await;
    let order = |action: Action| Ask { subscription: "copier".into(), asked_by: "ann@host".into(), action };
    history.post("/tombolo/requests", order(Action::Pause)).await;
    world.settle().await;
    place_from(&orders.app(), 24, 36).await;
    assert!(divide(&orders, 3).await.done);
    place_from(&orders.app(), 36, 48).await;
    world.settle().await;
    assert_eq!(copies(&history.app()).await.len(), 24);
    let resumed = history.post("/tombolo/requests", order(Action::Resume)).await;
    assert_eq!(resumed.status, StatusCode::ACCEPTED);
    world.settle().await;
    assert_whole(&copies(&history.app()).await, 48);
}

#[tokio::test]
async fn a_reset_goes_back_in_all_later_generations() {
    let world = World::new();
    let (orders, history) = (world.start(orders_in(2)).await, world.start(reacting).await);
    place_from(&orders.app(), 0, 36).await;
    assert!(divide(&orders, 3).await.done);
    place_from(&orders.app(), 36, 72).await;
    world.settle().await;
    let of = tombolo_event::operator::PartitionOf { topic: topic(), partition: 1 };
    let plan = Plan { subscription: "copier".into(), to: Goal::Sequence { of, sequence: 2 } };
    let preview: Preview = history.post("/tombolo/requests/preview", plan).await.json();
    let moved: Vec<(u32, u64)> =
        preview.moves.iter().map(|moved| (moved.to.of.partition, moved.to.sequence)).collect();
    assert_eq!(moved[0], (1, 1));
    assert!(moved[1..].iter().all(|(partition, to)| *partition >= 2 && *to == 0), "{moved:?}");
    let to: Vec<Place> = preview.moves.into_iter().map(|moved| moved.to).collect();
    let reset = |to: &[Place]| {
        let action = Action::Reset { to: to.to_vec(), force: false };
        Ask { subscription: "copier".into(), asked_by: "ann@host".into(), action }
    };
    let alone = history.post("/tombolo/requests", reset(&to[..1])).await;
    assert_eq!(alone.status, StatusCode::UNPROCESSABLE_ENTITY, "{}", alone.text());
    let ask = reset(&to);
    assert_eq!(history.post("/tombolo/requests", ask).await.status, StatusCode::ACCEPTED);
    world.settle().await;
    let all = copies(&history.app()).await;
    for n in (0..KEYS).filter(|n| KeyHash::of(&key(*n)).partition(2) == 1) {
        let of_key: Vec<i64> = all.iter().filter(|(id, _)| *id == key(n)).map(|(_, cents)| *cents).collect();
        let again = &of_key[6..];
        assert!(of_key[..6].is_sorted() && again.is_sorted() && again.len() >= 5, "{}: {of_key:?}", key(n));
    }
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_by_name() {
    let world = World::new();
    let (orders, history) = (world.start(orders_in(2)).await, world.start(history).await);
    let refused = divide(&orders, 2).await;
    assert!(!refused.done && refused.text.contains("has 2 partitions already"), "{}", refused.text);
    let wrong = orders.post("/tombolo/requests", ask(0)).await;
    assert_eq!(wrong.status, StatusCode::UNPROCESSABLE_ENTITY, "{}", wrong.text());
    let elsewhere = history.post("/tombolo/requests", ask(4)).await;
    assert_eq!(elsewhere.status, StatusCode::NOT_FOUND, "{}", elsewhere.text());
    let own = Ask { subscription: "topic/history".into(), ..ask(4) };
    let silent = history.post("/tombolo/requests", own).await;
    assert!(silent.text().contains("publishes nothing"), "{}", silent.text());
    world.settle().await;
    assert_eq!(generations(&world).await, [2]);
}

#[tokio::test]
async fn the_number_in_the_code_follows_when_it_suits() {
    let world = World::new();
    let (orders, history) = (world.start(orders_in(2)).await, world.start(history).await);
    place_from(&orders.app(), 0, 24).await;
    assert!(divide(&orders, 4).await.done);
    orders.stop().await;
    orders.restart().await;
    place_from(&orders.app(), 24, 48).await;
    orders.deploy(orders_in(4)).await;
    place_from(&orders.app(), 48, 72).await;
    world.settle().await;
    assert_whole(&copies(&history.app()).await, 72);
    let standing = orders.database().standing(Uuid::nil()).await.unwrap();
    assert_eq!(standing.generations, Generations::first(2).unwrap().and(4).unwrap());
}
