//! What browsers ask for: other origins, and shorter answers.

use crate::stage::{Service, gateway, get, raw, status, to};

#[tokio::test]
async fn a_page_of_a_named_origin_may_read_answers_and_others_may_not() {
    let service = Service::start("a").await;
    let cors =
        "cors = { origins = [\"https://shop.example\"], credentials = true, expose = [\"x-request-id\"] }\n";
    let gateway = gateway(&format!("{}{cors}", to(&service))).await;
    let answer = get(&gateway, "/", "Origin: https://shop.example\r\n").await;
    assert_eq!(status(&answer), 200);
    assert!(answer.contains("access-control-allow-origin: https://shop.example"), "{answer}");
    assert!(
        answer.contains("access-control-allow-credentials: true")
            && answer.contains("access-control-expose-headers: x-request-id")
    );
    let other = get(&gateway, "/", "Origin: https://evil.example\r\n").await;
    assert!(!other.contains("access-control-allow-origin: https://evil"), "{other}");
    let before = service.requests();
    let preflight = "OPTIONS /x HTTP/1.1\r\nHost: a\r\nOrigin: https://shop.example\r\nAccess-Control-Request-Method: PUT\r\n\
                     Access-Control-Request-Headers: x-a\r\nConnection: close\r\n\r\n";
    let answer = raw(gateway.address(), preflight).await;
    assert_eq!(status(&answer), 200);
    assert!(
        answer.contains("access-control-allow-methods: PUT")
            && answer.contains("access-control-allow-headers: x-a"),
        "{answer}"
    );
    assert!(answer.contains("x-request-id: "));
    assert_eq!(service.requests(), before, "the service was asked");
    gateway.stop().await;
}

#[tokio::test]
async fn answers_are_compressed_for_who_asks_and_only_there() {
    let service = Service::start("a").await;
    let gateway = gateway(&format!("{}compress = true\n", to(&service))).await;
    for encoding in ["gzip", "br"] {
        let answer = get(&gateway, "/big/50000", &format!("Accept-Encoding: {encoding}\r\n")).await;
        assert!(
            answer.contains(&format!("content-encoding: {encoding}")) && answer.len() < 5000,
            "{}",
            answer.len()
        );
    }
    let plain = get(&gateway, "/big/50000", "").await;
    assert!(!plain.contains("content-encoding") && plain.len() > 50_000);
    gateway.stop().await;
}
