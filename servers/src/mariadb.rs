//! A MariaDB: its own data folder, password, socket and port, synced as in production. Invariant: it is reachable only with
//! its password.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::User;

use super::address::{free_port, greeted, secret};
use super::programs::{Programs, output};
use super::scratch;
use crate::{Error, Server};

/// Enough for many tests at once, each with a pool.
const CONNECTIONS_MAX: u32 = 400;
/// The user of the tests, who may create databases, and users.
const USER: &str = "tombolo";
/// The version of the protocol, which comes first in a greeting, after the four bytes in front of each packet.
const PROTOCOL: u8 = 10;

/// A data folder, and who runs the server.
struct Cluster {
    program: PathBuf,
    user: Option<User>,
    /// The folder that the user owns; the data is inside.
    folder: PathBuf,
}

pub(super) fn make(folder: &Path, programs: &Programs) -> Result<Vec<Server>, Error> {
    let user = scratch::unprivileged("MariaDB", "mysql")?;
    scratch::owned(folder, user.as_ref())?;
    let cluster = Cluster { program: programs.mariadb.clone(), user, folder: folder.to_owned() };
    let mut command = cluster.command(&programs.mariadb_install);
    // The server's root may only come through the socket, and not over the port.
    command.args(["--auth-root-authentication-method=socket", "--skip-test-db"]);
    output(&mut command)?;
    let (password, port) = (secret()?, free_port()?);
    cluster.write_users(&password)?;
    let url = format!("mysql://{USER}:{password}@127.0.0.1:{port}/mysql");
    // It greets only after it has made its users.
    let greets = move || {
        let mut greeting = [0; 5];
        greeted(port, &[], &mut greeting) && greeting[4] == PROTOCOL
    };
    Ok(vec![Server::new("mariadb", url, move || cluster.server(port), greets).terminated()])
}

impl Cluster {
    fn write_users(&self, password: &str) -> Result<(), Error> {
        let who = format!("{USER}@'127.0.0.1'");
        let text = format!(
            "CREATE OR REPLACE USER {who} IDENTIFIED BY '{password}';\nGRANT ALL ON *.* TO {who} WITH GRANT OPTION;\n"
        );
        scratch::secret_file(&self.users(), &text, self.user.as_ref())
    }

    /// What the server does at each start.
    fn users(&self) -> PathBuf {
        self.folder.join("users.sql")
    }

    fn server(&self, port: u16) -> Command {
        let mut command = self.command(&self.program);
        command.args([
            "--bind-address=127.0.0.1",
            "--skip-name-resolve",
            "--socket=socket",
            "--pid-file=pid",
        ]);
        command.args(["--innodb-flush-log-at-trx-commit=1", "--innodb-doublewrite=ON"]);
        command.args([format!("--port={port}"), format!("--max-connections={CONNECTIONS_MAX}")]);
        command.arg(format!("--init-file={}", self.users().display()));
        command
    }

    /// A program of MariaDB, as its user, blind to settings of other servers.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.folder);
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("MYSQL") || name.starts_with("MARIADB") {
                command.env_remove(&*name);
            }
        }
        if let Some(user) = &self.user {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        // It has to come first.
        command.arg("--no-defaults").arg(format!("--datadir={}", self.folder.join("data").display()));
        command
    }
}
