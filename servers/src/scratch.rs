//! The scratch folder of a set of servers. It is outside `target`, since databases refuse to run as
//! root and their users may not enter where the repository is. Invariant: only a folder that was made
//! here, by its name, is ever removed.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, chown};
use std::path::{Path, PathBuf};

use nix::unistd::{User, geteuid};

use super::address::secret;
use crate::{Context, Error};

const PREFIX: &str = "tombolo-services-";

/// A scratch folder that goes with this value.
#[derive(Debug)]
pub struct Scratch {
    /// Where it is.
    pub folder: PathBuf,
}

impl Scratch {
    /// Makes one.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn create() -> Result<Self, Error> {
        create().map(|folder| Self { folder })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.folder) {
            eprintln!("{error}; remove it by hand");
        }
    }
}

/// Makes a scratch folder, which stays until it is removed.
///
/// # Errors
/// If it cannot be made.
pub fn create() -> Result<PathBuf, Error> {
    // As root, where another user can follow; TMPDIR may be root's alone.
    let (parent, mode) =
        if geteuid().is_root() { ("/tmp".into(), 0o711) } else { (std::env::temp_dir(), 0o700) };
    let folder = parent.join(format!("{PREFIX}{}", secret()?));
    DirBuilder::new().mode(mode).create(&folder).context(|| format!("create {}", folder.display()))?;
    Ok(folder)
}

/// Removes a scratch folder, if it is there.
///
/// # Errors
/// If it was not made here, or cannot be removed.
pub fn remove(folder: &Path) -> Result<(), Error> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    if !name.starts_with(PREFIX) {
        return Err(Error::new(format!("refused to remove {}: it is no scratch folder", folder.display())));
    }
    if !folder.exists() {
        return Ok(());
    }
    fs::remove_dir_all(folder).context(|| format!("remove {}", folder.display()))
}

/// The user that `server` runs as: ourselves, unless we are root, which it refuses; then its `own`, if there is one.
pub(super) fn unprivileged(server: &str, own: &str) -> Result<Option<User>, Error> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    for name in [own, "nobody"] {
        let found = User::from_name(name).context(|| format!("look up the user {name}"))?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Err(Error::new(format!(
        "{server} refuses to run as root, and there is no user `{own}` or `nobody` to run it as"
    )))
}

/// A folder inside the scratch folder for `user` alone.
pub(super) fn owned(folder: &Path, user: Option<&User>) -> Result<(), Error> {
    let made = DirBuilder::new().mode(0o700).create(folder);
    made.and_then(|()| give(folder, user)).context(|| format!("create {}", folder.display()))
}

/// A file that only `user` can read.
pub(super) fn secret_file(path: &Path, text: &str, user: Option<&User>) -> Result<(), Error> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    written.and_then(|()| give(path, user)).context(|| format!("create {}", path.display()))
}

fn give(path: &Path, user: Option<&User>) -> io::Result<()> {
    match user {
        Some(user) => chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_was_not_made_here_is_not_removed() {
        let other = tempfile::tempdir().unwrap();
        assert!(remove(other.path()).is_err());
        assert!(other.path().exists());
    }

    #[test]
    fn a_scratch_folder_can_be_made_and_removed_twice_over() {
        let folder = create().unwrap();
        assert!(folder.is_dir());
        remove(&folder).unwrap();
        remove(&folder).unwrap();
        assert!(!folder.exists());
    }
}
