//! Signals in memory: who listens now, and their bounded queues.
//!
//! Invariant: a signal reaches everybody who listens alone and one member of each group; a slow listener loses its
//! oldest signals and holds nobody up.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::signal::{SIGNAL_BYTES_MAX, SIGNALS_WAITING_MAX};
use crate::{Error, Kind, Reach, Result, Signal, SignalStream};

/// The longest subject, in bytes.
pub const SUBJECT_BYTES_MAX: usize = 256;

/// Who listens to what.
#[derive(Default)]
pub(super) struct Signals {
    subjects: Mutex<Subjects>,
}

#[derive(Default)]
struct Subjects {
    by_name: HashMap<String, Subject>,
    closed: bool,
}

#[derive(Default)]
struct Subject {
    listeners: Vec<Arc<Listener>>,
    /// Whose turn it is in each group.
    turn: usize,
}

struct Listener {
    group: Option<String>,
    queue: Mutex<Queue>,
    arrived: Notify,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Signal>,
    closed: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn check_subject(subject: &str) -> Result<()> {
    let word = |word: &str| {
        !word.is_empty()
            && word.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '$' | ':'))
    };
    if subject.len() <= SUBJECT_BYTES_MAX && subject.split('.').all(word) {
        return Ok(());
    }
    let shape =
        format!("words of letters, digits, '-' and '_' with dots between, at most {SUBJECT_BYTES_MAX} bytes");
    Err(Error::new(Kind::InvalidName, format!("subject {subject:?} is not allowed; expected {shape}")))
}

impl Signals {
    pub(super) fn send(&self, subject: &str, signal: &Signal) -> Result<Reach> {
        check_subject(subject)?;
        if signal.payload.len() > SIGNAL_BYTES_MAX {
            let found = signal.payload.len();
            let message =
                format!("signal on {subject} is {found} bytes; expected at most {SIGNAL_BYTES_MAX}");
            return Err(Error::new(Kind::TooLarge, message));
        }
        let mut subjects = lock(&self.subjects);
        if subjects.closed {
            return Err(closed());
        }
        let Some(Subject { listeners, turn }) = subjects.by_name.get_mut(subject) else {
            return Ok(Reach::Nobody);
        };
        *turn = turn.wrapping_add(1);
        let mut groups: HashMap<&str, Vec<&Arc<Listener>>> = HashMap::new();
        for listener in &*listeners {
            match &listener.group {
                Some(group) => groups.entry(group).or_default().push(listener),
                None => listener.push(signal.clone()),
            }
        }
        for members in groups.values() {
            members[*turn % members.len()].push(signal.clone());
        }
        Ok(Reach::Somebody)
    }

    pub(super) fn listen(self: &Arc<Self>, subject: &str, group: Option<&str>) -> Result<SignalStream> {
        check_subject(subject)?;
        let listener = Arc::new(Listener {
            group: group.map(str::to_owned),
            queue: Mutex::default(),
            arrived: Notify::new(),
        });
        let mut subjects = lock(&self.subjects);
        if subjects.closed {
            return Err(closed());
        }
        subjects.by_name.entry(subject.to_owned()).or_default().listeners.push(listener.clone());
        let ear = Ear { signals: self.clone(), subject: subject.to_owned(), listener };
        Ok(Box::pin(futures_util::stream::unfold(ear, |ear| async {
            let signal = ear.listener.next().await?;
            Some((signal, ear))
        })))
    }

    /// Ends every stream once it has given what waits.
    pub(super) fn close(&self) {
        let mut subjects = lock(&self.subjects);
        subjects.closed = true;
        for listener in subjects.by_name.drain().flat_map(|(_, subject)| subject.listeners) {
            lock(&listener.queue).closed = true;
            listener.arrived.notify_one();
        }
    }
}

fn closed() -> Error {
    Error::new(Kind::Closed, "the bus was closed; open it again")
}

impl Listener {
    fn push(&self, signal: Signal) {
        let mut queue = lock(&self.queue);
        if queue.waiting.len() >= SIGNALS_WAITING_MAX {
            queue.waiting.pop_front();
        }
        queue.waiting.push_back(signal);
        drop(queue);
        self.arrived.notify_one();
    }

    async fn next(&self) -> Option<Signal> {
        loop {
            {
                let mut queue = lock(&self.queue);
                if let Some(signal) = queue.waiting.pop_front() {
                    return Some(signal);
                }
                if queue.closed {
                    return None;
                }
            }
            self.arrived.notified().await;
        }
    }
}

/// A stream's place among the listeners, given back when the stream is dropped.
struct Ear {
    signals: Arc<Signals>,
    subject: String,
    listener: Arc<Listener>,
}

impl Drop for Ear {
    fn drop(&mut self) {
        let mut subjects = lock(&self.signals.subjects);
        if let Some(subject) = subjects.by_name.get_mut(&self.subject) {
            subject.listeners.retain(|listener| !Arc::ptr_eq(listener, &self.listener));
            if subject.listeners.is_empty() {
                subjects.by_name.remove(&self.subject);
            }
        }
    }
}
