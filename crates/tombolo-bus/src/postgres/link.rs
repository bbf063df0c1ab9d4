//! Connections: a few, made when needed and again after a loss with a back-off, saying so once each way; and what the server
//! was found to be.
//!
//! Invariant: a connection is used again only after everything asked on it was answered, and only if its server was found to
//! keep what it acknowledges. Whoever uses a link that is closed or away is told so at once.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{Connection, Executor};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::address::Address;
use super::failure::{failed, is_lost};
use super::found::Found;
use crate::accept::Accepted;
use crate::adapter::gate::Gate;
use crate::adapter::refusal::closed;
use crate::{Error, Kind, Result};

/// How long one statement may take.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(10);
/// How long making a connection may take.
pub(super) const CONNECT_MAX: Duration = Duration::from_secs(3);
/// How many connections appends have, and how many everything else.
pub(super) const APPENDING_MAX: usize = 3;
const ASKING_MAX: usize = 5;
/// What the server is called in a refusal.
pub(super) const SERVER: &str = "PostgreSQL server";

/// The way to one server, and what everything on it shares.
pub(super) struct Link {
    pub(super) address: Address,
    accepted: Accepted,
    /// Ends every stream and task.
    pub(super) closed: CancellationToken,
    pub(super) tasks: TaskTracker,
    appending: Pool,
    asking: Pool,
    gate: Gate<Found>,
    /// Changes each time a connection is lost; connections from before are not used again.
    losses: AtomicU64,
    #[cfg(feature = "mutants")]
    pub(super) mutant: Option<super::Mutant>,
}

struct Pool {
    idle: Mutex<Vec<Idle>>,
    permits: Arc<Semaphore>,
}

struct Idle {
    connection: PgConnection,
    losses: u64,
}

/// A connection in use. Dropped without [`Lease::keep`] it is closed.
pub(super) struct Lease<'a> {
    connection: Option<PgConnection>,
    losses: u64,
    pool: &'a Pool,
    _permit: OwnedSemaphorePermit,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    fn of(connections_max: usize) -> Self {
        Self { idle: Mutex::default(), permits: Arc::new(Semaphore::new(connections_max)) }
    }
}

impl Link {
    pub(super) fn new(address: Address, accepted: Accepted) -> Self {
        Self {
            accepted,
            closed: CancellationToken::new(),
            tasks: TaskTracker::new(),
            appending: Pool::of(APPENDING_MAX),
            asking: Pool::of(ASKING_MAX),
            gate: Gate::new(format!("PostgreSQL at {}", address.place)),
            address,
            losses: AtomicU64::new(0),
            #[cfg(feature = "mutants")]
            mutant: None,
        }
    }

    /// Reaches the server for the first time; one that is away is no error.
    pub(super) async fn greet(&self) -> Result<()> {
        match self.lease().await {
            Ok(lease) => lease.keep(),
            Err(error) if error.is_transient() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// A connection for anything but appends.
    pub(super) async fn lease(&self) -> Result<Lease<'_>> {
        self.lease_of(&self.asking).await
    }

    /// A connection for an append.
    pub(super) async fn lease_to_append(&self) -> Result<Lease<'_>> {
        self.lease_of(&self.appending).await
    }

    async fn lease_of<'a>(&'a self, pool: &'a Pool) -> Result<Lease<'a>> {
        if self.closed.is_cancelled() {
            return Err(closed());
        }
        let waiting = timeout(ANSWER_MAX, Arc::clone(&pool.permits).acquire_owned());
        let Ok(Ok(permit)) = waiting.await else {
            let message = "every connection to the PostgreSQL server has been in use for too long";
            return Err(Error::new(Kind::Unavailable, message));
        };
        let losses = self.losses.load(Ordering::Relaxed);
        let idle = {
            let mut idle = lock(&pool.idle);
            idle.retain(|idle| idle.losses == losses);
            idle.pop()
        };
        let connection = match idle {
            Some(idle) => idle.connection,
            None => self.open().await?,
        };
        Ok(Lease { connection: Some(connection), losses, pool, _permit: permit })
    }

    /// Makes a connection, unless making one failed a moment ago.
    async fn open(&self) -> Result<PgConnection> {
        self.gate.may_try()?;
        let opened = self.try_open().await;
        match &opened {
            Ok((_, found)) => self.gate.arrived(found.clone()),
            Err(error) => self.gate.missed(error),
        }
        Ok(opened?.0)
    }

    async fn try_open(&self) -> Result<(PgConnection, Found)> {
        let mut connection = connected(PgConnection::connect_with(&self.address.options)).await?;
        let row = connected(Found::ask(&mut connection, &self.address)).await?;
        let found = Found::read(&row, &self.address, &self.accepted)?;
        Ok((connection, found))
    }

    /// What the server was found to be when it was reached last.
    pub(super) fn found(&self) -> Option<Found> {
        self.gate.found()
    }

    /// Remembers that the tables are there now.
    pub(super) fn made_tables(&self) {
        self.gate.learn(|found| found.has_tables = true);
    }

    /// Waits for the answer of a statement, for as long as one may take.
    pub(super) async fn answer<T>(&self, asked: impl Future<Output = sqlx::Result<T>>) -> Result<T> {
        let answer = match timeout(ANSWER_MAX, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())),
        };
        answer.map_err(|error| {
            if is_lost(&error) {
                self.losses.fetch_add(1, Ordering::Relaxed);
            }
            failed(error)
        })
    }

    /// Waits until nothing is half done, and takes leave of the server.
    pub(super) async fn close(&self) {
        self.closed.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        for pool in [&self.appending, &self.asking] {
            let idle = std::mem::take(&mut *lock(&pool.idle));
            for Idle { connection, .. } in idle {
                // A server that is away needs no goodbye.
                timeout(CONNECT_MAX, connection.close()).await.ok();
            }
        }
    }
}

/// Waits for a step of connecting, for as long as it may take.
pub(super) async fn connected<T>(step: impl Future<Output = sqlx::Result<T>>) -> Result<T> {
    match timeout(CONNECT_MAX, step).await {
        Ok(done) => done.map_err(failed),
        Err(_) => {
            let message = format!("the PostgreSQL server did not answer within {} s", CONNECT_MAX.as_secs());
            Err(Error::new(Kind::Unavailable, message))
        }
    }
}

impl Lease<'_> {
    /// Gives the connection back; everything that was asked on it was answered.
    pub(super) fn keep(mut self) {
        if let Some(connection) = self.connection.take() {
            lock(&self.pool.idle).push(Idle { connection, losses: self.losses });
        }
    }

    /// Begins a transaction that is on disk when its commit returns. It ends with the lease if it is not committed.
    pub(super) async fn begin(&mut self, link: &Link) -> Result<()> {
        let begin = format!("BEGIN; {DURABLE}");
        link.answer(async {
            (&mut **self).execute(sqlx::raw_sql(sqlx::AssertSqlSafe(begin))).await.map(drop)
        })
        .await
    }

    pub(super) async fn commit(mut self, link: &Link) -> Result<()> {
        link.answer(async { (&mut *self).execute(sqlx::raw_sql("COMMIT")).await.map(drop) }).await?;
        self.keep();
        Ok(())
    }
}

/// Makes the transaction's commit wait for the disk, whatever the server's default; what waits for more is left so.
const DURABLE: &str = "SELECT set_config('synchronous_commit', CASE current_setting('synchronous_commit') \
    WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true)";

impl Deref for Lease<'_> {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        self.connection.as_ref().expect("a lease has its connection until it is given back")
    }
}

impl DerefMut for Lease<'_> {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.connection.as_mut().expect("a lease has its connection until it is given back")
    }
}
