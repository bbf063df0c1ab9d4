//! Addresses: some of the brokers, and the namespace.
//!
//! Invariant: an address that is refused is never repeated, because it may hold a password.

use crate::judged::Names;
use crate::{Error, Kind, Result};

/// Where the brokers are, and whose topics are meant.
#[derive(Debug)]
pub(super) struct Address {
    /// `host:port[,host:port…]`: some of the brokers of one cluster; the others are learned from them.
    pub(super) brokers: String,
    pub(super) names: Names,
}

fn wrong(found: &str) -> Error {
    let message =
        format!("Kafka address {found}; expected kafka://host:port[,host:port][/][?namespace=name]");
    Error::new(Kind::Configuration, message)
}

impl Address {
    pub(super) fn parse(url: &str) -> Result<Self> {
        let (scheme, rest) = url.split_once("://").ok_or_else(|| wrong("has no scheme"))?;
        if scheme != "kafka" {
            return Err(wrong(&format!("has the scheme {scheme:?}")));
        }
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (brokers, path) = place.split_once('/').unwrap_or((place, ""));
        if brokers.contains('@') {
            return Err(wrong("has a user (neither SASL nor TLS is built in)"));
        }
        if !path.is_empty() {
            return Err(wrong("has a path (a namespace is written `?namespace=name`)"));
        }
        if !brokers.split(',').all(is_place) {
            return Err(wrong("has a broker that is not host:port"));
        }
        Ok(Self { brokers: brokers.to_owned(), names: Names::parse(query, wrong)? })
    }
}

fn is_place(place: &str) -> bool {
    place.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use tombolo_event::ServiceName;

    use super::*;

    #[test]
    fn an_address_may_name_several_brokers_and_a_namespace() {
        let orders = ServiceName::new("orders").unwrap();
        for (url, brokers, topic) in [
            ("kafka://h:9092", "h:9092", "tombolo.tombolo.topic.orders"),
            ("kafka://a:1,b:2/", "a:1,b:2", "tombolo.tombolo.topic.orders"),
            ("kafka://[::1]:9092?namespace=staging", "[::1]:9092", "tombolo.staging.topic.orders"),
        ] {
            let address = Address::parse(url).unwrap();
            assert_eq!((address.brokers.as_str(), address.names.topic(&orders).as_str()), (brokers, topic));
        }
    }

    #[test]
    fn an_odd_address_is_refused_without_its_password() {
        let odd = [
            "h:9092",
            "http://h:9092",
            "kafka://",
            "kafka://h",
            "kafka://h:9092,",
            "kafka://h:port",
            "kafka://u:secret@h:9092",
            "kafka://h:9092/staging",
            "kafka://h:9092?namespace=A_b",
            "kafka://h:9092?acks=secret",
        ];
        for url in odd {
            let error = Address::parse(url).unwrap_err();
            assert_eq!(error.kind(), Kind::Configuration);
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
}
