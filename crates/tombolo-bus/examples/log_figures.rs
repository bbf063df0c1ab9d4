//! Measures the embedded log against a bare file on the same disk: `cargo run --release --example log_figures -- FOLDER`.
//!
//! Invariant: the bare loop writes the same bytes, in the same sizes, to a file that was filled before.

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesOrdered};
use tombolo_bus::embedded::{Log, Options};
use tombolo_bus::{Append, Bus, Read, Record, Topic, TopicSpec};
use tombolo_event::{Cursor, EventId, Generations, ServiceName};

const EVENT_BYTES: usize = 256;
const BATCH: u64 = 256;
const BATCHES: u64 = 4_000;
const SINGLES: u64 = 3_000;
/// How often the log is read, of which the fastest counts.
const SCANS: u32 = 15;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let folder = std::env::args().nth(1).ok_or("expected a folder on the disk to measure")?;
    let folder = Path::new(&folder);
    std::fs::create_dir_all(folder)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let batch_bytes = BATCH as usize * EVENT_BYTES;
    let bare_batches = bare(folder, batch_bytes, BATCHES)?;
    println!("bare, 64 KiB a sync: {:.0} MB/s", rate(bare_batches.1));
    let log_folder = folder.join("log");
    let taken = runtime.block_on(appends(&log_folder, 8))?;
    println!(
        "log, 256 events of 256 bytes a batch, 8 in flight: {:.0} MB/s, {:.0} events/s",
        rate(taken),
        events(taken)
    );
    println!("  of bare: {:.2} (bar 0.50)", bare_batches.1.as_secs_f64() / taken.as_secs_f64());
    let scanned = scan(&log_folder)?;
    let read = runtime.block_on(read_back(&log_folder))?;
    println!(
        "processor time, bare scan: {:.0} MB/s; read back: {:.0} MB/s, {:.1} M events/s",
        rate(scanned),
        rate(read),
        events(read) / 1e6
    );
    println!("  of bare: {:.2} (bar 0.25)", scanned.as_secs_f64() / read.as_secs_f64());
    let bare_single = bare(folder, EVENT_BYTES + 104, SINGLES)?.0;
    let single = runtime.block_on(singles(&folder.join("singles")))?;
    println!("one event: bare p50 {bare_single:?}, log p50 {single:?}");
    println!("  of bare: {:.2} (bar 1.50)", single.as_secs_f64() / bare_single.as_secs_f64());
    std::fs::remove_dir_all(folder)?;
    Ok(())
}

fn rate(taken: Duration) -> f64 {
    (BATCHES * BATCH) as f64 * EVENT_BYTES as f64 / taken.as_secs_f64() / 1e6
}

fn events(taken: Duration) -> f64 {
    (BATCHES * BATCH) as f64 / taken.as_secs_f64()
}

/// The median and the whole time of `count` writes, each synced.
fn bare(folder: &Path, bytes: usize, count: u64) -> Outcome<(Duration, Duration)> {
    let path = folder.join("bare");
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
    let zeros = vec![0; 1 << 20];
    for at in (0..bytes as u64 * count).step_by(zeros.len()) {
        file.write_all_at(&zeros, at)?;
    }
    file.sync_all()?;
    let (buffer, mut times, begun) = (vec![7; bytes], Vec::new(), Instant::now());
    for number in 0..count {
        let one = Instant::now();
        file.write_all_at(&buffer, number * bytes as u64)?;
        file.sync_data()?;
        times.push(one.elapsed());
    }
    let taken = begun.elapsed();
    std::fs::remove_file(path)?;
    times.sort_unstable();
    Ok((times[times.len() / 2], taken))
}

async fn topic(log: &Log) -> Outcome<Topic> {
    Ok(log.ensure_topic(&TopicSpec::new(ServiceName::new("orders")?, Generations::first(1)?)).await?)
}

fn batch(topic: &Topic, first: u64, count: u64, bytes: &Bytes) -> Append {
    let event_type = Bytes::from_static(b"orders.placed.v1");
    let record = |sequence| Record {
        sequence,
        id: EventId::new(),
        event_type: event_type.clone(),
        bytes: bytes.clone(),
    };
    Append {
        topic: topic.name.clone(),
        incarnation: topic.incarnation,
        epoch: 0,
        partition: 0,
        records: (first..first + count).map(record).collect(),
    }
}

async fn appends(folder: &Path, in_flight: usize) -> Outcome<Duration> {
    let (log, _) = Log::open(folder, Options::default())?;
    let (topic, bytes) = (topic(&log).await?, Bytes::from(vec![7; EVENT_BYTES]));
    let begun = Instant::now();
    let mut flight = FuturesOrdered::new();
    for number in 0..BATCHES {
        if flight.len() == in_flight {
            flight.next().await.transpose()?;
        }
        flight.push_back(log.append(batch(&topic, 1 + number * BATCH, BATCH, &bytes)));
    }
    while let Some(answer) = flight.next().await {
        answer?;
    }
    let taken = begun.elapsed();
    log.close().await;
    Ok(taken)
}

/// The time that this thread has had on a processor: what counts on a machine that others use too.
fn processor_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or_default())
}

fn scan(folder: &Path) -> Outcome<Duration> {
    let mut buffer = vec![0; 1 << 20];
    let mut best = Duration::MAX;
    for _ in 0..SCANS {
        let begun = processor_time();
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "segment") {
                continue;
            }
            let file = File::open(path)?;
            let mut at = 0;
            loop {
                match file.read_at(&mut buffer, at)? {
                    0 => break,
                    n => at += n as u64,
                }
            }
        }
        best = best.min(processor_time() - begun);
    }
    Ok(best)
}

async fn read_back(folder: &Path) -> Outcome<Duration> {
    let begun = Instant::now();
    let (log, recovered) = Log::open(folder, Options::default())?;
    println!("opened {} segments, {} events in {:?}", recovered.segments, recovered.events, begun.elapsed());
    let topic = topic(&log).await?;
    let mut best = Duration::MAX;
    for _ in 0..SCANS {
        let begun = processor_time();
        let mut stream = log.read(Read::to_tail(&topic.name, 0, Cursor::start(topic.incarnation))).await?;
        let mut count = 0;
        while let Some(batch) = stream.next().await {
            count += batch?.records.len() as u64;
        }
        if count != BATCHES * BATCH {
            return Err(format!("read {count} events; expected {}", BATCHES * BATCH).into());
        }
        best = best.min(processor_time() - begun);
    }
    log.close().await;
    Ok(best)
}

async fn singles(folder: &Path) -> Outcome<Duration> {
    let (log, _) = Log::open(folder, Options::default())?;
    let log: Arc<dyn Bus> = log;
    let topic =
        log.ensure_topic(&TopicSpec::new(ServiceName::new("orders")?, Generations::first(1)?)).await?;
    let bytes = Bytes::from(vec![7; EVENT_BYTES]);
    let mut times = Vec::new();
    for sequence in 1..=SINGLES {
        let append = batch(&topic, sequence, 1, &bytes);
        let one = Instant::now();
        log.append(append).await?;
        times.push(one.elapsed());
    }
    log.close().await;
    times.sort_unstable();
    Ok(times[times.len() / 2])
}
