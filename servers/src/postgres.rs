//! A PostgreSQL: its own data folder, password and port, synced as in production. Invariant: it is reachable only with its
//! password.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::User;

use super::address::{free_port, secret};
use super::programs::{Programs, output, succeeds};
use super::scratch;
use crate::{Context, Error, Server};

/// Enough for many tests at once, each with a pool.
const CONNECTIONS_MAX: u32 = 200;
/// The user of the tests, who may create databases.
const USER: &str = "tombolo";

/// A data folder, and who runs the server.
struct Cluster {
    /// The folder with the programs.
    programs: PathBuf,
    user: Option<User>,
    /// The folder that the user owns; the data is inside.
    folder: PathBuf,
}

pub(super) fn make(folder: &Path, programs: &Programs) -> Result<Vec<Server>, Error> {
    let user = scratch::unprivileged("PostgreSQL", "postgres")?;
    scratch::owned(folder, user.as_ref())?;
    let cluster = Cluster { programs: programs.postgres.clone(), user, folder: folder.to_owned() };
    let (password, port) = (secret()?, free_port()?);
    cluster.initialise(&password)?;
    let ready = cluster.ready(port);
    let is_ready = move || succeeds(&mut ready());
    let url = format!("postgres://{USER}:{password}@127.0.0.1:{port}/postgres");
    Ok(vec![Server::new("postgres", url, move || cluster.server(port), is_ready)])
}

impl Cluster {
    fn initialise(&self, password: &str) -> Result<(), Error> {
        let file = self.folder.join("password");
        scratch::secret_file(&file, password, self.user.as_ref())?;
        let mut command = self.command("initdb");
        command.arg("-D").arg(self.folder.join("data")).arg("--pwfile").arg(&file);
        command.args(["--username", USER, "--auth=scram-sha-256"]);
        command.args(["--encoding=UTF8", "--locale=C", "--no-sync"]);
        output(&mut command)?;
        fs::remove_file(&file).context(|| format!("remove {}", file.display()))
    }

    fn server(&self, port: u16) -> Command {
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
        command
    }

    /// What asks whether it is ready.
    fn ready(&self, port: u16) -> impl Fn() -> Command + Send + Sync + use<> {
        let program = self.programs.join("pg_isready");
        move || {
            let mut command = Command::new(&program);
            command.args(["-q", "-h", "127.0.0.1", "-p", &port.to_string()]);
            command
        }
    }

    /// A program of PostgreSQL, as its user, blind to settings of other servers.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
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
