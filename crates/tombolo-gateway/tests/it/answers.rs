//! Services whose answers have two readings: whoever asks gets one answer and the next one gets his own.

use crate::frames::{Became, END_HEADERS, END_STREAM, HEADERS, Recorder, block, frame, sent};
use crate::stage::{admin, gateway, get, problem, raw, status};

/// Answers that are broken, or that somebody behind could read otherwise.
const BROKEN: [&[u8]; 13] = [
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 40\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2, 40\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nX : a\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nX: a\r\n folded: b\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 99 OK\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/9.9 200 OK\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"ok",
    b"HTTP/1.1 200 OK\r\nnothing\r\n\r\n",
];

#[tokio::test]
async fn an_answer_that_is_none_is_a_502_and_says_nothing_of_it() {
    for answer in BROKEN {
        let service = Recorder::start(answer).await;
        let gateway = gateway(&service.route()).await;
        let shown = String::from_utf8_lossy(answer);
        let post = "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        let said = raw(gateway.address(), post).await;
        assert_eq!(status(&said), 502, "{shown:?}: {said}");
        assert_eq!(problem(&said)["type"], "urn:tombolo:gateway:unreachable", "{shown:?}");
        assert_eq!(service.take().len(), 1, "{shown:?}: it may have been carried out, and was sent again");
        gateway.stop().await;
    }
}

#[tokio::test]
async fn of_several_lengths_the_client_hears_of_the_one_that_holds() {
    for (answer, length) in [
        (&b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"[..], None),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n2\r\nok\r\n0\r\n\r\n", None),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok", Some("content-length: 2")),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok", Some("content-length: 2")),
    ] {
        let service = Recorder::start(answer).await;
        let gateway = gateway(&service.route()).await;
        let said = get(&gateway, "/", "").await;
        let (head, body) = said.split_once("\r\n\r\n").unwrap();
        let head = head.to_ascii_lowercase();
        let lengths: Vec<_> = head.lines().filter(|line| line.starts_with("content-length")).collect();
        assert_eq!((status(&said), lengths), (200, length.into_iter().collect()), "{said}");
        let chunked = head.contains("transfer-encoding: chunked");
        assert_eq!(body, if chunked { "2\r\nok\r\n0\r\n\r\n" } else { "ok" });
        let fields = [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/")];
        let asked = frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&fields));
        let became = sent(gateway.address(), &asked).await;
        assert_eq!(became, Became::Answer(0x88, "ok".into()));
        gateway.stop().await;
    }
}

#[tokio::test]
async fn what_comes_behind_an_answer_is_nobodys_answer() {
    for answer in [
        &b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"[..],
        b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 46\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
    ] {
        let service = Recorder::start(answer).await;
        let gateway = gateway(&service.route()).await;
        for _ in 0..10 {
            let said = get(&gateway, "/", "").await;
            assert!(!said.contains("evil") && said.matches("HTTP/1.1 ").count() == 1, "{said}");
            let said = raw(gateway.address(), "HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
            assert!(!said.contains("evil") && said.matches("HTTP/1.1 ").count() == 1, "{said}");
        }
        assert!(admin(&gateway, "/replicas").await.contains("\"requests\":"));
        gateway.stop().await;
    }
}
