//! Outages: a server of a database is killed and started again, or stopped for longer than a lease, under load.

use std::time::Duration;

use nix::sys::signal::Signal;
use rand::Rng;
use tokio::time::sleep;

use crate::campaign::{Stage, Tally};
use crate::load::Load;
use crate::process::{Outcome, Which};
use crate::verify;

/// How long the leases are here, and a server is stopped.
const LEASE: Duration = Duration::from_secs(1);
const STOPPED: Duration = Duration::from_secs(4);
/// How long everything goes on between two outages, at most.
const BETWEEN_MAX: Duration = Duration::from_secs(2);

/// Kills a server so often, then lets everything settle and checks it.
pub(crate) async fn kills(stage: Stage<'_>, times: u32) -> Outcome<Tally> {
    run(stage, times, true).await
}

/// Stops a server so often, then the same.
pub(crate) async fn pauses(stage: Stage<'_>, times: u32) -> Outcome<Tally> {
    run(stage, times, false).await
}

async fn run(stage: Stage<'_>, times: u32, is_kill: bool) -> Outcome<Tally> {
    let world = stage.world(&Which::ALL, Some(LEASE)).await?;
    let load = Load::start(&world, "key");
    let servers = stage.databases.ground.database_servers();
    let mut tally = Tally::default();
    while tally.landed < times {
        // The pause is the experiment: it decides where on the path the outage lands.
        sleep(BETWEEN_MAX.mul_f64(stage.random.random())).await;
        let server = servers[stage.random.random_range(0..servers.len())];
        tally.in_flight += u32::from(load.outstanding() > 0);
        if is_kill {
            server.kill().await?;
            server.restart().await?;
        } else {
            server.signal(Signal::SIGSTOP).await?;
            sleep(STOPPED).await;
            server.signal(Signal::SIGCONT).await?;
        }
        tally.landed += 1;
    }
    let acknowledged = load.stop().await;
    let events = verify::settled(&world, &acknowledged).await?.events;
    Ok(Tally { acknowledged: acknowledged.len(), events, ..tally })
}
