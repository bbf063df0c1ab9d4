//! One life of a service in this process, from its start to its end, and the tasks that belong to it.
//!
//! Beside the path. In production a life says nothing and decides nothing. In a test world it can end at a named point
//! of the path, as in a crash, and it has things done twice that can happen twice in the field.
//!
//! Invariant: without the feature `testing` nothing here changes what the path does.

use std::future::Future;

use axum::Router;
use tokio::task::{JoinError, JoinSet};
#[cfg(feature = "testing")]
use {crate::testing::Fate, std::sync::Arc};

/// One life of a service. Clones are the same life.
#[derive(Clone, Default)]
pub(crate) struct Life {
    #[cfg(feature = "testing")]
    pub(crate) fate: Option<Arc<Fate>>,
}

/// How a batch is handled a second time, as it happens in the field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// Not at all.
    Never,
    /// Its first transaction is undone just before the commit, as when the database is lost there, and done again.
    BeforeCommit,
    /// It is handled again after its commit, as by a worker that stood still and does not know that it was replaced.
    AfterCommit,
}

impl Life {
    /// Runs `work` for as long as the life lasts.
    pub(crate) async fn lasts<T>(self, work: impl Future<Output = T>) -> T {
        #[cfg(feature = "testing")]
        if let Some(fate) = self.fate {
            return fate.rules(work).await;
        }
        work.await
    }

    /// Whether, and how, the batch that begins with `first` is handled twice.
    pub(crate) fn repeats(&self, _subscription: &str, _first: (&str, u32, u64)) -> Repeat {
        #[cfg(feature = "testing")]
        if let Some(fate) = &self.fate {
            return fate.repeats(_subscription, _first);
        }
        Repeat::Never
    }

    /// Requests end with the life, too.
    #[cfg_attr(
        not(feature = "testing"),
        expect(clippy::unused_self, reason = "the same call as with the feature")
    )]
    pub(crate) fn over(&self, router: Router) -> Router {
        #[cfg(feature = "testing")]
        if let Some(fate) = &self.fate {
            return fate.over_requests(router);
        }
        router
    }
}

/// The tasks of one life, owned by whoever joins them.
pub(crate) struct Tasks {
    life: Life,
    set: JoinSet<()>,
}

impl Tasks {
    pub(crate) fn new(life: Life) -> Self {
        Self { life, set: JoinSet::new() }
    }

    pub(crate) fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.set.spawn(self.life.clone().lasts(task));
    }

    /// Waits for the next task to end; none is left if there is nothing.
    pub(crate) async fn join_next(&mut self) -> Option<Result<(), JoinError>> {
        self.set.join_next().await
    }

    /// Ends them all where they are, and returns when they have.
    #[cfg(feature = "testing")]
    pub(crate) async fn cut_off(&mut self) {
        self.set.shutdown().await;
    }
}
