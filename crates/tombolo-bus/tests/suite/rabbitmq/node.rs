//! A RabbitMQ server of our own: on free ports of loopback, in a scratch folder, killed with SIGKILL.
//! Invariant: only processes that were started here are killed, and each of them is.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::sync::Mutex;
use tombolo_bus::rabbitmq::RabbitMq;
use tombolo_bus::{Bus, Registration};

use super::connect;

const USER: &str = "suite";
const PASSWORD: &str = "only-on-loopback";
/// How often a server that starts is looked at, which is work for it.
const LOOK_EACH: Duration = Duration::from_millis(50);

/// The server, and the name service that it insists on.
pub(super) struct Node {
    port: u16,
    distribution: u16,
    epmd: u16,
    server: Mutex<Option<Child>>,
    names: Mutex<Option<Child>>,
    folder: TempDir,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The folder of the server's own scripts; those on the path of Debian want to become another user.
fn scripts() -> PathBuf {
    let installed = std::fs::read_dir("/usr/lib/rabbitmq/lib").into_iter().flatten().flatten();
    let mut found = installed.map(|entry| entry.path().join("sbin")).filter(|folder| folder.is_dir());
    found.next().expect("rabbitmq-server is installed where TOMBOLO_TEST_RABBITMQ is set")
}

impl Node {
    pub(super) async fn start() -> Self {
        let node = Self {
            folder: tempfile::tempdir().unwrap(),
            port: free_port(),
            distribution: free_port(),
            epmd: free_port(),
            names: Mutex::default(),
            server: Mutex::default(),
        };
        let settings = format!(
            "listeners.tcp.1 = 127.0.0.1:{}\ndefault_user = {USER}\ndefault_pass = {PASSWORD}\nlog.file = false\nlog.console = true\n",
            node.port
        );
        std::fs::write(node.path("rabbitmq.conf"), settings).unwrap();
        std::fs::write(node.path("enabled_plugins"), "[].").unwrap();
        let mut names = Command::new("epmd");
        names.args(["-address", "127.0.0.1", "-port", &node.epmd.to_string()]);
        *node.names.lock().await = Some(spawn(&mut names, Path::new("/dev/null")));
        node.run().await;
        node.keep_the_coordinator().await;
        node
    }

    /// Makes a first stream, and waits until the server would still know of it when killed: half a second after the very
    /// first stream, it writes to disk that it has a coordinator of streams.
    async fn keep_the_coordinator(&self) {
        let bus = self.connected().await;
        bus.register(&Registration {
            service: "first".parse().unwrap(),
            replica: 1,
            url: "".into(),
            descriptor: "{}".into(),
        })
        .await
        .unwrap();
        bus.close().await;
        let node = format!("{}@localhost", self.name());
        let file = self.path("data").join(&node).join("coordination").join(&node).join("names.dets");
        let coordinator = b"rabbit_stream_coordinator";
        let is_kept = || {
            let bytes = std::fs::read(&file).unwrap_or_default();
            bytes.windows(coordinator.len()).any(|bytes| bytes == coordinator)
        };
        let mut look = tokio::time::interval(LOOK_EACH);
        let kept = async {
            while !is_kept() {
                look.tick().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), kept)
            .await
            .expect("the coordinator is kept within 30 s");
    }

    fn name(&self) -> String {
        format!("suite{}", self.port)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(super) fn url(&self) -> String {
        format!("amqp://{USER}:{PASSWORD}@127.0.0.1:{}", self.port)
    }

    /// A program of the server, in the environment of this node alone.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(scripts().join(program));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("RABBITMQ_") {
                command.env_remove(name);
            }
        }
        command
            .env("HOME", self.folder.path())
            .env("RABBITMQ_NODENAME", format!("{}@localhost", self.name()))
            .env("RABBITMQ_MNESIA_BASE", self.path("data"))
            .env("RABBITMQ_LOG_BASE", self.path("log"))
            .env("RABBITMQ_LOGS", "-")
            .env("RABBITMQ_CONFIG_FILE", self.path("rabbitmq.conf"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", self.path("enabled_plugins"))
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

    pub(super) async fn run(&self) {
        let log = self.path("server.log");
        *self.server.lock().await = Some(spawn(&mut self.command("rabbitmq-server"), &log));
        self.connected().await.close().await;
    }

    pub(super) async fn kill(&self) {
        if let Some(mut server) = self.server.lock().await.take() {
            server.kill().await.unwrap();
        }
    }

    /// Tells the server something, as its operator.
    pub(super) async fn control(&self, arguments: &[&str]) {
        let told = self.command("rabbitmqctl").args(arguments).output().await.unwrap();
        assert!(
            told.status.success(),
            "rabbitmqctl {arguments:?}: {}",
            String::from_utf8_lossy(&told.stderr)
        );
    }

    /// A bus, once the server is up.
    pub(super) async fn connected(&self) -> RabbitMq {
        let bus = connect(&self.url(), "suite").await;
        let mut look = tokio::time::interval(LOOK_EACH);
        let starting = async {
            while bus.registrations().await.is_err() {
                look.tick().await;
            }
        };
        let started = tokio::time::timeout(Duration::from_secs(90), starting).await;
        started.map(|()| bus).unwrap_or_else(|_| {
            let log = std::fs::read_to_string(self.path("server.log")).unwrap_or_default();
            panic!(
                "the server did not start within 90 s; its log ends:\n{}",
                &log[log.len().saturating_sub(2_000)..]
            )
        })
    }
}

fn spawn(command: &mut Command, log: &Path) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(log).unwrap();
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .expect("rabbitmq-server is installed where TOMBOLO_TEST_RABBITMQ is set")
}
