//! What these tests act on: files that can be copied, services on them, and the operator's door.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use tempfile::TempDir;
use tombolo::recovery::{Choice, Decide, HaltReport, RecoveryReport};
use tombolo::sqlite::Sqlite;
use tombolo::{Database, Running, Service, Settings, View};
use tombolo_bus::embedded::{Log, Options};
use tombolo_bus::{Bus, Topic};
use tombolo_event::ServiceName;

use crate::support::{Placed, copy, eventually, place, with_copies};

/// A folder with the files of a bus and of databases, which can be copied while nobody has them open.
pub(super) struct Site {
    folder: TempDir,
}

impl Site {
    pub(super) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Opens the log in `name`.
    pub(super) fn log(&self, name: &str) -> Arc<Log> {
        Log::open(&self.path(name), Options::default()).unwrap().0
    }

    pub(super) fn database(&self, name: &str) -> Sqlite {
        Sqlite::open(self.path(name).to_str().unwrap()).unwrap()
    }

    /// Copies a database with what belongs to it, over whatever `to` was.
    pub(super) fn copy_database(&self, from: &str, to: &str) {
        for part in ["", "-wal", "-shm"] {
            let (from, to) = (self.path(&format!("{from}{part}")), self.path(&format!("{to}{part}")));
            std::fs::remove_file(&to).ok();
            if from.exists() {
                std::fs::copy(from, to).unwrap();
            }
        }
    }

    /// Copies the files of a log, over whatever `to` was.
    pub(super) fn copy_log(&self, from: &str, to: &str) {
        copy_folder(&self.path(from), &self.path(to));
    }

    /// The service that places orders, from the database `name`.
    pub(super) async fn orders(&self, bus: &Arc<Log>, name: &str) -> Running<Sqlite> {
        let service = Service::new("orders", self.database(name)).setup(orders_table).publishes::<Placed>();
        start(service, bus).await
    }

    pub(super) async fn history(&self, bus: &Arc<Log>) -> Running<Sqlite> {
        let service = Service::new("history", self.database("history"));
        start(with_copies(service).view(View::new("copies", 1).on(copy)), bus).await
    }
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::remove_dir_all(to).ok();
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

pub(super) async fn orders_table(database: Sqlite) -> tombolo::Result<()> {
    let table = "CREATE TABLE IF NOT EXISTS orders (id TEXT PRIMARY KEY, cents INTEGER NOT NULL) STRICT";
    sqlx::raw_sql(table).execute(database.pool()).await?;
    Ok(())
}

pub(super) async fn start(service: Service<Sqlite>, bus: &Arc<Log>) -> Running<Sqlite> {
    service.bus(Arc::clone(bus) as Arc<dyn Bus>).start(Settings::default()).await.unwrap()
}

/// Stops the service and closes its files, as before they are copied.
pub(super) async fn stop(running: Running<Sqlite>) {
    let database = running.app.database().clone();
    let file = database.pool().connect_options().get_filename().to_owned();
    running.shutdown().await;
    database.pool().close().await;
    drop(database);
    // Its log of writes says nothing of that: of two that are closed at once, neither may take it away.
    eventually("the file is closed", async || !is_open(&file)).await;
}

/// Whether this process has a file open, where the system says so.
fn is_open(file: &Path) -> bool {
    let (Ok(file), Ok(all)) = (file.canonicalize(), std::fs::read_dir("/proc/self/fd")) else { return false };
    all.flatten().any(|open| std::fs::read_link(open.path()).is_ok_and(|open| open == file))
}

pub(super) async fn place_many(orders: &Running<Sqlite>, numbers: std::ops::Range<i64>) {
    for n in numbers {
        place(&orders.app, &format!("o{n}"), n).await;
    }
}

pub(super) async fn until_published<D: Database>(orders: &Running<D>) {
    eventually("everything is published", || async {
        orders.app.database().depth().await.unwrap().rows == 0
    })
    .await;
}

/// Waits until the service says that it is halted, and returns how it says so.
pub(super) async fn until_halted<D: Database>(orders: &Running<D>) -> String {
    eventually("the relay halts", || async {
        orders.app.status().relay.is_some_and(|relay| relay.is_halted)
    })
    .await;
    let relay = orders.app.status().relay.unwrap();
    assert!(!relay.leading);
    assert!(
        relay.state.starts_with("stopped: ") && relay.state.contains("`tombolo recover orders`"),
        "{relay:?}"
    );
    relay.state
}

/// What an operator is shown.
pub(super) async fn look<D: Database>(orders: &Running<D>) -> RecoveryReport {
    let answer = reqwest::get(format!("{}/tombolo/recovery", orders.url)).await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    answer.json().await.unwrap()
}

/// Decides about `halt`: the status of the answer, and its text.
pub(super) async fn decide<D: Database>(
    orders: &Running<D>,
    halt: &HaltReport,
    choice: Choice,
) -> (u16, Value) {
    let decide = Decide { halt: halt.id, choice, by: "ann@office".into() };
    let url = format!("{}/tombolo/recovery", orders.url);
    let answer = reqwest::Client::new().post(url).json(&decide).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

pub(super) async fn take_bus<D: Database>(orders: &Running<D>) -> RecoveryReport {
    let shown = look(orders).await;
    let (status, answer) = decide(orders, shown.halt.as_ref().unwrap(), Choice::TakeBus).await;
    assert_eq!(status, 200, "{answer}");
    shown
}

pub(super) async fn topic(bus: &Arc<Log>) -> Topic {
    bus.topic(&ServiceName::new("orders").unwrap()).await.unwrap()
}

/// How many events are in the topic.
pub(super) async fn events(bus: &Arc<Log>) -> u64 {
    let tails = bus.tails(&ServiceName::new("orders").unwrap()).await.unwrap();
    tails.iter().map(|tail| tail.sequence).sum()
}

pub(super) fn sorted(mut copies: Vec<(String, i64)>) -> Vec<i64> {
    copies.sort_by_key(|(_, cents)| *cents);
    copies.into_iter().map(|(_, cents)| cents).collect()
}

pub(super) async fn until_halted_as(running: &Running<Sqlite>, service: &str) {
    eventually("the relay halts", || async {
        running.app.status().relay.is_some_and(|relay| relay.is_halted)
    })
    .await;
    assert!(running.app.status().relay.unwrap().state.contains(&format!("`tombolo recover {service}`")));
}
