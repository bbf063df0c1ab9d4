//! The lock on a log's folder. Invariant: two processes never have one log open, nor one process twice.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::Path;

use crate::{Error, Kind, Result};

const NAME: &str = "lock";

/// An exclusive lock, which ends with the process at the latest.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of the folder `path`.
    ///
    /// # Errors
    /// `Unavailable`, naming the process that has it.
    pub(super) fn take(path: &Path) -> Result<Self> {
        let name = path.join(NAME);
        let unusable = |error: std::io::Error| {
            Error::new(Kind::Unavailable, format!("{} cannot be locked: {error}", name.display()))
                .because(error)
        };
        let mut options = OpenOptions::new();
        let mut file =
            options.read(true).write(true).create(true).truncate(false).open(&name).map_err(unusable)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(held(path, &mut file)),
            Err(TryLockError::Error(error)) => return Err(unusable(error)),
        }
        file.set_len(0).map_err(unusable)?;
        file.write_all(std::process::id().to_string().as_bytes()).map_err(unusable)?;
        Ok(Self { _file: file })
    }
}

fn held(path: &Path, file: &mut File) -> Error {
    let mut holder = String::new();
    let holder = match file.read_to_string(&mut holder) {
        Ok(_) if !holder.is_empty() => format!("process {holder}"),
        _ => "another process".into(),
    };
    let path = path.display();
    Error::new(
        Kind::Unavailable,
        format!(
            "the log in {path} is open in {holder}; a log has one process: connect to that one, or stop it first"
        ),
    )
}

/// The process that has the log open, if any.
pub(super) fn holder(path: &Path) -> Option<String> {
    let mut file = File::open(path.join(NAME)).ok()?;
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            file.read_to_string(&mut holder).ok()?;
            Some(holder)
        }
        _ => None,
    }
}
