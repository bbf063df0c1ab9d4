//! Addresses, and the names that a namespace gives to streams and subjects.
//!
//! `nats://[user:password@]host:port[,host:port…][/namespace][?replicas=3]`: several places are servers of one cluster, and
//! `replicas` says on how many of them what is made is kept.
//!
//! Invariant: two namespaces, and two topics of one, never share a stream or a subject: `_` and `.` separate, and no
//! namespace or topic contains them.

use tombolo_event::ServiceName;

use crate::{Error, Kind, Result};

/// The namespace of an address that names none.
const NAMESPACE_DEFAULT: &str = "tombolo";
/// On how many servers a stream can be kept: an even number outlives no more deaths than the odd one below it.
const REPLICAS: [usize; 3] = [1, 3, 5];

/// Where the servers are, whose streams are meant, and on how many servers they are kept.
pub(super) struct Address {
    /// The addresses of the servers, without the namespace; several are one cluster.
    pub(super) servers: Vec<String>,
    pub(super) names: Names,
    pub(super) replicas: usize,
}

/// The names of one namespace.
#[derive(Debug, Clone)]
pub(super) struct Names {
    namespace: String,
}

fn wrong(found: &str) -> Error {
    let message =
        format!("NATS address {found}; expected nats://host:port[,host:port][/namespace][?replicas=1|3|5]");
    Error::new(Kind::Configuration, message)
}

impl Address {
    pub(super) fn parse(url: &str) -> Result<Self> {
        let (scheme, rest) = url.split_once("://").ok_or_else(|| wrong("has no scheme"))?;
        if !matches!(scheme, "nats" | "tls") {
            return Err(wrong(&format!("has the scheme {scheme:?}")));
        }
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (hosts, path) = place.split_once('/').unwrap_or((place, ""));
        let (user, hosts) = hosts.rsplit_once('@').map_or(("", hosts), |(user, hosts)| (user, hosts));
        let at = if user.is_empty() { "" } else { "@" };
        if hosts.split(',').any(str::is_empty) {
            return Err(wrong("has no host, or an empty one"));
        }
        let namespace = match path.trim_end_matches('/') {
            "" => NAMESPACE_DEFAULT,
            named => named,
        };
        let namespace = ServiceName::new(namespace)
            .map_err(|error| wrong(&format!("has the namespace {namespace:?}")).because(error))?;
        let names = Names { namespace: namespace.as_str().to_owned() };
        let servers = hosts.split(',').map(|host| format!("{scheme}://{user}{at}{host}")).collect();
        Ok(Self { servers, names, replicas: replicas(query)? })
    }
}

fn replicas(query: &str) -> Result<usize> {
    let mut found = 1;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let Some(("replicas", number)) = pair.split_once('=') else {
            let key = pair.split('=').next().unwrap_or_default();
            return Err(wrong(&format!("has {key:?} in its query, which means nothing")));
        };
        found = number.parse().ok().filter(|number| REPLICAS.contains(number)).ok_or_else(|| {
            wrong(&format!("asks for {number:?} replicas (an even number outlives no more deaths)"))
        })?;
    }
    Ok(found)
}

impl Names {
    pub(super) fn topic_stream(&self, topic: &ServiceName) -> String {
        format!("tombolo_{}_topic_{topic}", self.namespace)
    }

    /// The topic whose stream has this name, if it is of this namespace.
    pub(super) fn topic_of_stream(&self, stream: &str) -> Option<ServiceName> {
        let topic = stream.strip_prefix(&format!("tombolo_{}_topic_", self.namespace))?;
        ServiceName::new(topic).ok()
    }

    /// The mark by which a topic's stream is known to be ours.
    pub(super) fn topic_mark(&self, topic: &ServiceName) -> String {
        format!("Tombolo topic {topic} of namespace {}, layout 1", self.namespace)
    }

    pub(super) fn topic_subjects(&self, topic: &ServiceName) -> String {
        format!("{}.topic.{topic}.*", self.namespace)
    }

    pub(super) fn control(&self, topic: &ServiceName) -> String {
        format!("{}.topic.{topic}.control", self.namespace)
    }

    pub(super) fn partition(&self, topic: &ServiceName, partition: u32) -> String {
        format!("{}.topic.{topic}.{partition}", self.namespace)
    }

    pub(super) fn registrations_stream(&self) -> String {
        format!("tombolo_{}_registrations", self.namespace)
    }

    pub(super) fn registrations_mark(&self) -> String {
        format!("Tombolo registrations of namespace {}, layout 1", self.namespace)
    }

    pub(super) fn registrations_subjects(&self) -> String {
        format!("{}.registration.*.*", self.namespace)
    }

    pub(super) fn registration(&self, service: &ServiceName, replica: u32) -> String {
        format!("{}.registration.{service}.{replica}", self.namespace)
    }

    pub(super) fn signal(&self, subject: &str) -> String {
        format!("{}.signal.{subject}", self.namespace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_name_a_namespace() {
        let orders = ServiceName::new("orders").unwrap();
        for (url, servers, stream, replicas) in [
            ("nats://h:4222", "nats://h:4222", "tombolo_tombolo_topic_orders", 1),
            ("nats://u:p@h:4222/?replicas=1", "nats://u:p@h:4222", "tombolo_tombolo_topic_orders", 1),
            ("tls://h/staging", "tls://h", "tombolo_staging_topic_orders", 1),
            ("nats://u:p@a,b:1/x?replicas=3", "nats://u:p@a nats://u:p@b:1", "tombolo_x_topic_orders", 3),
        ] {
            let address = Address::parse(url).unwrap();
            assert_eq!((address.servers.join(" ").as_str(), address.replicas), (servers, replicas));
            assert_eq!(address.names.topic_stream(&orders), stream);
            assert_eq!(address.names.topic_of_stream(stream), Some(orders.clone()));
        }
    }

    #[test]
    fn an_odd_address_is_refused_without_its_password() {
        let odd = [
            "h:4222",
            "http://h",
            "nats://",
            "nats://u:secret@a,,b",
            "nats://u:secret@h/A_b",
            "nats://u:secret@h/a/b",
            "nats://u:secret@h?replicas=2",
            "nats://u:secret@h?replicas=many",
            "nats://u:secret@h?password=secret",
        ];
        for url in odd {
            let error = Address::parse(url).err().unwrap();
            assert_eq!(error.kind(), Kind::Configuration);
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_stream_of_another_namespace_is_not_ours() {
        let names = Address::parse("nats://h/a").unwrap().names;
        assert_eq!(names.topic_of_stream("tombolo_ab_topic_orders"), None);
        assert_eq!(names.topic_of_stream("tombolo_a_registrations"), None);
    }
}
