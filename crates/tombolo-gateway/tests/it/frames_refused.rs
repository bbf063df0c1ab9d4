//! Requests of HTTP/2 with two readings, or more of them than anybody needs: refused, or passed on in one reading.

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::frames::{
    Became, CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, RST_STREAM, Recorder, SETTINGS,
    became, beginning, block, frame, is_whole, resets_until_cut, sent,
};
use crate::stage::{BOUND, Service, gateway, get, status, to};

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
const METHOD: (&str, &str) = (":method", "GET");
const SCHEME: (&str, &str) = (":scheme", "http");
const AUTHORITY: (&str, &str) = (":authority", "a");
const PATH: (&str, &str) = (":path", "/x");

/// Fields behind a sound head that make it unsound.
const FIELDS: [&[(&str, &str)]; 34] = [
    &[("connection", "close")],
    &[("connection", "x-a"), ("x-a", "1")],
    &[("keep-alive", "timeout=5")],
    &[("proxy-connection", "keep-alive")],
    &[("transfer-encoding", "chunked")],
    &[("transfer-encoding", "identity")],
    &[("upgrade", "websocket")],
    &[("te", "gzip")],
    &[("te", "trailers, gzip")],
    &[("content-length", "+0")],
    &[("content-length", "-0")],
    &[("content-length", "0x0")],
    &[("content-length", "")],
    &[("content-length", "0, 0")],
    &[("content-length", "0"), ("content-length", "0")],
    &[("content-length", "0"), ("content-length", "5")],
    &[("content-length", "5")],
    &[("content-length", "00000000000000000000")],
    &[("x", "a\r\nx-user: root")],
    &[("x", "a\nb")],
    &[("x", "a\rb")],
    &[("x", "a\0b")],
    &[("x\r\ny", "a")],
    &[("x\0", "a")],
    &[("x y", "a")],
    &[("x:y", "a")],
    &[("", "a")],
    &[("Upper", "a")],
    &[("host", "b")],
    &[("host", "a"), ("host", "a")],
    &[(":path", "/behind")],
    &[("x", "a"), (":authority", "b")],
    &[(":unknown", "a")],
    &[(":status", "200")],
];

/// Heads that are unsound as a whole.
const HEADS: [&[(&str, &str)]; 33] = [
    &[METHOD, SCHEME, AUTHORITY, PATH, PATH],
    &[METHOD, METHOD, SCHEME, AUTHORITY, PATH],
    &[METHOD, SCHEME, SCHEME, AUTHORITY, PATH],
    &[METHOD, SCHEME, AUTHORITY, AUTHORITY, PATH],
    &[("x", "a"), METHOD, SCHEME, AUTHORITY, PATH],
    &[METHOD, SCHEME, ("x", "a"), AUTHORITY, PATH],
    &[SCHEME, AUTHORITY, PATH],
    &[METHOD, AUTHORITY, PATH],
    &[METHOD, SCHEME, AUTHORITY],
    &[METHOD, SCHEME, PATH],
    &[METHOD, SCHEME, AUTHORITY, (":path", "")],
    &[METHOD, SCHEME, AUTHORITY, (":path", "*")],
    &[(":method", "OPTIONS"), SCHEME, AUTHORITY, (":path", "*")],
    &[METHOD, SCHEME, AUTHORITY, (":path", "x")],
    &[METHOD, SCHEME, AUTHORITY, (":path", "/a b")],
    &[METHOD, SCHEME, AUTHORITY, (":path", "/a HTTP/1.1\r\nHost: b\r\n\r\nGET /smuggled")],
    &[METHOD, SCHEME, AUTHORITY, (":path", "/\0")],
    &[METHOD, SCHEME, AUTHORITY, (":path", "http://b/x")],
    &[METHOD, SCHEME, AUTHORITY, (":path", "/a/../b")],
    &[METHOD, SCHEME, AUTHORITY, (":path", "/a%2fb")],
    &[METHOD, SCHEME, (":authority", "u@a"), PATH],
    &[METHOD, SCHEME, (":authority", "a b"), PATH],
    &[METHOD, SCHEME, (":authority", "a/b"), PATH],
    &[METHOD, SCHEME, (":authority", ""), PATH],
    &[METHOD, SCHEME, (":authority", "a\r\nx-user: root"), PATH],
    &[METHOD, (":scheme", "ftp"), AUTHORITY, PATH],
    &[METHOD, (":scheme", ""), AUTHORITY, PATH],
    &[METHOD, (":scheme", "http://b/"), AUTHORITY, PATH],
    &[(":method", "G T"), SCHEME, AUTHORITY, PATH],
    &[(":method", ""), SCHEME, AUTHORITY, PATH],
    &[(":method", "CONNECT"), (":authority", "b:22")],
    &[(":method", "CONNECT"), SCHEME, AUTHORITY, PATH],
    &[(":method", "CONNECT"), (":protocol", "websocket"), SCHEME, AUTHORITY, PATH],
];

type Fields<'f> = &'f [(&'f str, &'f str)];

fn head(fields: &[(&str, &str)], flags: u8) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | flags, 1, &block(fields))
}

/// A sound head with these fields behind it.
fn sound<'f>(fields: &[(&'f str, &'f str)]) -> Vec<(&'f str, &'f str)> {
    [METHOD, SCHEME, AUTHORITY, PATH].into_iter().chain(fields.iter().copied()).collect()
}

#[tokio::test]
async fn a_head_with_two_readings_is_refused_and_reaches_nobody() {
    let service = Recorder::start(ANSWER).await;
    let gateway = gateway(&service.route()).await;
    let whole = FIELDS.iter().map(|fields| sound(fields));
    let whole = whole.map(|fields| head(&fields, END_STREAM));
    let heads = HEADS.iter().map(|fields| head(fields, END_STREAM));
    for (number, frames) in whole.chain(heads).enumerate() {
        let became = sent(gateway.address(), &frames).await;
        let shown = String::from_utf8_lossy(&frames);
        assert!(became.is_refused(), "{number}: {became:?}: {shown:?}");
        assert_eq!(service.take(), [""; 0], "{number}: {shown:?}");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn what_passes_is_one_request_of_http_1_with_one_reading() {
    let service = Recorder::start(ANSWER).await;
    let gateway = gateway(&service.route()).await;
    let cases: [(Fields<'_>, &[&str], &[&str]); 8] = [
        (&[("cookie", "a=1"), ("cookie", "b=2"), ("cookie", "c=3")], &["cookie: a=1; b=2; c=3"], &[]),
        (&[("host", "a")], &["host: a"], &[]),
        (&[("te", "trailers")], &["te: trailers"], &[]),
        (&[("x", "  a\t")], &["x: "], &[]),
        (
            &[("x-user", "root"), ("x_user", "root"), ("tombolo-internal-token", "t")],
            &[],
            &["root", "internal"],
        ),
        (&[("content-length", "0")], &["content-length: 0"], &["chunked"]),
        (&[("expect", "100-continue"), ("trailer", "x-user")], &[], &["expect", "trailer"]),
        (
            &[("http2-settings", "AAA"), ("x-forwarded-for", "6.6.6.6")],
            &["x-forwarded-for: 127.0.0.1"],
            &["6.6.6.6"],
        ),
    ];
    for (fields, has, has_not) in cases {
        let fields = sound(fields);
        let became = sent(gateway.address(), &head(&fields, END_STREAM)).await;
        assert!(became.is_ok(), "{became:?}: {fields:?}");
        let [request] = <[String; 1]>::try_from(service.take()).unwrap();
        assert!(request.starts_with("GET /x HTTP/1.1\r\n") && is_whole(&request), "{request}");
        let (head, rest) = request.split_once("\r\n\r\n").unwrap();
        let head = head.to_ascii_lowercase();
        assert_eq!((rest, head.matches("\r\nhost:").count()), ("", 1), "{request}");
        for line in has {
            assert!(head.lines().any(|it| it.starts_with(line)), "{line}: {request}");
            let name = line.split(':').next().unwrap();
            assert_eq!(head.lines().filter(|it| it.starts_with(&format!("{name}:"))).count(), 1, "{request}");
        }
        assert!(has_not.iter().all(|text| !head.contains(text)), "{request}");
    }
    for (path, line) in
        [("/x#y", "GET /x HTTP/1.1"), ("//b/x", "GET /b/x HTTP/1.1"), ("/x?a#b", "GET /x?a HTTP/1.1")]
    {
        assert!(
            sent(gateway.address(), &head(&[METHOD, SCHEME, AUTHORITY, (":path", path)], END_STREAM))
                .await
                .is_ok()
        );
        assert_eq!(service.take()[0].lines().next(), Some(line), "{path}");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn a_body_is_as_long_as_its_length_says_or_no_service_takes_it_for_whole() {
    let service = Recorder::start(ANSWER).await;
    let gateway = gateway(&service.route()).await;
    let post = |length: Option<&str>, data: &[u8]| {
        let mut fields = vec![(":method", "POST"), SCHEME, AUTHORITY, PATH];
        fields.extend(length.map(|length| ("content-length", length)));
        [head(&fields, 0), frame(DATA, END_STREAM, 1, data)].concat()
    };
    for (length, data) in [
        ("5", &b"hell"[..]),
        ("5", b"helloGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("0", b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("5", b""),
    ] {
        let became = sent(gateway.address(), &post(Some(length), data)).await;
        assert!(became.is_refused(), "{length}: {became:?}");
        // The connection to the service ends with what was sent, so this waits for it.
        let told = service.take();
        assert!(told.iter().all(|it| !is_whole(it) && !it.contains("smuggled")), "{length}: {told:?}");
    }
    for (length, line) in [(Some("5"), "content-length: 5"), (None, "transfer-encoding: chunked")] {
        assert!(sent(gateway.address(), &post(length, b"hello")).await.is_ok());
        let [request] = <[String; 1]>::try_from(service.take()).unwrap();
        let one = |name: &str| request.to_ascii_lowercase().matches(name).count();
        assert_eq!((one(line), one("content-length") + one("transfer-encoding")), (1, 1), "{request}");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn trailers_say_nothing_that_a_head_may_not() {
    let service = Recorder::start(ANSWER).await;
    let gateway = gateway(&service.route()).await;
    let post = |trailers: &[(&str, &str)]| {
        let fields = [(":method", "POST"), SCHEME, AUTHORITY, PATH, ("trailer", "x-user")];
        let end = frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(trailers));
        [head(&fields, 0), frame(DATA, 0, 1, b"hello"), end].concat()
    };
    for trailers in [("x", "a\r\nb"), ("x", "a\0"), ("Upper", "a")] {
        let became = sent(gateway.address(), &post(&[trailers])).await;
        assert!(became.is_refused(), "{trailers:?}: {became:?}");
        let told = service.take();
        assert!(told.iter().all(|it| !is_whole(it)), "{trailers:?}: {told:?}");
    }
    // What h2 forgives, or sees only when the body has ended, goes on to nobody.
    for trailers in
        [(":path", "/evil"), (":authority", "evil"), ("connection", "evil"), ("transfer-encoding", "evil")]
    {
        let became = sent(gateway.address(), &post(&[trailers])).await;
        let told = service.take();
        assert!(told.iter().all(|it| !it.contains("evil")), "{trailers:?}: {told:?}");
        let whole = told.iter().filter(|it| is_whole(it)).count();
        assert!(whole <= 1 && (whole == 1 || !became.is_ok()), "{trailers:?}: {became:?}: {told:?}");
    }
    let trailers =
        [("x-user", "root"), ("tombolo-internal-token", "t"), ("content-length", "9"), ("host", "evil")];
    assert!(sent(gateway.address(), &post(&trailers)).await.is_ok());
    let [request] = <[String; 1]>::try_from(service.take()).unwrap();
    assert!(
        ["root", "internal", "evil", "length: 9"].iter().all(|text| !request.contains(text)),
        "{request}"
    );
    gateway.stop().await;
}

#[tokio::test]
async fn a_head_without_end_is_refused_long_before_it_ends() {
    let service = Service::start("a").await;
    let gateway = gateway(&to(&service)).await;
    let large = "y".repeat(1 << 10);
    let many: Vec<_> = (0..64).map(|_| ("x", large.as_str())).collect();
    let fields = sound(&many);
    let whole = block(&fields);
    let pieces: Vec<_> = whole.chunks(16 << 10).collect();
    let mut frames = frame(HEADERS, END_STREAM, 1, pieces[0]);
    for (number, piece) in pieces.iter().enumerate().skip(1) {
        let flags = if number + 1 == pieces.len() { END_HEADERS } else { 0 };
        frames.extend(frame(CONTINUATION, flags, 1, piece));
    }
    assert!(sent(gateway.address(), &frames).await.is_refused());
    for piece in [Vec::new(), block(&[("x", &large)])] {
        let mut frames = frame(HEADERS, END_STREAM, 1, &block(&[METHOD, SCHEME, AUTHORITY, PATH]));
        (0..10_000).for_each(|_| frames.extend(frame(CONTINUATION, 0, 1, &piece)));
        let became = sent(gateway.address(), &frames).await;
        assert!(matches!(became, Became::GoneAway(_) | Became::Closed), "{became:?}");
    }
    assert_eq!(service.requests(), 0);
    gateway.stop().await;
}

/// Sends the same on streams of its own until the gateway has had enough; how many were sent.
async fn flood(stream: &mut TcpStream, most: u32, frames: impl Fn(u32) -> Vec<u8>) -> u32 {
    stream.write_all(&beginning()).await.unwrap();
    for number in 0..most {
        if stream.write_all(&frames(2 * number + 1)).await.is_err() {
            return number;
        }
    }
    most
}

#[tokio::test]
async fn who_resets_what_it_asked_for_again_and_again_is_cut() {
    const MOST: u32 = 200_000;
    let service = Service::start("a").await;
    let gateway = gateway(&to(&service)).await;
    let fields = block(&[METHOD, SCHEME, AUTHORITY, (":path", "/held")]);
    let rapid = |number: u32| {
        let asked = frame(HEADERS, END_HEADERS | END_STREAM, number, &fields);
        [asked, frame(RST_STREAM, 0, number, &8_u32.to_be_bytes())].concat()
    };
    let mut stream = TcpStream::connect(gateway.address()).await.unwrap();
    let sent = timeout(BOUND, flood(&mut stream, MOST, rapid)).await.unwrap();
    assert!(sent < MOST, "all was taken");
    let resets = resets_until_cut(gateway.address(), "/held", 1000).await;
    assert!((100..1000).contains(&resets), "{resets}");
    assert!(service.requests() < 2000, "{} requests reached the service", service.requests());
    assert_eq!(status(&get(&gateway, "/", "").await), 200);
    gateway.stop().await;
}

#[tokio::test]
async fn questions_and_settings_without_end_harm_nobody_else() {
    const MOST: u32 = 300_000;
    let service = Service::start("a").await;
    let gateway = gateway(&to(&service)).await;
    let mut floods = Vec::new();
    for (kind, payload) in [(PING, &[0; 8][..]), (SETTINGS, &[]), (SETTINGS, &[0, 4, 0, 0, 255, 255])] {
        let mut stream = TcpStream::connect(gateway.address()).await.unwrap();
        let one = frame(kind, 0, 0, payload);
        // It reads no answer, so it stands still when nobody takes more of it.
        floods.push(tokio::spawn(async move { flood(&mut stream, MOST, |_| one.clone()).await }));
    }
    for _ in 0..100 {
        assert_eq!(status(&get(&gateway, "/", "").await), 200);
    }
    for flood in floods {
        flood.abort();
    }
    let mut stream = TcpStream::connect(gateway.address()).await.unwrap();
    let frames = head(&[METHOD, SCHEME, AUTHORITY, PATH], END_STREAM);
    stream.write_all(&[beginning(), frames].concat()).await.unwrap();
    assert!(timeout(BOUND, became(&mut stream, 1)).await.unwrap().is_ok());
    gateway.stop().await;
}
