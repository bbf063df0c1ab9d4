//! A private MariaDB: its own data folder, password, socket and port, synced as in production. Invariant: it
//! is reachable over 127.0.0.1 alone, and only with its password.

use super::address::{START_TRIES, free_port, secret};
use super::install::Programs;
use super::process::{Process, ended, wait_until};
use super::record::Record;
use super::scratch;
use crate::error::{Context, Error};
use crate::interrupt::Interrupt;
use crate::workspace::output;
use nix::unistd::User;
use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// By what the process is known, and asked to end in its own way.
pub(super) const NAME: &str = "mariadb";

/// Enough for many tests at once, each with a pool.
const CONNECTIONS_MAX: u32 = 400;

/// The user of the tests, who may create databases, and users.
const USER: &str = "tombolo";

const READY_BOUND: Duration = Duration::from_secs(60);
const GREETING_BOUND: Duration = Duration::from_secs(1);
/// The version of the protocol, which comes first in a greeting, after the four bytes in front of each packet.
const PROTOCOL: u8 = 10;

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
                return Ok(format!("mysql://{USER}:{}@127.0.0.1:{port}/mysql", cluster.password));
            }
            Err(error) if tries == START_TRIES => return Err(error),
            Err(_) => tries += 1,
        }
    }
}

impl<'a> Cluster<'a> {
    fn create(scratch: &Path, programs: &'a Programs) -> Result<Self, Error> {
        let user = scratch::unprivileged("MariaDB", "mysql")?;
        let folder = scratch.join("mariadb");
        scratch::owned(&folder, user.as_ref())?;
        let cluster = Cluster { programs, user, folder, password: secret()? };
        let mut command = cluster.command(&programs.mariadb_install);
        // The server's root may only come through the socket, and not over the port.
        command.args(["--auth-root-authentication-method=socket", "--skip-test-db"]);
        output(&mut command)?;
        Ok(cluster)
    }

    fn start(&self, record: &mut Record, interrupt: &Interrupt) -> Result<u16, Error> {
        let port = free_port()?;
        let log = record.scratch.join("mariadb.log");
        let users = record.scratch.join("users.sql");
        let who = format!("{USER}@'127.0.0.1'");
        let text = format!(
            "CREATE OR REPLACE USER {who} IDENTIFIED BY '{}';\nGRANT ALL ON *.* TO {who} WITH GRANT OPTION;\n",
            self.password
        );
        scratch::secret_file(&users, &text, self.user.as_ref())?;
        let mut command = self.command(&self.programs.mariadb);
        command.args([
            "--bind-address=127.0.0.1",
            "--skip-name-resolve",
            "--socket=socket",
            "--pid-file=pid",
        ]);
        command.args(["--innodb-flush-log-at-trx-commit=1", "--innodb-doublewrite=ON"]);
        command.args([format!("--port={port}"), format!("--max-connections={CONNECTIONS_MAX}")]);
        command.arg(format!("--init-file={}", users.display()));
        let process = Process::spawn(NAME, &mut command, &log)?;
        record.add(process.clone())?;
        wait_until(READY_BOUND, || !process.runs() || interrupt.check().is_err() || greets(port));
        let is_ready = process.runs() && greets(port);
        fs::remove_file(&users).context(|| format!("remove {}", users.display()))?;
        if is_ready { Ok(port) } else { Err(ended(NAME, &log)) }
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

/// Whether a server on this port speaks the protocol. It does so only after it has made its users.
fn greets(port: u16) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let Ok(mut stream) = TcpStream::connect_timeout(&address, GREETING_BOUND) else { return false };
    let mut greeting = [0; 5];
    stream.set_read_timeout(Some(GREETING_BOUND)).is_ok()
        && stream.read_exact(&mut greeting).is_ok()
        && greeting[4] == PROTOCOL
}
