//! What each command does, one file for each group.

pub(crate) mod dev;
pub(crate) mod orders;
pub(crate) mod logs;
pub(crate) mod bus;
pub(crate) mod gateway;
pub(crate) mod relay;
pub(crate) mod deliver;
pub(crate) mod archive;
pub(crate) mod topics;
pub(crate) mod verify;
pub(crate) mod copying;
pub(crate) mod subscriptions;
pub(crate) mod views;
mod asking;
pub(crate) mod dividing;
pub(crate) mod parked;
pub(crate) mod moving;
pub(crate) mod services;
pub(crate) mod propagation;
pub(crate) mod recover;
pub(crate) mod schema;
pub(crate) mod new;
pub(crate) mod doctor;

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tombolo_bus::{Archived, Bus, Identity};

use crate::arguments::Reached;
use crate::error::{Context, Error, Result};
use crate::folder::{Place, find_bus};
use crate::output::{self, without_password};

/// How long a bus may take to answer the first question.
const BUS_ANSWER_BOUND: Duration = Duration::from_secs(10);

/// The bus that a command is about, as an operator's tool sees it.
async fn reach(reached: &Reached) -> Result<Arc<dyn Bus>> {
    let url = match &reached.bus {
        Some(url) => url.clone(),
        None => match find_bus(reached.found.data.as_deref())? {
            Place::Runner(run) => run.bus,
            Place::Bus(url) => url,
        },
    };
    archived(connect(&url, &Identity::Operator).await?, reached.archive.as_deref()).await
}

/// A bus with its archive, if one is named.
async fn archived(bus: Arc<dyn Bus>, archive: Option<&str>) -> Result<Arc<dyn Bus>> {
    let Some(archive) = archive else { return Ok(bus) };
    Ok(Arc::new(Archived::new(bus, connect(archive, &Identity::Operator).await?)))
}

/// The bus at `url`, as `identity` sees it.
pub(crate) async fn connect(url: &str, identity: &Identity) -> Result<Arc<dyn Bus>> {
    let silent = |_| Error::not_running(format!("the bus at {} does not answer", without_password(url)));
    let connected = tombolo_bus::connect(url, identity);
    Ok(tokio::time::timeout(BUS_ANSWER_BOUND, connected).await.map_err(silent)??)
}

/// Who gives this command, for the record: `user@host`.
fn operator() -> String {
    let user = std::env::var("USER").unwrap_or_else(|_| "somebody".into());
    let host = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned());
    format!("{user}@{}", host.unwrap_or_else(|_| "somewhere".into()))
}

/// Prints a line, for people or scripts.
fn say(text: &str) -> Result<()> {
    output::print(text).context(|| "cannot write".into())
}

/// Prints a list.
fn show<const N: usize>(
    format: output::Format,
    header: [&str; N],
    rows: Vec<[String; N]>,
    json: &Value,
) -> Result<()> {
    match format {
        output::Format::Table => say(&output::table(header, rows)),
        output::Format::Json => say(&json.to_string()),
    }
}
