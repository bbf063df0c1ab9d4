//! The data folder of a system, and how a second command finds the runner that works in it.
//!
//! Invariant: at most one runner works in a data folder, by a lock that the kernel lets go when the runner ends,
//! however it ends; and a record of a run that another process wrote is believed only while that process lives.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::{Context, Error, Result};
use crate::process::{self, Identity};

/// The data folder's name beside a manifest.
pub(crate) const FOLDER_NAME: &str = ".tombolo";
/// The longest path of a Unix socket, in bytes, without the byte that ends it.
pub(crate) const SOCKET_PATH_BYTES_MAX: usize = 107;

/// A folder that holds everything that a running system writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DataFolder {
    path: PathBuf,
}

impl DataFolder {
    /// The folder at `path`, which need not exist.
    pub(crate) fn at(path: &Path) -> Result<Self> {
        let path = std::path::absolute(path).context(|| format!("cannot resolve {}", path.display()))?;
        Ok(Self { path: path.canonicalize().unwrap_or(path) })
    }

    /// Makes it, and keeps it out of version control.
    pub(crate) fn make(path: &Path) -> Result<Self> {
        let doing = || format!("cannot make the data folder {}", path.display());
        let is_new = !path.exists();
        fs::create_dir_all(path.join("logs")).context(doing)?;
        if is_new {
            fs::write(path.join(".gitignore"), "*\n").context(doing)?;
        }
        Self::at(path)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The SQLite file of a service.
    pub(crate) fn database(&self, service: &str) -> PathBuf {
        self.path.join(format!("{service}.db"))
    }

    /// The file of a service's documents.
    pub(crate) fn documents(&self, service: &str) -> PathBuf {
        self.path.join(format!("{service}.redb"))
    }

    /// What a service, or the bus, wrote to its standard output and error.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.path.join("logs").join(format!("{name}.log"))
    }

    /// What a detached runner itself says.
    pub(crate) fn runner_log(&self) -> PathBuf {
        self.path.join("runner.log")
    }

    /// The bus's own data.
    pub(crate) fn bus(&self) -> PathBuf {
        self.path.join("bus")
    }

    /// The bus's socket, if a path so long may be one.
    pub(crate) fn bus_socket(&self) -> Option<PathBuf> {
        Some(self.path.join("bus.sock")).filter(|path| fits_a_socket(path))
    }

    /// The socket on which the runner takes orders.
    pub(crate) fn control_socket(&self) -> Result<PathBuf> {
        let own = self.path.join("control.sock");
        if fits_a_socket(&own) {
            return Ok(own);
        }
        Ok(registry()?.join(format!("{}.sock", self.key())))
    }

    /// A short name of this folder that no other has.
    pub(crate) fn key(&self) -> String {
        Uuid::new_v5(&Uuid::NAMESPACE_URL, self.path.as_os_str().as_encoded_bytes()).simple().to_string()
    }

    /// The run that was recorded last, whether it lives or not.
    pub(crate) fn recorded(&self) -> Option<Run> {
        Run::read(&self.path.join(RECORD))
    }

    /// The run that lives in it now.
    pub(crate) fn running(&self) -> Option<Run> {
        self.recorded().filter(Run::is_alive)
    }

    /// Keeps every other runner out until the returned value is dropped.
    pub(crate) fn lock(&self) -> Result<File> {
        let path = self.path.join("runner.lock");
        let doing = || format!("cannot lock {}", path.display());
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).context(doing)?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(fs::TryLockError::Error(error)) => Err(error).context(doing),
            Err(fs::TryLockError::WouldBlock) => Err(Error::failed(format!(
                "the data folder {} is in use by another runner{}; end it with `tombolo down --data {}`, or give this one a folder of its own with --data",
                self.path.display(),
                self.running().map(|run| format!(" (pid {})", run.runner.pid)).unwrap_or_default(),
                self.path.display()
            ))),
        }
    }

    /// Records a run, in place of what was recorded before.
    pub(crate) fn record(&self, run: &Run) -> Result<()> {
        write_whole(
            &self.path.join(RECORD),
            &serde_json::to_vec(run).context(|| "cannot write the run".into())?,
        )
    }

    /// Lets commands elsewhere find the run without being told its folder.
    pub(crate) fn announce(&self, run: &Run) -> Result<()> {
        let text = serde_json::to_vec(run).context(|| "cannot write the run".into())?;
        write_whole(&registry()?.join(format!("{}.json", self.key())), &text)
    }

    /// Removes what only a living runner needs.
    pub(crate) fn clear(&self) {
        let known = registry().map(|registry| registry.join(format!("{}.json", self.key())));
        let gone = [Ok(self.path.join(RECORD)), known, self.control_socket()];
        // What cannot be removed is not believed either: the process that it names has ended.
        gone.into_iter().flatten().for_each(|path| drop(fs::remove_file(path)));
    }
}

const RECORD: &str = "runner.json";

/// What is known of a run: enough to reach it, and to end what it left behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Run {
    /// The start of the machine in which it is.
    pub(crate) boot: String,
    /// Its own name, which its processes carry in their environment. Recorded before any of them begins.
    pub(crate) run: String,
    /// The runner.
    pub(crate) runner: Identity,
    /// Where it takes orders.
    pub(crate) control: PathBuf,
    /// Its data folder.
    pub(crate) data: PathBuf,
    /// What it runs.
    pub(crate) manifest: PathBuf,
    /// Its bus.
    pub(crate) bus: String,
    /// The processes that it started.
    pub(crate) processes: Vec<Identity>,
}

impl Run {
    fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    /// Whether its runner lives.
    pub(crate) fn is_alive(&self) -> bool {
        self.boot == process::boot() && self.runner.is_alive()
    }

    /// What it left behind: processes that it recorded, and those that carry its name.
    pub(crate) fn orphans(&self) -> Vec<Identity> {
        if self.boot != process::boot() {
            return Vec::new();
        }
        let mut orphans: Vec<_> = self.processes.iter().copied().filter(Identity::is_alive).collect();
        for member in process::members_of_run(&self.run) {
            if !orphans.contains(&member) {
                orphans.push(member);
            }
        }
        orphans
    }
}

/// The run that a command is about: that in `data`, or in the current folder or one above it, or the only one whose
/// manifest lies below the current folder, or the only one.
pub(crate) fn find(data: Option<&Path>) -> Result<Run> {
    if let Some(path) = data {
        let folder = DataFolder::at(path)?;
        return folder.running().ok_or_else(|| not_running(&format!("nothing runs in {}", path.display())));
    }
    let here = std::env::current_dir().context(|| "cannot find the current folder".into())?;
    if let Some(run) = near(&here)? {
        return Ok(run);
    }
    let mut runs = announced()?;
    if runs.iter().filter(|run| run.manifest.starts_with(&here)).count() == 1 {
        runs.retain(|run| run.manifest.starts_with(&here));
    }
    match runs.len() {
        0 => Err(not_running("no system of Tombolo runs here")),
        1 => Ok(runs.remove(0)),
        _ => Err(ambiguous(&runs)),
    }
}

/// What a command reaches.
pub(crate) enum Place {
    /// A runner, with everything that it runs.
    Runner(Box<Run>),
    /// Only a bus, at this address: a program serves it in the data folder without a runner, as a monolith does.
    Bus(String),
}

/// The same for commands that need no more than the bus.
pub(crate) fn find_bus(data: Option<&Path>) -> Result<Place> {
    match find(data) {
        Ok(run) => Ok(Place::Runner(Box::new(run))),
        Err(error) => unattended(data).map(Place::Bus).ok_or(error),
    }
}

/// The bus that answers in `data`, or in the current folder or one above it.
fn unattended(data: Option<&Path>) -> Option<String> {
    let here = std::env::current_dir().ok()?;
    let places = match data {
        Some(path) => vec![path.to_owned()],
        None => here.ancestors().flat_map(|above| [above.to_owned(), above.join(FOLDER_NAME)]).collect(),
    };
    let sockets = places.iter().filter_map(|place| DataFolder::at(place).ok()?.bus_socket());
    let mut answering = sockets.filter(|socket| UnixStream::connect(socket).is_ok());
    answering.next().map(|socket| format!("tombolo+unix://{}", socket.display()))
}

fn near(folder: &Path) -> Result<Option<Run>> {
    for above in folder.ancestors() {
        for place in [above.to_owned(), above.join(FOLDER_NAME)] {
            if let Some(run) = DataFolder::at(&place)?.running() {
                return Ok(Some(run));
            }
        }
    }
    Ok(None)
}

fn not_running(found: &str) -> Error {
    Error::not_running(format!("{found}; start one with `tombolo dev DIR`, or name its folder with --data"))
}

fn ambiguous(runs: &[Run]) -> Error {
    let lines: Vec<_> = runs
        .iter()
        .map(|run| {
            format!("  --data {}   (pid {}, {})", run.data.display(), run.runner.pid, run.manifest.display())
        })
        .collect();
    Error::usage(format!("{} systems run here; say which one is meant:\n{}", runs.len(), lines.join("\n")))
}

/// Every living run of this user.
fn announced() -> Result<Vec<Run>> {
    let folder = registry()?;
    let entries = fs::read_dir(&folder).context(|| format!("cannot read {}", folder.display()))?;
    let mut runs = Vec::new();
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.extension().is_some_and(|extension| extension == "json") {
            match Run::read(&path).filter(Run::is_alive) {
                Some(run) => runs.push(run),
                // Left by a run that was killed. If removing fails it is passed over again next time.
                None => drop(fs::remove_file(&path)),
            }
        }
    }
    runs.sort_by(|a, b| a.data.cmp(&b.data));
    Ok(runs)
}

/// The folder of this user's runs, which nobody else may write to.
fn registry() -> Result<PathBuf> {
    let user = nix::unistd::getuid().as_raw();
    let path = match std::env::var_os("XDG_RUNTIME_DIR").filter(|folder| !folder.is_empty()) {
        Some(folder) => PathBuf::from(folder).join("tombolo"),
        None => PathBuf::from(format!("/tmp/tombolo-{user}")),
    };
    let doing = || format!("cannot make {}", path.display());
    match fs::DirBuilder::new().mode(0o700).create(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error).context(doing),
        _ => {}
    }
    let found = fs::symlink_metadata(&path).context(doing)?;
    if !found.is_dir() || found.uid() != user || found.mode() & 0o077 != 0 {
        return Err(Error::failed(format!(
            "{} is not a folder of yours alone (owner {}, mode {:o}); expected owner {user}, mode 700: remove it, or set XDG_RUNTIME_DIR",
            path.display(),
            found.uid(),
            found.mode() & 0o777
        )));
    }
    Ok(path)
}

fn fits_a_socket(path: &Path) -> bool {
    path.as_os_str().len() <= SOCKET_PATH_BYTES_MAX
}

/// Writes a file so that a reader finds the old text or the new one, whole.
fn write_whole(path: &Path, text: &[u8]) -> Result<()> {
    let doing = || format!("cannot write {}", path.display());
    let beside = path.with_extension(format!("{}.new", std::process::id()));
    // Whose bus has a password writes it here, so that later commands reach the bus, too.
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)
        .context(doing)?;
    file.write_all(text).context(doing)?;
    fs::rename(&beside, path).context(doing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_of(runner: Identity, data: &Path) -> Run {
        Run {
            boot: process::boot(),
            run: Uuid::now_v7().to_string(),
            runner,
            control: data.join("control.sock"),
            data: data.to_owned(),
            manifest: data.join("tombolo.toml"),
            bus: "http://127.0.0.1:1".into(),
            processes: vec![runner],
        }
    }

    #[test]
    fn a_recorded_run_is_believed_only_while_its_runner_lives() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = DataFolder::make(scratch.path()).unwrap();
        let own = Identity::own().unwrap();
        folder.record(&run_of(own, folder.path())).unwrap();
        assert_eq!(folder.running().unwrap().runner, own);
        folder.record(&run_of(Identity { started: 1, ..own }, folder.path())).unwrap();
        assert_eq!(folder.running(), None);
        assert!(folder.recorded().is_some());
    }

    #[test]
    fn a_process_of_another_start_of_the_machine_is_no_orphan() {
        let scratch = tempfile::tempdir().unwrap();
        let own = Identity::own().unwrap();
        let run = run_of(own, scratch.path());
        assert_eq!(run.orphans(), [own]);
        assert_eq!(Run { boot: "earlier".into(), ..run }.orphans(), []);
    }

    #[test]
    fn the_second_lock_of_a_folder_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = DataFolder::make(scratch.path()).unwrap();
        let held = folder.lock().unwrap();
        let refusal = folder.lock().unwrap_err();
        assert!(refusal.message.contains("in use by another runner"), "{refusal}");
        drop(held);
        assert!(folder.lock().is_ok());
    }

    #[test]
    fn a_bus_without_a_runner_is_found_while_it_listens() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = DataFolder::make(scratch.path()).unwrap();
        let found = || find_bus(Some(folder.path()));
        assert!(found().is_err());
        let listener = std::os::unix::net::UnixListener::bind(folder.bus_socket().unwrap()).unwrap();
        assert!(matches!(found(), Ok(Place::Bus(url)) if url.ends_with("/bus.sock")));
        drop(listener);
        assert!(found().is_err(), "what is left of a socket is no bus");
    }

    #[test]
    fn a_path_too_long_for_a_socket_falls_back() {
        let scratch = tempfile::tempdir().unwrap();
        let deep = scratch.path().join("d".repeat(90)).join("e".repeat(60));
        let folder = DataFolder::make(&deep).unwrap();
        assert_eq!(folder.bus_socket(), None);
        assert!(fits_a_socket(&folder.control_socket().unwrap()));
    }
}
