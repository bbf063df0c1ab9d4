//! Call and gather: the same question, and the honest answer.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tombolo::sqlite::Sqlite;
use tombolo::{Kind, Problem, Question, Running, Service, Why};

use crate::support::{App, Ground, eventually};

#[derive(Serialize, Deserialize, JsonSchema)]
struct HowMany {
    of: String,
}

impl Question for HowMany {
    const NAME: &'static str = "test.how-many.v1";
    type Answer = u64;
}

async fn seven(_: HowMany, _: App) -> Result<u64, Problem> {
    Ok(7)
}

async fn never(_: HowMany, _: App) -> Result<u64, Problem> {
    std::future::pending().await
}

async fn broken(_: HowMany, _: App) -> Result<u64, Problem> {
    Err(Problem::new(axum::http::StatusCode::INTERNAL_SERVER_ERROR, "counting is broken"))
}

/// Passes the question on to "asker", which asks back.
async fn ask_on(question: HowMany, app: App) -> Result<u64, Problem> {
    let next = if app.service().as_str() == "ping" { "pong" } else { "ping" };
    Ok(app.call(next, &question).await?)
}

async fn pass_on_to_slow(question: HowMany, app: App) -> Result<u64, Problem> {
    Ok(app.call("slow", &question).within(Duration::from_secs(60)).await?)
}

fn question() -> HowMany {
    HowMany { of: "sheep".into() }
}

async fn service(ground: &Ground, name: &str) -> Running<Sqlite> {
    ground.start(Service::new(name, ground.database(name))).await
}

async fn knows(app: &App, service: &str) {
    eventually(&format!("{service} known"), || async {
        !matches!(app.call(service, &question()).within(Duration::from_millis(50)).await, Err(error) if error.kind() == Kind::Unknown)
    })
    .await;
}

#[tokio::test]
async fn a_call_and_a_gather_reach_the_same_handler() {
    let ground = Ground::new();
    let counter = ground.start(Service::new("counter", ground.database("counter")).answer(seven)).await;
    let asker = service(&ground, "asker").await;
    assert_eq!(asker.app.call("counter", &question()).await.unwrap(), 7);
    let gathered = asker.app.gather(&question()).await.unwrap();
    assert_eq!(gathered.value, [("counter".to_owned(), 7)]);
    assert!(gathered.is_complete());
    drop(counter);
}

#[tokio::test]
async fn answers_run_through_map_and_reduce() {
    let ground = Ground::new();
    let one = ground.start(Service::new("one", ground.database("one")).answer(seven)).await;
    let two = ground.start(Service::new("two", ground.database("two")).answer(seven)).await;
    let asker = service(&ground, "asker").await;
    let sum = asker
        .app
        .gather(&question())
        .map_reduce(|_, count| count * 10, 0, |sum, count| sum + count)
        .await
        .unwrap();
    assert_eq!((sum.value, sum.answered), (140, vec!["one".to_owned(), "two".to_owned()]));
    drop((one, two));
}

#[tokio::test]
async fn who_does_not_answer_is_named_with_the_reason() {
    let ground = Ground::new();
    let good = ground.start(Service::new("good", ground.database("good")).answer(seven)).await;
    let slow = ground.start(Service::new("slow", ground.database("slow")).answer(never)).await;
    let bad = ground.start(Service::new("bad", ground.database("bad")).answer(broken)).await;
    let gone = ground.start(Service::new("gone", ground.database("gone")).answer(seven)).await;
    gone.shutdown().await;
    let asker = service(&ground, "asker").await;
    let gathered = asker.app.gather(&question()).within(Duration::from_millis(200)).await.unwrap();
    assert_eq!(gathered.value, [("good".to_owned(), 7)]);
    let missing: Vec<_> =
        gathered.missing.iter().map(|missing| (missing.service.as_str(), missing.reason)).collect();
    assert_eq!(missing, [("bad", Why::Failed), ("gone", Why::NotRunning), ("slow", Why::TimedOut)]);
    assert!(gathered.missing[0].detail.contains("counting is broken"), "{:?}", gathered.missing);
    drop((good, slow, bad));
}

#[tokio::test]
async fn a_call_to_a_stopped_service_names_it() {
    let ground = Ground::new();
    let counter = ground.start(Service::new("counter", ground.database("counter")).answer(seven)).await;
    let asker = service(&ground, "asker").await;
    knows(&asker.app, "counter").await;
    counter.shutdown().await;
    let error = asker.app.call("counter", &question()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unreachable);
    assert!(error.to_string().contains("counter cannot be reached at http://"), "{error}");
    let error = asker.app.call("nobody", &question()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unknown);
}

#[tokio::test]
async fn a_loop_of_calls_is_refused_by_name() {
    let ground = Ground::new();
    let ping = ground.start(Service::new("ping", ground.database("ping")).answer(ask_on)).await;
    let pong = ground.start(Service::new("pong", ground.database("pong")).answer(ask_on)).await;
    let asker = service(&ground, "asker").await;
    knows(&ping.app, "pong").await;
    let error = asker.app.call("ping", &question()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Loop);
    assert!(error.to_string().contains("ping → pong → ping"), "{error}");
    drop(pong);
}

#[tokio::test]
async fn a_call_within_a_call_has_what_is_left_of_the_time() {
    let ground = Ground::new();
    let slow = ground.start(Service::new("slow", ground.database("slow")).answer(never)).await;
    let middle =
        ground.start(Service::new("middle", ground.database("middle")).answer(pass_on_to_slow)).await;
    let asker = service(&ground, "asker").await;
    knows(&middle.app, "slow").await;
    let began = std::time::Instant::now();
    let error = asker.app.call("middle", &question()).within(Duration::from_millis(300)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Deadline, "{error}");
    assert!(began.elapsed() < Duration::from_secs(10), "the inner call's 60 s do not count");
    drop(slow);
}

async fn ask_in_a_transaction(question: HowMany, app: App) -> Result<u64, Problem> {
    let mut tx = app.begin().await?;
    // Before the first statement nothing is held yet.
    assert_eq!(app.call("counter", &question).await?, 7);
    sqlx::query("SELECT 1").execute(&mut *tx).await?;
    let refused = app.call("counter", &question).await;
    tx.rollback().await?;
    refused.map_err(Problem::from)
}

#[tokio::test]
async fn a_question_within_a_used_transaction_is_refused() {
    let ground = Ground::new();
    let counter = ground.start(Service::new("counter", ground.database("counter")).answer(seven)).await;
    let holder =
        ground.start(Service::new("holder", ground.database("holder")).answer(ask_in_a_transaction)).await;
    let asker = service(&ground, "asker").await;
    knows(&holder.app, "counter").await;
    let error = asker.app.call("holder", &question()).await.unwrap_err();
    assert!(error.to_string().contains("while a transaction"), "{error}");
    drop(counter);
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct Everything {}

impl Question for Everything {
    const NAME: &'static str = "test.everything.v1";
    type Answer = String;
}

/// More than a signal may hold.
async fn two_mebibytes(_: Everything, _: App) -> Result<String, Problem> {
    Ok("x".repeat(2 << 20))
}

#[tokio::test]
async fn an_answer_too_large_for_a_gather_is_missing_by_name_at_once_and_a_call_gets_it() {
    let ground = Ground::new();
    let large = ground.start(Service::new("large", ground.database("large")).answer(two_mebibytes)).await;
    let asker = service(&ground, "asker").await;
    let gathered = asker.app.gather(&Everything {}).within(Duration::from_secs(60)).await.unwrap();
    assert_eq!((gathered.missing[0].service.as_str(), gathered.missing[0].reason), ("large", Why::Failed));
    assert!(gathered.missing[0].detail.contains("too large"), "{:?}", gathered.missing);
    assert_eq!(asker.app.call("large", &Everything {}).await.unwrap().len(), 2 << 20);
    drop(large);
}
