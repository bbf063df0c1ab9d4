//! Power cuts: the bus, the producer and the consumer are on a machine each, one or more of which lose their power at a
//! random moment under load. What was not synced is gone; then they start again.
//!
//! Invariant: whatever was acknowledged before the cut was synced, or this finds out.

use std::time::Duration;

use nix::sys::signal::Signal;
use rand::Rng;
use tokio::time::sleep;

use crate::campaign::{Stage, Tally};
use crate::load::Load;
use crate::mount::{self, Mount};
use crate::process::{Outcome, Which, World};
use crate::verify;

/// Who is there.
const CAST: &[Which] = &[Which::Bus, Which::Producer, Which::SecondProducer, Which::Consumer];
/// The machines.
const HOMES: [&str; 3] = ["bus", "orders", "history"];
/// How long the load goes on before a cut, at least and at most.
const BEFORE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(1_000));

/// Cuts so often; after each cut everything settles and is checked.
pub(crate) async fn run(stage: Stage<'_>, cuts: u32) -> Outcome<Tally> {
    let mounts = HOMES.map(|home| Mount::make(&stage.folder.join(home), mount::BYTES));
    let [bus, orders, history] = mounts;
    let machines = [bus?, orders?, history?];
    let mut world = stage.world_with_letters(CAST, None).await?;
    let mut tally = Tally::default();
    let mut acknowledged = Vec::new();
    let mut lost = [0; HOMES.len()];
    while tally.landed < cuts {
        let load = Load::start(&world, &format!("key-{}-", tally.landed));
        sleep(stage.random.random_range(BEFORE.0..BEFORE.1)).await;
        // At least one of them, each as likely as not.
        let chosen: u32 = stage.random.random_range(1..1 << HOMES.len());
        let dark: Vec<usize> = (0..HOMES.len()).filter(|place| chosen >> place & 1 == 1).collect();
        tally.in_flight += u32::from(load.outstanding() > 0);
        if stage.random.random_bool(0.5) {
            stop(&dark, &world).await?;
        }
        cut(&dark, &machines, &mut world).await?;
        dark.iter().for_each(|&place| lost[place] += 1);
        tally.landed += 1;
        world.all_ready().await?;
        acknowledged.extend(load.stop().await);
        tally.events = verify::settled(&world, &acknowledged).await?.events;
    }
    let [bus, orders, history] = lost;
    let note = format!("the bus {bus} times, the producer {orders}, the consumer {history}");
    Ok(Tally { acknowledged: acknowledged.len(), note, ..tally })
}

/// Everybody on these machines.
fn on(dark: &[usize]) -> impl Iterator<Item = Which> {
    CAST.iter().copied().filter(|which| dark.iter().any(|&place| HOMES[place] == which.home()))
}

/// Stops the processes where they are, so that nobody hears of the disk's end: a machine without power says nothing. Not
/// stopped, they have a moment in which every sync fails, and may say so.
async fn stop(dark: &[usize], world: &World<'_>) -> Outcome<()> {
    for which in on(dark) {
        world.signal(which, Signal::SIGSTOP).await?;
    }
    for which in on(dark) {
        world.until_stopped(which).await?;
    }
    Ok(())
}

/// Cuts the power of some machines, kills what ran there, and starts it again on what is left.
async fn cut(dark: &[usize], machines: &[Mount; HOMES.len()], world: &mut World<'_>) -> Outcome<()> {
    for &place in dark {
        machines[place].cut()?;
    }
    for which in on(dark) {
        world.kill(which).await?;
    }
    for &place in dark {
        machines[place].restore()?;
    }
    for which in on(dark) {
        world.spawn(which, None).await?;
    }
    Ok(())
}
