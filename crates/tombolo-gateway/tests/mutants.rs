//! Faults that are made on purpose, each caught by what the tests look at. One at a time: a fault is the whole process's.

#![expect(clippy::unwrap_used, reason = "a test that cannot set its stage has failed")]

#[path = "it/stage.rs"]
#[expect(dead_code, reason = "the other tests use the rest of the stage")]
mod stage;
#[path = "it/frames.rs"]
#[expect(dead_code, reason = "the other tests use the rest of the frames")]
mod frames;

use std::sync::atomic::Ordering;

use tombolo_gateway::mutant::{Mutant, turn};

use crate::frames::{END_HEADERS, END_STREAM, HEADERS, block, frame};
use crate::stage::{Service, admin, gateway, get, raw, settings, status, to};

/// Whether an identity that a client claims reaches a service.
async fn identity_passes() -> bool {
    let service = Service::start("a").await;
    let gateway = gateway(&to(&service)).await;
    get(&gateway, "/", "X-User-Id: admin\r\n").await;
    let passed = service.last().headers.contains_key("x-user-id");
    gateway.stop().await;
    passed
}

/// Whether two lengths are taken for one.
async fn two_lengths_pass() -> bool {
    let service = Service::start("a").await;
    let gateway = gateway(&to(&service)).await;
    let head = "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n";
    let taken = status(&raw(gateway.address(), head).await) == 200;
    gateway.stop().await;
    taken
}

/// Whether a replica at which nobody listens is still taken for well after requests met it.
async fn dead_stay() -> bool {
    let (service, dead) = (Service::start("a").await, Service::start("b").await);
    let address = dead.address;
    dead.kill().await;
    let gateway = gateway(&format!(
        "[[gateway.route]]\nname = \"all\"\nbalance = \"round-robin\"\nupstreams = [\"{}\", \"http://{address}\"]\n",
        service.url()
    ))
    .await;
    for _ in 0..4 {
        get(&gateway, "/", "").await;
    }
    let stays = !admin(&gateway, "/replicas").await.contains("\"well\":false");
    gateway.stop().await;
    stays
}

/// Whether a request that may have been carried out is sent twice.
async fn unsafe_is_repeated() -> bool {
    let services = [Service::start("a").await, Service::start("b").await];
    let gateway = gateway(&format!(
        "[[gateway.route]]\nname = \"all\"\nupstreams = [\"{}\", \"{}\"]\n",
        services[0].url(),
        services[1].url()
    ))
    .await;
    let post = "POST /status/503 HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    raw(gateway.address(), post).await;
    let requests: usize = services.iter().map(|service| service.told.requests.load(Ordering::SeqCst)).sum();
    gateway.stop().await;
    requests > 1
}

/// Whether what is under way is lost when the configuration changes.
async fn reload_cuts() -> bool {
    let (one, two) = (Service::start("one").await, Service::start("two").await);
    let gateway = gateway(&to(&one)).await;
    let address = gateway.address();
    let held = tokio::spawn(async move {
        raw(address, "GET /held HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await
    });
    stage::until("it is under way", async || one.requests() == 1).await;
    gateway.reload(settings(&to(&two))).unwrap();
    one.told.gate.add_permits(1);
    let cut = !held.await.unwrap().ends_with("one");
    gateway.stop().await;
    cut
}

/// Whether requests are asked for before anything is known of a service's replicas.
async fn ready_unheard() -> bool {
    let gateway = gateway("[[gateway.route]]\nservice = \"a\"\n").await;
    let ready = status(&admin(&gateway, "/ready").await) == 200;
    gateway.stop().await;
    ready
}

/// Whether a length that is said twice reaches a service.
async fn fields_pass() -> bool {
    let service = Service::start("a").await;
    let gateway = gateway(&to(&service)).await;
    let path = [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/")];
    let fields = [&path[..], &[("content-length", "0"), ("content-length", "0")]].concat();
    let head = frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&fields));
    frames::sent(gateway.address(), &head).await;
    let passed = service.requests() > 0;
    gateway.stop().await;
    passed
}

/// Whether a client may begin and throw away as much as it likes.
async fn resets_are_free() -> bool {
    const MOST: u32 = 300;
    let service = Service::start("a").await;
    let gateway = gateway(&to(&service)).await;
    let all = frames::resets_until_cut(gateway.address(), "/held", MOST).await == MOST;
    gateway.stop().await;
    all
}

#[tokio::test]
async fn each_fault_is_seen_and_without_it_there_is_none() {
    for mutant in [
        Mutant::PassesIdentities,
        Mutant::PassesHeads,
        Mutant::KeepsTheDead,
        Mutant::RepeatsUnsafe,
        Mutant::CutsAtReload,
        Mutant::IsReadyUnheard,
        Mutant::PassesFields,
        Mutant::CountsNoResets,
    ] {
        for on in [false, true] {
            turn(on.then_some(mutant));
            let seen = match mutant {
                Mutant::PassesIdentities => identity_passes().await,
                Mutant::PassesHeads => two_lengths_pass().await,
                Mutant::KeepsTheDead => dead_stay().await,
                Mutant::RepeatsUnsafe => unsafe_is_repeated().await,
                Mutant::CutsAtReload => reload_cuts().await,
                Mutant::IsReadyUnheard => ready_unheard().await,
                Mutant::PassesFields => fields_pass().await,
                Mutant::CountsNoResets => resets_are_free().await,
            };
            turn(None);
            assert_eq!(seen, on, "{mutant:?}");
        }
    }
}
