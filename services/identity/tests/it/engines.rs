//! Blocks over buses that are processes of their own: the bus of Tombolo over a socket, and whichever servers are there.

use std::env;
use std::sync::Arc;

use reqwest::StatusCode;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tombolo::bus::{Bus, Log, Options, Server};
use tombolo::sqlite::Sqlite;
use tombolo::{Running, Service, Settings};
use uuid::Uuid;

use crate::stage::{Stage, eventually};

/// The address of a server with a namespace of its own, or none with a line that says so.
fn server(what: &str, variable: &str, address: impl Fn(&str, &str) -> String) -> Option<String> {
    let url = env::var(variable).ok().filter(|url| !url.is_empty());
    if url.is_none() {
        eprintln!("skipped: {what}: {variable} is not set; run cargo xtask test --install");
    }
    url.map(|url| address(url.trim_end_matches('/'), &format!("it-{}", Uuid::new_v4().simple())))
}

fn on(bus: &str) -> Settings {
    Settings { bus: bus.to_owned(), ..Settings::default() }
}

/// A block, and a service that is started again after it.
async fn is_blocked_over(bus: &str) {
    let stage = Stage::new();
    let identity = stage.identity_in(on(bus)).await;
    let (ada, tokens) = identity.user("ada@example.org").await;
    let orders = async || -> Running<Sqlite> {
        let service: Service<Sqlite> = stage.asking("orders", identity.local());
        service.clock(stage.clock.clone()).start(on(bus)).await.unwrap()
    };
    let first = orders().await;
    eventually("it is loaded", async || stage.status(&first, &tokens.access).await == StatusCode::OK).await;
    identity.block(&ada).await;
    eventually("orders hears of it", async || {
        stage.status(&first, &tokens.access).await == StatusCode::UNAUTHORIZED
    })
    .await;
    first.shutdown().await;
    let second = orders().await;
    let never = [StatusCode::UNAUTHORIZED, StatusCode::SERVICE_UNAVAILABLE];
    eventually("it is loaded", async || {
        let status = stage.status(&second, &tokens.access).await;
        assert!(never.contains(&status), "{status} before it knew");
        status == StatusCode::UNAUTHORIZED
    })
    .await;
    second.shutdown().await;
    identity.running.shutdown().await;
}

/// The bus of Tombolo on a port, until it is dropped or stopped.
pub(crate) async fn serve(log: &Arc<Log>, address: &str) -> (String, AbortOnDropHandle<()>) {
    let server = Server::bind(&[address.parse().unwrap()], Arc::clone(log) as Arc<dyn Bus>).await.unwrap();
    let address = server.addresses()[0].to_string();
    let serving = tokio::spawn(async move { server.serve(CancellationToken::new()).await.unwrap() });
    (address, AbortOnDropHandle::new(serving))
}

#[tokio::test]
async fn a_block_is_heard_over_tombolos_own_bus() {
    let folder = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(folder.path(), Options::default()).unwrap();
    let (bus, _serving) = serve(&log, "tombolo://127.0.0.1:0").await;
    is_blocked_over(&bus).await;
}

#[tokio::test]
async fn a_block_that_fell_while_the_bus_was_away_is_heard_when_it_is_back() {
    let folder = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(folder.path(), Options::default()).unwrap();
    let (bus, serving) = serve(&log, "tombolo://127.0.0.1:0").await;
    let stage = Stage::new();
    let identity = stage.identity_in(on(&bus)).await;
    let (ada, tokens) = identity.user("ada@example.org").await;
    let orders =
        stage.asking("orders", identity.local()).clock(stage.clock.clone()).start(on(&bus)).await.unwrap();
    eventually("it is loaded", async || stage.status(&orders, &tokens.access).await == StatusCode::OK).await;
    drop(serving);
    identity.block(&ada).await;
    assert_eq!(stage.status(&orders, &tokens.access).await, StatusCode::OK, "it cannot know");
    let (_, _serving) = serve(&log, &bus).await;
    eventually("orders hears of it", async || {
        stage.status(&orders, &tokens.access).await == StatusCode::UNAUTHORIZED
    })
    .await;
}

#[tokio::test]
async fn a_block_is_heard_over_jetstream() {
    let address = |url: &str, name: &str| format!("{url}/{name}?accept=unsynced");
    let Some(bus) = server("nats", "TOMBOLO_TEST_NATS", address) else { return };
    is_blocked_over(&bus).await;
}

#[tokio::test]
async fn a_block_is_heard_over_redis() {
    let address = |url: &str, name: &str| format!("{url}/?namespace={name}");
    let Some(bus) = server("redis", "TOMBOLO_TEST_REDIS", address) else { return };
    is_blocked_over(&bus).await;
}
