//! The inbox: where answers to this process's gathers arrive.
//!
//! Invariant: an answer reaches the gather whose id it carries, while that one waits; any other is dropped and counted.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tombolo_bus::{Bus, SignalStream};
use uuid::Uuid;

use super::{Answered, Heard};
use crate::metrics::Metrics;

/// The inbox of one process.
pub(crate) struct Inbox {
    subject: String,
    waiting: Mutex<HashMap<Uuid, mpsc::UnboundedSender<Answered>>>,
    metrics: Arc<Metrics>,
}

/// A gather that waits; forgotten when it is dropped.
pub(crate) struct Ticket {
    pub(crate) id: Uuid,
    /// Bounded by the services that were asked: each is heard once.
    pub(crate) answers: mpsc::UnboundedReceiver<Answered>,
    inbox: Arc<Inbox>,
}

impl Inbox {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        Self { subject: format!("answer.{}", Uuid::new_v4().simple()), waiting: Mutex::default(), metrics }
    }

    /// The subject to answer on.
    pub(crate) fn subject(&self) -> &str {
        &self.subject
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<Uuid, mpsc::UnboundedSender<Answered>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to wait.
    pub(crate) fn wait(self: &Arc<Self>) -> Ticket {
        let id = Uuid::new_v4();
        let (sender, answers) = mpsc::unbounded_channel();
        self.waiting().insert(id, sender);
        Ticket { id, answers, inbox: Arc::clone(self) }
    }

    /// Receives until it is stopped.
    pub(crate) async fn run(self: Arc<Self>, bus: Arc<dyn Bus>, heard: Heard, stop: CancellationToken) {
        let mut attempt = 0;
        while !stop.is_cancelled() {
            let heard = async {
                if let Ok(signals) = bus.listen(&self.subject, None).await {
                    heard.say();
                    self.receive(signals).await
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = heard => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(crate::RETRY.jittered(attempt)) => attempt += 1,
            }
        }
    }

    async fn receive(&self, mut signals: SignalStream) {
        while let Some(signal) = signals.next().await {
            match serde_json::from_slice::<Answered>(&signal.payload) {
                Ok(answered) => self.deliver(answered),
                Err(error) => tracing::warn!("an answer on the bus cannot be read, it is dropped: {error}"),
            }
        }
    }

    pub(crate) fn deliver(&self, answered: Answered) {
        let delivered =
            self.waiting().get(&answered.id).is_some_and(|waiting| waiting.send(answered).is_ok());
        if !delivered {
            self.metrics.late_answers.inc();
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.inbox.waiting().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::*;

    fn answer(id: Uuid) -> Answered {
        Answered {
            id,
            service: "users".into(),
            outcome: Outcome::Answer(serde_json::value::to_raw_value(&1).unwrap()),
        }
    }

    #[test]
    fn a_late_answer_is_never_taken_for_another_questions() {
        let inbox = Arc::new(Inbox::new(Arc::new(Metrics::new("asker"))));
        let late = inbox.wait().id;
        let mut waiting = inbox.wait();
        inbox.deliver(answer(late));
        assert!(waiting.answers.try_recv().is_err());
        assert_eq!(inbox.metrics.late_answers.get(), 1);
        inbox.deliver(answer(waiting.id));
        assert_eq!(waiting.answers.try_recv().unwrap().id, waiting.id);
    }
}
