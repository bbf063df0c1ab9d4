//! The data folder, laid out as `tombolo dev` does it: so the four processes and the one find each other's data.
//!
//! Invariant: while the lock is held, no runner works in the folder.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use tombolo::bus::Listen;

use crate::Outcome;

/// The longest path of a Unix socket, in bytes.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// A data folder that is ours.
pub(crate) struct DataFolder {
    path: PathBuf,
    _lock: File,
}

impl DataFolder {
    /// Makes it, if it is not there, and keeps every runner out of it.
    pub(crate) fn lock(path: &Path) -> Outcome<Self> {
        if !path.exists() {
            fs::create_dir_all(path)?;
            fs::write(path.join(".gitignore"), "*\n")?;
        }
        let path = path.canonicalize()?;
        let lock =
            OpenOptions::new().create(true).truncate(false).write(true).open(path.join("runner.lock"))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, _lock: lock }),
            Err(TryLockError::Error(error)) => Err(error.into()),
            Err(TryLockError::WouldBlock) => Err(format!(
                "the data folder {0} is in use by a runner; end it with `tombolo down --data {0}`, or give this program a folder of its own with --data",
                path.display()
            )
            .into()),
        }
    }

    /// The file of a service.
    pub(crate) fn database(&self, service: &str) -> String {
        self.path.join(format!("{service}.db")).display().to_string()
    }

    /// The file of a service that keeps documents.
    pub(crate) fn documents(&self, service: &str) -> String {
        self.path.join(format!("{service}.redb")).display().to_string()
    }

    /// The bus's log.
    pub(crate) fn bus(&self) -> PathBuf {
        self.path.join("bus")
    }

    /// Where the bus is served: on the folder's socket, or on a free port if its path is too long for one.
    pub(crate) fn listen(&self) -> Listen {
        let socket = self.path.join("bus.sock");
        if socket.as_os_str().len() <= SOCKET_PATH_BYTES_MAX {
            return Listen::Unix(socket);
        }
        Listen::Tcp { host: Ipv4Addr::LOCALHOST.to_string(), port: 0 }
    }
}
