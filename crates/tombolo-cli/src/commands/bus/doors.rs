//! What the bus answers over HTTP, and by whom it may be called: the `[bus]` table of `--config`.
//!
//! Invariant: a file that cannot be read at the start ends the bus; one that cannot be read again changes nothing.

use std::path::Path;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tombolo_bus::Bus;
use tombolo_bus::server::{Certificate, Credentials, Seal};
use tombolo_http::{Config, Door, Problem, Settings, TlsTable, push};

use crate::arguments;
use crate::error::{Error, Result};

/// The keys of `[bus]` that are for the runner.
const OF_THE_RUNNER: [&str; 2] = ["url", "listen"];

/// The HTTP side of a bus.
pub(super) struct Doors {
    door: Door,
    credentials: Credentials,
    seal: Option<Seal>,
    config: Option<std::path::PathBuf>,
}

impl Doors {
    pub(super) async fn open(arguments: &arguments::Bus, bus: Arc<dyn Bus>) -> Result<Self> {
        let credentials = Credentials::default();
        let config = read(arguments.config.as_deref())?;
        let folder = folder(arguments.config.as_deref());
        credentials.replace(config.credentials(folder).map_err(refused)?);
        let seal = config.tls.as_ref().map(|table| seal(table, folder)).transpose()?;
        let settings = Settings {
            folder: arguments.data.join("http"),
            credentials: credentials.clone(),
            plain: config.plain,
            push: push::Settings::new(config.push, config.webhooks),
        };
        let door = Door::open(bus, settings).await.map_err(refused)?;
        Ok(Self { door, credentials, seal, config: arguments.config.clone() })
    }

    /// What seals connections over TCP, if something does.
    pub(super) fn seal(&self) -> Option<Seal> {
        self.seal.clone()
    }

    pub(super) fn credentials(&self) -> Credentials {
        self.credentials.clone()
    }

    pub(super) fn routes(&self) -> axum::Router {
        self.door.routes()
    }

    pub(super) async fn close(&self) {
        self.door.close().await;
    }

    /// Takes the credentials from the file again whenever the process is sent SIGHUP.
    pub(super) async fn read_again(&self, shutdown: CancellationToken) {
        let (Some(path), Ok(mut hangups)) = (self.config.as_deref(), signal(SignalKind::hangup())) else {
            return;
        };
        while shutdown.run_until_cancelled(hangups.recv()).await.flatten().is_some() {
            let again = read(Some(path)).and_then(|it| it.credentials(folder(Some(path))).map_err(refused));
            match again {
                Ok(credentials) => {
                    tracing::info!(config = %path.display(), count = credentials.len(), "the credentials were read again");
                    self.credentials.replace(credentials);
                }
                Err(error) => tracing::error!(%error, "the credentials stay as they were"),
            }
        }
    }
}

fn read(path: Option<&Path>) -> Result<Config> {
    let Some(path) = path else { return Ok(Config::default()) };
    let wrong = |found: &str| Error::usage(format!("{}: {found}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| wrong(&format!("cannot be read: {error}")))?;
    let mut whole: toml::Table = toml::from_str(&text).map_err(|error| wrong(&error.to_string()))?;
    let Some(toml::Value::Table(mut bus)) = whole.remove("bus") else { return Ok(Config::default()) };
    for key in OF_THE_RUNNER {
        bus.remove(key);
    }
    bus.try_into().map_err(|error| wrong(&format!("in the table [bus]: {error}")))
}

fn seal(table: &TlsTable, folder: &Path) -> Result<Seal> {
    let own = Certificate { chain: folder.join(&table.certificate), key: folder.join(&table.key) };
    Ok(Seal::open(own, table.clients.as_ref().map(|path| folder.join(path)))?)
}

/// Where the paths in a file begin.
fn folder(path: Option<&Path>) -> &Path {
    path.and_then(Path::parent).unwrap_or_else(|| Path::new(""))
}

fn refused(problem: Problem) -> Error {
    Error::usage(problem.detail().to_owned())
}
