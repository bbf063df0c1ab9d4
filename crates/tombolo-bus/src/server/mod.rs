//! The bus as a server, and its client: the port over gRPC, by TCP or a Unix socket.
//!
//! Stands between a service and the log of another process. Invariant: what the port promises holds over the
//! wire too, with one addition: whatever was under way when a connection broke is answered `Unavailable`, its
//! outcome unknown, and repeating it is harmless.
//!
//! ```text
//! relay ─ append ─┐  one connection, pipelined     ┌─ hands over in order, replies when on disk
//! reader ─ read ──┤  another: HTTP/2 flow control  ├─ reads on only while the reader takes
//! asker ─ signal ─┘  a third: never behind bulk    └─ Bus
//! ```

mod client;
mod convert;
mod credentials;
mod exchange;
mod failure;
#[expect(
    unreachable_pub,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated code, which its generator does not write for this crate's lints"
)]
#[rustfmt::skip]
mod generated;
mod identity;
mod listener;
mod records;
mod service;
mod streams;
#[cfg(feature = "tls")]
mod tls;
#[cfg(not(feature = "tls"))]
mod no_tls;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

pub use client::Client;
pub use credentials::{Credential, Credentials, Shown};
pub use listener::{Listen, Peer};
#[cfg(not(feature = "tls"))]
use no_tls as tls;
#[cfg(feature = "tls")]
pub use tls::{Certificate, system_authorities};
pub use tls::{ClientCertificate, Seal, Trust};

use crate::{Bus, Error, Kind, Result};
use generated::bus_server::BusServer;
use listener::Listener;

/// The largest message: the largest append or batch, and what is around it.
const MESSAGE_BYTES_MAX: usize = 8 << 20;
/// The largest frame that is taken. Larger ones cost fewer calls; smaller ones let others in between.
const FRAME_BYTES_MAX: u32 = 256 << 10;
/// How much of one stream is under way before the receiver has taken any: the memory that a slow one holds.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// How much of one connection. So large that streams which stand still never hold up the others.
const CONNECTION_WINDOW_BYTES: u32 = 1 << 30;
/// How many calls of one connection run at once, streams included.
const CALLS_PER_CONNECTION_MAX: u32 = 65_536;
/// How long a peer that says nothing is thought alive: then it is asked, and given as long again.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// How long connections may take to end by themselves when the server stops, before they are cut.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// A bus that listens.
#[derive(Debug)]
pub struct Server {
    listeners: Vec<Listener>,
    bus: Bound,
    credentials: Credentials,
    routes: axum::Router,
    seal: Option<Seal>,
}

struct Bound(Arc<dyn Bus>);

impl std::fmt::Debug for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.guarantee().engine)
    }
}

impl Server {
    /// Takes the addresses. Clients can connect from now on and are answered once [`Server::serve`] runs.
    ///
    /// # Errors
    /// `Configuration` if an address cannot be had: somebody else listens there, or it is not this machine's.
    pub async fn bind(listen: &[Listen], bus: Arc<dyn Bus>) -> Result<Self> {
        if listen.is_empty() {
            let message = "the bus has no address to listen on; expected at least one";
            return Err(Error::new(Kind::Configuration, message));
        }
        let mut listeners = Vec::with_capacity(listen.len());
        for address in listen {
            listeners.push(Listener::bind(address).await?);
        }
        Ok(Self {
            listeners,
            bus: Bound(bus),
            credentials: Credentials::default(),
            routes: axum::Router::new(),
            seal: None,
        })
    }

    /// Asks callers for one of these. Without any, whoever calls is taken at their word.
    #[must_use]
    pub fn with_credentials(mut self, credentials: Credentials) -> Self {
        self.credentials = credentials;
        self
    }

    /// Seals what comes over TCP, if there is something to seal by; sockets of this machine stay as they are.
    #[must_use]
    pub fn sealed_by(mut self, seal: Option<Seal>) -> Self {
        self.seal = seal;
        self
    }

    /// Answers to HTTP on the same addresses by these routes.
    #[must_use]
    pub fn beside(mut self, routes: axum::Router) -> Self {
        self.routes = routes;
        self
    }

    /// The addresses as they were taken: with the port that was chosen where 0 was asked for.
    #[must_use]
    pub fn addresses(&self) -> Vec<Listen> {
        let sealed = |address: &Listen| match address.clone() {
            Listen::Tcp { host, port } if self.seal.is_some() => Listen::Tls { host, port },
            address => address,
        };
        self.listeners.iter().map(|listener| sealed(listener.address())).collect()
    }

    /// Serves until `shutdown`: then takes no more, ends every stream with `Unavailable`, answers the appends
    /// that are under way, and cuts whoever has not gone after a few seconds. Leaves the bus open.
    ///
    /// # Errors
    /// `Unavailable` if the sockets fail.
    pub async fn serve(self, shutdown: CancellationToken) -> Result<()> {
        let cut = CancellationToken::new();
        let _cut_when_dropped = cut.clone().drop_guard();
        let service =
            service::Service { bus: self.bus.0, ending: shutdown.clone(), credentials: self.credentials };
        let service = BusServer::new(service).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let incoming = listener::accept(self.listeners, self.seal, cut.clone());
        let routes = tonic::service::Routes::from(self.routes).add_service(service);
        let serving =
            transport().add_routes(routes).serve_with_incoming_shutdown(incoming, shutdown.cancelled());
        tokio::pin!(serving);
        let served = tokio::select! {
            served = &mut serving => served,
            () = after_grace(&shutdown) => {
                cut.cancel();
                serving.await
            }
        };
        served.map_err(|error| Error::new(Kind::Unavailable, "the bus's sockets failed").because(error))
    }
}

async fn after_grace(shutdown: &CancellationToken) {
    shutdown.cancelled().await;
    tokio::time::sleep(STOP_GRACE).await;
}

fn transport() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .accept_http1(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(CALLS_PER_CONNECTION_MAX)
        .max_frame_size(FRAME_BYTES_MAX)
        .http2_keepalive_interval(Some(SILENCE_MAX))
        .http2_keepalive_timeout(Some(SILENCE_MAX))
}
