//! Blocks under local checks: heard by every service, loaded before it is ready, and never undone by an old word.

use std::time::{Duration, Instant};

use reqwest::StatusCode;
use tombolo::auth::mutant::Mutant;

use crate::stage::{CLIENT, Stage, eventually};

#[tokio::test]
async fn a_block_is_heard_everywhere_and_what_was_before_it_stays_ended() {
    let stage = Stage::new();
    let identity = stage.identity().await;
    let (ada, before) = identity.user("ada@example.org").await;
    let (_, bob) = identity.user("bob@example.org").await;
    let local = stage.behind("orders", identity.local()).await;
    let central = stage.behind("products", identity.central()).await;
    identity.block(&ada).await;
    assert_eq!(
        stage.status(&central, &before.access).await,
        StatusCode::UNAUTHORIZED,
        "with the next request"
    );
    eventually("orders hears of it", async || {
        stage.status(&local, &before.access).await == StatusCode::UNAUTHORIZED
    })
    .await;
    assert_eq!(stage.status(&local, &bob.access).await, StatusCode::OK);
    let sign_in = serde_json::json!({ "email": "ada@example.org", "password": crate::stage::PASSWORD });
    assert_eq!(identity.post("/sign-in", sign_in).await.status, StatusCode::FORBIDDEN);
    assert_eq!(identity.refresh(&before.refresh).await.status, StatusCode::BAD_REQUEST);
    identity.unblock(&ada).await;
    let after = identity.sign_in("ada@example.org").await;
    eventually("orders hears of the unblock", async || {
        stage.status(&local, &after.access).await == StatusCode::OK
    })
    .await;
    for service in [&local, &central] {
        assert_eq!(stage.status(service, &before.access).await, StatusCode::UNAUTHORIZED);
        assert_eq!(stage.status(service, &after.access).await, StatusCode::OK);
    }
}

/// What a service answers to a blocked user's token right after it was started again.
async fn first_answers(stage: &Stage, mutant: Option<Mutant>) -> Vec<StatusCode> {
    let identity = stage.identity().await;
    let (ada, tokens) = identity.user("ada@example.org").await;
    let auth = || mutant.into_iter().fold(identity.local(), tombolo::auth::Auth::with_mutant);
    let first = stage.behind("orders", auth()).await;
    assert_eq!(stage.status(&first, &tokens.access).await, StatusCode::OK);
    identity.block(&ada).await;
    eventually("the block is on the bus", async || {
        stage.status(&first, &tokens.access).await == StatusCode::UNAUTHORIZED
    })
    .await;
    first.shutdown().await;
    stage.bus.away();
    let second = stage.behind("orders", auth()).await;
    let ready = stage.send(stage.http.get(format!("{}/ready", second.url))).await;
    let mut answers = vec![ready.status, stage.status(&second, &tokens.access).await];
    stage.bus.back();
    eventually("it is loaded", async || {
        let ready = stage.send(stage.http.get(format!("{}/ready", second.url))).await.status;
        ready == StatusCode::OK
            && stage.status(&second, &tokens.access).await != StatusCode::SERVICE_UNAVAILABLE
    })
    .await;
    answers.push(stage.status(&second, &tokens.access).await);
    answers
}

#[tokio::test]
async fn a_service_is_not_ready_before_it_knows_who_was_blocked() {
    let away = StatusCode::SERVICE_UNAVAILABLE;
    assert_eq!(first_answers(&Stage::new(), None).await, [away, away, StatusCode::UNAUTHORIZED]);
    let mutant = first_answers(&Stage::new(), Some(Mutant::OpensUnloaded)).await;
    assert_eq!(mutant[1], StatusCode::OK, "the mutant is caught");
}

#[tokio::test]
async fn a_service_that_is_cut_off_is_bound_by_the_life_of_the_token() {
    let stage = Stage::new();
    let identity = stage.identity().await;
    let (ada, tokens) = identity.user("ada@example.org").await;
    let orders = stage.behind("orders", identity.local()).await;
    assert_eq!(stage.status(&orders, &tokens.access).await, StatusCode::OK);
    stage.bus.away();
    identity.block(&ada).await;
    assert_eq!(stage.status(&orders, &tokens.access).await, StatusCode::OK, "it cannot know");
    stage.clock.advance(Duration::from_secs(15 * 60 + 6));
    assert_eq!(stage.status(&orders, &tokens.access).await, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_service_that_is_cut_off_asks_identity_if_it_is_told_so() {
    let stage = Stage::new();
    let identity = stage.identity().await;
    let (ada, tokens) = identity.user("ada@example.org").await;
    let auth = identity.local().client(CLIENT.0, CLIENT.1).introspect_at(&identity.url("/introspect"));
    let orders = stage.behind("orders", auth.central_after(Duration::ZERO)).await;
    assert_eq!(stage.status(&orders, &tokens.access).await, StatusCode::OK);
    stage.bus.away();
    identity.block(&ada).await;
    eventually("orders asks", async || {
        stage.status(&orders, &tokens.access).await == StatusCode::UNAUTHORIZED
    })
    .await;
    let (_, bob) = identity.user("bob@example.org").await;
    assert_eq!(stage.status(&orders, &bob.access).await, StatusCode::OK);
}

#[tokio::test]
async fn a_service_that_is_cut_off_says_so() {
    let stage = Stage::new();
    let identity = stage.identity().await;
    let orders = stage.behind("orders", identity.local().alarm_after(Duration::ZERO)).await;
    let patient = stage.behind("products", identity.local()).await;
    let health = async |service: &tombolo::Running<_>| {
        stage.send(stage.http.get(format!("{}/health", service.url))).await
    };
    assert_eq!(health(&orders).await.text, "ok");
    stage.bus.away();
    eventually("it says so", async || health(&orders).await.text.starts_with("degraded: the bus")).await;
    assert_eq!(health(&orders).await.status, StatusCode::OK, "it runs");
    assert_eq!(health(&patient).await.text, "ok", "not before its time");
    stage.bus.back();
    eventually("it is well again", async || health(&orders).await.text == "ok").await;
}

#[tokio::test]
async fn what_the_issuer_said_is_remembered_for_as_long_as_it_was_asked_to_be() {
    let stage = Stage::new();
    let identity = stage.identity().await;
    let (ada, tokens) = identity.user("ada@example.org").await;
    let plain = stage.behind("orders", identity.central()).await;
    let kept = Duration::from_secs(5);
    let remembering = stage.behind("products", identity.central().central_cache(kept)).await;
    for service in [&plain, &remembering] {
        assert_eq!(stage.status(service, &tokens.access).await, StatusCode::OK);
    }
    identity.block(&ada).await;
    assert_eq!(stage.status(&plain, &tokens.access).await, StatusCode::UNAUTHORIZED);
    assert_eq!(stage.status(&remembering, &tokens.access).await, StatusCode::OK);
    stage.clock.advance(kept);
    assert_eq!(stage.status(&remembering, &tokens.access).await, StatusCode::UNAUTHORIZED);
}

async fn trailing(orders: &tombolo::Running<tombolo::sqlite::Sqlite>) -> i64 {
    let sum = "SELECT coalesce(sum(sequence), 0) FROM tombolo_cursor WHERE subscription = 'auth-blocks'";
    sqlx::query_scalar(sum).fetch_one(orders.app.database().pool()).await.unwrap()
}

#[tokio::test]
async fn the_cursor_trails_by_as_long_as_blocks_are_kept_and_reading_goes_on_from_it() {
    let stage = Stage::new();
    let identity = stage.identity().await;
    let (ada, tokens) = identity.user("ada@example.org").await;
    let orders = stage.behind("orders", identity.local()).await;
    identity.block(&ada).await;
    let ended = async |orders: &tombolo::Running<_>, token: &str| {
        eventually("orders hears of it", async || {
            stage.status(orders, token).await == StatusCode::UNAUTHORIZED
        })
        .await;
    };
    ended(&orders, &tokens.access).await;
    stage.clock.advance(Duration::from_secs(60));
    assert_eq!(trailing(&orders).await, 0, "the block may be needed again");
    stage.clock.advance(Duration::from_secs(20 * 60));
    eventually("the cursor moves", async || trailing(&orders).await > 0).await;
    orders.shutdown().await;
    let (bob, tokens) = identity.user("bob@example.org").await;
    let orders = stage.behind("orders", identity.local()).await;
    assert_eq!(stage.status(&orders, &tokens.access).await, StatusCode::OK);
    identity.block(&bob).await;
    ended(&orders, &tokens.access).await;
    orders.shutdown().await;
    let orders = stage.behind("orders", identity.local()).await;
    assert_eq!(stage.status(&orders, &tokens.access).await, StatusCode::UNAUTHORIZED, "it was loaded again");
}

#[tokio::test]
async fn a_service_starts_where_identity_never_was() {
    let stage = Stage::new();
    let auth = tombolo::auth::Auth::local(crate::stage::ISSUER).keys_at("http://127.0.0.1:1/keys");
    let orders = stage.behind("orders", auth).await;
    eventually("it is ready", async || {
        stage.send(stage.http.get(format!("{}/ready", orders.url))).await.status == StatusCode::OK
    })
    .await;
    let nobody = stage.send(stage.http.get(format!("{}/maybe", orders.url))).await;
    assert_eq!(nobody.status, StatusCode::OK);
}

const SERVICES: usize = 20;
const BLOCKS: usize = 50;

/// How a user's request is answered at a service, under one of the strategies.
struct Strategy<'a> {
    stage: &'a Stage,
    services: Vec<tombolo::Running<tombolo::sqlite::Sqlite>>,
    door: Option<crate::internal::Open>,
}

impl Strategy<'_> {
    /// As a client sees it: at the gateway, if there is one.
    async fn status(&self, number: usize, token: &str) -> StatusCode {
        let service = &self.services[number];
        let Some(door) = &self.door else { return self.stage.status(service, token).await };
        let Some(user) = door.user(token).await else { return StatusCode::UNAUTHORIZED };
        let internal = door.sign(Some(&user), &format!("service-{number}"));
        crate::internal::show(self.stage, service, "/who", &internal, None).await.status
    }

    /// From the request that blocks to the first refusal at each service.
    async fn measure(&self, identity: &crate::stage::Identity<'_>, name: &str) -> Duration {
        let (ada, mut tokens) = identity.user(&format!("{name}@example.org")).await;
        let mut delays = Vec::new();
        for _ in 0..BLOCKS {
            let asked = Instant::now();
            identity.block(&ada).await;
            let until = (0..SERVICES).map(async |number| {
                while self.status(number, &tokens.access).await != StatusCode::UNAUTHORIZED {}
                asked.elapsed()
            });
            delays.extend(futures_util::future::join_all(until).await);
            identity.unblock(&ada).await;
            tokens = identity.sign_in(&format!("{name}@example.org")).await;
            for number in 0..SERVICES {
                let let_in = async || self.status(number, &tokens.access).await == StatusCode::OK;
                eventually("unblocked", let_in).await;
            }
        }
        delays.sort_unstable();
        let at = |part: usize| delays[(delays.len() - 1) * part / 100];
        let (half, most, all) = (at(50), at(99), at(100));
        eprintln!("{name}: block to refusal at {SERVICES} services: p50 {half:?}, p99 {most:?}, max {all:?}");
        most
    }
}

/// From the request that blocks to the first refusal at each of 20 services, under each strategy.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: 150 blocks at 20 services, and figures that a busy machine spoils"]
async fn blocks_take_effect_everywhere_within_moments() {
    for name in ["local", "central", "gateway"] {
        let stage = Stage::new();
        let identity = stage.identity().await;
        let (mut services, mut door) = (Vec::new(), None);
        for number in 0..SERVICES {
            let auth = match name {
                "local" => identity.local(),
                "central" => identity.central(),
                _ => tombolo::auth::Auth::gateway(),
            };
            services.push(stage.behind(&format!("service-{number}"), auth).await);
        }
        if name == "gateway" {
            door = Some(crate::internal::open(&stage, "gateway", identity.local()).await);
        }
        let most = Strategy { stage: &stage, services, door }.measure(&identity, name).await;
        assert!(most < Duration::from_secs(1), "{name}: p99 {most:?}");
    }
}
