//! Addresses, and the names that a namespace gives to its keys and channels.
//!
//! Invariant: two namespaces, and two topics of one, never share a key: `:` and `/` separate, and no namespace, topic or subject
//! contains them. No message of ours holds a password.

use redis::io::tcp::TcpSettings;
use redis::io::tcp::socket2::TcpKeepalive;
use redis::{ConnectionInfo, IntoConnectionInfo};
use std::time::Duration;
use tombolo_event::ServiceName;

use crate::{Error, Kind, Result};

/// The namespace of an address that names none.
const NAMESPACE_DEFAULT: &str = "tombolo";
const FORM: &str = "redis://[[user]:password@]host[:port][/database number][?namespace=NAME]";
/// After how long a silent connection is looked after, how often, and when what was sent counts as lost.
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(5);
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(20);

/// Where the server is, and whose keys are meant.
pub(super) struct Address {
    pub(super) server: ConnectionInfo,
    /// The server and the number of the database, for people.
    pub(super) place: String,
    pub(super) keys: Keys,
}

/// The names of one namespace.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    prefix: String,
}

impl Address {
    pub(super) fn parse(url: &str) -> Result<Self> {
        let wrong =
            |found: &str| Error::new(Kind::Configuration, format!("Redis address {found}; expected {FORM}"));
        let (scheme, rest) = url.split_once("://").ok_or_else(|| wrong("has no scheme"))?;
        if scheme != "redis" {
            return Err(wrong(&format!("has the scheme {scheme:?}")));
        }
        let (server, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut namespace = NAMESPACE_DEFAULT;
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("namespace", value)) => namespace = value,
                _ => {
                    let name = pair.split('=').next().unwrap_or_default();
                    return Err(wrong(&format!("has the parameter {name:?}")));
                }
            }
        }
        ServiceName::new(namespace)
            .map_err(|error| wrong(&format!("has the namespace {namespace:?}")).because(error))?;
        // The error names what is wrong of a URL, never the URL.
        let server = format!("redis://{server}")
            .into_connection_info()
            .map_err(|error| wrong(&format!("cannot be read ({error})")))?;
        let place = format!("{} database {}", server.addr(), server.redis_settings().db());
        Ok(Self { server: server.set_tcp_settings(tcp()), place, keys: Keys::of(namespace) })
    }
}

fn tcp() -> TcpSettings {
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE_EVERY).with_retries(3);
    let settings = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive);
    #[cfg(target_os = "linux")]
    let settings = settings.set_user_timeout(UNACKNOWLEDGED_MAX);
    settings
}

impl Keys {
    fn of(namespace: &str) -> Self {
        Self { prefix: format!("tombolo:{namespace}") }
    }

    /// The hash that says what a topic is. The braces keep all keys of a topic together.
    pub(super) fn topic(&self, topic: &ServiceName) -> String {
        format!("{}:{{{topic}}}:topic", self.prefix)
    }

    /// The hash with the end of each partition.
    pub(super) fn ends(&self, topic: &ServiceName) -> String {
        format!("{}:{{{topic}}}:ends", self.prefix)
    }

    /// The stream of a partition.
    pub(super) fn partition(&self, topic: &ServiceName, partition: u32) -> String {
        format!("{}:{{{topic}}}:{partition}", self.prefix)
    }

    /// The set of all topics.
    pub(super) fn topics(&self) -> String {
        format!("{}:topics", self.prefix)
    }

    pub(super) fn registrations(&self) -> String {
        format!("{}:registrations", self.prefix)
    }

    /// The mark by which a topic's hash is known to be ours.
    pub(super) fn mark(&self, topic: &ServiceName) -> String {
        format!("Tombolo topic {topic} of {}, layout 1", self.prefix)
    }

    /// The channel that tells what was appended to a topic.
    pub(super) fn appended(&self, topic: &str) -> String {
        format!("{}:appended:{topic}", self.prefix)
    }

    /// The hash of those who hear a subject.
    pub(super) fn heard(&self, subject: &str) -> String {
        format!("{}:heard:{subject}", self.prefix)
    }

    /// The channel of one listening connection, but for its name.
    pub(super) fn handle(&self) -> String {
        format!("{}:handle:", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_name_a_namespace() {
        let orders = ServiceName::new("orders").unwrap();
        for (url, place, stream) in [
            ("redis://h", "h:6379 database 0", "tombolo:tombolo:{orders}:3"),
            ("redis://u:p@h:1/2?namespace=staging", "h:1 database 2", "tombolo:staging:{orders}:3"),
        ] {
            let address = Address::parse(url).unwrap();
            assert_eq!(
                (address.place.as_str(), address.keys.partition(&orders, 3).as_str()),
                (place, stream)
            );
        }
    }

    #[test]
    fn an_odd_address_is_refused_without_its_password() {
        for url in [
            "h:6379",
            "rediss://u:secret@h",
            "redis://",
            "redis://u:secret@h:port",
            "redis://u:secret@h/name",
            "redis://u:secret@h?namespace=A_b",
            "redis://u:secret@h?namspace=typo",
        ] {
            let error = Address::parse(url).err().unwrap_or_else(|| panic!("{url} is taken"));
            assert_eq!(error.kind(), Kind::Configuration);
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
}
