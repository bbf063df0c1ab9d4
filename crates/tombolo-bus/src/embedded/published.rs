//! What is synced, and therefore what everybody may see: topics, tails, where blocks lie, registrations.
//!
//! The writer alone changes it, after a sync; readers look things up and wait on a partition's tail.
//!
//! Invariant: nothing is in here that a power cut could take back.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::sync::watch;
use tombolo_event::{EventId, Generations, Incarnation, ServiceName};

use super::format::System;
use super::index::{Entry, Held};
use crate::{Registration, Tail, Topic};

pub(super) fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// Everything that is synced.
#[derive(Default)]
pub(super) struct Published {
    topics: RwLock<Topics>,
    registrations: RwLock<BTreeMap<(ServiceName, u32), Registration>>,
}

#[derive(Default)]
struct Topics {
    by_name: HashMap<ServiceName, Arc<TopicView>>,
    by_number: Vec<Arc<TopicView>>,
}

impl Published {
    pub(super) fn topic(&self, name: &ServiceName) -> Option<Arc<TopicView>> {
        read(&self.topics).by_name.get(name).cloned()
    }

    pub(super) fn numbered(&self, number: u32) -> Option<Arc<TopicView>> {
        let index = number.checked_sub(1)? as usize;
        read(&self.topics).by_number.get(index).cloned()
    }

    /// All topics, in the order in which they were made.
    pub(super) fn topics(&self) -> Vec<Arc<TopicView>> {
        read(&self.topics).by_number.clone()
    }

    pub(super) fn registrations(&self) -> Vec<Registration> {
        read(&self.registrations).values().cloned().collect()
    }

    pub(super) fn registration(&self, service: &ServiceName, replica: u32) -> Option<Registration> {
        read(&self.registrations).get(&(service.clone(), replica)).cloned()
    }

    /// Applies a system record that is synced; says what is wrong if it does not follow from what went before.
    pub(super) fn apply(&self, system: System) -> Result<(), String> {
        match system {
            System::TopicCreated { number, name, partitions, incarnation } => {
                let generations = Generations::first(partitions).map_err(|error| error.to_string())?;
                let view = Arc::new(TopicView::new(number, name, generations, incarnation));
                let mut topics = write(&self.topics);
                if number as usize != topics.by_number.len() + 1 || topics.by_name.contains_key(&view.name) {
                    return Err(format!("makes topic {} as number {number} out of turn", view.name));
                }
                topics.by_name.insert(view.name.clone(), view.clone());
                topics.by_number.push(view);
            }
            System::TopicDivided { topic, generations } => {
                let view =
                    self.numbered(topic).ok_or_else(|| format!("divides the unknown topic {topic}"))?;
                let is_next = view.to_topic().is_to_be_divided(&generations);
                if !is_next.map_err(|error| error.to_string())? {
                    return Err(format!("divides topic {} into what it is already", view.name));
                }
                let view = Arc::new(view.divided(generations));
                let mut topics = write(&self.topics);
                topics.by_name.insert(view.name.clone(), view.clone());
                topics.by_number[topic as usize - 1] = view;
            }
            System::EpochRaised { topic, epoch } => {
                let view = self
                    .numbered(topic)
                    .ok_or_else(|| format!("raises the epoch of unknown topic {topic}"))?;
                view.epoch.store(epoch, Ordering::Release);
            }
            System::Registered(registration) => {
                let key = (registration.service.clone(), registration.replica);
                write(&self.registrations).insert(key, registration);
            }
        }
        Ok(())
    }
}

/// A topic and its partitions. Dividing it makes another view of the same partitions and of new ones.
pub(super) struct TopicView {
    pub(super) number: u32,
    pub(super) name: ServiceName,
    pub(super) incarnation: Incarnation,
    pub(super) generations: Generations,
    epoch: Arc<AtomicU64>,
    pub(super) partitions: Vec<Arc<Partition>>,
}

impl TopicView {
    pub(super) fn new(
        number: u32,
        name: ServiceName,
        generations: Generations,
        incarnation: Incarnation,
    ) -> Self {
        let partitions = (0..generations.partitions()).map(|_| Arc::default()).collect();
        Self { number, name, incarnation, generations, epoch: Arc::default(), partitions }
    }

    /// The same topic once it has these generations.
    pub(super) fn divided(&self, generations: Generations) -> Self {
        let mut partitions = self.partitions.clone();
        partitions.resize_with(generations.partitions() as usize, Arc::default);
        let (name, epoch) = (self.name.clone(), Arc::clone(&self.epoch));
        Self { number: self.number, name, incarnation: self.incarnation, generations, epoch, partitions }
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    pub(super) fn partition(&self, number: u32) -> Option<&Partition> {
        self.partitions.get(number as usize).map(|own| &**own)
    }

    pub(super) fn to_topic(&self) -> Topic {
        Topic {
            name: self.name.clone(),
            generations: self.generations.clone(),
            incarnation: self.incarnation,
            epoch: self.epoch(),
        }
    }

    pub(super) fn tails(&self) -> Vec<Tail> {
        let tails = (0..).zip(&self.partitions).map(|(partition, own)| {
            let (sequence, id) = own.tail();
            Tail { partition, sequence, id }
        });
        tails.collect()
    }
}

/// One partition: where its blocks lie, and its tail.
#[derive(Default)]
pub(super) struct Partition {
    places: RwLock<Places>,
    tail: watch::Sender<u64>,
}

#[derive(Default)]
struct Places {
    /// The first sequence in each sealed segment that holds any.
    sealed: Vec<(u64, u64)>,
    /// The blocks in the segment that is written.
    active: Vec<Entry>,
    active_segment: u64,
    last: u64,
    last_id: Option<EventId>,
}

/// Where to find a sequence.
pub(super) enum Where {
    /// In the segment that is written: its number, and the blocks from the one with the sequence on, as many as were asked for.
    Active(u64, Vec<Entry>),
    /// In this sealed segment.
    Sealed(u64),
    /// Nowhere.
    Absent,
}

impl Partition {
    pub(super) fn tail(&self) -> (u64, Option<EventId>) {
        let places = read(&self.places);
        (places.last, places.last_id)
    }

    /// Tells of every change of the tail.
    pub(super) fn follow(&self) -> watch::Receiver<u64> {
        self.tail.subscribe()
    }

    /// Makes a block readable.
    pub(super) fn extend(&self, segment: u64, entry: Entry, last: u64, last_id: EventId) {
        let mut places = write(&self.places);
        places.active_segment = segment;
        places.active.push(entry);
        places.last = last;
        places.last_id = Some(last_id);
        drop(places);
        self.tail.send_replace(last);
    }

    /// Moves the blocks of the segment that was written until now out of memory, and returns them.
    pub(super) fn seal(&self) -> Option<Held> {
        let mut places = write(&self.places);
        let entries = std::mem::take(&mut places.active);
        let first = entries.first()?.first;
        let segment = places.active_segment;
        places.sealed.push((first, segment));
        Some(Held { first, last: places.last, last_id: places.last_id?, entries })
    }

    /// Takes over what a sealed segment holds; false if it does not follow.
    pub(super) fn restore(&self, segment: u64, held: &Held) -> bool {
        let mut places = write(&self.places);
        if held.first != places.last + 1 || held.last < held.first {
            return false;
        }
        places.sealed.push((held.first, segment));
        places.last = held.last;
        places.last_id = Some(held.last_id);
        drop(places);
        self.tail.send_replace(held.last);
        true
    }

    /// Takes over what the segment that is written holds; false if it does not follow.
    pub(super) fn adopt(&self, segment: u64, held: Held) -> bool {
        let mut places = write(&self.places);
        if held.first != places.last + 1 || held.last < held.first {
            return false;
        }
        places.active_segment = segment;
        places.active = held.entries;
        places.last = held.last;
        places.last_id = Some(held.last_id);
        drop(places);
        self.tail.send_replace(held.last);
        true
    }

    /// Where the block with `sequence` lies; of blocks in memory, as many as make up `bytes_max`.
    pub(super) fn find(&self, sequence: u64, bytes_max: usize) -> Where {
        let places = read(&self.places);
        if sequence == 0 || sequence > places.last {
            return Where::Absent;
        }
        if places.active.first().is_some_and(|entry| entry.first <= sequence) {
            return Where::Active(places.active_segment, from(&places.active, sequence, bytes_max));
        }
        let after = places.sealed.partition_point(|(first, _)| *first <= sequence);
        after.checked_sub(1).map_or(Where::Absent, |at| Where::Sealed(places.sealed[at].1))
    }
}

/// The entries from the one that holds `sequence` on, up to `bytes_max` of blocks, at least one.
pub(super) fn from(entries: &[Entry], sequence: u64, bytes_max: usize) -> Vec<Entry> {
    let start = entries.partition_point(|entry| entry.first <= sequence).saturating_sub(1);
    let mut bytes = 0;
    let fits = entries[start..].iter().take_while(|entry| {
        let fits = bytes == 0 || bytes + entry.length as usize <= bytes_max;
        bytes += entry.length as usize;
        fits
    });
    fits.copied().collect()
}
