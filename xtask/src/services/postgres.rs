//! A private PostgreSQL: its own data folder, password and port, synced as in production. Invariant: it
//! is reachable over 127.0.0.1 alone, and only with its password.

use super::address::{START_TRIES, free_port, secret};
use super::install::Programs;
use super::process::{Process, ended, wait_until};
use super::record::Record;
use super::scratch;
use crate::chore;
use crate::error::{Context, Error};
use crate::interrupt::Interrupt;
use crate::workspace::output;
use nix::unistd::User;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Enough for many tests at once, each with a pool.
const CONNECTIONS_MAX: u32 = 200;

/// The user of the tests, who may create databases.
const USER: &str = "tombolo";

const READY_BOUND: Duration = Duration::from_secs(60);

/// A data folder with its password, and who runs the server.
struct Cluster<'a> {
    programs: &'a Programs,
    user: Option<User>,
    /// The folder that the user owns; the data is inside.
    folder: PathBuf,
    password: String,
}

/// Starts a server and gives its URL.
pub(super) fn start(
    record: &mut Record,
    programs: &Programs,
    interrupt: &Interrupt,
) -> Result<String, Error> {
    let cluster = Cluster::create(&record.scratch, programs)?;
    let mut tries = 1;
    loop {
        interrupt.check()?;
        match cluster.start(record, interrupt) {
            Ok(port) => {
                return Ok(format!("postgres://{USER}:{}@127.0.0.1:{port}/postgres", cluster.password));
            }
            Err(error) if tries == START_TRIES => return Err(error),
            Err(_) => tries += 1,
        }
    }
}

impl<'a> Cluster<'a> {
    fn create(scratch: &Path, programs: &'a Programs) -> Result<Self, Error> {
        let user = scratch::unprivileged("PostgreSQL", "postgres")?;
        let folder = scratch.join("postgres");
        scratch::owned(&folder, user.as_ref())?;
        let cluster = Cluster { programs, user, folder, password: secret()? };
        let password = scratch.join("password");
        scratch::secret_file(&password, &cluster.password, cluster.user.as_ref())?;
        let mut command = cluster.command("initdb");
        command.arg("-D").arg(cluster.folder.join("data")).arg("--pwfile").arg(&password);
        command.args([
            "--username",
            USER,
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
        ]);
        output(&mut command)?;
        fs::remove_file(&password).context(|| format!("remove {}", password.display()))?;
        Ok(cluster)
    }

    fn start(&self, record: &mut Record, interrupt: &Interrupt) -> Result<u16, Error> {
        let port = free_port()?;
        let log = record.scratch.join("postgres.log");
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.folder.join("data")).args(["-p", &port.to_string()]);
        let settings = [
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "fsync=on",
            "synchronous_commit=on",
            &format!("max_connections={CONNECTIONS_MAX}"),
        ];
        command.args(settings.iter().flat_map(|setting| ["-c", setting]));
        let process = Process::spawn("postgres", &mut command, &log)?;
        record.add(process.clone())?;
        let mut ready = self.command("pg_isready");
        ready.args(["-q", "-h", "127.0.0.1", "-p", &port.to_string()]);
        wait_until(READY_BOUND, || {
            !process.runs() || interrupt.check().is_err() || chore::succeeds(&mut ready)
        });
        if process.runs() && chore::succeeds(&mut ready) { Ok(port) } else { Err(ended("postgres", &log)) }
    }

    /// A program of PostgreSQL, as its user, blind to settings of other servers.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.postgres.join(program));
        command.current_dir(&self.folder);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PG") {
                command.env_remove(name);
            }
        }
        if let Some(user) = &self.user {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        command
    }
}
