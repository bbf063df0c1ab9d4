//! A RabbitMQ: its own node name, cookie, password, folders and ports, and its own epmd, the name service that
//! Erlang insists on. Invariant: the server is reachable only with its password.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::address::{free_port, greeted, secret};
use super::programs::Programs;
use super::scratch;
use crate::{Context, Error, Server};

/// The user of the tests, who may do everything.
const USER: &str = "tombolo";
/// What a client of AMQP 0-9-1 says first, and the type of the frame that answers it.
const HEADER: &[u8] = b"AMQP\x00\x00\x09\x01";
const METHOD: u8 = 1;
/// A question to the name service: who is registered.
const NAMES: &[u8] = b"\x00\x01n";

/// Where a node is and listens.
struct Node {
    program: PathBuf,
    folder: PathBuf,
    port: u16,
    distribution: u16,
    epmd: u16,
}

pub(super) fn make(folder: &Path, programs: &Programs) -> Result<Vec<Server>, Error> {
    scratch::owned(folder, None)?;
    let password = secret()?;
    let node = Node {
        program: programs.rabbitmq.join("rabbitmq-server"),
        folder: folder.to_owned(),
        port: free_port()?,
        distribution: free_port()?,
        epmd: free_port()?,
    };
    node.configure(&password)?;
    let (port, epmd, names) = (node.port, node.epmd, programs.epmd.clone());
    let name_service = move || {
        let mut command = Command::new(&names);
        command.args(["-address", "127.0.0.1", "-port", &epmd.to_string()]);
        command
    };
    let knows = move || greeted(epmd, NAMES, &mut [0; 4]);
    let greets = move || {
        let mut greeting = [0];
        greeted(port, HEADER, &mut greeting) && greeting[0] == METHOD
    };
    let url = format!("amqp://{USER}:{password}@127.0.0.1:{port}");
    let server = Server::new("rabbitmq", url, move || node.command(), greets);
    Ok(vec![Server::new("epmd", String::new(), name_service, knows), server.terminated()])
}

impl Node {
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
        let mut command = Command::new(&self.program);
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
