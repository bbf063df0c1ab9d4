//! `tombolo bus`: the embedded log of one machine, served over TCP and a Unix socket.
//!
//! Invariant: it listens only once the log is recovered, and ends only once the log is closed.

mod doors;
mod metrics;

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tombolo_bus::embedded::{Log, Options, Recovered};
use tombolo_bus::server::{Listen, Seal, Server};
use tracing_subscriber::EnvFilter;

use crate::arguments::Bus;
use crate::commands::bus::doors::Doors;
pub(super) use crate::commands::bus::metrics::CONTENT_TYPE;
use crate::commands::bus::metrics::Metrics;
use crate::commands::say;
use crate::error::{Context, Result};
use crate::plan::check_free;

/// Serves until it is told to end.
pub(crate) async fn bus(arguments: Bus) -> Result<()> {
    trace();
    check_free(arguments.listen, "the bus")?;
    let (log, recovered) = Log::open(&arguments.data, Options::default())?;
    say(&told(&arguments, &recovered))?;
    let served = Box::pin(serve(&arguments, log.clone())).await;
    tombolo_bus::Bus::close(&*log).await;
    served
}

async fn serve(arguments: &Bus, log: Arc<Log>) -> Result<()> {
    let mut addresses = vec![tcp(arguments.listen)];
    addresses.extend(arguments.socket.clone().map(Listen::Unix));
    let shutdown = CancellationToken::new();
    let ended = end_on_signal(shutdown.clone(), Some("ending"))?;
    let server = Server::bind(&addresses, log.clone()).await?;
    let doors = Doors::open(arguments, log.clone()).await?;
    let seal = doors.seal();
    let server = server.with_credentials(doors.credentials()).beside(doors.routes()).sealed_by(seal.clone());
    for address in server.addresses() {
        say(&format!("listening on {address}"))?;
    }
    let metrics = match arguments.metrics {
        Some(listen) => Some(Metrics::bind(listen, log).await?),
        None => None,
    };
    if let Some(metrics) = &metrics {
        say(&format!("metrics on {}", metrics.url()?))?;
    }
    let served = async { Ok(server.serve(shutdown.clone()).await?) };
    let reading = async {
        let following = shutdown.run_until_cancelled(followed(seal));
        tokio::join!(doors.read_again(shutdown.clone()), following);
        Ok(())
    };
    // Whichever fails first ends the others.
    let all = async { tokio::try_join!(served, measured(metrics, shutdown.clone()), reading) };
    tokio::pin!(ended);
    let outcome = {
        tokio::pin!(all);
        tokio::select! {
            outcome = &mut all => outcome.map(drop),
            () = &mut ended => all.await.map(drop),
        }
    };
    doors.close().await;
    outcome
}

/// Keeps to the files of a seal, if there is one.
async fn followed(seal: Option<Seal>) {
    if let Some(seal) = seal {
        seal.follow().await;
    }
}

async fn measured(metrics: Option<Metrics>, shutdown: CancellationToken) -> Result<()> {
    match metrics {
        Some(metrics) => metrics.serve(shutdown).await,
        None => Ok(()),
    }
}

/// Cancels the token when the process is told to end, after some last words.
pub(super) fn end_on_signal(
    shutdown: CancellationToken,
    words: Option<&'static str>,
) -> Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context(|| "cannot listen for signals".into())?;
    let mut interrupt = signal(SignalKind::interrupt()).context(|| "cannot listen for signals".into())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        // Its reader may have gone already.
        drop(words.map(say));
        shutdown.cancel();
    })
}

fn tcp(listen: SocketAddr) -> Listen {
    let host = match listen {
        SocketAddr::V4(address) => address.ip().to_string(),
        SocketAddr::V6(address) => format!("[{}]", address.ip()),
    };
    Listen::Tcp { host, port: listen.port() }
}

/// What opening the log found, for people.
fn told(arguments: &Bus, recovered: &Recovered) -> String {
    let Recovered { segments, events, cut, .. } = recovered;
    let found =
        format!("the log in {} holds {events} events in {segments} segments", arguments.data.display());
    match cut {
        None => found,
        Some(cut) => format!(
            "{found}; the last write had been interrupted: {} bytes after {} of {} were cut off, none of them acknowledged",
            cut.bytes, cut.offset, cut.file
        ),
    }
}

/// The bus's own log lines go to the standard error; `RUST_LOG` says how many.
pub(super) fn trace() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let coloured = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(coloured).with_writer(std::io::stderr).init();
}
