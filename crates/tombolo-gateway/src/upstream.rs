//! The replicas of one route's service: who they are now, and which one takes the next request.
//!
//! Invariant: a replica that is known to be away takes no request while another is well; when all are away they are tried all the
//! same, because what is known of them is a moment old.

mod choice;
mod health;
#[cfg(feature = "dns")]
mod names;
mod replica;

use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use http::Uri;
use hyper::rt::Executor;
use tokio_rustls::rustls::ClientConfig;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::retry::budget::TpsBudget;

pub(crate) use self::choice::Key;
pub(crate) use self::replica::{Outcome, Replica, trust};
use crate::config::{Balance, Health, Route, Source, Target};

/// How long retries are remembered by the budget.
const BUDGET_WINDOW: Duration = Duration::from_secs(10);
/// How many retries a second there are whatever the budget.
const BUDGET_MIN_PER_S: u32 = 10;

/// Which replicas, and how they are treated. What of a route makes two routes share them.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Group {
    pub(crate) source: Source,
    pub(crate) balance: Balance,
    pub(crate) http2: bool,
    pub(crate) health: Option<Health>,
}

impl Group {
    pub(crate) fn of(route: &Route) -> Self {
        Self {
            source: route.source.clone(),
            balance: route.balance.clone(),
            http2: route.http2,
            health: route.health.clone(),
        }
    }
}

/// What all replicas of a gateway share.
#[derive(Debug, Clone)]
pub(crate) struct Ground {
    /// Every task.
    pub(crate) tasks: TaskTracker,
    /// Ends them.
    pub(crate) stop: CancellationToken,
    /// How many requests in a hundred may be tried again.
    pub(crate) retry_percent: u64,
    /// Servers that are asked for names.
    #[cfg_attr(not(feature = "dns"), expect(dead_code, reason = "nobody is asked without the feature"))]
    pub(crate) resolvers: Vec<std::net::SocketAddr>,
    /// Whom connections to replicas over TLS trust.
    pub(crate) trust: ClientConfig,
}

impl Ground {
    /// Spawns what hyper spawns.
    pub(crate) fn spawner(&self) -> Spawner {
        Spawner { tasks: self.tasks.clone(), stop: self.stop.clone() }
    }
}

/// Spawns what connections need where it is joined.
#[derive(Clone)]
pub(crate) struct Spawner {
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl<F> Executor<F> for Spawner
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move { stop.run_until_cancelled_owned(future).await.map(drop) });
    }
}

/// The replicas of one service.
pub(crate) struct Upstream {
    pub(crate) group: Group,
    pub(crate) budget: TpsBudget,
    replicas: RwLock<Arc<[Arc<Replica>]>>,
    turn: AtomicUsize,
    ground: Ground,
    /// Ends what follows the names and looks after the replicas.
    stop: CancellationToken,
}

impl Upstream {
    /// Begins to look after the replicas of a group.
    pub(crate) fn start(group: Group, ground: &Ground) -> Arc<Self> {
        let percent = ground.retry_percent as f32 / 100.0;
        let upstream = Arc::new(Self {
            budget: TpsBudget::new(BUDGET_WINDOW, BUDGET_MIN_PER_S, percent),
            replicas: RwLock::new(Arc::new([])),
            turn: AtomicUsize::new(0),
            stop: ground.stop.child_token(),
            ground: ground.clone(),
            group,
        });
        match upstream.group.source.clone() {
            Source::Fixed(targets) => upstream.set(targets),
            #[cfg(feature = "dns")]
            Source::Dns(name) => {
                let follow = names::follow(upstream.clone(), name, ground.resolvers.clone());
                let stop = upstream.stop.clone();
                ground.tasks.spawn(async move { stop.run_until_cancelled_owned(follow).await });
            }
            #[cfg(not(feature = "dns"))]
            Source::Dns(_) => tracing::error!("this gateway was built without the feature `dns`"),
            Source::Service(_) => {}
        }
        upstream
    }

    /// The replicas are these from now on. Those that stay keep their connections and what is known of them.
    pub(crate) fn set(&self, targets: Vec<Target>) {
        let before = self.replicas();
        let mut now: Vec<Arc<Replica>> = Vec::with_capacity(targets.len());
        for target in targets {
            if now.iter().any(|replica| replica.target.url == target.url) {
                continue;
            }
            let stays = before.iter().find(|replica| replica.target == target && !replica.is_removed());
            now.push(stays.cloned().unwrap_or_else(|| self.begin(target)));
        }
        for replica in before.iter().filter(|replica| !now.iter().any(|it| Arc::ptr_eq(it, replica))) {
            replica.remove();
        }
        *self.replicas.write().unwrap_or_else(PoisonError::into_inner) = now.into();
    }

    fn begin(&self, target: Target) -> Arc<Replica> {
        let stop = self.stop.child_token();
        let replica = Arc::new(Replica::new(target, self.group.http2, stop.clone(), &self.ground));
        let look = health::look_after(replica.clone(), self.group.health.clone());
        self.ground.tasks.spawn(async move { stop.run_until_cancelled_owned(look).await });
        replica
    }

    /// All replicas that there are.
    pub(crate) fn replicas(&self) -> Arc<[Arc<Replica>]> {
        self.replicas.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends what looks after them; requests under way go on.
    pub(crate) fn end(&self) {
        self.stop.cancel();
    }
}

/// An address as one of a list.
pub(crate) fn target(url: Uri) -> Target {
    Target { url, weight: 1, name: None }
}
