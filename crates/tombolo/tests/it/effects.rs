//! Effects: one call at a time for each key, none again that is done, and always with the same key.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tombolo::sqlite::{Sqlite, Tx};
use tombolo::status::State as Status;
use tombolo::{
    Attempt, Clock, Effect, Event, Handled, HandlerError, IdempotencyKey, Received, Running, Service,
    Settings, State, View,
};
use tombolo_bus::Bus;
use tombolo_db::effects::CALLS_KEPT;
use tombolo_db::{Cursors, Effects, LatestCall, Parking};

use crate::support::{
    App, Ground, Placed, copies, copy, eventually, place, subscription, until_copied, with_copies,
};

/// How often the bad order is refused before it is taken: once less than what parks it.
const REFUSALS: u32 = 2;

/// Longer than any pause before a parked event is tried again.
const DAY: Duration = Duration::from_secs(86_400);

/// What a call outside is to the tests: it can be held up, it can refuse, and it remembers everybody who came.
#[derive(Clone)]
struct Post(Arc<Office>);

struct Office {
    door: watch::Sender<Door>,
    seen: Mutex<Seen>,
}

/// Who gets out again.
enum Door {
    Closed,
    Open,
    /// For all but this order.
    ClosedFor(String),
    /// For all, but this order is sent back.
    Refuses(String),
}

impl Door {
    fn lets_out(&self, order: &str) -> bool {
        match self {
            Self::Closed => false,
            Self::Open | Self::Refuses(_) => true,
            Self::ClosedFor(held_up) => held_up != order,
        }
    }
}

#[derive(Default)]
struct Seen {
    /// Everybody who came: order, cents, attempt.
    came: Vec<(String, i64, Attempt)>,
    /// How many of each order are inside now, and were at most.
    inside: BTreeMap<String, usize>,
    most_inside: usize,
}

impl Post {
    fn open() -> Self {
        Self::with(Door::Open)
    }

    fn with(door: Door) -> Self {
        Self(Arc::new(Office { door: watch::Sender::new(door), seen: Mutex::default() }))
    }

    fn set(&self, door: Door) {
        self.0.door.send_replace(door);
    }

    async fn send(&self, order: &str, cents: i64, attempt: Attempt) {
        {
            let mut seen = self.0.seen.lock().unwrap();
            seen.came.push((order.to_owned(), cents, attempt));
            let inside = seen.inside.entry(order.to_owned()).or_default();
            *inside += 1;
            let now = *inside;
            seen.most_inside = seen.most_inside.max(now);
        }
        let inside = Inside(self.clone(), order.to_owned());
        self.0.door.subscribe().wait_for(|door| door.lets_out(order)).await.unwrap();
        drop(inside);
    }

    fn refuses(&self, order: &str) -> bool {
        matches!(&*self.0.door.borrow(), Door::Refuses(refused) if refused == order)
    }

    fn inside(&self) -> usize {
        self.0.seen.lock().unwrap().inside.values().sum()
    }

    fn most_inside(&self) -> usize {
        self.0.seen.lock().unwrap().most_inside
    }

    /// Everybody who came with this order.
    fn came(&self, order: &str) -> Vec<(i64, Attempt)> {
        let seen = self.0.seen.lock().unwrap();
        let came = seen.came.iter().filter(|(who, ..)| who == order);
        came.map(|&(_, cents, attempt)| (cents, attempt)).collect()
    }

    fn count(&self) -> usize {
        self.0.seen.lock().unwrap().came.len()
    }
}

/// Counts as inside until dropped, which a crash does, too.
struct Inside(Post, String);

impl Drop for Inside {
    fn drop(&mut self) {
        *self.0.0.seen.lock().unwrap().inside.get_mut(&self.1).unwrap() -= 1;
    }
}

#[derive(Serialize, Deserialize)]
struct Receipt {
    cents: i64,
}

async fn send(event: Placed, post: State<Post>, attempt: Attempt) -> Result<Receipt, HandlerError> {
    post.0.send(&event.order, event.cents, attempt).await;
    match post.0.refuses(&event.order) {
        true => Err(refused()),
        false => Ok(Receipt { cents: event.cents }),
    }
}

fn refused() -> HandlerError {
    std::io::Error::other("nobody answers the door").into()
}

fn mail_service(ground: &Ground, post: &Post) -> Service<Sqlite> {
    with_copies(Service::new("mail", ground.database("mail"))).state(post.clone())
}

/// Starts the service as its first replica, which takes over at once what it held before a crash.
async fn start(ground: &Ground, service: Service<Sqlite>) -> Running<Sqlite> {
    let settings = Settings { replica: Some(1), ..Settings::default() };
    service.bus(Arc::clone(&ground.bus) as Arc<dyn Bus>).start(settings).await.unwrap()
}

async fn mail(ground: &Ground, post: &Post) -> Running<Sqlite> {
    start(ground, mail_service(ground, post).effect(Effect::from_start("letters").on(send))).await
}

async fn latest(app: &App) -> Vec<LatestCall> {
    app.database().latest_calls("letters", usize::MAX >> 1).await.unwrap()
}

/// How many calls are stored as done.
async fn done(app: &App) -> usize {
    latest(app).await.iter().filter(|latest| latest.state.done_at.is_some()).count()
}

async fn until_done(app: &App, count: usize) {
    eventually(&format!("{count} calls done"), || async { done(app).await >= count }).await;
}

/// Two keys of one partition.
fn together() -> [String; 2] {
    let partition = |key: &str| tombolo_event::partition_of(key, 8);
    let second = (1..).map(|n| format!("o{n}")).find(|key| partition(key) == partition("o0"));
    ["o0".into(), second.unwrap()]
}

#[tokio::test]
async fn of_one_key_one_call_at_a_time_while_other_keys_go_on() {
    let ground = Ground::new();
    let post = Post::with(Door::Closed);
    let orders = ground.orders().await;
    for cents in 0..3 {
        for order in ["a", "b", "c", "d"] {
            place(&orders.app, order, cents).await;
        }
    }
    let mail = mail(&ground, &post).await;
    eventually("four keys at once", || async { post.inside() == 4 }).await;
    assert_eq!((post.count(), done(&mail.app).await), (4, 0), "a second one of a key came in");
    post.set(Door::Open);
    until_done(&mail.app, 12).await;
    assert_eq!((post.most_inside(), post.count()), (1, 12));
    for order in ["a", "b", "c", "d"] {
        let cents: Vec<i64> = post.came(order).iter().map(|(cents, _)| *cents).collect();
        assert_eq!(cents, [0, 1, 2], "in the order of the events");
    }
}

#[tokio::test]
async fn calls_at_once_are_bounded() {
    let ground = Ground::new();
    let post = Post::with(Door::Closed);
    let orders = ground.orders().await;
    for n in 0..10 {
        place(&orders.app, &format!("o{n}"), n).await;
    }
    let letters = Effect::from_start("letters").on(send).calls_at_once(3);
    let mail = start(&ground, mail_service(&ground, &post).effect(letters)).await;
    eventually("three calls at once", || async { post.inside() == 3 }).await;
    assert_eq!(post.count(), 3);
    post.set(Door::Open);
    until_done(&mail.app, 10).await;
}

/// Refuses the order "bad" some times.
async fn send_unless_bad(
    event: Received<Placed>,
    post: State<Post>,
    attempt: Attempt,
) -> Result<(), HandlerError> {
    post.0.send(&event.event.order, event.event.cents, attempt).await;
    match event.event.order == "bad" && attempt.number <= REFUSALS {
        true => Err(refused()),
        false => Ok(()),
    }
}

#[tokio::test]
async fn an_email_is_not_sent_again_because_a_neighbour_fails() {
    let ground = Ground::new();
    let post = Post::open();
    let orders = ground.orders().await;
    for n in 0..20 {
        place(&orders.app, &format!("o{n}"), n).await;
        place(&orders.app, "bad", n).await;
    }
    let letters = Effect::from_start("letters").on(send_unless_bad);
    let mail = start(&ground, mail_service(&ground, &post).effect(letters)).await;
    until_done(&mail.app, 40).await;
    for n in 0..20 {
        assert_eq!(post.came(&format!("o{n}")).len(), 1, "o{n} was sent again");
    }
    let first: Vec<Attempt> =
        post.came("bad").into_iter().filter(|(cents, _)| *cents == 0).map(|(_, it)| it).collect();
    let numbers: Vec<u32> = first.iter().map(|attempt| attempt.number).collect();
    assert_eq!(numbers, [1, 2, 3]);
    assert!(first.iter().all(|attempt| attempt.key == first[0].key), "{first:?}");
    let mut keys: Vec<IdempotencyKey> =
        post.0.seen.lock().unwrap().came.iter().map(|(.., it)| it.key).collect();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), 40, "each event has a key of its own");
}

#[tokio::test]
async fn a_crash_in_the_middle_of_a_call_repeats_it_with_the_same_key() {
    let ground = Ground::new();
    let post = Post::with(Door::Closed);
    let orders = ground.orders().await;
    place(&orders.app, "o1", 7).await;
    let crashed = mail(&ground, &post).await;
    eventually("the call runs", || async { post.inside() == 1 }).await;
    drop(crashed);
    eventually("the call is cut off", || async { post.inside() == 0 }).await;
    post.set(Door::Open);
    let mail = mail(&ground, &post).await;
    until_done(&mail.app, 1).await;
    let came = post.came("o1");
    assert_eq!(came.len(), 2);
    assert_eq!((came[0].1.number, came[1].1.number), (1, 2), "the crashed try counts");
    assert_eq!(came[0].1.key, came[1].1.key);
}

#[tokio::test]
async fn what_is_done_beyond_a_hole_stays_done_and_the_cursor_waits() {
    let ground = Ground::new();
    let (post, [slow, quick]) = (Post::open(), together());
    let orders = ground.orders().await;
    place(&orders.app, &slow, 1).await;
    place(&orders.app, &quick, 2).await;
    post.set(Door::ClosedFor(slow.clone()));
    for crashes in 1..=2 {
        let crashed = mail(&ground, &post).await;
        until_done(&crashed.app, 1).await;
        eventually("the slow one to run", || async { post.came(&slow).len() == crashes }).await;
        let cursors = crashed.app.database().cursors().await.unwrap();
        assert!(cursors.iter().all(|state| state.cursor.sequence == 0), "a cursor moved over a hole");
    }
    post.set(Door::Open);
    let mail = mail(&ground, &post).await;
    until_done(&mail.app, 2).await;
    assert_eq!((post.came(&slow).len(), post.came(&quick).len()), (3, 1));
}

#[tokio::test]
async fn restarts_and_new_versions_of_a_view_send_nothing_again() {
    let ground = Ground::new();
    let post = Post::open();
    let orders = ground.orders().await;
    for n in 0..10 {
        place(&orders.app, &format!("o{n}"), n).await;
    }
    for version in 1..=3 {
        let service = mail_service(&ground, &post)
            .view(View::new("copies", version).on(copy))
            .effect(Effect::from_start("letters").on(send));
        let mail = start(&ground, service).await;
        let sent = 10 + version as usize;
        place(&orders.app, &format!("new{version}"), 1).await;
        until_done(&mail.app, sent).await;
        eventually("nothing behind", || async {
            let status = mail.app.status().subscriptions;
            status.len() == 2 && status.iter().all(|subscription| subscription.state == Status::Live)
        })
        .await;
        mail.shutdown().await;
        assert_eq!(post.count(), sent, "after start {version}");
    }
}

#[tokio::test]
async fn an_effect_from_now_calls_for_nothing_before_its_first_start() {
    let ground = Ground::new();
    let post = Post::open();
    let orders = ground.orders().await;
    let history = ground.history().await;
    place(&orders.app, "before", 1).await;
    until_copied(&history.app, 1).await;
    let service = mail_service(&ground, &post).effect(Effect::from_now("letters").on(send));
    let mail = start(&ground, service).await;
    eventually("it reads", || async {
        subscription(&mail.app).is_some_and(|status| status.state == Status::Live)
    })
    .await;
    place(&orders.app, "after", 2).await;
    until_done(&mail.app, 1).await;
    assert_eq!((post.came("before").len(), post.came("after").len()), (0, 1));
}

/// What the mail service says once a letter is on its way.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Sent {
    order: String,
}

impl Event for Sent {
    const TYPE: &'static str = "mail.sent.v1";
    fn key(&self) -> String {
        self.order.clone()
    }
}

/// Writes what the call returned and says so; fails while there is a row "refuse".
async fn note(event: Placed, returned: Receipt, tx: &mut Tx) -> Handled {
    copy(Placed { order: event.order.clone(), cents: returned.cents * 2 }, tx).await?;
    tx.publish(&Sent { order: event.order })?;
    let refusal = sqlx::query("SELECT 1 FROM copies WHERE id = 'refuse'").fetch_optional(&mut **tx).await?;
    refusal.map_or(Ok(()), |_| Err(refused()))
}

async fn hear(event: Sent, tx: &mut Tx) -> Handled {
    copy(Placed { order: format!("{} was sent", event.order), cents: 0 }, tx).await
}

#[tokio::test]
async fn what_goes_with_a_completion_commits_with_it_and_is_tried_again_alone() {
    let ground = Ground::new();
    let post = Post::open();
    let orders = ground.orders().await;
    place(&orders.app, "o1", 21).await;
    let clock = Clock::default();
    let start_noting = async || {
        let letters = Effect::from_start("letters").on_then(send, note);
        let service = mail_service(&ground, &post).publishes::<Sent>().clock(clock.clone()).effect(letters);
        start(&ground, service.view(View::new("sent", 1).on(hear))).await
    };
    let refuse = "CREATE TABLE copies (n INTEGER PRIMARY KEY, id TEXT, cents INTEGER); INSERT INTO copies (id, cents) VALUES ('refuse', 0)";
    sqlx::raw_sql(refuse).execute(ground.database("mail").pool()).await.unwrap();
    for parked in [0, 1] {
        let crashed = start_noting().await;
        eventually("a refusal", || async {
            let call = latest(&crashed.app).await.pop();
            self::parked(&crashed.app).await == (parked, parked)
                && call.is_some_and(|call| call.state.call.result.as_deref() == Some("{\"cents\":21}"))
        })
        .await;
        assert_eq!(copies(&crashed.app).await.len(), 1, "what failed left something");
    }
    let mail = start_noting().await;
    sqlx::query("DELETE FROM copies").execute(mail.app.database().pool()).await.unwrap();
    clock.advance(DAY);
    let copies = until_copied(&mail.app, 2).await;
    assert_eq!(copies, [("o1".to_owned(), 42), ("o1 was sent".to_owned(), 0)]);
    assert_eq!((parked(&mail.app).await, post.count()), ((0, 0), 1), "the call itself was made again");
    assert_eq!(latest(&mail.app).await[0].state.call.error, None);
}

/// (keys, events) that are parked.
async fn parked(app: &App) -> (u64, u64) {
    let counts = app.database().parked_counts().await.unwrap();
    counts.iter().fold((0, 0), |sum, count| (sum.0 + count.keys, sum.1 + count.events))
}

#[tokio::test]
async fn what_cannot_be_called_for_is_parked_by_its_key_and_comes_back_in_order() {
    let ground = Ground::new();
    let (post, clock) = (Post::with(Door::Refuses("bad".into())), Clock::default());
    let orders = ground.orders().await;
    for n in 0..20 {
        place(&orders.app, &format!("o{n}"), n).await;
    }
    place(&orders.app, "bad", 0).await;
    let letters = Effect::from_start("letters").on(send);
    let service = mail_service(&ground, &post).clock(clock.clone()).effect(letters);
    let mail = start(&ground, service).await;
    eventually("one key parked", || async { parked(&mail.app).await == (1, 1) }).await;
    for cents in 1..=2 {
        place(&orders.app, "bad", cents).await;
        place(&orders.app, &format!("later{cents}"), cents).await;
    }
    eventually("all of the key parked", || async { parked(&mail.app).await == (1, 3) }).await;
    until_done(&mail.app, 25).await;
    eventually("nothing behind", || async { subscription(&mail.app).unwrap().state == Status::Live }).await;
    assert_eq!(post.came("bad").len(), 3, "of a parked key nothing else is called for");
    clock.advance(DAY);
    eventually("one more try", || async { post.came("bad").len() == 4 }).await;
    assert_eq!(parked(&mail.app).await, (1, 3));
    post.set(Door::Open);
    clock.advance(DAY);
    eventually("nothing parked", || async { parked(&mail.app).await == (0, 0) }).await;
    let came = post.came("bad");
    let cents: Vec<i64> = came.iter().map(|(cents, _)| *cents).collect();
    assert_eq!(cents, [0, 0, 0, 0, 0, 1, 2], "in order");
    assert!(came[..5].iter().all(|(_, attempt)| attempt.key == came[0].1.key));
    assert_eq!(came[4].1.number, 5);
    assert!(latest(&mail.app).await.iter().all(|call| call.state.call.error.is_none()));
    for n in 0..20 {
        assert_eq!(post.came(&format!("o{n}")).len(), 1, "o{n} was called for again");
    }
}

#[tokio::test]
async fn a_call_that_ends_the_process_each_time_is_parked_after_its_tries() {
    let ground = Ground::new();
    let (post, [deadly, neighbour]) = (Post::with(Door::Closed), together());
    let orders = ground.orders().await;
    place(&orders.app, &deadly, 1).await;
    post.set(Door::ClosedFor(deadly.clone()));
    for tries in 1..=3 {
        let crashed = mail(&ground, &post).await;
        eventually("the deadly call", || async { post.came(&deadly).len() == tries }).await;
        drop(crashed);
    }
    let mail = mail(&ground, &post).await;
    eventually("it is parked", || async { parked(&mail.app).await == (1, 1) }).await;
    place(&orders.app, &neighbour, 2).await;
    eventually("its neighbour goes through", || async { post.came(&neighbour).len() == 1 }).await;
    assert_eq!(post.came(&deadly).len(), 3);
}

#[tokio::test]
async fn what_calls_returned_is_kept_for_a_while_and_the_table_stays_flat() {
    const PLACED: i64 = CALLS_KEPT as i64 + 300;
    let ground = Ground::new();
    let post = Post::open();
    let orders = ground.start(ground.orders_service().partitions(1)).await;
    let mut tx = orders.app.begin().await.unwrap();
    for n in 0..PLACED {
        tx.publish(&Placed { order: format!("o{n}"), cents: n }).unwrap();
    }
    tx.commit().await.unwrap();
    let mail = mail(&ground, &post).await;
    eventually("the last call", || async {
        let latest = mail.app.database().latest_calls("letters", 1).await.unwrap();
        post.count() >= PLACED as usize && latest.first().is_some_and(|call| call.state.done_at.is_some())
    })
    .await;
    eventually("a flat table", || async { latest(&mail.app).await.len() <= CALLS_KEPT as usize + 100 }).await;
    let kept = latest(&mail.app).await;
    assert!(kept.len() >= CALLS_KEPT as usize, "{}", kept.len());
    assert!(
        kept.iter().all(|call| call.state.call.result.as_deref().is_some_and(|json| json.contains("cents")))
    );
    assert_eq!(post.count(), PLACED as usize);
}

/// Changes every lease, as another replica's claim would, or as the end of a connection does.
async fn disturb_leases(app: &App, change: &'static str) {
    sqlx::query(change).execute(app.database().pool()).await.unwrap();
}

#[tokio::test]
async fn a_completion_under_a_lease_that_was_lost_is_refused_and_the_call_repeated() {
    let ground = Ground::new();
    let post = Post::with(Door::Closed);
    let orders = ground.orders().await;
    let mail = mail(&ground, &post).await;
    place(&orders.app, "o1", 1).await;
    eventually("the call runs", || async { post.inside() == 1 }).await;
    let other = "UPDATE tombolo_cursor SET lease_epoch = lease_epoch + 1, holder = randomblob(16), \
                 until_ms = unixepoch('subsec') * 1000 + 1000";
    disturb_leases(&mail.app, other).await;
    post.set(Door::Open);
    until_done(&mail.app, 1).await;
    let came = post.came("o1");
    assert_eq!(came.len(), 2, "whoever holds the lease makes the call, whoever made it before");
    assert_eq!(came[0].1.key, came[1].1.key);
}

#[tokio::test]
async fn a_worker_that_breaks_off_stores_what_its_calls_returned_and_calls_nobody_again() {
    let ground = Ground::new();
    let post = Post::with(Door::Closed);
    let orders = ground.orders().await;
    let mail = mail(&ground, &post).await;
    for order in ["a", "b", "c"] {
        place(&orders.app, order, 1).await;
    }
    eventually("the calls run", || async { post.inside() == 3 }).await;
    disturb_leases(&mail.app, "UPDATE tombolo_cursor SET lease_epoch = lease_epoch + 1").await;
    post.set(Door::Open);
    until_done(&mail.app, 3).await;
    assert_eq!(post.count(), 3);
}

#[tokio::test]
async fn a_call_that_takes_too_long_counts_as_failed() {
    let ground = Ground::new();
    let post = Post::with(Door::Closed);
    let orders = ground.orders().await;
    let letters = Effect::from_start("letters").on(send).within(Duration::from_millis(20));
    let mail = start(&ground, mail_service(&ground, &post).effect(letters)).await;
    place(&orders.app, "o1", 1).await;
    eventually("a try that took too long", || async {
        let error = latest(&mail.app).await.pop().and_then(|latest| latest.state.call.error);
        error.is_some_and(|error| error.contains("took longer than 20ms"))
    })
    .await;
    post.set(Door::Open);
    until_done(&mail.app, 1).await;
}

#[tokio::test]
async fn a_service_that_stops_lets_its_calls_end_and_stores_what_they_returned() {
    let ground = Ground::new();
    let post = Post::with(Door::Closed);
    let orders = ground.orders().await;
    let mail = mail(&ground, &post).await;
    place(&orders.app, "o1", 1).await;
    eventually("the call runs", || async { post.inside() == 1 }).await;
    let app = mail.app.clone();
    let stopping = tokio::spawn(mail.shutdown());
    post.set(Door::Open);
    stopping.await.unwrap();
    assert_eq!(done(&app).await, 1);
}

#[cfg(all(feature = "postgres", feature = "nats"))]
#[tokio::test]
async fn postgres_keeps_what_calls_have_come_to_as_well() {
    use tombolo::postgres::Postgres;
    let Some(database) = crate::engines::postgres().await else { return };
    let ground = Ground::new();
    let (post, [slow, quick]) = (Post::with(Door::Closed), together());
    let orders = ground.orders().await;
    place(&orders.app, &slow, 1).await;
    place(&orders.app, &quick, 2).await;
    let start = async || -> Running<Postgres> {
        let service = Service::new("mail", database.clone()).state(post.clone());
        let settings = Settings { replica: Some(1), ..Settings::default() };
        let bus = Arc::clone(&ground.bus) as Arc<dyn Bus>;
        service.effect(Effect::from_start("letters").on(send)).bus(bus).start(settings).await.unwrap()
    };
    let done = async || {
        let latest = database.latest_calls("letters", usize::MAX >> 1).await.unwrap();
        latest.iter().filter(|latest| latest.state.done_at.is_some()).count()
    };
    let crashed = start().await;
    eventually("both calls run", || async { post.inside() == 2 }).await;
    post.set(Door::ClosedFor(slow.clone()));
    eventually("one is done beyond the other", || async { done().await == 1 }).await;
    drop(crashed);
    post.set(Door::Open);
    let _mail = start().await;
    eventually("both are done", || async { done().await == 2 }).await;
    assert_eq!((post.came(&slow).len(), post.came(&quick).len()), (2, 1));
    assert_eq!(post.came(&slow)[0].1.key, post.came(&slow)[1].1.key);
    let results = database.latest_calls("letters", 2).await.unwrap();
    assert!(results.iter().all(|call| call.state.call.result.is_some()), "{results:?}");
}
