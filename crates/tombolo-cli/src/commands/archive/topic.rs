//! One topic that is archived: copied as it grows, and trimmed behind that.
//!
//! Invariant: what fails is tried again for as long as the command runs: soon if somebody is away, later if an operator is needed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tombolo_bus::Record;
use tombolo_bus::archiving::{Archiver, Keep};
use tombolo_event::{Backoff, Envelope, ServiceName};

use crate::error::Result;

/// How long to wait before trying again when somebody is away.
const AWAY: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
/// How long to wait where an operator is needed.
const STOPPED_RETRY: Duration = Duration::from_secs(60);
/// How often the bus is trimmed.
const TRIM_EVERY: Duration = Duration::from_secs(20);

/// What stays on the bus although the archive has it.
pub(super) struct Kept {
    pub(super) age: Duration,
    pub(super) events: u64,
}

/// A topic on its way to the archive.
pub(super) struct Topic {
    pub(super) name: ServiceName,
    archiver: Archiver,
    kept: Option<Kept>,
    removed: AtomicU64,
    /// Failures since something was archived.
    failures: AtomicU64,
    /// Why it does not go on.
    stopped: Mutex<Option<String>>,
}

impl Topic {
    pub(super) fn new(name: ServiceName, archiver: Archiver, kept: Option<Kept>) -> Self {
        let (removed, failures) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { name, archiver, kept, removed, failures, stopped: Mutex::default() }
    }

    /// Events that this process removed from the bus.
    pub(super) fn removed(&self) -> u64 {
        self.removed.load(Ordering::Relaxed)
    }

    /// Whether it goes on, for people.
    pub(super) fn state(&self) -> String {
        let stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        stopped.as_ref().map_or_else(|| "archiving".to_owned(), |why| format!("stopped: {why}"))
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn say_why(&self, why: Option<String>) {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// Events that the archive has, and those that it lacks.
    pub(super) async fn standing(&self) -> Result<(u64, u64)> {
        let standing = self.archiver.standing().await?;
        Ok((standing.archived, standing.behind))
    }

    /// Whether what is asked can be done at all.
    pub(super) async fn check(&self) -> Result<()> {
        if self.kept.is_some() {
            self.archiver.can_trim().await?;
        }
        Ok(())
    }

    /// Copies what there is now, and trims behind it.
    pub(super) async fn once(&self) -> Result<()> {
        self.archiver.to_present(&mut |_, _| {}).await?;
        self.trim().await
    }

    /// Copies the topic as it grows, and trims behind it, for ever.
    pub(super) async fn follow(&self) -> Result<()> {
        tokio::select! {
            never = self.copy() => never,
            never = self.keep_trimming() => never,
        }
    }

    async fn copy(&self) -> Result<()> {
        loop {
            let told = |_: &tombolo_bus::Tail, _| {
                if self.failures.swap(0, Ordering::Relaxed) > 0 {
                    self.say_why(None);
                    tracing::info!(topic = %self.name, "is archived again");
                }
            };
            let ended = self.archiver.follow(&told).await;
            let failures = self.failures.fetch_add(1, Ordering::Relaxed);
            let Err(error) = ended else { continue };
            let (soon, why) = (error.is_transient(), crate::error::with_causes(&error));
            if failures == 0 || !soon {
                tracing::error!(topic = %self.name, "is not archived at the moment: {why}");
            }
            self.say_why(Some(why));
            let wait =
                if soon { AWAY.jittered(u32::try_from(failures).unwrap_or(u32::MAX)) } else { STOPPED_RETRY };
            tokio::time::sleep(wait).await;
        }
    }

    async fn keep_trimming(&self) -> Result<()> {
        let mut due = tokio::time::interval(TRIM_EVERY);
        due.tick().await;
        loop {
            due.tick().await;
            if let Err(error) = self.trim().await {
                tracing::warn!(topic = %self.name, "was not trimmed: {}", error.message);
            }
        }
    }

    async fn trim(&self) -> Result<()> {
        let Some(kept) = &self.kept else { return Ok(()) };
        let age = SignedDuration::try_from(kept.age).unwrap_or(SignedDuration::MAX);
        let young_from = Timestamp::now().checked_sub(age).unwrap_or(Timestamp::MIN);
        // An event that cannot be read has no age: it goes with its neighbours.
        let is_old = |record: &Record| {
            Envelope::decode(record.bytes.clone()).map_or(true, |event| event.time <= young_from)
        };
        let removed = self.archiver.trim(&Keep { events: kept.events, is_old: &is_old }).await?;
        self.removed.fetch_add(removed, Ordering::Relaxed);
        if removed > 0 {
            tracing::info!(topic = %self.name, removed, "what the archive has was removed from the bus");
        }
        Ok(())
    }
}
