//! A full disk: under the bus, or under the producer's database. Nothing is acknowledged that is not kept, the full disk is
//! named, and everything goes on by itself when there is room.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::time::Instant;

use crate::campaign::{Stage, Tally};
use crate::load::{self, Load};
use crate::mount::Mount;
use crate::process::{Outcome, Which, World};
use crate::verify;

/// Who is there.
const CAST: &[Which] = &[Which::Bus, Which::Producer, Which::Consumer];
/// The disks.
const BUS_BYTES: u64 = 320 << 20;
const DATABASE_BYTES: u64 = 64 << 20;
/// What fills the bus's: so many orders of so many bytes.
const HEAP_ORDERS: usize = 8_000;
const HEAP_PAD: usize = 16 << 10;
/// What is asked of a write to fill a disk up, first and last.
const BALLAST_BYTES: (usize, usize) = (1 << 20, 1 << 9);

/// Fills the bus's disk. What the log has prepared it may still use; then it finds no room for more.
pub(crate) async fn of_bus(stage: Stage<'_>) -> Outcome<Tally> {
    let home = stage.folder.join(Which::Bus.home());
    let _mount = Mount::make(&home, BUS_BYTES)?;
    let world = stage.world(CAST, None).await?;
    let ballast = home.join("ballast");
    fill(&ballast)?;
    let load = Load::start(&world, "key");
    let mut acknowledged = load::heap(world.url(Which::Producer), HEAP_ORDERS, HEAP_PAD).await?;
    let named = world.until("the relay to name the full disk", async |world| {
        let relay = world.status(Which::Producer).await?.relay?;
        (relay.state.contains("full") || relay.state.contains("No space")).then_some(relay.state)
    });
    let named = named.await?;
    let in_flight = u32::from(verify::is_work_in_flight(&world, &load).await?);
    fs::remove_file(&ballast)?;
    let room = Instant::now();
    acknowledged.extend(load.stop().await);
    let events = verify::settled(&world, &acknowledged).await?.events;
    let note = format!(
        "settled {:.1} s after there was room; named \"{}\"",
        room.elapsed().as_secs_f64(),
        verify::short(&named)
    );
    Ok(Tally { landed: 1, in_flight, acknowledged: acknowledged.len(), events, note })
}

/// Fills the producer's disk so often, under load.
pub(crate) async fn of_database(stage: Stage<'_>, times: u32) -> Outcome<Tally> {
    let home = stage.folder.join(Which::Producer.home());
    let _mount = Mount::make(&home, DATABASE_BYTES)?;
    let world = stage.world(CAST, None).await?;
    let load = Load::start(&world, "key");
    let mut tally = Tally::default();
    let ballast = home.join("ballast");
    while tally.landed < times {
        tally.note = refused(&world, &load, &ballast).await?;
        tally.in_flight += u32::from(verify::is_work_in_flight(&world, &load).await?);
        tally.landed += 1;
        fs::remove_file(&ballast)?;
        let before = load.count();
        world.until("orders to be taken again", async |_| (load.count() > before).then_some(())).await?;
    }
    let acknowledged = load.stop().await;
    let events = verify::settled(&world, &acknowledged).await?.events;
    Ok(Tally {
        acknowledged: acknowledged.len(),
        events,
        note: format!("refused with {}", verify::short(&tally.note)),
        ..tally
    })
}

/// Fills the disk until an order is refused because of it; what the refusal says. The database goes on in what it has
/// already, and may give some back, so that the ballast has to grow.
async fn refused(world: &World<'_>, load: &Load, ballast: &Path) -> Outcome<String> {
    load.refused();
    world
        .until("an order to be refused because the disk is full", async |_| {
            fill(ballast).ok()?;
            load.refused().filter(|refused| refused.contains("full"))
        })
        .await
}

/// Writes until nothing more fits.
fn fill(ballast: &Path) -> Outcome<()> {
    let mut file = File::options().create(true).append(true).open(ballast)?;
    let mut bytes = BALLAST_BYTES.0;
    while bytes >= BALLAST_BYTES.1 {
        match file.write_all(&vec![1; bytes]).and_then(|()| file.sync_all()) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::StorageFull => bytes /= 2,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
