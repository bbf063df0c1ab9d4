//! Transactions: how they begin, end, and are begun again after they met another one.
//!
//! ```text
//!  begin ── statements ── commit ── answered: done
//!    ▲          │            └ not answered: the same commit again, which the server knows by its number
//!    └ waits ◄──┴ another transaction writes the same document, or has since: nothing is kept
//! ```
//!
//! Invariant: only a transaction of which nothing was kept is begun again; a commit is repeated as the same commit.

use std::time::{Duration, Instant};

use ::mongodb::ClientSession;
use ::mongodb::bson::{Document, doc};
use ::mongodb::options::{ReadConcern, TransactionOptions};
use uuid::Uuid;

use super::failure::{is_conflict, is_unknown, unknown};
use super::{COMMIT_WAIT_MAX, CONFLICTS_MAX, Mongodb, durable, primary};
use crate::Result;

/// The longest pause before the next try.
const PAUSE_MAX: Duration = Duration::from_millis(64);

impl Mongodb {
    /// Ends whatever a session has open, whosever it is: a process that died inside a transaction has left it open.
    pub(super) async fn end_session(&self, session: Document) -> Result<()> {
        self.database.run_command(doc! { "killSessions": [session] }).await?;
        Ok(())
    }

    /// A session in which a transaction begins with the next statement.
    pub(super) async fn session(&self) -> Result<ClientSession> {
        let mut session = self.client.start_session().await?;
        start(&mut session).await?;
        Ok(session)
    }
}

/// Begins a transaction: it reads one moment, and its commit is acknowledged by a majority that has it in its journal.
pub(super) async fn start(session: &mut ClientSession) -> Result<()> {
    let options = TransactionOptions::builder()
        .read_concern(ReadConcern::snapshot())
        .write_concern(durable())
        .selection_criteria(primary())
        .build();
    Ok(session.start_transaction().with_options(options).await?)
}

/// Commits, and repeats the commit while its outcome is not known.
pub(super) async fn commit(session: &mut ClientSession) -> Result<()> {
    let began = Instant::now();
    loop {
        match session.commit_transaction().await {
            Ok(()) => return Ok(()),
            Err(error) if !is_unknown(&error) => return Err(error.into()),
            Err(error) if began.elapsed() > COMMIT_WAIT_MAX => return Err(unknown(error)),
            Err(error) => tracing::debug!(%error, "a commit is repeated, because its outcome is not known"),
        }
        tokio::time::sleep(PAUSE_MAX).await;
    }
}

/// The tries of a transaction of our own.
pub(super) struct Tries {
    began: Instant,
    nth: u32,
}

impl Tries {
    pub(super) fn new() -> Self {
        Self { began: Instant::now(), nth: 0 }
    }

    /// Ends a try: with what it came to, if it was committed; with nothing if it met another transaction, and is to be
    /// done again.
    pub(super) async fn end<T>(&mut self, session: &mut ClientSession, done: Result<T>) -> Result<Option<T>> {
        let ended = match done {
            Ok(done) => commit(session).await.map(|()| done),
            Err(error) => {
                // What the server does not hear of it ends by itself.
                session.abort_transaction().await.ok();
                Err(error)
            }
        };
        match ended {
            Ok(done) => Ok(Some(done)),
            Err(error) => self.again(error).await.map(|()| None),
        }
    }

    /// Pauses before the next try, if there is to be one after this error.
    pub(super) async fn again(&mut self, error: crate::Error) -> Result<()> {
        if !is_conflict(&error) || self.began.elapsed() > CONFLICTS_MAX {
            return Err(error);
        }
        let longest = PAUSE_MAX.min(Duration::from_millis(1 << self.nth.min(6)));
        self.nth += 1;
        // Any number at all: whoever met must not meet again.
        let some = Uuid::new_v4().as_u128() % 1_000;
        tokio::time::sleep(longest.mul_f64(some as f64 / 1_000.0)).await;
        Ok(())
    }
}
