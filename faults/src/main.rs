//! Kills real processes at every barrier of the path and at random moments, under load, and checks afterwards that
//! nothing was lost, doubled, reordered or silently skipped.
//!
//! `cargo xtask faults` runs it. The program starts itself as the bus, as a producer and as a consumer, each with a real
//! database; only processes that it started itself are killed, by their id.

mod roles;
mod process;
mod databases;
mod load;
mod verify;
mod campaign;

use clap::{Parser, Subcommand, ValueEnum};

use crate::databases::Ground;

/// Kills real processes on the path, and checks what is left.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    role: Option<Role>,
    /// Kills that must land at each barrier.
    #[arg(long, default_value_t = 20)]
    each: u32,
    /// Kills at random moments, of random processes.
    #[arg(long, default_value_t = 60)]
    random: u32,
    /// The seed of every choice; printed, so that a run can be repeated.
    #[arg(long, default_value_t = 20_261_120)]
    seed: u64,
    /// Only this barrier.
    #[arg(long)]
    only: Option<String>,
    /// The database under both services.
    #[arg(long, value_enum, default_value = "sqlite")]
    database: Kind,
    /// The server for `--database postgres`, on which the user may create databases.
    #[arg(long, value_name = "URL", env = "TOMBOLO_TEST_POSTGRES", hide_env_values = true)]
    postgres: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Sqlite,
    Postgres,
}

impl Arguments {
    fn ground(&self) -> process::Outcome<Ground> {
        match (self.database, &self.postgres) {
            (Kind::Sqlite, _) => Ok(Ground::Files),
            (Kind::Postgres, Some(url)) => Ok(Ground::Server(Box::new(url.parse()?))),
            (Kind::Postgres, None) => Err(
                "--database postgres needs a server: give --postgres URL or TOMBOLO_TEST_POSTGRES; `cargo xtask services start` starts one"
                    .into(),
            ),
        }
    }
}

#[derive(Subcommand)]
enum Role {
    /// The bus on a Unix socket (started by the program itself).
    #[command(hide = true)]
    Bus { folder: String },
    /// The producer (started by the program itself).
    #[command(hide = true)]
    Producer,
    /// The consumer (started by the program itself).
    #[command(hide = true)]
    Consumer,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    match arguments.role {
        Some(Role::Bus { folder }) => roles::bus(&folder).await,
        Some(Role::Producer) => Ok(roles::producer().await?),
        Some(Role::Consumer) => Ok(roles::consumer().await?),
        None => {
            let plan = campaign::Plan {
                ground: arguments.ground()?,
                each: arguments.each,
                random: arguments.random,
                seed: arguments.seed,
                only: arguments.only,
            };
            campaign::run(plan).await
        }
    }
}
