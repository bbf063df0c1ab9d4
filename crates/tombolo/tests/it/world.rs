//! The test world itself: that it does what it says, and that what is wrong is caught in it.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::Path;
use axum::http::StatusCode;
use axum::routing::post;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tombolo::sqlite::{Sqlite, Tx};
use tombolo::testing::{Part, Weather, World};
use tombolo::{
    Attempt, Effect, Event, Handled, HandlerError, IdempotencyKey, Problem, Question, Reactor, Service,
    State, Upcast, View, reject,
};
use tombolo_db::mutant::Mutant;
use tombolo_event::barrier;

use crate::support::{App, Placed, copies, copy, place, with_copies};

fn orders(database: Sqlite) -> Service<Sqlite> {
    Service::new("orders", database)
        .setup(async |database: Sqlite| {
            let table =
                "CREATE TABLE IF NOT EXISTS orders (id TEXT PRIMARY KEY, cents INTEGER NOT NULL) STRICT";
            sqlx::raw_sql(table).execute(database.pool()).await?;
            Ok(())
        })
        .routes(Router::new().route("/orders/{order}", post(place_order)))
        .publishes::<Placed>()
}

async fn place_order(
    axum::extract::State(app): axum::extract::State<App>,
    Path(order): Path<String>,
) -> Result<(), Problem> {
    let known = app.call("users", &IsKnown { name: order.clone() }).within(QUESTION).await?;
    if !known {
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, format!("there is no user {order:?}")));
    }
    let mut tx = app.begin().await?;
    let is_later = order == LATER;
    let placed = Placed { order, cents: 1 };
    if is_later {
        tx.publish_at(&placed, Timestamp::now())?
    } else {
        tx.publish(&placed)?
    };
    tx.commit().await?;
    Ok(())
}

/// The order that is kept for later, and due at once.
const LATER: &str = "later";

/// How long the route above waits for its answer.
const QUESTION: Duration = Duration::from_millis(200);

#[derive(Serialize, Deserialize, JsonSchema)]
struct IsKnown {
    name: String,
}

impl Question for IsKnown {
    const NAME: &'static str = "users.is-known.v1";
    type Answer = bool;
}

pub(crate) fn history(database: Sqlite) -> Service<Sqlite> {
    with_copies(Service::new("history", database)).view(View::new("copies", 1).on(copy))
}

async fn place_many(orders: &Part, count: i64) {
    for n in 0..count {
        place(&orders.app(), ["a", "b", "c", "d", "e"][n as usize % 5], n).await;
    }
}

/// Each order once, and those of a key in their order.
fn assert_all_once(copies: &[(String, i64)], count: i64) {
    let mut seen: Vec<i64> = copies.iter().map(|(_, cents)| *cents).collect();
    for key in ["a", "b", "c", "d", "e"] {
        let of_key: Vec<i64> =
            copies.iter().filter(|(order, _)| order == key).map(|(_, cents)| *cents).collect();
        assert!(of_key.is_sorted(), "{key}: {of_key:?}");
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..count).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_settled_world_has_applied_everything_once_and_in_order() {
    let world = World::new();
    let (orders, history) = (world.start(orders).await, world.start(history).await);
    place_many(&orders, 60).await;
    world.settle().await;
    assert_all_once(&copies(&history.app()).await, 60);
    let published: Vec<i64> = world.published::<Placed>().await.iter().map(|placed| placed.cents).collect();
    assert_eq!(published.len(), 60);
}

#[tokio::test]
async fn a_rough_world_loses_acknowledgements_and_a_calm_one_does_not() {
    for (weather, lost) in [(Weather::rough(), true), (Weather::calm(), false)] {
        let world = World::with_weather(weather);
        let orders = world.start(orders).await;
        place_many(&orders, 100).await;
        world.settle().await;
        assert_eq!(orders.app().metrics().relay_retries.get() > 0, lost);
    }
}

#[derive(Clone, Default)]
struct Outside(Arc<AtomicU32>);

/// A mistake: what it counts is not in the transaction.
async fn count_outside(_: Placed, State(outside): State<Outside>, _: &mut Tx) -> Handled {
    outside.0.fetch_add(1, Ordering::SeqCst);
    Ok(())
}

async fn counted_outside(weather: Weather) -> u32 {
    let world = World::with_weather(weather);
    let outside = Outside::default();
    let orders = world.start(orders).await;
    let counter = outside.clone();
    world
        .start(move |database| {
            let view = View::new("count", 1).on(count_outside);
            Service::new("history", database).state(counter.clone()).view(view)
        })
        .await;
    place_many(&orders, 10).await;
    world.settle().await;
    outside.0.load(Ordering::SeqCst)
}

#[tokio::test]
async fn a_handler_that_works_outside_its_transaction_is_caught() {
    assert_eq!(counted_outside(Weather::calm()).await, 10, "in calm weather the mistake does not show");
    let twice = Weather { twice: true, ..Weather::calm() };
    assert_eq!(counted_outside(twice).await, 20, "every event was handled exactly twice");
}

/// What arrived at a post office outside of all services.
#[derive(Clone, Default)]
struct Letters(Arc<Mutex<Vec<IdempotencyKey>>>);

async fn send(_: Placed, letters: State<Letters>, attempt: Attempt) -> Result<(), HandlerError> {
    letters.0.0.lock().unwrap().push(attempt.key);
    Ok(())
}

#[tokio::test]
async fn an_effect_that_forgets_its_key_is_caught() {
    let world = World::new();
    let letters = Letters::default();
    let orders = world.start(orders).await;
    let office = letters.clone();
    let mail = move |database| {
        let letters = Effect::from_start("letters").on(send);
        Service::new("mail", database).state(office.clone()).effect(letters)
    };
    world.start(mail).await;
    place_many(&orders, 10).await;
    world.settle().await;
    let mut keys = letters.0.lock().unwrap().clone();
    assert!(keys.len() >= 20, "every call was made twice: {}", keys.len());
    keys.sort_unstable_by_key(ToString::to_string);
    keys.dedup();
    assert_eq!(keys.len(), 10, "under the same key");
}

#[tokio::test]
async fn a_database_that_does_not_compare_cursors_is_caught() {
    let world = World::new();
    let orders = world.start(orders).await;
    let broken = |database: Sqlite| history(database.with_mutant(Mutant::NoCursorCheck));
    let history = world.start(broken).await;
    place_many(&orders, 40).await;
    world.settle().await;
    assert!(copies(&history.app()).await.len() > 40, "what is handled twice is applied twice");
}

#[tokio::test]
async fn a_crash_at_any_named_point_loses_and_doubles_nothing() {
    let hops = ["outbox.", "relay.", "subscription."];
    for point in barrier::ALL.iter().filter(|name| hops.iter().any(|hop| name.starts_with(hop))) {
        let world = World::new();
        let users = world.fake("users").answers(|_: IsKnown| Ok(true)).start().await;
        let (orders, history) = (world.start(orders).await, world.start(history).await);
        place_many(&orders, 10).await;
        world.settle().await;
        let part = if point.starts_with("subscription.") { &history } else { &orders };
        part.crash_at(point);
        let order = if point.starts_with("later.") { LATER } else { "a" };
        let path = format!("/orders/{order}");
        let answered = orders.try_request(axum::http::Method::POST, &path, None::<&()>).await;
        part.crashed().await;
        part.restart().await;
        world.settle().await;
        let placed = usize::from(*point != "outbox.before-commit");
        assert_eq!(copies(&history.app()).await.len(), 10 + placed, "{point}");
        // Later on the path the request may be answered already, or not.
        assert!(answered.is_none() || !point.starts_with("outbox."), "{point}");
        drop(users);
    }
}

#[test]
fn the_page_on_testing_names_every_point() {
    let page = include_str!("../../../../docs/testing.md");
    let missing: Vec<_> = barrier::ALL.iter().filter(|point| !page.contains(&format!("`{point}`"))).collect();
    assert!(missing.is_empty(), "docs/testing.md does not name {missing:?}");
}

#[tokio::test]
async fn a_bus_that_crashes_at_any_named_point_loses_and_doubles_nothing() {
    for point in barrier::ALL.iter().filter(|name| name.starts_with("log.")) {
        let world = World::new();
        let (orders, history) = (world.start(orders).await, world.start(history).await);
        place_many(&orders, 10).await;
        world.settle().await;
        world.bus().crash_at(point);
        place_many(&orders, 10).await;
        world.bus().crashed().await;
        assert!(world.bus().is_away(), "{point}");
        world.bus().restart();
        world.settle().await;
        assert_eq!(copies(&history.app()).await.len(), 20, "{point}");
    }
}

#[tokio::test]
#[should_panic(
    expected = "there is no point \"relay.midway\" on this part's path; there are: outbox.before-commit"
)]
async fn a_point_that_does_not_exist_is_named() {
    let world = World::new();
    world.start(orders).await.crash_at("relay.midway");
}

async fn order_of_application(seed: u64) -> Vec<(String, i64)> {
    let world = World::seeded(seed);
    let orders = world.start(orders).await;
    for n in 0..40 {
        place(&orders.app(), &format!("o{}", n % 16), n).await;
    }
    world.settle().await;
    let history = world.start(history).await;
    world.settle().await;
    copies(&history.app()).await
}

#[tokio::test]
async fn a_seed_repeats_the_order_in_which_everything_arrives() {
    let first = order_of_application(1).await;
    assert_eq!(first, order_of_application(1).await);
    assert_ne!(first, order_of_application(2).await);
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct ProductAdded {
    product: String,
}

impl Event for ProductAdded {
    const TYPE: &'static str = "products.added.v1";
    fn key(&self) -> String {
        self.product.clone()
    }
}

/// A mistake: it relies on the product being there before the order.
async fn copy_with_product(event: Placed, tx: &mut Tx) -> Handled {
    let product = sqlx::query("SELECT 1 FROM copies WHERE id = 'product'").fetch_optional(&mut **tx).await?;
    let cents = if product.is_some() { 1 } else { 0 };
    copy(Placed { order: event.order, cents }, tx).await
}

async fn copy_product(event: ProductAdded, tx: &mut Tx) -> Handled {
    copy(Placed { order: event.product, cents: -1 }, tx).await
}

#[tokio::test]
async fn an_order_may_be_there_before_its_product() {
    let mut found = [false, false];
    for seed in 0..20 {
        let world = World::seeded(seed);
        let products = world.fake("products").publishes::<ProductAdded>().start().await;
        let orders = world.fake("orders").publishes::<Placed>().start().await;
        let view = || View::new("joined", 1).on(copy_with_product).on(copy_product);
        let history =
            world.start(move |database| with_copies(Service::new("history", database)).view(view())).await;
        world.settle().await;
        products.publish(&ProductAdded { product: "product".into() }).await;
        orders.publish(&Placed { order: "order".into(), cents: 1 }).await;
        world.settle().await;
        let copies = copies(&history.app()).await;
        let joined = copies.contains(&("order".to_owned(), 1));
        found[usize::from(joined)] = true;
    }
    assert_eq!(found, [true, true], "some seeds bring the order first, and some do not");
}

/// What a world says that does not settle, or not as it should.
async fn open_in(world: World) -> String {
    let settled = tokio::spawn(async move { world.settle_within(Duration::from_millis(300)).await });
    let panic = settled.await.expect_err("something is open").into_panic();
    *panic.downcast::<String>().expect("the panic is a sentence")
}

#[tokio::test]
async fn a_world_that_does_not_settle_names_what_is_open() {
    let world = World::seeded(3);
    let (orders, history) = (world.start(orders).await, world.start(history).await);
    let mut writing = history.app().begin().await.unwrap();
    sqlx::query("DELETE FROM copies").execute(&mut *writing).await.unwrap();
    place(&orders.app(), "a", 1).await;
    let open = open_in(world).await;
    for part in ["seed 3", "history: subscription copies-v1 in orders/", "1 event behind, at 0 of 1"] {
        assert!(open.contains(part), "{part:?} is not in: {open}");
    }
}

/// Whether the post office takes letters to "a".
#[derive(Clone, Default)]
struct Open(Arc<AtomicBool>);

async fn copy_when_open(event: Placed, State(open): State<Open>, tx: &mut Tx) -> Handled {
    if event.order == "a" && !open.0.load(Ordering::SeqCst) {
        return Err(std::io::Error::other("the post office is closed").into());
    }
    copy(event, tx).await
}

#[tokio::test]
async fn what_is_parked_is_named_unless_the_test_means_it_and_comes_back_when_its_time_has_come() {
    let world = World::new();
    let orders = world.start(orders).await;
    let open = Open::default();
    let door = open.clone();
    let history = move |database| {
        let view = View::new("copies", 1).on(copy_when_open);
        with_copies(Service::new("history", database)).state(door.clone()).view(view)
    };
    let history = world.start(history).await;
    place_many(&orders, 10).await;
    world.expect_parked();
    world.settle().await;
    let parked = history.parked().await;
    assert_eq!((parked.len(), copies(&history.app()).await.len()), (2, 8));
    assert!(parked[0].tries.retry_at > Some(world.clock().now()));

    open.0.store(true, Ordering::SeqCst);
    world.settle().await;
    assert_eq!(history.parked().await.len(), 2, "nobody waits for what is not due");
    world.advance(Duration::from_secs(86_400)).await;
    assert_eq!(history.parked().await.len(), 0);
    assert_all_once(&copies(&history.app()).await, 10);
}

async fn never(_: Placed, _: &mut Tx) -> Handled {
    Err(reject("the order is bad"))
}

#[tokio::test]
async fn a_world_in_which_something_was_parked_unmeant_has_not_settled() {
    let world = World::seeded(3);
    let orders = world.start(orders).await;
    world.start(|database| Service::new("history", database).view(View::new("copies", 1).on(never))).await;
    place(&orders.app(), "a", 1).await;
    let parked = open_in(world).await;
    for part in ["seed 3", "has 1 event of a key parked in orders/", "the order is bad", "expect_parked()"] {
        assert!(parked.contains(part), "{part:?} is not in: {parked}");
    }
}

#[tokio::test]
async fn a_bus_that_is_away_is_named_and_what_waited_for_it_arrives() {
    let world = World::new();
    let (orders, history) = (world.start(orders).await, world.start(history).await);
    world.bus().away();
    place_many(&orders, 10).await;
    assert!(copies(&history.app()).await.is_empty());
    world.bus().back();
    world.settle().await;
    world.bus().crash().await;
    for n in 10..20 {
        place(&orders.app(), "a", n).await;
    }
    world.bus().restart();
    world.settle().await;
    assert_all_once(&copies(&history.app()).await, 20);
    world.bus().away();
    assert!(open_in(world).await.contains("world.bus().back()"));
}

#[tokio::test]
async fn who_is_cut_off_works_on_and_is_not_waited_for() {
    let world = World::new();
    let (orders, history) = (world.start(orders).await, world.start(history).await);
    history.cut_off();
    place_many(&orders, 10).await;
    world.settle().await;
    assert!(copies(&history.app()).await.is_empty());
    history.reconnect();
    world.settle().await;
    assert_all_once(&copies(&history.app()).await, 10);
}

#[tokio::test]
async fn a_fake_answers_late_never_or_is_down() {
    let world = World::new();
    let orders = world.start(orders).await;
    let users = world.fake("users").answers(|asked: IsKnown| Ok(asked.name == "ada")).start().await;
    assert_eq!(orders.post("/orders/ada", ()).await.status, StatusCode::OK);
    assert_eq!(orders.post("/orders/bob", ()).await.status, StatusCode::UNPROCESSABLE_ENTITY);
    for late in [true, false] {
        if late {
            users.answers_after(10 * QUESTION)
        } else {
            users.never_answers()
        }
        let answer = orders.post("/orders/ada", ()).await;
        assert_eq!(answer.status, StatusCode::GATEWAY_TIMEOUT);
        assert!(answer.text().contains("service users did not answer"), "{}", answer.text());
    }
    users.answers_at_once();
    assert_eq!(orders.post("/orders/ada", ()).await.status, StatusCode::OK);
    users.crash().await;
    let answer = orders.post("/orders/ada", ()).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.text().contains("users cannot be reached"), "{}", answer.text());
    users.restart().await;
    assert_eq!(orders.post("/orders/ada", ()).await.status, StatusCode::OK);
    world.settle().await;
    assert_eq!(world.published::<Placed>().await.len(), 3);
}

/// The same type, one version later.
#[derive(Serialize, Deserialize, JsonSchema)]
struct PlacedWithCurrency {
    order: String,
    currency: String,
}

impl Event for PlacedWithCurrency {
    const TYPE: &'static str = "orders.placed.v2";
    const UPCASTS: &'static [Upcast] = &[Upcast {
        from: "orders.placed.v1",
        lift: |mut data| {
            data["currency"] = "EUR".into();
            Ok(data)
        },
    }];
    fn key(&self) -> String {
        self.order.clone()
    }
}

#[tokio::test]
async fn what_was_published_is_lifted_to_the_version_that_is_asked_for() {
    let world = World::new();
    let orders = world.fake("orders").publishes::<Placed>().publishes::<PlacedWithCurrency>().start().await;
    orders.publish(&Placed { order: "a".into(), cents: 1 }).await;
    orders.publish(&PlacedWithCurrency { order: "a".into(), currency: "CHF".into() }).await;
    world.settle().await;
    let published = world.published::<PlacedWithCurrency>().await;
    let currencies: Vec<&str> = published.iter().map(|placed| placed.currency.as_str()).collect();
    assert_eq!(currencies, ["EUR", "CHF"]);
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct Confirmed {
    order: String,
}

impl Event for Confirmed {
    const TYPE: &'static str = "mail.confirmed.v1";
    fn key(&self) -> String {
        self.order.clone()
    }
}

async fn confirm(placed: Placed, tx: &mut Tx) -> Handled {
    tx.publish(&Confirmed { order: placed.order })?;
    Ok(())
}

#[tokio::test]
async fn what_follows_from_what_follows_is_waited_for_and_there_once() {
    let world = World::new();
    let orders = world.start(orders).await;
    let mail = |database| {
        Service::new("mail", database)
            .publishes::<Confirmed>()
            .react(Reactor::from_start("confirm").on(confirm))
    };
    let mail = world.start(mail).await;
    let other = world.replicate(&mail).await;
    place_many(&orders, 20).await;
    mail.crash().await;
    world.settle().await;
    assert_eq!(world.published::<Confirmed>().await.len(), 20);
    drop(other);
}

async fn archive(confirmed: Confirmed, tx: &mut Tx) -> Handled {
    copy(Placed { order: confirmed.order, cents: 0 }, tx).await
}

#[tokio::test]
async fn a_world_never_settles_before_the_last_consequence_is_there() {
    let world = World::new();
    let orders = world.start(orders).await;
    let mail = |database| {
        let confirm = Reactor::from_start("confirm").on(confirm);
        Service::new("mail", database).publishes::<Confirmed>().react(confirm)
    };
    let archive =
        |database| with_copies(Service::new("archive", database)).view(View::new("archive", 1).on(archive));
    let (_mail, archive) = (world.start(mail).await, world.start(archive).await);
    for n in 1..=40 {
        place(&orders.app(), &format!("o{n}"), 1).await;
        world.settle().await;
        assert_eq!(copies(&archive.app()).await.len(), n);
    }
}

async fn sum_up(event: Placed, tx: &mut Tx) -> Handled {
    let sql = tx.sql("INSERT INTO {sums} (cents) VALUES (?)")?;
    sqlx::query(sql).bind(event.cents).execute(&mut **tx).await?;
    Ok(())
}

/// The view `sums`, whose versions have tables of their own.
fn sums(version: u32) -> View<Sqlite> {
    View::new("sums", version).tables("CREATE TABLE {sums} (cents INTEGER NOT NULL) STRICT;").on(sum_up)
}

#[tokio::test]
async fn a_world_settles_when_a_new_version_of_a_view_is_read_and_whole() {
    let world = World::new();
    let orders = world.start(orders).await;
    let books = world.start(|database| Service::new("books", database).view(sums(1))).await;
    place_many(&orders, 30).await;
    world.settle().await;
    books.deploy(|database| Service::new("books", database).view(sums(2).replaces(sums(1)))).await;
    books.crash_at("subscription.after-cursor");
    place_many(&orders, 30).await;
    books.crashed().await;
    books.restart().await;
    world.settle().await;
    let view = books.app().view("sums").await.unwrap();
    assert_eq!(view.version(), 2);
    let rows: i64 = sqlx::query_scalar(view.sql("SELECT count(*) FROM {sums}").unwrap())
        .fetch_one(books.database().pool())
        .await
        .unwrap();
    assert_eq!(rows, 60);
}
