//! The bus in a process of its own: this program run again, with the log of a folder behind a Unix socket.
//!
//! Invariant: a process that was started here ends here, by its own handle.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tombolo_bus::embedded::{Log, Options};
use tombolo_bus::server::{Listen, Server};
use tombolo_bus::{Bus, Identity, connect};
use tombolo_event::ServiceName;

use crate::error::{Error, Result};
use crate::hops::Hops;
use crate::observed::ObservedBus;
use crate::yardstick::blocking;

/// How long a process may take to start, or to end.
const TURN_MAX: Duration = Duration::from_secs(30);

/// Another process of this program. It says `ready` on its output, and ends when its input does.
pub(crate) struct Process {
    child: Child,
    input: Option<ChildStdin>,
    output: tokio::io::Lines<BufReader<ChildStdout>>,
}

impl Process {
    /// Starts this program as `role`, and waits until it is ready.
    pub(crate) async fn start(role: &str, arguments: &[(&str, &Path)]) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(role).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        for (name, value) in arguments {
            command.arg(name).arg(value);
        }
        let mut child = command.spawn()?;
        let output = child.stdout.take().ok_or_else(|| Error::new("the process has no output"))?;
        let input = child.stdin.take();
        let mut process = Self { child, input, output: BufReader::new(output).lines() };
        process.heard("ready").await.map_err(|error| Error::new(format!("{role}: {error}")))?;
        Ok(process)
    }

    /// Gives it a line of work, and waits until it is done.
    pub(crate) async fn tell(&mut self, line: &str) -> Result<()> {
        let input = self.input.as_mut().ok_or_else(|| Error::new("the process is ending"))?;
        input.write_all(format!("{line}\n").as_bytes()).await?;
        self.heard("done").await
    }

    async fn heard(&mut self, expected: &str) -> Result<()> {
        match timeout(TURN_MAX, self.output.next_line()).await {
            Ok(Ok(Some(line))) if line == expected => Ok(()),
            Ok(Ok(Some(line))) => Err(Error::new(format!("it said {line:?}; expected {expected:?}"))),
            Ok(_) => Err(Error::new(format!("it ended before it said {expected:?}"))),
            Err(_) => Err(Error::new(format!("it did not say {expected:?} in {} s", TURN_MAX.as_secs()))),
        }
    }

    /// Its number, as `/proc` has it.
    pub(crate) fn number(&self) -> String {
        self.child.id().map_or_else(String::new, |number| number.to_string())
    }

    /// Ends it and waits until it has.
    pub(crate) async fn end(mut self) -> Result<()> {
        drop(self.input.take());
        match timeout(TURN_MAX, self.child.wait()).await {
            Ok(status) => match status? {
                status if status.success() => Ok(()),
                status => Err(Error::new(format!("a process of the bench ended with {status}"))),
            },
            Err(_) => {
                Err(Error::new(format!("a process of the bench did not end in {} s", TURN_MAX.as_secs())))
            }
        }
    }
}

/// What a process says when it can be used, and when a piece of work is done.
pub(crate) fn say(word: &str) {
    println!("{word}");
}

/// The address of a bus process.
pub(crate) fn url(socket: &Path) -> String {
    format!("tombolo+unix://{}", socket.display())
}

/// Where a bus process writes the port at which it answers HTTP.
pub(crate) fn port_file(socket: &Path) -> PathBuf {
    socket.with_extension("port")
}

/// Where a bus process writes the port at which it takes plain events, if it was told to.
pub(crate) fn plain_port_file(socket: &Path) -> PathBuf {
    socket.with_extension("plain-port")
}

/// A client of a bus process.
pub(crate) async fn client(socket: &Path, service: &str) -> Result<Arc<dyn Bus>> {
    Ok(connect(&url(socket), &Identity::Service(ServiceName::new(service)?)).await?)
}

/// The log of a folder, in this process.
pub(crate) async fn in_process(folder: &Path) -> Result<Arc<dyn Bus>> {
    let folder = folder.to_path_buf();
    let (log, _) = blocking(move || Ok(Log::open(&folder, Options::default())?)).await?;
    Ok(log)
}

/// A bus process for the benches.
pub(crate) async fn start(folder: &Path, socket: &Path, hops: Option<&Path>) -> Result<Process> {
    let mut arguments = vec![("--log", folder), ("--socket", socket)];
    arguments.extend(hops.map(|hops| ("--hops", hops)));
    Process::start("role-bus", &arguments).await
}

/// The bus process itself.
pub(crate) async fn run(
    folder: PathBuf,
    socket: PathBuf,
    hops: Option<PathBuf>,
    http: Option<PathBuf>,
) -> Result<()> {
    let log = in_process(&folder).await?;
    let seen = Arc::new(Hops::default());
    let bus: Arc<dyn Bus> = match &hops {
        Some(_) => Arc::new(ObservedBus::at_server(log.clone(), seen.clone())),
        None => log.clone(),
    };
    let listen = [url(&socket).parse()?, Listen::Tcp { host: "127.0.0.1".into(), port: 0 }];
    let settings = settings(folder.join("http"), http.as_deref())?;
    let door = tombolo_http::Door::open(bus.clone(), settings).await.map_err(|it| Error::new(it.detail()))?;
    let server = Server::bind(&listen, bus).await?.beside(door.routes().merge(crate::http::nothing()));
    if let Some(Listen::Tcp { port, .. }) = server.addresses().last() {
        std::fs::write(port_file(&socket), port.to_string())?;
    }
    if let Some(plain) = door.plain_addresses().first() {
        std::fs::write(plain_port_file(&socket), plain.port().to_string())?;
    }
    let stop = CancellationToken::new();
    say("ready");
    let until = stop.clone();
    let (served, ended) = tokio::join!(server.serve(until), async {
        let ended = input_ended().await;
        stop.cancel();
        ended
    });
    door.close().await;
    log.close().await;
    served?;
    ended?;
    hops.map_or(Ok(()), |path| seen.save(&path))
}

/// What the bus's side for HTTP is told: what a file says, or nothing.
fn settings(folder: PathBuf, file: Option<&Path>) -> Result<tombolo_http::Settings> {
    let config = match file {
        Some(file) => serde_json::from_slice(&std::fs::read(file)?)?,
        None => tombolo_http::Config::default(),
    };
    let push = tombolo_http::push::Settings::new(config.push, config.webhooks);
    Ok(tombolo_http::Settings { folder, plain: config.plain, push, ..Default::default() })
}

/// Waits until the process that started this one closes its input, or is gone.
pub(crate) async fn input_ended() -> Result<()> {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while lines.next_line().await?.is_some() {}
    Ok(())
}
