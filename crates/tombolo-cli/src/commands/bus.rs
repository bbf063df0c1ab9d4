//! `tombolo bus`: the embedded log of one machine, served over TCP and a Unix socket.
//!
//! Invariant: it listens only once the log is recovered, and ends only once the log is closed.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tombolo_bus::embedded::{Log, Options, Recovered};
use tombolo_bus::server::{Listen, Server};
use tracing_subscriber::EnvFilter;

use crate::arguments::Bus;
use crate::commands::say;
use crate::error::{Context, Result};
use crate::plan::check_free;

/// Serves until it is told to end.
pub(crate) async fn bus(arguments: Bus) -> Result<()> {
    trace();
    check_free(arguments.listen, "the bus")?;
    let (log, recovered) = Log::open(&arguments.data, Options::default())?;
    say(&told(&arguments, &recovered))?;
    let served = serve(&arguments, log.clone()).await;
    tombolo_bus::Bus::close(&*log).await;
    served
}

async fn serve(arguments: &Bus, log: Arc<Log>) -> Result<()> {
    let mut addresses = vec![tcp(arguments.listen)];
    addresses.extend(arguments.socket.clone().map(Listen::Unix));
    let shutdown = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context(|| "cannot listen for signals".into())?;
    let server = Server::bind(&addresses, log).await?;
    for address in server.addresses() {
        say(&format!("listening on {address}"))?;
    }
    let serving = server.serve(shutdown.clone());
    tokio::pin!(serving);
    tokio::select! {
        served = &mut serving => return Ok(served?),
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    say("ending")?;
    shutdown.cancel();
    Ok(serving.await?)
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
fn trace() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let coloured = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(coloured).with_writer(std::io::stderr).init();
}
