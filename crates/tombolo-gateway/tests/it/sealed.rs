//! TLS and HTTP/2, on both sides of the gateway.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::stage::{Service, gateway, to, until};

/// Writes a certificate for `localhost`, and returns it.
fn certificate(folder: &Path) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(folder.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    std::fs::write(folder.join("chain.pem"), made.cert.pem()).unwrap();
    CertificateDer::from_pem_slice(made.cert.pem().as_bytes()).unwrap()
}

async fn connect(
    address: SocketAddr,
    trusted: &CertificateDer<'static>,
    alpn: &[u8],
) -> Option<tokio_rustls::client::TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    let stream = TcpStream::connect(address).await.unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(ServerName::try_from("localhost").unwrap(), stream)
        .await
        .ok()
}

async fn ask_two<C>(stream: C, request: Request<Full<Bytes>>) -> (http::Response<()>, String)
where
    C: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let answer = sender.send_request(request).await.unwrap();
    let (head, body) = answer.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (http::Response::from_parts(head, ()), String::from_utf8_lossy(&body).into_owned())
}

fn request(uri: &str) -> Request<Full<Bytes>> {
    Request::post(uri).header("x-user-id", "admin").header("x-test", "1").body(Full::from("hello")).unwrap()
}

#[tokio::test]
async fn both_protocols_are_spoken_over_tls() {
    let scratch = tempfile::tempdir().unwrap();
    let trusted = certificate(scratch.path());
    let service = Service::start("a").await;
    let tls =
        format!("tls = {{ chain = \"{0}/chain.pem\", key = \"{0}/key.pem\" }}\n", scratch.path().display());
    let gateway = gateway(&format!("{tls}{}", to(&service))).await;
    let stream = connect(gateway.address(), &trusted, b"h2").await.unwrap();
    let (head, body) = ask_two(stream, request("https://localhost/x?y")).await;
    assert_eq!((head.status().as_u16(), body.as_str()), (200, "a"));
    assert_eq!(head.version(), http::Version::HTTP_2);
    let seen = service.last();
    assert_eq!((seen.target.as_str(), seen.bytes), ("/x?y", 5));
    assert_eq!(
        (&seen.headers["host"], &seen.headers["x-forwarded-proto"]),
        (&"localhost".parse().unwrap(), &"https".parse().unwrap())
    );
    assert!(!seen.headers.contains_key("x-user-id"));
    let mut stream = connect(gateway.address(), &trusted, b"http/1.1").await.unwrap();
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    gateway.stop().await;
}

#[tokio::test]
async fn a_changed_certificate_is_used_by_new_connections_and_an_old_one_goes_on() {
    let scratch = tempfile::tempdir().unwrap();
    let first = certificate(scratch.path());
    let service = Service::start("a").await;
    let tls =
        format!("tls = {{ chain = \"{0}/chain.pem\", key = \"{0}/key.pem\" }}\n", scratch.path().display());
    let gateway = gateway(&format!("{tls}{}", to(&service))).await;
    let before = connect(gateway.address(), &first, b"h2").await.unwrap();
    std::fs::write(scratch.path().join("chain.pem"), "nothing").unwrap();
    assert!(connect(gateway.address(), &first, b"h2").await.is_some(), "what cannot be used was used");
    let second = certificate(scratch.path());
    until("the new certificate is used", async || connect(gateway.address(), &second, b"h2").await.is_some())
        .await;
    assert!(connect(gateway.address(), &first, b"h2").await.is_none());
    assert_eq!(ask_two(before, request("https://localhost/")).await.0.status(), 200);
    gateway.stop().await;
}

#[tokio::test]
async fn replicas_are_spoken_to_in_http_2_and_clients_without_tls_too() {
    let service = Service::start("a").await;
    let gateway = gateway(&format!("{}http2 = true\n", to(&service))).await;
    let stream = TcpStream::connect(gateway.address()).await.unwrap();
    let (head, body) = ask_two(stream, request("http://shop.example/x")).await;
    assert_eq!((head.status().as_u16(), body.as_str()), (200, "a"));
    let seen = service.last();
    assert_eq!((seen.target.as_str(), seen.version), ("/x", http::Version::HTTP_2));
    assert_eq!((seen.bytes, &seen.headers["x-forwarded-host"]), (5, &"shop.example".parse().unwrap()));
    gateway.stop().await;
}

#[tokio::test]
async fn bounds_hold_in_http_2_too() {
    let service = Service::start("a").await;
    let gateway = gateway(&format!("{}body_max = 4\n", to(&service))).await;
    let stream = TcpStream::connect(gateway.address()).await.unwrap();
    let (head, body) = ask_two(stream, request("http://shop.example/x")).await;
    assert_eq!(head.status(), 413, "{body}");
    let stream = TcpStream::connect(gateway.address()).await.unwrap();
    let (head, _) = ask_two(stream, request("http://shop.example/a/%2e%2e/b")).await;
    assert_eq!(head.status(), 400);
    assert_eq!(service.requests(), 0);
    gateway.stop().await;
}

#[tokio::test]
async fn a_certificate_that_cannot_be_read_is_named() {
    let mut settings = crate::stage::settings("[[gateway.route]]\nservice = \"a\"\n");
    let file = |name: &str| Path::new("/nowhere").join(name);
    settings.tls = Some(tombolo_gateway::Certificate { chain: file("c.pem"), key: file("k.pem") });
    let error = tombolo_gateway::Gateway::start(settings, tombolo_gateway::Outside::default())
        .await
        .map(drop)
        .unwrap_err();
    assert!(error.to_string().starts_with("/nowhere/c.pem is no file of certificates"), "{error}");
}
