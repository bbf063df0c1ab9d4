//! Where a server listens: TCP ports and Unix sockets, and the connections that come in.
//!
//! Invariant: a socket file is removed only if nobody answers on it, or by the listener that made it.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::str::FromStr;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use super::tls::{ClientCertificate, Seal};
use crate::{Error, Kind, Result};

/// How long to wait after the system refused to hand out a connection (no file left), before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How many connections agree on a seal at once; the next ones wait.
const HANDSHAKES_MAX: usize = 1024;

/// Where a server listens, and where a client finds it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Listen {
    /// `tombolo://host:port`; port 0 takes a free one.
    Tcp {
        /// A name or an address; IPv6 in brackets.
        host: String,
        /// The port.
        port: u16,
    },
    /// `tombolo+tls://host:port`: the same, sealed by TLS. A server that seals says so of its ports.
    Tls {
        /// A name or an address; IPv6 in brackets. The server's certificate has to be for it.
        host: String,
        /// The port.
        port: u16,
    },
    /// `tombolo+unix:///path/to/socket`, on this machine only.
    Unix(PathBuf),
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } => write!(f, "tombolo://{host}:{port}"),
            Self::Tls { host, port } => write!(f, "tombolo+tls://{host}:{port}"),
            Self::Unix(path) => write!(f, "tombolo+unix://{}", path.display()),
        }
    }
}

impl FromStr for Listen {
    type Err = Error;

    fn from_str(url: &str) -> Result<Self> {
        let wrong = |found: &str| {
            let message = format!(
                "bus address {url:?} {found}; expected tombolo://host:port, tombolo+tls://host:port or tombolo+unix:///path/to/socket"
            );
            Error::new(Kind::Configuration, message)
        };
        if let Some(path) = url.strip_prefix("tombolo+unix://") {
            return match path.starts_with('/') {
                true => Ok(Self::Unix(path.into())),
                false => Err(wrong("has no absolute path")),
            };
        }
        let sealed = url.strip_prefix("tombolo+tls://");
        let place = sealed.or_else(|| url.strip_prefix("tombolo://"));
        let place = place.ok_or_else(|| wrong("has another scheme"))?;
        let (host, port) = place.rsplit_once(':').ok_or_else(|| wrong("has no port"))?;
        let is_bracketed = host.starts_with('[') && host.ends_with(']');
        let odd =
            |c: char| c.is_whitespace() || matches!(c, '/' | '@' | '?' | '#') || (c == ':' && !is_bracketed);
        if host.is_empty() || host.contains(odd) {
            return Err(wrong("has no host that can be one"));
        }
        let port = port.parse().map_err(|_| wrong("has a port that is not a number up to 65535"))?;
        let host = host.to_owned();
        Ok(if sealed.is_some() { Self::Tls { host, port } } else { Self::Tcp { host, port } })
    }
}

/// A socket that listens.
#[derive(Debug)]
pub(super) struct Listener {
    address: Listen,
    socket: Accepting,
}

#[derive(Debug)]
enum Accepting {
    Tcp(TcpListener),
    Unix { listener: UnixListener, _file: SocketFile },
}

impl Listener {
    pub(super) async fn bind(address: &Listen) -> Result<Self> {
        match address {
            Listen::Tcp { host, port } | Listen::Tls { host, port } => {
                let listener = TcpListener::bind(format!("{host}:{port}"))
                    .await
                    .map_err(|error| cannot_listen(address, error))?;
                let port = listener.local_addr().map_err(|error| cannot_listen(address, error))?.port();
                let address = Listen::Tcp { host: host.clone(), port };
                Ok(Self { address, socket: Accepting::Tcp(listener) })
            }
            Listen::Unix(path) => {
                let listener = bind_unix(path).await.map_err(|error| cannot_listen(address, error))?;
                let socket = Accepting::Unix { listener, _file: SocketFile(path.clone()) };
                Ok(Self { address: address.clone(), socket })
            }
        }
    }

    pub(super) fn address(&self) -> &Listen {
        &self.address
    }

    async fn accept(&self) -> io::Result<Raw> {
        match &self.socket {
            Accepting::Tcp(listener) => {
                let (stream, from) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Raw::Tcp(stream, from))
            }
            Accepting::Unix { listener, .. } => Ok(Raw::Unix(listener.accept().await?.0)),
        }
    }
}

async fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_stale(path).await => {
            tracing::info!(path = %path.display(), "removing a socket file on which nobody answers");
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        bound => bound,
    }
}

/// Whether `path` is the socket of a process that is gone.
async fn is_stale(path: &Path) -> bool {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    let answer = UnixStream::connect(path).await;
    is_socket && answer.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

fn cannot_listen(address: &Listen, error: io::Error) -> Error {
    let why = match (error.kind(), address) {
        (io::ErrorKind::AddrInUse, Listen::Unix(path)) => format!(
            "another process listens there, or {} is not a socket; stop it or choose another path",
            path.display()
        ),
        (io::ErrorKind::AddrInUse, Listen::Tcp { .. } | Listen::Tls { .. }) => {
            "another process listens there; stop it, or choose another port (0 takes a free one)".into()
        }
        (io::ErrorKind::PermissionDenied, _) => {
            format!("{error}; choose an address that this user may take")
        }
        _ => format!("{error}; expected an address of this machine"),
    };
    Error::new(Kind::Configuration, format!("the bus cannot listen on {address}: {why}")).because(error)
}

/// A socket's file, removed when its listener is gone.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "the socket file could not be removed");
        }
    }
}

/// A connection as the system hands it out.
enum Raw {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

/// The connections of all `listeners`, each of which breaks when `cut` is cancelled; those of TCP sealed, where there is a seal.
pub(super) fn accept(
    listeners: Vec<Listener>,
    seal: Option<Seal>,
    cut: CancellationToken,
) -> impl Stream<Item = io::Result<Connection>> + Send {
    let of_one = |listener: Listener| {
        Box::pin(stream::unfold(listener, async |listener| Some((next_raw(&listener).await, listener))))
    };
    let raw = stream::select_all(listeners.into_iter().map(of_one));
    let opened = raw.map(move |raw| opened(raw, seal.clone(), cut.clone()));
    // Agreeing takes a while, and longer with who does not mean it: nobody waits for another's.
    opened.buffer_unordered(HANDSHAKES_MAX).filter_map(async |opened| opened.map(Ok)).fuse()
}

/// A connection that could not be had (no file is left, or it broke at once) costs a pause, never the listener.
async fn next_raw(listener: &Listener) -> Raw {
    loop {
        match listener.accept().await {
            Ok(raw) => return raw,
            Err(error) => {
                tracing::warn!(address = %listener.address, %error, "a connection could not be taken");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The connection, unless its other end does not agree to be sealed.
async fn opened(raw: Raw, seal: Option<Seal>, cut: CancellationToken) -> Option<Connection> {
    let cut = Box::pin(cut.cancelled_owned());
    let (stream, from) = match raw {
        Raw::Unix(stream) => {
            let peer = Peer { address: None, certificate: None };
            return Some(Connection { stream: Box::new(stream), peer, cut });
        }
        Raw::Tcp(stream, from) => (stream, from),
    };
    let Some(seal) = seal else {
        let peer = Peer { address: Some(from), certificate: None };
        return Some(Connection { stream: Box::new(stream), peer, cut });
    };
    match seal.accept(stream).await {
        Ok(stream) => {
            let peer = Peer { address: Some(from), certificate: ClientCertificate::of(&stream) };
            Some(Connection { stream: Box::new(stream), peer, cut })
        }
        Err(error) => {
            tracing::debug!(%from, %error, "a connection was not sealed");
            None
        }
    }
}

/// Where a request comes from. Stands in the request's extensions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The address of the other end, or none for a socket of this machine.
    pub address: Option<SocketAddr>,
    /// What it has shown, and what was verified.
    pub certificate: Option<ClientCertificate>,
}

/// What bytes go over.
trait Bytes: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Bytes for T {}

/// One client's connection.
pub(super) struct Connection {
    stream: Box<dyn Bytes>,
    peer: Peer,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Connected for Connection {
    type ConnectInfo = Peer;
    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if read.is_ready() {
            return read;
        }
        ready!(self.cut.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the bus has stopped")))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_written_as_it_is_read() {
        for url in [
            "tombolo://localhost:7500",
            "tombolo+tls://bus:1",
            "tombolo://[::1]:0",
            "tombolo+unix:///run/bus.sock",
        ] {
            assert_eq!(url.parse::<Listen>().unwrap().to_string(), url);
        }
    }

    #[test]
    fn an_address_that_is_none_says_what_is_wrong_with_it() {
        for (url, said) in [
            ("http://x:1", "another scheme"),
            ("tombolo://x", "no port"),
            ("tombolo://:1", "no host"),
            ("tombolo://a/b:1", "no host"),
            ("tombolo://::1:1", "no host"),
            ("tombolo://x:99999", "65535"),
            ("tombolo+unix://bus.sock", "absolute path"),
        ] {
            let error = url.parse::<Listen>().unwrap_err();
            assert_eq!(error.kind(), Kind::Configuration);
            assert!(error.to_string().contains(said), "{error}");
        }
    }
}
