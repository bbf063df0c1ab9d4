//! Copies: a service's database or the bus's folder is replaced by an older copy, or a second copy of a service is started.
//! Each is named, nothing is passed over or published twice, and an operator's word ends it.

use std::fs;
use std::path::Path;

use crate::campaign::{Stage, Tally};
use crate::load::{self, Load};
use crate::process::{Outcome, Which, World};
use crate::verify::{self, Broken, Except};

/// Who is there.
const CAST: &[Which] = &[Which::Bus, Which::Producer, Which::Consumer];
/// Orders placed before a copy is taken, after it, and when the copy is in use.
const BEFORE: usize = 500;
const AFTER: usize = 1_000;
const LATER: usize = 200;

/// The producer's database is restored from an older copy, which does not know the last events on the bus.
pub(crate) async fn old_database(stage: Stage<'_>) -> Outcome<Tally> {
    let mut world = stage.world(CAST, None).await?;
    let mut orders = place(&world, BEFORE).await?;
    verify::settled(&world, &orders).await?;
    world.kill(Which::Producer).await?;
    stage.databases.copy().await?;
    world.spawn(Which::Producer, None).await?;
    world.ready(Which::Producer).await?;
    let forgotten = place(&world, AFTER).await?;
    verify::settled(&world, &[&orders[..], &forgotten].concat()).await?;

    world.kill(Which::Producer).await?;
    stage.databases.restore().await?;
    world.spawn(Which::Producer, None).await?;
    world.ready(Which::Producer).await?;
    let later = place(&world, LATER).await?;
    let named = halted(&world, Which::Producer).await?;
    world.decide(Which::Producer, "take-bus").await?;
    // The producer lost what it had forgotten, the bus and the view did not.
    orders.extend(later);
    let forgotten_count = forgotten.len();
    let checked = verify::settled_but(&world, &orders, &Except { forgotten, ..Except::default() }).await?;
    Ok(tally(orders.len() + forgotten_count, checked.events, &named))
}

/// The bus's folder is replaced by an older copy, which lacks the last events; then it is put right again.
pub(crate) async fn old_bus(stage: Stage<'_>) -> Outcome<Tally> {
    let mut world = stage.world(CAST, None).await?;
    let [home, old, new] = ["bus", "bus-old", "bus-new"].map(|name| stage.folder.join(name));
    let mut orders = place(&world, BEFORE).await?;
    verify::settled(&world, &orders).await?;
    world.kill(Which::Bus).await?;
    copy_folder(&home, &old)?;
    world.spawn(Which::Bus, None).await?;
    orders.extend(place(&world, AFTER).await?);
    verify::settled(&world, &orders).await?;

    // The producer starts anew too: a relay that leads would go on where the copy is not behind, and then publish there.
    world.kill(Which::Bus).await?;
    world.kill(Which::Producer).await?;
    fs::rename(&home, &new)?;
    fs::rename(&old, &home)?;
    for which in [Which::Bus, Which::Producer] {
        world.spawn(which, None).await?;
        world.ready(which).await?;
    }
    orders.extend(place(&world, LATER).await?);
    let producer = halted(&world, Which::Producer).await?;
    let stops = async |world: &World<'_>| world.stopped(&[Which::Consumer]).await;
    world.until("the consumer to stop by name", stops).await?;

    world.kill(Which::Bus).await?;
    fs::remove_dir_all(&home)?;
    fs::rename(&new, &home)?;
    world.spawn(Which::Bus, None).await?;
    world.ready(Which::Bus).await?;
    world.decide(Which::Producer, "resume").await?;
    for which in [Which::Producer, Which::Consumer] {
        world.kill(which).await?;
        world.spawn(which, None).await?;
    }
    world.all_ready().await?;
    let events = verify::settled(&world, &orders).await?.events;
    Ok(tally(orders.len(), events, &producer))
}

/// A second copy of the producer, with a copy of its database, is started beside it, under load.
pub(crate) async fn second_copy(stage: Stage<'_>) -> Outcome<Tally> {
    let mut world = stage.world(CAST, None).await?;
    let mut orders = place(&world, BEFORE).await?;
    verify::settled(&world, &orders).await?;
    world.kill(Which::Producer).await?;
    stage.databases.copy().await?;
    world.spawn(Which::Producer, None).await?;
    world.ready(Which::Producer).await?;
    let load = Load::start(&world, "key");
    orders.extend(place(&world, AFTER).await?);
    world.spawn(Which::CopiedProducer, None).await?;
    world.ready(Which::CopiedProducer).await?;
    load::heap(world.url(Which::CopiedProducer), LATER, 0).await?;
    let named = halted(&world, Which::CopiedProducer).await?;
    if let Some(relay) = world.status(Which::Producer).await.and_then(|status| status.relay)
        && relay.is_halted
    {
        return Err(Broken(format!("the original was halted by its copy: {}", relay.state)).into());
    }
    orders.extend(place(&world, LATER).await?);
    world.kill(Which::CopiedProducer).await?;
    orders.extend(load.stop().await);
    let events = verify::settled(&world, &orders).await?.events;
    Ok(tally(orders.len(), events, &named))
}

async fn place(world: &World<'_>, orders: usize) -> Outcome<Vec<String>> {
    load::heap(world.url(Which::Producer), orders, 0).await
}

/// Waits until the relay of a process is halted by name, and says how.
async fn halted(world: &World<'_>, which: Which) -> Outcome<String> {
    let halted = async |world: &World<'_>| {
        let relay = world.status(which).await?.relay?;
        relay.is_halted.then_some(relay.state)
    };
    world.until("the relay to be halted", halted).await
}

fn tally(acknowledged: usize, events: usize, named: &str) -> Tally {
    Tally {
        landed: 1,
        in_flight: 1,
        acknowledged,
        events,
        note: format!("named \"{}\"", verify::short(named)),
    }
}

fn copy_folder(from: &Path, to: &Path) -> Outcome<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let (entry, to) = (entry?, to);
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}
