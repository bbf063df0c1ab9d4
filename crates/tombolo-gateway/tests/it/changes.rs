//! What changes while requests run: the configuration.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::task::JoinSet;

use crate::stage::{Service, gateway, get, raw, settings, status, to, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_configuration_drops_no_request() {
    let (one, two) = (Service::start("one").await, Service::start("two").await);
    let gateway = Arc::new(gateway(&to(&one)).await);
    let (stop, failed, all) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut clients = JoinSet::new();
    for _ in 0..8 {
        let (stop, failed, all, url) =
            (stop.clone(), failed.clone(), all.clone(), format!("http://{}/", gateway.address()));
        clients.spawn(async move {
            let http = reqwest::Client::builder().no_proxy().build().unwrap();
            while !stop.load(Ordering::SeqCst) {
                let is_fine = matches!(http.post(&url).body("x").send().await, Ok(answer) if answer.status().is_success());
                failed.fetch_add(usize::from(!is_fine), Ordering::SeqCst);
                all.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    let address = gateway.address();
    let held = tokio::spawn(async move {
        raw(address, "GET /held HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await
    });
    until("one is under way", async || one.told.gate.available_permits() == 0 && one.requests() > 10).await;
    for turn in 0..20 {
        let next = if turn % 2 == 0 { to(&two) } else { to(&one) };
        gateway.reload(settings(&next)).unwrap();
        let seen = all.load(Ordering::SeqCst);
        until("load goes on", async || all.load(Ordering::SeqCst) > seen + 10).await;
    }
    assert!(two.requests() > 10);
    one.told.gate.add_permits(1);
    assert!(held.await.unwrap().ends_with("one"));
    stop.store(true, Ordering::SeqCst);
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    assert_eq!(failed.load(Ordering::SeqCst), 0);
    Arc::into_inner(gateway).unwrap().stop().await;
}

#[tokio::test]
async fn a_configuration_that_needs_a_start_is_refused_and_the_old_one_stays() {
    let service = Service::start("a").await;
    let gateway = gateway(&to(&service)).await;
    let mut other = settings("[[gateway.route]]\npath = \"/other\"\nservice = \"a\"\n");
    other.listen = "127.0.0.1:1".parse().unwrap();
    let error = gateway.reload(other).unwrap_err().to_string();
    assert!(error.starts_with("the address changed"), "{error}");
    assert_eq!(status(&get(&gateway, "/", "").await), 200);
    gateway.stop().await;
}

#[tokio::test]
async fn what_is_known_of_replicas_outlives_a_new_configuration() {
    let service = Service::start("a").await;
    let text = "[[gateway.route]]\nname = \"all\"\nservice = \"a\"\nhealth = \"none\"\nrate = { by = \"route\", per_s = 1, burst = 2 }\n";
    let gateway = gateway(text).await;
    gateway.set_replicas("a", [service.url().parse().unwrap()]);
    assert_eq!(status(&get(&gateway, "/", "").await), 200);
    gateway.reload(settings(&format!("{text}timeout_ms = 5000\n"))).unwrap();
    assert_eq!(status(&get(&gateway, "/", "").await), 200);
    assert_eq!(status(&get(&gateway, "/", "").await), 429);
    gateway.stop().await;
}
