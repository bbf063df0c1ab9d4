//! Fakes: a service that is not in the world, as far as the others need it.
//!
//! Invariant: to the others it is a service like any other: registered, asked over HTTP or the bus, with a topic of its own.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;
use tombolo_event::{Event, Question};

use super::{Part, World};
use crate::sqlite::Sqlite;
use crate::{App, Problem, Service};

type Step = Arc<dyn Fn(Service<Sqlite>) -> Service<Sqlite> + Send + Sync>;

/// A fake that is being put together.
#[must_use = "a fake is in the world once it is started"]
pub struct FakeRecipe<'a> {
    world: &'a World,
    name: String,
    manner: watch::Sender<Manner>,
    steps: Vec<Step>,
}

/// How a fake answers.
#[derive(Debug, Clone, Copy)]
enum Manner {
    AtOnce,
    After(Duration),
    Never,
}

impl<'a> FakeRecipe<'a> {
    pub(super) fn new(world: &'a World, name: &str) -> Self {
        Self { world, name: name.to_owned(), manner: watch::Sender::new(Manner::AtOnce), steps: Vec::new() }
    }

    /// It may publish `E`.
    pub fn publishes<E: Event>(mut self) -> Self {
        self.steps.push(Arc::new(|service| service.publishes::<E>()));
        self
    }

    /// It answers `Q` as the closure does.
    pub fn answers<Q, F>(mut self, answer: F) -> Self
    where
        Q: Question,
        F: Fn(Q) -> Result<Q::Answer, Problem> + Send + Sync + 'static,
    {
        let (answer, manner) = (Arc::new(answer), self.manner.clone());
        self.steps.push(Arc::new(move |service| {
            let (answer, manner) = (Arc::clone(&answer), manner.clone());
            service.answer(move |question: Q, _: App<Sqlite>| {
                let (answer, manner) = (Arc::clone(&answer), manner.clone());
                async move {
                    let manner = *manner.borrow();
                    match manner {
                        Manner::AtOnce => {}
                        Manner::After(late) => sleep(late).await,
                        Manner::Never => std::future::pending().await,
                    }
                    answer(question)
                }
            })
        }));
        self
    }

    /// Puts it into the world.
    ///
    /// # Panics
    /// If the world has a service of that name already.
    pub async fn start(self) -> Fake {
        let (name, steps) = (self.name, self.steps);
        let service =
            move |database| steps.iter().fold(Service::new(&name, database), |service, step| step(service));
        Fake { part: self.world.start(service).await, manner: self.manner }
    }
}

/// A fake in a world. It is a [`Part`]: it can crash, be cut off, and publish.
pub struct Fake {
    part: Part,
    manner: watch::Sender<Manner>,
}

impl Fake {
    /// From now on it hears questions and says nothing, so that who asks runs into the deadline.
    pub fn never_answers(&self) {
        self.manner.send_replace(Manner::Never);
    }

    /// From now on it takes so long for each answer.
    pub fn answers_after(&self, late: Duration) {
        self.manner.send_replace(Manner::After(late));
    }

    /// From now on it answers at once, as in the beginning.
    pub fn answers_at_once(&self) {
        self.manner.send_replace(Manner::AtOnce);
    }
}

impl std::ops::Deref for Fake {
    type Target = Part;
    fn deref(&self) -> &Part {
        &self.part
    }
}
