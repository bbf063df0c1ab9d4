//! The consumer's database is away for a while: connections to a server break and are refused, a file of SQLite is locked by
//! another process. Its subscriptions wait; nothing counts as an attempt, and nothing is parked.

use std::time::Duration;

use tokio::time::sleep;

use crate::campaign::{Stage, Tally};
use crate::load::Load;
use crate::process::{Outcome, Which};
use crate::verify::{self, Broken};

/// How long it is away. A writer of SQLite waits five seconds for another process before it fails.
const AWAY: Duration = Duration::from_secs(12);
/// What a worker says when it counts an attempt against an event.
const COUNTED: &str = "could not be handled";
/// How long everything goes on in between.
const BETWEEN: Duration = Duration::from_secs(1);

/// Cuts it off so often under load, then lets everything settle and checks it.
pub(crate) async fn run(stage: Stage<'_>, times: u32) -> Outcome<Tally> {
    let world = stage.world(&Which::ALL, None).await?;
    let load = Load::start(&world, "key");
    let mut tally = Tally::default();
    while tally.landed < times {
        sleep(BETWEEN).await;
        let cut = stage.databases.cut_off(Which::Consumer).await?;
        sleep(AWAY).await;
        tally.in_flight += 1;
        cut.end().await?;
        tally.landed += 1;
    }
    let acknowledged = load.stop().await;
    let events = verify::settled(&world, &acknowledged).await?.events;
    if let Some(which) = Which::Consumer.replicas().iter().find(|which| world.has_said(**which, COUNTED)) {
        return Err(Broken(format!("{which:?} counted an attempt while its database was away")).into());
    }
    Ok(Tally { acknowledged: acknowledged.len(), events, note: "no attempt counted".to_owned(), ..tally })
}
