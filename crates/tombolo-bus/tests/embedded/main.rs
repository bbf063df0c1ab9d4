//! The port's suite, against the embedded log on a disk and in memory.
#![cfg(all(feature = "embedded", feature = "conformance"))]
#![expect(clippy::unwrap_used, reason = "a broken test ends by panicking")]

use std::sync::Arc;

use async_trait::async_trait;
use tempfile::TempDir;
use tokio::sync::Mutex;
use tombolo_bus::Bus;
use tombolo_bus::conformance::{self, Abilities, Ability, Factory};
use tombolo_bus::embedded::{Log, Options};

/// Segments so small that every case rolls.
fn options() -> Options {
    Options {
        segment_bytes: 64 << 10,
        first_segment_bytes: 16 << 10,
        recent_bytes_max: 64 << 10,
        ..Options::default()
    }
}

struct OnDisk {
    folder: TempDir,
    log: Mutex<Arc<Log>>,
}

#[async_trait]
impl Factory for OnDisk {
    async fn handle(&self) -> Arc<dyn Bus> {
        self.log.lock().await.clone()
    }

    async fn reopen(&self) -> Arc<dyn Bus> {
        let mut log = self.log.lock().await;
        log.close().await;
        *log = Log::open(self.folder.path(), options()).unwrap().0;
        log.clone()
    }
}

struct InMemory(Mutex<Arc<Log>>);

#[async_trait]
impl Factory for InMemory {
    async fn handle(&self) -> Arc<dyn Bus> {
        self.0.lock().await.clone()
    }

    async fn reopen(&self) -> Arc<dyn Bus> {
        let mut log = self.0.lock().await;
        log.close().await;
        *log = Log::in_memory(options()).unwrap();
        log.clone()
    }
}

const TRIMS: Ability = Ability::Cannot("the embedded log keeps for ever");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_on_disk_is_a_bus() {
    let folder = tempfile::tempdir().unwrap();
    let log = Mutex::new(Log::open(folder.path(), options()).unwrap().0);
    conformance::run(
        "embedded",
        Abilities { trims: TRIMS, ..Abilities::all() },
        Arc::new(OnDisk { folder, log }),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_in_memory_is_a_bus() {
    let log = Mutex::new(Log::in_memory(options()).unwrap());
    let abilities =
        Abilities { reopens: Ability::Cannot("memory keeps nothing"), trims: TRIMS, ..Abilities::all() };
    conformance::run("embedded in memory", abilities, Arc::new(InMemory(log))).await;
}

#[cfg(feature = "mutants")]
#[tokio::test]
async fn the_suite_catches_a_log_without_fencing() {
    use tombolo_bus::conformance::Outcome;
    use tombolo_bus::embedded::Mutant;
    let log = Log::in_memory(Options { mutant: Some(Mutant::NoFencing), ..options() }).unwrap();
    let case = "an_older_epoch_is_refused_after_a_raise";
    let factory = Arc::new(InMemory(Mutex::new(log)));
    let report =
        conformance::report("without fencing", Abilities::all(), factory, &|name| name == case).await;
    assert!(matches!(&report[..], [(_, Outcome::Failed(_))]), "{report:?}");
}
