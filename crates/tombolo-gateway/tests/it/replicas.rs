//! Several replicas: which is asked, and what happens when one dies.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tombolo_gateway::Gateway;

use crate::stage::{Service, admin, gateway, get, problem, raw, status, until};

async fn three() -> Vec<Service> {
    vec![Service::start("0").await, Service::start("1").await, Service::start("2").await]
}

fn route(services: &[Service], lines: &str) -> String {
    let urls: Vec<_> = services.iter().map(|service| format!("\"{}\"", service.url())).collect();
    format!("[[gateway.route]]\nname = \"all\"\nupstreams = [{}]\n{lines}\n", urls.join(", "))
}

#[tokio::test]
async fn a_service_without_replicas_is_unavailable_until_it_has_some() {
    let service = Service::start("a").await;
    let gateway = gateway("[[gateway.route]]\nservice = \"a\"\nhealth = \"/ready\"\nhealth_ms = 50\n").await;
    let answer = get(&gateway, "/", "").await;
    assert_eq!(
        (status(&answer), problem(&answer)["type"].as_str()),
        (503, Some("urn:tombolo:gateway:unavailable"))
    );
    assert!(answer.contains("retry-after: "), "{answer}");
    gateway.set_replicas("a", [service.url().parse().unwrap()]);
    assert_eq!(status(&get(&gateway, "/", "").await), 200);
    gateway.set_replicas("b", [service.url().parse().unwrap()]);
    gateway.set_replicas("a", []);
    assert_eq!(status(&get(&gateway, "/", "").await), 503);
    gateway.stop().await;
}

#[tokio::test]
async fn it_is_ready_once_it_has_heard_where_services_are_or_that_they_are_nowhere() {
    let service = Service::start("a").await;
    let routes = "[[gateway.route]]\nservice = \"a\"\n[[gateway.route]]\npath = \"/b\"\nservice = \"b\"\n";
    let gateway = gateway(routes).await;
    assert_eq!(status(&admin(&gateway, "/ready").await), 503);
    gateway.set_replicas("a", [service.url().parse().unwrap()]);
    assert_eq!(status(&admin(&gateway, "/ready").await), 503);
    assert!(!gateway.is_ready());
    gateway.heard();
    gateway.ready().await;
    assert_eq!(status(&admin(&gateway, "/ready").await), 200);
    gateway.stop().await;
    let gateway = crate::stage::gateway(&route(&[service], "")).await;
    gateway.ready().await;
    assert_eq!(status(&admin(&gateway, "/ready").await), 200, "its routes name their replicas themselves");
    gateway.stop().await;
}

#[tokio::test]
async fn a_replica_that_says_it_is_not_ready_is_asked_again_when_it_is() {
    let services = three().await;
    let gateway =
        gateway(&route(&services, "balance = \"round-robin\"\nhealth = \"/ready\"\nhealth_ms = 20")).await;
    services[1].told.is_ready.store(false, Ordering::SeqCst);
    let unwell = format!("\"replica\":\"{}\",\"requests\":", services[1].address);
    let is_out = async || {
        let text = admin(&gateway, "/replicas").await;
        text.split('{').any(|one| one.contains(&unwell) && one.contains("\"well\":false"))
    };
    until("it is out", is_out).await;
    let before = services[1].requests();
    for _ in 0..30 {
        get(&gateway, "/", "").await;
    }
    assert_eq!(services[1].requests(), before);
    services[1].told.is_ready.store(true, Ordering::SeqCst);
    until("it is asked again", async || {
        get(&gateway, "/", "").await;
        services[1].requests() > before
    })
    .await;
    gateway.stop().await;
}

#[tokio::test]
async fn the_same_cookie_and_header_lead_to_the_same_replica() {
    let services = three().await;
    for (balance, name) in
        [("hash:cookie:session", "Cookie: a=b; session="), ("hash:header:x-tenant", "X-Tenant: ")]
    {
        let gateway = gateway(&route(&services, &format!("balance = \"{balance}\""))).await;
        let mut used = std::collections::BTreeSet::new();
        for tenant in 0..20 {
            let header = format!("{name}{tenant}\r\n");
            let first = get(&gateway, "/", &header).await;
            for _ in 0..3 {
                let again = get(&gateway, "/", &header).await;
                assert_eq!(again.chars().last(), first.chars().last());
            }
            used.insert(first.chars().last());
        }
        assert_eq!(used.len(), 3);
        gateway.stop().await;
    }
}

#[tokio::test]
async fn a_safe_request_is_tried_elsewhere_and_an_unsafe_one_is_not() {
    let (good, bad) = (Service::start("good").await, closing().await);
    let urls = format!("upstreams = [\"{}\", \"http://{bad}\"]", good.url());
    let gateway =
        gateway(&format!("[[gateway.route]]\nname = \"all\"\nbalance = \"round-robin\"\n{urls}\n")).await;
    let mut failed = 0;
    for _ in 0..4 {
        assert_eq!(status(&get(&gateway, "/", "").await), 200);
        let answer = raw(
            gateway.address(),
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx",
        )
        .await;
        if status(&answer) != 200 {
            assert_eq!(
                (status(&answer), problem(&answer)["type"].as_str()),
                (502, Some("urn:tombolo:gateway:unreachable"))
            );
            assert!(answer.contains("x-request-id: "));
            failed += 1;
        }
    }
    assert!(failed > 0, "no unsafe request met the one that closes");
    gateway.stop().await;
}

/// The address of something that takes requests and closes.
async fn closing() -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.readable().await.unwrap();
            let mut some = [0; 1024];
            stream.try_read(&mut some).ok();
        }
    });
    address
}

#[tokio::test]
async fn retries_are_bounded_by_the_budget() {
    let bad = [closing().await, closing().await];
    let urls = format!("upstreams = [\"http://{}\", \"http://{}\"]", bad[0], bad[1]);
    let gateway = gateway(&format!("retry_percent = 10\n[[gateway.route]]\nname = \"all\"\n{urls}\n")).await;
    for _ in 0..400 {
        assert_eq!(status(&get(&gateway, "/", "").await), 502);
    }
    let metrics = admin(&gateway, "/metrics").await;
    let line = metrics.lines().find(|line| line.starts_with("tombolo_gateway_retries_total")).unwrap();
    let retries: usize = line.rsplit(' ').next().unwrap().parse().unwrap();
    // 10% of 400, and ten a second for the window of ten seconds.
    assert!((1..=150).contains(&retries), "{retries} retries of 400 requests");
    gateway.stop().await;
}

/// What clients met while something happened.
#[derive(Default)]
struct Met {
    safe_failed: AtomicUsize,
    unsafe_failed: AtomicUsize,
    all: AtomicUsize,
}

fn load(gateway: &Gateway, met: &Arc<Met>, stop: &Arc<AtomicBool>, clients: usize) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for client in 0..clients {
        let (met, stop, url) = (met.clone(), stop.clone(), format!("http://{}/", gateway.address()));
        tasks.spawn(async move {
            let http = reqwest::Client::builder().no_proxy().build().unwrap();
            while !stop.load(Ordering::SeqCst) {
                let is_safe = client % 2 == 0;
                let request = if is_safe { http.get(&url) } else { http.post(&url).body("x") };
                let answer = request.send().await.expect("the gateway itself answers always");
                met.all.fetch_add(1, Ordering::SeqCst);
                if !answer.status().is_success() {
                    assert_eq!(answer.status(), 502);
                    assert!(answer.headers().contains_key("x-request-id"));
                    let failed = if is_safe { &met.safe_failed } else { &met.unsafe_failed };
                    failed.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
    }
    tasks
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_one_of_three_under_load_fails_no_safe_request() {
    const CLIENTS: usize = 16;
    let mut services = three().await;
    let gateway = gateway(&route(&services, "")).await;
    let (met, stop) = (Arc::new(Met::default()), Arc::new(AtomicBool::new(false)));
    let mut clients = load(&gateway, &met, &stop, CLIENTS);
    for _ in 0..3 {
        let all = met.all.load(Ordering::SeqCst);
        until("load runs", async || met.all.load(Ordering::SeqCst) > all + 300).await;
        let victim = services.remove(0);
        let (address, name) = (victim.address, services.len().to_string());
        victim.kill().await;
        let all = met.all.load(Ordering::SeqCst);
        until("load goes on", async || met.all.load(Ordering::SeqCst) > all + 300).await;
        let again = Service::at(&name, address).await;
        let returned = tokio::time::Instant::now();
        until("it is in balance again", async || again.requests() > 20).await;
        assert!(returned.elapsed() < Duration::from_secs(2), "{:?}", returned.elapsed());
        services.push(again);
    }
    stop.store(true, Ordering::SeqCst);
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    assert_eq!(met.safe_failed.load(Ordering::SeqCst), 0);
    let failed = met.unsafe_failed.load(Ordering::SeqCst);
    assert!(failed <= 3 * CLIENTS / 2, "{failed} unsafe requests failed, more than were under way");
    gateway.stop().await;
}
