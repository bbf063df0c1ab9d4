//! The connections: made, watched, made again with a back-off, and said once each way.
//!
//! There are two, one that sends and one that receives: a server that is out of disk or memory stops reading from who
//! sends, and who is reading must be able to go on.
//!
//! Invariant: whoever uses a link that is closed or away is told so at once; nothing waits for its return.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{BasicQosOptions, ConfirmSelectOptions};
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::{Channel, Connection, ConnectionProperties, ErrorKind};
use tokio::sync::{Mutex, watch};
use tombolo_event::{Backoff, ServiceName};

use super::hello;
use super::names::Address;
use super::stream::{self, Feed, Outlet};
pub(super) use crate::judged::REQUEST_SECONDS_MAX;
use crate::judged::{self, From, Names, Root, Streams};
use crate::{Error, Kind, Result};

/// Ends the link when nobody is left who uses it.
pub(super) type Used = judged::Used<Link>;

/// How long the first connection is waited for before going on without it.
const CONNECT_SECONDS_MAX: u64 = 3;
const RECONNECT: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(4));
/// How often a connection is looked at that says nothing.
const LOOK_EACH: Duration = Duration::from_secs(1);
/// What is said to the server at a normal end.
const REPLY_SUCCESS: u16 = 200;

/// What everything of one bus shares.
pub(super) struct Link {
    pub(super) names: Names,
    address: Address,
    server: watch::Sender<Server>,
    pub(super) root: Root,
}

/// The server as it was found last.
#[derive(Clone)]
enum Server {
    /// Nobody has tried yet.
    Untried,
    Here(Arc<Lines>),
    Away(Kind, String),
}

/// The two connections.
pub(super) struct Lines {
    sends: Connection,
    receives: Connection,
    /// Of the server, if it says one.
    version: Option<String>,
    /// For signals, made when the first is sent, and again if the server has closed it.
    signals: Mutex<Option<Channel>>,
}

impl Lines {
    async fn open(address: &Address, version: Option<String>) -> Result<Self> {
        let connect = || {
            let properties = ConnectionProperties::default().with_connection_name("tombolo".into());
            Connection::connect_uri(address.server.clone(), properties)
        };
        let refused = |error| match failed("the connection to the RabbitMQ server was not made", error) {
            refusal if refusal.kind() == Kind::Configuration => Error::new(
                Kind::Configuration,
                format!("the RabbitMQ server does not let us in: check user, password and vhost ({refusal})"),
            ),
            other => other,
        };
        let (sends, receives) =
            futures_util::future::try_join(connect(), connect()).await.map_err(refused)?;
        Ok(Self { sends, receives, version, signals: Mutex::default() })
    }

    fn are_up(&self) -> bool {
        self.sends.status().connected() && self.receives.status().connected()
    }

    /// A channel on which what is sent is confirmed.
    pub(super) async fn sending(&self) -> Result<Channel> {
        confirming(&self.sends).await
    }

    /// The channel for signals, which `prepare` is shown when it is new.
    pub(super) async fn signals(&self, prepare: impl AsyncFnOnce(&Channel) -> Result<()>) -> Result<Channel> {
        let mut signals = self.signals.lock().await;
        if let Some(channel) = signals.as_ref().filter(|channel| channel.status().connected()) {
            return Ok(channel.clone());
        }
        let channel = self.sending().await?;
        prepare(&channel).await?;
        Ok(signals.insert(channel).clone())
    }

    /// A channel that is sent at most `unread_max` messages that were not acknowledged.
    pub(super) async fn receiving(&self, unread_max: u16) -> Result<Channel> {
        let refused = |error| failed("the RabbitMQ server gave no channel", error);
        let channel = self.receives.create_channel().await.map_err(refused)?;
        channel.basic_qos(unread_max, BasicQosOptions::default()).await.map_err(refused)?;
        Ok(channel)
    }

    /// Refuses what would only wait until somebody makes room on the server.
    pub(super) fn take_writes(&self) -> Result<()> {
        if self.sends.status().blocked() {
            let message =
                "the RabbitMQ server takes nothing: it is out of disk or memory (an alarm is set); make room";
            return Err(Error::new(Kind::ReadOnly, message));
        }
        Ok(())
    }

    /// Returns when one of the connections is lost.
    async fn lost(&self) {
        tokio::select! {
            () = ended(&self.sends) => {}
            () = ended(&self.receives) => {}
        }
    }

    async fn close(&self) {
        for connection in [&self.receives, &self.sends].into_iter().filter(|it| it.status().connected()) {
            let closing = connection.close(REPLY_SUCCESS, "closed".into());
            match tokio::time::timeout(Duration::from_secs(CONNECT_SECONDS_MAX), closing).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::debug!(%error, "the connection to RabbitMQ ended before it was closed")
                }
                Err(_) => tracing::debug!("the RabbitMQ server did not say that it closed the connection"),
            }
        }
    }
}

async fn ended(connection: &Connection) {
    let mut events = std::pin::pin!(connection.events_listener());
    while connection.status().connected() {
        // An error may be that of one channel, and a loss may be told by nothing but the status.
        drop(tokio::time::timeout(LOOK_EACH, events.next()).await);
    }
}

async fn confirming(connection: &Connection) -> Result<Channel> {
    let refused = |error| failed("the RabbitMQ server gave no channel", error);
    let channel = connection.create_channel().await.map_err(refused)?;
    channel.confirm_select(ConfirmSelectOptions::default()).await.map_err(refused)?;
    Ok(channel)
}

impl Link {
    pub(super) fn new(url: &str) -> Result<Self> {
        let address = Address::parse(url)?;
        Ok(Self {
            names: address.names.clone(),
            address,
            server: watch::Sender::new(Server::Untried),
            root: Root::new(),
        })
    }

    /// Starts to keep the connections up; waits a moment for the first.
    ///
    /// # Errors
    /// `Configuration` if the server is there and refuses.
    pub(super) async fn start(self: &Arc<Self>) -> Result<()> {
        let keeper = Arc::clone(self);
        self.root.tasks.spawn(async move {
            let closed = keeper.root.closed.clone();
            closed.run_until_cancelled(keeper.keep_up()).await;
            let last = keeper.server.send_replace(Server::Away(Kind::Closed, String::new()));
            if let Server::Here(lines) = last {
                lines.close().await;
            }
        });
        let mut found = self.server.subscribe();
        let tried = found.wait_for(|server| !matches!(server, Server::Untried));
        let tried = tokio::time::timeout(Duration::from_secs(CONNECT_SECONDS_MAX), tried).await;
        if let Ok(Ok(server)) = tried
            && let Server::Away(kind, why) = &*server
            && *kind != Kind::Unavailable
        {
            self.root.closed.cancel();
            return Err(Error::new(*kind, why.clone()));
        }
        Ok(())
    }

    async fn keep_up(&self) {
        let mut attempt = 0;
        let mut said = false;
        loop {
            match self.try_once().await {
                Ok(lines) => {
                    tracing::info!("connected to the RabbitMQ server");
                    (attempt, said) = (0, true);
                    let lines = Arc::new(lines);
                    self.server.send_replace(Server::Here(Arc::clone(&lines)));
                    lines.lost().await;
                    self.server.send_replace(away());
                    tracing::warn!("the RabbitMQ server is away; connecting again with a back-off");
                    lines.close().await;
                }
                Err(error) => {
                    if !said {
                        tracing::warn!(
                            "going on without the bus for now, and trying with a back-off: {error}"
                        );
                        said = true;
                    }
                    self.server.send_replace(Server::Away(error.kind(), error.to_string()));
                }
            }
            tokio::time::sleep(RECONNECT.jittered(attempt)).await;
            attempt += 1;
        }
    }

    async fn try_once(&self) -> Result<Lines> {
        let limit = Duration::from_secs(REQUEST_SECONDS_MAX);
        let open = async {
            let version = hello::version(&self.address).await?;
            Lines::open(&self.address, version).await
        };
        tokio::time::timeout(limit, open)
            .await
            .unwrap_or_else(|_| Err(Error::new(Kind::Unavailable, "the RabbitMQ server does not answer")))
    }

    /// The connections, or why there are none.
    pub(super) fn ready(&self) -> Result<Arc<Lines>> {
        if self.root.closed.is_cancelled() {
            return Err(Error::new(Kind::Closed, "the bus was closed by this process"));
        }
        match &*self.server.borrow() {
            Server::Here(lines) if lines.are_up() => Ok(Arc::clone(lines)),
            Server::Away(kind, why) => Err(Error::new(*kind, why.clone())),
            Server::Here(_) | Server::Untried => {
                let message = "the RabbitMQ server is away; the connection is being made again";
                Err(Error::new(Kind::Unavailable, message))
            }
        }
    }

    /// Waits until the server is there again.
    pub(super) async fn returned(&self) {
        let mut server = self.server.subscribe();
        // The sender lives as long as the link.
        drop(server.wait_for(|server| matches!(server, Server::Here(lines) if lines.are_up())).await);
    }

    pub(super) fn version(&self) -> Option<String> {
        match &*self.server.borrow() {
            Server::Here(lines) => lines.version.clone(),
            _ => None,
        }
    }

    pub(super) async fn close(&self) {
        self.root.close().await;
    }
}

impl Streams for Link {
    type Outlet = Outlet;
    type Feed = Feed;

    fn root(&self) -> &Root {
        &self.root
    }

    fn topic(&self, topic: &ServiceName) -> String {
        self.names.topic(topic)
    }

    fn directory(&self) -> String {
        self.names.directory()
    }

    async fn ensure(&self, stream: &str) -> Result<()> {
        stream::ensure(&*self.ready()?, stream).await
    }

    async fn exists(&self, stream: &str) -> Result<bool> {
        stream::exists(&*self.ready()?, stream).await
    }

    async fn begins(&self, stream: &str) -> Result<u64> {
        let mut feed = self.feed(stream, From::First).await?;
        Ok(judged::Feed::next_bytes(&mut feed).await?.0)
    }

    async fn outlet(&self, stream: &str) -> Result<Outlet> {
        Outlet::open(self.ready()?, stream).await
    }

    async fn feed(&self, stream: &str, from: From) -> Result<Feed> {
        Feed::open(&*self.ready()?, stream, from).await
    }

    fn is_half_made(error: &Error) -> bool {
        stream::is_half_made(error)
    }
}

fn away() -> Server {
    Server::Away(Kind::Unavailable, "the RabbitMQ server is away; the connection is being made again".into())
}

pub(super) fn unavailable(what: &str, error: impl Display) -> Error {
    Error::new(Kind::Unavailable, format!("{what}: {error}"))
}

/// What an answer of the client means where it has no meaning of its own.
pub(super) fn failed(what: &str, error: lapin::Error) -> Error {
    let kind = match error.kind() {
        ErrorKind::ProtocolError(refusal) => match refusal.kind() {
            // Not those of a queue that is not there or not ready: a stream is neither for a moment after its server started.
            AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED)
            | AMQPErrorKind::Hard(
                AMQPHardError::NOTALLOWED
                | AMQPHardError::INVALIDPATH
                | AMQPHardError::NOTIMPLEMENTED
                | AMQPHardError::COMMANDINVALID,
            ) => Kind::Configuration,
            _ => Kind::Unavailable,
        },
        ErrorKind::InvalidProtocolVersion(_) => Kind::Configuration,
        _ => Kind::Unavailable,
    };
    Error::new(kind, format!("{what}: {error}"))
}
