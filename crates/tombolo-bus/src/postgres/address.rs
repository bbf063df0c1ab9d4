//! Addresses, and the names that a namespace gives to its schema and channels.
//!
//! Invariant: two namespaces never share a table or a channel, and no message of ours holds a password.

use std::str::FromStr;

use sqlx::postgres::PgConnectOptions;
use tombolo_event::ServiceName;
use uuid::Uuid;

use crate::{Error, Kind, Result};

/// The namespace of an address that names none.
const NAMESPACE_DEFAULT: &str = "tombolo";
/// The longest namespace that leaves room in the name of a schema, in bytes.
const NAMESPACE_BYTES_MAX: usize = 63 - SCHEMA.len() - 1;
/// The schema of the default namespace.
const SCHEMA: &str = "tombolo_bus";
const FORM: &str = "postgres://[user[:password]@]host[:port][/database][?namespace=NAME]";

/// What else an address may hold behind its question mark: what sqlx takes.
const PARAMETERS: &[&str] = &[
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "statement-cache-capacity",
];

/// Settings of each session: its tables, and what keeps a stopped or unreachable client from holding others up.
const SESSION: &[(&str, &str)] = &[
    ("statement_timeout", "10s"),
    ("idle_in_transaction_session_timeout", "5s"),
    ("tcp_keepalives_idle", "10"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "3"),
    ("plan_cache_mode", "force_generic_plan"),
    ("jit", "off"),
    ("application_name", "tombolo"),
];

/// Where the server is, and whose tables are meant.
pub(super) struct Address {
    pub(super) options: PgConnectOptions,
    /// The server and the database, for people.
    pub(super) place: String,
    namespace: String,
}

impl Address {
    pub(super) fn parse(url: &str) -> Result<Self> {
        let wrong = |found: &str| {
            Error::new(Kind::Configuration, format!("PostgreSQL address {found}; expected {FORM}"))
        };
        let (scheme, rest) = url.split_once("://").ok_or_else(|| wrong("has no scheme"))?;
        if !matches!(scheme, "postgres" | "postgresql") {
            return Err(wrong(&format!("has the scheme {scheme:?}")));
        }
        let (server, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut namespace = NAMESPACE_DEFAULT;
        let mut others = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match name {
                "namespace" => namespace = value,
                known if PARAMETERS.contains(&known) => others.push(pair),
                odd => return Err(wrong(&format!("has the parameter {odd:?}"))),
            }
        }
        let host = server.rsplit_once('@').map_or(server, |(_, host)| host);
        let named = others.iter().any(|pair| pair.starts_with("host=") || pair.starts_with("hostaddr="));
        if !named && host.split('/').next().is_none_or(str::is_empty) {
            return Err(wrong("has no host"));
        }
        check_namespace(namespace)
            .map_err(|error| wrong(&format!("has the namespace {namespace:?}")).because(error))?;
        let address = format!("postgres://{server}?{}", others.join("&"));
        let options = PgConnectOptions::from_str(&address).map_err(|error| {
            // The error names what is wrong of a URL, never the URL.
            wrong(&format!("cannot be read ({error})"))
        })?;
        Ok(Self::of(options, namespace))
    }

    fn of(options: PgConnectOptions, namespace: &str) -> Self {
        let database = options.get_database().unwrap_or_else(|| options.get_username()).to_owned();
        let host = options
            .get_socket()
            .map_or_else(|| options.get_host().to_owned(), |socket| socket.display().to_string());
        let place = format!("{host}:{} database {database:?}", options.get_port());
        let mut address = Self { options, place, namespace: namespace.to_owned() };
        let path = format!("\"{}\"", address.schema());
        address.options = address.options.options(SESSION.iter().copied()).options([("search_path", path)]);
        address
    }

    /// The schema that holds all tables; every statement finds them through the session's search path.
    pub(super) fn schema(&self) -> String {
        match self.namespace.as_str() {
            NAMESPACE_DEFAULT => SCHEMA.to_owned(),
            named => format!("{SCHEMA}_{named}"),
        }
    }

    /// The mark by which a schema is known to be ours, without the version of the layout.
    pub(super) fn mark(&self) -> String {
        format!("Tombolo bus of namespace {}, layout ", self.namespace)
    }

    /// The channel that tells what was appended to a topic.
    pub(super) fn topic_channel(&self, topic: i32) -> String {
        let name = format!("{}/topic/{topic}", self.schema());
        format!("tombolo_{}", Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()).simple())
    }
}

/// The channel of one listening connection, which holds the lock of this number.
pub(super) fn handle_channel(handle: i64) -> String {
    format!("tombolo_handle_{handle}")
}

fn check_namespace(namespace: &str) -> Result<()> {
    ServiceName::new(namespace).map_err(|error| Error::new(Kind::InvalidName, error.to_string()))?;
    if namespace.len() <= NAMESPACE_BYTES_MAX {
        return Ok(());
    }
    let message = format!("namespace {namespace:?} is longer than {NAMESPACE_BYTES_MAX} bytes");
    Err(Error::new(Kind::InvalidName, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_name_a_namespace() {
        for (url, schema, place) in [
            ("postgres://u:p@h/d", "tombolo_bus", "h:5432 database \"d\""),
            ("postgresql://u@h:1/d?namespace=staging", "tombolo_bus_staging", "h:1 database \"d\""),
            ("postgres://u@h/d?sslmode=disable&namespace=a-b", "tombolo_bus_a-b", "h:5432 database \"d\""),
        ] {
            let address = Address::parse(url).unwrap();
            assert_eq!((address.schema().as_str(), address.place.as_str()), (schema, place));
        }
    }

    #[test]
    fn an_odd_address_is_refused_without_its_password() {
        let long = format!("postgres://u:secret@h/d?namespace={}", "x".repeat(60));
        for url in [
            "h:5432",
            "mysql://u:secret@h/d",
            "postgres://",
            "postgres:///d",
            "postgres://u:secret@/d",
            "postgres://u:secret@h:port/d",
            "postgres://u:secret@h/d?namespace=A_b",
            "postgres://u:secret@h/d?namspace=typo",
            "postgres://u:secret@h/d?sslmode=perhaps",
            &long,
        ] {
            let error = Address::parse(url).err().unwrap_or_else(|| panic!("{url} is taken"));
            assert_eq!(error.kind(), Kind::Configuration);
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
}
