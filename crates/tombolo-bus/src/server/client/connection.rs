//! The connections of one client: who it is, where the server is, and whether it answers.
//!
//! Three connections, so that each kind of traffic has its own pace: appends and control, bulk reading, and
//! signals. Each is made when it is first used. Invariant: that the server is away is logged once, and that it
//! is back once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::{self, Either};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status, Streaming};

use crate::server::generated::bus_client::BusClient;
use crate::server::identity::Identified;
use crate::server::{
    CONNECTION_WINDOW_BYTES, FRAME_BYTES_MAX, Listen, MESSAGE_BYTES_MAX, SILENCE_MAX, STREAM_WINDOW_BYTES,
    Trust, failure, generated as wire, tls,
};
use crate::{Error, Guarantee, Identity, Kind, Result};

/// How long one question may take, connecting included. Streams have no such bound, only [`SILENCE_MAX`].
const CALL_MAX: Duration = Duration::from_secs(15);
/// How long connecting may take.
const CONNECT_MAX: Duration = Duration::from_secs(5);

pub(super) type Calls = BusClient<InterceptedService<Channel, Identified>>;
type Answer<T> = std::result::Result<Response<T>, Status>;

/// The way to one server.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    control: Calls,
    bulk: Calls,
    prompt: Calls,
    known: Arc<Known>,
    closed: CancellationToken,
}

/// What is known of the server.
#[derive(Debug)]
struct Known {
    address: String,
    is_away: AtomicBool,
    guarantee: Mutex<Option<Guarantee>>,
}

impl Connection {
    pub(super) fn new(
        address: &Listen,
        identity: &Identity,
        token: Option<&str>,
        trust: &Trust,
    ) -> Result<Self> {
        let identified = Identified::new(identity, token)?;
        let calls = || -> Result<Calls> {
            let client = BusClient::with_interceptor(channel(address, trust)?, identified.clone());
            Ok(client.max_decoding_message_size(MESSAGE_BYTES_MAX))
        };
        let address = address.to_string();
        let known = Known { address, is_away: AtomicBool::new(false), guarantee: Mutex::new(None) };
        let closed = CancellationToken::new();
        Ok(Self { control: calls()?, bulk: calls()?, prompt: calls()?, known: Arc::new(known), closed })
    }

    /// Asks one question on the connection for control.
    pub(super) async fn call<T>(&self, ask: impl AsyncFnOnce(&mut Calls) -> Answer<T>) -> Result<T> {
        let answer = self.ask(&self.control, ask).await?;
        self.learn_guarantee().await;
        Ok(answer)
    }

    /// Opens a stream on the connection for bulk.
    pub(super) async fn bulk<T>(
        &self,
        ask: impl AsyncFnOnce(&mut Calls) -> Answer<Streaming<T>>,
    ) -> Result<Streaming<T>> {
        self.ask(&self.bulk, ask).await
    }

    /// Opens the stream of appends, on the connection for control.
    pub(super) async fn appends(
        &self,
        requests: impl futures_util::Stream<Item = wire::AppendRequest> + Send + 'static,
    ) -> Result<Streaming<wire::AppendReply>> {
        self.ask(&self.control, async |bus| bus.append(requests).await).await
    }

    /// Opens the stream of signals, on the connection for them.
    pub(super) async fn signals(
        &self,
        requests: impl futures_util::Stream<Item = wire::SignalsRequest> + Send + 'static,
    ) -> Result<Streaming<wire::SignalsReply>> {
        self.ask(&self.prompt, async |bus| bus.signals(requests).await).await
    }

    async fn ask<T>(&self, calls: &Calls, ask: impl AsyncFnOnce(&mut Calls) -> Answer<T>) -> Result<T> {
        let mut calls = calls.clone();
        let asked = tokio::time::timeout(CALL_MAX, ask(&mut calls));
        tokio::pin!(asked);
        let closed = std::pin::pin!(self.closed.cancelled());
        match future::select(closed, asked).await {
            Either::Left(_) => Err(self.closed_error()),
            Either::Right((Ok(Ok(answer)), _)) => {
                self.reached();
                Ok(answer.into_inner())
            }
            Either::Right((Ok(Err(status)), _)) => Err(self.lost(&status)),
            Either::Right((Err(_), _)) => {
                let said = format!("no answer within {} s", CALL_MAX.as_secs());
                Err(self.lost(&Status::unavailable(said)))
            }
        }
    }

    /// What the server guarantees, as last heard.
    pub(super) fn guarantee(&self) -> Guarantee {
        let heard = self.known.guarantee.lock().unwrap_or_else(PoisonError::into_inner).clone();
        heard.unwrap_or_else(|| Guarantee {
            engine: format!("the bus at {}", self.known.address),
            survives_power_cut: false,
            detail: "not reached yet, so nothing is known of it".into(),
        })
    }

    pub(super) async fn ask_guarantee(&self) -> Result<Guarantee> {
        let ask = async |bus: &mut Calls| bus.guarantee(wire::GuaranteeRequest {}).await;
        let guarantee = Guarantee::from(self.ask(&self.control, ask).await?);
        *self.known.guarantee.lock().unwrap_or_else(PoisonError::into_inner) = Some(guarantee.clone());
        Ok(guarantee)
    }

    /// A server that came back may be set up otherwise, so it is asked again after each absence.
    async fn learn_guarantee(&self) {
        let is_known = self.known.guarantee.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        if !is_known && let Err(error) = self.ask_guarantee().await {
            tracing::debug!(%error, "the bus did not say what it guarantees");
        }
    }

    fn reached(&self) {
        if self.known.is_away.swap(false, Ordering::Relaxed) {
            tracing::info!(bus = %self.known.address, "the bus is back");
        }
    }

    /// The error that `status` says; notes that the server is away, if that is what it says.
    pub(super) fn lost(&self, status: &Status) -> Error {
        let error = failure::from_status(status, &self.known.address);
        if error.kind() == Kind::Unavailable && !self.known.is_away.swap(true, Ordering::Relaxed) {
            *self.known.guarantee.lock().unwrap_or_else(PoisonError::into_inner) = None;
            tracing::warn!(bus = %self.known.address, %error, "the bus is away");
        }
        error
    }

    pub(super) fn closed(&self) -> &CancellationToken {
        &self.closed
    }

    pub(super) fn closed_error(&self) -> Error {
        let message = format!("the client of the bus at {} was closed by its owner", self.known.address);
        Error::new(Kind::Closed, message)
    }

    pub(super) fn address(&self) -> &str {
        &self.known.address
    }

    /// The connection for signals, for a stream of them.
    pub(super) async fn hear(&self, request: wire::ListenRequest) -> Result<Streaming<wire::Heard>> {
        self.ask(&self.prompt, async |bus| bus.listen(request).await).await
    }
}

fn channel(address: &Listen, trust: &Trust) -> Result<Channel> {
    let uri = match address {
        // Not `https`: what seals is our own connector.
        Listen::Tcp { host, port } | Listen::Tls { host, port } => format!("http://{host}:{port}"),
        Listen::Unix(_) => "http://localhost".to_owned(),
    };
    let endpoint = Endpoint::from_shared(uri).map_err(|error| {
        Error::new(Kind::Configuration, format!("{address} cannot be an address of a bus")).because(error)
    })?;
    let endpoint = endpoint
        .connect_timeout(CONNECT_MAX)
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .http2_keep_alive_interval(SILENCE_MAX)
        .keep_alive_timeout(SILENCE_MAX)
        .keep_alive_while_idle(true);
    Ok(match address.clone() {
        Listen::Tcp { .. } => endpoint.connect_lazy(),
        Listen::Tls { host, port } => {
            let connector = trust.connector()?;
            endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
                let connected = tls::connect(connector.clone(), host.clone(), port);
                async move { connected.await.map(TokioIo::new) }
            }))
        }
        Listen::Unix(path) => endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        })),
    })
}
