//! A private RabbitMQ: its own node name, cookie, password, folders and ports, and its own epmd, the name service that
//! Erlang insists on. Invariant: both are reachable over loopback alone, and the server only with its password.

use super::address::{START_TRIES, free_port, secret};
use super::install::Programs;
use super::process::{Process, ended, wait_until};
use super::record::Record;
use super::scratch;
use crate::error::{Context, Error};
use crate::interrupt::Interrupt;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// By what the server is known, and asked to end in its own way.
pub(super) const NAME: &str = "rabbitmq";
const EPMD: &str = "epmd";

/// The user of the tests, who may do everything.
const USER: &str = "tombolo";

/// It takes five seconds on a machine that does nothing else.
const READY_BOUND: Duration = Duration::from_secs(90);
const GREETING_BOUND: Duration = Duration::from_secs(1);
/// What a client of AMQP 0-9-1 says first, and the type of the frame that answers it.
const HEADER: &[u8] = b"AMQP\x00\x00\x09\x01";
const METHOD: u8 = 1;

/// One try to start a node.
struct Node<'a> {
    programs: &'a Programs,
    folder: PathBuf,
    port: u16,
    distribution: u16,
    epmd: u16,
}

/// Starts a server and gives its URL.
pub(super) fn start(
    record: &mut Record,
    programs: &Programs,
    interrupt: &Interrupt,
) -> Result<String, Error> {
    let password = secret()?;
    let mut tries = 1;
    loop {
        interrupt.check()?;
        match start_once(record, programs, &password, tries, interrupt) {
            Ok(port) => return Ok(format!("amqp://{USER}:{password}@127.0.0.1:{port}")),
            Err(error) if tries == START_TRIES => return Err(error),
            Err(_) => tries += 1,
        }
    }
}

fn start_once(
    record: &mut Record,
    programs: &Programs,
    password: &str,
    tries: u32,
    interrupt: &Interrupt,
) -> Result<u16, Error> {
    let folder = record.scratch.join(format!("{NAME}-{tries}"));
    scratch::owned(&folder, None)?;
    let node = Node { programs, folder, port: free_port()?, distribution: free_port()?, epmd: free_port()? };
    node.configure(password)?;
    let mut epmd = Command::new(&programs.epmd);
    epmd.args(["-address", "127.0.0.1", "-port", &node.epmd.to_string()]);
    let log = record.scratch.join(format!("{EPMD}.log"));
    record.add(Process::spawn(EPMD, &mut epmd, &log)?)?;
    let log = record.scratch.join(format!("{NAME}.log"));
    let process = Process::spawn(NAME, &mut node.command(), &log)?;
    record.add(process.clone())?;
    wait_until(READY_BOUND, || !process.runs() || interrupt.check().is_err() || greets(node.port));
    if process.runs() && greets(node.port) { Ok(node.port) } else { Err(ended(NAME, &log)) }
}

impl Node<'_> {
    fn configure(&self, password: &str) -> Result<(), Error> {
        let settings = format!(
            "listeners.tcp.1 = 127.0.0.1:{}\ndefault_user = {USER}\ndefault_pass = {password}\nlog.file = false\nlog.console = true\n",
            self.port
        );
        scratch::secret_file(&self.folder.join("rabbitmq.conf"), &settings, None)?;
        let plugins = self.folder.join("enabled_plugins");
        fs::write(&plugins, "[].").context(|| format!("write {}", plugins.display()))
    }

    /// The server, blind to the settings of others.
    fn command(&self) -> Command {
        let mut command = Command::new(self.programs.rabbitmq.join("rabbitmq-server"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("RABBITMQ_") {
                command.env_remove(name);
            }
        }
        command.current_dir(&self.folder);
        let path = |name: &str| self.folder.join(name);
        command
            // Where the cookie is made.
            .env("HOME", &self.folder)
            .env("RABBITMQ_NODENAME", format!("tombolo{}@localhost", self.port))
            .env("RABBITMQ_MNESIA_BASE", path("data"))
            .env("RABBITMQ_LOG_BASE", path("log"))
            .env("RABBITMQ_LOGS", "-")
            .env("RABBITMQ_CONFIG_FILE", path("rabbitmq.conf"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", path("enabled_plugins"))
            .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
            .env("RABBITMQ_DIST_PORT", self.distribution.to_string())
            .env("ERL_EPMD_PORT", self.epmd.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env(
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                "-kernel inet_dist_use_interface {127,0,0,1} +sbwt none",
            )
            // The script then becomes the server, instead of being its parent.
            .env("RUNNING_UNDER_SYSTEMD", "true")
            .env_remove("NOTIFY_SOCKET");
        command
    }
}

/// Whether a server on this port answers as AMQP does.
fn greets(port: u16) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let Ok(mut stream) = TcpStream::connect_timeout(&address, GREETING_BOUND) else { return false };
    let mut greeting = [0];
    stream.set_read_timeout(Some(GREETING_BOUND)).is_ok()
        && stream.write_all(HEADER).is_ok()
        && stream.read_exact(&mut greeting).is_ok()
        && greeting[0] == METHOD
}
