//! The embedded engine: one log on one machine, in process, and under the server of `tombolo bus`.
//!
//! One physical log, segmented and append-only, under all topics, so that one sync serves everybody who waits (group
//! commit). Requests go through a `queue` to the one `writer` thread, which checks them and puts a group together
//! (`staging`), writes and syncs it, and then makes it readable (`published`). Readers (`reader`) take blocks from
//! the memory of the newest groups or from disk (`source`). Opening is in `recovery`, the bytes are in `format`.
//!
//! It serves one machine, by design: whoever outgrows it moves to a cluster of an existing engine.
//!
//! Invariant: what was acknowledged, or seen by a reader, is on disk.

mod options;
mod storage;
mod lock;
mod format;
mod scan;
mod index;
mod published;
mod source;
mod recovery;
mod staging;
mod queue;
mod writer;
mod reader;
mod inspection;
mod signals;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use async_trait::async_trait;
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;
use tombolo_event::barrier;
use tombolo_event::{Cursor, Generations, Incarnation, ServiceName};

pub use inspection::{Damage, InspectedPartition, InspectedTopic, Inspection, verify};
pub use options::{Cut, Mutant, Options, Recovered, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};
pub use signals::SUBJECT_BYTES_MAX;

use crate::port::{self, DESCRIPTOR_BYTES_MAX};
use crate::{
    Append, Appended, Bus, Error, Guarantee, Kind, Reach, Read, RecordStream, Registration, Result, Signal,
    SignalStream, Tail, Topic, TopicSpec,
};
use lock::Lock;
use published::Published;
use queue::Queue;
use signals::Signals;
use source::Source;
use staging::Request;
use storage::{Folder, Memory, Storage};
use writer::Writer;

/// The unit in which the bytes of waiting appends are counted.
const PERMIT_BYTES: usize = 1 << 10;

/// A log of one machine.
///
/// Close it with [`Bus::close`]; one that is dropped without is closed too, on the thread that drops it.
pub struct Log {
    shared: Arc<Shared>,
    room: Arc<Semaphore>,
    permits: u32,
    writer: Mutex<Option<JoinHandle<()>>>,
    lock: Mutex<Option<Lock>>,
}

/// What the log's owner, its writer and its readers share.
struct Shared {
    options: Options,
    source: Source,
    published: Published,
    queue: Queue,
    signals: Arc<Signals>,
    closing: CancellationToken,
}

impl Log {
    /// Opens the log in the folder `path`, or makes one. Reads its last segment, so call it where waiting is allowed.
    ///
    /// # Errors
    /// `Configuration` if the options are out of bounds, `Unavailable` if another process has the log open or the
    /// folder cannot be used, `Corrupt` if anything but an interrupted last write is damaged.
    pub fn open(path: &Path, options: Options) -> Result<(Arc<Self>, Recovered)> {
        let unusable = |error: std::io::Error| {
            let message = format!("the log in {} cannot be opened: {error}", path.display());
            Error::new(Kind::Unavailable, message).because(error)
        };
        let folder = Folder::make(path).map_err(unusable)?;
        let lock = Lock::take(path)?;
        Self::start(Arc::new(folder), options, Some(lock))
    }

    /// A log in memory, for tests and for a monolith that needs no more.
    ///
    /// # Errors
    /// `Configuration` if the options are out of bounds.
    pub fn in_memory(options: Options) -> Result<Arc<Self>> {
        Ok(Self::start(Arc::new(Memory::default()), options, None)?.0)
    }

    fn start(
        storage: Arc<dyn Storage>,
        options: Options,
        lock: Option<Lock>,
    ) -> Result<(Arc<Self>, Recovered)> {
        check(&options)?;
        let opened = recovery::open(&storage, &options)?;
        say_cut(&opened.recovered);
        let permits = u32::try_from(options.waiting_bytes_max / PERMIT_BYTES).unwrap_or(u32::MAX).max(1);
        let shared = Arc::new(Shared {
            source: Source::new(storage, opened.lineage, options.recent_bytes_max),
            published: opened.published,
            queue: Queue::default(),
            signals: Arc::default(),
            closing: CancellationToken::new(),
            options,
        });
        let writer = Writer {
            shared: shared.clone(),
            active: opened.active,
            lineage: opened.lineage,
            next_group: opened.next_group,
            is_witnessed: opened.is_witnessed,
            dirty_until: 0,
            failed: None,
            preparing: None,
        };
        let log = Self {
            shared,
            room: Arc::new(Semaphore::new(permits as usize)),
            permits,
            writer: Mutex::new(Some(spawn(writer)?)),
            lock: Mutex::new(lock),
        };
        Ok((Arc::new(log), opened.recovered))
    }

    /// Ends everything; returns the writer's thread, which is to be joined.
    fn begin_to_close(&self) -> Option<JoinHandle<()>> {
        self.room.close();
        self.shared.closing.cancel();
        self.shared.signals.close();
        self.shared.queue.close();
        self.writer.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn release(&self) {
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<Result<T>>) -> Request) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.shared.queue.push(request(reply));
        let stopped = "the log's writer stopped; close the log and open it again";
        answer.await.unwrap_or_else(|_| Err(Error::new(Kind::ReadOnly, stopped)))
    }

    fn view(&self, name: &ServiceName) -> Result<Arc<published::TopicView>> {
        self.open_still()?;
        self.shared.published.topic(name).ok_or_else(|| staging::unknown_topic(name))
    }

    fn open_still(&self) -> Result<()> {
        if self.shared.closing.is_cancelled() {
            return Err(closed());
        }
        Ok(())
    }
}

fn closed() -> Error {
    Error::new(Kind::Closed, "the bus was closed; open it again")
}

fn check(options: &Options) -> Result<()> {
    let bounds = SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX;
    for (name, bytes) in
        [("segment_bytes", options.segment_bytes), ("first_segment_bytes", options.first_segment_bytes)]
    {
        if !bounds.contains(&bytes) {
            let message = format!("{name} is {bytes}; expected {} to {}", bounds.start(), bounds.end());
            return Err(Error::new(Kind::Configuration, message));
        }
    }
    Ok(())
}

/// Refuses what still waits when the writer's thread ends, even by a panic.
struct CloseOnExit(Arc<Shared>);

impl Drop for CloseOnExit {
    fn drop(&mut self) {
        self.0.queue.close();
        while let queue::Taken::Requests(requests, _) = self.0.queue.take(usize::MAX, None) {
            let message = "the log's writer stopped; close the log and open it again";
            requests.into_iter().for_each(|request| request.refuse(Kind::ReadOnly, message));
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if let Some(thread) = self.begin_to_close() {
            drop(thread.join());
        }
    }
}

fn say_cut(recovered: &Recovered) {
    if let Some(Cut { file, offset, bytes }) = &recovered.cut {
        tracing::warn!(
            file,
            offset,
            bytes,
            "an interrupted write was cut off; nothing of it had been acknowledged"
        );
    }
}

/// Starts the writer's thread.
fn spawn(writer: Writer) -> Result<JoinHandle<()>> {
    let owner = barrier::owner();
    let thread = std::thread::Builder::new().name("tombolo-log".into()).spawn(move || {
        barrier::work_for(owner);
        let queue = CloseOnExit(writer.shared.clone());
        writer.run();
        drop(queue);
    });
    thread.map_err(|error| {
        Error::new(Kind::Unavailable, "the writer's thread cannot be started").because(error)
    })
}

#[async_trait]
impl Bus for Log {
    fn guarantee(&self) -> Guarantee {
        let survives_power_cut = self.shared.source.storage.is_durable();
        let detail = if survives_power_cut {
            "every acknowledged event is synced to disk, as far as the disk keeps what it says it synced"
        } else {
            "everything is in memory and ends with the process"
        };
        let engine = format!("tombolo embedded {}", env!("CARGO_PKG_VERSION"));
        Guarantee { engine, survives_power_cut, detail: detail.into() }
    }

    async fn ensure_topic(&self, spec: &TopicSpec) -> Result<Topic> {
        let spec = spec.clone();
        self.ask(|reply| Request::EnsureTopic(spec, reply)).await
    }

    async fn topic(&self, name: &ServiceName) -> Result<Topic> {
        Ok(self.view(name)?.to_topic())
    }

    async fn topics(&self) -> Result<Vec<Topic>> {
        self.open_still()?;
        let mut topics: Vec<Topic> =
            self.shared.published.topics().iter().map(|view| view.to_topic()).collect();
        topics.sort_by(|a, b| a.name.as_str().cmp(b.name.as_str()));
        Ok(topics)
    }

    async fn raise_epoch(
        &self,
        topic: &ServiceName,
        incarnation: Incarnation,
        epoch: u64,
    ) -> Result<Vec<Tail>> {
        let topic = topic.clone();
        self.ask(|reply| Request::RaiseEpoch(topic, incarnation, epoch, reply)).await
    }

    async fn divide(
        &self,
        topic: &ServiceName,
        incarnation: Incarnation,
        epoch: u64,
        generations: &Generations,
    ) -> Result<Topic> {
        let (topic, generations) = (topic.clone(), generations.clone());
        self.ask(|reply| Request::Divide(topic, incarnation, epoch, generations, reply)).await
    }

    async fn append(&self, append: Append) -> Result<Appended> {
        port::check_append(&append)?;
        let bytes: usize = append.records.iter().map(crate::Record::size).sum();
        let permits = u32::try_from(bytes.div_ceil(PERMIT_BYTES)).unwrap_or(u32::MAX).clamp(1, self.permits);
        // Unconstrained: a task that has used up its budget would be woken after later ones, and its append overtaken.
        let room = tokio::task::unconstrained(self.room.clone().acquire_many_owned(permits));
        let permit = room.await.map_err(|_| closed())?;
        self.ask(|reply| Request::Append(append, reply, permit)).await
    }

    async fn tails(&self, topic: &ServiceName) -> Result<Vec<Tail>> {
        Ok(self.view(topic)?.tails())
    }

    async fn read(&self, read: Read) -> Result<RecordStream> {
        self.open_still()?;
        reader::read(self.shared.clone(), read).await
    }

    async fn cursor_at(&self, topic: &Topic, partition: u32, sequence: u64) -> Result<Cursor> {
        self.open_still()?;
        reader::cursor_at(self.shared.clone(), topic, partition, sequence).await
    }

    async fn signal(&self, subject: &str, signal: Signal) -> Result<Reach> {
        self.shared.signals.send(subject, &signal)
    }

    async fn listen(&self, subject: &str, group: Option<&str>) -> Result<SignalStream> {
        self.shared.signals.listen(subject, group)
    }

    async fn register(&self, registration: &Registration) -> Result<()> {
        let found = registration.descriptor.len();
        if found > DESCRIPTOR_BYTES_MAX {
            let message = format!(
                "the descriptor of {} is {found} bytes; expected at most {DESCRIPTOR_BYTES_MAX}",
                registration.service
            );
            return Err(Error::new(Kind::TooLarge, message));
        }
        let registration = registration.clone();
        self.ask(|reply| Request::Register(registration, reply)).await
    }

    async fn registrations(&self) -> Result<Vec<Registration>> {
        self.open_still()?;
        Ok(self.shared.published.registrations())
    }

    async fn close(&self) {
        if let Some(thread) = self.begin_to_close() {
            let joined = tokio::task::spawn_blocking(move || thread.join()).await;
            if !matches!(joined, Ok(Ok(()))) {
                tracing::error!("the log's writer did not end as it should");
            }
        }
        self.release();
    }
}
