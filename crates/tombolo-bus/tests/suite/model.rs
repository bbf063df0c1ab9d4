//! The smallest engine that passes the suite, in memory, and the ways in which it can be broken on purpose.
//!
//! Invariant: without a [`Fault`] it does what [`Bus`] says; with one it does all but that.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use futures_util::StreamExt;
use tokio::sync::{mpsc, watch};
use tombolo_bus::conformance::Factory;
use tombolo_bus::port::{DESCRIPTOR_BYTES_MAX, check_append};
use tombolo_bus::signal::SIGNAL_BYTES_MAX;
use tombolo_bus::{
    Append, Appended, Batch, Bus, Error, Guarantee, Kind, Reach, Read, Record, RecordStream, Registration,
    Result, Signal, SignalStream, Tail, Topic, TopicSpec,
};
use tombolo_event::{Cursor, Generations, Incarnation, ServiceName};

/// A way in which an engine breaks the promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    AcknowledgesOtherIds,
    AcceptsHoles,
    IgnoresEpochs,
    IgnoresEpochsOfRepeats,
    StoresRepeatsAgain,
    DropsWhatARepeatAdds,
    StoresTheTruePartOfARefusedAppend,
    NamesTheWrongLast,
    IgnoresTheIncarnationOfAppends,
    ServesDoubles,
    SkipsARecord,
    IgnoresTheCursorsId,
    ClampsCursorsBeyondTheTail,
    IgnoresTheIncarnationOfCursors,
    EndsInsteadOfFollowing,
    IgnoresTheBoundOfBatches,
    NamesTheWrongLastIdWhenFiltering,
    LeavesHolesWhenFiltering,
    MixesPartitions,
    MakesTheTopicAnew,
    TakesOtherPartitions,
    ForgetsTheEpoch,
    ForgetsTheLastAppend,
    ForgetsRegistrations,
    KeepsTheFirstRegistration,
    SignalsAllOfAGroup,
    SignalsByPrefix,
    KeepsSignalsForLater,
    LosesWhereToReply,
    AlwaysSaysSomebody,
    LeavesStreamsOpen,
    AppendsToSealedPartitions,
    RefusesRepeatsInSealedPartitions,
    StoresTheTruePartInASealedPartition,
    IgnoresEpochsOfDivisions,
    IgnoresTheIncarnationOfDivisions,
    DividesIntoAnything,
    DividesTwice,
    ForgetsTheDivision,
    ForgetsTheSeals,
    EndsFollowersOfSealedPartitions,
    HidesSealedTails,
    MakesOnlyTheLastGeneration,
    DividesWhenAskedForMore,
    PassesOverWhatWasTrimmed,
    AcknowledgesWhatWasTrimmed,
    TrimsWithoutProof,
    TrimsTheLastToo,
    ForgetsWhereItBegins,
    TrimsLessAgain,
}

/// Every fault with the case that must catch it.
pub(crate) const FAULTS: &[(Fault, &str)] = &[
    (Fault::AcknowledgesOtherIds, "another_id_under_a_stored_number_is_refused"),
    (Fault::AcknowledgesOtherIds, "different_appends_from_two_relays_are_not_both_acknowledged"),
    (Fault::AcknowledgesOtherIds, "a_random_schedule_ends_as_a_list_says"),
    (Fault::AcceptsHoles, "a_hole_is_refused"),
    (Fault::AcceptsHoles, "appends_behind_a_refused_one_are_refused"),
    (Fault::AcceptsHoles, "a_random_schedule_ends_as_a_list_says"),
    (Fault::IgnoresEpochs, "an_older_epoch_is_refused_after_a_raise"),
    (Fault::IgnoresEpochs, "an_append_that_was_prepared_before_a_raise_is_refused"),
    (Fault::IgnoresEpochs, "a_random_schedule_ends_as_a_list_says"),
    (Fault::IgnoresEpochsOfRepeats, "a_repeat_under_an_older_epoch_is_refused"),
    (Fault::StoresRepeatsAgain, "a_repeat_is_acknowledged_and_not_doubled"),
    (Fault::StoresRepeatsAgain, "the_same_append_from_two_relays_is_stored_once"),
    (Fault::DropsWhatARepeatAdds, "a_repeat_with_more_behind_it_is_completed"),
    (Fault::StoresTheTruePartOfARefusedAppend, "another_id_behind_a_true_prefix_is_refused_whole"),
    (Fault::NamesTheWrongLast, "a_repeat_of_what_lies_further_back_is_acknowledged"),
    (Fault::IgnoresTheIncarnationOfAppends, "an_append_to_another_incarnation_is_refused"),
    (Fault::ServesDoubles, "reading_to_the_tail_ends"),
    (Fault::SkipsARecord, "reading_to_the_tail_ends"),
    (Fault::IgnoresTheCursorsId, "a_cursor_whose_record_has_another_id_is_refused"),
    (Fault::IgnoresTheCursorsId, "a_random_schedule_ends_as_a_list_says"),
    (Fault::ClampsCursorsBeyondTheTail, "a_cursor_beyond_the_tail_is_refused"),
    (Fault::IgnoresTheIncarnationOfCursors, "a_cursor_of_another_incarnation_is_refused"),
    (Fault::EndsInsteadOfFollowing, "a_reader_that_follows_sees_what_is_appended_later"),
    (Fault::IgnoresTheBoundOfBatches, "batches_are_bounded"),
    (Fault::NamesTheWrongLastIdWhenFiltering, "types_that_were_not_asked_for_are_passed_over"),
    (Fault::LeavesHolesWhenFiltering, "a_reader_of_some_types_gets_all_of_them_and_a_range_without_holes"),
    (Fault::MixesPartitions, "partitions_are_numbered_apart"),
    (Fault::MakesTheTopicAnew, "ensuring_a_topic_again_finds_the_same"),
    (Fault::TakesOtherPartitions, "a_topic_with_other_partitions_differs"),
    (Fault::ForgetsTheEpoch, "fences_survive_a_restart"),
    (Fault::ForgetsTheLastAppend, "what_was_acknowledged_survives_a_restart"),
    (Fault::ForgetsRegistrations, "registrations_survive_a_restart"),
    (Fault::KeepsTheFirstRegistration, "the_last_word_of_a_replica_counts"),
    (Fault::SignalsAllOfAGroup, "a_signal_is_heard_by_one_of_each_group"),
    (Fault::SignalsByPrefix, "a_signal_is_not_heard_on_another_subject"),
    (Fault::KeepsSignalsForLater, "a_signal_that_nobody_heard_is_gone"),
    (Fault::LosesWhereToReply, "a_signal_keeps_its_content_and_where_to_reply"),
    (Fault::AlwaysSaysSomebody, "the_reach_is_never_a_lie"),
    (Fault::LeavesStreamsOpen, "closing_ends_every_stream"),
    (Fault::AppendsToSealedPartitions, "a_division_seals_every_earlier_partition"),
    (Fault::AppendsToSealedPartitions, "an_append_that_was_prepared_before_a_division_is_refused"),
    (Fault::AppendsToSealedPartitions, "a_random_schedule_ends_as_a_list_says"),
    (Fault::RefusesRepeatsInSealedPartitions, "a_repeat_in_a_sealed_partition_is_acknowledged"),
    (Fault::RefusesRepeatsInSealedPartitions, "a_random_schedule_ends_as_a_list_says"),
    (Fault::StoresTheTruePartInASealedPartition, "what_goes_beyond_a_seal_is_refused_whole"),
    (Fault::AcknowledgesOtherIds, "another_id_in_a_sealed_partition_is_refused"),
    (Fault::IgnoresEpochsOfDivisions, "a_division_under_another_epoch_is_refused"),
    (Fault::IgnoresTheIncarnationOfDivisions, "a_division_of_another_incarnation_is_refused"),
    (Fault::DividesIntoAnything, "a_division_that_is_not_one_generation_more_is_refused"),
    (Fault::DividesIntoAnything, "divisions_that_race_make_one_generation"),
    (Fault::DividesTwice, "dividing_again_changes_nothing"),
    (Fault::DividesWhenAskedForMore, "ensuring_a_divided_topic_finds_it_as_it_is"),
    (Fault::MakesOnlyTheLastGeneration, "a_topic_is_made_with_all_its_generations"),
    (Fault::EndsFollowersOfSealedPartitions, "sealed_partitions_are_read_as_before"),
    (Fault::HidesSealedTails, "numbers_of_a_new_generation_follow_the_earlier_ones"),
    (Fault::ForgetsTheDivision, "a_division_survives_a_restart"),
    (Fault::ForgetsTheSeals, "seals_survive_a_restart"),
    (Fault::PassesOverWhatWasTrimmed, "a_place_before_what_is_kept_is_refused_by_a_kind_of_its_own"),
    (Fault::PassesOverWhatWasTrimmed, "a_reader_that_trimming_overtakes_is_told"),
    (Fault::AcknowledgesWhatWasTrimmed, "a_repeat_of_what_was_trimmed_is_never_acknowledged"),
    (Fault::TrimsWithoutProof, "a_trim_proves_where_the_rest_begins"),
    (Fault::TrimsTheLastToo, "the_last_event_of_a_partition_stays"),
    (Fault::ForgetsWhereItBegins, "what_was_trimmed_stays_so_over_a_restart"),
    (Fault::TrimsLessAgain, "trimming_again_or_less_changes_nothing"),
];

/// The engine, and the maker of handles to it.
pub(crate) struct Model {
    fault: Option<Fault>,
    kept: Arc<Mutex<Kept>>,
    bus: Mutex<Arc<Open>>,
}

/// What survives a restart.
#[derive(Default)]
struct Kept {
    topics: BTreeMap<ServiceName, Stored>,
    registrations: BTreeMap<(ServiceName, u32), Registration>,
    last_append: Option<(ServiceName, u32, usize)>,
}

struct Stored {
    topic: Topic,
    partitions: Vec<Vec<Record>>,
    /// The first sequence that counts as kept, of partitions that were trimmed.
    begins: BTreeMap<u32, u64>,
    /// False once a fault has forgotten the seals.
    is_sealed: bool,
}

/// One run of the engine.
struct Open {
    fault: Option<Fault>,
    kept: Arc<Mutex<Kept>>,
    /// Changes at each append; ends with the run.
    changed: watch::Sender<u64>,
    closed: watch::Sender<bool>,
    listeners: Mutex<Vec<Listener>>,
    waiting: Mutex<Vec<(String, Signal)>>,
}

struct Listener {
    subject: String,
    group: Option<String>,
    sender: mpsc::UnboundedSender<Signal>,
}

impl Model {
    pub(crate) fn new(fault: Option<Fault>) -> Self {
        let kept = Arc::<Mutex<Kept>>::default();
        let bus = Mutex::new(Open::on(fault, &kept));
        Self { fault, kept, bus }
    }
}

#[async_trait]
impl Factory for Model {
    async fn handle(&self) -> Arc<dyn Bus> {
        Arc::clone(&*self.bus.lock().unwrap()) as Arc<dyn Bus>
    }

    async fn reopen(&self) -> Arc<dyn Bus> {
        let before = Arc::clone(&*self.bus.lock().unwrap());
        before.close().await;
        self.forget(&mut self.kept.lock().unwrap());
        *self.bus.lock().unwrap() = Open::on(self.fault, &self.kept);
        self.handle().await
    }
}

impl Model {
    fn forget(&self, kept: &mut Kept) {
        match self.fault {
            Some(Fault::ForgetsTheEpoch) => {
                kept.topics.values_mut().for_each(|stored| stored.topic.epoch = 0)
            }
            Some(Fault::ForgetsTheSeals) => {
                kept.topics.values_mut().for_each(|stored| stored.is_sealed = false)
            }
            Some(Fault::ForgetsTheDivision) => kept.topics.values_mut().for_each(|stored| {
                let first = stored.topic.generations.steps().next().unwrap();
                stored.topic.generations = first;
                stored.partitions.truncate(stored.topic.partitions() as usize);
            }),
            Some(Fault::ForgetsWhereItBegins) => {
                kept.topics.values_mut().for_each(|stored| stored.begins.clear())
            }
            Some(Fault::ForgetsRegistrations) => kept.registrations.clear(),
            Some(Fault::ForgetsTheLastAppend) => {
                if let Some((topic, partition, length)) = kept.last_append.take() {
                    kept.topics.get_mut(&topic).unwrap().partitions[partition as usize].truncate(length);
                }
            }
            _ => {}
        }
    }
}

impl Open {
    fn on(fault: Option<Fault>, kept: &Arc<Mutex<Kept>>) -> Arc<Self> {
        Arc::new(Self {
            fault,
            kept: Arc::clone(kept),
            changed: watch::Sender::new(0),
            closed: watch::Sender::new(false),
            listeners: Mutex::default(),
            waiting: Mutex::default(),
        })
    }

    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    fn kept(&self) -> Result<MutexGuard<'_, Kept>> {
        if *self.closed.borrow() {
            return fail(Kind::Closed, "the bus is closed");
        }
        Ok(self.kept.lock().unwrap())
    }

    fn append_now(&self, append: &Append) -> Result<Appended> {
        check_append(append)?;
        let mut kept = self.kept()?;
        let stored = kept.find(&append.topic)?;
        let (epoch, length) = (stored.topic.epoch, stored.partitions.len());
        let begins = stored.begins(append.partition);
        let (stored_generations, is_sealed) = (stored.topic.generations.clone(), stored.is_sealed);
        if stored.topic.incarnation != append.incarnation && !self.has(Fault::IgnoresTheIncarnationOfAppends)
        {
            return fail(Kind::OtherIncarnation, "another incarnation");
        }
        let partition = if self.has(Fault::MixesPartitions) { 0 } else { append.partition };
        let Some(records) =
            stored.partitions.get_mut(partition as usize).filter(|_| append.partition < length as u32)
        else {
            return fail(Kind::UnknownPartition, "no such partition");
        };
        let is_repeat = append.records.iter().all(|record| records.contains(record));
        let ignored =
            self.has(Fault::IgnoresEpochs) || (self.has(Fault::IgnoresEpochsOfRepeats) && is_repeat);
        if append.epoch != epoch && !ignored {
            return fail(Kind::OlderEpoch, "not the epoch of the topic");
        }
        if let Some(begins) = begins.filter(|begins| append.records[0].sequence < begins.sequence)
            && !self.has(Fault::AcknowledgesWhatWasTrimmed)
        {
            let at = append.records[0].sequence;
            return Err(Error::trimmed(&append.topic, append.partition, at, Some(begins)));
        }
        let is_sealed = is_sealed
            && stored_generations.is_sealed(partition)
            && !self.has(Fault::AppendsToSealedPartitions);
        let before = self.store(records, append, is_sealed)?;
        let wrong = append.records.last().unwrap().sequence;
        let last = if self.has(Fault::NamesTheWrongLast) { wrong } else { records.len() as u64 };
        kept.last_append = Some((append.topic.clone(), partition, before));
        self.changed.send_modify(|changed| *changed += 1);
        Ok(Appended { last })
    }

    fn divide_now(&self, present: &mut Generations, asked: &Generations) -> Result<()> {
        if present == asked && !self.has(Fault::DividesTwice) {
            return Ok(());
        }
        let is_next = asked.continue_from(present) && asked.each().len() == present.each().len() + 1;
        *present = match () {
            () if is_next || self.has(Fault::DividesIntoAnything) => asked.clone(),
            () if self.has(Fault::DividesTwice) => present.and(asked.present()).unwrap(),
            () => return fail(Kind::TopicDiffers, "not one generation more"),
        };
        Ok(())
    }

    fn store(&self, stored: &mut Vec<Record>, append: &Append, is_sealed: bool) -> Result<usize> {
        let before = stored.len();
        for (at, record) in append.records.iter().enumerate() {
            let there =
                stored.get(record.sequence as usize - 1).filter(|_| (record.sequence as usize) <= before);
            match there {
                Some(there) if there.id != record.id && !self.has(Fault::AcknowledgesOtherIds) => {
                    if self.has(Fault::StoresTheTruePartOfARefusedAppend) {
                        stored.extend_from_slice(&append.records[at + 1..]);
                    }
                    return fail(Kind::OtherId, "another id is stored there");
                }
                _ => {}
            }
        }
        let first = append.records[0].sequence as usize;
        if first > before + 1 && !is_sealed && !self.has(Fault::AcceptsHoles) {
            return fail(Kind::Hole, "that leaves a hole");
        }
        let known = (before + 1).saturating_sub(first).min(append.records.len());
        if is_sealed && (known < append.records.len() || self.has(Fault::RefusesRepeatsInSealedPartitions)) {
            if known > 0 && self.has(Fault::StoresTheTruePartInASealedPartition) {
                stored.extend_from_slice(&append.records[known..]);
            }
            return fail(Kind::Sealed, "the partition is sealed");
        }
        match () {
            () if self.has(Fault::StoresRepeatsAgain) => stored.extend_from_slice(&append.records),
            () if self.has(Fault::DropsWhatARepeatAdds) && known > 0 => {}
            () => stored.extend_from_slice(&append.records[known..]),
        }
        Ok(before)
    }
}

fn fail<T>(kind: Kind, message: &str) -> Result<T> {
    Err(Error::new(kind, message))
}

impl Stored {
    fn begins(&self, partition: u32) -> Option<Cursor> {
        let sequence = *self.begins.get(&partition)?;
        let id = self.partitions[partition as usize][sequence as usize - 1].id;
        Some(Cursor::at(self.topic.incarnation, sequence, id))
    }
}

fn tails(stored: &Stored) -> Vec<Tail> {
    let tail = |(partition, records): (u32, &Vec<Record>)| Tail {
        partition,
        sequence: records.len() as u64,
        id: records.last().map(|record| record.id),
    };
    (0..).zip(&stored.partitions).map(tail).collect()
}

impl Kept {
    fn find(&mut self, name: &ServiceName) -> Result<&mut Stored> {
        self.topics.get_mut(name).ok_or_else(|| Error::new(Kind::UnknownTopic, format!("no topic {name}")))
    }
}

#[async_trait]
impl Bus for Open {
    fn guarantee(&self) -> Guarantee {
        Guarantee { engine: "model".into(), survives_power_cut: false, detail: "kept in memory".into() }
    }

    async fn ensure_topic(&self, spec: &TopicSpec) -> Result<Topic> {
        let mut kept = self.kept()?;
        if let Some(stored) = kept.topics.get(&spec.name).filter(|_| !self.has(Fault::MakesTheTopicAnew)) {
            if spec.incarnation.is_some_and(|given| given != stored.topic.incarnation) {
                return fail(Kind::TopicDiffers, "it has another incarnation");
            }
            let (found, asked) = (&stored.topic.generations, &spec.generations);
            let is_related = found.continue_from(asked) || asked.continue_from(found);
            if !is_related && !self.has(Fault::TakesOtherPartitions) {
                return fail(Kind::TopicDiffers, "it has other partitions");
            }
            let mut topic = stored.topic.clone();
            if self.has(Fault::DividesWhenAskedForMore) && asked.continue_from(found) {
                topic.generations = asked.clone();
            }
            return Ok(topic);
        }
        let generations = match self.has(Fault::MakesOnlyTheLastGeneration) {
            true => Generations::first(spec.generations.present()).unwrap(),
            false => spec.generations.clone(),
        };
        let partitions = vec![Vec::new(); generations.partitions() as usize];
        let topic = Topic {
            name: spec.name.clone(),
            generations,
            incarnation: spec.incarnation.unwrap_or_default(),
            epoch: 0,
        };
        let stored = Stored { topic: topic.clone(), partitions, begins: BTreeMap::new(), is_sealed: true };
        kept.topics.insert(spec.name.clone(), stored);
        Ok(topic)
    }

    async fn topic(&self, name: &ServiceName) -> Result<Topic> {
        Ok(self.kept()?.find(name)?.topic.clone())
    }

    async fn topics(&self) -> Result<Vec<Topic>> {
        Ok(self.kept()?.topics.values().map(|stored| stored.topic.clone()).collect())
    }

    async fn raise_epoch(
        &self,
        topic: &ServiceName,
        incarnation: Incarnation,
        epoch: u64,
    ) -> Result<Vec<Tail>> {
        let mut kept = self.kept()?;
        let stored = kept.find(topic)?;
        if stored.topic.incarnation != incarnation {
            return fail(Kind::OtherIncarnation, "another incarnation");
        }
        if epoch < stored.topic.epoch {
            return fail(Kind::OlderEpoch, "an older epoch");
        }
        stored.topic.epoch = epoch;
        Ok(tails(stored))
    }

    async fn divide(
        &self,
        topic: &ServiceName,
        incarnation: Incarnation,
        epoch: u64,
        generations: &Generations,
    ) -> Result<Topic> {
        let mut kept = self.kept()?;
        let stored = kept.find(topic)?;
        if stored.topic.incarnation != incarnation && !self.has(Fault::IgnoresTheIncarnationOfDivisions) {
            return fail(Kind::OtherIncarnation, "another incarnation");
        }
        if epoch != stored.topic.epoch && !self.has(Fault::IgnoresEpochsOfDivisions) {
            return fail(Kind::OlderEpoch, "not the epoch of the topic");
        }
        self.divide_now(&mut stored.topic.generations, generations)?;
        stored.partitions.resize(stored.topic.partitions() as usize, Vec::new());
        Ok(stored.topic.clone())
    }

    async fn append(&self, append: Append) -> Result<Appended> {
        let appended = self.append_now(&append);
        // So that acknowledgements are late, as they are from a disk.
        tokio::task::yield_now().await;
        appended
    }

    async fn tails(&self, topic: &ServiceName) -> Result<Vec<Tail>> {
        let mut kept = self.kept()?;
        let stored = kept.find(topic)?;
        let mut tails = tails(stored);
        if self.has(Fault::HidesSealedTails) {
            tails.retain(|tail| !stored.topic.generations.is_sealed(tail.partition));
        }
        Ok(tails)
    }

    async fn read(&self, read: Read) -> Result<RecordStream> {
        let mut reader = Reader::open(self, read)?;
        let (changed, closed) = (self.changed.subscribe(), self.closed.subscribe());
        reader.open_for_ever = self.has(Fault::LeavesStreamsOpen);
        let stream = futures_util::stream::unfold(
            (reader, changed, closed),
            |(mut reader, mut changed, mut closed)| async {
                loop {
                    changed.borrow_and_update();
                    if *closed.borrow() && !reader.open_for_ever {
                        return None;
                    }
                    if let Some(batch) = reader.next() {
                        reader.failed = batch.is_err();
                        return Some((batch, (reader, changed, closed)));
                    }
                    if reader.failed {
                        return None;
                    }
                    let is_over = !reader.read.follow || reader.last >= reader.end;
                    if is_over || reader.has(Fault::EndsInsteadOfFollowing) {
                        return None;
                    }
                    tokio::select! { _ = changed.changed() => {}, _ = closed.changed() => {} }
                }
            },
        );
        Ok(stream.boxed())
    }

    async fn trim(&self, topic: &ServiceName, partition: u32, first: Cursor) -> Result<()> {
        let mut kept = self.kept()?;
        let stored = kept.find(topic)?;
        if stored.topic.incarnation != first.incarnation {
            return fail(Kind::OtherIncarnation, "another incarnation");
        }
        let Some(records) = stored.partitions.get(partition as usize) else {
            return fail(Kind::UnknownPartition, "no such partition");
        };
        if first.sequence > records.len() as u64 {
            return fail(Kind::BeyondTail, "beyond the tail");
        }
        let Some(at) = (first.sequence as usize).checked_sub(1) else { return Ok(()) };
        if Some(records[at].id) != first.id && !self.has(Fault::TrimsWithoutProof) {
            return fail(Kind::OtherId, "another id");
        }
        let mut begins = first.sequence;
        if self.has(Fault::TrimsTheLastToo) && at + 1 == records.len() {
            stored.partitions[partition as usize].pop();
            begins -= 1;
        }
        let before = if self.has(Fault::TrimsLessAgain) {
            0
        } else {
            stored.begins.get(&partition).copied().unwrap_or(1)
        };
        if begins > before {
            stored.begins.insert(partition, begins);
        }
        Ok(())
    }

    async fn signal(&self, subject: &str, mut signal: Signal) -> Result<Reach> {
        check_subject(subject)?;
        if signal.payload.len() > SIGNAL_BYTES_MAX {
            return fail(Kind::TooLarge, "too large");
        }
        if self.has(Fault::LosesWhereToReply) {
            signal.reply_to = None;
        }
        let mut listeners = self.listeners.lock().unwrap();
        listeners.retain(|listener| !listener.sender.is_closed());
        let hears = |listener: &Listener| {
            listener.subject == subject
                || (self.has(Fault::SignalsByPrefix) && subject.starts_with(&listener.subject))
        };
        let mut groups = VecDeque::new();
        for listener in listeners.iter().filter(|listener| hears(listener)) {
            if groups.contains(&&listener.group)
                && listener.group.is_some()
                && !self.has(Fault::SignalsAllOfAGroup)
            {
                continue;
            }
            groups.push_back(&listener.group);
            drop(listener.sender.send(signal.clone()));
        }
        let somebody = !groups.is_empty() || self.has(Fault::AlwaysSaysSomebody);
        if groups.is_empty() && self.has(Fault::KeepsSignalsForLater) {
            self.waiting.lock().unwrap().push((subject.to_owned(), signal));
        }
        Ok(if somebody { Reach::Somebody } else { Reach::Nobody })
    }

    async fn listen(&self, subject: &str, group: Option<&str>) -> Result<SignalStream> {
        check_subject(subject)?;
        let (sender, receiver) = mpsc::unbounded_channel();
        for (_, signal) in self.waiting.lock().unwrap().iter().filter(|(waiting, _)| waiting == subject) {
            drop(sender.send(signal.clone()));
        }
        let listener = Listener { subject: subject.to_owned(), group: group.map(str::to_owned), sender };
        self.listeners.lock().unwrap().push(listener);
        Ok(futures_util::stream::unfold(receiver, |mut receiver| async {
            let signal = receiver.recv().await?;
            Some((signal, receiver))
        })
        .boxed())
    }

    async fn register(&self, registration: &Registration) -> Result<()> {
        if registration.descriptor.len() > DESCRIPTOR_BYTES_MAX {
            return fail(Kind::TooLarge, "too large");
        }
        let mut kept = self.kept()?;
        let said = kept.registrations.entry((registration.service.clone(), registration.replica));
        if self.has(Fault::KeepsTheFirstRegistration) {
            said.or_insert_with(|| registration.clone());
        } else {
            said.insert_entry(registration.clone());
        }
        Ok(())
    }

    async fn registrations(&self) -> Result<Vec<Registration>> {
        Ok(self.kept()?.registrations.values().cloned().collect())
    }

    async fn close(&self) {
        self.closed.send_replace(true);
        self.listeners.lock().unwrap().clear();
    }
}

fn check_subject(subject: &str) -> Result<()> {
    let word =
        |word: &str| !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
    if subject.split('.').all(word) { Ok(()) } else { fail(Kind::InvalidName, "not dotted words") }
}

struct Reader {
    fault: Option<Fault>,
    kept: Arc<Mutex<Kept>>,
    read: Read,
    last: u64,
    end: u64,
    open_for_ever: bool,
    failed: bool,
}

impl Reader {
    fn open(bus: &Open, read: Read) -> Result<Self> {
        let mut kept = bus.kept()?;
        let stored = kept.find(&read.topic)?;
        let after = read.after;
        if stored.topic.incarnation != after.incarnation && !bus.has(Fault::IgnoresTheIncarnationOfCursors) {
            return fail(Kind::OtherIncarnation, "another incarnation");
        }
        let Some(records) = stored.partitions.get(read.partition as usize) else {
            return fail(Kind::UnknownPartition, "no such partition");
        };
        let tail = records.len() as u64;
        if let Some(begins) = stored.begins(read.partition).filter(|begins| after.sequence < begins.sequence)
            && !bus.has(Fault::PassesOverWhatWasTrimmed)
        {
            return Err(Error::trimmed(&read.topic, read.partition, after.sequence, Some(begins)));
        }
        if after.sequence > tail && !bus.has(Fault::ClampsCursorsBeyondTheTail) {
            return fail(Kind::BeyondTail, "beyond the tail");
        }
        let there =
            (after.sequence as usize).checked_sub(1).and_then(|at| records.get(at)).map(|there| there.id);
        if there != after.id && after.sequence <= tail && !bus.has(Fault::IgnoresTheCursorsId) {
            return fail(Kind::OtherId, "another id");
        }
        let ends = bus.has(Fault::EndsFollowersOfSealedPartitions)
            && stored.topic.generations.is_sealed(read.partition);
        let end = if read.follow && !ends { u64::MAX } else { tail };
        let (fault, kept) = (bus.fault, Arc::clone(&bus.kept));
        Ok(Self {
            fault,
            kept,
            last: after.sequence.min(tail),
            read,
            end,
            open_for_ever: false,
            failed: false,
        })
    }

    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    fn next(&mut self) -> Option<Result<Batch>> {
        let kept = self.kept.lock().unwrap();
        let stored = &kept.topics[&self.read.topic];
        if let Some(begins) = stored.begins(self.read.partition)
            && self.last + 1 < begins.sequence
            && !self.failed
        {
            if !self.has(Fault::PassesOverWhatWasTrimmed) {
                let Read { topic, partition, .. } = &self.read;
                return Some(Err(Error::trimmed(topic, *partition, self.last, Some(begins))));
            }
            self.last = begins.sequence - 1;
        }
        let all = &kept.topics[&self.read.topic].partitions[self.read.partition as usize];
        let (mut records, mut bytes, before) = (Vec::new(), 0, self.last);
        let wanted = |record: &Record| match &self.read.types {
            Some(types) => types.iter().any(|name| *name == record.type_name()),
            None => true,
        };
        let bound =
            if self.has(Fault::IgnoresTheBoundOfBatches) { usize::MAX } else { self.read.batch_bytes_max };
        for record in all.iter().skip(before as usize).take((self.end - before) as usize) {
            if wanted(record) {
                bytes += record.size();
                if bytes > bound && !records.is_empty() {
                    break;
                }
                records.push(record.clone());
            }
            self.last += 1;
        }
        if self.last == before || self.failed {
            return None;
        }
        let mut batch = Batch {
            first: before + 1,
            last: self.last,
            last_id: all[self.last as usize - 1].id,
            records,
            tail: all.len() as u64,
        };
        self.spoil(&mut batch);
        Some(Ok(batch))
    }

    fn spoil(&self, batch: &mut Batch) {
        match self.fault {
            Some(Fault::ServesDoubles) => batch.records.extend(batch.records.last().cloned()),
            Some(Fault::SkipsARecord) => drop(batch.records.pop()),
            Some(Fault::NamesTheWrongLastIdWhenFiltering) if self.read.types.is_some() => {
                batch.last_id = batch.records.last().map_or(batch.last_id, |record| record.id);
            }
            Some(Fault::LeavesHolesWhenFiltering) if self.read.types.is_some() => {
                batch.first = batch.records.first().map_or(batch.first, |record| record.sequence);
            }
            _ => {}
        }
    }
}
