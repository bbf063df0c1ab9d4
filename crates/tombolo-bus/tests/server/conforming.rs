//! A client and a server together are a bus: they pass the suite that every engine passes.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tombolo_bus::conformance::{self, Abilities, Ability, Factory};
use tombolo_bus::embedded::{Log, Options};
use tombolo_bus::server::{Listen, Server};
use tombolo_bus::{Bus, Result};

use crate::owners::Owners;

/// A server over another factory's bus.
struct Served<F> {
    behind: F,
    running: Mutex<Option<Running>>,
    address: Listen,
}

struct Running {
    address: Listen,
    serving: JoinHandle<Result<()>>,
}

impl<F: Factory> Served<F> {
    fn new(behind: F, address: Listen) -> Self {
        Self { behind, running: Mutex::default(), address }
    }

    async fn client_of(&self, running: &Running) -> Arc<dyn Bus> {
        Arc::new(Owners::new(&running.address).await)
    }

    async fn start(&self, bus: Arc<dyn Bus>) -> Running {
        let server = Server::bind(std::slice::from_ref(&self.address), bus).await.unwrap();
        let address = server.addresses().remove(0);
        Running { address, serving: tokio::spawn(server.serve(CancellationToken::new())) }
    }
}

#[async_trait]
impl<F: Factory> Factory for Served<F> {
    async fn handle(&self) -> Arc<dyn Bus> {
        let mut running = self.running.lock().await;
        if running.is_none() {
            *running = Some(self.start(self.behind.handle().await).await);
        }
        self.client_of(running.as_ref().unwrap()).await
    }

    async fn reopen(&self) -> Arc<dyn Bus> {
        let mut running = self.running.lock().await;
        if let Some(Running { serving, .. }) = running.take() {
            serving.abort();
            assert!(serving.await.unwrap_err().is_cancelled(), "the server was still serving");
        }
        let started = self.start(self.behind.reopen().await).await;
        let client = self.client_of(&started).await;
        *running = Some(started);
        client
    }
}

/// The log of one folder, closed and opened again when it is told so.
struct Kept {
    folder: tempfile::TempDir,
    log: Mutex<Arc<Log>>,
}

impl Kept {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = Mutex::new(open(&folder));
        Self { folder, log }
    }
}

fn open(folder: &tempfile::TempDir) -> Arc<Log> {
    Log::open(folder.path(), Options::default()).unwrap().0
}

#[async_trait]
impl Factory for Kept {
    async fn handle(&self) -> Arc<dyn Bus> {
        Arc::clone(&*self.log.lock().await) as Arc<dyn Bus>
    }

    async fn reopen(&self) -> Arc<dyn Bus> {
        let mut log = self.log.lock().await;
        log.close().await;
        *log = open(&self.folder);
        Arc::clone(&*log) as Arc<dyn Bus>
    }
}

const TRIMS: Ability = Ability::Cannot("the embedded log keeps for ever");

#[tokio::test(flavor = "multi_thread")]
async fn the_log_served_over_tcp_passes_the_suite() {
    let served = Served::new(Kept::new(), "tombolo://127.0.0.1:0".parse().unwrap());
    conformance::run("log over TCP", Abilities { trims: TRIMS, ..Abilities::all() }, Arc::new(served)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_served_on_a_unix_socket_passes_the_suite() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::new(Kept::new(), Listen::Unix(folder.path().join("bus.sock")));
    conformance::run(
        "log on a Unix socket",
        Abilities { trims: TRIMS, ..Abilities::all() },
        Arc::new(served),
    )
    .await;
}
