//! `tombolo relay`: the relay of a service whose programs know nothing of Tombolo but a table of their own database.
//!
//! It is a service without anything of its own, so there is one relay only: with its leases, epochs, recovery, metrics, and
//! the operator's commands. Several of it may run, and one beside a service in Rust: one leads, the others wait.
//!
//! Invariant: it makes no table; what is missing is said by name.

use tokio_util::sync::CancellationToken;
use tombolo::settings::Secret;
use tombolo::{Service, Settings};
use tombolo_db::{Database, Outbox};
use tombolo_event::key::PARTITIONS_DEFAULT;
use tombolo_event::operator::OPERATOR_TOKEN;
use uuid::Uuid;

use crate::arguments::{OfDatabase, Relay};
use crate::commands::bus::{end_on_signal, trace};
use crate::commands::say;
use crate::commands::schema::{Opened, checked};
use crate::error::{Error, Kind, Result, with_causes};
use crate::output::without_password;

/// Ships until it is told to end.
pub(crate) async fn relay(arguments: Relay) -> Result<()> {
    trace();
    let database = OfDatabase::from(&arguments.database);
    let opened = Opened::of(&database).await?;
    if let Some(why) = opened.without_sql() {
        return Err(Error::usage(format!(
            "{why}, so other programs cannot publish there; expected sqlite:PATH, postgres://… or mysql://…"
        )));
    }
    checked(&database).await?;
    match opened {
        Opened::Sqlite(database) => ship(database, arguments).await,
        Opened::Postgres(database) => ship(database, arguments).await,
        Opened::Mysql(database) => ship(database, arguments).await,
        Opened::Documents(database) => ship(database, arguments).await,
        #[cfg(feature = "mongodb")]
        Opened::Mongodb(database) => ship(database, arguments).await,
    }
}

async fn ship<D: Database>(database: D, arguments: Relay) -> Result<()> {
    let shutdown = CancellationToken::new();
    let ended = end_on_signal(shutdown, Some("ending"))?;
    let partitions = match arguments.partitions {
        Some(partitions) => partitions,
        None => partitions(&database).await,
    };
    let Relay { service, bus, .. } = &arguments;
    let relaying = Service::new(service.as_str(), database).partitions(partitions);
    let relaying = relaying.foreign_outbox(arguments.types.clone(), arguments.notify);
    let mut running = relaying.start(settings(&arguments)).await?;
    let told = format!(
        "ships what is published in the database of service {service} to {}; metrics on {}/metrics",
        without_password(bus),
        running.url
    );
    say(&told)?;
    let done = tokio::select! {
        () = ended => Ok(()),
        failed = running.failed() => failed.map_err(Error::from),
    };
    running.shutdown().await;
    done
}

/// As many as the database has, if it is somebody's already.
async fn partitions(database: &impl Outbox) -> u32 {
    let standing = database.standing(Uuid::nil()).await;
    standing.map_or(PARTITIONS_DEFAULT, |standing| standing.generations.present())
}

fn settings(arguments: &Relay) -> Settings {
    let token = std::env::var(OPERATOR_TOKEN).ok().filter(|token| !token.is_empty());
    Settings {
        bus: arguments.bus.clone(),
        archive: arguments.archive.clone(),
        listen: arguments.listen.to_string(),
        replica: Some(arguments.replica),
        operator_token: token.map(Secret),
        schema: tombolo_db::Schema::Check,
        ..Settings::default()
    }
}

impl From<tombolo::Error> for Error {
    fn from(error: tombolo::Error) -> Self {
        use tombolo::Kind as Of;
        let kind = match error.kind() {
            Of::Wiring | Of::Settings => Kind::Usage,
            Of::DatabaseAway | Of::BusAway => Kind::NotRunning,
            _ => Kind::Failed,
        };
        Self::new(kind, with_causes(&error))
    }
}
