//! The connection: made once, reconnecting by itself with a back-off, and saying so once each way.
//!
//! A server of a cluster can be there and be of no use: cut off from the others, or stopped. When something fails, others are
//! known, and nobody who leads the cluster answers through it, the connection is made anew, with whichever of them answers.
//!
//! Invariant: whoever uses a link that is closed or away is told so at once; nothing waits for its return.

use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::connection::State;
use async_nats::jetstream::{self, context::ContextBuilder};
use async_nats::{Client, ClientError, ConnectErrorKind, ConnectOptions, Event, RequestErrorKind};
use bytes::Bytes;
use tokio::sync::{OnceCell, watch};
use tokio_util::sync::CancellationToken;
use tombolo_event::Backoff;
use uuid::Uuid;

use super::names::{Address, Login, Names};
use crate::signal::SIGNALS_WAITING_MAX;
use crate::{Error, Kind, Result};

/// How long one request may take.
pub(super) const REQUEST_SECONDS_MAX: u64 = 5;
/// How long the first connection is waited for before going on without it.
const CONNECT_SECONDS_MAX: u64 = 2;
/// How often the server is asked whether it lives, in seconds: three times without an answer, and it is left.
const PING_SECONDS: u64 = 5;
/// How long a server may take to show that it is not to blame.
const PROBE_SECONDS_MAX: u64 = 2;
/// How often it is asked at most whether a server is to be left, in seconds.
const LEAVE_SECONDS_MIN: u64 = 3;
/// How many messages may be on their way at once, before an append waits to send more.
const IN_FLIGHT_MAX: usize = 1 << 20;
const RECONNECT: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(4));

/// One connection, and what everything on it shares.
pub(super) struct Link {
    pub(super) client: Client,
    pub(super) jetstream: jetstream::Context,
    pub(super) names: Names,
    /// On how many servers of a cluster each stream that is made is kept.
    pub(super) replicas: usize,
    servers: usize,
    left: Mutex<Option<Instant>>,
    /// Ends every stream.
    pub(super) closed: CancellationToken,
    /// Changes each time the connection is lost.
    pub(super) losses: watch::Receiver<u64>,
    /// Whether the server was found to be one that can be used.
    checked: OnceCell<()>,
    nonce: String,
    counter: AtomicU64,
    #[cfg(feature = "mutants")]
    pub(super) mutant: Option<super::Mutant>,
}

impl Link {
    /// Connects, or goes on trying in the background if the server is away.
    pub(super) async fn connect(mut address: Address) -> Result<Self> {
        let (arrived, mut arrivals) = watch::channel(0_u64);
        let (lost, losses) = watch::channel(0_u64);
        let (refused, mut refusals) = watch::channel(false);
        let events = Arc::new(Told { arrived, lost, refused });
        let client = options(address.login.take())
            .name("tombolo")
            .retry_on_initial_connect()
            .request_timeout(Some(Duration::from_secs(REQUEST_SECONDS_MAX)))
            .subscription_capacity(SIGNALS_WAITING_MAX)
            .ping_interval(Duration::from_secs(PING_SECONDS))
            .reconnect_delay_callback(|attempt| {
                RECONNECT.jittered(u32::try_from(attempt).unwrap_or(u32::MAX))
            })
            .event_callback(move |event| {
                let events = Arc::clone(&events);
                async move { events.hear(&event) }
            })
            .connect(&address.servers)
            .await
            .map_err(|error| {
                Error::new(Kind::Configuration, "the NATS address cannot be used").because(error)
            })?;
        let link = Self::on(client, address, losses);
        let first = async {
            tokio::select! {
                _ = arrivals.wait_for(|arrivals| *arrivals > 0) => Ok(()),
                _ = refusals.wait_for(|refused| *refused) => Err(refused_by_server()),
            }
        };
        match tokio::time::timeout(Duration::from_secs(CONNECT_SECONDS_MAX), first).await {
            Ok(first) => first?,
            Err(_) => {
                tracing::warn!("the NATS server is away; going on without it, with a back-off");
                return Ok(link);
            }
        }
        link.greet().await.map(|()| link)
    }

    /// Looks at the server for the first time; one that does not answer yet is no error.
    async fn greet(&self) -> Result<()> {
        match self.ready().await {
            Err(error) if error.is_transient() => {
                tracing::warn!(%error, "going on without the NATS server for now");
                Ok(())
            }
            checked => checked,
        }
    }

    fn on(client: Client, address: Address, losses: watch::Receiver<u64>) -> Self {
        let context = ContextBuilder::new()
            .timeout(Duration::from_secs(REQUEST_SECONDS_MAX))
            .max_ack_inflight(IN_FLIGHT_MAX)
            .backpressure_on_inflight(true);
        Self {
            jetstream: context.build(client.clone()),
            client,
            names: address.names,
            replicas: address.replicas,
            servers: address.servers.len(),
            left: Mutex::default(),
            closed: CancellationToken::new(),
            losses,
            checked: OnceCell::new(),
            nonce: Uuid::new_v4().simple().to_string(),
            counter: AtomicU64::new(0),
            #[cfg(feature = "mutants")]
            mutant: None,
        }
    }

    async fn check_server(&self) -> Result<()> {
        let version = self.client.server_info().version;
        if !self.client.is_server_compatible(2, 9, 0) {
            let message = format!("NATS server is version {version}; expected 2.9 or later: upgrade it");
            return Err(Error::new(Kind::Configuration, message));
        }
        if self.replicas > 1 && !self.client.is_server_compatible(2, 12, 0) {
            let message = format!(
                "NATS server is version {version}, and the bus URL asks for {} replicas; expected 2.12 or later for that: upgrade it, because clusters of 2.9 were seen to lose what they had acknowledged and to let replicas stay behind",
                self.replicas
            );
            return Err(Error::new(Kind::Configuration, message));
        }
        // Not the client's own query: it expects fields that 2.9 does not send.
        let answer = self.client.request("$JS.API.INFO", Bytes::new()).await;
        let refused = |why: String| {
            let message = format!(
                "NATS server has no JetStream for us ({why}); start it with `nats-server --jetstream`"
            );
            Error::new(Kind::Configuration, message)
        };
        let answer = answer.map_err(|error| match error.kind() {
            RequestErrorKind::NoResponders => refused("nobody answers".into()),
            _ => unavailable("the NATS server did not say whether it has JetStream", error),
        })?;
        let account: serde_json::Value =
            serde_json::from_slice(&answer.payload).map_err(|error| refused(error.to_string()))?;
        match account.get("error") {
            None => Ok(()),
            // Until the servers of a cluster have elected who leads them.
            Some(error) if error.get("code") == Some(&503.into()) => {
                Err(unavailable("the NATS servers have no JetStream yet", error))
            }
            Some(error) => Err(refused(error.to_string())),
        }
    }

    /// Refuses when the link is closed or away, instead of letting a request wait.
    pub(super) async fn ready(&self) -> Result<()> {
        if self.closed.is_cancelled() {
            return Err(Error::new(Kind::Closed, "the bus was closed by this process"));
        }
        if self.client.connection_state() != State::Connected {
            let message = "the NATS server is away; the connection is being made again";
            return Err(Error::new(Kind::Unavailable, message));
        }
        self.checked.get_or_try_init(|| self.check_server()).await.copied()
    }

    /// What `asked` answers; leaves the server if it is to blame for that, silent or cut off, and others are known.
    pub(super) async fn asking<T>(&self, asked: impl Future<Output = Result<T>>) -> Result<T> {
        let answer = asked.await;
        if answer.as_ref().is_err_and(Error::is_transient) {
            self.leave().await;
        }
        answer
    }

    /// Leaves a server through which nobody answers who leads the cluster, if other servers are known.
    pub(super) async fn leave(&self) {
        let others = self.servers.max(self.client.server_info().connect_urls.len()) > 1;
        if !others || self.client.connection_state() != State::Connected {
            return;
        }
        let again = Duration::from_secs(LEAVE_SECONDS_MIN);
        let just_left = {
            let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
            let just_left = left.is_some_and(|left| left.elapsed() < again);
            *left = if just_left { *left } else { Some(Instant::now()) };
            just_left
        };
        if just_left {
            return;
        }
        let probe = tokio::time::timeout(Duration::from_secs(PROBE_SECONDS_MAX), self.check_server());
        if !matches!(probe.await, Ok(Ok(()))) {
            tracing::warn!("a NATS server does not answer; connecting to whichever does");
            if let Err(error) = self.client.force_reconnect().await {
                tracing::debug!(%error, "the connection to NATS had ended before it was left");
            }
        }
    }

    /// An id that no other message has.
    pub(super) fn message_id(&self) -> String {
        format!("{}.{}", self.nonce, self.counter.fetch_add(1, Ordering::Relaxed))
    }

    pub(super) async fn close(&self) {
        self.closed.cancel();
        if let Err(error) = self.client.drain().await {
            tracing::debug!(%error, "the connection to NATS had ended before it was closed");
        }
    }
}

fn options(login: Option<Login>) -> ConnectOptions {
    match login {
        Some(Login::Password { user, password }) => ConnectOptions::with_user_and_password(user, password),
        Some(Login::Token(token)) => ConnectOptions::with_token(token),
        None => ConnectOptions::new(),
    }
}

/// What the client tells of its connection.
struct Told {
    arrived: watch::Sender<u64>,
    lost: watch::Sender<u64>,
    refused: watch::Sender<bool>,
}

impl Told {
    fn hear(&self, event: &Event) {
        match event {
            Event::Disconnected => {
                self.lost.send_modify(|losses| *losses += 1);
                tracing::warn!("the NATS server is away; connecting again with a back-off");
            }
            Event::Connected => {
                self.arrived.send_modify(|arrivals| *arrivals += 1);
                tracing::info!("connected to the NATS server");
            }
            Event::SlowConsumer(subscription) => {
                tracing::warn!(
                    subscription,
                    "a listener is slow: {SIGNALS_WAITING_MAX} signals wait, newer ones are lost"
                );
            }
            Event::ServerError(error) => tracing::warn!(%error, "the NATS server refused something"),
            // How the client tells why it was not let in.
            Event::ClientError(ClientError::Other(why)) if *why == not_let_in() => {
                self.refused.send_replace(true);
            }
            other => tracing::debug!(%other, "NATS connection"),
        }
    }
}

fn refused_by_server() -> Error {
    let message = "the NATS server does not let us in: check user and password in its address";
    Error::new(Kind::Configuration, message)
}

fn not_let_in() -> String {
    ConnectErrorKind::AuthorizationViolation.to_string()
}

pub(super) fn unavailable(what: &str, error: impl Display) -> Error {
    Error::new(Kind::Unavailable, format!("{what}: {error}"))
}
