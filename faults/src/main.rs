//! Does to real processes on the path whatever may happen to them, under load, and checks afterwards that nothing was
//! lost, doubled, reordered or silently skipped.
//!
//! `cargo xtask faults` runs it. The program starts itself as the bus, as a producer and as a consumer, each with a real
//! database; only processes that it started itself are signalled, by their id.

mod roles;
mod mutant;
mod process;
mod door;
mod hosts;
mod reader;
mod databases;
mod office;
mod mount;
mod load;
mod verify;
mod campaign;
mod kills;
mod pauses;
mod power;
mod full;
mod away;
mod cut_off;
mod outages;
mod copies;
mod poison;
mod rebuild;
mod dividing;
mod shop;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::databases::{BusKind, Ground, Kind};
use crate::mutant::Mutant;

/// Does to real processes on the path whatever may happen to them, and checks what is left.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    role: Option<Role>,
    /// How often each fault must land, instead of its own number.
    #[arg(long)]
    each: Option<u32>,
    /// Only the faults whose name contains this.
    #[arg(long)]
    only: Option<String>,
    /// Only power cuts, so many.
    #[arg(long, value_name = "CUTS", conflicts_with_all = ["each", "only"])]
    power: Option<u32>,
    /// Only the shop under `tombolo dev`, so many seconds, with a random fault every two.
    #[arg(long, value_name = "SECONDS", conflicts_with_all = ["each", "only", "power"])]
    shop: Option<u64>,
    /// How many orders gather while the bus is away.
    #[arg(long, value_name = "ORDERS", default_value_t = 1_000_000)]
    gathered: usize,
    /// Milliseconds between two orders of each writer, instead of 3, or 25 where each order has a letter: for a slow machine.
    #[arg(long, value_name = "MILLISECONDS")]
    pace: Option<u64>,
    /// The seed of every choice; printed, so that a run can be repeated.
    #[arg(long, default_value_t = 20_261_120)]
    seed: u64,
    /// The bus: that of this program, or a server of another engine, started for this run.
    #[arg(long, value_enum, default_value = "tombolo")]
    bus: BusKind,
    /// The database under both services: files, or a server, started for this run.
    #[arg(long, value_enum, default_value = "sqlite")]
    database: Kind,
    /// That under the producer, if it is another.
    #[arg(long, value_enum)]
    producer: Option<Kind>,
    /// That under the consumer, if it is another.
    #[arg(long, value_enum)]
    consumer: Option<Kind>,
    /// A deliberate fault in the processes, which the run must catch.
    #[cfg_attr(feature = "mutants", arg(long, value_enum))]
    #[cfg_attr(not(feature = "mutants"), arg(skip))]
    mutant: Option<Mutant>,
}

impl Arguments {
    async fn plan(self) -> process::Outcome<campaign::Plan> {
        let producer = self.producer.unwrap_or(self.database);
        let consumer = self.consumer.unwrap_or(self.database);
        Ok(campaign::Plan {
            ground: Ground::prepare(self.bus, producer, consumer).await?,
            each: self.power.or(self.each),
            only: if self.power.is_some() { Some("power cut".to_owned()) } else { self.only },
            gathered: self.gathered,
            pace: self.pace.map(Duration::from_millis),
            seed: self.seed,
            mutant: self.mutant,
        })
    }
}

#[derive(Subcommand)]
enum Role {
    /// The bus on a Unix socket (started by the program itself).
    #[command(hide = true)]
    Bus { folder: PathBuf, socket: PathBuf },
    /// The producer (started by the program itself).
    #[command(hide = true)]
    Producer,
    /// The consumer (started by the program itself).
    #[command(hide = true)]
    Consumer,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = Arguments::parse();
    match arguments.role.take() {
        Some(Role::Bus { folder, socket }) => roles::bus(&folder, &socket).await,
        Some(Role::Producer) => Ok(roles::producer().await?),
        Some(Role::Consumer) => Ok(roles::consumer().await?),
        None if let Some(seconds) = arguments.shop => shop::run(seconds, arguments.seed),
        None => {
            let plan = arguments.plan().await?;
            // Interrupted, it takes down what it has put up.
            tokio::select! {
                done = campaign::run(&plan) => done,
                _ = tokio::signal::ctrl_c() => Err("interrupted".into()),
            }
        }
    }
}
