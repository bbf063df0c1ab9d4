//! A random fault every two seconds, while customers go on: a process is killed, paused or stopped, and comes back.
//!
//! `cargo xtask faults -- --shop 600` does it for ten minutes.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio::time::{Instant, interval, interval_at};

use crate::fold::assert_all_agree;
use crate::kills::Customers;
use crate::mails::assert_each_order_is_confirmed_once;
use crate::running::{SERVICES, Shop};

/// How long it goes on, and what decides everything that is random, unless the environment says otherwise.
const SECONDS: (&str, u64) = ("TOMBOLO_SHOP_FAULTS_SECONDS", 20);
const SEED: (&str, u64) = ("TOMBOLO_SHOP_FAULTS_SEED", 20_261_121);
/// Who is struck: all but the store of the mails, which has no disk and only looks on.
const STRUCK: [&str; 5] = ["users", "products", "orders", "order-history", "bus"];
/// How often something is chosen that may be down already.
const TRIES_MAX: u32 = 20;
/// Between two faults.
const EVERY: Duration = Duration::from_secs(2);
/// How long a paused process stands still, at least and at most: some for longer than a lease.
const PAUSE: (Duration, Duration) = (Duration::from_millis(300), Duration::from_secs(14));
/// How long a stopped service stays away, at least and at most.
const AWAY: (Duration, Duration) = (Duration::from_millis(300), Duration::from_secs(6));
/// Between two orders of a customer, at least.
const PACE: Duration = Duration::from_millis(100);
/// So many accounts for each ten seconds, so that no account has too many orders for one answer.
const ACCOUNTS_PER_TEN_SECONDS: u64 = 3;

/// What is not as it should be now.
#[derive(Default)]
struct Faults {
    paused: BTreeSet<i32>,
    stopped: BTreeSet<&'static str>,
    landed: BTreeMap<&'static str, u32>,
}

/// Something that will be over.
enum Over {
    Paused(i32),
    Stopped(&'static str),
}

impl Faults {
    /// One fault, somewhere; its end, if it has one.
    fn strike<'a>(&mut self, shop: &'a Shop, random: &mut StdRng) -> Option<BoxFuture<'a, Over>> {
        (0..TRIES_MAX).find_map(|_| self.try_to_strike(shop, random)).flatten()
    }

    /// None if what was chosen is down already.
    fn try_to_strike<'a>(
        &mut self,
        shop: &'a Shop,
        random: &mut StdRng,
    ) -> Option<Option<BoxFuture<'a, Over>>> {
        let name = *STRUCK.choose(random).unwrap();
        let pids = shop.pids_of(name);
        let free: Vec<i32> = pids.iter().copied().filter(|pid| !self.paused.contains(pid)).collect();
        let pid = *free.choose(random).filter(|_| !self.stopped.contains(name))?;
        let (pause, away) = (random.random_range(PAUSE.0..PAUSE.1), random.random_range(AWAY.0..AWAY.1));
        let (fault, end): (_, Option<BoxFuture<'a, Over>>) = match random.random_range(0..3) {
            0 if shop.signal(pid, Signal::SIGKILL) => ("kill", None),
            1 if shop.signal(pid, Signal::SIGSTOP) => {
                self.paused.insert(pid);
                ("pause", Some(Box::pin(go_on(shop, pid, pause))))
            }
            // Who is paused cannot be told to stop.
            2 if free.len() == pids.len() => {
                self.stopped.insert(name);
                ("stop", Some(Box::pin(stop_and_start(shop, name, away))))
            }
            _ => return None,
        };
        *self.landed.entry(fault).or_default() += 1;
        Some(end)
    }

    fn over(&mut self, over: Over) {
        match over {
            Over::Paused(pid) => self.paused.remove(&pid),
            Over::Stopped(name) => self.stopped.remove(name),
        };
    }
}

async fn go_on(shop: &Shop, pid: i32, after: Duration) -> Over {
    passed(after).await;
    shop.signal(pid, Signal::SIGCONT);
    Over::Paused(pid)
}

async fn stop_and_start(shop: &Shop, name: &'static str, after: Duration) -> Over {
    shop.tombolo(&["stop", name]).await;
    passed(after).await;
    shop.tombolo(&["start", name]).await;
    Over::Stopped(name)
}

/// How long something lasts is the experiment here; nothing is waited for.
async fn passed(after: Duration) {
    interval_at(Instant::now() + after, EVERY).tick().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "slow: a fault every two seconds, for as long as TOMBOLO_SHOP_FAULTS_SECONDS says (20 s)"]
async fn with_a_random_fault_every_two_seconds_every_view_ends_as_the_fold_of_its_topics() {
    let said = |(name, default): (&str, u64)| env::var(name).map_or(default, |said| said.parse().unwrap());
    let (seconds, seed) = (said(SECONDS), said(SEED));
    eprintln!("{seconds} s, seed {seed}");
    let shop = Shop::start_with(2).await;
    let accounts = (seconds * ACCOUNTS_PER_TEN_SECONDS).div_ceil(10).max(5);
    let customers = Customers::of(&shop, accounts as usize, PACE).await;
    let mut random = StdRng::seed_from_u64(seed);
    let mut faults = Faults::default();
    let struck = async {
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut ticks = interval(EVERY);
        let mut lasting = FuturesUnordered::new();
        while Instant::now() < end {
            tokio::select! {
                _ = ticks.tick() => lasting.extend(faults.strike(&shop, &mut random)),
                Some(over) = lasting.next() => faults.over(over),
            }
        }
        // Everything comes back, whatever was still to last.
        while let Some(over) = lasting.next().await {
            faults.over(over);
        }
        for service in SERVICES {
            shop.until_ready(service).await;
        }
        customers.stop.cancel();
    };
    let (answered, ()) = tokio::join!(customers.all(), struck);
    let total: u32 = faults.landed.values().sum();
    assert!(u64::from(total) >= seconds / 4, "only {total} faults landed in {seconds} s");
    assert_all_agree(&shop, &answered).await;
    assert_each_order_is_confirmed_once(&shop).await;
    eprintln!("{} orders answered 201 under {total} faults: {:?}", answered.len(), faults.landed);
    shop.end().await;
}
