//! Push subscriptions: the bus sends events to whoever cannot ask for them, and keeps their cursors.
//!
//! Each subscription is a task (`runner`) with a queue of what it has read (`queue`), connections that it keeps (`lane`) and one
//! file that all share (`state`). Plain events are sent by the same tasks.
//!
//! Invariant: each subscriber gets every event in the order of its key, once, but for what was under way when either side died; and
//! what may be a repeat is marked.

mod addresses;
mod event;
mod handshake;
mod lane;
mod queue;
mod recovery;
pub(crate) mod routes;
mod runner;
mod settings;
mod state;
mod tls;
mod whole;

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tombolo_bus::Bus;
use tombolo_event::{Cursor, ServiceName};

#[cfg(feature = "mutants")]
pub use settings::Mutant;
pub use settings::{From, Mode, Order, Retry, Settings, Subscription, Webhooks};

use crate::problem::{Problem, Refusal};
use addresses::Reach;
pub(crate) use runner::Command;
use runner::{Assignment, Runner, Wires};
use state::{Change, State};

/// The most commands of one subscription that wait.
const COMMANDS_MAX: usize = 64;
/// The most subscriptions that services make over the API.
const SUBSCRIPTIONS_MAX: usize = 1_000;

/// All push subscriptions of a bus.
pub(crate) struct Subscriptions {
    bus: Arc<dyn Bus>,
    state: Arc<State>,
    webhooks: Webhooks,
    running: Mutex<HashMap<String, Running>>,
    changing: tokio::sync::Mutex<()>,
    stop: CancellationToken,
    tasks: TaskTracker,
    #[cfg(feature = "mutants")]
    mutant: Option<Mutant>,
}

/// A subscription that runs.
struct Running {
    handle: Handle,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// A way to speak to a subscription.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    pub(crate) definition: Arc<Subscription>,
    /// Whose it is.
    pub(crate) owner: Owner,
    commands: mpsc::Sender<Command>,
    is_recovering: Arc<AtomicBool>,
}

/// Whose a subscription is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Owner {
    /// The operator's, by the configuration.
    Configured,
    /// Made over the API by this service; none by an operator, or by somebody who did not have to say.
    Made(Option<ServiceName>),
}

impl Subscriptions {
    /// Opens what is kept, and starts the operator's subscriptions and those that were made over the API.
    ///
    /// # Errors
    /// If the file cannot be used, or a subscription is not one.
    pub(crate) async fn open(bus: Arc<dyn Bus>, folder: &Path, settings: Settings) -> Result<Self, Problem> {
        let tasks = TaskTracker::new();
        let state = Arc::new(State::open(&folder.join("push.sqlite"), &tasks).await?);
        let subscriptions = Self {
            bus,
            state,
            tasks,
            webhooks: settings.webhooks,
            #[cfg(feature = "mutants")]
            mutant: settings.mutant,
            running: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            stop: CancellationToken::new(),
        };
        for subscription in settings.subscriptions {
            subscription.check()?;
            subscriptions.run(subscription, Owner::Configured, None).await?;
        }
        for defined in subscriptions.state.defined().await? {
            if subscriptions.find(&defined.name).is_some() {
                tracing::warn!(
                    name = defined.name,
                    "a subscription made over the API has the name of a configured one, which counts"
                );
                continue;
            }
            let definition = serde_json::from_str(&defined.json);
            let definition =
                definition.map_err(|error| Problem::new(Refusal::Internal, error.to_string()))?;
            let owner = defined.owner.map(ServiceName::new).transpose()?;
            subscriptions.run(definition, Owner::Made(owner), None).await?;
        }
        Ok(subscriptions)
    }

    /// Starts a subscription; `recovers` says how long a subscriber that is back is waited for to ask for a snapshot.
    pub(crate) async fn run(
        &self,
        definition: Subscription,
        owner: Owner,
        recovers: Option<Duration>,
    ) -> Result<Handle, Problem> {
        let name = definition.name.clone();
        if self.find(&name).is_some() {
            let detail = format!("there are two subscriptions {name} in the configuration; expected one");
            return Err(Problem::new(Refusal::InvalidName, detail));
        }
        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        let is_recovering = Arc::new(AtomicBool::new(recovers.is_some()));
        let handle = Handle {
            definition: Arc::new(definition.clone()),
            owner,
            commands,
            is_recovering: is_recovering.clone(),
        };
        let (reach, origin) = match handle.owner {
            Owner::Configured => (Reach::Anywhere, None),
            Owner::Made(_) => (self.reach(), Some(self.webhooks.origin.clone())),
        };
        let assignment = Assignment {
            definition,
            reach,
            origin,
            recovers,
            #[cfg(feature = "mutants")]
            mutant: self.mutant,
        };
        let wires = Wires { commands: receiver, is_recovering };
        let runner = Runner::load(self.bus.clone(), self.state.clone(), assignment, wires).await?;
        let stop = self.stop.child_token();
        let task = self.tasks.spawn(runner.run(stop.clone()));
        let running = Running { handle: handle.clone(), stop, task };
        self.running.lock().unwrap_or_else(PoisonError::into_inner).insert(name, running);
        Ok(handle)
    }

    fn reach(&self) -> Reach {
        Reach::Public(self.webhooks.allow.clone())
    }

    /// A subscription by name.
    pub(crate) fn find(&self, name: &str) -> Option<Handle> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).get(name).map(|it| it.handle.clone())
    }

    /// All of them, by name.
    pub(crate) fn each(&self) -> Vec<Handle> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let mut handles: Vec<Handle> = running.values().map(|it| it.handle.clone()).collect();
        handles.sort_by(|a, b| a.definition.name.cmp(&b.definition.name));
        handles
    }

    /// Makes a subscription over the API, or changes it; true if it is new.
    pub(crate) async fn define(
        &self,
        definition: Subscription,
        owner: Option<ServiceName>,
    ) -> Result<bool, Problem> {
        let _one = self.changing.lock().await;
        let before = self.find(&definition.name);
        if before.is_none() && self.each().len() >= SUBSCRIPTIONS_MAX {
            let detail = format!("there are {SUBSCRIPTIONS_MAX} subscriptions already; delete one first");
            return Err(Problem::new(Refusal::TooLarge, detail));
        }
        let json = serde_json::to_string(&definition);
        let json = json.map_err(|error| Problem::new(Refusal::Internal, error.to_string()))?;
        let name = definition.name.clone();
        self.end(&name).await;
        let mut changes = vec![Change::Defined { json, owner: owner.as_ref().map(ToString::to_string) }];
        if before.as_ref().is_none_or(|it| it.definition.url != definition.url) {
            changes.push(Change::Allowed(None));
        }
        self.written(&name, changes).await?;
        self.run(definition, Owner::Made(owner), None).await?;
        Ok(before.is_none())
    }

    /// Removes a subscription with all that is kept of it.
    pub(crate) async fn remove(&self, name: &str) -> Result<(), Problem> {
        let _one = self.changing.lock().await;
        self.end(name).await;
        self.written(name, vec![Change::Removed]).await
    }

    /// What is parked of a subscription.
    pub(crate) async fn parked(&self, name: &str) -> Result<Vec<state::Parked>, Problem> {
        self.state.parked(name).await
    }

    async fn written(&self, name: &str, changes: Vec<Change>) -> Result<(), Problem> {
        let closing = |_| Problem::new(Refusal::Unavailable, "the bus is closing");
        self.state.write(name, changes).await.await.map_err(closing)
    }

    async fn end(&self, name: &str) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        if let Some(Running { stop, task, .. }) = running {
            stop.cancel();
            if task.await.is_err() {
                tracing::error!(name, "the task of a subscription has panicked");
            }
        }
    }

    /// Ends all of them, and waits until nothing is half done.
    pub(crate) async fn close(&self) {
        let _one = self.changing.lock().await;
        self.stop.cancel();
        let names: Vec<String> = self.each().into_iter().map(|it| it.definition.name.clone()).collect();
        for name in names {
            self.end(&name).await;
        }
        self.tasks.close();
        self.state.close().await;
        self.tasks.wait().await;
    }
}

impl Handle {
    /// Whether a snapshot would move its cursor.
    pub(crate) fn is_recovering(&self) -> bool {
        self.is_recovering.load(Ordering::Acquire)
    }

    /// A snapshot begins for it: deliveries pause. Where it counts, gives the way to say how far it was sent.
    pub(crate) async fn begins_snapshot(&self) -> Option<oneshot::Sender<Cursor>> {
        let (counts, answer) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        self.commands.send(Command::Snapshot(counts, ended)).await.ok()?;
        answer.await.is_ok_and(|counts| counts).then_some(end)
    }

    /// Asks the task for something, and waits for the answer.
    pub(crate) async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, Problem>>) -> Command,
    ) -> Result<T, Problem> {
        let (to, answer) = oneshot::channel();
        self.commands.send(command(to)).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }

    /// Where it stands.
    pub(crate) async fn stands(&self) -> Result<serde_json::Value, Problem> {
        let (to, answer) = oneshot::channel();
        self.commands.send(Command::Stands(to)).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())
    }
}

fn ended() -> Problem {
    Problem::new(Refusal::Unavailable, "the subscription has just ended, or changes; ask again")
}
