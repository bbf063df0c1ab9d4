//! The store itself: one open file of this process, the queue before its one writer, and the threads that may block.
//!
//! Invariant: the turn to write is given back only after the write transaction it was for has ended, wherever its future
//! was dropped; so of those who wait for their turn nobody waits in the store itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use redb::{Database, Durability, ReadTransaction, ReadableDatabase, WriteTransaction};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::failure::{ended, is_broken};
use super::{CACHE_BYTES, UNSYNCED_MAX, WRITER_WAIT_MAX};
use crate::{Error, Kind, Result};

/// The files that this process has open. The store's lock is one for each opening, so that a second opening of the same file
/// would be refused in the process that has it.
static OPEN: Mutex<BTreeMap<PathBuf, Weak<Store>>> = Mutex::new(BTreeMap::new());

/// Whether a commit is on disk when it returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Synced {
    /// It is.
    Now,
    /// It will be with the next one that is synced.
    Later,
}

/// One file, or a database that the user has opened.
#[derive(Debug)]
pub(super) struct Store {
    /// None for one that the user has opened.
    path: Option<PathBuf>,
    database: Mutex<Option<Arc<Database>>>,
    queue: Arc<Semaphore>,
    /// Commits since the last one that was synced.
    unsynced: AtomicU32,
}

impl Store {
    /// The store in a file, the same for everybody in this process.
    pub(super) fn of_file(path: PathBuf) -> Result<Arc<Self>> {
        let known_as = place_of(&path)?;
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = open.get(&known_as).and_then(Weak::upgrade) {
            return Ok(store);
        }
        open.retain(|_, store| store.strong_count() > 0);
        let store = Arc::new(Self::new(Some(path), None));
        open.insert(known_as, Arc::downgrade(&store));
        Ok(store)
    }

    /// A store that the user has opened.
    pub(super) fn given(database: Arc<Database>) -> Arc<Self> {
        Arc::new(Self::new(None, Some(database)))
    }

    fn new(path: Option<PathBuf>, database: Option<Arc<Database>>) -> Self {
        let queue = Arc::new(Semaphore::new(1));
        Self { path, database: Mutex::new(database), queue, unsynced: AtomicU32::new(0) }
    }

    /// Begins to write, when it is this one's turn.
    pub(super) async fn begin(self: &Arc<Self>, sync: Synced) -> Result<Writing> {
        let turn = tokio::time::timeout(WRITER_WAIT_MAX, self.queue.clone().acquire_owned());
        let turn = turn.await.map_err(|_| waited())?;
        let turn =
            turn.map_err(|closed| Error::new(Kind::Database, "the database was closed").because(closed))?;
        let store = Arc::clone(self);
        let begun = blocking(move || {
            let transaction = store.begin_now(sync)?;
            Ok(Writing(Some(Open { transaction, store, sync, _turn: turn })))
        });
        // Only a transaction of the user's own, beside ours, is waited for here. Whoever gives up leaves the turn to
        // the thread that waits, so that the next one does not wait beside it.
        tokio::time::timeout(WRITER_WAIT_MAX, begun).await.map_err(|_| waited())?
    }

    /// Runs `work` in a write transaction of our own.
    pub(super) async fn write<T: Send + 'static>(
        self: &Arc<Self>,
        sync: Synced,
        work: impl FnOnce(&WriteTransaction) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let Writing(open) = self.begin(sync).await?;
        blocking(move || {
            let open = open.ok_or_else(ended)?;
            let done = open.store.look_at(work(&open.transaction))?;
            open.commit()?;
            Ok(done)
        })
        .await
    }

    /// Runs `work` on what is committed now.
    pub(super) async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&ReadTransaction) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let store = Arc::clone(self);
        blocking(move || {
            let read = || work(&store.database()?.begin_read()?);
            store.look_at(read())
        })
        .await
    }

    /// What is committed now, for as long as it is held.
    pub(super) async fn snapshot(self: &Arc<Self>) -> Result<ReadTransaction> {
        let store = Arc::clone(self);
        blocking(move || {
            let read = || Ok(store.database()?.begin_read()?);
            store.look_at(read())
        })
        .await
    }

    /// The open database.
    pub(super) async fn open(self: &Arc<Self>) -> Result<Arc<Database>> {
        let store = Arc::clone(self);
        blocking(move || store.database()).await
    }

    /// Whether there is a file. One that the user has opened is there.
    pub(super) fn is_there(&self) -> bool {
        self.path.as_ref().is_none_or(|path| path.exists())
    }

    fn begin_now(&self, sync: Synced) -> Result<WriteTransaction> {
        let begin = || {
            let mut transaction = self.database()?.begin_write()?;
            if self.durability(sync) == Synced::Later {
                // Refused only where several processes share the file, which they do not.
                transaction.set_durability(Durability::None).map_err(redb::Error::from)?;
            }
            Ok(transaction)
        };
        self.look_at(begin())
    }

    /// Every so many commits of upkeep one is synced.
    fn durability(&self, sync: Synced) -> Synced {
        match sync {
            Synced::Later if self.unsynced.fetch_add(1, Ordering::Relaxed) < UNSYNCED_MAX => Synced::Later,
            _ => {
                self.unsynced.store(0, Ordering::Relaxed);
                Synced::Now
            }
        }
    }

    /// The open database. Blocks while it is opened, which after a crash reads all of it.
    fn database(&self) -> Result<Arc<Database>> {
        let mut database = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        match (&*database, &self.path) {
            (Some(open), _) => Ok(Arc::clone(open)),
            (None, Some(path)) => Ok(Arc::clone(database.insert(Arc::new(open(path)?)))),
            (None, None) => Err(Error::new(
                Kind::Unavailable,
                "the disk failed under the database that the program gave; it has to open it anew: start the program again",
            )),
        }
    }

    /// Lets go of a database that the disk failed under, so that it is opened anew.
    fn look_at<T>(&self, done: Result<T>) -> Result<T> {
        if let Err(error) = &done
            && is_broken(error)
        {
            tracing::warn!(%error, "the service's database is opened anew");
            *self.database.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        done
    }
}

/// A write transaction, which everybody else waits for. Dropped without a commit, it is undone.
#[derive(Debug)]
pub(super) struct Writing(Option<Open>);

struct Open {
    transaction: WriteTransaction,
    store: Arc<Store>,
    sync: Synced,
    /// Given back after the transaction, in the order of the fields.
    _turn: OwnedSemaphorePermit,
}

impl Writing {
    /// Runs `work` on a thread that may block.
    pub(super) async fn run<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&WriteTransaction) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let open = self.0.take().ok_or_else(ended)?;
        let (open, done) = blocking(move || {
            let done = open.store.look_at(work(&open.transaction));
            Ok((open, done))
        })
        .await?;
        self.0 = Some(open);
        done
    }

    /// Commits, and syncs if that was asked for.
    pub(super) async fn commit(self) -> Result<()> {
        let open = self.0.ok_or_else(ended)?;
        blocking(move || open.commit()).await
    }

    /// Undoes everything.
    pub(super) async fn rollback(self) -> Result<()> {
        let open = self.0.ok_or_else(ended)?;
        blocking(move || Ok(open.transaction.abort()?)).await
    }
}

impl Open {
    fn commit(self) -> Result<()> {
        let Self { transaction, store, sync, _turn } = self;
        let committed = store.look_at(transaction.commit().map_err(Error::from));
        if committed.is_ok() && sync == Synced::Now {
            store.unsynced.store(0, Ordering::Relaxed);
        }
        committed
    }
}

impl std::fmt::Debug for Open {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Open").field("sync", &self.sync).finish_non_exhaustive()
    }
}

/// Runs `work` on a thread that may block. It is carried through even if nobody waits for it any more.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(ended) => match ended.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(ended) => Err(Error::new(Kind::Unavailable, "the runtime is shutting down").because(ended)),
        },
    }
}

fn open(path: &Path) -> Result<Database> {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    let shown = path.display().to_string();
    builder.set_repair_callback(move |repair| {
        let done = repair.progress();
        tracing::info!(database = shown, done, "the database was not closed: all of it is read and checked");
    });
    builder.create(path).map_err(|error| not_opened(path, error.into()))
}

fn not_opened(path: &Path, error: redb::Error) -> Error {
    let file = path.display();
    if matches!(error, redb::Error::DatabaseAlreadyOpen) {
        return Error::new(
            Kind::Unavailable,
            format!(
                "the database file {file} is open in another process, and belongs to one at a time; let that one end, run one replica of the service, or choose a database that several processes share"
            ),
        )
        .because(error);
    }
    let because = Error::from(error);
    Error::new(
        because.kind(),
        format!("cannot open the database file {file}: {because}; its folder must exist and be writable"),
    )
    .because(because)
}

fn waited() -> Error {
    Error::new(
        Kind::Unavailable,
        format!(
            "waited {} s to write, because another transaction of this process was open all the time; keep transactions short, and never wait inside one",
            WRITER_WAIT_MAX.as_secs()
        ),
    )
}

/// One name for a file, however it is written.
fn place_of(path: &Path) -> Result<PathBuf> {
    let wrong = |error: std::io::Error| {
        Error::new(Kind::Database, format!("{:?} is no path of a database file: {error}", path.display()))
            .because(error)
    };
    let whole = std::path::absolute(path).map_err(wrong)?;
    let folder = whole.parent().and_then(|folder| folder.canonicalize().ok());
    Ok(match (folder, whole.file_name()) {
        (Some(folder), Some(name)) => folder.join(name),
        _ => whole,
    })
}
