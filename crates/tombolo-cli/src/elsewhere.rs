//! What a run uses and somebody else runs: its bus, and the servers of its services' databases. Reached once, before anything
//! starts, so that a mistake in an address is said here and not by every service over and over.
//!
//! Between the plan and the runner. Invariant: what cannot be used ends the command with one message for each, which says whose it
//! is, where, and why, and shows no password; a database that is there is not touched.

use futures_util::future::join_all;
use tombolo_bus::Identity;
use tombolo_db::{mysql, postgres};

use crate::commands::connect;
use crate::error::{Error, Kind, Result};
use crate::output::without_password;
use crate::plan::Plan;

/// Buses that exist in one process only, by the schemes of their URLs.
const IN_ONE_PROCESS: [&str; 2] = ["memory:", "file:"];

/// Reaches the bus and the servers, and makes the databases on them that are not there.
pub(crate) async fn reach(plan: &Plan) -> Result<()> {
    let bus = async {
        match plan.own_bus {
            Some(_) => Ok(()),
            None => bus(&plan.bus).await,
        }
    };
    let databases =
        plan.services.iter().filter_map(|unit| Some((unit.name.as_str(), unit.database.as_deref()?)));
    let databases = join_all(databases.map(|(service, url)| database(service, url)));
    let (bus, databases) = tokio::join!(bus, databases);
    let refusals: Vec<Error> = std::iter::once(bus).chain(databases).filter_map(Result::err).collect();
    let Some(first) = refusals.first() else { return Ok(()) };
    let messages: Vec<&str> = refusals.iter().map(|refusal| refusal.message.as_str()).collect();
    Err(Error::new(first.kind, messages.join("\n")))
}

async fn bus(url: &str) -> Result<()> {
    if IN_ONE_PROCESS.iter().any(|scheme| url.starts_with(scheme)) {
        return Err(Error::usage(format!(
            "the bus {url} is that of one process, which services in processes of their own cannot share; leave it out, or name a server"
        )));
    }
    let asked = async {
        let bus = connect(url, &Identity::Operator).await?;
        let topics = bus.topics().await;
        bus.close().await;
        Ok(topics.map(drop)?)
    };
    asked.await.map_err(|error| unusable(&format!("the bus {}", without_password(url)), &error))
}

async fn database(service: &str, url: &str) -> Result<()> {
    let made = match url.split_once("://").map(|(scheme, _)| scheme) {
        Some("postgres" | "postgresql") => postgres::create_database(url).await,
        Some("mysql" | "mariadb") => mysql::create_database(url).await,
        // A file is made by its service; what else there is, the service knows.
        _ => return Ok(()),
    };
    let whose = || format!("the database of {service}, {},", without_password(url));
    made.map(drop).map_err(|error| unusable(&whose(), &error.into()))
}

fn unusable(what: &str, error: &Error) -> Error {
    let advice = match error.kind {
        // A question has said it already.
        Kind::NotRunning if !error.message.ends_with('?') => "; start it, or correct its address",
        _ => "",
    };
    Error::new(error.kind, format!("{what} cannot be used: {}{advice}", error.message))
}
