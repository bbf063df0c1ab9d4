//! Appends to one topic: a chain of messages, each of which names the one before it.
//!
//! Takes an append; writes one message per record; it is committed when the server acknowledged the last of them.
//! If we crash in the middle, a prefix is stored and the repeat completes it. If it repeats, what is stored is read back
//! and compared by id; it is acknowledged only if every id matches.
//!
//! Invariant: what is sent was decided from [`Known`] as of the message that the first link names; if the stream has moved
//! since, no link holds, and the decision is made again from the stream.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{PublishAckFuture, PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use futures_util::future::join_all;
use tokio::sync::{Mutex, MutexGuard, OwnedRwLockReadGuard, RwLock};
use tombolo_event::{Cursor, EventId, Generations, Incarnation, ServiceName};

use super::agreed;
use super::link::{Link, unavailable};
use super::log::{End, Known, Log, Sending, TRIES_MAX, contended, did_not_hold, refused_by};
use super::message::{self, Control};
use crate::{Append, Appended, Error, Kind, Record, Result, Tail, Topic};

/// The one writer of a topic in this process.
pub(super) struct Writer {
    link: Arc<Link>,
    topic: ServiceName,
    known: Mutex<State>,
    /// Held for reading by every append that waits for acknowledgements, for writing by who reads the stream.
    flights: Arc<RwLock<()>>,
    /// As of which reading of the stream something was sent that is not known to be stored.
    astray: Arc<AtomicU64>,
}

/// Something on its way. It is astray unless it is said to have landed, also when nobody waits for it any more.
struct Flight {
    _way: OwnedRwLockReadGuard<()>,
    astray: Arc<AtomicU64>,
    reads: u64,
    landed: bool,
}

impl Drop for Flight {
    fn drop(&mut self) {
        if !self.landed {
            self.astray.fetch_max(self.reads, Ordering::AcqRel);
        }
    }
}

#[derive(Default)]
struct State {
    /// What the stream holds, and what was sent after that.
    known: Option<Known>,
    /// How many times the stream was read.
    reads: u64,
}

/// What to do with an append, as far as memory tells.
#[derive(Debug, PartialEq, Eq)]
enum Decision {
    /// It follows what is known.
    Send,
    /// The first so many records are stored already, under these numbers; their ids are to be compared.
    Compare(usize),
}

/// What was sent and is not yet acknowledged.
struct Sent {
    acks: Vec<PublishAckFuture>,
    last: u64,
    reads: u64,
    flight: Flight,
}

enum Step {
    Stored(u64),
    Sent(Sent),
    Reread,
}

impl Writer {
    pub(super) fn new(link: &Arc<Link>, topic: &ServiceName) -> Self {
        Self {
            link: Arc::clone(link),
            topic: topic.clone(),
            known: Mutex::default(),
            flights: Arc::default(),
            astray: Arc::default(),
        }
    }

    pub(super) async fn append(&self, append: &Append) -> Result<Appended> {
        self.link.ready().await?;
        message::check(append, self.link.client.max_payload())?;
        let mut reread = false;
        for _ in 0..TRIES_MAX {
            match self.step(append, reread).await? {
                Step::Stored(last) => return Ok(Appended { last }),
                Step::Reread => {}
                Step::Sent(sent) => {
                    if let Some(last) = self.acknowledged(sent).await? {
                        return Ok(Appended { last });
                    }
                }
            }
            reread = true;
        }
        Err(contended(&self.topic))
    }

    /// Decides and sends, in the order in which appends came.
    async fn step(&self, append: &Append, reread: bool) -> Result<Step> {
        let mut state = self.known.lock().await;
        let fresh = reread || state.known.is_none();
        if fresh {
            self.read_again(&mut state).await?;
        }
        let Some(mut known) = state.known.take() else { return Ok(Step::Reread) };
        if self.ignores_the_epoch() {
            known.control.epoch = append.epoch;
        }
        if self.ignores_the_seals() {
            let one = Generations::first(known.control.generations.partitions());
            known.control.generations = one.unwrap_or(known.control.generations);
        }
        match decide(&known, append) {
            Ok(Decision::Send) => self.send_from(&mut state, known, append, 0, reread).await,
            // What memory says may be old: no refusal and no acknowledgement before the stream was read.
            _ if !fresh && !self.answers_from_memory() => Ok(Step::Reread),
            Err(refused) => {
                state.known = Some(known);
                Err(refused)
            }
            Ok(Decision::Compare(stored)) => {
                let compared = self.compare(&known, append, stored).await;
                let last = known.ends[append.partition as usize].sequence;
                let sealed = known.control.generations.is_sealed(append.partition);
                if compared.is_err() || stored == append.records.len() || sealed {
                    state.known = Some(known);
                    compared?;
                    let whole = stored == append.records.len();
                    return if whole { Ok(Step::Stored(last)) } else { Err(self::sealed(append, last)) };
                }
                self.send_from(&mut state, known, append, stored, reread).await
            }
        }
    }

    /// Sends the records from `first` on.
    async fn send_from(
        &self,
        state: &mut MutexGuard<'_, State>,
        mut known: Known,
        append: &Append,
        first: usize,
        reread: bool,
    ) -> Result<Step> {
        if known.sending == Sending::Chained {
            return self.send(state, known, append, first, reread).await.map(Step::Sent);
        }
        if !agreed::store(&self.link, &mut known, append, first).await? {
            return Ok(Step::Reread);
        }
        let last = known.ends[append.partition as usize].sequence;
        state.known = Some(known);
        Ok(Step::Stored(last))
    }

    /// Reads the stream, once nothing is on its way any more.
    async fn read_again(&self, state: &mut MutexGuard<'_, State>) -> Result<()> {
        state.known = None;
        let landed = self.flights.write().await;
        let known = Log::open(&self.link, &self.topic).await?.known().await?;
        drop(landed);
        state.reads += 1;
        state.known = Some(known);
        Ok(())
    }

    /// Sends the records from `first` on as links of the chain. If this is given up half-way, `state` knows nothing,
    /// and the next append reads the stream.
    async fn send(
        &self,
        state: &mut MutexGuard<'_, State>,
        mut known: Known,
        append: &Append,
        first: usize,
        refused: bool,
    ) -> Result<Sent> {
        // A server that was restarted may not know the id of its last message. Its sequence is enough for the first link if the
        // stream was read a moment ago, or if everything has landed whose place a stranger's message could have taken.
        let all_landed =
            self.flights.try_write().is_ok() && self.astray.load(Ordering::Acquire) < state.reads;
        if refused || all_landed {
            known.last_id = None;
        }
        let reads = state.reads;
        let way = Arc::clone(&self.flights).read_owned().await;
        let flight = Flight { _way: way, astray: Arc::clone(&self.astray), reads, landed: false };
        let mut acks = Vec::with_capacity(append.records.len() - first);
        for record in &append.records[first..] {
            acks.push(self.send_link(&mut known, append, record).await?);
        }
        let end = &mut known.ends[append.partition as usize];
        if let Some(record) = append.records.last() {
            *end = End { sequence: record.sequence, id: Some(record.id), at: known.last };
        }
        let last = end.sequence;
        state.known = Some(known);
        Ok(Sent { acks, last, reads, flight })
    }

    async fn send_link(
        &self,
        known: &mut Known,
        append: &Append,
        record: &Record,
    ) -> Result<PublishAckFuture> {
        let id = self.link.message_id();
        let mut message = PublishMessage::build()
            .payload(record.bytes.clone())
            .headers(message::headers(record, append.epoch))
            .message_id(&id)
            .expected_last_sequence(known.last);
        if let Some(before) = known.last_id.as_ref().filter(|_| !self.chains_by_sequence_alone()) {
            message = message.expected_last_message_id(before);
        }
        let subject = self.link.names.partition(&self.topic, append.partition);
        let sent = self.link.jetstream.send_publish(subject, message).await;
        known.last += 1;
        known.last_id = Some(id);
        sent.map_err(|error| refusal(&self.topic, error))
    }

    /// Waits for the acknowledgements; `None` if a link did not hold or its answer was lost.
    async fn acknowledged(&self, mut sent: Sent) -> Result<Option<u64>> {
        let acks = join_all(sent.acks.into_iter().map(IntoFuture::into_future)).await;
        let error = acks.into_iter().find_map(|ack| ack.err());
        sent.flight.landed = error.is_none();
        // Before the state is locked: who holds it may be waiting for all flights to land.
        drop(sent.flight);
        let Some(error) = error else { return Ok(Some(sent.last)) };
        let mut state = self.known.lock().await;
        if state.reads == sent.reads {
            state.known = None;
        }
        drop(state);
        match error.kind() {
            PublishErrorKind::Other if !did_not_hold(&error) => Err(refusal(&self.topic, error)),
            PublishErrorKind::TimedOut => {
                self.link.leave().await;
                Ok(None)
            }
            _ => Ok(None),
        }
    }

    /// Compares the ids of the first `stored` records with those in the stream.
    async fn compare(&self, known: &Known, append: &Append, stored: usize) -> Result<()> {
        let end = &known.ends[append.partition as usize];
        let repeated = &append.records[..stored];
        if let [record] = repeated
            && record.sequence == end.sequence
        {
            return same_id(append, record, end.id);
        }
        let log = Log::open(&self.link, &self.topic).await?;
        let first = log.find_sequence(append.partition, repeated[0].sequence, end).await?;
        let Some(first) = first else {
            let place = Cursor::at(append.incarnation, repeated[0].sequence, repeated[0].id);
            let trimmed = log.trimmed(append.partition, place).await?;
            return trimmed.map_or_else(|| same_id(append, &repeated[0], None), Err);
        };
        let found = log.ids_from(append.partition, first.at, repeated.len()).await?;
        let mut found = found.into_iter();
        for record in repeated {
            let id = found.next().filter(|(sequence, _)| *sequence == record.sequence).map(|(_, id)| id);
            same_id(append, record, id)?;
        }
        Ok(())
    }

    pub(super) async fn raise(&self, incarnation: Incarnation, epoch: u64) -> Result<Vec<Tail>> {
        let changed = |control: &Control| {
            if epoch < control.epoch {
                return Err(older(&self.topic, epoch, control.epoch));
            }
            Ok((epoch > control.epoch).then(|| Control { epoch, ..control.clone() }))
        };
        Ok(self.change(incarnation, changed).await?.tails())
    }

    pub(super) async fn divide(
        &self,
        incarnation: Incarnation,
        epoch: u64,
        generations: &Generations,
    ) -> Result<Topic> {
        let changed = |control: &Control| {
            if epoch != control.epoch {
                return Err(older(&self.topic, epoch, control.epoch));
            }
            let is_new = control.topic(&self.topic).is_to_be_divided(generations)?;
            Ok(is_new.then(|| Control { generations: generations.clone(), ..control.clone() }))
        };
        Ok(self.change(incarnation, changed).await?.control.topic(&self.topic))
    }

    /// Writes control records until there is nothing left to change; returns what the stream holds then.
    async fn change(
        &self,
        incarnation: Incarnation,
        changed: impl Fn(&Control) -> Result<Option<Control>>,
    ) -> Result<Known> {
        let mut state = self.known.lock().await;
        for _ in 0..TRIES_MAX {
            self.read_again(&mut state).await?;
            let Some(known) = &state.known else { break };
            check_incarnation(&self.topic, known, incarnation)?;
            let Some(control) = changed(&known.control)? else { return Ok(known.clone()) };
            let control_at = known.control_at;
            state.known = None;
            // Only other changes contend here: this must get through beside a writer that never stops, and breaks its chain.
            let log = Log::open(&self.link, &self.topic).await?;
            log.write_control(&control, |message| message.expected_last_subject_sequence(control_at)).await?;
        }
        Err(contended(&self.topic))
    }
}

#[cfg(feature = "mutants")]
impl Writer {
    fn chains_by_sequence_alone(&self) -> bool {
        self.link.mutant == Some(super::Mutant::ChainBySequenceAlone)
    }

    fn answers_from_memory(&self) -> bool {
        self.link.mutant == Some(super::Mutant::AnswerFromMemory)
    }

    fn ignores_the_epoch(&self) -> bool {
        self.link.mutant == Some(super::Mutant::IgnoreTheEpoch)
    }

    fn ignores_the_seals(&self) -> bool {
        self.link.mutant == Some(super::Mutant::IgnoreTheSeals)
    }
}

#[cfg(not(feature = "mutants"))]
#[expect(clippy::unused_self, reason = "the switches of the test build ask the connection")]
impl Writer {
    fn chains_by_sequence_alone(&self) -> bool {
        false
    }

    fn answers_from_memory(&self) -> bool {
        false
    }

    fn ignores_the_epoch(&self) -> bool {
        false
    }

    fn ignores_the_seals(&self) -> bool {
        false
    }
}

fn decide(known: &Known, append: &Append) -> Result<Decision> {
    check_incarnation(&append.topic, known, append.incarnation)?;
    let Some(end) = known.ends.get(append.partition as usize) else {
        let found = known.ends.len();
        let message = format!(
            "topic {} has {found} partitions from 0; there is none {}",
            append.topic, append.partition
        );
        return Err(Error::new(Kind::UnknownPartition, message));
    };
    if append.epoch != known.control.epoch {
        return Err(older(&append.topic, append.epoch, known.control.epoch));
    }
    let (first, next) = (append.records.first().map_or(0, |record| record.sequence), end.sequence + 1);
    if first >= next && known.control.generations.is_sealed(append.partition) {
        return Err(sealed(append, end.sequence));
    }
    if first > next {
        let message = format!(
            "append to {}/{} begins at {first}; expected {next}: read the outbox again",
            append.topic, append.partition
        );
        return Err(Error::new(Kind::Hole, message));
    }
    let stored = usize::try_from(next - first).unwrap_or(usize::MAX).min(append.records.len());
    Ok(if stored == 0 { Decision::Send } else { Decision::Compare(stored) })
}

fn check_incarnation(topic: &ServiceName, known: &Known, expected: Incarnation) -> Result<()> {
    let found = known.control.incarnation;
    if found == expected {
        return Ok(());
    }
    let message = format!(
        "topic {topic} is incarnation {found}; expected {expected}: it was made again, or this is another server"
    );
    Err(Error::new(Kind::OtherIncarnation, message))
}

fn older(topic: &ServiceName, epoch: u64, found: u64) -> Error {
    let what = if epoch < found { "another relay took over" } else { "this epoch was never raised" };
    Error::new(Kind::OlderEpoch, format!("topic {topic} is at epoch {found}, the caller at {epoch}: {what}"))
}

fn sealed(append: &Append, last: u64) -> Error {
    let message = format!(
        "{}/{} is sealed at {last}: its topic was divided anew, and what is new goes to the present generation",
        append.topic, append.partition
    );
    Error::new(Kind::Sealed, message)
}

fn same_id(append: &Append, record: &Record, found: Option<EventId>) -> Result<()> {
    if found == Some(record.id) {
        return Ok(());
    }
    let found = found.map_or_else(|| "no event".to_owned(), |id| format!("event {id}"));
    let message = format!(
        "{}/{} holds {found} at {}; expected {}: the caller's database is not the one that wrote it",
        append.topic, append.partition, record.sequence, record.id
    );
    Err(Error::new(Kind::OtherId, message))
}

/// What an error of a publish means where it is not a link that did not hold.
pub(super) fn refusal(topic: &ServiceName, error: PublishError) -> Error {
    let code = refused_by(&error);
    match (error.kind(), code) {
        (PublishErrorKind::MaxPayloadExceeded, _) => {
            Error::new(Kind::TooLarge, "an event is over `max_payload` of the NATS server").because(error)
        }
        (
            _,
            Some(
                ErrorCode::ACCOUNT_RESOURCES_EXCEEDED
                | ErrorCode::INSUFFICIENT_RESOURCES
                | ErrorCode::STORAGE_RESOURCES_EXCEEDED
                | ErrorCode::STREAM_STORE_FAILED,
            ),
        ) => {
            let message =
                format!("the NATS server has no room for topic {topic}: make room, or raise its limits");
            Error::new(Kind::ReadOnly, message).because(error)
        }
        _ => unavailable("the NATS server did not store a message", error),
    }
}
