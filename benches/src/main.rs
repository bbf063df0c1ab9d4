//! The speed of Tombolo: every figure beside a yardstick that was measured in the same run.
//!
//! `cargo xtask bench` builds this in release and runs it. Each figure is a ratio, because the machine is never the
//! same: yardstick and subject take turns for several rounds, and the median of the rounds' ratios counts.
//!
//! Invariant: yardstick and subject write the same bytes, with the same durability, to the same disk.

mod append;
mod asking;
mod chain;
mod clock;
mod dev;
mod drain;
mod engines;
mod error;
mod flow;
mod gateway;
mod hops;
mod http;
mod idle;
mod observed;
mod poison;
mod push;
mod quantiles;
mod reading;
mod rebuild;
mod rounds;
mod scratch;
mod server;
mod table;
mod topic;
mod visible;
mod yardstick;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

use error::Result;
use scratch::Scratch;
use table::Row;

/// Measures, and prints a table.
#[derive(Parser)]
#[command(name = "cargo xtask bench", args_conflicts_with_subcommands = true)]
struct Arguments {
    /// Measure only this; may be given several times.
    #[arg(long, value_enum)]
    only: Vec<Figure>,
    /// How to print.
    #[arg(long, value_enum, default_value = "markdown")]
    format: Format,
    /// Where to put the files, on a disk; by default beside this program.
    #[arg(long)]
    folder: Option<PathBuf>,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Markdown,
    Json,
}

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Figure {
    /// Appending in process.
    Append,
    /// One append acknowledged.
    Single,
    /// Appending through the server.
    Server,
    /// Publishing over HTTP.
    Http,
    /// Pushing to subscribers over HTTP.
    Push,
    /// Reading back, in process and through the server.
    Read,
    /// From a commit to visible in another process's database.
    Visible,
    /// As many events as the whole path can take.
    Flow,
    /// A million rows that waited for the bus.
    Drain,
    /// A view from a million events.
    Rebuild,
    /// A gather from three services.
    Gather,
    /// Each engine as the bus, beside its bare client.
    Engines,
    /// PostgreSQL, NATS, PostgreSQL, beside the same by hand.
    Chain,
    /// One poisoned key among a thousand.
    Poison,
    /// What tracing costs.
    Observed,
    /// `tombolo dev` until the shop is ready.
    Dev,
    /// The shop when nobody does anything.
    Idle,
    /// The gateway beside nginx.
    Gateway,
}

/// The other processes of a measurement: this program, run again by itself.
#[derive(Subcommand)]
enum Role {
    /// The bus.
    #[command(name = "role-bus", hide = true)]
    Bus {
        #[arg(long)]
        log: PathBuf,
        #[arg(long)]
        socket: PathBuf,
        #[arg(long)]
        hops: Option<PathBuf>,
        /// What it is told of its side for HTTP: the `[bus]` table, as JSON.
        #[arg(long)]
        http: Option<PathBuf>,
    },
    /// The service that commits.
    #[command(name = "role-producer", hide = true)]
    Producer(ServiceFiles),
    /// The service that sees.
    #[command(name = "role-consumer", hide = true)]
    Consumer(ServiceFiles),
}

#[derive(clap::Args)]
struct ServiceFiles {
    #[arg(long)]
    socket: PathBuf,
    #[arg(long)]
    database: PathBuf,
    #[arg(long)]
    hops: PathBuf,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let ran = match arguments.role {
        None => measure(&arguments).await,
        Some(Role::Bus { log, socket, hops, http }) => server::run(log, socket, hops, http).await,
        Some(Role::Producer(files)) => visible::producer(files.socket, files.database, files.hops).await,
        Some(Role::Consumer(files)) => visible::consumer(files.socket, files.database, files.hops).await,
    };
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Prints what could be measured, whatever could not.
async fn measure(arguments: &Arguments) -> Result<()> {
    let scratch = Scratch::new(arguments.folder.as_deref())?;
    let wanted = |figure: &&Figure| arguments.only.is_empty() || arguments.only.contains(figure);
    let (mut rows, mut way, mut failed) = (Vec::new(), String::new(), Vec::new());
    for figure in Figure::value_variants().iter().filter(wanted) {
        eprintln!("bench: {figure:?} …");
        match one(*figure, &scratch, &mut way).await {
            Ok(measured) => {
                // At once, so that a run which is broken off has told what it measured.
                eprintln!("{}", table::markdown(&measured));
                rows.extend(measured);
            }
            Err(error) => failed.push(format!("{figure:?}: {error}")),
        }
    }
    print(arguments.format, &rows, &way)?;
    if failed.is_empty() { Ok(()) } else { Err(error::Error::new(failed.join("; "))) }
}

async fn one(figure: Figure, scratch: &Scratch, way: &mut String) -> Result<Vec<Row>> {
    match figure {
        Figure::Append => append::in_process(scratch).await,
        Figure::Single => append::single(scratch).await,
        Figure::Server => append::through_server(scratch).await,
        Figure::Http => http::measure(scratch).await,
        Figure::Push => push::measure(scratch).await,
        Figure::Read => reading::back(scratch).await,
        Figure::Visible => {
            let (rows, hops) = visible::measure(scratch).await?;
            *way = hops;
            Ok(rows)
        }
        Figure::Flow => flow::measure(scratch).await,
        Figure::Drain => drain::measure(scratch).await,
        Figure::Rebuild => rebuild::measure(scratch).await,
        Figure::Gather => asking::measure(scratch).await,
        Figure::Engines => engines::measure().await,
        Figure::Chain => chain::measure().await,
        Figure::Poison => poison::measure(scratch).await,
        Figure::Observed => flow::observed(scratch).await,
        Figure::Dev => dev::until_ready(scratch).await,
        Figure::Idle => idle::measure(scratch).await,
        Figure::Gateway => gateway::measure(scratch).await,
    }
}

fn print(format: Format, rows: &[Row], way: &str) -> Result<()> {
    match format {
        Format::Json => println!("{}", serde_json::to_string_pretty(rows)?),
        Format::Markdown if way.is_empty() => println!("{}", table::markdown(rows)),
        Format::Markdown => {
            println!("{}\n\nFrom commit to visible, hop by hop:\n\n{way}", table::markdown(rows));
        }
    }
    Ok(())
}
