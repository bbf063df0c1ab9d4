//! `shop-seed`: fills a running shop with made data, and looks whether its three answers agree.
//!
//! It comes in by the same doors as everybody: the services' routes. Users and products first, then orders under load,
//! with prices and titles changing in between; then it waits until the replica has everything, and holds the three
//! ways of asking against each other. Invariant: it ends well only if nothing was refused and all three agree.

mod made;
mod shop;
mod load;
mod check;
mod progress;

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use rand::SeedableRng;
use rand::rngs::StdRng;

use load::Load;
use made::Popularity;
use progress::count;
use shop::{Addresses, Shop};

/// Fill a running shop with made users, products and orders, and check that its three answers agree.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// How many users to register.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    users: u32,
    /// How many products to add.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    products: u32,
    /// How many orders to place.
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(0..=100_000_000))]
    orders: u32,
    /// How many requests are under way at once.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1_024))]
    concurrency: u16,
    /// At most so many orders in a second; as fast as the shop takes them if not given.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// The same number makes the same data again. Ids differ: the services choose them.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// How long the replica may take to have everything, in seconds.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    wait: u64,
    #[command(flatten)]
    addresses: Addresses,
}

#[tokio::main]
async fn main() -> ExitCode {
    match fill(&Options::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("shop-seed: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Returns whether everything went well; what did not is printed.
async fn fill(options: &Options) -> Result<bool, Box<dyn Error>> {
    let mut random = StdRng::seed_from_u64(options.seed);
    let shop = Shop::new(&options.addresses)?;
    let at_once = usize::from(options.concurrency);

    let people = made::people(&mut random, options.users);
    let users = load::create(&people, "users", at_once, |person| shop.register(person)).await?;
    let goods = made::goods(&mut random, options.products);
    let products = load::create(&goods, "products", at_once, |good| shop.add(good)).await?;

    let popularity = Popularity::new(users.len(), products.len())?;
    let steps = made::steps(&mut random, &popularity, options.orders);
    let load = Load { shop: &shop, users: &users, products: &products, at_once, rate: options.rate };
    let outcome = load.run(&steps).await;
    println!("{outcome}");

    let bound = Duration::from_secs(options.wait);
    let caught_up = check::replica_has(&shop, &outcome.accepted, bound).await;
    match &caught_up {
        Ok(took) => println!(
            "replica     has all {} orders, {:.2} s after the last answer",
            count(outcome.accepted.values().map(Vec::len).sum()),
            took.as_secs_f64()
        ),
        Err(behind) => println!("replica     {behind}"),
    }
    let sample = made::sample(&mut random, &users);
    let agreed = check::three_ways_agree(&shop, &sample, bound).await;
    match &agreed {
        Ok(()) => {
            println!("three ways  {} users asked: call, gather and replica answer the same", sample.len());
        }
        Err(difference) => println!("three ways  {difference}"),
    }
    Ok(outcome.is_clean() && caught_up.is_ok() && agreed.is_ok())
}
