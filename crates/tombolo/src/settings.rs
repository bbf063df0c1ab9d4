//! Where a service finds its bus, and where it is found: from the environment, or given by the user.

use std::env;
use std::time::Duration;

use tombolo_db::Schema;
pub use tombolo_event::operator::OPERATOR_TOKEN;

use crate::{Error, Kind, Result};

/// Where the bus is: `tombolo://host:port`, `tombolo+unix:///path`, `nats://…`, `amqp://…`, `kafka://…`, `memory:`.
pub const BUS: &str = "TOMBOLO_BUS";
/// The archive of the bus, if its topics are trimmed: another bus, which keeps for ever what `tombolo archive` copies.
pub const ARCHIVE: &str = "TOMBOLO_ARCHIVE";
/// The address to serve on, such as `127.0.0.1:7101`; port 0 takes a free one.
pub const LISTEN: &str = "TOMBOLO_LISTEN";
/// Where other services call this one; by default what [`LISTEN`] says.
pub const URL: &str = "TOMBOLO_URL";
/// The service's own database.
pub const DATABASE: &str = "TOMBOLO_DATABASE";
/// Which of the service's replicas this is, from 1.
pub const REPLICA: &str = "TOMBOLO_REPLICA";
/// Whether Tombolo's own tables are made at the start: `apply`, or only checked: `check`, which is the default, so that what a
/// database looks like is decided in a deployment (`tombolo schema apply`). `tombolo dev` says `apply`.
pub const SCHEMA: &str = "TOMBOLO_SCHEMA";

/// How a service is run. Everything has a default that works beside `tombolo bus` on one machine.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the bus is.
    pub bus: String,
    /// The archive of the bus, from which is read what the bus does not have any more.
    pub archive: Option<String>,
    /// The address to serve on.
    pub listen: String,
    /// Where other services call this one.
    pub url: Option<String>,
    /// Which replica this is, if somebody counts them. A replica that is started again takes over at once what it held;
    /// one without a number waits for the old leases to end.
    pub replica: Option<u32>,
    /// What operators have to show as a bearer token; without one, only this machine's are let in.
    pub operator_token: Option<Secret>,
    /// Whether Tombolo's own tables are made at the start, or only checked.
    pub schema: Schema,
    /// How long a stopping service waits for what it has begun.
    pub grace: Duration,
    /// For tests, which do not want to wait so long; every replica of a service must have the same.
    #[doc(hidden)]
    pub lease: Lease,
}

/// How long a leader of the outbox, or a holder of partitions, that says nothing keeps what it holds.
#[doc(hidden)]
#[derive(Debug, Clone, Copy)]
pub struct Lease(pub Duration);

impl Default for Lease {
    fn default() -> Self {
        Self(Duration::from_secs(15))
    }
}

impl Lease {
    /// Renewed so often, it outlasts two renewals that fail.
    pub(crate) fn renew_every(self) -> Duration {
        self.0 / 3
    }
}

/// A text that nobody finds in a log: its `Debug` form says only that it is there.
#[derive(Clone)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            bus: "tombolo://127.0.0.1:7400".into(),
            archive: None,
            listen: "127.0.0.1:0".into(),
            url: None,
            replica: None,
            operator_token: None,
            schema: Schema::Apply,
            grace: Duration::from_secs(5),
            lease: Lease::default(),
        }
    }
}

impl Settings {
    /// The settings that the environment says.
    ///
    /// # Errors
    /// `Settings` for a value that cannot be meant.
    pub fn from_env() -> Result<Self> {
        let mut settings = Self::default();
        if let Ok(bus) = env::var(BUS) {
            settings.bus = bus;
        }
        settings.archive = env::var(ARCHIVE).ok().filter(|archive| !archive.is_empty());
        if let Ok(listen) = env::var(LISTEN) {
            settings.listen = listen;
        }
        settings.url = env::var(URL).ok();
        settings.operator_token = env::var(OPERATOR_TOKEN).ok().filter(|token| !token.is_empty()).map(Secret);
        if let Ok(replica) = env::var(REPLICA) {
            let number = replica.parse().ok().filter(|&number| number > 0);
            let wrong =
                || Error::new(Kind::Settings, format!("{REPLICA} is {replica:?}; expected a number from 1"));
            settings.replica = Some(number.ok_or_else(wrong)?);
        }
        settings.schema = match env::var(SCHEMA).as_deref() {
            Ok("apply") => Schema::Apply,
            Ok("check") | Err(_) => Schema::Check,
            Ok(other) => {
                let message = format!("{SCHEMA} is {other:?}; expected \"apply\" or \"check\"");
                return Err(Error::new(Kind::Settings, message));
            }
        };
        Ok(settings)
    }
}

/// The database that the environment names for a service, or `default`.
#[must_use]
pub fn database_or(default: &str) -> String {
    env::var(DATABASE).unwrap_or_else(|_| default.to_owned())
}

/// The kind of database that an address names, as [`tombolo_db::Outbox::kind`] calls it: `sqlite` (also for a plain path),
/// `documents`, `postgres`, `mysql`, `mongodb`, or whatever else stands before its colon. For a program that is built for several.
#[must_use]
pub fn database_kind(address: &str) -> &str {
    match address.split_once(':') {
        Some(("postgres" | "postgresql", _)) => "postgres",
        Some(("mysql" | "mariadb", _)) => "mysql",
        Some(("mongodb" | "mongodb+srv", _)) => "mongodb",
        Some(("documents", _)) => "documents",
        Some((scheme, rest)) if scheme != "sqlite" && rest.starts_with("//") => scheme,
        _ => "sqlite",
    }
}

/// The refusal of an address whose kind the program is not built for; `forms` are the addresses that it takes. The address is
/// not repeated, because it may hold a password.
#[must_use]
pub fn other_database(address: &str, forms: &[&str]) -> Error {
    let message = format!(
        "found a database of the kind {:?}, which this service is not built for; expected {} ({DATABASE}, or `database` in the manifest)",
        database_kind(address),
        forms.join(" or ")
    );
    Error::new(Kind::Settings, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_of_a_database_is_read_off_its_address() {
        for (address, kind) in [
            ("postgres://shop@db/orders", "postgres"),
            ("postgresql://db", "postgres"),
            ("mysql://db/users", "mysql"),
            ("mariadb://db/users", "mysql"),
            ("mongodb://a,b/users?replicaSet=rs0", "mongodb"),
            ("mongodb+srv://cluster/users", "mongodb"),
            ("documents:products.redb", "documents"),
            ("sqlite:orders.db", "sqlite"),
            ("sqlite:///data/orders.db?mode=rwc", "sqlite"),
            ("orders.db", "sqlite"),
            ("C:/orders.db", "sqlite"),
            ("cassandra+tls://db/orders", "cassandra+tls"),
        ] {
            assert_eq!(database_kind(address), kind, "{address}");
        }
    }

    #[test]
    fn a_kind_that_is_not_built_in_is_refused_without_the_password() {
        let said =
            other_database("mysql://shop:secret@db/orders", &["sqlite:PATH", "postgres://…"]).to_string();
        assert!(said.contains("\"mysql\"") && said.contains("sqlite:PATH or postgres://…"), "{said}");
        assert!(!said.contains("secret"), "{said}");
    }
}
