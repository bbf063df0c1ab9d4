//! TLS to subscribers, where the bus is built with it.
//!
//! Invariant: a target of `https` is never spoken to without it, and its certificate is checked against the system's roots.

use futures_util::future::Either;
use http::Uri;
use tokio::net::TcpStream;

#[cfg(feature = "tls")]
pub(super) type Sealed = tokio_rustls::client::TlsStream<TcpStream>;
#[cfg(not(feature = "tls"))]
pub(super) type Sealed = TcpStream;

/// The stream as the target's scheme asks for.
#[cfg(feature = "tls")]
pub(super) async fn wrapped(target: &Uri, stream: TcpStream) -> Result<Either<TcpStream, Sealed>, String> {
    use std::sync::OnceLock;

    use tokio_rustls::TlsConnector;
    use tokio_rustls::rustls::pki_types::ServerName;

    static CONNECTOR: OnceLock<Result<TlsConnector, String>> = OnceLock::new();

    if target.scheme_str() != Some("https") {
        return Ok(Either::Left(stream));
    }
    let host = target.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = ServerName::try_from(host).map_err(|error| error.to_string())?;
    let connector = CONNECTOR.get_or_init(connector).clone()?;
    let sealed = connector.connect(name, stream).await.map_err(|error| format!("no TLS: {error}"))?;
    Ok(Either::Right(sealed))
}

#[cfg(feature = "tls")]
fn connector() -> Result<tokio_rustls::TlsConnector, String> {
    use std::sync::Arc;

    use tokio_rustls::rustls::ClientConfig;
    use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
    use tombolo_bus::server::system_authorities;

    let settings = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(system_authorities())
        .with_no_client_auth();
    Ok(Arc::new(settings).into())
}

/// The stream as it is: targets of `https` were refused before.
#[cfg(not(feature = "tls"))]
#[expect(clippy::unused_async, reason = "the other one waits")]
pub(super) async fn wrapped(target: &Uri, stream: TcpStream) -> Result<Either<TcpStream, Sealed>, String> {
    match target.scheme_str() {
        Some("http") => Ok(Either::Left(stream)),
        _ => Err("this bus was built without TLS".into()),
    }
}
