//! The order of appends: what waits for a server goes together, and of one partition never more than one thing is on its way.
//!
//! ```text
//! orders/0   [5 6] [7]      ┐ one load, one round trip, one sync          while it is on its way, what comes next for
//! orders/3   [9 10 11]      ┘                                             these partitions waits and becomes the next one
//! ```
//!
//! Takes appends; hands loads of them to a [`Carrier`], which tells each caller what became of its own. If we crash, callers were
//! told nothing.
//!
//! Invariant: appends of one partition reach the server in the order in which they were first asked for, and nothing overtakes.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tombolo_event::{Incarnation, ServiceName};

use super::refusal::closed;
use crate::{Append, Appended, Error, Record, Result};

/// The most records and bytes of one load; one append may be larger.
const LOAD_RECORDS_MAX: usize = 10_000;
const LOAD_BYTES_MAX: usize = 4 << 20;

/// An append that waits, and who asked for it.
pub(crate) struct Job {
    pub(crate) append: Append,
    told: oneshot::Sender<Result<Appended>>,
}

/// What the appends of a load have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Terms {
    pub(crate) topic: ServiceName,
    pub(crate) incarnation: Incarnation,
    pub(crate) epoch: u64,
}

/// What goes together: appends under the same terms, by partition. Those of a partition follow each other.
pub(crate) struct Load {
    pub(crate) terms: Terms,
    pub(crate) runs: Vec<(u32, Vec<Job>)>,
}

/// Takes loads to a server.
pub(crate) trait Carrier: Send + Sync + 'static {
    /// How many loads may be on their way at once.
    const LOADS_MAX: usize;

    /// Takes a load there and tells everybody in it what became of it.
    fn carry(&self, load: Load) -> impl Future<Output = ()> + Send;
}

/// The way to the lanes. It holds what callers wait for and no more; handing over waits for nothing, because a task that gave
/// way in the middle of that would let others overtake.
pub(crate) struct Lanes {
    jobs: mpsc::UnboundedSender<Job>,
}

impl Lanes {
    /// The lanes, and their work, which ends when `closed` says so.
    pub(crate) fn new(
        carrier: Arc<impl Carrier>,
        closed: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (jobs, waiting) = mpsc::unbounded_channel();
        (Self { jobs }, work(carrier, closed, waiting))
    }

    pub(crate) async fn append(&self, append: Append) -> Result<Appended> {
        let (told, answer) = oneshot::channel();
        self.jobs.send(Job { append, told }).map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }
}

async fn work<C: Carrier>(
    carrier: Arc<C>,
    closed: CancellationToken,
    mut jobs: mpsc::UnboundedReceiver<Job>,
) {
    let mut waiting = Waiting::default();
    let mut loads: FuturesUnordered<BoxFuture<'_, Vec<Line>>> = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            Some(lines) = loads.next() => waiting.landed(lines),
            () = closed.cancelled() => break,
            job = jobs.recv() => match job {
                Some(job) => waiting.push(job),
                None => break,
            },
        }
        while let Ok(job) = jobs.try_recv() {
            waiting.push(job);
        }
        while loads.len() < C::LOADS_MAX
            && let Some(load) = waiting.load()
        {
            let lines = load.lines();
            let carried = carrier.carry(load);
            loads.push(Box::pin(async {
                carried.await;
                lines
            }));
        }
    }
    // What is on its way is answered; what waits is told that the bus was closed.
    while loads.next().await.is_some() {}
}

/// A partition of a topic.
type Line = (ServiceName, u32);

/// What waits, in the order in which it came.
#[derive(Default)]
struct Waiting {
    lines: HashMap<Line, VecDeque<Job>>,
    /// The lines with something waiting and nothing on its way, each once.
    ready: VecDeque<Line>,
    busy: HashSet<Line>,
}

impl Waiting {
    fn push(&mut self, job: Job) {
        let line = (job.append.topic.clone(), job.append.partition);
        let jobs = self.lines.entry(line.clone()).or_default();
        jobs.push_back(job);
        if jobs.len() == 1 && !self.busy.contains(&line) {
            self.ready.push_back(line);
        }
    }

    fn landed(&mut self, lines: Vec<Line>) {
        for line in lines {
            self.busy.remove(&line);
            if self.lines.contains_key(&line) {
                self.ready.push_back(line);
            }
        }
    }

    /// Takes what can go next: of the line that waits longest, and what is under the same terms.
    fn load(&mut self) -> Option<Load> {
        let first = self.lines.get(self.ready.front()?)?.front()?;
        let mut load = Load { terms: Terms::of(&first.append), runs: Vec::new() };
        let (mut records, mut bytes) = (0, 0);
        for line in std::mem::take(&mut self.ready) {
            let Some(jobs) = self.lines.get_mut(&line) else { continue };
            let run = take_run(jobs, &load.terms, &mut records, &mut bytes);
            if run.is_empty() {
                self.ready.push_back(line);
                continue;
            }
            if jobs.is_empty() {
                self.lines.remove(&line);
            }
            load.runs.push((line.1, run));
            self.busy.insert(line);
        }
        Some(load)
    }
}

/// Takes appends that follow each other under these terms, as long as there is room.
fn take_run(jobs: &mut VecDeque<Job>, terms: &Terms, records: &mut usize, bytes: &mut usize) -> Vec<Job> {
    let mut run: Vec<Job> = Vec::new();
    while let Some(next) = jobs.front() {
        let size: usize = next.append.records.iter().map(Record::size).sum();
        let count = next.append.records.len();
        let fits = *records + count <= LOAD_RECORDS_MAX && *bytes + size <= LOAD_BYTES_MAX;
        let end = run.last().and_then(|job| job.append.records.last()).map(|record| record.sequence + 1);
        let first = next.append.records.first().map(|record| record.sequence);
        let follows = end.is_none() || end == first;
        if !(fits || *records == 0) || !follows || Terms::of(&next.append) != *terms {
            break;
        }
        *records += count;
        *bytes += size;
        run.extend(jobs.pop_front());
    }
    run
}

impl Terms {
    pub(crate) fn of(append: &Append) -> Self {
        let Append { topic, incarnation, epoch, .. } = append;
        Self { topic: topic.clone(), incarnation: *incarnation, epoch: *epoch }
    }
}

impl Load {
    fn lines(&self) -> Vec<Line> {
        self.runs.iter().map(|(partition, _)| (self.terms.topic.clone(), *partition)).collect()
    }

    /// Tells everybody of a failure.
    pub(crate) fn fail(self, error: &Error) {
        for job in self.runs.into_iter().flat_map(|(_, jobs)| jobs) {
            job.tell(Err(Error::new(error.kind(), error.to_string())));
        }
    }
}

impl Job {
    /// Tells that the append is stored as its partition's last.
    #[cfg(feature = "postgres")]
    pub(crate) fn stored(self) {
        let last = self.append.records.last().map_or(0, |record| record.sequence);
        self.tell(Ok(Appended { last }));
    }

    pub(crate) fn tell(self, answer: Result<Appended>) {
        // Who asked may have gone.
        self.told.send(answer).ok();
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tombolo_event::EventId;

    use super::*;

    fn job(
        incarnation: Incarnation,
        epoch: u64,
        partition: u32,
        sequences: std::ops::RangeInclusive<u64>,
    ) -> Job {
        let record = |sequence| Record {
            sequence,
            id: EventId::new(),
            event_type: Bytes::from_static(b"t"),
            bytes: Bytes::from_static(b"x"),
        };
        let topic = "orders".parse().unwrap();
        let append =
            Append { topic, incarnation, epoch, partition, records: sequences.map(record).collect() };
        Job { append, told: oneshot::channel().0 }
    }

    fn shape(load: Option<Load>) -> Vec<(u32, Vec<u64>)> {
        let firsts = |jobs: &Vec<Job>| jobs.iter().map(|job| job.append.records[0].sequence).collect();
        let runs = load.into_iter().flat_map(|load| load.runs);
        runs.map(|(partition, jobs)| (partition, firsts(&jobs))).collect()
    }

    #[test]
    fn what_follows_goes_together_and_nothing_overtakes() {
        let incarnation = Incarnation::new();
        let mut waiting = Waiting::default();
        for (epoch, partition, sequences) in
            [(1, 0, 1..=2), (1, 3, 9..=9), (1, 0, 3..=3), (1, 0, 7..=7), (2, 5, 1..=1)]
        {
            waiting.push(job(incarnation, epoch, partition, sequences));
        }
        assert_eq!(shape(waiting.load()), [(0, vec![1, 3]), (3, vec![9])]);
        assert_eq!(shape(waiting.load()), [(5, vec![1])], "other terms, and not what waits behind a load");
        waiting.push(job(incarnation, 1, 3, 10..=10));
        assert_eq!(shape(waiting.load()), []);
        let lines = || vec![("orders".parse().unwrap(), 3), ("orders".parse().unwrap(), 0)];
        waiting.landed(lines());
        assert_eq!(shape(waiting.load()), [(3, vec![10]), (0, vec![7])]);
        waiting.landed(lines());
        assert_eq!(shape(waiting.load()), []);
        assert!(waiting.lines.is_empty() && waiting.ready.is_empty(), "what is done leaves nothing");
    }
}
