//! The one thread that writes: takes everything that waits, as one group, with one write and one sync.
//!
//! - takes: requests from the queue, in order; writes: one group at the end of the log;
//! - commits when: the sync has returned; then, and only then, the group is published and the callers are answered;
//! - if we crash here: before the sync nobody was told anything; after it the group is found whole when the log is
//!   opened, whether or not anybody was told;
//! - if it repeats: a repeated append finds its records and compares their ids.
//!
//! Invariant: a group is written only after the group before it is synced, and the first failed sync is final: what
//! the kernel forgot cannot be asked for again, so nothing more is acknowledged until the log is opened anew.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use tombolo_event::barrier::reach;

use super::format::{Group, Place, SEGMENT_HEADER_BYTES, SegmentHeader};
use super::index::SegmentIndex;
use super::options::Mutant;
use super::queue::Taken;
use super::recovery::{self, Active};
use super::staging::{Effects, Request, Staging};
use super::storage::Blob;
use super::{Shared, source};
use crate::Kind;

/// The writer's own state.
pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) active: Active,
    pub(super) lineage: u64,
    pub(super) next_group: u64,
    pub(super) is_witnessed: bool,
    /// Up to where a failed write may have left bytes behind.
    pub(super) dirty_until: u64,
    /// Why nothing is written any more.
    pub(super) failed: Option<String>,
    /// The next segment, while it is made.
    pub(super) preparing: Option<JoinHandle<io::Result<Arc<dyn Blob>>>>,
}

/// A group that was not stored.
struct Failure {
    message: String,
    is_final: bool,
}

impl Writer {
    /// Writes until the queue is closed and empty.
    pub(super) fn run(mut self) {
        let shared = self.shared.clone();
        loop {
            let idle = (!self.is_witnessed && self.failed.is_none()).then_some(shared.options.witness_after);
            match shared.queue.take(shared.options.group_bytes_max, idle) {
                Taken::Requests(requests, bytes) => self.commit(requests, bytes),
                Taken::Idle => self.witness(),
                Taken::Closed => break,
            }
        }
        self.witness();
        if let Some(preparing) = self.preparing.take() {
            drop(preparing.join());
            recovery::discard(&*shared.source.storage);
        }
    }

    fn commit(&mut self, requests: Vec<Request>, bytes: usize) {
        if let Some(message) = &self.failed {
            return requests.into_iter().for_each(|request| request.refuse(Kind::ReadOnly, message));
        }
        let shared = self.shared.clone();
        let mut staging = Staging::new(&shared.source, &shared.published, &shared.options, bytes + bytes / 4);
        requests.into_iter().for_each(|request| staging.take(request));
        let (group, effects) = staging.finish();
        if group.is_empty() {
            return effects.settle(None);
        }
        match self.store(group, &effects) {
            Ok(()) => effects.settle(None),
            Err(failure) => {
                let message = self.fail(failure);
                effects.settle(Some(&message));
            }
        }
    }

    /// Follows the last group with an empty one, so that damage in it is told from a torn tail.
    fn witness(&mut self) {
        if self.is_witnessed || self.failed.is_some() {
            return;
        }
        if let Err(failure) = self.store(Group::with_capacity(0), &Effects::default()) {
            self.fail(failure);
        }
        self.is_witnessed = true;
    }

    fn fail(&mut self, failure: Failure) -> String {
        let Failure { message, is_final } = failure;
        tracing::error!(is_final, "{message}");
        if is_final {
            self.failed = Some(message.clone());
        }
        message
    }

    /// Writes, syncs and publishes a group.
    fn store(&mut self, mut group: Group, effects: &Effects) -> Result<(), Failure> {
        let is_witness = group.is_empty();
        let length = group.pad() as u64;
        if self.active.end + length > self.active.capacity {
            self.roll(length)?;
        }
        let place = Place { segment: self.active.segment, offset: self.active.end };
        let bytes = group.seal(place, self.lineage, self.next_group);
        reach("log.before-write");
        self.write(&bytes)?;
        reach("log.after-write");
        let shared = self.shared.clone();
        if shared.options.is(Mutant::ServeBeforeSynced) {
            self.publish(place, &bytes, effects);
        }
        if !shared.options.is(Mutant::NoSync) {
            self.active.blob.sync().map_err(|error| self.final_failure("sync", &error))?;
        }
        reach("log.after-sync");
        if !shared.options.is(Mutant::ServeBeforeSynced) {
            self.publish(place, &bytes, effects);
        }
        self.active.end += length;
        self.next_group += 1;
        self.is_witnessed = is_witness;
        self.prepare_next();
        Ok(())
    }

    /// Writes at the end, over what a failed write may have left behind.
    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let (from, end) = (self.active.end, self.active.end + bytes.len() as u64);
        let left_behind = usize::try_from(self.dirty_until.saturating_sub(end)).unwrap_or(0);
        let written = match left_behind {
            0 => self.active.blob.write_at(bytes, from),
            _ => self.active.blob.write_at(&[bytes, &vec![0; left_behind]].concat(), from),
        };
        match written {
            Ok(()) => self.dirty_until = 0,
            Err(error) if is_full(&error) => {
                self.dirty_until = self.dirty_until.max(end);
                return Err(self.full(&error));
            }
            Err(error) => return Err(self.final_failure("write", &error)),
        }
        Ok(())
    }

    /// Makes what is synced visible.
    fn publish(&mut self, place: Place, bytes: &Bytes, effects: &Effects) {
        let shared = &self.shared;
        shared.source.remember(place.segment, place.offset, bytes.clone());
        for system in &effects.system {
            shared.published.apply(system.clone()).expect("the staging checked it against what is published");
            self.active.system.push(system.clone());
        }
        for block in &effects.blocks {
            let view = shared.published.numbered(block.topic).expect("the staging found the topic");
            let partition = view.partition(block.partition).expect("the staging found the partition");
            partition.extend(place.segment, block.entry(place.offset), block.last, block.last_id);
        }
    }

    /// Goes on in a new segment that holds at least `bytes`.
    fn roll(&mut self, bytes: u64) -> Result<(), Failure> {
        let shared = self.shared.clone();
        let storage = &*shared.source.storage;
        let needed = shared.options.segment_bytes.max(bytes + SEGMENT_HEADER_BYTES as u64);
        let prepared = self.preparing.take().and_then(|thread| thread.join().ok()?.ok());
        let blob = match prepared.filter(|_| needed == shared.options.segment_bytes) {
            Some(blob) => blob,
            None => recovery::prepare(storage, needed).map_err(|error| {
                recovery::discard(storage);
                if is_full(&error) { self.full(&error) } else { self.final_failure("make a segment", &error) }
            })?,
        };
        let header = SegmentHeader {
            lineage: self.lineage,
            segment: self.active.segment + 1,
            first_group: self.next_group,
            previous_end: self.active.end,
        };
        let next = recovery::activate(storage, blob, header, needed);
        let next = next.map_err(|error| self.final_failure("begin a segment", &error))?;
        let sealed = std::mem::replace(&mut self.active, next);
        self.dirty_until = 0;
        self.seal(&sealed);
        Ok(())
    }

    /// Moves the index of a full segment from memory to its sidecar, and gives back the room behind its end.
    fn seal(&self, sealed: &Active) {
        let shared = &self.shared;
        let mut partitions = std::collections::BTreeMap::new();
        for view in shared.published.topics() {
            for (number, partition) in (0..).zip(&view.partitions) {
                partitions.extend(partition.seal().map(|held| ((view.number, number), held)));
            }
        }
        let index = SegmentIndex {
            lineage: self.lineage,
            segment: sealed.segment,
            end: sealed.end,
            next_group: self.next_group,
            system: sealed.system.clone(),
            partitions,
        };
        recovery::write_sidecar(&*shared.source.storage, &index);
        shared.source.remember_index(Arc::new(index));
        if let Err(error) = sealed.blob.set_len(sealed.end) {
            tracing::warn!(%error, "the room behind the end of a sealed segment was not given back");
        }
    }

    /// Begins to make the next segment in good time.
    fn prepare_next(&mut self) {
        let options = &self.shared.options;
        if !options.prepare_ahead || self.preparing.is_some() || self.active.end < self.active.capacity / 4 {
            return;
        }
        let (shared, bytes) = (self.shared.clone(), options.segment_bytes);
        let thread = std::thread::Builder::new().name("tombolo-log-next".into());
        self.preparing = thread.spawn(move || recovery::prepare(&*shared.source.storage, bytes)).ok();
    }

    fn full(&self, error: &io::Error) -> Failure {
        let path = self.shared.source.storage.path("");
        let message = format!(
            "the disk of the log {path} is full ({error}): nothing was stored; free space, and it goes on by itself"
        );
        Failure { message, is_final: false }
    }

    fn final_failure(&self, what: &str, error: &io::Error) -> Failure {
        let path = self.shared.source.storage.path(&source::segment_name(self.active.segment));
        let message = format!(
            "{path} failed to {what} ({error}): nothing more is acknowledged; check the disk, then close the log and open it again"
        );
        Failure { message, is_final: true }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
