//! What passes, and as what.

use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::stage::{Service, admin, gateway, gateway_with, get, problem, raw, status, to, until};

#[tokio::test]
async fn a_request_passes_with_its_query_and_an_id() {
    let service = Service::start("orders").await;
    let gateway = gateway(&to(&service)).await;
    let answer = get(&gateway, "/orders/7?via=call&x=%20", "X-Test: 1\r\n").await;
    assert_eq!(status(&answer), 200);
    assert!(answer.contains("x-request-id: ") && answer.ends_with("orders"), "{answer}");
    let seen = service.last();
    assert_eq!((&*seen.method, &*seen.target), ("GET", "/orders/7?via=call&x=%20"));
    assert_eq!(seen.headers["host"], "shop.example");
    assert_eq!(seen.headers["x-forwarded-for"], "127.0.0.1");
    assert_eq!(seen.headers["x-forwarded-proto"], "http");
    assert_eq!(seen.headers["x-forwarded-host"], "shop.example");
    assert!(answer.contains(&format!("x-request-id: {}", seen.headers["x-request-id"].to_str().unwrap())));
    assert!(seen.headers.contains_key("tombolo-deadline-ms"));
    assert!(!seen.headers.contains_key("connection"));
    gateway.stop().await;
}

#[tokio::test]
async fn a_sound_id_and_a_trace_are_kept_and_others_replaced() {
    let service = Service::start("a").await;
    let gateway = gateway(&to(&service)).await;
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    get(&gateway, "/", &format!("X-Request-Id: mine-1\r\ntraceparent: {parent}\r\ntracestate: a=1\r\n"))
        .await;
    let seen = service.last().headers;
    let trace = seen["traceparent"].to_str().unwrap();
    assert_eq!(seen["x-request-id"], "mine-1");
    assert_eq!(seen["tracestate"], "a=1");
    assert!(trace.starts_with(&parent[..36]) && trace != parent, "{trace}");
    get(&gateway, "/", "X-Request-Id: a\"b\r\ntraceparent: 00-0-0-0\r\ntracestate: a=1\r\n").await;
    let seen = service.last().headers;
    assert_eq!(seen["x-request-id"].len(), 36);
    assert_eq!(seen["traceparent"].len(), 55);
    assert!(!seen.contains_key("tracestate"));
    gateway.stop().await;
}

#[tokio::test]
async fn routes_are_told_by_host_path_and_method_and_rewritten() {
    let (orders, users) = (Service::start("orders").await, Service::start("users").await);
    let gateway = gateway(&format!(
        "[[gateway.route]]\npath = \"/orders\"\nmethods = [\"GET\"]\nstrip = true\nupstreams = [\"{}\"]\n\
         [[gateway.route]]\npath = \"/users\"\nhost = \"*.example\"\nrewrite = \"/v2\"\nupstreams = [\"{}\"]\n",
        orders.url(),
        users.url()
    ))
    .await;
    assert!(get(&gateway, "//%6Frders/7?q", "").await.ends_with("orders"));
    assert_eq!(orders.last().target, "/7?q");
    assert!(get(&gateway, "/users/1", "").await.ends_with("users"));
    assert_eq!(users.last().target, "/v2/1");
    let other =
        raw(gateway.address(), "GET /users HTTP/1.1\r\nHost: b.test\r\nConnection: close\r\n\r\n").await;
    assert_eq!(
        (status(&other), problem(&other)["type"].as_str()),
        (404, Some("urn:tombolo:gateway:not-found"))
    );
    let post = raw(
        gateway.address(),
        "POST /orders HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert_eq!(status(&post), 405);
    assert!(post.contains("allow: GET"), "{post}");
    gateway.stop().await;
}

#[tokio::test]
async fn no_spelling_of_a_path_leads_past_its_route() {
    let (open, guarded) = (Service::start("open").await, Service::start("guarded").await);
    let gateway = gateway(&format!(
        "[[gateway.route]]\nupstreams = [\"{}\"]\n[[gateway.route]]\npath = \"/admin\"\nupstreams = [\"{}\"]\n",
        open.url(),
        guarded.url()
    ))
    .await;
    for path in [
        "/x/../admin",
        "/%2e%2e/admin",
        "/x/..;/admin",
        "//admin",
        "/%61dmin",
        "/admin%2f",
        "/x%2f..%2fadmin",
        "/./admin",
        "/admin/",
        "/x\\..\\admin",
        "/admin%00",
    ] {
        let answer = get(&gateway, path, "").await;
        assert!(status(&answer) == 400 || answer.ends_with("guarded"), "{path}: {answer}");
    }
    assert_eq!(open.requests(), 0);
    gateway.stop().await;
}

#[tokio::test]
async fn bodies_stream_in_both_directions_and_connections_are_used_again() {
    let service = Service::start("a").await;
    let gateway = gateway(&to(&service)).await;
    let mut stream = TcpStream::connect(gateway.address()).await.unwrap();
    let chunked = "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n3\r\nyou\r\n0\r\n\r\n";
    let plain = "POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbodyGET /big/100000 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    stream.write_all(format!("{chunked}{plain}").as_bytes()).await.unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).await.unwrap();
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 3, "{answers}");
    assert!(answers.ends_with(&"x".repeat(100_000)));
    let bytes: Vec<_> = service.told.seen.lock().unwrap().iter().map(|seen| seen.bytes).collect();
    assert_eq!(bytes, [8, 4, 0]);
    gateway.stop().await;
}

#[tokio::test]
async fn server_sent_events_pass_one_by_one() {
    let service = Service::start("a").await;
    let gateway = gateway(&format!("{}compress = true\n", to(&service))).await;
    let mut stream = TcpStream::connect(gateway.address()).await.unwrap();
    stream.write_all(b"GET /events HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\n\r\n").await.unwrap();
    let mut text = String::new();
    for number in 0..3 {
        service.told.gate.add_permits(1);
        let expected = format!("data: {number}");
        let mut piece = [0; 1024];
        while !text.contains(&expected) {
            let count = stream.read(&mut piece).await.unwrap();
            assert_ne!(count, 0, "{text}");
            text.push_str(&String::from_utf8_lossy(&piece[..count]));
        }
    }
    assert!(!text.contains("content-encoding"));
    drop(stream);
    gateway.stop().await;
}

/// Bytes that somebody else reads.
#[derive(Clone, Default)]
struct Shelf(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Shelf {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn the_log_has_a_line_for_each_request_without_its_secrets() {
    let (service, shelf) = (Service::start("a").await, Shelf::default());
    let gateway = gateway_with(&to(&service), Some(Box::new(shelf.clone()))).await;
    get(&gateway, "/big/10?token=secret", "X-Request-Id: one\r\nAuthorization: Bearer secret\r\n").await;
    get(&gateway, "/%2e%2e", "X-Request-Id: two\r\n").await;
    gateway.stop().await;
    let text = String::from_utf8(shelf.0.lock().unwrap().clone()).unwrap();
    assert!(!text.contains("secret"), "{text}");
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let [one, two] = &lines[..] else { panic!("expected two lines: {text}") };
    assert_eq!(
        (&one["id"], &one["status"], &one["bytes"], &one["route"]),
        (&"one".into(), &200.into(), &10.into(), &"all".into())
    );
    assert_eq!(one["replica"], service.address.to_string());
    assert_eq!((&two["id"], &two["status"], &two["refusal"]), (&"two".into(), &400.into(), &"path".into()));
}

#[tokio::test]
async fn the_admin_port_says_what_is_counted_and_where_replicas_stand() {
    let service = Service::start("a").await;
    let gateway = gateway(&to(&service)).await;
    get(&gateway, "/", "").await;
    get(&gateway, "/status/500", "").await;
    get(&gateway, "/%2e%2e", "").await;
    let metrics = admin(&gateway, "/metrics").await;
    for line in [
        "tombolo_gateway_requests_total{route=\"all\",status=\"2xx\"} 1",
        "tombolo_gateway_requests_total{route=\"all\",status=\"5xx\"} 1",
        "tombolo_gateway_refusals_total{kind=\"path\"} 1",
        "tombolo_gateway_request_seconds_count{route=\"all\"} 2",
        &format!("tombolo_gateway_replica_well{{route=\"all\",replica=\"{}\"}} 1", service.address),
        &format!("tombolo_gateway_replica_requests_total{{route=\"all\",replica=\"{}\"}} 2", service.address),
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
    assert_eq!(metrics.matches("# EOF").count(), 1);
    assert_eq!(status(&admin(&gateway, "/ready").await), 200);
    assert!(admin(&gateway, "/replicas").await.contains(&service.address.to_string()));
    gateway.stop().await;
}

#[tokio::test]
async fn a_stop_lets_what_has_begun_finish_and_takes_nothing_new() {
    let service = Service::start("a").await;
    let gateway = gateway(&to(&service)).await;
    let (address, admin) = (gateway.address(), gateway.admin_address().unwrap());
    let held = tokio::spawn(async move { raw(address, "GET /held HTTP/1.1\r\nHost: a\r\n\r\n").await });
    until("the request is under way", async || service.requests() == 1).await;
    let idle = TcpStream::connect(address).await.unwrap();
    let stopping = tokio::spawn(gateway.stop());
    until("nobody listens", async || TcpStream::connect(address).await.is_err()).await;
    let ready = raw(admin, "GET /ready HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert_eq!(status(&ready), 503);
    service.told.gate.add_permits(1);
    let answer = held.await.unwrap();
    assert!(status(&answer) == 200 && answer.ends_with('a'), "{answer}");
    stopping.await.unwrap();
    drop(idle);
}
