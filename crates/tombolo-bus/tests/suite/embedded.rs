//! The suite on the embedded log: in memory, and in a folder that is opened again.
//! Invariant: the folder is the only thing that passes from one run of the log to the next.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tempfile::TempDir;
use tombolo_bus::Bus;
use tombolo_bus::conformance::{self, Abilities, Ability, Factory};
use tombolo_bus::embedded::{Log, Options};

const TRIMS: Ability = Ability::Cannot("the embedded log keeps for ever");

#[tokio::test]
async fn the_embedded_log_in_memory_passes_the_suite() {
    let abilities = Abilities {
        reopens: Ability::Cannot("a log in memory ends with its process"),
        trims: TRIMS,
        ..Abilities::all()
    };
    conformance::run("embedded, in memory", abilities, Arc::new(Embedded::new(None))).await;
}

#[tokio::test]
async fn the_embedded_log_in_a_folder_passes_the_suite() {
    let folder = tempfile::tempdir().unwrap();
    let abilities = Abilities { trims: TRIMS, ..Abilities::all() };
    conformance::run("embedded, in a folder", abilities, Arc::new(Embedded::new(Some(folder)))).await;
}

struct Embedded {
    folder: Option<TempDir>,
    log: Mutex<Arc<Log>>,
}

impl Embedded {
    fn new(folder: Option<TempDir>) -> Self {
        let log = Mutex::new(open(folder.as_ref()));
        Self { folder, log }
    }
}

fn open(folder: Option<&TempDir>) -> Arc<Log> {
    match folder {
        Some(folder) => Log::open(folder.path(), Options::default()).unwrap().0,
        None => Log::in_memory(Options::default()).unwrap(),
    }
}

#[async_trait]
impl Factory for Embedded {
    async fn handle(&self) -> Arc<dyn Bus> {
        Arc::clone(&*self.log.lock().unwrap()) as Arc<dyn Bus>
    }

    async fn reopen(&self) -> Arc<dyn Bus> {
        let before = Arc::clone(&*self.log.lock().unwrap());
        before.close().await;
        drop(before);
        *self.log.lock().unwrap() = open(self.folder.as_ref());
        self.handle().await
    }
}
