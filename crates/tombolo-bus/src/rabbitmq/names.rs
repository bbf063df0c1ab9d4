//! Addresses, and the names that a namespace gives to queues beside those of the streams.
//!
//! Invariant: two namespaces, and two topics of one, never share a name: `.` and `:` separate, and no namespace or topic
//! contains them. An address that is refused is never repeated, because it may hold a password.

use lapin::uri::AMQPUri;
use uuid::Uuid;

use crate::judged::Names;
use crate::{Error, Kind, Result};

/// The longest name of AMQP, in bytes.
const NAME_BYTES_MAX: usize = 255;
/// How often the connection is proved to be alive, in seconds.
const HEARTBEAT_SECONDS: u16 = 10;
/// The space of the ids that stand for names which are too long.
const LONG_NAMES: Uuid = Uuid::from_u128(0x746f_6d62_6f6c_6f00_7261_6262_6974_6d71);

/// Where the server is, and whose streams are meant.
#[derive(Debug)]
pub(super) struct Address {
    pub(super) server: AMQPUri,
    pub(super) names: Names,
}

fn wrong(found: &str) -> Error {
    let message = format!(
        "RabbitMQ address {found}; expected amqp://user:password@host:port[/vhost][?namespace=name] (or amqps)"
    );
    Error::new(Kind::Configuration, message)
}

impl Address {
    pub(super) fn parse(url: &str) -> Result<Self> {
        let (scheme, rest) = url.split_once("://").ok_or_else(|| wrong("has no scheme"))?;
        if !matches!(scheme, "amqp" | "amqps") {
            return Err(wrong(&format!("has the scheme {scheme:?}")));
        }
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, vhost) = place.split_once('/').unwrap_or((place, ""));
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        if host.is_empty() || host.starts_with(':') {
            return Err(wrong("has no host"));
        }
        if vhost.contains('/') {
            return Err(wrong("has a path of several parts (write a slash in the vhost's name as %2f)"));
        }
        let vhost = if vhost.is_empty() { "%2f" } else { vhost };
        let server: AMQPUri =
            format!("{scheme}://{authority}/{vhost}").parse().map_err(|_| wrong("cannot be read"))?;
        Ok(Self { server: completed(server, host), names: Names::parse(query, wrong)? })
    }
}

fn completed(mut server: AMQPUri, host: &str) -> AMQPUri {
    // The parser of the client takes an address in brackets for none.
    if let Some((address, _)) = host.strip_prefix('[').and_then(|host| host.split_once(']')) {
        server.authority.host = address.to_owned();
    }
    server.query.heartbeat = Some(HEARTBEAT_SECONDS);
    server
}

impl Names {
    /// The queue that the members of a group share.
    pub(super) fn group(&self, subject: &str, group: &str) -> String {
        let name = format!("tombolo.{}.group.{subject}:{group}", self.namespace);
        if name.len() <= NAME_BYTES_MAX {
            return name;
        }
        let id = Uuid::new_v5(&LONG_NAMES, name.as_bytes());
        format!("tombolo.{}.group.{}", self.namespace, id.simple())
    }
}

#[cfg(test)]
mod tests {
    use tombolo_event::ServiceName;

    use super::*;

    #[test]
    fn an_address_may_name_a_vhost_and_a_namespace() {
        let orders = ServiceName::new("orders").unwrap();
        for (url, host, vhost, stream) in [
            ("amqp://h", "h", "/", "tombolo.tombolo.topic.orders"),
            ("amqp://u:p@h:5672/", "h", "/", "tombolo.tombolo.topic.orders"),
            ("amqps://h/a%2fb?namespace=staging", "h", "a/b", "tombolo.staging.topic.orders"),
            ("amqp://u:p@[::1]:5672/x", "::1", "x", "tombolo.tombolo.topic.orders"),
        ] {
            let address = Address::parse(url).unwrap();
            let server = &address.server;
            assert_eq!((server.authority.host.as_str(), server.vhost.as_str()), (host, vhost), "{url}");
            assert_eq!(address.names.topic(&orders), stream);
        }
    }

    #[test]
    fn an_odd_address_is_refused_without_its_password() {
        let odd = [
            "h:5672",
            "http://u:secret@h",
            "amqp://",
            "amqp://u:secret@:5672",
            "amqp://u:secret@h:port",
            "amqp://u:secret@h/a/b",
            "amqp://u:secret@h?namespace=A_b",
            "amqp://u:secret@h?heartbeat=secret",
        ];
        for url in odd {
            let error = Address::parse(url).unwrap_err();
            assert_eq!(error.kind(), Kind::Configuration);
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    #[test]
    fn groups_of_different_subjects_never_share_a_queue() {
        let names = Address::parse("amqp://h").unwrap().names;
        assert_ne!(names.group("a.b", "c"), names.group("a", "b.c"));
        let long = "x".repeat(250);
        assert_ne!(names.group(&long, "a"), names.group(&long, "b"));
        assert!(names.group(&long, "a").len() <= NAME_BYTES_MAX);
    }
}
