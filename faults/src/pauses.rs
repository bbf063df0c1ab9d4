//! Pauses: a process is stopped (SIGSTOP) for longer than its leases last, at a barrier or at a random moment, while a
//! second replica of its service goes on; then it is let go on, and must find out that it was replaced.

use std::time::Duration;

use nix::sys::signal::Signal;
use rand::Rng;
use tokio::time::{sleep, timeout};

use crate::campaign::{Stage, Tally};
use crate::kills::{load_for, passes_max};
use crate::process::{At, Outcome, Which, World, holds_all, leads};
use crate::verify;

/// How long the leases are here.
const LEASE: Duration = Duration::from_secs(1);
/// How long a pause is beyond that, at least and at most.
const BEYOND: (Duration, Duration) = (Duration::from_millis(200), Duration::from_millis(1_200));
/// How long a replacement is waited for, further on. SQLite has none for who was stopped in a transaction.
const REPLACED_BOUND: Duration = Duration::from_secs(4);
/// How long a process may take to come to its barrier, and how many are tried.
const STOP_BOUND: Duration = Duration::from_secs(10);
const STOPS_TRIED_MAX: u32 = 5;
/// How long everything goes on between two pauses, at most.
const BETWEEN_MAX: Duration = Duration::from_millis(500);

/// Pauses so often at one place, then lets everything settle and checks it.
pub(crate) async fn run(stage: Stage<'_>, barrier: Option<&str>, pauses: u32) -> Outcome<Tally> {
    let mut world = stage.world_with_letters(&Which::ALL, Some(LEASE)).await?;
    let (load, _operators) = load_for(barrier, &world);
    let mut tally = Tally::default();
    let mut replaced = 0;
    while tally.landed < pauses {
        let which = match barrier {
            Some(barrier) => stop_at(barrier, &mut world, stage.random).await?,
            None => stop_somebody(&world, stage.random).await?,
        };
        // The pause is the experiment: the lease ends meanwhile.
        sleep(LEASE + stage.random.random_range(BEYOND.0..BEYOND.1)).await;
        replaced += u32::from(is_replaced_soon(&world, which).await);
        tally.in_flight += u32::from(verify::is_work_in_flight(&world, &load).await?);
        world.signal(which, Signal::SIGCONT).await?;
        tally.landed += 1;
        sleep(BETWEEN_MAX.mul_f64(stage.random.random())).await;
    }
    let acknowledged = load.stop().await;
    let checked = verify::settled(&world, &acknowledged).await?;
    let note = format!("{replaced} replaced meanwhile");
    Ok(Tally { acknowledged: acknowledged.len(), events: checked.events, note, ..tally })
}

/// Lets the process that will come to the barrier run until it stops there. Who was slow to start again may have been
/// replaced, and never comes there; then it is the other's turn.
async fn stop_at(barrier: &str, world: &mut World<'_>, random: &mut impl Rng) -> Outcome<Which> {
    for _ in 0..STOPS_TRIED_MAX {
        let which = match Which::of(barrier) {
            Which::Producer => world.until_leader(Which::Producer.replicas()).await?,
            Which::Consumer => world.until_holder(Which::Consumer.replicas()).await?,
            which => which,
        };
        world.kill(which).await?;
        let passes = random.random_range(1..=passes_max(barrier));
        world.spawn(which, Some(At::Stop(&format!("{barrier}:{passes}")))).await?;
        if let Ok(stopped) = timeout(STOP_BOUND, world.until_stopped(which)).await {
            return stopped.map(|()| which);
        }
        // It may still come there, and would then stand still for ever.
        world.kill(which).await?;
        world.spawn(which, None).await?;
    }
    Err(format!("nobody came to {barrier} to stop there").into())
}

/// Stops one of them at a random moment.
async fn stop_somebody(world: &World<'_>, random: &mut impl Rng) -> Outcome<Which> {
    let which = Which::ALL[random.random_range(0..Which::ALL.len())];
    world.signal(which, Signal::SIGSTOP).await?;
    world.until_stopped(which).await?;
    Ok(which)
}

/// Waits a while until another replica does what this one did, and says whether one does.
async fn is_replaced_soon(world: &World<'_>, which: Which) -> bool {
    let replaced = async |world: &World<'_>| is_replaced(world, which).await.then_some(());
    which.replicas().len() > 1
        && timeout(REPLACED_BOUND, world.until("a replacement", replaced)).await.is_ok()
}

/// Whether another replica does what this one did.
async fn is_replaced(world: &World<'_>, which: Which) -> bool {
    let is_at_work = if which.home() == "orders" { leads } else { holds_all };
    for &other in which.replicas().iter().filter(|&&other| other != which) {
        if world.status(other).await.is_some_and(|status| is_at_work(&status)) {
            return true;
        }
    }
    false
}
