//! Connections: one for appends and one for everything else, each carrying many commands at once, made when needed and again after
//! a loss with a back-off.
//!
//! Invariant: a connection is used only if its server was found to keep what it acknowledges, and no more once anything on it was
//! lost. Whoever uses a link that is closed or away is told so at once.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, Pipeline, Value};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::address::{Address, Keys};
use super::failure::{failed, is_lost};
use super::found::Found;
use super::scripts::{Script, Scripts};
use crate::accept::Accepted;
use crate::adapter::gate::Gate;
use crate::adapter::refusal::closed;
use crate::{Error, Kind, Result};

/// How long one command may take.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(10);
/// How long making a connection may take.
pub(super) const CONNECT_MAX: Duration = Duration::from_secs(3);
/// What the server is called in a refusal.
pub(super) const SERVER: &str = "Redis server";

/// The way to one server, and what everything on it shares.
pub(super) struct Link {
    pub(super) client: Client,
    pub(super) keys: Keys,
    accepted: Accepted,
    /// Ends every stream and task.
    pub(super) closed: CancellationToken,
    pub(super) tasks: TaskTracker,
    gate: Gate<Found>,
    appending: Mutex<Option<Line>>,
    asking: Mutex<Option<Line>>,
    #[cfg(feature = "mutants")]
    pub(super) mutant: Option<super::Mutant>,
}

/// A connection and what its server keeps for it.
#[derive(Clone)]
pub(super) struct Line {
    connection: MultiplexedConnection,
    pub(super) scripts: Scripts,
    /// Told when anything on it was lost.
    lost: CancellationToken,
}

impl Link {
    pub(super) fn new(address: Address, accepted: Accepted) -> Result<Self> {
        let client = Client::open(address.server).map_err(|error| failed(&error))?;
        Ok(Self {
            client,
            keys: address.keys,
            accepted,
            closed: CancellationToken::new(),
            tasks: TaskTracker::new(),
            gate: Gate::new(format!("Redis at {}", address.place)),
            appending: Mutex::default(),
            asking: Mutex::default(),
            #[cfg(feature = "mutants")]
            mutant: None,
        })
    }

    /// Reaches the server for the first time; one that is away is no error.
    pub(super) async fn greet(&self) -> Result<()> {
        match self.line().await {
            Ok(_) => Ok(()),
            Err(error) if error.is_transient() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The connection for anything but appends.
    pub(super) async fn line(&self) -> Result<Line> {
        self.line_of(&self.asking).await
    }

    /// The connection for appends.
    pub(super) async fn line_to_append(&self) -> Result<Line> {
        self.line_of(&self.appending).await
    }

    async fn line_of(&self, place: &Mutex<Option<Line>>) -> Result<Line> {
        if self.closed.is_cancelled() {
            return Err(closed());
        }
        let mut place = place.lock().await;
        if let Some(line) = place.as_ref().filter(|line| !line.lost.is_cancelled()) {
            return Ok(line.clone());
        }
        self.gate.may_try()?;
        let opened = self.open().await;
        match &opened {
            Ok((_, found)) => self.gate.arrived(found.clone()),
            Err(error) => self.gate.missed(error),
        }
        Ok(place.insert(opened?.0).clone())
    }

    async fn open(&self) -> Result<(Line, Found)> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_MAX))
            .set_response_timeout(Some(ANSWER_MAX));
        let connection = self.client.get_multiplexed_async_connection_with_config(&config).await;
        let mut connection = connection.map_err(|error| failed(&error))?;
        let found = Found::ask(&mut connection, &self.accepted).await?;
        let scripts = Scripts::load(&mut connection, |script, text| self.changed(script, text)).await?;
        Ok((Line { connection, scripts, lost: CancellationToken::new() }, found))
    }

    /// What the server was found to be when it was reached last.
    pub(super) fn found(&self) -> Option<Found> {
        self.gate.found()
    }

    /// Waits until nothing is half done.
    pub(super) async fn close(&self) {
        self.closed.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.appending.lock().await.take();
        self.asking.lock().await.take();
    }

    #[cfg(feature = "mutants")]
    fn changed(&self, script: Script, text: String) -> String {
        self.mutant.map_or_else(|| text.clone(), |mutant| mutant.change(script, &text))
    }

    #[cfg(not(feature = "mutants"))]
    #[expect(clippy::unused_self, reason = "the switches of the test build ask the connection")]
    fn changed(&self, _script: Script, text: String) -> String {
        text
    }
}

impl Line {
    pub(super) async fn ask(&mut self, command: &Cmd) -> Result<Value> {
        let answer = command.query_async(&mut self.connection).await;
        answer.map_err(|error| self.failed(&error))
    }

    /// Asks several things in one round trip; an answer for each.
    pub(super) async fn ask_all(&mut self, commands: &Pipeline) -> Result<Vec<Value>> {
        let answers = commands.query_async(&mut self.connection).await;
        answers.map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &redis::RedisError) -> Error {
        if is_lost(error) {
            self.lost.cancel();
        }
        failed(error)
    }
}

/// Waits for a step that the client itself would wait for without end.
pub(super) async fn within<T>(
    limit: Duration,
    step: impl Future<Output = redis::RedisResult<T>>,
) -> Result<T> {
    match tokio::time::timeout(limit, step).await {
        Ok(done) => done.map_err(|error| failed(&error)),
        Err(_) => {
            let message = format!("the Redis server did not answer within {} s", limit.as_secs());
            Err(Error::new(Kind::Unavailable, message))
        }
    }
}
