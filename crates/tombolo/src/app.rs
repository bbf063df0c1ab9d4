//! What a route, an answer or a task of the user's holds: the service's database, and the ways to others.

use std::sync::Arc;

use jiff::Timestamp;
use tombolo_db::{Committed, Database, Outgoing, Publisher, Transaction};
use tombolo_event::{Event, Position, Question, ServiceName};

use crate::current::Current;
use crate::freshness::Reader;
use crate::metrics::Metrics;
use crate::operator::Desk;
use crate::progress::Progress;
use crate::question::answer::Answerers;
use crate::question::ask::{Asker, CALL_BOUND, Call, GATHER_BOUND, Gather};
use crate::recovery::Recovery;
use crate::sharing::Sharing;
use crate::status::Board;
use crate::view::{Builds, Live};
use crate::{Clock, Error, Kind, Result, ServiceStatus};

/// A running service, as its own code sees it. Cheap to clone; take it in a route as axum's `State<App<…>>`.
pub struct App<D: Database>(Arc<Shared<D>>);

pub(crate) struct Shared<D: Database> {
    pub(crate) database: D,
    pub(crate) publisher: Publisher,
    pub(crate) replica: u32,
    pub(crate) asker: Asker,
    pub(crate) answerers: Answerers<D>,
    pub(crate) clock: Clock,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) board: Arc<Board>,
    pub(crate) desk: Arc<Desk>,
    pub(crate) sharing: Arc<Sharing>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) readers: Vec<Reader>,
    pub(crate) recovery: Arc<Recovery>,
    pub(crate) builds: Arc<Builds<D>>,
}

impl<D: Database> Clone for App<D> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<D: Database> App<D> {
    pub(crate) fn new(shared: Shared<D>) -> Self {
        Self(Arc::new(shared))
    }

    /// Begins a transaction of the service's own database. What is published in it commits with it.
    ///
    /// # Errors
    /// `DatabaseAway` or `Database`.
    pub async fn begin(&self) -> Result<D::Tx> {
        let current = Current::get();
        let mut tx = self.0.database.begin(&self.0.publisher).await?;
        let outgoing = tx.outgoing();
        outgoing.trace = Some(current.trace);
        outgoing.written = Some(current.writes());
        outgoing.correlation = current.correlation;
        Current::opened(outgoing.used());
        Ok(tx)
    }

    /// Publishes `event` within a transaction of the user's own (`&mut *tx` of sqlx, `&mut tx` of redb), which commits or undoes it with its state:
    /// the way in for a service that has its transactions already. Call [`App::wake`] after the commit.
    ///
    /// The event's key is locked from here to the end of that transaction. Of several events at once ([`App::outgoing`]) the
    /// locks are taken in one order, so that transactions cannot lock each other out.
    ///
    /// # Errors
    /// `Database` for an event that may not be published, or if no transaction is open; `DatabaseAway`. Undo the transaction then.
    pub async fn publish<E: Event>(&self, connection: &mut D::Connection, event: &E) -> Result<Position> {
        let mut outgoing = self.outgoing();
        outgoing.publish(event)?;
        let mut committed = self.write_outgoing(connection, outgoing).await?;
        committed.positions.pop().ok_or_else(|| {
            Error::new(
                Kind::Database,
                "an event was written but has no place; this is a fault of Tombolo: please report it",
            )
        })
    }

    /// Events that are gathered for [`App::write_outgoing`].
    #[must_use]
    pub fn outgoing(&self) -> Outgoing {
        let current = Current::get();
        let mut outgoing = Outgoing::new(self.0.publisher.clone());
        outgoing.trace = Some(current.trace);
        outgoing.correlation = current.correlation;
        outgoing
    }

    /// Publishes what was gathered, as [`App::publish`] does.
    ///
    /// # Errors
    /// As [`App::publish`].
    pub async fn write_outgoing(
        &self,
        connection: &mut D::Connection,
        outgoing: Outgoing,
    ) -> Result<Committed> {
        Ok(self.0.database.write_outgoing(connection, outgoing).await?)
    }

    /// Wakes the relay after a transaction of the user's own. Only a hint: forgotten, events wait for the relay's next look, up to
    /// a few seconds.
    pub fn wake(&self) {
        (self.0.publisher.wake)();
    }

    /// The build of a view that is read now, whose tables are named by [`Live::sql`]. Cheap: it asks the database at most once
    /// a second.
    ///
    /// # Errors
    /// `Wiring` for a view that the service does not have; `Database` if it has no build that this program can read.
    pub async fn view(&self, name: &str) -> Result<Live> {
        self.0.builds.live(name).await
    }

    /// The service's own database, for reading outside a transaction.
    #[must_use]
    pub fn database(&self) -> &D {
        &self.0.database
    }

    /// The time by the service's clock, which is the one by which `publish_at` is kept.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.0.clock.now()
    }

    /// Asks one service directly.
    ///
    /// # Errors
    /// When awaited: `Unreachable`, `Unknown`, `Deadline`, `Loop`, `Failed`, each naming the service; `InTransaction`.
    pub fn call<'a, Q: Question>(&'a self, service: &'a str, question: &'a Q) -> Call<'a, Q> {
        Call { asker: &self.0.asker, service, question, bound: CALL_BOUND }
    }

    /// Asks everybody who answers, over the bus.
    ///
    /// # Errors
    /// When awaited: `InTransaction`, or `Unknown` if nobody who answers is known. A missing answer is part of the result.
    pub fn gather<'a, Q: Question>(&'a self, question: &'a Q) -> Gather<'a, Q> {
        Gather { asker: &self.0.asker, question, bound: GATHER_BOUND }
    }

    /// For which user the work at hand is done: whom a route has found out about, or whom the service that calls vouches for.
    /// A question that came by a gather is nobody's.
    ///
    /// # Errors
    /// [`Refusal`](crate::auth::Refusal), which is a response, and a [`crate::Problem`].
    #[cfg(feature = "auth")]
    pub fn user(&self) -> Result<crate::auth::User, crate::auth::Refusal> {
        Current::get().user().unwrap_or(Err(crate::auth::Refusal::Nobody))
    }

    /// Which service asked the question at hand, if it came by a call.
    ///
    /// # Errors
    /// As [`App::user`].
    #[cfg(feature = "auth")]
    pub fn caller(&self) -> Result<crate::auth::Caller, crate::auth::Refusal> {
        Current::get().caller().unwrap_or(Err(crate::auth::Refusal::NoService))
    }

    /// The service's name.
    #[must_use]
    pub fn service(&self) -> &ServiceName {
        &self.0.publisher.service
    }

    /// The service's figures.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Where the service stands.
    #[must_use]
    pub fn status(&self) -> ServiceStatus {
        self.0.board.read(self.service().as_str(), self.0.replica)
    }

    pub(crate) fn sharing(&self) -> &Arc<Sharing> {
        &self.0.sharing
    }

    pub(crate) fn progress(&self) -> &Progress {
        &self.0.progress
    }

    pub(crate) fn readers(&self) -> &[Reader] {
        &self.0.readers
    }

    /// Looks who else there is, and says who that is.
    #[cfg(feature = "testing")]
    pub(crate) async fn refresh_peers(&self) -> Result<std::collections::BTreeSet<String>> {
        self.0.asker.directory.refresh().await?;
        Ok(self.0.asker.directory.services())
    }

    /// Whether the service declared no type and ships nobody else's events, and so has no topic.
    pub(crate) fn publishes_nothing(&self) -> bool {
        !self.0.recovery.is_relayed()
    }

    /// What restores and clones are decided with.
    pub(crate) fn recovery(&self) -> &Arc<Recovery> {
        &self.0.recovery
    }

    pub(crate) fn builds(&self) -> &Builds<D> {
        &self.0.builds
    }

    pub(crate) fn answerers(&self) -> &Answerers<D> {
        &self.0.answerers
    }

    pub(crate) fn desk(&self) -> &Desk {
        &self.0.desk
    }
}
