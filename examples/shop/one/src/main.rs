//! The shop as one program: the monolith that it could have come from, and can become again.
//!
//! It starts the four services, none of which knows it, on one embedded bus in this process; each has its own database and
//! port, as `tombolo.toml` says, in the same data folder as under `tombolo dev`. So one can go from four processes to one and
//! back, on the same data. It serves its bus on the folder's socket, so the commands that ask the bus work as before.
//!
//! What differs: a crash ends all four, and none of them can be stopped, replaced or scaled by itself; `tombolo status`, `stop`
//! and `start` need a runner, and there is none. What the manifest says in `env`, this program takes from its own environment;
//! without `SHOP_SMTP` no confirmations are sent, and they are once `orders` runs with it again.
//!
//! Invariant: nobody else works in the data folder meanwhile, and the bus is closed last.

mod folder;
mod manifest;
mod started;

use std::io::IsTerminal;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use futures_util::future::{join_all, select_all};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tombolo::bus::{Bus, Listen, Log, Options, Server};
use tombolo::documents::Documents;
use tombolo::sqlite::Sqlite;
use tombolo::{Database, Running, Service, Settings};
use tracing_subscriber::EnvFilter;

use folder::DataFolder;
use manifest::Manifest;
use started::Started;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Runs the shop's four services in one process.
#[derive(Parser)]
struct Arguments {
    /// The folder of the shop's tombolo.toml.
    #[arg(default_value = "examples/shop")]
    place: PathBuf,
    /// The data folder; `.tombolo` beside the manifest unless another is given.
    #[arg(long)]
    data: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    log_to_stderr();
    match run(&Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shop-one: {error}");
            ExitCode::FAILURE
        }
    }
}

/// As the services do it when each is a program; `RUST_LOG` says how much.
fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let is_terminal = std::io::stderr().is_terminal();
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    subscriber.with_ansi(is_terminal).with_target(false).init();
}

async fn run(arguments: &Arguments) -> Outcome<()> {
    let manifest = Manifest::read(&arguments.place)?;
    let beside = arguments.place.join(".tombolo");
    let folder = DataFolder::lock(arguments.data.as_deref().unwrap_or(&beside))?;
    let (log, _) = Log::open(&folder.bus(), Options::default())?;
    let served = serve(&manifest, &folder, &log).await;
    log.close().await;
    served
}

/// Serves the bus, and on it the services, until the process is told to end.
async fn serve(manifest: &Manifest, folder: &DataFolder, log: &Arc<Log>) -> Outcome<()> {
    let server = Server::bind(&[folder.listen()], Arc::clone(log) as Arc<dyn Bus>).await?;
    let addresses: Vec<String> = server.addresses().iter().map(Listen::to_string).collect();
    let stop = CancellationToken::new();
    let bus = async { Ok(server.serve(stop.clone()).await?) };
    let services = async {
        let outcome = serve_shop(manifest, folder, log, &addresses.join(", ")).await;
        stop.cancel();
        outcome
    };
    // A bus that can no longer be served ends the services, too.
    tokio::try_join!(bus, services).map(|_| ())
}

async fn serve_shop(manifest: &Manifest, folder: &DataFolder, log: &Arc<Log>, bus: &str) -> Outcome<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let start = Start { manifest, log };
    let sqlite = |name: &str| Sqlite::open(folder.database(name));
    let users = shop_users::config(&folder.database("users"))?;
    let products = Documents::open(folder.documents("products"))?;
    // Each on its own database.
    let mut running = vec![
        start.service("users", shop_users::service(sqlite("users")?, users)?).await?,
        start.service("products", shop_products::service(products)).await?,
        start.service("orders", shop_orders::service(sqlite("orders")?)?).await?,
        start.service("order-history", shop_order_history::service(sqlite("order-history")?)?).await?,
    ];
    println!("bus            {bus}\nready, in one process");
    let ended = tokio::select! {
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
        (failed, ..) = select_all(running.iter_mut().map(|service| Box::pin(service.failed()))) => failed,
    };
    join_all(running.into_iter().map(Started::shutdown)).await;
    Ok(ended?)
}

/// What every service is started with.
struct Start<'s> {
    manifest: &'s Manifest,
    log: &'s Arc<Log>,
}

impl Start<'_> {
    async fn service<D>(&self, name: &str, service: Service<D>) -> Outcome<Started>
    where
        D: Database,
        Running<D>: Into<Started>,
    {
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, self.manifest.port(name)?));
        // The number of the one replica that `tombolo dev` runs, so that leases change hands at once.
        let settings = Settings { listen: listen.to_string(), replica: Some(1), ..Settings::default() };
        let service = service.bus(Arc::clone(self.log) as Arc<dyn Bus>).start(settings).await?;
        println!("{name:<14} {}", service.url);
        Ok(service.into())
    }
}
