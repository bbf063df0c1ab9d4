//! Who somebody is comes from nobody outside.

use crate::stage::{Service, gateway, get, raw, status, to};

const FORGED: [&str; 14] = [
    "X-User-Id: admin",
    "x-user-id: admin",
    "X-USER-ID: admin",
    "X_User_Id: admin",
    "X-User_Id: admin",
    "x_user-roles: admin",
    "X-User: admin",
    "Remote-User: admin",
    "REMOTE_USER: admin",
    "X-Forwarded-User: admin",
    "Tombolo-Internal-Token: admin",
    "TOMBOLO_INTERNAL_TOKEN: admin",
    "tombolo-internal_token: admin",
    "Tombolo-Asked: admin",
];

async fn saw_nothing(headers: &str) {
    let service = Service::start("a").await;
    let gateway = gateway(&to(&service)).await;
    let answer = get(&gateway, "/", headers).await;
    if status(&answer) == 200 {
        for (name, value) in &service.last().headers {
            assert_ne!(value, "admin", "{name} came through by {headers:?}");
        }
    } else {
        assert_eq!(service.requests(), 0, "{answer}");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn no_spelling_of_an_identity_comes_through() {
    for forged in FORGED {
        saw_nothing(&format!("{forged}\r\n")).await;
        saw_nothing(&format!("{forged}\r\n{forged}\r\nX-Real-IP: admin\r\nForwarded: admin\r\n")).await;
    }
}

#[tokio::test]
async fn no_identity_comes_through_behind_fillers() {
    for count in [90, 120, 500] {
        let fillers: String = (0..count).map(|number| format!("X-Filler-{number}: 1\r\n")).collect();
        for forged in FORGED {
            saw_nothing(&format!("{fillers}{forged}\r\n")).await;
        }
    }
}

#[tokio::test]
async fn what_connection_names_neither_comes_through_nor_takes_away_what_is_ours() {
    let service = Service::start("a").await;
    let gateway = gateway(&to(&service)).await;
    let names = "X-User-Id, X-Request-Id, X-Forwarded-For, traceparent, Host, tombolo-deadline-ms, close";
    let request =
        format!("GET / HTTP/1.1\r\nHost: shop.example\r\nConnection: {names}\r\nX-User-Id: admin\r\n\r\n");
    assert_eq!(status(&raw(gateway.address(), request).await), 200);
    let seen = service.last().headers;
    assert!(!seen.contains_key("x-user-id"));
    for name in ["x-forwarded-for", "host", "tombolo-deadline-ms", "x-request-id", "traceparent"] {
        assert!(seen.contains_key(name), "{name} was taken away: {seen:?}");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn no_identity_comes_through_in_trailers() {
    let service = Service::start("a").await;
    let gateway = gateway(&to(&service)).await;
    let request = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-User-Id\r\nConnection: close\r\n\r\n\
                   1\r\na\r\n0\r\nX-User-Id: admin\r\n\r\n";
    assert_eq!(status(&raw(gateway.address(), request).await), 200);
    assert!(service.last().headers.values().all(|value| value != "admin"));
    gateway.stop().await;
}
