//! From a URL to a bus: the one place that knows which engine stands behind which scheme.
//!
//! Invariant: a URL that cannot be used is refused here with what was found and what could have been written;
//! nothing is guessed.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use tombolo_event::ServiceName;

use crate::{Bus, Error, Kind, Result};

/// The URLs of buses, for people.
const FORMS: &str = "memory: (this process only), file:///folder (the log of one process), \
    tombolo://host:port, tombolo+tls://host:port or tombolo+unix:///path/to/socket (a `tombolo bus`), nats://host:port (NATS JetStream), \
    postgres://user@host:port/database (PostgreSQL), redis://host:port (Redis), \
    amqp://user:password@host:port (RabbitMQ streams), kafka://host:port (Kafka)";

/// The environment variable with the token that a `tombolo bus` with credentials asks for; a URL would show it in logs.
#[cfg(feature = "server")]
const TOKEN: &str = "TOMBOLO_BUS_TOKEN";
/// A file in PEM with the authorities that the certificate of a `tombolo+tls://` bus may be of; the system's if it is not set.
#[cfg(feature = "tls")]
const AUTHORITIES: &str = "TOMBOLO_BUS_CA";
/// Files in PEM with the certificate to show, and its key.
#[cfg(feature = "tls")]
const CERTIFICATE: &str = "TOMBOLO_BUS_CERTIFICATE";
#[cfg(feature = "tls")]
const KEY: &str = "TOMBOLO_BUS_KEY";

/// Who uses a bus.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Identity {
    /// A service: changes its own topic, reads all.
    Service(ServiceName),
    /// An operator's tool: reads all.
    Operator,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name) => write!(f, "service/{name}"),
            Self::Operator => f.write_str("operator"),
        }
    }
}

impl FromStr for Identity {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            let message = format!("identity {text:?} is none; expected \"service/<name>\" or \"operator\"");
            Error::new(Kind::Configuration, message)
        };
        match text.split_once('/') {
            Some(("service", name)) => ServiceName::new(name)
                .map(Self::Service)
                .map_err(|error| Error::new(Kind::InvalidName, error.to_string())),
            None if text == "operator" => Ok(Self::Operator),
            _ => Err(wrong()),
        }
    }
}

/// The bus at `url`, used as `identity`.
///
/// An engine in this process is opened now; a server that is away is no error, and the calls answer
/// `Unavailable` until it is there. Each call makes a bus of its own: share the result within a process. The
/// identity counts where a `tombolo bus` asks for it; other engines have accounts of their own.
///
/// # Errors
/// `Configuration` if the URL names no bus that this build has, and what the engine says when it cannot be opened.
pub async fn connect(url: &str, identity: &Identity) -> Result<Arc<dyn Bus>> {
    let Some((scheme, rest)) = url.split_once(':') else {
        return Err(unusable(url, "has no scheme"));
    };
    match scheme {
        "memory" if rest.is_empty() => in_memory().await,
        "memory" => Err(unusable(url, "has something after the colon")),
        "file" => match rest.strip_prefix("//") {
            Some(folder) if folder.starts_with('/') => in_folder(folder).await,
            _ => Err(unusable(url, "has no absolute path (file:// and then /folder)")),
        },
        "tombolo" | "tombolo+tls" | "tombolo+unix" => to_server(url, identity).await,
        "nats" => to_nats(url).await,
        "amqp" | "amqps" => to_rabbitmq(url).await,
        "kafka" => to_kafka(url).await,
        "postgres" | "postgresql" => to_postgres(url).await,
        "redis" => to_redis(url).await,
        other => Err(unusable(url, &format!("has the unknown scheme {other:?}"))),
    }
}

fn unusable(url: &str, found: &str) -> Error {
    let shown = without_secret(url);
    Error::new(Kind::Configuration, format!("bus URL {shown:?} {found}; expected one of: {FORMS}"))
}

/// A URL as it may be shown: without its user and password.
fn without_secret(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, place))) => format!("{scheme}://…@{place}"),
        (None, Some((_, place))) => format!("…@{place}"),
        _ => url.to_owned(),
    }
}

#[cfg(feature = "embedded")]
async fn in_memory() -> Result<Arc<dyn Bus>> {
    let log = crate::embedded::Log::in_memory(crate::embedded::Options::default())?;
    Ok(log)
}

/// Opening reads the last segment, which is no work for a thread that others wait for.
#[cfg(feature = "embedded")]
async fn in_folder(folder: &str) -> Result<Arc<dyn Bus>> {
    let folder = std::path::PathBuf::from(folder);
    let open = move || crate::embedded::Log::open(&folder, crate::embedded::Options::default());
    let opened = tokio::task::spawn_blocking(open).await.map_err(|error| {
        Error::new(Kind::Unavailable, "opening the log was interrupted; try again").because(error)
    })?;
    let (log, _recovered) = opened?;
    Ok(log)
}

#[cfg(not(feature = "embedded"))]
async fn in_memory() -> Result<Arc<dyn Bus>> {
    Err(absent("memory:", "embedded"))
}

#[cfg(not(feature = "embedded"))]
async fn in_folder(folder: &str) -> Result<Arc<dyn Bus>> {
    Err(absent(&format!("file://{folder}"), "embedded"))
}

#[cfg(feature = "server")]
async fn to_server(url: &str, identity: &Identity) -> Result<Arc<dyn Bus>> {
    let token = variable(TOKEN);
    let token = token.as_deref().map(str::trim);
    let client = crate::server::Client::with_trust(&url.parse()?, identity, token, &trust()?)?;
    match client.ping().await {
        Ok(_) => {}
        Err(error) if error.is_transient() => tracing::info!(%error, "going on without the bus for now"),
        Err(error) => return Err(error),
    }
    Ok(Arc::new(client))
}

#[cfg(feature = "server")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Whom to trust, and what to show, as the environment says.
#[cfg(feature = "tls")]
fn trust() -> Result<crate::server::Trust> {
    let file = |name: &str| variable(name).map(std::path::PathBuf::from);
    let own = match (file(CERTIFICATE), file(KEY)) {
        (Some(chain), Some(key)) => Some(crate::server::Certificate { chain, key }),
        (None, None) => None,
        _ => {
            let message =
                format!("a certificate needs its key; expected both {CERTIFICATE} and {KEY}, or neither");
            return Err(Error::new(Kind::Configuration, message));
        }
    };
    Ok(crate::server::Trust { authorities: file(AUTHORITIES), own })
}

#[cfg(all(feature = "server", not(feature = "tls")))]
#[expect(clippy::unnecessary_wraps, reason = "the other one can fail")]
fn trust() -> Result<crate::server::Trust> {
    Ok(crate::server::Trust::default())
}

#[cfg(not(feature = "server"))]
async fn to_server(url: &str, _identity: &Identity) -> Result<Arc<dyn Bus>> {
    Err(absent(url, "server"))
}

/// The server's own accounts say who may do what.
#[cfg(feature = "nats")]
async fn to_nats(url: &str) -> Result<Arc<dyn Bus>> {
    Ok(Arc::new(crate::nats::connect(url).await?))
}

/// The URL may hold a password, so it is not repeated.
#[cfg(not(feature = "nats"))]
async fn to_nats(_url: &str) -> Result<Arc<dyn Bus>> {
    Err(absent("nats://…", "nats"))
}

#[cfg(feature = "rabbitmq")]
async fn to_rabbitmq(url: &str) -> Result<Arc<dyn Bus>> {
    Ok(Arc::new(crate::rabbitmq::connect(url).await?))
}

#[cfg(not(feature = "rabbitmq"))]
async fn to_rabbitmq(_url: &str) -> Result<Arc<dyn Bus>> {
    Err(absent("amqp://…", "rabbitmq"))
}

#[cfg(feature = "kafka")]
async fn to_kafka(url: &str) -> Result<Arc<dyn Bus>> {
    Ok(Arc::new(crate::kafka::connect(url).await?))
}

#[cfg(not(feature = "kafka"))]
async fn to_kafka(_url: &str) -> Result<Arc<dyn Bus>> {
    let built = "the binary `tombolo` by `cargo build --release -p tombolo-cli --features kafka`, with make and a C compiler";
    let error = absent("kafka://…", "kafka");
    Err(Error::new(error.kind(), format!("{error} ({built})")))
}

#[cfg(feature = "postgres")]
async fn to_postgres(url: &str) -> Result<Arc<dyn Bus>> {
    Ok(Arc::new(crate::postgres::connect(url).await?))
}

#[cfg(not(feature = "postgres"))]
async fn to_postgres(_url: &str) -> Result<Arc<dyn Bus>> {
    Err(absent("postgres://…", "postgres"))
}

#[cfg(feature = "redis")]
async fn to_redis(url: &str) -> Result<Arc<dyn Bus>> {
    Ok(Arc::new(crate::redis::connect(url).await?))
}

#[cfg(not(feature = "redis"))]
async fn to_redis(_url: &str) -> Result<Arc<dyn Bus>> {
    Err(absent("redis://…", "redis"))
}

#[cfg(not(all(
    feature = "embedded",
    feature = "server",
    feature = "nats",
    feature = "postgres",
    feature = "redis",
    feature = "rabbitmq",
    feature = "kafka"
)))]
fn absent(url: &str, feature: &str) -> Error {
    let message = format!(
        "bus URL {url:?} needs the feature {feature:?} of tombolo-bus, which this program was built without; build it in, or use another URL"
    );
    Error::new(Kind::Configuration, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_mistaken_url_is_shown_without_its_password() {
        for url in ["postgre://shop:secret@host/db", "shop:secret@host", "no//shop:secret@host"] {
            let refused = connect(url, &Identity::Operator).await.map(drop).expect_err("it names no bus");
            let said = refused.to_string();
            assert!(said.contains("host") && !said.contains("secret"), "{said}");
        }
    }
}
